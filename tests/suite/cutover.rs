//! The cutover on real servers under load: no acknowledged write is lost, whatever happens on the way; every way back
//! ends in streaming with the source taking writes.
//!
//! `SHAKEDECK_CUTOVERS=20` makes the first test run so many cutovers instead of three; the time that writers were blocked
//! is printed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::client::keys_like;
use crate::support::shakedeck::{Background, Setup, binary};
use crate::support::{Exit, Options, Reply, Server, Shakedeck, dataset, wait_until};
use serde_json::Value;

pub const MINUTES: Duration = Duration::from_secs(120);

pub fn setup(source: &Server, destination: &Server) -> Setup {
    Setup::new(source, destination).text("cutover", "hold_for", "200ms").text("cutover", "max_lag", "5s")
}

pub fn ready(run: &Shakedeck) -> Value {
    run.wait_status(MINUTES, "ready", |status| status["ready"] == true && status["state"] == "caught_up")
}

/// `ctl cutover` in the background: it waits for the end.
pub struct Cutover(Background);

impl Cutover {
    pub fn start(run: &Shakedeck, destination: &Server) -> Cutover {
        Cutover::with(run, destination, &[])
    }

    fn with(run: &Shakedeck, destination: &Server, words: &[&str]) -> Cutover {
        let address = destination.address().to_string();
        let words = [&["cutover", "--yes-i-mean", &address], words].concat();
        Cutover(run.ctl_in_background(&words))
    }

    pub fn end(self) -> Exit {
        self.0.end()
    }
}

/// Writers that note every acknowledged write, and move to the other server when they are refused, as clients do.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Written>>,
}

/// What one writer was told.
#[derive(Default)]
struct Written {
    /// Key and value of every acknowledged SET.
    acknowledged: BTreeMap<String, String>,
    /// The last acknowledged value of its counter.
    counter: i64,
    /// Error answers that made it move.
    refusals: Vec<String>,
    /// Acknowledged after the move.
    after: u64,
}

impl Writers {
    fn start(count: usize, name: &str, first: &Server, second: &Server) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicU64::new(0));
        let threads = (0..count)
            .map(|number| {
                let (stop, written) = (stop.clone(), written.clone());
                let (mut client, mut other) = (first.client(), Some(second.client()));
                let name = format!("{name}:{number}");
                std::thread::spawn(move || {
                    let mut log = Written::default();
                    let mut serial = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        serial += 1;
                        let (key, value) = (format!("{name}:{serial}"), format!("value {serial}"));
                        let set = client.cmd(&["SET", &key, &value]);
                        if let Reply::Error(error) = set {
                            // Moves once; the write was refused and is tried on the other side.
                            log.refusals.push(error.to_string());
                            client = other.take().unwrap_or_else(|| panic!("refused on both sides: {error}"));
                            serial -= 1;
                            continue;
                        }
                        log.acknowledged.insert(key, value);
                        let counter = format!("counter:{name}");
                        match client.cmd(&["INCR", &counter]) {
                            Reply::Integer(now) => {
                                assert_eq!(
                                    now,
                                    log.counter + 1,
                                    "{counter} jumped: a write was lost or doubled"
                                );
                                log.counter = now;
                            }
                            Reply::Error(error) => {
                                log.refusals.push(error.to_string());
                                client =
                                    other.take().unwrap_or_else(|| panic!("refused on both sides: {error}"));
                            }
                            other => panic!("{other:?}"),
                        }
                        written.fetch_add(1, Ordering::Relaxed);
                        log.after += u64::from(other.is_none());
                        std::thread::sleep(Duration::from_micros(300));
                    }
                    log
                })
            })
            .collect();
        Writers { stop, written, threads }
    }

    /// So many more writes are acknowledged.
    fn wait_more(&self, count: u64) {
        let goal = self.written.load(Ordering::Relaxed) + count;
        wait_until(MINUTES, "writers get on", || self.written.load(Ordering::Relaxed) >= goal);
    }

    fn stop(self) -> Vec<Written> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

