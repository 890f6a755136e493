//! Streams as commands: XADD per entry, then XSETID, groups, consumers and claims.
//!
//! The odd thing: since Redis 7.0 XCLAIM refuses entries that are gone from the stream, yet such entries may be pending. They
//! are added to the stream, claimed, and deleted again, for which their IDs must be known before the first entry is
//! ([`super::Rebuild::pending_ids`]).

use super::super::RdbError;
use super::super::elements::Element;
use super::super::stream::{StreamId, StreamInfo};
use super::{Batch, CommandBuilder, CommandSink, FULL_ARGUMENTS};

/// Group that is created and destroyed to make a stream without entries.
const HELPER_GROUP: &[u8] = b"shakedeck";
/// Consumer that gets the entries that were given back (8.8) on destinations that know no such state.
const NACKED_CONSUMER: &[u8] = b"shakedeck-nacked";

/// What must be remembered of a stream while it is rebuilt.
#[derive(Default)]
pub(super) struct StreamState {
    info: Option<StreamInfo>,
    live: u64,
    first: Option<StreamId>,
    /// Last real entry.
    top: StreamId,
    /// Last entry added, real or not.
    last: StreamId,
    /// Place in `pending_ids`: those before it are smaller than the last entry.
    next_pending: usize,
    /// Entries added only to be claimed, and to be trimmed away again: before the first real entry.
    before_first: u64,
    /// The same, to be deleted again: after the first real entry.
    deleted: Vec<StreamId>,
    group: Vec<u8>,
    consumer: Vec<u8>,
}

