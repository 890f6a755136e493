//! engine
pub mod batch;
pub mod events;
pub mod net;
pub mod quarantine;
pub mod replay;
mod rules;
pub mod source;
pub mod spool;
pub mod writer;
