//! One source master, and everything that brings its data to the destination: the task that receives, the replay thread and
//! the writer. Lines know nothing of each other.
//!
//! What receives runs for as long as the line lasts. The apply side, a replay thread and a writer, may be ended and begun
//! again while it does: when the destination lost confirmed writes, it goes back to where the destination stands.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::answers::{self, Answers};
use super::batch::{BATCH_BYTES, Batch, Place, Progress};
use super::begin::{Destination, where_to_begin};
use super::cluster::{self, ClusterWriter, Journal};
use super::events::EventLog;
use super::import_mode::ImportMode;
use super::ledger::{self, Ledger};
use super::net::{Connection, NetError};
use super::outcome::{
    WriterEnd, data_dir_failed, exit, outcome, replay_outcome, source_outcome, writer_outcome,
};
use super::quarantine::Quarantine;
use super::rdb_file;
use super::replay::{Databases, Keeper, Replay, ReplayEnd, ReplayError, building_key};
use super::room::Quota;
use super::shard::Site;
use super::shared::{SourceShared, Wishes, WriterShared, Writers};
use super::source::{Source, SourceError};
use super::turns::Turns;
use super::writer::{Quiet, Writer, WriterError, rebuilding_key, remove_own};
use crate::config::{Plan, Reader};
use crate::format;
use crate::resp::Reply;
use crate::status::{Outcome, Phase, WriterState};

/// How long a writer may take to end: a little more than it gives its destination.
const WRITER_LIMIT: Duration = Duration::from_secs(12);
/// Time between two looks at a destination that cannot be reached when applying shall begin.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// One source master and the way from it to the destination.
#[derive(Clone)]
pub struct Line {
    /// What is wanted.
    pub plan: Plan,
    /// Names the line among all that ever write to the destination: the run id, and the source where there are several.
    pub id: String,
    /// Data directory of the run.
    pub dir: PathBuf,
    /// Where its master is; `None` = the source is a file.
    pub site: Option<Site>,
    /// Whose turn it is to save a data set.
    pub turns: Arc<Turns>,
    /// What the spools of all lines may take.
    pub quota: Arc<Quota>,
    /// The migration has begun: who does not answer is waited for.
    pub known: bool,
    /// What the source's tasks tell.
    pub source: Arc<SourceShared>,
    /// What the writer tells.
    pub writer: Arc<WriterShared>,
    /// The writers of all lines.
    pub writers: Arc<Writers>,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// Entries set aside.
    pub quarantine: Arc<Quarantine>,
    /// The operator's wishes.
    pub wishes: watch::Receiver<Wishes>,
}

/// Hash key of the checkpoint of the line with this id on a destination that is no cluster.
pub fn checkpoint_key(id: &str) -> String {
    format!("shakedeck:checkpoint:{id}")
}

/// Where the slots of the marks are listed, beside the spool.
pub fn marks_list(spool: &Path) -> PathBuf {
    spool.join("marks.json")
}

/// Why a line has ended.
pub enum LineEnd {
    /// The run is stopping.
    Stopped,
    /// All that was asked for is applied.
    Complete,
    /// An error; or the source is gone for good, and what it had sent is applied.
    Failed(Outcome),
}

/// The task that receives; joined exactly once.
struct SourceTask {
    handle: JoinHandle<Result<(), SourceError>>,
    stop: watch::Sender<bool>,
    ended: bool,
    /// It is gone for good; what it left on disk is still applied.
    gone: Option<Outcome>,
}

/// The tasks that apply; each is joined exactly once.
struct ApplySide {
    replay: oneshot::Receiver<Result<ReplayEnd, ReplayError>>,
    writer: JoinHandle<Result<(), WriterError>>,
}

impl Line {
    /// Starts both sides and watches them; returns after every task has ended.
    pub async fn run(self) -> LineEnd {
        let mut source: Option<SourceTask> = None;
        let end = loop {
            let destination = match self.look_at_destination(source.is_some()).await {
                Ok(destination) => destination,
                Err(end) => break end,
            };
            let (destination_run_ids, databases) = (destination.run_ids.clone(), destination.databases);
            let apply = match self.start_applying(destination, source.is_some()) {
                Ok(apply) => apply,
                Err(outcome) => break LineEnd::Failed(outcome),
            };
            let source = source.get_or_insert_with(|| self.start_source(destination_run_ids, databases));
            if let Some(end) = self.supervise(source, apply).await {
                break end;
            }
        };
        if let Some(source) = source {
            let _ = source.stop.send(true);
            if !source.ended {
                let _ = source.handle.await;
            }
        }
        end
    }

