//! The source changes: a replica takes its place, or it is started again with and without its past.

use super::field::{Field, MINUTES, applied, full_syncs, source_options, source_says, streaming};
use super::require_server;
use super::support::load::{Load, Writer};
use super::support::proxy::Break;
use super::support::{Options, Server, Shakedeck, wait_until};

/// A replica of the source that is in step with it.
fn replica_of(field: &Field) -> Server {
    let replica = Server::start(field.source.binary(), source_options());
    let port = field.source.port().to_string();
    replica.client().ok(&["REPLICAOF", "127.0.0.1", &port]);
    wait_until(MINUTES, "a replica in step", || {
        replica.client().info("replication", "master_link_status").as_deref() == Some("up")
    });
    replica
}

/// Both have the same offset; nothing may be written to the source.
fn in_step(source: &Server, replica: &Server) {
    let offset = |server: &Server| server.client().info("replication", "master_repl_offset");
    wait_until(MINUTES, "the replica has everything", || offset(source) == offset(replica));
}

fn promote(replica: &Server) {
    replica.client().ok(&["REPLICAOF", "NO", "ONE"]);
}

fn prints(run: &Shakedeck, word: &str) {
    wait_until(MINUTES, word, || run.output().contains(word));
}

/// The replica goes on with the source's history under a new name: PSYNC is answered with `+CONTINUE <new>`.
fn promoted(engine_is_down: bool) {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(2_000);
    let mut replica = replica_of(&field);
    let setup = field.setup();
    let mut run = setup.start();
    streaming(&run);
    field.writes(1_000);
    let folder = run.folder();
    if engine_is_down {
        run.kill_and_keep();
        field.writes(1_000);
    }
    field.stop_load();
    in_step(&field.source, &replica);
    let count_before = full_syncs(&replica);
    field.source.kill();
    promote(&replica);
    field.from.switch(replica.address());
    field.from.cut(Break::Fin);
    let writer = Writer::start(&replica, Load { seed: 77, keys: 6_000, per_second: 2_000 });
    run = if engine_is_down { setup.start_in(folder) } else { run };
    prints(&run, "the source was promoted");
    wait_until(MINUTES, "writes on the new source", || writer.sent() > 2_000);
    // Once more: the new name must have been kept across a restart.
    let folder = run.folder();
    run.kill();
    let run = setup.start_in(folder);
    wait_until(MINUTES, "writes on the new source", || writer.sent() > 3_000);
    writer.stop();
    std::mem::swap(&mut field.source, &mut replica);
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), count_before, "no full sync of the promoted replica");
}

#[test]
fn a_replica_of_the_source_is_promoted() {
    promoted(false);
}

#[test]
fn a_replica_of_the_source_is_promoted_while_the_engine_is_down() {
    promoted(true);
}

/// `SHUTDOWN SAVE` keeps the history in the RDB file (a master takes it up again from Redis 7.0 on): no full sync.
#[test]
fn the_source_is_restarted_with_its_history() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(2_000);
    let run = field.setup().start();
    streaming(&run);
    field.writes(1_000);
    field.stop_load();
    applied(&run, &mut field.source.client());
    // The reply is the end of the connection.
    let _ = field.source.client().try_cmd(&["SHUTDOWN", "SAVE"]);
    source_says(&run, "reconnecting", &[]);
    field.source.restart();
    prints(&run, "the source was promoted");
    field.load(2_000);
    streaming(&run);
    field.writes(1_000);
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 0, "no full sync after the restart");
}

/// A source that comes back with nothing: the cause is said in words, and the destination follows it.
#[test]
fn the_source_is_restarted_without_its_history() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(2_000);
    // It comes back empty, and that is meant.
    let run = field.setup().text("policy", "on_empty_source", "follow").start();
    streaming(&run);
    field.writes(1_000);
    field.drop_load();
    field.source.kill();
    source_says(&run, "reconnecting", &["next in"]);
    field.source.restart();
    prints(&run, "full sync again, because its history is now");
    super::support::dataset::fill(&mut field.source.client(), 1_000, 5);
    streaming(&run);
    field.assert_equal(run);
}

/// The same while the destination stands still and batches of the old history are under way: what they confirm later
/// must not be taken for the new one.
#[test]
fn a_second_full_sync_overtakes_a_destination_that_stands_still() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(2_000);
    let setup = field.setup().text("policy", "on_empty_source", "follow");
    let mut run = setup.start();
    streaming(&run);
    for killed in [false, true] {
        field.load(2_000);
        field.writes(1_000);
        field.destination.suspend();
        field.writes(1_000);
        field.drop_load();
        let rdbs = |run: &Shakedeck| run.output().matches("RDB received").count();
        let before = rdbs(&run);
        field.source.restart();
        super::support::dataset::fill(&mut field.source.client(), 1_000, 5);
        wait_until(MINUTES, "a new RDB, whole on disk", || rdbs(&run) > before);
        let folder = run.folder();
        if killed {
            run.kill_and_keep();
        }
        field.destination.resume();
        if killed {
            run = setup.start_in(folder);
        }
        streaming(&run);
        applied(&run, &mut field.source.client());
        assert_eq!(field.full_syncs(), 1, "one full sync of each life of the source");
    }
    field.assert_equal(run);
}

#[test]
fn a_full_sync_that_is_forbidden_ends_the_run_with_3() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(2_000);
    let run = field.setup().text("policy", "on_full_resync", "stop").start();
    streaming(&run);
    field.writes(1_000);
    field.drop_load();
    field.source.restart();
    run.wait_exit(MINUTES)
        .expect(3, &["cannot continue from offset", "its history is now", "on_full_resync"]);
}

/// A backlog that is too small for the outage: said in words, with the cure.
#[test]
fn an_outage_longer_than_the_backlog_costs_a_full_sync_and_says_so() {
    let binary = require_server!();
    let small = Options::new().config("repl-backlog-size", "64kb");
    let mut field = Field::with(binary, small, Options::new());
    field.load(5_000);
    let run = field.setup().start();
    streaming(&run);
    field.from.refuse();
    field.from.cut(Break::Reset);
    field.writes(10_000);
    field.from.calm();
    prints(&run, "full sync again, because its backlog no longer reaches back");
    prints(&run, "repl-backlog-size");
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 2);
}
