//! Verification: compares the source with the destination, key by key, while both go on living.
//!
//! ```text
//!  round 1   SCAN source ------> batches --> workers (a pair of connections each) --> conflicts
//!            SCAN destination -> batches --> EXISTS on the source                ---> conflicts
//!  round 2…  wait until what was written before is applied; look at the conflicts only
//!  last      the stream is held for moments, both sides are read at one and the same offset
//! ```
//!
//! A difference is reported only if it stands after the last round. Where an engine in this process applies the stream, the
//! last round is exact, also for keys that never rest (`judge.rs`). Elsewhere a key that looked different in
//! the last two looks is reported as unsettled and not as a difference.
//!
//! It only reads. `repair.rs` writes, and only where no stream can apply older writes on top of it.

mod attend;
mod count;
mod judge;
mod link;
mod look;
mod pieces;
mod progress;
mod repair;
mod saved;
mod scan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

pub use self::attend::Verifying;
use self::judge::{How, Judged, Pair};
use self::link::{Link, Server};
pub use self::link::{Side, VerifyError};
pub use self::progress::Progress;
use self::saved::Saved;
use self::scan::{Ended, Pool};
use super::batch::{Position, Progress as Checkpoint};
use super::data_dir::DataDir;
use super::events::EventLog;
use super::net::Connection;
use super::shared::SourceShared;
use super::writer::read_checkpoint;
use crate::config::{DbMap, Endpoint, Filter};
use crate::format;
use crate::status::{Difference, DifferenceCount, Verification, VerificationState};
use crate::verify::{EXAMPLES, Found, Kind, Mode, Options};

/// Keys that are looked at together in the last, exact round: so long is the stream held.
const EXACT_KEYS: usize = 100;
/// More conflicts than this are not looked at exactly: the stream would be held too often.
const EXACT_LIMIT: usize = 20_000;
/// More conflicts than this are no matter of single keys: the comparison ends.
const CONFLICT_LIMIT: usize = 250_000;
/// Longest wait, before a round, for the destination to apply what was written before.
const LAG_LIMIT: Duration = Duration::from_secs(60);

/// How a round waits until what the source had is on the destination too.
#[derive(Clone)]
pub enum Settle {
    /// Nothing is written: the source is fenced and drained.
    Still,
    /// An engine in this process applies this source's stream.
    Streaming(Arc<SourceShared>),
    /// So long, and until the checkpoint of a run in another process (its key on the destination) says so.
    Wait(Duration, Option<String>),
}

/// Mends what differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repair {
    /// Also delete keys that only the destination has.
    pub delete_extra: bool,
}

/// A comparison to be made.
pub struct Verify {
    /// What is compared.
    pub options: Options,
    /// The source's masters; one for now.
    pub source: Vec<Endpoint>,
    /// The destination's masters; one for now.
    pub destination: Vec<Endpoint>,
    /// Databases that are copied.
    pub filter: Filter,
    /// Databases that have another number on the destination.
    pub db_map: DbMap,
    /// How rounds wait.
    pub settle: Settle,
    /// Data directory, for the state and the list of differences; `None` = write no files.
    pub dir: Option<PathBuf>,
    /// The list of differences, if not in the data directory.
    pub output: Option<PathBuf>,
    /// Go on where an interrupted comparison has left off.
    pub resume: bool,
    /// Mend what differs.
    pub repair: Option<Repair>,
    /// Where rounds and result are told, besides the status.
    pub events: Option<Arc<EventLog>>,
}

/// Keys that are not equal, with their picture ([`Judged::picture`]).
type Conflicts = BTreeMap<(u32, Vec<u8>), u64>;
/// Keys that differ for good.
type Standing = Vec<((u32, Vec<u8>), Vec<Found>)>;

/// Compares. The result is in the returned value and in `progress`; an error says why it could not be finished. Set `cancel` to
/// true to end it early (`cancelled`; it can be resumed).
pub async fn verify(
    job: Verify,
    progress: Arc<Progress>,
    cancel: watch::Receiver<bool>,
) -> Result<Verification, VerifyError> {
    let run = async {
        let mut run = Run::begin(job, progress.clone(), cancel).await?;
        let outcome = run.rounds().await?;
        run.conclude(outcome).await
    };
    run.await.inspect_err(|error: &VerifyError| {
        progress.finish(VerificationState::Failed, error.to_string());
    })
}

