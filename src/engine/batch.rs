//! What travels from a replay thread to a writer: commands for one connection, sent and confirmed together.
//!
//! A batch is applied by one MULTI/EXEC that also sets the checkpoint, so after any crash the destination itself says
//! which batches it has. Batches begin and end at whole commands, and never inside a transaction of the source.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, mpsc};

use super::shared::SourceShared;
use super::whole::Parts;
use crate::config::OnExistingKey;
use crate::format::escape;
use crate::psync::Replid;
use crate::resp;

/// Bytes at which a batch is sent at the latest: some 2,000 small commands, which hold the destination's event loop for
/// a few milliseconds. A single larger command or transaction makes a larger batch.
pub const BATCH_BYTES: usize = 256 * 1024;
/// Keys of one MSET: beyond 50 the destination gains nothing more from merging.
const MSET_KEYS: usize = 128;

/// What came of [`CommandKind::Count`]: the size, or the error. `None`: a former run has brought the value, which is left out.
pub type Counted = Result<Option<u64>, String>;

/// Commands for one destination connection.
pub struct Batch {
    /// Where they come from.
    pub source: Arc<SourceShared>,
    /// Database in which the first command runs.
    pub start_db: u32,
    /// Database after the last command.
    pub end_db: u32,
    /// The commands in RESP, ready to send.
    pub bytes: Vec<u8>,
    /// One per command in `bytes`.
    pub commands: Vec<SentCommand>,
    /// What is true once this batch is confirmed.
    pub progress: Progress,
    /// What was true before it.
    begins: Position,
    /// Keys of the RDB or commands of the stream in it.
    pub entries: u64,
    /// Bytes of the source (RDB or stream) that it stands for.
    pub source_bytes: u64,
    /// Where the answer to [`CommandKind::Count`] goes. Dropped if none will come.
    pub counted: Option<mpsc::Sender<Counted>>,
    /// It holds the last keys of an RDB: its progress is the beginning of the stream.
    pub ends_rdb: bool,
    /// Byte of the RDB up to which a former process may have applied it, which had cut it into other batches.
    pub rdb_reached: u64,
    /// Where the entry begins whose commands are appended now: offset in the stream, or byte of the RDB.
    pub at: u64,
    /// Those commands belong to a transaction of the source.
    pub in_transaction: bool,
    /// Most keys of one MSET; a cluster takes one, because each may have a slot of its own.
    pub pair_limit: usize,
    /// A run of plain SETs not yet closed: RESP of keys and values, and how many keys.
    pairs: Vec<u8>,
    pair_count: usize,
    pair_verb: PairVerb,
}

/// A place in a batch to go back to.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    commands: usize,
    bytes: usize,
    entries: u64,
    source_bytes: u64,
    end_db: u32,
}

/// One command of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentCommand {
    /// Where it begins in `bytes`.
    pub start: usize,
    /// What it is, for the error rules.
    pub kind: CommandKind,
    /// Where its entry begins: offset in the stream, or byte of the RDB.
    pub at: u64,
    /// It belongs to a transaction of the source.
    pub transaction: bool,
}

/// What a command of a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    /// SELECT.
    Select,
    /// RESTORE of a key of the RDB; before Redis 5.0 also the PEXPIREAT behind it.
    Restore,
    /// The same where an existing key is kept: BUSYKEY only counts.
    RestoreIfMissing,
    /// MSETNX of keys of the RDB: 0 = one of them existed.
    SetIfNone,
    /// SET … NX of a key of the RDB: null = it existed.
    SetIfMissing,
    /// RENAME or RENAMENX of a key of the RDB that was built aside: 0 = its name existed. One of its [`CommandKind::Part`]s.
    Rename {
        /// What is to become of the key that has the name already.
        existing: OnExistingKey,
        /// From when on it may have ended by itself (Unix ms, by the destination's clock): "no such key" is no error then.
        ends_at_ms: Option<i64>,
    },
    /// How large is what has been built? The answer goes to [`Batch::counted`].
    Count,
    /// One of several commands that make a value of the RDB, all of them in this batch: if one is refused, none counts.
    Part,
    /// One of the commands that build a value in several batches, under a temporary key. If one is refused, replay hears of it with
    /// the answer to the count ([`SourceShared::refuse_piece`]), and the value gets no name.
    Piece,
    /// Of the RDB, and whole by itself: a string, a function; the removal of keys.
    Rebuild,
    /// A command of the stream (or several SETs of it as one MSET).
    Stream,
    /// EXPIREAT, PEXPIREAT or PERSIST of the stream: 0 = the key is not there any more.
    Renew,
}

