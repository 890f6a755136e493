//! What the demo moves: a data set of every core type, and clients that keep changing it.
//!
//! Everything follows from one seed: the same seed makes the same keys, and the kind, database and time to live of key
//! number `n` can be told from `n` alone, which is how the load finds keys of the right type. Keys with a short life are
//! only ever written whole: a key that ends between source and destination must not change what either side holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::store::{DATABASES, Entry, Store};
use super::value::{Consumer, Group, Pending, Stream, StreamId, Value};
use super::wire::Argv;

/// A small, fast, seeded generator (SplitMix64): the same numbers on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end` (0 where `end` is 0).
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end.max(1)
    }

    /// True in `percent` of 100 cases.
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.bits() as u8).collect()
    }

    fn text(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| b'a' + self.below(26) as u8).collect()
    }
}

/// What a key of the data set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Text,
    HyperLogLog,
    List,
    Set,
    Hash,
    SortedSet,
    Stream,
}

/// The part of a key that follows from its number.
struct Identity {
    db: usize,
    key: Vec<u8>,
    kind: Kind,
    /// Time to live from the start (ms), where it has one.
    ttl_ms: Option<u64>,
}

fn identity(seed: u64, number: u64) -> Identity {
    let mut random = Random::new(seed ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93));
    let (kind, name) = match random.below(100) {
        0..25 => (Kind::Number, "counter"),
        25..50 => (Kind::Text, "page"),
        50..52 => (Kind::HyperLogLog, "visitors"),
        52..63 => (Kind::List, "queue"),
        63..74 => (Kind::Set, "tags"),
        74..87 => (Kind::Hash, "user"),
        87..97 => (Kind::SortedSet, "ranking"),
        _ => (Kind::Stream, "events"),
    };
    let db = if random.chance(60) { 0 } else { random.below(DATABASES as u64) as usize };
    let key = match random.below(50) {
        // Keys are bytes: a line end and a zero byte, and no text at all.
        0 => [format!("{name}\r\n\0:{number}:").into_bytes(), random.bytes(6)].concat(),
        // A key that is a number has an encoding of its own in an RDB.
        1 => number.to_string().into_bytes(),
        _ => format!("{name}:{number}").into_bytes(),
    };
    let ttl_ms = match random.below(100) {
        0..2 => Some(5_000 + random.below(60_000)),
        2..20 => Some(3_600_000 + random.below(7 * 86_400_000)),
        _ => None,
    };
    Identity { db, key, kind, ttl_ms }
}

/// Puts `keys` keys into an empty store.
pub fn fill(store: &mut Store, keys: u64, seed: u64, now_ms: u64) {
    for number in 0..keys {
        let identity = identity(seed, number);
        let mut random = Random::new(seed.rotate_left(17) ^ number);
        let mut entry = Entry::with_expiry(
            value(identity.kind, &mut random, now_ms),
            identity.ttl_ms.map(|ttl| now_ms.saturating_add(ttl)),
        );
        entry.idle_seconds = Some(random.below(10_000));
        entry.frequency = Some(random.bits() as u8);
        store.insert(identity.db, identity.key, entry);
    }
    if keys > 0 {
        // An empty name and an empty value are legal.
        store.insert(0, Vec::new(), Entry::new(Value::String(b"the key without a name".to_vec())));
        store.insert(1, b"empty".to_vec(), Entry::new(Value::String(Vec::new())));
    }
}

/// How many elements: mostly few, seldom enough for the unpacked encoding.
fn size(random: &mut Random, large: u64) -> u64 {
    if random.below(200) == 0 { large / 2 + random.below(large) } else { 1 + random.below(24) }
}

