//! Turns what the tasks tell into one [`Status`], four times a second.

mod gates;
mod rate;
mod timeline;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use self::rate::Rate;
use super::clocks;
use super::events::{EventLog, unix_ms};
use super::handover::Board;
use super::quarantine::Quarantine;
use super::room::disk_free;
use super::shard::Shards;
use super::shared::{SourceDetails, SourceShared, Wishes, WriterDetails, WriterShared, Writers};
use crate::config::{Endpoint, Plan, Reader};
use crate::cutover;
use crate::format;
use crate::status::{
    Counters, DestinationStatus, HISTORY_CAPACITY, Outcome, Phase, Sample, Side, SourceStatus, SpoolStatus,
    State, Status, Throttle, WriterState, worst_lag_bytes,
};

/// Window over which rates are measured.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Window over which the growth of the spool is measured.
const GROWTH_WINDOW: Duration = Duration::from_secs(60);

/// What does not change while a run lasts.
pub struct Identity {
    /// Names this migration across restarts.
    pub run_id: String,
    /// Where the data comes from, in words.
    pub source: String,
    /// Data directory.
    pub data_dir: String,
    /// Log file.
    pub log_file: Option<String>,
    /// Where the status can be asked for over HTTP.
    pub status_url: Option<String>,
    /// Shown for as long as the run lasts.
    pub warnings: Vec<String>,
}

/// Collects and computes; owned by the supervisor.
pub struct Publisher {
    identity: Identity,
    plan: Plan,
    board: Arc<Board>,
    sources: Vec<Arc<SourceShared>>,
    writers: Arc<Writers>,
    events: Arc<EventLog>,
    quarantine: Arc<Quarantine>,
    started: Instant,
    started_unix_ms: u64,
    rates: Vec<SourceRates>,
    writer_rates: BTreeMap<String, [Rate; 2]>,
    limit_used: Rate,
    total_ops: Rate,
    spool_growth: Rate,
    history: VecDeque<Sample>,
    last_sample: Instant,
    last_sample_ops: u64,
    caught_up_since: Option<Instant>,
    /// How long it has been caught up, or had been when something else began.
    caught_up_for: Option<Duration>,
    /// Why the streams of the sources cannot be trusted to be all for the moment.
    pub unsettled: Option<String>,
    /// The shards of a source cluster, once they are found.
    pub shards: Option<Arc<Shards>>,
    /// How often the operator paused.
    pub paused_times: u32,
    /// The verification that runs, or the last one.
    pub verification: Option<Arc<super::verify::Progress>>,
}

struct SourceRates {
    ops: Rate,
    applied: Rate,
    received: Rate,
    rdb: Rate,
    /// Bytes received by the last snapshot, and the rate of the stream when more had come.
    seen: u64,
    stream: Option<f64>,
}

impl Publisher {
    /// Nothing measured yet.
    pub fn new(
        identity: Identity,
        plan: Plan,
        board: Arc<Board>,
        writers: Arc<Writers>,
        events: Arc<EventLog>,
        quarantine: Arc<Quarantine>,
    ) -> Self {
        Publisher {
            rates: Vec::new(),
            writer_rates: BTreeMap::new(),
            limit_used: Rate::new(RATE_WINDOW),
            total_ops: Rate::new(RATE_WINDOW),
            spool_growth: Rate::new(GROWTH_WINDOW),
            identity,
            plan,
            board,
            sources: Vec::new(),
            writers,
            events,
            quarantine,
            started: Instant::now(),
            started_unix_ms: unix_ms(),
            history: VecDeque::new(),
            last_sample: Instant::now(),
            last_sample_ops: 0,
            caught_up_since: None,
            caught_up_for: None,
            unsettled: None,
            shards: None,
            paused_times: 0,
            verification: None,
        }
    }

