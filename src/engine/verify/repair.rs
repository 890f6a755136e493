//! `--repair`: makes the keys that differ on the destination what they are on the source.
//!
//! Refused where a migration could still apply its stream on top: a value taken now holds writes that the stream brings
//! again, and an INCR would count twice. So there must be no process in the data directory (its lock is taken meanwhile) and
//! no checkpoint on the destination. A key that somebody writes on the destination while it is repaired is left alone
//! (WATCH). Holds one value at a time.

use super::judge::Pair;
use super::link::{Link, Side, VerifyError};
use super::scan::another_try;
use super::{Repair, Run, Standing};
use crate::engine::data_dir::DirLock;
use crate::rdb::ByteList;
use crate::rdb::commands::{Rebuild, value_to_commands};
use crate::rdb::dump::{Route, append_payload_with_meta, parse_payload, route};
use crate::resp::Reply;
use crate::verify::{KeyType, Mode};

/// What became of one key.
#[derive(Debug, PartialEq, Eq)]
enum Mended {
    /// It is as on the source now.
    Yes,
    /// It was equal by now.
    NotNeeded,
    /// It was left as it is, and why.
    No(String),
}

impl Run {
    /// Repairs what stands; returns what still differs.
    pub(super) async fn repair(&mut self, how: Repair, standing: Standing) -> Result<Standing, VerifyError> {
        if self.how.mode == Mode::Count {
            return Err(VerifyError::Repair(
                "counting does not say which keys differ: use --mode meta or --mode full".into(),
            ));
        }
        let _lock = match &self.job.dir {
            Some(dir) => {
                Some(DirLock::take_new(dir).map_err(|error| VerifyError::Repair(error.to_string()))?)
            }
            None => None,
        };
        if self.checkpoint_seen || self.has_checkpoint().await? {
            return Err(VerifyError::Repair(
                "the destination holds the checkpoint of a migration (shakedeck:checkpoint:…), which could go on and \
                 apply writes a second time that a repair has copied. End it for good first ('shakedeck ctl stop \
                 --forget'), or, if it will never go on, delete that key."
                    .into(),
            ));
        }
        let (mut left, mut repaired) = (Vec::new(), 0);
        for ((db, key), found) in standing {
            self.progress.say(format!("repairing, {repaired} done"));
            match self.mend(db, &key, how).await? {
                Mended::Yes => {
                    repaired += 1;
                    self.progress.change(|shown| shown.repaired = repaired);
                    // Proof, not hope: the pair is looked at once more.
                    let judged = self.judge(db, std::slice::from_ref(&key), self.how.mode).await?;
                    if let Some(judged) = judged.into_iter().next().filter(|judged| !judged.found.is_empty())
                    {
                        self.progress.notice("some keys differ again or still after their repair");
                        left.push(((db, key), judged.found));
                    }
                }
                Mended::NotNeeded => {}
                Mended::No(why) => {
                    self.progress.notice(why);
                    left.push(((db, key), found));
                }
            }
        }
        Ok(left)
    }

    /// The first round of a part of the keys may have missed it.
    async fn has_checkpoint(&mut self) -> Result<bool, VerifyError> {
        let pattern = b"shakedeck:checkpoint:*";
        Ok(!self.links.find(Side::Destination, 0, pattern).await?.is_empty())
    }

    /// Mends one key; where a cluster has just moved it, at its new place.
    async fn mend(&mut self, db: u32, key: &[u8], how: Repair) -> Result<Mended, VerifyError> {
        let mut tries = 0;
        loop {
            match self.mend_once(db, key, how).await {
                Err(error) if another_try(&self.how, &error, &mut tries).await => {
                    self.links.find_again().await
                }
                result => return result,
            }
        }
    }

