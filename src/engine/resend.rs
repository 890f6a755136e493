//! `shakedeck quarantine replay`: sends the entries that were set aside once more, in their order, each one confirmed.
//!
//! It does not run beside a migration of the same data directory. Killed between an answer and its record on disk, it sends that
//! one entry again the next time; everything else is exactly once.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::batch::CommandKind;
use super::data_dir::{DataDirError, DirLock, read_run};
use super::net::{Connection, NetError};
use super::outcome::{data_dir_failed, exit, outcome};
use super::quarantine::{Journal, QuarantinedEntry, waiting};
use super::rules::{Rule, rule};
use super::spool::SpoolError;
use crate::config::{Endpoint, OnBadValue};
use crate::resp::{CommandParser, Reply};
use crate::status::Outcome;

/// How long one answer may take: an entry may be a large value.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What came of a replay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resent {
    /// Entries that the destination took; they are out of the quarantine.
    pub accepted: u64,
    /// Entries that it refused again; they stay, with the new reason.
    pub refused: u64,
}

/// Sends the entries of the quarantine in `dir` to `destination`. `say` is told each refusal.
///
/// The directory must exist. Fails when a migration runs there, when the directory belongs to another destination, when the destination cannot be reached,
/// or when it is in a state in which it would refuse everything; what was accepted before that is out of the quarantine.
pub async fn replay_quarantine(
    dir: &Path,
    destination: &Endpoint,
    say: &mut dyn FnMut(String),
) -> Result<Resent, Outcome> {
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
    let result = resend(dir, destination, &mut journal, say).await;
    journal.finish().map_err(disk)?;
    result
}

async fn resend(
    dir: &Path,
    destination: &Endpoint,
    journal: &mut Journal,
    say: &mut dyn FnMut(String),
) -> Result<Resent, Outcome> {
    let disk = |error: SpoolError| data_dir_failed(DataDirError::from(error));
    let net = |error: NetError| outcome(exit::DESTINATION, error.to_string());
    let mut resent = Resent::default();
    let mut connection: Option<(Connection, u32)> = None;
    for entry in waiting(dir).map_err(disk)? {
        let entry = entry.map_err(disk)?;
        let (link, selected) = match &mut connection {
            Some(open) => open,
            None => connection.insert((Connection::open(destination).await.map_err(net)?, 0)),
        };
        let mut answer = Reply::Null;
        if *selected != entry.db {
            answer = link.request(&[b"SELECT", entry.db.to_string().as_bytes()]).await.map_err(net)?;
        }
        let refused = match (&answer, whole_command(&entry)) {
            (Reply::Error(error), _) => Some(error.clone()),
            (_, None) => Some("the entry holds no command: its value could not be read".to_owned()),
            (_, Some(command)) => {
                *selected = entry.db;
                match send(link, &command).await {
                    Ok(Reply::Error(error)) => Some(error),
                    Ok(_) => None,
                    Err(error) => {
                        return Err(outcome(
                            exit::DESTINATION,
                            format!(
                                "{error}. Key '{}' of database {} stays in quarantine, but the destination may have taken it: look \
                                 there before the next replay",
                                entry.key, entry.db
                            ),
                        ));
                    }
                }
            }
        };
        let Some(error) = refused else {
            journal.add(entry.id, None).map_err(disk)?;
            resent.accepted += 1;
            continue;
        };
        let (rule, cure) = rule(&error, CommandKind::Stream, OnBadValue::Quarantine);
        // BUSYKEY concerns this entry alone: somebody has put a key there meanwhile.
        if rule != Rule::Quarantine && !error.starts_with("BUSYKEY") {
            return Err(outcome(
                exit::DESTINATION,
                format!(
                    "the destination answered '{error}' to key '{}' of database {}; {} entries were accepted, this one and those \
                     behind it stay. {}",
                    entry.key,
                    entry.db,
                    resent.accepted,
                    cure.replace("<user>", destination.username.as_deref().unwrap_or("default"))
                ),
            ));
        }
        say(format!("key '{}' of database {} was refused: {error}", entry.key, entry.db));
        journal.add(entry.id, Some(error)).map_err(disk)?;
        resent.refused += 1;
    }
    Ok(resent)
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
