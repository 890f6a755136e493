//! The control connection to one source master: questions, the pause, the refusal of writes, and their undoing.
//!
//! The odd one is `CLIENT PAUSE 0 WRITE`: a pause of no length, which asks for the right to pause without using it.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::record::{Restore, UserRules};
use crate::config::Endpoint;
use crate::cutover::{FenceKind, SourceFacts};
use crate::engine::net::{Connection, NetError, info_field};
use crate::resp::Reply;

/// So many replicas no server has: `min-replicas-to-write` beyond all that may ever connect.
const BEYOND_ALL_REPLICAS: &str = "1000000";
/// `min-replicas-max-lag` where the server has 0, which would switch the refusal off (seconds; the server's default).
const MAX_LAG_DEFAULT: &str = "10";

/// Where a master stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// INFO's `role`.
    pub role: String,
    /// INFO's `master_replid`.
    pub replid: String,
    /// INFO's `master_repl_offset`.
    pub offset: u64,
}

/// A connection to one source master beside the replication link.
pub struct SourceControl {
    endpoint: Endpoint,
    /// In CLIENT LIST: that of every control connection of this migration, so that its next process knows them too.
    name: String,
    connection: Connection,
    /// How long one answer may take.
    limit: Duration,
}

impl SourceControl {
    /// Connects, for the migration `run_id`; every answer may take `limit`.
    pub async fn open(endpoint: &Endpoint, run_id: &str, limit: Duration) -> Result<SourceControl, NetError> {
        SourceControl::connect(endpoint.clone(), format!("shakedeck-cutover-{run_id}"), limit).await
    }

    /// Connects once more, after an error.
    pub async fn reopen(&mut self) -> Result<(), NetError> {
        *self = SourceControl::connect(self.endpoint.clone(), self.name.clone(), self.limit).await?;
        Ok(())
    }

    async fn connect(endpoint: Endpoint, name: String, limit: Duration) -> Result<SourceControl, NetError> {
        let connection =
            timeout(limit, Connection::open(&endpoint)).await.map_err(|_| NetError::Timeout {
                address: endpoint.address.clone(),
                what: "the connection attempt".into(),
                limit,
            })??;
        let mut control = SourceControl { endpoint, name, connection, limit };
        let name = control.name.clone();
        // A server that refuses it only has less to tell; see end_others.
        let _ = control.ask(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await?;
        Ok(control)
    }

    /// Ends the other control connections of this migration. What a link that stood still has not delivered yet cannot
    /// arrive any more then. `Err` = the server does not allow it.
    pub async fn end_others(&mut self) -> Result<Result<(), String>, NetError> {
        let list = match self.ask(&[b"CLIENT", b"LIST"]).await? {
            Reply::Bulk(list) => String::from_utf8_lossy(&list).into_owned(),
            Reply::Error(denied) => return Ok(Err(denied)),
            other => return Ok(Err(format!("{other:?}"))),
        };
        let all: Vec<&str> = named(&list, &self.name).collect();
        for id in all {
            // By its id: then it skips the one that asks, and counts how many there were.
            if let Reply::Error(denied) = self.ask(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()]).await? {
                return Ok(Err(denied));
            }
        }
        Ok(Ok(()))
    }

    /// Address in words.
    pub fn address(&self) -> String {
        self.endpoint.address.to_string()
    }

    /// What a cutover needs to know, by questions that change nothing. `streamed` is the history on the link.
    pub async fn facts(&mut self, streamed: Option<&str>, reverse: bool) -> Result<SourceFacts, NetError> {
        let standing = self.standing().await?;
        let version = match self.ask(&[b"INFO", b"server"]).await? {
            Reply::Bulk(info) => version_of(&String::from_utf8_lossy(&info)),
            _ => (0, 0),
        };
        let pause: &[&[u8]] = if version < (6, 2) {
            &[b"CLIENT", b"PAUSE", b"0"]
        } else {
            &[b"CLIENT", b"PAUSE", b"0", b"WRITE"]
        };
        let pause_denied = denial(self.ask(pause).await?);
        let config_denied = match self.write_limits().await? {
            Ok(limits) => denial(self.set_write_limits(&limits).await?),
            Err(denied) => Some(denied),
        };
        let user = self.endpoint.username.clone().unwrap_or_else(|| "default".into());
        let acl_denied = if reverse { self.other_users().await?.err() } else { None };
        Ok(SourceFacts {
            address: self.address(),
            unreachable: None,
            same_history: streamed == Some(standing.replid.as_str()),
            role: Some(standing.role),
            version,
            pause_denied,
            config_denied,
            user,
            acl_denied,
        })
    }

    /// Role, history and offset now.
    pub async fn standing(&mut self) -> Result<Standing, NetError> {
        let reply = self.ask(&[b"INFO", b"replication"]).await?;
        self.read_standing(reply)
    }

