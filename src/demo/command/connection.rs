//! Commands about the connection and the server itself.

use super::super::session::ReplicaWish;
use super::super::store::DATABASES;
use super::keys::glob;
use super::*;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn unknown_subcommand(command: &str, subcommand: &[u8]) -> Reply {
    Reply::err(format!("unknown subcommand '{}'. Try {command} HELP.", shorten(subcommand)))
}

pub(super) fn ping(_call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    match argv.get(1..).unwrap_or_default() {
        [] => Ok(Reply::simple("PONG")),
        [message] => Ok(Reply::Bulk(message.clone())),
        _ => Err(wrong_arity("ping")),
    }
}

pub(super) fn echo(_call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    Ok(Reply::Bulk(arg(argv, 1)?.clone()))
}

pub(super) fn quit(call: &mut Call<'_>, _argv: &[Vec<u8>]) -> Outcome {
    call.session.closing = true;
    Ok(Reply::OK)
}

pub(super) fn reset(call: &mut Call<'_>, _argv: &[Vec<u8>]) -> Outcome {
    call.session.reset(call.node.credentials.is_none());
    Ok(Reply::simple("RESET"))
}

pub(super) fn select(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let db = parse_integer(arg(argv, 1)?)?;
    if call.session.select(db) { Ok(Reply::OK) } else { Err(Reply::err("DB index is out of range")) }
}

/// `AUTH password` or `AUTH user password`.
pub(super) fn auth(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    match argv.get(1..).unwrap_or_default() {
        [password] => log_in(call, b"default", password),
        [user, password] => log_in(call, user, password),
        _ => Err(syntax_error()),
    }
}

fn log_in(call: &mut Call<'_>, user: &[u8], password: &[u8]) -> Outcome {
    match &call.node.credentials {
        None if user == b"default" => Err(Reply::err(
            "AUTH <password> called without any password configured for the default user. Are you sure your \
             configuration is correct?",
        )),
        Some((known_user, known_password))
            if known_user.as_bytes() == user && known_password.as_bytes() == password =>
        {
            call.session.authenticated = true;
            Ok(Reply::OK)
        }
        _ => Err(Reply::Error("WRONGPASS invalid username-password pair or user is disabled.".to_owned())),
    }
}

/// `HELLO [2|3] [AUTH user password] [SETNAME name]`
pub(super) fn hello(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let mut resp3 = call.session.resp3;
    if let Some(version) = argv.get(1) {
        resp3 = match integer(version) {
            Some(2) => false,
            Some(3) => true,
            _ => return Err(Reply::Error("NOPROTO unsupported protocol version".to_owned())),
        };
    }
    let mut options = argv.get(2..).unwrap_or_default().iter();
    while let Some(option) = options.next() {
        let mut value = || options.next().ok_or_else(syntax_error);
        if is(option, "AUTH") {
            let user = value()?;
            log_in(call, user, value()?)?;
        } else if is(option, "SETNAME") {
            call.session.name.clone_from(value()?);
        } else {
            return Err(syntax_error());
        }
    }
    if !call.session.authenticated {
        return Err(Reply::Error(
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH \
             <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the \
             same time"
                .to_owned(),
        ));
    }
    call.session.resp3 = resp3;
    let pair = |name: &str, value: Reply| (Reply::bulk(name), value);
    Ok(Reply::Map(vec![
        pair("server", Reply::bulk("redis")),
        pair("version", Reply::bulk(server_version(call.node.rdb_version))),
        pair("proto", Reply::Integer(if resp3 { 3 } else { 2 })),
        pair("id", Reply::Integer(call.session.id as i64)),
        pair("mode", Reply::bulk("standalone")),
        pair("role", Reply::bulk("master")),
        pair("modules", Reply::Array(Vec::new())),
    ]))
}

pub(super) fn client(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let action = arg(argv, 1)?;
    match action.to_ascii_uppercase().as_slice() {
        b"SETNAME" => {
            call.session.name.clone_from(arg(argv, 2)?);
            Ok(Reply::OK)
        }
        b"GETNAME" => Ok(Reply::Bulk(call.session.name.clone())),
        b"ID" => Ok(Reply::Integer(call.session.id as i64)),
        b"SETINFO" | b"NO-EVICT" | b"NO-TOUCH" | b"REPLY" => Ok(Reply::OK),
        b"PAUSE" => {
            let ms = u64::try_from(parse_integer(arg(argv, 2)?)?)
                .map_err(|_| Reply::err("timeout is negative"))?;
            let all = match argv.get(3) {
                Some(mode) if is(mode, "WRITE") => false,
                Some(mode) if !is(mode, "ALL") => {
                    return Err(Reply::err("CLIENT PAUSE mode must be WRITE or ALL"));
                }
                _ => true,
            };
            call.node.paused = Some((call.now_ms.saturating_add(ms), all));
            Ok(Reply::OK)
        }
        b"UNPAUSE" => {
            call.node.paused = None;
            Ok(Reply::OK)
        }
        _ => Err(unknown_subcommand("CLIENT", action)),
    }
}

