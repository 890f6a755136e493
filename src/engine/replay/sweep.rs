//! What is recorded in the ledger, and what becomes of it at the end of another full sync: keys that earlier ones put into
//! the destination and that the source no longer has are removed.
//!
//! They are looked for with SCAN on a connection of its own and removed by UNLINK in ordinary batches, so that they are
//! throttled, paused and confirmed like everything else. Until the end of the RDB is confirmed the checkpoint stands inside it,
//! so a crash in the middle only means that it is done again.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::runtime::Handle;

use super::super::batch::{Batch, Position, Progress};
use super::super::ledger::sorted::{KeyHash, Lookup};
use super::super::ledger::{Ledger, Ours, Place};
use super::super::shard::Shard;
use super::super::spool::{ReadEnd, SpoolError};
use super::walk::Unswept;
use super::{End, Replay, ReplayError};
use crate::command;
use crate::config::{Endpoint, OnEmptySource, OnExistingKey};
use crate::format;

/// Ghosts looked for in one walk through the destination: 16 MB.
const GHOSTS_AT_A_TIME: usize = 1_000_000;
/// Time between two looks at something that is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Time between two tries of something that failed.
pub(super) const TRY_AGAIN: Duration = Duration::from_millis(500);

/// The ledger of a run, and what belongs to it.
pub struct Keeper {
    pub(super) ledger: RefCell<Ledger>,
    /// What the destination has, or will have once the batches that were handed over are confirmed.
    handed_over: Cell<Option<Place>>,
    /// Why the ledger could not be written.
    failure: RefCell<Option<SpoolError>>,
    /// Where SCAN is sent: the server, or nodes of the cluster.
    pub(super) destination: Vec<Endpoint>,
    pub(super) runtime: Handle,
}

/// What is on record when an RDB begins, or the rest of it.
pub(super) struct Before {
    ours: Ours,
    complete: bool,
}

impl Keeper {
    /// `checkpoint` is what the destination has confirmed. Must be called inside a tokio runtime.
    pub fn new(ledger: Ledger, checkpoint: Option<&Progress>, destination: Vec<Endpoint>) -> Self {
        Keeper {
            ledger: RefCell::new(ledger),
            handed_over: Cell::new(checkpoint.map(place)),
            failure: RefCell::new(None),
            destination,
            runtime: Handle::current(),
        }
    }
}

fn place(progress: &Progress) -> Place {
    match progress.at {
        Position::Rdb { .. } => (progress.generation, 0),
        Position::Stream { offset, .. } => (progress.generation, offset),
    }
}

impl Replay {
    /// A full sync, or the rest of it, begins.
    pub(super) fn begin_ledger(&self, generation: u64) -> Result<Option<()>, SpoolError> {
        let applied = self.keeper.handed_over.get();
        let begun = self.retried(|| self.keeper.ledger.borrow_mut().begin(generation, applied))?;
        self.shared.note_foreign_in(self.keeper.ledger.borrow().foreign());
        Ok(begun)
    }

    /// Why a hand-over failed that was not a stop.
    pub(super) fn ledger_failure(&self) -> Option<ReplayError> {
        self.keeper.failure.borrow_mut().take().map(ReplayError::from)
    }

    /// A key of the batch that is being filled.
    pub(super) fn note(&self, db: u32, key: &[u8]) {
        self.keeper.ledger.borrow_mut().note(db, key);
    }

