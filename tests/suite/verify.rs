//! Verification as an operator meets it: every planted difference is found and nothing else, at rest and under live writes;
//! repair mends them; an interrupted one goes on; different versions on both sides.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use crate::support;
use crate::support::load::{Load, Writer};
use crate::support::shakedeck::{Setup, binary};
use crate::support::verification::{
    CHANGES, LATER, PLANTED, Verification, assert_planted, differences, do_all, expected, planted,
};
use crate::support::{Client, Options, Reply, Server, ServerBinary, compare, dataset, servers, wait_until};
use serde_json::Value;

const MINUTES: Duration = Duration::from_secs(180);

/// Copies everything, and leaves nothing behind that could go on.
fn migrate(source: &Server, destination: &Server) {
    let exit = Setup::new(source, destination)
        .text("advanced", "rdb_restore_command_behavior", "rewrite")
        .exit_when("caught-up")
        .start()
        .wait_exit(MINUTES);
    exit.expect(0, &[]);
}

fn version(major: u32, minor: u32, flavor: servers::Flavor) -> Option<&'static ServerBinary> {
    let found = servers::all()
        .iter()
        .find(|server| (server.flavor, server.version.0, server.version.1) == (flavor, major, minor));
    if found.is_none() {
        support::skip(&format!("no {flavor:?} {major}.{minor} (run tests/fetch-servers)"));
    }
    found
}

#[test]
fn each_planted_difference_is_found_in_full_mode_and_nothing_else_and_repair_mends_it() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 10_000, 1);
    do_all(&mut source.client(), PLANTED);
    migrate(&source, &destination);
    let verification = Verification::new(&source, &destination);
    verification.run(&["--mode", "full"]).expect(0, &["verification (full): equal", "no differences"]);

    do_all(&mut destination.client(), CHANGES);
    verification.run(&["--mode", "full"]).expect(6, &["verification (full): different", "18 keys differ"]);
    assert_planted(&verification.found(), planted());
    let json = verification.run(&["--mode", "full", "--json"]);
    let last: Value = serde_json::from_str(json.output.lines().last().unwrap()).unwrap();
    assert_eq!((&last["type"], &last["differences"]), (&"result".into(), &18.into()), "{last}");

    // With a tolerance of 3 s the two seconds and a half are none.
    verification.run(&["--mode", "full", "--ttl-tolerance", "3s"]).expect(6, &["17 keys differ"]);

    verification
        .run(&["--mode", "full", "--repair"])
        .expect(6, &["17 repaired", "1 key differs", "--delete-extra"]);
    assert_eq!(verification.found(), expected(&[("0:plant:extra", &["extra"])]));
    verification.run(&["--mode", "full", "--repair", "--delete-extra"]).expect(0, &["1 repaired"]);
    verification.run(&["--mode", "full"]).expect(0, &["no differences"]);
    let near = destination.client().integer(&["PEXPIRETIME", "plant:near"]);
    assert_eq!(near, 4_102_444_800_900, "what was within the tolerance is left alone");
    destination.client().ok(&["PEXPIREAT", "plant:near", LATER]);
    compare::assert_equal(&source, &destination);
}

#[test]
fn meta_and_count_and_digest_find_what_they_promise() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 10_000, 1);
    do_all(&mut source.client(), PLANTED);
    migrate(&source, &destination);
    let verification = Verification::new(&source, &destination);
    for mode in ["count", "meta", "digest"] {
        let exit = verification.run(&["--mode", mode]);
        exit.expect(0, &["no differences"]);
        assert!(!exit.output.contains("note:"), "{}", exit.output);
    }
    do_all(&mut destination.client(), CHANGES);
    verification.run(&["--mode", "meta"]).expect(6, &[]);
    let meta = expected(&[
        ("0:plant:missing", &["missing"]),
        ("0:plant:extra", &["extra"]),
        ("0:plant:type", &["type"]),
        ("0:plant:ttl", &["ttl"]),
        ("0:plant:nottl", &["ttl"]),
        ("0:plant:hll", &["length"]),
    ]);
    assert_eq!(verification.found(), meta, "the others have kept their length");
    destination.client().ok(&["RPUSH", "plant:list", "d"]);
    verification.run(&["--mode", "meta"]).expect(6, &[]);
    assert_eq!(verification.found()["0:plant:list"], BTreeSet::from(["length".to_owned()]));
    destination.client().ok(&["RPOP", "plant:list"]);

    // One missing, one extra: the numbers agree. One more, and they do not.
    verification.run(&["--mode", "count"]).expect(0, &["no differences"]);
    let mut other = destination.client();
    do_all(&mut other, &["SELECT 3", "SET more value"]);
    verification.run(&["--mode", "count"]).expect(6, &["1 databases differ"]);
    assert_eq!(verification.found(), expected(&[("3:", &["count"])]));
    other.ok(&["DEL", "more"]);

    // DEBUG DIGEST-VALUE does not know consumer groups.
    verification.run(&["--mode", "digest"]).expect(6, &[]);
    let mut without_groups = planted();
    without_groups.retain(|_, kinds| !kinds.contains("stream_group"));
    // A stream whose last entry differs is named by its value too.
    assert_planted(&verification.found(), without_groups.clone());
    // The first round looks at digests, the others at values: the second alone could not tell what stands still.
    verification.run(&["--mode", "digest", "--rounds", "2"]).expect(6, &[]);
    assert_planted(&verification.found(), without_groups);
}

