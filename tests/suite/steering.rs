//! A run is steered from outside: paused and resumed under load, stopped by signals and by `ctl`, ended by its time
//! limit, and waited for.

use std::time::{Duration, Instant};

use crate::support;
use crate::support::load::{Load, Writer};
use crate::support::shakedeck::Setup;
use crate::support::{Client, Options, Shakedeck, compare, dataset, wait_until};
use serde_json::Value;

const MINUTES: Duration = Duration::from_secs(120);

fn number(status: &Value, path: &str) -> u64 {
    status.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {status}"))
}

/// Twenty seconds under load: the destination stands still, the spool grows, memory does not, the source keeps its
/// replica; afterwards everything arrives.
#[test]
fn a_pause_grows_the_spool_and_nothing_else() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 50_000, 1);
    let run = Setup::new(&source, &destination).start();
    let writer = Writer::start(&source, Load { seed: 2, keys: 50_000, per_second: 20_000 });
    run.wait_streaming(MINUTES);
    run.ctl(&["pause"]).expect(0, &[]);
    let paused = run.wait_state("paused", MINUTES);
    let (mut from, mut to) = (source.client(), destination.client());
    let before = writes(&mut to);
    let memory_before = run.resident_bytes();
    let full_syncs = from.info("stats", "sync_full").unwrap();
    let offset_before = number(&paused, "/sources/0/offset_received");

    let started = Instant::now();
    let (mut memory, mut spool) = (0, vec![number(&paused, "/spool/bytes")]);
    while started.elapsed() < Duration::from_secs(20) {
        // One look per second.
        std::thread::sleep(Duration::from_secs(1));
        let status = run.status_json();
        assert_eq!(status["state"], "paused", "{}", run.output());
        assert_eq!(
            number(&status, "/sources/0/offset_applied"),
            number(&paused, "/sources/0/offset_applied")
        );
        spool.push(number(&status, "/spool/bytes"));
        memory = memory.max(run.resident_bytes());
        assert_eq!(from.info("replication", "connected_slaves").as_deref(), Some("1"));
    }
    let status = run.status_json();
    assert_eq!(writes(&mut to), before, "the destination moved during the pause");
    let received = number(&status, "/sources/0/offset_received") - offset_before;
    assert!(received > 2_000_000, "only {received} bytes of load in 20 s");
    assert!(spool[spool.len() - 1] > spool[0] + received / 2, "the spool did not grow: {spool:?}");
    assert!(memory < memory_before + 16 * 1_048_576, "memory grew from {memory_before} to {memory}");
    assert_eq!(
        from.info("stats", "sync_full").unwrap(),
        full_syncs,
        "the source was asked for another full sync"
    );

    run.ctl(&["resume"]).expect(0, &[]);
    run.wait_status(MINUTES, "applying again", |status| {
        number(status, "/sources/0/offset_applied") > number(&paused, "/sources/0/offset_applied")
    });
    writer.stop();
    wait_applied(&run, &mut from);
    compare::assert_equal(&source, &destination);
    assert_eq!(from.info("stats", "sync_full").unwrap(), full_syncs);
}

/// How many commands that could change something a server has been sent. (Its number of keys is no measure: keys
/// expire also when nothing is sent.)
fn writes(client: &mut Client) -> u64 {
    const HARMLESS: [&str; 9] =
        ["info", "ping", "select", "dbsize", "hello", "auth", "time", "role", "command"];
    let text = client.text(&["INFO", "commandstats"]);
    let calls = |line: &str| {
        let (name, numbers) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let harmless = HARMLESS.contains(&name)
            || ["client|", "config|", "command|"].iter().any(|start| name.starts_with(start));
        let count = numbers.split(',').next()?.parse::<u64>().ok()?;
        (!harmless).then_some(count)
    };
    text.lines().filter_map(calls).sum()
}

fn wait_applied(run: &Shakedeck, source: &mut Client) {
    let goal: u64 = source.info("replication", "master_repl_offset").unwrap().parse().unwrap();
    run.wait_status(MINUTES, "everything is applied", |status| {
        number(status, "/sources/0/offset_applied") >= goal && status["state"] == "caught_up"
    });
}

#[test]
fn a_pause_during_the_snapshot_keeps_receiving_it() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 200_000, 1);
    let run = Setup::new(&source, &destination).start();
    run.wait_status(MINUTES, "the first keys", |status| number(status, "/sources/0/rdb_bytes_received") > 0);
    run.ctl(&["pause"]).expect(0, &[]);
    run.wait_state("paused", MINUTES);
    let before = writes(&mut destination.client());
    run.wait_status(MINUTES, "the whole RDB is on disk", |status| {
        let source = &status["sources"][0];
        source["rdb_bytes_total"] == source["rdb_bytes_received"]
            && number(status, "/sources/0/offset_received") > 0
    });
    assert_eq!(writes(&mut destination.client()), before, "the destination moved during the pause");
    run.ctl(&["resume"]).expect(0, &[]);
    wait_applied(&run, &mut source.client());
    compare::assert_equal(&source, &destination);
}

