//! Commands that rebuild a value on a destination that does not take its payload: older, without the type, or with a lower
//! bulk limit; and the only way for a value too large to hold. Elements come in file order, commands go out in batches.
//!
//! The same value comes out: order of lists, scores to the last bit, field TTLs, stream IDs, counters, groups, consumers and
//! pending entries with time and count. What commands cannot express is counted in [`Loss`]; a consumer's seen and active
//! times and a key's LRU/LFU are not, because no destination decides by them.

mod duplicates;
mod stream;

use super::bytelist::ByteList;
use super::dump::Target;
use super::elements::Element;
use super::model::{DecodedValue, visit_value};
use super::reader::append_decimal;
use super::stream::StreamId;
use super::{Dialect, RdbError, types};
use duplicates::Duplicates;
use stream::StreamState;

/// A command is sent once it carries this many bytes …
const FULL_BYTES: usize = 256 * 1024;
/// … or this many arguments.
const FULL_ARGUMENTS: usize = 1024;

/// Takes commands; the list is only valid during the call. Its error ends the work and is passed through.
pub type CommandSink<'s> = &'s mut dyn FnMut(&ByteList) -> Result<(), RdbError>;

/// What is to be rebuilt, and where.
#[derive(Debug, Clone)]
pub struct Rebuild<'a> {
    /// Key to write.
    pub key: &'a [u8],
    /// The destination.
    pub target: Target,
    /// Remove the key first (otherwise elements are added to what is there).
    pub replace: bool,
    /// Absolute expiry (Unix ms), set by the last command.
    pub expire_at_ms: Option<i64>,
    /// IDs of all pending entries of a stream, ascending and without repetition, where they could be collected in a first
    /// pass ([`PendingIds`]). Without them, pending entries that are deleted from the stream are lost on 7.0 and newer.
    pub pending_ids: Vec<StreamId>,
}

/// What the commands could not carry over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loss {
    /// Hash fields that will not expire, because the destination knows no field TTL.
    pub field_ttls: u64,
    /// Pending entries that were given back by their consumer (8.8): now owned by the consumer `shakedeck-nacked`.
    pub nacked: u64,
    /// Remembered productions of idempotent producers (8.6).
    pub idmp_entries: u64,
    /// Streams with settings of idempotent production (XCFGSET of 8.6) that the destination does not know.
    pub idmp_settings: u64,
    /// Arrays whose insertion index is lost.
    pub insert_indexes: u64,
}

