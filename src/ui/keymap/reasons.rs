//! Why a key cannot work now: one function a condition, named in the table of keys.

use super::super::dialog::{self, Overlay};
use super::super::model::{Model, Pane};
use crate::cutover;
use crate::status::{State, Status, VerificationState};

/// Why a key does nothing now, for the narrow footer and in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// One or two words.
    pub short: String,
    /// A sentence's worth.
    pub long: String,
}

impl Reason {
    fn new(short: &str, long: &str) -> Option<Reason> {
        Some(Reason { short: short.into(), long: long.into() })
    }
}

pub(super) fn always(_: &Model, _: &Status) -> Option<Reason> {
    None
}

pub(super) fn running(model: &Model, status: &Status) -> Option<Reason> {
    if status.state.is_final() || model.engine_gone {
        return Reason::new("ended", "the migration has ended");
    }
    if model.is_stopping(status) {
        return Reason::new("stopping", "the migration is stopping");
    }
    None
}

pub(super) fn pausable(model: &Model, status: &Status) -> Option<Reason> {
    running(model, status).or_else(|| match (model.pending, status.state) {
        (Some(pending), _) => {
            let word = pending.word.to_lowercase();
            Some(Reason {
                short: "wait".into(),
                long: format!("still {word}: waiting for the engine to confirm"),
            })
        }
        (_, State::CuttingOver) => Reason::new("cutover", "a cutover is in progress"),
        (_, State::Switched) => Reason::new("switched", "applying has ended: the cutover is done"),
        _ => None,
    })
}

/// True while `c` begins nothing: a cutover runs, or one is done and there is no way back.
pub fn shows_steps(status: &Status) -> bool {
    let done = status.state == State::Switched && status.cutover.reverse.is_none();
    status.state == State::CuttingOver || done
}

/// Lag and errors change while one looks; what a dialog cannot wait for is said here.
pub(super) fn cuttable(model: &Model, status: &Status) -> Option<Reason> {
    if shows_steps(status) {
        return None;
    }
    running(model, status).or_else(|| {
        let gate = status
            .gates
            .iter()
            .find(|gate| !gate.ok && matches!(gate.name.as_str(), "pause" | "rdb" | "writers"));
        match gate {
            Some(gate) => Some(Reason {
                short: format!("not ready: {}", gate.name),
                long: format!("not ready: {}", gate.detail),
            }),
            None if status.gates.is_empty() => Reason::new("not ready", "the engine has not judged yet"),
            None => None,
        }
    })
}

pub(super) fn startable(model: &Model, status: &Status) -> Option<Reason> {
    let Some(Overlay::CutoverStart { typed, opened_unix_ms }) = &model.overlay else { return None };
    if let Some(gate) = status.gates.iter().find(|gate| !gate.ok) {
        return Some(Reason { short: format!("not ready: {}", gate.name), long: gate.detail.clone() });
    }
    if status.cutover.preflight_unix_ms.is_none_or(|asked| asked < *opened_unix_ms) {
        return Reason::new("asking", "the sources are still being asked");
    }
    if let Some(check) = status.cutover.preflight.iter().find(|check| !check.ok) {
        return Some(Reason { short: check.name.clone(), long: check.detail.clone() });
    }
    match *typed == dialog::cutover_words(status) {
        true => None,
        false => Reason::new("type it first", "type the words as shown, then Enter"),
    }
}

pub(super) fn abortable(_: &Model, status: &Status) -> Option<Reason> {
    match status.cutover.state {
        state if state.can_abort() => None,
        cutover::State::Aborting => Reason::new("aborting", "it is going back already"),
        cutover::State::HandingOver => {
            Reason::new("too late", "it is handing over, which cannot be taken back")
        }
        state if state.is_switched() => Reason::new("switched", "there is no way back from the switch"),
        _ => Reason::new("none", "no cutover is in progress"),
    }
}

pub(super) fn waits_for_go(_: &Model, status: &Status) -> Option<Reason> {
    match status.cutover.state {
        cutover::State::Waiting => None,
        _ => Reason::new("not yet", "the cutover does not wait for it"),
    }
}

pub(super) fn refusing(model: &Model, status: &Status) -> Option<Reason> {
    match status.cutover.closed().next() {
        None => Reason::new("none", "no server refuses writes because of a cutover"),
        Some(_) => stoppable(model, status),
    }
}

/// A cutover is not left alone by the process that drives it; a screen over another process, or over none, is only a screen.
pub(super) fn leavable(model: &Model, status: &Status) -> Option<Reason> {
    if model.attached || model.engine_gone || status.state != State::CuttingOver {
        return None;
    }
    match status.cutover.state {
        state if state.can_abort() => Reason::new("cutover", "a cutover is in progress: abort it first"),
        cutover::State::HandingOver => Reason::new("wait", "it is handing over: wait for the end of it"),
        cutover::State::Aborting => Reason::new("wait", "it is going back: wait for the end of it"),
        _ => None,
    }
}

pub(super) fn verifying(status: &Status) -> bool {
    status.verification.as_ref().is_some_and(|shown| shown.state == VerificationState::Running)
}

pub(super) fn verifiable(model: &Model, status: &Status) -> Option<Reason> {
    running(model, status).or_else(|| match status.state {
        _ if verifying(status) => Reason::new("runs", "a comparison runs already"),
        State::Streaming | State::CaughtUp => None,
        State::Pausing | State::Paused => Reason::new("paused", "paused: nothing is applied; p resumes"),
        _ => Reason::new("not yet", "nothing can be said before every source streams"),
    })
}

pub(super) fn not_verifying(_: &Model, status: &Status) -> Option<Reason> {
    if verifying(status) { None } else { Reason::new("none runs", "no comparison runs") }
}

pub(super) fn restartable(model: &Model, status: &Status) -> Option<Reason> {
    running(model, status).or_else(|| match (model.focus, model.selected_source(status)) {
        _ if status.source.is_file() => Reason::new("file", "a file has no link"),
        (Pane::Sources, Some(_)) => None,
        (Pane::Sources, None) => Reason::new("no node", "no source node is selected"),
        _ => Reason::new("source only", "select a source node first (Tab changes the pane)"),
    })
}

pub(super) fn has_unread(_: &Model, status: &Status) -> Option<Reason> {
    if status.unread_errors == 0 { Reason::new("none unread", "no error is unread") } else { None }
}

pub(super) fn has_row(model: &Model, status: &Status) -> Option<Reason> {
    let found = match model.focus {
        Pane::Sources => model.selected_source(status).is_some(),
        Pane::Writers => model.selected_writer(status).is_some(),
        Pane::Events => !model.events(status).is_empty(),
    };
    if found { None } else { Reason::new("no row", "there is no row to act on") }
}

pub(super) fn has_error(model: &Model, status: &Status) -> Option<Reason> {
    if model.errors(status).is_empty() { Reason::new("none", "no error is listed") } else { None }
}

pub(super) fn stoppable(model: &Model, status: &Status) -> Option<Reason> {
    if status.state.is_final() || model.engine_gone {
        return Reason::new("ended", "the migration has ended");
    }
    None
}

pub(super) fn typed_right(model: &Model, _: &Status) -> Option<Reason> {
    match &model.overlay {
        Some(Overlay::Confirm(confirm))
            if confirm.typed.as_ref().is_some_and(|(name, text)| name != text) =>
        {
            Reason::new("type it first", "type the destination's address as shown, then Enter")
        }
        _ => None,
    }
}
