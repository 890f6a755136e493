//! Stream commands, in the forms that a master sends to its replicas and a few more.

use super::super::value::{Consumer, Fields, Group, Pending, Stream, StreamId};
use super::*;

fn invalid_id() -> Reply {
    Reply::err("Invalid stream ID specified as stream command argument")
}

fn parse_id(text: &[u8], missing_seq: u64) -> Result<StreamId, Reply> {
    StreamId::parse(text, missing_seq).ok_or_else(invalid_id)
}

/// `MAXLEN|MINID [=|~] threshold [LIMIT n]`
struct Trim {
    by_length: bool,
    threshold: Vec<u8>,
}

impl Trim {
    /// Reads the option whose name stands at `index`; answers what follows it.
    fn parse(argv: &[Vec<u8>], mut index: usize) -> Result<(Trim, usize), Reply> {
        let by_length = is(arg(argv, index)?, "MAXLEN");
        index += 1;
        let approximate = arg(argv, index)?.as_slice() == b"~";
        if approximate || arg(argv, index)?.as_slice() == b"=" {
            index += 1;
        }
        let threshold = arg(argv, index)?.clone();
        if by_length && parse_integer(&threshold)? < 0 {
            return Err(Reply::err("The MAXLEN argument must be >= 0."));
        }
        index += 1;
        if argv.get(index).is_some_and(|option| is(option, "LIMIT")) {
            if !approximate {
                return Err(Reply::err("syntax error, LIMIT cannot be used without the special ~ option"));
            }
            index += 2;
        }
        Ok((Trim { by_length, threshold }, index))
    }

    /// Trims exactly, also where `~` would allow less; a replica is told `=` and does the same.
    fn apply(&self, stream: &mut Stream) -> Result<usize, Reply> {
        let before = stream.entries.len();
        if self.by_length {
            let keep = usize::try_from(parse_integer(&self.threshold)?).unwrap_or(usize::MAX);
            while stream.entries.len() > keep {
                stream.entries.pop_first();
            }
        } else {
            stream.entries = stream.entries.split_off(&parse_id(&self.threshold, 0)?);
        }
        Ok(before - stream.entries.len())
    }

    fn word(&self) -> &'static [u8] {
        if self.by_length { b"MAXLEN" } else { b"MINID" }
    }
}

/// `XADD key [NOMKSTREAM] [trim] *|ms-*|id field value …`; travels with the id that was chosen.
pub(super) fn xadd(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let key = arg(argv, 1)?;
    let (mut index, mut create, mut trim) = (2, true, None);
    loop {
        let option = arg(argv, index)?;
        if is(option, "NOMKSTREAM") {
            create = false;
            index += 1;
        } else if is(option, "MAXLEN") || is(option, "MINID") {
            let (parsed, next) = Trim::parse(argv, index)?;
            trim = Some(parsed);
            index = next;
        } else {
            break;
        }
    }
    let wanted = arg(argv, index)?;
    let pairs = argv.get(index + 1..).unwrap_or_default();
    if pairs.is_empty() || pairs.len() % 2 != 0 {
        return Err(wrong_arity("xadd"));
    }
    let now_ms = call.now_ms;
    let last = match call.stream(key)? {
        Some(stream) => stream.last_id,
        None if !create => return Ok(Reply::Null),
        None => StreamId::default(),
    };
    let id = match wanted.as_slice() {
        b"*" if now_ms > last.ms => StreamId { ms: now_ms, seq: 0 },
        b"*" => StreamId { ms: last.ms, seq: last.seq + 1 },
        text => match text.strip_suffix(b"-*") {
            Some(ms) => {
                let ms = parse_id(ms, 0)?.ms;
                StreamId { ms, seq: if ms == last.ms { last.seq + 1 } else { 0 } }
            }
            None => parse_id(text, 0)?,
        },
    };
    if id == StreamId::default() {
        return Err(Reply::err("The ID specified in XADD must be greater than 0-0"));
    }
    if id <= last {
        return Err(Reply::err(
            "The ID specified in XADD is equal or smaller than the target stream top item",
        ));
    }

    let fields: Fields = pairs
        .chunks_exact(2)
        .filter_map(|pair| Some((pair.first()?.clone(), pair.get(1)?.clone())))
        .collect();
    let stream = call.stream_or_new(key)?;
    stream.entries.insert(id, fields);
    stream.last_id = id;
    stream.entries_added += 1;
    if let Some(trim) = &trim {
        trim.apply(stream)?;
    }

    let id = id.to_string();
    let mut travels: Argv = vec![b"XADD".to_vec(), key.clone()];
    if let Some(trim) = trim {
        travels.extend([trim.word().to_vec(), b"=".to_vec(), trim.threshold]);
    }
    travels.push(id.clone().into_bytes());
    travels.extend_from_slice(pairs);
    call.rewrite(&travels);
    Ok(Reply::bulk(id))
}

