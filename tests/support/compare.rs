//! Are two servers equal? Key by key in every database (type, value, time of expiry), then by DEBUG DIGEST.
//!
//! A value is compared by its DUMP payload without version and checksum. Where the payloads differ, that alone says
//! nothing (the order in a hash table depends on the server process), and its digest or the value itself is compared. Keys of the
//! destination that begin with `shakedeck:` belong to the tool; while there are any, or the versions differ, the digests are not compared.

use std::collections::BTreeSet;
use std::fmt;

use redis_protocol::resp2::types::Resp2Frame;

use super::client::{Client, Reply, keys_like};
use super::dataset::unix_ms_of;
use super::server::Server;

/// Times of expiry may differ by this much (ms).
pub(super) const TTL_TOLERANCE: i64 = 5;
/// First byte of a DUMP: hash tables of values without times of their own, for which DEBUG DIGEST-VALUE says all.
const RDB_TYPE_SET: u8 = 2;
const RDB_TYPE_HASH: u8 = 4;
/// Differences that are listed; all are counted.
const LISTED: usize = 20;

/// What was found equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Equal {
    pub keys: usize,
    pub databases: usize,
    /// Whether DEBUG DIGEST was compared too.
    pub digest: bool,
}

/// What was found different, for people.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Differences {
    pub count: usize,
    pub listed: Vec<String>,
}

impl fmt::Debug for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} differences:", self.count)?;
        self.listed.iter().try_for_each(|line| write!(f, "\n  {line}"))?;
        if self.count > self.listed.len() { write!(f, "\n  …") } else { Ok(()) }
    }
}

impl Differences {
    pub(super) fn add(&mut self, line: String) {
        self.count += 1;
        if self.listed.len() < LISTED {
            self.listed.push(line);
        }
    }
}

/// Panics with the list of differences unless both are equal.
#[track_caller]
pub fn assert_equal(source: &Server, destination: &Server) -> Equal {
    match equal(source, destination) {
        Ok(equal) => equal,
        Err(differences) => panic!("{} and {}: {differences:?}", source.binary(), destination.binary()),
    }
}

/// Compares two servers at rest.
pub fn equal(source: &Server, destination: &Server) -> Result<Equal, Differences> {
    equal_in(source, destination, |_| true)
}

/// Compares some databases of two servers at rest.
pub fn equal_in(
    source: &Server,
    destination: &Server,
    wanted: impl Fn(u32) -> bool,
) -> Result<Equal, Differences> {
    let mut left = Side { client: source.client(), name: "source" };
    let mut right = Side { client: destination.client(), name: "destination" };
    let mut differences = Differences::default();
    let (mut count, mut tool_keys) = (0, 0);
    let present: BTreeSet<String> = left.databases().into_iter().chain(right.databases()).collect();
    let databases: BTreeSet<&String> =
        present.iter().filter(|name| name.parse().is_ok_and(&wanted)).collect();
    for database in &databases {
        left.client.ok(&["SELECT", database]);
        right.client.ok(&["SELECT", database]);
        let keys = keys_like(&mut left.client, "*");
        let other: BTreeSet<Vec<u8>> = keys_like(&mut right.client, "*");
        tool_keys += other.iter().filter(|key| is_tool_key(key)).count();
        for key in keys.difference(&other) {
            // It may have expired between the two looks.
            if left.client.integer(&[b"EXISTS", key.as_slice()]) == 1 {
                differences
                    .add(format!("db {database}: '{}' is missing on the destination", key.escape_ascii()));
            }
        }
        for key in other.difference(&keys).filter(|key| !is_tool_key(key)) {
            if right.client.integer(&[b"EXISTS", key.as_slice()]) == 1 {
                differences
                    .add(format!("db {database}: '{}' is only on the destination", key.escape_ascii()));
            }
        }
        let common: Vec<Vec<u8>> = keys.intersection(&other).cloned().collect();
        count += common.len();
        for some in common.chunks(500) {
            compare_keys(&mut left, &mut right, some, database, &mut differences);
        }
    }
    // Digests of different versions differ: they are made from numbers as the version writes them.
    let version = |server: &Server| (server.binary().flavor, server.binary().version);
    let digest =
        tool_keys == 0 && databases.len() == present.len() && version(source) == version(destination);
    if differences.count == 0 && digest {
        // Looking at the keys has removed the expired ones on both sides.
        let digests = [&mut left, &mut right].map(|side| side.client.text(&["DEBUG", "DIGEST"]));
        if digests[0] != digests[1] {
            differences.add(format!("DEBUG DIGEST: source {}, destination {}", digests[0], digests[1]));
            for database in &databases {
                name_digests(&mut left, &mut right, database, &mut differences);
            }
        }
    }
    if differences.count == 0 {
        Ok(Equal { keys: count, databases: databases.len(), digest })
    } else {
        Err(differences)
    }
}

pub(super) fn is_tool_key(key: &[u8]) -> bool {
    key.starts_with(b"shakedeck:")
}

