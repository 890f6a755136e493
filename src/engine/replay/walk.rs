//! Removes keys from the destination that are chosen by looking at all of them: ghosts of former full syncs, and what a FLUSHALL of
//! one shard means where other shards have their keys in the same place.
//!
//! They are looked for with SCAN on a connection of its own and removed by UNLINK in ordinary batches.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::super::batch::{Batch, CommandKind};
use super::super::discovery::{Cluster, discover};
use super::super::net::Connection;
use super::databases::Emptied;
use super::sweep::TRY_AGAIN;
use super::{End, Replay, ReplayError};
use crate::config::Endpoint;
use crate::format;
use crate::resp::Reply;

/// Keys asked for with one SCAN.
const SCAN_COUNT: &[u8] = b"1000";
/// Names of what belongs to this tool.
const OUR_OWN: &[u8] = b"shakedeck:";

/// Walking through the destination ended without a result.
pub(super) enum Unswept {
    End(End),
    Refused(String),
}

/// A connection that is opened when it is needed, and the database selected there.
struct Walker {
    endpoint: Endpoint,
    open: Option<(Connection, u32)>,
}

impl Replay {
    /// Removes all keys of this shard in these databases: what FLUSHALL means where others have theirs too. Done again after a
    /// crash: until it is confirmed, the batches do not come past its place. `Ok(Err)` = why it is not possible.
    pub(super) fn empty_shard(
        &self,
        generation: u64,
        batch: &mut Batch,
        emptied: &Emptied,
    ) -> Result<Result<(), String>, End> {
        if !self.send(batch) {
            return Err(End::Stopped);
        }
        if let Some(end) = self.wait_confirmed(generation) {
            return Err(end);
        }
        let chosen = |db: u32, key: &[u8]| emptied.holds(db) && self.is_own(key) && !key.starts_with(OUR_OWN);
        let (doing, told) = match self.shard.is_some() {
            true => (
                "removing the keys of this shard",
                "the source has emptied this shard: {} keys of its slots are removed; those of other shards stay",
            ),
            false => (
                "removing the keys of a database",
                "the source has emptied a database: its {} keys are removed",
            ),
        };
        match self.remove(generation, batch, doing, &chosen) {
            Ok(removed) => {
                let text = told.replace("{}", &format::number(removed));
                self.events.warn(&self.node(), text);
                self.shared.set_reason(None);
                Ok(Ok(()))
            }
            Err(Unswept::End(end)) => Err(end),
            Err(Unswept::Refused(reason)) => Ok(Err(reason)),
        }
    }

    /// Hands over an UNLINK for every key of the destination that is chosen (database, key). Returns how many there were.
    pub(super) fn remove(
        &self,
        generation: u64,
        batch: &mut Batch,
        doing: &str,
        chosen: &dyn Fn(u32, &[u8]) -> bool,
    ) -> Result<u64, Unswept> {
        if !self.cluster {
            let Some(endpoint) = self.keeper.destination.first() else { return Ok(0) };
            return self.remove_from(generation, batch, doing, chosen, endpoint);
        }
        let mut removed = 0;
        loop {
            let before = self.masters(generation)?;
            for (_, endpoint) in before.masters() {
                removed += self.remove_from(generation, batch, doing, chosen, &endpoint)?;
            }
            // Keys of a slot that has moved meanwhile may have passed us.
            if self.masters(generation)?.topology.slot_map() == before.topology.slot_map() {
                return Ok(removed);
            }
        }
    }

    fn masters(&self, generation: u64) -> Result<Cluster, Unswept> {
        loop {
            if let Some(end) = self.ended(generation) {
                return Err(Unswept::End(end));
            }
            match self.keeper.runtime.block_on(discover(&self.keeper.destination)) {
                Ok(cluster) => return Ok(cluster),
                Err(error) if error.is_transient() => self.shared.set_reason(Some(error.to_string())),
                Err(error) => return Err(Unswept::Refused(error.to_string())),
            }
            std::thread::sleep(TRY_AGAIN);
        }
    }