pub(super) fn xtrim(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let key = arg(argv, 1)?;
    let option = arg(argv, 2)?;
    if !is(option, "MAXLEN") && !is(option, "MINID") {
        return Err(syntax_error());
    }
    let (trim, next) = Trim::parse(argv, 2)?;
    if next < argv.len() {
        return Err(syntax_error());
    }
    let Some(stream) = call.stream_mut(key)? else { return Ok(Reply::Integer(0)) };
    let removed = trim.apply(stream)?;
    call.rewrite(&[b"XTRIM", key.as_slice(), trim.word(), b"=", &trim.threshold]);
    Ok(Reply::Integer(removed as i64))
}

pub(super) fn xdel(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let ids = argv.iter().skip(2).map(|id| parse_id(id, 0)).collect::<Result<Vec<_>, _>>()?;
    let Some(stream) = call.stream_mut(arg(argv, 1)?)? else { return Ok(Reply::Integer(0)) };
    let mut removed = 0;
    for id in ids {
        if stream.entries.remove(&id).is_some() {
            removed += 1;
            stream.max_deleted_id = stream.max_deleted_id.max(id);
        }
    }
    Ok(Reply::Integer(removed))
}

pub(super) fn xlen(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    Ok(Reply::Integer(call.stream(arg(argv, 1)?)?.map_or(0, |stream| stream.entries.len()) as i64))
}

pub(super) fn xrange(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let bound = |text: &[u8], missing_seq: u64| match text {
        b"-" => Ok(StreamId::default()),
        b"+" => Ok(StreamId { ms: u64::MAX, seq: u64::MAX }),
        text => parse_id(text, missing_seq),
    };
    let (from, to) = (bound(arg(argv, 2)?, 0)?, bound(arg(argv, 3)?, u64::MAX)?);
    let count = match argv.get(4) {
        None => usize::MAX,
        Some(option) if is(option, "COUNT") => usize::try_from(parse_integer(arg(argv, 5)?)?).unwrap_or(0),
        Some(_) => return Err(syntax_error()),
    };
    let Some(stream) = call.stream(arg(argv, 1)?)?.filter(|_| from <= to) else {
        return Ok(Reply::Array(Vec::new()));
    };
    let entries = stream.entries.range(from..=to).take(count).map(|(id, fields)| entry_reply(*id, fields));
    Ok(Reply::Array(entries.collect()))
}

fn entry_reply(id: StreamId, fields: &Fields) -> Reply {
    let fields =
        fields.iter().flat_map(|(name, value)| [Reply::bulk(name.clone()), Reply::bulk(value.clone())]);
    Reply::Array(vec![Reply::bulk(id.to_string()), Reply::Array(fields.collect())])
}

/// `XSETID key id [ENTRIESADDED n] [MAXDELETEDID id]`
pub(super) fn xsetid(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let id = parse_id(arg(argv, 2)?, 0)?;
    let (mut added, mut max_deleted) = (None, None);
    for option in argv.get(3..).unwrap_or_default().chunks(2) {
        let value = option.get(1).ok_or_else(syntax_error)?;
        match option.first() {
            Some(name) if is(name, "ENTRIESADDED") => {
                let number = u64::try_from(parse_integer(value)?);
                added = Some(number.map_err(|_| Reply::err("entries_added must be positive"))?);
            }
            Some(name) if is(name, "MAXDELETEDID") => max_deleted = Some(parse_id(value, 0)?),
            _ => return Err(syntax_error()),
        }
    }
    let stream = call.stream_mut(arg(argv, 1)?)?.ok_or_else(|| Reply::err("no such key"))?;
    if stream.entries.last_key_value().is_some_and(|(top, _)| id < *top) {
        return Err(Reply::err("The ID specified in XSETID is smaller than the target stream top item"));
    }
    stream.last_id = id;
    stream.entries_added = added.unwrap_or(stream.entries_added);
    stream.max_deleted_id = max_deleted.unwrap_or(stream.max_deleted_id);
    Ok(Reply::OK)
}

