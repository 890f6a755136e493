//! Writes RDB files and DUMP payloads as Redis 7.0 (version 10) and 7.2 (version 11) do (`rdb.c`, `listpack.c`,
//! `intset.c`); version 9, for servers from 5.0 on, has the unpacked forms only. Small collections are packed, large ones are not, with the thresholds of a default configuration, so
//! that one data set shows a reader nearly every encoding. Values come from the demo's own store: nothing here can fail.

use std::collections::BTreeMap;

use crc_fast::{CrcAlgorithm, checksum};

use super::store::{DATABASES, Entry, Store};
use super::value::{Fields, Stream, StreamId, Value, by_score};
use super::wire::integer;

/// Collections up to this many elements are packed (`hash-max-listpack-entries`, the same for sets and sorted sets).
const PACKED_ENTRIES: usize = 128;
/// … if no element is longer than this (`hash-max-listpack-value`).
const PACKED_VALUE: usize = 64;
/// Sets of whole numbers up to this size are integer sets (`set-max-intset-entries`).
const INTSET_ENTRIES: usize = 512;
/// Bytes of one list node (`list-max-listpack-size -2`); a longer element is a node of its own.
const LIST_NODE_BYTES: usize = 8_192;
/// Entries of one stream node (`stream-node-max-entries`).
const STREAM_NODE_ENTRIES: usize = 100;

/// What a file says about the server that wrote it.
pub struct Header<'a> {
    /// RDB version: 9, 10 or 11.
    pub version: u16,
    /// `redis-ver`.
    pub server_version: &'a str,
    /// Seconds since the epoch.
    pub created: u64,
    /// Database, id and offset of the replication stream at this point; `None` outside replication.
    pub replication: Option<(usize, &'a str, u64)>,
    /// Which attribute every key carries.
    pub eviction: Eviction,
}

/// `maxmemory-policy`, as far as it shows in an RDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Eviction {
    /// No attribute.
    #[default]
    None,
    /// IDLE before every key.
    Lru,
    /// FREQ before every key.
    Lfu,
}

/// The whole data set as one RDB file. Keys whose time has come are written too: a replica must not decide that.
pub fn file(store: &Store, header: &Header<'_>) -> Vec<u8> {
    let mut out = Writer { bytes: format!("REDIS{:04}", header.version).into_bytes() };
    out.aux("redis-ver", header.server_version);
    out.aux("redis-bits", "64");
    out.aux("ctime", &header.created.to_string());
    out.aux("used-mem", &(store.total() * 128).to_string());
    if let Some((db, replid, offset)) = header.replication {
        out.aux("repl-stream-db", &db.to_string());
        out.aux("repl-id", replid);
        out.aux("repl-offset", &offset.to_string());
    }
    out.aux("aof-base", "0");
    for db in (0..DATABASES).filter(|db| store.len(*db) > 0) {
        out.bytes.push(0xFE);
        out.length(db as u64);
        out.bytes.push(0xFB);
        out.length(store.len(db) as u64);
        out.length(store.len_expiring(db) as u64);
        for (key, entry) in store.iter(db) {
            out.entry(key, entry, header);
        }
    }
    out.bytes.push(0xFF);
    let sum = crc64(&out.bytes);
    out.bytes.extend(sum.to_le_bytes());
    out.bytes
}

/// A DUMP payload: type, value, version, checksum.
pub fn dump(value: &Value, version: u16) -> Vec<u8> {
    let mut out = Writer { bytes: vec![0] };
    let kind = out.value(value, version);
    if let Some(first) = out.bytes.first_mut() {
        *first = kind;
    }
    out.bytes.extend(version.to_le_bytes());
    let sum = crc64(&out.bytes);
    out.bytes.extend(sum.to_le_bytes());
    out.bytes
}

