//! What the operator decides in `shake.toml` and can be seen on the servers: existing keys, an emptied destination,
//! databases, limits.

use std::time::Duration;

use crate::support;
use crate::support::proxy::Proxy;
use crate::support::shakedeck::Setup;
use crate::support::{Client, Options, Reply, compare, dataset};

const MINUTES: Duration = Duration::from_secs(120);

fn to_database(client: &mut Client, database: u32) {
    client.ok(&["SELECT", &database.to_string()]);
}

#[test]
fn an_existing_key_stops_replaces_or_stays() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    let (mut from, mut to) = (source.client(), destination.client());
    to_database(&mut from, 3);
    to_database(&mut to, 3);
    from.ok(&["SET", "both", "of the source"]);
    from.ok(&["RPUSH", "only here", "1"]);
    let setup = |behavior: &str| {
        Setup::new(&source, &destination)
            .text("advanced", "rdb_restore_command_behavior", behavior)
            .exit_when("caught-up")
    };

    to.ok(&["SET", "both", "of the destination"]);
    let exit = setup("panic").start().wait_exit(MINUTES);
    exit.expect(4, &["both", "rdb_restore_command_behavior", "rewrite"]);
    assert_eq!(to.text(&["GET", "both"]), "of the destination");

    to.ok(&["FLUSHALL"]);
    to.ok(&["SET", "both", "of the destination"]);
    let exit = setup("skip").start().wait_exit(MINUTES);
    exit.expect(0, &["BUSYKEY"]);
    assert_eq!(to.text(&["GET", "both"]), "of the destination");
    assert_eq!(to.integer(&["LLEN", "only here"]), 1);

    to.ok(&["FLUSHALL"]);
    to.ok(&["SADD", "both", "of the destination"]);
    setup("rewrite").start().wait_exit(MINUTES).expect(0, &[]);
    assert_eq!(to.text(&["GET", "both"]), "of the source");
    compare::assert_equal(&source, &destination);
}

/// The same three answers for values that travel as commands and not as RESTORE.
#[test]
fn an_existing_key_is_treated_the_same_when_values_travel_as_commands() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    let (mut from, mut to) = (source.client(), destination.client());
    from.ok(&["RPUSH", "both", "1", "2"]);
    let setup = |behavior: &str| {
        Setup::new(&source, &destination)
            .set("advanced", "target_redis_proto_max_bulk_len", "0")
            .text("advanced", "rdb_restore_command_behavior", behavior)
            .exit_when("caught-up")
    };
    for (behavior, code, expected) in
        [("panic", 4, vec!["9"]), ("skip", 0, vec!["9"]), ("rewrite", 0, vec!["1", "2"])]
    {
        to.ok(&["FLUSHALL"]);
        to.ok(&["RPUSH", "both", "9"]);
        setup(behavior).start().wait_exit(MINUTES).expect(code, &[]);
        let expected: Vec<Vec<u8>> = expected.into_iter().map(|word| word.as_bytes().to_vec()).collect();
        assert_eq!(to.list(&["LRANGE", "both", "0", "-1"]), expected, "{behavior}");
    }
}

#[test]
fn the_destination_is_emptied_only_when_asked() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 2_000, 1);
    let mut to = destination.client();
    for database in [0, 5, 15] {
        to_database(&mut to, database);
        to.ok(&["SET", "older", "kept?"]);
    }
    let setup = Setup::new(&source, &destination).exit_when("caught-up");
    setup.start().wait_exit(MINUTES).expect(0, &[]);
    for database in [0, 5, 15] {
        to_database(&mut to, database);
        assert_eq!(to.text(&["GET", "older"]), "kept?", "database {database}");
    }
    setup.set("advanced", "empty_db_before_sync", "true").start().wait_exit(MINUTES).expect(0, &[]);
    for database in [0, 5, 15] {
        to_database(&mut to, database);
        assert_eq!(to.cmd(&["GET", "older"]), Reply::Null, "database {database}");
    }
    compare::assert_equal(&source, &destination);
}

#[test]
fn databases_are_kept_and_dropped_in_the_snapshot_and_in_the_stream() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 2_000, 1);
    let setup = Setup::new(&source, &destination)
        .set("filter", "allow_db", "[1, 2, 3]")
        .set("filter", "block_db", "[2]");
    let run = setup.start();
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");
    let (mut from, mut to) = (source.client(), destination.client());
    for database in 0..16 {
        to_database(&mut from, database);
        from.ok(&["SET", "in the stream", "1"]);
    }
    // The last write of a kept database is there: so is everything before it.
    to_database(&mut to, 3);
    support::wait_until(MINUTES, "the change on the destination", || {
        to.integer(&["EXISTS", "in the stream"]) == 1
    });
    let status = run.wait_state("caught_up", MINUTES);
    for database in 0..16 {
        to_database(&mut from, database);
        to_database(&mut to, database);
        let expected = if [1, 3].contains(&database) { from.integer(&["DBSIZE"]) } else { 0 };
        // The checkpoint is the tool's own.
        let own = support::client::keys_like(&mut to, "shakedeck:*").len() as i64;
        assert_eq!(to.integer(&["DBSIZE"]) - own, expected, "database {database}");
    }
    let count = |status: &serde_json::Value, name: &str| status["counters"][name].as_u64().unwrap();
    let before = count(&status, "filtered");
    assert!(before > 1_500, "{}", status["counters"]);
    // What is left out of the stream was read, too.
    to_database(&mut from, 2);
    for number in 0..5_000 {
        from.ok(&["SET", "left out", &number.to_string()]);
    }
    let status =
        run.wait_status(MINUTES, "all of it left out", |status| count(status, "filtered") >= before + 5_000);
    let (read, filtered) = (count(&status, "entries_read"), count(&status, "filtered"));
    assert_eq!(read - filtered, count(&status, "entries_applied"), "{}", status["counters"]);
}

