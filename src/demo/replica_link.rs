//! One replica: the answer to PSYNC, the RDB where one is needed, then the stream for as long as it lasts.
//!
//! Two halves run side by side: one writes, the other reads ACKs at any time, also while the RDB is still going out. After a
//! diskless transfer the writer waits for an ACK before it sends any stream, as a real master does
//! (`repl_start_cmd_stream_on_ack`, replication.c).

use std::io;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::faults::{Fault, PsyncRefusal, RdbFault};
use super::feed::{Replica, ReplicaState};
use super::rdb_writer::{self, Header};
use super::server::{Inlet, Outlet, Shared, Transfer, random_hex, unix_ms};
use super::session::Session;
use super::wire::{Parsed, integer, parse};

/// Bytes of one write.
const CHUNK: usize = 65_536;

/// What is left of the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// PSYNC was refused: the connection goes on as an ordinary one.
    Refused,
    /// The link is over.
    Closed,
}

/// A connection that said PSYNC.
pub(super) struct Link<'a> {
    pub(super) shared: &'a Shared,
    pub(super) session: &'a Session,
    pub(super) peer: &'a str,
}

/// What the answer to PSYNC is.
enum Start {
    Refuse(PsyncRefusal),
    Continue { line: String, from: u64 },
    Full { line: String, from: u64, rdb: Vec<u8> },
}