/// `XGROUP CREATE|SETID|DESTROY|CREATECONSUMER|DELCONSUMER key group …`
pub(super) fn xgroup(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let action = arg(argv, 1)?.to_ascii_uppercase();
    let (key, name) = match (argv.get(2), argv.get(3)) {
        (Some(key), Some(name)) => (key, name),
        _ => return Err(wrong_arity("xgroup")),
    };
    let now_ms = call.now_ms;
    let (mut make_stream, mut entries_read) = (false, None);
    if action == b"CREATE" || action == b"SETID" {
        let mut options = argv.get(5..).unwrap_or_default().iter();
        while let Some(option) = options.next() {
            if is(option, "MKSTREAM") && action == b"CREATE" {
                make_stream = true;
            } else if is(option, "ENTRIESREAD") {
                let number = parse_integer(options.next().ok_or_else(syntax_error)?)?;
                if number < -1 {
                    return Err(Reply::err("value for ENTRIESREAD must be positive or -1"));
                }
                entries_read = u64::try_from(number).ok();
            } else {
                return Err(syntax_error());
            }
        }
    }
    let missing = Reply::err(
        "The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the MKSTREAM option \
         to create an empty stream automatically.",
    );
    if call.stream(key)?.is_none() && !make_stream {
        return Err(missing);
    }
    let no_group = || {
        Reply::Error(format!(
            "NOGROUP No such consumer group '{}' for key name '{}'",
            shorten(name),
            shorten(key)
        ))
    };
    let stream = call.stream_or_new(key)?;
    let at = |stream: &Stream| match arg(argv, 4)?.as_slice() {
        b"$" => Ok(stream.last_id),
        text => parse_id(text, 0),
    };
    match action.as_slice() {
        b"CREATE" => {
            let last_id = at(stream)?;
            if stream.groups.contains_key(name) {
                return Err(Reply::Error("BUSYGROUP Consumer Group name already exists".to_owned()));
            }
            stream.groups.insert(name.clone(), Group { last_id, entries_read, ..Group::default() });
            Ok(Reply::OK)
        }
        b"SETID" => {
            let last_id = at(stream)?;
            let group = stream.groups.get_mut(name).ok_or_else(no_group)?;
            (group.last_id, group.entries_read) = (last_id, entries_read);
            Ok(Reply::OK)
        }
        b"DESTROY" => Ok(Reply::Integer(i64::from(stream.groups.remove(name).is_some()))),
        b"CREATECONSUMER" => {
            let group = stream.groups.get_mut(name).ok_or_else(no_group)?;
            let consumer = arg(argv, 4)?;
            let new = !group.consumers.contains_key(consumer);
            group.consumers.entry(consumer.clone()).or_insert(Consumer { seen_ms: now_ms, active_ms: None });
            Ok(Reply::Integer(i64::from(new)))
        }
        b"DELCONSUMER" => {
            let group = stream.groups.get_mut(name).ok_or_else(no_group)?;
            let consumer = arg(argv, 4)?;
            group.consumers.remove(consumer);
            let before = group.pending.len();
            group.pending.retain(|_, pending| pending.consumer != *consumer);
            Ok(Reply::Integer((before - group.pending.len()) as i64))
        }
        _ => Err(Reply::err(format!("unknown subcommand '{}'. Try XGROUP HELP.", shorten(&action)))),
    }
}