impl CommandBuilder<'_> {
    /// Adds an element of a stream.
    pub(super) fn add_stream(&mut self, element: Element<'_>, sink: CommandSink<'_>) -> Result<(), RdbError> {
        match element {
            Element::StreamEntry { id, fields } => {
                self.add_pending_before(Some(id), sink)?;
                self.flush(sink)?;
                self.stream.live += 1;
                self.stream.first.get_or_insert(id);
                (self.stream.top, self.stream.last) = (id, id);
                self.command.push(b"XADD");
                self.command.push(self.rebuild.key);
                self.command.push(id.to_string().as_bytes());
                fields.iter().for_each(|field| self.command.push(field));
                let sent = sink(&self.command);
                self.command.clear();
                sent
            }
            Element::StreamInfo(info) => {
                self.add_pending_before(None, sink)?;
                self.stream.info = Some(info);
                if self.stream.live + self.helpers() == 0 {
                    let key = self.rebuild.key;
                    self.send(sink, &[b"XGROUP", b"CREATE", key, HELPER_GROUP, b"0", b"MKSTREAM"])?;
                    self.send(sink, &[b"XGROUP", b"DESTROY", key, HELPER_GROUP])?;
                }
                self.set_id(sink)
            }
            Element::Group { name, last_id, entries_read } => {
                self.stream.group = name.to_vec();
                self.stream.consumer.clear();
                let (id, read) = (last_id.to_string(), entries_read.map(|n| n.to_string()));
                let create: [&[u8]; 5] = [b"XGROUP", b"CREATE", self.rebuild.key, name, id.as_bytes()];
                match read {
                    Some(read) if self.rebuild.target.has_redis(7, 0) => {
                        self.send(sink, &[&create[..], &[b"ENTRIESREAD", read.as_bytes()]].concat())
                    }
                    _ => self.send(sink, &create),
                }
            }
            Element::Consumer { name, .. } => self.create_consumer(name, sink),
            Element::Pending { id, delivered_at_ms, deliveries } => {
                self.claim(id, delivered_at_ms, deliveries, sink)
            }
            Element::Nacked { id, deliveries } => {
                self.loss.nacked += 1;
                if self.stream.consumer != NACKED_CONSUMER {
                    self.create_consumer(NACKED_CONSUMER, sink)?;
                }
                self.claim(id, 0, deliveries, sink)
            }
            Element::IdmpEntry { .. } => {
                self.loss.idmp_entries += 1;
                Ok(())
            }
            Element::Idmp(idmp) if self.rebuild.target.has_redis(8, 6) => {
                let key = self.rebuild.key;
                let (duration, most) = (idmp.duration.to_string(), idmp.max_entries.to_string());
                let settings: [&[u8]; 4] =
                    [b"IDMP-DURATION", duration.as_bytes(), b"IDMP-MAXSIZE", most.as_bytes()];
                self.send(sink, &[&[b"XCFGSET", key], &settings[..]].concat())
            }
            Element::Idmp(idmp) => {
                self.loss.idmp_settings += u64::from(!idmp.is_usual());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Adds the pending entries below `id` (or all that are left) that are not in the stream any more, so that they can be
    /// claimed. Before 7.0 XCLAIM takes them as they are.
    fn add_pending_before(&mut self, id: Option<StreamId>, sink: CommandSink<'_>) -> Result<(), RdbError> {
        while let Some(&pending) = self.rebuild.pending_ids.get(self.stream.next_pending) {
            if id.is_some_and(|id| pending > id) {
                break;
            }
            self.stream.next_pending += 1;
            // An entry with this ID was or is about to be added; 0-0 cannot be added at all.
            if Some(pending) == id || pending <= self.stream.last || !self.rebuild.target.has_redis(7, 0) {
                continue;
            }
            self.send(sink, &[b"XADD", self.rebuild.key, pending.to_string().as_bytes(), b"", b""])?;
            self.stream.last = pending;
            match self.stream.first {
                None => self.stream.before_first += 1,
                Some(_) => self.stream.deleted.push(pending),
            }
        }
        Ok(())
    }

    fn helpers(&self) -> u64 {
        self.stream.before_first + self.stream.deleted.len() as u64
    }

    /// XSETID: what XINFO STREAM shows. The server wants the last ID not below the top entry and the counter not below the
    /// length.
    fn set_id(&mut self, sink: CommandSink<'_>) -> Result<(), RdbError> {
        let Some(info) = self.stream.info else { return Ok(()) };
        let last = info.last_id.max(self.stream.last);
        let id = last.to_string();
        let mut command: Vec<&[u8]> = vec![b"XSETID", self.rebuild.key, id.as_bytes()];
        let lowest = self.stream.live + self.helpers();
        let added = info.entries_added.unwrap_or(lowest).max(lowest).to_string();
        let deleted = info.max_deleted_id.filter(|&id| id <= last).map(|id| id.to_string());
        if self.rebuild.target.has_redis(7, 0) {
            command.extend([b"ENTRIESADDED", added.as_bytes()]);
            if let Some(deleted) = &deleted {
                command.extend([b"MAXDELETEDID", deleted.as_bytes()]);
            }
        }
        self.send(sink, &command)
    }

    fn create_consumer(&mut self, name: &[u8], sink: CommandSink<'_>) -> Result<(), RdbError> {
        self.flush(sink)?;
        self.stream.consumer = name.to_vec();
        let group = std::mem::take(&mut self.stream.group);
        let key = self.rebuild.key;
        let sent = if self.rebuild.target.has_redis(6, 2) {
            self.send(sink, &[b"XGROUP", b"CREATECONSUMER", key, &group, name])
        } else {
            // Reading its own history makes a consumer, and a new one has none.
            self.send(sink, &[b"XREADGROUP", b"GROUP", &group, name, b"COUNT", b"1", b"STREAMS", key, b"0"])
        };
        self.stream.group = group;
        sent
    }

    fn claim(
        &mut self,
        id: StreamId,
        at: i64,
        deliveries: u64,
        sink: CommandSink<'_>,
    ) -> Result<(), RdbError> {
        self.open(Batch::Claim(at, deliveries), b"XCLAIM", sink)?;
        if self.command.len() == 2 {
            self.command.push(&self.stream.group);
            self.command.push(&self.stream.consumer);
            self.command.push(b"0");
        }
        self.command.push(id.to_string().as_bytes());
        Ok(())
    }

    /// Takes the entries that were added only to be claimed out again. Trimming leaves no trace, but reaches only the front.
    pub(super) fn remove_helpers(&mut self, sink: CommandSink<'_>) -> Result<(), RdbError> {
        if self.helpers() == 0 {
            return Ok(());
        }
        let key = self.rebuild.key;
        for part in std::mem::take(&mut self.stream.deleted).chunks(FULL_ARGUMENTS) {
            let ids: Vec<String> = part.iter().map(ToString::to_string).collect();
            let mut delete: Vec<&[u8]> = vec![b"XDEL", key];
            delete.extend(ids.iter().map(|id| id.as_bytes()));
            self.send(sink, &delete)?;
        }
        if std::mem::take(&mut self.stream.before_first) > 0 {
            match self.stream.first {
                Some(first) => {
                    self.send(sink, &[b"XTRIM", key, b"MINID", b"=", first.to_string().as_bytes()])?;
                }
                None => self.send(sink, &[b"XTRIM", key, b"MAXLEN", b"=", b"0"])?,
            }
        }
        self.stream.last = self.stream.top;
        self.set_id(sink)
    }
}
