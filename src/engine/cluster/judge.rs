//! What becomes of a group once it is answered: done, sent elsewhere, sent later, or without a command that is refused for good.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::super::batch::CommandKind;
use super::super::clocks;
use super::super::net::NetError;
use super::super::rebuilt::{Plan, taken_away};
use super::super::rules::{Refusal, Rule, cure_of, refuses_payload, rule};
use super::super::whole::{Parts, Whole, tell_refused};
use super::super::writer::{WriterError, key_named, named_by, renewal_is_over};
use super::ask::taken_apart;
use super::flight::{Obstacle, Outcome, obstacle, outcome, size};
use super::group::{Group, Questions};
use super::{ClusterWriter, HOLD, slots};
use crate::config::{OnBadValue, OnExistingKey};
use crate::format::escape;
use crate::rdb::describe_type;
use crate::resp::Reply;
use crate::status::{EventLevel, WriterState};

impl ClusterWriter {
    /// Reads the replies to a group.
    pub(super) async fn judge(
        &mut self,
        node: usize,
        mut group: Box<Group>,
        replies: Vec<Reply>,
    ) -> Result<(), WriterError> {
        let taken = group.bytes.len();
        let again = |group: &mut Group, ran: Vec<usize>| {
            for index in ran {
                if let Some(command) = group.commands.get_mut(index) {
                    command.repeated = true;
                }
            }
        };
        let replies = self.follow(node, &group, replies).await?;
        let size = size(&group, &replies);
        let outcome = outcome(&group, replies);
        if let Some(shared) = self.nodes.get(node).map(|node| &node.shared) {
            match &outcome {
                Outcome::Moved(..) => _ = shared.redirects.fetch_add(1, Relaxed),
                Outcome::Later(reason, _) if reason.starts_with("ASK ") => {
                    _ = shared.redirects.fetch_add(1, Relaxed)
                }
                Outcome::Later(..) => _ = shared.retries.fetch_add(1, Relaxed),
                _ => {}
            }
        }
        match outcome {
            Outcome::Done(refusals) => {
                self.note_pieces(&group, &refusals);
                if let Some(size) = size {
                    self.tell_size(Ok(Some(size)));
                }
                let refused: usize =
                    refusals.iter().map(|(index, _)| group.command_bytes(*index).len()).sum();
                let ran = group.entries().count().saturating_sub(refusals.len());
                self.count_applied(node, ran, group.bytes.len().saturating_sub(refused));
                match self.judge_refusals(node, &group, refusals).await? {
                    None => self.is_done(group),
                    Some((rest, error)) => {
                        let (slot, later) = (rest.slot, Some(Instant::now() + HOLD));
                        self.queues.put_back(Box::new(rest), taken, later);
                        match obstacle(&error, CommandKind::Part) {
                            Some(Obstacle::Moved(address)) => self.slot_moved(node, slot, &address)?,
                            _ => self.not_now(node, format!("slot {slot}: {error}"))?,
                        }
                    }
                }
            }
            Outcome::Moved(address, ran) => {
                again(&mut group, ran);
                let slot = group.slot;
                self.slot_moved(node, slot, &address)?;
                let hold = (self.queues.owner(slot) == node).then(|| Instant::now() + HOLD);
                self.queues.put_back(group, taken, hold);
            }
            Outcome::Later(reason, ran) => {
                again(&mut group, ran);
                let slot = group.slot;
                if reason.starts_with("ASK ") || reason.starts_with("TRYAGAIN") {
                    *group = taken_apart(&group);
                }
                self.queues.put_back(group, taken, Some(Instant::now() + HOLD));
                self.not_now(node, format!("slot {slot}: {reason}"))?;
            }
            Outcome::Never(refused) => {
                let mut removed = Vec::new();
                for (index, error) in refused {
                    if removed.contains(&index) {
                        continue;
                    }
                    removed.push(index);
                    if group.commands.get(index).is_some_and(|command| command.kind.is_part()) {
                        let parts = group.parts(index);
                        // Nothing of this group has run, but it may have been built by those before it.
                        self.take_away(node, &group, index, &parts.built_before()).await?;
                        self.refuse_value(&group, index, &parts, &error)?;
                        removed.extend(parts.indexes);
                    } else {
                        self.refuse_for_good(&group, index, &error)?;
                    }
                }
                let rest = group.without(&removed);
                self.settle(group, rest);
            }
            Outcome::Stop(index, error, ran) => {
                if error.starts_with("NOPERM") && self.settings.source.entries_applied.load(Relaxed) > 0 {
                    // Taken away after the first entries: a state that passes.
                    again(&mut group, ran);
                    self.queues.put_back(group, taken, Some(Instant::now() + HOLD));
                    let cure = cure_of(&error, self.user());
                    return self.not_now(node, format!("{error}: {cure}"));
                }
                return Err(self.refused(&group, index, error));
            }
        }
        Ok(())
    }

