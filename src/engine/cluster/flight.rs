//! What is sent to one node at a time, and what its answers mean.
//!
//! ```text
//!  group without transaction   SET a 1   DEL b
//!  group with                  MULTI   INCR c   SET c2 5   HSET <checkpoint of the slot> <source> <place>   EXEC
//!  at the end                  HSET <mark of the node> mark:<source> <place>
//! ```

use std::fmt::Write;

use tokio::io::AsyncWriteExt;

use super::super::batch::{CommandKind, Place, Position, Progress};
use super::super::net::{Connection, NetError};
use super::super::rules::{Refusal, Rule, cause_of_abort, rule};
use super::group::{Command, Group};
use super::slots::checkpoint_key;
use crate::config::OnBadValue;
use crate::psync::Replid;
use crate::resp::{Reply, append_command};

/// Whose checkpoints are set.
#[derive(Debug, Clone)]
pub struct Signature {
    /// Names the line among all that ever write to the destination.
    pub id: String,
    /// Name of the source.
    pub source: String,
}

impl Signature {
    /// Field of the node's mark.
    pub fn mark_field(&self) -> String {
        format!("mark:{}", self.source)
    }

    /// Name of its connections.
    pub fn client_name(&self) -> String {
        let source: String =
            self.source.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
        format!("shakedeck:{}:{source}", self.id)
    }

    /// Appends the command that sets a slot's checkpoint: a place in the stream.
    pub fn append_checkpoint(&self, out: &mut Vec<u8>, slot: u16, replid: &Replid, upto: Place) {
        let text = checkpoint_text(replid, upto);
        let key = checkpoint_key(&self.id, slot);
        append_command(out, &[b"HSET", &key, self.source.as_bytes(), text.as_bytes()]);
    }

    /// Appends the command that sets a node's mark, which lies in `slot`.
    pub fn append_mark(&self, out: &mut Vec<u8>, slot: u16, progress: &Progress) {
        let key = checkpoint_key(&self.id, slot);
        append_command(out, &[b"HSET", &key, self.mark_field().as_bytes(), progress.to_string().as_bytes()]);
    }
}

/// What a slot's checkpoint says: a place in the stream.
pub fn checkpoint_text(replid: &Replid, upto: Place) -> String {
    let at = Position::Stream { offset: upto.at, db: 0 };
    let progress = Progress { replid: replid.clone(), generation: upto.generation, at };
    let mut text = String::with_capacity(128);
    // Writing to a String cannot fail.
    let _ = write!(text, "{progress}");
    text
}

/// Appends a group; returns how many replies will come.
pub fn append_group(out: &mut Vec<u8>, group: &Group, signature: &Signature, replid: &Replid) -> usize {
    if !group.in_transaction() {
        out.extend_from_slice(&group.bytes);
        return group.commands.len();
    }
    append_command(out, &[b"MULTI"]);
    out.extend_from_slice(&group.bytes);
    if group.upto.stream {
        signature.append_checkpoint(out, group.slot, replid, group.upto);
    }
    append_command(out, &[b"EXEC"]);
    // A value of the RDB is built from its removal on: it can be brought twice, and must be, where an answer tells that it was
    // refused and a crash comes before anything was done about it.
    group.commands.len() + if group.upto.stream { 3 } else { 2 }
}

/// Sends bytes and waits for as many replies, however long that takes.
pub async fn exchange(
    connection: &mut Connection,
    bytes: &[u8],
    replies: usize,
) -> Result<Vec<Reply>, NetError> {
    connection.io.write_all(bytes).await.map_err(|cause| connection.lost("the pipeline", cause))?;
    connection.io.flush().await.map_err(|cause| connection.lost("the pipeline", cause))?;
    let mut all = Vec::with_capacity(replies);
    for _ in 0..replies {
        all.push(connection.read_reply("the pipeline").await?);
    }
    Ok(all)
}

/// Whether every answer says that its command was done, and none was asked for its size: nothing is left to be judged.
pub fn went_well(group: &Group, replies: &[Reply]) -> bool {
    let results = match replies.last() {
        Some(Reply::Array(results)) if group.in_transaction() => results.as_slice(),
        _ if group.in_transaction() => return false,
        _ => replies,
    };
    let well = |(command, reply): (&Command, &Reply)| {
        command.kind != CommandKind::Count && refusal(command.kind, reply).is_none()
    };
    results.len() >= group.commands.len()
        && group.commands.iter().zip(results).all(well)
        && !matches!(results.last(), Some(Reply::Error(_)))
}

