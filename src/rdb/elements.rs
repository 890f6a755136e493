//! Decoding: one visitor that hands the elements of a value to a sink in file order, from memory or straight from the
//! reader. What is held at a time is one element or one packed blob, never the value.

use super::bytelist::ByteList;
use super::packed::{Entries, Listpack, Packed, Ziplist, intset, parse_score, zipmap};
use super::reader::{PIECE, Source, StringHead, append_decimal};
use super::stream::{Idmp, StreamId, StreamInfo};
use super::{Dialect, Fault, RdbError, lzf, stream, types, walk};

/// A piece of a value, borrowed for the duration of the call of the sink.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Element<'a> {
    /// The next piece of a string; long strings come in several. An empty string is one empty piece.
    Text(&'a [u8]),
    /// The next element of a list, head first.
    Item(&'a [u8]),
    /// A member of a set.
    Member(&'a [u8]),
    /// A field of a hash.
    Field {
        /// Name.
        field: &'a [u8],
        /// Value.
        value: &'a [u8],
        /// When the field expires (Unix ms).
        expire_at_ms: Option<i64>,
    },
    /// A member of a sorted set. The file's order may be highest score first.
    Scored {
        /// Name.
        member: &'a [u8],
        /// Never NaN.
        score: f64,
    },
    /// An entry of a stream; fields and values alternate.
    StreamEntry {
        /// Its ID.
        id: StreamId,
        /// Field, value, field, value …
        fields: &'a ByteList,
    },
    /// Once per stream, after its entries.
    StreamInfo(StreamInfo),
    /// A consumer group of the stream.
    Group {
        /// Name.
        name: &'a [u8],
        /// Last delivered ID.
        last_id: StreamId,
        /// Entries read counter; `None` if unknown.
        entries_read: Option<u64>,
    },
    /// A consumer of the last group.
    Consumer {
        /// Name.
        name: &'a [u8],
        /// Last attempt to read (Unix ms).
        seen_at_ms: i64,
        /// Last successful read (Unix ms, -1 for never; 7.2 and newer).
        active_at_ms: Option<i64>,
    },
    /// A pending entry of the last consumer.
    Pending {
        /// The stream entry, which may have been deleted since.
        id: StreamId,
        /// Last delivery (Unix ms).
        delivered_at_ms: i64,
        /// How often it was delivered.
        deliveries: u64,
    },
    /// A pending entry of the last group that was given back by its consumer (8.8).
    Nacked {
        /// The stream entry.
        id: StreamId,
        /// How often it was delivered.
        deliveries: u64,
    },
    /// A remembered production (8.6 and newer).
    IdmpEntry {
        /// Producer ID.
        producer: &'a [u8],
        /// Idempotence ID.
        iid: &'a [u8],
        /// The stream entry that it made.
        id: StreamId,
    },
    /// Once per stream of 8.6 and newer, at the end.
    Idmp(Idmp),
    /// An element of an array (8.8).
    Slot {
        /// Index.
        index: u64,
        /// Value as a client sees it.
        value: &'a [u8],
    },
    /// The insertion index of an array, before its elements.
    InsertIndex(u64),
}

impl Element<'_> {
    /// Length of its longest string that must travel as a whole; those of a string value may be cut anywhere.
    pub fn longest(&self) -> usize {
        match self {
            Element::Item(text) | Element::Member(text) => text.len(),
            Element::Scored { member: text, .. } | Element::Slot { value: text, .. } => text.len(),
            Element::Group { name, .. } | Element::Consumer { name, .. } => name.len(),
            Element::Field { field, value, .. } => field.len().max(value.len()),
            Element::StreamEntry { fields, .. } => fields.iter().map(<[u8]>::len).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// The command that tells how large the value is, and what this element adds to that; `None` where it adds nothing.
    pub fn counts(&self) -> Option<(&'static str, u64)> {
        match self {
            Element::Text(piece) => Some(("STRLEN", piece.len() as u64)),
            Element::Item(_) => Some(("LLEN", 1)),
            Element::Member(_) => Some(("SCARD", 1)),
            Element::Field { .. } => Some(("HLEN", 1)),
            Element::Scored { .. } => Some(("ZCARD", 1)),
            Element::StreamEntry { .. } => Some(("XLEN", 1)),
            _ => None,
        }
    }
}

/// Takes elements. Its error ends the visit and is passed through.
pub(crate) type Sink<'s> = &'s mut dyn FnMut(Element<'_>) -> Result<(), RdbError>;

/// Hands one element over.
pub(crate) fn emit(sink: Sink<'_>, element: Element<'_>) -> Result<(), Fault> {
    sink(element).map_err(Fault::from)
}

/// Whether values of this type have elements at all. Module values have none that anybody else understands.
pub(crate) fn visits(type_byte: u8, dialect: Dialect) -> bool {
    match type_byte {
        types::MODULE_2 | types::MODULE_PRE_GA | types::GCRA => false,
        types::HASH_LISTPACK_EX_PRE_GA => dialect == Dialect::Redis,
        _ => type_byte <= types::ARRAY && type_byte != 8,
    }
}

/// Hands the elements of one value (the bytes after the key) to the sink.
pub(crate) fn visit(
    src: &mut impl Source,
    type_byte: u8,
    dialect: Dialect,
    sink: Sink<'_>,
) -> Result<(), Fault> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    match type_byte {
        types::STRING => visit_string(src, sink),
        types::LIST => repeat(src, |src| {
            let (item, []) = src.string_and(&mut first)?;
            emit(sink, Element::Item(item))
        }),
        types::LIST_ZIPLIST => each_item(Ziplist::new(blob(src, &mut first)?)?, sink),
        types::LIST_QUICKLIST => repeat(src, |src| each_item(Ziplist::new(blob(src, &mut first)?)?, sink)),
        types::LIST_QUICKLIST_2 => repeat(src, |src| match src.length()? {
            1 => emit(sink, Element::Item(blob(src, &mut first)?)),
            2 => each_item(Listpack::new(blob(src, &mut first)?)?, sink),
            _ => Err(Fault::Bad("quicklist node that is neither plain nor packed")),
        }),
        types::SET => repeat(src, |src| {
            let (member, []) = src.string_and(&mut first)?;
            emit(sink, Element::Member(member))
        }),
        types::SET_INTSET => intset(blob(src, &mut first)?, |number| {
            emit(sink, Element::Member(Packed::Int(number).text(&mut second)))
        }),
        types::SET_LISTPACK => {
            let mut entries = Listpack::new(blob(src, &mut first)?)?;
            while let Some(entry) = entries.next()? {
                emit(sink, Element::Member(entry.text(&mut second)))?;
            }
            Ok(())
        }
        types::ZSET => repeat(src, |src| {
            src.string(&mut first)?;
            let score = text_score(src)?;
            emit(sink, Element::Scored { member: &first, score })
        }),
        types::ZSET_2 => repeat(src, |src| {
            let (member, score) = src.string_and(&mut first)?;
            let score = f64::from_le_bytes(score);
            if score.is_nan() {
                return Err(Fault::Bad("a score that is not a number"));
            }
            emit(sink, Element::Scored { member, score })
        }),
        types::ZSET_ZIPLIST => each_scored(Ziplist::new(blob(src, &mut first)?)?, sink),
        types::ZSET_LISTPACK => each_scored(Listpack::new(blob(src, &mut first)?)?, sink),
        types::HASH => repeat(src, |src| {
            src.string(&mut first)?;
            let (value, []) = src.string_and(&mut second)?;
            emit(sink, Element::Field { field: &first, value, expire_at_ms: None })
        }),
        types::HASH_ZIPMAP => zipmap(blob(src, &mut first)?, |field, value| {
            emit(sink, Element::Field { field, value, expire_at_ms: None })
        }),
        types::HASH_ZIPLIST => each_field(Ziplist::new(blob(src, &mut first)?)?, false, sink),
        types::HASH_LISTPACK => each_field(Listpack::new(blob(src, &mut first)?)?, false, sink),
        types::HASH_LISTPACK_EX_PRE_GA if dialect == Dialect::Redis => {
            each_field(Listpack::new(blob(src, &mut first)?)?, true, sink)
        }
        types::HASH_LISTPACK_EX => {
            src.skip(8)?;
            each_field(Listpack::new(blob(src, &mut first)?)?, true, sink)
        }
        types::HASH_22 if dialect == Dialect::Valkey => repeat(src, |src| {
            src.string(&mut first)?;
            let (value, at) = src.string_and(&mut second)?;
            let expire_at_ms = Some(i64::from_le_bytes(at)).filter(|&at| at != -1);
            emit(sink, Element::Field { field: &first, value, expire_at_ms })
        }),
        // Times are absolute in the release candidates; in the final version they count from the lowest, plus one.
        types::HASH_22 => each_field_with_ttl(src, 0, sink),
        types::HASH_METADATA => {
            let lowest = src.i64_le()?;
            each_field_with_ttl(src, lowest.wrapping_sub(1), sink)
        }
        types::STREAM_LISTPACKS
        | types::STREAM_LISTPACKS_2
        | types::STREAM_LISTPACKS_3
        | types::STREAM_LISTPACKS_4
        | types::STREAM_LISTPACKS_5 => stream::visit(src, walk::stream_version(type_byte), sink),
        types::ARRAY => visit_array(src, sink),
        _ => Err(Fault::Unsupported("values of this type have no elements that can be told apart")),
    }
}

/// A packed blob, borrowed from the source where it stands there as it is.
pub(crate) fn blob<'s>(src: &'s mut impl Source, scratch: &'s mut Vec<u8>) -> Result<&'s [u8], Fault> {
    match src.held_head()? {
        StringHead::Plain(0) => Err(Fault::Bad("empty packed value")),
        StringHead::Plain(n) => src.take(usize::try_from(n).map_err(|_| Fault::End)?),
        StringHead::Int(number) => {
            // Never a packed blob, but a plain quicklist node may be one.
            scratch.clear();
            append_decimal(scratch, i64::from(number));
            Ok(scratch)
        }
        StringHead::Lzf { packed, plain } => {
            scratch.clear();
            lzf::decompress(src.take(usize::try_from(packed).map_err(|_| Fault::End)?)?, plain, scratch)?;
            Ok(scratch)
        }
    }
}

fn repeat<S: Source>(src: &mut S, mut one: impl FnMut(&mut S) -> Result<(), Fault>) -> Result<(), Fault> {
    for _ in 0..src.length()? {
        one(src)?;
    }
    Ok(())
}

fn visit_string(src: &mut impl Source, sink: Sink<'_>) -> Result<(), Fault> {
    match src.string_head()? {
        StringHead::Plain(0) => emit(sink, Element::Text(b"")),
        StringHead::Plain(mut left) => {
            while left > 0 {
                let piece = left.min(PIECE as u64);
                emit(sink, Element::Text(src.take(piece as usize)?))?;
                left -= piece;
            }
            Ok(())
        }
        StringHead::Int(number) => {
            let mut text = Vec::new();
            append_decimal(&mut text, i64::from(number));
            emit(sink, Element::Text(&text))
        }
        StringHead::Lzf { packed, plain } if plain > PIECE as u64 => {
            lzf::expand(src, packed, plain, &mut |piece| emit(sink, Element::Text(piece)))
        }
        StringHead::Lzf { packed, plain } => {
            let mut text = Vec::new();
            lzf::decompress(src.take(usize::try_from(packed).map_err(|_| Fault::End)?)?, plain, &mut text)?;
            emit(sink, Element::Text(&text))
        }
    }
}

fn each_item<'a>(mut entries: impl Entries<'a>, sink: Sink<'_>) -> Result<(), Fault> {
    let mut digits = Vec::new();
    while let Some(entry) = entries.next()? {
        emit(sink, Element::Item(entry.text(&mut digits)))?;
    }
    Ok(())
}

fn each_scored<'a>(mut entries: impl Entries<'a>, sink: Sink<'_>) -> Result<(), Fault> {
    let mut digits = Vec::new();
    while let Some(member) = entries.next()? {
        let score = entries.expect()?.score()?;
        emit(sink, Element::Scored { member: member.text(&mut digits), score })?;
    }
    Ok(())
}

/// Fields of a packed hash; with `ttl`, every value is followed by an absolute time or 0.
fn each_field<'a>(mut entries: impl Entries<'a>, ttl: bool, sink: Sink<'_>) -> Result<(), Fault> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    while let Some(field) = entries.next()? {
        let value = entries.expect()?;
        let expire_at_ms = if ttl { Some(entries.expect()?.int()?).filter(|&at| at != 0) } else { None };
        emit(
            sink,
            Element::Field { field: field.text(&mut first), value: value.text(&mut second), expire_at_ms },
        )?;
    }
    Ok(())
}

