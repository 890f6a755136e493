//! Finds the end of a value by its length prefixes alone, without looking into packed blobs: what makes raw forwarding
//! fast. What it can tell on the way that no server would accept is noted as a flaw; the walk goes on, so that one bad value
//! does not end the run.

use super::reader::{Slice, Source, StringHead};
use super::{Dialect, Fault, lzf, types};

/// The first thing found wrong in a value whose end is known all the same.
pub(crate) type Flaw = Option<&'static str>;

/// Passes over one value of this type (the bytes after the key).
pub(crate) fn skip_value(
    src: &mut impl Source,
    type_byte: u8,
    dialect: Dialect,
    flaw: &mut Flaw,
) -> Result<(), Fault> {
    match type_byte {
        types::STRING
        | types::HASH_ZIPMAP
        | types::LIST_ZIPLIST
        | types::SET_INTSET
        | types::ZSET_ZIPLIST
        | types::HASH_ZIPLIST
        | types::HASH_LISTPACK
        | types::ZSET_LISTPACK
        | types::SET_LISTPACK => skip_checked(src, flaw),
        types::LIST | types::SET | types::LIST_QUICKLIST => repeat(src, |src| skip_checked(src, flaw)),
        types::ZSET => repeat(src, |src| {
            skip_checked(src, flaw)?;
            match src.byte()? {
                253 => {
                    note(flaw, "a score that is not a number");
                    Ok(())
                }
                254 | 255 => Ok(()),
                n => src.skip(u64::from(n)),
            }
        }),
        types::HASH => repeat(src, |src| {
            skip_checked(src, flaw)?;
            skip_checked(src, flaw)
        }),
        types::ZSET_2 => repeat(src, |src| {
            skip_checked(src, flaw)?;
            src.skip(8)
        }),
        types::MODULE_2 => {
            src.length()?;
            skip_module_fields(src)
        }
        types::LIST_QUICKLIST_2 => repeat(src, |src| {
            if !matches!(src.length()?, 1 | 2) {
                note(flaw, "quicklist node that is neither plain nor packed");
            }
            skip_checked(src, flaw)
        }),
        types::STREAM_LISTPACKS
        | types::STREAM_LISTPACKS_2
        | types::STREAM_LISTPACKS_3
        | types::STREAM_LISTPACKS_4
        | types::STREAM_LISTPACKS_5 => skip_stream(src, stream_version(type_byte), flaw),
        types::HASH_22 if dialect == Dialect::Valkey => repeat(src, |src| {
            skip_checked(src, flaw)?;
            skip_checked(src, flaw)?;
            src.skip(8)
        }),
        types::HASH_22 => skip_hash_with_ttl(src, flaw),
        types::HASH_LISTPACK_EX_PRE_GA if dialect == Dialect::Redis => skip_checked(src, flaw),
        types::HASH_METADATA => {
            src.skip(8)?;
            skip_hash_with_ttl(src, flaw)
        }
        types::HASH_LISTPACK_EX => {
            src.skip(8)?;
            skip_checked(src, flaw)
        }
        types::ARRAY => skip_array(src),
        types::GCRA => src.length().map(|_| ()),
        types::MODULE_PRE_GA => Err(Fault::Unsupported(
            "its length is known only to the module that wrote it; delete the key on the source",
        )),
        30..=37 => Err(Fault::Unsupported("looks like a Dragonfly type; delete the key on the source")),
        64 => Err(Fault::Unsupported("looks like a KeyDB cron job; delete it on the source")),
        _ => Err(Fault::Unsupported("this type is newer than this program, or the data is damaged")),
    }
}

/// 1 to 5: how much a stream type carries.
pub(crate) fn stream_version(type_byte: u8) -> u8 {
    match type_byte {
        types::STREAM_LISTPACKS => 1,
        types::STREAM_LISTPACKS_2 => 2,
        types::STREAM_LISTPACKS_3 => 3,
        types::STREAM_LISTPACKS_4 => 4,
        _ => 5,
    }
}

/// Passes over the fields of a module value up to and including its end mark (`rdbLoadCheckModuleValue`).
pub(crate) fn skip_module_fields(src: &mut impl Source) -> Result<(), Fault> {
    loop {
        match src.length()? {
            0 => return Ok(()),
            1 | 2 => src.length().map(|_| ())?,
            3 => src.skip(4)?,
            4 => src.skip(8)?,
            5 => src.skip_string()?,
            _ => return Err(Fault::Bad("unknown field kind in module data")),
        }
    }
}

