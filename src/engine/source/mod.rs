//! One task per source master: speaks PSYNC as a replica and copies what arrives into the spool.
//!
//! It decodes nothing and never waits for the destination, so the source's output buffer is drained at disk speed. What
//! it acknowledges is what is safe on disk, once a second in every phase: a diskless source sends no stream before the
//! first ACK, may lose that one, and drops replicas that are silent for `repl-timeout`.

mod full_sync;
mod handshake;
mod replica;
mod waiting;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Buf;
use memchr::memmem;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::waiting::Alive;
use super::events::{EventLog, and_now, unix_ms};
use super::net::{Connection, NetError};
use super::replay::Databases;
use super::room::{Quota, Room};
use super::sentinel;
use super::shard::Site;
use super::shared::SourceShared;
use super::spool::{SpoolError, SpoolWriter};
use super::turns::{Turn, Turns};
use crate::config::{Address, Endpoint, Policy, Secret};
use crate::format;
use crate::psync::{PsyncReply, replconf_ack};
use crate::status::Phase;

pub use self::handshake::server_name;

/// A source that is silent for so long is taken for dead; it sends a PING every 10 s (`repl-ping-replica-period`).
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// What one read may return.
const READ_BYTES: usize = 256 * 1024;
/// Full syncs in a row that may end before the RDB is whole.
const MAX_BROKEN_FULL_SYNCS: u32 = 5;

/// Why a source ended.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The link.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The disk.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Policy `on_full_resync = "stop"`.
    #[error(
        "{address}: the source cannot continue from offset {offset} and offers a full sync only ({cause}); [policy] on_full_resync = \"stop\" forbids it. Set it to \"resync\" to let it be done. {cure}"
    )]
    FullResyncForbidden {
        /// The source.
        address: String,
        /// Where we wanted to go on.
        offset: u64,
        /// What the source said.
        cause: String,
        /// What would have helped.
        cure: &'static str,
    },
    /// Databases that are copied have no place on the destination. Nothing was begun.
    #[error("{address}: {why}. {cure}")]
    NoPlace {
        /// The source.
        address: String,
        /// Which, and what the destination has.
        why: String,
        /// What to change.
        cure: String,
    },
    /// The RDB ended early too often.
    #[error(
        "{address}: the full sync broke off {attempts} times in a row, last: {last}. Look at the source's log; is 'client-output-buffer-limit replica' or the network in the way?"
    )]
    FullSyncBroken {
        /// The source.
        address: String,
        /// How often.
        attempts: u32,
        /// The last error.
        last: String,
    },
    /// It could not be reached for `[policy] source_gone_after`.
    #[error(
        "{address}: the source could not be reached for {}: it is taken for dead ([policy] source_gone_after), last: {last}",
        format::spoken_duration(waited.as_secs_f64())
    )]
    Gone {
        /// The source.
        address: String,
        /// How long.
        waited: Duration,
        /// The last error.
        last: String,
    },
}

/// The task of one source.
pub struct Source {
    /// What all spools may take.
    pub quota: Arc<Quota>,
    /// `[policy]`.
    pub policy: Policy,
    /// Where its master is.
    pub site: Site,
    /// Read from a replica of it.
    pub prefer_replica: bool,
    /// What nodes call PSYNC, where a provider has renamed it.
    pub psync_names: BTreeMap<Address, Secret>,
    /// Which databases are copied, and where to.
    pub databases: Databases,
    /// Whose turn it is to save a data set.
    pub turns: Arc<Turns>,
    /// Its migration has begun: a link that is lost or silent is worth another try. Otherwise so from its first answer on.
    pub known: bool,
    /// `run_id` of the destination's nodes: a server must not be copied onto itself.
    pub destination_run_ids: Vec<String>,
    /// What it tells.
    pub shared: Arc<SourceShared>,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// True = end.
    pub stop: watch::Receiver<bool>,
}

/// How one connection ended.
enum SessionEnd {
    Stopped,
    Restart,
}

