//! What every front shows: one immutable snapshot of the whole migration.
//!
//! The engine publishes an [`Status`] four times a second; the console, the headless printer, the HTTP status and the
//! control socket all read the same value, and nothing in it was computed by a front. Unknown is `None`, never a fake
//! zero. Field names that stand in the README's JSON contract keep their name and unit.

mod nodes;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

pub use nodes::*;

use crate::cutover::{self, FenceKind};

/// The whole migration at one moment. Times are Unix milliseconds, sizes are bytes, rates are per second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Names this migration across restarts; the checkpoint in the destination carries it.
    pub run_id: String,
    /// Version of the program that wrote this snapshot.
    pub version: String,
    /// The process that runs the engine.
    pub pid: u32,
    /// When the engine took this snapshot (Unix ms): the age of the data on screen is counted from here.
    pub snapshot_unix_ms: u64,
    /// When the engine started (Unix ms).
    pub started_unix_ms: u64,
    /// Seconds since the engine started.
    pub elapsed_seconds: f64,
    /// The one word that heads every screen.
    pub state: State,
    /// Why the state is what it is, in words, where there is more to say ("THROTTLED: limit 50 MB/s").
    pub state_reason: Option<String>,
    /// True only when every gate of `gates` is met, proved by offsets that the destination confirmed.
    pub ready: bool,
    /// Why not ready, the most important reason first; empty when `ready`.
    pub not_ready: Vec<String>,
    /// The same as a checklist.
    pub gates: Vec<Gate>,
    /// The source side in words.
    pub source: Side,
    /// The destination side in words.
    pub destination: Side,
    /// The phase timeline.
    pub timeline: Vec<Step>,
    /// One row per source master.
    pub sources: Vec<SourceStatus>,
    /// One row per destination master.
    pub destinations: Vec<DestinationStatus>,
    /// Disk use of the spool.
    pub spool: SpoolStatus,
    /// Totals since the start.
    pub counters: Counters,
    /// Everything refused, filtered or quarantined, by kind.
    pub rejected: Vec<Rejected>,
    /// Speed limit set by the operator, if any.
    pub throttle: Throttle,
    /// Operator events, oldest first; at most [`EVENT_CAPACITY`].
    pub events: Vec<Event>,
    /// Events that fell out of the ring.
    pub events_dropped: u64,
    /// Errors that the operator has not acknowledged.
    pub unread_errors: u64,
    /// One sample per second, oldest first; at most [`HISTORY_CAPACITY`].
    pub history: Vec<Sample>,
    /// How often the operator paused.
    pub paused_times: u32,
    /// Resident memory of the process that runs the engine (bytes).
    pub memory_bytes: Option<u64>,
    /// Where the full log is written.
    pub log_file: Option<String>,
    /// Where this status can be asked for over HTTP ("http://127.0.0.1:8080"); `None` = nowhere.
    #[serde(default)]
    pub status_url: Option<String>,
    /// Data directory of this run (spool, manifest, control socket).
    pub data_dir: String,
    /// Things the operator must not forget, shown for as long as they last ("TLS NOT VERIFIED: source").
    pub warnings: Vec<String>,
    /// The cutover: checklist, steps, and what came of the last one.
    #[serde(default)]
    pub cutover: CutoverStatus,
    /// The verification that runs, or the last one; `None` before the first.
    #[serde(default)]
    pub verification: Option<Verification>,
    /// Set when the run has ended: how, in words, and the process's exit code.
    pub outcome: Option<Outcome>,
}

/// Events kept in a snapshot.
pub const EVENT_CAPACITY: usize = 500;
/// Seconds of history kept in a snapshot (30 minutes).
pub const HISTORY_CAPACITY: usize = 1_800;

/// State of the whole migration. The words are a contract (README, `--exit-when`, `ctl wait`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No source has answered PSYNC yet.
    Connecting,
    /// At least one source is still in its full sync.
    Syncing,
    /// Every source streams.
    Streaming,
    /// Streaming, and the lag has been under the gate for its hold time.
    CaughtUp,
    /// A pause was asked for; batches are still in flight.
    Pausing,
    /// Nothing is applied; the stream goes on into the spool.
    Paused,
    /// A cutover is in progress.
    CuttingOver,
    /// Applying has ended for good on this source; clients belong on the destination.
    Switched,
    /// A stop was asked for; batches are still in flight.
    Stopping,
    /// Ended in order.
    Stopped,
    /// Ended by an error.
    Failed,
}

