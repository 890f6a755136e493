//! `shake.toml`: what is accepted, what it means, and exactly what is said about what is wrong.
//!
//! `tests/fixtures/config/wrong/<rule>.toml` is a file that breaks a rule, `<rule>.txt` beside it what the operator
//! then reads. Set `SHAKEDECK_BLESS=1` to write the `.txt` files anew, and read the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use shakedeck::config::*;
use shakedeck::cutover::{Hook, SourceAfter};
use shakedeck::verify::Mode;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/config");
const SHAKE_TOML: &str = include_str!("../../shake.toml");
const MINIMAL: &str = r#"
[sync_reader]
address = "127.0.0.1:6379"
[redis_writer]
address = "127.0.0.1:6380"
"#;

fn environment(name: &str) -> Option<String> {
    let value = match name {
        "SHAKE_SRC_ADDRESS" => "127.0.0.1:6379",
        "SHAKE_DST_ADDRESS" => "127.0.0.1:6380",
        "PASSWORD" => "s3cret\"with = quotes\n[advanced]",
        "BROKEN_ADDRESS" => "me:hunter2@10.0.0.2:6379",
        "WORD" => "hunter2",
        "PORT" => "8080",
        "YES" => "true",
        "LIMIT" => "2 GiB",
        _ => return None,
    };
    Some(value.to_owned())
}

fn file(path: &Path) -> Result<String, String> {
    match path.to_str() {
        Some("/etc/redis.pass") => Ok("from-the-file\r\n".to_owned()),
        Some("/etc/empty.pass") => Ok("\n".to_owned()),
        _ => Err("No such file or directory".to_owned()),
    }
}

fn outside() -> Outside<'static> {
    Outside { env: &environment, read_file: &file, check_tls: &|_| Ok(()) }
}

fn read(text: &str) -> Result<Plan, ConfigErrors> {
    parse("shake.toml", text, &outside())
}

/// The minimal file with more lines behind it.
fn minimal_and(more: &str) -> Plan {
    read(&format!("{MINIMAL}\n{more}")).unwrap()
}

