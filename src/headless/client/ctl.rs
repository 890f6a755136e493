//! `shakedeck ctl`: asks, prints and returns. A command is done when the run has accepted it, unless it was told to wait for the
//! effect.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use super::ClientError;
use super::connection::Connection;
use crate::control::Command;
use crate::cutover;
use crate::headless::lines::{LogFormat, event_line, missed_line, safe, verdict};
use crate::headless::overview::overview;
use crate::headless::verification::{verification_exit_code, verification_progress, verification_result};
use crate::headless::wire::{Reply, Request};
use crate::status::{Event, EventLevel, State, Status, Throttle, Verification, VerificationState};

/// How long an old source may take to be put back.
const UNFENCE_LIMIT: Duration = Duration::from_secs(30);

/// What `shakedeck ctl` is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Print the status.
    Status {
        /// As the JSON object of the contract instead of a table.
        json: bool,
    },
    /// Stop applying, and wait for [`State::Paused`] for as long as given.
    Pause {
        /// How long to wait for the effect; `None` = not at all.
        wait: Option<Duration>,
    },
    /// Go on applying.
    Resume {
        /// How long to wait for the effect; `None` = not at all.
        wait: Option<Duration>,
    },
    /// Set both speed limits; `None` lifts one.
    Throttle(Throttle),
    /// Compare source and destination.
    Verify {
        /// Wait for the result.
        wait: bool,
        /// As JSON lines.
        format: LogFormat,
    },
    /// Begin the cutover, and wait for its end.
    Cutover {
        /// The destination's address as typed by the operator.
        confirmation: String,
        /// The operator's word that nobody writes to the source any more.
        writes_stopped: bool,
    },
    /// Mark every error as read.
    Acknowledge,
    /// Break the cutover off.
    Abort,
    /// Hand over, with `[cutover] hand_over = "ask"`.
    Go,
    /// Let the old source take writes again.
    Unfence {
        /// For where no run is left: how to reach the servers. The application does that; here it is only carried.
        config: Option<PathBuf>,
    },
    /// Finish what is in flight and end.
    Stop {
        /// Remove the checkpoint too: the migration cannot be resumed afterwards.
        forget: bool,
        /// How long to wait for the end; `None` = not at all.
        wait: Option<Duration>,
    },
    /// Wait for a state.
    Wait {
        /// The state; of the way `connecting syncing streaming caught_up cutting_over switched` a later one counts too.
        goal: State,
        /// How long at most.
        timeout: Duration,
    },
    /// Print the operator events.
    Events {
        /// Go on until the run ends.
        follow: bool,
        /// JSON lines instead of text.
        format: LogFormat,
    },
}

