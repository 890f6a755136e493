//! `shakedeck demo`: a source and a destination to migrate between, where no other server is at hand.
//!
//! ```text
//!  Load --commands--> source Server --PSYNC--> (the engine, which knows nothing of this) --RESP--> destination Server
//!                          |                                                                           |
//!                          +---------------------------- compare() -----------------------------------+
//! ```
//!
//! Both are [`Server`]s inside this process; with `real`, two processes of the installed redis-server take their place.
//! The same servers serve the tests, which make them misbehave through [`faults`]. Nothing here knows the engine, a front
//! or the configuration: whoever starts a [`Demo`] makes a migration between its two addresses.

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

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

pub use compare::{CompareOptions, Comparison, compare};
pub use feed::{Replica, ReplicaState};
pub use rdb_writer::Eviction;
pub use server::{Client, Server, ServerOptions, Taken, Transfer};
pub use store::{DATABASES, Entry, Store};
pub use value::{Consumer, Group, Pending, Stream, StreamId, Value};
pub use wire::{Argv, Reply};

use load::Load;
use real::{RealServer, RespClient};
use server::unix_ms;

/// What is asked of a demo.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Keys of the data set at the start.
    pub keys: u64,
    /// Commands per second of the clients that change it meanwhile; 0 = nobody does.
    pub rate: u64,
    /// How long these clients go on; `None` = until [`Demo::stop_load`].
    pub seconds: Option<u64>,
    /// Use two processes of the redis-server or valkey-server on PATH.
    pub real: bool,
    /// The same seed makes the same data set and the same commands.
    pub seed: u64,
    /// How the embedded source is set up.
    pub source: ServerOptions,
    /// How the embedded destination is set up.
    pub destination: ServerOptions,
}

impl Default for DemoOptions {
    fn default() -> Self {
        DemoOptions {
            keys: 100_000,
            rate: 2_000,
            seconds: None,
            real: false,
            seed: 1,
            source: ServerOptions::default(),
            destination: ServerOptions::default(),
        }
    }
}

/// Why a demo could not be started or compared.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// `--real` without a server.
    #[error(
        "no redis-server or valkey-server is on PATH: install one, or leave out --real to use the servers built into \
         this program"
    )]
    NoServer,
    /// A server could not be started.
    #[error("the demo's {side} could not be started: {error}")]
    Start {
        /// "source" or "destination".
        side: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The data set could not be put into the source.
    #[error("the demo's source could not be filled: {0}")]
    Fill(io::Error),
    /// A side could not be read.
    #[error("the demo's {side} could not be read: {error}")]
    Read {
        /// "source" or "destination".
        side: &'static str,
        /// Why.
        error: io::Error,
    },
}

/// A running source and destination; both end when this is dropped.
pub struct Demo {
    sides: Sides,
    load: LoadTask,
}

enum Sides {
    Embedded { source: Server, destination: Server },
    Real { source: RealServer, destination: RealServer },
}