/// Every value as commands instead of RESTORE, and the narrowest pipeline: slower, and equal.
#[test]
fn the_narrowest_limits_change_nothing_but_the_speed() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 10_000, 1);
    for (key, value) in [
        ("target_redis_proto_max_bulk_len", "0"),
        ("target_redis_proto_max_bulk_len", "1000"),
        ("pipeline_count_limit", "1"),
        ("target_redis_client_max_querybuf_len", "1048576"),
        ("ncpu", "1"),
    ] {
        destination.client().ok(&["FLUSHALL"]);
        let setup = Setup::new(&source, &destination).set("advanced", key, value).exit_when("caught-up");
        setup.start().wait_exit(MINUTES).expect(0, &[]);
        compare::assert_equal(&source, &destination);
    }
}

/// Enough for many batches, each with lists and strings.
const MANY: usize = 6_000;

fn value(owner: &str, number: usize) -> String {
    format!("{owner} {number} {}", "x".repeat(300))
}

/// Keys of `owner`: every third one a list.
fn fill(client: &mut Client, owner: &str, numbers: impl Iterator<Item = usize>) {
    for number in numbers {
        let (key, value) = (format!("key:{number}"), value(owner, number));
        match number % 3 {
            0 => client.integer(&["RPUSH", &key, &value]),
            _ => {
                client.ok(&["SET", &key, &value]);
                0
            }
        };
    }
}

/// Numbers of the keys that are not `owner`'s.
fn of_others(client: &mut Client, owner: &str, numbers: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut differ = Vec::new();
    for number in numbers {
        let key = format!("key:{number}");
        let found = match number % 3 {
            0 => client.bytes(&["LINDEX", &key, "0"]),
            _ => client.bytes(&["GET", &key]),
        };
        if found.as_deref() != Some(value(owner, number).as_bytes()) {
            differ.push(number);
        }
    }
    differ
}

/// It stops at the first key that others have, or is killed; whatever is said then, and however often it starts, their keys are
/// left alone.
#[test]
fn keys_of_others_outlive_every_restart() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    let mut to = destination.client();
    fill(&mut source.client(), "source", 0..MANY);
    fill(&mut to, "other", 0..MANY);
    let setup = |behavior: &str| {
        Setup::new(&source, &destination)
            .text("advanced", "rdb_restore_command_behavior", behavior)
            .exit_when("caught-up")
    };
    let run = setup("panic").start();
    let home = run.folder();
    run.wait_exit(MINUTES).expect(4, &["rdb_restore_command_behavior"]);
    assert_eq!(of_others(&mut to, "other", 0..MANY).len(), 0, "overwritten before it stopped");
    setup("panic").start_in(home.clone()).wait_exit(MINUTES).expect(4, &[]);
    assert_eq!(of_others(&mut to, "other", 0..MANY).len(), 0, "overwritten by the second start");
    setup("skip").start_in(home).wait_exit(MINUTES).expect(0, &["BUSYKEY"]);
    assert_eq!(of_others(&mut to, "other", 0..MANY).len(), 0, "overwritten by the start that skips");
}

/// Killed in the middle of an RDB, again and again: what others have stays, and all the rest arrives.
#[test]
fn keys_of_others_outlive_kills_inside_the_rdb() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    let mut to = destination.client();
    fill(&mut source.client(), "source", 0..MANY);
    let others = || (0..MANY).filter(|number| number % 2 == 0);
    let ours = || (0..MANY).filter(|number| number % 2 == 1);
    fill(&mut to, "other", others());
    // Slowly, so that batches are handed over and wait.
    let proxy = Proxy::start(destination.address(), 1);
    proxy.throttle(300_000);
    let setup = Setup::bare(&source.address().to_string(), &proxy.address()).text(
        "advanced",
        "rdb_restore_command_behavior",
        "skip",
    );
    let keys = |status: &serde_json::Value| status["sources"][0]["keys_applied"].as_u64().unwrap_or(0);
    let mut home = None;
    for _ in 0..2 {
        let run = match home.take() {
            None => setup.start(),
            Some(home) => setup.start_in(home),
        };
        run.wait_status(MINUTES, "some keys are applied", |status| keys(status) > 500);
        run.ctl(&["pause", "--wait"]).expect(0, &["paused"]);
        assert!(run.status_json()["sources"][0]["phase"] == "rdb_apply", "{}", run.status_json());
        home = Some(run.folder());
        run.kill();
    }
    proxy.calm();
    setup.exit_when("caught-up").start_in(home.unwrap()).wait_exit(MINUTES).expect(0, &[]);
    assert_eq!(of_others(&mut to, "other", others()).len(), 0, "a key of others was overwritten");
    assert_eq!(of_others(&mut to, "source", ours()).len(), 0, "a key of the source is missing");
}
