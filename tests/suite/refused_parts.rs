//! A destination that refuses one of the commands of a value for good: the value is set aside as a whole, once, and nothing of it
//! stands there under its name; whether it is built by one batch or by several, before it runs or when it runs.

use std::path::Path;
use std::time::Duration;

use crate::quarantine::quarantine;
use crate::require_server;
use crate::support;
use crate::support::cluster::{Cluster, Layout};
use crate::support::rdb_file::{key, rdb, string};
use crate::support::relay::{At, Relay};
use crate::support::shakedeck::Setup;
use crate::support::{Client, Options, Reply, Server, compare};
use serde_json::Value;
use shakedeck::rdb::types;

const MINUTES: Duration = Duration::from_secs(300);
/// Elements of a value that is built in several batches: by commands each takes more than 100 bytes, together more than may be held
/// (8 MiB).
const COUNT: usize = 90_000;

fn without_groups() -> Options {
    Options::new().config("rename-command", "XGROUP \"\"")
}

/// Streams with a group each, and values that nobody refuses.
fn fill(client: &mut Client, large: bool) {
    let stream = |client: &mut Client, key: &str, count: usize, text: &str| {
        let add =
            format!("for i = 1, {count} do redis.call('XADD', KEYS[1], i .. '-1', 'f', {text}) end return 1");
        assert_eq!(client.integer(&["EVAL", &add, "1", key]), 1);
        client.ok(&["XGROUP", "CREATE", key, "group", "0"]);
    };
    stream(client, "small", 3, "'v'");
    if large {
        // Packed to little in the file.
        stream(client, "large", COUNT, "string.rep('x', 100)");
        stream(
            client,
            "too large",
            COUNT,
            "redis.sha1hex(i) .. redis.sha1hex(-i) .. redis.sha1hex(i + 0.5) .. redis.sha1hex(-i - 0.5)",
        );
    }
    client.integer(&["RPUSH", "list", "1", "2"]);
    client.ok(&["SET", "string", "whole"]);
}

/// What is in quarantine.
fn set_aside(folder: &Path) -> Vec<Value> {
    let lines = std::fs::read_to_string(folder.join("data/quarantine.jsonl")).unwrap_or_default();
    let mut entries: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    entries.sort_by_key(|entry| entry["key"].to_string());
    entries
}

#[track_caller]
fn expect_set_aside(folder: &Path, expected: &[(&str, &str, bool)]) {
    let entries = set_aside(folder);
    let keys: Vec<&str> = entries.iter().map(|entry| entry["key"].as_str().unwrap()).collect();
    assert_eq!(keys, expected.iter().map(|(key, ..)| *key).collect::<Vec<_>>(), "{entries:?}");
    for (entry, (key, reason, kept)) in entries.iter().zip(expected) {
        assert!(entry["reason"].as_str().unwrap().contains(reason), "{key}: {}", entry["reason"]);
        assert_eq!(!entry["command_hex"].as_str().unwrap().is_empty(), *kept, "{key}");
    }
}

fn by_commands(setup: Setup) -> Setup {
    setup.set("advanced", "target_redis_proto_max_bulk_len", "0").set("sync_reader", "sync_aof", "false")
}

#[track_caller]
fn nothing_is_left_of_the_building(client: &mut Client) {
    let left = support::client::keys_like(client, "shakedeck:*");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_value_of_one_batch_is_set_aside_as_a_whole() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new());
    fill(&mut source.client(), false);
    let destination = Server::start(binary, without_groups());
    let mut client = destination.client();
    for behavior in ["rewrite", "skip", "panic"] {
        client.ok(&["FLUSHALL"]);
        if behavior == "rewrite" {
            client.ok(&["SET", "small", "before"]);
        }
        let setup = by_commands(Setup::new(&source, &destination));
        let run = setup.text("advanced", "rdb_restore_command_behavior", behavior).start();
        let folder = run.folder();
        run.wait_exit(MINUTES)
            .expect(5, &["key 'small' cannot be copied: XGROUP ->", "1 entries are in quarantine"]);
        expect_set_aside(folder.path(), &[("small", "unknown command", true)]);
        // It has not even taken the place of what was there.
        let before = client.bytes(&["GET", "small"]);
        assert_eq!(before.as_deref(), (behavior == "rewrite").then_some(&b"before"[..]), "{behavior}");
        assert_eq!(client.integer(&["LLEN", "list"]), 2);
        assert_eq!(client.text(&["GET", "string"]), "whole");
        nothing_is_left_of_the_building(&mut client);
        if behavior == "panic" {
            // A RESTORE, which needs no command for the group.
            quarantine(folder.path(), &["replay", "shake.toml"]).expect(0, &["1 entries accepted"]);
            compare::assert_equal(&source, &destination);
        }
    }
    client.ok(&["FLUSHALL"]);
    let setup = by_commands(Setup::new(&source, &destination)).text("policy", "on_bad_value", "stop");
    setup.start().wait_exit(MINUTES).expect(4, &["XGROUP of key 'small' was refused", "on_bad_value"]);
    assert_eq!(client.integer(&["EXISTS", "small"]), 0);
}

