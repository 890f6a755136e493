//! The packed blobs inside values: ziplist, listpack, intset and zipmap, each as a cursor over its entries.
//!
//! All four are self-describing byte strings written by the server as they stand in its memory. Every length in them is
//! checked against what is there, and the redundant ones (total size, counts, back-lengths) must agree: a blob that
//! contradicts itself is one that no server would load.

use super::Fault;
use super::reader::append_decimal;

/// An entry of a ziplist or listpack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Packed<'a> {
    /// Bytes as they are.
    Text(&'a [u8]),
    /// A number that stands for its decimal text.
    Int(i64),
}

impl<'a> Packed<'a> {
    /// The bytes that a client would see; numbers are written into `digits`.
    pub fn text<'b>(self, digits: &'b mut Vec<u8>) -> &'b [u8]
    where
        'a: 'b,
    {
        match self {
            Self::Text(text) => text,
            Self::Int(number) => {
                digits.clear();
                append_decimal(digits, number);
                digits
            }
        }
    }

    /// As a number, where the format demands one.
    pub fn int(self) -> Result<i64, Fault> {
        match self {
            Self::Int(number) => Ok(number),
            Self::Text(text) => std::str::from_utf8(text)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or(Fault::Bad("text where a number must stand")),
        }
    }

    /// As a sorted set score.
    pub fn score(self) -> Result<f64, Fault> {
        match self {
            Self::Int(number) => Ok(number as f64),
            Self::Text(text) => parse_score(text),
        }
    }
}

/// A score written as text: `%.17g`, `%lg`, `inf`.
pub(crate) fn parse_score(text: &[u8]) -> Result<f64, Fault> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .filter(|score| !score.is_nan())
        .ok_or(Fault::Bad("a score that is not a number"))
}

/// Entries of a blob in order.
pub(crate) trait Entries<'a> {
    /// The next entry; `None` at the end mark.
    fn next(&mut self) -> Result<Option<Packed<'a>>, Fault>;

    /// The next entry, which must be there.
    fn expect(&mut self) -> Result<Packed<'a>, Fault> {
        self.next()?.ok_or(Fault::Bad("odd number of entries in a packed value"))
    }
}

/// Splits off `N` bytes as an array.
fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Fault> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(Fault::Bad("packed value cut off"))?;
    *rest = tail;
    Ok(*head)
}

fn bytes<'a>(rest: &mut &'a [u8], n: usize) -> Result<&'a [u8], Fault> {
    let (head, tail) = rest.split_at_checked(n).ok_or(Fault::Bad("packed value cut off"))?;
    *rest = tail;
    Ok(head)
}

fn int24(three: [u8; 3]) -> i64 {
    i64::from(i32::from_le_bytes([0, three[0], three[1], three[2]]) >> 8)
}

const END: u8 = 0xff;
/// A 16-bit entry count that says nothing: the entries must be walked.
const UNKNOWN_COUNT: u16 = u16::MAX;

/// `ziplist.c`: packed lists, hashes and sorted sets up to Redis 6.2.
pub(crate) struct Ziplist<'a> {
    rest: &'a [u8],
    total: usize,
    tail: usize,
    count: u16,
    seen: usize,
    /// Length of the previous entry, which every entry repeats.
    previous: usize,
}

impl<'a> Ziplist<'a> {
    pub fn new(blob: &'a [u8]) -> Result<Self, Fault> {
        let mut rest = blob;
        let total = u32::from_le_bytes(array(&mut rest)?) as usize;
        let tail = u32::from_le_bytes(array(&mut rest)?) as usize;
        let count = u16::from_le_bytes(array(&mut rest)?);
        if total != blob.len() {
            return Err(Fault::Bad("ziplist size differs from its header"));
        }
        Ok(Self { rest, total, tail, count, seen: 0, previous: 0 })
    }
}

