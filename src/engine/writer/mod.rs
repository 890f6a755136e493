//! One task per destination node: sends batches, matches replies, applies the error rules, confirms.
//!
//! ```text
//!  batch 1  MULTI SELECT … HSET checkpoint EXEC ───────────────► confirmed
//!  batch 2        MULTI SELECT … HSET checkpoint ── waits ── EXEC ─────► confirmed
//! ```
//!
//! The next batch is sent while the first one runs, but its EXEC is withheld until the first is confirmed. So the
//! destination always has work, and still no batch is ever applied after one that failed: the checkpoint that each EXEC
//! sets is the exact place up to which everything is applied, and nothing beyond it.

mod judge;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Buf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until};

use self::judge::Verdict;
use super::batch::{Batch, Position, Progress};
use super::events::EventLog;
use super::import_mode::ImportMode;
use super::net::{Connection, NetError};
use super::quarantine::Quarantine;
use super::shared::{Wishes, WriterShared};
use super::spool::SpoolError;
use crate::config::{Endpoint, OnBadValue};
use crate::format::{self};
use crate::resp::{Reply, append_command};
use crate::status::{Phase, Throttle, WriterState};

/// How long an orderly stop waits for what is in flight.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Why a writer ended.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// The connection.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The quarantine file or the spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// An error answer with the rule "stop".
    #[error("{address}: {command} of key '{key}' was refused: '{error}'. {cure}")]
    Refused {
        /// The destination.
        address: String,
        /// The verb.
        command: String,
        /// The key, escaped.
        key: String,
        /// The error answer.
        error: String,
        /// What to change.
        cure: String,
    },
    /// The checkpoint is not where it was confirmed to be: a replica was promoted that lacked the last writes, or the
    /// destination restarted from an older snapshot.
    #[error(
        "{address}: the destination's checkpoint is '{found}' now and was '{expected}': it lost confirmed writes"
    )]
    CheckpointMoved {
        /// The destination.
        address: String,
        /// What is there.
        found: String,
        /// What was confirmed last.
        expected: String,
    },
}

/// The task of one destination node.
pub struct Writer {
    /// The server.
    pub endpoint: Endpoint,
    /// Hash key of the checkpoints, in database 0.
    pub checkpoint_key: String,
    /// The checkpoint as the destination had it when applying began.
    pub checkpoint: Option<Progress>,
    /// What it tells.
    pub shared: Arc<WriterShared>,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// Entries set aside.
    pub quarantine: Arc<Quarantine>,
    /// `[policy] on_bad_value`.
    pub on_bad_value: OnBadValue,
    /// The destination's import mode.
    pub import_mode: ImportMode,
    /// The operator's wishes.
    pub wishes: watch::Receiver<Wishes>,
    /// What to send.
    pub batches: mpsc::Receiver<Batch>,
}

/// A batch that has been sent.
struct Flight {
    batch: Batch,
    sent: Instant,
    exec_sent: bool,
    /// Replies to MULTI and the queued commands still to come.
    queue_replies_missing: usize,
    queue_replies_seen: usize,
    /// Commands refused while queueing: index on the wire (0 = MULTI) and the error.
    refused: Vec<(usize, String)>,
}

/// Commands on the wire before the batch's own: MULTI, SELECT.
const PROLOGUE: usize = 2;

impl Writer {
    /// Runs until stopped or until an error that waiting will not cure. Returns after everything in flight is answered.
    pub async fn run(mut self) -> Result<(), WriterError> {
        let result = self.serve().await;
        let state = match &result {
            Ok(()) => WriterState::Closed,
            Err(WriterError::CheckpointMoved { .. }) => WriterState::Reconnecting,
            Err(_) => WriterState::Failed,
        };
        self.shared.enter(state, result.as_ref().err().map(ToString::to_string));
        self.shared.in_flight.store(0, Relaxed);
        self.shared.details().oldest = None;
        result
    }

