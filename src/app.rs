//! Wires the engine to a front: configuration, runtime, log file, signals, and the exit code.
//!
//! The only module that knows both the engine and the fronts.

mod demo;
mod verify;

use std::fs::DirBuilder;
use std::io::{IsTerminal, Seek, SeekFrom, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cli::{self, Command};
use crate::config::{self, LogLevel, Plan};
use crate::control::{self, Handle};
use crate::cutover::SourceAfter;
use crate::engine::{self, Engine, exit};
use crate::format;
use crate::headless::{self, HeadlessOptions};
use crate::rdb::dump::Target;
use crate::rdb::export::{self, RespOptions, Statistics, Summary};
use crate::rdb::{Decoder, Limits, RdbError};
use crate::status::{Outcome, Status};
use crate::ui::{self, UiOptions, theme::Palette};

/// Does what was typed.
pub fn run(command: Command) -> ExitCode {
    let code = match command {
        Command::Migrate(migrate) => run_migrate(migrate),
        Command::Check(check) => run_check(&check.config),
        Command::Verify(verify) => verify::run(verify),
        Command::Demo(demo) => demo::run(demo),
        Command::Attach(attach) => run_attach(attach),
        Command::Ctl(ctl) => run_ctl(ctl),
        Command::Rdb(rdb) => run_rdb(&rdb),
        Command::Quarantine(verb) => run_quarantine(verb),
        Command::Completions(shell) => {
            cli::write_completions(shell, &mut std::io::stdout());
            Ok(exit::DONE)
        }
    };
    let code = code.unwrap_or_else(|failure| {
        complain(&format!("shakedeck: {}", failure.message));
        if let Some(hint) = &failure.hint {
            complain(hint);
        }
        failure.exit_code
    });
    ExitCode::from(code as u8)
}

/// Lines on stderr; what servers have put into them is made harmless. `eprintln!` panics where the terminal is gone.
fn complain(text: &str) {
    for line in text.lines() {
        let _ = writeln!(std::io::stderr(), "{}", format::escape(line, 4_000));
    }
}

fn failure(exit_code: i32, message: impl Into<String>) -> Outcome {
    Outcome { exit_code, message: message.into(), hint: None }
}

/// Makes a data directory: only for the owner, because what is in it holds the operator's data.
fn private_dir(dir: &Path) -> Result<(), Outcome> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| failure(exit::SPOOL, format!("cannot create '{}': {error}", dir.display())))
}

/// Reads a configuration.
fn parse(name: &str, text: &str) -> Result<Plan, Outcome> {
    let outside = config::Outside {
        env: &|variable| std::env::var(variable).ok(),
        read_file: &|path| std::fs::read_to_string(path).map_err(|error| error.to_string()),
        check_tls: &engine::check_tls,
    };
    config::parse(name, text, &outside).map_err(|errors| failure(exit::CONFIG, errors.to_string()))
}

/// Reads a configuration file.
fn load(path: &Path) -> Result<Plan, Outcome> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| failure(exit::CONFIG, format!("cannot read the configuration '{name}': {error}")))?;
    parse(&name, &text)
}

fn run_check(path: &Path) -> Result<i32, Outcome> {
    let plan = load(path)?;
    for notice in &plan.notices {
        println!("note: {notice}");
    }
    println!("{} is in order", path.display());
    Ok(exit::DONE)
}