/// Every acknowledged write is on `home`, and `other` holds none that `home` does not.
#[track_caller]
fn assert_nothing_lost(home: &Server, other: &Server, writers: &[Written]) {
    let (mut here, mut there) = (home.client(), other.client());
    let mut count = 0;
    for written in writers {
        for (key, value) in &written.acknowledged {
            let found = here.bytes(&["GET", key]);
            assert_eq!(found.as_deref(), Some(value.as_bytes()), "acknowledged write {key} is missing");
            count += 1;
        }
    }
    assert!(count > 100, "only {count} writes");
    let kept = keys_like(&mut here, "*");
    let only_there: Vec<String> = keys_like(&mut there, "*")
        .difference(&kept)
        .map(|key| String::from_utf8_lossy(key).into_owned())
        .collect();
    assert!(only_there.is_empty(), "only on the side that was left: {only_there:?}");
}

pub fn hook(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The source takes writes, and what is written there reaches the destination.
#[track_caller]
pub fn assert_streams(run: &Shakedeck, source: &Server, destination: &Server, key: &str) {
    source.client().ok(&["SET", key, "after"]);
    let mut to = destination.client();
    wait_until(MINUTES, "a write after the way back arrives", || {
        to.bytes(&["GET", key]).as_deref() == Some(b"after")
    });
    run.wait_status(MINUTES, "live again", |status| {
        status["cutover"]["state"] == "live" && status["state"] != "cutting_over"
    });
}

#[test]
fn every_acknowledged_write_is_on_the_destination_after_the_switch() {
    let count = std::env::var("SHAKEDECK_CUTOVERS").ok().and_then(|count| count.parse().ok()).unwrap_or(3);
    let mut blocked = Vec::new();
    for round in 0..count {
        let Some((source, destination)) = support::pair(Options::new()) else { return };
        dataset::fill(&mut source.client(), 3_000, round);
        let run = setup(&source, &destination).start();
        ready(&run);
        let writers = Writers::start(4, "w", &source, &destination);
        writers.wait_more(300);
        ready(&run);
        let exit = Cutover::start(&run, &destination).end();
        exit.expect(0, &["switched", "writers waited for", "fenced at", "what the operator did"]);
        writers.wait_more(200);
        let written = writers.stop();
        for writer in &written {
            assert!(writer.after > 0, "a writer never moved");
            let refusal = writer.refusals.join("; ");
            assert!(refusal.starts_with("NOREPLICAS") && writer.refusals.len() == 1, "{refusal}");
        }
        assert_nothing_lost(&destination, &source, &written);
        let status = run.wait_state("switched", MINUTES);
        blocked.push(status["cutover"]["blocked_seconds"].as_f64().unwrap());
        assert_eq!(destination.client().list(&["KEYS", "shakedeck:*"]).len(), 0, "the checkpoint stayed");
        assert!(source.client().error(&["SET", "stray", "1"]).starts_with("NOREPLICAS"));
        run.ctl(&["stop"]).expect(0, &[]);
        run.wait_exit(MINUTES).expect(0, &["switched: clients belong on", "unfence"]);
    }
    blocked.sort_by(f64::total_cmp);
    println!("writers were blocked for (s): {blocked:?}");
    support::note(&format!("cutovers: {count}, blocked for at most {:.3} s", blocked[blocked.len() - 1]));
}

/// The whole life of a refusal: a stray writer, the end of the run, a start that would destroy, `ctl unfence`.
#[test]
fn a_scripted_cutover_ends_the_run_and_unfence_works_without_one() {
    let rules = format!("mover on >pw {} {} {}", rights("source"), rights("verify"), rights("cutover"));
    let options = Options::new().config("min-replicas-max-lag", "0").user(&rules);
    let Some((source, destination)) = support::pair(options) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("said");
    let script =
        hook(folder.path(), "hook", &format!("echo $SHAKEDECK_HOOK $SHAKEDECK_SOURCE >> {}", note.display()));
    let mut setup = setup(&source, &destination)
        .text("sync_reader", "username", "mover")
        .text("sync_reader", "password", "pw")
        .text("cutover", "verify", "full")
        .args(&["--cutover-when-ready"])
        .exit_when("switched");
    for moment in ["on_ready", "before_fence", "after_drain", "before_switch", "after_switch", "on_abort"] {
        setup = setup.text("cutover", moment, &script.display().to_string());
    }
    let run = setup.start();
    let (data, home) = (run.data(), run.folder());
    run.wait_exit(MINUTES).expect(0, &["CUTOVER 1 of run", "switched: clients belong on", "exit code    0"]);
    wait_until(MINUTES, "on_ready has run", || std::fs::read_to_string(&note).unwrap().lines().count() == 5);
    let mut said: Vec<String> = std::fs::read_to_string(&note).unwrap().lines().map(str::to_owned).collect();
    let at = |moment: &str| format!("{moment} {}", source.address());
    assert!(said.contains(&at("on_ready")), "{said:?}");
    said.retain(|line| !line.starts_with("on_ready"));
    assert_eq!(said, ["before_fence", "after_drain", "before_switch", "after_switch"].map(at));
    let report: Value = serde_json::from_slice(&std::fs::read(data.join("cutover-1.json")).unwrap()).unwrap();
    assert_eq!(report["result"], "switched");
    assert_eq!(report["offsets"][0]["fenced_offset"], report["offsets"][0]["applied_offset"]);
    assert!(report["blocked_seconds"].as_f64().unwrap() > 0.0);
    assert!(report["keys"][0]["source"].as_u64().unwrap() > 0, "{report}");
    assert!(report["operator_actions"][0]["what"].as_str().unwrap().starts_with("cutover (typed:"));
    assert!(std::fs::read_to_string(data.join("cutover-1.txt")).unwrap().contains("writers waited for"));

    let mut stray = source.client();
    assert!(stray.error(&["SET", "stray", "1"]).starts_with("NOREPLICAS"));
    assert!(stray.error(&["EVAL", "return redis.call('SET', 'stray', '1')", "0"]).contains("NOREPLICAS"));
    let again = setup.start_in(home.clone()).wait_exit(MINUTES);
    again.expect(2, &["this migration was switched at", "would overwrite", "unfence"]);
    let unfence = Command::new(binary())
        .args(["ctl", "--dir", "data", "unfence", "shake.toml"])
        .current_dir(home.path())
        .output()
        .unwrap();
    assert_eq!(unfence.status.code(), Some(0), "{unfence:?}");
    assert!(String::from_utf8_lossy(&unfence.stdout).contains("takes writes again"));
    stray.ok(&["SET", "stray", "1"]);
    for (name, value) in [("min-replicas-to-write", "0"), ("min-replicas-max-lag", "0")] {
        assert_eq!(stray.list(&["CONFIG", "GET", name])[1], value.as_bytes(), "{name} is not as it was");
    }
    setup.start_in(home).wait_exit(MINUTES).expect(2, &["this migration was switched at"]);
}

/// The rights that the README gives the user for this purpose.
pub fn rights(purpose: &str) -> String {
    let readme = include_str!("../../README.md");
    let line = readme.lines().find(|line| line.starts_with(purpose) && line.contains("ACL SETUSER")).unwrap();
    line.split_once(">password ").unwrap().1.to_owned()
}

/// What happens to the destination after the comparison is found out before the source is told to refuse writes for good.
#[test]
fn clients_are_not_sent_to_a_destination_that_has_come_to_harm() {
    let harms: [(&[&str], &str); 3] = [
        (&["FLUSHALL"], "has lost what it had confirmed"),
        (&["REPLICAOF", "127.0.0.1", "1"], "READONLY"),
        (&[], "does not answer on a new connection"),
    ];
    for (harm, told) in harms {
        // No PING, by which the writer would find out itself.
        let quiet = Options::new().config("repl-ping-replica-period", "3600");
        let Some((source, destination)) = support::pair(quiet) else { return };
        dataset::fill(&mut source.client(), 500, 1);
        let (run, cutover) = fenced(setup(&source, &destination), &source, &destination);
        // Whoever asks for a second one meanwhile is not kept waiting for it.
        Cutover::start(&run, &destination).end().expect(7, &["another cutover is in progress"]);
        match harm {
            [] => destination.suspend(),
            harm => drop(destination.client().ok(harm)),
        }
        run.ctl(&["go"]).expect(0, &[]);
        cutover.end().expect(7, &[told]);
        source.client().ok(&["SET", "after", "the way back"]);
        assert!(!run.output().contains("switched: clients"), "{}", run.output());
        destination.resume();
    }
}

/// A cutover that waits fenced for the operator's go, so that things can happen to it.
fn fenced(setup: Setup, source: &Server, destination: &Server) -> (Shakedeck, Cutover) {
    let run = setup.text("cutover", "hand_over", "ask").text("cutover", "fence_timeout", "3s").start();
    ready(&run);
    let cutover = Cutover::start(&run, destination);
    run.wait_status(MINUTES, "waiting for go", |status| status["cutover"]["state"] == "waiting");
    let mut blocked = source.client();
    // Its answer, if one comes, is of no interest: the server may die.
    std::thread::spawn(move || drop(blocked.try_cmd(&["SET", "blocked", "1"])));
    wait_until(MINUTES, "a writer is blocked", || {
        source.client().text(&["CLIENT", "LIST"]).contains("flags=b")
    });
    (run, cutover)
}

#[test]
fn an_abort_in_each_state_goes_back_to_streaming() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let folder = tempfile::tempdir().unwrap();
    let wait = hook(folder.path(), "wait", "sleep 600");
    let wait = wait.display().to_string();
    let base = || setup(&source, &destination);
    // Stands still from before the fence on, so that something cannot be confirmed.
    let stall = hook(folder.path(), "stall", &format!("kill -STOP {}", destination.pid()));
    // Answers nothing, so that the fence does not come up.
    let mute = hook(folder.path(), "mute", &format!("kill -STOP {}", source.pid()));
    let writers = Writers::start(1, "w", &source, &destination);
    let states: [(&str, Setup); 5] = [
        ("armed", base().text("cutover", "before_fence", &wait).text("cutover", "hook_timeout", "10m")),
        (
            "fencing",
            base().text("cutover", "before_fence", &mute.display().to_string()).text(
                "cutover",
                "fence_timeout",
                "1m",
            ),
        ),
        (
            "draining",
            base()
                .text("cutover", "before_fence", &stall.display().to_string())
                .text("cutover", "drain_timeout", "10m")
                .text("cutover", "max_blocked", "10m"),
        ),
        ("verifying", base().text("cutover", "after_drain", &wait).text("cutover", "hook_timeout", "10m")),
        ("waiting", base().text("cutover", "hand_over", "ask")),
    ];
    let mut home = None;
    for (state, setup) in states {
        let run = match home.take() {
            None => setup.start(),
            Some(folder) => setup.start_in(folder),
        };
        ready(&run);
        let cutover = Cutover::start(&run, &destination);
        run.wait_status(MINUTES, state, |status| status["cutover"]["state"] == state);
        let shown = if state == "armed" { "preflight" } else { state };
        run.ctl(&["status"]).expect(0, &[&format!("cutover    {shown}")]);
        run.ctl(&["abort"]).expect(0, &[]);
        run.wait_status(MINUTES, "it goes back", |status| {
            status["cutover"]["state"] == "aborting" || status["cutover"]["state"] == "live"
        });
        // The pause of a minute that it was sent is lifted again.
        source.resume();
        let exit = cutover.end();
        destination.resume();
        exit.expect(7, &["went back: aborted by the operator", "streaming goes on"]);
        assert!(!exit.output.contains("could not be reached"), "{}", exit.output);
        assert_streams(&run, &source, &destination, &format!("after-{state}"));
        let status = run.status_json();
        let steps = status["cutover"]["steps"].as_array().unwrap();
        let failed = steps.iter().find(|step| step["progress"] == "failed").unwrap();
        assert_eq!(failed["state"], state);
        home = Some(run.folder());
        run.ctl(&["stop"]).expect(0, &[]);
        run.wait_exit(MINUTES).expect(75, &[]);
    }
    assert!(writers.stop()[0].refusals.is_empty(), "a writer was refused though every cutover went back");
}

