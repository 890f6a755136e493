//! The headless run: prints what happens, watches for its goal and its time-out, and ends with the outcome.
//!
//! It only watches. When the goal is reached (or the time is up) it sends one [`Command::Stop`]; the engine then
//! finishes what is in flight and publishes a last snapshot with an outcome. A stop that was asked for here counts
//! as "done" where the engine, who does not know the goal, can only say "interrupted": see [`final_outcome`].

use std::fmt;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::lines::{LogFormat, Reporter, verdict};
use super::printer::Printer;
use crate::control::{Command, Handle, SendError};
use crate::format;
use crate::status::{Outcome, Phase, State, Status};

/// Exit code "interrupted, can be resumed" (README, "Exit codes").
pub const EXIT_INTERRUPTED: i32 = 75;
/// Exit code "finished, but entries are in quarantine".
const EXIT_QUARANTINE: i32 = 5;
/// How long the engine may take to finish what is in flight after a stop that was sent from here.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// The goal of a scripted run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitWhen {
    /// Every source's RDB is applied.
    RdbApplied,
    /// The whole migration is in [`State::CaughtUp`].
    CaughtUp,
    /// The cutover has switched to the destination.
    Switched,
}

impl ExitWhen {
    /// Every goal.
    pub const ALL: [ExitWhen; 3] = [ExitWhen::RdbApplied, ExitWhen::CaughtUp, ExitWhen::Switched];

    /// The word of `--exit-when`.
    pub fn word(self) -> &'static str {
        match self {
            ExitWhen::RdbApplied => "rdb-applied",
            ExitWhen::CaughtUp => "caught-up",
            ExitWhen::Switched => "switched",
        }
    }

    /// True when `status` proves that the goal is reached.
    pub fn reached(self, status: &Status) -> bool {
        match self {
            ExitWhen::CaughtUp => status.state == State::CaughtUp,
            ExitWhen::Switched => status.state == State::Switched,
            ExitWhen::RdbApplied => {
                !status.sources.is_empty()
                    && status.sources.iter().all(|source| match source.phase {
                        Phase::Stream | Phase::Drained => true,
                        // The link may have broken after the RDB, which does not undo it.
                        _ => source
                            .rdb_bytes_total
                            .is_some_and(|total| total > 0 && source.rdb_bytes_applied >= total),
                    })
            }
        }
    }
}

/// What a headless run is told.
pub struct HeadlessOptions {
    /// Plain or JSON lines.
    pub format: LogFormat,
    /// Time between two progress lines.
    pub interval: Duration,
    /// Stop when this is reached; `None` = run until the engine ends.
    pub exit_when: Option<ExitWhen>,
    /// Stop with exit code 75 after this time; `None` = no limit.
    pub timeout: Option<Duration>,
    /// The command that goes on with this migration, for the summary.
    pub resume: Option<String>,
    /// Where lines go. Written by a thread of its own; errors are ignored.
    pub out: Box<dyn Write + Send>,
}

impl fmt::Debug for HeadlessOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadlessOptions")
            .field("format", &self.format)
            .field("interval", &self.interval)
            .field("exit_when", &self.exit_when)
            .field("timeout", &self.timeout)
            .field("resume", &self.resume)
            .finish_non_exhaustive()
    }
}