fn value(kind: Kind, random: &mut Random, now_ms: u64) -> Value {
    match kind {
        Kind::Number => {
            let shift = random.below(63);
            let number = (random.bits() >> shift) as i64;
            Value::String(if random.chance(2) { i64::MIN } else { number / 2 }.to_string().into_bytes())
        }
        Kind::Text => {
            let length = match random.below(1_000) {
                0 => 20_000 + random.below(80_000),
                1..30 => 0,
                _ => random.below(200),
            };
            Value::String(match random.below(4) {
                0 => random.bytes(length as usize),
                1 => b"0123456789".iter().copied().cycle().take(length as usize).collect(),
                _ => random.text(length as usize),
            })
        }
        Kind::HyperLogLog => {
            // Sparse, all registers zero: PFCOUNT and PFADD take it (hyperloglog.c, `createHLLObject`).
            Value::String([b"HYLL\x01\0\0\0".as_slice(), &[0; 7], &[0x80, 0x7F, 0xFF]].concat())
        }
        Kind::List => {
            let mut items: VecDeque<Vec<u8>> = (0..size(random, 2_000)).map(|_| element(random)).collect();
            if random.below(300) == 0 {
                items.push_back(random.text(9_000));
            }
            Value::List(items)
        }
        Kind::Set => {
            let count = size(random, 1_200);
            let shift = 16 * random.below(4);
            let numbers = random.chance(50);
            let members: BTreeSet<Vec<u8>> = (0..count)
                .map(|_| {
                    if numbers {
                        ((random.bits() >> shift) as i64 >> 1).to_string().into_bytes()
                    } else {
                        element(random)
                    }
                })
                .collect();
            Value::Set(members)
        }
        Kind::Hash => Value::Hash(
            (0..size(random, 800))
                .map(|index| (format!("field{index}").into_bytes(), element(random)))
                .collect(),
        ),
        Kind::SortedSet => {
            let members = (0..size(random, 600)).map(|_| {
                let score = match random.below(40) {
                    0 => f64::INFINITY,
                    1 => f64::NEG_INFINITY,
                    2..20 => random.below(100_000) as f64,
                    _ => random.bits() as i64 as f64 / 1_048_576.0,
                };
                (element(random), score)
            });
            Value::SortedSet(members.collect::<BTreeMap<_, _>>())
        }
        Kind::Stream => Value::Stream(stream(random, now_ms)),
    }
}

fn element(random: &mut Random) -> Vec<u8> {
    match random.below(20) {
        0 => Vec::new(),
        1 => {
            let length = random.below(30) as usize;
            random.bytes(length)
        }
        2 => random.text(100),
        3..9 => random.below(1 << 40).to_string().into_bytes(),
        _ => {
            let length = 1 + random.below(20) as usize;
            random.text(length)
        }
    }
}

fn stream(random: &mut Random, now_ms: u64) -> Stream {
    let mut stream = Stream::default();
    let mut id = StreamId { ms: now_ms.saturating_sub(86_400_000), seq: 0 };
    for number in 0..size(random, 400) {
        id = if random.chance(30) {
            StreamId { seq: id.seq + 1, ..id }
        } else {
            StreamId { ms: id.ms + 1 + random.below(10_000), seq: 0 }
        };
        let mut fields =
            vec![(b"kind".to_vec(), random.text(6)), (b"number".to_vec(), number.to_string().into_bytes())];
        if random.chance(10) {
            fields.push((b"note".to_vec(), element(random)));
        }
        stream.entries.insert(id, fields);
        stream.entries_added += 1;
    }
    stream.last_id = id;
    if random.chance(20)
        && let Some((deleted, _)) = stream.entries.pop_first()
    {
        stream.max_deleted_id = deleted;
    }
    for number in 0..random.below(3) {
        let consumers: Vec<Vec<u8>> =
            (0..1 + random.below(3)).map(|n| format!("worker-{n}").into_bytes()).collect();
        let read = random.below(stream.entries.len() as u64 + 1) as usize;
        let mut group = Group {
            last_id: stream.entries.keys().take(read).next_back().copied().unwrap_or_default(),
            entries_read: if random.chance(50) { Some(read as u64) } else { None },
            ..Group::default()
        };
        for name in &consumers {
            group
                .consumers
                .insert(name.clone(), Consumer { seen_ms: now_ms - 5_000, active_ms: Some(now_ms - 9_000) });
        }
        for id in stream.entries.keys().take(read).rev().take(20) {
            if let Some(consumer) = consumers.get(random.below(consumers.len() as u64) as usize) {
                let pending = Pending {
                    consumer: consumer.clone(),
                    delivered_ms: now_ms - random.below(3_600_000),
                    deliveries: 1 + random.below(4),
                };
                group.pending.insert(*id, pending);
            }
        }
        stream.groups.insert(format!("group-{number}").into_bytes(), group);
    }
    stream
}

