//! The harness itself: it starts servers, fills them equal, and sees every kind of difference. A comparison that finds
//! nothing because it looks at nothing would make all other tests worthless.

use std::time::Duration;

use crate::require_server;
use crate::support::load::{Load, Writer};
use crate::support::{Client, Options, Server, compare, dataset, servers, wait_until};

/// Makes one server a replica of the other and waits until the link is up.
fn replicate(source: &Server, destination: &Server) -> Client {
    let mut client = destination.client();
    client.ok(&["REPLICAOF", "127.0.0.1", &source.port().to_string()]);
    wait_until(Duration::from_secs(30), "link up", || {
        client.info("replication", "master_link_status").as_deref() == Some("up")
    });
    client
}

/// Waits until a replica has everything, and makes it a master.
fn take_over(source: &Server, destination: &Server) -> Client {
    let mut replica = replicate(source, destination);
    let mut client = source.client();
    wait_until(Duration::from_secs(30), "same offset", || {
        offset(&mut client, "master_repl_offset") == offset(&mut replica, "master_repl_offset")
    });
    replica.ok(&["REPLICAOF", "NO", "ONE"]);
    replica
}

fn offset(client: &mut Client, field: &str) -> Option<u64> {
    client.info("replication", field)?.parse().ok()
}

/// The native replica is the model: what it makes equal, the comparison must call equal.
#[test]
fn a_native_replica_under_load_ends_up_equal_on_every_version() {
    let _ = require_server!();
    for binary in servers::modern() {
        let source = Server::start(binary, Options::new());
        let destination = Server::start(binary, Options::new());
        dataset::fill(&mut source.client(), 20_000, 1);
        let writer = Writer::start(&source, Load { seed: 2, keys: 20_000, per_second: 0 });
        let _replica = replicate(&source, &destination);
        let so_far = writer.sent();
        wait_until(Duration::from_secs(30), "a load of 20000", || writer.sent() > so_far + 20_000);
        writer.stop();
        take_over(&source, &destination);
        let equal = compare::assert_equal(&source, &destination);
        assert!(equal.keys > 19_000, "{equal:?}");
        assert_eq!((equal.databases, equal.digest), (16, true), "{equal:?}");
    }
}

/// One change on one side, one line in the list.
#[test]
fn the_comparison_sees_every_kind_of_difference() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new());
    dataset::fill(&mut source.client(), 1_000, 3);
    let stream = |i: &u64| dataset::Shape::of(*i) == dataset::Shape::Stream && dataset::database(*i) == 0;
    let stream = dataset::key((0..1_000).find(stream).unwrap());
    let later = (dataset::FAR_AWAY + 6).to_string();
    let changes: Vec<(&str, Vec<&[u8]>)> = vec![
        ("missing on the destination", vec![b"DEL", b"odd:hash"]),
        ("only on the destination", vec![b"SET", b"more", b"x"]),
        ("'odd:bitmap': source string", vec![b"SETBIT", b"odd:bitmap", b"1", b"1"]),
        ("'odd:zset': source zset", vec![b"ZADD", b"odd:zset", b"1.5", b"member-0"]),
        ("'odd:list': source list", vec![b"LPUSH", b"odd:list", b"x"]),
        ("'odd:set': source set", vec![b"SREM", b"odd:set", b"member-1"]),
        ("destination string", vec![b"SET", b"odd:set", b"another type"]),
        ("'odd:geo' expires", vec![b"PEXPIREAT", b"odd:geo", later.as_bytes()]),
        ("source stream", vec![b"XACK", &stream, b"workers", b"1700000000003-3"]),
        ("source stream", vec![b"XGROUP", b"DESTROY", &stream, b"idle"]),
    ];
    source.client().ok(&["PEXPIREAT", "odd:geo", &dataset::FAR_AWAY.to_string()]);
    source.client().ok(&["SAVE"]);
    let start_copy = || Server::start(binary, Options::new().rdb(&source.folder().join("dump.rdb")));
    assert!(compare::assert_equal(&source, &start_copy()).digest);
    for (expected, change) in changes {
        let copy = start_copy();
        let mut client = copy.client();
        let reply = client.ok(&change);
        let differences = compare::equal(&source, &copy).expect_err(expected);
        assert_eq!(differences.count, 1, "{change:?} {reply:?}: {differences:?}");
        assert!(differences.listed[0].contains(expected), "'{expected}' is not in: {differences:?}");
    }

    // The tool's own keys do not count, and the digest is then not asked.
    let copy = start_copy();
    copy.client().ok(&["SET", "shakedeck:checkpoint", "1"]);
    assert!(!compare::assert_equal(&source, &copy).digest);
}

#[test]
fn options_reach_the_server() {
    let binary = require_server!();
    let server = Server::start(
        binary,
        Options::new().requirepass("secret").user("app on >pass ~* +@all -psync").tls().diskless(false),
    );
    let mut app = Client::connect(server.address());
    assert!(app.error(&["PING"]).starts_with("NOAUTH"));
    assert!(app.error(&["AUTH", "app", "wrong"]).starts_with("WRONGPASS"));
    app.ok(&["AUTH", "app", "pass"]);
    assert!(app.error(&["PSYNC", "?", "-1"]).starts_with("NOPERM"));
    let mut client = server.client();
    assert_eq!(client.text(&["PING"]), "PONG");
    assert_eq!(client.list(&["CONFIG", "GET", "repl-diskless-sync"])[1], b"no");
    let port = client.list(&["CONFIG", "GET", "tls-port"]).remove(1);
    assert_eq!(String::from_utf8(port).unwrap(), server.tls_address().port().to_string());
    assert!(server.unix_socket().exists() && server.certificates().ca.exists());
}

#[test]
fn servers_end_when_dropped() {
    let binary = require_server!();
    let server = Server::start(binary, Options::new());
    let (address, process) = (server.address(), format!("/proc/{}", server.pid()));
    drop(server);
    assert!(Client::try_connect(address).is_err());
    assert!(!std::path::Path::new(&process).exists());
}
