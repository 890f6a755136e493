//! Receives the RDB into the spool.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Buf;
use tokio::io::AsyncReadExt;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::super::events::unix_ms;
use super::super::net::{Connection, NetError};
use super::super::room::Room;
use super::super::spool::{SpoolError, SpoolWriter};
use super::waiting::Alive;
use super::{READ_BYTES, SILENCE_LIMIT, SessionEnd, Source, SourceError, stopped};
use crate::format;
use crate::psync::{EOF_MARK_LEN, EofFinder, EofSearch, Replid, Transfer};
use crate::status::Phase;

impl Source {
    /// Receives the RDB, which is the one that was wished for, or not. Returns `Some` when the session must end.
    pub(super) async fn full_sync(
        &self,
        connection: &mut Connection,
        writer: &mut SpoolWriter,
        replid: &Replid,
        offset: u64,
        wanted: bool,
    ) -> Result<Option<SessionEnd>, SourceError> {
        let mut stop = self.stop.clone();
        {
            let mut details = self.shared.details();
            details.full_sync_since = Some(Instant::now());
            details.rdb_received_unix_ms = None;
            details.rdb_total = None;
            details.transfer = None;
        }
        self.shared.enter(Phase::WaitingBgsave, Some("the source is preparing its RDB".into()));
        let line = loop {
            if let Some(line) = connection.take_line("the RDB header")? {
                break line;
            }
            // Each keep-alive newline counts as a sign of life: a large save may take hours.
            tokio::select! {
                filled = timeout(SILENCE_LIMIT, connection.fill("the RDB header")) => match filled {
                    Ok(filled) => filled?,
                    Err(_) => return Err(self.silent("the RDB header").into()),
                },
                () = stopped(&mut stop) => return Ok(Some(SessionEnd::Stopped)),
            }
        };
        let Some(transfer) = Transfer::parse(&line) else {
            let found = line[..line.len().min(200)].escape_ascii().to_string();
            return Err(if line.starts_with(b"-") {
                SourceError::Net(NetError::Refused {
                    address: connection.address.clone(),
                    what: "the full sync".into(),
                    reply: found,
                    cure:
                        "The source could not save its data set: look at its log (disk full? fork refused?)."
                            .into(),
                })
            } else {
                SourceError::Net(NetError::Protocol {
                    address: connection.address.clone(),
                    what: "PSYNC (the RDB's length)".into(),
                    found: format!("'{found}'"),
                    cure: "Is this the port of a Redis or Valkey server?".into(),
                })
            });
        };
        let (total, mut finder, words) = match &transfer {
            Transfer::Length(len) => (Some(*len), None, "disk"),
            Transfer::EofMark(mark) => (None, Some(EofFinder::new(mark)), "diskless"),
        };
        if let Some(len) = total.filter(|len| *len > self.quota.max_bytes()) {
            return Err(SourceError::Spool(SpoolError {
                action: "hold the RDB in",
                path: self.shared.spool.dir().to_owned(),
                cause: std::io::Error::other(format!(
                    "it has {}, [spool] max_bytes is {}: raise that and start again",
                    format::size(len),
                    format::size(self.quota.max_bytes())
                )),
            }));
        }
        // Only now: before the `$` line the source may still change its mind and keep the old data valid.
        let begin = |writer: &mut SpoolWriter| Ok(writer.begin_full_sync(replid, offset)?);
        if let Some(end) = self.when_room(connection, writer, Alive::Newline, begin).await? {
            return Ok(Some(end));
        }
        if wanted {
            self.shared.full_sync_wanted.store(false, Relaxed);
        }
        {
            let mut details = self.shared.details();
            details.rdb_total = total;
            details.transfer = Some(words);
        }
        self.shared.rdb_applied.store(0, Relaxed);
        self.shared.keys_applied.store(0, Relaxed);
        self.shared.offset_applied.store(offset, Relaxed);
        self.shared.enter(Phase::RdbReceive, None);
        let size = total.map_or("size not known before the end".into(), format::size);
        self.events.info(
            &self.node(),
            format!("FULLRESYNC {replid} offset {offset}; RDB by {words} transfer, {size}"),
        );

        let began = Instant::now();
        let mut room = Room::new(self.quota.clone());
        let mut tick = interval(Duration::from_millis(250));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut buffer = vec![0; READ_BYTES];
        let mut heard = Instant::now();
        let mut last_newline = Instant::now();
        let mut received = 0u64;
        // Set when the RDB may end at the last byte received and only the parser can tell.
        let mut maybe_end: Option<u64> = None;
        let rdb_len = loop {
            if total == Some(received) {
                break received;
            }
            if room.is_due() {
                let look = |_: &mut SpoolWriter| room.look(&self.shared.spool);
                if let Some(end) = self.when_room(connection, writer, Alive::Newline, look).await? {
                    return Ok(Some(end));
                }
            }
            let got = if !connection.buffer.is_empty() {
                let want = total.map_or(READ_BYTES as u64, |total| (total - received).min(READ_BYTES as u64));
                let got = connection.buffer.len().min(want as usize);
                connection.buffer.copy_to_slice(&mut buffer[..got]);
                got
            } else {
                let want = total.map_or(READ_BYTES as u64, |total| (total - received).min(READ_BYTES as u64));
                tokio::select! {
                    read = connection.io.read(&mut buffer[..want as usize]) => match read {
                        Ok(0) => return Err(self.rdb_cut(connection, received, total).into()),
                        Ok(got) => got,
                        Err(cause) => return Err(connection.lost("the RDB transfer", cause).into()),
                    },
                    _ = tick.tick() => {
                        if let (Some(end), Some(parsed)) = (maybe_end, self.shared.spool.rdb_end_by_parser())
                            && end == parsed
                        {
                            break end;
                        }
                        if maybe_end.is_none() && heard.elapsed() > SILENCE_LIMIT {
                            return Err(self.silent("the RDB transfer").into());
                        }
                        if last_newline.elapsed() >= Duration::from_secs(1) {
                            last_newline = Instant::now();
                            connection.send(b"\n", "the keep-alive").await?;
                        }
                        continue;
                    }
                    () = self.shared.restart.notified() => return Ok(Some(SessionEnd::Restart)),
                    () = stopped(&mut stop) => return Ok(Some(SessionEnd::Stopped)),
                }
            };
            let chunk = &buffer[..got];
            let append = |writer: &mut SpoolWriter| Ok(writer.append_rdb(chunk)?);
            if let Some(end) = self.when_room(connection, writer, Alive::Newline, append).await? {
                return Ok(Some(end));
            }
            room.used(got);
            heard = Instant::now();
            received += got as u64;
            self.shared.bytes_received.fetch_add(got as u64, Relaxed);
            if let Some(finder) = &mut finder {
                match finder.push(chunk) {
                    EofSearch::NotYet => maybe_end = None,
                    EofSearch::Found { rdb_len } => {
                        // A source that did not wait for the ACK: what follows the mark belongs to the stream.
                        let surplus = (received - rdb_len) as usize - EOF_MARK_LEN;
                        let rest = connection.buffer.split();
                        connection.buffer.extend_from_slice(&chunk[got - surplus..]);
                        connection.buffer.extend_from_slice(&rest);
                        break rdb_len;
                    }
                    EofSearch::Unverified { rdb_len } => maybe_end = Some(rdb_len),
                }
            }
        };
        let took = began.elapsed();
        self.acknowledge(connection, offset).await?;
        self.shared.details().rdb_total = Some(rdb_len);
        // The fsync of a large file may take a while on a slow disk, but the stream cannot begin before it anyway.
        let finish =
            |writer: &mut SpoolWriter| Ok(tokio::task::block_in_place(|| writer.finish_rdb(rdb_len))?);
        if let Some(end) = self.when_room(connection, writer, Alive::Ack, finish).await? {
            return Ok(Some(end));
        }
        // Not before: from now on a crash costs no other one.
        self.shared.details().rdb_received_unix_ms = Some(unix_ms());
        let (size, seconds) = (format::size(rdb_len), format::spoken_duration(took.as_secs_f64()));
        self.events.info(&self.node(), format!("RDB received, {size} in {seconds}"));
        Ok(None)
    }

    fn rdb_cut(&self, connection: &Connection, received: u64, total: Option<u64>) -> NetError {
        let of = total.map_or("before its end mark".into(), |total| format!("of {total} bytes"));
        connection.lost(
            "the RDB transfer",
            std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                format!("the source closed the link after {received} bytes {of}"),
            ),
        )
    }
}
