//! An embedded source and destination on 127.0.0.1, for `shakedeck demo` and for fault injection in tests.

mod command;
mod compare;
pub mod faults;
mod feed;
pub mod load;
mod node;
mod rdb_writer;
pub mod real;
mod replica_link;
mod restore;
mod server;
mod session;
mod store;
mod value;
mod wire;

pub use compare::{Compared, Comparison, compare};
pub use feed::{Replica, ReplicaState};
pub use rdb_writer::Eviction;
pub use server::{Client, Server, ServerOptions, Transfer};
pub use store::{DATABASES, Entry, Store};
pub use value::{Consumer, Group, Pending, Stream, StreamId, Value};
pub use wire::{Argv, Reply};
