//! `[rdb_reader]`: an RDB file as the source of the real program. Every recorded file arrives value by value, by RESTORE and by
//! commands; a killed run goes on; the console ends with it; what is no RDB file is said clearly; bad values are set aside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fixtures;
use crate::support;
use crate::support::fake_source::{FakeSource, Snapshot};
use crate::support::proxy::Proxy;
use crate::support::relay::Relay;
use crate::support::shakedeck::{Setup, Shakedeck};
use crate::support::{Flavor, Options, Server, ServerBinary, compare, dataset, rdb_file, wait_until};
use crate::values;
use serde_json::Value as Json;
use shakedeck::rdb::dump::{Route, route};
use shakedeck::rdb::{DecodedValue, types};

const MINUTES: Duration = Duration::from_secs(120);

fn setup(file: &Path, destination: &str) -> Setup {
    Setup::from_file(file, destination).text("advanced", "rdb_restore_command_behavior", "rewrite")
}

fn newest(flavor: Flavor) -> Option<&'static ServerBinary> {
    support::servers::all().iter().rfind(|binary| binary.flavor == flavor)
}

/// The newest of both families takes every file, both ways; older ones the file of their own time, both ways.
#[test]
fn every_recorded_file_arrives_value_by_value() {
    let newest: Vec<_> = [Flavor::Redis, Flavor::Valkey].into_iter().filter_map(newest).collect();
    if newest.is_empty() {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    }
    // What is compared is what servers since 7.0 keep.
    for binary in support::servers::modern().filter(|binary| binary.version >= (7, 0, 0)) {
        let server = Server::start(binary, Options::new());
        for fixture in fixtures::all() {
            let chosen = ["redis-7.2.6.default", "valkey-9.1.2.default"].contains(&fixture.name.as_str());
            if !newest.contains(&binary) && !chosen {
                continue;
            }
            for by_commands in [false, true] {
                arrives(&fixture, &server, by_commands);
            }
        }
    }
}

fn arrives(fixture: &fixtures::Fixture, server: &Server, by_commands: bool) {
    let context = format!("{} -> {}, by commands: {by_commands}", fixture.name, server.binary());
    let target = values::target_of(server.binary());
    let file = values::read(fixture);
    let mut client = server.client();
    client.ok(&["FLUSHALL"]);
    let path =
        PathBuf::from("tests/fixtures/rdb").join(format!("{}.rdb", fixture.name)).canonicalize().unwrap();
    let mut setup = setup(&path, &server.address().to_string());
    if by_commands {
        setup = setup.set("advanced", "target_redis_proto_max_bulk_len", "0");
    }
    let run = setup.start();
    let quarantine = run.data().join("quarantine.jsonl");
    let folder = run.folder();
    let exit = run.wait_exit(MINUTES);
    let set_aside: Vec<String> = std::fs::read_to_string(&quarantine)
        .unwrap_or_default()
        .lines()
        .map(|line| serde_json::from_str::<Json>(line).unwrap()["key"].as_str().unwrap().to_owned())
        .collect();
    drop(folder);
    let mut expected_aside = Vec::new();
    for key in &file.keys {
        let context = format!("{context}: {}", fixtures::text(&key.key));
        let way = route(key.type_byte, file.dialect, file.version, target);
        let has_no_way = match (&key.value, way) {
            (_, Route::Impossible(_)) => true,
            // Only Redis 8 has a module that is in the recordings.
            (DecodedValue::Module { .. }, _) => !target.has_redis(8, 0),
            _ => false,
        };
        if has_no_way {
            expected_aside.push(key.key.escape_ascii().to_string());
            continue;
        }
        client.ok(&["SELECT", &key.db.to_string()]);
        let restored = !by_commands && matches!(way, Route::Restore { .. });
        values::check(&mut client, key, &context, restored);
    }
    assert_eq!(set_aside, expected_aside, "{context}\n{}", exit.output);
    exit.expect(if set_aside.is_empty() { 0 } else { 5 }, &["RDB file of", "finished"]);
    let databases: i64 = (0..16)
        .map(|db| {
            client.ok(&["SELECT", &db.to_string()]);
            client.integer(&["DBSIZE"])
        })
        .sum();
    assert!(
        databases as usize <= file.keys.len() - expected_aside.len(),
        "{context}: more keys than in the file"
    );
}