#[test]
fn digests_that_cannot_be_compared_become_values() {
    let (Some(source), Some(destination)) = (servers::default(), version(8, 6, servers::Flavor::Redis))
    else {
        return;
    };
    let (source, destination) =
        (Server::start(source, Options::new()), Server::start(destination, Options::new()));
    do_all(&mut source.client(), PLANTED);
    migrate(&source, &destination);
    let verification = Verification::new(&source, &destination);
    verification
        .run(&["--mode", "digest"])
        .expect(0, &["values are compared instead of digests", "not the same version"]);
    do_all(&mut destination.client(), CHANGES);
    verification.run(&["--mode", "digest"]).expect(6, &["18 keys differ"]);
    assert_planted(&verification.found(), planted());
}

/// Different versions hold the same value in other encodings and RDB versions; fields with a time of their own.
#[test]
fn versions_with_other_encodings_are_equal_and_field_times_are_compared() {
    let newest = (version(8, 6, servers::Flavor::Redis), version(9, 1, servers::Flavor::Valkey));
    let (Some(default), (Some(redis), Some(valkey))) = (servers::default(), newest) else { return };
    for (from, to) in [(default, redis), (default, valkey)] {
        let (source, destination) = (Server::start(from, Options::new()), Server::start(to, Options::new()));
        dataset::fill(&mut source.client(), 5_000, 1);
        do_all(&mut source.client(), PLANTED);
        migrate(&source, &destination);
        let verification = Verification::new(&source, &destination);
        verification.run(&["--mode", "full"]).expect(0, &["no differences"]);
        do_all(&mut destination.client(), CHANGES);
        verification.run(&["--mode", "full"]).expect(6, &["18 keys differ"]);
        assert_planted(&verification.found(), planted());
        // The way back: the older one reads what the newer one writes, by commands where the payload is too new.
        let back = Verification::new(&destination, &source);
        back.run(&["--mode", "full", "--repair", "--delete-extra"]).expect(0, &["18 repaired"]);
        verification.run(&["--mode", "full"]).expect(0, &["no differences"]);
    }
    for binary in [redis, valkey] {
        let (source, destination) =
            (Server::start(binary, Options::new()), Server::start(binary, Options::new()));
        let mut client = source.client();
        for key in ["hash:same", "hash:time", "hash:none", "hash:big"] {
            client.ok(&["HSET", key, "a", "1", "b", "2"]);
            client.ok(&["HPEXPIREAT", key, LATER, "FIELDS", "1", "a"]);
        }
        let filler = "x".repeat(300);
        for n in 0..6_000 {
            client.push(&["HSET", "hash:big", &format!("field:{n}"), &filler]);
        }
        client.flush(6_000);
        migrate(&source, &destination);
        let verification = Verification::new(&source, &destination);
        verification.run(&["--mode", "full"]).expect(0, &["no differences"]);
        let mut other = destination.client();
        other.ok(&["HPEXPIREAT", "hash:time", "4102444802500", "FIELDS", "1", "a"]);
        other.ok(&["HPERSIST", "hash:none", "FIELDS", "1", "a"]);
        other.ok(&["HPEXPIREAT", "hash:big", "4102444802500", "FIELDS", "1", "a"]);
        verification.run(&["--mode", "full"]).expect(6, &["3 keys differ"]);
        let found = ["0:hash:time", "0:hash:none", "0:hash:big"].map(|key| (key, &["field_ttl"][..]));
        assert_eq!(verification.found(), expected(&found));
        verification.run(&["--mode", "full", "--repair"]).expect(0, &["3 repaired"]);
        verification.run(&["--mode", "full"]).expect(0, &["no differences"]);
    }
}

