//! Whatever is cut or killed while the stream runs, the same command goes on where it was: nothing is lost, and no command
//! is applied twice. The load is full of commands that would show it (INCR, RPUSH, APPEND, HINCRBY, XADD …).

use std::time::Duration;

use crate::require_server;
use crate::support;
use crate::support::load::{Load, Writer};
use crate::support::shakedeck::Setup;
use crate::support::{Options, Server, compare, dataset, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

/// A source whose backlog outlasts the cuts, a destination, and a load.
fn under_load(binary: &support::ServerBinary) -> (Server, Server, Writer) {
    let source = Server::start(binary, Options::new().config("repl-backlog-size", "256mb"));
    let destination = Server::start(binary, Options::new());
    dataset::fill(&mut source.client(), 20_000, 1);
    let writer = Writer::start(&source, Load { seed: 3, keys: 20_000, per_second: 5_000 });
    (source, destination, writer)
}

/// Waits until so many more writes have been sent: the only clock of these tests.
fn writes(writer: &Writer, more: u64) {
    let before = writer.sent();
    wait_until(MINUTES, "writes of the load", || writer.sent() >= before + more);
}

#[test]
fn killed_again_and_again_it_goes_on_where_it_was() {
    let binary = require_server!();
    let (source, destination, writer) = under_load(binary);
    let setup = Setup::new(&source, &destination);
    let mut run = setup.start();
    for round in 0..6 {
        run.wait_streaming(MINUTES);
        writes(&writer, 500 + 997 * round);
        let folder = run.folder();
        run.kill();
        writes(&writer, 300);
        run = setup.start_in(folder);
    }
    run.wait_streaming(MINUTES);
    writer.stop();
    let folder = run.folder();
    run.kill();
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["going on in the stream"]);
    compare::assert_equal(&source, &destination);
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
}

/// Why there is another full sync, and what would have helped: a larger backlog only where it was too small.
#[test]
fn another_full_sync_is_explained_by_its_own_cause() {
    let binary = require_server!();
    let mut source = Server::start(binary, Options::new().config("repl-backlog-size", "16kb"));
    let destination = Server::start(binary, Options::new());
    // Without its data it is followed all the same.
    let setup = Setup::new(&source, &destination).text("policy", "on_empty_source", "follow");
    let run = setup.start();
    run.wait_streaming(MINUTES);
    let mut client = source.client();
    // All at once, so that the link cannot come back in between.
    client.push(&["CLIENT", "KILL", "TYPE", "replica"]);
    let value = "x".repeat(100_000);
    (0..10).for_each(|n| client.push(&["SET", &format!("key:{n}"), &value]));
    client.flush(11);
    let told = |words: [&str; 2]| {
        wait_until(MINUTES, words[0], || words.iter().all(|word| run.output().contains(word)));
    };
    told(["its backlog no longer reaches back", "A larger 'repl-backlog-size' on the source helps"]);
    run.wait_streaming(MINUTES);
    run.wait_state("caught_up", MINUTES);
    source.restart();
    told([
        "it was restarted, another server took its place",
        "'repl-backlog-size' does not help against that",
    ]);
    run.wait_state("caught_up", MINUTES);
    // Forbidden, it is explained the same way.
    let folder = run.folder();
    run.kill();
    source.restart();
    let run = setup.text("policy", "on_full_resync", "stop").start_in(folder);
    run.wait_exit(MINUTES).expect(3, &["on_full_resync", "it was restarted", "does not help against that"]);
    compare::assert_equal(&source, &destination);
}

#[test]
fn stopped_in_order_and_started_again_it_goes_on_where_it_was() {
    let binary = require_server!();
    let (source, destination, writer) = under_load(binary);
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    writes(&writer, 2_000);
    run.terminate();
    let folder = run.folder();
    run.wait_exit(MINUTES).expect(75, &["stopped"]);
    writes(&writer, 2_000);
    writer.stop();
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["going on in the stream"]);
    compare::assert_equal(&source, &destination);
    let left = destination.client().list(&["KEYS", "shakedeck:*"]);
    assert!(left.is_empty(), "the checkpoint stayed behind");
}

