//! Entries that the destination will never accept, set aside so that nothing is lost: one JSON object a line.
//!
//! ```text
//!  quarantine.jsonl   the entries, appended by a migration
//!  quarantine.done    what became of them in a replay: written per entry, folded into the former file at its end
//!  quarantine.read    the newest entry that the operator has acknowledged
//!  quarantine.room    keeps room on the disk for the entries to come
//! ```
//!
//! The second file makes a replay of many entries cheap and safe: each answer is one line on disk, and a process that is
//! killed leaves at most the one entry open whose answer it had not written down.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::events::unix_ms;
use super::spool::{SpoolError, replace_file};
use crate::format;

/// Room kept for entries on a full disk (bytes).
const ROOM: u64 = 1024 * 1024;

/// Largest command that is kept with its entry (bytes): here and in a replay it is held several times, as bytes, digits and line.
pub const MOST_KEPT: usize = 32 << 20;

/// One entry set aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantinedEntry {
    /// Names it; ascending. 0 = written by a version without.
    #[serde(default)]
    pub id: u64,
    /// When (Unix ms).
    pub unix_ms: u64,
    /// The source it came from.
    pub source: String,
    /// Database it belongs to.
    pub db: u32,
    /// Its key, escaped for reading.
    pub key: String,
    /// Why.
    pub reason: String,
    /// The command in RESP, as hexadecimal digits, so that it can be sent again. Empty where a value could not even be read, and
    /// where it is larger than 32 MiB.
    pub command_hex: String,
}

impl QuarantinedEntry {
    /// The command in RESP; `None` when there is none.
    pub fn command(&self) -> Option<Vec<u8>> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let pairs = self.command_hex.as_bytes().chunks(2);
        let bytes: Option<Vec<u8>> = pairs
            .map(|pair| match pair {
                [high, low] => Some((digit(*high)? * 16 + digit(*low)?) as u8),
                _ => None,
            })
            .collect();
        bytes.filter(|bytes| !bytes.is_empty())
    }
}

/// What became of an entry in a replay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Done {
    id: u64,
    /// `None` = accepted.
    refused: Option<String>,
}

/// The file. Created with the first entry, mode 0600: it holds the operator's data.
pub struct Quarantine {
    path: PathBuf,
    file: Mutex<Option<File>>,
    count: AtomicU64,
    last_id: AtomicU64,
    /// Entries of former runs that nobody has acknowledged.
    unread: u64,
    /// By source: what waits here already and may be brought once more, as hashes.
    known: Mutex<HashMap<String, HashSet<u64>>>,
}

