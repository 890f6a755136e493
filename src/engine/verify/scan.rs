//! The first round: SCAN of every master of both sides, and workers that judge what it brings.
//!
//! A worker is a task with connections of its own: while one waits for an answer, the others work. Where to go on
//! after an interruption is the place before the oldest batch that is not judged yet.
//!
//! The masters of a cluster may change meanwhile. A database is done when every slot was *seen*: its owner was scanned from
//! end to end and had it before and after. What was not seen that way is scanned again, wherever it is now.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::judge::{How, Judged};
use super::link::{Link, Side, VerifyError};
use super::links::Links;
use super::picture::Picture;
use super::saved::{Saved, from_hex, to_hex};
use super::site::{Node, Site, Sites};
use super::{CONFLICT_LIMIT, Conflicts, Database, Progress};
use crate::command::slot_of;
use crate::resp::Reply;
use crate::topology::SLOTS;
use crate::verify::{Mode, Options, in_sample, is_own_key};

/// Keys of one batch, about.
pub const BATCH: usize = 500;
/// Workers for each master of the larger side, and at most.
const WORKERS: usize = 3;
const WORKER_LIMIT: usize = 8;
/// Keys of one batch where values are read.
const VALUE_BATCH: usize = 200;
/// Time between two savings of the place.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// How often something is tried again that fails for reasons that pass, with longer and longer waits before it: 4.5 s ...
const TRIES: u32 = 5;
/// ... and half a minute for a cluster, which may have to replace a node first.
const CLUSTER_TRIES: u32 = 14;
/// How often a cluster is scanned for slots that have moved meanwhile.
const PASSES: u32 = 20;

/// Waits before another try; false when there were enough. `tries` counts them.
pub async fn another_try(how: &How, error: &VerifyError, tries: &mut u32) -> bool {
    let cluster = how.source.now().is_cluster() || how.destination.now().is_cluster();
    if !error.is_transient() || *tries >= if cluster { CLUSTER_TRIES } else { TRIES } {
        return false;
    }
    *tries += 1;
    sleep(Duration::from_millis(300) * *tries).await;
    true
}

/// How the first round ended.
pub enum Ended {
    /// Everything was looked at; these are not equal.
    Complete(Conflicts),
    /// Told to stop; the place is saved.
    Cancelled,
    /// More conflicts than make sense.
    TooMany(Conflicts),
}

/// Keys for a worker.
struct Batch {
    number: u64,
    /// Of the destination: the databases of the source, of which one should have these keys.
    extra: Option<Vec<u32>>,
    /// Of the source.
    db: u32,
    keys: Vec<Vec<u8>>,
}

/// What became of a batch: which keys are not equal.
struct Done {
    number: u64,
    count: usize,
    unreadable: u64,
    conflicts: Vec<((u32, Vec<u8>), Picture)>,
}

/// The workers.
pub struct Pool {
    batches: mpsc::Sender<Batch>,
    done: mpsc::UnboundedReceiver<Result<Done, VerifyError>>,
    _workers: JoinSet<()>,
}

impl Pool {
    /// Starts them; they end with the pool.
    pub fn start(how: Arc<How>) -> Pool {
        let (batches, queue) = mpsc::channel::<Batch>(2 * WORKERS);
        let (results, done) = mpsc::unbounded_channel();
        let queue = Arc::new(Mutex::new(queue));
        let mut workers = JoinSet::new();
        let nodes = how.source.now().nodes.len().max(how.destination.now().nodes.len());
        for _ in 0..(WORKERS * nodes).min(WORKER_LIMIT) {
            workers.spawn(work(how.clone(), queue.clone(), results.clone()));
        }
        Pool { batches, done, _workers: workers }
    }
}

async fn work(
    how: Arc<How>,
    queue: Arc<Mutex<mpsc::Receiver<Batch>>>,
    results: mpsc::UnboundedSender<Result<Done, VerifyError>>,
) {
    let mut links = Links::new(how.clone());
    loop {
        let Some(batch) = queue.lock().await.recv().await else { return };
        let mut tries = 0;
        let result = loop {
            match attempt(&how, &mut links, &batch).await {
                Err(error) if another_try(&how, &error, &mut tries).await => links.find_again().await,
                result => break result,
            }
        };
        if results.send(result).is_err() {
            return;
        }
    }
}