/// Values that are never held whole.
#[test]
fn large_values_of_every_type_are_compared_in_pieces() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    let word = "w".repeat(200);
    let fill = |client: &mut Client| {
        for n in 0..8_000 {
            let name = format!("{n}:{word}");
            client.push(&["RPUSH", "big:list", &name]);
            client.push(&["SADD", "big:set", &name]);
            client.push(&["ZADD", "big:zset", &format!("{n}.5"), &name]);
            client.push(&["HSET", "big:hash", &name, &word]);
            client.push(&["XADD", "big:stream", &format!("{}-1", n + 1), "f", &word]);
        }
        assert!(client.flush(40_000).iter().all(|reply| !matches!(reply, Reply::Error(_))));
        do_all(
            client,
            &[
                "SETRANGE big:string 5000000 end",
                "XGROUP CREATE big:stream g 0",
                "XREADGROUP GROUP g alice COUNT 2000 STREAMS big:stream >",
            ],
        );
    };
    fill(&mut source.client());
    migrate(&source, &destination);
    let verification = Verification::new(&source, &destination);
    verification.run(&["--mode", "full"]).expect(0, &["no differences"]);
    let last = format!("7999:{word}");
    let mut client = destination.client();
    client.ok(&["LSET", "big:list", "-1", "other"]);
    client.ok(&["SREM", "big:set", &last]);
    client.ok(&["SADD", "big:set", "other"]);
    client.ok(&["ZADD", "big:zset", "1", &last]);
    client.ok(&["HSET", "big:hash", &last, "other"]);
    client.ok(&["SETRANGE", "big:string", "4999999", "X"]);
    client.ok(&["XACK", "big:stream", "g", "1999-1"]);
    verification.run(&["--mode", "full"]).expect(6, &["6 keys differ", "byte 4999999", "index 7999"]);
    let value = |name| (name, &["value"][..]);
    let mut found =
        ["0:big:list", "0:big:set", "0:big:zset", "0:big:hash", "0:big:string"].map(value).to_vec();
    found.push(("0:big:stream", &["stream_group"]));
    assert_eq!(verification.found(), expected(&found));
    verification.run(&["--mode", "full", "--repair"]).expect(0, &["6 repaired"]);
    compare::assert_equal(&source, &destination);
}

/// Keys and databases outside of the migration, and our own keys, are left out; so are keys whose time is over.
#[test]
fn foreign_databases_own_keys_and_expired_keys_are_no_differences() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    let (mut from, mut to) = (source.client(), destination.client());
    do_all(&mut from, &["SET a 1", "SELECT 5", "SET only:source 1", "SELECT 0"]);
    do_all(
        &mut to,
        &["SET a 1", "SET shakedeck:checkpoint:x 1", "SET shakedeck:building 1", "SELECT 7", "SET foreign 1"],
    );
    do_all(&mut to, &["SELECT 0"]);
    let folder = Verification::new(&source, &destination);
    let toml = Setup::new(&source, &destination).set("filter", "allow_db", "[0]").toml();
    std::fs::write(folder.folder.path().join("shake.toml"), toml).unwrap();
    for mode in ["count", "meta", "full"] {
        folder.run(&["--mode", mode]).expect(0, &["no differences"]);
    }
    // A server that does not remove what has expired: DBSIZE still counts it.
    from.ok(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    from.ok(&["SET", "soon", "1", "PX", "30"]);
    let over = dataset::unix_ms(&mut from) + 40;
    // Asking for the key would remove it.
    wait_until(MINUTES, "its time is over", || dataset::unix_ms(&mut from) > over);
    assert_eq!(from.integer(&["DBSIZE"]), 2);
    folder.run(&["--mode", "count"]).expect(0, &["no differences", "only by keys whose time is over"]);
    folder.run(&["--mode", "full"]).expect(0, &["no differences"]);
}

