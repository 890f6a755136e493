//! The raw walk over every fixture: keys, checksums, and that a file read in pieces of any size gives the same items.

use crate::fixtures;
use std::io::Read;

use shakedeck::rdb::{Checksum, Decoder, Item, Limits, Value};

/// Gives at most `step` bytes per read.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.1.min(buf.len()).min(self.0.len());
        buf[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

/// Every item as text, with the position after it.
fn items(bytes: &[u8], step: usize, limits: Limits) -> Vec<(u64, String)> {
    let mut decoder = Decoder::new(Pieces(bytes, step), limits);
    let mut found = Vec::new();
    while let Some(item) = decoder.next().unwrap() {
        let text = format!("{item:?}");
        found.push((decoder.position(), text));
    }
    found
}

#[test]
fn every_fixture_walks_to_its_checksum() {
    for fixtures::Fixture { name, rdb: bytes, keys: expected } in &fixtures::all() {
        let mut decoder = Decoder::new(&bytes[..], Limits::default());
        let (mut keys, mut end) = (0, None);
        while let Some(item) = decoder.next().unwrap() {
            match item {
                Item::Entry(entry) => {
                    assert!(matches!(entry.value, Value::Raw(_)), "{name}: {entry:?}");
                    keys += 1;
                }
                Item::End { checksum } => end = Some(checksum),
                _ => {}
            }
        }
        assert!(matches!(end, Some(Checksum::Verified(_))), "{name}");
        assert_eq!(decoder.position(), bytes.len() as u64, "{name}");
        assert_eq!(keys, expected.len(), "{name}");
    }
}

#[test]
fn the_size_of_the_pieces_changes_nothing() {
    for fixtures::Fixture { name, rdb: bytes, .. } in &fixtures::all() {
        for limits in [Limits::default(), Limits { max_value_bytes: 500, max_opaque_bytes: 100 }] {
            let whole = items(bytes, usize::MAX, limits);
            for step in [1, 7, 1000] {
                assert!(items(bytes, step, limits) == whole, "{name} in pieces of {step}");
            }
        }
    }
}