/// What became of a group.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran; these answers (index of the command) say "not done".
    Done(Vec<(usize, Refusal)>),
    /// The slot has moved to this address. Commands of the group that ran.
    Moved(String, Vec<usize>),
    /// Not now: why, with the cure. Commands of the group that ran.
    Later(String, Vec<usize>),
    /// Nothing ran, and these commands never will.
    Never(Vec<(usize, String)>),
    /// Going on would do harm: the command, if it is one, and the error. Commands of the group that ran.
    Stop(Option<usize>, String, Vec<usize>),
}

/// What an error means for the whole group.
pub enum Obstacle {
    /// The slot is at this address.
    Moved(String),
    /// It passes: why, with the cure.
    Later(String),
}

pub fn obstacle(error: &str, kind: CommandKind) -> Option<Obstacle> {
    if let Some(moved) = error.strip_prefix("MOVED ") {
        return Some(Obstacle::Moved(moved.split(' ').nth(1).unwrap_or_default().to_owned()));
    }
    let (rule, cure) = rule(error, kind, OnBadValue::Quarantine);
    (rule == Rule::Wait).then(|| Obstacle::Later(format!("{error}: {cure}")))
}

/// Reads the replies to a group.
pub fn outcome(group: &Group, replies: Vec<Reply>) -> Outcome {
    if group.in_transaction() { of_transaction(group, replies) } else { of_plain(group, &replies) }
}

/// The answer to [`CommandKind::Count`], if the group holds one. It counts only if the group is done: what is sent again is
/// answered again.
pub fn size(group: &Group, replies: &[Reply]) -> Option<u64> {
    let at = group.commands.iter().position(|command| command.kind == CommandKind::Count)?;
    let results = match replies.last() {
        Some(Reply::Array(results)) if group.in_transaction() => results.as_slice(),
        _ if group.in_transaction() => return None,
        _ => replies,
    };
    match results.get(at) {
        Some(Reply::Integer(size)) => u64::try_from(*size).ok(),
        _ => None,
    }
}

fn of_plain(group: &Group, replies: &[Reply]) -> Outcome {
    let (mut refusals, mut ran, mut blocked, mut denied) = (Vec::new(), Vec::new(), None, None);
    for (index, (command, reply)) in group.commands.iter().zip(replies).enumerate() {
        if let Some(error) = denial(reply) {
            denied.get_or_insert((index, error));
            continue;
        }
        let found = match reply {
            Reply::Error(error) => obstacle(error, command.kind),
            _ => None,
        };
        match found {
            // Where it has moved says more than that it is on its way.
            Some(found @ Obstacle::Moved(_)) => blocked = Some(found),
            Some(found) => _ = blocked.get_or_insert(found),
            None => {
                ran.push(index);
                refusals.extend(refusal(command.kind, reply).map(|refusal| (index, refusal)));
            }
        }
    }
    match blocked {
        Some(Obstacle::Moved(address)) => Outcome::Moved(address, ran),
        Some(Obstacle::Later(reason)) => Outcome::Later(reason, ran),
        None => match denied {
            Some((index, error)) => Outcome::Stop(Some(index), error, ran),
            None => Outcome::Done(refusals),
        },
    }
}

/// A right is missing. Rights come before everything else: the command did not run.
fn denial(reply: &Reply) -> Option<String> {
    match reply {
        Reply::Error(error) if error.starts_with("NOPERM") => Some(error.clone()),
        _ => None,
    }
}

