//! The wait before a round: the destination shall have what the source has had by then.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::super::batch::{Position, Progress as Checkpoint};
use super::super::net::Connection;
use super::super::writer::read_checkpoint;
use super::judge::How;
use super::scan::another_try;
use super::{Run, Side, Streams, VerifyError, look};
use crate::config::Address;

/// Longest wait, before a round, for the destination to apply what was written before.
const LAG_LIMIT: Duration = Duration::from_secs(60);

/// How a round waits until what the source had is on the destination too.
#[derive(Clone)]
pub enum Settle {
    /// Nothing is written: the source is fenced and drained.
    Still,
    /// An engine in this process applies the streams of all source masters.
    Streaming(Streams),
    /// So long, and until the checkpoint of a run in another process (its key on the destination) says so.
    Wait(Duration, Option<String>),
}

impl Run {
    /// Waits until the destination has what the source has now; whether it came to that. `None` = cancelled.
    pub(super) async fn settle(&mut self) -> Result<Option<bool>, VerifyError> {
        let deadline = Instant::now() + LAG_LIMIT;
        let settle = self.job.settle.clone();
        let least = match &settle {
            Settle::Still => return Ok(Some(true)),
            Settle::Streaming(_) => Duration::ZERO,
            Settle::Wait(least, _) => *least,
        };
        self.progress.say("waiting until what was written before is applied");
        let begun = Instant::now();
        let mut tries = 0;
        let mut goals = loop {
            match self.places().await {
                Err(error) if another_try(&self.how, &error, &mut tries).await => {
                    self.links.find_again().await
                }
                goals => break goals?,
            }
        };
        loop {
            if *self.cancel.borrow() {
                return Ok(None);
            }
            let mut left = Vec::new();
            for (address, goal) in goals {
                let applied = match &settle {
                    Settle::Streaming(streams) => {
                        streams.of(&address).map(|stream| stream.offset_applied.load(Relaxed))
                    }
                    Settle::Wait(_, Some(key)) => Self::checkpoint(&self.how, key, &address).await?,
                    _ => None,
                };
                if applied.is_some_and(|applied| applied < goal) {
                    left.push((address, goal));
                }
            }
            goals = left;
            let is_applied = goals.is_empty();
            if (is_applied && begun.elapsed() >= least) || Instant::now() >= deadline {
                if !is_applied {
                    self.progress.notice(
                        "the destination did not catch up between two rounds: keys written meanwhile are not judged",
                    );
                }
                return Ok(Some(is_applied));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The place in its stream of writes of every source master that tells it.
    pub(super) async fn places(&mut self) -> Result<Vec<(Address, u64)>, VerifyError> {
        let mut places = Vec::new();
        for node in 0..self.links.nodes(Side::Source) {
            let info = self.links.node(Side::Source, node).await?.info("replication").await?;
            places.extend(self.links.address(Side::Source, node).zip(look::place_of(&info)));
        }
        Ok(places)
    }

    /// The offset of a source that a run in another process has applied, as its checkpoint says; `None` where there is none,
    /// and in a cluster, where it is scattered over the slots.
    async fn checkpoint(how: &How, key: &str, source: &Address) -> Result<Option<u64>, VerifyError> {
        let net = |error| VerifyError::Net { side: Side::Destination, error };
        let site = how.destination.now();
        let [node] = site.nodes.as_slice() else { return Ok(None) };
        if site.is_cluster() {
            return Ok(None);
        }
        let mut connection = Connection::open(&node.endpoint).await.map_err(net)?;
        // The line of a master of a cluster has a checkpoint of its own.
        let lines = [key.to_owned(), format!("{key}:{source}")];
        for line in lines {
            let text =
                read_checkpoint(&mut connection, &line, source.to_string().as_bytes()).await.map_err(net)?;
            if let Some(progress) = text.and_then(|text| text.parse::<Checkpoint>().ok()) {
                return Ok(Some(match progress.at {
                    Position::Stream { offset, .. } => offset,
                    Position::Rdb { .. } => 0,
                }));
            }
        }
        Ok(None)
    }
}
