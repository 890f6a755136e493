//! Named statuses for the tests of this folder: small, with every number different, so that a mix-up shows.

use crate::status::*;

/// 2026-03-02 03:12:07 UTC.
pub const NOW: u64 = 1_772_421_127_000;

/// One source in the middle of its RDB, one writer.
pub fn syncing() -> Status {
    Status {
        run_id: "run-a41c".into(),
        version: "0.1.0".into(),
        pid: 4711,
        snapshot_unix_ms: NOW,
        started_unix_ms: NOW - 2_472_000,
        elapsed_seconds: 2_472.0,
        state: State::Syncing,
        state_reason: None,
        ready: false,
        not_ready: vec![
            "10.0.1.13:6379 applying RDB, about 20m30s".into(),
            "2 errors that nobody has read".into(),
        ],
        gates: vec![Gate {
            name: "rdb".into(),
            text: "all RDBs applied".into(),
            ok: false,
            detail: "62 %".into(),
        }],
        source: Side {
            server: Some("redis 7.2.4".into()),
            kind: "standalone".into(),
            address: "10.0.1.13:6379".into(),
            nodes: 1,
        },
        destination: Side {
            server: None,
            kind: "standalone".into(),
            address: "10.0.2.23:6379".into(),
            nodes: 1,
        },
        timeline: vec![
            step("connect", StepState::Done, Some(3.0), None),
            step("rdb receive", StepState::Done, Some(401.0), None),
            step("rdb apply", StepState::Active, Some(2_067.0), Some("2 of 3")),
            step("stream", StepState::Pending, None, None),
        ],
        sources: vec![source("10.0.1.13:6379")],
        destinations: vec![destination("10.0.2.23:6379")],
        spool: SpoolStatus {
            bytes: 5_200_000_000,
            max_bytes: 50_000_000_000,
            disk_free_bytes: Some(90_000_000_000),
            min_free_bytes: 1_000_000_000,
            growth_bytes_per_second: Some(350_000.0),
        },
        counters: Counters {
            entries_read: 20_200_117,
            entries_applied: 20_100_117,
            filtered: 1_204,
            quarantined: 2,
        },
        rejected: vec![Rejected {
            kind: "BUSYKEY".into(),
            count: 2,
            last_unix_ms: Some(NOW - 26_000),
            example: Some("user:{88214}:cart".into()),
            policy: "skip".into(),
        }],
        throttle: Throttle::default(),
        events: vec![event(1, EventLevel::Info, "RDB received, 4.38 GB in 6m41s; applying")],
        events_dropped: 0,
        unread_errors: 2,
        history: vec![Sample { ops: Some(10_100.0), lag_bytes: None }],
        paused_times: 0,
        memory_bytes: Some(42_000_000),
        log_file: Some("data/shakedeck.log".into()),
        status_url: Some("http://127.0.0.1:8080".into()),
        data_dir: "data".into(),
        warnings: vec!["TLS NOT VERIFIED: source".into()],
        cutover: CutoverStatus::default(),
        verification: None,
        outcome: None,
    }
}

/// Everything streams and is ready; no errors.
pub fn caught_up() -> Status {
    let mut status = syncing();
    status.state = State::CaughtUp;
    status.ready = true;
    status.not_ready.clear();
    status.gates.iter_mut().for_each(|gate| gate.ok = true);
    status.unread_errors = 0;
    status.rejected.clear();
    status.warnings.clear();
    status.counters.quarantined = 0;
    for source in &mut status.sources {
        source.phase = Phase::Stream;
        source.reason = None;
        source.rdb_bytes_applied = source.rdb_bytes_received;
        source.offset_applied = source.offset_received;
        source.offset_durable = source.offset_received;
        source.lag_bytes = Some(0);
        source.lag_seconds = Some(0.0);
        source.errors = 0;
    }
    status
}

