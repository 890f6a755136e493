//! A value that goes by commands because its RESTORE was refused: built under a temporary key, on a connection beside the one that
//! everything else takes, counted, and given its name when the destination has accepted every command. Nobody sees half of it.
//!
//! Packed, it may be a small part of what its commands take. So they are made and sent in pieces, and each piece is answered before the
//! next one is made.

use std::io;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tokio::time::timeout;

use super::clocks;
use super::events::unix_ms;
use super::net::{Connection, NetError};
use super::writer::restored_until;
use crate::format;
use crate::rdb::commands::{CommandBuilder, Loss, PendingIds, Rebuild, append_resp};
use crate::rdb::dump::{self, Payload, Target};
use crate::rdb::{ByteList, Element, RdbError, visit_value};
use crate::resp::Reply;

/// Bytes of commands sent at once; a larger command makes a larger piece.
const PIECE: usize = 256 << 10;
/// A piece that is not answered for so long is lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// No two clocks are assumed to differ by more (ms): a field that ends so soon may have ended on the destination.
const CLOCKS_DIFFER_MS: i64 = 3_600_000;

/// What must be known of a value before it is built.
#[derive(Default)]
pub struct Ahead {
    /// Pending entries of a stream must be known before its first entry is added.
    pub pending: PendingIds,
    /// Some of its fields end by themselves.
    pub fields_end: bool,
    /// Something in it stays for ever.
    stays: bool,
    /// When the last of its fields ends.
    last_field_ends_ms: i64,
    size: Option<(&'static str, u64)>,
}

impl Ahead {
    /// Looks at one more element.
    pub fn add(&mut self, element: Element<'_>) {
        self.pending.add(element);
        match element {
            Element::Field { expire_at_ms: Some(at), .. } => {
                self.fields_end = true;
                self.last_field_ends_ms = self.last_field_ends_ms.max(at);
            }
            _ => self.stays = true,
        }
        if let Some((command, size)) = element.counts() {
            let so_far = self.size.map_or(0, |(_, size)| size);
            self.size = Some((command, so_far + size));
        }
    }

    /// When it is gone from the destination by itself (Unix ms): at its own time, or with its last field.
    pub fn ends_at_ms(&self, expire_at_ms: Option<i64>, target: Target) -> Option<i64> {
        let all_fields_end = self.fields_end && !self.stays && target.has_field_ttl();
        let with_the_last = all_fields_end.then_some(self.last_field_ends_ms);
        expire_at_ms.into_iter().chain(with_the_last).min()
    }

    /// How large it is, and the command that tells; whether it is there, where nothing counts.
    pub fn size(&self) -> (&'static str, u64) {
        self.size.unwrap_or(("EXISTS", 1))
    }
}

/// Whether this is a field that may have ended on the destination by now.
pub fn may_have_ended(element: &Element<'_>) -> bool {
    let now = i64::try_from(unix_ms()).unwrap_or(i64::MAX);
    matches!(element, Element::Field { expire_at_ms: Some(at), .. } if *at <= now.saturating_add(CLOCKS_DIFFER_MS))
}

/// What is wrong with a value that came out smaller or larger than it is in the RDB.
pub fn wrong_size(command: &str, expected: u64, found: u64) -> String {
    let unit = if command == "STRLEN" { "bytes" } else { "elements" };
    let cause = match command {
        "HLEN" | "SCARD" | "ZCARD" if found < expected => {
            "a field or member stands twice in the file, or the destination removed some meanwhile (maxmemory-policy, FLUSHALL)"
        }
        _ => {
            "somebody on the destination changed or removed it while it was built (maxmemory-policy, FLUSHALL)"
        }
    };
    let (expected, found) = (format::number(expected), format::number(found));
    format!("the file holds {expected} {unit}, but {found} came out ({command}): {cause}")
}

/// A value to be built.
pub struct Plan<'a> {
    /// Its database.
    pub db: u32,
    /// Its name.
    pub key: &'a [u8],
    /// What it is.
    pub payload: Payload<'a>,
    /// Where it is built.
    aside: &'a [u8],
    target: Target,
    expire_at_ms: Option<i64>,
    replace: bool,
}

