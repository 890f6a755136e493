#![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

use std::io::Read;

use super::*;

fn replid() -> Replid {
    Replid::parse(&"ab".repeat(20)).unwrap()
}

#[test]
fn bytes_are_read_while_they_arrive_and_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path()).unwrap();
    let mut writer = SpoolWriter::new(spool.clone(), u64::MAX);
    writer.begin_full_sync(&replid(), 100).unwrap();
    writer.append_rdb(b"REDIS").unwrap();
    let mut reader = RdbReader::open(&spool, 1, 0).unwrap();
    let mut half = [0; 5];
    reader.read_exact(&mut half).unwrap();
    let waiting = std::thread::spawn(move || {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).map(|_| rest)
    });
    writer.append_rdb(b"0011mark").unwrap();
    writer.finish_rdb(9).unwrap();
    let rest = waiting.join().unwrap().unwrap();
    assert!(rest == b"0011" || rest == b"0011mark", "a mark may have been read, never less: {rest:?}");

    writer.append_stream(b"hello ", 1).unwrap();
    writer.append_stream(b"world", 2).unwrap();
    assert_eq!((spool.received(), spool.durable()), (111, 100));
    writer.pending_sync().unwrap().run().unwrap();
    assert_eq!(spool.durable(), 111);
    drop((writer, spool));

    let spool = Spool::open(dir.path()).unwrap();
    assert_eq!(spool.manifest().unwrap().rdb_len, Some(9));
    assert_eq!(spool.received(), 111);
    let mut writer = SpoolWriter::new(spool.clone(), u64::MAX);
    writer.append_stream(b"!", 3).unwrap();
    let mut buffer = Vec::new();
    StreamReader::new(&spool, 1, 106).fill(&mut buffer, 100, true).unwrap();
    assert_eq!(buffer, b"world!");
}

#[test]
fn a_new_full_sync_ends_old_readers_and_leaves_no_old_files() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path()).unwrap();
    let mut writer = SpoolWriter::new(spool.clone(), u64::MAX);
    writer.begin_full_sync(&replid(), 0).unwrap();
    writer.append_stream(b"old", 1).unwrap();
    let mut old = StreamReader::new(&spool, 1, 3);
    let waiting = std::thread::spawn(move || old.fill(&mut Vec::new(), 10, true));
    writer.begin_full_sync(&replid(), 500).unwrap();
    assert!(matches!(waiting.join().unwrap(), Err(StreamReadError::End(ReadEnd::Superseded))));
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_str().unwrap().starts_with("g1-")), "{names:?}");
}

/// Freed are whole segments; the last one stays until it is closed because there is no room.
#[test]
fn confirmed_segments_are_freed_and_the_last_one_stays_until_it_is_closed() {
    const SEGMENT: u64 = 256 * 1024;
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(dir.path()).unwrap();
    let mut writer = SpoolWriter::new(spool.clone(), 16 * SEGMENT);
    writer.begin_full_sync(&replid(), 0).unwrap();
    writer.finish_rdb(0).unwrap();
    spool.release_rdb().unwrap();
    let on_disk = SEGMENT + 2 * marks::MARK_LEN;
    for _ in 0..3 {
        writer.append_stream(&vec![b'x'; SEGMENT as usize], 1).unwrap();
    }
    assert_eq!(spool.usage(), (3 * on_disk, 3));
    spool.release_stream(2 * SEGMENT - 1).unwrap();
    assert_eq!(spool.usage().1, 2);
    spool.release_stream(3 * SEGMENT).unwrap();
    assert_eq!(spool.usage(), (on_disk, 1));
    let mut buffer = Vec::new();
    let mut reader = StreamReader::new(&spool, 1, 3);
    assert!(matches!(reader.fill(&mut buffer, 10, true), Err(StreamReadError::Gone { offset: 3 })));
    writer.close_segment().unwrap();
    assert_eq!(spool.usage(), (0, 0));
    assert_eq!(spool.received(), 3 * SEGMENT);
    writer.append_stream(b"more", 2).unwrap();
    StreamReader::new(&spool, 1, 3 * SEGMENT).fill(&mut buffer, 10, true).unwrap();
    assert_eq!(buffer, b"more");
}