/// A server with a data set, and its RDB file.
fn saved(keys: u64) -> Option<(Server, PathBuf)> {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return None;
    };
    let server = Server::start(binary, Options::new());
    dataset::fill(&mut server.client(), keys, 7);
    server.client().ok(&["SAVE"]);
    let file = server.folder().join("dump.rdb");
    Some((server, file))
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let Some((server, file)) = saved(15_000) else { return };
    let before = std::fs::read(&file).unwrap();
    let destination = Server::start(server.binary(), Options::new());
    let relay = Relay::start(destination.address());
    for behavior in ["rewrite", "panic"] {
        destination.client().ok(&["FLUSHALL"]);
        let setup = setup(&file, &relay.address().to_string()).text(
            "advanced",
            "rdb_restore_command_behavior",
            behavior,
        );
        relay.hold_after(Some(before.len() / 2));
        let run = setup.start();
        support::wait_until(MINUTES, "half of the file", || relay.sprung());
        let status =
            run.wait_status(MINUTES, "progress", |status| status["sources"][0]["rdb_bytes_applied"] != 0);
        let source = &status["sources"][0];
        assert_eq!(source["phase"], "rdb_apply");
        assert_eq!(source["address"], file.canonicalize().unwrap().to_str().unwrap());
        assert_eq!(source["rdb_bytes_total"].as_u64(), Some(before.len() as u64));
        assert_eq!(source["rdb_bytes_received"], source["rdb_bytes_total"]);
        let applied = source["rdb_bytes_applied"].as_u64().unwrap();
        assert!(0 < applied && applied < before.len() as u64, "{applied}");
        assert_eq!((&status["state"], &status["ready"]), (&"syncing".into(), &false.into()));
        assert_eq!(status["spool"]["bytes"], 0, "the file is not copied");
        let folder = run.folder();
        run.kill();
        relay.hold_after(None);
        let exit = setup.start_in(folder.clone()).wait_exit(MINUTES);
        exit.expect(0, &["entries applied from the file", "going on inside the RDB", "finished"]);
        compare::assert_equal(&server, &destination);
        assert_eq!(
            support::client::keys_like(&mut destination.client(), "shakedeck:*").len(),
            0,
            "checkpoint"
        );
        assert!(!folder.path().join("data/run.json").exists(), "nothing is left to go on with");
    }
    assert_eq!(std::fs::read(&file).unwrap(), before, "the operator's file is as it was");
}

#[test]
fn another_file_under_the_same_name_is_refused() {
    let Some((server, file)) = saved(8_000) else { return };
    let destination = Server::start(server.binary(), Options::new());
    let relay = Relay::start(destination.address());
    let setup = setup(&file, &relay.address().to_string());
    relay.hold_after(Some(100_000));
    let run = setup.start();
    support::wait_until(MINUTES, "a part of the file", || relay.sprung());
    let folder = run.folder();
    run.kill();
    relay.hold_after(None);
    server.client().ok(&["SET", "one more", "key"]);
    server.client().ok(&["SAVE"]);
    let exit = setup.start_in(folder.clone()).wait_exit(MINUTES);
    exit.expect(3, &["was changed since the run", "remove the data directory"]);
    // The second way on.
    std::fs::remove_dir_all(folder.path().join("data")).unwrap();
    setup.start_in(folder).wait_exit(MINUTES).expect(0, &["finished"]);
    let mut client = destination.client();
    for key in support::client::keys_like(&mut client, "shakedeck:*") {
        // Of the run whose directory is gone.
        client.ok(&[&b"DEL"[..], &key]);
    }
    compare::assert_equal(&server, &destination);
}

