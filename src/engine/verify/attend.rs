//! The verification of a running migration: one at a time, in a task of its own, with its events.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Progress, Settle, Verify, verify};
use crate::config::Reader;
use crate::engine::events::EventLog;
use crate::engine::supervisor::Supervisor;
use crate::status::{State, VerificationState};
use crate::verify::Options;

impl Supervisor {
    /// Starts a comparison, unless one runs or nothing could be said.
    pub(in crate::engine) fn verify(&mut self) {
        if self.verifying.as_ref().is_some_and(Verifying::is_running) {
            return self.events.warn("", "a verification runs already");
        }
        let Reader::Sync(_) = &self.plan.reader else {
            return self.events.warn("", "an RDB file is no server that could be compared with");
        };
        let [line] = &self.lines[..] else {
            return self.events.warn("", "several sources cannot be compared yet");
        };
        let options = Options::default();
        let verifying = match self.end.status.borrow().state {
            State::Streaming | State::CaughtUp => {
                let job = Verify {
                    options,
                    source: self.source_sides().into_iter().map(|side| side.endpoint).collect(),
                    destination: vec![self.plan.writer.endpoint.clone()],
                    filter: self.plan.filter.clone(),
                    db_map: self.plan.advanced.db_map.clone(),
                    settle: Settle::Streaming(line.source.clone()),
                    dir: Some(self.data_dir.path().to_owned()),
                    output: None,
                    resume: false,
                    repair: None,
                    events: Some(self.events.clone()),
                };
                Verifying::start(job, self.events.clone())
            }
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
}

/// A verification that runs, or the last one. Dropped, it ends.
pub struct Verifying {
    /// How it stands.
    pub progress: Arc<Progress>,
    cancel: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Verifying {
    /// Starts one; its beginning and its result become events.
    pub fn start(job: Verify, events: Arc<EventLog>) -> Verifying {
        let progress = Arc::new(Progress::new(&job.options));
        let (cancel, cancelled) = watch::channel(false);
        let shown = progress.clone();
        let task = tokio::spawn(async move {
            events.info("", format!("verification ({}) started by the operator", job.options.mode.word()));
            match verify(job, shown, cancelled).await {
                Ok(result) => {
                    let text = format!("verification: {}", result.message);
                    match result.state {
                        VerificationState::Different => events.error("", text),
                        _ => events.info("", text),
                    }
                }
                Err(error) => events.warn("", format!("verification could not be finished: {error}")),
            }
        });
        Verifying { progress, cancel, task }
    }

    /// One that was not begun, and why.
    pub fn refused(options: &Options, why: &str, events: &EventLog) -> Verifying {
        let progress = Arc::new(Progress::new(options));
        progress.finish(VerificationState::Failed, why);
        events.warn("", format!("verification not started: {why}"));
        Verifying { progress, cancel: watch::channel(false).0, task: tokio::spawn(async {}) }
    }

    /// True until it has ended.
    pub fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    /// Ends it early.
    pub fn cancel(&self) {
        let _ = self.cancel.send(true);
    }
}

impl Drop for Verifying {
    fn drop(&mut self) {
        self.task.abort();
    }
}
