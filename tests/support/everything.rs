//! Are two places equal, of which each is a standalone server with its databases or a cluster? Type, value and time of expiry of every
//! key, both directions; keys that begin with `shakedeck:` are left out on both sides. A key on a master that does not own its slot is a
//! difference too.

use std::collections::BTreeMap;

use super::client::{Client, Reply, keys_like};
use super::cluster::Cluster;
use super::cluster_client::{owners, slot_of};
use super::compare::{Differences, Side, TTL_TOLERANCE, cut, is_tool_key};
use super::server::Server;

/// A standalone server or a cluster: something whose keys can be read node by node.
pub trait Place {
    /// A connection to every server that has keys of its own.
    fn masters(&self) -> Vec<Client>;
}

impl Place for Server {
    fn masters(&self) -> Vec<Client> {
        vec![self.client()]
    }
}

impl Place for Cluster {
    fn masters(&self) -> Vec<Client> {
        Cluster::masters(self).into_iter().map(|n| self.client_of(n)).collect()
    }
}

/// What two places have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Same {
    pub keys: usize,
}

/// Panics with the list of differences unless both places, at rest, hold the same.
#[track_caller]
pub fn assert_same(source: &impl Place, destination: &impl Place) -> Same {
    assert_same_in(source, destination, Some)
}

/// The same where databases of the source have other numbers at the destination, or are left out (`None`).
#[track_caller]
pub fn assert_same_in(
    source: &impl Place,
    destination: &impl Place,
    database: impl Fn(u32) -> Option<u32>,
) -> Same {
    same_in(source, destination, database).unwrap_or_else(|differences| panic!("{differences:?}"))
}

/// Compares two places at rest.
pub fn same(source: &impl Place, destination: &impl Place) -> Result<Same, Differences> {
    same_in(source, destination, Some)
}

/// Compares; `database` says which database of the destination belongs to one of the source.
pub fn same_in(
    source: &impl Place,
    destination: &impl Place,
    database: impl Fn(u32) -> Option<u32>,
) -> Result<Same, Differences> {
    let mut differences = Differences::default();
    let mut left = Dump::of(source, "source", database, &mut differences);
    let mut right = Dump::of(destination, "destination", Some, &mut differences);
    let mut keys = 0;
    for (name, here) in &left.entries {
        let Some(there) = right.entries.get(name) else {
            // It may have expired between the two looks.
            if left.nodes[here.node].exists(here.database, &name.1) {
                differences.add(format!("{} is missing on the destination", shown(name)));
            }
            continue;
        };
        keys += 1;
        if (here.expires - there.expires).abs() > TTL_TOLERANCE {
            let [source, destination] = [here.expires, there.expires];
            differences.add(format!(
                "{} expires on the source at {source}, on the destination at {destination} (Unix ms, -1 = never)",
                shown(name)
            ));
        }
        if here.payload != there.payload {
            // Unlike payloads alone say nothing: the order in a hash table depends on the server process.
            let source = left.nodes[here.node].value_in(here.database, &name.1);
            let destination = right.nodes[there.node].value_in(there.database, &name.1);
            if source != destination {
                let [source, destination] = [cut(&source), cut(&destination)];
                differences.add(format!("{}: source {source}, destination {destination}", shown(name)));
            }
        }
    }
    for (name, there) in right.entries.iter().filter(|(name, _)| !left.entries.contains_key(*name)) {
        if right.nodes[there.node].exists(there.database, &name.1) {
            differences.add(format!("{} is only on the destination", shown(name)));
        }
    }
    if differences.count == 0 { Ok(Same { keys }) } else { Err(differences) }
}

/// Database (as numbered at the destination) and name of a key.
type Name = (u32, Vec<u8>);

fn shown((database, key): &Name) -> String {
    format!("db {database}: '{}'", key.escape_ascii())
}

struct Entry {
    node: usize,
    /// As its own server numbers it.
    database: u32,
    /// DUMP without version and checksum.
    payload: Vec<u8>,
    /// Unix ms, -1 = never.
    expires: i64,
}

struct Dump {
    nodes: Vec<Side>,
    entries: BTreeMap<Name, Entry>,
}

impl Dump {
    fn of(
        place: &impl Place,
        name: &'static str,
        database: impl Fn(u32) -> Option<u32>,
        differences: &mut Differences,
    ) -> Dump {
        let mut nodes: Vec<Side> = place.masters().into_iter().map(|client| Side { client, name }).collect();
        let mut entries = BTreeMap::new();
        for (node, side) in nodes.iter_mut().enumerate() {
            let owned = owners(&mut side.client);
            let own_port = own_port(&mut side.client);
            for own in side.databases() {
                let own: u32 = own.parse().unwrap();
                let Some(mapped) = database(own) else { continue };
                side.client.ok(&["SELECT", &own.to_string()]);
                let mut keys: Vec<Vec<u8>> =
                    keys_like(&mut side.client, "*").into_iter().filter(|key| !is_tool_key(key)).collect();
                keys.retain(|key| {
                    let slot = slot_of(key);
                    let owner = owned.iter().find(|(range, _)| range.contains(&slot));
                    let misplaced = owner.is_some_and(|(_, owner)| owner.port() != own_port);
                    if misplaced {
                        let key = key.escape_ascii();
                        differences
                            .add(format!("{name}: '{key}' is on {own_port}, which does not own its slot"));
                    }
                    !misplaced
                });
                for some in keys.chunks(500) {
                    let payloads = side.payloads(some);
                    for (key, (payload, expires)) in some.iter().zip(payloads) {
                        let Some(payload) = payload else { continue };
                        entries
                            .insert((mapped, key.clone()), Entry { node, database: own, payload, expires });
                    }
                }
            }
        }
        Dump { nodes, entries }
    }
}

/// The port by which a node of a cluster is known; any number on a standalone server, which owns no slots.
fn own_port(client: &mut Client) -> u16 {
    match client.list(&["CONFIG", "GET", "port"]).get(1) {
        Some(port) => String::from_utf8_lossy(port).parse().unwrap(),
        None => panic!("CONFIG GET port has no answer"),
    }
}

impl Side {
    fn exists(&mut self, database: u32, key: &[u8]) -> bool {
        self.client.ok(&["SELECT", &database.to_string()]);
        self.client.ok(&[b"EXISTS".as_slice(), key]) == Reply::Integer(1)
    }

    fn value_in(&mut self, database: u32, key: &[u8]) -> String {
        self.client.ok(&["SELECT", &database.to_string()]);
        self.value(key)
    }
}
