//! The handshake: who the source is, what it allows, and PSYNC.

use std::sync::atomic::Ordering::Relaxed;

use tokio::time::timeout;

use super::super::clocks;
use super::super::net::{Connection, NetError, info_field};
use super::super::pressure::Patience;
use super::{SILENCE_LIMIT, Source, SourceError};
use crate::config::{Address, OnFullResync};
use crate::psync::{PsyncReply, Replid};
use crate::resp::{Reply, append_command};

impl Source {
    /// PING, a few questions that may be refused, REPLCONF.
    pub(super) async fn handshake(&self, connection: &mut Connection) -> Result<(), SourceError> {
        if let Reply::Error(reply) = connection.request(&[b"PING"]).await? {
            let fatal = reply.starts_with("NOAUTH") || reply.starts_with("LOADING");
            if fatal {
                return Err(self.refused(reply).into());
            }
        }
        if let Reply::Bulk(info) = connection.request(&[b"INFO"]).await? {
            let info = String::from_utf8_lossy(&info).into_owned();
            self.must_not_be_destination(&connection.address, &info)?;
            // Later it is too late to refuse; what then comes for a database that is missing is set aside.
            if self.shared.spool.manifest().is_none() {
                self.databases_must_exist(&connection.address, &info)?;
            }
            let mut details = self.shared.details();
            details.server = server_name(&info);
            details.role = info_field(&info, "role").map(str::to_owned);
        }
        self.compare_clocks(connection).await?;
        let backlog = config_get(connection, "repl-backlog-size").await?.and_then(|value| value.parse().ok());
        let timeout = config_get(connection, "repl-timeout").await?.and_then(|value| value.parse().ok());
        let limits = config_get(connection, "client-output-buffer-limit").await?;
        let patience = limits.and_then(|limits| Patience::parse(&limits, backlog, timeout));
        {
            let mut details = self.shared.details();
            details.backlog_bytes = backlog;
            details.output_buffer_limit_bytes = patience.and_then(|patience| patience.hard);
            details.patience = patience;
        }
        // One option a command: an unknown one aborts the rest of its command. `version` lets Valkey 9.1 and later send
        // its own RDB version, without which hash-field TTLs make every full sync fail.
        let options: [[&[u8]; 2]; 4] = [
            [b"listening-port", b"0"],
            [b"capa", b"eof"],
            [b"capa", b"psync2"],
            [b"version", b"255.255.255"],
        ];
        for [name, value] in options {
            if let Reply::Error(reply) = connection.request(&[b"REPLCONF", name, value]).await?
                && reply.starts_with("NOPERM")
            {
                return Err(self.refused(reply).into());
            }
        }
        Ok(())
    }

    /// A server must not be copied onto itself.
    pub(super) fn must_not_be_destination(&self, address: &Address, info: &str) -> Result<(), NetError> {
        let run_id = info_field(info, "run_id");
        if !run_id.is_some_and(|id| self.destination_run_ids.iter().any(|other| other == id)) {
            return Ok(());
        }
        Err(NetError::Refused {
            address: address.clone(),
            what: "the migration".into(),
            reply: "source and destination are the same server".into(),
            cure: "Check the addresses of [sync_reader] and [redis_writer].".into(),
        })
    }

    /// Every database of the source that is copied must have its place on the destination.
    fn databases_must_exist(&self, address: &Address, info: &str) -> Result<(), SourceError> {
        let used =
            info.lines().filter_map(|line| line.strip_prefix("db")?.split_once(":keys=")?.0.parse().ok());
        let homeless: Vec<u32> = used.filter(|db| !self.databases.has_place_for(*db)).collect();
        if homeless.is_empty() {
            return Ok(());
        }
        let (why, cure) = self.databases.refusal(&homeless);
        Err(SourceError::NoPlace { address: address.to_string(), why, cure })
    }

    /// Measures how far the source's clock is ahead of ours: times of expiry are counted by the source's.
    async fn compare_clocks(&self, connection: &mut Connection) -> Result<(), NetError> {
        let Some(skew) = clocks::skew_ms(connection).await? else { return Ok(()) };
        self.shared.clock_skew_ms.store(skew, Relaxed);
        self.shared.details().clock_skew_ms = Some(skew);
        if let Some(words) = clocks::in_words(skew) {
            let text = format!("its clock is {words} this host's; times of expiry are counted by its clock");
            self.events.warn(&self.node(), text);
        }
        Ok(())
    }

