//! The RDB: each key becomes a RESTORE, a pair of an MSET, or the commands that rebuild it.

use std::sync::atomic::Ordering::Relaxed;

use super::super::batch::{Batch, CommandKind, PairVerb, Position};
use super::super::events::unix_ms;
use super::super::quarantine::{MOST_KEPT, without_content};
use super::super::spool::{Manifest, RdbReader, ReadEnd, SpoolError};
use super::super::whole;
use super::aside::{LargeKey, Name};
use super::databases::Emptied;
use super::{End, Replay, ReplayError};
use crate::config::{OnBadValue, OnExistingKey};
use crate::format::{self, escape};
use crate::rdb::commands::{Loss, Rebuild, append_resp, value_to_commands};
use crate::rdb::dump::{self, Route, Target};
use crate::rdb::{
    ByteList, Checksum, Decoder, Entry, Item, Limits, RdbError, Value, describe_type, types, visit_from,
};
use crate::resp::{append_array_header, append_bulk, append_decimal};
use crate::status::{EventLevel, Phase};

/// What became of a key of the RDB.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// In the batch, or left out with a reason.
    Done,
    /// Too large to hold, as it lies in the file or as commands.
    ElementByElement,
}

/// Bytes of commands in place of one value that are held at most; packed values can expand to many times their size.
const MOST_COMMANDS: usize = 8 << 20;
/// A string that goes in more than one command (bytes).
const PIECE: usize = 256 << 10;
/// No server takes less than this as one argument (`proto-max-bulk-len`).
const LEAST_BULK: u64 = 1 << 20;
/// The default of `target_redis_proto_max_bulk_len`: it stands for a destination at its own default, which takes every element that
/// can be read.
const USUAL_BULK: u64 = 512_000_000;

