//! The first round: SCAN of both sides, and workers that judge what it brings.
//!
//! A worker is a task with a pair of connections of its own: while one waits for an answer, the others work. Where to go on
//! after an interruption is the place before the oldest batch that is not judged yet.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::judge::{How, Judged, Pair};
use super::link::{Link, Side, VerifyError};
use super::saved::{Saved, from_hex, to_hex};
use super::{CONFLICT_LIMIT, Conflicts, Progress};
use crate::resp::Reply;
use crate::verify::{Mode, Options, in_sample, is_own_key};

/// Keys of one batch, about.
pub const BATCH: usize = 500;
/// Pairs of connections.
const WORKERS: usize = 3;
/// Keys of one batch where values are read.
const VALUE_BATCH: usize = 200;
/// Time between two savings of the place.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// How often a batch is tried when a connection fails, and the wait before each.
pub const TRIES: u32 = 5;

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
    extra: bool,
    db: u32,
    keys: Vec<Vec<u8>>,
}

/// What became of a batch: which keys are not equal.
struct Done {
    number: u64,
    count: usize,
    unreadable: u64,
    conflicts: Vec<((u32, Vec<u8>), u64)>,
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
        for _ in 0..WORKERS {
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
    let mut pair = None;
    loop {
        let Some(batch) = queue.lock().await.recv().await else { return };
        let mut tries = 0;
        let result = loop {
            match attempt(&how, &mut pair, &batch).await {
                Err(error) if error.is_transient() && tries < TRIES => {
                    tries += 1;
                    pair = None;
                    sleep(Duration::from_millis(300) * tries).await;
                }
                result => break result,
            }
        };
        if results.send(result).is_err() {
            return;
        }
    }
}

async fn attempt(how: &Arc<How>, pair: &mut Option<Pair>, batch: &Batch) -> Result<Done, VerifyError> {
    let pair = match pair {
        Some(pair) => pair,
        None => pair.insert(Pair::open(how.clone()).await?),
    };
    let mut done =
        Done { number: batch.number, count: batch.keys.len(), unreadable: 0, conflicts: Vec::new() };
    if batch.extra {
        for index in pair.unknown_to_source(batch.db, &batch.keys).await? {
            done.conflicts.extend(batch.keys.get(index).map(|key| ((batch.db, key.clone()), 0)));
        }
        // The picture is what later looks are compared with.
        let keys: Vec<Vec<u8>> = done.conflicts.iter().map(|((_, key), _)| key.clone()).collect();
        if !keys.is_empty() {
            let judged = pair.judge(batch.db, &keys, Mode::Meta).await?;
            done.conflicts = keep(batch.db, keys.into_iter().zip(judged));
        }
        return Ok(done);
    }
    let judged = pair.judge(batch.db, &batch.keys, how.mode).await?;
    done.unreadable = judged.iter().filter(|judged| judged.unreadable).count() as u64;
    done.conflicts = keep(batch.db, batch.keys.iter().cloned().zip(judged));
    Ok(done)
}

fn keep(db: u32, judged: impl Iterator<Item = (Vec<u8>, Judged)>) -> Vec<((u32, Vec<u8>), u64)> {
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
    /// Databases, ascending.
    pub databases: &'a [u32],
    /// Where the place is saved.
    pub dir: Option<&'a Path>,
    /// Who watches.
    pub progress: &'a Progress,
    /// True = stop.
    pub cancel: &'a watch::Receiver<bool>,
    /// Set when the destination holds a checkpoint.
    pub checkpoint_seen: bool,
}

/// What is under way.
struct UnderWay {
    place: Saved,
    next_number: u64,
    /// Batches that are not judged, oldest first: number and the place before them.
    open: VecDeque<(u64, (bool, u32, String))>,
    conflicts: Conflicts,
    saved: Instant,
    began: Instant,
    handed: u64,
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
            place: start,
            next_number: 0,
            open: VecDeque::new(),
            conflicts: restored,
            saved: Instant::now(),
            began: Instant::now(),
            handed: 0,
        };
        let mut links = [self.how.open(Side::Source).await?, self.how.open(Side::Destination).await?];
        let [source, destination] = &mut links;
        for (extra, link) in [(false, source), (true, destination)] {
            for &db in self.databases {
                if (extra, db) < (way.place.extra, way.place.db) {
                    continue;
                }
                let side = if extra { "destination" } else { "source" };
                self.progress.say(format!("reading the {side}, database {db}"));
                if (extra, db) != (way.place.extra, way.place.db) {
                    (way.place.extra, way.place.db, way.place.cursor) = (extra, db, "0".into());
                }
                loop {
                    let (next, keys) = self.scan(link, db, &way.place.cursor).await?;
                    let keys = self.mine(keys, extra);
                    for part in
                        keys.chunks(if self.how.mode == Mode::Meta { keys.len().max(1) } else { VALUE_BATCH })
                    {
                        way.hand_over(&mut pool, extra, db, part.to_vec()).await?;
                    }
                    way.place.cursor = next;
                    while let Ok(done) = pool.done.try_recv() {
                        self.take(&mut way, done?);
                    }
                    if way.conflicts.len() > CONFLICT_LIMIT {
                        return Ok(Ended::TooMany(way.conflicts.into_iter().take(1_000).collect()));
                    }
                    if way.saved.elapsed() > SAVE_INTERVAL {
                        self.save(&mut way)?;
                    }
                    if *self.cancel.borrow() {
                        self.save(&mut way)?;
                        return Ok(Ended::Cancelled);
                    }
                    self.slow_down(&way).await;
                    if way.place.cursor == "0" {
                        break;
                    }
                }
            }
        }
        while !way.open.is_empty() {
            match pool.done.recv().await {
                Some(done) => self.take(&mut way, done?),
                None => break,
            }
        }
        Ok(Ended::Complete(way.conflicts))
    }

    /// One step of SCAN, tried again when the connection fails: a cursor outlives its connection.
    async fn scan(
        &self,
        link: &mut Link,
        db: u32,
        cursor: &str,
    ) -> Result<(String, Vec<Vec<u8>>), VerifyError> {
        let mut tries = 0;
        loop {
            let step = async {
                link.select(db).await?;
                scan_step(link, cursor, b"*", BATCH * 2).await
            };
            match step.await {
                Err(error) if error.is_transient() && tries < TRIES => {
                    tries += 1;
                    sleep(Duration::from_millis(300) * tries).await;
                    if let Ok(fresh) = self.how.open(link.side()).await {
                        *link = fresh;
                    }
                }
                result => return result,
            }
        }
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
        let place = (way.place.extra, way.place.db, way.place.cursor.clone());
        let (extra, db, cursor) = way.open.front().map_or(place, |(_, place)| place.clone());
        let conflicts = way.conflicts.iter();
        Saved {
            extra,
            db,
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
    async fn hand_over(
        &mut self,
        pool: &mut Pool,
        extra: bool,
        db: u32,
        keys: Vec<Vec<u8>>,
    ) -> Result<(), VerifyError> {
        let number = self.next_number;
        self.next_number += 1;
        self.handed += keys.len() as u64;
        self.open.push_back((number, (extra, db, self.place.cursor.clone())));
        // Workers only end with the pool.
        let _ = pool.batches.send(Batch { number, extra, db, keys }).await;
        Ok(())
    }
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

/// Counts the keys of a database that match a pattern and a condition, each once.
pub async fn count(
    link: &mut Link,
    db: u32,
    pattern: &[u8],
    condition: impl Fn(&[u8]) -> bool,
) -> Result<i64, VerifyError> {
    link.select(db).await?;
    let mut cursor = "0".to_owned();
    // SCAN may show a key twice. A hash of eight bytes each is what fits into memory.
    let mut seen = std::collections::HashSet::new();
    loop {
        let (next, keys) = scan_step(link, &cursor, pattern, 5_000).await?;
        for key in keys.iter().filter(|key| condition(key)) {
            use std::hash::BuildHasher;
            seen.insert(seen.hasher().hash_one(key));
        }
        if next == "0" {
            return Ok(seen.len() as i64);
        }
        cursor = next;
    }
}
