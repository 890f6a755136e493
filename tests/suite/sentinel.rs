//! Sentinels on both sides: they are asked where the master is, at every connection.

use std::time::Duration;

use crate::require_server;
use crate::support::load::{Load, Writer};
use crate::support::proxy::Proxy;
use crate::support::sentinel::Sentinels;
use crate::support::shakedeck::{Setup, Shakedeck};
use crate::support::{Options, Server, ServerBinary, compare, dataset, wait_until};
use serde_json::Value;

const MINUTES: Duration = Duration::from_secs(120);
const KEYS: u64 = 3_000;

/// A master and its replica, in step.
struct Pair {
    master: Server,
    replica: Server,
}

impl Pair {
    fn start(binary: &ServerBinary) -> Pair {
        let options = || Options::new().config("repl-backlog-size", "64mb");
        let (master, replica) = (Server::start(binary, options()), Server::start(binary, options()));
        replica.client().ok(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
        wait_until(MINUTES, "a replica in step", || {
            replica.client().info("replication", "master_link_status").as_deref() == Some("up")
        });
        Pair { master, replica }
    }

    /// After a failover: the one that listens on this port is the master.
    fn promoted(self, port: u16) -> Pair {
        match self.master.port() == port {
            true => self,
            false => Pair { master: self.replica, replica: self.master },
        }
    }

    /// Both have the same offset; nothing may be written meanwhile.
    fn in_step(&self) {
        let offset = |server: &Server| server.client().info("replication", "master_repl_offset");
        wait_until(MINUTES, "the replica has everything", || offset(&self.master) == offset(&self.replica));
    }
}

/// Both sides with their sentinels, and keys on the source, which its sentinels know by this name.
fn watched(binary: &ServerBinary, name: &str) -> (Pair, Pair, Sentinels, Sentinels) {
    let (from, to) = (Pair::start(binary), Pair::start(binary));
    dataset::fill(&mut from.master.client(), KEYS, 1);
    let watch_from = Sentinels::start(binary, name, &from.master, 1, Some("locked"));
    let watch_to = Sentinels::start(binary, "mymaster", &to.master, 1, None);
    (from, to, watch_from, watch_to)
}

/// What sentinels and their tests need, with the source in the newer spelling and the destination in the older one.
fn setup(from: &Sentinels, to: &Sentinels) -> Setup {
    // The first sentinel of each list does not exist.
    let list = |dead: &str, all: &Sentinels| format!("{dead}, {}", all.addresses().join(","));
    Setup::bare("", &list("127.0.0.1:2", to))
        .text("sync_reader.sentinel", "master_name", "mymaster")
        .text("sync_reader.sentinel", "address", &list("127.0.0.1:1", from))
        .text("sync_reader.sentinel", "username", "asker")
        .text("sync_reader.sentinel", "password", "asks")
        .set("redis_writer", "sentinel", "true")
        .text("redis_writer", "master", "mymaster")
}

fn connected(status: &Value, side: &str, port: u16) -> bool {
    status[side][0]["connected_to"] == format!("127.0.0.1:{port}")
}

fn streaming(run: &Shakedeck) -> Value {
    run.wait_status(MINUTES, "the stream", |status| {
        ["streaming", "caught_up"].iter().any(|state| status["state"] == *state)
    })
}

/// The destination has failed over to this master, and the load goes on for a while.
fn goes_on(run: &Shakedeck, to: &Pair, load: Writer) {
    run.wait_status(MINUTES, "the new master of the destination", |status| {
        connected(status, "destinations", to.master.port())
    });
    let sent = load.sent();
    wait_until(MINUTES, "writes after the failover", || load.sent() > sent + 2_000);
    load.stop();
}

/// Everything that was written is applied, and both sides are equal.
fn equal(run: &Shakedeck, from: &Pair, to: &Pair) {
    let mut client = from.master.client();
    run.wait_status(MINUTES, "everything applied", |status| {
        let offset =
            client.info("replication", "master_repl_offset").and_then(|text| text.parse::<u64>().ok());
        // PINGs move it.
        status["sources"][0]["offset_applied"].as_u64() >= offset.map(|offset| offset.saturating_sub(100))
            && status["state"] == "caught_up"
    });
    compare::assert_equal(&from.master, &to.master);
}

/// Both sides fail over in mid-stream. The names of the sides stay, their places change; one full sync is all.
#[test]
fn both_sides_fail_over_and_nothing_is_lost() {
    let binary = require_server!();
    let (mut from, to, watch_from, watch_to) = watched(binary, "mymaster");

    let run = setup(&watch_from, &watch_to).start();
    let load = Writer::start(&from.master, Load { seed: 1, keys: KEYS, per_second: 1_000 });
    let status = streaming(&run);
    assert_eq!(status["sources"][0]["address"], "mymaster@127.0.0.1:1");
    assert_eq!(status["destinations"][0]["address"], "mymaster@127.0.0.1:2");
    assert!(connected(&status, "sources", from.master.port()), "{status}");
    assert!(connected(&status, "destinations", to.master.port()), "{status}");
    assert!(run.data().join("mymaster_127.0.0.1_1").exists(), "the spool is named after the master");

    // The destination, under load: its old master goes on taking writes until its sentinels make it a replica.
    let to = to.promoted(watch_to.fail_over());
    goes_on(&run, &to, load);
    from.in_step();
    equal(&run, &from, &to);

    // The source: its master dies.
    let full_syncs = |server: &Server| server.client().info("stats", "sync_full");
    let before = full_syncs(&from.replica);
    from.master.kill();
    let from = Pair { master: from.replica, replica: from.master };
    assert_eq!(watch_from.wait_other_than(from.replica.port()), from.master.port());
    let load = Writer::start(&from.master, Load { seed: 2, keys: KEYS, per_second: 1_000 });
    run.wait_status(MINUTES, "the new master of the source", |status| {
        connected(status, "sources", from.master.port()) && status["state"] != "connecting"
    });
    wait_until(MINUTES, "writes on the new source", || load.sent() > 2_000);
    load.stop();
    equal(&run, &from, &to);
    assert_eq!(full_syncs(&from.master), before, "the promoted replica was asked for a full sync");
    let output = run.output();
    assert_eq!(output.matches("FULLRESYNC").count(), 1, "one full sync is all:\n{output}");
    assert!(output.contains("the source was promoted"), "{output}");
    // The sentinels of the source speak over PUBLISH in the stream: those of the destination must not have heard them.
    assert_eq!(watch_to.others_known(), ["2", "2", "2"]);
    assert_eq!(watch_to.master(), to.master.port());
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &[]);
}