impl Loss {
    /// In words for the operator; `None` if nothing was lost.
    pub fn describe(&self) -> Option<String> {
        let mut parts = Vec::new();
        let mut note = |count: u64, what: &str| {
            if count > 0 {
                parts.push(format!("{count} {what}"));
            }
        };
        note(self.field_ttls, "hash fields without their TTL");
        note(self.nacked, "released pending entries now owned by the consumer shakedeck-nacked");
        note(self.idmp_entries, "idempotence IDs dropped");
        note(self.idmp_settings, "stream setting of idempotence (XCFGSET) dropped");
        note(self.insert_indexes, "array insertion index dropped");
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

/// Turns a value that is in memory into commands. After an error those that were given out already are void.
pub fn value_to_commands(
    type_byte: u8,
    raw: &[u8],
    dialect: Dialect,
    mut rebuild: Rebuild<'_>,
    sink: CommandSink<'_>,
) -> Result<Loss, RdbError> {
    if rebuild.pending_ids.is_empty() && is_stream(type_byte) && rebuild.target.has_redis(7, 0) {
        let mut ids = PendingIds::default();
        visit_value(type_byte, raw, dialect, &mut |element| {
            ids.add(element);
            Ok(())
        })?;
        rebuild.pending_ids = ids.into_sorted();
    }
    let mut builder = CommandBuilder::new(rebuild);
    let mut duplicates = Duplicates::new(raw.len());
    visit_value(type_byte, raw, dialect, &mut |element| {
        duplicates.add(&element);
        builder.add(element, sink)
    })?;
    duplicates.check(type_byte, raw, dialect)?;
    builder.finish(sink)
}

/// Turns a decoded value into commands.
pub fn decoded_to_commands(
    value: &DecodedValue,
    mut rebuild: Rebuild<'_>,
    sink: CommandSink<'_>,
) -> Result<Loss, RdbError> {
    if rebuild.pending_ids.is_empty() && matches!(value, DecodedValue::Stream(_)) {
        let mut ids = PendingIds::default();
        value.visit(&mut |element| {
            ids.add(element);
            Ok(())
        })?;
        rebuild.pending_ids = ids.into_sorted();
    }
    let mut builder = CommandBuilder::new(rebuild);
    value.visit(&mut |element| builder.add(element, sink))?;
    builder.finish(sink)
}

/// The first pass over a stream, for [`Rebuild::pending_ids`]: give it every element, then take the IDs.
#[derive(Debug, Default)]
pub struct PendingIds(Vec<StreamId>);

impl PendingIds {
    /// Notes the ID if the element is a pending entry.
    pub fn add(&mut self, element: Element<'_>) {
        if let Element::Pending { id, .. } | Element::Nacked { id, .. } = element {
            self.0.push(id);
        }
    }

    /// All IDs in order, each once.
    pub fn into_sorted(mut self) -> Vec<StreamId> {
        self.0.sort_unstable();
        self.0.dedup();
        self.0
    }
}

/// Whether the type is a stream of any version.
pub fn is_stream(type_byte: u8) -> bool {
    matches!(
        type_byte,
        types::STREAM_LISTPACKS
            | types::STREAM_LISTPACKS_2
            | types::STREAM_LISTPACKS_3
            | types::STREAM_LISTPACKS_4
            | types::STREAM_LISTPACKS_5
    )
}

/// Appends a command in RESP.
pub fn append_resp(out: &mut Vec<u8>, command: &ByteList) {
    // `$`, two digits and two line ends for most; one reservation for all of them.
    out.reserve(16 + command.bytes() + 7 * command.len());
    out.push(b'*');
    append_decimal(out, command.len() as i64);
    out.extend_from_slice(b"\r\n");
    for argument in command.iter() {
        match argument.len() {
            length @ 0..10 => out.extend_from_slice(&[b'$', b'0' + length as u8, b'\r', b'\n']),
            length @ 10..100 => {
                let (tens, ones) = (length as u8 / 10, length as u8 % 10);
                out.extend_from_slice(&[b'$', b'0' + tens, b'0' + ones, b'\r', b'\n']);
            }
            length => {
                out.push(b'$');
                append_decimal(out, length as i64);
                out.extend_from_slice(b"\r\n");
            }
        }
        out.extend_from_slice(argument);
        out.extend_from_slice(b"\r\n");
    }
}

/// What the command that is being filled is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Batch {
    None,
    Push,
    Sadd,
    Zadd,
    Hset,
    /// XCLAIM of entries with this delivery time and count.
    Claim(i64, u64),
}

/// Turns elements into commands one after the other: [`CommandBuilder::add`] each, then [`CommandBuilder::finish`].
pub struct CommandBuilder<'a> {
    rebuild: Rebuild<'a>,
    started: bool,
    batch: Batch,
    command: ByteList,
    /// Fields in the current HSET that expire, and when.
    field_times: Vec<i64>,
    fields: ByteList,
    stream: StreamState,
    loss: Loss,
}

impl<'a> CommandBuilder<'a> {
    /// Starts a key.
    pub fn new(rebuild: Rebuild<'a>) -> Self {
        Self {
            rebuild,
            started: false,
            batch: Batch::None,
            command: ByteList::default(),
            field_times: Vec::new(),
            fields: ByteList::default(),
            stream: StreamState::default(),
            loss: Loss::default(),
        }
    }