impl<'a> Entries<'a> for Ziplist<'a> {
    fn next(&mut self) -> Result<Option<Packed<'a>>, Fault> {
        let at = self.total - self.rest.len();
        if let [END, after @ ..] = self.rest {
            let counted = self.count == UNKNOWN_COUNT || usize::from(self.count) == self.seen;
            if !after.is_empty() || !counted || self.tail != at - self.previous {
                return Err(Fault::Bad("ziplist header and entries disagree"));
            }
            return Ok(None);
        }
        let rest = &mut self.rest;
        let previous = match array::<1>(rest)? {
            [0xfe] => u32::from_le_bytes(array(rest)?) as usize,
            [n] => usize::from(n),
        };
        if previous != self.previous {
            return Err(Fault::Bad("ziplist entry with a wrong back-length"));
        }
        let [encoding] = array(rest)?;
        let entry = match encoding {
            0x00..=0x3f => Packed::Text(bytes(rest, usize::from(encoding))?),
            0x40..=0x7f => {
                let [low] = array(rest)?;
                Packed::Text(bytes(rest, usize::from(u16::from_be_bytes([encoding & 0x3f, low])))?)
            }
            0x80 => {
                let length = u32::from_be_bytes(array(rest)?) as usize;
                Packed::Text(bytes(rest, length)?)
            }
            0xc0 => Packed::Int(i64::from(i16::from_le_bytes(array(rest)?))),
            0xd0 => Packed::Int(i64::from(i32::from_le_bytes(array(rest)?))),
            0xe0 => Packed::Int(i64::from_le_bytes(array(rest)?)),
            0xf0 => Packed::Int(int24(array(rest)?)),
            0xfe => Packed::Int(i64::from(i8::from_le_bytes(array(rest)?))),
            0xf1..=0xfd => Packed::Int(i64::from(encoding & 0x0f) - 1),
            _ => return Err(Fault::Bad("unknown ziplist encoding")),
        };
        self.previous = self.total - self.rest.len() - at;
        self.seen += 1;
        Ok(Some(entry))
    }
}

/// `listpack.c`: packed values since Redis 7.0, and the nodes of streams.
pub(crate) struct Listpack<'a> {
    rest: &'a [u8],
    count: u16,
    seen: usize,
}

impl<'a> Listpack<'a> {
    pub fn new(blob: &'a [u8]) -> Result<Self, Fault> {
        let mut rest = blob;
        let total = u32::from_le_bytes(array(&mut rest)?) as usize;
        let count = u16::from_le_bytes(array(&mut rest)?);
        if total != blob.len() {
            return Err(Fault::Bad("listpack size differs from its header"));
        }
        Ok(Self { rest, count, seen: 0 })
    }

    /// Whether only the end mark is left.
    pub fn at_end(&self) -> bool {
        self.rest == [END]
    }
}

impl<'a> Entries<'a> for Listpack<'a> {
    fn next(&mut self) -> Result<Option<Packed<'a>>, Fault> {
        if let [END, after @ ..] = self.rest {
            let counted = self.count == UNKNOWN_COUNT || usize::from(self.count) == self.seen;
            return if after.is_empty() && counted {
                Ok(None)
            } else {
                Err(Fault::Bad("listpack header and entries disagree"))
            };
        }
        let before = self.rest.len();
        let rest = &mut self.rest;
        let [encoding] = array(rest)?;
        let entry = match encoding {
            0x00..=0x7f => Packed::Int(i64::from(encoding)),
            0x80..=0xbf => Packed::Text(bytes(rest, usize::from(encoding & 0x3f))?),
            0xc0..=0xdf => {
                let [low] = array(rest)?;
                // 13 bits, sign in the highest: moved to the top of 16 bits and back.
                Packed::Int(i64::from(i16::from_be_bytes([encoding, low]) << 3 >> 3))
            }
            0xe0..=0xef => {
                let [low] = array(rest)?;
                Packed::Text(bytes(rest, usize::from(u16::from_be_bytes([encoding & 0x0f, low])))?)
            }
            0xf0 => {
                let length = u32::from_le_bytes(array(rest)?) as usize;
                Packed::Text(bytes(rest, length)?)
            }
            0xf1 => Packed::Int(i64::from(i16::from_le_bytes(array(rest)?))),
            0xf2 => Packed::Int(int24(array(rest)?)),
            0xf3 => Packed::Int(i64::from(i32::from_le_bytes(array(rest)?))),
            0xf4 => Packed::Int(i64::from_le_bytes(array(rest)?)),
            _ => return Err(Fault::Bad("unknown listpack encoding")),
        };
        let length = before - rest.len();
        if !skip_back_length(rest, length)? {
            return Err(Fault::Bad("listpack entry with a wrong back-length"));
        }
        self.seen += 1;
        Ok(Some(entry))
    }
}

/// Passes over a back-length (`lpEncodeBacklen`: groups of 7 bits, highest first, all but the first marked) and says whether
/// it is `length`.
fn skip_back_length(rest: &mut &[u8], length: usize) -> Result<bool, Fault> {
    if length <= 127 {
        let [only] = array(rest)?;
        return Ok(usize::from(only) == length);
    }
    let groups = match length {
        0..16_383 => 2,
        16_383..2_097_151 => 3,
        2_097_151..268_435_455 => 4,
        _ => 5,
    };
    let [first, marked @ ..] = bytes(rest, groups)? else { return Ok(false) };
    let value =
        marked.iter().fold(usize::from(*first), |value, group| value << 7 | usize::from(group & 0x7f));
    Ok(value == length && *first < 0x80 && marked.iter().all(|group| *group >= 0x80))
}

