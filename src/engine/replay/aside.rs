//! Values that are built under a temporary key and then given their name: nobody sees half a value under its name.
//!
//! A value too large to hold is built in several batches. The odd thing: this thread then waits, once a value, until the
//! destination has counted what came out. It differs from what the file holds where a field or member stands twice, which only the
//! destination can find out in bounded memory, and where somebody has removed the temporary key meanwhile (eviction, FLUSHALL).
//! Such a value gets no name, and neither does one of which the destination refused a command: it is known by then, too.
//!
//! Rejected: remembering every name here, which takes memory by the size of the value; a script that compares and renames, which takes
//! the right to run scripts.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;

use super::super::batch::{Batch, CommandKind, Counted};
use super::super::rebuilt::{Ahead, may_have_ended, wrong_size};
use super::super::spool::{RdbReader, ReadEnd};
use super::super::whole::Whole;
use super::{End, Replay, ReplayError};
use crate::config::OnExistingKey;
use crate::rdb::commands::{CommandBuilder, Rebuild, append_resp};
use crate::rdb::{ByteList, Decoder, Dialect, Element, RdbError, visit_from};

/// A key whose value is read element by element.
pub(super) struct LargeKey {
    pub db: u32,
    pub key: Vec<u8>,
    pub expire_at_ms: Option<i64>,
    pub type_byte: u8,
    pub dialect: Dialect,
}

/// What a value that has been built is to be called.
pub(super) struct Name<'a> {
    /// The key that it was built under.
    pub built: &'a [u8],
    pub key: &'a [u8],
    pub expire_at_ms: Option<i64>,
}

/// What a pass over a value ahead of the decoder has come to.
enum Looked {
    Whole,
    Damaged(String),
    Ended(End),
}

impl Replay {
    /// Rebuilds a value too large to hold, element by element and in several batches, under a temporary key that is renamed
    /// when it is complete. Until then the checkpoint stays before the key, so a restart begins it anew.
    pub(super) fn large(
        &self,
        decoder: &mut Decoder<RdbReader>,
        batch: &mut Batch,
        generation: u64,
        large: &LargeKey,
        existing: OnExistingKey,
    ) -> Result<Option<End>, ReplayError> {
        let building = self.building_key(&large.key);
        let begins = batch.at;
        // Of a value whose building was given up half-way.
        self.shared.take_refused_piece();
        // It may be left behind by a crash.
        self.note(large.db, &building);
        let at = decoder.position();
        let mut ahead = Ahead::default();
        match self.look(generation, at, large, &mut |element| ahead.add(element))? {
            Looked::Whole => {}
            Looked::Damaged(reason) => {
                self.set_aside(large.db, &large.key, &reason, &[])?;
                return Ok(None);
            }
            Looked::Ended(end) => return Ok(Some(end)),
        }
        let mut builder = CommandBuilder::new(Rebuild {
            key: &building,
            target: self.target,
            replace: true,
            expire_at_ms: None,
            pending_ids: std::mem::take(&mut ahead.pending).into_sorted(),
        });
        let mut sink = |command: &ByteList| {
            batch.begin(CommandKind::Piece);
            append_resp(&mut batch.bytes, command);
            if batch.is_full(self.command_limit, self.byte_limit) && !self.send(batch) {
                return Err(RdbError::Io(std::io::Error::other(ReadEnd::Stopped)));
            }
            Ok(())
        };
        let built = decoder
            .read_large(&mut |element| builder.add(element, &mut sink))
            .and_then(|()| builder.finish(&mut sink));
        let loss = match built {
            Ok(loss) => loss,
            Err(error) => return self.rdb_end(error).map(Some),
        };
        let fields_end = ahead.fields_end && self.target.has_field_ttl();
        let ends_at_ms = ahead.ends_at_ms(large.expire_at_ms, self.target);
        // Asked of every value: with the answer it is known, too, whether the pieces were accepted.
        let (command, expected) = ahead.size();
        let Some(counted) = self.count(batch, &building, command) else { return Ok(Some(End::Stopped)) };
        if let Some(refused) = self.shared.take_refused_piece() {
            batch.push(CommandKind::Rebuild, &[self.target.unlink(), &building]);
            let whole = match Whole::read(&self.shared, generation, begins, self.target, &refused) {
                Ok(whole) => whole,
                Err(error) => return self.rdb_end(error).map(Some),
            };
            self.set_aside(large.db, &large.key, &whole.reason, &whole.command)?;
            return Ok(None);
        }
        let flaw = match counted {
            Ok(None) => None,
            Ok(Some(found)) if found == expected => None,
            Ok(Some(found)) => {
                let mut ended = 0;
                if fields_end && found < expected {
                    let mut add = |element: Element<'_>| ended += u64::from(may_have_ended(&element));
                    if let Looked::Ended(end) = self.look(generation, at, large, &mut add)? {
                        return Ok(Some(end));
                    }
                }
                let explained = (expected.saturating_sub(ended)..=expected).contains(&found);
                (!explained).then(|| wrong_size(command, expected, found))
            }
            Err(error) => Some(format!("the destination did not count what had been built of it: {error}")),
        };
        if let Some(reason) = flaw {
            batch.push(CommandKind::Rebuild, &[self.target.unlink(), &building]);
            self.set_aside(large.db, &large.key, &reason, &[])?;
            return Ok(None);
        }
        self.report_loss(&large.key, loss);
        let name = Name { built: &building, key: &large.key, expire_at_ms: large.expire_at_ms };
        self.give_name(batch, name, existing, ends_at_ms);
        batch.entries += 1;
        Ok(None)
    }