    /// A source has been found.
    pub fn add_source(&mut self, source: Arc<SourceShared>) {
        let rate = || Rate::new(RATE_WINDOW);
        self.sources.push(source);
        self.rates.push(SourceRates {
            ops: rate(),
            applied: rate(),
            received: rate(),
            rdb: Rate::new(Duration::from_secs(30)),
            seen: 0,
            stream: None,
        });
    }

    /// A source is shown no more.
    pub fn remove_source(&mut self, source: &Arc<SourceShared>) {
        if let Some(at) = self.sources.iter().position(|other| Arc::ptr_eq(other, source)) {
            self.sources.remove(at);
            self.rates.remove(at);
        }
    }

    /// A snapshot of now. `ending` is set once the run ends or has ended.
    pub fn snapshot(&mut self, wishes: Wishes, ending: Option<State>, outcome: Option<Outcome>) -> Status {
        let now = Instant::now();
        let now_ms = unix_ms();
        let details: Vec<SourceDetails> =
            self.sources.iter().map(|source| source.details().clone()).collect();
        let destinations = self.destinations(now, wishes);
        // Who has not answered for longest is what all wait for.
        let slowest = destinations.iter().max_by(|a, b| a.oldest_ms.total_cmp(&b.oldest_ms));
        let slowest = slowest.map(|node| node.address.clone());
        let limited = self.is_limited(now, wishes);
        let holding = match (wishes.paused, slowest) {
            (false, Some(_)) if limited => Some(Holding::Limit),
            (false, Some(slowest)) => Some(Holding::Writer(slowest)),
            _ => None,
        };
        let sources: Vec<SourceStatus> = (0..self.sources.len())
            .map(|index| self.source(index, &details[index], now, wishes, holding.as_ref()))
            .collect();

        let ops: u64 = self.sources.iter().map(|source| source.entries_applied.load(Relaxed)).sum();
        self.total_ops.add(now, ops as f64);
        let spool = self.spool(now);
        let view = self.events.view();

        let all_stream = !sources.is_empty()
            && sources.iter().all(|source| matches!(source.phase, Phase::Stream | Phase::Drained));
        let gate = &self.plan.cutover;
        let low = all_stream
            && worst_lag_bytes(&sources).is_some_and(|bytes| bytes <= gate.max_lag_bytes)
            && sources
                .iter()
                // Where the oldest byte was applied while it was looked for, there is no time.
                .filter_map(|source| source.lag_seconds)
                .all(|seconds| seconds <= gate.max_lag.as_secs_f64())
            && !wishes.paused
            && destinations.iter().all(|node| matches!(node.state, WriterState::Ok));
        self.caught_up_since = if low { self.caught_up_since.or(Some(now)) } else { None };
        let held = self.caught_up_since.map(|since| now - since);
        let caught_up = !self.plan.writer.off_reply && held.is_some_and(|held| held >= gate.hold_for);

        let mut cutover = self.board.view();
        cutover.max_blocked_seconds = Some(gate.max_blocked.as_secs_f64());
        let idle = self.writers.are_idle();
        let state = match ending {
            Some(state) => state,
            None if cutover.state == cutover::State::Done => State::Switched,
            None if cutover.state.is_active() || cutover.state.is_switched() => State::CuttingOver,
            None if wishes.paused && idle => State::Paused,
            None if wishes.paused => State::Pausing,
            None if caught_up => State::CaughtUp,
            None if all_stream => State::Streaming,
            None if sources
                .iter()
                .all(|source| matches!(source.phase, Phase::Connecting | Phase::Handshake)) =>
            {
                State::Connecting
            }
            None => State::Syncing,
        };
        self.caught_up_for = match state {
            State::CaughtUp => held.map(|held| held.saturating_sub(gate.hold_for)),
            State::Connecting | State::Syncing | State::Streaming | State::Pausing | State::Paused => None,
            // What came after it does not undo it.
            _ => self.caught_up_for,
        };
        let gates = self.gates(&sources, &destinations, &spool, view.unread_errors, held, wishes);
        let not_ready: Vec<String> =
            gates.iter().filter(|gate| !gate.ok).map(|gate| gate.detail.clone()).collect();
        let not_ready = match (&outcome, ending) {
            (Some(_), _) | (_, Some(_)) => vec!["the run has ended or is ending".to_owned()],
            _ if cutover.state.is_switched() => vec!["the cutover is done".to_owned()],
            _ => not_ready,
        };
        self.sample(now, ops, &sources);

        Status {
            run_id: self.identity.run_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            snapshot_unix_ms: now_ms,
            started_unix_ms: self.started_unix_ms,
            elapsed_seconds: (now - self.started).as_secs_f64(),
            state,
            state_reason: self.state_reason(state, wishes),
            ready: not_ready.is_empty(),
            not_ready,
            gates,
            source: Side {
                server: details.iter().find_map(|details| details.server.clone()),
                kind: match &self.plan.reader {
                    Reader::Sync(reader) => server_kind(reader.cluster, &reader.endpoint).into(),
                    Reader::Rdb { .. } => "file".into(),
                },
                address: self.identity.source.clone(),
                nodes: sources.len(),
            },
            destination: Side {
                server: self.writers.server(),
                kind: server_kind(self.plan.writer.cluster, &self.plan.writer.endpoint).into(),
                address: self.plan.writer.endpoint.address.to_string(),
                nodes: destinations.len(),
            },
            timeline: self.timeline(&details, now_ms, state, &cutover),
            counters: Counters {
                // Before those that were read, whose part they are.
                filtered: self.sources.iter().map(|source| source.filtered.load(Relaxed)).sum(),
                entries_applied: self.sources.iter().map(|source| source.entries_applied.load(Relaxed)).sum(),
                entries_read: self.sources.iter().map(|source| source.entries_read.load(Relaxed)).sum(),
                quarantined: self.quarantine.count(),
            },
            sources,
            destinations,
            spool,
            rejected: view.rejected,
            throttle: wishes.limit,
            events: view.events,
            events_dropped: view.dropped,
            unread_errors: view.unread_errors,
            history: self.history.iter().copied().collect(),
            paused_times: self.paused_times,
            memory_bytes: resident_memory(),
            log_file: self.identity.log_file.clone(),
            status_url: self.identity.status_url.clone(),
            data_dir: self.identity.data_dir.clone(),
            warnings: self.warnings(&details),
            cutover,
            verification: self.verification.as_ref().map(|progress| progress.snapshot()),
            outcome,
        }
    }