/// Whether the span of a collection holds no element at all. Servers never keep such keys, RESTORE refuses them, and old
/// versions wrote them by mistake: they are counted and left out.
pub(crate) fn is_empty(type_byte: u8, dialect: Dialect, span: &[u8]) -> bool {
    let mut src = Slice::new(span);
    let count = match type_byte {
        types::LIST | types::SET | types::ZSET | types::HASH | types::ZSET_2 => src.length(),
        types::HASH_22 => src.length(),
        types::HASH_METADATA => src.skip(8).and_then(|()| src.length()),
        types::HASH_ZIPMAP => empty_blob(&mut src, 2),
        types::LIST_ZIPLIST | types::ZSET_ZIPLIST | types::HASH_ZIPLIST => {
            empty_blob(&mut src, EMPTY_ZIPLIST)
        }
        types::SET_INTSET => empty_blob(&mut src, 8),
        types::HASH_LISTPACK | types::ZSET_LISTPACK | types::SET_LISTPACK => {
            empty_blob(&mut src, EMPTY_LISTPACK)
        }
        types::HASH_LISTPACK_EX_PRE_GA if dialect == Dialect::Redis => empty_blob(&mut src, EMPTY_LISTPACK),
        types::HASH_LISTPACK_EX => src.skip(8).and_then(|()| empty_blob(&mut src, EMPTY_LISTPACK)),
        types::LIST_QUICKLIST => nodes_in_use(&mut src, EMPTY_ZIPLIST, false),
        types::LIST_QUICKLIST_2 => nodes_in_use(&mut src, EMPTY_LISTPACK, true),
        _ => return false,
    };
    matches!(count, Ok(0))
}

/// Header and end mark of a ziplist without entries.
const EMPTY_ZIPLIST: u64 = 11;
/// Header and end mark of a listpack without entries.
const EMPTY_LISTPACK: u64 = 7;

/// 0 if the blob is only as long as one without entries is.
fn empty_blob(src: &mut Slice<'_>, empty: u64) -> Result<u64, Fault> {
    Ok(match src.string_head()? {
        StringHead::Plain(n) if n <= empty => 0,
        _ => 1,
    })
}

/// 1 as soon as a quicklist node has an entry.
fn nodes_in_use(src: &mut Slice<'_>, empty: u64, with_container: bool) -> Result<u64, Fault> {
    for _ in 0..src.length()? {
        let packed = !with_container || src.length()? == 2;
        match src.string_head()? {
            StringHead::Plain(n) if packed && n <= empty => src.skip(n)?,
            _ => return Ok(1),
        }
    }
    Ok(0)
}

fn note(flaw: &mut Flaw, reason: &'static str) {
    flaw.get_or_insert(reason);
}

fn skip_checked(src: &mut impl Source, flaw: &mut Flaw) -> Result<(), Fault> {
    match src.string_head()? {
        StringHead::Plain(n) => src.skip(n),
        StringHead::Int(_) => Ok(()),
        StringHead::Lzf { packed, plain } => {
            if !lzf::plausible(packed, plain) {
                note(flaw, "impossible LZF length");
            }
            src.skip(packed)
        }
    }
}

/// A count, then that many of something. The count is trusted for nothing but the end of the loop, and every turn consumes.
fn repeat<S: Source>(src: &mut S, mut one: impl FnMut(&mut S) -> Result<(), Fault>) -> Result<(), Fault> {
    for _ in 0..src.length()? {
        one(src)?;
    }
    Ok(())
}

fn skip_hash_with_ttl(src: &mut impl Source, flaw: &mut Flaw) -> Result<(), Fault> {
    repeat(src, |src| {
        src.length()?;
        skip_checked(src, flaw)?;
        skip_checked(src, flaw)
    })
}

fn skip_ids(src: &mut impl Source) -> Result<(), Fault> {
    let bytes = src.length()?.checked_mul(16).ok_or(Fault::Bad("impossible count of stream IDs"))?;
    src.skip(bytes)
}

fn skip_lengths(src: &mut impl Source, count: usize) -> Result<(), Fault> {
    for _ in 0..count {
        src.length()?;
    }
    Ok(())
}

fn skip_stream(src: &mut impl Source, version: u8, flaw: &mut Flaw) -> Result<(), Fault> {
    repeat(src, |src| {
        match src.string_head()? {
            StringHead::Plain(n) => {
                if n != 16 {
                    note(flaw, "stream node key that is not 16 bytes");
                }
                src.skip(n)?;
            }
            StringHead::Lzf { packed, .. } => {
                note(flaw, "stream node key that is not 16 bytes");
                src.skip(packed)?;
            }
            StringHead::Int(_) => note(flaw, "stream node key that is not 16 bytes"),
        }
        skip_checked(src, flaw)
    })?;
    skip_lengths(src, if version >= 2 { 8 } else { 3 })?;
    repeat(src, |src| {
        skip_checked(src, flaw)?;
        skip_lengths(src, if version >= 2 { 3 } else { 2 })?;
        repeat(src, |src| {
            src.skip(24)?;
            src.length().map(|_| ())
        })?;
        repeat(src, |src| {
            skip_checked(src, flaw)?;
            src.skip(if version >= 3 { 16 } else { 8 })?;
            skip_ids(src)
        })?;
        if version >= 5 { skip_ids(src) } else { Ok(()) }
    })?;
    if version >= 4 {
        skip_lengths(src, 2)?;
        repeat(src, |src| {
            skip_checked(src, flaw)?;
            repeat(src, |src| {
                skip_checked(src, flaw)?;
                skip_lengths(src, 2)
            })
        })?;
        skip_lengths(src, 2)?;
    }
    Ok(())
}

fn skip_array(src: &mut impl Source) -> Result<(), Fault> {
    let count = src.length()?;
    if src.length()? != 0 {
        src.length()?; // insert index
    }
    for _ in 0..count {
        src.length()?;
        match src.length()? {
            0 | 3 => src.skip_string()?,
            1 | 2 => src.skip(8)?,
            _ => return Err(Fault::Bad("unknown kind of array element")),
        }
    }
    Ok(())
}
