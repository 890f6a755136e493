//! What the tasks of a run tell each other and the publisher: counters added to once per batch, and details under a lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::events::{unix_ms, without_address};
use super::ledger::Foreign;
use super::pressure::Patience;
use super::spool::Spool;
use crate::config::Endpoint;
use crate::status::{Phase, Throttle, WriterState};

/// The oldest batch in flight is this old: the writer counts as slow.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// What the publisher shows of a source, and what the other tasks tell about it.
pub struct SourceShared {
    /// Its name for as long as the run lasts: the address that it had at first.
    pub address: String,
    /// Where its master is now.
    endpoint: Mutex<Option<Endpoint>>,
    /// The spool of this source.
    pub spool: Arc<Spool>,
    /// RDB bytes that the destination confirmed.
    pub rdb_applied: AtomicU64,
    /// RDB keys that the destination confirmed.
    pub keys_applied: AtomicU64,
    /// Offset that the destination confirmed.
    pub offset_applied: AtomicU64,
    /// Everything received on this link (RDB and stream, bytes).
    pub bytes_received: AtomicU64,
    /// Everything confirmed (RDB and stream, bytes).
    pub bytes_applied: AtomicU64,
    /// Commands and keys confirmed.
    pub entries_applied: AtomicU64,
    /// Commands and keys read from the spool, whatever became of them.
    pub entries_read: AtomicU64,
    /// Those of them that were left out by a rule.
    pub filtered: AtomicU64,
    /// Errors on the link and refused entries.
    pub errors: AtomicU64,
    /// When the destination last confirmed a batch, and the checkpoint with it (Unix ms); 0 = not yet.
    pub confirmed_unix_ms: AtomicU64,
    /// How far the source's clock is ahead of ours (ms), as far as measured.
    pub clock_skew_ms: AtomicI64,
    /// Batches handed to writers since applying began.
    pub batches_handed_over: AtomicU64,
    /// Those of them that are confirmed.
    pub batches_confirmed: AtomicU64,
    /// Keys (database, key) that existed on the destination and were left alone; taken by replay.
    foreign: Mutex<Option<Arc<Foreign>>>,
    /// Why the value cannot be had that replay builds in pieces at the moment.
    refused_piece: Mutex<Option<String>>,
    /// Drops the link and opens it again.
    pub restart: Notify,
    /// Asks for an ACK now.
    pub acknowledge: Notify,
    /// The next link shall ask for a full sync, whatever the source could continue.
    pub full_sync_wanted: AtomicBool,
    /// Its master has no slots any more: what it sent is applied, and nothing more will come.
    pub retired: AtomicBool,
    /// Said when that is so.
    pub retire: Notify,
    /// Set while the writer's full queue makes replay wait.
    pub held_back: AtomicBool,
    /// Replay hands on no command of the stream that begins at or after this offset. Verification sets it for moments, to
    /// read both sides at one and the same place; else `u64::MAX`.
    pub apply_limit: AtomicU64,
    details: Mutex<SourceDetails>,
}

/// The slow-moving part.
#[derive(Debug, Clone)]
pub struct SourceDetails {
    /// What the link does.
    pub phase: Phase,
    /// Why.
    pub reason: Option<String>,
    /// Since when (Unix ms).
    pub phase_since_unix_ms: u64,
    /// Times at which phases were entered first, for the timeline; a full sync begins them anew.
    pub entered: Vec<(Phase, u64)>,
    /// When it had answered the first handshake (Unix ms).
    pub answered_unix_ms: Option<u64>,
    /// "redis 7.2.4".
    pub server: Option<String>,
    /// "master" or "slave".
    pub role: Option<String>,
    /// The server that is read, where that is not `address`: the present master of sentinels, or a replica.
    pub connected_to: Option<String>,
    /// `$<len>` or `$EOF:`.
    pub transfer: Option<&'static str>,
    /// RDB size, once known.
    pub rdb_total: Option<u64>,
    /// When FULLRESYNC was answered.
    pub full_sync_since: Option<Instant>,
    /// When the last byte of the RDB had arrived (Unix ms).
    pub rdb_received_unix_ms: Option<u64>,
    /// How often the link was opened again.
    pub reconnects: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// Last REPLCONF ACK (Unix ms).
    pub last_ack_unix_ms: Option<u64>,
    /// `repl-backlog-size`.
    pub backlog_bytes: Option<u64>,
    /// Hard limit of `client-output-buffer-limit replica`.
    pub output_buffer_limit_bytes: Option<u64>,
    /// How long it bears a replica that does not read; `None` = it does not say.
    pub patience: Option<Patience>,
    /// Its clock minus ours (ms), where it tells the time.
    pub clock_skew_ms: Option<i64>,
    /// Why nothing is read, while there is no room for it; shown in place of `reason`.
    pub no_room: Option<String>,
    /// When that was last told as an event.
    pub full_said: Option<Instant>,
}

