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

impl Turns {
    /// `[sync_reader] full_sync_parallel`; 0 = one for each host.
    pub fn new(limit: usize) -> Turns {
        Turns { limit: (limit > 0).then(|| Arc::new(Semaphore::new(limit))), hosts: Mutex::default() }
    }

    /// Waits for a turn, which lasts until the permit is dropped.
    pub async fn take(&self, address: &Address) -> Option<OwnedSemaphorePermit> {
        let semaphore = match (&self.limit, address) {
            (Some(limit), _) => limit.clone(),
            (None, Address::Tcp { host, .. }) => {
                let mut hosts = self.hosts.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                hosts.entry(host.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
            }
            (None, Address::Unix(_) | Address::Named(_)) => return None,
        };
        // Never closed.
        semaphore.acquire_owned().await.ok()
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
        let first = turns.take(&at("a", 1)).await;
        assert!(turns.take(&at("b", 1)).await.is_some());
        let other = at("a", 2);
        let second = turns.take(&other);
        tokio::pin!(second);
        let now = Duration::ZERO;
        assert!(tokio::time::timeout(now, &mut second).await.is_err(), "the first is under way");
        drop(first);
        assert!(second.await.is_some());
    }
}
