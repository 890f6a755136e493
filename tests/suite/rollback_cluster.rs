//! Switch, write on the new side, roll back, with a cluster on one side or on both: every acknowledged write is on the old side, counters
//! are exact, and whoever writes on the side that was left is refused.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::require_server;
use crate::support;
use crate::support::cluster::{Cluster, Layout};
use crate::support::cluster_client::slot_of;
use crate::support::everything::{Place, same};
use crate::support::movers::{Home, Movers};
use crate::support::shakedeck::Setup;
use crate::support::verification::{CHANGES, PLANTED, do_all, do_all_in_cluster};
use crate::support::{Options, Reply, Server, ServerBinary, Shakedeck, wait_until};

const MINUTES: Duration = Duration::from_secs(180);
/// The link back needs a user of its own on the old source.
const MOVER: &str = "mover on >pw ~* &* +@all";

/// One side of a migration.
trait Side: Home + Place {
    const CLUSTER: bool;
    fn at(&self) -> String;
    /// Commands with one key each.
    fn run(&self, lines: &[&str]);

    /// Users and their rights, on every master.
    fn users(&self) -> Vec<Vec<Vec<u8>>> {
        self.masters().iter_mut().map(|client| client.list(&["ACL", "LIST"])).collect()
    }

    /// Every master refuses strangers in these words.
    #[track_caller]
    fn assert_refuses(&self, word: &str) {
        let mut door = self.door();
        // In all parts of the slots.
        for number in 0..30 {
            match door.call(&["SET", &format!("stray:{number}"), "1"]) {
                Reply::Error(error) if error.contains(word) => {}
                other => panic!("a stray writer was told {other:?} by {}", self.at()),
            }
        }
    }

    /// Nothing of ours has stayed.
    #[track_caller]
    fn assert_clean(&self) {
        for client in &mut self.masters() {
            let left = support::client::keys_like(client, "shakedeck:*");
            assert!(left.is_empty(), "{left:?} stayed at {}", self.at());
        }
    }
}

impl Side for Server {
    const CLUSTER: bool = false;
    fn at(&self) -> String {
        self.address().to_string()
    }
    fn run(&self, lines: &[&str]) {
        do_all(&mut self.client(), lines);
    }
}

impl Side for Cluster {
    const CLUSTER: bool = true;
    fn at(&self) -> String {
        self.address().to_string()
    }
    fn run(&self, lines: &[&str]) {
        do_all_in_cluster(&mut self.client(), lines);
    }
}

fn setup<S: Side, D: Side>(source: &S, destination: &D) -> Setup {
    Setup::bare(&source.at(), &destination.at())
        .set("sync_reader", "cluster", &S::CLUSTER.to_string())
        .set("redis_writer", "cluster", &D::CLUSTER.to_string())
        .text("sync_reader", "username", "mover")
        .text("sync_reader", "password", "pw")
        .text("cutover", "hold_for", "200ms")
        .text("cutover", "max_lag", "5s")
        .set("cutover", "reverse", "true")
}

fn ready(run: &Shakedeck) {
    run.wait_status(MINUTES, "ready", |status| status["ready"] == true && status["state"] == "caught_up");
}

fn ready_back(run: &Shakedeck) {
    run.wait_status(MINUTES, "the reverse link is ready", |status| {
        status["state"] == "switched"
            && status["cutover"]["reverse"]["state"] == "caught_up"
            && status["ready"] == true
    });
}

