//! Commands about keys of any type, and about whole databases.

use super::super::{rdb_writer, restore};
use super::*;

/// DEL and UNLINK.
pub(super) fn del(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (db, now_ms) = (call.session.db, call.now_ms);
    let removed = argv.iter().skip(1).filter(|key| call.node.store.remove(db, key, now_ms).is_some()).count();
    Ok(Reply::Integer(removed as i64))
}

pub(super) fn exists(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (db, now_ms) = (call.session.db, call.now_ms);
    let found = argv.iter().skip(1).filter(|key| call.node.store.get(db, key, now_ms).is_some()).count();
    Ok(Reply::Integer(found as i64))
}

pub(super) fn type_of(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let entry = call.node.store.get(call.session.db, arg(argv, 1)?, call.now_ms);
    Ok(Reply::simple(entry.map_or("none", |entry| entry.value.type_name())))
}

/// EXPIRE, PEXPIRE, EXPIREAT and PEXPIREAT. They travel as PEXPIREAT, or as DEL where the time is past.
pub(super) fn expire(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let name = arg(argv, 0)?.to_ascii_lowercase();
    let (key, number) = (arg(argv, 1)?, parse_integer(arg(argv, 2)?)?);
    let out_of_range =
        || Reply::err(format!("invalid expire time in '{}' command", String::from_utf8_lossy(&name)));
    let scaled = if name.starts_with(b"p") { Some(number) } else { number.checked_mul(1_000) };
    let at =
        if name.ends_with(b"at") { scaled } else { scaled.and_then(|ms| ms.checked_add(call.now_ms as i64)) };
    let at = at.ok_or_else(out_of_range)?;

    let (mut nx, mut xx, mut gt, mut lt) = (false, false, false, false);
    for option in argv.iter().skip(3) {
        match option.to_ascii_uppercase().as_slice() {
            b"NX" => nx = true,
            b"XX" => xx = true,
            b"GT" => gt = true,
            b"LT" => lt = true,
            _ => return Err(Reply::err(format!("Unsupported option {}", shorten(option)))),
        }
    }
    if nx && (xx || gt || lt) {
        return Err(Reply::err("NX and XX, GT or LT options at the same time are not compatible"));
    }
    if gt && lt {
        return Err(Reply::err("GT and LT options at the same time are not compatible"));
    }
    let (db, now_ms) = (call.session.db, call.now_ms);
    let Some(entry) = call.node.store.get(db, key, now_ms) else { return Ok(Reply::Integer(0)) };
    let old = entry.expires_ms().map(|at| at as i64);
    // No expiry counts as endless: greater than any time.
    let skip = (nx && old.is_some())
        || (xx && old.is_none())
        || (gt && old.is_none_or(|old| at <= old))
        || (lt && old.is_some_and(|old| at >= old));
    if skip {
        return Ok(Reply::Integer(0));
    }
    if at <= now_ms as i64 {
        call.node.store.remove(db, key, now_ms);
        call.rewrite(&[b"DEL", key.as_slice()]);
    } else {
        call.node.store.set_expiry(db, key, Some(at as u64), now_ms);
        call.rewrite(&[b"PEXPIREAT", key.as_slice(), at.to_string().as_bytes()]);
    }
    Ok(Reply::Integer(1))
}

pub(super) fn persist(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (db, key, now_ms) = (call.session.db, arg(argv, 1)?, call.now_ms);
    if call.node.store.get(db, key, now_ms).and_then(Entry::expires_ms).is_none() {
        return Ok(Reply::Integer(0));
    }
    call.node.store.set_expiry(db, key, None, now_ms);
    Ok(Reply::Integer(1))
}

/// TTL, PTTL, EXPIRETIME and PEXPIRETIME.
pub(super) fn time_to_live(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let name = arg(argv, 0)?.to_ascii_lowercase();
    let now_ms = call.now_ms;
    let Some(entry) = call.node.store.get(call.session.db, arg(argv, 1)?, now_ms) else {
        return Ok(Reply::Integer(-2));
    };
    let Some(at) = entry.expires_ms() else { return Ok(Reply::Integer(-1)) };
    let ms = if name.ends_with(b"expiretime") { at } else { at.saturating_sub(now_ms) };
    Ok(Reply::Integer(if name.starts_with(b"p") { ms } else { (ms + 500) / 1_000 } as i64))
}