    fn source(
        &mut self,
        index: usize,
        details: &SourceDetails,
        now: Instant,
        wishes: Wishes,
        holding: Option<&Holding>,
    ) -> SourceStatus {
        let source = &self.sources[index];
        let rates = &mut self.rates[index];
        let spool = &source.spool;
        let manifest = spool.manifest();
        let (spool_bytes, spool_files) = spool.usage();
        let received = spool.received();
        // Read after `received`, so that a lag is never below zero.
        let applied = source.offset_applied.load(Relaxed).min(received);
        let in_full_sync =
            matches!(details.phase, Phase::RdbReceive | Phase::RdbApply | Phase::WaitingBgsave);
        // What a source has not sent yet, nobody knows: without a link, and until its RDB is whole here.
        let known = manifest.as_ref().is_some_and(|manifest| manifest.rdb_len.is_some())
            && matches!(details.phase, Phase::RdbReceive | Phase::RdbApply | Phase::Stream | Phase::Drained);
        let lag_seconds = if in_full_sync {
            details.full_sync_since.map(|since| (now - since).as_secs_f64())
        } else if !known {
            None
        } else {
            // From the spool, which remembers it across restarts.
            let oldest =
                if applied == received { Some(source.now_ms()) } else { spool.received_at(applied + 1) };
            oldest.map(|oldest| source.now_ms().saturating_sub(oldest) as f64 / 1000.0)
        };
        let rdb_applied = source.rdb_applied.load(Relaxed);
        let rdb_rate = rates.rdb.add(now, rdb_applied as f64);
        let eta_seconds = match (details.phase, details.rdb_total, rdb_rate) {
            // Nothing is applied while paused: the rate is one of the past.
            (Phase::RdbApply, Some(total), Some(rate))
                if !wishes.paused && rdb_applied * 100 >= total && rate > 1.0 =>
            {
                Some(total.saturating_sub(rdb_applied) as f64 / rate)
            }
            _ => None,
        };
        let bytes_received = source.bytes_received.load(Relaxed);
        let receive_rate = rates.received.add(now, bytes_received as f64).unwrap_or(0.0);
        // Only while something comes: on a link that is silent the rate of the window sinks towards zero.
        if details.phase == Phase::Stream && bytes_received > rates.seen {
            rates.stream = Some(receive_rate);
        }
        rates.seen = bytes_received;
        let holding = holding.filter(|_| source.held_back.load(Relaxed));
        let (held_back_by, limited) = match holding {
            Some(Holding::Writer(address)) => (Some(address.clone()), None),
            Some(Holding::Limit) => (None, limit_in_words(wishes.limit)),
            None => (None, None),
        };
        SourceStatus {
            address: source.address.clone(),
            connected_to: details.connected_to.clone(),
            role: details.role.clone().map(|role| if role == "slave" { "replica".into() } else { role }),
            phase: details.phase,
            reason: details
                .no_room
                .clone()
                .or_else(|| details.reason.clone())
                .or_else(|| limited.map(|limit| format!("THROTTLED ({limit})"))),
            phase_since_unix_ms: details.phase_since_unix_ms,
            replid: manifest.as_ref().map(|manifest| manifest.replid.to_string()),
            rdb_transfer: details.transfer.map(str::to_owned),
            rdb_bytes_received: spool.rdb_received(),
            // That of a former run is whole on disk before anything is asked of the source.
            rdb_bytes_total: details.rdb_total.or(manifest.as_ref().and_then(|manifest| manifest.rdb_len)),
            rdb_bytes_applied: rdb_applied,
            keys_applied: source.keys_applied.load(Relaxed),
            offset_received: received,
            offset_durable: spool.durable(),
            offset_applied: applied,
            lag_bytes: known.then(|| received - applied),
            lag_seconds,
            ops_per_second: rates.ops.add(now, source.entries_applied.load(Relaxed) as f64).unwrap_or(0.0),
            bytes_per_second: rates
                .applied
                .add(now, source.bytes_applied.load(Relaxed) as f64)
                .unwrap_or(0.0),
            receive_bytes_per_second: receive_rate,
            stream_bytes_per_second: rates.stream,
            spool_bytes,
            spool_files,
            errors: source.errors.load(Relaxed),
            reconnects: details.reconnects,
            last_error: details.last_error.clone(),
            last_ack_unix_ms: details.last_ack_unix_ms,
            checkpoint_unix_ms: Some(source.confirmed_unix_ms.load(Relaxed)).filter(|at| *at > 0),
            backlog_bytes: details.backlog_bytes,
            output_buffer_limit_bytes: details.output_buffer_limit_bytes,
            clock_skew_ms: details.clock_skew_ms,
            held_back_by,
            eta_seconds,
        }
    }

