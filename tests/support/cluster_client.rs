//! A blocking client of a cluster: finds the owner of a slot, follows MOVED and ASK, and tries again while a slot is on its way or a
//! node is being replaced.
//!
//! After a lost connection a command is sent again, so that it may have run twice: whoever counts must not let nodes die.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use redis_protocol::resp2::types::Resp2Frame;

use super::client::{Client, Reply, keys_like, show};

/// Slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// A cluster that has no answer for this long has failed the test.
const DEADLINE: Duration = Duration::from_secs(60);

pub struct ClusterClient {
    seeds: Vec<SocketAddr>,
    password: Option<String>,
    owners: Vec<(RangeInclusive<u16>, SocketAddr)>,
    links: HashMap<SocketAddr, Client>,
    /// How often something had to be sent again: redirections, waits, lost connections.
    pub again: u64,
}

impl ClusterClient {
    /// Any nodes of the cluster; the others are discovered.
    pub fn new(seeds: &[SocketAddr], password: Option<&str>) -> ClusterClient {
        let mut client = ClusterClient {
            seeds: seeds.to_vec(),
            password: password.map(str::to_owned),
            owners: Vec::new(),
            links: HashMap::new(),
            again: 0,
        };
        client.discover();
        client
    }

    /// One command whose first argument is its key (or whose keys are all of that slot); any reply but a redirection.
    #[track_caller]
    pub fn call<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Reply {
        let slot = slot_of(arguments[1].as_ref());
        self.call_in(slot, arguments)
    }

    /// One command for the owner of a slot.
    #[track_caller]
    pub fn call_in<A: AsRef<[u8]>>(&mut self, slot: u16, arguments: &[A]) -> Reply {
        let command: Vec<Vec<u8>> = arguments.iter().map(|word| word.as_ref().to_vec()).collect();
        self.call_all(slot, &[command]).remove(0)
    }

    /// The same for a command that must not answer with an error.
    #[track_caller]
    pub fn ok<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Reply {
        match self.call(arguments) {
            Reply::Error(error) => panic!("{}: {error}", show(arguments)),
            reply => reply,
        }
    }

    /// A string, or `None` for a null reply.
    #[track_caller]
    pub fn bytes<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Option<Vec<u8>> {
        match self.ok(arguments) {
            Reply::Null => None,
            reply => Some(reply.as_bytes().unwrap_or_default().to_vec()),
        }
    }

    /// Several commands of one slot in a pipeline, in order. A transaction (`MULTI` … `EXEC` as first and last command) is
    /// refused or done as a whole; other commands are sent again one by one where the cluster has not taken them.
    #[track_caller]
    pub fn call_all(&mut self, slot: u16, commands: &[Vec<Vec<u8>>]) -> Vec<Reply> {
        let started = Instant::now();
        let transaction = commands.first().is_some_and(|first| first[0] == b"MULTI");
        loop {
            let Some(replies) = self.send(slot, commands) else {
                self.wait_and_discover(started, "no connection");
                continue;
            };
            let refused = replies.iter().find_map(Refusal::of);
            let Some(refusal) = refused else { return replies };
            if commands.len() == 1 {
                if let Refusal::Ask(address) = refusal
                    && let Some(reply) = self.ask(address, &commands[0])
                    && Refusal::of(&reply).is_none()
                {
                    return vec![reply];
                }
                self.wait_and_discover(started, &format!("{refusal:?}"));
            } else if transaction {
                self.wait_and_discover(started, &format!("{refusal:?}"));
            } else {
                // Later commands may have been taken where an earlier one was not: only the load uses this, whose
                // commands may come in any order.
                self.again += 1;
                return replies
                    .into_iter()
                    .zip(commands)
                    .map(|(reply, command)| match Refusal::of(&reply) {
                        None => reply,
                        Some(_) => self.call_all(slot, std::slice::from_ref(command)).remove(0),
                    })
                    .collect();
            }
        }
    }

    /// A connection to the owner of a slot, as far as known.
    #[track_caller]
    pub fn owner(&mut self, slot: u16) -> &mut Client {
        let started = Instant::now();
        loop {
            if let Some(address) = self.address_of(slot)
                && self.link(address).is_some()
            {
                return self.links.get_mut(&address).unwrap();
            }
            self.wait_and_discover(started, "no connection");
        }
    }

