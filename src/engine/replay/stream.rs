//! The stream: commands are forwarded as the bytes that arrived; transactions stay whole; relative times of expiry become
//! absolute.

use std::sync::atomic::Ordering::Relaxed;

use memchr::memmem;

use super::super::batch::{Batch, CommandKind, Mark, PairVerb, Position};
use super::super::spool::{ReadEnd, StreamReadError, StreamReader};
use super::databases::Fate;
use super::{End, Replay, ReplayError, functions};
use crate::config::{OnKeyless, Policy};
use crate::expiry;
use crate::format::escape;
use crate::resp::{self, CommandParser, RespError};
use crate::status::EventLevel;

/// What one read of the stream may bring.
const READ_BYTES: usize = 256 * 1024;
/// The channel on which the sentinels of a master tell each other of themselves and of it (`sentinel.c`).
const SENTINEL_HELLO: &[u8] = b"__sentinel__:hello";
/// Time between two looks at the limit while the stream is held.
const HELD_FOR: std::time::Duration = std::time::Duration::from_millis(1);

impl Replay {
    /// Replays the stream from where `batch` stands; if `begin_after` is given, from behind the first command that holds
    /// this text, which is known to stand in database 0.
    pub(super) fn stream(
        &self,
        generation: u64,
        mut batch: Batch,
        begin_after: Option<&str>,
    ) -> Result<End, ReplayError> {
        let Position::Stream { mut offset, mut db } = batch.progress.at else { return Ok(End::Stopped) };
        batch.end_db = self.databases.there(db);
        batch.start_db = batch.end_db;
        let mut reader = StreamReader::new(&self.shared.spool, generation, offset);
        let mut parser = CommandParser::default();
        let mut buffer: Vec<u8> = Vec::with_capacity(2 * READ_BYTES);
        let mut start = 0;
        // Where the commands of the transaction that is being read begin in the batch.
        let mut in_transaction: Option<Mark> = None;
        let mut read = 0u64;
        let mut seeking = begin_after.map(|text| memmem::Finder::new(text.as_bytes()));
        loop {
            if in_transaction.is_none() && self.must_release() {
                (batch.at, batch.in_transaction) = (offset, false);
                if let Some(end) = self.release(generation, &mut batch)? {
                    return Ok(end);
                }
            }
            if in_transaction.is_none() && offset >= self.shared.apply_limit.load(Relaxed) {
                // What is before the limit must arrive; then moments pass.
                self.shared.entries_read.fetch_add(std::mem::take(&mut read), Relaxed);
                if !self.send(&mut batch) || self.shared.spool.is_stopped() {
                    return Ok(End::Stopped);
                }
                std::thread::sleep(HELD_FOR);
                continue;
            }
            let rest = buffer.get(start..).unwrap_or_default();
            let parsed = match parser.advance(rest) {
                Ok(parsed) => parsed,
                Err(cause) => {
                    return Err(ReplayError::Stream { address: self.shared.address.clone(), offset, cause });
                }
            };
            let Some(len) = parsed else {
                buffer.drain(..start);
                start = 0;
                let waiting = match reader.fill(&mut buffer, READ_BYTES, false) {
                    Ok(0) => true,
                    Ok(_) => false,
                    Err(error) => return self.stream_end(error, batch, in_transaction),
                };
                if waiting {
                    // Nothing more is there: what has been collected goes out now.
                    self.shared.entries_read.fetch_add(std::mem::take(&mut read), Relaxed);
                    self.tidy_ledger()?;
                    if in_transaction.is_none() && !batch.is_void() && !self.send(&mut batch) {
                        return Ok(End::Stopped);
                    }
                    if let Err(error) = reader.fill(&mut buffer, READ_BYTES, true) {
                        return self.stream_end(error, batch, in_transaction);
                    }
                }
                continue;
            };
            let raw = rest.get(..len).unwrap_or_default();
            let arguments = &parser.args;
            let argument = |index: usize| arguments.get(index).and_then(|range| raw.get(range.clone()));
            let verb = argument(0).unwrap_or_default();
            let verb_kind = Verb::of(verb);
            let passed_over = seeking.is_some();
            (batch.at, batch.in_transaction) = (offset, in_transaction.is_some());
            if seeking.as_ref().is_some_and(|marker| marker.find(raw).is_some()) {
                seeking = None;
            }
            match verb_kind {
                Verb::Control if verb.eq_ignore_ascii_case(b"TRIMSLOTS") => {
                    self.trimmed(arguments.len(), argument);
                }
                Verb::Control => {}
                _ if passed_over => {}
                Verb::Select => {
                    let selected = argument(1).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
                    match selected {
                        Some(selected) => {
                            db = selected;
                            if self.databases.keeps(db) && self.databases.has_place_for(db) {
                                batch.select(self.databases.there(db));
                            }
                        }
                        None => {
                            let cause = RespError { expected: "SELECT and a number", found: escape(raw, 60) };
                            return Err(ReplayError::Stream {
                                address: self.shared.address.clone(),
                                offset,
                                cause,
                            });
                        }
                    }
                }
                Verb::Multi => in_transaction = Some(batch.mark()),
                Verb::Exec => in_transaction = None,
                // Sentinels of the source talk to each other; those of the destination must not hear them: they would take
                // them for theirs if the masters have the same name.
                Verb::Keyless(_) if argument(1) == Some(SENTINEL_HELLO) => {}
                Verb::Keyless(decision) if decision(&self.policy) != OnKeyless::Apply => {
                    match decision(&self.policy) {
                        OnKeyless::Quarantine => {
                            let reason = "[policy] has it set aside";
                            self.set_aside(batch.end_db, argument(1).unwrap_or_default(), reason, raw)?;
                            read += 1;
                        }
                        _ => self.drop_keyless(verb),
                    }
                }
                Verb::Keyless(_)
                    if is_flush(verb)
                        && (self.shard.is_some() || self.databases.empties_by_keys(db, verb)) =>
                {
                    let emptied = self.databases.emptied(db, verb);
                    let in_transaction = in_transaction.is_some();
                    let end = self.flush_by_keys(generation, &mut batch, in_transaction, emptied, raw)?;
                    if let Some(end) = end {
                        return Ok(end);
                    }
                }
                // Of no use at another version of the server, and not needed where each library is loaded by itself.
                Verb::Keyless(_) if functions::is_restore(arguments.len(), argument) => {
                    let payload = argument(2).unwrap_or_default();
                    match functions::commands(payload, argument(3)) {
                        Some(commands) => {
                            for command in &commands {
                                let words: Vec<&[u8]> = command.iter().map(|word| &**word).collect();
                                batch.push(CommandKind::Stream, &words);
                            }
                        }
                        None => batch.push_raw(CommandKind::Stream, raw),
                    }
                    batch.entries += 1;
                    read += 1;
                }
                _ if self.leaves_out_command(arguments.len(), argument) => read += 1,
                Verb::Databases | Verb::Keyless(_) if names_databases(verb) => {
                    let end = offset + len as u64;
                    let arguments: Vec<&[u8]> =
                        arguments.iter().filter_map(|range| raw.get(range.clone())).collect();
                    read += self.push_crossing(&mut batch, db, end, &arguments, raw)?;
                }
                _ if !self.databases.keeps(db) => self.shared.filter_out(),
                _ if !self.databases.has_place_for(db) => {
                    self.set_aside(db, argument(1).unwrap_or_default(), &self.databases.no_place(db), raw)?;
                    read += 1;
                }
                Verb::Set if arguments.len() == 3 => {
                    self.note(batch.end_db, argument(1).unwrap_or_default());
                    batch.push_pair(
                        PairVerb::Stream,
                        argument(1).unwrap_or_default(),
                        argument(2).unwrap_or_default(),
                    );
                    batch.entries += 1;
                    read += 1;
                }
                // Not noted for the ledger: it puts no key there.
                Verb::Renew => {
                    batch.push_raw(CommandKind::Renew, raw);
                    batch.entries += 1;
                    read += 1;
                }
                Verb::Keyless(_) | Verb::Databases | Verb::Other => {
                    self.note_command(batch.end_db, offset + len as u64, arguments.len(), argument)?;
                    batch.push_raw(CommandKind::Stream, raw);
                    batch.entries += 1;
                    read += 1;
                }
                Verb::Set | Verb::Trim | Verb::Expiry => {
                    self.note_command(batch.end_db, offset + len as u64, arguments.len(), argument)?;
                    let arguments: Vec<&[u8]> =
                        arguments.iter().filter_map(|range| raw.get(range.clone())).collect();
                    let received = reader.received_at(offset + 1);
                    match (import(&arguments), verb_kind) {
                        (Some((arguments, raw)), _) => {
                            self.push_expiring(&mut batch, &arguments, &raw, received);
                        }
                        (None, Verb::Trim) => push_trim(&mut batch, &arguments, raw),
                        (None, _) => self.push_expiring(&mut batch, &arguments, raw, received),
                    }
                    batch.entries += 1;
                    read += 1;
                }
            }
            start += len;
            offset += len as u64;
            batch.source_bytes += len as u64;
            parser.reset();
            if in_transaction.is_none() {
                batch.progress.at = Position::Stream { offset, db };
                if batch.is_full(self.command_limit, self.byte_limit) {
                    self.tidy_ledger()?;
                    self.shared.entries_read.fetch_add(std::mem::take(&mut read), Relaxed);
                    if !self.send(&mut batch) {
                        return Ok(End::Stopped);
                    }
                }
            }
        }
    }

