//! The disk between source and destination: what arrived and is not yet confirmed.
//!
//! ```text
//!  source task --append--> g1-rdb | g1-stream-<first offset> + g1-marks-<first offset> … --read--> replay thread
//!                                   ^ deleted when confirmed
//! ```
//!
//! The source never waits for the destination: it appends at disk speed, and the reader follows on the same files, also
//! while they grow. A full sync begins a new *generation*; readers of an older one are told so. The manifest names the
//! generation and is replaced atomically, so that a crash leaves either the old or the new truth; files that it does not
//! name are leftovers and are removed.
//!
//! Every append to the stream has a *mark*: when it arrived, and a checksum (see `marks`). Marks find the torn tail of a
//! crash, prove every byte before it is applied, and tell how old it is.

mod append;
mod marks;
mod read;
mod recover;
#[cfg(test)]
mod tests;

pub use append::SpoolWriter;
pub use read::{RdbReader, StreamReadError, StreamReader};
pub use recover::Torn;

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::psync::Replid;

/// A file operation on the spool failed.
#[derive(Debug, thiserror::Error)]
#[error("spool: cannot {action} '{path}': {cause}{}", self.cure(), path = path.display())]
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
        is_full(&self.cause)
    }

    fn cure(&self) -> &'static str {
        match self.cause.kind() {
            io::ErrorKind::PermissionDenied => ". May this user write there?",
            io::ErrorKind::ReadOnlyFilesystem => {
                ". The file system is read-only now, mostly after an error of its disk: look at the kernel's log (dmesg). Once it can be written again, start again: nothing that was confirmed is lost."
            }
            // EIO: the standard library has no name for it.
            _ if self.cause.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                ". The disk fails: look at the kernel's log (dmesg), copy the data directory to a sound disk and start again there: nothing that was confirmed is lost."
            }
            _ => "",
        }
    }
}

/// True for ENOSPC and EDQUOT.
pub fn is_full(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
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
    /// Begun without a full sync ([`Spool::seed`]): the stream counts only behind the first command that holds this text,
    /// in database 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin_after: Option<String>,
    /// True when the RDB is a file of the operator, which is read where it lies and never removed.
    #[serde(default)]
    pub rdb_lent: bool,
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
    /// The operator's RDB file, if the manifest says that there is one.
    lent: Option<File>,
    rdb_received: u64,
    segments: VecDeque<Segment>,
    /// Offset of the last stream byte appended.
    received: u64,
    /// Offset of the last stream byte known to be safe on disk.
    durable: u64,
    /// When the byte at `received` arrived (Unix ms), where known.
    received_ms: Option<u64>,
    /// Offset that the destination has confirmed.
    applied: u64,
    /// The last segment takes no more bytes.
    last_closed: bool,
    /// What the start had to cut off.
    torn: Option<Torn>,
    /// Where the parser found the end of a diskless RDB without checksum.
    rdb_end_by_parser: Option<u64>,
    /// A reader that waits for more of the stream shall look up.
    nudged: bool,
    /// Readers shall end at once.
    stopped: bool,
    /// Nothing more will be appended: readers end where the bytes end.
    closed: bool,
}

struct Segment {
    /// Offset before its first byte.
    start: u64,
    len: u64,
    /// Length of its marks file.
    marks: u64,
}

impl State {
    /// The segment that holds the byte after `offset`.
    fn segment_of(&self, offset: u64) -> Option<&Segment> {
        let at = self.segments.partition_point(|segment| segment.start <= offset);
        // An empty segment may stand behind the one that ends where it begins.
        let segment = at.checked_sub(1).and_then(|at| self.segments.get(at))?;
        (offset < segment.start + segment.len).then_some(segment)
    }
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

