//! A client that keeps changing a server while it is migrated: every type, commands that must not be applied twice,
//! transactions, scripts, expiries, all databases. The commands depend on the seed only, their number on the time.
//!
//! Keys of [`dataset`] are changed too (so that the change meets the key in the RDB, before and after it was applied);
//! keys of its own are named `live:…`. Keys with a short life get it once and are never prolonged: what a destination
//! does with a life prolonged after its end is a question of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{Client, Reply, keys_like};
use super::dataset::{self, DATABASES, Shape};
use super::random::Random;
use super::server::Server;
use super::wait_until;

/// How the load is made.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub seed: u64,
    /// Keys that `dataset::fill` has made.
    pub keys: u64,
    /// About how many commands are sent in a second; 0 = as many as the server takes.
    pub per_second: u64,
}

/// A running load; ends when stopped or dropped.
pub struct Writer {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<String>>>,
    client: Client,
}

impl Writer {
    #[track_caller]
    pub fn start(server: &Server, load: Load) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let client = server.client();
        let (stopped, counter) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || run(client, load, &stopped, &counter));
        Writer { stop, sent, thread: Some(thread), client: server.client() }
    }

    /// Commands sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the load, waits until its short-lived keys are gone from the source (so that what remains is at rest), and
    /// returns how many commands were sent. Panics if the server refused one for another reason than that the key has
    /// another type by now.
    #[track_caller]
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let errors = self.thread.take().unwrap().join().unwrap();
        assert!(errors.is_empty(), "the load was refused: {errors:?}");
        for database in 0..DATABASES {
            self.client.ok(&["SELECT", &database.to_string()]);
            wait_until(Duration::from_secs(10), "the short-lived keys are gone", || {
                // SCAN removes what has expired.
                keys_like(&mut self.client, "live:brief:*").is_empty()
            });
        }
        self.sent()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut client: Client, load: Load, stop: &AtomicBool, sent: &AtomicU64) -> Vec<String> {
    let mut maker = Maker { random: Random::new(load.seed), keys: load.keys, serial: 0 };
    let mut errors = Vec::new();
    let started = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let mut count = maker.batch(&mut client);
        for reply in client.flush(count) {
            match reply {
                Reply::Error(error) if error.starts_with("WRONGTYPE") || error.contains("no such key") => {
                    count -= 1
                }
                Reply::Error(error) if errors.len() < 10 => errors.push(error.to_string()),
                _ => {}
            }
        }
        let total = sent.fetch_add(count as u64, Ordering::Relaxed) + count as u64;
        if load.per_second > 0 {
            let due = total as f64 / load.per_second as f64;
            let ahead = due - started.elapsed().as_secs_f64();
            if ahead > 0.0 {
                // Pacing, not waiting for an effect.
                std::thread::sleep(Duration::from_secs_f64(ahead));
            }
        }
    }
    errors
}

struct Maker {
    random: Random,
    keys: u64,
    serial: u64,
}

impl Maker {
    /// Pushes about fifty commands for one database; returns how many replies will come.
    fn batch(&mut self, client: &mut Client) -> usize {
        let database = self.random.below(DATABASES);
        let mut out = Out { client, count: 0 };
        out.push(&["SELECT", &database.to_string()]);
        while out.count < 50 {
            match self.random.below(100) {
                0..=39 => self.change_data_set(&mut out, database),
                40..=49 => self.transaction(&mut out),
                50..=54 => self.script(&mut out),
                55..=64 => self.short_life(&mut out),
                _ => self.change_own(&mut out),
            }
        }
        out.count
    }

    /// A key of the data set gets a command that fits its type.
    fn change_data_set(&mut self, out: &mut Out, database: u64) {
        if self.keys < DATABASES {
            return self.change_own(out);
        }
        let i = self.random.below(self.keys / DATABASES) * DATABASES + database;
        let key = dataset::key(i);
        let word = self.random.word(8);
        let number = self.random.below(1_000).to_string().into_bytes();
        let with = |verb: &str, rest: &[&[u8]]| -> Vec<Vec<u8>> {
            let mut command = vec![verb.as_bytes().to_vec(), key.clone()];
            command.extend(rest.iter().map(|word| word.to_vec()));
            command
        };
        let choice = self.random.below(6);
        let command = match (choice, Shape::of(i)) {
            (0, _) => with(
                "PEXPIREAT",
                &[(dataset::FAR_AWAY + self.random.below(1_000_000)).to_string().as_bytes()],
            ),
            (1, _) if self.random.chance(30) => with("DEL", &[]),
            (1, _) => with("PERSIST", &[]),
            (_, Shape::StringInteger) => with("SETRANGE", &[b"3", &number]),
            (_, Shape::StringShort | Shape::StringLong | Shape::StringEmpty) => with("APPEND", &[&word]),
            (_, Shape::StringBinary) => with("SETBIT", &[&number, b"1"]),
            (2, Shape::HashSmall | Shape::HashLarge) => with("HDEL", &[b"field1"]),
            (_, Shape::HashSmall | Shape::HashLarge) => with("HINCRBY", &[b"counter", &number]),
            (2, Shape::ListSmall | Shape::ListLong) => with("LPOP", &[]),
            (3, Shape::ListSmall | Shape::ListLong) => with("LSET", &[b"0", &word]),
            (_, Shape::ListSmall | Shape::ListLong) => with("RPUSH", &[&word, &number]),
            (2, Shape::SetIntegers | Shape::SetListpack | Shape::SetHashtable) => with("SPOP", &[]),
            (_, Shape::SetIntegers) => with("SADD", &[&number]),
            (_, Shape::SetListpack | Shape::SetHashtable) => with("SADD", &[&word]),
            (2, Shape::ZsetSmall | Shape::ZsetLarge) => with("ZPOPMIN", &[]),
            (_, Shape::ZsetSmall | Shape::ZsetLarge) => with("ZINCRBY", &[&number, &word]),
            (2, Shape::Stream) => with("XTRIM", &[b"MAXLEN", b"3"]),
            (3, Shape::Stream) => with("XDEL", &[b"1700000000001-1"]),
            (_, Shape::Stream) => with("XADD", &[b"*", b"field", &word]),
            (_, Shape::HyperLogLog) => with("PFADD", &[&word]),
        };
        out.push(&command);
    }

