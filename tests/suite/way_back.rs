//! The way back of a cutover where the link to the source does not do what it should: whatever was sent and not answered, in
//! the end the source takes writes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cutover::{Cutover, MINUTES, assert_streams, ready, rights, setup};
use crate::support::proxy::Proxy;
use crate::support::shakedeck::Setup;
use crate::support::{self, Options, Server, Shakedeck, dataset, wait_until};

/// Part of the CONFIG SET by which the source is told to refuse writes.
const REFUSAL: &[u8] = b"1000000";

/// A cutover whose refusal hangs on its way to the source. Returns when it went back because of that.
fn with_a_refusal_that_hangs(setup: &Setup, proxy: &Proxy, destination: &Server) -> Shakedeck {
    let run = setup.start();
    ready(&run);
    proxy.hold_from(REFUSAL);
    Cutover::start(&run, destination).end().expect(7, &["no answer to CONFIG"]);
    run
}

/// Two servers, and a user on the source that may copy, compare, and this.
fn with_rights(cutover: &str) -> Option<(Server, Server)> {
    let rules = format!("mover on >pw {} {} {cutover}", rights("source"), rights("verify"));
    let (source, destination) = support::pair(Options::new().user(&rules))?;
    dataset::fill(&mut source.client(), 500, 1);
    Some((source, destination))
}

/// A migration of that user, whose link to the source leads through a proxy.
fn through(proxy: &Proxy, source: &Server, destination: &Server) -> Setup {
    setup(source, destination)
        .text("sync_reader", "address", &proxy.address())
        .text("sync_reader", "username", "mover")
        .text("sync_reader", "password", "pw")
        .text("cutover", "fence_timeout", "4s")
}

fn refuses(source: &Server) -> bool {
    source.client().list(&["CONFIG", "GET", "min-replicas-to-write"])[1] == REFUSAL
}

/// The control connections, by their ids.
fn controls(source: &Server) -> BTreeSet<String> {
    let list = source.client().text(&["CLIENT", "LIST"]);
    let named = list.lines().filter(|line| line.contains("name=shakedeck-cutover"));
    named.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

fn refusing(status: &Value) -> usize {
    status["cutover"]["refusing"].as_array().map_or(0, Vec::len)
}

#[test]
fn a_refusal_that_hangs_finds_its_connection_closed() {
    let Some((source, destination)) = with_rights(&rights("cutover")) else { return };
    let proxy = Proxy::start(source.address(), 1);
    let setup = through(&proxy, &source, &destination);
    let run = with_a_refusal_that_hangs(&setup, &proxy, &destination);
    assert!(proxy.is_holding(), "nothing hung");
    assert_eq!(refusing(&run.status_json()), 0);
    assert_eq!(controls(&source), BTreeSet::new());
    proxy.deliver();
    assert_streams(&run, &source, &destination, "after-the-late-refusal");
    assert!(!refuses(&source));
}

#[test]
fn where_connections_may_not_be_closed_it_is_put_back_again() {
    let narrow = rights("cutover").replace("+client|kill", "");
    let Some((source, destination)) = with_rights(&narrow) else { return };
    let proxy = Proxy::start(source.address(), 1);
    let setup = through(&proxy, &source, &destination);
    let run = with_a_refusal_that_hangs(&setup, &proxy, &destination);
    assert!(run.output().contains("may still arrive"), "{}", run.output());
    assert_eq!(refusing(&run.status_json()), 1, "it is not shown");
    Cutover::start(&run, &destination).end().expect(7, &["not begun", "still refuses writes"]);
    let old = controls(&source);
    assert!(!old.is_empty());
    proxy.deliver();
    // They are read to their ends, and so the refusal has arrived. What lifts it is another try.
    wait_until(MINUTES, "the old connections end", || controls(&source).is_disjoint(&old));
    wait_until(MINUTES, "it is put back again", || !refuses(&source));
    assert_streams(&run, &source, &destination, "after-the-late-refusal");
}

/// The operator is quicker, and begins another cutover: what put back the first one does not touch it.
#[test]
fn what_puts_back_one_cutover_leaves_the_next_one_alone() {
    let narrow = rights("cutover").replace("+client|kill", "");
    let Some((source, destination)) = with_rights(&narrow) else { return };
    let proxy = Proxy::start(source.address(), 1);
    let run = with_a_refusal_that_hangs(&through(&proxy, &source, &destination), &proxy, &destination);
    let old = controls(&source);
    proxy.hold_from(b"not to be sent");
    proxy.deliver();
    wait_until(MINUTES, "the old connections end", || controls(&source).is_disjoint(&old));
    run.ctl(&["unfence"]).expect(0, &["unfenced"]);
    run.ctl(&["acknowledge"]).expect(0, &[]);
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["switched"]);
    // For some of its rounds.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(7) {
        assert!(refuses(&source), "it was opened after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    let record = std::fs::read(run.data().join("cutover.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&record).unwrap()["switched"], true);
}

