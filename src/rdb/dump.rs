//! DUMP payloads: what RESTORE takes, and which server takes which.
//!
//! A payload is type byte, value, RDB version (u16 little-endian) and CRC64 of all that. A server accepts it if the version
//! is not above its own and it knows the type byte. The odd idea: a payload may be *re-stamped* with the destination's own
//! version, because the version only gates; the type byte alone decides how the value is read. The exception are module
//! values: Redis 4.0 to 6.0 exit when they get one that they do not know, so those keep the version they came with.

use super::reader::{Slice, Source, crc64};
use super::{Dialect, Fault, RdbError, opcodes, types, walk};

/// The module that wrote a value: nine characters of name and ten bits of encoding version in one number (`module.c`,
/// `moduleTypeEncodeId`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModuleId(u64);

impl ModuleId {
    /// From the number in the file.
    pub fn new(id: u64) -> Self {
        Self(id)
    }

    /// The type name of nine characters (`vectorset`, `MBbloom--`).
    pub fn name(self) -> String {
        const CHARSET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..9).rev().map(|i| char::from(CHARSET[(self.0 >> (10 + 6 * i)) as usize & 63])).collect()
    }

    /// Version of the module's own encoding. The destination's module must read it.
    pub fn encoding_version(self) -> u16 {
        (self.0 & 1023) as u16
    }

    /// The module of a value of type 7.
    pub fn of_value(raw: &[u8]) -> Option<Self> {
        Slice::new(raw).length().ok().map(Self)
    }
}

/// What the destination is, as far as RDB is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerKind {
    /// Redis.
    Redis,
    /// Valkey (its own version numbers, not the `redis_version` that it also reports).
    Valkey,
    /// KeyDB: Redis 6.2 in this respect.
    KeyDb,
    /// Redict: RDB version 12 with the types of Redis 7.2.
    Redict,
    /// Dragonfly and everything else: only what Redis 5.0 knew is sent as a payload.
    Other,
}

/// A destination server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// Which server.
    pub kind: ServerKind,
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

impl Target {
    /// A Redis of this version.
    pub const fn redis(major: u16, minor: u16) -> Self {
        Self { kind: ServerKind::Redis, major, minor }
    }

    /// A Valkey of this version.
    pub const fn valkey(major: u16, minor: u16) -> Self {
        Self { kind: ServerKind::Valkey, major, minor }
    }

    /// Whether this server has the commands of Redis `major.minor`. Valkey 7.2 to 9 stand where Redis 7.2 stood.
    pub fn has_redis(self, major: u16, minor: u16) -> bool {
        let (own_major, own_minor) = match self.kind {
            ServerKind::Redis => (self.major, self.minor),
            ServerKind::Valkey | ServerKind::Redict => (7, 2),
            ServerKind::KeyDb => (6, 2),
            ServerKind::Other => (5, 0),
        };
        (own_major, own_minor) >= (major, minor)
    }

    /// The command that removes a key without holding others up, if there is one.
    pub fn unlink(self) -> &'static [u8] {
        if self.has_redis(4, 0) { b"UNLINK" } else { b"DEL" }
    }

    /// Whether hash fields can expire.
    pub fn has_field_ttl(self) -> bool {
        match self.kind {
            ServerKind::Valkey => self.major >= 9,
            _ => self.has_redis(7, 4),
        }
    }
}

/// The RDB version that a server writes, and up to which it accepts payloads.
pub fn rdb_version_of(target: Target) -> u16 {
    match (target.kind, target.major, target.minor) {
        (ServerKind::Valkey, 9.., _) => 80,
        (ServerKind::Valkey, ..) => 11,
        (ServerKind::Redict, ..) => 12,
        (ServerKind::KeyDb | ServerKind::Other, ..) => 9,
        (ServerKind::Redis, 9.., _) | (ServerKind::Redis, 8, 7..) => 14,
        (ServerKind::Redis, 8, 5..) => 13,
        (ServerKind::Redis, 8, _) | (ServerKind::Redis, 7, 3..) => 12,
        (ServerKind::Redis, 7, 1..) => 11,
        (ServerKind::Redis, 7, 0) => 10,
        (ServerKind::Redis, 5.., _) => 9,
        (ServerKind::Redis, 4, _) => 8,
        (ServerKind::Redis, 3, 1..) => 7,
        (ServerKind::Redis, ..) => 6,
    }
}

