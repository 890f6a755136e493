//! One row for each master of both sides.

use serde::{Deserialize, Serialize};

/// Phase of one source. `RdbReceive` and `RdbApply` overlap: the phase is the later one that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Opening the connection.
    Connecting,
    /// PING, AUTH, REPLCONF, PSYNC.
    Handshake,
    /// PSYNC was accepted; the source is still forking or saving.
    WaitingBgsave,
    /// The RDB arrives, nothing of it is applied yet.
    RdbReceive,
    /// The RDB is being applied (it may still be arriving).
    RdbApply,
    /// Incremental: the replication stream is applied.
    Stream,
    /// The link is down and will be tried again.
    Reconnecting,
    /// Nothing more will come from this source and all of it is applied.
    Drained,
    /// This source ended by an error.
    Failed,
}

impl Phase {
    /// The phase in words, for screens.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Connecting => "connecting",
            Phase::Handshake => "handshake",
            Phase::WaitingBgsave => "wait bgsave",
            Phase::RdbReceive => "RDB receive",
            Phase::RdbApply => "RDB apply",
            Phase::Stream => "stream",
            Phase::Reconnecting => "reconnecting",
            Phase::Drained => "drained",
            Phase::Failed => "failed",
        }
    }
}

/// One source master.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// "host:port" or the path of a Unix socket.
    pub address: String,
    /// The server that is read, where that is not `address`: the present master of sentinels, or a replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_to: Option<String>,
    /// "master" or "replica", once known.
    pub role: Option<String>,
    /// What this source is doing.
    pub phase: Phase,
    /// Why, where there is more to say ("reconnecting in 4 s (3rd try): connection refused").
    pub reason: Option<String>,
    /// Since when the phase lasts (Unix ms).
    pub phase_since_unix_ms: u64,
    /// Replication id, 40 hex digits, once known.
    pub replid: Option<String>,
    /// How the RDB travels: "disk" (`$<len>`) or "diskless" (`$EOF:`).
    pub rdb_transfer: Option<String>,
    /// RDB bytes received so far.
    pub rdb_bytes_received: u64,
    /// RDB size; `None` while a diskless source has not said it.
    pub rdb_bytes_total: Option<u64>,
    /// RDB bytes that the destination confirmed.
    pub rdb_bytes_applied: u64,
    /// Keys of the RDB that the destination confirmed.
    pub keys_applied: u64,
    /// Replication offset received.
    pub offset_received: u64,
    /// Replication offset that is safe on disk; this one is acknowledged to the source.
    pub offset_durable: u64,
    /// Replication offset that the destination confirmed.
    pub offset_applied: u64,
    /// `offset_received - offset_applied`; `None` while nobody knows what is missing: without a link, and until the RDB is
    /// received.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest byte not yet applied, during the full sync the time since FULLRESYNC; `None` without a link.
    pub lag_seconds: Option<f64>,
    /// Commands confirmed by the destination, over the last 5 s.
    pub ops_per_second: f64,
    /// Bytes (RDB and stream) confirmed by the destination, over the last 5 s.
    pub bytes_per_second: f64,
    /// Bytes (RDB and stream) received from the source, over the last 5 s.
    pub receive_bytes_per_second: f64,
    /// Bytes per second of the stream when it last arrived; kept while the link is down.
    #[serde(default)]
    pub stream_bytes_per_second: Option<f64>,
    /// Bytes of this source in the spool.
    pub spool_bytes: u64,
    /// Files of this source in the spool.
    pub spool_files: u64,
    /// Errors on this link and entries of it that were refused.
    pub errors: u64,
    /// How often the link was opened again.
    pub reconnects: u64,
    /// The last error in words.
    pub last_error: Option<String>,
    /// When the last REPLCONF ACK was sent (Unix ms).
    pub last_ack_unix_ms: Option<u64>,
    /// When the destination last confirmed a batch together with its checkpoint (Unix ms).
    #[serde(default)]
    pub checkpoint_unix_ms: Option<u64>,
    /// `repl-backlog-size` of the source, where CONFIG is allowed.
    pub backlog_bytes: Option<u64>,
    /// Hard limit of the source's replica output buffer, where CONFIG is allowed.
    pub output_buffer_limit_bytes: Option<u64>,
    /// The source's clock minus this host's (ms), where it tells the time.
    #[serde(default)]
    pub clock_skew_ms: Option<i64>,
    /// Address of the writer that slows this source down.
    pub held_back_by: Option<String>,
    /// Time to the end of the RDB at the present speed; never before 1 % is applied.
    pub eta_seconds: Option<f64>,
}