/// Killed while one is built, too.
#[test]
fn a_value_of_several_batches_gets_no_name() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new());
    fill(&mut source.client(), true);
    let destination = Server::start(binary, without_groups());
    let mut client = destination.client();
    let setup = by_commands(Setup::new(&source, &destination));
    let run = setup.start();
    support::wait_until(MINUTES, "the building of a value", || {
        !support::client::keys_like(&mut destination.client(), "shakedeck:building:*").is_empty()
    });
    let folder = run.folder();
    run.kill();
    assert_eq!(client.integer(&["EXISTS", "large", "too large"]), 0);
    setup.start_in(folder.clone()).wait_exit(MINUTES).expect(5, &["3 entries are in quarantine"]);
    let expected = [
        ("large", "XGROUP was refused: ERR unknown command", true),
        ("small", "unknown command", true),
        ("too large", "read in pieces is not kept here: copy the key from the source", false),
    ];
    expect_set_aside(folder.path(), &expected);
    assert_eq!(client.integer(&["EXISTS", "small", "large", "too large"]), 0);
    assert_eq!((client.integer(&["LLEN", "list"]), client.integer(&["DBSIZE"])), (2, 2));
    quarantine(folder.path(), &["replay", "shake.toml"]).expect(5, &["2 entries accepted"]);
    assert_eq!(client.integer(&["XLEN", "large"]), COUNT as i64);
    client.ok(&["FLUSHALL"]);
    let run = setup.text("policy", "on_bad_value", "stop").start();
    let exit = run.wait_exit(MINUTES);
    assert!([3, 4].contains(&exit.code.unwrap()), "{}", exit.output);
    assert!(exit.output.contains("on_bad_value = \"stop\""), "{}", exit.output);
    assert_eq!(client.integer(&["EXISTS", "small", "large", "too large"]), 0);
}

/// A stream with a group that has read more than can be counted: only when XGROUP runs is it refused.
fn refused_when_it_runs(server: &Server, name: &str) -> Vec<u8> {
    let mut client = server.client();
    client.bytes(&["XADD", "made", "1-1", "f", "v"]);
    client.ok(&["XGROUP", "CREATE", "made", "group", "0", "ENTRIESREAD", "77777"]);
    let value = client.bytes(&["DUMP", "made"]).unwrap();
    client.integer(&["DEL", "made"]);
    let value = &value[..value.len() - 10];
    let read = support::rdb_file::length(77_777);
    let at = value.windows(read.len()).position(|window| window == read).unwrap();
    let too_many = [b"\x81", &(1u64 << 63 | 1).to_be_bytes()[..]].concat();
    [&value[..1], &string(name.as_bytes()), &value[1..at], &too_many, &value[at + read.len()..]].concat()
}

fn list(count: usize) -> Vec<u8> {
    let item = |index| string(format!("{index:0>100}").as_bytes());
    key(types::LIST, "list", &(0..count).map(item).collect::<Vec<_>>())
}

/// Behind it, in the same batch, another value begins that is built under the same key.
#[test]
fn a_part_that_is_refused_when_it_runs_takes_the_value_along() {
    let binary = require_server!();
    let destination = Server::start(binary, Options::new());
    let relay = Relay::start(destination.address());
    let mut client = destination.client();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("made.rdb");
    let broken = |name: &str| refused_when_it_runs(&destination, name);
    let records = [broken("broken"), list(COUNT), broken("other")];
    std::fs::write(&file, rdb("REDIS0010", &records.each_ref().map(Vec::as_slice))).unwrap();
    let setup = |behavior: &str| {
        Setup::from_file(&file, &relay.address().to_string())
            .set("advanced", "target_redis_proto_max_bulk_len", "0")
            .text("advanced", "rdb_restore_command_behavior", behavior)
    };
    for (behavior, trap) in
        [("rewrite", None), ("skip", None), ("rewrite", Some(At::Cut)), ("panic", Some(At::Hold))]
    {
        client.ok(&["FLUSHALL"]);
        if let Some(at) = trap {
            relay.trap("value is not an integer", at);
        }
        let mut run = setup(behavior).start();
        let folder = run.folder();
        if let Some(at) = trap {
            support::wait_until(MINUTES, "the refusal", || relay.sprung());
            if at == At::Hold {
                run.kill();
                run = setup(behavior).start_in(folder.clone());
            }
        }
        run.wait_exit(MINUTES)
            .expect(5, &["key 'broken' cannot be copied: XGROUP ->", "2 entries are in quarantine"]);
        expect_set_aside(
            folder.path(),
            &[("broken", "not an integer", true), ("other", "not an integer", true)],
        );
        assert_eq!(client.integer(&["EXISTS", "broken", "other"]), 0, "{behavior} {trap:?}");
        assert_eq!(client.integer(&["LLEN", "list"]), COUNT as i64, "{behavior} {trap:?}");
        nothing_is_left_of_the_building(&mut client);
    }
    client.ok(&["FLUSHALL"]);
    let run = setup("rewrite").text("policy", "on_bad_value", "stop").start();
    run.wait_exit(MINUTES).expect(4, &["XGROUP of key 'broken' was refused", "on_bad_value"]);
    assert_eq!(client.integer(&["EXISTS", "broken"]), 0);
}

