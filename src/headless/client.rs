//! The other end of the control socket: `shakedeck ctl`, and [`remote`] for `shakedeck attach`.
//!
//! `ctl` asks, prints and returns; a command is done when the run has accepted it, unless it was told to wait for the
//! effect. [`remote`] makes an ordinary [`Handle`] out of a subscription, so that a console cannot tell a run in
//! another process from one in its own.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::lines::{LogFormat, event_line, missed_line, safe, verdict};
use super::overview::overview;
use super::run::{EXIT_INTERRUPTED, EXIT_WENT_BACK};
use super::verification::{verification_exit_code, verification_progress, verification_result};
use super::wire::{LineReader, Reply, Request, SOCKET_NAME, ShortPath};
use crate::control::{self, Command, EngineEnd, Handle};
use crate::cutover;
use crate::format;
use crate::status::{Event, Outcome, State, Status, Throttle, Verification, VerificationState};

/// Longest line taken from a run (bytes); a snapshot of 64 nodes with full rings has well under one million.
const REPLY_LIMIT: usize = 16 * 1_024 * 1_024;
/// How long a run may take to answer. It answers from memory; longer means that it is stopped or starved.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How often a data directory is looked at for the next run.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Longer than the time between two snapshots.
const SNAPSHOT_LIMIT: Duration = Duration::from_millis(400);

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

/// Why `ctl` or `attach` failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no run listens in '{}' ({source}). Start one with 'shakedeck --headless shake.toml', or name its data directory with --dir", .dir.display())]
    NoRun {
        /// The data directory.
        dir: PathBuf,
        /// What the system said about the socket.
        source: io::Error,
    },
    /// The connection broke, or the run has ended.
    #[error("the run in '{}' closed the connection: {reason}. Its log says why", .dir.display())]
    Lost {
        /// The data directory.
        dir: PathBuf,
        /// What was seen.
        reason: String,
    },
    /// The run is there and says nothing.
    #[error("the run in '{}' did not answer within {} s: is its process stopped?", .0.display(), ANSWER_LIMIT.as_secs())]
    Silent(PathBuf),
    /// The run said no.
    #[error("the run refused: {0}")]
    Refused(String),
    /// The time of `wait` is over.
    #[error("{goal} was not reached within {time}: the run is {state} ({verdict})")]
    TimedOut {
        /// What was waited for.
        goal: String,
        /// How long, in words.
        time: String,
        /// The state at the end.
        state: &'static str,
        /// READY, or why not.
        verdict: String,
    },
    /// The cutover did not come to its end.
    #[error("the cutover did not happen: {0}; streaming goes on")]
    WentBack(String),
    /// The comparison did not find both sides equal, or could not be finished.
    #[error("{message}")]
    Verification {
        /// Exit code of the process.
        exit_code: i32,
        /// Why.
        message: String,
    },
    /// The run ended before the goal was reached.
    #[error("the run ended before {goal} was reached: {}", .outcome.message)]
    Ended {
        /// What was waited for.
        goal: String,
        /// How it ended.
        outcome: Outcome,
    },
}

impl ClientError {
    /// Exit code of the process: 2 for a run that is not there or refuses, the run's own where it ended, else 75.
    pub fn exit_code(&self) -> i32 {
        match self {
            ClientError::NoRun { .. } | ClientError::Refused(_) => 2,
            ClientError::WentBack(_) => EXIT_WENT_BACK,
            ClientError::Verification { exit_code, .. } => *exit_code,
            ClientError::Ended { outcome, .. } if outcome.exit_code != 0 => outcome.exit_code,
            ClientError::Ended { .. }
            | ClientError::TimedOut { .. }
            | ClientError::Lost { .. }
            | ClientError::Silent(_) => EXIT_INTERRUPTED,
        }
    }
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
            connection.command(Command::Unfence, "unfence", out).await?;
            let is_lifted = |status: &Status| status.cutover.refusing.is_empty();
            connection.wait("unfenced", UNFENCE_LIMIT, is_lifted).await?;
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

/// A handle on the run whose data directory is `dir`: its snapshots arrive, and commands are forwarded.
///
/// The handle closes when the run ends or the connection breaks: see [`further_runs`]. A command that the run refuses is noted in the log.
/// Must be called inside a tokio runtime, which has to live as long as the handle is used.
pub async fn remote(dir: &Path) -> Result<Handle, ClientError> {
    let mut connection = Connection::open(dir).await?;
    connection.ask(&Request::Subscribe).await?;
    let first = loop {
        match connection.limited_next().await? {
            Some(Reply::Status(status)) => break *status,
            Some(_) => {}
            None => return Err(connection.lost("it ended before its first status")),
        }
    };
    let (handle, engine_end) = control::channel(first);
    tokio::spawn(forward(connection, engine_end));
    Ok(handle)
}

/// Looks for the next run in `dir` each time the one before is gone, and hands it over, for as long as somebody takes it.
pub async fn further_runs(dir: PathBuf, mut last: Handle, found: mpsc::Sender<Handle>) {
    loop {
        while last.next_status().await.is_some() {}
        last = loop {
            tokio::select! {
                () = sleep(LOOK_AGAIN) => {}
                () = found.closed() => return,
            }
            match remote(&dir).await {
                // One that has ended still listens for a moment.
                Ok(next) if !next.status().state.is_final() => break next,
                _ => {}
            }
        };
        if found.send(last.clone()).await.is_err() {
            return;
        }
    }
}

/// Carries snapshots in and commands out until one side is gone; dropping the engine's end closes the handle.
async fn forward(mut connection: Connection, mut end: EngineEnd) {
    loop {
        tokio::select! {
            line = connection.lines.next() => {
                let reply = match line {
                    Ok(Some(line)) => serde_json::from_slice::<Incoming>(&line),
                    Ok(None) => return,
                    Err(error) => {
                        tracing::warn!("attached run: {error}");
                        return;
                    }
                };
                match reply {
                    Ok(Reply::Status(status)) => {
                        end.status.send_replace(Arc::new(*status));
                    }
                    Ok(Reply::Error { message }) => tracing::warn!("the attached run refused: {message}"),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!("attached run: a line that cannot be read: {error}");
                        return;
                    }
                }
            }
            command = end.commands.recv() => {
                // `None`: every handle is gone, the console was closed.
                let Some(command) = command else { return };
                if let Err(error) = connection.write(&Request::Command { command }).await {
                    tracing::warn!("attached run: {error}");
                    return;
                }
            }
        }
    }
}

