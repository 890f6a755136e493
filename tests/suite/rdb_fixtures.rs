//! Every fixture file against what the server that wrote it answered for every key: value, expiry, field expiry, stream
//! groups with consumers and pending entries. Each value is decoded twice: from its span, and with a limit so small that it
//! comes through the streaming path.

use crate::fixtures;
use std::collections::BTreeMap;

use crate::fixtures::{Fixture, text};
use serde_json::{Value as Json, json};
use shakedeck::rdb::model::{Stream, StreamConsumer, StreamGroup};
use shakedeck::rdb::{DecodedValue, Decoder, Dialect, Item, Limits, Value, decode_value, type_name};

/// One key as decoded.
struct Decoded {
    type_byte: u8,
    dialect: Dialect,
    expire_at_ms: Option<i64>,
    value: DecodedValue,
}

/// Decodes a whole file; `limit` decides which values are streamed.
fn decode(rdb: &[u8], limit: usize) -> BTreeMap<String, Decoded> {
    let limits = Limits { max_value_bytes: limit, ..Limits::default() };
    let mut decoder = Decoder::new(rdb, limits);
    let mut found = BTreeMap::new();
    while let Some(item) = decoder.next().unwrap() {
        let Item::Entry(entry) = item else { continue };
        let name = format!("{}:{}", entry.db, text(entry.key));
        let (type_byte, dialect, expire_at_ms) = (entry.type_byte, entry.dialect, entry.expire_at_ms);
        let value = match entry.value {
            Value::Raw(raw) => {
                decode_value(type_byte, raw, dialect).unwrap_or_else(|e| panic!("{name}: {e}"))
            }
            Value::Large => {
                let mut value = DecodedValue::empty(type_byte, dialect);
                let read = decoder.read_large(&mut |element| {
                    value.add(element);
                    Ok(())
                });
                read.unwrap_or_else(|e| panic!("{name}: {e}"));
                value
            }
            other => panic!("{name}: {other:?}"),
        };
        found.insert(name, Decoded { type_byte, dialect, expire_at_ms, value });
    }
    found
}

#[test]
fn every_key_of_every_fixture() {
    for fixture in fixtures::all() {
        let Fixture { name, rdb, keys } = &fixture;
        let held = decode(rdb, usize::MAX);
        let streamed = decode(rdb, 0);
        assert_eq!(held.keys().collect::<Vec<_>>(), keys.keys().collect::<Vec<_>>(), "{name}");
        let mut clock = None;
        for (key, expected) in keys {
            let context = format!("{name} {key}");
            let found = &held[key];
            assert_eq!(found.value, streamed[key].value, "{context}: streamed");
            check_type(found, expected, &context);
            check_expiry(found.expire_at_ms, expected, &mut clock, &context);
            check_value(&found.value, expected, &context);
        }
    }
}

fn check_type(found: &Decoded, expected: &Json, context: &str) {
    let (kind, _) = type_name(found.type_byte, found.dialect);
    let kind = match &found.value {
        DecodedValue::Module { module, .. } => module.name(),
        _ => kind.to_owned(),
    };
    assert_eq!(kind, expected["type"].as_str().unwrap(), "{context}");
}

/// Servers before 7.0 tell only the time left, so their clock is derived from the first key and must fit the others.
fn check_expiry(found: Option<i64>, expected: &Json, clock: &mut Option<i64>, context: &str) {
    if let Some(at) = expected.get("pexpiretime") {
        assert_eq!(found, at.as_i64(), "{context}");
    } else if let Some(left) = expected.get("pttl_about").and_then(Json::as_i64) {
        let now = found.unwrap() - left;
        assert!((now - *clock.get_or_insert(now)).abs() < 60_000, "{context}: {found:?} and {left} left");
    } else {
        assert_eq!(found, None, "{context}");
    }
}

fn check_value(found: &DecodedValue, expected: &Json, context: &str) {
    let value = &expected["value"];
    match found {
        DecodedValue::String(bytes) => assert_eq!(json!(text(bytes)), *value, "{context}"),
        DecodedValue::List(items) => {
            assert_eq!(json!(items.iter().map(|item| text(item)).collect::<Vec<_>>()), *value, "{context}");
        }
        DecodedValue::Set(members) => {
            let members = json!(members.iter().map(|member| text(member)).collect::<Vec<_>>());
            assert_eq!(fixtures::sorted(&members), fixtures::sorted(value), "{context}");
        }
        DecodedValue::Hash(fields) => {
            let pairs = json!(fields.iter().map(|f| (text(&f.field), text(&f.value))).collect::<Vec<_>>());
            assert_eq!(fixtures::sorted(&pairs), fixtures::sorted(value), "{context}");
            if let Some(times) = expected.get("field_pexpiretime") {
                let found: BTreeMap<_, _> =
                    fields.iter().filter_map(|f| Some((text(&f.field), f.expire_at_ms?))).collect();
                assert_eq!(json!(found), *times, "{context}");
            } else {
                assert!(fields.iter().all(|f| f.expire_at_ms.is_none()), "{context}");
            }
        }
        DecodedValue::SortedSet(members) => {
            let mut members = members.clone();
            members.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
            let expected: Vec<(String, f64)> = serde_json::from_value::<Vec<(String, String)>>(value.clone())
                .unwrap()
                .into_iter()
                .map(|(member, score)| (member, score.parse().unwrap()))
                .collect();
            let found: Vec<_> = members.iter().map(|(member, score)| (text(member), *score)).collect();
            assert_eq!(found.len(), expected.len(), "{context}");
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.0, expected.0, "{context}");
                // Negative zero survives in skiplists and old ziplists only; the answer says which.
                assert_eq!(found.1.to_bits(), expected.1.to_bits(), "{context} {}", found.0);
            }
        }
        DecodedValue::Stream(stream) => check_stream(stream, expected, context),
        DecodedValue::Array { slots, insert_index } => {
            let slots: Vec<_> = slots.iter().map(|(index, value)| (*index, text(value))).collect();
            let expected =
                [(0, "zero"), (5, "42"), (7, "a longer string value than seven"), (1_000_000, "3.25")];
            assert_eq!(slots, expected.map(|(index, value)| (index, value.to_owned())), "{context}");
            assert_eq!(*insert_index, None, "{context}");
        }
        DecodedValue::Module { module, raw } => {
            assert_eq!((module.name().as_str(), raw.is_empty()), ("vectorset", false), "{context}");
        }
    }
}

