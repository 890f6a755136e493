//! The masters of a source cluster: found once, remembered on disk, followed through failovers.
//!
//! ```text
//!  shards.json   for each line its name, the nodes of its shard, and its slots
//! ```
//!
//! A line copies what concerns the slots that it owns, and nothing else: each slot is told of by one stream at a time. That is decided here
//! and not by the cluster from one moment to the next; `reshape` says how a slot goes from one line to another.
//!
//! A line is named after the address that its master had when it was found; the name stays when a replica takes over. What
//! belongs to a shard is told by node ids. A master that loses its last slot becomes a replica of another shard by itself
//! (`cluster-allow-replica-migration`), so slots and histories say nothing about that.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use super::discovery::{Cluster, discover};
use super::net::NetError;
use super::spool::{SpoolError, replace_file};
use crate::config::{Address, Endpoint};
use crate::topology::{Node, SLOTS};

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
    /// Grows when a line has other slots than before.
    version: AtomicU64,
    /// Keys and commands that lines have left out because their slot is another line's.
    left_out: AtomicU64,
    /// So many of them came before the last look at the cluster that found it at rest and as the lines have it.
    explained: AtomicU64,
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
    /// Its slots, each range with both ends; none, and none lost = it is no line any more.
    slots: Vec<(u16, u16)>,
    /// Slots that it had, whose keys it still has to remove from the destination.
    #[serde(default)]
    lost: Vec<(u16, u16)>,
    /// Those of its slots that count only behind its full sync of this number: the next one brings them.
    #[serde(default)]
    gained: Option<(u64, Vec<(u16, u16)>)>,
    /// Its stream says that keys of its slots are gone, which it tells when it has lost them.
    #[serde(default)]
    trimmed: bool,
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
        Ok(Some(Arc::new(Shards::new(path, seed, noted.shards, noted.overlap))))
    }

    fn new(path: PathBuf, seed: &Endpoint, known: Vec<Known>, overlap: bool) -> Shards {
        Shards {
            path,
            seed: seed.clone(),
            known: Mutex::new(known),
            overlap: AtomicBool::new(overlap),
            version: AtomicU64::new(1),
            left_out: AtomicU64::new(0),
            // Nobody has looked yet.
            explained: AtomicU64::new(u64::MAX),
        }
    }

    /// Remembers the masters of a cluster.
    pub fn note(dir: &Path, seed: &Endpoint, cluster: &Cluster) -> Result<Arc<Shards>, SpoolError> {
        let known = cluster.masters().into_iter().map(|(master, endpoint)| {
            Known::new(endpoint.address.to_string(), nodes_of(cluster, master), ranges(master))
        });
        let shards = Shards::new(dir.join("shards.json"), seed, known.collect(), false);
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
        let alive = known.iter().enumerate().filter(|(_, known)| !known.is_over());
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
        // Slots do not vanish: they have another owner, or they are where they were. Whoever leaves some out does not know, and what a line
        // has must not be taken from it, nor from the destination, on such a word.
        if let Some((view, count)) = views.iter().find_map(|view| Some((view, self.vanished(view)?))) {
            return Lie::Moving(format!(
                "{} says that no master serves {count} slots of the source: it has lost its cluster, or slots are taken from all masters \
                 (look at CLUSTER NODES there)",
                view.asked().address
            ));
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

    /// How many slots of the lines are served by nobody; `None` = none.
    fn vanished(&self, view: &Cluster) -> Option<usize> {
        let served = view.topology.slot_map();
        let known = self.lock();
        let ours = known.iter().flat_map(|known| set(&known.slots));
        let count = ours.filter(|slot| served.get(usize::from(*slot)).is_none_or(Option::is_none)).count();
        (count > 0).then_some(count)
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

    /// Takes from every line the slots that it does not have in this cluster, on disk too. Their keys are removed from the
    /// destination by the line that has lost them ([`Shard::lost`]).
    pub fn release(&self, cluster: &Cluster) -> Result<(), SpoolError> {
        let mut all = self.lock();
        let mut changed = false;
        for known in all.iter_mut() {
            let master = cluster.topology.masters().find(|node| known.has(node));
            let now = set(&master.map(ranges).unwrap_or_default());
            let (kept, lost): (BTreeSet<u16>, BTreeSet<u16>) =
                set(&known.slots).into_iter().partition(|slot| now.contains(slot));
            if lost.is_empty() {
                continue;
            }
            changed = true;
            known.slots = ranges_of(&kept);
            known.lost = ranges_of(&lost.union(&set(&known.lost)).copied().collect());
            known.trimmed = false;
        }
        if changed {
            self.save(&all)?;
            self.version.fetch_add(1, SeqCst);
        }
        Ok(())
    }

    /// Lines that still have to remove what they have lost.
    pub fn releasing(&self) -> Vec<String> {
        let known = self.lock();
        known.iter().filter(|known| !known.lost.is_empty()).map(|known| known.name.clone()).collect()
    }

    /// This line has nothing on the destination that it could remove.
    pub fn has_released(&self, name: &str) -> Result<(), SpoolError> {
        let mut all = self.lock();
        all.iter_mut().filter(|known| known.name == name).for_each(|known| known.lost.clear());
        self.save(&all)
    }

    /// The line has no slots any more, and nothing to remove.
    pub fn is_over(&self, name: &str) -> bool {
        self.lock().iter().any(|known| known.name == name && known.is_over())
    }

    /// The lines have what this cluster says from now on; on disk only after [`Shards::keep`]. To be called when no line has slots left
    /// that it has lost. What a line gains counts behind its present full sync (`generation`). Returns the new lines.
    pub fn adopt(
        self: &Arc<Self>,
        cluster: &Cluster,
        generation: impl Fn(&str) -> u64,
    ) -> Vec<(String, Shard)> {
        let change = self.change(cluster);
        let mut all = self.lock();
        for known in all.iter_mut().filter(|known| change.moved.contains(&known.name)) {
            let Some(master) = cluster.topology.masters().find(|node| known.has(node)) else { continue };
            let before = set(&known.slots);
            let gained: BTreeSet<u16> = set(&ranges(master)).difference(&before).copied().collect();
            known.slots = ranges(master);
            known.nodes = nodes_of(cluster, master);
            known.gain(generation(&known.name), gained);
        }
        let mut lines = Vec::new();
        for (master, endpoint) in cluster.masters() {
            let name = endpoint.address.to_string();
            if !change.new.contains(&name) {
                continue;
            }
            let mut fresh = Known::new(name.clone(), nodes_of(cluster, master), ranges(master));
            // A master that had no slots for a while is a line again, with what it has received in its spool.
            fresh.gain(generation(&name), set(&fresh.slots));
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
        self.version.fetch_add(1, SeqCst);
        lines
    }

    /// Lines whose stream says that keys of theirs are gone, although the cluster says that they have not lost them: the slots
    /// have gone and come back between two looks.
    pub fn take_trimmed(&self) -> Vec<String> {
        let mut known = self.lock();
        let name = |known: &mut Known| std::mem::take(&mut known.trimmed).then(|| known.name.clone());
        known.iter_mut().filter_map(name).collect()
    }

    /// How many keys and commands were left out so far; to be asked before a look at the cluster.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(SeqCst)
    }

    /// A look that began at so many, and has asked every master, found the cluster at rest and as the lines have it.
    pub fn explain(&self, left_out: u64) {
        self.explained.store(left_out, SeqCst);
    }

    /// Nothing was left out since that could be the beginning of a change that is not seen yet. A master takes writes to a slot
    /// that it owns or imports only, and what it says of itself in a look that begins behind such a write tells of it.
    pub fn is_quiet(&self) -> bool {
        self.explained.load(SeqCst) == self.left_out()
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

    /// Notes on disk what was adopted: every full sync has begun that was waited for.
    pub fn keep(&self) -> Result<(), SpoolError> {
        let mut known = self.lock();
        known.iter_mut().for_each(|known| known.gained = None);
        self.save(&known)
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
    fn new(name: String, nodes: Vec<KnownNode>, slots: Vec<(u16, u16)>) -> Known {
        Known { name, nodes, slots, lost: Vec::new(), gained: None, trimmed: false }
    }

    fn is_over(&self) -> bool {
        self.slots.is_empty() && self.lost.is_empty()
    }

    /// These of its slots count only behind a full sync; so do those of a former change that has not begun yet.
    fn gain(&mut self, after: u64, slots: BTreeSet<u16>) {
        if slots.is_empty() {
            return;
        }
        let before = self.gained.take().filter(|(former, _)| after <= *former);
        let before = before.map(|(_, slots)| set(&slots)).unwrap_or_default();
        self.gained = Some((after, ranges_of(&slots.union(&before).copied().collect())));
    }

    fn has(&self, node: &Node) -> bool {
        self.nodes.iter().any(|known| known.id == node.id)
    }
}

impl Shard {
    /// Whether this line may find keys on the destination that another one has put there.
    pub fn overlaps(&self) -> bool {
        self.shards.overlap.load(Relaxed)
    }

    /// Grows when [`Shard::slots`] or [`Shard::lost`] may have changed.
    pub fn version(&self) -> u64 {
        self.shards.version.load(SeqCst)
    }

    /// For each slot whether the line copies what concerns it, in its full sync of this number and the stream behind that.
    pub fn slots(&self, generation: u64) -> Vec<bool> {
        let mut own = vec![false; usize::from(SLOTS)];
        if let Some(known) = self.shards.lock().get(self.index) {
            let not_yet = known.gained.as_ref().filter(|(after, _)| generation <= *after);
            let not_yet = not_yet.map(|(_, slots)| set(slots)).unwrap_or_default();
            for slot in set(&known.slots).difference(&not_yet) {
                own[usize::from(*slot)] = true;
            }
        }
        own
    }

    /// Slots that the line has lost, whose keys it has to remove from the destination before another line may bring them.
    pub fn lost(&self) -> BTreeSet<u16> {
        self.shards.lock().get(self.index).map(|known| set(&known.lost)).unwrap_or_default()
    }

    /// Whether it waits for the full sync behind this one, which brings what it has gained.
    pub fn awaits_next(&self, generation: u64) -> bool {
        let known = self.shards.lock();
        let gained = known.get(self.index).and_then(|known| known.gained.as_ref());
        gained.is_some_and(|(after, _)| generation <= *after)
    }

    /// It has removed the keys of these.
    pub fn released(&self, slots: &BTreeSet<u16>) -> Result<(), SpoolError> {
        let mut all = self.shards.lock();
        if let Some(known) = all.get_mut(self.index) {
            known.lost = ranges_of(&set(&known.lost).difference(slots).copied().collect());
        }
        self.shards.version.fetch_add(1, SeqCst);
        self.shards.save(&all)
    }

    /// Something was left out because its slot is not this line's.
    pub fn left_out(&self) {
        self.shards.left_out.fetch_add(1, SeqCst);
    }

    /// Its stream says that keys of these slots are gone without a word for each.
    pub fn trimmed(&self, slots: &BTreeSet<u16>) {
        let mut known = self.shards.lock();
        let Some(own) = known.get_mut(self.index).filter(|known| !set(&known.slots).is_disjoint(slots))
        else {
            return;
        };
        own.trimmed = true;
        self.left_out();
        if let Err(error) = self.shards.save(&known) {
            // It counts in this process; behind a crash only where the slots have come back unnoticed.
            tracing::warn!("{error}");
        }
    }

    /// Asks the cluster where the master of this shard is.
    async fn locate(&self) -> Result<Endpoint, NetError> {
        let known = self.shards.lock().get(self.index).cloned();
        let known = known.unwrap_or(Known::new(String::new(), Vec::new(), Vec::new()));
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
            let found = "the cluster says that this one fails, or has no slots any more, and names no other in its place";
            return Err(NetError::NoMaster { address, found: found.into() });
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
    ranges_of(&master.slots.iter().cloned().flatten().filter(|slot| *slot < SLOTS).collect())
}

/// The slots of some ranges.
fn set(ranges: &[(u16, u16)]) -> BTreeSet<u16> {
    ranges.iter().flat_map(|(first, last)| *first..=*last).filter(|slot| *slot < SLOTS).collect()
}

/// The ranges of some slots.
fn ranges_of(slots: &BTreeSet<u16>) -> Vec<(u16, u16)> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for slot in slots {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *slot => *last = *slot,
            _ => ranges.push((*slot, *slot)),
        }
    }
    ranges
}

fn nodes_of(cluster: &Cluster, master: &Node) -> Vec<KnownNode> {
    let known = |node: &Node| match cluster.endpoint(node).address {
        Address::Tcp { host, port } => KnownNode { id: node.id.clone(), host, port },
        other => KnownNode { id: node.id.clone(), host: other.to_string(), port: 0 },
    };
    std::iter::once(master).chain(cluster.topology.replicas(&master.id)).map(known).collect()
}

#[cfg(test)]
mod tests;
