//! Links that break, crawl and split at random bytes, on either side.

use std::time::Duration;

use super::field::{Field, MINUTES, streaming};
use super::require_server;
use super::support::proxy::{Break, Proxy, Way};
use super::support::wait_until;

const BREAKS: [Break; 4] =
    [Break::Fin, Break::Reset, Break::HalfClose(Way::ToServer), Break::HalfClose(Way::ToEngine)];

/// Which of the two proxies.
#[derive(Debug, Clone, Copy)]
enum Side {
    Source,
    Destination,
}

impl Side {
    fn of(self, field: &Field) -> &Proxy {
        match self {
            Side::Source => &field.from,
            Side::Destination => &field.to,
        }
    }
}

/// Each link of the stream phase breaks after some bytes, in every way. No full sync: the backlog reaches back.
fn links_break_in_the_stream(side: Side) {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(3_000);
    let run = field.setup().start();
    streaming(&run);
    for how in BREAKS {
        // From the middle of the handshake to far into the stream.
        side.of(&field).break_links(how, 1, 60_000);
        let before = side.of(&field).broken();
        wait_until(MINUTES, "links that break", || side.of(&field).broken() >= before + 3);
        side.of(&field).calm();
        field.writes(200);
    }
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}

#[test]
fn links_to_the_source_break_in_the_stream() {
    links_break_in_the_stream(Side::Source);
}

#[test]
fn links_to_the_destination_break_in_the_stream() {
    links_break_in_the_stream(Side::Destination);
}

/// A link that breaks while the RDB arrives costs another full sync each time.
#[test]
fn links_to_the_source_break_in_the_rdb() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(1_000);
    for how in BREAKS {
        field.destination.client().ok(&["FLUSHALL"]);
        // Beyond the handshake: a first connection that breaks before it ends the run at once, with a word why.
        field.from.break_links(how, 10_000, 400_000);
        let before = field.from.broken();
        let run = field.setup().start();
        wait_until(MINUTES, "links that break", || field.from.broken() >= before + 2);
        field.from.calm();
        streaming(&run);
        field.assert_equal(run);
        field.load(1_000);
    }
}

/// A link to the destination that breaks while the RDB is applied costs nothing: it is on disk.
#[test]
fn links_to_the_destination_break_in_the_rdb() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(1_000);
    for (round, how) in BREAKS.into_iter().enumerate() {
        field.destination.client().ok(&["FLUSHALL"]);
        // Beyond what is asked at the start, which must succeed at once.
        field.to.break_links(how, 20_000, 400_000);
        let before = field.to.broken();
        let run = field.setup().start();
        wait_until(MINUTES, "links that break", || field.to.broken() >= before + 3);
        field.to.calm();
        field.assert_equal(run);
        assert_eq!(field.full_syncs(), 1 + round as u64, "one full sync each");
        field.load(1_000);
    }
}

/// A value too large to hold is built by many batches under a temporary name. Each of them counts, and counts once.
#[test]
fn links_break_while_a_large_value_is_built() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    let mut client = field.source.client();
    for _ in 0..200 {
        for _ in 0..100 {
            // Nothing that compresses: the value must be large in the RDB.
            client.push(&[&b"RPUSH"[..], b"large", &field.random.bytes(800)]);
        }
        client.flush(100);
    }
    // No payload is small enough: the value travels as commands.
    let setup = field.setup().set("advanced", "target_redis_proto_max_bulk_len", "1000");
    let run = setup.start();
    run.wait_status(MINUTES, "a run", |status| status["state"].is_string());
    field.to.break_links(Break::Reset, 300_000, 2_000_000);
    wait_until(MINUTES, "links that break", || field.to.broken() >= 8);
    field.to.calm();
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}

/// A whole migration over links that are late, slow, or bring every byte alone.
fn links_are_slow(slow: impl Fn(&Proxy)) {
    let binary = require_server!();
    let mut field = Field::small(binary);
    field.load(200);
    slow(&field.from);
    slow(&field.to);
    let run = field.setup().start();
    streaming(&run);
    field.writes(1_000);
    // Not calmed: it ends as it began.
    field.stop_load();
    super::field::applied(&run, &mut field.source.client());
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}

#[test]
fn everything_is_late() {
    links_are_slow(|proxy| proxy.delay(Duration::from_millis(30)));
}

#[test]
fn everything_passes_at_100_kilobytes_a_second() {
    links_are_slow(|proxy| proxy.throttle(100_000));
}

#[test]
fn every_byte_comes_alone() {
    links_are_slow(Proxy::one_byte_writes);
}

/// Nobody listens for a while: the state says so, and it goes on when somebody does.
#[test]
fn connections_are_refused_for_a_while() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(1_000);
    let run = field.setup().start();
    streaming(&run);
    for side in [Side::Source, Side::Destination] {
        side.of(&field).refuse();
        side.of(&field).cut(Break::Reset);
        match side {
            Side::Source => {
                super::field::source_says(&run, "reconnecting", &["cannot connect", "refused", "try 3"])
            }
            Side::Destination => {
                super::field::writer_says(&run, "reconnecting", &["cannot connect", "refused", "try 3"])
            }
        };
        side.of(&field).calm();
        match side {
            Side::Source => super::field::source_says(&run, "stream", &[]),
            Side::Destination => super::field::writer_says(&run, "ok", &[]),
        };
        field.writes(500);
    }
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}
