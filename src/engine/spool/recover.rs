//! What a start makes of the files that a former run left.
//!
//! Segments that were safe on disk when the last one was begun (its marks file says so) are taken as they are; the reader
//! compares them with their marks when it comes to them. The others may end torn: the first byte that does not agree
//! with its mark, and everything behind it, is cut off. The stream is a stream of bytes: PSYNC goes on at any of them, also
//! inside a command, and replay only ever applies whole commands.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use super::marks::{self, MARK_LEN};
use super::{Manifest, Segment, SpoolError, State, failed, marks_path, rdb_path, remove_file, segment_path};

/// A tail that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Offset of the last byte that was kept.
    pub kept_to: u64,
    /// Stream bytes that were cut off.
    pub bytes: u64,
}

impl State {
    /// Takes over what a former run left.
    pub(super) fn recover(&mut self, dir: &Path, manifest: Manifest) -> Result<(), SpoolError> {
        let generation = manifest.generation;
        self.received = manifest.rdb_offset;
        if !manifest.rdb_applied {
            let path = rdb_path(dir, generation);
            match fs::metadata(&path) {
                Ok(metadata) => self.rdb_received = metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("examine", &path)(error)),
            }
        } else {
            self.rdb_received = manifest.rdb_len.unwrap_or(0);
        }
        self.manifest = Some(manifest);
        let found = segments(dir, generation)?;
        let safe = safe_offset(dir, generation, &found)?;
        let mut cut = None;
        for mut segment in found {
            let on_disk = segment.len;
            // A gap cannot come from us; what follows it cannot be used.
            if cut.is_none()
                && self.segments.back().is_some_and(|last| last.start + last.len != segment.start)
            {
                cut = Some(0);
            }
            if let Some(bytes) = &mut cut {
                *bytes += on_disk;
                segment.len = 0;
            } else if segment.start + segment.len > safe {
                self.received_ms = take_what_agrees(dir, generation, &mut segment)?.or(self.received_ms);
                cut = Some(on_disk - segment.len).filter(|bytes| *bytes > 0);
            }
            if segment.len == 0 {
                remove_file(&segment_path(dir, generation, segment.start))?;
                remove_file(&marks_path(dir, generation, segment.start))?;
                continue;
            }
            self.received = segment.start + segment.len;
            self.segments.push_back(segment);
        }
        self.durable = self.received;
        self.torn = cut.map(|bytes| Torn { kept_to: self.received, bytes });
        Ok(())
    }
}

/// The segments of a generation, by offset, with the lengths of their files.
fn segments(dir: &Path, generation: u64) -> Result<Vec<Segment>, SpoolError> {
    let prefix = format!("g{generation}-stream-");
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        let name = entry.file_name();
        let Some(start) = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.parse::<u64>().ok())
        else {
            continue;
        };
        let len = entry.metadata().map_err(failed("examine", &entry.path()))?.len();
        let marks = fs::metadata(marks_path(dir, generation, start)).map_or(0, |metadata| metadata.len());
        found.push(Segment { start, len, marks: marks - marks % MARK_LEN });
    }
    found.sort_by_key(|segment| segment.start);
    Ok(found)
}

/// The offset up to which everything was safe on disk when the last segment was begun.
fn safe_offset(dir: &Path, generation: u64, found: &[Segment]) -> Result<u64, SpoolError> {
    for segment in found.iter().rev() {
        let path = marks_path(dir, generation, segment.start);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("open", &path)(error)),
        };
        if let Some(safe) = marks::read_header(&file).map_err(failed("read", &path))? {
            return Ok(safe);
        }
    }
    Ok(0)
}

/// Cuts a segment behind its last byte that agrees and makes the rest safe on disk; returns when that byte arrived.
fn take_what_agrees(dir: &Path, generation: u64, segment: &mut Segment) -> Result<Option<u64>, SpoolError> {
    let path = segment_path(dir, generation, segment.start);
    let marks_path = marks_path(dir, generation, segment.start);
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let bytes = open(&path).map_err(failed("open", &path))?;
    let marks = match open(&marks_path) {
        Ok(marks) => marks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            segment.len = 0;
            return Ok(None);
        }
        Err(error) => return Err(failed("open", &marks_path)(error)),
    };
    if marks::read_header(&marks).map_err(failed("read", &marks_path))?.is_none() {
        segment.len = 0;
        return Ok(None);
    }
    let agreed = marks::verify(&bytes, &marks, segment.start).map_err(failed("read", &path))?;
    bytes.set_len(agreed.len).and_then(|()| bytes.sync_data()).map_err(failed("cut", &path))?;
    marks.set_len(agreed.marks).and_then(|()| marks.sync_data()).map_err(failed("cut", &marks_path))?;
    (segment.len, segment.marks) = (agreed.len, agreed.marks);
    Ok(agreed.unix_ms)
}
