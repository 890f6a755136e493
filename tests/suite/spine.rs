//! A live data set moved from one real server to another by the real binary, and both are equal afterwards: with
//! either way of sending the snapshot, over TLS and a Unix socket, and for every pair of versions that is at hand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::require_server;
use crate::support::load::{Load, Writer};
use crate::support::shakedeck::Setup;
use crate::support::{Client, Options, Reply, Server, Shakedeck, compare, dataset, servers, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

/// Runs until everything that the load has written is confirmed, ends the load in the stream phase, and compares.
fn migrate_under_load(source: &Server, destination: &Server, keys: u64, setup: &Setup) -> compare::Equal {
    dataset::fill(&mut source.client(), keys, 1);
    let writer = Writer::start(source, Load { seed: 2, keys, per_second: 5_000 });
    let run = setup.clone().exit_when("caught-up").args(&["--timeout", "2m"]).start();
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");
    let so_far = writer.sent();
    wait_until(MINUTES, "a load in the stream phase", || writer.sent() > so_far + 3_000);
    let sent = writer.stop();
    let exit = run.wait_exit(MINUTES);
    exit.expect(0, &[]);
    assert!(sent > 3_000, "only {sent} commands of load");
    let equal = compare::assert_equal(source, destination);
    assert!(equal.keys as u64 > keys * 9 / 10, "{equal:?}");
    assert_eq!(equal.databases, 16, "{equal:?}");
    equal
}

#[test]
fn three_hundred_thousand_keys_under_load_arrive_equal_from_a_diskless_source() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new().diskless(true));
    let destination = Server::start(binary, Options::new());
    migrate_under_load(&source, &destination, 300_000, &Setup::new(&source, &destination));
}

#[test]
fn three_hundred_thousand_keys_under_load_arrive_equal_from_a_disk_based_source() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new().diskless(false));
    let destination = Server::start(binary, Options::new());
    migrate_under_load(&source, &destination, 300_000, &Setup::new(&source, &destination));
}

/// Raised limits make everything packed, lowered ones nothing: other encodings in the RDB, the same values.
#[test]
fn values_arrive_equal_in_packed_and_unpacked_encodings() {
    let binary = require_server!();
    for (entries, value) in [("100000", "100000"), ("0", "0")] {
        let options = || {
            Options::new()
                .config("hash-max-listpack-entries", entries)
                .config("hash-max-listpack-value", value)
                .config("zset-max-listpack-entries", entries)
                .config("zset-max-listpack-value", value)
                .config("set-max-intset-entries", entries)
                .config("list-compress-depth", if entries == "0" { "1" } else { "0" })
                .config("rdbcompression", if entries == "0" { "no" } else { "yes" })
        };
        let (source, destination) = (Server::start(binary, options()), Server::start(binary, options()));
        migrate_under_load(&source, &destination, 10_000, &Setup::new(&source, &destination));
    }
}

/// Every pair of versions at hand in which the destination can hold what the source holds.
#[test]
fn every_pair_of_versions_ends_up_equal() {
    let _ = require_server!();
    for (from, to) in servers::pairs() {
        println!("{from} -> {to}");
        let (source, destination) = (Server::start(from, Options::new()), Server::start(to, Options::new()));
        migrate_under_load(&source, &destination, 10_000, &Setup::new(&source, &destination));
    }
}

#[test]
fn both_sides_over_tls_with_a_verified_certificate_and_a_password() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new().requirepass("from here").tls());
    let destination = Server::start(binary, Options::new().requirepass("to there").mutual_tls());
    let mut setup = Setup::new(&source, &destination);
    for (section, server) in [("sync_reader", &source), ("redis_writer", &destination)] {
        let files = server.certificates();
        setup = setup
            .text(section, "address", &server.tls_address().to_string())
            .set(section, "tls", "true")
            .text(&format!("{section}.tls_config"), "ca_cert", files.ca.to_str().unwrap());
    }
    let files = destination.certificates();
    setup = setup.text("redis_writer.tls_config", "cert", files.client.to_str().unwrap()).text(
        "redis_writer.tls_config",
        "key",
        files.client_key.to_str().unwrap(),
    );
    migrate_under_load(&source, &destination, 10_000, &setup);
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused_with_the_cure() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new().tls());
    let destination = Server::start(binary, Options::new());
    let setup = Setup::new(&source, &destination)
        .text("sync_reader", "address", &source.tls_address().to_string())
        .set("sync_reader", "tls", "true");
    setup.start().wait_exit(MINUTES).expect(3, &["certificate", "ca_cert"]);
    // Accepting any certificate is possible, and is said.
    source.client().ok(&["SET", "key", "value"]);
    let exit =
        setup.set("sync_reader", "tls_insecure", "true").exit_when("caught-up").start().wait_exit(MINUTES);
    exit.expect(0, &["TLS"]);
    assert_eq!(destination.client().text(&["GET", "key"]), "value");
}

