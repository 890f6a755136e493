//! A source cluster that moves slots as a whole: `CLUSTER MIGRATION IMPORT` of Redis (from 8.4 on) and `CLUSTER MIGRATESLOTS` of Valkey (from
//! 9.0 on). CLUSTER NODES shows nothing of it before it is done; the stream of the importing master tells the whole import, also of one that
//! fails, and nothing in it says when the owner stopped writing.
//!
//! `rdb-key-save-delay` of the owner makes an import last: the snapshot of the slots waits before each key.

use std::time::Duration;

use crate::support::cluster::{Cluster, Layout, moves_atomically};
use crate::support::cluster_client::slot_of;
use crate::support::everything::assert_same;
use crate::support::mixed_load::Mixed;
use crate::support::shakedeck::Setup;
use crate::support::{Options, Server, ServerBinary, Shakedeck, servers, wait_until};

const MINUTES: Duration = Duration::from_secs(180);
/// The slots that move.
const SLOTS: std::ops::RangeInclusive<u16> = 0..=999;
/// Keys of them that only make the import last.
const BULK: usize = 1_000;

fn able() -> Vec<&'static ServerBinary> {
    servers::all().iter().filter(|binary| moves_atomically(binary)).collect()
}

/// Three masters; the first has the slots and many keys in them.
fn source(binary: &ServerBinary) -> Cluster {
    let source = Cluster::start(binary, Layout::new(3, 0));
    let mut client = source.client_of(0);
    let names = (0..).map(|n| format!("bulk:{n}")).filter(|name| SLOTS.contains(&slot_of(name.as_bytes())));
    for name in names.take(BULK) {
        client.push(&["RPUSH", &name, "one", "two", &name]);
    }
    client.flush(BULK);
    source
}

/// How long the snapshot of a slot waits before each key (µs).
fn slow(source: &Cluster, delay: &str) {
    source.client_of(0).ok(&["CONFIG", "SET", "rdb-key-save-delay", delay]);
}

/// All lines stream, and the slots are at rest.
fn settled(run: &Shakedeck) {
    run.wait_status(MINUTES, "all lines in the stream and the slots at rest", |status| {
        let lines = status["sources"].as_array().unwrap();
        lines.len() == 3 && lines.iter().all(|line| line["phase"] == "stream") && slots_gate(status)
    });
}

fn slots_gate(status: &serde_json::Value) -> bool {
    status["gates"].as_array().unwrap().iter().any(|gate| gate["name"] == "slots" && gate["ok"] == true)
}

/// Full syncs that a node has given.
fn full_syncs(source: &Cluster, node: usize) -> u64 {
    source.client_of(node).info("stats", "sync_full").unwrap().parse().unwrap()
}

/// The run catches up, ends with exit code 0 (5 would be entries in quarantine), and both sides are the same.
fn ends_well(setup: &Setup, run: Shakedeck, source: &Cluster, destination: &Server) {
    let folder = run.folder();
    run.kill();
    let last = setup.clone().exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["caught up"]);
    assert!(assert_same(source, destination).keys > BULK);
}

/// Slots go to another master, and back, and every key that is deleted, changed or made on the way is right in the end.
#[test]
fn slots_that_move_as_a_whole_lose_nothing() {
    for binary in able() {
        eprintln!("--- {binary}");
        let (source, destination) = (source(binary), Server::start(binary, Options::new()));
        source.client_of(0).ok(&["FUNCTION", "LOAD", LIBRARY]);
        let load = Mixed::new(5).per_second(1_500).on_cluster(&source);
        load.wait_more(500);
        let setup = Setup::from_cluster(&source, &destination);
        let mut run = setup.start();
        settled(&run);
        slow(&source, "1000");
        source.begin_atomic_move(0, 1, SLOTS);
        run.wait_status(MINUTES, "the import to be noticed", |status| !slots_gate(status));
        source.wait_moved(1, *SLOTS.start());
        // Removed by its new master before that is copied again: its old one may not say a word about it.
        let gone = source.client_of(1).list(&["CLUSTER", "GETKEYSINSLOT", "5", "10"]);
        assert!(!gone.is_empty());
        for key in &gone {
            source.client_of(1).ok(&[b"DEL".as_slice(), key]);
        }
        settled(&run);
        assert_eq!(full_syncs(&source, 0), 1, "the master that has lost them need not be copied again");
        // Killed while the second one is under way.
        load.wait_more(500);
        slow_of(&source, 1, "1000");
        source.begin_atomic_move(1, 2, SLOTS);
        run.wait_status(MINUTES, "the import to be noticed", |status| !slots_gate(status));
        let folder = run.folder();
        run.kill();
        run = setup.start_in(folder);
        source.wait_moved(2, *SLOTS.start());
        settled(&run);
        load.wait_more(500);
        load.stop();
        ends_well(&setup, run, &source, &destination);
    }
}

