//! Are two DUMP payloads the same value? Bytes first; where they differ, decoded, because encodings, the order of hash
//! tables and RDB versions differ between servers that hold the same value.
//!
//! Not compared, because no reader can tell or no replica keeps it: LRU and LFU, inner encodings, the times at which
//! consumers were seen, `entries-read` of groups (a Redis 7.0 does not stream it exactly).

use std::collections::BTreeMap;

use super::{Clocks, Found, Kind, expiry, quoted};
use crate::rdb::dump::{Payload, parse_payload};
use crate::rdb::model::{HashField, Stream, StreamConsumer, StreamGroup};
use crate::rdb::stream::StreamId;
use crate::rdb::{DecodedValue, decode_value};

/// Differences named per key; a value that differs in more places differs all the same.
const NAMED: usize = 4;

/// What two payloads say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The same value.
    Equal,
    /// Another value.
    Different(Vec<Found>),
    /// They differ in bytes and cannot be read here (modules, newer types).
    Unreadable(String),
}

/// Compares two DUMP payloads.
pub fn compare_payloads(source: &[u8], destination: &[u8], clocks: Clocks) -> Verdict {
    if source == destination {
        return Verdict::Equal;
    }
    let (here, there) = match (parse_payload(source), parse_payload(destination)) {
        (Ok(here), Ok(there)) => (here, there),
        (Err(error), _) => return Verdict::Unreadable(format!("source: {error}")),
        (_, Err(error)) => return Verdict::Unreadable(format!("destination: {error}")),
    };
    if (here.type_byte, here.raw, here.dialect) == (there.type_byte, there.raw, there.dialect) {
        return Verdict::Equal;
    }
    let decode = |payload: &Payload<'_>| decode_value(payload.type_byte, payload.raw, payload.dialect);
    match (decode(&here), decode(&there)) {
        (Ok(DecodedValue::Module { module, .. }), _) => {
            Verdict::Unreadable(format!("values of the module {}", module.name()))
        }
        (Ok(here), Ok(there)) => {
            let mut found = Finder { found: Vec::new(), clocks };
            found.values(here, there);
            if found.found.is_empty() { Verdict::Equal } else { Verdict::Different(found.found) }
        }
        (Err(error), _) => Verdict::Unreadable(format!("source: {error}")),
        (_, Err(error)) => Verdict::Unreadable(format!("destination: {error}")),
    }
}

struct Finder {
    found: Vec<Found>,
    clocks: Clocks,
}

impl Finder {
    fn add(&mut self, found: Found) {
        if self.found.len() < NAMED {
            self.found.push(found);
        }
    }

    fn values(&mut self, source: DecodedValue, destination: DecodedValue) {
        use DecodedValue::{Array, Hash, List, Set, SortedSet, Stream, String};
        match (source, destination) {
            (String(here), String(there)) => self.strings(&here, &there),
            (List(here), List(there)) => self.lists(&here, &there),
            (Set(here), Set(there)) => {
                let table = |members: Vec<Vec<u8>>| members.into_iter().map(|member| (member, ())).collect();
                self.tables("member", table(here), table(there), |_, (), ()| None);
            }
            (SortedSet(here), SortedSet(there)) => {
                self.tables(
                    "member",
                    here.into_iter().collect(),
                    there.into_iter().collect(),
                    |_, here: &f64, there| {
                        let words = |score: &f64| format!("score {score}");
                        (here != there).then(|| Found::new(Kind::Value, words(here), words(there)))
                    },
                );
            }
            (Hash(here), Hash(there)) => self.hashes(here, there),
            (Stream(here), Stream(there)) => self.streams(&here, &there),
            (here @ Array { .. }, there @ Array { .. }) => {
                if here != there {
                    self.add(Found::new(Kind::Value, "an array", "another array"));
                }
            }
            (here, there) => self.add(Found::new(Kind::Type, type_word(&here), type_word(&there))),
        }
    }

    fn strings(&mut self, here: &[u8], there: &[u8]) {
        if here == there {
            return;
        }
        let at = here.iter().zip(there).position(|(a, b)| a != b).unwrap_or(here.len().min(there.len()));
        let from = at.saturating_sub(8);
        let part = |bytes: &[u8]| quoted(bytes.get(from..(at + 24).min(bytes.len())).unwrap_or_default());
        self.add(Found::new(Kind::Value, part(here), part(there)).at(format!("byte {at}")));
    }