    /// A group was answered; this is still to be done.
    fn settle(&mut self, group: Box<Group>, rest: Group) {
        if rest.commands.is_empty() {
            self.is_done(group);
        } else {
            self.queues.put_back(Box::new(rest), group.bytes.len(), None);
        }
    }

    /// A group has run as it should.
    pub(super) fn is_done(&mut self, group: Box<Group>) {
        group.rows.iter().for_each(|row| self.rows.done(*row));
        self.queues.done(group);
    }

    /// The slot is served by another node now.
    pub(super) fn slot_moved(&mut self, from: usize, slot: u16, address: &str) -> Result<(), WriterError> {
        let Some(to) = self.number_of(address) else {
            let reason = format!("slot {slot} is served by {address} now, which was not known");
            return Err(self.begin_again(Some(from), reason));
        };
        self.queues.set_owner(slot, to);
        self.half_moved.remove(&slot);
        [from, to].into_iter().for_each(|node| self.show_slots(node));
        if self.nodes.get(to).is_some_and(|node| node.mark_slot.is_none()) {
            self.choose_mark_slot(to, None);
        }
        if self.nodes.get(from).is_some_and(|node| node.mark_slot == Some(slot)) && from != to {
            self.choose_mark_slot(from, None);
        }
        Ok(())
    }

    /// The destination refuses for now: shown, and tried again soon.
    pub(super) fn not_now(&mut self, node: usize, reason: String) -> Result<(), WriterError> {
        // A node without its cluster says so for ever: the others are asked who serves its slots, and waited for where they do not know.
        if ["READONLY", "MASTERDOWN", "CLUSTERDOWN"].iter().any(|code| reason.contains(code)) {
            return Err(self.begin_again(Some(node), reason));
        }
        let name = self.nodes.get(node).map(|node| node.endpoint.address.to_string()).unwrap_or_default();
        let kind =
            reason.split(": ").nth(1).unwrap_or(&reason).split(' ').next().unwrap_or_default().to_owned();
        let text = format!("{name}: waiting, nothing is lost: {reason}");
        // Once by kind: a thousand slots may be on the move.
        self.settings.events.reject(&self.node_name(), EventLevel::Warn, &kind, "sent again", &reason, &text);
        if let Some(node) = self.nodes.get(node) {
            node.shared.enter(WriterState::Waiting, Some(reason));
        }
        Ok(())
    }

