//! (filled by the demo branch)