/// Whether a server lets a payload with this version in its footer through the gate. Valkey treats 12 to 79 as foreign.
pub fn accepts_version(target: Target, rdb_version: u16) -> bool {
    rdb_version <= rdb_version_of(target)
        && !(target.kind == ServerKind::Valkey && (12..80).contains(&rdb_version))
}

/// Whether a server reads this type once the footer carries its own version (measured on 16 servers). Module values never
/// count as accepted here: see [`route`].
pub fn destination_accepts(type_byte: u8, dialect: Dialect, target: Target) -> bool {
    match type_byte {
        types::STRING..=types::HASH | types::LIST_ZIPLIST..=types::HASH_ZIPLIST => true,
        types::LIST_QUICKLIST => target.has_redis(3, 2),
        types::ZSET_2 => target.has_redis(4, 0),
        types::STREAM_LISTPACKS => target.has_redis(5, 0),
        types::HASH_LISTPACK..=types::STREAM_LISTPACKS_2 => target.has_redis(7, 0),
        types::SET_LISTPACK | types::STREAM_LISTPACKS_3 => target.has_redis(7, 2),
        types::HASH_22 => {
            dialect == Dialect::Valkey && target.kind == ServerKind::Valkey && target.major >= 9
        }
        types::HASH_METADATA | types::HASH_LISTPACK_EX => target.has_redis(7, 4),
        types::STREAM_LISTPACKS_4 => target.has_redis(8, 6),
        types::STREAM_LISTPACKS_5 | types::ARRAY => target.has_redis(8, 8),
        _ => false,
    }
}

/// How a value gets to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// RESTORE, with this version in the footer.
    Restore {
        /// The version to stamp.
        version: u16,
    },
    /// Commands that rebuild it.
    Commands,
    /// Neither: quarantine it, with this reason.
    Impossible(&'static str),
}

/// Chooses how a value of this type, from a file (or payload) of this dialect and version, gets to `target`. For module values
/// the destination must also have the module: an error of RESTORE will say.
pub fn route(type_byte: u8, dialect: Dialect, source_version: u16, target: Target) -> Route {
    match type_byte {
        // Only old stream and zipmap readers differ; the rest of the old types were never dropped.
        types::HASH_ZIPMAP => Route::Commands,
        types::MODULE_2 if accepts_version(target, source_version) && target.has_redis(4, 0) => {
            Route::Restore { version: source_version }
        }
        types::MODULE_2 => Route::Impossible("module value, and the destination is older than the source"),
        _ if destination_accepts(type_byte, dialect, target) => {
            Route::Restore { version: rdb_version_of(target) }
        }
        _ if super::commands::is_stream(type_byte) && !target.has_redis(5, 0) => {
            Route::Impossible("stream, and the destination knows no streams (Redis 5.0)")
        }
        types::ARRAY => Route::Impossible("array value, and the destination knows no arrays (Redis 8.8)"),
        types::GCRA => Route::Impossible("rate limiter value, which no released server reads"),
        _ => Route::Commands,
    }
}

/// Appends the DUMP payload of a value to `out`. `raw` is [`super::Value::Raw`].
pub fn append_payload(out: &mut Vec<u8>, type_byte: u8, raw: &[u8], rdb_version: u16) {
    append_payload_with_meta(out, &[], type_byte, raw, rdb_version);
}

