//! The table. One line is one command: name, keys, replay, cross-slot rule.

use super::{Command, CrossSlot, Keys, Replay};

use CrossSlot::{Never, Quarantine, Recompute, Split};
use Keys::{Counted, Migrate, No, Range, Store, Streams};
use Replay::{ExactlyOnce, Idempotent, IdempotentWithout};

/// The key is the first argument.
const ONE: Keys = Range { first: 1, last: 1, step: 1 };
/// The key is the second argument, behind a subcommand.
const SECOND: Keys = Range { first: 2, last: 2, step: 1 };
/// The first two arguments.
const TWO: Keys = Range { first: 1, last: 2, step: 1 };
/// Every argument.
const ALL: Keys = Range { first: 1, last: -1, step: 1 };
/// Every argument but the last, which is a time-out.
const ALL_BUT_LAST: Keys = Range { first: 1, last: -2, step: 1 };
/// Every second argument.
const PAIRS: Keys = Range { first: 1, last: -1, step: 2 };
/// Every third argument.
const TRIPLES: Keys = Range { first: 1, last: -1, step: 3 };
/// A destination, the number of sources, the sources.
const INTO: Keys = Counted { destination: true, count: 2, step: 1 };
/// A script or function, the number of keys, the keys.
const SCRIPT: Keys = Counted { destination: false, count: 2, step: 1 };
/// The number of keys, the keys.
const COUNTED: Keys = Counted { destination: false, count: 1, step: 1 };
const SORT: Keys = Store { words: &["STORE"], from: 2, skip: &[("LIMIT", 2), ("GET", 1), ("BY", 1)] };
const GEORADIUS: Keys = Store { words: &["STORE", "STOREDIST"], from: 5, skip: &[] };

/// It writes.
const fn w(name: &'static str, keys: Keys, replay: Replay, cross_slot: CrossSlot) -> Command {
    Command { name, writes: true, replay, cross_slot, keys }
}

/// It changes no data.
const fn r(name: &'static str, keys: Keys, replay: Replay, cross_slot: CrossSlot) -> Command {
    Command { name, writes: false, replay, cross_slot, keys }
}