#[test]
fn what_is_no_rdb_file_is_said_clearly() {
    let Some((server, file)) = saved(3_000) else { return };
    let whole = std::fs::read(&file).unwrap();
    let destination = Server::start(server.binary(), Options::new());
    let folder = tempfile::tempdir().unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let cases: [(&str, Option<Vec<u8>>, &str); 8] = [
        ("missing.rdb", None, "No such file"),
        ("empty.rdb", Some(vec![]), "is empty"),
        ("short.rdb", Some(b"REDIS".to_vec()), "too short"),
        ("text.rdb", Some(b"this is some text".to_vec()), "is not an RDB file"),
        ("packed.rdb", Some(vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1, 2]), "unpack it"),
        ("appendonly.aof", Some(b"*2\r\n$6\r\nSELECT\r\n".to_vec()), "append-only"),
        ("cut.rdb", Some(whole[..whole.len() - 1_000].to_vec()), "ends in the middle"),
        ("damaged.rdb", Some(damaged), "checksum"),
    ];
    for (name, bytes, words) in cases {
        let path = folder.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let exit = setup(&path, &destination.address().to_string()).start().wait_exit(MINUTES);
        exit.expect(3, &[name, words]);
    }
    let exit = setup(folder.path(), &destination.address().to_string()).start().wait_exit(MINUTES);
    exit.expect(3, &["is not a file"]);
    // What stands behind the RDB is not dropped in silence.
    destination.client().ok(&["FLUSHALL"]);
    let path = folder.path().join("preamble.aof");
    std::fs::write(&path, [whole.as_slice(), b"*1\r\n$4\r\nPING\r\n"].concat()).unwrap();
    let exit = setup(&path, &destination.address().to_string()).start().wait_exit(MINUTES);
    exit.expect(0, &["14 bytes stand behind the end of the RDB"]);
    compare::assert_equal(&server, &destination);
}

/// With a console, too, the run ends when the file is loaded, and the summary stands on the normal screen.
#[test]
fn the_console_leaves_by_itself_when_the_file_is_loaded() {
    let Some((server, file)) = saved(3_000) else { return };
    let destination = Server::start(server.binary(), Options::new());
    let mut client = destination.client();
    let run = |file: &Path, exit_code: u32, words: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        destination.client().ok(&["FLUSHALL"]);
        // Until the console has been seen.
        destination.client().ok(&["CLIENT", "PAUSE", "120000", "WRITE"]);
        let mut terminal = setup(file, &destination.address().to_string()).start_in_terminal(folder.path());
        terminal.wait_for("RDB apply");
        assert!(terminal.is_taken() && terminal.is_running());
        destination.client().ok(&["CLIENT", "UNPAUSE"]);
        assert_eq!(terminal.wait_exit(), exit_code, "{}", terminal.shown());
        let shown = terminal.shown();
        words.iter().for_each(|word| assert!(shown.contains(word), "no '{word}':\n{shown}"));
        assert!(!terminal.is_taken(), "the terminal was not given back");
    };
    run(&file, 0, &["finished: ", "stopped after"]);
    compare::assert_equal(&server, &destination);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.rdb");
    std::fs::write(&path, odd_things()).unwrap();
    run(&path, 5, &["finished: ", "3 entries are in quarantine"]);
    assert_eq!(client.text(&["GET", "last"]), "v");
}

