//! `shakedeck verify` in a directory of its own, and differences of every kind that it must find.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::client::Client;
use super::cluster_client::{ClusterClient, slot_of};
use super::server::Server;
use super::shakedeck::{Exit, Setup, binary};

/// Far in the future (Unix ms).
pub const LATER: &str = "4102444800000";

/// A directory with a `shake.toml` for two servers.
pub struct Verification {
    pub folder: TempDir,
}

impl Verification {
    pub fn new(source: &Server, destination: &Server) -> Verification {
        Verification::of(&Setup::new(source, destination))
    }

    /// With any `shake.toml`.
    pub fn of(setup: &Setup) -> Verification {
        let folder = tempfile::Builder::new().prefix("shakedeck-verify-").tempdir().unwrap();
        std::fs::write(folder.path().join("shake.toml"), setup.toml()).unwrap();
        Verification { folder }
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(["verify", "shake.toml", "--wait", "300ms"]).args(words).current_dir(self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Exit {
        let output = self.command(words).output().unwrap();
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Exit { code: output.status.code(), output: text }
    }

    pub fn found(&self) -> Differences {
        differences(&self.folder.path().join("data/verify-differences.jsonl"))
    }
}

/// Key -> kinds.
pub type Differences = BTreeMap<String, BTreeSet<String>>;

pub fn differences(path: &Path) -> Differences {
    let mut found = Differences::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| value[name].as_str().unwrap().to_owned();
        assert!(!text("source").is_empty() && !text("destination").is_empty(), "{line}");
        found.entry(format!("{}:{}", value["db"], text("key"))).or_default().insert(text("kind"));
    }
    found
}

pub fn expected(list: &[(&str, &[&str])]) -> Differences {
    let words = |kinds: &[&str]| kinds.iter().map(|kind| (*kind).to_owned()).collect();
    list.iter().map(|(key, kinds)| ((*key).to_owned(), words(kinds))).collect()
}

pub fn do_all(client: &mut Client, lines: &[&str]) {
    for line in lines {
        client.ok(&line.split(' ').collect::<Vec<_>>());
    }
}

/// What is planted: on both sides first, then changed on the destination.
pub const PLANTED: &[&str] = &[
    "SET plant:same value",
    "SET plant:missing value PXAT 4102444800500",
    "SET plant:type value",
    "SET plant:string hello",
    "SETRANGE plant:long 3000000 end",
    "RPUSH plant:list a b c",
    "SADD plant:set a b c",
    "SADD plant:ints 1 2 3",
    "ZADD plant:zset 1 a 2 b",
    "HSET plant:hash f v g w",
    "SET plant:ttl v PXAT 4102444800000",
    "SET plant:near v PXAT 4102444800000",
    "SET plant:nottl v",
    "XADD plant:stream 1-1 f v",
    "XADD plant:stream 2-1 f v",
    "XADD plant:delivered 1-1 f v",
    "XADD plant:delivered 2-1 f v",
    "XGROUP CREATE plant:delivered g 0",
    "XADD plant:pending 1-1 f v",
    "XADD plant:pending 2-1 f v",
    "XGROUP CREATE plant:pending g 0",
    "XREADGROUP GROUP g alice COUNT 2 STREAMS plant:pending >",
    "XADD plant:consumer 1-1 f v",
    "XGROUP CREATE plant:consumer g 0",
    "XGROUP CREATECONSUMER plant:consumer g bob",
    "XADD plant:group 1-1 f v",
    "XGROUP CREATE plant:group g 0",
    "PFADD plant:hll a b c",
];
pub const CHANGES: &[&str] = &[
    "DEL plant:missing",
    "SET plant:extra value",
    "DEL plant:type",
    "RPUSH plant:type value",
    "SET plant:string hellO",
    "SETRANGE plant:long 2500000 X",
    "LSET plant:list 1 B",
    "SREM plant:set b",
    "SADD plant:set B",
    "SREM plant:ints 2",
    "SADD plant:ints 7",
    "ZADD plant:zset 2.5 b",
    "HSET plant:hash g x",
    "PEXPIREAT plant:ttl 4102444802500",
    "PEXPIREAT plant:near 4102444800900",
    "PEXPIREAT plant:nottl 4102444800000",
    "XDEL plant:stream 2-1",
    "XADD plant:stream 2-2 f v",
    "XGROUP SETID plant:delivered g 1-1",
    "XACK plant:pending g 2-1",
    "XGROUP DELCONSUMER plant:consumer g bob",
    "XGROUP DESTROY plant:group g",
    "PFADD plant:hll d",
];

pub fn planted() -> Differences {
    expected(&[
        ("0:plant:missing", &["missing"]),
        ("0:plant:extra", &["extra"]),
        ("0:plant:type", &["type"]),
        ("0:plant:string", &["value"]),
        ("0:plant:long", &["value"]),
        ("0:plant:list", &["value"]),
        ("0:plant:set", &["value"]),
        ("0:plant:ints", &["value"]),
        ("0:plant:zset", &["value"]),
        ("0:plant:hash", &["value"]),
        ("0:plant:ttl", &["ttl"]),
        ("0:plant:nottl", &["ttl"]),
        ("0:plant:stream", &["value", "stream"]),
        ("0:plant:delivered", &["stream_group"]),
        ("0:plant:pending", &["stream_group"]),
        ("0:plant:consumer", &["stream_group"]),
        ("0:plant:group", &["stream_group"]),
        ("0:plant:hll", &["value"]),
    ])
}

/// The stream's counters differ in more than one way; only that there is something is asserted of it.
#[track_caller]
pub fn assert_planted(found: &Differences, mut expected: Differences) {
    let mut found = found.clone();
    let streams = [found.remove("0:plant:stream"), expected.remove("0:plant:stream")];
    assert!(streams.iter().all(Option::is_some), "{found:?}");
    assert_eq!(found, expected);
}

/// The same for commands of one key each, which the owners of their slots get.
pub fn do_all_in_cluster(client: &mut ClusterClient, lines: &[&str]) {
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let key = words.iter().find(|word| word.contains(':')).unwrap();
        if let super::Reply::Error(error) = client.call_in(slot_of(key.as_bytes()), &words) {
            panic!("{line}: {error}");
        }
    }
}
