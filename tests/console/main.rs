//! The console without a terminal: its screens drawn from named snapshots, and its keys.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

mod keys;
mod screens;
#[path = "../support/statuses.rs"]
mod statuses;
#[path = "../support/svg.rs"]
mod svg;
mod wizard;

// Where the named snapshots look for it, here and in the library's own tests.
use shakedeck::status;