fn run_migrate(migrate: cli::Migrate) -> Result<i32, Outcome> {
    let plan = load(&migrate.config)?;
    if plan.writer.off_reply && migrate.headless.waits_for_proof() {
        return Err(failure(
            exit::CONFIG,
            "off_reply = true: the destination does not answer, so that neither caught-up nor a cutover is ever reached. Write \
             'off_reply = false' in [redis_writer], or wait for something else (--exit-when rdb-applied, --timeout).",
        ));
    }
    if migrate.headless.exit_when == Some(headless::ExitWhen::Switched)
        && plan.cutover.source_after == SourceAfter::Hold
        && !plan.cutover.reverse
    {
        return Err(failure(
            exit::CONFIG,
            "source_after = \"hold\" lasts as long as this process, which --exit-when switched ends at once. Write 'source_after = \
             \"refuse\"' in [cutover], or leave --exit-when out.",
        ));
    }
    let runtime = runtime(plan.advanced.ncpu)?;
    let front = Front {
        headless: migrate.headless,
        screen: migrate.screen,
        interval: plan.advanced.log_interval,
        resume: Some(format!("shakedeck {}", migrate.config.display())),
    };
    let signals = runtime.block_on(async { Signals::listen() })?;
    let run = runtime.block_on(Run::start(plan))?;
    let Run { engine, services } = run;
    let outcome = front.show(&runtime, signals, engine.handle.clone(), engine.finished);
    // Whoever waits in another terminal is told how it ended.
    runtime.block_on(services.socket.close());
    Ok(outcome?.exit_code)
}

/// A migration and what listens beside its front.
struct Run {
    engine: Engine,
    services: Services,
}

impl Run {
    async fn start(plan: Plan) -> Result<Run, Outcome> {
        // The log begins before the engine, so that it holds everything.
        let dir = plan.advanced.dir.clone();
        private_dir(&dir)?;
        let log_file = dir.join(&plan.advanced.log_file);
        start_log(&log_file, plan.advanced.log_level)?;
        let status_port = plan.advanced.status_port;
        let engine = engine::start(plan, Some(log_file))?;
        let services = Services::start(&dir, status_port, &engine.handle).await?;
        Ok(Run { engine, services })
    }
}

/// How a run is shown.
struct Front {
    headless: cli::Headless,
    screen: cli::Screen,
    interval: Duration,
    resume: Option<String>,
}

impl Front {
    /// Shows a run until it has ended: the console where there is a terminal, else lines.
    fn show(
        self,
        runtime: &Runtime,
        signals: Signals,
        handle: Handle,
        finished: JoinHandle<Outcome>,
    ) -> Result<Outcome, Outcome> {
        let console =
            !self.headless.headless && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let outside = ui::Outside::default();
        runtime.spawn(signals.watch(handle.clone(), outside.clone()));
        if !console {
            return Ok(runtime.block_on(self.lines(handle, finished, true, false)));
        }
        // Goal and time-out are watched while the console is open, too.
        let watched = self.headless.exit_when.is_some()
            || self.headless.timeout.is_some()
            || self.headless.cutover_when_ready;
        let watching =
            watched.then(|| runtime.spawn(headless::run(handle.clone(), self.headless_options(false))));
        let options = ui_options(&self.screen, outside);
        let exit = ui::run(handle.clone(), options).map_err(|error| {
            failure(exit::CONFIG, format!("the console cannot use this terminal: {error}"))
        })?;
        match exit {
            ui::Exit::Quit | ui::Exit::EngineEnded => Ok(runtime.block_on(async {
                let outcome = match watching {
                    Some(watching) => watching.await.ok(),
                    None => None,
                };
                let finished = finished.await.ok();
                let outcome = outcome.or(finished).unwrap_or_else(|| {
                    failure(exit::INTERRUPTED, "the engine ended without saying why; see the log file")
                });
                let summary = headless::summary(&handle.status(), &outcome, self.resume.as_deref());
                let _ = writeln!(std::io::stdout(), "{summary}");
                outcome
            })),
            ui::Exit::Detached | ui::Exit::TerminalLost | ui::Exit::Broken => {
                let status = handle.status();
                if exit != ui::Exit::TerminalLost {
                    let _ = writeln!(std::io::stdout(), "{}", detached_words(&status));
                }
                let outcome = runtime.block_on(self.lines(handle, finished, watching.is_none(), true));
                Ok(outcome)
            }
        }
    }