/// `kill -9` behind the switch of a rollback: the next start says so, and opens the old side.
#[test]
fn a_rollback_that_was_killed_behind_its_switch_is_finished() {
    let Some((source, destination)) = support::pair(Options::new().user("mover on >pw ~* &* +@all")) else {
        return;
    };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = setup(&source, &destination)
        .text("sync_reader", "username", "mover")
        .text("sync_reader", "password", "pw")
        .set("cutover", "reverse", "true");
    let run = setup.start();
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["switched"]);
    run.wait_state("switched", MINUTES);
    let (home, data) = (run.folder(), run.data());
    run.kill();
    assert!(source.client().error(&["SET", "free", "1"]).starts_with("NOPERM"));
    // As it stands on disk from that switch on.
    let record = serde_json::json!({
        "switched": true, "unix_ms": 1, "restore": [],
        "source": destination.address().to_string(), "destination": source.address().to_string(),
    });
    std::fs::write(data.join("reverse/cutover.json"), record.to_string()).unwrap();
    setup.start_in(home).wait_exit(MINUTES).expect(0, &["rolled back: clients belong on"]);
    source.client().ok(&["SET", "free", "1"]);
    assert!(source.client().list(&["KEYS", "shakedeck:checkpoint:*"]).is_empty());
}

#[test]
fn a_source_out_of_reach_is_put_back_when_it_answers() {
    let Some((source, destination)) = with_rights(&rights("cutover")) else { return };
    let proxy = Proxy::start(source.address(), 1);
    let setup = through(&proxy, &source, &destination);
    for end in ["none", "killed", "stopped"] {
        let run = setup.start();
        ready(&run);
        source.client().ok(&["CONFIG", "SET", "min-replicas-max-lag", "0"]);
        // The first of the two settings is answered with the second one on its way.
        proxy.hold_from(b"min-replicas-max-lag\r\n$2\r\n10");
        let cutover = Cutover::start(&run, &destination);
        wait_until(MINUTES, "it hangs", || proxy.is_holding());
        proxy.deafen();
        cutover.end().expect(7, &["no answer to CONFIG"]);
        assert!(refuses(&source));
        run.wait_status(MINUTES, "shown", |status| {
            refusing(status) == 1 && status["unread_errors"].as_u64() > Some(0)
        });
        let run = match end {
            "killed" => {
                let home = run.folder();
                run.kill();
                setup.start_in(home)
            }
            "stopped" => {
                let home = run.folder();
                run.terminate();
                run.wait_exit(MINUTES).expect(75, &["may still refuse writes", "unfence"]);
                setup.start_in(home)
            }
            _ => run,
        };
        proxy.hold_from(b"not to be sent");
        proxy.calm();
        proxy.deliver();
        run.wait_status(MINUTES, "put back", |status| refusing(status) == 0);
        assert!(!refuses(&source));
        assert_streams(&run, &source, &destination, "after-all");
        assert!(run.output().contains("takes writes again"), "{}", run.output());
        run.ctl(&["stop", "--forget"]).expect(0, &[]);
        run.wait_exit(MINUTES).expect(0, &[]);
        destination.client().ok(&["FLUSHALL"]);
    }
}

/// `kill -9` behind the switch and before anything was cleaned up: the next start cleans up, and copies nothing.
#[test]
fn checkpoints_that_a_killed_process_has_left_are_removed() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = setup(&source, &destination);
    let run = setup.start();
    ready(&run);
    let (home, data) = (run.folder(), run.data());
    run.kill();
    // As it stands on disk from the switch on.
    let record = serde_json::json!({
        "switched": true, "unix_ms": 1, "restore": [],
        "source": source.address().to_string(), "destination": destination.address().to_string(),
    });
    std::fs::write(data.join("cutover.json"), record.to_string()).unwrap();
    assert_eq!(destination.client().list(&["KEYS", "shakedeck:*"]).len(), 1);
    source.client().ok(&["SET", "stray", "1"]);
    for _ in 0..2 {
        setup.start_in(home.clone()).wait_exit(MINUTES).expect(2, &["this migration was switched at"]);
        assert_eq!(destination.client().list(&["KEYS", "shakedeck:*"]).len(), 0);
        assert_eq!(destination.client().bytes(&["GET", "stray"]), None);
    }
}
