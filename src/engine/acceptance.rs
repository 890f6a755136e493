//! Which values the destination takes by RESTORE: what its version says, corrected by what it answers.
//!
//! The table of [`crate::rdb::dump`] knows Redis and Valkey. A destination that it cannot know (a fork, a newer version, one
//! that hides INFO) is asked before the first entry, with payloads of a few bytes under a key of our own. And whatever the
//! table or the trial says: a type whose payloads are refused again and again while the run lasts goes by commands from then on.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::batch::CommandKind;
use super::net::{Connection, NetError, info_field};
use super::rules::{Rule, rule};
use crate::config::OnBadValue;
use crate::rdb::dump::{self, Route, ServerKind, Target};
use crate::rdb::{Dialect, NEWEST_REDIS_VERSION, NEWEST_VALKEY_VERSION, type_name, types};
use crate::resp::Reply;

/// Key of the trial. It lives for a moment, and at most a second.
const PROBE_KEY: &[u8] = b"shakedeck:probe";
/// How often a payload is tried while somebody's key is in the way.
const TRIES: usize = 3;
/// Good values of one type that were refused before the type goes by commands.
const REFUSAL_LIMIT: u32 = 3;

/// What the destination takes. Shared by replay, which asks, and the writer, which hears the answers.
pub struct Acceptance {
    target: Target,
    tried: Option<Tried>,
    /// Good values refused, by type.
    refused: [AtomicU32; 256],
}

/// What the trial found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tried {
    /// Highest RDB version that it let through; 0 if it takes no payload at all.
    version: u16,
    /// Types that it reads.
    types: Vec<u8>,
}

impl Acceptance {
    /// A destination whose version the table knows.
    pub fn known(target: Target) -> Self {
        Acceptance { target, tried: None, refused: [const { AtomicU32::new(0) }; 256] }
    }

    /// Looks at a destination: `info` is its INFO, `None` if it does not tell. Asks by trial when in doubt; the sentence says
    /// what was found.
    pub async fn examine(
        connection: &mut Connection,
        info: Option<&str>,
        target: Target,
    ) -> Result<(Self, Option<String>), NetError> {
        let Some(doubt) = doubt(info, target) else { return Ok((Self::known(target), None)) };
        let Some(tried) = try_payloads(connection).await? else {
            let text = format!(
                "{doubt}, and its user may not try RESTORE ({}); values are sent as to {}",
                PROBE_KEY.escape_ascii(),
                describe(target)
            );
            return Ok((Self::known(target), Some(text)));
        };
        // Nothing but the trial tells which commands there are, either.
        let target = if info.is_none() { target_of(&tried) } else { target };
        let text = match tried.version {
            0 => format!("{doubt}; it takes no RESTORE at all, so every value is rebuilt by commands"),
            version => format!(
                "{doubt}; it was tried out: RESTORE takes RDB version {version} and {} of {} types{}",
                tried.types.len(),
                PROBES.len(),
                tried.refused_in_words()
            ),
        };
        Ok((Acceptance { tried: Some(tried), ..Self::known(target) }, Some(text)))
    }

    /// What the destination is taken for: decides which commands it is sent.
    pub fn target(&self) -> Target {
        self.target
    }

    /// How a value of this type gets there.
    pub fn route(&self, type_byte: u8, dialect: Dialect, source_version: u16) -> Route {
        let by_table = dump::route(type_byte, dialect, source_version, self.target);
        match (by_table, &self.tried) {
            // Nothing else can carry a module value: let the destination say no.
            (_, Some(tried)) if type_byte == types::MODULE_2 && source_version <= tried.version => {
                Route::Restore { version: source_version }
            }
            (_, _) if type_byte == types::MODULE_2 => by_table,
            (Route::Impossible(_), Some(tried)) if tried.types.contains(&type_byte) => {
                Route::Restore { version: tried.version }
            }
            (Route::Impossible(_), _) => by_table,
            (Route::Restore { .. }, _) if self.refusals(type_byte) >= REFUSAL_LIMIT => Route::Commands,
            (Route::Restore { .. } | Route::Commands, Some(tried)) => {
                let same_layout = type_byte != types::HASH_22 || dialect == Dialect::Valkey;
                if same_layout && tried.types.contains(&type_byte) {
                    Route::Restore { version: tried.version }
                } else {
                    Route::Commands
                }
            }
            (by_table, None) => by_table,
        }
    }