/// Does one `ctl` subcommand against the run whose data directory is `dir`, printing to `out`.
///
/// A closed `out` ends it without an error, as with any filter.
pub async fn ctl(dir: &Path, action: Action, out: &mut (dyn Write + Send)) -> Result<(), ClientError> {
    let mut connection = Connection::open(dir).await?;
    match action {
        Action::Status { json } => {
            let value = connection.ask(&Request::Status).await?;
            let text = if json { value.to_string() } else { overview(&connection.parse::<Status>(value)?) };
            let _ = writeln!(out, "{text}");
        }
        Action::Events { follow, format } => {
            let value = connection.ask(&Request::Events { follow }).await?;
            let mut events: Vec<Event> = connection.parse(value)?;
            loop {
                for event in events.drain(..) {
                    if writeln!(out, "{}", event_line(format, &event)).and_then(|()| out.flush()).is_err() {
                        return Ok(());
                    }
                }
                if !follow {
                    return Ok(());
                }
                match connection.next().await? {
                    None => return Ok(()),
                    Some(Reply::Event(event)) => events.push(event),
                    Some(Reply::MissedEvents(count)) => {
                        let _ = writeln!(out, "{}", missed_line(format, count));
                    }
                    Some(_) => {}
                }
            }
        }
        Action::Pause { wait } => {
            connection.may_steer().await?;
            connection.command(Command::Pause, "pause", out).await?;
            if let Some(limit) = wait {
                let status = connection.wait("paused", limit, |status| status.state == State::Paused).await?;
                let _ = writeln!(out, "{}", status.state.word());
            }
        }
        Action::Resume { wait } => {
            connection.may_steer().await?;
            connection.command(Command::Resume, "resume", out).await?;
            if let Some(limit) = wait {
                let is_resumed = |status: &Status| !matches!(status.state, State::Pausing | State::Paused);
                let status = connection.wait("going on", limit, is_resumed).await?;
                let _ = writeln!(out, "{}", status.state.word());
            }
        }
        Action::Stop { forget, wait } => {
            connection.command(Command::Stop { forget }, "stop", out).await?;
            if let Some(limit) = wait {
                let is_over = |status: &Status| status.state.is_final() || status.outcome.is_some();
                let status = connection.wait("the end", limit, is_over).await?;
                let message = status.outcome.as_ref().map_or("", |outcome| outcome.message.as_str());
                let _ = writeln!(out, "{} {}", status.state.word(), safe(message));
            }
        }
        Action::Throttle(limit) => connection.command(Command::Throttle { limit }, "throttle", out).await?,
        Action::Verify { wait, format } => connection.verify(wait, format, out).await?,
        Action::Cutover { confirmation, writes_stopped } => {
            let status = connection.status().await?;
            if status.state == State::CuttingOver {
                let text =
                    "another cutover is in progress ('shakedeck ctl abort' ends it); this one was not begun";
                return Err(ClientError::WentBack(text.into()));
            }
            let before = status.cutover.attempts;
            let command = Command::StartCutover { confirmation, writes_stopped };
            connection.command(command, "cutover", out).await?;
            return connection.watch_cutover(before, out).await;
        }
        Action::Acknowledge => connection.command(Command::AcknowledgeErrors, "acknowledge", out).await?,
        Action::Abort => {
            let status = connection.status_when(|status| status.cutover.state.can_abort()).await?;
            let state = status.cutover.state;
            if status.state != State::CuttingOver {
                return Err(ClientError::Refused("no cutover is in progress".into()));
            }
            if !state.can_abort() {
                let reason = format!("the cutover is in '{}', which cannot be broken off", state.word());
                return Err(ClientError::Refused(reason));
            }
            connection.command(Command::AbortCutover, "abort", out).await?
        }
        Action::Go => {
            let waits = |status: &Status| status.cutover.state == cutover::State::Waiting;
            let status = connection.status_when(waits).await?;
            if status.state != State::CuttingOver {
                return Err(ClientError::Refused("no cutover is in progress".into()));
            }
            if status.cutover.state != cutover::State::Waiting {
                let reason =
                    format!("the cutover is in '{}': it does not wait for a go", status.cutover.state.word());
                return Err(ClientError::Refused(reason));
            }
            connection.command(Command::HandOver, "go", out).await?
        }
        Action::Unfence { .. } => {
            let before = connection.status().await?;
            if before.state == State::CuttingOver {
                let reason = "a cutover is in progress ('shakedeck ctl abort' ends it)";
                return Err(ClientError::Refused(reason.into()));
            }
            connection.command(Command::Unfence, "unfence", out).await?;
            connection.unfenced(before.events.last().map_or(0, |event| event.id)).await?;
            let _ = writeln!(out, "unfenced");
        }
        Action::Wait { goal, timeout } => {
            let status =
                connection.wait(goal.word(), timeout, |status| is_reached(goal, status.state)).await?;
            let _ = writeln!(out, "{} ({})", status.state.word(), verdict(&status));
        }
    }
    Ok(())
}

impl Connection {
    /// Pause and resume concern a migration that applies.
    async fn may_steer(&mut self) -> Result<(), ClientError> {
        let status = self.status().await?;
        let reason = match status.state {
            State::CuttingOver => "a cutover is in progress ('shakedeck ctl abort' ends it)",
            State::Switched if status.cutover.reverse.is_none() => {
                "the cutover is done: nothing is applied any more"
            }
            state if state.is_final() => "the run has ended",
            _ => return Ok(()),
        };
        Err(ClientError::Refused(reason.into()))
    }

