//! A pair of connections that judges keys: one to a master of each side, which have them.

use std::sync::Arc;

use tokio::try_join;

use super::super::shared::SourceShared;
use super::hold::{self, Hold};
use super::kinds::Kinds;
use super::link::{Link, Server, Side, VerifyError};
use super::look::{self, Ask, LARGE_BYTES, Moment, WHOLE_BYTES};
use super::picture::Picture;
use super::pieces::Ends;
use super::site::Sites;
use crate::config::DbMap;
use crate::resp::Reply;
use crate::verify::{Clocks, Found, KeyType, Kind, Look, Mode, Verdict, compare_looks, compare_payloads};

/// How often a value that is too large to be held is read again because it was written meanwhile.
const LARGE_TRIES: usize = 3;

/// What everybody who compares needs to know.
#[derive(Debug)]
pub struct How {
    /// The source's masters.
    pub source: Sites,
    /// The destination's.
    pub destination: Sites,
    /// How much of a key is compared.
    pub mode: Mode,
    /// Times may differ by this much (ms).
    pub tolerance: i64,
    /// Databases of the source that have another number on the destination.
    pub db_map: DbMap,
}

/// What was seen of one key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judged {
    /// What differs; empty = equal.
    pub found: Vec<Found>,
    /// The same as long as both sides look the same.
    pub picture: Picture,
    /// Its value cannot be read here.
    pub unreadable: bool,
    /// It was written while it was read: nothing can be said of its value.
    pub unsettled: bool,
}

/// One connection to each side.
pub struct Pair<'a> {
    /// What is compared.
    pub how: &'a How,
    /// To the source.
    pub source: &'a mut Link,
    /// To the destination.
    pub destination: &'a mut Link,
    /// What the source is.
    pub source_server: &'a Server,
    /// What the destination is.
    pub destination_server: &'a Server,
    /// What names tell of types.
    pub kinds: &'a mut Kinds,
}

