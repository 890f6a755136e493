//! (filled by the headless branch)
