//! `shakedeck rdb FILE`: what is in an RDB file, as JSON lines ([`write_json`]), as RESP for `redis-cli --pipe`
//! ([`write_resp`]), or as statistics ([`Statistics`]).
//!
//! All three walk the decoder once and hold one value at a time, and of a large value only pieces. A value that cannot be
//! decoded does not end the export; it is reported in its place and counted.

mod json;
mod resp;
mod statistics;

pub use json::write_json;
pub use resp::{RespOptions, write_resp};
pub use statistics::{LargestKey, Statistics, Tally};

use std::io;

use super::{Checksum, RdbError};

/// What an export came across.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys written.
    pub keys: u64,
    /// Collections without elements, left out.
    pub empty: u64,
    /// Keys that could not be written, with the reason: at most the first [`Summary::MAX_BAD`].
    pub bad: Vec<String>,
    /// How many there were.
    pub bad_keys: u64,
    /// Function libraries.
    pub functions: u64,
    /// Pieces of module data outside of keys, which only the RDB can carry.
    pub module_aux: u64,
    /// What commands could not carry over, per key: at most the first [`Summary::MAX_BAD`].
    pub losses: Vec<String>,
    /// What the end of the file said.
    pub checksum: Option<Checksum>,
}

impl Summary {
    /// Most samples kept.
    pub const MAX_BAD: usize = 100;

    fn bad_key(&mut self, key: &[u8], reason: &str) {
        self.bad_keys += 1;
        if self.bad.len() < Self::MAX_BAD {
            self.bad.push(format!("key '{}': {reason}", crate::format::escape(key, 80)));
        }
    }

    fn loss(&mut self, key: &[u8], loss: super::commands::Loss) {
        if let Some(text) = loss.describe().filter(|_| self.losses.len() < Self::MAX_BAD) {
            self.losses.push(format!("key '{}': {text}", crate::format::escape(key, 80)));
        }
    }
}

/// Writing failed: the reader's error type carries it.
fn written(result: io::Result<()>) -> Result<(), RdbError> {
    result.map_err(RdbError::Io)
}
