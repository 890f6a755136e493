//! `off_reply = true`: the destination is told not to answer the commands of the stream (CLIENT REPLY OFF).
//!
//! ```text
//!  REPLY OFF  MULTI SELECT … HSET checkpoint  EXEC  REPLY ON  HGET checkpoint  WATCH
//!                                                   +OK       "what has run"   +OK
//! ```
//!
//! Whether a batch has run is still asked for, with one short question behind it. So the order of batches, the checkpoint and the
//! spool stay exact, also over lost links. What is lost are the answers to single commands: a command that the destination
//! refuses when it runs is gone, and nobody sees it. Therefore nothing is ever called READY.
//!
//! A batch that did not run (-OOM, -READONLY, a command that is not known there) is sent again with its answers, which say why, and
//! the error rules decide as always. Batches of an RDB are answered from the start: their answers decide what is done next
//! (existing keys, refused RESTOREs, sizes of what was built).

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::super::batch::{Batch, CommandKind};
use super::super::net::{Connection, NetError};
use crate::resp::{Reply, append_command};

/// Whether answers are wanted.
#[derive(Debug, Default)]
pub struct Quiet {
    off_reply: bool,
    /// A batch did not run: answers are wanted until one has.
    listening: AtomicBool,
}

impl Quiet {
    /// As `[redis_writer] off_reply` says.
    pub fn new(off_reply: bool) -> Quiet {
        Quiet { off_reply, listening: AtomicBool::new(false) }
    }

    /// Whether this batch goes without answers.
    pub(super) fn is_for(&self, batch: &Batch) -> bool {
        let of_stream = |kind| matches!(kind, CommandKind::Stream | CommandKind::Renew | CommandKind::Select);
        self.off_reply
            && !self.listening.load(Relaxed)
            && !batch.commands.is_empty()
            && batch.commands.iter().all(|command| of_stream(command.kind))
    }

    /// A batch did not run, nobody knows why.
    pub(super) fn listen(&self) {
        self.listening.store(true, Relaxed);
    }

    /// A batch has run with its answers.
    pub(super) fn heard(&self) {
        self.listening.store(false, Relaxed);
    }

    /// Asks for the right. The answer to CLIENT REPLY OFF itself would be an error or nothing.
    pub(super) async fn may(&self, connection: &mut Connection) -> Result<(), NetError> {
        if !self.off_reply {
            return Ok(());
        }
        match connection.request(&[b"CLIENT", b"REPLY", b"ON"]).await? {
            Reply::Error(reply) => Err(NetError::Refused {
                address: connection.address.clone(),
                what: "CLIENT REPLY".into(),
                reply,
                cure: "Write 'off_reply = false' in [redis_writer], or give its user the right +client."
                    .into(),
            }),
            _ => Ok(()),
        }
    }
}

/// Before MULTI.
pub(super) fn append_off(out: &mut Vec<u8>) {
    append_command(out, &[b"CLIENT", b"REPLY", b"OFF"]);
}

/// Behind EXEC: two answers, the second one the checkpoint as it is now.
pub(super) fn append_on(out: &mut Vec<u8>, checkpoint_key: &str, source: &str) {
    append_command(out, &[b"CLIENT", b"REPLY", b"ON"]);
    append_command(out, &[b"HGET", checkpoint_key.as_bytes(), source.as_bytes()]);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;
    use crate::engine::batch::tests::batch;

    #[test]
    fn only_the_stream_goes_without_answers_and_only_while_all_is_well() {
        let dir = tempfile::tempdir().unwrap();
        let quiet = Quiet::new(true);
        let mut stream = batch(dir.path());
        assert!(!quiet.is_for(&stream), "nothing is sent");
        stream.push(CommandKind::Stream, &[b"INCR", b"a"]);
        stream.select(3);
        stream.push(CommandKind::Renew, &[b"PERSIST", b"a"]);
        assert!(quiet.is_for(&stream) && !Quiet::new(false).is_for(&stream));
        quiet.listen();
        assert!(!quiet.is_for(&stream));
        quiet.heard();
        assert!(quiet.is_for(&stream));
        stream.push(CommandKind::Restore, &[b"RESTORE", b"b", b"0", b"x"]);
        assert!(!quiet.is_for(&stream), "whether it was refused decides what is done");
    }
}