    /// Every key that matches a pattern, of all masters.
    #[track_caller]
    pub fn keys_like(&mut self, pattern: &str) -> BTreeSet<Vec<u8>> {
        let started = Instant::now();
        loop {
            self.discover();
            let masters: BTreeSet<SocketAddr> = self.owners.iter().map(|(_, address)| *address).collect();
            if masters.iter().all(|address| self.link(*address).is_some()) {
                return masters
                    .iter()
                    .flat_map(|at| keys_like(self.links.get_mut(at).unwrap(), pattern))
                    .collect();
            }
            self.wait_and_discover(started, "a master does not answer");
        }
    }

    fn send(&mut self, slot: u16, commands: &[Vec<Vec<u8>>]) -> Option<Vec<Reply>> {
        let address = self.address_of(slot)?;
        let link = self.link(address)?;
        commands.iter().for_each(|command| link.push(command));
        let replies = link.try_flush(commands.len());
        if replies.is_err() {
            self.links.remove(&address);
        }
        replies.ok()
    }

    fn ask(&mut self, address: SocketAddr, command: &[Vec<u8>]) -> Option<Reply> {
        let link = self.link(address)?;
        link.push(&["ASKING"]);
        link.push(command);
        let replies = link.try_flush(2);
        if replies.is_err() {
            self.links.remove(&address);
        }
        self.again += 1;
        replies.ok()?.pop()
    }

    fn link(&mut self, address: SocketAddr) -> Option<&mut Client> {
        if !self.links.contains_key(&address) {
            let mut client = Client::try_connect(address).ok()?;
            if let Some(password) = &self.password {
                client.try_cmd(&["AUTH", password]).ok()?;
            }
            self.links.insert(address, client);
        }
        self.links.get_mut(&address)
    }

    fn address_of(&self, slot: u16) -> Option<SocketAddr> {
        self.owners.iter().find(|(range, _)| range.contains(&slot)).map(|(_, address)| *address)
    }

    #[track_caller]
    fn wait_and_discover(&mut self, started: Instant, why: &str) {
        assert!(started.elapsed() < DEADLINE, "the cluster did not take a command for {DEADLINE:?}: {why}");
        self.again += 1;
        std::thread::sleep(Duration::from_millis(5));
        self.discover();
    }

    /// Asks the nodes, one after the other, until one has a slot map.
    fn discover(&mut self) {
        for address in self.seeds.clone() {
            let Some(link) = self.link(address) else { continue };
            let found = match link.try_cmd(&["CLUSTER", "SLOTS"]) {
                Ok(reply) => owners_in(reply),
                Err(_) => {
                    self.links.remove(&address);
                    continue;
                }
            };
            if !found.is_empty() {
                self.owners = found;
                // The next question goes to another node: this one may be the one that knows nothing new.
                self.seeds.rotate_left(1);
                return;
            }
        }
    }
}

/// Why a node did not take a command.
#[derive(Debug)]
enum Refusal {
    Moved,
    Ask(SocketAddr),
    Later,
}

impl Refusal {
    fn of(reply: &Reply) -> Option<Refusal> {
        let Reply::Error(error) = reply else { return None };
        let mut words = error.split_whitespace();
        match words.next()? {
            "MOVED" => Some(Refusal::Moved),
            "ASK" => Some(words.nth(1)?.parse().map_or(Refusal::Later, Refusal::Ask)),
            "TRYAGAIN" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" | "READONLY" | "EXECABORT" => {
                Some(Refusal::Later)
            }
            _ => None,
        }
    }
}

/// CLUSTER SLOTS: every range with the address of its owner, in the order of the slots.
pub fn owners(client: &mut Client) -> Vec<(RangeInclusive<u16>, SocketAddr)> {
    owners_in(client.cmd(&["CLUSTER", "SLOTS"]))
}

fn owners_in(reply: Reply) -> Vec<(RangeInclusive<u16>, SocketAddr)> {
    let Reply::Array(rows) = reply else { return Vec::new() };
    let row = |row: Reply| {
        let Reply::Array(fields) = row else { return None };
        let [Reply::Integer(first), Reply::Integer(last), Reply::Array(owner), ..] = fields.as_slice() else {
            return None;
        };
        let [host, Reply::Integer(port), ..] = owner.as_slice() else { return None };
        let host = std::str::from_utf8(host.as_bytes()?).ok()?.parse().ok()?;
        Some((*first as u16..=*last as u16, SocketAddr::new(host, *port as u16)))
    };
    let mut all: Vec<_> = rows.into_iter().filter_map(row).collect();
    all.sort_by_key(|(range, _)| *range.start());
    all
}

/// The slot of a key by the cluster specification: CRC16 (XMODEM) of the hash tag, or of the whole key, modulo 16384.
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let length = key[open + 1..].iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &key[open + 1..open + 1 + length])
    });
    let crc = tag.unwrap_or(key).iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 }
        })
    });
    crc % SLOTS
}