    /// `after_screen`: what has happened so far was on the screen.
    async fn lines(
        &self,
        handle: Handle,
        finished: JoinHandle<Outcome>,
        watch: bool,
        after_screen: bool,
    ) -> Outcome {
        let mut options = self.headless_options(true);
        if after_screen {
            (options.after_screen, options.out) = (true, Box::new(ForegroundOutput));
        }
        if !watch {
            (options.exit_when, options.timeout, options.cutover_when_ready) = (None, None, false);
        }
        let outcome = headless::run(handle, options).await;
        let _ = finished.await;
        outcome
    }

    fn headless_options(&self, print: bool) -> HeadlessOptions {
        HeadlessOptions {
            format: self.headless.log_format,
            interval: self.interval,
            cutover_when_ready: self.headless.cutover_when_ready,
            exit_when: self.headless.exit_when,
            timeout: self.headless.timeout,
            resume: self.resume.clone(),
            after_screen: false,
            out: if print { Box::new(std::io::stdout()) } else { Box::new(std::io::sink()) },
        }
    }
}

/// Standard output for as long as the terminal is ours: whoever sends a detached run to the background has a shell there, or a
/// console.
struct ForegroundOutput;

impl Write for ForegroundOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if ui::in_foreground() { std::io::stdout().write(bytes) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stdout().flush()
    }
}

/// What stands on the terminal after the screen was closed.
fn detached_words(status: &Status) -> String {
    let dir = &status.data_dir;
    format!(
        "The migration goes on in this process (pid {}); its events are printed here.\n  \
         shell     Ctrl-Z, then: bg; disown\n  \
         console   shakedeck attach --dir {dir}\n  \
         stop      shakedeck ctl --dir {dir} stop, or Ctrl-C here\n  \
         log       {}",
        status.pid,
        status.log_file.as_deref().unwrap_or("-")
    )
}

fn ui_options(screen: &cli::Screen, outside: ui::Outside) -> UiOptions {
    UiOptions {
        ascii: screen.ascii.then_some(true),
        palette: screen.theme.map(|theme| match theme {
            cli::Theme::Ansi16 => Palette::Ansi16,
            cli::Theme::Mono => Palette::Mono,
            cli::Theme::Truecolor => Palette::Truecolor,
        }),
        read_only: screen.read_only,
        mouse: screen.mouse,
        attached: false,
        outside,
    }
}

fn run_attach(attach: cli::Attach) -> Result<i32, Outcome> {
    let runtime = runtime(2)?;
    let handle = runtime
        .block_on(headless::remote(&attach.dir))
        .map_err(|error| failure(error.exit_code(), error.to_string()))?;
    let (found, further) = mpsc::channel(1);
    runtime.spawn(headless::further_runs(attach.dir, handle.clone(), found));
    let outside = ui::Outside::default();
    let signals = runtime.block_on(async { Signals::listen() })?;
    runtime.spawn(signals.leave(outside.clone()));
    let options = ui_options(&attach.screen, outside);
    match ui::attach(handle, further, options) {
        Ok(ui::Exit::Broken) => {
            Err(failure(exit::INTERRUPTED, "the console went wrong; the migration goes on: attach again"))
        }
        Ok(_) => Ok(exit::DONE),
        Err(error) => Err(failure(exit::CONFIG, format!("the console needs a terminal: {error}"))),
    }
}

