//! The source's end of the spool.
//!
//! Every append is written at its own position, first the bytes, then their mark, and counts only when both are there. So
//! an append that failed half-way (a full disk) is simply done again, and a crash in between leaves a tail that the next
//! start recognises.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::room::disk_free;
use super::marks::{self, MARK_LEN, MAX_SPAN, Mark};
use super::{
    Manifest, Segment, Spool, SpoolError, State, create, failed, marks_path, rdb_path, segment_path,
};
use crate::psync::Replid;

/// Sizes at which a stream segment is closed and the next one begun (bytes).
const MIN_SEGMENT_BYTES: u64 = 256 * 1024;
const MAX_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// The source's end: appends.
pub struct SpoolWriter {
    spool: Arc<Spool>,
    max_bytes: u64,
    /// Size at which the present stream segment is closed and the next one begun.
    segment_bytes: u64,
    rdb: Option<File>,
    segment: Option<Arc<SegmentFiles>>,
    /// Closed segments and their last offsets; kept until a sync has covered them.
    unsynced: Vec<(u64, Arc<SegmentFiles>)>,
}

/// The two files of the segment that grows.
struct SegmentFiles {
    bytes: File,
    marks: File,
    path: PathBuf,
    marks_path: PathBuf,
}

impl SpoolWriter {
    /// There must be only one. `max_bytes` of the spool decides with the disk how large segments are.
    pub fn new(spool: Arc<Spool>, max_bytes: u64) -> Self {
        let mut writer = SpoolWriter {
            spool,
            max_bytes,
            segment_bytes: 0,
            rdb: None,
            segment: None,
            unsynced: Vec::new(),
        };
        writer.segment_bytes = writer.good_segment_size();
        writer
    }

    /// Some sixteen segments should fit into what the spool may take, because only whole ones can be freed, and the last one often
    /// ends inside a command.
    fn good_segment_size(&self) -> u64 {
        let disk = disk_free(&self.spool).map_or(u64::MAX, |free| free.saturating_add(self.spool.usage().0));
        (self.max_bytes.min(disk) / 16).clamp(MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES)
    }

    /// A full sync begins: everything before it is void.
    pub fn begin_full_sync(&mut self, replid: &Replid, offset: u64) -> Result<(), SpoolError> {
        let spool = &self.spool;
        let generation = spool.manifest().map_or(0, |manifest| manifest.generation) + 1;
        let rdb = create(&rdb_path(&spool.dir, generation))?;
        let manifest = Manifest {
            version: 1,
            generation,
            replid: replid.clone(),
            former_replids: Vec::new(),
            rdb_offset: offset,
            rdb_len: None,
            rdb_applied: false,
            begin_after: None,
            rdb_lent: false,
        };
        spool.write_manifest(&manifest)?;
        self.rdb = Some(rdb);
        self.segment = None;
        self.unsynced.clear();
        {
            let mut state = spool.lock();
            let stopped = state.stopped;
            *state = State {
                manifest: Some(manifest),
                received: offset,
                durable: offset,
                stopped,
                ..State::default()
            };
        }
        spool.grown.notify_all();
        spool.remove_leftovers()
    }

    /// Appends bytes of the RDB. After an error nothing of them counts, and the same call may be made again.
    pub fn append_rdb(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let Some(rdb) = &self.rdb else { return Ok(()) };
        let at = self.spool.lock().rdb_received;
        rdb.write_all_at(bytes, at).map_err(|cause| {
            let _ = rdb.set_len(at);
            self.rdb_failed("write", cause)
        })?;
        self.spool.lock().rdb_received += bytes.len() as u64;
        self.spool.grown.notify_all();
        Ok(())
    }

    /// The RDB is whole: `len` bytes of what was appended (a mark may follow). Makes it safe on disk. Blocking; after an
    /// error the same call may be made again.
    pub fn finish_rdb(&mut self, len: u64) -> Result<(), SpoolError> {
        let Some(rdb) = &self.rdb else { return Ok(()) };
        rdb.set_len(len).and_then(|()| rdb.sync_data()).map_err(|cause| self.rdb_failed("sync", cause))?;
        let mut state = self.spool.lock();
        state.rdb_received = len;
        self.spool.change_manifest(&mut state, |manifest| manifest.rdb_len = Some(len))?;
        drop(state);
        self.rdb = None;
        self.spool.grown.notify_all();
        Ok(())
    }

    /// `+CONTINUE` with a new replication id: the same history under another name.
    pub fn rename_history(&mut self, replid: &Replid) -> Result<(), SpoolError> {
        let mut state = self.spool.lock();
        self.spool.change_manifest(&mut state, |manifest| {
            let former = std::mem::replace(&mut manifest.replid, replid.clone());
            manifest.former_replids.push(former);
        })
    }