    fn lists(&mut self, here: &[Vec<u8>], there: &[Vec<u8>]) {
        if here.len() != there.len() {
            self.add(Found::new(Kind::Length, here.len().to_string(), there.len().to_string()));
        }
        if let Some(index) = here.iter().zip(there).position(|(a, b)| a != b) {
            let item = |items: &[Vec<u8>]| quoted(items.get(index).map_or(b"", Vec::as_slice));
            self.add(Found::new(Kind::Value, item(here), item(there)).at(format!("index {index}")));
        }
    }

    /// Names what is in one table only, and what `differs` says of what is in both.
    fn tables<V>(
        &mut self,
        what: &str,
        here: BTreeMap<Vec<u8>, V>,
        mut there: BTreeMap<Vec<u8>, V>,
        differs: impl Fn(&[u8], &V, &V) -> Option<Found>,
    ) {
        for (name, value) in &here {
            match there.remove(name) {
                None => self.add(
                    Found::new(Kind::Value, "present", "missing").at(format!("{what} {}", quoted(name))),
                ),
                Some(other) => {
                    if let Some(found) = differs(name, value, &other) {
                        self.add(found.at(format!("{what} {}", quoted(name))));
                    }
                }
            }
        }
        for name in there.keys() {
            self.add(Found::new(Kind::Value, "missing", "present").at(format!("{what} {}", quoted(name))));
        }
    }

    fn hashes(&mut self, here: Vec<HashField>, there: Vec<HashField>) {
        let clocks = self.clocks;
        let names = |fields: &[HashField]| -> std::collections::BTreeSet<Vec<u8>> {
            fields.iter().map(|field| field.field.clone()).collect()
        };
        let (here_names, there_names) = (names(&here), names(&there));
        // A field that is gone on one side only because its time is over is left out on the other.
        let table = |fields: Vec<HashField>, other: &std::collections::BTreeSet<Vec<u8>>| {
            fields
                .into_iter()
                .filter(|field| {
                    other.contains(&field.field) || !clocks.expired_on_destination(field.expire_at_ms)
                })
                .map(|field| (field.field, (field.value, field.expire_at_ms)))
                .collect()
        };
        self.tables(
            "field",
            table(here, &there_names),
            table(there, &here_names),
            |_, here: &(Vec<u8>, Option<i64>), there| {
                if here.0 != there.0 {
                    return Some(Found::new(Kind::Value, quoted(&here.0), quoted(&there.0)));
                }
                (!clocks.same(here.1, there.1))
                    .then(|| Found::new(Kind::FieldTtl, expiry(here.1), expiry(there.1)))
            },
        );
    }

    fn streams(&mut self, here: &Stream, there: &Stream) {
        if here.entries.len() != there.entries.len() {
            self.add(Found::new(
                Kind::Length,
                here.entries.len().to_string(),
                there.entries.len().to_string(),
            ));
        }
        let unlike = here.entries.iter().zip(&there.entries).find(|(a, b)| a != b);
        if let Some(((here_id, _), (there_id, _))) = unlike {
            let (source, destination) = if here_id == there_id {
                ("one content".to_owned(), "another content".to_owned())
            } else {
                (format!("entry {here_id}"), format!("entry {there_id}"))
            };
            self.add(Found::new(Kind::Value, source, destination).at(format!("entry {here_id}")));
        }
        self.stream_number("last ID", Some(here.info.last_id), Some(there.info.last_id));
        self.stream_number("highest deleted ID", here.info.max_deleted_id, there.info.max_deleted_id);
        self.stream_number("entries added", here.info.entries_added, there.info.entries_added);
        let groups = |stream: &Stream| -> BTreeMap<Vec<u8>, StreamGroup> {
            stream.groups.iter().map(|group| (group.name.clone(), group.clone())).collect()
        };
        let (here, mut there) = (groups(here), groups(there));
        for (name, group) in &here {
            let part = format!("group {}", quoted(name));
            match there.remove(name) {
                None => self.add(Found::new(Kind::StreamGroup, "present", "missing").at(part)),
                Some(other) => self.groups(&part, group, &other),
            }
        }
        for name in there.keys() {
            self.add(
                Found::new(Kind::StreamGroup, "missing", "present").at(format!("group {}", quoted(name))),
            );
        }
    }

    /// A number that both sides know and that differs.
    fn stream_number<T: PartialEq + ToString>(&mut self, part: &str, here: Option<T>, there: Option<T>) {
        if let (Some(here), Some(there)) = (here, there)
            && here != there
        {
            self.add(Found::new(Kind::Stream, here.to_string(), there.to_string()).at(part));
        }
    }