    async fn mend_once(&mut self, db: u32, key: &[u8], how: Repair) -> Result<Mended, VerifyError> {
        let mode = if self.how.mode == Mode::Meta { Mode::Meta } else { Mode::Full };
        let mut pair = self.links.pair_of(key).await?;
        pair.destination.select(self.how.db_map.map(db)).await?;
        pair.destination.ask(&[b"WATCH", key]).await?;
        let keys = [key.to_vec()];
        let judged = pair.judge(db, &keys, mode).await?;
        if judged.first().is_none_or(|judged| judged.found.is_empty()) {
            pair.destination.ask(&[b"UNWATCH"]).await?;
            return Ok(Mended::NotNeeded);
        }
        let Pair { source, destination, source_server, destination_server, .. } = pair;
        source.select(db).await?;
        let (looks, _) = super::look::look(source, source_server, &keys, super::look::Ask::Nothing).await?;
        let look = looks.into_iter().next().unwrap_or_default();
        let payload = match source.ask(&[b"DUMP", key]).await? {
            Reply::Bulk(payload) if look.exists() => Some(payload),
            _ => None,
        };
        let Some(payload) = payload else {
            if !how.delete_extra {
                destination.ask(&[b"UNWATCH"]).await?;
                return Ok(Mended::No(
                    "keys that only the destination has are kept: --delete-extra removes them".into(),
                ));
            }
            return commit(destination, &[vec![b"DEL".to_vec(), key.to_vec()]]).await;
        };
        match commands(key, &payload, look.expire_at, &look.kind, destination_server.target) {
            Ok(commands) => commit(destination, &commands).await,
            Err(why) => {
                destination.ask(&[b"UNWATCH"]).await?;
                Ok(Mended::No(why))
            }
        }
    }
}

/// The commands that make a key of the destination what the payload says.
fn commands(
    key: &[u8],
    payload: &[u8],
    expire_at: Option<i64>,
    kind: &KeyType,
    target: crate::rdb::dump::Target,
) -> Result<Vec<Vec<Vec<u8>>>, String> {
    let failed = |why: String| format!("a {} could not be repaired: {why}", kind.word());
    let value = parse_payload(payload).map_err(|error| failed(error.to_string()))?;
    match route(value.type_byte, value.dialect, value.rdb_version, target) {
        Route::Impossible(why) => Err(failed(why.into())),
        Route::Restore { version } => {
            let mut stamped = Vec::new();
            let meta = if target.has_redis(8, 6) { value.meta } else { &[] };
            append_payload_with_meta(&mut stamped, meta, value.type_byte, value.raw, version);
            let restore = [&b"RESTORE"[..], key, b"0", &stamped, b"REPLACE"].map(<[u8]>::to_vec).to_vec();
            let mut commands = vec![restore];
            if let Some(at) = expire_at {
                commands
                    .push([&b"PEXPIREAT"[..], key, at.to_string().as_bytes()].map(<[u8]>::to_vec).to_vec());
            }
            Ok(commands)
        }
        Route::Commands => {
            let rebuild =
                Rebuild { key, target, replace: true, expire_at_ms: expire_at, pending_ids: Vec::new() };
            let mut commands = Vec::new();
            value_to_commands(
                value.type_byte,
                value.raw,
                value.dialect,
                rebuild,
                &mut |command: &ByteList| {
                    commands.push(command.iter().map(<[u8]>::to_vec).collect());
                    Ok(())
                },
            )
            .map_err(|error| failed(error.to_string()))?;
            Ok(commands)
        }
    }
}

/// Runs commands in one transaction, unless the watched key was written meanwhile.
async fn commit(link: &mut Link, commands: &[Vec<Vec<u8>>]) -> Result<Mended, VerifyError> {
    link.push(&[b"MULTI"]);
    for command in commands {
        let args: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
        link.push(&args);
    }
    link.push(&[b"EXEC"]);
    let mut replies = link.flush().await?;
    let last = replies.pop();
    // A slot may have moved: that is said before EXEC.
    if let (Some(Reply::Error(_)), Some(Reply::Error(first))) =
        (&last, replies.iter().find(|reply| matches!(reply, Reply::Error(_))))
    {
        return Err(link.refused("a repair", first.clone()));
    }
    match last {
        Some(Reply::Array(replies)) => {
            let refused = replies.into_iter().find_map(|reply| match reply {
                Reply::Error(error) => Some(error),
                _ => None,
            });
            Ok(refused.map_or(Mended::Yes, |error| {
                Mended::No(format!("the destination refused: {}", crate::format::escape(error, 200)))
            }))
        }
        Some(Reply::Error(error)) => Err(link.refused("a repair", error)),
        _ => {
            Ok(Mended::No("keys that were written on the destination meanwhile are left as they are".into()))
        }
    }
}
