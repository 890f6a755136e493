//! From checked single values to the [`Plan`]: what must be there, what excludes what, what the operator should know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::cutover::{Hook, SourceAfter};

use super::endpoint::{different_servers, endpoint};
use super::keys::{Role, SECTIONS};
use super::value::{Value, address};
use super::{
    Address, Advanced, Cutover, DbMap, Filter, LogLevel, OnBadValue, OnEmptySource, OnExistingKey,
    OnFullResync, OnKeyless, Outside, Plan, Policy, Reader, Secret, Settings, Spool, SyncReader, Writer,
};

/// Builds the plan; `None` when something that is needed is missing (a problem says so).
pub(super) fn build(settings: &mut Settings, outside: &Outside<'_>) -> Option<Plan> {
    let reader_section = exactly_one(settings, Role::Reader, "[sync_reader]");
    let writer_section = exactly_one(settings, Role::Writer, "[redis_writer]");
    let mut notices = Vec::new();
    let reader = match reader_section {
        Some("sync_reader") => sync_reader(settings, outside, &mut notices).map(Reader::Sync),
        Some("rdb_reader") => rdb_reader(settings),
        _ => None, // a reader that is not supported yet
    };
    let writer = match writer_section {
        Some("redis_writer") => {
            let cluster = settings.flag("redis_writer", "cluster");
            let off_reply = off_reply(settings, cluster, &mut notices);
            endpoint(settings, "redis_writer", outside, &mut notices).map(|endpoint| Writer {
                endpoint,
                cluster,
                off_reply,
            })
        }
        _ => None,
    };
    if let (Some(Reader::Sync(reader)), Some(writer)) = (&reader, &writer) {
        different_servers(settings, &reader.endpoint.address, &writer.endpoint.address);
    }
    let filter = Filter {
        allow_db: settings.databases("filter", "allow_db"),
        block_db: settings.databases("filter", "block_db"),
    };
    let db_map = databases_apart(settings, &filter, &mut notices);
    module(settings);
    ignored(settings, &mut notices);
    Some(Plan {
        reader: reader?,
        writer: writer?,
        filter,
        advanced: advanced(settings, db_map),
        spool: Spool {
            max_bytes: settings.number("spool", "max_bytes"),
            min_free_bytes: settings.number("spool", "min_free_bytes"),
        },
        policy: Policy {
            on_full_resync: match settings.text("policy", "on_full_resync") {
                "stop" => OnFullResync::Stop,
                _ => OnFullResync::Resync,
            },
            on_empty_source: match settings.text("policy", "on_empty_source") {
                "follow" => OnEmptySource::Follow,
                _ => OnEmptySource::Wait,
            },
            on_bad_value: match settings.text("policy", "on_bad_value") {
                "stop" => OnBadValue::Stop,
                _ => OnBadValue::Quarantine,
            },
            source_gone_after: settings.time("policy", "source_gone_after"),
            on_flush: keyless(settings, "on_flush"),
            on_swapdb: keyless(settings, "on_swapdb"),
            on_function: keyless(settings, "on_function"),
            on_publish: keyless(settings, "on_publish"),
        },
        cutover: cutover(settings),
        notices,
    })
}

fn keyless(settings: &Settings, key: &'static str) -> OnKeyless {
    match settings.text("policy", key) {
        "quarantine" => OnKeyless::Quarantine,
        "drop" => OnKeyless::Drop,
        _ => OnKeyless::Apply,
    }
}

/// `off_reply`, which a cluster cannot have: its slots tell by their answers that they have moved.
fn off_reply(settings: &mut Settings, cluster: bool, notices: &mut Vec<String>) -> bool {
    let off_reply = settings.flag("redis_writer", "off_reply");
    if off_reply && cluster {
        settings.problem(
            settings.at("redis_writer", "off_reply"),
            "`off_reply` is not for a cluster: only its answers tell where a slot is",
            "write `off_reply = false`",
        );
    } else if off_reply {
        notices.push(
            "off_reply = true is unsafe: commands of the stream that the destination refuses are lost, and nobody sees it. So \
             READY is never reached, and there is no cutover. Compare both sides at the end (`shakedeck verify`)."
                .to_owned(),
        );
    }
    off_reply
}

/// The one section of this role that is present.
fn exactly_one(settings: &mut Settings, role: Role, usual: &str) -> Option<&'static str> {
    let mut present: Vec<_> = SECTIONS
        .iter()
        .filter(|section| section.role == role)
        .filter_map(|section| settings.sections.get(section.name).map(|at| (at.clone(), section.name)))
        .collect();
    present.sort();
    let what =
        if role == Role::Reader { "reader (where the data comes from)" } else { "writer (where it goes)" };
    match present.as_slice() {
        [] => {
            let meant =
                SECTIONS.iter().any(|section| section.role == role && settings.meant.contains(section.name));
            if meant {
                return None;
            }
            settings.problem(
                None,
                format!("there is no {what}"),
                format!("add {usual} with `address = \"host:port\"`"),
            );
            None
        }
        [(_, only)] => Some(only),
        [(_, first), others @ ..] => {
            for (at, other) in others {
                settings.problem(
                    Some(at.clone()),
                    format!("[{other}] is a second {what}: there is [{first}] already"),
                    "keep one of the two and put # before every line of the other",
                );
            }
            None
        }
    }
}

