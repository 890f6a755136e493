//! Relative times of expiry made absolute.
//!
//! Sources up to Redis 6.2 tell their replicas `SETEX k 10 v` as the client typed it (Redis 7.0 and later say `PXAT <Unix
//! ms>`). Applied later, or twice after a crash, such a key would live too long by as much as it was late. So each is
//! turned into the absolute form, counted from when it arrived, which is what the source did a moment before.
//!
//! Pure: the time comes from outside. A command that is not understood to the last word is not touched: the destination
//! then says what it thinks of it.

use std::borrow::Cow;

use crate::rdb::dump::Target;

/// One command: its arguments.
pub type Command<'a> = Vec<Cow<'a, [u8]>>;

/// Whether a command of this name may hold a relative time; only then [`absolute`] need be asked. Plain `SET key value` holds none.
pub fn may_be_relative(verb: &[u8]) -> bool {
    let is = |name: &[u8]| verb.eq_ignore_ascii_case(name);
    match verb.len() {
        3 => is(b"SET"),
        5 => is(b"SETEX") || is(b"GETEX"),
        6 => is(b"EXPIRE") || is(b"PSETEX"),
        7 => is(b"PEXPIRE") || is(b"RESTORE"),
        14 => is(b"RESTORE-ASKING"),
        _ => false,
    }
}

/// The same command with an absolute time of expiry, in one or two commands that `target` understands; `None` when there is no
/// relative time in it, or the command is not well formed. `now_ms`: when it arrived (Unix ms by the source's clock).
pub fn absolute<'a>(arguments: &[&'a [u8]], now_ms: u64, target: Target) -> Option<Vec<Command<'a>>> {
    let verb = *arguments.first()?;
    let key = *arguments.get(1)?;
    let is = |name: &[u8]| verb.eq_ignore_ascii_case(name);
    let at = |text: &[u8], unit: i64| moment(text, unit, now_ms);
    let expire_at = |time: i64, options: &[&'a [u8]]| -> Command<'a> {
        let mut command: Command<'a> = vec![Cow::Borrowed(b"PEXPIREAT"), Cow::Borrowed(key), number(time)];
        command.extend(options.iter().map(|option| Cow::Borrowed(*option)));
        command
    };
    // SET with every word but the time; where PXAT is not known the time follows in a command of its own.
    let set = |value: &'a [u8], options: &[&'a [u8]], time: i64| -> Vec<Command<'a>> {
        let mut command: Command<'a> = vec![Cow::Borrowed(b"SET"), Cow::Borrowed(key), Cow::Borrowed(value)];
        command.extend(options.iter().map(|option| Cow::Borrowed(*option)));
        if target.has_redis(6, 2) {
            command.push(Cow::Borrowed(b"PXAT"));
            command.push(number(time));
            vec![command]
        } else {
            vec![command, expire_at(time, &[])]
        }
    };
    if is(b"EXPIRE") || is(b"PEXPIRE") {
        let time = at(arguments.get(2)?, if is(b"EXPIRE") { 1000 } else { 1 })?;
        let options = arguments.get(3..)?;
        let known = [&b"NX"[..], b"XX", b"GT", b"LT"];
        let understood =
            options.iter().all(|option| known.iter().any(|name| option.eq_ignore_ascii_case(name)));
        return understood.then(|| vec![expire_at(time, options)]);
    }
    if is(b"SETEX") || is(b"PSETEX") {
        let [_, _, time, value] = arguments else { return None };
        let time = at(positive(time)?, if is(b"SETEX") { 1000 } else { 1 })?;
        return Some(set(value, &[], time));
    }
    if is(b"SET") {
        let (time, others) = take_time(arguments.get(3..)?, now_ms)?;
        return Some(set(arguments.get(2)?, &others, time));
    }
    if is(b"GETEX") {
        // What it answers is of no use here; what it does is this.
        let (time, others) = take_time(arguments.get(2..)?, now_ms)?;
        return others.is_empty().then(|| vec![expire_at(time, &[])]);
    }
    if is(b"RESTORE") || is(b"RESTORE-ASKING") {
        return restore(arguments, now_ms, target, expire_at);
    }
    None
}

