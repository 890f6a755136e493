//! `--mode count`: numbers of keys, database by database, without our own.
//!
//! ```text
//!  without a time to live    keys - expires of INFO, minus our own    must be equal
//!  with one                  expires of INFO, minus our own           if they are not: which keys are on one side only?
//! ```
//!
//! Keys with a time to live go by themselves, and not on both sides at once: a paused source removes none while its destination
//! does. So their numbers prove nothing where they differ, and the keys themselves are looked up on the other side, for a
//! limited time: writers may be waiting. The same goes for hashes, which go when the time of all their fields is over.
//!
//! Our own keys are looked for once, by their prefix, which reads through everything: before a cutover blocks anybody
//! ([`find_own_keys`]). Afterwards they are asked for by name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;
use tokio::try_join;

use super::judge::How;
use super::link::{Numbers, Side};
use super::links::Links;
use super::scan::{self, Ended, Limit, Pool};
use super::{Database, Progress, Rounds, Run, Settle, Standing, Verify, VerifyError};
use crate::format;
use crate::verify::{Found, Kind};

/// How often numbers are read in the last round until they agree ...
const TRIES: u32 = 20;
/// ... and where nothing is written, so that they hardly ever come to agree by themselves.
const STILL_TRIES: u32 = 2;
/// Time between two of them.
const TRY_INTERVAL: Duration = Duration::from_millis(50);
/// How long keys are looked up on the other side: writers shall not be blocked for a second.
const KEYS_LIMIT: Duration = Duration::from_millis(500);

/// Names of our own keys, by side and database of that side.
#[derive(Debug, Clone, Default)]
pub struct OwnKeys(BTreeMap<(Side, u32), BTreeSet<Vec<u8>>>);

impl OwnKeys {
    /// Adds one that may be there later.
    pub fn add(&mut self, side: Side, db: u32, name: Vec<u8>) {
        self.0.entry((side, db)).or_default().insert(name);
    }
}

/// Looks for our own keys, those of other runs among them, in everything that `job` compares.
pub async fn find_own_keys(job: Verify) -> Result<OwnKeys, VerifyError> {
    let progress = Arc::new(Progress::new(&job.options));
    let (_cancel, cancelled) = watch::channel(false);
    let mut run = Run::begin(job, progress, cancelled).await?;
    run.find_own_keys(&run.databases.clone()).await
}

/// What a database holds on one side, without our own keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tally {
    /// Keys without a time to live.
    lasting: i64,
    /// Keys with one.
    volatile: i64,
    /// Hashes of which fields have one.
    fields: u64,
}

/// A database on both sides.
#[derive(Debug, Clone)]
struct Tallies {
    database: Database,
    here: Tally,
    there: Tally,
    /// What differs stood still since the try before, or nothing is written.
    stands: bool,
}

impl Tallies {
    fn are_equal(&self) -> bool {
        (self.here.lasting, self.here.volatile) == (self.there.lasting, self.there.volatile)
    }

    fn lack_lasting(&self) -> bool {
        self.here.lasting != self.there.lasting
    }

    /// Whether the numbers that matter are those of the try before.
    fn is_like(&self, before: &Tallies) -> bool {
        let numbers = |tallies: &Tallies| match self.lack_lasting() {
            true => (tallies.here.lasting, tallies.there.lasting),
            false => (tallies.here.volatile, tallies.there.volatile),
        };
        self.database == before.database && numbers(self) == numbers(before)
    }

    fn has_fields(&self) -> bool {
        self.here.fields > 0 || self.there.fields > 0
    }

    /// The database of the source that stands for them.
    fn db(&self) -> u32 {
        self.database.from.first().copied().unwrap_or(0)
    }

    fn found(&self) -> ((u32, Vec<u8>), Vec<Found>) {
        let words = |tally: &Tally| match self.lack_lasting() {
            true => format!("{} keys without a time to live", number(tally.lasting)),
            false => format!("{} keys with a time to live", number(tally.volatile)),
        };
        ((self.db(), Vec::new()), vec![Found::new(Kind::Count, words(&self.here), words(&self.there))])
    }
}

fn databases_of(tallies: &[Tallies]) -> Vec<Database> {
    tallies.iter().map(|tallies| tallies.database.clone()).collect()
}

fn number(count: i64) -> String {
    format::number(count.max(0) as u64)
}

