//! Values whose RESTORE was refused, rebuilt by commands; and RDB batches whose answers were lost.
//!
//! Both happen while the next batch, sent or not, is still withheld, so nothing later can come before them; and before the
//! batch counts as confirmed, so that a crash in the middle brings it again (see [`Batch::checkpoint`]). A value is built under
//! a temporary key and renamed when the destination has accepted every command: nobody sees half of it.

use std::time::Duration;

use tokio::time::sleep;

use super::super::batch::{Batch, CommandKind};
use super::super::clocks;
use super::super::events::unix_ms;
use super::super::net::{Connection, NetError};
use super::super::rebuilt::Plan;
use super::super::rules::Refusal;
use super::super::rules::{Rule, rule};
use super::link::Beside;
use super::{Writer, WriterError};
use crate::config::OnBadValue;
use crate::format::escape;
use crate::rdb::commands::Loss;
use crate::rdb::describe_type;
use crate::resp::{Reply, append_command};
use crate::status::{EventLevel, WriterState};

/// Where the writer of this run builds a refused value, in the key's own database. Not the key of values that replay builds:
/// one of those may be half-way at this moment.
pub fn rebuilding_key(run_id: &str) -> Vec<u8> {
    format!("shakedeck:rebuilding:{run_id}").into_bytes()
}

impl Writer {
    /// Rebuilds the value of a RESTORE that was refused. The inner error says why that is impossible, too.
    pub(super) async fn rebuild(
        &self,
        beside: &mut Beside,
        batch: &Batch,
        index: usize,
        refused: &str,
    ) -> Result<Result<(), String>, WriterError> {
        let (arguments, next) = (batch.arguments(index), batch.arguments(index + 1));
        let (db, target) = (batch.database_of(index), self.acceptance.target());
        let plan = match Plan::new(db, &arguments, &next, &self.rebuilding_key, target) {
            Ok(plan) => plan,
            Err(error) => return Ok(Err(error)),
        };
        let loss = match self.until_answered(beside, &plan).await? {
            Ok(loss) => loss,
            Err(error) => return Ok(Err(error)),
        };
        let (key, payload) = (plan.key, &plan.payload);
        let shown = escape(key, 60);
        let what = describe_type(payload.type_byte, payload.dialect);
        let without = loss.describe().map_or(String::new(), |words| format!(", without {words}"));
        let text = format!(
            "key '{shown}': RESTORE of {what} was refused ({refused}); it was rebuilt by commands{without}"
        );
        self.events.reject(
            &self.node(),
            EventLevel::Warn,
            "RESTORE REFUSED",
            "rebuilt by commands",
            &shown,
            &text,
        );
        if self.acceptance.note_refusal(payload.type_byte) {
            let text = format!(
                "RESTORE of {what} has been refused several times; from now on such values go by commands"
            );
            self.events.warn(&self.node(), text);
        }
        Ok(Ok(()))
    }

    /// Sends a plan until it is answered with something other than a state that passes.
    async fn until_answered(
        &self,
        beside: &mut Beside,
        plan: &Plan<'_>,
    ) -> Result<Result<Loss, String>, WriterError> {
        let mut again = false;
        loop {
            let connection = self.beside(beside).await?;
            match plan.build(connection, again).await {
                Ok(Err(error)) => match rule(&error, CommandKind::Rebuild, OnBadValue::Quarantine) {
                    (Rule::Wait, cure) if !self.wishes.borrow().stop => {
                        self.shared
                            .enter(WriterState::Waiting, Some(format!("{error}: {}", self.name_user(&cure))));
                        sleep(Duration::from_millis(500)).await;
                    }
                    (Rule::Quarantine, _) => return Ok(Err(error)),
                    _ => {
                        return Err(self.refused(
                            "the commands in place of RESTORE".into(),
                            Some(escape(plan.key, 60)),
                            error,
                        ));
                    }
                },
                Ok(Ok(loss)) => return Ok(Ok(loss)),
                Err(error) if error.is_transient() && !self.wishes.borrow().stop => beside.lost(),
                Err(error) => return Err(error.into()),
            }
            again = true;
        }
    }