impl Source {
    /// Runs until stopped, or until an error that trying again will not cure.
    pub async fn run(self) -> Result<(), SourceError> {
        let mut stop = self.stop.clone();
        if let Some(torn) = self.shared.spool.take_torn() {
            self.events.warn(
                &self.node(),
                format!(
                    "the former run ended while it was writing: {} of the stream behind offset {} do not agree with their marks and are cut off; the source is asked for them again",
                    format::size(torn.bytes),
                    format::number(torn.kept_to)
                ),
            );
        }
        let mut writer = SpoolWriter::new(self.shared.spool.clone(), self.quota.share());
        let mut known = self.known;
        let mut attempt = 0u32;
        let mut broken_full_syncs = 0u32;
        // Since when nothing came from it.
        let mut gone_since: Option<Instant> = None;
        loop {
            let received_before = self.progress();
            let outcome = self.session(&mut writer, &mut known).await;
            let error = match outcome {
                Ok(SessionEnd::Stopped) => return Ok(()),
                Ok(SessionEnd::Restart) => {
                    self.events.info(&self.node(), "link dropped on request; connecting again");
                    attempt = 0;
                    continue;
                }
                Err(error) => error,
            };
            let text = error.to_string();
            self.shared.errors.fetch_add(1, Relaxed);
            self.shared.details().last_error = Some(text.clone());
            let transient = match &error {
                // A wrong address should be said at once; a lost link should be mended for as long as it takes.
                SourceError::Net(
                    NetError::Connect { .. } | NetError::Timeout { .. } | NetError::NoMaster { .. },
                ) => known,
                SourceError::Net(net) => net.is_transient(),
                SourceError::Spool(spool) => spool.is_full(),
                _ => false,
            };
            if !transient {
                return Err(error);
            }
            let full_sync_broken =
                self.shared.spool.manifest().is_some_and(|manifest| manifest.rdb_len.is_none());
            broken_full_syncs = if full_sync_broken { broken_full_syncs + 1 } else { 0 };
            if broken_full_syncs >= MAX_BROKEN_FULL_SYNCS {
                return Err(SourceError::FullSyncBroken {
                    address: self.shared.address.clone(),
                    attempts: broken_full_syncs,
                    last: text,
                });
            }
            attempt = if self.progress() > received_before && !full_sync_broken { 1 } else { attempt + 1 };
            if self.progress() > received_before {
                gone_since = None;
            }
            let waited = gone_since.get_or_insert_with(Instant::now).elapsed();
            let limit = self.policy.source_gone_after;
            if known && !limit.is_zero() && waited >= limit {
                return Err(SourceError::Gone { address: self.shared.address.clone(), waited, last: text });
            }
            let delay = back_off(attempt);
            let again = format!("trying again in {:.1} s", delay.as_secs_f64());
            self.events.warn(&self.node(), and_now(&text, &again));
            let phase = if known { Phase::Reconnecting } else { Phase::Connecting };
            let reason = format!("{text} (try {attempt}, next in {:.1} s)", delay.as_secs_f64());
            self.shared.enter(phase, Some(reason));
            tokio::select! {
                () = sleep(delay) => {}
                () = self.shared.restart.notified() => {}
                () = stopped(&mut stop) => return Ok(()),
            }
            self.shared.details().reconnects += 1;
        }
    }

    /// One connection, from the first byte to the last.
    async fn session(&self, writer: &mut SpoolWriter, known: &mut bool) -> Result<SessionEnd, SourceError> {
        let mut stop = self.stop.clone();
        let opening = async {
            let mut connection = self.open(!*known).await?;
            // Held until the RDB is whole here. Only a source that has answered waits for it: what is wrong is said at once.
            let turn = match self.turn_at_once() {
                Some(turn) => turn,
                None => {
                    drop(connection);
                    *known = true;
                    let turn = self.turn_later().await;
                    connection = self.open(true).await?;
                    turn
                }
            };
            Ok::<_, SourceError>((connection, turn))
        };
        let (mut connection, turn) = tokio::select! {
            opened = opening => opened?,
            () = stopped(&mut stop) => return Ok(SessionEnd::Stopped),
        };
        // Before it is asked: a wish that comes later wants a later one.
        let wanted = self.shared.full_sync_wanted.load(Relaxed);
        let reply = tokio::select! {
            reply = self.psync(&mut connection) => reply?,
            () = stopped(&mut stop) => return Ok(SessionEnd::Stopped),
        };
        match reply {
            PsyncReply::Continue { replid } => {
                if let Some(replid) = replid {
                    let known = self.shared.spool.manifest().map(|manifest| manifest.replid);
                    if known.as_ref() != Some(&replid) {
                        self.events.info(
                            &self.node(),
                            format!("the source was promoted: its history is now called {replid}; nothing is missing"),
                        );
                        let rename = |writer: &mut SpoolWriter| Ok(writer.rename_history(&replid)?);
                        if let Some(end) = self.when_room(&mut connection, writer, Alive::Ack, rename).await?
                        {
                            return Ok(end);
                        }
                    }
                }
                self.events.info(
                    &self.node(),
                    format!(
                        "the stream goes on after offset {}",
                        format::number(self.shared.spool.received())
                    ),
                );
                self.shared.enter(self.phase_while_streaming(), None);
            }
            PsyncReply::FullResync { replid, offset } => {
                // This source speaks PSYNC: a link that is lost or silent from here on is worth another try.
                *known = true;
                let end = self.full_sync(&mut connection, writer, &replid, offset, wanted).await?;
                if let Some(end) = end {
                    return Ok(end);
                }
                drop(turn);
            }
            PsyncReply::RetryLater(reply) | PsyncReply::Refused(reply) => {
                return Err(self.refused(reply).into());
            }
        }
        *known = true;
        self.stream(&mut connection, writer).await
    }

