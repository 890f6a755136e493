//! The one table of every section and key of the file: type, default, and whether it has an effect yet.
//!
//! It drives the type check, the defaults, the suggestions for misspelled names, and the test that `shake.toml` in
//! the root documents every key. The odd idea: a default is written here as TOML text, exactly as an operator would
//! write it, and goes through the same conversion as the operator's value. So there is one parser and no second
//! notation.
//!
//! Names, meanings and defaults of the RedisShake keys are those of its 4.x file (tair-opensource/RedisShake,
//! `shake.toml` and the option structs under `internal/`).

/// One key of a section.
#[derive(Debug)]
pub(super) struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// As TOML text; `None` = the operator must write it.
    pub default: Option<&'static str>,
    pub support: Support,
}

/// What a value looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number in this range.
    Int { min: u64, max: u64 },
    /// Bytes, at least so many: a whole number, or text such as `"50 GB"`.
    Size { min: u64 },
    /// A time such as `"2s"`.
    Time,
    /// Any text, also none.
    Text,
    /// Text that must not be empty.
    Name,
    /// Text that is never shown.
    Secret,
    /// `host:port`, `[v6]:port`, `unix:/path` or `/path`; several with commas between.
    Addresses,
    /// A table of pairs of addresses: as told, as reached.
    AddressMap,
    /// A table of pairs of database numbers: on the source, on the destination.
    DbMap,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A list of database numbers.
    Databases,
    /// A list of texts.
    Texts,
}

/// Whether a key or a section has an effect.
#[derive(Debug, Clone, Copy)]
pub(super) enum Support {
    Yes,
    /// Known, but only its default is accepted for now; the text says what to do instead.
    Later(&'static str),
}

/// What part a section plays: exactly one reader and one writer must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Reader,
    Writer,
    Other,
}

/// A table of the file; a nested one has a dotted name.
#[derive(Debug)]
pub(super) struct Section {
    pub name: &'static str,
    pub role: Role,
    /// For a reader or writer `Later` refuses its presence, for another section any value that is not the default.
    pub support: Support,
    groups: &'static [&'static [Key]],
}

impl Section {
    /// Every key of the section.
    pub fn keys(&self) -> impl Iterator<Item = &'static Key> {
        self.groups.iter().copied().flatten()
    }

    /// The key of this name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }
}

/// The section of this name.
pub(super) fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

/// `[name]`, or words for the part of the file above the first section.
pub(super) fn title(section: &str) -> String {
    if section.is_empty() { "the part before the first section".to_owned() } else { format!("[{section}]") }
}

const fn yes(name: &'static str, kind: Kind, default: &'static str) -> Key {
    Key { name, kind, default: Some(default), support: Support::Yes }
}

const fn required(name: &'static str, kind: Kind) -> Key {
    Key { name, kind, default: None, support: Support::Yes }
}

const fn later(name: &'static str, kind: Kind, default: &'static str, instead: &'static str) -> Key {
    Key { name, kind, default: Some(default), support: Support::Later(instead) }
}

