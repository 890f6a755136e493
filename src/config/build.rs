//! From checked single values to the [`Plan`]: what must be there, what excludes what, what the operator should know.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cutover::{Hook, SourceAfter};

use super::keys::{Role, SECTIONS};
use super::value::Value;
use super::{
    Address, Advanced, Cutover, Endpoint, Filter, LogLevel, OnBadValue, OnExistingKey, OnFullResync,
    OnKeyless, Outside, Plan, Policy, Reader, Secret, Settings, Spool, SyncReader, Tls, Writer,
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
            endpoint(settings, "redis_writer", outside, &mut notices)
                .map(|endpoint| Writer { endpoint, cluster })
        }
        _ => None,
    };
    if let (Some(Reader::Sync(reader)), Some(writer)) = (&reader, &writer) {
        different_servers(settings, &reader.endpoint.address, &writer.endpoint.address);
    }
    let clusters = matches!(&reader, Some(Reader::Sync(reader)) if reader.cluster)
        || writer.as_ref().is_some_and(|writer| writer.cluster);
    if clusters && settings.flag("cutover", "reverse") {
        settings.problem(
            settings.at("cutover", "reverse"),
            "not supported yet: a reverse link from or to a cluster",
            "write `reverse = false`",
        );
    }
    module(settings);
    ignored(settings, &mut notices);
    Some(Plan {
        reader: reader?,
        writer: writer?,
        filter: Filter {
            allow_db: settings.databases("filter", "allow_db"),
            block_db: settings.databases("filter", "block_db"),
        },
        advanced: advanced(settings),
        spool: Spool {
            max_bytes: settings.number("spool", "max_bytes"),
            min_free_bytes: settings.number("spool", "min_free_bytes"),
        },
        policy: Policy {
            on_full_resync: match settings.text("policy", "on_full_resync") {
                "stop" => OnFullResync::Stop,
                _ => OnFullResync::Resync,
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
    let endpoint = endpoint(settings, SECTION, outside, notices)?;
    Some(SyncReader {
        endpoint,
        cluster: settings.flag(SECTION, "cluster"),
        sync_rdb,
        sync_aof,
        full_sync_parallel: settings.number(SECTION, "full_sync_parallel") as usize,
    })
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

fn endpoint(
    settings: &mut Settings,
    section: &'static str,
    outside: &Outside<'_>,
    notices: &mut Vec<String>,
) -> Option<Endpoint> {
    let address = address(settings, section);
    let username = settings.text(section, "username");
    let username = (!username.is_empty()).then(|| username.to_owned());
    let password = password(settings, section, outside);
    let tls = tls(settings, section, address.as_ref(), notices);
    Some(Endpoint { address: address?, username, password, tls })
}

fn address(settings: &mut Settings, section: &'static str) -> Option<Address> {
    if let Some(Value::Address(Some(address))) = settings.value(section, "address") {
        return Some(address.clone());
    }
    let at = settings.at(section, "address");
    let was_wrong = at.is_some() && settings.value(section, "address").is_none();
    let sentinel = if section == "sync_reader" { "sync_reader.sentinel" } else { "redis_writer.sentinel" };
    // Then the address was left empty on purpose, and the sentinel is what has to be changed.
    let from_sentinel =
        (section == "redis_writer" && settings.flag(section, "sentinel")) || settings.is_changed(sentinel);
    if !was_wrong && !from_sentinel && !settings.meant.contains(&format!("{section}.address")) {
        let at = at.or_else(|| settings.sections.get(section).cloned());
        settings.problem(
            at,
            format!("`address` is missing in [{section}]"),
            "add `address = \"host:port\"` below it (or \"unix:/path\" for a Unix socket)",
        );
    }
    None
}

fn password(settings: &mut Settings, section: &'static str, outside: &Outside<'_>) -> Option<Secret> {
    let password = settings.text(section, "password").to_owned();
    let file = settings.text(section, "password_file").to_owned();
    if file.is_empty() {
        return (!password.is_empty()).then(|| Secret::new(password));
    }
    let at = settings.at(section, "password_file");
    if !password.is_empty() {
        settings.problem(at, "`password` and `password_file` are both set", "remove one of them");
        return None;
    }
    match (outside.read_file)(Path::new(&file)) {
        Ok(text) => {
            // Editors and `echo` end a file with a line break that nobody means.
            let text = text.strip_suffix('\n').unwrap_or(&text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if text.is_empty() {
                settings.problem(
                    at,
                    "the password file is empty",
                    "write the password into it, or remove the key",
                );
                return None;
            }
            Some(Secret::new(text))
        }
        Err(why) => {
            let help =
                "check the path (a relative one begins at the working directory) and who may read the file";
            settings.problem(at, format!("the password file cannot be read: {why}"), help);
            None
        }
    }
}

fn tls(
    settings: &mut Settings,
    section: &'static str,
    address: Option<&Address>,
    notices: &mut Vec<String>,
) -> Option<Tls> {
    let config = if section == "sync_reader" { "sync_reader.tls_config" } else { "redis_writer.tls_config" };
    let text = |key| Some(settings.text(config, key)).filter(|text| !text.is_empty());
    let tls = Tls {
        insecure: settings.flag(section, "tls_insecure"),
        ca_cert: text("ca_cert").map(PathBuf::from),
        cert: text("cert").map(PathBuf::from),
        key: text("key").map(PathBuf::from),
        server_name: text("server_name").map(str::to_owned),
    };
    if !settings.flag(section, "tls") {
        if tls != Tls::default() {
            notices.push(format!(
                "[{section}] tls = false: the connection is not encrypted, and tls_config and tls_insecure have no effect."
            ));
        }
        return None;
    }
    if matches!(address, Some(Address::Unix(_))) {
        settings.problem(
            settings.at(section, "tls"),
            "there is no TLS over a Unix socket",
            "write `tls = false`, or the TCP address",
        );
    }
    if tls.cert.is_some() != tls.key.is_some() {
        let (has, lacks) = if tls.cert.is_some() { ("cert", "key") } else { ("key", "cert") };
        settings.problem(
            settings.at(config, has),
            format!("`{has}` without `{lacks}`: a client certificate needs both"),
            format!("add `{lacks}`, or remove `{has}`"),
        );
    }
    notices.push(if tls.insecure {
        format!("[{section}] tls_insecure = true accepts any certificate: whoever is in between can read and change everything.")
    } else {
        format!(
            "[{section}] tls = true verifies the server's certificate, which RedisShake does not by default; \
             tls_config.ca_cert names the authority to trust, tls_insecure = true switches it off."
        )
    });
    Some(tls)
}

/// Copying a server onto itself would at best loop and at worst empty it.
fn different_servers(settings: &mut Settings, source: &Address, destination: &Address) {
    let plain = |address: &Address| match address {
        Address::Tcp { host, port } => {
            let host = host.to_lowercase();
            let host = if ["localhost", "127.0.0.1", "::1"].contains(&host.as_str()) {
                "localhost".into()
            } else {
                host
            };
            Address::Tcp { host, port: *port }
        }
        unix => unix.clone(),
    };
    if plain(source) == plain(destination) {
        settings.problem(
            settings.at("redis_writer", "address"),
            "source and destination are the same server",
            "write the address of the other server",
        );
    }
}

fn cutover(settings: &mut Settings) -> Cutover {
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

fn advanced(settings: &Settings) -> Advanced {
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
    }
}
