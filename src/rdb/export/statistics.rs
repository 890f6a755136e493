//! What takes the room in a file: by type and encoding, by size, by database, and the largest keys.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use super::super::{Checksum, Decoder, Dialect, Item, RdbError, Value, dump::ModuleId, type_name, types};
use crate::format;

/// Keys and their bytes in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Number of keys.
    pub keys: u64,
    /// Bytes of their values as stored (after compression).
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.keys += 1;
        self.bytes += bytes;
    }
}

/// One of the largest keys.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LargestKey {
    /// Bytes of the value as stored.
    pub bytes: u64,
    /// Database.
    pub db: u32,
    /// Name.
    pub key: Vec<u8>,
    /// Type.
    pub kind: String,
    /// Encoding in the file.
    pub encoding: &'static str,
}

/// Statistics of a file. Values are not decoded, so sizes are those in the file, not in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// `REDIS 0011` or `VALKEY 080`.
    pub header: String,
    /// AUX fields about the file (`redis-ver`, `ctime` …), the first of each name.
    pub aux: BTreeMap<String, String>,
    /// Everything.
    pub total: Tally,
    /// By type and encoding.
    pub types: BTreeMap<(Cow<'static, str>, &'static str), Tally>,
    /// By database.
    pub databases: BTreeMap<u32, Tally>,
    /// By size class: the index of [`Statistics::SIZE_CLASSES`], one more for larger ones.
    pub sizes: BTreeMap<usize, Tally>,
    /// Keys with an expiry.
    pub expiring: Tally,
    /// Collections without elements, not counted above.
    pub empty: u64,
    /// Values that nobody would load, not counted above.
    pub bad: u64,
    /// Function libraries.
    pub functions: u64,
    /// Pieces of module data outside of keys, by module.
    pub module_aux: BTreeMap<String, u64>,
    /// The largest, largest first.
    pub largest: Vec<LargestKey>,
    /// What the end of the file said.
    pub checksum: Option<Checksum>,
    /// Length of the file.
    pub file_bytes: u64,
}

impl Statistics {
    /// Upper bounds of the size classes (bytes, inclusive).
    pub const SIZE_CLASSES: [u64; 6] = [64, 1_000, 16_000, 250_000, 4_000_000, 64_000_000];
    /// Largest keys that are kept.
    pub const LARGEST: usize = 20;

    /// Reads a whole file.
    pub fn collect<R: Read>(decoder: &mut Decoder<R>) -> Result<Self, RdbError> {
        let mut found = Self::default();
        while let Some(item) = decoder.next()? {
            match item {
                Item::Header { dialect, version, .. } => {
                    found.header = match dialect {
                        Dialect::Redis => format!("REDIS {version:04}"),
                        Dialect::Valkey => format!("VALKEY {version:03}"),
                    };
                }
                Item::Aux { key, value } if !PER_KEY_AUX.contains(&key) => {
                    let value = format::escape(value, 60);
                    found.aux.entry(format::escape(key, 40)).or_insert(value);
                }
                Item::Function(_) => found.functions += 1,
                Item::ModuleAux { module, .. } => *found.module_aux.entry(module.name()).or_default() += 1,
                Item::End { checksum } => found.checksum = Some(checksum),
                Item::Entry(entry) => {
                    let (db, expiring) = (entry.db, entry.expire_at_ms.is_some());
                    let (kind, encoding) = type_name(entry.type_byte, entry.dialect);
                    let mut kind = Cow::Borrowed(kind);
                    let (held, key) = match entry.value {
                        Value::Raw(raw) => {
                            if entry.type_byte == types::MODULE_2 {
                                kind = ModuleId::of_value(raw).map_or(kind, |module| module.name().into());
                            }
                            let bytes = raw.len() as u64;
                            (Some(bytes), found.is_among_largest(bytes).then(|| entry.key.to_vec()))
                        }
                        Value::Large => (None, Some(entry.key.to_vec())),
                        Value::Empty => {
                            found.empty += 1;
                            continue;
                        }
                        Value::Bad { .. } => {
                            found.bad += 1;
                            continue;
                        }
                    };
                    let bytes = match held {
                        Some(bytes) => bytes,
                        None => {
                            let start = decoder.position();
                            decoder.skip_large()?;
                            decoder.position() - start
                        }
                    };
                    if let Some(key) = key {
                        found.remember(LargestKey { bytes, db, key, kind: kind.to_string(), encoding });
                    }
                    found.count(db, kind, encoding, bytes, expiring);
                }
                _ => {}
            }
        }
        found.file_bytes = decoder.position();
        Ok(found)
    }

