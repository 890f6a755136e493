//! A source that is a cluster: every master of it is a line of its own, followed through failovers, killed and started again.

use std::time::Duration;

use crate::require_server;
use crate::support;
use crate::support::client::keys_like;
use crate::support::cluster::{Cluster, Layout};
use crate::support::cluster_client::slot_of;
use crate::support::everything::{assert_same, same};
use crate::support::mixed_load::Mixed;
use crate::support::shakedeck::Setup;
use crate::support::{Options, Reply, Server, ServerBinary, Shakedeck, servers, wait_until};

const MINUTES: Duration = Duration::from_secs(180);

fn cluster(binary: &ServerBinary, masters: usize, replicas: usize) -> Cluster {
    Cluster::start(binary, Layout::new(masters, replicas))
}

/// Until every line is in the stream phase.
fn streaming(run: &Shakedeck, lines: usize) {
    run.wait_status(MINUTES, "the stream phase of all lines", |status| {
        let sources = status["sources"].as_array().unwrap();
        sources.len() == lines && sources.iter().all(|source| source["phase"] == "stream")
    });
}

/// Full syncs that the masters of the cluster have given.
fn full_syncs(cluster: &Cluster) -> u64 {
    let given = |n: usize| cluster.client_of(n).info("stats", "sync_full").unwrap().parse::<u64>().unwrap();
    cluster.masters().into_iter().map(given).sum()
}

#[test]
fn every_master_is_a_line_and_all_arrives_exactly_once() {
    let binary = require_server!();
    for binary in [Some(binary), servers::modern().last()].into_iter().flatten() {
        let (source, destination) = (cluster(binary, 3, 0), Server::start(binary, Options::new()));
        let load = Mixed::new(1).on_cluster(&source);
        load.wait_more(3_000);
        let setup = Setup::from_cluster(&source, &destination);
        let mut run = setup.start();
        streaming(&run, 3);
        let status = run.status_json();
        assert_eq!(status["source"]["kind"], "cluster", "{status}");
        assert_eq!(status["source"]["nodes"], 3, "{status}");
        assert_eq!(status["destinations"].as_array().unwrap().len(), 1, "{status}");
        for round in 0..4 {
            load.wait_more(500 + 701 * round);
            let folder = run.folder();
            run.kill();
            load.wait_more(200);
            run = setup.start_in(folder);
            streaming(&run, 3);
        }
        load.wait_more(1_000);
        load.stop();
        let folder = run.folder();
        run.kill();
        let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
        last.wait_exit(MINUTES).expect(0, &["going on in the stream"]);
        assert!(assert_same(&source, &destination).keys > 500);
        assert_eq!(full_syncs(&source), 3, "one full sync for each master");
        let left = destination.client().list(&["KEYS", "shakedeck:*"]);
        assert!(left.is_empty(), "{left:?} stayed behind");
    }
}

/// What is kept for each master is small: sixteen of them at once, with large values and a live load, stay under the 200 MiB that the
/// README promises.
#[test]
fn sixteen_masters_take_little_memory() {
    let binary = require_server!();
    let (source, destination) = (cluster(binary, 16, 0), Server::start(binary, Options::new()));
    let mut client = source.client();
    let value = "x".repeat(100_000);
    for number in 0..800 {
        client.ok(&["SET", &format!("large:{number}"), &value]);
    }
    let load = Mixed::new(1).on_cluster(&source);
    load.wait_more(3_000);
    let run = Setup::from_cluster(&source, &destination).start();
    streaming(&run, 16);
    load.wait_more(3_000);
    load.stop();
    run.wait_state("caught_up", MINUTES);
    assert!(assert_same(&source, &destination).keys > 1_000);
    let peak = run.peak_bytes();
    support::note(&format!("16 masters: {:.1} MiB at the most", peak as f64 / f64::from(1 << 20)));
    assert!(peak < 200 << 20, "{peak} bytes");
}

