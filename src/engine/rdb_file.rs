//! `[rdb_reader]`: an RDB file of the operator in the place of a source that is connected.
//!
//! The file is handed to the spool as the RDB of a full sync that is whole already; from there on everything is as with a source:
//! replay, writer, checkpoint, quarantine. It is read where it lies, never copied, never changed and never removed. What a
//! replication id is for a source, size and time of change are for the file: a later start goes on only with the same file.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tokio::sync::watch;

use super::events::{EventLog, unix_ms};
use super::shared::SourceShared;
use super::spool::SpoolError;
use crate::format;
use crate::psync::Replid;
use crate::status::Phase;

/// Why a file cannot be the source.
#[derive(Debug, thiserror::Error)]
pub enum RdbFileError {
    /// It cannot be read.
    #[error("[rdb_reader] filepath: cannot read '{path}': {cause}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It is something else.
    #[error("[rdb_reader] filepath: '{path}' {what}", path = path.display())]
    NotRdb {
        /// The file.
        path: PathBuf,
        /// What it is instead, with the cure.
        what: String,
    },
    /// Another file than the one that a former run has begun with.
    #[error(
        "[rdb_reader] filepath: '{path}' was changed since the run that '{spool}' belongs to has begun: what is on the destination came from the file as it was then. Two ways on: bring that file back and start again, or remove the data directory and begin anew with this one.", path = path.display(), spool = spool.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// State of the former run.
        spool: PathBuf,
    },
    /// The state of a former run.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// A file that looks like an RDB.
pub struct RdbFile {
    path: PathBuf,
    file: File,
    len: u64,
    identity: Replid,
}

impl RdbFile {
    /// Opens it and looks at its first bytes.
    pub fn open(path: &Path) -> Result<Self, RdbFileError> {
        let read = |cause| RdbFileError::Read { path: path.to_owned(), cause };
        let not_rdb = |what: &str| RdbFileError::NotRdb { path: path.to_owned(), what: what.to_owned() };
        // The same file, wherever a later start is typed.
        let whole_path = path.canonicalize().map_err(read)?;
        let file = File::open(&whole_path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(not_rdb(
                "is not a file: name the RDB file itself, for example '/var/lib/redis/dump.rdb'",
            ));
        }
        if metadata.len() == 0 {
            return Err(not_rdb("is empty: was the disk full when it was saved?"));
        }
        let mut magic = [0; 9];
        match file.read_exact_at(&mut magic, 0) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(not_rdb("is too short for an RDB file: it was cut off"));
            }
            Err(error) => return Err(read(error)),
        }
        if magic.starts_with(&[0x1f, 0x8b]) {
            return Err(not_rdb("is compressed: unpack it first (gunzip)"));
        }
        if magic.starts_with(b"*") {
            return Err(not_rdb("begins like an append-only file: only RDB files can be read"));
        }
        if !(magic.starts_with(b"REDIS") || magic.starts_with(b"VALKEY")) {
            return Err(not_rdb("is not an RDB file: those begin with REDIS or VALKEY"));
        }
        let identity = format!(
            "{:016x}{:016x}{:08x}",
            metadata.len(),
            metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec()),
            metadata.mtime_nsec() as u32,
        );
        let identity = Replid::parse(&identity).ok_or_else(|| not_rdb("has no time of change"))?;
        Ok(RdbFile { path: whole_path, file, len: metadata.len(), identity })
    }

    /// What it is called where a source has an address.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Gives it to the source's spool, unless a former run has done so, and says so.
    pub fn offer(self, source: &SourceShared, events: &EventLog) -> Result<(), RdbFileError> {
        let (spool, len) = (&source.spool, self.len);
        match spool.manifest() {
            Some(manifest) if manifest.replid != self.identity => {
                return Err(RdbFileError::Changed { path: self.path, spool: spool.dir().to_owned() });
            }
            Some(_) => spool.lend_rdb(self.file, len),
            None => spool.begin_lent_rdb(&self.identity, self.file, len)?,
        }
        for phase in [Phase::Handshake, Phase::WaitingBgsave, Phase::RdbReceive] {
            source.enter(phase, None);
        }
        {
            let mut details = source.details();
            details.full_sync_since = Some(Instant::now());
            details.rdb_received_unix_ms = Some(unix_ms());
            details.rdb_total = Some(len);
            details.transfer = Some("file");
        }
        source.bytes_received.fetch_add(len, Relaxed);
        let text = format!("RDB file of {}, read where it lies", format::size(len));
        events.info(&format!("source {}", source.address), text);
        Ok(())
    }
}

/// Stands where the source task stands: everything has been received, and nothing follows.
pub async fn wait(mut stop: watch::Receiver<bool>) {
    // An error means that the run is over.
    let _ = stop.wait_for(|stop| *stop).await;
}
