//! After a second full sync the destination has no key that the source has lost meanwhile, and everything that others have
//! there is untouched.

use std::time::Duration;

use crate::support;
use crate::support::shakedeck::Setup;
use crate::support::{Client, Options, Reply, Server, Shakedeck, compare, dataset, wait_until};

const MINUTES: Duration = Duration::from_secs(180);

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

/// Runs commands, one a line.
#[track_caller]
fn commands(client: &mut Client, text: &str) {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.iter().for_each(|line| client.push(&words(line)));
    for (reply, line) in client.flush(lines.len()).into_iter().zip(lines) {
        assert!(!matches!(reply, Reply::Error(_)), "{line}: {reply:?}");
    }
}

/// Cuts the link, changes the data and forgets the history, before any replica can come back: the next sync is a full one.
#[track_caller]
fn behind_its_back(source: &Server, text: &str) {
    let cut = "CLIENT KILL TYPE replica\nDEBUG CHANGE-REPL-ID\n";
    commands(&mut source.client(), &format!("{cut}{text}"));
}

fn full_syncs(source: &Server) -> String {
    source.client().info("stats", "sync_full").unwrap()
}

/// Waits until the destination has everything that the source has written up to now.
#[track_caller]
fn applied(run: &Shakedeck, source: &Server) {
    let offset = source.client().info("replication", "master_repl_offset").unwrap().parse::<u64>().unwrap();
    run.wait_status(MINUTES, "what was written", |status| {
        let source = &status["sources"][0];
        source["phase"] == "stream" && source["offset_applied"].as_u64() >= Some(offset)
    });
}

/// Keys that belong to somebody else, in databases that the migration uses and in others.
const FOREIGN: &str = "SELECT 0\nSET foreign:a 1\nSELECT 1\nHSET foreign:b f v\nSELECT 7\nSET foreign:c 1
    SELECT 15\nRPUSH foreign:d 1 2\nSELECT 0";

/// Asserts that all foreign keys are there, and removes them so that the rest can be compared.
#[track_caller]
fn take_foreign_away(destination: &Server) {
    let mut client = destination.client();
    for (database, key) in [("0", "foreign:a"), ("1", "foreign:b"), ("7", "foreign:c"), ("15", "foreign:d")] {
        client.ok(&["SELECT", database]);
        assert_eq!(client.integer(&["DEL", key]), 1, "'{key}' of database {database} is gone");
    }
}

fn end(run: Shakedeck) -> String {
    let (folder, data) = (run.folder(), run.data());
    run.ctl(&["stop", "--forget"]).expect(0, &[]);
    let exit = run.wait_exit(MINUTES);
    exit.expect(0, &[]);
    let left: Vec<_> =
        std::fs::read_dir(data).unwrap().map(|it| it.unwrap().path()).filter(|path| path.is_dir()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    drop(folder);
    exit.output
}

#[test]
fn what_the_source_lost_goes_and_what_others_have_stays() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 5_000, 1);
    commands(
        &mut source.client(),
        "SELECT 3\nSET renamed:1 v\nSET moved:1 v\nSET copied:1 v\nSET expiring v PX 3600000
         SELECT 2\nSET only:in:2 v\nSELECT 4\nMSET flushed:1 1 flushed:2 2\nSELECT 5\nSET swapped:5 v",
    );
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    // In the stream: keys that only the command table can find, and databases that change their numbers.
    commands(
        &mut source.client(),
        "SELECT 3\nSET s:1 v\nMSET s:2 v s:3 v\nSUNIONSTORE s:none s:x s:y\nSADD s:set a\nSUNIONSTORE s:union s:set s:x
         RENAME renamed:1 renamed:2\nMOVE moved:1 11\nCOPY copied:1 copied:2 DB 12\nRPUSH s:list 3 1 2
         SORT s:list STORE s:sorted\nEVAL redis.call('set','s:undeclared','v') 0
         XADD s:stream * f v\nXGROUP CREATE s:other g $ MKSTREAM\nBITOP NOT s:bits s:1\nSWAPDB 5 6
         SELECT 5\nSET after:swap v\nSELECT 6\nSET swapped:6 v",
    );
    applied(&run, &source);
    compare::assert_equal(&source, &destination);
    commands(&mut destination.client(), FOREIGN);
    behind_its_back(
        &source,
        "SELECT 3\nDEL s:1 s:3 s:union s:sorted s:undeclared s:stream s:other s:bits\nRENAME renamed:2 renamed:3
         PEXPIREAT expiring 1\nMOVE copied:1 14\nSELECT 11\nDEL moved:1\nSELECT 12\nDEL copied:2
         SELECT 4\nFLUSHDB\nSELECT 6\nDEL swapped:5\nSELECT 5\nDEL after:swap\nSELECT 2\nDEL only:in:2",
    );
    wait_until(MINUTES, "a second full sync", || full_syncs(&source) == "2");
    applied(&run, &source);
    take_foreign_away(&destination);
    compare::assert_equal(&source, &destination);
    wait_until(MINUTES, "a word about it", || {
        run.output().contains("keys removed that the source no longer has")
    });
    // A third one; nothing was lost this time.
    commands(&mut destination.client(), FOREIGN);
    behind_its_back(&source, "SELECT 3\nSET third v");
    wait_until(MINUTES, "a third full sync", || full_syncs(&source) == "3");
    applied(&run, &source);
    commands(&mut source.client(), "SELECT 3\nSET last v");
    applied(&run, &source);
    take_foreign_away(&destination);
    compare::assert_equal(&source, &destination);
    let output = end(run);
    assert!(output.contains("0 keys removed that the source no longer has"), "{output}");
}

