//! What a cluster says about itself: nodes, their slots, and slots on the move.
//!
//! `CLUSTER NODES` alone tells everything (`cluster.c`, `clusterGenNodeDescription`): which node is a master or whose replica, flags
//! of failure, slot ranges, slots that are migrating or being imported, host names; every version since 3.0 has it, and over a TLS
//! connection it names the TLS ports. `CLUSTER SHARDS` (7.0 and later) and `CLUSTER SLOTS` are for users who may not ask for it: they
//! know no moves, and the latter no failures either.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use crate::resp::Reply;

/// Slots of a cluster.
pub const SLOTS: u16 = 16_384;
/// More nodes than any cluster has (the bus allows some 1,000): an answer with more is damaged.
const MAX_NODES: usize = 4_096;

/// An answer that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{command}: {problem}: '{found}'")]
pub struct TopologyError {
    /// What was asked.
    pub command: &'static str,
    /// What is wrong with the answer.
    pub problem: &'static str,
    /// The place, escaped and cut.
    pub found: String,
}

/// Where a node listens for clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    /// IP address (IPv6 without brackets); empty = the host that was asked.
    pub ip: String,
    /// TCP port.
    pub port: u16,
    /// `cluster-announce-hostname`.
    pub hostname: Option<String>,
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ip.contains(':') {
            write!(f, "[{}]:{}", self.ip, self.port)
        } else {
            write!(f, "{}:{}", self.ip, self.port)
        }
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// 40 hexadecimal digits.
    pub id: String,
    /// Where it listens.
    pub address: NodeAddress,
    /// Id of its master; `None` = it is one.
    pub master: Option<String>,
    /// `fail` (agreed on) or `fail?` (suspected), `handshake` or `noaddr`: not to be talked to.
    pub failing: bool,
    /// Slots that it serves.
    pub slots: Vec<RangeInclusive<u16>>,
}

/// A slot on its way from one node to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The slot.
    pub slot: u16,
    /// Id of the node that still owns it.
    pub from: String,
    /// Id of the node that will.
    pub to: String,
}

/// A cluster as one of its nodes sees it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// All nodes, in the order of the answer.
    pub nodes: Vec<Node>,
    /// Moves that the asked node takes part in; ask every master for all of them.
    pub moves: Vec<Move>,
}

