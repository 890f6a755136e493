//! Up to where the destination's answers to commands of the stream were read.
//!
//! A batch and its checkpoint are applied in one step; its answers come afterwards, on a link or to a process that may be gone by
//! then. The batch is applied and never sent again, but if the destination refused a command of it, nobody has heard that. So the
//! offset up to which the answers were read is kept beside the spool: one write to a small file for each batch, not
//! synced, because it has to outlive this process, not this machine. Where the checkpoint is found ahead of it, that is said.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::batch::{Position, Progress};
use super::events::EventLog;
use super::spool::{SpoolError, is_full};
use crate::format;
use crate::status::EventLevel;

/// The file.
pub struct Answers {
    file: File,
    path: PathBuf,
}

impl Answers {
    /// Opens or makes the file of a source.
    pub fn open(dir: &Path) -> Result<Answers, SpoolError> {
        let path = dir.join("answers");
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        match opened {
            Ok(file) => Ok(Answers { file, path }),
            Err(cause) => Err(SpoolError { action: "create", path, cause }),
        }
    }

    /// The answers to everything up to here were read.
    pub fn heard(&self, progress: &Progress) -> Result<(), SpoolError> {
        let Position::Stream { offset, .. } = progress.at else { return Ok(()) };
        // Always as long, so that it is overwritten as a whole.
        let line = format!("{:020} {offset:020}\n", progress.generation);
        match self.file.write_all_at(line.as_bytes(), 0) {
            // On a full disk there may be no room for the first line. Then a later start tells of answers that were read, which
            // is better than to apply nothing, by which alone the disk would be emptied.
            Err(cause) if !is_full(&cause) => {
                Err(SpoolError { action: "write", path: self.path.clone(), cause })
            }
            _ => Ok(()),
        }
    }
}

/// Removes the file.
pub fn forget(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join("answers")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Says so if the destination has applied more of this full sync's stream than a former process has heard of.
pub fn compare(dir: &Path, generation: u64, applied: u64, node: &str, events: &EventLog) {
    let text = fs::read_to_string(dir.join("answers")).unwrap_or_default();
    let mut numbers = text.split_whitespace().map(|word| word.parse::<u64>().ok());
    if let (Some(Some(of)), Some(Some(heard))) = (numbers.next(), numbers.next())
        && of == generation
        && heard < applied
    {
        lost(heard, applied, node, events);
    }
}

/// Answers between these offsets were not read, and never will be.
pub fn lost(heard: u64, applied: u64, node: &str, events: &EventLog) {
    let range = format!("offsets {} to {}", format::number(heard), format::number(applied));
    let text = format!(
        "the answers to what the destination has applied at {range} were lost with the link or the process: if it refused a \
         command there, that is not in the quarantine. Compare both sides to be sure (v, or shakedeck verify)"
    );
    events.reject(node, EventLevel::Warn, "ANSWERS LOST", "compare", &range, &text);
}
