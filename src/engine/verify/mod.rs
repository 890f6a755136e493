//! Verification: compares the source with the destination, key by key, while both go on living.
//!
//! ```text
//!  round 1   SCAN source ------> batches --> workers (connections of their own) --> conflicts
//!            SCAN destination -> batches --> EXISTS on the source             ---> conflicts
//!  round 2…  wait until what was written before is applied; look at the conflicts only
//!  last      the stream is held for moments, both sides are read at one and the same offset
//! ```
//!
//! A difference is reported only if it stands after the last round. Where an engine in this process applies the stream, the
//! last round is exact, also for keys that never rest (`judge.rs`). Elsewhere a key that looked different in
//! the last two looks is reported as unsettled and not as a difference.
//!
//! A side may be a cluster: every master of it is scanned, and each key is looked up where its slot is (`links.rs`).
//!
//! It only reads. `repair.rs` writes, and only where no stream can apply older writes on top of it.

mod attend;
mod count;
mod hold;
mod judge;
mod kinds;
mod link;
mod links;
mod look;
mod picture;
mod pieces;
mod progress;
mod repair;
mod saved;
mod scan;
mod settle;
mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

pub use self::attend::Verifying;
pub use self::count::{OwnKeys, find_own_keys};
pub use self::hold::Streams;
use self::judge::{How, Judged};
use self::link::Server;
pub use self::link::{Side, VerifyError};
use self::links::Links;
use self::picture::Picture;
pub use self::progress::Progress;
use self::saved::Saved;
use self::scan::{Ended, Pool, another_try};
pub use self::settle::Settle;
pub use self::site::Place;
use self::site::{Site, Sites};
use super::data_dir::DataDir;
use super::events::EventLog;
use crate::config::{DbMap, Filter};
use crate::format;
use crate::status::{Difference, DifferenceCount, Verification, VerificationState};
use crate::verify::{EXAMPLES, Found, Kind, Mode, Options};

/// Keys that are looked at together in the last, exact round: so long is the stream held.
const EXACT_KEYS: usize = 100;
/// More conflicts than this are not looked at exactly: the stream would be held too often.
const EXACT_LIMIT: usize = 20_000;
/// How often the destination may fail to come to such a place.
const LAG_TRIES: u32 = 4;
/// More conflicts than this are no matter of single keys: the comparison ends.
const CONFLICT_LIMIT: usize = 250_000;

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
    /// Where the data comes from.
    pub source: Place,
    /// Where it goes.
    pub destination: Place,
    /// Databases that are copied.
    pub filter: Filter,
    /// Databases that get another number.
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
    /// Our own keys, for `count`, if they are known; else they are looked for.
    pub own: Option<OwnKeys>,
}

/// Keys that are not equal, with what they looked like.
type Conflicts = BTreeMap<(u32, Vec<u8>), Picture>;
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
        // Two of them would overwrite each other's files.
        let _lock = job.dir.as_deref().map(saved::lock).transpose()?;
        if let Some(path) = &job.output {
            saved::try_out(path)?;
        }
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
    links: Links,
    /// Databases that are compared.
    databases: Vec<Database>,
    /// A checkpoint was seen on the destination: a migration may go on from there.
    checkpoint_seen: bool,
    /// How often the destination did not come to the place at which both sides should be read.
    lagged: u32,
    /// What the result does not say by itself, for its sentence.
    remarks: Vec<String>,
}

