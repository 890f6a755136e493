//! After the switch: what is left of the migration is cleaned up, and the run stays to tell how it stands, to hold the
//! old source, and to copy back what is written on the new one.
//!
//! With a reverse link the status that is published is the one of that link, a migration of its own with the sides
//! swapped; so its lag, its gates and its cutover, which is the rollback, are seen and steered like any other.

use std::path::Path;
use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};

use super::Engine;
use super::events::unix_ms;
use super::handover::{Handover, Home, Record, lift_old_source, reverse_directory, reverse_plan};
use super::outcome::{exit, outcome};
use super::quarantine::waiting as quarantined;
use super::supervisor::{Ending, NOT_NOW, SNAPSHOT_INTERVAL, Supervisor};
use crate::control::Command;
use crate::cutover;
use crate::status::{EventLevel, Outcome, ReverseStatus, State, Status, worst_lag_bytes};

/// How the time after the switch ended.
enum Afterwards {
    /// The operator, or a script, wished it.
    Stopped,
    /// Clients are back on the old source.
    RolledBack,
}

impl Supervisor {
    /// From the switch to the end of the run. `None` = the switch was made by a former process.
    pub(super) async fn after_switch(
        &mut self,
        handover: Option<Box<Handover>>,
        stop_at_once: bool,
    ) -> Ending {
        let mut reverse = None;
        // Kept to the end: with source_after = "hold" it holds the old source.
        let mut kept = handover;
        if let Some(handover) = &mut kept {
            reverse = handover.take_reverse();
            let closing = self.forget(None).await;
            self.publishing(None, handover.finish(closing)).await;
        } else if self.plan.cutover.reverse
            && let Some(back) = reverse_plan(&self.plan, self.data_dir.path())
        {
            let refusing = refusing_in(self.data_dir.path());
            self.board.update(|shown| (shown.state, shown.refusing) = (cutover::State::Done, refusing));
            let rollback = Record::read(&back.advanced.dir).ok().flatten();
            if rollback.is_some_and(|record| record.is_final()) {
                // Killed behind the switch of a rollback. Its line only cleans up.
                if let Ok(engine) = super::start_line(back, None, None) {
                    let _ = engine.finished.await;
                }
                self.rolled_back().await;
                return self.switched_ending(Afterwards::RolledBack);
            }
            let home = Home { plan: self.plan.clone(), dir: self.data_dir.path().to_owned() };
            match super::start_line(back, None, Some(home)) {
                Ok(engine) => {
                    self.events.info(
                        "",
                        "this migration was switched by a former process; the reverse link goes on",
                    );
                    reverse = Some(engine);
                }
                Err(outcome) => return Ending::Failed(outcome),
            }
        }
        if stop_at_once {
            self.end_reverse(&mut reverse).await;
            return self.switched_ending(Afterwards::Stopped);
        }
        let end = self.watch(&mut reverse, &mut kept).await;
        self.end_reverse(&mut reverse).await;
        self.switched_ending(end)
    }

