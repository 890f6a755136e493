//! Named snapshots for screen tests: the moments of a migration that an operator must be able to read.
//!
//! The numbers of `applying` are those of the design's mock-up: three nodes, 41 minutes in, one writer slow.

use crate::status::*;

/// 2026-03-02 03:12:07 UTC, the time on every test screen.
pub const NOW: u64 = 1_772_421_127_000;

/// A clock time of that night, as Unix ms.
fn at(hour: u64, minute: u64, second: u64) -> u64 {
    NOW - (3 * 3_600 + 12 * 60 + 7) * 1_000 + (hour * 3_600 + minute * 60 + second) * 1_000
}

/// Every named snapshot.
pub fn all() -> Vec<(&'static str, Status)> {
    vec![
        ("fresh", fresh()),
        ("receiving", receiving()),
        ("applying", applying()),
        ("caught_up", caught_up()),
        ("paused", paused()),
        ("throttled", throttled()),
        ("failing_node", failing_node()),
        ("failed", failed()),
        ("done", done()),
        ("single", single()),
        ("sixteen_nodes", sixteen_nodes()),
    ]
}

fn step(name: &str, state: StepState, seconds: Option<f64>, note: Option<&str>) -> Step {
    Step { name: name.into(), state, seconds, note: note.map(Into::into) }
}

fn gate(name: &str, text: &str, ok: bool, detail: &str) -> Gate {
    Gate { name: name.into(), text: text.into(), ok, detail: detail.into() }
}

/// The gates of a source cluster as the engine words them, and its reasons; `lag` of `None` is met.
fn judged(mut status: Status, lag: Option<&str>) -> Status {
    let met = |name: &str, text: &str| gate(name, text, true, text);
    let mut gates = Vec::new();
    if status.state == State::Paused {
        gates.push(gate("pause", "not paused", false, "paused by the operator"));
    }
    let reason = |reason: &Option<String>| reason.as_ref().map_or(String::new(), |why| format!(": {why}"));
    let mut writers = met("writers", "all writers connected");
    let down = |row: &&DestinationStatus| {
        !matches!(row.state, WriterState::Ok | WriterState::Slow | WriterState::Waiting)
    };
    if let Some(row) = status.destinations.iter().find(down) {
        let detail = format!("writer {} {}{}", row.address, row.state.word(), reason(&row.reason));
        (writers.ok, writers.detail) = (false, detail);
    }
    gates.push(writers);
    gates.push(met("slots", "no slots of the source move"));
    let mut rdb = met("rdb", "all RDBs applied");
    if let Some(row) = status.sources.iter().find(|row| !matches!(row.phase, Phase::Stream | Phase::Drained))
    {
        let what = match row.phase {
            Phase::RdbApply => "applying RDB, about 20m30s",
            Phase::RdbReceive => "receiving RDB",
            phase => phase.word(),
        };
        (rdb.ok, rdb.detail) = (false, format!("{} {what}{}", row.address, reason(&row.reason)));
    }
    gates.push(rdb);
    let wanted = "lag < 1 MB and < 1 s for 2 s";
    gates.push(gate("lag", wanted, lag.is_none(), lag.unwrap_or("lag 114 KB, 0.3 s")));
    let mut errors = met("errors", "no unread errors");
    if status.unread_errors > 0 {
        (errors.ok, errors.detail) = (false, format!("{} unread errors", status.unread_errors));
    }
    gates.push(errors);
    let share = status.spool.bytes * 100 / status.spool.max_bytes;
    gates.push(gate("spool", "spool below 80 %", true, &format!("spool at {share} %")));
    status.not_ready = gates.iter().filter(|gate| !gate.ok).map(|gate| gate.detail.clone()).collect();
    status.ready = status.not_ready.is_empty();
    status.gates = gates;
    status
}

fn source(address: &str) -> SourceStatus {
    SourceStatus {
        address: address.into(),
        connected_to: None,
        role: None,
        phase: Phase::Connecting,
        reason: None,
        phase_since_unix_ms: NOW - 2_000,
        replid: None,
        rdb_transfer: None,
        rdb_bytes_received: 0,
        rdb_bytes_total: None,
        rdb_bytes_applied: 0,
        keys_applied: 0,
        offset_received: 0,
        offset_durable: 0,
        offset_applied: 0,
        lag_bytes: None,
        lag_seconds: None,
        ops_per_second: 0.0,
        bytes_per_second: 0.0,
        receive_bytes_per_second: 0.0,
        stream_bytes_per_second: None,
        spool_bytes: 0,
        spool_files: 0,
        errors: 0,
        reconnects: 0,
        last_error: None,
        last_ack_unix_ms: None,
        checkpoint_unix_ms: None,
        backlog_bytes: None,
        output_buffer_limit_bytes: None,
        clock_skew_ms: None,
        held_back_by: None,
        eta_seconds: None,
    }
}