/// RENAME and RENAMENX; the expiry moves with the value.
pub(super) fn rename(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let absent_only = is(arg(argv, 0)?, "RENAMENX");
    let (db, now_ms, from, to) = (call.session.db, call.now_ms, arg(argv, 1)?, arg(argv, 2)?);
    if call.node.store.get(db, from, now_ms).is_none() {
        return Err(Reply::err("no such key"));
    }
    if absent_only && call.node.store.get(db, to, now_ms).is_some() {
        return Ok(Reply::Integer(0));
    }
    if from != to
        && let Some(entry) = call.node.store.remove(db, from, now_ms)
    {
        call.node.store.remove(db, to, now_ms);
        call.node.store.insert(db, to.clone(), entry);
    }
    Ok(if absent_only { Reply::Integer(i64::from(from != to)) } else { Reply::OK })
}

pub(super) fn dbsize(call: &mut Call<'_>, _argv: &[Vec<u8>]) -> Outcome {
    Ok(Reply::Integer(call.node.store.len(call.session.db) as i64))
}

pub(super) fn keys(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let pattern = arg(argv, 1)?;
    let now_ms = call.now_ms;
    let live = call
        .node
        .store
        .iter(call.session.db)
        .filter(|(_, entry)| entry.expires_ms().is_none_or(|at| at > now_ms));
    Ok(Reply::Array(
        live.filter(|(key, _)| glob(pattern, key)).map(|(key, _)| Reply::bulk(key.clone())).collect(),
    ))
}