    /// The group ran; some of its commands were not done. Returns what must be sent again later, and why.
    async fn judge_refusals(
        &mut self,
        node: usize,
        group: &Group,
        refusals: Vec<(usize, Refusal)>,
    ) -> Result<Option<(Group, String)>, WriterError> {
        let mut later = Vec::new();
        let refused: Vec<usize> = refusals.iter().map(|(index, _)| *index).collect();
        let mut undone = BTreeSet::new();
        // All of them before anything ends the run: a later start must not take them for ours.
        for (index, _) in refusals.iter().filter(|(_, refusal)| refusal.key_exists()) {
            let Some(command) = group.commands.get(*index).copied() else { continue };
            if command.kind != CommandKind::Stream && (!command.repeated || command.once) {
                let key = group.arguments(*index).get(named_by(command.kind)).copied().unwrap_or_default();
                self.settings.source.found_foreign(group.database_of(*index), key);
            }
        }
        for (index, refusal) in refusals {
            let Some(command) = group.commands.get(index).copied() else { continue };
            let kind = command.kind;
            // Replay waits for the answer to a count, whatever it is.
            let awaited = kind == CommandKind::Count;
            let arguments = group.arguments(index);
            if command.repeated && !command.once && !awaited && only_repeated(&refusal) {
                self.tell_repeated(&arguments, named_by(kind), &refusal);
                continue;
            }
            if refusal == Refusal::KeyMissing && renewal_is_over(&arguments, self.settings.source.now_ms()) {
                continue;
            }
            if let Refusal::Error(error) = &refusal
                && let Some(at) = kind.ended_from(error)
                && at <= self.now_there(node).await?
            {
                continue;
            }
            let verb = escape(arguments.first().copied().unwrap_or_default(), 20);
            let raw_key = arguments.get(named_by(kind)).copied().unwrap_or_default();
            let key = escape(raw_key, 60);
            self.settings.shared.errors.fetch_add(1, Relaxed);
            self.settings.source.errors.fetch_add(1, Relaxed);
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
                    self.settings.events.reject(
                        &self.node_name(),
                        EventLevel::Warn,
                        "BUSYKEY",
                        "skip",
                        &key,
                        &text,
                    );
                }
                Refusal::KeyExists => {
                    let error = "BUSYKEY Target key name already exists.".to_owned();
                    return Err(self.refused(group, Some(index), error));
                }
                Refusal::KeyMissing => {
                    let text = format!(
                        "key '{key}' had ended on the destination (or was removed there) before {verb} arrived, which renews it on \
                         the source: it is missing here. Mostly the lag was longer than its time to live: compare both sides and \
                         copy such keys again. Further ones are only counted"
                    );
                    self.settings.events.report(
                        &self.node_name(),
                        "EXPIRED TOO EARLY",
                        "compare and copy again",
                        &key,
                        &text,
                    );
                }
                Refusal::Error(error) if kind.is_part() => {
                    if !undone.contains(&index) {
                        let parts = group.parts(index);
                        self.take_away(node, group, index, &parts.standing(&refused)).await?;
                        let gone = parts.rename == Some(index) && error.contains("no such key");
                        let error = if gone { taken_away(&error) } else { error };
                        self.refuse_value(group, index, &parts, &error)?;
                        undone.extend(parts.indexes);
                    }
                }
                Refusal::Error(error) if kind.restores() && refuses_payload(&error) => {
                    if let Err(second) = self.rebuild(node, group, index, &error).await? {
                        if obstacle(&second, CommandKind::Part).is_some() {
                            later.push((command.at, second));
                            continue;
                        }
                        if rule(&second, CommandKind::Rebuild, OnBadValue::Quarantine).0 == Rule::Stop {
                            return Err(self.refused(group, Some(index), second));
                        }
                        self.refuse_for_good(group, index, &format!("{error}; and by commands: {second}"))?;
                    }
                }
                Refusal::Error(error) => self.refuse_for_good(group, index, &error)?,
            }
        }
        let Some((_, error)) = later.first().cloned() else { return Ok(None) };
        let again = |at: u64| later.iter().any(|(of, _)| *of == at);
        let done = group.entries().filter(|(.., command)| !again(command.at)).map(|(index, ..)| index);
        Ok(Some((group.without(&done.collect::<Vec<_>>()), error)))
    }

    /// A command was refused that may have been applied before: what stands behind it in its slot had come already, and comes again. A refusal for
    /// another reason (a key of somebody else with the same name) looks the same, so it is not silent.
    fn tell_repeated(&self, arguments: &[&[u8]], named_by: usize, refusal: &Refusal) {
        let Refusal::Error(error) = refusal else { return };
        let verb = escape(arguments.first().copied().unwrap_or_default(), 20);
        let key = escape(arguments.get(named_by).copied().unwrap_or_default(), 60);
        let text = format!(
            "{verb} '{key}' was refused ({}) after applying had begun again: it was applied before, and what had followed it stands there. \
             If others write keys of these names to the destination, compare both sides",
            escape(error.as_bytes(), 100)
        );
        let (events, node) = (&self.settings.events, self.node_name());
        events.reject(&node, EventLevel::Info, "REPEATED", "applied before", &key, &text);
    }

    /// Rebuilds the value of a RESTORE that was refused, in its slot. The inner error says why that is impossible, too, or impossible now.
    async fn rebuild(
        &mut self,
        node: usize,
        group: &Group,
        index: usize,
        refused: &str,
    ) -> Result<Result<(), String>, WriterError> {
        let (arguments, next) = (group.arguments(index), group.arguments(index + 1));
        let aside = slots::rebuilding_key(&self.settings.signature.id, group.slot);
        let (db, target) = (group.database_of(index), self.settings.acceptance.target());
        let plan = match Plan::new(db, &arguments, &next, &aside, target) {
            Ok(plan) => plan,
            Err(error) => return Ok(Err(error)),
        };
        let connection = self.beside(node).await?;
        let built = async {
            let built = plan.build(connection, false).await?;
            connection.request(&[b"SELECT", b"0"]).await?;
            Ok::<_, NetError>(built)
        };
        let loss = match built.await {
            Ok(Ok(loss)) => loss,
            Ok(Err(error)) => return Ok(Err(error)),
            Err(error) => return Err(self.begin_again(Some(node), error.to_string())),
        };
        let (key, payload) = (plan.key, &plan.payload);
        let shown = escape(key, 60);
        let what = describe_type(payload.type_byte, payload.dialect);
        let without = loss.describe().map_or(String::new(), |words| format!(", without {words}"));
        let text = format!(
            "key '{shown}': RESTORE of {what} was refused ({refused}); it was rebuilt by commands{without}"
        );
        let (events, node) = (&self.settings.events, self.node_name());
        events.reject(&node, EventLevel::Warn, "RESTORE REFUSED", "rebuilt by commands", &shown, &text);
        if self.settings.acceptance.note_refusal(payload.type_byte) {
            let text = format!(
                "RESTORE of {what} has been refused several times; from now on such values go by commands"
            );
            events.warn(&node, text);
        }
        Ok(Ok(()))
    }

    /// Replay hears of refused pieces before it hears the size of what they made.
    fn note_pieces(&self, group: &Group, refusals: &[(usize, Refusal)]) {
        for (index, refusal) in refusals {
            let piece = group.commands.get(*index).is_some_and(|command| command.kind == CommandKind::Piece);
            if let (true, Refusal::Error(error)) = (piece, refusal) {
                self.refuse_piece(group, *index, error);
            }
        }
    }

    fn refuse_piece(&self, group: &Group, index: usize, error: &str) {
        self.settings.source.refuse_piece(format!("{} was refused: {error}", group.verb(index)));
    }

    /// Now by the clock of a node (Unix ms).
    async fn now_there(&mut self, node: usize) -> Result<i64, WriterError> {
        let connection = self.beside(node).await?;
        let now = clocks::now_ms(connection).await;
        now.map_err(|error| self.begin_again(Some(node), error.to_string()))
    }

    /// Removes what stands of a value that command `index` was a part of.
    async fn take_away(
        &mut self,
        node: usize,
        group: &Group,
        index: usize,
        keys: &[&[u8]],
    ) -> Result<(), WriterError> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut questions = Questions::default();
        questions.select(group.database_of(index));
        let unlink = self.settings.acceptance.target().unlink();
        let removed = questions.push(&[&[unlink], keys].concat());
        match self.ask(node, questions).await?.get(removed) {
            // The slot has moved, or the node takes no writes now: the value comes again.
            Some(Reply::Error(error)) => Err(self.begin_again(Some(node), error.clone())),
            _ => Ok(()),
        }
    }

    /// Sets a value aside, or ends the run, as the rule says. Nothing of it stands on the destination.
    fn refuse_value(
        &self,
        group: &Group,
        index: usize,
        parts: &Parts,
        error: &str,
    ) -> Result<(), WriterError> {
        let Some(command) = group.commands.get(index) else { return Ok(()) };
        let settings = &self.settings;
        if rule(error, command.kind, settings.on_bad_value).0 == Rule::Stop {
            return Err(self.refused(group, Some(index), error.to_owned()));
        }
        let (entry, target) = ((group.upto.generation, command.at), settings.acceptance.target());
        let whole = Whole::read_for_writer(&settings.source, entry, target, error, &settings.shared.address)?;
        let (db, source) = (group.database_of(index), &settings.source.address);
        settings.quarantine.add(source, db, &parts.key, &whole.reason, &whole.command)?;
        let (events, path) = (&settings.events, settings.quarantine.path());
        tell_refused(events, &self.node_name(), &parts.key, &group.verb(index), error, path);
        Ok(())
    }

    /// Sets a command aside, or ends the run, as the rule says.
    fn refuse_for_good(&mut self, group: &Group, index: usize, error: &str) -> Result<(), WriterError> {
        let kind = group.commands.get(index).map_or(CommandKind::Select, |command| command.kind);
        let (arguments, db) = (group.arguments(index), group.database_of(index));
        let key = arguments.get(named_by(kind)).copied().unwrap_or_default();
        match rule(error, kind, self.settings.on_bad_value).0 {
            // At run time a state that passes cannot be waited for any more: the rest is applied already.
            Rule::Wait | Rule::Quarantine if kind == CommandKind::Piece => {
                self.refuse_piece(group, index, error);
                Ok(())
            }
            Rule::Wait | Rule::Quarantine if kind == CommandKind::Count => {
                // Replay sets the value aside.
                self.tell_size(Err(error.to_owned()));
                Ok(())
            }
            Rule::Wait | Rule::Quarantine => {
                self.set_key_aside(db, key, &arguments, group.command_bytes(index), error)
            }
            Rule::Stop => {
                if kind == CommandKind::Stream {
                    self.set_key_aside(db, key, &arguments, group.command_bytes(index), error)?;
                }
                Err(self.refused(group, Some(index), error.to_owned()))
            }
        }
    }

    /// Sets a command aside that begins with its key.
    pub(super) fn set_aside(
        &mut self,
        db: u32,
        arguments: &[&[u8]],
        raw: &[u8],
        reason: &str,
    ) -> Result<(), WriterError> {
        let key = arguments.get(1).copied().unwrap_or_default();
        self.set_key_aside(db, key, arguments, raw, reason)
    }

    fn set_key_aside(
        &self,
        db: u32,
        key: &[u8],
        arguments: &[&[u8]],
        raw: &[u8],
        reason: &str,
    ) -> Result<(), WriterError> {
        let settings = &self.settings;
        settings.quarantine.add(&settings.source.address, db, key, reason, raw)?;
        let (verb, shown) = (escape(arguments.first().copied().unwrap_or_default(), 20), escape(key, 60));
        let kind = reason.split(' ').next().filter(|word| word.chars().all(|c| c.is_ascii_uppercase()));
        let text = format!(
            "{verb} '{shown}' -> {} (set aside in {})",
            escape(reason.as_bytes(), 200),
            settings.quarantine.path().display()
        );
        let kind = kind.unwrap_or("NOT FOR A CLUSTER");
        settings.events.reject(&self.node_name(), EventLevel::Error, kind, "quarantine", &shown, &text);
        Ok(())
    }

    fn refused(&self, group: &Group, index: Option<usize>, error: String) -> WriterError {
        let arguments = index.map(|index| group.arguments(index)).unwrap_or_default();
        let kind = index.and_then(|index| group.commands.get(index)).map(|command| command.kind);
        let part = index.filter(|_| kind.is_some_and(CommandKind::is_part));
        let part = part.map(|index| escape(&group.parts(index).key, 60));
        let verb = arguments.first().copied().unwrap_or(b"a transaction");
        let (_, cure) = rule(&error, CommandKind::Restore, OnBadValue::Stop);
        WriterError::Refused {
            address: self.settings.shared.address.clone(),
            command: String::from_utf8_lossy(verb).into_owned(),
            key: part.or_else(|| key_named(kind.unwrap_or(CommandKind::Select), &arguments)),
            cure: cure.replace("<user>", self.user()),
            error,
        }
    }

    /// Who we are on the nodes.
    pub(super) fn user(&self) -> &str {
        self.nodes.first().map_or("default", |node| node.endpoint.user())
    }
}

/// Whether this can come from a second application alone: what follows the command in its slot puts it right.
fn only_repeated(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::KeyExists | Refusal::KeyMissing => true,
        Refusal::Error(error) => ["WRONGTYPE", "BUSYKEY", "BUSYGROUP", "ERR no such key"]
            .iter()
            .any(|code| error.starts_with(code)),
    }
}
