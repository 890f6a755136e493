//! TLS, client certificates and users with few rights, as in production; and what is said when one of them is wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::require_server;
use crate::support::cluster::{Cluster, Layout};
use crate::support::everything::assert_same;
use crate::support::load::{Load, Writer};
use crate::support::mixed_load::Mixed;
use crate::support::shakedeck::Setup;
use crate::support::{Options, Server, ServerBinary, compare, dataset, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

/// What the README says behind `side` in its list of rights, for the user `shakedeck`.
fn documented_rules(side: &str) -> String {
    let readme = std::fs::read_to_string("README.md").unwrap();
    let lines = readme.lines().filter(|line| line.starts_with(&format!("{side} ")));
    let rules = lines.filter_map(|line| line.split_once(" ACL SETUSER shakedeck on >password "));
    rules.map(|(_, rules)| rules.to_owned()).next().unwrap()
}

/// Server and user of one side, over TLS.
fn secure(setup: Setup, section: &str, server: &Server, mutual: bool) -> Setup {
    let files = server.certificates();
    let tls = format!("{section}.tls_config");
    let setup = setup
        .text(section, "username", "shakedeck")
        .text(section, "password", "secret-password")
        .set(section, "tls", "true")
        .text(&tls, "ca_cert", files.ca.to_str().unwrap());
    if !mutual {
        return setup;
    }
    setup.text(&tls, "cert", files.client.to_str().unwrap()).text(
        &tls,
        "key",
        files.client_key.to_str().unwrap(),
    )
}

fn user(rules: &str) -> String {
    format!("shakedeck on >secret-password {rules}")
}

/// A whole migration with TLS, client certificates and just the rights of the README, in both versions of TLS.
#[test]
fn tls_certificates_and_least_rights_together() {
    let binary = require_server!();
    for version in ["TLSv1.2", "TLSv1.3"] {
        let options = |side: &str| {
            let quoted = format!("\"{version}\"");
            Options::new().mutual_tls().config("tls-protocols", &quoted).user(&user(&documented_rules(side)))
        };
        let (source, destination) =
            (Server::start(binary, options("source")), Server::start(binary, options("destination")));
        dataset::fill(&mut source.client(), 1_000, 1);
        let addresses = [source.tls_address().to_string(), destination.tls_address().to_string()];
        let setup = secure(Setup::bare(&addresses[0], &addresses[1]), "sync_reader", &source, true);
        let setup = secure(setup, "redis_writer", &destination, true);
        let run = setup.start();
        let load = Writer::start(&source, Load { seed: 1, keys: 1_000, per_second: 1_000 });
        run.wait_status(MINUTES, "the stream", |status| status["sources"][0]["phase"] == "stream");
        let sent = load.sent();
        wait_until(MINUTES, "more load", || load.sent() > sent + 1_000);
        load.stop();
        run.wait_state("caught_up", MINUTES);
        let folder = run.folder();
        let exit = run.ctl(&["stop"]);
        assert_eq!(exit.code, Some(0), "{}", exit.output);
        let exit = run.wait_exit(MINUTES);
        compare::assert_equal(&source, &destination);
        // Nowhere is the password but in the file that the operator wrote.
        assert!(!exit.output.contains("secret-password"), "{}", exit.output);
        for file in ["data/shake.log", "data/run.json", "data/cutover-1.json"] {
            let text = std::fs::read_to_string(folder.path().join(file)).unwrap_or_default();
            assert!(!text.contains("secret-password"), "{file} shows the password");
        }
    }
}

/// The same on clusters: the nodes talk by TLS to each other too, so that they tell each other of their TLS ports, and those are
/// found from any one node. A node's certificate names the address by which the cluster knows it.
#[test]
fn clusters_with_tls_certificates_and_least_rights() {
    let binary = require_server!();
    let start = |side: &str| {
        let rules = format!("{} +cluster|nodes", documented_rules(side));
        let options = Options::new().mutual_tls().config("tls-cluster", "yes").user(&user(&rules));
        Cluster::start(binary, Layout::new(3, 0).options(options))
    };
    let (source, destination) = (start("source"), start("destination"));
    let load = Mixed::new(1).per_second(1_500).on_cluster(&source);
    load.wait_more(1_000);
    let tls = |cluster: &Cluster| -> BTreeSet<String> {
        (0..3).map(|n| cluster.node(n).tls_address().to_string()).collect()
    };
    let addresses = [source.node(1).tls_address().to_string(), destination.node(1).tls_address().to_string()];
    let setup = secure(Setup::bare(&addresses[0], &addresses[1]), "sync_reader", source.node(0), true);
    let setup = secure(setup, "redis_writer", destination.node(0), true);
    let setup = setup.set("sync_reader", "cluster", "true").set("redis_writer", "cluster", "true");
    let denied = |cluster: &Cluster, code: i32| {
        let mut client = cluster.client_of(1);
        // Any of these would do.
        let rights = ["-cluster|nodes", "-cluster|shards", "-cluster|slots"];
        client.ok(&[&["ACL", "SETUSER", "shakedeck"][..], &rights].concat());
        let exit = setup.start().wait_exit(MINUTES);
        exit.expect(code, &[&cluster.node(1).tls_address().to_string(), "+cluster|nodes"]);
        client.ok(&["ACL", "SETUSER", "shakedeck", "+cluster|nodes"]);
    };
    denied(&source, 3);
    denied(&destination, 4);
    let run = setup.start();
    let status = run.wait_status(MINUTES, "the stream of all lines", |status| {
        let lines = status["sources"].as_array().unwrap();
        lines.len() == 3 && lines.iter().all(|line| line["phase"] == "stream")
    });
    for (side, cluster) in [("sources", &source), ("destinations", &destination)] {
        let shown = status[side].as_array().unwrap().iter();
        let shown: BTreeSet<String> =
            shown.map(|node| node["address"].as_str().unwrap().to_owned()).collect();
        assert_eq!(shown, tls(cluster), "{side}: the TLS ports");
    }
    load.wait_more(1_500);
    load.stop();
    run.wait_state("caught_up", MINUTES);
    let exit = run.ctl(&["stop"]);
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    let exit = run.wait_exit(MINUTES);
    assert!(exit.output.contains("0 quarantined"), "{}", exit.output);
    assert!(assert_same(&source, &destination).keys > 300);
}

/// A certificate that is not believed: the host, the reason, and the three ways on; on either side.
#[test]
fn certificates_that_are_not_believed_are_explained() {
    let binary = require_server!();
    let start = |options: Options| Server::start(binary, options.tls());
    let plain = Server::start(binary, Options::new());
    let good = start(Options::new());
    let (other_name, expired) =
        (start(Options::new().certificate_for("redis.example")), start(Options::new().expired_certificate()));
    let authority = |server: &Server| server.certificates().ca.to_str().unwrap().to_owned();
    for (server, ca, reason) in [
        (&good, authority(&expired), "not trusted here"),
        (&other_name, authority(&other_name), "for another name"),
        (&expired, authority(&expired), "has expired"),
    ] {
        let (address, other) = (server.tls_address().to_string(), plain.address().to_string());
        for (section, code) in [("sync_reader", 3), ("redis_writer", 4)] {
            let setup = match section {
                "sync_reader" => Setup::bare(&address, &other),
                _ => Setup::bare(&other, &address),
            };
            let setup =
                setup.set(section, "tls", "true").text(&format!("{section}.tls_config"), "ca_cert", &ca);
            let exit = setup.start().wait_exit(MINUTES);
            exit.expect(code, &[&address, reason, "'ca_cert'", "'server_name'", "'tls_insecure = true'"]);
        }
    }
    // Each way on leads on, and the last one is shown for as long as it lasts.
    let name = "redis.example";
    let (address, other) = (other_name.tls_address().to_string(), plain.address().to_string());
    let setup = Setup::bare(&address, &other).set("sync_reader", "tls", "true");
    let named = setup.clone().text("sync_reader.tls_config", "ca_cert", &authority(&other_name));
    let named = named.text("sync_reader.tls_config", "server_name", name).exit_when("caught-up");
    named.start().wait_exit(MINUTES).expect(0, &[]);
    let run = setup.set("sync_reader", "tls_insecure", "true").start();
    let status = run.wait_state("caught_up", MINUTES);
    assert_eq!(status["warnings"][0], "TLS NOT VERIFIED: source");
}

/// A server that wants a certificate of ours, or that speaks only what is too old.
#[test]
fn a_missing_client_certificate_and_an_old_protocol_are_explained() {
    let binary = require_server!();
    let plain = Server::start(binary, Options::new());
    for version in ["TLSv1.2", "TLSv1.3"] {
        let quoted = format!("\"{version}\"");
        let server = Server::start(binary, Options::new().mutual_tls().config("tls-protocols", &quoted));
        let (address, other) = (server.tls_address().to_string(), plain.address().to_string());
        let ca = server.certificates().ca.to_str().unwrap().to_owned();
        for (section, code, setup) in [
            ("sync_reader", 3, Setup::bare(&address, &other)),
            ("redis_writer", 4, Setup::bare(&other, &address)),
        ] {
            let setup =
                setup.set(section, "tls", "true").text(&format!("{section}.tls_config"), "ca_cert", &ca);
            setup.start().wait_exit(MINUTES).expect(code, &[&address, "'cert' and 'key'", "tls_config"]);
        }
    }
}

/// One right after the other is taken away: the one that is missing is named, and the user.
#[test]
fn every_right_that_is_missing_is_named() {
    let binary = require_server!();
    let few = Options::new().user(&user(&documented_rules("source")));
    let (source, destination) = (Server::start(binary, few), plain_with_user(binary));
    source.client().ok(&["RPUSH", "list", "value"]);
    source.client().ok(&["SET", "string", "value"]);
    let setup = Setup::new(&source, &destination)
        .text("sync_reader", "username", "shakedeck")
        .text("sync_reader", "password", "secret-password")
        .text("redis_writer", "username", "shakedeck")
        .text("redis_writer", "password", "secret-password")
        .exit_when("caught-up");
    let set = |server: &Server, rule: &str| server.client().ok(&["ACL", "SETUSER", "shakedeck", rule]);
    for (missing, whole) in [("-psync", "+psync"), ("-replconf", "+replconf")] {
        set(&source, missing);
        setup.start().wait_exit(MINUTES).expect(3, &[&source.address().to_string(), "shakedeck", whole]);
        set(&source, whole);
    }
    // What only makes the screen richer may be missing.
    for rule in ["-info", "-time", "-ping", "-config|get"] {
        set(&source, rule);
    }
    setup.start().wait_exit(MINUTES).expect(0, &[]);
    for missing in ["restore", "msetnx", "multi", "watch", "hset", "hget", "select"] {
        destination.client().ok(&["FLUSHALL"]);
        set(&destination, &format!("-{missing}"));
        // A run that has written nothing yet ends; one that has waits for the right.
        let run = setup.start();
        let named = format!("'{missing}' command");
        wait_until(MINUTES, &named, || run.output().contains(&named));
        drop(run);
        set(&destination, &format!("+{missing}"));
    }
    setup.start().wait_exit(MINUTES).expect(0, &[]);
    assert_eq!(destination.client().text(&["GET", "string"]), "value");
}

fn plain_with_user(binary: &ServerBinary) -> Server {
    Server::start(binary, Options::new().user(&user("~* &* +@all")))
}
