//! The pull decoder: file header, opcodes and keys in order, each as an [`Item`] that borrows from the read buffer. No
//! allocation per key; a value is a span of bytes unless it is too large to hold.

use std::io::Read;

use super::item::{Checksum, Entry, Item, Value};
use super::reader::{Input, Source, StringHead};
use super::walk::{self, Flaw};
use super::{
    Dialect, Fault, NEWEST_REDIS_VERSION, NEWEST_VALKEY_VERSION, RdbError, describe_type, dump::ModuleId,
    elements, opcodes,
};

/// How much is held in memory.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest value (bytes in the file) that is handed out as one span; a larger one is [`Value::Large`].
    pub max_value_bytes: usize,
    /// The same for types that only RESTORE can rebuild (modules): beyond it they are [`Value::Bad`].
    pub max_opaque_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_value_bytes: 8 << 20, max_opaque_bytes: 512 << 20 }
    }
}

/// Where decoding can go on in a later run: between two items of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// Bytes of the file that are done; the reader must be positioned here.
    pub offset: u64,
    /// Dialect of the file.
    pub dialect: Dialect,
    /// Version of the file.
    pub version: u16,
    /// Selected database.
    pub db: u32,
    /// CRC64 of the bytes before `offset`.
    pub crc: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Records,
    /// A large value of this type stands next in the input.
    Large(u8),
    Done,
    Failed,
}

/// Attributes that belong to the next key, whatever becomes of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Attributes {
    expire_at_ms: Option<i64>,
    idle_seconds: Option<u64>,
    freq: Option<u8>,
    has_meta: bool,
}

/// What one step found; [`Item`] without the borrows.
enum Found {
    Header,
    Aux,
    SelectDb,
    ResizeDb(u64, u64),
    SlotInfo(u64, u64, u64),
    SlotImport(u64),
    Function,
    ModuleAux(ModuleId, u64),
    Entry { type_byte: u8, attributes: Attributes, key: Option<std::ops::Range<usize>>, value: Span },
    End(Checksum),
    Nothing,
}

enum Span {
    Raw(std::ops::Range<usize>),
    Large,
    Empty,
    Bad(Option<std::ops::Range<usize>>, &'static str),
}

/// Reads a RDB file from a blocking reader, one [`Item`] per [`Decoder::next`]. Reads ahead only what the reader gives
/// at once, and never asks it for more than the next item needs.
pub struct Decoder<R: Read> {
    input: Input<R>,
    limits: Limits,
    state: State,
    dialect: Dialect,
    version: u16,
    db: u32,
    attributes: Attributes,
    /// Key or AUX name that is not verbatim in the buffer.
    key: Vec<u8>,
    /// AUX value, function source.
    text: Vec<u8>,
    meta: Vec<u8>,
    /// Opcode or type being read, for error messages; `None` before the first.
    record: Option<u8>,
    /// Type of the [`Value::Raw`] returned last, and where it begins in the held bytes.
    raw: Option<(u8, usize)>,
}

impl<R: Read> Decoder<R> {
    /// Starts at the first byte of a file.
    pub fn new(reader: R, limits: Limits) -> Self {
        Self {
            input: Input::new(reader, 0, 0),
            limits,
            state: State::Header,
            dialect: Dialect::Redis,
            version: 0,
            db: 0,
            attributes: Attributes::default(),
            key: Vec::new(),
            text: Vec::new(),
            meta: Vec::new(),
            record: None,
            raw: None,
        }
    }

    /// Goes on where an earlier decoder of the same file stood; the reader must stand at `point.offset`.
    pub fn resume(reader: R, limits: Limits, point: ResumePoint) -> Self {
        let mut decoder = Self::new(reader, limits);
        decoder.input = Input::new(decoder.input.into_reader(), point.offset, point.crc);
        decoder.state = State::Records;
        (decoder.dialect, decoder.version, decoder.db) = (point.dialect, point.version, point.db);
        decoder
    }

