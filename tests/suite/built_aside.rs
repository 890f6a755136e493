//! Values that are built under a temporary key: counted before they get their name. What comes out smaller than the file says is
//! set aside; what has ended by itself meanwhile is not.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::require_server;
use crate::support;
use crate::support::cluster::{Cluster, Layout};
use crate::support::cluster_client::slot_of;
use crate::support::rdb_file::{expiring, key, rdb, string};
use crate::support::relay::{At, Relay};
use crate::support::shakedeck::Setup;
use crate::support::{Client, Options, Server};
use shakedeck::rdb::types;
use tempfile::TempDir;

const MINUTES: Duration = Duration::from_secs(300);
/// Elements of a value: each takes more than 100 bytes, together more than may be held (8 MiB).
const COUNT: usize = 90_000;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn name(index: usize) -> Vec<u8> {
    string(format!("{index:0>100}").as_bytes())
}

/// The elements of a value of this type; the last one again as `last`.
fn elements(type_byte: u8, last: usize) -> Vec<Vec<u8>> {
    let extra: &[u8] = match type_byte {
        types::HASH => b"\x01v",
        types::ZSET_2 => &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f],
        _ => b"",
    };
    (0..COUNT - 1).chain([last]).map(|index| [&name(index), extra].concat()).collect()
}

/// A hash of Valkey 9, whose fields have times of their own (-1: none), that is read by its own name only.
fn hash_with_times(name_of_key: &str, time_of: impl Fn(usize) -> i64, last: usize) -> Vec<u8> {
    let field = |index| [name(index), b"\x01v".to_vec(), time_of(index).to_le_bytes().to_vec()].concat();
    key(types::HASH_22, name_of_key, &(0..COUNT - 1).chain([last]).map(field).collect::<Vec<_>>())
}

struct Field {
    destination: Server,
    folder: TempDir,
}

impl Field {
    fn new(destination: &'static support::ServerBinary) -> Field {
        let destination = Server::start(destination, Options::new());
        Field { destination, folder: tempfile::tempdir().unwrap() }
    }

    fn setup(&self, file: &[u8], behavior: &str) -> Setup {
        let path = self.file(file);
        Setup::from_file(&path, &self.destination.address().to_string()).text(
            "advanced",
            "rdb_restore_command_behavior",
            behavior,
        )
    }

    fn file(&self, file: &[u8]) -> PathBuf {
        let path = self.folder.path().join("made.rdb");
        std::fs::write(&path, file).unwrap();
        path
    }

    fn client(&self) -> Client {
        self.destination.client()
    }