/// What went wrong is to be read first: that screen stays until it is left.
#[test]
fn the_console_stays_when_the_file_could_not_be_loaded() {
    let Some((server, file)) = saved(3_000) else { return };
    let destination = Server::start(server.binary(), Options::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.rdb");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1_000]).unwrap();
    let mut terminal = setup(&path, &destination.address().to_string()).start_in_terminal(folder.path());
    terminal.wait_for("RDB APPLY FAILED");
    // Several frames later.
    terminal.keys("?");
    terminal.wait_for("main screen");
    assert!(terminal.is_taken() && terminal.is_running());
    terminal.keys("\x1b");
    terminal.wait_gone("main screen");
    terminal.keys("q");
    assert_eq!(terminal.wait_exit(), 3);
    assert!(!terminal.is_taken() && terminal.shown().contains("ends in the middle"), "{}", terminal.shown());
}

/// The number of a module type, as `module.c` makes it.
fn module_id(name: &str) -> [u8; 9] {
    const CHARSET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let place = |c: u8| CHARSET.iter().position(|x| *x == c).unwrap() as u64;
    let id = name.bytes().fold(0, |id, c| id << 6 | place(c)) << 10 | 1;
    let mut out = [0x81; 9];
    out[1..].copy_from_slice(&id.to_be_bytes());
    out
}

/// Two keys that are good, and between them everything that is not.
fn odd_things() -> Vec<u8> {
    let module = [b"\x07\x06module".as_slice(), &module_id("testmodul"), b"\x02\x2a\x00"].concat();
    let module_aux = [b"\xf7".as_slice(), &module_id("testmodul"), b"\x02\x01\x02\x07\x00"].concat();
    // A hash table with the same field twice, too long to become a listpack: servers end the loading of a file at that.
    let mut twice = b"\x04\x05twice\x42\x59".to_vec();
    (0..600).for_each(|n| twice.extend(format!("\x04f{n:03}\x01v").bytes()));
    twice.extend(b"\x04f007\x01w");
    rdb_file::rdb("REDIS0009", &[
        b"\x00\x05first\x01v",
        &module_aux,
        &module,
        // A listpack whose header says another size.
        b"\x10\x06broken\x0d\x0e\0\0\0\x02\0\x81f\x02\x81v\x02\xff",
        &twice,
        // KeyDB writes the expiry of a set member like this, behind the set.
        b"\xfa\x13keydb-subexpire-key\x01m\xfa\x14keydb-subexpire-when\x0d1700000000000",
        // Nobody knows this one; everybody knows those.
        b"\xfa\x07weather\x04rain\xfa\x09redis-ver\x057.0.0\xfa\x08used-mem\xc2\x00\x00\x10\x00\xfa\x07%secret\x01x",
        b"\x00\x04last\x01v",
    ])
}

#[test]
fn bad_values_are_set_aside_and_the_rest_arrives() {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    };
    for by_commands in [false, true] {
        let destination = Server::start(binary, Options::new());
        let source = FakeSource::start(vec![Snapshot::whole(odd_things())]);
        let mut setup = Setup::bare(&source.address().to_string(), &destination.address().to_string());
        if by_commands {
            setup = setup.set("advanced", "target_redis_proto_max_bulk_len", "0");
        }
        let run = setup.start();
        let status =
            run.wait_status(MINUTES, "the whole RDB", |status| status["sources"][0]["phase"] == "stream");
        assert_eq!(status["counters"]["quarantined"], 3, "{status:#}");
        let rejected = |kind: &str| {
            let all = status["rejected"].as_array().unwrap();
            all.iter()
                .find(|entry| entry["kind"] == kind)
                .unwrap_or_else(|| panic!("{kind}: {all:#?}"))
                .clone()
        };
        assert_eq!(rejected("MODULE_AUX")["example"], "testmodul");
        assert_eq!(rejected("SUBEXPIRE")["count"], 1);
        assert_eq!((&rejected("AUX")["count"], &rejected("AUX")["example"]), (&1.into(), &"weather".into()));
        let events = status["events"].as_array().unwrap();
        let words = "the RDB holds the field 'weather' = 'rain', which is not known here and not copied";
        assert!(events.iter().any(|event| event["text"] == words && event["level"] == "warn"), "{events:#?}");
        let lines = std::fs::read_to_string(run.data().join("quarantine.jsonl")).unwrap();
        let entries: Vec<Json> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut keys: Vec<&str> = entries.iter().map(|entry| entry["key"].as_str().unwrap()).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["broken", "module", "twice"]);
        for entry in &entries {
            let reason = entry["reason"].as_str().unwrap();
            let words = match entry["key"].as_str().unwrap() {
                "broken" => "listpack size differs from its header",
                "twice" => "twice",
                _ => "Bad data format",
            };
            assert!(reason.contains(words), "{entry}");
            assert!(
                entry["command_hex"].as_str().unwrap().starts_with("2a34"),
                "a RESTORE of four words: {entry}"
            );
        }
        let mut client = destination.client();
        assert_eq!((client.text(&["GET", "first"]), client.text(&["GET", "last"])), ("v".into(), "v".into()));
        assert_eq!(client.integer(&["EXISTS", "module", "broken", "twice"]), 0);
        run.interrupt();
        let exit = run.wait_exit(MINUTES);
        exit.expect(75, &["3 quarantined", "quarantine.jsonl"]);
    }
}

