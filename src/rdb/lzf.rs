//! LZF, the compression of strings in RDB: decompression only. A control byte below 32 announces literals; any other is a
//! reference back into the output, which may overlap itself (that is how runs are written). The decoded length stands
//! beside the compressed bytes and must be met exactly, but nothing is allocated because of it.

use super::Fault;
use super::reader::{PIECE, Source};

/// No three bytes of LZF expand to more than 264.
const MAX_EXPANSION: u64 = 88;
/// Furthest reference back.
pub(crate) const WINDOW: usize = 8192;

/// One instruction of the compressed stream.
pub(crate) enum Op {
    /// Copy that many bytes from the input.
    Literal(usize),
    /// Copy `length` bytes from `distance` before the end of the output.
    Copy { distance: usize, length: usize },
}

/// Reads one instruction; `next` supplies the following input byte.
pub(crate) fn op(control: u8, mut next: impl FnMut() -> Result<u8, Fault>) -> Result<Op, Fault> {
    if control < 32 {
        return Ok(Op::Literal(usize::from(control) + 1));
    }
    let mut length = usize::from(control >> 5) + 2;
    if length == 9 {
        length += usize::from(next()?);
    }
    let distance = (usize::from(control & 31) << 8 | usize::from(next()?)) + 1;
    Ok(Op::Copy { distance, length })
}

/// Whether `packed` bytes can expand to `plain` bytes at all.
pub(crate) fn plausible(packed: u64, plain: u64) -> bool {
    plain > 0 && plain <= packed.saturating_mul(MAX_EXPANSION)
}

/// Appends the `plain` bytes that `packed` stands for to `out`.
pub(crate) fn decompress(packed: &[u8], plain: u64, out: &mut Vec<u8>) -> Result<(), Fault> {
    if !plausible(packed.len() as u64, plain) {
        return Err(Fault::Bad("impossible LZF length"));
    }
    let start = out.len();
    let limit = usize::try_from(plain)
        .ok()
        .and_then(|n| start.checked_add(n))
        .ok_or(Fault::Bad("impossible LZF length"))?;
    out.reserve((limit - start).min(packed.len().saturating_mul(4)));
    let mut input = packed.iter();
    while let Some(&control) = input.next() {
        match op(control, || input.next().copied().ok_or(Fault::Bad("truncated LZF data")))? {
            Op::Literal(n) => {
                let (literal, rest) =
                    input.as_slice().split_at_checked(n).ok_or(Fault::Bad("truncated LZF data"))?;
                if out.len() + n > limit {
                    return Err(Fault::Bad("LZF data longer than announced"));
                }
                out.extend_from_slice(literal);
                input = rest.iter();
            }
            Op::Copy { distance, length } => {
                if distance > out.len() - start || out.len() + length > limit {
                    return Err(Fault::Bad("LZF reference outside the string"));
                }
                copy_back(out, distance, length);
            }
        }
    }
    if out.len() == limit { Ok(()) } else { Err(Fault::Bad("LZF data shorter than announced")) }
}

/// Like [`decompress`] for strings too long to hold: hands the text out in pieces, with the last 8 KiB kept for references.
pub(crate) fn expand(
    src: &mut impl Source,
    packed: u64,
    plain: u64,
    piece: &mut dyn FnMut(&[u8]) -> Result<(), Fault>,
) -> Result<(), Fault> {
    if !plausible(packed, plain) {
        return Err(Fault::Bad("impossible LZF length"));
    }
    let mut out = Vec::with_capacity(WINDOW + PIECE + 512);
    let (mut unread, mut unwritten) = (packed, plain);
    let mut sent = 0; // Bytes of `out` that were handed out and are kept for references.
    let take = |unread: &mut u64, n: usize| -> Result<(), Fault> {
        *unread = unread.checked_sub(n as u64).ok_or(Fault::Bad("truncated LZF data"))?;
        Ok(())
    };
    while unread > 0 {
        take(&mut unread, 1)?;
        let control = src.byte()?;
        let before = out.len();
        match op(control, || {
            take(&mut unread, 1)?;
            src.byte()
        })? {
            Op::Literal(n) => {
                take(&mut unread, n)?;
                out.extend_from_slice(src.take(n)?);
            }
            Op::Copy { distance, length } => {
                if distance > out.len() {
                    return Err(Fault::Bad("LZF reference outside the string"));
                }
                copy_back(&mut out, distance, length);
            }
        }
        unwritten = unwritten
            .checked_sub((out.len() - before) as u64)
            .ok_or(Fault::Bad("LZF data longer than announced"))?;
        if out.len() >= WINDOW + PIECE {
            piece(&out[sent..])?;
            out.drain(..out.len() - WINDOW);
            sent = WINDOW;
        }
    }
    if unwritten > 0 {
        return Err(Fault::Bad("LZF data shorter than announced"));
    }
    if sent < out.len() { piece(&out[sent..]) } else { Ok(()) }
}

/// Appends `length` bytes from `distance` back; the copy may read what it has just written. `distance` is at most
/// `out.len()` (checked by the callers) and at least 1.
pub(crate) fn copy_back(out: &mut Vec<u8>, distance: usize, length: usize) {
    let from = out.len() - distance;
    let mut left = length;
    while left > 0 {
        let step = left.min(out.len() - from);
        out.extend_from_within(from..from + step);
        left -= step;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed unwrap is a failed test.
mod tests {
    use super::*;

    fn plain(packed: &[u8], length: u64) -> Result<Vec<u8>, Fault> {
        let mut out = b"before".to_vec();
        decompress(packed, length, &mut out)?;
        Ok(out.split_off(6))
    }

    #[test]
    fn literals_and_references() {
        assert_eq!(plain(&[2, b'a', b'b', b'c'], 3).unwrap(), b"abc");
        assert_eq!(plain(&[2, b'a', b'b', b'c', 0x20, 2], 6).unwrap(), b"abcabc");
    }

    #[test]
    fn an_overlapping_reference_is_a_run() {
        assert_eq!(plain(&[0, b'x', 0xe0, 91, 0], 101).unwrap(), vec![b'x'; 101]);
        assert_eq!(plain(&[1, b'x', b'y', 0x60, 1], 7).unwrap(), b"xyxyxyx");
    }

    #[test]
    fn broken_data_is_refused() {
        for (packed, length) in [
            (&[2u8, b'a', b'b'][..], 3),         // literals cut off
            (&[0, b'a', 0x20, 1], 4),            // reference before the start: the text before is not ours
            (&[0, b'a'], 2),                     // too short
            (&[1, b'a', b'b'], 1),               // too long
            (&[0, b'x', 0xe0], 10),              // reference cut off
            (&[0, b'x', 0xe0, 91, 0], u64::MAX), // impossible claim
            (&[0, b'x'], 0),
        ] {
            assert!(matches!(plain(packed, length), Err(Fault::Bad(_))), "{packed:?}");
        }
    }
}
