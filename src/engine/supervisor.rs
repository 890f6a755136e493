//! Owns a run: finds its sources, starts a line for each, publishes the status, obeys the fronts, and ends everything in
//! order.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::data_dir::DataDir;
use super::discovery::discover;
use super::events::EventLog;
use super::handover::{Board, Desk, End, Handover, Home, Record, SourceSide};
use super::line::{Line, LineEnd};
use super::net::{Connection, NetError};
use super::outcome::{data_dir_failed, exit, outcome};
use super::publish::Publisher;
use super::quarantine::Quarantine;
use super::reshape::{Reshape, Watch};
use super::room::Quota;
use super::shard::{Shard, Shards, Site};
use super::shared::{SourceShared, Wishes, Writers};
use super::spool::{Spool, SpoolError};
use super::turns::Turns;
use super::verify::Verifying;
use crate::config::{self, Plan, Reader, SyncReader};
use crate::control::{Command, EngineEnd};
use crate::cutover::Input;
use crate::format;
use crate::resp::Reply;
use crate::status::{Outcome, Phase, State};

/// How long a stop in the caught-up state may take to apply what was received before it.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Time between two snapshots.
pub(super) const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(250);
/// Why something is not done while a cutover is under way.
pub(super) const NOT_NOW: &str = "not now: a cutover is in progress (abort it first)";

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
    /// One for each source, once they are found.
    pub lines: Vec<Line>,
    /// What the writers of all lines tell.
    pub writers: Arc<Writers>,
    /// Makes the status.
    pub publisher: Publisher,
    /// The verification that runs, or the last one.
    pub verifying: Option<Verifying>,
    /// The fronts.
    pub end: EngineEnd,
    /// The operator's wishes, seen by every task.
    pub wishes: watch::Sender<Wishes>,
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
    /// What the spools of all lines may take.
    pub quota: Arc<Quota>,
    /// What is being done about slots of the source that have moved.
    pub reshape: Reshape,
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

