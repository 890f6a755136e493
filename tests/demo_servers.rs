//! The demo's servers against a replica written by hand here, and against real ones.
//!
//! The replica shares nothing with the engine, so the servers are known to be right before the engine is tested with them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use shakedeck::demo::faults::{CommandRefusal, DropConnection, Fault, PsyncRefusal, RdbFault};
use shakedeck::demo::load::{Load, fill};
use shakedeck::demo::real::{RealServer, RespClient, find_server, read_store, write_store};
use shakedeck::demo::{
    Argv, Compared, DATABASES, Demo, DemoOptions, Eviction, ReplicaState, Reply, Server, ServerOptions,
    Transfer, compare,
};
use shakedeck::rdb::{Decoder, Item, Limits, RdbError, Value, dump};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(60);

fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

fn argv(words: &[&str]) -> Argv {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn simple(text: &'static str) -> Reply {
    Reply::simple(text)
}

fn error(reply: &Reply) -> &str {
    match reply {
        Reply::Error(text) => text,
        other => panic!("{other:?} is no error"),
    }
}

/// Waits until `condition` holds; the text says what was waited for.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A replica of the simplest kind.
struct Replica {
    stream: TcpStream,
    buffer: Vec<u8>,
    replid: String,
    /// Offset of the last byte of the stream that was taken off the buffer.
    offset: u64,
    /// Keep-alives seen.
    newlines: usize,
    closed: bool,
}

impl Replica {
    async fn connect(address: SocketAddr) -> Replica {
        let stream = TcpStream::connect(address).await.unwrap();
        Replica { stream, buffer: Vec::new(), replid: "?".to_owned(), offset: 0, newlines: 0, closed: false }
    }

    /// The same replica on a new connection.
    async fn reconnect(self, address: SocketAddr) -> Replica {
        let fresh = Replica::connect(address).await;
        Replica { replid: self.replid, offset: self.offset, ..fresh }
    }

    async fn send(&mut self, words: &[&str]) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        words.iter().for_each(|word| bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes()));
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn ask(&mut self, words: &[&str]) -> String {
        self.send(words).await;
        self.line().await
    }

    /// Reads what comes within a moment.
    async fn fill(&mut self) {
        if let Ok(count) = timeout(Duration::from_millis(100), self.stream.read_buf(&mut self.buffer)).await {
            self.closed = matches!(count, Ok(0) | Err(_));
        }
    }

    async fn take(&mut self, count: usize) -> Vec<u8> {
        let deadline = Instant::now() + DEADLINE;
        while self.buffer.len() < count {
            self.fill().await;
            assert!(!self.closed, "the link ended after {} of {count} bytes", self.buffer.len());
            assert!(Instant::now() < deadline, "only {} of {count} bytes came", self.buffer.len());
        }
        self.buffer.drain(..count).collect()
    }

    /// The next line that is not a keep-alive.
    async fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            match self.take(1).await[0] {
                b'\n' if line.is_empty() => self.newlines += 1,
                b'\n' => return String::from_utf8(line).unwrap().trim_end().to_owned(),
                byte => line.push(byte),
            }
        }
    }

    async fn handshake(&mut self) {
        assert_eq!(self.ask(&["PING"]).await, "+PONG");
        assert_eq!(self.ask(&["REPLCONF", "listening-port", "7777"]).await, "+OK");
        let version = self.ask(&["REPLCONF", "version", "9.0.0"]).await;
        assert_eq!(version, "-ERR Unrecognized REPLCONF option: version");
        assert_eq!(self.ask(&["REPLCONF", "capa", "eof"]).await, "+OK");
        assert_eq!(self.ask(&["REPLCONF", "capa", "psync2"]).await, "+OK");
    }

    /// Asks for the stream; answers the first word of the reply, or the whole reply where it is no yes.
    async fn psync(&mut self) -> String {
        let next = if self.replid == "?" { -1 } else { self.offset as i64 + 1 };
        let replid = self.replid.clone();
        let reply = self.ask(&["PSYNC", &replid, &next.to_string()]).await;
        match reply.split(' ').collect::<Vec<_>>().as_slice() {
            ["+FULLRESYNC", replid, offset] => {
                self.replid = (*replid).to_owned();
                self.offset = offset.parse().unwrap();
                "+FULLRESYNC".to_owned()
            }
            ["+CONTINUE", replid] => {
                self.replid = (*replid).to_owned();
                "+CONTINUE".to_owned()
            }
            _ => reply,
        }
    }

    async fn rdb(&mut self) -> Vec<u8> {
        let header = self.line().await;
        let Some(mark) = header.strip_prefix("$EOF:") else {
            let length = header.strip_prefix('$').unwrap_or_else(|| panic!("{header}"));
            return self.take(length.parse().unwrap()).await;
        };
        // The mark is drawn for each transfer here, so it cannot stand in the data.
        let mut rdb = Vec::new();
        while !rdb.ends_with(mark.as_bytes()) {
            rdb.extend(self.take(self.buffer.len().max(1)).await);
        }
        rdb.truncate(rdb.len() - mark.len());
        rdb
    }

    async fn acknowledge(&mut self) {
        let offset = self.offset.to_string();
        self.send(&["REPLCONF", "ACK", &offset]).await;
    }

    /// The next whole command of the stream, if it has come.
    fn command(&mut self) -> Option<Argv> {
        let line = |at: usize| {
            let end = at + self.buffer.get(at..)?.iter().position(|byte| *byte == b'\n')?;
            let number: usize = std::str::from_utf8(&self.buffer[at + 1..end - 1]).unwrap().parse().unwrap();
            Some((number, end + 1))
        };
        assert!(self.buffer.is_empty() || self.buffer[0] == b'*', "the stream is out of step");
        let (count, mut at) = line(0)?;
        let mut argv = Vec::new();
        for _ in 0..count {
            let (length, start) = line(at)?;
            at = start + length + 2;
            argv.push(self.buffer.get(start..at)?[..length].to_vec());
        }
        self.buffer.drain(..at);
        self.offset += at as u64;
        Some(argv)
    }

    /// Waits for the next command of the stream that is not a PING.
    async fn next(&mut self) -> Vec<String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(argv) = self.command() {
                if argv[0] != b"PING" {
                    return argv
                        .iter()
                        .map(|argument| String::from_utf8_lossy(argument).into_owned())
                        .collect();
                }
                continue;
            }
            self.fill().await;
            assert!(!self.closed && Instant::now() < deadline, "no command came (closed: {})", self.closed);
        }
    }

    /// Applies the stream to `destination` until it has come as far as `offset`.
    async fn replay(&mut self, destination: &mut RespClient, offset: u64) {
        let deadline = Instant::now() + DEADLINE;
        let mut last_ack = Instant::now();
        while self.offset < offset {
            self.fill().await;
            let mut batch = Vec::new();
            while let Some(argv) = self.command() {
                if argv[0] != b"PING" && argv[0] != b"REPLCONF" {
                    batch.push(argv);
                }
            }
            if let Some(error) =
                destination.pipeline(&batch).await.unwrap().iter().find(|reply| is_error(reply))
            {
                panic!("the destination refused a command of the stream: {error:?}");
            }
            if last_ack.elapsed() > Duration::from_millis(500) {
                self.acknowledge().await;
                last_ack = Instant::now();
            }
            assert!(!self.closed && Instant::now() < deadline, "at {} of {offset}", self.offset);
        }
    }
}

