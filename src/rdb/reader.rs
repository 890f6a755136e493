//! The bytes below everything else: a growing read buffer with a running CRC64, and the primitive encodings of RDB
//! (lengths, strings, fixed-width numbers) over any [`Source`] of bytes.
//!
//! The odd idea: the checksum is computed one refill late. When the parser asks for a byte that is not there yet, all bytes
//! that are there lie before the end of the file, so the whole buffer can be summed in one go, while read-ahead beyond the
//! end of the file is never included.

use std::io::Read;

use crc_fast::{CrcAlgorithm, Digest};

use super::{Fault, RdbError, lzf};

/// Bytes asked of the reader at a time: small enough that they are still in the L2 cache when they are walked and summed.
const READ_CHUNK: usize = 256 * 1024;
/// A buffer that one huge item has blown up beyond this is replaced once the item is gone.
const KEEP_BUFFER: usize = 32 * 1024 * 1024;
/// Longest piece of a long string that is handed out at once.
pub(crate) const PIECE: usize = 256 * 1024;

/// CRC64 as Redis computes it (Jones polynomial, reflected, init 0, no final xor; `crc64.c`).
#[derive(Debug, Clone)]
pub struct Crc64(Digest);

impl Crc64 {
    /// The checksum of no bytes.
    pub fn new() -> Self {
        Self::resume(0)
    }

    /// Goes on from an earlier [`Crc64::value`].
    pub fn resume(value: u64) -> Self {
        Self(Digest::new_with_init_state(CrcAlgorithm::Crc64Redis, value))
    }

    /// Adds bytes. Large pieces are summed faster than small ones.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far.
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }
}

impl Default for Crc64 {
    fn default() -> Self {
        Self::new()
    }
}

/// The CRC64 of one piece of bytes, as in RDB files and DUMP payloads.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Redis, bytes)
}

/// Longest string that is held as a whole: a key, an element, a field of the file. No server takes a longer one unless its
/// `proto-max-bulk-len` was raised (512 MiB is the default), so a length beyond it is damage far more likely than data; and it
/// must not make a buffer grow to the rest of the file. String *values* may be longer: they pass in pieces.
pub(crate) const MAX_HELD: u64 = 512 << 20;

/// How a string is stored (`rdbLoadStringObject`): the head, before its bytes.
pub(crate) enum StringHead {
    /// That many bytes as they are.
    Plain(u64),
    /// A number whose decimal text is the string.
    Int(i32),
    /// LZF: `packed` bytes that expand to `plain` bytes.
    Lzf { packed: u64, plain: u64 },
}

/// Bytes in order. All reads consume; a slice returned is valid until the next call.
pub(crate) trait Source {
    /// The next `n` bytes.
    fn take(&mut self, n: usize) -> Result<&[u8], Fault>;

