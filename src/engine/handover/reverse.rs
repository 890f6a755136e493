//! The link back: a second migration line, from the new source to the old one, begun while writers are blocked.
//!
//! It needs no RDB, because at the hand-over both sides hold the same data. So its spool is made by hand: a full sync of
//! length 0 that stands for the destination's present offset, from which PSYNC continues.
//!
//! Two difficulties, and what is done about them:
//!
//! - *A master without replicas keeps no backlog*, so there is nothing to continue from. [`prepare`] asks for a full sync
//!   and hangs up before it begins: that is what makes a server create its backlog (`syncCommand` in replication.c).
//! - *A stream that is continued does not say which database it is in.* So a marker key is set in database 0 behind the
//!   offset, and everything before it in the stream is passed over: it was written by us, or is the expiry of a key.
//!
//! With a cluster as the new source all of this is done on each of its masters: each has a history, an offset and a marker
//! of its own, and becomes a line. They are noted in `shards.json`, so that the lines are those which were begun here.
//!
//! There is no loop, because the line towards the destination has ended before this one applies anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::super::Engine;
use super::super::cluster::slots;
use super::super::discovery::{Cluster, discover};
use super::super::events::unix_ms;
use super::super::net::{Connection, NetError, info_field};
use super::super::shard::Shards;
use super::super::shared::Writers;
use super::super::spool::Spool;
use super::Home;
use crate::config::{Address, Endpoint, OnExistingKey, OnFullResync, Plan, Reader, SyncReader, Writer};
use crate::control::Command;
use crate::cutover::SourceAfter;
use crate::psync::Replid;
use crate::resp::{Reply, append_command};
use crate::status::Phase;

/// How long the link back may take to stand.
const START_LIMIT: Duration = Duration::from_secs(8);

/// Its data directory.
pub fn directory(dir: &Path) -> PathBuf {
    dir.join("reverse")
}

/// True where a link back was begun that a start can go on with.
pub fn has_way_back(plan: &Plan, dir: &Path) -> bool {
    plan.cutover.reverse && directory(dir).join("run.json").exists()
}

/// The migration turned round. What is filtered on the way there is filtered on the way back.
pub fn plan(plan: &Plan, dir: &Path) -> Option<Plan> {
    let Reader::Sync(reader) = &plan.reader else { return None };
    let mut back = plan.clone();
    back.reader = Reader::Sync(SyncReader {
        endpoint: plan.writer.endpoint.clone(),
        cluster: plan.writer.cluster,
        sync_rdb: true,
        sync_aof: true,
        prefer_replica: false,
        psync_names: BTreeMap::new(),
        ..reader.clone()
    });
    back.writer = Writer { endpoint: reader.endpoint.clone(), cluster: reader.cluster, off_reply: false };
    back.advanced.dir = directory(dir);
    back.advanced.empty_db_before_sync = false;
    back.advanced.on_existing_key = OnExistingKey::Rewrite;
    // A full sync would write an RDB over the old source: then rather no way back, and that is said.
    back.policy.on_full_resync = OnFullResync::Stop;
    back.cutover.reverse = false;
    // The run that would hold the former destination ends with the rollback.
    if back.cutover.source_after == SourceAfter::Hold {
        back.cutover.source_after = SourceAfter::Refuse;
    }
    back.notices.clear();
    Some(back)
}

/// A master of the destination, whose stream will flow back.
struct Master {
    endpoint: Endpoint,
    /// One of its slots; `None` = no cluster.
    slot: Option<u16>,
}

/// The destination now. `known` tells other nodes of the cluster, should the configured one not answer.
async fn masters(writer: &Writer, known: &Writers) -> Result<(Vec<Master>, Option<Cluster>), String> {
    let configured = &writer.endpoint;
    if !writer.cluster {
        return Ok((vec![Master { endpoint: configured.clone(), slot: None }], None));
    }
    let others = known.all().into_iter().filter_map(|node| node.address.parse::<Address>().ok());
    let seeds: Vec<Endpoint> =
        std::iter::once(configured.clone()).chain(others.map(|address| configured.at(address))).collect();
    let cluster = discover(&seeds).await.map_err(|error| error.to_string())?;
    let mut masters = Vec::new();
    for (node, endpoint) in cluster.masters() {
        // Two streams that hold the same key cannot be put in order. A node tells of its own moves only.
        let view = discover(std::slice::from_ref(&endpoint)).await.map_err(|error| error.to_string())?;
        if let Some(moving) = view.topology.moves.first() {
            return Err(format!("slot {} of the destination is on its way to another master", moving.slot));
        }
        masters.push(Master { endpoint, slot: node.slots.first().map(|range| *range.start()) });
    }
    Ok((masters, Some(cluster)))
}

/// Sees to it that every master of the destination keeps a backlog.
pub async fn prepare(writer: &Writer, known: &Writers) -> Result<(), String> {
    let (masters, _) = masters(writer, known)
        .await
        .map_err(|reason| format!("the reverse link cannot be prepared: {reason}"))?;
    for master in masters {
        keep_backlog(&master.endpoint).await?;
    }
    Ok(())
}