/// The checksum of RDB files and DUMP payloads (`crc64.c`).
pub fn crc64(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Redis, bytes)
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn aux(&mut self, name: &str, value: &str) {
        self.bytes.push(0xFA);
        self.string(name.as_bytes());
        self.string(value.as_bytes());
    }

    fn entry(&mut self, key: &[u8], entry: &Entry, header: &Header<'_>) {
        if let Some(at) = entry.expires_ms() {
            self.bytes.push(0xFC);
            self.bytes.extend(at.to_le_bytes());
        }
        match header.eviction {
            Eviction::None => {}
            Eviction::Lru => {
                self.bytes.push(0xF8);
                self.length(entry.idle_seconds.unwrap_or(0));
            }
            Eviction::Lfu => self.bytes.extend([0xF9, entry.frequency.unwrap_or(5)]),
        }
        // The type stands before the key, but only the value's own size tells it.
        let place = self.bytes.len();
        self.bytes.push(0);
        self.string(key);
        let kind = self.value(&entry.value, header.version);
        if let Some(byte) = self.bytes.get_mut(place) {
            *byte = kind;
        }
    }

    /// Appends the value and answers its type byte.
    fn value(&mut self, value: &Value, version: u16) -> u8 {
        match value {
            Value::String(text) => {
                self.string(text);
                0
            }
            Value::List(items) if version < 10 => {
                self.length(items.len() as u64);
                items.iter().for_each(|item| self.string(item));
                1
            }
            Value::List(items) => {
                self.list(items.iter().map(Vec::as_slice));
                18
            }
            Value::Set(members) => {
                let numbers: Option<Vec<i64>> = members.iter().map(|member| integer(member)).collect();
                if let Some(numbers) = numbers.filter(|numbers| numbers.len() <= INTSET_ENTRIES) {
                    self.string(&intset(numbers));
                    11
                } else if version >= 11 && fits(members.len(), members.iter()) {
                    self.string(&listpack(members.iter().map(Vec::as_slice)));
                    20
                } else {
                    self.length(members.len() as u64);
                    members.iter().for_each(|member| self.string(member));
                    2
                }
            }
            Value::Hash(fields) => {
                let parts = || fields.iter().flat_map(|(field, value)| [field, value]);
                if version >= 10 && fits(fields.len(), parts()) {
                    self.string(&listpack(parts().map(Vec::as_slice)));
                    16
                } else {
                    self.length(fields.len() as u64);
                    parts().for_each(|part| self.string(part));
                    4
                }
            }
            Value::SortedSet(members) => {
                let mut sorted = by_score(members);
                if version >= 10 && fits(members.len(), members.keys()) {
                    let mut packed = Listpack::default();
                    for (member, score) in sorted {
                        packed.push(member);
                        packed.push_score(score);
                    }
                    self.string(&packed.finish());
                    17
                } else {
                    // From the highest to the lowest, as Redis does to make loading cheap.
                    sorted.reverse();
                    self.length(sorted.len() as u64);
                    for (member, score) in sorted {
                        self.string(member);
                        self.bytes.extend(score.to_le_bytes());
                    }
                    5
                }
            }
            Value::Stream(stream) => {
                self.stream(stream, version);
                match version {
                    ..=9 => 15,
                    10 => 19,
                    _ => 21,
                }
            }
        }
    }

    /// `rdbSaveLen`
    fn length(&mut self, length: u64) {
        match length {
            0..=63 => self.bytes.push(length as u8),
            64..=16_383 => self.bytes.extend((0x4000 | length as u16).to_be_bytes()),
            _ => match u32::try_from(length) {
                Ok(length) => {
                    self.bytes.push(0x80);
                    self.bytes.extend(length.to_be_bytes());
                }
                Err(_) => {
                    self.bytes.push(0x81);
                    self.bytes.extend(length.to_be_bytes());
                }
            },
        }
    }

    /// `rdbSaveRawString`: a short canonical number becomes 1, 2 or 4 bytes.
    fn string(&mut self, text: &[u8]) {
        let number = if text.len() <= 11 { integer(text) } else { None };
        match number {
            Some(number) if i8::try_from(number).is_ok() => self.bytes.extend([0xC0, number as u8]),
            Some(number) if i16::try_from(number).is_ok() => {
                self.bytes.push(0xC1);
                self.bytes.extend((number as i16).to_le_bytes());
            }
            Some(number) if i32::try_from(number).is_ok() => {
                self.bytes.push(0xC2);
                self.bytes.extend((number as i32).to_le_bytes());
            }
            _ => {
                self.length(text.len() as u64);
                self.bytes.extend(text);
            }
        }
    }

    /// Quicklist 2: packed nodes, and plain ones for long elements.
    fn list<'a>(&mut self, items: impl Iterator<Item = &'a [u8]>) {
        let mut nodes: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut open: Option<Listpack> = None;
        let close = |nodes: &mut Vec<(u64, Vec<u8>)>, open: &mut Option<Listpack>| {
            nodes.extend(open.take().map(|packed| (2, packed.finish())));
        };
        for item in items {
            if item.len() > LIST_NODE_BYTES {
                close(&mut nodes, &mut open);
                nodes.push((1, item.to_vec()));
                continue;
            }
            if open.as_ref().is_some_and(|packed| packed.body.len() + item.len() > LIST_NODE_BYTES) {
                close(&mut nodes, &mut open);
            }
            open.get_or_insert_with(Listpack::default).push(item);
        }
        close(&mut nodes, &mut open);
        self.length(nodes.len() as u64);
        for (container, node) in nodes {
            self.length(container);
            self.string(&node);
        }
    }

    /// `rdbSaveObject`, the stream's part.
    fn stream(&mut self, stream: &Stream, version: u16) {
        let entries: Vec<_> = stream.entries.iter().collect();
        let nodes = entries.chunks(STREAM_NODE_ENTRIES);
        self.length(nodes.len() as u64);
        for node in nodes {
            let Some((master, _)) = node.first() else { continue };
            self.length(16);
            self.raw_id(**master);
            self.string(&stream_node(node));
        }
        self.length(stream.entries.len() as u64);
        self.id(stream.last_id);
        if version >= 10 {
            self.id(stream.entries.first_key_value().map(|(id, _)| *id).unwrap_or_default());
            self.id(stream.max_deleted_id);
            self.length(stream.entries_added);
        }

        self.length(stream.groups.len() as u64);
        for (name, group) in &stream.groups {
            self.string(name);
            self.id(group.last_id);
            if version >= 10 {
                // -1 as an unsigned number where it is not known.
                self.length(group.entries_read.unwrap_or(u64::MAX));
            }
            self.length(group.pending.len() as u64);
            let mut by_consumer: BTreeMap<&[u8], Vec<StreamId>> = BTreeMap::new();
            for (id, pending) in &group.pending {
                self.raw_id(*id);
                self.bytes.extend(pending.delivered_ms.to_le_bytes());
                self.length(pending.deliveries);
                by_consumer.entry(&pending.consumer).or_default().push(*id);
            }
            self.length(group.consumers.len() as u64);
            for (name, consumer) in &group.consumers {
                self.string(name);
                self.bytes.extend(consumer.seen_ms.to_le_bytes());
                if version >= 11 {
                    self.bytes.extend(consumer.active_ms.unwrap_or(u64::MAX).to_le_bytes());
                }
                let owned = by_consumer.remove(name.as_slice()).unwrap_or_default();
                self.length(owned.len() as u64);
                owned.into_iter().for_each(|id| self.raw_id(id));
            }
        }
    }

    fn id(&mut self, id: StreamId) {
        self.length(id.ms);
        self.length(id.seq);
    }

    /// Sixteen bytes, big-endian, so that they sort as ids do.
    fn raw_id(&mut self, id: StreamId) {
        self.bytes.extend(id.ms.to_be_bytes());
        self.bytes.extend(id.seq.to_be_bytes());
    }
}