fn is_error(reply: &Reply) -> bool {
    match reply {
        Reply::Error(_) => true,
        Reply::Array(items) => items.iter().any(is_error),
        _ => false,
    }
}

/// Puts an RDB into a server with RESTORE and answers how many keys it had.
async fn restore_all(rdb: &[u8], destination: &mut RespClient) -> usize {
    let mut decoder = Decoder::new(rdb, Limits::default());
    let (mut version, mut db, mut keys, mut ended, mut batch) = (0, u32::MAX, 0, false, Vec::new());
    while let Some(item) = decoder.next().unwrap() {
        match item {
            Item::Header { version: found, .. } => version = found,
            Item::Entry(entry) => {
                if entry.db != db {
                    db = entry.db;
                    batch.push(argv(&["SELECT", &db.to_string()]));
                }
                let Value::Raw(raw) = entry.value else { panic!("{:?}", entry.value) };
                let mut payload = Vec::new();
                dump::append_payload(&mut payload, entry.type_byte, raw, version);
                let ttl = entry.expire_at_ms.unwrap_or(0).to_string().into_bytes();
                batch.push(vec![b"RESTORE".to_vec(), entry.key.to_vec(), ttl, payload, b"ABSTTL".to_vec()]);
                keys += 1;
            }
            Item::End { .. } => ended = true,
            _ => {}
        }
    }
    assert!(ended, "the RDB has no end");
    let replies = destination.pipeline(&batch).await.unwrap();
    assert!(replies.iter().all(|reply| *reply == simple("OK")), "{:?}", replies.iter().find(|r| is_error(r)));
    keys
}