/// Why a piece was not taken.
enum Stop {
    Refused(String),
    Lost(NetError),
}

impl<'a> Plan<'a> {
    /// What a refused RESTORE would have done, and the command behind it. The error says why it cannot be had by commands.
    pub fn new(
        db: u32,
        restore: &[&'a [u8]],
        next: &[&[u8]],
        aside: &'a [u8],
        target: Target,
    ) -> Result<Plan<'a>, String> {
        let [_, key, _, payload, options @ ..] = restore else {
            return Err("the command has no payload".into());
        };
        Ok(Plan {
            db,
            key,
            payload: dump::parse_payload(payload).map_err(|error| error.to_string())?,
            aside,
            target,
            expire_at_ms: restored_until(restore, next),
            replace: options.contains(&&b"REPLACE"[..]),
        })
    }

    /// Builds the value aside and gives it its name; `again`: a former try may have done so. The inner error is the destination's answer,
    /// or why the value is no good.
    pub async fn build(
        &self,
        connection: &mut Connection,
        again: bool,
    ) -> Result<Result<Loss, String>, NetError> {
        let mut ahead = Ahead::default();
        if let Err(error) = block_in_place(|| {
            self.visit(&mut |element| {
                ahead.add(element);
                Ok(())
            })
        }) {
            return Ok(Err(error.to_string()));
        }
        if let Reply::Error(error) = connection.request(&[b"SELECT", self.db.to_string().as_bytes()]).await? {
            return Ok(Err(error));
        }
        let (command, expected) = ahead.size();
        let ends_at_ms = ahead.ends_at_ms(self.expire_at_ms, self.target);
        let pending_ids = std::mem::take(&mut ahead.pending).into_sorted();
        let built = match block_in_place(|| self.send_pieces(connection, pending_ids)) {
            Ok(loss) => self.counted(connection, command, expected, ends_at_ms).await?.map(|()| loss),
            Err(Stop::Refused(error)) => Err(error),
            Err(Stop::Lost(error)) => return Err(error),
        };
        let named = match built {
            Ok(loss) => self.name(connection, again, ends_at_ms).await?.map(|()| loss),
            Err(error) => Err(error),
        };
        if named.is_err() {
            connection.request(&[b"DEL", self.aside]).await?;
        }
        Ok(named)
    }