async fn attempt(how: &How, links: &mut Links, batch: &Batch) -> Result<Done, VerifyError> {
    let mut done =
        Done { number: batch.number, count: batch.keys.len(), unreadable: 0, conflicts: Vec::new() };
    // Of keys that only have to exist on the other side no more is asked than that.
    let there = match &batch.extra {
        Some(dbs) => Some((Side::Source, dbs.clone())),
        None if how.mode == Mode::Count => Some((Side::Destination, vec![how.db_map.map(batch.db)])),
        None => None,
    };
    if let Some((side, dbs)) = there {
        let unknown = links.unknown(side, &dbs, &batch.keys).await?;
        let keys: Vec<Vec<u8>> =
            unknown.into_iter().filter_map(|index| batch.keys.get(index).cloned()).collect();
        if !keys.is_empty() {
            // The picture is what later looks are compared with.
            let mode = if how.mode == Mode::Count { Mode::Count } else { Mode::Meta };
            let judged = links.judge(batch.db, &keys, mode).await?;
            done.conflicts = keep(batch.db, keys.into_iter().zip(judged));
        }
        return Ok(done);
    }
    let judged = links.judge(batch.db, &batch.keys, how.mode).await?;
    done.unreadable = judged.iter().filter(|judged| judged.unreadable).count() as u64;
    done.conflicts = keep(batch.db, batch.keys.iter().cloned().zip(judged));
    Ok(done)
}

fn keep(db: u32, judged: impl Iterator<Item = (Vec<u8>, Judged)>) -> Vec<((u32, Vec<u8>), Picture)> {
    judged
        .filter(|(_, judged)| !judged.found.is_empty())
        .map(|(key, judged)| ((db, key), judged.picture))
        .collect()
}

/// The first round.
pub struct Scan<'a> {
    /// Sample and speed.
    pub options: &'a Options,
    /// Where to.
    pub how: &'a Arc<How>,
    /// What belongs together.
    pub databases: &'a [Database],
    /// Where the place is saved.
    pub dir: Option<&'a Path>,
    /// Who watches.
    pub progress: &'a Progress,
    /// True = stop.
    pub cancel: &'a watch::Receiver<bool>,
    /// Set when the destination holds a checkpoint.
    pub checkpoint_seen: bool,
    /// How long it may take.
    pub limit: Option<Limit>,
    /// Set when that was too short for all keys.
    pub is_cut: bool,
}

/// A time that all masters share: what one of them does not need is left for the others.
pub struct Limit {
    /// The end of it.
    pub until: Instant,
    /// How often a database of a master is still to be scanned.
    pub parts: u32,
}

impl Limit {
    /// When the next one has had its part.
    fn next(&mut self) -> Instant {
        let now = Instant::now();
        let part = self.until.saturating_duration_since(now) / self.parts.max(1);
        self.parts = self.parts.saturating_sub(1);
        now + part
    }
}

/// What is under way.
struct UnderWay {
    place: Saved,
    /// As `place.seen` says.
    seen: Vec<bool>,
    next_number: u64,
    /// Batches that are not judged, oldest first: number and the cursor before them.
    open: VecDeque<(u64, String)>,
    conflicts: Conflicts,
    saved: Instant,
    began: Instant,
    handed: u64,
}

/// How the scan of one master ended.
enum Scanned {
    /// Every key that it had all the time was seen.
    Whole,
    /// It does not answer any more.
    Lost(VerifyError),
    /// The first round is over.
    Ended(Ended),
}

