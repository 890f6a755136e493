//! Which keys this migration has put into the destination: a durable record, so that after another full sync exactly those
//! are removed which the source no longer has, and nothing that belongs to others.
//!
//! ```text
//!  g1-ledger-1 g1-ledger-2 …   hashes of the keys of full sync 1 and of the stream behind it, in the order of arrival
//!  g2-ledger-1 …               the same of full sync 2
//!  ledger-foreign              keys that existed on the destination and were left alone
//!  ledger.json                 seed of the hashes, and every SWAPDB
//!
//!  ghosts = (g1 - g2) - foreign, looked for with SCAN at the end of RDB 2; then g1 goes
//! ```
//!
//! A record is written before the batch with its key is handed to the writer, so a crash can leave a key too many on
//! record and never one too few. A key too many does harm only if somebody else has a key of that very name. The odd idea:
//! a hash covers the database, and SWAPDB renames databases under keys that are recorded already. So the hash takes
//! not the database's number but a name that moves with its content. Each SWAPDB is kept with its place in the
//! stream, because after a crash only those count which the destination has applied.
//!
//! Memory: 1 MiB for the keys noted last (a hot key is written once), and a few more while files are sorted.

mod foreign;
pub mod sorted;

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128_with_seed;

pub use self::foreign::Foreign;
use self::sorted::{KeyHash, Lookup, Merge, Minus, RECORD, sort};
use super::spool::{SpoolError, replace_file};

/// Keys remembered so that hot ones are written once.
const RECENT: usize = 64 * 1024;
/// A file that is shorter is not worth sorting.
const WORTH_SORTING: u64 = 64 * 1024 * 1024;
/// Room kept for the records to come (bytes).
const RESERVED: u64 = 1024 * 1024;
/// A power failure can take what was recorded in this time.
const SYNC_AFTER: Duration = Duration::from_secs(1);

/// A place in the history of a run: full sync, and offset in the stream behind it (0 inside the RDB).
pub type Place = (u64, u64);

/// What `ledger.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    version: u32,
    seed: u64,
    /// False when keys were applied before there was a ledger.
    complete: bool,
    swaps: Vec<Swap>,
}

/// One SWAPDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Swap {
    generation: u64,
    offset: u64,
    a: u32,
    b: u32,
}

/// The record of one source. Used by the replay thread alone.
pub struct Ledger {
    dir: PathBuf,
    state: State,
    names: Names,
    generation: u64,
    part: Option<Part>,
    unwritten: Vec<u8>,
    foreign: Option<Arc<Foreign>>,
    recent: Vec<KeyHash>,
    syncing: Arc<AtomicBool>,
    sorting: Option<JoinHandle<u64>>,
    sorted_bytes: u64,
}

/// The keys that this migration has put into the destination, or may have.
pub struct Ours {
    /// By former full syncs.
    pub former: Lookup,
    /// By this one.
    pub now: Lookup,
}

impl Ours {
    /// Whether it holds this one.
    pub fn contains(&self, hash: KeyHash) -> io::Result<bool> {
        Ok(self.former.contains(hash)? || self.now.contains(hash)?)
    }
}

/// The file that is appended to.
struct Part {
    file: Arc<File>,
    number: u64,
    len: u64,
    /// Up to here the file has its room on the disk, as far as is known.
    reserved: u64,
}

