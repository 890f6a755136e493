//! The way back of a cutover where the link to the source does not do what it should: whatever was sent and not answered, in
//! the end the source takes writes.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cutover::{Cutover, MINUTES, assert_streams, pair, ready, rights, setup};
use crate::support::proxy::Proxy;
use crate::support::shakedeck::Setup;
use crate::support::{Options, Server, Shakedeck, dataset, wait_until};

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
    let (source, destination) = pair(Options::new().user(&rules))?;
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
    let rules = format!("mover on >pw {} {} {}", rights("source"), rights("verify"), rights("cutover"));
    let Some((source, destination)) = pair(Options::new().user(&rules)) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let proxy = Proxy::start(source.address(), 1);
    let setup = through(&proxy, &source, &destination).text("sync_reader", "username", "mover").text(
        "sync_reader",
        "password",
        "pw",
    );
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
    let rules = format!("mover on >pw {} {} {narrow}", rights("source"), rights("verify"));
    let Some((source, destination)) = pair(Options::new().user(&rules)) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let proxy = Proxy::start(source.address(), 1);
    let setup = through(&proxy, &source, &destination).text("sync_reader", "username", "mover").text(
        "sync_reader",
        "password",
        "pw",
    );
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

#[test]
fn a_source_out_of_reach_is_put_back_when_it_answers() {
    let Some((source, destination)) = with_rights(&rights("cutover")) else { return };
    let proxy = Proxy::start(source.address(), 1);
    let setup = through(&proxy, &source, &destination);
    for killed in [false, true] {
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
        let run = match killed {
            false => run,
            true => {
                let home = run.folder();
                run.kill();
                setup.start_in(home)
            }
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
    let Some((source, destination)) = pair(Options::new()) else { return };
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