impl Scan<'_> {
    /// Scans from `start` to the end.
    pub async fn run(&mut self, mut pool: Pool, start: Saved) -> Result<Ended, VerifyError> {
        let restored = start
            .conflicts
            .iter()
            .filter_map(|(db, key, picture)| Some(((*db, from_hex(key)?), *picture)))
            .collect();
        let mut way = UnderWay {
            seen: slots_in(&start.seen),
            place: start,
            next_number: 0,
            open: VecDeque::new(),
            conflicts: restored,
            saved: Instant::now(),
            began: Instant::now(),
            handed: 0,
        };
        let databases = self.databases;
        let mut passes: Vec<(bool, u32, &Database)> = Vec::new();
        for database in databases {
            passes.extend(database.from.iter().map(|db| (false, *db, database)));
            passes.extend(database.from.first().map(|db| (true, *db, database)));
        }
        passes.sort_by_key(|(extra, db, _)| (*extra, *db));
        for (extra, db, database) in passes {
            if (extra, db) < (way.place.extra, way.place.db) {
                continue;
            }
            if (extra, db) != (way.place.extra, way.place.db) {
                (way.place.extra, way.place.db, way.place.cursor) = (extra, db, "0".into());
                (way.place.node, way.place.seen) = (String::new(), Vec::new());
                way.seen = slots_in(&[]);
            }
            if let Some(ended) = self.run_database(&mut pool, &mut way, database).await? {
                return Ok(ended);
            }
        }
        Ok(Ended::Complete(way.conflicts))
    }

    /// One database of one side, all slots of it; an ending if that is the end of everything.
    async fn run_database(
        &mut self,
        pool: &mut Pool,
        way: &mut UnderWay,
        database: &Database,
    ) -> Result<Option<Ended>, VerifyError> {
        let how = self.how;
        let sites = if way.place.extra { &how.destination } else { &how.source };
        let mut tries = 0;
        for pass in 0..PASSES {
            // Time for what is moving.
            sleep(Duration::from_millis(200) * pass).await;
            let mut site = sites.now();
            for index in order(&site, &way.place.node) {
                let Some(node) = site.nodes.get(index) else { continue };
                let wanted: Vec<bool> = (0..SLOTS)
                    .zip(&way.seen)
                    .map(|(slot, seen)| !seen && site.owner_of_slot(slot) == Some(index))
                    .collect();
                if !wanted.contains(&true) {
                    continue;
                }
                if node.server.run_id != way.place.node {
                    (way.place.node, way.place.cursor) = (node.server.run_id.clone(), "0".into());
                }
                let before = site.clone();
                match self.run_node(pool, way, database, &before, index, &wanted).await? {
                    Scanned::Ended(ended) => return Ok(Some(ended)),
                    Scanned::Whole => {
                        tries = 0;
                        site = self.ask_again(sites, &before).await?;
                    }
                    Scanned::Lost(error) => {
                        if !another_try(how, &error, &mut tries).await {
                            return Err(error);
                        }
                        site = self.ask_again(sites, &before).await?;
                        way.place.cursor = "0".into();
                        break;
                    }
                }
                let stays = |slot: u16| {
                    let owner = site.owner_of_slot(slot).and_then(|owner| site.nodes.get(owner));
                    owner.is_some_and(|owner| owner.server.run_id == node_id(&before, index))
                };
                for (slot, (seen, wanted)) in (0..SLOTS).zip(way.seen.iter_mut().zip(wanted)) {
                    *seen |= wanted && stays(slot);
                }
                way.place.seen = ranges_of(&way.seen);
                if !Arc::ptr_eq(&site, &before) && nodes_differ(&site, &before) {
                    // The list of masters is another one now.
                    break;
                }
            }
            // Slots that nobody serves hold nothing.
            if (0..SLOTS).zip(&way.seen).all(|(slot, seen)| *seen || site.owner_of_slot(slot).is_none()) {
                return Ok(None);
            }
        }
        Err(VerifyError::Options(format!(
            "{}: slots kept moving while it was read: verify once the resharding is over",
            sites.side
        )))
    }

    /// The side as it is now.
    async fn ask_again(&self, sites: &Sites, known: &Arc<Site>) -> Result<Arc<Site>, VerifyError> {
        let mut tries = 0;
        loop {
            match sites.find_again(known).await {
                Err(error) if another_try(self.how, &error, &mut tries).await => {}
                result => return result,
            }
        }
    }

    /// The keys of one master that lie in the slots wanted.
    async fn run_node(
        &mut self,
        pool: &mut Pool,
        way: &mut UnderWay,
        database: &Database,
        site: &Site,
        index: usize,
        wanted: &[bool],
    ) -> Result<Scanned, VerifyError> {
        let (extra, db) = (way.place.extra, way.place.db);
        let Some(node) = site.nodes.get(index) else { return Ok(Scanned::Whole) };
        let (side, db_there) = if extra { (Side::Destination, database.to) } else { (Side::Source, db) };
        let whose = if site.is_cluster() { format!(" of {}", node.endpoint.address) } else { String::new() };
        self.progress.say(format!("reading the {side}, database {db_there}{whose}"));
        let all = wanted.iter().all(|wanted| *wanted);
        let until = self.limit.as_mut().map(Limit::next);
        let mut link = None;
        loop {
            let mut tries = 0;
            // A cursor outlives its connection.
            let (next, keys) = loop {
                let step = scan_step_at(&mut link, side, node, db_there, &way.place.cursor);
                match step.await {
                    Ok(step) => break step,
                    Err(error) => {
                        link = None;
                        // What a cluster's master does not answer, its replica may soon.
                        let enough = site.is_cluster() && tries >= TRIES;
                        if !enough && another_try(self.how, &error, &mut tries).await {
                            continue;
                        }
                        return match site.is_cluster() && error.is_transient() {
                            true => Ok(Scanned::Lost(error)),
                            false => Err(error),
                        };
                    }
                }
            };
            let mut keys = self.mine(keys, extra);
            if !all {
                keys.retain(|key| wanted.get(usize::from(slot_of(key))) == Some(&true));
            }
            let is_value = matches!(self.how.mode, Mode::Digest | Mode::Full);
            for part in keys.chunks(if is_value { VALUE_BATCH } else { keys.len().max(1) }) {
                let extra = extra.then(|| database.from.clone());
                way.hand_over(pool, extra, db, part.to_vec()).await;
            }
            way.place.cursor = next;
            while let Ok(done) = pool.done.try_recv() {
                self.take(way, done?);
            }
            if way.conflicts.len() > CONFLICT_LIMIT {
                let some = std::mem::take(&mut way.conflicts).into_iter().take(1_000);
                return Ok(Scanned::Ended(Ended::TooMany(some.collect())));
            }
            if way.saved.elapsed() > SAVE_INTERVAL {
                self.save(way)?;
            }
            if *self.cancel.borrow() {
                self.save(way)?;
                return Ok(Scanned::Ended(Ended::Cancelled));
            }
            self.slow_down(way).await;
            if way.place.cursor == "0" {
                break;
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                self.is_cut = true;
                break;
            }
        }
        // So that what is seen never depends on open batches.
        while !way.open.is_empty() {
            match pool.done.recv().await {
                Some(done) => self.take(way, done?),
                None => break,
            }
        }
        Ok(Scanned::Whole)
    }

    /// Leaves out what is not compared.
    fn mine(&mut self, mut keys: Vec<Vec<u8>>, extra: bool) -> Vec<Vec<u8>> {
        let sample = self.options.sample;
        let mut checkpoint = false;
        keys.retain(|key| {
            checkpoint |= extra && key.starts_with(b"shakedeck:checkpoint:");
            !is_own_key(key) && in_sample(key, sample)
        });
        self.checkpoint_seen |= checkpoint;
        keys
    }

    fn take(&self, way: &mut UnderWay, done: Done) {
        way.open.retain(|(number, _)| *number != done.number);
        way.conflicts.extend(done.conflicts);
        self.progress.add(done.count as u64);
        let conflicts = way.conflicts.len() as u64;
        self.progress.change(|shown| {
            shown.conflicts = conflicts;
            shown.unreadable += done.unreadable;
        });
    }

    fn save(&self, way: &mut UnderWay) -> Result<(), VerifyError> {
        way.saved = Instant::now();
        let Some(dir) = self.dir else { return Ok(()) };
        let cursor = way.open.front().map_or(&way.place.cursor, |(_, cursor)| cursor).clone();
        let conflicts = way.conflicts.iter();
        Saved {
            cursor,
            keys: self.progress.keys(),
            conflicts: conflicts.map(|((db, key), picture)| (*db, to_hex(key), *picture)).collect(),
            ..way.place.clone()
        }
        .store(dir)
    }

    async fn slow_down(&self, way: &UnderWay) {
        let Some(rate) = self.options.rate.filter(|rate| *rate > 0) else { return };
        let due = Duration::from_secs_f64(way.handed as f64 / rate as f64);
        let ahead = due.saturating_sub(way.began.elapsed());
        if !ahead.is_zero() {
            // In steps, so that a wish to stop is seen.
            sleep(ahead.min(Duration::from_secs(1))).await;
        }
    }
}

