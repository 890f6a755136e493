//! Clusters with several databases (Valkey 9, `cluster-databases`), on either side.

use std::time::Duration;

use crate::support;
use crate::support::client::keys_like;
use crate::support::cluster::{Cluster, Layout, has_cluster_databases};
use crate::support::cluster_client::slot_of;
use crate::support::everything::{assert_same, assert_same_in};
use crate::support::mixed_load::Mixed;
use crate::support::shakedeck::Setup;
use crate::support::verification::Verification;
use crate::support::{Client, Options, Server, ServerBinary, Shakedeck, servers, wait_until};

const MINUTES: Duration = Duration::from_secs(180);

macro_rules! require_databases {
    () => {
        match servers::all().iter().find(|binary| has_cluster_databases(binary)) {
            Some(binary) => binary,
            None => {
                support::skip(
                    "no Valkey 9, whose clusters can have several databases (run tests/fetch-servers)",
                );
                return;
            }
        }
    };
}

fn cluster(binary: &ServerBinary, masters: usize, replicas: usize, databases: u32) -> Cluster {
    let options = Options::new().config("repl-backlog-size", "64mb");
    Cluster::start(binary, Layout::new(masters, replicas).options(options).databases(databases))
}

fn server(binary: &ServerBinary) -> Server {
    Server::start(binary, Options::new().config("repl-backlog-size", "256mb"))
}

fn applied(run: &Shakedeck, client: &mut Client) {
    let sent: u64 = client.info("replication", "master_repl_offset").unwrap().parse().unwrap();
    run.wait_status(MINUTES, "everything applied", |status| {
        let source = &status["sources"][0];
        source["phase"] == "stream" && source["offset_applied"].as_u64() >= Some(sent)
    });
}

/// What is left of this tool in any database of any node.
fn ours(place: &Cluster, databases: u32) -> Vec<String> {
    let mut left = Vec::new();
    for node in place.masters() {
        for db in 0..databases {
            let mut client = place.client_of(node);
            client.ok(&["SELECT", &db.to_string()]);
            let keys = keys_like(&mut client, "shakedeck:*");
            left.extend(keys.iter().map(|key| format!("db {db}: {}", key.escape_ascii())));
        }
    }
    left
}

fn set_aside(run: &Shakedeck) -> String {
    std::fs::read_to_string(run.data().join("quarantine.jsonl")).unwrap_or_default()
}

/// Every kind of command in four databases, between them too; processes are killed, one master is replaced, slots move.
#[test]
fn each_database_keeps_its_own_through_crashes_and_failovers() {
    let binary = require_databases!();
    let (source, mut destination) = (server(binary), cluster(binary, 3, 1, 4));
    let load = Mixed::new(61).per_second(2_000).databases(4).on_server(&source);
    load.wait_more(5_000);
    // So small that many values are rebuilt by commands, and some of them aside.
    let setup =
        Setup::to_cluster(&source, &destination).set("advanced", "target_redis_proto_max_bulk_len", "200");
    let mut run = setup.start();
    for round in 0..5 {
        run.wait_streaming(MINUTES);
        load.wait_more(700 + 397 * round);
        match round {
            1 => drop(destination.fail_over_by_death(1)),
            3 => destination.reshard(0, 2, 0..300),
            _ => {}
        }
        load.wait_more(300);
        let folder = run.folder();
        run.kill();
        load.wait_more(300);
        run = setup.start_in(folder);
    }
    run.wait_streaming(MINUTES);
    load.stop();
    assert_eq!(set_aside(&run), "");
    let folder = run.folder();
    run.kill();
    let last = setup.clone().exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
    assert!(assert_same(&source, &destination).keys > 1_500);
    assert_eq!(ours(&destination, 4), Vec::<String>::new());
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
    Verification::of(&setup).run(&["--mode", "full"]).expect(0, &["no differences"]);
}

