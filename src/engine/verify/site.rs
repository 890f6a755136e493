//! One side of a comparison: a server, or the masters of a cluster and which of them has which slot.
//!
//! The masters may change while it is compared. Whoever meets a key that is not where it should be asks for the side as it is
//! now ([`Sites::find_again`]) and tries again.

use std::sync::{Arc, Mutex};

use super::link::{Link, Server, Side, VerifyError};
use crate::command::slot_of;
use crate::config::Endpoint;
use crate::engine::discovery::discover;
use crate::engine::net::NetError;
use crate::topology::SLOTS;
use crate::verify::Mode;

/// Where a side is found.
#[derive(Debug, Clone)]
pub struct Place {
    /// The server, or nodes of the cluster of which one is enough; the first is the configured one.
    pub seeds: Vec<Endpoint>,
    /// It is a cluster.
    pub cluster: bool,
}

impl Place {
    /// What a configuration names.
    pub fn new(endpoint: &Endpoint, cluster: bool) -> Place {
        Place { seeds: vec![endpoint.clone()], cluster }
    }

    /// Its masters now.
    pub async fn masters(&self) -> Result<Vec<Endpoint>, NetError> {
        if !self.cluster {
            return Ok(self.seeds.first().cloned().into_iter().collect());
        }
        Ok(discover(&self.seeds).await?.masters().into_iter().map(|(_, endpoint)| endpoint).collect())
    }
}

/// One side as it was when it was asked.
#[derive(Debug)]
pub struct Site {
    /// Its masters; a cluster's in the order of their first slot.
    pub nodes: Vec<Node>,
    /// Which of them has a slot; `None` = it is no cluster.
    owners: Option<Vec<Option<u16>>>,
}

/// A master.
#[derive(Debug)]
pub struct Node {
    /// How to reach it.
    pub endpoint: Endpoint,
    /// What it is.
    pub server: Server,
}

impl Site {
    /// Asks for the masters, and each of them what it can do.
    async fn find(side: Side, seeds: &[Endpoint], cluster: bool, mode: Mode) -> Result<Site, VerifyError> {
        let mut endpoints = Vec::new();
        let mut owners = None;
        if cluster {
            let found = discover(seeds).await.map_err(|error| VerifyError::Net { side, error })?;
            let mut map = vec![None; usize::from(SLOTS)];
            for (place, (node, endpoint)) in (0..).zip(found.masters()) {
                for slot in node.slots.iter().cloned().flatten() {
                    if let Some(owner) = map.get_mut(usize::from(slot)) {
                        *owner = Some(place);
                    }
                }
                endpoints.push(endpoint);
            }
            owners = Some(map);
        } else {
            endpoints.extend(seeds.first().cloned());
        }
        let mut nodes = Vec::new();
        for endpoint in endpoints {
            let mut link = Link::open(side, &endpoint).await?;
            let server = Server::look(&mut link, &endpoint, mode, cluster).await?;
            nodes.push(Node { endpoint, server });
        }
        if nodes.is_empty() {
            return Err(VerifyError::Options(format!("{side}: no master of this cluster has slots")));
        }
        Ok(Site { nodes, owners })
    }

    /// True where keys are spread over slots.
    pub fn is_cluster(&self) -> bool {
        self.owners.is_some()
    }

    /// The master that has this slot; a server that is no cluster has all of them.
    pub fn owner_of_slot(&self, slot: u16) -> Option<usize> {
        match &self.owners {
            None => Some(0),
            Some(owners) => owners.get(usize::from(slot)).copied().flatten().map(usize::from),
        }
    }

    /// The master that has this key.
    pub fn owner(&self, key: &[u8]) -> Option<usize> {
        if self.is_cluster() { self.owner_of_slot(slot_of(key)) } else { Some(0) }
    }

    /// Its processes: as long as they are the same, their SCAN cursors mean the same.
    pub fn run_ids(&self) -> String {
        self.nodes.iter().map(|node| node.server.run_id.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Numbers of keys of a database, added up.
    pub fn keys(&self, db: u32) -> u64 {
        self.nodes.iter().map(|node| node.server.databases.get(&db).map_or(0, |numbers| numbers.keys)).sum()
    }
}

/// A side through all its changes.
#[derive(Debug)]
pub struct Sites {
    /// Which one.
    pub side: Side,
    place: Place,
    mode: Mode,
    now: Mutex<Arc<Site>>,
}

impl Sites {
    /// Asks for it the first time.
    pub async fn find(side: Side, place: &Place, mode: Mode) -> Result<Sites, VerifyError> {
        let site = Site::find(side, &place.seeds, place.cluster, mode).await?;
        Ok(Sites { side, place: place.clone(), mode, now: Mutex::new(Arc::new(site)) })
    }

    /// As it was found last.
    pub fn now(&self) -> Arc<Site> {
        self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Asks again, unless somebody has since `known` was found. A side that is no cluster stays what it is.
    pub async fn find_again(&self, known: &Arc<Site>) -> Result<Arc<Site>, VerifyError> {
        let now = self.now();
        if !self.place.cluster || !Arc::ptr_eq(&now, known) {
            return Ok(now);
        }
        let mut seeds = self.place.seeds.clone();
        seeds.extend(now.nodes.iter().map(|node| node.endpoint.clone()));
        let found = Arc::new(Site::find(self.side, &seeds, true, self.mode).await?);
        *self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = found.clone();
        Ok(found)
    }
}