/// Prints what an RDB file holds; what could not be printed goes to stderr.
fn run_rdb(rdb: &cli::Rdb) -> Result<i32, Outcome> {
    let name = rdb.file.display();
    let file = std::fs::File::open(&rdb.file)
        .map_err(|error| failure(exit::CONFIG, format!("cannot open '{name}': {error}")))?;
    let mut decoder = Decoder::new(file, Limits::default());
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let ahead = |offset| {
        let mut file = std::fs::File::open(&rdb.file)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    };
    let summary = match rdb.format {
        cli::RdbFormat::Json => export::write_json(&mut decoder, ahead, &mut out),
        cli::RdbFormat::Resp => {
            // Nobody says which server will load it: commands that every Redis since 7.0 and every Valkey knows.
            let options = RespOptions { target: Target::redis(7, 0), commands_only: true, replace: true };
            export::write_resp(&mut decoder, options, ahead, &mut out)
        }
        cli::RdbFormat::Stats => Statistics::collect(&mut decoder).and_then(|statistics| {
            writeln!(out, "{statistics}")?;
            Ok(Summary::default())
        }),
    };
    let summary = match summary.and_then(|summary| out.flush().map(|()| summary).map_err(RdbError::Io)) {
        Ok(summary) => summary,
        // `| head` has seen enough.
        Err(RdbError::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(exit::DONE),
        Err(error) => return Err(failure(exit::SOURCE, format!("'{name}': {error}"))),
    };
    for note in summary.notes() {
        complain(&note);
    }
    Ok(if summary.bad_keys == 0 { exit::DONE } else { exit::QUARANTINE })
}

/// Lists what is in quarantine, or sends it again.
fn run_quarantine(verb: cli::Quarantine) -> Result<i32, Outcome> {
    let (dir, replay) = match &verb {
        cli::Quarantine::List { dir, .. } => (dir, None),
        cli::Quarantine::Replay { dir, config } => (dir, Some(load(config)?)),
    };
    if !dir.is_dir() {
        let message = format!("there is no data directory '{}': name it with --dir", dir.display());
        return Err(failure(exit::CONFIG, message));
    }
    if let Some(plan) = replay {
        let runtime = runtime(2)?;
        let mut say = |line: String| complain(&line);
        let resent = runtime.block_on(engine::replay_quarantine(dir, &plan.writer, &mut say))?;
        println!("{} entries accepted, {} refused again", resent.accepted, resent.refused);
        return Ok(if resent.refused == 0 { exit::DONE } else { exit::QUARANTINE });
    }
    let json = matches!(verb, cli::Quarantine::List { json: true, .. });
    let unreadable = |error: engine::SpoolError| failure(exit::SPOOL, error.to_string());
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut count = 0u64;
    let printed = (|| {
        for entry in engine::quarantined(dir).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let line = if json {
                serde_json::to_string(&entry).unwrap_or_default()
            } else {
                quarantine_line(&entry, count == 0)
            };
            count += 1;
            if writeln!(out, "{line}").is_err() {
                // `| head` has seen enough.
                return Ok(());
            }
        }
        if count == 0 && !json {
            let _ = writeln!(out, "nothing is in quarantine in '{}'", dir.display());
        }
        let _ = out.flush();
        Ok(())
    })();
    printed.map(|()| if count == 0 { exit::DONE } else { exit::QUARANTINE })
}

/// One line of the table; the first with its head.
fn quarantine_line(entry: &engine::QuarantinedEntry, first: bool) -> String {
    let command = entry.command().unwrap_or_default();
    // `*3\r\n$3\r\nSET\r\n…`: the third line is the verb.
    let verb = command.split(|byte| *byte == b'\n').nth(2).unwrap_or_default();
    let verb = format::escape(verb.strip_suffix(b"\r").unwrap_or(verb), 20);
    let line = format!(
        "{:<19}  {:<21}  {:>2}  {:<24}  {:<12}  {:>9}  {}",
        format::date_time_utc(entry.unix_ms),
        entry.source,
        entry.db,
        entry.key,
        if verb.is_empty() { "-" } else { &verb },
        format::size(command.len() as u64),
        format::escape(entry.reason.as_bytes(), 200)
    );
    if !first {
        return line;
    }
    let head = format!(
        "{:<19}  {:<21}  {:>2}  {:<24}  {:<12}  {:>9}  {}",
        "TIME (UTC)", "SOURCE", "DB", "KEY", "COMMAND", "SIZE", "REASON"
    );
    format!("{head}\n{line}")
}

/// What listens beside the front for as long as a run lasts.
struct Services {
    socket: headless::socket::Server,
    _http: Option<headless::http::Server>,
}

