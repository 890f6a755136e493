//! engine
pub mod net;
pub mod spool;