    /// Hash key of its checkpoint on the destination.
    pub fn checkpoint_key(&self) -> String {
        checkpoint_key(&self.id)
    }

    /// Names what it keeps on the destination.
    pub fn signature(&self) -> cluster::Signature {
        cluster::Signature { id: self.id.clone(), source: self.source.address.clone() }
    }

    /// Where the slots are listed that carry marks in a destination cluster.
    fn marks_list(&self) -> PathBuf {
        marks_list(self.source.spool.dir())
    }

    /// Asks the destination. A run that begins fails when it is not there; one that goes on waits for it. A state that passes is
    /// always waited for.
    async fn look_at_destination(&self, running: bool) -> Result<Destination, LineEnd> {
        let waits = running || self.known;
        let key = self.checkpoint_key();
        let mut told = None;
        loop {
            let endpoint = &self.plan.writer.endpoint;
            let looking = async {
                if self.plan.writer.cluster {
                    let import_mode = |target| ImportMode::new(&self.dir, target);
                    let (signature, list) = (self.signature(), self.marks_list());
                    cluster::look(endpoint, &signature, &list, import_mode, &self.events, waits).await
                } else {
                    Destination::look(endpoint, &key, &self.source.address).await
                }
            };
            let error = match self.unless_stopped(looking).await? {
                Ok(destination) => {
                    self.writers.told(destination.server.clone(), destination.clock_skew_ms);
                    if let Some(text) = &destination.tried {
                        self.events.warn(&format!("writer {}", self.writer.address), text.clone());
                    }
                    return Ok(destination);
                }
                Err(error) => error,
            };
            let passes = matches!(error, NetError::NotNow { .. });
            if !(passes || waits && error.is_transient()) {
                return Err(LineEnd::Failed(outcome(exit::DESTINATION, error.to_string())));
            }
            let reason = format!("{error} (asked again every {} s)", LOOK_AGAIN.as_secs());
            if told.as_ref() != Some(&reason) {
                self.events.warn("", reason.clone());
                told = Some(reason.clone());
            }
            self.writers.node_lost(&self.source.address, &error.address().to_string(), &reason);
            let state = if passes { WriterState::Waiting } else { WriterState::Reconnecting };
            self.writer.enter(state, Some(reason));
            self.unless_stopped(sleep(LOOK_AGAIN)).await?;
        }
    }

    /// Waits for something; `Err` when the run shall end first.
    async fn unless_stopped<T>(&self, waited_for: impl Future<Output = T>) -> Result<T, LineEnd> {
        let mut wishes = self.wishes.clone();
        tokio::select! {
            result = waited_for => Ok(result),
            _ = wishes.wait_for(|wishes| wishes.stop) => Err(LineEnd::Stopped),
        }
    }