    fn groups(&mut self, part: &str, here: &StreamGroup, there: &StreamGroup) {
        if here.last_id != there.last_id {
            let words = |id: StreamId| format!("last delivered {id}");
            self.add(Found::new(Kind::StreamGroup, words(here.last_id), words(there.last_id)).at(part));
        }
        let consumers = |group: &StreamGroup| -> BTreeMap<Vec<u8>, StreamConsumer> {
            group.consumers.iter().map(|consumer| (consumer.name.clone(), consumer.clone())).collect()
        };
        let (mine, mut other) = (consumers(here), consumers(there));
        for (name, consumer) in &mine {
            let part = format!("{part}, consumer {}", quoted(name));
            match other.remove(name) {
                None => self.add(Found::new(Kind::StreamGroup, "present", "missing").at(part)),
                Some(found) => self.consumers(&part, consumer, &found),
            }
        }
        for name in other.keys() {
            let part = format!("{part}, consumer {}", quoted(name));
            self.add(Found::new(Kind::StreamGroup, "missing", "present").at(part));
        }
    }

    fn consumers(&mut self, part: &str, here: &StreamConsumer, there: &StreamConsumer) {
        if here.pending.len() != there.pending.len() {
            let words = |consumer: &StreamConsumer| format!("{} pending", consumer.pending.len());
            self.add(Found::new(Kind::StreamGroup, words(here), words(there)).at(part));
            return;
        }
        for (a, b) in here.pending.iter().zip(&there.pending) {
            let words = |entry: &crate::rdb::model::PendingEntry| {
                format!(
                    "pending {}, delivered {} times, last {}",
                    entry.id, entry.deliveries, entry.delivered_at_ms
                )
            };
            let same = a.id == b.id
                && a.deliveries == b.deliveries
                && self.clocks.same(Some(a.delivered_at_ms), Some(b.delivered_at_ms));
            if !same {
                self.add(Found::new(Kind::StreamGroup, words(a), words(b)).at(part));
                return;
            }
        }
    }
}

