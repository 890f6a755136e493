//! `kill -9` of the engine at every moment of a migration.

use super::field::{Field, MINUTES, has_whole_rdb, number_of, streaming};
use super::require_server;
use super::support::proxy::Way;
use super::support::{Shakedeck, wait_until};

/// Where a round is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Handshake,
    RdbReceive,
    RdbApply,
    Stream,
    Paused,
}

const MOMENTS: [Moment; 5] =
    [Moment::Handshake, Moment::RdbReceive, Moment::RdbApply, Moment::Stream, Moment::Paused];

/// Each round is a migration of its own into the emptied destination, under the same load that never ends: killed at one
/// moment after the other, in every order, once or more often.
#[test]
fn killed_at_any_moment_it_goes_on_where_it_was() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    // Its size is the scale for random positions inside of the RDB.
    field.source.client().ok(&["SAVE"]);
    let rdb_len = std::fs::metadata(field.source.folder().join("dump.rdb")).unwrap().len();
    let rounds = number_of("SHAKEDECK_CHAOS_ROUNDS").unwrap_or(5);
    for round in 0..rounds {
        field.destination.client().ok(&["FLUSHALL"]);
        field.load(2_000);
        let setup = field.setup();
        let mut run = setup.start();
        let first = MOMENTS[(round % 5) as usize];
        let mut moments = vec![first];
        while field.random.chance(50) {
            moments.push(MOMENTS[field.random.below(5) as usize]);
        }
        println!("round {round}: {moments:?}");
        let mut full_syncs = None;
        for moment in moments {
            wait_moment(&mut field, &run, moment, rdb_len);
            let folder = run.folder();
            run.kill();
            field.from.calm();
            field.to.calm();
            if has_whole_rdb(&folder) {
                full_syncs.get_or_insert_with(|| field.full_syncs());
            }
            field.writes(200);
            run = setup.start_in(folder);
        }
        field.assert_equal(run);
        if let Some(before) = full_syncs {
            assert_eq!(
                field.full_syncs(),
                before,
                "round {round}: another full sync though the RDB was whole on disk"
            );
        }
    }
}

/// Returns at a random point of a phase, or where it has come to if the phase is over already.
fn wait_moment(field: &mut Field, run: &Shakedeck, moment: Moment, rdb_len: u64) {
    let position = field.random.below(rdb_len);
    let beyond = |field: &Field, proxy_bytes: u64| {
        wait_until(MINUTES, "bytes on the way", || field.from.passed(Way::ToEngine) >= proxy_bytes);
    };
    match moment {
        Moment::Handshake => {
            // From the first byte to a little behind +FULLRESYNC or +CONTINUE.
            let bytes = field.from.passed(Way::ToServer) + field.random.below(400);
            wait_until(MINUTES, "the handshake", || field.from.passed(Way::ToServer) >= bytes);
        }
        Moment::RdbReceive => {
            field.from.throttle(rdb_len.max(100_000));
            beyond(field, field.from.passed(Way::ToEngine) + position);
        }
        Moment::RdbApply => {
            field.to.throttle(rdb_len.max(100_000));
            let bytes = field.to.passed(Way::ToServer) + position;
            wait_until(MINUTES, "bytes for the destination", || field.to.passed(Way::ToServer) >= bytes);
        }
        Moment::Stream => {
            streaming(run);
            field.writes(1 + position % 3_000);
        }
        Moment::Paused => {
            streaming(run);
            run.ctl(&["pause"]).expect(0, &[]);
            run.wait_state("paused", MINUTES);
            field.writes(1 + position % 3_000);
        }
    }
}

/// What a killed engine, or a link that is gone, has sent may reach the destination later than what its successor asks
/// there: held in a proxy, or in the buffers of a server that stands still. It must not be applied a second time.
#[test]
fn what_arrives_late_is_not_applied_a_second_time() {
    let binary = require_server!();
    let mut field = Field::new(binary);
    field.load(2_000);
    let setup = field.setup();
    let mut run = setup.start();
    for killed in [false, true, true, false] {
        streaming(&run);
        field.writes(500);
        field.to.hold();
        let before = field.to.passed(Way::ToServer);
        wait_until(MINUTES, "a batch on the way", || field.to.passed(Way::ToServer) > before + 200);
        // Without an answer nothing is sent beyond the next batch.
        field.writes(500);
        if killed {
            let folder = run.folder();
            run.kill();
            run = setup.start_in(folder);
        } else {
            field.to.cut_engine_off();
        }
        let applied = run.status_json()["sources"][0]["offset_applied"].as_u64().unwrap();
        run.wait_status(MINUTES, "progress on the new link", |status| {
            status["sources"][0]["offset_applied"].as_u64() > Some(applied + 20_000)
        });
        field.to.deliver();
        field.writes(500);
    }
    field.assert_equal(run);
    assert_eq!(field.full_syncs(), 1, "only one full sync");
}
