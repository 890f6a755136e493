//! Runs the cutover: the effects of [`crate::cutover`] on every source master at once.
//!
//! ```text
//!  supervisor --Start, Abort, Go--> Handover --CLIENT PAUSE, INFO, CONFIG--> source masters
//!       ^                              |  \--hooks, comparison
//!       +------ Back | Switched -------+--> Board --> publisher
//! ```
//!
//! # Why "drained" is exact
//!
//! The fence comes first, the offset is read afterwards. A master runs one command at a time and adds every write to its
//! replication offset before it answers anything else; so the `master_repl_offset` that it tells after its `+OK` to
//! CLIENT PAUSE covers every write that was ever acknowledged to a client. A paused master runs no further write, expires
//! and evicts nothing; what still moves its offset are PINGs and the `REPLCONF GETACK` of WAIT, which belong to the link
//! and hold no data. So the condition is "applied >= the offset read after the fence", never "equal to the live offset",
//! and *applied* is what the destination has confirmed together with its checkpoint, in one EXEC.
//!
//! The claim "nothing came after it" is not believed but counted: the commands replayed from each stream are noted when
//! it is drained, and must still be as many at the hand-over. There the order is: refuse writes on the source (while it
//! is paused), read the offset once more, wait until that one is confirmed, end applying, note the switch on disk, and
//! only then let the blocked writers go, who now get the refusal. So even a pause that ended too early loses nothing.

mod board;
mod control;
mod desk;
mod fence;
mod hook;
mod mend;
mod record;
mod report;
mod reverse;
mod steps;
mod switch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::time::{interval, sleep_until};

pub use self::board::Board;
use self::control::{SourceControl, Standing};
pub use self::desk::Desk;
use self::fence::{Fence, Held, on_all};
use self::hook::{Context, NodeContext};
pub use self::mend::{Mending, left_refusing, lift_old_source, lift_refusals};
pub use self::record::Record;
use self::report::{Counts, Report};
pub use self::reverse::{directory as reverse_directory, has_way_back, plan as reverse_plan};
use self::steps::examine;
use super::Engine;
use super::cluster::Signature;
use super::events::EventLog;
use super::shard::Shards;
use super::shared::{SourceShared, Wishes, Writers};
use super::verify::OwnKeys;
use crate::config::{Endpoint, Plan};
use crate::cutover::{Effect, FenceKind, Hook, Input, State, step};
use crate::format;
use crate::status::Status;

/// Time between two looks at when the fence will end, for the screen.
const SHOW_FENCE: Duration = Duration::from_millis(200);

/// One source master.
#[derive(Clone)]
pub struct SourceSide {
    /// How to reach it.
    pub endpoint: Endpoint,
    /// What its tasks tell.
    pub shared: Arc<SourceShared>,
    /// Whose checkpoints its line sets.
    pub signature: Signature,
}

/// What a cutover works with.
pub struct Handover {
    /// The configuration.
    pub plan: Plan,
    /// Names the migration.
    pub run_id: String,
    /// Data directory.
    pub dir: PathBuf,
    /// Every source master.
    pub sources: Vec<SourceSide>,
    /// What names the checkpoints of all lines on the destination, those that have ended too.
    pub lines: Vec<String>,
    /// The writers that must stand still at the end.
    pub writers: Arc<Writers>,
    /// Where it is told so.
    pub wishes: watch::Sender<Wishes>,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// What is shown.
    pub board: Arc<Board>,
    /// The newest snapshot: its gates count.
    pub status: watch::Receiver<Arc<Status>>,
    /// The operator's word that nobody writes any more.
    pub writes_stopped: bool,
    /// Of a rollback: the migration that is undone.
    pub home: Option<Home>,
    /// The shards of a source cluster.
    pub shards: Option<Arc<Shards>>,
    /// What is under way.
    pub progress: Progress,
}

/// A migration that has switched and may be undone.
#[derive(Clone)]
pub struct Home {
    /// Its configuration: its source is where clients come back to.
    pub plan: Plan,
    /// Its data directory, with the record of what its source refuses.
    pub dir: PathBuf,
}

