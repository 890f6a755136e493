//! What an error answer of the destination means: one table.

use std::borrow::Cow;

use super::batch::CommandKind;
use crate::config::OnBadValue;

/// What to do about one refused command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The same command will be accepted later: wait, show the reason, send it again.
    Wait,
    /// It will never be accepted: set it aside, count it, go on.
    Quarantine,
    /// Going on would do harm.
    Stop,
}

/// Error codes of states that pass, with what cures each.
const PASSING: &[(&str, &str)] = &[
    ("LOADING", "the destination is loading its data set"),
    ("OOM", "the destination is out of memory: raise 'maxmemory' there or free some"),
    ("MISCONF", "the destination cannot save to its disk: look at its log"),
    ("READONLY", "the destination is a replica now (failover?): make it a master, or name the new master"),
    ("MASTERDOWN", "the destination is a replica without its master"),
    ("NOREPLICAS", "the destination has too few replicas ('min-replicas-to-write')"),
    ("BUSY ", "the destination runs a long script: SCRIPT KILL there"),
    ("UNKILLABLE", "the destination runs a long script"),
    ("TRYAGAIN", "the destination is moving this slot"),
    ("ASK ", "the destination is moving this slot"),
    ("MOVED ", "the destination has moved this slot"),
    ("CLUSTERDOWN", "the destination cluster has slots without a master"),
];

/// What the destination's user needs.
const RIGHTS: &str = "~* &* +@all -@admin -@dangerous +restore +flushall +flushdb +swapdb +function +script +eval +evalsha +sort +info +client +select +multi +exec";

/// The error behind a refused EXEC: servers from 6.2 on refuse it, too, in states that pass, and wrap the reason.
pub fn cause_of_abort(error: &str) -> &str {
    error.strip_prefix("EXECABORT Transaction discarded because of: ").unwrap_or(error)
}

/// Whether RESTORE was refused because of the payload itself: its version, its type or its content.
pub fn refuses_payload(error: &str) -> bool {
    error.contains("Bad data format") || error.contains("DUMP payload version or checksum are wrong")
}

/// The rule for one error answer, with the cure in words where there is one.
pub fn rule(error: &str, kind: CommandKind, on_bad_value: OnBadValue) -> (Rule, Cow<'static, str>) {
    if error.starts_with("NOPERM") {
        let lacks = missing_right(error).map_or("a right".to_owned(), |right| format!("the right {right}"));
        return (
            Rule::Stop,
            format!(
                "The destination's user <user> lacks {lacks}. On the destination: ACL SETUSER <user> {RIGHTS}"
            )
            .into(),
        );
    }
    let (rule, cure) = fixed_rule(error, kind, on_bad_value);
    (rule, cure.into())
}

/// What to do where the destination refuses a question of ours to this user.
pub fn cure_of(reply: &str, user: &str) -> String {
    match rule(reply, CommandKind::Stream, OnBadValue::Quarantine) {
        (Rule::Quarantine, _) => "Look at the destination's log.".into(),
        (_, cure) => format!("{}.", cure.trim_end_matches('.').replace("<user>", user)),
    }
}

/// The right that a NOPERM speaks of, as ACL SETUSER writes it. Servers of all versions are understood.
fn missing_right(error: &str) -> Option<String> {
    if let Some((_, rest)) = error.split_once("permissions to run the '") {
        return rest.split('\'').next().map(|command| format!("+{command}"));
    }
    let (_, what) = error.split_once("permissions to access ")?;
    [("key", "~*"), ("channel", "&*"), ("database", "alldbs")]
        .iter()
        .find(|(word, _)| what.contains(word))
        .map(|(_, right)| (*right).to_owned())
}

