//! The engine: all sockets, files, tasks and clocks. It knows no front and never waits for one.
//!
//! ```text
//!  source task --append--> spool --read--> replay thread --batches--> writer task --> destination
//!       |                    ^                                            |
//!      ACK                   +------------- confirmed offset -------------+
//!  supervisor: Command --> wishes (watch) --> tasks;   meters --> Status --> watch --> fronts
//! ```

mod batch;
mod data_dir;
mod events;
mod net;
mod publish;
mod quarantine;
mod replay;
mod room;
mod rules;
mod shared;
mod source;
mod spool;
pub mod verify;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use self::batch::{BATCH_BYTES, Position, Progress};
use self::data_dir::{DataDir, DataDirError};
use self::events::EventLog;
use self::net::{Connection, NetError};
use self::publish::{Identity, Publisher};
use self::quarantine::Quarantine;
use self::replay::{BUILDING_KEY, Replay, ReplayEnd, ReplayError};
use self::shared::{SourceShared, Wishes, WriterShared};
use self::source::{Source, SourceError};
use self::spool::{Manifest, Spool, SpoolError};
use self::verify::{Settle, Verify, Verifying};
use self::writer::{Writer, WriterError, read_checkpoint};
use crate::config::{Plan, Reader, SyncReader};
use crate::control::{Command, EngineEnd, Handle, channel};
use crate::format;
use crate::rdb::dump::Target;
use crate::resp::Reply;
use crate::status::{Outcome, Phase, State};

/// Exit codes of the process (README, "Exit codes").
pub mod exit {
    /// Done.
    pub const DONE: i32 = 0;
    /// Usage or configuration.
    pub const CONFIG: i32 = 2;
    /// Source.
    pub const SOURCE: i32 = 3;
    /// Destination.
    pub const DESTINATION: i32 = 4;
    /// Finished, but entries are in quarantine.
    pub const QUARANTINE: i32 = 5;
    /// Verification found differences.
    pub const DIFFERENT: i32 = 6;
    /// Spool or disk.
    pub const SPOOL: i32 = 8;
    /// Interrupted, can be resumed.
    pub const INTERRUPTED: i32 = 75;
}

/// How long a stop in the caught-up state may take to apply what was received before it.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How long a writer may take to end: a little more than it gives its destination.
const WRITER_LIMIT: Duration = Duration::from_secs(12);
/// Time between two snapshots.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(250);

/// A running migration.
pub struct Engine {
    /// For fronts.
    pub handle: Handle,
    /// Resolves when everything has ended.
    pub finished: JoinHandle<Outcome>,
}

/// Starts a migration. `log_file` is only shown. Must be called inside a tokio runtime with several threads.
///
/// Fails at once when the data directory cannot be used; everything later is told by the status.
pub fn start(plan: Plan, log_file: Option<PathBuf>) -> Result<Engine, Outcome> {
    let Reader::Sync(reader) = plan.reader.clone() else {
        return Err(outcome(exit::CONFIG, "[rdb_reader] is not supported yet: use [sync_reader]".into()));
    };
    let source_address = reader.endpoint.address.to_string();
    let destination_address = plan.writer.endpoint.address.to_string();
    let data_dir =
        DataDir::take(&plan.advanced.dir, &source_address, &destination_address).map_err(data_dir_failed)?;
    let spool =
        Spool::open(&data_dir.spool_path(&source_address)).map_err(|error| data_dir_failed(error.into()))?;

    let events = Arc::new(EventLog::default());
    for notice in &plan.notices {
        events.info("configuration", notice.clone());
    }
    let quarantine = Arc::new(Quarantine::new(data_dir.path()));
    let source = Arc::new(SourceShared::new(source_address, spool));
    let writer = Arc::new(WriterShared::new(destination_address));
    let mut warnings = Vec::new();
    for (side, endpoint) in [("source", &reader.endpoint), ("destination", &plan.writer.endpoint)] {
        if endpoint.tls.as_ref().is_some_and(|tls| tls.insecure) {
            warnings.push(format!("TLS NOT VERIFIED: {side}"));
        }
    }
    let identity = Identity {
        run_id: data_dir.run_id().to_owned(),
        data_dir: data_dir.path().display().to_string(),
        log_file: log_file.map(|path| path.display().to_string()),
        warnings,
    };
    let mut publisher = Publisher::new(
        identity,
        plan.clone(),
        vec![source.clone()],
        vec![writer.clone()],
        events.clone(),
        quarantine.clone(),
    );
    let (handle, end) = channel(publisher.snapshot(Wishes::default(), None, None));
    let supervisor = Supervisor {
        plan,
        reader,
        data_dir,
        events,
        quarantine,
        source,
        writer,
        publisher,
        end,
        wishes: watch::channel(Wishes::default()).0,
        stop_source: watch::channel(false).0,
        verifying: None,
    };
    Ok(Engine { handle, finished: tokio::spawn(supervisor.run()) })
}