impl CommandKind {
    /// Whether it is a RESTORE of a key of the RDB.
    pub fn restores(self) -> bool {
        matches!(self, CommandKind::Restore | CommandKind::RestoreIfMissing)
    }

    /// From when on (Unix ms, by the destination's clock) this error only says that the value has ended by itself. Before that somebody
    /// has removed it.
    pub fn ended_from(self, error: &str) -> Option<i64> {
        match self {
            CommandKind::Rename { ends_at_ms, .. } if error.contains("no such key") => ends_at_ms,
            _ => None,
        }
    }

    /// Whether it is nothing without the other commands of its entry, which are in the same batch.
    pub fn is_part(self) -> bool {
        matches!(self, CommandKind::Part | CommandKind::Rename { .. })
    }
}

/// How plain strings are written together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairVerb {
    /// Replaces: MSET.
    Replace,
    /// RDB keys that must not exist: MSETNX.
    OnlyIfNone,
    /// Stream: MSET, counted as commands of the stream.
    Stream,
}

/// How far a source has been applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The history.
    pub replid: Replid,
    /// The full sync that brought us there, counted from 1: an idle source offers the same history and offset again, with
    /// another RDB. 0 = a version that did not say.
    pub generation: u64,
    /// Where in it.
    pub at: Position,
}

/// A place in one history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// Inside the RDB that stands for `offset`: its first `bytes` bytes are applied.
    Rdb {
        /// Offset of the FULLRESYNC.
        offset: u64,
        /// Applied bytes of the RDB.
        bytes: u64,
        /// Database selected there.
        db: u32,
    },
    /// In the stream: everything up to `offset` is applied.
    Stream {
        /// Replication offset.
        offset: u64,
        /// Database selected there; no SELECT follows a `+CONTINUE`.
        db: u32,
    },
}

/// The order in which the entries of a source come: full syncs, in each first the RDB, then the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The full sync.
    pub generation: u64,
    /// In the stream behind its RDB.
    pub stream: bool,
    /// Byte of the RDB, or offset in the stream.
    pub at: u64,
}

impl Progress {
    /// Everything that begins before this place is applied.
    pub fn place(&self) -> Place {
        let (stream, at) = match self.at {
            Position::Rdb { bytes, .. } => (false, bytes),
            Position::Stream { offset, .. } => (true, offset),
        };
        Place { generation: self.generation, stream, at }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (version, replid) = (if self.generation == 0 { 1 } else { 2 }, &self.replid);
        match self.at {
            Position::Rdb { offset, bytes, db } => {
                write!(f, "v{version} {replid} rdb {offset} {bytes} {db}")?;
            }
            Position::Stream { offset, db } => write!(f, "v{version} {replid} stream {offset} {db}")?,
        }
        // It must read back as the same text: the writer compares what it finds with what it wrote.
        if version == 1 { Ok(()) } else { write!(f, " {}", self.generation) }
    }
}

impl FromStr for Progress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{}' is not a checkpoint of this version", text.escape_debug());
        // A serial number of a batch ([`Batch::checkpoint`]) is not a part of the place.
        let place = text.split_once(" #").map_or(text, |(place, _)| place);
        let mut words: Vec<&str> = place.split(' ').collect();
        let generation = match words.first() {
            Some(&"v1") => 0,
            Some(&"v2") => {
                words.pop().and_then(|word| word.parse().ok()).filter(|it| *it > 0).ok_or_else(bad)?
            }
            _ => return Err(bad()),
        };
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).ok_or_else(bad);
        let db = |at: usize| words.get(at).and_then(|word| word.parse::<u32>().ok()).ok_or_else(bad);
        let replid = words.get(1).and_then(|word| Replid::parse(word)).ok_or_else(bad)?;
        let at = match (words.get(2), words.len()) {
            (Some(&"rdb"), 6) => Position::Rdb { offset: number(3)?, bytes: number(4)?, db: db(5)? },
            (Some(&"stream"), 5) => Position::Stream { offset: number(3)?, db: db(4)? },
            _ => return Err(bad()),
        };
        Ok(Progress { replid, generation, at })
    }
}

