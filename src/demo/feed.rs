//! The replication stream of one server: ids, offset, backlog, and who reads it.
//!
//! The one odd idea: a replica has no output buffer of its own. Every replica reads the shared backlog from its own
//! position, and the backlog keeps what the slowest one still needs, up to a limit; past it that replica is cut off,
//! which is what `client-output-buffer-limit replica` does. Pure state: the sockets are in `replica_link.rs`.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::watch;

use super::wire::{Argv, write_command};

/// Replication state of a server that can be a master.
pub struct Feed {
    replid: String,
    /// The id before the last failover, and the offset up to which it may still be asked for.
    previous: Option<(String, u64)>,
    /// Offset of the last byte of the stream (`master_repl_offset`).
    offset: u64,
    /// The newest bytes of the stream; `None` until the first replica comes: nothing is counted before.
    backlog: Option<VecDeque<u8>>,
    /// Bytes kept for replicas that come back (`repl-backlog-size`).
    pub backlog_limit: usize,
    /// Bytes kept for a replica that reads slowly (`client-output-buffer-limit replica`).
    pub output_limit: usize,
    /// The database that the stream is in; `None` = the next write must say SELECT.
    stream_db: Option<usize>,
    /// Replicas by connection number.
    pub replicas: BTreeMap<u64, Replica>,
    grown: watch::Sender<u64>,
}

/// One replica as its master sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Where its connection comes from, without the port.
    pub ip: String,
    /// What `REPLCONF listening-port` said.
    pub port: u16,
    /// What it is waiting for.
    pub state: ReplicaState,
    /// Offset of the last byte written to its socket.
    pub sent: u64,
    /// Offset of the last `REPLCONF ACK`.
    pub acknowledged: u64,
    /// When that came (Unix ms).
    pub acknowledged_ms: u64,
}

/// How far a replica is (`REPLICA_STATE_*`, server.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaState {
    /// Its RDB is being made.
    WaitBgsave,
    /// Its RDB is being sent.
    SendBulk,
    /// Its RDB went out without disk; the stream waits for its first ACK.
    WaitAck,
    /// It reads the stream.
    Online,
}

impl ReplicaState {
    /// The word of INFO.
    pub fn word(self) -> &'static str {
        match self {
            ReplicaState::WaitBgsave => "wait_bgsave",
            ReplicaState::SendBulk | ReplicaState::WaitAck => "send_bulk",
            ReplicaState::Online => "online",
        }
    }
}

/// The backlog no longer has what a replica must read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

impl Feed {
    /// A stream without history.
    pub fn new(replid: String, backlog_limit: usize, output_limit: usize) -> Feed {
        Feed {
            replid,
            previous: None,
            offset: 0,
            backlog: None,
            backlog_limit,
            output_limit,
            stream_db: None,
            replicas: BTreeMap::new(),
            grown: watch::Sender::new(0),
        }
    }

    /// The present replication id.
    pub fn replid(&self) -> &str {
        &self.replid
    }

    /// The id before the last failover, and the offset up to which it counts.
    pub fn previous(&self) -> Option<(&str, u64)> {
        self.previous.as_ref().map(|(replid, offset)| (replid.as_str(), *offset))
    }

    /// Offset of the last byte of the stream.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The database that the stream is in.
    pub fn stream_db(&self) -> Option<usize> {
        self.stream_db
    }

    /// True once a replica has come: from then on every write is kept.
    pub fn is_active(&self) -> bool {
        self.backlog.is_some()
    }

    /// Offset of the oldest byte that is kept, and how many are.
    pub fn backlog_span(&self) -> (u64, usize) {
        let length = self.backlog.as_ref().map_or(0, VecDeque::len);
        (self.offset + 1 - length as u64, length)
    }

