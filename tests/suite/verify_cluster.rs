//! Verification where a side is a cluster: every planted difference is found and nothing else, whatever the shapes of the two sides;
//! repair goes to the owner of each slot; slots may move and masters may die meanwhile.

use std::time::Duration;

use crate::require_server;
use crate::support;
use crate::support::everything::{Place, assert_same};
use crate::support::mixed_load::{Mixed, MixedLoad};
use crate::support::shakedeck::Setup;
use crate::support::verification::{
    CHANGES, PLANTED, Verification, assert_planted, differences, do_all, do_all_in_cluster, expected, planted,
};
use crate::support::{Client, Cluster, ClusterClient, Layout, Options, Server, wait_until};

const MINUTES: Duration = Duration::from_secs(180);

/// A side of a comparison.
trait Side: Place {
    fn address(&self) -> String;
    fn is_cluster(&self) -> bool;
    fn change(&self, lines: &[&str]);
    fn fill(&self, more: usize);
}

impl Side for Server {
    fn address(&self) -> String {
        Server::address(self).to_string()
    }
    fn is_cluster(&self) -> bool {
        false
    }
    fn change(&self, lines: &[&str]) {
        do_all(&mut self.client(), lines);
    }
    fn fill(&self, more: usize) {
        fill_client(&mut self.client(), more);
    }
}

impl Side for Cluster {
    fn address(&self) -> String {
        Cluster::address(self).to_string()
    }
    fn is_cluster(&self) -> bool {
        true
    }
    fn change(&self, lines: &[&str]) {
        do_all_in_cluster(&mut self.client(), lines);
    }
    fn fill(&self, more: usize) {
        fill_cluster(&mut self.client(), more);
    }
}

fn filler(more: usize) -> impl Iterator<Item = [String; 3]> {
    (0..more).map(|n| ["SET".to_owned(), format!("filler:{n}"), format!("value {n}")])
}

fn fill_client(client: &mut Client, more: usize) {
    filler(more).for_each(|command| client.push(&command));
    client.flush(more);
}

fn fill_cluster(client: &mut ClusterClient, more: usize) {
    for command in filler(more) {
        client.ok(&command);
    }
}

fn setup(source: &dyn Side, destination: &dyn Side) -> Setup {
    let flag = |side: &dyn Side| if side.is_cluster() { "true" } else { "false" };
    Setup::bare(&source.address(), &destination.address()).set("sync_reader", "cluster", flag(source)).set(
        "redis_writer",
        "cluster",
        flag(destination),
    )
}

/// Standalone and clusters of different shapes on either side.
#[test]
fn planted_differences_are_found_whatever_the_shapes_and_repair_goes_to_the_owners() {
    let binary = require_server!();
    let server = Server::start(binary, Options::new());
    let three = Cluster::start(binary, Layout::new(3, 0));
    let two = Cluster::start(binary, Layout::new(2, 0).slots(&[&[0..=99, 9_000..=16_383], &[100..=8_999]]));
    let sides: [&dyn Side; 3] = [&server, &three, &two];
    for side in sides {
        side.change(PLANTED);
        // Each side was planted by itself: without this its entries were delivered at another time.
        side.change(&["XCLAIM plant:pending g alice 0 1-1 2-1 TIME 1700000000000 RETRYCOUNT 1 JUSTID"]);
        side.fill(3_000);
    }
    for (source, destination) in [(0, 1), (1, 0), (1, 2)] {
        let (source, destination) = (sides[source], sides[destination]);
        let verification = Verification::of(&setup(source, destination));
        for mode in ["count", "meta", "digest", "full"] {
            verification.run(&["--mode", mode]).expect(0, &["no differences"]);
        }
        destination.change(CHANGES);
        verification.run(&["--mode", "full"]).expect(6, &["18 keys differ"]);
        assert_planted(&verification.found(), planted());
        // One more on one side, so that the numbers differ too.
        destination.change(&["SET plant:more x"]);
        verification.run(&["--mode", "count"]).expect(6, &["1 databases differ"]);
        assert_eq!(verification.found(), expected(&[("0:", &["count"])]));
        verification.run(&["--mode", "full", "--repair", "--delete-extra"]).expect(0, &["19 repaired"]);
        verification.run(&["--mode", "full"]).expect(0, &["no differences"]);
        // What is within the tolerance of times is left alone.
        destination.change(&["PEXPIREAT plant:near 4102444800000"]);
    }
    assert_same(&server, &three);
    assert_same(&three, &two);
}