impl Topology {
    /// Reads the answer to `CLUSTER NODES`.
    pub fn from_nodes(text: &str) -> Result<Topology, TopologyError> {
        let mut topology = Topology::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if topology.nodes.len() == MAX_NODES {
                return Err(unreadable("CLUSTER NODES", "more than 4,096 nodes", line));
            }
            let error = |problem| unreadable("CLUSTER NODES", problem, line);
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [id, address, flags, master, _ping, _pong, _epoch, _link, slots @ ..] = words.as_slice()
            else {
                return Err(error("a line with fewer than 8 words"));
            };
            let mut node = Node {
                id: (*id).to_owned(),
                address: node_address(address).ok_or_else(|| error("no address"))?,
                master: (*master != "-").then(|| (*master).to_owned()),
                failing: flags
                    .split(',')
                    .any(|flag| matches!(flag, "fail" | "fail?" | "handshake" | "noaddr")),
                slots: Vec::new(),
            };
            for word in slots {
                match word.strip_prefix('[').and_then(|word| word.strip_suffix(']')) {
                    Some(moving) => {
                        topology.moves.push(slot_move(moving, id).ok_or_else(|| error("a slot on the move"))?)
                    }
                    None => node.slots.push(slot_range(word).ok_or_else(|| error("a slot range"))?),
                }
            }
            topology.nodes.push(node);
        }
        Ok(topology)
    }

    /// Reads the answer to `CLUSTER SHARDS`: names and values in turn, as RESP2 writes maps. `tls`: it was asked over TLS.
    pub fn from_shards(reply: &Reply, tls: bool) -> Result<Topology, TopologyError> {
        let error = |problem, found: &Reply| unreadable("CLUSTER SHARDS", problem, &format!("{found:?}"));
        let Reply::Array(shards) = reply else { return Err(error("not a list", reply)) };
        let mut nodes: Vec<Node> = Vec::new();
        for shard in shards {
            let slots = match value_of(shard, "slots") {
                Some(Reply::Array(bounds)) if bounds.len() % 2 == 0 => {
                    let ranges = bounds.chunks(2).map(|pair| match pair {
                        [Reply::Integer(first), Reply::Integer(last)] => slots_between(*first, *last),
                        _ => None,
                    });
                    let ranges: Option<Vec<_>> = ranges.collect();
                    ranges.ok_or_else(|| error("a range outside of 0 to 16383", shard))?
                }
                _ => return Err(error("a shard without slots", shard)),
            };
            let Some(Reply::Array(members)) = value_of(shard, "nodes") else {
                return Err(error("a shard without nodes", shard));
            };
            let first = nodes.len();
            for member in members {
                if nodes.len() == MAX_NODES {
                    return Err(error("more than 4,096 nodes", member));
                }
                let text = |name| value_of(member, name).and_then(Reply::text);
                let port = |name| match value_of(member, name) {
                    Some(Reply::Integer(port)) => u16::try_from(*port).ok(),
                    _ => None,
                };
                let ports = (port("port"), port("tls-port"));
                let port = if tls { ports.1.or(ports.0) } else { ports.0.or(ports.1) };
                let id = text("id").ok_or_else(|| error("a node without id", member))?;
                nodes.push(Node {
                    id: id.to_owned(),
                    address: NodeAddress {
                        ip: text("ip").unwrap_or_default().to_owned(),
                        port: port.ok_or_else(|| error("a node without port", member))?,
                        hostname: text("hostname").filter(|name| !name.is_empty()).map(str::to_owned),
                    },
                    // Filled in below.
                    master: (text("role") != Some("master")).then(String::new),
                    failing: !matches!(text("health"), Some("online" | "loading")),
                    slots: Vec::new(),
                });
            }
            // A master that was replaced calls itself one until it has heard of it.
            let members = nodes.get_mut(first..).unwrap_or_default();
            let mut masters = members.iter_mut().filter(|node| node.master.is_none()).collect::<Vec<_>>();
            masters.sort_by_key(|node| node.failing);
            let Some(master) = masters.into_iter().next() else { continue };
            master.slots = slots;
            let id = master.id.clone();
            for replica in members.iter_mut().filter(|node| node.master.is_some()) {
                replica.master = Some(id.clone());
            }
        }
        Ok(Topology { nodes, moves: Vec::new() })
    }

    /// Reads the answer to `CLUSTER SLOTS`.
    pub fn from_slots(reply: &Reply) -> Result<Topology, TopologyError> {
        let error = |problem, found: &Reply| unreadable("CLUSTER SLOTS", problem, &format!("{found:?}"));
        let Reply::Array(ranges) = reply else { return Err(error("not a list", reply)) };
        let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
        for range in ranges {
            let Reply::Array(parts) = range else { return Err(error("not a range", range)) };
            let [Reply::Integer(first), Reply::Integer(last), servers @ ..] = parts.as_slice() else {
                return Err(error("a range without numbers", range));
            };
            let slots =
                slots_between(*first, *last).ok_or_else(|| error("a range outside of 0 to 16383", range))?;
            let mut master: Option<String> = None;
            for server in servers {
                let Reply::Array(parts) = server else { return Err(error("not a node", server)) };
                let (ip, port) = (parts.first().and_then(Reply::text), parts.get(1));
                let Some(Reply::Integer(port)) = port else {
                    return Err(error("a node without port", server));
                };
                let address = NodeAddress {
                    // Null: the endpoint is not known; the host that was asked is meant.
                    ip: ip.unwrap_or_default().to_owned(),
                    port: u16::try_from(*port).map_err(|_| error("a port", server))?,
                    hostname: parts.get(3).and_then(announced_hostname),
                };
                // Before 4.0 nodes have no id here: the address is as good a name.
                let id =
                    parts.get(2).and_then(Reply::text).map_or_else(|| address.to_string(), str::to_owned);
                if nodes.len() == MAX_NODES {
                    return Err(error("more than 4,096 nodes", server));
                }
                let node = nodes.entry(id.clone()).or_insert_with(|| Node {
                    id: id.clone(),
                    address,
                    master: master.clone(),
                    failing: false,
                    slots: Vec::new(),
                });
                if master.is_none() {
                    node.slots.push(slots.clone());
                    master = Some(id);
                }
            }
        }
        Ok(Topology { nodes: nodes.into_values().collect(), moves: Vec::new() })
    }

    /// Masters that serve slots.
    pub fn masters(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.master.is_none() && !node.slots.is_empty())
    }

    /// Replicas of a master.
    pub fn replicas<'a>(&'a self, master: &'a str) -> impl Iterator<Item = &'a Node> {
        self.nodes.iter().filter(move |node| node.master.as_deref() == Some(master))
    }

    /// How many slots no master serves.
    pub fn unserved(&self) -> usize {
        self.slot_map().into_iter().filter(Option::is_none).count()
    }

    /// For each slot the place of its master in [`Topology::masters`]; `None` = nobody serves it.
    pub fn slot_map(&self) -> Vec<Option<u16>> {
        let mut map = vec![None; usize::from(SLOTS)];
        for (place, master) in (0..).zip(self.masters()) {
            for slot in master.slots.iter().cloned().flatten() {
                if let Some(owner) = map.get_mut(usize::from(slot)) {
                    *owner = Some(place);
                }
            }
        }
        map
    }
}