    /// Passes over `n` bytes.
    fn skip(&mut self, n: u64) -> Result<(), Fault>;

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.take(N)?.try_into().map_err(|_| Fault::End)
    }

    fn u64_le(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn i64_le(&mut self) -> Result<i64, Fault> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// A length (`rdbLoadLen`). No upper limit: `u64::MAX` is a legal "unknown" in stream groups.
    fn length(&mut self) -> Result<u64, Fault> {
        let first = self.byte()?;
        self.length_after(first)
    }

    #[inline]
    fn length_after(&mut self, first: u8) -> Result<u64, Fault> {
        Ok(match first {
            0x00..=0x3f => u64::from(first),
            0x40..=0x7f => u64::from(u16::from_be_bytes([first & 0x3f, self.byte()?])),
            0x80 => u64::from(u32::from_be_bytes(self.array()?)),
            0x81 => u64::from_be_bytes(self.array()?),
            0x82..=0xbf => return Err(Fault::Bad("invalid length byte (0x82 to 0xbf)")),
            0xc0..=0xff => return Err(Fault::Bad("string encoding where a length must stand")),
        })
    }

    #[inline]
    fn string_head(&mut self) -> Result<StringHead, Fault> {
        let first = self.byte()?;
        Ok(match first {
            0xc0 => StringHead::Int(i32::from(i8::from_le_bytes(self.array()?))),
            0xc1 => StringHead::Int(i32::from(i16::from_le_bytes(self.array()?))),
            0xc2 => StringHead::Int(i32::from_le_bytes(self.array()?)),
            0xc3 => StringHead::Lzf { packed: self.length()?, plain: self.length()? },
            0xc4..=0xff => return Err(Fault::Bad("unknown string encoding")),
            _ => StringHead::Plain(self.length_after(first)?),
        })
    }

    /// The head of a string that is to be held ([`MAX_HELD`]).
    fn held_head(&mut self) -> Result<StringHead, Fault> {
        let head = self.string_head()?;
        let longest = match head {
            StringHead::Plain(n) => n,
            StringHead::Int(_) => 0,
            StringHead::Lzf { packed, plain } => packed.max(plain),
        };
        if longest > MAX_HELD { Err(Fault::Bad("impossible length, above 512 MiB")) } else { Ok(head) }
    }

    fn skip_string(&mut self) -> Result<(), Fault> {
        match self.string_head()? {
            StringHead::Plain(n) | StringHead::Lzf { packed: n, .. } => self.skip(n),
            StringHead::Int(_) => Ok(()),
        }
    }

    /// Appends a string, decoded, to `out`, which grows only as bytes arrive.
    fn string_into(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let head = self.held_head()?;
        self.string_after(head, out)
    }

    fn string_after(&mut self, head: StringHead, out: &mut Vec<u8>) -> Result<(), Fault> {
        match head {
            StringHead::Plain(mut left) => {
                while left > 0 {
                    let piece = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                    out.extend_from_slice(self.take(piece)?);
                    left -= piece as u64;
                }
            }
            StringHead::Int(number) => append_decimal(out, i64::from(number)),
            StringHead::Lzf { packed, plain } => {
                let length = usize::try_from(packed).map_err(|_| Fault::End)?;
                lzf::decompress(self.take(length)?, plain, out)?;
            }
        }
        Ok(())
    }

    /// A string and the `N` bytes behind it. Most strings need no copy: they are lent where they stand.
    fn string_and<'s, const N: usize>(
        &'s mut self,
        scratch: &'s mut Vec<u8>,
    ) -> Result<(&'s [u8], [u8; N]), Fault> {
        match self.held_head()? {
            StringHead::Plain(length) if length <= PIECE as u64 => {
                let both = self.take(length as usize + N)?;
                let (text, behind) = both.split_last_chunk().ok_or(Fault::End)?;
                Ok((text, *behind))
            }
            head => {
                scratch.clear();
                self.string_after(head, scratch)?;
                Ok((scratch, self.array()?))
            }
        }
    }

    /// Reads a string into a reused buffer.
    fn string(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        out.clear();
        self.string_into(out)
    }
}

/// Appends the decimal text of a number without allocating.
pub(crate) fn append_decimal(out: &mut Vec<u8>, number: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut left = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// A value that is wholly in memory.
pub(crate) struct Slice<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Slice<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes consumed.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Like [`Source::take`], but the bytes outlive the next call.
    pub fn take_slice(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(n).ok_or(Fault::End)?;
        let found = self.bytes.get(self.at..end).ok_or(Fault::End)?;
        self.at = end;
        Ok(found)
    }
}

impl Source for Slice<'_> {
    fn take(&mut self, n: usize) -> Result<&[u8], Fault> {
        self.take_slice(n)
    }

    fn skip(&mut self, n: u64) -> Result<(), Fault> {
        let n = usize::try_from(n).map_err(|_| Fault::End)?;
        self.take_slice(n).map(|_| ())
    }
}

/// A blocking reader behind a buffer. Either *holding* (bytes since [`Input::hold`] stay addressable, up to a limit) or not
/// (bytes consumed may vanish at the next refill).
pub(crate) struct Input<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Next byte to consume.
    at: usize,
    /// End of the bytes that arrived.
    end: usize,
    /// First byte that is held, if holding.
    held: Option<usize>,
    /// Consuming beyond this is [`Fault::TooLarge`].
    stop: usize,
    /// `min(end, stop)`: the one comparison of the fast path.
    ready: usize,
    crc: Crc64,
    /// Bytes before this are in `crc`.
    summed: usize,
    /// Offset in the file of `buffer[0]`.
    base: u64,
}