    /// A good value of this type was refused. True once: when the type goes by commands from now on.
    pub fn note_refusal(&self, type_byte: u8) -> bool {
        self.refused
            .get(usize::from(type_byte))
            .is_some_and(|count| count.fetch_add(1, Relaxed) + 1 == REFUSAL_LIMIT)
    }

    fn refusals(&self, type_byte: u8) -> u32 {
        self.refused.get(usize::from(type_byte)).map_or(0, |count| count.load(Relaxed))
    }
}

impl Tried {
    fn refused_in_words(&self) -> String {
        let refused: Vec<String> = PROBES
            .iter()
            .filter(|(type_byte, _)| !self.types.contains(type_byte))
            .map(|(type_byte, _)| {
                let dialect = Dialect::of_version(self.version);
                let (kind, encoding) = type_name(*type_byte, dialect);
                if kind == encoding { kind.to_owned() } else { format!("{kind} ({encoding})") }
            })
            .collect();
        if refused.is_empty() {
            String::new()
        } else {
            format!("; these are rebuilt by commands: {}", refused.join(", "))
        }
    }
}

/// Why the table may be wrong about this destination.
fn doubt(info: Option<&str>, target: Target) -> Option<String> {
    let Some(info) = info else {
        return Some("the destination does not tell its version (its user lacks +info)".into());
    };
    const FORKS: [&str; 4] = ["dragonfly_version", "kvrocks_version", "garnet_version", "rlec_version"];
    if let Some(fork) = FORKS.iter().find(|name| info_field(info, name).is_some()) {
        return Some(format!("the destination is a {} server", fork.trim_end_matches("_version")));
    }
    if let Some(name) =
        info_field(info, "server_name").filter(|name| !["redis", "valkey", "redict"].contains(name))
    {
        return Some(format!("the destination calls itself '{}'", name.escape_debug()));
    }
    let known = match target.kind {
        ServerKind::Redis => (target.major, target.minor) <= (8, 8),
        ServerKind::Valkey => (target.major, target.minor) <= (9, 1),
        ServerKind::KeyDb | ServerKind::Redict => true,
        ServerKind::Other => false,
    };
    (!known).then(|| match target.kind {
        ServerKind::Other => "the destination does not say what it is".to_owned(),
        _ => format!("the destination is newer ({}) than any known here", describe(target)),
    })
}

fn describe(target: Target) -> String {
    let name = match target.kind {
        ServerKind::Redis => "Redis",
        ServerKind::Valkey => "Valkey",
        ServerKind::KeyDb => "KeyDB",
        ServerKind::Redict => "Redict",
        ServerKind::Other => "a server like Redis",
    };
    format!("{name} {}.{}", target.major, target.minor)
}

/// The oldest server that takes just these payloads.
fn target_of(tried: &Tried) -> Target {
    match tried.version {
        80.. => Target::valkey(9, 0),
        14.. => Target::redis(8, 8),
        13 => Target::redis(8, 6),
        12 if tried.types.contains(&types::HASH_METADATA) => Target::redis(7, 4),
        11 | 12 => Target::redis(7, 2),
        10 => Target::redis(7, 0),
        9 => Target::redis(5, 0),
        8 => Target::redis(4, 0),
        7 => Target::redis(3, 2),
        _ => Target::redis(2, 8),
    }
}

/// Tries versions from the newest down, then every type with the version found. `None` when the user may not.
async fn try_payloads(connection: &mut Connection) -> Result<Option<Tried>, NetError> {
    let mut tried = Tried { version: 0, types: Vec::new() };
    for version in [NEWEST_VALKEY_VERSION].into_iter().chain((6..=NEWEST_REDIS_VERSION).rev()) {
        match try_payload(connection, types::STRING, b"\x01v", version).await? {
            Answer::Taken => {
                tried.version = version;
                break;
            }
            Answer::Refused => {}
            Answer::NotAllowed => return Ok(None),
        }
    }
    if tried.version > 0 {
        for (type_byte, raw) in PROBES {
            // Before Valkey 9 this number means something else.
            if *type_byte == types::HASH_22 && tried.version < NEWEST_VALKEY_VERSION {
                continue;
            }
            if try_payload(connection, *type_byte, raw, tried.version).await? == Answer::Taken {
                tried.types.push(*type_byte);
            }
        }
    }
    Ok(Some(tried))
}