/// The destination fails over while it does not answer (`off_reply`): what it had run and has lost with its old master comes again.
#[test]
fn a_destination_without_answers_fails_over() {
    let binary = require_server!();
    let (from, to, watch_from, watch_to) = watched(binary, "mymaster");
    let run = setup(&watch_from, &watch_to).set("redis_writer", "off_reply", "true").start();
    let load = Writer::start(&from.master, Load { seed: 3, keys: KEYS, per_second: 1_000 });
    streaming(&run);
    let to = to.promoted(watch_to.fail_over());
    goes_on(&run, &to, load);
    let mut client = from.master.client();
    let written: u64 = client.info("replication", "master_repl_offset").unwrap().parse().unwrap();
    run.wait_status(MINUTES, "everything applied", |status| {
        status["sources"][0]["offset_applied"].as_u64() >= Some(written)
    });
    compare::assert_equal(&from.master, &to.master);
    assert_eq!(run.output().matches("FULLRESYNC").count(), 1, "one full sync is all:\n{}", run.output());
}

/// A restart goes on where it was, although meanwhile both masters are other servers.
#[test]
fn a_run_that_was_killed_goes_on_after_failovers() {
    let binary = require_server!();
    let (from, to, watch_from, watch_to) = watched(binary, "first");
    let setup = setup(&watch_from, &watch_to).text("sync_reader.sentinel", "master_name", "first");
    let run = setup.start();
    streaming(&run);
    equal(&run, &from, &to);
    let folder = run.folder();
    run.kill();
    let (from, to) = (from.promoted(watch_from.fail_over()), to.promoted(watch_to.fail_over()));
    from.master.client().ok(&["SET", "after", "both"]);
    let run = setup.start_in(folder);
    run.wait_state("caught_up", MINUTES);
    equal(&run, &from, &to);
    assert_eq!(to.master.client().text(&["GET", "after"]), "both");
    assert!(!run.output().contains("FULLRESYNC"), "{}", run.output());
}

/// Who is wrong is said, with the cure: no sentinel, a name that none knows, a password that is missing.
#[test]
fn sentinels_that_cannot_help_are_named() {
    let binary = require_server!();
    let (from, to) = (Pair::start(binary), Server::start(binary, Options::new()));
    let sentinels = Sentinels::start(binary, "mymaster", &from.master, 1, Some("locked"));
    let all = sentinels.addresses().join(",");
    let setup = |address: &str, name: &str, username: &str, password: &str| {
        Setup::bare("", &to.address().to_string())
            .text("sync_reader.sentinel", "master_name", name)
            .text("sync_reader.sentinel", "address", address)
            .text("sync_reader.sentinel", "username", username)
            .text("sync_reader.sentinel", "password", password)
    };
    let first = sentinels.addresses()[0].clone();
    for (setup, words) in [
        (
            setup("127.0.0.1:1,127.0.0.1:2", "mymaster", "", ""),
            vec!["mymaster@127.0.0.1:1", "none of its sentinels (2)"],
        ),
        (setup(&first, "other", "asker", "asks"), vec![&first, "no master of this name", "SENTINEL MASTERS"]),
        (setup(&first, "mymaster", "", ""), vec![&first, "NOAUTH", "section of the sentinel"]),
        (setup(&first, "mymaster", "", "wrong"), vec![&first, "AUTH was refused"]),
        // No sentinel at all.
        (setup(&to.address().to_string(), "mymaster", "", ""), vec!["Is this a sentinel?"]),
    ] {
        setup.start().wait_exit(MINUTES).expect(3, &words);
    }
    // A name that the server has for itself, and the way there from here (NAT): through a proxy.
    let proxy = Proxy::start(from.master.address(), 1);
    let map = format!("{{ \"127.0.0.1:{}\" = \"{}\" }}", from.master.port(), proxy.address());
    let run = setup(&all, "mymaster", "asker", "asks").set("sync_reader", "address_map", &map).start();
    let status = run.wait_state("caught_up", MINUTES);
    assert_eq!(status["sources"][0]["connected_to"], proxy.address().to_string());
}