/// A spool that holds `appends` of `len` bytes each after offset 0, at times 1000, 1001 …; and what it holds.
fn filled(dir: &Path, appends: u64, len: usize) -> (Arc<Spool>, SpoolWriter, Vec<u8>) {
    let spool = Spool::open(dir).unwrap();
    let mut writer = SpoolWriter::new(spool.clone(), 16 * 256 * 1024);
    writer.begin_full_sync(&replid(), 0).unwrap();
    writer.append_rdb(b"rdb").unwrap();
    writer.finish_rdb(3).unwrap();
    let mut all = Vec::new();
    for number in 0..appends {
        let bytes: Vec<u8> = (0..len).map(|at| (at as u64 * 31 + number) as u8).collect();
        writer.append_stream(&bytes, 1000 + number).unwrap();
        all.extend(bytes);
    }
    (spool, writer, all)
}

fn read_all(spool: &Arc<Spool>, from: u64, max: usize) -> Result<Vec<u8>, StreamReadError> {
    let mut reader = StreamReader::new(spool, 1, from);
    let mut all = Vec::new();
    while reader.fill(&mut all, max, false)? > 0 {}
    Ok(all)
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_appended_is_read_from_any_offset_and_its_age_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, _writer, all) = filled(dir.path(), 20, 40_000);
    assert!(spool.usage().1 > 3, "several segments");
    for from in [0, 1, 39_999, 40_000, 40_001, 280_000, 799_999] {
        assert!(read_all(&spool, from, 70_000).unwrap() == all[from as usize..], "from {from}");
        let mut reader = StreamReader::new(&spool, 1, from);
        reader.fill(&mut Vec::new(), 1, false).unwrap();
        assert_eq!(reader.received_at(from + 1), Some(1000 + from / 40_000), "from {from}");
    }
    for offset in [1, 40_000, 40_001, 799_999, 800_000] {
        assert_eq!(spool.received_at(offset), Some(1000 + (offset - 1) / 40_000), "{offset}");
    }
    assert_eq!((spool.received_at(0), spool.received_at(800_001)), (None, None));
}

/// Wherever a crash cut the two files of the last segment, the next start keeps the appends that are whole, and goes on there.
#[test]
fn a_torn_tail_is_cut_at_the_last_append_that_agrees() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 5, 1_000));
    let bytes = fs::read(segment_path(dir.path(), 1, 0)).unwrap();
    let marks = fs::read(marks_path(dir.path(), 1, 0)).unwrap();
    for (bytes_len, marks_len, kept) in [
        (5_000, 144, 5_000),
        (4_999, 144, 4_000),
        (5_000, 143, 4_000),
        (2_500, 144, 2_000),
        (5_000, 24, 0),
        (5_000, 23, 0),
        (0, 144, 0),
        (0, 0, 0),
    ] {
        fs::write(segment_path(dir.path(), 1, 0), &bytes[..bytes_len]).unwrap();
        fs::write(marks_path(dir.path(), 1, 0), &marks[..marks_len]).unwrap();
        let spool = Spool::open(dir.path()).unwrap();
        assert_eq!((spool.received(), spool.durable()), (kept, kept), "{bytes_len} {marks_len}");
        let torn = spool.take_torn();
        let cut = bytes_len as u64 - kept;
        assert_eq!(torn, (cut > 0).then_some(Torn { kept_to: kept, bytes: cut }), "{bytes_len} {marks_len}");
        assert!(read_all(&spool, 0, 700).unwrap() == bytes[..kept as usize]);
        let mut writer = SpoolWriter::new(spool.clone(), u64::MAX);
        writer.append_stream(b"again", 2_000).unwrap();
        assert!(read_all(&spool, kept, 700).unwrap() == b"again", "{bytes_len} {marks_len}");
    }
}