/// The whole way; with `kill` the process dies while the link back runs, and is started again.
fn there_and_back<S: Side, D: Side>(source: &S, destination: &D, kill: bool) {
    source.run(PLANTED);
    let users = source.users();
    let setup = setup(source, destination);
    let mut run = setup.start();
    ready(&run);
    let forth = Movers::start(3, "forth", source, destination);
    forth.wait_more(200);
    ready(&run);
    run.ctl(&["cutover", "--yes-i-mean", &destination.at()])
        .expect(0, &["switched", "every writer but the reverse link"]);
    let status = run.status_json();
    let blocked = status["cutover"]["blocked_seconds"].as_f64().unwrap();
    support::note(&format!("switch with a reverse link: writers were blocked for {blocked:.3} s"));
    source.assert_refuses("NOPERM");
    forth.wait_more(300);
    let forth = forth.stop();
    forth.assert_moved("NOPERM");
    forth.assert_all_on(destination);
    destination.run(CHANGES);
    if kill {
        run.wait_state("switched", MINUTES);
        let home = run.folder();
        run.kill();
        let mut door = destination.door();
        for number in 0..30 {
            door.call(&["SET", &format!("while-down:{number}"), "5"]);
        }
        run = setup.start_in(home);
    }
    ready_back(&run);
    // Everything that was written on the new side, of every type.
    wait_until(MINUTES, "the old side has what the new one has", || same(source, destination).is_ok());

    let back = Movers::start(3, "back", destination, source);
    back.wait_more(200);
    ready_back(&run);
    run.ctl(&["cutover", "--yes-i-mean", &source.at()]).expect(0, &["switched"]);
    back.wait_more(200);
    let back = back.stop();
    back.assert_moved("NOREPLICAS");
    run.wait_exit(MINUTES).expect(0, &["rolled back: clients belong on", "unfence"]);
    forth.assert_all_on(source);
    back.assert_all_on(source);
    let mut door = source.door();
    for number in (0..30).filter(|_| kill) {
        assert_eq!(door.get(&format!("while-down:{number}")).as_deref(), Some(&b"5"[..]), "{number}");
    }
    for number in 0..30 {
        assert_eq!(door.get(&format!("stray:{number}")), None, "a refused write was done");
    }
    assert_eq!(source.users(), users, "the users are not as they were");
    destination.assert_refuses("NOREPLICAS");
    source.assert_clean();
    destination.assert_clean();
}

fn source_cluster(binary: &ServerBinary) -> Cluster {
    Cluster::start(binary, Layout::new(3, 0).options(Options::new().user(MOVER)))
}

/// Other slots than the source has.
fn destination_cluster(binary: &ServerBinary) -> Cluster {
    let uneven: [&[RangeInclusive<u16>]; 3] = [&[0..=9_000], &[9_001..=10_000], &[10_001..=16_383]];
    Cluster::start(binary, Layout::new(3, 0).slots(&uneven))
}

#[test]
fn a_rollback_from_cluster_to_cluster_loses_nothing_and_outlives_a_kill() {
    let binary = require_server!();
    there_and_back(&source_cluster(binary), &destination_cluster(binary), true);
}

#[test]
fn a_rollback_from_a_standalone_server_to_the_cluster_loses_nothing() {
    let binary = require_server!();
    there_and_back(&source_cluster(binary), &Server::start(binary, Options::new()), false);
}

#[test]
fn a_rollback_from_the_cluster_to_a_standalone_server_loses_nothing_and_outlives_a_kill() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new().user(MOVER));
    there_and_back(&source, &destination_cluster(binary), true);
}

/// Streams of two masters that exchange slots cannot be put in order: the way back is closed, in words, and nothing opens it again.
#[test]
fn slots_that_move_on_the_new_cluster_end_the_way_back_in_words() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new().user(MOVER));
    let destination = Cluster::start(binary, Layout::new(2, 0));
    source.run(PLANTED);
    let setup = setup(&source, &destination);
    let run = setup.start();
    ready(&run);
    run.ctl(&["cutover", "--yes-i-mean", &destination.at()]).expect(0, &["switched"]);
    ready_back(&run);
    let slot = slot_of(b"plant:same");
    let from = destination.owner(slot);
    destination.reshard(from, 1 - from, [slot]);
    let closed = |run: &Shakedeck| {
        run.wait_status(MINUTES, "the way back is closed", |status| {
            status["cutover"]["reverse"]["state"] == "failed"
        });
        let output = run.output();
        for words in ["have moved", "does not come back any more", "a rollback would lose"] {
            assert!(output.contains(words), "'{words}' is not in\n{output}");
        }
        run.ctl(&["cutover", "--yes-i-mean", &source.at()]).expect(7, &[]);
        source.assert_refuses("NOPERM");
    };
    closed(&run);
    let home = run.folder();
    run.kill();
    closed(&setup.start_in(home));
    // The new side is not touched.
    assert_eq!(destination.client().bytes(&["GET", "plant:same"]).as_deref(), Some(&b"value"[..]));
}