/// A database is emptied while counters run in all of them, and the process dies around it: what follows in that database is there, what is
/// counted in others is counted once.
#[test]
fn emptying_one_database_leaves_the_others_alone() {
    let binary = require_databases!();
    let (source, destination) = (server(binary), cluster(binary, 3, 0, 4));
    let mut client = source.client();
    let change = |client: &mut Client, round: u32| {
        for db in 0..4 {
            client.ok(&["SELECT", &db.to_string()]);
            for n in 0..200 {
                client.push(&["INCR", &format!("counter:{n}")]);
                client.push(&["SET", &format!("round:{round}:{n}"), "x"]);
            }
            client.flush(400);
        }
    };
    change(&mut client, 0);
    let setup = Setup::to_cluster(&source, &destination);
    let mut run = setup.start();
    run.wait_streaming(MINUTES);
    for (round, empty) in ["FLUSHDB 2", "FLUSHDB 0", "FLUSHALL 1", "FLUSHDB 3"].into_iter().enumerate() {
        let (verb, db) = empty.split_once(' ').unwrap();
        change(&mut client, 2 * round as u32 + 1);
        client.ok(&["SELECT", db]);
        client.ok(&[verb]);
        change(&mut client, 2 * round as u32 + 2);
        if round % 2 == 1 {
            applied(&run, &mut client);
        }
        let folder = run.folder();
        run.kill();
        run = setup.start_in(folder);
    }
    client.ok(&["SELECT", "1"]);
    client.push(&["MULTI"]);
    client.push(&["FLUSHDB"]);
    client.push(&["INCR", "counter:1"]);
    client.push(&["EXEC"]);
    client.flush(4);
    applied(&run, &mut client);
    // Key by key is no single step.
    assert!(set_aside(&run).contains("stands in a transaction"), "{}", set_aside(&run));
    client.ok(&["SELECT", "1"]);
    client.ok(&["FLUSHDB"]);
    client.ok(&["SELECT", "0"]);
    client.ok(&["INCR", "last"]);
    applied(&run, &mut client);
    assert!(run.output().contains("the source has emptied a database: its"), "{}", run.output());
    assert!(assert_same(&source, &destination).keys > 500);
}