fn fits<'a>(count: usize, mut parts: impl Iterator<Item = &'a Vec<u8>>) -> bool {
    count <= PACKED_ENTRIES && parts.all(|part| part.len() <= PACKED_VALUE)
}

/// Header of width and count, then the numbers in ascending order.
fn intset(mut numbers: Vec<i64>) -> Vec<u8> {
    numbers.sort_unstable();
    let all = |fits: fn(i64) -> bool| numbers.iter().all(|number| fits(*number));
    let width: u32 = if all(|number| i16::try_from(number).is_ok()) {
        2
    } else if all(|number| i32::try_from(number).is_ok()) {
        4
    } else {
        8
    };
    let mut out = Vec::with_capacity(8 + numbers.len() * width as usize);
    out.extend(width.to_le_bytes());
    out.extend((numbers.len() as u32).to_le_bytes());
    for number in numbers {
        out.extend(number.to_le_bytes().into_iter().take(width as usize));
    }
    out
}

fn listpack<'a>(items: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut packed = Listpack::default();
    items.for_each(|item| packed.push(item));
    packed.finish()
}

/// One node of a stream (`streamAppendItem`, t_stream.c): a master entry with the first one's field names, then the
/// entries with ids relative to it.
fn stream_node(entries: &[(&StreamId, &Fields)]) -> Vec<u8> {
    let mut packed = Listpack::default();
    let Some((master, master_fields)) = entries.first() else { return packed.finish() };
    packed.push_integer(entries.len() as i64);
    packed.push_integer(0);
    packed.push_integer(master_fields.len() as i64);
    master_fields.iter().for_each(|(name, _)| packed.push(name));
    packed.push_integer(0);
    for (id, fields) in entries {
        let same_fields = fields.iter().map(|(name, _)| name).eq(master_fields.iter().map(|(name, _)| name));
        packed.push_integer(if same_fields { 2 } else { 0 });
        packed.push_integer(id.ms.wrapping_sub(master.ms) as i64);
        packed.push_integer(id.seq.wrapping_sub(master.seq) as i64);
        if !same_fields {
            packed.push_integer(fields.len() as i64);
        }
        for (name, value) in fields.iter() {
            if !same_fields {
                packed.push(name);
            }
            packed.push(value);
        }
        let pieces = if same_fields { fields.len() + 3 } else { fields.len() * 2 + 4 };
        packed.push_integer(pieces as i64);
    }
    packed.finish()
}

/// A listpack under construction: entries without header and end.
#[derive(Default)]
struct Listpack {
    body: Vec<u8>,
    count: usize,
}

