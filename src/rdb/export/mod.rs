//! `shakedeck rdb FILE`: what is in an RDB file, as JSON lines ([`write_json`]), as RESP for `redis-cli --pipe`
//! ([`write_resp`]), or as statistics ([`Statistics`]).
//!
//! All three walk the decoder once and hold one value at a time, and of a large value only pieces. A value that cannot be
//! decoded does not end the export; it is reported in its place and counted. What has been written cannot be taken back, so a
//! large value is read ahead to its end before the first piece of it is written.

mod json;
mod resp;
mod statistics;

pub use json::write_json;
pub use resp::{RespOptions, write_resp};
pub use statistics::{LargestKey, Statistics, Tally};

use std::io::{self, Read};

use super::{Checksum, Dialect, Element, RdbError, visit_from};

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
    /// Function libraries written.
    pub functions: u64,
    /// Function libraries that this format has no place for.
    pub functions_left_out: u64,
    /// Pieces of module data outside of keys, which only the RDB can carry.
    pub module_aux: u64,
    /// What commands could not carry over, per key: at most the first [`Summary::MAX_BAD`].
    pub losses: Vec<String>,
    /// How many such keys there were.
    pub reduced_keys: u64,
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

    fn loss(&mut self, key: &[u8], what: &str) {
        self.reduced_keys += 1;
        if self.losses.len() < Self::MAX_BAD {
            self.losses.push(format!("key '{}': {what}", crate::format::escape(key, 80)));
        }
    }

    /// What the output lacks, or holds besides keys: a line each, and nothing where that is nothing.
    pub fn notes(&self) -> Vec<String> {
        let counts = [
            (self.functions, "function libraries were written"),
            (self.functions_left_out, "function libraries were left out: this format has no place for them"),
            (
                self.module_aux,
                "pieces of module data outside of keys were left out: only an RDB can hold them",
            ),
            (self.empty, "collections without elements were left out: no server keeps them"),
            (self.reduced_keys, "keys were written without all that they hold"),
            (self.bad_keys, "keys could not be written"),
        ];
        let counts = counts.iter().filter(|(count, _)| *count > 0);
        let counts = counts.map(|(count, what)| format!("{} {what}", crate::format::number(*count)));
        self.losses.iter().chain(&self.bad).cloned().chain(counts).collect()
    }
}

/// Reads a large value to its end, with a reader of its own; `Some` = what is wrong with it.
fn look_ahead<A: Read>(
    ahead: &impl Fn(u64) -> io::Result<A>,
    at: u64,
    (type_byte, dialect): (u8, Dialect),
    see: &mut dyn FnMut(Element<'_>),
) -> Result<Option<String>, RdbError> {
    let looked = visit_from(ahead(at)?, at, type_byte, dialect, &mut |element| {
        see(element);
        Ok(())
    });
    match looked {
        Ok(()) => Ok(None),
        Err(error @ RdbError::Io(_)) => Err(error),
        Err(cause) => Ok(Some(cause.to_string())),
    }
}

/// Writing failed: the reader's error type carries it.
fn written(result: io::Result<()>) -> Result<(), RdbError> {
    result.map_err(RdbError::Io)
}