    /// Adds an element; commands that are full go to `sink`.
    pub fn add(&mut self, element: Element<'_>, sink: CommandSink<'_>) -> Result<(), RdbError> {
        let first = !self.started;
        if first {
            self.started = true;
            // SET replaces by itself.
            if self.rebuild.replace && !matches!(element, Element::Text(_)) {
                self.send(sink, &[self.rebuild.target.unlink(), self.rebuild.key])?;
            }
        }
        match element {
            Element::Text(piece) => {
                let verb: &[u8] = if first { b"SET" } else { b"APPEND" };
                self.send(sink, &[verb, self.rebuild.key, piece])
            }
            Element::Item(item) => {
                self.open(Batch::Push, b"RPUSH", sink)?;
                self.command.push(item);
                Ok(())
            }
            Element::Member(member) => {
                self.open(Batch::Sadd, b"SADD", sink)?;
                self.command.push(member);
                Ok(())
            }
            Element::Scored { member, score } => {
                self.open(Batch::Zadd, b"ZADD", sink)?;
                self.command.push_with(|out| append_score(out, score));
                self.command.push(member);
                Ok(())
            }
            Element::Field { field, value, expire_at_ms } => {
                let verb: &[u8] = if self.rebuild.target.has_redis(4, 0) { b"HSET" } else { b"HMSET" };
                self.open(Batch::Hset, verb, sink)?;
                self.command.push(field);
                self.command.push(value);
                match expire_at_ms {
                    Some(at) if self.rebuild.target.has_field_ttl() => {
                        self.field_times.push(at);
                        self.fields.push(field);
                    }
                    Some(_) => self.loss.field_ttls += 1,
                    None => {}
                }
                Ok(())
            }
            Element::InsertIndex(_) => {
                self.loss.insert_indexes += 1;
                Ok(())
            }
            Element::Slot { index, value } => {
                self.send(sink, &[b"ARSET", self.rebuild.key, index.to_string().as_bytes(), value])
            }
            element => self.add_stream(element, sink),
        }
    }

    /// Sends what is left, and the expiry.
    pub fn finish(mut self, sink: CommandSink<'_>) -> Result<Loss, RdbError> {
        self.flush(sink)?;
        self.remove_helpers(sink)?;
        if let (Some(at), true) = (self.rebuild.expire_at_ms, self.started) {
            self.send(sink, &[b"PEXPIREAT", self.rebuild.key, at.to_string().as_bytes()])?;
        }
        Ok(self.loss)
    }

    /// A command by itself.
    fn send(&mut self, sink: CommandSink<'_>, arguments: &[&[u8]]) -> Result<(), RdbError> {
        self.flush(sink)?;
        arguments.iter().for_each(|argument| self.command.push(argument));
        let sent = sink(&self.command);
        self.command.clear();
        sent
    }

    /// Makes sure that the command being filled is of this kind and not full.
    fn open(&mut self, batch: Batch, verb: &[u8], sink: CommandSink<'_>) -> Result<(), RdbError> {
        let full = self.command.bytes() >= FULL_BYTES || self.command.len() >= FULL_ARGUMENTS;
        if self.batch == batch && !full {
            return Ok(());
        }
        self.flush(sink)?;
        self.batch = batch;
        self.command.push(verb);
        self.command.push(self.rebuild.key);
        Ok(())
    }

    /// Sends the command being filled, and what belongs to it.
    fn flush(&mut self, sink: CommandSink<'_>) -> Result<(), RdbError> {
        let batch = std::mem::replace(&mut self.batch, Batch::None);
        if batch == Batch::None {
            return Ok(());
        }
        if let Batch::Claim(at, deliveries) = batch {
            self.command.push(b"TIME");
            self.command.push(at.to_string().as_bytes());
            self.command.push(b"RETRYCOUNT");
            self.command.push(deliveries.to_string().as_bytes());
            self.command.push(b"FORCE");
            self.command.push(b"JUSTID");
        }
        sink(&self.command)?;
        self.command.clear();
        self.expire_fields(sink)
    }

    /// One HPEXPIREAT per distinct time.
    fn expire_fields(&mut self, sink: CommandSink<'_>) -> Result<(), RdbError> {
        let (times, fields) = (std::mem::take(&mut self.field_times), std::mem::take(&mut self.fields));
        let time = |index: usize| times.get(index).copied().unwrap_or_default();
        let mut order: Vec<usize> = (0..times.len()).collect();
        order.sort_by_key(|&index| time(index));
        for group in order.chunk_by(|&a, &b| time(a) == time(b)) {
            let at = group.first().map_or(0, |&index| time(index));
            for part in [b"HPEXPIREAT".as_slice(), self.rebuild.key, at.to_string().as_bytes(), b"FIELDS"] {
                self.command.push(part);
            }
            self.command.push(group.len().to_string().as_bytes());
            for &index in group {
                self.command.push(fields.get(index).unwrap_or_default());
            }
            sink(&self.command)?;
            self.command.clear();
        }
        Ok(())
    }
}