    /// Looks where it is, connects and introduces us. `tells`: the phases are shown.
    async fn open(&self, tells: bool) -> Result<Connection, SourceError> {
        if tells {
            self.shared.enter(Phase::Connecting, None);
        }
        let endpoint = self.site.locate().await?;
        self.shared.found_at(&endpoint);
        let mut connection = self.connect(&endpoint).await?;
        if tells {
            self.shared.enter(Phase::Handshake, None);
        }
        self.handshake(&mut connection).await?;
        Ok(connection)
    }

    /// Connects to the server, or to a replica of it; says where that is if it is not plain from the configuration.
    async fn connect(&self, endpoint: &Endpoint) -> Result<Connection, NetError> {
        let (connection, instead) = if self.prefer_replica {
            let choice = replica::choose(endpoint).await?;
            if let Some(info) = &choice.master_info {
                self.must_not_be_destination(&endpoint.address, info)?;
            }
            (choice.connection, choice.instead)
        } else {
            (Connection::open(endpoint).await?, None)
        };
        if let Some(reason) = instead {
            let text = format!("prefer_replica: the server itself is read, because {reason}");
            self.events.warn(&self.node(), text);
        }
        let present = connection.address.to_string();
        let mut details = self.shared.details();
        if present == self.shared.address {
            details.connected_to = None;
        } else if details.connected_to.as_ref() != Some(&present) {
            self.events.info(&self.node(), format!("reading from {present}"));
            details.connected_to = Some(present);
        }
        drop(details);
        Ok(connection)
    }

