//! A value too large to be held, compared in pieces by commands of its type.
//!
//! Sets, hashes and sorted sets: each element of the source is asked for on the destination; with equal lengths (compared
//! before) that is all. Fields that have a time of expiry make lengths prove nothing: then it is done both ways. Strings, lists and streams are read on both sides in step. It stops at the first difference.

use tokio::try_join;

use super::link::{Link, Server, Side, VerifyError};
use crate::resp::Reply;
use crate::verify::{Clocks, Found, KeyType, Kind, Look, expiry, quoted};

/// Bytes of a string at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Elements at a time.
const PIECE: usize = 500;

/// Both ends, and what they are.
pub struct Ends<'a> {
    /// The source.
    pub source: &'a mut Link,
    /// The destination.
    pub destination: &'a mut Link,
    /// What the source is.
    pub source_server: &'a Server,
    /// What the destination is.
    pub destination_server: &'a Server,
    /// Clocks and tolerance.
    pub clocks: Clocks,
}

impl Ends<'_> {
    /// Compares one value; both sides have it, with equal types. Returns the first difference.
    pub async fn compare(&mut self, key: &[u8], look: &Look) -> Result<Option<Found>, VerifyError> {
        match look.kind {
            KeyType::String => self.string(key, look.length.unwrap_or(0)).await,
            KeyType::List => self.list(key, look.length.unwrap_or(0)).await,
            KeyType::Set => self.set(key).await,
            KeyType::Zset => self.zset(key).await,
            KeyType::Hash => self.hash(key).await,
            KeyType::Stream => self.stream(key).await,
            KeyType::None | KeyType::Other(_) => Ok(None),
        }
    }

    /// The same question to both.
    async fn both(&mut self, args: &[&[u8]]) -> Result<(Reply, Reply), VerifyError> {
        try_join!(self.source.ask(args), self.destination.ask(args))
    }

    async fn string(&mut self, key: &[u8], length: u64) -> Result<Option<Found>, VerifyError> {
        let mut start = 0;
        while start < length {
            let (from, to) = (start.to_string(), (start + PIECE_BYTES - 1).to_string());
            let (here, there) = self.both(&[b"GETRANGE", key, from.as_bytes(), to.as_bytes()]).await?;
            if here != there {
                let (here, there) = (bytes_of(here), bytes_of(there));
                let at =
                    here.iter().zip(&there).position(|(a, b)| a != b).unwrap_or(here.len().min(there.len()));
                let part =
                    |bytes: &[u8]| quoted(bytes.get(at..(at + 24).min(bytes.len())).unwrap_or_default());
                let place = format!("byte {}", start + at as u64);
                return Ok(Some(Found::new(Kind::Value, part(&here), part(&there)).at(place)));
            }
            start += PIECE_BYTES;
        }
        Ok(None)
    }

    async fn list(&mut self, key: &[u8], length: u64) -> Result<Option<Found>, VerifyError> {
        let mut start = 0;
        while start < length {
            let (from, to) = (start.to_string(), (start + PIECE as u64 - 1).to_string());
            let (here, there) = self.both(&[b"LRANGE", key, from.as_bytes(), to.as_bytes()]).await?;
            let (here, there) = (items_of(here), items_of(there));
            if let Some(at) = (0..here.len().max(there.len())).find(|at| here.get(*at) != there.get(*at)) {
                let item =
                    |items: &[Vec<u8>]| items.get(at).map_or("nothing".to_owned(), |item| quoted(item));
                let place = format!("index {}", start + at as u64);
                return Ok(Some(Found::new(Kind::Value, item(&here), item(&there)).at(place)));
            }
            start += PIECE as u64;
        }
        Ok(None)
    }

    fn end(&mut self, side: Side) -> (&mut Link, &Server) {
        match side {
            Side::Source => (self.source, self.source_server),
            Side::Destination => (self.destination, self.destination_server),
        }
    }

    /// The next elements of a side; `cursor` moves on.
    async fn scan(
        &mut self,
        side: Side,
        verb: &[u8],
        key: &[u8],
        cursor: &mut Vec<u8>,
    ) -> Result<Vec<Vec<u8>>, VerifyError> {
        let count = PIECE.to_string();
        let (link, _) = self.end(side);
        match link.ask(&[verb, key, cursor, b"COUNT", count.as_bytes()]).await? {
            Reply::Array(parts) if parts.len() == 2 => {
                let mut parts = parts.into_iter();
                *cursor = parts.next().map(bytes_of).unwrap_or_default();
                Ok(parts.next().map(items_of).unwrap_or_default())
            }
            other => Err(link.odd("SCAN", &format!("{other:?}"))),
        }
    }

    async fn set(&mut self, key: &[u8]) -> Result<Option<Found>, VerifyError> {
        let mut cursor = b"0".to_vec();
        loop {
            let members = self.scan(Side::Source, b"SSCAN", key, &mut cursor).await?;
            let answers = self.ask_each(b"SMISMEMBER", b"SISMEMBER", key, &members).await?;
            let lacking = members.iter().zip(&answers).find(|(_, answer)| **answer != Reply::Integer(1));
            if let Some((member, _)) = lacking {
                let place = format!("member {}", quoted(member));
                return Ok(Some(Found::new(Kind::Value, "present", "missing").at(place)));
            }
            if cursor == b"0" {
                return Ok(None);
            }
        }
    }

    /// Asks the destination about many members, in one command where it can.
    async fn ask_each(
        &mut self,
        many: &[u8],
        one: &[u8],
        key: &[u8],
        members: &[Vec<u8>],
    ) -> Result<Vec<Reply>, VerifyError> {
        if members.is_empty() {
            return Ok(Vec::new());
        }
        if self.destination_server.asks_many() {
            let mut command = vec![many, key];
            command.extend(members.iter().map(Vec::as_slice));
            return Ok(array_of(self.destination.ask(&command).await?));
        }
        members.iter().for_each(|member| self.destination.push(&[one, key, member]));
        self.destination.flush().await
    }

    async fn zset(&mut self, key: &[u8]) -> Result<Option<Found>, VerifyError> {
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<f64>().ok();
        let mut cursor = b"0".to_vec();
        loop {
            let flat = self.scan(Side::Source, b"ZSCAN", key, &mut cursor).await?;
            let (members, scores): (Vec<_>, Vec<_>) = pairs(flat).unzip();
            let answers = self.ask_each(b"ZMSCORE", b"ZSCORE", key, &members).await?;
            for ((member, score), answer) in members.iter().zip(&scores).zip(answers) {
                let place = format!("member {}", quoted(member));
                let answer = match answer {
                    Reply::Null => {
                        return Ok(Some(Found::new(Kind::Value, "present", "missing").at(place)));
                    }
                    answer => bytes_of(answer),
                };
                // Versions write the same number differently.
                if *score != answer && number(score) != number(&answer) {
                    let words = |score: &[u8]| format!("score {}", quoted(score));
                    return Ok(Some(Found::new(Kind::Value, words(score), words(&answer)).at(place)));
                }
            }
            if cursor == b"0" {
                return Ok(None);
            }
        }
    }

    async fn hash(&mut self, key: &[u8]) -> Result<Option<Found>, VerifyError> {
        let found = self.fields(Side::Source, key).await?;
        let expire = [self.source_server, self.destination_server].iter().any(|it| it.target.has_field_ttl());
        if found.is_none() && expire { self.fields(Side::Destination, key).await } else { Ok(found) }
    }

    /// Looks up the fields of one side on the other: whether they are there, and those of the source for what they hold.
    async fn fields(&mut self, side: Side, key: &[u8]) -> Result<Option<Found>, VerifyError> {
        let other = if side == Side::Source { Side::Destination } else { Side::Source };
        let times = [self.source_server, self.destination_server].iter().all(|it| it.target.has_field_ttl());
        let mut cursor = b"0".to_vec();
        loop {
            let flat = self.scan(side, b"HSCAN", key, &mut cursor).await?;
            let (names, values): (Vec<_>, Vec<_>) = pairs(flat).unzip();
            if !names.is_empty() {
                let mut command: Vec<&[u8]> = vec![b"HMGET", key];
                command.extend(names.iter().map(Vec::as_slice));
                let there = array_of(self.end(other).0.ask(&command).await?);
                let here_times = self.field_times(side, key, &names).await?;
                let there_times = self.field_times(other, key, &names).await?;
                for (index, (name, value)) in names.iter().zip(&values).enumerate() {
                    let time = |times: &[Option<i64>]| times.get(index).copied().flatten();
                    let (here_time, there_time) = (time(&here_times), time(&there_times));
                    let found = match there.get(index) {
                        Some(Reply::Bulk(_)) if side == Side::Destination => continue,
                        Some(Reply::Bulk(other)) if other != value => {
                            Found::new(Kind::Value, quoted(value), quoted(other))
                        }
                        Some(Reply::Bulk(_)) if times && !self.clocks.same(here_time, there_time) => {
                            Found::new(Kind::FieldTtl, expiry(here_time), expiry(there_time))
                        }
                        Some(Reply::Bulk(_)) => continue,
                        _ if self.clocks.expired_on_destination(here_time) => continue,
                        _ if side == Side::Source => Found::new(Kind::Value, "present", "missing"),
                        _ => Found::new(Kind::Value, "missing", "present"),
                    };
                    return Ok(Some(found.at(format!("field {}", quoted(name)))));
                }
            }
            if cursor == b"0" {
                return Ok(None);
            }
        }
    }

    /// Times of expiry of fields; nothing where the server knows none.
    async fn field_times(
        &mut self,
        side: Side,
        key: &[u8],
        names: &[Vec<u8>],
    ) -> Result<Vec<Option<i64>>, VerifyError> {
        let (link, server) = self.end(side);
        if !server.target.has_field_ttl() {
            return Ok(Vec::new());
        }
        let count = names.len().to_string();
        let mut command: Vec<&[u8]> = vec![b"HPEXPIRETIME", key, b"FIELDS", count.as_bytes()];
        command.extend(names.iter().map(Vec::as_slice));
        let time = |reply| if let Reply::Integer(at) = reply { Some(at).filter(|at| *at >= 0) } else { None };
        Ok(array_of(link.ask(&command).await?).into_iter().map(time).collect())
    }

    /// Whether a hash consists of nothing but fields whose time is over.
    pub async fn is_gone_hash(&mut self, side: Side, key: &[u8]) -> Result<bool, VerifyError> {
        let mut cursor = b"0".to_vec();
        loop {
            let flat = match self.scan(side, b"HSCAN", key, &mut cursor).await {
                // It is something else by now.
                Err(error) if error.to_string().contains("WRONGTYPE") => return Ok(false),
                flat => flat?,
            };
            let (names, _): (Vec<_>, Vec<_>) = pairs(flat).unzip();
            if !names.is_empty() {
                let times = self.field_times(side, key, &names).await?;
                let is_over = |index| self.clocks.expired_on_destination(times.get(index).copied().flatten());
                if !(0..names.len()).all(is_over) {
                    return Ok(false);
                }
            }
            if cursor == b"0" {
                return Ok(true);
            }
        }
    }

    async fn stream(&mut self, key: &[u8]) -> Result<Option<Found>, VerifyError> {
        let count = PIECE.to_string();
        let mut from = b"-".to_vec();
        loop {
            let (here, there) = self.both(&[b"XRANGE", key, &from, b"+", b"COUNT", count.as_bytes()]).await?;
            let (here, there) = (array_of(here), array_of(there));
            if let Some(at) = (0..here.len().max(there.len())).find(|at| here.get(*at) != there.get(*at)) {
                let id = |entries: &[Reply]| entries.get(at).map_or("nothing".to_owned(), entry_id);
                let (here, there) = (id(&here), id(&there));
                let same = here == there;
                let place = format!("entry {here}");
                let found = if same {
                    Found::new(Kind::Value, "one content", "another content")
                } else {
                    Found::new(Kind::Value, here, there)
                };
                return Ok(Some(found.at(place)));
            }
            let Some(next) =
                here.last().filter(|_| here.len() == PIECE).and_then(|entry| after(&entry_id(entry)))
            else {
                break;
            };
            from = next.into_bytes();
        }
        let (here, there) = self.both(&[b"XINFO", b"STREAM", key]).await?;
        for name in ["last-generated-id", "max-deleted-entry-id", "entries-added"] {
            if let (Some(here), Some(there)) = (member(&here, name), member(&there, name))
                && here != there
            {
                return Ok(Some(Found::new(Kind::Stream, words(here), words(there)).at(name)));
            }
        }
        self.groups(key).await
    }

    async fn groups(&mut self, key: &[u8]) -> Result<Option<Found>, VerifyError> {
        let (here, there) = self.both(&[b"XINFO", b"GROUPS", key]).await?;
        let (here, there) = (array_of(here), array_of(there));
        if let Some(group) = there.iter().find(|group| named(&here, group).is_none()) {
            let place = format!("group {}", member(group, "name").map_or_else(String::new, words));
            return Ok(Some(Found::new(Kind::StreamGroup, "missing", "present").at(place)));
        }
        for group in &here {
            let name = member(group, "name").cloned().map(bytes_of).unwrap_or_default();
            let place = format!("group {}", quoted(&name));
            let Some(other) = named(&there, group) else {
                return Ok(Some(Found::new(Kind::StreamGroup, "present", "missing").at(place)));
            };
            for field in ["last-delivered-id", "consumers", "pending"] {
                let (mine, theirs) = (member(group, field), member(other, field));
                if mine != theirs {
                    let say =
                        |reply: Option<&Reply>| format!("{field} {}", reply.map_or_else(String::new, words));
                    return Ok(Some(Found::new(Kind::StreamGroup, say(mine), say(theirs)).at(place)));
                }
            }
            let (mine, theirs) = self.both(&[b"XINFO", b"CONSUMERS", key, &name]).await?;
            let consumers = |reply: Reply| {
                let mut list: Vec<(String, String)> = array_of(reply)
                    .iter()
                    .map(|consumer| {
                        let field = |name| member(consumer, name).map_or_else(String::new, words);
                        (field("name"), field("pending"))
                    })
                    .collect();
                list.sort();
                list
            };
            let (mine, theirs) = (consumers(mine), consumers(theirs));
            if mine != theirs {
                let say = |list: &[(String, String)]| {
                    let words: Vec<_> =
                        list.iter().map(|(name, count)| format!("{name} {count} pending")).collect();
                    crate::format::cut(&words.join(", "), 200, "…")
                };
                return Ok(Some(Found::new(Kind::StreamGroup, say(&mine), say(&theirs)).at(place)));
            }
            if let Some(found) = self.pending(key, &name, &place).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Pending entries of a group, in pages: ID, consumer and delivery count. (Idle times are no points in time.)
    async fn pending(&mut self, key: &[u8], group: &[u8], place: &str) -> Result<Option<Found>, VerifyError> {
        let count = PIECE.to_string();
        let mut from = b"-".to_vec();
        loop {
            let (here, there) = self.both(&[b"XPENDING", key, group, &from, b"+", count.as_bytes()]).await?;
            let rows = |reply: Reply| -> Vec<Vec<String>> {
                let row = |row: &Reply| match row {
                    Reply::Array(parts) => {
                        [0, 1, 3].iter().filter_map(|at| parts.get(*at)).map(words).collect()
                    }
                    _ => Vec::new(),
                };
                array_of(reply).iter().map(row).collect()
            };
            let (here, there) = (rows(here), rows(there));
            if let Some(at) = (0..here.len().max(there.len())).find(|at| here.get(*at) != there.get(*at)) {
                let say = |rows: &[Vec<String>]| {
                    rows.get(at)
                        .map_or("nothing pending".to_owned(), |row| format!("pending {}", row.join(", ")))
                };
                return Ok(Some(Found::new(Kind::StreamGroup, say(&here), say(&there)).at(place)));
            }
            let Some(next) = here
                .last()
                .filter(|_| here.len() == PIECE)
                .and_then(|row| after(row.first()?.trim_matches('\'')))
            else {
                return Ok(None);
            };
            from = next.into_bytes();
        }
    }
}

/// The ID that follows (servers before 6.2 know no open ranges).
fn after(id: &str) -> Option<String> {
    let (ms, seq) = id.split_once('-')?;
    let (ms, seq) = (ms.parse::<u64>().ok()?, seq.parse::<u64>().ok()?);
    Some(match seq.checked_add(1) {
        Some(seq) => format!("{ms}-{seq}"),
        None => format!("{}-0", ms.checked_add(1)?),
    })
}

fn entry_id(entry: &Reply) -> String {
    match entry {
        Reply::Array(parts) => parts.first().and_then(Reply::text).unwrap_or_default().to_owned(),
        _ => String::new(),
    }
}

/// The value of a name in a flat list of names and values.
fn member<'a>(reply: &'a Reply, name: &str) -> Option<&'a Reply> {
    let Reply::Array(parts) = reply else { return None };
    parts
        .chunks_exact(2)
        .find(|pair| pair.first().and_then(Reply::text) == Some(name))
        .and_then(|pair| pair.get(1))
}

/// The group of the same name.
fn named<'a>(groups: &'a [Reply], like: &Reply) -> Option<&'a Reply> {
    let name = member(like, "name");
    groups.iter().find(|group| member(group, "name") == name)
}

fn words(reply: &Reply) -> String {
    match reply {
        Reply::Bulk(text) => quoted(text),
        Reply::Status(text) => quoted(text.as_bytes()),
        Reply::Integer(number) => number.to_string(),
        _ => "nothing".into(),
    }
}

fn bytes_of(reply: Reply) -> Vec<u8> {
    match reply {
        Reply::Bulk(bytes) => bytes,
        Reply::Status(text) => text.into_owned().into_bytes(),
        _ => Vec::new(),
    }
}

fn array_of(reply: Reply) -> Vec<Reply> {
    if let Reply::Array(parts) = reply { parts } else { Vec::new() }
}

fn items_of(reply: Reply) -> Vec<Vec<u8>> {
    array_of(reply).into_iter().map(bytes_of).collect()
}

fn pairs(flat: Vec<Vec<u8>>) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let mut flat = flat.into_iter();
    std::iter::from_fn(move || Some((flat.next()?, flat.next()?)))
}