#[derive(PartialEq, Eq)]
enum Answer {
    Taken,
    Refused,
    NotAllowed,
}

async fn try_payload(
    connection: &mut Connection,
    type_byte: u8,
    raw: &[u8],
    version: u16,
) -> Result<Answer, NetError> {
    let mut payload = Vec::new();
    dump::append_payload(&mut payload, type_byte, raw, version);
    for _ in 0..TRIES {
        let error = match connection.request(&[b"RESTORE", PROBE_KEY, b"1000", &payload]).await? {
            Reply::Error(error) => error,
            _ => {
                connection.request(&[b"DEL", PROBE_KEY]).await?;
                return Ok(Answer::Taken);
            }
        };
        if error.starts_with("NOPERM") {
            return Ok(Answer::NotAllowed);
        }
        if !error.starts_with("BUSYKEY") {
            return answer(connection, error);
        }
        // Left by a trial that was cut short.
        connection.request(&[b"DEL", PROBE_KEY]).await?;
    }
    Ok(Answer::Refused)
}

/// A state of the destination that passes says nothing about the payload.
fn answer(connection: &Connection, error: String) -> Result<Answer, NetError> {
    match rule(&error, CommandKind::Restore, OnBadValue::Quarantine) {
        (Rule::Wait, cure) => Err(NetError::NotNow {
            address: connection.address.clone(),
            what: "trying out RESTORE".into(),
            reply: error,
            cure: cure.into_owned(),
        }),
        _ => Ok(Answer::Refused),
    }
}

