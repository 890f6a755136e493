//! What answers mean: which batch was applied, and what becomes of commands that were refused.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::sleep;

use super::super::batch::{Batch, CommandKind, Position, Progress};
use super::super::net::{Connection, NetError};
use super::super::rules::{Rule, rule};
use super::{Flight, PROLOGUE, Writer, WriterError};
use crate::config::OnBadValue;
use crate::format::escape;
use crate::resp::Reply;
use crate::status::{EventLevel, WriterState};

/// What became of a batch.
pub(super) enum Verdict {
    /// Applied; runtime errors by index of the command in the batch.
    Applied(Vec<(usize, Refusal)>),
    /// Nothing of it was applied.
    Aborted(Vec<(usize, String)>, String),
}

/// An answer that means "not done".
pub(super) enum Refusal {
    Error(String),
    KeyExists,
    KeyMissing,
}

impl Writer {
    /// Reads the reply to EXEC.
    pub(super) fn verdict(&self, flight: &mut Flight, reply: Reply) -> Verdict {
        match reply {
            Reply::Array(results) => {
                let mut refusals = Vec::new();
                for (at, result) in results.iter().enumerate() {
                    // Results begin with SELECT; the checkpoint's follow the batch's own.
                    let Some(index) = at.checked_sub(PROLOGUE - 1) else {
                        if let Reply::Error(error) = result {
                            refusals.push((0, Refusal::Error(error.clone())));
                        }
                        continue;
                    };
                    let kind = flight.batch.commands.get(index).map(|command| command.kind);
                    match (result, kind) {
                        (Reply::Error(error), _) => refusals.push((index, Refusal::Error(error.clone()))),
                        (
                            Reply::Integer(0),
                            Some(
                                CommandKind::SetIfNone
                                | CommandKind::RenameIfNone
                                | CommandKind::RenameIfMissing,
                            ),
                        )
                        | (Reply::Null, Some(CommandKind::SetIfMissing)) => {
                            refusals.push((index, Refusal::KeyExists));
                        }
                        (Reply::Integer(0), Some(CommandKind::Renew)) => {
                            refusals.push((index, Refusal::KeyMissing));
                        }
                        _ => {}
                    }
                }
                Verdict::Applied(refusals)
            }
            Reply::Error(error) => Verdict::Aborted(std::mem::take(&mut flight.refused), error),
            other => Verdict::Aborted(
                std::mem::take(&mut flight.refused),
                format!("unexpected answer to EXEC: {other:?}"),
            ),
        }
    }

    /// The first batch is applied and its checkpoint set, but some of its commands failed when they ran.
    pub(super) async fn judge_applied(
        &self,
        batch: &Batch,
        refusals: Vec<(usize, Refusal)>,
        last_confirmed: &Option<Progress>,
    ) -> Result<(), WriterError> {
        for (index, refusal) in refusals {
            let kind = batch.commands.get(index).map_or(CommandKind::Select, |command| command.kind);
            let arguments = batch.arguments(index);
            let verb = String::from_utf8_lossy(arguments.first().copied().unwrap_or_default()).into_owned();
            let named = match kind {
                CommandKind::RenameIfNone | CommandKind::RenameIfMissing => 2,
                _ => 1,
            };
            let key = escape(arguments.get(named).copied().unwrap_or_default(), 60);
            if matches!(refusal, Refusal::KeyMissing) && renewal_is_over(&arguments, batch.source.now_ms()) {
                // It has expired on the source too.
                continue;
            }
            self.shared.errors.fetch_add(1, Relaxed);
            batch.source.errors.fetch_add(1, Relaxed);
            let exists = match &refusal {
                Refusal::KeyExists => true,
                Refusal::KeyMissing => false,
                Refusal::Error(error) => error.starts_with("BUSYKEY"),
            };
            let keeps = matches!(
                kind,
                CommandKind::SetIfMissing | CommandKind::RestoreIfMissing | CommandKind::RenameIfMissing
            );
            match refusal {
                _ if exists && keeps => {
                    let text = format!(
                        "key '{key}' exists on the destination and was kept (rdb_restore_command_behavior = \"skip\")"
                    );
                    self.events.reject(&self.node(), EventLevel::Warn, "BUSYKEY", "skip", &key, &text);
                }
                Refusal::KeyExists => {
                    let key = match kind {
                        CommandKind::SetIfNone => {
                            self.existing_key(batch.database_of(index), &arguments).await?
                        }
                        _ => key,
                    };
                    let error = "BUSYKEY Target key name already exists.".to_owned();
                    return self.stop(batch, last_confirmed, verb, key, error).await;
                }
                Refusal::KeyMissing => {
                    let text = format!(
                        "key '{key}' (db {}) had ended on the destination (or was removed there) before {verb} arrived, which renews it on the source: it is missing here. Mostly the lag was longer than its time to live: compare both sides and copy such keys again. Further ones are only counted",
                        batch.database_of(index)
                    );
                    self.events.report(
                        &self.node(),
                        "EXPIRED TOO EARLY",
                        "compare and copy again",
                        &key,
                        &text,
                    );
                }
                Refusal::Error(error) => match rule(&error, kind, self.on_bad_value).0 {
                    // At run time a state that passes cannot be waited for any more: the rest is applied already.
                    Rule::Wait | Rule::Quarantine => self.set_aside(batch, index, &error)?,
                    Rule::Stop => return self.stop(batch, last_confirmed, verb, key, error).await,
                },
            }
        }
        Ok(())
    }

