//! TLS, client certificates and users with few rights, as in production; and what is said when one of them is wrong.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::require_server;
use crate::support::client::keys_like;
use crate::support::cluster::{Cluster, Layout};
use crate::support::everything::assert_same;
use crate::support::load::{Load, Writer};
use crate::support::mixed_load::Mixed;
use crate::support::shakedeck::{self, Setup};
use crate::support::tls::self_signed;
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

/// One side is this address with TLS and the other one a plain server, in both directions: the setup and the exit code.
fn either_side(address: &str, plain: &Server, ca: Option<&Path>) -> [(&'static str, i32, Setup); 2] {
    let other = plain.address().to_string();
    [("sync_reader", 3, Setup::bare(address, &other)), ("redis_writer", 4, Setup::bare(&other, address))].map(
        |(section, code, setup)| {
            let setup = setup.set(section, "tls", "true");
            let path = ca.map(|ca| ca.to_str().unwrap());
            let tls = format!("{section}.tls_config");
            (section, code, path.iter().fold(setup, |setup, ca| setup.text(&tls, "ca_cert", ca)))
        },
    )
}

/// A certificate that is not believed: the host, the reason, and the ways on that lead on; on either side.
#[test]
fn certificates_that_are_not_believed_are_explained() {
    let binary = require_server!();
    let start = |options: Options| Server::start(binary, options.tls());
    let plain = Server::start(binary, Options::new());
    let good = start(Options::new());
    let (other_name, expired) =
        (start(Options::new().certificate_for("redis.example")), start(Options::new().expired_certificate()));
    let authority = |server: &Server| server.certificates().ca.to_str().unwrap().to_owned();
    let ways = ["'ca_cert'", "'server_name'", "renew the certificate"];
    for (server, ca, reason, way) in [
        (&good, authority(&expired), "not trusted here", ways[0]),
        (&other_name, authority(&other_name), "for another name", ways[1]),
        (&expired, authority(&expired), "has expired", ways[2]),
    ] {
        let address = server.tls_address().to_string();
        for (_, code, setup) in either_side(&address, &plain, Some(Path::new(&ca))) {
            let exit = setup.start().wait_exit(MINUTES);
            exit.expect(code, &[&address, reason, way, "'tls_insecure = true'"]);
            for other in ways.iter().filter(|other| **other != way) {
                assert!(!exit.output.contains(other), "{other} is no way on:\n{}", exit.output);
            }
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

/// A server that wants a certificate of ours, and gets none or one that it does not believe.
#[test]
fn a_client_certificate_that_is_missing_or_refused_is_explained() {
    let binary = require_server!();
    let plain = Server::start(binary, Options::new());
    let other = Server::start(binary, Options::new().tls());
    let expired = Server::start(binary, Options::new().expired_certificate().tls());
    let folder = tempfile::tempdir().unwrap();
    let (own_cert, own_key) = self_signed(folder.path());
    for version in ["TLSv1.2", "TLSv1.3"] {
        let quoted = format!("\"{version}\"");
        let server = Server::start(binary, Options::new().mutual_tls().config("tls-protocols", &quoted));
        let address = server.tls_address().to_string();
        for (section, code, setup) in either_side(&address, &plain, Some(&server.certificates().ca)) {
            setup.start().wait_exit(MINUTES).expect(code, &[&address, "'cert' and 'key'", "tls_config"]);
            let tls = format!("{section}.tls_config");
            let files = other.certificates();
            let (cert, key) = (files.client.to_str().unwrap(), files.client_key.to_str().unwrap());
            // The authority of `other` bears the name of the right one; the other certificate is its own authority.
            for (cert, key) in [(cert, key), (own_cert.to_str().unwrap(), own_key.to_str().unwrap())] {
                let setup = setup.clone().text(&tls, "cert", cert).text(&tls, "key", key);
                let exit = setup.start().wait_exit(MINUTES);
                let refused = format!("the server refuses our certificate '{cert}'");
                exit.expect(
                    code,
                    &[&address, &refused, "authority that the server trusts", "'tls-ca-cert-file'"],
                );
            }
        }
        // Of the right authority, and over.
        let files = expired.certificates();
        let options = Options::new().mutual_tls().config("tls-protocols", &quoted);
        let server = Server::start(binary, options.certificates(files));
        let address = server.tls_address().to_string();
        for (section, code, setup) in either_side(&address, &plain, None) {
            let tls = format!("{section}.tls_config");
            let (cert, key) = (files.client.to_str().unwrap(), files.client_key.to_str().unwrap());
            let setup = setup.text(&tls, "cert", cert).text(&tls, "key", key);
            let exit = setup.set(section, "tls_insecure", "true").start().wait_exit(MINUTES);
            exit.expect(code, &[&address, "refuses our certificate", "it has expired", "Renew it"]);
        }
    }
}

/// Files that cannot be used are an error of the configuration: key, file and cure are named, by `check` too, before any server is asked.
#[test]
fn certificates_and_keys_that_cannot_be_used_are_named_before_the_start() {
    let binary = require_server!();
    let server = Server::start(binary, Options::new().tls());
    let plain = Server::start(binary, Options::new());
    let files = server.certificates();
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "no certificate\n").unwrap();
    let missing = folder.path().join("missing.pem");
    let (ca, cert, key) = (&files.ca, &files.client, &files.client_key);
    for (ca, cert, key, words) in [
        (&missing, cert, key, ["`ca_cert`", "missing.pem", "cannot be read", "check the path"]),
        (&empty, cert, key, ["`ca_cert`", "empty.pem", "holds no certificate", "BEGIN CERTIFICATE"]),
        (ca, &missing, key, ["`cert`", "missing.pem", "cannot be read", "check the path"]),
        (ca, key, key, ["`cert`", "client.key", "holds no certificate", "BEGIN CERTIFICATE"]),
        (ca, cert, &missing, ["`key`", "missing.pem", "cannot be read", "check the path"]),
        (ca, cert, cert, ["`key`", "client.crt", "holds no private key", "BEGIN PRIVATE KEY"]),
        (ca, cert, &files.server_key, ["`key`", "server.key", "does not belong to", "made together"]),
    ] {
        for (section, _, setup) in either_side(&server.tls_address().to_string(), &plain, Some(ca)) {
            let tls = format!("{section}.tls_config");
            let setup =
                setup.text(&tls, "cert", cert.to_str().unwrap()).text(&tls, "key", key.to_str().unwrap());
            let run = setup.start();
            let file = run.folder();
            run.wait_exit(MINUTES).expect(2, &words);
            let check =
                Command::new(shakedeck::binary()).arg("check").arg(file.path().join("shake.toml")).output();
            let check = check.unwrap();
            let printed = String::from_utf8_lossy(&check.stderr).into_owned();
            assert_eq!(check.status.code(), Some(2), "{printed}");
            words.iter().for_each(|word| assert!(printed.contains(word), "'{word}' is not in:\n{printed}"));
        }
    }
}

/// TLS spoken to a plain port, and plain words to a TLS port: said as such, on either side.
#[test]
fn tls_and_plain_ports_that_are_mixed_up_are_named() {
    let binary = require_server!();
    let (plain, other) = (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    let address = plain.address().to_string();
    for (section, code, setup) in either_side(&address, &other, None) {
        let exit = setup.set(section, "tls_insecure", "true").start().wait_exit(MINUTES);
        exit.expect(code, &[&address, "does not speak TLS on this port", "'tls-port'", "'tls = false'"]);
    }
    for options in [Options::new().tls(), Options::new().mutual_tls().requirepass("secret-password")] {
        let server = Server::start(binary, options);
        let address = server.tls_address().to_string();
        for (section, code, setup) in either_side(&address, &other, None) {
            let setup = server.password().map_or(setup.clone(), |word| setup.text(section, "password", word));
            let exit = setup.set(section, "tls", "false").start().wait_exit(MINUTES);
            exit.expect(code, &[&address, "this port wants TLS", "'tls = true'"]);
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
    // No key at all, and none but others: the pattern is named, and no key that is none.
    for keys in ["resetkeys", "~other:*"] {
        destination.client().ok(&["FLUSHALL"]);
        set(&destination, "resetkeys");
        set(&destination, keys);
        let exit = setup.start().wait_exit(MINUTES);
        exit.expect(4, &["NOPERM", "ACL SETUSER shakedeck ~*"]);
        assert!(!exit.output.contains("key ''"), "{}", exit.output);
    }
    set(&destination, "allkeys");
    setup.start().wait_exit(MINUTES).expect(0, &[]);
    assert_eq!(destination.client().text(&["GET", "string"]), "value");
}

/// Rights that are taken away while the stream runs are waited for, by name, and what our own keys need at the end is said.
#[test]
fn rights_that_are_taken_away_are_named_and_waited_for() {
    let binary = require_server!();
    let (source, destination) = (Server::start(binary, Options::new()), plain_with_user(binary));
    let cluster = Options::new().user(&user("~* &* +@all"));
    let cluster = Cluster::start(binary, Layout::new(3, 0).options(cluster));
    for clustered in [false, true] {
        source.client().ok(&["FLUSHALL"]);
        source.client().ok(&["MSET", "gone", "1", "kept", "1"]);
        let address = if clustered { cluster.node(0).address() } else { destination.address() };
        let setup = Setup::bare(&source.address().to_string(), &address.to_string())
            .set("redis_writer", "cluster", &clustered.to_string())
            .text("redis_writer", "username", "shakedeck")
            .text("redis_writer", "password", "secret-password");
        let nodes: Vec<&Server> =
            if clustered { (0..3).map(|n| cluster.node(n)).collect() } else { vec![&destination] };
        let set = |rule: &str| {
            nodes.iter().for_each(|node| _ = node.client().ok(&["ACL", "SETUSER", "shakedeck", rule]));
        };
        let run = setup.start();
        run.wait_state("caught_up", MINUTES);
        for (taken, right, command) in
            [("-del", "+del", ["DEL", "gone"].as_slice()), ("resetkeys", "~*", &["SET", "kept", "2"])]
        {
            set(taken);
            source.client().ok(command);
            let status = run.wait_status(MINUTES, right, |status| {
                status["destinations"].to_string().contains(&format!("lacks the right {right}"))
            });
            assert_eq!(status["counters"]["quarantined"], 0, "{status}");
            set(right);
            run.wait_state("caught_up", MINUTES);
        }
        set("-del");
        let exit = run.ctl(&["stop", "--forget"]);
        assert_eq!(exit.code, Some(0), "{}", exit.output);
        let folder = run.folder();
        run.wait_exit(MINUTES).expect(4, &["shakedeck:checkpoint:", "could not be removed", "NOPERM", "del"]);
        set("+del");
        setup.clone().exit_when("caught-up").start_in(folder).wait_exit(MINUTES).expect(0, &[]);
        let keys = nodes.iter().flat_map(|node| keys_like(&mut node.client(), "*"));
        assert_eq!(keys.collect::<Vec<_>>(), [b"kept"]);
    }
}

fn plain_with_user(binary: &ServerBinary) -> Server {
    Server::start(binary, Options::new().user(&user("~* &* +@all")))
}