/// What is under way in one cutover.
#[derive(Default)]
pub struct Progress {
    /// Counts the cutovers of this data directory; names the files.
    number: u32,
    kind: FenceKind,
    controls: Vec<SourceControl>,
    keepers: Vec<SourceControl>,
    fence: Option<Fence>,
    fenced_at: Option<Instant>,
    /// Behind a switch: the fence that should hold the old source does not.
    loose: bool,
    /// Offset read after the fence, for each source.
    fenced: Vec<u64>,
    /// Commands replayed from each stream when it was drained.
    commands: Vec<u64>,
    record: Option<Record>,
    /// A source was told to refuse writes, and has not answered.
    refusal_in_doubt: bool,
    reverse: Option<Engine>,
    counts: Vec<Counts>,
    /// Our own keys, which the comparison does not count; `None` = it counts nothing.
    own: Option<OwnKeys>,
    verified: String,
}

/// How a cutover ended.
pub enum End {
    /// It went back; the migration streams.
    Back,
    /// The switch is done; [`Handover::finish`] comes after the tasks of the migration have ended.
    Switched(Box<Handover>),
}

impl Handover {
    /// Runs from the start to the switch, or back.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> End {
        self.board.begin();
        self.progress.number = report::next_number(self.report_dir());
        self.events.info("", format!("cutover to {} begun", self.destination()));
        let (mut state, mut effects) = step(State::Live, Input::Start);
        let mut words;
        let mut reason = String::new();
        let mut inputs_open = true;
        self.board.enter(state, &effects, "", false);
        while let Some(effect) = effects.first().copied() {
            if effect == Effect::Report {
                self.report(Err(reason.clone()));
                return End::Back;
            }
            let deadline = self.deadline(effect);
            let mut held = match effect {
                Effect::Drain | Effect::Verify | Effect::AskToGo => {
                    self.progress.fence.as_ref().map(Fence::watch)
                }
                _ => None,
            };
            let (board, mut shown) = (self.board.clone(), interval(SHOW_FENCE));
            let input = {
                let work = self.perform(effect, &reason);
                tokio::pin!(work);
                loop {
                    tokio::select! {
                        result = &mut work => {
                            let ok = result.is_ok();
                            words = result.unwrap_or_else(|reason| reason);
                            break match (ok, effect) {
                                (true, Effect::AskToGo) => Input::Go,
                                (true, _) => Input::Succeeded,
                                (false, _) => Input::Failed,
                            };
                        }
                        wish = inputs.recv(), if inputs_open => match wish {
                            Some(wish) if step(state, wish).0 != state => {
                                words = match wish {
                                    Input::Go => "go, said the operator".into(),
                                    _ => board.abort_reason(),
                                };
                                break wish;
                            }
                            Some(_) => {}
                            None => inputs_open = false,
                        },
                        () = sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {
                            words = format!("'{}' took too long", state.word());
                            break Input::TooLate;
                        }
                        _ = shown.tick(), if held.is_some() => board.show_fence(&held),
                        lost = lost(&mut held) => {
                            words = format!("the fence was lost: {lost}");
                            break Input::Failed;
                        }
                    }
                }
            };
            if input == Input::TooLate {
                words = self.why_too_late(effect);
            }
            (state, effects) = step(state, input);
            let back = state == State::Aborting;
            if back {
                reason.clone_from(&words);
                self.events.warn("", format!("cutover goes back: {reason}"));
            }
            self.board.enter(state, &effects, &words, back);
            if state == State::Switched {
                return End::Switched(Box::new(self));
            }
        }
        End::Back
    }

    /// After the tasks of the migration have ended and its checkpoint is gone: the last hook and the report.
    /// `closing` = what could not be cleaned up.
    pub async fn finish(&mut self, closing: Result<(), String>) {
        if let Err(problem) = closing {
            self.events.error("", format!("after the switch: {problem}"));
            self.board.note(problem);
        }
        if let Err(problem) = self.hook(Hook::AfterSwitch, None).await {
            self.events.error("", problem);
        }
        self.report(Ok(()));
        let (state, effects) = step(State::Switched, Input::Succeeded);
        self.board.enter(state, &effects, "", false);
    }

    /// Behind a switch with source_after = "hold": tells when the old source gets loose, and when it is held again.
    pub fn watch_hold(&mut self) {
        let Some(fence) = &self.progress.fence else { return };
        let held = fence.held();
        let is_loose = matches!(held, Held::Lost(_));
        if std::mem::replace(&mut self.progress.loose, is_loose) == is_loose {
            return;
        }
        match held {
            Held::Lost(reason) => self.events.error(
                "",
                format!(
                    "the old source is not held any more ({reason}): it may take writes that nobody copies; it will be held again \
                     as soon as it can be"
                ),
            ),
            Held::Until(_) => self.events.warn("", "the old source is held again; what was written on it meanwhile is only there"),
        }
    }

    /// Ends a hold at the operator's wish; false when nothing is held.
    pub async fn end_hold(&mut self) -> bool {
        let is_held = self.progress.fence.is_some();
        if is_held {
            self.let_go().await;
            self.board.update(|shown| shown.holding.clear());
            self.events.warn("", "unfence: the old source is not held any more");
        }
        is_held
    }

    /// The link back, if there is one; the supervisor goes on with it.
    pub fn take_reverse(&mut self) -> Option<Engine> {
        self.progress.reverse.take()
    }

    fn destination(&self) -> String {
        self.plan.writer.endpoint.address.to_string()
    }

    /// When an effect is too late: its own limit, and the limit for blocking writers at all.
    fn deadline(&self, effect: Effect) -> Option<Instant> {
        let settings = &self.plan.cutover;
        let own = match effect {
            // The watch of the operator's word blocks nobody.
            Effect::Fence if self.progress.kind == FenceKind::Word => None,
            Effect::Fence => Some(Instant::now() + settings.fence_timeout),
            Effect::Drain => Some(Instant::now() + settings.drain_timeout),
            _ => None,
        };
        let blocked = match effect {
            Effect::Drain | Effect::Verify | Effect::AskToGo => {
                self.progress.fenced_at.map(|at| at + settings.max_blocked)
            }
            _ => None,
        };
        own.into_iter().chain(blocked).min()
    }

    fn why_too_late(&self, effect: Effect) -> String {
        let settings = &self.plan.cutover;
        let spoken = |time: Duration| format::spoken_duration(time.as_secs_f64());
        let blocked = self.progress.fenced_at.map_or(Duration::ZERO, |at| at.elapsed());
        if blocked >= settings.max_blocked {
            return format!(
                "writers were blocked for {} ([cutover] max_blocked)",
                spoken(settings.max_blocked)
            );
        }
        match effect {
            Effect::Drain if self.slots_in_doubt() => {
                "slots of the source may be moving: it could not be looked at in time".into()
            }
            Effect::Drain => {
                let left: u64 = self.left().into_iter().sum();
                format!(
                    "the destination did not confirm the last {} within {} ([cutover] drain_timeout)",
                    format::size(left),
                    spoken(settings.drain_timeout)
                )
            }
            _ => format!("the fence was not up within {}", spoken(settings.fence_timeout)),
        }
    }

    async fn perform(&mut self, effect: Effect, reason: &str) -> Result<String, String> {
        match effect {
            Effect::Preflight => self.preflight().await,
            Effect::Fence => self.fence().await,
            Effect::Drain => self.drain().await,
            Effect::Verify => self.verify().await,
            Effect::AskToGo if self.plan.cutover.ask_to_go => {
                self.events.info("", "everything is proved; waiting for the operator's go");
                std::future::pending().await
            }
            Effect::AskToGo => Ok("at once, as configured".into()),
            Effect::HandOver => self.hand_over().await,
            Effect::Unfence => self.unfence(reason).await,
            Effect::Finish | Effect::Report => Ok(String::new()),
        }
    }

    async fn standings(&mut self) -> Result<Vec<Standing>, String> {
        let controls = std::mem::take(&mut self.progress.controls);
        let told = on_all(controls, |control| {
            Box::pin(async move { control.standing().await.map_err(|error| error.to_string()) })
        });
        let (controls, standings) = told.await?.into_iter().unzip();
        self.progress.controls = controls;
        Ok(standings)
    }

    fn same_histories(&self, standings: &[Standing]) -> Result<(), String> {
        for (source, standing) in self.sources.iter().zip(standings) {
            let streamed = source.shared.spool.manifest().map(|manifest| manifest.replid.to_string());
            if standing.role != "master" || streamed.as_deref() != Some(standing.replid.as_str()) {
                return Err(format!(
                    "{}: it is no longer the master whose stream is applied (role {}, history {})",
                    source.endpoint.address, standing.role, standing.replid
                ));
            }
        }
        Ok(())
    }

    async fn hook(&mut self, hook: Hook, reason: Option<String>) -> Result<(), String> {
        let Some(path) = self.plan.cutover.hooks.get(&hook).cloned() else { return Ok(()) };
        self.board.say(format!("hook {}", hook.word()));
        let context = self.context(hook, reason);
        let result = hook::run(&path, &context, self.plan.cutover.hook_timeout, &self.events).await;
        self.board.note(match &result {
            Ok(()) => format!("hook {} ended well", hook.word()),
            Err(problem) => problem.clone(),
        });
        result
    }

    fn context(&self, hook: Hook, reason: Option<String>) -> Context {
        let nodes = self.board.view().nodes.into_iter().map(|node| NodeContext {
            address: node.address,
            fenced_offset: node.fenced_offset,
            applied_offset: node.applied_offset,
        });
        Context {
            run_id: self.run_id.clone(),
            source: self.source_words(),
            destination: self.destination(),
            data_dir: self.dir.display().to_string(),
            nodes: nodes.collect(),
            ..Context::default()
        }
        .at(hook, reason)
    }

    fn source_words(&self) -> String {
        let addresses: Vec<String> =
            self.sources.iter().map(|source| source.endpoint.address.to_string()).collect();
        addresses.join(",")
    }

    /// How long one answer of a source may take: several must fit into one pause.
    fn limit(&self) -> Duration {
        (self.plan.cutover.fence_timeout / 4).clamp(Duration::from_secs(1), Duration::from_secs(5))
    }

    /// The operator's data directory: the one of a link back comes and goes.
    fn report_dir(&self) -> &Path {
        self.home.as_ref().map_or(&self.dir, |home| &home.dir)
    }

    fn report(&self, end: Result<(), String>) {
        let result = match &end {
            Ok(()) => "switched".to_owned(),
            Err(reason) => format!("went back: {reason}"),
        };
        self.board.note(result.clone());
        let status = self.status.borrow().clone();
        let report = Report::new(
            self.progress.number,
            &self.board,
            &status,
            &self.progress.counts,
            &self.progress.verified,
            &result,
        );
        let text = report.text();
        let file = match report.write(self.report_dir()) {
            Ok(file) => Some(file.display().to_string()),
            Err(error) => {
                self.events.error("", format!("the report could not be written: {error}"));
                None
            }
        };
        self.board.update(|shown| {
            shown.report_file = file;
            shown.result = Some(result);
            shown.aborted = end.is_err();
            shown.report = Some(text);
        });
    }
}

