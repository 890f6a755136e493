//! What answers mean: which batch was applied, and what becomes of commands that were refused.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::atomic::Ordering::Relaxed;

use tokio::time::timeout;

use super::super::batch::{Batch, CommandKind, Position};
use super::super::net::{Connection, NetError};
use super::super::rebuilt::taken_away;
use super::super::rules::{Refusal, Rule, cause_of_abort, refuses_payload, rule};
use super::super::whole::{Parts, Whole, tell_refused};
use super::link::{Beside, STALL_LIMIT};
use super::{Flight, PROLOGUE, Writer, WriterError};
use crate::command;
use crate::config::{OnBadValue, OnExistingKey};
use crate::format::escape;
use crate::resp::{Reply, append_command};
use crate::status::EventLevel;

/// What became of a batch.
pub(super) enum Verdict {
    /// Applied; runtime errors by index of the command in the batch.
    Applied(Vec<(usize, Refusal)>),
    /// Nothing of it was applied.
    Aborted(Vec<(usize, String)>, String),
    /// Nothing of it was applied: the checkpoint had been changed by another connection.
    Overtaken,
    /// It went without answers and was not applied; the checkpoint as it is.
    Unheard(Option<String>),
}

impl Writer {
    /// Reads the reply to EXEC, or the checkpoint behind it.
    pub(super) fn verdict(&self, flight: &mut Flight, reply: Reply) -> Verdict {
        match reply {
            Reply::Bulk(found) if flight.quiet && found == flight.checkpoint.as_bytes() => {
                Verdict::Applied(Vec::new())
            }
            Reply::Bulk(found) if flight.quiet => {
                Verdict::Unheard(Some(String::from_utf8_lossy(&found).into_owned()))
            }
            Reply::Null if flight.quiet => Verdict::Unheard(None),
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
                        // Said before the answer to the count behind it.
                        (Reply::Error(error), Some(CommandKind::Piece)) => {
                            flight.batch.refuse_piece(index, error);
                            refusals.push((index, Refusal::Error(error.clone())));
                        }
                        (Reply::Error(error), _) => refusals.push((index, Refusal::Error(error.clone()))),
                        (Reply::Integer(size), Some(CommandKind::Count)) => {
                            flight.batch.tell_size(Ok(Some(u64::try_from(*size).unwrap_or_default())));
                        }
                        (Reply::Integer(0), Some(CommandKind::SetIfNone | CommandKind::Rename { .. }))
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
            Reply::Null => Verdict::Overtaken,
            Reply::Error(error) => {
                Verdict::Aborted(std::mem::take(&mut flight.refused), cause_of_abort(&error).to_owned())
            }
            other => Verdict::Aborted(
                std::mem::take(&mut flight.refused),
                format!("unexpected answer to EXEC: {other:?}"),
            ),
        }
    }

