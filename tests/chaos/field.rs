//! What every chaos test stands on: two servers, a proxy before each, a load, and the proof at the end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::support::load::{Load, Writer};
use super::support::proxy::Proxy;
use super::support::shakedeck::Setup;
use super::support::{
    Client, Options, Random, Server, ServerBinary, Shakedeck, compare, dataset, wait_until,
};

pub const MINUTES: Duration = Duration::from_secs(100);
const KEYS: u64 = 6_000;

/// `SHAKEDECK_CHAOS_SEED`, or always the same one; printed now and again when the test fails.
pub struct Seed(pub u64);

impl Seed {
    pub fn get() -> Seed {
        let seed = number_of("SHAKEDECK_CHAOS_SEED").unwrap_or(20);
        println!("SHAKEDECK_CHAOS_SEED={seed}");
        Seed(seed)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- failed with SHAKEDECK_CHAOS_SEED={}", self.0);
        }
    }
}

/// A number of the environment.
pub fn number_of(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Two servers with data, a proxy before each of them, and perhaps a load on the source.
pub struct Field {
    // Dropped first: it must not outlive its server.
    load: Option<Writer>,
    pub source: Server,
    pub destination: Server,
    /// Between source and engine.
    pub from: Proxy,
    /// Between engine and destination.
    pub to: Proxy,
    pub random: Random,
    keys: u64,
    /// Dropped last of all that can fail.
    seed: Seed,
}

/// A source whose backlog outlasts every break.
pub fn source_options() -> Options {
    Options::new().config("repl-backlog-size", "256mb")
}

impl Field {
    pub fn new(binary: &ServerBinary) -> Field {
        Field::with(binary, source_options(), Options::new())
    }

    /// A data set that passes slow links in seconds.
    pub fn small(binary: &ServerBinary) -> Field {
        Field::sized(binary, source_options(), Options::new(), KEYS / 10)
    }

    pub fn with(binary: &ServerBinary, source: Options, destination: Options) -> Field {
        Field::sized(binary, source, destination, KEYS)
    }

    fn sized(binary: &ServerBinary, source: Options, destination: Options, keys: u64) -> Field {
        let seed = Seed::get();
        let source = Server::start(binary, source);
        let destination = Server::start(binary, destination);
        dataset::fill(&mut source.client(), keys, seed.0);
        let from = Proxy::start(source.address(), seed.0 + 1);
        let to = Proxy::start(destination.address(), seed.0 + 2);
        let random = Random::new(seed.0 + 3);
        Field { source, destination, from, to, random, keys, load: None, seed }
    }

    /// Begins a load of about so many commands a second.
    pub fn load(&mut self, per_second: u64) {
        self.load =
            Some(Writer::start(&self.source, Load { seed: self.seed.0 + 4, keys: self.keys, per_second }));
    }

    /// Ends the load; its short-lived keys are gone then.
    pub fn stop_load(&mut self) {
        if let Some(load) = self.load.take() {
            load.stop();
        }
    }

    /// Ends the load without asking the source, which may be gone.
    pub fn drop_load(&mut self) {
        self.load = None;
    }

    /// Waits until so many more commands were sent: the only clock of these tests.
    pub fn writes(&self, more: u64) {
        let load = self.load.as_ref().expect("a load");
        let before = load.sent();
        wait_until(MINUTES, "writes of the load", || load.sent() >= before + more);
    }

    /// A migration through both proxies.
    pub fn setup(&self) -> Setup {
        Setup::bare(&self.from.address(), &self.to.address())
    }

    /// Full syncs that the source has begun.
    pub fn full_syncs(&self) -> u64 {
        full_syncs(&self.source)
    }

    /// Everything of the source is applied, the run ends for good and without an entry in quarantine, both sides are equal.
    pub fn assert_equal(&mut self, run: Shakedeck) {
        self.stop_load();
        self.from.calm();
        self.to.calm();
        finish(run, &self.source);
        compare::assert_equal(&self.source, &self.destination);
    }
}

/// Full syncs that a source has begun.
pub fn full_syncs(source: &Server) -> u64 {
    source.client().info("stats", "sync_full").unwrap().parse().unwrap()
}

/// Waits until all of a source at rest is applied, and ends the run for good.
pub fn finish(run: Shakedeck, source: &Server) {
    applied(&run, &mut source.client());
    run.ctl(&["stop", "--forget"]).expect(0, &[]);
    run.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
}

/// Waits until all that the source has at this moment is applied.
pub fn applied(run: &Shakedeck, source: &mut Client) {
    let goal: u64 = source.info("replication", "master_repl_offset").unwrap().parse().unwrap();
    run.wait_status(MINUTES, &format!("offset {goal} is applied"), |status| {
        status["sources"][0]["offset_applied"].as_u64() >= Some(goal) && status["state"] == "caught_up"
    });
}

/// Waits until the RDB is applied and the stream runs.
pub fn streaming(run: &Shakedeck) -> Value {
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream")
}

/// The writer's state and its reason.
pub fn writer_says(run: &Shakedeck, state: &str, words: &[&str]) -> Value {
    let what = format!("the writer '{state}' with {words:?}");
    run.wait_status(MINUTES, &what, |status| {
        let writer = &status["destinations"][0];
        let reason = writer["reason"].as_str().unwrap_or_default();
        writer["state"] == state && words.iter().all(|word| reason.contains(word))
    })
}

/// The source's phase and its reason.
pub fn source_says(run: &Shakedeck, phase: &str, words: &[&str]) -> Value {
    let what = format!("the source '{phase}' with {words:?}");
    run.wait_status(MINUTES, &what, |status| {
        let source = &status["sources"][0];
        let reason = source["reason"].as_str().unwrap_or_default();
        source["phase"] == phase && words.iter().all(|word| reason.contains(word))
    })
}

/// True when the RDB is whole on disk: the next start must not ask the source for another one.
pub fn has_whole_rdb(folder: &Arc<TempDir>) -> bool {
    let Ok(nodes) = std::fs::read_dir(folder.path().join("data")) else { return false };
    let manifests = nodes.filter_map(|node| std::fs::read(node.ok()?.path().join("manifest.json")).ok());
    manifests
        .map(|text| serde_json::from_slice::<Value>(&text).unwrap())
        .any(|manifest| manifest["rdb_len"].is_u64())
}