/// Runs `on_ready`, whose end changes nothing.
pub async fn on_ready(plan: &Plan, run_id: &str, dir: &Path, sources: &[SourceSide], events: &EventLog) {
    let Some(path) = plan.cutover.hooks.get(&Hook::OnReady) else { return };
    let nodes = sources.iter().map(|source| NodeContext {
        address: source.endpoint.address.to_string(),
        fenced_offset: None,
        applied_offset: source.shared.offset_applied.load(Relaxed),
    });
    let nodes: Vec<NodeContext> = nodes.collect();
    let addresses: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
    let context = Context {
        run_id: run_id.to_owned(),
        source: addresses.join(","),
        destination: plan.writer.endpoint.address.to_string(),
        data_dir: dir.display().to_string(),
        nodes,
        ..Context::default()
    }
    .at(Hook::OnReady, None);
    if let Err(problem) = hook::run(path, &context, plan.cutover.hook_timeout, events).await {
        events.warn("", problem);
    }
}

/// Resolves when the fence is lost; never without a fence.
async fn lost(held: &mut Option<watch::Receiver<Vec<Held>>>) -> String {
    let Some(held) = held else { return std::future::pending().await };
    loop {
        let until = match Held::of(&held.borrow_and_update()) {
            Held::Lost(reason) => return reason,
            Held::Until(until) => until,
        };
        tokio::select! {
            () = sleep_until(until.into()) => return "the pause has ended before it was renewed".into(),
            changed = held.changed() => if changed.is_err() {
                return "it has ended".into();
            },
        }
    }
}