fn fixed_rule(error: &str, kind: CommandKind, on_bad_value: OnBadValue) -> (Rule, &'static str) {
    if let Some((_, cure)) = PASSING.iter().find(|(code, _)| error.starts_with(code)) {
        return (Rule::Wait, cure);
    }
    if error.starts_with("NOAUTH") {
        return (
            Rule::Stop,
            "The destination wants a password: set 'password' (and 'username') in [redis_writer].",
        );
    }
    if error.starts_with("BUSYKEY") {
        return (
            Rule::Stop,
            "The key exists on the destination already. Set rdb_restore_command_behavior to \"rewrite\" (replace) or \"skip\" (keep), or empty the destination.",
        );
    }
    if error.contains("DB index is out of range") {
        return (Rule::Stop, "The destination has fewer databases than the source: raise 'databases' there.");
    }
    if kind == CommandKind::Restore && error.contains("unknown command") {
        return (Rule::Stop, "The destination does not offer RESTORE.");
    }
    match on_bad_value {
        OnBadValue::Quarantine => (Rule::Quarantine, ""),
        // Replay decides about the value.
        OnBadValue::Stop if kind == CommandKind::Piece => (Rule::Quarantine, ""),
        OnBadValue::Stop => (
            Rule::Stop,
            "[policy] on_bad_value = \"stop\"; set it to \"quarantine\" to set such entries aside and go on.",
        ),
    }
}

/// An answer that means "not done".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// An error.
    Error(String),
    /// The key exists.
    KeyExists,
    /// The key is not there.
    KeyMissing,
}

impl Refusal {
    /// The key was there already.
    pub fn key_exists(&self) -> bool {
        match self {
            Refusal::KeyExists => true,
            Refusal::KeyMissing => false,
            Refusal::Error(error) => error.starts_with("BUSYKEY"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_rule() {
        use CommandKind::{Restore, Stream};
        let quarantine = OnBadValue::Quarantine;
        for (error, kind, expected) in [
            ("LOADING Redis is loading the dataset in memory", Stream, Rule::Wait),
            ("OOM command not allowed when used memory > 'maxmemory'.", Restore, Rule::Wait),
            ("READONLY You can't write against a read only replica.", Stream, Rule::Wait),
            ("BUSY Redis is busy running a script.", Stream, Rule::Wait),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Stream, Rule::Wait),
            ("ASK 866 127.0.0.1:7001", Stream, Rule::Wait),
            ("CROSSSLOT Keys in request don't hash to the same slot", Stream, Rule::Quarantine),
            ("BUSYKEY Target key name already exists.", Restore, Rule::Stop),
            ("NOPERM this user has no permissions to run the 'restore' command", Restore, Rule::Stop),
            ("ERR DB index is out of range", CommandKind::Select, Rule::Stop),
            ("ERR Bad data format", Restore, Rule::Quarantine),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Stream, Rule::Quarantine),
            ("ERR unknown command 'TAIR.X'", Stream, Rule::Quarantine),
        ] {
            assert_eq!(rule(error, kind, quarantine).0, expected, "{error}");
        }
        assert_eq!(rule("ERR Bad data format", Restore, OnBadValue::Stop).0, Rule::Stop);
        let refused = "EXECABORT Transaction discarded because of: BUSY Redis is busy running a script.";
        assert_eq!(rule(cause_of_abort(refused), CommandKind::Select, quarantine).0, Rule::Wait);
    }

    #[test]
    fn the_missing_right_is_named_in_the_words_of_every_version() {
        for (error, right) in [
            ("NOPERM this user has no permissions to run the 'del' command or its subcommand", Some("+del")),
            ("NOPERM User w has no permissions to run the 'config|get' command", Some("+config|get")),
            ("NOPERM this user has no permissions to access one of the keys used as arguments", Some("~*")),
            ("NOPERM No permissions to access a key", Some("~*")),
            (
                "NOPERM this user has no permissions to access one of the channels used as arguments",
                Some("&*"),
            ),
            ("NOPERM No permissions to access a channel", Some("&*")),
            ("NOPERM No permissions to access database", Some("alldbs")),
            ("NOPERM something new", None),
        ] {
            assert_eq!(missing_right(error).as_deref(), right, "{error}");
            let (_, cure) = rule(error, CommandKind::Stream, OnBadValue::Quarantine);
            assert!(cure.contains(&format!(
                "lacks {}",
                right.map_or("a right".into(), |it| format!("the right {it}"))
            )));
        }
    }
}