    async fn serve(&mut self) -> Result<(), WriterError> {
        let mut connection = self.connect(true).await?;
        let mut last_confirmed = self.checkpoint.take();
        let mut pending: VecDeque<Batch> = VecDeque::new();
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let mut not_before = Instant::now();
        let mut stop_deadline: Option<Instant> = None;
        let mut queue_open = true;
        loop {
            let wishes = *self.wishes.borrow_and_update();
            if wishes.stop && stop_deadline.is_none() {
                stop_deadline = Some(Instant::now() + STOP_LIMIT);
            }
            self.shared.idle.store(wishes.paused && flights.is_empty(), Relaxed);
            let may_send = !wishes.paused && !wishes.stop && Instant::now() >= not_before;
            if may_send
                && flights.len() < 2
                && let Some(batch) = pending.pop_front()
            {
                let mut outcome = self.send(&mut connection, &mut flights, batch).await;
                if outcome.is_ok() {
                    // A batch without commands has no answer to wait for.
                    outcome = self
                        .answers(&mut connection, &mut flights, &mut pending, &mut last_confirmed)
                        .await?;
                }
                if let Err(error) = outcome {
                    self.recover(&mut connection, &mut flights, &mut pending, &last_confirmed, error).await?;
                }
                not_before = self.next_slot(not_before, wishes.throttle, &flights);
                continue;
            }
            if flights.is_empty() && (wishes.stop || (!queue_open && pending.is_empty())) {
                return Ok(());
            }
            tokio::select! {
                read = connection.io.read_buf(&mut connection.buffer), if !flights.is_empty() => {
                    let outcome = match read {
                        Ok(0) => Err(connection.lost("the pipeline", io::ErrorKind::UnexpectedEof.into())),
                        Err(cause) => Err(connection.lost("the pipeline", cause)),
                        Ok(_) => self.answers(&mut connection, &mut flights, &mut pending, &mut last_confirmed).await?,
                    };
                    if let Err(error) = outcome {
                        self.recover(&mut connection, &mut flights, &mut pending, &last_confirmed, error).await?;
                    }
                }
                batch = self.batches.recv(), if may_send && queue_open && pending.is_empty() && flights.len() < 2 => {
                    match batch {
                        Some(batch) => pending.push_back(batch),
                        None => queue_open = false,
                    }
                }
                () = sleep_until(not_before.into()), if !may_send && !wishes.paused && !wishes.stop => {}
                changed = self.wishes.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(stop_deadline.unwrap_or_else(Instant::now).into()), if stop_deadline.is_some() => {
                    self.events.warn(&self.node(), format!(
                        "no answer for {} s while stopping; the checkpoint tells at the next start what was applied",
                        STOP_LIMIT.as_secs()
                    ));
                    return Ok(());
                }
            }
        }
    }

    /// Opens the connection; the first time an error is final, later it is tried again until it works.
    async fn connect(&self, first: bool) -> Result<Connection, WriterError> {
        let mut attempt = 0;
        loop {
            let opening = async {
                let mut connection = Connection::open(&self.endpoint).await?;
                let _ = connection.request(&[b"CLIENT", b"SETNAME", b"shakedeck"]).await;
                // A server that was restarted has forgotten its import mode.
                self.import_mode.declare(&mut connection, &self.events, first).await?;
                Ok::<_, NetError>(connection)
            };
            match opening.await {
                Ok(connection) => {
                    self.shared.enter(WriterState::Ok, None);
                    return Ok(connection);
                }
                Err(error) if first || !error.is_transient() => return Err(error.into()),
                Err(error) => {
                    attempt += 1;
                    let delay = Duration::from_millis(250 << attempt.min(6)).min(Duration::from_secs(10));
                    let reason = format!("{error} (try {attempt}, next in {:.1} s)", delay.as_secs_f64());
                    self.shared.enter(WriterState::Reconnecting, Some(reason));
                    let mut wishes = self.wishes.clone();
                    tokio::select! {
                        () = sleep(delay) => {}
                        _ = wishes.wait_for(|wishes| wishes.stop) => return Err(error.into()),
                    }
                }
            }
        }
    }

    /// Sends one batch: whole when nothing is in flight, without its EXEC behind another one.
    async fn send(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        mut batch: Batch,
    ) -> Result<(), NetError> {
        batch.close_pairs();
        let exec_sent = flights.is_empty();
        let mut flight = Flight {
            sent: Instant::now(),
            exec_sent,
            queue_replies_missing: 0,
            queue_replies_seen: 0,
            refused: Vec::new(),
            batch,
        };
        let mut prologue = Vec::new();
        let mut epilogue = Vec::new();
        if !flight.batch.commands.is_empty() {
            let batch = &flight.batch;
            append_command(&mut prologue, &[b"MULTI"]);
            append_command(&mut prologue, &[b"SELECT", batch.start_db.to_string().as_bytes()]);
            flight.queue_replies_missing = PROLOGUE + batch.commands.len() + 1;
            if batch.end_db != 0 {
                append_command(&mut epilogue, &[b"SELECT", b"0"]);
                flight.queue_replies_missing += 1;
            }
            let progress = batch.progress.to_string();
            let field = batch.source.address.as_bytes();
            append_command(
                &mut epilogue,
                &[b"HSET", self.checkpoint_key.as_bytes(), field, progress.as_bytes()],
            );
            if exec_sent {
                append_command(&mut epilogue, &[b"EXEC"]);
            }
        }
        self.shared.in_flight.fetch_add(flight.batch.commands.len() as u64, Relaxed);
        if exec_sent {
            self.shared.details().oldest = Some(flight.sent);
        }
        // Kept before it is written: whatever fails from here on, the batch is not lost.
        flights.push_back(flight);
        let Some(flight) = flights.back() else { return Ok(()) };
        for part in [&prologue, &flight.batch.bytes, &epilogue] {
            // No deadline: a destination may stand still for minutes, and that is shown as SLOW, not punished.
            connection.io.write_all(part).await.map_err(|cause| connection.lost("the pipeline", cause))?;
        }
        connection.io.flush().await.map_err(|cause| connection.lost("the pipeline", cause))
    }

