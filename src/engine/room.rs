//! Room for the spool: its own limit and the free space of the disk.

use super::spool::{Spool, SpoolError};
use crate::{config, format};

/// Whether the spool may grow. Looked at on every tick and after every 16 MiB, because asking costs a system call.
pub struct Room {
    limits: config::Spool,
    full: bool,
    unlooked: usize,
}

impl Room {
    /// Not looked yet.
    pub fn new(limits: config::Spool) -> Self {
        Room { limits, full: false, unlooked: 0 }
    }

    /// Whether to go on reading from the source.
    pub fn is_there(&self) -> bool {
        !self.full && self.unlooked < 16 * 1024 * 1024
    }

    /// So many bytes were added.
    pub fn used(&mut self, bytes: usize) {
        self.unlooked += bytes;
    }

    /// Looks again; returns the reason when there is no room.
    pub fn look(&mut self, spool: &Spool) -> Result<Option<String>, SpoolError> {
        self.unlooked = 0;
        let (bytes, _) = spool.usage();
        let free = disk_free(spool)?;
        let reason = if bytes >= self.limits.max_bytes {
            Some(format!(
                "SPOOL FULL: {}, [spool] max_bytes is {}",
                format::size(bytes),
                format::size(self.limits.max_bytes)
            ))
        } else if free < self.limits.min_free_bytes {
            Some(format!(
                "SPOOL FULL: {} left on the disk, [spool] min_free_bytes is {}",
                format::size(free),
                format::size(self.limits.min_free_bytes)
            ))
        } else {
            None
        };
        self.full = reason.is_some();
        Ok(reason.map(|reason| {
            format!("{reason}; reading from the source stops until the destination has taken more or space is freed")
        }))
    }
}

/// Free bytes of the file system that holds the spool.
pub fn disk_free(spool: &Spool) -> Result<u64, SpoolError> {
    let stat = rustix::fs::statvfs(spool.dir()).map_err(|error| SpoolError {
        action: "examine",
        path: spool.dir().to_owned(),
        cause: error.into(),
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