impl Replay {
    /// Replays the RDB, leaving out its first `skip` bytes, which a former run has applied. Returns `Some` when the
    /// generation ends; otherwise `batch` stands at the beginning of the stream.
    pub(super) fn rdb(
        &self,
        manifest: &Manifest,
        batch: &mut Batch,
        skip: u64,
    ) -> Result<Option<End>, ReplayError> {
        let spool = &self.shared.spool;
        let offset = manifest.rdb_offset;
        // After a broken full sync, keys that exist may be ours, from the former attempt: those are replaced silently.
        let written_before = self.written_before()?;
        let reader = match RdbReader::open(spool, manifest.generation, 0) {
            Ok(reader) => reader,
            // A newer full sync has removed the file between our looking and opening.
            Err(error) => match self.ended(manifest.generation) {
                Some(end) => return Ok(Some(end)),
                None => return Err(error.into()),
            },
        };
        let mut decoder = Decoder::new(reader, Limits::default());
        let mut version = 0;
        let mut stream_db = 0;
        let mut read = 0u64;
        let mut applied = skip;
        let mut on_existing_key = self.on_existing_key;
        loop {
            // A former run has applied this item if it had come past its first byte.
            let wanted = self.sync_rdb && decoder.position() >= skip;
            batch.at = decoder.position();
            let item = match decoder.next() {
                Ok(Some(item)) => item,
                Ok(None) => break,
                Err(error) => return self.rdb_end(error).map(Some),
            };
            let mut large = None;
            match item {
                Item::Header { version: found, newer_than_known, .. } => {
                    version = found;
                    self.shared.enter(Phase::RdbApply, None);
                    if newer_than_known {
                        self.events.warn(
                            &self.node(),
                            format!("RDB version {found} is newer than any known here; it is read for as long as its types are known"),
                        );
                    }
                    if !self.sync_rdb {
                        self.events.info(&self.node(), "sync_rdb = false: the RDB is read and not applied");
                    } else if self.empty_destination && skip == 0 && self.shard.is_some() {
                        // Others fill the same destination: each of them empties its own slots.
                        match self.empty_shard(manifest.generation, batch, &Emptied::All) {
                            Ok(Ok(())) => {}
                            Ok(Err(reason)) => self.events.error(
                                &self.node(),
                                format!("empty_db_before_sync = true, but the destination cannot be emptied: {reason}"),
                            ),
                            Err(end) => return Ok(Some(end)),
                        }
                    } else if self.empty_destination && skip == 0 {
                        self.events.warn(
                            &self.node(),
                            "empty_db_before_sync = true: the destination is emptied (FLUSHALL)",
                        );
                        batch.push(CommandKind::Rebuild, &[b"FLUSHALL"]);
                    }
                }
                Item::Aux { key: b"repl-stream-db", value } => {
                    stream_db =
                        std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                }
                Item::Aux { key, value } if wanted && !harmless(key) && key != b"lua" => {
                    self.unknown_aux(key, value);
                }
                Item::Aux { key: b"lua", value } if wanted => {
                    batch.push(CommandKind::Rebuild, &[b"SCRIPT", b"LOAD", value]);
                }
                Item::Function(source) if wanted => {
                    batch.push(CommandKind::Rebuild, &[b"FUNCTION", b"LOAD", b"REPLACE", source]);
                }
                Item::ModuleAux { module, bytes } if wanted => {
                    let name = module.name();
                    let text = format!(
                        "the RDB holds {bytes} bytes of module '{name}' outside of keys; no command can restore them"
                    );
                    self.events.reject(
                        &self.node(),
                        EventLevel::Warn,
                        "MODULE_AUX",
                        "not copied",
                        &name,
                        &text,
                    );
                }
                Item::SlotImport { job, ranges } => {
                    let job = escape(job, 60);
                    let text = format!(
                        "a slot import ({job}, {ranges} ranges) was running on the source; its keys belong to another master and are left out"
                    );
                    self.events.info(&self.node(), text);
                }
                Item::Entry(entry) if self.leaves_out(entry.key) => read += u64::from(wanted),
                Item::Entry(entry) if wanted && !self.databases.keeps(entry.db) => self.shared.filter_out(),
                Item::Entry(entry) if wanted && !self.databases.has_place_for(entry.db) => {
                    read += 1;
                    let raw = if let Value::Raw(raw) = entry.value { Some(raw) } else { None };
                    self.bad_value(&entry, raw, version, &self.databases.no_place(entry.db))?;
                }
                Item::Entry(mut entry) if wanted => {
                    read += 1;
                    entry.db = self.databases.there(entry.db);
                    on_existing_key =
                        self.on_existing(written_before.as_ref(), entry.db, entry.key, batch.at)?;
                    if self.entry(batch, &entry, version, on_existing_key)? == Step::ElementByElement {
                        large = Some(LargeKey {
                            db: entry.db,
                            key: entry.key.to_owned(),
                            expire_at_ms: entry.expire_at_ms,
                            type_byte: entry.type_byte,
                            dialect: entry.dialect,
                        });
                    }
                }
                // Applied by a former run; the record must hold it in any case, or it would be taken for a ghost.
                Item::Entry(entry) if self.sync_rdb && self.databases.keeps(entry.db) => {
                    self.note(self.databases.there(entry.db), entry.key);
                    if !self.record_some() {
                        return Ok(Some(End::Stopped));
                    }
                }
                Item::End { checksum: Checksum::Disabled } => {
                    self.events.info(&self.node(), "the RDB has no checksum (rdbchecksum no on the source)");
                }
                _ => {}
            }
            if let Some(large) = large {
                decoder.read_again();
                match self.too_long_in(manifest.generation, decoder.position(), &large) {
                    Some(reason) => self.set_aside(large.db, &large.key, &reason, &[])?,
                    None => {
                        let built =
                            self.large(&mut decoder, batch, manifest.generation, &large, on_existing_key)?;
                        if let Some(end) = built {
                            return Ok(Some(end));
                        }
                    }
                }
            }
            let position = decoder.position();
            if position <= skip {
                continue;
            }
            batch.progress.at = Position::Rdb { offset, bytes: position, db: batch.end_db };
            batch.source_bytes = position - applied;
            let starved =
                decoder.buffered() < 64 && spool.rdb_received() <= position + decoder.buffered() as u64;
            if batch.is_full(self.command_limit, self.byte_limit) || (starved && batch.entries > 0) {
                self.shared.entries_read.fetch_add(std::mem::take(&mut read), Relaxed);
                applied = position;
                if !self.send(batch) {
                    return Ok(Some(End::Stopped));
                }
            }
        }
        self.shared.entries_read.fetch_add(read, Relaxed);
        let behind = manifest.rdb_len.unwrap_or(0).saturating_sub(decoder.position());
        if manifest.rdb_lent && behind > 0 {
            let text = format!(
                "{behind} bytes stand behind the end of the RDB and are not applied: is this an append-only file that begins with an RDB?"
            );
            self.events.warn(&self.node(), text);
        }
        spool.rdb_ends_at(manifest.generation, decoder.position());
        batch.progress.at = Position::Rdb { offset, bytes: decoder.position(), db: batch.end_db };
        batch.source_bytes = decoder.position() - applied;
        batch.at = decoder.position();
        if let Some(end) = self.sweep(manifest.generation, batch)? {
            return Ok(Some(end));
        }
        if !self.send(batch) {
            return Ok(Some(End::Stopped));
        }
        // A batch of its own, with no entry that could be refused: only when all of the RDB is confirmed does the checkpoint
        // leave it. The SELECT is there so that it is sent at all.
        batch.progress.at = Position::Stream { offset, db: stream_db };
        batch.ends_rdb = true;
        batch.close_pairs();
        let db = self.databases.there(stream_db);
        if batch.commands.is_empty() {
            // Never without a command, so that the destination's checkpoint says that the RDB is whole there.
            batch.push(CommandKind::Select, &[b"SELECT", db.to_string().as_bytes()]);
            batch.end_db = db;
        }
        batch.select(db);
        batch.push(CommandKind::Select, &[b"SELECT", db.to_string().as_bytes()]);
        if !self.send_even_if_void(batch) {
            return Ok(Some(End::Stopped));
        }
        self.end_sweep(manifest.generation)
    }

