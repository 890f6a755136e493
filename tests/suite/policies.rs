//! What the operator decides in `shake.toml` and can be seen on the servers: existing keys, an emptied destination,
//! databases, limits.

use std::time::Duration;

use crate::support;
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