/// `RESTORE key ttl payload [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]`.
fn restore<'a>(
    arguments: &[&'a [u8]],
    now_ms: u64,
    target: Target,
    expire_at: impl Fn(i64, &[&'a [u8]]) -> Command<'a>,
) -> Option<Vec<Command<'a>>> {
    // 0 = no expiry.
    let time = moment(positive(arguments.get(2)?)?, 1, now_ms)?;
    let mut options = arguments.get(4..)?.iter();
    while let Some(option) = options.next() {
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        if is(b"IDLETIME") || is(b"FREQ") {
            integer(options.next()?)?;
        } else if !is(b"REPLACE") {
            // ABSTTL among others.
            return None;
        }
    }
    let mut command: Command<'a> = arguments.iter().map(|argument| Cow::Borrowed(*argument)).collect();
    if !target.has_redis(5, 0) {
        return Some(vec![command, expire_at(time, &[])]);
    }
    *command.get_mut(2)? = number(time);
    command.push(Cow::Borrowed(b"ABSTTL"));
    Some(vec![command])
}

/// Takes `EX seconds` or `PX milliseconds` out of the options of SET or GETEX. `None` unless there is exactly one and every other word is
/// known.
fn take_time<'a>(options: &[&'a [u8]], now_ms: u64) -> Option<(i64, Vec<&'a [u8]>)> {
    let mut time = None;
    let mut others = Vec::new();
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        if is(b"EX") || is(b"PX") {
            let found = moment(positive(rest.next()?)?, if is(b"EX") { 1000 } else { 1 }, now_ms)?;
            if time.replace(found).is_some() {
                return None;
            }
        } else if is(b"NX") || is(b"XX") || is(b"GET") {
            others.push(*option);
        } else if is(b"IFEQ") || is(b"IFNE") || is(b"IFDEQ") || is(b"IFDNE") {
            others.extend([*option, *rest.next()?]);
        } else {
            // KEEPTTL, PERSIST and absolute times exclude a relative one; anything else is not known.
            return None;
        }
    }
    Some((time?, others))
}

/// `text` units (of so many ms) after `now_ms`; `None` when it is no integer or out of range.
fn moment(text: &[u8], unit: i64, now_ms: u64) -> Option<i64> {
    integer(text)?.checked_mul(unit)?.checked_add(i64::try_from(now_ms).ok()?)
}

/// The text, if it is an integer above zero: sources refuse others here.
fn positive(text: &[u8]) -> Option<&[u8]> {
    integer(text).filter(|number| *number > 0).map(|_| text)
}

/// An integer as servers read it (`string2ll`): digits without leading zeros, a minus sign at most.
fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = text == b"0" || digits.first().is_some_and(|digit| (b'1'..=b'9').contains(digit));
    let text = std::str::from_utf8(text).ok().filter(|_| canonical)?;
    text.parse().ok()
}