    /// A command that names databases itself. Returns how many entries of the stream it is.
    fn push_crossing(
        &self,
        batch: &mut Batch,
        db: u32,
        end: u64,
        arguments: &[&[u8]],
        raw: &[u8],
    ) -> Result<u64, ReplayError> {
        let note = |db: u32, words: &[&[u8]]| {
            self.note_command(db, end, words.len(), |at: usize| words.get(at).copied())
        };
        match self.databases.fate(db, arguments) {
            Fate::Dropped => {
                self.shared.filter_out();
                return Ok(0);
            }
            Fate::AsItIs => {
                note(batch.end_db, arguments)?;
                batch.push_raw(CommandKind::Stream, raw);
            }
            Fate::Instead(commands) => {
                let selected = batch.end_db;
                for (db, command) in commands {
                    let words: Vec<&[u8]> = command.iter().map(|word| &**word).collect();
                    note(db, &words)?;
                    batch.select(db);
                    batch.push(CommandKind::Stream, &words);
                }
                batch.select(selected);
            }
            Fate::SetAside(reason) => {
                let subject = arguments.get(1).copied().unwrap_or_default();
                let verb = escape(arguments.first().copied().unwrap_or_default(), 20);
                self.set_aside(self.databases.there(db), subject, &format!("{verb}: {reason}"), raw)?;
                return Ok(1);
            }
        }
        batch.entries += 1;
        Ok(1)
    }