/// A source that has lost everything does not take the only copy with it: nothing happens before a person says so, or the
/// source has its data again.
#[test]
fn a_source_that_comes_back_empty_does_not_empty_the_destination() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    dataset::fill(&mut source.client(), 500, 1);
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    applied(&run, &source);
    let kept = destination.client().list(&["KEYS", "*"]).len();
    behind_its_back(&source, "FLUSHALL");
    let held = |run: &Shakedeck| {
        run.wait_status(MINUTES, "it waits, and says so", |status| {
            let reason = status["sources"][0]["reason"].as_str().unwrap_or_default();
            reason.contains("the source came back empty") && status["unread_errors"].as_u64() > Some(0)
        });
        assert!(run.output().contains("on_empty_source"), "{}", run.output());
    };
    held(&run);
    // Nor does what is written there meanwhile, or another start.
    source.client().ok(&["SET", "new", "1"]);
    let home = run.folder();
    run.kill();
    let run = setup.start_in(home.clone());
    held(&run);
    assert_eq!(destination.client().list(&["KEYS", "*"]).len(), kept);
    assert_eq!(destination.client().bytes(&["GET", "new"]), None);
    // The data is there again: another full sync goes on by itself.
    dataset::fill(&mut source.client(), 400, 1);
    behind_its_back(&source, "SET third v");
    applied(&run, &source);
    compare::assert_equal(&source, &destination);
    // The same once more, and it is meant.
    behind_its_back(&source, "FLUSHALL");
    held(&run);
    run.terminate();
    run.wait_exit(MINUTES).expect(75, &["stopped"]);
    let run = setup.text("policy", "on_empty_source", "follow").start_in(home);
    applied(&run, &source);
    compare::assert_equal(&source, &destination);
}

/// SWAPDB, then a full sync: keys are looked for where the SWAPDB has put them.
#[test]
fn swapped_databases_are_searched_where_they_are_now() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    commands(&mut source.client(), "SELECT 1\nMSET gone 1 both 1\nSELECT 2\nMSET stays 2 both 2");
    let run = Setup::new(&source, &destination).start();
    run.wait_streaming(MINUTES);
    commands(&mut source.client(), "SWAPDB 1 2\nSWAPDB 2 8");
    applied(&run, &source);
    // 'gone' is in 8 now. In 1 and 2 others have a key of that name.
    commands(&mut destination.client(), "SELECT 1\nSET gone foreign\nSELECT 2\nSET gone foreign");
    behind_its_back(&source, "SELECT 8\nDEL gone\nDEL both");
    wait_until(MINUTES, "a second full sync", || full_syncs(&source) == "2");
    applied(&run, &source);
    let mut to = destination.client();
    for database in ["1", "2"] {
        to.ok(&["SELECT", database]);
        assert_eq!(to.text(&["GET", "gone"]), "foreign", "database {database}");
        to.ok(&["DEL", "gone"]);
    }
    compare::assert_equal(&source, &destination);
    end(run);
}

