//! What happens while there is no room on the disk.
//!
//! What was read stays in memory, nothing more is read, and the same thing is tried again until it works: nothing on the
//! disk is half-written (see `spool::append`), so trying again is all that is needed.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::super::net::Connection;
use super::super::pressure::Pressure;
use super::super::room::NoRoom;
use super::super::spool::{SpoolError, SpoolWriter};
use super::{SessionEnd, Source, SourceError, stopped};

/// What the source hears from us while nothing is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Alive {
    /// A newline: what a real replica sends while it loads. An ACK inside a full sync could start the stream of a diskless
    /// source before we know that the RDB has ended.
    Newline,
    /// What is safe on disk.
    Ack,
}

impl Source {
    /// Does one thing on the disk. Where there is no room for it, tries again until there is: meanwhile nothing is read, the
    /// source hears from us, and the operator sees why and how long the source will bear it. `Some` = the session ends first.
    pub(super) async fn when_room(
        &self,
        connection: &mut Connection,
        writer: &mut SpoolWriter,
        alive: Alive,
        mut attempt: impl FnMut(&mut SpoolWriter) -> Result<(), NoRoom>,
    ) -> Result<Option<SessionEnd>, SourceError> {
        let why = match attempt(writer) {
            Ok(()) => return Ok(None),
            Err(NoRoom::Failed(error)) => return Err(error.into()),
            Err(NoRoom::Full(why)) => why,
        };
        // A destination that frees the disk piece by piece makes it full again and again: that is one story, not a hundred.
        let first = {
            let mut details = self.shared.details();
            let first = details.full_said.is_none_or(|said| said.elapsed() > Duration::from_secs(60));
            if first {
                details.full_said = Some(Instant::now());
            }
            first
        };
        let ended = self.wait(connection, writer, alive, attempt, why, first).await;
        self.shared.details().no_room = None;
        if first && matches!(ended, Ok(None)) {
            self.events.info(&self.node(), "there is room again; receiving goes on");
        }
        ended
    }

    async fn wait(
        &self,
        connection: &mut Connection,
        writer: &mut SpoolWriter,
        alive: Alive,
        mut attempt: impl FnMut(&mut SpoolWriter) -> Result<(), NoRoom>,
        mut why: String,
        first: bool,
    ) -> Result<Option<SessionEnd>, SourceError> {
        let whole_rdb = self.shared.spool.manifest().is_none_or(|manifest| manifest.rdb_len.is_some());
        let cure = if whole_rdb {
            "reading from the source stops until the destination has taken more or space is freed"
        } else {
            "reading from the source stops until space is freed (an RDB is freed only when all of it is applied)"
        };
        if first {
            self.events.error(&self.node(), format!("{why}; {cure}"));
        }
        let (patience, diskless) = {
            let details = self.shared.details();
            (details.patience, alive == Alive::Newline && details.transfer == Some("diskless"))
        };
        let read = self.shared.spool.received();
        let pressure = Pressure::watch(self.endpoint(), patience, read, diskless);
        let mut stop = self.stop.clone();
        let mut told = Instant::now();
        loop {
            // Also what is applied already and was kept for appending to.
            writer.close_segment()?;
            self.shared.details().no_room = Some(format!("{why}; {cure}; {}", pressure.words()));
            tokio::select! {
                () = sleep(Duration::from_millis(250)) => {}
                () = self.shared.restart.notified() => return Ok(Some(SessionEnd::Restart)),
                () = stopped(&mut stop) => return Ok(Some(SessionEnd::Stopped)),
            }
            match attempt(writer) {
                Ok(()) => return Ok(None),
                Err(NoRoom::Failed(error)) => return Err(error.into()),
                Err(NoRoom::Full(now)) => why = now,
            }
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                match alive {
                    Alive::Newline => connection.send(b"\n", "the keep-alive").await?,
                    Alive::Ack => {
                        sync_unless_full(writer)?;
                        self.acknowledge(connection, self.shared.spool.durable()).await?;
                    }
                }
            }
        }
    }
}

/// Makes safe on disk what has been written.
pub(super) fn sync(writer: &mut SpoolWriter) -> Result<(), SpoolError> {
    writer.pending_sync().map_or(Ok(()), |pending| tokio::task::block_in_place(|| pending.run()))
}

/// The same where a full disk only means that it is not safe yet.
pub(super) fn sync_unless_full(writer: &mut SpoolWriter) -> Result<(), SpoolError> {
    match sync(writer) {
        Err(error) if error.is_full() => Ok(()),
        result => result,
    }
}