#[test]
fn a_destination_that_stalls_while_draining_costs_the_drain_timeout_and_nothing_else() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let folder = tempfile::tempdir().unwrap();
    let stall = hook(
        folder.path(),
        "stall",
        &format!("[ -e $0.done ] || kill -STOP {}; touch $0.done", destination.pid()),
    );
    let run = setup(&source, &destination)
        .text("cutover", "before_fence", &stall.display().to_string())
        .text("cutover", "drain_timeout", "2s")
        .start();
    ready(&run);
    let writers = Writers::start(2, "w", &source, &destination);
    writers.wait_more(50);
    let exit = Cutover::start(&run, &destination).end();
    exit.expect(7, &["the destination did not confirm the last", "drain_timeout"]);
    writers.wait_more(50);
    destination.resume();
    assert_streams(&run, &source, &destination, "after-stall");
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["switched"]);
    writers.wait_more(50);
    assert_nothing_lost(&destination, &source, &writers.stop());
}

#[test]
fn a_source_that_stands_still_or_dies_while_fenced_ends_the_cutover() {
    let Some((mut source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = setup(&source, &destination).text("policy", "on_empty_source", "follow");
    let (run, cutover) = fenced(setup, &source, &destination);
    source.suspend();
    let exit = cutover.end();
    source.resume();
    exit.expect(7, &["the fence was lost"]);
    assert_streams(&run, &source, &destination, "after-suspend");

    ready(&run);
    let cutover = Cutover::start(&run, &destination);
    run.wait_status(MINUTES, "waiting for go", |status| status["cutover"]["state"] == "waiting");
    source.kill();
    cutover.end().expect(7, &["the fence was lost"]);
    source.restart();
    // Without persistence it comes back empty: what matters is that it takes writes and is followed again.
    assert_streams(&run, &source, &destination, "after-death");
}

#[test]
fn kill_9_while_fenced_lets_writers_through_in_time_and_a_restart_goes_on() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 2_000, 1);
    let setup = setup(&source, &destination);
    let (run, cutover) = fenced(setup.clone(), &source, &destination);
    let full_syncs = source.client().info("stats", "sync_full").unwrap();
    let folder = run.folder();
    run.kill();
    let killed = Instant::now();
    source.client().ok(&["SET", "free", "1"]);
    let waited = killed.elapsed();
    println!("the source took writes again {waited:?} after kill -9 (fence_timeout 3 s)");
    assert_ne!(cutover.end().code, Some(0));
    let run = setup.start_in(folder);
    assert_streams(&run, &source, &destination, "after-kill");
    assert_eq!(source.client().info("stats", "sync_full").unwrap(), full_syncs, "it took another full sync");
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["switched"]);
    assert_eq!(destination.client().bytes(&["GET", "free"]).as_deref(), Some(&b"1"[..]));
}

