//! `shakedeck rdb FILE`: JSON lines against the recordings, RESP into a real server, statistics.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::fixtures;
use crate::require_server;
use crate::support::rdb_file::{key, length, rdb, string};
use crate::support::{Options, Server};
use serde_json::{Value as Json, json};
use shakedeck::rdb::dump::Target;
use shakedeck::rdb::export::{RespOptions, Statistics, write_json, write_resp};
use shakedeck::rdb::{Decoder, Limits, types};

/// What JSON lines say about bytes, as the recordings write them.
fn bytes(value: &Json) -> String {
    match value {
        Json::String(text) => fixtures::text(text.as_bytes()),
        other => {
            let hex = other["hex"].as_str().unwrap().as_bytes();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            fixtures::text(&hex.chunks(2).map(byte).collect::<Vec<_>>())
        }
    }
}

/// A value of the JSON lines in the form of the recordings.
fn recorded_form(kind: &str, value: &Json) -> Json {
    let list = || value.as_array().unwrap().iter();
    match kind {
        "string" => json!(bytes(value)),
        "list" => json!(list().map(bytes).collect::<Vec<_>>()),
        "set" => fixtures::sorted(&json!(list().map(bytes).collect::<Vec<_>>())),
        "hash" => fixtures::sorted(&json!(
            list().map(|f| json!([bytes(&f["field"]), bytes(&f["value"])])).collect::<Vec<_>>()
        )),
        "zset" => json!(list().map(|m| bytes(&m["member"])).collect::<std::collections::BTreeSet<_>>()),
        "stream" => json!(
            value["entries"]
                .as_array()
                .unwrap()
                .iter()
                .map(|entry| json!([
                    entry["id"],
                    entry["fields"].as_array().unwrap().iter().map(bytes).collect::<Vec<_>>()
                ]))
                .collect::<Vec<_>>()
        ),
        _ => Json::Null,
    }
}

#[test]
fn json_lines_hold_what_the_server_said() {
    for fixture in fixtures::all() {
        for limit in [8 << 20, 100] {
            let mut out = Vec::new();
            let limits = Limits { max_value_bytes: limit, ..Limits::default() };
            let summary = write_json(
                &mut Decoder::new(&fixture.rdb[..], limits),
                |at| Ok(&fixture.rdb[at as usize..]),
                &mut out,
            )
            .unwrap();
            assert_eq!(
                (summary.keys as usize, summary.bad_keys),
                (fixture.keys.len(), 0),
                "{}",
                fixture.name
            );
            let lines: BTreeMap<String, Json> = String::from_utf8(out)
                .unwrap()
                .lines()
                .map(|line| {
                    let line: Json = serde_json::from_str(line).unwrap();
                    (format!("{}:{}", line["db"], bytes(&line["key"])), line)
                })
                .collect();
            for (key, expected) in &fixture.keys {
                let context = format!("{} {key}", fixture.name);
                let line = lines.get(key).unwrap_or_else(|| panic!("{context}: missing"));
                let kind = line["type"].as_str().unwrap();
                assert_eq!(line["type"], expected["type"], "{context}");
                let wanted = match kind {
                    "set" | "hash" => fixtures::sorted(&expected["value"]),
                    "zset" => {
                        let members = expected["value"].as_array().unwrap().iter();
                        json!(
                            members
                                .map(|pair| pair[0].as_str().unwrap())
                                .collect::<std::collections::BTreeSet<_>>()
                        )
                    }
                    _ => expected["value"].clone(),
                };
                assert_eq!(recorded_form(kind, &line["value"]), wanted, "{context}");
                assert!(line["size"].as_u64().unwrap() > 0, "{context}");
                if let Some(at) = expected.get("pexpiretime") {
                    assert_eq!(line["expire_at_ms"], *at, "{context}");
                }
                if let Some(times) = expected.get("field_pexpiretime").and_then(Json::as_object) {
                    let fields = line["value"].as_array().unwrap().iter();
                    let found: serde_json::Map<_, _> = fields
                        .filter(|field| field.get("expire_at_ms").is_some())
                        .map(|field| (bytes(&field["field"]), field["expire_at_ms"].clone()))
                        .collect();
                    assert_eq!(found, *times, "{context}");
                }
            }
        }
    }
}

