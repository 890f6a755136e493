//! One JSON object per key and line.
//!
//! Bytes that are UTF-8 are a JSON string; any other bytes are `{"hex": "00ff"}`, so that every value can be told apart and
//! read back exactly. A string value too large to hold is always written in hex. Scores are numbers, except `"inf"` and
//! `"-inf"`, which JSON does not have.

use std::io::{self, Read, Write};

use serde_json::{Value as Json, json};

use super::super::model::Stream;
use super::super::{
    ByteList, Decoder, Dialect, Element, Item, RdbError, Value, dump::ModuleId, types, visit_value,
};
use super::{Summary, look_ahead, written};
use crate::rdb::type_name;

/// Writes every key as a line: `db`, `key`, `type`, `encoding` (in the file), `expire_at_ms` (absolute, null for none),
/// `value`, `elements` (bytes for a string, entries for a stream) and `size` (bytes in the file). A value that cannot be
/// decoded has `error` in the place of `value`; a module's value is given as its bytes. `ahead` opens the file once more, at an
/// offset.
pub fn write_json<R: Read, A: Read>(
    decoder: &mut Decoder<R>,
    ahead: impl Fn(u64) -> io::Result<A>,
    out: &mut impl Write,
) -> Result<Summary, RdbError> {
    let mut summary = Summary::default();
    let mut line = Vec::new();
    while let Some(item) = decoder.next()? {
        let entry = match item {
            Item::Entry(entry) => entry,
            Item::End { checksum } => {
                summary.checksum = Some(checksum);
                continue;
            }
            Item::Function(_) => {
                summary.functions_left_out += 1;
                continue;
            }
            Item::ModuleAux { .. } => {
                summary.module_aux += 1;
                continue;
            }
            _ => continue,
        };
        let (type_byte, dialect) = (entry.type_byte, entry.dialect);
        let (kind, encoding) = match (entry.value, type_byte) {
            (Value::Raw(raw), types::MODULE_2) => (module_name(raw), "module 2"),
            _ => (type_name(type_byte, dialect).0.to_owned(), type_name(type_byte, dialect).1),
        };
        line.clear();
        let mut head = json!({ "db": entry.db, "key": text(entry.key), "type": kind, "encoding": encoding });
        head["expire_at_ms"] = json!(entry.expire_at_ms);
        for (name, value) in [("idle_seconds", entry.idle_seconds), ("freq", entry.freq.map(u64::from))] {
            if value.is_some() {
                head[name] = json!(value);
            }
        }
        line.extend_from_slice(head.to_string().as_bytes());
        line.pop(); // The closing brace: more follows.
        match entry.value {
            Value::Empty => {
                summary.empty += 1;
                continue;
            }
            Value::Bad { raw, reason } => {
                summary.bad_key(entry.key, reason);
                finish_bad(&mut line, reason, raw.map_or(0, <[u8]>::len) as u64);
                written(out.write_all(&line))?;
            }
            Value::Raw(raw) => {
                let start = line.len();
                match held(&mut line, type_byte, raw, dialect) {
                    Ok(elements) => {
                        summary.keys += 1;
                        finish(&mut line, elements, raw.len() as u64);
                    }
                    Err(cause) => {
                        line.truncate(start);
                        let reason = cause.to_string();
                        summary.bad_key(entry.key, &reason);
                        finish_bad(&mut line, &reason, raw.len() as u64);
                    }
                }
                written(out.write_all(&line))?;
            }
            Value::Large => {
                let key = entry.key.to_vec();
                let start = decoder.position();
                if let Some(reason) = look_ahead(&ahead, start, (type_byte, dialect), &mut |_| {})? {
                    decoder.skip_large()?;
                    summary.bad_key(&key, &reason);
                    finish_bad(&mut line, &reason, decoder.position() - start);
                    written(out.write_all(&line))?;
                    continue;
                }
                line.extend_from_slice(b",\"value\":");
                written(out.write_all(&line))?;
                let mut writer = ValueWriter::new(type_byte, dialect, true);
                let mut piece = Vec::new();
                decoder.read_large(&mut |element| {
                    piece.clear();
                    writer.add(element, &mut piece);
                    written(out.write_all(&piece))
                })?;
                line.clear();
                let elements = writer.finish(&mut line);
                summary.keys += 1;
                finish(&mut line, elements, decoder.position() - start);
                written(out.write_all(&line))?;
            }
        }
    }
    written(out.flush())?;
    Ok(summary)
}

fn finish(line: &mut Vec<u8>, elements: u64, size: u64) {
    line.extend_from_slice(format!(",\"elements\":{elements},\"size\":{size}}}\n").as_bytes());
}

fn finish_bad(line: &mut Vec<u8>, reason: &str, size: u64) {
    line.extend_from_slice(format!(",\"error\":{},\"size\":{size}}}\n", json!(reason)).as_bytes());
}

/// Appends `"value": …` of a value that is in memory, and returns the number of its elements.
fn held(line: &mut Vec<u8>, type_byte: u8, raw: &[u8], dialect: Dialect) -> Result<u64, RdbError> {
    line.extend_from_slice(b",\"value\":");
    if matches!(type_byte, types::MODULE_2 | types::GCRA) {
        append(line, &json!({ "hex": hex(raw) }));
        return Ok(1);
    }
    let mut writer = ValueWriter::new(type_byte, dialect, false);
    visit_value(type_byte, raw, dialect, &mut |element| {
        writer.add(element, line);
        Ok(())
    })?;
    Ok(writer.finish(line))
}