async fn keep_backlog(destination: &Endpoint) -> Result<(), String> {
    let words = |error: NetError| format!("the reverse link cannot be prepared: {error}");
    let mut control = Connection::open(destination).await.map_err(words)?;
    if has_backlog(&mut control).await.map_err(words)? {
        return Ok(());
    }
    let mut replica = Connection::open(destination).await.map_err(words)?;
    // With these the RDB would go straight to the socket after a delay, so that hanging up in time costs no fork.
    for option in [&b"eof"[..], b"psync2"] {
        if let Reply::Error(denied) = replica.request(&[b"REPLCONF", b"capa", option]).await.map_err(words)? {
            return Err(format!(
                "the reverse link cannot be prepared: {}: REPLCONF was refused: '{denied}'. The user of [redis_writer] \
                 needs +psync +replconf for it.",
                destination.address
            ));
        }
    }
    let mut request = Vec::new();
    append_command(&mut request, &[b"PSYNC", b"?", b"-1"]);
    replica.send(&request, "PSYNC").await.map_err(words)?;
    let deadline = Instant::now() + START_LIMIT;
    while !has_backlog(&mut control).await.map_err(words)? {
        // An error answer comes at once.
        let answer = timeout(Duration::from_millis(20), replica.read_line("PSYNC")).await;
        if let Ok(Ok(line)) = answer
            && line.starts_with(b"-")
        {
            return Err(format!(
                "the reverse link cannot be prepared: {}: PSYNC was refused: '{}'. The user of [redis_writer] needs \
                 +psync +replconf for it.",
                destination.address,
                String::from_utf8_lossy(&line).escape_debug()
            ));
        }
        if Instant::now() > deadline {
            return Err(format!(
                "the reverse link cannot be prepared: {} keeps no replication backlog. Attach any replica to it once.",
                destination.address
            ));
        }
    }
    Ok(())
}

async fn has_backlog(control: &mut Connection) -> Result<bool, NetError> {
    Ok(replication(control).await?.contains("repl_backlog_active:1"))
}

async fn replication(control: &mut Connection) -> Result<String, NetError> {
    match control.request(&[b"INFO", b"replication"]).await? {
        Reply::Bulk(info) => Ok(String::from_utf8_lossy(&info).into_owned()),
        other => Err(NetError::Refused {
            address: control.address.clone(),
            what: "INFO replication".into(),
            reply: format!("{other:?}"),
            cure: "The user needs +info.".into(),
        }),
    }
}

/// Makes the spool of a master: its stream counts from now on. Returns its name and the offset behind the marker.
async fn seed(master: &Master, dir: &Path, marker: &str) -> Result<(String, u64), String> {
    let words = |error: NetError| error.to_string();
    let name = master.endpoint.address.to_string();
    let mut control = Connection::open(&master.endpoint).await.map_err(words)?;
    let info = replication(&mut control).await.map_err(words)?;
    let replid = info_field(&info, "master_replid").and_then(Replid::parse);
    let offset = info_field(&info, "master_repl_offset").and_then(|offset| offset.parse::<u64>().ok());
    let (Some(replid), Some(offset)) = (replid, offset) else {
        return Err(format!("{name}: INFO says no replication offset"));
    };
    let marker = match master.slot {
        Some(slot) => format!("{marker}:{{{}}}", slots::tag_of(slot)),
        None => marker.to_owned(),
    };
    for command in [&[&b"SET"[..], marker.as_bytes(), b"1"][..], &[b"DEL", marker.as_bytes()]] {
        if let Reply::Error(reply) = control.request(command).await.map_err(words)? {
            return Err(format!("{name}: the marker key was refused: '{reply}'"));
        }
    }
    let info = replication(&mut control).await.map_err(words)?;
    let goal =
        info_field(&info, "master_repl_offset").and_then(|goal| goal.parse::<u64>().ok()).unwrap_or(offset);
    let spool = dir.join(super::super::data_dir::spool_name(&name));
    Spool::seed(&spool, &replid, offset, &marker).map_err(|error| error.to_string())?;
    Ok((name, goal))
}

/// Starts the line back. Nothing writes to the destination any more but what is done here. Returns when all of it streams.
pub async fn start(forth: &Plan, dir: &Path, run_id: &str, known: &Writers) -> Result<Engine, String> {
    let failed = |reason: String| format!("the reverse link cannot be started: {reason}");
    let plan = plan(forth, dir).ok_or("a reverse link needs [sync_reader]")?;
    let home = Home { plan: forth.clone(), dir: dir.to_owned() };
    let (masters, cluster) = masters(&forth.writer, known).await.map_err(failed)?;
    // What a former attempt left.
    let _ = std::fs::remove_dir_all(&plan.advanced.dir);
    let marker = format!("shakedeck:handover:{run_id}:{}", unix_ms());
    let mut goals = Vec::new();
    for master in &masters {
        goals.push(seed(master, &plan.advanced.dir, &marker).await.map_err(failed)?);
    }
    if let Some(cluster) = cluster {
        Shards::note(&plan.advanced.dir, &forth.writer.endpoint, &cluster)
            .map_err(|error| failed(error.to_string()))?;
    }
    let mut engine = super::super::start_line(plan, None, Some(home)).map_err(|outcome| outcome.message)?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let status = engine.handle.status();
        let stands = goals.iter().all(|(name, goal)| {
            let mut sources = status.sources.iter().filter(|source| source.address == *name);
            sources.any(|source| source.phase == Phase::Stream && source.offset_received >= *goal)
        });
        if stands {
            return Ok(engine);
        }
        let reason = match (&status.outcome, Instant::now() > deadline) {
            (Some(outcome), _) => Some(outcome.message.clone()),
            (None, true) => Some(format!("{} s were not enough", START_LIMIT.as_secs())),
            (None, false) => None,
        };
        if let Some(reason) = reason {
            give_up(engine, dir).await;
            return Err(failed(reason));
        }
        tokio::select! {
            _ = engine.handle.next_status() => {}
            () = sleep(Duration::from_millis(10)) => {}
        }
    }
}

/// Ends a line back that is not wanted after all.
pub async fn give_up(engine: Engine, dir: &Path) {
    let _ = engine.handle.send(Command::Stop { forget: true });
    let _ = timeout(START_LIMIT, engine.finished).await;
    let _ = std::fs::remove_dir_all(directory(dir));
}
