//! `shakedeck quarantine replay`: sends the entries that were set aside once more, in their order, each one confirmed.
//!
//! In a cluster each goes to the master that has its keys. One without keys, or with keys in several slots, stays.
//!
//! It does not run beside a migration of the same data directory. Killed between an answer and its record on disk, it sends that
//! one entry again the next time; everything else is exactly once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::batch::CommandKind;
use super::data_dir::{DataDirError, DirLock, read_run};
use super::discovery::{Cluster, discover};
use super::net::{Connection, NetError};
use super::outcome::{data_dir_failed, exit, outcome};
use super::quarantine::{Journal, QuarantinedEntry, waiting};
use super::rules::{Rule, rule};
use super::spool::SpoolError;
use crate::command::{self, slot_of};
use crate::config::{Address, Endpoint, OnBadValue, Writer};
use crate::resp::{CommandParser, Reply};
use crate::status::Outcome;

/// How long one answer may take: an entry may be a large value.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// How often an entry is sent again that a cluster has at another place by now; 4.5 s with longer and longer waits.
const MOVES: u32 = 10;

/// What came of a replay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resent {
    /// Entries that the destination took; they are out of the quarantine.
    pub accepted: u64,
    /// Entries that it refused again; they stay, with the new reason.
    pub refused: u64,
}

/// Sends the entries of the quarantine in `dir` to the destination. `say` is told each refusal.
///
/// The directory must exist. Fails when a migration runs there, when the directory belongs to another destination, when the destination cannot be reached,
/// or when it is in a state in which it would refuse everything; what was accepted before that is out of the quarantine.
pub async fn replay_quarantine(
    dir: &Path,
    writer: &Writer,
    say: &mut dyn FnMut(String),
) -> Result<Resent, Outcome> {
    let destination = &writer.endpoint;
    let _lock = DirLock::take(dir).map_err(data_dir_failed)?;
    if let Some(run) = read_run(dir).map_err(data_dir_failed)?
        && run.destination != destination.address.to_string()
    {
        return Err(outcome(
            exit::CONFIG,
            format!(
                "the entries in '{}' were set aside on the way to {}, but the configuration names {}",
                dir.display(),
                run.destination,
                destination.address
            ),
        ));
    }
    let disk = |error: SpoolError| data_dir_failed(DataDirError::from(error));
    let mut journal = Journal::open(dir).map_err(disk)?;
    let result = resend(dir, writer, &mut journal, say).await;
    journal.finish().map_err(disk)?;
    result
}

async fn resend(
    dir: &Path,
    writer: &Writer,
    journal: &mut Journal,
    say: &mut dyn FnMut(String),
) -> Result<Resent, Outcome> {
    let disk = |error: SpoolError| data_dir_failed(DataDirError::from(error));
    let destination = &writer.endpoint;
    let mut resent = Resent::default();
    let mut nodes = Nodes { writer, cluster: None, links: BTreeMap::new() };
    for entry in waiting(dir).map_err(disk)? {
        let entry = entry.map_err(disk)?;
        let refused = match whole_command(&entry) {
            None => Some("the entry holds no command: its value could not be read, or was too large to be kept".to_owned()),
            Some(command) if concerns_databases(&command) => {
                Some(
                    "it concerns whole databases, or another one than its own: there it may mean something else, or harm others. Do by hand what \
                     is wanted, then remove the line from the file"
                        .to_owned(),
                )
            }
            Some(command) => match nodes.send(entry.db, &command).await {
                Ok(Reply::Error(error)) => Some(error),
                Ok(_) => None,
                Err(Unsent::Never(error)) => return Err(outcome(exit::DESTINATION, error.to_string())),
                Err(Unsent::Perhaps(error)) => {
                    return Err(outcome(
                        exit::DESTINATION,
                        format!(
                            "{error}. Key '{}' of database {} stays in quarantine, but the destination may have taken it: look \
                             there before the next replay",
                            entry.key, entry.db
                        ),
                    ));
                }
            },
        };
        let Some(error) = refused else {
            journal.add(entry.id, None).map_err(disk)?;
            resent.accepted += 1;
            continue;
        };
        let (rule, cure) = rule(&error, CommandKind::Stream, OnBadValue::Quarantine);
        // These concern this entry alone: somebody has put a key there meanwhile; its keys lie in several slots.
        let alone = ["BUSYKEY", "CROSSSLOT"].iter().any(|word| error.starts_with(word));
        if rule != Rule::Quarantine && !alone {
            return Err(outcome(
                exit::DESTINATION,
                format!(
                    "the destination answered '{error}' to key '{}' of database {}; {} entries were accepted, this one and those \
                     behind it stay. {}",
                    entry.key,
                    entry.db,
                    resent.accepted,
                    cure.replace("<user>", destination.user())
                ),
            ));
        }
        say(format!("key '{}' of database {} was refused: {error}", entry.key, entry.db));
        journal.add(entry.id, Some(error)).map_err(disk)?;
        resent.refused += 1;
    }
    Ok(resent)
}

/// Why there is no answer.
enum Unsent {
    /// The destination has not got it.
    Never(NetError),
    /// It may have.
    Perhaps(NetError),
}

/// The destination: one server, or the masters of a cluster.
struct Nodes<'a> {
    writer: &'a Writer,
    /// As it was found last.
    cluster: Option<Cluster>,
    /// Connections, and the database that each has selected.
    links: BTreeMap<Address, (Connection, u32)>,
}