/// Commands of Redis up to 8.6 and Valkey up to 9.1 that write, that can stand in a replication stream, or whose keys move
/// with their options; and the writing commands of common modules.
///
/// Where an index or a condition decides what happens (LSET, LREM, SETNX among several keys), the class is the careful one.
pub static COMMANDS: &[Command] = &[
    // Strings.
    w("APPEND", ONE, ExactlyOnce, Never),
    w("BITFIELD", ONE, IdempotentWithout(&["INCRBY"]), Never),
    w("BITOP", Range { first: 2, last: -1, step: 1 }, ExactlyOnce, Recompute),
    w("DECR", ONE, ExactlyOnce, Never),
    w("DECRBY", ONE, ExactlyOnce, Never),
    w("DELEX", ONE, ExactlyOnce, Never),
    w("DELIFEQ", ONE, ExactlyOnce, Never),
    w("GETDEL", ONE, ExactlyOnce, Never),
    w("GETEX", ONE, Idempotent, Never),
    w("GETSET", ONE, Idempotent, Never),
    w("INCR", ONE, ExactlyOnce, Never),
    w("INCRBY", ONE, ExactlyOnce, Never),
    w("INCRBYFLOAT", ONE, ExactlyOnce, Never),
    w("MSET", PAIRS, Idempotent, Split),
    w(
        "MSETEX",
        Counted { destination: false, count: 1, step: 2 },
        IdempotentWithout(&["NX", "XX"]),
        Quarantine,
    ),
    w("MSETNX", PAIRS, ExactlyOnce, Quarantine),
    w("PFADD", ONE, Idempotent, Never),
    r("PFCOUNT", ALL, Idempotent, Quarantine),
    w("PFDEBUG", SECOND, Idempotent, Never),
    w("PFMERGE", ALL, ExactlyOnce, Recompute),
    w("PSETEX", ONE, Idempotent, Never),
    w("SET", ONE, IdempotentWithout(&["IFEQ", "IFNE", "IFDEQ", "IFDNE"]), Never),
    w("SETBIT", ONE, Idempotent, Never),
    w("SETEX", ONE, Idempotent, Never),
    w("SETNX", ONE, Idempotent, Never),
    w("SETRANGE", ONE, Idempotent, Never),
    // Any type.
    w("COPY", TWO, ExactlyOnce, Recompute),
    w("DEL", ALL, Idempotent, Split),
    r("EXISTS", ALL, Idempotent, Split),
    w("EXPIRE", ONE, Idempotent, Never),
    w("EXPIREAT", ONE, Idempotent, Never),
    w("MIGRATE", Migrate, ExactlyOnce, Quarantine),
    w("MOVE", ONE, ExactlyOnce, Never),
    w("PERSIST", ONE, Idempotent, Never),
    w("PEXPIRE", ONE, Idempotent, Never),
    w("PEXPIREAT", ONE, Idempotent, Never),
    w("RENAME", TWO, ExactlyOnce, Recompute),
    w("RENAMENX", TWO, ExactlyOnce, Recompute),
    w("RESTORE", ONE, ExactlyOnce, Never),
    w("RESTORE-ASKING", ONE, ExactlyOnce, Never),
    w("SORT", SORT, ExactlyOnce, Recompute),
    r("SORT_RO", ONE, Idempotent, Never),
    r("TOUCH", ALL, Idempotent, Split),
    w("UNLINK", ALL, Idempotent, Split),
    // Lists.
    w("BLMOVE", TWO, ExactlyOnce, Recompute),
    w("BLMPOP", SCRIPT, ExactlyOnce, Quarantine),
    w("BLPOP", ALL_BUT_LAST, ExactlyOnce, Quarantine),
    w("BRPOP", ALL_BUT_LAST, ExactlyOnce, Quarantine),
    w("BRPOPLPUSH", TWO, ExactlyOnce, Recompute),
    w("LINSERT", ONE, ExactlyOnce, Never),
    w("LMOVE", TWO, ExactlyOnce, Recompute),
    w("LMPOP", COUNTED, ExactlyOnce, Quarantine),
    w("LPOP", ONE, ExactlyOnce, Never),
    w("LPUSH", ONE, ExactlyOnce, Never),
    w("LPUSHX", ONE, ExactlyOnce, Never),
    w("LREM", ONE, ExactlyOnce, Never),
    w("LSET", ONE, ExactlyOnce, Never),
    w("LTRIM", ONE, ExactlyOnce, Never),
    w("RPOP", ONE, ExactlyOnce, Never),
    w("RPOPLPUSH", TWO, ExactlyOnce, Recompute),
    w("RPUSH", ONE, ExactlyOnce, Never),
    w("RPUSHX", ONE, ExactlyOnce, Never),
    // Sets.
    w("SADD", ONE, Idempotent, Never),
    w("SDIFFSTORE", ALL, ExactlyOnce, Recompute),
    r("SINTERCARD", COUNTED, Idempotent, Quarantine),
    w("SINTERSTORE", ALL, ExactlyOnce, Recompute),
    w("SMOVE", TWO, ExactlyOnce, Recompute),
    w("SPOP", ONE, ExactlyOnce, Never),
    w("SREM", ONE, Idempotent, Never),
    w("SUNIONSTORE", ALL, ExactlyOnce, Recompute),
    // Hashes.
    w("HDEL", ONE, Idempotent, Never),
    w("HEXPIRE", ONE, Idempotent, Never),
    w("HEXPIREAT", ONE, Idempotent, Never),
    w("HGETDEL", ONE, ExactlyOnce, Never),
    w("HGETEX", ONE, Idempotent, Never),
    w("HINCRBY", ONE, ExactlyOnce, Never),
    w("HINCRBYFLOAT", ONE, ExactlyOnce, Never),
    w("HMSET", ONE, Idempotent, Never),
    w("HPERSIST", ONE, Idempotent, Never),
    w("HPEXPIRE", ONE, Idempotent, Never),
    w("HPEXPIREAT", ONE, Idempotent, Never),
    w("HSET", ONE, Idempotent, Never),
    w("HSETEX", ONE, Idempotent, Never),
    w("HSETNX", ONE, Idempotent, Never),
    // Sorted sets.
    w("BZMPOP", SCRIPT, ExactlyOnce, Quarantine),
    w("BZPOPMAX", ALL_BUT_LAST, ExactlyOnce, Quarantine),
    w("BZPOPMIN", ALL_BUT_LAST, ExactlyOnce, Quarantine),
    w("GEOADD", ONE, Idempotent, Never),
    w("GEORADIUS", GEORADIUS, ExactlyOnce, Recompute),
    w(
        "GEORADIUSBYMEMBER",
        Store { words: &["STORE", "STOREDIST"], from: 4, skip: &[] },
        ExactlyOnce,
        Recompute,
    ),
    w("GEOSEARCHSTORE", TWO, ExactlyOnce, Recompute),
    w("ZADD", ONE, IdempotentWithout(&["INCR"]), Never),
    r("ZDIFF", COUNTED, Idempotent, Quarantine),
    w("ZDIFFSTORE", INTO, ExactlyOnce, Recompute),
    w("ZINCRBY", ONE, ExactlyOnce, Never),
    r("ZINTER", COUNTED, Idempotent, Quarantine),
    r("ZINTERCARD", COUNTED, Idempotent, Quarantine),
    w("ZINTERSTORE", INTO, ExactlyOnce, Recompute),
    w("ZMPOP", COUNTED, ExactlyOnce, Quarantine),
    w("ZPOPMAX", ONE, ExactlyOnce, Never),
    w("ZPOPMIN", ONE, ExactlyOnce, Never),
    w("ZRANGESTORE", TWO, ExactlyOnce, Recompute),
    w("ZREM", ONE, Idempotent, Never),
    w("ZREMRANGEBYLEX", ONE, Idempotent, Never),
    w("ZREMRANGEBYRANK", ONE, ExactlyOnce, Never),
    w("ZREMRANGEBYSCORE", ONE, Idempotent, Never),
    r("ZUNION", COUNTED, Idempotent, Quarantine),
    w("ZUNIONSTORE", INTO, ExactlyOnce, Recompute),
    // Streams.
    w("XACK", ONE, Idempotent, Never),
    w("XACKDEL", ONE, ExactlyOnce, Never),
    w("XADD", ONE, ExactlyOnce, Never),
    w("XAUTOCLAIM", ONE, ExactlyOnce, Never),
    w("XCFGSET", ONE, ExactlyOnce, Never),
    w("XCLAIM", ONE, ExactlyOnce, Never),
    w("XDEL", ONE, Idempotent, Never),
    w("XDELEX", ONE, ExactlyOnce, Never),
    w("XGROUP", SECOND, ExactlyOnce, Never),
    w("XIDMPRECORD", ONE, ExactlyOnce, Never),
    r("XREAD", Streams, Idempotent, Quarantine),
    w("XREADGROUP", Streams, ExactlyOnce, Quarantine),
    w("XSETID", ONE, ExactlyOnce, Never),
    w("XTRIM", ONE, ExactlyOnce, Never),
    // Vector sets.
    w("VADD", ONE, Idempotent, Never),
    w("VREM", ONE, Idempotent, Never),
    w("VSETATTR", ONE, Idempotent, Never),
    // Whole databases, scripts, channels.
    w("EVAL", SCRIPT, ExactlyOnce, Quarantine),
    w("EVALSHA", SCRIPT, ExactlyOnce, Quarantine),
    r("EVALSHA_RO", SCRIPT, Idempotent, Quarantine),
    r("EVAL_RO", SCRIPT, Idempotent, Quarantine),
    w("FCALL", SCRIPT, ExactlyOnce, Quarantine),
    r("FCALL_RO", SCRIPT, Idempotent, Quarantine),
    w("FLUSHALL", No, ExactlyOnce, Never),
    w("FLUSHDB", No, ExactlyOnce, Never),
    w("FUNCTION", No, ExactlyOnce, Never),
    r("PUBLISH", No, ExactlyOnce, Never),
    r("SCRIPT", No, Idempotent, Never),
    // The channel of a sharded message has a slot, as a key has.
    r("SPUBLISH", ONE, ExactlyOnce, Never),
    w("SWAPDB", No, ExactlyOnce, Never),
    w("TRIMSLOTS", No, ExactlyOnce, Never),
    // FLUSHSLOT of Valkey 9.1 writes; SYNCSLOTS speaks to replicas of a cluster only.
    w("CLUSTER", No, ExactlyOnce, Never),
    // Of the link, not of the data.
    r("EXEC", No, ExactlyOnce, Never),
    r("MULTI", No, ExactlyOnce, Never),
    r("PING", No, Idempotent, Never),
    r("REPLCONF", No, Idempotent, Never),
    r("SELECT", No, Idempotent, Never),
    // Modules (key positions by their documentation; no module is at hand to ask).
    w("BF.ADD", ONE, Idempotent, Never),
    w("BF.INSERT", ONE, Idempotent, Never),
    w("BF.LOADCHUNK", ONE, ExactlyOnce, Never),
    w("BF.MADD", ONE, Idempotent, Never),
    w("BF.RESERVE", ONE, ExactlyOnce, Never),
    w("CF.ADD", ONE, ExactlyOnce, Never),
    w("CF.ADDNX", ONE, ExactlyOnce, Never),
    w("CF.DEL", ONE, ExactlyOnce, Never),
    w("CF.INSERT", ONE, ExactlyOnce, Never),
    w("CF.INSERTNX", ONE, ExactlyOnce, Never),
    w("CF.LOADCHUNK", ONE, ExactlyOnce, Never),
    w("CF.RESERVE", ONE, ExactlyOnce, Never),
    w("CMS.INCRBY", ONE, ExactlyOnce, Never),
    w("CMS.INITBYDIM", ONE, ExactlyOnce, Never),
    w("CMS.INITBYPROB", ONE, ExactlyOnce, Never),
    w("CMS.MERGE", INTO, ExactlyOnce, Recompute),
    w("FT.ALTER", No, ExactlyOnce, Never),
    w("FT.CREATE", No, ExactlyOnce, Never),
    w("FT.DROPINDEX", No, ExactlyOnce, Never),
    w("JSON.ARRAPPEND", ONE, ExactlyOnce, Never),
    w("JSON.ARRINSERT", ONE, ExactlyOnce, Never),
    w("JSON.ARRPOP", ONE, ExactlyOnce, Never),
    w("JSON.ARRTRIM", ONE, ExactlyOnce, Never),
    w("JSON.CLEAR", ONE, Idempotent, Never),
    w("JSON.DEL", ONE, ExactlyOnce, Never),
    w("JSON.FORGET", ONE, ExactlyOnce, Never),
    w("JSON.MERGE", ONE, Idempotent, Never),
    w("JSON.MSET", TRIPLES, ExactlyOnce, Quarantine),
    w("JSON.NUMINCRBY", ONE, ExactlyOnce, Never),
    w("JSON.NUMMULTBY", ONE, ExactlyOnce, Never),
    w("JSON.SET", ONE, ExactlyOnce, Never),
    w("JSON.STRAPPEND", ONE, ExactlyOnce, Never),
    w("JSON.TOGGLE", ONE, ExactlyOnce, Never),
    w("TDIGEST.ADD", ONE, ExactlyOnce, Never),
    w("TDIGEST.CREATE", ONE, ExactlyOnce, Never),
    w("TDIGEST.MERGE", INTO, ExactlyOnce, Recompute),
    w("TDIGEST.RESET", ONE, Idempotent, Never),
    w("TOPK.ADD", ONE, ExactlyOnce, Never),
    w("TOPK.INCRBY", ONE, ExactlyOnce, Never),
    w("TOPK.RESERVE", ONE, ExactlyOnce, Never),
    w("TS.ADD", ONE, ExactlyOnce, Never),
    w("TS.ALTER", ONE, Idempotent, Never),
    w("TS.CREATE", ONE, ExactlyOnce, Never),
    w("TS.CREATERULE", TWO, ExactlyOnce, Quarantine),
    w("TS.DECRBY", ONE, ExactlyOnce, Never),
    w("TS.DEL", ONE, Idempotent, Never),
    w("TS.DELETERULE", TWO, ExactlyOnce, Quarantine),
    w("TS.INCRBY", ONE, ExactlyOnce, Never),
    w("TS.MADD", TRIPLES, ExactlyOnce, Quarantine),
];