    /// The first batch is applied, but some of its commands failed when they ran.
    pub(super) async fn judge_applied(
        &self,
        batch: &Batch,
        refusals: Vec<(usize, Refusal)>,
    ) -> Result<(), WriterError> {
        // What follows the batch's own commands is the checkpoint: if that failed, nobody knows where a restart begins.
        if let Some((_, Refusal::Error(error))) =
            refusals.iter().find(|(index, _)| *index >= batch.commands.len())
        {
            return Err(self.refused("HSET".into(), Some(self.checkpoint_key.clone()), error.clone()));
        }
        // All of them before anything ends the run: a later start must not take them for ours.
        let taken = self.note_foreign(batch, &refusals).await?;
        // On ours the next batch is open.
        let mut beside = Beside::default();
        let refused: Vec<usize> = refusals.iter().map(|(index, _)| *index).collect();
        let mut undone = BTreeSet::new();
        for (index, refusal) in refusals {
            let kind = batch.commands.get(index).map_or(CommandKind::Select, |command| command.kind);
            let arguments = batch.arguments(index);
            let verb = String::from_utf8_lossy(arguments.first().copied().unwrap_or_default()).into_owned();
            let named = named_by(kind);
            let key = escape(arguments.get(named).copied().unwrap_or_default(), 60);
            if matches!(refusal, Refusal::KeyMissing) && renewal_is_over(&arguments, batch.source.now_ms()) {
                // It has expired on the source too.
                continue;
            }
            if let Refusal::Error(error) = &refusal
                && let Some(at) = kind.ended_from(error)
                && at <= self.now_there(&mut beside).await?
            {
                continue;
            }
            self.shared.errors.fetch_add(1, Relaxed);
            batch.source.errors.fetch_add(1, Relaxed);
            let exists = refusal.key_exists();
            let keeps = matches!(
                kind,
                CommandKind::SetIfMissing
                    | CommandKind::RestoreIfMissing
                    | CommandKind::Rename { existing: OnExistingKey::Skip, .. }
            );
            match refusal {
                _ if exists && keeps => {
                    let text = format!(
                        "key '{key}' exists on the destination and was kept (rdb_restore_command_behavior = \"skip\")"
                    );
                    self.events.reject(&self.node(), EventLevel::Warn, "BUSYKEY", "skip", &key, &text);
                }
                Refusal::KeyExists => {
                    let key = taken.get(&index).cloned().unwrap_or(key);
                    let error = "BUSYKEY Target key name already exists.".to_owned();
                    return self.stop(batch, index, verb, Some(key), error);
                }
                Refusal::Error(error) => {
                    if kind.is_part() {
                        if !undone.contains(&index) {
                            let parts = batch.parts(index);
                            self.take_away(&mut beside, batch, index, &parts.standing(&refused)).await?;
                            let gone = parts.rename == Some(index) && error.contains("no such key");
                            let error = if gone { taken_away(&error) } else { error };
                            self.refuse_value(batch, index, &parts, &error)?;
                            undone.extend(parts.indexes);
                        }
                        continue;
                    }
                    let error = if kind.restores() && refuses_payload(&error) {
                        match self.rebuild(&mut beside, batch, index, &error).await? {
                            Ok(()) => continue,
                            Err(second) => format!("{error}; and by commands: {second}"),
                        }
                    } else {
                        error
                    };
                    match rule(&error, kind, self.on_bad_value).0 {
                        // Replay has heard of it.
                        Rule::Wait | Rule::Quarantine if kind == CommandKind::Piece => {}
                        // At run time a state that passes cannot be waited for any more: the rest is applied already.
                        Rule::Wait | Rule::Quarantine => self.set_aside(batch, index, &error)?,
                        Rule::Stop => {
                            return self.stop(batch, index, verb, key_named(kind, &arguments), error);
                        }
                    }
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
            }
        }
        Ok(())
    }

    /// Notes every key that existed already. Returns which key of each refused MSETNX it is.
    async fn note_foreign(
        &self,
        batch: &Batch,
        refusals: &[(usize, Refusal)],
    ) -> Result<HashMap<usize, String>, WriterError> {
        let mut taken = HashMap::new();
        for (index, _) in refusals.iter().filter(|(_, refusal)| refusal.key_exists()) {
            let arguments = batch.arguments(*index);
            match batch.commands.get(*index).map(|command| command.kind) {
                Some(CommandKind::SetIfNone) => {
                    taken.insert(*index, self.existing_key(batch, *index, &arguments).await?);
                }
                Some(CommandKind::Stream) | None => {}
                Some(kind) => {
                    let key = arguments.get(named_by(kind)).copied().unwrap_or_default();
                    batch.source.found_foreign(batch.database_of(*index), key);
                }
            }
        }
        Ok(taken)
    }

    /// The first batch was refused as a whole; nothing of it is applied. Decides by its worst error.
    pub(super) async fn judge_aborted(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        pending: &mut VecDeque<Batch>,
        last_confirmed: &mut Option<String>,
        refused: Vec<(usize, String)>,
        abort: String,
    ) -> Result<Result<(), NetError>, WriterError> {
        if let Err(error) = self.take_back(connection, flights, pending).await {
            return Ok(Err(error));
        }
        let errors = if refused.is_empty() { vec![(0, abort)] } else { refused };
        self.shared.errors.fetch_add(errors.len() as u64, Relaxed);
        let Some(batch) = pending.front_mut() else { return Ok(Ok(())) };
        let mut never = Vec::new();
        let mut wait = None;
        let mut elsewhere = false;
        for (wire_index, error) in errors {
            let index = wire_index.checked_sub(PROLOGUE);
            let command = index.and_then(|index| batch.commands.get(index));
            let kind = command.map_or(CommandKind::Select, |command| command.kind);
            let (rule, cure) = rule(&error, kind, self.on_bad_value);
            if let Some(reason) = self.passing(&error, kind) {
                elsewhere |= error.starts_with("READONLY") || error.starts_with("MASTERDOWN");
                wait = Some(reason);
                continue;
            }
            match (rule, index) {
                // An error about MULTI, the checkpoint or EXEC itself is not about an entry: setting one aside is no cure.
                (Rule::Quarantine, Some(index)) if index < batch.commands.len() => never.push((index, error)),
                _ => {
                    let arguments = index.map(|index| batch.arguments(index)).unwrap_or_default();
                    // Before the batch stand MULTI and SELECT, behind it the checkpoint and EXEC.
                    let verb = arguments.first().copied().unwrap_or(b"a transaction");
                    let part =
                        index.filter(|_| kind.is_part()).map(|index| escape(&batch.parts(index).key, 60));
                    return Err(WriterError::Refused {
                        address: self.shared.address.clone(),
                        command: String::from_utf8_lossy(verb).into_owned(),
                        key: part.or_else(|| key_named(kind, &arguments)),
                        error,
                        cure: self.name_user(&cure),
                    });
                }
            }
        }
        if let Some(reason) = wait {
            self.shared.retries.fetch_add(1, Relaxed);
            self.wait(reason).await;
            if elsewhere && !self.wishes.borrow().stop {
                // Another server may be the master behind this address by now, and it may have less than we think.
                self.resume(connection, flights, pending, last_confirmed).await?;
            }
            return Ok(Ok(()));
        }
        let mut beside = Beside::default();
        let mut removed = BTreeSet::new();
        for (index, error) in &never {
            if removed.contains(index) {
                continue;
            }
            batch.source.errors.fetch_add(1, Relaxed);
            match batch.commands.get(*index).map(|command| command.kind) {
                Some(kind) if kind.is_part() => {
                    let parts = batch.parts(*index);
                    // Nothing of this batch has run, but it may have been built by those before it.
                    self.take_away(&mut beside, batch, *index, &parts.built_before()).await?;
                    self.refuse_value(batch, *index, &parts, error)?;
                    removed.extend(parts.indexes);
                }
                Some(CommandKind::Piece) => batch.refuse_piece(*index, error),
                _ => self.set_aside(batch, *index, error)?,
            }
            removed.insert(*index);
        }
        batch.remove(&removed.into_iter().collect::<Vec<_>>());
        self.shared.retries.fetch_add(1, Relaxed);
        Ok(Ok(()))
    }

    /// The first batch was not applied: both are sent again, also the one behind it, whose EXEC was withheld.
    pub(super) async fn take_back(
        &self,
        connection: &mut Connection,
        flights: &mut VecDeque<Flight>,
        pending: &mut VecDeque<Batch>,
    ) -> Result<(), NetError> {
        self.discard_second(connection, flights).await?;
        for flight in flights.drain(..).rev() {
            pending.push_front(flight.batch);
        }
        self.shared.in_flight.store(0, Relaxed);
        self.shared.details().oldest = None;
        Ok(())
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
            if timeout(STALL_LIMIT, connection.read_reply("the pipeline")).await.is_err() {
                return Err(connection.lost("the pipeline", io::ErrorKind::TimedOut.into()));
            }
            second.queue_replies_missing -= 1;
        }
        if second.quiet {
            let mut discard = Vec::new();
            append_command(&mut discard, &[b"DISCARD"]);
            connection.send(&discard, "DISCARD").await?;
            connection.request(&[b"CLIENT", b"REPLY", b"ON"]).await?;
        } else {
            connection.request(&[b"DISCARD"]).await?;
        }
        // DISCARD has ended the WATCH too.
        self.watch(connection).await
    }