    /// Makes the spool of a source whose data is on the destination already: as if a full sync of length 0 had stood for
    /// `offset`. The stream is continued from there and applied from behind `begin_after` on.
    pub fn seed(dir: &Path, replid: &Replid, offset: u64, begin_after: &str) -> Result<(), SpoolError> {
        fs::create_dir_all(dir).map_err(failed("create", dir))?;
        let manifest = Manifest {
            version: 1,
            generation: 1,
            replid: replid.clone(),
            former_replids: Vec::new(),
            rdb_offset: offset,
            rdb_len: Some(0),
            rdb_applied: true,
            rdb_lent: false,
            begin_after: Some(begin_after.to_owned()),
        };
        replace_file(&dir.join("manifest.json"), &serde_json::to_vec_pretty(&manifest).unwrap_or_default())
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
            Some(manifest) if !manifest.rdb_applied && !manifest.rdb_lent => Some(state.rdb_received),
            _ => None,
        };
        let stream: u64 = state.segments.iter().map(|segment| segment.len + segment.marks).sum();
        (stream + rdb.unwrap_or(0), state.segments.len() as u64 + u64::from(rdb.is_some()))
    }

    /// A file of the operator is the RDB, whole as it is: offset 0 of a history that has no stream.
    pub fn begin_lent_rdb(&self, identity: &Replid, file: File, len: u64) -> Result<(), SpoolError> {
        let manifest = Manifest {
            version: 1,
            generation: 1,
            replid: identity.clone(),
            former_replids: Vec::new(),
            rdb_offset: 0,
            rdb_len: Some(len),
            rdb_applied: false,
            rdb_lent: true,
            begin_after: None,
        };
        self.write_manifest(&manifest)?;
        self.lock().manifest = Some(manifest);
        self.lend_rdb(file, len);
        Ok(())
    }

    /// The operator's RDB file, of this many bytes, opened again by a later run.
    pub fn lend_rdb(&self, file: File, len: u64) {
        let mut state = self.lock();
        state.lent = Some(file);
        state.rdb_received = len;
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

    /// Why readers of this full sync shall end, if they shall.
    pub fn ended(&self, generation: u64) -> Option<ReadEnd> {
        let state = self.lock();
        match &state.manifest {
            _ if state.stopped => Some(ReadEnd::Stopped),
            Some(manifest) if manifest.generation == generation => None,
            _ => Some(ReadEnd::Superseded),
        }
    }

    /// Tells every waiting reader to end.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.grown.notify_all();
    }

    /// Lets the reader that waits for more of the stream, or will next, return without any.
    pub fn nudge(&self) {
        self.lock().nudged = true;
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

    /// When the byte at this offset arrived (Unix ms, by the source's clock); `None` when it is no longer, or not yet, here.
    pub fn received_at(&self, offset: u64) -> Option<u64> {
        let (path, limit) = {
            let state = self.lock();
            if offset == state.received {
                return state.received_ms;
            }
            let generation = state.manifest.as_ref()?.generation;
            let segment = state.segment_of(offset.checked_sub(1)?)?;
            (marks_path(&self.dir, generation, segment.start), segment.marks)
        };
        // The segment may be freed meanwhile: then nobody needs to know any more.
        let file = File::open(path).ok()?;
        let at = marks::find(&file, offset - 1, limit).ok()?;
        marks::read_marks(&file, at, 1).ok()?.first().map(|mark| mark.unix_ms)
    }

    /// What the start had to cut off, once.
    pub fn take_torn(&self) -> Option<Torn> {
        self.lock().torn.take()
    }

    /// The destination has more than the spool does (a torn tail was cut off, or all of it had been freed): the stream goes on
    /// after `offset`.
    pub fn skip_to(&self, offset: u64) -> Result<(), SpoolError> {
        let mut state = self.lock();
        let generation = state.manifest.as_ref().map_or(0, |manifest| manifest.generation);
        while let Some(segment) = state.segments.front() {
            self.remove_segment(generation, segment.start)?;
            state.segments.pop_front();
        }
        (state.received, state.durable, state.applied) = (offset, offset, offset);
        state.received_ms = None;
        Ok(())
    }

    /// The destination has confirmed the whole RDB of this generation: its file goes.
    pub fn release_rdb(&self, generation: u64) -> Result<(), SpoolError> {
        let mut state = self.lock();
        let Some(manifest) = &mut state.manifest else { return Ok(()) };
        if manifest.rdb_applied || manifest.generation != generation {
            return Ok(());
        }
        manifest.rdb_applied = true;
        let manifest = manifest.clone();
        // The file first: on a full disk that makes the room for the manifest. A manifest that does not know yet does no harm,
        // because the checkpoint in the destination knows. A file of the operator stays.
        if !manifest.rdb_lent {
            remove_file(&rdb_path(&self.dir, manifest.generation))?;
        }
        match self.write_manifest(&manifest) {
            Err(error) if error.is_full() => Ok(()),
            result => result,
        }
    }

    /// The destination has confirmed the stream of this generation up to this offset: segments wholly below it go.
    pub fn release_stream(&self, generation: u64, applied: u64) -> Result<(), SpoolError> {
        let mut state = self.lock();
        if state.manifest.as_ref().is_none_or(|manifest| manifest.generation != generation) {
            return Ok(());
        }
        state.applied = applied;
        self.release_applied(&mut state)
    }

    fn release_applied(&self, state: &mut State) -> Result<(), SpoolError> {
        let Some(generation) = state.manifest.as_ref().map(|manifest| manifest.generation) else {
            return Ok(());
        };
        // The last segment stays while it can grow: it is being written, or it is where a restart continues.
        while state.segments.len() > usize::from(!state.last_closed) {
            let Some(first) = state.segments.front() else { break };
            if first.start + first.len > state.applied {
                break;
            }
            self.remove_segment(generation, first.start)?;
            state.segments.pop_front();
        }
        Ok(())
    }

    fn remove_segment(&self, generation: u64, start: u64) -> Result<(), SpoolError> {
        remove_file(&segment_path(&self.dir, generation, start))?;
        remove_file(&marks_path(&self.dir, generation, start))
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

    /// Changes the manifest on disk, then in memory: a change that could not be written is not believed either.
    fn change_manifest(
        &self,
        state: &mut State,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<(), SpoolError> {
        let Some(mut manifest) = state.manifest.clone() else { return Ok(()) };
        change(&mut manifest);
        self.write_manifest(&manifest)?;
        state.manifest = Some(manifest);
        Ok(())
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
            let ours = kind == "rdb" || kind.starts_with("stream-") || kind.starts_with("marks-");
            if ours && number.parse::<u64>().is_ok_and(|number| Some(number) != generation) {
                remove_file(&path)?;
            }
        }
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

fn marks_path(dir: &Path, generation: u64, start: u64) -> PathBuf {
    dir.join(format!("g{generation}-marks-{start:020}"))
}

fn segment_path(dir: &Path, generation: u64, start: u64) -> PathBuf {
    dir.join(format!("g{generation}-stream-{start:020}"))
}
