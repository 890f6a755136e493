//! Hostile bytes: whatever a file says, decoding ends, in bounded memory, with a value or an error that names the place.

use crate::fixtures;
use std::io::{self, Read};
use std::sync::LazyLock;

use proptest::prelude::*;
use shakedeck::rdb::commands::{Rebuild, value_to_commands};
use shakedeck::rdb::dump::{self, Target};
use shakedeck::rdb::export::{self, RespOptions, Statistics};
use shakedeck::rdb::{Checksum, Decoder, Dialect, Item, Limits, RdbError, Value, crc64, decode_value};

static FILES: LazyLock<Vec<fixtures::Fixture>> = LazyLock::new(fixtures::all);

/// Gives the bytes in pieces of the given lengths, over and over.
struct Pieces<'a> {
    bytes: &'a [u8],
    steps: &'a [usize],
    turn: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let step = self.steps[self.turn % self.steps.len()];
        self.turn += 1;
        let n = step.min(buf.len()).min(self.bytes.len());
        buf[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes = &self.bytes[n..];
        Ok(n)
    }
}

/// Everything that a reader of the file would see, large values element by element.
fn trace(bytes: &[u8], steps: &[usize], limit: usize) -> Vec<String> {
    let limits = Limits { max_value_bytes: limit, max_opaque_bytes: 4 * limit };
    let mut decoder = Decoder::new(Pieces { bytes, steps, turn: 0 }, limits);
    let mut seen = Vec::new();
    loop {
        match decoder.next() {
            Ok(None) => return seen,
            Ok(Some(item)) => {
                let large = matches!(&item, Item::Entry(entry) if entry.value == Value::Large);
                seen.push(format!("{item:?}"));
                if large {
                    let elements = decoder.read_large(&mut |element| {
                        seen.push(format!("{element:?}"));
                        Ok(())
                    });
                    if let Err(error) = elements {
                        seen.push(error.to_string());
                        return seen;
                    }
                }
                seen.push(decoder.position().to_string());
            }
            Err(error) => {
                seen.push(error.to_string());
                return seen;
            }
        }
    }
}

