//! A destination that refuses payloads which by its version it should take: it pretends to be another version, or tells none.
//! Every value must arrive all the same, by commands, also when the answer is lost or the process is killed in between.

use std::net::SocketAddr;
use std::time::Duration;

use crate::large_values::{expect_expanded, that_expands};
use crate::support;
use crate::support::cluster_client::slot_of;
use crate::support::everything::assert_same;
use crate::support::fake_source::{FakeSource, Snapshot};
use crate::support::relay::{At, Relay};
use crate::support::shakedeck::Setup;
use crate::support::{Cluster, Layout, Options, Server, ServerBinary, compare, dataset};

const MINUTES: Duration = Duration::from_secs(120);

/// A server, and a relay through which it seems to be a newer one, whose payloads it refuses.
fn pretender(binary: &ServerBinary) -> (Server, Relay) {
    let server = Server::start(binary, Options::new());
    let relay = pretends(binary, server.address());
    (server, relay)
}

fn pretends(binary: &ServerBinary, server: SocketAddr) -> Relay {
    let relay = Relay::start(server);
    let (major, minor, patch) = binary.version;
    assert_eq!((major, minor), (7, 0), "the lie is made for Redis 7.0");
    relay
        .lies(&format!("redis_version:{major}.{minor}.{patch}"), &format!("redis_version:{major}.2.{patch}"));
    relay
}

fn redis_7_0() -> Option<&'static ServerBinary> {
    let found = support::servers::all().iter().find(|binary| {
        binary.flavor == support::Flavor::Redis && (binary.version.0, binary.version.1) == (7, 0)
    });
    if found.is_none() {
        support::skip(
            "no Redis 7.0: only one whose RDB version is lower than that of its neighbour can pretend",
        );
    }
    found
}

fn setup(source: &Server, relay: &Relay) -> Setup {
    Setup::bare(&source.address().to_string(), &relay.address().to_string()).set(
        "sync_reader",
        "sync_aof",
        "false",
    )
}

/// The size of the source: enough for several batches.
const KEYS: u64 = 6_000;

#[test]
fn every_refused_value_is_rebuilt_and_the_rest_goes_by_commands() {
    let Some(binary) = redis_7_0() else { return };
    let source = Server::start(binary, Options::new());
    dataset::fill(&mut source.client(), KEYS, 1);
    let (destination, relay) = pretender(binary);
    for behavior in ["panic", "rewrite", "skip"] {
        destination.client().ok(&["FLUSHALL"]);
        let run = setup(&source, &relay).text("advanced", "rdb_restore_command_behavior", behavior).start();
        let folder = run.folder();
        run.wait_exit(MINUTES)
            .expect(0, &["RESTORE of", "was refused", "rebuilt by commands", "from now on"]);
        compare::assert_equal(&source, &destination);
        assert!(!folder.path().join("data/quarantine.jsonl").exists(), "{behavior}: something was set aside");
        assert_eq!(
            support::client::keys_like(&mut destination.client(), "shakedeck:*").len(),
            0,
            "{behavior}"
        );
    }
}

/// Killed when the destination has applied the batch and its answer, which says what was refused, has not been read.
#[test]
fn a_kill_before_the_answer_loses_nothing() {
    let Some(binary) = redis_7_0() else { return };
    let source = Server::start(binary, Options::new());
    dataset::fill(&mut source.client(), KEYS, 2);
    let (destination, relay) = pretender(binary);
    for behavior in ["panic", "rewrite"] {
        destination.client().ok(&["FLUSHALL"]);
        let setup = setup(&source, &relay).text("advanced", "rdb_restore_command_behavior", behavior);
        relay.trap("DUMP payload version", At::Hold);
        let run = setup.start();
        support::wait_until(MINUTES, "a refused RESTORE", || relay.sprung());
        let folder = run.folder();
        run.kill();
        setup.start_in(folder).wait_exit(MINUTES).expect(0, &["rebuilt by commands"]);
        compare::assert_equal(&source, &destination);
    }
}

/// The connection breaks instead: the writer has to find out by itself what was refused.
#[test]
fn a_cut_before_the_answer_loses_nothing() {
    let Some(binary) = redis_7_0() else { return };
    let source = Server::start(binary, Options::new());
    dataset::fill(&mut source.client(), KEYS, 3);
    let (destination, relay) = pretender(binary);
    for behavior in ["panic", "rewrite", "skip"] {
        destination.client().ok(&["FLUSHALL"]);
        relay.trap("DUMP payload version", At::Cut);
        let run = setup(&source, &relay).text("advanced", "rdb_restore_command_behavior", behavior).start();
        run.wait_exit(MINUTES).expect(0, &["connected again", "rebuilt by commands"]);
        assert!(relay.sprung());
        compare::assert_equal(&source, &destination);
    }
}

