//! One side of a comparison: a pipelined connection, what the server is able to do, and whether its user may.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::timeout;

use super::super::data_dir::DataDirError;
use super::super::net::{Connection, NetError, info_field};
use super::super::replay::target_of;
use crate::config::{Address, Endpoint};
use crate::rdb::dump::Target;
use crate::resp::{self, Reply};
use crate::verify::Mode;

/// Longest wait for the next bytes of an answer; a server may be busy with somebody's slow command.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Free room that a read finds in the buffer.
const READ_BYTES: usize = 64 * 1024;
/// A cluster is changing: what it is now is to be asked for.
const ELSEWHERE: [&str; 5] = ["MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN", "READONLY"];
/// A key that nobody has: the rights are tried on it.
pub(super) const PROBE_KEY: &[u8] = b"shakedeck:probe";

/// Which end of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where the data comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Source => "source",
            Side::Destination => "destination",
        })
    }
}

/// Why a comparison could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// One server could not be reached, or said no.
    #[error("{side} {error}")]
    Net {
        /// Which one.
        side: Side,
        /// What happened.
        error: NetError,
    },
    /// The user of one side lacks rights.
    #[error(
        "{side} {address}: its user may not use {}. On that server: ACL SETUSER {user} ~* {}",
        missing.join(", "),
        missing.iter().map(|verb| format!("+{}", verb.to_lowercase().replace(' ', "|"))).collect::<Vec<_>>().join(" ")
    )]
    Rights {
        /// Which one.
        side: Side,
        /// Its address.
        address: Address,
        /// The user.
        user: String,
        /// Commands that are denied.
        missing: Vec<String>,
    },
    /// The repair would do harm.
    #[error("no repair: {0}")]
    Repair(String),
    /// What was asked for is not possible.
    #[error("{0}")]
    Options(String),
    /// A file of the data directory.
    #[error("cannot write '{path}': {cause}", path = path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
}

impl VerifyError {
    /// Exit code of the process (README, "Exit codes").
    pub fn exit_code(&self) -> i32 {
        use super::super::exit;
        match self {
            VerifyError::Net { side: Side::Source, .. } | VerifyError::Rights { side: Side::Source, .. } => {
                exit::SOURCE
            }
            VerifyError::Net { .. } | VerifyError::Rights { .. } => exit::DESTINATION,
            VerifyError::Repair(_) | VerifyError::Options(_) => exit::CONFIG,
            VerifyError::File { .. } | VerifyError::DataDir(_) => exit::SPOOL,
        }
    }

    /// True when trying again may help.
    pub(super) fn is_transient(&self) -> bool {
        let VerifyError::Net { error, .. } = self else { return false };
        match error {
            NetError::Refused { reply, .. } if ELSEWHERE.iter().any(|word| reply.starts_with(word)) => true,
            error => error.is_transient(),
        }
    }
}

/// A connection on which commands are collected and sent together.
pub struct Link {
    side: Side,
    connection: Connection,
    db: u32,
    out: Vec<u8>,
    waiting: usize,
}

impl Link {
    /// Connects; database 0.
    pub async fn open(side: Side, endpoint: &Endpoint) -> Result<Link, VerifyError> {
        let connection =
            Connection::open(endpoint).await.map_err(|error| VerifyError::Net { side, error })?;
        let mut link = Link { side, connection, db: 0, out: Vec::new(), waiting: 0 };
        // So that a comparison does not make every key a recently used one. Servers before 7.2 do not know it, and a user
        // may lack the right: it is done without then, as by all other clients.
        link.push(&[b"CLIENT", b"NO-TOUCH", b"ON"]);
        link.flush().await?;
        Ok(link)
    }

    /// Adds a command.
    pub fn push(&mut self, args: &[&[u8]]) {
        resp::append_command(&mut self.out, args);
        self.waiting += 1;
    }

    /// Makes sure that the next commands are for this database; nothing else may have been added yet.
    pub async fn select(&mut self, db: u32) -> Result<(), VerifyError> {
        if self.db != db {
            self.ask(&[b"SELECT", db.to_string().as_bytes()]).await?;
            self.db = db;
        }
        Ok(())
    }