    pub(super) async fn psync(&self, connection: &mut Connection) -> Result<PsyncReply, SourceError> {
        let wanted = self.shared.full_sync_wanted.load(Relaxed);
        let resume =
            self.shared.spool.manifest().filter(|manifest| manifest.rdb_len.is_some() && !wanted).map(
                |manifest| {
                    let next = self.shared.spool.received() + 1;
                    (manifest.replid, next)
                },
            );
        let name = self.psync_name(&connection.address)?;
        let mut command = Vec::new();
        match &resume {
            Some((replid, next)) => {
                let (replid, next) = (replid.as_str().as_bytes(), next.to_string());
                append_command(&mut command, &[name, replid, next.as_bytes()]);
            }
            None => append_command(&mut command, &[name, b"?", b"-1"]),
        }
        connection.send(&command, "PSYNC").await?;
        let line = match timeout(SILENCE_LIMIT, connection.read_line("PSYNC")).await {
            Ok(line) => line?,
            Err(_) => return Err(self.silent("PSYNC").into()),
        };
        let reply = PsyncReply::parse(&String::from_utf8_lossy(&line));
        if let (PsyncReply::FullResync { replid, offset }, Some((asked, next))) = (&reply, &resume) {
            let (cause, cure) = why_full_sync(asked, *next, replid, *offset);
            if self.policy.on_full_resync == OnFullResync::Stop {
                return Err(SourceError::FullResyncForbidden {
                    address: self.shared.address.clone(),
                    offset: self.shared.spool.received(),
                    cause,
                    cure,
                });
            }
            self.events.warn(&self.node(), format!("full sync again, because {cause}. {cure} Keys that the source has deleted meanwhile are removed from the destination at the end of it"));
        }
        Ok(reply)
    }

    /// What this node calls PSYNC (`aws_psync`).
    fn psync_name(&self, address: &Address) -> Result<&[u8], NetError> {
        match self.psync_names.get(address) {
            Some(name) => Ok(name.reveal().as_bytes()),
            None if self.psync_names.is_empty() => Ok(b"PSYNC"),
            None => Err(NetError::Refused {
                address: address.clone(),
                what: "PSYNC".into(),
                reply: "aws_psync names no command for this node".into(),
                cure: format!("Add '{address}@<its name of PSYNC>' to aws_psync in [advanced]."),
            }),
        }
    }

    pub(super) fn refused(&self, reply: String) -> NetError {
        let endpoint = self.endpoint();
        let user = endpoint.user();
        let cure = if reply.starts_with("NOPERM") {
            format!(
                "On the source: ACL SETUSER {user} +psync +replconf +ping (and +info, +config|get for more detail here)."
            )
        } else if reply.starts_with("NOAUTH") {
            "The source wants a password: set 'password' (and 'username') in [sync_reader].".into()
        } else if reply.starts_with("LOADING") {
            "The source is loading its data set; it will be asked again.".into()
        } else if reply.starts_with("NOMASTERLINK") {
            "The source is a replica that has lost its master: mend that link, or name the master as the source.".into()
        } else if reply.starts_with("BUSY") || reply.starts_with("MASTERDOWN") {
            "It will be asked again.".into()
        } else if reply.contains("unknown command") {
            "This server does not offer PSYNC to its users, as many managed services do not; ask the provider for it."
                .into()
        } else {
            "Look at the source's log for the reason.".into()
        };
        NetError::Refused { address: endpoint.address, what: "PSYNC".into(), reply, cure }
    }
}

/// Why a source cannot continue after what was `asked` for, by the history and the offset that it offers, and what would help.
fn why_full_sync(asked: &Replid, next: u64, replid: &Replid, offset: u64) -> (String, &'static str) {
    if replid != asked {
        return (
            format!(
                "its history is now {replid}, not {asked}: it was restarted, another server took its place, or it was without \
                 a replica for longer than its 'repl-backlog-ttl'"
            ),
            "A larger 'repl-backlog-size' does not help against that.",
        );
    }
    if next > offset + 1 {
        return (
            format!(
                "it stands at offset {offset} and has not what it had sent up to {}: it lost writes",
                next - 1
            ),
            "A larger 'repl-backlog-size' does not help against that.",
        );
    }
    (
        format!("its backlog no longer reaches back to offset {next}; it stands at {offset}"),
        "A larger 'repl-backlog-size' on the source helps the next time.",
    )
}

/// "redis 7.2.4" or "valkey 8.0.1" from INFO.
pub fn server_name(info: &str) -> Option<String> {
    if let Some(version) = info_field(info, "valkey_version") {
        return Some(format!("valkey {version}"));
    }
    info_field(info, "redis_version").map(|version| format!("redis {version}"))
}

async fn config_get(connection: &mut Connection, name: &str) -> Result<Option<String>, NetError> {
    match connection.request(&[b"CONFIG", b"GET", name.as_bytes()]).await? {
        Reply::Array(pair) => Ok(pair.get(1).and_then(Reply::text).map(str::to_owned)),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;

    #[test]
    fn a_larger_backlog_is_advised_only_where_it_helps() {
        let [a, b] = ["a", "b"].map(|letter| Replid::parse(&letter.repeat(40)).unwrap());
        let (why, cure) = why_full_sync(&a, 100, &a, 5_000);
        assert!(
            why.contains("backlog no longer reaches back to offset 100") && cure.contains("helps the next")
        );
        let (why, cure) = why_full_sync(&a, 100, &a, 50);
        assert!(why.contains("up to 99: it lost writes") && cure.contains("does not help"));
        // Nothing was missing: it has given up its backlog.
        let (why, _) = why_full_sync(&a, 51, &a, 50);
        assert!(why.contains("backlog"), "{why}");
        let (why, cure) = why_full_sync(&a, 100, &b, 5_000);
        assert!(why.contains("restarted") && cure.contains("does not help"), "{why}");
    }
}