impl UnderWay {
    async fn hand_over(&mut self, pool: &mut Pool, extra: Option<Vec<u32>>, db: u32, keys: Vec<Vec<u8>>) {
        let number = self.next_number;
        self.next_number += 1;
        self.handed += keys.len() as u64;
        self.open.push_back((number, self.place.cursor.clone()));
        // Workers only end with the pool.
        let _ = pool.batches.send(Batch { number, extra, db, keys }).await;
    }
}

/// The masters, the one that was interrupted first.
fn order(site: &Site, first: &str) -> Vec<usize> {
    let mut order: Vec<usize> = (0..site.nodes.len()).collect();
    order.sort_by_key(|index| node_id(site, *index) != first);
    order
}

fn node_id(site: &Site, index: usize) -> &str {
    site.nodes.get(index).map_or("", |node| &node.server.run_id)
}

fn nodes_differ(one: &Site, other: &Site) -> bool {
    one.run_ids() != other.run_ids()
}

fn slots_in(ranges: &[(u16, u16)]) -> Vec<bool> {
    (0..SLOTS).map(|slot| ranges.iter().any(|(first, last)| (*first..=*last).contains(&slot))).collect()
}

fn ranges_of(slots: &[bool]) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for (slot, _) in (0..SLOTS).zip(slots).filter(|(_, is)| **is) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == slot => *last = slot,
            _ => ranges.push((slot, slot)),
        }
    }
    ranges
}