#[test]
fn a_value_that_cannot_be_decoded_is_reported_in_its_place() {
    let mut file = b"REDIS0011\x10\x01b\x08\x08\x00\x00\x00\x01\x00\x99\xff\x00\x01k\x01v\xff".to_vec();
    file.extend([0; 8]);
    let mut out = Vec::new();
    let ahead = |at| Ok(&file[at as usize..]);
    let summary = write_json(&mut Decoder::new(&file[..], Limits::default()), ahead, &mut out).unwrap();
    let lines: Vec<Json> =
        String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((summary.keys, summary.bad_keys, lines.len()), (1, 1, 2));
    assert!(lines[0]["error"].as_str().unwrap().contains("listpack"), "{}", lines[0]);
    assert!(lines[0].get("value").is_none());
    assert_eq!(lines[1]["value"], "v");
    let options = RespOptions { target: Target::redis(6, 0), commands_only: false, replace: true };
    let mut out = Vec::new();
    let summary =
        write_resp(&mut Decoder::new(&file[..], Limits::default()), options, ahead, &mut out).unwrap();
    assert_eq!((summary.keys, summary.bad_keys), (1, 1));
    assert!(summary.bad[0].starts_with("key 'b': "), "{:?}", summary.bad);
    assert!(!out.windows(4).any(|window| window == b"HSET"));
}

/// A large value of which only the end is bad: nothing of it may have been written by then.
#[test]
fn a_large_value_that_is_damaged_leaves_nothing_behind() {
    let limits = Limits { max_value_bytes: 10, ..Limits::default() };
    // The second node of the list holds an entry of no known encoding; the stream (27) goes to 7.0 by commands, the array (28)
    // nowhere.
    let good = string(b"\x0a\0\0\0\x01\0\x81v\x02\xff");
    let bad = string(b"\x0a\0\0\0\x01\0\xf9v\x02\xff");
    let node = |blob: &[u8]| [b"\x02", blob].concat();
    let slot = |index: u8| [&[index, 0][..], &string(b"0123456789")].concat();
    let array = [vec![28], string(b"array"), vec![2, 0], slot(1), slot(2)].concat();
    let file = rdb(
        "REDIS0014",
        &[
            &key(types::LIST_QUICKLIST_2, "bad", &[node(&good), node(&bad)]),
            &key(types::LIST_QUICKLIST_2, "good", &[node(&good), node(&good)]),
            &array,
            &key(types::SET, "end", &[string(b"0123456789")]),
        ],
    );
    let ahead = |at| Ok(&file[at as usize..]);
    let mut out = Vec::new();
    let summary = write_json(&mut Decoder::new(&file[..], limits), ahead, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<Json> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((summary.keys, summary.bad_keys, lines.len()), (3, 1, 4));
    assert!(lines[0]["error"].as_str().unwrap().contains("unknown listpack encoding"), "{}", lines[0]);
    assert!(lines[0].get("value").is_none());
    assert_eq!(lines[1]["value"], json!(["v", "v"]));
    assert_eq!(lines[3]["key"], "end");

    let options = RespOptions { target: Target::redis(7, 0), commands_only: true, replace: true };
    let mut out = Vec::new();
    let summary = write_resp(&mut Decoder::new(&file[..], limits), options, ahead, &mut out).unwrap();
    let text = String::from_utf8_lossy(&out).into_owned();
    assert_eq!((summary.keys, summary.bad_keys), (2, 2), "{:?}", summary.bad);
    assert!(summary.bad[0].starts_with("key 'bad': bad RDB: unknown listpack encoding"), "{:?}", summary.bad);
    assert!(summary.bad[1].contains("knows no arrays"), "{:?}", summary.bad);
    assert!(text.contains("good") && text.contains("end"), "{text}");
    assert!(!text.contains("bad") && !text.contains("array"), "{text}");
    assert_eq!(text.matches("UNLINK").count(), 2, "{text}");
}

/// The program itself: what the output lacks stands on stderr, and the exit code says whether a key is missing.
#[test]
fn what_is_left_out_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made.rdb");
    let field = |time: u8| [&[time][..], &string(b"field"), &string(b"value")].concat();
    let hash = |name: &str| {
        let head = [&[types::HASH_METADATA][..], &string(name.as_bytes()), &[0; 8], &length(1)].concat();
        [head, field(9)].concat()
    };
    let mut records = vec![
        [&[245][..], &string(b"#!lua name=l\nredis.register_function('f', function() return 1 end)")]
            .concat(),
        b"\xf7\x81\0\0\0\0\0\0\0\x01\x02\x02\x00".to_vec(),
        key(types::SET, "empty", &[]),
    ];
    records.extend((0..102).map(|n| hash(&format!("hash:{n}"))));
    let run = |records: &[Vec<u8>], format: &str| {
        std::fs::write(&path, rdb("REDIS0012", &records.iter().map(Vec::as_slice).collect::<Vec<_>>()))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_shakedeck"));
        let output = command.args(["rdb", "--format", format]).arg(&path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told) = run(&records, "resp");
    assert_eq!(code, Some(0), "every key was written: {told}");
    for expected in [
        "key 'hash:0': 1 hash fields without their TTL\n",
        "\n1 function libraries were written\n",
        "\n1 pieces of module data outside of keys were left out",
        "\n1 collections without elements were left out",
        "\n102 keys were written without all that they hold\n",
    ] {
        assert!(told.contains(expected), "{expected:?} in {told}");
    }
    assert!(!told.contains("hash:101"), "only the first are named: {told}");
    let (code, told) = run(&records, "json");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("1 function libraries were left out") && told.contains("1 pieces"), "{told}");
    records.push(key(types::LIST_QUICKLIST_2, "bad", &[b"\x03\x01v".to_vec()]));
    for format in ["json", "resp"] {
        let (code, told) = run(&records, format);
        assert_eq!(code, Some(5), "{told}");
        assert!(told.contains("key 'bad': ") && told.ends_with("\n1 keys could not be written\n"), "{told}");
    }
}

