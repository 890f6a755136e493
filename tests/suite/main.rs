//! What is tested through the public interface or with the real program and real servers: one program, because the linker takes
//! longer than most of these tests. `tests/run <module>` runs one module.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../fixtures/mod.rs"]
mod fixtures;
#[path = "../support/mod.rs"]
mod support;
#[path = "../fixtures/values.rs"]
mod values;

mod afterwards;
mod atomic_slots;
mod bad_snapshots;
mod built_aside;
mod cluster_databases;
mod cluster_destination;
mod cluster_source;
mod clusters;
mod commands;
mod config;
mod cutover;
mod cutover_cluster;
mod cutover_versions;
mod demo_program;
mod disk;
mod docs;
mod expiry;
mod ghosts;
mod harness;
mod large_values;
mod layering;
mod losses;
mod off_reply;
mod policies;
mod quarantine;
mod rdb_acceptance;
mod rdb_export;
mod rdb_fixtures;
mod rdb_large;
mod rdb_reader;
mod rdb_restore;
mod rdb_robust;
mod rdb_walk;
mod refusals;
mod refused_parts;
mod refused_restore;
mod resume;
mod rollback_cluster;
mod secured;
mod sentinel;
mod sites;
mod spine;
mod steering;
mod terminal_back;
mod verify;
mod verify_cluster;
mod verify_count;
mod verify_fields;
mod way_back;
