//! One server's state behind one lock: data set, replication feed, settings, faults.

use std::collections::BTreeMap;

use super::faults::Faults;
use super::feed::Feed;
use super::store::Store;
use super::wire::Argv;

/// What all connections of a server share.
pub struct Node {
    /// The data set.
    pub store: Store,
    /// The replication stream.
    pub feed: Feed,
    /// How it misbehaves.
    pub faults: Faults,
    /// RDB version that it writes and the greatest that it takes.
    pub rdb_version: u16,
    /// User and password that a connection must give; `None` = open.
    pub credentials: Option<(String, String)>,
    /// `CONFIG GET` and `CONFIG SET`.
    pub config: BTreeMap<String, String>,
    /// `CLIENT PAUSE`: until when (Unix ms), and whether it holds reads too.
    pub paused: Option<(u64, bool)>,
    /// `run_id` of INFO.
    pub run_id: String,
    /// The port it listens on.
    pub port: u16,
    /// When it started (Unix ms).
    pub started_ms: u64,
    /// Commands executed so far.
    pub commands: u64,
    /// Connections opened so far.
    pub connections: u64,
}

impl Node {
    /// Puts the effects of one command or transaction into the stream.
    pub fn propagate(&mut self, effects: &[(usize, Argv)]) {
        self.feed.append(effects);
    }

    /// What expired since the last call, as the commands that say so to replicas.
    pub fn expirations(&mut self) -> Vec<(usize, Argv)> {
        let expired = self.store.take_expired();
        expired.into_iter().map(|(db, key)| (db, vec![b"DEL".to_vec(), key])).collect()
    }

    /// While CLIENT PAUSE lasts nothing expires: its replicas would be told (`isPausedActions` in db.c). To be called before
    /// anything is executed.
    pub fn freeze(&mut self, now_ms: u64) {
        self.store.frozen = self.paused.is_some_and(|(until_ms, _)| now_ms < until_ms);
    }

    /// Removes keys whose time has come, as the server does from time to time by itself.
    pub fn expire_cycle(&mut self, now_ms: u64) {
        self.freeze(now_ms);
        self.store.expire_due(now_ms, 10_000);
        for effect in self.expirations() {
            self.propagate(&[effect]);
        }
    }

    /// True while fewer replicas are connected than `min-replicas-to-write` asks for: clients' writes are refused
    /// (`processCommand` in server.c).
    pub fn lacks_replicas(&self) -> bool {
        let wanted = self.config.get("min-replicas-to-write").and_then(|wanted| wanted.parse().ok());
        wanted.unwrap_or(0) > self.feed.replicas.len()
    }

    /// True while CLIENT PAUSE holds a command back.
    pub fn holds_back(&self, write: bool, now_ms: u64) -> bool {
        self.paused.is_some_and(|(until_ms, all)| now_ms < until_ms && (all || write))
    }
}
