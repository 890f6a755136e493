//! Sorted set commands.

use super::super::value::by_score;
use super::*;

pub(super) fn zadd(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let key = arg(argv, 1)?;
    let (mut nx, mut xx, mut gt, mut lt, mut changed_too, mut increment) =
        (false, false, false, false, false, false);
    let mut first = 2;
    while let Some(option) = argv.get(first) {
        match option.to_ascii_uppercase().as_slice() {
            b"NX" => nx = true,
            b"XX" => xx = true,
            b"GT" => gt = true,
            b"LT" => lt = true,
            b"CH" => changed_too = true,
            b"INCR" => increment = true,
            _ => break,
        }
        first += 1;
    }
    let pairs = argv.get(first..).unwrap_or_default();
    if pairs.is_empty() || pairs.len() % 2 != 0 {
        return Err(syntax_error());
    }
    if nx && xx {
        return Err(Reply::err("XX and NX options at the same time are not compatible"));
    }
    if (gt && (nx || lt)) || (lt && nx) {
        return Err(Reply::err("GT, LT, and/or NX options at the same time are not compatible"));
    }
    if increment && pairs.len() > 2 {
        return Err(Reply::err("INCR option supports a single increment-element pair"));
    }
    let mut scored = Vec::with_capacity(pairs.len() / 2);
    for pair in pairs.chunks_exact(2) {
        if let [score, member] = pair {
            scored.push((parse_float(score)?, member));
        }
    }
    if xx && call.sorted_set(key)?.is_none() {
        return Ok(if increment { Reply::Null } else { Reply::Integer(0) });
    }

    let members = call.sorted_set_or_new(key)?;
    let (mut added, mut updated, mut result) = (0, 0, Reply::Null);
    for (score, member) in scored {
        let old = members.get(member).copied();
        let score = if increment { old.unwrap_or(0.0) + score } else { score };
        if score.is_nan() {
            call.remove_if_empty(key);
            return Err(Reply::err("resulting score is not a number (NaN)"));
        }
        let skip = match old {
            Some(old) => nx || (gt && score <= old) || (lt && score >= old),
            None => xx,
        };
        if skip {
            continue;
        }
        result = Reply::Double(score);
        members.insert(member.clone(), score);
        match old {
            None => added += 1,
            Some(old) if old != score => updated += 1,
            Some(_) => {}
        }
    }
    call.remove_if_empty(key);
    Ok(if increment { result } else { Reply::Integer(if changed_too { added + updated } else { added }) })
}

pub(super) fn zincrby(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (key, number, member) = (arg(argv, 1)?, parse_float(arg(argv, 2)?)?, arg(argv, 3)?);
    let score =
        call.sorted_set(key)?.and_then(|members| members.get(member)).copied().unwrap_or(0.0) + number;
    if score.is_nan() {
        return Err(Reply::err("resulting score is not a number (NaN)"));
    }
    call.sorted_set_or_new(key)?.insert(member.clone(), score);
    Ok(Reply::Double(score))
}

pub(super) fn zrem(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let key = arg(argv, 1)?;
    let Some(members) = call.sorted_set_mut(key)? else { return Ok(Reply::Integer(0)) };
    let removed = argv.iter().skip(2).filter(|member| members.remove(*member).is_some()).count();
    call.remove_if_empty(key);
    Ok(Reply::Integer(removed as i64))
}

pub(super) fn zcard(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    Ok(Reply::Integer(call.sorted_set(arg(argv, 1)?)?.map_or(0, |members| members.len()) as i64))
}

pub(super) fn zscore(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let score = call.sorted_set(arg(argv, 1)?)?.and_then(|members| members.get(argv.get(2)?));
    Ok(score.map_or(Reply::Null, |score| Reply::Double(*score)))
}

/// By index only, with or without WITHSCORES.
pub(super) fn zrange(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let with_scores = match argv.get(4) {
        None => false,
        Some(option) if is(option, "WITHSCORES") && argv.len() == 5 => true,
        Some(_) => return Err(syntax_error()),
    };
    let resp3 = call.session.resp3;
    let Some(members) = call.sorted_set(arg(argv, 1)?)? else { return Ok(Reply::Array(Vec::new())) };
    let sorted = by_score(members);
    let range = index_range(arg(argv, 2)?, arg(argv, 3)?, sorted.len())?;
    let mut items = Vec::new();
    for (member, score) in sorted.get(range).unwrap_or_default() {
        let member = Reply::bulk((*member).clone());
        match (with_scores, resp3) {
            (false, _) => items.push(member),
            (true, false) => items.extend([member, Reply::Double(*score)]),
            (true, true) => items.push(Reply::Array(vec![member, Reply::Double(*score)])),
        }
    }
    Ok(Reply::Array(items))
}
