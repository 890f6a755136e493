//! Which server binaries there are: the ones named in `SHAKEDECK_TEST_SERVERS` (paths, separated by colons), on PATH,
//! and fetched by `tests/fetch-servers` into `target/servers`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavor {
    Redis,
    Valkey,
}

/// One program that can be started as a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerBinary {
    pub path: PathBuf,
    pub flavor: Flavor,
    /// Major, minor, patch.
    pub version: (u32, u32, u32),
}

impl fmt::Display for ServerBinary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.flavor {
            Flavor::Redis => "redis",
            Flavor::Valkey => "valkey",
        };
        let (major, minor, patch) = self.version;
        write!(f, "{name} {major}.{minor}.{patch}")
    }
}

impl ServerBinary {
    /// Asks a program for its version; `None` if it is not a server that runs here.
    pub fn probe(path: &Path) -> Option<ServerBinary> {
        let output = Command::new(path).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let flavor = if text.starts_with("Valkey") { Flavor::Valkey } else { Flavor::Redis };
        let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
        let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
        let version = (numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0));
        Some(ServerBinary { path: path.to_owned(), flavor, version })
    }

    /// True if this is Redis of at least that version, or any Valkey of at least the other one.
    pub fn at_least(&self, redis: (u32, u32), valkey: (u32, u32)) -> bool {
        let (major, minor, _) = self.version;
        (major, minor) >= if self.flavor == Flavor::Redis { redis } else { valkey }
    }

    /// True if this server is known to take over everything that `source` can hold: the same program in the same or
    /// a newer version, or Valkey after a Redis from before the two went separate ways (7.2).
    pub fn follows(&self, source: &ServerBinary) -> bool {
        if self.flavor == source.flavor {
            self.version >= source.version
        } else {
            self.flavor == Flavor::Valkey && source.version < (7, 3, 0)
        }
    }
}

/// Every server that was found, oldest first, one of each version; Redis before Valkey.
pub fn all() -> &'static [ServerBinary] {
    static ALL: OnceLock<Vec<ServerBinary>> = OnceLock::new();
    ALL.get_or_init(|| {
        let named = std::env::var_os("SHAKEDECK_TEST_SERVERS").unwrap_or_default();
        let mut paths: Vec<PathBuf> =
            std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect();
        for path in &paths {
            assert!(ServerBinary::probe(path).is_some(), "SHAKEDECK_TEST_SERVERS: {path:?} is no server");
        }
        paths.extend(on_path("redis-server"));
        paths.extend(on_path("valkey-server"));
        let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/servers");
        for folder in std::fs::read_dir(fetched).into_iter().flatten().flatten() {
            paths.push(folder.path().join("server"));
        }
        let mut found: Vec<ServerBinary> =
            paths.iter().filter_map(|path| ServerBinary::probe(path)).collect();
        // A stable sort: of two equal versions the first of the order above stays.
        found.sort_by_key(|binary| (binary.flavor, binary.version));
        found.dedup_by_key(|binary| (binary.flavor, binary.version));
        found
    })
}

/// The server that most tests use: `redis-server` of PATH, else the first one that was found.
pub fn default() -> Option<&'static ServerBinary> {
    let preferred = on_path("redis-server").and_then(|path| ServerBinary::probe(&path));
    all()
        .iter()
        .find(|binary| preferred.as_ref().is_some_and(|wanted| wanted.version == binary.version))
        .or(all().first())
}

/// Those that understand the whole load, which speaks the language of Redis 6.2 (COPY, LMOVE …).
pub fn modern() -> impl Iterator<Item = &'static ServerBinary> {
    all().iter().filter(|binary| binary.version >= (6, 2, 0))
}

/// Every pair (source, destination) of [`modern`] servers in which the destination can take over everything of the source.
pub fn pairs() -> Vec<(&'static ServerBinary, &'static ServerBinary)> {
    let mut pairs = Vec::new();
    for source in modern() {
        pairs.extend(all().iter().filter(|binary| binary.follows(source)).map(|binary| (source, binary)));
    }
    pairs
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}
