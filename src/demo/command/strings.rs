//! String commands.

use super::*;

/// What SET and its relatives may say about expiry.
enum Expiry {
    None,
    Keep,
    At(u64),
}

pub(super) fn set(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (key, value) = (arg(argv, 1)?, arg(argv, 2)?);
    let (mut expiry, mut absent_only, mut present_only, mut get) = (Expiry::None, false, false, false);
    let mut index = 3;
    while let Some(option) = argv.get(index) {
        index += 1;
        match option.to_ascii_uppercase().as_slice() {
            b"NX" if !present_only => absent_only = true,
            b"XX" if !absent_only => present_only = true,
            b"GET" => get = true,
            b"KEEPTTL" if matches!(expiry, Expiry::None) => expiry = Expiry::Keep,
            unit @ (b"EX" | b"PX" | b"EXAT" | b"PXAT") if matches!(expiry, Expiry::None) => {
                let number = parse_integer(arg(argv, index)?)?;
                expiry = Expiry::At(absolute_ms(unit, number, call.now_ms, "set")?);
                index += 1;
            }
            _ => return Err(syntax_error()),
        }
    }
    let old = if get { call.string(key)?.cloned() } else { None };
    let existing = call.node.store.get(call.session.db, key, call.now_ms);
    let existing_expiry = existing.and_then(Entry::expires_ms);
    let refused = (absent_only && existing.is_some()) || (present_only && existing.is_none());
    if !refused {
        put(call, key, value, &expiry, existing_expiry);
    }
    Ok(match (get, old, refused) {
        (true, Some(old), _) => Reply::Bulk(old),
        (true, None, _) | (false, _, true) => Reply::Null,
        (false, _, false) => Reply::OK,
    })
}

/// Stores the string and tells replicas so with an absolute time.
fn put(call: &mut Call<'_>, key: &[u8], value: &[u8], expiry: &Expiry, existing_expiry: Option<u64>) {
    let expires_ms = match expiry {
        Expiry::None => None,
        Expiry::Keep => existing_expiry,
        Expiry::At(at) => Some(*at),
    };
    let entry = Entry::with_expiry(Value::String(value.to_vec()), expires_ms);
    call.node.store.insert(call.session.db, key.to_vec(), entry);
    if let Expiry::At(at) = expiry {
        call.rewrite(&[b"SET", key, value, b"PXAT", at.to_string().as_bytes()]);
    }
}

/// `number` in the unit of an option or command as Unix ms; zero and negative ones are errors, as in SET.
fn absolute_ms(unit: &[u8], number: i64, now_ms: u64, command: &str) -> Result<u64, Reply> {
    let scaled = if unit.starts_with(b"EX") { number.checked_mul(1_000) } else { Some(number) };
    let at = if unit.ends_with(b"AT") { scaled } else { scaled.and_then(|ms| ms.checked_add(now_ms as i64)) };
    match at {
        Some(at) if number > 0 => Ok(at as u64),
        _ => Err(Reply::err(format!("invalid expire time in '{command}' command"))),
    }
}

pub(super) fn setex(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (name, key) = (arg(argv, 0)?.to_ascii_lowercase(), arg(argv, 1)?);
    let (unit, name): (&[u8], _) = if name == b"psetex" { (b"PX", "psetex") } else { (b"EX", "setex") };
    let at = absolute_ms(unit, parse_integer(arg(argv, 2)?)?, call.now_ms, name)?;
    put(call, key, arg(argv, 3)?, &Expiry::At(at), None);
    Ok(Reply::OK)
}

pub(super) fn setnx(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let key = arg(argv, 1)?;
    if call.node.store.get(call.session.db, key, call.now_ms).is_some() {
        return Ok(Reply::Integer(0));
    }
    put(call, key, arg(argv, 2)?, &Expiry::None, None);
    Ok(Reply::Integer(1))
}

pub(super) fn get(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    Ok(call.string(arg(argv, 1)?)?.map_or(Reply::Null, |value| Reply::Bulk(value.clone())))
}

