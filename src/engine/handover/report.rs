//! The report of one cutover: `cutover-<n>.json` and `cutover-<n>.txt` in the data directory, and printed at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::watch;

use super::board::{Board, Moment};
use crate::config::{Endpoint, Plan, Reader, SyncReader};
use crate::cutover::FenceKind;
use crate::engine::cluster::{self, slots::checkpoint_key as checkpoint_of_slot};
use crate::engine::line::checkpoint_key;
use crate::engine::net::{Connection, NetError, info_field};
use crate::engine::spool::{SpoolError, replace_file};
use crate::engine::verify::{OwnKeys, Place, Progress, Settle, Side, Verify, find_own_keys, verify};
use crate::format;
use crate::resp::Reply;
use crate::status::{Counters, CutoverNode, CutoverStep, Rejected, Status, VerificationState};
use crate::topology::SLOTS;
use crate::verify::{Mode, Options};

/// Everything that is worth keeping of one cutover.
#[derive(Debug, Serialize)]
pub struct Report {
    run_id: String,
    version: String,
    attempt: u32,
    source: String,
    destination: String,
    result: String,
    started_unix_ms: Option<u64>,
    fenced_unix_ms: Option<u64>,
    blocked_seconds: Option<f64>,
    fence: &'static str,
    steps: Vec<CutoverStep>,
    offsets: Vec<CutoverNode>,
    keys: Vec<Counts>,
    verified: String,
    counters: Counters,
    rejected: Vec<Rejected>,
    timeline: Vec<Moment>,
    operator_actions: Vec<Moment>,
}

/// Keys of one database while writers were blocked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Database.
    pub db: u32,
    /// Keys of the source; expired ones count until it removes them, which it does not do while it is paused.
    pub source: u64,
    /// Those of them that have a time to live.
    pub source_expires: u64,
    /// Keys of the destination, without the checkpoints.
    pub destination: u64,
}