    /// Tells whenever the stream has grown.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.grown.subscribe()
    }

    /// Can `PSYNC replid next` go on? Yes with the id to be told.
    pub fn can_continue(&self, replid: &str, next: i64) -> Option<String> {
        let next = u64::try_from(next).ok()?;
        let known = self.replid.eq_ignore_ascii_case(replid)
            || self
                .previous
                .as_ref()
                .is_some_and(|(previous, until)| previous.eq_ignore_ascii_case(replid) && next <= *until);
        let (first, length) = self.backlog_span();
        let kept = self.backlog.is_some() && next >= first && next <= first + length as u64;
        (known && kept).then(|| self.replid.clone())
    }

    /// Begins a full sync: the stream says SELECT again before its next write, as the new replica knows no database.
    pub fn begin_full_sync(&mut self) {
        self.backlog.get_or_insert_with(VecDeque::new);
        self.stream_db = None;
    }

    /// Forgets the history: the next PSYNC is answered with a full sync unless it asks for the very next byte.
    pub fn forget_backlog(&mut self) {
        if let Some(backlog) = &mut self.backlog {
            backlog.clear();
        }
    }

    /// Takes a new id and keeps the old one as the previous one, as a promoted replica does; `None` forgets it, as a
    /// server does that was restarted without its data.
    pub fn change_replid(&mut self, replid: String, keep_previous: bool) {
        let old = std::mem::replace(&mut self.replid, replid);
        self.previous = keep_previous.then_some((old, self.offset + 1));
        self.stream_db = None;
    }

    /// Appends the effects of one command or transaction; more than one effect travels inside MULTI/EXEC.
    pub fn append(&mut self, effects: &[(usize, Argv)]) {
        if self.backlog.is_none() || effects.is_empty() {
            return;
        }
        let mut bytes = Vec::new();
        if effects.len() > 1 {
            write_command(&mut bytes, &["MULTI"]);
        }
        for (db, argv) in effects {
            if self.stream_db != Some(*db) {
                self.stream_db = Some(*db);
                write_command(&mut bytes, &["SELECT", &db.to_string()]);
            }
            write_command(&mut bytes, argv);
        }
        if effects.len() > 1 {
            write_command(&mut bytes, &["EXEC"]);
        }
        self.append_raw(&bytes);
    }

    /// Appends a command that belongs to no database: PING, REPLCONF GETACK.
    pub fn append_control(&mut self, argv: &[&str]) {
        let mut bytes = Vec::new();
        write_command(&mut bytes, argv);
        self.append_raw(&bytes);
    }

    fn append_raw(&mut self, bytes: &[u8]) {
        let Some(backlog) = &mut self.backlog else { return };
        backlog.extend(bytes);
        self.offset += bytes.len() as u64;
        let slowest = self.replicas.values().map(|replica| replica.sent).min().unwrap_or(self.offset);
        let needed = (self.offset - slowest.min(self.offset)) as usize;
        let keep = needed.min(self.output_limit).max(self.backlog_limit);
        // Trimmed in large steps: each one moves what is left.
        if backlog.len() > keep + keep / 4 {
            backlog.drain(..backlog.len() - keep);
        }
        self.grown.send_replace(self.offset);
    }

    /// The bytes that follow `sent`, at most `limit` of them; empty when there are none yet.
    pub fn read(&self, sent: u64, limit: usize) -> Result<Vec<u8>, Overrun> {
        let (first, length) = self.backlog_span();
        let skip = (sent + 1).checked_sub(first).ok_or(Overrun)? as usize;
        if skip > length {
            return Err(Overrun);
        }
        let Some(backlog) = &self.backlog else { return Err(Overrun) };
        Ok(backlog.range(skip..length.min(skip.saturating_add(limit))).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
    use super::*;

    fn argv(words: &[&str]) -> Argv {
        words.iter().map(|word| word.as_bytes().to_vec()).collect()
    }

    fn feed(backlog_limit: usize, output_limit: usize) -> Feed {
        let mut feed = Feed::new("a".repeat(40), backlog_limit, output_limit);
        feed.begin_full_sync();
        feed
    }

    #[test]
    fn the_offset_counts_every_byte_and_select_comes_once() {
        let mut feed = feed(10_000, 10_000);
        feed.append(&[(2, argv(&["DEL", "k"]))]);
        feed.append(&[(2, argv(&["DEL", "l"]))]);
        feed.append_control(&["PING"]);
        let expected = b"*2\r\n$6\r\nSELECT\r\n$1\r\n2\r\n*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n\
                         *2\r\n$3\r\nDEL\r\n$1\r\nl\r\n*1\r\n$4\r\nPING\r\n";
        assert_eq!(feed.read(0, usize::MAX).unwrap(), expected);
        assert_eq!(feed.offset(), expected.len() as u64);
    }

    #[test]
    fn several_effects_travel_in_one_transaction() {
        let mut feed = feed(10_000, 10_000);
        feed.append(&[(0, argv(&["A"])), (1, argv(&["B"]))]);
        let text = String::from_utf8(feed.read(0, usize::MAX).unwrap()).unwrap();
        let words: Vec<&str> =
            text.split("\r\n").filter(|word| !word.starts_with(['*', '$']) && !word.is_empty()).collect();
        assert_eq!(words, ["MULTI", "SELECT", "0", "A", "SELECT", "1", "B", "EXEC"]);
    }

    #[test]
    fn a_replica_may_go_on_exactly_as_far_as_the_backlog_reaches() {
        let mut feed = feed(10, 10);
        let id = feed.replid().to_owned();
        feed.append_control(&["PING"]);
        feed.append_control(&["PING"]);
        let (first, length) = feed.backlog_span();
        assert_eq!((first, length), (19, 10));
        assert_eq!(feed.can_continue(&id, 18), None);
        assert_eq!(feed.can_continue(&id.to_uppercase(), 19), Some(id.clone()));
        assert_eq!(feed.can_continue(&id, 29), Some(id.clone()));
        assert_eq!(feed.can_continue(&id, 30), None);
        assert_eq!(feed.can_continue(&"b".repeat(40), 29), None);

        feed.change_replid("c".repeat(40), true);
        assert_eq!(feed.can_continue(&id, 29), Some("c".repeat(40)));
        feed.change_replid("d".repeat(40), false);
        assert_eq!(feed.can_continue(&id, 29), None);
    }

    #[test]
    fn a_slow_replica_keeps_the_backlog_until_the_limit_and_is_cut_off_past_it() {
        let mut feed = feed(20, 100);
        let slow = Replica {
            ip: "127.0.0.1".into(),
            port: 1,
            state: ReplicaState::Online,
            sent: 0,
            acknowledged: 0,
            acknowledged_ms: 0,
        };
        feed.replicas.insert(1, slow);
        for _ in 0..7 {
            feed.append_control(&["PING"]);
        }
        assert!(feed.read(0, 1).is_ok(), "98 bytes are within its limit");
        for _ in 0..3 {
            feed.append_control(&["PING"]);
        }
        assert_eq!(feed.read(0, 1), Err(Overrun));
    }
}