impl Nodes<'_> {
    /// Sends a command where its keys are; an answer that refuses it is an answer.
    async fn send(&mut self, db: u32, command: &[u8]) -> Result<Reply, Unsent> {
        if !self.writer.cluster {
            return self.send_to(&self.writer.endpoint.clone(), db, command, false).await;
        }
        let slot = match slot_of_command(command) {
            Ok(slot) => slot,
            Err(reason) => return Ok(Reply::Error(reason.into())),
        };
        let mut target = None;
        let mut reply = Reply::Null;
        for attempt in 0..MOVES {
            let (endpoint, asking) = match target.take() {
                Some(target) => target,
                None => (self.owner(slot).await.map_err(Unsent::Never)?, false),
            };
            reply = self.send_to(&endpoint, db, command, asking).await?;
            let Reply::Error(error) = &reply else { break };
            if let Some(address) = error.strip_prefix("ASK ").and_then(|rest| rest.split(' ').nth(1))
                && let Ok(address) = address.parse::<Address>()
            {
                let address = self.writer.endpoint.address_map.map(&address);
                target = Some((self.writer.endpoint.at(address), true));
            } else if ["MOVED ", "TRYAGAIN", "CLUSTERDOWN"].iter().any(|word| error.starts_with(word)) {
                self.cluster = None;
                sleep(Duration::from_millis(100) * attempt).await;
            } else {
                break;
            }
        }
        Ok(reply)
    }

    /// The master that has a slot.
    async fn owner(&mut self, slot: u16) -> Result<Endpoint, NetError> {
        let cluster = match &self.cluster {
            Some(cluster) => cluster,
            None => self.cluster.insert(discover(std::slice::from_ref(&self.writer.endpoint)).await?),
        };
        let masters = cluster.masters();
        let owner = masters.iter().find(|(node, _)| node.slots.iter().any(|range| range.contains(&slot)));
        owner.map(|(_, endpoint)| endpoint.clone()).ok_or_else(|| NetError::Connect {
            address: self.writer.endpoint.address.clone(),
            cause: std::io::Error::other(format!("no master of the cluster serves slot {slot}")),
        })
    }

    async fn send_to(
        &mut self,
        endpoint: &Endpoint,
        db: u32,
        command: &[u8],
        asking: bool,
    ) -> Result<Reply, Unsent> {
        if !self.links.contains_key(&endpoint.address) {
            let connection = Connection::open(endpoint).await.map_err(Unsent::Never)?;
            self.links.insert(endpoint.address.clone(), (connection, 0));
        }
        let Some((link, selected)) = self.links.get_mut(&endpoint.address) else { return Ok(Reply::Null) };
        if *selected != db {
            match link.request(&[b"SELECT", db.to_string().as_bytes()]).await.map_err(Unsent::Never)? {
                Reply::Error(error) => return Ok(Reply::Error(error)),
                _ => *selected = db,
            }
        }
        if asking {
            link.request(&[b"ASKING"]).await.map_err(Unsent::Never)?;
        }
        send(link, command).await.map_err(Unsent::Perhaps)
    }
}

/// Whether it empties or exchanges databases, or writes to another one than that in which it runs.
fn concerns_databases(command: &[u8]) -> bool {
    with_words(command, |words| {
        let known = words.first().and_then(|verb| command::find(verb));
        known.is_some_and(|known| {
            matches!(known.name, "FLUSHALL" | "FLUSHDB" | "SWAPDB")
                || command::other_database(known, words.len(), |at| words.get(at).copied()).is_some()
        })
    })
}

/// The words of a whole command.
fn with_words<T>(command: &[u8], look: impl FnOnce(&[&[u8]]) -> T) -> T {
    let mut parser = CommandParser::default();
    let words: Vec<&[u8]> = match parser.advance(command) {
        Ok(Some(_)) => parser.args.iter().filter_map(|range| command.get(range.clone())).collect(),
        _ => Vec::new(),
    };
    look(&words)
}

/// The slot of all keys of a command, or why it has none.
fn slot_of_command(command: &[u8]) -> Result<u16, &'static str> {
    with_words(command, slot_of_words)
}

fn slot_of_words(words: &[&[u8]]) -> Result<u16, &'static str> {
    let argument = |at: usize| words.get(at).copied();
    let keys: Vec<&[u8]> = match words.first().and_then(|verb| command::find(verb)) {
        Some(known) => known.keys(words.len(), argument).filter_map(argument).collect(),
        None => argument(1).into_iter().collect(),
    };
    let mut slots = keys.into_iter().map(slot_of);
    let Some(first) = slots.next() else {
        return Err("it names no key, so that no node of the cluster is known to be meant");
    };
    match slots.all(|slot| slot == first) {
        true => Ok(first),
        false => Err("CROSSSLOT its keys lie in several slots of the cluster"),
    }
}

/// The command of an entry, if it is a whole one: half a command would make the destination wait for the rest.
fn whole_command(entry: &QuarantinedEntry) -> Option<Vec<u8>> {
    let command = entry.command()?;
    let len = CommandParser::default().advance(&command).ok()??;
    (len == command.len()).then_some(command)
}

async fn send(link: &mut Connection, command: &[u8]) -> Result<Reply, NetError> {
    let what = "the entry";
    let answered = async {
        link.send(command, what).await?;
        link.read_reply(what).await
    };
    match timeout(ANSWER_LIMIT, answered).await {
        Ok(reply) => reply,
        Err(_) => {
            Err(NetError::Timeout { address: link.address.clone(), what: what.into(), limit: ANSWER_LIMIT })
        }
    }
}
