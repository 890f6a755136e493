//! Real clusters on 127.0.0.1: formed with CLUSTER MEET, resharded slot by slot, failing over.
//!
//! Nodes are named by their number: 0 .. masters-1 started as masters, then the replicas, master after master. Who is a
//! master *now* says [`Cluster::masters`], which asks the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use redis_protocol::resp2::types::Resp2Frame;

use super::client::{Client, Reply};
use super::cluster_client::{ClusterClient, SLOTS, owners};
use super::server::{Options, Server};
use super::servers::{Flavor, ServerBinary};
use super::{wait_for, wait_until};

/// What forming, a promotion and an agreement may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Layout {
    masters: usize,
    replicas: usize,
    slots: Option<Vec<Vec<RangeInclusive<u16>>>>,
    full_coverage: bool,
    node_timeout: Duration,
    options: Options,
    databases: u32,
}

impl Layout {
    /// So many masters with so many replicas each, slots in equal parts, `cluster-require-full-coverage yes`.
    pub fn new(masters: usize, replicas: usize) -> Layout {
        Layout {
            masters,
            replicas,
            slots: None,
            full_coverage: true,
            node_timeout: Duration::from_secs(2),
            options: Options::new(),
            databases: 1,
        }
    }

    /// `cluster-databases`, where the server [has them](has_cluster_databases).
    pub fn databases(mut self, count: u32) -> Layout {
        self.databases = count;
        self
    }

    /// The slots of each master. A master may have none.
    pub fn slots(mut self, slots: &[&[RangeInclusive<u16>]]) -> Layout {
        assert_eq!(slots.len(), self.masters, "one list for each master");
        self.slots = Some(slots.iter().map(|ranges| ranges.to_vec()).collect());
        self
    }

    /// `cluster-require-full-coverage`.
    pub fn full_coverage(mut self, full: bool) -> Layout {
        self.full_coverage = full;
        self
    }

    /// `cluster-node-timeout`: after about this time a dead master is replaced.
    pub fn node_timeout(mut self, time: Duration) -> Layout {
        self.node_timeout = time;
        self
    }

    /// How every node is started.
    pub fn options(mut self, options: Options) -> Layout {
        self.options = options;
        self
    }

    fn ranges(&self) -> Vec<Vec<RangeInclusive<u16>>> {
        let bound = |n: usize| (n * usize::from(SLOTS) / self.masters) as u16;
        let equal = || (0..self.masters).map(|n| vec![bound(n)..=bound(n + 1) - 1]).collect();
        self.slots.clone().unwrap_or_else(equal)
    }
}

/// A running cluster; its nodes end when dropped.
pub struct Cluster {
    nodes: Vec<Server>,
    /// Nodes that were killed and not started again.
    dead: BTreeSet<usize>,
    password: Option<String>,
    databases: u32,
}

impl Cluster {
    /// Starts the nodes and waits until all of them see the same complete cluster.
    #[track_caller]
    pub fn start(binary: &ServerBinary, layout: Layout) -> Cluster {
        let options = layout
            .options
            .clone()
            .cluster_node()
            .config("cluster-node-timeout", &layout.node_timeout.as_millis().to_string())
            .config("cluster-require-full-coverage", if layout.full_coverage { "yes" } else { "no" })
            .config("cluster-replica-validity-factor", "0");
        let options = match layout.databases {
            1 => options,
            several => options.config("cluster-databases", &several.to_string()),
        };
        let count = layout.masters * (1 + layout.replicas);
        let mut nodes = vec![Server::start(binary, options.clone())];
        let mut options = options;
        if options.has_tls() {
            // One authority for all of them.
            options = options.certificates(nodes[0].certificates());
        }
        nodes.extend((1..count).map(|_| Server::start(binary, options.clone())));
        let password = nodes[0].password().map(str::to_owned);
        let databases = layout.databases;
        let cluster = Cluster { nodes, dead: BTreeSet::new(), password, databases };
        cluster.form(&layout);
        cluster
    }

