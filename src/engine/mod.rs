//! engine
pub mod events;
pub mod net;
pub mod source;
pub mod spool;
