//! A replica of the simplest kind, and what it does with what it gets.

use std::net::SocketAddr;
use std::time::Duration;

use shakedeck::demo::real::RespClient;
use shakedeck::demo::{Argv, ReplicaState, Server};
use shakedeck::rdb::{Decoder, Item, Limits, Value, dump};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::{DEADLINE, argv, is_error, simple, until};

/// A replica of the simplest kind.
pub struct Replica {
    pub stream: TcpStream,
    pub buffer: Vec<u8>,
    pub replid: String,
    /// Offset of the last byte of the stream that was taken off the buffer.
    pub offset: u64,
    /// Keep-alives seen.
    pub newlines: usize,
    pub closed: bool,
}

impl Replica {
    pub async fn connect(address: SocketAddr) -> Replica {
        let stream = TcpStream::connect(address).await.unwrap();
        Replica { stream, buffer: Vec::new(), replid: "?".to_owned(), offset: 0, newlines: 0, closed: false }
    }

    /// The same replica on a new connection.
    pub async fn reconnect(self, address: SocketAddr) -> Replica {
        let fresh = Replica::connect(address).await;
        Replica { replid: self.replid, offset: self.offset, ..fresh }
    }

    pub async fn send(&mut self, words: &[&str]) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        words.iter().for_each(|word| bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes()));
        self.stream.write_all(&bytes).await.unwrap();
    }

    pub async fn ask(&mut self, words: &[&str]) -> String {
        self.send(words).await;
        self.line().await
    }

    /// Reads what comes within a moment.
    pub async fn fill(&mut self) {
        if let Ok(count) = timeout(Duration::from_millis(100), self.stream.read_buf(&mut self.buffer)).await {
            self.closed = matches!(count, Ok(0) | Err(_));
        }
    }

    pub async fn take(&mut self, count: usize) -> Vec<u8> {
        let deadline = Instant::now() + DEADLINE;
        while self.buffer.len() < count {
            self.fill().await;
            assert!(!self.closed, "the link ended after {} of {count} bytes", self.buffer.len());
            assert!(Instant::now() < deadline, "only {} of {count} bytes came", self.buffer.len());
        }
        self.buffer.drain(..count).collect()
    }

    /// The next line that is not a keep-alive.
    pub async fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            match self.take(1).await[0] {
                b'\n' if line.is_empty() => self.newlines += 1,
                b'\n' => return String::from_utf8(line).unwrap().trim_end().to_owned(),
                byte => line.push(byte),
            }
        }
    }

    pub async fn handshake(&mut self) {
        assert_eq!(self.ask(&["PING"]).await, "+PONG");
        assert_eq!(self.ask(&["REPLCONF", "listening-port", "7777"]).await, "+OK");
        let version = self.ask(&["REPLCONF", "version", "9.0.0"]).await;
        assert_eq!(version, "-ERR Unrecognized REPLCONF option: version");
        assert_eq!(self.ask(&["REPLCONF", "capa", "eof"]).await, "+OK");
        assert_eq!(self.ask(&["REPLCONF", "capa", "psync2"]).await, "+OK");
    }

    /// Asks for the stream; answers the first word of the reply, or the whole reply where it is no yes.
    pub async fn psync(&mut self) -> String {
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

    pub async fn rdb(&mut self) -> Vec<u8> {
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

    pub async fn acknowledge(&mut self) {
        let offset = self.offset.to_string();
        self.send(&["REPLCONF", "ACK", &offset]).await;
    }

    /// The next whole command of the stream, if it has come.
    pub fn command(&mut self) -> Option<Argv> {
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
    pub async fn next(&mut self) -> Vec<String> {
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
    pub async fn replay(&mut self, destination: &mut RespClient, offset: u64) {
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

/// Puts an RDB into a server with RESTORE and answers how many keys it had.
pub async fn restore_all(rdb: &[u8], destination: &mut RespClient) -> usize {
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

/// A replica that has got its RDB and its first ACK through.
pub async fn synced(source: &Server) -> Replica {
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