fn writer(address: &str, slots: &str) -> DestinationStatus {
    DestinationStatus {
        address: address.into(),
        connected_to: None,
        state: WriterState::Connecting,
        reason: None,
        slots: Some(slots.into()),
        in_flight: 0,
        in_flight_limit: 1_024,
        oldest_ms: 0.0,
        p99_ms: None,
        ops_per_second: 0.0,
        bytes_per_second: 0.0,
        retries: 0,
        redirects: 0,
        reconnects: 0,
        errors: 0,
        last_error: None,
    }
}

fn streaming(
    address: &str,
    rdb: u64,
    keys: u64,
    applied: u64,
    lag: u64,
    seconds: f64,
    ops: f64,
) -> SourceStatus {
    SourceStatus {
        role: Some("master".into()),
        phase: Phase::Stream,
        phase_since_unix_ms: at(3, 5, 2),
        replid: Some("c01d77aa9e1f4b7da2c3e0f1b2a3948576c0ffee".into()),
        rdb_transfer: Some("diskless".into()),
        rdb_bytes_received: rdb,
        rdb_bytes_total: Some(rdb),
        rdb_bytes_applied: rdb,
        keys_applied: keys,
        offset_received: applied + lag,
        offset_durable: applied + lag - lag / 3,
        offset_applied: applied,
        lag_bytes: Some(lag),
        lag_seconds: Some(seconds),
        ops_per_second: ops,
        bytes_per_second: 0.37e6,
        receive_bytes_per_second: 0.36e6,
        stream_bytes_per_second: Some(0.36e6),
        spool_bytes: 100_000,
        spool_files: 1,
        last_ack_unix_ms: Some(NOW - 600),
        checkpoint_unix_ms: Some(NOW - 800),
        backlog_bytes: Some(512_000_000),
        ..source(address)
    }
}

fn event(id: u64, unix_ms: u64, level: EventLevel, node: &str, text: &str) -> Event {
    Event { id, unix_ms, level, node: node.into(), text: text.into(), count: 1 }
}

fn base() -> Status {
    Status {
        run_id: "2026-03-02T02:30:55Z-a41c".into(),
        version: "0.1.0".into(),
        pid: 4_711,
        snapshot_unix_ms: NOW - 200,
        started_unix_ms: NOW - 2_472_000,
        elapsed_seconds: 2_471.8,
        state: State::Connecting,
        state_reason: None,
        ready: false,
        not_ready: Vec::new(),
        gates: Vec::new(),
        source: Side { server: None, kind: "cluster".into(), address: "10.0.1.11".into(), nodes: 3 },
        destination: Side { server: None, kind: "cluster".into(), address: "10.0.2.21".into(), nodes: 3 },
        timeline: Vec::new(),
        sources: Vec::new(),
        destinations: Vec::new(),
        spool: SpoolStatus {
            bytes: 0,
            max_bytes: 50_000_000_000,
            disk_free_bytes: Some(180_000_000_000),
            min_free_bytes: 1_000_000_000,
            growth_bytes_per_second: None,
        },
        counters: Counters::default(),
        rejected: Vec::new(),
        throttle: Throttle::default(),
        events: Vec::new(),
        events_dropped: 0,
        unread_errors: 0,
        history: Vec::new(),
        paused_times: 0,
        memory_bytes: Some(212_000_000),
        log_file: Some("/var/log/migrate/2026-03-02.log".into()),
        status_url: Some("http://127.0.0.1:8080".into()),
        data_dir: "/data/spool".into(),
        warnings: Vec::new(),
        cutover: CutoverStatus::default(),
        verification: None,
        outcome: None,
    }
}