    /// Appends bytes of the stream (at most [`MAX_SPAN`]) that arrived at `unix_ms`. After an error nothing of them
    /// counts, and the same call may be made again.
    pub fn append_stream(&mut self, bytes: &[u8], unix_ms: u64) -> Result<(), SpoolError> {
        if bytes.is_empty() {
            return Ok(());
        }
        debug_assert!(bytes.len() as u64 <= MAX_SPAN, "one mark cannot stand for {} bytes", bytes.len());
        let (files, len, marks_len, received) = self.open_segment()?;
        let end = received + bytes.len() as u64;
        let undo = |result: io::Result<()>, path: &PathBuf| {
            result.map_err(|cause| {
                // What was written half-way gives its space back; where that fails too, it is overwritten or cut later.
                let _ = files.bytes.set_len(len);
                let _ = files.marks.set_len(marks_len);
                failed("write", path)(cause)
            })
        };
        undo(files.bytes.write_all_at(bytes, len), &files.path)?;
        let mark = Mark::of(bytes, end, unix_ms);
        undo(files.marks.write_all_at(&mark.encode(), marks_len), &files.marks_path)?;
        let mut state = self.spool.lock();
        if let Some(segment) = state.segments.back_mut() {
            segment.len += bytes.len() as u64;
            segment.marks += MARK_LEN;
        }
        state.received = end;
        state.received_ms = Some(unix_ms);
        drop(state);
        self.spool.grown.notify_all();
        Ok(())
    }

    /// The files to append to, the lengths of both, and the offset received so far.
    fn open_segment(&mut self) -> Result<(Arc<SegmentFiles>, u64, u64, u64), SpoolError> {
        let spool = &self.spool;
        let (generation, last, received, durable, closed) = {
            let state = spool.lock();
            let generation = state.manifest.as_ref().map_or(0, |manifest| manifest.generation);
            let last = state.segments.back().map(|segment| (segment.start, segment.len, segment.marks));
            (generation, last, state.received, state.durable, state.last_closed)
        };
        match last {
            Some((start, len, marks)) if len == 0 || (len < self.segment_bytes && !closed) => {
                let files = match &self.segment {
                    Some(files) => files.clone(),
                    None => {
                        let open = |path: &PathBuf| {
                            OpenOptions::new().read(true).write(true).open(path).map_err(failed("open", path))
                        };
                        let path = segment_path(&spool.dir, generation, start);
                        let marks_path = marks_path(&spool.dir, generation, start);
                        let (bytes, marks) = (open(&path)?, open(&marks_path)?);
                        self.segment.insert(Arc::new(SegmentFiles { bytes, marks, path, marks_path })).clone()
                    }
                };
                Ok((files, len, marks, received))
            }
            _ => {
                self.unsynced.extend(self.segment.take().map(|files| (received, files)));
                let path = segment_path(&spool.dir, generation, received);
                let marks_path = marks_path(&spool.dir, generation, received);
                let (bytes, marks) = (create(&path)?, create(&marks_path)?);
                marks.write_all_at(&marks::header(durable), 0).map_err(failed("write", &marks_path))?;
                let files = Arc::new(SegmentFiles { bytes, marks, path, marks_path });
                self.segment = Some(files.clone());
                self.segment_bytes = self.good_segment_size();
                let mut state = spool.lock();
                state.segments.push_back(Segment { start: received, len: 0, marks: MARK_LEN });
                state.last_closed = false;
                Ok((files, 0, MARK_LEN, received))
            }
        }
    }

    /// There is no room: the present segment ends here, so that it too can be freed once all of it is applied.
    pub fn close_segment(&mut self) -> Result<(), SpoolError> {
        let mut state = self.spool.lock();
        if state.segments.back().is_some_and(|segment| segment.len > 0) {
            state.last_closed = true;
        }
        self.spool.release_applied(&mut state)
    }

    /// Takes what must be synced now; [`PendingSync::run`] blocks and belongs on a blocking thread.
    pub fn pending_sync(&mut self) -> Option<PendingSync> {
        let (received, durable, generation) = {
            let state = self.spool.lock();
            let generation = state.manifest.as_ref().map_or(0, |manifest| manifest.generation);
            (state.received, state.durable, generation)
        };
        self.unsynced.retain(|(end, _)| *end > durable);
        if received == durable {
            return None;
        }
        let files = self.unsynced.iter().map(|(_, files)| files).chain(&self.segment).cloned().collect();
        Some(PendingSync { spool: self.spool.clone(), files, generation, received })
    }

    fn rdb_failed(&self, action: &'static str, cause: io::Error) -> SpoolError {
        let generation = self.spool.manifest().map_or(0, |manifest| manifest.generation);
        failed(action, &rdb_path(&self.spool.dir, generation))(cause)
    }
}

/// Stream bytes that are written and not yet safe.
pub struct PendingSync {
    spool: Arc<Spool>,
    files: Vec<Arc<SegmentFiles>>,
    generation: u64,
    received: u64,
}

impl PendingSync {
    /// Syncs the bytes, then their marks; afterwards everything received before is durable.
    pub fn run(self) -> Result<(), SpoolError> {
        for files in &self.files {
            files.bytes.sync_data().map_err(failed("sync", &files.path))?;
            files.marks.sync_data().map_err(failed("sync", &files.marks_path))?;
        }
        let mut state = self.spool.lock();
        if state.manifest.as_ref().is_some_and(|manifest| manifest.generation == self.generation) {
            state.durable = state.durable.max(self.received.min(state.received));
        }
        Ok(())
    }
}
