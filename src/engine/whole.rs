//! Values of the RDB that are made by several commands: a part of one is worth nothing. Where the destination refuses one of the
//! commands for good, the others go with it, and the value is set aside as a whole.
//!
//! Nothing is kept for that while all goes well: the value is read once more, from the RDB in the spool, which stays until all of it is
//! confirmed.

use std::io;
use std::path::Path;

use super::batch::CommandKind;
use super::events::EventLog;
use super::shared::SourceShared;
use super::spool::{RdbReader, ReadEnd, SpoolError};
use super::writer::WriterError;
use crate::format::escape;
use crate::rdb::dump::{self, Target};
use crate::rdb::{Decoder, Entry, Item, Limits, RdbError, ResumePoint, Value, describe_type};
use crate::resp::{append_array_header, append_bulk};
use crate::status::EventLevel;

/// The commands of one batch that make one value.
pub struct Parts {
    /// Which ones they are.
    pub indexes: Vec<usize>,
    /// The key that they write to.
    pub built: Vec<u8>,
    /// The key that the operator knows.
    pub key: Vec<u8>,
    /// The command that gives it that name, if it was built under another one.
    pub rename: Option<usize>,
    /// Nothing of it stands in a former batch.
    begins_here: bool,
    /// A later command of the batch builds another value where this one was built.
    built_again: bool,
}

impl Parts {
    /// Of the entry that begins at `at`, among all commands of a batch, each with the place where its own entry begins.
    pub fn of<'a>(
        at: u64,
        commands: impl Iterator<Item = (CommandKind, u64)>,
        arguments: impl Fn(usize) -> Vec<&'a [u8]>,
    ) -> Parts {
        let (mut all, mut kinds) = (Vec::new(), Vec::new());
        for (index, (kind, of)) in commands.enumerate() {
            kinds.push(kind);
            if kind.is_part() && of == at {
                all.push((index, kind));
            }
        }
        let rename = all.iter().find(|(_, kind)| *kind != CommandKind::Part).map(|(index, _)| *index);
        let word = |index: Option<usize>, at: usize| {
            index.and_then(|index| arguments(index).get(at).map(|word| word.to_vec())).unwrap_or_default()
        };
        // UNLINK or SET comes first, or was in a former batch.
        let first = all.first().map(|(index, _)| *index);
        let (built, key) = match rename {
            Some(_) => (word(rename, 1), word(rename, 2)),
            None => (word(first, 1), word(first, 1)),
        };
        let begins = |first| matches!(arguments(first).as_slice(), [b"UNLINK" | b"DEL" | b"SET", on, ..] if *on == built);
        let begins_here = first.is_some_and(begins);
        let behind = all.last().map_or(kinds.len(), |(index, _)| index + 1);
        let same_database =
            kinds.iter().enumerate().skip(behind).take_while(|(_, kind)| **kind != CommandKind::Select);
        let mut built_there =
            same_database.map(|(index, _)| arguments(index).get(1) == Some(&built.as_slice()));
        let built_again = built_there.any(|there| there);
        let indexes = all.into_iter().map(|(index, _)| index).collect();
        Parts { indexes, built, key, rename, begins_here, built_again }
    }

    /// The keys under which something of it may stand where none of these commands has run. Not those of a value that begins in this
    /// batch: another one may stand there, complete, and wait for its name.
    pub fn built_before(&self) -> Vec<&[u8]> {
        self.rename.filter(|_| !self.begins_here).map(|_| self.built.as_slice()).into_iter().collect()
    }

    /// The same where all have run, and these of the batch were refused.
    pub fn standing(&self, refused: &[usize]) -> Vec<&[u8]> {
        let aside = self.rename.filter(|_| !self.built_again).map(|_| self.built.as_slice());
        let named = self.rename.is_none_or(|rename| !refused.contains(&rename));
        aside.into_iter().chain(Some(self.key.as_slice()).filter(|_| named)).collect()
    }
}

/// A value to be set aside.
pub struct Whole {
    /// Why, and what is not kept of it.
    pub reason: String,
    /// A RESTORE, in RESP; empty where the value is too large to be kept.
    pub command: Vec<u8>,
}

impl Whole {
    /// Reads the value that begins at byte `at` of the RDB of a full sync.
    pub fn read(
        source: &SourceShared,
        generation: u64,
        at: u64,
        target: Target,
        reason: &str,
    ) -> Result<Whole, RdbError> {
        let open = |at| RdbReader::open(&source.spool, generation, at).map_err(|error| error.cause);
        let mut whole = Whole { reason: reason.to_owned(), command: Vec::new() };
        let mut head = Decoder::new(open(0)?, Limits::default());
        head.next()?;
        let Some(point) = head.resume_point() else { return Ok(whole) };
        let point = ResumePoint { offset: at, ..point };
        let mut decoder = Decoder::resume(open(at)?, Limits::default(), point);
        let Some(Item::Entry(entry)) = decoder.next()? else { return Ok(whole) };
        match entry.value {
            Value::Raw(raw) => whole.command = restore(&entry, raw, meta_of(&entry, target), point.version),
            _ => {
                let what = describe_type(entry.type_byte, entry.dialect);
                whole.reason = format!(
                    "{reason}; {what} that is read in pieces is not kept here: copy the key from the source"
                );
            }
        }
        Ok(whole)
    }

