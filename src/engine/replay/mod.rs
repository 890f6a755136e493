//! One thread per source: reads the spool, turns what it finds into batches, hands them to the writer.
//!
//! Decoding is CPU work and reading files blocks, so this is a thread of its own and not a task. It reads the RDB while it
//! is still arriving, then the stream, which begins where the RDB ends: one queue to one writer keeps that order. A full
//! queue stops this thread; the spool grows, memory does not.

mod aside;
mod databases;
mod functions;
mod own;
mod rdb;
mod stream;
mod sweep;
mod walk;

pub use databases::Databases;
pub use own::Own;
pub use sweep::Keeper;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::mpsc;

use super::acceptance::Acceptance;
use super::batch::{BATCH_BYTES, Batch, Position, Progress};
use super::cluster::slots;
use super::events::EventLog;
use super::quarantine::Quarantine;
use super::shard::Shard;
use super::shared::SourceShared;
use super::spool::{Manifest, SpoolError, StreamReadError};
use crate::command::slot_of;
use crate::config::{OnExistingKey, Policy};
use crate::rdb::RdbError;
pub use crate::rdb::dump::Target;
use crate::resp::RespError;

/// Why replay ended.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The RDB is damaged or of an unknown kind.
    #[error("source {address}: {cause}. Run 'redis-check-rdb' on a dump of the source, and look at its log.")]
    Rdb {
        /// The source.
        address: String,
        /// Where and what.
        cause: RdbError,
    },
    /// The stream is damaged.
    #[error("source {address}: the stream is damaged after offset {offset}: {cause}")]
    Stream {
        /// The source.
        address: String,
        /// Offset before the bad command.
        offset: u64,
        /// Where and what.
        cause: RespError,
    },
    /// The spool or the quarantine file.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The spool lacks bytes.
    #[error(transparent)]
    Read(StreamReadError),
    /// Policy `on_bad_value = "stop"`.
    #[error(
        "source {address}: key '{key}' cannot be copied: {reason}. [policy] on_bad_value = \"stop\"; set it to \"quarantine\" to set such keys aside and go on."
    )]
    BadValue {
        /// The source.
        address: String,
        /// The key, escaped.
        key: String,
        /// Why.
        reason: String,
    },
}

/// How replay ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayEnd {
    /// The run is stopping.
    Stopped,
    /// All that was asked for, or that will ever come, is handed over.
    AllHandedOver,
}

/// Internal: why the present generation ended.
enum End {
    Stopped,
    Superseded,
    AllHandedOver,
}

/// Where a value is built that cannot be written in one piece: one at a time, in the key's own database. Named after the
/// run, because another migration may build one of its own in the same destination.
pub fn building_key(run_id: &str) -> Vec<u8> {
    format!("shakedeck:building:{run_id}").into_bytes()
}

/// The thread of one source.
pub struct Replay {
    /// What it tells.
    pub shared: Arc<SourceShared>,
    /// Sentences for the operator.
    pub events: Arc<EventLog>,
    /// Keys that cannot be copied.
    pub quarantine: Arc<Quarantine>,
    /// What is kept, and where it goes.
    pub databases: Databases,
    /// `sync_rdb`
    pub sync_rdb: bool,
    /// `sync_aof`
    pub sync_aof: bool,
    /// `rdb_restore_command_behavior`
    pub on_existing_key: OnExistingKey,
    /// `[policy]`
    pub policy: Policy,
    /// `empty_db_before_sync`
    pub empty_destination: bool,
    /// Names the line, and what it keeps on the destination.
    pub id: String,
    /// The destination is a cluster.
    pub cluster: bool,
    /// What the destination is.
    pub target: Target,
    /// The shard of a source cluster; `None` = the source has all slots.
    pub shard: Option<Shard>,
    /// The slots of that.
    pub own: RefCell<Own>,
    /// Which values it takes by RESTORE.
    pub acceptance: Arc<Acceptance>,
    /// `target_redis_proto_max_bulk_len`
    pub max_bulk_len: u64,
    /// Most commands of a batch.
    pub command_limit: usize,
    /// Bytes at which a batch is sent at the latest.
    pub byte_limit: usize,
    /// Where a former run stood, as the destination says.
    pub resume: Option<Progress>,
    /// Byte of the RDB before which keys may be applied already: it goes on before that. `None` = not known.
    pub applied_before: Option<u64>,
    /// Full syncs up to this one are void; the first to read is the next.
    pub after_generation: u64,
    /// Which keys are ours on the destination.
    pub keeper: Keeper,
    /// To the writer.
    pub batches: mpsc::Sender<Batch>,
}

impl Replay {
    /// Runs until stopped, until all is handed over that is wanted or will ever come, or until an error.
    pub fn run(self) -> Result<ReplayEnd, ReplayError> {
        self.shared.batches_handed_over.store(0, Relaxed);
        self.shared.batches_confirmed.store(0, Relaxed);
        let end = self.generations();
        self.close_ledger();
        match self.ledger_failure() {
            Some(failure) => Err(failure),
            None => end,
        }
    }

