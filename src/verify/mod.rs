//! Verification, the pure part: what is compared, what counts as a difference, and how it is said. It asks no server.
//!
//! ```text
//!  Look (source) ---+
//!                   +--> compare_looks / compare_payloads --> Vec<Found> --> Difference (status.rs)
//!  Look (destination)
//! ```
//!
//! The odd idea: times of expiry are compared as points in time, never as time left, because both sides are asked at
//! different moments. A key that is gone on one side and whose time is over there, by that side's own clock, is no
//! difference: it has expired, or will in a moment.

mod payload;

pub use payload::{Verdict, compare_payloads};

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::format;
pub use crate::status::{Difference, DifferenceCount, Verification, VerificationState};

/// Differences that are kept in the status; all of them are in the file.
pub const EXAMPLES: usize = 50;
/// Default of the TTL tolerance.
pub const TTL_TOLERANCE: Duration = Duration::from_millis(1_000);
/// Longest text of one side in a difference (columns).
const WORDS_WIDTH: usize = 200;

/// How much of a key is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The number of keys in each database.
    Count,
    /// Existence, type, time of expiry, length.
    Meta,
    /// Times of expiry, and of values DEBUG DIGEST-VALUE where both servers are the same. In it are neither the counters and
    /// consumer groups of streams nor the times of hash fields (of Redis only that there is one).
    Digest,
    /// Values, with the times of hash fields and the state of consumer groups.
    Full,
}

impl Mode {
    /// Every mode, the cheapest first.
    pub const ALL: [Mode; 4] = [Mode::Count, Mode::Meta, Mode::Digest, Mode::Full];

    /// The word of the command line and of the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Count => "count",
            Mode::Meta => "meta",
            Mode::Digest => "digest",
            Mode::Full => "full",
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Mode, String> {
        let found = Mode::ALL.into_iter().find(|mode| mode.word() == text);
        found.ok_or_else(|| format!("'{text}' is not one of count, meta, digest, full"))
    }
}

/// What to compare and how hard to look.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How much of a key.
    pub mode: Mode,
    /// Which part of the keys (0 to 1), chosen by a hash of the key, so that it is the same part every time.
    pub sample: f64,
    /// About so many keys at most: makes the part smaller where there are more; `None` = no limit.
    pub at_most: Option<u64>,
    /// How often the keys that are not equal are looked at, the first look included; at least 1.
    pub rounds: u32,
    /// Most keys per second; `None` = as fast as it goes.
    pub rate: Option<u64>,
    /// Times of expiry may differ by this much.
    pub ttl_tolerance: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            mode: Mode::Meta,
            sample: 1.0,
            at_most: None,
            rounds: 3,
            rate: None,
            ttl_tolerance: TTL_TOLERANCE,
        }
    }
}

/// What differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Only the source has the key.
    Missing,
    /// Only the destination has the key.
    Extra,
    /// Another type.
    Type,
    /// Another length.
    Length,
    /// Another value.
    Value,
    /// Another time of expiry.
    Ttl,
    /// Another time of expiry of a hash field.
    FieldTtl,
    /// Counters of a stream: last ID, entries added, highest deleted ID.
    Stream,
    /// A consumer group of a stream: itself, last delivered ID, consumers, pending entries.
    StreamGroup,
    /// Number of keys in a database (`count`).
    Count,
}

impl Kind {
    /// The word of the JSON lines.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Missing => "missing",
            Kind::Extra => "extra",
            Kind::Type => "type",
            Kind::Length => "length",
            Kind::Value => "value",
            Kind::Ttl => "ttl",
            Kind::FieldTtl => "field_ttl",
            Kind::Stream => "stream",
            Kind::StreamGroup => "stream_group",
            Kind::Count => "count",
        }
    }
}

/// One thing that differs in a key, both sides in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What.
    pub kind: Kind,
    /// Where inside the key ("field 'a'", "group 'g', consumer 'c'").
    pub part: Option<String>,
    /// The source.
    pub source: String,
    /// The destination.
    pub destination: String,
}

