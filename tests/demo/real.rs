//! Real servers as replica, as origin of payloads, and as both sides of the demo.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use shakedeck::demo::load::{Load, fill};
use shakedeck::demo::real::{RealServer, RespClient, find_server, read_store, write_store};
use shakedeck::demo::{
    CompareOptions, DATABASES, Demo, DemoOptions, ReplicaState, Reply, ServerOptions, Store, Taken, Transfer,
    compare,
};
use tokio::time::sleep;

use crate::{argv, filled, is_error, server, simple, unix_ms, until};

/// The real server, or a loud word on standard error.
pub fn real_server() -> Option<PathBuf> {
    let program = find_server();
    match &program {
        Some(program) => eprintln!("real server: {}", program.display()),
        None => eprintln!("SKIPPED: no redis-server or valkey-server is on PATH"),
    }
    program
}

/// What a server answers about every key, by the commands that a client would use: nothing of it depends on how RDB
/// bytes are read here.
async fn contents(address: SocketAddr) -> Vec<String> {
    let mut client = RespClient::connect(address).await.unwrap();
    let mut lines = Vec::new();
    for db in 0..DATABASES {
        client.command(&["SELECT", &db.to_string()]).await.unwrap();
        let Reply::Array(keys) = client.command(&["KEYS", "*"]).await.unwrap() else { panic!("no keys") };
        for key in keys {
            let Reply::Bulk(key) = key else { panic!("{key:?} is no key") };
            let Reply::Simple(kind) = client.command(&[b"TYPE".as_slice(), &key]).await.unwrap() else {
                panic!()
            };
            let read: Vec<&[u8]> = match kind.as_ref() {
                "none" => continue,
                "string" => vec![b"GET", &key],
                "list" => vec![b"LRANGE", &key, b"0", b"-1"],
                "set" => vec![b"SMEMBERS", &key],
                "hash" => vec![b"HGETALL", &key],
                "zset" => vec![b"ZRANGE", &key, b"0", b"-1", b"WITHSCORES"],
                "stream" => vec![b"XRANGE", &key, b"-", b"+"],
                other => panic!("type {other}"),
            };
            let mut value = client.command(&read).await.unwrap();
            match (&mut value, kind.as_ref()) {
                (Reply::Array(items), "set") => items.sort_by_key(|item| format!("{item:?}")),
                (Reply::Array(items), "hash") => {
                    let mut pairs: Vec<_> = items.chunks(2).map(<[Reply]>::to_vec).collect();
                    pairs.sort_by_key(|pair| format!("{pair:?}"));
                    *items = pairs.concat();
                }
                (Reply::Array(items), "zset") => {
                    // The same number may be printed in several ways.
                    for score in items.iter_mut().skip(1).step_by(2) {
                        let Reply::Bulk(text) = score else { panic!() };
                        *score = Reply::Double(std::str::from_utf8(text).unwrap().parse().unwrap());
                    }
                }
                _ => {}
            }
            let expiry = client.command(&[b"PEXPIRETIME".as_slice(), &key]).await.unwrap();
            // A key that ends during the test may be read from one server only.
            if matches!(expiry, Reply::Integer(at) if at >= 0 && (at as u64) < unix_ms() + 600_000) {
                continue;
            }
            lines.push(format!("{db} {:?} {kind} {expiry:?} {value:?}", String::from_utf8_lossy(&key)));
        }
    }
    lines.sort();
    lines
}

async fn assert_same_contents(one: SocketAddr, other: SocketAddr) {
    let (mine, theirs) = (contents(one).await, contents(other).await);
    assert!(mine.len() > 1_000, "only {} keys", mine.len());
    let difference = mine.iter().zip(&theirs).find(|(mine, theirs)| mine != theirs);
    assert!(mine == theirs, "{} and {} keys; first difference:\n{difference:#?}", mine.len(), theirs.len());
}

/// The writer and the stream are what a real replica takes: it syncs, follows a load, and holds the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_replica_follows_the_embedded_source() {
    let Some(program) = real_server() else { return };
    for transfer in [Transfer::Disk, Transfer::Diskless] {
        // 7.0 reads version 10 at most.
        let source =
            filled(ServerOptions { transfer, rdb_version: 10, ..ServerOptions::default() }, 5_000).await;
        let replica = RealServer::start(&program, &["--repl-diskless-load", "disabled"]).await.unwrap();
        let mut control = RespClient::connect(replica.address()).await.unwrap();
        let port = source.address().port().to_string();
        assert_eq!(control.command(&["REPLICAOF", "127.0.0.1", &port]).await.unwrap(), simple("OK"));
        until("the replica is online", async || {
            source.replicas().iter().any(|replica| replica.state == ReplicaState::Online)
        })
        .await;

        let (mut load, mut client) = (Load::new(5_000, 5), source.client());
        for _ in 0..100 {
            let mut commands = Vec::new();
            while commands.len() < 100 {
                load.next(&mut commands, unix_ms());
            }
            assert_eq!(client.execute_all(&mut commands), Taken::All);
        }
        // The replica catches up in the middle of PINGs and ends of keys.
        until("the replica has the whole stream", async || {
            source.request_acknowledgement();
            let (_, offset) = source.replication();
            sleep(Duration::from_millis(20)).await;
            source.replicas().first().is_some_and(|replica| replica.acknowledged >= offset)
        })
        .await;
        assert_same_contents(source.address(), replica.address()).await;

        // The same again by DUMP, which shows groups, consumers and pending entries too.
        let (theirs, tolerance) = read_store(replica.address()).await.unwrap();
        let how = CompareOptions { now_ms: unix_ms(), expiry_tolerance_ms: tolerance };
        let comparison = source.with_store(|mine| compare(mine, &theirs, how, |_, _| false));
        assert!(comparison.is_equal(), "{comparison}");
    }
}