/// Two seconds after the start: nothing is known.
pub fn fresh() -> Status {
    use StepState::*;
    let status = Status {
        elapsed_seconds: 1.8,
        sources: vec![source("10.0.1.11:6379")],
        destinations: vec![writer("10.0.2.21:6379", "0-5460")],
        source: Side { nodes: 0, ..base().source },
        destination: Side { nodes: 0, ..base().destination },
        timeline: vec![
            step("connect", Active, Some(1.8), None),
            step("handshake", Pending, None, None),
            step("rdb receive", Pending, None, None),
            step("rdb apply", Pending, None, None),
            step("stream", Pending, None, None),
            step("caught up", Pending, None, None),
            step("cutover", Pending, None, None),
        ],
        ..base()
    };
    judged(status, Some("lag not known: 10.0.1.11:6379 connecting"))
}

/// The RDBs arrive; one source (diskless) has not said its size, so there is no percentage and no ETA.
pub fn receiving() -> Status {
    use StepState::*;
    let node = |address: &str, received: u64, total: Option<u64>| SourceStatus {
        role: Some("master".into()),
        phase: Phase::RdbReceive,
        replid: Some("8f3a41c2d09e4b7da2c3e0f1b2a3948576c0ffee".into()),
        rdb_transfer: Some(if total.is_some() { "disk" } else { "diskless" }.into()),
        rdb_bytes_received: received,
        rdb_bytes_total: total,
        lag_seconds: Some(41.0),
        receive_bytes_per_second: 10.9e6,
        spool_bytes: received,
        spool_files: 4,
        offset_received: 87_268_211_006,
        offset_durable: 87_268_211_006,
        last_ack_unix_ms: None,
        ..source(address)
    };
    let status = Status {
        state: State::Syncing,
        elapsed_seconds: 45.0,
        sources: vec![
            node("10.0.1.11:6379", 402_000_000, Some(4_100_000_000)),
            node("10.0.1.12:6379", 398_100_000, Some(3_920_000_000)),
            node("10.0.1.13:6379", 441_900_000, None),
        ],
        destinations: applying()
            .destinations
            .into_iter()
            .map(|row| DestinationStatus {
                state: WriterState::Ok,
                in_flight: 0,
                oldest_ms: 0.0,
                ops_per_second: 0.0,
                errors: 0,
                ..row
            })
            .collect(),
        timeline: vec![
            step("connect", Done, Some(3.0), None),
            step("handshake", Done, Some(1.0), None),
            step("rdb receive", Active, Some(41.0), Some("0 of 3")),
            step("rdb apply", Pending, None, None),
            step("stream", Pending, None, None),
            step("caught up", Pending, None, None),
            step("cutover", Pending, None, None),
        ],
        events: vec![event(
            1,
            NOW - 41_000,
            EventLevel::Info,
            "source 10.0.1.13:6379",
            "FULLRESYNC 8f3a41c2d09e… offset 87,268,211,006; RDB by $EOF (diskless)",
        )],
        ..base()
    };
    judged(status, Some("lag not known: 10.0.1.11:6379 RDB receive"))
}

