//! Where a command goes in a cluster, and whether it may be sent a second time. Pure.

use std::collections::BTreeMap;

use super::super::batch::{CommandKind, SentCommand};
use crate::command::{self, CrossSlot, slot_of};

/// Where a command goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Route {
    /// To the master of this slot.
    Slot(u16),
    /// One command per slot: positions of its keys, each with as many arguments as `step` says.
    Split {
        /// A key and its values.
        step: usize,
        /// Positions of the keys, by slot.
        slots: BTreeMap<u16, Vec<usize>>,
    },
    /// Its keys lie in several slots (position, slot): done by value, where the destination's own state stands.
    ByValue(Vec<(usize, u16)>),
    /// To every master.
    Masters,
    /// It empties the destination.
    Empty,
    /// Nowhere; that is as it should be.
    Drop(&'static str),
    /// Nowhere, for this reason: it is set aside.
    SetAside(&'static str),
}

/// Where a command of `count` arguments goes, the verb being the first. `argument` returns one of them.
pub fn route<'a>(count: usize, argument: impl Fn(usize) -> Option<&'a [u8]>) -> Route {
    let Some(verb) = argument(0) else { return Route::Drop("it is empty") };
    let Some(known) = command::find(verb) else {
        // The best guess.
        return argument(1)
            .map_or(Route::SetAside("nothing is known of its keys"), |key| Route::Slot(slot_of(key)));
    };
    match known.name {
        "PUBLISH" | "SPUBLISH" => return Route::Drop("messages are not data"),
        "FLUSHALL" | "FLUSHDB" => return Route::Empty,
        "SCRIPT" | "FUNCTION" => return Route::Masters,
        "SWAPDB" => return Route::SetAside("a cluster does not exchange databases"),
        _ => {}
    }
    let keys = || known.keys(count, &argument).filter_map(|at| Some((at, slot_of(argument(at)?))));
    let Some((_, first)) = keys().next() else {
        return Route::SetAside("it names no key, so that no node is known to be meant");
    };
    if keys().skip(1).all(|(_, slot)| slot == first) {
        return Route::Slot(first);
    }
    match known.cross_slot {
        CrossSlot::Split => {
            let mut slots: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
            for (at, slot) in keys() {
                slots.entry(slot).or_default().push(at);
            }
            Route::Split { step: if known.name == "MSET" { 2 } else { 1 }, slots }
        }
        CrossSlot::Recompute => Route::ByValue(keys().collect()),
        _ => Route::SetAside(
            "its keys lie in different slots of the destination, and it cannot be taken apart",
        ),
    }
}

/// Whether a command must be applied exactly once, or only together with its neighbours: it goes in a transaction with the
/// checkpoint of its slot. All others end the same when they are sent again together with what follows them.
pub fn needs_transaction<'a>(
    sent: &SentCommand,
    count: usize,
    argument: impl Fn(usize) -> Option<&'a [u8]>,
) -> bool {
    let verb = argument(0).unwrap_or_default();
    match sent.kind {
        CommandKind::Stream | CommandKind::Renew => {
            sent.transaction || !command::find(verb).is_some_and(|known| known.is_idempotent(count, argument))
        }
        // They build a value, which nobody should see before it is complete.
        CommandKind::Part | CommandKind::Piece => true,
        CommandKind::Rebuild => ![&b"SET"[..], b"UNLINK", b"DEL"].contains(&verb) || sent.transaction,
        // What stands before it in the batch (UNLINK, PEXPIREAT) is in the same slot, so in the same transaction.
        CommandKind::Rename { .. } => true,
        CommandKind::Select
        | CommandKind::Count
        | CommandKind::Restore
        | CommandKind::RestoreIfMissing
        | CommandKind::SetIfNone
        | CommandKind::SetIfMissing => false,
    }
}

/// Position of the key that a command by value writes to; the others are only read, or taken from.
pub fn target_of(arguments: &[&[u8]], keys: &[(usize, u16)]) -> Option<(usize, u16)> {
    let known = arguments.first().and_then(|verb| command::find(verb))?;
    match known.name {
        "RENAME" | "RENAMENX" | "COPY" | "SMOVE" | "LMOVE" | "BLMOVE" | "RPOPLPUSH" | "BRPOPLPUSH"
        | "SORT" | "GEORADIUS" | "GEORADIUSBYMEMBER" => keys.last().copied(),
        _ => keys.first().copied(),
    }
}