    /// Copies the stream until the link breaks or the run stops.
    async fn stream(
        &self,
        connection: &mut Connection,
        writer: &mut SpoolWriter,
    ) -> Result<SessionEnd, SourceError> {
        let mut stop = self.stop.clone();
        let mut room = Room::new(self.quota.clone());
        let mut tick = interval(Duration::from_millis(250));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; READ_BYTES];
        let get_ack = memmem::Finder::new(b"GETACK");
        let mut heard = Instant::now();
        let mut last_ack = Instant::now() - Duration::from_secs(1);
        let mut ack_now = true;
        let mut syncing: Option<tokio::task::JoinHandle<Result<(), SpoolError>>> = None;
        let endpoint = self.endpoint();
        let mut moved = match self.prefer_replica {
            // The link tells when the replica loses its master.
            true => Box::pin(std::future::pending()),
            false => sentinel::moved(&endpoint, &connection.address),
        };
        loop {
            if room.is_due() {
                let look = |_: &mut SpoolWriter| room.look(&self.shared.spool);
                let waited = Instant::now();
                if let Some(end) = self.when_room(connection, writer, Alive::Ack, look).await? {
                    return Ok(end);
                }
                // A source that we did not read from could not be heard.
                heard += waited.elapsed();
            }
            if syncing.is_none() && (ack_now || last_ack.elapsed() >= Duration::from_secs(1)) {
                ack_now = false;
                last_ack = Instant::now();
                match writer.pending_sync() {
                    Some(pending) => syncing = Some(tokio::task::spawn_blocking(move || pending.run())),
                    None => self.acknowledge(connection, self.shared.spool.durable()).await?,
                }
            }
            let got = if !connection.buffer.is_empty() {
                let got = connection.buffer.len().min(READ_BYTES);
                connection.buffer.copy_to_slice(&mut buffer[..got]);
                got
            } else {
                tokio::select! {
                    read = connection.io.read(&mut buffer) => match read {
                        Ok(0) => {
                            let cause = std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "closed by the source");
                            return Err(connection.lost("the stream", cause).into());
                        }
                        Ok(got) => got,
                        Err(cause) => return Err(connection.lost("the stream", cause).into()),
                    },
                    synced = async { match &mut syncing { Some(task) => task.await, None => std::future::pending().await } } => {
                        syncing = None;
                        let synced = synced.map_err(|error| SpoolError {
                            action: "sync",
                            path: self.shared.spool.dir().to_owned(),
                            cause: std::io::Error::other(error),
                        })?;
                        if let Err(error) = synced {
                            let mut first = Some(error);
                            let again = |writer: &mut SpoolWriter| match first.take() {
                                Some(error) => Err(error.into()),
                                None => Ok(waiting::sync(writer)?),
                            };
                            if let Some(end) = self.when_room(connection, writer, Alive::Ack, again).await? {
                                return Ok(end);
                            }
                        }
                        self.acknowledge(connection, self.shared.spool.durable()).await?;
                        continue;
                    }
                    _ = tick.tick() => {
                        if heard.elapsed() > SILENCE_LIMIT {
                            return Err(self.silent("the stream").into());
                        }
                        continue;
                    }
                    now = &mut moved => {
                        let cause = std::io::Error::other(format!("the sentinels name {now} as the master now"));
                        return Err(connection.lost("the stream", cause).into());
                    }
                    () = self.shared.acknowledge.notified() => {
                        ack_now = true;
                        continue;
                    }
                    () = self.shared.restart.notified() => return Ok(SessionEnd::Restart),
                    () = stopped(&mut stop) => {
                        waiting::sync_unless_full(writer)?;
                        let _ = self.acknowledge(connection, self.shared.spool.durable()).await;
                        return Ok(SessionEnd::Stopped);
                    }
                }
            };
            let chunk = &buffer[..got];
            let arrived = self.shared.now_ms();
            let append = |writer: &mut SpoolWriter| Ok(writer.append_stream(chunk, arrived)?);
            if let Some(end) = self.when_room(connection, writer, Alive::Ack, append).await? {
                return Ok(end);
            }
            room.used(got);
            heard = Instant::now();
            self.shared.bytes_received.fetch_add(got as u64, Relaxed);
            // `REPLCONF GETACK *` (WAIT, failover) wants an answer at once. Looking for the word is enough: an ACK too
            // many does no harm, and one that is split over two reads waits for the next second.
            ack_now |= get_ack.find(chunk).is_some();
        }
    }

    async fn acknowledge(&self, connection: &mut Connection, offset: u64) -> Result<(), NetError> {
        connection.send(&replconf_ack(offset), "REPLCONF ACK").await?;
        self.shared.details().last_ack_unix_ms = Some(unix_ms());
        Ok(())
    }

    fn phase_while_streaming(&self) -> Phase {
        match self.shared.spool.manifest() {
            Some(manifest) if manifest.rdb_applied => Phase::Stream,
            _ => Phase::RdbApply,
        }
    }

    /// Whether this source may be asked for its RDB now; one that will not be asked for it needs no turn. `None` = not yet.
    fn turn_at_once(&self) -> Option<Turn> {
        let has_rdb = self.shared.spool.manifest().is_some_and(|manifest| manifest.rdb_len.is_some());
        if has_rdb && !self.shared.full_sync_wanted.load(Relaxed) {
            return Some(Turn::default());
        }
        self.turns.take_at_once(&self.site.last().address)
    }

    /// Waits until it may.
    async fn turn_later(&self) -> Turn {
        self.shared.enter(
            Phase::Connecting,
            Some("waiting for its turn: other full syncs are received first ([sync_reader] full_sync_parallel)".into()),
        );
        self.turns.take(&self.site.last().address).await
    }

    /// Where its master is, or was last.
    fn endpoint(&self) -> Endpoint {
        self.shared.endpoint().unwrap_or_else(|| self.site.last())
    }

    /// Grows with every byte received.
    fn progress(&self) -> u64 {
        self.shared.bytes_received.load(Relaxed)
    }

    fn silent(&self, what: &str) -> NetError {
        NetError::Timeout { address: self.endpoint().address, what: what.into(), limit: SILENCE_LIMIT }
    }

    fn node(&self) -> String {
        format!("source {}", self.shared.address)
    }
}

/// Resolves when the run stops (or its supervisor is gone).
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// 0.5 s, 1 s, 2 s … 15 s, each up to a quarter longer or shorter so that many lines do not come back at once.
fn back_off(attempt: u32) -> Duration {
    let base = 0.5 * 2f64.powi(attempt.saturating_sub(1).min(5) as i32);
    let jitter = f64::from(unix_ms() as u32 % 500) / 1000.0 - 0.25;
    Duration::from_secs_f64((base * (1.0 + jitter)).min(15.0))
}
