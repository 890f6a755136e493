//! The disk between both sides: full while the stream or the RDB arrives, at its own limit, torn by a crash, damaged. Nothing is
//! lost, the source keeps its replica, the words are clear, and it goes on by itself when there is room again.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::load::{Load, Writer};
use crate::support::shakedeck::Setup;
use crate::support::{Client, Options, Random, Server, Shakedeck, compare, wait_until};
use serde_json::Value;
use tempfile::TempDir;

const MINUTES: Duration = Duration::from_secs(180);
/// Promised in the README; the rest of the process included.
const MEMORY: u64 = 64 << 20;

/// A small file system in place of the data directory of a run.
struct SmallDisk {
    run: Arc<TempDir>,
    path: PathBuf,
}

impl SmallDisk {
    fn mount(size: &str) -> Option<SmallDisk> {
        let run = Arc::new(tempfile::Builder::new().prefix("shakedeck-run-").tempdir().unwrap());
        let path = run.path().join("data");
        std::fs::create_dir(&path).unwrap();
        if !mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs"], &path) {
            support::skip("a small file system cannot be mounted here (needs root and tmpfs)");
            return None;
        }
        Some(SmallDisk { run, path })
    }

    /// One whose files and directories take blocks, as on a server.
    fn ext4(size: u64) -> Option<SmallDisk> {
        let run = Arc::new(tempfile::Builder::new().prefix("shakedeck-run-").tempdir().unwrap());
        let (path, image) = (run.path().join("data"), run.path().join("image"));
        std::fs::create_dir(&path).unwrap();
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        // Without blocks that root alone may use.
        let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image).output();
        let made = made.is_ok_and(|output| output.status.success());
        if !made || !mount(&["-o", "loop", image.to_str().unwrap()], &path) {
            // The same is seen on a tmpfs everywhere.
            support::note("not on ext4: it cannot be mounted here (needs root, mkfs.ext4 and loop devices)");
            return None;
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        Some(SmallDisk { run, path })
    }

    /// Takes every byte that is left.
    fn fill(&self) {
        let mut file = std::fs::OpenOptions::new();
        let mut file = file.append(true).create(true).open(self.path.join("filler")).unwrap();
        for piece in [1 << 20, 4_096, 1] {
            while file.write_all(&vec![b'x'; piece]).is_ok() {}
        }
        assert!(file.sync_all().is_ok());
    }

    fn grow(&self, size: &str) {
        assert!(mount(&["-o", &format!("remount,size={size}")], &self.path), "remount");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn mount(words: &[&str], at: &Path) -> bool {
    Command::new("mount").args(words).arg(at).output().is_ok_and(|output| output.status.success())
}

/// A source whose backlog would not outlast a lost link, and a destination.
fn pair() -> Option<(Server, Server)> {
    support::pair(Options::new().config("client-output-buffer-limit", "replica 256mb 64mb 600"))
}

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {status}"))
}

fn reason(status: &Value) -> &str {
    status["sources"][0]["reason"].as_str().unwrap_or_default()
}

/// Writes that cannot be compressed and must not be lost or done twice, until so many bytes were written.
fn write(client: &mut Client, random: &mut Random, bytes: usize) {
    let mut written = 0;
    while written < bytes {
        let key = format!("bulk:{}", random.below(50));
        let value = random.bytes(40_000);
        client.cmd(&[b"RPUSH", key.as_bytes(), &value]);
        client.cmd(&["INCR", "bulk:count"]);
        written += value.len();
    }
}