#[test]
fn hooks_veto_and_the_operator_says_go() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let veto = hook(folder.path(), "veto", "echo 'not on a Friday'; exit 9");
    let told = hook(folder.path(), "told", &format!("echo \"$SHAKEDECK_REASON\" > {}", said.display()));
    let run = setup(&source, &destination)
        .text("cutover", "before_switch", &veto.display().to_string())
        .text("cutover", "on_abort", &told.display().to_string())
        .start();
    ready(&run);
    Cutover::start(&run, &destination).end().expect(7, &["before_switch", "exit status: 9"]);
    assert!(std::fs::read_to_string(&said).unwrap().contains("before_switch"));
    assert!(run.output().contains("hook before_switch: not on a Friday"), "{}", run.output());
    assert_streams(&run, &source, &destination, "after-veto");
    let wrong = run.ctl(&["cutover", "--yes-i-mean", "10.0.0.1:1"]);
    wrong.expect(7, &["the destination is", "10.0.0.1:1"]);
    let home = run.folder();
    run.ctl(&["stop"]).expect(0, &[]);
    run.wait_exit(MINUTES).expect(75, &[]);

    let asking = setup(&source, &destination).text("cutover", "hand_over", "ask").start_in(home);
    ready(&asking);
    let cutover = Cutover::start(&asking, &destination);
    asking.wait_status(MINUTES, "waiting for go", |status| status["cutover"]["state"] == "waiting");
    asking.ctl(&["go"]).expect(0, &[]);
    cutover.end().expect(0, &["switched"]);
}

