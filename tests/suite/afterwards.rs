//! The time behind the switch: what holds the old source, what lifts it, and a way back on which something is refused.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cutover::{Cutover, MINUTES, hook, ready, ready_back, rights, setup};
use crate::support::shakedeck::Setup;
use crate::support::{self, Cluster, Layout, Options, Reply, Server, Shakedeck, dataset, wait_until};

const MOVER: &str = "mover on >pw ~* &* +@all";

/// With a link back after the switch.
fn with_reverse(source: &Server, destination: &Server) -> Setup {
    setup(source, destination)
        .text("sync_reader", "username", "mover")
        .text("sync_reader", "password", "pw")
        .set("cutover", "reverse", "true")
}

fn refusing(run: &Shakedeck) -> Vec<String> {
    let status = run.status_json();
    let list = status["cutover"]["refusing"].as_array().unwrap();
    list.iter().map(|address| address.as_str().unwrap().to_owned()).collect()
}

/// The connections that renew the pause break: it is put up again, both is said, and `unfence` ends it.
#[test]
fn a_hold_that_is_lost_is_put_up_again_and_said() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = setup(&source, &destination).text("cutover", "source_after", "hold").text(
        "cutover",
        "fence_timeout",
        "3s",
    );
    let run = setup.start();
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["is held while this process runs"]);
    let address = source.address().to_string();
    assert_eq!(run.status_json()["cutover"]["holding"], serde_json::json!([address]));
    let mut client = source.client();
    for line in client.text(&["CLIENT", "LIST"]).lines().filter(|line| line.contains("shakedeck-cutover")) {
        let id = line.split(' ').next().unwrap().trim_start_matches("id=");
        client.cmd(&["CLIENT", "KILL", "ID", id]);
    }
    wait_until(MINUTES, "it is said", || run.output().contains("is not held any more"));
    wait_until(MINUTES, "it is held again", || run.output().contains("is held again"));
    assert!(run.status_json()["unread_errors"].as_u64() > Some(0));
    let mut writer = source.client();
    let began = Instant::now();
    let waiting = std::thread::spawn(move || writer.cmd(&["SET", "late", "1"]));
    // Longer than one pause: it is renewed again.
    while began.elapsed() < Duration::from_secs(5) {
        assert!(!waiting.is_finished(), "the pause ended after {:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    // Whatever connections it has: the pause is lifted, and does not only run out.
    run.ctl(&["unfence"]).expect(0, &["unfenced"]);
    assert!(!run.output().contains("ends by itself"), "{}", run.output());
    assert!(matches!(waiting.join().unwrap(), Reply::SimpleString(_)), "it must be let go");
    assert_eq!(run.status_json()["cutover"]["holding"], serde_json::json!([]));
    source.client().ok(&["SET", "later", "1"]);
}

/// A write that the old source does not take is an error of the link back. It is shown, can be acknowledged, and outlives the
/// rollback.
#[test]
fn what_is_refused_on_the_way_back_can_be_read_and_is_kept() {
    let options = Options::new().user(MOVER).config("rename-command", "SETRANGE \"\"");
    let Some((source, destination)) = support::pair(options) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    source.client().ok(&["SET", "refused", "before"]);
    let setup = with_reverse(&source, &destination).text("cutover", "source_after", "hold");
    let run = setup.start();
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["every writer but the reverse link"]);
    ready_back(&run);
    destination.client().cmd(&["SETRANGE", "refused", "0", "value"]);
    let unread = |status: &Value| status["unread_errors"].as_u64() > Some(0) && status["ready"] == false;
    run.wait_status(MINUTES, "the refusal is shown", unread);
    Cutover::start(&run, &source).end().expect(7, &["not ready", "unread"]);
    run.ctl(&["acknowledge"]).expect(0, &[]);
    ready_back(&run);
    Cutover::start(&run, &source).end().expect(0, &["switched"]);
    let (home, data) = (run.folder(), run.data());
    let end = run.wait_exit(MINUTES);
    end.expect(
        5,
        &["rolled back", "1 entries are in quarantine", "quarantine list --dir", "refuses writes until"],
    );
    assert!(destination.client().error(&["SET", "stray", "1"]).starts_with("NOREPLICAS"));
    source.client().ok(&["SET", "home", "1"]);

    let run = setup.text("advanced", "rdb_restore_command_behavior", "rewrite").start_in(home);
    ready(&run);
    let kept: Vec<String> = std::fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("quarantine-of-rollback-"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    assert_eq!(kept.len(), 1, "what was refused is gone");
    assert!(kept[0].contains("SETRANGE") && kept[0].contains("refused"), "{}", kept[0]);
}

/// Started again behind the switch, it still knows what it has made refuse, and `unfence` means what it says.
#[test]
fn a_later_process_knows_what_refuses_and_lifts_it() {
    let Some((source, destination)) = support::pair(Options::new().user(MOVER)) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = with_reverse(&source, &destination).text("cutover", "source_after", "release");
    let run = setup.start();
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["switched"]);
    run.wait_state("switched", MINUTES);
    let home = run.folder();
    run.kill();
    let run = setup.start_in(home);
    ready_back(&run);
    assert_eq!(refusing(&run), [source.address().to_string()]);
    assert!(source.client().error(&["SET", "stray", "1"]).starts_with("NOPERM"));
    run.ctl(&["unfence"]).expect(0, &["unfenced"]);
    source.client().ok(&["SET", "free", "1"]);
    source.client().cmd(&["DEL", "free"]);
    assert!(refusing(&run).is_empty());
    // With "release" a rollback closes nothing, and does not say so.
    ready_back(&run);
    Cutover::start(&run, &source).end().expect(0, &["switched"]);
    let end = run.wait_exit(MINUTES);
    end.expect(0, &["rolled back"]);
    assert!(!end.output.contains("refuses writes until"), "{}", end.output);
    destination.client().ok(&["SET", "open", "1"]);
}