    fn visit(&self, see: &mut dyn FnMut(Element<'_>) -> Result<(), RdbError>) -> Result<(), RdbError> {
        visit_value(self.payload.type_byte, self.payload.raw, self.payload.dialect, see)
    }

    /// Makes the commands and sends them; waits for the destination in between.
    fn send_pieces(
        &self,
        connection: &mut Connection,
        pending_ids: Vec<crate::rdb::stream::StreamId>,
    ) -> Result<Loss, Stop> {
        let mut builder = CommandBuilder::new(Rebuild {
            key: self.aside,
            target: self.target,
            replace: true,
            expire_at_ms: self.expire_at_ms,
            pending_ids,
        });
        let (mut bytes, mut count, mut stop) = (Vec::new(), 0, None);
        let mut sink = |command: &ByteList| {
            append_resp(&mut bytes, command);
            count += 1;
            if bytes.len() < PIECE {
                return Ok(());
            }
            let sent = Handle::current().block_on(send_piece(connection, &bytes, std::mem::take(&mut count)));
            bytes.clear();
            sent.map_err(|cause| {
                stop = Some(cause);
                RdbError::Io(io::Error::other("the destination takes no more"))
            })
        };
        let built = self
            .visit(&mut |element| builder.add(element, &mut sink))
            .and_then(|()| builder.finish(&mut sink));
        match (built, stop) {
            (_, Some(stop)) => Err(stop),
            (Err(error), None) => Err(Stop::Refused(error.to_string())),
            (Ok(loss), None) => {
                Handle::current().block_on(send_piece(connection, &bytes, count))?;
                Ok(loss)
            }
        }
    }

    /// Whether what has been built is whole: a field or member may stand twice, and whoever removes the key between two pieces (an
    /// eviction, FLUSHALL) leaves the rest.
    async fn counted(
        &self,
        connection: &mut Connection,
        command: &'static str,
        expected: u64,
        ends_at_ms: Option<i64>,
    ) -> Result<Result<(), String>, NetError> {
        let found = match connection.request(&[command.as_bytes(), self.aside]).await? {
            Reply::Integer(found) => u64::try_from(found).unwrap_or_default(),
            Reply::Error(error) => return Ok(Err(error)),
            other => return Ok(Err(format!("unexpected answer to {command}: {other:?}"))),
        };
        if found == expected || (found == 0 && has_ended(connection, ends_at_ms).await?) {
            return Ok(Ok(()));
        }
        let mut ended = 0;
        if found < expected && self.target.has_field_ttl() {
            // It was looked through before.
            let _ = block_in_place(|| {
                self.visit(&mut |element| {
                    ended += u64::from(may_have_ended(&element));
                    Ok(())
                })
            });
        }
        let explained = (expected.saturating_sub(ended)..=expected).contains(&found);
        Ok(if explained { Ok(()) } else { Err(wrong_size(command, expected, found)) })
    }

    async fn name(
        &self,
        connection: &mut Connection,
        again: bool,
        ends_at_ms: Option<i64>,
    ) -> Result<Result<(), String>, NetError> {
        // After a first try whose answer was lost the name may be taken by the value itself.
        let verb: &[u8] = if self.replace || again { b"RENAME" } else { b"RENAMENX" };
        let refused = match connection.request(&[verb, self.aside, self.key]).await? {
            Reply::Error(error) => error,
            Reply::Integer(0) => "BUSYKEY Target key name already exists.".into(),
            _ => return Ok(Ok(())),
        };
        if !refused.contains("no such key") {
            return Ok(Err(refused));
        }
        // Ended in the meantime, or long ago.
        if has_ended(connection, ends_at_ms).await? {
            if self.replace {
                connection.request(&[b"DEL", self.key]).await?;
            }
            return Ok(Ok(()));
        }
        Ok(Err(taken_away(&refused)))
    }
}

/// Whether what is to end at this time has ended by the destination's clock.
async fn has_ended(connection: &mut Connection, ends_at_ms: Option<i64>) -> Result<bool, NetError> {
    Ok(match ends_at_ms {
        Some(at) => at <= clocks::now_ms(connection).await?,
        None => false,
    })
}

/// Why a value has no name that was built as a whole.
pub fn taken_away(error: &str) -> String {
    format!(
        "{error}: what had been built of it was removed before it got its name (maxmemory-policy, FLUSHALL)"
    )
}

/// Sends commands and reads their answers; the first refusal counts.
async fn send_piece(connection: &mut Connection, bytes: &[u8], count: usize) -> Result<(), Stop> {
    const WHAT: &str = "the commands in place of RESTORE";
    connection.send(bytes, WHAT).await.map_err(Stop::Lost)?;
    let answers = async {
        let mut refused = None;
        for _ in 0..count {
            if let Reply::Error(error) = connection.read_reply(WHAT).await.map_err(Stop::Lost)? {
                refused.get_or_insert(error);
            }
        }
        refused.map_or(Ok(()), |error| Err(Stop::Refused(error)))
    };
    match timeout(ANSWER_LIMIT, answers).await {
        Ok(answered) => answered,
        Err(_) => Err(Stop::Lost(connection.lost(WHAT, io::ErrorKind::TimedOut.into()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_at_its_time_or_with_its_last_field() {
        let ends = |times: &[Option<i64>], expire_at_ms, target| {
            let mut ahead = Ahead::default();
            for expire_at_ms in times {
                ahead.add(Element::Field { field: b"f", value: b"v", expire_at_ms: *expire_at_ms });
            }
            ahead.ends_at_ms(expire_at_ms, target)
        };
        let target = Target::valkey(9, 0);
        assert_eq!(ends(&[Some(5), Some(9), Some(7)], None, target), Some(9));
        assert_eq!(ends(&[Some(5), Some(9)], Some(8), target), Some(8));
        assert_eq!(ends(&[Some(5), None], None, target), None);
        assert_eq!(ends(&[Some(5), None], Some(8), target), Some(8));
        assert_eq!(ends(&[Some(5)], None, Target::redis(7, 0)), None, "it knows no such times");
    }
}
