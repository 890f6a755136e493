//! One thread per source: reads the spool, turns what it finds into batches, hands them to the writer.
//!
//! Decoding is CPU work and reading files blocks, so this is a thread of its own and not a task. It reads the RDB while it
//! is still arriving, then the stream, which begins where the RDB ends: one queue to one writer keeps that order. A full
//! queue stops this thread; the spool grows, memory does not.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::mpsc;

use super::batch::{BATCH_BYTES, Batch, CommandKind, PairVerb, Position, Progress};
use super::events::EventLog;
use super::quarantine::Quarantine;
use super::source::SourceShared;
use super::spool::{Manifest, RdbReader, ReadEnd, SpoolError, StreamReadError, StreamReader};
use crate::config::{Filter, OnBadValue, OnExistingKey};
use crate::format::escape;
use crate::rdb::commands::{CommandBuilder, Loss, PendingIds, Rebuild, append_resp, value_to_commands};
use crate::rdb::dump::{self, Route, Target};
use crate::rdb::{
    ByteList, Checksum, Decoder, Dialect, Entry, Item, Limits, RdbError, Value, types, visit_from,
};
use crate::resp::{CommandParser, RespError, append_array_header, append_bulk};
use crate::status::{EventLevel, Phase};

/// What one read of the stream may bring.
const READ_BYTES: usize = 256 * 1024;

/// Why replay ended.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The RDB is damaged or of an unknown kind.
    #[error("source {address}: {cause}. Run 'redis-check-rdb' on a dump of the source, and look at its log.")]
    Rdb {
        /// The source.
        address: String,
        /// Where and what.
        cause: RdbError,
    },
    /// The stream is damaged.
    #[error("source {address}: the stream is damaged after offset {offset}: {cause}")]
    Stream {
        /// The source.
        address: String,
        /// Offset before the bad command.
        offset: u64,
        /// Where and what.
        cause: RespError,
    },
    /// The spool or the quarantine file.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The spool lacks bytes.
    #[error(transparent)]
    Read(StreamReadError),
    /// Policy `on_bad_value = "stop"`.
    #[error(
        "source {address}: key '{key}' cannot be copied: {reason}. [policy] on_bad_value = \"stop\"; set it to \"quarantine\" to set such keys aside and go on."
    )]
    BadValue {
        /// The source.
        address: String,
        /// The key, escaped.
        key: String,
        /// Why.
        reason: String,
    },
}

/// How replay ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayEnd {
    /// The run is stopping.
    Stopped,
    /// The RDB is handed over and the stream is not wanted.
    RdbOnly,
}

/// Internal: why the present generation ended.
enum End {
    Stopped,
    Superseded,
    RdbOnly,
}

/// What became of a key of the RDB.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// In the batch, or left out with a reason.
    Done,
    /// Too large to hold.
    ElementByElement,
}

/// A key whose value is read element by element.
struct LargeKey {
    db: u32,
    key: Vec<u8>,
    expire_at_ms: Option<i64>,
    type_byte: u8,
    dialect: Dialect,
}

/// Where a value is built that cannot be written in one piece. One at a time and source, in the key's own database.
pub const BUILDING_KEY: &[u8] = b"shakedeck:building";

/// The thread of one source.
pub struct Replay {
    /// What it tells.
    pub shared: Arc<SourceShared>,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// Keys that cannot be copied.
    pub quarantine: Arc<Quarantine>,
    /// What is kept and dropped.
    pub filter: Filter,
    /// `sync_rdb`
    pub sync_rdb: bool,
    /// `sync_aof`
    pub sync_aof: bool,
    /// `rdb_restore_command_behavior`
    pub on_existing_key: OnExistingKey,
    /// `[policy] on_bad_value`
    pub on_bad_value: OnBadValue,
    /// `empty_db_before_sync`
    pub empty_destination: bool,
    /// What the destination is.
    pub target: Target,
    /// `target_redis_proto_max_bulk_len`
    pub max_bulk_len: u64,
    /// Most commands of a batch.
    pub command_limit: usize,
    /// Bytes at which a batch is sent at the latest.
    pub byte_limit: usize,
    /// Where a former run stood, as the destination says.
    pub resume: Option<Progress>,
    /// Full syncs up to this one are void; the first to read is the next.
    pub after_generation: u64,
    /// A former run has applied something: keys that exist may be its own.
    pub began_before: bool,
    /// To the writer.
    pub batches: mpsc::Sender<Batch>,
}