impl Quarantine {
    /// The file in this data directory, with what former runs have left there.
    pub fn open(dir: &Path) -> Result<Self, SpoolError> {
        match settle(dir) {
            // It can be done at any later start: whoever reads the entries reads both files.
            Err(error) if error.is_full() => {}
            result => result?,
        }
        let path = entries_path(dir);
        cut_torn_line(&path)?;
        let read = match fs::read_to_string(read_path(dir)) {
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed("read", &read_path(dir))(error)),
        };
        let (mut count, mut unread, mut last_id) = (0, 0, 0);
        for entry in waiting(dir)? {
            let id = entry?.id;
            last_id = last_id.max(id);
            count += 1;
            unread += u64::from(id > read);
        }
        keep_room(dir);
        Ok(Quarantine {
            path,
            file: Mutex::new(None),
            count: count.into(),
            last_id: last_id.into(),
            unread,
            known: Mutex::default(),
        })
    }

    /// Moves what waits in `dir`, which is about to be removed, into `home`. `None` = nothing waits.
    pub fn keep(dir: &Path, home: &Path) -> Result<Option<PathBuf>, SpoolError> {
        if waiting(dir)?.next().is_none() {
            return Ok(None);
        }
        settle(dir)?;
        let kept = home.join(format!("quarantine-of-rollback-{}.jsonl", unix_ms()));
        fs::rename(entries_path(dir), &kept).map_err(failed("move", &entries_path(dir)))?;
        Ok(Some(kept))
    }

    /// Entries that former runs have left and that nobody has acknowledged.
    pub fn unread(&self) -> u64 {
        self.unread
    }

    /// The operator has seen what is there: a later start need not tell it again.
    pub fn acknowledge(&self) -> Result<(), SpoolError> {
        let last_id = self.last_id.load(Relaxed);
        match self.path.parent() {
            Some(dir) if last_id > 0 => replace_file(&read_path(dir), last_id.to_string().as_bytes()),
            _ => Ok(()),
        }
    }

    /// Entries that wait there, those of former runs too.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An RDB of this source goes on in its middle: what a former process has set aside of it comes again, and is not to
    /// be added twice. Until [`Quarantine::expect_nothing`].
    pub fn expect_again(&self, source: &str) -> Result<(), SpoolError> {
        let Some(dir) = self.path.parent() else { return Ok(()) };
        let mut known = HashSet::new();
        for entry in waiting(dir)? {
            let entry = entry?;
            if entry.source == source {
                known.insert(content(entry.db, &entry.key, &entry.command_hex));
            }
        }
        self.known().insert(source.to_owned(), known);
        Ok(())
    }

    /// Every entry of this source is a new one again.
    pub fn expect_nothing(&self, source: &str) {
        self.known().remove(source);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, HashSet<u64>>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sets one entry aside; it is safe on disk when this returns. Of a command larger than [`MOST_KEPT`] only the size is told.
    pub fn add(
        &self,
        source: &str,
        db: u32,
        key: &[u8],
        reason: &str,
        command: &[u8],
    ) -> Result<(), SpoolError> {
        let (command, reason) = match command.len() {
            ..=MOST_KEPT => (command, reason.to_owned()),
            length => (&[][..], without_content(reason, "a command", length)),
        };
        let mut command_hex = String::with_capacity(command.len() * 2);
        for byte in command {
            command_hex.push_str(&format!("{byte:02x}"));
        }
        let key = key.escape_ascii().to_string();
        let is_known = |known: &HashSet<u64>| known.contains(&content(db, &key, &command_hex));
        if self.known().get(source).is_some_and(is_known) {
            return Ok(());
        }
        let mut slot = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = unix_ms();
        // By the clock, so that an id is not used again after the file was emptied.
        let id = (self.last_id.load(Relaxed) + 1).max(now * 1_000);
        self.last_id.store(id, Relaxed);
        let entry =
            QuarantinedEntry { id, unix_ms: now, source: source.to_owned(), db, key, reason, command_hex };
        match self.write(&mut slot, &entry) {
            Err(error) if error.is_full() && self.give_room() => self.write(&mut slot, &entry)?,
            result => result?,
        }
        self.count.fetch_add(1, Relaxed);
        Ok(())
    }

    fn write(&self, slot: &mut Option<File>, entry: &QuarantinedEntry) -> Result<(), SpoolError> {
        let file = match slot {
            Some(file) => file,
            None => slot.insert(append(&self.path)?),
        };
        let before = file.metadata().map_err(failed("examine", &self.path))?.len();
        write_line(file, entry).map_err(|cause| {
            // A full disk may have taken half of the line.
            let _ = file.set_len(before);
            failed("write", &self.path)(cause)
        })
    }

    /// The disk is full: gives up what was kept for this. `false` = there was nothing left.
    fn give_room(&self) -> bool {
        self.path.parent().is_some_and(|dir| fs::remove_file(room_path(dir)).is_ok())
    }

    /// The newest entry; every later one has a greater id.
    pub fn last_id(&self) -> u64 {
        self.last_id.load(Relaxed)
    }

    /// Takes out what was set aside of the keys of a source up to this entry, because another full sync has set every key of it
    /// anew. Returns how many entries that were.
    pub fn supersede(&self, source: &str, up_to: u64) -> Result<u64, SpoolError> {
        let mut slot = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(dir) = self.path.parent() else { return Ok(0) };
        let mut void = Vec::new();
        for entry in waiting(dir)? {
            let entry = entry?;
            if entry.source == source && entry.id <= up_to && !entry.key.is_empty() {
                void.push(entry.id);
            }
        }
        if void.is_empty() {
            return Ok(0);
        }
        // The file is replaced.
        *slot = None;
        let mut journal = Journal::open(dir)?;
        for id in &void {
            journal.add(*id, None)?;
        }
        journal.finish()?;
        let count = void.len() as u64;
        self.count.fetch_sub(count, Relaxed);
        Ok(count)
    }
}

/// What makes two entries the same one.
fn content(db: u32, key: &str, command_hex: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (db, key, command_hex).hash(&mut hasher);
    hasher.finish()
}

/// The reason of an entry whose content is too large to be kept.
pub fn without_content(reason: &str, what: &str, bytes: usize) -> String {
    let size = format::size(bytes as u64);
    format!("{reason}; {what} of {size}, too large to be kept here: copy the key from the source")
}