    /// Sends what was added and takes the replies, in order. Errors among them are values.
    pub async fn flush(&mut self) -> Result<Vec<Reply>, VerifyError> {
        let side = self.side;
        let net = |error| VerifyError::Net { side, error };
        let out = std::mem::take(&mut self.out);
        self.connection.send(&out, "verification").await.map_err(net)?;
        self.out = out;
        self.out.clear();
        let count = std::mem::take(&mut self.waiting);
        let mut replies = Vec::with_capacity(count);
        while replies.len() < count {
            match decode(&self.connection.buffer) {
                Ok(Some((reply, len))) => {
                    bytes::Buf::advance(&mut self.connection.buffer, len);
                    replies.push(reply);
                }
                Ok(None) => {
                    self.connection.buffer.reserve(READ_BYTES);
                    match timeout(ANSWER_LIMIT, self.connection.fill("verification")).await {
                        Ok(filled) => filled.map_err(net)?,
                        Err(_) => {
                            return Err(net(NetError::Timeout {
                                address: self.connection.address.clone(),
                                what: "verification".into(),
                                limit: ANSWER_LIMIT,
                            }));
                        }
                    }
                }
                Err(error) => return Err(self.odd("verification", &error.found)),
            }
        }
        Ok(replies)
    }

    /// Sends one command; an error reply is an error.
    pub async fn ask(&mut self, args: &[&[u8]]) -> Result<Reply, VerifyError> {
        self.push(args);
        let verb = String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned();
        match self.flush().await?.pop() {
            Some(Reply::Error(reply)) => Err(self.refused(&verb, reply)),
            Some(reply) => Ok(reply),
            None => Err(self.odd(&verb, "nothing")),
        }
    }

    /// The text of INFO.
    pub async fn info(&mut self, section: &str) -> Result<String, VerifyError> {
        match self.ask(&[b"INFO", section.as_bytes()]).await? {
            Reply::Bulk(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            other => Err(self.odd("INFO", &format!("{other:?}"))),
        }
    }

    /// The server said no.
    pub fn refused(&self, verb: &str, reply: String) -> VerifyError {
        VerifyError::Net {
            side: self.side,
            error: NetError::Refused {
                address: self.connection.address.clone(),
                what: verb.to_owned(),
                cure: if reply.starts_with("NOPERM") {
                    "Its user needs the rights that the README lists for verification.".into()
                } else if reply.starts_with("NOAUTH") {
                    "It wants a password: set 'password' (and 'username') of this side.".into()
                } else {
                    "Look at that server's log.".into()
                },
                reply,
            },
        }
    }

    /// An answer that no Redis gives.
    pub fn odd(&self, what: &str, found: &str) -> VerifyError {
        VerifyError::Net {
            side: self.side,
            error: NetError::Protocol {
                address: self.connection.address.clone(),
                what: what.to_owned(),
                found: crate::format::escape(found, 100),
                cure: "Is this the port of a Redis or Valkey server?".into(),
            },
        }
    }

    /// Where it goes.
    pub fn address(&self) -> &Address {
        &self.connection.address
    }
}

/// Integers, by far the most frequent reply here, without the general decoder.
fn decode(buffer: &[u8]) -> Result<Option<(Reply, usize)>, resp::RespError> {
    if let Some(rest) = buffer.strip_prefix(b":")
        && let Some(end) = memchr::memchr(b'\r', rest.get(..24).unwrap_or(rest))
        && rest.get(end + 1) == Some(&b'\n')
        && let Some(number) = std::str::from_utf8(rest.get(..end).unwrap_or_default())
            .ok()
            .and_then(|digits| digits.parse().ok())
    {
        return Ok(Some((Reply::Integer(number), end + 3)));
    }
    Reply::decode(buffer)
}

/// What is in a database, as INFO tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    /// Keys.
    pub keys: u64,
    /// Those of them that have a time to live.
    pub expires: u64,
    /// Hashes of which fields have one.
    pub fields: u64,
}

