//! Are two data sets the same? Key by key: type, value, expiry, in every database and in both directions.

use std::collections::BTreeMap;
use std::fmt;

use super::store::{DATABASES, Store};
use super::value::Value;

/// Most samples kept of each kind of difference.
const SAMPLES: usize = 10;
/// Keys whose name begins so belong to the engine, not to the data set: its checkpoint in the destination.
const CHECKPOINT_PREFIX: &[u8] = b"shakedeck:";

/// How exactly to compare.
#[derive(Debug, Clone, Copy, Default)]
pub struct CompareOptions {
    /// Keys that end at or before this time (Unix ms) do not count on either side.
    pub now_ms: u64,
    /// Expiry times may differ so much (ms): more than 0 only where a server cannot tell them exactly.
    pub expiry_tolerance_ms: u64,
}

/// The result: what was compared and how it differs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Keys that are the same on both sides.
    pub equal: u64,
    /// Keys of the source by type.
    pub by_type: BTreeMap<&'static str, u64>,
    /// Keys of the source by database.
    pub by_db: BTreeMap<usize, u64>,
    /// Keys of the source that the destination lacks.
    pub missing: u64,
    /// Keys of the destination that the source lacks.
    pub extra: u64,
    /// Keys with another type, value or expiry.
    pub different: u64,
    /// Some of the differences, in words.
    pub samples: Vec<String>,
}

/// Compares every key except those that `ignore` names and the engine's checkpoints.
pub fn compare(
    source: &Store,
    destination: &Store,
    how: CompareOptions,
    ignore: impl Fn(usize, &[u8]) -> bool,
) -> Comparison {
    let mut result = Comparison::default();
    let (mut missing, mut extra, mut different) = (Vec::new(), Vec::new(), Vec::new());
    let counts = |db: usize, key: &[u8]| !key.starts_with(CHECKPOINT_PREFIX) && !ignore(db, key);
    for db in 0..DATABASES {
        for (key, _) in source.iter(db).filter(|(key, _)| counts(db, key)) {
            let Some(mine) = source.peek(db, key, how.now_ms) else { continue };
            *result.by_type.entry(mine.value.type_name()).or_default() += 1;
            *result.by_db.entry(db).or_default() += 1;
            let name = || format!("db {db} key '{}' ({})", key.escape_ascii(), mine.value.type_name());
            let Some(theirs) = destination.peek(db, key, how.now_ms) else {
                result.missing += 1;
                sample(&mut missing, || format!("missing: {}", name()));
                continue;
            };
            let difference = difference(&mine.value, &theirs.value).or_else(|| {
                expiry_difference(mine.expires_ms(), theirs.expires_ms(), how.expiry_tolerance_ms)
            });
            match difference {
                None => result.equal += 1,
                Some(difference) => {
                    result.different += 1;
                    sample(&mut different, || format!("different: {}: {difference}", name()));
                }
            }
        }
        for (key, _) in destination.iter(db).filter(|(key, _)| counts(db, key)) {
            if source.peek(db, key, how.now_ms).is_none()
                && let Some(theirs) = destination.peek(db, key, how.now_ms)
            {
                result.extra += 1;
                let kind = theirs.value.type_name();
                sample(&mut extra, || format!("extra: db {db} key '{}' ({kind})", key.escape_ascii()));
            }
        }
    }
    result.samples = [missing, extra, different].concat();
    result
}

fn sample(samples: &mut Vec<String>, text: impl FnOnce() -> String) {
    if samples.len() < SAMPLES {
        samples.push(text());
    }
}

/// How two values differ, in words.
fn difference(mine: &Value, theirs: &Value) -> Option<String> {
    if mine.same_data(theirs) {
        return None;
    }
    let elements = |mine: usize, theirs: usize| {
        if mine == theirs {
            format!("an element of {mine} differs")
        } else {
            format!("{mine} elements in the source, {theirs} in the destination")
        }
    };
    Some(match (mine, theirs) {
        (Value::String(a), Value::String(b)) => {
            let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            format!(
                "{} bytes in the source, {} in the destination, the same up to byte {common}",
                a.len(),
                b.len()
            )
        }
        (Value::List(a), Value::List(b)) => elements(a.len(), b.len()),
        (Value::Set(a), Value::Set(b)) => elements(a.len(), b.len()),
        (Value::Hash(a), Value::Hash(b)) => elements(a.len(), b.len()),
        (Value::SortedSet(a), Value::SortedSet(b)) => elements(a.len(), b.len()),
        (Value::Stream(a), Value::Stream(b)) if a.entries != b.entries => {
            elements(a.entries.len(), b.entries.len())
        }
        (Value::Stream(a), Value::Stream(b)) if a.groups != b.groups => {
            let differing = a.groups.iter().find(|(name, group)| b.groups.get(*name) != Some(*group));
            let name = differing.map_or_else(String::new, |(name, _)| name.escape_ascii().to_string());
            format!("consumer group '{name}' differs")
        }
        (Value::Stream(a), Value::Stream(b)) => format!(
            "last id {} and {}, greatest deleted id {} and {}, entries added {} and {}",
            a.last_id, b.last_id, a.max_deleted_id, b.max_deleted_id, a.entries_added, b.entries_added
        ),
        _ => format!("it is a {} in the destination", theirs.type_name()),
    })
}