/// A planted difference is found while writers are blocked, and the run ends with the code for it where it was scripted.
#[test]
fn a_difference_takes_the_cutover_back() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = setup(&source, &destination).text("cutover", "verify", "full").set("cutover", "sample", "0");
    let run = setup.start();
    ready(&run);
    source.client().ok(&["SET", "told", "right"]);
    run.wait_status(MINUTES, "applied", |_| destination.client().bytes(&["GET", "told"]).is_some());
    destination.client().ok(&["SET", "told", "wrong"]);
    Cutover::start(&run, &destination)
        .end()
        .expect(7, &["the sides differ: full", "cutover-1-differences.jsonl"]);
    let differences = std::fs::read_to_string(run.data().join("cutover-1-differences.jsonl")).unwrap();
    assert!(differences.contains("\"told\"") && differences.lines().count() == 1, "{differences}");
    assert_streams(&run, &source, &destination, "after-difference");
    run.wait_status(MINUTES, "not ready before it is read", |status| {
        status["ready"] == false
            && status["not_ready"][0].as_str().unwrap_or_default().contains("unread error")
    });
    let home = run.folder();
    run.ctl(&["stop"]).expect(0, &[]);
    run.wait_exit(MINUTES).expect(75, &[]);
    let scripted = setup.args(&["--cutover-when-ready"]).exit_when("switched").start_in(home);
    scripted.wait_exit(MINUTES).expect(7, &["the cutover went back: the sides differ"]);
    source.client().ok(&["SET", "free", "1"]);
    destination.client().ok(&["SET", "told", "right"]);
}

