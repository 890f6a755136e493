//! A destination that refuses payloads which by its version it should take: it pretends to be another version, or tells none.
//! Every value must arrive all the same, by commands, also when the answer is lost or the process is killed in between.

use std::time::Duration;

use crate::support;
use crate::support::relay::{At, Relay};
use crate::support::shakedeck::Setup;
use crate::support::{Options, Server, ServerBinary, compare, dataset};

const MINUTES: Duration = Duration::from_secs(120);

/// A server, and a relay through which it seems to be a newer one, whose payloads it refuses.
fn pretender(binary: &ServerBinary) -> (Server, Relay) {
    let server = Server::start(binary, Options::new());
    let relay = Relay::start(server.address());
    let (major, minor, patch) = binary.version;
    assert_eq!((major, minor), (7, 0), "the lie is made for Redis 7.0");
    relay
        .lies(&format!("redis_version:{major}.{minor}.{patch}"), &format!("redis_version:{major}.2.{patch}"));
    (server, relay)
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