    async fn watch(&mut self, reverse: &mut Option<Engine>, kept: &mut Option<Box<Handover>>) -> Afterwards {
        let mut tick = interval(SNAPSHOT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told_end = false;
        let mut next_event = 0;
        loop {
            let back = reverse.as_ref().map(|engine| engine.handle.status());
            if let Some(status) = &back {
                // One log for the operator.
                for event in status.events.iter().filter(|event| event.id >= next_event) {
                    let node = if event.node.is_empty() { "reverse link" } else { &event.node };
                    match event.level {
                        EventLevel::Info => self.events.info(node, event.text.clone()),
                        EventLevel::Warn => self.events.warn(node, event.text.clone()),
                        EventLevel::Error => self.events.error(node, event.text.clone()),
                    }
                }
                next_event = status.events.last().map_or(next_event, |event| event.id + 1);
                if status.state == State::Switched {
                    self.rolled_back().await;
                    let before = self.board.view().attempts;
                    let mut rollback = status.cutover.clone();
                    rollback.attempts += before;
                    self.board.update(|shown| *shown = rollback);
                    return Afterwards::RolledBack;
                }
                if let Some(outcome) = &status.outcome
                    && !std::mem::replace(&mut told_end, true)
                {
                    self.events.error(
                        "",
                        format!(
                            "the reverse link has ended: {}; a rollback would lose what is written now",
                            outcome.message
                        ),
                    );
                }
            }
            if let Some(handover) = kept {
                handover.watch_hold();
            }
            self.publish_after(back.as_deref());
            tokio::select! {
                _ = tick.tick() => {}
                command = self.end.commands.recv() => match command {
                    Some(Command::Stop { .. }) => return Afterwards::Stopped,
                    Some(Command::Unfence) => self.unfence_after(reverse.as_ref(), kept).await,
                    Some(command) => self.obey_after(command, reverse.as_ref()),
                    None => return Afterwards::Stopped,
                },
            }
        }
    }

    fn obey_after(&mut self, command: Command, reverse: Option<&Engine>) {
        self.desk.note(&command);
        let reverse = reverse.filter(|engine| engine.handle.status().outcome.is_none());
        match (command, reverse) {
            // Those of the link back are shown as ours, and are what keeps a rollback from being ready.
            (command @ Command::AcknowledgeErrors, reverse) => {
                self.acknowledge_errors();
                if let Some(engine) = reverse {
                    let _ = engine.handle.send(command);
                }
            }
            // Whoever waits for its end must learn that there will be none.
            (Command::StartCutover { .. }, None) => {
                let before = self.board.view().state;
                self.desk.refuse("the switch is done, and no reverse link runs that could lead back".into());
                self.board.update(|shown| shown.state = before);
            }
            (command, Some(engine)) => {
                if engine.handle.send(command).is_err() {
                    self.events.warn("", "the reverse link does not take commands any more");
                }
            }
            (_, None) => self.events.info("", "the cutover is done: nothing is applied any more"),
        }
    }

    /// Whatever keeps writers off the old source ends.
    async fn unfence_after(&mut self, reverse: Option<&Engine>, kept: &mut Option<Box<Handover>>) {
        self.desk.note(&Command::Unfence);
        if reverse.is_some_and(|engine| engine.handle.status().state == State::CuttingOver) {
            return self.events.warn("", NOT_NOW);
        }
        let is_held = match kept {
            Some(handover) => handover.end_hold().await,
            None => false,
        };
        if !is_held {
            self.desk.lift();
        }
    }

    /// The rollback's own cutover has switched: the old source is the source again.
    async fn rolled_back(&mut self) {
        let dir = self.data_dir.path().to_owned();
        // Done by the rollback's hand-over already; tried again in case it failed there. Only ours: what the rollback made
        // refuse is the former destination, and that must go on refusing.
        match lift_old_source(&self.plan, &dir).await {
            Ok(_) => {}
            Err(problem) => {
                self.events.error("", format!("rolled back, but the source still refuses writes: {problem}"))
            }
        }
        let former = Record::read(&dir).ok().flatten().unwrap_or_default();
        let record = Record { rolled_back: true, unix_ms: unix_ms(), ..former };
        if let Err(error) = record.write(&dir) {
            self.events.error("", error.to_string());
        }
    }

    async fn end_reverse(&mut self, reverse: &mut Option<Engine>) {
        let Some(mut engine) = reverse.take() else { return };
        let rolled_back = engine.handle.status().state == State::Switched;
        let _ = engine.handle.send(Command::Stop { forget: false });
        while let Some(status) = engine.handle.next_status().await {
            self.publish_after(Some(&status));
            if status.outcome.is_some() {
                break;
            }
        }
        if !rolled_back {
            self.events
                .info("", "the reverse link is stopped; a start with the same configuration goes on with it");
        }
    }

    fn switched_ending(&self, end: Afterwards) -> Ending {
        let dir = self.data_dir.path();
        let record = Record::read(dir).ok().flatten().unwrap_or_default();
        let until_unfenced = |servers: Vec<String>| {
            let servers = servers.join(", ");
            format!(
                "{servers} refuses writes until 'shakedeck ctl --dir {} unfence shake.toml'",
                dir.display()
            )
        };
        let (message, closed, entries) = match end {
            Afterwards::RolledBack => {
                let message = format!("rolled back: clients belong on {} again", record.source);
                let still = refusing_in(dir);
                if !still.is_empty() {
                    let message = format!("{message}, but not every server there takes writes");
                    let hint = Some(until_unfenced(still));
                    return Ending::After(Outcome { exit_code: exit::SOURCE, message, hint });
                }
                let back = reverse_directory(dir);
                (message, refusing_in(&back), back)
            }
            Afterwards::Stopped => {
                let message = format!("switched: clients belong on {}", record.destination);
                (message, refusing_in(dir), dir.to_owned())
            }
        };
        let mut hints = Vec::new();
        if !closed.is_empty() {
            hints.push(until_unfenced(closed));
        }
        let count = quarantined(&entries).map_or(0, Iterator::count);
        let outcome = match count {
            0 => outcome(exit::DONE, message),
            _ => {
                hints.push(format!("to see them: shakedeck quarantine list --dir {}", entries.display()));
                outcome(exit::QUARANTINE, format!("{message}; {count} entries are in quarantine"))
            }
        };
        Ending::After(Outcome { hint: (!hints.is_empty()).then(|| hints.join("; ")), ..outcome })
    }

    /// The status after the switch: of the link back, if there is one, with what this run knows beside it.
    fn publish_after(&mut self, back: Option<&Status>) {
        let own = self.publisher.snapshot(*self.wishes.borrow(), None, None);
        let Some(back) = back else {
            self.end.status.send_replace(Arc::new(own));
            return;
        };
        let reverse = ReverseStatus {
            from: back.source.address.clone(),
            to: back.destination.address.clone(),
            state: back.state,
            not_ready: back.not_ready.clone(),
            lag_bytes: worst_lag_bytes(&back.sources),
            applied: back.counters.entries_applied,
        };
        let mut status = back.clone();
        status.run_id = own.run_id;
        status.data_dir = own.data_dir;
        status.log_file = own.log_file;
        status.outcome = None;
        if status.state != State::CuttingOver {
            status.state = State::Switched;
        }
        status.state_reason =
            Some(format!("what is written on {} flows back to {}", reverse.from, reverse.to));
        let rollback_begun = back.cutover.attempts > 0 && back.outcome.is_none();
        if rollback_begun {
            status.cutover.attempts += own.cutover.attempts;
        } else {
            let checks = std::mem::take(&mut status.cutover);
            status.cutover = own.cutover;
            status.cutover.attempts += checks.attempts;
            status.cutover.preflight = checks.preflight;
            status.cutover.preflight_unix_ms = checks.preflight_unix_ms;
            status.cutover.fence = checks.fence;
        }
        status.cutover.refusing = self.board.view().refusing;
        status.cutover.reverse = Some(reverse);
        status.events = own.events;
        status.events_dropped = own.events_dropped;
        status.unread_errors = own.unread_errors;
        self.end.status.send_replace(Arc::new(status));
    }
}

/// The servers that refuse writes because of a cutover from this directory.
fn refusing_in(dir: &Path) -> Vec<String> {
    Record::read(dir).ok().flatten().map_or(Vec::new(), |record| record.refusing())
}
