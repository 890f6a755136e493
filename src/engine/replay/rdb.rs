//! The RDB: each key becomes a RESTORE, a pair of an MSET, or the commands that rebuild it.

use std::sync::atomic::Ordering::Relaxed;

use super::super::batch::{Batch, CommandKind, PairVerb, Position};
use super::super::events::unix_ms;
use super::super::spool::{Manifest, RdbReader, ReadEnd, SpoolError};
use super::aside::{LargeKey, Name};
use super::databases::Emptied;
use super::{End, Replay, ReplayError};
use crate::config::{OnBadValue, OnExistingKey};
use crate::format::escape;
use crate::rdb::commands::{Loss, Rebuild, append_resp, value_to_commands};
use crate::rdb::dump::{self, Route, Target};
use crate::rdb::{ByteList, Checksum, Decoder, Entry, Item, Limits, RdbError, Value, types};
use crate::resp::{append_array_header, append_bulk, append_decimal};
use crate::status::{EventLevel, Phase};

/// What became of a key of the RDB.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// In the batch, or left out with a reason.
    Done,
    /// Too large to hold.
    ElementByElement,
}

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
            if let Some(large) = large
                && let Some(end) =
                    self.large(&mut decoder, batch, manifest.generation, &large, on_existing_key)?
            {
                return Ok(Some(end));
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
            Value::Raw(raw) => raw,
            Value::Large => return Ok(Step::ElementByElement),
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
        if entry.meta.is_some() && !self.target.has_redis(8, 6) {
            let key = escape(entry.key, 60);
            let text = format!("key '{key}' carries metadata of a module, which the destination cannot hold");
            self.events.reject(&self.node(), EventLevel::Warn, "KEY_META", "copied without", &key, &text);
        }
        let plain = entry.type_byte == types::STRING
            && entry.expire_at_ms.is_none()
            && entry.idle_seconds.is_none()
            && entry.freq.is_none()
            && entry.meta.is_none();
        let string = match entry.plain_string() {
            Ok(string) => string.filter(|_| plain),
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
        let route = self.acceptance.route(entry.type_byte, entry.dialect, version);
        // 0 = always by commands, which cannot carry what only a module understands.
        let only_restore = entry.type_byte == types::MODULE_2 && self.max_bulk_len == 0;
        let fits = only_restore || dump::payload_len(raw.len()) as u64 <= self.max_bulk_len;
        match route {
            Route::Restore { version } if fits => {
                restore(batch, entry, raw, version, on_existing_key, self.target);
            }
            Route::Restore { .. } | Route::Commands => {
                return self.rebuild(batch, entry, raw, version, on_existing_key);
            }
            Route::Impossible(reason) => {
                self.bad_value(entry, Some(raw), version, reason)?;
                return Ok(Step::Done);
            }
        }
        batch.entries += 1;
        Ok(Step::Done)
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
        let built = value_to_commands(entry.type_byte, raw, entry.dialect, rebuild, &mut |command| {
            one.clear();
            append_resp(&mut one, command);
            commands.push(&one);
            Ok(())
        });
        match built {
            Ok(loss) => {
                for command in commands.iter() {
                    batch.push_raw(CommandKind::Rebuild, command);
                }
                if !direct {
                    // Nobody can take it away within a transaction: if it is missing, all of its fields have ended.
                    let name = Name { built: &building, key: entry.key, expire_at_ms: entry.expire_at_ms };
                    self.give_name(batch, name, on_existing_key, true);
                }
                batch.entries += 1;
                self.report_loss(entry.key, loss);
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
        let mut command = Vec::new();
        if let Some(raw) = raw {
            let mut payload = Vec::new();
            dump::append_payload(&mut payload, entry.type_byte, raw, version);
            // To be sent by hand or by `quarantine replay`, at any later time.
            append_array_header(&mut command, if entry.expire_at_ms.is_some() { 5 } else { 4 });
            let ttl = entry.expire_at_ms.unwrap_or(0).to_string();
            for argument in [&b"RESTORE"[..], entry.key, ttl.as_bytes(), &payload] {
                append_bulk(&mut command, argument);
            }
            if entry.expire_at_ms.is_some() {
                append_bulk(&mut command, b"ABSTTL");
            }
        }
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

/// Appends a RESTORE that carries the value as it lies in the RDB.
fn restore(
    batch: &mut Batch,
    entry: &Entry<'_>,
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
    let before_5 = |at: i64| at.saturating_sub(unix_ms() as i64);
    let idle = entry.idle_seconds.filter(|_| since_5);
    let freq = entry.freq.filter(|_| since_5 && idle.is_none());
    let meta = entry.meta.filter(|_| target.has_redis(8, 6)).unwrap_or_default();
    let out = &mut batch.bytes;
    let count =
        4 + usize::from(replace) + usize::from(absolute) + 2 * usize::from(idle.is_some() || freq.is_some());
    append_array_header(out, count);
    append_bulk(out, b"RESTORE");
    append_bulk(out, entry.key);
    match entry.expire_at_ms {
        // 0 would mean "no expiry"; any time in the past means the same to the destination.
        Some(at) if since_5 => append_bulk(out, at.max(1).to_string().as_bytes()),
        Some(at) => append_bulk(out, before_5(at).max(1).to_string().as_bytes()),
        None => append_bulk(out, b"0"),
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
}