impl Batch {
    /// An empty batch that stands at `progress`.
    pub fn new(source: Arc<SourceShared>, progress: Progress, db: u32) -> Self {
        Batch {
            source,
            start_db: db,
            end_db: db,
            bytes: Vec::new(),
            commands: Vec::new(),
            begins: progress.at,
            progress,
            entries: 0,
            source_bytes: 0,
            counted: None,
            ends_rdb: false,
            rdb_reached: 0,
            at: 0,
            in_transaction: false,
            pair_limit: MSET_KEYS,
            pairs: Vec::new(),
            pair_count: 0,
            pair_verb: PairVerb::Replace,
        }
    }

    /// The batch after this one, from the same place on.
    pub fn successor(&self) -> Self {
        let next = Batch::new(self.source.clone(), self.progress.clone(), self.end_db);
        Batch {
            at: self.at,
            in_transaction: self.in_transaction,
            pair_limit: self.pair_limit,
            rdb_reached: self.rdb_reached,
            ..next
        }
    }

    /// The checkpoint that the destination sets with this batch: where to go on after a crash. In the stream that is behind
    /// the batch. In the RDB it is before it: commands may be refused when they run, only the answers tell which, and a crash
    /// may come before the answers; entries of an RDB can be brought twice. `serial` makes the text of each batch another
    /// one, so that it also tells whether a batch whose answer was lost has run. In the RDB the byte stands behind it before which
    /// keys may be applied.
    pub fn checkpoint(&self, serial: u64) -> String {
        let text = |at| format!("{} #{serial}", Progress { at, ..self.progress.clone() });
        match (self.begins, self.progress.at) {
            (begins @ Position::Rdb { .. }, Position::Rdb { bytes, .. }) => {
                format!("{} {}", text(begins), bytes.max(self.rdb_reached))
            }
            (_, ends) => text(ends),
        }
    }

    /// The byte of the RDB before which keys may be applied, where this checkpoint says it.
    pub fn rdb_end(checkpoint: &str) -> Option<u64> {
        let (_, serial_and_end) = checkpoint.split_once(" #")?;
        serial_and_end.split_once(' ')?.1.parse().ok()
    }

    /// True when it holds nothing and moves nothing.
    pub fn is_void(&self) -> bool {
        self.commands.is_empty() && self.pair_count == 0 && self.source_bytes == 0
    }

    /// True when it should be sent, given the most commands and bytes of one batch.
    pub fn is_full(&self, command_limit: usize, byte_limit: usize) -> bool {
        self.bytes.len() + self.pairs.len() >= byte_limit || self.commands.len() >= command_limit
    }

    /// Begins a command: its bytes are appended to `bytes` next.
    pub fn begin(&mut self, kind: CommandKind) {
        self.close_pairs();
        self.note_command(kind);
    }

    fn note_command(&mut self, kind: CommandKind) {
        let (start, at, transaction) = (self.bytes.len(), self.at, self.in_transaction);
        self.commands.push(SentCommand { start, kind, at, transaction });
    }

    /// Appends one command.
    pub fn push(&mut self, kind: CommandKind, args: &[&[u8]]) {
        self.begin(kind);
        resp::append_command(&mut self.bytes, args);
    }

    /// Appends one command as the bytes that arrived.
    pub fn push_raw(&mut self, kind: CommandKind, raw: &[u8]) {
        self.begin(kind);
        self.bytes.extend_from_slice(raw);
    }

    /// Selects a database for what follows.
    pub fn select(&mut self, db: u32) {
        if db == self.end_db {
            return;
        }
        if self.commands.is_empty() && self.pair_count == 0 {
            self.start_db = db;
        } else {
            self.push(CommandKind::Select, &[b"SELECT", db.to_string().as_bytes()]);
        }
        self.end_db = db;
    }

    /// Appends one plain SET. Neighbours become one MSET, which is the same to the destination and costs it half.
    pub fn push_pair(&mut self, verb: PairVerb, key: &[u8], value: &[u8]) {
        if self.pair_verb != verb {
            self.close_pairs();
            self.pair_verb = verb;
        }
        resp::append_bulk(&mut self.pairs, key);
        resp::append_bulk(&mut self.pairs, value);
        self.pair_count += 1;
        if self.pair_count >= self.pair_limit {
            self.close_pairs();
        }
    }