/// A file with the given records and the right checksum.
fn file(records: &[u8]) -> Vec<u8> {
    let mut bytes = b"REDIS0011".to_vec();
    bytes.extend_from_slice(records);
    bytes.push(255);
    let crc = crc64(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn first_error(bytes: &[u8]) -> String {
    let mut decoder = Decoder::new(bytes, Limits::default());
    loop {
        match decoder.next() {
            Ok(None) => return "none".to_owned(),
            Ok(Some(_)) => {}
            Err(error) => return error.to_string(),
        }
    }
}

/// Most memory that this process ever had, mapped or not (bytes).
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_items(
        file in 0..26usize,
        steps in prop::collection::vec(prop_oneof![1..5usize, 1..5000usize], 1..8),
        limit in prop_oneof![Just(0), 1..300usize, 300..100_000usize],
    ) {
        let bytes = &FILES[file].rdb;
        prop_assert!(trace(bytes, &steps, limit) == trace(bytes, &[usize::MAX], limit));
    }

    #[test]
    fn mutated_files_end_in_an_item_or_an_error(
        file in 0..26usize,
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        limit in prop_oneof![Just(0), Just(200), Just(8 << 20)],
    ) {
        let mut bytes = FILES[file].rdb.clone();
        for (at, byte) in mutations {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        // The same in pieces, also when it is broken.
        prop_assert!(trace(&bytes, &[4096], limit) == trace(&bytes, &[usize::MAX], limit));
        exports_survive(&bytes, limit);
    }

    #[test]
    fn arbitrary_values_never_panic(
        type_byte in 0..=29u8,
        valkey in any::<bool>(),
        raw in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            prop::collection::vec(prop_oneof![0..4u8, Just(0x80), Just(0x81), Just(0xc3), Just(0xff)], 0..60),
        ],
    ) {
        let dialect = if valkey { Dialect::Valkey } else { Dialect::Redis };
        let _ = decode_value(type_byte, &raw, dialect);
        let rebuild = Rebuild { key: b"k", target: Target::redis(7, 0), replace: true, expire_at_ms: None, pending_ids: vec![] };
        let _ = value_to_commands(type_byte, &raw, dialect, rebuild, &mut |_| Ok(()));
        let mut record = vec![type_byte, 1, b'k'];
        record.extend_from_slice(&raw);
        exports_survive(&file(&record), 50);
    }

    /// Values of real files with bytes changed: deep into the packed blobs, past all outer lengths.
    #[test]
    fn mutated_values_decode_or_say_why(
        file in 0..26usize,
        key in any::<prop::sample::Index>(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let file = &FILES[file];
        let mut decoder = Decoder::new(&file.rdb[..], Limits::default());
        let mut left = key.index(file.keys.len());
        while let Some(item) = decoder.next().unwrap() {
            let Item::Entry(entry) = item else { continue };
            if left > 0 {
                left -= 1;
                continue;
            }
            let Value::Raw(raw) = entry.value else { panic!() };
            let mut raw = raw.to_vec();
            for (at, byte) in &mutations {
                let at = at.index(raw.len());
                raw[at] = *byte;
            }
            if let Err(error) = decode_value(entry.type_byte, &raw, entry.dialect) {
                let text = error.to_string();
                prop_assert!(text.contains("byte ") && text.contains("type "), "{}", text);
            }
            break;
        }
    }

    #[test]
    fn arbitrary_payloads_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = dump::parse_payload(&bytes);
    }
}

/// All three exports come to an end, whatever the bytes.
fn exports_survive(bytes: &[u8], limit: usize) {
    let limits = Limits { max_value_bytes: limit, max_opaque_bytes: 4 * limit };
    let options = RespOptions { target: Target::redis(7, 0), commands_only: true, replace: true };
    let ahead = |at| Ok(&bytes[at as usize..]);
    let _ = export::write_json(&mut Decoder::new(bytes, limits), ahead, &mut io::sink());
    let _ = export::write_resp(&mut Decoder::new(bytes, limits), options, ahead, &mut io::sink());
    let _ = Statistics::collect(&mut Decoder::new(bytes, limits));
    if cfg!(target_os = "linux") {
        assert!(peak_memory() < 2 << 30, "{} bytes of memory at the peak", peak_memory());
    }
}

#[test]
fn claims_of_gigabytes_are_errors_and_cost_nothing() {
    let before = peak_memory();
    for claim in
        [&[0x80, 0xff, 0xff, 0xff, 0xff][..], &[0x81, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]]
    {
        // As a key, and as a value or count of every type.
        let mut key = b"REDIS0011\x00".to_vec();
        key.extend_from_slice(claim);
        let refused = "impossible length, above 512 MiB in a string (type 0) at byte ";
        assert!(first_error(&key).contains(refused), "{}", first_error(&key));
        for type_byte in 0..=29u8 {
            let mut bytes = b"REDIS0011".to_vec();
            bytes.extend([type_byte, 1, b'k']);
            bytes.extend_from_slice(claim);
            bytes.push(1);
            let error = first_error(&bytes);
            if !matches!(type_byte, 6 | 8) {
                assert!(
                    error.contains("in the middle of") || error.contains("bad RDB"),
                    "{type_byte}: {error}"
                );
            }
            exports_survive(&bytes, 8 << 20);
        }
        let mut resize = b"\xfb".to_vec();
        resize.extend_from_slice(claim);
        resize.push(0);
        assert_eq!(first_error(&file(&resize)), "none");
    }
    assert!(peak_memory() - before < 512 << 20);
}

/// A key, a field of the file, a function and an element are held as a whole, so a damaged length must not make the rest of the file
/// be held.
#[test]
fn a_damaged_length_is_an_error_before_the_rest_of_the_file_is_read() {
    /// Counts what is read of zeros without an end.
    struct Endless<'a>(&'a [u8], &'a std::cell::Cell<usize>);
    impl Read for Endless<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1.set(self.1.get() + buf.len());
            if self.1.get() > 64 << 20 {
                return Ok(0);
            }
            match self.0.read(buf)? {
                0 => buf.fill(0),
                head => return Ok(head),
            }
            Ok(buf.len())
        }
    }
    let above = [&b"\x81"[..], &((512u64 << 20) + 1).to_be_bytes()].concat();
    let packed = [&b"\xc3\x40\x40"[..], &above].concat();
    let packed_much = [&b"\xc3"[..], &above, &above].concat();
    let limits = Limits { max_value_bytes: 0, ..Limits::default() };
    for (before, what) in [
        (&b"\x00"[..], "a string (type 0) at byte "),
        (b"\xfa", "AUX (opcode 250) at byte "),
        (b"\xfa\x01a", "AUX (opcode 250) at byte "),
        (b"\xf5", "FUNCTION2 (opcode 245) at byte "),
        (b"\x01\x01k\x02", "a list (linkedlist, type 1) at byte "),
        (b"\x04\x01k\x01\x01f", "a hash (hashtable, type 4) at byte "),
        (b"\x10\x01k", "a hash (listpack, type 16) at byte "),
        (b"\x12\x01k\x01\x01", "a list (quicklist 2, type 18) at byte "),
    ] {
        for length in [&above, &packed, &packed_much] {
            let bytes = [b"REDIS0011", before, length].concat();
            let read = std::cell::Cell::new(0);
            let mut decoder = Decoder::new(Endless(&bytes, &read), limits);
            let error = loop {
                let large = match decoder.next() {
                    Ok(Some(Item::Entry(entry))) => entry.value == Value::Large,
                    Ok(item) => {
                        assert!(item.is_some());
                        false
                    }
                    Err(error) => break error,
                };
                if large && let Err(error) = decoder.read_large(&mut |_| Ok(())) {
                    break error;
                }
            };
            let error = error.to_string();
            assert!(error.contains(&format!("impossible length, above 512 MiB in {what}")), "{error}");
            assert!(read.get() < 1 << 20, "{error}: {} bytes were read", read.get());
        }
    }
}