impl Services {
    async fn start(dir: &Path, status_port: u16, handle: &Handle) -> Result<Services, Outcome> {
        let socket = headless::socket::Server::start(dir, handle.clone())
            .map_err(|error| failure(exit::SPOOL, error.to_string()))?;
        let http = match status_port {
            0 => None,
            port => Some(
                headless::http::Server::start(port, handle.clone())
                    .await
                    .map_err(|error| failure(exit::CONFIG, error.to_string()))?,
            ),
        };
        Ok(Services { socket, _http: http })
    }
}

/// SIGINT and SIGTERM stop in order, the second one at once; SIGHUP never stops a migration.
///
/// Listened to before the engine starts, so that none is ever missed; obeyed from [`Signals::watch`] on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Must be called inside a tokio runtime.
    fn listen() -> Result<Signals, Outcome> {
        let listen = |kind| {
            signal(kind).map_err(|error| failure(exit::CONFIG, format!("cannot listen to signals: {error}")))
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn watch(mut self, handle: Handle, console: ui::Outside) {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
                _ = self.hang_up.recv() => {
                    console.leave_at_once();
                    continue;
                }
            }
            if asked {
                close(&console).await;
                complain(
                    "shakedeck: stopped at once; the checkpoint tells at the next start what was applied",
                );
                std::process::exit(exit::INTERRUPTED);
            }
            asked = true;
            console.leave_at_end();
            let _ = handle.send(control::Command::Stop { forget: false });
        }
    }

    /// For a console over another process: every signal closes the screen, and nothing else.
    async fn leave(mut self, console: ui::Outside) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
        console.leave_at_once();
    }
}

/// Waits until the console has given the terminal back, unless the terminal itself keeps it.
async fn close(console: &ui::Outside) {
    console.leave_at_once();
    let closed = async {
        while console.is_open() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), closed).await;
}

fn run_ctl(ctl: cli::Ctl) -> Result<i32, Outcome> {
    // A switched migration usually has no run any more: then it is done here.
    if let headless::Action::Unfence { config: Some(config) } = &ctl.action {
        let plan = load(config)?;
        let lifted = runtime(1)?.block_on(engine::unfence(&plan, &ctl.dir))?;
        match lifted.is_empty() {
            true => println!("no server refuses writes because of a cutover from '{}'", ctl.dir.display()),
            false => println!("{} takes writes again", lifted.join(", ")),
        }
        return Ok(exit::DONE);
    }
    runtime(1)?.block_on(async {
        headless::ctl(&ctl.dir, ctl.action, &mut std::io::stdout())
            .await
            .map(|()| exit::DONE)
            .map_err(|error| failure(error.exit_code(), error.to_string()))
    })
}

fn runtime(threads: usize) -> Result<Runtime, Outcome> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if threads > 0 {
        // File writes of the spool block a worker for moments: the others must go on.
        builder.worker_threads(threads.max(2));
    }
    builder.enable_all().build().map_err(|error| failure(exit::CONFIG, format!("cannot start: {error}")))
}

fn start_log(path: &PathBuf, level: LogLevel) -> Result<(), Outcome> {
    use tracing_subscriber::filter::LevelFilter;
    use tracing_subscriber::prelude::*;
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
        failure(exit::SPOOL, format!("cannot open the log '{}': {error}", path.display()))
    })?;
    let (level, pane_level) = match level {
        LogLevel::Debug => (LevelFilter::DEBUG, tui_logger::LevelFilter::Debug),
        LogLevel::Info => (LevelFilter::INFO, tui_logger::LevelFilter::Info),
        LogLevel::Warn => (LevelFilter::WARN, tui_logger::LevelFilter::Warn),
    };
    tui_logger::set_default_level(pane_level);
    // Where the disk is full, lines are lost; said on stderr, each of them would be written across the console.
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(std::sync::Mutex::new(file));
    let registry = tracing_subscriber::registry()
        .with(lines.with_filter(level))
        .with(tui_logger::TuiTracingSubscriberLayer.with_filter(level));
    // A second run in the same process (the demo's tests) keeps the first log.
    let _ = registry.try_init();
    Ok(())
}