fn of_transaction(group: &Group, mut replies: Vec<Reply>) -> Outcome {
    let Some(executed) = replies.pop() else { return Outcome::Later("no answer".into(), Vec::new()) };
    let kind_of =
        |index: usize| group.commands.get(index).map_or(CommandKind::Select, |command| command.kind);
    let abort = match executed {
        Reply::Array(results) => {
            if let Some(Reply::Error(error)) = results.get(group.commands.len()) {
                return Outcome::Stop(None, error.clone(), Vec::new());
            }
            let refusals = results.iter().enumerate().take(group.commands.len());
            return Outcome::Done(
                refusals
                    .filter_map(|(index, reply)| Some((index, refusal(kind_of(index), reply)?)))
                    .collect(),
            );
        }
        Reply::Error(error) => cause_of_abort(&error).to_owned(),
        other => return Outcome::Stop(None, format!("unexpected answer to EXEC: {other:?}"), Vec::new()),
    };
    // Replies to MULTI, the commands and the checkpoint.
    let (mut never, mut later) = (Vec::new(), None);
    for (wire_index, reply) in replies.iter().enumerate() {
        let Reply::Error(error) = reply else { continue };
        let index = wire_index.checked_sub(1).filter(|index| *index < group.commands.len());
        match (obstacle(error, index.map_or(CommandKind::Select, kind_of)), index) {
            (Some(Obstacle::Moved(address)), _) => return Outcome::Moved(address, Vec::new()),
            (Some(Obstacle::Later(reason)), _) => _ = later.get_or_insert(reason),
            (None, Some(index)) if denial(reply).is_none() => never.push((index, error.clone())),
            (None, index) => return Outcome::Stop(index, error.clone(), Vec::new()),
        }
    }
    if let Some(reason) = later {
        return Outcome::Later(reason, Vec::new());
    }
    if !never.is_empty() {
        return Outcome::Never(never);
    }
    match obstacle(&abort, CommandKind::Stream) {
        Some(Obstacle::Moved(address)) => Outcome::Moved(address, Vec::new()),
        Some(Obstacle::Later(reason)) => Outcome::Later(reason, Vec::new()),
        None => Outcome::Stop(None, abort, Vec::new()),
    }
}