/// The entries of a data directory that wait there, in their order. A replay that was killed is taken into account.
pub fn waiting(
    dir: &Path,
) -> Result<impl Iterator<Item = Result<QuarantinedEntry, SpoolError>> + use<>, SpoolError> {
    let done: HashMap<u64, Option<String>> =
        lines::<Done>(&done_path(dir))?.filter_map(Result::ok).map(|done| (done.id, done.refused)).collect();
    let entries = lines::<QuarantinedEntry>(&entries_path(dir))?.enumerate();
    Ok(entries.filter_map(move |(line, entry)| {
        let mut entry = match entry {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        if entry.id == 0 {
            entry.id = line as u64 + 1;
        }
        match done.get(&entry.id) {
            Some(None) => return None,
            Some(Some(refused)) => entry.reason = refused.clone(),
            None => {}
        }
        Some(Ok(entry))
    }))
}

/// Writes down what becomes of entries in a replay.
pub struct Journal {
    dir: PathBuf,
    file: File,
}

impl Journal {
    /// Of this data directory, whose lock the caller holds.
    pub fn open(dir: &Path) -> Result<Journal, SpoolError> {
        settle(dir)?;
        cut_torn_line(&entries_path(dir))?;
        Ok(Journal { dir: dir.to_owned(), file: append(&done_path(dir))? })
    }

    /// The destination has answered; `refused` says why not.
    pub fn add(&mut self, id: u64, refused: Option<String>) -> Result<(), SpoolError> {
        write_line(&mut self.file, &Done { id, refused }).map_err(failed("write", &done_path(&self.dir)))
    }

    /// Takes accepted entries out of the file and gives refused ones their new reason.
    pub fn finish(self) -> Result<(), SpoolError> {
        settle(&self.dir)
    }
}

/// Folds a journal into the entries; the file is replaced atomically.
fn settle(dir: &Path) -> Result<(), SpoolError> {
    let (path, done) = (entries_path(dir), done_path(dir));
    if !done.exists() {
        return Ok(());
    }
    let beside = dir.join("quarantine.new");
    let left = rewrite(dir, &beside).inspect_err(|_| {
        // On a full disk it would hold the room that is lacking.
        let _ = fs::remove_file(&beside);
    })?;
    fs::rename(&beside, &path).map_err(failed("replace", &path))?;
    if left == 0 {
        fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    // Only now: should we die before, the journal names entries that are gone, which does no harm.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))?;
    fs::remove_file(&done).map_err(failed("remove", &done))
}

/// Writes the entries that still wait to this file; returns how many they are.
fn rewrite(dir: &Path, beside: &Path) -> Result<u64, SpoolError> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(beside);
    let mut out = BufWriter::new(file.map_err(failed("create", beside))?);
    let mut left = 0u64;
    for entry in waiting(dir)? {
        serde_json::to_writer(&mut out, &entry?)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"))
            .map_err(failed("write", beside))?;
        left += 1;
    }
    let file = out.into_inner().map_err(|error| failed("write", beside)(error.into_error()))?;
    file.sync_all().map_err(failed("sync", beside))?;
    Ok(left)
}

/// The objects of a file of JSON lines; none when there is no file. An incomplete last line is not one.
fn lines<T: for<'a> Deserialize<'a>>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<T, SpoolError>> + use<T>, SpoolError> {
    let mut reader = match File::open(path) {
        Ok(file) => Some(BufReader::new(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("open", path)(error)),
    };
    let path = path.to_owned();
    Ok(std::iter::from_fn(move || {
        let mut line = Vec::new();
        match reader.as_mut()?.read_until(b'\n', &mut line) {
            Ok(_) if !line.ends_with(b"\n") => None,
            Ok(_) => Some(serde_json::from_slice(&line).map_err(|error| failed("read", &path)(error.into()))),
            Err(error) => Some(Err(failed("read", &path)(error))),
        }
    }))
}

/// A crash may have left half a line: its batch was not confirmed and comes again.
fn cut_torn_line(path: &Path) -> Result<(), SpoolError> {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return Ok(()) };
    let mut reader = BufReader::new(&file);
    let (mut whole, mut line) = (0u64, Vec::new());
    loop {
        line.clear();
        let len = reader.read_until(b'\n', &mut line).map_err(failed("read", path))?;
        if line.ends_with(b"\n") {
            whole += len as u64;
        } else {
            return if len == 0 { Ok(()) } else { file.set_len(whole).map_err(failed("cut", path)) };
        }
    }
}

fn append(path: &Path) -> Result<File, SpoolError> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(failed("open", path))
}

fn write_line(file: &mut File, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}

fn entries_path(dir: &Path) -> PathBuf {
    dir.join("quarantine.jsonl")
}