impl State {
    /// Every state, in the order of a migration.
    pub const ALL: [State; 11] = [
        State::Connecting,
        State::Syncing,
        State::Streaming,
        State::CaughtUp,
        State::Pausing,
        State::Paused,
        State::CuttingOver,
        State::Switched,
        State::Stopping,
        State::Stopped,
        State::Failed,
    ];

    /// The word of the JSON contract.
    pub fn word(self) -> &'static str {
        match self {
            State::Connecting => "connecting",
            State::Syncing => "syncing",
            State::Streaming => "streaming",
            State::CaughtUp => "caught_up",
            State::Pausing => "pausing",
            State::Paused => "paused",
            State::CuttingOver => "cutting_over",
            State::Switched => "switched",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }

    /// True when the engine has ended and the state will not change again.
    pub fn is_final(self) -> bool {
        matches!(self, State::Stopped | State::Failed)
    }
}

/// One condition of READY TO CUT OVER.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// Short name, used in "not ready: rdb, lag".
    pub name: String,
    /// The condition in words ("lag < 1 s").
    pub text: String,
    /// Met or not.
    pub ok: bool,
    /// The measured value or the reason ("41m08").
    pub detail: String,
}

/// One side of the migration in words.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Side {
    /// What answers there, once known ("redis 7.2.4", "valkey 8.0.1").
    pub server: Option<String>,
    /// "standalone", "sentinel", "cluster" or "file" (an RDB file).
    pub kind: String,
    /// The configured address.
    pub address: String,
    /// Number of master nodes.
    pub nodes: usize,
}

impl Side {
    /// True for an RDB file, which has no link.
    pub fn is_file(&self) -> bool {
        self.kind == "file"
    }
}

/// One step of the phase timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// "connect", "handshake", "rdb receive", "rdb apply", "stream", "caught up", "cutover".
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// How long it took, or has taken so far (seconds).
    pub seconds: Option<f64>,
    /// "2 of 3" where several nodes take part.
    pub note: Option<String>,
}

/// How far a step of the timeline is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Going on now.
    Active,
    /// Finished.
    Done,
    /// Ended by an error.
    Failed,
}

/// Disk use of the spool.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct SpoolStatus {
    /// Bytes on disk now.
    pub bytes: u64,
    /// `[spool] max_bytes`.
    pub max_bytes: u64,
    /// Free bytes of the file system that holds the spool; `None` where nobody can tell.
    pub disk_free_bytes: Option<u64>,
    /// `[spool] min_free_bytes`: reading stops when less than this is free.
    #[serde(default)]
    pub min_free_bytes: u64,
    /// Growth (bytes per second) over the last minute; negative when it shrinks.
    pub growth_bytes_per_second: Option<f64>,
}

impl SpoolStatus {
    /// Bytes by which it may still grow, and whether it is the disk that ends it and not `max_bytes`.
    pub fn room(&self) -> (u64, bool) {
        let own = self.max_bytes.saturating_sub(self.bytes);
        let disk = self.disk_free_bytes.map(|free| free.saturating_sub(self.min_free_bytes));
        disk.filter(|disk| *disk < own).map_or((own, false), |disk| (disk, true))
    }
}

/// Totals since the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Keys of RDBs and commands of streams that were read from the spool.
    pub entries_read: u64,
    /// Those that the destination confirmed.
    pub entries_applied: u64,
    /// Those dropped by a rule.
    pub filtered: u64,
    /// Those set aside because the destination refused them or they could not be decoded.
    pub quarantined: u64,
}

/// One kind of refused, dropped or rewritten entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Error code or rule ("BUSYKEY", "filtered").
    pub kind: String,
    /// How many.
    pub count: u64,
    /// When last (Unix ms).
    pub last_unix_ms: Option<u64>,
    /// A key as an example, already escaped.
    pub example: Option<String>,
    /// What was done with them ("skip", "stop").
    pub policy: String,
}