/// True when a run in `state` has reached `goal`, or is past it on the straight way of a migration.
fn is_reached(goal: State, state: State) -> bool {
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

/// A line of the server as the client sees it.
type Incoming = Reply<Box<Status>, Event, Value>;

#[derive(Debug)]
struct Connection {
    dir: PathBuf,
    lines: LineReader<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Connection {
    async fn open(dir: &Path) -> Result<Connection, ClientError> {
        let no_run = |source| ClientError::NoRun { dir: dir.to_owned(), source };
        let socket = ShortPath::new(dir).map_err(no_run)?;
        let connect = timeout(ANSWER_LIMIT, UnixStream::connect(&socket.path));
        let stream = connect.await.map_err(|_| ClientError::Silent(dir.to_owned()))?.map_err(|error| {
            no_run(match error.kind() {
                io::ErrorKind::NotFound => io::Error::other(format!("there is no {SOCKET_NAME}")),
                io::ErrorKind::ConnectionRefused => io::Error::other("the run that listened there has died"),
                _ => error,
            })
        })?;
        let (read, write) = stream.into_split();
        Ok(Connection {
            dir: dir.to_owned(),
            lines: LineReader::new(BufReader::new(read), REPLY_LIMIT),
            write,
        })
    }

    async fn write(&mut self, request: &Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.write.write_all(&line).await
    }

    /// Asks and takes the answer; lines of a subscription that come in between are passed over.
    async fn ask(&mut self, request: &Request) -> Result<Value, ClientError> {
        if let Err(error) = self.write(request).await {
            // The run may have said why before it hung up ("32 clients are connected already").
            return match self.limited_next().await {
                Ok(Some(Reply::Error { message })) => Err(ClientError::Refused(message)),
                _ => Err(self.lost(&error.to_string())),
            };
        }
        loop {
            match self.limited_next().await? {
                Some(Reply::Ok(value)) => return Ok(value),
                Some(Reply::Error { message }) => return Err(ClientError::Refused(message)),
                Some(_) => {}
                None => return Err(self.lost("it ended before it answered")),
            }
        }
    }

    async fn status(&mut self) -> Result<Status, ClientError> {
        let value = self.ask(&Request::Status).await?;
        self.parse(value)
    }

    /// The status, once more where something that has just begun may not be in it yet.
    async fn status_when(&mut self, fits: impl Fn(&Status) -> bool) -> Result<Status, ClientError> {
        let status = self.status().await?;
        if fits(&status) {
            return Ok(status);
        }
        sleep(SNAPSHOT_LIMIT).await;
        self.status().await
    }

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

    /// Subscribes and waits until a snapshot fits.
    async fn wait(
        &mut self,
        goal: &str,
        limit: Duration,
        mut is_reached: impl FnMut(&Status) -> bool,
    ) -> Result<Box<Status>, ClientError> {
        // A limit too far away for the clock is no limit that anybody will see pass.
        let deadline = Instant::now() + limit.min(Duration::from_secs(365 * 86_400));
        self.ask(&Request::Subscribe).await?;
        let mut newest: Option<Box<Status>> = None;
        loop {
            let reply = match timeout_at(deadline, self.next()).await {
                Ok(reply) => reply?,
                Err(_) => {
                    return Err(ClientError::TimedOut {
                        goal: goal.to_owned(),
                        time: format::spoken_duration(limit.as_secs_f64()),
                        state: newest.as_ref().map_or("silent", |status| status.state.word()),
                        verdict: newest.as_ref().map_or("no status yet".into(), |status| verdict(status)),
                    });
                }
            };
            match reply {
                Some(Reply::Status(status)) if is_reached(&status) => return Ok(status),
                Some(Reply::Status(status)) => newest = Some(status),
                Some(_) => {}
                None => {
                    return Err(match newest.and_then(|status| status.outcome) {
                        Some(outcome) => ClientError::Ended { goal: goal.to_owned(), outcome },
                        None => self.lost(&format!("it went away before {goal} was reached")),
                    });
                }
            }
        }
    }

    /// The next line, whenever it comes; `None` when the run has ended.
    async fn next(&mut self) -> Result<Option<Incoming>, ClientError> {
        let line = match self.lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.lost(&error.to_string())),
        };
        match serde_json::from_slice(&line) {
            Ok(reply) => Ok(Some(reply)),
            Err(error) => Err(self.lost(&format!("it speaks another version's language: {error}"))),
        }
    }

    async fn limited_next(&mut self) -> Result<Option<Incoming>, ClientError> {
        match timeout(ANSWER_LIMIT, self.next()).await {
            Ok(reply) => reply,
            Err(_) => Err(ClientError::Silent(self.dir.clone())),
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, value: Value) -> Result<T, ClientError> {
        serde_json::from_value(value)
            .map_err(|error| self.lost(&format!("it speaks another version's language: {error}")))
    }

    fn lost(&self, reason: &str) -> ClientError {
        ClientError::Lost { dir: self.dir.clone(), reason: reason.to_owned() }
    }
}

#[cfg(test)]
mod tests;