impl Found {
    /// Without a place inside the key.
    pub fn new(kind: Kind, source: impl Into<String>, destination: impl Into<String>) -> Found {
        Found { kind, part: None, source: source.into(), destination: destination.into() }
    }

    /// With the place inside the key.
    pub fn at(mut self, part: impl Into<String>) -> Found {
        self.part = Some(part.into());
        self
    }

    /// As it is reported.
    pub fn of_key(self, db: u32, key: &[u8]) -> Difference {
        Difference {
            db,
            key: key.escape_ascii().to_string(),
            kind: self.kind.word().to_owned(),
            part: self.part,
            source: self.source,
            destination: self.destination,
        }
    }
}

/// Type of a key as TYPE answers it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum KeyType {
    /// The key does not exist.
    #[default]
    None,
    /// String.
    String,
    /// List.
    List,
    /// Set.
    Set,
    /// Sorted set.
    Zset,
    /// Hash.
    Hash,
    /// Stream.
    Stream,
    /// Of a module, or newer than this program.
    Other(String),
}

impl KeyType {
    /// From the answer of TYPE.
    pub fn of(text: &str) -> KeyType {
        match text {
            "none" => KeyType::None,
            "string" => KeyType::String,
            "list" => KeyType::List,
            "set" => KeyType::Set,
            "zset" => KeyType::Zset,
            "hash" => KeyType::Hash,
            "stream" => KeyType::Stream,
            other => KeyType::Other(other.to_owned()),
        }
    }

    /// The word of TYPE.
    pub fn word(&self) -> &str {
        match self {
            KeyType::None => "none",
            KeyType::String => "string",
            KeyType::List => "list",
            KeyType::Set => "set",
            KeyType::Zset => "zset",
            KeyType::Hash => "hash",
            KeyType::Stream => "stream",
            KeyType::Other(word) => word,
        }
    }

    /// The command that tells the length; `None` for types of modules.
    pub fn length_command(&self) -> Option<&'static [u8]> {
        match self {
            KeyType::String => Some(b"STRLEN"),
            KeyType::List => Some(b"LLEN"),
            KeyType::Set => Some(b"SCARD"),
            KeyType::Zset => Some(b"ZCARD"),
            KeyType::Hash => Some(b"HLEN"),
            KeyType::Stream => Some(b"XLEN"),
            KeyType::None | KeyType::Other(_) => None,
        }
    }
}

/// What one side says about a key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Look {
    /// Its type.
    pub kind: KeyType,
    /// When it expires (Unix ms by the server's clock); `None` = never.
    pub expire_at: Option<i64>,
    /// So much later it may be in truth (ms): 0 where the server tells the time itself and not the time that is left.
    pub uncertain: i64,
    /// Bytes of a string, elements of the others; `None` = not asked.
    pub length: Option<u64>,
    /// DEBUG DIGEST-VALUE, where asked.
    pub digest: Option<Vec<u8>>,
}

impl Look {
    /// True if there is such a key.
    pub fn exists(&self) -> bool {
        self.kind != KeyType::None
    }

    fn words(&self) -> String {
        let expires = self.expire_at.map(|at| format!(", expires {}", moment(at))).unwrap_or_default();
        let length = match (&self.kind, self.length) {
            (KeyType::String, Some(length)) => format!(" of {} bytes", format::number(length)),
            (_, Some(length)) => format!(" of {} elements", format::number(length)),
            (_, None) => String::new(),
        };
        format!("{}{length}{expires}", format::escape(self.kind.word(), 40))
    }
}

/// The clocks at the moment of a look, and what they may differ by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// The source's (Unix ms).
    pub source: i64,
    /// The destination's (Unix ms).
    pub destination: i64,
    /// Times may differ by this much (ms).
    pub tolerance: i64,
}

