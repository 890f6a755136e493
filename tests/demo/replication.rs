//! The source: handshake, both forms of transfer, the stream, going on after a cut link, and every fault of the link.

use std::time::Duration;

use shakedeck::demo::faults::{Fault, Faults, PsyncRefusal, RdbFault};
use shakedeck::demo::real::RespClient;
use shakedeck::demo::{Demo, DemoOptions, Eviction, ReplicaState, ServerOptions, Transfer};
use shakedeck::rdb::{Decoder, Limits, RdbError};
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::replica::{Replica, restore_all, synced};
use crate::{argv, filled, until};

/// The whole way: RDB, then the stream of a load, for both forms of transfer and every attribute of keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_written_replica_makes_both_sides_equal() {
    for (transfer, eviction) in [(Transfer::Disk, Eviction::Lru), (Transfer::Diskless, Eviction::Lfu)] {
        let source = ServerOptions { transfer, eviction, ..ServerOptions::default() };
        let options = DemoOptions { keys: 5_000, rate: 5_000, source, ..DemoOptions::default() };
        let mut demo = Demo::start(options).await.unwrap();
        let mut destination = RespClient::connect(demo.destination_address()).await.unwrap();

        let mut replica = Replica::connect(demo.source_address()).await;
        replica.handshake().await;
        assert_eq!(replica.psync().await, "+FULLRESYNC");
        let rdb = replica.rdb().await;
        replica.acknowledge().await;
        // The load may have added keys and removed others by then.
        assert!(restore_all(&rdb, &mut destination).await > 4_000);
        destination.command(&["SELECT", "0"]).await.unwrap();

        let began_with = demo.load_commands();
        until("the load goes on", async || demo.load_commands() > began_with + 10_000).await;
        demo.stop_load().await;
        let offset = demo.source_offset().await.unwrap();
        replica.replay(&mut destination, offset).await;

        let comparison = demo.compare().await.unwrap();
        assert!(comparison.is_equal(), "{comparison}");
        assert!(comparison.compared() > 4_000, "{comparison}");
        assert_eq!(comparison.by_type.len(), 6, "{comparison}");
        let (source, _) = demo.embedded().unwrap();
        replica.acknowledge().await;
        until("the source knows the replica's offset", async || {
            source
                .replicas()
                .first()
                .is_some_and(|known| known.acknowledged == replica.offset && known.port == 7777)
        })
        .await;

        // The comparison can fail.
        source.execute(3, &["SET", "only here", "1"]);
        assert_eq!(demo.compare().await.unwrap().missing, 1);
    }
}

#[tokio::test]
async fn after_a_diskless_transfer_the_stream_waits_for_an_ack_in_time() {
    let faults = Faults { lose_acks: Fault::once(()), ..Default::default() };
    let options = ServerOptions { faults, saving: Duration::from_millis(300), ..ServerOptions::default() };
    let source = filled(options, 10).await;
    let mut replica = Replica::connect(source.address()).await;
    replica.handshake().await;
    replica.psync().await;
    // Too early: the RDB is not even begun.
    replica.offset += 1;
    replica.acknowledge().await;
    until("the early ACK is read", async || source.replicas()[0].acknowledged == replica.offset).await;
    assert_eq!(source.replicas()[0].state, ReplicaState::WaitBgsave);
    replica.offset -= 1;
    replica.rdb().await;
    source.execute(2, &["INCR", "n"]);
    replica.acknowledge().await;
    replica.fill().await;
    assert!(replica.buffer.is_empty(), "neither the early ACK nor the lost one starts the stream");
    replica.acknowledge().await;
    assert_eq!(replica.next().await, ["SELECT", "2"]);
    assert_eq!(replica.next().await, ["INCR", "n"]);
    assert_eq!(replica.offset, source.replication().1);
}

