//! From the keys of one side to its [`Endpoint`]: which server, or who knows which; credentials; TLS.

use std::path::{Path, PathBuf};

use super::value::Value;
use super::{Address, AddressMap, Endpoint, Outside, Secret, Sentinel, Settings, Tls};

/// The sections of one side. The nested ones have names of their own, because keys are looked up by whole names.
struct Sections {
    side: &'static str,
    tls: &'static str,
    sentinel: &'static str,
    sentinel_tls: &'static str,
}

const SOURCE: Sections = Sections {
    side: "sync_reader",
    tls: "sync_reader.tls_config",
    sentinel: "sync_reader.sentinel",
    sentinel_tls: "sync_reader.sentinel.tls_config",
};
const DESTINATION: Sections = Sections {
    side: "redis_writer",
    tls: "redis_writer.tls_config",
    sentinel: "redis_writer.sentinel",
    sentinel_tls: "redis_writer.sentinel.tls_config",
};

/// The endpoint of `[sync_reader]` or `[redis_writer]`; `None` when it names no server (a problem says so).
pub(super) fn endpoint(
    settings: &mut Settings,
    side: &'static str,
    outside: &Outside<'_>,
    notices: &mut Vec<String>,
) -> Option<Endpoint> {
    let sections = if side == SOURCE.side { &SOURCE } else { &DESTINATION };
    let username = username(settings, side);
    let password = password(settings, side, outside);
    let tls = server_tls(settings, sections, outside, notices);
    let address_map = match settings.value(side, "address_map") {
        Some(Value::AddressMap(map)) => map.clone(),
        _ => AddressMap::default(),
    };
    let cluster = settings.flag(side, "cluster");
    if let Some(sentinel) = sentinel(settings, sections, outside, notices, tls.as_ref()) {
        let sentinel = sentinel?;
        if cluster {
            settings.problem(
                settings.at(side, "cluster"),
                format!("[{side}] names both a cluster and sentinels"),
                "remove one of the two: a cluster fails over by itself, without sentinels",
            );
        }
        let first = sentinel.addresses.first()?;
        let address = Address::Named(format!("{}@{first}", sentinel.master));
        return Some(Endpoint {
            address,
            seeds: Vec::new(),
            sentinel: Some(Box::new(sentinel)),
            address_map,
            username,
            password,
            tls: tls.map(Box::new),
        });
    }
    let mut addresses = settings.addresses(side, "address").into_iter();
    let Some(address) = addresses.next() else {
        missing_address(settings, side);
        return None;
    };
    let seeds: Vec<Address> = addresses.collect();
    if !seeds.is_empty() && !cluster {
        settings.problem(
            settings.at(side, "address"),
            "this is more than one address",
            "write the address of one server. Several are nodes of a cluster (`cluster = true`), or sentinels \
             (their addresses belong to the section of the sentinel)",
        );
    }
    Some(Endpoint { address, seeds, sentinel: None, address_map, username, password, tls: tls.map(Box::new) })
}

fn missing_address(settings: &mut Settings, side: &'static str) {
    let at = settings.at(side, "address");
    let was_wrong = at.is_some() && settings.value(side, "address").is_none();
    if was_wrong || settings.meant.contains(&format!("{side}.address")) {
        return;
    }
    let at = at.or_else(|| settings.sections.get(side).cloned());
    settings.problem(
        at,
        format!("`address` is missing in [{side}]"),
        "add `address = \"host:port\"` below it (or \"unix:/path\" for a Unix socket)",
    );
}

/// The sentinels, in either spelling; `Some(None)` when they are meant and not all is there (a problem says so).
fn sentinel(
    settings: &mut Settings,
    sections: &Sections,
    outside: &Outside<'_>,
    notices: &mut Vec<String>,
    server_tls: Option<&Tls>,
) -> Option<Option<Sentinel>> {
    let side = sections.side;
    if side == DESTINATION.side && settings.flag(side, "sentinel") {
        return Some(sentinel_in_address(settings, server_tls));
    }
    if side == DESTINATION.side && !settings.text(side, "master").is_empty() {
        notices.push(format!("[{side}] master has no effect without sentinel = true."));
    }
    let section = sections.sentinel;
    if !settings.is_changed(section) && !settings.is_changed(sections.sentinel_tls) {
        return None;
    }
    if !settings.addresses(side, "address").is_empty() {
        notices.push(format!("[{side}] address has no effect: the sentinels say where the master is."));
    }
    let master = settings.text(section, "master_name").to_owned();
    let addresses = settings.addresses(section, "address");
    let mut complete = true;
    for (key, missing, help) in [
        (
            "master_name",
            master.is_empty(),
            "add `master_name = \"mymaster\"`, the name that the sentinels know",
        ),
        ("address", addresses.is_empty(), "add `address = \"host:26379,host:26379\"`, the sentinels"),
    ] {
        if missing {
            complete = false;
            // What was written wrongly has a problem of its own.
            if settings.value(section, key).is_some() && !settings.meant.contains(&format!("{section}.{key}"))
            {
                let at = settings.at(section, key).or_else(|| settings.sections.get(section).cloned());
                settings.problem(at, format!("`{key}` is missing in [{section}]"), help);
            }
        }
    }
    let username = username(settings, section);
    let password = password(settings, section, outside);
    let tls = sentinel_tls(settings, sections, outside);
    Some(complete.then_some(Sentinel { master, addresses, username, password, tls }))
}

