//! Sets of hashes in files: sorted outside of memory, merged, and subtracted from each other as they are read.
//!
//! A file is a plain sequence of records of 16 bytes, the most significant byte first; an incomplete one at its end (a crash)
//! is not read.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A key of a database, as it is remembered.
pub type KeyHash = u128;

/// Bytes of a record.
pub const RECORD: usize = 16;
/// Hashes sorted at a time: 8 MiB.
const RUN: usize = 512 * 1024;
/// Memory for reading all runs at once.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// Reads all these files and returns their hashes in ascending order, each once. Temporary files in `dir` hold what does
/// not fit into memory; they have no name any more when this returns, so that no crash can leave them behind.
pub fn sort(dir: &Path, files: &[PathBuf]) -> io::Result<Merge> {
    let mut runs = Vec::new();
    let mut run: Vec<KeyHash> = Vec::new();
    for path in files {
        let mut records = Records::new(File::open(path)?, 64 * 1024);
        while let Some(hash) = records.next()? {
            run.push(hash);
            if run.len() == RUN {
                runs.push(write_run(dir, &mut run)?);
            }
        }
    }
    if !run.is_empty() {
        runs.push(write_run(dir, &mut run)?);
    }
    Merge::new(runs)
}

fn write_run(dir: &Path, run: &mut Vec<KeyHash>) -> io::Result<File> {
    run.sort_unstable();
    run.dedup();
    let mut file = BufWriter::new(nameless(dir)?);
    for hash in run.drain(..) {
        file.write_all(&hash.to_be_bytes())?;
    }
    let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// A file that exists only as long as it is open.
fn nameless(dir: &Path) -> io::Result<File> {
    let path = dir.join("ledger-run");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// The records of one file, in the file's order.
struct Records(BufReader<File>);

impl Records {
    fn new(file: File, buffer: usize) -> Self {
        Records(BufReader::with_capacity(buffer, file))
    }

    fn next(&mut self) -> io::Result<Option<KeyHash>> {
        let mut record = [0; RECORD];
        match self.0.read_exact(&mut record) {
            Ok(()) => Ok(Some(KeyHash::from_be_bytes(record))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Several sorted files read as one.
pub struct Merge {
    runs: Vec<Records>,
    heads: BinaryHeap<Reverse<(KeyHash, usize)>>,
}

impl Merge {
    fn new(files: Vec<File>) -> io::Result<Merge> {
        let buffer = (READ_BYTES / files.len().max(1)).clamp(4 * 1024, 256 * 1024);
        let mut merge = Merge { runs: Vec::new(), heads: BinaryHeap::new() };
        for file in files {
            merge.runs.push(Records::new(file, buffer));
            merge.advance(merge.runs.len() - 1)?;
        }
        Ok(merge)
    }

    fn advance(&mut self, run: usize) -> io::Result<()> {
        if let Some(hash) = self.runs[run].next()? {
            self.heads.push(Reverse((hash, run)));
        }
        Ok(())
    }
}

impl Iterator for Merge {
    type Item = io::Result<KeyHash>;

    fn next(&mut self) -> Option<io::Result<KeyHash>> {
        let Reverse((hash, run)) = self.heads.pop()?;
        if let Err(error) = self.advance(run) {
            return Some(Err(error));
        }
        while let Some(&Reverse((same, run))) = self.heads.peek()
            && same == hash
        {
            self.heads.pop();
            if let Err(error) = self.advance(run) {
                return Some(Err(error));
            }
        }
        Some(Ok(hash))
    }
}

/// What `left` has and `right` has not; both ascending.
pub struct Minus<L, R> {
    left: L,
    right: R,
    /// The last one taken from `right`.
    without: Option<KeyHash>,
}

impl<L, R> Minus<L, R> {
    /// Both must be ascending and without repetition.
    pub fn new(left: L, right: R) -> Self {
        Minus { left, right, without: None }
    }
}

impl<L, R> Iterator for Minus<L, R>
where
    L: Iterator<Item = io::Result<KeyHash>>,
    R: Iterator<Item = io::Result<KeyHash>>,
{
    type Item = io::Result<KeyHash>;

    fn next(&mut self) -> Option<io::Result<KeyHash>> {
        loop {
            let hash = match self.left.next()? {
                Ok(hash) => hash,
                Err(error) => return Some(Err(error)),
            };
            while self.without.is_none_or(|without| without < hash) {
                match self.right.next() {
                    Some(Ok(without)) => self.without = Some(without),
                    Some(Err(error)) => return Some(Err(error)),
                    None => return Some(Ok(hash)),
                }
            }
            if self.without != Some(hash) {
                return Some(Ok(hash));
            }
        }
    }
}

/// Writes ascending hashes to a new file.
pub fn write(path: &Path, hashes: impl Iterator<Item = io::Result<KeyHash>>) -> io::Result<u64> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut bytes = 0;
    for hash in hashes {
        out.write_all(&hash?.to_be_bytes())?;
        bytes += RECORD as u64;
    }
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()?;
    Ok(bytes)
}

/// Entries of a [`Lookup`]'s index: 2 MiB.
const INDEX: u64 = 128 * 1024;
/// Records read at once: 4 KiB.
const BLOCK: u64 = 256;

/// A sorted set on disk that can be asked for single hashes. Where the set is smaller than 33 million, each question costs
/// one read.
pub struct Lookup {
    file: File,
    records: u64,
    /// Every `stride`th record.
    index: Vec<KeyHash>,
    stride: u64,
}

impl Lookup {
    /// Writes the set; hashes must be ascending.
    pub fn new(dir: &Path, hashes: impl Iterator<Item = io::Result<KeyHash>>) -> io::Result<Lookup> {
        let mut out = BufWriter::new(nameless(dir)?);
        let (mut records, mut stride, mut index) = (0, BLOCK, Vec::new());
        for hash in hashes {
            let hash = hash?;
            out.write_all(&hash.to_be_bytes())?;
            if records % stride == 0 {
                if index.len() as u64 == INDEX {
                    index = index.into_iter().step_by(2).collect();
                    stride *= 2;
                }
                // After doubling, this record may lie between two entries.
                if records % stride == 0 {
                    index.push(hash);
                }
            }
            records += 1;
        }
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(Lookup { file, records, index, stride })
    }

    /// Whether it holds this one.
    pub fn contains(&self, hash: KeyHash) -> io::Result<bool> {
        let Some(before) = self.index.partition_point(|first| *first <= hash).checked_sub(1) else {
            return Ok(false);
        };
        let mut low = before as u64 * self.stride;
        let mut high = self.records.min(low + self.stride);
        while high - low > BLOCK {
            let middle = low + (high - low) / 2;
            let mut record = [0; RECORD];
            self.file.read_exact_at(&mut record, middle * RECORD as u64)?;
            match KeyHash::from_be_bytes(record).cmp(&hash) {
                std::cmp::Ordering::Equal => return Ok(true),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        let mut block = [0; BLOCK as usize * RECORD];
        let Some(block) = block.get_mut(..(high - low) as usize * RECORD) else { return Ok(false) };
        self.file.read_exact_at(block, low * RECORD as u64)?;
        let (records, _) = block.as_chunks::<RECORD>();
        Ok(records.binary_search(&hash.to_be_bytes()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use std::collections::BTreeSet;

    use super::*;

    fn file(dir: &Path, name: &str, hashes: impl IntoIterator<Item = KeyHash>, torn: &[u8]) -> PathBuf {
        let path = dir.join(name);
        let mut bytes: Vec<u8> = hashes.into_iter().flat_map(KeyHash::to_be_bytes).collect();
        bytes.extend_from_slice(torn);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Spread like hashes, and different for every number.
    fn scattered(number: u128) -> KeyHash {
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
    }

    fn all(hashes: impl Iterator<Item = io::Result<KeyHash>>) -> Vec<KeyHash> {
        hashes.map(Result::unwrap).collect()
    }

    #[test]
    fn more_than_one_run_is_sorted_merged_and_subtracted() {
        let dir = tempfile::tempdir().unwrap();
        let count = RUN as u128 + 1_000;
        let first = file(dir.path(), "a", (0..count).map(scattered), b"torn");
        let second = file(dir.path(), "b", (count - 10..count + 10).map(scattered), b"");
        let less = file(dir.path(), "c", (5..count + 5).rev().map(scattered), b"123456789012345");
        let sorted = all(sort(dir.path(), &[first.clone(), second.clone()]).unwrap());
        let expected: BTreeSet<_> = (0..count + 10).map(scattered).collect();
        assert!(sorted.iter().eq(expected.iter()), "{} and {}", sorted.len(), expected.len());
        let left = sort(dir.path(), &[first, second]).unwrap();
        let right = sort(dir.path(), std::slice::from_ref(&less)).unwrap();
        let rest: BTreeSet<_> = all(Minus::new(left, right)).into_iter().collect();
        let expected: BTreeSet<_> = (0..5).chain(count + 5..count + 10).map(scattered).collect();
        assert_eq!(rest, expected);
        let lookup = Lookup::new(dir.path(), sort(dir.path(), &[less]).unwrap()).unwrap();
        for number in [4, 5, 6, count / 2, count + 4, count + 5] {
            let expected = (5..count + 5).contains(&number);
            assert_eq!(lookup.contains(scattered(number)).unwrap(), expected, "{number}");
        }
        let left_behind: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left_behind.len(), 3, "{left_behind:?}");
    }

    #[test]
    fn nothing_minus_something_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let some = file(dir.path(), "a", [3, 1, 2, 3], b"");
        let none = || sort(dir.path(), &[]).unwrap();
        let some = || sort(dir.path(), std::slice::from_ref(&some)).unwrap();
        assert_eq!(all(Minus::new(none(), some())), []);
        assert_eq!(all(Minus::new(some(), none())), [1, 2, 3]);
        assert_eq!(all(Minus::new(some(), some())), []);
        assert!(!Lookup::new(dir.path(), none()).unwrap().contains(1).unwrap());
    }
}