/// The mock-up: one RDB is still being applied, held back by a slow writer.
pub fn applying() -> Status {
    use StepState::*;
    let slow = SourceStatus {
        role: Some("master".into()),
        phase: Phase::RdbApply,
        phase_since_unix_ms: at(2, 37, 40),
        replid: Some("8f3a41c2d09e4b7da2c3e0f1b2a3948576c0ffee".into()),
        rdb_transfer: Some("diskless".into()),
        rdb_bytes_received: 4_380_000_000,
        rdb_bytes_total: Some(4_380_000_000),
        rdb_bytes_applied: 2_720_000_000,
        keys_applied: 20_100_000,
        offset_received: 88_120_334_118,
        offset_durable: 88_120_334_118,
        offset_applied: 87_268_211_006,
        lag_bytes: Some(812_600_000),
        lag_seconds: Some(2_468.0),
        ops_per_second: 10_100.0,
        bytes_per_second: 1.4e6,
        receive_bytes_per_second: 0.35e6,
        spool_bytes: 5_200_000_000,
        spool_files: 41,
        errors: 2,
        last_ack_unix_ms: Some(NOW - 400),
        checkpoint_unix_ms: Some(NOW - 800),
        backlog_bytes: Some(512_000_000),
        held_back_by: Some("10.0.2.23:6379".into()),
        eta_seconds: Some(1_230.0),
        ..source("10.0.1.13:6379")
    };
    let fast = |address: &str, slots: &str, in_flight: u64, ops: f64| DestinationStatus {
        state: WriterState::Ok,
        in_flight,
        oldest_ms: 3.0,
        p99_ms: Some(5.0),
        ops_per_second: ops,
        bytes_per_second: 0.37e6,
        ..writer(address, slots)
    };
    let busy_key = "BUSYKEY Target key name already exists (policy: skip)";
    let mut history: Vec<Sample> = (0..1_800u32)
        .map(|second| {
            // A fast first half, then one slow node; a gap where the program was suspended.
            let wave = f64::from(second % 240) / 240.0 * std::f64::consts::TAU;
            let ops = if second < 1_400 {
                47_000.0 + 6_000.0 * wave.sin()
            } else {
                15_100.0 + 1_200.0 * wave.sin()
            };
            let lag = 200e6 + f64::from(second) * 340_000.0;
            let measured = !(600..630).contains(&second);
            Sample { ops: measured.then_some(ops), lag_bytes: measured.then_some(lag) }
        })
        .collect();
    history.truncate(HISTORY_CAPACITY);
    let status = Status {
        state: State::Syncing,
        source: Side { server: Some("redis 7.2.4".into()), ..base().source },
        destination: Side { server: Some("valkey 8.0.1".into()), ..base().destination },
        sources: vec![
            streaming("10.0.1.11:6379", 4_100_000_000, 32_880_402, 91_884_116_001, 114_014, 0.3, 2_600.0),
            streaming("10.0.1.12:6379", 3_920_000_000, 31_204_117, 88_310_377_880, 70_022, 0.2, 2_400.0),
            slow,
        ],
        destinations: vec![
            fast("10.0.2.21:6379", "0-5460", 8, 2_600.0),
            fast("10.0.2.22:6379", "5461-10922", 7, 2_400.0),
            DestinationStatus {
                state: WriterState::Slow,
                in_flight: 1_024,
                oldest_ms: 1_101.0,
                p99_ms: Some(1_140.0),
                bytes_per_second: 1.4e6,
                redirects: 14,
                errors: 2,
                last_error: Some("BUSYKEY Target key name already exists.".into()),
                ..fast("10.0.2.23:6379", "10923-16383", 0, 10_100.0)
            },
        ],
        timeline: vec![
            step("connect", Done, Some(3.0), None),
            step("handshake", Done, Some(1.0), None),
            step("rdb receive", Done, Some(401.0), None),
            step("rdb apply", Active, Some(2_067.0), Some("2 of 3")),
            step("stream", Pending, None, None),
            step("caught up", Pending, None, None),
            step("cutover", Pending, None, None),
        ],
        spool: SpoolStatus { bytes: 5_200_000_000, growth_bytes_per_second: Some(355_000.0), ..base().spool },
        counters: Counters {
            entries_read: 84_412_004,
            entries_applied: 84_184_519,
            filtered: 1_204,
            quarantined: 2,
        },
        rejected: vec![
            Rejected {
                kind: "BUSYKEY".into(),
                count: 2,
                last_unix_ms: Some(at(3, 11, 41)),
                example: Some("user:{88214}:cart".into()),
                policy: "skip".into(),
            },
            Rejected {
                kind: "filtered".into(),
                count: 1_204,
                last_unix_ms: Some(at(3, 12, 6)),
                example: Some("tmp:session:9f".into()),
                policy: "drop (by rule)".into(),
            },
        ],
        events: vec![
            event(
                1,
                at(2, 30, 58),
                EventLevel::Info,
                "source 10.0.1.13:6379",
                "connected as replica: redis 7.2.4; repl-backlog 512 MB = 24 min at this write rate",
            ),
            event(
                2,
                at(2, 30, 59),
                EventLevel::Info,
                "source 10.0.1.13:6379",
                "FULLRESYNC 8f3a41c2… offset 87,268,211,006; RDB by $EOF (diskless)",
            ),
            event(
                3,
                at(2, 37, 40),
                EventLevel::Info,
                "source 10.0.1.13:6379",
                "RDB received, 4.38 GB in 6m41s; applying",
            ),
            event(
                4,
                at(3, 4, 10),
                EventLevel::Info,
                "source 10.0.1.11:6379",
                "RDB applied, 32,880,402 keys in 26m30s; now streaming from offset 91,002,118,730",
            ),
            event(
                5,
                at(3, 5, 2),
                EventLevel::Info,
                "source 10.0.1.12:6379",
                "RDB applied, 31,204,117 keys in 27m22s; now streaming from offset 87,912,004,551",
            ),
            event(
                6,
                at(3, 11, 41),
                EventLevel::Error,
                "writer 10.0.2.23:6379",
                &format!("RESTORE user:{{88213}}:cart -> {busy_key}"),
            ),
            event(
                7,
                at(3, 11, 41),
                EventLevel::Error,
                "writer 10.0.2.23:6379",
                &format!("RESTORE user:{{88214}}:cart -> {busy_key}"),
            ),
            event(
                8,
                at(3, 11, 58),
                EventLevel::Warn,
                "writer 10.0.2.23:6379",
                "pipeline full for 5 s; source 10.0.1.13 is held back (spool grows, source is safe)",
            ),
        ],
        unread_errors: 2,
        history,
        ..base()
    };
    judged(status, Some("lag 812.6 MB, 41m08s"))
}

