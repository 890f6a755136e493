//! Owns every task of a run: starts them, publishes the status, obeys the fronts, and ends everything in order.
//!
//! One task receives from the source for as long as the run lasts. The apply side, a replay thread and a writer, may be
//! ended and begun again while it does: when the destination lost confirmed writes, it goes back to where the
//! destination stands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::batch::BATCH_BYTES;
use super::begin::{Destination, where_to_begin};
use super::data_dir::DataDir;
use super::events::EventLog;
use super::handover::{
    Board, Desk, End, Handover, Home, Record, SourceSide, lift_refusals, reverse_directory,
};
use super::import_mode::ImportMode;
use super::ledger::{self, Ledger};
use super::net::{Connection, NetError};
use super::outcome::{
    WriterEnd, data_dir_failed, exit, outcome, replay_outcome, source_outcome, writer_outcome,
};
use super::publish::Publisher;
use super::quarantine::Quarantine;
use super::rdb_file;
use super::replay::{Databases, Keeper, Replay, ReplayEnd, ReplayError, building_key};
use super::shared::{SourceShared, Wishes, WriterShared};
use super::source::{Source, SourceError};
use super::verify::Verifying;
use super::writer::{Writer, WriterError, rebuilding_key};
use crate::config::{Plan, Reader};
use crate::control::{Command, EngineEnd};
use crate::cutover::Input;
use crate::format;
use crate::resp::Reply;
use crate::status::{Outcome, Phase, State, WriterState};

/// How long a stop in the caught-up state may take to apply what was received before it.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long a writer may take to end: a little more than it gives its destination.
const WRITER_LIMIT: Duration = Duration::from_secs(12);
/// Time between two snapshots.
pub(super) const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(250);
/// Time between two looks at a destination that cannot be reached when applying shall begin.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Owns every task of a run.
pub struct Supervisor {
    /// What is wanted.
    pub plan: Plan,
    /// State on disk.
    pub data_dir: DataDir,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// Entries set aside.
    pub quarantine: Arc<Quarantine>,
    /// What the source's tasks tell.
    pub source: Arc<SourceShared>,
    /// What the writer tells.
    pub writer: Arc<WriterShared>,
    /// Makes the status.
    pub publisher: Publisher,
    /// The verification that runs, or the last one.
    pub verifying: Option<Verifying>,
    /// The fronts.
    pub end: EngineEnd,
    /// The operator's wishes, seen by every task.
    pub wishes: watch::Sender<Wishes>,
    /// True = the source task ends.
    pub stop_source: watch::Sender<bool>,
    /// Where cutovers are begun and end.
    pub desk: Desk,
    /// What is shown of them.
    pub board: Arc<Board>,
    /// What a cutover of a former process has left.
    pub record: Option<Record>,
    /// Of a line back: the migration that it can undo.
    pub home: Option<Home>,
    /// A stop that came while a cutover was under way: forget or not.
    pub stop_wish: Option<bool>,
}

/// Why a run ends.
pub(super) enum Ending {
    /// The cutover has switched.
    Switched(Box<Handover>),
    /// The time after the switch is over too.
    After(Outcome),
    /// The operator, or a script, wished it.
    Wished { forget: bool },
    /// All that was asked for is done.
    Complete,
    /// An error.
    Failed(Outcome),
}

/// The task that receives; joined exactly once.
struct SourceTask {
    handle: JoinHandle<Result<(), SourceError>>,
    ended: bool,
    /// It is gone for good; what it left on disk is still applied.
    gone: Option<Outcome>,
}

/// The tasks that apply; each is joined exactly once.
struct ApplySide {
    replay: oneshot::Receiver<Result<ReplayEnd, ReplayError>>,
    writer: JoinHandle<Result<(), WriterError>>,
}

impl Supervisor {
    /// Runs the migration to its end.
    pub async fn run(mut self) -> Outcome {
        let checkpoint_key = format!("shakedeck:checkpoint:{}", self.data_dir.run_id());
        let ending = self.whole_run(&checkpoint_key).await;
        let outcome = self.conclude(ending, &checkpoint_key).await;
        let state = match outcome.exit_code {
            exit::DONE | exit::QUARANTINE | exit::INTERRUPTED => State::Stopped,
            _ => State::Failed,
        };
        if state == State::Failed {
            self.events.error("", outcome.message.clone());
        } else {
            self.events.info("", outcome.message.clone());
        }
        self.publish(Some(state), Some(outcome.clone()));
        outcome
    }

