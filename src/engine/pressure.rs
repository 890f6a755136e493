//! While the spool is full nothing is read, and the source keeps what it would have sent in its memory, up to a limit: then it
//! drops us. This says when, as well as it can be known.
//!
//! What the source keeps is taken from its offset, asked on a connection of its own: the replication link itself stands still.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::net::{Connection, NetError, info_field};
use crate::config::Endpoint;
use crate::format;
use crate::resp::Reply;

/// How long a source bears a replica that does not read (`client-output-buffer-limit replica`, `repl-timeout`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Patience {
    /// Drops at once beyond this (bytes).
    pub hard: Option<u64>,
    /// Drops when it is beyond this (bytes) for so long.
    pub soft: Option<(u64, Duration)>,
    /// Drops a diskless full sync after so long without reading.
    pub repl_timeout: Option<Duration>,
}

impl Patience {
    /// From the values of CONFIG GET. A hard limit below the backlog is not kept by servers (`networking.c`,
    /// `checkClientOutputBufferLimits`).
    pub fn parse(limits: &str, backlog: Option<u64>, repl_timeout: Option<u64>) -> Option<Patience> {
        let mut words =
            limits.split_ascii_whitespace().skip_while(|word| !matches!(*word, "slave" | "replica"));
        words.next()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let (hard, soft, seconds) = (number()?, number()?, number()?);
        Some(Patience {
            hard: (hard > 0).then(|| hard.max(backlog.unwrap_or(0))),
            soft: (soft > 0 && seconds > 0).then(|| (soft, Duration::from_secs(seconds))),
            repl_timeout: repl_timeout.filter(|seconds| *seconds > 0).map(Duration::from_secs),
        })
    }

    /// When a source that keeps `kept` bytes for us, `rate` more each second, and has been beyond the soft limit for `over_soft`, drops
    /// us. `None` = never at this rate.
    fn time_left(&self, kept: u64, rate: f64, over_soft: Duration) -> Option<Duration> {
        let reach = |limit: u64| match limit.saturating_sub(kept) {
            0 => Some(Duration::ZERO),
            missing if rate >= 1.0 => Some(Duration::from_secs_f64((missing as f64 / rate).min(1e9))),
            _ => None,
        };
        let hard = self.hard.and_then(reach);
        let soft = self.soft.and_then(|(limit, time)| Some(reach(limit)? + time.saturating_sub(over_soft)));
        [hard, soft].into_iter().flatten().min()
    }
}

/// Watches a source that we do not read from, until dropped.
pub struct Pressure {
    patience: Option<Patience>,
    /// Offset up to which we have read.
    read: u64,
    diskless: bool,
    since: Instant,
    readings: Arc<Mutex<Readings>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Readings {
    first: Option<(Instant, u64)>,
    last: Option<(Instant, u64)>,
    over_soft: Option<Instant>,
}

impl Pressure {
    /// Begins. `read`: the offset up to which we have read; `diskless`: inside a diskless full sync.
    pub fn watch(endpoint: Endpoint, patience: Option<Patience>, read: u64, diskless: bool) -> Self {
        let readings = Arc::new(Mutex::new(Readings::default()));
        let soft = patience.and_then(|patience| patience.soft).map_or(u64::MAX, |(limit, _)| limit);
        let told = readings.clone();
        let task = tokio::spawn(async move {
            loop {
                // A source that cannot be asked is asked again: what is known meanwhile is shown with its age.
                let _ = ask(&endpoint, &told, read.saturating_add(soft)).await;
                sleep(Duration::from_secs(2)).await;
            }
        });
        Pressure { patience, read, diskless, since: Instant::now(), readings, task }
    }

