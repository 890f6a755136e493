//! Streams: nodes (a listpack of entries relative to a master ID), then what XINFO STREAM shows, then groups with their
//! pending entries.
//!
//! The odd thing: a group's pending entries stand twice, once for the group with time and count and once per consumer with the
//! ID alone, so the group's are held until its consumers have been read.

use super::Fault;
use super::bytelist::ByteList;
use super::elements::{Element, Sink, blob, emit};
use super::packed::{Entries, Listpack, Packed};
use super::reader::Source;

/// ID of a stream entry. Ordered as Redis orders them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct StreamId {
    /// Milliseconds part.
    pub ms: u64,
    /// Sequence part.
    pub seq: u64,
}

impl StreamId {
    /// Sixteen bytes, big-endian (`streamEncodeID`).
    fn from_key(key: [u8; 16]) -> Self {
        let both = u128::from_be_bytes(key);
        Self { ms: (both >> 64) as u64, seq: both as u64 }
    }

    fn read(src: &mut impl Source) -> Result<Self, Fault> {
        Ok(Self { ms: src.length()?, seq: src.length()? })
    }
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// What a stream knows about itself besides its entries. Options are absent in files of servers that did not keep them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamInfo {
    /// Number of entries as the file says. Redis 5 files exist where this is wrong.
    pub length: u64,
    /// ID of the last entry ever added.
    pub last_id: StreamId,
    /// ID of the first entry (7.0 and newer).
    pub first_id: Option<StreamId>,
    /// Highest ID ever deleted (7.0 and newer).
    pub max_deleted_id: Option<StreamId>,
    /// Entries added in the stream's life (7.0 and newer).
    pub entries_added: Option<u64>,
}

/// Settings of idempotent production (8.6 and newer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Idmp {
    /// How long producer IDs are remembered (seconds).
    pub duration: u64,
    /// How many are remembered per producer.
    pub max_entries: u64,
    /// IDs ever added.
    pub added: u64,
    /// Duplicates ever refused.
    pub duplicates: u64,
}

impl Idmp {
    /// Whether a stream that nobody has configured (XCFGSET) looks like this, on a server that nobody has configured.
    pub fn is_usual(&self) -> bool {
        (self.duration, self.max_entries) == (100, 100)
    }
}

/// A pending entry of a group, until its consumer is known.
struct Waiting {
    id: StreamId,
    delivered_at_ms: i64,
    deliveries: u64,
    owned: bool,
}

/// Feeds a stream of this version (1 to 5, see [`super::walk::stream_version`]) to the sink.
pub(crate) fn visit(src: &mut impl Source, version: u8, sink: Sink<'_>) -> Result<(), Fault> {
    let mut scratch = Vec::new();
    let mut fields = ByteList::default();
    for _ in 0..src.length()? {
        src.string(&mut scratch)?;
        let key =
            scratch.as_slice().try_into().map_err(|_| Fault::Bad("stream node key that is not 16 bytes"))?;
        visit_node(StreamId::from_key(key), blob(src, &mut scratch)?, &mut fields, sink)?;
    }
    let mut info =
        StreamInfo { length: src.length()?, last_id: StreamId::read(src)?, ..StreamInfo::default() };
    if version >= 2 {
        info.first_id = Some(StreamId::read(src)?);
        info.max_deleted_id = Some(StreamId::read(src)?);
        info.entries_added = Some(src.length()?);
    }
    emit(sink, Element::StreamInfo(info))?;
    for _ in 0..src.length()? {
        visit_group(src, version, sink)?;
    }
    if version >= 4 {
        let (duration, max_entries) = (src.length()?, src.length()?);
        let (mut producer, mut iid) = (Vec::new(), Vec::new());
        for _ in 0..src.length()? {
            src.string(&mut producer)?;
            for _ in 0..src.length()? {
                src.string(&mut iid)?;
                let id = StreamId::read(src)?;
                emit(sink, Element::IdmpEntry { producer: &producer, iid: &iid, id })?;
            }
        }
        let (added, duplicates) = (src.length()?, src.length()?);
        emit(sink, Element::Idmp(Idmp { duration, max_entries, added, duplicates }))?;
    }
    Ok(())
}