/// A comparison that has begun.
struct Run {
    job: Verify,
    how: Arc<How>,
    progress: Arc<Progress>,
    cancel: watch::Receiver<bool>,
    /// For the later rounds, counts and repairs.
    pair: Pair,
    /// Databases that are compared.
    databases: Vec<u32>,
    /// A checkpoint was seen on the destination: a migration may go on from there.
    checkpoint_seen: bool,
}

/// How the rounds ended.
enum Rounds {
    Done(Standing),
    Cancelled,
    /// So many keys differ that it makes no sense to go on.
    TooMany(Standing),
}

impl Run {
    async fn begin(
        mut job: Verify,
        progress: Arc<Progress>,
        cancel: watch::Receiver<bool>,
    ) -> Result<Run, VerifyError> {
        let ([source], [destination]) = (job.source.as_slice(), job.destination.as_slice()) else {
            return Err(VerifyError::Options("verification of clusters is not supported yet".into()));
        };
        let (source, destination) = (source.clone(), destination.clone());
        let mut mode = job.options.mode;
        let mut from = Link::open(Side::Source, &source).await?;
        let mut to = Link::open(Side::Destination, &destination).await?;
        let source_server = Server::look(&mut from, &source, mode).await?;
        let destination_server = Server::look(&mut to, &destination, mode).await?;
        if mode == Mode::Digest {
            let why = if !source_server.digest || !destination_server.digest {
                Some("DEBUG DIGEST-VALUE is not allowed on both servers ('enable-debug-command', +debug)")
            } else if source_server.version != destination_server.version {
                Some("the servers are not the same version, and digests of different versions differ")
            } else {
                None
            };
            if let Some(why) = why {
                progress.notice(format!("values are compared instead of digests: {why}"));
                mode = Mode::Full;
            }
        }
        if mode == Mode::Full {
            let lacks = |server: &Server| server.target.has_field_ttl();
            if lacks(&source_server) != lacks(&destination_server) {
                progress.notice(
                    "only one of the servers knows times of expiry for hash fields: a field that has one differs",
                );
            }
        }
        let mut databases: Vec<u32> = source_server
            .databases
            .keys()
            .copied()
            .filter(|db| job.filter.keeps_db(*db))
            .chain(destination_server.databases.keys().flat_map(|db| job.db_map.sources_of(*db, &job.filter)))
            .collect();
        databases.sort_unstable();
        databases.dedup();
        let keys: u64 =
            databases.iter().map(|db| source_server.databases.get(db).map_or(0, |(keys, _)| *keys)).sum();
        if let Some(most) = job.options.at_most.filter(|most| *most < keys) {
            job.options.sample = job.options.sample.min(most as f64 / keys as f64);
        }
        let how = Arc::new(How {
            source,
            destination,
            source_server,
            destination_server,
            mode,
            tolerance: i64::try_from(job.options.ttl_tolerance.as_millis()).unwrap_or(i64::MAX),
            db_map: job.db_map.clone(),
            filter: job.filter.clone(),
        });
        let pair = Pair::open(how.clone()).await?;
        Ok(Run { job, how, progress, cancel, pair, databases, checkpoint_seen: false })
    }