/// `intset.c`: ascending integers of one width.
pub(crate) fn intset(blob: &[u8], mut each: impl FnMut(i64) -> Result<(), Fault>) -> Result<(), Fault> {
    let mut rest = blob;
    let width = u32::from_le_bytes(array(&mut rest)?) as usize;
    let count = u32::from_le_bytes(array(&mut rest)?) as usize;
    if !matches!(width, 2 | 4 | 8) {
        return Err(Fault::Bad("intset of unknown width"));
    }
    if count.checked_mul(width) != Some(rest.len()) {
        return Err(Fault::Bad("intset size differs from its header"));
    }
    let mut last = None;
    while !rest.is_empty() {
        let number = match width {
            2 => i64::from(i16::from_le_bytes(array(&mut rest)?)),
            4 => i64::from(i32::from_le_bytes(array(&mut rest)?)),
            _ => i64::from_le_bytes(array(&mut rest)?),
        };
        if last.is_some_and(|last| last >= number) {
            return Err(Fault::Bad("intset out of order"));
        }
        last = Some(number);
        each(number)?;
    }
    Ok(())
}

/// `zipmap.c`: small hashes before Redis 2.6.
pub(crate) fn zipmap(
    blob: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut rest = blob;
    let [count] = array(&mut rest)?;
    let mut seen = 0usize;
    while let Some(length) = zipmap_length(&mut rest)? {
        let field = bytes(&mut rest, length)?;
        let length = zipmap_length(&mut rest)?.ok_or(Fault::Bad("zipmap field without a value"))?;
        let [free] = array(&mut rest)?;
        let value = bytes(&mut rest, length)?;
        bytes(&mut rest, usize::from(free))?;
        seen += 1;
        each(field, value)?;
    }
    let counted = count >= 254 || usize::from(count) == seen;
    if rest.is_empty() && counted { Ok(()) } else { Err(Fault::Bad("zipmap header and entries disagree")) }
}