fn messages(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

#[test]
fn wrong_files_are_answered_word_by_word() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(format!("{FIXTURES}/wrong"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 15, "the fixtures are gone: {files:?}");
    for toml in files {
        let name = toml.file_name().unwrap().to_str().unwrap();
        let errors = parse(name, &std::fs::read_to_string(&toml).unwrap(), &outside()).unwrap_err();
        assert!(!errors.0.is_empty());
        let said = format!("{errors}\n");
        for secret in ["hunter", "secretpsyncname", "1234567890"] {
            assert!(!said.contains(secret), "{name} shows a secret:\n{said}");
        }
        let expected = toml.with_extension("txt");
        if std::env::var_os("SHAKEDECK_BLESS").is_some() {
            std::fs::write(&expected, &said).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(said, expected, "{name}: expected\n{expected}\nbut was\n{said}");
    }
}

#[test]
fn an_error_has_place_message_and_cure() {
    insta::assert_snapshot!(messages("[sync_reader]\naddress = \"10.0.0.1:6379\"\n  tls = 'yes'\n[redis_writer]\naddress = \"10.0.0.2:6379\"\n"), @r"
    shake.toml:3:9: `tls`: expected true or false, found a string
      3 |   tls = 'yes'
        |         ^^^^^
      help: write `true` or `false`, without quotes
    ");
    let errors = read("[sync_reader]\naddress = 1\n").unwrap_err();
    let place = errors.0.iter().find_map(|error| error.place.clone()).unwrap();
    assert_eq!((place.line, place.column), (2, 11));
}

#[test]
fn the_file_in_the_root_is_exactly_the_defaults() {
    assert_eq!(read(SHAKE_TOML).unwrap(), read(MINIMAL).unwrap());
}

/// Every setting of `shake.toml`, also those that are switched off, by section and key.
fn documented() -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    let mut section = String::new();
    for line in SHAKE_TOML.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if line.starts_with(' ') || line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let (key, value) =
            line.split_once(" = ").unwrap_or_else(|| panic!("neither prose nor setting: {line}"));
        let before = found.insert((section.clone(), key.to_owned()), value.to_owned());
        assert_eq!(before, None, "[{section}] {key} is there twice");
    }
    found
}

#[test]
fn the_file_in_the_root_documents_every_key_and_no_other() {
    let documented = documented();
    let known: BTreeSet<_> = known_keys().map(|key| (key.section.to_owned(), key.name.to_owned())).collect();
    let names: BTreeSet<_> = documented.keys().cloned().collect();
    assert_eq!(
        names.difference(&known).collect::<Vec<_>>(),
        Vec::<&(String, String)>::new(),
        "documented, not known"
    );
    assert_eq!(
        known.difference(&names).collect::<Vec<_>>(),
        Vec::<&(String, String)>::new(),
        "known, not documented"
    );
    for key in known_keys() {
        if let Some(default) = key.default {
            let shown = &documented[&(key.section.to_owned(), key.name.to_owned())];
            assert_eq!(shown, default, "[{}] {}", key.section, key.name);
        }
    }
}

#[test]
fn files_of_redisshake_mean_the_same() {
    let usual = read(MINIMAL).unwrap();
    for (version, querybuf) in
        [("4.0", 1_024_000_000), ("4.2", 1 << 30), ("4.4", 1 << 30), ("4-env", 1 << 30)]
    {
        let text = std::fs::read_to_string(format!("{FIXTURES}/redisshake-{version}.toml")).unwrap();
        let plan = read(&text).unwrap_or_else(|errors| panic!("{version}:\n{errors}"));
        let mut expected = usual.clone();
        expected.advanced.max_querybuf_len = querybuf;
        expected.notices = plan.notices.clone();
        assert_eq!(plan, expected, "{version}");
    }
}

#[test]
fn every_supported_key_reaches_the_plan() {
    let plan = read(
        r#"
        [sync_reader]
        address = "[2001:db8::1]:7000"
        username = "copier"
        password = "one"
        tls = true
        sync_rdb = false
        try_diskless = true
        prefer_replica = true
        full_sync_parallel = 3
        address_map = { "10.0.0.1:6379" = "127.0.0.1:17001" }
        [sync_reader.tls_config]
        ca_cert = "ca.pem"
        cert = "me.pem"
        key = "me.key"
        server_name = "redis.example"

        [redis_writer]
        address = "unix:/run/redis.sock"
        password_file = "/etc/redis.pass"
        off_reply = true

        [filter]
        allow_db = [3, 1, 1]
        block_db = [4]

        [advanced]
        dir = "/var/lib/shakedeck"
        ncpu = 3
        status_port = 9000
        log_file = "run.log"
        log_level = "debug"
        log_interval = 7
        rdb_restore_command_behavior = "rewrite"
        pipeline_count_limit = 10
        target_redis_client_max_querybuf_len = "64 MiB"
        target_redis_proto_max_bulk_len = 0
        empty_db_before_sync = false
        aws_psync = "10.0.0.1:7000@first, 10.0.0.2:7000@second,10.0.0.1:7000@third"

        [spool]
        max_bytes = "3 TB"
        min_free_bytes = 12_345

        [policy]
        on_full_resync = "stop"
        on_empty_source = "follow"
        on_bad_value = "stop"
        source_gone_after = "20m"
        on_flush = "drop"
        on_swapdb = "quarantine"
        on_function = "drop"
        on_publish = "quarantine"

        [cutover]
        max_lag_bytes = 10
        max_lag = "250ms"
        hold_for = "1m 30s"
        fence_timeout = "5s"
        drain_timeout = "6s"
        max_blocked = "7s"
        verify = "full"
        sample = 8
        hand_over = "ask"
        source_after = "hold"
        reverse = true
        on_abort = "/bin/hook"
        hook_timeout = "9s"
        "#,
    )
    .unwrap();
    let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port };
    let reader = SyncReader {
        endpoint: Endpoint {
            address: Address::Tcp { host: "2001:db8::1".to_owned(), port: 7000 },
            seeds: Vec::new(),
            sentinel: None,
            address_map: AddressMap::from_iter([(tcp("10.0.0.1", 6379), tcp("127.0.0.1", 17001))]),
            username: Some("copier".to_owned()),
            password: Some(Secret::new("one")),
            tls: Some(Box::new(Tls {
                insecure: false,
                ca_cert: Some("ca.pem".into()),
                cert: Some("me.pem".into()),
                key: Some("me.key".into()),
                server_name: Some("redis.example".to_owned()),
            })),
        },
        cluster: false,
        sync_rdb: false,
        sync_aof: true,
        prefer_replica: true,
        psync_names: [
            (tcp("10.0.0.1", 7000), Secret::new("first")),
            (tcp("10.0.0.2", 7000), Secret::new("second")),
        ]
        .into(),
        full_sync_parallel: 3,
    };
    let expected = Plan {
        reader: Reader::Sync(reader),
        writer: Writer {
            endpoint: Endpoint {
                address: Address::Unix("/run/redis.sock".into()),
                seeds: Vec::new(),
                sentinel: None,
                address_map: AddressMap::default(),
                username: None,
                password: Some(Secret::new("from-the-file")),
                tls: None,
            },
            cluster: false,
            off_reply: true,
        },
        filter: Filter { allow_db: [1, 3].into(), block_db: [4].into() },
        advanced: Advanced {
            dir: "/var/lib/shakedeck".into(),
            ncpu: 3,
            status_port: 9000,
            log_file: "run.log".into(),
            log_level: LogLevel::Debug,
            log_interval: Duration::from_secs(7),
            on_existing_key: OnExistingKey::Rewrite,
            pipeline_count_limit: 10,
            max_querybuf_len: 64 << 20,
            max_bulk_len: 0,
            empty_db_before_sync: false,
            db_map: DbMap::default(),
        },
        spool: Spool { max_bytes: 3_000_000_000_000, min_free_bytes: 12_345 },
        policy: Policy {
            on_full_resync: OnFullResync::Stop,
            on_empty_source: OnEmptySource::Follow,
            on_bad_value: OnBadValue::Stop,
            source_gone_after: Duration::from_secs(20 * 60),
            on_flush: OnKeyless::Drop,
            on_swapdb: OnKeyless::Quarantine,
            on_function: OnKeyless::Drop,
            on_publish: OnKeyless::Quarantine,
        },
        cutover: Cutover {
            max_lag_bytes: 10,
            max_lag: Duration::from_millis(250),
            hold_for: Duration::from_secs(90),
            fence_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(6),
            max_blocked: Duration::from_secs(7),
            verify: Some(Mode::Full),
            sample: 8,
            ask_to_go: true,
            source_after: SourceAfter::Hold,
            reverse: true,
            hooks: [(Hook::OnAbort, "/bin/hook".into())].into(),
            hook_timeout: Duration::from_secs(9),
        },
        notices: plan.notices.clone(),
    };
    assert_eq!(plan, expected);
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let plan = read(MINIMAL).unwrap();
    assert_eq!(plan.spool, Spool { max_bytes: 50_000_000_000, min_free_bytes: 1_000_000_000 });
    assert_eq!(
        plan.policy,
        Policy {
            on_full_resync: OnFullResync::Resync,
            on_empty_source: OnEmptySource::Wait,
            on_bad_value: OnBadValue::Quarantine,
            source_gone_after: Duration::from_secs(3600),
            on_flush: OnKeyless::Apply,
            on_swapdb: OnKeyless::Apply,
            on_function: OnKeyless::Apply,
            on_publish: OnKeyless::Drop,
        }
    );
    let cutover = Cutover {
        max_lag_bytes: 1 << 20,
        max_lag: Duration::from_secs(1),
        hold_for: Duration::from_secs(2),
        fence_timeout: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(30),
        max_blocked: Duration::from_secs(60),
        verify: Some(Mode::Count),
        sample: 10_000,
        ask_to_go: false,
        source_after: SourceAfter::Refuse,
        reverse: false,
        hooks: BTreeMap::new(),
        hook_timeout: Duration::from_secs(30),
    };
    assert_eq!(plan.cutover, cutover);
    assert_eq!(plan.advanced.on_existing_key, OnExistingKey::Panic);
    assert_eq!(plan.advanced.max_bulk_len, 512_000_000);
    assert!(!plan.advanced.empty_db_before_sync);
}