const LIBRARY: &str = "#!lua name=mine\nredis.register_function('mine', function() return 1 end)";

fn slow_of(source: &Cluster, node: usize, delay: &str) {
    source.client_of(node).ok(&["CONFIG", "SET", "rdb-key-save-delay", delay]);
}

/// An import that fails changes no owner: what the importing master says of it, old values of the keys and in the end their removal, must never
/// reach the destination, where their owner has newer ones.
#[test]
fn an_import_that_fails_leaves_no_trace() {
    for binary in able() {
        eprintln!("--- {binary}");
        let (source, destination) = (source(binary), Server::start(binary, Options::new()));
        let load = Mixed::new(6).per_second(1_500).on_cluster(&source);
        load.wait_more(500);
        let setup = Setup::from_cluster(&source, &destination);
        let run = setup.start();
        settled(&run);
        slow(&source, "2000");
        let received = |node: usize| {
            let status = run.status_json();
            let name = source.node(node).address().to_string();
            let lines = status["sources"].as_array().unwrap().clone();
            let line = lines.into_iter().find(|line| line["address"] == name.as_str()).unwrap();
            line["offset_applied"].as_u64().unwrap()
        };
        source.begin_atomic_move(0, 1, SLOTS);
        run.wait_status(MINUTES, "the import to be noticed", |status| !slots_gate(status));
        // Written by the owner while the other one imports an older value.
        let keys = source.client_of(0).list(&["CLUSTER", "GETKEYSINSLOT", "7", "100"]);
        for key in &keys {
            source.client_of(0).ok(&[b"SET".as_slice(), key, b"newer"]);
        }
        source.cancel_atomic_move(0, 1);
        wait_until(MINUTES, "the failed import is cleaned up", || {
            source.client_of(1).info("keyspace", "db0").is_some()
                && source.client_of(1).list(&["CLUSTER", "GETKEYSINSLOT", "7", "100"]).is_empty()
        });
        settled(&run);
        assert!(received(1) > 0);
        // Whatever stands before it in the streams of both has been applied when it is there.
        for node in 0..2 {
            let mut names = (0..).map(|n| format!("last:{n}"));
            let last = names.find(|name| source.owner(slot_of(name.as_bytes())) == node).unwrap();
            source.client_of(node).ok(&["SET", &last, "x"]);
            wait_until(MINUTES, "what both have sent is applied", || {
                destination.client().integer(&["EXISTS", &last]) == 1
            });
        }
        for key in &keys {
            assert_eq!(
                destination.client().bytes(&[b"GET".as_slice(), key]).as_deref(),
                Some(b"newer".as_slice())
            );
        }
        load.wait_more(500);
        load.stop();
        ends_well(&setup, run, &source, &destination);
        for node in 0..3 {
            assert_eq!(full_syncs(&source, node), 1, "nothing had to be copied again");
        }
    }
}

/// The RDB of the importing master holds keys that are not its own yet.
#[test]
fn a_full_sync_while_slots_are_imported_copies_only_what_is_owned() {
    for binary in able() {
        for fails in [true, false] {
            eprintln!("--- {binary}, fails: {fails}");
            let (source, destination) = (source(binary), Server::start(binary, Options::new()));
            let load = Mixed::new(7).per_second(1_500).on_cluster(&source);
            load.wait_more(500);
            slow(&source, "3000");
            source.begin_atomic_move(0, 1, SLOTS);
            source.wait_importing(1);
            // The owner has no time to save its data set while it saves its slots.
            let setup =
                Setup::from_cluster(&source, &destination).set("sync_reader", "full_sync_parallel", "3");
            let run = setup.start();
            run.wait_status(MINUTES, "a full sync of the importing master", |_| full_syncs(&source, 1) == 1);
            slow(&source, "0");
            if fails {
                source.cancel_atomic_move(0, 1);
            } else {
                source.wait_moved(1, *SLOTS.start());
            }
            settled(&run);
            load.wait_more(500);
            load.stop();
            ends_well(&setup, run, &source, &destination);
        }
    }
}