#[test]
fn signals_and_ctl_stop_the_run_in_order_and_it_says_where_it_stands() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 20_000, 1);
    type End = fn(&Shakedeck);
    let ways: [(&str, End); 3] = [
        ("SIGINT", Shakedeck::interrupt),
        ("SIGTERM", Shakedeck::terminate),
        ("ctl stop", |run| run.ctl(&["stop"]).expect(0, &[])),
    ];
    for (name, end) in ways {
        destination.client().ok(&["FLUSHALL"]);
        let run = Setup::new(&source, &destination).start();
        let writer = Writer::start(&source, Load { seed: 3, keys: 20_000, per_second: 5_000 });
        run.wait_streaming(MINUTES);
        let started = Instant::now();
        end(&run);
        let exit = run.wait_exit(Duration::from_secs(20));
        println!("{name}: {:?} after {:?}", exit.code, started.elapsed());
        exit.expect(75, &["offset", &source.address().to_string(), &destination.address().to_string()]);
        writer.stop();
    }
}

#[test]
fn a_signal_stops_also_before_and_during_the_snapshot() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 200_000, 1);
    let run = Setup::new(&source, &destination).start();
    run.wait_status(MINUTES, "the RDB arrives", |status| number(status, "/sources/0/rdb_bytes_received") > 0);
    run.interrupt();
    run.wait_exit(Duration::from_secs(20)).expect(75, &[]);

    // A source that accepts the connection and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let run = Setup::bare(&address, &destination.address().to_string()).start();
    let _connection = silent.accept().unwrap();
    run.status_json();
    run.terminate();
    run.wait_exit(Duration::from_secs(20)).expect(75, &[]);
}

#[test]
fn the_time_limit_ends_the_run_with_75() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    let run = Setup::new(&source, &destination).args(&["--timeout", "2s"]).start();
    run.wait_exit(Duration::from_secs(20)).expect(75, &["2 s"]);
}

#[test]
fn ctl_waits_for_a_state_and_says_when_there_is_no_run() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    source.client().ok(&["SET", "key", "value"]);
    let run = Setup::new(&source, &destination).start();
    run.status_json();
    run.ctl(&["wait", "--for", "caught_up", "--timeout", "1m"]).expect(0, &[]);
    assert_eq!(run.status_json()["state"], "caught_up");
    assert_eq!(destination.client().text(&["GET", "key"]), "value");
    assert_ne!(run.ctl(&["wait", "--for", "paused", "--timeout", "1s"]).code, Some(0));
    run.ctl(&["status"]).expect(0, &["caught"]);
    let folder = run.folder();
    run.interrupt();
    run.wait_exit(MINUTES).expect(75, &[]);
    let none = std::process::Command::new(support::shakedeck::binary())
        .args(["ctl", "--dir"])
        .arg(folder.path().join("data"))
        .arg("status")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&none.stderr).into_owned();
    assert_eq!(none.status.code(), Some(2), "{text}");
    assert!(text.contains("no run") || text.contains("not running"), "{text}");
}

/// The contract of the README: names and units of `ctl status --json`.
#[test]
fn the_json_status_has_the_fields_of_the_contract() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 1_000, 1);
    let run = Setup::new(&source, &destination).start();
    let status = run.wait_state("caught_up", MINUTES);
    assert_eq!(status["sources"][0]["address"], source.address().to_string());
    assert_eq!(status["destinations"][0]["address"], destination.address().to_string());
    assert_eq!(status["sources"][0]["replid"], source.client().info("replication", "master_replid").unwrap());
    assert_eq!(status["sources"][0]["phase"], "stream");
    assert_eq!(status["destinations"][0]["state"], "ok");
    let keys: i64 = (0..16)
        .map(|database| {
            let mut client = source.client();
            client.ok(&["SELECT", &database.to_string()]);
            client.integer(&["DBSIZE"])
        })
        .sum();
    assert_eq!(number(&status, "/sources/0/keys_applied"), keys as u64);
    for field in [
        "/elapsed_seconds",
        "/sources/0/rdb_bytes_received",
        "/sources/0/rdb_bytes_applied",
        "/sources/0/offset_received",
        "/sources/0/offset_durable",
        "/sources/0/offset_applied",
        "/sources/0/lag_bytes",
        "/sources/0/ops_per_second",
        "/sources/0/errors",
        "/destinations/0/in_flight",
        "/destinations/0/oldest_ms",
        "/destinations/0/ops_per_second",
        "/destinations/0/errors",
        "/spool/bytes",
        "/spool/max_bytes",
        "/spool/disk_free_bytes",
        "/counters/entries_read",
        "/counters/entries_applied",
        "/counters/filtered",
        "/counters/quarantined",
    ] {
        assert!(status.pointer(field).is_some_and(Value::is_number), "{field} in {status}");
    }
    assert!(number(&status, "/counters/entries_applied") >= keys as u64);
    assert!(status["run_id"].is_string() && status["version"].is_string() && status["ready"].is_boolean());
    let mut from = source.client();
    wait_until(MINUTES, "the acknowledged offset reaches the source", || {
        let line = from.info("replication", "slave0").unwrap_or_default();
        let acknowledged = line.split(',').find_map(|part| part.strip_prefix("offset=")?.parse::<u64>().ok());
        acknowledged.is_some_and(|offset| offset > 0)
    });
}

