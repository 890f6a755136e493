//! DUMP payloads into values, with the answers that RESTORE gives to bad ones.
//!
//! Version, checksum and known types are judged here, as `verifyDumpPayload` and `rdbLoadObject` of the posed-as server
//! would; the bytes of the value are read by the crate's own `rdb`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::rdb::model::{DecodedValue, StreamGroup, decode_value};
use crate::rdb::{dump, stream};

use super::rdb_writer::crc64;
use super::value::{Consumer, Group, Pending, Stream, StreamId, Value};
use super::wire::Reply;

/// Reads a payload; the error is the reply that Redis sends (`restoreCommand`, cluster.c).
pub fn decode(payload: &[u8], newest_version: u16) -> Result<Value, Reply> {
    let footer = || Reply::err("DUMP payload version or checksum are wrong");
    let format = || Reply::err("Bad data format");
    let (signed, stored) = payload.split_last_chunk::<8>().ok_or_else(footer)?;
    // Zero is not "unchecked" here, other than in Redis 8.4 and newer.
    if u64::from_le_bytes(*stored) != crc64(signed) {
        return Err(footer());
    }
    let payload = dump::parse_payload(payload).map_err(|_| format())?;
    if payload.rdb_version > newest_version {
        return Err(footer());
    }
    if !payload.meta.is_empty() || payload.type_byte > newest_type(newest_version) {
        return Err(format());
    }
    let value = decode_value(payload.type_byte, payload.raw, payload.dialect).map_err(|_| format())?;
    let value = convert(value).ok_or_else(format)?;
    if value.is_empty_collection() { Err(format()) } else { Ok(value) }
}

/// The greatest type byte that a server of this RDB version knows.
fn newest_type(rdb_version: u16) -> u8 {
    match rdb_version {
        ..=9 => 15,
        10 => 19,
        11 => 21,
        _ => u8::MAX,
    }
}

/// `None` for what these servers cannot hold: duplicate members, fields that expire, modules, arrays.
fn convert(value: DecodedValue) -> Option<Value> {
    Some(match value {
        DecodedValue::String(text) => Value::String(text),
        DecodedValue::List(items) => Value::List(VecDeque::from(items)),
        DecodedValue::Set(members) => {
            let count = members.len();
            let members: BTreeSet<_> = members.into_iter().collect();
            Value::Set(Some(members).filter(|members| members.len() == count)?)
        }
        DecodedValue::Hash(fields) => {
            let count = fields.len();
            let mut hash = BTreeMap::new();
            for field in fields {
                if field.expire_at_ms.is_some() {
                    return None;
                }
                hash.insert(field.field, field.value);
            }
            Value::Hash(Some(hash).filter(|hash| hash.len() == count)?)
        }
        DecodedValue::SortedSet(members) => {
            let count = members.len();
            let members: BTreeMap<_, _> = members.into_iter().collect();
            Value::SortedSet(Some(members).filter(|members| members.len() == count)?)
        }
        DecodedValue::Stream(decoded) => {
            let id = |id: stream::StreamId| StreamId { ms: id.ms, seq: id.seq };
            let mut converted = Stream {
                last_id: id(decoded.info.last_id),
                max_deleted_id: decoded.info.max_deleted_id.map(id).unwrap_or_default(),
                entries_added: decoded.info.entries_added.unwrap_or(decoded.info.length),
                ..Stream::default()
            };
            for (entry_id, fields) in decoded.entries {
                let parts: Vec<&[u8]> = fields.iter().collect();
                let pairs = parts
                    .chunks_exact(2)
                    .filter_map(|pair| Some((pair.first()?.to_vec(), pair.get(1)?.to_vec())));
                converted.entries.insert(id(entry_id), pairs.collect());
            }
            for decoded in decoded.groups {
                let name = decoded.name.clone();
                converted.groups.insert(name, group(decoded)?);
            }
            Value::Stream(converted)
        }
        DecodedValue::Array { .. } | DecodedValue::Module { .. } => return None,
    })
}

fn group(decoded: StreamGroup) -> Option<Group> {
    if !decoded.nacked.is_empty() {
        return None;
    }
    let mut group = Group {
        last_id: StreamId { ms: decoded.last_id.ms, seq: decoded.last_id.seq },
        entries_read: decoded.entries_read,
        ..Group::default()
    };
    for consumer in decoded.consumers {
        for pending in consumer.pending {
            let id = StreamId { ms: pending.id.ms, seq: pending.id.seq };
            let pending = Pending {
                consumer: consumer.name.clone(),
                delivered_ms: u64::try_from(pending.delivered_at_ms).unwrap_or(0),
                deliveries: pending.deliveries,
            };
            group.pending.insert(id, pending);
        }
        let seen_ms = u64::try_from(consumer.seen_at_ms).unwrap_or(0);
        let active_ms = consumer.active_at_ms.map_or(Some(seen_ms), |at| u64::try_from(at).ok());
        group.consumers.insert(consumer.name, Consumer { seen_ms, active_ms });
    }
    Some(group)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
    use super::super::load;
    use super::super::rdb_writer;
    use super::super::store::{DATABASES, Store};
    use super::*;

    #[test]
    fn every_value_of_the_data_set_survives_dump_and_restore_in_both_versions() {
        let mut store = Store::default();
        load::fill(&mut store, 5_000, 11, 1_700_000_000_000);
        let mut types = BTreeSet::new();
        for db in 0..DATABASES {
            for (key, entry) in store.iter(db) {
                for version in [10, 11] {
                    let payload = rdb_writer::dump(&entry.value, version);
                    types.insert(payload[0]);
                    let restored = decode(&payload, version);
                    let same = restored.as_ref().is_ok_and(|restored| restored.same_data(&entry.value));
                    assert!(same, "{:?} became {restored:?}", key.escape_ascii().to_string());
                }
            }
        }
        assert_eq!(types, [0, 2, 4, 5, 11, 16, 17, 18, 19, 20, 21].into());
    }

    #[test]
    fn bad_payloads_are_refused_in_the_words_of_redis() {
        let good = rdb_writer::dump(&Value::String(b"v".to_vec()), 11);
        assert_eq!(decode(&good, 11), Ok(Value::String(b"v".to_vec())));
        let footer = Err(Reply::err("DUMP payload version or checksum are wrong"));
        assert_eq!(decode(&good, 10), footer, "too new");
        assert_eq!(decode(b"short", 11), footer);
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            assert_eq!(decode(&bad, 11), footer, "byte {index} flipped");
        }
        let mut zero_checksum = good.clone();
        let end = zero_checksum.len() - 8;
        zero_checksum[end..].fill(0);
        assert_eq!(decode(&zero_checksum, 11), footer);

        let stamped = |mut content: Vec<u8>| {
            content.extend(11_u16.to_le_bytes());
            content.extend(crc64(&content).to_le_bytes());
            content
        };
        let format = Err(Reply::err("Bad data format"));
        assert_eq!(decode(&stamped(vec![0, 5, b'x']), 11), format, "cut");
        assert_eq!(decode(&stamped(vec![24, 0]), 11), format, "type of a newer server");
        assert_eq!(decode(&stamped(vec![2, 2, 1, b'a', 1, b'a']), 11), format, "a member twice");
        assert_eq!(decode(&stamped(vec![1, 0]), 11), format, "empty list");
    }
}
