//! What the destination refused is set aside, survives a crash, can be listed, and can be sent again.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::require_server;
use crate::support::cluster_client::slot_of;
use crate::support::shakedeck::{Setup, binary};
use crate::support::{Cluster, Exit, Layout, Options, Reply, Server, Shakedeck};

const MINUTES: Duration = Duration::from_secs(120);

/// `shakedeck quarantine …` in the directory of a run.
pub fn quarantine(folder: &Path, words: &[&str]) -> Exit {
    let output = Command::new(binary())
        .arg("quarantine")
        .args(words)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Exit { code: output.status.code(), output: text }
}

#[test]
fn refused_entries_are_listed_and_sent_again_in_order() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new());
    let destination = Server::start(binary, Options::new());
    let (mut from, mut to) = (source.client(), destination.client());
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");

    // Somebody else has keys of another type there.
    to.ok(&["SET", "first", "a string"]);
    to.ok(&["SELECT", "3"]);
    to.ok(&["SET", "second", "a string"]);
    for line in ["RPUSH first 1", "SELECT 3", "RPUSH second 9", "SELECT 0", "RPUSH first 2", "SET fine v"] {
        from.ok(&line.split(' ').collect::<Vec<_>>());
    }
    run.wait_status(MINUTES, "three refused entries", |status| status["counters"]["quarantined"] == 3);
    let (folder, pid) = (run.folder(), run.pid());
    quarantine(folder.path(), &["list"]).expect(5, &["RPUSH", "WRONGTYPE", "second"]);
    quarantine(folder.path(), &["replay", "shake.toml"]).expect(8, &["in use", &format!("pid {pid}")]);
    run.kill();

    // The count outlives the process.
    let run = setup.start_in(folder.clone());
    run.wait_status(MINUTES, "the count of before", |status| {
        status["sources"][0]["phase"] == "stream" && status["counters"]["quarantined"] == 3
    });
    // So does that nobody has read of them, until somebody does.
    let first_reason = "1 unread error";
    let unread = |run: &Shakedeck, unread: u64| {
        run.wait_status(MINUTES, "unread or not", |status| status["unread_errors"] == unread);
    };
    unread(&run, 1);
    assert!(run.status_json()["not_ready"].to_string().contains(first_reason));
    assert!(run.output().contains("3 entries of a former run are in quarantine"), "{}", run.output());
    run.ctl(&["acknowledge"]).expect(0, &["acknowledge accepted"]);
    unread(&run, 0);
    run.kill();
    let run = setup.start_in(folder.clone());
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");
    unread(&run, 0);
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &[]);

    let listed = quarantine(folder.path(), &["list", "--json"]);
    let entries: Vec<serde_json::Value> =
        listed.output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<(&str, u64)> =
        entries.iter().map(|entry| (entry["key"].as_str().unwrap(), entry["db"].as_u64().unwrap())).collect();
    assert_eq!(seen, [("first", 0), ("second", 3), ("first", 0)]);

    // Half cured: in order, and what is refused again stays with its reason.
    to.ok(&["SELECT", "0"]);
    to.ok(&["DEL", "first"]);
    let words = ["2 entries accepted, 1 refused again", "'second' of database 3", "WRONGTYPE"];
    quarantine(folder.path(), &["replay", "--dir", "data", "shake.toml"]).expect(5, &words);
    assert_eq!(to.list(&["LRANGE", "first", "0", "-1"]), [b"1", b"2"]);
    let listed = quarantine(folder.path(), &["list"]);
    listed.expect(5, &["second"]);
    assert!(!listed.output.contains("first"), "{}", listed.output);

    // Not to anybody else's server.
    let other = Setup::bare("127.0.0.1:1", "127.0.0.1:2").toml();
    std::fs::write(folder.path().join("other.toml"), other).unwrap();
    quarantine(folder.path(), &["replay", "other.toml"]).expect(2, &["127.0.0.1:2"]);

    // A state that passes costs no entry.
    to.ok(&["SELECT", "3"]);
    to.ok(&["DEL", "second"]);
    to.ok(&["CONFIG", "SET", "min-replicas-to-write", "3"]);
    quarantine(folder.path(), &["replay", "shake.toml"])
        .expect(4, &["NOREPLICAS", "0 entries were accepted"]);
    to.ok(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    quarantine(folder.path(), &["replay", "shake.toml"]).expect(0, &["1 entries accepted, 0 refused"]);
    assert_eq!(to.list(&["LRANGE", "second", "0", "-1"]), [b"9"]);
    quarantine(folder.path(), &["list"]).expect(0, &["nothing is in quarantine"]);
    assert!(!folder.path().join("data/quarantine.jsonl").exists());
}

