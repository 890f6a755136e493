//! Slots that are half-moved: their owner has handed some keys over already. A reshard that stopped there may stay so for good.
//!
//! The owner answers ASK for a key that it does not have: the key is where the slot goes, or nowhere yet. There it is asked for, with
//! ASKING before each command. What the owner has, it still serves itself; so each key has one place, and its commands keep their order.
//!
//! A transaction is served only where *all* its keys are, and the checkpoint of the slot is one of them; keys that do not exist yet
//! are missing everywhere (TRYAGAIN). So what the owner still has of them is brought over, as the reshard would have done it, and the
//! commands run in a script there: it is one step like a transaction, but its keys are asked for one by one. The checkpoint is set
//! first, so that whatever forbids a write (-OOM, -READONLY) ends the script before anything is done.
//!
//! Bringing over: written there, then removed here. After a crash in between the owner has the key, which counts, and the copy is
//! written over the next time. A reshard that runs must not meet such a copy (its MIGRATE would be refused), so a slot is given time
//! to arrive first.
//!
//! What is not brought over waits for the end of the move: commands on several keys, and values that are built in pieces.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::super::batch::CommandKind;
use super::super::writer::WriterError;
use super::flight::checkpoint_text;
use super::group::{Group, Questions};
use super::{ClusterWriter, STALL_LIMIT, slots};
use crate::command::{self, CrossSlot};
use crate::config::Address;
use crate::resp::{Reply, append_command};