fn compare_keys(
    left: &mut Side,
    right: &mut Side,
    keys: &[Vec<u8>],
    database: &str,
    differences: &mut Differences,
) {
    let sides = [left.payloads(keys), right.payloads(keys)];
    let mut unlike = Vec::new();
    for (n, key) in keys.iter().enumerate() {
        let [(here, here_expires), (there, there_expires)] = [&sides[0][n], &sides[1][n]];
        // A key that has just expired on both sides has no time left to compare.
        if here.is_some() && there.is_some() && (here_expires - there_expires).abs() > TTL_TOLERANCE {
            let name = key.escape_ascii();
            differences.add(format!(
                "db {database}: '{name}' expires on the source at {here_expires}, on the destination at {there_expires} (Unix ms, -1 = never)"
            ));
        }
        if here != there {
            let types = [here, there].map(|payload| payload.as_ref().and_then(|payload| payload.first()));
            unlike
                .push((key, types.iter().all(|kind| matches!(*kind, Some(&(RDB_TYPE_SET | RDB_TYPE_HASH))))));
        }
    }
    // The order in a hash table means nothing. There are many of them, so the digests are asked for all at once.
    let tables: Vec<&Vec<u8>> = unlike.iter().filter(|(_, table)| *table).map(|(key, _)| *key).collect();
    let digests = [left.digests(&tables), right.digests(&tables)];
    let others = unlike.iter().filter(|(_, table)| !table).map(|(key, _)| *key);
    let different =
        tables.iter().zip(digests[0].iter().zip(&digests[1])).filter(|(_, (here, there))| here != there);
    for key in different.map(|(key, _)| *key).chain(others) {
        let [source, destination] = [left.value(key), right.value(key)];
        if source != destination {
            let (name, source, destination) = (key.escape_ascii(), cut(&source), cut(&destination));
            differences.add(format!("db {database}: '{name}': source {source}, destination {destination}"));
        }
    }
}

/// Which keys make the digests differ.
fn name_digests(left: &mut Side, right: &mut Side, database: &str, differences: &mut Differences) {
    left.client.ok(&["SELECT", database]);
    right.client.ok(&["SELECT", database]);
    let keys = keys_like(&mut left.client, "*");
    let keys: Vec<&Vec<u8>> = keys.iter().collect();
    for some in keys.chunks(500) {
        let digests = [left.digests(some), right.digests(some)];
        let pairs = digests[0].iter().zip(&digests[1]);
        for (key, _) in some.iter().zip(pairs).filter(|(_, (here, there))| here != there) {
            let [source, destination] = [left.value(key), right.value(key)].map(|value| cut(&value));
            let name = key.escape_ascii();
            differences.add(format!(
                "db {database}: '{name}' has another digest: source {source}, destination {destination}"
            ));
        }
    }
}

pub(super) fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(300).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

pub(super) struct Side {
    pub(super) client: Client,
    pub(super) name: &'static str,
}

impl Side {
    pub(super) fn databases(&mut self) -> Vec<String> {
        let text = self.client.text(&["INFO", "keyspace"]);
        text.lines().filter_map(|line| Some(line.strip_prefix("db")?.split_once(':')?.0.to_owned())).collect()
    }

    /// DUMP without version and checksum, and the time of expiry (Unix ms, -1 = never), of each key.
    pub(super) fn payloads(&mut self, keys: &[Vec<u8>]) -> Vec<(Option<Vec<u8>>, i64)> {
        // PEXPIRETIME came with 7.0; before it the time is counted from the server's clock, asked for in the same moment.
        // A node of a cluster may answer MOVED, which says that it knows the command.
        let answer = self.client.cmd(&["PEXPIRETIME", ""]);
        let exact = !matches!(&answer, Reply::Error(error) if error.starts_with("ERR unknown command"));
        for key in keys {
            self.client.push(&[b"DUMP", key.as_slice()]);
            if exact {
                self.client.push(&[b"PEXPIRETIME", key.as_slice()]);
                continue;
            }
            self.client.push(&["MULTI"]);
            self.client.push(&["TIME"]);
            self.client.push(&[b"PTTL", key.as_slice()]);
            self.client.push(&["EXEC"]);
        }
        let answers = if exact { 2 } else { 5 };
        let replies = self.client.flush(answers * keys.len());
        let mut all = Vec::new();
        for replies in replies.chunks(answers) {
            let payload = match &replies[0] {
                Reply::BulkString(payload) => Some(payload[..payload.len().saturating_sub(10)].to_vec()),
                Reply::Null => None,
                other => panic!("{}: DUMP answered {other:?}", self.name),
            };
            let expires = match &replies[answers - 1] {
                Reply::Integer(time) => *time,
                Reply::Array(both) => match &both[..] {
                    [time, Reply::Integer(left)] if *left >= 0 => unix_ms_of(time) as i64 + left,
                    [_, Reply::Integer(none)] => *none,
                    other => panic!("{}: PTTL answered {other:?}", self.name),
                },
                other => panic!("{}: the time of expiry: {other:?}", self.name),
            };
            all.push((payload, expires));
        }
        all
    }