/// Clients ask for the table at start; an empty one suits them.
pub(super) fn command(_call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    match argv.get(1) {
        Some(action) if is(action, "COUNT") => Ok(Reply::Integer(TABLE.len() as i64)),
        _ => Ok(Reply::Array(Vec::new())),
    }
}

pub(super) fn cluster(_call: &mut Call<'_>, _argv: &[Vec<u8>]) -> Outcome {
    Err(Reply::err("This instance has cluster support disabled"))
}

pub(super) fn config(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let action = arg(argv, 1)?;
    match action.to_ascii_uppercase().as_slice() {
        b"GET" => {
            let patterns: Vec<Vec<u8>> =
                argv.iter().skip(2).map(|pattern| pattern.to_ascii_lowercase()).collect();
            let wanted = |name: &str| patterns.iter().any(|pattern| glob(pattern, name.as_bytes()));
            let found = call.node.config.iter().filter(|(name, _)| wanted(name));
            Ok(Reply::Map(
                found
                    .map(|(name, value)| (Reply::bulk(name.as_str()), Reply::bulk(value.as_str())))
                    .collect(),
            ))
        }
        b"SET" => {
            let (name, value) = (text(&arg(argv, 2)?.to_ascii_lowercase()), text(arg(argv, 3)?));
            match call.node.config.get_mut(&name) {
                Some(slot) => {
                    *slot = value;
                    Ok(Reply::OK)
                }
                None => Err(Reply::err(format!(
                    "Unknown option or number of arguments for CONFIG SET - '{name}'"
                ))),
            }
        }
        b"RESETSTAT" => Ok(Reply::OK),
        b"REWRITE" => Err(Reply::err("The server is running without a config file")),
        _ => Err(unknown_subcommand("CONFIG", action)),
    }
}

/// No functions are kept here, but asking for them is no error.
pub(super) fn function(_call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let action = arg(argv, 1)?;
    match action.to_ascii_uppercase().as_slice() {
        b"LIST" => Ok(Reply::Array(Vec::new())),
        b"FLUSH" => Ok(Reply::OK),
        b"LOAD" | b"RESTORE" | b"DELETE" => Err(Reply::err("the demo's servers keep no functions")),
        _ => Err(unknown_subcommand("FUNCTION", action)),
    }
}

pub(super) fn memory(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let action = arg(argv, 1)?;
    if !is(action, "USAGE") {
        return Err(unknown_subcommand("MEMORY", action));
    }
    let key = arg(argv, 2)?;
    let entry = call.node.store.get(call.session.db, key, call.now_ms);
    let size = entry.map(|entry| super::super::rdb_writer::dump(&entry.value, 11).len() + key.len() + 64);
    Ok(size.map_or(Reply::Null, |size| Reply::Integer(size as i64)))
}

/// Nobody listens here; replicas are told all the same, as by Redis.
pub(super) fn publish(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    call.node.propagate(&[(call.session.db, argv.to_vec())]);
    Ok(Reply::Integer(0))
}

pub(super) fn time(call: &mut Call<'_>, _argv: &[Vec<u8>]) -> Outcome {
    let (seconds, micros) = (call.now_ms / 1_000, call.now_ms % 1_000 * 1_000);
    Ok(Reply::Array(vec![Reply::bulk(seconds.to_string()), Reply::bulk(micros.to_string())]))
}

pub(super) fn role(call: &mut Call<'_>, _argv: &[Vec<u8>]) -> Outcome {
    let replicas = call.node.feed.replicas.values().map(|replica| {
        Reply::Array(vec![
            Reply::bulk(replica.ip.as_str()),
            Reply::bulk(replica.port.to_string()),
            Reply::bulk(replica.acknowledged.to_string()),
        ])
    });
    let replicas = Reply::Array(replicas.collect());
    Ok(Reply::Array(vec![Reply::bulk("master"), Reply::Integer(call.node.feed.offset() as i64), replicas]))
}