async fn server(options: ServerOptions) -> Server {
    Server::start(options).await.unwrap()
}

async fn filled(options: ServerOptions, keys: u64) -> Server {
    let source = server(options).await;
    source.with_store(|store| fill(store, keys, 5, unix_ms()));
    source
}

/// A replica that has got its RDB and its first ACK through.
async fn synced(source: &Server) -> Replica {
    let mut replica = Replica::connect(source.address()).await;
    replica.handshake().await;
    assert_eq!(replica.psync().await, "+FULLRESYNC");
    replica.rdb().await;
    replica.acknowledge().await;
    until("the replica is online", async || {
        source.replicas().iter().any(|replica| replica.state == ReplicaState::Online)
    })
    .await;
    replica
}

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
    let faults = shakedeck::demo::faults::Faults { lose_acks: Fault::once(()), ..Default::default() };
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
    assert!(rdb.len() < 20 && matches!(decode(&rdb), RdbError::Truncated { .. }), "{}", decode(&rdb));
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

#[tokio::test]
async fn a_client_gets_the_answers_of_redis() {
    let source = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(source.address()).await.unwrap();
    let mut other = RespClient::connect(source.address()).await.unwrap();
    let unknown = client.command(&["NOSUCH", "a"]).await.unwrap();
    assert_eq!(error(&unknown), "ERR unknown command 'NOSUCH', with args beginning with: 'a' ");
    let arity = client.command(&["GET"]).await.unwrap();
    assert_eq!(error(&arity), "ERR wrong number of arguments for 'get' command");

    // Database and transaction belong to the connection.
    let replies = client
        .pipeline(&[
            argv(&["SELECT", "3"]),
            argv(&["RPUSH", "l", "a", "b"]),
            argv(&["INCR", "l"]),
            argv(&["MULTI"]),
            argv(&["INCR", "n"]),
            argv(&["SELECT", "4"]),
            argv(&["SET", "k", "v"]),
            argv(&["EXEC"]),
            argv(&["DBSIZE"]),
        ])
        .await
        .unwrap();
    assert_eq!(error(&replies[2]), "WRONGTYPE Operation against a key holding the wrong kind of value");
    assert_eq!(replies[7], Reply::Array(vec![Reply::Integer(1), simple("OK"), simple("OK")]));
    assert_eq!(replies[8], Reply::Integer(1), "the connection is in database 4 now");
    assert_eq!(other.command(&["DBSIZE"]).await.unwrap(), Reply::Integer(0));

    let replies = client
        .pipeline(&[argv(&["MULTI"]), argv(&["NOSUCH"]), argv(&["SET", "x", "1"]), argv(&["EXEC"])])
        .await
        .unwrap();
    assert_eq!(error(&replies[3]), "EXECABORT Transaction discarded because of previous errors.");
    assert_eq!(client.command(&["EXISTS", "x"]).await.unwrap(), Reply::Integer(0));

    client.pipeline(&[argv(&["SELECT", "0"]), argv(&["WATCH", "w"])]).await.unwrap();
    other.command(&["SET", "w", "1"]).await.unwrap();
    let replies =
        client.pipeline(&[argv(&["MULTI"]), argv(&["SET", "w", "2"]), argv(&["EXEC"])]).await.unwrap();
    assert_eq!(replies[2], Reply::NullArray);
    assert_eq!(other.command(&["GET", "w"]).await.unwrap(), Reply::bulk("1"));

    // What is relative as typed is absolute for replicas.
    let mut replica = synced(&source).await;
    client.command(&["SET", "t", "v", "EX", "100"]).await.unwrap();
    assert_eq!(replica.next().await, ["SELECT", "0"]);
    let travelled = replica.next().await;
    assert_eq!(travelled[..4], ["SET", "t", "v", "PXAT"]);
    assert!(travelled[4].parse::<u64>().unwrap().abs_diff(unix_ms() + 100_000) < 30_000);
    client.command(&["XADD", "s", "MAXLEN", "~", "5", "*", "f", "v"]).await.unwrap();
    let travelled = replica.next().await;
    assert_eq!(travelled[..5], ["XADD", "s", "MAXLEN", "=", "5"]);
    assert!(travelled[5].ends_with("-0"), "{travelled:?}");
    client
        .pipeline(&[argv(&["MULTI"]), argv(&["INCR", "a"]), argv(&["INCR", "b"]), argv(&["EXEC"])])
        .await
        .unwrap();
    for expected in ["MULTI", "INCR", "INCR", "EXEC"] {
        assert_eq!(replica.next().await[0], expected);
    }
    // A key that ends is told before anything that its end makes possible.
    client.command(&["SET", "t", "v", "PX", "1"]).await.unwrap();
    replica.next().await;
    assert_eq!(replica.next().await, ["DEL", "t"]);
}