/// Whatever ends the run while writers are blocked, they are let through first.
#[test]
fn a_stop_while_fenced_lets_writers_through_first() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = setup(&source, &destination).text("cutover", "fence_timeout", "1m").text(
        "cutover",
        "hand_over",
        "ask",
    );
    let run = setup.start();
    ready(&run);
    let cutover = Cutover::start(&run, &destination);
    run.wait_status(MINUTES, "waiting for go", |status| status["cutover"]["state"] == "waiting");
    run.terminate();
    cutover.end().expect(7, &["aborted: the run was asked to stop"]);
    run.wait_exit(MINUTES).expect(75, &["stopped"]);
    let began = Instant::now();
    source.client().ok(&["SET", "free", "1"]);
    assert!(began.elapsed() < Duration::from_secs(30), "the pause of a minute was not lifted");
}

/// Rights that are missing are said before anything is blocked; the operator's word replaces CLIENT PAUSE, and is not
/// believed while writes come.
#[test]
fn denied_rights_are_said_before_the_fence_and_a_false_word_is_found_out() {
    let rules = format!("mover on >pw {} {}", rights("source"), rights("verify"));
    let rules = &rules;
    let Some((source, destination)) = support::pair(Options::new().user(rules)) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let base = setup(&source, &destination).text("sync_reader", "username", "mover").text(
        "sync_reader",
        "password",
        "pw",
    );
    let run = base.clone().start();
    ready(&run);
    Cutover::start(&run, &destination)
        .end()
        .expect(7, &["CONFIG SET min-replicas-to-write is denied", "source_after"]);
    assert!(run.status_json()["cutover"]["fenced_unix_ms"].is_null());
    let home = run.folder();
    run.ctl(&["stop"]).expect(0, &[]);
    run.wait_exit(MINUTES).expect(75, &[]);

    let run = base.text("cutover", "source_after", "release").start_in(home);
    ready(&run);
    Cutover::start(&run, &destination).end().expect(7, &["CLIENT PAUSE is denied", "your word"]);
    let writers = Writers::start(1, "w", &source, &destination);
    writers.wait_more(10);
    let lie = Cutover::with(&run, &destination, &["--writes-have-stopped"]).end();
    lie.expect(7, &["writes have not stopped"]);
    let written = writers.stop();
    assert!(written[0].refusals.is_empty());
    ready(&run);
    Cutover::with(&run, &destination, &["--writes-have-stopped"])
        .end()
        .expect(0, &["switched", "the operator's word"]);
    assert_nothing_lost(&destination, &source, &written);
    source.client().ok(&["SET", "released", "1"]);
}

