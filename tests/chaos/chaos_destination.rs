//! The destination says no, goes away, comes back, or another server takes its place: the state and its cause are on the
//! screen, the source is received all the while, and nothing is lost.

use super::field::{Field, MINUTES, source_options, streaming, writer_says};
use super::require_server;
use super::support::proxy::{Break, Way};
use super::support::{Client, Options, Server, Shakedeck, wait_until};

/// While the destination refuses, what the source sends is received and acknowledged.
fn received_all_the_while(field: &Field, run: &Shakedeck) {
    let received = |name: &str| run.status_json()["sources"][0][name].as_u64().unwrap();
    let (offset, ack) = (received("offset_received"), received("last_ack_unix_ms"));
    field.writes(1_000);
    wait_until(MINUTES, "more of the source, acknowledged", || {
        received("offset_received") > offset && received("last_ack_unix_ms") > ack
    });
}

/// One state after the other in one run; each is named with its cause, each ends as soon as it is mended.
#[test]
fn each_refusal_is_named_and_waited_for() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(2_000);
    let run = field.setup().start();
    streaming(&run);
    let mut there = field.destination.client();
    let busy_limit = if binary.at_least((7, 0), (7, 2)) { "busy-reply-threshold" } else { "lua-time-limit" };
    there.ok(&["CONFIG", "SET", busy_limit, "50"]);
    let folder = field.destination.folder().join("dump.rdb");
    type Step<'a> = Box<dyn Fn(&mut Client) + 'a>;
    let commands = |lines: &'static [&'static str]| -> Step<'_> {
        Box::new(move |client: &mut Client| {
            lines.iter().for_each(|line| {
                client.ok(&line.split(' ').collect::<Vec<_>>());
            })
        })
    };
    let busy = || -> Step<'_> {
        Box::new(|_: &mut Client| {
            let mut client = field.destination.client();
            std::thread::spawn(move || client.try_cmd(&["EVAL", "while true do end", "0"]));
        })
    };
    let saves = |fails: bool| -> Step<'_> {
        let folder = folder.clone();
        Box::new(move |client: &mut Client| {
            // A folder in place of the file: the save cannot replace it.
            if fails {
                std::fs::create_dir_all(folder.join("in the way")).unwrap();
                client.ok(&["CONFIG", "SET", "save", "3600 1"]);
            } else {
                std::fs::remove_dir_all(&folder).unwrap();
            }
            client.ok(&["BGSAVE"]);
            let status = if fails { "err" } else { "ok" };
            wait_until(MINUTES, "the save", || {
                client.info("persistence", "rdb_bgsave_in_progress").as_deref() == Some("0")
                    && client.info("persistence", "rdb_last_bgsave_status").as_deref() == Some(status)
            });
        })
    };
    let refusals: [(&str, Step<'_>, Step<'_>); 8] = [
        ("OOM", commands(&["CONFIG SET maxmemory 1"]), commands(&["CONFIG SET maxmemory 0"])),
        ("MISCONF", saves(true), saves(false)),
        ("BUSY", busy(), commands(&["SCRIPT KILL"])),
        ("NOPERM", commands(&["ACL SETUSER default -append"]), commands(&["ACL SETUSER default +append"])),
        ("READONLY", commands(&["REPLICAOF 127.0.0.1 1"]), commands(&["REPLICAOF NO ONE"])),
        (
            "MASTERDOWN",
            commands(&[
                "CONFIG SET replica-read-only no",
                "CONFIG SET replica-serve-stale-data no",
                "REPLICAOF 127.0.0.1 1",
            ]),
            commands(&["REPLICAOF NO ONE"]),
        ),
        (
            "NOREPLICAS",
            commands(&["CONFIG SET min-replicas-to-write 1"]),
            commands(&["CONFIG SET min-replicas-to-write 0"]),
        ),
        // Once more: the first one may have met a batch at any point.
        ("BUSY", busy(), commands(&["SCRIPT KILL"])),
    ];
    for (code, harm, mend) in refusals {
        println!("{code}");
        harm(&mut there);
        let status = writer_says(&run, "waiting", &[code]);
        assert!(status["destinations"][0]["last_error"].as_str().unwrap().contains(code), "{status}");
        received_all_the_while(&field, &run);
        mend(&mut there);
        let behind = run.status_json()["sources"][0]["offset_received"].as_u64();
        run.wait_status(MINUTES, "going on", |status| {
            status["destinations"][0]["state"] == "ok"
                && status["sources"][0]["offset_applied"].as_u64() >= behind
        });
    }
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}