impl Replay {
    /// Runs until stopped, until the RDB is handed over and nothing else is wanted, or until an error.
    pub fn run(self) -> Result<ReplayEnd, ReplayError> {
        let mut generation = self.after_generation;
        let mut resume = self.resume.clone();
        loop {
            let Some(manifest) = self.shared.spool.wait_generation(generation) else {
                return Ok(ReplayEnd::Stopped);
            };
            generation = manifest.generation;
            match self.generation(&manifest, resume.take())? {
                End::Stopped => return Ok(ReplayEnd::Stopped),
                End::RdbOnly => return Ok(ReplayEnd::RdbOnly),
                End::Superseded => self.events.info(
                    &self.node(),
                    "what was left of the former full sync is dropped; the new one replaces it",
                ),
            }
        }
    }

    fn generation(&self, manifest: &Manifest, resume: Option<Progress>) -> Result<End, ReplayError> {
        let replid = manifest.replid.clone();
        let start =
            resume.map_or(Position::Rdb { offset: manifest.rdb_offset, bytes: 0, db: 0 }, |resume| resume.at);
        let mut batch = Batch::new(self.shared.clone(), Progress { replid, at: start }, 0);
        if let Position::Rdb { bytes, .. } = start
            && let Some(end) = self.rdb(manifest, &mut batch, bytes)?
        {
            return Ok(end);
        }
        if !self.sync_aof {
            return Ok(if self.send(&mut batch) { End::RdbOnly } else { End::Stopped });
        }
        self.stream(manifest.generation, batch)
    }