    fn remove_from(
        &self,
        generation: u64,
        batch: &mut Batch,
        doing: &str,
        chosen: &dyn Fn(u32, &[u8]) -> bool,
        endpoint: &Endpoint,
    ) -> Result<u64, Unswept> {
        let unlink = self.target.unlink();
        let mut walker = Walker { endpoint: endpoint.clone(), open: None };
        let keyspace = self.ask(generation, &mut walker, 0, doing, &[b"INFO", b"keyspace"])?;
        let keyspace = keyspace.text().map(str::to_owned).unwrap_or_default();
        let databases: Vec<(u32, u64)> = keyspace.lines().filter_map(database).collect();
        let total: u64 = databases.iter().map(|(_, keys)| keys).sum();
        let (mut scanned, mut removed) = (0u64, 0u64);
        let mut shown: Option<Instant> = None;
        for (db, _) in databases {
            let mut cursor = b"0".to_vec();
            loop {
                let scan: [&[u8]; 4] = [b"SCAN", &cursor, b"COUNT", SCAN_COUNT];
                let (next, keys) = match self.ask(generation, &mut walker, db, doing, &scan)? {
                    Reply::Array(parts) => match <[Reply; 2]>::try_from(parts) {
                        Ok([Reply::Bulk(next), Reply::Array(keys)]) => (next, keys),
                        _ => return Err(Unswept::Refused("the answer to SCAN is not understood".into())),
                    },
                    _ => return Err(Unswept::Refused("the answer to SCAN is not understood".into())),
                };
                scanned += keys.len() as u64;
                let mut command = vec![unlink];
                for key in &keys {
                    if let Reply::Bulk(key) = key
                        && chosen(db, key)
                    {
                        command.push(key);
                    }
                }
                if command.len() > 1 {
                    removed += command.len() as u64 - 1;
                    batch.select(db);
                    batch.push(CommandKind::Rebuild, &command);
                    if batch.is_full(self.command_limit, self.byte_limit) && !self.send(batch) {
                        return Err(Unswept::End(End::Stopped));
                    }
                }
                if shown.is_none_or(|shown| shown.elapsed() >= TRY_AGAIN) {
                    shown = Some(Instant::now());
                    let percent = (100 * scanned).checked_div(total).unwrap_or(100).min(100);
                    self.shared.set_reason(Some(format!(
                        "{doing}: {percent} % of {} keys looked at, {} found",
                        format::number(total),
                        format::number(removed)
                    )));
                }
                if next == b"0" {
                    break;
                }
                cursor = next;
            }
        }
        Ok(removed)
    }

    /// Asks a node, in database `db`, for as long as it takes.
    fn ask(
        &self,
        generation: u64,
        walker: &mut Walker,
        db: u32,
        doing: &str,
        command: &[&[u8]],
    ) -> Result<Reply, Unswept> {
        loop {
            if let Some(end) = self.ended(generation) {
                return Err(Unswept::End(end));
            }
            let reason = match self.keeper.runtime.block_on(walker.request(db, command)) {
                Ok(Reply::Error(reply)) if reply.starts_with("NOPERM") => {
                    let user = walker.endpoint.user();
                    return Err(Unswept::Refused(format!(
                        "'{reply}'. On the destination: ACL SETUSER {user} +scan +select +info +unlink +del"
                    )));
                }
                Ok(Reply::Error(reply)) if reply.starts_with("LOADING") || reply.starts_with("BUSY") => reply,
                Ok(Reply::Error(reply)) => return Err(Unswept::Refused(format!("'{reply}'"))),
                Ok(reply) => return Ok(reply),
                Err(error) if error.is_transient() => error.to_string(),
                Err(error) => return Err(Unswept::Refused(error.to_string())),
            };
            walker.open = None;
            self.shared.set_reason(Some(format!("{doing}: {reason}")));
            std::thread::sleep(TRY_AGAIN);
        }
    }

    /// A FLUSHALL or FLUSHDB in the stream that is done key by key. `Some` when the generation ends.
    pub(super) fn flush_by_keys(
        &self,
        generation: u64,
        batch: &mut Batch,
        in_transaction: bool,
        emptied: Result<Emptied, String>,
        raw: &[u8],
    ) -> Result<Option<End>, ReplayError> {
        let (at, db) = (batch.at, batch.end_db);
        let done = match emptied {
            Ok(Emptied::These(none)) if none.is_empty() => {
                self.shared.filter_out();
                return Ok(None);
            }
            Ok(_) if in_transaction => {
                Err("it stands in a transaction, and the keys can only be removed one by one".to_owned())
            }
            Ok(emptied) => match self.empty_shard(generation, batch, &emptied) {
                Ok(done) => done,
                Err(end) => return Ok(Some(end)),
            },
            Err(reason) => Err(reason),
        };
        batch.at = at;
        batch.select(db);
        self.shared.entries_read.fetch_add(1, Relaxed);
        match done {
            Ok(()) => batch.entries += 1,
            Err(reason) => self.set_aside(db, b"", &reason, raw)?,
        }
        Ok(None)
    }
}

impl Walker {
    async fn request(&mut self, db: u32, command: &[&[u8]]) -> Result<Reply, super::super::net::NetError> {
        let (open, selected) = match &mut self.open {
            Some(open) => open,
            None => self.open.insert((Connection::open(&self.endpoint).await?, 0)),
        };
        if *selected != db {
            let reply = open.request(&[b"SELECT", db.to_string().as_bytes()]).await?;
            if matches!(reply, Reply::Error(_)) {
                return Ok(reply);
            }
            *selected = db;
        }
        open.request(command).await
    }
}

/// `db3:keys=17,expires=0,…`
fn database(line: &str) -> Option<(u32, u64)> {
    let (db, fields) = line.trim().strip_prefix("db")?.split_once(':')?;
    let keys = fields.split(',').find_map(|field| field.strip_prefix("keys="))?;
    Some((db.parse().ok()?, keys.parse().ok()?))
}
