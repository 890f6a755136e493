//! Connections to every master of both sides, opened when they are needed, and the way of each key to the pair of masters that have
//! it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::hold::Streams;
use super::judge::{How, Judged, Pair};
use super::kinds::Kinds;
use super::link::{Link, Numbers, Server, Side, VerifyError, databases};
use super::scan;
use super::site::{Site, Sites};
use crate::config::Address;
use crate::engine::net::NetError;
use crate::resp::Reply;
use crate::verify::Mode;

/// Keys of a cluster that are read at one place: few enough for one read of their node (`look::moment`).
const CLUSTER_KEYS: usize = 20;
/// Names asked for at once.
const NAMES: usize = 5_000;

/// The connections of one worker.
pub struct Links {
    how: Arc<How>,
    source: End,
    destination: End,
    kinds: Kinds,
}

/// One side of them.
struct End {
    side: Side,
    site: Arc<Site>,
    links: Vec<Option<Link>>,
}

impl End {
    fn new(sites: &Sites) -> End {
        End { side: sites.side, site: sites.now(), links: Vec::new() }
    }

    /// The connection to a master, and what it is.
    async fn node(&mut self, index: usize) -> Result<(&mut Link, &Server), VerifyError> {
        let Some(node) = self.site.nodes.get(index) else { return Err(self.without_owner()) };
        if self.links.len() < self.site.nodes.len() {
            self.links.resize_with(self.site.nodes.len(), || None);
        }
        if let Some(link @ None) = self.links.get_mut(index) {
            *link = Some(Link::open(self.side, &node.endpoint).await?);
        }
        match self.links.get_mut(index) {
            Some(Some(link)) => Ok((link, &node.server)),
            _ => Err(without_owner(self.side, &self.site)),
        }
    }

    fn owner(&self, key: &[u8]) -> Result<usize, VerifyError> {
        self.site.owner(key).ok_or_else(|| self.without_owner())
    }

    fn without_owner(&self) -> VerifyError {
        without_owner(self.side, &self.site)
    }

    async fn find_again(&mut self, sites: &Sites) {
        // A side that cannot be asked now can be asked at the next try.
        if let Ok(site) = sites.find_again(&self.site).await {
            self.site = site;
        }
        self.links.clear();
    }
}

/// A slot that nobody serves may be served again in a moment.
fn without_owner(side: Side, site: &Site) -> VerifyError {
    let address = site.nodes.first().map(|node| node.endpoint.address.clone());
    let address = address.unwrap_or(Address::Tcp { host: String::new(), port: 0 });
    let cause = std::io::Error::other("no master of the cluster serves this slot");
    VerifyError::Net { side, error: NetError::Connect { address, cause } }
}

impl Links {
    /// Nothing is connected yet.
    pub fn new(how: Arc<How>) -> Links {
        let (source, destination) = (End::new(&how.source), End::new(&how.destination));
        Links { how, source, destination, kinds: Kinds::default() }
    }

    /// After an error that may pass: forgets the connections and asks clusters what they are now.
    pub async fn find_again(&mut self) {
        let how = self.how.clone();
        self.source.find_again(&how.source).await;
        self.destination.find_again(&how.destination).await;
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    /// Number of masters of a side.
    pub fn nodes(&self, side: Side) -> usize {
        match side {
            Side::Source => self.source.site.nodes.len(),
            Side::Destination => self.destination.site.nodes.len(),
        }
    }

    /// The address by which a master is known.
    pub fn address(&self, side: Side, index: usize) -> Option<Address> {
        let end = match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        };
        end.site.nodes.get(index).map(|node| node.endpoint.address.clone())
    }

    /// The connection to a master.
    pub async fn node(&mut self, side: Side, index: usize) -> Result<&mut Link, VerifyError> {
        Ok(self.end(side).node(index).await?.0)
    }