impl<R: Read> Input<R> {
    pub fn new(reader: R, offset: u64, crc: u64) -> Self {
        Self {
            reader,
            buffer: vec![0; READ_CHUNK],
            at: 0,
            end: 0,
            held: None,
            stop: usize::MAX,
            ready: 0,
            crc: Crc64::resume(crc),
            summed: 0,
            base: offset,
        }
    }

    /// Gives the reader back; bytes read ahead are lost.
    pub fn into_reader(self) -> R {
        self.reader
    }

    /// Offset of the next byte to consume.
    pub fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Bytes that arrived and were not consumed.
    pub fn buffered(&self) -> usize {
        self.end - self.at
    }

    /// Starts to hold bytes from here on.
    pub fn hold(&mut self) {
        self.held = Some(self.at);
    }

    /// Lets go of held bytes.
    pub fn release(&mut self) {
        self.held = None;
        self.set_stop(usize::MAX);
        if self.buffer.len() > KEEP_BUFFER && self.buffered() <= READ_CHUNK {
            self.crc.update(self.buffer.get(self.summed..self.at).unwrap_or_default());
            let mut fresh = vec![0; READ_CHUNK];
            let rest = self.buffered();
            fresh[..rest].copy_from_slice(&self.buffer[self.at..self.end]);
            self.base += self.at as u64;
            self.summed = self.summed.saturating_sub(self.at);
            self.buffer = fresh;
            (self.at, self.end, self.ready) = (0, rest, rest);
        }
    }

    /// Bytes consumed since [`Input::hold`].
    pub fn held_len(&self) -> usize {
        self.held.map_or(0, |held| self.at - held)
    }

    /// Held bytes, by distance from [`Input::hold`].
    pub fn held(&self, range: std::ops::Range<usize>) -> &[u8] {
        let from = self.held.unwrap_or(self.at);
        self.buffer.get(from + range.start..from + range.end).unwrap_or_default()
    }

    /// Goes back to a place in the held bytes.
    pub fn rewind(&mut self, distance: usize) {
        if let Some(held) = self.held {
            self.at = (held + distance).min(self.at);
        }
    }

    /// From here on at most `n` bytes may be consumed ([`Fault::TooLarge`] beyond); `None` lifts the limit.
    pub fn limit(&mut self, n: Option<usize>) {
        self.set_stop(n.map_or(usize::MAX, |n| self.at.saturating_add(n)));
    }

    /// The checksum of every byte consumed so far.
    pub fn checksum(&self) -> u64 {
        let mut crc = self.crc.clone();
        crc.update(self.buffer.get(self.summed..self.at).unwrap_or_default());
        crc.value()
    }

    fn set_stop(&mut self, stop: usize) {
        self.stop = stop;
        self.ready = self.end.min(stop);
    }

    fn sum_arrived(&mut self) {
        self.crc.update(&self.buffer[self.summed..self.end]);
        self.summed = self.end;
    }

    /// Reads until `n` bytes are there to consume, never more often than that takes.
    #[cold]
    fn fill(&mut self, n: usize) -> Result<(), Fault> {
        if n > self.stop.saturating_sub(self.at) {
            return Err(Fault::TooLarge);
        }
        self.sum_arrived();
        while self.end - self.at < n {
            if self.end == self.buffer.len() {
                self.make_room();
            }
            let room = self.buffer.len().min(self.end + READ_CHUNK);
            let read = self
                .reader
                .read(&mut self.buffer[self.end..room])
                .map_err(|e| Fault::from(RdbError::Io(e)))?;
            if read == 0 {
                return Err(Fault::End);
            }
            self.end = (self.end + read).min(room);
            self.ready = self.end.min(self.stop);
            if self.end - self.at < n {
                // Still short: what has arrived lies before the byte asked for, so it can be summed while it is hot.
                self.sum_arrived();
            }
        }
        Ok(())
    }

    /// Passes over more bytes than have arrived.
    #[cold]
    fn skip_beyond(&mut self, n: u64) -> Result<(), Fault> {
        if self.held.is_some() {
            return self.take(usize::try_from(n).map_err(|_| Fault::TooLarge)?).map(|_| ());
        }
        let mut left = n;
        while left > 0 {
            if self.at == self.end {
                self.fill(1)?;
            }
            let step = left.min((self.end - self.at) as u64);
            self.at += step as usize;
            left -= step;
        }
        Ok(())
    }