/// Fields of a hash table whose times stand before them, relative to `base`; 0 means none.
fn each_field_with_ttl(src: &mut impl Source, base: i64, sink: Sink<'_>) -> Result<(), Fault> {
    let (mut field, mut value) = (Vec::new(), Vec::new());
    repeat(src, |src| {
        let ttl = src.length()?;
        src.string(&mut field)?;
        let (value, []) = src.string_and(&mut value)?;
        let expire_at_ms = (ttl != 0).then_some(base.wrapping_add(ttl as i64));
        emit(sink, Element::Field { field: &field, value, expire_at_ms })
    })
}

/// `rdbLoadDoubleValue`: one length byte, of which three values stand for the numbers that `%lg` cannot write.
fn text_score(src: &mut impl Source) -> Result<f64, Fault> {
    match src.byte()? {
        255 => Ok(f64::NEG_INFINITY),
        254 => Ok(f64::INFINITY),
        253 => Err(Fault::Bad("a score that is not a number")),
        n => parse_score(src.take(usize::from(n))?),
    }
}

fn visit_array(src: &mut impl Source, sink: Sink<'_>) -> Result<(), Fault> {
    let count = src.length()?;
    if src.length()? != 0 {
        let index = src.length()?;
        emit(sink, Element::InsertIndex(index))?;
    }
    let mut text = Vec::new();
    for _ in 0..count {
        let index = src.length()?;
        text.clear();
        match src.length()? {
            0 | 3 => src.string_into(&mut text)?,
            1 => append_decimal(&mut text, src.i64_le()?),
            2 => text.extend_from_slice(f64::from_le_bytes(src.array()?).to_string().as_bytes()),
            _ => return Err(Fault::Bad("unknown kind of array element")),
        }
        emit(sink, Element::Slot { index, value: &text })?;
    }
    Ok(())
}