impl Supervisor {
    /// Runs the migration to its end.
    pub async fn run(mut self) -> Outcome {
        let ending = self.whole_run().await;
        let mut outcome = self.conclude(ending).await;
        let cutover = self.board.view();
        if let (Some(refusing), false) = (cutover.refusing.first(), cutover.state.is_switched()) {
            outcome.hint = Some(format!(
                "{refusing} may still refuse writes since a cutover that went back: a start with the same configuration puts it \
                 back, or 'shakedeck ctl --dir {} unfence shake.toml'",
                self.data_dir.path().display()
            ));
        }
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
    async fn whole_run(&mut self) -> Ending {
        match self.record.take() {
            Some(record) if record.is_final() => return self.go_on_after_switch(record).await,
            Some(record) if record.rolled_back => {
                if let Err(ending) = self.begin_after_rollback().await {
                    return ending;
                }
            }
            Some(record) => {
                if let Err(problem) = self.put_back_after_crash(record) {
                    return Ending::Failed(outcome(exit::CONFIG, problem));
                }
            }
            None => {}
        }
        match self.migrate().await {
            Ending::Switched(handover) => {
                let stop_at_once = self.stop_wish.is_some();
                self.after_switch(Some(handover), stop_at_once).await
            }
            ending => ending,
        }
    }

    /// Finds the masters of a source cluster, or remembers which they were.
    async fn find_shards(&mut self, reader: &SyncReader) -> Result<Arc<Shards>, Ending> {
        let dir = self.data_dir.path().to_owned();
        let failed = |error: SpoolError| Ending::Failed(data_dir_failed(error.into()));
        let without_slots = || {
            let problem = format!("{}: no master of this cluster has slots", reader.endpoint.address);
            Ending::Failed(outcome(exit::SOURCE, problem))
        };
        let shards = match Shards::read(&dir, &reader.endpoint).map_err(failed)? {
            Some(shards) => shards,
            None => {
                let cluster = self
                    .meanwhile(discover(std::slice::from_ref(&reader.endpoint)))
                    .await?
                    .map_err(|error| Ending::Failed(outcome(exit::SOURCE, error.to_string())))?;
                // Nothing of this is remembered: a node that is out of its cluster says so too.
                if cluster.masters().is_empty() {
                    return Err(without_slots());
                }
                Shards::note(&dir, &reader.endpoint, &cluster).map_err(failed)?
            }
        };
        let turns = Arc::new(Turns::new(reader.full_sync_parallel));
        let mut copied = Vec::new();
        for (name, shard) in shards.lines() {
            let source = self.add_shard(&name, shard.clone(), turns.clone()).map_err(failed)?;
            let generation = source.spool.manifest().map_or(0, |manifest| manifest.generation);
            if shard.awaits_next(generation) {
                source.full_sync_wanted.store(true, Relaxed);
                copied.push((source, generation));
            }
        }
        if !copied.is_empty() {
            self.reshape = Reshape::Copying(copied);
        }
        self.publisher.shards = Some(shards.clone());
        if self.lines.is_empty() {
            return Err(without_slots());
        }
        // Once for all lines, and never again in a run that goes on.
        let begun = self.has_begun();
        if self.plan.advanced.empty_db_before_sync && !begun {
            self.events.warn("", "empty_db_before_sync = true: the destination is emptied (FLUSHALL)");
            let writer = self.plan.writer.clone();
            self.meanwhile(empty(&writer))
                .await?
                .map_err(|error| Ending::Failed(outcome(exit::DESTINATION, error.to_string())))?;
        }
        for line in &mut self.lines {
            line.plan.advanced.empty_db_before_sync = false;
            line.known = begun;
        }
        let names: Vec<&str> = self.lines.iter().map(|line| line.source.address.as_str()).collect();
        let text = format!("the source is a cluster of {} masters: {}", names.len(), names.join(", "));
        self.events.info("", text);
        Ok(shards)
    }

    /// A master of the source cluster.
    pub(super) fn add_shard(
        &mut self,
        name: &str,
        shard: Shard,
        turns: Arc<Turns>,
    ) -> Result<Arc<SourceShared>, SpoolError> {
        let spool = Spool::open(&self.data_dir.spool_path(name))?;
        let source = Arc::new(SourceShared::new(name.to_owned(), spool));
        let id = format!("{}:{name}", self.data_dir.run_id());
        self.add_line(id, source.clone(), Some(Site::Shard(shard)), turns);
        Ok(source)
    }

    /// A source has been found. `id` names its line on the destination.
    pub(super) fn add_line(
        &mut self,
        id: String,
        source: Arc<SourceShared>,
        site: Option<Site>,
        turns: Arc<Turns>,
    ) {
        self.publisher.add_source(source.clone());
        self.quota.add(source.spool.clone());
        let known = source.spool.manifest().is_some() || self.has_begun();
        self.lines.push(Line {
            plan: self.plan.clone(),
            id,
            dir: self.data_dir.path().to_owned(),
            site,
            turns,
            known,
            quota: self.quota.clone(),
            source,
            writer: self.writers.add(&self.plan.writer.endpoint.address.to_string()),
            writers: self.writers.clone(),
            events: self.events.clone(),
            quarantine: self.quarantine.clone(),
            wishes: self.wishes.subscribe(),
        });
        let lines = self.lines.len();
        self.wishes.send_modify(|wishes| wishes.share_among(lines));
    }

    /// Whether a source has sent something, to this process or to a former one.
    fn has_begun(&self) -> bool {
        self.lines.iter().any(|line| line.source.spool.manifest().is_some())
    }

    /// A line that had ended, and whose source begins anew, is forgotten.
    pub(super) fn remove_line(&mut self, name: &str) {
        for line in self.lines.iter().filter(|line| line.source.address == name) {
            self.publisher.remove_source(&line.source);
            self.writers.remove(&line.writer, name);
        }
        self.lines.retain(|line| line.source.address != name);
    }

    /// Runs all lines and watches them; returns after every task has ended.
    async fn migrate(&mut self) -> Ending {
        let mut shards = None;
        if let Reader::Sync(reader) = self.plan.reader.clone()
            && reader.cluster
        {
            match self.find_shards(&reader).await {
                Ok(found) => shards = Some(found),
                Err(ending) => return ending,
            }
        }
        let mut running: JoinSet<LineEnd> = self.lines.iter().map(|line| line.clone().run()).collect();
        let mut ending = self.supervise(&mut running, shards).await;
        if self.desk.is_active()
            && let End::Switched(handover) = self.take_back().await
        {
            // It was past the point from which anything goes back: clients are on the destination, whatever ended here.
            if let Ending::Failed(outcome) = &ending {
                self.events.error("", format!("while the switch was made: {}", outcome.message));
            }
            ending = Ending::Switched(handover);
        }
        // In this order: what is in flight is answered, then nothing more is read.
        let state = (!matches!(ending, Ending::Switched(_))).then_some(State::Stopping);
        self.publish(state, None);
        self.wishes.send_modify(|wishes| wishes.stop = true);
        self.publishing(state, async { while running.join_next().await.is_some() {} }).await;
        ending
    }

    /// Waits for something that may take its time, a destination that stands still: what is shown must not grow old meanwhile.
    pub(super) async fn publishing<T>(
        &mut self,
        state: Option<State>,
        waited_for: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(waited_for);
        let mut tick = interval(SNAPSHOT_INTERVAL);
        loop {
            tokio::select! {
                result = &mut waited_for => return result,
                _ = tick.tick() => self.publish(state, None),
            }
        }
    }

    /// Waits for something while publishing and obeying; `Err` when the run shall end first.
    pub(super) async fn meanwhile<T>(&mut self, waited_for: impl Future<Output = T>) -> Result<T, Ending> {
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

    /// Publishes, obeys and watches until the run ends.
    async fn supervise(&mut self, running: &mut JoinSet<LineEnd>, shards: Option<Arc<Shards>>) -> Ending {
        let mut watch = shards.map(|shards| (Watch::start(shards.clone()), shards));
        let mut tick = interval(SNAPSHOT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining: Option<(Vec<u64>, Instant, bool)> = None;
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    let state = draining.as_ref().map(|_| State::Stopping);
                    self.publish(state, None);
                    if let Some((targets, deadline, forget)) = &draining {
                        let applied = self.lines.iter().map(|line| line.source.offset_applied.load(Relaxed));
                        let drained = applied.zip(targets).all(|(applied, target)| applied >= *target);
                        if drained || Instant::now() >= *deadline {
                            return Ending::Wished { forget: *forget };
                        }
                    }
                }
                command = self.end.commands.recv() => match command {
                    Some(Command::Stop { forget }) if self.desk.is_active() => {
                        self.desk.note(&Command::Stop { forget });
                        // First the way back, so that nobody stays blocked; its end ends the run.
                        self.desk.abort("the run was asked to stop");
                        self.stop_wish = Some(forget);
                    }
                    Some(Command::Stop { forget }) => {
                        // What was received before the wish is applied first, where that is a matter of moments.
                        let caught_up = self.end.status.borrow().state == State::CaughtUp;
                        if caught_up && draining.is_none() {
                            let targets = self.lines.iter().map(|line| line.source.spool.received()).collect();
                            draining = Some((targets, Instant::now() + DRAIN_LIMIT, forget));
                        } else {
                            return Ending::Wished { forget };
                        }
                    }
                    Some(command) => self.obey(command),
                    // Every front is gone: the migration goes on.
                    None => std::future::pending().await,
                },
                end = self.desk.ended() => match (end, self.stop_wish) {
                    (End::Switched(handover), _) => {
                        for line in &self.lines {
                            line.source.enter(Phase::Drained, None);
                        }
                        return Ending::Switched(handover);
                    }
                    (End::Back, Some(forget)) => return Ending::Wished { forget },
                    (End::Back, None) => self.publish(None, None),
                },
                lie = async { match &mut watch { Some((watch, _)) => watch.next().await, None => std::future::pending().await } } => {
                    if let Some((_, shards)) = &watch
                        && let Err(ending) = self.reshape(lie, &shards.clone(), running)
                    {
                        return ending;
                    }
                }
                end = running.join_next() => match end {
                    Some(Ok(LineEnd::Failed(outcome))) => return Ending::Failed(outcome),
                    Some(Ok(LineEnd::Complete | LineEnd::Stopped)) => {}
                    Some(Err(panic)) => {
                        let problem = format!("a line failed: {panic}; please report this");
                        return Ending::Failed(outcome(exit::SOURCE, problem));
                    }
                    None => return Ending::Complete,
                },
            }
        }
    }

