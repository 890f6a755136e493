//! A data set of every core type, made again exactly from its seed.
//!
//! Key number `i` lives in database [`database`]`(i)` under the name [`key`]`(i)` and has the shape [`Shape::of`]`(i)`,
//! so that a load can find keys of the type that it needs. A fifth of the keys expires, in the year 2096. Where the server
//! has them, some hashes have fields that expire.

use super::client::{Client, Reply};
use super::random::Random;

/// How many databases are filled.
pub const DATABASES: u64 = 16;

/// Unix ms in 2096: the same data set on every day.
pub const FAR_AWAY: u64 = 4_000_000_000_000;

/// Type and encoding of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    StringInteger,
    StringShort,
    StringLong,
    StringBinary,
    StringEmpty,
    HashSmall,
    HashLarge,
    ListSmall,
    ListLong,
    SetIntegers,
    SetListpack,
    SetHashtable,
    ZsetSmall,
    ZsetLarge,
    Stream,
    HyperLogLog,
}

const SHAPES: [Shape; 16] = [
    Shape::StringInteger,
    Shape::StringShort,
    Shape::StringLong,
    Shape::StringBinary,
    Shape::StringEmpty,
    Shape::HashSmall,
    Shape::HashLarge,
    Shape::ListSmall,
    Shape::ListLong,
    Shape::SetIntegers,
    Shape::SetListpack,
    Shape::SetHashtable,
    Shape::ZsetSmall,
    Shape::ZsetLarge,
    Shape::Stream,
    Shape::HyperLogLog,
];

impl Shape {
    /// The shape of key number `i`.
    pub fn of(i: u64) -> Shape {
        SHAPES[(i / DATABASES % SHAPES.len() as u64) as usize]
    }
}

/// The database of key number `i`.
pub fn database(i: u64) -> u64 {
    i % DATABASES
}

/// The name of key number `i`; every seventh has bytes that are no text.
pub fn key(i: u64) -> Vec<u8> {
    let mut name = format!("{:?}:{i}", Shape::of(i)).into_bytes();
    if i.is_multiple_of(7) {
        name.extend_from_slice(b"\0\r\n\xff{}*");
    }
    name
}

/// Fills a server with `keys` keys over 16 databases, and a few odd ones.
#[track_caller]
pub fn fill(client: &mut Client, keys: u64, seed: u64) {
    let mut random = Random::new(seed);
    let field_expiry = !matches!(client.cmd(&["HPEXPIRE", "", "1", "FIELDS", "1", "f"]), Reply::Error(_));
    let mut batch = Batch { client, count: 0, bytes: 0 };
    for database in 0..DATABASES {
        batch.add(&[b"SELECT".to_vec(), database.to_string().into_bytes()]);
        for i in (database..keys).step_by(DATABASES as usize) {
            let name = key(i);
            write_value(&mut batch, &name, Shape::of(i), &mut random);
            if random.chance(20) {
                let when = FAR_AWAY + random.between(0, 864_000_000);
                batch.add(&[b"PEXPIREAT".to_vec(), name.clone(), when.to_string().into_bytes()]);
            }
            if field_expiry && Shape::of(i) == Shape::HashSmall && random.chance(10) {
                let when = (FAR_AWAY + random.between(0, 864_000_000)).to_string().into_bytes();
                let head: [&[u8]; 3] = [b"HPEXPIREAT", &name, &when];
                batch.add(&[&head[..], &[b"FIELDS", b"1", b"field0"]].concat());
            }
        }
        // The odd ones: an empty key, a long key, one value over 512 fields, one list over several nodes.
        batch.add(&["SET", "", "the key is empty"]);
        batch.add(&[b"SET".to_vec(), vec![b'k'; 4_000], b"the key is long".to_vec()]);
        let fields: Vec<Vec<u8>> = (0..700).map(|n| format!("member-{n}").into_bytes()).collect();
        let pairs: Vec<Vec<u8>> =
            fields.iter().flat_map(|field| [field.clone(), field.to_ascii_uppercase()]).collect();
        let scores: Vec<Vec<u8>> = (0..700u32)
            .flat_map(|n| {
                [format!("{}", f64::from(n) / 7.0).into_bytes(), format!("member-{n}").into_bytes()]
            })
            .collect();
        batch.add(&[vec![b"HSET".to_vec(), b"odd:hash".to_vec()], pairs].concat());
        batch.add(&[vec![b"SADD".to_vec(), b"odd:set".to_vec()], fields.clone()].concat());
        batch.add(&[vec![b"ZADD".to_vec(), b"odd:zset".to_vec()], scores].concat());
        batch.add(&[vec![b"RPUSH".to_vec(), b"odd:list".to_vec()], vec![random.word(100); 700]].concat());
        let length = if database == 0 { 1_048_576 } else { 20_000 };
        batch.add(&[b"SET".to_vec(), b"odd:big".to_vec(), random.bytes(length)]);
        batch.add(&["SETBIT", "odd:bitmap", "80000", "1"]);
        batch.add(&[
            "GEOADD",
            "odd:geo",
            "13.361389",
            "38.115556",
            "Palermo",
            "15.087269",
            "37.502669",
            "Catania",
        ]);
    }
    batch.send();
}