impl SourceDetails {
    /// Nothing known yet.
    pub fn new(now_unix_ms: u64) -> Self {
        SourceDetails {
            phase: Phase::Connecting,
            reason: None,
            phase_since_unix_ms: now_unix_ms,
            entered: vec![(Phase::Connecting, now_unix_ms)],
            answered_unix_ms: None,
            server: None,
            role: None,
            connected_to: None,
            transfer: None,
            rdb_total: None,
            full_sync_since: None,
            rdb_received_unix_ms: None,
            reconnects: 0,
            last_error: None,
            last_ack_unix_ms: None,
            backlog_bytes: None,
            output_buffer_limit_bytes: None,
            patience: None,
            clock_skew_ms: None,
            no_room: None,
            full_said: None,
        }
    }

    /// Enters a phase.
    pub fn enter(&mut self, phase: Phase, now_unix_ms: u64) {
        if self.phase == phase {
            return;
        }
        self.phase = phase;
        self.phase_since_unix_ms = now_unix_ms;
        if !matches!(phase, Phase::Connecting | Phase::Handshake | Phase::Reconnecting | Phase::Failed) {
            self.answered_unix_ms.get_or_insert(now_unix_ms);
        }
        if phase == Phase::WaitingBgsave {
            self.entered.retain(|(phase, _)| matches!(phase, Phase::Connecting | Phase::Handshake));
        }
        if self.entered.iter().all(|(entered, _)| *entered != phase) {
            self.entered.push((phase, now_unix_ms));
        }
    }
}

impl SourceShared {
    /// Nothing known yet.
    pub fn new(address: String, spool: Arc<Spool>) -> Self {
        SourceShared {
            address,
            endpoint: Mutex::default(),
            spool,
            rdb_applied: AtomicU64::new(0),
            keys_applied: AtomicU64::new(0),
            offset_applied: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            bytes_applied: AtomicU64::new(0),
            entries_applied: AtomicU64::new(0),
            entries_read: AtomicU64::new(0),
            filtered: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            confirmed_unix_ms: AtomicU64::new(0),
            clock_skew_ms: AtomicI64::new(0),
            batches_handed_over: AtomicU64::new(0),
            batches_confirmed: AtomicU64::new(0),
            foreign: Mutex::default(),
            refused_piece: Mutex::default(),
            restart: Notify::new(),
            acknowledge: Notify::new(),
            full_sync_wanted: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            retire: Notify::new(),
            held_back: AtomicBool::new(false),
            apply_limit: AtomicU64::new(u64::MAX),
            details: Mutex::new(SourceDetails::new(unix_ms())),
        }
    }

    /// Where its master is now; `None` where no server is the source, or none was found yet.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.endpoint.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Its master was found there.
    pub fn found_at(&self, endpoint: &Endpoint) {
        *self.endpoint.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(endpoint.clone());
    }

    /// A command or key was read and left out by a rule.
    pub fn filter_out(&self) {
        self.entries_read.fetch_add(1, Relaxed);
        self.filtered.fetch_add(1, Relaxed);
    }

    /// Changes only the reason.
    pub fn set_reason(&self, reason: Option<String>) {
        self.details().reason = reason;
    }

    /// Now by the source's clock (Unix ms).
    pub fn now_ms(&self) -> u64 {
        unix_ms().saturating_add_signed(self.clock_skew_ms.load(Relaxed))
    }

    /// This key existed on the destination and was left alone.
    pub fn found_foreign(&self, db: u32, key: &[u8]) {
        if let Some(foreign) = self.foreign().as_ref() {
            foreign.note(db, key);
        }
    }

    /// Where such keys are noted from now on.
    pub fn note_foreign_in(&self, file: Option<Arc<Foreign>>) {
        *self.foreign() = file;
    }

