//! A pair of connections that judges keys: one to each side.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio::try_join;

use super::super::shared::SourceShared;
use super::link::{Link, Server, Side, VerifyError};
use super::look::{self, Ask, Moment};
use super::pieces::Ends;
use crate::config::{DbMap, Endpoint, Filter};
use crate::verify::{Clocks, Found, KeyType, Kind, Look, Mode, Verdict, compare_looks, compare_payloads};

/// Longest wait, while the stream is held, for the destination to reach the source's place.
const HOLD_LIMIT: Duration = Duration::from_secs(10);

/// What every pair needs to know.
#[derive(Debug)]
pub struct How {
    /// The source's address and user.
    pub source: Endpoint,
    /// The destination's.
    pub destination: Endpoint,
    /// What the source is.
    pub source_server: Server,
    /// What the destination is.
    pub destination_server: Server,
    /// How much of a key is compared.
    pub mode: Mode,
    /// Times may differ by this much (ms).
    pub tolerance: i64,
    /// Databases that have another number on the destination. Everywhere else databases have the source's.
    pub db_map: DbMap,
    /// Databases that are copied.
    pub filter: Filter,
}

impl How {
    /// A connection to one side.
    pub async fn open(&self, side: Side) -> Result<Link, VerifyError> {
        match side {
            Side::Source => Link::open(side, &self.source).await,
            Side::Destination => Ok(Link::open(side, &self.destination).await?.mapped(&self.db_map)),
        }
    }

    /// All databases of the source that are in the same one of the destination as this.
    pub fn together_with(&self, db: u32) -> Vec<u32> {
        self.db_map.sources_of(self.db_map.map(db), &self.filter)
    }
}

/// What was seen of one key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judged {
    /// What differs; empty = equal.
    pub found: Vec<Found>,
    /// The same number as long as both sides look the same.
    pub picture: u64,
    /// Its value cannot be read here.
    pub unreadable: bool,
}

/// One connection to each side.
pub struct Pair {
    how: Arc<How>,
    /// To the source.
    pub source: Link,
    /// To the destination.
    pub destination: Link,
}

impl Pair {
    /// Connects to both.
    pub async fn open(how: Arc<How>) -> Result<Pair, VerifyError> {
        let (source, destination) = try_join!(how.open(Side::Source), how.open(Side::Destination))?;
        Ok(Pair { how, source, destination })
    }

    async fn select(&mut self, db: u32) -> Result<(), VerifyError> {
        try_join!(self.source.select(db), self.destination.select(db)).map(drop)
    }

    /// Looks at the keys on both sides and compares them, in the order given.
    pub async fn judge(&mut self, db: u32, keys: &[Vec<u8>], mode: Mode) -> Result<Vec<Judged>, VerifyError> {
        self.select(db).await?;
        let how = self.how.clone();
        let (source, destination) = (&how.source_server, &how.destination_server);
        let clocks = |source: i64, destination: i64| Clocks { source, destination, tolerance: how.tolerance };
        if mode == Mode::Digest {
            let ((here, here_now), (there, there_now)) = try_join!(
                look::look(&mut self.source, source, keys, Ask::Digests),
                look::look(&mut self.destination, destination, keys, Ask::Digests)
            )?;
            return Ok(judge_looks(&here, &there, clocks(here_now, there_now)));
        }
        let (mut here, here_now) = look::look(&mut self.source, source, keys, Ask::Nothing).await?;
        let types = types_of(&here);
        let ((), (there, there_now)) = try_join!(
            look::add_lengths(&mut self.source, keys, &mut here),
            look::look(&mut self.destination, destination, keys, Ask::Lengths(&types))
        )?;
        let clocks = clocks(here_now, there_now);
        let mut judged = judge_looks(&here, &there, clocks);
        if mode != Mode::Full {
            return Ok(judged);
        }
        let sizes = self.sizes(keys, &here, &there).await?;
        let (here_payloads, there_payloads) = try_join!(
            look::payloads(&mut self.source, keys, &sizes),
            look::payloads(&mut self.destination, keys, &sizes)
        )?;
        for (index, judged) in judged.iter_mut().enumerate() {
            let at = |payloads: &[Option<Vec<u8>>]| payloads.get(index).cloned().flatten();
            if sizes.get(index).copied().flatten().is_some() {
                judge_payloads(judged, at(&here_payloads).as_deref(), at(&there_payloads).as_deref(), clocks);
            }
        }
        self.judge_pieces(keys, &here, &there, &sizes, clocks, &mut judged).await?;
        Ok(judged)
    }

    /// Sizes of the values to be compared whole: both sides have them, with equal types.
    async fn sizes(
        &mut self,
        keys: &[Vec<u8>],
        here: &[Look],
        there: &[Look],
    ) -> Result<Vec<Option<u64>>, VerifyError> {
        if !(self.how.source_server.dump && self.how.destination_server.dump) {
            return Ok(vec![None; keys.len()]);
        }
        let mut sizes = look::sizes(&mut self.source, &self.how.source_server, keys, here).await?;
        for (size, (here, there)) in sizes.iter_mut().zip(here.iter().zip(there)) {
            if here.kind != there.kind {
                *size = None;
            }
        }
        Ok(sizes)
    }

