//! The replay thread's end of the spool: readers that follow files while they grow.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::marks::{self, MARK_LEN, Mark};
use super::{ReadEnd, Spool, SpoolError, State, failed, marks_path, rdb_path, segment_path};

/// Marks read in one go.
const MARKS_AT_ONCE: usize = 256;

/// Reads the RDB of one generation, also while it grows. Blocks; ends with an [`io::Error`] around [`ReadEnd`].
pub struct RdbReader {
    spool: Arc<Spool>,
    generation: u64,
    file: File,
    position: u64,
}

impl RdbReader {
    /// Begins at `position` (bytes).
    pub fn open(spool: &Arc<Spool>, generation: u64, position: u64) -> Result<Self, SpoolError> {
        let path = rdb_path(&spool.dir, generation);
        let lent = spool.lock().lent.as_ref().map(File::try_clone);
        let file = lent.unwrap_or_else(|| File::open(&path)).map_err(failed("open", &path))?;
        Ok(RdbReader { spool: spool.clone(), generation, file, position })
    }
}

impl Read for RdbReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = {
            let mut state = self.spool.lock();
            loop {
                check_reader(&state, self.generation).map_err(io::Error::other)?;
                if self.position < state.rdb_received {
                    break state.rdb_received - self.position;
                }
                if state.manifest.as_ref().is_some_and(|manifest| manifest.rdb_len.is_some()) {
                    return Ok(0);
                }
                if state.closed {
                    return Err(io::Error::other(ReadEnd::Closed));
                }
                state = self.spool.wait(state);
            }
        };
        let want = out.len().min(usize::try_from(available).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut out[..want], self.position)?;
        self.position += got as u64;
        Ok(got)
    }
}

/// Reads the stream of one generation from an offset on, also while it grows; every byte is compared with its mark before it is
/// handed out.
pub struct StreamReader {
    spool: Arc<Spool>,
    generation: u64,
    /// Offset before the next byte.
    offset: u64,
    segment: Option<OpenSegment>,
    /// Bytes handed out: offset of the last byte of each append, and when it arrived (Unix ms).
    arrivals: VecDeque<(u64, u64)>,
}

struct OpenSegment {
    start: u64,
    bytes: File,
    marks: File,
    /// Position in the marks file of the next mark.
    next_mark: u64,
    /// Offset before the bytes that it stands for.
    before: u64,
}

impl StreamReader {
    /// Begins with the byte after `offset`.
    pub fn new(spool: &Arc<Spool>, generation: u64, offset: u64) -> Self {
        let arrivals = VecDeque::new();
        StreamReader { spool: spool.clone(), generation, offset, segment: None, arrivals }
    }

    /// When the byte at `offset` arrived (Unix ms, by the source's clock); known for what the buffer of the last
    /// [`StreamReader::fill`] holds.
    pub fn received_at(&self, offset: u64) -> Option<u64> {
        let at = self.arrivals.partition_point(|(end, _)| *end < offset);
        self.arrivals.get(at).map(|(_, unix_ms)| *unix_ms)
    }

    /// Appends what is there, some `max` bytes and at least one append, to `buffer`; returns how many. With `wait`, blocks
    /// until there is something or [`Spool::nudge`]; 0 means nothing yet.
    pub fn fill(&mut self, buffer: &mut Vec<u8>, max: usize, wait: bool) -> Result<usize, StreamReadError> {
        // What stands in the buffer still is needed; what stood there before is not.
        let consumed = self.offset.saturating_sub(buffer.len() as u64);
        while self.arrivals.front().is_some_and(|(end, _)| *end <= consumed) {
            self.arrivals.pop_front();
        }
        let (start, end) = {
            let mut state = self.spool.lock();
            loop {
                check_reader(&state, self.generation)?;
                if self.offset < state.received {
                    break;
                }
                if !wait {
                    return Ok(0);
                }
                if state.closed {
                    return Err(ReadEnd::Closed.into());
                }
                if std::mem::take(&mut state.nudged) {
                    return Ok(0);
                }
                state = self.spool.wait(state);
            }
            match state.segment_of(self.offset) {
                Some(segment) => (segment.start, segment.start + segment.len),
                None => return Err(StreamReadError::Gone { offset: self.offset }),
            }
        };
        if self.segment.as_ref().is_none_or(|open| open.start != start) {
            self.segment = Some(self.open(start)?);
        }
        let Some(segment) = &mut self.segment else { return Ok(0) };
        let path = segment_path(&self.spool.dir, self.generation, start);
        let found = marks::read_marks(&segment.marks, segment.next_mark, MARKS_AT_ONCE)
            .map_err(failed("read", &marks_path(&self.spool.dir, self.generation, start)))?;
        // A reader that begins inside an append reads all of it, to compare it, and drops the head.
        let before = segment.before;
        let damaged = |from: u64, to: u64| StreamReadError::Damaged { path: path.clone(), from, to };
        let mut spans = Vec::new();
        let mut upto = before;
        for mark in found {
            if upto >= end || (upto > self.offset && upto - before >= max as u64) {
                break;
            }
            let len = marks::span_len(&mark, upto).filter(|_| mark.end <= end);
            let len = len.ok_or_else(|| damaged(self.offset, end))?;
            upto = mark.end;
            spans.push((mark, len));
        }
        if before > self.offset || upto <= self.offset {
            return Err(damaged(self.offset, end));
        }
        let old = buffer.len();
        buffer.resize(old + (upto - before) as usize, 0);
        let filled = read_and_compare(segment, before, &spans, &mut buffer[old..]);
        if let Err(error) = filled {
            buffer.truncate(old);
            return Err(match error {
                Disagreement::Io(cause) => failed("read", &path)(cause).into(),
                Disagreement::Bytes { from, to } => damaged(from, to),
            });
        }
        segment.next_mark += spans.len() as u64 * MARK_LEN;
        segment.before = upto;
        buffer.drain(old..old + (self.offset - before) as usize);
        self.arrivals.extend(spans.iter().map(|(mark, _)| (mark.end, mark.unix_ms)));
        let got = upto - self.offset;
        self.offset = upto;
        Ok(got as usize)
    }

