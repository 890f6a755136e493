//! From batches to what waits for each slot.
//!
//! A batch is taken apart command by command. A command that concerns several slots and cannot be split waits until what came
//! before it in those slots is done; so does what follows it in the batch.

use std::ops::Range;
use std::time::Instant;

use super::super::batch::{Batch, CommandKind, Counted, Place, Position, SentCommand};
use super::super::confirm::Confirmed;
use super::super::writer::WriterError;
use super::ClusterWriter;
use super::queue::Origin;
use super::route::{Route, needs_transaction, route};
use crate::format::escape;
use crate::resp::{CommandParser, append_command};
use crate::status::EventLevel;

/// A batch that is being taken apart.
pub(super) struct Intake {
    pub batch: Batch,
    /// The next command.
    next: usize,
    /// Database in which it stands.
    db: u32,
    row: u64,
}

/// What a command of the intake asks for.
enum Step {
    /// It waits for its nodes, or is left out.
    Taken,
    /// It must be done on its own once these slots are free; `None` = all.
    Alone(Route, Option<Vec<u16>>),
}

impl ClusterWriter {
    /// A batch arrives.
    pub(super) fn take_in(&mut self, mut batch: Batch) {
        batch.close_pairs();
        if let Some(counted) = batch.counted.take() {
            self.counted = Some(counted);
        }
        let row = self.rows.begin(Confirmed {
            progress: batch.progress.clone(),
            entries: batch.entries,
            source_bytes: batch.source_bytes,
            ends_rdb: batch.ends_rdb,
        });
        self.intake = Some(Intake { next: 0, db: batch.start_db, row, batch });
    }

    /// Takes the batch apart as far as that is possible now.
    pub(super) async fn distribute(&mut self) -> Result<(), WriterError> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        self.retry_at = None;
        let Some(mut intake) = self.intake.take() else { return Ok(()) };
        // A transaction of the stream sets a checkpoint: nothing of the RDB may be open in its slot then.
        if intake.batch.ends_rdb && !self.queues.is_empty() {
            self.intake = Some(intake);
            return Ok(());
        }
        // One for all commands: this is done for every one that is ever applied.
        let mut parser = CommandParser::default();
        while let Some(sent) = intake.batch.commands.get(intake.next).copied() {
            if sent.kind == CommandKind::Select {
                let arguments = intake.batch.arguments(intake.next);
                let db = arguments.get(1).and_then(|db| std::str::from_utf8(db).ok()?.parse().ok());
                intake.db = db.unwrap_or(intake.db);
                intake.next += 1;
                continue;
            }
            parser.reset();
            if !matches!(parser.advance(intake.batch.command_bytes(intake.next)), Ok(Some(_))) {
                parser.args.clear();
            }
            match self.step(&intake, &sent, &parser.args)? {
                Step::Taken => {}
                Step::Alone(route, slots) => {
                    let free = match &slots {
                        Some(slots) => slots.iter().all(|slot| self.queues.is_free(*slot)),
                        None => self.queues.is_empty(),
                    };
                    if !free || !self.do_alone(&intake.batch, intake.next, intake.db, route).await? {
                        self.intake = Some(intake);
                        return Ok(());
                    }
                }
            }
            intake.next += 1;
        }
        self.rows.done(intake.row);
        Ok(())
    }

    /// `words`: where the arguments of the command lie in its bytes.
    fn step(
        &mut self,
        intake: &Intake,
        sent: &SentCommand,
        words: &[Range<usize>],
    ) -> Result<Step, WriterError> {
        let (batch, index) = (&intake.batch, intake.next);
        let raw = batch.command_bytes(index);
        let argument = |at: usize| raw.get(words.get(at)?.clone());
        let (place, upto) = (place_of(batch, sent.at), behind(batch, sent.at));
        let repeated = self.settings.repeated_until.is_some_and(|until| place < until);
        let origin = Origin { row: intake.row, db: intake.db, at: sent.at, upto, repeated };
        let route = route(words.len(), argument);
        match route {
            // So is all of its value.
            Route::Slot(slot) if sent.kind == CommandKind::Count && self.is_applied(slot, place) => {
                self.tell_size(Ok(None));
            }
            Route::Slot(slot) => {
                if !self.is_applied(slot, place) {
                    let once = needs_transaction(sent, words.len(), argument);
                    let write = |out: &mut Vec<u8>| out.extend_from_slice(raw);
                    if self.queues.push(slot, origin, sent.kind, once, write) {
                        self.rows.also(intake.row);
                    }
                }
            }
            Route::Split { step, slots } => {
                let once = needs_transaction(sent, words.len(), argument);
                for (slot, positions) in slots {
                    if self.is_applied(slot, place) {
                        continue;
                    }
                    let mut piece: Vec<&[u8]> = argument(0).into_iter().collect();
                    for at in positions {
                        piece.extend((at..at + step).filter_map(argument));
                    }
                    let write = |out: &mut Vec<u8>| append_command(out, &piece);
                    if self.queues.push(slot, origin, sent.kind, once, write) {
                        self.rows.also(intake.row);
                    }
                }
            }
            Route::ByValue(keys) => {
                let mut slots: Vec<u16> = keys.iter().map(|(_, slot)| *slot).collect();
                slots.sort_unstable();
                slots.dedup();
                if !slots.iter().all(|slot| self.is_applied(*slot, place)) {
                    return Ok(Step::Alone(Route::ByValue(keys), Some(slots)));
                }
            }
            route @ (Route::Masters | Route::Empty) => return Ok(Step::Alone(route, None)),
            Route::Drop(reason) => {
                self.settings.source.filtered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let verb = escape(argument(0).unwrap_or_default(), 20);
                let text = format!("{verb} is not copied to a cluster: {reason}");
                self.settings.events.reject(
                    &self.node_name(),
                    EventLevel::Info,
                    &verb,
                    "dropped",
                    &verb,
                    &text,
                );
            }
            Route::SetAside(reason) => {
                self.set_aside(intake.db, &batch.arguments(index), raw, reason)?;
            }
        }
        Ok(Step::Taken)
    }

    /// Replay hears what came of its count.
    pub(super) fn tell_size(&mut self, answer: Counted) {
        if let Some(counted) = self.counted.take() {
            // Nobody waits any more: the run is stopping.
            let _ = counted.send(answer);
        }
    }

    /// Whether the slot had come past this place when applying began.
    pub(super) fn is_applied(&self, slot: u16, place: Place) -> bool {
        self.applied.get(&slot).is_some_and(|upto| place < *upto)
    }
}

/// The place of an entry that begins at `at`.
pub(super) fn place_of(batch: &Batch, at: u64) -> Place {
    let stream = matches!(batch.progress.at, Position::Stream { .. });
    Place { generation: batch.progress.generation, stream, at }
}

/// A place behind the entry that begins at `at`, and before the next one. Where a value comes in several batches, those before the
/// last one do not come past its beginning.
pub(super) fn behind(batch: &Batch, at: u64) -> Place {
    let place = place_of(batch, at);
    Place { at: at + 1, ..place }.min(batch.progress.place())
}