    async fn command(
        &mut self,
        command: Command,
        name: &str,
        out: &mut (dyn Write + Send),
    ) -> Result<(), ClientError> {
        self.ask(&Request::Command { command }).await?;
        let _ = writeln!(out, "{name} accepted");
        Ok(())
    }

    /// Prints the steps of the cutover that was begun after `before` others, until it has ended.
    async fn watch_cutover(&mut self, before: u32, out: &mut (dyn Write + Send)) -> Result<(), ClientError> {
        self.ask(&Request::Subscribe).await?;
        let mut shown = None;
        loop {
            let status = match self.next().await? {
                Some(Reply::Status(status)) => status,
                Some(_) => continue,
                None => return Err(self.lost("it went away before the cutover had ended")),
            };
            let cutover = &status.cutover;
            if cutover.attempts == before {
                continue;
            }
            if shown != Some(cutover.state) && cutover.state != cutover::State::Live {
                shown = Some(cutover.state);
                let _ = writeln!(out, "{}", cutover.state.word());
            }
            let Some(result) = &cutover.result else { continue };
            if let Some(report) = &cutover.report {
                let lines: Vec<String> = report.lines().map(safe).collect();
                let _ = writeln!(out, "{}", lines.join("\n"));
            }
            return match cutover.aborted {
                true => Err(ClientError::WentBack(safe(result))),
                false => Ok(()),
            };
        }
    }

    /// Waits until nothing keeps writers off, or until the run says why that cannot be; `last` is the event before.
    async fn unfenced(&mut self, last: u64) -> Result<(), ClientError> {
        let mut failed = None;
        let is_over = |status: &Status| {
            let told = status.events.iter().find(|event| {
                event.id > last && event.level == EventLevel::Error && event.text.starts_with("unfence: ")
            });
            failed = told.map(|event| event.text.clone());
            failed.is_some() || status.cutover.closed().next().is_none()
        };
        self.wait("unfenced", UNFENCE_LIMIT, is_over).await?;
        failed.map_or(Ok(()), |text| Err(ClientError::Refused(safe(&text))))
    }

    /// Starts a comparison, or joins the one that runs, and waits for its result.
    async fn verify(
        &mut self,
        wait: bool,
        format: LogFormat,
        out: &mut (dyn Write + Send),
    ) -> Result<(), ClientError> {
        let before = self.status().await?.verification;
        let is_new = move |shown: &Verification| {
            before.as_ref().is_none_or(|before| {
                before.state == VerificationState::Running || before.started_unix_ms != shown.started_unix_ms
            })
        };
        self.ask(&Request::Command { command: Command::Verify }).await?;
        if !wait {
            let _ = writeln!(out, "verify accepted");
            return Ok(());
        }
        let mut told: Option<Instant> = None;
        let is_over = |status: &Status| {
            let Some(shown) = status.verification.as_ref().filter(|shown| is_new(shown)) else {
                return false;
            };
            if shown.state == VerificationState::Running {
                if told.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
                    told = Some(Instant::now());
                    let _ = writeln!(out, "{}", verification_progress(format, shown));
                }
                return false;
            }
            true
        };
        let status = self.wait("the result of the verification", Duration::MAX, is_over).await?;
        let Some(shown) = &status.verification else { return Ok(()) };
        let lines = verification_result(format, shown);
        let _ = writeln!(out, "{}", lines.join("\n"));
        match verification_exit_code(shown) {
            0 => Ok(()),
            exit_code => Err(ClientError::Verification { exit_code, message: shown.message.clone() }),
        }
    }
}

/// True when a run in `state` has reached `goal`, or is past it on the straight way of a migration.
pub(super) fn is_reached(goal: State, state: State) -> bool {
    const WAY: [State; 6] = [
        State::Connecting,
        State::Syncing,
        State::Streaming,
        State::CaughtUp,
        State::CuttingOver,
        State::Switched,
    ];
    let place = |state| WAY.iter().position(|stop| *stop == state);
    match (place(goal), place(state)) {
        (Some(goal), Some(now)) => now >= goal,
        _ => state == goal,
    }
}