    fn generations(&self) -> Result<ReplayEnd, ReplayError> {
        let mut generation = self.after_generation;
        let mut resume = self.resume.clone();
        loop {
            let Some(manifest) = self.shared.spool.wait_generation(generation) else {
                return Ok(ReplayEnd::Stopped);
            };
            generation = manifest.generation;
            match self.generation(&manifest, resume.take())? {
                End::Stopped => return Ok(ReplayEnd::Stopped),
                End::AllHandedOver => return Ok(ReplayEnd::AllHandedOver),
                End::Superseded => self.events.info(
                    &self.node(),
                    "what was left of the former full sync is dropped; the new one replaces it",
                ),
            }
        }
    }

    fn generation(&self, manifest: &Manifest, resume: Option<Progress>) -> Result<End, ReplayError> {
        if self.begin_ledger(manifest.generation)?.is_none() {
            return Ok(End::Stopped);
        }
        self.begin_own(manifest.generation);
        let replid = manifest.replid.clone();
        let goes_on = resume.is_some();
        let start =
            resume.map_or(Position::Rdb { offset: manifest.rdb_offset, bytes: 0, db: 0 }, |resume| resume.at);
        let progress = Progress { replid, generation: manifest.generation, at: start };
        let mut batch = Batch::new(self.shared.clone(), progress, 0);
        if self.cluster {
            batch.pair_limit = 1;
        }
        if goes_on {
            batch.rdb_reached = self.applied_before.unwrap_or(u64::MAX);
        }
        if let Position::Rdb { bytes, .. } = start {
            // What another full sync sets anew takes the place of all that came before it.
            let anew = bytes == 0 && manifest.generation > 1;
            let set_aside_before = if bytes == 0 { self.quarantine.last_id() } else { 0 };
            if goes_on && !anew {
                self.quarantine.expect_again(&self.shared.address)?;
            }
            let end = self.rdb(manifest, &mut batch, bytes)?;
            self.quarantine.expect_nothing(&self.shared.address);
            if let Some(end) = end {
                return Ok(end);
            }
            if self.sync_rdb && manifest.generation > 1 {
                let void = self.quarantine.supersede(&self.shared.address, set_aside_before)?;
                if void > 0 {
                    let text = format!(
                        "{void} entries that were set aside before this full sync are taken out of the quarantine: it has set their keys anew"
                    );
                    self.events.info(&self.node(), text);
                }
            }
        }
        if !self.sync_aof {
            return Ok(if self.send(&mut batch) { End::AllHandedOver } else { End::Stopped });
        }
        let at_the_beginning = start == Position::Stream { offset: manifest.rdb_offset, db: 0 };
        let begin_after = manifest.begin_after.as_deref().filter(|_| at_the_beginning);
        self.stream(manifest.generation, batch, begin_after)
    }

    fn send(&self, batch: &mut Batch) -> bool {
        batch.is_void() || self.send_even_if_void(batch)
    }

    /// Hands the batch over and begins the next one. `false` when the writer is gone or the ledger cannot be written.
    fn send_even_if_void(&self, batch: &mut Batch) -> bool {
        batch.close_pairs();
        // In this order: no key may reach the destination that is not on record.
        if !self.record(Some(&batch.progress)) {
            return false;
        }
        let next = batch.successor();
        let full = std::mem::replace(batch, next);
        batch.bytes.reserve(BATCH_BYTES / 4);
        match self.batches.try_send(full) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(full)) => {
                self.shared.held_back.store(true, Relaxed);
                let sent = self.batches.blocking_send(full).is_ok();
                self.shared.held_back.store(false, Relaxed);
                sent
            }
        }
    }

    /// Where a value is built that becomes `key`: in a cluster in the same slot.
    fn building_key(&self, key: &[u8]) -> Vec<u8> {
        match self.cluster {
            true => slots::building_key(&self.id, slot_of(key)),
            false => building_key(&self.id),
        }
    }

    fn rdb_error(&self, cause: RdbError) -> ReplayError {
        ReplayError::Rdb { address: self.shared.address.clone(), cause }
    }

    fn node(&self) -> String {
        format!("source {}", self.shared.address)
    }
}

/// What the destination is, from the words of INFO.
pub fn target_of(info: &str) -> Target {
    use crate::rdb::dump::ServerKind;
    let field = |name| super::net::info_field(info, name);
    let (kind, version) = match (field("valkey_version"), field("redis_version")) {
        (Some(version), _) => (ServerKind::Valkey, version),
        (None, Some(version)) if field("server_name") == Some("redict") => (ServerKind::Redict, version),
        (None, Some(version)) if field("dragonfly_version").is_some() => (ServerKind::Other, version),
        (None, Some(version)) => (ServerKind::Redis, version),
        (None, None) => (ServerKind::Other, "5.0"),
    };
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    Target { kind, major: numbers.next().unwrap_or(5), minor: numbers.next().unwrap_or(0) }
}