/// A large value is on its way in several batches while others are refused: none disturbs the other.
#[test]
fn a_large_value_under_construction_is_left_alone() {
    let Some(binary) = redis_7_0() else { return };
    let source = Server::start(binary, Options::new());
    let mut client = source.client();
    for large in 0..3 {
        for part in 0..120 {
            let mut command = vec!["RPUSH".to_owned(), format!("large:{large}")];
            command.extend((0..1_000).map(|item| format!("{part}:{item}:{}", "x".repeat(80))));
            client.push(&command);
        }
        client.flush(120);
        (0..50).for_each(|n| {
            client.push(&["HSET".to_owned(), format!("hash:{large}:{n}"), "f".into(), n.to_string()])
        });
        client.flush(50);
    }
    let (destination, relay) = pretender(binary);
    setup(&source, &relay).start().wait_exit(MINUTES).expect(0, &["rebuilt by commands"]);
    compare::assert_equal(&source, &destination);
}

/// By commands it is as long as ever, and the program never holds all of them.
#[test]
fn a_value_that_expands_is_rebuilt_in_pieces() {
    let Some(binary) = redis_7_0() else { return };
    let source = FakeSource::start(vec![Snapshot::whole(that_expands())]);
    let (destination, relay) = pretender(binary);
    let run = Setup::bare(&source.address().to_string(), &relay.address().to_string()).start();
    run.wait_state("caught_up", MINUTES);
    assert!(run.output().contains("rebuilt by commands"), "{}", run.output());
    assert!(run.peak_bytes() < 80 << 20, "{} MiB resident at the peak", run.peak_bytes() >> 20);
    expect_expanded(&mut destination.client());
    let left = support::client::keys_like(&mut destination.client(), "shakedeck:rebuilding:*");
    assert!(left.is_empty(), "{left:?}");
}

/// A cluster whose nodes are behind relays through which they seem to be newer ones, and what the setup must say of it.
fn pretending_cluster(binary: &ServerBinary) -> (Cluster, Vec<Relay>, String) {
    let cluster = Cluster::start(binary, Layout::new(3, 0));
    let relays: Vec<Relay> = cluster.addresses().into_iter().map(|node| pretends(binary, node)).collect();
    let map = cluster.addresses().into_iter().zip(&relays);
    let map: Vec<String> = map.map(|(node, relay)| format!("\"{node}\" = \"{}\"", relay.address())).collect();
    (cluster, relays, format!("{{ {} }}", map.join(", ")))
}

#[test]
fn a_cluster_gets_every_refused_value_by_commands() {
    let Some(binary) = redis_7_0() else { return };
    let source = Server::start(binary, Options::new());
    let mut client = source.client();
    for n in 0..400 {
        let commands = [
            format!("RPUSH list:{n} 1 {n}"),
            format!("HSET hash:{n} f {n}"),
            format!("ZADD zset:{n} {n}.5 m"),
            format!("XADD stream:{n} 1-{n} f v"),
            format!("XGROUP CREATE stream:{n} g 0"),
            format!("SADD set:{n} a {n}"),
            format!("PEXPIRE set:{n} {}", if n % 2 == 0 { 1 } else { 9_000_000 }),
        ];
        commands.iter().for_each(|line| client.push(&line.split(' ').collect::<Vec<_>>()));
        client.flush(commands.len());
    }
    let (destination, relays, map) = pretending_cluster(binary);
    for behavior in ["panic", "rewrite", "skip"] {
        destination.masters().into_iter().for_each(|node| _ = destination.client_of(node).ok(&["FLUSHALL"]));
        let run = setup(&source, &relays[0])
            .set("redis_writer", "cluster", "true")
            .set("redis_writer", "address_map", &map)
            .text("advanced", "rdb_restore_command_behavior", behavior)
            .start();
        run.wait_exit(MINUTES).expect(0, &["was refused", "rebuilt by commands", "0 quarantined"]);
        assert!(assert_same(&source, &destination).keys >= 4 * 400 + 200, "{behavior}");
        assert!(destination.client().keys_like("shakedeck:*").is_empty());
    }
}

/// Its slot is on its way: where a value is to be built nobody serves a new key. It waits, and the others do not.
#[test]
fn a_refused_value_waits_for_its_slot() {
    let Some(binary) = redis_7_0() else { return };
    let source = Server::start(binary, Options::new());
    let mut client = source.client();
    (0..100).for_each(|n| _ = client.integer(&["RPUSH", &format!("list:{n}"), "1", "2"]));
    let (destination, relays, map) = pretending_cluster(binary);
    let slot = slot_of(b"list:7");
    let from = destination.owner(slot);
    let to = (from + 1) % 3;
    destination.begin_move(from, to, slot);
    let run = Setup::bare(&source.address().to_string(), &relays[0].address().to_string())
        .set("redis_writer", "cluster", "true")
        .set("redis_writer", "address_map", &map)
        .start();
    support::wait_until(MINUTES, "all others", || destination.client().keys_like("list:*").len() == 99);
    support::wait_until(MINUTES, "why it waits", || run.output().contains(&format!("slot {slot}: ASK")));
    assert!(!run.output().contains("looking where to go on"), "{}", run.output());
    destination.finish_move(from, to, slot);
    run.wait_state("caught_up", MINUTES);
    assert_eq!(assert_same(&source, &destination).keys, 100);
}