fn write_value(batch: &mut Batch, name: &[u8], shape: Shape, random: &mut Random) {
    let mut command: Vec<Vec<u8>> = Vec::new();
    let mut begin = |verb: &str| command.extend([verb.as_bytes().to_vec(), name.to_vec()]);
    match shape {
        Shape::StringInteger => {
            begin("SET");
            // All widths of the integer encodings, and both signs.
            let number = (random.next() as i64) >> random.below(64);
            command.push(number.to_string().into_bytes());
        }
        Shape::StringShort => {
            begin("SET");
            let length = random.between(1, 44);
            command.push(random.word(length as usize));
        }
        Shape::StringLong => {
            begin("SET");
            let (word, times) = (random.word(10), random.between(5, 100));
            command.push(word.repeat(times as usize));
        }
        Shape::StringBinary => {
            begin("SET");
            let length = random.between(1, 300);
            command.push(random.bytes(length as usize));
        }
        Shape::StringEmpty => {
            begin("SET");
            command.push(Vec::new());
        }
        Shape::HashSmall => {
            begin("HSET");
            for n in 0..random.between(1, 10) {
                command.push(format!("field{n}").into_bytes());
                command.push(random.next().to_string().into_bytes());
            }
            command.extend([Vec::new(), Vec::new()]);
        }
        Shape::HashLarge => {
            begin("HSET");
            command.extend([b"long".to_vec(), random.word(65)]);
            for n in 0..random.between(1, 20) {
                command.extend([format!("field{n}").into_bytes(), random.bytes(8)]);
            }
        }
        Shape::ListSmall => {
            begin("RPUSH");
            command.push(Vec::new());
            for _ in 0..random.between(1, 10) {
                command.push(if random.chance(50) {
                    random.word(5)
                } else {
                    random.below(70_000).to_string().into_bytes()
                });
            }
        }
        Shape::ListLong => {
            begin("RPUSH");
            for _ in 0..random.between(20, 40) {
                let length = random.between(0, 400);
                command.push(random.word(length as usize));
            }
        }
        Shape::SetIntegers => {
            begin("SADD");
            let bits = random.below(60);
            for _ in 0..random.between(1, 20) {
                command.push(((random.next() as i64) >> bits).to_string().into_bytes());
            }
        }
        Shape::SetListpack => {
            begin("SADD");
            command.push(Vec::new());
            for _ in 0..random.between(1, 10) {
                command.push(random.word(6));
            }
        }
        Shape::SetHashtable => {
            begin("SADD");
            command.push(random.word(65));
            for _ in 0..random.between(1, 20) {
                command.push(random.bytes(8));
            }
        }
        Shape::ZsetSmall => {
            begin("ZADD");
            command.extend(["inf", "most", "-inf", "least", "0", ""].map(|word| word.as_bytes().to_vec()));
            for _ in 0..random.between(1, 10) {
                command.extend([random.below(1_000).to_string().into_bytes(), random.word(6)]);
            }
        }
        Shape::ZsetLarge => {
            begin("ZADD");
            command.extend([b"3.141592653589793".to_vec(), random.word(65)]);
            for _ in 0..random.between(1, 20) {
                let score = random.next() as i64 as f64 / 1e9;
                command.extend([score.to_string().into_bytes(), random.bytes(6)]);
            }
        }
        Shape::Stream => return write_stream(batch, name, random),
        Shape::HyperLogLog => {
            begin("PFADD");
            for _ in 0..random.between(1, 30) {
                command.push(random.bytes(8));
            }
        }
    }
    batch.add(&command);
}