#[test]
fn links_that_are_cut_are_opened_again() {
    let binary = require_server!();
    let (source, destination, writer) = under_load(binary);
    let setup = Setup::new(&source, &destination).exit_when("caught-up").args(&["--timeout", "2m"]);
    // The goal must not be reached before the load has ended.
    let setup = setup.text("cutover", "hold_for", "5s");
    let run = setup.start();
    run.wait_streaming(MINUTES);
    for round in 0..10 {
        writes(&writer, 300);
        if round % 2 == 0 {
            source.client().cmd(&["CLIENT", "KILL", "TYPE", "replica"]);
        } else {
            destination.client().cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        }
    }
    writer.stop();
    run.wait_exit(MINUTES).expect(0, &["connected again"]);
    compare::assert_equal(&source, &destination);
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
}

/// A source tells its replicas `XADD … MAXLEN = 4 LIMIT 1`, which no server takes from a client.
#[test]
fn a_stream_trimmed_with_a_limit_arrives_equal() {
    let binary = require_server!();
    let (source, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    let run = Setup::new(&source, &destination).exit_when("caught-up").args(&["--timeout", "1m"]);
    let run = run.text("cutover", "hold_for", "4s").start();
    run.wait_streaming(MINUTES);
    let mut from = source.client();
    for number in 0..500 {
        from.cmd(&["XADD", "s", "MAXLEN", "~", "100", "LIMIT", "50", "*", "f", &number.to_string()]);
    }
    from.cmd(&["XTRIM", "s", "MAXLEN", "~", "1", "LIMIT", "100"]);
    run.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
    compare::assert_equal(&source, &destination);
}

/// Killed while the RDB, whole on disk, is being applied: the rest of it follows, and the source is not asked for another.
#[test]
fn killed_inside_the_rdb_it_goes_on_inside_it() {
    let binary = require_server!();
    let (source, destination, writer) = under_load(binary);
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_status(MINUTES, "a run", |status| status["state"].is_string());
    run.ctl(&["throttle", "--ops", "4000"]).expect(0, &[]);
    run.wait_status(MINUTES, "a part of a whole RDB", |status| {
        let source = &status["sources"][0];
        source["rdb_bytes_total"].is_number() && source["keys_applied"].as_u64() > Some(2_000)
    });
    let status = run.status_json();
    assert_eq!(status["sources"][0]["phase"], "rdb_apply", "{status}");
    let folder = run.folder();
    run.kill();
    writes(&writer, 500);
    writer.stop();
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["going on inside the RDB"]);
    compare::assert_equal(&source, &destination);
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
}

/// The very lines of the README's "Rights on the servers" are enough for a whole migration.
#[test]
fn the_rights_of_the_readme_are_enough() {
    let binary = require_server!();
    let (source, destination, writer) = under_load(binary);
    let readme = std::fs::read_to_string("README.md").unwrap();
    for (server, side) in [(&source, "source "), (&destination, "destination ")] {
        let line =
            readme.lines().find_map(|line| line.strip_prefix(side)?.trim().strip_prefix("ACL SETUSER "));
        let mut words = vec!["ACL", "SETUSER"];
        words.extend(line.expect("a line of rights").split(' '));
        server.client().ok(&words);
    }
    let setup =
        ["sync_reader", "redis_writer"].iter().fold(Setup::new(&source, &destination), |setup, side| {
            setup.text(side, "username", "shakedeck").text(side, "password", "password")
        });
    let run =
        setup.exit_when("caught-up").args(&["--timeout", "2m"]).text("cutover", "hold_for", "4s").start();
    run.wait_streaming(MINUTES);
    writes(&writer, 1_000);
    writer.stop();
    run.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
    compare::assert_equal(&source, &destination);
}
