//! List, set and hash commands.

use super::*;

/// LPUSH, RPUSH and the forms with X, which do not create the key.
pub(super) fn push(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (name, key) = (arg(argv, 0)?.to_ascii_lowercase(), arg(argv, 1)?);
    if name.ends_with(b"x") && call.list(key)?.is_none() {
        return Ok(Reply::Integer(0));
    }
    let list = call.list_or_new(key)?;
    for item in argv.iter().skip(2).cloned() {
        if name.starts_with(b"l") { list.push_front(item) } else { list.push_back(item) }
    }
    Ok(Reply::Integer(list.len() as i64))
}

/// LPOP and RPOP, with or without a count.
pub(super) fn pop(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (front, key) = (is(arg(argv, 0)?, "LPOP"), arg(argv, 1)?);
    let count = match argv.get(2) {
        Some(_) if argv.len() > 3 => return Err(wrong_arity(if front { "lpop" } else { "rpop" })),
        Some(count) => Some(
            usize::try_from(parse_integer(count)?)
                .map_err(|_| Reply::err("value is out of range, must be positive"))?,
        ),
        None => None,
    };
    let Some(list) = call.list_mut(key)? else {
        return Ok(if count.is_some() { Reply::NullArray } else { Reply::Null });
    };
    let taken: Vec<Reply> = (0..count.unwrap_or(1))
        .map_while(|_| if front { list.pop_front() } else { list.pop_back() })
        .map(Reply::Bulk)
        .collect();
    call.remove_if_empty(key);
    match count {
        Some(_) => Ok(Reply::Array(taken)),
        None => Ok(taken.into_iter().next().unwrap_or(Reply::Null)),
    }
}

pub(super) fn llen(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    Ok(Reply::Integer(call.list(arg(argv, 1)?)?.map_or(0, |list| list.len()) as i64))
}

pub(super) fn lrange(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let Some(list) = call.list(arg(argv, 1)?)? else { return Ok(Reply::Array(Vec::new())) };
    let range = index_range(arg(argv, 2)?, arg(argv, 3)?, list.len())?;
    Ok(Reply::Array(list.range(range).cloned().map(Reply::Bulk).collect()))
}

pub(super) fn ltrim(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let key = arg(argv, 1)?;
    if let Some(list) = call.list_mut(key)? {
        let range = index_range(arg(argv, 2)?, arg(argv, 3)?, list.len())?;
        list.truncate(range.end);
        list.drain(..range.start);
    }
    call.remove_if_empty(key);
    Ok(Reply::OK)
}

pub(super) fn lset(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let index = parse_integer(arg(argv, 2)?)?;
    let list = call.list_mut(arg(argv, 1)?)?.ok_or_else(|| Reply::err("no such key"))?;
    let index = if index < 0 { index + list.len() as i64 } else { index };
    let slot = usize::try_from(index).ok().and_then(|index| list.get_mut(index));
    slot.ok_or_else(|| Reply::err("index out of range"))?.clone_from(arg(argv, 3)?);
    Ok(Reply::OK)
}

pub(super) fn linsert(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let after = match arg(argv, 2)? {
        place if is(place, "BEFORE") => 0,
        place if is(place, "AFTER") => 1,
        _ => return Err(syntax_error()),
    };
    let Some(list) = call.list_mut(arg(argv, 1)?)? else { return Ok(Reply::Integer(0)) };
    let pivot = arg(argv, 3)?;
    let Some(place) = list.iter().position(|item| item == pivot) else { return Ok(Reply::Integer(-1)) };
    list.insert(place + after, arg(argv, 4)?.clone());
    Ok(Reply::Integer(list.len() as i64))
}

pub(super) fn lrem(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (key, count, item) = (arg(argv, 1)?, parse_integer(arg(argv, 2)?)?, arg(argv, 3)?);
    let Some(list) = call.list_mut(key)? else { return Ok(Reply::Integer(0)) };
    let limit = if count == 0 { usize::MAX } else { count.unsigned_abs() as usize };
    let mut removed = 0;
    if count < 0 {
        list.make_contiguous().reverse();
    }
    list.retain(|each| {
        let goes = each == item && removed < limit;
        removed += usize::from(goes);
        !goes
    });
    if count < 0 {
        list.make_contiguous().reverse();
    }
    call.remove_if_empty(key);
    Ok(Reply::Integer(removed as i64))
}