    /// Uses up the replies that have arrived.
    async fn answers(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        pending: &mut VecDeque<Batch>,
        last_confirmed: &mut Option<Progress>,
    ) -> Result<Result<(), NetError>, WriterError> {
        loop {
            // A batch without commands (PINGs only) is true as soon as the one before it is.
            if flights.front().is_some_and(|flight| flight.batch.commands.is_empty()) {
                self.complete(flights, last_confirmed)?;
                if let Err(error) = self.release_next(connection, flights).await {
                    return Ok(Err(error));
                }
                continue;
            }
            let Some(flight) =
                flights.iter_mut().find(|flight| flight.queue_replies_missing > 0 || flight.exec_sent)
            else {
                return Ok(Ok(()));
            };
            let reply = match Reply::decode(&connection.buffer) {
                Ok(Some((reply, len))) => {
                    connection.buffer.advance(len);
                    reply
                }
                Ok(None) => return Ok(Ok(())),
                Err(error) => {
                    return Ok(Err(connection.lost("the pipeline", io::Error::other(error.to_string()))));
                }
            };
            if flight.queue_replies_missing > 0 {
                if let Reply::Error(error) = reply {
                    flight.refused.push((flight.queue_replies_seen, error));
                }
                flight.queue_replies_missing -= 1;
                flight.queue_replies_seen += 1;
                continue;
            }
            match self.verdict(flight, reply) {
                Verdict::Applied(refusals) => {
                    if let Some(first) = flights.front() {
                        self.judge_applied(&first.batch, refusals, last_confirmed).await?;
                    }
                    self.complete(flights, last_confirmed)?;
                    if let Err(error) = self.release_next(connection, flights).await {
                        return Ok(Err(error));
                    }
                }
                Verdict::Aborted(refused, abort) => {
                    if let Err(error) =
                        self.judge_aborted(connection, flights, pending, refused, abort).await?
                    {
                        return Ok(Err(error));
                    }
                    return Ok(Ok(()));
                }
            }
        }
    }

    /// The first batch is confirmed.
    fn complete(
        &self,
        flights: &mut VecDeque<Flight>,
        last_confirmed: &mut Option<Progress>,
    ) -> Result<(), WriterError> {
        let Some(flight) = flights.pop_front() else { return Ok(()) };
        let batch = flight.batch;
        let source = &batch.source;
        self.shared.in_flight.fetch_sub(batch.commands.len() as u64, Relaxed);
        self.shared.entries.fetch_add(batch.entries, Relaxed);
        self.shared.bytes.fetch_add(batch.source_bytes, Relaxed);
        source.entries_applied.fetch_add(batch.entries, Relaxed);
        source.bytes_applied.fetch_add(batch.source_bytes, Relaxed);
        {
            let mut details = self.shared.details();
            if !batch.commands.is_empty() {
                let now = Instant::now();
                details.latencies.push_back((now, flight.sent.elapsed().as_secs_f64() * 1000.0));
                while details.latencies.len() > 2_000
                    || details.latencies.front().is_some_and(|(at, _)| now - *at > Duration::from_secs(10))
                {
                    details.latencies.pop_front();
                }
            }
            details.oldest = flights.front().map(|flight| flight.sent);
            if matches!(details.state, WriterState::Waiting | WriterState::Reconnecting) {
                details.state = WriterState::Ok;
                details.reason = None;
            }
        }
        if batch.ends_rdb || matches!(batch.progress.at, Position::Rdb { .. }) {
            source.keys_applied.fetch_add(batch.entries, Relaxed);
        }
        match batch.progress.at {
            Position::Rdb { bytes, .. } => source.rdb_applied.store(bytes, Relaxed),
            Position::Stream { offset, .. } => {
                source.offset_applied.store(offset, Relaxed);
                // The phase is asked too: a link that was down when the RDB was through says so only now.
                let phase = source.details().phase;
                if batch.ends_rdb || phase == Phase::RdbApply {
                    self.rdb_applied(&batch)?;
                }
                source.spool.release_stream(offset)?;
            }
        }
        if !batch.commands.is_empty() {
            *last_confirmed = Some(batch.progress);
        }
        Ok(())
    }