/// Clients that keep changing the data set: an endless supply of commands.
#[derive(Debug)]
pub struct Load {
    random: Random,
    seed: u64,
    keys: u64,
    db: usize,
}

impl Load {
    /// For a data set that [`fill`] made with the same numbers.
    pub fn new(keys: u64, seed: u64) -> Load {
        // Another start than that of the data set.
        Load { random: Random::new(!seed), seed, keys, db: usize::MAX }
    }

    /// The database that is selected behind the commands so far.
    pub fn database(&self) -> usize {
        if self.db < DATABASES { self.db } else { 0 }
    }

    /// Appends the next command, or transaction, with the SELECT that it needs; answers how many commands it is.
    pub fn next(&mut self, out: &mut Vec<Argv>, now_ms: u64) -> usize {
        let before = out.len();
        let db = match self.random.below(10) {
            0..6 if self.db < DATABASES => self.db,
            6..9 => 0,
            _ => self.random.below(DATABASES as u64) as usize,
        };
        if self.random.below(20) == 0 {
            self.select(out, db);
            out.push(argv(&["MULTI"]));
            for _ in 0..2 + self.random.below(9) {
                // A transaction may change the database in the middle.
                if self.random.below(20) == 0 {
                    let db = self.random.below(DATABASES as u64) as usize;
                    self.select(out, db);
                }
                let command = self.command(now_ms);
                out.push(command);
            }
            out.push(argv(&["EXEC"]));
        } else if let Some((db, command)) = self.on_data_set(now_ms) {
            self.select(out, db);
            out.push(command);
        } else {
            self.select(out, db);
            let command = self.command(now_ms);
            out.push(command);
        }
        out.len() - before
    }

    fn select(&mut self, out: &mut Vec<Argv>, db: usize) {
        if self.db != db {
            self.db = db;
            out.push(argv(&["SELECT", &db.to_string()]));
        }
    }

    /// One of the keys of the data set, in half of the cases.
    fn on_data_set(&mut self, now_ms: u64) -> Option<(usize, Argv)> {
        let number = self.random.below(self.keys.saturating_mul(2));
        let Identity { db, key, kind, ttl_ms } = identity(self.seed, number);
        if number >= self.keys || ttl_ms.is_some_and(|ttl| ttl < 3_600_000) {
            return None;
        }
        let word = self.word();
        let command: Argv = match (self.random.below(20), kind) {
            (0, _) => vec![b"DEL".to_vec(), key],
            (1, _) => vec![b"PEXPIREAT".to_vec(), key, far(&mut self.random, now_ms)],
            (2, _) => vec![b"PERSIST".to_vec(), key],
            // Numbers near the end of the range may overflow: an error that must not travel.
            (_, Kind::Number) => {
                vec![b"INCRBY".to_vec(), key, self.random.below(1_000).to_string().into_bytes()]
            }
            (_, Kind::Text) => vec![b"APPEND".to_vec(), key, word],
            (_, Kind::HyperLogLog) => vec![b"EXISTS".to_vec(), key],
            (0..12, Kind::List) => vec![b"RPUSH".to_vec(), key, word],
            (_, Kind::List) => vec![b"LPOP".to_vec(), key],
            (0..14, Kind::Set) => vec![b"SADD".to_vec(), key, word],
            (_, Kind::Set) => vec![b"SREM".to_vec(), key, word],
            (_, Kind::Hash) => vec![b"HINCRBY".to_vec(), key, b"visits".to_vec(), b"1".to_vec()],
            (_, Kind::SortedSet) => vec![b"ZINCRBY".to_vec(), key, b"1.5".to_vec(), word],
            (_, Kind::Stream) => vec![b"XADD".to_vec(), key, b"*".to_vec(), b"kind".to_vec(), word],
        };
        Some((db, command))
    }