/// The smallest value of each type that a server can be asked about: what stands behind the type byte. Modules are never tried:
/// Redis 4.0 to 6.0 exit on one that they do not know.
const PROBES: &[(u8, &[u8])] = &[
    (types::STRING, b"\x01v"),
    (types::LIST, b"\x01\x01v"),
    (types::SET, b"\x01\x01v"),
    (types::ZSET, b"\x01\x01v\x011"),
    (types::HASH, b"\x01\x01f\x01v"),
    (types::ZSET_2, b"\x01\x01v\0\0\0\0\0\0\xf0\x3f"),
    (types::LIST_ZIPLIST, b"\x0e\x0e\0\0\0\x0a\0\0\0\x01\0\0\x01v\xff"),
    (types::SET_INTSET, b"\x0a\x02\0\0\0\x01\0\0\0\x07\0"),
    (types::ZSET_ZIPLIST, b"\x10\x10\0\0\0\x0d\0\0\0\x02\0\0\x01v\x03\xf2\xff"),
    (types::HASH_ZIPLIST, b"\x11\x11\0\0\0\x0d\0\0\0\x02\0\0\x01f\x03\x01v\xff"),
    (types::LIST_QUICKLIST, b"\x01\x0e\x0e\0\0\0\x0a\0\0\0\x01\0\0\x01v\xff"),
    (types::STREAM_LISTPACKS, b"\0\0\0\0\0"),
    (types::HASH_LISTPACK, b"\x0d\x0d\0\0\0\x02\0\x81f\x02\x81v\x02\xff"),
    (types::ZSET_LISTPACK, b"\x0c\x0c\0\0\0\x02\0\x81v\x02\x01\x01\xff"),
    (types::LIST_QUICKLIST_2, b"\x01\x02\x0a\x0a\0\0\0\x01\0\x81v\x02\xff"),
    (types::STREAM_LISTPACKS_2, b"\0\0\0\0\0\0\0\0\0\0"),
    (types::SET_LISTPACK, b"\x0a\x0a\0\0\0\x01\0\x81v\x02\xff"),
    (types::STREAM_LISTPACKS_3, b"\0\0\0\0\0\0\0\0\0\0"),
    (types::HASH_22, b"\x01\x01f\x01v\xff\xff\xff\xff\xff\xff\xff\xff"),
    (types::HASH_METADATA, b"\0\0\0\0\0\0\0\0\x01\0\x01f\x01v"),
    (types::HASH_LISTPACK_EX, b"\0\0\0\0\0\0\0\0\x0f\x0f\0\0\0\x03\0\x81f\x02\x81v\x02\0\x01\xff"),
    (types::STREAM_LISTPACKS_4, b"\0\0\0\0\0\0\0\0\0\0\x3c\x3c\0\0\0"),
    (types::STREAM_LISTPACKS_5, b"\0\0\0\0\0\0\0\0\0\0\x3c\x3c\0\0\0"),
    (types::ARRAY, b"\x01\0\0\0\x01v"),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;
    use crate::rdb::decode_value;

    const REDIS_7: Target = Target::redis(7, 0);

    #[test]
    fn every_trial_value_is_a_good_one() {
        for (type_byte, raw) in PROBES {
            let dialect = if *type_byte == types::HASH_22 { Dialect::Valkey } else { Dialect::Redis };
            decode_value(*type_byte, raw, dialect).unwrap();
        }
    }

    #[test]
    fn only_the_unknown_is_doubted() {
        let info = "redis_version:7.0.15\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n";
        assert_eq!(doubt(Some(info), Target::valkey(9, 1)), None);
        assert_eq!(doubt(Some("redis_version:8.8.0\r\n"), Target::redis(8, 8)), None);
        assert!(doubt(Some("redis_version:8.9.0\r\n"), Target::redis(8, 9)).unwrap().contains("Redis 8.9"));
        assert!(doubt(Some(info), Target::valkey(9, 2)).unwrap().contains("newer"));
        let fork = "redis_version:7.4.0\r\nkvrocks_version:2.1\r\n";
        assert!(doubt(Some(fork), Target::redis(7, 4)).unwrap().contains("kvrocks"));
        assert!(doubt(Some("server_name:other\r\n"), REDIS_7).unwrap().contains("'other'"));
        assert!(doubt(None, REDIS_7).unwrap().contains("+info"));
    }

    #[test]
    fn a_type_refused_thrice_goes_by_commands_and_the_others_do_not() {
        let acceptance = Acceptance::known(REDIS_7);
        let route = |type_byte| acceptance.route(type_byte, Dialect::Redis, 10);
        assert_eq!(route(types::HASH_LISTPACK), Route::Restore { version: 10 });
        let noted: Vec<bool> = (0..5).map(|_| acceptance.note_refusal(types::HASH_LISTPACK)).collect();
        assert_eq!(noted, [false, false, true, false, false]);
        assert_eq!(route(types::HASH_LISTPACK), Route::Commands);
        assert_eq!(route(types::ZSET_2), Route::Restore { version: 10 });
        (0..5).for_each(|_| _ = acceptance.note_refusal(types::MODULE_2));
        assert_eq!(route(types::MODULE_2), Route::Restore { version: 10 }, "nothing else can carry it");
    }

    #[test]
    fn the_trial_overrules_the_table() {
        let tried = Tried { version: 11, types: vec![types::STRING, types::SET_LISTPACK] };
        let acceptance = Acceptance { tried: Some(tried), ..Acceptance::known(REDIS_7) };
        let route = |type_byte, dialect| acceptance.route(type_byte, dialect, 11);
        assert_eq!(route(types::SET_LISTPACK, Dialect::Redis), Route::Restore { version: 11 });
        assert_eq!(route(types::HASH_LISTPACK, Dialect::Redis), Route::Commands);
        assert_eq!(route(types::MODULE_2, Dialect::Redis), Route::Restore { version: 11 });
        assert!(matches!(route(types::ARRAY, Dialect::Redis), Route::Impossible(_)));
        let tried = Tried { version: 14, types: vec![types::ARRAY] };
        let acceptance = Acceptance { tried: Some(tried), ..Acceptance::known(REDIS_7) };
        let array = acceptance.route(types::ARRAY, Dialect::Redis, 14);
        assert_eq!(array, Route::Restore { version: 14 }, "it was taken when it was tried");
    }
}
