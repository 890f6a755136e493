//! What the decoder finds: items that borrow from its buffer, valid until the next call.

use std::borrow::Cow;

use super::dump::ModuleId;
use super::reader::{Slice, Source, StringHead};
use super::{Dialect, Fault, RdbError, describe_type, lzf, types};

/// One thing found in the file, in file order.
#[derive(Debug, Clone, PartialEq)]
pub enum Item<'a> {
    /// The first nine bytes.
    Header {
        /// From the magic.
        dialect: Dialect,
        /// RDB version.
        version: u16,
        /// Newer than anything known here: worth a warning. Decoding goes on for as long as the types are known.
        newer_than_known: bool,
    },
    /// Information about the file or the server (`redis-ver`, `repl-stream-db`, `lua`, `slot-info` …). May stand anywhere,
    /// also between keys and between a key's attributes and the key.
    Aux {
        /// Name.
        key: &'a [u8],
        /// Value; numbers as decimal text.
        value: &'a [u8],
    },
    /// The following keys belong to this database.
    SelectDb(u32),
    /// A hint for the size of the database that follows. Can be absurdly wrong.
    ResizeDb {
        /// Keys.
        keys: u64,
        /// Keys with a time to live.
        expires: u64,
    },
    /// A hint for a cluster slot (Redis 7.4 and newer; Valkey writes an AUX instead).
    SlotInfo {
        /// Slot number.
        slot: u64,
        /// Keys in the slot.
        keys: u64,
        /// Keys with a time to live.
        expires: u64,
    },
    /// A slot import was running on the source (Valkey 9 and newer); its keys may be incomplete.
    SlotImport {
        /// Job name.
        job: &'a [u8],
        /// Number of slot ranges.
        ranges: u64,
    },
    /// A function library: its source, which FUNCTION LOAD takes. The name stands in its first line.
    Function(&'a [u8]),
    /// Data of a module outside of keys. It cannot be restored by a command, so it is reported.
    ModuleAux {
        /// The module.
        module: ModuleId,
        /// Bytes passed over.
        bytes: u64,
    },
    /// A key.
    Entry(Entry<'a>),
    /// The end of the file; `None` comes next.
    End {
        /// What is known about the integrity of the file.
        checksum: Checksum,
    },
}

/// What the end of the file said about the bytes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// CRC64 present and right.
    Verified(u64),
    /// Zero: the source runs with `rdbchecksum no`.
    Disabled,
    /// RDB versions before 5 have none.
    Absent,
}

/// A key with its attributes and value.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a> {
    /// Database.
    pub db: u32,
    /// Key name; any bytes, possibly none.
    pub key: &'a [u8],
    /// Value type ([`types`]).
    pub type_byte: u8,
    /// How type 22 is to be read.
    pub dialect: Dialect,
    /// Absolute expiry (Unix ms); may lie in the past, and is passed on all the same: the source will send the DEL.
    pub expire_at_ms: Option<i64>,
    /// Seconds since the last access (only with an LRU policy on the source).
    pub idle_seconds: Option<u64>,
    /// LFU counter (only with an LFU policy on the source).
    pub freq: Option<u8>,
    /// Key metadata of Redis 8.6 and newer, with its opcode: goes in front of the type byte in a DUMP payload.
    pub meta: Option<&'a [u8]>,
    /// The value.
    pub value: Value<'a>,
}

/// A value as found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// The bytes after the key: with type byte and footer they are the DUMP payload.
    Raw(&'a [u8]),
    /// Larger than [`super::Limits::max_value_bytes`]: call [`super::Decoder::read_large`] before [`super::Decoder::next`], which otherwise passes
    /// over it.
    Large,
    /// A collection without elements, which no server keeps: count it and go on.
    Empty,
    /// Undecodable, but its end is known: quarantine it and go on.
    Bad {
        /// The bytes, unless they were too many to hold.
        raw: Option<&'a [u8]>,
        /// What is wrong.
        reason: &'static str,
    },
}

impl<'a> Entry<'a> {
    /// A string value, decoded, for sending it with SET or MSET; borrowed unless it was compressed or a number. `None` for any
    /// other type, for large values, and for compressed ones that expand beyond 1 MiB.
    pub fn plain_string(&self) -> Result<Option<Cow<'a, [u8]>>, RdbError> {
        const MAX_EXPANDED: u64 = 1 << 20;
        let (types::STRING, Value::Raw(raw)) = (self.type_byte, self.value) else { return Ok(None) };
        let mut src = Slice::new(raw);
        let decode = |src: &mut Slice<'a>| {
            Ok(match src.string_head()? {
                StringHead::Plain(_) => Some(src.take_slice(src.remaining())?.into()),
                StringHead::Int(number) => Some(number.to_string().into_bytes().into()),
                StringHead::Lzf { plain, .. } if plain > MAX_EXPANDED => None,
                StringHead::Lzf { plain, .. } => {
                    let mut text = Vec::new();
                    lzf::decompress(src.take_slice(src.remaining())?, plain, &mut text)?;
                    Some(text.into())
                }
            })
        };
        decode(&mut src).map_err(|fault: Fault| {
            fault.at(src.position() as u64, || describe_type(self.type_byte, self.dialect))
        })
    }
}
