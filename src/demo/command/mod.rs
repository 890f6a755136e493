//! What the demo's servers understand: one table, one function per command.
//!
//! Every function gets the same [`Call`]; what it answers is what Redis 7.2 answers, errors included. A write travels
//! to replicas as it was typed, unless the function says otherwise: relative times become absolute ones, `*` becomes
//! the id that was chosen, because a replica must not decide anything by its own clock.

mod collections;
mod connection;
mod keys;
mod sorted_sets;
mod streams;
mod strings;

use std::collections::HashMap;
use std::sync::OnceLock;

pub use connection::server_version;

use super::node::Node;
use super::session::Session;
use super::store::Entry;
use super::value::Value;
use super::wire::{Argv, Reply, integer};

/// What a command works with.
pub struct Call<'a> {
    /// The server: data set and replication feed.
    pub node: &'a mut Node,
    /// The connection that asked.
    pub session: &'a mut Session,
    /// Unix ms.
    pub now_ms: u64,
    /// What goes to replicas in place of the command as typed; empty = as typed.
    pub rewritten: Vec<Argv>,
}

/// `Err` holds an error reply; both sides are sent.
pub type Outcome = Result<Reply, Reply>;

/// One row of the table.
pub struct Command {
    /// Lower case.
    pub name: &'static str,
    /// Number of arguments with the name; negative = at least that many.
    arity: i32,
    /// Changes data: goes to replicas, refused by a read-only server.
    pub write: bool,
    /// May need memory: refused with -OOM by a full server (`denyoom`).
    pub deny_oom: bool,
    /// Answered while the server is loading (`loading`).
    pub loading: bool,
    run: fn(&mut Call<'_>, &[Vec<u8>]) -> Outcome,
}

const fn row(
    name: &'static str,
    arity: i32,
    flags: &'static str,
    run: fn(&mut Call<'_>, &[Vec<u8>]) -> Outcome,
) -> Command {
    let flags = flags.as_bytes();
    Command {
        name,
        arity,
        write: contains(flags, b'w'),
        deny_oom: contains(flags, b'm'),
        loading: contains(flags, b'l'),
        run,
    }
}

const fn contains(flags: &[u8], flag: u8) -> bool {
    let mut index = 0;
    while index < flags.len() {
        if flags[index] == flag {
            return true;
        }
        index += 1;
    }
    false
}

/// `w` changes data, `m` may need memory, `l` is answered while loading.
static TABLE: &[Command] = &[
    row("append", 3, "wm", strings::append),
    row("auth", -2, "l", connection::auth),
    row("client", -2, "l", connection::client),
    row("cluster", -2, "l", connection::cluster),
    row("command", -1, "l", connection::command),
    row("config", -2, "l", connection::config),
    row("dbsize", 1, "", keys::dbsize),
    row("decr", 2, "wm", strings::decr),
    row("decrby", 3, "wm", strings::decrby),
    row("del", -2, "w", keys::del),
    row("dump", 2, "", keys::dump),
    row("echo", 2, "", connection::echo),
    row("exists", -2, "", keys::exists),
    row("expire", -3, "w", keys::expire),
    row("expireat", -3, "w", keys::expire),
    row("expiretime", 2, "", keys::time_to_live),
    row("flushall", -1, "w", keys::flushall),
    row("flushdb", -1, "w", keys::flushdb),
    row("function", -2, "", connection::function),
    row("get", 2, "", strings::get),
    row("hdel", -3, "w", collections::hdel),
    row("hello", -1, "l", connection::hello),
    row("hget", 3, "", collections::hget),
    row("hgetall", 2, "", collections::hgetall),
    row("hincrby", 4, "wm", collections::hincrby),
    row("hincrbyfloat", 4, "wm", collections::hincrbyfloat),
    row("hlen", 2, "", collections::hlen),
    row("hmset", -4, "wm", collections::hset),
    row("hset", -4, "wm", collections::hset),
    row("hsetnx", 4, "wm", collections::hsetnx),
    row("incr", 2, "wm", strings::incr),
    row("incrby", 3, "wm", strings::incrby),
    row("incrbyfloat", 3, "wm", strings::incrbyfloat),
    row("info", -1, "l", connection::info),
    row("keys", 2, "", keys::keys),
    row("linsert", 5, "wm", collections::linsert),
    row("llen", 2, "", collections::llen),
    row("lpop", -2, "w", collections::pop),
    row("lpush", -3, "wm", collections::push),
    row("lpushx", -3, "wm", collections::push),
    row("lrange", 4, "", collections::lrange),
    row("lrem", 4, "w", collections::lrem),
    row("lset", 4, "wm", collections::lset),
    row("ltrim", 4, "w", collections::ltrim),
    row("memory", -2, "", connection::memory),
    row("mget", -2, "", strings::mget),
    row("mset", -3, "wm", strings::mset),
    row("msetnx", -3, "wm", strings::mset),
    row("persist", 2, "w", keys::persist),
    row("pexpire", -3, "w", keys::expire),
    row("pexpireat", -3, "w", keys::expire),
    row("pexpiretime", 2, "", keys::time_to_live),
    row("ping", -1, "", connection::ping),
    row("psetex", 4, "wm", strings::setex),
    row("pttl", 2, "", keys::time_to_live),
    row("publish", 3, "l", connection::publish),
    row("quit", -1, "l", connection::quit),
    row("rename", 3, "w", keys::rename),
    row("renamenx", 3, "w", keys::rename),
    row("replconf", -1, "l", connection::replconf),
    row("reset", 1, "l", connection::reset),
    row("restore", -4, "wm", keys::restore),
    row("role", 1, "l", connection::role),
    row("rpop", -2, "w", collections::pop),
    row("rpush", -3, "wm", collections::push),
    row("rpushx", -3, "wm", collections::push),
    row("sadd", -3, "wm", collections::sadd),
    row("scan", -2, "", keys::scan),
    row("scard", 2, "", collections::scard),
    row("select", 2, "l", connection::select),
    row("set", -3, "wm", strings::set),
    row("setex", 4, "wm", strings::setex),
    row("setnx", 3, "wm", strings::setnx),
    row("setrange", 4, "wm", strings::setrange),
    row("smembers", 2, "", collections::smembers),
    row("srem", -3, "w", collections::srem),
    row("strlen", 2, "", strings::strlen),
    row("swapdb", 3, "w", keys::swapdb),
    row("time", 1, "l", connection::time),
    row("ttl", 2, "", keys::time_to_live),
    row("type", 2, "", keys::type_of),
    row("unlink", -2, "w", keys::del),
    row("xack", -4, "w", streams::xack),
    row("xadd", -5, "wm", streams::xadd),
    row("xclaim", -6, "w", streams::xclaim),
    row("xdel", -3, "w", streams::xdel),
    row("xgroup", -2, "wm", streams::xgroup),
    row("xlen", 2, "", streams::xlen),
    row("xrange", -4, "", streams::xrange),
    row("xsetid", -3, "wm", streams::xsetid),
    row("xtrim", -4, "w", streams::xtrim),
    row("zadd", -4, "wm", sorted_sets::zadd),
    row("zcard", 2, "", sorted_sets::zcard),
    row("zincrby", 4, "wm", sorted_sets::zincrby),
    row("zrange", -4, "", sorted_sets::zrange),
    row("zrem", -3, "w", sorted_sets::zrem),
    row("zscore", 3, "", sorted_sets::zscore),
];

/// Finds a command and checks the number of its arguments; the error is the one that Redis answers.
/// `name` is the first argument in lower case.
pub fn find(name: &[u8], argv: &[Vec<u8>]) -> Result<&'static Command, Reply> {
    static INDEX: OnceLock<HashMap<&'static [u8], &'static Command>> = OnceLock::new();
    let index = INDEX.get_or_init(|| TABLE.iter().map(|row| (row.name.as_bytes(), row)).collect());

    let Some(command) = index.get(name).copied() else {
        let arguments: String =
            argv.iter().skip(1).map(|argument| format!("'{}' ", shorten(argument))).take(20).collect();
        return Err(Reply::err(format!(
            "unknown command '{}', with args beginning with: {arguments}",
            shorten(argv.first().map(Vec::as_slice).unwrap_or_default())
        )));
    };
    let count = argv.len() as i32;
    if (command.arity >= 0 && count != command.arity) || count < -command.arity {
        return Err(wrong_arity(command.name));
    }
    Ok(command)
}

impl Command {
    /// Runs the command; its arguments have passed [`find`].
    pub fn run(&self, call: &mut Call<'_>, argv: &[Vec<u8>]) -> Reply {
        (self.run)(call, argv).unwrap_or_else(|error| error)
    }
}

/// `-ERR wrong number of arguments for '…' command`
fn wrong_arity(name: &str) -> Reply {
    Reply::err(format!("wrong number of arguments for '{name}' command"))
}

fn shorten(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..bytes.len().min(128)).unwrap_or_default()).into_owned()
}