    /// The first batch was refused as a whole; nothing of it is applied. Decides by its worst error.
    pub(super) async fn judge_aborted(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        pending: &mut VecDeque<Batch>,
        refused: Vec<(usize, String)>,
        abort: String,
    ) -> Result<Result<(), NetError>, WriterError> {
        // Take back the batch behind it, whose EXEC was withheld.
        if let Err(error) = self.discard_second(connection, flights).await {
            return Ok(Err(error));
        }
        for flight in flights.drain(..).rev() {
            pending.push_front(flight.batch);
        }
        self.shared.in_flight.store(0, Relaxed);
        self.shared.details().oldest = None;
        let errors = if refused.is_empty() { vec![(0, abort)] } else { refused };
        self.shared.errors.fetch_add(errors.len() as u64, Relaxed);
        let Some(batch) = pending.front_mut() else { return Ok(Ok(())) };
        let mut never = Vec::new();
        let mut wait = None;
        for (wire_index, error) in errors {
            let index = wire_index.checked_sub(PROLOGUE);
            let command = index.and_then(|index| batch.commands.get(index));
            let kind = command.map_or(CommandKind::Select, |command| command.kind);
            let (rule, cure) = rule(&error, kind, self.on_bad_value);
            match (rule, index) {
                (Rule::Wait, _) => wait = Some(format!("{error}: {cure}")),
                // An error about MULTI, the checkpoint or EXEC itself is not about an entry: setting one aside is no cure.
                (Rule::Quarantine, Some(index)) if index < batch.commands.len() => never.push((index, error)),
                _ => {
                    let arguments = index.map(|index| batch.arguments(index)).unwrap_or_default();
                    let verb = arguments.first().copied().unwrap_or(b"EXEC");
                    return Err(WriterError::Refused {
                        address: self.shared.address.clone(),
                        command: String::from_utf8_lossy(verb).into_owned(),
                        key: escape(arguments.get(1).copied().unwrap_or_default(), 60),
                        error,
                        cure: self.name_user(cure),
                    });
                }
            }
        }
        if let Some(reason) = wait {
            if self.shared.details().reason.as_ref() != Some(&reason) {
                self.events.warn(&self.node(), format!("waiting, nothing is lost: {reason}"));
            }
            self.shared.enter(WriterState::Waiting, Some(reason));
            self.shared.retries.fetch_add(1, Relaxed);
            let mut wishes = self.wishes.clone();
            tokio::select! {
                () = sleep(Duration::from_millis(500)) => {}
                _ = wishes.wait_for(|wishes| wishes.stop) => {}
            }
            return Ok(Ok(()));
        }
        for (index, error) in &never {
            batch.source.errors.fetch_add(1, Relaxed);
            self.set_aside(batch, *index, error)?;
        }
        batch.remove(&never.into_iter().map(|(index, _)| index).collect::<Vec<_>>());
        self.shared.retries.fetch_add(1, Relaxed);
        Ok(Ok(()))
    }