    /// Appends one key of the RDB, unless it must be read element by element.
    fn entry(
        &self,
        batch: &mut Batch,
        entry: &Entry<'_>,
        version: u16,
        on_existing_key: OnExistingKey,
    ) -> Result<Step, ReplayError> {
        self.note(entry.db, entry.key);
        batch.select(entry.db);
        let raw = match entry.value {
            Value::Raw(raw) => Some(raw),
            Value::Large => None,
            Value::Empty => {
                let key = escape(entry.key, 60);
                let text =
                    format!("key '{key}' holds an empty collection, which no server keeps; it is left out");
                self.events.reject(&self.node(), EventLevel::Warn, "EMPTY", "left out", &key, &text);
                return Ok(Step::Done);
            }
            Value::Bad { raw, reason } => {
                self.bad_value(entry, raw, version, reason)?;
                return Ok(Step::Done);
            }
        };
        let route = self.acceptance.route(entry.type_byte, entry.dialect, version);
        if let Route::Impossible(reason) = route {
            self.bad_value(entry, raw, version, reason)?;
            return Ok(Step::Done);
        }
        let Some(raw) = raw else {
            self.tell_meta_lost(entry);
            return Ok(Step::ElementByElement);
        };
        let plain = entry.type_byte == types::STRING
            && entry.expire_at_ms.is_none()
            && entry.idle_seconds.is_none()
            && entry.freq.is_none()
            && entry.meta.is_none();
        let string = match entry.plain_string() {
            Ok(string) => string.filter(|value| plain && self.takes(value.len())),
            Err(cause) => {
                self.bad_value(entry, Some(raw), version, &cause.to_string())?;
                return Ok(Step::Done);
            }
        };
        if let Some(value) = string {
            match on_existing_key {
                OnExistingKey::Rewrite => batch.push_pair(PairVerb::Replace, entry.key, &value),
                OnExistingKey::Panic => batch.push_pair(PairVerb::OnlyIfNone, entry.key, &value),
                OnExistingKey::Skip => {
                    batch.push(CommandKind::SetIfMissing, &[b"SET", entry.key, &value, b"NX"]);
                }
            }
            batch.entries += 1;
            return Ok(Step::Done);
        }
        // 0 = always by commands, which cannot carry what only a module understands.
        let module = entry.type_byte == types::MODULE_2;
        let only_restore = module && self.max_bulk_len == 0;
        let meta = whole::meta_of(entry, self.target);
        let fits = only_restore || dump::payload_len(meta.len() + raw.len()) as u64 <= self.max_bulk_len;
        // Before Redis 5.0 the time is a command of its own, which must not meet a key that is kept.
        let ends_by_itself = entry.expire_at_ms.is_some() && !self.target.has_redis(5, 0);
        let in_one_step = !ends_by_itself || module || on_existing_key == OnExistingKey::Rewrite;
        match route {
            Route::Restore { version } if fits && in_one_step => {
                if meta.is_empty() {
                    self.tell_meta_lost(entry);
                }
                restore(batch, entry, meta, raw, version, on_existing_key, self.target);
            }
            // In pieces, and counted before it gets its name: a server may hold no string that is longer than its limit.
            _ if entry.type_byte == types::STRING && raw.len() > PIECE => {
                self.tell_meta_lost(entry);
                return Ok(Step::ElementByElement);
            }
            _ => return self.rebuild(batch, entry, raw, version, on_existing_key),
        }
        batch.entries += 1;
        Ok(Step::Done)
    }