/// What comes before PSYNC. One unknown option ends the command with an error, and the pairs before it count
/// (`replconfCommand`, replication.c). ACKs are read elsewhere: on an ordinary connection they are passed over.
pub(super) fn replconf(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let pairs = argv.get(1..).unwrap_or_default();
    if pairs.len() % 2 != 0 {
        return Err(syntax_error());
    }
    let wish: &mut ReplicaWish = &mut call.session.replica;
    for pair in pairs.chunks_exact(2) {
        let [option, value] = pair else { continue };
        match option.to_ascii_lowercase().as_slice() {
            b"listening-port" => {
                let port = parse_integer(value)?;
                wish.port = u16::try_from(port).map_err(|_| not_an_integer())?;
            }
            b"capa" if is(value, "eof") => wish.eof = true,
            b"capa" if is(value, "psync2") => wish.psync2 = true,
            b"capa" | b"ip-address" => {}
            b"rdb-only" | b"rdb-filter-only" => {
                return Err(Reply::err(format!(
                    "REPLCONF {} is not supported by the demo's servers",
                    shorten(option)
                )));
            }
            b"ack" | b"getack" => return Ok(Reply::Nothing),
            _ => return Err(Reply::err(format!("Unrecognized REPLCONF option: {}", shorten(option)))),
        }
    }
    Ok(Reply::OK)
}

/// The Redis release that speaks this RDB version.
pub fn server_version(rdb_version: u16) -> &'static str {
    match rdb_version {
        ..=9 => "6.2.14",
        10 => "7.0.15",
        _ => "7.2.4",
    }
}

pub(super) fn info(call: &mut Call<'_>, argv: &[Vec<u8>]) -> Outcome {
    let wanted: Vec<String> = argv.iter().skip(1).map(|name| text(&name.to_ascii_lowercase())).collect();
    let all = wanted.is_empty()
        || wanted.iter().any(|name| matches!(name.as_str(), "all" | "default" | "everything"));
    let sections = [
        ("Server", info_server(call)),
        ("Clients", info_clients(call)),
        ("Memory", info_memory(call)),
        ("Persistence", "loading:0\r\nrdb_bgsave_in_progress:0\r\naof_enabled:0\r\n".to_owned()),
        ("Replication", info_replication(call)),
        ("Cluster", "cluster_enabled:0\r\n".to_owned()),
        ("Keyspace", info_keyspace(call)),
    ];
    let chosen = sections.iter().filter(|(name, _)| all || wanted.contains(&name.to_lowercase()));
    let parts: Vec<String> = chosen.map(|(name, body)| format!("# {name}\r\n{body}")).collect();
    Ok(Reply::bulk(parts.join("\r\n")))
}

fn info_server(call: &Call<'_>) -> String {
    let uptime = call.now_ms.saturating_sub(call.node.started_ms) / 1_000;
    format!(
        "redis_version:{}\r\nredis_mode:standalone\r\nos:{}\r\narch_bits:64\r\nprocess_id:{}\r\nrun_id:{}\r\n\
         tcp_port:{}\r\nuptime_in_seconds:{uptime}\r\n",
        server_version(call.node.rdb_version),
        std::env::consts::OS,
        std::process::id(),
        call.node.run_id,
        call.node.port,
    )
}

fn info_clients(call: &Call<'_>) -> String {
    format!("total_connections_received:{}\r\nblocked_clients:0\r\n", call.node.connections)
}

fn info_memory(call: &Call<'_>) -> String {
    // An estimate: the servers of the demo share this process's memory.
    let used = call.node.store.total() * 128;
    format!("used_memory:{used}\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n")
}

fn info_replication(call: &Call<'_>) -> String {
    let feed = &call.node.feed;
    let mut text = format!("role:master\r\nconnected_slaves:{}\r\n", feed.replicas.len());
    for (index, replica) in feed.replicas.values().enumerate() {
        let lag = call.now_ms.saturating_sub(replica.acknowledged_ms) / 1_000;
        text += &format!(
            "slave{index}:ip={},port={},state={},offset={},lag={lag}\r\n",
            replica.ip,
            replica.port,
            replica.state.word(),
            replica.acknowledged,
        );
    }
    let (previous, until) =
        feed.previous().map_or(("0".repeat(40), -1), |(id, until)| (id.to_owned(), until as i64));
    let (first, length) = feed.backlog_span();
    text += &format!(
        "master_failover_state:no-failover\r\nmaster_replid:{}\r\nmaster_replid2:{previous}\r\nmaster_repl_offset:{}\r\n\
         second_repl_offset:{until}\r\nrepl_backlog_active:{}\r\nrepl_backlog_size:{}\r\n\
         repl_backlog_first_byte_offset:{first}\r\nrepl_backlog_histlen:{length}\r\n",
        feed.replid(),
        feed.offset(),
        u8::from(feed.is_active()),
        feed.backlog_limit,
    );
    text
}

fn info_keyspace(call: &Call<'_>) -> String {
    let used = (0..DATABASES).filter(|db| call.node.store.len(*db) > 0);
    used.map(|db| {
        let (keys, expires) = (call.node.store.len(db), call.node.store.len_expiring(db));
        format!("db{db}:keys={keys},expires={expires},avg_ttl=0\r\n")
    })
    .collect()
}