    /// The keys that a command of the stream may write; it ends at `offset`.
    pub(super) fn note_command<'a>(
        &self,
        db: u32,
        offset: u64,
        count: usize,
        argument: impl Fn(usize) -> Option<&'a [u8]>,
    ) -> Result<(), SpoolError> {
        let mut ledger = self.keeper.ledger.borrow_mut();
        let key = |at: usize| argument(at).unwrap_or_default();
        let Some(command) = command::find(key(0)) else {
            if count > 1 {
                ledger.note(db, key(1));
            }
            return Ok(());
        };
        if !command.writes {
            return Ok(());
        }
        match (command.name, command::other_database(command, count, &argument)) {
            // A key too many on record does no harm.
            ("DEL" | "UNLINK", _) => {}
            ("SWAPDB", _) => {
                let number = |at: usize| std::str::from_utf8(key(at)).ok()?.parse().ok();
                if let (Some(a), Some(b)) = (number(1), number(2)) {
                    // Without a result the run ends: nothing is sent any more.
                    self.retried(|| ledger.swap(offset, a, b))?;
                }
            }
            ("MOVE", Some(other)) => ledger.note(other, key(1)),
            ("COPY", Some(other)) => ledger.note(other, key(2)),
            _ => command.keys(count, &argument).for_each(|at| ledger.note(db, key(at))),
        }
        Ok(())
    }

    /// Puts what was noted on disk, before the batch with these keys leaves. Waits for room. `false` = the run ends.
    pub(super) fn record(&self, handed_over: Option<&Progress>) -> bool {
        let mut said = false;
        loop {
            let error = match self.keeper.ledger.borrow_mut().flush() {
                Ok(()) => break,
                Err(error) => error,
            };
            if !error.is_full() {
                *self.keeper.failure.borrow_mut() = Some(error);
                return false;
            }
            if self.batches.is_closed() {
                return false;
            }
            if !said {
                said = true;
                self.events.error(&self.node(), format!("applying waits until space is freed: {error}"));
            }
            std::thread::sleep(TRY_AGAIN);
        }
        if let Some(progress) = handed_over {
            self.keeper.handed_over.set(Some(place(progress)));
            self.shared.batches_handed_over.fetch_add(1, Relaxed);
        }
        true
    }

    /// The run ends. What cannot be written now is noted again when its batch is read again.
    pub(super) fn close_ledger(&self) {
        if let Err(error) = self.keeper.ledger.borrow_mut().flush() {
            tracing::warn!("{error}");
        }
    }

    /// Notes of an RDB's keys that are not sent do not pile up in memory.
    pub(super) fn record_some(&self) -> bool {
        self.keeper.ledger.borrow().unwritten() < 64 * 1024 || self.record(None)
    }

    /// Sorts the record when it has grown; for the stream phase.
    pub(super) fn tidy_ledger(&self) -> Result<(), SpoolError> {
        self.keeper.ledger.borrow_mut().tidy()
    }

    /// Keys that a former attempt wrote, where that makes a difference: they are replaced whatever is said about existing keys.
    pub(super) fn written_before(&self) -> Result<Option<Before>, ReplayError> {
        if self.on_existing_key == OnExistingKey::Rewrite {
            return Ok(None);
        }
        let mut ledger = self.keeper.ledger.borrow_mut();
        Ok(Some(Before { ours: ledger.ours()?, complete: ledger.is_complete() }))
    }

    /// What to do when this key of the RDB, which begins at this byte of it, exists on the destination.
    pub(super) fn on_existing(
        &self,
        before: Option<&Before>,
        db: u32,
        key: &[u8],
        at: u64,
    ) -> Result<OnExistingKey, ReplayError> {
        let Some(before) = before else { return Ok(OnExistingKey::Rewrite) };
        if self.shard.as_ref().is_some_and(Shard::overlaps) {
            return Ok(OnExistingKey::Rewrite);
        }
        let hash = self.keeper.ledger.borrow().hash(db, key);
        // A key is on record before it is sent: what a former process did not come to send is not there yet.
        let may_be_there = self.applied_before.is_none_or(|upto| at < upto);
        let contains = |lookup: &Lookup| {
            lookup.contains(hash).map_err(|cause| SpoolError {
                action: "read the ledger in",
                path: self.shared.spool.dir().to_owned(),
                cause,
            })
        };
        // Without a whole record a key that exists may be ours.
        let ours =
            !before.complete || contains(&before.ours.former)? || may_be_there && contains(&before.ours.now)?;
        Ok(if ours { OnExistingKey::Rewrite } else { self.on_existing_key })
    }

    /// The RDB is handed over: removes what earlier full syncs put there and this one has not. `batch` stands at the end of
    /// the RDB. `Some` when the generation ends.
    pub(super) fn sweep(&self, generation: u64, batch: &mut Batch) -> Result<Option<End>, ReplayError> {
        // Without its RDB a full sync does not tell what the source has.
        if !self.sync_rdb {
            return Ok(None);
        }
        if !self.keeper.ledger.borrow().is_complete() && generation > 1 {
            self.events.warn(
                &self.node(),
                "this data directory was begun by a version that kept no record of its keys: of those, keys that the source has deleted meanwhile stay on the destination",
            );
        }
        if !self.keeper.ledger.borrow().has_former()? {
            return Ok(None);
        }
        // What is still on its way could bring a ghost behind the back of SCAN.
        if !self.send(batch) {
            return Ok(Some(End::Stopped));
        }
        if let Some(end) = self.wait_confirmed(generation) {
            return Ok(Some(end));
        }
        if !self.record(None) {
            return Ok(Some(End::Stopped));
        }
        let mut ghosts = loop {
            match self.keeper.ledger.borrow_mut().ghosts() {
                Ok(ghosts) => break ghosts,
                Err(error) if error.is_full() && !self.batches.is_closed() => {
                    self.shared.set_reason(Some(format!("waiting for space: {error}")));
                }
                Err(error) => return Err(error.into()),
            }
            std::thread::sleep(TRY_AGAIN);
        };
        // A master whose slots have all gone elsewhere is another matter.
        let is_empty = self.policy.on_empty_source == OnEmptySource::Wait
            && self.shard.as_ref().is_none_or(|shard| shard.slots(generation).contains(&true))
            && self.keeper.ledger.borrow().is_empty()?;
        let mut removed = 0u64;
        loop {
            let some: Result<Vec<KeyHash>, std::io::Error> = ghosts.by_ref().take(GHOSTS_AT_A_TIME).collect();
            let some = some.map_err(|cause| SpoolError {
                action: "read the ledger in",
                path: self.shared.spool.dir().to_owned(),
                cause,
            })?;
            if some.is_empty() {
                break;
            }
            if is_empty && let Some(end) = self.wait_for_data(generation) {
                return Ok(Some(end));
            }
            // SCAN may return a key twice while the table shrinks.
            let found = RefCell::new(vec![false; some.len()]);
            let is_ghost = |db: u32, key: &[u8]| {
                // What has moved to another master is that one's matter, once we have removed it.
                if !self.is_own_or_lost(key) {
                    return false;
                }
                let at = some.binary_search(&self.keeper.ledger.borrow_mut().hash(db, key)).ok();
                at.and_then(|at| found.borrow_mut().get_mut(at).map(|found| !std::mem::replace(found, true)))
                    .unwrap_or(false)
            };
            let doing = "removing keys that the source no longer has";
            match self.remove(generation, batch, doing, &is_ghost) {
                Ok(count) => removed += count,
                Err(Unswept::End(end)) => return Ok(Some(end)),
                Err(Unswept::Refused(reason)) => {
                    self.events.warn(
                        &self.node(),
                        format!("keys that the source no longer has stay on the destination: {reason}"),
                    );
                    break;
                }
            }
        }
        self.shared.set_reason(None);
        let keys = if removed == 1 { "key" } else { "keys" };
        self.events.info(
            &self.node(),
            format!("{} {keys} removed that the source no longer has", format::number(removed)),
        );
        Ok(None)
    }

    /// The source has lost everything: what it had is nowhere but on the destination now, perhaps. Ends when this full sync
    /// does.
    fn wait_for_data(&self, generation: u64) -> Option<End> {
        self.events.error(
            &self.node(),
            "the source has come back without any key that is copied: nothing is removed from the destination, and nothing more is applied, \
             until the source has its data again and sends it anew. If it is meant to be empty, stop this and start it with \
             [policy] on_empty_source = \"follow\"",
        );
        let reason = "the source came back empty: the destination keeps its keys ([policy] on_empty_source)";
        self.shared.set_reason(Some(reason.into()));
        loop {
            if let Some(end) = self.ended(generation) {
                self.shared.set_reason(None);
                return Some(end);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// The end of the RDB is handed over: once it is confirmed, nothing of earlier full syncs counts any more.
    pub(super) fn end_sweep(&self, generation: u64) -> Result<Option<End>, ReplayError> {
        if !self.sync_rdb || !self.keeper.ledger.borrow().has_former()? {
            return Ok(None);
        }
        if let Some(end) = self.wait_confirmed(generation) {
            return Ok(Some(end));
        }
        self.keeper.ledger.borrow_mut().drop_former()?;
        Ok(None)
    }

    /// Waits until everything that was handed over is confirmed. `Some` when the generation ends first.
    pub(super) fn wait_confirmed(&self, generation: u64) -> Option<End> {
        let shared = &self.shared;
        while shared.batches_confirmed.load(Relaxed) < shared.batches_handed_over.load(Relaxed) {
            if let Some(end) = self.ended(generation) {
                return Some(end);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        None
    }

    /// Why replay of this full sync shall end, if it shall.
    pub(super) fn ended(&self, generation: u64) -> Option<End> {
        match self.shared.spool.ended(generation) {
            Some(ReadEnd::Superseded) => Some(End::Superseded),
            Some(_) => Some(End::Stopped),
            None => self.batches.is_closed().then_some(End::Stopped),
        }
    }
}