#[tokio::test]
async fn keep_alives_come_while_the_rdb_is_made_and_pings_in_the_stream() {
    let options = ServerOptions {
        transfer: Transfer::Disk,
        saving: Duration::from_millis(100),
        keep_alive: Duration::from_millis(10),
        ping_period: Duration::from_millis(100),
        ..ServerOptions::default()
    };
    let source = filled(options, 10).await;
    let mut replica = synced(&source).await;
    assert!(replica.newlines >= 2, "{} keep-alives", replica.newlines);
    let mut seen = None;
    until("a PING comes", async || {
        replica.fill().await;
        seen = replica.command();
        seen.is_some()
    })
    .await;
    assert_eq!(seen, Some(argv(&["PING"])));
    source.request_acknowledgement();
    assert_eq!(replica.next().await, ["REPLCONF", "GETACK", "*"]);
}

#[tokio::test]
async fn a_replica_goes_on_where_it_was_unless_the_source_cannot() {
    let source = filled(ServerOptions::default(), 10).await;
    let mut replica = synced(&source).await;
    source.execute(1, &["INCR", "n"]);
    assert_eq!(replica.next().await, ["SELECT", "1"]);

    // INCR was not taken off the buffer: it comes again, and nothing says SELECT.
    let mut replica = replica.reconnect(source.address()).await;
    replica.handshake().await;
    assert_eq!(replica.psync().await, "+CONTINUE");
    assert_eq!(replica.next().await, ["INCR", "n"]);

    // After a failover the old id counts, and the new one is told.
    let old = replica.replid.clone();
    source.faults(|faults| faults.new_replid = Fault::once(()));
    let mut replica = replica.reconnect(source.address()).await;
    replica.handshake().await;
    assert_eq!(replica.psync().await, "+CONTINUE");
    assert_ne!(replica.replid, old);

    source.execute(1, &["INCR", "n"]);
    source.forget_backlog();
    let mut replica = replica.reconnect(source.address()).await;
    replica.handshake().await;
    assert_eq!(replica.psync().await, "+FULLRESYNC");
}

#[tokio::test]
async fn a_replica_that_says_nothing_is_dropped_and_one_that_acknowledges_is_kept() {
    let replica_timeout = Duration::from_millis(400);
    let source = filled(ServerOptions { replica_timeout, ..ServerOptions::default() }, 10).await;
    let mut replica = synced(&source).await;
    let kept_until = Instant::now() + 2 * replica_timeout;
    while Instant::now() < kept_until {
        replica.acknowledge().await;
        replica.fill().await;
        assert!(!replica.closed);
    }
    until("the silent replica is dropped", async || {
        replica.fill().await;
        replica.closed && source.replicas().is_empty()
    })
    .await;
}

#[tokio::test]
async fn psync_in_one_packet_with_another_command_is_refused() {
    let source = filled(ServerOptions::default(), 10).await;
    let mut replica = Replica::connect(source.address()).await;
    replica.stream.write_all(b"PING\r\nPSYNC ? -1\r\n").await.unwrap();
    assert_eq!(replica.line().await, "+PONG");
    assert_eq!(replica.line().await, "-ERR SYNC and PSYNC are invalid with pending output");
}

#[tokio::test]
async fn the_link_can_be_cut_at_a_byte_of_the_stream() {
    let source = filled(ServerOptions::default(), 10).await;
    source.faults(|faults| faults.close_stream_after = Fault::once(30));
    let mut replica = synced(&source).await;
    source.execute(0, &["SET", "a", "some value"]);
    until("the link is cut", async || {
        replica.fill().await;
        replica.closed
    })
    .await;
    assert_eq!(replica.buffer.len(), 30);
    assert_eq!(replica.command(), Some(argv(&["SELECT", "0"])));
    assert_eq!(replica.command(), None);
    let mut replica = replica.reconnect(source.address()).await;
    replica.handshake().await;
    assert_eq!(replica.psync().await, "+CONTINUE");
    assert_eq!(replica.next().await, ["SET", "a", "some value"]);
}