/// Databases that the destination does not have are refused with the ways on, and have their place by `db_map`.
#[test]
fn databases_without_a_place_are_refused_and_mapped() {
    let binary = require_databases!();
    let (source, destination) = (server(binary), cluster(binary, 3, 0, 2));
    let mut client = source.client();
    for db in [0, 3] {
        client.ok(&["SELECT", &db.to_string()]);
        (0..300).for_each(|n| drop(client.ok(&["SET", &format!("key:{n}"), &format!("of {db}")])));
    }
    let setup = Setup::to_cluster(&source, &destination);
    setup.start().wait_exit(MINUTES).expect(
        2,
        &["database 3 of the source", "2 databases, 0 to 1", "db_map", "raise 'cluster-databases'"],
    );
    assert_eq!(destination.client().keys_like("*").len(), 0, "something was written");

    let setup = setup.set("advanced", "db_map", "{ 3 = 1 }");
    let run = setup.start();
    run.wait_streaming(MINUTES);
    client.ok(&["SELECT", "3"]);
    client.ok(&["RENAME", "key:1", "key:renamed"]);
    client.ok(&["COPY", "key:2", "key:copied", "DB", "0"]);
    client.ok(&["MOVE", "key:renamed", "0"]);
    // A refusal of this kind names the database in the list of what was set aside, and can be sent again.
    let slot = slot_of(b"stray");
    let mut there = destination.client_of(destination.owner(slot));
    there.ok(&["SELECT", "1"]);
    there.ok(&["SET", "stray", "no list"]);
    client.ok(&["RPUSH", "stray", "an element"]);
    applied(&run, &mut client);
    let waiting = set_aside(&run);
    assert!(waiting.contains("WRONGTYPE") && waiting.contains(r#""db":1"#), "{waiting}");
    there.ok(&["DEL", "stray"]);
    let folder = run.folder();
    run.kill();
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    let exit = last.wait_exit(MINUTES);
    exit.expect(5, &["1 quarantined"]);
}

/// In a slot that stays half-moved each database has its own keys on either side.
#[test]
fn a_half_moved_slot_is_written_to_in_every_database() {
    let binary = require_databases!();
    let (source, destination) = (server(binary), cluster(binary, 3, 0, 3));
    let mut client = source.client();
    let change = |client: &mut Client, round: usize| {
        for db in 0..3 {
            let mut count = 0;
            let mut push = |words: &[&str]| {
                client.push(words);
                count += 1;
            };
            push(&["SELECT", &db.to_string()]);
            for n in 0..30 {
                let key = |kind: &str| format!("{{tag}}:{kind}:{n}");
                push(&["INCR", &key("counter")]);
                push(&["SET", &key("text"), &format!("{db}, {round}")]);
                push(&["INCR", &key(&format!("new:{round}"))]);
                push(&["SET", &key(&format!("fresh:{round}")), "x"]);
            }
            push(&["MSET", "{tag}:text:3", "a", "{tag}:other", "b"]);
            client.flush(count);
        }
    };
    change(&mut client, 0);
    let setup = Setup::to_cluster(&source, &destination);
    let run = setup.start();
    run.wait_state("caught_up", MINUTES);
    let slot = slot_of(b"tag");
    let from = destination.owner(slot);
    let to = (from + 1) % 3;
    destination.begin_move(from, to, slot);
    // All of database 0, some of database 1, none of database 2.
    assert_eq!(destination.move_keys(from, to, slot, 150), 150);
    change(&mut client, 1);
    applied(&run, &mut client);
    let folder = run.folder();
    run.kill();
    change(&mut client, 2);
    let run = setup.start_in(folder);
    applied(&run, &mut client);
    let folder = run.folder();
    run.kill();
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
    assert_eq!(ours(&destination, 3), Vec::<String>::new());
    // Each key is in one place, and all of them together are the source's.
    for db in 0..3u32 {
        let mut all = Vec::new();
        client.ok(&["SELECT", &db.to_string()]);
        for node in [from, to] {
            let mut there = destination.client_of(node);
            there.ok(&["SELECT", &db.to_string()]);
            for key in keys_like(&mut there, "{tag}:*") {
                there.push(&["ASKING"]);
                there.push(&[b"GET".as_slice(), &key]);
                let value = there.flush(2).pop().unwrap();
                assert_eq!(
                    Some(&value),
                    Some(&client.cmd(&[b"GET".as_slice(), &key])),
                    "{}",
                    key.escape_ascii()
                );
                all.push(key);
            }
        }
        let mut expected: Vec<_> = keys_like(&mut client, "{tag}:*").into_iter().collect();
        all.sort();
        expected.sort();
        assert_eq!(all, expected, "db {db}");
    }
}

/// Both sides are clusters with databases; the source's slots move meanwhile, and processes are killed.
#[test]
fn a_cluster_with_databases_goes_to_another_one() {
    let binary = require_databases!();
    let (source, destination) = (cluster(binary, 2, 0, 4), cluster(binary, 3, 0, 4));
    let load = Mixed::new(62).per_second(1_500).databases(4).on_cluster(&source);
    load.wait_more(5_000);
    let setup = Setup::between_clusters(&source, &destination);
    let mut run = setup.start();
    for round in 0..3 {
        run.wait_streaming(MINUTES);
        load.wait_more(1_000);
        if round == 1 {
            source.reshard(0, 1, 0..200);
        }
        let folder = run.folder();
        run.kill();
        load.wait_more(300);
        run = setup.start_in(folder);
    }
    run.wait_streaming(MINUTES);
    load.stop();
    run.wait_state("caught_up", MINUTES);
    assert_eq!(set_aside(&run), "");
    wait_until(MINUTES, "no slot is waiting for its copy", || {
        support::everything::same(&source, &destination).is_ok()
    });
    assert!(assert_same(&source, &destination).keys > 1_500);
    Verification::of(&setup).run(&["--mode", "full"]).expect(0, &["no differences"]);
}

/// A cluster with databases goes to a standalone server, some of them under another number.
#[test]
fn a_cluster_with_databases_goes_to_a_server() {
    let binary = require_databases!();
    let (source, destination) = (cluster(binary, 3, 0, 4), server(binary));
    let load = Mixed::new(63).per_second(1_500).databases(4).on_cluster(&source);
    load.wait_more(3_000);
    let setup = Setup::from_cluster(&source, &destination).set("advanced", "db_map", "{ 1 = 9, 3 = 1 }");
    let run = setup.start();
    run.wait_streaming(MINUTES);
    load.wait_more(2_000);
    load.stop();
    run.wait_state("caught_up", MINUTES);
    assert_eq!(set_aside(&run), "");
    let there = |db| {
        Some(match db {
            1 => 9,
            3 => 1,
            other => other,
        })
    };
    assert!(assert_same_in(&source, &destination, there).keys > 300);
}
