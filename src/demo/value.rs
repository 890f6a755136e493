//! What a key can hold.
//!
//! Ordered maps throughout: the same commands give the same RDB bytes in every run, and two values compare field by
//! field. Nothing here knows about connections, time or replication.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A value of one of the core types. A HyperLogLog or a bitmap is a string, as in Redis.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// String.
    String(Vec<u8>),
    /// List, head first.
    List(VecDeque<Vec<u8>>),
    /// Set.
    Set(BTreeSet<Vec<u8>>),
    /// Hash.
    Hash(BTreeMap<Vec<u8>, Vec<u8>>),
    /// Sorted set: member to score (never NaN).
    SortedSet(BTreeMap<Vec<u8>, f64>),
    /// Stream.
    Stream(Stream),
}

impl Value {
    /// The name that TYPE answers.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::String(_) => "string",
            Value::List(_) => "list",
            Value::Set(_) => "set",
            Value::Hash(_) => "hash",
            Value::SortedSet(_) => "zset",
            Value::Stream(_) => "stream",
        }
    }

    /// True for a collection without elements: Redis removes such a key. A string or a stream may be empty.
    pub fn is_empty_collection(&self) -> bool {
        match self {
            Value::String(_) | Value::Stream(_) => false,
            Value::List(items) => items.is_empty(),
            Value::Set(members) => members.is_empty(),
            Value::Hash(fields) => fields.is_empty(),
            Value::SortedSet(members) => members.is_empty(),
        }
    }

    /// The same data, as far as a client can rely on it: when a consumer was last seen is a matter of the server's own
    /// clock and not carried by the replication stream, so it does not count.
    pub fn same_data(&self, other: &Value) -> bool {
        match (self, other) {
            (Value::Stream(mine), Value::Stream(theirs)) => mine.same_data(theirs),
            _ => self == other,
        }
    }
}

/// Members with scores in the order of ZRANGE: by score, then by member.
pub fn by_score(members: &BTreeMap<Vec<u8>, f64>) -> Vec<(&Vec<u8>, f64)> {
    let mut sorted: Vec<_> = members.iter().map(|(member, score)| (member, *score)).collect();
    sorted.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(b.0)));
    sorted
}

/// `<milliseconds>-<sequence>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct StreamId {
    /// Milliseconds.
    pub ms: u64,
    /// Sequence within the millisecond.
    pub seq: u64,
}

impl StreamId {
    /// Reads `ms-seq`, or `ms` alone with the sequence given.
    pub fn parse(text: &[u8], missing_seq: u64) -> Option<StreamId> {
        let number = |text: &[u8]| {
            let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
            if digits { std::str::from_utf8(text).ok()?.parse::<u64>().ok() } else { None }
        };
        match memchr::memchr(b'-', text) {
            Some(dash) => {
                Some(StreamId { ms: number(text.get(..dash)?)?, seq: number(text.get(dash + 1..)?)? })
            }
            None => Some(StreamId { ms: number(text)?, seq: missing_seq }),
        }
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// Fields and values of one stream entry, in the order in which they were added.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A stream (`stream.h`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stream {
    /// Live entries.
    pub entries: BTreeMap<StreamId, Fields>,
    /// The newest id ever added.
    pub last_id: StreamId,
    /// The greatest id ever deleted.
    pub max_deleted_id: StreamId,
    /// How many entries were ever added.
    pub entries_added: u64,
    /// Consumer groups.
    pub groups: BTreeMap<Vec<u8>, Group>,
}

impl Stream {
    fn same_data(&self, other: &Stream) -> bool {
        self.entries == other.entries
            && self.last_id == other.last_id
            && self.max_deleted_id == other.max_deleted_id
            && self.entries_added == other.entries_added
            && self.groups.len() == other.groups.len()
            && self.groups.iter().zip(&other.groups).all(|((name, mine), (other_name, theirs))| {
                name == other_name
                    && mine.last_id == theirs.last_id
                    && mine.entries_read == theirs.entries_read
                    && mine.pending == theirs.pending
                    && mine.consumers.keys().eq(theirs.consumers.keys())
            })
    }
}

/// A consumer group.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Group {
    /// The last id that was delivered.
    pub last_id: StreamId,
    /// How many entries the group has read; `None` = not known (Redis keeps -1).
    pub entries_read: Option<u64>,
    /// Delivered and not acknowledged.
    pub pending: BTreeMap<StreamId, Pending>,
    /// Consumers by name.
    pub consumers: BTreeMap<Vec<u8>, Consumer>,
}

/// One delivered entry that waits for its XACK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Who has it.
    pub consumer: Vec<u8>,
    /// When it was delivered last (Unix ms).
    pub delivered_ms: u64,
    /// How often it was delivered.
    pub deliveries: u64,
}

/// One consumer of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Consumer {
    /// When it last tried (Unix ms).
    pub seen_ms: u64,
    /// When it last got something (Unix ms); `None` = never (Redis keeps -1).
    pub active_ms: Option<u64>,
}
