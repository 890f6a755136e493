//! What shakedeck knows of the commands of Redis and Valkey: where their keys stand, whether they write, and what happens
//! when one is applied again or meets a cluster.
//!
//! The servers know all of this (`COMMAND`, `COMMAND GETKEYS`), but a replication stream must be understood without asking
//! anybody, hence `table.rs`; `tests/suite/commands.rs` compares it with every server at hand. The odd idea: [`Command::keys`] is told
//! how to look at an argument instead of being given a list of them, so that the keys of a command that lies in a buffer
//! are found without copying or allocating anything. A command that is not in the table has unknown keys; its
//! first argument is the best guess.

mod table;

pub use redis_protocol::redis_keyslot as slot_of;

use self::table::COMMANDS;

/// One command.
#[derive(Debug, PartialEq, Eq)]
pub struct Command {
    /// Its verb in upper case. Subcommands (XGROUP CREATE) are not told apart: their keys stand in the same place.
    pub name: &'static str,
    /// May change data, so that it stands in a replication stream.
    pub writes: bool,
    /// What a second application does.
    pub replay: Replay,
    /// What can be done when its keys lie in different slots.
    pub cross_slot: CrossSlot,
    keys: Keys,
}

/// What it means to apply a command again, together with all commands on the same keys that followed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// The end is the same: it says what shall be (SET), not what to change (INCR).
    Idempotent,
    /// The same, unless one of these words stands among its options.
    IdempotentWithout(&'static [&'static str]),
    /// It must be applied exactly once.
    ExactlyOnce,
}

/// What can be done with a command whose keys lie in different slots of a cluster destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrossSlot {
    /// It has at most one key.
    Never,
    /// One command per slot does the same.
    Split,
    /// Its result can be computed from its sources, or read from the source server again.
    Recompute,
    /// Nothing: it is set aside.
    Quarantine,
}

/// Where keys stand. Positions count the verb as 0, as in Redis' own key specifications (`COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// None.
    No,
    /// From `first` to `last`, every `step`th; a negative `last` counts from the end (-1 = the last argument).
    Range { first: usize, last: isize, step: usize },
    /// Their number stands at `count`, they follow, every `step`th; one more may stand at 1.
    Counted { destination: bool, count: usize, step: usize },
    /// At 1, and behind the last of these words, which are looked for from `from` on; `skip` names words with values.
    Store { words: &'static [&'static str], from: usize, skip: &'static [(&'static str, usize)] },
    /// The first half of what follows STREAMS.
    Streams,
    /// MIGRATE: at 3, or behind KEYS.
    Migrate,
}

/// The command with this verb, in any case.
pub fn find(verb: &[u8]) -> Option<&'static Command> {
    let mut slot = hash(verb);
    loop {
        let command = match INDEX[slot] {
            0 => return None,
            number => &COMMANDS[number as usize - 1],
        };
        if command.name.len() == verb.len() && command.name.as_bytes().eq_ignore_ascii_case(verb) {
            return Some(command);
        }
        slot = (slot + 1) % INDEX.len();
    }
}

/// A database besides the selected one in which a command writes: `MOVE key db`, `COPY source destination DB db`.
pub fn other_database<'a>(
    command: &Command,
    count: usize,
    argument: impl Fn(usize) -> Option<&'a [u8]>,
) -> Option<u32> {
    let at = match command.name {
        "MOVE" => 2,
        "COPY" => {
            1 + (3..count).find(|at| argument(*at).is_some_and(|word| word.eq_ignore_ascii_case(b"DB")))?
        }
        _ => return None,
    };
    number(argument(at)?)
}

impl Command {
    /// Positions of the keys among `count` arguments, the verb being the first. `argument` returns one of them.
    ///
    /// An argument list that the servers would refuse has those keys that can be made out.
    pub fn keys<'a>(&self, count: usize, argument: impl Fn(usize) -> Option<&'a [u8]>) -> Positions {
        let is = |at: usize, word: &str| {
            argument(at).is_some_and(|found| found.eq_ignore_ascii_case(word.as_bytes()))
        };
        let end_of = |first: usize, number: usize, step: usize| {
            first.saturating_add(number.saturating_mul(step)).min(count)
        };
        match self.keys {
            Keys::No => Positions { single: None, next: 0, end: 0, step: 1 },
            Keys::Range { first, last, step } => {
                let end = if last < 0 {
                    (count + 1).saturating_sub(last.unsigned_abs())
                } else {
                    count.min(last.unsigned_abs() + 1)
                };
                Positions { single: None, next: first, end, step }
            }
            Keys::Counted { destination, count: at, step } => {
                let keys = argument(at).and_then(number).unwrap_or(0) as usize;
                let single = (destination && count > 1).then_some(1);
                Positions { single, next: at + 1, end: end_of(at + 1, keys, step), step }
            }
            Keys::Store { words, from, skip } => {
                let mut at = from;
                let mut stored = None;
                while at < count {
                    if words.iter().any(|word| is(at, word)) && at + 1 < count {
                        stored = Some(at + 1);
                        at += 1;
                    } else if let Some((_, values)) = skip.iter().find(|(word, _)| is(at, word)) {
                        at += values;
                    }
                    at += 1;
                }
                let next = stored.unwrap_or(count);
                Positions { single: (count > 1).then_some(1), next, end: end_of(next, 1, 1), step: 1 }
            }
            Keys::Streams => {
                let mut at = 1;
                while at < count && !is(at, "STREAMS") {
                    at += match () {
                        () if is(at, "GROUP") => 3,
                        () if is(at, "BLOCK") || is(at, "COUNT") || is(at, "CLAIM") => 2,
                        () => 1,
                    };
                }
                let first = (at + 1).min(count);
                Positions { single: None, next: first, end: first + (count - first) / 2, step: 1 }
            }
            Keys::Migrate => {
                let mut at = 6;
                while at < count && !is(at, "KEYS") {
                    at += match () {
                        () if is(at, "AUTH") => 2,
                        () if is(at, "AUTH2") => 3,
                        () => 1,
                    };
                }
                let many = at < count && argument(3).is_some_and(<[u8]>::is_empty);
                let (next, end) = if many { (at + 1, count) } else { (3, end_of(3, 1, 1)) };
                Positions { single: None, next, end, step: 1 }
            }
        }
    }

    /// True when applying it a second time, together with all that followed it on its keys, ends the same.
    pub fn is_idempotent<'a>(&self, count: usize, argument: impl Fn(usize) -> Option<&'a [u8]>) -> bool {
        match self.replay {
            Replay::Idempotent => true,
            Replay::ExactlyOnce => false,
            Replay::IdempotentWithout(words) => !(2..count).any(|at| {
                argument(at)
                    .is_some_and(|found| words.iter().any(|word| found.eq_ignore_ascii_case(word.as_bytes())))
            }),
        }
    }
}