    /// Replays the RDB, leaving out its first `skip` bytes, which a former run has applied. Returns `Some` when the
    /// generation ends; otherwise `batch` stands at the beginning of the stream.
    fn rdb(&self, manifest: &Manifest, batch: &mut Batch, skip: u64) -> Result<Option<End>, ReplayError> {
        let spool = &self.shared.spool;
        let offset = manifest.rdb_offset;
        // After a broken full sync, keys that exist may be ours, from the former attempt: only then replace silently.
        let untouched = !self.began_before && self.shared.entries_applied.load(Relaxed) == 0;
        let on_existing_key = if untouched { self.on_existing_key } else { OnExistingKey::Rewrite };
        let reader = RdbReader::open(spool, manifest.generation, 0)?;
        let mut decoder = Decoder::new(reader, Limits::default());
        let mut version = 0;
        let mut stream_db = 0;
        let mut read = 0u64;
        let mut applied = skip;
        loop {
            // A former run has applied this item if it had come past its first byte.
            let wanted = self.sync_rdb && decoder.position() >= skip;
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
                        "a slot import ({job}, {ranges} ranges) was running on the source; its keys may be incomplete"
                    );
                    self.events.warn(&self.node(), text);
                }
                Item::Entry(entry) if wanted => {
                    read += 1;
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
                Item::End { checksum: Checksum::Disabled } => {
                    self.events.info(&self.node(), "the RDB has no checksum (rdbchecksum no on the source)");
                }
                _ => {}
            }
            if let Some(large) = large
                && let Some(end) =
                    self.large(&mut decoder, batch, manifest.generation, large, on_existing_key)?
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
        spool.rdb_ends_at(manifest.generation, decoder.position());
        batch.progress.at = Position::Stream { offset, db: stream_db };
        batch.source_bytes = decoder.position() - applied;
        batch.ends_rdb = true;
        batch.select(stream_db);
        if !self.send_even_if_void(batch) {
            return Ok(Some(End::Stopped));
        }
        Ok(None)
    }

    /// Appends one key of the RDB, unless it must be read element by element.
    fn entry(
        &self,
        batch: &mut Batch,
        entry: &Entry<'_>,
        version: u16,
        on_existing_key: OnExistingKey,
    ) -> Result<Step, ReplayError> {
        if !self.keeps(entry.db) {
            self.shared.filtered.fetch_add(1, Relaxed);
            return Ok(Step::Done);
        }
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
        let route = dump::route(entry.type_byte, entry.dialect, version, self.target);
        match route {
            Route::Restore { version } if dump::payload_len(raw.len()) as u64 <= self.max_bulk_len => {
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
        let rebuild = Rebuild {
            key: if direct { entry.key } else { BUILDING_KEY },
            target: self.target,
            replace: true,
            expire_at_ms: entry.expire_at_ms,
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
                    finish_building(batch, entry.key, on_existing_key);
                }
                batch.entries += 1;
                self.report_loss(entry.key, loss);
            }
            Err(cause) => self.bad_value(entry, Some(raw), version, &cause.to_string())?,
        }
        Ok(Step::Done)
    }

    /// Rebuilds a value too large to hold, element by element and in several batches, under a temporary key that is renamed
    /// when it is complete: nobody sees half a value under its name. Until then the checkpoint stays before the key, so a
    /// restart begins it anew.
    fn large(
        &self,
        decoder: &mut Decoder<RdbReader>,
        batch: &mut Batch,
        generation: u64,
        large: LargeKey,
        on_existing_key: OnExistingKey,
    ) -> Result<Option<End>, ReplayError> {
        let LargeKey { db, key, expire_at_ms, type_byte, dialect } = large;
        // Read ahead with a reader of its own: for the pending entries of a stream, which must be known before the first
        // entry is added, and so that a damaged value is set aside whole.
        let mut pending = PendingIds::default();
        let at = decoder.position();
        let ahead = RdbReader::open(&self.shared.spool, generation, at)?;
        let visited = visit_from(ahead, at, type_byte, dialect, &mut |element| {
            pending.add(element);
            Ok(())
        });
        match visited {
            Ok(()) => {}
            Err(RdbError::Io(error)) => return self.rdb_end(RdbError::Io(error)).map(Some),
            Err(cause) => {
                self.set_aside(db, &key, &cause.to_string(), &[])?;
                return Ok(None);
            }
        }
        let mut builder = CommandBuilder::new(Rebuild {
            key: BUILDING_KEY,
            target: self.target,
            replace: true,
            expire_at_ms,
            pending_ids: pending.into_sorted(),
        });
        let mut sink = |command: &ByteList| {
            batch.begin(CommandKind::Rebuild);
            append_resp(&mut batch.bytes, command);
            if batch.is_full(self.command_limit, self.byte_limit) && !self.send(batch) {
                return Err(RdbError::Io(std::io::Error::other(ReadEnd::Stopped)));
            }
            Ok(())
        };
        let built = decoder
            .read_large(&mut |element| builder.add(element, &mut sink))
            .and_then(|()| builder.finish(&mut sink));
        match built {
            Ok(loss) => self.report_loss(&key, loss),
            Err(error) => return self.rdb_end(error).map(Some),
        }
        finish_building(batch, &key, on_existing_key);
        batch.entries += 1;
        Ok(None)
    }

    fn report_loss(&self, key: &[u8], loss: Loss) {
        if let Some(words) = loss.describe() {
            let key = escape(key, 60);
            let text = format!("key '{key}': the destination cannot hold all of it: {words}");
            self.events.reject(&self.node(), EventLevel::Warn, "REDUCED", "copied without", &key, &text);
        }
    }

    /// Why the RDB could not be read on: in order, or by damage.
    fn rdb_end(&self, error: RdbError) -> Result<End, ReplayError> {
        if let RdbError::Io(error) = &error {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<ReadEnd>()) {
                Some(ReadEnd::Stopped) => return Ok(End::Stopped),
                Some(ReadEnd::Superseded) => return Ok(End::Superseded),
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
            append_array_header(&mut command, 4);
            let ttl = entry.expire_at_ms.unwrap_or(0).to_string();
            for argument in [&b"RESTORE"[..], entry.key, ttl.as_bytes(), &payload] {
                append_bulk(&mut command, argument);
            }
        }
        self.set_aside(entry.db, entry.key, reason, &command)
    }

    fn set_aside(&self, db: u32, key: &[u8], reason: &str, command: &[u8]) -> Result<(), ReplayError> {
        let shown = escape(key, 60);
        if self.on_bad_value == OnBadValue::Stop {
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

    /// Replays the stream from where `batch` stands.
    fn stream(&self, generation: u64, mut batch: Batch) -> Result<End, ReplayError> {
        let Position::Stream { mut offset, db } = batch.progress.at else { return Ok(End::Stopped) };
        batch.end_db = db;
        batch.start_db = db;
        let mut reader = StreamReader::new(&self.shared.spool, generation, offset);
        let mut parser = CommandParser::default();
        let mut buffer: Vec<u8> = Vec::with_capacity(2 * READ_BYTES);
        let mut start = 0;
        let mut in_transaction = false;
        let mut read = 0u64;
        loop {
            let rest = buffer.get(start..).unwrap_or_default();
            let parsed = match parser.advance(rest) {
                Ok(parsed) => parsed,
                Err(cause) => {
                    return Err(ReplayError::Stream { address: self.shared.address.clone(), offset, cause });
                }
            };
            let Some(len) = parsed else {
                buffer.drain(..start);
                start = 0;
                let waiting = match reader.fill(&mut buffer, READ_BYTES, false) {
                    Ok(0) => true,
                    Ok(_) => false,
                    Err(error) => return self.stream_end(error),
                };
                if waiting {
                    // Nothing more is there: what has been collected goes out now.
                    self.shared.entries_read.fetch_add(std::mem::take(&mut read), Relaxed);
                    if !in_transaction && !batch.is_void() && !self.send(&mut batch) {
                        return Ok(End::Stopped);
                    }
                    if let Err(error) = reader.fill(&mut buffer, READ_BYTES, true) {
                        return self.stream_end(error);
                    }
                }
                continue;
            };
            let raw = rest.get(..len).unwrap_or_default();
            let arguments = &parser.args;
            let argument = |index: usize| arguments.get(index).and_then(|range| raw.get(range.clone()));
            let verb = argument(0).unwrap_or_default();
            match Verb::of(verb) {
                Verb::Control => {}
                Verb::Select => {
                    let db = argument(1).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
                    match db {
                        Some(db) => batch.select(db),
                        None => {
                            let cause = RespError { expected: "SELECT and a number", found: escape(raw, 60) };
                            return Err(ReplayError::Stream {
                                address: self.shared.address.clone(),
                                offset,
                                cause,
                            });
                        }
                    }
                }
                Verb::Multi => in_transaction = true,
                Verb::Exec => in_transaction = false,
                Verb::Set | Verb::Other if !self.keeps(batch.end_db) => {
                    self.shared.filtered.fetch_add(1, Relaxed);
                }
                Verb::Set if arguments.len() == 3 => {
                    batch.push_pair(
                        PairVerb::Stream,
                        argument(1).unwrap_or_default(),
                        argument(2).unwrap_or_default(),
                    );
                    batch.entries += 1;
                    read += 1;
                }
                Verb::Set | Verb::Other => {
                    batch.push_raw(CommandKind::Stream, raw);
                    batch.entries += 1;
                    read += 1;
                }
            }
            start += len;
            offset += len as u64;
            batch.source_bytes += len as u64;
            parser.reset();
            if !in_transaction {
                batch.progress.at = Position::Stream { offset, db: batch.end_db };
                if batch.is_full(self.command_limit, self.byte_limit) {
                    self.shared.entries_read.fetch_add(std::mem::take(&mut read), Relaxed);
                    if !self.send(&mut batch) {
                        return Ok(End::Stopped);
                    }
                }
            }
        }
    }

    fn stream_end(&self, error: StreamReadError) -> Result<End, ReplayError> {
        match error {
            StreamReadError::End(ReadEnd::Stopped) => Ok(End::Stopped),
            StreamReadError::End(ReadEnd::Superseded) => Ok(End::Superseded),
            error => Err(ReplayError::Read(error)),
        }
    }

    fn send(&self, batch: &mut Batch) -> bool {
        batch.is_void() || self.send_even_if_void(batch)
    }

    /// Hands the batch over and begins the next one. `false` when the writer is gone.
    fn send_even_if_void(&self, batch: &mut Batch) -> bool {
        batch.close_pairs();
        let next = batch.successor();
        let full = std::mem::replace(batch, next);
        batch.bytes.reserve(BATCH_BYTES / 4);
        match self.batches.try_send(full) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(full)) => {
                self.shared.held_back_by.store(1, Relaxed);
                let sent = self.batches.blocking_send(full).is_ok();
                self.shared.held_back_by.store(0, Relaxed);
                sent
            }
        }
    }

    fn keeps(&self, db: u32) -> bool {
        !self.filter.block_db.contains(&db)
            && (self.filter.allow_db.is_empty() || self.filter.allow_db.contains(&db))
    }

    fn rdb_error(&self, cause: RdbError) -> ReplayError {
        ReplayError::Rdb { address: self.shared.address.clone(), cause }
    }

    fn node(&self) -> String {
        format!("source {}", self.shared.address)
    }
}