#[test]
fn an_rdb_file_is_a_reader() {
    let plan = read("[rdb_reader]\nfilepath = \"dump.rdb\"\n[redis_writer]\naddress = \"a:1\"\n").unwrap();
    assert_eq!(plan.reader, Reader::Rdb { filepath: "dump.rdb".into() });
}

#[test]
fn the_other_words_are_read_too() {
    let plan = minimal_and(
        "[advanced]\nrdb_restore_command_behavior = \"skip\"\nlog_level = \"warn\"\nempty_db_before_sync = true",
    );
    assert_eq!(plan.advanced.on_existing_key, OnExistingKey::Skip);
    assert_eq!(plan.advanced.log_level, LogLevel::Warn);
    assert!(plan.advanced.empty_db_before_sync);
    let insecure = read(&MINIMAL.replace("6380\"", "6380\"\ntls = true\ntls_insecure = true")).unwrap();
    assert_eq!(insecure.writer.endpoint.tls.as_deref(), Some(&Tls { insecure: true, ..Tls::default() }));
}

#[test]
fn variables_are_replaced_inside_strings_only() {
    let plan = minimal_and(
        "[advanced]\nstatus_port = \"${PORT}\"\nempty_db_before_sync = \"${YES}\"\ndir = \"$${PORT}/${PORT}\"\n[spool]\nmax_bytes = \"${LIMIT}\" # ${NOT_SET}",
    );
    assert_eq!(plan.advanced.status_port, 8080);
    assert!(plan.advanced.empty_db_before_sync);
    assert_eq!(plan.advanced.dir, PathBuf::from("${PORT}/8080"));
    assert_eq!(plan.spool.max_bytes, 2 << 30);
    // A value cannot break out of its string.
    let plan = read(&MINIMAL.replace("6379\"", "6379\"\npassword = \"${PASSWORD}\"")).unwrap();
    let Reader::Sync(reader) = plan.reader else { panic!("another reader") };
    assert_eq!(reader.endpoint.password.unwrap().reveal(), "s3cret\"with = quotes\n[advanced]");
}