pub(super) fn sadd(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let set = call.set_or_new(arg(argv, 1)?)?;
    let added = argv.iter().skip(2).filter(|member| set.insert((*member).clone())).count();
    Ok(Reply::Integer(added as i64))
}

pub(super) fn srem(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let key = arg(argv, 1)?;
    let Some(set) = call.set_mut(key)? else { return Ok(Reply::Integer(0)) };
    let removed = argv.iter().skip(2).filter(|member| set.remove(*member)).count();
    call.remove_if_empty(key);
    Ok(Reply::Integer(removed as i64))
}

pub(super) fn scard(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    Ok(Reply::Integer(call.set(arg(argv, 1)?)?.map_or(0, |set| set.len()) as i64))
}

pub(super) fn smembers(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let set = call.set(arg(argv, 1)?)?;
    Ok(Reply::Set(set.into_iter().flatten().cloned().map(Reply::Bulk).collect()))
}

/// HSET answers how many fields are new, HMSET answers OK.
pub(super) fn hset(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let old_form = is(arg(argv, 0)?, "HMSET");
    let pairs = argv.get(2..).unwrap_or_default();
    if pairs.len() % 2 != 0 {
        return Err(wrong_arity(if old_form { "hmset" } else { "hset" }));
    }
    let hash = call.hash_or_new(arg(argv, 1)?)?;
    let mut added = 0;
    for pair in pairs.chunks_exact(2) {
        if let [field, value] = pair {
            added += i64::from(hash.insert(field.clone(), value.clone()).is_none());
        }
    }
    Ok(if old_form { Reply::OK } else { Reply::Integer(added) })
}

pub(super) fn hsetnx(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let hash = call.hash_or_new(arg(argv, 1)?)?;
    let field = arg(argv, 2)?;
    if hash.contains_key(field) {
        return Ok(Reply::Integer(0));
    }
    hash.insert(field.clone(), arg(argv, 3)?.clone());
    Ok(Reply::Integer(1))
}

pub(super) fn hdel(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let key = arg(argv, 1)?;
    let Some(hash) = call.hash_mut(key)? else { return Ok(Reply::Integer(0)) };
    let removed = argv.iter().skip(2).filter(|field| hash.remove(*field).is_some()).count();
    call.remove_if_empty(key);
    Ok(Reply::Integer(removed as i64))
}

pub(super) fn hget(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let value = call.hash(arg(argv, 1)?)?.and_then(|hash| hash.get(argv.get(2)?));
    Ok(value.map_or(Reply::Null, |value| Reply::Bulk(value.clone())))
}

pub(super) fn hgetall(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let hash = call.hash(arg(argv, 1)?)?;
    let pairs = hash.into_iter().flatten();
    Ok(Reply::Map(
        pairs.map(|(field, value)| (Reply::bulk(field.clone()), Reply::bulk(value.clone()))).collect(),
    ))
}

pub(super) fn hlen(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    Ok(Reply::Integer(call.hash(arg(argv, 1)?)?.map_or(0, |hash| hash.len()) as i64))
}

pub(super) fn hincrby(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (key, field, number) = (arg(argv, 1)?, arg(argv, 2)?, parse_integer(arg(argv, 3)?)?);
    let old = match call.hash(key)?.and_then(|hash| hash.get(field)) {
        Some(value) => integer(value).ok_or_else(|| Reply::err("hash value is not an integer"))?,
        None => 0,
    };
    let new = old.checked_add(number).ok_or_else(|| Reply::err("increment or decrement would overflow"))?;
    call.hash_or_new(key)?.insert(field.clone(), new.to_string().into_bytes());
    Ok(Reply::Integer(new))
}

/// Travels as HSET, for the same reason as INCRBYFLOAT.
pub(super) fn hincrbyfloat(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (key, field, number) = (arg(argv, 1)?, arg(argv, 2)?, parse_float(arg(argv, 3)?)?);
    let old = match call.hash(key)?.and_then(|hash| hash.get(field)) {
        Some(value) => parse_float(value).map_err(|_| Reply::err("hash value is not a float"))?,
        None => 0.0,
    };
    let new = old + number;
    if !new.is_finite() {
        return Err(Reply::err("increment would produce NaN or Infinity"));
    }
    let text = new.to_string().into_bytes();
    call.hash_or_new(key)?.insert(field.clone(), text.clone());
    call.rewrite(&[b"HSET", key.as_slice(), field, &text]);
    Ok(Reply::Bulk(text))
}