    /// `[policy]` has a command without key left out.
    fn drop_keyless(&self, verb: &[u8]) {
        self.shared.filter_out();
        let verb = escape(verb, 20).to_uppercase();
        let text = format!("{verb} is not copied ([policy])");
        self.events.reject(&self.node(), EventLevel::Info, &verb, "dropped", &verb, &text);
    }

    /// A command that may hold a relative time of expiry, counted from when it arrived.
    fn push_expiring(&self, batch: &mut Batch, arguments: &[&[u8]], raw: &[u8], received_ms: Option<u64>) {
        let absolute = received_ms.and_then(|now| expiry::absolute(arguments, now, self.target));
        let Some(commands) = absolute else { return batch.push_raw(CommandKind::Stream, raw) };
        // Alone it renews a key that must be there; behind a SET the key is there.
        let renews = commands.len() == 1;
        for command in commands {
            let words: Vec<&[u8]> = command.iter().map(|word| &**word).collect();
            let kind = match words.first() {
                Some(&b"PEXPIREAT") if renews => CommandKind::Renew,
                _ => CommandKind::Stream,
            };
            batch.push(kind, &words);
        }
    }

    /// `batch` holds what is read and not yet handed over, from `in_transaction` on of a transaction whose end is missing.
    fn stream_end(
        &self,
        error: StreamReadError,
        mut batch: Batch,
        in_transaction: Option<Mark>,
    ) -> Result<End, ReplayError> {
        match error {
            StreamReadError::End(ReadEnd::Stopped) => Ok(End::Stopped),
            StreamReadError::End(ReadEnd::Superseded) => Ok(End::Superseded),
            StreamReadError::End(ReadEnd::Closed) => {
                if let Some(mark) = in_transaction {
                    batch.rewind(mark);
                }
                Ok(if self.send(&mut batch) { End::AllHandedOver } else { End::Stopped })
            }
            error => Err(ReplayError::Read(error)),
        }
    }
}