#[tokio::test]
async fn psync_can_be_refused_and_asked_for_again() {
    let source = filled(ServerOptions::default(), 10).await;
    for (refusal, code) in [
        (PsyncRefusal::Loading, "-LOADING"),
        (PsyncRefusal::NoMasterLink, "-NOMASTERLINK"),
        (PsyncRefusal::NoPermission, "-NOPERM"),
        (PsyncRefusal::NoAuth, "-NOAUTH"),
        (PsyncRefusal::Unknown, "-ERR unknown command"),
    ] {
        source.faults(|faults| faults.psync = Fault::once(refusal));
        let mut replica = Replica::connect(source.address()).await;
        replica.handshake().await;
        let reply = replica.psync().await;
        assert!(reply.starts_with(code), "{reply}");
        assert_eq!(replica.psync().await, "+FULLRESYNC", "the second time");
    }
}

#[tokio::test]
async fn a_password_is_asked_for() {
    let credentials = Some(("mover".to_owned(), "secret".to_owned()));
    let source = filled(ServerOptions { credentials, ..ServerOptions::default() }, 10).await;
    let mut replica = Replica::connect(source.address()).await;
    assert!(replica.ask(&["PING"]).await.starts_with("-NOAUTH"));
    assert!(replica.psync().await.starts_with("-NOAUTH"));
    assert!(replica.ask(&["AUTH", "mover", "wrong"]).await.starts_with("-WRONGPASS"));
    assert_eq!(replica.ask(&["AUTH", "mover", "secret"]).await, "+OK");
    assert_eq!(replica.psync().await, "+FULLRESYNC");
}

#[tokio::test]
async fn the_rdb_can_be_spoilt() {
    let source = filled(ServerOptions::default(), 100).await;
    let spoilt = async |fault: RdbFault| {
        source.faults(|faults| faults.rdb = Fault::once(fault));
        let mut replica = Replica::connect(source.address()).await;
        replica.handshake().await;
        replica.psync().await;
        replica
    };
    let decode = |rdb: &[u8]| {
        let mut decoder = Decoder::new(rdb, Limits::default());
        loop {
            match decoder.next() {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the RDB is good"),
                Err(error) => return error,
            }
        }
    };
    let rdb = spoilt(RdbFault::WrongChecksum).await.rdb().await;
    assert!(matches!(decode(&rdb), RdbError::WrongChecksum { .. }));
    let rdb = spoilt(RdbFault::Garbage).await.rdb().await;
    assert!(matches!(decode(&rdb), RdbError::Corrupt { offset: ..10, .. }), "{}", decode(&rdb));
    let rdb = spoilt(RdbFault::HugeLength).await.rdb().await;
    let error = decode(&rdb).to_string();
    assert!(rdb.len() < 20 && error.contains("impossible length"), "{error}");
    assert_eq!(spoilt(RdbFault::HugeAnnouncement).await.line().await, "$4294967296");
    let error = spoilt(RdbFault::SaveFailed).await.line().await;
    assert_eq!(error, "-ERR BGSAVE failed, replication can't continue");

    let mut replica = spoilt(RdbFault::CutAt(50)).await;
    assert!(replica.line().await.starts_with("$EOF:"));
    until("the link is cut", async || {
        replica.fill().await;
        replica.closed
    })
    .await;
    assert_eq!(replica.buffer.len(), 50);
}

#[tokio::test]
async fn output_can_come_byte_by_byte_stall_and_fall_silent() {
    let source = filled(ServerOptions { transfer: Transfer::Disk, ..ServerOptions::default() }, 20).await;
    source.faults(|faults| {
        faults.one_byte_writes = true;
        faults.stall_after = Fault::once((100, Duration::from_millis(300)));
    });
    let started = Instant::now();
    let mut replica = synced(&source).await;
    assert!(started.elapsed() >= Duration::from_millis(300));
    source.faults(|faults| {
        faults.one_byte_writes = false;
        faults.silent_after = Some(0);
    });
    source.execute(0, &["INCR", "n"]);
    replica.fill().await;
    assert!(replica.buffer.is_empty() && !replica.closed);
}