    async fn rounds(&mut self) -> Result<Rounds, VerifyError> {
        if self.how.mode == Mode::Count {
            return self.counts().await;
        }
        let rounds = self.job.options.rounds.max(1);
        let mut conflicts = match self.first_round().await? {
            Ended::Complete(conflicts) => conflicts,
            Ended::Cancelled => return Ok(Rounds::Cancelled),
            Ended::TooMany(conflicts) => {
                return Ok(Rounds::TooMany(self.name(conflicts).await?));
            }
        };
        self.progress.stop_clock();
        // The first round keeps keys and not what was found: a destination without any key must fit into memory.
        let mut standing = None;
        for round in 2..=rounds {
            if conflicts.is_empty() {
                break;
            }
            self.tell(format!(
                "round {}: {} keys are not equal yet",
                round - 1,
                format::number(conflicts.len() as u64)
            ));
            self.progress.change(|shown| shown.round = round);
            let Some(settled) = self.settle().await? else { return Ok(Rounds::Cancelled) };
            self.progress.say(format!("looking again at {} keys", format::number(conflicts.len() as u64)));
            let last = round == rounds;
            let Some((differing, next)) = self.look_again(&conflicts, last, settled).await? else {
                return Ok(Rounds::Cancelled);
            };
            self.progress.change(|shown| shown.conflicts = next.len() as u64);
            conflicts = next;
            if last || conflicts.is_empty() {
                standing = Some(differing);
            }
        }
        match standing {
            Some(standing) => Ok(Rounds::Done(standing)),
            None if conflicts.is_empty() => Ok(Rounds::Done(Vec::new())),
            // One round was asked for: what it has found is named now.
            None => Ok(Rounds::Done(self.name(conflicts).await?)),
        }
    }

    /// Looks once more at the first of many conflicts, for the words.
    async fn name(&mut self, conflicts: Conflicts) -> Result<Standing, VerifyError> {
        let mut standing = Vec::new();
        for ((db, keys), _) in in_chunks(&conflicts, scan::BATCH) {
            let judged = self.judge(db, &keys, self.how.mode).await?;
            standing.extend(
                keys.into_iter()
                    .zip(judged)
                    .filter(|(_, judged)| !judged.found.is_empty())
                    .map(|(key, judged)| ((db, key), judged.found)),
            );
        }
        Ok(standing)
    }

    fn tell(&self, text: String) {
        if let Some(events) = &self.job.events {
            events.info("", format!("verification, {text}"));
        }
    }

    /// Judges keys; a connection that fails is opened again.
    async fn judge(&mut self, db: u32, keys: &[Vec<u8>], mode: Mode) -> Result<Vec<Judged>, VerifyError> {
        let mut tries = 0;
        loop {
            match self.pair.judge(db, keys, mode).await {
                Err(error) if error.is_transient() && tries < scan::TRIES => {
                    tries += 1;
                    sleep(Duration::from_millis(300) * tries).await;
                    if let Ok(pair) = Pair::open(self.how.clone()).await {
                        self.pair = pair;
                    }
                }
                result => return result,
            }
        }
    }

    /// The keys that still differ, with what was found in the last round, and all conflicts for the next. `None` = cancelled.
    async fn look_again(
        &mut self,
        conflicts: &Conflicts,
        last: bool,
        settled: bool,
    ) -> Result<Option<(Standing, Conflicts)>, VerifyError> {
        // A digest does not say what differs.
        let mode = if self.how.mode == Mode::Digest { Mode::Full } else { self.how.mode };
        let stream = match &self.job.settle {
            Settle::Streaming(shared) if last && conflicts.len() <= EXACT_LIMIT => Some(shared.clone()),
            _ => None,
        };
        let still = matches!(self.job.settle, Settle::Still);
        let (mut standing, mut next, mut unsettled) = (Vec::new(), Conflicts::new(), 0);
        let size = if stream.is_some() { EXACT_KEYS } else { scan::BATCH };
        for ((db, keys), pictures) in in_chunks(conflicts, size) {
            if *self.cancel.borrow() {
                return Ok(None);
            }
            let exact = match &stream {
                Some(stream) => self.pair.judge_exactly(db, &keys, mode, stream).await?,
                None => None,
            };
            let is_exact = exact.is_some();
            let judged = match exact {
                Some(judged) => judged,
                None => self.judge(db, &keys, mode).await?,
            };
            for ((key, before), judged) in keys.into_iter().zip(pictures).zip(judged) {
                if judged.found.is_empty() {
                    continue;
                }
                next.insert((db, key.clone()), judged.picture);
                // Without an exact look only a picture that stands still is a difference.
                if !last {
                    continue;
                } else if is_exact || still || (settled && before == judged.picture) {
                    standing.push(((db, key), judged.found));
                } else {
                    unsettled += 1;
                }
            }
        }
        if last {
            self.progress.change(|shown| shown.unsettled = unsettled);
        }
        Ok(Some((standing, next)))
    }