    #[track_caller]
    fn nothing_is_left_of_the_building(&self) {
        let left = support::client::keys_like(&mut self.client(), "shakedeck:*");
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_name_that_stands_twice_in_a_large_collection_is_told() {
    let field = Field::new(require_server!());
    let mut client = field.client();
    let kinds = [(types::SET, "set"), (types::HASH, "hash"), (types::ZSET_2, "zset")];
    let mut records = Vec::new();
    for (type_byte, what) in kinds {
        records.push(key(type_byte, &format!("twice:{what}"), &elements(type_byte, 7)));
        records.push(key(type_byte, &format!("good:{what}"), &elements(type_byte, COUNT - 1)));
    }
    // In a list everything may stand twice.
    records.push(key(types::LIST, "list", &elements(types::LIST, 7)));
    let file = rdb("REDIS0009", &records.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for behavior in ["rewrite", "panic"] {
        client.ok(&["FLUSHALL"]);
        if behavior == "rewrite" {
            client.ok(&["SET", "twice:set", "before"]);
            client.ok(&["SET", "good:set", "before"]);
        }
        let run = field.setup(&file, behavior).start();
        let kept = run.folder();
        run.wait_exit(MINUTES).expect(5, &["3 entries are in quarantine"]);
        let lines = std::fs::read_to_string(kept.path().join("data/quarantine.jsonl")).unwrap();
        for ((_, what), command) in kinds.iter().zip(["SCARD", "HLEN", "ZCARD"]) {
            let line = lines.lines().find(|line| line.contains(&format!("\"twice:{what}\""))).unwrap();
            let reason = format!(
                "holds 90,000 elements, but 89,999 came out ({command}): a field or member stands twice"
            );
            assert!(line.contains(&reason), "{line}");
            assert_eq!(client.integer(&[command, &format!("good:{what}")]), COUNT as i64);
        }
        assert_eq!(lines.lines().count(), 3);
        assert_eq!(client.integer(&["LLEN", "list"]), COUNT as i64);
        assert_eq!(client.integer(&["EXISTS", "twice:hash", "twice:zset"]), 0);
        // Nothing took the place of what was there.
        let before = if behavior == "rewrite" { 1 } else { 0 };
        assert_eq!(client.integer(&["EXISTS", "twice:set"]), before);
        field.nothing_is_left_of_the_building();
    }
    client.ok(&["FLUSHALL"]);
    let setup = field.setup(&file, "rewrite");
    let run = setup.clone().text("policy", "on_bad_value", "stop").start();
    let kept = run.folder();
    run.wait_exit(MINUTES).expect(3, &["key 'twice:set' cannot be copied", "stands twice", "on_bad_value"]);
    assert_eq!(client.integer(&["EXISTS", "twice:set"]), 0);
    // The other policy goes on from there.
    setup.start_in(kept).wait_exit(MINUTES).expect(5, &["finished"]);
    assert_eq!(client.integer(&["SCARD", "good:set"]), COUNT as i64);
    field.nothing_is_left_of_the_building();
}

/// The connection breaks when the destination says the size, and whether it took the last pieces: the value is built again.
#[test]
fn a_value_whose_size_is_not_heard_is_built_again() {
    let field = Field::new(require_server!());
    let relay = Relay::start(field.destination.address());
    for (last, size, exit_code) in [(COUNT - 1, ":90000\r\n", 0), (7, ":89999\r\n", 5)] {
        field.client().ok(&["FLUSHALL"]);
        let file = rdb("REDIS0009", &[&key(types::SET, "set", &elements(types::SET, last))]);
        relay.trap(size, At::Cut);
        let path = field.file(&file);
        let run = Setup::from_file(&path, &relay.address().to_string()).start();
        run.wait_exit(MINUTES).expect(exit_code, &["looking where to go on", "finished"]);
        assert!(relay.sprung());
        assert_eq!(field.client().integer(&["EXISTS", "set"]), i64::from(exit_code == 0));
        field.nothing_is_left_of_the_building();
    }
}

/// In a cluster a value is built, counted and named in the slot of its key; also when every link is lost while it is built.
#[test]
fn a_large_value_for_a_cluster_is_counted_in_its_slot() {
    let destination = Cluster::start(require_server!(), Layout::new(3, 0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.rdb");
    let mut records = vec![
        expiring(now_ms() - 60_000, &key(types::SET, "ended", &elements(types::SET, COUNT - 1))),
        key(types::HASH, "taken", &elements(types::HASH, COUNT - 1)),
    ];
    for (type_byte, what) in [(types::SET, "set"), (types::HASH, "hash"), (types::ZSET_2, "zset")] {
        records.push(key(type_byte, &format!("twice:{what}"), &elements(type_byte, 7)));
        records.push(key(type_byte, &format!("good:{what}"), &elements(type_byte, COUNT - 1)));
    }
    std::fs::write(&path, rdb("REDIS0009", &records.iter().map(Vec::as_slice).collect::<Vec<_>>())).unwrap();
    let setup =
        Setup::from_file(&path, &destination.address().to_string()).set("redis_writer", "cluster", "true");
    let mut client = destination.client();
    for behavior in ["rewrite", "skip"] {
        for node in destination.masters() {
            destination.client_of(node).ok(&["FLUSHALL"]);
        }
        client.ok(&["SET", "taken", "before"]);
        client.ok(&["SET", "ended", "before"]);
        let run = setup.clone().text("advanced", "rdb_restore_command_behavior", behavior).start();
        // Begun again, a key that was on its way counts as ours: the other policies could not be told apart then.
        let replaced = behavior == "rewrite";
        if replaced {
            support::wait_until(MINUTES, "the building of a value", || {
                !destination.client().keys_like("shakedeck:building:*").is_empty()
            });
            for node in destination.masters() {
                destination.client_of(node).cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            }
        }
        let kept = run.folder();
        let exit = run.wait_exit(MINUTES);
        exit.expect(5, &["3 entries are in quarantine"]);
        let cut = exit.output.contains("looking where to go on");
        assert_eq!(cut, replaced, "{behavior}");
        let lines = std::fs::read_to_string(kept.path().join("data/quarantine.jsonl")).unwrap();
        assert_eq!(lines.lines().count(), 3, "{lines}");
        for (what, command) in [("set", "SCARD"), ("hash", "HLEN"), ("zset", "ZCARD")] {
            let line = lines.lines().find(|line| line.contains(&format!("\"twice:{what}\""))).unwrap();
            assert!(line.contains(&format!("89,999 came out ({command}): a field or member")), "{line}");
            let size = client.call(&[command, &format!("good:{what}")]);
            assert_eq!(size, support::Reply::Integer(COUNT as i64), "{what}");
            assert_eq!(
                client.call(&["EXISTS", &format!("twice:{what}")]),
                support::Reply::Integer(0),
                "{what}"
            );
        }
        // The value of the file has ended; what was there goes only where it may be replaced.
        let left = client.call(&["EXISTS", "ended"]);
        assert_eq!(left, support::Reply::Integer(i64::from(!replaced)), "{behavior}");
        if replaced {
            assert_eq!(client.call(&["HLEN", "taken"]), support::Reply::Integer(COUNT as i64));
        } else {
            assert_eq!(client.bytes(&["GET", "taken"]).as_deref(), Some(&b"before"[..]));
        }
        let left = client.keys_like("shakedeck:*");
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Whoever removes the temporary key (an eviction does, too) does not get half a value presented as whole.
#[test]
fn a_value_that_is_removed_while_it_is_built_is_told() {
    let field = Field::new(require_server!());
    let part = elements(types::LIST, 7);
    let all: Vec<_> = std::iter::repeat_n(part, 4).flatten().collect();
    let file = rdb("REDIS0009", &[&key(types::LIST, "list", &all)]);
    let removed = AtomicBool::new(false);
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut client = field.client();
            while !over.load(Relaxed) && !removed.load(Relaxed) {
                let building = support::client::keys_like(&mut client, "shakedeck:building:*");
                for key in building {
                    removed.fetch_or(client.integer(&[&b"DEL"[..], &key]) == 1, Relaxed);
                }
            }
        });
        let run = field.setup(&file, "panic").start();
        let exit = run.wait_exit(MINUTES);
        over.store(true, Relaxed);
        assert!(removed.load(Relaxed), "nothing was removed");
        exit.expect(
            5,
            &[
                "key 'list' cannot be copied: the file holds 360,000 elements, but",
                "(LLEN)",
                "maxmemory-policy",
            ],
        );
    });
    assert_eq!(field.client().integer(&["EXISTS", "list"]), 0);
    field.nothing_is_left_of_the_building();
}

/// Removed between its count and its RENAME, a value with a time to live is missing, and has not expired.
fn is_removed_before_it_gets_its_name(
    setup: &Setup,
    mut nodes: Vec<Client>,
    building: &dyn Fn() -> Option<(Vec<u8>, Client)>,
) {
    // The writer lets some time pass behind each batch.
    nodes.iter_mut().for_each(|node| _ = node.ok(&["CLIENT", "PAUSE", "60000", "WRITE"]));
    let run = setup.start();
    run.status_json();
    run.ctl(&["throttle", "3MB"]).expect(0, &[]);
    nodes.iter_mut().for_each(|node| _ = node.ok(&["CLIENT", "UNPAUSE"]));
    let mut found = None;
    support::wait_until(MINUTES, "the building", || {
        found = building();
        found.is_some()
    });
    let (key, mut client) = found.unwrap();
    let removal = "if redis.call('SCARD', KEYS[1]) == tonumber(ARGV[1]) then return redis.call('DEL', KEYS[1]) end return 0";
    let (removal, count) = (removal.as_bytes(), COUNT.to_string());
    let started = std::time::Instant::now();
    while client.integer(&[b"EVAL", removal, b"1", &key, count.as_bytes()]) == 0 {
        assert!(started.elapsed() < MINUTES, "it never was whole:\n{}", run.output());
    }
    let exit = run.wait_exit(MINUTES);
    exit.expect(
        5,
        &["key 'set' cannot be copied", "was removed before it got its name", "1 entries are in quarantine"],
    );
}

#[test]
fn a_value_that_is_removed_before_it_gets_its_name_has_not_expired() {
    let file = rdb(
        "REDIS0009",
        &[&expiring(now_ms() + 3_600_000, &key(types::SET, "set", &elements(types::SET, COUNT - 1)))],
    );
    let field = Field::new(require_server!());
    for behavior in ["rewrite", "panic"] {
        is_removed_before_it_gets_its_name(&field.setup(&file, behavior), vec![field.client()], &|| {
            let key = support::client::keys_like(&mut field.client(), "shakedeck:building:*").pop_first()?;
            Some((key, field.client()))
        });
        assert_eq!(field.client().integer(&["EXISTS", "set"]), 0);
        field.nothing_is_left_of_the_building();
    }
    let destination = Cluster::start(require_server!(), Layout::new(3, 0));
    let setup = Setup::from_file(&field.file(&file), &destination.address().to_string());
    let nodes = destination.masters().into_iter().map(|node| destination.client_of(node)).collect();
    is_removed_before_it_gets_its_name(&setup.set("redis_writer", "cluster", "true"), nodes, &|| {
        let key = destination.client().keys_like("shakedeck:building:*").pop_first()?;
        Some((key, destination.client_of(destination.owner(slot_of(b"set")))))
    });
    assert!(destination.client().keys_like("*").is_empty());
}

/// Fields that have ended, or end while the value is built, are no reason to set it aside.
#[test]
fn fields_that_have_ended_are_no_false_alarm() {
    let mut seen = false;
    for binary in support::servers::modern() {
        let knows_field_ttl = match binary.flavor {
            support::Flavor::Valkey => binary.version >= (9, 0, 0),
            _ => binary.version >= (7, 4, 0),
        };
        if !knows_field_ttl {
            continue;
        }
        seen = true;
        let field = Field::new(binary);
        let mut client = field.client();
        for behavior in ["rewrite", "panic"] {
            client.ok(&["FLUSHALL"]);
            if behavior == "rewrite" {
                client.ok(&["SET", "over", "an old value"]);
            }
            let now = now_ms();
            // A third each: past, ending soon (while writes are held up), later.
            let far = |index: usize| if index.is_multiple_of(2) { now + 10_000_000 } else { -1 };
            let mixed = |index: usize| match index % 3 {
                0 => now - 5_000,
                1 => now + 4_000,
                _ => far(index),
            };
            let last = COUNT - 1;
            let records = [
                hash_with_times("mixed", mixed, last),
                hash_with_times("over", |_| now - 5_000, last),
                hash_with_times("far", far, last),
                hash_with_times("twice", far, 7),
            ];
            let file = rdb("VALKEY080", &records.each_ref().map(Vec::as_slice));
            let run = field.setup(&file, behavior).start();
            support::wait_until(MINUTES, "the building of the first", || {
                !support::client::keys_like(&mut field.client(), "shakedeck:building:*").is_empty()
                    || client.integer(&["EXISTS", "mixed"]) == 1
            });
            client.ok(&["CLIENT", "PAUSE", "120000", "WRITE"]);
            while now_ms() < now + 4_500 {
                std::thread::sleep(Duration::from_millis(20));
            }
            client.ok(&["CLIENT", "UNPAUSE"]);
            let kept = run.folder();
            run.wait_exit(MINUTES).expect(5, &["1 entries are in quarantine"]);
            let lines = std::fs::read_to_string(kept.path().join("data/quarantine.jsonl")).unwrap();
            assert!(lines.contains("\"twice\"") && lines.contains("89,999 came out (HLEN)"), "{lines}");
            assert_eq!(client.integer(&["EXISTS", "twice"]), 0, "{binary} {behavior}");
            // In import mode Valkey keeps fields that have ended, without showing them, and removes them afterwards.
            assert_eq!(client.cmd(&["HKEYS", "over"]), support::Reply::Array(vec![]), "{binary} {behavior}");
            support::wait_until(MINUTES, "the end of a hash without fields", || {
                client.integer(&["EXISTS", "over"]) == 0
            });
            assert_eq!(client.integer(&["HLEN", "far"]), COUNT as i64, "{binary} {behavior}");
            let live = client.list(&["HKEYS", "mixed"]).len();
            assert_eq!(live, COUNT / 3, "{binary} {behavior}");
            field.nothing_is_left_of_the_building();
        }
    }
    if !seen {
        support::skip(
            "no Redis from 7.4 and no Valkey from 9.0: no other server has fields that end (tests/fetch-servers)",
        );
    }
}

/// A key whose time is over is simply not there, however it travels.
#[test]
fn a_key_that_has_ended_is_no_bad_value() {
    let field = Field::new(require_server!());
    let mut client = field.client();
    let past = now_ms() - 60_000;
    let records = [
        expiring(past, &key(types::SET, "large", &elements(types::SET, COUNT - 1))),
        expiring(past, &key(types::SET, "small", &[name(1), name(2)])),
        expiring(now_ms() + 600_000, &key(types::SET, "later", &elements(types::SET, COUNT - 1))),
        key(types::SET, "ever", &[name(1), name(2)]),
    ];
    let file = rdb("REDIS0009", &records.each_ref().map(Vec::as_slice));
    for behavior in ["rewrite", "panic", "skip"] {
        client.ok(&["FLUSHALL"]);
        if behavior == "rewrite" {
            client.ok(&["MSET", "large", "an old value", "small", "another"]);
        }
        let setup = field.setup(&file, behavior).set("advanced", "target_redis_proto_max_bulk_len", "0");
        setup.start().wait_exit(MINUTES).expect(0, &["finished"]);
        assert_eq!(client.integer(&["EXISTS", "large", "small"]), 0, "{behavior}");
        assert_eq!(client.integer(&["SCARD", "later"]), COUNT as i64, "{behavior}");
        let left = client.integer(&["PTTL", "later"]);
        assert!((1..=600_000).contains(&left), "{left}");
        assert_eq!((client.integer(&["SCARD", "ever"]), client.integer(&["PTTL", "ever"])), (2, -1));
        field.nothing_is_left_of_the_building();
    }
}