#[test]
fn garbage_behind_the_last_append_and_changed_bytes_in_it_are_cut_off() {
    type Change = (&'static str, fn(&Path), u64);
    let changes: [Change; 5] = [
        ("garbage bytes", |dir| change(&segment_path(dir, 1, 0), |bytes| bytes.extend([7; 999])), 5_000),
        ("garbage marks", |dir| change(&marks_path(dir, 1, 0), |bytes| bytes.extend([0xFF; 100])), 5_000),
        ("a byte", |dir| change(&segment_path(dir, 1, 0), |bytes| bytes[3_500] ^= 1), 3_000),
        ("a time", |dir| change(&marks_path(dir, 1, 0), |bytes| bytes[24 * 3 + 9] ^= 1), 2_000),
        ("a length", |dir| change(&marks_path(dir, 1, 0), |bytes| bytes[24 * 3 + 6] ^= 1), 2_000),
    ];
    for (name, garble, kept) in changes {
        let dir = tempfile::tempdir().unwrap();
        let (spool, writer, all) = filled(dir.path(), 5, 1_000);
        drop((spool, writer));
        garble(dir.path());
        let spool = Spool::open(dir.path()).unwrap();
        assert_eq!(spool.received(), kept, "{name}");
        assert!(read_all(&spool, 0, 10_000).unwrap() == all[..kept as usize], "{name}");
    }
}

/// Segments that were safe on disk are not read at the start; the reader finds what has happened to them since.
#[test]
fn a_damaged_older_segment_is_named_by_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let (spool, mut writer, all) = filled(dir.path(), 14, 40_000);
    writer.pending_sync().unwrap().run().unwrap();
    for _ in 0..7 {
        writer.append_stream(&[b'y'; 40_000], 5_000).unwrap();
    }
    drop((spool, writer));
    change(&segment_path(dir.path(), 1, 0), |bytes| bytes[100_000] ^= 0x10);
    let spool = Spool::open(dir.path()).unwrap();
    assert_eq!((spool.received(), spool.take_torn()), (21 * 40_000, None));
    let error = read_all(&spool, 0, 1).unwrap_err();
    let text = error.to_string();
    let StreamReadError::Damaged { from: 80_000, to: 120_000, .. } = error else { panic!("{text}") };
    assert!(text.contains("g1-stream-00000000000000000000") && text.contains("Two ways on"), "{text}");
    assert!(read_all(&spool, 280_000, 1 << 20).unwrap()[..280_000] == all[280_000..], "the rest is good");
    // The first way on: everything from the damaged file on is fetched again.
    for segment in [0, 280_000, 560_000] {
        fs::remove_file(segment_path(dir.path(), 1, segment)).unwrap();
    }
    assert_eq!(Spool::open(dir.path()).unwrap().received(), 0);
    drop(spool);

    let dir = tempfile::tempdir().unwrap();
    let (spool, _writer, _) = filled(dir.path(), 14, 40_000);
    fs::remove_file(marks_path(dir.path(), 1, 280_000)).unwrap();
    assert!(read_all(&spool, 0, 1 << 20).unwrap_err().to_string().contains("g1-marks-"));
}

/// What was torn may be what the destination has already: then the stream goes on behind that.
#[test]
fn a_destination_that_has_more_than_the_spool_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), 5, 1_000));
    let spool = Spool::open(dir.path()).unwrap();
    spool.skip_to(7_000).unwrap();
    assert_eq!((spool.received(), spool.durable(), spool.usage().0), (7_000, 7_000, 3));
    SpoolWriter::new(spool.clone(), u64::MAX).append_stream(b"next", 1).unwrap();
    assert!(read_all(&spool, 7_000, 100).unwrap() == b"next");
    drop(spool);
    let spool = Spool::open(dir.path()).unwrap();
    assert_eq!(spool.received(), 7_004);
}
