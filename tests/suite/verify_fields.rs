//! Hashes with fields that expire (Redis 7.4, Valkey 9): a server counts those that it has not removed yet, and a paused one
//! removes none.

use std::time::Duration;

use crate::support;
use crate::support::gate::Gate;
use crate::support::shakedeck::Setup;
use crate::support::verification::{LATER, Verification, expected};
use crate::support::{Client, Options, Server, ServerBinary, dataset, servers, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

/// The servers that know times of hash fields.
fn with_field_times() -> Vec<&'static ServerBinary> {
    let found: Vec<_> = servers::all().iter().filter(|binary| binary.at_least((7, 4), (9, 0))).collect();
    if found.is_empty() {
        support::skip("no Redis 7.4 or Valkey 9 (run tests/fetch-servers)");
    }
    found
}

/// Hashes of which fields last until `at`; `hash:gone` has no others, `hash:big` is over 1 MiB.
fn fill(client: &mut Client, at: &str) {
    let filler = "x".repeat(300);
    for n in 0..6_000 {
        client.push(&["HSET", "hash:big", &format!("field:{n}"), &filler]);
    }
    client.flush(6_000);
    for key in ["hash:small", "hash:big", "hash:gone"] {
        for field in ["a", "b"] {
            client.ok(&["HSET", key, field, "1"]);
            client.ok(&["HPEXPIREAT", key, at, "FIELDS", "1", field]);
        }
    }
    client.ok(&["HSET", "hash:small", "c", "1", "d", "1"]);
    client.ok(&["HPEXPIREAT", "hash:small", LATER, "FIELDS", "1", "d"]);
}

fn fields_go(destination: &Server) {
    let mut client = destination.client();
    wait_until(MINUTES, "the destination removes the fields", || {
        ["hash:small", "hash:big", "hash:gone"].map(|key| client.integer(&["HLEN", key])) == [2, 6_000, 0]
    });
}

#[test]
fn fields_that_have_expired_on_one_side_are_no_difference_and_others_are() {
    for binary in with_field_times() {
        let source = Server::start(binary, Options::new());
        let destination = Server::start(binary, Options::new());
        let at = (dataset::unix_ms(&mut source.client()) + 1_500).to_string();
        for server in [&source, &destination] {
            fill(&mut server.client(), &at);
        }
        source.client().ok(&["CLIENT", "PAUSE", "600000", "WRITE"]);
        fields_go(&destination);
        assert_eq!(source.client().integer(&["HLEN", "hash:small"]), 4, "{binary} removes none");
        for (from, to) in [(&source, &destination), (&destination, &source)] {
            let verification = Verification::new(from, to);
            for mode in ["count", "meta", "digest", "full"] {
                verification.run(&["--mode", mode, "--rounds", "2"]).expect(0, &["no differences"]);
            }
        }
        let mut to = destination.client();
        for (key, field) in [("hash:small", "c"), ("hash:big", "field:5999")] {
            to.ok(&["HDEL", key, field]);
        }
        to.ok(&["HSET", "hash:gone", "e", "1"]);
        let found = ["0:hash:small", "0:hash:big"].map(|key| (key, &["value"][..]));
        let verification = Verification::new(&source, &destination);
        for mode in ["meta", "full"] {
            verification.run(&["--mode", mode]).expect(6, &["3 keys differ"]);
            let mut all = verification.found();
            all.remove("0:hash:gone").expect("a field too many");
            assert_eq!(all, expected(&found), "{binary}, {mode}");
        }
        // The other way round: a field too many, and a time that is not over, are found as well.
        let verification = Verification::new(&destination, &source);
        for mode in ["meta", "full"] {
            verification.run(&["--mode", mode]).expect(6, &["3 keys differ"]);
        }
        to.ok(&["HDEL", "hash:gone", "e"]);
        to.ok(&["HSET", "hash:small", "c", "1"]);
        to.ok(&["HSET", "hash:big", "field:5999", &"x".repeat(300)]);
        to.ok(&["HDEL", "hash:small", "d"]);
        let verification = Verification::new(&source, &destination);
        verification.run(&["--mode", "meta"]).expect(6, &["1 key differs"]);
        assert_eq!(verification.found(), expected(&[("0:hash:small", &["value"])]), "{binary}");
    }
}

#[test]
fn fields_that_expire_while_writers_wait_do_not_take_the_cutover_back() {
    for binary in with_field_times() {
        for mode in ["count", "meta", "full"] {
            let source = Server::start(binary, Options::new());
            let destination = Server::start(binary, Options::new());
            let at = dataset::unix_ms(&mut source.client()) + 6_000;
            fill(&mut source.client(), &at.to_string());
            let setup = Setup::new(&source, &destination).text("cutover", "verify", mode);
            let gate = Gate::start(setup.set("cutover", "sample", "0"), &destination);
            let exit = gate.cutover(|| {
                let mut client = destination.client();
                wait_until(MINUTES, "their time is over", || dataset::unix_ms(&mut client) > at + 100);
                let imports = client.list(&["CONFIG", "GET", "import-mode"]);
                if imports.last().is_none_or(|mode| mode != b"yes") {
                    fields_go(&destination);
                }
            });
            exit.expect(0, &["switched", "no differences"]);
        }
    }
}

/// The same between servers of which only one knows such times.
#[test]
fn a_digest_covers_neither_counters_of_streams_nor_times_of_fields() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    for server in [&source, &destination] {
        server.client().ok(&["XADD", "stream", "1-1", "f", "v"]);
    }
    let verification = Verification::new(&source, &destination);
    destination.client().ok(&["XSETID", "stream", "9-9"]);
    verification.run(&["--mode", "digest"]).expect(0, &["(digest): equal", "no differences"]);
    verification.run(&["--mode", "full"]).expect(6, &["1 key differs"]);
    assert_eq!(verification.found(), expected(&[("0:stream", &["stream"])]));
    for binary in with_field_times() {
        let source = Server::start(binary, Options::new());
        let destination = Server::start(binary, Options::new());
        for (server, at) in [(&source, LATER), (&destination, "4102444902500")] {
            server.client().ok(&["HSET", "hash", "a", "1", "b", "1"]);
            server.client().ok(&["HPEXPIREAT", "hash", at, "FIELDS", "1", "a"]);
        }
        let verification = Verification::new(&source, &destination);
        verification.run(&["--mode", "digest"]).expect(0, &["(digest): equal", "no differences"]);
        verification.run(&["--mode", "full"]).expect(6, &["1 key differs"]);
        assert_eq!(verification.found(), expected(&[("0:hash", &["field_ttl"])]), "{binary}");
    }
}
