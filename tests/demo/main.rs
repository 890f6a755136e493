//! The demo's servers against a replica written by hand here, and against real ones.
//!
//! The replica shares nothing with the engine, so the servers are known to be right before the engine is tested with them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod clients;
mod real;
mod replica;
mod replication;

use std::time::Duration;

use shakedeck::demo::load::fill;
use shakedeck::demo::{Argv, Reply, Server, ServerOptions};
use tokio::time::{Instant, sleep};

const DEADLINE: Duration = Duration::from_secs(60);

fn unix_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

fn argv(words: &[&str]) -> Argv {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn simple(text: &'static str) -> Reply {
    Reply::simple(text)
}

fn error(reply: &Reply) -> &str {
    match reply {
        Reply::Error(text) => text,
        other => panic!("{other:?} is no error"),
    }
}

fn is_error(reply: &Reply) -> bool {
    match reply {
        Reply::Error(_) => true,
        Reply::Array(items) => items.iter().any(is_error),
        _ => false,
    }
}

/// Waits until `condition` holds; the text says what was waited for.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn server(options: ServerOptions) -> Server {
    Server::start(options).await.unwrap()
}

async fn filled(options: ServerOptions, keys: u64) -> Server {
    let source = server(options).await;
    source.with_store(|store| fill(store, keys, 5, unix_ms()));
    source
}