    /// Now by the destination's clock (Unix ms).
    pub(super) async fn now_there(&self, beside: &mut Beside) -> Result<i64, WriterError> {
        loop {
            let connection = self.beside(beside).await?;
            match clocks::now_ms(connection).await {
                Ok(now) => return Ok(now),
                Err(error) if error.is_transient() && !self.wishes.borrow().stop => beside.lost(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Removes what stands of a value that command `index` was a part of.
    pub(super) async fn take_away(
        &self,
        beside: &mut Beside,
        batch: &Batch,
        index: usize,
        keys: &[&[u8]],
    ) -> Result<(), WriterError> {
        let db = batch.database_of(index).to_string();
        let unlink = self.acceptance.target().unlink();
        while !keys.is_empty() {
            let connection = self.beside(beside).await?;
            let removed = async {
                match connection.request(&[b"SELECT", db.as_bytes()]).await? {
                    Reply::Error(error) => Ok(Reply::Error(error)),
                    _ => connection.request(&[&[unlink], keys].concat()).await,
                }
            };
            match removed.await {
                Ok(Reply::Error(error)) => match self.passing(&error, CommandKind::Part) {
                    Some(reason) if !self.wishes.borrow().stop => self.wait(reason).await,
                    _ => return Err(self.refused("the removal of a part".into(), None, error)),
                },
                Ok(_) => break,
                Err(error) if error.is_transient() && !self.wishes.borrow().stop => beside.lost(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The batch has run, but its answers were lost with the connection. Which entries of the RDB were refused is found out by
    /// asking again: RESTOREs are repeated, which changes nothing where the first one was accepted. Commands that build a value cannot
    /// be repeated singly: applying begins again before the batch, unless keys of others could be taken for ours then.
    pub(super) async fn judge_unanswered(&self, batch: &Batch) -> Result<(), WriterError> {
        let builds = |kind: CommandKind| kind.is_part() || kind == CommandKind::Piece;
        if batch.commands.iter().any(|command| builds(command.kind)) {
            if !batch.keeps_keys_of_others() {
                return Err(WriterError::BeginAgain {
                    address: self.shared.address.clone(),
                    reason: "the answers to commands that build a value were lost".into(),
                });
            }
            let text = "the answers to commands that build values were lost with the link: should the destination have refused one of \
                        them, its value is not whole there; compare both sides (v) before a cutover";
            self.events.warn(&self.node(), text);
        }
        let asked = |kind: CommandKind| {
            kind.restores() || matches!(kind, CommandKind::SetIfNone | CommandKind::Count)
        };
        if !batch.commands.iter().any(|command| asked(command.kind)) {
            return Ok(());
        }
        let mut beside = Beside::default();
        let refusals = loop {
            let connection = self.beside(&mut beside).await?;
            match ask_again(connection, batch).await {
                Ok(refusals) => break refusals,
                Err(error) if error.is_transient() && !self.wishes.borrow().stop => beside.lost(),
                Err(error) => return Err(error.into()),
            }
        };
        self.judge_applied(batch, refusals).await
    }
}

/// When a restored key is to end (Unix ms): the RESTORE says it, or, before Redis 5.0, the command behind it.
pub fn restored_until(restore: &[&[u8]], next: &[&[u8]]) -> Option<i64> {
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<i64>().ok();
    let [_, key, ttl, _, options @ ..] = restore else { return None };
    match (number(ttl).filter(|ttl| *ttl > 0), next) {
        (Some(at), _) if options.contains(&&b"ABSTTL"[..]) => Some(at),
        (Some(ttl), _) => Some(ttl.saturating_add(unix_ms() as i64)),
        (None, [b"PEXPIREAT", same, at]) if same == key => number(at),
        (None, _) => None,
    }
}

/// Sends the RESTOREs and the count of a batch once more, and looks whether the keys of its MSETNX are there.
async fn ask_again(connection: &mut Connection, batch: &Batch) -> Result<Vec<(usize, Refusal)>, NetError> {
    let mut bytes = Vec::new();
    let mut asked = Vec::new();
    append_command(&mut bytes, &[b"SELECT", batch.start_db.to_string().as_bytes()]);
    asked.push((0, CommandKind::Select, 0));
    for (index, command) in batch.commands.iter().enumerate() {
        match command.kind {
            CommandKind::Select
            | CommandKind::Restore
            | CommandKind::RestoreIfMissing
            | CommandKind::Count => {
                bytes.extend_from_slice(batch.command_bytes(index));
                asked.push((index, command.kind, 0));
            }
            CommandKind::SetIfNone => {
                let arguments = batch.arguments(index);
                let keys: Vec<&[u8]> = arguments.iter().skip(1).step_by(2).copied().collect();
                append_command(&mut bytes, &[&[&b"EXISTS"[..]], &keys[..]].concat());
                asked.push((index, command.kind, keys.len() as i64));
            }
            _ => {}
        }
    }
    connection.send(&bytes, "asking again").await?;
    let mut refusals = Vec::new();
    for (index, kind, keys) in asked {
        match (kind, connection.read_reply("asking again").await?) {
            // The key is there: it was accepted the first time.
            (_, Reply::Error(error)) if error.starts_with("BUSYKEY") => {}
            (CommandKind::Count, Reply::Integer(size)) => {
                batch.tell_size(Ok(Some(u64::try_from(size).unwrap_or_default())));
            }
            (kind, Reply::Error(error)) if kind.restores() || kind == CommandKind::Count => {
                refusals.push((index, Refusal::Error(error)))
            }
            (CommandKind::SetIfNone, Reply::Integer(found)) if found < keys => {
                refusals.push((index, Refusal::KeyExists));
            }
            _ => {}
        }
    }
    Ok(refusals)
}