impl SourceStatus {
    /// True while its RDB is not whole here: what there is of it is void once the link or this process ends.
    pub fn needs_full_sync(&self) -> bool {
        match (self.phase, self.rdb_bytes_total) {
            (Phase::WaitingBgsave, _) => true,
            (Phase::Stream | Phase::Drained, _) => false,
            (_, Some(total)) => self.rdb_bytes_received < total,
            // Not begun, or without a size before its end.
            (_, None) => true,
        }
    }

    /// How long the source's backlog holds what is written there (seconds), at the rate of its stream.
    pub fn backlog_seconds(&self) -> Option<f64> {
        let rate = self.stream_bytes_per_second.filter(|rate| *rate >= 1.0)?;
        self.backlog_bytes.map(|bytes| bytes as f64 / rate)
    }
}

/// The greatest lag of all sources (bytes); `None` while that of one is not known.
pub fn worst_lag_bytes(sources: &[SourceStatus]) -> Option<u64> {
    let all: Option<Vec<u64>> = sources.iter().map(|source| source.lag_bytes).collect();
    all?.into_iter().max()
}

/// The greatest lag of all sources (seconds); `None` while that of one is not known.
pub fn worst_lag_seconds(sources: &[SourceStatus]) -> Option<f64> {
    let all: Option<Vec<f64>> = sources.iter().map(|source| source.lag_seconds).collect();
    all?.into_iter().reduce(f64::max)
}

/// One destination master.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DestinationStatus {
    /// "host:port" or the path of a Unix socket.
    pub address: String,
    /// The present master, where sentinels know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connected_to: Option<String>,
    /// Health of the writer.
    pub state: WriterState,
    /// Why, where there is more to say ("waiting: OOM command not allowed").
    pub reason: Option<String>,
    /// Slots served ("0-5460"), for clusters.
    pub slots: Option<String>,
    /// Commands sent and not yet answered.
    pub in_flight: u64,
    /// `pipeline_count_limit`.
    pub in_flight_limit: u64,
    /// Age of the oldest command in flight (ms).
    pub oldest_ms: f64,
    /// 99th percentile of the time from sending a batch to its confirmation (ms), over the last 10 s.
    pub p99_ms: Option<f64>,
    /// Commands confirmed, over the last 5 s.
    pub ops_per_second: f64,
    /// Bytes confirmed, over the last 5 s.
    pub bytes_per_second: f64,
    /// Commands sent again after an error.
    pub retries: u64,
    /// MOVED and ASK answers.
    pub redirects: u64,
    /// How often the connection was opened again.
    pub reconnects: u64,
    /// Error answers.
    pub errors: u64,
    /// The last error in words.
    pub last_error: Option<String>,
}

/// Health of one writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriterState {
    /// Opening the connection for the first time.
    Connecting,
    /// Answers in time.
    Ok,
    /// Answers late: the oldest command in flight is older than a second.
    Slow,
    /// Told to stand still (pause, or a full destination).
    Waiting,
    /// The connection was lost.
    Reconnecting,
    /// Ended by an error.
    Failed,
    /// Closed in order.
    Closed,
}

impl WriterState {
    /// The state in words, for screens.
    pub fn word(self) -> &'static str {
        match self {
            WriterState::Connecting => "connecting",
            WriterState::Ok => "ok",
            WriterState::Slow => "SLOW",
            WriterState::Waiting => "waiting",
            WriterState::Reconnecting => "reconnecting",
            WriterState::Failed => "FAILED",
            WriterState::Closed => "closed",
        }
    }
}
