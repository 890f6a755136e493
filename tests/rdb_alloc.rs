//! Passing an RDB on as it lies costs no allocation per key. Alone in its file: it counts those of the whole process.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use shakedeck::rdb::{Decoder, Item, Limits, Value, crc64, dump, types};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Strings of 100 bytes and small hashes, in turns.
fn file(keys: u32) -> Vec<u8> {
    let mut file = b"REDIS0011\xfe\x00".to_vec();
    for number in 0..keys {
        let name = format!("key:{number:08}");
        let hash = number % 2 == 0;
        file.push(if hash { types::HASH_LISTPACK } else { types::STRING });
        file.push(name.len() as u8);
        file.extend(name.bytes());
        if hash {
            file.extend(b"\x0d\x0d\0\0\0\x02\0\x81f\x02\x81v\x02\xff");
        } else {
            file.extend([0x40, 100]);
            file.extend([b'v'; 100]);
        }
    }
    file.push(255);
    let crc = crc64(&file);
    file.extend(crc.to_le_bytes());
    file
}

/// Reads a file as replay does; returns how many keys it had, and how many blocks of memory were asked for.
fn walk(file: &[u8], payload: &mut Vec<u8>) -> (u64, u64) {
    let before = dhat::HeapStats::get().total_blocks;
    let mut decoder = Decoder::new(file, Limits::default());
    let mut keys = 0;
    while let Some(item) = decoder.next().unwrap() {
        let Item::Entry(entry) = item else { continue };
        let Value::Raw(raw) = entry.value else { panic!("{entry:?}") };
        keys += 1;
        payload.clear();
        match entry.plain_string().unwrap() {
            Some(text) => payload.extend_from_slice(&text),
            None => dump::append_payload(payload, entry.type_byte, raw, 11),
        }
    }
    (keys, dhat::HeapStats::get().total_blocks - before)
}

#[test]
fn the_raw_path_allocates_nothing_per_key() {
    let (few, many) = (file(1_000), file(100_000));
    let mut payload = Vec::with_capacity(1 << 20);
    let _profiler = dhat::Profiler::builder().testing().build();
    let (keys, blocks) = walk(&few, &mut payload);
    assert_eq!(keys, 1_000);
    assert!(blocks > 0, "nothing is counted");
    assert_eq!(
        walk(&many, &mut payload),
        (100_000, blocks),
        "100 times as many keys, the same number of blocks"
    );
}
