//! What the black-box tests stand on: real servers, a small client, a data set of every core type, a live load, a
//! comparison of two servers, and the real `shakedeck` binary.
//!
//! ```text
//!  servers  which server binaries there are      server   one running server, ended when dropped
//!  client   blocking RESP2 connection            tls      certificates for a server
//!  dataset  keys of every core type              load     a writer that keeps changing them
//!  compare  are two servers equal?               shakedeck  the real binary with a generated shake.toml
//!  proxy    a link that breaks as told           fake_source  a source that sends what a test wants
//!  terminal the real binary on a screen          rdb_file  RDB files that no server writes
//!  sentinel  running sentinels of one master and its replicas
//!  cluster  running nodes, resharded, failing over   cluster_client  a client that follows MOVED and ASK
//!  mixed_load  a load that a cluster takes as well as a standalone server
//!  movers   writers that note what was acknowledged and move to the other side when they are refused
//!  everything  are two places equal, each a standalone server or a cluster?
//! ```
//!
//! Rules: nothing is read before a condition was awaited with a deadline ([`wait_until`]), nothing sleeps for luck,
//! and only processes that were started here are ended, by their handle. A test that cannot run says so through
//! [`skip`], which is a failure when `CI=true`.

// Every test file compiles its own copy of this module and uses a part of it; a failed unwrap is a failed test.
#![allow(dead_code, unused_imports, unused_macros, missing_docs, clippy::unwrap_used)]

pub mod client;
pub mod cluster;
pub mod cluster_client;
pub mod compare;
pub mod dataset;
pub mod everything;
pub mod fake_source;
pub mod gate;
pub mod load;
pub mod mixed_load;
pub mod movers;
pub mod proxy;
pub mod random;
pub mod rdb_file;
pub mod relay;
pub mod sentinel;
pub mod server;
pub mod servers;
pub mod shakedeck;
pub mod terminal;
pub mod tls;
pub mod verification;

use std::io::Write;
use std::time::{Duration, Instant};

pub use client::{Client, Reply};
pub use cluster::{Cluster, Layout};
pub use cluster_client::ClusterClient;
pub use random::Random;
pub use server::{Options, Server};
pub use servers::{Flavor, ServerBinary};
pub use shakedeck::{Exit, Shakedeck};

/// A source with these options and a destination, both of the default server; `None`, said loudly, where there is none.
pub fn pair(source: Options) -> Option<(Server, Server)> {
    let Some(binary) = servers::default() else {
        skip("no redis-server on PATH (run tests/run, or install it)");
        return None;
    };
    Some((Server::start(binary, source), Server::start(binary, Options::new())))
}

/// Waits for a condition, looking every few milliseconds; panics with `what` when the time is up.
#[track_caller]
pub fn wait_until(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < time, "waited {time:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Like [`wait_until`] for a value: polls until it is there.
#[track_caller]
pub fn wait_for<T>(time: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(started.elapsed() < time, "waited {time:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says that a test could not run, and why. With `CI=true` that is a failure.
#[track_caller]
pub fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    note(&format!("skipped {test}: {reason}"));
    println!("SKIPPED {test}: {reason}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "a skipped test is a failure in CI: {reason}");
}

/// One line for the summary of `tests/run`, which names the file in `SHAKEDECK_TEST_NOTES`.
pub fn note(line: &str) {
    let Some(path) = std::env::var_os("SHAKEDECK_TEST_NOTES") else { return };
    if let Ok(mut file) = std::fs::File::options().append(true).create(true).open(path) {
        // One write per line: test processes append to the same file.
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// The release's own server, or a skipped test: `let server = require_server!();`
#[macro_export]
macro_rules! require_server {
    () => {
        match $crate::support::servers::default() {
            Some(binary) => binary,
            None => {
                $crate::support::skip("no redis-server on PATH (run tests/run, or install it)");
                return;
            }
        }
    };
}