/// A database of the destination, and those of the source that go there.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Database {
    to: u32,
    /// Ascending; not empty.
    from: Vec<u32>,
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
        let asked = job.options.mode;
        let source = Sites::find(Side::Source, &job.source, asked).await?;
        let destination = Sites::find(Side::Destination, &job.destination, asked).await?;
        let (here, there) = (source.now(), destination.now());
        let mode = mode_for(asked, &here, &there, &progress);
        let databases = databases(&job, &here, &there);
        let keys: u64 = databases.iter().flat_map(|database| &database.from).map(|db| here.keys(*db)).sum();
        if asked == Mode::Count {
            (job.options.sample, job.options.at_most) = (1.0, None);
        }
        if let Some(most) = job.options.at_most.filter(|most| *most < keys) {
            job.options.sample = job.options.sample.min(most as f64 / keys as f64);
            progress.notice(format!(
                "a sample of about {} of {} keys, as [cutover] sample says; 'sample = 0' compares all",
                format::number(most),
                format::number(keys)
            ));
        }
        let how = Arc::new(How {
            source,
            destination,
            mode,
            tolerance: i64::try_from(job.options.ttl_tolerance.as_millis()).unwrap_or(i64::MAX),
            db_map: job.db_map.clone(),
        });
        let links = Links::new(how.clone());
        Ok(Run {
            job,
            how,
            progress,
            cancel,
            links,
            databases,
            checkpoint_seen: false,
            lagged: 0,
            remarks: Vec::new(),
        })
    }

    async fn rounds(&mut self) -> Result<Rounds, VerifyError> {
        if self.how.mode == Mode::Count {
            return self.counts().await;
        }
        let rounds = match self.job.options.rounds.max(1) {
            // The first round looks at digests, later ones at values: they can only be compared with each other.
            2 if self.how.mode == Mode::Digest => 3,
            rounds => rounds,
        };
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
            match self.links.judge(db, keys, mode).await {
                Err(error) if another_try(&self.how, &error, &mut tries).await => {
                    self.links.find_again().await
                }
                result => return result,
            }
        }
    }

    /// The same, exactly at one place of each stream; `None` for keys of which that could not be had.
    async fn judge_exactly(
        &mut self,
        db: u32,
        keys: &[Vec<u8>],
        mode: Mode,
        streams: &Streams,
    ) -> Result<Vec<Option<Judged>>, VerifyError> {
        let mut tries = 0;
        // A destination that lags so far is not waited for again and again.
        while self.lagged < LAG_TRIES {
            match self.links.judge_exactly(db, keys, mode, streams).await {
                Err(error) if another_try(&self.how, &error, &mut tries).await => {
                    self.links.find_again().await;
                }
                Ok(judged) if judged.iter().any(Option::is_none) => self.lagged += 1,
                result => return result,
            }
        }
        Ok(vec![None; keys.len()])
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
                Some(streams) => self.judge_exactly(db, &keys, mode, streams).await?,
                None => Vec::new(),
            };
            let judged = match exact.iter().all(Option::is_some) && !exact.is_empty() {
                true => Vec::new(),
                false => self.judge(db, &keys, mode).await?,
            };
            for (index, (key, before)) in keys.into_iter().zip(pictures).enumerate() {
                let exact = exact.get(index).cloned().flatten();
                let is_exact = exact.is_some();
                let Some(judged) = exact.or_else(|| judged.get(index).cloned()) else { continue };
                if judged.unsettled {
                    unsettled += 1;
                    next.insert((db, key), judged.picture);
                    continue;
                }
                if judged.found.is_empty() {
                    continue;
                }
                next.insert((db, key.clone()), judged.picture);
                // Without an exact look only a picture that stands still is a difference.
                if !last {
                    continue;
                } else if is_exact || still || (settled && before.is_like(&judged.picture)) {
                    standing.push(((db, key), judged.found));
                } else {
                    unsettled += 1;
                }
            }
        }
        if last {
            self.progress.change(|shown| shown.unsettled += unsettled);
        }
        Ok(Some((standing, next)))
    }

    async fn first_round(&mut self) -> Result<Ended, VerifyError> {
        let own = self.job.dir.clone();
        let (source, destination) = (self.how.source.now(), self.how.destination.now());
        let keys = |database: &Database| {
            let here: u64 = database.from.iter().map(|db| source.keys(*db)).sum();
            here + destination.keys(database.to)
        };
        let total: u64 = self.databases.iter().map(keys).sum();
        let total = (total as f64 * self.job.options.sample.clamp(0.0, 1.0)) as u64;
        let fresh = self.beginning();
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
            limit: None,
            is_cut: false,
        };
        let ended = scan.run(pool, start).await?;
        self.checkpoint_seen = scan.checkpoint_seen;
        Ok(ended)
    }

    /// The place before the first key.
    fn beginning(&self) -> Saved {
        let job = &self.job;
        Saved {
            what: format!(
                "{} {:?} {:?} {:?}",
                self.how.mode.word(),
                job.options.sample,
                job.filter,
                job.db_map
            ),
            source: self.how.source.now().run_ids(),
            destination: self.how.destination.now().run_ids(),
            extra: false,
            db: self.databases.iter().flat_map(|database| &database.from).min().copied().unwrap_or(0),
            seen: Vec::new(),
            node: String::new(),
            cursor: "0".into(),
            keys: 0,
            conflicts: Vec::new(),
        }
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
            _ => format!("{} keys of both sides compared", format::number(shown.keys_compared)),
        }];
        let (differences, unsettled) = (standing.len() as u64, shown.unsettled);
        let is_count = |found: &[Found]| found.iter().any(|found| found.kind == Kind::Count);
        let databases = standing.iter().filter(|(_, found)| is_count(found)).count() as u64;
        if databases > 0 {
            words.push(format!("{databases} databases differ"));
        }
        match differences - databases {
            0 if databases > 0 => {}
            0 => words.push("no differences".into()),
            1 => words.push("1 key differs".into()),
            count => words.push(format!("{} keys differ", format::number(count))),
        }
        words.append(&mut self.remarks);
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

/// Digests where both sides can make them and they mean the same, else values; and what else the operator should know of the mode.
fn mode_for(asked: Mode, here: &Site, there: &Site, progress: &Progress) -> Mode {
    let servers = || here.nodes.iter().chain(&there.nodes).map(|node| &node.server);
    let mut mode = asked;
    if mode == Mode::Digest {
        let version = servers().next().map(|server| &server.version);
        let why = if !servers().all(|server| server.digest) {
            Some("DEBUG DIGEST-VALUE is not allowed on both servers ('enable-debug-command', +debug)")
        } else if !servers().all(|server| Some(&server.version) == version) {
            Some("the servers are not the same version, and digests of different versions differ")
        } else {
            None
        };
        if let Some(why) = why {
            progress.notice(format!("values are compared instead of digests: {why}"));
            mode = Mode::Full;
        }
    }
    let times = |server: &Server| server.target.has_field_ttl();
    if mode == Mode::Full && servers().any(times) && !servers().all(times) {
        progress.notice(
            "only one of the servers knows times of expiry for hash fields: a field that has one differs",
        );
    }
    mode
}

/// The databases that are compared: those of the source that are copied, each with where it goes.
fn databases(job: &Verify, here: &Site, there: &Site) -> Vec<Database> {
    let present = |site: &Site| -> Vec<u32> {
        site.nodes.iter().flat_map(|node| node.server.databases.keys().copied()).collect()
    };
    let kept = present(here).into_iter().filter(|db| job.filter.keeps_db(*db)).map(|db| job.db_map.map(db));
    let to: BTreeSet<u32> = kept.chain(present(there)).collect();
    let sources = |to: u32| {
        let mut from = job.db_map.sources_of(to, &job.filter);
        from.sort_unstable();
        Database { to, from }
    };
    to.into_iter().map(sources).filter(|database| !database.from.is_empty()).collect()
}

/// Keys of one database, and the picture of each.
type Chunk = ((u32, Vec<Vec<u8>>), Vec<Picture>);

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