    /// The destination has refused a command of the value that replay builds in pieces. Said before the answer to its count.
    pub fn refuse_piece(&self, reason: String) {
        self.refused_piece.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(reason);
    }

    /// Takes the first such reason.
    pub fn take_refused_piece(&self) -> Option<String> {
        self.refused_piece.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take()
    }

    fn foreign(&self) -> MutexGuard<'_, Option<Arc<Foreign>>> {
        self.foreign.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Looks at or changes the slow-moving part.
    pub fn details(&self) -> MutexGuard<'_, SourceDetails> {
        self.details.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Enters a phase; entering the same one again only changes the reason.
    pub fn enter(&self, phase: Phase, reason: Option<String>) {
        let mut details = self.details();
        details.reason = reason.map(|reason| without_address(&reason, &self.address).to_owned());
        details.enter(phase, unix_ms());
    }
}

/// What the operator's wishes are at the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Apply nothing.
    pub paused: bool,
    /// The operator's speed limit.
    pub limit: Throttle,
    /// The share of it that each line may use.
    pub throttle: Throttle,
    /// Apply nothing, because the cutover is at its end.
    pub sealed: bool,
    /// Finish what is in flight and end.
    pub stop: bool,
}

impl Wishes {
    /// Divides the operator's limit among so many lines.
    pub fn share_among(&mut self, lines: usize) {
        let share = |limit: Option<u64>| limit.map(|limit| (limit / lines.max(1) as u64).max(1));
        self.throttle = Throttle {
            bytes_per_second: share(self.limit.bytes_per_second),
            ops_per_second: share(self.limit.ops_per_second),
        };
    }
}

/// The writers of a run: one for each source, and where the destination is a cluster one more for each node of it.
#[derive(Default)]
pub struct Writers {
    all: Mutex<Vec<Arc<WriterShared>>>,
    /// "redis 7.2.4", as a destination node said it.
    server: Mutex<Option<String>>,
    /// How far its clock is ahead of ours (ms), where it tells the time.
    clock_skew_ms: Mutex<Option<i64>>,
}

impl Writers {
    /// That of another source.
    pub fn add(&self, address: &str) -> Arc<WriterShared> {
        let writer = Arc::new(WriterShared::new(address.to_owned(), None));
        self.list().push(writer.clone());
        writer
    }

    /// The source is gone, and with it what was told of the nodes.
    pub fn remove(&self, writer: &Arc<WriterShared>, source: &str) {
        self.keep_nodes(source, &[]);
        self.list().retain(|other| !Arc::ptr_eq(other, writer));
    }

    /// That of a source for one node of the destination cluster: the one that was there when applying began before, if any.
    pub fn node(&self, source: &str, address: &str) -> Arc<WriterShared> {
        let mut list = self.list();
        if let Some(known) = list.iter().find(|it| it.is_node_of(source) && it.address == address) {
            return known.clone();
        }
        let writer = Arc::new(WriterShared::new(address.to_owned(), Some(source.to_owned())));
        list.push(writer.clone());
        writer
    }

    /// Of the destination cluster these nodes are left; the others are shown no more.
    pub fn keep_nodes(&self, source: &str, addresses: &[String]) {
        self.list().retain(|it| !it.is_node_of(source) || addresses.contains(&it.address));
    }

