//! The command table against every server at hand: which commands write, where their keys are, and which slot a key has.

use std::collections::BTreeMap;

use crate::require_server;
use crate::support;
use crate::support::{Client, Options, Random, Reply, Server, servers};
use redis_protocol::resp2::types::Resp2Frame;
use shakedeck::command::{self, Command};

/// Argument lists of commands whose keys move with their options.
const MOVABLE: &[&str] = &[
    "EVAL script 2 a b c",
    "EVAL script 0 a b",
    "EVALSHA ffffffffffffffffffffffffffffffffffffffff 1 a b c",
    "EVAL_RO script 3 a b c",
    "EVALSHA_RO ffffffffffffffffffffffffffffffffffffffff 1 a",
    "FCALL f 2 a b c d",
    "FCALL_RO f 1 a",
    "ZUNIONSTORE d 2 a b WEIGHTS 1 2 AGGREGATE MAX",
    "ZINTERSTORE d 1 a",
    "ZDIFFSTORE d 3 a b c",
    "ZUNION 2 a b WITHSCORES",
    "ZINTER 2 a b",
    "ZINTERCARD 2 a b LIMIT 1",
    "ZDIFF 1 a",
    "SINTERCARD 2 a b LIMIT 3",
    "LMPOP 2 a b LEFT COUNT 3",
    "BLMPOP 0 2 a b LEFT",
    "ZMPOP 1 a MIN",
    "BZMPOP 1 3 a b c MAX COUNT 2",
    "SORT k",
    "SORT k BY w_* LIMIT 0 10 GET # GET p_* DESC ALPHA STORE d",
    "SORT k STORE d STORE e",
    "SORT k BY STORE GET STORE LIMIT 1 2",
    "SORT_RO k BY w_* LIMIT 0 5",
    "GEORADIUS k 15 37 200 km",
    "GEORADIUS k 15 37 200 km COUNT 3 ANY STORE d",
    "GEORADIUSBYMEMBER k m 200 km",
    "GEORADIUSBYMEMBER k m 200 km DESC STOREDIST d",
    "MIGRATE 127.0.0.1 1 k 0 5000",
    "MIGRATE 127.0.0.1 1 k 0 5000 COPY REPLACE AUTH2 user KEYS",
    "XREAD COUNT 2 BLOCK 5 STREAMS a b 0 0",
    "XREADGROUP GROUP g c COUNT 2 BLOCK 5 NOACK STREAMS a b > >",
    "XREADGROUP GROUP STREAMS c STREAMS a >",
    "MSETEX 2 a 1 b 2 EX 5",
];

/// What a server says about one command or subcommand.
struct Said {
    /// "xgroup|create".
    name: String,
    arity: i64,
    writes: bool,
    movable: bool,
    first_key: i64,
}

fn commands(client: &mut Client) -> Vec<Said> {
    let Reply::Array(all) = client.ok(&["COMMAND"]) else { panic!("COMMAND answered no array") };
    let mut said = Vec::new();
    all.iter().for_each(|entry| collect(entry, &mut said));
    said
}

fn collect(entry: &Reply, said: &mut Vec<Said>) {
    let Reply::Array(fields) = entry else { panic!("no array") };
    let number = |at: usize| match &fields[at] {
        Reply::Integer(number) => *number,
        other => panic!("no number: {other:?}"),
    };
    let Reply::Array(flags) = &fields[2] else { panic!("no flags") };
    let has = |flag: &str| flags.iter().any(|it| it.as_bytes() == Some(flag.as_bytes()));
    said.push(Said {
        name: String::from_utf8(fields[0].as_bytes().unwrap().to_vec()).unwrap(),
        arity: number(1),
        writes: has("write"),
        movable: has("movablekeys"),
        first_key: number(3),
    });
    if let Some(Reply::Array(subcommands)) = fields.get(9) {
        subcommands.iter().for_each(|entry| collect(entry, said));
    }
}

fn ours(command: &Command, words: &[String]) -> Vec<String> {
    let positions = command.keys(words.len(), |at| words.get(at).map(String::as_bytes));
    positions.map(|at| words[at].clone()).collect()
}