#[test]
fn killed_while_it_removes_keys_it_removes_the_rest_later() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    commands(&mut source.client(), "SET kept 1\nDEBUG POPULATE 60000 ghost:with:a:long:name 10");
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    applied(&run, &source);
    commands(&mut destination.client(), FOREIGN);
    run.ctl(&["throttle", "400KB"]).expect(0, &[]);
    behind_its_back(&source, "FLUSHALL\nMSET kept 1 new 2");
    run.wait_status(MINUTES, "the removal", |status| {
        let reason = status["sources"][0]["reason"].as_str().unwrap_or_default();
        reason.contains("removing keys that the source no longer has")
    });
    let mut to = destination.client();
    wait_until(MINUTES, "a part of it", || to.integer(&["DBSIZE"]) < 55_000);
    let folder = run.folder();
    run.kill();
    assert!(to.integer(&["DBSIZE"]) > 100, "it was killed in the middle");
    let run = setup.start_in(folder);
    run.wait_streaming(MINUTES);
    applied(&run, &source);
    take_foreign_away(&destination);
    compare::assert_equal(&source, &destination);
    let output = end(run);
    assert!(output.contains("removed that the source no longer has"), "{output}");
}

#[test]
fn killed_inside_the_second_rdb_it_still_knows_what_is_ours() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    commands(&mut source.client(), "DEBUG POPULATE 20000 old\nDEBUG POPULATE 20000 both");
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    applied(&run, &source);
    commands(&mut destination.client(), FOREIGN);
    run.ctl(&["throttle", "--ops", "4000"]).expect(0, &[]);
    behind_its_back(&source, "FLUSHALL\nDEBUG POPULATE 20000 both\nDEBUG POPULATE 20000 new");
    run.wait_status(MINUTES, "a part of the second RDB", |status| {
        let source = &status["sources"][0];
        source["phase"] == "rdb_apply"
            && source["rdb_bytes_total"].is_number()
            && (1_000..30_000).contains(&source["keys_applied"].as_u64().unwrap_or(0))
            && full_syncs_of(status) >= 1
    });
    let folder = run.folder();
    run.kill();
    let run = setup.start_in(folder);
    run.wait_streaming(MINUTES);
    applied(&run, &source);
    take_foreign_away(&destination);
    compare::assert_equal(&source, &destination);
    let output = end(run);
    assert!(output.contains("20,000 keys removed that the source no longer has"), "{output}");
}

/// Reconnects counted in the status: the second full sync is a second link.
fn full_syncs_of(status: &serde_json::Value) -> u64 {
    status["sources"][0]["reconnects"].as_u64().unwrap_or(1)
}

#[test]
fn a_full_sync_after_an_unfinished_first_one_leaves_no_ghosts() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    commands(&mut source.client(), "DEBUG POPULATE 300000 old");
    commands(&mut destination.client(), FOREIGN);
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_status(MINUTES, "a run", |status| status["state"].is_string());
    run.ctl(&["throttle", "--ops", "3000"]).expect(0, &[]);
    run.wait_status(MINUTES, "a part of the RDB", |status| {
        status["sources"][0]["keys_applied"].as_u64().unwrap_or(0) >= 1_000
    });
    let folder = run.folder();
    run.kill();
    let before = destination.client().integer(&["DBSIZE"]);
    assert!((1_000..300_000).contains(&before), "{before}");
    behind_its_back(&source, "FLUSHALL\nDEBUG POPULATE 100 new\nSET old:1 v");
    let run = setup.start_in(folder);
    run.wait_status(MINUTES, "the second full sync", |status| {
        status["sources"][0]["phase"] == "stream" && full_syncs(&source) == "2"
    });
    applied(&run, &source);
    take_foreign_away(&destination);
    compare::assert_equal(&source, &destination);
    end(run);
}