#[test]
fn a_line_follows_its_shard_to_the_replica_that_takes_over() {
    let binary = require_server!();
    let mut source = cluster(binary, 3, 1);
    let destination = Server::start(binary, Options::new());
    let load = Mixed::new(2).on_cluster(&source);
    let setup = Setup::from_cluster(&source, &destination).exit_when("caught-up").args(&["--timeout", "3m"]);
    let run = setup.text("cutover", "hold_for", "8s").start();
    streaming(&run, 3);
    load.wait_more(1_000);
    // In order: nothing is lost, and the stream goes on behind the promoted replica.
    let promoted = source.fail_over(source.masters()[0]);
    load.wait_more(1_000);
    let at = source.node(promoted).address().to_string();
    run.wait_status(MINUTES, "all lines to stream again", |status| {
        status["sources"].as_array().unwrap().iter().all(|source| source["phase"] == "stream")
            && status["ready"] != serde_json::Value::Null
    });
    // By death: what its replica did not have is lost to everybody, the cluster's clients too.
    let victim = source.masters()[1];
    load.stop();
    run.wait_status(MINUTES, "everything of before applied", |status| {
        status["sources"].as_array().unwrap().iter().all(|source| source["lag_bytes"] == 0)
    });
    source.fail_over_by_death(victim);
    let load = Mixed::new(3).on_cluster(&source);
    load.wait_more(1_000);
    load.stop();
    run.wait_exit(MINUTES).expect(0, &["the source was promoted"]);
    assert_same(&source, &destination);
    assert!(!at.is_empty());
}

/// A master dies while its RDB is on its way, and another one is replaced in order while its RDB is being applied.
#[test]
fn masters_that_are_replaced_inside_their_rdb_are_followed() {
    let binary = require_server!();
    let mut source = cluster(binary, 3, 1);
    let destination = Server::start(binary, Options::new());
    let mut client = source.client();
    for number in 0..6_000 {
        client.ok(&["RPUSH", &format!("bulk:{number}"), "one", "two", &number.to_string()]);
    }
    let load = Mixed::new(8).per_second(1_000).on_cluster(&source);
    load.wait_more(500);
    let masters = source.masters();
    let (dies, goes) = (masters[0], masters[1]);
    let names = [dies, goes].map(|node| source.node(node).address().to_string());
    // Their children wait before each key: some 4 s.
    for node in [dies, goes] {
        source.client_of(node).ok(&["CONFIG", "SET", "rdb-key-save-delay", "2000"]);
    }
    let setup = Setup::from_cluster(&source, &destination).exit_when("caught-up").args(&["--timeout", "3m"]);
    let setup = setup.set("sync_reader", "full_sync_parallel", "3").text("cutover", "hold_for", "4s");
    let run = setup.start();
    run.wait_status(MINUTES, "a run", |status| status["state"].is_string());
    run.ctl(&["throttle", "--ops", "300"]).expect(0, &[]);
    let line = |status: &serde_json::Value, name: &str| {
        let lines = status["sources"].as_array().unwrap();
        lines.iter().find(|line| line["address"] == name).unwrap().clone()
    };
    run.wait_status(MINUTES, "a part of its RDB", |status| {
        line(status, &names[0])["rdb_bytes_received"].as_u64() > Some(5_000)
    });
    let saving = source.client_of(dies).info("persistence", "rdb_bgsave_in_progress");
    assert_eq!(saving.as_deref(), Some("1"), "the rest is not on its way any more");
    source.fail_over_by_death(dies);
    run.wait_status(MINUTES, "the other one's RDB received and a part applied", |status| {
        let line = line(status, &names[1]);
        line["rdb_bytes_received"] == line["rdb_bytes_total"] && line["keys_applied"].as_u64() > Some(100)
    });
    source.fail_over(goes);
    let line = line(&run.status_json(), &names[1]);
    assert!(
        line["rdb_bytes_applied"].as_u64() < line["rdb_bytes_total"].as_u64(),
        "all of it is applied: {line}"
    );
    run.ctl(&["throttle", "off"]).expect(0, &[]);
    streaming(&run, 3);
    load.wait_more(1_000);
    load.stop();
    run.wait_exit(MINUTES).expect(0, &["the RDB transfer", "the source was promoted", "0 quarantined"]);
    assert!(assert_same(&source, &destination).keys > 6_000);
}