    fn form(&self, layout: &Layout) {
        let ranges = layout.ranges();
        let ids: Vec<String> = (0..self.nodes.len()).map(|n| self.id(n)).collect();
        for (n, server) in self.nodes.iter().enumerate() {
            let mut client = server.client();
            if let Some(password) = &self.password {
                client.ok(&["CONFIG", "SET", "masterauth", password]);
            }
            // Different epochs from the start: otherwise they are found out by collisions, one after the other.
            client.ok(&["CLUSTER", "SET-CONFIG-EPOCH", &(n + 1).to_string()]);
            if let Some(ranges) = ranges.get(n) {
                let mut command = vec!["CLUSTER".to_owned(), "ADDSLOTS".to_owned()];
                command.extend(ranges.iter().cloned().flatten().map(|slot| slot.to_string()));
                if command.len() > 2 {
                    client.ok(&command);
                }
            }
        }
        // Only now: a node that knows another one takes no epoch. Every node is told of every other: gossip alone needs seconds.
        for (n, server) in self.nodes.iter().enumerate() {
            let mut client = server.client();
            for other in &self.nodes[n + 1..] {
                client.ok(&["CLUSTER", "MEET", "127.0.0.1", &bus_owner(other).to_string()]);
            }
        }
        for replica in layout.masters..self.nodes.len() {
            let master = &ids[(replica - layout.masters) / layout.replicas];
            let mut client = self.nodes[replica].client();
            wait_until(DEADLINE, "a replica knows its master", || {
                !matches!(client.cmd(&["CLUSTER", "REPLICATE", master]), Reply::Error(_))
            });
        }
        self.wait_ok();
        wait_until(DEADLINE, "every replica has its master's data", || {
            (layout.masters..self.nodes.len())
                .all(|n| self.client_of(n).info("replication", "master_link_status").as_deref() == Some("up"))
        });
    }

