//! Every fixture into a real server, once as DUMP payloads and once as commands; what the server then holds (its own DUMP,
//! decoded) must be the value that the file held.

use crate::fixtures;
use crate::require_server;
use crate::support;
use crate::support::{Client, Options, Reply, Server};
use crate::values::{Key, check, files, read, target_of};
use shakedeck::rdb::commands::{CommandBuilder, Loss, PendingIds, Rebuild, value_to_commands};
use shakedeck::rdb::dump::{self, Route, Target};
use shakedeck::rdb::{ByteList, DecodedValue, Decoder, Item, Limits, types, visit_from};

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