/// `None` at the end mark.
fn zipmap_length(rest: &mut &[u8]) -> Result<Option<usize>, Fault> {
    Ok(match array::<1>(rest)? {
        [END] => None,
        [0xfe] => Some(u32::from_le_bytes(array(rest)?) as usize),
        [n] => Some(usize::from(n)),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed unwrap is a failed test.
mod tests {
    use super::*;

    fn all<'a>(mut entries: impl Entries<'a>) -> Result<Vec<String>, Fault> {
        let mut found = Vec::new();
        let mut digits = Vec::new();
        while let Some(entry) = entries.next()? {
            found.push(String::from_utf8_lossy(entry.text(&mut digits)).into_owned());
        }
        Ok(found)
    }

    /// A listpack of entries given without their back-lengths.
    fn listpack(entries: &[&[u8]]) -> Vec<u8> {
        let mut blob = vec![0; 6];
        for entry in entries {
            blob.extend_from_slice(entry);
            let n = entry.len();
            if n <= 127 {
                blob.push(n as u8);
            } else {
                blob.extend([(n >> 7) as u8, (n & 127) as u8 | 128]);
            }
        }
        blob.push(END);
        let total = blob.len() as u32;
        blob[..4].copy_from_slice(&total.to_le_bytes());
        blob[4..6].copy_from_slice(&(entries.len() as u16).to_le_bytes());
        blob
    }

    #[test]
    fn listpack_entries_of_every_encoding() {
        let mut long = vec![0xe0, 200];
        long.extend([b'x'; 200]);
        let mut str32 = vec![0xf0, 3, 0, 0, 0];
        str32.extend(b"abc");
        let blob = listpack(&[
            &[0x7f],
            b"\x83abc",
            &[0xdf, 0xff],
            &[0xcf, 0xff],
            &[0xd0, 0x00],
            &long,
            &str32,
            &[0xf1, 0x00, 0x80],
            &[0xf2, 0x00, 0x00, 0x80],
            &[0xf2, 0xff, 0xff, 0x7f],
            &[0xf3, 0, 0, 0, 0x80],
            &[0xf4, 0, 0, 0, 0, 0, 0, 0, 0x80],
        ]);
        assert_eq!(
            all(Listpack::new(&blob).unwrap()).unwrap(),
            [
                "127",
                "abc",
                "-1",
                "4095",
                "-4096",
                &"x".repeat(200),
                "abc",
                "-32768",
                "-8388608",
                "8388607",
                "-2147483648",
                "-9223372036854775808"
            ]
        );
    }

    #[test]
    fn a_listpack_that_contradicts_itself_is_refused() {
        let good = listpack(&[b"\x81a", &[5]]);
        assert_eq!(all(Listpack::new(&good).unwrap()).unwrap(), ["a", "5"]);
        for (at, byte) in [(0, 99), (4, 3), (8, 7), (6, 0xbf), (6, 0xf0), (6, 0xf9), (10, 2), (11, 0)] {
            let mut bad = good.clone();
            bad[at] = byte;
            let found = Listpack::new(&bad).and_then(all);
            assert!(matches!(found, Err(Fault::Bad(_))), "byte {at} = {byte}: {found:?}");
        }
    }

    /// A ziplist of entries given without their back-lengths.
    fn ziplist(entries: &[&[u8]]) -> Vec<u8> {
        let mut blob = vec![0; 10];
        let (mut previous, mut tail) = (0usize, 10);
        for entry in entries {
            tail = blob.len();
            if previous < 254 {
                blob.push(previous as u8);
            } else {
                blob.push(0xfe);
                blob.extend((previous as u32).to_le_bytes());
            }
            blob.extend_from_slice(entry);
            previous = blob.len() - tail;
        }
        blob.push(END);
        let total = blob.len() as u32;
        blob[..4].copy_from_slice(&total.to_le_bytes());
        blob[4..8].copy_from_slice(&(tail as u32).to_le_bytes());
        blob[8..10].copy_from_slice(&(entries.len() as u16).to_le_bytes());
        blob
    }

    #[test]
    fn ziplist_entries_of_every_encoding() {
        let mut middle = vec![0x41, 0x2c];
        middle.extend([b'm'; 300]);
        let mut long = vec![0x80, 0, 0, 0, 2];
        long.extend(b"zz");
        let blob = ziplist(&[
            b"\x03abc",
            &middle,
            &long,
            &[0xc0, 0, 0x80],
            &[0xd0, 0, 0, 0, 0x80],
            &[0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80],
            &[0xf0, 0, 0, 0x80],
            &[0xfe, 0x80],
            &[0xf1],
            &[0xfd],
        ]);
        assert_eq!(
            all(Ziplist::new(&blob).unwrap()).unwrap(),
            [
                "abc",
                &"m".repeat(300),
                "zz",
                "-32768",
                "-2147483648",
                "-9223372036854775808",
                "-8388608",
                "-128",
                "0",
                "12"
            ]
        );
        assert_eq!(all(Ziplist::new(&ziplist(&[])).unwrap()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_ziplist_that_contradicts_itself_is_refused() {
        let good = ziplist(&[b"\x01a", b"\x01b"]);
        for (at, byte) in [(0, 99), (4, 10), (8, 3), (11, 0x3f), (11, 0xff), (13, 9), (16, 0)] {
            let mut bad = good.clone();
            bad[at] = byte;
            let found = Ziplist::new(&bad).and_then(all);
            assert!(matches!(found, Err(Fault::Bad(_))), "byte {at} = {byte}: {found:?}");
        }
    }

    #[test]
    fn intsets_and_their_flaws() {
        let read = |blob: &[u8]| {
            let mut found = Vec::new();
            intset(blob, |n| {
                found.push(n);
                Ok(())
            })
            .map(|()| found)
        };
        assert_eq!(read(&[2, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 5, 0]).unwrap(), [-1, 5]);
        assert!(read(&[2, 0, 0, 0, 2, 0, 0, 0, 5, 0, 5, 0]).is_err());
        assert!(read(&[2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 5, 0]).is_err());
        assert!(read(&[3, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn zipmaps_with_free_bytes() {
        let read = |blob: &[u8]| {
            let mut found = Vec::new();
            zipmap(blob, |f, v| {
                found.push((f.to_vec(), v.to_vec()));
                Ok(())
            })
            .map(|()| found)
        };
        let blob = b"\x02\x01a\x02\x03bc___\xfe\x01\x00\x00\x00d\x00\x00\xff";
        assert_eq!(read(blob).unwrap(), [(b"a".to_vec(), b"bc".to_vec()), (b"d".to_vec(), b"".to_vec())]);
        assert!(read(b"\x01\x01a\xff").is_err());
        assert!(read(b"\x02\x01a\x01\x00b\xff").is_err());
    }
}
