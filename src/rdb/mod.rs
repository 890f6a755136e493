//! RDB: the snapshot format in which a source sends its data set, as implemented by Redis 2.x to 8.x and Valkey 7.2 to 9.x.
//!
//! The odd idea: a value is normally *sliced*, not decoded. [`Decoder`] walks the length prefixes to find where a value ends
//! and hands out the raw span, which together with type byte, version and CRC64 is the DUMP payload that RESTORE takes
//! ([`dump`]). Only when the destination cannot take that payload is the value decoded, by one visitor ([`elements`]) that
//! feeds both the owned model ([`model`]) and the commands that rebuild the value ([`commands`]). A value too big to hold
//! goes through the same visitor straight from the reader, in bounded memory.
//!
//! Everything here is pure: bytes in, values out. No length, count or size that a file claims is ever trusted: buffers grow
//! only as bytes really arrive, and nothing recurses.

mod bytelist;
pub mod commands;
mod decoder;
pub mod dump;
pub mod elements;
pub mod export;
mod item;
mod lzf;
pub mod model;
mod packed;
mod reader;
pub mod stream;
mod walk;

pub use bytelist::ByteList;
pub use decoder::{Decoder, Limits, ResumePoint, visit_from};
pub use elements::Element;
pub use item::{Checksum, Entry, Item, Value};
pub use model::{DecodedValue, decode_value, visit_value};
pub use reader::{Crc64, crc64};

use std::io;

/// Newest RDB version of the Redis line whose types are known here (8.8).
pub const NEWEST_REDIS_VERSION: u16 = 14;
/// Newest RDB version of the Valkey line whose types are known here (9.1).
pub const NEWEST_VALKEY_VERSION: u16 = 80;

/// Which family wrote a file. The same number means different things to both (types 22 and 23, opcode 243), so every
/// decoder needs to know. A file says it by its magic; a DUMP payload by its version (>= 80 is Valkey's).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `REDIS` magic: all Redis versions, Valkey up to 8.1, KeyDB, Redict, Dragonfly.
    Redis,
    /// `VALKEY` magic: Valkey 9 and newer.
    Valkey,
}

impl Dialect {
    /// The dialect of a DUMP payload that carries `rdb_version` in its footer.
    pub fn of_version(rdb_version: u16) -> Self {
        if rdb_version >= 80 { Self::Valkey } else { Self::Redis }
    }
}

/// Why decoding stopped. Every variant names the place as a byte offset: from the start of the file, or from the start of
/// the value where a single value was decoded.
#[derive(Debug, thiserror::Error)]
pub enum RdbError {
    /// The reader failed. Passed through unchanged and never retried.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes end before the file does.
    #[error("the RDB ends in the middle of {what} at byte {offset}: the transfer or the file was cut off")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where the bytes ended.
        offset: u64,
    },
    /// The bytes contradict the format.
    #[error("bad RDB: {reason} in {what} at byte {offset}")]
    Corrupt {
        /// What was being read: opcode or type, with its number.
        what: String,
        /// How far reading had come.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The bytes may be well-formed, but nobody here knows how long they are, so nothing after them can be read either.
    #[error("cannot read {what} at byte {offset}: {reason}")]
    Unsupported {
        /// The opcode or type, with its number.
        what: String,
        /// Where it stands.
        offset: u64,
        /// Why it cannot be read and what to do.
        reason: &'static str,
    },
    /// The checksum at the end does not match the bytes.
    #[error(
        "wrong RDB checksum: the file says {stored:016x}, its {length} bytes give {computed:016x}; the data was damaged on the way or on disk"
    )]
    WrongChecksum {
        /// What the last eight bytes say.
        stored: u64,
        /// What the bytes give.
        computed: u64,
        /// Bytes covered by the checksum.
        length: u64,
    },
}

