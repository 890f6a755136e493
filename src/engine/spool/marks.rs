//! Marks: beside each stream segment a file that says which bytes arrived when, and what they were.
//!
//! ```text
//!  g1-stream-<start>   bytes bytes bytes …                       one append each
//!  g1-marks-<start>    header mark mark mark …                   24 bytes each, little endian
//!    header            magic, offset known to be safe on disk when the segment was begun, CRC
//!    mark              offset after the bytes, Unix ms at which they arrived, CRC
//! ```
//!
//! The CRC (CRC-64/NVME) of a mark covers its bytes, its offset and its time, so a mark that agrees vouches for all
//! three. A mark is written after its bytes: after a crash, what lies behind the last mark that agrees is a torn tail.
//! Nothing in these files is believed before its CRC agrees, and no length from them is allocated beyond [`MAX_SPAN`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crc_fast::{CrcAlgorithm, Digest};

/// Size of the header and of each mark on disk (bytes).
pub const MARK_LEN: u64 = 24;
/// Most bytes that one mark may stand for.
pub const MAX_SPAN: u64 = 1024 * 1024;

const MAGIC: [u8; 8] = *b"SHKMARK1";

/// What is known about the bytes of one append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Offset of their last byte.
    pub end: u64,
    /// When they arrived (Unix ms, by the source's clock).
    pub unix_ms: u64,
    crc: u64,
}

impl Mark {
    /// The mark of bytes that end at offset `end`.
    pub fn of(bytes: &[u8], end: u64, unix_ms: u64) -> Mark {
        Mark { end, unix_ms, crc: crc(bytes, end, unix_ms) }
    }

    /// Whether these are its bytes.
    pub fn agrees(&self, bytes: &[u8]) -> bool {
        self.crc == crc(bytes, self.end, self.unix_ms)
    }

    /// As it lies in the file.
    pub fn encode(&self) -> [u8; MARK_LEN as usize] {
        encode(self.end, self.unix_ms, self.crc)
    }
}

/// The header of a marks file.
pub fn header(durable: u64) -> [u8; MARK_LEN as usize] {
    let magic = u64::from_le_bytes(MAGIC);
    encode(magic, durable, crc(&[], magic, durable))
}

/// Offset that was safe on disk when the segment was begun; `None` when the header is missing or damaged.
pub fn read_header(file: &File) -> io::Result<Option<u64>> {
    let found = read_marks(file, 0, 1)?;
    Ok(found
        .first()
        .filter(|mark| mark.end == u64::from_le_bytes(MAGIC) && mark.agrees(&[]))
        .map(|mark| mark.unix_ms))
}

/// Up to `count` marks from position `at` of the file on (bytes); fewer at its end. A piece of a mark is none.
pub fn read_marks(file: &File, at: u64, count: usize) -> io::Result<Vec<Mark>> {
    let mut bytes = vec![0; count * MARK_LEN as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let (marks, _) = bytes[..filled].as_chunks::<{ MARK_LEN as usize }>();
    Ok(marks.iter().map(decode).collect())
}

/// Position in the file of the first mark that ends behind `offset`, among those that begin before `limit` (bytes).
pub fn find(file: &File, offset: u64, limit: u64) -> io::Result<u64> {
    let (mut low, mut high) = (1, limit / MARK_LEN);
    while low < high {
        let middle = low + (high - low) / 2;
        match read_marks(file, middle * MARK_LEN, 1)?.first() {
            Some(mark) if mark.end <= offset => low = middle + 1,
            _ => high = middle,
        }
    }
    Ok(low * MARK_LEN)
}

/// How far a segment that begins after offset `start` agrees with its marks.
pub struct Agreed {
    /// Bytes of the segment.
    pub len: u64,
    /// Bytes of the marks file, header included.
    pub marks: u64,
    /// When the last byte arrived (Unix ms).
    pub unix_ms: Option<u64>,
}

/// Compares a segment with its marks from the front; ends at the first that does not agree.
pub fn verify(bytes: &File, marks: &File, start: u64) -> io::Result<Agreed> {
    let mut agreed = Agreed { len: 0, marks: MARK_LEN, unix_ms: None };
    let mut buffer = vec![0; MAX_SPAN as usize];
    loop {
        let some = read_marks(marks, agreed.marks, 128)?;
        if some.is_empty() {
            return Ok(agreed);
        }
        for mark in some {
            let len = span_len(&mark, start + agreed.len);
            let Some(span) = len.and_then(|len| buffer.get_mut(..len)) else { return Ok(agreed) };
            match bytes.read_exact_at(span, agreed.len) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(agreed),
                result => result?,
            }
            if !mark.agrees(span) {
                return Ok(agreed);
            }
            agreed.len += span.len() as u64;
            agreed.marks += MARK_LEN;
            agreed.unix_ms = Some(mark.unix_ms);
        }
    }
}

/// Length of the bytes of a mark when they begin after offset `start`; `None` when it cannot be true.
pub fn span_len(mark: &Mark, start: u64) -> Option<usize> {
    let len = mark.end.checked_sub(start).filter(|len| (1..=MAX_SPAN).contains(len))?;
    usize::try_from(len).ok()
}

fn crc(bytes: &[u8], end: u64, unix_ms: u64) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(bytes);
    digest.update(&end.to_le_bytes());
    digest.update(&unix_ms.to_le_bytes());
    digest.finalize()
}

fn encode(first: u64, second: u64, third: u64) -> [u8; MARK_LEN as usize] {
    let mut out = [0; MARK_LEN as usize];
    for (place, number) in out.chunks_exact_mut(8).zip([first, second, third]) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    out
}

fn decode(bytes: &[u8; MARK_LEN as usize]) -> Mark {
    let (numbers, _) = bytes.as_chunks::<8>();
    let number = |at: usize| numbers.get(at).map_or(0, |bytes| u64::from_le_bytes(*bytes));
    Mark { end: number(0), unix_ms: number(1), crc: number(2) }
}