    /// Blocks writers for `time`. Returns until when they are blocked for certain: counted from before the question,
    /// and the server counts from its arrival. With [`FenceKind::PauseAll`] the offset is read in the same
    /// transaction, for nothing else will be answered before the end.
    pub async fn pause(
        &mut self,
        kind: FenceKind,
        time: Duration,
    ) -> Result<(Instant, Option<Standing>), NetError> {
        let until = Instant::now() + time;
        let ms = time.as_millis().to_string();
        if kind == FenceKind::PauseWrites {
            let reply = self.ask(&[b"CLIENT", b"PAUSE", ms.as_bytes(), b"WRITE"]).await?;
            self.must("CLIENT PAUSE", reply)?;
            return Ok((until, None));
        }
        self.ask(&[b"MULTI"]).await?;
        let queued = self.ask(&[b"CLIENT", b"PAUSE", ms.as_bytes()]).await?;
        self.must("CLIENT PAUSE", queued)?;
        self.ask(&[b"INFO", b"replication"]).await?;
        match self.ask(&[b"EXEC"]).await? {
            Reply::Array(mut replies) if replies.len() == 2 => {
                let standing = replies.pop().unwrap_or(Reply::Null);
                let paused = replies.pop().unwrap_or(Reply::Null);
                self.must("CLIENT PAUSE", paused)?;
                Ok((until, Some(self.read_standing(standing)?)))
            }
            other => Err(self.refused("CLIENT PAUSE", format!("{other:?}"))),
        }
    }

    /// Lets writers through.
    pub async fn unpause(&mut self) -> Result<(), NetError> {
        let reply = self.ask(&[b"CLIENT", b"UNPAUSE"]).await?;
        self.must("CLIENT UNPAUSE", reply)
    }

    /// What [`SourceControl::refuse`] is going to change, as it is now.
    pub async fn present_limits(&mut self, by_acl: bool) -> Result<Restore, NetError> {
        let mut restore = Restore { address: self.address(), ..Restore::default() };
        if by_acl {
            restore.users = self.other_users().await?.map_err(|denied| self.refused("ACL LIST", denied))?;
        } else {
            restore.write_limits =
                self.write_limits().await?.map_err(|denied| self.refused("CONFIG GET", denied))?;
        }
        Ok(restore)
    }

    /// Makes the server refuse writes: of everybody (`min-replicas-to-write`), or of every user but ours (ACL).
    ///
    /// `min-replicas-to-write` cannot be used beside a reverse link: the server counts good replicas for every client
    /// alike and knows no exception (`processCommand` in server.c), so the link would be refused too. A pause would
    /// block it as well. ACL is the one place where the server tells writers apart, and it is asked again for every
    /// command, also of clients that are connected, and for those which a pause has held back.
    pub async fn refuse(&mut self, restore: &Restore) -> Result<(), NetError> {
        for user in &restore.users {
            let reply = self.ask(&[b"ACL", b"SETUSER", user.name.as_bytes(), b"-@write"]).await?;
            self.must("ACL SETUSER", reply)?;
        }
        let raised: Vec<(String, String)> = restore
            .write_limits
            .iter()
            .filter_map(|(name, value)| {
                let is_lag = name.ends_with("max-lag");
                let value = match is_lag {
                    true if value == "0" => MAX_LAG_DEFAULT,
                    true => return None,
                    false => BEYOND_ALL_REPLICAS,
                };
                Some((name.clone(), value.to_owned()))
            })
            .collect();
        let reply = self.set_write_limits(&raised).await?;
        self.must("CONFIG SET min-replicas-to-write", reply)
    }

    /// Puts back what [`SourceControl::refuse`] changed.
    pub async fn restore(&mut self, restore: &Restore) -> Result<(), NetError> {
        let reply = self.set_write_limits(&restore.write_limits).await?;
        self.must("CONFIG SET min-replicas-to-write", reply)?;
        for user in &restore.users {
            let mut args: Vec<&[u8]> = vec![b"ACL", b"SETUSER", user.name.as_bytes()];
            args.extend(user.commands.split_ascii_whitespace().map(str::as_bytes));
            let reply = self.ask(&args).await?;
            self.must("ACL SETUSER", reply)?;
        }
        Ok(())
    }

    /// `min-replicas-to-write` and `min-replicas-max-lag` under the names that this server has for them.
    async fn write_limits(&mut self) -> Result<Result<Vec<(String, String)>, String>, NetError> {
        let mut limits = Vec::new();
        // `-slaves-` before Redis 5.
        for names in [
            [&b"min-replicas-to-write"[..], b"min-slaves-to-write"],
            [&b"min-replicas-max-lag"[..], b"min-slaves-max-lag"],
        ] {
            let mut found = None;
            for name in names {
                match self.ask(&[b"CONFIG", b"GET", name]).await? {
                    Reply::Error(denied) => return Ok(Err(denied)),
                    Reply::Array(pair) => {
                        let texts: Vec<String> =
                            pair.iter().filter_map(Reply::text).map(str::to_owned).collect();
                        if let Ok([name, value]) = <[String; 2]>::try_from(texts) {
                            found = Some((name, value));
                            break;
                        }
                    }
                    _ => {}
                }
            }
            match found {
                Some(pair) => limits.push(pair),
                None => {
                    return Ok(Err(format!("CONFIG GET knows no {}", String::from_utf8_lossy(names[0]))));
                }
            }
        }
        Ok(Ok(limits))
    }