impl Report {
    /// Of a cutover that has just ended.
    pub fn new(
        number: u32,
        board: &Board,
        status: &Status,
        counts: &[Counts],
        verified: &str,
        result: &str,
    ) -> Report {
        let shown = board.view();
        Report {
            run_id: status.run_id.clone(),
            version: status.version.clone(),
            attempt: number,
            source: status.source.address.clone(),
            destination: status.destination.address.clone(),
            result: result.to_owned(),
            started_unix_ms: shown.started_unix_ms,
            fenced_unix_ms: shown.fenced_unix_ms,
            blocked_seconds: shown.blocked_seconds,
            fence: match shown.fence {
                FenceKind::PauseWrites => "CLIENT PAUSE WRITE",
                FenceKind::PauseAll => "CLIENT PAUSE",
                FenceKind::Word => "the operator's word",
            },
            steps: shown.steps,
            offsets: shown.nodes,
            keys: counts.to_vec(),
            verified: verified.to_owned(),
            counters: status.counters,
            rejected: status.rejected.clone(),
            timeline: board.timeline(),
            operator_actions: board.actions(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let time = |unix_ms: u64| format!("{}.{:03}", format::date_time_utc(unix_ms), unix_ms % 1000);
        let _ = writeln!(text, "CUTOVER {} of run {}: {}", self.attempt, self.run_id, self.result);
        let _ = writeln!(text, "  from        {}", self.source);
        let _ = writeln!(text, "  to          {}", self.destination);
        let _ = writeln!(text, "  fence       {}", self.fence);
        if let Some(seconds) = self.blocked_seconds {
            let _ = writeln!(text, "  blocked     writers waited for {seconds:.3} s");
        }
        let _ = writeln!(
            text,
            "  compared    {}",
            if self.verified.is_empty() { "nothing" } else { &self.verified }
        );
        for node in &self.offsets {
            let fenced = node.fenced_offset.map_or("-".into(), format::number);
            let _ = writeln!(
                text,
                "  offsets     {}: fenced at {fenced}, confirmed {}",
                node.address,
                format::number(node.applied_offset)
            );
        }
        for keys in &self.keys {
            let _ = writeln!(
                text,
                "  keys        db {}: source {} ({} with a time to live), destination {}",
                keys.db,
                format::number(keys.source),
                format::number(keys.source_expires),
                format::number(keys.destination)
            );
        }
        let counters = self.counters;
        let _ = writeln!(
            text,
            "  entries     {} applied, {} filtered, {} quarantined",
            format::number(counters.entries_applied),
            format::number(counters.filtered),
            format::number(counters.quarantined)
        );
        for rejected in &self.rejected {
            let _ =
                writeln!(text, "  rejected    {} x {} ({})", rejected.count, rejected.kind, rejected.policy);
        }
        let _ = writeln!(text, "  time line");
        for moment in &self.timeline {
            let _ = writeln!(text, "    {}  {}", time(moment.unix_ms), moment.what);
        }
        let _ = writeln!(text, "  what the operator did");
        for moment in &self.operator_actions {
            let _ = writeln!(text, "    {}  {}", time(moment.unix_ms), moment.what);
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// Both files.
    /// Returns the one for people.
    pub fn write(&self, dir: &Path) -> Result<PathBuf, SpoolError> {
        let file = |end: &str| dir.join(format!("cutover-{}.{end}", self.attempt));
        replace_file(&file("json"), &serde_json::to_vec_pretty(self).unwrap_or_default())?;
        replace_file(&file("txt"), (self.text() + "\n").as_bytes())?;
        Ok(file("txt"))
    }
}

/// After the last report that is there, whichever process wrote it.
pub fn next_number(dir: &Path) -> u32 {
    let number = |name: &str| name.strip_prefix("cutover-")?.strip_suffix(".json")?.parse::<u32>().ok();
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| number(file.file_name().to_str()?)).max().unwrap_or(0).saturating_add(1)
}

/// Our own keys on both sides, where they are to be left out of a count. Whoever looks for them reads through everything, so it is done
/// before anybody waits for it. `masters`: those of the source. `lines`: what names the checkpoints.
pub async fn own_keys(
    plan: &Plan,
    masters: Vec<Endpoint>,
    lines: &[String],
    kind: FenceKind,
) -> Result<Option<OwnKeys>, String> {
    let (Reader::Sync(reader), Some(mode @ Mode::Count)) = (&plan.reader, plan.cutover.verify) else {
        return Ok(None);
    };
    if kind == FenceKind::PauseAll {
        return Ok(None);
    }
    let mut own =
        find_own_keys(job(plan, reader, masters, mode, None)).await.map_err(|error| error.to_string())?;
    // The first command that must be applied exactly once in a slot makes its checkpoint.
    if plan.writer.cluster {
        for line in lines {
            (0..SLOTS).for_each(|slot| own.add(Side::Destination, 0, checkpoint_of_slot(line, slot)));
        }
    }
    Ok(Some(own))
}

/// A comparison of both sides while nothing moves.
fn job(
    plan: &Plan,
    reader: &SyncReader,
    masters: Vec<Endpoint>,
    mode: Mode,
    output: Option<PathBuf>,
) -> Verify {
    let mut source = Place::new(&reader.endpoint, reader.cluster);
    if reader.cluster {
        source.seeds.extend(masters);
    }
    let at_most = Some(plan.cutover.sample).filter(|sample| *sample > 0);
    Verify {
        options: Options { mode, at_most, rounds: 2, ..Options::default() },
        source,
        destination: Place::new(&plan.writer.endpoint, plan.writer.cluster),
        filter: plan.filter.clone(),
        db_map: plan.advanced.db_map.clone(),
        settle: Settle::Still,
        dir: None,
        output,
        resume: false,
        repair: None,
        events: None,
        own: None,
    }
}

/// Compares the sides while nothing moves; the words say what was found. A difference is the error. `masters`: those of the
/// source. `lines`: what names the checkpoints.
pub async fn compare(
    plan: &Plan,
    masters: Vec<Endpoint>,
    lines: &[String],
    kind: FenceKind,
    differences: PathBuf,
    own: Option<OwnKeys>,
    counts: &mut Vec<Counts>,
) -> Result<String, String> {
    let Reader::Sync(reader) = &plan.reader else { return Ok("nothing to compare".into()) };
    if kind == FenceKind::PauseAll {
        return Ok("nothing: a source whose clients are all paused answers no questions".into());
    }
    let mode = plan.cutover.verify;
    let job = job(plan, reader, masters, mode.unwrap_or(Mode::Count), Some(differences));
    count(plan, [&job.source, &job.destination], lines, counts).await?;
    let Some(mode) = mode else { return Ok("nothing, as configured (verify = off)".into()) };
    let job = Verify { own, ..job };
    let progress = Arc::new(Progress::new(&job.options));
    // Never cancelled by this: an abort drops the whole comparison.
    let (_cancel, cancelled) = watch::channel(false);
    let result = verify(job, progress, cancelled).await.map_err(|error| error.to_string())?;
    let words = format!("{}: {}", mode.word(), result.message);
    match result.state {
        VerificationState::Equal => Ok(words),
        _ => {
            let file = result.file.map(|file| format!(" (all in '{file}')")).unwrap_or_default();
            Err(format!("the sides differ: {words}{file}"))
        }
    }
}

/// Counts the keys of both sides, for the report; nothing is judged by it. Databases are those of the source.
async fn count(
    plan: &Plan,
    sides: [&Place; 2],
    lines: &[String],
    counts: &mut Vec<Counts>,
) -> Result<(), String> {
    let own = checkpoints(plan, lines).await.map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    for place in sides {
        let mut sum: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for endpoint in place.masters().await.map_err(|error| error.to_string())? {
            let mut connection = Connection::open(&endpoint).await.map_err(|error| error.to_string())?;
            match connection.request(&[b"INFO", b"keyspace"]).await.map_err(|error| error.to_string())? {
                Reply::Bulk(info) => {
                    for (db, (keys, expires)) in keyspace(&String::from_utf8_lossy(&info)) {
                        let sum = sum.entry(db).or_default();
                        *sum = (sum.0 + keys, sum.1 + expires);
                    }
                }
                other => return Err(format!("{}: INFO keyspace: {other:?}", endpoint.address)),
            }
        }
        found.push(sum);
    }
    let [source, destination] = &found[..] else { return Ok(()) };
    let (filter, map) = (&plan.filter, &plan.advanced.db_map);
    let kept = source.keys().copied().filter(|db| filter.keeps_db(*db));
    let dbs: BTreeSet<u32> =
        kept.chain(destination.keys().flat_map(|db| map.sources_of(*db, filter))).collect();
    *counts = dbs
        .into_iter()
        .map(|db| {
            let (keys, expires) = source.get(&db).copied().unwrap_or_default();
            let db_there = map.map(db);
            let there = destination.get(&db_there).map_or(0, |(keys, _)| *keys);
            let destination = if db_there == 0 { there.saturating_sub(own) } else { there };
            Counts { db, source: keys, source_expires: expires, destination }
        })
        .collect();
    Ok(())
}

/// How many checkpoint keys there are in database 0 of the destination.
async fn checkpoints(plan: &Plan, lines: &[String]) -> Result<u64, NetError> {
    if plan.writer.cluster {
        return cluster::count_checkpoints(&plan.writer.endpoint, lines).await;
    }
    let mut connection = Connection::open(&plan.writer.endpoint).await?;
    let mut own = 0;
    for line in lines {
        let key = checkpoint_key(line);
        if let Reply::Integer(there) = connection.request(&[b"EXISTS", key.as_bytes()]).await? {
            own += u64::try_from(there).unwrap_or(0);
        }
    }
    Ok(own)
}

/// Keys, and keys with a time to live, by database.
fn keyspace(info: &str) -> BTreeMap<u32, (u64, u64)> {
    let numbers = |db: u32| {
        let line = info_field(info, &format!("db{db}"))?;
        let number =
            |name: &str| line.split(',').find_map(|pair| pair.strip_prefix(name)?.parse::<u64>().ok());
        Some((db, (number("keys=")?, number("expires=").unwrap_or(0))))
    };
    let dbs = info.lines().filter_map(|line| line.strip_prefix("db")?.split_once(':')?.0.parse().ok());
    dbs.filter_map(numbers).collect()
}