/// What a server can do, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Flavour and version.
    pub target: Target,
    /// Its own words for that: servers with other words are not the same.
    pub version: String,
    /// Names the server process: SCAN cursors are valid within one.
    pub run_id: String,
    /// What is in each database.
    pub databases: BTreeMap<u32, Numbers>,
    /// DUMP works there.
    pub dump: bool,
    /// DEBUG DIGEST-VALUE works there.
    pub digest: bool,
    /// MEMORY USAGE works there.
    pub memory_usage: bool,
}

impl Server {
    /// Asks, and tries whether the user may use what `mode` needs. Names every right that is missing.
    /// `cluster`: it is taken for a node of one.
    pub async fn look(
        link: &mut Link,
        endpoint: &Endpoint,
        mode: Mode,
        cluster: bool,
    ) -> Result<Server, VerifyError> {
        let user = endpoint.username.clone().unwrap_or_else(|| "default".into());
        link.push(&[b"INFO"]);
        let info = match link.flush().await?.pop() {
            Some(Reply::Bulk(info)) => String::from_utf8_lossy(&info).into_owned(),
            Some(Reply::Error(reply)) if reply.starts_with("NOPERM") => String::new(),
            Some(Reply::Error(reply)) => return Err(link.refused("INFO", reply)),
            other => return Err(link.odd("INFO", &format!("{other:?}"))),
        };
        if info_field(&info, "cluster_enabled") == Some("1") && !cluster {
            let (side, address) = (link.side, link.address());
            return Err(VerifyError::Options(format!(
                "{side} {address}: it is a node of a cluster: write 'cluster = true' for this side"
            )));
        }
        let target = target_of(&info);
        let mut missing = Vec::new();
        if info.is_empty() {
            missing.push("INFO".to_owned());
        }
        let tried = needed(mode, target);
        for command in &tried {
            link.push(command);
        }
        let mut server = Server {
            target,
            version: ["valkey_version", "redis_version"]
                .iter()
                .find_map(|name| Some(format!("{name} {}", info_field(&info, name)?)))
                .unwrap_or_default(),
            run_id: info_field(&info, "run_id").unwrap_or_default().to_owned(),
            databases: databases(&info),
            dump: true,
            digest: true,
            memory_usage: target.has_redis(4, 0),
        };
        for (command, reply) in tried.iter().zip(link.flush().await?) {
            let Reply::Error(reply) = reply else { continue };
            // Another node has that key; rights come before redirections.
            if cluster && ["MOVED ", "ASK ", "TRYAGAIN"].iter().any(|word| reply.starts_with(word)) {
                continue;
            }
            let word = |at: usize| {
                String::from_utf8_lossy(command.get(at).copied().unwrap_or_default()).into_owned()
            };
            let verb = word(0);
            match verb.as_str() {
                "DEBUG" => server.digest = false,
                "DUMP" => server.dump = false,
                "MEMORY" => server.memory_usage = false,
                _ if reply.starts_with("NOPERM") => missing.push(verb),
                _ if reply.contains("unknown command") => {
                    return Err(VerifyError::Options(format!(
                        "{} {}: the server does not offer {verb} ('{}'), which this verification needs",
                        link.side,
                        link.address(),
                        crate::format::escape(&reply, 100)
                    )));
                }
                _ if reply.starts_with("ERR") || reply.starts_with("WRONGTYPE") => {}
                _ => return Err(link.refused(&verb, reply)),
            }
        }
        if !missing.is_empty() {
            return Err(VerifyError::Rights {
                side: link.side,
                address: link.address().clone(),
                user,
                missing,
            });
        }
        Ok(server)
    }

    /// PEXPIRETIME: the time of expiry itself.
    pub fn tells_expiry(&self) -> bool {
        self.target.has_redis(7, 0)
    }

    /// SMISMEMBER and ZMSCORE.
    pub fn asks_many(&self) -> bool {
        self.target.has_redis(6, 2)
    }
}