/// Ended in order by a stop.
pub fn stopped() -> Status {
    let mut status = caught_up();
    status.state = State::Stopped;
    status.outcome = Some(Outcome {
        exit_code: 75,
        message: "stopped by the operator".into(),
        hint: Some("start it again to go on".into()),
    });
    status
}

/// A source in the middle of its RDB.
pub fn source(address: &str) -> SourceStatus {
    SourceStatus {
        address: address.into(),
        connected_to: None,
        role: Some("master".into()),
        phase: Phase::RdbApply,
        reason: None,
        phase_since_unix_ms: NOW - 2_067_000,
        replid: Some("8f3a41c2d09e8f3a41c2d09e8f3a41c2d09e8f3a".into()),
        rdb_transfer: Some("disk".into()),
        rdb_bytes_received: 4_380_000_000,
        rdb_bytes_total: Some(4_400_000_000),
        rdb_bytes_applied: 2_720_000_000,
        keys_applied: 20_100_117,
        offset_received: 88_120_334_118,
        offset_durable: 88_120_330_000,
        offset_applied: 87_268_211_006,
        lag_bytes: Some(852_123_112),
        lag_seconds: Some(2_468.0),
        ops_per_second: 10_100.0,
        bytes_per_second: 1_400_000.0,
        receive_bytes_per_second: 350_000.0,
        stream_bytes_per_second: None,
        spool_bytes: 5_200_000_000,
        spool_files: 41,
        errors: 2,
        reconnects: 1,
        last_error: None,
        last_ack_unix_ms: Some(NOW - 400),
        checkpoint_unix_ms: Some(NOW - 800),
        backlog_bytes: Some(512_000_000),
        output_buffer_limit_bytes: None,
        clock_skew_ms: None,
        held_back_by: None,
        eta_seconds: Some(1_230.0),
    }
}

/// A slow writer.
pub fn destination(address: &str) -> DestinationStatus {
    DestinationStatus {
        address: address.into(),
        connected_to: None,
        state: WriterState::Slow,
        reason: None,
        slots: None,
        in_flight: 1_024,
        in_flight_limit: 1_024,
        oldest_ms: 1_101.0,
        p99_ms: Some(140.0),
        ops_per_second: 10_090.0,
        bytes_per_second: 1_390_000.0,
        retries: 3,
        redirects: 4,
        reconnects: 5,
        errors: 6,
        last_error: None,
    }
}

/// An event of that source.
pub fn event(id: u64, level: EventLevel, text: &str) -> Event {
    Event {
        id,
        unix_ms: NOW - 1_000,
        level,
        node: "source 10.0.1.13:6379".into(),
        text: text.into(),
        count: 1,
    }
}

fn step(name: &str, state: StepState, seconds: Option<f64>, note: Option<&str>) -> Step {
    Step { name: name.into(), state, seconds, note: note.map(Into::into) }
}

/// A verification in its first round.
pub fn verification() -> Verification {
    Verification {
        state: VerificationState::Running,
        mode: "meta".into(),
        round: 1,
        rounds: 3,
        message: "reading the source, database 0".into(),
        started_unix_ms: 1_772_421_127_000,
        ended_unix_ms: None,
        keys_compared: 412_000,
        keys_total: Some(2_000_000),
        keys_per_second: 103_000.0,
        eta_seconds: Some(15.4),
        conflicts: 3,
        unsettled: 0,
        unreadable: 0,
        differences: 0,
        by_kind: vec![DifferenceCount { kind: "field_ttl".into(), count: 1 }],
        examples: vec![Difference {
            db: 3,
            key: "cart:\\x00".into(),
            kind: "field_ttl".into(),
            part: Some("field 'a'".into()),
            source: "expires 2026-03-02 03:12:07.000 UTC".into(),
            destination: "never expires".into(),
        }],
        file: Some("data/verify-differences.jsonl".into()),
        repaired: 0,
        notices: vec!["a note".into()],
    }
}