    /// The next item; `None` after [`Item::End`]. After an error every further call fails.
    #[allow(clippy::should_implement_trait)] // Items borrow from the decoder, which Iterator cannot say.
    pub fn next(&mut self) -> Result<Option<Item<'_>>, RdbError> {
        if self.state == State::Done {
            return Ok(None);
        }
        let found = loop {
            match self.step() {
                Ok(Found::Nothing) => {}
                Ok(found) => break found,
                Err(fault) => return Err(self.fail(fault)),
            }
        };
        Ok(Some(self.item(found)))
    }

    /// Makes a [`Value::Large`] of the [`Value::Raw`] that `next` has just returned, for a value that expands to more than should be
    /// held: [`Decoder::read_large`] reads it.
    pub fn read_again(&mut self) {
        if let Some((type_byte, start)) = self.raw.take() {
            self.input.rewind(start);
            self.input.release();
            self.state = State::Large(type_byte);
        }
    }

    /// Hands the elements of the [`Value::Large`] that `next` has just returned to `sink`, in bounded memory (one element, or
    /// one packed node, is held at a time). An error of the sink ends decoding and is returned as it is.
    pub fn read_large(
        &mut self,
        sink: &mut dyn FnMut(elements::Element<'_>) -> Result<(), RdbError>,
    ) -> Result<(), RdbError> {
        let State::Large(type_byte) = self.state else { return Ok(()) };
        match elements::visit(&mut self.input, type_byte, self.dialect, sink) {
            Ok(()) => {
                self.state = State::Records;
                Ok(())
            }
            Err(fault) => Err(self.fail(fault)),
        }
    }

    /// Passes over the [`Value::Large`] that `next` has just returned; `next` would do the same.
    pub fn skip_large(&mut self) -> Result<(), RdbError> {
        self.pass_over_large().map_err(|fault| self.fail(fault))
    }

    fn pass_over_large(&mut self) -> Result<(), Fault> {
        if let State::Large(type_byte) = self.state {
            walk::skip_value(&mut self.input, type_byte, self.dialect, &mut Flaw::None)?;
            self.state = State::Records;
        }
        Ok(())
    }

    /// Bytes of the file consumed up to and including the last item. For a large value that has not been read: up to its key.
    pub fn position(&self) -> u64 {
        self.input.offset()
    }

    /// Bytes read ahead of [`Decoder::position`].
    pub fn buffered(&self) -> usize {
        self.input.buffered()
    }

    /// Where a later run can go on, if that is possible between the last item and the next.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        (self.state == State::Records && self.attributes == Attributes::default()).then(|| ResumePoint {
            offset: self.input.offset(),
            dialect: self.dialect,
            version: self.version,
            db: self.db,
            crc: self.input.checksum(),
        })
    }

    fn fail(&mut self, fault: Fault) -> RdbError {
        self.state = State::Failed;
        let (record, dialect) = (self.record, self.dialect);
        let ahead = if matches!(fault, Fault::End) { self.input.buffered() as u64 } else { 0 };
        fault.at(self.input.offset() + ahead, || match record {
            None => "the file header".to_owned(),
            Some(byte) => describe_record(byte, dialect),
        })
    }

    fn step(&mut self) -> Result<Found, Fault> {
        match self.state {
            State::Header => return self.header(),
            State::Large(_) => self.pass_over_large()?,
            State::Failed => return Err(Fault::Bad("reading went on after an error")),
            State::Records | State::Done => {}
        }
        self.input.release();
        self.raw = None;
        self.record = Some(opcodes::EOF); // Nothing more to read is "in the middle of" what must come last.
        let byte = self.input.byte()?;
        self.record = Some(byte);
        self.record(byte)
    }

    fn header(&mut self) -> Result<Found, Fault> {
        let magic: [u8; 9] = self.input.array()?;
        let (dialect, digits) = match &magic {
            [b'R', b'E', b'D', b'I', b'S', digits @ ..] => (Dialect::Redis, &digits[..]),
            [b'V', b'A', b'L', b'K', b'E', b'Y', digits @ ..] => (Dialect::Valkey, &digits[..]),
            [b'V', b'C', b'S', ..] | [b'V', b'K', b'C', b'S', ..] => {
                return Err(Fault::Unsupported(
                    "this is Valkey's compressed RDB envelope; switch compression off on the source",
                ));
            }
            _ => {
                return Err(Fault::Bad(
                    "neither REDIS nor VALKEY stands at the start: this is not a RDB file",
                ));
            }
        };
        let version = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).filter(|&v| v > 0);
        self.version =
            version.ok_or(Fault::Bad("no version number after the magic: this is not a RDB file"))?;
        self.dialect = dialect;
        self.state = State::Records;
        Ok(Found::Header)
    }

    fn record(&mut self, byte: u8) -> Result<Found, Fault> {
        let input = &mut self.input;
        Ok(match byte {
            opcodes::EOF => return self.finish(),
            opcodes::SELECTDB => {
                self.db =
                    u32::try_from(input.length()?).map_err(|_| Fault::Bad("impossible database number"))?;
                Found::SelectDb
            }
            opcodes::EXPIRETIME => {
                self.attributes.expire_at_ms = Some(i64::from(i32::from_le_bytes(input.array()?)) * 1000);
                Found::Nothing
            }
            opcodes::EXPIRETIME_MS => {
                self.attributes.expire_at_ms = Some(input.i64_le()?);
                Found::Nothing
            }
            opcodes::IDLE => {
                self.attributes.idle_seconds = Some(input.length()?);
                Found::Nothing
            }
            opcodes::FREQ => {
                self.attributes.freq = Some(input.byte()?);
                Found::Nothing
            }
            opcodes::RESIZEDB => Found::ResizeDb(input.length()?, input.length()?),
            opcodes::AUX => {
                input.string(&mut self.key)?;
                input.string(&mut self.text)?;
                Found::Aux
            }
            opcodes::MODULE_AUX => {
                let start = input.offset();
                let module = ModuleId::new(input.length()?);
                if input.length()? != 2 {
                    return Err(Fault::Bad("module data without its 'when' field"));
                }
                input.length()?;
                walk::skip_module_fields(input)?;
                Found::ModuleAux(module, input.offset() - start)
            }
            opcodes::FUNCTION2 => {
                input.string(&mut self.text)?;
                Found::Function
            }
            opcodes::FUNCTION_PRE_GA => {
                return Err(Fault::Unsupported(
                    "functions of a 7.0 release candidate; no final version reads them",
                ));
            }
            opcodes::SLOT_INFO => Found::SlotInfo(input.length()?, input.length()?, input.length()?),
            opcodes::KEY_META_OR_SLOT_IMPORT if self.dialect == Dialect::Valkey => {
                input.string(&mut self.key)?;
                let ranges = input.length()?;
                for _ in 0..ranges {
                    input.length()?;
                    input.length()?;
                }
                Found::SlotImport(ranges)
            }
            opcodes::KEY_META_OR_SLOT_IMPORT => {
                self.key_meta()?;
                Found::Nothing
            }
            opcodes::RAM_LRU | opcodes::SLOT_NUM => {
                input.length()?;
                Found::Nothing
            }
            opcodes::VALKEY_UPDATE if self.dialect == Dialect::Valkey => {
                return Err(Fault::Unsupported(
                    "commands inside the RDB (Valkey 9.2); switch that off on the source",
                ));
            }
            200..=224 => {
                return Err(Fault::Unsupported(
                    "a Dragonfly opcode; let Dragonfly write a Redis-compatible RDB",
                ));
            }
            type_byte => return self.entry(type_byte),
        })
    }

    /// `KEY_META`: a count, then per class four bytes and module fields. Kept as bytes for the DUMP payload.
    fn key_meta(&mut self) -> Result<(), Fault> {
        self.input.hold();
        self.input.limit(Some(self.limits.max_opaque_bytes));
        let classes = self.input.length()?;
        if classes > 7 {
            return Err(Fault::Bad("more than 7 classes of key metadata"));
        }
        for _ in 0..classes {
            self.input.skip(4)?;
            walk::skip_module_fields(&mut self.input)?;
        }
        self.meta.clear();
        self.meta.push(opcodes::KEY_META_OR_SLOT_IMPORT);
        self.meta.extend_from_slice(self.input.held(0..self.input.held_len()));
        self.attributes.has_meta = true;
        Ok(())
    }

    fn entry(&mut self, type_byte: u8) -> Result<Found, Fault> {
        self.input.hold();
        let key = match self.input.held_head()? {
            StringHead::Plain(n) => {
                let from = self.input.held_len();
                self.input.skip(n)?;
                Some(from..self.input.held_len())
            }
            _ => {
                self.input.rewind(0);
                self.input.string(&mut self.key)?;
                None
            }
        };
        let attributes = std::mem::take(&mut self.attributes);
        let start = self.input.held_len();
        let mut flaw = None;
        let walked = self.walk(type_byte, self.limits.max_value_bytes, &mut flaw);
        let span = start..self.input.held_len();
        let value = match (walked, flaw) {
            (Ok(()), Some(reason)) => Span::Bad(Some(span), reason),
            (Ok(()), None) if walk::is_empty(type_byte, self.dialect, self.input.held(span.clone())) => {
                Span::Empty
            }
            (Ok(()), None) => {
                self.raw = Some((type_byte, start)).filter(|_| elements::visits(type_byte, self.dialect));
                Span::Raw(span)
            }
            (Err(Fault::TooLarge), _) => {
                self.input.rewind(start);
                if elements::visits(type_byte, self.dialect) {
                    if let Some(range) = key {
                        self.key.clear();
                        self.key.extend_from_slice(self.input.held(range));
                    }
                    self.input.release();
                    self.state = State::Large(type_byte);
                    return Ok(Found::Entry { type_byte, attributes, key: None, value: Span::Large });
                }
                match self.walk(type_byte, self.limits.max_opaque_bytes, &mut flaw) {
                    Ok(()) => Span::Raw(start..self.input.held_len()),
                    Err(Fault::TooLarge) => {
                        if let Some(range) = key {
                            self.key.clear();
                            self.key.extend_from_slice(self.input.held(range));
                        }
                        self.input.rewind(start);
                        self.input.release();
                        walk::skip_value(&mut self.input, type_byte, self.dialect, &mut flaw)?;
                        let value = Span::Bad(None, "module value too large to hold");
                        return Ok(Found::Entry { type_byte, attributes, key: None, value });
                    }
                    Err(fault) => return Err(fault),
                }
            }
            (Err(fault), _) => return Err(fault),
        };
        Ok(Found::Entry { type_byte, attributes, key, value })
    }

    fn walk(&mut self, type_byte: u8, limit: usize, flaw: &mut Flaw) -> Result<(), Fault> {
        self.input.limit(Some(limit));
        let walked = walk::skip_value(&mut self.input, type_byte, self.dialect, flaw);
        self.input.limit(None);
        walked
    }

    fn finish(&mut self) -> Result<Found, Fault> {
        let computed = self.input.checksum();
        let length = self.input.offset();
        let checksum = if self.version < 5 {
            Checksum::Absent
        } else {
            match self.input.u64_le()? {
                0 => Checksum::Disabled,
                stored if stored == computed => Checksum::Verified(stored),
                stored => return Err(RdbError::WrongChecksum { stored, computed, length }.into()),
            }
        };
        self.state = State::Done;
        Ok(Found::End(checksum))
    }

    fn item(&self, found: Found) -> Item<'_> {
        match found {
            // `step` is repeated until it finds something.
            Found::Header | Found::Nothing => Item::Header {
                dialect: self.dialect,
                version: self.version,
                newer_than_known: match self.dialect {
                    Dialect::Redis => self.version > NEWEST_REDIS_VERSION,
                    Dialect::Valkey => self.version > NEWEST_VALKEY_VERSION,
                },
            },
            Found::Aux => Item::Aux { key: &self.key, value: &self.text },
            Found::SelectDb => Item::SelectDb(self.db),
            Found::ResizeDb(keys, expires) => Item::ResizeDb { keys, expires },
            Found::SlotInfo(slot, keys, expires) => Item::SlotInfo { slot, keys, expires },
            Found::SlotImport(ranges) => Item::SlotImport { job: &self.key, ranges },
            Found::Function => Item::Function(&self.text),
            Found::ModuleAux(module, bytes) => Item::ModuleAux { module, bytes },
            Found::End(checksum) => Item::End { checksum },
            Found::Entry { type_byte, attributes, key, value } => Item::Entry(Entry {
                db: self.db,
                key: key.map_or(self.key.as_slice(), |range| self.input.held(range)),
                type_byte,
                dialect: self.dialect,
                expire_at_ms: attributes.expire_at_ms,
                idle_seconds: attributes.idle_seconds,
                freq: attributes.freq,
                meta: attributes.has_meta.then_some(self.meta.as_slice()),
                value: match value {
                    Span::Raw(range) => Value::Raw(self.input.held(range)),
                    Span::Large => Value::Large,
                    Span::Empty => Value::Empty,
                    Span::Bad(range, reason) => Value::Bad { raw: range.map(|r| self.input.held(r)), reason },
                },
            }),
        }
    }
}