/// Switch, write on the new side, roll back: all writes are on the old side, strays were refused meanwhile.
#[test]
fn a_reverse_link_carries_new_writes_back_and_a_rollback_loses_none() {
    let rules = "mover on >pw ~* &* +@all";
    let Some((source, destination)) = support::pair(Options::new().user(rules)) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let before = source.client().list(&["ACL", "LIST"]);
    let setup = setup(&source, &destination)
        .text("sync_reader", "username", "mover")
        .text("sync_reader", "password", "pw")
        .set("cutover", "reverse", "true");
    let run = setup.start();
    ready(&run);
    let writers = Writers::start(3, "forth", &source, &destination);
    writers.wait_more(200);
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["switched", "every writer but the reverse link"]);
    assert!(source.client().error(&["SET", "stray", "1"]).starts_with("NOPERM"));
    // The words of the refusal differ between versions; that nothing was written is seen at the end.
    source.client().error(&["EVAL", "return redis.call('SET', 'stray', '1')", "0"]);
    destination.client().ok(&["SELECT", "5"]);
    let mut other_db = destination.client();
    other_db.ok(&["SELECT", "5"]);
    other_db.ok(&["SET", "in-five", "5"]);
    writers.wait_more(300);
    let forth = writers.stop();
    assert!(forth.iter().all(|writer| writer.after > 0 && writer.refusals[0].starts_with("NOPERM")));

    // The process may die meanwhile: the way back stays open.
    run.wait_state("switched", MINUTES);
    let (home, data) = (run.folder(), run.data());
    run.kill();
    other_db.ok(&["SET", "while-down", "5"]);
    let run = setup.start_in(home.clone());
    ready_back(&run);
    let back = Writers::start(3, "back", &destination, &source);
    back.wait_more(200);
    ready_back(&run);
    let exit = Cutover::start(&run, &source).end();
    exit.expect(0, &["switched"]);
    back.wait_more(200);
    let back = back.stop();
    assert!(back.iter().all(|writer| writer.after > 0 && writer.refusals[0].starts_with("NOREPLICAS")));
    run.wait_exit(MINUTES).expect(0, &["rolled back: clients belong on", "unfence"]);
    assert_nothing_lost(&source, &destination, &forth);
    assert_nothing_lost(&source, &destination, &back);
    let mut old = source.client();
    assert_eq!(old.list(&["ACL", "LIST"]), before, "the users are not as they were");
    old.ok(&["SELECT", "5"]);
    for key in ["in-five", "while-down"] {
        assert_eq!(old.bytes(&["GET", key]).as_deref(), Some(&b"5"[..]), "{key}");
    }
    assert!(destination.client().error(&["SET", "stray", "1"]).starts_with("NOREPLICAS"));

    // Both are reported in the operator's directory, and numbered on.
    for (number, to) in [(1, &destination), (2, &source)] {
        let file = data.join(format!("cutover-{number}.json"));
        let report: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(report["destination"], to.address().to_string());
        assert_eq!(report["attempt"], number);
    }
    // A start would run into what stands there, and must not open it to writers before it finds out.
    let again = setup.start_in(home.clone()).wait_exit(MINUTES);
    again.expect(2, &["was rolled back", "rdb_restore_command_behavior", "unfence"]);
    assert!(destination.client().error(&["SET", "stray", "1"]).starts_with("NOREPLICAS"));
    let run = setup.text("advanced", "rdb_restore_command_behavior", "rewrite").start_in(home);
    assert_streams(&run, &source, &destination, "after-rollback");
    assert!(data.join("cutover-2.json").exists(), "the report of the rollback is gone");
}

pub fn ready_back(run: &Shakedeck) {
    run.wait_status(MINUTES, "the reverse link is ready", |status| {
        status["state"] == "switched"
            && status["cutover"]["reverse"]["state"] == "caught_up"
            && status["ready"] == true
    });
}