    /// The values that are compared piece by piece.
    async fn judge_pieces(
        &mut self,
        keys: &[Vec<u8>],
        here: &[Look],
        there: &[Look],
        sizes: &[Option<u64>],
        clocks: Clocks,
        judged: &mut [Judged],
    ) -> Result<(), VerifyError> {
        let how = self.how.clone();
        for (index, judged) in judged.iter_mut().enumerate() {
            let (Some(key), Some(look), Some(other)) = (keys.get(index), here.get(index), there.get(index))
            else {
                continue;
            };
            let open = !judged.found.iter().any(|found| found.kind == Kind::Length);
            if sizes.get(index).copied().flatten().is_some()
                || !look.exists()
                || look.kind != other.kind
                || !open
            {
                continue;
            }
            if matches!(look.kind, KeyType::Other(_)) {
                judged.unreadable = true;
                continue;
            }
            let mut ends = Ends {
                source: &mut self.source,
                destination: &mut self.destination,
                source_server: &how.source_server,
                destination_server: &how.destination_server,
                clocks,
            };
            match ends.compare(key, look).await {
                Ok(found) => judged.add(found),
                // The key became something else while its pieces were read.
                Err(error) if error.to_string().contains("WRONGTYPE") => {
                    judged.add([Found::new(Kind::Value, "changing", "changing")]);
                }
                Err(error) if error.to_string().contains("no such key") => {
                    judged.add([Found::new(Kind::Value, "changing", "changing")]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Which of these keys of the destination the source does not have.
    pub async fn unknown_to_source(&mut self, db: u32, keys: &[Vec<u8>]) -> Result<Vec<usize>, VerifyError> {
        let mut unknown: Vec<usize> = (0..keys.len()).collect();
        for db in self.how.together_with(db) {
            let left: Vec<Vec<u8>> = unknown.iter().filter_map(|index| keys.get(*index).cloned()).collect();
            let missing = self.missing_in(db, &left).await?;
            unknown = missing.into_iter().filter_map(|index| unknown.get(index).copied()).collect();
        }
        Ok(unknown)
    }

    /// Which of these keys a database of the source does not have.
    async fn missing_in(&mut self, db: u32, keys: &[Vec<u8>]) -> Result<Vec<usize>, VerifyError> {
        use crate::resp::Reply;
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        self.source.select(db).await?;
        let many = self.how.source_server.target.has_redis(3, 2);
        if many {
            let mut command: Vec<&[u8]> = vec![b"EXISTS"];
            command.extend(keys.iter().map(Vec::as_slice));
            if self.source.ask(&command).await? == Reply::Integer(keys.len() as i64) {
                return Ok(Vec::new());
            }
        }
        keys.iter().for_each(|key| self.source.push(&[b"EXISTS", key]));
        let mut unknown = Vec::new();
        for (index, reply) in self.source.flush().await?.into_iter().enumerate() {
            match reply {
                Reply::Integer(0) => unknown.push(index),
                Reply::Error(reply) => return Err(self.source.refused("EXISTS", reply)),
                _ => {}
            }
        }
        Ok(unknown)
    }

    /// Judges keys at one and the same place of the stream of writes: exact also for keys that never rest.
    ///
    /// The stream is held before it reaches the destination, the source is read in one transaction that tells its place,
    /// the stream is let go up to just there, and the destination is read. `None` when that place was not reached in
    /// time. Large values are compared in pieces afterwards, not exactly.
    pub async fn judge_exactly(
        &mut self,
        db: u32,
        keys: &[Vec<u8>],
        mode: Mode,
        stream: &SourceShared,
    ) -> Result<Option<Vec<Judged>>, VerifyError> {
        self.select(db).await?;
        let how = self.how.clone();
        let (source, destination) = (&how.source_server, &how.destination_server);
        let (mut here, _) = look::look(&mut self.source, source, keys, Ask::Nothing).await?;
        look::add_lengths(&mut self.source, keys, &mut here).await?;
        let types = types_of(&here);
        let full = mode == Mode::Full;
        let sizes = if full { self.sizes(keys, &here, &here).await? } else { vec![None; keys.len()] };

        let hold = Hold::begin(stream);
        let moment = look::moment(&mut self.source, source, keys, &types, &sizes).await?;
        let Some(Moment { looks: here, payloads: here_payloads, now, offset }) = moment else {
            return Ok(None);
        };
        if !hold.until(offset).await {
            return Ok(None);
        }
        let types = types_of(&here);
        let (there, there_now) =
            look::look(&mut self.destination, destination, keys, Ask::Lengths(&types)).await?;
        let there_payloads = look::payloads(&mut self.destination, keys, &sizes).await?;
        drop(hold);

        let clocks = Clocks { source: now, destination: there_now, tolerance: how.tolerance };
        let mut judged = judge_looks(&here, &there, clocks);
        if full {
            for (index, judged) in judged.iter_mut().enumerate() {
                let at = |payloads: &[Option<Vec<u8>>]| payloads.get(index).cloned().flatten();
                if sizes.get(index).copied().flatten().is_some() {
                    let (here, there) = (at(&here_payloads), at(&there_payloads));
                    judge_payloads(judged, here.as_deref(), there.as_deref(), clocks);
                }
            }
            self.judge_pieces(keys, &here, &there, &sizes, clocks, &mut judged).await?;
        }
        Ok(Some(judged))
    }

    /// Numbers of keys of one database on both sides, and of those that expire; exactly at one place of the stream where
    /// `stream` is given and its place is reached.
    pub async fn count(&mut self, db: u32, stream: Option<&SourceShared>) -> Result<(i64, i64), VerifyError> {
        use crate::resp::Reply;
        self.select(db).await?;
        let number = |reply: &Reply| if let Reply::Integer(number) = reply { *number } else { -1 };
        let hold = stream.map(Hold::begin);
        for command in [&[&b"MULTI"[..]][..], &[b"INFO", b"replication"], &[b"DBSIZE"], &[b"EXEC"]] {
            self.source.push(command);
        }
        let Some(Reply::Array(replies)) = self.source.flush().await?.pop() else {
            return Err(self.source.odd("DBSIZE", "no answer to EXEC"));
        };
        let place = replies.first().and_then(Reply::text).and_then(look::place_of);
        let here = replies.get(1).map_or(-1, number);
        if let (Some(hold), Some(place)) = (&hold, place) {
            hold.until(place).await;
        }
        let there = number(&self.destination.ask(&[b"DBSIZE"]).await?);
        Ok((here, there))
    }
}

impl Judged {
    fn add(&mut self, found: impl IntoIterator<Item = Found>) {
        self.found.extend(found);
        let mut hasher = DefaultHasher::new();
        self.picture.hash(&mut hasher);
        for found in &self.found {
            (found.kind, &found.part, &found.source, &found.destination).hash(&mut hasher);
        }
        self.picture = hasher.finish();
    }
}

fn types_of(looks: &[Look]) -> Vec<KeyType> {
    looks.iter().map(|look| look.kind.clone()).collect()
}

fn judge_looks(here: &[Look], there: &[Look], clocks: Clocks) -> Vec<Judged> {
    let judge = |(here, there): (&Look, &Look)| {
        let found = compare_looks(here, there, clocks);
        if found.is_empty() {
            return Judged::default();
        }
        let mut judged = Judged { picture: picture(here, there), ..Judged::default() };
        judged.add(found);
        judged
    };
    here.iter().zip(there).map(judge).collect()
}

/// Times of expiry that are computed from the time left move by a millisecond or two: they are left out.
fn picture(here: &Look, there: &Look) -> u64 {
    let mut hasher = DefaultHasher::new();
    for look in [here, there] {
        (&look.kind, look.expire_at.map(|at| at / 1_000), look.length, &look.digest).hash(&mut hasher);
    }
    hasher.finish()
}

fn judge_payloads(judged: &mut Judged, here: Option<&[u8]>, there: Option<&[u8]>, clocks: Clocks) {
    let gone = |source: &str, destination: &str| vec![Found::new(Kind::Value, source, destination)];
    let found = match (here, there) {
        (None, None) => return,
        (Some(here), Some(there)) => match compare_payloads(here, there, clocks) {
            Verdict::Equal => {
                // Lengths also count fields whose time is over; the values do not.
                judged.found.retain(|found| found.kind != Kind::Length);
                return;
            }
            Verdict::Different(found) => found,
            Verdict::Unreadable(_) => {
                judged.unreadable = true;
                return;
            }
        },
        _ if !judged.found.is_empty() => return,
        (Some(_), None) => gone("present", "gone while it was looked at"),
        (None, Some(_)) => gone("gone while it was looked at", "present"),
    };
    judged.found.retain(|found| found.kind != Kind::Length);
    judged.add(found);
}

/// Keeps the stream from being applied, up to a place; lets it go when dropped.
struct Hold<'a>(&'a SourceShared);

impl<'a> Hold<'a> {
    fn begin(shared: &'a SourceShared) -> Hold<'a> {
        shared.apply_limit.store(0, Relaxed);
        Hold(shared)
    }

    /// Lets the stream go on to this place; false when the destination did not reach it in time.
    async fn until(&self, offset: u64) -> bool {
        self.0.apply_limit.store(offset, Relaxed);
        let deadline = Instant::now() + HOLD_LIMIT;
        while self.0.offset_applied.load(Relaxed) < offset {
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(1)).await;
        }
        // Replay may have been past this place before it saw the limit.
        self.0.offset_applied.load(Relaxed) == offset
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.apply_limit.store(u64::MAX, Relaxed);
    }
}