/// Begun again, keys that stand on the destination would be taken for ours and be replaced.
#[test]
fn keys_of_others_outlive_lost_answers() {
    let binary = require_server!();
    let destination = Server::start(binary, Options::new());
    let relay = Relay::start(destination.address());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("made.rdb");
    let records = [refused_when_it_runs(&destination, "broken"), list(5)];
    std::fs::write(&file, rdb("REDIS0010", &records.each_ref().map(Vec::as_slice))).unwrap();
    let mut client = destination.client();
    client.ok(&["SET", "list", "of somebody else"]);
    relay.trap("value is not an integer", At::Cut);
    let run = Setup::from_file(&file, &relay.address().to_string())
        .set("advanced", "target_redis_proto_max_bulk_len", "0")
        .text("advanced", "rdb_restore_command_behavior", "skip")
        .start();
    let exit = run.wait_exit(MINUTES);
    assert!(relay.sprung());
    assert_eq!(
        client.text(&["TYPE", "list"]),
        "string",
        "a key of somebody else was replaced: {}",
        exit.output
    );
    exit.expect(0, &["the answers to commands that build values were lost"]);
    assert_eq!(client.text(&["GET", "list"]), "of somebody else");
}

#[test]
fn a_cluster_gets_no_part_of_a_value_either() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new());
    fill(&mut source.client(), true);
    let destination = Cluster::start(binary, Layout::new(3, 0).options(without_groups()));
    let mut client = destination.client();
    let setup = by_commands(Setup::to_cluster(&source, &destination));
    for behavior in ["rewrite", "panic"] {
        destination.masters().into_iter().for_each(|node| _ = destination.client_of(node).ok(&["FLUSHALL"]));
        let run = setup.clone().text("advanced", "rdb_restore_command_behavior", behavior).start();
        let folder = run.folder();
        run.wait_exit(MINUTES).expect(5, &["3 entries are in quarantine"]);
        let expected = [
            ("large", "XGROUP was refused: ERR unknown command", true),
            ("small", "unknown command", true),
            ("too large", "is not kept here: copy the key from the source", false),
        ];
        expect_set_aside(folder.path(), &expected);
        for key in ["small", "large", "too large"] {
            assert_eq!(client.call(&["EXISTS", key]), Reply::Integer(0), "{behavior}: {key}");
        }
        assert_eq!(client.call(&["LLEN", "list"]), Reply::Integer(2));
        assert!(client.keys_like("shakedeck:*").is_empty());
    }
}

#[test]
fn a_cluster_gets_no_part_of_a_value_that_is_refused_when_it_runs() {
    let binary = require_server!();
    let maker = Server::start(binary, Options::new());
    let destination = Cluster::start(binary, Layout::new(3, 0));
    let mut client = destination.client();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("made.rdb");
    // In one slot.
    let broken = |name: &str| refused_when_it_runs(&maker, name);
    let records = [broken("{list}broken"), list(COUNT), broken("{list}other")];
    std::fs::write(&file, rdb("REDIS0010", &records.each_ref().map(Vec::as_slice))).unwrap();
    let setup = Setup::from_file(&file, &destination.address().to_string())
        .set("redis_writer", "cluster", "true")
        .set("advanced", "target_redis_proto_max_bulk_len", "0");
    for (behavior, policy) in [("rewrite", "quarantine"), ("panic", "quarantine"), ("rewrite", "stop")] {
        destination.masters().into_iter().for_each(|node| _ = destination.client_of(node).ok(&["FLUSHALL"]));
        let setup = setup.clone().text("advanced", "rdb_restore_command_behavior", behavior);
        let run = setup.text("policy", "on_bad_value", policy).start();
        let folder = run.folder();
        let exit = run.wait_exit(MINUTES);
        for key in ["{list}broken", "{list}other"] {
            assert_eq!(client.call(&["EXISTS", key]), Reply::Integer(0), "{behavior}: {key}");
        }
        if policy == "stop" {
            exit.expect(4, &["XGROUP of key '{list}broken' was refused", "on_bad_value"]);
            continue;
        }
        exit.expect(5, &["2 entries are in quarantine"]);
        expect_set_aside(
            folder.path(),
            &[("{list}broken", "not an integer", true), ("{list}other", "not an integer", true)],
        );
        assert_eq!(client.call(&["LLEN", "list"]), Reply::Integer(COUNT as i64), "{behavior}");
        assert!(client.keys_like("shakedeck:*").is_empty());
    }
}
