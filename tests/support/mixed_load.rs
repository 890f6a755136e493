//! A load that a cluster takes as well as a standalone server: every type, commands that must not be applied twice,
//! transactions and scripts of one slot. A standalone server also gets what spans slots: MSET, DEL and UNLINK of several keys, RENAME,
//! COPY, SUNIONSTORE, LMOVE, SMOVE.
//!
//! With several databases each unit of commands runs in one of them, and keys are copied and moved between them.
//!
//! Keys are named `mixed:<type>:{<n>}`: those with the same `n` are in one slot. The commands depend on the seed only, their number
//! on the time. [`super::load`] is the load for everything that only a standalone server has (16 databases).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{Client, Reply, keys_like};
use super::cluster::Cluster;
use super::cluster_client::{ClusterClient, slot_of};
use super::random::Random;
use super::server::Server;
use super::wait_until;

/// How the load is made.
#[derive(Debug, Clone, Copy)]
pub struct Mixed {
    pub seed: u64,
    /// How many values of `n` there are: few of them change often.
    pub names: u64,
    /// About how many commands are sent in a second; 0 = as many as the server takes.
    pub per_second: u64,
    /// Databases 0 to this number, without it, are written to.
    pub databases: u64,
}

impl Mixed {
    /// 300 names, as fast as it goes.
    pub fn new(seed: u64) -> Mixed {
        Mixed { seed, names: 300, per_second: 0, databases: 1 }
    }

    pub fn per_second(mut self, count: u64) -> Mixed {
        self.per_second = count;
        self
    }

    pub fn databases(mut self, count: u64) -> Mixed {
        self.databases = count;
        self
    }

    /// Changes a standalone server.
    #[track_caller]
    pub fn on_server(self, server: &Server) -> MixedLoad {
        MixedLoad::start(self, Link::Server(server.client()), Link::Server(server.client()))
    }

    /// Changes a cluster, through moving slots and failing nodes.
    #[track_caller]
    pub fn on_cluster(self, cluster: &Cluster) -> MixedLoad {
        MixedLoad::start(self, Link::Cluster(cluster.client()), Link::Cluster(cluster.client()))
    }
}

/// A running load; ends when stopped or dropped.
pub struct MixedLoad {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<(Vec<String>, u64)>>,
    link: Link,
}

/// What a load has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Commands that were answered.
    pub sent: u64,
    /// How often a cluster refused something at first (moved, asked, tried again).
    pub again: u64,
}

impl MixedLoad {
    fn start(load: Mixed, link: Link, second: Link) -> MixedLoad {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counter) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || run(link, load, &stopped, &counter));
        MixedLoad { stop, sent, thread: Some(thread), link: second }
    }

    /// Commands answered so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until so many more commands were answered: something happens, whatever the speed of the machine.
    #[track_caller]
    pub fn wait_more(&self, count: u64) {
        let wanted = self.sent() + count;
        wait_until(Duration::from_secs(120), "the load goes on", || {
            self.sent() >= wanted || self.thread.as_ref().is_none_or(JoinHandle::is_finished)
        });
        assert!(self.sent() >= wanted, "the load has ended by itself");
    }

    /// Ends the load and waits until its short-lived keys are gone from the source, so that what remains is at rest.
    /// Panics if the server refused a command for another reason than the state of its keys.
    #[track_caller]
    pub fn stop(mut self) -> Done {
        self.stop.store(true, Ordering::Relaxed);
        let (errors, again) = self.thread.take().unwrap().join().unwrap();
        assert!(errors.is_empty(), "the load was refused: {errors:?}");
        wait_until(Duration::from_secs(30), "the short-lived keys are gone", || {
            // SCAN removes what has expired.
            let brief = match &mut self.link {
                Link::Server(client) => keys_like(client, "mixed:brief:*"),
                Link::Cluster(client) => client.keys_like("mixed:brief:*"),
            };
            brief.is_empty()
        });
        Done { sent: self.sent(), again }
    }
}

