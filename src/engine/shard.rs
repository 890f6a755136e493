//! The masters of a source cluster: found once, remembered on disk, followed through failovers.
//!
//! ```text
//!  shards.json   for each line its name, the nodes of its shard, and its slots
//! ```
//!
//! A line is named after the address that its master had when it was found; the name stays when a replica takes over. What
//! belongs to a shard is told by node ids. A master that loses its last slot becomes a replica of another shard by itself
//! (`cluster-allow-replica-migration`), so slots and histories say nothing about that.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::discovery::{Cluster, discover};
use super::net::NetError;
use super::spool::{SpoolError, replace_file};
use crate::config::{Address, Endpoint};
use crate::topology::Node;

/// Where the master of a line is found.
#[derive(Clone)]
pub enum Site {
    /// Always there.
    Fixed(Endpoint),
    /// In a cluster.
    Shard(Shard),
}

impl Site {
    /// Where it is now. An error may pass: while a replica takes over there is no master.
    pub async fn locate(&self) -> Result<Endpoint, NetError> {
        match self {
            Site::Fixed(endpoint) => Ok(endpoint.clone()),
            Site::Shard(shard) => shard.locate().await,
        }
    }

    /// The shard, if it is one.
    pub fn shard(&self) -> Option<Shard> {
        match self {
            Site::Shard(shard) => Some(shard.clone()),
            Site::Fixed(_) => None,
        }
    }

    /// Where it was last.
    pub fn last(&self) -> Endpoint {
        match self {
            Site::Fixed(endpoint) => endpoint.clone(),
            Site::Shard(shard) => {
                let nodes = shard.shards.lock().get(shard.index).map(|known| known.nodes.clone());
                let master = nodes.and_then(|nodes| nodes.into_iter().next());
                master.map_or_else(|| shard.shards.seed.clone(), |node| shard.shards.endpoint(&node))
            }
        }
    }
}

/// One shard.
#[derive(Clone)]
pub struct Shard {
    shards: Arc<Shards>,
    index: usize,
}

/// All shards of the source, as they are remembered.
pub struct Shards {
    path: PathBuf,
    seed: Endpoint,
    known: Mutex<Vec<Known>>,
    /// Slots have moved since the run began: a line may find keys on the destination that another one has put there.
    overlap: AtomicBool,
}

/// What `shards.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    overlap: bool,
    shards: Vec<Known>,
}

/// What `shards.json` holds of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Name of its line.
    name: String,
    /// Its nodes, the master first.
    nodes: Vec<KnownNode>,
    /// Its slots, each range with both ends; none = it is no line any more.
    slots: Vec<(u16, u16)>,
}

/// How the slots of the source lie.
pub enum Lie {
    /// As the lines have them.
    AsKnown,
    /// They are moving, or the nodes do not agree: in words.
    Moving(String),
    /// Otherwise, and at rest.
    Changed(Cluster),
}

/// What a change of the slots means for the lines, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Lines that have other slots than before.
    pub moved: Vec<String>,
    /// Lines that have none any more.
    pub retired: Vec<String>,
    /// Masters that are no lines yet.
    pub new: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KnownNode {
    id: String,
    host: String,
    port: u16,
}

impl Shards {
    /// What a former process remembered; `None` = nothing.
    pub fn read(dir: &Path, seed: &Endpoint) -> Result<Option<Arc<Shards>>, SpoolError> {
        let path = dir.join("shards.json");
        let noted: Noted = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| SpoolError {
                action: "read",
                path: path.clone(),
                cause: io::Error::other(error),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(SpoolError { action: "read", path, cause }),
        };
        Ok(Some(Arc::new(Shards {
            path,
            seed: seed.clone(),
            known: Mutex::new(noted.shards),
            overlap: AtomicBool::new(noted.overlap),
        })))
    }

    /// Remembers the masters of a cluster.
    pub fn note(dir: &Path, seed: &Endpoint, cluster: &Cluster) -> Result<Arc<Shards>, SpoolError> {
        let known = cluster.masters().into_iter().map(|(master, endpoint)| Known {
            name: endpoint.address.to_string(),
            nodes: nodes_of(cluster, master),
            slots: ranges(master),
        });
        let shards = Shards {
            path: dir.join("shards.json"),
            seed: seed.clone(),
            known: Mutex::new(known.collect()),
            overlap: AtomicBool::new(false),
        };
        shards.save(&shards.lock())?;
        Ok(Arc::new(shards))
    }

