//! Keys that existed on the destination and were left alone: they belong to others, whatever their names.
//!
//! The writer notes each when the answer says so, and it is in the file at once: a process that is killed afterwards has
//! not forgotten it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::sorted::RECORD;
use super::{Names, failed};
use crate::engine::spool::SpoolError;

/// The file, as it is during one RDB.
pub struct Foreign {
    path: PathBuf,
    names: Names,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    /// Noted, and not in the file yet.
    unwritten: Vec<u8>,
    unsynced: bool,
}

impl Foreign {
    /// Opens it. `names`: what the databases are called during this RDB.
    pub(super) fn open(dir: &Path, names: Names) -> Result<Foreign, SpoolError> {
        let path = file_in(dir);
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        let file = file.map_err(failed("open", &path))?;
        Ok(Foreign { path, names, inner: Mutex::new(Inner { file, unwritten: Vec::new(), unsynced: false }) })
    }

    /// This key is not ours. Where there is no room, it is written with the next flush.
    pub fn note(&self, db: u32, key: &[u8]) {
        let mut inner = self.lock();
        inner.unwritten.extend_from_slice(&self.names.hash(db, key).to_be_bytes());
        if let Err(error) = inner.write() {
            tracing::warn!("'{}' could not be written at once: {error}", self.path.display());
        }
    }

    /// Makes everything durable. After an error that passes (a full disk) it can be called again.
    pub fn flush(&self) -> Result<(), SpoolError> {
        let mut inner = self.lock();
        inner.write().map_err(failed("write", &self.path))?;
        if inner.unsynced {
            inner.file.sync_data().map_err(failed("write", &self.path))?;
            inner.unsynced = false;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Inner {
    fn write(&mut self) -> io::Result<()> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        // At a whole record, so that trying again after a full disk cannot shift those that follow.
        let len = self.file.metadata()?.len();
        self.file.set_len(len - len % RECORD as u64)?;
        self.file.write_all(&self.unwritten)?;
        self.unwritten.clear();
        self.unsynced = true;
        Ok(())
    }
}

/// Where it is.
pub(super) fn file_in(dir: &Path) -> PathBuf {
    dir.join("ledger-foreign")
}