fn only_one_full_sync(source: &Server) {
    let mut client = source.client();
    assert_eq!(client.info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
    let partial = client.info("stats", "sync_partial_err");
    assert_eq!(partial.as_deref(), Some("0"), "the link was lost and could not go on");
}

/// Everything is applied, memory has stayed flat, and both sides are equal.
fn finish(run: Shakedeck, source: &Server, destination: &Server, writer: Option<Writer>) {
    if let Some(writer) = writer {
        writer.stop();
    }
    let goal: u64 = source.client().info("replication", "master_repl_offset").unwrap().parse().unwrap();
    run.wait_status(MINUTES, "everything is applied", |status| {
        status["sources"][0]["offset_applied"].as_u64() >= Some(goal) && status["state"] == "caught_up"
    });
    let memory = run.resident_bytes();
    assert!(memory < MEMORY, "{memory} bytes of memory");
    let status = run.status_json();
    assert_eq!(status["sources"][0]["reason"], Value::Null, "{status}");
    compare::assert_equal(source, destination);
}

#[test]
fn a_full_disk_stops_reading_and_goes_on_when_it_grows() {
    let Some((source, destination)) = pair() else { return };
    let Some(disk) = SmallDisk::mount("16m") else { return };
    let run =
        Setup::new(&source, &destination).set("spool", "min_free_bytes", "0").start_in(disk.run.clone());
    run.wait_streaming(MINUTES);
    run.ctl(&["pause"]).expect(0, &[]);
    run.wait_state("paused", MINUTES);
    let (mut client, mut random) = (source.client(), Random::new(1));
    write(&mut client, &mut random, 24 << 20);
    let writer = Writer::start(&source, Load { seed: 2, keys: 500, per_second: 500 });
    let status = run.wait_status(MINUTES, "the full disk and the countdown in words", |status| {
        reason(status).contains("DISK FULL") && reason(status).contains("the source drops us in about")
    });
    for words in ["No space left on device", "reading from the source stops", "it keeps", "its limit is"] {
        assert!(reason(&status).contains(words), "'{words}' in {}", reason(&status));
    }
    assert!(status["not_ready"].to_string().contains("DISK FULL"), "{}", status["not_ready"]);
    wait_until(MINUTES, "the same in the lines of the headless run", || {
        run.output().contains("drops us in about")
    });
    // It stays so, and stays alive to the source: acknowledged is what is safe on disk.
    let before = number(&status, "/sources/0/offset_received");
    let acknowledged = number(&status, "/sources/0/last_ack_unix_ms");
    let status = run.wait_status(MINUTES, "ACKs while full", |status| {
        number(status, "/sources/0/last_ack_unix_ms") > acknowledged + 3_000
    });
    assert_eq!(number(&status, "/sources/0/offset_received"), before);
    assert_eq!(number(&status, "/sources/0/offset_durable"), before);
    assert_eq!(client.info("replication", "connected_slaves").as_deref(), Some("1"));
    let memory = run.resident_bytes();
    assert!(memory < MEMORY, "{memory} bytes of memory");

    disk.grow("512m");
    run.wait_status(MINUTES, "receiving again", |status| {
        number(status, "/sources/0/offset_received") > before && !reason(status).contains("FULL")
    });
    run.ctl(&["resume"]).expect(0, &[]);
    finish(run, &source, &destination, Some(writer));
    only_one_full_sync(&source);
}

/// The disk stays as small as it is: what the destination takes makes the room.
#[test]
fn a_full_disk_is_emptied_by_the_destination() {
    let Some((source, destination)) = pair() else { return };
    let Some(disk) = SmallDisk::mount("12m") else { return };
    let run =
        Setup::new(&source, &destination).set("spool", "min_free_bytes", "0").start_in(disk.run.clone());
    run.wait_streaming(MINUTES);
    run.ctl(&["pause"]).expect(0, &[]);
    run.wait_state("paused", MINUTES);
    let (mut client, mut random) = (source.client(), Random::new(3));
    write(&mut client, &mut random, 16 << 20);
    run.wait_status(MINUTES, "the full disk", |status| reason(status).contains("DISK FULL"));
    run.ctl(&["resume"]).expect(0, &[]);
    write(&mut client, &mut random, 32 << 20);
    finish(run, &source, &destination, None);
    only_one_full_sync(&source);
}

#[test]
fn at_max_bytes_reading_stops_and_goes_on() {
    let Some((source, destination)) = pair() else { return };
    let run = Setup::new(&source, &destination).text("spool", "max_bytes", "4 MB").start();
    run.wait_streaming(MINUTES);
    run.ctl(&["pause"]).expect(0, &[]);
    run.wait_state("paused", MINUTES);
    let (mut client, mut random) = (source.client(), Random::new(4));
    write(&mut client, &mut random, 32 << 20);
    let writer = Writer::start(&source, Load { seed: 5, keys: 500, per_second: 500 });
    let status = run.wait_status(MINUTES, "the limit and the countdown in words", |status| {
        reason(status).contains("SPOOL FULL") && reason(status).contains("the source drops us in about")
    });
    assert!(reason(&status).contains("[spool] max_bytes is 4"), "{}", reason(&status));
    assert!(number(&status, "/spool/bytes") < 6 << 20, "{}", status["spool"]);
    assert!(status["state_reason"].to_string().contains("no room to receive more"), "{status}");
    run.ctl(&["resume"]).expect(0, &[]);
    finish(run, &source, &destination, Some(writer));
    only_one_full_sync(&source);
}

#[test]
fn a_disk_that_is_full_while_the_rdb_arrives_goes_on_too() {
    for diskless in [true, false] {
        let Some(binary) = support::servers::default() else {
            return support::skip("no redis-server on PATH (run tests/run, or install it)");
        };
        let source = Server::start(binary, Options::new().diskless(diskless));
        let destination = Server::start(binary, Options::new());
        let Some(disk) = SmallDisk::mount("8m") else { return };
        write(&mut source.client(), &mut Random::new(6), 40 << 20);
        let setup = Setup::new(&source, &destination).set("spool", "min_free_bytes", "0");
        let run = setup.start_in(disk.run.clone());
        let words = if diskless { "breaks the full sync off in about" } else { "does not drop us" };
        let status = run.wait_status(MINUTES, "the full disk", |status| {
            reason(status).contains("DISK FULL") && reason(status).contains(words)
        });
        assert!(reason(&status).contains("until space is freed"), "{}", reason(&status));
        disk.grow("512m");
        finish(run, &source, &destination, None);
        only_one_full_sync(&source);
    }
}

#[test]
fn an_rdb_that_can_never_fit_is_refused_at_once() {
    let Some(binary) = support::servers::default() else {
        return support::skip("no redis-server on PATH (run tests/run, or install it)");
    };
    let source = Server::start(binary, Options::new().diskless(false));
    let destination = Server::start(binary, Options::new());
    write(&mut source.client(), &mut Random::new(7), 8 << 20);
    let run = Setup::new(&source, &destination).text("spool", "max_bytes", "2 MB").start();
    run.wait_exit(MINUTES).expect(8, &["hold the RDB", "[spool] max_bytes is", "raise that and start again"]);
}

#[test]
fn killed_while_the_disk_is_full_it_starts_again_and_goes_on() {
    let Some(binary) = support::servers::default() else {
        return support::skip("no redis-server on PATH (run tests/run, or install it)");
    };
    let source = Server::start(binary, Options::new().config("repl-backlog-size", "256mb"));
    let destination = Server::start(binary, Options::new());
    let Some(disk) = SmallDisk::mount("12m") else { return };
    let setup = Setup::new(&source, &destination).set("spool", "min_free_bytes", "0");
    let run = setup.start_in(disk.run.clone());
    run.wait_streaming(MINUTES);
    run.ctl(&["pause"]).expect(0, &[]);
    run.wait_state("paused", MINUTES);
    write(&mut source.client(), &mut Random::new(8), 24 << 20);
    run.wait_status(MINUTES, "the full disk", |status| reason(status).contains("DISK FULL"));
    run.kill();
    // Nobody takes anything yet: the second run finds the disk as full as it was left.
    destination.client().ok(&["CLIENT", "PAUSE", "8000", "WRITE"]);
    let run = setup.start_in(disk.run.clone());
    run.wait_status(MINUTES, "the full disk again", |status| reason(status).contains("DISK FULL"));
    finish(run, &source, &destination, None);
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
}

/// What the spool left, others take: not a byte is free at the start. What is spooled is applied all the same, which makes room.
#[test]
fn killed_it_starts_on_a_disk_without_a_free_byte_and_empties_it() {
    let Some(binary) = support::servers::default() else {
        return support::skip("no redis-server on PATH (run tests/run, or install it)");
    };
    for disk in [SmallDisk::mount("16m"), SmallDisk::ext4(24 << 20)].into_iter().flatten() {
        let source = Server::start(binary, Options::new().config("repl-backlog-size", "256mb"));
        let destination = Server::start(binary, Options::new());
        let setup = Setup::new(&source, &destination).set("spool", "min_free_bytes", "0");
        let run = setup.start_in(disk.run.clone());
        run.wait_streaming(MINUTES);
        run.ctl(&["pause"]).expect(0, &[]);
        run.wait_state("paused", MINUTES);
        let mut client = source.client();
        // Each key is new to the ledger too.
        let value = "x".repeat(200);
        for thousand in 0..100 {
            (0..1_000).for_each(|n| client.push(&["SET", &format!("key:{thousand}:{n}"), &value]));
            client.flush(1_000);
        }
        client.ok(&["SWAPDB", "0", "1"]);
        run.wait_status(MINUTES, "the full disk", |status| reason(status).contains("DISK FULL"));
        run.kill();
        // The second start finds what the first one has still had room for taken as well.
        for _ in 0..2 {
            disk.fill();
            destination.client().ok(&["CLIENT", "PAUSE", "600000", "WRITE"]);
            let run = setup.start_in(disk.run.clone());
            run.wait_status(MINUTES, "the full disk again", |status| reason(status).contains("DISK FULL"));
            run.kill();
        }
        disk.fill();
        let run = setup.start_in(disk.run.clone());
        run.wait_status(MINUTES, "the full disk once more", |status| reason(status).contains("DISK FULL"));
        destination.client().ok(&["CLIENT", "UNPAUSE"]);
        finish(run, &source, &destination, None);
        assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
    }
}

/// The destination has refused an entry that is nowhere else any more: there is room for it on a full disk.
#[test]
fn what_is_refused_is_kept_on_a_full_disk() {
    let Some((source, destination)) = pair() else { return };
    let Some(disk) = SmallDisk::mount("16m") else { return };
    let setup = Setup::new(&source, &destination).set("spool", "min_free_bytes", "0");
    let run = setup.start_in(disk.run.clone());
    run.wait_streaming(MINUTES);
    let mut there = destination.client();
    for number in 0..20 {
        there.ok(&["SET", &format!("taken:{number}"), "a string"]);
    }
    run.ctl(&["pause"]).expect(0, &[]);
    run.wait_state("paused", MINUTES);
    let mut client = source.client();
    let value = "x".repeat(10_000);
    for number in 0..20 {
        client.ok(&["RPUSH", &format!("taken:{number}"), &value]);
    }
    run.wait_status(MINUTES, "all of it safe on disk", |status| {
        let offset = number(status, "/sources/0/offset_durable");
        offset == number(status, "/sources/0/offset_received") && offset > 200_000
    });
    disk.fill();
    run.ctl(&["resume"]).expect(0, &[]);
    run.wait_status(MINUTES, "all of them set aside", |status| status["counters"]["quarantined"] == 20);
    let entries = std::fs::read_to_string(run.data().join("quarantine.jsonl")).unwrap();
    for number in 0..20 {
        assert!(entries.contains(&format!("\"key\":\"taken:{number}\"")), "{number} is not in the file");
    }
}

/// A source with a large backlog, a paused run with some unapplied stream in small segments, and its folder after `kill -9`.
fn killed_with_a_lag(setup: impl Fn(Setup) -> Setup) -> Option<(Server, Server, Setup, Arc<TempDir>)> {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return None;
    };
    let source = Server::start(binary, Options::new().config("repl-backlog-size", "256mb"));
    let destination = Server::start(binary, Options::new());
    let setup = setup(Setup::new(&source, &destination)).text("spool", "max_bytes", "32 MB");
    let run = setup.start();
    run.wait_streaming(MINUTES);
    run.ctl(&["pause"]).expect(0, &[]);
    run.wait_state("paused", MINUTES);
    let (mut client, mut random) = (source.client(), Random::new(9));
    write(&mut client, &mut random, 4 << 20);
    run.wait_status(MINUTES, "all of it safe on disk", |status| {
        let offset = number(status, "/sources/0/offset_durable");
        offset == number(status, "/sources/0/offset_received") && offset > 4 << 20
    });
    write(&mut client, &mut random, 4 << 20);
    run.wait_status(MINUTES, "more of it received", |status| {
        number(status, "/sources/0/lag_bytes") > 8 << 20
    });
    let folder = run.folder();
    run.kill();
    Some((source, destination, setup, folder))
}