/// One master of the old source is dead: the others are opened all the same, and the dead one is named.
#[test]
fn a_dead_master_does_not_keep_the_others_from_taking_writes() {
    let Some(binary) = support::servers::default() else {
        return support::skip("no redis-server on PATH (run tests/run, or install it)");
    };
    let mut source = Cluster::start(binary, Layout::new(3, 0));
    let destination = Server::start(binary, Options::new());
    let run = Setup::from_cluster(&source, &destination)
        .text("cutover", "hold_for", "200ms")
        .text("cutover", "max_lag", "5s")
        .start();
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["switched"]);
    let limits = |source: &Cluster, node: usize| {
        source.client_of(node).list(&["CONFIG", "GET", "min-replicas-to-write"])[1].clone()
    };
    assert!((0..3).all(|node| limits(&source, node) != b"0"));
    let dead = source.addresses()[0].to_string();
    source.kill(0);
    run.ctl(&["unfence"]).expect(2, &["could not be reached", &dead, "takes writes again"]);
    assert!((1..3).all(|node| limits(&source, node) == b"0"), "one kept the others closed");
    assert_eq!(refusing(&run), [dead]);
    source.restart(0);
    run.ctl(&["unfence"]).expect(0, &["unfenced"]);
    assert_eq!(limits(&source, 0), b"0");
}

/// Something is refused in the very last commands, after READY was looked at: clients are not sent to a place that lacks it.
#[test]
fn what_is_refused_during_a_cutover_ends_it() {
    let Some(binary) = support::servers::default() else {
        return support::skip("no redis-server on PATH (run tests/run, or install it)");
    };
    let source = Server::start(binary, Options::new());
    let destination = Server::start(binary, Options::new().config("rename-command", "SETRANGE \"\""));
    dataset::fill(&mut source.client(), 500, 1);
    source.client().ok(&["SET", "last", "before"]);
    let folder = tempfile::tempdir().unwrap();
    // The destination stands still, so that the refusal comes behind the gates and not before them.
    let text = format!(
        "redis-cli -p {} client pause 3000 all >/dev/null\nredis-cli -p {} setrange last 0 value >/dev/null",
        destination.port(),
        source.port()
    );
    let late = hook(folder.path(), "late", &format!("[ -e $0.done ] && exit 0\ntouch $0.done\n{text}"));
    let run = setup(&source, &destination)
        .text("cutover", "before_fence", &late.display().to_string())
        .text("cutover", "drain_timeout", "20s")
        .start();
    ready(&run);
    Cutover::start(&run, &destination).end().expect(7, &["come up since the cutover began"]);
    source.client().ok(&["SET", "goes-on", "1"]);
    assert!(run.status_json()["unread_errors"].as_u64() > Some(0));
    run.ctl(&["acknowledge"]).expect(0, &[]);
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["switched"]);
}

/// `unfence` in the middle of a cutover would undo what is being done.
#[test]
fn nothing_is_lifted_while_a_cutover_is_under_way() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let run = setup(&source, &destination).text("cutover", "hand_over", "ask").start();
    ready(&run);
    let cutover = Cutover::start(&run, &destination);
    run.wait_status(MINUTES, "waiting for go", |status| status["cutover"]["state"] == "waiting");
    run.ctl(&["unfence"]).expect(2, &["a cutover is in progress"]);
    let config = run.folder().path().join("shake.toml");
    run.ctl(&["unfence", config.to_str().unwrap()]).expect(8, &["is in use by the process"]);
    run.ctl(&["go"]).expect(0, &[]);
    cutover.end().expect(0, &["switched"]);
    assert!(source.client().error(&["SET", "stray", "1"]).starts_with("NOREPLICAS"));
}

/// What a rollback needs on the destination is asked for before the way there.
#[test]
fn a_way_back_that_could_not_be_gone_is_refused_at_the_start() {
    let Some(binary) = support::servers::default() else {
        return support::skip("no redis-server on PATH (run tests/run, or install it)");
    };
    let rules = format!("app on >pw {} +psync +replconf", rights("destination"));
    let source = Server::start(binary, Options::new().user(MOVER));
    let destination = Server::start(binary, Options::new().user(&rules));
    dataset::fill(&mut source.client(), 500, 1);
    let run = with_reverse(&source, &destination)
        .text("redis_writer", "username", "app")
        .text("redis_writer", "password", "pw")
        .start();
    ready(&run);
    let exit = Cutover::start(&run, &destination).end();
    exit.expect(7, &["which a rollback needs", "+config|get +config|set", "NOPERM"]);
    destination.client().ok(&["ACL", "SETUSER", "app", "+config|get", "+config|set"]);
    ready(&run);
    Cutover::start(&run, &destination).end().expect(0, &["switched"]);
}