/// `hold` keeps writers waiting while the process runs; `release` lets them go.
#[test]
fn hold_keeps_writers_waiting_as_long_as_the_process_runs() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = setup(&source, &destination).text("cutover", "source_after", "hold");
    let ends = setup.clone().exit_when("switched").start().wait_exit(MINUTES);
    ends.expect(2, &["lasts as long as this process", "source_after = \"refuse\""]);
    let run = setup.text("cutover", "fence_timeout", "2s").start();
    ready(&run);
    for word in ["go", "abort"] {
        run.ctl(&[word]).expect(2, &["no cutover is in progress"]);
    }
    Cutover::start(&run, &destination).end().expect(0, &["is held while this process runs"]);
    let mut writer = source.client();
    let began = Instant::now();
    let waiting = std::thread::spawn(move || writer.cmd(&["SET", "late", "1"]));
    // Longer than one pause: it must have been renewed.
    while began.elapsed() < Duration::from_secs(5) {
        assert!(!waiting.is_finished(), "the pause ended after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    run.ctl(&["pause"]).expect(2, &["nothing is applied any more"]);
    run.ctl(&["stop"]).expect(0, &[]);
    assert!(matches!(waiting.join().unwrap(), Reply::SimpleString(_)), "it must be let go at the end");
    run.wait_exit(MINUTES).expect(0, &["switched"]);
}

/// A door to a server that makes it look older: `redis_version:7.…` becomes `redis_version:5.…`, nothing else changes.
fn older(server: &Server) -> SocketAddr {
    let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, server) = (door.local_addr().unwrap(), server.address());
    std::thread::spawn(move || {
        while let Ok((client, _)) = door.accept() {
            let inside = TcpStream::connect(server).unwrap();
            let ways =
                [(client.try_clone().unwrap(), inside.try_clone().unwrap(), false), (inside, client, true)];
            for (mut from, mut to, ages) in ways {
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(count @ 1..) = from.read(&mut buffer) {
                        let mark = b"redis_version:";
                        let at = buffer[..count].windows(mark.len()).position(|window| window == mark);
                        if let (true, Some(at)) = (ages, at) {
                            buffer[at + mark.len()] = b'5';
                        }
                        if to.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    address
}

/// A source before Redis 6.2 can only pause everything, which answers no questions and cannot be lifted.
#[test]
fn an_old_source_is_paused_as_a_whole() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = setup(&source, &destination)
        .text("sync_reader", "address", &older(&source).to_string())
        .text("cutover", "fence_timeout", "4s");
    let run = setup.start();
    ready(&run);
    Cutover::start(&run, &destination).end().expect(7, &["before Redis 6.2", "source_after"]);
    let home = run.folder();
    run.ctl(&["stop"]).expect(0, &[]);
    run.wait_exit(MINUTES).expect(75, &[]);

    let run =
        setup.text("cutover", "source_after", "release").text("cutover", "hand_over", "ask").start_in(home);
    ready(&run);
    let cutover = Cutover::start(&run, &destination);
    run.wait_status(MINUTES, "waiting for go", |status| status["cutover"]["state"] == "waiting");
    let mut reader = source.client();
    let reading = std::thread::spawn(move || reader.cmd(&["DBSIZE"]));
    // Nobody says go in time: the pause ends, and with it the cutover.
    let exit = cutover.end();
    exit.expect(7, &["the pause has ended before it was renewed", "CLIENT PAUSE 4000 on 1 of 1"]);
    assert!(matches!(reading.join().unwrap(), Reply::Integer(_)));
    assert_streams(&run, &source, &destination, "after-pause");

    ready(&run);
    source.client().ok(&["SET", "last", "1"]);
    ready(&run);
    let cutover = Cutover::start(&run, &destination);
    run.wait_status(MINUTES, "waiting for go", |status| status["cutover"]["state"] == "waiting");
    run.ctl(&["go"]).expect(0, &[]);
    cutover.end().expect(0, &["switched", "takes writes again"]);
    assert_eq!(destination.client().bytes(&["GET", "last"]).as_deref(), Some(&b"1"[..]));
}