/// Owns every task of a run.
struct Supervisor {
    plan: Plan,
    reader: SyncReader,
    data_dir: DataDir,
    events: Arc<EventLog>,
    quarantine: Arc<Quarantine>,
    source: Arc<SourceShared>,
    writer: Arc<WriterShared>,
    publisher: Publisher,
    end: EngineEnd,
    wishes: watch::Sender<Wishes>,
    stop_source: watch::Sender<bool>,
    verifying: Option<Verifying>,
}

/// Why a run ends.
enum Ending {
    /// The operator, or a script, wished it.
    Wished { forget: bool },
    /// All that was asked for is done.
    Complete,
    /// An error.
    Failed(Outcome),
}

/// The tasks of a run; each is joined exactly once.
struct Tasks {
    source: JoinHandle<Result<(), SourceError>>,
    replay: oneshot::Receiver<Result<ReplayEnd, ReplayError>>,
    writer: JoinHandle<Result<(), WriterError>>,
}

impl Supervisor {
    async fn run(mut self) -> Outcome {
        let checkpoint_key = format!("shakedeck:checkpoint:{}", self.data_dir.run_id());
        let ending = match self.begin(&checkpoint_key).await {
            Ok(Some(tasks)) => self.supervise(tasks).await,
            Ok(None) => Ending::Wished { forget: false },
            Err(outcome) => Ending::Failed(outcome),
        };
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

    /// Looks at the destination, decides where to begin, starts the tasks. `None` when stopped meanwhile.
    async fn begin(&mut self, checkpoint_key: &str) -> Result<Option<Tasks>, Outcome> {
        let (target, run_id, checkpoint) = {
            let looking = look_at_destination(&self.plan, checkpoint_key, &self.source.address);
            tokio::pin!(looking);
            let mut tick = interval(SNAPSHOT_INTERVAL);
            loop {
                tokio::select! {
                    looked = &mut looking => {
                        let found = looked.map_err(|error| outcome(exit::DESTINATION, error.to_string()))?;
                        self.publisher.destination_server = found.server;
                        break (found.target, found.run_id, found.checkpoint);
                    }
                    _ = tick.tick() => {
                        let status = self.publisher.snapshot(*self.wishes.borrow(), None, None);
                        self.end.status.send_replace(Arc::new(status));
                    }
                    command = self.end.commands.recv() => match command {
                        Some(Command::Stop { .. }) | None => return Ok(None),
                        Some(_) => {}
                    }
                }
            }
        };
        let began_before = checkpoint.is_some();
        let (resume, after_generation) = self.where_to_begin(checkpoint)?;
        let (batches, queue) = mpsc::channel(2);
        let replay = Replay {
            shared: self.source.clone(),
            events: self.events.clone(),
            quarantine: self.quarantine.clone(),
            filter: self.plan.filter.clone(),
            sync_rdb: self.reader.sync_rdb,
            sync_aof: self.reader.sync_aof,
            on_existing_key: self.plan.advanced.on_existing_key,
            on_bad_value: self.plan.policy.on_bad_value,
            empty_destination: self.plan.advanced.empty_db_before_sync,
            target,
            max_bulk_len: self.plan.advanced.max_bulk_len,
            // Two batches may be unanswered at a time.
            command_limit: (self.plan.advanced.pipeline_count_limit / 2).max(1),
            byte_limit: usize::try_from(self.plan.advanced.max_querybuf_len / 2)
                .map_or(BATCH_BYTES, |half| half.min(BATCH_BYTES)),
            resume,
            after_generation,
            began_before,
            batches,
        };
        let writer = Writer {
            endpoint: self.plan.writer.endpoint.clone(),
            checkpoint_key: checkpoint_key.to_owned(),
            shared: self.writer.clone(),
            events: self.events.clone(),
            quarantine: self.quarantine.clone(),
            on_bad_value: self.plan.policy.on_bad_value,
            wishes: self.wishes.subscribe(),
            batches: queue,
        };
        let source = Source {
            reader: self.reader.clone(),
            limits: self.plan.spool,
            policy: self.plan.policy,
            destination_run_id: run_id,
            shared: self.source.clone(),
            events: self.events.clone(),
            stop: self.stop_source.subscribe(),
        };
        let (replay_sender, replay_receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name("replay".into()).spawn(move || {
            // A receiver that is gone means that the run has ended: nobody is left to tell.
            let _ = replay_sender.send(replay.run());
        });
        thread.map_err(|error| outcome(exit::SPOOL, format!("cannot start the replay thread: {error}")))?;
        Ok(Some(Tasks {
            source: tokio::spawn(source.run()),
            replay: replay_receiver,
            writer: tokio::spawn(writer.run()),
        }))
    }

    /// Compares what the spool and the destination say about a former run.
    fn where_to_begin(&self, checkpoint: Option<Progress>) -> Result<(Option<Progress>, u64), Outcome> {
        let spool = &self.source.spool;
        let Some(manifest) = spool.manifest() else { return Ok((None, 0)) };
        if manifest.rdb_len.is_none() {
            self.events.info(
                "",
                "the former run ended inside a full sync that was not whole on disk; a new one is needed",
            );
            return Ok((None, manifest.generation));
        }
        self.source.details().rdb_total = manifest.rdb_len;
        let lost = |found: String| {
            outcome(
                exit::DESTINATION,
                format!(
                    "{}: the destination's checkpoint is {found}, but the spool in '{}' belongs to a run that had applied \
                     more: the destination lost data (restarted from an older snapshot, or flushed). Remove the data \
                     directory for a new full sync.",
                    self.writer.address,
                    spool.dir().display()
                ),
            )
        };
        let Some(progress) = checkpoint else {
            if manifest.rdb_applied {
                return Err(lost("missing".into()));
            }
            self.events.info("", "going on with the RDB that a former run left on disk");
            return Ok((Some(rdb_start(&manifest)), manifest.generation - 1));
        };
        match progress.at {
            Position::Rdb { offset, bytes, .. } if offset == manifest.rdb_offset && !manifest.rdb_applied => {
                self.source.rdb_applied.store(bytes, Relaxed);
                self.source.offset_applied.store(offset, Relaxed);
                self.events.info("", format!("going on inside the RDB, after {bytes} bytes"));
            }
            Position::Stream { offset, .. }
                if offset >= manifest.rdb_offset && offset <= spool.received() =>
            {
                spool.release_rdb().map_err(|error| data_dir_failed(error.into()))?;
                self.source.rdb_applied.store(manifest.rdb_len.unwrap_or(0), Relaxed);
                self.source.offset_applied.store(offset, Relaxed);
                self.events.info("", format!("going on in the stream, after offset {offset}"));
            }
            _ => return Err(lost(format!("'{progress}'"))),
        }
        // A promotion of the source may have renamed the history after the checkpoint was written.
        let progress = Progress { replid: manifest.replid.clone(), at: progress.at };
        Ok((Some(progress), manifest.generation - 1))
    }

    /// Publishes, obeys and watches until the run ends; returns after every task has ended.
    async fn supervise(&mut self, tasks: Tasks) -> Ending {
        let Tasks { mut source, mut replay, mut writer } = tasks;
        let mut tick = interval(SNAPSHOT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut source_ended, mut replay_ended, mut writer_ended) = (false, false, false);
        let mut all_handed_over = false;
        let mut draining: Option<(u64, Instant, bool)> = None;
        let ending = loop {
            if all_handed_over && writer_ended {
                // The queue was closed and everything in it is confirmed.
                self.source.enter(Phase::Drained, None);
                break Ending::Complete;
            }
            tokio::select! {
                _ = tick.tick() => {
                    let state = draining.map(|_| State::Stopping);
                    self.publish(state, None);
                    if let Some((target, deadline, forget)) = draining
                        && (self.source.offset_applied.load(Relaxed) >= target || Instant::now() >= deadline)
                    {
                        break Ending::Wished { forget };
                    }
                }
                command = self.end.commands.recv() => match command {
                    Some(Command::Stop { forget }) => {
                        // What was received before the wish is applied first, where that is a matter of moments.
                        let caught_up = self.end.status.borrow().state == State::CaughtUp;
                        if caught_up && draining.is_none() {
                            draining = Some((self.source.spool.received(), Instant::now() + DRAIN_LIMIT, forget));
                        } else {
                            break Ending::Wished { forget };
                        }
                    }
                    Some(command) => self.obey(command),
                    // Every front is gone: the migration goes on.
                    None => std::future::pending().await,
                },
                result = &mut source, if !source_ended => {
                    source_ended = true;
                    if let Some(outcome) = source_outcome(result) {
                        self.source.enter(Phase::Failed, Some(outcome.message.clone()));
                        break Ending::Failed(outcome);
                    }
                }
                result = &mut replay, if !replay_ended => {
                    replay_ended = true;
                    match replay_outcome(result) {
                        Ok(ReplayEnd::RdbOnly) => {
                            all_handed_over = true;
                            let _ = self.stop_source.send(true);
                        }
                        Ok(ReplayEnd::Stopped) => {}
                        Err(outcome) => {
                            self.source.enter(Phase::Failed, Some(outcome.message.clone()));
                            break Ending::Failed(outcome);
                        }
                    }
                }
                result = &mut writer, if !writer_ended => {
                    writer_ended = true;
                    if let Some(outcome) = writer_outcome(result) {
                        break Ending::Failed(outcome);
                    }
                }
            }
        };
        // In this order: what is in flight is answered, then nothing more is read, then the link is closed.
        self.publish(Some(State::Stopping), None);
        self.wishes.send_modify(|wishes| wishes.stop = true);
        if !writer_ended && tokio::time::timeout(WRITER_LIMIT, &mut writer).await.is_err() {
            // Stuck in a write to a destination that stands still; the checkpoint knows what it has.
            writer.abort();
        }
        self.source.spool.stop();
        if !replay_ended {
            let _ = replay.await;
        }
        let _ = self.stop_source.send(true);
        if !source_ended {
            let _ = source.await;
        }
        ending
    }

    fn obey(&mut self, command: Command) {
        match command {
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
            Command::StartCutover { .. } | Command::AbortCutover => {
                self.events.warn("", "cutover is not in this version yet");
            }
            Command::Stop { .. } => {}
        }
        self.publish(None, None);
    }

    /// Starts a comparison, unless one runs or nothing could be said.
    fn verify(&mut self) {
        if self.verifying.as_ref().is_some_and(Verifying::is_running) {
            return self.events.warn("", "a verification runs already");
        }
        let options = crate::verify::Options::default();
        let verifying = match self.end.status.borrow().state {
            State::Streaming | State::CaughtUp => Verifying::start(
                Verify {
                    options,
                    source: vec![self.reader.endpoint.clone()],
                    destination: vec![self.plan.writer.endpoint.clone()],
                    filter: self.plan.filter.clone(),
                    settle: Settle::Streaming(self.source.clone()),
                    dir: Some(self.data_dir.path().to_owned()),
                    output: None,
                    resume: false,
                    repair: None,
                    events: Some(self.events.clone()),
                },
                self.events.clone(),
            ),
            state => {
                let why = format!(
                    "the migration is {}: nothing can be said before every source streams and the stream is applied",
                    state.word()
                );
                Verifying::refused(&options, &why, &self.events)
            }
        };
        self.publisher.verification = Some(verifying.progress.clone());
        self.verifying = Some(verifying);
    }

    /// Turns the ending into the outcome; cleans up where the migration is over.
    async fn conclude(&mut self, ending: Ending, checkpoint_key: &str) -> Outcome {
        let applied = self.source.offset_applied.load(Relaxed);
        let entries = self.source.entries_applied.load(Relaxed);
        let stands = if self.source.details().full_sync_since.is_none() && applied == 0 {
            "nothing was copied".to_owned()
        } else {
            format!(
                "{} entries applied, up to offset {} of {}",
                format::number(entries),
                format::number(applied),
                self.source.address
            )
        };
        let message = match ending {
            Ending::Failed(outcome) => return outcome,
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
        let forgotten = async {
            let mut connection = Connection::open(&self.plan.writer.endpoint).await?;
            connection.request(&[b"DEL", checkpoint_key.as_bytes()]).await?;
            // A value that was being built when the run was ended.
            for db in 0..u32::MAX {
                if matches!(
                    connection.request(&[b"SELECT", db.to_string().as_bytes()]).await?,
                    Reply::Error(_)
                ) {
                    break;
                }
                connection.request(&[b"DEL", BUILDING_KEY]).await?;
            }
            Ok::<_, NetError>(())
        };
        if let Err(error) = forgotten.await {
            return outcome(
                exit::DESTINATION,
                format!("the checkpoint key '{checkpoint_key}' could not be removed: {error}"),
            );
        }
        if let Err(error) =
            self.source.spool.forget().map_err(DataDirError::from).and_then(|()| self.data_dir.forget())
        {
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

    fn publish(&mut self, ending: Option<State>, outcome: Option<Outcome>) {
        let wishes = *self.wishes.borrow();
        let status = self.publisher.snapshot(wishes, ending, outcome);
        self.end.status.send_replace(Arc::new(status));
    }
}

/// What the destination says before anything is sent to it.
struct Destination {
    target: Target,
    server: Option<String>,
    run_id: Option<String>,
    checkpoint: Option<Progress>,
}

async fn look_at_destination(
    plan: &Plan,
    checkpoint_key: &str,
    source: &str,
) -> Result<Destination, NetError> {
    let mut connection = Connection::open(&plan.writer.endpoint).await?;
    let refused = |reply: String, cure: &str| NetError::Refused {
        address: plan.writer.endpoint.address.clone(),
        what: "INFO".into(),
        reply,
        cure: cure.into(),
    };
    let info = match connection.request(&[b"INFO"]).await? {
        Reply::Bulk(info) => String::from_utf8_lossy(&info).into_owned(),
        Reply::Error(reply) if reply.starts_with("NOAUTH") => {
            return Err(refused(
                reply,
                "The destination wants a password: set 'password' (and 'username') in [redis_writer].",
            ));
        }
        Reply::Error(reply) if reply.starts_with("NOPERM") => {
            return Err(refused(
                reply,
                "The destination's user needs +info: its version decides how values are sent.",
            ));
        }
        Reply::Error(reply) => return Err(refused(reply, "Look at the destination's log.")),
        other => return Err(refused(format!("{other:?}"), "Is this a Redis or Valkey server?")),
    };
    if net::info_field(&info, "cluster_enabled") == Some("1") {
        return Err(refused("cluster_enabled:1".into(), "The destination is a cluster: not supported yet."));
    }
    let checkpoint =
        match read_checkpoint(&mut connection, checkpoint_key, source.as_bytes()).await? {
            Some(text) => Some(text.parse().map_err(|error: String| {
                refused(error, "Remove that key, or use the version that wrote it.")
            })?),
            None => None,
        };
    Ok(Destination {
        target: replay::target_of(&info),
        server: source::server_name(&info),
        run_id: net::info_field(&info, "run_id").map(str::to_owned),
        checkpoint,
    })
}

fn rdb_start(manifest: &Manifest) -> Progress {
    Progress {
        replid: manifest.replid.clone(),
        at: Position::Rdb { offset: manifest.rdb_offset, bytes: 0, db: 0 },
    }
}

fn outcome(exit_code: i32, message: String) -> Outcome {
    Outcome { exit_code, message, hint: None }
}

fn data_dir_failed(error: DataDirError) -> Outcome {
    outcome(exit::SPOOL, error.to_string())
}

fn spool_failed(error: &SpoolError) -> Outcome {
    outcome(exit::SPOOL, error.to_string())
}

/// `None` = ended in order.
fn source_outcome(result: Result<Result<(), SourceError>, tokio::task::JoinError>) -> Option<Outcome> {
    match result {
        Ok(Ok(())) => None,
        Ok(Err(SourceError::Spool(error))) => Some(spool_failed(&error)),
        Ok(Err(error)) => Some(outcome(exit::SOURCE, error.to_string())),
        Err(panic) => {
            Some(outcome(exit::SOURCE, format!("the source task failed: {panic}; please report this")))
        }
    }
}

fn replay_outcome(
    result: Result<Result<ReplayEnd, ReplayError>, oneshot::error::RecvError>,
) -> Result<ReplayEnd, Outcome> {
    match result {
        Ok(Ok(end)) => Ok(end),
        Ok(Err(ReplayError::Spool(error))) => Err(spool_failed(&error)),
        Ok(Err(error @ ReplayError::Read(_))) => Err(outcome(exit::SPOOL, error.to_string())),
        Ok(Err(error)) => Err(outcome(exit::SOURCE, error.to_string())),
        Err(_) => {
            Err(outcome(exit::SOURCE, "the replay thread failed (see the log); please report this".into()))
        }
    }
}

/// `None` = ended in order.
fn writer_outcome(result: Result<Result<(), WriterError>, tokio::task::JoinError>) -> Option<Outcome> {
    match result {
        Ok(Ok(())) => None,
        Ok(Err(WriterError::Spool(error))) => Some(spool_failed(&error)),
        Ok(Err(error)) => Some(outcome(exit::DESTINATION, error.to_string())),
        Err(panic) => {
            Some(outcome(exit::DESTINATION, format!("the writer task failed: {panic}; please report this")))
        }
    }
}