    /// What is known, in words.
    pub fn words(&self) -> String {
        let now = Instant::now();
        let Some(patience) = self.patience else {
            return "when the source drops us is not known (CONFIG GET is not allowed there)".into();
        };
        let spoken = |left: Duration| format::spoken_duration(left.as_secs_f64());
        if self.diskless {
            return match patience.repl_timeout {
                Some(limit) => format!(
                    "the source breaks the full sync off in about {} (repl-timeout)",
                    spoken(limit.saturating_sub(now - self.since))
                ),
                None => "when the source breaks the full sync off is not known".into(),
            };
        }
        let readings = self.readings.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (Some(first), Some(last)) = (readings.first, readings.last) else {
            return "when the source drops us is being measured".into();
        };
        let kept = last.1.saturating_sub(self.read);
        let keeps = format!("it keeps {} for us", format::size(kept));
        if patience.hard.is_none() && patience.soft.is_none() {
            return format!("the source has no limit that would make it drop us; {keeps} in its memory");
        }
        let seconds = (last.0 - first.0).as_secs_f64();
        if seconds < 0.5 {
            return format!("when the source drops us is being measured; {keeps}");
        }
        let rate = last.1.saturating_sub(first.1) as f64 / seconds;
        let over_soft = readings.over_soft.map_or(Duration::ZERO, |since| now - since);
        match patience.time_left(kept, rate, over_soft) {
            Some(left) => format!(
                "the source drops us in about {} ({keeps}, {} more, its limit is {})",
                spoken(left.saturating_sub(now - last.0)),
                format::rate(rate),
                patience.hard.or(patience.soft.map(|(limit, _)| limit)).map_or("none".into(), format::size)
            ),
            None => format!("the source writes nothing at present and does not drop us ({keeps})"),
        }
    }
}

impl Drop for Pressure {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks for the source's offset once a second until the connection fails.
async fn ask(endpoint: &Endpoint, told: &Mutex<Readings>, soft_offset: u64) -> Result<(), NetError> {
    let mut connection = Connection::open(endpoint).await?;
    loop {
        let Reply::Bulk(info) = connection.request(&[b"INFO", b"replication"]).await? else { return Ok(()) };
        let info = String::from_utf8_lossy(&info);
        let Some(offset) = info_field(&info, "master_repl_offset").and_then(|text| text.parse().ok()) else {
            return Ok(());
        };
        {
            let mut readings = told.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let now = Instant::now();
            readings.first = readings.first.or(Some((now, offset)));
            readings.last = Some((now, offset));
            readings.over_soft = if offset >= soft_offset { readings.over_soft.or(Some(now)) } else { None };
        }
        sleep(Duration::from_secs(1)).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;

    #[test]
    fn limits_are_read_as_servers_mean_them() {
        let text = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60";
        let patience = Patience::parse(text, Some(1 << 20), Some(60)).unwrap();
        assert_eq!(patience.hard, Some(256 << 20));
        assert_eq!(patience.soft, Some((64 << 20, Duration::from_secs(60))));
        assert_eq!(
            Patience::parse(text, Some(1 << 30), None).unwrap().hard,
            Some(1 << 30),
            "never below the backlog"
        );
        let none = Patience::parse("replica 0 0 0", Some(1 << 20), Some(0)).unwrap();
        assert_eq!(none, Patience::default());
        for text in ["", "slave", "slave 1 2", "slave a b c", "normal 0 0 0"] {
            assert_eq!(Patience::parse(text, None, None), None, "{text}");
        }
    }

    #[test]
    fn the_nearer_limit_counts() {
        let seconds = Duration::from_secs;
        let patience = Patience { hard: Some(1000), soft: Some((400, seconds(60))), repl_timeout: None };
        let left = |kept, rate, over| patience.time_left(kept, rate, over);
        assert_eq!(left(0, 100.0, Duration::ZERO), Some(seconds(10)), "hard after 10 s, soft after 4 + 60");
        assert_eq!(left(0, 10.0, Duration::ZERO), Some(seconds(100)), "soft after 40 + 60, hard after 100");
        assert_eq!(left(0, 5.0, Duration::ZERO), Some(seconds(140)));
        assert_eq!(
            left(500, 0.0, seconds(20)),
            Some(seconds(40)),
            "beyond the soft limit it also ends without writes"
        );
        assert_eq!(left(300, 0.0, Duration::ZERO), None);
        assert_eq!(left(5000, 1.0, Duration::ZERO), Some(Duration::ZERO));
    }
}
