//! What was copied for commands on keys of several slots, kept on this disk until the commands are confirmed, and for some time after.
//!
//! The sources of such a command may go on as soon as its result is written. If the node with the result then loses it, the
//! destination's own state is no longer the one from which it was computed; here it still stands.
//!
//! Confirmed is not for good: a replica that lacked the last writes may be promoted after that. The spool can still be read from before
//! them, because whole segments are given back; so these files go only when they have grown: the last 8 MiB at least stay.
//!
//! ```text
//!  copies-1  copies-2     records: generation, offset, length, checksum, commands in RESP
//! ```
//!
//! Not synced to the disk: the records are needed when a node of the destination fails, not when this machine does.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::super::batch::Place;
use super::super::spool::SpoolError;

/// A file this long is followed by another one.
const FILE_BYTES: u64 = 8 * 1024 * 1024;
/// Generation, offset, length, checksum.
const HEAD: usize = 32;

/// The copies of one source.
pub struct Journal {
    dir: PathBuf,
    /// The file that is appended to.
    file: Option<File>,
    /// Bytes and the last place in it.
    len: u64,
    last: Option<Place>,
    /// The last place of the file before it, while that is kept.
    former: Option<Place>,
    /// What begins before it is confirmed on all nodes.
    confirmed: Option<Place>,
    /// What a former process, or the time before applying began again, has left.
    found: BTreeMap<Place, Vec<u8>>,
}

impl Journal {
    /// The journal in this folder. What begins before `from` is confirmed.
    pub fn open(dir: &Path, from: Option<Place>) -> Result<Journal, SpoolError> {
        let mut found = BTreeMap::new();
        let [last, former] = [1, 2].map(|number| {
            let path = path(dir, number);
            let failed = |action| {
                let path = path.clone();
                move |cause| SpoolError { action, path, cause }
            };
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(cause) => return Err(failed("read")(cause)),
            };
            let (whole, last) = read(&bytes, from, &mut found);
            if whole < bytes.len() {
                // A torn record would hide what follows it.
                let file = OpenOptions::new().write(true).open(&path).map_err(failed("open"))?;
                file.set_len(whole as u64).map_err(failed("cut"))?;
            }
            Ok(last)
        });
        // The file goes on as it is: to write it anew would take room, and a full disk is emptied by what is begun here.
        Ok(Journal {
            dir: dir.to_owned(),
            file: None,
            len: 0,
            last: last?,
            former: former?,
            confirmed: None,
            found,
        })
    }

    /// Removes it.
    pub fn forget(dir: &Path) {
        for number in [1, 2] {
            let _ = fs::remove_file(path(dir, number));
        }
    }

    /// What was copied for the command at this place.
    pub fn find(&self, place: Place) -> Option<&[u8]> {
        self.found.get(&place).map(Vec::as_slice)
    }

    /// Keeps what was copied for the command at this place.
    pub fn add(&mut self, place: Place, commands: &[u8]) -> Result<(), SpoolError> {
        let current = path(&self.dir, 1);
        let failed = |action| {
            let path = current.clone();
            move |cause| SpoolError { action, path, cause }
        };
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&current);
                let file = file.map_err(failed("open"))?;
                self.len = file.metadata().map_err(failed("examine"))?.len();
                self.file.insert(file)
            }
        };
        let record = record(place, commands);
        if let Err(cause) = file.write_all(&record) {
            // Half a record would hide those behind it.
            let _ = file.set_len(self.len);
            return Err(failed("write")(cause));
        }
        self.len += record.len() as u64;
        self.last = Some(place);
        let former_goes = self.former.is_none_or(|last| self.confirmed.is_some_and(|place| last < place));
        if self.len >= FILE_BYTES && former_goes {
            fs::rename(&current, path(&self.dir, 2)).map_err(failed("rename"))?;
            (self.file, self.len, self.former) = (None, 0, self.last);
        }
        Ok(())
    }

    /// Everything that begins before this place is confirmed on all nodes.
    pub fn confirmed(&mut self, place: Place) {
        self.found.retain(|kept, _| *kept >= place);
        self.confirmed = Some(place);
    }
}

fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("copies-{number}"))
}

fn record(place: Place, commands: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD + commands.len());
    for number in [place.generation, place.at, commands.len() as u64, xxh3_64(commands)] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    record.extend_from_slice(commands);
    record
}

/// Reads records as far as they are whole: so many bytes. Returns the last place among them, too.
fn read(bytes: &[u8], from: Option<Place>, found: &mut BTreeMap<Place, Vec<u8>>) -> (usize, Option<Place>) {
    let (mut whole, mut last) = (0, None);
    while let Some((head, rest)) = bytes.get(whole..).and_then(<[u8]>::split_first_chunk::<HEAD>) {
        let number = |at: usize| {
            let digits = head.get(at..at + 8).and_then(|digits| digits.try_into().ok());
            digits.map_or(0, u64::from_le_bytes)
        };
        let place = Place { generation: number(0), stream: true, at: number(8) };
        let Some(commands) = usize::try_from(number(16)).ok().and_then(|len| rest.get(..len)) else { break };
        if xxh3_64(commands) != number(24) {
            break;
        }
        if from.is_none_or(|from| place >= from) {
            found.insert(place, commands.to_vec());
        }
        whole += HEAD + commands.len();
        last = last.max(Some(place));
    }
    (whole, last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn place(at: u64) -> Place {
        Place { generation: 1, stream: true, at }
    }

    #[test]
    fn what_was_added_is_found_until_it_is_confirmed() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), None).unwrap();
        journal.add(place(10), b"ten").unwrap();
        journal.add(place(20), b"twenty").unwrap();
        drop(journal);
        // A torn record at the end hides nothing before it.
        let torn = OpenOptions::new().append(true).open(dir.path().join("copies-1"));
        torn.unwrap().write_all(&[7; 40]).unwrap();
        let inode = || fs::metadata(path(dir.path(), 1)).unwrap().ino();
        let before = inode();
        let mut journal = Journal::open(dir.path(), Some(place(15))).unwrap();
        assert_eq!(inode(), before, "a full disk has no room for a new one");
        journal.add(place(30), b"thirty").unwrap();
        drop(journal);
        let mut journal = Journal::open(dir.path(), Some(place(15))).unwrap();
        assert_eq!(journal.find(place(30)), Some(&b"thirty"[..]));
        assert_eq!((journal.find(place(10)), journal.find(place(20))), (None, Some(&b"twenty"[..])));
        journal.confirmed(place(25));
        assert_eq!(journal.find(place(20)), None);
        drop(journal);
        // A node that is promoted without it wants it again.
        let journal = Journal::open(dir.path(), Some(place(15))).unwrap();
        assert_eq!(journal.find(place(20)), Some(&b"twenty"[..]));
    }

    #[test]
    fn files_do_not_grow_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path(), None).unwrap();
        let large = vec![b'x'; 1 << 20];
        for at in 0..60 {
            journal.add(place(at), &large).unwrap();
            journal.confirmed(place(at.saturating_sub(2)));
        }
        let bytes: u64 =
            [1, 2].iter().filter_map(|n| fs::metadata(path(dir.path(), *n)).ok()).map(|it| it.len()).sum();
        assert!(bytes < 3 * FILE_BYTES, "{bytes}");
        assert_eq!(Journal::open(dir.path(), Some(place(59))).unwrap().find(place(59)), Some(&large[..]));
    }
}
