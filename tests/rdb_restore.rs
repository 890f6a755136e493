//! Every fixture into a real server, once as DUMP payloads and once as commands; what the server then holds (its own DUMP,
//! decoded) must be the value that the file held.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod fixtures;
mod support;

use shakedeck::rdb::commands::{CommandBuilder, Loss, PendingIds, Rebuild, value_to_commands};
use shakedeck::rdb::dump::{self, Route, ServerKind, Target};
use shakedeck::rdb::model::Stream;
use shakedeck::rdb::{ByteList, DecodedValue, Decoder, Item, Limits, Value, decode_value, types, visit_from};
use support::{Client, Flavor, Options, Reply, Server, ServerBinary};

/// A key of a file, owned.
struct Key {
    db: u32,
    key: Vec<u8>,
    type_byte: u8,
    expire_at_ms: Option<i64>,
    raw: Vec<u8>,
    value: DecodedValue,
}

struct File {
    name: String,
    dialect: shakedeck::rdb::Dialect,
    version: u16,
    keys: Vec<Key>,
}

fn files() -> Vec<File> {
    fixtures::all().iter().map(read).collect()
}

fn read(fixture: &fixtures::Fixture) -> File {
    let mut decoder = Decoder::new(&fixture.rdb[..], Limits::default());
    let Some(Item::Header { dialect, version, .. }) = decoder.next().unwrap() else { panic!() };
    let mut keys = Vec::new();
    while let Some(item) = decoder.next().unwrap() {
        let Item::Entry(entry) = item else { continue };
        let Value::Raw(raw) = entry.value else { panic!("{entry:?}") };
        keys.push(Key {
            db: entry.db,
            key: entry.key.to_vec(),
            type_byte: entry.type_byte,
            expire_at_ms: entry.expire_at_ms,
            raw: raw.to_vec(),
            value: decode_value(entry.type_byte, raw, dialect).unwrap(),
        });
    }
    File { name: fixture.name.clone(), dialect, version, keys }
}

fn target_of(binary: &ServerBinary) -> Target {
    let (major, minor, _) = binary.version;
    let kind = match binary.flavor {
        Flavor::Redis => ServerKind::Redis,
        Flavor::Valkey => ServerKind::Valkey,
    };
    Target { kind, major: major as u16, minor: minor as u16 }
}

#[test]
fn every_fixture_arrives_through_restore() {
    for_every_server(|server, target| {
        let mut client = server.client();
        for file in files() {
            client.ok(&["FLUSHALL"]);
            let mut arrived = 0;
            for key in &file.keys {
                let Route::Restore { version } =
                    dump::route(key.type_byte, file.dialect, file.version, target)
                else {
                    continue;
                };
                let mut payload = Vec::new();
                dump::append_payload(&mut payload, key.type_byte, &key.raw, version);
                let ttl = key.expire_at_ms.unwrap_or(0).to_string();
                client.ok(&["SELECT", &key.db.to_string()]);
                let reply =
                    client.cmd(&[&b"RESTORE"[..], &key.key, ttl.as_bytes(), &payload, b"REPLACE", b"ABSTTL"]);
                if let (Reply::Error(error), types::MODULE_2) = (&reply, key.type_byte) {
                    // Only a server with the same module can take it, and says so when it has not.
                    assert!(error.contains("Bad data format"), "{error}");
                    continue;
                }
                assert!(
                    !matches!(reply, Reply::Error(_)),
                    "{} {}: {reply:?}",
                    file.name,
                    fixtures::text(&key.key)
                );
                check(&mut client, key, &format!("{} {}", file.name, fixtures::text(&key.key)), true);
                arrived += 1;
            }
            assert!(arrived > 80, "{}: only {arrived} keys went by RESTORE", file.name);
        }
    });
}