    /// The same for a writer, which must not confirm what it could not set aside.
    pub fn read_for_writer(
        source: &SourceShared,
        (generation, at): (u64, u64),
        target: Target,
        reason: &str,
        address: &str,
    ) -> Result<Whole, WriterError> {
        Whole::read(source, generation, at, target, reason).map_err(|error| {
            let RdbError::Io(cause) = error else {
                return failed(source, io::Error::other(error.to_string()));
            };
            match cause.get_ref().is_some_and(|inner| inner.is::<ReadEnd>())
                || cause.kind() == io::ErrorKind::NotFound
            {
                // Another full sync has begun, or the run is stopping: the value comes again.
                true => WriterError::BeginAgain {
                    address: address.to_owned(),
                    reason: format!("a refused value could not be read again: {cause}"),
                },
                false => failed(source, cause),
            }
        })
    }
}

/// Tells the operator that a value is set aside because its command `verb` was refused.
pub fn tell_refused(events: &EventLog, node: &str, key: &[u8], verb: &str, error: &str, path: &Path) {
    let (shown, error) = (escape(key, 60), escape(error.as_bytes(), 200));
    let text = format!(
        "key '{shown}' cannot be copied: {verb} -> {error} (all of it is set aside in {})",
        path.display()
    );
    let kind = error.split(' ').next().unwrap_or("ERR");
    events.reject(node, EventLevel::Error, kind, "quarantine", &shown, &text);
}

/// A value as it lies in the RDB, to be sent by hand or by `quarantine replay`, at any later time.
pub fn restore(entry: &Entry<'_>, raw: &[u8], meta: &[u8], version: u16) -> Vec<u8> {
    let mut payload = Vec::new();
    dump::append_payload_with_meta(&mut payload, meta, entry.type_byte, raw, version);
    let mut command = Vec::new();
    append_array_header(&mut command, if entry.expire_at_ms.is_some() { 5 } else { 4 });
    let ttl = entry.expire_at_ms.unwrap_or(0).to_string();
    for argument in [&b"RESTORE"[..], entry.key, ttl.as_bytes(), &payload] {
        append_bulk(&mut command, argument);
    }
    if entry.expire_at_ms.is_some() {
        append_bulk(&mut command, b"ABSTTL");
    }
    command
}

/// The metadata of a key as far as the destination takes it.
pub fn meta_of<'a>(entry: &Entry<'a>, target: Target) -> &'a [u8] {
    entry.meta.filter(|_| target.has_redis(8, 6)).unwrap_or_default()
}

fn failed(source: &SourceShared, cause: io::Error) -> WriterError {
    SpoolError { action: "read the RDB again in", path: source.spool.dir().to_owned(), cause }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnExistingKey;

    const NAME: CommandKind = CommandKind::Rename { existing: OnExistingKey::Panic, ends_at_ms: None };

    /// Two values that are built under the same key, one after the other: the first in former batches, to be named here.
    fn parts(at: u64, between: &[(CommandKind, u64, &'static str)]) -> Parts {
        let first = [(CommandKind::Part, 10, "PEXPIREAT built 1"), (NAME, 10, "RENAMENX built first")];
        let second = [
            (CommandKind::Part, 20, "UNLINK built"),
            (CommandKind::Part, 20, "RPUSH built x"),
            (NAME, 20, "RENAMENX built second"),
        ];
        let all = [&first[..], between, &second].concat();
        let words = |index: usize| all[index].2.split(' ').map(str::as_bytes).collect::<Vec<_>>();
        Parts::of(at, all.iter().map(|(kind, at, _)| (*kind, *at)), words)
    }

    #[test]
    fn what_waits_for_its_name_is_not_removed_with_another_value() {
        let (first, second) = (parts(10, &[]), parts(20, &[]));
        assert_eq!((first.indexes.as_slice(), first.key.as_slice()), (&[0, 1][..], &b"first"[..]));
        assert_eq!((second.indexes.as_slice(), second.key.as_slice()), (&[2, 3, 4][..], &b"second"[..]));
        assert_eq!(first.built_before(), [b"built"]);
        assert!(second.built_before().is_empty(), "nothing of it has run");
        // All have run, and the names were refused.
        assert!(first.standing(&[1]).is_empty(), "the second value is built there");
        assert_eq!(second.standing(&[4]), [b"built"]);
        assert_eq!(second.standing(&[3]), [&b"built"[..], b"second"]);
    }

    #[test]
    fn a_value_in_another_database_is_built_elsewhere() {
        let first = parts(10, &[(CommandKind::Select, 0, "SELECT 1")]);
        assert_eq!(first.standing(&[1]), [b"built"]);
    }
}
