//! Commands that no single node can run: on keys of several slots, and on all keys.
//!
//! A command on keys of several slots is done where its result is kept, as one transaction: the keys of other slots are copied
//! there (DUMP, RESTORE), the very command runs on the copies, the copies go, and the slot's checkpoint is set. What the command
//! takes from its source (RENAME, SMOVE, LMOVE) is taken afterwards, in a transaction of the source's slot. Everything that came
//! before in those slots is done then, and nothing that follows has begun, so the destination's own state is the right one.
//!
//! Every slot that takes part gets a checkpoint, the one that is written to first. So a crash in the middle leaves no doubt: a part
//! whose checkpoint is past the command is left out. A node may lose its last writes, and the result with them, while the sources
//! have gone on: then the copies come from this disk (`journal.rs`), where they are kept until everything is confirmed.
//!
//! FLUSHALL removes the checkpoints together with the keys: what follows it is sent again whatever they said.

use std::time::Instant;

use super::super::batch::{Batch, CommandKind};
use super::super::rules::cure_of;
use super::super::writer::WriterError;
use super::distribute::{behind, place_of};
use super::flight::{Obstacle, exchange, obstacle};
use super::group::Questions;
use super::route::{Route, taken_from, target_of};
use super::{ClusterWriter, HOLD, slots};
use crate::format::escape;
use crate::resp::{CommandParser, Reply, append_command};
use crate::status::EventLevel;

/// What a transaction on one node came to.
enum Ran {
    /// The answers to its commands.
    Done(Vec<Reply>),
    /// Nothing ran; it is tried again.
    Again,
    /// Nothing ran, and nothing ever will.
    Never(String),
}

/// What a node told of a key.
pub(super) struct Dumped {
    /// The answer to DUMP.
    payload: Reply,
    /// To PEXPIRETIME, which is unknown before 7.0.
    expire_at: Reply,
    /// To PTTL.
    ttl: Reply,
}

impl Dumped {
    /// The command that makes the same value under this name; `None` = there is no value.
    pub(super) fn restore(&self, name: &[u8]) -> Option<Vec<u8>> {
        let Reply::Bulk(payload) = &self.payload else { return None };
        let (time, absolute) = match (&self.expire_at, &self.ttl) {
            (Reply::Integer(time @ 1..), _) => (*time, true),
            (Reply::Error(_), Reply::Integer(ttl @ 1..)) => (*ttl, false),
            _ => (0, false),
        };
        let time = time.to_string().into_bytes();
        let words: [&[u8]; 6] = [b"RESTORE", name, &time, payload, b"REPLACE", b"ABSTTL"];
        let mut restore = Vec::new();
        append_command(&mut restore, words.get(..5 + usize::from(absolute)).unwrap_or_default());
        Some(restore)
    }

    /// Why it is not told.
    pub(super) fn error(&self) -> Option<&str> {
        if let Reply::Error(error) = &self.payload { Some(error) } else { None }
    }
}

impl ClusterWriter {
    /// Does a command on its own. `false` = not now.
    pub(super) async fn do_alone(
        &mut self,
        batch: &Batch,
        index: usize,
        db: u32,
        route: Route,
    ) -> Result<bool, WriterError> {
        let done = match route {
            Route::ByValue(keys) => self.by_value(batch, index, db, &keys).await?,
            Route::Masters => self.on_every_master(batch, index, db).await?,
            Route::Empty => self.empty(batch, index).await?,
            _ => true,
        };
        if !done {
            self.retry_at = Some(Instant::now() + HOLD);
        }
        Ok(done)
    }