/// A checkpoint on any master of the destination forbids the repair.
#[test]
fn a_checkpoint_anywhere_in_the_cluster_forbids_the_repair() {
    let binary = require_server!();
    let server = Server::start(binary, Options::new());
    let cluster = Cluster::start(binary, Layout::new(3, 0));
    server.change(&["SET one:key 1"]);
    // One in the slots of each master.
    for n in 0..3 {
        let key = (0..).map(|n| format!("shakedeck:checkpoint:x:{{{n}}}"));
        let key = key
            .into_iter()
            .find(|key| cluster.owner(support::cluster_client::slot_of(key.as_bytes())) == n)
            .unwrap();
        cluster.client().ok(&["HSET", &key, "a", "b"]);
        let verification = Verification::of(&setup(&server, &cluster));
        verification.run(&["--repair"]).expect(2, &["no repair", "shakedeck:checkpoint"]);
        assert_eq!(verification.found(), expected(&[("0:one:key", &["missing"])]));
        cluster.client().ok(&["DEL", &key]);
    }
    Verification::of(&setup(&server, &cluster)).run(&["--repair"]).expect(0, &["1 repaired"]);
    assert_same(&server, &cluster);
}

/// Slots move on both sides while they are compared, then a master of each dies: no false difference, nothing overlooked.
#[test]
fn slots_that_move_and_masters_that_die_meanwhile_do_not_matter() {
    let binary = require_server!();
    let mut source = Cluster::start(binary, Layout::new(3, 1));
    let mut destination = Cluster::start(binary, Layout::new(3, 1));
    for cluster in [&source, &destination] {
        fill_cluster(&mut cluster.client(), 20_000);
    }
    for n in (0..20_000).step_by(1_000) {
        destination.client().ok(&["DEL", &format!("filler:{n}")]);
        destination.client().ok(&["SET", &format!("extra:{n}"), "x"]);
    }
    let verification = Verification::of(&setup(&source, &destination));
    let slow = ["--rate", "2k", "--rounds", "2"];
    let mut process = verification.command(&slow).stdout(std::process::Stdio::piped()).spawn().unwrap();
    // Every slot of the first master goes to the second: its keys are scanned by nobody, or by both.
    source.reshard(0, 1, 1_000..1_200);
    destination.reshard(2, 0, 16_000..16_200);
    source.reshard(1, 0, 6_000..6_100);
    assert!(process.try_wait().unwrap().is_none(), "it ended before the slots had moved");
    let output = process.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("40 keys differ"), "{text}");
    assert_eq!(verification.found().len(), 40);

    let mut process = verification.command(&slow).stdout(std::process::Stdio::piped()).spawn().unwrap();
    // Its keys have not come to any master yet that it has not asked.
    wait_until(MINUTES, "it reads", || source.client_of(0).text(&["CLIENT", "LIST"]).contains("cmd=scan"));
    source.kill(0);
    destination.kill(1);
    assert!(process.try_wait().unwrap().is_none(), "it ended before the masters were dead");
    let output = process.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(6), "{text}");
    assert!(text.contains("40 keys differ"), "{text}");
    assert_eq!(verification.found().len(), 40);
}

/// A running migration: keys that never rest are judged exactly, each on the line of its source master.
fn compared_under_live_writes(source: &dyn Side, destination: &dyn Side, load: MixedLoad) {
    let setup = setup(source, destination).text("cutover", "verify", "full").set("cutover", "sample", "0");
    let run = setup.start();
    run.wait_state("caught_up", MINUTES);
    load.wait_more(2_000);
    for _ in 0..3 {
        run.ctl(&["verify"]).expect(0, &["equal", "no differences"]);
        let shown = run.status_json()["verification"].clone();
        assert_eq!((&shown["differences"], &shown["unsettled"]), (&0.into(), &0.into()), "{shown}");
    }
    load.wait_more(100);
    destination.change(CHANGES);
    run.ctl(&["verify"]).expect(6, &["18 keys differ"]);
    assert_planted(&differences(&run.data().join("verify-differences.jsonl")), planted());
    load.stop();
}

fn live() -> Mixed {
    Mixed::new(3).per_second(2_000)
}

#[test]
fn a_migration_from_a_cluster_is_compared_under_live_writes() {
    let binary = require_server!();
    let source = Cluster::start(binary, Layout::new(3, 0));
    let destination = Server::start(binary, Options::new());
    source.change(PLANTED);
    source.fill(5_000);
    compared_under_live_writes(&source, &destination, live().on_cluster(&source));
}

#[test]
fn a_migration_into_a_cluster_is_compared_under_live_writes() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new());
    let destination = Cluster::start(binary, Layout::new(3, 0));
    source.change(PLANTED);
    source.fill(5_000);
    compared_under_live_writes(&source, &destination, live().on_server(&source));
}

#[test]
fn a_migration_from_a_cluster_into_another_is_compared_under_live_writes() {
    let binary = require_server!();
    let source = Cluster::start(binary, Layout::new(3, 0));
    let destination = Cluster::start(binary, Layout::new(2, 0));
    source.change(PLANTED);
    source.fill(5_000);
    compared_under_live_writes(&source, &destination, live().on_cluster(&source));
}

#[test]
fn a_node_of_a_cluster_that_is_taken_for_a_server_is_named() {
    let binary = require_server!();
    let server = Server::start(binary, Options::new());
    let cluster = Cluster::start(binary, Layout::new(1, 0));
    let setup = Setup::bare(&Side::address(&server), &Side::address(&cluster));
    Verification::of(&setup).run(&[]).expect(2, &["destination", "write 'cluster = true'"]);
}