    async fn pair(&mut self, source: usize, destination: usize) -> Result<Pair<'_>, VerifyError> {
        let (from, source_server) = self.source.node(source).await?;
        let (to, destination_server) = self.destination.node(destination).await?;
        let (how, kinds) = (&self.how, &mut self.kinds);
        Ok(Pair { how, source: from, destination: to, source_server, destination_server, kinds })
    }

    /// The pair of masters that have this key.
    pub async fn pair_of(&mut self, key: &[u8]) -> Result<Pair<'_>, VerifyError> {
        let (source, destination) = (self.source.owner(key)?, self.destination.owner(key)?);
        self.pair(source, destination).await
    }

    /// Where each key goes: pairs of masters, and the places of their keys in the list.
    fn routes(&self, keys: &[Vec<u8>]) -> Result<BTreeMap<(usize, usize), Vec<usize>>, VerifyError> {
        let mut routes: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (place, key) in keys.iter().enumerate() {
            let pair = (self.source.owner(key)?, self.destination.owner(key)?);
            routes.entry(pair).or_default().push(place);
        }
        Ok(routes)
    }

    /// Looks at the keys of a database of the source on both sides and compares them, in the order given.
    pub async fn judge(&mut self, db: u32, keys: &[Vec<u8>], mode: Mode) -> Result<Vec<Judged>, VerifyError> {
        let mut all = vec![Judged::default(); keys.len()];
        for ((source, destination), places) in self.routes(keys)? {
            let mut pair = self.pair(source, destination).await?;
            let judged = pair.judge(db, &picked(keys, &places), mode).await?;
            put(&mut all, &places, judged);
        }
        Ok(all)
    }

    /// The same, each pair of masters at one and the same place of the stream between them; `None` for keys of which
    /// that could not be had.
    pub async fn judge_exactly(
        &mut self,
        db: u32,
        keys: &[Vec<u8>],
        mode: Mode,
        streams: &Streams,
    ) -> Result<Vec<Option<Judged>>, VerifyError> {
        let mut all = vec![None; keys.len()];
        let cluster = self.source.site.is_cluster();
        for ((source, destination), places) in self.routes(keys)? {
            let address = self.address(Side::Source, source);
            let Some(stream) = address.and_then(|address| streams.of(&address)) else { continue };
            let mut pair = self.pair(source, destination).await?;
            for places in places.chunks(if cluster { CLUSTER_KEYS } else { keys.len().max(1) }) {
                let some = picked(keys, places);
                if let Some(judged) = pair.judge_exactly(db, &some, mode, &stream, cluster).await? {
                    put(&mut all, places, judged.into_iter().map(Some));
                }
            }
        }
        Ok(all)
    }

    /// Which of these keys a side does not have in any of the databases.
    pub async fn unknown(
        &mut self,
        side: Side,
        dbs: &[u32],
        keys: &[Vec<u8>],
    ) -> Result<Vec<usize>, VerifyError> {
        let end = self.end(side);
        // A cluster wants the keys of one command in one slot.
        let together = !end.site.is_cluster();
        let mut unknown: Vec<usize> = (0..keys.len()).collect();
        for &db in dbs {
            let mut routes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for place in std::mem::take(&mut unknown) {
                let key = keys.get(place).map_or(&[][..], Vec::as_slice);
                routes.entry(end.owner(key)?).or_default().push(place);
            }
            for (node, places) in routes {
                let (link, server) = end.node(node).await?;
                let missing = unknown_to(link, server, db, &picked(keys, &places), together).await?;
                unknown.extend(missing.into_iter().filter_map(|at| places.get(at)));
            }
        }
        unknown.sort_unstable();
        Ok(unknown)
    }

    /// What is in each database of a side.
    pub async fn numbers(&mut self, side: Side) -> Result<BTreeMap<u32, Numbers>, VerifyError> {
        let mut sums: BTreeMap<u32, Numbers> = BTreeMap::new();
        for node in 0..self.nodes(side) {
            let info = self.node(side, node).await?.info("keyspace").await?;
            for (db, numbers) in databases(&info) {
                let sum = sums.entry(db).or_default();
                sum.keys += numbers.keys;
                sum.expires += numbers.expires;
                sum.fields += numbers.fields;
            }
        }
        Ok(sums)
    }

    /// How many of these keys there are in a database of a side, and how many of them have a time to live.
    pub async fn present(
        &mut self,
        side: Side,
        db: u32,
        names: &BTreeSet<Vec<u8>>,
    ) -> Result<(i64, i64), VerifyError> {
        let end = self.end(side);
        let mut routes: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
        for name in names {
            routes.entry(end.owner(name)?).or_default().push(name);
        }
        let (mut there, mut volatile) = (0, 0);
        for (node, names) in routes {
            let (link, _) = end.node(node).await?;
            link.select(db).await?;
            for part in names.chunks(NAMES) {
                part.iter().for_each(|name| link.push(&[b"PTTL", name]));
                for reply in link.flush().await? {
                    match reply {
                        Reply::Integer(-2) => {}
                        Reply::Integer(left) => {
                            there += 1;
                            volatile += i64::from(left >= 0);
                        }
                        Reply::Error(reply) => return Err(link.refused("PTTL", reply)),
                        other => return Err(link.odd("PTTL", &format!("{other:?}"))),
                    }
                }
            }
        }
        Ok((there, volatile))
    }

    /// The keys of a database of one side that match a pattern.
    pub async fn find(
        &mut self,
        side: Side,
        db: u32,
        pattern: &[u8],
    ) -> Result<BTreeSet<Vec<u8>>, VerifyError> {
        let mut found = BTreeSet::new();
        for node in 0..self.nodes(side) {
            scan::find(self.node(side, node).await?, db, pattern, &mut found).await?;
        }
        Ok(found)
    }
}

async fn unknown_to(
    link: &mut Link,
    server: &Server,
    db: u32,
    keys: &[Vec<u8>],
    together: bool,
) -> Result<Vec<usize>, VerifyError> {
    link.select(db).await?;
    if together && server.target.has_redis(3, 2) {
        let mut command: Vec<&[u8]> = vec![b"EXISTS"];
        command.extend(keys.iter().map(Vec::as_slice));
        if link.ask(&command).await? == Reply::Integer(keys.len() as i64) {
            return Ok(Vec::new());
        }
    }
    keys.iter().for_each(|key| link.push(&[b"EXISTS", key]));
    let mut unknown = Vec::new();
    for (index, reply) in link.flush().await?.into_iter().enumerate() {
        match reply {
            Reply::Integer(0) => unknown.push(index),
            Reply::Error(reply) => return Err(link.refused("EXISTS", reply)),
            _ => {}
        }
    }
    Ok(unknown)
}

fn picked<'a>(keys: &'a [Vec<u8>], places: &[usize]) -> Cow<'a, [Vec<u8>]> {
    if places.len() == keys.len() {
        return keys.into();
    }
    places.iter().filter_map(|place| keys.get(*place).cloned()).collect()
}

fn put<T>(all: &mut [T], places: &[usize], some: impl IntoIterator<Item = T>) {
    for (place, value) in places.iter().zip(some) {
        if let Some(slot) = all.get_mut(*place) {
            *slot = value;
        }
    }
}