    async fn by_value(
        &mut self,
        batch: &Batch,
        index: usize,
        db: u32,
        keys: &[(usize, u16)],
    ) -> Result<bool, WriterError> {
        let arguments = batch.arguments(index);
        let at = batch.commands.get(index).map_or(0, |sent| sent.at);
        let (place, upto) = (place_of(batch, at), behind(batch, at));
        let Some((_, target)) = target_of(&arguments, keys) else { return Ok(true) };
        let mut sources: Vec<u16> =
            keys.iter().map(|(_, slot)| *slot).filter(|slot| *slot != target).collect();
        sources.sort_unstable();
        sources.dedup();
        let mut taken = taken_from(&arguments);
        if !self.is_applied(target, place) {
            let kept = self.settings.journal.find(place).map(<[u8]>::to_vec);
            let gone_on = sources.iter().any(|slot| self.is_applied(*slot, place));
            if kept.is_none() && gone_on {
                let reason = "the node of its result lost it while its sources have gone on: it cannot be computed any more";
                self.set_aside(db, &arguments, batch.command_bytes(index), reason)?;
            } else {
                let commands = match kept {
                    Some(commands) => commands,
                    None => {
                        let Some(commands) = self.with_copies(db, &arguments, keys, target).await? else {
                            return Ok(false);
                        };
                        match self.settings.journal.add(place, &commands) {
                            Err(error) if error.is_full() => {
                                self.not_now(self.queues.owner(target), error.to_string())?;
                                return Ok(false);
                            }
                            result => result?,
                        }
                        commands
                    }
                };
                let count = count_of(&commands);
                match self.transact(target, db, &commands, count, batch, upto).await? {
                    Ran::Done(results) => {
                        match results.iter().find(|result| matches!(result, Reply::Error(_))) {
                            Some(Reply::Error(error)) => {
                                let error = error.clone();
                                self.set_aside(db, &arguments, batch.command_bytes(index), &error)?;
                                taken = None;
                            }
                            // Its name was taken: nothing was renamed.
                            _ if results.get(count.saturating_sub(2)) == Some(&Reply::Integer(0))
                                && arguments
                                    .first()
                                    .is_some_and(|verb| verb.eq_ignore_ascii_case(b"RENAMENX")) =>
                            {
                                taken = None;
                            }
                            _ => {}
                        }
                    }
                    Ran::Again => return Ok(false),
                    Ran::Never(error) => {
                        self.set_aside(db, &arguments, batch.command_bytes(index), &error)?;
                        taken = None;
                    }
                }
            }
            self.applied.insert(target, upto);
        }
        for slot in sources {
            if self.is_applied(slot, place) {
                continue;
            }
            let own = taken
                .as_ref()
                .filter(|_| arguments.get(1).is_some_and(|key| crate::command::slot_of(key) == slot));
            let mut commands = Vec::new();
            own.into_iter().for_each(|command| append_command(&mut commands, command));
            let count = count_of(&commands);
            match self.transact(slot, db, &commands, count, batch, upto).await? {
                Ran::Done(_) => {}
                Ran::Again => return Ok(false),
                Ran::Never(error) => self.set_aside(db, &arguments, batch.command_bytes(index), &error)?,
            }
            self.applied.insert(slot, upto);
        }
        Ok(true)
    }