fn sync_reader(
    settings: &mut Settings,
    outside: &Outside<'_>,
    notices: &mut Vec<String>,
) -> Option<SyncReader> {
    const SECTION: &str = "sync_reader";
    let sync_rdb = settings.flag(SECTION, "sync_rdb");
    let sync_aof = settings.flag(SECTION, "sync_aof");
    let both_given =
        settings.value(SECTION, "sync_rdb").is_some() && settings.value(SECTION, "sync_aof").is_some();
    if both_given && !sync_rdb && !sync_aof {
        settings.problem(
            settings.at(SECTION, "sync_aof"),
            "`sync_rdb` and `sync_aof` are both false: nothing would be copied",
            "write `true` for at least one of them",
        );
    }
    if !sync_rdb && settings.flag("advanced", "empty_db_before_sync") {
        settings.problem(
            settings.at("advanced", "empty_db_before_sync"),
            "the destination would be emptied, but `sync_rdb = false` does not fill it again",
            "write `empty_db_before_sync = false`, or `sync_rdb = true`",
        );
    }
    if sync_aof {
        notices.push(
            "Transactions (MULTI/EXEC) of the source stay whole; RedisShake takes them apart.".to_owned(),
        );
    }
    let prefer_replica = settings.flag(SECTION, "prefer_replica");
    let psync_names = psync_names(settings);
    let endpoint = endpoint(settings, SECTION, outside, notices)?;
    Some(SyncReader {
        endpoint,
        cluster: settings.flag(SECTION, "cluster"),
        sync_rdb,
        sync_aof,
        prefer_replica,
        psync_names,
        full_sync_parallel: settings.number(SECTION, "full_sync_parallel") as usize,
    })
}

/// `aws_psync`: `host:port@name` with commas between, the name being what that node calls PSYNC.
fn psync_names(settings: &mut Settings) -> BTreeMap<Address, Secret> {
    const SECTION: &str = "advanced";
    let text = settings.text(SECTION, "aws_psync").to_owned();
    let mut names = BTreeMap::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let pair = item.split_once('@').map(|(at, name)| (address(at.trim()), name.trim()));
        match pair {
            Some((Ok(Some(address)), name)) if !name.is_empty() && !name.contains(char::is_whitespace) => {
                // Of two names for one node RedisShake takes the first.
                names.entry(address).or_insert_with(|| Secret::new(name));
            }
            _ => {
                settings.problem(
                    settings.at(SECTION, "aws_psync"),
                    "`aws_psync`: one of the entries is not \"host:port@name\"",
                    "write the name of the PSYNC command of each node: \"10.0.0.1:6379@name1,10.0.0.2:6379@name2\"",
                );
                break;
            }
        }
    }
    names
}

/// `db_map`, and what the operator should know of databases that it puts together.
fn databases_apart(settings: &Settings, filter: &Filter, notices: &mut Vec<String>) -> DbMap {
    let map = match settings.value("advanced", "db_map") {
        Some(Value::DbMap(map)) => map.clone(),
        _ => DbMap::default(),
    };
    let mut sources: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for source in map.pairs().flat_map(|(source, destination)| [source, destination]) {
        if filter.keeps_db(source) {
            sources.entry(map.map(source)).or_default().insert(source);
        }
    }
    for (destination, merged) in sources.into_iter().filter(|(_, merged)| merged.len() > 1) {
        let merged: Vec<String> = merged.iter().map(u32::to_string).collect();
        notices.push(format!(
            "db_map puts databases {} of the source together in database {destination}: their keys must differ, and FLUSHDB, \
             SWAPDB and MOVE are set aside there. ([filter] block_db leaves a database out.)",
            merged.join(" and "),
        ));
    }
    map
}

fn rdb_reader(settings: &mut Settings) -> Option<Reader> {
    let filepath = settings.text("rdb_reader", "filepath");
    if !filepath.is_empty() {
        return Some(Reader::Rdb { filepath: PathBuf::from(filepath) });
    }
    if settings.at("rdb_reader", "filepath").is_none() && !settings.meant.contains("rdb_reader.filepath") {
        let at = settings.sections.get("rdb_reader").cloned();
        settings.problem(
            at,
            "`filepath` is missing in [rdb_reader]",
            "add `filepath = \"/path/dump.rdb\"` below it",
        );
    }
    None
}