    /// One of a few keys that only the load knows.
    fn command(&mut self, now_ms: u64) -> Argv {
        let word = String::from_utf8(self.word()).unwrap_or_default();
        let (n, m, number) =
            (self.random.below(200), self.random.below(200), self.random.below(1_000).to_string());
        let key = |kind: &str| format!("live:{kind}:{n}");
        match self.random.below(26) {
            0..3 => argv(&["INCR", &key("counter")]),
            3 => argv(&["INCRBYFLOAT", &key("float"), "0.25"]),
            4..6 => argv(&["APPEND", &key("log"), &word]),
            6..9 => argv(&["RPUSH", &key("queue"), &word, &number]),
            9 => argv(&["LPOP", &key("queue")]),
            10 => argv(&["LTRIM", &key("queue"), "-50", "-1"]),
            11..13 => argv(&["HINCRBY", &key("user"), &word, "3"]),
            13 => argv(&["HDEL", &key("user"), &word]),
            14..16 => argv(&["ZINCRBY", &key("ranking"), "2.5", &word]),
            16 => argv(&["ZREM", &key("ranking"), &word]),
            17 => {
                argv(&["XADD", &key("events"), "MAXLEN", "~", "200", "*", "kind", &word, "number", &number])
            }
            18 => argv(&["XGROUP", "CREATE", &key("events"), "workers", "$", "MKSTREAM"]),
            19 => argv(&["SADD", &key("tags"), &word, &number]),
            20 => argv(&["DEL", &key("log")]),
            21 => argv(&["RENAME", &key("counter"), &format!("live:counter:{m}")]),
            22 => {
                argv(&["SET", &key("session"), &word, "PX", &(500 + self.random.below(20_000)).to_string()])
            }
            23 => vec![b"PEXPIREAT".to_vec(), key("user").into_bytes(), far(&mut self.random, now_ms)],
            24 => argv(&["MSET", &key("a"), &word, &format!("live:b:{m}"), &number]),
            _ => argv(&["SET", &key("page"), &word.repeat(8)]),
        }
    }

    fn word(&mut self) -> Vec<u8> {
        format!("word{}", self.random.below(60)).into_bytes()
    }
}

/// A time far enough away not to come during a demo.
fn far(random: &mut Random, now_ms: u64) -> Vec<u8> {
    (now_ms + 3_600_000 + random.below(86_400_000)).to_string().into_bytes()
}

fn argv(words: &[&str]) -> Argv {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_keys_of_every_kind() {
        let (mut one, mut two) = (Store::default(), Store::default());
        fill(&mut one, 3_000, 7, 1_700_000_000_000);
        fill(&mut two, 3_000, 7, 1_700_000_000_000);
        let mut kinds = BTreeSet::new();
        for db in 0..DATABASES {
            assert!(one.len(db) > 20, "database {db} has {} keys", one.len(db));
            assert_eq!(one.len(db), two.len(db));
            for (key, entry) in one.iter(db) {
                kinds.insert(entry.value.type_name());
                let same = two.peek(db, key, 0).is_some_and(|other| other.value == entry.value);
                assert!(same, "{key:?} differs");
            }
        }
        assert_eq!(kinds, ["hash", "list", "set", "stream", "string", "zset"].into());
        let expiring: usize = (0..DATABASES).map(|db| one.len_expiring(db)).sum();
        assert!((450..750).contains(&expiring), "{expiring} of 3000 keys have an expiry");
    }

    #[test]
    fn the_load_never_writes_to_a_key_of_the_data_set_that_ends_soon() {
        let (keys, seed) = (500, 3);
        let short: BTreeSet<Vec<u8>> = (0..keys)
            .map(|number| identity(seed, number))
            .filter(|identity| identity.ttl_ms.is_some_and(|ttl| ttl < 3_600_000))
            .map(|identity| identity.key)
            .collect();
        assert!(!short.is_empty());
        let mut load = Load::new(keys, seed);
        let mut commands = Vec::new();
        while commands.len() < 20_000 {
            load.next(&mut commands, 1_700_000_000_000);
        }
        assert!(commands.iter().all(|command| command.get(1).is_none_or(|key| !short.contains(key))));
    }
}