    /// Keys of its own, few of them, so that they change often.
    fn change_own(&mut self, out: &mut Out) {
        let n = self.random.below(200);
        let (other, word) =
            ((n + self.random.between(1, 200)) % 200, String::from_utf8(self.random.word(12)).unwrap());
        let number = self.random.below(100_000).to_string();
        match self.random.below(24) {
            0 => out.push(&["INCR", &format!("live:counter:{n}")]),
            1 => out.push(&["INCRBYFLOAT", &format!("live:float:{n}"), "0.1"]),
            2 => out.push(&["APPEND", &format!("live:text:{n}"), &word]),
            3 => out.push(&["SET", &format!("live:text:{n}"), &word]),
            4 => out.push(&["GETDEL", &format!("live:text:{n}")]),
            5 => out.push(&["RENAME", &format!("live:text:{n}"), &format!("live:text:{other}")]),
            6 => out.push(&["COPY", &format!("live:text:{n}"), &format!("live:text:{other}"), "REPLACE"]),
            7 => out.push(&["LPUSH", &format!("live:list:{n}"), &word, &number]),
            8 => out.push(&[
                "LMOVE",
                &format!("live:list:{n}"),
                &format!("live:list:{other}"),
                "LEFT",
                "RIGHT",
            ]),
            9 => out.push(&["RPOP", &format!("live:list:{n}"), "2"]),
            10 => out.push(&["LTRIM", &format!("live:list:{n}"), "0", "50"]),
            11 => out.push(&["HSET", &format!("live:hash:{n}"), &number, &word]),
            12 => out.push(&["HINCRBYFLOAT", &format!("live:hash:{n}"), "float", "1.5"]),
            13 => out.push(&["SADD", &format!("live:set:{n}"), &word, &number]),
            14 => out.push(&["SPOP", &format!("live:set:{n}"), "3"]),
            15 => out.push(&["SMOVE", &format!("live:set:{n}"), &format!("live:set:{other}"), &number]),
            16 => out.push(&[
                "SUNIONSTORE",
                "live:set:union",
                &format!("live:set:{n}"),
                &format!("live:set:{other}"),
            ]),
            17 => out.push(&["ZINCRBY", &format!("live:zset:{n}"), "2.5", &word[..2]]),
            18 => out.push(&["ZREMRANGEBYRANK", &format!("live:zset:{n}"), "0", "1"]),
            19 => out.push(&[
                "ZUNIONSTORE",
                "live:zset:union",
                "2",
                &format!("live:zset:{n}"),
                &format!("live:zset:{other}"),
            ]),
            20 => out.push(&["XADD", &format!("live:stream:{n}"), "MAXLEN", "~", "100", "*", "field", &word]),
            21 => {
                // The group may be there already; MKSTREAM may make the stream.
                let stream = format!("live:stream:{n}");
                out.push(&["XADD", &stream, "*", "n", &number]);
                out.push(&["XGROUP", "DESTROY", &stream, "group"]);
                out.push(&["XGROUP", "CREATE", &stream, "group", "0"]);
                out.push(&["XREADGROUP", "GROUP", "group", "eve", "COUNT", "3", "STREAMS", &stream, ">"]);
            }
            22 => out.push(&["UNLINK", &format!("live:hash:{n}"), &format!("live:zset:{other}")]),
            _ => out.push(&["PFMERGE", "live:log:all", &format!("live:log:{n}")]),
        }
    }

    fn transaction(&mut self, out: &mut Out) {
        let n = self.random.below(50);
        out.push(&["MULTI"]);
        for step in 0..self.random.between(2, 6) {
            out.push(&["INCR", &format!("live:multi:{n}:{step}")]);
        }
        out.push(&["RPUSH", &format!("live:multi:{n}:log"), &self.random.below(1_000).to_string()]);
        out.push(&["LTRIM", &format!("live:multi:{n}:log"), "-20", "-1"]);
        out.push(&["EXEC"]);
    }

    fn script(&mut self, out: &mut Out) {
        let script = "redis.call('INCR', KEYS[1]); redis.call('HINCRBY', KEYS[2], ARGV[1], 1); return redis.call('SADD', KEYS[3], ARGV[1])";
        let n = self.random.below(50);
        let keys = ["count", "hash", "set"].map(|kind| format!("live:script:{n}:{kind}"));
        out.push(&["EVAL", script, "3", &keys[0], &keys[1], &keys[2], &self.random.below(100).to_string()]);
    }

    /// A key that will be gone soon; its name is never used again.
    fn short_life(&mut self, out: &mut Out) {
        self.serial += 1;
        let (key, life) = (format!("live:brief:{}", self.serial), self.random.between(20, 3_000).to_string());
        if self.random.chance(50) {
            out.push(&["SET", &key, "soon gone", "PX", &life]);
        } else {
            out.push(&["HSET", &key, "field", "soon gone"]);
            out.push(&["PEXPIRE", &key, &life]);
        }
    }
}

struct Out<'a> {
    client: &'a mut Client,
    count: usize,
}

impl Out<'_> {
    fn push<A: AsRef<[u8]>>(&mut self, command: &[A]) {
        self.client.push(command);
        self.count += 1;
    }
}