#[test]
fn both_sides_over_unix_sockets() {
    let binary = require_server!();
    let (source, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    let setup = Setup::bare(
        &format!("unix:{}", source.unix_socket().display()),
        &format!("unix:{}", destination.unix_socket().display()),
    );
    migrate_under_load(&source, &destination, 10_000, &setup);
}

/// With `sync_aof = false` the run ends by itself after the snapshot.
#[test]
fn without_the_stream_the_run_ends_after_the_snapshot() {
    let binary = require_server!();
    let (source, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    dataset::fill(&mut source.client(), 20_000, 1);
    let setup = Setup::new(&source, &destination).set("sync_reader", "sync_aof", "false");
    setup.start().wait_exit(MINUTES).expect(0, &[]);
    compare::assert_equal(&source, &destination);
    let slaves = || source.client().info("replication", "connected_slaves");
    wait_until(MINUTES, "the source has no replica left", || slaves().as_deref() == Some("0"));
}

/// With `sync_rdb = false` only what changes from now on arrives.
#[test]
fn without_the_snapshot_only_changes_arrive() {
    let binary = require_server!();
    let (source, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    let (mut from, mut to) = (source.client(), destination.client());
    from.ok(&["SET", "before", "1"]);
    let run = Setup::new(&source, &destination).set("sync_reader", "sync_rdb", "false").start();
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");
    from.ok(&["SELECT", "3"]);
    from.ok(&["SET", "after", "2"]);
    to.ok(&["SELECT", "3"]);
    wait_until(MINUTES, "the change on the destination", || to.text(&["GET", "after"]) == "2");
    to.ok(&["SELECT", "0"]);
    assert_eq!(to.cmd(&["GET", "before"]), Reply::Null);
}

/// Ten counters move together in one transaction (and ten others in one script): whoever reads them together on the
/// destination must never see them apart, neither during the snapshot nor in the stream.
#[test]
fn a_transaction_is_never_visible_half_done() {
    let binary = require_server!();
    let (source, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    dataset::fill(&mut source.client(), 30_000, 1);
    let run = Setup::new(&source, &destination).start();
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");

    let stop = AtomicBool::new(false);
    let (rounds, distinct) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_counters(source.client(), &stop));
        let poller = scope.spawn(|| watch_counters(destination.client(), &stop));
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) && !poller.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        (writer.join().unwrap(), poller.join().unwrap())
    });
    assert!(distinct > 20, "the poller saw only {distinct} different states in {rounds} rounds");
    // And nothing of it was lost.
    let mut to = destination.client();
    wait_until(MINUTES, "the last round", || to.integer(&["GET", "multi:9"]) == rounds);
    for n in 0..10 {
        assert_eq!(to.integer(&["GET", &format!("multi:{n}")]), rounds);
        assert_eq!(to.integer(&["GET", &format!("script:{n}")]), rounds);
    }
    stop_in_order(run);
}

fn write_counters(mut client: Client, stop: &AtomicBool) -> i64 {
    let script = "for i = 0, 9 do redis.call('INCR', 'script:' .. i) end";
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        client.push(&["MULTI"]);
        for n in 0..10 {
            client.push(&["INCR", &format!("multi:{n}")]);
        }
        client.push(&["EXEC"]);
        client.push(&["EVAL", script, "0"]);
        let replies = client.flush(13);
        assert!(!replies.iter().any(|reply| matches!(reply, Reply::Error(_))), "{replies:?}");
        rounds += 1;
    }
    rounds
}

/// Reads all ten in one MGET until told to stop; returns how many different states it saw.
fn watch_counters(mut client: Client, stop: &AtomicBool) -> usize {
    let names: Vec<Vec<String>> = ["multi", "script"]
        .map(|kind| {
            std::iter::once("MGET".to_owned()).chain((0..10).map(|n| format!("{kind}:{n}"))).collect()
        })
        .to_vec();
    let mut seen = std::collections::BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        for command in &names {
            let values = client.list(command);
            assert!(values.iter().all(|value| *value == values[0]), "half done: {}", show(&values));
            seen.insert(values[0].clone());
        }
    }
    seen.len()
}

fn show(values: &[Vec<u8>]) -> String {
    values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect::<Vec<_>>().join(" ")
}

fn stop_in_order(run: Shakedeck) {
    run.ctl(&["stop"]).expect(0, &[]);
    let exit = run.wait_exit(MINUTES);
    assert!(matches!(exit.code, Some(0 | 75)), "{exit:?}");
}