/// Speed limit set by the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Throttle {
    /// Bytes per second towards the destination; `None` = no limit.
    pub bytes_per_second: Option<u64>,
    /// Commands per second towards the destination; `None` = no limit.
    pub ops_per_second: Option<u64>,
}

/// One sentence for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one; tells new events from old ones.
    pub id: u64,
    /// When it last happened (Unix ms).
    pub unix_ms: u64,
    /// How grave.
    pub level: EventLevel,
    /// "source 10.0.1.13:6379", "writer 10.0.2.21:6379", or empty for the whole migration.
    pub node: String,
    /// Past tense, with the reason; untrusted parts already escaped.
    pub text: String,
    /// How often in a row.
    pub count: u64,
}

/// How grave an event is: WARN lost nothing, ERROR needs a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventLevel {
    /// Good to know.
    Info,
    /// Nothing lost, worth a look.
    Warn,
    /// A person must act.
    Error,
}

impl EventLevel {
    /// The level as a word of five columns at most.
    pub fn word(self) -> &'static str {
        match self {
            EventLevel::Info => "INFO",
            EventLevel::Warn => "WARN",
            EventLevel::Error => "ERROR",
        }
    }
}

/// One second of history. `None` = not measured (drawn as a gap).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample {
    /// Commands confirmed in this second.
    pub ops: Option<f64>,
    /// Worst lag of all sources (bytes) at the end of this second; not known while that of one is not.
    pub lag_bytes: Option<f64>,
}

/// A comparison of source and destination: how far it is, or what it has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether it runs, and how it ended.
    pub state: VerificationState,
    /// "count", "meta", "digest", "full".
    pub mode: String,
    /// The look that is being taken or was the last one, from 1.
    pub round: u32,
    /// Looks at most.
    pub rounds: u32,
    /// What it is doing, or the result, in one sentence.
    pub message: String,
    /// When it began (Unix ms).
    pub started_unix_ms: u64,
    /// When it ended (Unix ms).
    pub ended_unix_ms: Option<u64>,
    /// Keys looked at in the first round, both directions.
    pub keys_compared: u64,
    /// Keys that the first round will look at, about.
    pub keys_total: Option<u64>,
    /// Speed of the first round (keys per second).
    pub keys_per_second: f64,
    /// Time to the end of the first round at this speed; never before 1 %.
    pub eta_seconds: Option<f64>,
    /// Keys not (yet) equal: these are looked at again in the next round.
    pub conflicts: u64,
    /// Keys that changed at every look, so that nothing can be said of them.
    pub unsettled: u64,
    /// Keys whose values cannot be read here (modules); only their type and time of expiry were compared.
    pub unreadable: u64,
    /// Keys that differ after the last round.
    pub differences: u64,
    /// What differs, by kind ("missing", "extra", "type", "length", "value", "ttl", "field_ttl", "stream", "stream_group",
    /// "count"); a key can differ in several.
    pub by_kind: Vec<DifferenceCount>,
    /// The first differences; the file has all.
    pub examples: Vec<Difference>,
    /// The file with all differences, one JSON object per line.
    pub file: Option<String>,
    /// Keys mended by `--repair`.
    pub repaired: u64,
    /// What the operator should know about this comparison.
    pub notices: Vec<String>,
}

/// How a comparison stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerificationState {
    /// It goes on.
    Running,
    /// No difference was found.
    Equal,
    /// Differences stood after the last round.
    Different,
    /// It could not be finished.
    Failed,
    /// It was stopped.
    Cancelled,
}

impl VerificationState {
    /// The word of the JSON contract.
    pub fn word(self) -> &'static str {
        match self {
            VerificationState::Running => "running",
            VerificationState::Equal => "equal",
            VerificationState::Different => "different",
            VerificationState::Failed => "failed",
            VerificationState::Cancelled => "cancelled",
        }
    }
}

/// One difference between source and destination; also a line of the differences file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Database.
    pub db: u32,
    /// The key: printable ASCII as it is, `\\` for a backslash, `\xNN` and the like for other bytes.
    pub key: String,
    /// What differs.
    pub kind: String,
    /// Where inside the key ("field 'a'").
    pub part: Option<String>,
    /// The source, in words.
    pub source: String,
    /// The destination, in words.
    pub destination: String,
}