    /// One for each node; what the lines of several sources do there is added up.
    fn destinations(&mut self, now: Instant, wishes: Wishes) -> Vec<DestinationStatus> {
        let mut nodes: Vec<(String, Vec<Arc<WriterShared>>)> = Vec::new();
        let all = self.writers.all();
        let state = |writer: &Arc<WriterShared>| severity(WriterShared::shown_state(&writer.details()));
        // Of a cluster its nodes are shown; all of it only where none of them tells what is the matter.
        let worst_node = all.iter().filter(|writer| writer.is_node()).map(state).max();
        let all = all.iter().filter(|it| it.is_node() || worst_node.is_none_or(|worst| state(it) > worst));
        for writer in all.cloned() {
            match nodes.iter_mut().find(|(address, _)| *address == writer.address) {
                Some((_, lines)) => lines.push(writer),
                None => nodes.push((writer.address.clone(), vec![writer])),
            }
        }
        nodes.into_iter().map(|(address, lines)| self.destination(address, &lines, now, wishes)).collect()
    }

    fn destination(
        &mut self,
        address: String,
        lines: &[Arc<WriterShared>],
        now: Instant,
        wishes: Wishes,
    ) -> DestinationStatus {
        let details: Vec<WriterDetails> = lines.iter().map(|line| line.details().clone()).collect();
        let mut recent: Vec<f64> =
            details.iter().flat_map(|details| details.latencies.iter().map(|(_, ms)| *ms)).collect();
        recent.sort_by(f64::total_cmp);
        // The line that is worst off is what the operator has to know of.
        let worst = details.iter().max_by_key(|details| severity(WriterShared::shown_state(details)));
        let mut state = worst.map_or(WriterState::Connecting, WriterShared::shown_state);
        let mut reason = worst.and_then(|details| details.reason.clone());
        if wishes.paused && state == WriterState::Ok && lines.iter().all(|line| line.idle.load(Relaxed)) {
            // Without a reason, for nothing is wrong: it was told to.
            (state, reason) = (WriterState::Waiting, None);
        }
        let oldest = details.iter().filter_map(|details| details.oldest).min();
        let sum = |counter: fn(&WriterShared) -> &AtomicU64| -> u64 {
            lines.iter().map(|line| counter(line).load(Relaxed)).sum()
        };
        let rate = || Rate::new(RATE_WINDOW);
        let [ops, bytes] = self.writer_rates.entry(address.clone()).or_insert_with(|| [rate(), rate()]);
        DestinationStatus {
            address,
            connected_to: details.iter().find_map(|details| details.connected_to.clone()),
            state,
            reason,
            slots: details.iter().find_map(|details| details.slots.clone()),
            in_flight: sum(|line| &line.in_flight),
            in_flight_limit: self.plan.advanced.pipeline_count_limit as u64 * lines.len() as u64,
            oldest_ms: oldest.map_or(0.0, |oldest| (now - oldest).as_secs_f64() * 1000.0),
            p99_ms: recent.get((recent.len() * 99 / 100).min(recent.len().saturating_sub(1))).copied(),
            ops_per_second: ops.add(now, sum(|line| &line.entries) as f64).unwrap_or(0.0),
            bytes_per_second: bytes.add(now, sum(|line| &line.bytes) as f64).unwrap_or(0.0),
            retries: sum(|line| &line.retries),
            redirects: sum(|line| &line.redirects),
            reconnects: sum(|line| &line.reconnects),
            errors: sum(|line| &line.errors),
            last_error: details.into_iter().find_map(|details| details.last_error),
        }
    }