/// The counts at the head of a stream node are any numbers of 64 bits.
#[test]
fn the_lowest_number_as_a_count_of_a_stream_is_an_error() {
    let lowest = [&[0xf4][..], &i64::MIN.to_le_bytes()].concat();
    let node = |live: &[u8], gone: &[u8], flags: u8| {
        let mut blob = vec![0; 6];
        for entry in [live, gone, &[0], &[0], &[flags], &[0], &[0], &[0], &[3]] {
            blob.extend_from_slice(entry);
            blob.push(entry.len() as u8);
        }
        blob.push(255);
        blob[0] = blob.len() as u8;
        blob[4] = 9;
        [&[1, 16][..], &[0; 16], &[blob.len() as u8], &blob, &[1, 0, 1]].concat()
    };
    // A live entry, and a deleted one.
    assert!(decode_value(15, &[&node(&[1], &[0], 0)[..], &[0]].concat(), Dialect::Redis).is_ok());
    assert!(decode_value(15, &[&node(&[0], &[1], 1)[..], &[0]].concat(), Dialect::Redis).is_ok());
    for raw in [node(&lowest, &[0], 0), node(&[0], &lowest, 1)] {
        let error = decode_value(15, &raw, Dialect::Redis).unwrap_err().to_string();
        assert!(error.contains("counts and entries disagree in a stream"), "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_truncated() {
    let file = &FILES[12];
    for cut in (0..file.rdb.len()).step_by(997).chain(file.rdb.len() - 10..file.rdb.len()) {
        let error = first_error(&file.rdb[..cut]);
        assert!(error.contains("ends in the middle of"), "{cut}: {error}");
        assert!(error.contains(&format!("byte {cut}:")), "{cut}: {error}");
    }
}

#[test]
fn damage_is_found_by_the_checksum() {
    let good = file(b"\x00\x01k\x05value");
    assert_eq!(first_error(&good), "none");
    let mut damaged = good.clone();
    damaged[13] ^= 0x20;
    assert!(first_error(&damaged).starts_with("wrong RDB checksum"), "{}", first_error(&damaged));
    let mut unchecked = damaged;
    let end = unchecked.len() - 8;
    unchecked[end..].fill(0);
    assert_eq!(first_error(&unchecked), "none");
    let mut old = good;
    old[5..9].copy_from_slice(b"0004");
    old.truncate(end);
    let mut decoder = Decoder::new(&old[..], Limits::default());
    let mut checksum = None;
    while let Some(item) = decoder.next().unwrap() {
        if let Item::End { checksum: found } = item {
            checksum = Some(found);
        }
    }
    assert_eq!(checksum, Some(Checksum::Absent));
}

#[test]
fn errors_of_the_reader_pass_through_and_are_not_retried() {
    struct Stops(usize);
    impl Read for Stops {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            assert!(self.0 <= 2, "read again after an error");
            if self.0 == 2 {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped"));
            }
            buf[..12].copy_from_slice(b"REDIS0011\x00\x01k");
            Ok(12)
        }
    }
    let mut decoder = Decoder::new(Stops(0), Limits::default());
    assert!(matches!(decoder.next(), Ok(Some(Item::Header { .. }))));
    let Err(RdbError::Io(error)) = decoder.next() else { panic!() };
    assert_eq!(error.to_string(), "stopped");
    assert!(decoder.next().is_err());
}

#[test]
fn bytes_after_the_end_are_left_alone() {
    let mut bytes = file(b"\x00\x01k\x01v");
    let length = bytes.len();
    bytes.extend(b"*1\r\n$4\r\nPING\r\n");
    let mut decoder = Decoder::new(&bytes[..], Limits::default());
    while decoder.next().unwrap().is_some() {}
    assert_eq!((decoder.position(), decoder.buffered()), (length as u64, 14));
}

#[test]
fn decoding_resumes_at_any_item() {
    let whole = trace(&FILES[3].rdb, &[usize::MAX], 8 << 20);
    let bytes = &FILES[3].rdb;
    let mut decoder = Decoder::new(&bytes[..], Limits::default());
    let mut points = Vec::new();
    while decoder.next().unwrap().is_some() {
        points.extend(decoder.resume_point());
    }
    assert!(points.len() > 100);
    for point in points.iter().step_by(10) {
        let rest = &bytes[point.offset as usize..];
        let mut decoder = Decoder::resume(rest, Limits::default(), *point);
        let mut seen = Vec::new();
        while let Some(item) = decoder.next().unwrap() {
            seen.push(format!("{item:?}"));
            seen.push(decoder.position().to_string());
        }
        assert!(whole.ends_with(&seen), "from byte {}", point.offset);
        assert!(seen[seen.len() - 2].contains("Verified"));
    }
}

#[test]
fn odd_but_legal_files() {
    // Attributes, AUX between them and the key (KeyDB), empty key name, repeated SELECTDB, empty collection, flawed node.
    let mut records = vec![0xfe, 3, 0xfe, 2, 0xfc];
    records.extend(5_000i64.to_le_bytes());
    records.extend(b"\xf9\x07\xfa\x01a\xc0\x09\x00\x00\x01v");
    records.extend(b"\x01\x01e\x00");
    records.extend(b"\x12\x01q\x01\x03\x03abc");
    records.extend(b"\xfd\x05\x00\x00\x00\xf8\x40\x90\x00\x01k\xc2\x01\x00\x00\x80");
    records.extend(b"\x00\x01p\x01v");
    let seen = trace(&file(&records), &[1], 8 << 20);
    let items: Vec<_> =
        seen.iter().filter(|text| text.starts_with("Entry") || text.starts_with("Aux")).collect();
    let expected = [
        r#"Aux { key: [97], value: [57] }"#,
        "db: 2, key: [], type_byte: 0, dialect: Redis, expire_at_ms: Some(5000), idle_seconds: None, freq: Some(7), meta: None, value: Raw([1, 118])",
        "key: [101], type_byte: 1, dialect: Redis, expire_at_ms: None, idle_seconds: None, freq: None, meta: None, value: Empty",
        "key: [113], type_byte: 18, dialect: Redis, expire_at_ms: None, idle_seconds: None, freq: None, meta: None, value: Bad",
        "expire_at_ms: Some(5000), idle_seconds: Some(144), freq: None, meta: None, value: Raw([194, 1, 0, 0, 128])",
        "key: [112], type_byte: 0, dialect: Redis, expire_at_ms: None, idle_seconds: None, freq: None",
    ];
    assert_eq!(items.len(), expected.len(), "{items:#?}");
    for (item, expected) in items.iter().zip(expected) {
        assert!(item.contains(expected), "{item}");
    }
}

#[test]
fn errors_name_opcode_type_and_offset() {
    for (records, expected) in [
        (&b"\x00\x01k\xc4"[..], "bad RDB: unknown string encoding in a string (type 0) at byte 13"),
        (b"\xfe\x82", "bad RDB: invalid length byte (0x82 to 0xbf) in SELECTDB (opcode 254) at byte 11"),
        (b"\x08\x01k", "cannot read a value of unknown type 8 at byte 12"),
        (b"\x06\x01k", "its length is known only to the module"),
        (b"\xc9", "a Dragonfly opcode"),
        (b"\xf6", "FUNCTION_PRE_GA (opcode 246)"),
        (b"\x07\x01k\x81\0\0\0\0\0\0\0\0\x09", "unknown field kind in module data in a module"),
    ] {
        let error = first_error(&file(records));
        assert!(error.contains(expected), "{error}");
    }
    assert!(first_error(b"<html>...").contains("not a RDB file"));
    assert!(first_error(b"VCS\x01\x01\x00\x00LZ").contains("compressed RDB envelope"));
    assert!(first_error(b"REDIS00x1").contains("not a RDB file"));
    assert!(first_error(b"REDIS").contains("the RDB ends in the middle of the file header at byte 5"));
}
