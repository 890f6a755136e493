//! Asking one side about many keys at once.

use super::link::{Link, Server, VerifyError};
use crate::resp::Reply;
use crate::verify::{KeyType, Look};

/// Values up to this size are held and compared whole; larger ones in pieces.
pub const WHOLE_BYTES: u64 = 1 << 20;
/// The same for one that never rests, in the last round.
pub const LARGE_BYTES: u64 = 64 << 20;
/// How often a moment is tried in which nobody writes.
const MOMENT_TRIES: usize = 20;
/// Elements up to which a value counts as small where nobody tells its bytes.
const WHOLE_ELEMENTS: u64 = 512;
/// Bytes of payloads asked for at a time.
const PAYLOAD_BYTES: u64 = 4 << 20;

/// What is asked besides type and time of expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask<'a> {
    /// Nothing.
    Nothing,
    /// The length, by the command that fits this type.
    Lengths(&'a [KeyType]),
    /// The same, and the type only where there is no such command: an answer over 0 proves it.
    LengthsOnly(&'a [KeyType]),
    /// DEBUG DIGEST-VALUE.
    Digests,
}

/// The source's place in its stream of writes, where the looks were taken in one transaction.
pub type Offset = Option<u64>;

/// Type, time of expiry and what else is asked, and the server's clock (Unix ms).
pub async fn look(
    link: &mut Link,
    server: &Server,
    keys: &[Vec<u8>],
    ask: Ask<'_>,
) -> Result<(Vec<Look>, i64), VerifyError> {
    push_looks(link, server, keys, ask);
    if ask == Ask::Digests {
        let mut command: Vec<&[u8]> = vec![b"DEBUG", b"DIGEST-VALUE"];
        command.extend(keys.iter().map(Vec::as_slice));
        link.push(&command);
    }
    let mut replies = link.flush().await?.into_iter();
    let (mut looks, now) = take_looks(link, server, keys, ask, &mut replies)?;
    if ask == Ask::Digests {
        match replies.next() {
            Some(Reply::Array(digests)) => {
                for (look, digest) in looks.iter_mut().zip(digests) {
                    look.digest = text_of(digest).filter(|_| look.exists());
                }
            }
            Some(Reply::Error(reply)) => return Err(link.refused("DEBUG DIGEST-VALUE", reply)),
            other => return Err(link.odd("DEBUG DIGEST-VALUE", &format!("{other:?}"))),
        }
    }
    Ok((looks, now))
}

fn text_of(reply: Reply) -> Option<Vec<u8>> {
    match reply {
        Reply::Bulk(text) => Some(text),
        Reply::Status(text) => Some(text.into_owned().into_bytes()),
        _ => None,
    }
}

fn push_looks(link: &mut Link, server: &Server, keys: &[Vec<u8>], ask: Ask<'_>) {
    let expiry: &[u8] = if server.tells_expiry() { b"PEXPIRETIME" } else { b"PTTL" };
    link.push(&[b"TIME"]);
    for (index, key) in keys.iter().enumerate() {
        let verb = length_verb(ask, index);
        if verb.is_none() || !matches!(ask, Ask::LengthsOnly(_)) {
            link.push(&[b"TYPE", key]);
        }
        link.push(&[expiry, key]);
        if let Some(verb) = verb {
            link.push(&[verb, key]);
        }
    }
    if !server.tells_expiry() {
        link.push(&[b"TIME"]);
    }
}

fn length_verb(ask: Ask<'_>, index: usize) -> Option<&'static [u8]> {
    match ask {
        Ask::Lengths(types) | Ask::LengthsOnly(types) => types.get(index).and_then(KeyType::length_command),
        Ask::Nothing | Ask::Digests => None,
    }
}

/// The looks and the clock before them. A time of expiry that is computed from the time left comes out as much too early as
/// the clock has moved on when the key's turn came: at most by what it has moved on after the last key.
fn take_looks(
    link: &Link,
    server: &Server,
    keys: &[Vec<u8>],
    ask: Ask<'_>,
    replies: &mut impl Iterator<Item = Reply>,
) -> Result<(Vec<Look>, i64), VerifyError> {
    let now = clock(link, replies.next())?;
    let mut looks = Vec::with_capacity(keys.len());
    for index in 0..keys.len() {
        let verb = length_verb(ask, index);
        let mut kind = match ask {
            Ask::LengthsOnly(_) if verb.is_some() => KeyType::None,
            _ => type_of(link, replies.next())?,
        };
        let expire_at = match replies.next() {
            Some(Reply::Integer(-1 | -2)) => None,
            Some(Reply::Integer(at)) if server.tells_expiry() => Some(at),
            Some(Reply::Integer(left)) => Some(now.saturating_add(left)),
            Some(Reply::Error(reply)) => return Err(link.refused("PTTL", reply)),
            other => return Err(link.odd("PTTL", &format!("{other:?}"))),
        };
        let mut length = match verb {
            None => None,
            Some(verb) => length_of(link, verb, replies.next())?,
        };
        if let Ask::LengthsOnly(likely) = ask {
            length = length.filter(|length| *length > 0);
            if let (Some(_), Some(likely)) = (length, likely.get(index)) {
                kind = likely.clone();
            }
        }
        looks.push(Look { kind, expire_at, uncertain: 0, length, digest: None });
    }
    if !server.tells_expiry() {
        let passed = clock(link, replies.next())?.saturating_sub(now).max(0);
        looks.iter_mut().for_each(|look| look.uncertain = passed);
    }
    Ok((looks, now))
}

fn type_of(link: &Link, reply: Option<Reply>) -> Result<KeyType, VerifyError> {
    match reply {
        Some(Reply::Status(text)) => Ok(KeyType::of(&text)),
        Some(Reply::Error(reply)) => Err(link.refused("TYPE", reply)),
        other => Err(link.odd("TYPE", &format!("{other:?}"))),
    }
}

fn length_of(link: &Link, verb: &[u8], reply: Option<Reply>) -> Result<Option<u64>, VerifyError> {
    match reply {
        Some(Reply::Integer(length)) => Ok(u64::try_from(length).ok()),
        // The type was another one a moment ago, or is on the other side: the types are compared first.
        Some(Reply::Error(reply)) if reply.starts_with("WRONGTYPE") => Ok(None),
        Some(Reply::Error(reply)) => Err(link.refused(&String::from_utf8_lossy(verb), reply)),
        other => Err(link.odd(&String::from_utf8_lossy(verb), &format!("{other:?}"))),
    }
}

/// Type, time of expiry and length, and the server's clock (Unix ms). `likely`: the type that each key probably has, of
/// which the answer to its length command is proof; [`KeyType::None`] = no idea.
pub async fn look_with_lengths(
    link: &mut Link,
    server: &Server,
    keys: &[Vec<u8>],
    likely: &[KeyType],
) -> Result<(Vec<Look>, i64), VerifyError> {
    let ask = Ask::LengthsOnly(likely);
    push_looks(link, server, keys, ask);
    let mut replies = link.flush().await?.into_iter();
    let (mut looks, mut now) = take_looks(link, server, keys, ask, &mut replies)?;
    // No such value, or one without anything in it, or of another type.
    let is_unproved = |look: &Look, likely: &KeyType| likely.length_command().is_some() && !look.exists();
    let open: Vec<usize> = (0..)
        .zip(looks.iter().zip(likely))
        .filter(|(_, (look, likely))| is_unproved(look, likely))
        .map(|(index, _)| index)
        .collect();
    if !open.is_empty() {
        let some: Vec<Vec<u8>> = open.iter().filter_map(|index| keys.get(*index).cloned()).collect();
        let (seen, later) = look(link, server, &some, Ask::Nothing).await?;
        // What has expired between the two looks is over by the later clock only.
        now = later;
        for (index, seen) in open.iter().zip(seen) {
            if let Some(look) = looks.get_mut(*index) {
                *look = seen;
            }
        }
    }
    let verbs: Vec<Option<&[u8]>> =
        looks.iter().map(|look| look.kind.length_command().filter(|_| look.length.is_none())).collect();
    for (key, verb) in keys.iter().zip(&verbs) {
        if let Some(verb) = verb {
            link.push(&[verb, key]);
        }
    }
    let mut replies = link.flush().await?.into_iter();
    for (look, verb) in looks.iter_mut().zip(verbs) {
        if let Some(verb) = verb {
            look.length = length_of(link, verb, replies.next())?;
        }
    }
    Ok((looks, now))
}

/// The size of each value in bytes, about; `None` where it is over `limit`, or there is none.
pub async fn sizes(
    link: &mut Link,
    server: &Server,
    keys: &[Vec<u8>],
    looks: &[Look],
    limit: u64,
) -> Result<Vec<Option<u64>>, VerifyError> {
    let asked = |look: &Look| server.memory_usage && look.exists() && look.kind != KeyType::String;
    for (key, _) in keys.iter().zip(looks).filter(|(_, look)| asked(look)) {
        link.push(&[b"MEMORY", b"USAGE", key]);
    }
    let mut replies = link.flush().await?.into_iter();
    Ok(looks
        .iter()
        .map(|look| {
            let bytes = match (&look.kind, look.length) {
                (KeyType::None, _) => return None,
                (KeyType::String, Some(length)) => length,
                _ if asked(look) => match replies.next() {
                    Some(Reply::Integer(bytes)) => u64::try_from(bytes).unwrap_or(u64::MAX),
                    _ => WHOLE_BYTES,
                },
                (_, Some(length)) if length > WHOLE_ELEMENTS => return None,
                _ => WHOLE_BYTES / 16,
            };
            (bytes <= limit || !is_piecewise(&look.kind)).then_some(bytes)
        })
        .collect())
}

/// Types that can be read in pieces.
fn is_piecewise(kind: &KeyType) -> bool {
    !matches!(kind, KeyType::Other(_) | KeyType::None)
}

/// Payloads of the keys that have a size; `None` for the others and for keys that are gone.
pub async fn payloads(
    link: &mut Link,
    keys: &[Vec<u8>],
    sizes: &[Option<u64>],
) -> Result<Vec<Option<Vec<u8>>>, VerifyError> {
    let mut found = Vec::with_capacity(keys.len());
    let mut bytes = 0;
    let mut asked = Vec::new();
    for (key, size) in keys.iter().zip(sizes) {
        asked.push(size.is_some());
        if let Some(size) = size {
            link.push(&[b"DUMP", key]);
            bytes += size;
        }
        if bytes >= PAYLOAD_BYTES {
            take_payloads(link, &mut asked, &mut found).await?;
            bytes = 0;
        }
    }
    take_payloads(link, &mut asked, &mut found).await?;
    Ok(found)
}

async fn take_payloads(
    link: &mut Link,
    asked: &mut Vec<bool>,
    found: &mut Vec<Option<Vec<u8>>>,
) -> Result<(), VerifyError> {
    let mut replies = link.flush().await?.into_iter();
    for asked in asked.drain(..) {
        found.push(if asked { payload_of(link, replies.next())? } else { None });
    }
    Ok(())
}

fn payload_of(link: &Link, reply: Option<Reply>) -> Result<Option<Vec<u8>>, VerifyError> {
    match reply {
        Some(Reply::Bulk(payload)) => Ok(Some(payload)),
        Some(Reply::Null) => Ok(None),
        Some(Reply::Error(reply)) => Err(link.refused("DUMP", reply)),
        other => Err(link.odd("DUMP", &format!("{other:?}"))),
    }
}

/// What the source says of many keys at one moment, with its place in the stream of writes.
pub struct Moment {
    /// Looks, with lengths.
    pub looks: Vec<Look>,
    /// Payloads of the keys that have a size.
    pub payloads: Vec<Option<Vec<u8>>>,
    /// The clock (Unix ms).
    pub now: i64,
    /// The place.
    pub offset: u64,
}

/// Takes such a moment; `types` and `sizes` are those of a look before. `None` when the server cannot tell its place.
///
/// A cluster takes no transaction over several slots. Its node is asked for its place before and after: if that is the
/// same, nothing was written between. A pipeline that fits into one read (16 KiB) is rarely interrupted.
pub async fn moment(
    link: &mut Link,
    server: &Server,
    keys: &[Vec<u8>],
    types: &[KeyType],
    sizes: &[Option<u64>],
    cluster: bool,
) -> Result<Option<Moment>, VerifyError> {
    let ask = Ask::Lengths(types);
    for _ in 0..MOMENT_TRIES {
        if !cluster {
            link.push(&[b"MULTI"]);
        }
        link.push(&[b"INFO", b"replication"]);
        push_looks(link, server, keys, ask);
        for (key, _) in keys.iter().zip(sizes).filter(|(_, size)| size.is_some()) {
            link.push(&[b"DUMP", key]);
        }
        link.push(if cluster { &[b"INFO", b"replication"] } else { &[b"EXEC"] });
        let mut replies = link.flush().await?;
        let last = replies.pop();
        let replies = match last {
            Some(Reply::Array(replies)) if !cluster => replies,
            Some(Reply::Bulk(_)) if cluster => {
                if last.as_ref().and_then(place_in) != replies.first().and_then(place_in) {
                    continue;
                }
                replies
            }
            Some(Reply::Error(reply)) => return Err(link.refused("EXEC", reply)),
            other => return Err(link.odd("EXEC", &format!("{other:?}"))),
        };
        let mut replies = replies.into_iter();
        let Some(offset) = replies.next().as_ref().and_then(place_in) else { return Ok(None) };
        let (looks, now) = take_looks(link, server, keys, ask, &mut replies)?;
        let mut payloads = Vec::with_capacity(keys.len());
        for size in sizes {
            payloads.push(if size.is_some() { payload_of(link, replies.next())? } else { None });
        }
        return Ok(Some(Moment { looks, payloads, now, offset }));
    }
    Ok(None)
}

fn place_in(info: &Reply) -> Offset {
    info.text().and_then(place_of)
}

/// The place in the stream of writes that a server hands to its replicas.
pub fn place_of(info: &str) -> Offset {
    super::super::net::info_field(info, "master_repl_offset")?.parse().ok()
}

fn clock(link: &Link, reply: Option<Reply>) -> Result<i64, VerifyError> {
    let Some(Reply::Array(parts)) = &reply else { return Err(link.odd("TIME", &format!("{reply:?}"))) };
    let number = |at: usize| parts.get(at).and_then(Reply::text).and_then(|text| text.parse::<i64>().ok());
    match (number(0), number(1)) {
        (Some(seconds), Some(micros)) => Ok(seconds.saturating_mul(1_000).saturating_add(micros / 1_000)),
        _ => Err(link.odd("TIME", &format!("{reply:?}"))),
    }
}
