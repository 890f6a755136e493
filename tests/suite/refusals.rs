//! Servers that refuse, are not ready, or are no servers at all: the message names the side, the address and the cure,
//! the exit code says whose fault it is (2 configuration, 3 source, 4 destination), and nothing panics.

use std::io::Write;
use std::time::Duration;

use crate::require_server;
use crate::support::shakedeck::{Setup, Shakedeck};
use crate::support::{Options, Server, ServerBinary, compare, dataset, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

fn plain(binary: &ServerBinary) -> Server {
    Server::start(binary, Options::new())
}

/// Waits until the run has said something.
fn wait_output(run: &Shakedeck, word: &str) {
    wait_until(MINUTES, &format!("'{word}' in the output"), || run.output().contains(word));
}

#[test]
fn passwords_that_are_wrong_or_missing() {
    let binary = require_server!();
    let locked = Server::start(binary, Options::new().requirepass("right"));
    let open = plain(binary);
    let address = locked.address().to_string();
    for (section, code, setup) in [
        ("sync_reader", 3, Setup::bare(&address, &open.address().to_string())),
        ("redis_writer", 4, Setup::bare(&open.address().to_string(), &address)),
    ] {
        let missing = setup.start().wait_exit(MINUTES);
        missing.expect(code, &[&address, "password", section]);
        let wrong = setup.clone().text(section, "password", "wrong").start().wait_exit(MINUTES);
        wrong.expect(code, &[&address, "password"]);
        assert!(!wrong.output.contains("wrong\""), "the password is shown: {}", wrong.output);
        let unknown = setup.text(section, "username", "nobody").text(section, "password", "wrong");
        unknown.start().wait_exit(MINUTES).expect(code, &[&address, "username"]);
    }
}

#[test]
fn a_source_user_without_psync_is_told_which_rule_is_missing() {
    let binary = require_server!();
    let rules = "mover on >secret +ping +replconf";
    let source = Server::start(binary, Options::new().user(rules));
    let destination = plain(binary);
    source.client().ok(&["SET", "key", "value"]);
    let setup = Setup::bare(&source.address().to_string(), &destination.address().to_string())
        .text("sync_reader", "username", "mover")
        .text("sync_reader", "password", "secret")
        .exit_when("caught-up");
    setup.start().wait_exit(MINUTES).expect(3, &[&source.address().to_string(), "mover", "+psync"]);
    // With that rule, and without any key pattern, everything arrives.
    source.client().ok(&["ACL", "SETUSER", "mover", "+psync"]);
    setup.start().wait_exit(MINUTES).expect(0, &[]);
    assert_eq!(destination.client().text(&["GET", "key"]), "value");
}

#[test]
fn a_destination_user_without_restore_is_told_which_rule_is_missing() {
    let binary = require_server!();
    let source = plain(binary);
    source.client().ok(&["RPUSH", "key", "value"]);
    let rules = "mover on >secret ~* &* +@all -restore";
    let destination = Server::start(binary, Options::new().user(rules));
    let setup = Setup::bare(&source.address().to_string(), &destination.address().to_string())
        .text("redis_writer", "username", "mover")
        .text("redis_writer", "password", "secret")
        .exit_when("caught-up");
    let exit = setup.start().wait_exit(MINUTES);
    exit.expect(4, &[&destination.address().to_string(), "+restore"]);
    // The rules of the documentation are enough.
    let enough = "~* &* +@all -@admin -@dangerous +restore +flushall +flushdb +swapdb +function +script +eval +evalsha +sort +info +client +select +multi +exec";
    let mut command = vec!["ACL", "SETUSER", "mover", "reset", "on", ">secret"];
    command.extend(enough.split(' '));
    destination.client().ok(&command);
    setup.set("advanced", "empty_db_before_sync", "true").start().wait_exit(MINUTES).expect(0, &[]);
    assert_eq!(destination.client().list(&["LRANGE", "key", "0", "-1"]), [b"value"]);
}

#[test]
fn a_source_without_psync_is_told_so() {
    let binary = require_server!();
    let source = Server::start(binary, Options::new().config("rename-command", "PSYNC \"\""));
    let destination = plain(binary);
    let exit = Setup::new(&source, &destination).start().wait_exit(MINUTES);
    exit.expect(3, &[&source.address().to_string(), "PSYNC"]);
}

/// -LOADING is a matter of time: said, waited for, and then it goes on.
#[test]
fn a_source_that_is_loading_is_waited_for() {
    let binary = require_server!();
    let seed = plain(binary);
    dataset::fill(&mut seed.client(), 20_000, 1);
    seed.client().ok(&["SAVE"]);
    let options = Options::new()
        .rdb(&seed.folder().join("dump.rdb"))
        .config("key-load-delay", "150")
        .config("loading-process-events-interval-bytes", "1024")
        .stays_loading();
    let source = Server::start(binary, options);
    let destination = plain(binary);
    let run = Setup::new(&source, &destination).exit_when("caught-up").start();
    wait_output(&run, "LOADING");
    assert!(
        source.client().error(&["GET", "x"]).starts_with("LOADING"),
        "the source was ready too early for this test"
    );
    source.client().ok(&["CONFIG", "SET", "key-load-delay", "0"]);
    run.wait_exit(MINUTES).expect(0, &[]);
    compare::assert_equal(&seed, &destination);
}

/// A replica without its own link answers -NOMASTERLINK until it has one (or is a master).
#[test]
fn a_source_without_its_own_master_is_waited_for() {
    let binary = require_server!();
    let (source, destination) = (plain(binary), plain(binary));
    source.client().ok(&["SET", "key", "value"]);
    source.client().ok(&["REPLICAOF", "127.0.0.1", "1"]);
    let run = Setup::new(&source, &destination).exit_when("caught-up").start();
    wait_output(&run, "NOMASTERLINK");
    source.client().ok(&["REPLICAOF", "NO", "ONE"]);
    run.wait_exit(MINUTES).expect(0, &[]);
    assert_eq!(destination.client().text(&["GET", "key"]), "value");
}

/// After a failover of the destination its old master is a replica: said, nothing is lost, and it goes on as soon as
/// the address is a master again.
#[test]
fn a_destination_that_is_a_replica_is_waited_for() {
    let binary = require_server!();
    let (source, master, destination) = (plain(binary), plain(binary), plain(binary));
    source.client().ok(&["SET", "key", "value"]);
    let mut client = destination.client();
    client.ok(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    wait_until(MINUTES, "link up", || {
        client.info("replication", "master_link_status").as_deref() == Some("up")
    });
    let run = Setup::new(&source, &destination).exit_when("caught-up").start();
    wait_output(&run, "READONLY");
    client.ok(&["REPLICAOF", "NO", "ONE"]);
    run.wait_exit(MINUTES).expect(0, &[&destination.address().to_string(), "replica"]);
    assert_eq!(client.text(&["GET", "key"]), "value");
}

/// A full destination stops nothing: it is said, and the run goes on as soon as there is room.
#[test]
fn a_destination_out_of_memory_is_waited_for() {
    let binary = require_server!();
    let source = plain(binary);
    dataset::fill(&mut source.client(), 20_000, 1);
    let destination = Server::start(binary, Options::new().config("maxmemory", "4mb"));
    let run = Setup::new(&source, &destination).exit_when("caught-up").start();
    wait_output(&run, "OOM");
    let status = run.status_json();
    assert_eq!(status["destinations"][0]["state"], "waiting", "{status}");
    destination.client().ok(&["CONFIG", "SET", "maxmemory", "0"]);
    run.wait_exit(MINUTES).expect(0, &[]);
    compare::assert_equal(&source, &destination);
}

#[test]
fn something_else_than_a_server_is_named_as_such() {
    let binary = require_server!();
    let other = plain(binary);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Ends with the test process; answers everybody like a web server.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let other = other.address().to_string();
    Setup::bare(&address, &other).start().wait_exit(MINUTES).expect(3, &[&address]);
    Setup::bare(&other, &address).start().wait_exit(MINUTES).expect(4, &[&address]);
}

#[test]
fn mistakes_in_the_configuration_end_with_2_and_show_the_place() {
    let binary = require_server!();
    let (source, destination) = (plain(binary), plain(binary));
    let setup = Setup::new(&source, &destination);
    for (changed, words) in [
        (
            setup.clone().set("advanced", "pipeline_count_limti", "5"),
            vec!["pipeline_count_limit", "shake.toml:", "^"],
        ),
        (
            setup.clone().set("advanced", "pipeline_count_limit", "\"many\""),
            vec!["pipeline_count_limit", "shake.toml:"],
        ),
        (setup.clone().text("sync_reader", "password", "${NO_SUCH_VARIABLE}"), vec!["NO_SUCH_VARIABLE"]),
        (Setup::bare(&source.address().to_string(), &source.address().to_string()), vec!["same"]),
    ] {
        changed.start().wait_exit(MINUTES).expect(2, &words);
    }
    setup.args(&["--exit-when", "nonsense"]).start().wait_exit(MINUTES).expect(2, &["nonsense", "caught-up"]);
}

/// Under two names the same server: copying it onto itself would never end.
#[test]
fn a_server_is_not_copied_onto_itself() {
    let binary = require_server!();
    let server = plain(binary);
    let setup =
        Setup::bare(&format!("unix:{}", server.unix_socket().display()), &server.address().to_string());
    setup.start().wait_exit(MINUTES).expect(3, &["the same server", "[redis_writer]"]);
    assert_eq!(server.client().integer(&["DBSIZE"]), 0, "something was written");
}
