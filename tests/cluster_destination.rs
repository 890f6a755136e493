//! A destination that is a cluster: a standalone source's data, every key in its slot and every command exactly once, while
//! processes are killed, links cut, masters replaced and slots moved.

#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

mod support;

use std::time::Duration;

use support::cluster::{Cluster, Layout};
use support::everything::assert_same;
use support::mixed_load::{Mixed, MixedLoad};
use support::shakedeck::Setup;
use support::{Options, Server, ServerBinary, Shakedeck, servers};

const MINUTES: Duration = Duration::from_secs(180);

fn source(binary: &ServerBinary) -> Server {
    Server::start(binary, Options::new().config("repl-backlog-size", "256mb"))
}

fn cluster(binary: &ServerBinary, masters: usize, replicas: usize) -> Cluster {
    Cluster::start(binary, Layout::new(masters, replicas))
}

fn to_cluster(source: &Server, destination: &Cluster) -> Setup {
    Setup::bare(&source.address().to_string(), &destination.address().to_string()).set(
        "redis_writer",
        "cluster",
        "true",
    )
}

fn streaming(run: &Shakedeck) {
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");
}

/// Starts the same run once more until it is caught up, and compares everything.
fn finish(setup: &Setup, run: Shakedeck, load: MixedLoad, source: &Server, destination: &Cluster) {
    load.stop();
    let folder = run.folder();
    run.kill();
    let last = setup.clone().exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
    last.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
    equal(source, destination);
}

fn equal(source: &Server, destination: &Cluster) {
    assert!(assert_same(source, destination).keys > 500);
    let left = destination.client().keys_like("shakedeck:*");
    assert!(left.is_empty(), "{left:?} stayed behind");
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
}

#[test]
fn everything_arrives_in_its_slot() {
    let binary = require_server!();
    for binary in [Some(binary), servers::modern().last()].into_iter().flatten() {
        let (source, destination) = (source(binary), cluster(binary, 3, 0));
        let load = Mixed::new(1).per_second(3_000).on_server(&source);
        load.wait_more(5_000);
        let setup = to_cluster(&source, &destination).text("cutover", "hold_for", "4s");
        let run = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start();
        streaming(&run);
        load.wait_more(10_000);
        load.stop();
        run.wait_exit(MINUTES).expect(0, &["0 quarantined"]);
        equal(&source, &destination);
    }
}

#[test]
fn killed_again_and_again_it_goes_on_where_it_was() {
    let binary = require_server!();
    let (source, destination) = (source(binary), cluster(binary, 3, 0));
    let load = Mixed::new(2).per_second(3_000).on_server(&source);
    load.wait_more(5_000);
    let setup = to_cluster(&source, &destination);
    let mut run = setup.start();
    for round in 0..8 {
        streaming(&run);
        load.wait_more(500 + 397 * round);
        let folder = run.folder();
        run.kill();
        load.wait_more(300);
        run = setup.start_in(folder);
    }
    streaming(&run);
    finish(&setup, run, load, &source, &destination);
}

#[test]
fn links_that_are_cut_are_opened_again() {
    let binary = require_server!();
    let (source, destination) = (source(binary), cluster(binary, 3, 0));
    let load = Mixed::new(3).per_second(3_000).on_server(&source);
    load.wait_more(3_000);
    let setup = to_cluster(&source, &destination);
    let run = setup.start();
    streaming(&run);
    for round in 0..9 {
        load.wait_more(500);
        destination.client_of(round % 3).cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }
    assert!(run.output().contains("looking where to go on"), "no link was lost:\n{}", run.output());
    load.wait_more(500);
    finish(&setup, run, load, &source, &destination);
}

/// Slots leave one master for another while the stream runs.
#[test]
fn a_thousand_slots_are_moved_in_mid_stream() {
    let binary = require_server!();
    let (source, destination) = (source(binary), cluster(binary, 3, 0));
    let load = Mixed::new(4).per_second(2_000).on_server(&source);
    load.wait_more(3_000);
    let setup = to_cluster(&source, &destination);
    let run = setup.start();
    streaming(&run);
    destination.reshard(0, 1, 0..1_000);
    load.wait_more(2_000);
    assert_eq!(destination.slot_count(1), 6_461, "the slots are there");
    finish(&setup, run, load, &source, &destination);
}

/// A master is killed, and its replica, which may lack the last writes, takes its place.
#[test]
fn a_master_that_dies_is_replaced_and_nothing_is_lost() {
    let binary = require_server!();
    let (source, mut destination) = (source(binary), cluster(binary, 3, 1));
    let load = Mixed::new(5).per_second(2_000).on_server(&source);
    load.wait_more(3_000);
    let setup = to_cluster(&source, &destination);
    let run = setup.start();
    streaming(&run);
    for master in [1, 0] {
        load.wait_more(1_000);
        destination.fail_over_by_death(master);
        load.wait_more(1_000);
    }
    let orderly = destination.masters()[2];
    destination.fail_over(orderly);
    load.wait_more(2_000);
    finish(&setup, run, load, &source, &destination);
}
