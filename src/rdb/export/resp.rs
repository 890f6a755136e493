//! Commands that load the file: for `redis-cli --pipe`.

use std::io::{self, Read, Write};

use super::super::commands::{CommandBuilder, Loss, PendingIds, Rebuild, append_resp, value_to_commands};
use super::super::dump::{self, Route, Target};
use super::super::{ByteList, Decoder, Element, Entry, Item, RdbError, Value, types};
use super::{Summary, look_ahead, written};

/// What the commands are for.
#[derive(Debug, Clone, Copy)]
pub struct RespOptions {
    /// Where they will be loaded: decides between RESTORE and commands, and the version in the payload. Large values are
    /// always commands.
    pub target: Target,
    /// Never use RESTORE (except for module values, which nothing else can carry).
    pub commands_only: bool,
    /// Replace keys that exist.
    pub replace: bool,
}

/// Writes every key as SELECT and RESTORE (absolute expiry, IDLETIME or FREQ) or as commands, functions as FUNCTION LOAD,
/// and Lua scripts of old files as SCRIPT LOAD. `ahead` opens the file once more, at an offset: pending entries of a large
/// stream must be known before its first entry is written, and that a value is whole before its first command is.
pub fn write_resp<R: Read, A: Read>(
    decoder: &mut Decoder<R>,
    options: RespOptions,
    ahead: impl Fn(u64) -> io::Result<A>,
    out: &mut impl Write,
) -> Result<Summary, RdbError> {
    let mut summary = Summary::default();
    let mut writer = CommandWriter { options, version: 0, db: None, buffer: Vec::new() };
    while let Some(item) = decoder.next()? {
        match item {
            Item::Header { version, .. } => writer.version = version,
            Item::Aux { key: b"lua", value } => writer.command(&[b"SCRIPT", b"LOAD", value]),
            Item::Function(source) => {
                summary.functions += 1;
                writer.command(&[b"FUNCTION", b"LOAD", b"REPLACE", source]);
            }
            Item::ModuleAux { .. } => summary.module_aux += 1,
            Item::End { checksum } => summary.checksum = Some(checksum),
            Item::Entry(entry) => match entry.value {
                Value::Empty => summary.empty += 1,
                Value::Bad { reason, .. } => summary.bad_key(entry.key, reason),
                Value::Raw(raw) => {
                    let start = writer.buffer.len();
                    match writer.entry(&entry, raw) {
                        Ok(loss) => {
                            summary.keys += 1;
                            if let Some(what) = loss {
                                summary.loss(entry.key, &what);
                            }
                        }
                        Err(reason) => {
                            writer.buffer.truncate(start);
                            summary.bad_key(entry.key, &reason);
                        }
                    }
                }
                Value::Large => {
                    if let Route::Impossible(reason) = writer.route(&entry) {
                        summary.bad_key(entry.key, reason);
                        continue;
                    }
                    let (key, db, has_meta) = (entry.key.to_vec(), entry.db, entry.meta.is_some());
                    let (type_byte, dialect, expire_at_ms) =
                        (entry.type_byte, entry.dialect, entry.expire_at_ms);
                    let mut pending = PendingIds::default();
                    let mut see = |element: Element<'_>| pending.add(element);
                    let at = decoder.position();
                    if let Some(reason) = look_ahead(&ahead, at, (type_byte, dialect), &mut see)? {
                        decoder.skip_large()?;
                        summary.bad_key(&key, &reason);
                        continue;
                    }
                    writer.select(db);
                    let mut builder = CommandBuilder::new(Rebuild {
                        key: &key,
                        target: options.target,
                        replace: options.replace,
                        expire_at_ms,
                        pending_ids: pending.into_sorted(),
                    });
                    let mut send = |command: &ByteList| {
                        append_resp(&mut writer.buffer, command);
                        writer.flush(out, FLUSH_BYTES)
                    };
                    decoder.read_large(&mut |element| builder.add(element, &mut send))?;
                    let loss = builder.finish(&mut send)?;
                    summary.keys += 1;
                    if let Some(what) = in_words(loss, has_meta) {
                        summary.loss(&key, &what);
                    }
                }
            },
            _ => {}
        }
        writer.flush(out, FLUSH_BYTES)?;
    }
    writer.flush(out, 0)?;
    written(out.flush())?;
    Ok(summary)
}