pub(super) fn xack(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let ids = argv.iter().skip(3).map(|id| parse_id(id, 0)).collect::<Result<Vec<_>, _>>()?;
    let group = call.stream_mut(arg(argv, 1)?)?.and_then(|stream| stream.groups.get_mut(argv.get(2)?));
    let Some(group) = group else { return Ok(Reply::Integer(0)) };
    Ok(Reply::Integer(ids.iter().filter(|id| group.pending.remove(id).is_some()).count() as i64))
}

/// `XCLAIM key group consumer min-idle id … [IDLE ms] [TIME ms] [RETRYCOUNT n] [FORCE] [JUSTID] [LASTID id]`.
/// What was claimed travels with TIME, RETRYCOUNT and FORCE spelled out, one command for each entry.
pub(super) fn xclaim(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let (key, group_name, consumer_name) = (arg(argv, 1)?, arg(argv, 2)?, arg(argv, 3)?);
    let min_idle = u64::try_from(parse_integer(arg(argv, 4)?)?).unwrap_or(0);
    let ids: Vec<StreamId> = argv.iter().skip(5).map_while(|text| StreamId::parse(text, 0)).collect();
    let (mut delivered_ms, mut deliveries, mut force, mut just_id) = (call.now_ms, None, false, false);
    let mut last_id = StreamId::default();
    let mut options = argv.get(5 + ids.len()..).unwrap_or_default().iter();
    while let Some(option) = options.next() {
        let mut value = || options.next().ok_or_else(syntax_error);
        match option.to_ascii_uppercase().as_slice() {
            b"FORCE" => force = true,
            b"JUSTID" => just_id = true,
            b"IDLE" => delivered_ms = call.now_ms.saturating_sub(parse_integer(value()?)?.unsigned_abs()),
            // A time to come counts as now.
            b"TIME" => delivered_ms = u64::try_from(parse_integer(value()?)?).unwrap_or(0).min(call.now_ms),
            b"RETRYCOUNT" => deliveries = u64::try_from(parse_integer(value()?)?).ok(),
            b"LASTID" => last_id = parse_id(value()?, 0)?,
            _ => return Err(Reply::err(format!("Unrecognized XCLAIM option '{}'", shorten(option)))),
        }
    }
    let now_ms = call.now_ms;
    let no_group = || {
        Reply::Error(format!(
            "NOGROUP No such key '{}' or consumer group '{}'",
            shorten(key),
            shorten(group_name)
        ))
    };
    let Stream { entries, groups, .. } = call.stream_mut(key)?.ok_or_else(no_group)?;
    let group = groups.get_mut(group_name).ok_or_else(no_group)?;
    group.last_id = group.last_id.max(last_id);
    let consumer = group.consumers.entry(consumer_name.clone()).or_default();
    consumer.seen_ms = now_ms;

    let (mut replies, mut travels) = (Vec::new(), Vec::new());
    for id in ids {
        let Some(fields) = entries.get(&id) else {
            group.pending.remove(&id);
            continue;
        };
        let known = group.pending.get(&id);
        let due = known.is_none_or(|pending| now_ms.saturating_sub(pending.delivered_ms) >= min_idle);
        if (known.is_none() && !force) || !due {
            continue;
        }
        let deliveries = match (deliveries, known) {
            (Some(given), _) => given,
            (None, None) => 1 + u64::from(!just_id),
            (None, Some(pending)) => pending.deliveries + u64::from(!just_id),
        };
        group.pending.insert(id, Pending { consumer: consumer_name.clone(), delivered_ms, deliveries });
        consumer.active_ms = Some(now_ms);
        let id_text = id.to_string().into_bytes();
        travels.push([
            b"XCLAIM".to_vec(),
            key.clone(),
            group_name.clone(),
            consumer_name.clone(),
            b"0".to_vec(),
            id_text.clone(),
            b"TIME".to_vec(),
            delivered_ms.to_string().into_bytes(),
            b"RETRYCOUNT".to_vec(),
            deliveries.to_string().into_bytes(),
            b"FORCE".to_vec(),
            b"JUSTID".to_vec(),
            b"LASTID".to_vec(),
            group.last_id.to_string().into_bytes(),
        ]);
        replies.push(if just_id { Reply::Bulk(id_text) } else { entry_reply(id, fields) });
    }
    for each in travels {
        call.rewrite(&each);
    }
    Ok(Reply::Array(replies))
}
