//! The tables in `rdb::dump` against what 16 servers were seen to accept (`fixtures/dump-acceptance.txt`).

use shakedeck::rdb::Dialect;
use shakedeck::rdb::dump::{ServerKind, Target, accepts_version, destination_accepts, rdb_version_of};

fn recorded() -> String {
    std::fs::read_to_string("tests/fixtures/dump-acceptance.txt").unwrap()
}

/// `redis-7.0.15`, `r7.0.15`, `v8.1.1`, `redict-7.3.6`, and the shortened names of the table's heading.
fn target(name: &str) -> Target {
    let (kind, version) = if let Some(version) = name.strip_prefix("redict-") {
        (ServerKind::Redict, version)
    } else if let Some(version) = name.strip_prefix("valkey-").or(name.strip_prefix('v')) {
        (ServerKind::Valkey, version)
    } else if name.contains("unstable") {
        (ServerKind::Redis, "8.7")
    } else {
        (ServerKind::Redis, name.strip_prefix("redis-").or(name.strip_prefix('r')).unwrap())
    };
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    Target { kind, major: numbers.next().unwrap(), minor: numbers.next().unwrap() }
}

#[test]
fn types_that_each_destination_takes() {
    let recorded = recorded();
    let (_, list) = recorded.split_once("once the footer carries its own version\n").unwrap();
    let mut servers = 0;
    for line in list.lines() {
        let (name, types) = line.split_once(": ").unwrap();
        let types: Vec<u8> = serde_json::from_str(types).unwrap();
        let mut target = target(name);
        if name.contains("unstable") {
            target.minor = 8;
        }
        for type_byte in 0..=40 {
            // 7 depends on the module; no source wrote 9, which every server still reads; type 22 is Valkey's.
            if matches!(type_byte, 7 | 9) {
                continue;
            }
            let dialect = if type_byte == 22 { Dialect::Valkey } else { Dialect::Redis };
            let accepts = destination_accepts(type_byte, dialect, target);
            assert_eq!(accepts, types.contains(&type_byte), "{name}, type {type_byte}");
        }
        servers += 1;
    }
    assert_eq!(servers, 16);
}

#[test]
fn versions_that_each_destination_lets_through() {
    let recorded = recorded();
    let (_, table) = recorded.split_once("## as_is\n").unwrap();
    let mut lines = table.lines();
    let destinations: Vec<_> = lines.next().unwrap().split_whitespace().skip(3).map(str::to_owned).collect();
    let mut cells = 0;
    for line in lines.take_while(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let source = words.next().unwrap();
        for (destination, cell) in destinations.iter().zip(words) {
            let destination = match destination.as_str() {
                "redict-7." => target("redict-7.3.6"),
                name => target(name),
            };
            // `b`: let through, but then a type was not known.
            let accepted = cell.starts_with('o');
            let version = rdb_version_of(target(source));
            assert_eq!(
                accepts_version(destination, version),
                accepted,
                "{source} to {destination:?}: {cell}"
            );
            cells += 1;
        }
    }
    assert_eq!(cells, 16 * 16);
}