/// What replay does with a command of the stream.
#[derive(Clone, Copy)]
enum Verb {
    /// Belongs to the link, not to the data: PING, REPLCONF, and what clusters and providers tell their replicas.
    Control,
    Select,
    Multi,
    Exec,
    Set,
    /// XADD and XTRIM, whose options a source rewrites to what it would not take from a client.
    Trim,
    /// May hold a relative time of expiry.
    Expiry,
    /// Sets or removes the time of expiry of a key that must be there.
    Renew,
    /// Names a database itself.
    Databases,
    /// Concerns no single key; `[policy]` says what becomes of it.
    Keyless(fn(&Policy) -> OnKeyless),
    Other,
}

impl Verb {
    fn of(verb: &[u8]) -> Verb {
        let is = |name: &[u8]| verb.eq_ignore_ascii_case(name);
        match verb.len() {
            3 if is(b"SET") => Verb::Set,
            3 if is(b"ARS") => Verb::Control,
            4 if is(b"PING") => Verb::Control,
            4 if is(b"XADD") => Verb::Trim,
            4 if is(b"MOVE") || is(b"COPY") => Verb::Databases,
            5 if is(b"XTRIM") => Verb::Trim,
            4 if is(b"EXEC") => Verb::Exec,
            5 if is(b"MULTI") => Verb::Multi,
            6 if is(b"SELECT") => Verb::Select,
            6 if is(b"SWAPDB") => Verb::Keyless(|policy| policy.on_swapdb),
            6 if is(b"SCRIPT") => Verb::Keyless(|policy| policy.on_function),
            6 if is(b"OPINFO") => Verb::Control,
            7 if is(b"CLUSTER") => Verb::Control,
            7 if is(b"PERSIST") => Verb::Renew,
            7 if is(b"FLUSHDB") => Verb::Keyless(|policy| policy.on_flush),
            7 if is(b"PUBLISH") => Verb::Keyless(|policy| policy.on_publish),
            8 if is(b"EXPIREAT") => Verb::Renew,
            8 if is(b"FLUSHALL") => Verb::Keyless(|policy| policy.on_flush),
            8 if is(b"FUNCTION") => Verb::Keyless(|policy| policy.on_function),
            8 if is(b"SPUBLISH") => Verb::Keyless(|policy| policy.on_publish),
            8 if is(b"REPLCONF") => Verb::Control,
            9 if is(b"TRIMSLOTS") => Verb::Control,
            9 if is(b"PEXPIREAT") => Verb::Renew,
            _ if expiry::may_be_relative(verb) => Verb::Expiry,
            _ => Verb::Other,
        }
    }
}

/// A key that the source has taken over from another master (`RESTORE-ASKING`, MIGRATE in `cluster.c`): it may be on the destination
/// already, as the other master had it. The same as a RESTORE that replaces, in words and in RESP.
fn import<'a>(arguments: &[&'a [u8]]) -> Option<(Vec<&'a [u8]>, Vec<u8>)> {
    let (verb, rest) = arguments.split_first()?;
    if !verb.eq_ignore_ascii_case(b"RESTORE-ASKING") {
        return None;
    }
    let mut words: Vec<&[u8]> = vec![b"RESTORE"];
    words.extend_from_slice(rest);
    if !rest.iter().skip(3).any(|word| word.eq_ignore_ascii_case(b"REPLACE")) {
        words.push(b"REPLACE");
    }
    let mut raw = Vec::new();
    resp::append_command(&mut raw, &words);
    Some((words, raw))
}