fn module_name(raw: &[u8]) -> String {
    ModuleId::of_value(raw).map_or_else(|| "module".to_owned(), ModuleId::name)
}

/// Writes the elements of one value as they come.
struct ValueWriter {
    kind: Kind,
    elements: u64,
    /// A string so far: whether it is UTF-8 is known only at its end.
    string: Vec<u8>,
    /// What follows the entries of a stream.
    stream: Stream,
    in_pieces: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    String,
    Array,
    Stream,
}

impl ValueWriter {
    fn new(type_byte: u8, dialect: Dialect, in_pieces: bool) -> Self {
        let kind = match type_name(type_byte, dialect).0 {
            "string" => Kind::String,
            "stream" => Kind::Stream,
            _ => Kind::Array,
        };
        Self { kind, elements: 0, string: Vec::new(), stream: Stream::default(), in_pieces }
    }

    fn add(&mut self, element: Element<'_>, out: &mut Vec<u8>) {
        let value = match element {
            Element::Text(piece) => {
                if self.elements == 0 && self.in_pieces {
                    out.extend_from_slice(b"{\"hex\":\"");
                }
                self.elements += piece.len() as u64;
                if self.in_pieces {
                    out.extend_from_slice(hex(piece).as_bytes());
                } else {
                    self.string.extend_from_slice(piece);
                }
                return;
            }
            Element::Item(bytes) | Element::Member(bytes) => text(bytes),
            Element::Scored { member, score } => json!({ "member": text(member), "score": number(score) }),
            Element::Field { field, value, expire_at_ms: None } => {
                json!({ "field": text(field), "value": text(value) })
            }
            Element::Field { field, value, expire_at_ms } => {
                json!({ "field": text(field), "value": text(value), "expire_at_ms": expire_at_ms })
            }
            Element::Slot { index, value } => json!({ "index": index, "value": text(value) }),
            Element::StreamEntry { id, fields } => json!({ "id": id.to_string(), "fields": texts(fields) }),
            other => {
                self.stream.add(other);
                return;
            }
        };
        out.extend_from_slice(match (self.elements, self.kind) {
            (0, Kind::Stream) => b"{\"entries\":[".as_slice(),
            (0, _) => b"[",
            _ => b",",
        });
        append(out, &value);
        self.elements += 1;
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> u64 {
        match (self.kind, self.elements) {
            (Kind::String, _) if self.in_pieces => out.extend_from_slice(b"\"}"),
            (Kind::String, _) => append(out, &text(&self.string)),
            (Kind::Array, 0) => out.extend_from_slice(b"[]"),
            (Kind::Array, _) => out.push(b']'),
            (Kind::Stream, n) => {
                out.extend_from_slice(if n == 0 { b"{\"entries\":[" } else { b"" });
                out.push(b']');
                let rest = stream_tail(&self.stream).to_string();
                out.push(b',');
                out.extend_from_slice(rest.get(1..).unwrap_or_default().as_bytes());
            }
        }
        self.elements
    }
}

/// What XINFO STREAM FULL shows besides the entries.
fn stream_tail(stream: &Stream) -> Json {
    let groups: Vec<Json> = stream
        .groups
        .iter()
        .map(|group| {
            let consumers: Vec<Json> = group
                .consumers
                .iter()
                .map(|consumer| {
                    let pending: Vec<Json> = consumer
                        .pending
                        .iter()
                        .map(|p| json!({ "id": p.id.to_string(), "delivered_at_ms": p.delivered_at_ms, "deliveries": p.deliveries }))
                        .collect();
                    json!({
                        "name": text(&consumer.name), "seen_at_ms": consumer.seen_at_ms,
                        "active_at_ms": consumer.active_at_ms, "pending": pending,
                    })
                })
                .collect();
            let nacked: Vec<Json> = group
                .nacked
                .iter()
                .map(|(id, deliveries)| json!({ "id": id.to_string(), "deliveries": deliveries }))
                .collect();
            json!({
                "name": text(&group.name), "last_id": group.last_id.to_string(),
                "entries_read": group.entries_read, "consumers": consumers, "nacked": nacked,
            })
        })
        .collect();
    let info = stream.info;
    json!({
        "length": info.length,
        "last_id": info.last_id.to_string(),
        "max_deleted_id": info.max_deleted_id.map(|id| id.to_string()),
        "entries_added": info.entries_added,
        "groups": groups,
    })
}

fn texts(list: &ByteList) -> Vec<Json> {
    list.iter().map(text).collect()
}

/// Bytes as described at the top.
fn text(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

fn number(score: f64) -> Json {
    if score.is_finite() { json!(score) } else { json!(if score > 0.0 { "inf" } else { "-inf" }) }
}

fn append(out: &mut Vec<u8>, value: &Json) {
    // Writing JSON into a Vec cannot fail.
    let _ = serde_json::to_writer(out, value);
}
