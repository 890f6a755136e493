//! The clusters of the harness: they form, reshard and fail over under a load, and the comparison of two places sees what it must.

use std::time::Duration;

use crate::require_server;
use crate::support;
use crate::support::cluster_client::slot_of;
use crate::support::everything::{assert_same, assert_same_in, same};
use crate::support::mixed_load::Mixed;
use crate::support::{Cluster, Layout, Options, Server, servers, wait_until};

/// From the cluster specification, and what servers say.
#[test]
fn slots_are_those_of_the_specification() {
    let binary = require_server!();
    let cluster = Cluster::start(binary, Layout::new(1, 0));
    assert_eq!(slot_of(b"123456789"), 0x31c3);
    for key in
        ["", "a", "{user1000}.following", "foo{}{bar}", "foo{{bar}}zap", "foo{bar}{zap}", "x}y{z", "{}"]
    {
        let asked = cluster.client_of(0).integer(&["CLUSTER", "KEYSLOT", key]);
        assert_eq!(i64::from(slot_of(key.as_bytes())), asked, "{key}");
    }
}

/// Nothing is lost and nothing comes twice in the harness itself, on every server: a cluster that is resharded and fails over in
/// order under a load that never does anything twice ends up with each key at the owner of its slot.
#[test]
fn a_cluster_reshards_and_fails_over_under_load_on_every_version() {
    let _ = require_server!();
    for binary in servers::all() {
        let uneven =
            Layout::new(3, 1).slots(&[&[0..=99, 12_000..=16_383], &[100..=5_000], &[5_001..=11_999]]);
        let mut cluster = Cluster::start(binary, uneven.full_coverage(false));
        assert_eq!(cluster.masters(), [0, 1, 2], "{binary}");
        assert_eq!((cluster.owner(99), cluster.owner(16_383), cluster.owner(6_000)), (0, 0, 2));
        if binary.version < (6, 2, 0) {
            continue; // it does not speak the whole language of the load
        }
        let load = Mixed::new(1).on_cluster(&cluster);
        load.wait_more(2_000);
        cluster.reshard(0, 1, 12_000..12_200);
        assert_eq!(cluster.slot_count(1), 4_901 + 200, "{binary}");
        let promoted = cluster.fail_over(2);
        assert_eq!((cluster.owner(6_000), cluster.replicas(promoted)), (promoted, vec![2]), "{binary}");
        load.wait_more(2_000);
        let done = load.stop();
        assert!(done.again > 0, "the load met no moved slot: {done:?}");
        let keys = assert_same(&cluster, &cluster).keys;
        assert!(keys > 500, "{binary}: {keys}");

        // A crash: what its replica had is there again.
        let client = cluster.client().keys_like("*").len();
        let promoted = cluster.fail_over_by_death(0);
        assert_eq!(cluster.owner(0), promoted, "{binary}");
        assert_eq!(cluster.client().keys_like("*").len(), client, "{binary}");
        cluster.restart(0);
        cluster.wait_ok();
        // It finds out by itself that it was replaced.
        wait_until(Duration::from_secs(60), "the old master is a replica", || {
            cluster.replicas(promoted) == [0]
        });
    }
}

/// The comparison sees what is missing, more, different or misplaced, in any order of standalone and cluster.
#[test]
fn the_comparison_of_two_places_sees_every_difference() {
    let binary = require_server!();
    let server = Server::start(binary, Options::new());
    let cluster = Cluster::start(binary, Layout::new(3, 0));
    let load = Mixed::new(5).on_server(&server);
    load.wait_more(5_000);
    load.stop();
    // By the test's own hand, without the tool.
    let mut source = server.client();
    let mut client = cluster.client();
    for key in support::client::keys_like(&mut source, "*") {
        let dump = source.bytes(&[b"DUMP".as_slice(), &key]).unwrap();
        let expires = source.integer(&[b"PEXPIRETIME".as_slice(), &key]).max(0).to_string();
        client.ok(&[b"RESTORE".as_slice(), &key, expires.as_bytes(), &dump, b"REPLACE", b"ABSTTL"]);
    }
    source.ok(&["SET", "shakedeck:left-out", "x"]);
    client.ok(&["SET", "shakedeck:another", "x"]);
    let keys = assert_same(&server, &cluster).keys;
    assert!(keys > 500, "{keys}");
    assert_eq!(assert_same(&cluster, &server).keys, keys);

    let expect = |words: &[&str]| {
        let differences = same(&server, &cluster).unwrap_err();
        assert_eq!(differences.count, words.len(), "{differences:?}");
        for word in words {
            assert!(differences.listed.iter().any(|line| line.contains(word)), "{word}: {differences:?}");
        }
    };
    client.ok(&["SET", "more", "x"]);
    expect(&["'more' is only on the destination"]);
    source.ok(&["SET", "more", "x"]);
    source.ok(&["SET", "less", "x", "PX", "1000000"]);
    expect(&["'less' is missing on the destination"]);
    client.ok(&["SET", "less", "y"]);
    expect(&["'less' expires on the source at", "'less': source string 'x', destination string 'y'"]);
    source.ok(&["DEL", "less"]);
    client.ok(&["DEL", "less"]);
    assert_same(&server, &cluster);
    // One copy where it does not belong.
    let slot = slot_of(b"more");
    let wrong = (0..3).find(|n| *n != cluster.owner(slot)).unwrap();
    let mut node = cluster.client_of(wrong);
    node.ok(&["CLUSTER", "SETSLOT", &slot.to_string(), "IMPORTING", &cluster.id(cluster.owner(slot))]);
    node.push(&["ASKING"]);
    node.push(&["SET", "more", "x"]);
    node.flush(2);
    expect(&["which does not own its slot"]);

    // Another number of the database.
    let second = Server::start(binary, Options::new());
    let mut other = second.client();
    other.ok(&["SELECT", "3"]);
    other.ok(&["SET", "more", "x"]);
    let only = Server::start(binary, Options::new());
    only.client().ok(&["SET", "more", "x"]);
    assert_eq!(assert_same_in(&second, &only, |database| (database == 3).then_some(0)).keys, 1);
    assert_eq!(same(&second, &only).unwrap_err().count, 2);
}
