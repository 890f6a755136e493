//! Room for the spool: its own limit, the free space of the disk, and what to say when there is none.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::spool::{Spool, SpoolError};
use crate::{config, format};

/// Asking costs a system call: so often at most, and after so many bytes at the latest.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const MAX_LOOK_AFTER: u64 = 16 * 1024 * 1024;

/// Why nothing can be written.
#[derive(Debug)]
pub enum NoRoom {
    /// Space that is freed, or a higher limit, would cure it: why, in words.
    Full(String),
    /// Nothing that waiting would cure.
    Failed(SpoolError),
}

impl From<SpoolError> for NoRoom {
    fn from(error: SpoolError) -> Self {
        if error.is_full() { NoRoom::Full(format!("DISK FULL: {error}")) } else { NoRoom::Failed(error) }
    }
}

/// What the spools of all sources may take together.
pub struct Quota {
    limits: config::Spool,
    spools: Mutex<Vec<Arc<Spool>>>,
}

impl Quota {
    /// `[spool]`.
    pub fn new(limits: config::Spool) -> Quota {
        Quota { limits, spools: Mutex::default() }
    }

    /// Another spool.
    pub fn add(&self, spool: Arc<Spool>) {
        self.lock().push(spool);
    }

    /// `[spool] max_bytes`.
    pub fn max_bytes(&self) -> u64 {
        self.limits.max_bytes
    }

    /// An equal part of it for each spool.
    pub fn share(&self) -> u64 {
        self.limits.max_bytes / self.lock().len().max(1) as u64
    }

    fn used(&self) -> u64 {
        self.lock().iter().map(|spool| spool.usage().0).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Spool>>> {
        self.spools.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Whether a spool may grow, by the limits.
pub struct Room {
    quota: Arc<Quota>,
    looked: Instant,
    unlooked: u64,
    look_after: u64,
}

impl Room {
    /// Due at once.
    pub fn new(quota: Arc<Quota>) -> Self {
        let look_after = (quota.share() / 64).min(MAX_LOOK_AFTER);
        Room { quota, looked: Instant::now(), unlooked: u64::MAX, look_after }
    }

    /// Whether it is time to look again.
    pub fn is_due(&self) -> bool {
        self.unlooked >= self.look_after || self.looked.elapsed() >= LOOK_EVERY
    }

    /// So many bytes were added.
    pub fn used(&mut self, bytes: usize) {
        self.unlooked = self.unlooked.saturating_add(bytes as u64);
    }

    /// Looks.
    pub fn look(&mut self, spool: &Spool) -> Result<(), NoRoom> {
        (self.looked, self.unlooked) = (Instant::now(), 0);
        let (bytes, limits) = (self.quota.used(), self.quota.limits);
        let free = disk_free(spool)?;
        let why = if bytes >= limits.max_bytes {
            format!("{}, [spool] max_bytes is {}", format::size(bytes), format::size(limits.max_bytes))
        } else if free < limits.min_free_bytes {
            format!(
                "{} left on the disk, [spool] min_free_bytes is {}",
                format::size(free),
                format::size(limits.min_free_bytes)
            )
        } else {
            return Ok(());
        };
        Err(NoRoom::Full(format!("SPOOL FULL: {why}")))
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