/// Every gate met.
pub fn caught_up() -> Status {
    use StepState::*;
    let mut status = applying();
    status.state = State::CaughtUp;
    status.unread_errors = 0;
    status.sources[2] =
        streaming("10.0.1.13:6379", 4_380_000_000, 33_100_812, 89_402_118_003, 98_004, 0.3, 2_500.0);
    for (writer, in_flight) in status.destinations.iter_mut().zip([8, 7, 9]) {
        writer.state = WriterState::Ok;
        writer.in_flight = in_flight;
        writer.oldest_ms = 2.6;
        writer.p99_ms = Some(5.0);
        writer.ops_per_second = 2_500.0;
    }
    for (index, name) in ["stream", "caught up"].into_iter().enumerate() {
        status.timeline[4 + index] = step(name, if index == 0 { Done } else { Active }, Some(130.0), None);
    }
    status.timeline[3] = step("rdb apply", Done, Some(3_297.0), None);
    status.spool.bytes = 300_000;
    status.spool.growth_bytes_per_second = Some(-12_000.0);
    judged(status, None)
}

/// Paused by the operator: the spool grows, the forecast says how long that is safe.
pub fn paused() -> Status {
    let mut status = caught_up();
    status.state = State::Paused;
    status.state_reason = Some("nothing is applied; the source is still received into the spool".into());
    status.paused_times = 1;
    status.spool.bytes = 266_000_000;
    status.spool.growth_bytes_per_second = Some(1_050_000.0);
    for source in &mut status.sources {
        source.lag_bytes = Some(88_000_000);
        source.lag_seconds = Some(252.0);
        source.ops_per_second = 0.0;
        source.bytes_per_second = 0.0;
        source.spool_bytes = 88_700_000;
    }
    for writer in &mut status.destinations {
        writer.state = WriterState::Waiting;
        writer.in_flight = 0;
        writer.oldest_ms = 0.0;
        writer.ops_per_second = 0.0;
    }
    judged(status, Some("lag 88 MB, 4m12s"))
}

/// A speed limit, and a certificate that nobody checks.
pub fn throttled() -> Status {
    let mut status = applying();
    status.throttle = Throttle { bytes_per_second: Some(50_000_000), ops_per_second: None };
    status.state_reason = Some("THROTTLED: limit 50 MB/s".into());
    status.warnings = vec!["TLS NOT VERIFIED: source".into()];
    status
}

/// One link lost, and the error text of the server holds a terminal escape.
pub fn failing_node() -> Status {
    let mut status = applying();
    let lost = &mut status.sources[0];
    lost.phase = Phase::Reconnecting;
    lost.reason = Some("reconnecting in 4 s (3rd try): connection refused".into());
    (lost.lag_bytes, lost.lag_seconds) = (None, None);
    lost.reconnects = 3;
    lost.last_error = Some("\u{1b}[2J\u{1b}[31mpwned\u{7}".into());
    status.destinations[0].state = WriterState::Reconnecting;
    status.destinations[0].reason =
        Some("OOM command not allowed when used memory > 'maxmemory': free some there".into());
    status.events.push(Event {
        count: 204,
        ..event(
            9,
            at(3, 12, 6),
            EventLevel::Error,
            "source 10.0.1.11:6379",
            "link lost: \u{1b}[31mconnection refused\u{9b}0m",
        )
    });
    judged(status, Some("lag not known: 10.0.1.11:6379 reconnecting"))
}

/// Ended by an error: what happened, and what to do next.
pub fn failed() -> Status {
    let mut status = applying();
    status.state = State::Failed;
    status.sources[2].phase = Phase::Failed;
    status.sources[2].reason = Some("the RDB's checksum is wrong".into());
    status.outcome = Some(Outcome {
        exit_code: 3,
        message: "source 10.0.1.13:6379: the RDB's CRC64 is 8c1f… but its trailer says 77ab…".into(),
        hint: Some(
            "the destination holds part of the data; start again with the same file: a new full sync of this node begins. \
             If it happens twice, check the memory of the source host."
                .into(),
        ),
    });
    status
}

