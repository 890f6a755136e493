//! Asks a cluster how it is made up.
//!
//! Any node knows all of it, so the seeds are asked one after the other until one answers with all slots. A node that is out of its
//! cluster (taken out, reset, started without its `nodes.conf`) answers too, that it is alone: it must not be believed while others know
//! better. Nodes are named as the cluster announces them, or as `address_map` says; user, password and TLS settings are those of the seed.

use super::net::{Connection, NetError};
use crate::config::{Address, Endpoint};
use crate::resp::Reply;
use crate::topology::{Node, Topology, TopologyError};

/// A cluster, and how to reach its nodes.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// What it says about itself.
    pub topology: Topology,
    /// The node that was asked.
    asked: Endpoint,
}

impl Cluster {
    /// What the node `asked` said.
    pub fn new(topology: Topology, asked: Endpoint) -> Cluster {
        Cluster { topology, asked }
    }

    /// The node that was asked.
    pub fn asked(&self) -> &Endpoint {
        &self.asked
    }

    /// How to reach a node.
    pub fn endpoint(&self, node: &Node) -> Endpoint {
        let asked_host = match &self.asked.address {
            Address::Tcp { host, .. } => host.clone(),
            Address::Unix(_) | Address::Named(_) => "127.0.0.1".to_owned(),
        };
        let with_tls = self.asked.tls.is_some();
        let host = match (&node.address.hostname, node.address.ip.as_str()) {
            // A certificate names hosts, not addresses.
            (Some(name), _) if with_tls => name.clone(),
            // A node that was never met by another one does not know its own address.
            (_, "") => asked_host,
            (_, ip) => ip.to_owned(),
        };
        let told = Address::Tcp { host, port: node.address.port };
        self.asked.at(self.asked.address_map.map(&told))
    }

    /// Masters that serve slots, with how to reach them, in the order of their first slot.
    pub fn masters(&self) -> Vec<(&Node, Endpoint)> {
        let mut masters: Vec<&Node> = self.topology.masters().collect();
        masters.sort_by_key(|node| node.slots.iter().map(|range| *range.start()).min());
        masters.into_iter().map(|node| (node, self.endpoint(node))).collect()
    }
}

/// Asks the seeds until one answers that every slot is served; where none does, the answer with the most slots counts. The error is the
/// one of the last seed.
pub async fn discover(seeds: &[Endpoint]) -> Result<Cluster, NetError> {
    let (mut last, mut best): (_, Option<(usize, Cluster)>) = (None, None);
    let further =
        |seed: &Endpoint| seed.seeds.iter().map(|address| seed.at(address.clone())).collect::<Vec<_>>();
    let seeds = seeds.iter().flat_map(|seed| std::iter::once(seed.clone()).chain(further(seed)));
    for seed in seeds {
        match ask(&seed).await {
            Ok(topology) => {
                let unserved = topology.unserved();
                let cluster = Cluster::new(topology, seed);
                if unserved == 0 {
                    return Ok(cluster);
                }
                if best.as_ref().is_none_or(|(fewest, _)| unserved < *fewest) {
                    best = Some((unserved, cluster));
                }
            }
            Err(error) => last = Some(error),
        }
    }
    if let Some((_, cluster)) = best {
        return Ok(cluster);
    }
    Err(last.unwrap_or_else(|| NetError::Connect {
        address: Address::Tcp { host: String::new(), port: 0 },
        cause: std::io::Error::other("no node of the cluster is known"),
    }))
}

async fn ask(seed: &Endpoint) -> Result<Topology, NetError> {
    let mut connection = Connection::open(seed).await?;
    let refused = |reply: String, cure: &str| NetError::Refused {
        address: seed.address.clone(),
        what: "CLUSTER NODES".into(),
        reply,
        cure: cure.into(),
    };
    let unreadable = |error: TopologyError| NetError::Protocol {
        address: seed.address.clone(),
        what: error.command.into(),
        found: error.to_string(),
        cure: "Is this a Redis or Valkey cluster?".into(),
    };
    match connection.request(&[b"CLUSTER", b"NODES"]).await? {
        Reply::Bulk(text) => Topology::from_nodes(&String::from_utf8_lossy(&text)).map_err(unreadable),
        Reply::Error(reply) if reply.contains("cluster support disabled") => Err(refused(
            reply,
            "It is a standalone server: write 'cluster = false', or the address of a node of the cluster.",
        )),
        Reply::Error(reply) => {
            // A user may have the right for only one of them; before 7.0 there is no SHARDS.
            let shards = connection.request(&[b"CLUSTER", b"SHARDS"]).await?;
            if !matches!(shards, Reply::Error(_)) {
                return Topology::from_shards(&shards, seed.tls.is_some()).map_err(unreadable);
            }
            match connection.request(&[b"CLUSTER", b"SLOTS"]).await? {
                Reply::Error(_) => Err(refused(
                    reply,
                    "Its user may not ask how the cluster is made up: ACL SETUSER <user> +cluster|nodes (or +cluster|shards, or \
                     +cluster|slots)",
                )),
                slots => Topology::from_slots(&slots).map_err(unreadable),
            }
        }
        other => Err(refused(format!("{other:?}"), "Is this a Redis or Valkey cluster?")),
    }
}