/// How long a slot may be on its way before keys are brought over: a reshard moves most within a second.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// Words of one command in a script: Lua takes some 8,000.
const MAX_WORDS: usize = 4_000;
/// Sets the checkpoint, then runs commands, each with the number of its words before it. Returns what they answered.
const SCRIPT: &[u8] = b"redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
local results, at = {}, 3
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  results[#results + 1] = redis.pcall(unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
return results";

impl ClusterWriter {
    /// The replies to a group as the owner would have given them if it still had all keys. Where that cannot be: as they are.
    pub(super) async fn follow(
        &mut self,
        node: usize,
        group: &Group,
        replies: Vec<Reply>,
    ) -> Result<Vec<Reply>, WriterError> {
        if group.in_transaction() {
            let refused = |reply: &Reply| matches!(reply, Reply::Error(error) if error.starts_with("ASK ") || error.starts_with("TRYAGAIN"));
            if !replies.iter().any(refused) || !fits_into_script(group) {
                return Ok(replies);
            }
            let ran = self.run_over_there(node, group).await?;
            return Ok(ran.map_or(replies, |results| vec![Reply::Array(results)]));
        }
        let Some((address, indexes)) = asked_for(group, &replies) else { return Ok(replies) };
        let Some(there) = self.number_of(address).filter(|there| *there != node) else { return Ok(replies) };
        let mut questions = Questions::default();
        let mut places = Vec::new();
        for index in indexes {
            // Before ASKING, which holds for one command only.
            questions.select(group.database_of(index));
            questions.push(&[b"ASKING"]);
            places.push((index, questions.push_raw(group.command_bytes(index), 1)));
        }
        let told = self.ask(there, questions).await?;
        let mut replies = replies;
        for (index, place) in places {
            if let (Some(reply), Some(told)) = (replies.get_mut(index), told.get(place)) {
                *reply = told.clone();
            }
        }
        self.followed(node);
        Ok(replies)
    }

    /// Runs a group and sets its checkpoint where its slot goes. `None` = nothing ran, it is tried again later.
    async fn run_over_there(
        &mut self,
        node: usize,
        group: &Group,
    ) -> Result<Option<Vec<Reply>>, WriterError> {
        if self.half_moved.entry(group.slot).or_insert_with(Instant::now).elapsed() < ARRIVES_WITHIN {
            return Ok(None);
        }
        // The mark of a node must be lost together with its writes: it is never taken away from it.
        if self.nodes.get(node).is_some_and(|node| node.mark_slot == Some(group.slot)) {
            self.choose_mark_slot(node, Some(group.slot));
        }
        if self.listed.marks.contains(&group.slot) {
            return Ok(None);
        }
        let checkpoint = slots::checkpoint_key(&self.settings.signature.id, group.slot);
        let mut keys: Vec<(u32, Vec<u8>)> = vec![(0, checkpoint.clone())];
        for (index, db, _) in group.entries() {
            keys.extend(keys_of(&group.arguments(index)).into_iter().map(|key| (db, key.to_vec())));
        }
        keys.sort_unstable();
        keys.dedup();
        let mut questions = Questions::default();
        let mut places = Vec::new();
        for (db, key) in &keys {
            questions.select(*db);
            places.push(questions.push(&[b"EXISTS", key]));
        }
        let told = self.ask(node, questions).await?;
        let (mut there, mut here) = (None, Vec::new());
        for (key, place) in keys.iter().zip(places) {
            match told.get(place) {
                Some(Reply::Integer(1)) => here.push(key),
                Some(Reply::Error(error)) if error.starts_with("ASK ") => {
                    there = error.split(' ').nth(2).and_then(|address| self.number_of(address));
                }
                // The move has ended meanwhile.
                _ => return Ok(None),
            }
        }
        let Some(there) = there.filter(|there| *there != node) else { return Ok(None) };
        for (db, key) in here {
            if !self.bring(node, there, *db, key).await? {
                return Ok(None);
            }
        }
        let manifest = self.settings.source.spool.manifest();
        let Some(replid) = manifest.map(|manifest| manifest.replid) else { return Ok(None) };
        let progress = checkpoint_text(&replid, group.upto).into_bytes();
        let mut words: Vec<Vec<u8>> = [&b"EVAL"[..], SCRIPT, b"1", &checkpoint].map(<[u8]>::to_vec).to_vec();
        words.extend([self.settings.signature.source.clone().into_bytes(), progress]);
        for index in 0..group.commands.len() {
            let arguments = group.arguments(index);
            words.push(arguments.len().to_string().into_bytes());
            words.extend(arguments.into_iter().map(<[u8]>::to_vec));
        }
        let mut questions = Questions::default();
        questions.push(&[b"ASKING"]);
        questions.push(&words.iter().map(Vec::as_slice).collect::<Vec<_>>());
        match self.ask(there, questions).await?.pop() {
            Some(Reply::Array(mut results)) => {
                // As EXEC answers: the checkpoint comes last.
                results.push(Reply::Integer(0));
                self.followed(node);
                Ok(Some(results))
            }
            _ => Ok(None),
        }
    }

    /// Brings a key from the owner of its slot to the node that the slot goes to. False = not now.
    async fn bring(&mut self, from: usize, to: usize, db: u32, key: &[u8]) -> Result<bool, WriterError> {
        let dumped = self.dump(from, db, key).await?;
        let Some(restore) = dumped.restore(key) else {
            // Moved by the reshard itself; or it has ended.
            return Ok(dumped.error().is_some_and(|error| error.starts_with("ASK ")));
        };
        let mut questions = Questions::default();
        questions.select(db);
        questions.push(&[b"ASKING"]);
        let restored = questions.push_raw(&restore, 1);
        if !matches!(self.ask(to, questions).await?.get(restored), Some(Reply::Status(_))) {
            return Ok(false);
        }
        let mut questions = Questions::default();
        questions.select(db);
        let removed = questions.push(&[b"DEL", key]);
        Ok(match self.ask(from, questions).await?.get(removed) {
            // It may have ended, or be moved by the reshard itself.
            Some(Reply::Error(error)) => error.starts_with("ASK "),
            _ => true,
        })
    }

    /// Asks a node beside its flights. Waits as long as a node may be silent.
    pub(super) async fn ask(&mut self, node: usize, questions: Questions) -> Result<Vec<Reply>, WriterError> {
        let answers = questions.answers;
        match timeout(STALL_LIMIT, self.ask_patiently(node, questions)).await {
            Ok(Ok(mut replies)) => {
                replies.truncate(answers);
                Ok(replies)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let reason = format!("no answer for {} s", STALL_LIMIT.as_secs());
                Err(self.begin_again(Some(node), reason))
            }
        }
    }

    /// The node at an address as the cluster tells it.
    pub(super) fn number_of(&self, told: &str) -> Option<usize> {
        let at =
            |address: &str| self.nodes.iter().position(|node| node.endpoint.address.to_string() == address);
        at(told).or_else(|| {
            let address: Address = told.parse().ok()?;
            let map = &self.nodes.first()?.endpoint.address_map;
            at(&map.map(&address).to_string())
        })
    }

    fn followed(&self, node: usize) {
        if let Some(node) = self.nodes.get(node) {
            node.shared.redirects.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
}

/// The commands of a plain group that its owner asks to have done elsewhere, and where. `None` = there are none, or something
/// else is in the way too: then the group as a whole is tried again.
fn asked_for<'a>(group: &Group, replies: &'a [Reply]) -> Option<(&'a str, Vec<usize>)> {
    let (mut address, mut indexes, mut keys) = (None, Vec::new(), HashSet::new());
    for (index, reply) in replies.iter().enumerate().take(group.commands.len()) {
        let error = match reply {
            Reply::Error(error) => error.as_str(),
            _ => "",
        };
        if let Some(asked) = error.strip_prefix("ASK ") {
            let told = asked.split(' ').nth(1)?;
            if *address.get_or_insert(told) != told {
                return None;
            }
            indexes.push(index);
            keys.extend(keys_of(&group.arguments(index)).into_iter().map(<[u8]>::to_vec));
        } else if ["MOVED ", "TRYAGAIN", "CLUSTERDOWN"].iter().any(|code| error.starts_with(code)) {
            return None;
        } else if !keys.is_empty()
            && keys_of(&group.arguments(index)).into_iter().any(|key| keys.contains(key))
        {
            // It ran before what it must follow: the move was taken back meanwhile.
            return None;
        }
    }
    Some((address?, indexes))
}

/// Whether the commands of a group can run in a script: known ones of the stream, each on one key of its database.
fn fits_into_script(group: &Group) -> bool {
    group.upto.stream
        && group.entries().all(|(index, _, command)| {
            let arguments = group.arguments(index);
            let argument = |at: usize| arguments.get(at).copied();
            let known = arguments.first().and_then(|verb| command::find(verb));
            matches!(command.kind, CommandKind::Stream | CommandKind::Renew)
                && known.is_some_and(|known| {
                    !known.name.starts_with("EVAL")
                        && !known.name.starts_with("FCALL")
                        && command::other_database(known, arguments.len(), argument).is_none()
                })
                && arguments.len() <= MAX_WORDS
                && keys_of(&arguments).len() == 1
        })
}

/// The keys of a command, each once.
fn keys_of<'a>(arguments: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let argument = |at: usize| arguments.get(at).copied();
    let mut keys: Vec<&[u8]> = match arguments.first().and_then(|verb| command::find(verb)) {
        Some(known) => known.keys(arguments.len(), argument).filter_map(argument).collect(),
        None => argument(1).into_iter().collect(),
    };
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The group with its commands on several keys taken apart, where that does the same (in a transaction it is one step all the same): a
/// node that has only some of them refuses all.
pub(super) fn taken_apart(group: &Group) -> Group {
    let mut apart = Group::instead_of(group);
    for (index, db, command) in group.entries() {
        apart.select(db);
        let arguments = group.arguments(index);
        let known = arguments.first().and_then(|verb| command::find(verb));
        let pieces: Vec<Vec<&[u8]>> = match known {
            Some(known) if known.cross_slot == CrossSlot::Split && command.kind == CommandKind::Stream => {
                let step = if known.name == "MSET" { 2 } else { 1 };
                let keys = known.keys(arguments.len(), |at| arguments.get(at).copied());
                keys.filter_map(|at| Some([arguments.get(..1)?, arguments.get(at..at + step)?].concat()))
                    .collect()
            }
            _ => Vec::new(),
        };
        if pieces.len() < 2 {
            apart.push(command, |out| out.extend_from_slice(group.command_bytes(index)));
        }
        for piece in pieces.iter().filter(|_| pieces.len() > 1) {
            apart.push(command, |out| append_command(out, piece));
        }
    }
    apart.select(0);
    apart
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::super::group::tests::{group, words};
    use super::*;

    #[test]
    fn only_what_the_owner_asks_for_is_done_elsewhere() {
        let ok = || Reply::Status("OK".into());
        let error = |text: &str| Reply::Error(text.into());
        let ask = || error("ASK 7 b:1");
        let three = group(&[("SET a 1", false), ("SET b 1", false), ("SET c 1", false)]);
        assert_eq!(asked_for(&three, &[ok(), ask(), ask()]), Some(("b:1", vec![1, 2])));
        assert_eq!(asked_for(&three, &[ok(), ok(), ok()]), None);
        assert_eq!(asked_for(&three, &[ask(), error("TRYAGAIN x"), ask()]), None);
        assert_eq!(asked_for(&three, &[ask(), error("MOVED 7 b:1"), ask()]), None);
        assert_eq!(asked_for(&three, &[ask(), error("ASK 7 c:1"), ok()]), None);
        assert_eq!(asked_for(&three, &[ask(), error("WRONGTYPE x"), ok()]), Some(("b:1", vec![0])));
        // The second one ran though the first one did not: they must run in their order.
        let two = group(&[("SADD a 1", false), ("DEL a", false)]);
        assert_eq!(asked_for(&two, &[ask(), ok()]), None);
        assert_eq!(asked_for(&two, &[ok(), ask()]), Some(("b:1", vec![1])));
    }

    #[test]
    fn commands_on_several_keys_are_taken_apart_where_that_does_the_same() {
        let apart = taken_apart(&group(&[
            ("MSET a 1 b 2", false),
            ("SUNIONSTORE a b", false),
            ("DEL a b", false),
            ("SET c 3", false),
        ]));
        let expected = ["MSET a 1", "MSET b 2", "SUNIONSTORE a b", "DEL a", "DEL b", "SET c 3"];
        assert_eq!(words(&apart), expected);
        let whole = group(&[("DEL a b", false), ("INCR c", true)]);
        assert!(!fits_into_script(&whole) && fits_into_script(&taken_apart(&whole)));
        assert_eq!(words(&taken_apart(&whole)), ["DEL a", "DEL b", "INCR c"]);
    }

    #[test]
    fn scripts_take_known_commands_of_one_key() {
        assert!(fits_into_script(&group(&[("INCR a", true), ("SET b 1", false), ("DEL a a", false)])));
        for text in ["LMOVE a b LEFT LEFT", "EVAL x 1 a", "TAIR.SET a 1", "DEL a b"] {
            assert!(!fits_into_script(&group(&[("INCR a", true), (text, true)])), "{text}");
        }
        let long = format!("RPUSH a{}", " 1".repeat(MAX_WORDS));
        assert!(!fits_into_script(&group(&[(&long, true)])));
    }
}