/// One command of each kind that a mode needs, on a key that nobody has.
fn needed(mode: Mode, target: Target) -> Vec<Vec<&'static [u8]>> {
    let expiry: &'static [u8] = if target.has_redis(7, 0) { b"PEXPIRETIME" } else { b"PTTL" };
    let mut tried: Vec<Vec<&'static [u8]>> = vec![
        vec![b"SELECT", b"0"],
        vec![b"DBSIZE"],
        vec![b"SCAN", b"0", b"MATCH", PROBE_KEY, b"COUNT", b"1"],
        vec![b"TIME"],
    ];
    let mut keys: Vec<&'static [u8]> = Vec::new();
    keys.extend([&b"TYPE"[..], expiry, b"EXISTS"]);
    if mode == Mode::Count {
        keys.push(b"PTTL");
    }
    if matches!(mode, Mode::Meta | Mode::Full) {
        keys.extend([&b"STRLEN"[..], b"LLEN", b"SCARD", b"ZCARD", b"HLEN"]);
        if target.has_redis(5, 0) {
            keys.push(b"XLEN");
        }
    }
    if matches!(mode, Mode::Digest | Mode::Full) {
        keys.push(b"DUMP");
        if target.has_redis(4, 0) {
            tried.push(vec![b"MEMORY", b"USAGE", PROBE_KEY]);
        }
    }
    if mode == Mode::Digest {
        tried.push(vec![b"DEBUG", b"DIGEST-VALUE", PROBE_KEY]);
    }
    tried.extend(keys.into_iter().map(|verb| vec![verb, PROBE_KEY]));
    tried
}

/// The databases of INFO: `db0:keys=12,expires=3,avg_ttl=0,subexpiry=1`; the last one is Redis' word, Valkey has another.
pub(super) fn databases(info: &str) -> BTreeMap<u32, Numbers> {
    let number = |fields: &str, name: &str| {
        fields.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('=')?.trim().parse().ok())
    };
    info.lines()
        .filter_map(|line| {
            let (db, fields) = line.strip_prefix("db")?.split_once(':')?;
            let hashes =
                ["subexpiry", "keys_with_volatile_items"].iter().find_map(|name| number(fields, name));
            let expires = number(fields, "expires").unwrap_or(0);
            let numbers = Numbers { keys: number(fields, "keys")?, expires, fields: hashes.unwrap_or(0) };
            Some((db.parse().ok()?, numbers))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn integers_are_decoded_like_the_general_decoder_does() {
        for text in [":1\r\n", ":-2\r\n:5\r\n", ":1\r", ":", "+OK\r\n", ":9223372036854775807\r\n"] {
            assert_eq!(decode(text.as_bytes()), Reply::decode(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn databases_are_read_from_info() {
        let info = "# Keyspace\r\ndb0:keys=12,expires=3,avg_ttl=0\r\ndb3:keys=1,expires=0,avg_ttl=0,subexpiry=1\r\ndb4:keys=2,expires=0,avg_ttl=0,keys_with_volatile_items=2\r\ndbsize:x\r\n";
        let numbers = |keys, expires, fields| Numbers { keys, expires, fields };
        let expected = [(0, numbers(12, 3, 0)), (3, numbers(1, 0, 1)), (4, numbers(2, 0, 2))];
        assert_eq!(databases(info), BTreeMap::from(expected));
    }

    #[test]
    fn missing_rights_are_named_with_the_cure() {
        let error = VerifyError::Rights {
            side: Side::Source,
            address: Address::Tcp { host: "10.0.0.1".into(), port: 6379 },
            user: "shakedeck".into(),
            missing: vec!["SCAN".into(), "MEMORY USAGE".into()],
        };
        assert_eq!(
            error.to_string(),
            "source 10.0.0.1:6379: its user may not use SCAN, MEMORY USAGE. On that server: ACL SETUSER shakedeck ~* +scan +memory|usage"
        );
        assert_eq!(error.exit_code(), 3);
    }
}