fn syntax_error() -> Reply {
    Reply::err("syntax error")
}

fn not_an_integer() -> Reply {
    Reply::err("value is not an integer or out of range")
}

fn wrong_type() -> Reply {
    Reply::Error("WRONGTYPE Operation against a key holding the wrong kind of value".to_owned())
}

fn parse_integer(text: &[u8]) -> Result<i64, Reply> {
    integer(text).ok_or_else(not_an_integer)
}

fn parse_float(text: &[u8]) -> Result<f64, Reply> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<f64>().ok())
        .filter(|number| !number.is_nan())
        .ok_or_else(|| Reply::err("value is not a valid float"))
}

/// Compares an option's name without regard to case.
fn is(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

/// The argument at `index`. The table's arity makes the first ones certain; beyond them a missing one is a syntax error.
fn arg(argv: &[Vec<u8>], index: usize) -> Result<&Vec<u8>, Reply> {
    argv.get(index).ok_or_else(syntax_error)
}

/// A range of indices as LRANGE and ZRANGE count them: negative ones from the end.
fn index_range(start: &[u8], stop: &[u8], length: usize) -> Result<std::ops::Range<usize>, Reply> {
    let length = length as i64;
    let from_end = |index: i64| if index < 0 { index.saturating_add(length) } else { index };
    let start = from_end(parse_integer(start)?).max(0);
    let stop = from_end(parse_integer(stop)?).min(length - 1);
    Ok(if start > stop { 0..0 } else { start as usize..stop as usize + 1 })
}

/// Typed access to values: absent is `None`, another type is the error.
macro_rules! typed_access {
    ($($read:ident $change:ident $create:ident $variant:ident $type:ty;)*) => {
        impl Call<'_> {
            $(
                fn $read(&mut self, key: &[u8]) -> Result<Option<&$type>, Reply> {
                    match self.node.store.get(self.session.db, key, self.now_ms).map(|entry| &entry.value) {
                        None => Ok(None),
                        Some(Value::$variant(value)) => Ok(Some(value)),
                        Some(_) => Err(wrong_type()),
                    }
                }

                #[allow(dead_code, reason = "not every type needs all three forms")]
                fn $change(&mut self, key: &[u8]) -> Result<Option<&mut $type>, Reply> {
                    if self.$read(key)?.is_none() {
                        return Ok(None);
                    }
                    match self.node.store.get_mut(self.session.db, key, self.now_ms) {
                        Some(Value::$variant(value)) => Ok(Some(value)),
                        _ => Err(wrong_type()),
                    }
                }

                #[allow(dead_code, reason = "not every type needs all three forms")]
                fn $create(&mut self, key: &[u8]) -> Result<&mut $type, Reply> {
                    if self.$read(key)?.is_none() {
                        let empty = Value::$variant(Default::default());
                        self.node.store.insert(self.session.db, key.to_vec(), Entry::new(empty));
                    }
                    match self.node.store.get_mut(self.session.db, key, self.now_ms) {
                        Some(Value::$variant(value)) => Ok(value),
                        _ => Err(wrong_type()),
                    }
                }
            )*
        }
    };
}

typed_access! {
    string string_mut string_or_new String Vec<u8>;
    list list_mut list_or_new List std::collections::VecDeque<Vec<u8>>;
    set set_mut set_or_new Set std::collections::BTreeSet<Vec<u8>>;
    hash hash_mut hash_or_new Hash std::collections::BTreeMap<Vec<u8>, Vec<u8>>;
    sorted_set sorted_set_mut sorted_set_or_new SortedSet std::collections::BTreeMap<Vec<u8>, f64>;
    stream stream_mut stream_or_new Stream super::value::Stream;
}

impl Call<'_> {
    /// Ends a command that may have taken the last element.
    fn remove_if_empty(&mut self, key: &[u8]) {
        self.node.store.remove_if_empty(self.session.db, key);
    }

    fn rewrite<A: AsRef<[u8]>>(&mut self, argv: &[A]) {
        self.rewritten.push(argv.iter().map(|argument| argument.as_ref().to_vec()).collect());
    }
}