/// Positions of keys, in ascending order but for a destination, which comes first.
#[derive(Debug, Clone)]
pub struct Positions {
    single: Option<usize>,
    next: usize,
    end: usize,
    step: usize,
}

impl Iterator for Positions {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if let Some(single) = self.single.take() {
            return Some(single);
        }
        let at = self.next;
        (at < self.end).then(|| {
            self.next = at + self.step;
            at
        })
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A hash table made by the compiler: number of the command + 1, or 0; collisions take the next free slot.
static INDEX: [u16; 1024] = index();

const fn index() -> [u16; 1024] {
    let mut index = [0; 1024];
    let mut number = 0;
    while number < COMMANDS.len() {
        let mut slot = hash(COMMANDS[number].name.as_bytes());
        while index[slot] != 0 {
            slot = (slot + 1) % index.len();
        }
        index[slot] = number as u16 + 1;
        number += 1;
    }
    index
}

/// FNV-1a of the letters in upper case; all bytes, because families of commands share long beginnings.
const fn hash(verb: &[u8]) -> usize {
    let mut hash: u32 = 0x811c_9dc5;
    let mut at = 0;
    // No command is that long; a verb that is one cannot cost more.
    while at < verb.len() && at < 32 {
        hash = (hash ^ verb[at].to_ascii_uppercase() as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ (hash >> 15)) as usize % 1024
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;

    fn words(text: &str) -> Vec<&[u8]> {
        text.split(' ').map(str::as_bytes).collect()
    }

    fn keys(text: &str) -> Vec<String> {
        let words = words(text);
        let command = find(words[0]).unwrap();
        let positions = command.keys(words.len(), |at| words.get(at).copied());
        positions.map(|at| String::from_utf8_lossy(words[at]).into_owned()).collect()
    }

    #[test]
    fn every_command_is_found_in_any_case_and_nothing_else() {
        for command in COMMANDS {
            assert!(std::ptr::eq(find(command.name.as_bytes()).unwrap(), command), "{}", command.name);
            assert!(std::ptr::eq(find(command.name.to_lowercase().as_bytes()).unwrap(), command));
            assert_eq!(command.name, command.name.to_uppercase());
        }
        for other in ["", "SE", "SETT", "TAIR.SET", "GEORADIUSBYMEMBERX", &"x".repeat(1000)] {
            assert_eq!(find(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn keys_of_unusual_and_broken_argument_lists() {
        assert_eq!(keys("SET"), [""; 0]);
        assert_eq!(keys("mset a 1 b"), ["a", "b"]);
        assert_eq!(keys("EVAL s 99999999999 a b"), [""; 0]);
        assert_eq!(keys("EVAL s 4000000000 a b"), ["a", "b"]);
        assert_eq!(keys("EVAL s -1 a"), [""; 0]);
        assert_eq!(keys("ZUNIONSTORE d"), ["d"]);
        assert_eq!(keys("SORT k BY STORE GET STORE LIMIT 0 STORE STORE d"), ["k", "d"]);
        assert_eq!(keys("GEORADIUS k 1 2 3 m STORE a STOREDIST b"), ["k", "b"]);
        assert_eq!(keys("XREADGROUP GROUP streams c COUNT 1 STREAMS a b 1 2"), ["a", "b"]);
        assert_eq!(keys("XREAD STREAMS"), [""; 0]);
        assert_eq!(keys("BLPOP a b 0"), ["a", "b"]);
        assert_eq!(keys("BLPOP"), [""; 0]);
    }

    #[test]
    fn other_databases_and_options_are_seen() {
        let other = |text: &str| {
            let words = words(text);
            other_database(find(words[0]).unwrap(), words.len(), |at| words.get(at).copied())
        };
        assert_eq!(other("MOVE k 3"), Some(3));
        assert_eq!(other("COPY db b REPLACE db 7"), Some(7));
        assert_eq!(other("COPY a DB"), None);
        assert_eq!(other("SET a 3"), None);
        let again = |text: &str| {
            let words = words(text);
            find(words[0]).unwrap().is_idempotent(words.len(), |at| words.get(at).copied())
        };
        for (text, expected) in [
            ("SET k v", true),
            ("ZADD z 1 m", true),
            ("ZADD z incr 1 m", false),
            ("BITFIELD b SET u8 0 1", true),
            ("BITFIELD b SET u8 0 1 INCRBY u8 0 1", false),
            ("INCR k", false),
            ("SETRANGE k 0 v", true),
            ("XADD s 1-1 f v", false),
        ] {
            assert_eq!(again(text), expected, "{text}");
        }
    }
}