const fn other(name: &'static str, groups: &'static [&'static [Key]]) -> Section {
    Section { name, role: Role::Other, support: Support::Yes, groups }
}

const ANY: Kind = Kind::Int { min: 0, max: i64::MAX as u64 };
const PORT: Kind = Kind::Int { min: 0, max: 65535 };

const NO_FILTER: &str = "remove it: only `allow_db` and `block_db` filter for now";

/// How to reach a server: the same keys on both sides.
const ENDPOINT: &[Key] = &[
    required("address", Kind::Addresses),
    yes("username", Kind::Text, "\"\""),
    yes("password", Kind::Secret, "\"\""),
    yes("password_file", Kind::Text, "\"\""),
    yes("tls", Kind::Flag, "false"),
    yes("tls_insecure", Kind::Flag, "false"),
    yes("cluster", Kind::Flag, "false"),
    yes("address_map", Kind::AddressMap, "{}"),
];

const TLS: &[Key] = &[
    yes("ca_cert", Kind::Text, "\"\""),
    yes("cert", Kind::Text, "\"\""),
    yes("key", Kind::Text, "\"\""),
    yes("server_name", Kind::Text, "\"\""),
];

const SENTINEL: &[Key] = &[
    yes("master_name", Kind::Text, "\"\""),
    yes("address", Kind::Addresses, "\"\""),
    yes("username", Kind::Text, "\"\""),
    yes("password", Kind::Secret, "\"\""),
    yes("password_file", Kind::Text, "\"\""),
    yes("tls", Kind::Flag, "false"),
];

const SYNC_READER: &[Key] = &[
    yes("sync_rdb", Kind::Flag, "true"),
    yes("sync_aof", Kind::Flag, "true"),
    yes("try_diskless", Kind::Flag, "false"),
    yes("prefer_replica", Kind::Flag, "false"),
    yes("full_sync_parallel", Kind::Int { min: 0, max: 1000 }, "0"),
];

const SCAN_READER: &[Key] = &[
    yes("dbs", Kind::Databases, "[]"),
    yes("scan", Kind::Flag, "true"),
    yes("ksn", Kind::Flag, "false"),
    yes("count", Kind::Int { min: 1, max: i64::MAX as u64 }, "1"),
    yes("prefer_replica", Kind::Flag, "false"),
    yes("skip_unknown_type", Kind::Texts, "[]"),
];

const REDIS_WRITER: &[Key] = &[
    yes("off_reply", Kind::Flag, "false"),
    yes("sentinel", Kind::Flag, "false"),
    yes("master", Kind::Text, "\"\""),
];

const FILTER: &[Key] = &[
    yes("allow_db", Kind::Databases, "[]"),
    yes("block_db", Kind::Databases, "[]"),
    later("allow_keys", Kind::Texts, "[]", NO_FILTER),
    later("block_keys", Kind::Texts, "[]", NO_FILTER),
    later("allow_key_prefix", Kind::Texts, "[]", NO_FILTER),
    later("block_key_prefix", Kind::Texts, "[]", NO_FILTER),
    later("allow_key_suffix", Kind::Texts, "[]", NO_FILTER),
    later("block_key_suffix", Kind::Texts, "[]", NO_FILTER),
    later("allow_key_regex", Kind::Texts, "[]", NO_FILTER),
    later("block_key_regex", Kind::Texts, "[]", NO_FILTER),
    later("allow_command", Kind::Texts, "[]", NO_FILTER),
    later("block_command", Kind::Texts, "[]", NO_FILTER),
    later("allow_command_group", Kind::Texts, "[]", NO_FILTER),
    later("block_command_group", Kind::Texts, "[]", NO_FILTER),
    later("function", Kind::Text, "\"\"", NO_FILTER),
];

const ADVANCED: &[Key] = &[
    yes("dir", Kind::Name, "\"data\""),
    yes("ncpu", Kind::Int { min: 0, max: 4096 }, "0"),
    yes("status_port", PORT, "0"),
    yes("log_file", Kind::Name, "\"shake.log\""),
    yes("log_level", Kind::Choice(&["debug", "info", "warn"]), "\"info\""),
    yes("log_interval", Kind::Int { min: 1, max: 86_400 }, "5"),
    yes("rdb_restore_command_behavior", Kind::Choice(&["panic", "rewrite", "skip"]), "\"panic\""),
    yes("pipeline_count_limit", Kind::Int { min: 1, max: 1_000_000 }, "1024"),
    yes("target_redis_client_max_querybuf_len", Kind::Size { min: 1024 }, "1073741824"),
    yes("target_redis_proto_max_bulk_len", Kind::Size { min: 0 }, "512_000_000"),
    yes("empty_db_before_sync", Kind::Flag, "false"),
    later(
        "target_redis_max_qps",
        ANY,
        "300000",
        "remove it, and limit the speed while it runs: `shakedeck ctl throttle`, or the throttle key of the console",
    ),
    yes("aws_psync", Kind::Secret, "\"\""),
    yes("db_map", Kind::DbMap, "{}"),
    yes("pprof_port", PORT, "0"),
    yes("log_rotation", Kind::Flag, "true"),
    yes("log_max_size", ANY, "512"),
    yes("log_max_age", ANY, "7"),
    yes("log_max_backups", ANY, "3"),
    yes("log_compress", Kind::Flag, "true"),
];

/// The only key that RedisShake's own file and its program disagree about: 20603 in the file, 0 in the program.
const MODULE: &[Key] = &[yes("target_mbbloom_version", ANY, "20603")];

const SPOOL: &[Key] = &[
    yes("max_bytes", Kind::Size { min: 1 << 20 }, "\"50 GB\""),
    yes("min_free_bytes", Kind::Size { min: 0 }, "\"1 GB\""),
];

const KEYLESS: Kind = Kind::Choice(&["apply", "quarantine", "drop"]);

const POLICY: &[Key] = &[
    yes("on_full_resync", Kind::Choice(&["resync", "stop"]), "\"resync\""),
    yes("on_empty_source", Kind::Choice(&["wait", "follow"]), "\"wait\""),
    yes("on_bad_value", Kind::Choice(&["quarantine", "stop"]), "\"quarantine\""),
    yes("source_gone_after", Kind::Time, "\"1h\""),
    yes("on_flush", KEYLESS, "\"apply\""),
    yes("on_swapdb", KEYLESS, "\"apply\""),
    yes("on_function", KEYLESS, "\"apply\""),
    yes("on_publish", Kind::Choice(&["drop", "quarantine"]), "\"drop\""),
];

const CUTOVER: &[Key] = &[
    yes("max_lag_bytes", Kind::Size { min: 0 }, "\"1 MiB\""),
    yes("max_lag", Kind::Time, "\"1s\""),
    yes("hold_for", Kind::Time, "\"2s\""),
    yes("fence_timeout", Kind::Time, "\"10s\""),
    yes("drain_timeout", Kind::Time, "\"30s\""),
    yes("max_blocked", Kind::Time, "\"1m\""),
    yes("verify", Kind::Choice(&["off", "count", "meta", "digest", "full"]), "\"count\""),
    yes("sample", Kind::Size { min: 0 }, "10_000"),
    yes("hand_over", Kind::Choice(&["auto", "ask"]), "\"auto\""),
    yes("source_after", Kind::Choice(&["refuse", "hold", "release"]), "\"refuse\""),
    yes("reverse", Kind::Flag, "false"),
    yes("on_ready", Kind::Text, "\"\""),
    yes("before_fence", Kind::Text, "\"\""),
    yes("after_drain", Kind::Text, "\"\""),
    yes("before_switch", Kind::Text, "\"\""),
    yes("after_switch", Kind::Text, "\"\""),
    yes("on_abort", Kind::Text, "\"\""),
    yes("hook_timeout", Kind::Time, "\"30s\""),
];

/// Every section, in the order of `shake.toml`.
pub(super) const SECTIONS: &[Section] = &[
    other("", &[&[later("function", Kind::Text, "\"\"", NO_FILTER)]]),
    Section {
        name: "sync_reader",
        role: Role::Reader,
        support: Support::Yes,
        groups: &[ENDPOINT, SYNC_READER],
    },
    other("sync_reader.tls_config", &[TLS]),
    other("sync_reader.sentinel", &[SENTINEL]),
    other("sync_reader.sentinel.tls_config", &[TLS]),
    Section {
        name: "rdb_reader",
        role: Role::Reader,
        support: Support::Yes,
        groups: &[&[required("filepath", Kind::Name)]],
    },
    Section {
        name: "scan_reader",
        role: Role::Reader,
        support: Support::Later("use [sync_reader], or save an RDB file and use [rdb_reader]"),
        groups: &[ENDPOINT, SCAN_READER],
    },
    other("scan_reader.tls_config", &[TLS]),
    Section {
        name: "aof_reader",
        role: Role::Reader,
        support: Support::Later("use [sync_reader], or save an RDB file and use [rdb_reader]"),
        groups: &[&[required("filepath", Kind::Name), yes("timestamp", ANY, "0")]],
    },
    Section {
        name: "redis_writer",
        role: Role::Writer,
        support: Support::Yes,
        groups: &[ENDPOINT, REDIS_WRITER],
    },
    other("redis_writer.tls_config", &[TLS]),
    other("redis_writer.sentinel", &[SENTINEL]),
    other("redis_writer.sentinel.tls_config", &[TLS]),
    Section {
        name: "file_writer",
        role: Role::Writer,
        support: Support::Later("use [redis_writer]"),
        groups: &[&[
            required("filepath", Kind::Name),
            yes("type", Kind::Choice(&["cmd", "aof", "json"]), "\"cmd\""),
        ]],
    },
    other("filter", &[FILTER]),
    other("advanced", &[ADVANCED]),
    other("module", &[MODULE]),
    other("spool", &[SPOOL]),
    other("policy", &[POLICY]),
    other("cutover", &[CUTOVER]),
];

/// Sections of RedisShake 2 and 3, and what they are called since 4.
pub(super) const OLD_SECTIONS: &[(&str, &str)] = &[
    ("source", "sync_reader"),
    ("target", "redis_writer"),
    ("sync_standalone_reader", "sync_reader"),
    ("sync_cluster_reader", "sync_reader"),
    ("scan_standalone_reader", "scan_reader"),
    ("scan_cluster_reader", "scan_reader"),
    ("redis_standalone_writer", "redis_writer"),
    ("redis_cluster_writer", "redis_writer"),
];

/// A key as the documentation needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownKey {
    /// Name of the section, dotted if nested, empty for the part before the first section.
    pub section: &'static str,
    /// Name of the key.
    pub name: &'static str,
    /// Its default as TOML text; `None` = it must be written.
    pub default: Option<&'static str>,
    /// Whether another value than the default has an effect yet.
    pub supported: bool,
}

/// Every key that the file may contain, in the order of `shake.toml`.
pub fn known_keys() -> impl Iterator<Item = KnownKey> {
    SECTIONS.iter().flat_map(|section| {
        section.keys().map(|key| KnownKey {
            section: section.name,
            name: key.name,
            default: key.default,
            supported: matches!((section.support, key.support), (Support::Yes, Support::Yes)),
        })
    })
}
