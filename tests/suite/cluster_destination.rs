//! A destination that is a cluster: a standalone source's data, every key in its slot and every command exactly once, while
//! processes are killed, links cut, masters replaced and slots moved.

use std::time::Duration;

use crate::require_server;
use crate::support;
use crate::support::client::keys_like;
use crate::support::cluster::{Cluster, Layout};
use crate::support::cluster_client::{SLOTS, slot_of};
use crate::support::everything::{assert_same, same};
use crate::support::mixed_load::{Mixed, MixedLoad};
use crate::support::shakedeck::Setup;
use crate::support::{Options, Reply, Server, ServerBinary, Shakedeck, dataset, servers, wait_until};

const MINUTES: Duration = Duration::from_secs(180);

fn source(binary: &ServerBinary) -> Server {
    Server::start(binary, Options::new().config("repl-backlog-size", "256mb"))
}

fn cluster(binary: &ServerBinary, masters: usize, replicas: usize) -> Cluster {
    Cluster::start(binary, Layout::new(masters, replicas))
}

/// Starts the same run once more until it is caught up, and compares everything.
fn finish(setup: &Setup, run: Shakedeck, load: MixedLoad, source: &Server, destination: &Cluster) {
    load.stop();
    let (folder, quarantine) = (run.folder(), run.data().join("quarantine.jsonl"));
    run.kill();
    let set_aside = std::fs::read_to_string(quarantine).unwrap_or_default();
    assert_eq!(set_aside, "", "set aside");
    let last = setup.clone().exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
    equal(source, destination);
}

fn equal(source: &Server, destination: &Cluster) {
    assert!(assert_same(source, destination).keys > 500);
    let left = destination.client().keys_like("shakedeck:*");
    assert!(left.is_empty(), "{left:?} stayed behind");
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
}

#[test]
fn everything_arrives_in_its_slot() {
    let binary = require_server!();
    for binary in [Some(binary), servers::modern().last()].into_iter().flatten() {
        let (source, destination) = (source(binary), cluster(binary, 3, 0));
        let load = Mixed::new(1).per_second(3_000).on_server(&source);
        load.wait_more(5_000);
        let setup = Setup::to_cluster(&source, &destination).text("cutover", "hold_for", "4s");
        let run = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start();
        run.wait_streaming(MINUTES);
        load.wait_more(10_000);
        load.stop();
        run.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
        equal(&source, &destination);
    }
}

#[test]
fn killed_again_and_again_it_goes_on_where_it_was() {
    let binary = require_server!();
    let (source, destination) = (source(binary), cluster(binary, 3, 0));
    let load = Mixed::new(2).per_second(3_000).on_server(&source);
    load.wait_more(5_000);
    let setup = Setup::to_cluster(&source, &destination);
    let mut run = setup.start();
    for round in 0..8 {
        run.wait_streaming(MINUTES);
        load.wait_more(500 + 397 * round);
        let folder = run.folder();
        run.kill();
        load.wait_more(300);
        run = setup.start_in(folder);
    }
    run.wait_streaming(MINUTES);
    finish(&setup, run, load, &source, &destination);
}