impl Drop for MixedLoad {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum Link {
    Server(Client),
    Cluster(ClusterClient),
}

fn run(mut link: Link, load: Mixed, stop: &AtomicBool, sent: &AtomicU64) -> (Vec<String>, u64) {
    let spans_slots = matches!(link, Link::Server(_));
    let mut maker = Maker {
        random: Random::new(load.seed),
        names: load.names,
        databases: load.databases,
        serial: 0,
        spans_slots,
        out: Vec::new(),
    };
    let mut errors = Vec::new();
    let started = Instant::now();
    while !stop.load(Ordering::Relaxed) && errors.len() < 10 {
        let n = maker.random.below(load.names);
        maker.unit(n);
        let mut commands = std::mem::take(&mut maker.out);
        if load.databases > 1 {
            let db = maker.random.below(load.databases).to_string();
            in_database(&mut commands, &db, !spans_slots);
        }
        let replies = match &mut link {
            Link::Server(client) => {
                commands.iter().for_each(|command| client.push(command));
                client.flush(commands.len())
            }
            Link::Cluster(client) => client.call_all(slot_of(n.to_string().as_bytes()), &commands),
        };
        for (reply, command) in replies.iter().zip(&commands) {
            // A stream may have lost its group, RENAME and COPY may find nothing: that is part of the load.
            const EXPECTED: [&str; 5] = [
                "WRONGTYPE",
                "NOGROUP",
                "BUSYGROUP",
                "ERR no such key",
                "ERR source and destination objects",
            ];
            if let Reply::Error(error) = reply
                && !EXPECTED.iter().any(|start| error.starts_with(start))
            {
                errors.push(format!("{}: {error}", super::client::show(command)));
            }
        }
        let total = sent.fetch_add(commands.len() as u64, Ordering::Relaxed) + commands.len() as u64;
        if load.per_second > 0 {
            let ahead = total as f64 / load.per_second as f64 - started.elapsed().as_secs_f64();
            if ahead > 0.0 {
                // Pacing, not waiting for an effect.
                std::thread::sleep(Duration::from_secs_f64(ahead));
            }
        }
    }
    let again = if let Link::Cluster(client) = &link { client.again } else { 0 };
    (errors, again)
}

/// Runs the commands in this database. In a cluster they are one transaction, so that none is sent again by itself, in another one.
fn in_database(commands: &mut Vec<Vec<Vec<u8>>>, db: &str, in_cluster: bool) {
    let command = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
    let select = command(&["SELECT", db]);
    if !in_cluster {
        commands.insert(0, select);
        return;
    }
    commands.retain(|command| command[0] != b"MULTI" && command[0] != b"EXEC");
    commands.splice(0..0, [command(&["MULTI"]), select]);
    commands.extend([command(&["SELECT", "0"]), command(&["EXEC"])]);
}

struct Maker {
    random: Random,
    names: u64,
    databases: u64,
    serial: u64,
    spans_slots: bool,
    out: Vec<Vec<Vec<u8>>>,
}

impl Maker {
    fn push<A: AsRef<[u8]>>(&mut self, command: &[A]) {
        self.out.push(command.iter().map(|word| word.as_ref().to_vec()).collect());
    }

