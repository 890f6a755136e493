//! Any plug may be pulled at any moment: processes are killed, links cut and slowed, servers fail over, stall and refuse,
//! under a load of commands that must not be applied twice; at the end both sides are equal, key by key.
//!
//! Everything random comes from a seed, which is printed. The short form is part of `tests/run`; the long one is
//! `SHAKEDECK_CHAOS_ROUNDS=50 SHAKEDECK_CHAOS_SEED=<number> tests/run chaos`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../support/mod.rs"]
mod support;

mod chaos_destination;
mod chaos_failover;
mod chaos_kills;
mod chaos_links;
mod chaos_stalls;
mod chaos_two;
mod field;