/// Entries, a deleted one, two groups; in one of them a consumer that has read and acknowledged a part.
fn write_stream(batch: &mut Batch, name: &[u8], random: &mut Random) {
    let entries = random.between(3, 8);
    for n in 1..=entries {
        let id = format!("{}-{n}", 1_700_000_000_000u64 + n);
        let word = random.word(10);
        let mut command: Vec<&[u8]> = vec![b"XADD", name, id.as_bytes(), b"field", &word];
        if n % 3 == 0 {
            command.extend([b"another".as_slice(), b""]);
        }
        batch.add(&command);
    }
    batch.add(&[b"XDEL".as_slice(), name, b"1700000000002-2"]);
    batch.add(&[b"XGROUP".as_slice(), b"CREATE", name, b"workers", b"0"]);
    batch.add(&[b"XGROUP".as_slice(), b"CREATE", name, b"idle", b"$"]);
    batch.add(&[
        b"XREADGROUP".as_slice(),
        b"GROUP",
        b"workers",
        b"alice",
        b"COUNT",
        b"2",
        b"STREAMS",
        name,
        b">",
    ]);
    batch.add(&[
        b"XREADGROUP".as_slice(),
        b"GROUP",
        b"workers",
        b"bob",
        b"COUNT",
        b"1",
        b"STREAMS",
        name,
        b">",
    ]);
    batch.add(&[b"XACK".as_slice(), name, b"workers", b"1700000000001-1"]);
}

/// The server's clock (Unix ms).
pub fn unix_ms(client: &mut Client) -> u64 {
    unix_ms_of(&client.cmd(&["TIME"]))
}

/// What TIME has answered, in Unix ms.
pub fn unix_ms_of(time: &Reply) -> u64 {
    let Reply::Array(time) = time else { panic!("TIME answered {time:?}") };
    let number = |at: usize| match &time[at] {
        Reply::BulkString(digits) => String::from_utf8_lossy(digits).parse::<u64>().unwrap(),
        other => panic!("TIME answered {other:?}"),
    };
    number(0) * 1_000 + number(1) / 1_000
}

/// Sends commands by the thousand; every reply must be good.
struct Batch<'a> {
    client: &'a mut Client,
    count: usize,
    bytes: usize,
}

impl Batch<'_> {
    #[track_caller]
    fn add<A: AsRef<[u8]>>(&mut self, command: &[A]) {
        self.client.push(command);
        self.count += 1;
        self.bytes += command.iter().map(|word| word.as_ref().len()).sum::<usize>();
        if self.count == 2_000 || self.bytes > 4_000_000 {
            self.send();
        }
    }

    #[track_caller]
    fn send(&mut self) {
        for reply in self.client.flush(std::mem::take(&mut self.count)) {
            assert!(!matches!(reply, Reply::Error(_)), "filling: {reply:?}");
        }
        self.bytes = 0;
    }
}
