//! `count`: exact for keys without a time to live, patient with those that have one, and quick where writers wait for it.

use std::time::Duration;

use crate::support::gate::Gate;
use crate::support::load::{Load, Writer};
use crate::support::shakedeck::{Setup, Shakedeck, binary};
use crate::support::verification::{LATER, Verification, differences, expected};
use crate::support::{Client, Options, Server, dataset, servers, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

/// A source and a destination that removes keys as soon as their time is over.
fn pair() -> Option<(Server, Server)> {
    let binary = servers::default()?;
    let prompt = Options::new().config("hz", "500").config("dynamic-hz", "no");
    Some((Server::start(binary, Options::new()), Server::start(binary, prompt)))
}

/// Keys for the next half minute, of which some go at every moment.
fn fill_with_sessions(client: &mut Client) {
    let now = dataset::unix_ms(client);
    for n in 0..6_000 {
        client.push(&["SET", &format!("session:{n}"), "x", "PXAT", &(now + 5 * n).to_string()]);
    }
    client.flush(6_000);
}

fn sessions_go(destination: &Server) {
    let mut client = destination.client();
    let before = client.integer(&["DBSIZE"]);
    wait_until(MINUTES, "keys go", || client.integer(&["DBSIZE"]) < before - 100);
}

fn gate(source: &Server, destination: &Server) -> Gate {
    Gate::start(Setup::new(source, destination).text("cutover", "verify", "count"), destination)
}

fn blocked(run: &Shakedeck) -> f64 {
    run.status_json()["cutover"]["blocked_seconds"].as_f64().unwrap()
}

#[test]
fn keys_that_expire_while_writers_wait_are_no_difference() {
    let Some((source, destination)) = pair() else { return };
    dataset::fill(&mut source.client(), 2_000, 1);
    fill_with_sessions(&mut source.client());
    let gate = gate(&source, &destination);
    gate.cutover(|| {
        sessions_go(&destination);
        // A paused source removes none.
        assert!(source.client().integer(&["DBSIZE"]) > destination.client().integer(&["DBSIZE"]));
    })
    .expect(0, &["switched", "no differences"]);
    assert!(blocked(&gate.run) < 30.0);
}

#[test]
fn a_key_that_is_missing_is_found_while_others_expire() {
    let Some((source, destination)) = pair() else { return };
    dataset::fill(&mut source.client(), 2_000, 1);
    source.client().ok(&["SET", "lasting", "x"]);
    source.client().ok(&["SET", "volatile", "x", "PXAT", LATER]);
    fill_with_sessions(&mut source.client());
    let gate = gate(&source, &destination);
    gate.cutover(|| {
        sessions_go(&destination);
        destination.client().ok(&["DEL", "lasting"]);
    })
    .expect(7, &["the sides differ: count", "1 databases differ"]);
    let list = gate.run.data().join("cutover-1-differences.jsonl");
    assert_eq!(differences(&list), expected(&[("0:", &["count"])]));
    let text = std::fs::read_to_string(&list).unwrap();
    assert!(text.contains("keys without a time to live"), "{text}");
}

#[test]
fn a_key_with_a_time_to_live_that_is_missing_is_found_while_others_expire() {
    let Some((source, destination)) = pair() else { return };
    source.client().ok(&["SET", "volatile", "x", "PXAT", LATER]);
    fill_with_sessions(&mut source.client());
    let gate = gate(&source, &destination);
    gate.cutover(|| {
        sessions_go(&destination);
        destination.client().ok(&["DEL", "volatile"]);
    })
    .expect(7, &["the sides differ: count", "1 key differs"]);
    let list = gate.run.data().join("cutover-1-differences.jsonl");
    assert_eq!(differences(&list), expected(&[("0:volatile", &["missing"])]));
}

/// What other runs have left there neither counts nor makes up for a key that is missing.
#[test]
fn own_keys_of_other_runs_hide_nothing() {
    let Some((source, destination)) = pair() else { return };
    dataset::fill(&mut source.client(), 1_000, 1);
    source.client().ok(&["SET", "lasting", "x"]);
    destination.client().ok(&["HSET", "shakedeck:checkpoint:another", "a", "b"]);
    destination.client().ok(&["SET", "shakedeck:building:another", "x", "PXAT", LATER]);
    source.client().ok(&["SET", "shakedeck:checkpoint:former", "x"]);
    let first = gate(&source, &destination);
    first
        .cutover(|| {
            destination.client().ok(&["DEL", "lasting"]);
        })
        .expect(7, &["the sides differ: count"]);
    drop(first);
    destination.client().ok(&["SET", "lasting", "x"]);
    let second =
        Setup::new(&source, &destination).text("advanced", "rdb_restore_command_behavior", "rewrite");
    let second = Gate::start(second.text("cutover", "verify", "count"), &destination);
    second.cutover(|| ()).expect(0, &["switched", "no differences"]);
}

/// Writers wait for a few answers only, however many keys there are.
#[test]
fn nothing_is_scanned_while_writers_wait_for_numbers_that_agree() {
    let Some((source, destination)) = pair() else { return };
    dataset::fill(&mut source.client(), 2_000, 1);
    // Several pages.
    for database in ["3", "4"] {
        let mut client = source.client();
        client.ok(&["SELECT", database]);
        (0..12_000).for_each(|n| client.push(&["SET", &format!("more:{n}"), "x"]));
        client.flush(12_000);
    }
    let gate = gate(&source, &destination);
    let scans = || {
        [&source, &destination].map(|server| {
            let calls = server.client().info("commandstats", "cmdstat_scan").unwrap_or("calls=0,".into());
            let calls = calls.strip_prefix("calls=").and_then(|rest| rest.split(',').next());
            calls.and_then(|calls| calls.parse::<u64>().ok()).unwrap()
        })
    };
    let mut before = [0; 2];
    gate.cutover(|| before = scans()).expect(0, &["switched", "no differences"]);
    // With one on each side it is found out whether the user may.
    assert_eq!(scans(), before.map(|calls| calls + 1), "SCAN while writers were blocked");
}

/// Too many keys to look at them while somebody waits: it ends in time, says so, and believes only what expiry explains.
#[test]
fn a_count_ends_in_time_and_says_what_it_did_not_look_at() {
    let Some((source, destination)) = pair() else { return };
    for server in [&source, &destination] {
        server.client().ok(&["DEBUG", "POPULATE", "2000000"]);
    }
    // Its time is over, and this server does not remove it.
    let mut from = source.client();
    from.ok(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    from.ok(&["SET", "soon", "x", "PX", "1"]);
    let verification = Verification::new(&source, &destination);
    let words = ["no differences", "keys with a time to live, which may have expired", "and none is missing"];
    let exit = verification.run(&["--mode", "count"]);
    exit.expect(0, &words);
    // Nothing that could have happened on the way explains a key too many, or one that does not expire.
    let mut to = destination.client();
    for n in 0..2 {
        to.ok(&["SET", &format!("extra:{n}"), "x", "PXAT", LATER]);
    }
    verification.run(&["--mode", "count"]).expect(6, &["differ"]);
    to.ok(&["DEL", "extra:0", "extra:1", "key:7"]);
    verification.run(&["--mode", "count"]).expect(6, &["1 databases differ"]);
}

/// The command by itself beside a running migration, with keys that come and go.
#[test]
fn under_live_writes_numbers_come_to_agree_or_are_not_judged() {
    let Some((source, destination)) = pair() else { return };
    dataset::fill(&mut source.client(), 10_000, 1);
    fill_with_sessions(&mut source.client());
    let run = Setup::new(&source, &destination).start();
    run.wait_state("caught_up", MINUTES);
    let writer = Writer::start(&source, Load { seed: 7, keys: 10_000, per_second: 1_000 });
    for _ in 0..3 {
        let output = std::process::Command::new(binary())
            .args(["verify", "shake.toml", "--mode", "count"])
            .current_dir(run.folder().path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains("no differences"), "{text}");
    }
    writer.stop();
}
