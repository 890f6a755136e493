//! The data directory of one migration: who uses it, and for what.
//!
//! ```text
//!  data/
//!    lock             held while a process runs here; holds its pid
//!    run.json         run id, source, destination
//!    shards.json      masters of a source cluster
//!    127.0.0.1_6379/  spool and ledger of one source
//!    quarantine.jsonl quarantine.done control.sock shake.log
//! ```

use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::events::unix_ms;
use super::quarantine;
use super::shard::Shards;
use super::spool::{SpoolError, is_full, replace_file};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A file operation failed.
    #[error("data directory: cannot {action} '{path}': {cause}", path = path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Another process works there.
    #[error("data directory '{path}' is in use by the process with pid {pid}. Watch it with 'shakedeck attach --dir {path}', stop it with 'shakedeck ctl --dir {path} stop', or set another [advanced] dir.", path = path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who.
        pid: String,
    },
    /// It holds the state of another migration.
    #[error("data directory '{path}' belongs to the migration {was}, but this one is {is}. Two ways on: set another [advanced] dir, or, if that migration is over, remove the directory.", path = path.display())]
    OtherMigration {
        /// The directory.
        path: PathBuf,
        /// Source -> destination of the former migration.
        was: String,
        /// Source -> destination of this one.
        is: String,
    },
    /// The spool in it cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// What `run.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// Names the migration across restarts.
    pub run_id: String,
    /// Address of the source.
    pub source: String,
    /// Address of the destination.
    pub destination: String,
}

/// A data directory held by this process.
pub struct DataDir {
    path: PathBuf,
    run: RunFile,
    _lock: DirLock,
}

/// Keeps other processes out of a data directory for as long as it lives.
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// The same; the directory is made if need be.
    pub fn take_new(path: &Path) -> Result<DirLock, DataDirError> {
        // Only for the owner: the spool holds the operator's data.
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io("create", path))?;
        DirLock::take(path)
    }

    /// Takes the lock of a directory that exists; fails with the pid of who has it.
    pub fn take(path: &Path) -> Result<DirLock, DataDirError> {
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io("open", &lock_path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            return Err(DataDirError::InUse { path: path.to_owned(), pid: pid.trim().to_owned() });
        }
        // Written over what is there, so that it mostly takes no room; and for reading only: a full disk is no hindrance to starting.
        let pid = format!("{}\n", std::process::id());
        match lock.write_all_at(pid.as_bytes(), 0).and_then(|()| lock.set_len(pid.len() as u64)) {
            Err(cause) if !is_full(&cause) => Err(io("write", &lock_path)(cause)),
            _ => Ok(DirLock { _file: lock }),
        }
    }
}

/// Whose directory this is; `None` when no migration is under way there.
pub fn read_run(path: &Path) -> Result<Option<RunFile>, DataDirError> {
    let run_path = path.join("run.json");
    match fs::read(&run_path) {
        Ok(text) => Ok(Some(
            serde_json::from_slice::<RunFile>(&text)
                .map_err(|error| io("read", &run_path)(io::Error::other(error)))?,
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io("read", &run_path)(error)),
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError + use<> {
    let path = path.to_owned();
    move |cause| DataDirError::Io { action, path, cause }
}

impl DataDir {
    /// Takes the directory, creating it if need be.
    pub fn take(path: &Path, source: &str, destination: &str) -> Result<DataDir, DataDirError> {
        let lock = DirLock::take_new(path)?;
        let run_path = path.join("run.json");
        let former = read_run(path)?;
        let is_this = |run: &RunFile| run.source == source && run.destination == destination;
        let run = match former {
            // A run that never got so far as to copy anything (a wrong address, say) leaves nothing worth keeping.
            Some(run) if is_this(&run) || has_spools_in(path) => run,
            _ => {
                // Masters whose spools are here already are those of a link back, which is begun now.
                if !has_spools_in(path) {
                    Shards::forget(path).map_err(io("empty", path))?;
                }
                let run = RunFile {
                    run_id: new_run_id(),
                    source: source.to_owned(),
                    destination: destination.to_owned(),
                };
                replace_file(&run_path, &serde_json::to_vec_pretty(&run).unwrap_or_default())?;
                run
            }
        };
        if !is_this(&run) {
            return Err(DataDirError::OtherMigration {
                path: path.to_owned(),
                was: format!("{} -> {}", run.source, run.destination),
                is: format!("{source} -> {destination}"),
            });
        }
        Ok(DataDir { path: path.to_owned(), run, _lock: lock })
    }

    /// The run id that a directory holds, without taking it.
    pub fn run_id_in(path: &Path) -> Option<String> {
        Some(read_run(path).ok()??.run_id)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names the migration across restarts.
    pub fn run_id(&self) -> &str {
        &self.run.run_id
    }

    /// Folder of the spool of one source.
    pub fn spool_path(&self, source: &str) -> PathBuf {
        spool_path(&self.path, source)
    }

    /// Whether something that was received is left here.
    pub fn has_spools(&self) -> bool {
        has_spools_in(&self.path)
    }

    /// The migration is over: a later start in this directory begins a new one.
    pub fn forget(&self) -> Result<(), DataDirError> {
        Shards::forget(&self.path).map_err(io("empty", &self.path))?;
        quarantine::forget_room(&self.path);
        let path = self.path.join("run.json");
        fs::remove_file(&path).map_err(|cause| DataDirError::Io { action: "remove", path, cause })
    }
}

/// Whether anything was ever received here.
fn has_spools_in(dir: &Path) -> bool {
    let folders = fs::read_dir(dir).into_iter().flatten().flatten();
    folders.into_iter().any(|folder| folder.path().join("manifest.json").exists())
}

fn spool_path(dir: &Path, source: &str) -> PathBuf {
    dir.join(spool_name(source))
}

/// Name of the folder of the spool of one source.
pub fn spool_name(source: &str) -> String {
    source.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-', "_")
}

/// Time of the start and four random digits: unique enough, and an operator can read it aloud.
fn new_run_id() -> String {
    let stamp = crate::format::date_time_utc(unix_ms()).replace([':', '-', ' '], "");
    // The standard library's hash keys are random in every process and differ between instances.
    let salt = RandomState::new().build_hasher().finish();
    format!("{stamp}-{:04x}", salt as u16)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;

    #[test]
    fn a_second_process_and_another_migration_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataDir::take(&path, "a:1", "b:2").unwrap();
        let run_id = first.run_id().to_owned();
        let spool = first.spool_path("a:1");
        let error = DataDir::take(&path, "a:1", "b:2").err().unwrap().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        fs::create_dir(&spool).unwrap();
        fs::write(spool.join("manifest.json"), "{}").unwrap();
        let error = DataDir::take(&path, "a:1", "c:3").err().unwrap().to_string();
        assert!(error.contains("a:1 -> b:2") && error.contains("Two ways on"), "{error}");
        assert_eq!(DataDir::take(&path, "a:1", "b:2").unwrap().run_id(), run_id);
        fs::remove_file(spool.join("manifest.json")).unwrap();
        assert_ne!(
            DataDir::take(&path, "a:1", "c:3").unwrap().run_id(),
            run_id,
            "nothing was copied: taken over"
        );
    }
}