    /// Which of the keys of a refused MSETNX exists, escaped. Asked on another connection: on ours the next batch is open.
    async fn existing_key(
        &self,
        batch: &Batch,
        index: usize,
        arguments: &[&[u8]],
    ) -> Result<String, WriterError> {
        let db = batch.database_of(index);
        let mut first = None;
        let mut asking = Connection::open(&self.endpoint).await?;
        asking.request(&[b"SELECT", db.to_string().as_bytes()]).await?;
        for pair in arguments.get(1..).unwrap_or_default().chunks(2) {
            if let Some(key) = pair.first()
                && asking.request(&[b"EXISTS", key]).await? == Reply::Integer(1)
            {
                batch.source.found_foreign(db, key);
                first.get_or_insert_with(|| escape(key, 60));
            }
        }
        Ok(first.unwrap_or_else(|| "(one of several)".into()))
    }

    /// Ends the run because of one entry. Inside an RDB the checkpoint still stands before its batch, so that a later start
    /// brings it again. An entry of the stream is set aside: those behind it are applied already.
    fn stop(
        &self,
        batch: &Batch,
        index: usize,
        command: String,
        key: Option<String>,
        error: String,
    ) -> Result<(), WriterError> {
        if !matches!(batch.progress.at, Position::Rdb { .. }) {
            self.set_aside(batch, index, &error)?;
        }
        Err(self.refused(command, key, error))
    }