    /// Closes a run of plain SETs. Must be called before the batch is sent.
    pub fn close_pairs(&mut self) {
        if self.pair_count == 0 {
            return;
        }
        let (kind, verb): (CommandKind, &[u8]) = match (self.pair_verb, self.pair_count) {
            (PairVerb::OnlyIfNone, _) => (CommandKind::SetIfNone, b"MSETNX"),
            (PairVerb::Replace, 1) => (CommandKind::Rebuild, b"SET"),
            (PairVerb::Replace, _) => (CommandKind::Rebuild, b"MSET"),
            (PairVerb::Stream, 1) => (CommandKind::Stream, b"SET"),
            (PairVerb::Stream, _) => (CommandKind::Stream, b"MSET"),
        };
        self.note_command(kind);
        resp::append_array_header(&mut self.bytes, 1 + 2 * self.pair_count);
        resp::append_bulk(&mut self.bytes, verb);
        self.bytes.append(&mut self.pairs);
        self.pair_count = 0;
    }

    /// The place after the last command.
    pub fn mark(&mut self) -> Mark {
        self.close_pairs();
        Mark {
            commands: self.commands.len(),
            bytes: self.bytes.len(),
            entries: self.entries,
            source_bytes: self.source_bytes,
            end_db: self.end_db,
        }
    }

    /// Takes back what was appended since.
    pub fn rewind(&mut self, mark: Mark) {
        self.pairs.clear();
        self.pair_count = 0;
        self.commands.truncate(mark.commands);
        self.bytes.truncate(mark.bytes);
        (self.entries, self.source_bytes, self.end_db) = (mark.entries, mark.source_bytes, mark.end_db);
    }

    /// The bytes of command `index`.
    pub fn command_bytes(&self, index: usize) -> &[u8] {
        let start = self.commands.get(index).map_or(self.bytes.len(), |command| command.start);
        let end = self.commands.get(index + 1).map_or(self.bytes.len(), |command| command.start);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The destination has answered [`CommandKind::Count`].
    pub fn tell_size(&self, answer: Counted) {
        if let Some(counted) = &self.counted {
            // Nobody waits any more: the run is stopping.
            let _ = counted.send(answer);
        }
    }

    /// The destination has refused a [`CommandKind::Piece`] for good.
    pub fn refuse_piece(&self, index: usize, error: &str) {
        self.source.refuse_piece(format!("{} was refused: {error}", self.verb(index)));
    }

    /// Whether it holds keys of the RDB that must not replace those of others: once its answers are lost, nobody can tell them apart.
    pub fn keeps_keys_of_others(&self) -> bool {
        let keeps = |(index, command): (usize, &SentCommand)| match command.kind {
            CommandKind::RestoreIfMissing | CommandKind::SetIfNone | CommandKind::SetIfMissing => true,
            CommandKind::Rename { existing, .. } => existing != OnExistingKey::Rewrite,
            CommandKind::Restore => {
                let arguments = self.arguments(index);
                arguments.first() == Some(&&b"RESTORE"[..]) && !arguments.contains(&&b"REPLACE"[..])
            }
            _ => false,
        };
        self.commands.iter().enumerate().any(keeps)
    }

    /// The commands of the value to which command `index` belongs.
    pub fn parts(&self, index: usize) -> Parts {
        let at = self.commands.get(index).map_or(0, |command| command.at);
        let commands = self.commands.iter().map(|command| (command.kind, command.at));
        Parts::of(at, commands, |index| self.arguments(index))
    }

    /// The verb of command `index`, escaped.
    pub fn verb(&self, index: usize) -> String {
        escape(self.arguments(index).first().copied().unwrap_or_default(), 20)
    }

    /// The arguments of command `index`.
    pub fn arguments(&self, index: usize) -> Vec<&[u8]> {
        resp::arguments(self.command_bytes(index))
    }

    /// Database in which command `index` runs.
    pub fn database_of(&self, index: usize) -> u32 {
        (0..index)
            .rev()
            .filter(|at| self.commands.get(*at).is_some_and(|command| command.kind == CommandKind::Select))
            .find_map(|at| std::str::from_utf8(self.arguments(at).get(1)?).ok()?.parse().ok())
            .unwrap_or(self.start_db)
    }

    /// Takes commands out that the destination will never accept.
    pub fn remove(&mut self, indexes: &[usize]) {
        let mut kept = Vec::with_capacity(self.bytes.len());
        let mut commands = Vec::with_capacity(self.commands.len());
        for index in 0..self.commands.len() {
            if !indexes.contains(&index) {
                commands.push(SentCommand { start: kept.len(), ..self.commands[index] });
                kept.extend_from_slice(self.command_bytes(index));
            }
        }
        self.bytes = kept;
        self.commands = commands;
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;
    use crate::engine::spool::Spool;

    pub(in crate::engine) fn batch(dir: &std::path::Path) -> Batch {
        let source = SourceShared::new("127.0.0.1:1".into(), Spool::open(dir).unwrap());
        let replid = Replid::parse(&"0f".repeat(20)).unwrap();
        let at = Position::Stream { offset: 0, db: 0 };
        Batch::new(Arc::new(source), Progress { replid, generation: 1, at }, 0)
    }

    #[test]
    fn neighbouring_sets_become_one_mset_and_order_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut batch = batch(dir.path());
        batch.select(3);
        batch.push_pair(PairVerb::Stream, b"a", b"1");
        batch.push_pair(PairVerb::Stream, b"b", b"2");
        batch.push(CommandKind::Stream, &[b"INCR", b"a"]);
        batch.push_pair(PairVerb::Stream, b"c", b"3");
        batch.select(4);
        batch.push(CommandKind::Stream, &[b"DEL", b"c"]);
        batch.close_pairs();
        let all: Vec<String> = (0..batch.commands.len())
            .map(|index| batch.arguments(index).join(&b' ').escape_ascii().to_string())
            .collect();
        assert_eq!(all, ["MSET a 1 b 2", "INCR a", "SET c 3", "SELECT 4", "DEL c"]);
        assert_eq!((batch.start_db, batch.end_db), (3, 4));
        batch.remove(&[0, 3]);
        let all: Vec<String> = (0..batch.commands.len())
            .map(|index| batch.arguments(index).join(&b' ').escape_ascii().to_string())
            .collect();
        assert_eq!(all, ["INCR a", "SET c 3", "DEL c"]);
    }

    #[test]
    fn a_transaction_without_its_end_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut batch = batch(dir.path());
        batch.push_pair(PairVerb::Stream, b"a", b"1");
        batch.source_bytes = 10;
        let mark = batch.mark();
        batch.push(CommandKind::Stream, &[b"INCR", b"a"]);
        batch.select(2);
        batch.push_pair(PairVerb::Stream, b"b", b"2");
        (batch.entries, batch.source_bytes) = (3, 50);
        batch.rewind(mark);
        batch.close_pairs();
        assert_eq!(batch.arguments(0).join(&b' '), b"SET a 1");
        assert_eq!((batch.commands.len(), batch.end_db, batch.entries, batch.source_bytes), (1, 0, 0, 10));
    }

