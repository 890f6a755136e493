//! The headless run: prints what happens, watches for its goal and its time-out, and ends with the outcome.
//!
//! It only watches. When the goal is reached (or the time is up) it sends one [`Command::Stop`]; the engine then
//! finishes what is in flight and publishes a last snapshot with an outcome. A stop that was asked for here counts
//! as "done" where the engine, who does not know the goal, can only say "interrupted": see `final_outcome`.

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
/// Exit code "cutover aborted".
pub const EXIT_WENT_BACK: i32 = 7;
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
    /// Begin the cutover as soon as everything is ready, once.
    pub cutover_when_ready: bool,
    /// Stop when this is reached; `None` = run until the engine ends.
    pub exit_when: Option<ExitWhen>,
    /// Stop with exit code 75 after this time; `None` = no limit.
    pub timeout: Option<Duration>,
    /// The command that goes on with this migration, for the summary.
    pub resume: Option<String>,
    /// Until now a console was open: what has happened so far is not said again, and from here on only events are.
    pub after_screen: bool,
    /// Where lines go. Written by a thread of its own; errors are ignored.
    pub out: Box<dyn Write + Send>,
}

impl fmt::Debug for HeadlessOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadlessOptions")
            .field("format", &self.format)
            .field("interval", &self.interval)
            .field("cutover_when_ready", &self.cutover_when_ready)
            .field("exit_when", &self.exit_when)
            .field("timeout", &self.timeout)
            .field("resume", &self.resume)
            .field("after_screen", &self.after_screen)
            .finish_non_exhaustive()
    }
}