    fn count(
        &mut self,
        db: u32,
        kind: Cow<'static, str>,
        encoding: &'static str,
        bytes: u64,
        expiring: bool,
    ) {
        let class = Self::SIZE_CLASSES.iter().position(|&bound| bytes <= bound);
        self.total.add(bytes);
        self.types.entry((kind, encoding)).or_default().add(bytes);
        self.databases.entry(db).or_default().add(bytes);
        self.sizes.entry(class.unwrap_or(Self::SIZE_CLASSES.len())).or_default().add(bytes);
        if expiring {
            self.expiring.add(bytes);
        }
    }

    fn is_among_largest(&self, bytes: u64) -> bool {
        self.largest.len() < Self::LARGEST
            || self.largest.last().is_some_and(|smallest| bytes > smallest.bytes)
    }

    fn remember(&mut self, key: LargestKey) {
        let place = self.largest.partition_point(|other| other.bytes >= key.bytes);
        self.largest.insert(place, key);
        self.largest.truncate(Self::LARGEST);
    }
}

/// AUX fields that stand once per key or slot, or are long.
const PER_KEY_AUX: [&[u8]; 3] = [b"lua", b"mvcc-tstamp", b"slot-info"];

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checksum = match self.checksum {
            Some(Checksum::Verified(_)) => "checksum right",
            Some(Checksum::Disabled) => "no checksum (rdbchecksum no)",
            Some(Checksum::Absent) | None => "no checksum (before version 5)",
        };
        writeln!(f, "{}, {}, {checksum}", self.header, format::size(self.file_bytes))?;
        for (name, value) in &self.aux {
            writeln!(f, "  {name} = {value}")?;
        }
        let line = |f: &mut fmt::Formatter<'_>, name: &str, tally: &Tally| {
            let average = tally.bytes.checked_div(tally.keys).unwrap_or(0);
            let keys = format::number(tally.keys);
            writeln!(
                f,
                "{name:<44} {keys:>14} {:>10} {:>10}",
                format::bytes(tally.bytes),
                format::bytes(average)
            )
        };
        writeln!(f, "\n{:<44} {:>14} {:>10} {:>10}", "by type (encoding)", "keys", "bytes", "average")?;
        for ((kind, encoding), tally) in &self.types {
            line(f, &named(kind, encoding), tally)?;
        }
        line(f, "all", &self.total)?;
        line(f, "with an expiry", &self.expiring)?;
        writeln!(f, "\nby database")?;
        for (db, tally) in &self.databases {
            line(f, &format!("db{db}"), tally)?;
        }
        writeln!(f, "\nby size of the value in the file")?;
        for (class, tally) in &self.sizes {
            let name = match Self::SIZE_CLASSES.get(*class) {
                Some(bound) => format!("up to {}", format::bytes(*bound)),
                None => "larger".to_owned(),
            };
            line(f, &name, tally)?;
        }
        writeln!(f, "\nlargest keys")?;
        for LargestKey { bytes, db, key, kind, encoding } in &self.largest {
            let size = format::bytes(*bytes);
            writeln!(f, "{size:>10}  db{db:<3} {:<36} {}", named(kind, encoding), format::escape(key, 60))?;
        }
        for (count, what) in [
            (self.functions, "function libraries"),
            (self.empty, "collections without elements, which no server keeps"),
            (self.bad, "values that no server would load"),
        ] {
            if count > 0 {
                writeln!(f, "\n{} {what}", format::number(count))?;
            }
        }
        for (module, count) in &self.module_aux {
            writeln!(f, "\n{count} pieces of data of module {module} outside of keys")?;
        }
        Ok(())
    }
}

fn named(kind: &str, encoding: &str) -> String {
    if kind == encoding { kind.to_owned() } else { format!("{kind} ({encoding})") }
}