impl Link<'_> {
    /// Serves the replica until either side ends.
    pub(super) async fn serve(
        &self,
        inlet: &mut Inlet,
        outlet: &mut Outlet,
        replid: &str,
        offset: i64,
    ) -> io::Result<End> {
        let start = self.start(replid, offset);
        if let Start::Refuse(refusal) = start {
            let Some(text) = refusal.text() else { return Ok(End::Closed) };
            outlet.send(format!("-{text}\r\n").as_bytes()).await?;
            return Ok(End::Refused);
        }
        outlet.link_bytes = Some(0);
        // Registered from here on, so that the backlog keeps what this replica needs; taken off however the link ends.
        let _registered = Registered(self);
        let acknowledged = Notify::new();
        tokio::select! {
            ended = self.write(outlet, start, &acknowledged) => ended?,
            ended = self.read(inlet, &acknowledged) => ended?,
        }
        Ok(End::Closed)
    }

    /// Decides under one lock: the RDB, its offset and the replica's place in the stream belong together.
    fn start(&self, replid: &str, offset: i64) -> Start {
        let mut node = self.shared.node();
        let node = &mut *node;
        if let Some(refusal) = Fault::take(&mut node.faults.psync) {
            return Start::Refuse(refusal);
        }
        if Fault::take(&mut node.faults.new_replid).is_some() {
            node.feed.change_replid(random_hex(), true);
        }
        let wish = &self.session.replica;
        let continued =
            if node.faults.never_continue { None } else { node.feed.can_continue(replid, offset) };
        let (start, from, state) = match continued {
            Some(replid) => {
                let from = offset.unsigned_abs().saturating_sub(1);
                // Without psync2 a replica would not understand the id.
                let line =
                    if wish.psync2 { format!("+CONTINUE {replid}\r\n") } else { "+CONTINUE\r\n".to_owned() };
                (Start::Continue { line, from }, from, ReplicaState::Online)
            }
            None => {
                let db = node.feed.stream_db().unwrap_or(0);
                node.feed.begin_full_sync();
                let (replid, from) = (node.feed.replid().to_owned(), node.feed.offset());
                let header = Header {
                    version: node.rdb_version,
                    server_version: super::command::server_version(node.rdb_version),
                    created: unix_ms() / 1_000,
                    replication: Some((db, &replid, from)),
                    eviction: self.shared.options.eviction,
                };
                let rdb = rdb_writer::file(&node.store, &header);
                let line = format!("+FULLRESYNC {replid} {from}\r\n");
                (Start::Full { line, from, rdb }, from, ReplicaState::WaitBgsave)
            }
        };
        let replica = Replica {
            ip: self.peer.to_owned(),
            port: wish.port,
            state,
            sent: from,
            acknowledged: from,
            acknowledged_ms: unix_ms(),
        };
        node.feed.replicas.insert(self.session.id, replica);
        start
    }

    /// True until the RDB is through.
    fn is_transferring(&self) -> bool {
        let replica = self.shared.node().feed.replicas.get(&self.session.id).map(|replica| replica.state);
        matches!(replica, Some(ReplicaState::WaitBgsave | ReplicaState::SendBulk))
    }

    fn update(&self, change: impl FnOnce(&mut Replica)) {
        if let Some(replica) = self.shared.node().feed.replicas.get_mut(&self.session.id) {
            change(replica);
        }
    }

    async fn write(&self, outlet: &mut Outlet, start: Start, acknowledged: &Notify) -> io::Result<()> {
        let mut grown = self.shared.node().feed.watch();
        let mut sent = match start {
            Start::Refuse(_) => return Ok(()),
            Start::Continue { line, from } => {
                outlet.send(line.as_bytes()).await?;
                from
            }
            Start::Full { line, from, rdb } => {
                outlet.send(line.as_bytes()).await?;
                if !self.send_rdb(outlet, rdb, acknowledged).await? {
                    return Ok(());
                }
                from
            }
        };
        self.update(|replica| replica.state = ReplicaState::Online);

        let close_at =
            Fault::take(&mut self.shared.node().faults.close_stream_after).map(|bytes| sent + bytes);
        loop {
            grown.borrow_and_update();
            let limit = close_at.map_or(CHUNK, |close_at| (close_at - sent).min(CHUNK as u64) as usize);
            // Past the backlog the link is closed, as past the output buffer limit.
            let Ok(bytes) = self.shared.node().feed.read(sent, limit) else { return Ok(()) };
            if bytes.is_empty() && grown.changed().await.is_err() {
                return Ok(());
            }
            outlet.send(&bytes).await?;
            sent += bytes.len() as u64;
            self.update(|replica| replica.sent = sent);
            if Some(sent) == close_at {
                return Ok(());
            }
        }
    }

    /// Sends keep-alives and the RDB; false when the link ends with it.
    async fn send_rdb(
        &self,
        outlet: &mut Outlet,
        mut rdb: Vec<u8>,
        acknowledged: &Notify,
    ) -> io::Result<bool> {
        let options = &self.shared.options;
        let saved = Instant::now() + options.saving;
        while Instant::now() < saved {
            tokio::time::sleep_until(saved.min(Instant::now() + options.keep_alive)).await;
            outlet.send(b"\n").await?;
        }
        self.update(|replica| replica.state = ReplicaState::SendBulk);

        let fault = Fault::take(&mut self.shared.node().faults.rdb);
        match fault {
            None => {}
            Some(RdbFault::SaveFailed) => {
                outlet.send(b"-ERR BGSAVE failed, replication can't continue\r\n").await?;
                return Ok(false);
            }
            Some(RdbFault::HugeAnnouncement) => {
                outlet.send(b"$4294967296\r\nREDIS0011\xFA").await?;
                return Ok(false);
            }
            Some(RdbFault::Garbage) => rdb = (0..4_096_u32).map(|index| (index * 31 + 7) as u8).collect(),
            Some(RdbFault::HugeLength) => rdb = b"REDIS0011\x00\x80\xFF\xFF\xFF\xFF".to_vec(),
            Some(RdbFault::WrongChecksum) => {
                if let Some(last) = rdb.last_mut() {
                    *last ^= 0x55;
                }
            }
            Some(RdbFault::CutAt(_)) => {}
        }
        let mark = (options.transfer == Transfer::Diskless && self.session.replica.eof).then(random_hex);
        let header = match &mark {
            Some(mark) => format!("$EOF:{mark}\r\n"),
            None => format!("${}\r\n", rdb.len()),
        };
        if let Some(RdbFault::CutAt(length)) = fault {
            rdb.truncate(length);
        }
        outlet.send(header.as_bytes()).await?;
        let started = Instant::now();
        let mut done = 0_u64;
        for chunk in rdb.chunks(CHUNK) {
            outlet.send(chunk).await?;
            done += chunk.len() as u64;
            if let Some(rate) = options.rdb_bytes_per_second {
                tokio::time::sleep_until(started + Duration::from_secs_f64(done as f64 / rate.max(1) as f64))
                    .await;
            }
        }
        if matches!(fault, Some(RdbFault::CutAt(_))) {
            return Ok(false);
        }
        if let Some(mark) = mark {
            self.update(|replica| replica.state = ReplicaState::WaitAck);
            outlet.send(mark.as_bytes()).await?;
            acknowledged.notified().await;
        }
        Ok(true)
    }

    /// Reads ACKs until the peer closes or, once it has its RDB, says nothing for too long; anything else that comes is
    /// passed over.
    async fn read(&self, inlet: &mut Inlet, acknowledged: &Notify) -> io::Result<()> {
        let mut minimum = 1;
        loop {
            if inlet.waiting().len() < minimum {
                match timeout(self.shared.options.replica_timeout, inlet.fill(minimum)).await {
                    Ok(Ok(0)) => return Ok(()),
                    Ok(filled) => {
                        filled?;
                    }
                    Err(_) if self.is_transferring() => continue,
                    Err(_) => return Ok(()),
                }
            }
            minimum = 1;
            let (argv, used) = match parse(inlet.waiting()) {
                Ok(Parsed::Command(argv, used)) => (argv, used),
                Ok(Parsed::Nothing(used)) => (Vec::new(), used),
                Ok(Parsed::Need(bytes)) => {
                    minimum = bytes;
                    continue;
                }
                Err(_) => return Ok(()),
            };
            inlet.advance(used);
            let [name, option, offset, ..] = argv.as_slice() else { continue };
            let Some(offset) = integer(offset).and_then(|offset| u64::try_from(offset).ok()) else {
                continue;
            };
            if !name.eq_ignore_ascii_case(b"replconf") || !option.eq_ignore_ascii_case(b"ack") {
                continue;
            }
            let mut node = self.shared.node();
            let node = &mut *node;
            let Some(replica) = node.feed.replicas.get_mut(&self.session.id) else { return Ok(()) };
            replica.acknowledged = replica.acknowledged.max(offset);
            replica.acknowledged_ms = unix_ms();
            // An ACK that comes earlier starts nothing: the child that sent the RDB is not reaped yet.
            if replica.state == ReplicaState::WaitAck && Fault::take(&mut node.faults.lose_acks).is_none() {
                acknowledged.notify_one();
            }
        }
    }
}

/// Takes the replica off the list when its link ends, also when the task is ended from outside.
struct Registered<'a>(&'a Link<'a>);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.shared.node().feed.replicas.remove(&self.0.session.id);
    }
}