    /// Whether the destination takes so many bytes in one piece; 0 = it is not asked to take payloads.
    fn takes(&self, bytes: usize) -> bool {
        self.max_bulk_len == 0 || bytes as u64 <= self.max_bulk_len
    }

    /// Longest key or element that can be sent; `None` = every one.
    fn element_limit(&self) -> Option<usize> {
        let limited = (1..USUAL_BULK).contains(&self.max_bulk_len);
        limited.then_some(self.max_bulk_len.max(LEAST_BULK) as usize)
    }

    /// Why a value cannot even go in pieces. What else is wrong with it is found again, and told, when it is built.
    fn too_long_in(&self, generation: u64, at: u64, large: &LargeKey) -> Option<String> {
        let limit = self.element_limit()?;
        let reader = RdbReader::open(&self.shared.spool, generation, at).ok()?;
        let mut longest = large.key.len();
        let mut see = |element: crate::rdb::Element<'_>| {
            longest = longest.max(element.longest());
            Ok(())
        };
        visit_from(reader, at, large.type_byte, large.dialect, &mut see).ok()?;
        (longest > limit).then(|| too_long(longest, limit))
    }

    fn tell_meta_lost(&self, entry: &Entry<'_>) {
        if entry.meta.is_some() {
            let key = escape(entry.key, 60);
            let text = format!(
                "key '{key}' carries metadata of a module, which only a RESTORE on Redis 8.6 and later could bring there"
            );
            self.events.reject(&self.node(), EventLevel::Warn, "KEY_META", "copied without", &key, &text);
        }
    }

    /// Rebuilds a value that fits into memory by commands. All of them are in one batch, which the destination applies as
    /// one transaction: nobody sees half a value.
    fn rebuild(
        &self,
        batch: &mut Batch,
        entry: &Entry<'_>,
        raw: &[u8],
        version: u16,
        on_existing_key: OnExistingKey,
    ) -> Result<Step, ReplayError> {
        let direct = on_existing_key == OnExistingKey::Rewrite;
        let building = self.building_key(entry.key);
        if !direct {
            self.note(entry.db, &building);
        }
        let rebuild = Rebuild {
            key: if direct { entry.key } else { &building },
            target: self.target,
            replace: true,
            expire_at_ms: entry.expire_at_ms.filter(|_| direct),
            pending_ids: Vec::new(),
        };
        // Collected first: a value that turns out to be damaged must not leave half of its commands in the batch.
        let mut commands = ByteList::default();
        let mut one = Vec::new();
        let mut too_much = false;
        let built = value_to_commands(entry.type_byte, raw, entry.dialect, rebuild, &mut |command| {
            if let Some(limit) = self.element_limit()
                && let Some(found) = command.iter().map(<[u8]>::len).max().filter(|found| *found > limit)
            {
                return Err(RdbError::Io(std::io::Error::other(too_long(found, limit))));
            }
            one.clear();
            append_resp(&mut one, command);
            commands.push(&one);
            too_much = commands.bytes() > MOST_COMMANDS;
            if too_much { Err(RdbError::Io(std::io::Error::other("too much to hold"))) } else { Ok(()) }
        });
        match built {
            Ok(loss) => {
                for command in commands.iter() {
                    batch.push_raw(CommandKind::Part, command);
                }
                if !direct {
                    // Nobody can take it away within a transaction: if it is missing, it has ended, or all of its fields have.
                    let name = Name { built: &building, key: entry.key, expire_at_ms: entry.expire_at_ms };
                    self.give_name(batch, name, on_existing_key, Some(0));
                }
                batch.entries += 1;
                self.tell_meta_lost(entry);
                self.report_loss(entry.key, loss);
            }
            Err(_) if too_much => {
                self.tell_meta_lost(entry);
                return Ok(Step::ElementByElement);
            }
            Err(cause) => self.bad_value(entry, Some(raw), version, &cause.to_string())?,
        }
        Ok(Step::Done)
    }

    /// A field of the file that no other server understands.
    fn unknown_aux(&self, key: &[u8], value: &[u8]) {
        let (name, shown) = (escape(key, 60), escape(value, 60));
        let (kind, text) = match key {
            b"keydb-subexpire-key" => (
                "SUBEXPIRE",
                format!(
                    "member '{shown}' of the key before it has an expiry of its own (KeyDB), which no other server knows; it will not expire"
                ),
            ),
            // Comes with the one above, and says when.
            b"keydb-subexpire-when" => return,
            _ => (
                "AUX",
                format!(
                    "the RDB holds the field '{name}' = '{shown}', which is not known here and not copied"
                ),
            ),
        };
        let example = if kind == "AUX" { name } else { shown };
        self.events.reject(&self.node(), EventLevel::Warn, kind, "not copied", &example, &text);
    }

    pub(super) fn report_loss(&self, key: &[u8], loss: Loss) {
        if let Some(words) = loss.describe() {
            let key = escape(key, 60);
            let text = format!("key '{key}': the destination cannot hold all of it: {words}");
            self.events.reject(&self.node(), EventLevel::Warn, "REDUCED", "copied without", &key, &text);
        }
    }

    /// Why the RDB could not be read on: in order, or by damage.
    pub(super) fn rdb_end(&self, error: RdbError) -> Result<End, ReplayError> {
        if let RdbError::Io(error) = &error {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<ReadEnd>()) {
                Some(ReadEnd::Stopped) => return Ok(End::Stopped),
                Some(ReadEnd::Superseded) => return Ok(End::Superseded),
                // The source is gone in the middle of the RDB: what has arrived of it is no state that ever was.
                Some(ReadEnd::Closed) => return Ok(End::Stopped),
                // The disk, not the source.
                None if error.raw_os_error().is_some() => {
                    let path = self.shared.spool.dir().to_owned();
                    let cause = std::io::Error::new(error.kind(), error.to_string());
                    return Err(SpoolError { action: "read the RDB in", path, cause }.into());
                }
                None => {}
            }
        }
        Err(self.rdb_error(error))
    }

    /// Sets a key aside, or stops, as the policy says.
    fn bad_value(
        &self,
        entry: &Entry<'_>,
        raw: Option<&[u8]>,
        version: u16,
        reason: &str,
    ) -> Result<(), ReplayError> {
        if let Some(raw) = raw.filter(|raw| raw.len() > MOST_KEPT) {
            let what = describe_type(entry.type_byte, entry.dialect);
            return self.set_aside(entry.db, entry.key, &without_content(reason, &what, raw.len()), &[]);
        }
        let command = raw.map_or(Vec::new(), |raw| {
            let meta = whole::meta_of(entry, self.target);
            if meta.is_empty() {
                self.tell_meta_lost(entry);
            }
            whole::restore(entry, raw, meta, version)
        });
        self.set_aside(entry.db, entry.key, reason, &command)
    }

    pub(super) fn set_aside(
        &self,
        db: u32,
        key: &[u8],
        reason: &str,
        command: &[u8],
    ) -> Result<(), ReplayError> {
        let shown = escape(key, 60);
        if self.policy.on_bad_value == OnBadValue::Stop {
            return Err(ReplayError::BadValue {
                address: self.shared.address.clone(),
                key: shown,
                reason: reason.into(),
            });
        }
        self.quarantine.add(&self.shared.address, db, key, reason, command)?;
        self.shared.errors.fetch_add(1, Relaxed);
        let text = format!(
            "key '{shown}' cannot be copied: {reason} (set aside in {})",
            self.quarantine.path().display()
        );
        self.events.reject(&self.node(), EventLevel::Error, "BAD VALUE", "quarantine", &shown, &text);
        Ok(())
    }
}