/// Like [`append_payload`] with the key metadata of Redis 8.6 ([`super::Entry::meta`]) in front. Only Redis 8.6 and newer take it.
pub fn append_payload_with_meta(out: &mut Vec<u8>, meta: &[u8], type_byte: u8, raw: &[u8], rdb_version: u16) {
    let start = out.len();
    out.reserve(payload_len(meta.len() + raw.len()));
    out.extend_from_slice(meta);
    out.push(type_byte);
    out.extend_from_slice(raw);
    out.extend_from_slice(&rdb_version.to_le_bytes());
    let crc = crc64(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Length of the payload of a value of `raw_len` bytes: for announcing the bulk before it is written.
pub const fn payload_len(raw_len: usize) -> usize {
    raw_len + 11
}

/// A DUMP payload taken apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Payload<'a> {
    /// Key metadata with its opcode; empty if there is none.
    pub meta: &'a [u8],
    /// Value type.
    pub type_byte: u8,
    /// The value.
    pub raw: &'a [u8],
    /// RDB version of the server that made it.
    pub rdb_version: u16,
    /// How type 22 is to be read.
    pub dialect: Dialect,
}

/// Takes a DUMP payload apart and checks its CRC64 (0 means unchecked: Redis 8.4 and newer send that during slot migration).
pub fn parse_payload(payload: &[u8]) -> Result<Payload<'_>, RdbError> {
    let corrupt = |reason| RdbError::Corrupt {
        what: "a DUMP payload".to_owned(),
        offset: payload.len() as u64,
        reason,
    };
    let (signed, stored) = payload.split_last_chunk::<8>().ok_or_else(|| corrupt("too short"))?;
    let (content, version) = signed.split_last_chunk::<2>().ok_or_else(|| corrupt("too short"))?;
    let stored = u64::from_le_bytes(*stored);
    if stored != 0 && stored != crc64(signed) {
        return Err(corrupt("wrong checksum"));
    }
    let rdb_version = u16::from_le_bytes(*version);
    let dialect = Dialect::of_version(rdb_version);
    let meta_len = match content.first() {
        Some(&opcodes::KEY_META_OR_SLOT_IMPORT) if dialect == Dialect::Redis => meta_length(content)
            .map_err(|fault| fault.at(0, || "the key metadata of a DUMP payload".to_owned()))?,
        _ => 0,
    };
    let (meta, value) = content.split_at_checked(meta_len).ok_or_else(|| corrupt("too short"))?;
    let (&type_byte, raw) = value.split_first().ok_or_else(|| corrupt("too short"))?;
    Ok(Payload { meta, type_byte, raw, rdb_version, dialect })
}

fn meta_length(content: &[u8]) -> Result<usize, Fault> {
    let mut src = Slice::new(content);
    src.skip(1)?;
    for _ in 0..src.length()? {
        src.skip(4)?;
        walk::skip_module_fields(&mut src)?;
    }
    Ok(src.position())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed unwrap is a failed test.
mod tests {
    use super::*;

    #[test]
    fn payload_of_a_real_server() {
        // redis-server 7.0.15: SET k v; DUMP k.
        let real = b"\x00\x01v\n\x00\x91\x08\xce\xb2\x198\x8a\xce";
        let mut out = b"before".to_vec();
        append_payload(&mut out, types::STRING, b"\x01v", 10);
        assert_eq!(out[6..], real[..]);
        assert_eq!(out.len() - 6, payload_len(2));
        let parsed = parse_payload(&out[6..]).unwrap();
        assert_eq!((parsed.type_byte, parsed.raw, parsed.rdb_version), (0, &b"\x01v"[..], 10));
    }

    #[test]
    fn damage_is_found_and_a_zero_checksum_is_not_checked() {
        let mut payload = Vec::new();
        append_payload(&mut payload, types::STRING, b"\x01v", 10);
        let mut damaged = payload.clone();
        damaged[2] ^= 1;
        assert!(parse_payload(&damaged).unwrap_err().to_string().contains("wrong checksum"));
        let n = damaged.len();
        damaged[n - 8..].fill(0);
        assert_eq!(parse_payload(&damaged).unwrap().raw, b"\x01w");
        for short in 0..11 {
            assert!(parse_payload(&payload[..short]).is_err());
        }
    }

    #[test]
    fn module_names() {
        // "vectorset" with encoding version 0, as Redis 8 writes it, is built here by the inverse rule.
        let charset = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let id = b"vectorset"
            .iter()
            .fold(0u64, |id, c| id << 6 | charset.iter().position(|x| x == c).unwrap() as u64);
        let id = ModuleId::new(id << 10 | 5);
        assert_eq!((id.name().as_str(), id.encoding_version()), ("vectorset", 5));
    }
}