/// Live writes through a running migration: what was planted is found, and no more.
#[test]
fn under_live_writes_there_is_no_false_difference() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 50_000, 1);
    do_all(&mut source.client(), PLANTED);
    let run = Setup::new(&source, &destination).start();
    run.wait_state("caught_up", MINUTES);
    let writer = Writer::start(&source, Load { seed: 7, keys: 50_000, per_second: 4_000 });
    let sent = writer.sent();
    for _ in 0..3 {
        let exit = run.ctl(&["verify"]);
        exit.expect(0, &["verification (meta): equal", "no differences"]);
        let shown = run.status_json()["verification"].clone();
        assert_eq!((&shown["differences"], &shown["unsettled"]), (&0.into(), &0.into()), "{shown}");
        assert!(shown["keys_compared"].as_u64().unwrap() > 90_000, "{shown}");
    }
    assert!(writer.sent() > sent + 1_000, "there was no load");
    do_all(&mut destination.client(), CHANGES);
    run.ctl(&["verify"]).expect(6, &["verification (meta): different", "6 keys differ"]);
    let found = differences(&run.data().join("verify-differences.jsonl"));
    let meta = ["missing", "extra", "type", "ttl", "nottl", "hll"].map(|name| format!("0:plant:{name}"));
    assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), BTreeSet::from(meta));
    let shown = run.status_json()["verification"].clone();
    assert_eq!((&shown["state"], &shown["unsettled"]), (&"different".into(), &0.into()), "{shown}");
    let events = run.ctl(&["events"]).output;
    for words in ["verification (meta) started by the operator", "not equal yet", "6 keys differ"] {
        assert!(events.contains(words), "'{words}' in\n{events}");
    }
    // Another process compares the same pair, by values, with nothing but the checkpoint to go by; and may not repair.
    let other = std::process::Command::new(binary())
        .args(["verify", "shake.toml", "--mode", "full", "--rounds", "5"])
        .current_dir(run.folder().path())
        .output()
        .unwrap();
    assert_eq!(other.status.code(), Some(6), "{}", String::from_utf8_lossy(&other.stdout));
    let found = differences(&run.data().join("verify-differences.jsonl"));
    assert_planted(&found, planted());
    let refused = std::process::Command::new(binary())
        .args(["verify", "shake.toml", "--repair"])
        .current_dir(run.folder().path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("no repair") && text.contains("in use"), "{text}");
    writer.stop();
    // A migration that could go on holds a checkpoint.
    run.ctl(&["stop"]).expect(0, &[]);
    let folder = run.folder();
    run.wait_exit(MINUTES).expect(75, &[]);
    let refused = std::process::Command::new(binary())
        .args(["verify", "shake.toml", "--repair"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    assert!(text.contains("no repair") && text.contains("checkpoint"), "{text}");
    assert_eq!(destination.client().integer(&["EXISTS", "plant:missing"]), 0, "nothing was written");
}

/// A key that is written all the time and differs is found, too: the last look is taken at one and the same offset.
#[test]
fn a_hot_key_is_judged_exactly() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    source.client().ok(&["SET", "hot", "0"]);
    let run = Setup::new(&source, &destination).start();
    run.wait_state("caught_up", MINUTES);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let mut client = source.client();
        let (stop, count) = (&stop, &count);
        scope.spawn(move || {
            while !stop.load(Relaxed) {
                // Its length changes at every write: no two looks agree by chance.
                client.ok(&["APPEND", "hot", "x"]);
                count.fetch_add(1, Relaxed);
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(MINUTES, "writes", || count.load(Relaxed) > 100);
            for _ in 0..3 {
                run.ctl(&["verify"]).expect(0, &["no differences"]);
            }
            // So many that no look can find equal lengths by chance.
            destination.client().ok(&["APPEND", "hot", &"y".repeat(100_000)]);
            run.ctl(&["verify"]).expect(6, &["1 key differs"]);
            let shown = run.status_json()["verification"].clone();
            let length = |side: &str| shown["examples"][0][side].as_str().unwrap().parse::<u64>().unwrap();
            assert_eq!(shown["examples"][0]["kind"], "length", "{shown}");
            assert_eq!(length("destination") - length("source"), 100_000, "read at one and the same offset");
            assert_eq!(shown["unsettled"], 0, "{shown}");
        }));
        stop.store(true, Relaxed);
        result.unwrap();
    });
}