/// What a real server dumps, the embedded destination restores, and the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_travel_between_real_and_embedded_servers() {
    let Some(program) = real_server() else { return };
    let real = RealServer::start(&program, &[]).await.unwrap();
    let mut data = Store::default();
    fill(&mut data, 3_000, 9, unix_ms());
    write_store(real.address(), &data).await.unwrap();

    // Encodings that only a real server makes: compressed strings, and what it converted by itself.
    let mut from = RespClient::connect(real.address()).await.unwrap();
    let mut to = Vec::new();
    let long = "compressible ".repeat(100);
    let mut commands = vec![argv(&["SET", "lzf", &long]), argv(&["PFADD", "hll", "a", "b", "c"])];
    commands.extend((0..600).map(|n| argv(&["HSET", "big hash", &format!("f{n}"), &long])));
    commands.extend((0..600).map(|n| argv(&["RPUSH", "big list", &format!("{n}"), &long])));
    commands.extend((0..300).map(|n| argv(&["XADD", "stream", &format!("{n}-1"), "f", &long])));
    commands.push(argv(&["XGROUP", "CREATE", "stream", "g", "0"]));
    commands.push(argv(&["XREADGROUP", "GROUP", "g", "c", "COUNT", "50", "STREAMS", "stream", ">"]));
    commands.push(argv(&["XDEL", "stream", "7-1"]));
    let replies = from.pipeline(&commands).await.unwrap();
    assert!(!replies.iter().any(is_error));

    let destination = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(destination.address()).await.unwrap();
    for db in 0..DATABASES {
        from.command(&["SELECT", &db.to_string()]).await.unwrap();
        to.push(argv(&["SELECT", &db.to_string()]));
        let Reply::Array(keys) = from.command(&["KEYS", "*"]).await.unwrap() else { panic!() };
        for key in keys {
            let Reply::Bulk(key) = key else { panic!() };
            let ask = [vec![b"DUMP".to_vec(), key.clone()], vec![b"PEXPIRETIME".to_vec(), key.clone()]];
            let answers = from.pipeline(&ask).await.unwrap();
            let [Reply::Bulk(payload), Reply::Integer(at)] = answers.as_slice() else { continue };
            let ttl = (*at).max(0).to_string().into_bytes();
            to.push(vec![
                b"RESTORE".to_vec(),
                key,
                ttl,
                payload.clone(),
                b"ABSTTL".to_vec(),
                b"REPLACE".to_vec(),
            ]);
        }
    }
    for (command, reply) in to.iter().zip(client.pipeline(&to).await.unwrap()) {
        assert_eq!(reply, simple("OK"), "{:?}", String::from_utf8_lossy(&command[1]));
    }
    assert_same_contents(real.address(), destination.address()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_with_real_servers_compares_what_replication_copies() {
    if real_server().is_none() {
        return;
    }
    let options = DemoOptions { keys: 2_000, rate: 2_000, real: true, ..DemoOptions::default() };
    let mut demo = Demo::start(options).await.unwrap();
    let mut control = RespClient::connect(demo.destination_address()).await.unwrap();
    let port = demo.source_address().port().to_string();
    control.command(&["REPLICAOF", "127.0.0.1", &port]).await.unwrap();
    let mut source = RespClient::connect(demo.source_address()).await.unwrap();
    until("the load goes on", async || demo.load_commands() > 3_000).await;
    demo.stop_load().await;
    until("the replica has everything", async || {
        source.command(&["WAIT", "1", "1000"]).await.unwrap() == Reply::Integer(1)
    })
    .await;
    assert!(demo.source_offset().await.unwrap() > 0);
    let comparison = demo.compare().await.unwrap();
    assert!(comparison.is_equal() && comparison.compared() > 1_000, "{comparison}");
    control.command(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    control.command(&["SET", "more", "1"]).await.unwrap();
    assert_eq!(demo.compare().await.unwrap().extra, 1);
}
