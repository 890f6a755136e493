//! The cutover and the verification with every server that there is, as source and as destination: the writers are
//! moved and every acknowledged write is on the destination; then planted differences of every kind are found and mended.
//!
//! The time that writers were blocked is printed.

use std::time::Duration;

use crate::support;
use crate::support::client::keys_like;
use crate::support::movers::Movers;
use crate::support::shakedeck::Setup;
use crate::support::verification::{CHANGES, LATER, PLANTED, Verification, assert_planted, do_all, planted};
use crate::support::{Client, Options, Server, ServerBinary, compare, servers};

const MINUTES: Duration = Duration::from_secs(120);

/// The planted keys, also on a server that does not know all of the commands.
fn plant(client: &mut Client, old: bool) {
    for line in PLANTED {
        match line.split_once(" PXAT ").filter(|_| old) {
            Some((set, time)) => {
                let key = set.split(' ').nth(1).unwrap();
                do_all(client, &[set, &format!("PEXPIREAT {key} {time}")]);
            }
            // Reading makes the consumer; what it reads stays pending with it.
            None if old && line.starts_with("XGROUP CREATECONSUMER") => {
                do_all(client, &["XREADGROUP GROUP g bob COUNT 1 STREAMS plant:consumer >"]);
            }
            None => do_all(client, &[line]),
        }
    }
}

fn one(from: &ServerBinary, to: &ServerBinary) {
    println!("{from} -> {to}");
    let (source, destination) = (Server::start(from, Options::new()), Server::start(to, Options::new()));
    // Before 6.2 everything is paused, which answers no questions and cannot be made to refuse.
    let old = from.version < (6, 2, 0);
    plant(&mut source.client(), old);
    let run = Setup::new(&source, &destination)
        .text("cutover", "hold_for", "100ms")
        .text("cutover", "max_lag", "5s")
        .text("cutover", "verify", "full")
        .set("cutover", "sample", "0")
        .text("cutover", "source_after", if old { "release" } else { "refuse" })
        .text("cutover", "fence_timeout", "4s")
        .start();
    let ready = || {
        run.wait_status(MINUTES, "ready", |status| status["ready"] == true && status["state"] == "caught_up")
    };
    ready();

    let cutover = || run.ctl(&["cutover", "--yes-i-mean", &destination.address().to_string()]);
    if old {
        // Its clients must be kept away: nothing would refuse them.
        cutover().expect(0, &["switched", "CLIENT PAUSE 4000 on 1 of 1", "takes writes again"]);
    } else {
        let writers = Movers::start(2, "w", &source, &destination);
        writers.wait_more(100);
        ready();
        cutover().expect(
            0,
            &["switched", "CLIENT PAUSE 4000 WRITE on 1 of 1", "keys of both sides compared, no differences"],
        );
        writers.wait_more(100);
        let written = writers.stop();
        written.assert_moved("NOREPLICAS");
        written.assert_all_on(&destination);
        assert!(source.client().error(&["SET", "stray", "1"]).starts_with("NOREPLICAS"));
    }
    let status = run.status_json();
    let blocked = status["cutover"]["blocked_seconds"].as_f64().unwrap();
    support::note(&format!("cutover {from} -> {to}: writers were blocked for {blocked:.3} s"));
    let mut client = destination.client();
    let left = client.list(&["KEYS", "shakedeck:*"]);
    assert!(left.is_empty(), "{left:?} stayed behind");
    run.ctl(&["unfence"]).expect(0, &["unfenced"]);

    // What was written after the switch is on the destination only, as it should be.
    for key in keys_like(&mut client, "w:*") {
        client.ok(&[b"DEL", key.as_slice()]);
        source.client().ok(&[b"DEL", key.as_slice()]);
    }
    let verification = Verification::new(&source, &destination);
    // Without any tolerance, too: a server before 7.0 tells the time that is left, of which the time of expiry is known only about.
    verification.run(&["--mode", "full", "--ttl-tolerance", "0s"]).expect(0, &["no differences"]);
    do_all(&mut client, CHANGES);
    verification.run(&["--mode", "full"]).expect(6, &["18 keys differ"]);
    assert_planted(&verification.found(), planted());
    verification.run(&["--mode", "full", "--repair", "--delete-extra"]).expect(0, &["18 repaired"]);
    verification.run(&["--mode", "full"]).expect(0, &["no differences"]);
    if from == to {
        // What was within the tolerance is left alone. (Other versions tell more, or less, of a stream.)
        client.ok(&["PEXPIREAT", "plant:near", LATER]);
        compare::assert_equal(&source, &destination);
    }
}

fn is_default(binary: &ServerBinary) -> bool {
    servers::default().is_some_and(|default| default == binary)
}

/// The other tests of the cutover use the release's own server.
#[test]
fn every_server_hands_over_to_one_of_its_own_version() {
    let others: Vec<&ServerBinary> = servers::all().iter().filter(|binary| !is_default(binary)).collect();
    if others.is_empty() {
        support::skip("no server but redis-server on PATH (run tests/fetch-servers)");
    }
    others.into_iter().for_each(|binary| one(binary, binary));
}

/// From the oldest and from the usual one to the newest, and from the newest to the one before it.
#[test]
fn servers_hand_over_to_newer_ones() {
    let all = servers::all();
    let newest = |flavor| all.iter().rfind(|binary| binary.flavor == flavor);
    let (Some(default), Some(oldest)) = (servers::default(), all.first()) else {
        return support::skip("no server (run tests/fetch-servers)");
    };
    let newest = [newest(support::Flavor::Redis), newest(support::Flavor::Valkey)];
    let mut pairs = Vec::new();
    for to in newest.into_iter().flatten() {
        pairs.extend([oldest, default].map(|from| (from, to)));
        let before = all.iter().rfind(|binary| binary.flavor == to.flavor && binary.version < to.version);
        pairs.extend(before.map(|from| (from, to)));
    }
    pairs.retain(|(from, to)| from != to);
    pairs.sort_by_key(|(from, to)| (from.flavor, from.version, to.flavor));
    pairs.dedup();
    if pairs.is_empty() {
        support::skip("no server but redis-server on PATH (run tests/fetch-servers)");
    }
    pairs.into_iter().for_each(|(from, to)| one(from, to));
}