#[test]
fn a_value_that_expands_is_rebuilt_in_pieces_in_a_cluster() {
    let Some(binary) = redis_7_0() else { return };
    let source = FakeSource::start(vec![Snapshot::whole(that_expands())]);
    let (destination, relays, map) = pretending_cluster(binary);
    let run = Setup::bare(&source.address().to_string(), &relays[0].address().to_string())
        .set("redis_writer", "cluster", "true")
        .set("redis_writer", "address_map", &map)
        .start();
    run.wait_state("caught_up", MINUTES);
    assert!(run.output().contains("rebuilt by commands"), "{}", run.output());
    assert!(run.peak_bytes() < 80 << 20, "{} MiB resident at the peak", run.peak_bytes() >> 20);
    expect_expanded(&mut destination.client_of(destination.owner(slot_of(b"value"))));
    assert!(destination.client().keys_like("shakedeck:rebuilding:*").is_empty());
}

/// Whoever removes what is built between two pieces (an eviction does, too) does not get half a value presented as whole.
#[test]
fn a_rebuilt_value_that_is_removed_meanwhile_is_set_aside() {
    let Some(binary) = redis_7_0() else { return };
    let source = FakeSource::start(vec![Snapshot::whole(that_expands())]);
    let (destination, relay) = pretender(binary);
    let run = Setup::bare(&source.address().to_string(), &relay.address().to_string()).start();
    let mut client = destination.client();
    support::wait_until(MINUTES, "the removal of a part", || {
        let building = support::client::keys_like(&mut client, "shakedeck:rebuilding:*");
        building
            .iter()
            .any(|key| client.integer(&[&b"LLEN"[..], key]) < 100 && client.integer(&[&b"DEL"[..], key]) == 1)
    });
    run.wait_status(MINUTES, "it in quarantine", |status| status["counters"]["quarantined"] == 1);
    assert!(run.output().contains("and by commands: the file holds 150 elements, but"), "{}", run.output());
    assert_eq!(client.integer(&["EXISTS", "value"]), 0);
}

const WITHOUT_INFO: &str = "mover on >secret ~* &* +@all -@admin -@dangerous +restore +flushall +flushdb +swapdb +function +script +eval +evalsha +sort -info +client +select +multi +exec";

/// A full destination refuses everything, which says nothing about its version: it is waited for.
#[test]
fn a_trial_waits_for_a_state_that_passes() {
    let Some(binary) = redis_7_0() else { return };
    let source = Server::start(binary, Options::new());
    dataset::fill(&mut source.client(), 500, 5);
    let destination = Server::start(binary, Options::new().user(WITHOUT_INFO));
    destination.client().ok(&["CONFIG", "SET", "maxmemory", "1"]);
    let run = Setup::bare(&source.address().to_string(), &destination.address().to_string())
        .set("sync_reader", "sync_aof", "false")
        .text("redis_writer", "username", "mover")
        .text("redis_writer", "password", "secret")
        .start();
    run.wait_status(MINUTES, "the reason", |status| {
        let reason = status["destinations"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("OOM") && reason.contains("raise 'maxmemory'")
    });
    destination.client().ok(&["CONFIG", "SET", "maxmemory", "0"]);
    run.wait_exit(MINUTES).expect(0, &["out of memory", "RDB version 10 and 16 of 24 types"]);
    compare::assert_equal(&source, &destination);
}

/// What the trial finds on every server at hand is what is known about it.
#[test]
fn a_destination_that_hides_its_version_is_tried_out() {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    };
    let source = Server::start(binary, Options::new());
    dataset::fill(&mut source.client(), 3_000, 4);
    for binary in support::servers::modern().filter(|binary| binary.version >= (7, 0, 0)) {
        let destination = Server::start(binary, Options::new().user(WITHOUT_INFO));
        let setup = Setup::bare(&source.address().to_string(), &destination.address().to_string())
            .set("sync_reader", "sync_aof", "false")
            .text("redis_writer", "username", "mover")
            .text("redis_writer", "password", "secret");
        let exit = setup.start().wait_exit(MINUTES);
        // Types that were tried (24 of them; servers with the types of 8.8 are not at hand, and module values are not tried) and the newest version.
        let (version, types) = match (binary.flavor, binary.version) {
            (support::Flavor::Valkey, (9.., _, _)) => (80, 19),
            (support::Flavor::Valkey, _) => (11, 18),
            (_, (8, 5.., _)) => (13, 21),
            (_, (8, ..) | (7, 4.., _)) => (12, 20),
            (_, (7, 2.., _)) => (11, 18),
            _ => (10, 16),
        };
        exit.expect(0, &["+info", &format!("RDB version {version} and {types} of 24 types")]);
        compare::assert_equal(&source, &destination);
        assert_eq!(support::client::keys_like(&mut destination.client(), "shakedeck:*").len(), 0);
    }
}