#[test]
fn every_fixture_arrives_through_commands() {
    for_every_server(|server, target| {
        let mut client = server.client();
        for file in files() {
            client.ok(&["FLUSHALL"]);
            for key in &file.keys {
                let context = format!("{} {}", file.name, fixtures::text(&key.key));
                if matches!(key.value, DecodedValue::Module { .. } | DecodedValue::Array { .. }) {
                    continue;
                }
                client.ok(&["SELECT", &key.db.to_string()]);
                let mut commands = Vec::new();
                let rebuild = Rebuild {
                    key: &key.key,
                    target,
                    replace: true,
                    expire_at_ms: key.expire_at_ms,
                    pending_ids: Vec::new(),
                };
                let loss =
                    value_to_commands(key.type_byte, &key.raw, file.dialect, rebuild, &mut |command| {
                        commands.push(command.clone());
                        Ok(())
                    })
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                run(&mut client, &commands, &context);
                check_loss(loss, key, target, &context);
                check(&mut client, key, &context, false);
            }
        }
    });
}

/// A stream that is streamed in two passes ends up like one that was held.
#[test]
fn a_large_stream_keeps_pending_entries_that_are_deleted() {
    let binary = require_server!();
    let server = Server::start(binary, Options::new());
    let mut client = server.client();
    let fixtures = fixtures::all();
    let fixture = fixtures.iter().find(|f| f.name == "redis-7.0.15.default").unwrap();
    let file = read(fixture);
    let stream = file.keys.iter().find(|key| key.key == b"stream:g").unwrap();

    let limits = Limits { max_value_bytes: 16, ..Limits::default() };
    let mut decoder = Decoder::new(&fixture.rdb[..], limits);
    let (type_byte, dialect) = loop {
        match decoder.next().unwrap().unwrap() {
            Item::Entry(entry) if entry.key == b"stream:g" => break (entry.type_byte, entry.dialect),
            _ => {}
        }
    };
    let offset = decoder.position();
    let mut ids = PendingIds::default();
    visit_from(&fixture.rdb[offset as usize..], offset, type_byte, dialect, &mut |element| {
        ids.add(element);
        Ok(())
    })
    .unwrap();
    let pending_ids = ids.into_sorted();
    assert!(!pending_ids.is_empty());
    let mut builder = CommandBuilder::new(Rebuild {
        key: b"stream:g",
        target: target_of(binary),
        replace: false,
        expire_at_ms: None,
        pending_ids,
    });
    let mut commands: Vec<ByteList> = Vec::new();
    let mut collect = |command: &ByteList| {
        commands.push(command.clone());
        Ok(())
    };
    decoder.read_large(&mut |element| builder.add(element, &mut collect)).unwrap();
    builder.finish(&mut collect).unwrap();
    run(&mut client, &commands, "stream:g");
    check(&mut client, stream, "stream:g", false);
}

fn for_every_server(test: impl Fn(&Server, Target)) {
    let _ = require_server!();
    // Older ones lack the counters of streams that are looked at here.
    for binary in support::servers::modern() {
        support::note(&format!("rdb_restore against {binary:?}"));
        let server = Server::start(binary, Options::new());
        test(&server, target_of(binary));
    }
}

fn run(client: &mut Client, commands: &[ByteList], context: &str) {
    for command in commands {
        client.push(&command.iter().collect::<Vec<_>>());
    }
    for (reply, command) in client.flush(commands.len()).iter().zip(commands) {
        let text: Vec<_> = command.iter().take(12).map(|part| part.escape_ascii().to_string()).collect();
        assert!(!matches!(reply, Reply::Error(_)), "{context}: {text:?}: {reply:?}");
    }
}

fn check_loss(loss: Loss, key: &Key, target: Target, context: &str) {
    let mut expected = Loss::default();
    match &key.value {
        DecodedValue::Hash(fields) if !target.has_field_ttl() => {
            expected.field_ttls = fields.iter().filter(|field| field.expire_at_ms.is_some()).count() as u64;
        }
        DecodedValue::Stream(stream) => {
            expected.nacked = stream.groups.iter().map(|group| group.nacked.len() as u64).sum();
            expected.idmp_entries = stream.idmp_entries.len() as u64;
        }
        _ => {}
    }
    assert_eq!(loss, expected, "{context}");
}

