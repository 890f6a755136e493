//! The cutover from one cluster to another, under writers that note every acknowledged write and move when they are refused.
//!
//! `SHAKEDECK_CUTOVERS=20` makes so many cutovers instead of two; the time that writers were blocked is printed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::require_server;
use crate::support;
use crate::support::cluster::{Cluster, Layout};
use crate::support::cluster_client::ClusterClient;
use crate::support::everything::assert_same;
use crate::support::shakedeck::Setup;
use crate::support::{Reply, ServerBinary, Shakedeck, wait_until};

const MINUTES: Duration = Duration::from_secs(180);

/// What one writer was told.
#[derive(Default)]
struct Written {
    /// Serial numbers of the acknowledged SETs end here: each had the one before acknowledged.
    last: u64,
    /// The last acknowledged value of its counter.
    counter: i64,
    /// Error answers that made it move.
    refusals: Vec<String>,
    /// Acknowledged after the move.
    after: u64,
}

/// Writers with keys in all slots.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Written>>,
}

impl Writers {
    fn start(count: usize, source: &Cluster, destination: &Cluster) -> Writers {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..count).map(|number| {
            let (stop, written) = (stop.clone(), written.clone());
            let (client, other) = (source.client(), destination.client());
            std::thread::spawn(move || write(number, client, other, &stop, &written))
        });
        let threads = threads.collect();
        Writers { stop, written, threads }
    }

    fn wait_more(&self, count: u64) {
        let goal = self.written.load(Ordering::Relaxed) + count;
        wait_until(MINUTES, "writes of the load", || self.written.load(Ordering::Relaxed) >= goal);
    }

    fn stop(self) -> Vec<Written> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

fn write(
    number: usize,
    mut client: ClusterClient,
    other: ClusterClient,
    stop: &AtomicBool,
    written: &AtomicU64,
) -> Written {
    let mut log = Written::default();
    let mut other = Some(other);
    // A refused command was not done, and is tried on the other side.
    let mut acknowledged = |log: &mut Written, words: &[&str]| loop {
        match client.call(words) {
            Reply::Error(error) => {
                log.refusals.push(error.to_string());
                client = other.take().unwrap_or_else(|| panic!("refused on both sides: {error}"));
            }
            reply => {
                log.after += u64::from(other.is_none());
                return reply;
            }
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let serial = log.last + 1;
        acknowledged(&mut log, &["SET", &format!("w{number}:{serial}"), &format!("value {serial}")]);
        log.last = serial;
        let counter = format!("counter:{number}");
        match acknowledged(&mut log, &["INCR", &counter]) {
            Reply::Integer(now) => {
                assert_eq!(now, log.counter + 1, "{counter} jumped: a write was lost or doubled");
                log.counter = now;
            }
            other => panic!("{other:?}"),
        }
        written.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(500));
    }
    log
}

fn clusters(binary: &ServerBinary, masters: usize) -> (Cluster, Cluster) {
    let uneven: [&[std::ops::RangeInclusive<u16>]; 3] = [&[0..=9_000], &[9_001..=10_000], &[10_001..=16_383]];
    (
        Cluster::start(binary, Layout::new(masters, 0)),
        Cluster::start(binary, Layout::new(3, 0).slots(&uneven)),
    )
}

fn setup(source: &Cluster, destination: &Cluster) -> Setup {
    Setup::bare(&source.address().to_string(), &destination.address().to_string())
        .set("sync_reader", "cluster", "true")
        .set("redis_writer", "cluster", "true")
        .text("cutover", "hold_for", "200ms")
        .text("cutover", "max_lag", "5s")
}

fn ready(run: &Shakedeck) {
    run.wait_status(MINUTES, "ready", |status| status["ready"] == true && status["state"] == "caught_up");
}

#[test]
fn every_acknowledged_write_is_on_the_new_cluster_after_the_switch() {
    let binary = require_server!();
    let rounds = std::env::var("SHAKEDECK_CUTOVERS").ok().and_then(|count| count.parse().ok()).unwrap_or(2);
    for round in 0..rounds {
        let (source, destination) = clusters(binary, 3);
        let writers = Writers::start(4, &source, &destination);
        writers.wait_more(500);
        let run = setup(&source, &destination).start();
        ready(&run);
        writers.wait_more(1_000);
        ready(&run);
        run.ctl(&["cutover", "--yes-i-mean", &destination.address().to_string()]).expect(0, &["switched"]);
        let status = run.status_json();
        let blocked = status["cutover"]["blocked_seconds"].as_f64().unwrap();
        support::note(&format!("cluster cutover {round}: writers were blocked for {blocked:.3} s"));
        writers.wait_more(1_000);
        let written = writers.stop();
        let mut client = destination.client();
        for (number, log) in written.iter().enumerate() {
            assert!(log.after > 0, "writer {number} never came to the destination: {:?}", log.refusals);
            assert!(log.refusals.iter().all(|error| error.contains("NOREPLICAS")), "{:?}", log.refusals);
            for serial in 1..=log.last {
                let found = client.bytes(&["GET", &format!("w{number}:{serial}")]);
                assert_eq!(found, Some(format!("value {serial}").into_bytes()), "w{number}:{serial}");
            }
            let counter = client.bytes(&["GET", &format!("counter:{number}")]).unwrap();
            assert_eq!(counter, log.counter.to_string().into_bytes(), "counter:{number}");
        }
        // Nothing is only on the source.
        for key in source.client().keys_like("*") {
            let there = client.bytes(&[b"GET".as_slice(), &key]);
            assert!(there.is_some(), "{} is only on the source", key.escape_ascii());
        }
        let left = client.keys_like("shakedeck:*");
        assert!(left.is_empty(), "{left:?} stayed behind");
    }
}

/// A way back from behind the drain: every master takes writes again, and the migration goes on.
#[test]
fn a_veto_behind_the_drain_lets_every_master_take_writes_again() {
    let binary = require_server!();
    let (source, destination) = clusters(binary, 3);
    let writers = Writers::start(2, &source, &destination);
    writers.wait_more(300);
    let folder = tempfile::tempdir().unwrap();
    let hook = folder.path().join("veto");
    std::fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let setup = setup(&source, &destination).text("cutover", "before_switch", hook.to_str().unwrap());
    let run = setup.start();
    ready(&run);
    run.ctl(&["cutover", "--yes-i-mean", &destination.address().to_string()]).expect(7, &["before_switch"]);
    writers.wait_more(1_000);
    let written = writers.stop();
    assert!(written.iter().all(|log| log.refusals.is_empty()), "a writer was refused");
    let run_folder = run.folder();
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &["stopped"]);
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(run_folder);
    last.wait_exit(MINUTES).expect(0, &["caught up"]);
    assert_same(&source, &destination);
}