    /// The last batch of an RDB is confirmed.
    fn rdb_applied(&self, batch: &Batch) -> Result<(), WriterError> {
        let source = &batch.source;
        let details = source.details().clone();
        let received = source.spool.rdb_received();
        source.rdb_applied.store(details.rdb_total.unwrap_or(received), Relaxed);
        source.spool.release_rdb()?;
        if matches!(details.phase, Phase::RdbReceive | Phase::RdbApply) {
            source.enter(Phase::Stream, None);
        }
        let took = details.full_sync_since.map_or(String::new(), |since| {
            format!(" in {}", format::spoken_duration(since.elapsed().as_secs_f64()))
        });
        let keys = source.keys_applied.load(Relaxed);
        self.events.info(
            &format!("source {}", source.address),
            format!(
                "RDB applied, {} keys{took}; now streaming, received up to offset {}",
                format::number(keys),
                format::number(source.spool.received())
            ),
        );
        Ok(())
    }

    /// Lets the batch that has become the first one run.
    async fn release_next(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
    ) -> Result<(), NetError> {
        let Some(flight) = flights.front_mut() else { return Ok(()) };
        if flight.exec_sent || flight.batch.commands.is_empty() {
            return Ok(());
        }
        flight.exec_sent = true;
        connection.send(b"*1\r\n$4\r\nEXEC\r\n", "EXEC").await
    }

    /// The connection broke: opens a new one and asks the destination what it has.
    async fn recover(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        pending: &mut VecDeque<Batch>,
        last_confirmed: &Option<Progress>,
        error: NetError,
    ) -> Result<(), WriterError> {
        self.events.warn(&self.node(), format!("{error}; connecting again"));
        self.shared.errors.fetch_add(1, Relaxed);
        self.shared.reconnects.fetch_add(1, Relaxed);
        self.shared.enter(WriterState::Reconnecting, Some(error.to_string()));
        sleep(Duration::from_millis(100)).await;
        *connection = self.connect(false).await?;
        let mut confirmed = last_confirmed.clone();
        if let Some(first) = flights.front() {
            let found = loop {
                let field = first.batch.source.address.as_bytes();
                match read_checkpoint(connection, &self.checkpoint_key, field).await {
                    Ok(found) => break found,
                    Err(error) if error.is_transient() && !self.wishes.borrow().stop => {
                        self.shared.enter(WriterState::Reconnecting, Some(error.to_string()));
                        sleep(Duration::from_millis(500)).await;
                        *connection = self.connect(false).await?;
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            let written = flights.iter().find(|flight| !flight.batch.commands.is_empty());
            let ours = written.map(|flight| flight.batch.progress.to_string());
            let expected = last_confirmed.as_ref().map(Progress::to_string);
            if found.is_some() && found == ours {
                // It ran; only the answer was lost.
                while let Some(flight) = flights.front() {
                    let last = flight.exec_sent && !flight.batch.commands.is_empty();
                    self.complete(flights, &mut confirmed)?;
                    if last {
                        break;
                    }
                }
            } else if found != expected {
                return Err(WriterError::CheckpointMoved {
                    address: self.shared.address.clone(),
                    found: found.unwrap_or_else(|| "missing".into()),
                    expected: expected.unwrap_or_else(|| "missing".into()),
                });
            }
        }
        self.shared.retries.fetch_add(flights.len() as u64, Relaxed);
        for flight in flights.drain(..).rev() {
            pending.push_front(flight.batch);
        }
        self.shared.in_flight.store(0, Relaxed);
        self.shared.details().oldest = None;
        self.events.info(
            &self.node(),
            "connected again; the checkpoint shows that nothing was lost or applied twice",
        );
        Ok(())
    }

    /// When the next batch may be sent under the operator's limit.
    fn next_slot(&self, not_before: Instant, throttle: Throttle, flights: &VecDeque<Flight>) -> Instant {
        let Some(batch) = flights.back().map(|flight| &flight.batch) else { return not_before };
        let share =
            |amount: u64, limit: Option<u64>| limit.map_or(0.0, |limit| amount as f64 / limit.max(1) as f64);
        let seconds = share(batch.bytes.len() as u64, throttle.bytes_per_second)
            .max(share(batch.entries, throttle.ops_per_second));
        not_before.max(Instant::now()) + Duration::from_secs_f64(seconds.min(3600.0))
    }

    fn node(&self) -> String {
        format!("writer {}", self.shared.address)
    }
}

/// The checkpoint of one source, as text.
pub async fn read_checkpoint(
    connection: &mut Connection,
    key: &str,
    field: &[u8],
) -> Result<Option<String>, NetError> {
    match connection.request(&[b"HGET", key.as_bytes(), field]).await? {
        Reply::Bulk(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Reply::Error(reply) => Err(NetError::Refused {
            address: connection.address.clone(),
            what: "HGET of the checkpoint".into(),
            cure: "Its user needs the rights listed in the README.".into(),
            reply,
        }),
        _ => Ok(None),
    }
}