/// Killed inside the RDB, it reads the same bad values once more: they are not set aside twice.
#[test]
fn bad_values_are_set_aside_once_though_they_are_read_again() {
    let Some(binary) = support::servers::default() else {
        return support::skip("no redis-server on PATH (run tests/run, or install it)");
    };
    let destination = Server::start(binary, Options::new());
    let source = FakeSource::start(vec![Snapshot::whole(odd_things())]);
    let proxy = Proxy::start(destination.address(), 1);
    // The checkpoint that stands behind the RDB gets stuck.
    proxy.hold_from(b" stream ");
    let setup = Setup::bare(&source.address().to_string(), &proxy.address());
    let run = setup.start();
    run.wait_status(MINUTES, "they are set aside", |status| status["counters"]["quarantined"] == 3);
    let home = run.folder();
    run.kill();
    proxy.hold_from(b"not to be sent");
    let run = setup.start_in(home);
    wait_until(MINUTES, "the RDB is read again", || run.output().contains("RDB applied"));
    assert!(run.output().contains("going on inside the RDB"), "{}", run.output());
    let lines = std::fs::read_to_string(run.data().join("quarantine.jsonl")).unwrap();
    let entries = lines.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let mut keys: Vec<String> = entries.map(|entry| entry["key"].as_str().unwrap().to_owned()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["broken", "module", "twice"]);
}

/// Lets the program take these records to a destination; returns it in the stream, with its status and what it has set aside.
fn taken_over(
    destination: &Server,
    magic: &str,
    records: &[&[u8]],
    bulk_limit: &str,
) -> (Shakedeck, Json, Vec<Json>) {
    let source = FakeSource::start(vec![Snapshot::whole(rdb_file::rdb(magic, records))]);
    let setup = Setup::bare(&source.address().to_string(), &destination.address().to_string());
    let run = setup.set("advanced", "target_redis_proto_max_bulk_len", bulk_limit).start();
    let status =
        run.wait_status(MINUTES, "the whole RDB", |status| status["sources"][0]["phase"] == "stream");
    let lines = std::fs::read_to_string(run.data().join("quarantine.jsonl")).unwrap_or_default();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (run, status, lines)
}

/// A value larger than may be held (8 MiB).
fn large(type_byte: u8, name: &str, element: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    rdb_file::key(type_byte, name, &(0..90_000).map(element).collect::<Vec<_>>())
}

/// Of whatever size: one line, and nothing is sent.
#[test]
fn a_type_that_the_destination_does_not_know_is_set_aside_at_any_size() {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    };
    let destination = Server::start(binary, Options::new());
    let text = rdb_file::string(&[b'x'; 100]);
    let slot = |index: usize| [&rdb_file::length(index)[..], &[0], &text].concat();
    let mut array = large(types::ARRAY, "large", slot);
    // No insertion index: behind type, name and count.
    array.insert(1 + 5 + 5 + 5, 0);
    let small = [&[types::ARRAY, 5][..], b"small", &[1, 0], &slot(3)].concat();
    let (run, status, lines) =
        taken_over(&destination, "REDIS0014", &[&array, &small, b"\x00\x04last\x01v"], "512000000");
    assert_eq!((lines.len(), &status["counters"]["quarantined"]), (2, &2.into()), "{lines:#?}");
    for (line, key) in lines.iter().zip(["large", "small"]) {
        assert_eq!(line["key"], key);
        assert!(line["reason"].as_str().unwrap().contains("knows no arrays"), "{line}");
    }
    assert_eq!((&lines[0]["command_hex"], lines[1]["command_hex"] == ""), (&"".into(), false));
    let mut client = destination.client();
    assert_eq!(client.text(&["GET", "last"]), "v");
    assert_eq!(support::client::keys_like(&mut client, "shakedeck:b*").len(), 0);
    drop(run);
}