    /// A few commands of the slot of `n`; on a standalone server some that span slots.
    fn unit(&mut self, n: u64) {
        let key = |kind: &str| format!("mixed:{kind}:{{{n}}}");
        // The other key of a command of two keys: in the same slot, or in any.
        let other = if self.spans_slots { self.random.below(self.names) } else { n };
        let second = |kind: &str| format!("mixed:{kind}2:{{{other}}}");
        let word = String::from_utf8(self.random.word(12)).unwrap();
        let number = self.random.below(1_000).to_string();
        let kind = self.random.below(25);
        if self.databases > 1 && self.random.below(12) == 0 {
            let db = self.random.below(self.databases).to_string();
            match kind % 2 {
                0 => self.push(&["COPY", &key("text"), &second("text"), "DB", &db, "REPLACE"]),
                _ => self.push(&["MOVE", &key("counter"), &db]),
            }
            return;
        }
        match kind {
            0 => self.push(&["INCR", &key("counter")]),
            1 => self.push(&["APPEND", &key("text"), &word]),
            2 => {
                self.push(&["SET", &key("text"), &word]);
                self.push(&["GETSET", &second_of(&key("text")), &number]);
            }
            3 => {
                self.push(&["LPUSH", &key("list"), &word, &number]);
                self.push(&["LTRIM", &key("list"), "0", "60"]);
            }
            4 => self.push(&["RPOP", &key("list2")]),
            5 => {
                self.push(&["HINCRBYFLOAT", &key("hash"), "float", "1.5"]);
                self.push(&["HSET", &key("hash"), &number, &word]);
            }
            6 => self.push(&["HDEL", &key("hash"), &number]),
            7 => self.push(&["SADD", &key("set"), &word, &number, "always"]),
            8 => self.push(&["SPOP", &key("set"), "2"]),
            9 => self.push(&["ZINCRBY", &key("zset"), "2.5", &word[..2]]),
            10 => self.push(&["ZREMRANGEBYRANK", &key("zset"), "0", "1"]),
            11 => self.push(&["XADD", &key("stream"), "MAXLEN", "~", "100", "*", "field", &word]),
            12 => {
                let stream = key("stream");
                self.push(&["XADD", &stream, "*", "n", &number]);
                self.push(&["XGROUP", "CREATE", &stream, "group", "0"]);
                self.push(&["XREADGROUP", "GROUP", "group", "eve", "COUNT", "3", "STREAMS", &stream, ">"]);
            }
            13 => self.push(&["SET", &key("lives"), &word, "EX", "864000"]),
            // Whether they are gone is looked up in one database.
            14 if self.databases == 1 => {
                // Gone soon; its name is never used again.
                self.serial += 1;
                let (brief, life) =
                    (format!("{}:{}", key("brief"), self.serial), self.random.between(20, 3_000).to_string());
                self.push(&["SET", &brief, "soon gone", "PX", &life]);
            }
            15 => self.push(&["DEL", &key("text"), &second("list")]),
            16 => self.push(&["UNLINK", &key("zset"), &second("set"), &second("text")]),
            17 => {
                self.push(&["MSET", &key("counter"), &number, &second("text"), &word, &second("mset"), &word])
            }
            18 => {
                self.push(&["MULTI"]);
                self.push(&["INCR", &key("multi")]);
                self.push(&["RPUSH", &key("multi-log"), &number]);
                self.push(&["LTRIM", &key("multi-log"), "-20", "-1"]);
                self.push(&["INCRBY", &key("multi"), &number]);
                self.push(&["EXEC"]);
            }
            19 => {
                let script = "redis.call('INCR', KEYS[1]); redis.call('HINCRBY', KEYS[2], ARGV[1], 1); return redis.call('SADD', KEYS[3], ARGV[1])";
                let keys = ["lua-count", "lua-hash", "lua-set"].map(key);
                self.push(&["EVAL", script, "3", &keys[0], &keys[1], &keys[2], &number]);
            }
            20 => self.push(&["RENAME", &key("text"), &second("text")]),
            21 => self.push(&["COPY", &key("text"), &second("text"), "REPLACE"]),
            22 => self.push(&["SUNIONSTORE", &second("set"), &key("set"), &key("lua-set")]),
            23 => self.push(&["LMOVE", &key("list"), &second("list"), "LEFT", "RIGHT"]),
            _ => self.push(&["SMOVE", &key("set"), &second("set"), &number]),
        }
    }
}

/// `mixed:text:{7}` -> `mixed:text2:{7}`.
fn second_of(key: &str) -> String {
    key.replacen(":{", "2:{", 1)
}