/// What went wrong, before the place is known: internal to the readers, turned into an [`RdbError`] at the boundary.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The bytes end here.
    End,
    /// The value is longer than the span that may be held.
    TooLarge,
    /// The bytes contradict the format.
    Bad(&'static str),
    /// Length unknown, so nothing can follow.
    Unsupported(&'static str),
    /// The reader, or the consumer of elements, gave up: passed through.
    Stop(Box<RdbError>),
}

impl Fault {
    /// Adds the place. `what` is only called for faults that name it.
    pub(crate) fn at(self, offset: u64, what: impl FnOnce() -> String) -> RdbError {
        match self {
            Self::End => RdbError::Truncated { what: what(), offset },
            Self::TooLarge => RdbError::Corrupt { what: what(), offset, reason: "value too large" },
            Self::Bad(reason) => RdbError::Corrupt { what: what(), offset, reason },
            Self::Unsupported(reason) => RdbError::Unsupported { what: what(), offset, reason },
            Self::Stop(error) => *error,
        }
    }
}

/// Value type bytes (`rdb.h`, `RDB_TYPE_*`).
#[allow(missing_docs)] // The names are those of rdb.h; the layouts are described where they are read.
pub mod types {
    pub const STRING: u8 = 0;
    pub const LIST: u8 = 1;
    pub const SET: u8 = 2;
    pub const ZSET: u8 = 3;
    pub const HASH: u8 = 4;
    pub const ZSET_2: u8 = 5;
    pub const MODULE_PRE_GA: u8 = 6;
    pub const MODULE_2: u8 = 7;
    pub const HASH_ZIPMAP: u8 = 9;
    pub const LIST_ZIPLIST: u8 = 10;
    pub const SET_INTSET: u8 = 11;
    pub const ZSET_ZIPLIST: u8 = 12;
    pub const HASH_ZIPLIST: u8 = 13;
    pub const LIST_QUICKLIST: u8 = 14;
    pub const STREAM_LISTPACKS: u8 = 15;
    pub const HASH_LISTPACK: u8 = 16;
    pub const ZSET_LISTPACK: u8 = 17;
    pub const LIST_QUICKLIST_2: u8 = 18;
    pub const STREAM_LISTPACKS_2: u8 = 19;
    pub const SET_LISTPACK: u8 = 20;
    pub const STREAM_LISTPACKS_3: u8 = 21;
    /// Redis 7.4 release candidates in the Redis dialect; Valkey 9's `HASH_2` (another layout) in the Valkey dialect.
    pub const HASH_22: u8 = 22;
    /// Redis 7.4 release candidates only.
    pub const HASH_LISTPACK_EX_PRE_GA: u8 = 23;
    pub const HASH_METADATA: u8 = 24;
    pub const HASH_LISTPACK_EX: u8 = 25;
    pub const STREAM_LISTPACKS_4: u8 = 26;
    pub const STREAM_LISTPACKS_5: u8 = 27;
    pub const ARRAY: u8 = 28;
    pub const GCRA: u8 = 29;
}

/// Opcodes: bytes in the place of a value type (`rdb.h`, `RDB_OPCODE_*`).
#[allow(missing_docs)] // The names are those of rdb.h; the layouts are described where they are read.
pub(crate) mod opcodes {
    pub const RAM_LRU: u8 = 107;
    pub const SLOT_NUM: u8 = 121;
    pub const VALKEY_UPDATE: u8 = 242;
    /// Redis 8.6: KEY_META. Valkey 9: SLOT_IMPORT.
    pub const KEY_META_OR_SLOT_IMPORT: u8 = 243;
    pub const SLOT_INFO: u8 = 244;
    pub const FUNCTION2: u8 = 245;
    pub const FUNCTION_PRE_GA: u8 = 246;
    pub const MODULE_AUX: u8 = 247;
    pub const IDLE: u8 = 248;
    pub const FREQ: u8 = 249;
    pub const AUX: u8 = 250;
    pub const RESIZEDB: u8 = 251;
    pub const EXPIRETIME_MS: u8 = 252;
    pub const EXPIRETIME: u8 = 253;
    pub const SELECTDB: u8 = 254;
    pub const EOF: u8 = 255;
}

/// The Redis name of a value type as `TYPE` would answer it, and of its encoding in the file.
pub fn type_name(type_byte: u8, dialect: Dialect) -> (&'static str, &'static str) {
    match type_byte {
        types::STRING => ("string", "string"),
        types::LIST => ("list", "linkedlist"),
        types::SET => ("set", "hashtable"),
        types::ZSET => ("zset", "skiplist (text scores)"),
        types::HASH => ("hash", "hashtable"),
        types::ZSET_2 => ("zset", "skiplist"),
        types::MODULE_PRE_GA => ("module", "module 1"),
        types::MODULE_2 => ("module", "module 2"),
        types::HASH_ZIPMAP => ("hash", "zipmap"),
        types::LIST_ZIPLIST => ("list", "ziplist"),
        types::SET_INTSET => ("set", "intset"),
        types::ZSET_ZIPLIST => ("zset", "ziplist"),
        types::HASH_ZIPLIST => ("hash", "ziplist"),
        types::LIST_QUICKLIST => ("list", "quicklist"),
        types::STREAM_LISTPACKS => ("stream", "stream 1"),
        types::HASH_LISTPACK => ("hash", "listpack"),
        types::ZSET_LISTPACK => ("zset", "listpack"),
        types::LIST_QUICKLIST_2 => ("list", "quicklist 2"),
        types::STREAM_LISTPACKS_2 => ("stream", "stream 2"),
        types::SET_LISTPACK => ("set", "listpack"),
        types::STREAM_LISTPACKS_3 => ("stream", "stream 3"),
        types::HASH_22 if dialect == Dialect::Valkey => ("hash", "hashtable with field TTL"),
        types::HASH_22 => ("hash", "hashtable with field TTL (7.4 release candidate)"),
        types::HASH_LISTPACK_EX_PRE_GA if dialect == Dialect::Redis => {
            ("hash", "listpack with field TTL (7.4 release candidate)")
        }
        types::HASH_METADATA => ("hash", "hashtable with field TTL"),
        types::HASH_LISTPACK_EX => ("hash", "listpack with field TTL"),
        types::STREAM_LISTPACKS_4 => ("stream", "stream 4"),
        types::STREAM_LISTPACKS_5 => ("stream", "stream 5"),
        types::ARRAY => ("array", "array"),
        types::GCRA => ("gcra", "gcra"),
        _ => ("unknown", "unknown"),
    }
}

/// What an error message calls a value of this type.
pub fn describe_type(type_byte: u8, dialect: Dialect) -> String {
    let (kind, encoding) = type_name(type_byte, dialect);
    if kind == "unknown" {
        format!("a value of unknown type {type_byte}")
    } else if kind == encoding {
        format!("a {kind} (type {type_byte})")
    } else {
        format!("a {kind} ({encoding}, type {type_byte})")
    }
}
