//! shakedeck: a live console for moving a Redis or Valkey data set to another server while the application keeps running.
//!
//! # Layers
//!
//! Arrows only point downwards; `tests/suite/layering.rs` enforces it.
//!
//! ```text
//!  3  main  cli  app                                  wires the rest; the only place that knows everything
//!  2  ui   headless   demo                            fronts: same input, never see each other
//!  1  engine                                          all sockets, files, tasks, clocks
//!  0  config  status  control  cutover  format        words that everybody shares
//!     command  resp  psync  rdb  expiry  verify  topology   pure: bytes in, values out. No tokio, no files, no clock
//! ```
//!
//! # The walk of one key
//!
//! ```text
//!  source ==PSYNC==> engine::source ==append==> engine::spool ==read==> engine::replay ==batches==> engine::writer ==> destination
//!                         ^                          ^                                                    |
//!                        ACK                         +--------------- confirmed progress -----------------+
//! ```
//!
//! 1. `engine::source` shakes hands and asks `PSYNC`; RDB and stream are copied, undecoded, into the spool. It acknowledges what is
//!    safe on disk, once a second in every phase, and never waits for the destination. An RDB file of the operator (`engine::rdb_file`)
//!    stands in the spool as a full sync that is whole already, read where it lies.
//! 2. `engine::replay`, a thread, reads the other end of the spool while it grows. A value is sliced, not decoded: its span is the payload of
//!    RESTORE; neighbouring plain strings become one MSET. A command of the stream is forwarded as the bytes that arrived; a
//!    relative time of expiry is made absolute, counted from when it arrived.
//! 3. Batches end at whole commands, outside of transactions, and travel through a queue of two: a slow destination stops `replay`; the
//!    spool grows, memory does not.
//! 4. `engine::writer` sends a batch as `MULTI … HSET checkpoint … EXEC`. The next batch is sent while the first one runs, without its EXEC,
//!    which follows when the first is confirmed. So the checkpoint is exact, and nothing is ever applied behind a batch that failed.
//!    A RESTORE that is refused is rebuilt by commands at this point. Inside the RDB the checkpoint stands before its batch: which
//!    entries were refused is only known from the answers, and a crash may come before those. A value that several commands make goes
//!    as a whole where one of them is refused for good (`engine::whole`).
//! 5. Confirmed progress frees spool segments and moves `offset_applied`.
//! 6. Before a batch is handed over, `engine::ledger` has its keys on record ([`command`] knows where they are). After another full sync
//!    `engine::replay` removes exactly those keys of the record that the new RDB has not.
//!
//! Rejected: pipelining whole transactions. When one is refused (say `-OOM` at its first command) and the next one is not, the order of
//! writes is lost, and no checkpoint can tell. Withholding one EXEC costs no throughput that could be measured, because the destination
//! parses and queues the next batch while it answers the first.
//!
//! A destination cluster takes `engine::cluster` in place of `engine::writer`: same batches, checkpoints in the slots, and marks of what is
//! confirmed everywhere. Its head says why that is exact.
//!
//! # The cutover
//!
//! [`cutover`] is a pure state machine: states, inputs, effects. `engine::handover` runs the effects on every source master, and says at its
//! head why "drained" is exact. The order at the end is the whole point: refuse writes while they are paused, read the offset once
//! more, wait until the destination has confirmed it, end applying, note the switch on disk, let the blocked writers go. After the switch
//! `engine::afterwards` holds the old source, or runs the link back: a second engine with the sides swapped, begun at an offset instead of with an RDB.
//!
//! Rejected: making the old source a replica of the new one. It would refuse strays with `-READONLY` by itself, but it needs a way from the old
//! server to the new one, and a full sync where the versions differ.
//!
//! # Engine and fronts
//!
//! The engine publishes an `Arc<`[`status::Status`]`>` four times a second; fronts send [`control::Command`]s and see the effect in a later
//! status. Neither ever waits for the other. The console is synchronous on the main thread; tokio runs on others.

pub mod app;
pub mod cli;
pub mod command;
pub mod config;
pub mod control;
pub mod cutover;
pub mod demo;
pub mod engine;
pub mod expiry;
pub mod format;
pub mod headless;
pub mod psync;
pub mod rdb;
pub mod resp;
pub mod status;
pub mod topology;
pub mod ui;
pub mod verify;
