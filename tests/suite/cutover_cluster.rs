//! The cutover from one cluster to another, under writers that note every acknowledged write and move when they are refused.
//!
//! `SHAKEDECK_CUTOVERS=20` makes so many cutovers instead of two; the time that writers were blocked is printed.

use std::time::Duration;

use crate::require_server;
use crate::support;
use crate::support::cluster::{Cluster, Layout};
use crate::support::cluster_client::slot_of;
use crate::support::everything::assert_same;
use crate::support::movers::Movers;
use crate::support::shakedeck::Setup;
use crate::support::{Options, Server, ServerBinary, Shakedeck, wait_until};

const MINUTES: Duration = Duration::from_secs(180);

fn clusters(binary: &ServerBinary, masters: usize) -> (Cluster, Cluster) {
    let uneven: [&[std::ops::RangeInclusive<u16>]; 3] = [&[0..=9_000], &[9_001..=10_000], &[10_001..=16_383]];
    (
        Cluster::start(binary, Layout::new(masters, 0)),
        Cluster::start(binary, Layout::new(3, 0).slots(&uneven)),
    )
}

fn setup(source: &Cluster, destination: &Cluster) -> Setup {
    Setup::between_clusters(source, destination)
        .text("cutover", "hold_for", "200ms")
        .text("cutover", "max_lag", "5s")
}

fn ready(run: &Shakedeck) {
    run.wait_status(MINUTES, "ready", |status| status["ready"] == true && status["state"] == "caught_up");
}

#[test]
fn every_acknowledged_write_is_on_the_new_cluster_after_the_switch() {
    let binary = require_server!();
    let rounds = std::env::var("SHAKEDECK_CUTOVERS").ok().and_then(|count| count.parse().ok()).unwrap_or(2);
    for round in 0..rounds {
        let (source, destination) = clusters(binary, 3);
        let writers = Movers::start(4, "w", &source, &destination);
        writers.wait_more(500);
        let run = setup(&source, &destination).start();
        ready(&run);
        writers.wait_more(1_000);
        ready(&run);
        run.ctl(&["cutover", "--yes-i-mean", &destination.address().to_string()]).expect(0, &["switched"]);
        let status = run.status_json();
        let blocked = status["cutover"]["blocked_seconds"].as_f64().unwrap();
        support::note(&format!("cluster cutover {round}: writers were blocked for {blocked:.3} s"));
        writers.wait_more(1_000);
        let written = writers.stop();
        written.assert_moved("NOREPLICAS");
        written.assert_all_on(&destination);
        let mut client = destination.client();
        // Nothing is only on the source.
        for key in source.client().keys_like("*") {
            let there = client.bytes(&[b"GET".as_slice(), &key]);
            assert!(there.is_some(), "{} is only on the source", key.escape_ascii());
        }
        let left = client.keys_like("shakedeck:*");
        assert!(left.is_empty(), "{left:?} stayed behind");
        // At the fence there were checkpoints, in many slots; the report counts none of them.
        let report = std::fs::read(run.data().join("cutover-1.json")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
        let keys = &report["keys"][0];
        assert!(keys["source"].as_u64().unwrap() > 1_500, "{keys}");
        assert_eq!(keys["source"], keys["destination"], "{keys}");
    }
}

/// Slots that move at the last moment before the fence, and such as are away for a moment only: either the cutover goes back, or nothing
/// is missing.
#[test]
fn slots_that_move_just_before_the_fence_cost_no_write() {
    let binary = require_server!();
    let (source, destination) = clusters(binary, 3);
    let writers = Movers::start(3, "w", &source, &destination);
    writers.wait_more(500);
    let folder = tempfile::tempdir().unwrap();
    let (hook, at_hook, go_on) =
        (folder.path().join("hook"), folder.path().join("at-hook"), folder.path().join("go-on"));
    let script = format!(
        "#!/bin/sh\ntouch {}\nwhile [ ! -e {} ]; do sleep 0.01; done\n",
        at_hook.display(),
        go_on.display()
    );
    std::fs::write(&hook, script).unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let run = setup(&source, &destination).text("cutover", "before_fence", hook.to_str().unwrap()).start();
    let moves: [&dyn Fn(); 3] = [
        &|| source.reshard(0, 1, 0..50),
        &|| {
            source.reshard(2, 0, 16_000..16_030);
            source.reshard(0, 2, 16_000..16_030);
        },
        &|| {},
    ];
    let switched = moves.iter().any(|moves| {
        ready(&run);
        let _ = (std::fs::remove_file(&at_hook), std::fs::remove_file(&go_on));
        let cutover = run.ctl_in_background(&["cutover", "--yes-i-mean", &destination.address().to_string()]);
        wait_until(MINUTES, "the hook runs", || at_hook.exists());
        moves();
        std::fs::write(&go_on, "").unwrap();
        let end = cutover.end();
        println!("{}", end.output);
        assert!(matches!(end.code, Some(0 | 7)), "{}", end.output);
        end.code == Some(0)
    });
    assert!(switched, "none of them switched");
    writers.wait_more(500);
    let written = writers.stop();
    written.assert_moved("NOREPLICAS");
    written.assert_all_on(&destination);
}

/// A way back from behind the drain: every master takes writes again, and the migration goes on.
#[test]
fn a_veto_behind_the_drain_lets_every_master_take_writes_again() {
    let binary = require_server!();
    let (source, destination) = clusters(binary, 3);
    let writers = Movers::start(2, "w", &source, &destination);
    writers.wait_more(300);
    let folder = tempfile::tempdir().unwrap();
    let hook = folder.path().join("veto");
    std::fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let setup = setup(&source, &destination).text("cutover", "before_switch", hook.to_str().unwrap());
    let run = setup.start();
    ready(&run);
    run.ctl(&["cutover", "--yes-i-mean", &destination.address().to_string()]).expect(7, &["before_switch"]);
    writers.wait_more(1_000);
    writers.stop().assert_stayed();
    let run_folder = run.folder();
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &["stopped"]);
    let last = setup.exit_when("caught-up").args(&["--timeout", "2m"]).start_in(run_folder);
    last.wait_exit(MINUTES).expect(0, &["caught up"]);
    assert_same(&source, &destination);
}