pub(super) fn strlen(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    Ok(Reply::Integer(call.string(arg(argv, 1)?)?.map_or(0, Vec::len) as i64))
}

pub(super) fn mget(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    // Unlike GET, a key of another type is a null here.
    let values = argv.iter().skip(1).map(|key| match call.string(key) {
        Ok(Some(value)) => Reply::Bulk(value.clone()),
        _ => Reply::Null,
    });
    Ok(Reply::Array(values.collect()))
}

/// MSET and MSETNX.
pub(super) fn mset(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let absent_only = is(arg(argv, 0)?, "MSETNX");
    let pairs = argv.get(1..).unwrap_or_default();
    if pairs.len() % 2 != 0 {
        return Err(wrong_arity(if absent_only { "msetnx" } else { "mset" }));
    }
    let (db, now_ms) = (call.session.db, call.now_ms);
    if absent_only && pairs.iter().step_by(2).any(|key| call.node.store.get(db, key, now_ms).is_some()) {
        return Ok(Reply::Integer(0));
    }
    for pair in pairs.chunks_exact(2) {
        if let [key, value] = pair {
            call.node.store.insert(db, key.clone(), Entry::new(Value::String(value.clone())));
        }
    }
    Ok(if absent_only { Reply::Integer(1) } else { Reply::OK })
}

pub(super) fn append(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let value = call.string_or_new(arg(argv, 1)?)?;
    value.extend_from_slice(arg(argv, 2)?);
    Ok(Reply::Integer(value.len() as i64))
}

pub(super) fn setrange(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (key, patch) = (arg(argv, 1)?, arg(argv, 3)?);
    let offset =
        usize::try_from(parse_integer(arg(argv, 2)?)?).map_err(|_| Reply::err("offset is out of range"))?;
    if patch.is_empty() {
        return strlen(call, argv);
    }
    let end = offset.saturating_add(patch.len());
    if end > 512 * 1_048_576 {
        return Err(Reply::err("string exceeds maximum allowed size (proto-max-bulk-len)"));
    }
    let value = call.string_or_new(key)?;
    if value.len() < end {
        value.resize(end, 0);
    }
    if let Some(target) = value.get_mut(offset..end) {
        target.copy_from_slice(patch);
    }
    Ok(Reply::Integer(value.len() as i64))
}

pub(super) fn incr(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    add(call, arg(argv, 1)?, 1)
}

pub(super) fn decr(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    add(call, arg(argv, 1)?, -1)
}

pub(super) fn incrby(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    add(call, arg(argv, 1)?, parse_integer(arg(argv, 2)?)?)
}

pub(super) fn decrby(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let number = parse_integer(arg(argv, 2)?)?;
    add(call, arg(argv, 1)?, number.checked_neg().ok_or_else(|| Reply::err("decrement would overflow"))?)
}

fn add(call: &mut Call<'_>, key: &[u8], number: i64) -> Outcome {
    let old = call.string(key)?.map_or(Ok(0), |value| parse_integer(value))?;
    let new = old.checked_add(number).ok_or_else(|| Reply::err("increment or decrement would overflow"))?;
    *call.string_or_new(key)? = new.to_string().into_bytes();
    Ok(Reply::Integer(new))
}

/// Travels as SET … KEEPTTL: the replica must not add floating point numbers in its own way.
pub(super) fn incrbyfloat(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let key = arg(argv, 1)?;
    let old = call.string(key)?.map_or(Ok(0.0), |value| parse_float(value))?;
    let new = old + parse_float(arg(argv, 2)?)?;
    if !new.is_finite() {
        return Err(Reply::err("increment would produce NaN or Infinity"));
    }
    let text = new.to_string().into_bytes();
    call.string_or_new(key)?.clone_from(&text);
    call.rewrite(&[b"SET".as_slice(), key, &text, b"KEEPTTL"]);
    Ok(Reply::Bulk(text))
}