    /// The migration, and what follows a switch.
    async fn whole_run(&mut self, checkpoint_key: &str) -> Ending {
        match self.record.take() {
            Some(record) if record.switched && !record.rolled_back => {
                return self.after_switch(None, false, checkpoint_key).await;
            }
            Some(_) => {
                // A process that died while it handed over, or a rollback: the migration begins or goes on.
                let (plan, dir) = (self.plan.clone(), self.data_dir.path().to_owned());
                match self.meanwhile(lift_refusals(&plan, &dir)).await {
                    Ok(Ok(lifted)) if lifted.is_empty() => {}
                    Ok(Ok(lifted)) => {
                        let lifted = lifted.join(", ");
                        self.events.warn(
                            "",
                            format!("{lifted} refused writes since a former cutover and takes them again"),
                        );
                    }
                    Ok(Err(problem)) => return Ending::Failed(outcome(exit::SOURCE, problem)),
                    Err(ending) => return ending,
                }
                if let Err(error) = Record::remove(&dir) {
                    return Ending::Failed(data_dir_failed(error.into()));
                }
                let _ = std::fs::remove_dir_all(reverse_directory(&dir));
            }
            None => {}
        }
        match self.migrate(checkpoint_key).await {
            Ending::Switched(handover) => {
                let stop_at_once = self.stop_wish.is_some();
                self.after_switch(Some(handover), stop_at_once, checkpoint_key).await
            }
            ending => ending,
        }
    }

    /// Starts both sides and watches them; returns after every task has ended.
    async fn migrate(&mut self, checkpoint_key: &str) -> Ending {
        let mut source: Option<SourceTask> = None;
        let ending = loop {
            let destination = match self.look_at_destination(checkpoint_key, source.is_some()).await {
                Ok(destination) => destination,
                Err(ending) => break ending,
            };
            let (destination_run_id, databases) = (destination.run_id.clone(), destination.databases);
            let apply = match self.start_applying(checkpoint_key, destination, source.is_some()) {
                Ok(apply) => apply,
                Err(outcome) => break Ending::Failed(outcome),
            };
            let source = source.get_or_insert_with(|| self.start_source(destination_run_id, databases));
            if let Some(ending) = self.supervise(source, apply).await {
                break ending;
            }
        };
        let _ = self.stop_source.send(true);
        if let Some(source) = source
            && !source.ended
        {
            let _ = source.handle.await;
        }
        ending
    }

    /// Asks the destination. A run that begins fails when it is not there; one that goes on waits for it.
    async fn look_at_destination(
        &mut self,
        checkpoint_key: &str,
        running: bool,
    ) -> Result<Destination, Ending> {
        let waits = running || self.source.spool.manifest().is_some();
        let (endpoint, key) = (self.plan.writer.endpoint.clone(), checkpoint_key.to_owned());
        let address = self.source.address.clone();
        loop {
            let error = match self.meanwhile(Destination::look(&endpoint, &key, &address)).await? {
                Ok(destination) => {
                    self.publisher.destination_server = destination.server.clone();
                    if let Some(text) = &destination.tried {
                        self.events.warn(&format!("writer {}", self.writer.address), text.clone());
                    }
                    return Ok(destination);
                }
                Err(error) => error,
            };
            if !waits || !error.is_transient() {
                return Err(Ending::Failed(outcome(exit::DESTINATION, error.to_string())));
            }
            let reason = format!("{error} (asked again every {} s)", LOOK_AGAIN.as_secs());
            if self.writer.details().reason.as_ref() != Some(&reason) {
                self.events.warn("", reason.clone());
            }
            self.writer.enter(WriterState::Reconnecting, Some(reason));
            self.meanwhile(sleep(LOOK_AGAIN)).await?;
        }
    }

    /// Waits for something while publishing and obeying; `Err` when the run shall end first.
    async fn meanwhile<T>(&mut self, waited_for: impl Future<Output = T>) -> Result<T, Ending> {
        tokio::pin!(waited_for);
        let mut tick = interval(SNAPSHOT_INTERVAL);
        loop {
            tokio::select! {
                result = &mut waited_for => return Ok(result),
                _ = tick.tick() => self.publish(None, None),
                command = self.end.commands.recv() => match command {
                    Some(Command::Stop { forget }) => return Err(Ending::Wished { forget }),
                    Some(command) => self.obey(command),
                    None => return Err(Ending::Wished { forget: false }),
                }
            }
        }
    }