impl Pair<'_> {
    /// Selects a database of the source, and the one of the destination that belongs to it.
    async fn select(&mut self, db: u32) -> Result<(), VerifyError> {
        try_join!(self.source.select(db), self.destination.select(self.how.db_map.map(db))).map(drop)
    }

    fn clocks(&self, source: i64, destination: i64) -> Clocks {
        Clocks { source, destination, tolerance: self.how.tolerance }
    }

    /// Looks at the keys on both sides and compares them, in the order given.
    pub async fn judge(&mut self, db: u32, keys: &[Vec<u8>], mode: Mode) -> Result<Vec<Judged>, VerifyError> {
        self.select(db).await?;
        let (source, destination) = (self.source_server, self.destination_server);
        if matches!(mode, Mode::Count | Mode::Digest) {
            let ask = if mode == Mode::Digest { Ask::Digests } else { Ask::Nothing };
            let ((here, here_now), (there, there_now)) = try_join!(
                look::look(self.source, source, keys, ask),
                look::look(self.destination, destination, keys, ask)
            )?;
            let clocks = self.clocks(here_now, there_now);
            let mut judged = judge_looks(&here, &there, clocks);
            self.forgive_gone_hashes(keys, &here, &there, clocks, &mut judged).await?;
            if mode == Mode::Count {
                judged.iter_mut().for_each(Judged::keep_existence);
            }
            return Ok(judged);
        }
        let (here, here_now) = self.look_at_source(keys).await?;
        let (there, there_now) =
            look::look_with_lengths(self.destination, destination, keys, &types_of(&here)).await?;
        let clocks = self.clocks(here_now, there_now);
        let mut judged = judge_looks(&here, &there, clocks);
        self.forgive_gone_hashes(keys, &here, &there, clocks, &mut judged).await?;
        let full = mode == Mode::Full;
        let sizes = match full {
            true => self.sizes(keys, &here, &there, WHOLE_BYTES).await?,
            false => vec![None; keys.len()],
        };
        let (here_payloads, there_payloads) = try_join!(
            look::payloads(self.source, keys, &sizes),
            look::payloads(self.destination, keys, &sizes)
        )?;
        for (index, judged) in judged.iter_mut().enumerate() {
            let at = |payloads: &[Option<Vec<u8>>]| payloads.get(index).cloned().flatten();
            if sizes.get(index).copied().flatten().is_some() {
                judge_payloads(judged, at(&here_payloads).as_deref(), at(&there_payloads).as_deref(), clocks);
            }
        }
        for (index, (key, judged)) in keys.iter().zip(&mut judged).enumerate() {
            if let (None, Some(look), Some(other)) =
                (sizes.get(index).copied().flatten(), here.get(index), there.get(index))
                && self.is_open(judged, look, other, full)
            {
                judged.found.retain(|found| found.kind != Kind::Length);
                self.judge_in_pieces(key, look, clocks, judged).await?;
            }
        }
        Ok(judged)
    }

    /// Type, time of expiry and length of each key there.
    async fn look_at_source(&mut self, keys: &[Vec<u8>]) -> Result<(Vec<Look>, i64), VerifyError> {
        let likely = self.kinds.guess(keys);
        let seen = look::look_with_lengths(self.source, self.source_server, keys, &likely).await?;
        keys.iter().zip(&seen.0).for_each(|(key, look)| self.kinds.learn(key, &look.kind));
        Ok(seen)
    }

    /// Sizes of the values up to `limit`, to be compared whole: both sides have them, with equal types.
    async fn sizes(
        &mut self,
        keys: &[Vec<u8>],
        here: &[Look],
        there: &[Look],
        limit: u64,
    ) -> Result<Vec<Option<u64>>, VerifyError> {
        if !(self.source_server.dump && self.destination_server.dump) {
            return Ok(vec![None; keys.len()]);
        }
        let mut sizes = look::sizes(self.source, self.source_server, keys, here, limit).await?;
        for (size, (here, there)) in sizes.iter_mut().zip(here.iter().zip(there)) {
            if here.kind != there.kind {
                *size = None;
            }
        }
        Ok(sizes)
    }

    /// Whether the value itself is left to be compared: all of them in full mode, else those of which the length proves nothing.
    fn is_open(&self, judged: &Judged, here: &Look, there: &Look, full: bool) -> bool {
        let lengths_differ = judged.found.iter().any(|found| found.kind == Kind::Length);
        here.exists()
            && here.kind == there.kind
            && if lengths_differ { here.kind == KeyType::Hash && self.fields_expire() } else { full }
    }

    /// Fields whose time is over count, in the length of their hash and in its existence, until a server has removed them, which a
    /// paused one does not.
    fn fields_expire(&self) -> bool {
        self.source_server.target.has_field_ttl() || self.destination_server.target.has_field_ttl()
    }

    /// A hash that only one side has is no difference if the time of all its fields is over there.
    async fn forgive_gone_hashes(
        &mut self,
        keys: &[Vec<u8>],
        here: &[Look],
        there: &[Look],
        clocks: Clocks,
        judged: &mut [Judged],
    ) -> Result<(), VerifyError> {
        if !self.fields_expire() {
            return Ok(());
        }
        let looks = here.iter().zip(there);
        for ((key, judged), (here, there)) in keys.iter().zip(judged).zip(looks) {
            let side = match (here.exists(), there.exists()) {
                (true, false) if here.kind == KeyType::Hash => Side::Source,
                (false, true) if there.kind == KeyType::Hash => Side::Destination,
                _ => continue,
            };
            if !judged.found.is_empty() && self.ends(clocks).is_gone_hash(side, key).await? {
                *judged = Judged::default();
            }
        }
        Ok(())
    }

    fn ends(&mut self, clocks: Clocks) -> Ends<'_> {
        Ends {
            source: self.source,
            destination: self.destination,
            source_server: self.source_server,
            destination_server: self.destination_server,
            clocks,
        }
    }

    /// One value, piece by piece.
    async fn judge_in_pieces(
        &mut self,
        key: &[u8],
        look: &Look,
        clocks: Clocks,
        judged: &mut Judged,
    ) -> Result<(), VerifyError> {
        if matches!(look.kind, KeyType::Other(_)) {
            judged.unreadable = true;
            return Ok(());
        }
        match self.ends(clocks).compare(key, look).await {
            Ok(found) => judged.add(found),
            // The key became something else while its pieces were read.
            Err(error)
                if ["WRONGTYPE", "no such key"].iter().any(|word| error.to_string().contains(word)) =>
            {
                judged.add([Found::new(Kind::Value, "changing", "changing")]);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Judges keys at one and the same place of the stream of writes: exact also for keys that never rest.
    ///
    /// The stream is held before it reaches the destination, the source is read at a known place, the stream is let go up to
    /// just there, and the destination is read. `None` when that place was not reached in time. `cluster`: the source
    /// is a node of one.
    pub async fn judge_exactly(
        &mut self,
        db: u32,
        keys: &[Vec<u8>],
        mode: Mode,
        stream: &Arc<SourceShared>,
        cluster: bool,
    ) -> Result<Option<Vec<Judged>>, VerifyError> {
        self.select(db).await?;
        let (here, _) = self.look_at_source(keys).await?;
        let full = mode == Mode::Full;
        let sizes = match full {
            true => self.sizes(keys, &here, &here, WHOLE_BYTES).await?,
            false => vec![None; keys.len()],
        };
        let types = types_of(&here);
        let Some(same) = self.at_one_place(keys, &types, &sizes, stream, cluster).await? else {
            return Ok(None);
        };
        let mut judged = same.judged;
        if mode == Mode::Count {
            judged.iter_mut().for_each(Judged::keep_existence);
        }
        let looks = same.here.iter().zip(&same.there);
        for (index, ((key, judged), (here, there))) in keys.iter().zip(&mut judged).zip(looks).enumerate() {
            if sizes.get(index).copied().flatten().is_none() && self.is_open(judged, here, there, full) {
                *judged = self.judge_large(db, key, here, stream, cluster).await?;
            }
        }
        Ok(Some(judged))
    }

    /// Reads both sides at one place; `types` and `sizes` are those of a look before. The values that have a size are compared.
    async fn at_one_place(
        &mut self,
        keys: &[Vec<u8>],
        types: &[KeyType],
        sizes: &[Option<u64>],
        stream: &Arc<SourceShared>,
        cluster: bool,
    ) -> Result<Option<OnePlace>, VerifyError> {
        let hold = Hold::begin(stream);
        let moment = look::moment(self.source, self.source_server, keys, types, sizes, cluster).await?;
        let Some(Moment { looks: here, payloads: here_payloads, now, offset }) = moment else {
            return Ok(None);
        };
        if !hold.until(offset).await {
            return Ok(None);
        }
        let types = types_of(&here);
        let (there, there_now) =
            look::look(self.destination, self.destination_server, keys, Ask::Lengths(&types)).await?;
        let there_payloads = look::payloads(self.destination, keys, sizes).await?;
        drop(hold);
        let clocks = self.clocks(now, there_now);
        let mut judged = judge_looks(&here, &there, clocks);
        self.forgive_gone_hashes(keys, &here, &there, clocks, &mut judged).await?;
        for (index, judged) in judged.iter_mut().enumerate() {
            let at = |payloads: &[Option<Vec<u8>>]| payloads.get(index).cloned().flatten();
            if sizes.get(index).copied().flatten().is_some() {
                judge_payloads(judged, at(&here_payloads).as_deref(), at(&there_payloads).as_deref(), clocks);
            }
        }
        Ok(Some(OnePlace { here, there, judged }))
    }

    /// A value over [`WHOLE_BYTES`], alone: at one place of the stream where it may be held for a moment, else in
    /// pieces, which says nothing if the source has written it meanwhile.
    async fn judge_large(
        &mut self,
        db: u32,
        key: &[u8],
        look: &Look,
        stream: &Arc<SourceShared>,
        cluster: bool,
    ) -> Result<Judged, VerifyError> {
        let keys = [key.to_vec()];
        let looks = std::slice::from_ref(look);
        let sizes = self.sizes(&keys, looks, looks, LARGE_BYTES).await?;
        if sizes.iter().any(Option::is_some) {
            let same = self.at_one_place(&keys, &types_of(looks), &sizes, stream, cluster).await?;
            if let Some(judged) = same.and_then(|same| same.judged.into_iter().next()) {
                return Ok(judged);
            }
        }
        for _ in 0..LARGE_TRIES {
            self.source.push(&[b"WATCH", key]);
            if let Some(Reply::Error(_)) = self.source.flush().await?.pop() {
                break;
            }
            // What the destination lacks of this key now is on its way up to here; more must not come.
            let place = look::place_of(&self.source.info("replication").await?);
            let is_applied = match place {
                Some(place) => hold::is_applied(stream, place).await,
                None => false,
            };
            let judged = self.judge(db, &keys, Mode::Full).await?;
            self.source.push(&[b"MULTI"]);
            self.source.push(&[b"EXEC"]);
            let is_untouched = matches!(self.source.flush().await?.pop(), Some(Reply::Array(_)));
            if is_applied && is_untouched {
                return Ok(judged.into_iter().next().unwrap_or_default());
            }
        }
        Ok(Judged { unsettled: true, ..Judged::default() })
    }
}

/// What was read at one place of the stream.
struct OnePlace {
    here: Vec<Look>,
    there: Vec<Look>,
    judged: Vec<Judged>,
}

impl Judged {
    /// Leaves only whether the key is there.
    fn keep_existence(&mut self) {
        self.found.retain(|found| matches!(found.kind, Kind::Missing | Kind::Extra));
        if self.found.is_empty() {
            *self = Judged::default();
        }
    }

    /// Takes what was found in the value itself. (What the looks tell is in the picture already.)
    fn add(&mut self, found: impl IntoIterator<Item = Found>) {
        for found in found {
            self.picture.add(&found);
            self.found.push(found);
        }
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
        Judged { found, picture: Picture::of(here, there), ..Judged::default() }
    };
    here.iter().zip(there).map(judge).collect()
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