/// Slots that move while they are copied: what two masters say of one key cannot be put in order, so both are copied again. Then a
/// master without slots gets some, and one loses all that it has.
/// It has answered at the start, and waits while another one is saved: its death then is a lost link like any other.
#[test]
fn a_master_that_dies_before_its_turn_is_waited_for() {
    let binary = require_server!();
    let mut source = cluster(binary, 3, 0);
    let destination = Server::start(binary, Options::new());
    let mut client = source.client();
    for n in 0..3_000 {
        client.ok(&["SET", &format!("key:{n}"), "x"]);
    }
    for node in 0..3 {
        let mut client = source.client_of(node);
        client.ok(&["SAVE"]);
        client.ok(&["CONFIG", "SET", "rdb-key-save-delay", "5000"]);
    }
    let setup = Setup::from_cluster(&source, &destination);
    let run = setup.start();
    let waits = |line: &&serde_json::Value| {
        line["reason"].as_str().is_some_and(|reason| reason.contains("waiting for its turn"))
    };
    let status = run.wait_status(MINUTES, "two of them wait for their turn", |status| {
        status["sources"].as_array().unwrap().iter().filter(waits).count() == 2
    });
    let waiting = status["sources"].as_array().unwrap().iter().find(waits).unwrap()["address"].clone();
    let dead = (0..3).find(|n| waiting == source.node(*n).address().to_string().as_str()).unwrap();
    source.kill(dead);
    for node in source.living() {
        source.client_of(node).ok(&["CONFIG", "SET", "rdb-key-save-delay", "0"]);
    }
    let phases = |status: &serde_json::Value| {
        let lines = status["sources"].as_array().unwrap().iter();
        lines.map(|line| (line["address"].clone(), line["phase"].clone())).collect::<Vec<_>>()
    };
    run.wait_status(MINUTES, "the others to stream, and the dead one to be tried again", |status| {
        phases(status).iter().all(|(address, phase)| match *address == waiting {
            true => *phase == "reconnecting",
            false => *phase == "stream",
        })
    });
    // The same for a process that finds it dead when it starts.
    let folder = run.folder();
    run.kill();
    let run = setup.start_in(folder);
    run.wait_status(MINUTES, "the dead one to be tried again", |status| {
        phases(status).iter().any(|(address, phase)| *address == waiting && *phase == "reconnecting")
    });
    source.restart(dead);
    streaming(&run, 3);
    run.wait_state("caught_up", MINUTES);
    assert_eq!(assert_same(&source, &destination).keys, 3_000);
}

#[test]
fn slots_that_move_in_mid_stream_lose_nothing() {
    let binary = require_server!();
    let layout = Layout::new(4, 0)
        .slots(&[&[0..=5_000], &[5_001..=10_000], &[10_001..=16_383], &[]])
        .full_coverage(false);
    let (source, destination) = (Cluster::start(binary, layout), Server::start(binary, Options::new()));
    let load = Mixed::new(7).per_second(2_000).on_cluster(&source);
    load.wait_more(2_000);
    let setup = Setup::from_cluster(&source, &destination);
    let mut run = setup.start();
    streaming(&run, 3);
    load.wait_more(1_000);
    source.reshard(0, 1, 0..200);
    run.wait_status(MINUTES, "the move to be seen", |status| {
        let gates = status["gates"].as_array().unwrap();
        gates.iter().any(|gate| gate["name"] == "slots" && gate["ok"] == false)
    });
    load.wait_more(1_000);
    // Killed while two masters are copied again, it begins that again.
    let folder = run.folder();
    run.kill();
    run = setup.start_in(folder);
    settled(&run, &[5_001 - 200, 5_000 + 200, 6_383], 3);
    load.wait_more(1_000);
    source.reshard(1, 3, 5_001..5_300);
    settled(&run, &[4_801, 5_200 - 299, 6_383, 299], 4);
    load.wait_more(1_000);
    source.reshard(3, 1, 5_001..5_300);
    settled(&run, &[4_801, 5_200, 6_383], 4);
    load.wait_more(1_000);
    load.stop();
    let folder = run.folder();
    run.kill();
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["caught up"]);
    assert!(assert_same(&source, &destination).keys > 500);
}

/// Until the lines have so many slots each, as noted on disk, and all of them stream or are drained.
fn settled(run: &Shakedeck, slots: &[u32], lines: usize) {
    run.wait_status(MINUTES, "the slots at rest", |status| {
        let noted = std::fs::read_to_string(run.data().join("shards.json")).unwrap();
        let noted: serde_json::Value = serde_json::from_str(&noted).unwrap();
        let count = |shard: &serde_json::Value| -> u64 {
            let ranges = shard["slots"].as_array().unwrap();
            ranges.iter().map(|range| range[1].as_u64().unwrap() - range[0].as_u64().unwrap() + 1).sum()
        };
        let mut counts: Vec<u32> = noted["shards"]
            .as_array()
            .unwrap()
            .iter()
            .map(count)
            .map(|count| count as u32)
            .filter(|count| *count > 0)
            .collect();
        counts.sort_unstable();
        let mut wanted = slots.to_vec();
        wanted.sort_unstable();
        let sources = status["sources"].as_array().unwrap();
        counts == wanted
            && sources.len() == lines
            && sources.iter().all(|source| source["phase"] == "stream" || source["phase"] == "drained")
            && status["gates"]
                .as_array()
                .unwrap()
                .iter()
                .all(|gate| gate["name"] != "slots" || gate["ok"] == true)
    });
}