    #[test]
    fn batches_of_one_place_have_different_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let first = batch(dir.path());
        let second = first.successor();
        assert_ne!(first.checkpoint(1), second.checkpoint(2));
        assert_eq!(first.checkpoint(1).parse(), Ok(second.progress));
    }

    /// Two processes cut an RDB into different batches: what the first one may have applied behind the second one's batch is not
    /// forgotten.
    #[test]
    fn a_checkpoint_in_the_rdb_says_before_which_byte_keys_may_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let rdb = |bytes| Position::Rdb { offset: 5, bytes, db: 0 };
        let begin = Progress { at: rdb(100), ..batch(dir.path()).progress };
        let mut batch = Batch::new(batch(dir.path()).source, begin.clone(), 0);
        batch.progress.at = rdb(300);
        assert_eq!(Batch::rdb_end(&batch.checkpoint(7)), Some(300));
        assert_eq!(batch.checkpoint(7).parse(), Ok(begin));
        batch.rdb_reached = 500;
        assert_eq!(Batch::rdb_end(&batch.checkpoint(8)), Some(500));
        let mut next = batch.successor();
        next.progress.at = rdb(900);
        assert_eq!(Batch::rdb_end(&next.checkpoint(9)), Some(900));
        assert_eq!(Batch::rdb_end(&format!("{} #1700000000000", next.progress)), None, "of an older version");
    }

    #[test]
    fn progress_is_read_back_as_written() {
        let replid = Replid::parse(&"0f".repeat(20)).unwrap();
        for at in [
            Position::Rdb { offset: 5, bytes: u64::MAX, db: 15 },
            Position::Stream { offset: 1 << 40, db: 0 },
        ] {
            for generation in [0, 7] {
                let progress = Progress { replid: replid.clone(), generation, at };
                assert_eq!(progress.to_string().parse(), Ok(progress));
            }
        }
        let text = format!("v2 {replid} rdb 5 6 7 3 #1700000000000");
        let at = Position::Rdb { offset: 5, bytes: 6, db: 7 };
        assert_eq!(text.parse(), Ok(Progress { replid, generation: 3, at }));
        for text in ["", "v1", "v2 x", "v1 0f stream 1 2", "garbage that a person typed"] {
            assert!(text.parse::<Progress>().is_err(), "{text}");
        }
    }
}