    fn open(&self, start: u64) -> Result<OpenSegment, StreamReadError> {
        let path = segment_path(&self.spool.dir, self.generation, start);
        let marks_path = marks_path(&self.spool.dir, self.generation, start);
        let bytes = File::open(&path).map_err(failed("open", &path))?;
        let marks = File::open(&marks_path).map_err(failed("open", &marks_path))?;
        let len = marks.metadata().map_err(failed("examine", &marks_path))?.len();
        let next_mark = marks::find(&marks, self.offset, len).map_err(failed("read", &marks_path))?;
        let before = match next_mark.checked_sub(MARK_LEN).filter(|at| *at >= MARK_LEN) {
            None => start,
            Some(at) => marks::read_marks(&marks, at, 1)
                .map_err(failed("read", &marks_path))?
                .first()
                .map_or(u64::MAX, |mark| mark.end),
        };
        Ok(OpenSegment { start, bytes, marks, next_mark, before })
    }
}

enum Disagreement {
    Io(io::Error),
    Bytes { from: u64, to: u64 },
}

/// Fills `out` with the bytes of these marks, which begin after offset `before`.
fn read_and_compare(
    segment: &OpenSegment,
    before: u64,
    spans: &[(Mark, usize)],
    out: &mut [u8],
) -> Result<(), Disagreement> {
    let whole = before + out.len() as u64;
    match segment.bytes.read_exact_at(out, before - segment.start) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(Disagreement::Bytes { from: before, to: whole });
        }
        result => result.map_err(Disagreement::Io)?,
    }
    let mut rest = &out[..];
    for (mark, len) in spans {
        let (span, behind) = rest.split_at_checked(*len).unwrap_or_default();
        if !mark.agrees(span) {
            return Err(Disagreement::Bytes { from: mark.end - *len as u64, to: mark.end });
        }
        rest = behind;
    }
    Ok(())
}

/// Why the stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StreamReadError {
    /// In order: stop, or a new full sync.
    #[error(transparent)]
    End(#[from] ReadEnd),
    /// A file operation failed.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The bytes are not those that were written.
    #[error(
        "spool: '{path}' is damaged: its bytes after offset {from} up to {to} are not those that were written there (their checksum in the marks file does not agree): a failing disk, or the file was changed. Nothing of them was applied. Two ways on: move this file and all later ones of the folder away and start again, so that the source sends them once more if its backlog still reaches back to offset {from}; or start with an empty data directory for a new full sync.", path = path.display()
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Offset before the first bad byte, as far as known.
        from: u64,
        /// Offset of the last one.
        to: u64,
    },
    /// The bytes are not in the spool.
    #[error("spool: stream byte {offset} is missing; the folder was changed by hand or damaged")]
    Gone {
        /// First missing offset.
        offset: u64,
    },
}

fn check_reader(state: &State, generation: u64) -> Result<(), ReadEnd> {
    if state.stopped {
        return Err(ReadEnd::Stopped);
    }
    match &state.manifest {
        Some(manifest) if manifest.generation == generation => Ok(()),
        _ => Err(ReadEnd::Superseded),
    }
}