    /// Starts the replay thread and the writer where the destination stands.
    fn start_applying(&self, destination: Destination, receiving: bool) -> Result<ApplySide, Outcome> {
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
        // A file that is read where it lies is whole from the start: that says nothing of a former run.
        let received = self.source.spool.manifest().is_some_and(|it| it.rdb_len.is_some() && !it.rdb_lent);
        let begun = checkpoint.is_some() || received;
        let applied_before = match (&destination.cluster, &checkpoint, &start.resume) {
            // Marks of nodes do not say how far each has come.
            (Some(_), ..) => None,
            (None, Some(found), Some(resume)) if found.generation == resume.generation => {
                destination.checkpoint_text.as_deref().and_then(Batch::rdb_end)
            }
            // Written by a version that did not count full syncs.
            (None, Some(found), _) if found.generation == 0 => None,
            // Nothing of this full sync is there.
            _ => Some(0),
        };
        let ledger =
            Ledger::open(self.source.spool.dir(), begun).map_err(|error| data_dir_failed(error.into()))?;
        let walked = match &destination.cluster {
            Some(begin) => begin.nodes.iter().map(|(endpoint, _)| endpoint.clone()).collect(),
            None => vec![self.plan.writer.endpoint.clone()],
        };
        let (batches, queue) = mpsc::channel(2);
        let resume = start.resume.clone();
        let replay = Replay {
            shared: self.source.clone(),
            events: self.events.clone(),
            quarantine: self.quarantine.clone(),
            databases: self.databases(destination.databases),
            sync_rdb,
            sync_aof,
            on_existing_key: self.plan.advanced.on_existing_key,
            policy: self.plan.policy,
            empty_destination: self.plan.advanced.empty_db_before_sync,
            id: self.id.clone(),
            cluster: destination.cluster.is_some(),
            target: acceptance.target(),
            shard: self.site.as_ref().and_then(Site::shard),
            own: Default::default(),
            acceptance: acceptance.clone(),
            max_bulk_len: self.plan.advanced.max_bulk_len,
            // Two batches may be unanswered at a time.
            command_limit: (self.plan.advanced.pipeline_count_limit / 2).max(1),
            byte_limit: usize::try_from(self.plan.advanced.max_querybuf_len / 2)
                .map_or(BATCH_BYTES, |half| half.min(BATCH_BYTES)),
            applied_before,
            resume: start.resume,
            after_generation: start.after_generation,
            keeper: Keeper::new(ledger, checkpoint.as_ref(), walked),
            batches,
        };
        let (replay_sender, replay_receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name("replay".into()).spawn(move || {
            // A receiver that is gone means that the run has ended: nobody is left to tell.
            let _ = replay_sender.send(replay.run());
        });
        thread.map_err(|error| outcome(exit::SPOOL, format!("cannot start the replay thread: {error}")))?;
        let import_mode = ImportMode::new(&self.dir, acceptance.target());
        if let Some(begin) = destination.cluster {
            let from = resume.as_ref().map(Progress::place);
            let journal = Journal::open(self.source.spool.dir(), from)
                .map_err(|error| data_dir_failed(error.into()))?;
            let settings = cluster::Settings {
                signature: self.signature(),
                source: self.source.clone(),
                shared: self.writer.clone(),
                writers: self.writers.clone(),
                acceptance,
                events: self.events.clone(),
                quarantine: self.quarantine.clone(),
                on_bad_value: self.plan.policy.on_bad_value,
                import_mode,
                repeated_until: resume.as_ref().map(|progress| Place {
                    generation: progress.generation,
                    stream: true,
                    at: self.source.spool.received(),
                }),
                resume,
                command_limit: self.plan.advanced.pipeline_count_limit,
                list: self.marks_list(),
                journal,
            };
            let writer = ClusterWriter::new(settings, begin, self.wishes.clone(), queue);
            return Ok(ApplySide { replay: replay_receiver, writer: tokio::spawn(writer.run()) });
        }
        let writer = Writer {
            endpoint: self.plan.writer.endpoint.clone(),
            checkpoint_key: self.checkpoint_key(),
            source: self.source.address.clone(),
            checkpoint: destination.checkpoint_text,
            began_before: receiving || self.source.spool.manifest().is_some(),
            introduced: AtomicBool::new(false),
            rebuilding_key: rebuilding_key(&self.id),
            shared: self.writer.clone(),
            acceptance: acceptance.clone(),
            events: self.events.clone(),
            quarantine: self.quarantine.clone(),
            on_bad_value: self.plan.policy.on_bad_value,
            import_mode,
            answers: Answers::open(self.source.spool.dir()).map_err(|error| data_dir_failed(error.into()))?,
            quiet: Quiet::new(self.plan.writer.off_reply),
            wishes: self.wishes.clone(),
            batches: queue,
        };
        Ok(ApplySide { replay: replay_receiver, writer: tokio::spawn(writer.run()) })
    }

    fn databases(&self, count: u32) -> Databases {
        let (filter, map) = (self.plan.filter.clone(), self.plan.advanced.db_map.clone());
        Databases::new(filter, map, count, self.plan.writer.cluster)
    }

    /// Starts the task that receives.
    fn start_source(&self, destination_run_ids: Vec<String>, databases: u32) -> SourceTask {
        let (stop, stopped) = watch::channel(false);
        let handle = match (&self.site, &self.plan.reader) {
            (Some(site), Reader::Sync(reader)) => {
                let source = Source {
                    site: site.clone(),
                    prefer_replica: reader.prefer_replica,
                    psync_names: reader.psync_names.clone(),
                    databases: self.databases(databases),
                    turns: self.turns.clone(),
                    known: self.known,
                    quota: self.quota.clone(),
                    policy: self.plan.policy,
                    destination_run_ids,
                    shared: self.source.clone(),
                    events: self.events.clone(),
                    stop: stopped,
                };
                tokio::spawn(source.run())
            }
            _ => tokio::spawn(async move {
                rdb_file::wait(stopped).await;
                Ok(())
            }),
        };
        SourceTask { handle, stop, ended: false, gone: None }
    }

    /// Watches until the line ends, or until applying must begin again (`None`). Returns after the apply side has ended.
    async fn supervise(&self, source: &mut SourceTask, apply: ApplySide) -> Option<LineEnd> {
        let ApplySide { mut replay, mut writer } = apply;
        let (mut replay_ended, mut writer_ended) = (false, false);
        let mut all_handed_over = false;
        let mut wishes = self.wishes.clone();
        let end = loop {
            if all_handed_over && writer_ended {
                // The queue was closed and everything in it is confirmed.
                break Some(match source.gone.take() {
                    None => {
                        self.source.enter(Phase::Drained, None);
                        LineEnd::Complete
                    }
                    Some(gone) => LineEnd::Failed(self.drained(gone)),
                });
            }
            tokio::select! {
                // What is in flight is answered: the writer sees this wish too.
                _ = wishes.wait_for(|wishes| wishes.stop) => break Some(LineEnd::Stopped),
                () = self.source.retire.notified() => {
                    self.source.enter(Phase::Drained, Some("its master has no slots any more".into()));
                    break Some(LineEnd::Complete);
                }
                result = &mut source.handle, if !source.ended => {
                    source.ended = true;
                    if let Some(outcome) = source_outcome(result) {
                        self.source.enter(Phase::Failed, Some(outcome.message.clone()));
                        if outcome.exit_code != exit::SOURCE || !self.source.spool.close() {
                            break Some(LineEnd::Failed(outcome));
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
                            let _ = source.stop.send(true);
                        }
                        Ok(ReplayEnd::Stopped) => {}
                        Err(outcome) => {
                            self.source.enter(Phase::Failed, Some(outcome.message.clone()));
                            break Some(LineEnd::Failed(outcome));
                        }
                    }
                }
                result = &mut writer, if !writer_ended => {
                    writer_ended = true;
                    match writer_outcome(result) {
                        WriterEnd::Closed => {}
                        WriterEnd::Failed(outcome) => break Some(LineEnd::Failed(outcome)),
                        WriterEnd::Rewound(found) => {
                            self.events.warn("", format!("{found}; looking where to go on"));
                            break None;
                        }
                    }
                }
            }
        };
        // Without a wish to stop the writer ends when its queue does.
        if !matches!(end, Some(LineEnd::Stopped)) {
            self.source.spool.stop();
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
        end
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
                self.dir.display()
            )),
        }
    }

    /// Removes what must not outlive the migration: checkpoint and half-built values on the destination, the spool here.
    pub async fn forget(&self) -> Result<(), String> {
        let checkpoint_key = self.checkpoint_key();
        let endpoint = &self.plan.writer.endpoint;
        let forgotten = async {
            if self.plan.writer.cluster {
                return cluster::forget(endpoint, &self.id, &self.marks_list(), &self.dir, &self.events)
                    .await;
            }
            let mut connection = Connection::open(endpoint).await?;
            remove_own(&mut connection, &[checkpoint_key.as_bytes()]).await?;
            ImportMode::put_back(&self.dir, &mut connection, &self.events, true).await?;
            // A value that was being built when the run was ended.
            for db in 0..u32::MAX {
                if matches!(
                    connection.request(&[b"SELECT", db.to_string().as_bytes()]).await?,
                    Reply::Error(_)
                ) {
                    break;
                }
                remove_own(&mut connection, &[&building_key(&self.id), &rebuilding_key(&self.id)]).await?;
            }
            Ok::<_, NetError>(())
        };
        forgotten.await.map_err(|error| {
            format!("the checkpoint key '{checkpoint_key}' could not be removed: {error}")
        })?;
        answers::forget(self.source.spool.dir()).map_err(|error| error.to_string())?;
        ledger::forget(self.source.spool.dir())
            .and_then(|()| self.source.spool.forget())
            .map_err(|error| error.to_string())
    }
}