    /// The run ends for another reason while a cutover is under way: its writers must not stay blocked.
    async fn take_back(&mut self) -> End {
        self.desk.abort("the run ends for another reason");
        let mut tick = interval(SNAPSHOT_INTERVAL);
        loop {
            tokio::select! {
                end = self.desk.ended() => return end,
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
            lines: self.lines.iter().map(|line| line.id.clone()).collect(),
            writers: self.writers.clone(),
            wishes: self.wishes.clone(),
            events: self.events.clone(),
            board: self.board.clone(),
            status: self.end.status.subscribe(),
            writes_stopped,
            home: self.home.clone(),
            shards: self.publisher.shards.clone(),
            progress: Default::default(),
        }
    }

    pub(super) fn source_sides(&self) -> Vec<SourceSide> {
        sides_of(&self.lines)
    }

    fn obey(&mut self, command: Command) {
        self.desk.note(&command);
        match command {
            Command::Pause | Command::Resume | Command::RestartSource { .. } | Command::Unfence
                if self.desk.is_active() =>
            {
                self.events.warn("", NOT_NOW);
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
                let lines = self.lines.len();
                self.wishes.send_modify(|wishes| {
                    wishes.limit = limit;
                    wishes.share_among(lines);
                });
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
            Command::AcknowledgeErrors => self.acknowledge_errors(),
            Command::RestartSource { address } => {
                match self.lines.iter().find(|line| line.source.address == address) {
                    Some(line) => line.source.restart.notify_one(),
                    None => {
                        let text = format!("no source is called '{}'", address.escape_debug());
                        self.events.warn("", text);
                    }
                }
            }
            Command::Verify => self.verify(),
            Command::StopVerify => self.verifying.iter().for_each(Verifying::cancel),
            Command::StartCutover { confirmation, writes_stopped } => {
                if self.source_sides().is_empty() {
                    self.desk.refuse("an RDB file has no writers that could be moved".into());
                } else if self.lines.iter().any(|line| line.source.spool.manifest().is_none()) {
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

    pub(super) fn acknowledge_errors(&self) {
        self.events.acknowledge_errors();
        if let Err(error) = self.quarantine.acknowledge() {
            self.events.warn("", format!("a later start will tell of the quarantine again: {error}"));
        }
    }

    /// How far everything has come, in words.
    fn stands(&self) -> String {
        let sources = || self.lines.iter().map(|line| &line.source);
        let entries: u64 = sources().map(|source| source.entries_applied.load(Relaxed)).sum();
        let begun = |source: &Arc<SourceShared>| {
            source.details().full_sync_since.is_some() || source.offset_applied.load(Relaxed) > 0
        };
        let place = match (self.lines.as_slice(), &self.plan.reader) {
            _ if !sources().any(begun) => return "nothing was copied".to_owned(),
            ([line], Reader::Rdb { .. }) => format!(" from the file {}", line.source.address),
            ([line], _) => {
                let applied = format::number(line.source.offset_applied.load(Relaxed));
                format!(", up to offset {applied} of {}", line.source.address)
            }
            (lines, _) => format!(" from {} sources", lines.len()),
        };
        format!("{} entries applied{place}", format::number(entries))
    }

    /// Turns the ending into the outcome; cleans up where the migration is over.
    async fn conclude(&mut self, ending: Ending) -> Outcome {
        let stands = self.stands();
        let message = match ending {
            Ending::Failed(outcome) | Ending::After(outcome) => return outcome,
            // Followed by the time after the switch, which has an ending of its own.
            Ending::Switched(_) => return outcome(exit::DONE, format!("switched: {stands}")),
            Ending::Wished { forget: false } => {
                // A source that never answered is what the operator has to know, not that we stopped waiting for it.
                let silent = self.lines.iter().map(|line| &line.source).find_map(|source| {
                    source.details().last_error.clone().filter(|_| source.spool.manifest().is_none())
                });
                if let Some(error) = silent {
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
        if let Err(problem) = self.forget(Some(State::Stopping)).await {
            return Outcome {
                exit_code: exit::DESTINATION,
                message: format!("{message}; but {problem}"),
                hint: Some("start again with the same configuration to have it removed".into()),
            };
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

    /// Removes what must not outlive the migration: checkpoints and half-built values on the destination, the spools here.
    pub(super) async fn forget(&mut self, state: Option<State>) -> Result<(), String> {
        let lines = self.lines.clone();
        let forgetting = async {
            for line in &lines {
                line.forget().await?;
            }
            Ok(())
        };
        self.publishing(state, forgetting).await
    }

    pub(super) fn publish(&mut self, ending: Option<State>, outcome: Option<Outcome>) {
        let wishes = *self.wishes.borrow();
        let status = self.publisher.snapshot(wishes, ending, outcome);
        if status.ready {
            let lines = &self.lines;
            self.desk.ready(|| sides_of(lines));
        }
        self.end.status.send_replace(Arc::new(status));
    }
}

/// The sources that a cutover concerns: a file has no writers.
fn sides_of(lines: &[Line]) -> Vec<SourceSide> {
    let side = |line: &Line| {
        if line.source.retired.load(Relaxed) {
            return None;
        }
        let site = line.site.as_ref()?;
        let endpoint = line.source.endpoint().unwrap_or_else(|| site.last());
        Some(SourceSide { endpoint, shared: line.source.clone(), signature: line.signature() })
    };
    lines.iter().filter_map(side).collect()
}

/// Empties every master of the destination.
async fn empty(writer: &config::Writer) -> Result<(), NetError> {
    let nodes = match writer.cluster {
        false => vec![writer.endpoint.clone()],
        true => {
            let cluster = discover(std::slice::from_ref(&writer.endpoint)).await?;
            cluster.masters().into_iter().map(|(_, endpoint)| endpoint).collect()
        }
    };
    for node in nodes {
        let mut connection = Connection::open(&node).await?;
        if let Reply::Error(reply) = connection.request(&[b"FLUSHALL"]).await? {
            return Err(NetError::Refused {
                address: node.address,
                what: "FLUSHALL".into(),
                reply,
                cure: "Write 'empty_db_before_sync = false', or give the user of [redis_writer] this right."
                    .into(),
            });
        }
    }
    Ok(())
}