fn refusal(kind: CommandKind, reply: &Reply) -> Option<Refusal> {
    match (reply, kind) {
        (Reply::Error(error), _) => Some(Refusal::Error(error.clone())),
        (Reply::Integer(0), CommandKind::SetIfNone | CommandKind::Rename { .. })
        | (Reply::Null, CommandKind::SetIfMissing) => Some(Refusal::KeyExists),
        (Reply::Integer(0), CommandKind::Renew) => Some(Refusal::KeyMissing),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::super::group::tests::{group, of_stream};
    use super::*;

    fn ok() -> Reply {
        Reply::Status("OK".into())
    }

    fn error(text: &str) -> Reply {
        Reply::Error(text.into())
    }

    #[test]
    fn only_groups_that_need_it_become_transactions() {
        let signature = Signature { id: "r".into(), source: "s:1".into() };
        let replid = Replid::parse(&"0f".repeat(20)).unwrap();
        let mut bytes = Vec::new();
        assert_eq!(
            append_group(&mut bytes, &group(&[("SET a 1", false), ("DEL a", false)]), &signature, &replid),
            2
        );
        assert!(!String::from_utf8_lossy(&bytes).contains("MULTI"));
        bytes.clear();
        assert_eq!(
            append_group(&mut bytes, &group(&[("SET a 1", false), ("INCR a", true)]), &signature, &replid),
            5
        );
        let text = String::from_utf8(bytes).unwrap();
        let order =
            ["MULTI", "SET", "INCR", "HSET", "stream 55 0 2", "EXEC"].map(|word| text.find(word).unwrap());
        assert!(order.is_sorted(), "{text}");
    }

    #[test]
    fn only_what_leaves_no_question_went_well() {
        let plain = group(&[("SET a 1", false), ("SADD b 1", false)]);
        assert!(went_well(&plain, &[ok(), Reply::Integer(0)]));
        for replies in [vec![ok()], vec![ok(), error("MOVED 7 a:1")], vec![error("WRONGTYPE x"), ok()]] {
            assert!(!went_well(&plain, &replies), "{replies:?}");
        }
        let mut other = group(&[("SET a 1", false)]);
        other.push(Command { kind: CommandKind::Renew, ..of_stream(false) }, |out| {
            append_command(out, &[b"PERSIST", b"b"])
        });
        assert!(
            went_well(&other, &[ok(), Reply::Integer(1)]) && !went_well(&other, &[ok(), Reply::Integer(0)])
        );
        other.push(Command { kind: CommandKind::Count, ..of_stream(false) }, |out| {
            append_command(out, &[b"SCARD", b"b"])
        });
        assert!(!went_well(&other, &[ok(), Reply::Integer(1), Reply::Integer(1)]));
        let once = group(&[("INCR a", true)]);
        let queued = || Reply::Status("QUEUED".into());
        let with = |last: Reply| vec![ok(), queued(), queued(), last];
        let (one, wrong) = (Reply::Integer(1), error("WRONGTYPE x"));
        assert!(went_well(&once, &with(Reply::Array(vec![one.clone(), one.clone()]))));
        for last in [
            Reply::Array(vec![one.clone(), wrong.clone()]),
            Reply::Array(vec![wrong, one]),
            error("EXECABORT x"),
            Reply::Null,
        ] {
            assert!(!went_well(&once, &with(last.clone())), "{last:?}");
        }
    }

    #[test]
    fn answers_to_plain_groups() {
        let two = group(&[("SET a 1", false), ("SADD b 1", false)]);
        assert_eq!(outcome(&two, vec![ok(), ok()]), Outcome::Done(Vec::new()));
        let wrong = "WRONGTYPE Operation against a key holding the wrong kind of value";
        assert_eq!(
            outcome(&two, vec![ok(), error(wrong)]),
            Outcome::Done(vec![(1, Refusal::Error(wrong.into()))])
        );
        assert_eq!(
            outcome(&two, vec![ok(), error("MOVED 7 127.0.0.1:7002")]),
            Outcome::Moved("127.0.0.1:7002".into(), vec![0])
        );
        let Outcome::Later(reason, ran) = outcome(&two, vec![error("OOM command not allowed"), ok()]) else {
            panic!("it must be sent again");
        };
        assert!(reason.contains("maxmemory") && ran == [1], "{reason}");
    }

    #[test]
    fn a_size_is_found_among_the_answers() {
        let mut counting = group(&[("SET a 1", false)]);
        counting.push(Command { kind: CommandKind::Count, ..of_stream(false) }, |out| {
            append_command(out, &[b"SCARD", b"b"])
        });
        assert_eq!(size(&counting, &[Reply::Integer(9), Reply::Integer(5)]), Some(5));
        assert_eq!(size(&counting, &[ok(), error("WRONGTYPE x")]), None);
        assert_eq!(size(&group(&[("SET a 1", false)]), &[Reply::Integer(9)]), None);
        let mut built = group(&[("SADD b 1", true)]);
        built.push(Command { kind: CommandKind::Count, ..of_stream(false) }, |out| {
            append_command(out, &[b"SCARD", b"b"])
        });
        let queued = || Reply::Status("QUEUED".into());
        let ran = Reply::Array(vec![Reply::Integer(1), Reply::Integer(7)]);
        assert_eq!(size(&built, &[ok(), queued(), queued(), ran]), Some(7));
        assert_eq!(size(&built, &[ok(), queued(), queued(), error("EXECABORT x")]), None);
    }

    #[test]
    fn answers_to_transactions() {
        let two = group(&[("SET a 1", true), ("INCR b", true)]);
        let queued = || Reply::Status("QUEUED".into());
        let head = || vec![ok(), queued(), queued(), queued()];
        let with = |reply: Reply| [head(), vec![reply]].concat();
        let ran = Reply::Array(vec![ok(), error("ERR no"), Reply::Integer(1)]);
        assert_eq!(outcome(&two, with(ran)), Outcome::Done(vec![(1, Refusal::Error("ERR no".into()))]));
        let checkpoint_failed = Reply::Array(vec![ok(), ok(), error("WRONGTYPE x")]);
        assert_eq!(
            outcome(&two, with(checkpoint_failed)),
            Outcome::Stop(None, "WRONGTYPE x".into(), Vec::new())
        );
        // Rights may be given back: what ran meanwhile is told.
        let denied = "NOPERM User w has no permissions to run the 'del' command";
        let plain = group(&[("DEL a", false), ("SET a 1", false)]);
        let stop = |ran| Outcome::Stop(Some(0), denied.into(), ran);
        assert_eq!(outcome(&plain, vec![error(denied), ok()]), stop(vec![1]));
        let aborted = error("EXECABORT Transaction discarded because of previous errors.");
        assert_eq!(outcome(&two, vec![ok(), error(denied), ok(), ok(), aborted]), stop(Vec::new()));
        assert!(matches!(outcome(&two, with(error("TRYAGAIN x"))), Outcome::Later(..)));
        assert_eq!(outcome(&two, with(error("MOVED 7 a:1"))), Outcome::Moved("a:1".into(), Vec::new()));
        let mut replies = with(error("EXECABORT Transaction discarded because of previous errors."));
        replies[2] = error("ERR unknown command 'X'");
        assert_eq!(
            outcome(&two, replies.clone()),
            Outcome::Never(vec![(1, "ERR unknown command 'X'".into())])
        );
        replies[1] = error("ASK 7 a:1");
        assert!(matches!(outcome(&two, replies), Outcome::Later(..)));
    }
}
