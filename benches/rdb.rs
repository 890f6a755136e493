//! How fast RDB goes through: the raw walk (to RESTORE spans, checksum verified) and the full decode to commands.
//!
//! `cargo bench --bench rdb`. What is measured is CPU time, so that other work on the machine hardly counts. Goals: walk of 100-byte strings 500 MB/s, of large packed values 2 GB/s, decode 150 MB/s.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shakedeck::rdb::commands::{Rebuild, append_resp, value_to_commands};
use shakedeck::rdb::dump::Target;
use shakedeck::rdb::{Decoder, Item, Limits, Value, crc64, types};

const FILE_BYTES: usize = 64 << 20;

/// Time that this thread has had a processor (`/proc/thread-self/schedstat`, ns).
struct CpuTime;

static WALL: WallTime = WallTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
        Duration::from_nanos(nanoseconds.expect("/proc tells the CPU time of a thread"))
    }

    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }

    fn add(&self, left: &Duration, right: &Duration) -> Duration {
        *left + *right
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        WALL.to_f64(value)
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WALL.formatter()
    }
}

/// Writes what a server would write: just enough of the format.
struct File(Vec<u8>);

impl File {
    fn new() -> Self {
        Self(b"REDIS0011\xfe\x00".to_vec())
    }

    fn length(out: &mut Vec<u8>, n: usize) {
        match n {
            0..64 => out.push(n as u8),
            64..16_384 => out.extend((n as u16 | 0x4000).to_be_bytes()),
            _ => {
                out.push(0x80);
                out.extend((n as u32).to_be_bytes());
            }
        }
    }

    fn string(out: &mut Vec<u8>, text: &[u8]) {
        Self::length(out, text.len());
        out.extend_from_slice(text);
    }

    fn key(&mut self, type_byte: u8, value: &[u8]) {
        let name = format!("key:{:012}", self.0.len());
        self.0.push(type_byte);
        Self::string(&mut self.0, name.as_bytes());
        self.0.extend_from_slice(value);
    }

    /// Keys of one kind until the file is large enough.
    fn filled(type_byte: u8, value: &[u8]) -> Vec<u8> {
        let mut file = Self::new();
        while file.0.len() < FILE_BYTES {
            file.key(type_byte, value);
        }
        file.0.push(255);
        let crc = crc64(&file.0);
        file.0.extend(crc.to_le_bytes());
        file.0
    }
}

/// A listpack of short strings.
fn listpack(entries: usize, width: usize) -> Vec<u8> {
    let mut blob = vec![0; 6];
    for index in 0..entries {
        let text = format!("{index:0width$}");
        blob.push(0x80 | width as u8);
        blob.extend_from_slice(text.as_bytes());
        blob.push(width as u8 + 1);
    }
    blob.push(0xff);
    let total = blob.len() as u32;
    blob[..4].copy_from_slice(&total.to_le_bytes());
    blob[4..6].copy_from_slice(&(entries.min(65_535) as u16).to_le_bytes());
    blob
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let mut text = Vec::new();
    File::string(&mut text, &[b'v'; 100]);
    let mut quicklist = Vec::new();
    File::length(&mut quicklist, 32);
    for _ in 0..32 {
        quicklist.push(2);
        File::string(&mut quicklist, &listpack(300, 25));
    }
    let mut packed_hash = Vec::new();
    File::string(&mut packed_hash, &listpack(512, 20));
    let mut hash = Vec::new();
    File::length(&mut hash, 1000);
    for index in 0..1000 {
        File::string(&mut hash, format!("field:{index:06}").as_bytes());
        File::string(&mut hash, &[b'v'; 40]);
    }
    let mut zset = Vec::new();
    File::length(&mut zset, 1000);
    for index in 0..1000 {
        File::string(&mut zset, format!("member:{index:06}").as_bytes());
        zset.extend((f64::from(index) * 1.1).to_le_bytes());
    }
    vec![
        ("strings of 100 bytes", File::filled(types::STRING, &text)),
        ("quicklists of 260 KB", File::filled(types::LIST_QUICKLIST_2, &quicklist)),
        ("hashes of 11 KB, listpack", File::filled(types::HASH_LISTPACK, &packed_hash)),
        ("hashes of 54 KB, table", File::filled(types::HASH, &hash)),
        ("sorted sets of 22 KB, table", File::filled(types::ZSET_2, &zset)),
    ]
}

fn walk(bytes: &[u8]) -> u64 {
    let mut decoder = Decoder::new(bytes, Limits::default());
    let mut spans = 0;
    while let Some(item) = decoder.next().expect("a good file") {
        if let Item::Entry(entry) = item
            && let Value::Raw(raw) = entry.value
        {
            spans += raw.len() as u64 + entry.key.len() as u64;
        }
    }
    spans
}

fn decode(bytes: &[u8]) -> usize {
    let mut decoder = Decoder::new(bytes, Limits::default());
    let (mut out, mut total) = (Vec::new(), 0);
    while let Some(item) = decoder.next().expect("a good file") {
        let Item::Entry(entry) = item else { continue };
        let Value::Raw(raw) = entry.value else { continue };
        let rebuild = Rebuild {
            key: entry.key,
            target: Target::redis(6, 2),
            replace: false,
            expire_at_ms: None,
            pending_ids: Vec::new(),
        };
        value_to_commands(entry.type_byte, raw, entry.dialect, rebuild, &mut |command| {
            append_resp(&mut out, command);
            Ok(())
        })
        .expect("a good value");
        total += out.len();
        out.clear();
    }
    total
}

fn rdb(criterion: &mut Criterion<CpuTime>) {
    for (name, file) in files() {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(file.len() as u64)).sample_size(10);
        group.bench_function("walk", |bencher| bencher.iter(|| walk(black_box(&file))));
        group.bench_function("decode to commands", |bencher| bencher.iter(|| decode(black_box(&file))));
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = rdb
}
criterion_main!(benches);
