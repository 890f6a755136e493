//! Where applying begins: what the destination says, compared with what the spool holds.
//!
//! Asked at every start, and again when the destination turns out to have an older checkpoint than the one that it
//! confirmed: a replica that was promoted without its master's last writes, or a restart from an older snapshot. What is
//! still in the spool is then simply applied again from there.

use std::sync::atomic::Ordering::Relaxed;

use super::acceptance::Acceptance;
use super::answers;
use super::batch::{Position, Progress};
use super::clocks;
use super::events::EventLog;
use super::net::{Connection, NetError, info_field};
use super::outcome::{data_dir_failed, exit, outcome};
use super::shared::SourceShared;
use super::writer::read_checkpoint;
use super::{cluster, replay, source};
use crate::config::Endpoint;
use crate::format;
use crate::resp::Reply;
use crate::status::Outcome;

/// Beyond this nobody counts databases.
const MOST_DATABASES: u32 = 1 << 20;

/// What the destination says before anything is sent to it.
pub struct Destination {
    /// What values it can take.
    pub acceptance: Acceptance,
    /// How that was found out, if it was in doubt.
    pub tried: Option<String>,
    /// "redis 7.2.4".
    pub server: Option<String>,
    /// Its clock minus ours (ms), where it tells the time; in a cluster one node's.
    pub clock_skew_ms: Option<i64>,
    /// `run_id` of INFO, of each node.
    pub run_ids: Vec<String>,
    /// How many databases it has.
    pub databases: u32,
    /// How far a former run has come.
    pub checkpoint: Option<Progress>,
    /// The same as it stands there.
    pub checkpoint_text: Option<String>,
    /// Where to begin in a cluster.
    pub cluster: Option<cluster::Begin>,
}

impl Destination {
    /// Asks it.
    pub async fn look(
        endpoint: &Endpoint,
        checkpoint_key: &str,
        source: &str,
    ) -> Result<Destination, NetError> {
        let mut connection = Connection::open(endpoint).await?;
        let refused = |reply: String, cure: &str| NetError::Refused {
            address: endpoint.address.clone(),
            what: "INFO".into(),
            reply,
            cure: cure.into(),
        };
        let info = match connection.request(&[b"INFO"]).await? {
            Reply::Bulk(info) => Some(String::from_utf8_lossy(&info).into_owned()),
            Reply::Error(reply) if reply.starts_with("NOAUTH") => {
                return Err(refused(
                    reply,
                    "The destination wants a password: set 'password' (and 'username') in [redis_writer].",
                ));
            }
            Reply::Error(reply) if reply.starts_with("NOPERM") => None,
            Reply::Error(reply) => return Err(refused(reply, "Look at the destination's log.")),
            other => return Err(refused(format!("{other:?}"), "Is this a Redis or Valkey server?")),
        };
        let told = info.as_deref().unwrap_or_default();
        if info_field(told, "cluster_enabled") == Some("1") {
            return Err(refused(
                "cluster_enabled:1".into(),
                "The destination is a cluster: write 'cluster = true' in [redis_writer].",
            ));
        }
        let databases = count_databases(&mut connection).await?;
        let checkpoint_text = read_checkpoint(&mut connection, checkpoint_key, source.as_bytes()).await?;
        let checkpoint = match &checkpoint_text {
            Some(text) => Some(text.parse().map_err(|error: String| {
                refused(error, "Remove that key, or use the version that wrote it.")
            })?),
            None => None,
        };
        let (acceptance, tried) =
            Acceptance::examine(&mut connection, info.as_deref(), replay::target_of(told)).await?;
        Ok(Destination {
            acceptance,
            tried,
            server: source::server_name(told),
            clock_skew_ms: clocks::skew_ms(&mut connection).await?,
            run_ids: info_field(told, "run_id").map(str::to_owned).into_iter().collect(),
            databases,
            checkpoint,
            checkpoint_text,
            cluster: None,
        })
    }
}

/// How many databases a server has. Found by selecting: CONFIG is refused in many places. Leaves database 0 selected.
pub(super) async fn count_databases(connection: &mut Connection) -> Result<u32, NetError> {
    // Twice as many until one is missing, then by halves between.
    let (mut there, mut missing) = (0, 1);
    loop {
        if !has_database(connection, missing).await? {
            break;
        }
        (there, missing) = (missing, missing.saturating_mul(2));
        if missing >= MOST_DATABASES {
            break;
        }
    }
    while missing - there > 1 {
        let middle = there.midpoint(missing);
        if has_database(connection, middle).await? { there = middle } else { missing = middle }
    }
    connection.request(&[b"SELECT", b"0"]).await?;
    Ok(there + 1)
}

