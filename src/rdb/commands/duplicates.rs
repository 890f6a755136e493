//! A field or member that stands twice in a collection. No server writes that, and none can hold it: commands would quietly
//! make one of two, so it is found here and the value is bad.

use std::collections::HashSet;
use std::hash::BuildHasher;

use super::super::elements::Element;
use super::super::model::visit_value;
use super::super::{Dialect, RdbError, describe_type};

/// Names seen so far, as hashes: a value that is in memory has at most a few hundred thousand. The hash is a simple one for
/// speed; a clash only makes the names be compared.
pub(super) struct Duplicates {
    seen: HashSet<u64, PassThrough>,
    /// Names to make room for with the first one: growing step by step costs more than all the rest.
    expected: usize,
    suspected: bool,
}

impl Duplicates {
    /// For a value of `len` bytes in memory.
    pub fn new(len: usize) -> Self {
        Self { seen: HashSet::default(), expected: len / 24, suspected: false }
    }

    /// Notes the name of an element, if it must be the only one.
    pub fn add(&mut self, element: &Element<'_>) {
        if let Element::Member(name)
        | Element::Field { field: name, .. }
        | Element::Scored { member: name, .. } = element
        {
            if self.seen.capacity() == 0 {
                self.seen.reserve(self.expected);
            }
            self.suspected |= !self.seen.insert(hash(name));
        }
    }

    /// Says whether a name stood twice. Two names with one hash are told apart by looking again.
    pub fn check(self, type_byte: u8, raw: &[u8], dialect: Dialect) -> Result<(), RdbError> {
        if !self.suspected {
            return Ok(());
        }
        let mut seen = HashSet::new();
        visit_value(type_byte, raw, dialect, &mut |element| match element {
            Element::Member(name)
            | Element::Field { field: name, .. }
            | Element::Scored { member: name, .. }
                if !seen.insert(name.to_vec()) =>
            {
                let what = describe_type(type_byte, dialect);
                Err(RdbError::Corrupt {
                    what,
                    offset: raw.len() as u64,
                    reason: "a field or member stands twice",
                })
            }
            _ => Ok(()),
        })
    }
}

/// Eight bytes a step; multiplied at the end so that every bit reaches the highest and the lowest.
fn hash(name: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, rest) = name.as_chunks::<8>();
    let mut last = [0; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let step = |hash: u64, word: [u8; 8]| {
        let mixed = (hash ^ u64::from_le_bytes(word)).wrapping_mul(ODD);
        mixed ^ mixed >> 29
    };
    let hash = words.iter().copied().fold(name.len() as u64, step);
    let hash = step(hash, last).wrapping_mul(ODD);
    hash ^ hash >> 32
}

/// What is put in is a hash already.
#[derive(Default, Clone)]
struct PassThrough(u64);

impl BuildHasher for PassThrough {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl std::hash::Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