    /// Forgets what was remembered in this directory.
    pub fn forget(dir: &Path) -> io::Result<()> {
        match fs::remove_file(dir.join("shards.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Name and site of each line.
    pub fn lines(self: &Arc<Self>) -> Vec<(String, Shard)> {
        let known = self.lock();
        let alive = known.iter().enumerate().filter(|(_, known)| !known.slots.is_empty());
        alive.map(|(index, known)| (known.name.clone(), Shard { shards: self.clone(), index })).collect()
    }

    /// Every node that is known, to be asked about the cluster.
    pub fn seeds(&self) -> Vec<Endpoint> {
        let known = self.lock();
        let nodes = known.iter().flat_map(|known| &known.nodes).map(|node| self.endpoint(node));
        nodes.chain([self.seed.clone()]).collect()
    }

    /// The address in the configuration.
    pub fn seed(&self) -> &Address {
        &self.seed.address
    }

    /// How the slots lie, as several nodes see it.
    pub fn compare(&self, views: Vec<Cluster>) -> Lie {
        if let Some(moving) = views.iter().find_map(|view| view.topology.moves.first()) {
            let name = |id: &str| {
                let nodes =
                    views.iter().flat_map(|view| view.topology.nodes.iter().map(move |node| (view, node)));
                let mut named = nodes.filter(|(_, node)| node.id == id);
                named
                    .next()
                    .map_or_else(|| id.to_owned(), |(view, node)| view.endpoint(node).address.to_string())
            };
            let (from, to) = (name(&moving.from), name(&moving.to));
            return Lie::Moving(format!("the source moves slots (now {} from {from} to {to})", moving.slot));
        }
        let owners = |view: &Cluster| -> Vec<Option<String>> {
            let masters: Vec<&Node> = view.topology.masters().collect();
            let id = |place: u16| masters.get(usize::from(place)).map(|node| node.id.clone());
            view.topology.slot_map().into_iter().map(|place| place.and_then(id)).collect()
        };
        if views.windows(2).any(|pair| owners(&pair[0]) != owners(&pair[1])) {
            return Lie::Moving(
                "the nodes of the source cluster do not agree yet who serves which slots".into(),
            );
        }
        let Some(cluster) = views.into_iter().next() else { return Lie::AsKnown };
        if self.change(&cluster) == Change::default() { Lie::AsKnown } else { Lie::Changed(cluster) }
    }

    /// What is otherwise in this cluster than the lines have it. A shard whose master is down has not changed.
    pub fn change(&self, cluster: &Cluster) -> Change {
        let known = self.lock();
        let mut change = Change::default();
        let mut claimed: Vec<&str> = Vec::new();
        for known in known.iter().filter(|known| !known.slots.is_empty()) {
            let Some(master) = cluster.topology.masters().find(|node| known.has(node)) else {
                change.retired.push(known.name.clone());
                continue;
            };
            claimed.push(&master.id);
            if ranges(master) != known.slots {
                change.moved.push(known.name.clone());
            }
        }
        let unclaimed =
            cluster.masters().into_iter().filter(|(node, _)| !claimed.contains(&node.id.as_str()));
        change.new = unclaimed.map(|(_, endpoint)| endpoint.address.to_string()).collect();
        change
    }

    /// The lines have what this cluster says from now on; on disk only after [`Shards::keep`]. Returns the new lines.
    pub fn adopt(self: &Arc<Self>, cluster: &Cluster) -> Vec<(String, Shard)> {
        let change = self.change(cluster);
        let mut all = self.lock();
        for known in all.iter_mut() {
            if change.retired.contains(&known.name) {
                known.slots.clear();
            } else if change.moved.contains(&known.name)
                && let Some(master) = cluster.topology.masters().find(|node| known.has(node))
            {
                known.slots = ranges(master);
                known.nodes = nodes_of(cluster, master);
            }
        }
        let mut lines = Vec::new();
        for (master, endpoint) in cluster.masters() {
            let name = endpoint.address.to_string();
            if !change.new.contains(&name) {
                continue;
            }
            let fresh = Known { name: name.clone(), nodes: nodes_of(cluster, master), slots: ranges(master) };
            // A master that had no slots for a while is a line again.
            let index = match all.iter().position(|known| known.name == name) {
                Some(index) => {
                    all[index] = fresh;
                    index
                }
                None => {
                    all.push(fresh);
                    all.len() - 1
                }
            };
            lines.push((name, Shard { shards: self.clone(), index }));
        }
        lines
    }

    /// Notes on disk that slots have moved, before anything follows from it.
    pub fn overlap(&self) -> Result<(), SpoolError> {
        let known = self.lock();
        // Nothing of the new slots: a crash before the lines are copied again must find them changed.
        match self.overlap.swap(true, Relaxed) {
            true => Ok(()),
            false => self.save(&known),
        }
    }

    /// Notes on disk what was adopted.
    pub fn keep(&self) -> Result<(), SpoolError> {
        self.save(&self.lock())
    }

    fn endpoint(&self, node: &KnownNode) -> Endpoint {
        let address = Address::Tcp { host: node.host.clone(), port: node.port };
        self.seed.at(address)
    }

    fn save(&self, known: &[Known]) -> Result<(), SpoolError> {
        let noted = Noted { overlap: self.overlap.load(Relaxed), shards: known.to_vec() };
        replace_file(&self.path, &serde_json::to_vec_pretty(&noted).unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Known {
    fn has(&self, node: &Node) -> bool {
        self.nodes.iter().any(|known| known.id == node.id)
    }
}

impl Shard {
    /// Whether this line may find keys on the destination that another one has put there.
    pub fn overlaps(&self) -> bool {
        self.shards.overlap.load(Relaxed)
    }

    /// Whether a slot belongs to this shard.
    pub fn owns(&self, slot: u16) -> bool {
        let known = self.shards.lock();
        known
            .get(self.index)
            .is_some_and(|known| known.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot)))
    }

    /// Asks the cluster where the master of this shard is.
    async fn locate(&self) -> Result<Endpoint, NetError> {
        let known = self.shards.lock().get(self.index).cloned();
        let known = known.unwrap_or(Known { name: String::new(), nodes: Vec::new(), slots: Vec::new() });
        // Its own replicas first, and the master last: that is the one that is down when it matters.
        let mut seeds: Vec<Endpoint> =
            known.nodes.iter().skip(1).map(|node| self.shards.endpoint(node)).collect();
        seeds.push(self.shards.seed.clone());
        let all = self.shards.lock().clone();
        let others = all.iter().flat_map(|shard| &shard.nodes).filter(|node| !known.nodes.contains(node));
        seeds.extend(others.chain(known.nodes.first()).map(|node| self.shards.endpoint(node)));
        let cluster = discover(&seeds).await?;
        let Some(master) = master_of(&known, &cluster) else {
            let address = known
                .nodes
                .first()
                .map_or_else(|| self.shards.seed.address.clone(), |node| self.shards.endpoint(node).address);
            let cause = io::Error::other(
                "the cluster says that it fails and no replica has taken its place yet, or that it has no slots any more",
            );
            return Err(NetError::Connect { address, cause });
        };
        let endpoint = cluster.endpoint(master);
        let nodes = nodes_of(&cluster, master);
        if nodes != known.nodes {
            let mut all = self.shards.lock();
            if let Some(known) = all.get_mut(self.index) {
                known.nodes = nodes;
            }
            if let Err(error) = self.shards.save(&all) {
                // Only a help for the next start, which has the address of the configuration too.
                tracing::warn!("{error}");
            }
        }
        Ok(endpoint)
    }
}

/// The present master of a shard. `None`: it is down and not replaced yet, or the shard has no slots any more.
fn master_of<'a>(known: &Known, cluster: &'a Cluster) -> Option<&'a Node> {
    cluster.topology.masters().find(|node| !node.failing && known.has(node))
}

fn ranges(master: &Node) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> =
        master.slots.iter().map(|range| (*range.start(), *range.end())).collect();
    ranges.sort_unstable();
    ranges
}

fn nodes_of(cluster: &Cluster, master: &Node) -> Vec<KnownNode> {
    let known = |node: &Node| match cluster.endpoint(node).address {
        Address::Tcp { host, port } => KnownNode { id: node.id.clone(), host, port },
        other => KnownNode { id: node.id.clone(), host: other.to_string(), port: 0 },
    };
    std::iter::once(master).chain(cluster.topology.replicas(&master.id)).map(known).collect()
}

/// Sees to it that not all masters of a host save their data set at once.
pub struct Turns {
    /// Most full syncs at once; `None` = one for each host.
    limit: Option<Arc<Semaphore>>,
    hosts: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl Turns {
    /// `[sync_reader] full_sync_parallel`; 0 = one for each host.
    pub fn new(limit: usize) -> Turns {
        Turns { limit: (limit > 0).then(|| Arc::new(Semaphore::new(limit))), hosts: Mutex::default() }
    }

    /// Waits for a turn, which lasts until the permit is dropped.
    pub async fn take(&self, address: &Address) -> Option<OwnedSemaphorePermit> {
        let semaphore = match (&self.limit, address) {
            (Some(limit), _) => limit.clone(),
            (None, Address::Tcp { host, .. }) => {
                let mut hosts = self.hosts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                hosts.entry(host.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
            }
            (None, Address::Unix(_) | Address::Named(_)) => return None,
        };
        // Never closed.
        semaphore.acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use std::time::Duration;

    use super::*;
    use crate::topology::Topology;

    fn cluster(text: &str) -> Cluster {
        let seed = Endpoint {
            address: Address::Tcp { host: "10.0.0.1".into(), port: 1 },
            seeds: Vec::new(),
            sentinel: None,
            address_map: Default::default(),
            username: None,
            password: None,
            tls: None,
        };
        Cluster::new(Topology::from_nodes(text).unwrap(), seed)
    }

    #[test]
    fn a_shard_is_followed_by_its_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let before = cluster(
            "a 10.0.0.1:1@2 myself,master - 0 0 1 connected 0-99\n\
             b 10.0.0.2:1@2 slave a 0 0 1 connected\n\
             c 10.0.0.3:1@2 master - 0 0 1 connected 100-16383\n",
        );
        let seed = before.endpoint(&before.topology.nodes[0]);
        let shards = Shards::note(dir.path(), &seed, &before).unwrap();
        let names: Vec<String> = shards.lines().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["10.0.0.1:1", "10.0.0.3:1"]);
        let known = Shards::read(dir.path(), &seed).unwrap().unwrap().lock()[0].clone();
        assert_eq!(known.nodes.len(), 2);
        let at = |text: &str| {
            let now = cluster(text);
            master_of(&known, &now).map(|node| now.endpoint(node).address.to_string())
        };
        // Down, and not replaced yet.
        assert_eq!(
            at("a 10.0.0.1:1@2 master,fail - 0 0 1 connected 0-99\nb 10.0.0.2:1@2 slave a 0 0 1 connected"),
            None
        );
        // Replaced by its replica.
        assert_eq!(
            at("a 10.0.0.1:1@2 master,fail - 0 0 1 connected\nb 10.0.0.2:1@2 master - 0 0 2 connected 0-99")
                .as_deref(),
            Some("10.0.0.2:1")
        );
        // Its slots are somebody else's now.
        let moved = "a 10.0.0.1:1@2 slave c 0 0 1 connected\nc 10.0.0.3:1@2 master - 0 0 1 connected 0-16383";
        assert_eq!(at(moved), None);
        let shards = Shards::read(dir.path(), &seed).unwrap().unwrap();
        let change = shards.change(&cluster(moved));
        assert_eq!((change.retired, change.moved), (vec!["10.0.0.1:1".into()], vec!["10.0.0.3:1".into()]));
    }

    #[tokio::test]
    async fn one_full_sync_at_a_time_for_each_host() {
        let at = |host: &str, port| Address::Tcp { host: host.into(), port };
        let turns = Turns::new(0);
        let first = turns.take(&at("a", 1)).await;
        assert!(turns.take(&at("b", 1)).await.is_some());
        let other = at("a", 2);
        let second = turns.take(&other);
        tokio::pin!(second);
        let now = Duration::ZERO;
        assert!(tokio::time::timeout(now, &mut second).await.is_err(), "the first is under way");
        drop(first);
        assert!(second.await.is_some());
    }
}
