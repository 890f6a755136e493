//! `off_reply = true`: the destination does not answer the commands of the stream. What it runs is still exact; what it refuses is
//! lost and not seen, so READY is never reached.

use std::time::Duration;

use crate::require_server;
use crate::support::load::{Load, Writer};
use crate::support::shakedeck::Setup;
use crate::support::{Options, Server, ServerBinary, Shakedeck, compare, dataset, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

fn source(binary: &ServerBinary) -> Server {
    Server::start(binary, Options::new().config("repl-backlog-size", "256mb"))
}

fn quiet(source: &Server, destination: &Server) -> Setup {
    Setup::new(source, destination).set("redis_writer", "off_reply", "true")
}

/// Everything that the source has sent is applied, as far as the destination says that it has run.
fn drained(run: &Shakedeck, source: &Server) -> serde_json::Value {
    let sent: u64 = source.client().info("replication", "master_repl_offset").unwrap().parse().unwrap();
    run.wait_status(MINUTES, "everything applied", |status| {
        status["sources"][0]["offset_applied"].as_u64().is_some_and(|applied| applied >= sent)
    })
}

fn not_ready(status: &serde_json::Value) -> String {
    status["not_ready"].to_string()
}

/// Killed and cut off in the middle, nothing is lost and nothing is applied twice; but nobody may cut over.
#[test]
fn everything_arrives_once_and_nothing_is_ever_ready() {
    let binary = require_server!();
    let (source, destination) = (source(binary), Server::start(binary, Options::new()));
    dataset::fill(&mut source.client(), 5_000, 1);
    let writer = Writer::start(&source, Load { seed: 5, keys: 5_000, per_second: 5_000 });
    let writes = |more: u64| {
        let before = writer.sent();
        wait_until(MINUTES, "writes of the load", || writer.sent() >= before + more);
    };
    let setup = quiet(&source, &destination);
    let mut run = setup.start();
    for round in 0..3 {
        run.wait_streaming(MINUTES);
        writes(500 + 997 * round);
        let folder = run.folder();
        run.kill();
        writes(300);
        run = setup.start_in(folder);
    }
    run.wait_streaming(MINUTES);
    for _ in 0..5 {
        writes(700);
        destination.client().cmd(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }
    writes(700);
    writer.stop();
    drained(&run, &source);
    assert!(run.output().contains("connecting again"), "no link was lost:\n{}", run.output());
    compare::assert_equal(&source, &destination);
    let stats = destination.client().text(&["INFO", "commandstats"]);
    assert!(stats.contains("client|reply"), "answers were never switched off:\n{stats}");

    // The lag is low for longer than [cutover] hold_for, and every other gate is met.
    let status = run.wait_status(MINUTES, "one gate that is not met", |status| {
        status["not_ready"].as_array().is_some_and(|reasons| reasons.len() == 1)
    });
    assert!(not_ready(&status).contains("off_reply = true: the destination's answers are off"), "{status}");
    assert_eq!((&status["state"], &status["ready"]), (&"streaming".into(), &false.into()), "{status}");
    assert!(status["warnings"].to_string().contains("OFF_REPLY"), "{status}");
    let name = destination.address().to_string();
    run.ctl(&["cutover", "--yes-i-mean", &name]).expect(7, &["off_reply = true"]);
    source.client().ok(&["SET", "written:after", "the refusal"]);
    drained(&run, &source);
    compare::assert_equal(&source, &destination);
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &["off_reply = true is unsafe"]);
}

/// What a batch as a whole was refused for is asked for, shown and waited for; what one command was refused for is lost in silence.
#[test]
fn a_refused_batch_is_sent_again_and_a_refused_command_is_not_seen() {
    let binary = require_server!();
    let options = Options::new().config("rename-command", "PFADD \"\"");
    let (source, destination) = (source(binary), Server::start(binary, options));
    let mut from = source.client();
    from.ok(&["SET", "before", "x"]);
    let run = quiet(&source, &destination).start();
    run.wait_streaming(MINUTES);
    drained(&run, &source);
    let mut to = destination.client();
    to.ok(&["CONFIG", "SET", "maxmemory", "1"]);
    for number in 0..2_000 {
        from.push(&["INCR", &format!("counter:{}", number % 100)]);
        from.push(&["RPUSH", &format!("list:{}", number % 100), &number.to_string()]);
    }
    from.flush(4_000);
    run.wait_status(MINUTES, "the reason", |status| {
        let node = &status["destinations"][0];
        node["state"] == "waiting" && node["reason"].as_str().is_some_and(|reason| reason.contains("OOM"))
    });
    // Answers are off again behind the first batch that got through.
    to.ok(&["CONFIG", "SET", "maxmemory", "0"]);
    drained(&run, &source);
    compare::assert_equal(&source, &destination);
    // What is not known there is refused when it is queued, so the batch as a whole: it is set aside, as always.
    from.ok(&["PFADD", "unknown", "there"]);
    drained(&run, &source);
    // The next one is still answered, those behind it are not.
    from.ok(&["SET", "between", "x"]);
    drained(&run, &source);
    // What is refused when it runs is lost.
    to.ok(&["SET", "strange", "a string"]);
    from.ok(&["RPUSH", "strange", "refused"]);
    from.ok(&["SET", "after", "x"]);
    let status = drained(&run, &source);
    assert_eq!(to.text(&["GET", "after"]), "x");
    assert_eq!(to.text(&["GET", "strange"]), "a string");
    assert_eq!(status["counters"]["quarantined"], 1, "{status}");
    let set_aside = std::fs::read_to_string(run.data().join("quarantine.jsonl")).unwrap();
    assert!(set_aside.contains("unknown command") && !set_aside.contains("strange"), "{set_aside}");
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &[]);
}

#[test]
fn what_could_never_be_reached_is_refused_at_once() {
    let binary = require_server!();
    let (source, destination) = (source(binary), Server::start(binary, Options::new()));
    source.client().ok(&["SET", "key", "value"]);
    let setup = quiet(&source, &destination);
    for words in [&["--exit-when", "caught-up"][..], &["--exit-when", "switched"], &["--cutover-when-ready"]]
    {
        let exit = setup.clone().args(words).start().wait_exit(MINUTES);
        exit.expect(2, &["off_reply = true", "is ever reached", "--exit-when rdb-applied"]);
    }
    assert_eq!(destination.client().integer(&["DBSIZE"]), 0, "something was begun");
    // Replies while the RDB is applied are read: an existing key is seen.
    destination.client().ok(&["SET", "key", "theirs"]);
    setup.clone().start().wait_exit(MINUTES).expect(4, &["BUSYKEY"]);
    destination.client().ok(&["FLUSHALL"]);
    setup.exit_when("rdb-applied").start().wait_exit(MINUTES).expect(0, &[]);
    assert_eq!(destination.client().text(&["GET", "key"]), "value");
}

/// A user who may not switch its answers off is told so before anything is sent.
#[test]
fn the_right_is_asked_for_first() {
    let binary = require_server!();
    let rules = "mover on >secret ~* &* +@all -client|reply";
    let (source, destination) = (source(binary), Server::start(binary, Options::new().user(rules)));
    source.client().ok(&["SET", "key", "value"]);
    let setup = quiet(&source, &destination).text("redis_writer", "username", "mover").text(
        "redis_writer",
        "password",
        "secret",
    );
    setup.start().wait_exit(MINUTES).expect(4, &["CLIENT REPLY", "NOPERM", "off_reply = false"]);
    assert_eq!(destination.client().integer(&["DBSIZE"]), 0);
}