/// Everything of a key that was not written.
fn in_words(loss: Loss, meta_lost: bool) -> Option<String> {
    let meta = meta_lost.then(|| "metadata of a module dropped".to_owned());
    let parts: Vec<String> = loss.describe().into_iter().chain(meta).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

const FLUSH_BYTES: usize = 256 * 1024;

struct CommandWriter {
    options: RespOptions,
    version: u16,
    /// Database selected by what was written; none yet.
    db: Option<u32>,
    buffer: Vec<u8>,
}

impl CommandWriter {
    fn flush(&mut self, out: &mut impl Write, at_least: usize) -> Result<(), RdbError> {
        if self.buffer.len() >= at_least {
            written(out.write_all(&self.buffer))?;
            self.buffer.clear();
        }
        Ok(())
    }

    fn command(&mut self, arguments: &[&[u8]]) {
        append_resp(&mut self.buffer, &arguments.iter().copied().collect());
    }

    fn select(&mut self, db: u32) {
        if self.db != Some(db) {
            self.db = Some(db);
            self.command(&[b"SELECT", db.to_string().as_bytes()]);
        }
    }

    fn route(&self, entry: &Entry<'_>) -> Route {
        dump::route(entry.type_byte, entry.dialect, self.version, self.options.target)
    }

    /// Returns what was lost, in words.
    fn entry(&mut self, entry: &Entry<'_>, raw: &[u8]) -> Result<Option<String>, String> {
        self.select(entry.db);
        let target = self.options.target;
        match self.route(entry) {
            Route::Restore { version }
                if !self.options.commands_only || entry.type_byte == types::MODULE_2 =>
            {
                self.restore(entry, raw, version);
                Ok(in_words(Loss::default(), entry.meta.is_some() && !target.has_redis(8, 6)))
            }
            Route::Impossible(reason) => Err(reason.to_owned()),
            _ => {
                let rebuild = Rebuild {
                    key: entry.key,
                    target,
                    replace: self.options.replace,
                    expire_at_ms: entry.expire_at_ms,
                    pending_ids: Vec::new(),
                };
                value_to_commands(entry.type_byte, raw, entry.dialect, rebuild, &mut |command| {
                    append_resp(&mut self.buffer, command);
                    Ok(())
                })
                .map(|loss| in_words(loss, entry.meta.is_some()))
                .map_err(|cause| cause.to_string())
            }
        }
    }

    fn restore(&mut self, entry: &Entry<'_>, raw: &[u8], version: u16) {
        let target = self.options.target;
        let mut payload = Vec::new();
        let meta = entry.meta.filter(|_| target.has_redis(8, 6)).unwrap_or_default();
        dump::append_payload_with_meta(&mut payload, meta, entry.type_byte, raw, version);
        // ABSTTL, IDLETIME and FREQ came with 5.0.
        let modern = target.has_redis(5, 0);
        let at = entry.expire_at_ms.map(|at| at.max(1).to_string());
        let ttl = at.as_deref().filter(|_| modern).unwrap_or("0");
        let mut command: ByteList =
            [b"RESTORE".as_slice(), entry.key, ttl.as_bytes(), &payload].into_iter().collect();
        if self.options.replace {
            command.push(b"REPLACE");
        }
        if modern && at.is_some() {
            command.push(b"ABSTTL");
        }
        match (entry.idle_seconds, entry.freq) {
            (Some(seconds), _) if modern => {
                command.push(b"IDLETIME");
                command.push(seconds.to_string().as_bytes());
            }
            (None, Some(freq)) if modern => {
                command.push(b"FREQ");
                command.push(freq.to_string().as_bytes());
            }
            _ => {}
        }
        append_resp(&mut self.buffer, &command);
        if let (Some(at), false) = (&at, modern) {
            self.command(&[b"PEXPIREAT", entry.key, at.as_bytes()]);
        }
    }
}