/// `sentinel = true`, with `address` and `master` beside it. In this spelling RedisShake gives sentinels no credentials, and
/// TLS if the server has it.
fn sentinel_in_address(settings: &mut Settings, server_tls: Option<&Tls>) -> Option<Sentinel> {
    let side = DESTINATION.side;
    let addresses = settings.addresses(side, "address");
    if addresses.is_empty() {
        missing_address(settings, side);
    }
    let master = settings.text(side, "master").to_owned();
    if master.is_empty() && settings.value(side, "master").is_some() {
        settings.problem(
            settings.at(side, "sentinel"),
            "`master` is missing beside `sentinel = true`",
            "add `master = \"mymaster\"`, the name that the sentinels know",
        );
    }
    if addresses.is_empty() || master.is_empty() {
        return None;
    }
    Some(Sentinel { master, addresses, username: None, password: None, tls: server_tls.cloned() })
}

fn username(settings: &Settings, section: &'static str) -> Option<String> {
    Some(settings.text(section, "username")).filter(|name| !name.is_empty()).map(str::to_owned)
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

fn server_tls(
    settings: &mut Settings,
    sections: &Sections,
    outside: &Outside<'_>,
    notices: &mut Vec<String>,
) -> Option<Tls> {
    let section = sections.side;
    let tls = tls_of(settings, sections.tls, settings.flag(section, "tls_insecure"));
    if !settings.flag(section, "tls") {
        if tls != Tls::default() {
            notices.push(format!(
                "[{section}] tls = false: the connection is not encrypted, and tls_config and tls_insecure have no effect."
            ));
        }
        return None;
    }
    must_be_fit(settings, sections.tls, section, &tls, outside);
    if settings.addresses(section, "address").iter().any(|address| matches!(address, Address::Unix(_))) {
        settings.problem(
            settings.at(section, "tls"),
            "there is no TLS over a Unix socket",
            "write `tls = false`, or the TCP address",
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

/// TLS towards sentinels: what their own `tls_config` says, or what the one of the server says.
fn sentinel_tls(settings: &mut Settings, sections: &Sections, outside: &Outside<'_>) -> Option<Tls> {
    if !settings.flag(sections.sentinel, "tls") {
        return None;
    }
    let insecure = settings.flag(sections.side, "tls_insecure");
    let own = settings.is_changed(sections.sentinel_tls);
    let config = if own { sections.sentinel_tls } else { sections.tls };
    let tls = tls_of(settings, config, insecure);
    // Else it has been looked at for the server.
    if own || !settings.flag(sections.side, "tls") {
        must_be_fit(settings, config, sections.sentinel, &tls, outside);
    }
    Some(tls)
}

/// Looks at the files of a TLS section, which `tls` in `section` has switched on.
fn must_be_fit(
    settings: &mut Settings,
    config: &'static str,
    section: &'static str,
    tls: &Tls,
    outside: &Outside<'_>,
) {
    // Of the two without each other something is said already.
    if tls.cert.is_some() == tls.key.is_some()
        && let Err(unfit) = (outside.check_tls)(tls)
    {
        let at = settings.at(config, unfit.key).or_else(|| settings.at(section, "tls"));
        settings.problem(at, format!("`{}`: {}", unfit.key, unfit.message), unfit.help);
    }
}

fn tls_of(settings: &mut Settings, config: &'static str, insecure: bool) -> Tls {
    let text = |key| Some(settings.text(config, key)).filter(|text| !text.is_empty());
    let tls = Tls {
        insecure,
        ca_cert: text("ca_cert").map(PathBuf::from),
        cert: text("cert").map(PathBuf::from),
        key: text("key").map(PathBuf::from),
        server_name: text("server_name").map(str::to_owned),
    };
    if tls.cert.is_some() != tls.key.is_some() {
        let (has, lacks) = if tls.cert.is_some() { ("cert", "key") } else { ("key", "cert") };
        settings.problem(
            settings.at(config, has),
            format!("`{has}` without `{lacks}`: a client certificate needs both"),
            format!("add `{lacks}`, or remove `{has}`"),
        );
    }
    tls
}

/// Copying a server onto itself would at best loop and at worst empty it.
pub(super) fn different_servers(settings: &mut Settings, source: &Address, destination: &Address) {
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
        other => other.clone(),
    };
    if plain(source) == plain(destination) {
        settings.problem(
            settings.at("redis_writer", "address"),
            "source and destination are the same server",
            "write the address of the other server",
        );
    }
}