/// The files of the spool whose names hold a word, in order.
fn files(folder: &TempDir, word: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder.path().join("data")).unwrap().flatten() {
        for file in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            if file.file_name().to_str().unwrap().contains(word) {
                found.push(file.path());
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {word} file");
    found
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_torn_tail_is_cut_and_fetched_again() {
    type Tear = (&'static str, fn(&TempDir));
    let tears: [Tear; 3] = [
        ("garbage behind the end", |folder| {
            change(files(folder, "-stream-").last().unwrap(), |bytes| bytes.extend(vec![b'*'; 5_000]));
        }),
        ("a changed byte", |folder| {
            change(files(folder, "-stream-").last().unwrap(), |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            });
        }),
        ("what was not safe on disk is gone", |folder| {
            for file in [files(folder, "-stream-"), files(folder, "-marks-")] {
                std::fs::write(file.last().unwrap(), b"").unwrap();
            }
        }),
    ];
    for (name, tear) in tears {
        let Some((source, destination, setup, folder)) = killed_with_a_lag(|setup| setup) else { return };
        tear(&folder);
        println!("{name}");
        let run = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
        let exit = run.wait_exit(MINUTES);
        exit.expect(0, &["going on in the stream"]);
        let cut = exit.output.contains("are cut off; the source is asked for them again");
        assert_eq!(cut, !name.starts_with("what"), "{name}: {}", exit.output);
        compare::assert_equal(&source, &destination);
        assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "{name}");
    }
}

/// Power loss: the destination has what this disk lost. The stream goes on behind what the destination has.
#[test]
fn a_spool_that_lost_more_than_was_open_follows_the_destination() {
    let Some(binary) = support::servers::default() else {
        return support::skip("no redis-server on PATH (run tests/run, or install it)");
    };
    let source = Server::start(binary, Options::new().config("repl-backlog-size", "64mb"));
    let destination = Server::start(binary, Options::new());
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    let (mut client, mut random) = (source.client(), Random::new(10));
    write(&mut client, &mut random, 2 << 20);
    let goal: u64 = client.info("replication", "master_repl_offset").unwrap().parse().unwrap();
    run.wait_status(MINUTES, "all of it applied", |status| {
        number(status, "/sources/0/offset_applied") >= goal
    });
    let folder = run.folder();
    run.kill();
    for file in [files(&folder, "-stream-"), files(&folder, "-marks-")] {
        change(file.last().unwrap(), |bytes| bytes.truncate(bytes.len() / 3));
    }
    write(&mut client, &mut random, 1 << 20);
    let run = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    run.wait_exit(MINUTES).expect(0, &["which the destination has and the spool has not"]);
    compare::assert_equal(&source, &destination);
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"));
}

/// What was safe once and has changed since is an error of the disk: said, with the way on, and nothing of it is applied.
#[test]
fn a_damaged_segment_ends_the_run_with_8_and_the_way_on_works() {
    let Some((source, destination, setup, folder)) = killed_with_a_lag(|setup| setup) else { return };
    let segments = files(&folder, "-stream-");
    assert!(segments.len() > 3, "{segments:?}");
    change(&segments[1], |bytes| bytes[1_000] ^= 0x40);
    let run = setup.start_in(folder.clone());
    let name = segments[1].file_name().unwrap().to_str().unwrap();
    run.wait_exit(MINUTES).expect(8, &[name, "is damaged", "Two ways on", "checksum"]);
    // The first of the two ways.
    for file in [files(&folder, "-stream-"), files(&folder, "-marks-")].iter().flat_map(|all| &all[1..]) {
        std::fs::remove_file(file).unwrap();
    }
    let run = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    run.wait_exit(MINUTES).expect(0, &[]);
    compare::assert_equal(&source, &destination);
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"));
}

/// The age of what waits in the spool is known after a restart too.
#[test]
fn the_lag_in_seconds_survives_a_crash() {
    let Some((source, destination, setup, folder)) = killed_with_a_lag(|setup| setup) else { return };
    std::thread::sleep(Duration::from_secs(3));
    destination.client().ok(&["CLIENT", "PAUSE", "5000", "WRITE"]);
    let run = setup.start_in(folder);
    run.wait_status(MINUTES, "a lag that is older than the run", |status| {
        status["sources"][0]["phase"] == "stream"
            && status["sources"][0]["lag_seconds"].as_f64()
                > status["elapsed_seconds"].as_f64().map(|run| run + 2.0)
    });
    finish(run, &source, &destination, None);
}