/// Whether it concerns other databases than the selected one, or all of one.
fn names_databases(verb: &[u8]) -> bool {
    is_flush(verb) || [&b"SWAPDB"[..], b"MOVE", b"COPY"].iter().any(|name| verb.eq_ignore_ascii_case(name))
}

fn is_flush(verb: &[u8]) -> bool {
    verb.eq_ignore_ascii_case(b"FLUSHALL") || verb.eq_ignore_ascii_case(b"FLUSHDB")
}

fn push_trim(batch: &mut Batch, arguments: &[&[u8]], raw: &[u8]) {
    match exact_trim_limit(arguments) {
        Some(limit) => {
            let kept = [arguments.get(..limit), arguments.get(limit + 2..)];
            batch.push(CommandKind::Stream, &kept.map(Option::unwrap_or_default).concat());
        }
        None => batch.push_raw(CommandKind::Stream, raw),
    }
}

/// Where `LIMIT <n>` stands in an XADD or XTRIM whose trimming is exact (`=`).
///
/// A client writes `MAXLEN ~ 1000 LIMIT 100`; the source tells its replicas what it did, `MAXLEN = 1003 LIMIT 100`, which
/// servers take from their master and refuse from a client (`t_stream.c`). Without the LIMIT it means the same.
fn exact_trim_limit(arguments: &[&[u8]]) -> Option<usize> {
    let is = |at: usize, word: &[u8]| {
        arguments.get(at).is_some_and(|argument| argument.eq_ignore_ascii_case(word))
    };
    let mut at = 2;
    loop {
        if [&b"NOMKSTREAM"[..], b"KEEPREF", b"DELREF", b"ACKED"].iter().any(|word| is(at, word)) {
            at += 1;
        } else if is(at, b"IDMPAUTO") {
            at += 2;
        } else if is(at, b"IDMP") {
            at += 3;
        } else if is(at, b"MAXLEN") || is(at, b"MINID") {
            // Operator and threshold; a limit needs the operator.
            return (is(at + 1, b"=") && is(at + 3, b"LIMIT")).then_some(at + 3);
        } else {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_was_taken_over_replaces_what_is_there() {
        let words = |text: &str| {
            let arguments: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            import(&arguments).map(|(words, _)| words.join(&b' ').escape_ascii().to_string())
        };
        assert_eq!(words("restore-asking k 0 p ABSTTL").as_deref(), Some("RESTORE k 0 p ABSTTL REPLACE"));
        assert_eq!(words("RESTORE-ASKING k 0 p replace").as_deref(), Some("RESTORE k 0 p replace"));
        assert_eq!(words("RESTORE k 0 p"), None);
    }

    #[test]
    fn only_the_limit_of_an_exact_trim_is_found() {
        let find = |text: &str| exact_trim_limit(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        assert_eq!(find("XADD s MAXLEN = 4 limit 1 1-1 f v"), Some(5));
        assert_eq!(find("xadd s NOMKSTREAM KEEPREF minid = 4-0 LIMIT 1 1-1 f v"), Some(7));
        assert_eq!(find("XTRIM s MAXLEN = 4 LIMIT 10"), Some(5));
        for other in [
            "XADD s MAXLEN ~ 4 LIMIT 1 1-1 f v",
            "XADD s MAXLEN = 4 1-1 LIMIT 1",
            "XADD s 1-1 MAXLEN = 5 LIMIT 3 x",
            "XADD s MAXLEN 4 1-1 f v",
            "XADD s",
            "XADD",
        ] {
            assert_eq!(find(other), None, "{other}");
        }
    }
}