fn expiry_difference(mine: Option<u64>, theirs: Option<u64>, tolerance_ms: u64) -> Option<String> {
    let text = |at: Option<u64>| at.map_or_else(|| "no time".to_owned(), |at| format!("{at} ms"));
    let same = match (mine, theirs) {
        (None, None) => true,
        (Some(mine), Some(theirs)) => mine.abs_diff(theirs) <= tolerance_ms,
        _ => false,
    };
    (!same).then(|| format!("ends at {} in the source, at {} in the destination", text(mine), text(theirs)))
}

impl Comparison {
    /// True when nothing differs.
    pub fn is_equal(&self) -> bool {
        self.missing == 0 && self.extra == 0 && self.different == 0
    }

    /// Keys of the source that were compared.
    pub fn compared(&self) -> u64 {
        self.equal + self.missing + self.different
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |names: Vec<String>| names.join(", ");
        let types = counted(self.by_type.iter().map(|(name, count)| format!("{count} {name}")).collect());
        let dbs = counted(self.by_db.iter().map(|(db, count)| format!("db {db}: {count}")).collect());
        if self.is_equal() {
            write!(
                f,
                "Source and destination are equal: {} keys in {} databases.",
                self.equal,
                self.by_db.len()
            )?;
        } else {
            write!(
                f,
                "Source and destination DIFFER: of {} keys {} are missing, {} are different; {} more are only in the \
                 destination.",
                self.compared(),
                self.missing,
                self.different,
                self.extra
            )?;
        }
        if !self.by_type.is_empty() {
            write!(f, "\n  by type: {types}\n  by database: {dbs}")?;
        }
        self.samples.iter().try_for_each(|sample| write!(f, "\n  {sample}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
    use super::super::store::Entry;
    use super::*;

    fn store(keys: &[(usize, &str, &str, Option<u64>)]) -> Store {
        let mut store = Store::default();
        for (db, key, value, expires_ms) in keys {
            store.insert(
                *db,
                key.as_bytes().to_vec(),
                Entry::with_expiry(Value::String(value.as_bytes().to_vec()), *expires_ms),
            );
        }
        store
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let source = store(&[
            (0, "same", "1", Some(500)),
            (0, "value", "abc", None),
            (0, "expiry", "1", Some(500)),
            (2, "lost\n", "1", None),
            (3, "wrong db", "1", None),
        ]);
        let mut destination = store(&[
            (0, "same", "1", Some(500)),
            (0, "value", "abd", None),
            (0, "expiry", "1", None),
            (4, "wrong db", "1", None),
            (0, "shakedeck:checkpoint", "1", None),
        ]);
        destination.insert(0, b"expired".to_vec(), Entry::with_expiry(Value::String(vec![]), Some(50)));
        let result = compare(
            &source,
            &destination,
            CompareOptions { now_ms: 100, ..CompareOptions::default() },
            |_, _| false,
        );
        assert_eq!((result.equal, result.missing, result.extra, result.different), (1, 2, 1, 2));
        assert!(!result.is_equal());
        let text = result.to_string();
        for expected in [
            "of 5 keys 2 are missing, 2 are different; 1 more",
            "missing: db 2 key 'lost\\n' (string)",
            "extra: db 4 key 'wrong db' (string)",
            "the same up to byte 2",
            "ends at 500 ms in the source, at no time in the destination",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
        }
    }

    #[test]
    fn equal_data_sets_say_so_with_counts() {
        let source = store(&[(0, "a", "1", None), (7, "b", "2", Some(900)), (7, "gone", "2", Some(90))]);
        let destination = store(&[(0, "a", "1", None), (7, "b", "2", Some(901)), (1, "mine", "", None)]);
        let how = CompareOptions { now_ms: 100, expiry_tolerance_ms: 1 };
        let result = compare(&source, &destination, how, |db, key| db == 1 && key == b"mine");
        assert!(result.is_equal(), "{result}");
        assert_eq!(
            result.to_string(),
            "Source and destination are equal: 2 keys in 2 databases.\n  by type: 2 string\n  by database: db 0: 1, db 7: 1"
        );
    }
}
