//! Entries that the destination will never accept, set aside so that nothing is lost: one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use super::events::unix_ms;
use super::spool::SpoolError;

/// One entry set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedEntry {
    /// When (Unix ms).
    pub unix_ms: u64,
    /// The source it came from.
    pub source: String,
    /// Database it belongs to.
    pub db: u32,
    /// Its key, escaped for reading.
    pub key: String,
    /// Why.
    pub reason: String,
    /// The command in RESP, as hexadecimal digits, so that it can be sent again.
    pub command_hex: String,
}

/// The file. Created with the first entry, mode 0600: it holds the operator's data.
pub struct Quarantine {
    path: PathBuf,
    file: Mutex<Option<File>>,
    count: AtomicU64,
}

impl Quarantine {
    /// A file `quarantine.jsonl` in this folder.
    pub fn new(dir: &Path) -> Self {
        Quarantine { path: dir.join("quarantine.jsonl"), file: Mutex::new(None), count: AtomicU64::new(0) }
    }

    /// Entries set aside in this run.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets one entry aside; it is safe on disk when this returns.
    pub fn add(
        &self,
        source: &str,
        db: u32,
        key: &[u8],
        reason: &str,
        command: &[u8],
    ) -> Result<(), SpoolError> {
        let failed = |cause| SpoolError { action: "write", path: self.path.clone(), cause };
        let mut command_hex = String::with_capacity(command.len() * 2);
        for byte in command {
            command_hex.push_str(&format!("{byte:02x}"));
        }
        let entry = QuarantinedEntry {
            unix_ms: unix_ms(),
            source: source.to_owned(),
            db,
            key: key.escape_ascii().to_string(),
            reason: reason.to_owned(),
            command_hex,
        };
        let mut line = serde_json::to_vec(&entry).unwrap_or_default();
        line.push(b'\n');
        let mut slot = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let file = match &mut *slot {
            Some(file) => file,
            None => {
                let file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .open(&self.path)
                    .map_err(failed)?;
                slot.insert(file)
            }
        };
        file.write_all(&line).and_then(|()| file.sync_data()).map_err(failed)?;
        self.count.fetch_add(1, Relaxed);
        Ok(())
    }
}