impl Run {
    /// `count`: numbers of keys, a few times until they agree, then keys where numbers prove nothing.
    pub(super) async fn counts(&mut self) -> Result<Rounds, VerifyError> {
        self.progress.begin(0, 0);
        self.progress.say("counting keys");
        let known = self.job.own.take();
        let mut own = match &known {
            Some(own) => own.clone(),
            None => self.find_own_keys(&self.databases.clone()).await?,
        };
        let still = matches!(self.job.settle, Settle::Still);
        let rounds = self.job.options.rounds.max(1);
        let mut open = self.tallies(&self.databases.clone(), &own).await?;
        let all = open.iter().flat_map(|tallies| [tallies.here, tallies.there]);
        self.progress.add(all.map(|tally| (tally.lasting + tally.volatile).max(0) as u64).sum());
        // A surplus of the destination is none if the source had those keys a moment before.
        let first = open.clone();
        open.retain(|tallies| !tallies.are_equal());
        for round in 1..=rounds {
            self.progress.change(|shown| {
                (shown.round, shown.conflicts) = (round, open.len() as u64);
            });
            if open.is_empty() {
                break;
            }
            if round > 1 {
                if self.settle().await?.is_none() {
                    return Ok(Rounds::Cancelled);
                }
                // A migration that runs makes new ones.
                if known.is_none() && round == rounds {
                    own = self.find_own_keys(&databases_of(&open)).await?;
                }
            }
            let tries = match (round == rounds, still) {
                (true, true) => STILL_TRIES,
                (true, false) => TRIES,
                (false, _) => 1,
            };
            for _ in 0..tries {
                sleep(TRY_INTERVAL).await;
                let former = open;
                open = self.tallies(&databases_of(&former), &own).await?;
                open.retain(|tallies| !tallies.are_equal());
                for tallies in &mut open {
                    tallies.stands = still || former.iter().any(|former| tallies.is_like(former));
                }
                if open.is_empty() {
                    break;
                }
            }
        }
        let mut standing = Vec::new();
        let mut unproved = Vec::new();
        for tallies in open {
            if !tallies.lack_lasting() || tallies.has_fields() {
                unproved.push(tallies);
            } else {
                standing.extend(self.found(&tallies));
            }
        }
        match unproved.is_empty() {
            true => Ok(Rounds::Done(standing)),
            false => self.look_up(standing, unproved, &first).await,
        }
    }

    /// A database that differs, unless its numbers never stood still.
    fn found(&self, tallies: &Tallies) -> Standing {
        if tallies.stands {
            return vec![tallies.found()];
        }
        self.progress.notice(format!(
            "database {}: the numbers of keys changed all the time and are not judged; 'shakedeck ctl verify' of the running \
             migration can",
            tallies.database.to
        ));
        self.progress.change(|shown| shown.unsettled += 1);
        Vec::new()
    }

    /// Looks up the keys of databases whose numbers prove nothing, adds what is on one side only, and says what is left open.
    async fn look_up(
        &mut self,
        mut standing: Standing,
        unproved: Vec<Tallies>,
        first: &[Tallies],
    ) -> Result<Rounds, VerifyError> {
        let databases = databases_of(&unproved);
        let parts: usize = databases
            .iter()
            .map(|it| it.from.len() * self.links.nodes(Side::Source) + self.links.nodes(Side::Destination))
            .sum();
        let before = self.progress.keys();
        let mut scan = scan::Scan {
            options: &self.job.options,
            how: &self.how,
            databases: &databases,
            dir: None,
            progress: &self.progress,
            cancel: &self.cancel,
            checkpoint_seen: false,
            limit: Some(Limit { until: Instant::now() + KEYS_LIMIT, parts: parts as u32 }),
            is_cut: false,
        };
        let ended = scan.run(Pool::start(self.how.clone()), self.beginning()).await?;
        let is_cut = scan.is_cut;
        let looked_up = self.progress.keys() - before;
        self.progress.begin(before, 0);
        match ended {
            Ended::Cancelled => return Ok(Rounds::Cancelled),
            Ended::TooMany(conflicts) => {
                standing.extend(self.name(conflicts).await?);
                return Ok(Rounds::TooMany(standing));
            }
            Ended::Complete(conflicts) if !conflicts.is_empty() => {
                let Some(settled) = self.settle().await? else { return Ok(Rounds::Cancelled) };
                let Some((found, _)) = self.look_again(&conflicts, true, settled).await? else {
                    return Ok(Rounds::Cancelled);
                };
                standing.extend(found);
            }
            Ended::Complete(_) => {}
        }
        for tallies in unproved {
            if standing.iter().any(|((db, _), _)| tallies.database.from.contains(db)) {
                continue;
            }
            let Tallies { here, there, .. } = &tallies;
            let numbers = format!(
                "database {}: the numbers of keys differ ({} and {})",
                tallies.database.to,
                number(here.lasting + here.volatile),
                number(there.lasting + there.volatile)
            );
            if !is_cut {
                self.progress.notice(format!("{numbers} only by keys whose time is over"));
                continue;
            }
            let looked_up = format!(
                "{} were looked up on the other side in {}",
                format::number(looked_up),
                format::spoken_duration(KEYS_LIMIT.as_secs_f64())
            );
            let had = first.iter().find(|first| first.database == tallies.database);
            let had = had.map_or(0, |first| first.here.volatile).max(here.volatile);
            // What has expired on the destination is missing there, and nothing else.
            if tallies.lack_lasting() || there.volatile > had {
                self.progress
                    .notice(format!("{numbers}, of which only {looked_up}: --mode meta looks at all"));
                standing.extend(self.found(&tallies));
            } else {
                self.remarks.push(format!(
                    "{numbers} by keys with a time to live, which may have expired: {looked_up}, and none is missing"
                ));
            }
        }
        Ok(Rounds::Done(standing))
    }