/// Runs until the engine has ended, and says how: the exit code of the process is in the outcome.
///
/// Everything is printed when it returns, the summary too (unless the reader of the output is stuck).
pub async fn run(mut handle: Handle, options: HeadlessOptions) -> Outcome {
    let mut reporter = Reporter::new(options.format);
    let mut printer = Printer::new(options.out);
    let mut print = |reporter: &Reporter, lines: Vec<String>| {
        for line in lines {
            printer.print(line, |count| {
                reporter.note(
                    unix_ms_now(),
                    &format!("{count} lines were left out: the output is read too slowly"),
                )
            });
        }
    };
    let period = options.interval.max(Duration::from_millis(100));
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
    let mut ending: Option<Ending> = None;
    // Said before the stop: afterwards every reason is "stopped".
    let mut verdict_at_end = None;
    let mut engine_is_alive = true;

    let status = loop {
        let status = handle.status();
        let news = reporter.news(&status);
        print(&reporter, news);
        if status.outcome.is_some() || !engine_is_alive {
            break status;
        }
        if ending.is_none() && options.exit_when.is_some_and(|goal| goal.reached(&status)) {
            ending = options.exit_when.map(|goal| Ending::new(Why::Reached(goal)));
        }
        if let Some(ending) = &mut ending {
            ending.ask(&handle);
            if ending.asked_at.elapsed() > STOP_LIMIT {
                break status;
            }
        }
        let wake_up = match &ending {
            Some(ending) => Some(ending.asked_at + STOP_LIMIT + Duration::from_millis(1)),
            None => deadline,
        };
        tokio::select! {
            next = handle.next_status() => engine_is_alive = next.is_some(),
            _ = ticks.tick() => {
                let lines = reporter.progress(&handle.status());
                print(&reporter, lines);
            }
            () = sleep_until(wake_up.unwrap_or_else(Instant::now)), if wake_up.is_some() => {
                if let (None, Some(timeout)) = (&ending, options.timeout) {
                    verdict_at_end = Some(verdict(&status));
                    ending = Some(Ending::new(Why::TimedOut(timeout, options.exit_when)));
                }
            }
        }
    };

    let why = ending.map(|ending| ending.why);
    let verdict_at_end = verdict_at_end.unwrap_or_else(|| verdict(&status));
    let outcome = final_outcome(why, status.outcome.clone(), engine_is_alive, &verdict_at_end);
    // A migration that ended by itself and in full has nothing to go on with.
    let can_resume = outcome.exit_code != 0 || (why.is_some() && status.state != State::Switched);
    let resume = options.resume.as_deref().filter(|_| can_resume);
    let lines = vec![reporter.summary(&status, &outcome, resume)];
    print(&reporter, lines);
    let _ = tokio::task::spawn_blocking(move || printer.finish()).await;
    outcome
}

/// Why the headless run itself asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Reached(ExitWhen),
    TimedOut(Duration, Option<ExitWhen>),
}

/// A stop that is under way.
#[derive(Debug)]
struct Ending {
    why: Why,
    asked_at: Instant,
    is_sent: bool,
}

impl Ending {
    fn new(why: Why) -> Self {
        Ending { why, asked_at: Instant::now(), is_sent: false }
    }

    /// Sends the stop once; a full queue is tried again with the next snapshot.
    fn ask(&mut self, handle: &Handle) {
        // A goal that is reached is the end of the migration: nothing is left behind on the destination.
        let forget = matches!(self.why, Why::Reached(_));
        self.is_sent = self.is_sent || handle.send(Command::Stop { forget }) != Err(SendError::Busy);
    }
}

/// What the process reports: the engine's outcome, except where only this side knows what the stop was for.
///
/// The engine answers a stop with 0 or "interrupted". Errors keep their code; entries in quarantine (5) keep theirs
/// where the goal was reached, and give way to "interrupted" where it was not.
fn final_outcome(why: Option<Why>, engine: Option<Outcome>, engine_is_alive: bool, verdict: &str) -> Outcome {
    let Some(engine) = engine else {
        let (message, hint) = if engine_is_alive {
            let limit = format::spoken_duration(STOP_LIMIT.as_secs_f64());
            (
                format!("the engine did not finish what was in flight within {limit} after the stop"),
                "start it again to go on; the destination's last error says what held it up",
            )
        } else {
            (
                "the engine ended without saying why".into(),
                "the log file has the details; start it again to go on",
            )
        };
        return Outcome { exit_code: EXIT_INTERRUPTED, message, hint: Some(hint.into()) };
    };
    match (why, engine.exit_code) {
        (Some(Why::Reached(goal)), 0 | EXIT_INTERRUPTED) => Outcome {
            exit_code: 0,
            message: format!("{} reached, stopped as asked", goal.word()),
            hint: None,
        },
        (Some(Why::TimedOut(timeout, goal)), 0 | EXIT_QUARANTINE | EXIT_INTERRUPTED) => {
            let goal = goal.map(|goal| format!(" before {} was reached", goal.word())).unwrap_or_default();
            let timeout = format::spoken_duration(timeout.as_secs_f64());
            let message = format!("the time-out of {timeout} was over{goal} ({verdict}); {}", engine.message);
            Outcome { exit_code: EXIT_INTERRUPTED, message, hint: engine.hint }
        }
        _ => engine,
    }
}

fn unix_ms_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