/// What a source has that is away, nobody knows: no number is shown for it, in the chart neither, and nothing is ready.
#[test]
fn the_lag_of_a_source_that_is_away_is_not_known() {
    let Some((mut source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 1_000, 1);
    let run = Setup::new(&source, &destination).text("cutover", "hold_for", "1s").start();
    run.wait_state("caught_up", MINUTES);
    let linked = run.status_json();
    assert_eq!(linked["timeline"][5]["state"], "active", "{}", linked["timeline"]);
    source.kill();
    let away = run.wait_status(MINUTES, "a gap at the end of the chart", |status| {
        let history = status["history"].as_array().unwrap();
        status["sources"][0]["phase"] == "reconnecting" && history.last().unwrap()["lag_bytes"].is_null()
    });
    for name in ["lag_bytes", "lag_seconds"] {
        assert!(away["sources"][0][name].is_null(), "{name}: {}", away["sources"][0]);
    }
    let reasons = away["not_ready"].to_string();
    assert!(reasons.contains("lag not known"), "{reasons}");
    source.restart();
    run.wait_status(MINUTES, "a lag again", |status| status["sources"][0]["lag_bytes"] == 0);
}

/// A source is held back by the operator's own limit, and no writer is accused; without it the writer is.
#[test]
fn a_speed_limit_is_said_to_be_what_holds_a_source_back() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 100_000, 1);
    let run = Setup::new(&source, &destination).start();
    // As soon as it listens.
    run.status_json();
    run.ctl(&["throttle", "200KB"]).expect(0, &[]);
    run.wait_status(MINUTES, "the limit as the reason", |status| {
        status["sources"][0]["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("THROTTLED (limit 0.20 MB/s)"))
    });
    for _ in 0..20 {
        let status = run.status_json();
        assert!(status["sources"][0]["held_back_by"].is_null(), "{}", status["sources"][0]);
        std::thread::sleep(Duration::from_millis(50));
    }
    run.ctl(&["throttle", "off"]).expect(0, &[]);
    destination.suspend();
    run.wait_status(MINUTES, "the writer as the reason", |status| {
        status["sources"][0]["held_back_by"].is_string()
    });
    destination.resume();
}

/// What is in flight is waited for; what is shown meanwhile is of that time.
#[test]
fn a_run_that_waits_for_its_destination_while_it_stops_goes_on_telling() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    let run = Setup::new(&source, &destination).start();
    run.wait_state("caught_up", MINUTES);
    destination.suspend();
    source.client().ok(&["SET", "key", "x"]);
    // Otherwise what has arrived would be applied first.
    run.wait_status(MINUTES, "a command without an answer, and a lag", |status| {
        status["destinations"][0]["in_flight"].as_u64() > Some(0) && status["state"] == "streaming"
    });
    run.ctl(&["stop"]);
    let told = |status: &Value| {
        (status["state"] == "stopping").then(|| status["snapshot_unix_ms"].as_u64().unwrap())
    };
    let first = run.wait_status(MINUTES, "the wish to be obeyed", |status| told(status).is_some());
    let first = told(&first).unwrap();
    run.wait_status(MINUTES, "a later word of it", |status| {
        told(status).is_some_and(|at| at > first + 2_000)
    });
    destination.resume();
    run.wait_exit(MINUTES).expect(75, &["stopped"]);
}

/// How long the backlog lasts is asked when the link is down and nothing tells the rate any more.
#[test]
fn the_rate_of_a_lost_stream_is_remembered() {
    let Some((mut source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 1_000, 1);
    let run = Setup::new(&source, &destination).start();
    let load = Writer::start(&source, Load { seed: 2, keys: 1_000, per_second: 2_000 });
    let rate = |status: &Value| status["sources"][0]["stream_bytes_per_second"].as_f64();
    let streaming =
        run.wait_status(MINUTES, "a rate", |status| rate(status).is_some_and(|rate| rate > 50_000.0));
    assert!(streaming["sources"][0]["backlog_bytes"].is_number(), "{}", streaming["sources"][0]);
    load.stop();
    source.kill();
    run.wait_status(MINUTES, "a link that is long lost", |status| {
        let source = &status["sources"][0];
        source["phase"] == "reconnecting" && source["receive_bytes_per_second"] == 0.0
    });
    let kept = rate(&run.status_json()).unwrap();
    assert!(kept > 20_000.0, "{kept} bytes per second");
}