    /// What the databases hold now. The source is asked first: what it has had meanwhile is no surplus of the destination.
    async fn tallies(&mut self, databases: &[Database], own: &OwnKeys) -> Result<Vec<Tallies>, VerifyError> {
        let mut failed = 0;
        loop {
            match self.tallies_once(databases, own).await {
                Err(error) if scan::another_try(&self.how, &error, &mut failed).await => {
                    self.links.find_again().await;
                }
                result => return result,
            }
        }
    }

    async fn tallies_once(
        &mut self,
        databases: &[Database],
        own: &OwnKeys,
    ) -> Result<Vec<Tallies>, VerifyError> {
        let from: Vec<u32> = databases.iter().flat_map(|database| database.from.clone()).collect();
        let to: Vec<u32> = databases.iter().map(|database| database.to).collect();
        let here = self.side(Side::Source, &from, own).await?;
        let there = self.side(Side::Destination, &to, own).await?;
        let sum = |tallies: &BTreeMap<u32, Tally>, dbs: &[u32]| {
            let all = dbs.iter().filter_map(|db| tallies.get(db));
            all.fold(Tally { lasting: 0, volatile: 0, fields: 0 }, |sum, tally| Tally {
                lasting: sum.lasting + tally.lasting,
                volatile: sum.volatile + tally.volatile,
                fields: sum.fields + tally.fields,
            })
        };
        Ok(databases
            .iter()
            .map(|database| Tallies {
                here: sum(&here, &database.from),
                there: sum(&there, &[database.to]),
                database: database.clone(),
                stands: false,
            })
            .collect())
    }

    async fn side(
        &mut self,
        side: Side,
        dbs: &[u32],
        own: &OwnKeys,
    ) -> Result<BTreeMap<u32, Tally>, VerifyError> {
        let mut tallies = BTreeMap::new();
        let all = self.links.numbers(side).await?;
        for &db in dbs {
            let Numbers { keys, expires, fields } = all.get(&db).copied().unwrap_or_default();
            let (ours, ours_volatile) = match own.0.get(&(side, db)) {
                Some(names) => self.links.present(side, db, names).await?,
                None => (0, 0),
            };
            let volatile = expires as i64 - ours_volatile;
            tallies.insert(db, Tally { lasting: keys as i64 - ours - volatile, volatile, fields });
        }
        Ok(tallies)
    }

    async fn find_own_keys(&mut self, databases: &[Database]) -> Result<OwnKeys, VerifyError> {
        let from = databases.iter().flat_map(|database| database.from.clone()).collect();
        let to = databases.iter().map(|database| database.to).collect();
        let (here, there) = try_join!(
            find_own_keys_of(&self.how, Side::Source, from),
            find_own_keys_of(&self.how, Side::Destination, to)
        )?;
        Ok(OwnKeys(here.into_iter().chain(there).collect()))
    }
}

async fn find_own_keys_of(
    how: &Arc<How>,
    side: Side,
    dbs: Vec<u32>,
) -> Result<Vec<((Side, u32), BTreeSet<Vec<u8>>)>, VerifyError> {
    let mut links = Links::new(how.clone());
    let mut found = Vec::new();
    for db in dbs {
        let mut failed = 0;
        let names = loop {
            match links.find(side, db, b"shakedeck:*").await {
                Err(error) if scan::another_try(how, &error, &mut failed).await => links.find_again().await,
                names => break names?,
            }
        };
        found.push(((side, db), names));
    }
    Ok(found)
}