/// The destination closes the connection of whoever sends it a longer string than `proto-max-bulk-len`.
#[test]
fn strings_beyond_the_bulk_limit_go_in_pieces_and_longer_elements_are_set_aside() {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    };
    let (short, long) = (rdb_file::string(&[b'x'; 100]), rdb_file::string(&[b'y'; 1_500_000]));
    let text = [&[types::STRING, 4][..], b"text", &rdb_file::string(&[b't'; 3 << 20])].concat();
    let list = |name: &str, items: &[&Vec<u8>]| {
        rdb_file::key(types::LIST, name, &items.iter().map(|item| item.to_vec()).collect::<Vec<_>>())
    };
    let too_long = large(types::SET, "large", |n| match n {
        50_000 => long.clone(),
        n => rdb_file::string(format!("{n:0100}").as_bytes()),
    });
    let records = [
        &b"\x00\x05first\x01v"[..],
        &text,
        &list("small", &[&short, &long]),
        &too_long,
        &list("list", &[&short, &short]),
        b"\x00\x04last\x01v",
    ];
    // One that holds longer strings than it takes at once (as behind a proxy), and one that holds none.
    for (limit, holds) in [("512mb", true), ("1mb", false)] {
        let destination = Server::start(binary, Options::new().config("proto-max-bulk-len", limit));
        let (_run, _, lines) = taken_over(&destination, "REDIS0009", &records, "1048576");
        let reason_of = |key: &str| {
            let mut all =
                lines.iter().filter(|line| line["key"] == key).map(|line| line["reason"].to_string());
            (all.next(), all.next())
        };
        for key in ["small", "large"] {
            let (Some(reason), None) = reason_of(key) else { panic!("{key}: {lines:#?}") };
            assert!(reason.contains("an element has 1,500,000 bytes, more than the 1,048,576"), "{reason}");
        }
        let mut client = destination.client();
        if holds {
            assert_eq!(lines.len(), 2, "{lines:#?}");
            assert_eq!(client.integer(&["STRLEN", "text"]), 3 << 20);
            assert_eq!(client.text(&["GETRANGE", "text", "1048570", "1048579"]), "tttttttttt");
        } else {
            let (Some(reason), None) = reason_of("text") else { panic!("{lines:#?}") };
            assert!(
                reason.contains("APPEND was refused: ERR string exceeds maximum allowed size"),
                "{reason}"
            );
            assert_eq!(lines.len(), 3, "{lines:#?}");
            assert_eq!(client.integer(&["EXISTS", "text"]), 0, "nor a half of it");
        }
        assert_eq!((client.text(&["GET", "first"]), client.text(&["GET", "last"])), ("v".into(), "v".into()));
        assert_eq!(
            (client.integer(&["LLEN", "list"]), client.integer(&["EXISTS", "small", "large"])),
            (2, 0)
        );
        assert_eq!(support::client::keys_like(&mut client, "shakedeck:b*").len(), 0);
    }
}

/// What is set aside is held several times on its way into the file: only up to a size.
#[test]
fn a_huge_module_value_is_set_aside_without_its_content() {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    };
    let content = rdb_file::string(&vec![b'x'; 40 << 20]);
    let module = [b"\x07\x06module".as_slice(), &module_id("testmodul"), b"\x05", &content, b"\x00"].concat();
    // Refused by the destination, and beyond the limit, which nothing but RESTORE would meet.
    for (limit, refused) in [("512000000", "Bad data format"), ("1048576", "no elements")] {
        let destination = Server::start(binary, Options::new());
        let (run, _, lines) = taken_over(&destination, "REDIS0009", &[&module, b"\x00\x04last\x01v"], limit);
        assert_eq!((lines.len(), &lines[0]["key"]), (1, &"module".into()), "{limit}");
        let reason = lines[0]["reason"].as_str().unwrap();
        assert!(reason.contains(refused) && reason.contains("too large to be kept here"), "{reason}");
        assert!(reason.contains("41.9 MB"), "{reason}");
        assert_eq!(lines[0]["command_hex"], "");
        assert_eq!(destination.client().text(&["GET", "last"]), "v");
        if limit == "1048576" {
            let peak = run.peak_bytes() >> 20;
            assert!(peak < 200, "{peak} MiB");
        }
    }
}