/// Keys are visited by a hash of their name, so that a key which is there all the time is seen whatever else changes.
pub(super) fn scan(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    const BUCKETS: usize = 65_536;
    let cursor = integer(arg(argv, 1)?).and_then(|cursor| usize::try_from(cursor).ok());
    let cursor = cursor.ok_or_else(|| Reply::err("invalid cursor"))?;
    let (mut pattern, mut count, mut kind) = (None, 10, None);
    for option in argv.get(2..).unwrap_or_default().chunks(2) {
        let value = option.get(1).ok_or_else(syntax_error)?;
        match option.first() {
            Some(name) if is(name, "MATCH") => pattern = Some(value),
            Some(name) if is(name, "COUNT") => {
                count = usize::try_from(parse_integer(value)?)
                    .ok()
                    .filter(|count| *count > 0)
                    .ok_or_else(syntax_error)?;
            }
            Some(name) if is(name, "TYPE") => kind = Some(value),
            _ => return Err(syntax_error()),
        }
    }
    let size = call.node.store.len(call.session.db).max(1);
    let end = cursor.saturating_add((count.saturating_mul(BUCKETS) / size).max(1));
    let now_ms = call.now_ms;
    let found = call.node.store.iter(call.session.db).filter(|(key, entry)| {
        (cursor..end).contains(&(fnv1a(key) as usize % BUCKETS))
            && entry.expires_ms().is_none_or(|at| at > now_ms)
            && pattern.is_none_or(|pattern| glob(pattern, key))
            && kind.is_none_or(|kind| is(kind, entry.value.type_name()))
    });
    let found = found.map(|(key, _)| Reply::bulk(key.clone())).collect();
    let next = if end >= BUCKETS { 0 } else { end };
    Ok(Reply::Array(vec![Reply::bulk(next.to_string()), Reply::Array(found)]))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

pub(super) fn flushall(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    flush_option(argv)?;
    call.node.store.clear(None);
    Ok(Reply::OK)
}

pub(super) fn flushdb(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    flush_option(argv)?;
    call.node.store.clear(Some(call.session.db));
    Ok(Reply::OK)
}

fn flush_option(argv: &[Vec<u8>]) -> Result<(), Reply> {
    match argv.get(1..).unwrap_or_default() {
        [] => Ok(()),
        [option] if is(option, "ASYNC") || is(option, "SYNC") => Ok(()),
        _ => Err(syntax_error()),
    }
}

pub(super) fn swapdb(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let index = |text: &[u8], which: &str| {
        let number = integer(text).ok_or_else(|| Reply::err(format!("invalid {which} DB index")))?;
        usize::try_from(number)
            .ok()
            .filter(|db| *db < super::super::store::DATABASES)
            .ok_or_else(|| Reply::err("DB index is out of range"))
    };
    let (a, b) = (index(arg(argv, 1)?, "first")?, index(arg(argv, 2)?, "second")?);
    call.node.store.swap(a, b);
    Ok(Reply::OK)
}

pub(super) fn dump(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let version = call.node.rdb_version;
    let entry = call.node.store.get(call.session.db, arg(argv, 1)?, call.now_ms);
    Ok(entry.map_or(Reply::Null, |entry| Reply::Bulk(rdb_writer::dump(&entry.value, version))))
}

/// `RESTORE key ttl payload [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ n]`
pub(super) fn restore(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (db, now_ms, key, payload) = (call.session.db, call.now_ms, arg(argv, 1)?, arg(argv, 3)?);
    let (mut replace, mut absolute, mut idle_seconds, mut frequency) = (false, false, None, None);
    let mut options = argv.get(4..).unwrap_or_default().iter();
    while let Some(option) = options.next() {
        match option.to_ascii_uppercase().as_slice() {
            b"REPLACE" => replace = true,
            b"ABSTTL" => absolute = true,
            b"IDLETIME" if frequency.is_none() => {
                let seconds = parse_integer(options.next().ok_or_else(syntax_error)?)?;
                let seconds =
                    u64::try_from(seconds).map_err(|_| Reply::err("Invalid IDLETIME value, must be >= 0"));
                idle_seconds = Some(seconds?);
            }
            b"FREQ" if idle_seconds.is_none() => {
                let counter = parse_integer(options.next().ok_or_else(syntax_error)?)?;
                let counter = u8::try_from(counter)
                    .map_err(|_| Reply::err("Invalid FREQ value, must be >= 0 and <= 255"));
                frequency = Some(counter?);
            }
            _ => return Err(syntax_error()),
        }
    }
    if !replace && call.node.store.get(db, key, now_ms).is_some() {
        return Err(Reply::Error("BUSYKEY Target key name already exists.".to_owned()));
    }
    let ttl = u64::try_from(parse_integer(arg(argv, 2)?)?)
        .map_err(|_| Reply::err("Invalid TTL value, must be >= 0"))?;
    let value = restore::decode(payload, call.node.rdb_version)?;

    let expires_ms = match ttl {
        0 => None,
        ttl if absolute => Some(ttl),
        ttl => Some(now_ms.saturating_add(ttl)),
    };
    if expires_ms.is_some_and(|at| at <= now_ms) {
        // Redis creates nothing, and what stood there is gone.
        let existed = call.node.store.remove(db, key, now_ms).is_some();
        if existed {
            call.rewrite(&[b"DEL", key.as_slice()]);
        }
        return Ok(Reply::OK);
    }
    let mut entry = Entry::with_expiry(value, expires_ms);
    entry.idle_seconds = idle_seconds;
    entry.frequency = frequency;
    call.node.store.insert(db, key.clone(), entry);
    if !absolute && let Some(at) = expires_ms {
        let mut absolute_form = argv.to_vec();
        if let Some(ttl) = absolute_form.get_mut(2) {
            *ttl = at.to_string().into_bytes();
        }
        absolute_form.push(b"ABSTTL".to_vec());
        call.rewrite(&absolute_form);
    }
    Ok(Reply::OK)
}

/// Matches as KEYS does (`stringmatchlen`, util.c): `*`, `?`, `[a-z]`, `[^a]`, and a backslash before a plain character.
pub(super) fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|skip| glob(rest, text.get(skip..).unwrap_or_default())),
        [b'?', rest @ ..] => text.split_first().is_some_and(|(_, text)| glob(rest, text)),
        [b'[', rest @ ..] => {
            let Some((first, text)) = text.split_first() else { return false };
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let (class, rest) =
                (rest.get(..end).unwrap_or_default(), rest.get(end + 1..).unwrap_or_default());
            let (negated, mut class) = match class {
                [b'^', class @ ..] => (true, class),
                class => (false, class),
            };
            let mut member = false;
            while let [low, after @ ..] = class {
                class = match after {
                    [b'-', high, after @ ..] => {
                        member |= (low.min(high)..=low.max(high)).contains(&first);
                        after
                    }
                    after => {
                        member |= low == first;
                        after
                    }
                };
            }
            member != negated && glob(rest, text)
        }
        [b'\\', plain, rest @ ..] | [plain, rest @ ..] => {
            text.split_first().is_some_and(|(first, text)| first == plain && glob(rest, text))
        }
    }
}