/// Reads one value that starts at `offset` of a file, where `reader` stands: a pass over a [`Value::Large`] ahead of
/// [`Decoder::read_large`], by a reader of its own ([`Decoder::position`] is the offset when the entry has been returned).
/// Streams need it: see [`super::commands::PendingIds`].
pub fn visit_from<R: Read>(
    reader: R,
    offset: u64,
    type_byte: u8,
    dialect: Dialect,
    sink: &mut dyn FnMut(elements::Element<'_>) -> Result<(), RdbError>,
) -> Result<(), RdbError> {
    let mut input = Input::new(reader, offset, 0);
    let visited = elements::visit(&mut input, type_byte, dialect, sink);
    visited.map_err(|fault| fault.at(input.offset(), || describe_type(type_byte, dialect)))
}

fn describe_record(byte: u8, dialect: Dialect) -> String {
    let name = match byte {
        opcodes::EOF => "EOF and checksum",
        opcodes::SELECTDB => "SELECTDB",
        opcodes::EXPIRETIME => "EXPIRETIME",
        opcodes::EXPIRETIME_MS => "EXPIRETIME_MS",
        opcodes::RESIZEDB => "RESIZEDB",
        opcodes::AUX => "AUX",
        opcodes::FREQ => "FREQ",
        opcodes::IDLE => "IDLE",
        opcodes::MODULE_AUX => "MODULE_AUX",
        opcodes::FUNCTION_PRE_GA => "FUNCTION_PRE_GA",
        opcodes::FUNCTION2 => "FUNCTION2",
        opcodes::SLOT_INFO => "SLOT_INFO",
        opcodes::KEY_META_OR_SLOT_IMPORT if dialect == Dialect::Valkey => "SLOT_IMPORT",
        opcodes::KEY_META_OR_SLOT_IMPORT => "KEY_META",
        opcodes::VALKEY_UPDATE if dialect == Dialect::Valkey => "UPDATE",
        200..=224 => "an unknown opcode",
        _ => return describe_type(byte, dialect),
    };
    format!("{name} (opcode {byte})")
}
