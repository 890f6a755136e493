//! `shakedeck verify`: a comparison by itself, without a migration in this process.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::{failure, load, runtime};
use crate::cli;
use crate::config::{Plan, Reader};
use crate::engine::exit;
use crate::engine::verify::{Place, Progress, Repair, Settle, Verify, checkpoint_key_of, verify};
use crate::headless::{LogFormat, verification_exit_code, verification_progress, verification_result};
use crate::status::Outcome;
use crate::verify::Options;

/// Compares, prints how far it is once a second, and the result.
pub(super) fn run(asked: cli::Verify) -> Result<i32, Outcome> {
    let plan = load(&asked.config)?;
    let runtime = runtime(plan.advanced.ncpu)?;
    let format = if asked.json { LogFormat::Json } else { LogFormat::Plain };
    let job = job(asked, plan)?;
    runtime.block_on(async {
        let progress = Arc::new(Progress::new(&job.options));
        let (cancel, cancelled) = watch::channel(false);
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once, before there is anything to say.
        tick.tick().await;
        let comparing = verify(job, progress.clone(), cancelled);
        tokio::pin!(comparing);
        let result = loop {
            tokio::select! {
                result = &mut comparing => break result,
                _ = tick.tick() => print(&[verification_progress(format, &progress.snapshot())]),
                _ = interrupt.recv() => { let _ = cancel.send(true); }
                _ = terminate.recv() => { let _ = cancel.send(true); }
            }
        };
        match result {
            Ok(shown) => {
                print(&verification_result(format, &shown));
                Ok(verification_exit_code(&shown))
            }
            Err(error) => {
                // What was found before a refused repair is worth knowing.
                print(&verification_result(format, &progress.snapshot()));
                Err(failure(error.exit_code(), error.to_string()))
            }
        }
    })
}

fn job(asked: cli::Verify, plan: Plan) -> Result<Verify, Outcome> {
    let Reader::Sync(reader) = plan.reader else {
        return Err(failure(exit::CONFIG, "verify compares two servers: it needs [sync_reader]"));
    };
    let dir = plan.advanced.dir;
    super::private_dir(&dir)?;
    Ok(Verify {
        options: Options {
            mode: asked.mode,
            sample: asked.sample,
            at_most: None,
            rounds: asked.rounds,
            rate: asked.rate,
            ttl_tolerance: asked.ttl_tolerance,
        },
        source: Place::new(&reader.endpoint, reader.cluster),
        destination: Place::new(&plan.writer.endpoint, plan.writer.cluster),
        filter: plan.filter,
        db_map: plan.advanced.db_map,
        settle: Settle::Wait(asked.wait, checkpoint_key_of(&dir)),
        dir: Some(dir),
        output: asked.output,
        resume: !asked.restart,
        repair: asked.repair.then_some(Repair { delete_extra: asked.delete_extra }),
        events: None,
        own: None,
    })
}

fn listen(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Outcome> {
    signal(kind).map_err(|error| failure(exit::CONFIG, format!("cannot listen to signals: {error}")))
}

/// `println!` panics where the reader is gone.
fn print(lines: &[String]) {
    let mut out = std::io::stdout().lock();
    for line in lines {
        let _ = writeln!(out, "{line}");
    }
}
