//! Which server is read, what it calls its commands, and which database becomes which.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::require_server;
use crate::support::client::keys_like;
use crate::support::cluster::{Cluster, Layout};
use crate::support::load::{Load, Writer};
use crate::support::proxy::Proxy;
use crate::support::shakedeck::{Setup, Shakedeck};
use crate::support::{Client, Options, Server, ServerBinary, compare, dataset, wait_until};

const MINUTES: Duration = Duration::from_secs(120);

fn plain(binary: &ServerBinary) -> Server {
    Server::start(binary, Options::new())
}

fn replica_of(master: &Server) -> Server {
    let replica = Server::start(master.binary(), Options::new().config("repl-backlog-size", "64mb"));
    replica.client().ok(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    wait_until(MINUTES, "a replica in step", || {
        replica.client().info("replication", "master_link_status").as_deref() == Some("up")
    });
    // The master believes it a moment later.
    wait_until(MINUTES, "a replica that is online", || {
        let slaves = (0..9).filter_map(|n| master.client().info("replication", &format!("slave{n}")));
        slaves.into_iter().any(|line| line.contains(&format!("port={},state=online", replica.port())))
    });
    replica
}

fn full_syncs(server: &Server) -> u64 {
    server.client().info("stats", "sync_full").unwrap().parse().unwrap()
}

fn reads_from(run: &Shakedeck, server: &Server) {
    let address = server.address().to_string();
    run.wait_status(MINUTES, "the server that is read", |status| {
        status["sources"][0]["connected_to"] == address && status["state"] == "caught_up"
    });
}

/// The master keeps out of it: a replica sends the snapshot and the stream. When it dies, the link goes to another one
/// and at last to the master itself, without another full sync; and the cutover still fences the master.
#[test]
fn a_replica_is_read_and_its_death_is_survived() {
    let binary = require_server!();
    let master = Server::start(binary, Options::new().config("repl-backlog-size", "64mb"));
    let destination = plain(binary);
    dataset::fill(&mut master.client(), 2_000, 1);
    let mut first = replica_of(&master);
    let asked_before = full_syncs(&master);
    let run = Setup::new(&master, &destination).set("sync_reader", "prefer_replica", "true").start();
    reads_from(&run, &first);
    assert_eq!(full_syncs(&first), 1);
    assert_eq!(full_syncs(&master), asked_before, "the master has sent the snapshot");

    let load = Writer::start(&master, Load { seed: 1, keys: 2_000, per_second: 1_000 });
    wait_until(MINUTES, "a load", || load.sent() > 1_000);
    let mut second = replica_of(&master);
    let asked = full_syncs(&master);
    first.kill();
    reads_from_in_stream(&run, &second);
    wait_until(MINUTES, "more load", || load.sent() > 3_000);
    assert_eq!(full_syncs(&second), 0, "the second replica was asked for a snapshot");
    second.kill();
    run.wait_status(MINUTES, "the master itself", |status| {
        status["sources"][0]["connected_to"].is_null() && status["sources"][0]["phase"] == "stream"
    });
    assert!(
        run.output().contains("the server itself is read, because it has no replica"),
        "{}",
        run.output()
    );
    load.stop();
    assert_eq!(full_syncs(&master), asked, "only the replicas have asked the master");
    run.wait_state("caught_up", MINUTES);
    let exit = run.ctl(&["cutover", "--yes-i-mean", &destination.address().to_string()]);
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    compare_without_checkpoint(&master, &destination);
    assert!(master.client().error(&["SET", "x", "y"]).starts_with("NOREPLICAS"));
}

fn reads_from_in_stream(run: &Shakedeck, server: &Server) {
    let address = server.address().to_string();
    run.wait_status(MINUTES, "the other replica", |status| {
        status["sources"][0]["connected_to"] == address && status["sources"][0]["phase"] == "stream"
    });
}

fn compare_without_checkpoint(source: &Server, destination: &Server) {
    compare::assert_equal(source, destination);
}

/// A replica of a replica: its bytes and offsets are those of the master, too.
#[test]
fn a_chained_replica_is_read_and_the_cutover_still_fences_the_master() {
    let binary = require_server!();
    let (master, destination) = (plain(binary), plain(binary));
    master.client().ok(&["SET", "key", "value"]);
    let middle = replica_of(&master);
    let last = replica_of(&middle);
    let run = Setup::new(&middle, &destination).set("sync_reader", "prefer_replica", "true").start();
    reads_from(&run, &last);
    for n in 0..500 {
        master.client().ok(&["INCRBY", "counter", &n.to_string()]);
    }
    wait_until(MINUTES, "the counter", || {
        destination.client().cmd(&["GET", "counter"]) == master.client().cmd(&["GET", "counter"])
    });
    // The configured server is a replica: there is nothing to fence on it, and that is said.
    let exit = run.ctl(&["cutover", "--yes-i-mean", &destination.address().to_string()]);
    assert_eq!(exit.code, Some(7), "{}", exit.output);
    assert!(exit.output.contains("replica") || exit.output.contains("slave"), "{}", exit.output);
}

/// Stands before a server and calls its PSYNC `nmfu2sl5osync`. (A server whose own `rename-command` does that takes it for
/// SYNC.) Ends with the test process.
fn renaming(server: SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let upstream = TcpStream::connect(server).unwrap();
            let (mut to_client, mut from_server) =
                (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
            std::thread::spawn(move || {
                let (mut client, mut upstream, mut buffer) = (client, upstream, [0; 65_536]);
                // Each command of ours is one write on an otherwise silent link, so that it is one read here.
                while let Ok(count @ 1..) = client.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..count]);
                    let text = text.replace("$5\r\nPSYNC\r\n", "$7\r\nNOPSYNC\r\n");
                    let text = text.replace("$13\r\nnmfu2sl5osync\r\n", "$5\r\nPSYNC\r\n");
                    if upstream.write_all(text.as_bytes()).is_err() {
                        return;
                    }
                }
                let _ = upstream.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

/// A provider has renamed PSYNC; a node that is not named is named in the error, the secret name is not.
#[test]
fn psync_under_another_name() {
    let binary = require_server!();
    let options = Options::new()
        .config("rename-command", "CONFIG \"\"")
        .config("rename-command", "ROLE \"\"")
        .config("rename-command", "TIME \"\"");
    let (source, destination) = (Server::start(binary, options), plain(binary));
    dataset::fill(&mut source.client(), 500, 1);
    let provider = renaming(source.address());
    let setup = Setup::bare(&provider, &destination.address().to_string());
    setup.start().wait_exit(MINUTES).expect(3, &[&provider, "does not offer PSYNC"]);
    let names = format!("10.0.0.9:6379@other,{provider}@nmfu2sl5osync");
    let run = setup.clone().text("advanced", "aws_psync", &names).exit_when("caught-up").start();
    let folder = run.folder();
    run.wait_exit(MINUTES).expect(0, &[]);
    compare::assert_equal(&source, &destination);
    for file in ["data/shake.log", "data/run.json"] {
        let text = std::fs::read_to_string(folder.path().join(file)).unwrap_or_default();
        assert!(!text.contains("nmfu2sl5osync"), "{file} shows the name");
    }
    let exit = setup.text("advanced", "aws_psync", "10.0.0.9:6379@secretname").start().wait_exit(MINUTES);
    exit.expect(3, &[&provider, "aws_psync names no command for this node"]);
    assert!(!exit.output.contains("secretname"), "{}", exit.output);
}

/// Keys of one database as text, with their values.
fn strings(client: &mut Client, database: u32) -> BTreeSet<(String, String)> {
    client.ok(&["SELECT", &database.to_string()]);
    let keys = keys_like(client, "*");
    let keys = keys.into_iter().map(|key| String::from_utf8(key).unwrap());
    keys.filter(|key| !key.starts_with("shakedeck:"))
        .map(|key| (key.clone(), client.text(&["GET", &key])))
        .collect()
}

/// Snapshot, stream and restart follow the map, and so do the commands that name databases.
#[test]
fn databases_get_the_numbers_of_the_map() {
    let binary = require_server!();
    let (source, destination) =
        (plain(binary), Server::start(binary, Options::new().config("databases", "4")));
    let mut from = source.client();
    // Without `3 = 7` databases 3 and 7 would meet in 3, and SWAPDB would be set aside.
    for (database, key) in [(1, "one"), (2, "two"), (7, "seven")] {
        from.ok(&["SELECT", &database.to_string()]);
        from.ok(&["MSET", key, "old", &format!("{key}-2"), "old"]);
        from.ok(&["SET", &format!("{key}-moving"), "old"]);
    }
    let setup = Setup::new(&source, &destination).set("advanced", "db_map", "{ 1 = 0, 7 = 3, 0 = 1, 3 = 7 }");
    let run = setup.start();
    run.wait_state("caught_up", MINUTES);
    let write = |from: &mut Client, value: &str| {
        from.ok(&["SELECT", "7"]);
        from.ok(&["SET", "seven", value]);
        from.ok(&["SELECT", "1"]);
        from.ok(&["SET", "one", value]);
        from.ok(&["MULTI"]);
        from.cmd(&["SELECT", "2"]);
        from.cmd(&["SET", "two", value]);
        from.cmd(&["SELECT", "1"]);
        from.cmd(&["SET", "one-2", value]);
        from.ok(&["EXEC"]);
    };
    write(&mut from, "first");
    let same = |from: &mut Client, to: &mut Client| {
        [(0, 1), (1, 0), (2, 2), (7, 3)]
            .iter()
            .all(|(here, there)| strings(from, *here) == strings(to, *there))
    };
    let mut to = destination.client();
    wait_until(MINUTES, "the stream", || same(&mut from, &mut to));

    // No SELECT follows a +CONTINUE: the restart must know the source's database, not the destination's.
    let folder = run.folder();
    run.kill();
    from.ok(&["SET", "one", "while it was down"]);
    let run = setup.start_in(folder);
    write(&mut from, "second");
    wait_until(MINUTES, "the stream after the restart", || same(&mut from, &mut to));

    for (database, command) in [
        (1, "MOVE one-moving 2"),
        (7, "COPY seven seven-copy DB 1"),
        (2, "COPY two two REPLACE DB 7"),
        (0, "SWAPDB 2 7"),
        (1, "SET last word"),
    ] {
        from.ok(&["SELECT", &database.to_string()]);
        let words: Vec<&str> = command.split(' ').collect();
        from.cmd(&words);
        wait_until(MINUTES, command, || same(&mut from, &mut to));
    }
    run.wait_state("caught_up", MINUTES);
    let exit = run.ctl(&["verify"]);
    assert_eq!(exit.code, Some(0), "{}", exit.output);
    from.ok(&["SELECT", "2"]);
    from.ok(&["FLUSHDB"]);
    wait_until(MINUTES, "FLUSHDB", || same(&mut from, &mut to));
    assert!(!strings(&mut to, 3).is_empty());
    from.ok(&["FLUSHALL"]);
    wait_until(MINUTES, "FLUSHALL", || same(&mut from, &mut to));
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &[]);
}

/// A database that has no place is refused before anything is copied; it can be left out, or put together with another.
#[test]
fn databases_without_a_place_are_refused_before_the_start() {
    let binary = require_server!();
    let (source, destination) =
        (plain(binary), Server::start(binary, Options::new().config("databases", "1")));
    let mut from = source.client();
    from.ok(&["SET", "zero", "0"]);
    from.ok(&["SELECT", "5"]);
    from.ok(&["SET", "five", "5"]);
    let setup = Setup::new(&source, &destination);
    let exit = setup.start().wait_exit(MINUTES);
    exit.expect(
        2,
        &[
            "database 5 of the source would go to database 5",
            "which has no place on the destination: it has database 0 only",
            "db_map = { 5 = 0 }",
            "block_db",
            "raise 'databases'",
        ],
    );
    assert_eq!(
        (destination.client().integer(&["DBSIZE"]), full_syncs(&source)),
        (0, 0),
        "something was begun"
    );

    let exit =
        setup.clone().set("filter", "block_db", "[5]").exit_when("caught-up").start().wait_exit(MINUTES);
    exit.expect(0, &[]);
    assert_eq!(strings(&mut destination.client(), 0).len(), 1);
    destination.client().ok(&["FLUSHALL"]);

    let run = setup.set("advanced", "db_map", "{ 5 = 0 }").start();
    run.wait_state("caught_up", MINUTES);
    // What comes later for a database without a place is set aside; the rest goes on.
    from.ok(&["SELECT", "3"]);
    from.ok(&["SET", "three", "3"]);
    from.ok(&["SELECT", "5"]);
    // It would empty database 0 of the source, too.
    from.ok(&["FLUSHDB"]);
    from.ok(&["SET", "last", "word"]);
    let wanted = [("five", "5"), ("last", "word"), ("zero", "0")];
    let wanted: BTreeSet<_> =
        wanted.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    wait_until(MINUTES, "both databases in one", || strings(&mut destination.client(), 0) == wanted);
    let waiting = std::fs::read_to_string(run.data().join("quarantine.jsonl")).unwrap();
    assert_eq!(waiting.lines().count(), 2, "{waiting}");
    assert!(waiting.contains("has no place on the destination") && waiting.contains("FLUSHDB"), "{waiting}");
}

/// A source with databases, to a cluster, which has one. The first seed does not answer.
#[test]
fn databases_go_to_a_cluster() {
    let binary = require_server!();
    let (source, cluster) = (plain(binary), Cluster::start(binary, Layout::new(3, 0)));
    let mut from = source.client();
    for (database, key) in [(1, "one"), (3, "three")] {
        from.ok(&["SELECT", &database.to_string()]);
        for n in 0..200 {
            from.ok(&["SET", &format!("{key}:{n}"), "old"]);
        }
    }
    let seeds = format!("127.0.0.1:1,{}", cluster.address());
    let setup = Setup::bare(&source.address().to_string(), &seeds).set("redis_writer", "cluster", "true");
    let exit = setup.start().wait_exit(MINUTES);
    exit.expect(
        2,
        &[
            "database 1 of the source would go to database 1",
            "database 3 of the source would go to database 3",
            "database 0 only",
            "db_map = { 1 = 0, 3 = 0 }",
            "block_db = [1, 3]",
            "cluster-databases",
        ],
    );
    assert_eq!(full_syncs(&source), 0, "something was begun");
    assert_eq!(cluster.client().keys_like("*").len(), 0, "something was written");

    let run = setup.set("advanced", "db_map", "{ 1 = 0 }").set("filter", "block_db", "[3]").start();
    run.wait_state("caught_up", MINUTES);
    from.ok(&["SELECT", "1"]);
    from.ok(&["MSET", "one:7", "new", "one:8", "new", "last", "word"]);
    let mut to = cluster.client();
    wait_until(MINUTES, "the stream", || to.bytes(&["GET", "last"]).as_deref() == Some(b"word"));
    wait_until(MINUTES, "all of it", || to.bytes(&["GET", "one:7"]).as_deref() == Some(b"new"));
    assert_eq!(to.keys_like("one:*").len(), 200);
    assert_eq!(to.keys_like("three:*").len(), 0);
}

/// Users who may not ask CLUSTER NODES, on both sides: SHARDS and SLOTS say the same.
#[test]
fn a_cluster_is_found_by_users_who_may_ask_for_shards_or_slots_only() {
    let binary = require_server!();
    let source_rules = "+psync +replconf +ping +info +time +config|get";
    let destination_rules = "~* &* +@all -cluster";
    let options = Options::new()
        .user(&format!("from on >secret {source_rules}"))
        .user(&format!("to on >secret {destination_rules}"));
    let cluster = |masters| Cluster::start(binary, Layout::new(masters, 1).options(options.clone()));
    let (source, destination) = (cluster(2), cluster(1));
    let mut from = source.client();
    (0..300).for_each(|n| drop(from.ok(&["SET", &format!("key:{n}"), "x"])));
    let setup = Setup::bare(&source.address().to_string(), &destination.address().to_string())
        .set("sync_reader", "cluster", "true")
        .text("sync_reader", "username", "from")
        .text("sync_reader", "password", "secret")
        .set("redis_writer", "cluster", "true")
        .text("redis_writer", "username", "to")
        .text("redis_writer", "password", "secret")
        .exit_when("caught-up");
    setup.start().wait_exit(MINUTES).expect(3, &["+cluster|nodes (or +cluster|shards, or +cluster|slots)"]);
    let mut to = destination.client();
    for right in ["+cluster|shards", "+cluster|slots"] {
        for place in [&source, &destination] {
            for node in place.living() {
                let mut client = place.client_of(node);
                for (user, rules) in [("from", source_rules), ("to", destination_rules)] {
                    let mut command = vec!["ACL", "SETUSER", user, "reset", "on", ">secret"];
                    command.extend(rules.split(' '));
                    command.push(right);
                    client.ok(&command);
                }
            }
        }
        let run = setup.start();
        let exit = run.wait_exit(MINUTES);
        exit.expect(0, &["the source is a cluster of 2 masters"]);
        assert_eq!(to.keys_like("key:*").len(), 300, "with {right}");
        destination.client_of(0).ok(&["FLUSHALL"]);
    }
}

/// A cluster behind a NAT: it tells addresses, and `address_map` says where they are. The first seed does not answer.
#[test]
fn nodes_are_reached_where_the_address_map_says() {
    let binary = require_server!();
    let (cluster, destination) = (Cluster::start(binary, Layout::new(3, 0)), plain(binary));
    let mut from = cluster.client();
    for n in 0..300 {
        from.ok(&["SET", &format!("key:{n}"), "old"]);
    }
    let node = cluster.addresses()[1];
    let proxy = Proxy::start(node, 1);
    let seeds = format!("127.0.0.1:1,{}", cluster.address());
    let run = Setup::bare(&seeds, &destination.address().to_string())
        .set("sync_reader", "cluster", "true")
        .set("sync_reader", "address_map", &format!("{{ \"{node}\" = \"{}\" }}", proxy.address()))
        .start();
    let status = run.wait_state("caught_up", MINUTES);
    let nodes: Vec<&str> =
        status["sources"].as_array().unwrap().iter().filter_map(|node| node["address"].as_str()).collect();
    assert_eq!(nodes.len(), 3, "{nodes:?}");
    assert!(nodes.contains(&proxy.address().as_str()), "{nodes:?}");
    assert!(!nodes.contains(&node.to_string().as_str()), "{nodes:?}");
    (0..300).for_each(|n| drop(from.ok(&["SET", &format!("key:{n}"), "new"])));
    let mut to = destination.client();
    wait_until(MINUTES, "the streams of all nodes", || {
        (0..300).all(|n| to.bytes(&["GET", &format!("key:{n}")]).as_deref() == Some(b"new"))
    });
}
