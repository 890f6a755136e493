//! Times of expiry arrive as the source meant them, however late they are applied; and where a lag is longer than a time to live,
//! nothing is lost in silence.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::require_server;
use crate::support;
use crate::support::relay::Relay;
use crate::support::shakedeck::Setup;
use crate::support::{Client, Flavor, Options, Server, ServerBinary, Shakedeck, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

fn paused(run: &Shakedeck) {
    run.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");
    run.ctl(&["pause"]).expect(0, &[]);
    run.wait_state("paused", MINUTES);
}

/// Waits until what is in the spool is so old.
fn lag(run: &Shakedeck, seconds: f64) {
    run.wait_status(MINUTES, "a lag", |status| status["sources"][0]["lag_seconds"].as_f64() > Some(seconds));
}

fn applied(run: &Shakedeck, source: &mut Client) {
    let goal: u64 = source.info("replication", "master_repl_offset").unwrap().parse().unwrap();
    run.wait_status(MINUTES, "everything is applied", |status| {
        status["sources"][0]["offset_applied"].as_u64() >= Some(goal)
    });
}

/// A source of before Redis 7.0 streams times as they were typed. They lie in the spool for seconds, over a crash too, and still
/// end when they end on the source.
#[test]
fn relative_times_are_counted_from_when_they_arrived() {
    let old: Vec<&ServerBinary> = support::servers::all()
        .iter()
        .filter(|binary| binary.flavor == Flavor::Redis && binary.version < (7, 0, 0))
        .collect();
    let (Some(old), Some(new)) = (old.first(), support::servers::default()) else {
        return support::skip("no Redis before 7.0 (tests/fetch-servers fetches one on Debian)");
    };
    for destination in [*old, new] {
        let source = Server::start(old, Options::new().config("repl-backlog-size", "16mb"));
        let destination = Server::start(destination, Options::new());
        let setup = Setup::new(&source, &destination);
        let run = setup.start();
        paused(&run);
        let mut client = source.client();
        client.ok(&["SETEX", "setex", "1000", "v"]);
        client.ok(&["PSETEX", "psetex", "1000000", "v"]);
        client.ok(&["SET", "set ex", "v", "EX", "1000"]);
        client.ok(&["set", "set px nx", "v", "nx", "px", "1000000"]);
        for key in ["expire", "pexpire"] {
            client.ok(&["SET", key, "v"]);
            client.cmd(&[key, key, if key == "expire" { "1000" } else { "1000000" }]);
        }
        let payload = client.bytes(&["DUMP", "setex"]).unwrap();
        client.cmd(&[b"RESTORE".as_slice(), b"restore", b"1000000", &payload]);
        client.cmd(&["MULTI"]);
        client.cmd(&["SETEX", "in multi", "1000", "v"]);
        client.cmd(&["EXPIRE", "setex", "2000"]);
        client.cmd(&["EXEC"]);
        client.ok(&["SETEX", "soon", "1", "v"]);
        lag(&run, 3.0);
        let folder = run.folder();
        run.kill();
        let run = setup.start_in(folder);
        applied(&run, &mut client);
        let mut other = destination.client();
        let keys = ["setex", "psetex", "set ex", "set px nx", "expire", "pexpire", "restore", "in multi"];
        for key in keys {
            let left = [&mut client, &mut other].map(|client| client.integer(&["PTTL", key]));
            assert!(
                left[0] > 0 && (left[0] - left[1]).abs() < 1_500,
                "{key}: {left:?} ms left on both sides"
            );
            assert_eq!(other.text(&["GET", key]), "v");
        }
        assert_eq!(other.integer(&["EXISTS", "soon"]), 0, "what has ended on the source ends here");
    }
}

/// A key that the source keeps alive by renewing it, while the destination is so late that it would have ended there.
fn renewed_in_time(run: &Shakedeck, client: &mut Client) {
    client.ok(&["SET", "session", "alive", "PX", "800"]);
    client.cmd(&["PEXPIRE", "session", "600000"]);
    client.ok(&["SET", "kept", "alive", "PX", "800"]);
    client.cmd(&["PERSIST", "kept"]);
    client.ok(&["SET", "brief", "gone on both", "PX", "300"]);
    client.cmd(&["PEXPIRE", "brief", "600"]);
    lag(run, 1.5);
}

#[test]
fn keys_that_are_renewed_survive_a_lag_where_the_destination_has_an_import_mode() {
    let valkeys = support::servers::all().iter().filter(|binary| binary.flavor == Flavor::Valkey);
    let with_mode: Vec<&ServerBinary> = valkeys.filter(|binary| binary.version >= (8, 1, 0)).collect();
    let Some(source) = support::servers::default().filter(|_| !with_mode.is_empty()) else {
        return support::skip("no Valkey 8.1 or later (tests/fetch-servers fetches one on Debian)");
    };
    for binary in with_mode {
        let source = Server::start(source, Options::new().config("repl-backlog-size", "16mb"));
        let destination = Server::start(binary, Options::new());
        let mode = || destination.client().list(&["CONFIG", "GET", "import-mode"])[1].clone();
        let setup = Setup::new(&source, &destination);
        let run = setup.start();
        paused(&run);
        assert_eq!(mode(), b"yes");
        let mut client = source.client();
        renewed_in_time(&run, &mut client);
        // A crash changes nothing, and the end puts the setting back.
        let folder = run.folder();
        run.kill();
        let run = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(folder);
        run.wait_exit(MINUTES).expect(0, &["import-mode is set to yes", "import-mode is put back to no"]);
        assert_eq!(mode(), b"no");
        let mut other = destination.client();
        assert_eq!(other.text(&["GET", "session"]), "alive", "{binary}");
        assert!(other.integer(&["PTTL", "session"]) > 500_000);
        assert_eq!(other.integer(&["PTTL", "kept"]), -1, "{binary}");
        wait_until(MINUTES, "the brief key ends", || other.integer(&["EXISTS", "brief"]) == 0);
    }
}

#[test]
fn keys_that_ended_too_early_elsewhere_are_told() {
    let Some(binary) = support::servers::default().filter(|binary| binary.flavor == Flavor::Redis) else {
        return support::skip("no redis-server on PATH (run tests/run, or install it)");
    };
    let source = Server::start(binary, Options::new());
    let destination = Server::start(binary, Options::new());
    let run = Setup::new(&source, &destination).start();
    paused(&run);
    let mut client = source.client();
    renewed_in_time(&run, &mut client);
    run.ctl(&["resume"]).expect(0, &[]);
    applied(&run, &mut client);
    let status = run.wait_status(MINUTES, "the keys that ended are counted", |status| {
        status["rejected"].as_array().is_some_and(|kinds| {
            kinds.iter().any(|kind| kind["kind"] == "EXPIRED TOO EARLY" && kind["count"] == 2)
        })
    });
    assert!(status["unread_errors"].as_u64() > Some(0), "{status}");
    assert!(run.output().contains("key 'session' (db 0) had ended on the destination"), "{}", run.output());
}

/// Keys end by the destination's clock: where it differs from the source's, everybody who watches is told for as long as it does.
#[test]
fn clocks_that_differ_are_said() {
    let binary = require_server!();
    let (source, destination) =
        (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
    let relay = Relay::start(destination.address());
    // The answer to TIME begins with ten digits of seconds: 10,000 s more.
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let digits = |seconds: u64| format!("$10\r\n{}", seconds / 10_000);
    relay.lies(&digits(seconds), &digits(seconds + 10_000));
    source.client().ok(&["SET", "key", "value"]);
    let run = Setup::bare(&source.address().to_string(), &relay.address().to_string()).start();
    let status = run.wait_status(MINUTES, "the key", |status| {
        status["sources"][0]["keys_applied"] == 1 && status["sources"][0]["checkpoint_unix_ms"].is_u64()
    });
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("CLOCKS DIFFER") && warnings.contains("2h46m ahead of"), "{warnings}");
    let skew = status["sources"][0]["clock_skew_ms"].as_i64().unwrap();
    assert!(skew.abs() < 1_000, "the source is this machine: {skew} ms");
    drop(run);
    destination.client().ok(&["FLUSHALL"]);
    let straight = Setup::new(&source, &destination).start();
    let status =
        straight.wait_status(MINUTES, "the stream phase", |status| status["sources"][0]["phase"] == "stream");
    assert_eq!(status["warnings"], serde_json::json!([]), "{status}");
}