fn check_stream(stream: &Stream, expected: &Json, context: &str) {
    let entries: Vec<_> = stream
        .entries
        .iter()
        .map(|(id, fields)| json!([id.to_string(), fields.iter().map(text).collect::<Vec<_>>()]))
        .collect();
    assert_eq!(json!(entries), expected["value"], "{context}");
    let info = &expected["info"];
    // Redis 5 has no XINFO STREAM FULL: two answers, of which the second is XINFO GROUPS.
    let (info, groups) = match info[0].as_array() {
        Some(_) => (pairs(&info[0]), info[1].as_array().unwrap()),
        None => (pairs(info), pairs(info)["groups"].as_array().unwrap()),
    };
    let full = info.contains_key("entries");
    assert_eq!(json!(stream.info.last_id.to_string()), *info["last-generated-id"], "{context}");
    if let Some(added) = info.get("entries-added") {
        assert_eq!(json!(stream.info.entries_added), **added, "{context}");
        assert_eq!(
            json!(stream.info.max_deleted_id.unwrap().to_string()),
            *info["max-deleted-entry-id"],
            "{context}"
        );
        assert_eq!(
            json!(stream.info.first_id.unwrap().to_string()),
            *info["recorded-first-entry-id"],
            "{context}"
        );
    }
    if let Some(duration) = info.get("idmp-duration") {
        let idmp = stream.idmp.unwrap();
        let found =
            [idmp.duration, idmp.max_entries, idmp.added, idmp.duplicates, stream.idmp_entries.len() as u64];
        let expected =
            ["idmp-maxsize", "iids-added", "iids-duplicates", "iids-tracked"].map(|name| info[name]);
        assert_eq!(
            json!(found),
            json!([*duration, expected[0], expected[1], expected[2], expected[3]]),
            "{context}"
        );
    }
    assert_eq!(stream.groups.len(), groups.len(), "{context}");
    for (found, expected) in stream.groups.iter().zip(groups) {
        let expected = pairs(expected);
        assert_eq!(json!(text(&found.name)), *expected["name"], "{context}");
        assert_eq!(json!(found.last_id.to_string()), *expected["last-delivered-id"], "{context}");
        if let Some(read) = expected.get("entries-read") {
            assert_eq!(json!(found.entries_read), **read, "{context}");
        }
        if full {
            check_group(found, &expected, context);
        } else {
            let pending: usize = found.consumers.iter().map(|c| c.pending.len()).sum();
            assert_eq!(
                json!([found.consumers.len(), pending]),
                json!([expected["consumers"], expected["pending"]])
            );
        }
    }
}

fn check_group(found: &StreamGroup, expected: &BTreeMap<&str, &Json>, context: &str) {
    let mut all: Vec<_> = found
        .consumers
        .iter()
        .flat_map(|c| c.pending.iter().map(|p| (p.id, text(&c.name), p.delivered_at_ms, p.deliveries)))
        .chain(found.nacked.iter().map(|&(id, deliveries)| (id, String::new(), 0, deliveries)))
        .collect();
    all.sort();
    let all: Vec<_> = all.into_iter().map(|(id, name, at, n)| json!([id.to_string(), name, at, n])).collect();
    assert_eq!(json!(all), *expected["pending"], "{context}");
    let consumers = expected["consumers"].as_array().unwrap();
    assert_eq!(found.consumers.len(), consumers.len(), "{context}");
    for (StreamConsumer { name, seen_at_ms, active_at_ms, pending }, expected) in
        found.consumers.iter().zip(consumers)
    {
        let expected = pairs(expected);
        assert_eq!(json!(text(name)), *expected["name"], "{context}");
        assert_eq!(json!(seen_at_ms), *expected["seen-time"], "{context}");
        if let Some(active) = expected.get("active-time") {
            assert_eq!(json!(active_at_ms), **active, "{context}");
        }
        let pending: Vec<_> =
            pending.iter().map(|p| json!([p.id.to_string(), p.delivered_at_ms, p.deliveries])).collect();
        assert_eq!(json!(pending), *expected["pending"], "{context}");
    }
}

/// A flat RESP map.
fn pairs(flat: &Json) -> BTreeMap<&str, &Json> {
    flat.as_array().unwrap().chunks(2).map(|pair| (pair[0].as_str().unwrap(), &pair[1])).collect()
}