    /// Waits until every living node says `cluster_state:ok`, knows each living one, and all have the same slot map.
    #[track_caller]
    pub fn wait_ok(&self) {
        let mut seen = String::new();
        let living: Vec<usize> = self.living().collect();
        let started = std::time::Instant::now();
        loop {
            let mut maps = Vec::new();
            let mut states = Vec::new();
            for &n in &living {
                let mut client = self.client_of(n);
                let info = client.text(&["CLUSTER", "INFO"]);
                let nodes = client.text(&["CLUSTER", "NODES"]);
                let known = living.iter().all(|other| {
                    let port = format!(":{}@", self.nodes[*other].port());
                    nodes.lines().any(|line| {
                        line.contains(&port) && !line.contains("handshake") && !line.contains("fail")
                    })
                });
                states.push(info.contains("cluster_state:ok") && known);
                maps.push(slot_map(&mut client));
            }
            let same = maps.windows(2).all(|pair| pair[0] == pair[1]);
            if same && states.iter().all(|ok| *ok) {
                return;
            }
            if started.elapsed() > DEADLINE {
                for &n in &living {
                    seen.push_str(&self.client_of(n).text(&["CLUSTER", "NODES"]));
                    seen.push('\n');
                }
                panic!(
                    "the cluster is not well after {DEADLINE:?}: ok {states:?}, same slot map {same}\n{seen}"
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Numbers of the nodes that run.
    pub fn living(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|n| !self.dead.contains(n))
    }

    pub fn node(&self, n: usize) -> &Server {
        &self.nodes[n]
    }

    /// A connection to one node, whatever its role.
    #[track_caller]
    pub fn client_of(&self, n: usize) -> Client {
        self.nodes[n].client()
    }

    /// Address of a node that runs: what an operator writes into the file.
    pub fn address(&self) -> SocketAddr {
        self.nodes[self.living().next().expect("a living node")].address()
    }

    /// All addresses, those of dead nodes too.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(Server::address).collect()
    }

    pub fn binary(&self) -> &ServerBinary {
        self.nodes[0].binary()
    }

    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// A connection that finds the owner of each slot by itself.
    #[track_caller]
    pub fn client(&self) -> ClusterClient {
        ClusterClient::new(&self.addresses(), self.password())
    }

    /// The node id of 40 hex digits.
    pub fn id(&self, n: usize) -> String {
        self.client_of(n).text(&["CLUSTER", "MYID"])
    }

    /// Numbers of the nodes that own slots, in the order of their first slot.
    pub fn masters(&self) -> Vec<usize> {
        let mut masters = Vec::new();
        for (_, address) in owners(&mut self.any_client()) {
            let n = self.number(address);
            if !masters.contains(&n) {
                masters.push(n);
            }
        }
        masters
    }

    /// Which node owns the slot.
    pub fn owner(&self, slot: u16) -> usize {
        let owners = owners(&mut self.any_client());
        let (_, address) =
            owners.iter().find(|(range, _)| range.contains(&slot)).expect("a slot that is served");
        self.number(*address)
    }

    /// How many slots a node owns.
    pub fn slot_count(&self, n: usize) -> usize {
        let owners = owners(&mut self.any_client());
        owners.iter().filter(|(_, at)| self.number(*at) == n).map(|(range, _)| range.len()).sum()
    }

    /// The replicas of a master, as itself sees them.
    pub fn replicas(&self, master: usize) -> Vec<usize> {
        let id = self.id(master);
        let text = self.client_of(master).text(&["CLUSTER", "NODES"]);
        let of_master = text.lines().filter(|line| line.contains("slave") && line.contains(&id));
        let numbers = of_master.filter_map(|line| {
            let port: u16 =
                line.split_whitespace().nth(1)?.split('@').next()?.rsplit(':').next()?.parse().ok()?;
            self.nodes.iter().position(|server| server.port() == port)
        });
        numbers.filter(|n| !self.dead.contains(n)).collect()
    }

    /// Moves slots with their keys to another node, one after the other, as `redis-cli --cluster reshard` does.
    #[track_caller]
    pub fn reshard(&self, from: usize, to: usize, slots: impl IntoIterator<Item = u16>) {
        for slot in slots {
            self.begin_move(from, to, slot);
            while self.move_keys(from, to, slot, 100) > 0 {}
            self.finish_move(from, to, slot);
        }
        self.wait_ok();
    }

    /// The slot is on its way: keys that are not at `from` (any more) are asked for at `to`.
    #[track_caller]
    pub fn begin_move(&self, from: usize, to: usize, slot: u16) {
        let slot = slot.to_string();
        self.client_of(to).ok(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from)]);
        self.client_of(from).ok(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)]);
    }

    /// Moves at most `count` keys of the slot, those of database 0 first; returns how many it has moved.
    #[track_caller]
    pub fn move_keys(&self, from: usize, to: usize, slot: u16, count: usize) -> usize {
        let mut client = self.client_of(from);
        let port = self.nodes[to].port().to_string();
        let mut moved = 0;
        for db in 0..self.databases {
            let db = db.to_string();
            if self.databases > 1 {
                client.ok(&["SELECT", &db]);
            }
            let most = (count - moved).to_string();
            let keys = client.list(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), &most]);
            if keys.is_empty() {
                continue;
            }
            let mut command: Vec<&[u8]> =
                vec![b"MIGRATE", b"127.0.0.1", port.as_bytes(), b"", db.as_bytes(), b"60000"];
            if let Some(password) = &self.password {
                command.extend([b"AUTH".as_slice(), password.as_bytes()]);
            }
            command.push(b"KEYS");
            command.extend(keys.iter().map(Vec::as_slice));
            client.ok(&command);
            moved += keys.len();
        }
        moved
    }

    /// The slot belongs to `to` from now on, and every master is told.
    #[track_caller]
    pub fn finish_move(&self, from: usize, to: usize, slot: u16) {
        let (slot, id) = (slot.to_string(), self.id(to));
        let others = self.masters().into_iter().filter(|n| *n != to && *n != from);
        for n in [to, from].into_iter().chain(others) {
            let reply = self.client_of(n).cmd(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
            // A master that hears by gossip, before we tell it, that its last slot is gone becomes a replica at once.
            if let Reply::Error(error) = reply
                && !(n == from && error.contains("SETSLOT only with masters"))
            {
                panic!("SETSLOT {slot} NODE at node {n}: {error}");
            }
        }
    }

    /// Begins to move slots as a whole (Redis from 8.4 on, Valkey from 9.0 on). They have another owner from one moment to the next.
    #[track_caller]
    pub fn begin_atomic_move(&self, from: usize, to: usize, slots: RangeInclusive<u16>) {
        let (first, last) = (slots.start().to_string(), slots.end().to_string());
        if self.binary().flavor == Flavor::Redis {
            self.client_of(to).ok(&["CLUSTER", "MIGRATION", "IMPORT", &first, &last]);
        } else {
            let to = self.id(to);
            self.client_of(from).ok(&["CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", &first, &last, "NODE", &to]);
        }
    }

    /// Ends such a move before it is done; panics if none was under way.
    #[track_caller]
    pub fn cancel_atomic_move(&self, from: usize, to: usize) {
        let (node, command) = match self.binary().flavor {
            Flavor::Redis => (to, &["CLUSTER", "MIGRATION", "CANCEL", "ALL"][..]),
            Flavor::Valkey => (from, &["CLUSTER", "CANCELSLOTMIGRATIONS"][..]),
        };
        let reply = self.client_of(node).ok(command);
        assert!(!matches!(reply, Reply::Integer(0)), "there was no move to end");
    }

    /// Waits until such a move brings keys to `to`.
    #[track_caller]
    pub fn wait_importing(&self, to: usize) {
        let (command, state) = match self.binary().flavor {
            Flavor::Redis => (&["CLUSTER", "MIGRATION", "STATUS", "ALL"][..], "accumulate-buffer"),
            Flavor::Valkey => (&["CLUSTER", "GETSLOTMIGRATIONS"][..], "receiving-snapshot"),
        };
        let mut client = self.client_of(to);
        wait_until(DEADLINE, "the import brings keys", || says(&client.ok(command), state));
    }

    /// Waits until all nodes say that this slot of a move has its new owner.
    #[track_caller]
    pub fn wait_moved(&self, to: usize, slot: u16) {
        wait_until(DEADLINE, "the slots have moved", || self.owner(slot) == to);
        self.wait_ok();
    }

    /// Another master, without slots yet; returns its number.
    #[track_caller]
    pub fn add_node(&mut self) -> usize {
        let server = Server::start(self.binary(), self.nodes[0].options().clone());
        for n in self.living() {
            self.client_of(n).ok(&["CLUSTER", "MEET", "127.0.0.1", &bus_owner(&server).to_string()]);
        }
        self.nodes.push(server);
        self.wait_ok();
        self.nodes.len() - 1
    }

    /// Takes a master without slots out of the cluster, and ends it.
    #[track_caller]
    pub fn remove_node(&mut self, n: usize) {
        let id = self.id(n);
        // First it goes: otherwise the others hear of it again from each other.
        self.kill(n);
        for other in self.living() {
            self.client_of(other).ok(&["CLUSTER", "FORGET", &id]);
        }
        self.wait_ok();
    }

    /// Takes a master without slots out of the cluster as `redis-cli --cluster del-node` does: it goes on, alone. To the harness it is gone.
    #[track_caller]
    pub fn expel_node(&mut self, n: usize) {
        let id = self.id(n);
        self.dead.insert(n);
        // A node that has heard of it again from another one forgets it once more.
        wait_until(DEADLINE, "the others have forgotten it", || {
            self.living().for_each(|other| drop(self.client_of(other).cmd(&["CLUSTER", "FORGET", &id])));
            self.living().all(|other| !self.client_of(other).text(&["CLUSTER", "NODES"]).contains(&id))
        });
        self.nodes[n].client().ok(&["CLUSTER", "RESET", "HARD"]);
        self.wait_ok();
    }

    /// Where a node keeps its files, also while it is dead.
    pub fn node_folder(&self, n: usize) -> &Path {
        self.nodes[n].folder()
    }

    /// Ends a node like a crash.
    pub fn kill(&mut self, n: usize) {
        self.nodes[n].kill();
        self.dead.insert(n);
    }

    /// Starts a killed node again on its old port; it knows its cluster, and comes back empty unless it is a replica by now.
    #[track_caller]
    pub fn restart(&mut self, n: usize) {
        self.nodes[n].restart();
        self.dead.remove(&n);
    }

    /// Kills a master (`kill -9`) and waits until one of its replicas has taken its place; returns the new master.
    #[track_caller]
    pub fn fail_over_by_death(&mut self, master: usize) -> usize {
        let replicas = self.replicas(master);
        assert!(!replicas.is_empty(), "node {master} has no replica");
        self.kill(master);
        let promoted = wait_for(DEADLINE, "a replica is promoted", || {
            replicas.iter().copied().find(|n| self.is_master(*n))
        });
        self.wait_ok();
        promoted
    }

    /// Lets the replica of a master take its place in order (`CLUSTER FAILOVER`, nothing is lost); returns the new master.
    #[track_caller]
    pub fn fail_over(&self, master: usize) -> usize {
        let replica = *self.replicas(master).first().expect("a replica");
        wait_until(DEADLINE, "the replica takes over", || {
            self.is_master(replica) || {
                self.client_of(replica).cmd(&["CLUSTER", "FAILOVER"]);
                false
            }
        });
        wait_until(DEADLINE, "the old master is a replica", || {
            !self.is_master(master) && self.replicas(replica).contains(&master)
        });
        self.wait_ok();
        replica
    }

    fn is_master(&self, n: usize) -> bool {
        self.client_of(n).info("replication", "role").as_deref() == Some("master")
    }

    fn any_client(&self) -> Client {
        self.client_of(self.living().next().expect("a living node"))
    }

    fn number(&self, address: SocketAddr) -> usize {
        self.nodes.iter().position(|server| server.address() == address).expect("an address of this cluster")
    }
}

/// The port by which a node is met: the bus belongs to it.
fn bus_owner(server: &Server) -> u16 {
    if server.options().has_tls() { server.tls_address().port() } else { server.port() }
}

/// Which address owns each range; empty while the node has no answer.
fn slot_map(client: &mut Client) -> BTreeMap<u16, (u16, SocketAddr)> {
    owners(client).into_iter().map(|(range, at)| (*range.start(), (*range.end(), at))).collect()
}

/// Whether a server can be a node of a cluster with several databases (`cluster-databases`).
pub fn has_cluster_databases(binary: &ServerBinary) -> bool {
    binary.flavor == Flavor::Valkey && binary.version >= (9, 0, 0)
}

/// Whether a server can move slots as a whole.
pub fn moves_atomically(binary: &ServerBinary) -> bool {
    binary.at_least((8, 4), (9, 0))
}

/// Whether a word stands anywhere in an answer.
fn says(reply: &Reply, word: &str) -> bool {
    match reply {
        Reply::Array(parts) => parts.iter().any(|part| says(part, word)),
        other => other.as_bytes() == Some(word.as_bytes()),
    }
}