    /// True where the speed limit holds the writers and not the servers behind them: what is sent takes nearly all of its time
    /// under the limit, or a batch waits though nothing is in flight.
    fn is_limited(&mut self, now: Instant, wishes: Wishes) -> bool {
        const NEARLY: f64 = 0.8;
        let writers = self.writers.all();
        let used: u64 = writers.iter().map(|writer| writer.limit_us.load(Relaxed)).sum();
        let used = self.limit_used.add(now, used as f64 / 1e6).unwrap_or(0.0);
        // Each line has its own share of the limit.
        let held = self.sources.iter().filter(|source| source.held_back.load(Relaxed)).count();
        let idle = writers.iter().all(|writer| writer.in_flight.load(Relaxed) == 0 && is_well(writer));
        wishes.limit != Throttle::default() && (idle || used >= NEARLY * held.max(1) as f64)
    }

    /// What must not be forgotten for as long as it lasts.
    fn warnings(&self, details: &[SourceDetails]) -> Vec<String> {
        let destination = self.writers.clock_skew_ms();
        let clocks = details.iter().find_map(|details| clocks::warning(details.clock_skew_ms?, destination?));
        self.identity.warnings.iter().cloned().chain(clocks).collect()
    }

    fn spool(&mut self, now: Instant) -> SpoolStatus {
        let bytes = self.sources.iter().map(|source| source.spool.usage().0).sum();
        SpoolStatus {
            bytes,
            max_bytes: self.plan.spool.max_bytes,
            disk_free_bytes: self.sources.first().and_then(|source| disk_free(&source.spool).ok()),
            min_free_bytes: self.plan.spool.min_free_bytes,
            growth_bytes_per_second: self.spool_growth.add(now, bytes as f64),
        }
    }