/// The destination has read an entry and refused it: on a full disk there must be room for what nobody else has any more. Where it
/// cannot be had now, a full disk is said when the entry comes.
fn keep_room(dir: &Path) {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(room_path(dir));
    if let Ok(file) = file {
        let _ = fallocate(&file, FallocateFlags::empty(), 0, ROOM);
    }
}

/// Lets go of the room: the migration is over.
pub fn forget_room(dir: &Path) {
    let _ = fs::remove_file(room_path(dir));
}

fn room_path(dir: &Path) -> PathBuf {
    dir.join("quarantine.room")
}

fn read_path(dir: &Path) -> PathBuf {
    dir.join("quarantine.read")
}

fn done_path(dir: &Path) -> PathBuf {
    dir.join("quarantine.done")
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> SpoolError + use<> {
    let path = path.to_owned();
    move |cause| SpoolError { action, path: path.clone(), cause }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use super::*;

    fn keys(dir: &Path) -> Vec<String> {
        waiting(dir).unwrap().map(|entry| entry.unwrap().key).collect()
    }

    #[test]
    fn entries_are_counted_again_after_a_restart_and_a_torn_one_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::open(dir.path()).unwrap();
        assert_eq!(quarantine.count(), 0);
        quarantine.add("source", 3, b"k\xff", "because", b"*1\r\n$4\r\nPING\r\n").unwrap();
        quarantine.add("source", 3, b"l", "because", b"").unwrap();
        append(quarantine.path()).unwrap().write_all(b"{\"unix_ms\":1,").unwrap();
        drop(quarantine);
        let quarantine = Quarantine::open(dir.path()).unwrap();
        assert_eq!(quarantine.count(), 2);
        quarantine.add("source", 0, b"m", "because", b"x").unwrap();
        assert_eq!(quarantine.count(), 3);
        let entries: Vec<QuarantinedEntry> = waiting(dir.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(entries[0].command().unwrap(), b"*1\r\n$4\r\nPING\r\n");
        assert_eq!((entries[0].key.as_str(), entries[1].command()), ("k\\xff", None));
        assert!(entries.windows(2).all(|pair| pair[0].id < pair[1].id));
    }

    #[test]
    fn another_full_sync_makes_what_was_set_aside_of_its_source_void() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::open(dir.path()).unwrap();
        quarantine.add("a", 0, b"old", "because", b"x").unwrap();
        quarantine.add("b", 0, b"other", "because", b"x").unwrap();
        let before = quarantine.last_id();
        quarantine.add("a", 0, b"new", "because", b"x").unwrap();
        assert_eq!(quarantine.supersede("a", before).unwrap(), 1);
        quarantine.add("a", 0, b"newest", "because", b"x").unwrap();
        assert_eq!(
            (keys(dir.path()), quarantine.count()),
            (vec!["other".into(), "new".into(), "newest".into()], 3)
        );
        assert_eq!(quarantine.supersede("c", u64::MAX).unwrap(), 0);
    }

    #[test]
    fn a_replay_is_folded_in_at_its_end_or_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::open(dir.path()).unwrap();
        for key in ["a", "b", "c"] {
            quarantine.add("source", 0, key.as_bytes(), "first", b"x").unwrap();
        }
        let ids: Vec<u64> = waiting(dir.path()).unwrap().map(|entry| entry.unwrap().id).collect();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.add(ids[0], None).unwrap();
        journal.add(ids[1], Some("again".into())).unwrap();
        // Killed here: nothing accepted is shown or sent again.
        drop(journal);
        assert_eq!(keys(dir.path()), ["b", "c"]);
        assert_eq!(Quarantine::open(dir.path()).unwrap().count(), 2);
        assert!(!done_path(dir.path()).exists());
        assert_eq!(waiting(dir.path()).unwrap().next().unwrap().unwrap().reason, "again");
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.add(ids[1], None).unwrap();
        journal.add(ids[2], None).unwrap();
        journal.finish().unwrap();
        assert_eq!(keys(dir.path()), [""; 0]);
        forget_room(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn entries_of_a_version_without_ids_can_be_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let line = r#"{"unix_ms":1,"source":"s","db":0,"key":"k","reason":"r","command_hex":"2a"}"#;
        fs::write(entries_path(dir.path()), format!("{line}\n{line}\n")).unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.add(1, None).unwrap();
        journal.finish().unwrap();
        let left: Vec<QuarantinedEntry> = waiting(dir.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(left.iter().map(|entry| entry.id).collect::<Vec<_>>(), [2]);
    }
}