/// Whether a field of the file tells about the server and the file only, as all servers write them (RDB opcode AUX).
fn harmless(aux: &[u8]) -> bool {
    const KNOWN: [&[u8]; 13] = [
        b"redis-ver",
        b"valkey-ver",
        b"redis-bits",
        b"ctime",
        b"used-mem",
        b"aof-preamble",
        b"aof-base",
        b"repl-stream-db",
        b"repl-id",
        b"repl-offset",
        b"slot-info",
        // Redis: slots on their way to it, for its own replicas.
        b"cluster-asm-task",
        // KeyDB: a version of each key, for its own replication.
        b"mvcc-tstamp",
    ];
    // Redis only logs those that begin with %.
    KNOWN.contains(&aux) || aux.starts_with(b"%")
}

fn too_long(bytes: usize, limit: usize) -> String {
    let (bytes, limit) = (format::number(bytes as u64), format::number(limit as u64));
    format!(
        "its key or an element has {bytes} bytes, more than the {limit} that the destination takes at once (target_redis_proto_max_bulk_len)"
    )
}

/// Appends a RESTORE that carries the value as it lies in the RDB.
fn restore(
    batch: &mut Batch,
    entry: &Entry<'_>,
    meta: &[u8],
    raw: &[u8],
    version: u16,
    on_existing_key: OnExistingKey,
    target: Target,
) {
    let (kind, replace) = match on_existing_key {
        OnExistingKey::Panic => (CommandKind::Restore, false),
        OnExistingKey::Rewrite => (CommandKind::Restore, true),
        OnExistingKey::Skip => (CommandKind::RestoreIfMissing, false),
    };
    batch.begin(kind);
    // ABSTTL, IDLETIME and FREQ came with Redis 5.0.
    let since_5 = target.has_redis(5, 0);
    let absolute = entry.expire_at_ms.is_some() && since_5;
    let idle = entry.idle_seconds.filter(|_| since_5);
    let freq = entry.freq.filter(|_| since_5 && idle.is_none());
    let out = &mut batch.bytes;
    let count =
        4 + usize::from(replace) + usize::from(absolute) + 2 * usize::from(idle.is_some() || freq.is_some());
    append_array_header(out, count);
    append_bulk(out, b"RESTORE");
    append_bulk(out, entry.key);
    match entry.expire_at_ms {
        // 0 would mean "no expiry"; any time in the past means the same to the destination.
        Some(at) if since_5 => append_bulk(out, at.max(1).to_string().as_bytes()),
        // Counted from when it arrives, however long it waited until then: only for values that nothing else can carry.
        Some(at) if !replace => {
            let left = at.saturating_sub(unix_ms() as i64);
            append_bulk(out, left.max(1).to_string().as_bytes());
        }
        Some(_) | None => append_bulk(out, b"0"),
    }
    out.push(b'$');
    append_decimal(out, dump::payload_len(meta.len() + raw.len()) as u64);
    out.extend_from_slice(b"\r\n");
    dump::append_payload_with_meta(out, meta, entry.type_byte, raw, version);
    out.extend_from_slice(b"\r\n");
    if replace {
        append_bulk(out, b"REPLACE");
    }
    if absolute {
        append_bulk(out, b"ABSTTL");
    }
    if let Some(idle) = idle {
        append_bulk(out, b"IDLETIME");
        append_bulk(out, idle.to_string().as_bytes());
    } else if let Some(freq) = freq {
        append_bulk(out, b"FREQ");
        append_bulk(out, freq.to_string().as_bytes());
    }
    if let Some(at) = entry.expire_at_ms.filter(|_| replace && !since_5) {
        batch.push(kind, &[b"PEXPIREAT", entry.key, at.to_string().as_bytes()]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::super::super::batch::tests::batch;
    use super::super::super::writer::restored_until;
    use super::*;
    use crate::rdb::Dialect;

    fn sent(target: Target, existing: OnExistingKey) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let mut batch = batch(dir.path());
        let value = Value::Raw(b"\x01v");
        let entry = Entry {
            db: 0,
            key: b"k",
            type_byte: types::STRING,
            dialect: Dialect::Redis,
            expire_at_ms: Some(4_000_000_000_000),
            idle_seconds: None,
            freq: None,
            meta: None,
            value,
        };
        restore(&mut batch, &entry, &[], b"\x01v", 6, existing, target);
        let ends = restored_until(&batch.arguments(0), &batch.arguments(1));
        let near = ends.is_some_and(|at| (at - 4_000_000_000_000).abs() < 60_000);
        assert!(near, "the value can be rebuilt with its time: {ends:?}");
        let words = |index| batch.arguments(index).into_iter().map(|word| word.escape_ascii().to_string());
        let without_payload = |index| words(index).filter(|word| !word.contains('\\')).collect::<Vec<_>>();
        (0..batch.commands.len()).map(|index| without_payload(index).join(" ")).collect()
    }

    /// A time that is left would be counted from when the batch arrives, which may have waited for long.
    #[test]
    fn times_are_absolute_also_before_5_0() {
        use OnExistingKey::{Panic, Rewrite};
        let expected = ["RESTORE k 4000000000000 REPLACE ABSTTL"];
        assert_eq!(sent(Target::redis(5, 0), Rewrite), expected);
        let expected = ["RESTORE k 0 REPLACE", "PEXPIREAT k 4000000000000"];
        assert_eq!(sent(Target::redis(4, 0), Rewrite), expected);
        // It would meet a key that is kept: such keys go by commands, except for modules, which cannot.
        assert_eq!(sent(Target::redis(4, 0), Panic).len(), 1);
    }
}
