//! Holding the streams of a running migration for moments, to read both sides at one and the same place.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::super::shared::SourceShared;
use crate::config::Address;

/// Longest wait for the destination to reach a place of the source.
const HOLD_LIMIT: Duration = Duration::from_secs(30);

/// The streams that an engine in this process applies: one for each source master.
#[derive(Clone)]
pub struct Streams(Vec<Arc<SourceShared>>);

impl Streams {
    /// Of these sources.
    pub fn new(sources: Vec<Arc<SourceShared>>) -> Streams {
        Streams(sources)
    }

    /// The stream of the master at this address; `None` while it is not known whose that is (after a failover).
    pub fn of(&self, address: &Address) -> Option<Arc<SourceShared>> {
        match self.0.as_slice() {
            [only] => Some(only.clone()),
            many => many
                .iter()
                .find(|stream| stream.endpoint().is_some_and(|endpoint| endpoint.address == *address))
                .cloned(),
        }
    }
}

/// Waits until the destination has everything up to this place; false when that took too long.
pub async fn is_applied(stream: &SourceShared, offset: u64) -> bool {
    let deadline = Instant::now() + HOLD_LIMIT;
    while stream.offset_applied.load(Relaxed) < offset {
        if Instant::now() > deadline {
            return false;
        }
        sleep(Duration::from_millis(1)).await;
    }
    true
}

/// Keeps one stream from being applied, up to a place; lets it go when dropped.
pub struct Hold(Arc<SourceShared>);

impl Hold {
    /// Nothing more is handed over.
    pub fn begin(stream: &Arc<SourceShared>) -> Hold {
        stream.apply_limit.store(0, Relaxed);
        Hold(stream.clone())
    }

    /// Lets the stream go on to this place, and waits until it is there; false when the destination did not reach it in time.
    pub async fn until(&self, offset: u64) -> bool {
        self.0.apply_limit.store(offset, Relaxed);
        // Replay may have been past this place before it saw the limit.
        is_applied(&self.0, offset).await && self.0.offset_applied.load(Relaxed) == offset
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.apply_limit.store(u64::MAX, Relaxed);
    }
}