/// What a command by value takes from its source, as a command for the source's slot alone. `None` = it only reads there.
pub fn taken_from<'a>(arguments: &[&'a [u8]]) -> Option<Vec<&'a [u8]>> {
    let known = arguments.first().and_then(|verb| command::find(verb))?;
    let source = *arguments.get(1)?;
    match known.name {
        "RENAME" | "RENAMENX" => Some(vec![b"DEL", source]),
        "SMOVE" => Some(vec![b"SREM", source, arguments.get(3)?]),
        "LMOVE" | "BLMOVE" if arguments.get(3)?.eq_ignore_ascii_case(b"LEFT") => Some(vec![b"LPOP", source]),
        "LMOVE" | "BLMOVE" | "RPOPLPUSH" | "BRPOPLPUSH" => Some(vec![b"RPOP", source]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnExistingKey;

    fn words(text: &str) -> Vec<&[u8]> {
        text.split(' ').map(str::as_bytes).collect()
    }

    fn route(words: &[&[u8]]) -> Route {
        super::route(words.len(), |at| words.get(at).copied())
    }

    #[test]
    fn each_command_finds_its_way() {
        let (a, b) = (slot_of(b"a"), slot_of(b"b"));
        assert_ne!(a, b);
        assert_eq!(route(&words("SET a 1")), Route::Slot(a));
        assert_eq!(route(&words("RENAME {a}1 {a}2")), Route::Slot(a));
        assert_eq!(route(&words("TAIR.SET a 1")), Route::Slot(a));
        let slots = BTreeMap::from([(a, vec![1, 5]), (b, vec![3])]);
        assert_eq!(route(&words("MSET a 1 b 2 {a}3 3")), Route::Split { step: 2, slots });
        let slots = BTreeMap::from([(a, vec![1]), (b, vec![2])]);
        assert_eq!(route(&words("del a b")), Route::Split { step: 1, slots });
        assert_eq!(route(&words("SUNIONSTORE a b a")), Route::ByValue(vec![(1, a), (2, b), (3, a)]));
        assert_eq!(route(&words("COPY a {a}1 DB 3")), Route::Slot(a));
        assert_eq!(route(&words("COPY a b DB 3")), Route::ByValue(vec![(1, a), (2, b)]));
        assert_eq!(route(&words("MOVE a 1")), Route::Slot(a));
        for aside in ["SWAPDB 0 1", "EVAL x 0", "EVAL x 2 a b", "MSETNX a 1 b 2"] {
            assert!(matches!(route(&words(aside)), Route::SetAside(_)), "{aside}");
        }
        assert_eq!(route(&words("flushall async")), Route::Empty);
        assert_eq!(route(&words("FUNCTION LOAD x")), Route::Masters);
        assert!(matches!(route(&words("PUBLISH a b")), Route::Drop(_)));
    }

    #[test]
    fn only_what_ends_the_same_is_sent_without_a_transaction() {
        let needs = |kind, transaction, text: &str| {
            let words = words(text);
            let sent = SentCommand { start: 0, kind, at: 0, transaction };
            needs_transaction(&sent, words.len(), |at| words.get(at).copied())
        };
        assert!(!needs(CommandKind::Stream, false, "SET a 1"));
        assert!(needs(CommandKind::Stream, true, "SET a 1"));
        for text in ["INCR a", "LPUSH a 1", "APPEND a 1", "XADD a 1-1 f v", "TAIR.SET a", "EVAL x 1 a"] {
            assert!(needs(CommandKind::Stream, false, text), "{text}");
        }
        assert!(!needs(CommandKind::Rebuild, false, "SET a 1"));
        assert!(needs(CommandKind::Part, false, "RPUSH a 1") && needs(CommandKind::Piece, false, "SET a 1"));
        assert!(!needs(CommandKind::Restore, false, "RESTORE a 0 x"));
        assert!(!needs(CommandKind::Count, false, "SCARD a"));
        for existing in [OnExistingKey::Rewrite, OnExistingKey::Panic, OnExistingKey::Skip] {
            assert!(needs(CommandKind::Rename { existing, ends_at_ms: None }, false, "RENAME {a}1 a"));
        }
    }

    #[test]
    fn what_is_written_and_what_is_taken() {
        let target = |text: &str| {
            let words = words(text);
            let Route::ByValue(keys) = route(&words) else { return "".into() };
            String::from_utf8_lossy(words[target_of(&words, &keys).unwrap_or_default().0]).into_owned()
        };
        for (text, expected) in [
            ("RENAME a b", "b"),
            ("SMOVE a b m", "b"),
            ("LMOVE a b LEFT RIGHT", "b"),
            ("SORT a STORE b", "b"),
            ("SUNIONSTORE a b", "a"),
            ("ZUNIONSTORE a 2 b c", "a"),
            ("BITOP OR a b c", "a"),
            ("PFMERGE a b", "a"),
            ("GEOSEARCHSTORE a b FROMLONLAT 1 2 BYRADIUS 1 m", "a"),
            ("GEORADIUS a 1 2 3 m STORE b", "b"),
        ] {
            assert_eq!(target(text), expected, "{text}");
        }
        let taken = |text: &str| taken_from(&words(text)).map(|words| words.join(&b' '));
        assert_eq!(taken("rename a b").as_deref(), Some(&b"DEL a"[..]));
        assert_eq!(taken("SMOVE a b m").as_deref(), Some(&b"SREM a m"[..]));
        assert_eq!(taken("LMOVE a b right left").as_deref(), Some(&b"RPOP a"[..]));
        assert_eq!(taken("LMOVE a b left left").as_deref(), Some(&b"LPOP a"[..]));
        assert_eq!(taken("RPOPLPUSH a b").as_deref(), Some(&b"RPOP a"[..]));
        assert_eq!(taken("COPY a b"), None);
        assert_eq!(taken("PFMERGE a b"), None);
    }
}