/// What an operator may get wrong.
#[test]
fn a_cluster_that_is_none_and_one_that_cannot_be_reached_are_said_so() {
    let binary = require_server!();
    let (server, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    let setup = Setup::new(&server, &destination).set("sync_reader", "cluster", "true");
    setup.start().wait_exit(MINUTES).expect(3, &["standalone", "cluster = false"]);
    let nobody = Setup::bare("127.0.0.1:1", &destination.address().to_string());
    let nobody = nobody.set("sync_reader", "cluster", "true");
    nobody.start().wait_exit(MINUTES).expect(3, &["127.0.0.1:1", "cannot connect"]);
}

/// A node that has forgotten its cluster says that it is alone and has no slots. Nobody believes it: nothing is removed, nothing ends.
#[test]
fn a_node_that_has_lost_its_cluster_is_not_believed() {
    let binary = require_server!();
    let (mut source, destination) = (cluster(binary, 3, 0), Server::start(binary, Options::new()));
    let mut client = source.client();
    (0..3_000).for_each(|n| drop(client.ok(&["SET", &format!("key:{n}"), "x"])));
    let setup = Setup::from_cluster(&source, &destination);
    let run = setup.start();
    streaming(&run, 3);
    run.wait_state("caught_up", MINUTES);
    // The one that is asked first; it comes back without data and without cluster.
    source.kill(0);
    std::fs::remove_file(source.node_folder(0).join("nodes.conf")).unwrap();
    source.restart(0);
    let told = "reconnecting";
    run.wait_status(MINUTES, "why it is not ready", |status| status["not_ready"].to_string().contains(told));
    let folder = run.folder();
    run.kill();
    // A start meets the same, and a write of another master still arrives.
    let run = setup.start_in(folder);
    run.wait_status(MINUTES, "why it is not ready", |status| status["not_ready"].to_string().contains(told));
    let mut other = source.client_of(1);
    let of_other = |key: &String| (5_461..10_922).contains(&slot_of(key.as_bytes()));
    let key = (0..).map(|n| format!("later:{n}")).find(of_other).unwrap();
    other.ok(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    wait_until(MINUTES, "the other master takes writes", || {
        !matches!(other.cmd(&["SET", &key, "x"]), Reply::Error(_))
    });
    let mut there = destination.client();
    wait_until(MINUTES, "a write of another master", || there.integer(&["EXISTS", &key]) == 1);
    assert_eq!(keys_like(&mut there, "key:*").len(), 3_000, "keys were removed");
    assert!(!run.output().contains("are removed"), "{}", run.output());
}

/// The master that is asked first gives its slots away and leaves the cluster: its keys come from the others.
#[test]
fn the_first_master_is_taken_out_of_the_cluster() {
    let binary = require_server!();
    let (mut source, destination) = (cluster(binary, 3, 0), Server::start(binary, Options::new()));
    let load = Mixed::new(7).per_second(500).on_cluster(&source);
    load.wait_more(2_000);
    let run = Setup::from_cluster(&source, &destination).start();
    streaming(&run, 3);
    source.reshard(0, 1, 0..5_461);
    // As redis-cli takes it out: the others forget it, and it forgets them; it still answers.
    source.expel_node(0);
    load.wait_more(500);
    load.stop();
    wait_until(MINUTES, "the slots are at rest", || run.output().contains("are at rest"));
    wait_until(MINUTES, "both sides are equal", || same(&source, &destination).is_ok());
    run.wait_state("caught_up", MINUTES);
    assert_same(&source, &destination);
    assert_eq!(run.output().matches("is no source any more").count(), 1, "{}", run.output());
    // Its line has ended, and its writer with it: neither is waited for.
    run.ctl(&["pause", "--wait"]).expect(0, &["paused"]);
    run.ctl(&["resume", "--wait"]).expect(0, &[]);
    run.wait_status(MINUTES, "ready", |status| status["ready"] == true);
    run.ctl(&["cutover", "--yes-i-mean", &destination.address().to_string()]).expect(0, &["switched"]);
}