    /// Waits until the destination has what the source has now; whether it came to that. `None` = cancelled.
    async fn settle(&mut self) -> Result<Option<bool>, VerifyError> {
        let deadline = Instant::now() + LAG_LIMIT;
        let (least, checkpoint) = match &self.job.settle {
            Settle::Still => return Ok(Some(true)),
            Settle::Streaming(_) => (Duration::ZERO, None),
            Settle::Wait(least, checkpoint) => (*least, checkpoint.clone()),
        };
        self.progress.say("waiting until what was written before is applied");
        let begun = Instant::now();
        let goal = look::place_of(&self.pair.source.info("replication").await?);
        loop {
            if *self.cancel.borrow() {
                return Ok(None);
            }
            let applied = match (&self.job.settle, &checkpoint) {
                (Settle::Streaming(shared), _) => Some(shared.offset_applied.load(Relaxed)),
                (_, Some(key)) => Self::checkpoint(&self.how, key).await?,
                _ => None,
            };
            let is_applied = applied.zip(goal).is_none_or(|(applied, goal)| applied >= goal);
            if (is_applied && begun.elapsed() >= least) || Instant::now() >= deadline {
                if !is_applied {
                    self.progress.notice(
                        "the destination did not catch up between two rounds: keys written meanwhile are not judged",
                    );
                }
                return Ok(Some(is_applied));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The offset that a run in another process has applied, as its checkpoint says.
    async fn checkpoint(how: &How, key: &str) -> Result<Option<u64>, VerifyError> {
        let net = |error| VerifyError::Net { side: Side::Destination, error };
        let mut connection = Connection::open(&how.destination).await.map_err(net)?;
        let field = how.source.address.to_string();
        let text = read_checkpoint(&mut connection, key, field.as_bytes()).await.map_err(net)?;
        let progress = text.and_then(|text| text.parse::<Checkpoint>().ok());
        Ok(progress.map(|progress| match progress.at {
            Position::Stream { offset, .. } => offset,
            Position::Rdb { .. } => 0,
        }))
    }

    async fn first_round(&mut self) -> Result<Ended, VerifyError> {
        let own = self.job.dir.clone();
        let what = format!(
            "{} {:?} {:?} {:?}",
            self.how.mode.word(),
            self.job.options.sample,
            self.job.filter,
            self.job.db_map
        );
        let (source, destination) = (&self.how.source_server, &self.how.destination_server);
        let total: u64 = self
            .databases
            .iter()
            .map(|db| {
                let keys = |server: &Server, db: u32| server.databases.get(&db).map_or(0, |(keys, _)| *keys);
                keys(source, *db) + keys(destination, self.how.db_map.map(*db))
            })
            .sum();
        let total = (total as f64 * self.job.options.sample.clamp(0.0, 1.0)) as u64;
        let fresh = Saved {
            what,
            source: source.run_id.clone(),
            destination: destination.run_id.clone(),
            extra: false,
            db: self.databases.first().copied().unwrap_or(0),
            cursor: "0".into(),
            keys: 0,
            conflicts: Vec::new(),
        };
        let former = own.as_deref().filter(|_| self.job.resume).and_then(Saved::load);
        let start = match former {
            Some(former)
                if (&former.what, &former.source, &former.destination)
                    == (&fresh.what, &fresh.source, &fresh.destination) =>
            {
                self.progress.notice(format!(
                    "going on with an interrupted verification, after {} keys",
                    format::number(former.keys)
                ));
                former
            }
            Some(_) => {
                self.progress.notice(
                    "an interrupted verification was of something else, or a server was restarted since: begun anew",
                );
                fresh
            }
            None => fresh,
        };
        self.progress.begin(start.keys, total);
        let pool = Pool::start(self.how.clone());
        let mut scan = scan::Scan {
            options: &self.job.options,
            how: &self.how,
            databases: &self.databases,
            dir: own.as_deref(),
            progress: &self.progress,
            cancel: &self.cancel,
            checkpoint_seen: false,
        };
        let ended = scan.run(pool, start).await?;
        self.checkpoint_seen = scan.checkpoint_seen;
        Ok(ended)
    }

    /// Writes the list, repairs where asked to, and says the result.
    async fn conclude(&mut self, rounds: Rounds) -> Result<Verification, VerifyError> {
        let (mut standing, too_many) = match rounds {
            Rounds::Done(standing) => (standing, false),
            Rounds::TooMany(standing) => (standing, true),
            Rounds::Cancelled => {
                return Ok(self.progress.finish(VerificationState::Cancelled, "stopped before the end"));
            }
        };
        if let Some(dir) = &self.job.dir {
            Saved::remove(dir);
        }
        self.report(&standing)?;
        if let Some(repair) = self.job.repair
            && !standing.is_empty()
        {
            standing = self.repair(repair, standing).await?;
            self.report(&standing)?;
        }
        let shown = self.progress.snapshot();
        let mut words = vec![match shown.mode.as_str() {
            "count" => format!("{} keys counted", format::number(shown.keys_compared)),
            _ => format!("{} keys compared", format::number(shown.keys_compared)),
        }];
        let (differences, unsettled) = (standing.len() as u64, shown.unsettled);
        words.push(match differences {
            0 => "no differences".into(),
            1 => "1 key differs".into(),
            count => format!("{} keys differ", format::number(count)),
        });
        if shown.mode == "count" && differences > 0 {
            words[1] = format!("{differences} databases differ");
        }
        if too_many {
            words.push("ended early: these are not the same data".into());
        }
        if shown.repaired > 0 {
            words.push(format!("{} repaired", format::number(shown.repaired)));
        }
        if unsettled > 0 {
            words.push(format!("{} never stood still and are not judged", format::number(unsettled)));
        }
        if shown.unreadable > 0 {
            words.push(format!("{} values of modules were not compared", format::number(shown.unreadable)));
        }
        let state = if differences == 0 { VerificationState::Equal } else { VerificationState::Different };
        Ok(self.progress.finish(state, words.join(", ")))
    }

    /// Puts the differences into the status and the file.
    fn report(&self, standing: &Standing) -> Result<(), VerifyError> {
        let mut kinds: BTreeMap<Kind, u64> = BTreeMap::new();
        for found in standing.iter().flat_map(|(_, found)| found) {
            *kinds.entry(found.kind).or_default() += 1;
        }
        let all = || {
            standing.iter().flat_map(|((db, key), found)| {
                found.iter().map(|found| found.clone().of_key(*db, key)).collect::<Vec<Difference>>()
            })
        };
        let path = self
            .job
            .output
            .clone()
            .or_else(|| Some(self.job.dir.as_deref()?.join("verify-differences.jsonl")));
        if let Some(path) = &path {
            saved::write_differences(path, all())?;
        }
        self.progress.change(|shown| {
            shown.differences = standing.len() as u64;
            shown.by_kind = kinds
                .iter()
                .map(|(kind, count)| DifferenceCount { kind: kind.word().into(), count: *count })
                .collect();
            shown.examples = all().take(EXAMPLES).collect();
            shown.file = path.map(|path| path.display().to_string());
        });
        Ok(())
    }
}

/// Keys of one database, and the picture of each.
type Chunk = ((u32, Vec<Vec<u8>>), Vec<u64>);

/// Conflicts by database, in pieces of at most `size` keys.
fn in_chunks(conflicts: &Conflicts, size: usize) -> impl Iterator<Item = Chunk> + use<> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for ((db, key), picture) in conflicts {
        match chunks.last_mut() {
            Some(((last, keys), pictures)) if last == db && keys.len() < size => {
                keys.push(key.clone());
                pictures.push(*picture);
            }
            _ => chunks.push(((*db, vec![key.clone()]), vec![*picture])),
        }
    }
    chunks.into_iter()
}

/// The name of the checkpoint of the run whose data directory this is, if there is one.
pub fn checkpoint_key_of(dir: &Path) -> Option<String> {
    Some(format!("shakedeck:checkpoint:{}", DataDir::run_id_in(dir)?))
}