/// What replay does with a command of the stream.
enum Verb {
    /// Belongs to the link, not to the data: PING, REPLCONF, and what clusters and providers tell their replicas.
    Control,
    Select,
    Multi,
    Exec,
    Set,
    Other,
}

impl Verb {
    fn of(verb: &[u8]) -> Verb {
        let is = |name: &[u8]| verb.eq_ignore_ascii_case(name);
        match verb.len() {
            3 if is(b"SET") => Verb::Set,
            3 if is(b"ARS") => Verb::Control,
            4 if is(b"PING") => Verb::Control,
            4 if is(b"EXEC") => Verb::Exec,
            5 if is(b"MULTI") => Verb::Multi,
            6 if is(b"SELECT") => Verb::Select,
            6 if is(b"OPINFO") => Verb::Control,
            7 if is(b"CLUSTER") => Verb::Control,
            8 if is(b"REPLCONF") => Verb::Control,
            9 if is(b"TRIMSLOTS") => Verb::Control,
            _ => Verb::Other,
        }
    }
}

/// Gives a value that was built under the temporary key its name.
fn finish_building(batch: &mut Batch, key: &[u8], on_existing_key: OnExistingKey) {
    match on_existing_key {
        OnExistingKey::Rewrite => batch.push(CommandKind::Rebuild, &[b"RENAME", BUILDING_KEY, key]),
        OnExistingKey::Panic => batch.push(CommandKind::RenameIfNone, &[b"RENAMENX", BUILDING_KEY, key]),
        OnExistingKey::Skip => {
            batch.push(CommandKind::RenameIfMissing, &[b"RENAMENX", BUILDING_KEY, key]);
            batch.push(CommandKind::Rebuild, &[b"UNLINK", BUILDING_KEY]);
        }
    }
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
    let idle = entry.idle_seconds.filter(|_| since_5);
    let freq = entry.freq.filter(|_| since_5 && idle.is_none());
    let meta = entry.meta.unwrap_or_default();
    let out = &mut batch.bytes;
    let count =
        4 + usize::from(replace) + usize::from(absolute) + 2 * usize::from(idle.is_some() || freq.is_some());
    append_array_header(out, count);
    append_bulk(out, b"RESTORE");
    append_bulk(out, entry.key);
    match entry.expire_at_ms {
        // 0 would mean "no expiry"; any time in the past means the same to the destination.
        Some(at) => append_bulk(out, at.max(1).to_string().as_bytes()),
        None => append_bulk(out, b"0"),
    }
    out.push(b'$');
    crate::resp::append_decimal(out, dump::payload_len(meta.len() + raw.len()) as u64);
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

/// What the destination is, from the words of INFO.
pub fn target_of(info: &str) -> Target {
    use crate::rdb::dump::ServerKind;
    let field = |name| super::net::info_field(info, name);
    let (kind, version) = match (field("valkey_version"), field("redis_version")) {
        (Some(version), _) => (ServerKind::Valkey, version),
        (None, Some(version)) if field("server_name") == Some("redict") => (ServerKind::Redict, version),
        (None, Some(version)) if field("dragonfly_version").is_some() => (ServerKind::Other, version),
        (None, Some(version)) => (ServerKind::Redis, version),
        (None, None) => (ServerKind::Other, "5.0"),
    };
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    Target { kind, major: numbers.next().unwrap_or(5), minor: numbers.next().unwrap_or(0) }
}