#[tokio::test]
async fn a_destination_can_refuse_slow_down_and_drop() {
    let destination = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(destination.address()).await.unwrap();
    let refused = async |client: &mut RespClient, refusal: CommandRefusal| {
        destination.faults(|faults| faults.commands = Fault::once(refusal));
        client
            .pipeline(&[argv(&["DEL", "k"]), argv(&["SET", "k", "v"]), argv(&["SET", "k", "v"])])
            .await
            .unwrap()
    };
    let replies = refused(&mut client, CommandRefusal::OutOfMemory).await;
    assert_eq!(replies[0], Reply::Integer(0), "DEL needs no memory");
    assert_eq!(error(&replies[1]), "OOM command not allowed when used memory > 'maxmemory'.");
    assert_eq!(replies[2], simple("OK"));
    let replies = refused(&mut client, CommandRefusal::ReadOnly).await;
    assert_eq!(error(&replies[0]), "READONLY You can't write against a read only replica.");
    let replies = refused(&mut client, CommandRefusal::Loading).await;
    assert_eq!(error(&replies[0]), "LOADING Redis is loading the dataset in memory");

    // A transaction that meets a full server while it is queued is not run at all.
    destination.faults(|faults| faults.commands = Fault::once(CommandRefusal::OutOfMemory));
    let batch = [argv(&["MULTI"]), argv(&["SET", "a", "1"]), argv(&["SET", "b", "1"]), argv(&["EXEC"])];
    let replies = client.pipeline(&batch).await.unwrap();
    assert!(
        error(&replies[1]).starts_with("OOM") && error(&replies[3]).starts_with("EXECABORT"),
        "{replies:?}"
    );
    assert_eq!(client.command(&["EXISTS", "a", "b"]).await.unwrap(), Reply::Integer(0));

    // Executed, but nobody learns of it.
    let mut dropped = RespClient::connect(destination.address()).await.unwrap();
    destination.faults(|faults| {
        faults.drop_connection = Fault::once(DropConnection { after: 1, execute_next: true })
    });
    let batch = [argv(&["INCR", "n"]), argv(&["INCR", "n"]), argv(&["INCR", "n"])];
    assert!(dropped.pipeline(&batch).await.is_err());
    assert_eq!(client.command(&["GET", "n"]).await.unwrap(), Reply::bulk("2"));

    destination.faults(|faults| faults.slow = Some(Duration::from_millis(20)));
    let started = Instant::now();
    client.pipeline(&vec![argv(&["PING"]); 10]).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200));
    destination.faults(|faults| {
        faults.slow = None;
        faults.stalled = true;
    });
    assert!(timeout(Duration::from_millis(100), client.command(&["PING"])).await.is_err());
    destination.faults(|faults| faults.stalled = false);

    destination.drop_connections();
    until("the connection is closed", async || client.command(&["PING"]).await.is_err()).await;
}

