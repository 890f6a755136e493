//! A side that is gone, or that has forgotten what it confirmed: what is on disk is used to the end, and the operator is
//! told where it ends.

use std::time::Duration;

use crate::require_server;
use crate::support;
use crate::support::load::{Load, Writer};
use crate::support::relay::{At, Relay};
use crate::support::shakedeck::Setup;
use crate::support::{Options, Server, Shakedeck, compare, dataset, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

fn two_servers(binary: &support::ServerBinary) -> (Server, Server) {
    let source = Server::start(binary, Options::new().config("repl-backlog-size", "256mb"));
    let destination = Server::start(binary, Options::new());
    dataset::fill(&mut source.client(), 10_000, 1);
    (source, destination)
}

fn load(source: &Server) -> Writer {
    Writer::start(source, Load { seed: 3, keys: 10_000, per_second: 5_000 })
}

fn writes(writer: &Writer, more: u64) {
    let before = writer.sent();
    wait_until(MINUTES, "writes of the load", || writer.sent() >= before + more);
}

/// As after the promotion of a replica that lacked its master's last writes.
#[test]
fn a_destination_that_lost_confirmed_writes_gets_them_again() {
    let binary = require_server!();
    let (source, mut destination) = two_servers(binary);
    let writer = load(&source);
    let run = Setup::new(&source, &destination).start();
    run.wait_streaming(MINUTES);
    for _ in 0..3 {
        writes(&writer, 1_000);
        destination.client().ok(&["SAVE"]);
        let saved = run.status_json()["sources"][0]["offset_applied"].as_u64().unwrap();
        writes(&writer, 3_000);
        run.wait_status(MINUTES, "more applied than saved", |status| {
            status["sources"][0]["offset_applied"].as_u64() > Some(saved + 20_000)
        });
        destination.kill();
        destination.restart();
        run.wait_streaming(MINUTES);
    }
    writer.stop();
    run.wait_state("caught_up", MINUTES);
    compare::assert_equal(&source, &destination);
    let output = run.output();
    assert_eq!(output.matches("it lost confirmed writes").count(), 3, "{output}");
    assert_eq!(source.client().info("stats", "sync_full").as_deref(), Some("1"), "only one full sync");
}

#[test]
fn a_destination_that_lost_more_than_the_spool_holds_is_said_so() {
    let binary = require_server!();
    let (source, mut destination) = two_servers(binary);
    let run = Setup::new(&source, &destination).start();
    run.wait_state("caught_up", MINUTES);
    destination.kill();
    destination.restart();
    source.client().ok(&["SET", "one", "more"]);
    run.wait_exit(MINUTES)
        .expect(4, &["checkpoint is missing", "lost data that it had confirmed", "new full sync"]);
}

#[test]
fn what_a_dead_source_has_sent_is_applied_and_the_place_is_said() {
    let binary = require_server!();
    let (mut source, destination) = two_servers(binary);
    let writer = load(&source);
    let run = Setup::new(&source, &destination).text("policy", "source_gone_after", "2s").start();
    run.wait_streaming(MINUTES);
    run.ctl(&["pause"]).expect(0, &[]);
    run.wait_state("paused", MINUTES);
    writes(&writer, 3_000);
    writer.stop();
    let offset = source.client().info("replication", "master_repl_offset").unwrap();
    run.wait_status(MINUTES, "everything received", |status| {
        status["sources"][0]["offset_received"].as_u64() >= offset.parse().ok()
    });
    source.client().ok(&["SAVE"]);
    source.kill();
    run.wait_status(MINUTES, "the source given up", |status| status["sources"][0]["phase"] == "failed");
    assert_eq!(run.status_json()["state"], "paused", "a pause outlasts the source");
    run.ctl(&["resume"]).expect(0, &[]);
    run.wait_exit(MINUTES).expect(
        3,
        &[
            "taken for dead",
            "Everything received before is applied",
            &offset[..3],
            "which had arrived by 20",
            " UTC",
        ],
    );
    source.restart();
    compare::assert_equal(&source, &destination);
}

/// A command is refused, and the answer that says so never arrives: nobody can know what it said, so that is said.
#[test]
fn answers_that_are_lost_are_not_lost_in_silence() {
    let binary = require_server!();
    let (source, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    let relay = Relay::start(destination.address());
    destination.client().ok(&["SET", "list", "is a string here"]);
    let setup = Setup::bare(&source.address().to_string(), &relay.address().to_string());
    let lost = |run: &Shakedeck| {
        run.wait_status(MINUTES, "the lost answers to be told", |status| {
            let told = status["events"].to_string();
            let counted = status["rejected"].as_array().unwrap();
            counted.iter().any(|kind| kind["kind"] == "ANSWERS LOST") && told.contains("verify")
        })
    };
    let run = setup.start();
    run.wait_status(MINUTES, "the stream", |status| status["sources"][0]["phase"] == "stream");
    assert!(!run.status_json()["rejected"].to_string().contains("ANSWERS"));
    // With the link.
    relay.trap("WRONGTYPE", At::Cut);
    source.client().ok(&["LPUSH", "list", "refused"]);
    let status = lost(&run);
    assert_eq!(status["counters"]["quarantined"], 0, "{status}");
    // With the process.
    relay.trap("WRONGTYPE", At::Hold);
    source.client().ok(&["LPUSH", "list", "refused again"]);
    wait_until(MINUTES, "the answer", || relay.sprung());
    let folder = run.folder();
    run.kill();
    let run = setup.start_in(folder);
    lost(&run);
    // Heard, and so in the quarantine.
    source.client().ok(&["LPUSH", "list", "refused and heard"]);
    run.wait_status(MINUTES, "the quarantine", |status| status["counters"]["quarantined"] == 1);
}