impl Clocks {
    /// True when a time of expiry is over, or nearly so, on a side whose clock shows `now`.
    fn is_over(&self, expire_at: Option<i64>, now: i64) -> bool {
        expire_at.is_some_and(|at| at <= now.saturating_add(self.tolerance))
    }

    /// True when times of expiry count as equal.
    pub(crate) fn same(&self, source: Option<i64>, destination: Option<i64>) -> bool {
        match (source, destination) {
            (None, None) => true,
            (Some(source), Some(destination)) => {
                source.abs_diff(destination) <= self.tolerance.unsigned_abs()
            }
            _ => false,
        }
    }

    /// True when what is only on one side may be gone on the other because its time is over there.
    pub(crate) fn expired_on_destination(&self, expire_at: Option<i64>) -> bool {
        self.is_over(expire_at, self.destination) || self.is_over(expire_at, self.source)
    }
}

/// Compares what both sides say: existence, type, time of expiry, length, and digest, as far as they were asked.
pub fn compare_looks(source: &Look, destination: &Look, clocks: Clocks) -> Vec<Found> {
    match (source.exists(), destination.exists()) {
        (false, false) => return Vec::new(),
        (true, false) if clocks.expired_on_destination(source.expire_at) => return Vec::new(),
        (true, false) => return vec![Found::new(Kind::Missing, source.words(), "no such key")],
        (false, true) if clocks.expired_on_destination(destination.expire_at) => return Vec::new(),
        (false, true) => return vec![Found::new(Kind::Extra, "no such key", destination.words())],
        (true, true) => {}
    }
    if source.kind != destination.kind {
        return vec![Found::new(Kind::Type, source.words(), destination.words())];
    }
    let mut found = Vec::new();
    let uncertain = source.uncertain.saturating_add(destination.uncertain);
    let clocks = Clocks { tolerance: clocks.tolerance.saturating_add(uncertain), ..clocks };
    if !clocks.same(source.expire_at, destination.expire_at) {
        found.push(Found::new(Kind::Ttl, expiry(source.expire_at), expiry(destination.expire_at)));
    }
    if let (Some(here), Some(there)) = (source.length, destination.length)
        && here != there
    {
        found.push(Found::new(Kind::Length, here.to_string(), there.to_string()));
    }
    if let (Some(here), Some(there)) = (&source.digest, &destination.digest)
        && here != there
    {
        found.push(Found::new(Kind::Value, digest_words(here), digest_words(there)));
    }
    found
}

/// A time of expiry in words.
pub(crate) fn expiry(at: Option<i64>) -> String {
    at.map_or("never expires".to_owned(), |at| format!("expires {}", moment(at)))
}

/// A point in time, for people, with its milliseconds.
fn moment(unix_ms: i64) -> String {
    let ms = u64::try_from(unix_ms).unwrap_or_default();
    format!("{}.{:03} UTC", format::date_time_utc(ms), ms % 1_000)
}

fn digest_words(digest: &[u8]) -> String {
    format!("digest {}", format::escape(digest, 40))
}

/// A value, cut, in quotes.
pub fn quoted(bytes: &[u8]) -> String {
    format!("'{}'", format::escape(bytes, WORDS_WIDTH))
}

/// Keys of this program on a destination: checkpoints, values being built, probes. They are no part of the data.
pub fn is_own_key(key: &[u8]) -> bool {
    key.starts_with(b"shakedeck:")
}

