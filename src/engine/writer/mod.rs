//! One task per destination node: sends batches, matches replies, applies the error rules, confirms.
//!
//! ```text
//!  batch 1  MULTI SELECT … HSET checkpoint EXEC WATCH ────────────► confirmed
//!  batch 2        MULTI SELECT … HSET checkpoint ── waits ── EXEC WATCH ─────► confirmed
//! ```
//!
//! The next batch is sent while the first one runs, but its EXEC is withheld until the first is confirmed. So the
//! destination always has work, and still no batch is ever applied after one that failed. The checkpoint that each EXEC sets
//! is the exact place up to which everything is applied; in the RDB, whose entries may be refused when they run and may be
//! brought twice, it is where the batch begins ([`Batch::checkpoint`]).
//!
//! A link that is lost may still deliver what was sent on it, later than what its successor asks (`link.rs`). Therefore every
//! transaction runs under WATCH of the checkpoint, and a new link changes the checkpoint before it reads it.

mod judge;
mod link;
mod quiet;
mod rebuild;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Buf;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until};

use self::judge::Verdict;
pub use self::judge::{key_named, named_by, renewal_is_over};
use self::link::STALL_LIMIT;
pub use self::quiet::Quiet;
use self::quiet::{append_off, append_on};
pub use self::rebuild::{rebuilding_key, restored_until};
use super::acceptance::Acceptance;
use super::answers::{self, Answers};
use super::batch::{Batch, CommandKind, Position};
use super::confirm::{Confirmed, confirm};
use super::events::{EventLog, and_now, unix_ms};
use super::import_mode::ImportMode;
use super::net::{Connection, NetError};
use super::quarantine::Quarantine;
use super::rules::cure_of;
use super::sentinel;
use super::shared::{Wishes, WriterShared};
use super::spool::SpoolError;
use crate::config::{Endpoint, OnBadValue};
use crate::resp::{Reply, append_command};
use crate::status::{Throttle, WriterState};

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
    #[error("{address}: {command}{} was refused: '{error}'. {cure}", of_key(key.as_deref()))]
    Refused {
        /// The destination.
        address: String,
        /// The verb.
        command: String,
        /// The key, escaped; a command may be without.
        key: Option<String>,
        /// The error answer.
        error: String,
        /// What to change.
        cure: String,
    },
    /// Nobody knows what was applied last, but the destination does: applying must begin again where it stands.
    #[error("{address}: {reason}")]
    BeginAgain {
        /// The destination node.
        address: String,
        /// What happened.
        reason: String,
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

fn of_key(key: Option<&str>) -> String {
    match key {
        None => String::new(),
        Some("") => " of the key without a name".to_owned(),
        Some(key) => format!(" of key '{key}'"),
    }
}

/// The task of one destination node.
pub struct Writer {
    /// The server.
    pub endpoint: Endpoint,
    /// Hash key of the checkpoints, in database 0.
    pub checkpoint_key: String,
    /// Field of the checkpoint: the source's address.
    pub source: String,
    /// The checkpoint as the destination had it when applying began.
    pub checkpoint: Option<String>,
    /// Something may have been sent before that has not arrived yet.
    pub began_before: bool,
    /// A connection was opened before: what there is to say about its settings has been said.
    pub introduced: AtomicBool,
    /// Where refused values are rebuilt ([`rebuilding_key`]).
    pub rebuilding_key: Vec<u8>,
    /// What it tells.
    pub shared: Arc<WriterShared>,
    /// Which values it takes by RESTORE.
    pub acceptance: Arc<Acceptance>,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// Entries set aside.
    pub quarantine: Arc<Quarantine>,
    /// `[policy] on_bad_value`.
    pub on_bad_value: OnBadValue,
    /// The destination's import mode.
    pub import_mode: ImportMode,
    /// Up to where answers were read.
    pub answers: Answers,
    /// `[redis_writer] off_reply`.
    pub quiet: Quiet,
    /// The operator's wishes.
    pub wishes: watch::Receiver<Wishes>,
    /// What to send.
    pub batches: mpsc::Receiver<Batch>,
}

/// A batch that has been sent.
struct Flight {
    batch: Batch,
    /// The checkpoint that it sets.
    checkpoint: String,
    sent: Instant,
    exec_sent: bool,
    /// Its commands are not answered (`quiet.rs`).
    quiet: bool,
    /// Replies to MULTI and the queued commands still to come; of a quiet one the reply to CLIENT REPLY ON.
    queue_replies_missing: usize,
    queue_replies_seen: usize,
    /// The reply to EXEC (of a quiet one: the checkpoint), until the one to WATCH is there too.
    executed: Option<Reply>,
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
            Err(WriterError::CheckpointMoved { .. } | WriterError::BeginAgain { .. }) => {
                WriterState::Reconnecting
            }
            Err(_) => WriterState::Failed,
        };
        self.shared.enter(state, result.as_ref().err().map(ToString::to_string));
        self.shared.in_flight.store(0, Relaxed);
        self.shared.details().oldest = None;
        result
    }

    async fn serve(&mut self) -> Result<(), WriterError> {
        let (mut connection, mut last_confirmed) = self.first_connection().await?;
        // Greater than any number of a former run: that counted from its own start, and a batch takes far more than a microsecond.
        let mut serial = unix_ms() * 1000;
        let mut pending: VecDeque<Batch> = VecDeque::new();
        let mut flights: VecDeque<Flight> = VecDeque::new();
        let mut not_before = Instant::now();
        let mut stop_deadline: Option<Instant> = None;
        let mut queue_open = true;
        let mut heard = Instant::now();
        let mut probe = None;
        let mut present = connection.address.clone();
        let mut moved = sentinel::moved(&self.endpoint, &present);
        loop {
            if connection.address != present {
                present = connection.address.clone();
                moved = sentinel::moved(&self.endpoint, &present);
            }
            let wishes = *self.wishes.borrow_and_update();
            if wishes.stop && stop_deadline.is_none() {
                stop_deadline = Some(Instant::now() + STOP_LIMIT);
            }
            let paused = wishes.paused || wishes.sealed;
            self.shared.idle.store(paused && flights.is_empty(), Relaxed);
            let may_send = !paused && !wishes.stop && Instant::now() >= not_before;
            if may_send
                && flights.len() < 2
                && let Some(batch) = pending.pop_front()
            {
                if flights.is_empty() {
                    heard = Instant::now();
                }
                serial += 1;
                let mut outcome = self.send(&mut connection, &mut flights, batch, serial).await;
                if outcome.is_ok() {
                    // A batch without commands has no answer to wait for.
                    outcome = self
                        .answers(&mut connection, &mut flights, &mut pending, &mut last_confirmed)
                        .await?;
                }
                if let Err(error) = outcome {
                    self.recover(&mut connection, &mut flights, &mut pending, &mut last_confirmed, error)
                        .await?;
                }
                not_before = self.next_slot(not_before, wishes.throttle, &flights);
                continue;
            }
            if flights.is_empty() && (wishes.stop || (!queue_open && pending.is_empty())) {
                return Ok(());
            }
            tokio::select! {
                // Also when nothing is in flight: a link that ends then is opened again, or shown as lost.
                read = connection.io.read_buf(&mut connection.buffer) => {
                    let outcome = match read {
                        Ok(0) => Err(connection.lost("the pipeline", io::ErrorKind::UnexpectedEof.into())),
                        Err(cause) => Err(connection.lost("the pipeline", cause)),
                        Ok(_) => self.answers(&mut connection, &mut flights, &mut pending, &mut last_confirmed).await?,
                    };
                    (heard, probe) = (Instant::now(), None);
                    if let Err(error) = outcome {
                        self.recover(&mut connection, &mut flights, &mut pending, &mut last_confirmed, error).await?;
                    }
                }
                () = sleep_until((heard + STALL_LIMIT).into()), if probe.is_none() && !flights.is_empty() => {
                    probe = Some(self.probe());
                }
                answered = async { match &mut probe { Some(task) => task.await, None => std::future::pending().await } } => {
                    (heard, probe) = (Instant::now(), None);
                    if answered {
                        let error = self.dead_link(&connection);
                        self.recover(&mut connection, &mut flights, &mut pending, &mut last_confirmed, error).await?;
                    }
                }
                now = &mut moved => {
                    let cause = io::Error::other(format!("the sentinels name {now} as the master now"));
                    let error = connection.lost("the pipeline", cause);
                    self.recover(&mut connection, &mut flights, &mut pending, &mut last_confirmed, error).await?;
                    present = connection.address.clone();
                    moved = sentinel::moved(&self.endpoint, &present);
                }
                batch = self.batches.recv(), if may_send && queue_open && pending.is_empty() && flights.len() < 2 => {
                    match batch {
                        Some(batch) => pending.push_back(batch),
                        None => queue_open = false,
                    }
                }
                () = sleep_until(not_before.into()), if !may_send && !paused && !wishes.stop => {}
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

    /// Sends one batch: whole when nothing is in flight, without its EXEC behind another one.
    async fn send(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        mut batch: Batch,
        serial: u64,
    ) -> Result<(), NetError> {
        batch.close_pairs();
        if batch.commands.is_empty() {
            // PINGs only: confirmed by the destination like everything else, so that one that is gone is missed at once.
            let db = batch.start_db.to_string();
            batch.push(CommandKind::Select, &[b"SELECT", db.as_bytes()]);
        }
        let exec_sent = flights.is_empty();
        let mut flight = Flight {
            sent: Instant::now(),
            exec_sent,
            quiet: self.quiet.is_for(&batch),
            queue_replies_missing: 0,
            queue_replies_seen: 0,
            executed: None,
            refused: Vec::new(),
            checkpoint: batch.checkpoint(serial),
            batch,
        };
        let mut prologue = Vec::new();
        let mut epilogue = Vec::new();
        if !flight.batch.commands.is_empty() {
            let batch = &flight.batch;
            if flight.quiet {
                append_off(&mut prologue);
            }
            append_command(&mut prologue, &[b"MULTI"]);
            append_command(&mut prologue, &[b"SELECT", batch.start_db.to_string().as_bytes()]);
            let mut queued = PROLOGUE + batch.commands.len() + 1;
            if batch.end_db != 0 {
                append_command(&mut epilogue, &[b"SELECT", b"0"]);
                queued += 1;
            }
            let field = batch.source.address.as_bytes();
            append_command(
                &mut epilogue,
                &[b"HSET", self.checkpoint_key.as_bytes(), field, flight.checkpoint.as_bytes()],
            );
            if !flight.quiet {
                flight.queue_replies_missing = queued;
            }
            if exec_sent {
                self.append_exec(&mut epilogue, &mut flight);
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
            self.write(connection, part).await?;
        }
        Ok(())
    }

    /// Uses up the replies that have arrived.
    async fn answers(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        pending: &mut VecDeque<Batch>,
        last_confirmed: &mut Option<String>,
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
            // The next transaction may only run under a new WATCH.
            let Some(executed) = flight.executed.take() else {
                flight.executed = Some(reply);
                continue;
            };
            if let Reply::Error(error) = reply {
                return Ok(Err(connection.lost("WATCH", io::Error::other(error))));
            }
            match self.verdict(flight, executed) {
                Verdict::Applied(refusals) => {
                    if let Some(first) = flights.front() {
                        self.judge_applied(&first.batch, refusals).await?;
                    }
                    if !flights.front().is_some_and(|flight| flight.quiet) {
                        self.quiet.heard();
                    }
                    self.complete(flights, last_confirmed)?;
                    if let Err(error) = self.release_next(connection, flights).await {
                        return Ok(Err(error));
                    }
                }
                Verdict::Unheard(found) if found == *last_confirmed => {
                    self.quiet.listen();
                    self.shared.retries.fetch_add(1, Relaxed);
                    return Ok(self.take_back(connection, flights, pending).await);
                }
                Verdict::Unheard(found) => return Err(self.checkpoint_moved(found, last_confirmed.clone())),
                Verdict::Aborted(refused, abort) => {
                    if let Err(error) = self
                        .judge_aborted(connection, flights, pending, last_confirmed, refused, abort)
                        .await?
                    {
                        return Ok(Err(error));
                    }
                    return Ok(Ok(()));
                }
                // The checkpoint was changed by somebody else: a link of ours that was thought dead, or a FLUSHALL.
                Verdict::Overtaken => {
                    let cause = io::Error::other("somebody else has changed the checkpoint");
                    return Ok(Err(connection.lost("a transaction", cause)));
                }
            }
        }
    }

    /// The first batch is confirmed.
    fn complete(
        &self,
        flights: &mut VecDeque<Flight>,
        last_confirmed: &mut Option<String>,
    ) -> Result<(), WriterError> {
        let Some(flight) = flights.pop_front() else { return Ok(()) };
        let batch = flight.batch;
        self.shared.in_flight.fetch_sub(batch.commands.len() as u64, Relaxed);
        self.shared.entries.fetch_add(batch.entries, Relaxed);
        self.shared.bytes.fetch_add(batch.source_bytes, Relaxed);
        {
            let mut details = self.shared.details();
            if !batch.commands.is_empty() {
                details.took(flight.sent.elapsed());
            }
            details.oldest = flights.front().map(|flight| flight.sent);
            details.state = WriterState::Ok;
            details.reason = None;
        }
        if !batch.commands.is_empty() {
            *last_confirmed = Some(flight.checkpoint);
        }
        self.answers.heard(&batch.progress)?;
        let confirmed = Confirmed {
            progress: batch.progress.clone(),
            entries: batch.entries,
            source_bytes: batch.source_bytes,
            ends_rdb: batch.ends_rdb,
        };
        Ok(confirm(&batch.source, &confirmed, &self.events)?)
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
        let mut exec = Vec::new();
        self.append_exec(&mut exec, flight);
        self.write(connection, &exec).await
    }

    /// Appends what lets a batch run.
    fn append_exec(&self, out: &mut Vec<u8>, flight: &mut Flight) {
        append_command(out, &[b"EXEC"]);
        if flight.quiet {
            append_on(out, &self.checkpoint_key, &self.source);
            flight.queue_replies_missing = 1;
        }
        append_command(out, &[b"WATCH", self.checkpoint_key.as_bytes()]);
    }

    /// The connection broke: opens a new one and asks the destination what it has.
    async fn recover(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        pending: &mut VecDeque<Batch>,
        last_confirmed: &mut Option<String>,
        error: NetError,
    ) -> Result<(), WriterError> {
        self.events.warn(&self.node(), and_now(&error.to_string(), "connecting again"));
        self.shared.errors.fetch_add(1, Relaxed);
        self.shared.reconnects.fetch_add(1, Relaxed);
        self.shared.enter(WriterState::Reconnecting, Some(error.to_string()));
        sleep(Duration::from_millis(100)).await;
        self.resume(connection, flights, pending, last_confirmed).await?;
        self.events.info(
            &self.node(),
            "connected again; the checkpoint shows that nothing was lost or applied twice",
        );
        Ok(())
    }

    /// Opens a new connection, asks the destination what it has, and takes back what it has not.
    async fn resume(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        pending: &mut VecDeque<Batch>,
        last_confirmed: &mut Option<String>,
    ) -> Result<(), WriterError> {
        let (fresh, found) = self.connect_and_ask().await?;
        *connection = fresh;
        let written = flights.iter().find(|flight| !flight.batch.commands.is_empty());
        let ours = written.map(|flight| flight.checkpoint.clone());
        if found.is_some() && found == ours {
            // It ran; only the answer was lost.
            while let Some(flight) = flights.front() {
                let last = flight.exec_sent && !flight.batch.commands.is_empty();
                if last {
                    self.judge_unanswered(&flight.batch).await?;
                    if let (Position::Stream { offset, .. }, false) =
                        (flight.batch.progress.at, flight.batch.ends_rdb)
                    {
                        let heard = offset.saturating_sub(flight.batch.source_bytes);
                        answers::lost(heard, offset, &self.node(), &self.events);
                    }
                }
                self.complete(flights, last_confirmed)?;
                if last {
                    break;
                }
            }
        } else if found != *last_confirmed {
            return Err(self.checkpoint_moved(found, last_confirmed.clone()));
        }
        self.shared.retries.fetch_add(flights.len() as u64, Relaxed);
        for flight in flights.drain(..).rev() {
            pending.push_front(flight.batch);
        }
        self.shared.in_flight.store(0, Relaxed);
        self.shared.details().oldest = None;
        Ok(())
    }

    fn checkpoint_moved(&self, found: Option<String>, expected: Option<String>) -> WriterError {
        WriterError::CheckpointMoved {
            address: self.shared.address.clone(),
            found: found.unwrap_or_else(|| "missing".into()),
            expected: expected.unwrap_or_else(|| "missing".into()),
        }
    }

    /// When the next batch may be sent under the operator's limit.
    fn next_slot(&self, not_before: Instant, throttle: Throttle, flights: &VecDeque<Flight>) -> Instant {
        let Some(batch) = flights.back().map(|flight| &flight.batch) else { return not_before };
        not_before.max(Instant::now())
            + self.shared.limited(throttle, batch.bytes.len() as u64, batch.entries)
    }

    fn node(&self) -> String {
        format!("writer {}", self.shared.address)
    }
}

/// Removes keys of ours from the destination.
pub async fn remove_own(connection: &mut Connection, keys: &[&[u8]]) -> Result<(), NetError> {
    match connection.request(&[&[&b"DEL"[..]], keys].concat()).await? {
        Reply::Error(reply) => Err(NetError::Refused {
            address: connection.address.clone(),
            what: "DEL of our own keys".into(),
            cure: cure_of(&reply, &connection.user),
            reply,
        }),
        _ => Ok(()),
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
            cure: cure_of(&reply, &connection.user),
            reply,
        }),
        _ => Ok(None),
    }
}
