//! The disk between source and destination: what arrived and is not yet confirmed.
//!
//! ```text
//!  source task --append--> g1-rdb | g1-stream-<first offset> … --read--> replay thread --> destination
//!                                   ^ deleted when confirmed
//! ```
//!
//! The source never waits for the destination: it appends at disk speed, and the reader follows on the same files, also
//! while they grow. A full sync begins a new *generation*; readers of an older one are told so. The manifest names the
//! generation and is replaced atomically, so that a crash leaves either the old or the new truth; files that it does not
//! name are leftovers and are removed.

mod append;
mod read;

pub use append::SpoolWriter;
pub use read::{RdbReader, StreamReadError, StreamReader};

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::psync::Replid;

/// Size at which a stream segment is closed and the next one begun.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// A file operation on the spool failed.
#[derive(Debug, thiserror::Error)]
#[error("spool: cannot {action} '{path}': {cause}", path = path.display())]
pub struct SpoolError {
    /// What was being done.
    pub action: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why it failed.
    pub cause: io::Error,
}

impl SpoolError {
    /// True when space that others free would cure it (ENOSPC, EDQUOT).
    pub fn is_full(&self) -> bool {
        matches!(self.cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Why a reader gets no more bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadEnd {
    /// The run is stopping.
    #[error("stopped")]
    Stopped,
    /// A new full sync has begun; what this reader reads is void.
    #[error("a new full sync has begun")]
    Superseded,
    /// The source is gone for good, and what it sent has been read.
    #[error("the source is gone")]
    Closed,
}

/// What the manifest file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of this file.
    pub version: u32,
    /// Counts full syncs; part of every file name.
    pub generation: u64,
    /// History that the stream belongs to.
    pub replid: Replid,
    /// Names that this history had before promotions of the source.
    #[serde(default)]
    pub former_replids: Vec<Replid>,
    /// Offset that the RDB stands for; the first stream byte has the next one.
    pub rdb_offset: u64,
    /// Length of the RDB once all of it is safe on disk (bytes).
    pub rdb_len: Option<u64>,
    /// True when the destination has confirmed the whole RDB and its file is gone.
    pub rdb_applied: bool,
}

impl Manifest {
    /// True when this is a name of the history, today's or a former one.
    pub fn knows(&self, replid: &Replid) -> bool {
        self.replid == *replid || self.former_replids.contains(replid)
    }
}

/// The spool of one source. Shared by the source task (which appends), the replay thread (which reads) and the writer
/// (which frees).
pub struct Spool {
    dir: PathBuf,
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    manifest: Option<Manifest>,
    rdb_received: u64,
    segments: VecDeque<Segment>,
    /// Offset of the last stream byte appended.
    received: u64,
    /// Offset of the last stream byte known to be safe on disk.
    durable: u64,
    /// Where the parser found the end of a diskless RDB without checksum.
    rdb_end_by_parser: Option<u64>,
    /// Readers shall end at once.
    stopped: bool,
    /// Nothing more will be appended: readers end where the bytes end.
    closed: bool,
}

struct Segment {
    /// Offset before its first byte.
    start: u64,
    len: u64,
}

impl Spool {
    /// Opens the folder of one source; what a former run left there is taken over.
    pub fn open(dir: &Path) -> Result<Arc<Spool>, SpoolError> {
        fs::create_dir_all(dir).map_err(failed("create", dir))?;
        let mut state = State::default();
        let manifest_path = dir.join("manifest.json");
        match fs::read(&manifest_path) {
            Ok(text) => {
                let manifest: Manifest = serde_json::from_slice(&text)
                    .map_err(|error| failed("read", &manifest_path)(io::Error::other(error)))?;
                state.recover(dir, manifest)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read", &manifest_path)(error)),
        }
        let spool = Spool { dir: dir.to_owned(), state: Mutex::new(state), grown: Condvar::new() };
        spool.remove_leftovers()?;
        Ok(Arc::new(spool))
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest as it stands.
    pub fn manifest(&self) -> Option<Manifest> {
        self.lock().manifest.clone()
    }

    /// RDB bytes received so far.
    pub fn rdb_received(&self) -> u64 {
        self.lock().rdb_received
    }

    /// Offset of the last stream byte appended.
    pub fn received(&self) -> u64 {
        self.lock().received
    }

    /// Offset of the last stream byte known to be safe on disk.
    pub fn durable(&self) -> u64 {
        self.lock().durable
    }

    /// Bytes and number of files on disk.
    pub fn usage(&self) -> (u64, u64) {
        let state = self.lock();
        let rdb = match &state.manifest {
            Some(manifest) if !manifest.rdb_applied => Some(state.rdb_received),
            _ => None,
        };
        let stream: u64 = state.segments.iter().map(|segment| segment.len).sum();
        (stream + rdb.unwrap_or(0), state.segments.len() as u64 + u64::from(rdb.is_some()))
    }

    /// Waits until a full sync has begun; returns its manifest. `None` when the run stops first.
    pub fn wait_generation(&self, newer_than: u64) -> Option<Manifest> {
        let mut state = self.lock();
        loop {
            if state.stopped || state.closed && state.manifest.is_none() {
                return None;
            }
            match &state.manifest {
                Some(manifest) if manifest.generation > newer_than => return Some(manifest.clone()),
                _ => state = self.wait(state),
            }
        }
    }

    /// True when the stream behind `offset` is here, as far as it has arrived.
    pub fn holds(&self, offset: u64) -> bool {
        let state = self.lock();
        let first = state.segments.front().map_or(state.received, |segment| segment.start);
        (first..=state.received).contains(&offset)
    }

    /// Tells every waiting reader to end.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.grown.notify_all();
    }

    /// True while readers are told to end.
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// New readers may begin after [`Spool::stop`].
    pub fn reopen(&self) {
        self.lock().stopped = false;
    }

    /// Nothing more will be appended: readers end when they have read what is here. `false` when that is no whole RDB,
    /// so that nothing can be finished.
    pub fn close(&self) -> bool {
        let mut state = self.lock();
        state.closed = true;
        self.grown.notify_all();
        state.manifest.as_ref().is_some_and(|manifest| manifest.rdb_len.is_some())
    }

    /// Told by the parser: the RDB of this generation ends here.
    pub fn rdb_ends_at(&self, generation: u64, len: u64) {
        let mut state = self.lock();
        if state.manifest.as_ref().is_some_and(|manifest| manifest.generation == generation) {
            state.rdb_end_by_parser = Some(len);
        }
    }

    /// Where the parser found the end of the RDB.
    pub fn rdb_end_by_parser(&self) -> Option<u64> {
        self.lock().rdb_end_by_parser
    }

    /// The destination has confirmed the whole RDB: its file goes.
    pub fn release_rdb(&self) -> Result<(), SpoolError> {
        let mut state = self.lock();
        let Some(manifest) = &mut state.manifest else { return Ok(()) };
        if manifest.rdb_applied {
            return Ok(());
        }
        manifest.rdb_applied = true;
        let manifest = manifest.clone();
        self.write_manifest(&manifest)?;
        remove_file(&rdb_path(&self.dir, manifest.generation))
    }

    /// The destination has confirmed the stream up to this offset: segments wholly below it go.
    pub fn release_stream(&self, applied: u64) -> Result<(), SpoolError> {
        let mut state = self.lock();
        let Some(generation) = state.manifest.as_ref().map(|manifest| manifest.generation) else {
            return Ok(());
        };
        // The last segment stays: it is being written, or it is where a restart continues.
        while state.segments.len() > 1 {
            let Some(first) = state.segments.front() else { break };
            if first.start + first.len > applied {
                break;
            }
            remove_file(&segment_path(&self.dir, generation, first.start))?;
            state.segments.pop_front();
        }
        Ok(())
    }

    /// Removes everything: the migration is over.
    pub fn forget(&self) -> Result<(), SpoolError> {
        let mut state = self.lock();
        state.manifest = None;
        state.segments.clear();
        state.rdb_received = 0;
        drop(state);
        remove_file(&self.dir.join("manifest.json"))?;
        self.remove_leftovers()?;
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every update below leaves the state consistent at each step, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.grown.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write_manifest(&self, manifest: &Manifest) -> Result<(), SpoolError> {
        let text = serde_json::to_vec_pretty(manifest).unwrap_or_default();
        replace_file(&self.dir.join("manifest.json"), &text)
    }

    /// Removes files of other generations.
    fn remove_leftovers(&self) -> Result<(), SpoolError> {
        let generation = self.lock().manifest.as_ref().map(|manifest| manifest.generation);
        let entries = fs::read_dir(&self.dir).map_err(failed("list", &self.dir))?;
        for entry in entries {
            let path = entry.map_err(failed("list", &self.dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some((number, kind)) = name.strip_prefix('g').and_then(|rest| rest.split_once('-')) else {
                continue;
            };
            let ours = kind == "rdb" || kind.starts_with("stream-");
            if ours && number.parse::<u64>().is_ok_and(|number| Some(number) != generation) {
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

impl State {
    /// Takes over what a former run left.
    fn recover(&mut self, dir: &Path, manifest: Manifest) -> Result<(), SpoolError> {
        let generation = manifest.generation;
        self.received = manifest.rdb_offset;
        if !manifest.rdb_applied {
            let path = rdb_path(dir, generation);
            match fs::metadata(&path) {
                Ok(metadata) => self.rdb_received = metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("examine", &path)(error)),
            }
        } else {
            self.rdb_received = manifest.rdb_len.unwrap_or(0);
        }
        let prefix = format!("g{generation}-stream-");
        let mut starts = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
            let entry = entry.map_err(failed("list", dir))?;
            let name = entry.file_name();
            let Some(start) = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.parse::<u64>().ok())
            else {
                continue;
            };
            let len = entry.metadata().map_err(failed("examine", &entry.path()))?.len();
            starts.push(Segment { start, len });
        }
        starts.sort_by_key(|segment| segment.start);
        for segment in starts {
            // A gap cannot come from us; what follows it cannot be used.
            if self.segments.back().is_some_and(|last| last.start + last.len != segment.start) {
                break;
            }
            self.received = segment.start + segment.len;
            self.segments.push_back(segment);
        }
        self.durable = self.received;
        self.manifest = Some(manifest);
        Ok(())
    }
}

/// Replaces a small file atomically and durably: write beside it, sync, rename, sync the folder.
pub fn replace_file(path: &Path, contents: &[u8]) -> Result<(), SpoolError> {
    let beside = path.with_extension("new");
    let mut file = create(&beside)?;
    file.write_all(contents).and_then(|()| file.sync_all()).map_err(failed("write", &beside))?;
    fs::rename(&beside, path).map_err(failed("replace", path))?;
    if let Some(dir) = path.parent() {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))?;
    }
    Ok(())
}

fn create(path: &Path) -> Result<File, SpoolError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(failed("create", path))
}

fn remove_file(path: &Path) -> Result<(), SpoolError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> SpoolError + use<> {
    let path = path.to_owned();
    move |cause| SpoolError { action, path: path.clone(), cause }
}

fn rdb_path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("g{generation}-rdb"))
}

fn segment_path(dir: &Path, generation: u64, start: u64) -> PathBuf {
    dir.join(format!("g{generation}-stream-{start:020}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use std::io::Read;

    use super::*;

    fn replid() -> Replid {
        Replid::parse(&"ab".repeat(20)).unwrap()
    }

    #[test]
    fn bytes_are_read_while_they_arrive_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let mut writer = SpoolWriter::new(spool.clone());
        writer.begin_full_sync(&replid(), 100).unwrap();
        writer.append_rdb(b"REDIS").unwrap();
        let mut reader = RdbReader::open(&spool, 1, 0).unwrap();
        let mut half = [0; 5];
        reader.read_exact(&mut half).unwrap();
        let waiting = std::thread::spawn(move || {
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).map(|_| rest)
        });
        writer.append_rdb(b"0011mark").unwrap();
        writer.finish_rdb(9).unwrap();
        let rest = waiting.join().unwrap().unwrap();
        assert!(rest == b"0011" || rest == b"0011mark", "a mark may have been read, never less: {rest:?}");

        writer.append_stream(b"hello ").unwrap();
        writer.append_stream(b"world").unwrap();
        assert_eq!((spool.received(), spool.durable()), (111, 100));
        writer.pending_sync().unwrap().unwrap().run().unwrap();
        assert_eq!(spool.durable(), 111);
        drop((writer, spool));

        let spool = Spool::open(dir.path()).unwrap();
        assert_eq!(spool.manifest().unwrap().rdb_len, Some(9));
        assert_eq!(spool.received(), 111);
        let mut writer = SpoolWriter::new(spool.clone());
        writer.append_stream(b"!").unwrap();
        let mut buffer = Vec::new();
        StreamReader::new(&spool, 1, 106).fill(&mut buffer, 100, true).unwrap();
        assert_eq!(buffer, b"world!");
    }

    #[test]
    fn a_new_full_sync_ends_old_readers_and_leaves_no_old_files() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let mut writer = SpoolWriter::new(spool.clone());
        writer.begin_full_sync(&replid(), 0).unwrap();
        writer.append_stream(b"old").unwrap();
        let mut old = StreamReader::new(&spool, 1, 3);
        let waiting = std::thread::spawn(move || old.fill(&mut Vec::new(), 10, true));
        writer.begin_full_sync(&replid(), 500).unwrap();
        assert!(matches!(waiting.join().unwrap(), Err(StreamReadError::End(ReadEnd::Superseded))));
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| !name.to_str().unwrap().starts_with("g1-")), "{names:?}");
    }

    #[test]
    fn confirmed_segments_are_freed_and_the_last_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        let mut writer = SpoolWriter::new(spool.clone());
        writer.begin_full_sync(&replid(), 0).unwrap();
        writer.finish_rdb(0).unwrap();
        spool.release_rdb().unwrap();
        let block = vec![b'x'; SEGMENT_BYTES as usize];
        for _ in 0..3 {
            writer.append_stream(&block).unwrap();
        }
        assert_eq!(spool.usage(), (3 * SEGMENT_BYTES, 3));
        spool.release_stream(2 * SEGMENT_BYTES - 1).unwrap();
        assert_eq!(spool.usage().1, 2);
        spool.release_stream(3 * SEGMENT_BYTES).unwrap();
        assert_eq!(spool.usage(), (SEGMENT_BYTES, 1));
        let mut buffer = Vec::new();
        let mut reader = StreamReader::new(&spool, 1, 3);
        assert!(matches!(reader.fill(&mut buffer, 10, true), Err(StreamReadError::Gone { offset: 3 })));
    }
}