    /// Moves what is still needed to the front; doubles the buffer when that is most of it, so that moving stays cheap.
    fn make_room(&mut self) {
        let from = self.held.unwrap_or(self.at).min(self.at);
        let kept = self.end - from;
        if kept > self.buffer.len() / 4 * 3 {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        self.buffer.copy_within(from..self.end, 0);
        self.base += from as u64;
        self.at -= from;
        self.end = kept;
        self.summed = self.summed.saturating_sub(from);
        self.held = self.held.map(|held| held - from);
        if self.stop != usize::MAX {
            self.stop -= from;
        }
        self.ready = self.end.min(self.stop);
    }
}

impl<R: Read> Source for Input<R> {
    fn take(&mut self, n: usize) -> Result<&[u8], Fault> {
        if n > self.ready - self.at {
            self.fill(n)?;
        }
        let from = self.at;
        self.at += n;
        Ok(&self.buffer[from..self.at])
    }

    #[inline]
    fn skip(&mut self, n: u64) -> Result<(), Fault> {
        if n <= (self.ready - self.at) as u64 {
            self.at += n as usize;
            return Ok(());
        }
        self.skip_beyond(n)
    }
}

impl From<RdbError> for Fault {
    fn from(error: RdbError) -> Self {
        Self::Stop(Box::new(error))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed unwrap is a failed test.
mod tests {
    use super::*;

    #[test]
    fn crc_has_the_check_value_of_redis_and_can_be_resumed() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        let mut crc = Crc64::new();
        crc.update(b"1234");
        let mut crc = Crc64::resume(crc.value());
        crc.update(b"56789");
        assert_eq!(crc.value(), 0xe9c6_d914_c4b8_d9ca);
    }

    #[test]
    fn lengths_in_every_width() {
        let read = |bytes: &[u8]| Slice::new(bytes).length();
        assert_eq!(read(&[0x3f]).unwrap(), 63);
        assert_eq!(read(&[0x41, 0x02]).unwrap(), 258);
        assert_eq!(read(&[0x80, 0, 1, 0, 0]).unwrap(), 65_536);
        assert_eq!(read(&[0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).unwrap(), u64::MAX);
        assert!(matches!(read(&[0x82]), Err(Fault::Bad(_))));
        assert!(matches!(read(&[0xc0]), Err(Fault::Bad(_))));
        assert!(matches!(read(&[0x80, 0, 1]), Err(Fault::End)));
    }

    #[test]
    fn strings_in_every_encoding() {
        let read = |bytes: &[u8]| {
            let mut out = Vec::new();
            Slice::new(bytes).string(&mut out).map(|()| out)
        };
        assert_eq!(read(b"\x03abc").unwrap(), b"abc");
        assert_eq!(read(&[0xc0, 0x80]).unwrap(), b"-128");
        assert_eq!(read(&[0xc1, 0xff, 0x7f]).unwrap(), b"32767");
        assert_eq!(read(&[0xc2, 0, 0, 0, 0x80]).unwrap(), b"-2147483648");
        assert_eq!(read(&[0xc3, 4, 9, 0, b'a', 0xc0, 0]).unwrap_or_default(), b"aaaaaaaaa");
        assert!(matches!(read(&[0xc4, 0]), Err(Fault::Bad(_))));
        assert!(matches!(read(&[0x80, 0x20, 0, 0, 0, 1]), Err(Fault::End)));
        assert!(matches!(read(&[0x80, 0x20, 0, 0, 1, 1]), Err(Fault::Bad(_))));
    }

    #[test]
    fn decimal_text_of_the_extremes() {
        for number in [0, -1, 7, i64::MIN, i64::MAX] {
            let mut out = Vec::new();
            append_decimal(&mut out, number);
            assert_eq!(out, number.to_string().as_bytes());
        }
    }

    #[test]
    fn a_huge_claim_allocates_nothing() {
        let mut input = Input::new(&b"\x01"[..], 0, 0);
        input.hold();
        assert!(matches!(input.take(usize::MAX / 4), Err(Fault::End)));
        assert!(input.buffer.len() <= READ_CHUNK);
    }
}