    fn state_reason(&self, state: State, wishes: Wishes) -> Option<String> {
        match state {
            State::Pausing => Some("waiting for the answers to what is in flight".into()),
            State::Paused if self.sources.iter().any(|source| source.details().no_room.is_some()) => {
                Some("nothing is applied, and there is no room to receive more".into())
            }
            State::Paused => Some("nothing is applied; the source is still received into the spool".into()),
            State::Stopping => Some("finishing what is in flight".into()),
            _ => limit_in_words(wishes.limit).map(|limit| format!("THROTTLED: {limit}")),
        }
    }

    fn sample(&mut self, now: Instant, ops: u64, sources: &[SourceStatus]) {
        let seconds = (now - self.last_sample).as_secs_f64();
        if seconds < 1.0 {
            return;
        }
        // A gap in time (suspended machine) is a gap in the chart.
        for _ in 1..(seconds as usize).min(HISTORY_CAPACITY) {
            self.history.push_back(Sample::default());
        }
        self.history.push_back(Sample {
            ops: Some(ops.saturating_sub(self.last_sample_ops) as f64 / seconds),
            lag_bytes: worst_lag_bytes(sources).map(|bytes| bytes as f64),
        });
        while self.history.len() > HISTORY_CAPACITY {
            self.history.pop_front();
        }
        self.last_sample = now;
        self.last_sample_ops = ops;
    }
}

/// What a source waits for that has read ahead as far as it may.
enum Holding {
    /// The operator's speed limit.
    Limit,
    /// The writer that has not answered for longest.
    Writer(String),
}

fn is_well(writer: &WriterShared) -> bool {
    WriterShared::shown_state(&writer.details()) == WriterState::Ok
}

/// `limit 50 MB/s and 10k ops/s`; `None` where there is none.
fn limit_in_words(limit: Throttle) -> Option<String> {
    let bytes = limit.bytes_per_second.map(|bytes| format::rate(bytes as f64));
    let ops = limit.ops_per_second.map(|ops| format!("{} ops/s", format::count(ops as f64)));
    let words: Vec<String> = bytes.into_iter().chain(ops).collect();
    (!words.is_empty()).then(|| format!("limit {}", words.join(" and ")))
}

fn server_kind(cluster: bool, endpoint: &Endpoint) -> &'static str {
    match (cluster, &endpoint.sentinel) {
        (true, _) => "cluster",
        (false, Some(_)) => "sentinel",
        (false, None) => "standalone",
    }
}

/// Which state of several is shown.
fn severity(state: WriterState) -> u8 {
    match state {
        WriterState::Closed => 0,
        WriterState::Ok => 1,
        WriterState::Slow => 2,
        WriterState::Connecting => 3,
        WriterState::Waiting => 4,
        WriterState::Reconnecting => 5,
        WriterState::Failed => 6,
    }
}

/// Resident memory of this process (bytes), where /proc tells.
fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