/// Ended in order, all work done.
pub fn done() -> Status {
    let mut status = caught_up();
    status.state = State::Stopped;
    status.outcome = Some(Outcome {
        exit_code: 0,
        message: "the RDB of every source is applied: 97,185,331 keys in 41m12s (sync_aof = false)".into(),
        hint: None,
    });
    status
}

/// The common case: one server to one server, no cluster.
pub fn single() -> Status {
    let mut status = caught_up();
    status.source = Side {
        server: Some("redis 7.0.15".into()),
        kind: "standalone".into(),
        address: "127.0.0.1:6379".into(),
        nodes: 1,
    };
    status.destination = Side {
        server: Some("redis 7.0.15".into()),
        kind: "standalone".into(),
        address: "127.0.0.1:6380".into(),
        nodes: 1,
    };
    status.sources.truncate(1);
    status.sources[0].address = "127.0.0.1:6379".into();
    status.destinations.truncate(1);
    status.destinations[0].address = "127.0.0.1:6380".into();
    status.destinations[0].slots = None;
    status
}

/// More rows than fit.
pub fn sixteen_nodes() -> Status {
    many_nodes(16)
}

/// A large cluster, three of its nodes as in `failing_node`.
pub fn many_nodes(count: u64) -> Status {
    let mut status = failing_node();
    for index in 0..count.saturating_sub(3) {
        let address = format!("10.0.1.{}:6379", 20 + index);
        let mut row = streaming(&address, 4_000_000_000, 31_000_000, 88_000_000_000, 60_000, 0.2, 2_400.0);
        row.lag_bytes = row.lag_bytes.map(|lag| lag + index * 10_000);
        status.sources.push(row);
        let mut row = status.destinations[1].clone();
        row.address = format!("10.0.2.{}:6379", 30 + index);
        status.destinations.push(row);
    }
    status.source.nodes = count as usize;
    status.destination.nodes = count as usize;
    status
}

/// A comparison in its first round.
pub fn verifying() -> Verification {
    Verification {
        state: VerificationState::Running,
        mode: "full".into(),
        round: 1,
        rounds: 3,
        message: "reading the source, database 0".into(),
        started_unix_ms: NOW - 4_000,
        ended_unix_ms: None,
        keys_compared: 412_000,
        keys_total: Some(2_000_000),
        keys_per_second: 103_000.0,
        eta_seconds: Some(15.4),
        conflicts: 12,
        unsettled: 0,
        unreadable: 0,
        differences: 0,
        by_kind: Vec::new(),
        examples: Vec::new(),
        file: None,
        repaired: 0,
        notices: Vec::new(),
    }
}

/// One that has found differences.
pub fn verified() -> Verification {
    let difference =
        |key: &str, kind: &str, part: Option<&str>, source: &str, destination: &str| Difference {
            db: 0,
            key: key.into(),
            kind: kind.into(),
            part: part.map(str::to_owned),
            source: source.into(),
            destination: destination.into(),
        };
    let of = |kind: &str| DifferenceCount { kind: kind.into(), count: 1 };
    Verification {
        state: VerificationState::Different,
        round: 3,
        message: "2,000,412 keys compared, 3 keys differ".into(),
        ended_unix_ms: Some(NOW),
        keys_compared: 2_000_412,
        eta_seconds: None,
        conflicts: 3,
        differences: 3,
        by_kind: vec![of("missing"), of("ttl"), of("field_ttl")],
        examples: vec![
            difference("user:{88214}:cart", "missing", None, "hash of 12 elements", "no such key"),
            difference(
                "session:\\x1b[31m7f",
                "ttl",
                None,
                "expires 2026-03-02 04:12:07.000 UTC",
                "never expires",
            ),
            difference(
                "user:{77}:fields",
                "field_ttl",
                Some("field 'token'"),
                "expires 2026-03-02 04:12:07.000 UTC",
                "expires 2026-03-02 04:12:09.500 UTC",
            ),
        ],
        file: Some("data/verify-differences.jsonl".into()),
        notices: vec![
            "only one of the servers knows times of expiry for hash fields: a field that has one differs"
                .into(),
        ],
        ..verifying()
    }
}