/// The value that the server holds now against the one in the file.
fn check(client: &mut Client, key: &Key, context: &str, by_payload: bool) {
    let now: i64 =
        String::from_utf8(client.list(&["TIME"])[0].clone()).unwrap().parse::<i64>().unwrap() * 1000;
    let Some(payload) = client.bytes(&[&b"DUMP"[..], &key.key]) else {
        assert!(key.expire_at_ms.is_some_and(|at| at <= now), "{context}: not there");
        return;
    };
    let payload = dump::parse_payload(&payload).unwrap();
    let found = decode_value(payload.type_byte, payload.raw, payload.dialect).unwrap();
    let keeps_field_ttl =
        matches!(payload.type_byte, types::HASH_22 | types::HASH_METADATA | types::HASH_LISTPACK_EX);
    let expected = normal(key.value.clone(), by_payload, keeps_field_ttl);
    let mut found = normal(found, by_payload, keeps_field_ttl);
    if let (DecodedValue::Stream(found), DecodedValue::Stream(expected)) = (&mut found, &expected) {
        // Files from before 7.0 do not have these counters; the server then counts from the length, and estimates what
        // groups have read. Entries deleted only to be claimed leave their mark.
        if expected.info.entries_added.is_none() {
            assert_eq!(found.info.entries_added, Some(found.entries.len() as u64), "{context}");
            (found.info.entries_added, found.info.max_deleted_id) = (None, None);
        }
        for (found, expected) in found.groups.iter_mut().zip(&expected.groups) {
            found.entries_read = found.entries_read.filter(|_| expected.entries_read.is_some());
        }
    }
    assert!(found == expected, "{context}:\nfound    {found:?}\nexpected {expected:?}");
    let left = client.integer(&[&b"PTTL"[..], &key.key]);
    match key.expire_at_ms {
        None => assert_eq!(left, -1, "{context}"),
        Some(at) => assert!((at - now - left).abs() < 5_000, "{context}: {at} {now} {left}"),
    }
}

/// Without what depends on chance or on the server's version: order of sets, unknown counters.
fn normal(value: DecodedValue, by_payload: bool, keeps_field_ttl: bool) -> DecodedValue {
    match value {
        DecodedValue::Set(mut members) => {
            members.sort();
            DecodedValue::Set(members)
        }
        DecodedValue::Hash(mut fields) => {
            fields.sort_by(|a, b| a.field.cmp(&b.field));
            if !keeps_field_ttl {
                fields.iter_mut().for_each(|field| field.expire_at_ms = None);
            }
            DecodedValue::Hash(fields)
        }
        DecodedValue::SortedSet(mut members) => {
            members.sort_by(|a, b| a.1.total_cmp(&(b.1)).then_with(|| a.0.cmp(&b.0)));
            // Listpacks store -0 as 0.
            members.iter_mut().filter(|(_, score)| *score == 0.0).for_each(|(_, score)| *score = 0.0);
            members.sort_by(|a, b| a.1.total_cmp(&(b.1)).then_with(|| a.0.cmp(&b.0)));
            DecodedValue::SortedSet(members)
        }
        // The module writes its nodes in an order of its own: the same bytes, elsewhere.
        DecodedValue::Module { module, mut raw } => {
            raw.sort_unstable();
            DecodedValue::Module { module, raw }
        }
        DecodedValue::Stream(stream) => DecodedValue::Stream(Box::new(normal_stream(*stream, by_payload))),
        other => other,
    }
}

/// What a server computes when the file does not say: counters of streams from before 7.0, and first IDs.
fn normal_stream(mut stream: Stream, by_payload: bool) -> Stream {
    let length = stream.entries.len() as u64;
    stream.info.length = length;
    stream.info.first_id = None;
    stream.idmp = None;
    stream.idmp_entries.clear();
    for group in &mut stream.groups {
        // 8.8 only: elsewhere these entries get an owner.
        for (id, deliveries) in std::mem::take(&mut group.nacked) {
            let mut pending = shakedeck::rdb::model::StreamConsumer {
                name: b"shakedeck-nacked".to_vec(),
                ..Default::default()
            };
            pending.pending.push(shakedeck::rdb::model::PendingEntry { id, delivered_at_ms: 0, deliveries });
            group.consumers.push(pending);
        }
        group.consumers.sort_by(|a, b| a.name.cmp(&b.name));
        for consumer in &mut group.consumers {
            consumer.active_at_ms = None;
            if !by_payload {
                consumer.seen_at_ms = 0;
            }
        }
    }
    stream
}