/// A writer of one command, which waits while its master is fenced.
struct Waiting(std::thread::JoinHandle<()>);

impl Waiting {
    /// Starts one at this master and waits until it is blocked.
    fn at(source: &Cluster, master: usize, key: &str) -> Waiting {
        let (mut client, key) = (source.client_of(master), key.to_owned());
        let waiting = std::thread::spawn(move || {
            client.ok(&["SET", &key, "1"]);
        });
        wait_until(MINUTES, "a writer is blocked", || {
            source.client_of(master).text(&["CLIENT", "LIST"]).contains("flags=b")
        });
        Waiting(waiting)
    }

    #[track_caller]
    fn let_go_within(self, time: Duration) {
        wait_until(time, "the writer is let go", || self.0.is_finished());
        self.0.join().unwrap();
    }
}

/// The operator gives up while a master does not answer; later that master dies while all are fenced. Either time the writers of the
/// others are let go at once, and streaming goes on.
#[test]
fn writers_of_other_masters_do_not_wait_for_one_that_stands_still_or_dies() {
    let binary = require_server!();
    let layout = Layout::new(3, 0).full_coverage(false).node_timeout(Duration::from_secs(60));
    let mut source = Cluster::start(binary, layout);
    let destination = Server::start(binary, Options::new());
    let keys: Vec<String> = (0..3)
        .map(|master| {
            let mut names = (0..).map(|number| format!("key:{number}"));
            names.find(|name| source.owner(slot_of(name.as_bytes())) == master).unwrap()
        })
        .collect();
    let streams = |run: &Shakedeck, source: &Cluster, value: &str| {
        let mut there = destination.client();
        for (master, key) in keys.iter().enumerate() {
            source.client_of(master).ok(&["SET", key, value]);
            wait_until(MINUTES, "a write after the way back arrives", || {
                there.bytes(&["GET", key]).as_deref() == Some(value.as_bytes())
            });
        }
        run.wait_status(MINUTES, "live again", |status| status["cutover"]["state"] == "live");
    };
    let folder = tempfile::tempdir().unwrap();
    let hook = folder.path().join("mute");
    // Only the first time. The first master, so that it is the one before which all others would wait.
    let text = format!("#!/bin/sh\n[ -e $0.done ] || kill -STOP {}\ntouch $0.done\n", source.node(0).pid());
    std::fs::write(&hook, text).unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let run = Setup::from_cluster(&source, &destination)
        .text("cutover", "hold_for", "200ms")
        .text("cutover", "max_lag", "5s")
        .text("cutover", "before_fence", hook.to_str().unwrap())
        // A master that does not answer is waited for a quarter of it.
        .text("cutover", "fence_timeout", "12s")
        .text("cutover", "hand_over", "ask")
        // The one that dies comes back empty, with or without a write before it is asked.
        .text("policy", "on_empty_source", "follow")
        .start();
    ready(&run);
    let start = || run.ctl_in_background(&["cutover", "--yes-i-mean", &destination.address().to_string()]);
    let state = |word: &str| {
        run.wait_status(MINUTES, word, |status| status["cutover"]["state"] == word);
    };

    let cutover = start();
    state("fencing");
    let blocked = [1, 2].map(|master| Waiting::at(&source, master, &keys[master]));
    run.ctl(&["abort"]).expect(0, &[]);
    blocked.into_iter().for_each(|writer| writer.let_go_within(Duration::from_secs(3)));
    source.node(0).resume();
    let exit = cutover.end();
    exit.expect(7, &["went back: aborted by the operator", "streaming goes on"]);
    let report = std::fs::read_to_string(run.data().join("cutover-1.txt")).unwrap();
    assert!(report.contains("went back: aborted by the operator"), "{report}");
    let status = run.status_json();
    let steps = status["cutover"]["steps"].as_array().unwrap();
    let failed = steps.iter().find(|step| step["progress"] == "failed").unwrap();
    assert_eq!(failed["state"], "fencing");
    streams(&run, &source, "after-mute");

    ready(&run);
    let cutover = start();
    state("waiting");
    let blocked = [1, 2].map(|master| Waiting::at(&source, master, &keys[master]));
    source.kill(0);
    state("aborting");
    blocked.into_iter().for_each(|writer| writer.let_go_within(Duration::from_secs(3)));
    cutover.end().expect(7, &["the fence was lost"]);
    // Without persistence it comes back empty: what matters is that it is followed again.
    source.restart(0);
    source.wait_ok();
    streams(&run, &source, "after-death");
}