/// One node: `count, deleted, nfields, names…, 0`, then per entry `flags, ms, seq, [nfields, names and] values…, length`.
/// IDs are differences to the master ID, and wrap.
fn visit_node(master: StreamId, blob: &[u8], fields: &mut ByteList, sink: Sink<'_>) -> Result<(), Fault> {
    const DELETED: i64 = 1;
    const SAME_FIELDS: i64 = 2;
    let mut entries = Listpack::new(blob)?;
    let announced = (entries.expect()?.int()?, entries.expect()?.int()?);
    let (mut live, mut gone) = (0, 0);
    let mut names: Vec<Packed<'_>> = Vec::new();
    for _ in 0..entries.expect()?.int()? {
        names.push(entries.expect()?);
    }
    entries.expect()?;
    let mut digits = Vec::new();
    while !entries.at_end() {
        let flags = entries.expect()?.int()?;
        let ms = master.ms.wrapping_add(entries.expect()?.int()? as u64);
        let seq = master.seq.wrapping_add(entries.expect()?.int()? as u64);
        fields.clear();
        if flags & SAME_FIELDS != 0 {
            for name in &names {
                fields.push(name.text(&mut digits));
                fields.push(entries.expect()?.text(&mut digits));
            }
        } else {
            for _ in 0..entries.expect()?.int()? {
                fields.push(entries.expect()?.text(&mut digits));
                fields.push(entries.expect()?.text(&mut digits));
            }
        }
        entries.expect()?;
        if flags & DELETED != 0 {
            gone += 1;
        } else {
            live += 1;
            emit(sink, Element::StreamEntry { id: StreamId { ms, seq }, fields })?;
        }
    }
    entries.next()?;
    if announced == (live, gone) {
        Ok(())
    } else {
        Err(Fault::Bad("stream node whose counts and entries disagree"))
    }
}

fn visit_group(src: &mut impl Source, version: u8, sink: Sink<'_>) -> Result<(), Fault> {
    let mut name = Vec::new();
    src.string(&mut name)?;
    let last_id = StreamId::read(src)?;
    // u64::MAX is "unknown" (SCG_INVALID_ENTRIES_READ).
    let entries_read = if version >= 2 { Some(src.length()?).filter(|&n| n != u64::MAX) } else { None };
    emit(sink, Element::Group { name: &name, last_id, entries_read })?;

    let mut waiting = Vec::new();
    for _ in 0..src.length()? {
        let id = StreamId::from_key(src.array()?);
        waiting.push(Waiting { id, delivered_at_ms: src.i64_le()?, deliveries: src.length()?, owned: false });
    }
    if !waiting.is_sorted_by(|a, b| a.id < b.id) {
        return Err(Fault::Bad("pending entries out of order"));
    }
    for _ in 0..src.length()? {
        src.string(&mut name)?;
        let seen_at_ms = src.i64_le()?;
        let active_at_ms = if version >= 3 { Some(src.i64_le()?) } else { None };
        emit(sink, Element::Consumer { name: &name, seen_at_ms, active_at_ms })?;
        for _ in 0..src.length()? {
            let found = claim(&mut waiting, StreamId::from_key(src.array()?))?;
            emit(
                sink,
                Element::Pending {
                    id: found.id,
                    delivered_at_ms: found.delivered_at_ms,
                    deliveries: found.deliveries,
                },
            )?;
        }
    }
    if version >= 5 {
        for _ in 0..src.length()? {
            let found = claim(&mut waiting, StreamId::from_key(src.array()?))?;
            emit(sink, Element::Nacked { id: found.id, deliveries: found.deliveries })?;
        }
    }
    if waiting.iter().all(|entry| entry.owned) {
        Ok(())
    } else {
        Err(Fault::Bad("pending entry that belongs to no consumer"))
    }
}

/// Finds the pending entry of a consumer among the group's; each has one owner.
fn claim(waiting: &mut [Waiting], id: StreamId) -> Result<&Waiting, Fault> {
    let found = waiting
        .binary_search_by_key(&id, |entry| entry.id)
        .ok()
        .and_then(|at| waiting.get_mut(at))
        .ok_or(Fault::Bad("pending entry of a consumer that its group does not have"))?;
    if std::mem::replace(&mut found.owned, true) {
        return Err(Fault::Bad("pending entry with two owners"));
    }
    Ok(found)
}