#[test]
fn differences_from_redisshake_are_said() {
    let plan = read(
        r#"
        [sync_reader]
        address = "a:1"
        tls = true
        [redis_writer]
        address = "b:1"
        tls = true
        tls_insecure = true
        off_reply = true
        [advanced]
        pprof_port = 6060
        log_rotation = false
        log_max_size = 10
        "#,
    )
    .unwrap();
    insta::assert_snapshot!(plan.notices.join("\n"), @r"
    Transactions (MULTI/EXEC) of the source stay whole; RedisShake takes them apart.
    [sync_reader] tls = true verifies the server's certificate, which RedisShake does not by default; tls_config.ca_cert names the authority to trust, tls_insecure = true switches it off.
    off_reply = true is unsafe: commands of the stream that the destination refuses are lost, and nobody sees it. So READY is never reached, and there is no cutover. Compare both sides at the end (`shakedeck verify`).
    [redis_writer] tls_insecure = true accepts any certificate: whoever is in between can read and change everything.
    pprof_port is ignored: it belongs to the Go runtime of RedisShake.
    Ignored, because the log file is not rotated: log_rotation, log_max_size.
    ");
    let plan = read(&MINIMAL.replace("6379\"", "6379\"\ntls_config = { ca_cert = \"ca.pem\" }")).unwrap();
    insta::assert_snapshot!(plan.notices.join("\n"), @r"
    Transactions (MULTI/EXEC) of the source stay whole; RedisShake takes them apart.
    [sync_reader] tls = false: the connection is not encrypted, and tls_config and tls_insecure have no effect.
    ");
}

#[test]
fn marks_and_line_ends_of_other_systems_do_not_matter() {
    let text = format!("\u{feff}{}", MINIMAL.trim_start().replace('\n', "\r\n"));
    assert_eq!(read(&text).unwrap(), read(MINIMAL).unwrap());
    insta::assert_snapshot!(messages(&text.replace("6380", "0")), @r#"
    shake.toml:4:11: `address`: the port is not a number from 1 to 65535
      4 | address = "127.0.0.1:0"
        |           ^^^^^^^^^^^^^
      help: write "host:port", "[IPv6]:port", or "unix:/path" for a Unix socket
    "#);
}

#[test]
fn an_empty_password_file_is_an_error() {
    insta::assert_snapshot!(messages(&MINIMAL.replace("6380\"", "6380\"\npassword_file = \"/etc/empty.pass\"")), @r#"
    shake.toml:6:17: the password file is empty
      6 | password_file = "/etc/empty.pass"
        |                 ^^^^^^^^^^^^^^^^^
      help: write the password into it, or remove the key
    "#);
}

#[test]
fn later_sources_override_the_file() {
    let layer = |text| Source { name: "--set", text };
    let base = Source { name: "shake.toml", text: MINIMAL };
    let plan = parse_layers(
        &[base, layer("advanced.ncpu = 2"), layer("advanced.ncpu = 3\nspool.max_bytes = '1 GB'")],
        &outside(),
    )
    .unwrap();
    assert_eq!(plan.advanced.ncpu, 3);
    assert_eq!(plan.spool.max_bytes, 1_000_000_000);
    let errors = parse_layers(&[base, layer("advanced.ncpus = 2")], &outside()).unwrap_err();
    insta::assert_snapshot!(errors.to_string(), @r"
    --set:1:10: unknown key `ncpus` in [advanced]
      1 | advanced.ncpus = ***
        |          ^^^^^
      help: did you mean `ncpu`?
    ");
}

#[test]
fn the_same_server_is_found_under_other_names() {
    for (source, destination, same) in [
        ("127.0.0.1:1", "127.0.0.1:1", true),
        ("LOCALHOST:1", "[::1]:1", true),
        ("/run/a.sock", "unix:/run/a.sock", true),
        ("Redis.Example:1", "redis.example:1", true),
        ("127.0.0.1:1", "127.0.0.1:2", false),
        ("/run/a.sock", "/run/b.sock", false),
    ] {
        let text =
            format!("[sync_reader]\naddress = '{source}'\n[redis_writer]\naddress = '{destination}'\n");
        assert_eq!(read(&text).is_err(), same, "{source} and {destination}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a slip of the hand makes of the file: an answer, with at least one error, no panic, no secret.
    #[test]
    fn a_broken_file_gets_an_answer(at in 0..20_000usize, cut in 0..40usize, insert in "[\\[\\]{}\"'=#\n $a-z0-9éx.]{0,6}") {
        let file = SHAKE_TOML.replacen("password = \"\"", "password = \"hunter2\"", 1);
        let file = file.replacen("password = \"\"", "password = \"\"\"\nhunter2\nhunter2=\nother\"\"\"", 1);
        let mut from = at % file.len();
        while !file.is_char_boundary(from) { from -= 1 }
        let mut to = (from + cut).min(file.len());
        while !file.is_char_boundary(to) { to -= 1 }
        let text = format!("{}{insert}{}", &file[..from], &file[to..]);
        if let Err(errors) = read(&text) {
            prop_assert!(!errors.0.is_empty());
            for error in &errors.0 {
                prop_assert!(!error.help.is_empty() && !error.message.is_empty());
                if let Some(place) = &error.place {
                    prop_assert!(text.lines().count() + 1 >= place.line);
                }
            }
            let said = errors.to_string();
            prop_assert!(!said.contains("unter2"), "{said}");
        }
    }
}

/// Both spellings of RedisShake, and what belongs to whom.
#[test]
fn sentinels_are_read_in_either_spelling() {
    let plan = read(
        r#"
        [sync_reader]
        address = "10.0.0.1:6379" # RedisShake lets the sentinel win
        username = "copier"
        password = "of the server"
        tls = true
        [sync_reader.tls_config]
        ca_cert = "ca.pem"
        [sync_reader.sentinel]
        master_name = "main"
        address = "10.0.0.8:26379, 10.0.0.9:26379"
        username = "asker"
        password = "of the sentinel"
        tls = true

        [redis_writer]
        address = "10.0.1.8:26379,10.0.1.9:26379"
        sentinel = true
        master = "other"
        password = "of the server"
        "#,
    )
    .unwrap();
    let tcp = |host: &str| Address::Tcp { host: host.to_owned(), port: 26379 };
    let Reader::Sync(reader) = plan.reader else { panic!("{plan:?}") };
    assert_eq!(reader.endpoint.address.to_string(), "main@10.0.0.8:26379", "the name stays over a failover");
    assert_eq!(reader.endpoint.password, Some(Secret::new("of the server")));
    let tls = Some(Tls { ca_cert: Some("ca.pem".into()), ..Tls::default() });
    let expected = Sentinel {
        master: "main".into(),
        addresses: vec![tcp("10.0.0.8"), tcp("10.0.0.9")],
        username: Some("asker".into()),
        password: Some(Secret::new("of the sentinel")),
        tls,
    };
    assert_eq!(reader.endpoint.sentinel.as_deref(), Some(&expected));
    assert!(
        plan.notices.iter().any(|notice| notice.contains("the sentinels say where")),
        "{:?}",
        plan.notices
    );
    let expected = Sentinel {
        master: "other".into(),
        addresses: vec![tcp("10.0.1.8"), tcp("10.0.1.9")],
        username: None,
        password: None,
        tls: None,
    };
    assert_eq!(plan.writer.endpoint.sentinel.as_deref(), Some(&expected));
    assert_eq!(plan.writer.endpoint.address.to_string(), "other@10.0.1.8:26379");
}

#[test]
fn a_way_back_needs_a_user_of_its_own() {
    let with = |user: &str| {
        format!(
            "[sync_reader]\naddress = \"a:1\"\n{user}\n[redis_writer]\naddress = \"b:2\"\n[cutover]\nreverse = true"
        )
    };
    for user in ["", "username = \"default\""] {
        let said = messages(&with(user));
        assert!(said.contains("a user of its own on the source"), "{said}");
    }
    assert!(read(&with("username = \"mover\"")).unwrap().cutover.reverse);
}

#[test]
fn several_seeds_are_for_clusters_and_databases_that_meet_are_said() {
    let plan = minimal_and("");
    assert!(plan.writer.endpoint.seeds.is_empty());
    let text = "[sync_reader]\naddress = \"a:1, b:2,[::1]:3\"\ncluster = true\n[redis_writer]\naddress = \"c:4\"\n\
                [advanced]\ndb_map = { 1 = 0, 5 = 7 }\n";
    let plan = read(text).unwrap();
    assert_eq!([0, 1, 5, 6].map(|db| plan.advanced.db_map.map(db)), [0, 0, 7, 6]);
    let Reader::Sync(reader) = &plan.reader else { panic!("{plan:?}") };
    let seeds: Vec<String> = reader.endpoint.seeds.iter().map(Address::to_string).collect();
    assert_eq!(
        (reader.endpoint.address.to_string().as_str(), seeds),
        ("a:1", vec!["b:2".into(), "[::1]:3".into()])
    );
    let met: Vec<&String> = plan.notices.iter().filter(|notice| notice.starts_with("db_map")).collect();
    assert_eq!(met.len(), 2, "0 and 1 in 0, 5 and 7 in 7: {:?}", plan.notices);
    let apart = read(&format!("{text}[filter]\nblock_db = [0, 7]\n")).unwrap();
    assert!(!apart.notices.iter().any(|notice| notice.starts_with("db_map")), "{:?}", apart.notices);
}