async fn scan_step_at(
    link: &mut Option<Link>,
    side: Side,
    node: &Node,
    db: u32,
    cursor: &str,
) -> Result<(String, Vec<Vec<u8>>), VerifyError> {
    let link = match link {
        Some(link) => link,
        None => link.insert(Link::open(side, &node.endpoint).await?),
    };
    link.select(db).await?;
    scan_step(link, cursor, b"*", BATCH * 2).await
}

async fn scan_step(
    link: &mut Link,
    cursor: &str,
    pattern: &[u8],
    count: usize,
) -> Result<(String, Vec<Vec<u8>>), VerifyError> {
    let count = count.to_string();
    let mut command: Vec<&[u8]> = vec![b"SCAN", cursor.as_bytes(), b"COUNT", count.as_bytes()];
    if pattern != b"*" {
        command.extend([&b"MATCH"[..], pattern]);
    }
    let reply = link.ask(&command).await?;
    let Reply::Array(parts) = &reply else { return Err(link.odd("SCAN", &format!("{reply:?}"))) };
    let (Some(next), Some(Reply::Array(keys))) = (parts.first().and_then(Reply::text), parts.get(1)) else {
        return Err(link.odd("SCAN", "another shape"));
    };
    let bytes = |key: &Reply| if let Reply::Bulk(key) = key { Some(key.clone()) } else { None };
    Ok((next.to_owned(), keys.iter().filter_map(bytes).collect()))
}

/// Adds the keys of a database that match a pattern.
pub async fn find(
    link: &mut Link,
    db: u32,
    pattern: &[u8],
    found: &mut BTreeSet<Vec<u8>>,
) -> Result<(), VerifyError> {
    link.select(db).await?;
    let mut cursor = "0".to_owned();
    loop {
        let (next, keys) = scan_step(link, &cursor, pattern, 5_000).await?;
        found.extend(keys);
        if next == "0" {
            return Ok(());
        }
        cursor = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_slots_read_back() {
        let ranges = [(0, 0), (2, 99), (16_000, 16_383)];
        assert_eq!(ranges_of(&slots_in(&ranges)), ranges);
        assert_eq!(ranges_of(&slots_in(&[])), []);
    }
}