/// `10.0.0.1:6379@16379,host,shard-id=…`; the bus port and what follows may be missing, an IPv6 address has no brackets.
fn node_address(word: &str) -> Option<NodeAddress> {
    let mut parts = word.split(',');
    let address = parts.next()?.split('@').next()?;
    let (ip, port) = address.rsplit_once(':')?;
    let hostname = parts.next().filter(|name| !name.is_empty() && !name.contains('='));
    Some(NodeAddress { ip: ip.to_owned(), port: port.parse().ok()?, hostname: hostname.map(str::to_owned) })
}

/// `5460` or `0-5460`.
fn slot_range(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < SLOTS).then_some(first..=last)
}

/// `93->-<id of the next owner>` or `77-<-<id of the owner>`, said by `asked`.
fn slot_move(word: &str, asked: &str) -> Option<Move> {
    let (slot, other, outwards) = match (word.split_once("->-"), word.split_once("-<-")) {
        (Some((slot, other)), _) => (slot, other, true),
        (_, Some((slot, other))) => (slot, other, false),
        _ => return None,
    };
    let slot = slot.parse().ok().filter(|slot| *slot < SLOTS)?;
    let (from, to) = if outwards { (asked, other) } else { (other, asked) };
    Some(Move { slot, from: from.to_owned(), to: to.to_owned() })
}

fn slots_between(first: i64, last: i64) -> Option<RangeInclusive<u16>> {
    let (first, last) = (u16::try_from(first).ok()?, u16::try_from(last).ok()?);
    (first <= last && last < SLOTS).then_some(first..=last)
}

/// Networking metadata of a node in CLUSTER SLOTS.
fn announced_hostname(metadata: &Reply) -> Option<String> {
    let name = value_of(metadata, "hostname").and_then(Reply::text);
    name.filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The value of a name in a list of names and values in turn.
fn value_of<'a>(pairs: &'a Reply, name: &str) -> Option<&'a Reply> {
    let Reply::Array(parts) = pairs else { return None };
    parts.chunks(2).find(|pair| pair.first().and_then(Reply::text) == Some(name))?.get(1)
}