/// The shortest text that reads back as the same bits.
fn append_score(out: &mut Vec<u8>, score: f64) {
    const EXACT: i64 = 1 << 53;
    let whole = score as i64;
    if score.is_infinite() {
        out.extend_from_slice(if score > 0.0 { b"inf" } else { b"-inf" });
    } else if (whole as f64).to_bits() == score.to_bits() && (-EXACT..=EXACT).contains(&whole) {
        append_decimal(out, whole);
    } else {
        // JSON's formatter is three times as fast as that of the standard library; writing to a Vec cannot fail.
        let _ = serde_json::to_writer(out, &score);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed unwrap is a failed test.
mod tests {
    use super::super::stream::{Idmp, StreamInfo};
    use super::*;

    fn lines(target: Target, elements: &[Element<'_>]) -> (Vec<String>, Loss) {
        let mut found = Vec::new();
        let mut sink = |command: &ByteList| {
            let words: Vec<_> = command.iter().map(|word| word.escape_ascii().to_string()).collect();
            found.push(words.join(" "));
            Ok(())
        };
        let mut builder = CommandBuilder::new(Rebuild {
            key: b"k",
            target,
            replace: true,
            expire_at_ms: Some(77),
            pending_ids: vec![StreamId { ms: 1, seq: 0 }, StreamId { ms: 5, seq: 0 }],
        });
        elements.iter().for_each(|element| builder.add(*element, &mut sink).unwrap());
        let loss = builder.finish(&mut sink).unwrap();
        (found, loss)
    }

    #[test]
    fn scores_read_back_as_the_same_bits() {
        for score in [
            0.0,
            -0.0,
            1.5,
            -3.0,
            0.1,
            5e-324,
            f64::MAX,
            f64::MIN_POSITIVE,
            9_007_199_254_740_993.0,
            1e17,
            1e300,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1.0 / 3.0,
        ] {
            let mut text = Vec::new();
            append_score(&mut text, score);
            let text = String::from_utf8(text).unwrap();
            assert_eq!(text.parse::<f64>().unwrap().to_bits(), score.to_bits(), "{text}");
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_an_error() {
        let rebuild = Rebuild {
            key: b"k",
            target: Target::redis(7, 0),
            replace: true,
            expire_at_ms: None,
            pending_ids: Vec::new(),
        };
        for (type_byte, raw, good) in [
            (types::SET, &b"\x02\x01a\x01b"[..], true),
            (types::SET, b"\x02\x01a\x01a", false),
            (types::HASH, b"\x02\x01f\x011\x01f\x012", false),
            (types::HASH_LISTPACK, b"\x13\x13\0\0\0\x04\0\x81f\x02\x81v\x02\x81f\x02\x81w\x02\xff", false),
            (types::ZSET, b"\x02\x01m\x011\x01m\x012", false),
            (types::LIST, b"\x02\x01a\x01a", true),
        ] {
            let built = value_to_commands(type_byte, raw, Dialect::Redis, rebuild.clone(), &mut |_| Ok(()));
            assert_eq!(built.is_ok(), good, "type {type_byte}: {built:?}");
            assert!(good || built.unwrap_err().to_string().contains("stands twice"));
        }
    }

    #[test]
    fn a_long_string_is_appended() {
        let (commands, _) = lines(Target::redis(7, 0), &[Element::Text(b"a"), Element::Text(b"b")]);
        assert_eq!(commands, ["SET k a", "APPEND k b", "PEXPIREAT k 77"]);
    }

    #[test]
    fn elements_are_batched() {
        let items: Vec<_> = std::iter::repeat_n(Element::Item(b"x"), 2500).collect();
        let (commands, _) = lines(Target::redis(3, 2), &items);
        let counts: Vec<_> = commands.iter().map(|line| line.split(' ').count()).collect();
        assert_eq!(commands[0], "DEL k");
        assert_eq!(counts[1..], [1024, 1024, 2 + 456, 3]);
    }

    #[test]
    fn fields_expire_together_where_they_can() {
        let field = |field, expire_at_ms| Element::Field { field, value: b"v", expire_at_ms };
        let fields = [field(b"a", Some(9)), field(b"b", None), field(b"c", Some(5)), field(b"d", Some(9))];
        let (commands, loss) = lines(Target::valkey(9, 0), &fields);
        assert_eq!(
            commands[1..4],
            ["HSET k a v b v c v d v", "HPEXPIREAT k 5 FIELDS 1 c", "HPEXPIREAT k 9 FIELDS 2 a d"]
        );
        assert_eq!(loss, Loss::default());
        let (commands, loss) = lines(Target::redis(3, 2), &fields);
        assert_eq!(commands[1..], ["HMSET k a v b v c v d v", "PEXPIREAT k 77"]);
        assert_eq!(loss.field_ttls, 3);
        assert_eq!(loss.describe().unwrap(), "3 hash fields without their TTL");
    }

    /// Pending entries 1-0 (before the first entry) and 5-0 (after the last) are gone from the stream.
    #[test]
    fn entries_that_are_gone_are_added_to_be_claimed() {
        let fields: ByteList = [&b"f"[..], b"v"].into_iter().collect();
        let info = StreamInfo {
            length: 1,
            last_id: StreamId { ms: 6, seq: 0 },
            max_deleted_id: Some(StreamId { ms: 5, seq: 0 }),
            entries_added: Some(9),
            first_id: None,
        };
        let pending =
            |ms| Element::Pending { id: StreamId { ms, seq: 0 }, delivered_at_ms: 70, deliveries: 2 };
        let elements = [
            Element::StreamEntry { id: StreamId { ms: 3, seq: 0 }, fields: &fields },
            Element::StreamInfo(info),
            Element::Group { name: b"g", last_id: StreamId { ms: 5, seq: 0 }, entries_read: Some(4) },
            Element::Consumer { name: b"c", seen_at_ms: 1, active_at_ms: None },
            pending(1),
            pending(5),
        ];
        let (commands, _) = lines(Target::redis(7, 2), &elements);
        assert_eq!(
            commands,
            [
                "UNLINK k",
                "XADD k 1-0  ",
                "XADD k 3-0 f v",
                "XADD k 5-0  ",
                "XSETID k 6-0 ENTRIESADDED 9 MAXDELETEDID 5-0",
                "XGROUP CREATE k g 5-0 ENTRIESREAD 4",
                "XGROUP CREATECONSUMER k g c",
                "XCLAIM k g c 0 1-0 5-0 TIME 70 RETRYCOUNT 2 FORCE JUSTID",
                "XDEL k 5-0",
                "XTRIM k MINID = 3-0",
                "XSETID k 6-0 ENTRIESADDED 9 MAXDELETEDID 5-0",
                "PEXPIREAT k 77"
            ]
        );
        let (commands, _) = lines(Target::redis(5, 0), &elements);
        assert_eq!(
            commands,
            [
                "UNLINK k",
                "XADD k 3-0 f v",
                "XSETID k 6-0",
                "XGROUP CREATE k g 5-0",
                "XREADGROUP GROUP g c COUNT 1 STREAMS k 0",
                "XCLAIM k g c 0 1-0 5-0 TIME 70 RETRYCOUNT 2 FORCE JUSTID",
                "PEXPIREAT k 77"
            ]
        );
    }

    /// 8.6 has them; on any other server they are told as lost, where somebody has set them.
    #[test]
    fn settings_of_a_stream_are_set_or_told() {
        let idmp = |duration| Element::Idmp(Idmp { duration, max_entries: 100, added: 0, duplicates: 0 });
        let elements = |duration| [Element::StreamInfo(StreamInfo::default()), idmp(duration)];
        let (commands, loss) = lines(Target::redis(8, 6), &elements(300));
        assert!(
            commands.contains(&"XCFGSET k IDMP-DURATION 300 IDMP-MAXSIZE 100".to_owned()),
            "{commands:?}"
        );
        assert_eq!(loss, Loss::default());
        let (commands, loss) = lines(Target::valkey(9, 0), &elements(300));
        assert!(!commands.concat().contains("XCFGSET"));
        assert_eq!(loss.describe().unwrap(), "1 stream setting of idempotence (XCFGSET) dropped");
        assert_eq!(lines(Target::redis(7, 0), &elements(100)).1, Loss::default());
    }

    #[test]
    fn a_stream_without_entries_is_made_and_resp_is_written() {
        let (commands, _) = lines(Target::redis(5, 0), &[Element::StreamInfo(StreamInfo::default())]);
        assert_eq!(
            commands[1..4],
            ["XGROUP CREATE k shakedeck 0 MKSTREAM", "XGROUP DESTROY k shakedeck", "XSETID k 0-0"]
        );
        let mut out = Vec::new();
        append_resp(&mut out, &[&b"SET"[..], b"", b"a\r\n"].into_iter().collect());
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$3\r\na\r\n\r\n");
    }
}