/// Values that are too large to be read along with others and never rest: exact up to 64 MiB, unsettled above, never a false
/// difference.
#[test]
fn large_values_that_never_rest_are_judged_exactly_or_not_at_all() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    let mut client = source.client();
    let element = "e".repeat(1_000);
    for _ in 0..3_000 {
        client.push(&["RPUSH", "hot:list", &element]);
    }
    client.flush(3_000);
    client.ok(&["SETRANGE", "hot:string", "70000000", "end"]);
    let run =
        Setup::new(&source, &destination).text("cutover", "verify", "full").set("cutover", "sample", "0");
    let run = run.start();
    run.wait_state("caught_up", MINUTES);
    let stop = AtomicBool::new(false);
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let mut client = source.client();
        let (stop, count) = (&stop, &count);
        scope.spawn(move || {
            while !stop.load(Relaxed) {
                let n = count.fetch_add(1, Relaxed).to_string();
                // Changed in the middle; the lengths stay, so that only the values can tell.
                client.ok(&["LSET", "hot:list", "1500", &n]);
                client.ok(&["SETRANGE", "hot:string", "35000000", &n]);
                // Not so often that the connection is all that the source has to do.
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(MINUTES, "writes", || count.load(Relaxed) > 100);
            for _ in 0..2 {
                run.ctl(&["verify"]).expect(0, &["verification (full): equal", "no differences"]);
            }
            destination.client().ok(&["LSET", "hot:list", "2999", "other"]);
            run.ctl(&["verify"]).expect(6, &["1 key differs"]);
            let shown = run.status_json()["verification"].clone();
            assert_eq!(shown["examples"][0]["key"], "hot:list", "{shown}");
        }));
        stop.store(true, Relaxed);
        result.unwrap();
    });
    // At rest the larger one is judged too.
    destination.client().ok(&["SETRANGE", "hot:string", "69999999", "X"]);
    run.wait_status(MINUTES, "the destination has everything", |status| {
        status["sources"][0]["offset_applied"] == status["sources"][0]["offset_received"]
    });
    run.ctl(&["verify"]).expect(6, &["2 keys differ"]);
    assert_eq!(run.status_json()["verification"]["unsettled"], 0);
}

/// `[cutover] verify` and `sample` are what `ctl verify` compares, as a rehearsal.
#[test]
fn ctl_verify_rehearses_what_the_cutover_compares() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 20_000, 1);
    let setup = Setup::new(&source, &destination);
    for (mode, sample, words) in [
        ("digest", "2_000", ["verification (digest): equal", "a sample of about 2,000 of"]),
        ("count", "2_000", ["verification (meta): equal", "no differences"]),
    ] {
        let run = setup.clone().text("cutover", "verify", mode).set("cutover", "sample", sample);
        let run = run.text("advanced", "rdb_restore_command_behavior", "rewrite").start();
        run.wait_state("caught_up", MINUTES);
        run.ctl(&["verify"]).expect(0, &words);
        let compared = run.status_json()["verification"]["keys_compared"].as_u64().unwrap();
        // Both directions.
        let expected = if mode == "count" { 39_000..41_000 } else { 3_000..5_000 };
        assert!(expected.contains(&compared), "{mode}: {compared}");
    }
}

/// Nothing is compared for minutes only to find out that the result cannot be kept, or to be overwritten by another one.
#[test]
fn files_of_a_comparison_are_its_own_and_can_be_written() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 3_000, 1);
    let verification = Verification::new(&source, &destination);
    verification.run(&["--output", "nowhere/differences"]).expect(8, &["cannot write 'nowhere/differences'"]);
    let mut slow = verification.command(&["--mode", "meta", "--rate", "100"]);
    let mut slow = slow.stdout(Stdio::piped()).spawn().unwrap();
    // Its first line of progress: it has begun.
    let mut line = String::new();
    BufReader::new(slow.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("round 1"), "{line}");
    verification.run(&["--mode", "count"]).expect(2, &["another verification works in 'data'"]);
    slow.kill().unwrap();
    slow.wait().unwrap();
    verification.run(&["--mode", "count"]).expect(6, &["databases differ"]);
}

#[test]
fn what_cannot_be_judged_is_refused_in_words() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 1_000, 1);
    let run = Setup::new(&source, &destination).start();
    run.wait_state("caught_up", MINUTES);
    run.ctl(&["verify", "--no-wait"]).expect(0, &["verify accepted"]);
    run.wait_status(MINUTES, "the result", |status| status["verification"]["state"] == "equal");
    run.ctl(&["pause", "--wait"]).expect(0, &[]);
    run.ctl(&["verify"]).expect(2, &["the migration is paused"]);
}

