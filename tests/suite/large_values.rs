//! Values larger than the process may become: each passes through the real program in pieces, and arrives the same.

use std::time::Duration;

use crate::support;
use crate::support::fake_source::{FakeSource, Snapshot};
use crate::support::rdb_file::{key, length, rdb};
use crate::support::shakedeck::Setup;
use crate::support::{Client, Options, Server};
use shakedeck::rdb::types;

const MINUTES: Duration = Duration::from_secs(600);
/// The process itself takes about 12 MiB.
const LIMIT: u64 = 40 << 20;
/// Each value is at least this large.
const LARGE: i64 = 56 << 20;

/// Runs a line of Lua for every number up to a count, on the server.
fn fill(client: &mut Client, body: &str, count: u64) {
    let script = format!(
        "local x = string.rep('x', tonumber(ARGV[3])) for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do {body} end return 1"
    );
    for first in (1..=count).step_by(20_000) {
        let last = (first + 19_999).min(count);
        let width = (LARGE as u64 / count).to_string();
        assert_eq!(
            client.integer(&["EVAL", &script, "1", "value", &first.to_string(), &last.to_string(), &width]),
            1
        );
    }
}

/// Moves the only key of the source; returns the most memory that it took (bytes).
fn moved(source: &Server, destination: &Server) -> u64 {
    let run = Setup::new(source, destination).set("sync_reader", "sync_aof", "false").start();
    let mut peak = 0;
    support::wait_until(MINUTES, "its end", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", run.pid())).unwrap_or_default();
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = most.map_or(peak, |most| most.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10);
        status.lines().any(|line| line.starts_with("State:") && line.contains('Z'))
    });
    run.wait_exit(MINUTES).expect(0, &["finished"]);
    assert!(peak > 1 << 20, "the peak was not seen");
    peak
}

/// Elements of [`that_expands`], and the length of each.
const NODES: usize = 150;
const NODE_BYTES: usize = 1 + 264 * RUNS;
const RUNS: usize = 4_000;

/// A file with a list that is packed to a sixtieth there, and by commands as long as ever.
pub fn that_expands() -> Vec<u8> {
    // One letter, then runs of 264 of it: 3 bytes each.
    let packed = [&b"\x00x"[..], &b"\xe0\xff\x00".repeat(RUNS)].concat();
    let node = [&b"\x01\xc3"[..], &length(packed.len()), &length(NODE_BYTES), &packed].concat();
    let file = rdb("REDIS0010", &[&key(types::LIST_QUICKLIST_2, "value", &vec![node; NODES])]);
    assert!(file.len() < 2 << 20);
    file
}

/// What it takes in memory counts, not its size in the file.
#[test]
fn a_value_that_expands_passes_in_pieces() {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    };
    let source = FakeSource::start(vec![Snapshot::whole(that_expands())]);
    let destination = Server::start(binary, Options::new());
    let setup = Setup::bare(&source.address().to_string(), &destination.address().to_string());
    let run = setup.set("advanced", "target_redis_proto_max_bulk_len", "0").start();
    run.wait_status(MINUTES, "the whole RDB", |status| {
        status["sources"][0]["phase"] == "stream" && status["state"] == "caught_up"
    });
    assert!(run.peak_bytes() < 80 << 20, "{} MiB resident at the peak", run.peak_bytes() >> 20);
    let mut client = destination.client();
    expect_expanded(&mut client);
    assert_eq!(support::client::keys_like(&mut client, "shakedeck:b*").len(), 0);
}

#[track_caller]
pub fn expect_expanded(client: &mut Client) {
    assert_eq!(client.integer(&["LLEN", "value"]), NODES as i64);
    let sum = "local sum = 0 for _, item in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do sum = sum + #item end return sum";
    assert_eq!(client.integer(&["EVAL", sum, "1", "value"]), (NODE_BYTES * NODES) as i64);
}