struct LoadTask {
    stop: Arc<AtomicBool>,
    commands: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Demo {
    /// Starts both sides, fills the source, and lets the load begin.
    pub async fn start(options: DemoOptions) -> Result<Demo, DemoError> {
        let mut data = Store::default();
        load::fill(&mut data, options.keys, options.seed, unix_ms());
        let started = |side| move |error| DemoError::Start { side, error };
        let sides = if options.real {
            let program = real::find_server().ok_or(DemoError::NoServer)?;
            let source = RealServer::start(&program, &[]).await.map_err(started("source"))?;
            let destination = RealServer::start(&program, &[]).await.map_err(started("destination"))?;
            real::write_store(source.address(), &data).await.map_err(DemoError::Fill)?;
            Sides::Real { source, destination }
        } else {
            let source = Server::start(options.source.clone()).await.map_err(started("source"))?;
            let destination =
                Server::start(options.destination.clone()).await.map_err(started("destination"))?;
            source.with_store(|store| *store = data);
            Sides::Embedded { source, destination }
        };
        let load = LoadTask::start(&sides, &options);
        Ok(Demo { sides, load })
    }

    /// Where the source listens.
    pub fn source_address(&self) -> SocketAddr {
        match &self.sides {
            Sides::Embedded { source, .. } => source.address(),
            Sides::Real { source, .. } => source.address(),
        }
    }

    /// Where the destination listens.
    pub fn destination_address(&self) -> SocketAddr {
        match &self.sides {
            Sides::Embedded { destination, .. } => destination.address(),
            Sides::Real { destination, .. } => destination.address(),
        }
    }

    /// The servers inside this process, source first; `None` with real ones.
    pub fn embedded(&self) -> Option<(&Server, &Server)> {
        match &self.sides {
            Sides::Embedded { source, destination } => Some((source, destination)),
            Sides::Real { .. } => None,
        }
    }

    /// Commands that the load has sent.
    pub fn load_commands(&self) -> u64 {
        self.load.commands.load(Relaxed)
    }

    /// True while the load goes on.
    pub fn load_is_running(&self) -> bool {
        !self.load.task.is_finished()
    }

    /// Ends the load; when this returns, its last command is executed.
    pub async fn stop_load(&mut self) {
        self.load.stop.store(true, Relaxed);
        // A load that has ended by itself, or by an error, is as good; and a task may be waited for only once.
        if self.load_is_running() {
            let _ = (&mut self.load.task).await;
        }
    }

    /// Replication offset of the source now: once the load has stopped and the destination has this much, both are equal.
    pub async fn source_offset(&self) -> Result<u64, DemoError> {
        match &self.sides {
            Sides::Embedded { source, .. } => Ok(source.replication().1),
            Sides::Real { source, .. } => real::replication_offset(source.address())
                .await
                .map_err(|error| DemoError::Read { side: "source", error }),
        }
    }

    /// Compares both sides key by key, without the engine's checkpoints.
    pub async fn compare(&self) -> Result<Comparison, DemoError> {
        match &self.sides {
            Sides::Embedded { source, destination } => {
                let how = CompareOptions { now_ms: unix_ms(), expiry_tolerance_ms: 0 };
                Ok(source.with_store(|mine| {
                    destination.with_store(|theirs| compare(mine, theirs, how, |_, _| false))
                }))
            }
            Sides::Real { source, destination } => {
                let read = |side| move |error| DemoError::Read { side, error };
                let (mine, tolerance) = real::read_store(source.address()).await.map_err(read("source"))?;
                let (theirs, _) =
                    real::read_store(destination.address()).await.map_err(read("destination"))?;
                // Keys may have ended between the two readings.
                let how = CompareOptions { now_ms: unix_ms(), expiry_tolerance_ms: tolerance };
                Ok(compare(&mine, &theirs, how, |_, _| false))
            }
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.load.task.abort();
    }
}

/// Time between two handfuls of commands.
const LOAD_TICK: Duration = Duration::from_millis(10);

impl LoadTask {
    fn start(sides: &Sides, options: &DemoOptions) -> LoadTask {
        let (stop, commands) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let target = match sides {
            Sides::Embedded { source, destination } => {
                Target::Embedded(Box::new(source.client()), Some(Box::new(destination.client())))
            }
            Sides::Real { source, destination } => {
                Target::Real(vec![destination.address(), source.address()], None)
            }
        };
        let task = tokio::spawn(run_load(target, options.clone(), stop.clone(), commands.clone()));
        LoadTask { stop, commands, task }
    }
}

/// Where the clients write: to the source first, and to the destination once the source refuses them, as after a cutover.
enum Target {
    /// The server, and the one to go to then.
    Embedded(Box<Client>, Option<Box<Client>>),
    /// The servers to go to, the next one last, and the connection.
    Real(Vec<SocketAddr>, Option<RespClient>),
}

impl Target {
    /// Executes the commands and takes them off the list; leaves them there while the server holds writes back. `db` is the
    /// database that is selected behind them.
    async fn send(&mut self, commands: &mut Vec<Argv>, db: usize) -> io::Result<()> {
        let select = |db: usize| vec![b"SELECT".to_vec(), db.to_string().into_bytes()];
        match self {
            Target::Embedded(client, other) => {
                if client.execute_all(commands) == Taken::Refused
                    && let Some(mut next) = other.take()
                {
                    next.execute(select(client.database()));
                    *client = next;
                }
            }
            Target::Real(addresses, connection) => {
                let client = match connection {
                    Some(client) => client,
                    None => {
                        let address = addresses.pop().ok_or(io::ErrorKind::NotConnected)?;
                        connection.insert(RespClient::connect(address).await?)
                    }
                };
                let replies = client.pipeline(commands).await?;
                let refused =
                    |reply: &Reply| matches!(reply, Reply::Error(error) if error.starts_with("NOREPLICAS"));
                commands.clear();
                if replies.iter().any(refused) {
                    *connection = None;
                    commands.push(select(db));
                }
            }
        }
        Ok(())
    }
}

async fn run_load(mut target: Target, options: DemoOptions, stop: Arc<AtomicBool>, sent: Arc<AtomicU64>) {
    let mut load = Load::new(options.keys, options.seed);
    let mut interval = tokio::time::interval(LOAD_TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    let (mut last, mut owed, mut commands) = (started, 0.0, Vec::new());
    while !stop.load(Relaxed) && options.seconds.is_none_or(|seconds| started.elapsed().as_secs() < seconds) {
        let now = interval.tick().await;
        // After a standstill the clients do not make up for more than a second.
        owed = (owed + options.rate as f64 * now.duration_since(last).as_secs_f64()).min(options.rate as f64);
        last = now;
        while owed >= 1.0 && commands.len() < 100_000 {
            owed -= load.next(&mut commands, unix_ms()) as f64;
        }
        let count = commands.len();
        if target.send(&mut commands, load.database()).await.is_err() {
            return;
        }
        sent.fetch_add((count - commands.len()) as u64, Relaxed);
    }
}