    /// DEBUG DIGEST-VALUE of each key.
    fn digests(&mut self, keys: &[&Vec<u8>]) -> Vec<Vec<u8>> {
        if keys.is_empty() {
            return Vec::new();
        }
        let mut command: Vec<&[u8]> = vec![b"DEBUG", b"DIGEST-VALUE"];
        command.extend(keys.iter().map(|key| key.as_slice()));
        self.client.list(&command)
    }

    /// The value in words that do not depend on the server process or its version.
    pub(super) fn value(&mut self, key: &[u8]) -> String {
        let kind = self.client.text(&[b"TYPE".as_slice(), key]);
        let sorted = |mut items: Vec<Vec<u8>>| {
            items.sort();
            show_all(&items)
        };
        let text = match kind.as_str() {
            "none" => "nothing".into(),
            "string" => show_all(&[self.client.bytes(&[b"GET".as_slice(), key]).unwrap_or_default()]),
            "list" => show_all(&self.client.list(&[b"LRANGE".as_slice(), key, b"0", b"-1"])),
            "set" => sorted(self.client.list(&[b"SMEMBERS".as_slice(), key])),
            "zset" => {
                let mut flat = self.client.list(&[b"ZRANGE".as_slice(), key, b"0", b"-1", b"WITHSCORES"]);
                // The same number is written differently by different versions.
                for score in flat.iter_mut().skip(1).step_by(2) {
                    let number: f64 = String::from_utf8_lossy(score).parse().unwrap();
                    *score = number.to_string().into_bytes();
                }
                show_all(&flat)
            }
            "hash" => self.hash(key),
            "stream" => {
                let entries = self.client.ok(&[b"XRANGE".as_slice(), key, b"-", b"+"]);
                let state = self.client.ok(&[b"XINFO".as_slice(), b"STREAM", key, b"FULL", b"COUNT", b"0"]);
                format!("{} {}", show_reply(&entries), show_reply(&stream_state(state)))
            }
            other => panic!("{}: unknown type '{other}'", self.name),
        };
        format!("{kind} {text}")
    }

    fn hash(&mut self, key: &[u8]) -> String {
        let flat = self.client.list(&[b"HGETALL".as_slice(), key]);
        let names: Vec<&[u8]> = flat.iter().step_by(2).map(Vec::as_slice).collect();
        let (count, mut command) =
            (names.len().to_string(), vec![b"HPEXPIRETIME".as_slice(), key, b"FIELDS"]);
        command.push(count.as_bytes());
        command.extend(names);
        // Servers without times for fields answer with an error.
        let times = if let Reply::Array(times) = self.client.cmd(&command) { times } else { Vec::new() };
        let mut fields: Vec<Vec<u8>> = Vec::new();
        for (n, pair) in flat.chunks(2).enumerate() {
            let expires = match times.get(n) {
                Some(Reply::Integer(time)) if *time >= 0 => format!(" expires {time}"),
                _ => String::new(),
            };
            fields.push([pair[0].as_slice(), b" = ", &pair[1], expires.as_bytes()].concat());
        }
        fields.sort();
        show_all(&fields)
    }
}

/// Of XINFO STREAM FULL what every version has and a native replica keeps equal: no inner structure, no times at which
/// consumers were seen, no `entries-read` and `lag` (which the stream of a Redis 7.0 does not carry exactly).
fn stream_state(state: Reply) -> Reply {
    const KEPT: [&[u8]; 12] = [
        b"length",
        b"last-generated-id",
        b"max-deleted-entry-id",
        b"entries-added",
        b"recorded-first-entry-id",
        b"name",
        b"last-delivered-id",
        b"pel-count",
        b"pel",
        b"pending",
        b"groups",
        b"consumers",
    ];
    let Reply::Array(items) = state else { return state };
    let mut kept = Vec::new();
    let mut items = items.into_iter();
    while let (Some(name), Some(value)) = (items.next(), items.next()) {
        match (name.as_bytes().unwrap_or_default(), value) {
            (b"groups" | b"consumers", Reply::Array(members)) => {
                kept.extend([name, Reply::Array(members.into_iter().map(stream_state).collect())]);
            }
            (word, value) if KEPT.contains(&word) => kept.extend([name, value]),
            _ => {}
        }
    }
    Reply::Array(kept)
}

fn show_all(items: &[Vec<u8>]) -> String {
    let words: Vec<String> = items.iter().map(|item| format!("'{}'", item.escape_ascii())).collect();
    words.join(" ")
}

fn show_reply(reply: &Reply) -> String {
    match reply {
        Reply::Array(items) => format!("[{}]", items.iter().map(show_reply).collect::<Vec<_>>().join(" ")),
        Reply::Integer(number) => number.to_string(),
        Reply::Null => "nil".into(),
        other => format!("'{}'", other.as_bytes().unwrap_or_default().escape_ascii()),
    }
}