impl Listpack {
    fn push(&mut self, item: &[u8]) {
        // `lpEncodeGetType` turns every canonical 64-bit number into an integer entry.
        if item.len() <= 20
            && let Some(number) = integer(item)
        {
            return self.push_integer(number);
        }
        let start = self.body.len();
        let length = item.len();
        match length {
            0..=63 => self.body.push(0x80 | length as u8),
            64..=4_095 => self.body.extend((0xE000 | length as u16).to_be_bytes()),
            _ => {
                self.body.push(0xF0);
                self.body.extend((length as u32).to_le_bytes());
            }
        }
        self.body.extend(item);
        self.back_length(start);
    }

    fn push_integer(&mut self, number: i64) {
        let start = self.body.len();
        let bytes = number.to_le_bytes();
        let mut wide = |mark: u8, width: usize| {
            self.body.push(mark);
            self.body.extend(bytes.into_iter().take(width));
        };
        match number {
            0..=127 => self.body.push(number as u8),
            -4_096..=4_095 => self.body.extend((0xC000 | (number as u16 & 0x1FFF)).to_be_bytes()),
            -32_768..=32_767 => wide(0xF1, 2),
            -8_388_608..=8_388_607 => wide(0xF2, 3),
            -2_147_483_648..=2_147_483_647 => wide(0xF3, 4),
            _ => wide(0xF4, 8),
        }
        self.back_length(start);
    }

    /// A whole number as an integer entry, anything else as text that reads back to the same bits.
    fn push_score(&mut self, score: f64) {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if score.fract() == 0.0 && score.abs() < EXACT {
            self.push_integer(score as i64);
        } else {
            self.push(super::wire::format_double(score).as_bytes());
        }
    }

    /// How long the entry is, readable from behind: seven bits a byte, the most significant first.
    fn back_length(&mut self, start: usize) {
        let length = self.body.len() - start;
        // The odd limits are those of `lpEncodeBacklen`: a reader computes the width again from the length.
        let groups = match length {
            0..=127 => 1,
            128..=16_382 => 2,
            16_383..=2_097_150 => 3,
            2_097_151..=268_435_454 => 4,
            _ => 5,
        };
        for group in (0..groups).rev() {
            let bits = (length >> (7 * group)) as u8 & 0x7F;
            self.body.push(if group + 1 == groups { bits } else { bits | 0x80 });
        }
        self.count += 1;
    }

    fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + 7);
        out.extend((self.body.len() as u32 + 7).to_le_bytes());
        // 65535 says "count them yourself".
        out.extend((self.count.min(65_535) as u16).to_le_bytes());
        out.extend(self.body);
        out.push(0xFF);
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_redis() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn lengths_and_strings_take_their_shortest_form() {
        let mut out = Writer { bytes: Vec::new() };
        for length in [63, 64, 16_383, 16_384, u64::from(u32::MAX) + 1] {
            out.length(length);
        }
        let expected: &[u8] = &[63, 0x40, 64, 0x7F, 0xFF, 0x80, 0, 0, 0x40, 0, 0x81, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(out.bytes, expected);

        let mut out = Writer { bytes: Vec::new() };
        for text in ["-128", "128", "-70000", "2147483648", "007"] {
            out.string(text.as_bytes());
        }
        let mut expected = vec![0xC0, 0x80, 0xC1, 0x80, 0, 0xC2, 0x90, 0xEE, 0xFE, 0xFF, 10];
        expected.extend(b"2147483648\x03007");
        assert_eq!(out.bytes, expected);
    }

    #[test]
    fn listpack_entries_have_the_documented_bytes() {
        // 13 bits are two's complement, big-endian; every entry is followed by its own length.
        let packed = listpack([b"127".as_slice(), b"-1", b"4096", b"ab", b""].into_iter());
        let body = [127, 1, 0xDF, 0xFF, 2, 0xF1, 0, 0x10, 3, 0x82, b'a', b'b', 3, 0x80, 1];
        assert_eq!(packed.get(6..21), Some(body.as_slice()));
        assert_eq!(packed.get(..6), Some([22, 0, 0, 0, 5, 0].as_slice()));
        assert_eq!(packed.last(), Some(&0xFF));
    }

    #[test]
    fn a_long_listpack_entry_has_a_back_length_of_two_bytes() {
        let mut packed = Listpack::default();
        packed.push(&[b'x'; 200]);
        // 2 bytes header and 200 of text = 202 = 1 * 128 + 74.
        assert_eq!(packed.body.get(202..), Some([1, 0x80 | 74].as_slice()));
    }

    #[test]
    fn integer_sets_are_sorted_and_as_narrow_as_they_can_be() {
        assert_eq!(intset(vec![300, -1]), [2, 0, 0, 0, 2, 0, 0, 0, 0xFF, 0xFF, 0x2C, 0x01]);
        assert_eq!(intset(vec![40_000]).first(), Some(&4));
        assert_eq!(intset(vec![i64::MIN]).first(), Some(&8));
    }
}