#[test]
fn links_that_are_cut_are_opened_again() {
    let binary = require_server!();
    let (source, destination) = (source(binary), cluster(binary, 3, 0));
    let load = Mixed::new(3).per_second(3_000).on_server(&source);
    load.wait_more(3_000);
    let setup = Setup::to_cluster(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    for round in 0..9 {
        load.wait_more(500);
        destination.client_of(round % 3).cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }
    assert!(run.output().contains("looking where to go on"), "no link was lost:\n{}", run.output());
    load.wait_more(500);
    finish(&setup, run, load, &source, &destination);
}

/// Slots leave one master for another while the stream runs.
#[test]
fn a_thousand_slots_are_moved_in_mid_stream() {
    let binary = require_server!();
    let (source, destination) = (source(binary), cluster(binary, 3, 0));
    let load = Mixed::new(4).per_second(2_000).on_server(&source);
    load.wait_more(3_000);
    let setup = Setup::to_cluster(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    destination.reshard(0, 1, 0..1_000);
    load.wait_more(2_000);
    assert_eq!(destination.slot_count(1), 6_461, "the slots are there");
    finish(&setup, run, load, &source, &destination);
}

/// A master is killed, and its replica, which may lack the last writes, takes its place.
#[test]
fn a_master_that_dies_is_replaced_and_nothing_is_lost() {
    let binary = require_server!();
    let (source, mut destination) = (source(binary), cluster(binary, 3, 1));
    let load = Mixed::new(5).per_second(2_000).on_server(&source);
    load.wait_more(3_000);
    let setup = Setup::to_cluster(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    for master in [1, 0] {
        load.wait_more(1_000);
        destination.fail_over_by_death(master);
        load.wait_more(1_000);
    }
    let orderly = destination.masters()[2];
    destination.fail_over(orderly);
    load.wait_more(2_000);
    finish(&setup, run, load, &source, &destination);
}

/// A master dies while the RDB is being applied, and values are rebuilt element by element on the way.
#[test]
fn a_master_that_dies_inside_the_rdb_is_replaced() {
    let binary = require_server!();
    let (source, mut destination) = (source(binary), cluster(binary, 3, 1));
    dataset::fill(&mut source.client(), 60_000, 1);
    let mut client = source.client();
    for database in 1..16 {
        client.ok(&["SELECT", &database.to_string()]);
        client.ok(&["FLUSHDB"]);
    }
    let load = Mixed::new(7).per_second(500).on_server(&source);
    load.wait_more(500);
    // 0: every value goes by commands.
    let setup =
        Setup::to_cluster(&source, &destination).set("advanced", "target_redis_proto_max_bulk_len", "0");
    let run = setup.start();
    run.wait_status(MINUTES, "a run", |status| status["state"].is_string());
    run.ctl(&["throttle", "--ops", "1500"]).expect(0, &[]);
    run.wait_status(MINUTES, "a part of the RDB", |status| {
        status["sources"][0]["keys_applied"].as_u64() > Some(500)
    });
    destination.fail_over_by_death(0);
    let status = run.status_json();
    assert_eq!(status["sources"][0]["phase"], "rdb_apply", "{status}");
    let folder = run.folder();
    run.kill();
    let run = setup.start_in(folder);
    run.wait_streaming(MINUTES);
    finish(&setup, run, load, &source, &destination);
}

/// The slots of the source lie otherwise than those of the destination: five masters to two.
#[test]
fn a_cluster_is_copied_to_one_with_other_slots() {
    let binary = require_server!();
    let source = cluster(binary, 5, 0);
    let destination = cluster(binary, 2, 0);
    let load = Mixed::new(6).per_second(3_000).on_cluster(&source);
    load.wait_more(3_000);
    let setup = Setup::between_clusters(&source, &destination);
    let all_stream = |run: &Shakedeck| {
        run.wait_status(MINUTES, "the stream phase of all lines", |status| {
            let sources = status["sources"].as_array().unwrap();
            sources.len() == 5 && sources.iter().all(|source| source["phase"] == "stream")
        })
    };
    let mut run = setup.start();
    for round in 0..4 {
        let status = all_stream(&run);
        assert_eq!(status["destinations"].as_array().unwrap().len(), 2, "{status}");
        load.wait_more(500 + 397 * round);
        let folder = run.folder();
        run.kill();
        load.wait_more(300);
        run = setup.start_in(folder);
    }
    all_stream(&run);
    load.wait_more(1_000);
    load.stop();
    // One shard is emptied: its keys go, those of the others stay.
    run.wait_status(MINUTES, "everything applied", |status| {
        status["sources"].as_array().unwrap().iter().all(|source| source["lag_bytes"] == 0)
    });
    let mut emptied = source.client_of(source.masters()[1]);
    emptied.ok(&["FLUSHALL"]);
    for number in 0..500 {
        // Those of other shards are refused, as they should be.
        emptied.cmd(&["INCR", &format!("after:{number}")]);
    }
    let folder = run.folder();
    run.kill();
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
    assert!(assert_same(&source, &destination).keys > 300);
    assert!(destination.client().keys_like("shakedeck:*").is_empty());
}

/// A node joins the destination and takes slots, and one gives away all that it has and leaves.
#[test]
fn a_node_joins_and_one_leaves_while_it_runs() {
    let binary = require_server!();
    let source = source(binary);
    let layout = Layout::new(3, 0).slots(&[&[0..=8_000], &[8_001..=16_083], &[16_084..=16_383]]);
    let mut destination = Cluster::start(binary, layout);
    let load = Mixed::new(8).per_second(2_000).on_server(&source);
    load.wait_more(3_000);
    let setup = Setup::to_cluster(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    let nodes = |run: &Shakedeck, what: &str, wanted: &[&str], unwanted: &[&str]| {
        run.wait_status(MINUTES, what, |status| {
            let destinations = status["destinations"].as_array().unwrap();
            let has = |address: &&str| destinations.iter().any(|node| node["address"] == **address);
            wanted.iter().all(has) && !unwanted.iter().any(has)
        });
    };
    let joined = destination.add_node();
    let there = destination.node(joined).address().to_string();
    destination.reshard(0, joined, 0..200);
    load.wait_more(1_000);
    nodes(&run, "a writer for the node that joined", &[&there], &[]);
    let left = destination.node(2).address().to_string();
    destination.reshard(2, joined, 16_084..=16_383);
    destination.remove_node(2);
    load.wait_more(1_000);
    assert_eq!(destination.slot_count(joined), 500, "the slots are there");
    let folder = run.folder();
    run.kill();
    let run = setup.start_in(folder);
    run.wait_streaming(MINUTES);
    nodes(&run, "no writer for the node that left", &[&there], &[&left]);
    load.wait_more(500);
    finish(&setup, run, load, &source, &destination);
}

/// A node loses the result of a command on keys of several slots, while the keys that it came from have changed since: it can no
/// longer be computed from the destination, only from what was kept on disk.
#[test]
fn a_result_that_a_failover_loses_is_brought_again() {
    let binary = require_server!();
    let (source, mut destination) = (source(binary), cluster(binary, 3, 1));
    let mut client = source.client();
    let of_first = |name: &str| slot_of(name.as_bytes()) < 5_461;
    let named = |kind: &str, first: bool| -> Vec<String> {
        let names = (0..).map(|n| format!("{kind}:{n}"));
        names.filter(|name| of_first(name) == first).take(50).collect()
    };
    let (from, to) = (named("from", false), named("to", true));
    let (left, right, union) = (named("left", false), named("right", true), named("union", true));
    for n in 0..50 {
        client.ok(&["RPUSH", &from[n], "a", "b", &n.to_string()]);
        client.ok(&["SADD", &left[n], "l", &n.to_string()]);
        client.ok(&["SADD", &right[n], "r"]);
    }
    let setup = Setup::to_cluster(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    let applied = |run: &Shakedeck, what: &str| {
        run.wait_status(MINUTES, what, |status| status["sources"][0]["lag_bytes"] == 0);
    };
    applied(&run, "everything of before");
    // Its replica gets nothing any more: the password is not wanted.
    let (master, replica) = (0, destination.replicas(0)[0]);
    wait_until(MINUTES, "the replica has everything", || {
        let offset = |n: usize| destination.client_of(n).info("replication", "master_repl_offset");
        offset(master) == offset(replica)
    });
    destination.client_of(replica).ok(&["CONFIG", "SET", "masterauth", "unwanted"]);
    destination.client_of(master).ok(&["CLIENT", "KILL", "TYPE", "replica"]);
    wait_until(MINUTES, "the replica has no link", || {
        destination.client_of(replica).info("replication", "master_link_status").as_deref() == Some("down")
    });
    for n in 0..50 {
        client.ok(&["RENAME", &from[n], &to[n]]);
        client.ok(&["SUNIONSTORE", &union[n], &left[n], &right[n]]);
        // The sources go on.
        client.ok(&["SET", &from[n], "something else"]);
        client.ok(&["DEL", &left[n]]);
        client.ok(&["RPUSH", &to[n], "behind"]);
    }
    // The last of them is done on another master.
    client.ok(&["SET", &from[0], "the end"]);
    wait_until(MINUTES, "it has the results", || {
        // Until then it is a list.
        let end = destination.client().call(&["GET", &from[0]]);
        matches!(end, Reply::BulkString(text) if text == b"the end")
            && destination.client_of(master).integer(&["LLEN", &to[49]]) == 4
    });
    applied(&run, "the results");
    let promoted = destination.fail_over_by_death(master);
    assert_eq!(promoted, replica);
    for name in &union {
        client.ok(&["SADD", name, "last"]);
    }
    run.wait_status(MINUTES, "the results once more", |_| {
        let mut there = destination.client_of(promoted);
        to.iter().all(|name| there.integer(&["LLEN", name]) == 4)
            && union.iter().all(|name| there.integer(&["SCARD", name]) >= 4)
    });
    let (folder, quarantine) = (run.folder(), run.data().join("quarantine.jsonl"));
    run.kill();
    assert_eq!(std::fs::read_to_string(quarantine).unwrap_or_default(), "", "set aside");
    let last = setup.clone().exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
    assert_eq!(assert_same(&source, &destination).keys, 200);
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
}

#[test]
fn what_concerns_no_single_slot_is_done_or_set_aside_with_the_reason() {
    let binary = require_server!();
    let (source, destination) = (source(binary), cluster(binary, 3, 0));
    let mut client = source.client();
    for number in 0..2_000 {
        client.ok(&["SET", &format!("old:{number}"), "x"]);
    }
    let setup = Setup::to_cluster(&source, &destination);
    let mut run = setup.start();
    run.wait_streaming(MINUTES);
    // Not for a cluster: each of them is set aside.
    client.ok(&["MSETNX", "a", "1", "b", "2"]);
    client.ok(&["DEL", "a", "b"]);
    client.ok(&["SELECT", "1"]);
    client.ok(&["SET", "elsewhere", "x"]);
    client.ok(&["DEL", "elsewhere"]);
    client.ok(&["SELECT", "0"]);
    client.cmd(&["PUBLISH", "channel", "message"]);
    client.ok(&["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 7 end)"]);
    client.ok(&["FLUSHALL"]);
    // What follows a FLUSHALL is applied once, however often it is begun again.
    for round in 0..3 {
        for number in 0..1_000 {
            client.push(&["INCR", &format!("new:{number}")]);
            client.push(&["APPEND", &format!("text:{number}"), "x"]);
        }
        client.flush(2_000);
        let folder = run.folder();
        run.kill();
        run = setup.start_in(folder);
        if round < 2 {
            run.wait_streaming(MINUTES);
        }
    }
    let folder = run.folder();
    run.kill();
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    let exit = last.wait_exit(MINUTES);
    exit.expect(5, &["are in quarantine"]);
    assert_same(&source, &destination);
    for node in destination.masters() {
        // An error where it is not there.
        destination.client_of(node).ok(&["FUNCTION", "DELETE", "lib"]);
    }
}

/// After another full sync no key is left that the source has deleted, on no master; and nobody else's is gone.
#[test]
fn another_full_sync_leaves_no_ghosts_on_any_master() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new().config("repl-backlog-size", "16kb"));
    let destination = cluster(binary, 3, 0);
    let mut client = source.client();
    for number in 0..3_000 {
        client.ok(&["SET", &format!("key:{number}"), "x"]);
    }
    let mut others = destination.client();
    others.ok(&["SET", "others:1", "theirs"]);
    let setup = Setup::to_cluster(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    let folder = run.folder();
    run.kill();
    for number in 0..3_000 {
        let key = format!("key:{number}");
        if number % 3 == 0 {
            client.ok(&["DEL", &key]);
        } else {
            client.ok(&["SET", &key, &"y".repeat(100)]);
        }
    }
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["1,000 keys removed that the source no longer has"]);
    assert_eq!(others.bytes(&["GET", "others:1"]).as_deref(), Some(&b"theirs"[..]));
    others.ok(&["DEL", "others:1"]);
    assert_same(&source, &destination);
    assert!(others.keys_like("shakedeck:*").is_empty());
}

/// A master gives its slots away and leaves the cluster while nothing is written: what comes then does not wait for it.
#[test]
fn a_master_that_has_left_is_not_asked_for_ever() {
    let binary = require_server!();
    let (source, mut destination) = (source(binary), cluster(binary, 3, 0));
    let mut client = source.client();
    let write = |client: &mut support::Client, value: &str| {
        (0..1_000).for_each(|n| client.push(&["SET", &format!("key:{n}"), value]));
        client.flush(1_000);
    };
    write(&mut client, "before");
    let run = Setup::to_cluster(&source, &destination).start();
    run.wait_state("caught_up", MINUTES);
    for left in [2, 0] {
        destination.reshard(
            left,
            1,
            (0..SLOTS).filter(|slot| destination.owner(*slot) == left).collect::<Vec<_>>(),
        );
        destination.expel_node(left);
        write(&mut client, &format!("without {left}"));
        wait_until(MINUTES, "everything without it", || same(&source, &destination).is_ok());
    }
    run.wait_state("caught_up", MINUTES);
    assert_same(&source, &destination);
}

/// What comes a second time after a crash may meet what has followed it: the refusal is told as that, and not set aside.
#[test]
fn a_command_that_was_applied_before_is_not_set_aside() {
    let binary = require_server!();
    let (source, destination) = (source(binary), cluster(binary, 3, 0));
    let mut client = source.client();
    client.ok(&["SET", "stuck", "0"]);
    let setup = Setup::to_cluster(&source, &destination);
    let run = setup.start();
    run.wait_state("caught_up", MINUTES);
    // While one node takes no writes, nothing is confirmed, whatever the others do.
    let stuck = destination.owner(slot_of(b"stuck"));
    let turns = (0..).map(|n| format!("turns:{n}"));
    let turns = turns.into_iter().find(|key| destination.owner(slot_of(key.as_bytes())) != stuck).unwrap();
    destination.client_of(stuck).ok(&["CLIENT", "PAUSE", "600000", "WRITE"]);
    client.ok(&["SET", "stuck", "1"]);
    client.ok(&["HSET", &turns, "field", "value"]);
    client.ok(&["DEL", &turns]);
    client.ok(&["SET", &turns, "a string"]);
    let mut there = destination.client();
    wait_until(
        MINUTES,
        "its last value",
        || matches!(there.call(&["GET", &turns]), Reply::BulkString(value) if value == b"a string"),
    );
    let folder = run.folder();
    run.kill();
    destination.client_of(stuck).ok(&["CLIENT", "UNPAUSE"]);
    let run = setup.start_in(folder);
    wait_until(MINUTES, "what was stuck", || there.bytes(&["GET", "stuck"]).as_deref() == Some(b"1"));
    run.wait_state("caught_up", MINUTES);
    let told = format!("HSET '{turns}' was refused (WRONGTYPE");
    assert!(run.output().contains(&told), "{}", run.output());
    assert!(!run.data().join("quarantine.jsonl").exists(), "it was set aside");
    assert_same(&source, &destination);
}

/// Commands on keys of one slot: old and new keys, once and again, plain and in transactions, on one key and on several.
fn change(client: &mut support::Client, tag: &str, round: usize) {
    let key = |kind: &str, n: usize| format!("{{{tag}}}:{kind}:{n}");
    let mut count = 0;
    let mut push = |words: &[&str]| {
        client.push(words);
        count += 1;
    };
    for n in 0..40 {
        push(&["INCR", &key("counter", n)]);
        push(&["RPUSH", &key("list", n), &round.to_string()]);
        push(&["INCR", &key(&format!("new:{round}"), n)]);
        push(&["SET", &key("text", n), &format!("{round}:")]);
    }
    push(&["MULTI"]);
    push(&["INCR", &key("counter", 1)]);
    push(&["APPEND", &key("text", 2), "in a transaction"]);
    push(&["RPUSH", &key("only in a transaction", round), "x"]);
    push(&["EXEC"]);
    push(&["MSET", &key("text", 3), "a", &key("text", 4), "b", &key("fresh", round), "c"]);
    push(&["DEL", &key("counter", 5), &key("counter", 6), &key("never there", 0), &key("list", 7)]);
    push(&["PEXPIRE", &key("counter", 8), "100000000"]);
    push(&["INCR", &format!("elsewhere:{round}")]);
    client.flush(count);
}

/// A reshard stops half-way and stays so: what the owner of a slot has handed over is written where it went, exactly once,
/// through a crash; also in the slot that carries the mark of its node. At the end nothing is in two places.
#[test]
fn slots_that_stay_half_moved_are_written_to() {
    let binary = require_server!();
    // Valkey 9 does not look at keys before EXEC.
    let binaries = [servers::all().first().or(Some(binary)), servers::modern().last()];
    for binary in binaries.into_iter().flatten() {
        let (source, destination) = (source(binary), cluster(binary, 3, 0));
        let mut client = source.client();
        // Marks lie in the last slot of each node.
        let tags: Vec<String> = [5_460, 100]
            .map(|slot| {
                (0..).map(|n: u32| n.to_string()).find(|tag| slot_of(tag.as_bytes()) == slot).unwrap()
            })
            .to_vec();
        tags.iter().for_each(|tag| change(&mut client, tag, 0));
        let setup = Setup::to_cluster(&source, &destination);
        let run = setup.start();
        run.wait_state("caught_up", MINUTES);
        tags.iter().for_each(|tag| change(&mut client, tag, 1));
        run.wait_state("caught_up", MINUTES);
        for tag in &tags {
            let slot = slot_of(tag.as_bytes());
            destination.begin_move(0, 1, slot);
            assert_eq!(destination.move_keys(0, 1, slot, 70), 70);
        }
        tags.iter().for_each(|tag| change(&mut client, tag, 2));
        let drained = |run: &Shakedeck, client: &mut support::Client| {
            let sent: u64 = client.info("replication", "master_repl_offset").unwrap().parse().unwrap();
            run.wait_status(MINUTES, "everything applied", |status| {
                status["sources"][0]["offset_applied"].as_u64() >= Some(sent)
            })
        };
        let status = drained(&run, &mut client);
        assert!(
            status["destinations"]
                .as_array()
                .unwrap()
                .iter()
                .any(|node| node["redirects"].as_u64() > Some(0)),
            "nothing was asked for elsewhere: {status}"
        );
        tags.iter().for_each(|tag| change(&mut client, tag, 3));
        let folder = run.folder();
        run.kill();
        tags.iter().for_each(|tag| change(&mut client, tag, 4));
        let run = setup.start_in(folder);
        drained(&run, &mut client);
        tags.iter().for_each(|tag| change(&mut client, tag, 5));
        drained(&run, &mut client);
        let folder = run.folder();
        run.kill();
        let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
        last.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
        for node in destination.masters() {
            let left = keys_like(&mut destination.client_of(node), "shakedeck:*");
            assert!(left.is_empty(), "{left:?} stayed behind on node {node}");
        }
        for tag in &tags {
            let slot = slot_of(tag.as_bytes());
            // MIGRATE refuses what is there already.
            while destination.move_keys(0, 1, slot, 100) > 0 {}
            destination.finish_move(0, 1, slot);
        }
        destination.wait_ok();
        assert!(assert_same(&source, &destination).keys > 500);
        assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
    }
}

/// A master that is dead has a row that says so, and is the first reason; the others have theirs.
#[test]
fn a_dead_master_is_shown_by_itself_and_named_first() {
    let binary = require_server!();
    let (source, mut destination) = (source(binary), cluster(binary, 3, 0));
    let run = Setup::to_cluster(&source, &destination).start();
    run.wait_streaming(MINUTES);
    let dead = destination.node(2).address().to_string();
    let mut client = source.client();
    destination.kill(2);
    let mut number = 0;
    wait_until(MINUTES, "a row and a reason for the dead master", || {
        number += 1;
        client.ok(&["SET", &format!("key:{number}"), "x"]);
        let status = run.status_json();
        let rows = status["destinations"].as_array().unwrap();
        let lost: Vec<&str> = rows
            .iter()
            .filter(|row| row["state"] == "reconnecting")
            .map(|row| row["address"].as_str().unwrap())
            .collect();
        let first = status["not_ready"][0].as_str().unwrap_or_default();
        rows.len() == 3
            && lost == [dead.as_str()]
            && first.starts_with(&format!("writer {dead} reconnecting: "))
    });
}

/// Commands that a node refuses for now are tried again and again: what counts is what it applies.
#[test]
fn what_is_only_tried_does_not_count_as_applied() {
    let binary = require_server!();
    let (source, destination) = (source(binary), cluster(binary, 3, 0));
    let run = Setup::to_cluster(&source, &destination).start();
    run.wait_streaming(MINUTES);
    for node in 0..3 {
        destination.client_of(node).ok(&["CONFIG", "SET", "maxmemory", "1"]);
    }
    let mut client = source.client();
    for number in 0..500 {
        client.ok(&["SET", &format!("key:{number}"), "x"]);
    }
    let rows = |status: &serde_json::Value| status["destinations"].as_array().unwrap().clone();
    let waiting = |row: &serde_json::Value| {
        row["state"] == "waiting"
            && row["retries"].as_u64() > Some(10)
            && row["reason"].as_str().is_some_and(|reason| !reason.contains("waiting"))
    };
    run.wait_status(MINUTES, "three that wait and count nothing", |status| {
        rows(status).len() == 3 && rows(status).iter().all(|row| waiting(row) && row["ops_per_second"] == 0.0)
    });
    for node in 0..3 {
        destination.client_of(node).ok(&["CONFIG", "SET", "maxmemory", "0"]);
    }
    run.wait_status(MINUTES, "what was applied", |status| {
        rows(status).iter().all(|row| row["ops_per_second"].as_f64() > Some(0.0))
    });
    run.wait_status(MINUTES, "everything applied", |status| status["sources"][0]["lag_bytes"] == 0);
    assert_eq!(destination.client().keys_like("key:*").len(), 500);
}
