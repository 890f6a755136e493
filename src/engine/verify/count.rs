//! `--mode count`: numbers of keys, database by database, without our own.

use std::time::Duration;

use tokio::time::sleep;

use super::hold::Streams;
use super::link::Side;
use super::{Database, Rounds, Run, Settle, VerifyError, scan};
use crate::format;
use crate::verify::{Found, Kind};

impl Run {
    /// `count`: numbers of keys, a few times until they agree.
    pub(super) async fn counts(&mut self) -> Result<Rounds, VerifyError> {
        let rounds = self.job.options.rounds.max(1);
        let mut standing = Vec::new();
        self.progress.begin(0, 0);
        for round in 1..=rounds {
            standing.clear();
            self.progress.change(|shown| shown.round = round);
            if round > 1 && self.settle().await?.is_none() {
                return Ok(Rounds::Cancelled);
            }
            for database in self.databases.clone() {
                let Some(db) = database.from.first().copied() else { continue };
                self.progress.say(format!("counting database {db}"));
                let last = round == rounds;
                let (here, there) = self.count(&database, last).await?;
                if round == 1 {
                    self.progress.add((here + there).max(0) as u64);
                }
                if here == there {
                    continue;
                }
                let words = |count: i64| format!("{} keys", format::number(count.max(0) as u64));
                standing.push(((db, Vec::new()), vec![Found::new(Kind::Count, words(here), words(there))]));
            }
            self.progress.change(|shown| shown.conflicts = standing.len() as u64);
            if standing.is_empty() {
                break;
            }
        }
        Ok(Rounds::Done(standing))
    }

    /// The numbers of keys in a database, without our own. In the last round it is tried until they agree, or for some
    /// time: a server counts keys whose time is over until it has removed them.
    async fn count(&mut self, database: &Database, last: bool) -> Result<(i64, i64), VerifyError> {
        const TRIES: usize = 20;
        let db = database.to;
        let stream = match &self.job.settle {
            Settle::Streaming(streams) if last => Some(streams.clone()),
            _ => None,
        };
        let mut tries = if last { TRIES } else { 1 };
        let mut former = None;
        let mut failed = 0;
        loop {
            let counts = match self.count_once(database, stream.as_ref()).await {
                Err(error) if scan::another_try(&self.how, &error, &mut failed).await => {
                    self.links.find_again().await;
                    continue;
                }
                counts => counts?,
            };
            tries -= 1;
            if counts.0 == counts.1 {
                return Ok(counts);
            }
            let is_still = former.replace(counts) == Some(counts);
            if tries == 0 && last && stream.is_none() && !is_still {
                self.progress.notice(format!(
                    "database {db}: the numbers of keys changed all the time and are not judged; 'shakedeck ctl verify' of the \
                     running migration can"
                ));
                self.progress.change(|shown| shown.unsettled += 1);
                return Ok((counts.0, counts.0));
            }
            if tries == 0 && last && stream.is_none() {
                // SCAN does not show what has expired.
                let foreign = |key: &[u8]| !crate::verify::is_own_key(key);
                let (mut here, links) = (0, &mut self.links);
                for from in &database.from {
                    here += links.count_like(Side::Source, *from, b"*", foreign).await?;
                }
                let there = links.count_like(Side::Destination, db, b"*", foreign).await?;
                if here == there {
                    self.progress.notice(format!(
                        "database {db}: DBSIZE differs ({} and {}) only by keys whose time is over",
                        counts.0, counts.1
                    ));
                }
                return Ok((here, there));
            }
            if tries == 0 {
                return Ok(counts);
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn count_once(
        &mut self,
        database: &Database,
        stream: Option<&Streams>,
    ) -> Result<(i64, i64), VerifyError> {
        let links = &mut self.links;
        let own = links.count_like(Side::Destination, database.to, b"shakedeck:*", |_| true).await?;
        let mut mine = 0;
        for from in &database.from {
            mine += links.count_like(Side::Source, *from, b"shakedeck:*", |_| true).await?;
        }
        let (here, there) = links.count(&database.from, database.to, stream).await?;
        Ok((here - mine, there - own))
    }
}
