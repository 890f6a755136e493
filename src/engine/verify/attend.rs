//! The verification of a running migration: one at a time, in a task of its own, with its events.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Place, Progress, Settle, Streams, Verify, verify};
use crate::config::{Cutover, Reader, SyncReader};
use crate::engine::events::EventLog;
use crate::engine::supervisor::Supervisor;
use crate::status::{State, VerificationState};
use crate::verify::{Mode, Options};

impl Supervisor {
    /// Starts a comparison, unless one runs or nothing could be said.
    pub(in crate::engine) fn verify(&mut self) {
        if self.verifying.as_ref().is_some_and(Verifying::is_running) {
            return self.events.warn("", "a verification runs already");
        }
        let Reader::Sync(reader) = &self.plan.reader else {
            return self.events.warn("", "an RDB file is no server that could be compared with");
        };
        let options = options_of(&self.plan.cutover);
        let verifying = match self.end.status.borrow().state {
            State::Streaming | State::CaughtUp => {
                let job = Verify {
                    options,
                    source: self.source_place(reader),
                    destination: Place::new(&self.plan.writer.endpoint, self.plan.writer.cluster),
                    filter: self.plan.filter.clone(),
                    db_map: self.plan.advanced.db_map.clone(),
                    settle: Settle::Streaming(Streams::new(
                        self.lines.iter().map(|line| line.source.clone()).collect(),
                    )),
                    dir: Some(self.data_dir.path().to_owned()),
                    output: None,
                    resume: false,
                    repair: None,
                    events: Some(self.events.clone()),
                    own: None,
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

    /// Where the source is: a cluster also where its masters are known to be.
    fn source_place(&self, reader: &SyncReader) -> Place {
        let mut place = Place::new(&reader.endpoint, reader.cluster);
        if reader.cluster {
            place.seeds.extend(self.source_sides().into_iter().map(|side| side.endpoint));
        }
        place
    }
}

/// A rehearsal of what a cutover compares. That may be a mere count, or nothing, because writers are blocked meanwhile; here
/// nobody is, and every key is looked at.
fn options_of(cutover: &Cutover) -> Options {
    match cutover.verify {
        Some(mode @ (Mode::Meta | Mode::Digest | Mode::Full)) => {
            let at_most = Some(cutover.sample).filter(|sample| *sample > 0);
            Options { mode, at_most, ..Options::default() }
        }
        Some(Mode::Count) | None => Options::default(),
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
