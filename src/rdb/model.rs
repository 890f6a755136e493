//! A value as a whole, owned: for comparing, for showing, and for servers in memory. Migration itself does not use it.

use super::bytelist::ByteList;
use super::dump::ModuleId;
use super::elements::{self, Element};
use super::reader::Slice;
use super::stream::{Idmp, StreamId, StreamInfo};
use super::{Dialect, RdbError, describe_type, types};

/// A decoded value. Order is that of the file.
#[derive(Debug, Clone, PartialEq)]
pub enum DecodedValue {
    /// String.
    String(Vec<u8>),
    /// List, head first.
    List(Vec<Vec<u8>>),
    /// Set, in no meaningful order.
    Set(Vec<Vec<u8>>),
    /// Hash, in no meaningful order.
    Hash(Vec<HashField>),
    /// Sorted set; sort by (score, member) to compare.
    SortedSet(Vec<(Vec<u8>, f64)>),
    /// Stream.
    Stream(Box<Stream>),
    /// Array (8.8): present indexes with their values.
    Array {
        /// Next index that ARINSERT would use.
        insert_index: Option<u64>,
        /// Index and value, ascending.
        slots: Vec<(u64, Vec<u8>)>,
    },
    /// Written by a module, opaque.
    Module {
        /// Which module.
        module: ModuleId,
        /// Everything after the type byte.
        raw: Vec<u8>,
    },
}

/// A field of a hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashField {
    /// Name.
    pub field: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// When the field expires (Unix ms).
    pub expire_at_ms: Option<i64>,
}

/// A stream.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stream {
    /// Entries by ascending ID; fields and values alternate.
    pub entries: Vec<(StreamId, ByteList)>,
    /// What XINFO STREAM shows.
    pub info: StreamInfo,
    /// Consumer groups.
    pub groups: Vec<StreamGroup>,
    /// Settings of idempotent production (8.6 and newer).
    pub idmp: Option<Idmp>,
    /// Remembered productions.
    pub idmp_entries: Vec<IdmpEntry>,
}

/// A consumer group.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StreamGroup {
    /// Name.
    pub name: Vec<u8>,
    /// Last delivered ID.
    pub last_id: StreamId,
    /// Entries read counter; `None` if unknown.
    pub entries_read: Option<u64>,
    /// Consumers.
    pub consumers: Vec<StreamConsumer>,
    /// Pending entries that were given back, with their delivery count (8.8).
    pub nacked: Vec<(StreamId, u64)>,
}

/// A consumer of a group.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StreamConsumer {
    /// Name.
    pub name: Vec<u8>,
    /// Last attempt to read (Unix ms).
    pub seen_at_ms: i64,
    /// Last successful read (Unix ms, -1 for never; 7.2 and newer).
    pub active_at_ms: Option<i64>,
    /// Pending entries in the order of the file, which is ascending.
    pub pending: Vec<PendingEntry>,
}

/// A pending entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingEntry {
    /// The stream entry.
    pub id: StreamId,
    /// Last delivery (Unix ms).
    pub delivered_at_ms: i64,
    /// How often it was delivered.
    pub deliveries: u64,
}

/// A remembered production (8.6 and newer).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdmpEntry {
    /// Producer ID.
    pub producer: Vec<u8>,
    /// Idempotence ID.
    pub iid: Vec<u8>,
    /// The stream entry that it made.
    pub id: StreamId,
}

/// Decodes a value that is in memory. Offsets in errors count from the start of `raw`.
pub fn decode_value(type_byte: u8, raw: &[u8], dialect: Dialect) -> Result<DecodedValue, RdbError> {
    if let (types::MODULE_2, Some(module)) = (type_byte, ModuleId::of_value(raw)) {
        return Ok(DecodedValue::Module { module, raw: raw.to_vec() });
    }
    let mut value = DecodedValue::empty(type_byte, dialect);
    visit_value(type_byte, raw, dialect, &mut |element| {
        value.add(element);
        Ok(())
    })?;
    Ok(value)
}