/// Runs until the engine has ended, and says how: the exit code of the process is in the outcome.
///
/// Everything is printed when it returns, the summary too (unless the reader of the output is stuck).
pub async fn run(mut handle: Handle, options: HeadlessOptions) -> Outcome {
    let mut reporter = Reporter::new(options.format);
    if options.after_screen {
        let _ = reporter.news(&handle.status());
    }
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
    let mut cutover_begun = false;

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
        if options.cutover_when_ready && ending.is_none() {
            if !cutover_begun && status.ready && status.state == State::CaughtUp {
                let confirmation = status.destination.address.clone();
                cutover_begun =
                    handle.send(Command::StartCutover { confirmation, writes_stopped: false }).is_ok();
            }
            // Whoever waits for the switch waits in vain. Without that goal the migration goes on.
            if status.cutover.aborted && options.exit_when == Some(ExitWhen::Switched) {
                ending = Some(Ending::new(Why::WentBack));
            }
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
            // The terminal is about to be the shell's again: there is a console for progress.
            _ = ticks.tick(), if !options.after_screen => {
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
    let outcome = final_outcome(
        why,
        status.outcome.clone(),
        engine_is_alive,
        &verdict_at_end,
        status.cutover.result.as_deref(),
    );
    // What was done in full, or ended on reaching its goal, has nothing to go on with.
    let resume = options.resume.as_deref().filter(|_| !outcome.is_done());
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
    WentBack,
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
fn final_outcome(
    why: Option<Why>,
    engine: Option<Outcome>,
    engine_is_alive: bool,
    verdict: &str,
    cutover: Option<&str>,
) -> Outcome {
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
        // It knows more than that the goal is reached: where the clients belong, and what the old source does.
        (Some(Why::Reached(ExitWhen::Switched)), 0) => engine,
        (Some(Why::Reached(goal)), 0 | EXIT_INTERRUPTED) => Outcome {
            exit_code: 0,
            message: format!("{} reached, stopped as asked", goal.word()),
            hint: None,
        },
        (Some(Why::WentBack), 0 | EXIT_QUARANTINE | EXIT_INTERRUPTED) => Outcome {
            exit_code: EXIT_WENT_BACK,
            message: format!("the cutover {}; {}", cutover.unwrap_or("went back"), engine.message),
            hint: engine.hint,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::control::{self, EngineEnd};
    use crate::headless::samples;

    /// An output that can be read while it is written.
    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn options(out: impl Write + Send + 'static) -> HeadlessOptions {
        HeadlessOptions {
            format: LogFormat::Plain,
            interval: Duration::from_secs(10),
            cutover_when_ready: false,
            exit_when: None,
            timeout: None,
            resume: Some("shakedeck shake.toml".into()),
            after_screen: false,
            out: Box::new(out),
        }
    }

    /// Waits for the stop, then ends as the engine does.
    async fn stop_as_asked(mut engine: EngineEnd) -> Command {
        let command = engine.commands.recv().await.unwrap();
        engine.status.send_replace(Arc::new(samples::stopped()));
        command
    }

    #[test]
    fn goals_are_reached_by_state_and_phase() {
        let mut status = samples::syncing();
        let reached = |status: &Status| ExitWhen::ALL.map(|goal| goal.reached(status));
        assert_eq!(reached(&status), [false, false, false]);
        assert_eq!(reached(&samples::caught_up()), [true, true, false]);

        status.sources.push(samples::source("10.0.1.14:6379"));
        status.sources[0].phase = Phase::Stream;
        assert_eq!(reached(&status), [false, false, false], "the second source is not there yet");
        status.sources[1].phase = Phase::Reconnecting;
        status.sources[1].rdb_bytes_applied = 4_400_000_000;
        assert_eq!(reached(&status), [true, false, false], "a lost link does not undo an applied RDB");
        status.sources[1].rdb_bytes_total = None;
        assert_eq!(reached(&status), [false, false, false], "of an unknown size nothing is the whole");
        status.sources.clear();
        assert_eq!(reached(&status), [false, false, false], "no source is not every source");
        status.state = State::Switched;
        assert_eq!(reached(&status), [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reached_goal_stops_in_order_with_exit_code_0() {
        let (handle, engine) = control::channel(samples::syncing());
        let page = Page::default();
        let options = HeadlessOptions { exit_when: Some(ExitWhen::CaughtUp), ..options(page.clone()) };
        let running = tokio::spawn(run(handle, options));
        engine.status.send_replace(Arc::new(samples::caught_up()));
        assert_eq!(stop_as_asked(engine).await, Command::Stop { forget: true });
        let outcome = running.await.unwrap();
        assert_eq!((outcome.exit_code, outcome.message.as_str()), (0, "caught-up reached, stopped as asked"));
        let text = page.text();
        assert!(text.contains("STATE caught_up -> stopped\n"), "{text}");
        assert!(!text.contains("  resume  "), "{text}");
        assert!(text.ends_with("  exit code    0\n"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_on_a_screen_is_not_said_again() {
        let mut status = samples::syncing();
        let event =
            |id, text: &str| crate::status::Event { id, text: text.into(), ..status.events[0].clone() };
        let (seen, new) = (event(7, "seen on the screen"), event(8, "new"));
        status.events = vec![seen];
        let (handle, engine) = control::channel(status.clone());
        let page = Page::default();
        let options = HeadlessOptions { after_screen: true, ..options(page.clone()) };
        let running = tokio::spawn(run(handle, options));
        tokio::task::yield_now().await;
        status.events.push(new);
        engine.status.send_replace(Arc::new(Status { events: status.events, ..samples::stopped() }));
        running.await.unwrap();
        let text = page.text();
        assert!(!text.contains("seen on the screen") && !text.contains("started:"), "{text}");
        assert!(text.contains(" new\n"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_out_stops_with_exit_code_75_and_says_why() {
        let (handle, engine) = control::channel(samples::syncing());
        let page = Page::default();
        let options = HeadlessOptions {
            exit_when: Some(ExitWhen::CaughtUp),
            timeout: Some(Duration::from_secs(1_800)),
            ..options(page.clone())
        };
        let running = tokio::spawn(run(handle, options));
        assert_eq!(stop_as_asked(engine).await, Command::Stop { forget: false });
        let outcome = running.await.unwrap();
        assert_eq!(outcome.exit_code, 75);
        assert_eq!(
            outcome.message,
            "the time-out of 30m00s was over before caught-up was reached (NOT READY: 10.0.1.13:6379 applying RDB, \
             about 20m30s); stopped by the operator"
        );
        let progress = page.text().lines().filter(|line| line.contains(" | NOT READY: ")).count();
        assert!((175..=180).contains(&progress), "one line every 10 s for 30 minutes: {progress}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_never_finishes_does_not_hold_the_script_for_ever() {
        let (handle, _engine) = control::channel(samples::caught_up());
        let options = HeadlessOptions { exit_when: Some(ExitWhen::CaughtUp), ..options(std::io::sink()) };
        let outcome = run(handle, options).await;
        assert_eq!(outcome.exit_code, 75);
        assert_eq!(
            outcome.message,
            "the engine did not finish what was in flight within 1m00s after the stop"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_engine_that_vanishes_ends_the_run() {
        let (handle, engine) = control::channel(samples::syncing());
        drop(engine);
        let outcome = run(handle, options(std::io::sink())).await;
        assert_eq!(
            (outcome.exit_code, outcome.message.as_str()),
            (75, "the engine ended without saying why")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_command_queue_only_delays_the_stop() {
        let (handle, mut engine) = control::channel(samples::caught_up());
        while handle.send(Command::Pause).is_ok() {}
        let options = HeadlessOptions { exit_when: Some(ExitWhen::CaughtUp), ..options(std::io::sink()) };
        let running = tokio::spawn(run(handle, options));
        tokio::task::yield_now().await;
        for _ in 0..16 {
            assert_eq!(engine.commands.recv().await, Some(Command::Pause));
        }
        engine.status.send_replace(Arc::new(samples::caught_up()));
        assert_eq!(stop_as_asked(engine).await, Command::Stop { forget: true });
        assert_eq!(running.await.unwrap().exit_code, 0);
    }

    #[test]
    fn errors_keep_their_exit_code_whatever_the_stop_was_for() {
        let engine = |exit_code| Some(Outcome { exit_code, message: "it".into(), hint: None });
        let reached = Some(Why::Reached(ExitWhen::CaughtUp));
        let timed_out = Some(Why::TimedOut(Duration::from_secs(1), None));
        let table = [
            // engine, goal reached, timed out, ended by itself
            (0, 0, 75, 0),
            (75, 0, 75, 75),
            (5, 5, 75, 5),
            (4, 4, 4, 4),
            (8, 8, 8, 8),
        ];
        for (code, when_reached, when_timed_out, alone) in table {
            let code_for = |why| final_outcome(why, engine(code), true, "READY", None).exit_code;
            assert_eq!(
                (code_for(reached), code_for(timed_out), code_for(None)),
                (when_reached, when_timed_out, alone),
                "engine {code}"
            );
        }
    }

    #[tokio::test]
    async fn a_closed_output_changes_nothing() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (handle, engine) = control::channel(samples::syncing());
        let options = HeadlessOptions { interval: Duration::from_millis(1), ..options(writer) };
        let running = tokio::spawn(run(handle, options));
        for _ in 0..50 {
            engine.status.send_replace(Arc::new(samples::caught_up()));
            tokio::task::yield_now().await;
        }
        engine.status.send_replace(Arc::new(samples::stopped()));
        assert_eq!(running.await.unwrap(), samples::stopped().outcome.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn an_output_that_nobody_reads_does_not_hold_up_the_goal() {
        // The pipe is full long before the two hours are over, and its reader never reads.
        let (_reader, writer) = std::io::pipe().unwrap();
        let (handle, engine) = control::channel(samples::syncing());
        let options = HeadlessOptions {
            interval: Duration::from_secs(1),
            timeout: Some(Duration::from_secs(7_200)),
            ..options(writer)
        };
        let running = tokio::spawn(run(handle, options));
        assert_eq!(stop_as_asked(engine).await, Command::Stop { forget: false });
        assert_eq!(running.await.unwrap().exit_code, 75);
    }
}