fn unreadable(command: &'static str, problem: &'static str, found: &str) -> TopologyError {
    TopologyError { command, problem, found: crate::format::escape(found.as_bytes(), 120) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;

    fn id(letter: char) -> String {
        letter.to_string().repeat(40)
    }

    #[test]
    fn nodes_of_every_version_are_read() {
        let text = format!(
            "{a} 127.0.0.1:7100@17100,node0.example myself,master - 0 1795 1 connected 0-5459 5461 [100->-{b}] [77-<-{c}]\n\
             {b} 10.0.0.2:7101@17101,,tls-port=0,shard-id={c} master - 0 1795 2 connected 5460 5462-10922\n\
             {c} :7102 master,fail? - 0 1795 3 disconnected 10923-16383\n\
             {d} 2001:db8::1:7103@17103 slave,nofailover {a} 0 1795 1 connected\n\
             {e} :0@0 slave,fail,noaddr {c} 1 2 3 disconnected\n",
            a = id('a'),
            b = id('b'),
            c = id('c'),
            d = id('d'),
            e = id('e'),
        );
        let topology = Topology::from_nodes(&text).unwrap();
        let masters: Vec<_> = topology.masters().map(|node| node.address.to_string()).collect();
        assert_eq!(masters, ["127.0.0.1:7100", "10.0.0.2:7101", ":7102"]);
        assert_eq!(topology.nodes[0].address.hostname.as_deref(), Some("node0.example"));
        assert_eq!(topology.nodes[1].address.hostname, None);
        assert_eq!(topology.nodes[0].slots, [0..=5459, 5461..=5461]);
        assert_eq!(
            topology.nodes.iter().map(|node| node.failing).collect::<Vec<_>>(),
            [false, false, true, false, true]
        );
        let replicas: Vec<_> = topology.replicas(&id('a')).map(|node| node.address.to_string()).collect();
        assert_eq!(replicas, ["[2001:db8::1]:7103"]);
        let map = topology.slot_map();
        assert_eq!([map[0], map[5460], map[5461], map[16383]], [Some(0), Some(1), Some(0), Some(2)]);
        let moves =
            [Move { slot: 100, from: id('a'), to: id('b') }, Move { slot: 77, from: id('c'), to: id('a') }];
        assert_eq!(topology.moves, moves);
    }

    #[test]
    fn slots_are_read_with_and_without_ids_and_names() {
        let text = |text: &str| Reply::Bulk(text.as_bytes().to_vec());
        let node = |ip: &str, port, id: &str, metadata| {
            Reply::Array(vec![text(ip), Reply::Integer(port), text(id), metadata])
        };
        let hostname = Reply::Array(vec![text("hostname"), text("n0.example")]);
        let none = Reply::Array(Vec::new());
        let reply = Reply::Array(vec![
            Reply::Array(vec![
                Reply::Integer(0),
                Reply::Integer(8_000),
                node("10.0.0.1", 1, "a", hostname),
                node("10.0.0.3", 3, "c", none.clone()),
            ]),
            Reply::Array(vec![Reply::Integer(8_002), Reply::Integer(16_383), node("10.0.0.2", 2, "b", none)]),
            Reply::Array(vec![
                Reply::Integer(8_001),
                Reply::Integer(8_001),
                Reply::Array(vec![Reply::Null, Reply::Integer(9)]),
            ]),
        ]);
        let topology = Topology::from_slots(&reply).unwrap();
        assert_eq!(topology.masters().count(), 3);
        assert_eq!(topology.replicas("a").map(|node| node.id.as_str()).collect::<Vec<_>>(), ["c"]);
        assert!(topology.slot_map().iter().all(Option::is_some));
        assert!(topology.nodes.iter().any(|node| node.address.hostname.as_deref() == Some("n0.example")));
        assert!(topology.nodes.iter().any(|node| node.id == ":9"));
    }

    #[test]
    fn shards_are_read_with_replicas_names_and_failures() {
        let text = |text: &str| Reply::Bulk(text.as_bytes().to_vec());
        let int = Reply::Integer;
        let list = Reply::Array;
        let node = |id: &str, port, tls_port, role: &str, health: &str, hostname: Option<&str>| {
            let mut pairs = vec![text("id"), text(id), text("port"), int(port)];
            if tls_port > 0 {
                pairs.extend([text("tls-port"), int(tls_port)]);
            }
            pairs.extend([text("ip"), text("10.0.0.1"), text("endpoint"), Reply::Null]);
            pairs.extend(hostname.into_iter().flat_map(|name| [text("hostname"), text(name)]));
            pairs.extend([text("role"), text(role), text("replication-offset"), int(7)]);
            pairs.extend([text("health"), text(health), text("a later field"), Reply::Null]);
            list(pairs)
        };
        let shard = |slots: Vec<i64>, nodes| {
            let slots = list(slots.into_iter().map(Reply::Integer).collect());
            list(vec![text("slots"), slots, text("nodes"), list(nodes), text("id"), text("shard")])
        };
        let reply = list(vec![
            shard(
                vec![0, 99, 101, 16_383],
                vec![
                    // It was replaced by b, and does not know yet.
                    node("a", 1, 0, "master", "fail", None),
                    node("c", 3, 0, "replica", "loading", None),
                    node("b", 2, 12, "master", "online", Some("b.example")),
                ],
            ),
            shard(vec![100, 100], vec![node("d", 4, 0, "master", "fail", Some(""))]),
            shard(Vec::new(), vec![node("e", 5, 0, "master", "online", None)]),
        ]);
        let topology = Topology::from_shards(&reply, false).unwrap();
        let told: Vec<_> = topology
            .nodes
            .iter()
            .map(|node| (node.id.as_str(), node.address.port, node.master.as_deref(), node.failing))
            .collect();
        let expected = [
            ("a", 1, None, true),
            ("c", 3, Some("b"), false),
            ("b", 2, None, false),
            ("d", 4, None, true),
            ("e", 5, None, false),
        ];
        assert_eq!(told, expected);
        let masters: Vec<_> = topology.masters().map(|node| (node.id.as_str(), node.slots.clone())).collect();
        assert_eq!(masters, [("b", vec![0..=99, 101..=16_383]), ("d", vec![100..=100])]);
        assert!(topology.slot_map().iter().all(Option::is_some));
        let names: Vec<_> =
            topology.nodes.iter().filter_map(|node| node.address.hostname.as_deref()).collect();
        assert_eq!(names, ["b.example"]);
        let over_tls = Topology::from_shards(&reply, true).unwrap();
        assert_eq!(over_tls.nodes.iter().map(|node| node.address.port).collect::<Vec<_>>(), [1, 3, 12, 4, 5]);

        let broken = [
            (list(vec![text("x")]), "without slots"),
            (list(vec![shard(vec![5, 99_999], Vec::new())]), "16383"),
            (list(vec![shard(vec![5], Vec::new())]), "without slots"),
            (list(vec![list(vec![text("slots"), list(Vec::new())])]), "without nodes"),
            (list(vec![shard(Vec::new(), vec![list(vec![text("id"), text("a")])])]), "without port"),
            (list(vec![shard(Vec::new(), vec![Reply::Null])]), "without id"),
        ];
        for (reply, problem) in broken {
            let error = Topology::from_shards(&reply, false).unwrap_err().to_string();
            assert!(error.contains("CLUSTER SHARDS") && error.contains(problem), "{error}");
        }
    }

    #[test]
    fn damaged_answers_are_refused_with_the_place() {
        for (text, problem) in [
            ("abc 1.2.3.4:1 master -", "fewer than 8"),
            ("abc nowhere master - 0 0 0 connected", "no address"),
            ("abc 1.2.3.4:1 master - 0 0 0 connected 5-99999", "slot range"),
            ("abc 1.2.3.4:1 master - 0 0 0 connected [5>x]", "on the move"),
        ] {
            let error = Topology::from_nodes(text).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains("abc"), "{error}");
        }
        let bad = Reply::Array(vec![Reply::Array(vec![Reply::Integer(7), Reply::Integer(99_999)])]);
        assert!(Topology::from_slots(&bad).unwrap_err().to_string().contains("16383"));
        assert!(Topology::from_slots(&Reply::Null).is_err());
    }
}
