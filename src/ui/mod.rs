//! (filled by the ui branch)