    /// One at a time: before Redis 7 CONFIG SET takes one pair. The first error answer is returned.
    async fn set_write_limits(&mut self, limits: &[(String, String)]) -> Result<Reply, NetError> {
        for (name, value) in limits {
            let reply = self.ask(&[b"CONFIG", b"SET", name.as_bytes(), value.as_bytes()]).await?;
            if matches!(reply, Reply::Error(_)) {
                return Ok(reply);
            }
        }
        Ok(Reply::Status("OK".into()))
    }

    /// Every user that is on, but ours, with its command rules; or why they cannot be restricted.
    async fn other_users(&mut self) -> Result<Result<Vec<UserRules>, String>, NetError> {
        let names = match self.ask(&[b"ACL", b"USERS"]).await? {
            Reply::Error(denied) => return Ok(Err(format!("ACL USERS: {denied}"))),
            Reply::Array(names) => names.iter().filter_map(Reply::text).map(str::to_owned).collect(),
            _ => Vec::new(),
        };
        let own = self.endpoint.username.clone().unwrap_or_else(|| "default".into());
        let mut users = Vec::new();
        for name in names.into_iter().filter(|name| *name != own) {
            let fields = match self.ask(&[b"ACL", b"GETUSER", name.as_bytes()]).await? {
                Reply::Error(denied) => return Ok(Err(format!("ACL GETUSER: {denied}"))),
                Reply::Array(fields) => fields,
                _ => continue,
            };
            let field = |wanted: &str| {
                fields.chunks(2).find(|pair| pair[0].text() == Some(wanted)).and_then(|pair| pair.get(1))
            };
            let flags = match field("flags") {
                Some(Reply::Array(flags)) => flags.iter().filter_map(Reply::text).collect(),
                _ => Vec::new(),
            };
            if flags.contains(&"off") {
                continue;
            }
            // Selectors (Redis 7) grant rights of their own, which cannot be taken back one by one.
            if matches!(field("selectors"), Some(Reply::Array(selectors)) if !selectors.is_empty()) {
                return Ok(Err(format!("user '{}' has ACL selectors", name.escape_debug())));
            }
            let Some(commands) = field("commands").and_then(Reply::text) else {
                return Ok(Err(format!("the command rules of user '{}' are not told", name.escape_debug())));
            };
            let user = UserRules { name, commands: commands.to_owned() };
            // Asks for the right without changing anything: the rules are set to what they are.
            let mut args: Vec<&[u8]> = vec![b"ACL", b"SETUSER", user.name.as_bytes()];
            args.extend(user.commands.split_ascii_whitespace().map(str::as_bytes));
            if let Reply::Error(denied) = self.ask(&args).await? {
                return Ok(Err(format!("ACL SETUSER: {denied}")));
            }
            users.push(user);
        }
        Ok(Ok(users))
    }

    fn read_standing(&self, reply: Reply) -> Result<Standing, NetError> {
        match reply {
            Reply::Bulk(info) => {
                let info = String::from_utf8_lossy(&info).into_owned();
                let field = |name| info_field(&info, name).map(str::to_owned);
                let offset = field("master_repl_offset").and_then(|offset| offset.parse().ok());
                match (field("role"), field("master_replid"), offset) {
                    (Some(role), Some(replid), Some(offset)) => Ok(Standing { role, replid, offset }),
                    _ => Err(self.refused("INFO replication", "it says no offset".into())),
                }
            }
            Reply::Error(reply) => Err(self.refused("INFO replication", reply)),
            other => Err(self.refused("INFO replication", format!("{other:?}"))),
        }
    }

    async fn ask(&mut self, args: &[&[u8]]) -> Result<Reply, NetError> {
        let what = String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned();
        match timeout(self.limit, self.connection.request(args)).await {
            Ok(reply) => reply,
            Err(_) => {
                Err(NetError::Timeout { address: self.endpoint.address.clone(), what, limit: self.limit })
            }
        }
    }

    fn must(&self, what: &str, reply: Reply) -> Result<(), NetError> {
        match reply {
            Reply::Error(reply) => Err(self.refused(what, reply)),
            _ => Ok(()),
        }
    }

    fn refused(&self, what: &str, reply: String) -> NetError {
        NetError::Refused {
            address: self.endpoint.address.clone(),
            what: what.into(),
            reply,
            cure: "The README lists the rights that a cutover needs on the source.".into(),
        }
    }
}

/// The ids of the connections with this name, from CLIENT LIST: `id=7 addr=… name=… …` a line.
fn named<'a>(list: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    list.lines().filter_map(move |line| {
        let field = |field: &str| line.split(' ').find_map(|pair| pair.strip_prefix(field));
        (field("name=") == Some(name)).then(|| field("id=")).flatten()
    })
}

fn denial(reply: Reply) -> Option<String> {
    match reply {
        Reply::Error(reply) => Some(reply),
        _ => None,
    }
}

/// Major and minor version as far as it decides which commands there are. Every Valkey has those of Redis 7.2, which it
/// says of itself in `redis_version`.
fn version_of(info: &str) -> (u32, u32) {
    let version = info_field(info, "redis_version").unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