#[tokio::test]
async fn client_pause_holds_writes_back_and_lets_reads_through() {
    let source = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(source.address()).await.unwrap();
    let mut writer = RespClient::connect(source.address()).await.unwrap();
    client.command(&["CLIENT", "PAUSE", "60000", "WRITE"]).await.unwrap();
    assert_eq!(client.command(&["GET", "k"]).await.unwrap(), Reply::Null);
    assert!(timeout(Duration::from_millis(100), writer.command(&["SET", "k", "v"])).await.is_err());
    assert_eq!(client.command(&["EXISTS", "k"]).await.unwrap(), Reply::Integer(0));
    client.command(&["CLIENT", "UNPAUSE"]).await.unwrap();
    until("the write goes through", async || {
        client.command(&["GET", "k"]).await.unwrap() == Reply::bulk("v")
    })
    .await;
}

/// The real server, or a loud word on standard error.
fn real_server() -> Option<PathBuf> {
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
            assert!(client.execute_all(&mut commands));
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
        let how = Compared { now_ms: unix_ms(), expiry_tolerance_ms: tolerance };
        let comparison = source.with_store(|mine| compare(mine, &theirs, how, |_, _| false));
        assert!(comparison.is_equal(), "{comparison}");
    }
}

/// What a real server dumps, the embedded destination restores, and the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payloads_travel_between_real_and_embedded_servers() {
    let Some(program) = real_server() else { return };
    let real = RealServer::start(&program, &[]).await.unwrap();
    let mut data = shakedeck::demo::Store::default();
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

/// `cargo test --release --test demo_servers -- --ignored --nocapture` prints how fast the servers are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
async fn speed() {
    let started = Instant::now();
    let source =
        filled(ServerOptions { transfer: Transfer::Disk, ..ServerOptions::default() }, 100_000).await;
    eprintln!("fill 100,000 keys: {:?}", started.elapsed());
    let started = Instant::now();
    let mut replica = Replica::connect(source.address()).await;
    replica.handshake().await;
    replica.psync().await;
    let rdb = replica.rdb().await;
    eprintln!("serve an RDB of {} bytes: {:?}", rdb.len(), started.elapsed());

    let destination = server(ServerOptions::default()).await;
    let mut client = RespClient::connect(destination.address()).await.unwrap();
    let started = Instant::now();
    let keys = restore_all(&rdb, &mut client).await;
    eprintln!("restore {keys} keys: {:?}", started.elapsed());

    let mut batch = vec![argv(&["MULTI"])];
    batch.extend((0..5_000).map(|n| argv(&["SET", &format!("key:{n}"), "0123456789"])));
    batch.push(argv(&["EXEC"]));
    let mut bytes = Vec::new();
    for argv in &batch {
        bytes.extend(format!("*{}\r\n", argv.len()).into_bytes());
        argv.iter().for_each(|word| {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend(word);
            bytes.extend(b"\r\n");
        });
    }
    let (mut read, mut write) = TcpStream::connect(destination.address()).await.unwrap().into_split();
    let (rounds, mut answers, mut chunk) = (100, 0, vec![0; 1_048_576]);
    let started = Instant::now();
    let writing = tokio::spawn(async move {
        for _ in 0..rounds {
            write.write_all(&bytes).await.unwrap();
        }
        write
    });
    // Each round is answered with OK, QUEUED …, and an array of OK …: count the line ends.
    while answers < rounds * (1 + 5_000 + 1 + 5_000) {
        let count = read.read(&mut chunk).await.unwrap();
        answers += chunk[..count].iter().filter(|byte| **byte == b'\n').count();
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{} commands in MULTI/EXEC: {seconds:.2} s, {:.0} per second",
        rounds * 5_000,
        (rounds * 5_000) as f64 / seconds
    );
    writing.await.unwrap();
}