/// How many differences of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferenceCount {
    /// The kind.
    pub kind: String,
    /// How many.
    pub count: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Exit code of the process (README, "Exit codes").
    pub exit_code: i32,
    /// One sentence: what ended it and where it stands.
    pub message: String,
    /// What to do next, where there is something to do.
    pub hint: Option<String>,
}

impl Outcome {
    /// Everything that was asked for is done; entries may be in quarantine.
    pub fn is_done(&self) -> bool {
        matches!(self.exit_code, 0 | 5)
    }
}

/// The cutover as the operator sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CutoverStatus {
    /// Where it stands.
    pub state: cutover::State,
    /// What the sources allow; empty until somebody asked for it (the wizard does, and every start).
    pub preflight: Vec<Gate>,
    /// When these checks were made (Unix ms).
    pub preflight_unix_ms: Option<u64>,
    /// How writes will be, or are, kept away from the source.
    pub fence: FenceKind,
    /// Cutovers begun since the start of this process.
    pub attempts: u32,
    /// When the last one was begun (Unix ms).
    pub started_unix_ms: Option<u64>,
    /// When the first pause was asked for (Unix ms): writers are blocked since then.
    pub fenced_unix_ms: Option<u64>,
    /// When the pause ends by itself unless it is renewed (Unix ms).
    pub fence_ends_unix_ms: Option<u64>,
    /// How long writers were blocked, once they are not (seconds).
    pub blocked_seconds: Option<f64>,
    /// `[cutover] max_blocked`: writers are blocked for no longer before the hand-over (seconds).
    pub max_blocked_seconds: Option<f64>,
    /// The steps of the last one, in order.
    pub steps: Vec<CutoverStep>,
    /// Each source master in it.
    pub nodes: Vec<CutoverNode>,
    /// How the last one ended: "switched", or why it went back.
    pub result: Option<String>,
    /// True when the last one went back.
    pub aborted: bool,
    /// Report of the last one, as text.
    pub report: Option<String>,
    /// The file that holds it; the same as JSON is beside it.
    pub report_file: Option<String>,
    /// Old sources that refuse writes because a cutover told them so.
    pub refusing: Vec<String>,
    /// Old sources whose writers wait for as long as the run lasts (`source_after = "hold"`).
    #[serde(default)]
    pub holding: Vec<String>,
    /// The link that copies the destination's new writes back to the old source.
    pub reverse: Option<ReverseStatus>,
}

impl CutoverStatus {
    /// The servers that let no writer through because of a cutover, until they are unfenced.
    pub fn closed(&self) -> impl Iterator<Item = &str> {
        self.refusing.iter().chain(&self.holding).map(String::as_str)
    }
}

/// One step of a cutover.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CutoverStep {
    /// The state that it stands for.
    pub state: cutover::State,
    /// How far it is.
    pub progress: StepState,
    /// Evidence or reason, in words.
    pub detail: String,
    /// When it began (Unix ms).
    pub began_unix_ms: Option<u64>,
    /// How long it took, once it is over (seconds).
    pub seconds: Option<f64>,
}

/// One source master in a cutover.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CutoverNode {
    /// Its address.
    pub address: String,
    /// Its offset, read after the fence.
    pub fenced_offset: Option<u64>,
    /// What the destination has confirmed.
    pub applied_offset: u64,
    /// Commands of its stream that the destination had confirmed when it was drained; more must not come.
    pub commands: Option<u64>,
}

/// The link back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReverseStatus {
    /// From here (the new source).
    pub from: String,
    /// To here (the old one).
    pub to: String,
    /// State of that line, as of a migration.
    pub state: State,
    /// Why it is not ready for a rollback, the most important reason first.
    pub not_ready: Vec<String>,
    /// What the old source has not confirmed yet (bytes), where that is known.
    pub lag_bytes: Option<u64>,
    /// Commands copied back so far.
    pub applied: u64,
}

/// Counters of the hot path, one set per source and per writer; added to once per batch, read by the publisher.
#[derive(Debug, Default)]
pub struct Meters {
    /// Commands or keys.
    pub entries: AtomicU64,
    /// Bytes.
    pub bytes: AtomicU64,
}

impl Meters {
    /// Adds one batch.
    pub fn add(&self, entries: u64, bytes: u64) {
        self.entries.fetch_add(entries, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }
}