    /// A node of the destination cluster is lost to this source. Others that were lost before may be back: they are not known to
    /// be lost any more.
    pub fn node_lost(&self, source: &str, address: &str, reason: &str) {
        for node in self.list().iter().filter(|it| it.is_node_of(source)) {
            match node.address == address {
                true => node.enter(WriterState::Reconnecting, Some(reason.to_owned())),
                false => node.enter(WriterState::Ok, None),
            }
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<WriterShared>> {
        self.list().clone()
    }

    /// True while all of them are paused and have nothing in flight.
    pub fn are_idle(&self) -> bool {
        self.list().iter().all(|writer| writer.idle.load(Relaxed))
    }

    /// What the destination is.
    pub fn server(&self) -> Option<String> {
        self.server.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// How far the destination's clock is ahead of ours (ms).
    pub fn clock_skew_ms(&self) -> Option<i64> {
        *self.clock_skew_ms.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The destination has said what it is, and what time it has.
    pub fn told(&self, server: Option<String>, clock_skew_ms: Option<i64>) {
        *self.server.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = server;
        *self.clock_skew_ms.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = clock_skew_ms;
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<WriterShared>>> {
        self.all.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What the publisher shows of a writer.
pub struct WriterShared {
    /// Address in words.
    pub address: String,
    /// One node of a destination cluster: the source that it is written from.
    node_of: Option<String>,
    /// Commands sent and not yet answered.
    pub in_flight: AtomicU64,
    /// True while paused and nothing is in flight.
    pub idle: AtomicBool,
    /// Commands confirmed.
    pub entries: AtomicU64,
    /// Bytes confirmed.
    pub bytes: AtomicU64,
    /// Commands sent again.
    pub retries: AtomicU64,
    /// Connections after the first.
    pub reconnects: AtomicU64,
    /// Error answers.
    pub errors: AtomicU64,
    /// MOVED and ASK answers.
    pub redirects: AtomicU64,
    /// Time that what was sent takes under the operator's speed limit (µs): nearly all of it where the limit is what holds it.
    pub limit_us: AtomicU64,
    details: Mutex<WriterDetails>,
}

/// The slow-moving part.
#[derive(Debug, Clone)]
pub struct WriterDetails {
    /// Health.
    pub state: WriterState,
    /// Why.
    pub reason: Option<String>,
    /// When the oldest batch in flight was sent.
    pub oldest: Option<Instant>,
    /// Time to confirmation of recent batches: when, and how many ms.
    pub latencies: VecDeque<(Instant, f64)>,
    /// The last error.
    pub last_error: Option<String>,
    /// The present master, where sentinels know it.
    pub connected_to: Option<String>,
    /// Slots that the node serves ("0-5460").
    pub slots: Option<String>,
}

impl WriterDetails {
    /// What was sent was confirmed after this time.
    pub fn took(&mut self, time: Duration) {
        let now = Instant::now();
        self.latencies.push_back((now, time.as_secs_f64() * 1000.0));
        while self.latencies.len() > 2_000
            || self.latencies.front().is_some_and(|(at, _)| now - *at > Duration::from_secs(10))
        {
            self.latencies.pop_front();
        }
    }
}

impl WriterShared {
    /// Nothing known yet.
    fn new(address: String, node_of: Option<String>) -> Self {
        WriterShared {
            address,
            node_of,
            in_flight: AtomicU64::new(0),
            idle: AtomicBool::new(true),
            entries: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            redirects: AtomicU64::new(0),
            limit_us: AtomicU64::new(0),
            details: Mutex::new(WriterDetails {
                slots: None,
                state: WriterState::Connecting,
                reason: None,
                oldest: None,
                latencies: VecDeque::new(),
                last_error: None,
                connected_to: None,
            }),
        }
    }

    /// Counts what is sent, and tells how long nothing else may follow it under a speed limit.
    pub fn limited(&self, limit: Throttle, bytes: u64, entries: u64) -> Duration {
        let share =
            |amount: u64, limit: Option<u64>| limit.map_or(0.0, |limit| amount as f64 / limit.max(1) as f64);
        let seconds = share(bytes, limit.bytes_per_second).max(share(entries, limit.ops_per_second));
        let time = Duration::from_secs_f64(seconds.min(3_600.0));
        self.limit_us.fetch_add(time.as_micros() as u64, Relaxed);
        time
    }

    /// Looks at or changes the slow-moving part.
    pub fn details(&self) -> MutexGuard<'_, WriterDetails> {
        self.details.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Whether it is one node of a destination cluster.
    pub fn is_node(&self) -> bool {
        self.node_of.is_some()
    }

    fn is_node_of(&self, source: &str) -> bool {
        self.node_of.as_deref() == Some(source)
    }

    /// The state as it should be shown: a writer whose oldest batch is old is slow.
    pub fn shown_state(details: &WriterDetails) -> WriterState {
        match (details.state, details.oldest) {
            (WriterState::Ok, Some(oldest)) if oldest.elapsed() > SLOW_AFTER => WriterState::Slow,
            (state, _) => state,
        }
    }

    /// Changes the state; a reason is an error too.
    pub fn enter(&self, state: WriterState, reason: Option<String>) {
        let reason = reason.map(|reason| without_address(&reason, &self.address).to_owned());
        if state == WriterState::Closed {
            // It has nothing in flight, and never will have.
            self.idle.store(true, Relaxed);
        }
        let mut details = self.details();
        if let Some(reason) = &reason {
            details.last_error = Some(reason.clone());
        }
        details.state = state;
        details.reason = reason;
    }
}
