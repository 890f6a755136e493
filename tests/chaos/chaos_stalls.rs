//! Nobody answers: stalls, black holes, peers that never read, and links so slow that a server could lose its patience.

use std::time::Duration;

use super::field::{
    Field, MINUTES, full_syncs, number_of, source_options, source_says, streaming, writer_says,
};
use super::require_server;
use super::support::proxy::Way;
use super::support::{Client, Options, ServerBinary, Shakedeck, wait_until};

/// Bytes that a server keeps for a replica: none of ours should ever let it grow.
fn output_buffer(source: &mut Client) -> u64 {
    let list = source.text(&["CLIENT", "LIST", "TYPE", "replica"]);
    list.lines().filter_map(|line| line.split(" omem=").nth(1)?.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Looks for `seconds` at a run whose destination stands still: the source feels nothing of it.
fn source_feels_nothing(field: &Field, run: &Shakedeck, seconds: u64) {
    let mut source = field.source.client();
    let before = run.status_json();
    let mut last_ack = 0;
    for _ in 0..seconds {
        std::thread::sleep(Duration::from_secs(1));
        let omem = output_buffer(&mut source);
        assert!(omem < 4 << 20, "the source's output buffer has grown to {omem} bytes");
        assert_eq!(source.info("replication", "connected_slaves").as_deref(), Some("1"));
    }
    let status = run.status_json();
    for (side, field) in [("sources", "reconnects"), ("destinations", "reconnects")] {
        assert_eq!(before[side][0][field], status[side][0][field], "reconnects of {side}");
    }
    let ack = status["sources"][0]["last_ack_unix_ms"].as_u64().unwrap();
    assert!(ack > last_ack, "no ACK since {last_ack}");
    last_ack = ack;
    run.wait_status(MINUTES, "ACKs that go on", |status| {
        status["sources"][0]["last_ack_unix_ms"].as_u64() > Some(last_ack)
    });
    assert_eq!(status["destinations"][0]["state"], "slow", "{status}");
    let (received, applied) =
        (&status["sources"][0]["offset_received"], &before["sources"][0]["offset_received"]);
    assert!(received.as_u64() > applied.as_u64(), "nothing was received: {status}");
}

/// `CLIENT PAUSE` and SIGSTOP, 60 s each in the long form.
#[test]
fn a_destination_that_stands_still_is_waited_for() {
    let binary = require_server!();
    let seconds = if number_of("SHAKEDECK_CHAOS_ROUNDS").is_some() { 60 } else { 20 };
    let mut field = Field::new(binary);
    field.load(3_000);
    let run = field.setup().start();
    streaming(&run);
    field.writes(500);
    field.destination.client().ok(&["CLIENT", "PAUSE", &(seconds * 1_000).to_string()]);
    source_feels_nothing(&field, &run, seconds - 1);
    writer_says(&run, "ok", &[]);
    field.writes(500);
    field.destination.suspend();
    source_feels_nothing(&field, &run, seconds);
    field.destination.resume();
    writer_says(&run, "ok", &[]);
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}

/// Links that are open and lead nowhere, as after a firewall has forgotten them: noticed within the documented time on
/// either side and in each phase, said, and replaced. Four migrations at once, because most of it is waiting.
#[test]
fn links_that_lead_nowhere_are_noticed_and_replaced() {
    let binary = require_server!();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut field = Field::new(binary);
            field.load(300);
            let run = field.setup().start();
            streaming(&run);
            field.from.swallow();
            source_says(&run, "reconnecting", &["no answer to the stream within 60 s"]);
            source_says(&run, "stream", &[]);
            field.assert_equal(run);
            assert_eq!(field.full_syncs(), 1, "only one full sync");
        });
        scope.spawn(|| {
            let mut field = Field::new(binary);
            field.from.throttle(300_000);
            let run = field.setup().start();
            wait_until(MINUTES, "a part of the RDB", || field.from.passed(Way::ToEngine) > 100_000);
            field.from.swallow();
            source_says(&run, "reconnecting", &["no answer to the RDB transfer within 60 s"]);
            field.from.calm();
            streaming(&run);
            field.assert_equal(run);
            assert_eq!(field.full_syncs(), 2);
        });
        scope.spawn(|| {
            let mut field = Field::new(binary);
            field.load(300);
            let run = field.setup().start();
            streaming(&run);
            field.to.swallow();
            wait_until(MINUTES, "it is noticed", || run.output().contains("this link leads nowhere"));
            writer_says(&run, "ok", &[]);
            field.assert_equal(run);
            assert_eq!(field.full_syncs(), 1, "only one full sync");
        });
        scope.spawn(|| {
            // In the RDB, and with a peer that answers nobody: it is waited for, and said.
            let mut field = Field::new(binary);
            field.to.throttle(300_000);
            let run = field.setup().start();
            wait_until(MINUTES, "a part of the RDB", || field.to.passed(Way::ToServer) > 100_000);
            field.to.deafen();
            writer_says(&run, "slow", &["no answer for", "new connection"]);
            field.to.calm();
            streaming(&run);
            field.assert_equal(run);
            assert_eq!(field.full_syncs(), 1, "only one full sync");
        });
    });
}

/// At the first start a server that never answers ends the run at once and with words: it may be the wrong address.
#[test]
fn a_server_that_never_answers_ends_the_first_start() {
    let binary = require_server!();
    let field = Field::new(binary);
    field.from.black_hole();
    field.setup().start().wait_exit(MINUTES).expect(3, &["no answer to PING within 10 s"]);
    field.from.calm();
    field.to.black_hole();
    field.setup().start().wait_exit(MINUTES).expect(4, &["no answer to INFO within 10 s"]);
}

/// Later it is tried again, and a stop need not wait for it.
#[test]
fn a_source_that_never_answers_again_does_not_hold_up_a_stop() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(300);
    let run = field.setup().start();
    streaming(&run);
    field.from.black_hole();
    field.from.cut(super::support::proxy::Break::Reset);
    source_says(&run, "reconnecting", &["no answer to PING within 10 s"]);
    run.terminate();
    run.wait_exit(Duration::from_secs(40)).expect(75, &["stopped"]);
}

/// A source that drops replicas after 5 s of silence, while the RDB crawls in, and while it is applied slowly.
#[test]
fn a_source_with_little_patience_keeps_us() {
    let binary = require_server!();
    for diskless in [true, false] {
        impatient_source(binary, diskless);
    }
}

fn impatient_source(binary: &ServerBinary, diskless: bool) {
    let source = source_options().diskless(diskless).config("repl-timeout", "5");
    let mut field = Field::with(binary, source.config("repl-ping-replica-period", "1"), Options::new());
    field.source.client().ok(&["SAVE"]);
    let rdb_len = std::fs::metadata(field.source.folder().join("dump.rdb")).unwrap().len();
    field.load(100);
    field.from.throttle(rdb_len / 9);
    let run = field.setup().start();
    wait_until(MINUTES, "the whole RDB", || field.from.passed(Way::ToEngine) > rdb_len);
    field.from.calm();
    // What is left of the RDB takes as long again, and the stream arrives meanwhile.
    field.to.throttle(rdb_len / 30);
    streaming(&run);
    let status = run.status_json();
    assert_eq!(status["sources"][0]["reconnects"], 0, "{status}");
    field.assert_equal(run);
    assert_eq!(full_syncs(&field.source), 1, "only one full sync");
}