    /// Sets a value aside, or ends the run, as the rule says. Nothing of it stands on the destination.
    fn refuse_value(
        &self,
        batch: &Batch,
        index: usize,
        parts: &Parts,
        error: &str,
    ) -> Result<(), WriterError> {
        let Some(command) = batch.commands.get(index) else { return Ok(()) };
        let verb = batch.verb(index);
        if rule(error, command.kind, self.on_bad_value).0 == Rule::Stop {
            return Err(self.refused(verb, Some(escape(&parts.key, 60)), error.to_owned()));
        }
        let (entry, target) = ((batch.progress.generation, command.at), self.acceptance.target());
        let whole = Whole::read_for_writer(&batch.source, entry, target, error, &self.shared.address)?;
        let (db, source) = (batch.database_of(index), &batch.source.address);
        self.quarantine.add(source, db, &parts.key, &whole.reason, &whole.command)?;
        let (events, path) = (&self.events, self.quarantine.path());
        tell_refused(events, &self.node(), &parts.key, &verb, error, path);
        Ok(())
    }

    /// The destination refused something that neither waiting nor setting aside would cure.
    pub(super) fn refused(&self, command: String, key: Option<String>, error: String) -> WriterError {
        let (_, cure) = rule(&error, CommandKind::Restore, OnBadValue::Stop);
        WriterError::Refused {
            address: self.shared.address.clone(),
            command,
            key,
            error,
            cure: self.name_user(&cure),
        }
    }

    fn set_aside(&self, batch: &Batch, index: usize, error: &str) -> Result<(), WriterError> {
        let kind = batch.commands.get(index).map_or(CommandKind::Select, |command| command.kind);
        if kind == CommandKind::Count {
            // Replay sets the value aside.
            batch.tell_size(Err(error.to_owned()));
            return Ok(());
        }
        let arguments = batch.arguments(index);
        let key = arguments.get(named_by(kind)).copied().unwrap_or_default();
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
    pub(super) fn name_user(&self, cure: &str) -> String {
        cure.replace("<user>", self.endpoint.user())
    }
}

/// Which argument is the key that the operator knows.
pub fn named_by(kind: CommandKind) -> usize {
    if matches!(kind, CommandKind::Rename { .. }) { 2 } else { 1 }
}

/// The key of a command, escaped, if it has one.
pub fn key_named(kind: CommandKind, arguments: &[&[u8]]) -> Option<String> {
    let verb = arguments.first()?;
    let command = command::find(verb);
    let keyless =
        command.is_some_and(|it| it.keys(arguments.len(), |at| arguments.get(at).copied()).next().is_none());
    arguments.get(named_by(kind)).filter(|_| !keyless).map(|key| escape(key, 60))
}

/// Whether the time that EXPIREAT or PEXPIREAT sets has passed.
pub fn renewal_is_over(arguments: &[&[u8]], now_ms: u64) -> bool {
    let [verb, _, time, ..] = arguments else { return false };
    let unit = if verb.eq_ignore_ascii_case(b"EXPIREAT") { 1000 } else { 1 };
    let time = std::str::from_utf8(time).ok().and_then(|time| time.parse::<i64>().ok());
    time.is_some_and(|time| time.saturating_mul(unit) <= i64::try_from(now_ms).unwrap_or(i64::MAX))
}