fn cutover(settings: &mut Settings) -> Cutover {
    if settings.flag("cutover", "reverse") && settings.at("advanced", "db_map").is_some() {
        settings.problem(
            settings.at("cutover", "reverse"),
            "there is no way back while `db_map` changes database numbers",
            "write `reverse = false`, or remove `db_map`",
        );
    }
    if settings.flag("cutover", "reverse")
        && ["", "default"].contains(&settings.text("sync_reader", "username"))
    {
        settings.problem(
            settings.at("cutover", "reverse"),
            "a reverse link needs a user of its own on the source, so that all others can be refused there",
            "set `username` in [sync_reader] (not \"default\"), or write `reverse = false`",
        );
    }
    // A pause is renewed three times in its length, each over the network.
    if settings.time("cutover", "fence_timeout") < Duration::from_secs(1)
        && settings.value("cutover", "fence_timeout").is_some()
    {
        settings.problem(
            settings.at("cutover", "fence_timeout"),
            "a fence of less than a second cannot be renewed in time",
            "write at least \"1s\"; \"10s\" is the default",
        );
    }
    Cutover {
        max_lag_bytes: settings.number("cutover", "max_lag_bytes"),
        max_lag: settings.time("cutover", "max_lag"),
        hold_for: settings.time("cutover", "hold_for"),
        fence_timeout: settings.time("cutover", "fence_timeout"),
        drain_timeout: settings.time("cutover", "drain_timeout"),
        max_blocked: settings.time("cutover", "max_blocked"),
        verify: settings.text("cutover", "verify").parse().ok(),
        sample: settings.number("cutover", "sample"),
        ask_to_go: settings.text("cutover", "hand_over") == "ask",
        source_after: match settings.text("cutover", "source_after") {
            "hold" => SourceAfter::Hold,
            "release" => SourceAfter::Release,
            _ => SourceAfter::Refuse,
        },
        reverse: settings.flag("cutover", "reverse"),
        hooks: Hook::ALL
            .into_iter()
            .map(|hook| (hook, settings.text("cutover", hook.word())))
            .filter(|(_, path)| !path.is_empty())
            .map(|(hook, path)| (hook, PathBuf::from(path)))
            .collect(),
        hook_timeout: settings.time("cutover", "hook_timeout"),
    }
}

/// 20603 is the default of RedisShake's file and 0 that of its program: both mean that nobody chose.
fn module(settings: &mut Settings) {
    if settings.value("module", "target_mbbloom_version").is_some()
        && ![0, 20603].contains(&settings.number("module", "target_mbbloom_version"))
    {
        settings.problem(
            settings.at("module", "target_mbbloom_version"),
            "not supported yet: `target_mbbloom_version` in [module]",
            "remove it: Bloom filters are handed over as they are, so both sides need the same module version",
        );
    }
}

/// Keys that are accepted for RedisShake's sake and do nothing.
fn ignored(settings: &Settings, notices: &mut Vec<String>) {
    if settings.number("advanced", "pprof_port") != 0 {
        notices.push("pprof_port is ignored: it belongs to the Go runtime of RedisShake.".to_owned());
    }
    let log_keys: Vec<_> = ["log_rotation", "log_max_size", "log_max_age", "log_max_backups", "log_compress"]
        .into_iter()
        .filter(|key| settings.at("advanced", key).is_some())
        .collect();
    if !log_keys.is_empty() {
        notices.push(format!("Ignored, because the log file is not rotated: {}.", log_keys.join(", ")));
    }
    if settings.at("advanced", "target_redis_max_qps").is_some() {
        notices.push(
            "target_redis_max_qps is ignored: the speed is limited only by the throttle, which can be changed while it runs."
                .to_owned(),
        );
    }
}

fn advanced(settings: &Settings, db_map: DbMap) -> Advanced {
    const SECTION: &str = "advanced";
    let number = |key| settings.number(SECTION, key);
    Advanced {
        dir: PathBuf::from(settings.text(SECTION, "dir")),
        ncpu: usize::try_from(number("ncpu")).unwrap_or_default(),
        status_port: u16::try_from(number("status_port")).unwrap_or_default(),
        log_file: PathBuf::from(settings.text(SECTION, "log_file")),
        log_level: match settings.text(SECTION, "log_level") {
            "debug" => LogLevel::Debug,
            "warn" => LogLevel::Warn,
            _ => LogLevel::Info,
        },
        log_interval: Duration::from_secs(number("log_interval")),
        on_existing_key: match settings.text(SECTION, "rdb_restore_command_behavior") {
            "rewrite" => OnExistingKey::Rewrite,
            "skip" => OnExistingKey::Skip,
            _ => OnExistingKey::Panic,
        },
        pipeline_count_limit: usize::try_from(number("pipeline_count_limit")).unwrap_or(usize::MAX),
        max_querybuf_len: number("target_redis_client_max_querybuf_len"),
        max_bulk_len: number("target_redis_proto_max_bulk_len"),
        empty_db_before_sync: settings.flag(SECTION, "empty_db_before_sync"),
        db_map,
    }
}
