//! What a verification leaves in the data directory: where it stands (to go on after an interruption) and what it has found.
//!
//! ```text
//!  data/verify.json                where it stands; gone once it has ended
//!  data/verify-differences.jsonl   one difference per line
//!  data/verify.lock                held while a verification uses the two
//! ```
//!
//! A SCAN cursor means something to one server process only: a saved one is used if both sides still run in the same processes.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::super::spool::replace_file;
use super::link::VerifyError;
use super::picture::Picture;
use crate::verify::Difference;

/// Where the first round stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Mode, sample and filter in words: another verification does not go on here.
    pub what: String,
    /// `run_id` of each process of the source.
    pub source: String,
    /// The same of the destination.
    pub destination: String,
    /// True while the destination is scanned for keys that the source lacks.
    pub extra: bool,
    /// The database of the source that is scanned, or that belongs to the one of the destination that is.
    pub db: u32,
    /// Slots of it whose keys were all seen, each range with both ends; of a server that is no cluster none or all.
    pub seen: Vec<(u16, u16)>,
    /// `run_id` of the process that is scanned.
    pub node: String,
    /// Cursor of SCAN there.
    pub cursor: String,
    /// Keys compared.
    pub keys: u64,
    /// Keys that were not equal: database, key in hexadecimal digits, picture.
    pub conflicts: Vec<(u32, String, Picture)>,
}

impl Saved {
    fn path(dir: &Path) -> PathBuf {
        dir.join("verify.json")
    }

    /// What a former process has left; a file that cannot be read counts as none.
    pub fn load(dir: &Path) -> Option<Saved> {
        serde_json::from_slice(&std::fs::read(Self::path(dir)).ok()?).ok()
    }

    /// Replaces the file.
    pub fn store(&self, dir: &Path) -> Result<(), VerifyError> {
        replace_file(&Self::path(dir), &serde_json::to_vec(self).unwrap_or_default())
            .map_err(|error| VerifyError::File { path: error.path, cause: error.cause })
    }

    /// It has ended: a later one begins anew.
    pub fn remove(dir: &Path) {
        // What is not there need not be removed, and what stays is checked before it is used.
        let _ = std::fs::remove_file(Self::path(dir));
    }
}

/// Bytes as hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// And back; `None` for anything else.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len() / 2).map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()).collect()
}

/// Writes the differences, one JSON object per line.
pub fn write_differences(
    path: &Path,
    differences: impl Iterator<Item = Difference>,
) -> Result<(), VerifyError> {
    let failed = |cause| VerifyError::File { path: path.to_owned(), cause };
    let file = File::create(path).map_err(failed)?;
    let mut file = BufWriter::new(file);
    for difference in differences {
        serde_json::to_writer(&mut file, &difference)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .map_err(failed)?;
    }
    file.flush().map_err(failed)
}

/// Keeps other verifications out of this data directory; let go when dropped.
pub fn lock(dir: &Path) -> Result<File, VerifyError> {
    let path = dir.join("verify.lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|cause| VerifyError::File { path, cause })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(VerifyError::Options(format!(
            "another verification works in '{}': wait for its end, or give this one another [advanced] dir",
            dir.display()
        ))),
    }
}

/// Finds out before the work whether the list of differences can be written there.
pub fn try_out(path: &Path) -> Result<(), VerifyError> {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.map(drop).map_err(|cause| VerifyError::File { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_read_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!((from_hex("0"), from_hex("zz"), from_hex("é")), (None, None, None));
    }
}