/// Hands the elements of a value that is in memory to `sink`. An error of the sink ends it and is returned as it is.
pub fn visit_value(
    type_byte: u8,
    raw: &[u8],
    dialect: Dialect,
    sink: &mut dyn FnMut(Element<'_>) -> Result<(), RdbError>,
) -> Result<(), RdbError> {
    let mut src = Slice::new(raw);
    let visited = elements::visit(&mut src, type_byte, dialect, sink);
    let at = src.position() as u64;
    visited.map_err(|fault| fault.at(at, || describe_type(type_byte, dialect)))?;
    if src.remaining() > 0 {
        let what = describe_type(type_byte, dialect);
        return Err(RdbError::Corrupt { what, offset: at, reason: "bytes after the end of the value" });
    }
    Ok(())
}

impl DecodedValue {
    /// A value of the right kind without elements, to be filled with [`DecodedValue::add`].
    pub fn empty(type_byte: u8, dialect: Dialect) -> Self {
        match super::type_name(type_byte, dialect).0 {
            "list" => Self::List(Vec::new()),
            "set" => Self::Set(Vec::new()),
            "zset" => Self::SortedSet(Vec::new()),
            "hash" => Self::Hash(Vec::new()),
            "stream" => Self::Stream(Box::default()),
            "array" => Self::Array { insert_index: None, slots: Vec::new() },
            _ => Self::String(Vec::new()),
        }
    }

    /// Adds an element; one that belongs to another kind of value is ignored (the visitor never mixes them).
    pub fn add(&mut self, element: Element<'_>) {
        match (self, element) {
            (Self::String(text), Element::Text(piece)) => text.extend_from_slice(piece),
            (Self::List(items), Element::Item(item)) => items.push(item.to_vec()),
            (Self::Set(members), Element::Member(member)) => members.push(member.to_vec()),
            (Self::Hash(fields), Element::Field { field, value, expire_at_ms }) => {
                fields.push(HashField { field: field.to_vec(), value: value.to_vec(), expire_at_ms });
            }
            (Self::SortedSet(members), Element::Scored { member, score }) => {
                members.push((member.to_vec(), score))
            }
            (Self::Array { insert_index, .. }, Element::InsertIndex(index)) => *insert_index = Some(index),
            (Self::Array { slots, .. }, Element::Slot { index, value }) => {
                slots.push((index, value.to_vec()))
            }
            (Self::Stream(stream), element) => stream.add(element),
            _ => {}
        }
    }

    /// Hands the elements out again, as decoding did.
    pub fn visit(&self, sink: &mut dyn FnMut(Element<'_>) -> Result<(), RdbError>) -> Result<(), RdbError> {
        match self {
            Self::String(text) => sink(Element::Text(text)),
            Self::List(items) => items.iter().try_for_each(|item| sink(Element::Item(item))),
            Self::Set(members) => members.iter().try_for_each(|member| sink(Element::Member(member))),
            Self::Hash(fields) => fields.iter().try_for_each(|HashField { field, value, expire_at_ms }| {
                sink(Element::Field { field, value, expire_at_ms: *expire_at_ms })
            }),
            Self::SortedSet(members) => {
                members.iter().try_for_each(|(member, score)| sink(Element::Scored { member, score: *score }))
            }
            Self::Stream(stream) => stream.visit(sink),
            Self::Array { insert_index, slots } => {
                insert_index.map_or(Ok(()), |index| sink(Element::InsertIndex(index)))?;
                slots.iter().try_for_each(|(index, value)| sink(Element::Slot { index: *index, value }))
            }
            Self::Module { .. } => Ok(()),
        }
    }
}

impl Stream {
    /// Adds an element of a stream; others are ignored.
    pub fn add(&mut self, element: Element<'_>) {
        match element {
            Element::StreamEntry { id, fields } => self.entries.push((id, fields.clone())),
            Element::StreamInfo(info) => self.info = info,
            Element::Group { name, last_id, entries_read } => {
                self.groups.push(StreamGroup {
                    name: name.to_vec(),
                    last_id,
                    entries_read,
                    ..StreamGroup::default()
                });
            }
            Element::Consumer { name, seen_at_ms, active_at_ms } => {
                let consumer =
                    StreamConsumer { name: name.to_vec(), seen_at_ms, active_at_ms, pending: Vec::new() };
                self.groups.last_mut().into_iter().for_each(|group| group.consumers.push(consumer.clone()));
            }
            Element::Pending { id, delivered_at_ms, deliveries } => {
                if let Some(consumer) = self.groups.last_mut().and_then(|group| group.consumers.last_mut()) {
                    consumer.pending.push(PendingEntry { id, delivered_at_ms, deliveries });
                }
            }
            Element::Nacked { id, deliveries } => {
                if let Some(group) = self.groups.last_mut() {
                    group.nacked.push((id, deliveries));
                }
            }
            Element::IdmpEntry { producer, iid, id } => {
                self.idmp_entries.push(IdmpEntry { producer: producer.to_vec(), iid: iid.to_vec(), id });
            }
            Element::Idmp(idmp) => self.idmp = Some(idmp),
            _ => {}
        }
    }

    fn visit(&self, sink: &mut dyn FnMut(Element<'_>) -> Result<(), RdbError>) -> Result<(), RdbError> {
        for (id, fields) in &self.entries {
            sink(Element::StreamEntry { id: *id, fields })?;
        }
        sink(Element::StreamInfo(self.info))?;
        for group in &self.groups {
            sink(Element::Group {
                name: &group.name,
                last_id: group.last_id,
                entries_read: group.entries_read,
            })?;
            for StreamConsumer { name, seen_at_ms, active_at_ms, pending } in &group.consumers {
                sink(Element::Consumer { name, seen_at_ms: *seen_at_ms, active_at_ms: *active_at_ms })?;
                for &PendingEntry { id, delivered_at_ms, deliveries } in pending {
                    sink(Element::Pending { id, delivered_at_ms, deliveries })?;
                }
            }
            for &(id, deliveries) in &group.nacked {
                sink(Element::Nacked { id, deliveries })?;
            }
        }
        for IdmpEntry { producer, iid, id } in &self.idmp_entries {
            sink(Element::IdmpEntry { producer, iid, id: *id })?;
        }
        self.idmp.map_or(Ok(()), |idmp| sink(Element::Idmp(idmp)))
    }
}