fn type_word(value: &DecodedValue) -> &'static str {
    match value {
        DecodedValue::String(_) => "string",
        DecodedValue::List(_) => "list",
        DecodedValue::Set(_) => "set",
        DecodedValue::Hash(_) => "hash",
        DecodedValue::SortedSet(_) => "zset",
        DecodedValue::Stream(_) => "stream",
        DecodedValue::Array { .. } => "array",
        DecodedValue::Module { .. } => "module",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::rdb::dump::append_payload;
    use crate::rdb::model::PendingEntry;
    use crate::rdb::types;

    const CLOCKS: Clocks = Clocks { source: 1_000_000, destination: 1_000_000, tolerance: 1_000 };

    fn payload(type_byte: u8, raw: &[u8], version: u16) -> Vec<u8> {
        let mut out = Vec::new();
        append_payload(&mut out, type_byte, raw, version);
        out
    }

    fn found(here: DecodedValue, there: DecodedValue) -> Vec<(Kind, String)> {
        let mut finder = Finder { found: Vec::new(), clocks: CLOCKS };
        finder.values(here, there);
        finder.found.into_iter().map(|found| (found.kind, found.part.unwrap_or_default())).collect()
    }

    #[test]
    fn another_version_or_encoding_of_the_same_value_is_equal() {
        let old = payload(types::STRING, b"\x01v", 9);
        assert_eq!(compare_payloads(&old, &payload(types::STRING, b"\x01v", 80), CLOCKS), Verdict::Equal);
        // The number 5 as text and as an 8-bit integer; a set in another order.
        let text = payload(types::STRING, b"\x015", 9);
        assert_eq!(compare_payloads(&text, &payload(types::STRING, b"\xc0\x05", 9), CLOCKS), Verdict::Equal);
        let set = payload(types::SET, b"\x02\x01a\x01b", 9);
        assert_eq!(
            compare_payloads(&set, &payload(types::SET, b"\x02\x01b\x01a", 11), CLOCKS),
            Verdict::Equal
        );
        let Verdict::Different(differences) = compare_payloads(&old, &text, CLOCKS) else { panic!() };
        assert_eq!(differences, [Found::new(Kind::Value, "'v'", "'5'").at("byte 0")]);
        assert!(matches!(compare_payloads(b"short", &old, CLOCKS), Verdict::Unreadable(_)));
    }

    #[test]
    fn members_fields_and_scores_are_named() {
        let set = |members: &[&str]| {
            DecodedValue::Set(members.iter().map(|member| member.as_bytes().to_vec()).collect())
        };
        assert_eq!(
            found(set(&["a", "b"]), set(&["b", "c"])),
            [(Kind::Value, "member 'a'".into()), (Kind::Value, "member 'c'".into())]
        );
        let zset = |score: f64| DecodedValue::SortedSet(vec![(b"m".to_vec(), score)]);
        assert_eq!(found(zset(1.0), zset(1.0)), []);
        assert_eq!(found(zset(1.0), zset(1.5)), [(Kind::Value, "member 'm'".into())]);
        let list =
            |items: &[&str]| DecodedValue::List(items.iter().map(|item| item.as_bytes().to_vec()).collect());
        assert_eq!(found(list(&["a", "b"]), list(&["a", "c"])), [(Kind::Value, "index 1".into())]);
        assert_eq!(found(list(&["a"]), list(&["a", "c"])), [(Kind::Length, String::new())]);
    }

    #[test]
    fn field_times_have_their_kind_and_expired_fields_do_not_count() {
        let hash = |fields: &[(&str, Option<i64>)]| {
            let fields = fields.iter().map(|(name, expire_at_ms)| HashField {
                field: name.as_bytes().to_vec(),
                value: b"v".to_vec(),
                expire_at_ms: *expire_at_ms,
            });
            DecodedValue::Hash(fields.collect())
        };
        assert_eq!(found(hash(&[("a", None)]), hash(&[("a", None)])), []);
        assert_eq!(
            found(hash(&[("a", Some(5_000_000))]), hash(&[("a", None)])),
            [(Kind::FieldTtl, "field 'a'".into())]
        );
        assert_eq!(found(hash(&[("a", Some(5_000_000))]), hash(&[("a", Some(5_000_900))])), []);
        assert_eq!(found(hash(&[("a", None), ("b", Some(1_000_500))]), hash(&[("a", None)])), [], "expired");
        assert_eq!(
            found(hash(&[("a", None)]), hash(&[("a", None), ("b", Some(5_000_000))])),
            [(Kind::Value, "field 'b'".into())]
        );
    }

    #[test]
    fn every_part_of_a_group_is_compared() {
        let entry = PendingEntry { id: StreamId { ms: 1, seq: 0 }, delivered_at_ms: 5_000, deliveries: 1 };
        let consumer = StreamConsumer { name: b"c".to_vec(), pending: vec![entry], ..Default::default() };
        let group = StreamGroup { name: b"g".to_vec(), consumers: vec![consumer], ..Default::default() };
        let stream = Stream { groups: vec![group], ..Default::default() };
        let changed = |change: &dyn Fn(&mut Stream)| {
            let mut other = stream.clone();
            change(&mut other);
            found(DecodedValue::Stream(Box::new(stream.clone())), DecodedValue::Stream(Box::new(other)))
        };
        let group = |part: &str| vec![(Kind::StreamGroup, part.to_owned())];
        assert_eq!(changed(&|_| {}), []);
        assert_eq!(changed(&|stream| stream.groups.clear()), group("group 'g'"));
        assert_eq!(changed(&|stream| stream.groups[0].last_id.ms = 9), group("group 'g'"));
        assert_eq!(changed(&|stream| stream.groups[0].consumers.clear()), group("group 'g', consumer 'c'"));
        type Change<'a> = &'a dyn Fn(&mut StreamConsumer);
        let consumer = |change: Change| changed(&|stream| change(&mut stream.groups[0].consumers[0]));
        assert_eq!(consumer(&|consumer| consumer.pending.clear()), group("group 'g', consumer 'c'"));
        assert_eq!(
            consumer(&|consumer| consumer.pending[0].deliveries = 2),
            group("group 'g', consumer 'c'")
        );
        assert_eq!(
            consumer(&|consumer| consumer.pending[0].delivered_at_ms = 9_999),
            group("group 'g', consumer 'c'")
        );
        assert_eq!(consumer(&|consumer| consumer.seen_at_ms = 9_999), [], "no replica keeps it");
        assert_eq!(changed(&|stream| stream.info.last_id.seq = 5), [(Kind::Stream, "last ID".into())]);
        assert_eq!(changed(&|stream| stream.info.entries_added = Some(5)), [], "one side does not know it");
    }
}
