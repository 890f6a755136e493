//! Snapshots that are cut, damaged, or lie about their size: a clear error that names the source, no panic, no huge
//! allocation; and where trying again can help, it is tried again.

use std::time::Duration;

use crate::support;
use crate::support::fake_source::{FakeSource, Snapshot};
use crate::support::shakedeck::Setup;
use crate::support::{Options, Server, compare, dataset};

const MINUTES: Duration = Duration::from_secs(120);
const MEBIBYTE: u64 = 1_048_576;

/// A filled server and its RDB.
fn original(keys: u64) -> Option<(Server, Vec<u8>)> {
    let Some(binary) = support::servers::default() else {
        support::skip("no redis-server on PATH (run tests/run, or install it)");
        return None;
    };
    let server = Server::start(binary, Options::new());
    dataset::fill(&mut server.client(), keys, 1);
    server.client().ok(&["SAVE"]);
    let bytes = std::fs::read(server.folder().join("dump.rdb")).unwrap();
    Some((server, bytes))
}

/// The fake source itself, with a good snapshot: without this the rest would prove little.
#[test]
fn a_whole_snapshot_arrives_equal_both_ways() {
    let Some((server, rdb)) = original(5_000) else { return };
    for announced in [Some(rdb.len() as u64), None] {
        let source = FakeSource::start(vec![Snapshot { announced, bytes: rdb.clone(), closes: false }]);
        let destination = Server::start(server.binary(), Options::new());
        let setup = Setup::bare(&source.address().to_string(), &destination.address().to_string());
        setup.set("sync_reader", "sync_aof", "false").start().wait_exit(MINUTES).expect(0, &[]);
        compare::assert_equal(&server, &destination);
        assert_eq!(source.full_syncs(), 1);
    }
}

/// The link breaks in the middle of the RDB: tried again, and the second time it is whole. Nothing of the first try
/// may be left over that the second one does not have.
#[test]
fn a_snapshot_cut_in_the_middle_is_fetched_again() {
    let Some((server, rdb)) = original(20_000) else { return };
    for announced in [Some(rdb.len() as u64), None] {
        let cut = Snapshot { announced, bytes: rdb[..rdb.len() / 2].to_vec(), closes: true };
        let whole = Snapshot { announced, bytes: rdb.clone(), closes: false };
        let source = FakeSource::start(vec![cut, whole]);
        let destination = Server::start(server.binary(), Options::new());
        let setup = Setup::bare(&source.address().to_string(), &destination.address().to_string());
        let exit = setup.set("sync_reader", "sync_aof", "false").start().wait_exit(MINUTES);
        exit.expect(0, &[&source.address().to_string()]);
        compare::assert_equal(&server, &destination);
        assert_eq!(source.full_syncs(), 2);
    }
}

#[test]
fn a_damaged_snapshot_is_a_clear_error() {
    let Some((server, rdb)) = original(5_000) else { return };
    let mut wrong_checksum = rdb.clone();
    *wrong_checksum.last_mut().unwrap() ^= 0x5a;
    let mut future = rdb.clone();
    future[5..9].copy_from_slice(b"9999");
    // A string (type 0) named "k" whose value says that it is 4 GiB long (0x80: a 32-bit length), in a tiny file.
    let four_gibibytes =
        [b"REDIS0011".as_slice(), &[0, 1, b'k', 0x80, 0xff, 0xff, 0xff, 0xff], b"x"].concat();
    // And one with a 64-bit length (0x81).
    let all_bytes = [b"REDIS0011".as_slice(), &[0, 1, b'k', 0x81], &[0xff; 8], b"x"].concat();
    // An LZF string that promises 4 GiB from two bytes.
    let bomb = [b"REDIS0011".as_slice(), &[0, 1, b'k', 0xc3, 2, 0x80, 0xff, 0xff, 0xff, 0xff, 0, b'x'], b"x"]
        .concat();
    let cases: [(&str, Vec<u8>); 8] = [
        ("garbage", b"this is no RDB file at all, it is only text".to_vec()),
        ("an error in its place", b"-ERR BGSAVE failed, replication can't continue\r\n".to_vec()),
        ("wrong checksum", wrong_checksum),
        ("version 9999", future),
        ("cut, but announced as whole", rdb[..rdb.len() / 2].to_vec()),
        ("4 GiB string", four_gibibytes),
        ("16 EiB string", all_bytes),
        ("LZF bomb", bomb),
    ];
    for (name, bytes) in cases {
        let source = FakeSource::start(vec![Snapshot::whole(bytes)]);
        let destination = Server::start(server.binary(), Options::new());
        let setup = Setup::bare(&source.address().to_string(), &destination.address().to_string());
        let run = setup.args(&["--timeout", "60s"]).start();
        let mut memory = 0;
        let pid = run.pid();
        let peak = move || {
            let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:"))?
                .trim()
                .trim_end_matches(" kB")
                .to_owned();
            line.parse::<u64>().ok()
        };
        support::wait_until(MINUTES, &format!("{name}: its end"), || {
            memory = memory.max(peak().unwrap_or(0));
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
        });
        let exit = run.wait_exit(MINUTES);
        println!("{name}: {:?}, {memory} KiB", exit.code);
        exit.expect(3, &[&source.address().to_string()]);
        assert!(memory * 1_024 < 128 * MEBIBYTE, "{name}: {memory} KiB");
    }
}
