//! What a line of a source cluster leaves out: keys and commands of slots that are not its own, whoever sends them.
//!
//! Masters send them for many reasons. They import a slot: `RESTORE-ASKING` of MIGRATE; on Redis from 8.4 on `RESTORE` without checksum and
//! without `REPLACE`, and plain writes; on Valkey from 9.0 on plain writes that build every value anew, followed by `UNLINK` of
//! each where the import fails, while their true owner has them still. They own it already, and nobody has noticed yet. They own it no longer, and
//! remove what is left. An RDB of such a time holds such keys too. None of that needs to be understood frame by frame: what counts is
//! whose the slot is, and that is written down ([`super::super::shard`]).

use std::collections::BTreeSet;

use super::super::batch::Batch;
use super::super::spool::SpoolError;
use super::sweep::TRY_AGAIN;
use super::walk::Unswept;
use super::{End, Replay, ReplayError};
use crate::command::{self, slot_of};
use crate::format;

/// The slots of the line, as they were asked for last.
#[derive(Default)]
pub struct Own {
    /// 0 = not asked yet.
    version: u64,
    generation: u64,
    slots: Vec<bool>,
    lost: BTreeSet<u16>,
}

impl Replay {
    /// A full sync, or the rest of it, begins.
    pub(super) fn begin_own(&self, generation: u64) {
        *self.own.borrow_mut() = Own { generation, ..Own::default() };
    }

    /// Whether a key belongs to this source.
    pub(super) fn is_own(&self, key: &[u8]) -> bool {
        self.with_own(|own| own.slots.get(usize::from(slot_of(key))).copied().unwrap_or_default(), true)
    }

    /// The same, or it did and is still to be removed: no other line may have brought it by now.
    pub(super) fn is_own_or_lost(&self, key: &[u8]) -> bool {
        self.is_own(key) || self.with_own(|own| own.lost.contains(&slot_of(key)), false)
    }

    /// Whether a key of the RDB is left out.
    pub(super) fn leaves_out(&self, key: &[u8]) -> bool {
        let left_out = !self.is_own(key);
        if left_out && let Some(shard) = &self.shard {
            shard.left_out();
        }
        left_out
    }

    /// Whether a command of the stream is left out. One that is not known may have its keys anywhere: it is not.
    pub(super) fn leaves_out_command<'a>(
        &self,
        count: usize,
        argument: impl Fn(usize) -> Option<&'a [u8]>,
    ) -> bool {
        let Some(shard) = &self.shard else { return false };
        let Some(command) = argument(0).and_then(command::find) else { return false };
        let left_out = command.keys(count, &argument).filter_map(&argument).any(|key| !self.is_own(key));
        if left_out {
            shard.left_out();
        }
        left_out
    }

    /// `TRIMSLOTS RANGES <n> <first> <last> …` (`cluster_asm.c`): the keys of these slots are gone. Nothing is done here: a line that
    /// has lost slots removes their keys. But if they have come back before that was noticed, it must be copied again.
    pub(super) fn trimmed<'a>(&self, count: usize, argument: impl Fn(usize) -> Option<&'a [u8]>) {
        let Some(shard) = &self.shard else { return };
        let number = |at: usize| std::str::from_utf8(argument(at)?).ok()?.parse::<u16>().ok();
        let ranges = (3..count).step_by(2).filter_map(|at| number(at).zip(number(at + 1)));
        shard.trimmed(&ranges.flat_map(|(first, last)| first..=last).collect());
    }

    /// Whether keys must be removed because their slots have gone to another line.
    pub(super) fn must_release(&self) -> bool {
        self.with_own(|own| !own.lost.is_empty(), false)
    }

    /// Removes from the destination what this line has brought of slots that it has lost. Nobody else brings any of it before that
    /// is done, and this line brings none any more. Done again after a crash. `Some` when the generation ends first.
    pub(super) fn release(&self, generation: u64, batch: &mut Batch) -> Result<Option<End>, ReplayError> {
        let Some(shard) = &self.shard else { return Ok(None) };
        let (lost, db) = (shard.lost(), batch.end_db);
        // What is still on its way could bring a key behind the back of SCAN.
        if !self.send(batch) || !self.record(None) {
            return Ok(Some(End::Stopped));
        }
        if let Some(end) = self.wait_confirmed(generation) {
            return Ok(Some(end));
        }
        let ours = match self.retried(|| self.keeper.ledger.borrow_mut().ours())? {
            Some(ours) => ours,
            None => return Ok(Some(End::Stopped)),
        };
        let unread = std::cell::RefCell::new(None);
        let chosen = |db: u32, key: &[u8]| {
            if !lost.contains(&slot_of(key)) {
                return false;
            }
            let hash = self.keeper.ledger.borrow_mut().hash(db, key);
            ours.contains(hash).unwrap_or_else(|error| {
                unread.borrow_mut().get_or_insert(error);
                false
            })
        };
        let doing = "removing the keys of slots that have gone to another master";
        let removed = self.remove(generation, batch, doing, &chosen);
        if let Some(cause) = unread.take() {
            let path = self.shared.spool.dir().to_owned();
            return Err(SpoolError { action: "read the ledger in", path, cause }.into());
        }
        match removed {
            Ok(removed) => self.events.info(
                &self.node(),
                format!(
                    "{} keys of {} slots that have gone to another master are removed; its copy brings them again",
                    format::number(removed),
                    format::number(lost.len() as u64)
                ),
            ),
            Err(Unswept::End(end)) => return Ok(Some(end)),
            Err(Unswept::Refused(reason)) => self.events.error(
                &self.node(),
                format!("keys of slots that have gone to another master may stay on the destination when the source no longer has them: {reason}"),
            ),
        }
        batch.select(db);
        if !self.send(batch) {
            return Ok(Some(End::Stopped));
        }
        if let Some(end) = self.wait_confirmed(generation) {
            return Ok(Some(end));
        }
        self.shared.set_reason(None);
        Ok(self.retried(|| shard.released(&lost))?.is_none().then_some(End::Stopped))
    }

    /// Does it again for as long as the disk is full. `None` when the run ends.
    pub(super) fn retried<T>(
        &self,
        mut what: impl FnMut() -> Result<T, SpoolError>,
    ) -> Result<Option<T>, SpoolError> {
        let mut said = false;
        loop {
            match what() {
                Ok(done) => {
                    if said {
                        self.shared.set_reason(None);
                    }
                    return Ok(Some(done));
                }
                Err(error) if error.is_full() && !self.batches.is_closed() => {
                    said = true;
                    self.shared.set_reason(Some(format!("waiting for space: {error}")));
                }
                Err(error) => return if error.is_full() { Ok(None) } else { Err(error) },
            }
            std::thread::sleep(TRY_AGAIN);
        }
    }

    /// Looks at what is own, asked for again where it has changed. `alone`: the answer of a source that has all slots.
    fn with_own(&self, look: impl Fn(&Own) -> bool, alone: bool) -> bool {
        let Some(shard) = &self.shard else { return alone };
        let mut own = self.own.borrow_mut();
        let version = shard.version();
        if own.version != version {
            own.version = version;
            own.slots = shard.slots(own.generation);
            own.lost = shard.lost();
        }
        look(&own)
    }
}