impl Ledger {
    /// Opens the record in the folder of a spool. `begun`: a former process has copied something already, so that a
    /// record that is missing is missed.
    pub fn open(dir: &Path, begun: bool) -> Result<Ledger, SpoolError> {
        let path = dir.join("ledger.json");
        let state = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| failed("read", &path)(io::Error::other(error)))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The standard library's hash keys are random in every process.
                let seed = RandomState::new().build_hasher().finish();
                let state = State { version: 1, seed, complete: !begun, swaps: Vec::new() };
                state.save(dir)?;
                state
            }
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let seed = state.seed;
        Ok(Ledger {
            dir: dir.to_owned(),
            state,
            names: Names { seed, renamed: Vec::new() },
            generation: 0,
            part: None,
            unwritten: Vec::new(),
            foreign: None,
            recent: vec![0; RECENT],
            syncing: Arc::default(),
            sorting: None,
            sorted_bytes: 0,
        })
    }

    /// True unless keys were applied before there was a ledger.
    pub fn is_complete(&self) -> bool {
        self.state.complete
    }

    /// A full sync, or the rest of it, is applied from now on. `applied`: up to where the destination has everything. After an
    /// error that passes (a full disk) it can be called again.
    pub fn begin(&mut self, generation: u64, applied: Option<Place>) -> Result<(), SpoolError> {
        self.finish_sorting();
        let mut state = self.state.clone();
        state.swaps.retain(|swap| Some((swap.generation, swap.offset)) <= applied);
        if state != self.state {
            state.save(&self.dir)?;
            self.state = state;
        }
        self.names.renamed.clear();
        for swap in &self.state.swaps {
            self.names.swap(swap.a, swap.b);
        }
        self.generation = generation;
        self.unwritten.clear();
        self.recent.fill(0);
        self.sorted_bytes = 0;
        for (path, of, _) in self.parts()? {
            // Of this full sync nothing is there yet, or nothing but it counts any more.
            let void = of == generation && applied.is_none_or(|(at, _)| at < generation);
            let past = of < generation && applied.is_some_and(|(at, offset)| at == generation && offset > 0);
            if void || past {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        self.foreign = Some(Arc::new(Foreign::open(&self.dir, self.names.clone())?));
        let last = self.last_part()?;
        self.open_part(last.max(1))
    }

    /// Where the keys are noted that are not ours; `None` before the first full sync.
    pub fn foreign(&self) -> Option<Arc<Foreign>> {
        self.foreign.clone()
    }

    /// This key may be written by the batch that is being filled.
    pub fn note(&mut self, db: u32, key: &[u8]) {
        let hash = self.names.hash(db, key);
        let slot = &mut self.recent[hash as usize % RECENT];
        if *slot != hash {
            *slot = hash;
            self.unwritten.extend_from_slice(&hash.to_be_bytes());
        }
    }

    /// SWAPDB, which ends at this offset of the stream. After an error that passes (a full disk) it can be called again.
    pub fn swap(&mut self, offset: u64, a: u32, b: u32) -> Result<(), SpoolError> {
        let mut state = self.state.clone();
        state.swaps.push(Swap { generation: self.generation, offset, a, b });
        state.save(&self.dir)?;
        self.state = state;
        self.names.swap(a, b);
        Ok(())
    }

    /// Bytes noted and not yet written.
    pub fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// Writes what was noted. After an error that passes (a full disk) it can be called again.
    pub fn flush(&mut self) -> Result<(), SpoolError> {
        if let Some(foreign) = &self.foreign {
            foreign.flush()?;
        }
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let path = self.part_path(self.generation, self.part.as_ref().map_or(0, |part| part.number));
        let Some(part) = &mut self.part else { return Ok(()) };
        part.file.write_all_at(&self.unwritten, part.len).map_err(failed("write", &path))?;
        part.len += self.unwritten.len() as u64;
        part.reserve();
        self.unwritten.clear();
        if !self.syncing.swap(true, SeqCst) {
            let (file, syncing) = (part.file.clone(), self.syncing.clone());
            std::thread::spawn(move || {
                std::thread::sleep(SYNC_AFTER);
                syncing.store(false, SeqCst);
                if let Err(error) = file.sync_data() {
                    tracing::warn!("the ledger could not be synced: {error}");
                }
            });
        }
        Ok(())
    }

    /// To be called in the stream phase: hot keys are written again and again there; once the files have doubled they are
    /// sorted and each key is kept once, by a thread of its own.
    pub fn tidy(&mut self) -> Result<(), SpoolError> {
        let len = self.part.as_ref().map_or(0, |part| part.len);
        if len < WORTH_SORTING || len < self.sorted_bytes {
            return Ok(());
        }
        if self.sorting.as_ref().is_some_and(|sorting| !sorting.is_finished()) {
            return Ok(());
        }
        self.finish_sorting();
        let parts: Vec<(PathBuf, u64, u64)> =
            self.parts()?.into_iter().filter(|(_, of, _)| *of == self.generation).collect();
        self.open_part(self.last_part()? + 1)?;
        let dir = self.dir.clone();
        self.sorting = Some(std::thread::spawn(move || {
            let paths: Vec<PathBuf> = parts.into_iter().map(|(path, ..)| path).collect();
            let Some((last, others)) = paths.split_last() else { return 0 };
            let beside = dir.join("ledger.sorted");
            let sorted =
                sort(&dir, &paths).and_then(|hashes| sorted::write(&beside, hashes)).and_then(|bytes| {
                    // From here on the last file holds everything; until the others are gone, some of it twice.
                    fs::rename(&beside, last)?;
                    for path in others {
                        fs::remove_file(path)?;
                    }
                    Ok(bytes)
                });
            sorted.unwrap_or_else(|error| {
                tracing::warn!("the ledger could not be sorted, it only stays longer: {error}");
                let _ = fs::remove_file(&beside);
                0
            })
        }));
        Ok(())
    }

    /// Whether this full sync has brought no key so far.
    pub fn is_empty(&self) -> Result<bool, SpoolError> {
        for (path, of, _) in self.parts()? {
            if of == self.generation && fs::metadata(&path).map_err(failed("examine", &path))?.len() > 0 {
                return Ok(false);
            }
        }
        Ok(self.unwritten.is_empty())
    }

    /// Whether there is a record of former full syncs.
    pub fn has_former(&self) -> Result<bool, SpoolError> {
        Ok(self.parts()?.iter().any(|(_, of, _)| *of < self.generation))
    }

    /// Keys of former full syncs that are not in this one, ascending.
    pub fn ghosts(&mut self) -> Result<impl Iterator<Item = io::Result<KeyHash>> + use<>, SpoolError> {
        self.finish_sorting();
        self.flush()?;
        let parts = self.parts()?;
        let of = |wanted: fn(u64, u64) -> bool| {
            let paths: Vec<PathBuf> = parts
                .iter()
                .filter(|(_, of, _)| wanted(*of, self.generation))
                .map(|(path, ..)| path.clone())
                .collect();
            self.sorted(&paths)
        };
        let former = of(|of, now| of < now)?;
        let now = of(|of, now| of == now)?;
        Ok(Minus::new(Minus::new(former, now), self.others()?))
    }

    /// What is on record and not foreign, to be asked for single keys ([`Ledger::hash`]).
    pub fn ours(&mut self) -> Result<Ours, SpoolError> {
        self.finish_sorting();
        self.flush()?;
        let parts = self.parts()?;
        let lookup = |of_this: bool| {
            let mut paths = Vec::new();
            for (path, of, _) in &parts {
                if (*of == self.generation) == of_this {
                    paths.push(path.clone());
                }
            }
            Lookup::new(&self.dir, Minus::new(self.sorted(&paths)?, self.others()?))
                .map_err(failed("sort", &self.dir))
        };
        Ok(Ours { former: lookup(false)?, now: lookup(true)? })
    }

    /// The destination has confirmed this full sync: what former ones put there is gone, or counted here.
    pub fn drop_former(&mut self) -> Result<(), SpoolError> {
        for (path, of, _) in self.parts()? {
            if of < self.generation {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// How a key is remembered.
    pub fn hash(&self, db: u32, key: &[u8]) -> KeyHash {
        self.names.hash(db, key)
    }

    fn others(&self) -> Result<Merge, SpoolError> {
        let path = foreign::file_in(&self.dir);
        let paths = if path.exists() { vec![path] } else { Vec::new() };
        self.sorted(&paths)
    }

    fn sorted(&self, paths: &[PathBuf]) -> Result<Merge, SpoolError> {
        sort(&self.dir, paths).map_err(failed("sort", &self.dir))
    }

    fn finish_sorting(&mut self) {
        if let Some(sorting) = self.sorting.take() {
            self.sorted_bytes = sorting.join().unwrap_or(0);
        }
    }

    /// Opens a file of this full sync, and goes on behind what is in it.
    fn open_part(&mut self, number: u64) -> Result<(), SpoolError> {
        let path = self.part_path(self.generation, number);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(failed("open", &path))?;
        let len = file.metadata().map_err(failed("examine", &path))?.len();
        let mut part = Part { file: Arc::new(file), number, len: len - len % RECORD as u64, reserved: 0 };
        part.reserve();
        self.part = Some(part);
        Ok(())
    }

    /// The number of the last file of this full sync; 0 where there is none.
    fn last_part(&self) -> Result<u64, SpoolError> {
        let parts = self.parts()?;
        Ok(parts
            .iter()
            .filter(|(_, of, _)| *of == self.generation)
            .map(|(.., number)| *number)
            .max()
            .unwrap_or(0))
    }

    /// The files: path, full sync, number; in the order of their numbers.
    fn parts(&self) -> Result<Vec<(PathBuf, u64, u64)>, SpoolError> {
        parts(&self.dir)
    }

    fn part_path(&self, generation: u64, number: u64) -> PathBuf {
        self.dir.join(format!("g{generation}-ledger-{number}"))
    }
}

/// What databases are called in hashes: by their numbers, until SWAPDB renames them.
#[derive(Debug, Clone)]
struct Names {
    seed: u64,
    /// Databases whose name is not their number: (number, name).
    renamed: Vec<(u32, u32)>,
}

impl Names {
    fn hash(&self, db: u32, key: &[u8]) -> KeyHash {
        let name = self.renamed.iter().find(|(number, _)| *number == db).map_or(db, |(_, name)| *name);
        xxh3_128_with_seed(key, self.seed ^ u64::from(name).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn swap(&mut self, a: u32, b: u32) {
        for db in [a, b] {
            if !self.renamed.iter().any(|(number, _)| *number == db) {
                self.renamed.push((db, db));
            }
        }
        for (number, _) in &mut self.renamed {
            *number = match *number {
                number if number == a => b,
                number if number == b => a,
                number => number,
            };
        }
    }
}

impl State {
    fn save(&self, dir: &Path) -> Result<(), SpoolError> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        replace_file(&dir.join("ledger.json"), &text)
    }
}

impl Part {
    /// Keeps room behind the end of the file, without making it longer: a full disk is emptied by applying, which is noted here
    /// first. Where the file system cannot do it, applying may have to wait for space.
    fn reserve(&mut self) {
        if self.len + RESERVED / 2 > self.reserved
            && fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.len, RESERVED).is_ok()
        {
            self.reserved = self.len + RESERVED;
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // Another one may be opened in the same process, when applying begins again.
        self.finish_sorting();
    }
}

/// Removes the record from the folder of a spool: the migration is over.
pub fn forget(dir: &Path) -> Result<(), SpoolError> {
    let mut paths: Vec<PathBuf> = parts(dir)?.into_iter().map(|(path, ..)| path).collect();
    paths.extend(["ledger.json", "ledger-foreign", "ledger.sorted"].map(|name| dir.join(name)));
    for path in paths {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn parts(dir: &Path) -> Result<Vec<(PathBuf, u64, u64)>, SpoolError> {
    let mut parts = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(parts),
        entries => entries.map_err(failed("list", dir))?,
    };
    for entry in entries {
        let path = entry.map_err(failed("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let numbers = name.strip_prefix('g').and_then(|rest| rest.split_once("-ledger-"));
        if let Some((Ok(generation), Ok(number))) =
            numbers.map(|(generation, number)| (generation.parse(), number.parse()))
        {
            parts.push((path, generation, number));
        }
    }
    parts.sort_by_key(|(_, generation, number)| (*generation, *number));
    Ok(parts)
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> SpoolError + use<> {
    let path = path.to_owned();
    move |cause| SpoolError { action, path: path.clone(), cause }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;

    fn open(dir: &tempfile::TempDir) -> Ledger {
        Ledger::open(dir.path(), false).unwrap()
    }

    /// Which of these keys of a database are ghosts.
    fn ghosts(ledger: &mut Ledger, db: u32, keys: &str) -> String {
        let ghosts: Vec<KeyHash> = ledger.ghosts().unwrap().map(Result::unwrap).collect();
        let found: Vec<&str> = keys
            .split(' ')
            .filter(|key| ghosts.binary_search(&ledger.hash(db, key.as_bytes())).is_ok())
            .collect();
        found.join(" ")
    }

    #[test]
    fn ghosts_are_the_keys_that_a_later_full_sync_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(&dir);
        ledger.begin(1, None).unwrap();
        for key in ["a", "b", "a", "c", "kept"] {
            ledger.note(0, key.as_bytes());
        }
        ledger.note(3, b"a");
        assert_eq!(ledger.unwritten(), 5 * RECORD, "a hot key is written once");
        ledger.foreign().unwrap().note(0, b"kept");
        ledger.flush().unwrap();
        assert!(!ledger.has_former().unwrap());
        drop(ledger);
        // Another process, another full sync; a torn record before.
        let mut ledger = open(&dir);
        assert!(ledger.is_complete());
        ledger.begin(2, Some((1, 77))).unwrap();
        assert!(ledger.has_former().unwrap());
        assert!(ledger.is_empty().unwrap());
        ledger.note(0, b"b");
        assert!(!ledger.is_empty().unwrap());
        ledger.flush().unwrap();
        assert!(!ledger.is_empty().unwrap());
        ledger.note(0, b"new");
        assert_eq!(ghosts(&mut ledger, 0, "a b c new kept other"), "a c");
        assert_eq!(ghosts(&mut ledger, 3, "a b c new"), "a");
        let ours = ledger.ours().unwrap();
        assert!(ours.contains(ledger.hash(0, b"a")).unwrap());
        assert!(!ours.contains(ledger.hash(0, b"kept")).unwrap());
        ledger.drop_former().unwrap();
        assert!(!ledger.has_former().unwrap());
        assert_eq!(ghosts(&mut ledger, 0, "a b c new"), "");
        drop(ledger);
        forget(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn swapped_databases_take_their_keys_along() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(&dir);
        ledger.begin(1, None).unwrap();
        ledger.note(0, b"a");
        ledger.note(1, b"b");
        ledger.flush().unwrap();
        ledger.swap(100, 0, 1).unwrap();
        ledger.swap(200, 1, 7).unwrap();
        // Now a is in 7, b in 0.
        ledger.note(7, b"later");
        ledger.flush().unwrap();
        drop(ledger);
        let mut ledger = open(&dir);
        ledger.begin(2, Some((1, 250))).unwrap();
        ledger.note(0, b"other");
        assert_eq!(ghosts(&mut ledger, 0, "a b later"), "b");
        assert_eq!(ghosts(&mut ledger, 1, "a b later"), "");
        assert_eq!(ghosts(&mut ledger, 7, "a b later"), "a later");
        // The destination had applied only the first SWAPDB when the full sync replaced the rest of the stream.
        ledger.begin(2, Some((1, 150))).unwrap();
        assert_eq!(ghosts(&mut ledger, 1, "a b"), "a");
        assert_eq!(ghosts(&mut ledger, 0, "a b"), "b");
    }

    #[test]
    fn a_full_sync_of_which_nothing_was_applied_leaves_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(&dir);
        ledger.begin(1, None).unwrap();
        ledger.note(0, b"a");
        ledger.flush().unwrap();
        ledger.begin(1, None).unwrap();
        ledger.begin(2, None).unwrap();
        assert_eq!(ghosts(&mut ledger, 0, "a"), "");
        // Inside an RDB it goes on with what is there.
        ledger.note(0, b"b");
        ledger.flush().unwrap();
        ledger.begin(2, Some((2, 0))).unwrap();
        ledger.note(0, b"c");
        ledger.flush().unwrap();
        assert_eq!(ledger.last_part().unwrap(), 1, "in the same file, where room is kept");
        ledger.begin(3, Some((2, 0))).unwrap();
        assert_eq!(ghosts(&mut ledger, 0, "a b c"), "b c");
    }

    #[test]
    fn a_run_from_before_the_ledger_is_known_to_be_incomplete() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!Ledger::open(dir.path(), true).unwrap().is_complete());
        assert!(!Ledger::open(dir.path(), true).unwrap().is_complete());
    }

    #[test]
    fn a_doubled_record_is_sorted_beside() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = open(&dir);
        ledger.begin(1, None).unwrap();
        // More different keys than are remembered, again and again.
        for number in 0..WORTH_SORTING / RECORD as u64 + 1 {
            ledger.note(0, &(number % 100_000).to_le_bytes());
            if ledger.unwritten() > 1 << 20 {
                ledger.flush().unwrap();
            }
        }
        while ledger.part.as_ref().is_some_and(|part| part.len < WORTH_SORTING) {
            for number in 0..100_000u64 {
                ledger.note(0, &number.to_le_bytes());
            }
            ledger.flush().unwrap();
        }
        ledger.tidy().unwrap();
        ledger.note(0, b"behind");
        ledger.flush().unwrap();
        ledger.finish_sorting();
        assert_eq!(ledger.sorted_bytes, 100_000 * RECORD as u64);
        let bytes: u64 =
            ledger.parts().unwrap().iter().map(|(path, ..)| fs::metadata(path).unwrap().len()).sum();
        assert_eq!(bytes, 100_001 * RECORD as u64);
        ledger.begin(2, Some((1, 5))).unwrap();
        assert_eq!(ledger.ghosts().unwrap().count(), 100_001);
    }
}