/// A destination with an AOF that is killed and started again, inside of the RDB and of the stream.
#[test]
fn the_destination_is_restarted() {
    let binary = require_server!();
    let lasting = Options::new()
        .config("appendonly", "yes")
        // Slow enough to be met while it loads.
        .config("key-load-delay", "50")
        .config("loading-process-events-interval-bytes", "1024");
    let mut field = Field::with(binary, source_options(), lasting);
    field.load(1_000);
    field.to.throttle(300_000);
    let run = field.setup().start();
    wait_until(MINUTES, "a part of the RDB", || field.to.passed(Way::ToServer) > 100_000);
    field.destination.restart();
    field.to.calm();
    streaming(&run);
    for saved in [false, true] {
        field.writes(1_000);
        if saved {
            let _ = field.destination.client().try_cmd(&["SHUTDOWN", "SAVE"]);
        }
        field.destination.restart();
        writer_says(&run, "ok", &[]);
    }
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}

/// A replica of the destination that is in step with it.
fn replica_of(server: &Server) -> Server {
    let replica = Server::start(server.binary(), Options::new());
    replica.client().ok(&["REPLICAOF", "127.0.0.1", &server.port().to_string()]);
    wait_until(MINUTES, "a replica in step", || {
        replica.client().info("replication", "master_link_status").as_deref() == Some("up")
    });
    replica
}

/// `FAILOVER`: the master becomes a replica and keeps its connections. New ones lead to the new master.
#[test]
fn the_destination_hands_over_to_its_replica() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(2_000);
    let mut replica = replica_of(&field.destination);
    let run = field.setup().start();
    streaming(&run);
    field.writes(1_000);
    field.destination.client().ok(&["FAILOVER"]);
    wait_until(MINUTES, "the replica is a master", || {
        replica.client().info("replication", "role").as_deref() == Some("master")
    });
    writer_says(&run, "waiting", &["READONLY"]);
    received_all_the_while(&field, &run);
    // As a name or a virtual address would: open connections stay where they are.
    field.to.switch(replica.address());
    writer_says(&run, "ok", &[]);
    std::mem::swap(&mut field.destination, &mut replica);
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}

/// The master dies and its replica has not got the last writes: they are applied again from the spool.
#[test]
fn a_failover_of_the_destination_loses_its_last_writes() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(2_000);
    let mut replica = replica_of(&field.destination);
    let run = field.setup().start();
    streaming(&run);
    field.writes(1_000);
    // A master streams to a new replica only after its first ACK, up to a second later.
    wait_until(MINUTES, "the stream's checkpoint on the replica", || {
        let mut client = replica.client();
        let keys = client.list(&["KEYS", "shakedeck:checkpoint:*"]);
        let mut values = keys.iter().flat_map(|key| client.list(&[&b"HVALS"[..], key]));
        values.any(|text| String::from_utf8_lossy(&text).contains(" stream "))
    });
    // From here on the replica gets nothing any more: it is promoted before its master is known to be dead.
    replica.client().ok(&["REPLICAOF", "NO", "ONE"]);
    let applied = run.status_json()["sources"][0]["offset_applied"].as_u64();
    field.writes(2_000);
    run.wait_status(MINUTES, "writes that the replica has not got", |status| {
        status["sources"][0]["offset_applied"].as_u64() > applied.map(|offset| offset + 50_000)
    });
    field.destination.kill();
    field.to.switch(replica.address());
    field.to.cut(Break::Reset);
    std::mem::swap(&mut field.destination, &mut replica);
    wait_until(MINUTES, "the older checkpoint is noticed", || {
        run.output().contains("it lost confirmed writes")
    });
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}