/// However the value travels, it is told that something of the key does not.
#[test]
fn metadata_of_keys_is_not_lost_in_silence() {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    };
    // One class of metadata, with one number.
    let with_meta = |key: &[u8]| [&b"\xf3\x01abcd\x02\x07\x00"[..], key].concat();
    let broken = b"\x10\x06broken\x0d\x0e\0\0\0\x02\0\x81f\x02\x81v\x02\xff";
    let records = [
        with_meta(b"\x00\x05plain\x01v"),
        with_meta(&large(types::SET, "large", |n| rdb_file::string(format!("{n:0100}").as_bytes()))),
        with_meta(broken),
        b"\x00\x04last\x01v".to_vec(),
    ];
    for limit in ["512000000", "0"] {
        let destination = Server::start(binary, Options::new());
        let records = records.each_ref().map(Vec::as_slice);
        let (_run, status, _) = taken_over(&destination, "REDIS0013", &records, limit);
        let kinds = status["rejected"].as_array().unwrap();
        let told = kinds.iter().find(|kind| kind["kind"] == "KEY_META").unwrap();
        assert_eq!(told["count"], 3, "{limit}: {status:#}");
        let words = "carries metadata of a module";
        assert_eq!(status["events"].to_string().matches(words).count(), 1, "{status:#}");
        let mut client = destination.client();
        assert_eq!(
            (client.text(&["GET", "plain"]), client.integer(&["SCARD", "large"])),
            ("v".into(), 90_000)
        );
    }
}

#[test]
fn bad_values_stop_the_run_if_the_operator_says_so() {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.rdb");
    std::fs::write(&path, odd_things()).unwrap();
    let destination = Server::start(binary, Options::new());
    let setup = setup(&path, &destination.address().to_string());
    let run = setup.clone().text("policy", "on_bad_value", "stop").start();
    let kept = run.folder();
    // The destination says no to the module value.
    run.wait_exit(MINUTES).expect(4, &["module", "Bad data format", "on_bad_value"]);
    // The same directory with the other policy: it goes on, and brings what the stop had left out.
    setup.start_in(kept.clone()).wait_exit(MINUTES).expect(5, &["3 entries are in quarantine"]);
    assert_eq!(destination.client().text(&["GET", "last"]), "v");
    assert!(kept.path().join("data/quarantine.jsonl").exists());
}

/// A module value goes as it is to a destination that has the module: vector sets of Redis 8 are one.
#[test]
fn a_module_value_reaches_a_destination_that_has_the_module() {
    let Some(binary) = newest(Flavor::Redis).filter(|binary| binary.version.0 >= 8) else {
        support::skip("no Redis 8: there is no other server with a module type");
        return;
    };
    let source = Server::start(binary, Options::new());
    let mut client = source.client();
    if client.cmd(&["VADD", "vectors", "VALUES", "3", "1", "2", "3", "item"]) != support::Reply::Integer(1) {
        support::skip("this Redis 8 has no vector sets");
        return;
    }
    client.ok(&["SAVE"]);
    for limit in ["512000000", "0"] {
        let destination = Server::start(binary, Options::new());
        let setup = setup(&source.folder().join("dump.rdb"), &destination.address().to_string());
        let exit = setup.set("advanced", "target_redis_proto_max_bulk_len", limit).start().wait_exit(MINUTES);
        exit.expect(0, &["finished"]);
        let mut client = destination.client();
        assert_eq!(client.integer(&["VCARD", "vectors"]), 1);
        let here = client.list(&["VEMB", "vectors", "item"]);
        assert_eq!(here, source.client().list(&["VEMB", "vectors", "item"]));
    }
}