    /// Starts the replay thread and the writer where the destination stands.
    fn start_applying(
        &self,
        checkpoint_key: &str,
        destination: Destination,
        receiving: bool,
    ) -> Result<ApplySide, Outcome> {
        let checkpoint = destination.checkpoint.clone();
        let start = where_to_begin(
            &self.source,
            &self.writer.address,
            destination.checkpoint,
            receiving,
            &self.events,
        )?;
        let (sync_rdb, sync_aof) = match &self.plan.reader {
            Reader::Sync(reader) => (reader.sync_rdb, reader.sync_aof),
            Reader::Rdb { .. } => (true, false),
        };
        let acceptance = Arc::new(destination.acceptance);
        let begun =
            checkpoint.is_some() || self.source.spool.manifest().is_some_and(|it| it.rdb_len.is_some());
        let ledger =
            Ledger::open(self.source.spool.dir(), begun).map_err(|error| data_dir_failed(error.into()))?;
        let (batches, queue) = mpsc::channel(2);
        let replay = Replay {
            shared: self.source.clone(),
            events: self.events.clone(),
            quarantine: self.quarantine.clone(),
            databases: Databases::new(
                self.plan.filter.clone(),
                self.plan.advanced.db_map.clone(),
                destination.databases,
            ),
            sync_rdb,
            sync_aof,
            on_existing_key: self.plan.advanced.on_existing_key,
            on_bad_value: self.plan.policy.on_bad_value,
            empty_destination: self.plan.advanced.empty_db_before_sync,
            building_key: building_key(self.data_dir.run_id()),
            target: acceptance.target(),
            acceptance: acceptance.clone(),
            max_bulk_len: self.plan.advanced.max_bulk_len,
            // Two batches may be unanswered at a time.
            command_limit: (self.plan.advanced.pipeline_count_limit / 2).max(1),
            byte_limit: usize::try_from(self.plan.advanced.max_querybuf_len / 2)
                .map_or(BATCH_BYTES, |half| half.min(BATCH_BYTES)),
            resume: start.resume,
            after_generation: start.after_generation,
            keeper: Keeper::new(ledger, checkpoint.as_ref(), self.plan.writer.endpoint.clone()),
            batches,
        };
        let writer = Writer {
            endpoint: self.plan.writer.endpoint.clone(),
            checkpoint_key: checkpoint_key.to_owned(),
            source: self.source.address.clone(),
            checkpoint: destination.checkpoint_text,
            began_before: receiving || self.source.spool.manifest().is_some(),
            introduced: AtomicBool::new(false),
            rebuilding_key: rebuilding_key(self.data_dir.run_id()),
            shared: self.writer.clone(),
            acceptance: acceptance.clone(),
            events: self.events.clone(),
            quarantine: self.quarantine.clone(),
            on_bad_value: self.plan.policy.on_bad_value,
            import_mode: ImportMode::new(self.data_dir.path(), acceptance.target()),
            wishes: self.wishes.subscribe(),
            batches: queue,
        };
        let (replay_sender, replay_receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name("replay".into()).spawn(move || {
            // A receiver that is gone means that the run has ended: nobody is left to tell.
            let _ = replay_sender.send(replay.run());
        });
        thread.map_err(|error| outcome(exit::SPOOL, format!("cannot start the replay thread: {error}")))?;
        Ok(ApplySide { replay: replay_receiver, writer: tokio::spawn(writer.run()) })
    }

    /// Starts the task that receives.
    fn start_source(&self, destination_run_id: Option<String>, databases: u32) -> SourceTask {
        let stop = self.stop_source.subscribe();
        let handle = match &self.plan.reader {
            Reader::Sync(reader) => {
                let source = Source {
                    reader: reader.clone(),
                    limits: self.plan.spool,
                    policy: self.plan.policy,
                    destination_run_id,
                    databases: Databases::new(
                        self.plan.filter.clone(),
                        self.plan.advanced.db_map.clone(),
                        databases,
                    ),
                    shared: self.source.clone(),
                    events: self.events.clone(),
                    stop,
                };
                tokio::spawn(source.run())
            }
            Reader::Rdb { .. } => tokio::spawn(async move {
                rdb_file::wait(stop).await;
                Ok(())
            }),
        };
        SourceTask { handle, ended: false, gone: None }
    }

    /// Publishes, obeys and watches until the run ends, or until applying must begin again (`None`). Returns after the
    /// apply side has ended.
    async fn supervise(&mut self, source: &mut SourceTask, apply: ApplySide) -> Option<Ending> {
        let ApplySide { mut replay, mut writer } = apply;
        let mut tick = interval(SNAPSHOT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut replay_ended, mut writer_ended) = (false, false);
        let mut all_handed_over = false;
        let mut draining: Option<(u64, Instant, bool)> = None;
        let ending = loop {
            if all_handed_over && writer_ended {
                // The queue was closed and everything in it is confirmed.
                break Some(match source.gone.take() {
                    None => {
                        self.source.enter(Phase::Drained, None);
                        Ending::Complete
                    }
                    Some(gone) => Ending::Failed(self.drained(gone)),
                });
            }
            tokio::select! {
                _ = tick.tick() => {
                    let state = draining.map(|_| State::Stopping);
                    self.publish(state, None);
                    if let Some((target, deadline, forget)) = draining
                        && (self.source.offset_applied.load(Relaxed) >= target || Instant::now() >= deadline)
                    {
                        break Some(Ending::Wished { forget });
                    }
                }
                command = self.end.commands.recv() => match command {
                    Some(Command::Stop { forget }) if self.desk.is_active() => {
                        // First the way back, so that nobody stays blocked; its end ends the run.
                        self.desk.tell(Input::Abort);
                        self.stop_wish = Some(forget);
                    }
                    Some(Command::Stop { forget }) => {
                        // What was received before the wish is applied first, where that is a matter of moments.
                        let caught_up = self.end.status.borrow().state == State::CaughtUp;
                        if caught_up && draining.is_none() {
                            draining = Some((self.source.spool.received(), Instant::now() + DRAIN_LIMIT, forget));
                        } else {
                            break Some(Ending::Wished { forget });
                        }
                    }
                    Some(command) => self.obey(command),
                    // Every front is gone: the migration goes on.
                    None => std::future::pending().await,
                },
                end = self.desk.ended() => match (end, self.stop_wish) {
                    (End::Switched(handover), _) => {
                        self.source.enter(Phase::Drained, None);
                        break Some(Ending::Switched(handover));
                    }
                    (End::Back, Some(forget)) => break Some(Ending::Wished { forget }),
                    (End::Back, None) => self.publish(None, None),
                },
                result = &mut source.handle, if !source.ended => {
                    source.ended = true;
                    if let Some(outcome) = source_outcome(result) {
                        self.source.enter(Phase::Failed, Some(outcome.message.clone()));
                        if outcome.exit_code != exit::SOURCE || !self.source.spool.close() {
                            break Some(Ending::Failed(outcome));
                        }
                        self.events.error("", format!("{}; what was received before is still applied", outcome.message));
                        source.gone = Some(outcome);
                    }
                }
                result = &mut replay, if !replay_ended => {
                    replay_ended = true;
                    match replay_outcome(result) {
                        Ok(ReplayEnd::AllHandedOver) => {
                            all_handed_over = true;
                            let _ = self.stop_source.send(true);
                        }
                        Ok(ReplayEnd::Stopped) => {}
                        Err(outcome) => {
                            self.source.enter(Phase::Failed, Some(outcome.message.clone()));
                            break Some(Ending::Failed(outcome));
                        }
                    }
                }
                result = &mut writer, if !writer_ended => {
                    writer_ended = true;
                    match writer_outcome(result) {
                        WriterEnd::Closed => {}
                        WriterEnd::Failed(outcome) => break Some(Ending::Failed(outcome)),
                        WriterEnd::Rewound(found) => {
                            self.events.warn("", format!("{found}; looking where to go on"));
                            break None;
                        }
                    }
                }
            }
        };
        if self.desk.is_active() && ending.is_some() {
            self.take_back().await;
        }
        // In this order: what is in flight is answered, then nothing more is read.
        if ending.is_some() {
            let state = (!matches!(ending, Some(Ending::Switched(_)))).then_some(State::Stopping);
            self.publish(state, None);
            self.wishes.send_modify(|wishes| wishes.stop = true);
        }
        if !writer_ended && tokio::time::timeout(WRITER_LIMIT, &mut writer).await.is_err() {
            // Stuck in a write to a destination that stands still; the checkpoint knows what it has.
            writer.abort();
        }
        self.source.spool.stop();
        if !replay_ended {
            let _ = replay.await;
        }
        self.source.spool.reopen();
        ending
    }

    /// The run ends for another reason while a cutover is under way: its writers must not stay blocked.
    async fn take_back(&mut self) {
        self.desk.tell(Input::Abort);
        let mut tick = interval(SNAPSHOT_INTERVAL);
        loop {
            tokio::select! {
                _ = self.desk.ended() => return,
                _ = tick.tick() => self.publish(None, None),
            }
        }
    }

    fn handover(&self, writes_stopped: bool) -> Handover {
        Handover {
            plan: self.plan.clone(),
            run_id: self.data_dir.run_id().to_owned(),
            dir: self.data_dir.path().to_owned(),
            sources: self.source_sides(),
            writer: self.writer.clone(),
            wishes: self.wishes.clone(),
            events: self.events.clone(),
            board: self.board.clone(),
            status: self.end.status.subscribe(),
            writes_stopped,
            home: self.home.clone(),
            progress: Default::default(),
        }
    }

    fn source_sides(&self) -> Vec<SourceSide> {
        match &self.plan.reader {
            Reader::Sync(reader) => {
                vec![SourceSide { endpoint: reader.endpoint.clone(), shared: self.source.clone() }]
            }
            // A file has no writers.
            Reader::Rdb { .. } => Vec::new(),
        }
    }

    /// The outcome of a source that is gone for good, once everything that it sent is applied.
    fn drained(&self, gone: Outcome) -> Outcome {
        let applied = self.source.offset_applied.load(Relaxed);
        let arrived = self.source.spool.received_at(applied).map_or(String::new(), |unix_ms| {
            format!(", which had arrived by {} UTC", format::date_time_utc(unix_ms))
        });
        Outcome {
            exit_code: gone.exit_code,
            message: format!(
                "{}. Everything received before is applied: the destination stands at offset {applied} of {}{arrived}",
                gone.message.trim_end_matches('.'),
                self.source.address
            ),
            hint: Some(format!(
                "start again with the same configuration when the source is back: it goes on from there if the source \
                 still can (state is in '{}')",
                self.data_dir.path().display()
            )),
        }
    }

    fn obey(&mut self, command: Command) {
        self.desk.note(&command);
        match command {
            Command::Pause | Command::Resume | Command::RestartSource { .. } if self.desk.is_active() => {
                self.events.warn("", "not now: a cutover is in progress (abort it first)");
            }
            Command::Pause => {
                if !self.wishes.borrow().paused {
                    self.publisher.paused_times += 1;
                    self.events
                        .info("", "paused by the operator; the source is still received into the spool");
                }
                self.wishes.send_modify(|wishes| wishes.paused = true);
            }
            Command::Resume => {
                if self.wishes.borrow().paused {
                    self.events.info("", "resumed by the operator");
                }
                self.wishes.send_modify(|wishes| wishes.paused = false);
            }
            Command::Throttle { limit } => {
                self.wishes.send_modify(|wishes| wishes.throttle = limit);
                let words = match (limit.bytes_per_second, limit.ops_per_second) {
                    (None, None) => "speed limit lifted by the operator".to_owned(),
                    (bytes, ops) => format!(
                        "speed limited by the operator: {}{}",
                        bytes.map_or(String::new(), |bytes| format!("{} ", format::rate(bytes as f64))),
                        ops.map_or(String::new(), |ops| format!("{ops} commands/s")),
                    ),
                };
                self.events.info("", words);
            }
            Command::AcknowledgeErrors => self.events.acknowledge_errors(),
            Command::RestartSource { address } if address == self.source.address => {
                self.source.restart.notify_one();
            }
            Command::RestartSource { address } => {
                self.events.warn("", format!("no source is called '{}'", address.escape_debug()));
            }
            Command::Verify => self.verify(),
            Command::StopVerify => self.verifying.iter().for_each(Verifying::cancel),
            Command::StartCutover { confirmation, writes_stopped } => {
                if self.source_sides().is_empty() {
                    self.desk.refuse("an RDB file has no writers that could be moved".into());
                } else if self.source.spool.manifest().is_none() {
                    self.desk.refuse("nothing was received from the source yet".into());
                } else {
                    let handover = self.handover(writes_stopped);
                    self.desk.start(&confirmation, || handover);
                }
            }
            Command::AbortCutover => self.desk.tell(Input::Abort),
            Command::HandOver => self.desk.tell(Input::Go),
            Command::Preflight => {
                let sides = self.source_sides();
                self.desk.examine(sides);
            }
            Command::Unfence => self.desk.lift(),
            Command::Stop { .. } => {}
        }
        self.publish(None, None);
    }

    /// Turns the ending into the outcome; cleans up where the migration is over.
    async fn conclude(&mut self, ending: Ending, checkpoint_key: &str) -> Outcome {
        let applied = self.source.offset_applied.load(Relaxed);
        let entries = self.source.entries_applied.load(Relaxed);
        let stands = if self.source.details().full_sync_since.is_none() && applied == 0 {
            "nothing was copied".to_owned()
        } else {
            let place = match self.plan.reader {
                Reader::Sync(_) => format!(", up to offset {} of", format::number(applied)),
                Reader::Rdb { .. } => " from the file".to_owned(),
            };
            format!("{} entries applied{place} {}", format::number(entries), self.source.address)
        };
        let message = match ending {
            Ending::Failed(outcome) | Ending::After(outcome) => return outcome,
            // Followed by the time after the switch, which has an ending of its own.
            Ending::Switched(_) => return outcome(exit::DONE, format!("switched: {stands}")),
            Ending::Wished { forget: false } => {
                // A source that never answered is what the operator has to know, not that we stopped waiting for it.
                let details = self.source.details().clone();
                if let (true, Some(error)) = (self.source.spool.manifest().is_none(), details.last_error) {
                    return outcome(exit::SOURCE, format!("stopped before the source was ready: {error}"));
                }
                return Outcome {
                    exit_code: exit::INTERRUPTED,
                    message: format!("stopped: {stands}"),
                    hint: Some(format!(
                        "start again with the same configuration to go on from there (state is in '{}')",
                        self.data_dir.path().display()
                    )),
                };
            }
            Ending::Wished { forget: true } => format!("finished on request: {stands}"),
            Ending::Complete => format!("finished: {stands}"),
        };
        if let Err(problem) = self.forget(checkpoint_key).await {
            return outcome(exit::DESTINATION, problem);
        }
        if let Err(error) = self.data_dir.forget() {
            return data_dir_failed(error);
        }
        match self.quarantine.count() {
            0 => Outcome { exit_code: exit::DONE, message, hint: None },
            count => Outcome {
                exit_code: exit::QUARANTINE,
                message: format!("{message}; {count} entries are in quarantine"),
                hint: Some(format!("look at '{}'", self.quarantine.path().display())),
            },
        }
    }

    /// Removes what must not outlive the migration: checkpoint and half-built values on the destination, the spool here.
    pub(super) async fn forget(&mut self, checkpoint_key: &str) -> Result<(), String> {
        let forgotten = async {
            let mut connection = Connection::open(&self.plan.writer.endpoint).await?;
            connection.request(&[b"DEL", checkpoint_key.as_bytes()]).await?;
            ImportMode::put_back(self.data_dir.path(), &mut connection, &self.events).await?;
            // A value that was being built when the run was ended.
            for db in 0..u32::MAX {
                if matches!(
                    connection.request(&[b"SELECT", db.to_string().as_bytes()]).await?,
                    Reply::Error(_)
                ) {
                    break;
                }
                let run_id = self.data_dir.run_id();
                connection.request(&[b"DEL", &building_key(run_id), &rebuilding_key(run_id)]).await?;
            }
            Ok::<_, NetError>(())
        };
        forgotten.await.map_err(|error| {
            format!("the checkpoint key '{checkpoint_key}' could not be removed: {error}")
        })?;
        ledger::forget(self.source.spool.dir())
            .and_then(|()| self.source.spool.forget())
            .map_err(|error| error.to_string())
    }

    pub(super) fn publish(&mut self, ending: Option<State>, outcome: Option<Outcome>) {
        let wishes = *self.wishes.borrow();
        let status = self.publisher.snapshot(wishes, ending, outcome);
        if status.ready {
            self.desk.ready();
        }
        self.end.status.send_replace(Arc::new(status));
    }
}
