//! Two migrations into one destination at once: neither takes anything of the other for its own.

use super::field::{Field, MINUTES, applied, streaming};
use super::require_server;
use super::support::proxy::{Break, Way};
use super::support::shakedeck::Setup;
use super::support::{Options, Random, Server, compare, wait_until};

/// Each has its own databases; both are killed and cut again and again.
#[test]
fn two_sources_fill_different_databases_of_one_destination() {
    let binary = require_server!();
    let mut left = Field::new(binary);
    let mut right = Field::new(binary);
    let halves = ["[0, 1, 2, 3, 4, 5, 6, 7]", "[8, 9, 10, 11, 12, 13, 14, 15]"];
    right.to.switch(left.destination.address());
    left.load(1_500);
    right.load(1_500);
    let setups = [left.setup(), right.setup()];
    let setups: Vec<Setup> =
        std::iter::zip(setups, halves).map(|(setup, half)| setup.set("filter", "allow_db", half)).collect();
    let mut runs: Vec<_> = setups.iter().map(Setup::start).collect();
    runs.iter().for_each(|run| {
        streaming(run);
    });
    for round in 0..6 {
        let one = left.random.below(2) as usize;
        left.writes(100 + left.random.clone().below(1_000));
        let run = runs.remove(one);
        let folder = run.folder();
        run.kill();
        if round % 2 == 0 {
            left.to.cut(Break::Reset);
            right.to.cut(Break::Reset);
        }
        right.writes(100);
        runs.insert(one, setups[one].start_in(folder));
        streaming(&runs[one]);
    }
    left.stop_load();
    right.stop_load();
    for (run, field) in runs.iter().zip([&left, &right]) {
        applied(run, &mut field.source.client());
    }
    compare::equal_in(&left.source, &left.destination, |db| db < 8).unwrap();
    compare::equal_in(&right.source, &left.destination, |db| db >= 8).unwrap();
    assert_eq!((left.full_syncs(), right.full_syncs()), (1, 1), "one full sync each");
    for run in runs {
        run.ctl(&["stop", "--forget"]).expect(0, &[]);
        run.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
    }
}

/// Values too large to hold are built under a temporary name; two that are built at the same time must not be mixed.
#[test]
fn two_large_values_are_built_at_the_same_time() {
    let binary = require_server!();
    let destination = Server::start(binary, Options::new());
    let both: Vec<_> = ["a", "b"]
        .map(|name| {
            let source = Server::start(binary, Options::new());
            let mut client = source.client();
            let mut random = Random::new(u64::from(name.as_bytes()[0]));
            for _ in 0..100 {
                for _ in 0..100 {
                    // Nothing that compresses: the value must be large in the RDB.
                    client.push(&[&b"RPUSH"[..], name.as_bytes(), &random.bytes(1_000)]);
                }
                client.flush(100);
            }
            let proxy = super::support::proxy::Proxy::start(destination.address(), 1);
            proxy.throttle(3_000_000);
            let setup = Setup::bare(&source.address().to_string(), &proxy.address());
            // No payload is small enough: values travel as commands.
            let run = setup.set("advanced", "target_redis_proto_max_bulk_len", "1000").start();
            (source, proxy, run)
        })
        .into_iter()
        .collect();
    for (_, proxy, _) in &both {
        wait_until(MINUTES, "both values are being built", || proxy.passed(Way::ToServer) > 1_000_000);
    }
    for (source, proxy, run) in both {
        proxy.calm();
        streaming(&run);
        applied(&run, &mut source.client());
        run.ctl(&["stop", "--forget"]).expect(0, &[]);
        run.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
        let keys = source.client().list(&["KEYS", "*"]);
        let key = keys[0].as_slice();
        let range: [&[u8]; 4] = [b"LRANGE", key, b"0", b"-1"];
        let (here, there) = (source.client().list(&range), destination.client().list(&range));
        assert_eq!((here.len(), here == there), (10_000, true), "{} items arrived", there.len());
    }
    let left = destination.client().list(&["KEYS", "shakedeck:*"]);
    assert!(left.is_empty(), "something stayed behind");
}

/// A second process in one data directory is refused and told of the first, which goes on; so is another migration.
#[test]
fn a_data_directory_has_one_process_and_one_migration() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(500);
    let run = field.setup().start();
    streaming(&run);
    let second = field.setup().start_in(run.folder()).wait_exit(MINUTES);
    second.expect(8, &["is in use by the process with pid", &run.pid().to_string(), "attach --dir"]);
    field.writes(200);
    let folder = run.folder();
    run.kill();
    let other = Setup::bare(&field.source.address().to_string(), &field.to.address());
    let refused = other.start_in(folder.clone()).wait_exit(MINUTES);
    refused.expect(8, &["belongs to the migration", &field.from.address(), "Two ways on"]);
    let run = field.setup().start_in(folder);
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}
