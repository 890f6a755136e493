//! Wires the engine to a front: configuration, runtime, log file, signals, and the exit code.
//!
//! The only module that knows both the engine and the fronts.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{self, Command};
use crate::config::{self, LogLevel, Outside, Plan};
use crate::control::{self, Handle};
use crate::engine::{self, Engine, exit};
use crate::headless::{self, HeadlessOptions, LogFormat};
use crate::status::Outcome;

/// Does what was typed.
pub fn run(command: Command) -> ExitCode {
    let outcome = match command {
        Command::Migrate(migrate) => run_migrate(migrate),
        Command::Check(check) => run_check(&check.config),
        Command::Ctl(ctl) => run_ctl(ctl),
        Command::Completions(shell) => {
            cli::write_completions(shell, &mut std::io::stdout());
            Ok(exit::DONE)
        }
        Command::Rdb(_) | Command::Demo(_) | Command::Attach(_) => {
            Err(failure(exit::CONFIG, "not wired yet"))
        }
    };
    let code = outcome.unwrap_or_else(|failure| {
        eprintln!("shakedeck: {}", failure.message);
        if let Some(hint) = &failure.hint {
            eprintln!("{hint}");
        }
        failure.exit_code
    });
    ExitCode::from(code as u8)
}

fn failure(exit_code: i32, message: impl Into<String>) -> Outcome {
    Outcome { exit_code, message: message.into(), hint: None }
}

/// Reads a configuration file.
fn load(path: &Path) -> Result<Plan, Outcome> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| failure(exit::CONFIG, format!("cannot read the configuration '{name}': {error}")))?;
    let outside = Outside {
        env: &|variable| std::env::var(variable).ok(),
        read_file: &|path| std::fs::read_to_string(path).map_err(|error| error.to_string()),
    };
    config::parse(&name, &text, &outside).map_err(|errors| failure(exit::CONFIG, errors.to_string()))
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
    let runtime = runtime(plan.advanced.ncpu)?;
    // The directory is the engine's; the log begins before the engine, so that it holds everything.
    let _ = std::fs::create_dir_all(&plan.advanced.dir);
    let log_file = plan.advanced.dir.join(&plan.advanced.log_file);
    start_log(&log_file, plan.advanced.log_level)?;
    let resume = format!("shakedeck {}", migrate.config.display());
    runtime.block_on(async {
        let status_port = plan.advanced.status_port;
        let interval = plan.advanced.log_interval;
        let dir = plan.advanced.dir.clone();
        let engine = engine::start(plan, Some(log_file))?;
        let _services = Services::start(&dir, status_port, &engine.handle).await?;
        watch_signals(engine.handle.clone())?;
        let outcome = show(engine, migrate.headless, interval, Some(resume)).await;
        Ok(outcome.exit_code)
    })
}

/// Shows a run until it has ended.
async fn show(engine: Engine, options: cli::Headless, interval: Duration, resume: Option<String>) -> Outcome {
    let Engine { handle, finished } = engine;
    let outcome = headless::run(
        handle,
        HeadlessOptions {
            format: options.log_format,
            interval,
            exit_when: options.exit_when,
            timeout: options.timeout,
            resume,
            out: Box::new(std::io::stdout()),
        },
    )
    .await;
    let _ = finished.await;
    if outcome.exit_code != exit::DONE
        && options.log_format == LogFormat::Plain
        && !std::io::stdout().is_terminal()
    {
        // The reason belongs on stderr too, where scripts look for it.
        eprintln!("shakedeck: {}", outcome.message);
    }
    outcome
}

/// What listens beside the front for as long as a run lasts.
struct Services {
    _socket: headless::socket::Server,
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
        Ok(Services { _socket: socket, _http: http })
    }
}

/// SIGINT and SIGTERM stop in order, the second one at once; SIGHUP never stops a migration.
fn watch_signals(handle: Handle) -> Result<(), Outcome> {
    let listen = |kind| {
        signal(kind).map_err(|error| failure(exit::CONFIG, format!("cannot listen to signals: {error}")))
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => continue,
            }
            if asked {
                eprintln!(
                    "shakedeck: stopped at once; the checkpoint tells at the next start what was applied"
                );
                std::process::exit(exit::INTERRUPTED);
            }
            asked = true;
            let _ = handle.send(control::Command::Stop { forget: false });
        }
    });
    Ok(())
}

fn run_ctl(ctl: cli::Ctl) -> Result<i32, Outcome> {
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
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::sync::Mutex::new(file));
    let registry = tracing_subscriber::registry()
        .with(lines.with_filter(level))
        .with(tui_logger::TuiTracingSubscriberLayer.with_filter(level));
    // A second run in the same process (the demo's tests) keeps the first log.
    let _ = registry.try_init();
    Ok(())
}