fn number<'a>(number: i64) -> Cow<'a, [u8]> {
    Cow::Owned(number.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000_000;
    const NEW: Target = Target::redis(7, 0);

    fn words(text: &str, target: Target) -> Option<String> {
        let arguments: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
        let may = may_be_relative(arguments[0]);
        let commands = absolute(&arguments, NOW, target)?;
        assert!(may, "{text} must be looked at");
        let line = |command: Command<'_>| String::from_utf8(command.join(&b' ')).unwrap();
        Some(commands.into_iter().map(line).collect::<Vec<_>>().join(" | "))
    }

    #[test]
    fn every_relative_form_becomes_absolute() {
        for (command, new, old) in [
            ("EXPIRE k 10", "PEXPIREAT k 1700000010000", "PEXPIREAT k 1700000010000"),
            ("expire k -1", "PEXPIREAT k 1699999999000", "PEXPIREAT k 1699999999000"),
            ("PEXPIRE k 10 GT", "PEXPIREAT k 1700000000010 GT", "PEXPIREAT k 1700000000010 GT"),
            ("SETEX k 10 v", "SET k v PXAT 1700000010000", "SET k v | PEXPIREAT k 1700000010000"),
            ("psetex k 10 v", "SET k v PXAT 1700000000010", "SET k v | PEXPIREAT k 1700000000010"),
            ("SET k v EX 10", "SET k v PXAT 1700000010000", "SET k v | PEXPIREAT k 1700000010000"),
            ("set k v nx px 10", "SET k v nx PXAT 1700000000010", "SET k v nx | PEXPIREAT k 1700000000010"),
            (
                "SET k v PX 10 XX GET",
                "SET k v XX GET PXAT 1700000000010",
                "SET k v XX GET | PEXPIREAT k 1700000000010",
            ),
            (
                "SET k v IFEQ w EX 1",
                "SET k v IFEQ w PXAT 1700000001000",
                "SET k v IFEQ w | PEXPIREAT k 1700000001000",
            ),
            ("SET EX PX EX 1", "SET EX PX PXAT 1700000001000", "SET EX PX | PEXPIREAT EX 1700000001000"),
            ("GETEX k EX 10", "PEXPIREAT k 1700000010000", "PEXPIREAT k 1700000010000"),
            (
                "RESTORE k 10 payload REPLACE FREQ 7",
                "RESTORE k 1700000000010 payload REPLACE FREQ 7 ABSTTL",
                "RESTORE k 10 payload REPLACE FREQ 7 | PEXPIREAT k 1700000000010",
            ),
            (
                "RESTORE-ASKING k 10 p",
                "RESTORE-ASKING k 1700000000010 p ABSTTL",
                "RESTORE-ASKING k 10 p | PEXPIREAT k 1700000000010",
            ),
        ] {
            assert_eq!(words(command, NEW).as_deref(), Some(new), "{command}");
            assert_eq!(words(command, Target::valkey(8, 1)).as_deref(), Some(new), "{command}");
            assert_eq!(words(command, Target::redis(4, 0)).as_deref(), Some(old), "{command}");
        }
    }

    #[test]
    fn what_is_absolute_or_not_well_formed_stays_as_it_is() {
        for command in [
            "SET k v",
            "SET k v PXAT 1700000000010",
            "SET k v KEEPTTL",
            "SET k v EX 10 KEEPTTL",
            "SET k v EX 10 PX 10",
            "SET k v EX",
            "SET k v EX 0",
            "SET k v EX -5",
            "SET k v EX 010",
            "SET k v EX +10",
            "SET k v EX 1.5",
            "SET k v EX 10 SOMETHING",
            "SET k v EX 9223372036854775807",
            "SET k",
            "SETEX k 10",
            "SETEX k 10 v w",
            "SETEX k 0 v",
            "EXPIRE k",
            "EXPIRE k ten",
            "EXPIRE k 10 FOO",
            "EXPIRE k 9223372036854775",
            "PEXPIREAT k 10",
            "GETEX k",
            "GETEX k PERSIST",
            "GETEX k EX 10 NX",
            "RESTORE k 0 payload",
            "RESTORE k 10 payload ABSTTL",
            "RESTORE k 10 payload IDLETIME",
            "RESTORE k 10",
            "RESTORE k -1 payload",
            "HSET k f v",
            "SETEX",
        ] {
            assert_eq!(words(command, NEW), None, "{command}");
        }
    }

    proptest! {
        /// Nothing panics, and what comes out holds the key, the value and the flags of what went in.
        #[test]
        fn any_words_are_safe(
            verb in "(?i)(SET|SETEX|PSETEX|EXPIRE|PEXPIRE|GETEX|RESTORE|RESTORE-ASKING|GET|X)",
            rest in proptest::collection::vec("(?i)(EX|PX|NX|XX|GT|GET|KEEPTTL|REPLACE|ABSTTL|FREQ|-?[0-9]{0,20}|k|)", 0..8),
            now: u64,
        ) {
            let arguments: Vec<&[u8]> =
                std::iter::once(verb.as_bytes()).chain(rest.iter().map(String::as_bytes)).collect();
            for target in [NEW, Target::redis(4, 0)] {
                if let Some(commands) = absolute(&arguments, now, target) {
                    prop_assert!(may_be_relative(verb.as_bytes()));
                    for command in &commands {
                        prop_assert_eq!(&*command[1], arguments[1]);
                    }
                }
            }
        }

        #[test]
        fn the_time_is_now_and_the_rest(seconds in 1i64..4_000_000_000, value: Vec<u8>, nx: bool, now in 0u64..4_000_000_000_000) {
            let text = seconds.to_string();
            let mut arguments: Vec<&[u8]> = vec![b"SET", b"key", &value];
            if nx {
                arguments.push(b"NX");
            }
            arguments.extend([&b"EX"[..], text.as_bytes()]);
            let commands = absolute(&arguments, now, NEW).unwrap();
            let time = (now as i64 + seconds * 1000).to_string();
            let mut expected: Vec<&[u8]> = vec![b"SET", b"key", &value];
            if nx {
                expected.push(b"NX");
            }
            expected.extend([&b"PXAT"[..], time.as_bytes()]);
            prop_assert_eq!(commands.len(), 1);
            prop_assert_eq!(commands[0].iter().map(|word| &**word).collect::<Vec<_>>(), expected);
        }
    }
}
