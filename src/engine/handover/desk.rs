//! The supervisor's side of the cutover: takes commands, keeps the one cutover that may run, and tells its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Board, End, Handover, Record, SourceSide, examine, lift_refusals, on_ready};
use crate::config::Plan;
use crate::control::Command;
use crate::cutover::Input;
use crate::engine::events::EventLog;
use crate::format;

/// How long a source may take to answer a question of the checklist.
const QUESTION_LIMIT: Duration = Duration::from_secs(3);

/// One per run.
pub struct Desk {
    plan: Plan,
    run_id: String,
    dir: PathBuf,
    events: Arc<EventLog>,
    board: Arc<Board>,
    running: Option<Running>,
    examining: Option<JoinHandle<()>>,
    told_ready: bool,
}

struct Running {
    inputs: mpsc::Sender<Input>,
    task: JoinHandle<End>,
}

impl Desk {
    /// Nothing runs yet.
    pub fn new(plan: Plan, run_id: String, dir: PathBuf, events: Arc<EventLog>, board: Arc<Board>) -> Desk {
        Desk { plan, run_id, dir, events, board, running: None, examining: None, told_ready: false }
    }

    /// True while a cutover runs: from its start to the switch or the way back.
    pub fn is_active(&self) -> bool {
        self.running.is_some()
    }

    /// Begins a cutover, if the operator has named the right destination. `make` builds it.
    pub fn start(&mut self, confirmation: &str, make: impl FnOnce() -> Handover) {
        let destination = self.plan.writer.endpoint.address.to_string();
        if self.is_active() {
            self.events.warn("", "a cutover is in progress already");
        } else if confirmation != destination {
            let typed = format::escape(confirmation, 100);
            self.refuse(format!("the destination is {destination}, not '{typed}'"));
        } else {
            let handover = make();
            let refusing = self.board.view().refusing;
            let is_source = |address: &&String| {
                handover.sources.iter().any(|source| source.endpoint.address.to_string() == **address)
            };
            if let Some(refusing) = refusing.iter().find(is_source) {
                // What it had before would be noted wrongly.
                return self.refuse(format!(
                    "{refusing} still refuses writes since the last one; that is being put back"
                ));
            }
            // A master that another one has replaced meanwhile is in nobody's way.
            for gone in &refusing {
                let text = format!(
                    "{gone} is no source any more, and may refuse writes since a former cutover: 'CONFIG SET \
                     min-replicas-to-write 0' there, should it come back"
                );
                self.events.warn("", text);
            }
            self.board.end_mending();
            let (inputs, receiver) = mpsc::channel(4);
            self.running = Some(Running { inputs, task: tokio::spawn(handover.run(receiver)) });
        }
    }

    /// A cutover that was not even begun: it counts as one that went back, so that whoever waits for it learns it.
    pub fn refuse(&self, reason: String) {
        self.events.warn("", format!("cutover not begun: {reason}"));
        self.board.begin();
        self.board.update(|shown| {
            shown.steps.clear();
            shown.result = Some(format!("not begun: {reason}"));
            shown.aborted = true;
        });
    }

    /// Abort or go.
    pub fn tell(&self, input: Input) {
        match &self.running {
            Some(running) => {
                // A full queue holds the same wish already.
                let _ = running.inputs.try_send(input);
            }
            None => self.events.info("", "no cutover is in progress"),
        }
    }

    /// Abort, which nobody has asked for: why.
    pub fn abort(&self, reason: &str) {
        self.board.set_abort_reason(reason);
        self.tell(Input::Abort);
    }

    /// Asks the sources what a cutover needs, in the background; the board shows it.
    pub fn examine(&mut self, sources: Vec<SourceSide>) {
        // What it asks would set again what is being put back.
        let mending = !self.board.view().refusing.is_empty();
        if mending || self.is_active() || self.examining.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (plan, run_id, board) = (self.plan.clone(), self.run_id.clone(), self.board.clone());
        self.examining = Some(tokio::spawn(async move {
            let (checks, kind, _) = examine(&plan, &run_id, &sources, QUESTION_LIMIT).await;
            board.set_preflight(checks);
            board.update(|shown| shown.fence = kind);
        }));
    }

    /// Lets old sources take writes again, in the background; the events say what came of it.
    pub fn lift(&self) {
        let (plan, dir, events, board) =
            (self.plan.clone(), self.dir.clone(), self.events.clone(), self.board.clone());
        tokio::spawn(async move {
            match lift_refusals(&plan, &dir).await {
                Ok(lifted) if lifted.is_empty() => {
                    events.info("", "unfence: no server refuses writes because of us")
                }
                Ok(lifted) => {
                    board.end_mending();
                    events.warn("", format!("unfence: {} takes writes again", lifted.join(", ")));
                }
                Err(problem) => {
                    if let Ok(Some(record)) = Record::read(&dir) {
                        board.update(|shown| shown.refusing = record.refusing());
                    }
                    events.error("", format!("unfence: {problem}"));
                }
            }
        });
    }

    /// Runs the hook `on_ready`, once.
    pub fn ready(&mut self, sources: impl FnOnce() -> Vec<SourceSide>) {
        if std::mem::replace(&mut self.told_ready, true) {
            return;
        }
        let sources = sources();
        let (plan, run_id, dir, events) =
            (self.plan.clone(), self.run_id.clone(), self.dir.clone(), self.events.clone());
        tokio::spawn(async move { on_ready(&plan, &run_id, &dir, &sources, &events).await });
    }

    /// The end of the cutover that runs; never without one. Can be dropped and asked again.
    pub async fn ended(&mut self) -> End {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let end = (&mut running.task).await;
        self.running = None;
        end.unwrap_or_else(|panic| {
            self.events.error(
                "",
                format!("the cutover failed: {panic}; a fence ends by itself; please report this"),
            );
            End::Back
        })
    }

    /// Notes what the operator asked for, for the report.
    pub fn note(&self, command: &Command) {
        let words = match command {
            Command::Pause => "pause".to_owned(),
            Command::Resume => "resume".into(),
            Command::Throttle { limit } => match (limit.bytes_per_second, limit.ops_per_second) {
                (None, None) => "speed limit lifted".into(),
                (bytes, ops) => format!(
                    "speed limit: {}",
                    [
                        bytes.map(|bytes| format::rate(bytes as f64)),
                        ops.map(|ops| format!("{} commands/s", format::number(ops))),
                    ]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>()
                    .join(", ")
                ),
            },
            Command::AcknowledgeErrors => "errors marked as read".into(),
            Command::RestartSource { address } => {
                format!("link to {} restarted", format::escape(address, 100))
            }
            Command::Verify => "verification".into(),
            Command::StopVerify => "verification stopped".into(),
            Command::StartCutover { confirmation, writes_stopped } => format!(
                "cutover (typed: {}{})",
                format::escape(confirmation, 100),
                if *writes_stopped { "; gave the word that writes have stopped" } else { "" }
            ),
            Command::AbortCutover => "abort".into(),
            Command::HandOver => "go".into(),
            Command::Unfence => "unfence".into(),
            Command::Stop { forget } => if *forget { "stop and forget" } else { "stop" }.into(),
            Command::Preflight => return,
        };
        self.board.note_action(&words);
    }
}