    /// The command on copies of its keys in the slot `target`, with what makes the copies before it and what removes them
    /// behind it. `None` = not now.
    async fn with_copies(
        &mut self,
        db: u32,
        arguments: &[&[u8]],
        keys: &[(usize, u16)],
        target: u16,
    ) -> Result<Option<Vec<u8>>, WriterError> {
        let mut words: Vec<Vec<u8>> = arguments.iter().map(|word| word.to_vec()).collect();
        let (mut commands, mut copies) = (Vec::new(), Vec::new());
        let elsewhere: Vec<(usize, u16)> = keys.iter().copied().filter(|(_, slot)| *slot != target).collect();
        for (number, (at, slot)) in elsewhere.into_iter().enumerate() {
            let Some(key) = arguments.get(at) else { continue };
            let copy = slots::copy_key(&self.settings.signature.id, target, number);
            let node = self.queues.owner(slot);
            let dumped = self.dump(node, db, key).await?;
            if let Some(restore) = dumped.restore(&copy) {
                commands.extend_from_slice(&restore);
            }
            if let Some(error) = dumped.error() {
                match obstacle(error, CommandKind::Stream) {
                    Some(Obstacle::Moved(address)) => {
                        self.slot_moved(node, slot, &address)?;
                        return Ok(None);
                    }
                    Some(Obstacle::Later(reason)) => {
                        self.not_now(node, format!("slot {slot}: {reason}"))?;
                        return Ok(None);
                    }
                    None => return Err(self.stopped("DUMP", key, error)),
                }
            }
            if let Some(word) = words.get_mut(at) {
                *word = copy.clone();
            }
            copies.push(copy);
        }
        append_command(&mut commands, &words.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let remove: Vec<&[u8]> =
            std::iter::once(&b"UNLINK"[..]).chain(copies.iter().map(Vec::as_slice)).collect();
        append_command(&mut commands, &remove);
        Ok(Some(commands))
    }

    /// Reads a key beside the flights of its node.
    pub(super) async fn dump(&mut self, node: usize, db: u32, key: &[u8]) -> Result<Dumped, WriterError> {
        let mut questions = Questions::default();
        questions.select(db);
        let first = questions.push(&[b"DUMP", key]);
        questions.push(&[b"PEXPIRETIME", key]);
        questions.push(&[b"PTTL", key]);
        let mut told = self.ask_patiently(node, questions).await?.into_iter().skip(first);
        match (told.next(), told.next(), told.next()) {
            (Some(payload), Some(expire_at), Some(ttl)) => Ok(Dumped { payload, expire_at, ttl }),
            _ => Err(self.begin_again(Some(node), "answers are missing".into())),
        }
    }

    /// Runs commands of one slot in a transaction with the slot's checkpoint.
    async fn transact(
        &mut self,
        slot: u16,
        db: u32,
        commands: &[u8],
        count: usize,
        batch: &Batch,
        upto: super::Place,
    ) -> Result<Ran, WriterError> {
        let mut questions = Questions::default();
        questions.push(&[b"MULTI"]);
        questions.select(db);
        let first = questions.push_raw(commands, count) - 1;
        questions.select(0);
        let mut checkpoint = Vec::new();
        self.settings.signature.append_checkpoint(&mut checkpoint, slot, &batch.progress.replid, upto);
        questions.push_raw(&checkpoint, 1);
        questions.push(&[b"EXEC"]);
        let node = self.queues.owner(slot);
        Ok(match self.run_there(node, Some(slot), questions).await? {
            Ran::Done(results) => Ran::Done(results.into_iter().skip(first).collect()),
            other => other,
        })
    }

    /// Asks a node beside its flights, and waits for as long as it takes.
    pub(super) async fn ask_patiently(
        &mut self,
        node: usize,
        mut questions: Questions,
    ) -> Result<Vec<Reply>, WriterError> {
        questions.select(0);
        let connection = self.beside(node).await?;
        let told = exchange(connection, &questions.bytes, questions.answers).await;
        told.map_err(|error| self.begin_again(Some(node), error.to_string()))
    }

    /// Sends a transaction to a node and reads what came of it.
    async fn run_there(
        &mut self,
        node: usize,
        slot: Option<u16>,
        questions: Questions,
    ) -> Result<Ran, WriterError> {
        let mut replies = self.ask_patiently(node, questions).await?;
        match replies.pop() {
            Some(Reply::Array(results)) => return Ok(Ran::Done(results)),
            Some(last) => replies.push(last),
            None => {}
        }
        let errors: Vec<String> = replies
            .into_iter()
            .filter_map(|reply| if let Reply::Error(error) = reply { Some(error) } else { None })
            .collect();
        for error in &errors {
            match (obstacle(super::super::rules::cause_of_abort(error), CommandKind::Stream), slot) {
                (Some(Obstacle::Moved(address)), Some(slot)) => {
                    self.slot_moved(node, slot, &address)?;
                    return Ok(Ran::Again);
                }
                (Some(Obstacle::Moved(reason) | Obstacle::Later(reason)), _) => {
                    self.not_now(node, reason)?;
                    return Ok(Ran::Again);
                }
                (None, _) => {}
            }
        }
        Ok(Ran::Never(errors.into_iter().next().unwrap_or_else(|| "unexpected answer".into())))
    }

    /// Scripts and functions belong to no slot: every master gets them.
    async fn on_every_master(&mut self, batch: &Batch, index: usize, db: u32) -> Result<bool, WriterError> {
        let arguments = batch.arguments(index);
        let at = batch.commands.get(index).map_or(0, |sent| sent.at);
        let repeated = self.settings.repeated_until.is_some_and(|until| place_of(batch, at) < until);
        for node in 0..self.nodes.len() {
            let mut questions = Questions::default();
            questions.push_raw(batch.command_bytes(index), 1);
            let Some(Reply::Error(error)) = self.ask_patiently(node, questions).await?.pop() else {
                continue;
            };
            if let Some(Obstacle::Moved(reason) | Obstacle::Later(reason)) =
                obstacle(&error, CommandKind::Stream)
            {
                self.not_now(node, reason)?;
                return Ok(false);
            }
            if !repeated {
                self.set_aside(db, &arguments, batch.command_bytes(index), &error)?;
            }
        }
        Ok(true)
    }

    /// FLUSHALL, or FLUSHDB of the only database: every master is emptied; the marks are set again in the same step.
    async fn empty(&mut self, batch: &Batch, index: usize) -> Result<bool, WriterError> {
        let (_, progress) = self.rows.confirmed();
        let progress = progress.cloned();
        for node in 0..self.nodes.len() {
            let mut questions = Questions::default();
            questions.push(&[b"MULTI"]);
            questions.push_raw(batch.command_bytes(index), 1);
            let mark_slot = self.nodes.get(node).and_then(|node| node.mark_slot);
            if let (Some(slot), Some(progress)) = (mark_slot, &progress) {
                let mut mark = Vec::new();
                self.settings.signature.append_mark(&mut mark, slot, progress);
                questions.push_raw(&mark, 1);
            }
            questions.push(&[b"EXEC"]);
            match self.run_there(node, None, questions).await? {
                Ran::Done(results) => {
                    if let Some(Reply::Error(error)) =
                        results.iter().find(|result| matches!(result, Reply::Error(_)))
                    {
                        let error = error.clone();
                        return Err(self.stopped("FLUSHALL", b"", &error));
                    }
                }
                Ran::Again => return Ok(false),
                Ran::Never(error) => return Err(self.stopped("FLUSHALL", b"", &error)),
            }
        }
        self.applied.clear();
        let verb = escape(batch.arguments(index).first().copied().unwrap_or_default(), 20);
        let text = format!("{verb} of the source has emptied the destination");
        self.settings.events.reject(&self.node_name(), EventLevel::Warn, "FLUSHALL", "applied", &verb, &text);
        Ok(true)
    }

    fn stopped(&self, verb: &str, key: &[u8], error: &str) -> WriterError {
        WriterError::Refused {
            address: self.settings.shared.address.clone(),
            command: verb.into(),
            key: Some(escape(key, 60)),
            error: error.into(),
            cure: cure_of(error, self.user()),
        }
    }
}

/// How many commands these are.
fn count_of(mut bytes: &[u8]) -> usize {
    let (mut parser, mut count) = (CommandParser::default(), 0);
    while let Ok(Some(len)) = parser.advance(bytes) {
        bytes = bytes.get(len..).unwrap_or_default();
        count += 1;
        parser.reset();
    }
    count
}
