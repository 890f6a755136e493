//! The source's end of the spool.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{
    Manifest, SEGMENT_BYTES, Segment, Spool, SpoolError, State, create, failed, rdb_path, segment_path,
};
use crate::psync::Replid;

/// The source's end: appends.
pub struct SpoolWriter {
    spool: Arc<Spool>,
    rdb: Option<File>,
    segment: Option<File>,
    /// Closed segments that no `sync` has covered yet.
    unsynced: Vec<File>,
}

impl SpoolWriter {
    /// There must be only one.
    pub fn new(spool: Arc<Spool>) -> Self {
        SpoolWriter { spool, rdb: None, segment: None, unsynced: Vec::new() }
    }

    /// A full sync begins: everything before it is void.
    pub fn begin_full_sync(&mut self, replid: &Replid, offset: u64) -> Result<(), SpoolError> {
        let spool = &self.spool;
        let generation = spool.manifest().map_or(0, |manifest| manifest.generation) + 1;
        let path = rdb_path(&spool.dir, generation);
        let rdb = create(&path)?;
        let manifest = Manifest {
            version: 1,
            generation,
            replid: replid.clone(),
            former_replids: Vec::new(),
            rdb_offset: offset,
            rdb_len: None,
            rdb_applied: false,
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

    /// Appends bytes of the RDB.
    pub fn append_rdb(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let Some(rdb) = &self.rdb else { return Ok(()) };
        // Written at its position, so that trying again after a full disk cannot leave half of it twice.
        let at = self.spool.lock().rdb_received;
        rdb.write_all_at(bytes, at).map_err(|cause| self.rdb_failed("write", cause))?;
        self.spool.lock().rdb_received += bytes.len() as u64;
        self.spool.grown.notify_all();
        Ok(())
    }

    /// The RDB is whole: `len` bytes of what was appended (a mark may follow). Makes it safe on disk. Blocking.
    pub fn finish_rdb(&mut self, len: u64) -> Result<(), SpoolError> {
        let Some(rdb) = self.rdb.take() else { return Ok(()) };
        rdb.set_len(len).and_then(|()| rdb.sync_data()).map_err(|cause| self.rdb_failed("sync", cause))?;
        let mut state = self.spool.lock();
        state.rdb_received = len;
        if let Some(manifest) = &mut state.manifest {
            manifest.rdb_len = Some(len);
            let manifest = manifest.clone();
            self.spool.write_manifest(&manifest)?;
        }
        drop(state);
        self.spool.grown.notify_all();
        Ok(())
    }

    /// `+CONTINUE` with a new replication id: the same history under another name.
    pub fn rename_history(&mut self, replid: &Replid) -> Result<(), SpoolError> {
        let mut state = self.spool.lock();
        if let Some(manifest) = &mut state.manifest {
            let former = std::mem::replace(&mut manifest.replid, replid.clone());
            manifest.former_replids.push(former);
            let manifest = manifest.clone();
            self.spool.write_manifest(&manifest)?;
        }
        Ok(())
    }

    /// Appends bytes of the stream.
    pub fn append_stream(&mut self, bytes: &[u8]) -> Result<(), SpoolError> {
        let (generation, start, len) = {
            let mut state = self.spool.lock();
            let generation = state.manifest.as_ref().map_or(0, |manifest| manifest.generation);
            let full = state.segments.back().is_none_or(|segment| segment.len >= SEGMENT_BYTES);
            if full {
                let start = state.received;
                state.segments.push_back(Segment { start, len: 0 });
            }
            let last = state.segments.back().map_or((0, 0), |segment| (segment.start, segment.len));
            if full {
                self.unsynced.extend(self.segment.take());
            }
            (generation, last.0, last.1)
        };
        let path = segment_path(&self.spool.dir, generation, start);
        let file = match &self.segment {
            Some(file) => file,
            None if len == 0 => self.segment.insert(create(&path)?),
            None => self.segment.insert(
                OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?,
            ),
        };
        file.write_all_at(bytes, len).map_err(failed("write", &path))?;
        let mut state = self.spool.lock();
        if let Some(segment) = state.segments.back_mut() {
            segment.len += bytes.len() as u64;
        }
        state.received += bytes.len() as u64;
        drop(state);
        self.spool.grown.notify_all();
        Ok(())
    }

    /// Takes what must be synced now; [`PendingSync::run`] blocks and belongs on a blocking thread.
    pub fn pending_sync(&mut self) -> Result<Option<PendingSync>, SpoolError> {
        let received = self.spool.received();
        if received == self.spool.durable() {
            return Ok(None);
        }
        let mut files = std::mem::take(&mut self.unsynced);
        if let Some(segment) = &self.segment {
            files.push(segment.try_clone().map_err(failed("open", &self.spool.dir))?);
        }
        Ok(Some(PendingSync { spool: self.spool.clone(), files, received }))
    }

    fn rdb_failed(&self, action: &'static str, cause: io::Error) -> SpoolError {
        let generation = self.spool.manifest().map_or(0, |manifest| manifest.generation);
        failed(action, &rdb_path(&self.spool.dir, generation))(cause)
    }
}

/// Stream bytes that are written and not yet safe.
pub struct PendingSync {
    spool: Arc<Spool>,
    files: Vec<File>,
    received: u64,
}

impl PendingSync {
    /// Syncs; afterwards everything received before is durable.
    pub fn run(self) -> Result<(), SpoolError> {
        for file in &self.files {
            file.sync_data().map_err(failed("sync", &self.spool.dir))?;
        }
        let mut state = self.spool.lock();
        state.durable = state.durable.max(self.received.min(state.received));
        Ok(())
    }
}
