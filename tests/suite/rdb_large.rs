//! Values larger than memory should hold: read element by element into commands, while this process stays small. One test,
//! because the memory of a process is measured.

use std::io::{self, Read};

use shakedeck::rdb::commands::{CommandBuilder, Rebuild};
use shakedeck::rdb::dump::Target;
use shakedeck::rdb::export::{self, Statistics};
use shakedeck::rdb::{ByteList, Decoder, Item, Limits, Value, types};

/// Bytes made as they are read.
struct Lazy<I> {
    pieces: I,
    piece: Vec<u8>,
    at: usize,
}

impl<I: Iterator<Item = Vec<u8>>> Read for Lazy<I> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            let Some(piece) = self.pieces.next() else { return Ok(0) };
            (self.piece, self.at) = (piece, 0);
        }
        let n = buf.len().min(self.piece.len() - self.at);
        buf[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

fn length(n: u64) -> Vec<u8> {
    let mut out = vec![0x81];
    out.extend(n.to_be_bytes());
    out
}

fn string(text: &str) -> Vec<u8> {
    let mut out = length(text.len() as u64);
    out.extend_from_slice(text.as_bytes());
    out
}

/// A file with one key of this type and value, without a checksum.
fn file(type_byte: u8, value: impl Iterator<Item = Vec<u8>>) -> impl Read {
    let mut head = b"REDIS0009".to_vec();
    head.extend([type_byte, 1, b'k']);
    let tail = vec![255, 0, 0, 0, 0, 0, 0, 0, 0];
    Lazy { pieces: std::iter::once(head).chain(value).chain(std::iter::once(tail)), piece: Vec::new(), at: 0 }
}

fn hash(fields: u64) -> impl Iterator<Item = Vec<u8>> {
    let field = |i| [string(&format!("field:{i}")), string(&format!("value number {i}"))].concat();
    std::iter::once(length(fields)).chain((0..fields).map(field))
}

fn sorted_set(members: u64) -> impl Iterator<Item = Vec<u8>> {
    let member = |i| [string(&format!("member:{i}")), (i as f64 * 0.1).to_le_bytes().to_vec()].concat();
    std::iter::once(length(members)).chain((0..members).map(member))
}

/// One listpack per entry; the first `pending` entries are pending for one consumer.
fn stream(entries: u64, pending: u64) -> impl Iterator<Item = Vec<u8>> {
    let id = |i: u64| [i.to_be_bytes(), 0u64.to_be_bytes()].concat();
    let node = move |i: u64| {
        // count 1, deleted 0, one field "f", end; flags 2 (same fields), delta 0 0, value, length.
        let value = [b'v'; 60];
        let mut blob = vec![0; 6];
        for small in [
            &[1u8][..],
            &[0],
            &[1],
            b"\x81f",
            &[0],
            &[2],
            &[0],
            &[0],
            &[&[0x80 | 60u8], &value[..]].concat(),
            &[4],
        ] {
            blob.extend_from_slice(small);
            blob.push(small.len() as u8);
        }
        blob.push(255);
        let total = blob.len() as u32;
        blob[..4].copy_from_slice(&total.to_le_bytes());
        blob[4] = 10;
        [length(16), id(i), length(blob.len() as u64), blob].concat()
    };
    let tail =
        [length(entries), length(entries), length(0), length(1), string("g"), length(entries), length(0)]
            .concat();
    let unowned = move |i| [id(i), 7i64.to_le_bytes().to_vec(), length(3)].concat();
    std::iter::once(length(entries))
        .chain((1..=entries).map(node))
        .chain([tail, length(pending)])
        .chain((1..=pending).map(unowned))
        .chain([[length(1), string("c"), 9i64.to_le_bytes().to_vec(), length(pending)].concat()])
        .chain((1..=pending).map(id))
}

fn text(bytes: u64) -> impl Iterator<Item = Vec<u8>> {
    const PIECE: u64 = 1 << 20;
    std::iter::once(length(bytes)).chain((0..bytes / PIECE).map(|i| vec![i as u8; PIECE as usize]))
}

/// A run that LZF packs to 3 bytes per 264.
fn packed_text(runs: u64) -> impl Iterator<Item = Vec<u8>> {
    let head = [vec![0xc3], length(2 + runs * 3), length(1 + runs * 264), vec![0, b'z']].concat();
    std::iter::once(head).chain((0..runs).map(|_| vec![0xe0, 255, 0]))
}

/// Commands, arguments and bytes of the only key.
fn rebuild(reader: impl Read) -> (u64, u64, u64) {
    let mut decoder = Decoder::new(reader, Limits::default());
    let (mut commands, mut arguments, mut bytes) = (0, 0, 0);
    let mut large = 0;
    while let Some(item) = decoder.next().unwrap() {
        let Item::Entry(entry) = item else { continue };
        assert_eq!(entry.value, Value::Large);
        large += 1;
        let target = Target::redis(6, 2);
        let mut builder = CommandBuilder::new(Rebuild {
            key: b"k",
            target,
            replace: false,
            expire_at_ms: None,
            pending_ids: vec![],
        });
        let mut count = |command: &ByteList| {
            commands += 1;
            arguments += command.len() as u64;
            bytes += command.bytes() as u64;
            assert!(command.bytes() < 600 * 1024);
            Ok(())
        };
        decoder.read_large(&mut |element| builder.add(element, &mut count)).unwrap();
        builder.finish(&mut count).unwrap();
    }
    assert_eq!(large, 1);
    (commands, arguments, bytes)
}

/// Most memory that was resident (bytes).
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[test]
fn large_values_pass_in_bounded_memory() {
    let small = |what: &str| assert!(peak() < 64 << 20, "{what}: {} bytes resident at the peak", peak());

    let (commands, arguments, _) = rebuild(file(types::HASH, hash(5_000_000)));
    assert_eq!(arguments - 2 * commands, 10_000_000);
    assert!(commands < 12_000, "{commands} commands");
    small("hash");

    let (commands, arguments, _) = rebuild(file(types::ZSET_2, sorted_set(2_000_000)));
    assert_eq!(arguments - 2 * commands, 4_000_000);
    small("sorted set");

    // XADD, XSETID, XGROUP CREATE and CREATECONSUMER, and the claims in batches.
    let (commands, ..) = rebuild(file(types::STREAM_LISTPACKS, stream(100_000, 10_000)));
    assert_eq!(commands, 100_000 + 3 + 10_000u64.div_ceil(1024 - 5));
    small("stream");

    let (commands, _, bytes) = rebuild(file(types::STRING, text(512 << 20)));
    assert_eq!(bytes, (512 << 20) + 3 + (commands - 1) * 6 + commands);
    small("string");

    let runs = 3_000_000;
    let (commands, _, bytes) = rebuild(file(types::STRING, packed_text(runs)));
    assert_eq!(bytes, 1 + runs * 264 + 3 + (commands - 1) * 6 + commands);
    small("compressed string");

    let mut decoder = Decoder::new(file(types::HASH, hash(500_000)), Limits::default());
    let ahead = |at| {
        let mut again = file(types::HASH, hash(500_000));
        io::copy(&mut again.by_ref().take(at), &mut io::sink())?;
        Ok(again)
    };
    let summary = export::write_json(&mut decoder, ahead, &mut io::sink()).unwrap();
    assert_eq!(summary.keys, 1);
    let found =
        Statistics::collect(&mut Decoder::new(file(types::HASH, hash(500_000)), Limits::default())).unwrap();
    assert_eq!((found.total.keys, found.largest[0].key.as_slice()), (1, &b"k"[..]));
    assert!(found.total.bytes > 20_000_000, "{found:?}");
    small("exports");
}