#[test]
fn rights_that_are_missing_are_named_with_the_cure() {
    let Some(binary) = servers::default() else { return };
    let user = "narrow on >word ~* +psync +replconf +ping +info +select +type +dbsize";
    let source = Server::start(binary, Options::new().user(user));
    let destination = Server::start(binary, Options::new());
    source.client().ok(&["SET", "a", "1"]);
    let folder = Verification::new(&source, &destination);
    let toml = Setup::new(&source, &destination)
        .text("sync_reader", "username", "narrow")
        .text("sync_reader", "password", "word")
        .toml();
    std::fs::write(folder.folder.path().join("shake.toml"), toml).unwrap();
    let exit = folder.run(&["--mode", "meta"]);
    exit.expect(3, &["source", "SCAN", "STRLEN", "ACL SETUSER narrow ~* ", "+scan", "+strlen"]);
    // The line that the README gives is enough for every mode.
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let line =
        readme.lines().find(|line| line.starts_with("verify") && line.contains("ACL SETUSER")).unwrap();
    let rules = line.split_once(">password ").unwrap().1;
    let mut command = vec!["ACL", "SETUSER", "narrow", "reset", "on", ">word"];
    command.extend(rules.split(' '));
    source.client().ok(&command);
    migrate(&source, &destination);
    for mode in ["count", "meta", "full"] {
        folder.run(&["--mode", mode]).expect(0, &["no differences"]);
    }
}

/// Killed in the middle, then started again: it goes on, and finds what lies before and behind the place.
#[test]
fn a_killed_verification_goes_on_where_it_was() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    for server in [&source, &destination] {
        let mut client = server.client();
        for chunk in 0..300 {
            for n in 0..1_000 {
                client.push(&["SET", &format!("key:{}", chunk * 1_000 + n), "value"]);
            }
            client.flush(1_000);
        }
    }
    let mut client = destination.client();
    for n in (0..300_000).step_by(10_000) {
        client.ok(&["DEL", &format!("key:{n}")]);
        client.ok(&["SET", &format!("extra:{n}"), "value"]);
    }
    let verification = Verification::new(&source, &destination);
    let saved = verification.folder.path().join("data/verify.json");
    let mut process = verification.command(&["--rate", "40k"]).stdout(Stdio::null()).spawn().unwrap();
    // Saved every five seconds; some of it must be behind the place.
    wait_until(MINUTES, "a saved place", || saved.exists());
    process.kill().unwrap();
    process.wait().unwrap();
    let place: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    let before = place["keys"].as_u64().unwrap();
    assert!(before > 10_000 && before < 590_000, "{place}");
    let exit = verification.run(&[]);
    exit.expect(6, &["going on with an interrupted verification", "60 keys differ"]);
    let found = verification.found();
    let kinds = |kind: &str| found.values().filter(|kinds| kinds.contains(kind)).count();
    assert_eq!((found.len(), kinds("missing"), kinds("extra")), (60, 30, 30));
    assert!(!saved.exists());

    // Ctrl-C: in order, with the place saved. A sample: about so many, always the same.
    let process = verification.command(&["--rate", "20k"]).stdout(Stdio::null()).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(process.id() as i32).unwrap();
    wait_until(MINUTES, "it listens", || {
        // Signals are listened to before anything is asked.
        source.client().text(&["CLIENT", "LIST"]).lines().count() > 3
    });
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(75));
    assert!(saved.exists());
    let exit = verification.run(&["--restart", "--sample", "0.1", "--json"]);
    let last: Value = serde_json::from_str(exit.output.lines().last().unwrap()).unwrap();
    let compared = last["keys_compared"].as_u64().unwrap();
    assert!((50_000..70_000).contains(&compared), "{last}");
}

/// A server evicts what nobody has used for long: a comparison must not make every key a recently used one, on either side.
#[test]
fn a_comparison_leaves_the_age_of_keys_alone() {
    let Some(binary) = version(8, 0, servers::Flavor::Redis) else { return };
    let [source, destination] = [(), ()].map(|()| Server::start(binary, Options::new()));
    for server in [&source, &destination] {
        let mut client = server.client();
        client.ok(&["SET", "key:1", "value"]);
        client.integer(&["RPUSH", "list:1", "a", "b"]);
        client.integer(&["SADD", "set:1", &"x".repeat(2 << 20)]);
    }
    let idle = |server: &Server| {
        let mut client = server.client();
        ["key:1", "list:1", "set:1"].map(|key| client.integer(&["OBJECT", "IDLETIME", key])).into_iter().min()
    };
    wait_until(MINUTES, "nobody uses them for a while", || idle(&source).min(idle(&destination)) >= Some(3));
    for mode in ["meta", "full"] {
        Verification::new(&source, &destination).run(&["--mode", mode]).expect(0, &["no differences"]);
        assert!(idle(&source) >= Some(3), "{mode}: the source takes them for recently used");
        assert!(idle(&destination) >= Some(3), "{mode}: the destination takes them for recently used");
    }
}
