//! `shakedeck demo`: a migration between two servers of its own, compared at the end.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::{Front, Run, Signals, failure, parse, runtime};
use crate::cli;
use crate::control::{self, EngineEnd, Handle};
use crate::demo::{Comparison, Demo, DemoOptions};
use crate::engine::exit;
use crate::status::{Outcome, State, Status};

/// How long the live load of a demo without a console goes on.
const DEMO_SECONDS: u64 = 5;
/// How long the destination of a demo may take to catch up after the load has ended.
const DEMO_DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// Runs it to its end.
pub(super) fn run(options: cli::Demo) -> Result<i32, Outcome> {
    let runtime = runtime(0)?;
    let dir = std::env::temp_dir().join(format!("shakedeck-demo-{}", std::process::id()));
    let defaults = DemoOptions::default();
    let rate = options.rate.unwrap_or(defaults.rate);
    let console =
        !options.headless.headless && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    // Somebody who watches ends it with a key, and a goal ends it by itself.
    let by_itself = console || options.headless.cutover_when_ready || options.headless.exit_when.is_some();
    let seconds = options.seconds.or((!by_itself).then_some(DEMO_SECONDS));
    let demo = runtime
        .block_on(Demo::start(DemoOptions {
            keys: options.keys.unwrap_or(defaults.keys),
            rate,
            real: options.real,
            ..defaults
        }))
        .map_err(|error| failure(exit::CONFIG, error.to_string()))?;
    let text = format!(
        "[sync_reader]\naddress = \"{}\"\n[redis_writer]\naddress = \"{}\"\n[advanced]\ndir = \"{}\"\nlog_interval = 1\n",
        demo.source_address(),
        demo.destination_address(),
        dir.display()
    );
    let result = (|| {
        let signals = runtime.block_on(async { Signals::listen() })?;
        let run = runtime.block_on(Run::start(parse("the demo's configuration", &text)?))?;
        let compared = Arc::new(Mutex::new(None));
        let (handle, end) = control::channel((*run.engine.handle.status()).clone());
        let relay = DemoRelay { demo, engine: run.engine.handle, end, seconds, compared: compared.clone() };
        let relaying = runtime.spawn(relay.run());
        let front = Front {
            headless: options.headless,
            screen: options.screen,
            interval: Duration::from_secs(1),
            resume: None,
        };
        let outcome = front.show(&runtime, signals, handle, run.engine.finished)?;
        let _ = runtime.block_on(relaying);
        let comparison = compared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        Ok(match comparison {
            _ if !ends_well(outcome.exit_code) => outcome.exit_code,
            Some(comparison) => {
                println!("{comparison}");
                if comparison.is_equal() { exit::DONE } else { exit::DIFFERENT }
            }
            // Switched: both sides were compared while nobody could write, and the clients write to the destination since.
            None => outcome.exit_code,
        })
    })();
    if matches!(result, Ok(code) if ends_well(code)) {
        let _ = std::fs::remove_dir_all(&dir);
    }
    result
}

/// Nothing is left to look at: the data directory goes with the demo.
fn ends_well(exit_code: i32) -> bool {
    matches!(exit_code, exit::DONE | exit::INTERRUPTED)
}

/// Stands between the fronts and the engine of a demo: whoever asks for the end gets, before it, the load stopped, the
/// destination caught up and both sides compared.
struct DemoRelay {
    demo: Demo,
    engine: Handle,
    end: EngineEnd,
    seconds: Option<u64>,
    compared: Arc<Mutex<Option<Comparison>>>,
}

impl DemoRelay {
    async fn run(mut self) {
        let mut caught_up_since: Option<Instant> = None;
        let mut tick = interval(Duration::from_millis(250));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                status = self.engine.next_status() => match status {
                    Some(status) => {
                        if matches!(status.state, State::CaughtUp) {
                            caught_up_since.get_or_insert_with(Instant::now);
                        }
                        let ended = status.outcome.is_some();
                        self.tell(status);
                        if ended {
                            return;
                        }
                    }
                    None => return,
                },
                command = self.end.commands.recv() => match command {
                    Some(control::Command::Stop { .. }) => return self.finish().await,
                    Some(command) => { let _ = self.engine.send(command); }
                    None => return self.finish().await,
                },
                _ = tick.tick() => {
                    let over = self.seconds.zip(caught_up_since);
                    let cutting_over = self.engine.status().state == State::CuttingOver;
                    if !cutting_over && over.is_some_and(|(seconds, since)| since.elapsed().as_secs() >= seconds) {
                        return self.finish().await;
                    }
                }
            }
        }
    }

    /// The last words do not name files that are gone when they are read.
    fn tell(&self, mut status: Arc<Status>) {
        if status.outcome.as_ref().is_some_and(|outcome| ends_well(outcome.exit_code)) {
            let status = Arc::make_mut(&mut status);
            status.log_file = None;
            status.outcome.iter_mut().for_each(|outcome| outcome.hint = None);
        }
        self.end.status.send_replace(status);
    }

    async fn finish(mut self) {
        // Neither a pause nor a limit of the operator may keep the destination from catching up.
        let status = self.engine.status();
        if matches!(status.state, State::Pausing | State::Paused) {
            let _ = self.engine.send(control::Command::Resume);
        }
        if status.throttle != Default::default() {
            let _ = self.engine.send(control::Command::Throttle { limit: Default::default() });
        }
        let switched = status.cutover.state.is_switched();
        self.demo.stop_load().await;
        if !switched && let Ok(offset) = self.demo.source_offset().await {
            let deadline = Instant::now() + DEMO_DRAIN_LIMIT;
            while Instant::now() < deadline {
                let Some(status) = self.engine.next_status().await else { break };
                let done = status.sources.iter().all(|source| source.offset_applied >= offset);
                let ended = status.outcome.is_some();
                self.tell(status);
                if done || ended {
                    break;
                }
            }
        }
        if !switched && let Ok(comparison) = self.demo.compare().await {
            *self.compared.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(comparison);
        }
        let _ = self.engine.send(control::Command::Stop { forget: true });
        while let Some(status) = self.engine.next_status().await {
            let ended = status.outcome.is_some();
            self.tell(status);
            if ended {
                return;
            }
        }
    }
}