/// The server's answer; no keys where it says that there are none.
fn theirs(client: &mut Client, words: &[String]) -> Result<Vec<String>, String> {
    let asked: Vec<&str> =
        ["COMMAND", "GETKEYS"].into_iter().chain(words.iter().map(String::as_str)).collect();
    match client.cmd(&asked) {
        Reply::Array(keys) => Ok(keys
            .into_iter()
            .map(|key| String::from_utf8(key.as_bytes().unwrap().to_vec()).unwrap())
            .collect()),
        Reply::Error(error) if error.contains("no key arguments") => Ok(Vec::new()),
        Reply::Error(error) => Err(error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_table_agrees_with_every_server() {
    if servers::all().is_empty() {
        return support::skip("no server (run tests/run, or install redis-server)");
    }
    let mut missing = BTreeMap::new();
    for binary in servers::modern() {
        let server = Server::start(binary, Options::new());
        let mut client = server.client();
        let mut compared = 0;
        for said in commands(&mut client) {
            let mut verbs = said.name.split('|');
            let verb = verbs.next().unwrap();
            let Some(command) = command::find(verb.as_bytes()) else {
                if said.writes || said.movable && said.first_key != 0 {
                    missing.insert(said.name, binary.to_string());
                }
                continue;
            };
            // Scripts have no such flag on the servers, and write all the same; XGROUP has it on its subcommands.
            let container = ["xgroup", "function", "cluster"].contains(&verb)
                || ["EVAL", "EVALSHA", "FCALL"].contains(&command.name);
            assert!(
                command.writes == said.writes || container,
                "{binary}: {} writes: {}",
                said.name,
                said.writes
            );
            // A channel is no key to COMMAND GETKEYS, but it has a slot.
            if said.movable || command.name == "SPUBLISH" {
                continue;
            }
            let least = usize::try_from(said.arity.unsigned_abs()).unwrap();
            let most = if said.arity < 0 { least + 6 } else { least };
            for count in least..=most {
                let mut words: Vec<String> = said.name.split('|').map(str::to_owned).collect();
                words.extend((words.len()..count).map(|at| format!("argument{at}")));
                if words.len() != count {
                    continue;
                }
                // An argument list that the server refuses says nothing (MSET without a value).
                if let Ok(theirs) = theirs(&mut client, &words) {
                    compared += 1;
                    assert_eq!(ours(command, &words), theirs, "{binary}: {words:?}");
                }
            }
        }
        assert!(compared > 300, "{binary}: only {compared} argument lists were compared");
    }
    assert!(missing.is_empty(), "not in the table: {missing:?}");
}

#[test]
fn keys_that_move_are_found_as_the_servers_find_them() {
    if servers::all().is_empty() {
        return support::skip("no server (run tests/run, or install redis-server)");
    }
    for text in MOVABLE {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let command = command::find(words[0].as_bytes()).unwrap();
        assert!(servers::modern().count() < 5 || known_somewhere(&words, command), "no server knows: {text}");
    }
}

/// Compares with every server that knows the command; false when none does.
fn known_somewhere(words: &[String], command: &Command) -> bool {
    thread_local! {
        static SERVERS: Vec<Server> =
            servers::modern().map(|binary| Server::start(binary, Options::new())).collect();
    }
    SERVERS.with(|servers| {
        let mut known = false;
        for server in servers {
            match theirs(&mut server.client(), words) {
                Ok(theirs) => {
                    known = true;
                    assert_eq!(ours(command, words), theirs, "{}: {words:?}", server.binary());
                }
                Err(error) => assert!(
                    error.contains("Invalid command specified") || error.contains("Invalid arguments"),
                    "{}: {words:?}: {error}",
                    server.binary()
                ),
            }
        }
        known
    })
}

#[test]
fn slots_are_those_of_a_cluster() {
    let binary = require_server!();
    let server = Server::start(binary, Options::new().config("cluster-enabled", "yes"));
    let mut client = server.client();
    let mut random = Random::new(7);
    let mut keys: Vec<Vec<u8>> = [
        "", "a", "{", "}", "{}", "{}a", "a{", "a{b", "a{}b", "a{b}c", "a{{b}c", "a{b}{c}", "a}b{c}", "{a}",
        "a{}{b}", "{{}}",
    ]
    .iter()
    .map(|key| key.as_bytes().to_vec())
    .collect();
    for _ in 0..2_000 {
        let len = random.below(20) as usize;
        // Many braces among any bytes.
        keys.push((0..len).map(|_| b"{}\x00\xffab01"[random.below(8) as usize]).collect());
    }
    for key in keys {
        let expected = client.integer(&[b"CLUSTER".as_slice(), b"KEYSLOT", &key]);
        assert_eq!(i64::from(command::slot_of(&key)), expected, "{}", key.escape_ascii());
    }
}
