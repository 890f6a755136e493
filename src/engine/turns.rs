//! Whose turn it is to save a data set: a host on which several masters of a cluster live has one memory and one disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Address;

/// Sees to it that not all masters of a host save their data set at once.
pub struct Turns {
    /// Most full syncs at once; `None` = one for each host.
    limit: Option<Arc<Semaphore>>,
    hosts: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

/// A turn, which lasts until it is dropped. The default is one of a source that nobody waits for.
#[derive(Debug, Default)]
pub struct Turn {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// `[sync_reader] full_sync_parallel`; 0 = one for each host.
    pub fn new(limit: usize) -> Turns {
        Turns { limit: (limit > 0).then(|| Arc::new(Semaphore::new(limit))), hosts: Mutex::default() }
    }

    /// A turn, if nobody else has to be waited for.
    pub fn take_at_once(&self, address: &Address) -> Option<Turn> {
        match self.of(address) {
            Some(turns) => turns.try_acquire_owned().ok().map(|permit| Turn { _permit: Some(permit) }),
            None => Some(Turn::default()),
        }
    }

    /// Waits for a turn.
    pub async fn take(&self, address: &Address) -> Turn {
        match self.of(address) {
            // Never closed.
            Some(turns) => Turn { _permit: turns.acquire_owned().await.ok() },
            None => Turn::default(),
        }
    }

    fn of(&self, address: &Address) -> Option<Arc<Semaphore>> {
        match (&self.limit, address) {
            (Some(limit), _) => Some(limit.clone()),
            (None, Address::Tcp { host, .. }) => {
                let mut hosts = self.hosts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                Some(hosts.entry(host.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone())
            }
            (None, Address::Unix(_) | Address::Named(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_full_sync_at_a_time_for_each_host() {
        let at = |host: &str, port| Address::Tcp { host: host.into(), port };
        let turns = Turns::new(0);
        let first = turns.take_at_once(&at("a", 1)).unwrap();
        assert!(turns.take_at_once(&at("b", 1)).is_some());
        let other = at("a", 2);
        assert!(turns.take_at_once(&other).is_none(), "the first is under way");
        let second = turns.take(&other);
        tokio::pin!(second);
        let now = Duration::ZERO;
        assert!(tokio::time::timeout(now, &mut second).await.is_err(), "the first is under way");
        drop(first);
        second.await;
    }
}