/// Where existing keys are kept, the second full sync keeps them too, and still replaces what the first one wrote.
#[test]
fn keys_that_were_left_alone_are_not_ours_later() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    commands(&mut source.client(), "MSET ours old theirs source list old\nRPUSH rebuilt 1 2");
    commands(&mut destination.client(), "SET theirs kept\nRPUSH rebuilt 9");
    let setup = Setup::new(&source, &destination).text("advanced", "rdb_restore_command_behavior", "skip");
    let run = setup.start();
    run.wait_streaming(MINUTES);
    applied(&run, &source);
    commands(&mut destination.client(), "SET later kept");
    behind_its_back(&source, "MSET ours new later source list new\nDEL theirs\nRPUSH rebuilt 3");
    wait_until(MINUTES, "a second full sync", || full_syncs(&source) == "2");
    applied(&run, &source);
    let mut to = destination.client();
    for (key, value) in [("ours", "new"), ("list", "new"), ("theirs", "kept"), ("later", "kept")] {
        assert_eq!(to.text(&["GET", key]), value, "{key}");
    }
    assert_eq!(to.list(&["LRANGE", "rebuilt", "0", "-1"]), [b"9"]);
    end(run);
}

#[test]
fn without_a_record_or_the_right_to_look_nothing_is_removed_and_it_says_so() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    commands(&mut source.client(), "MSET old 1 kept 1");
    let setup = Setup::new(&source, &destination);
    let run = setup.start();
    run.wait_streaming(MINUTES);
    applied(&run, &source);
    let folder = run.folder();
    let data = run.data();
    run.kill();
    for entry in
        std::fs::read_dir(data).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        let files = std::fs::read_dir(entry).unwrap().map(|entry| entry.unwrap().path());
        files
            .filter(|path| path.to_string_lossy().contains("ledger"))
            .for_each(|path| std::fs::remove_file(path).unwrap());
    }
    behind_its_back(&source, "DEL old\nSET new 1");
    let run = setup.start_in(folder);
    run.wait_status(MINUTES, "the second full sync", |status| {
        status["sources"][0]["phase"] == "stream" && full_syncs(&source) == "2"
    });
    applied(&run, &source);
    let mut to = destination.client();
    assert_eq!(to.text(&["GET", "old"]), "1");
    wait_until(MINUTES, "a word about the record", || run.output().contains("kept no record of its keys"));
    // Now there is a record, but the user may not look.
    commands(&mut to, "ACL SETUSER default -scan");
    behind_its_back(&source, "DEL new");
    wait_until(MINUTES, "a third full sync", || full_syncs(&source) == "3");
    applied(&run, &source);
    commands(&mut source.client(), "SET last 1");
    applied(&run, &source);
    assert_eq!(to.text(&["GET", "new"]), "1");
    wait_until(MINUTES, "a word about the right", || run.output().contains("+scan"));
    commands(&mut to, "ACL SETUSER default +scan");
    end(run);
}

#[test]
fn a_million_ghosts_take_little_memory() {
    let Some((source, destination)) = support::pair(Options::new()) else { return };
    commands(&mut source.client(), "DEBUG POPULATE 1000000 ghost 8");
    let run = Setup::new(&source, &destination).start();
    run.wait_streaming(MINUTES);
    applied(&run, &source);
    behind_its_back(&source, "FLUSHALL\nSET kept 1");
    let mut most = 0;
    run.wait_status(MINUTES, "the end of the second full sync", |status| {
        most = most.max(run.resident_bytes());
        status["sources"][0]["phase"] == "stream" && destination.client().integer(&["DBSIZE"]) == 2
    });
    assert!(most < 64 * 1024 * 1024, "{most} bytes");
    println!("at most {} MiB resident", most >> 20);
    applied(&run, &source);
    compare::assert_equal(&source, &destination);
    assert!(end(run).contains("1,000,000 keys removed"));
}