#[test]
fn redis_cli_loads_what_resp_says() {
    let binary = require_server!();
    let fixtures = fixtures::all();
    let fixture = fixtures.iter().find(|fixture| fixture.name == "redis-7.0.15.default").unwrap();
    let (major, minor, _) = binary.version;
    let target = Target::redis(major as u16, minor as u16);
    let mut digests = Vec::new();
    for (commands_only, limit) in [(false, 8 << 20), (true, 8 << 20), (true, 1000)] {
        let server = Server::start(binary, Options::new());
        let options = RespOptions { target, commands_only, replace: true };
        let limits = Limits { max_value_bytes: limit, ..Limits::default() };
        let mut resp = Vec::new();
        let ahead = |at| Ok(&fixture.rdb[at as usize..]);
        let summary =
            write_resp(&mut Decoder::new(&fixture.rdb[..], limits), options, ahead, &mut resp).unwrap();
        assert_eq!(summary.keys as usize, fixture.keys.len());
        let mut cli = Command::new("redis-cli")
            .args(["-p", &server.port().to_string(), "--pipe"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cli.stdin.take().unwrap().write_all(&resp).unwrap();
        let output = cli.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("errors: 0"), "{text}");
        let mut client = server.client();
        // Entries that are pending but deleted are known only by reading ahead.
        let count = "return #redis.call('XPENDING', KEYS[1], 'g1', '-', '+', '100')";
        assert_eq!(client.integer(&["EVAL", count, "1", "stream:g"]), 4);
        let keys: i64 = (0..16)
            .map(|db| {
                client.ok(&["SELECT", &db.to_string()]);
                client.integer(&["DBSIZE"])
            })
            .sum();
        // One key expired in 1970.
        let gone = fixture
            .keys
            .values()
            .filter(|key| key["pexpiretime"].as_i64().is_some_and(|at| at < 1_700_000_000_000));
        assert_eq!(keys as usize, fixture.keys.len() - gone.count());
        assert!(client.list(&["FUNCTION", "LIST"]).len() >= 2);
        // Streams differ in times of consumers, and -0 by encoding: compared elsewhere.
        client.ok(&["SELECT", "0"]);
        for key in client.list(&["KEYS", "*"]) {
            if key.starts_with(b"stream:") || key.starts_with(b"zset:") {
                client.ok(&[&b"DEL"[..], &key]);
            }
        }
        digests.push(client.text(&["DEBUG", "DIGEST"]));
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:?}");
    assert_ne!(digests[0], "0".repeat(40));
}

#[test]
fn statistics_add_up() {
    for fixture in fixtures::all() {
        let found = Statistics::collect(&mut Decoder::new(&fixture.rdb[..], Limits::default())).unwrap();
        let keys = fixture.keys.len() as u64;
        assert_eq!(found.total.keys, keys, "{}", fixture.name);
        assert_eq!(found.file_bytes, fixture.rdb.len() as u64);
        assert_eq!(found.types.values().map(|tally| tally.bytes).sum::<u64>(), found.total.bytes);
        assert_eq!(found.sizes.values().map(|tally| tally.keys).sum::<u64>(), keys);
        assert_eq!(found.databases.values().map(|tally| tally.keys).sum::<u64>(), keys);
        assert_eq!(found.largest.len(), Statistics::LARGEST);
        assert!(found.largest.is_sorted_by(|a, b| a.bytes >= b.bytes));
        // The limit changes nothing.
        let limits = Limits { max_value_bytes: 50, ..Limits::default() };
        let streamed = Statistics::collect(&mut Decoder::new(&fixture.rdb[..], limits)).unwrap();
        assert_eq!((streamed.types, streamed.sizes), (found.types, found.sizes), "{}", fixture.name);
    }
}

#[test]
fn statistics_read_well() {
    let fixtures = fixtures::all();
    let fixture = fixtures.iter().find(|fixture| fixture.name == "redis-8.6.3.default").unwrap();
    let found = Statistics::collect(&mut Decoder::new(&fixture.rdb[..], Limits::default())).unwrap();
    insta::assert_snapshot!(found.to_string());
}