/// True when the key belongs to the part of the keys that is looked at.
pub fn in_sample(key: &[u8], sample: f64) -> bool {
    if sample >= 1.0 {
        return true;
    }
    // FNV-1a with a final mix: stable across versions of this program and of Rust, so that a resumed run agrees.
    let mut hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    (hash as f64) < sample * u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCKS: Clocks = Clocks { source: 1_000_000, destination: 1_000_200, tolerance: 1_000 };

    fn look(kind: KeyType, expire_at: Option<i64>, length: u64) -> Look {
        Look { kind, expire_at, length: Some(length), ..Look::default() }
    }

    fn kinds(source: &Look, destination: &Look) -> Vec<Kind> {
        compare_looks(source, destination, CLOCKS).into_iter().map(|found| found.kind).collect()
    }

    #[test]
    fn each_difference_has_its_kind() {
        let none = Look::default();
        let key = look(KeyType::List, Some(5_000_000), 3);
        assert_eq!(kinds(&key, &key), []);
        assert_eq!(kinds(&none, &none), []);
        assert_eq!(kinds(&key, &none), [Kind::Missing]);
        assert_eq!(kinds(&none, &key), [Kind::Extra]);
        assert_eq!(kinds(&key, &look(KeyType::Set, Some(5_000_000), 3)), [Kind::Type]);
        assert_eq!(kinds(&key, &look(KeyType::List, Some(5_000_000), 4)), [Kind::Length]);
        assert_eq!(kinds(&key, &look(KeyType::List, Some(5_001_001), 4)), [Kind::Ttl, Kind::Length]);
        assert_eq!(kinds(&key, &look(KeyType::List, Some(5_001_000), 3)), [], "within the tolerance");
        assert_eq!(kinds(&key, &look(KeyType::List, None, 3)), [Kind::Ttl]);
        let digest = |text: &[u8]| Look { digest: Some(text.to_vec()), ..key.clone() };
        assert_eq!(kinds(&digest(b"a"), &digest(b"b")), [Kind::Value]);
    }

    #[test]
    fn times_that_are_not_known_exactly_differ_only_by_more_than_that() {
        let exact = look(KeyType::String, Some(5_000_000), 3);
        let computed = |expire_at| Look { uncertain: 20, ..look(KeyType::String, Some(expire_at), 3) };
        assert_eq!(kinds(&exact, &computed(4_998_980)), []);
        assert_eq!(kinds(&exact, &computed(4_998_979)), [Kind::Ttl]);
        assert_eq!(kinds(&computed(4_998_979), &exact), [Kind::Ttl]);
    }

    #[test]
    fn what_has_expired_on_the_other_side_is_no_difference() {
        let none = Look::default();
        for (expire_at, expected) in
            [(999_000, 0), (1_000_900, 0), (1_001_200, 0), (1_001_201, 1), (9_000_000, 1)]
        {
            let key = look(KeyType::String, Some(expire_at), 3);
            assert_eq!(kinds(&key, &none).len(), expected, "missing, {expire_at}");
            assert_eq!(kinds(&none, &key).len(), expected, "extra, {expire_at}");
        }
    }

    #[test]
    fn a_difference_names_both_sides() {
        let found =
            compare_looks(&look(KeyType::String, Some(1_700_000_000_123), 1_234), &Look::default(), CLOCKS);
        let difference = found.into_iter().map(|found| found.of_key(3, b"a\x00b")).next();
        let expected = Difference {
            db: 3,
            key: "a\\x00b".into(),
            kind: "missing".into(),
            part: None,
            source: "string of 1,234 bytes, expires 2023-11-14 22:13:20.123 UTC".into(),
            destination: "no such key".into(),
        };
        assert_eq!(difference, Some(expected));
    }

    #[test]
    fn a_sample_is_about_as_large_as_asked_and_always_the_same() {
        let count =
            |sample| (0..100_000).filter(|n| in_sample(format!("key:{n}").as_bytes(), sample)).count();
        assert_eq!((count(0.0), count(1.0)), (0, 100_000));
        assert!((9_000..11_000).contains(&count(0.1)), "{}", count(0.1));
        assert_eq!(count(0.1), count(0.1));
    }

    #[test]
    fn modes_are_read_by_their_words() {
        for mode in Mode::ALL {
            assert_eq!(mode.word().parse(), Ok(mode));
        }
        assert!("all".parse::<Mode>().is_err());
    }
}