/// What a standalone server had refused goes to a cluster: each entry to the owner of its slot, also while that is moving.
#[test]
fn entries_are_sent_to_the_owners_of_their_slots() {
    let binary = require_server!();
    let (source, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    let cluster = Cluster::start(binary, Layout::new(3, 0));
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");
    let names: Vec<String> = (0..30).map(|n| format!("list:{n}")).collect();
    let (mut from, mut to) = (source.client(), destination.client());
    names.iter().for_each(|name| drop(to.ok(&["SET", name, "of another type"])));
    for value in ["1", "2"] {
        names.iter().for_each(|name| drop(from.ok(&["RPUSH", name, value])));
    }
    // Its keys lie in several slots.
    to.ok(&["SET", "{a}zset", "of another type"]);
    from.ok(&["ZADD", "{b}zset", "1", "a"]);
    from.ok(&["ZUNIONSTORE", "{c}zset", "2", "{a}zset", "{b}zset"]);
    run.wait_status(MINUTES, "the refused entries", |status| status["counters"]["quarantined"] == 61);
    let folder = run.folder();
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &[]);

    // The directory is the one of another destination: what it names is taken for the cluster's node.
    let file = folder.path().join("data/run.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let node = cluster.address().to_string();
    std::fs::write(&file, text.replace(&destination.address().to_string(), &node)).unwrap();
    let toml =
        Setup::bare(&source.address().to_string(), &node).set("redis_writer", "cluster", "true").toml();
    std::fs::write(folder.path().join("cluster.toml"), toml).unwrap();

    // One slot is on its way, and its key is not there yet: the next owner is asked.
    let slot = slot_of(b"list:7");
    let (owner, next) = (cluster.owner(slot), (cluster.owner(slot) + 1) % 3);
    cluster.begin_move(owner, next, slot);
    quarantine(folder.path(), &["replay", "cluster.toml"])
        .expect(5, &["60 entries accepted, 1 refused again", "CROSSSLOT"]);
    cluster.finish_move(owner, next, slot);
    cluster.wait_ok();
    let mut client = cluster.client();
    for name in &names {
        let Reply::Array(items) = client.ok(&["LRANGE", name, "0", "-1"]) else { panic!("no list {name}") };
        assert_eq!(items, [b"1", b"2"].map(|item| Reply::BulkString(item.to_vec())), "{name}");
    }
    assert_eq!(client.keys_like("*").len(), 30);
}

#[test]
fn a_directory_that_is_not_there_is_said_to_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shake.toml"), Setup::bare("127.0.0.1:1", "127.0.0.1:2").toml())
        .unwrap();
    quarantine(folder.path(), &["replay", "shake.toml"]).expect(2, &["no data directory 'data'"]);
    assert!(!folder.path().join("data").exists());
}

/// What concerns whole databases is not sent again: set aside because it would do harm, it would do it now.
#[test]
fn what_concerns_whole_databases_is_not_sent_again() {
    let binary = require_server!();
    let (source, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    let (mut from, mut to) = (source.client(), destination.client());
    from.ok(&["SET", "of 0", "x"]);
    to.ok(&["SELECT", "5"]);
    to.ok(&["SET", "others", "x"]);
    to.ok(&["SELECT", "0"]);
    let setup = Setup::new(&source, &destination)
        .set("advanced", "db_map", "{ 1 = 0 }")
        .set("filter", "block_db", "[5]");
    let run = setup.start();
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");
    for line in ["SELECT 1", "SET of:1 x", "FLUSHDB", "SWAPDB 5 6", "SELECT 5", "SET k x", "COPY k kk DB 0"] {
        from.ok(&line.split(' ').collect::<Vec<_>>());
    }
    run.wait_status(MINUTES, "three entries", |status| status["counters"]["quarantined"] == 3);
    let folder = run.folder();
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &[]);
    let words = ["0 entries accepted, 3 refused again", "whole databases"];
    quarantine(folder.path(), &["replay", "shake.toml"]).expect(5, &words);
    quarantine(folder.path(), &["list"]).expect(5, &["FLUSHDB", "SWAPDB", "COPY", "by hand"]);
    assert_eq!(to.integer(&["EXISTS", "of 0", "of:1"]), 2, "database 0 was emptied");
    assert_eq!(to.integer(&["EXISTS", "kk"]), 0);
    to.ok(&["SELECT", "5"]);
    assert_eq!(to.integer(&["EXISTS", "others"]), 1, "databases were exchanged");
}