async fn has_database(connection: &mut Connection, db: u32) -> Result<bool, NetError> {
    Ok(!matches!(connection.request(&[b"SELECT", db.to_string().as_bytes()]).await?, Reply::Error(_)))
}

/// Where the replay of one source begins.
pub struct Start {
    /// `None` = with the RDB of the next full sync.
    pub resume: Option<Progress>,
    /// Full syncs up to this one are void.
    pub after_generation: u64,
}

/// Compares what the spool and the destination say. `receiving` tells that this process receives into the spool already;
/// otherwise an RDB that is not whole there will never be.
pub fn where_to_begin(
    source: &SourceShared,
    destination: &str,
    checkpoint: Option<Progress>,
    receiving: bool,
    events: &EventLog,
) -> Result<Start, Outcome> {
    let spool = &source.spool;
    let node = format!("source {}", source.address);
    let Some(manifest) = spool.manifest() else { return Ok(Start { resume: None, after_generation: 0 }) };
    if manifest.rdb_len.is_none() && !receiving {
        events.info(
            &node,
            "the former run ended inside a full sync that was not whole on disk; a new one is needed",
        );
        return Ok(Start { resume: None, after_generation: manifest.generation });
    }
    // A checkpoint of a former full sync says nothing about this one: offsets of two histories do not compare.
    let of_this_sync = checkpoint.clone().filter(|progress| {
        manifest.knows(&progress.replid) && [0, manifest.generation].contains(&progress.generation)
    });
    let of_this_sync = of_this_sync.map(|it| it.at);
    let at = match of_this_sync {
        Some(at @ Position::Rdb { offset, bytes, .. })
            if offset == manifest.rdb_offset && !manifest.rdb_applied =>
        {
            events.info(&node, format!("going on inside the RDB, after {}", format::size(bytes)));
            at
        }
        Some(at @ Position::Stream { offset, .. }) if manifest.rdb_len.is_some() && spool.holds(offset) => {
            spool.release_rdb(manifest.generation).map_err(|error| data_dir_failed(error.into()))?;
            events.info(&node, format!("going on in the stream, after offset {}", format::number(offset)));
            // While receiving, the writer has seen for itself what became of its batches.
            if !receiving {
                answers::compare(spool.dir(), manifest.generation, offset, &node, events);
            }
            at
        }
        // Begun without a full sync: both sides were equal at this offset.
        None if manifest.begin_after.is_some() && spool.holds(manifest.rdb_offset) => {
            Position::Stream { offset: manifest.rdb_offset, db: 0 }
        }
        // What the destination has was received here, and was not safe on this disk when the machine went down.
        Some(at @ Position::Stream { offset, .. })
            if manifest.rdb_len.is_some() && !receiving && offset > spool.received() =>
        {
            spool
                .release_rdb(manifest.generation)
                .and_then(|()| spool.skip_to(offset))
                .map_err(|error| data_dir_failed(error.into()))?;
            let offset = format::number(offset);
            events.info(
                &node,
                format!("going on in the stream, after offset {offset}, which the destination has and the spool has not"),
            );
            at
        }
        _ if !manifest.rdb_applied => {
            if !manifest.rdb_lent || checkpoint.is_some() {
                events.info(&node, "going on with the RDB that is on disk, from its beginning");
            }
            Position::Rdb { offset: manifest.rdb_offset, bytes: 0, db: 0 }
        }
        _ => {
            let found = checkpoint.map_or("missing".into(), |found| format!("'{found}'"));
            return Err(outcome(
                exit::DESTINATION,
                format!(
                    "{destination}: the destination's checkpoint is {found}, and the spool in '{}' does not hold what \
                     follows it: the destination lost data that it had confirmed (restarted from an older snapshot, \
                     flushed, or another server took its place). Remove the data directory for a new full sync.",
                    spool.dir().display()
                ),
            ));
        }
    };
    let (rdb_applied, offset_applied) = match at {
        Position::Rdb { bytes, offset, .. } => (bytes, offset),
        Position::Stream { offset, .. } => (manifest.rdb_len.unwrap_or(0), offset),
    };
    if manifest.rdb_len.is_some() {
        source.details().rdb_total = manifest.rdb_len;
    }
    source.rdb_applied.store(rdb_applied, Relaxed);
    source.offset_applied.store(offset_applied, Relaxed);
    // A promotion of the source may have renamed the history after the checkpoint was written.
    let resume = Progress { replid: manifest.replid.clone(), generation: manifest.generation, at };
    Ok(Start { resume: Some(resume), after_generation: manifest.generation - 1 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;
    use crate::engine::spool::{Spool, SpoolWriter};
    use crate::psync::Replid;

    fn id(letter: &str) -> Replid {
        Replid::parse(&letter.repeat(40)).unwrap()
    }

    fn rdb(replid: &str, offset: u64, bytes: u64) -> Option<Progress> {
        Some(Progress { replid: id(replid), generation: 1, at: Position::Rdb { offset, bytes, db: 0 } })
    }

    fn stream(replid: &str, offset: u64) -> Option<Progress> {
        Some(Progress { replid: id(replid), generation: 1, at: Position::Stream { offset, db: 3 } })
    }

    /// A spool after a full sync of history `b` (once called `a`) at offset 1,000, with 500 bytes of stream.
    fn spooled(rdb_whole: bool, rdb_applied: bool) -> (tempfile::TempDir, SourceShared) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let mut writer = SpoolWriter::new(spool.clone(), u64::MAX);
        writer.begin_full_sync(&id("a"), 1_000).unwrap();
        writer.append_rdb(b"REDIS0011").unwrap();
        if rdb_whole {
            writer.finish_rdb(9).unwrap();
            writer.append_stream(&[b'x'; 500], 1).unwrap();
            writer.rename_history(&id("b")).unwrap();
        }
        if rdb_applied {
            spool.release_rdb(1).unwrap();
        }
        (dir, SourceShared::new("127.0.0.1:1".into(), spool))
    }

    #[test]
    fn only_a_checkpoint_of_this_history_moves_the_beginning() {
        let begin = |(_dir, source): (tempfile::TempDir, SourceShared), checkpoint, receiving| {
            where_to_begin(&source, "destination", checkpoint, receiving, &EventLog::default())
                .map(|start| start.resume.map(|progress| progress.at))
                .map_err(|outcome| outcome.exit_code)
        };
        let beginning = Ok(Some(Position::Rdb { offset: 1_000, bytes: 0, db: 0 }));
        let unapplied = || spooled(true, false);
        let applied = || spooled(true, true);
        // The RDB is whole on disk and not applied.
        assert_eq!(begin(unapplied(), None, false), beginning);
        assert_eq!(begin(unapplied(), rdb("b", 1_000, 5), false), Ok(rdb("b", 1_000, 5).map(|it| it.at)));
        assert_eq!(begin(unapplied(), rdb("a", 1_000, 5), false), Ok(rdb("a", 1_000, 5).map(|it| it.at)));
        assert_eq!(begin(unapplied(), rdb("b", 900, 5), false), beginning, "of the full sync before");
        let other = rdb("b", 1_000, 5).map(|it| Progress { generation: 2, ..it });
        assert_eq!(
            begin(unapplied(), other, false),
            beginning,
            "an idle source, the same offset, another RDB"
        );
        assert_eq!(begin(unapplied(), stream("b", 800), false), beginning, "of the full sync before");
        assert_eq!(begin(unapplied(), stream("c", 1_200), false), beginning, "of another history");
        assert_eq!(begin(unapplied(), stream("a", 1_200), false), Ok(stream("a", 1_200).map(|it| it.at)));
        // The RDB is applied and gone.
        assert_eq!(begin(applied(), stream("b", 1_500), false), Ok(stream("b", 1_500).map(|it| it.at)));
        let ahead = stream("b", 1_501);
        assert_eq!(begin(applied(), ahead.clone(), true), Err(exit::DESTINATION), "nothing of ours");
        assert_eq!(
            begin(applied(), ahead.clone(), false),
            Ok(ahead.map(|it| it.at)),
            "this disk lost its tail"
        );
        for lost in [None, rdb("b", 1_000, 5), stream("b", 900), stream("c", 1_200)] {
            assert_eq!(begin(applied(), lost.clone(), false), Err(exit::DESTINATION), "{lost:?}");
        }
        // The RDB is still arriving: only the process that receives it can use it.
        let arriving = || spooled(false, false);
        assert_eq!(begin(arriving(), rdb("a", 1_000, 5), false), Ok(None));
        assert_eq!(begin(arriving(), rdb("a", 1_000, 5), true), Ok(rdb("a", 1_000, 5).map(|it| it.at)));
        assert_eq!(begin(arriving(), stream("a", 1_000), true), beginning);
    }
}