    /// Visits a value with a reader of its own, while the decoder stays where it is.
    fn look(
        &self,
        generation: u64,
        at: u64,
        large: &LargeKey,
        see: &mut dyn FnMut(Element<'_>),
    ) -> Result<Looked, ReplayError> {
        let reader = match RdbReader::open(&self.shared.spool, generation, at) {
            Ok(reader) => reader,
            Err(error) => match self.ended(generation) {
                Some(end) => return Ok(Looked::Ended(end)),
                None => return Err(error.into()),
            },
        };
        let visited = visit_from(reader, at, large.type_byte, large.dialect, &mut |element| {
            see(element);
            Ok(())
        });
        match visited {
            Ok(()) => Ok(Looked::Whole),
            Err(RdbError::Io(error)) => self.rdb_end(RdbError::Io(error)).map(Looked::Ended),
            Err(cause) => Ok(Looked::Damaged(cause.to_string())),
        }
    }

    /// Sends what there is and waits for the size of what has been built. `None`: the run is stopping. What is inside: see
    /// [`Batch::counted`].
    fn count(&self, batch: &mut Batch, building: &[u8], command: &str) -> Option<Counted> {
        let (size, counted) = mpsc::channel();
        batch.push(CommandKind::Count, &[command.as_bytes(), building]);
        batch.counted = Some(size);
        if !self.send(batch) {
            return None;
        }
        self.shared.held_back.store(true, Relaxed);
        // A writer that ends drops the batch, and with it the other end.
        let counted = counted.recv().ok();
        self.shared.held_back.store(false, Relaxed);
        counted
    }

    /// Gives what has been built its name and its time of expiry. `ends_at_ms`: see [`CommandKind::Rename`].
    pub(super) fn give_name(
        &self,
        batch: &mut Batch,
        name: Name<'_>,
        existing: OnExistingKey,
        ends_at_ms: Option<i64>,
    ) {
        let Name { built, key, expire_at_ms } = name;
        let kind = CommandKind::Rename { existing, ends_at_ms };
        if existing == OnExistingKey::Rewrite {
            // RENAME would do it, but not if the new value has ended.
            batch.push(CommandKind::Part, &[self.target.unlink(), key]);
        }
        // A time that is past removes it.
        if let Some(at) = expire_at_ms {
            batch.push(CommandKind::Part, &[b"PEXPIREAT", built, at.to_string().as_bytes()]);
        }
        match existing {
            OnExistingKey::Rewrite => batch.push(kind, &[b"RENAME", built, key]),
            OnExistingKey::Panic => batch.push(kind, &[b"RENAMENX", built, key]),
            OnExistingKey::Skip => {
                batch.push(kind, &[b"RENAMENX", built, key]);
                batch.push(CommandKind::Part, &[self.target.unlink(), built]);
            }
        }
    }
}