    /// Reads the remaining replies of the second batch and discards it.
    async fn discard_second(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
    ) -> Result<(), NetError> {
        let Some(second) = flights.get_mut(1) else { return Ok(()) };
        if second.batch.commands.is_empty() {
            return Ok(());
        }
        while second.queue_replies_missing > 0 {
            connection.read_reply("the pipeline").await?;
            second.queue_replies_missing -= 1;
        }
        connection.request(&[b"DISCARD"]).await.map(|_| ())
    }

    /// Which of the keys of a refused MSETNX exists, escaped. Asked on another connection: on ours the next batch is open.
    async fn existing_key(&self, db: u32, arguments: &[&[u8]]) -> Result<String, WriterError> {
        let mut asking = Connection::open(&self.endpoint).await?;
        asking.request(&[b"SELECT", db.to_string().as_bytes()]).await?;
        for pair in arguments.get(1..).unwrap_or_default().chunks(2) {
            if let Some(key) = pair.first()
                && asking.request(&[b"EXISTS", key]).await? == Reply::Integer(1)
            {
                return Ok(escape(key, 60));
            }
        }
        Ok("(one of several)".into())
    }

    /// Ends the run because of one entry. The batch has run and moved the checkpoint past the entry; inside an RDB, whose
    /// entries can be sent twice, it is moved back so that a later start brings the entry again.
    async fn stop(
        &self,
        batch: &Batch,
        last_confirmed: &Option<Progress>,
        command: String,
        key: String,
        error: String,
    ) -> Result<(), WriterError> {
        if matches!(batch.progress.at, Position::Rdb { .. }) {
            let mut other = Connection::open(&self.endpoint).await?;
            let field = batch.source.address.as_bytes();
            let checkpoint = self.checkpoint_key.as_bytes();
            match last_confirmed {
                Some(progress) => {
                    other.request(&[b"HSET", checkpoint, field, progress.to_string().as_bytes()]).await?
                }
                None => other.request(&[b"HDEL", checkpoint, field]).await?,
            };
        }
        let (_, cure) = rule(&error, CommandKind::Restore, OnBadValue::Stop);
        Err(WriterError::Refused {
            address: self.shared.address.clone(),
            command,
            key,
            error,
            cure: self.name_user(cure),
        })
    }

    fn set_aside(&self, batch: &Batch, index: usize, error: &str) -> Result<(), WriterError> {
        let arguments = batch.arguments(index);
        let key = arguments.get(1).copied().unwrap_or_default();
        let verb = escape(arguments.first().copied().unwrap_or_default(), 20);
        let db = batch.database_of(index);
        self.quarantine.add(&batch.source.address, db, key, error, batch.command_bytes(index))?;
        let shown_key = escape(key, 60);
        let kind = error.split(' ').next().unwrap_or("ERR").to_owned();
        let text = format!(
            "{verb} '{shown_key}' -> {} (set aside in {})",
            escape(error.as_bytes(), 200),
            self.quarantine.path().display()
        );
        self.events.reject(&self.node(), EventLevel::Error, &kind, "quarantine", &shown_key, &text);
        Ok(())
    }

    /// The cures of the rule table speak of `<user>`.
    fn name_user(&self, cure: &str) -> String {
        cure.replace("<user>", self.endpoint.username.as_deref().unwrap_or("default"))
    }
}

/// Whether the time that EXPIREAT or PEXPIREAT sets has passed.
fn renewal_is_over(arguments: &[&[u8]], now_ms: u64) -> bool {
    let [verb, _, time, ..] = arguments else { return false };
    let unit = if verb.eq_ignore_ascii_case(b"EXPIREAT") { 1000 } else { 1 };
    let time = std::str::from_utf8(time).ok().and_then(|time| time.parse::<i64>().ok());
    time.is_some_and(|time| time.saturating_mul(unit) <= i64::try_from(now_ms).unwrap_or(i64::MAX))
}
