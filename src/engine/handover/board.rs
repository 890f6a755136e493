//! What the cutover shows: written by its runner, read by the publisher four times a second.

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use serde::Serialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::fence::Held;
use crate::cutover::{Effect, State};
use crate::engine::events::unix_ms;
use crate::status::{CutoverStatus, CutoverStep, Gate, StepState};

/// The steps that the operator sees, in order: the state in which each is done.
const STEPS: [State; 6] =
    [State::Armed, State::Fencing, State::Draining, State::Verifying, State::Waiting, State::HandingOver];

/// The shared view of the cutover.
#[derive(Debug, Default)]
pub struct Board {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    shown: CutoverStatus,
    actions: Vec<Moment>,
    timeline: Vec<Moment>,
    /// Why it is to be aborted, where that is not the operator's wish.
    abort_reason: Option<String>,
    /// What puts back what a former cutover has left.
    mending: Option<AbortHandle>,
}

/// Something that happened, for the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// When (Unix ms).
    pub unix_ms: u64,
    /// What.
    pub what: String,
}

impl Board {
    /// A copy for a snapshot.
    pub fn view(&self) -> CutoverStatus {
        self.lock().shown.clone()
    }

    /// Changes what is shown.
    pub fn update(&self, change: impl FnOnce(&mut CutoverStatus)) {
        change(&mut self.lock().shown);
    }

    /// It is to be aborted, and not because the operator has asked for that.
    pub fn set_abort_reason(&self, reason: &str) {
        self.lock().abort_reason = Some(reason.to_owned());
    }

    /// Why it is aborted, in words.
    pub fn abort_reason(&self) -> String {
        match self.lock().abort_reason.take() {
            Some(reason) => format!("aborted: {reason}"),
            None => "aborted by the operator".into(),
        }
    }

    /// This task puts back what a cutover has left.
    pub fn set_mending(&self, task: AbortHandle) {
        self.lock().mending = Some(task);
    }

    /// Nothing is put back any more: it is done, or something new begins.
    pub fn end_mending(&self) {
        let mut inner = self.lock();
        if let Some(task) = inner.mending.take() {
            task.abort();
        }
        inner.shown.refusing.clear();
    }

    /// The checklist was asked anew.
    pub fn set_preflight(&self, checks: Vec<Gate>) {
        self.update(|shown| {
            shown.preflight = checks;
            shown.preflight_unix_ms = Some(unix_ms());
        });
    }

    /// Notes what the operator, or a script, did.
    pub fn note_action(&self, what: &str) {
        let mut inner = self.lock();
        // Of a run of months the newest are worth more.
        if inner.actions.len() >= 1_000 {
            inner.actions.remove(0);
        }
        inner.actions.push(Moment { unix_ms: unix_ms(), what: what.to_owned() });
    }

    /// What the operator did since the start.
    pub fn actions(&self) -> Vec<Moment> {
        self.lock().actions.clone()
    }

    /// Notes a moment of this cutover.
    pub fn note(&self, what: impl Into<String>) {
        let what = what.into();
        self.lock().timeline.push(Moment { unix_ms: unix_ms(), what });
    }

    /// The moments of this cutover.
    pub fn timeline(&self) -> Vec<Moment> {
        self.lock().timeline.clone()
    }

    /// A new cutover begins.
    pub fn begin(&self) {
        let mut inner = self.lock();
        inner.timeline.clear();
        inner.abort_reason = None;
        let shown = &mut inner.shown;
        *shown = CutoverStatus {
            preflight: std::mem::take(&mut shown.preflight),
            preflight_unix_ms: shown.preflight_unix_ms,
            fence: shown.fence,
            attempts: shown.attempts + 1,
            refusing: std::mem::take(&mut shown.refusing),
            started_unix_ms: Some(unix_ms()),
            steps: STEPS
                .map(|state| CutoverStep {
                    state,
                    progress: StepState::Pending,
                    detail: String::new(),
                    began_unix_ms: None,
                    seconds: None,
                })
                .into(),
            ..CutoverStatus::default()
        };
    }

    /// A state is entered; `detail` is the evidence, or the reason, that ended the one before.
    pub fn enter(&self, state: State, effects: &[Effect], detail: &str, failed: bool) {
        let now = unix_ms();
        {
            let mut inner = self.lock();
            inner.shown.state = state;
            for step in inner.shown.steps.iter_mut() {
                if step.progress == StepState::Active && step.state != state {
                    step.progress = if failed { StepState::Failed } else { StepState::Done };
                    step.detail = detail.to_owned();
                    step.seconds = step.began_unix_ms.map(|began| now.saturating_sub(began) as f64 / 1000.0);
                }
                if step.state == state && step.progress == StepState::Pending {
                    step.progress = StepState::Active;
                    step.began_unix_ms = Some(now);
                }
            }
        }
        if !effects.is_empty() {
            let because = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
            self.note(format!("{}{because}", state.word()));
        }
    }

    /// When the fence ends unless it is renewed.
    pub fn show_fence(&self, held: &Option<watch::Receiver<Vec<Held>>>) {
        let Some(Held::Until(until)) = held.as_ref().map(|held| Held::of(&held.borrow())) else { return };
        let left = until.saturating_duration_since(Instant::now()).as_millis() as u64;
        self.update(|shown| shown.fence_ends_unix_ms = Some(unix_ms() + left));
    }

    /// What the present step is doing.
    pub fn say(&self, detail: impl Into<String>) {
        let detail = detail.into();
        self.update(|shown| {
            if let Some(step) = shown.steps.iter_mut().find(|step| step.progress == StepState::Active) {
                step.detail = detail;
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
