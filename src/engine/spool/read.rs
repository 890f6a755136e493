//! The replay thread's end of the spool: readers that follow files while they grow.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{ReadEnd, Spool, SpoolError, State, failed, rdb_path, segment_path};

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
        let file = File::open(&path).map_err(failed("open", &path))?;
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

/// Reads the stream of one generation from an offset on, also while it grows.
pub struct StreamReader {
    spool: Arc<Spool>,
    generation: u64,
    /// Offset before the next byte.
    offset: u64,
    segment: Option<(u64, File)>,
}

impl StreamReader {
    /// Begins with the byte after `offset`.
    pub fn new(spool: &Arc<Spool>, generation: u64, offset: u64) -> Self {
        StreamReader { spool: spool.clone(), generation, offset, segment: None }
    }

    /// Appends what is there, at most `max` bytes, to `buffer`; returns how many. With `wait`, blocks until there is
    /// something; without, 0 means nothing yet.
    pub fn fill(&mut self, buffer: &mut Vec<u8>, max: usize, wait: bool) -> Result<usize, StreamReadError> {
        let (start, available) = {
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
                state = self.spool.wait(state);
            }
            let at = state.segments.partition_point(|segment| segment.start <= self.offset);
            let segment = at.checked_sub(1).and_then(|at| state.segments.get(at));
            match segment {
                Some(segment) if self.offset < segment.start + segment.len => {
                    (segment.start, segment.start + segment.len - self.offset)
                }
                _ => return Err(StreamReadError::Gone { offset: self.offset }),
            }
        };
        if self.segment.as_ref().is_none_or(|(open, _)| *open != start) {
            let path = segment_path(&self.spool.dir, self.generation, start);
            let file = File::open(&path).map_err(failed("open", &path))?;
            self.segment = Some((start, file));
        }
        let Some((_, file)) = &self.segment else { return Ok(0) };
        let want = max.min(usize::try_from(available).unwrap_or(usize::MAX));
        let old = buffer.len();
        buffer.resize(old + want, 0);
        let got = file.read_at(&mut buffer[old..], self.offset - start);
        buffer.truncate(old + *got.as_ref().unwrap_or(&0));
        let got = got.map_err(failed("read", &self.spool.dir))?;
        self.offset += got as u64;
        Ok(got)
    }
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
