//! What a cutover changed on the sources, kept on disk before it is changed: `cutover.json` in the data directory.
//!
//! Whoever comes after us, a later start or `shakedeck ctl unfence`, must be able to put it back, and must know whether
//! the switch has happened: after it, streaming from the old source would overwrite the destination's newer data.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::spool::{SpoolError, replace_file};

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    /// True from the moment of the switch on: the one line between "goes on" and "is over".
    pub switched: bool,
    /// True when the switch was taken back by a rollback.
    #[serde(default)]
    pub rolled_back: bool,
    /// When (Unix ms).
    pub unix_ms: u64,
    /// The migration, which names the control connections.
    #[serde(default)]
    pub run_id: String,
    /// The old source.
    pub source: String,
    /// Where the clients belong.
    pub destination: String,
    /// What to put back; empty once it is put back, or where nothing was changed.
    pub restore: Vec<Restore>,
}

/// What one source master had before its writes were refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Restore {
    /// The master.
    pub address: String,
    /// `min-replicas-to-write` and `min-replicas-max-lag`, by the names that it has for them.
    pub write_limits: Vec<(String, String)>,
    /// Command rules of every user that was restricted.
    pub users: Vec<UserRules>,
}

/// Which commands an ACL user may run: the field `commands` of ACL GETUSER. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRules {
    /// The user.
    pub name: String,
    /// Rules, complete: they begin with `+@all` or `-@all`.
    pub commands: String,
}

impl Record {
    /// True where the migration is over: its clients are elsewhere, and stay there.
    pub fn is_final(&self) -> bool {
        self.switched && !self.rolled_back
    }

    /// Addresses of the servers that are not as they were.
    pub fn refusing(&self) -> Vec<String> {
        self.restore.iter().map(|restore| restore.address.clone()).collect()
    }

    /// The file in this data directory.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join("cutover.json")
    }

    /// What a former process left; `None` if nothing.
    pub fn read(dir: &Path) -> Result<Option<Record>, SpoolError> {
        let path = Record::path(dir);
        let failed = |cause| SpoolError { action: "read", path: path.clone(), cause };
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|error| failed(io::Error::other(error)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes it, atomically and durably.
    pub fn write(&self, dir: &Path) -> Result<(), SpoolError> {
        replace_file(&Record::path(dir), &serde_json::to_vec_pretty(self).unwrap_or_default())
    }

    /// Removes it: nothing is left to put back and nothing to know.
    pub fn remove(dir: &Path) -> Result<(), SpoolError> {
        let path = Record::path(dir);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(SpoolError { action: "remove", path, cause })
            }
            _ => Ok(()),
        }
    }
}