fn arrives(prepare: impl Fn(&mut Client), facts: &[&[&str]]) {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return;
    };
    let source = Server::start(binary, Options::new().config("rdbcompression", "no"));
    let mut from = source.client();
    prepare(&mut from);
    assert!(from.integer(&["MEMORY", "USAGE", "value", "SAMPLES", "100"]) >= LARGE);
    let destination = Server::start(binary, Options::new());
    let mut to = destination.client();
    let peak = moved(&source, &destination);
    assert!(peak < LIMIT, "{} MiB resident at the peak", peak >> 20);
    for fact in [&["DEBUG", "DIGEST-VALUE", "value"][..], &["PTTL", "value"]].iter().chain(facts) {
        if fact[0] == "PTTL" {
            let (here, there) = (from.integer(fact), to.integer(fact));
            assert!((here - there).abs() < 60_000 && here > 0, "{here} {there}");
        } else {
            assert_eq!(from.cmd(fact), to.cmd(fact), "{fact:?}");
        }
    }
    assert_eq!(to.integer(&["DBSIZE"]), 1, "nothing is left of the building of it");
}

#[test]
fn a_large_hash_passes_in_pieces() {
    arrives(
        |client| {
            fill(client, "redis.call('HSET', KEYS[1], 'field:' .. i, x .. i)", 500_000);
            client.integer(&["PEXPIRE", "value", "90000000"]);
        },
        &[&["HLEN", "value"], &["HGET", "value", "field:1"], &["HGET", "value", "field:500000"]],
    );
}

#[test]
fn a_large_sorted_set_passes_in_pieces() {
    arrives(
        |client| {
            fill(client, "redis.call('ZADD', KEYS[1], i * 0.1, x .. i)", 300_000);
            client.integer(&["PEXPIRE", "value", "90000000"]);
        },
        &[
            &["ZCARD", "value"],
            &["ZRANGE", "value", "1000", "1005", "WITHSCORES"],
            &["ZRANGE", "value", "-3", "-1"],
        ],
    );
}

#[test]
fn a_large_stream_passes_in_pieces_with_its_groups() {
    arrives(
        |client| {
            fill(client, "redis.call('XADD', KEYS[1], i .. '-1', 'field', x .. i)", 50_000);
            client.ok(&["XGROUP", "CREATE", "value", "group", "0"]);
            client.cmd(&["XREADGROUP", "GROUP", "group", "one", "COUNT", "3500", "STREAMS", "value", ">"]);
            client.cmd(&["XREADGROUP", "GROUP", "group", "two", "COUNT", "1500", "STREAMS", "value", ">"]);
            // Pending, and gone: only a look ahead can bring these.
            client.integer(&["XDEL", "value", "1-1", "77-1", "4000-1"]);
            client.integer(&["PEXPIRE", "value", "90000000"]);
        },
        &[
            &["XLEN", "value"],
            &["XPENDING", "value", "group"],
            &[
                "EVAL",
                "local all = {} for _, entry in ipairs(redis.call('XPENDING', KEYS[1], 'group', '-', '+', '10000')) do table.insert(all, entry[1] .. entry[2] .. entry[4]) end return all",
                "1",
                "value",
            ],
            &["XRANGE", "value", "49990", "+"],
            &[
                "EVAL",
                "local info = redis.call('XINFO', 'STREAM', KEYS[1]) return {info[8], info[10], info[12]}",
                "1",
                "value",
            ],
        ],
    );
}

#[test]
fn a_large_string_passes_in_pieces() {
    arrives(
        |client| {
            for index in 0..96 {
                let block = format!("{index:04}").repeat(1 << 18);
                client.integer(&["APPEND", "value", &block]);
            }
            client.integer(&["PEXPIRE", "value", "90000000"]);
        },
        &[
            &["STRLEN", "value"],
            &["GETRANGE", "value", "1048570", "1048590"],
            &["GETRANGE", "value", "-9", "-1"],
        ],
    );
}
