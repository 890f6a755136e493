//! What the destination has confirmed: counters, the phase, and spool that is not needed any more.

use std::sync::atomic::Ordering::Relaxed;

use super::batch::{Position, Progress};
use super::events::{EventLog, unix_ms};
use super::shared::SourceShared;
use super::spool::SpoolError;
use crate::format;
use crate::status::Phase;

/// A batch, as far as its confirmation is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confirmed {
    /// What is true now.
    pub progress: Progress,
    /// Keys of the RDB or commands of the stream in it.
    pub entries: u64,
    /// Bytes of the source that it stands for.
    pub source_bytes: u64,
    /// It held the last keys of an RDB.
    pub ends_rdb: bool,
}

/// Everything up to the end of this batch is applied.
pub fn confirm(source: &SourceShared, batch: &Confirmed, events: &EventLog) -> Result<(), SpoolError> {
    source.batches_confirmed.fetch_add(1, Relaxed);
    source.entries_applied.fetch_add(batch.entries, Relaxed);
    source.bytes_applied.fetch_add(batch.source_bytes, Relaxed);
    source.confirmed_unix_ms.store(unix_ms(), Relaxed);
    let generation = batch.progress.generation;
    if source.spool.manifest().is_none_or(|manifest| manifest.generation != generation) {
        // A new full sync has begun meanwhile: what this batch says about positions is void, and so is its spool.
        return Ok(());
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
                rdb_applied(source, generation, events)?;
            }
            source.spool.release_stream(generation, offset)?;
        }
    }
    Ok(())
}

/// The last batch of an RDB is confirmed.
fn rdb_applied(source: &SourceShared, generation: u64, events: &EventLog) -> Result<(), SpoolError> {
    let details = source.details().clone();
    let received = source.spool.rdb_received();
    source.rdb_applied.store(details.rdb_total.unwrap_or(received), Relaxed);
    source.spool.release_rdb(generation)?;
    if matches!(details.phase, Phase::RdbReceive | Phase::RdbApply) {
        source.enter(Phase::Stream, None);
    }
    let took = details.full_sync_since.map_or(String::new(), |since| {
        format!(" in {}", format::spoken_duration(since.elapsed().as_secs_f64()))
    });
    let keys = source.keys_applied.load(Relaxed);
    // No stream follows a file.
    let then = if source.spool.manifest().is_some_and(|manifest| manifest.rdb_lent) {
        String::new()
    } else {
        format!("; now streaming, received up to offset {}", format::number(source.spool.received()))
    };
    events.info(
        &format!("source {}", source.address),
        format!("RDB applied, {} keys{took}{then}", format::number(keys)),
    );
    Ok(())
}
