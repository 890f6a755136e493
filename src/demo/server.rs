//! A server of the demo: enough of Redis to be a source, a destination, or both.
//!
//! ```text
//!  listener --> one task per connection --> Session --> Node (one lock: data, stream, faults)
//!                     | PSYNC                                 |
//!                     +--> replica_link: RDB, then the backlog from its own position
//! ```
//!
//! Everything ends when the [`Server`] is dropped. It listens on 127.0.0.1 unless told otherwise.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

use super::command;
use super::faults::{Fault, Faults};
use super::feed::{Feed, Replica};
use super::node::Node;
use super::rdb_writer::Eviction;
use super::replica_link;
use super::session::Session;
use super::store::Store;
use super::wire::{Argv, Parsed, Reply, parse};

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where to listen; port 0 = any free one.
    pub address: SocketAddr,
    /// User and password that every connection must give ("default" is the user of `AUTH password`).
    pub credentials: Option<(String, String)>,
    /// RDB version: 10 (as Redis 7.0) or 11 (as 7.2).
    pub rdb_version: u16,
    /// How a full sync travels to a replica that takes both forms.
    pub transfer: Transfer,
    /// Attribute that every key of the RDB carries.
    pub eviction: Eviction,
    /// How long the RDB takes to be made.
    pub saving: Duration,
    /// Time between two newlines meanwhile.
    pub keep_alive: Duration,
    /// Time between two PINGs in the stream (`repl-ping-replica-period`).
    pub ping_period: Duration,
    /// How long a replica may say nothing (`repl-timeout`).
    pub replica_timeout: Duration,
    /// Bytes per second of an RDB transfer; `None` = as fast as it goes.
    pub rdb_bytes_per_second: Option<u64>,
    /// `repl-backlog-size`.
    pub backlog_bytes: usize,
    /// `client-output-buffer-limit replica`.
    pub output_limit_bytes: usize,
    /// Misbehaviour from the start.
    pub faults: Faults,
}

/// The two forms of an RDB transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// `$<length>`
    Disk,
    /// `$EOF:<mark>`, for replicas with `capa eof`.
    Diskless,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            credentials: None,
            rdb_version: 11,
            transfer: Transfer::Diskless,
            eviction: Eviction::None,
            saving: Duration::ZERO,
            keep_alive: Duration::from_secs(1),
            ping_period: Duration::from_secs(10),
            replica_timeout: Duration::from_secs(60),
            rdb_bytes_per_second: None,
            backlog_bytes: 16 * 1_048_576,
            output_limit_bytes: 256 * 1_048_576,
            faults: Faults::default(),
        }
    }
}

/// A running server; it ends when this is dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
}

/// What the tasks of one server share.
pub(super) struct Shared {
    node: Mutex<Node>,
    pub(super) options: ServerOptions,
    /// Wakes connections that are to be closed.
    kick: Notify,
}

impl Shared {
    pub(super) fn node(&self) -> MutexGuard<'_, Node> {
        // A panic while the lock was held is a failed test already; the others should still see the state.
        self.node.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Binds the address and begins to serve.
    pub async fn start(options: ServerOptions) -> io::Result<Server> {
        let listener = TcpListener::bind(options.address).await?;
        let address = listener.local_addr()?;
        let now_ms = unix_ms();
        let node = Node {
            store: Store::default(),
            feed: Feed::new(random_hex(), options.backlog_bytes, options.output_limit_bytes),
            faults: options.faults.clone(),
            rdb_version: options.rdb_version,
            credentials: options.credentials.clone(),
            config: config(&options, address.port()),
            paused: None,
            run_id: random_hex(),
            port: address.port(),
            started_ms: now_ms,
            commands: 0,
            connections: 0,
        };
        let shared = Arc::new(Shared { node: Mutex::new(node), options, kick: Notify::new() });
        let tasks = vec![
            tokio::spawn(accept(listener, shared.clone())).abort_handle(),
            tokio::spawn(tick(shared.clone())).abort_handle(),
        ];
        Ok(Server { address, shared, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs something on the data set; nothing of it reaches replicas.
    pub fn with_store<R>(&self, work: impl FnOnce(&mut Store) -> R) -> R {
        work(&mut self.shared.node().store)
    }

    /// Executes one command in one database, as a client would; replicas are told.
    pub fn execute<A: AsRef<[u8]>>(&self, db: usize, argv: &[A]) -> Reply {
        let mut client = self.client();
        client.session.db = db;
        client.execute(argv.iter().map(|argument| argument.as_ref().to_vec()).collect())
    }

    /// A client that needs no socket.
    pub fn client(&self) -> Client {
        Client { shared: self.shared.clone(), session: Session::new(0, true) }
    }

    /// Changes how the server misbehaves from now on.
    pub fn faults<R>(&self, change: impl FnOnce(&mut Faults) -> R) -> R {
        change(&mut self.shared.node().faults)
    }

    /// Replication id and offset.
    pub fn replication(&self) -> (String, u64) {
        let node = self.shared.node();
        (node.feed.replid().to_owned(), node.feed.offset())
    }

    /// The replicas that are connected now.
    pub fn replicas(&self) -> Vec<Replica> {
        self.shared.node().feed.replicas.values().cloned().collect()
    }

    /// Commands executed so far.
    pub fn commands(&self) -> u64 {
        self.shared.node().commands
    }

    /// Connections opened so far.
    pub fn connections(&self) -> u64 {
        self.shared.node().connections
    }

    /// Asks every replica for its offset, as WAIT does.
    pub fn request_acknowledgement(&self) {
        self.shared.node().feed.append_control(&["REPLCONF", "GETACK", "*"]);
    }

    /// Forgets the backlog: a replica that comes back needs a full sync.
    pub fn forget_backlog(&self) {
        self.shared.node().feed.forget_backlog();
    }

    /// Takes a new replication id; the old one still counts if `keep_previous`, as after a failover.
    pub fn change_replid(&self, keep_previous: bool) {
        self.shared.node().feed.change_replid(random_hex(), keep_previous);
    }

    /// Closes every connection that is open now.
    pub fn drop_connections(&self) {
        self.shared.kick.notify_waiters();
    }
}

impl std::ops::Drop for Server {
    fn drop(&mut self) {
        // Ending the accepting task ends the connections: it owns them.
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// What a server does with the commands of a client that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Everything is executed.
    All,
    /// CLIENT PAUSE holds them back.
    Held,
    /// `-NOREPLICAS`, by which an old source sends its clients away.
    Refused,
}

/// A client inside this process: commands without a socket, on the same path as any other client's.
pub struct Client {
    shared: Arc<Shared>,
    session: Session,
}

impl Client {
    /// The database that is selected.
    pub fn database(&self) -> usize {
        self.session.db
    }

    /// Executes one command.
    pub fn execute(&mut self, argv: Argv) -> Reply {
        self.session.execute(&mut self.shared.node(), argv, unix_ms())
    }

    /// Executes commands in a row under one lock; none of them while the server holds writes back or refuses them.
    pub fn execute_all(&mut self, commands: &mut Vec<Argv>) -> Taken {
        let mut node = self.shared.node();
        let now_ms = unix_ms();
        if node.holds_back(true, now_ms) {
            return Taken::Held;
        }
        if node.lacks_replicas() {
            return Taken::Refused;
        }
        for argv in commands.drain(..) {
            self.session.execute(&mut node, argv, now_ms);
        }
        Taken::All
    }
}

/// Unix time in milliseconds.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Forty hex digits that no other server has.
pub(super) fn random_hex() -> String {
    use std::hash::{BuildHasher, RandomState};
    let digits: String = (0..3).map(|part| format!("{:016x}", RandomState::new().hash_one(part))).collect();
    digits.chars().take(40).collect()
}

fn config(options: &ServerOptions, port: u16) -> BTreeMap<String, String> {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let limit = options.output_limit_bytes;
    [
        ("appendonly", "no".to_owned()),
        ("bind", "127.0.0.1".to_owned()),
        (
            "client-output-buffer-limit",
            format!("normal 0 0 0 slave {limit} {} 60 pubsub 33554432 8388608 60", limit / 4),
        ),
        ("databases", super::store::DATABASES.to_string()),
        ("maxmemory", "0".to_owned()),
        ("maxmemory-policy", "noeviction".to_owned()),
        ("min-replicas-max-lag", "10".to_owned()),
        ("min-replicas-to-write", "0".to_owned()),
        ("port", port.to_string()),
        ("proto-max-bulk-len", "536870912".to_owned()),
        ("repl-backlog-size", options.backlog_bytes.to_string()),
        ("repl-diskless-sync", yes_no(options.transfer == Transfer::Diskless)),
        ("repl-ping-replica-period", options.ping_period.as_secs().to_string()),
        ("repl-timeout", options.replica_timeout.as_secs().to_string()),
        ("save", String::new()),
        ("timeout", "0".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Expires keys and keeps the stream alive.
async fn tick(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(Duration::from_millis(50));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut last_ping = tokio::time::Instant::now();
    loop {
        interval.tick().await;
        let mut node = shared.node();
        node.expire_cycle(unix_ms());
        if last_ping.elapsed() >= shared.options.ping_period {
            last_ping = tokio::time::Instant::now();
            if !node.feed.replicas.is_empty() {
                node.feed.append_control(&["PING"]);
            }
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let refuse = shared.node().faults.refuse_connections;
                    if !refuse {
                        connections.spawn(connection(stream, shared.clone()));
                    }
                }
                // Out of file descriptors, most likely: others may close theirs.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let peer = stream.peer_addr().map(|address| address.ip().to_string()).unwrap_or_default();
    let session = {
        let mut node = shared.node();
        node.connections += 1;
        Session::new(node.connections, node.credentials.is_none())
    };
    let (read, write) = stream.into_split();
    let outlet = Outlet { write, shared: shared.clone(), link_bytes: None };
    let connection = Connection {
        inlet: Inlet { read, buffer: Vec::new(), start: 0 },
        outlet,
        session,
        peer,
        executed: 0,
    };
    let kicked = shared.kick.notified();
    tokio::select! {
        // A broken link is the peer's business; there is nobody here to tell.
        _ = connection.serve(shared.clone()) => {}
        () = kicked => {}
    }
}

struct Connection {
    inlet: Inlet,
    outlet: Outlet,
    session: Session,
    peer: String,
    /// Commands executed on this connection.
    executed: u64,
}

/// What a run over the commands that have arrived ended with.
enum Ran {
    /// Everything there is was executed.
    All,
    /// The connection ends after what was answered.
    Close,
    /// CLIENT PAUSE or a fault holds the next command back.
    Held,
    /// `PSYNC replid offset`
    Psync(String, i64),
}

impl Connection {
    async fn serve(mut self, shared: Arc<Shared>) -> io::Result<()> {
        let mut out = Vec::new();
        let mut minimum = 1;
        loop {
            if self.inlet.waiting().len() < minimum && self.inlet.fill(minimum).await? == 0 {
                return Ok(());
            }
            let slow = shared.node().faults.slow;
            let before = self.executed;
            let ran = self.run(&shared, &mut out, &mut minimum, if slow.is_some() { 1 } else { 10_000 });
            if let Some(each) = slow {
                tokio::time::sleep(each * (self.executed - before) as u32).await;
            }
            if !out.is_empty() {
                self.outlet.send(&out).await?;
                out.clear();
            }
            match ran {
                Ran::All => {}
                Ran::Close => return Ok(()),
                Ran::Held => tokio::time::sleep(Duration::from_millis(2)).await,
                Ran::Psync(replid, offset) => {
                    let Connection { inlet, outlet, session, peer, .. } = &mut self;
                    let link = replica_link::Link { shared: &shared, session, peer };
                    if link.serve(inlet, outlet, &replid, offset).await? == replica_link::End::Closed {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Executes what has arrived, at most `limit` commands, under one lock.
    fn run(&mut self, shared: &Shared, out: &mut Vec<u8>, minimum: &mut usize, limit: usize) -> Ran {
        *minimum = 1;
        let mut node = shared.node();
        let now_ms = unix_ms();
        node.freeze(now_ms);
        for _ in 0..limit {
            if node.faults.stalled {
                return Ran::Held;
            }
            let (argv, used) = match parse(self.inlet.waiting()) {
                Ok(Parsed::Command(argv, used)) => (argv, used),
                Ok(Parsed::Nothing(used)) => {
                    self.inlet.advance(used);
                    continue;
                }
                Ok(Parsed::Need(bytes)) => {
                    *minimum = bytes;
                    return Ran::All;
                }
                Err(text) => {
                    Reply::err(format!("Protocol error: {text}")).write(out, false);
                    return Ran::Close;
                }
            };
            let name = argv.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
            let write = match name.as_slice() {
                b"exec" => self.session.has_queued_writes(),
                _ => command::find(&name, &argv).is_ok_and(|command| command.write),
            };
            if node.holds_back(write, now_ms) && name != b"client" {
                return Ran::Held;
            }
            self.inlet.advance(used);
            self.executed += 1;
            let dropped =
                Fault::peek(&node.faults.drop_connection).copied().filter(|drop| self.executed > drop.after);
            if let Some(drop) = dropped {
                Fault::take(&mut node.faults.drop_connection);
                if drop.execute_next {
                    self.session.execute(&mut node, argv, now_ms);
                }
                return Ran::Close;
            }
            if name == b"psync" && self.session.authenticated {
                // What was answered in this run is still to be sent, so the stream cannot begin (`syncCommand`).
                if !out.is_empty() {
                    Reply::err("SYNC and PSYNC are invalid with pending output")
                        .write(out, self.session.resp3);
                    continue;
                }
                match psync_arguments(&argv) {
                    Ok((replid, offset)) => return Ran::Psync(replid, offset),
                    Err(error) => error.write(out, self.session.resp3),
                }
                continue;
            }
            self.session.execute(&mut node, argv, now_ms).write(out, self.session.resp3);
            if self.session.closing {
                return Ran::Close;
            }
        }
        Ran::All
    }
}

fn psync_arguments(argv: &[Vec<u8>]) -> Result<(String, i64), Reply> {
    let [_, replid, offset] = argv else {
        return Err(Reply::err("wrong number of arguments for 'psync' command"));
    };
    let offset =
        super::wire::integer(offset).ok_or_else(|| Reply::err("value is not an integer or out of range"))?;
    Ok((String::from_utf8_lossy(replid).into_owned(), offset))
}

/// The reading half of a connection.
pub(super) struct Inlet {
    read: OwnedReadHalf,
    buffer: Vec<u8>,
    start: usize,
}

impl Inlet {
    /// What has arrived and was not used yet.
    pub(super) fn waiting(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Passes over what was used.
    pub(super) fn advance(&mut self, used: usize) {
        self.start += used;
    }

    /// Reads until at least `minimum` bytes wait; answers how many do, 0 when the peer has closed.
    pub(super) async fn fill(&mut self, minimum: usize) -> io::Result<usize> {
        self.buffer.drain(..self.start.min(self.buffer.len()));
        self.start = 0;
        while self.buffer.len() < minimum {
            // Grown by what arrives, not by what a length promises.
            self.buffer.reserve(65_536);
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Ok(0);
            }
        }
        Ok(self.buffer.len())
    }
}

/// The writing half of a connection, with the faults that concern bytes.
pub(super) struct Outlet {
    write: OwnedWriteHalf,
    shared: Arc<Shared>,
    /// Bytes since the answer to PSYNC; `None` on an ordinary connection.
    pub(super) link_bytes: Option<u64>,
}

impl Outlet {
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut part = bytes.len();
            let (one_byte, silent_after, stall) = {
                let faults = &self.shared.node().faults;
                (faults.one_byte_writes, faults.silent_after, Fault::peek(&faults.stall_after).copied())
            };
            if one_byte {
                part = 1;
            }
            if let Some(sent) = self.link_bytes {
                if let Some(after) = silent_after {
                    if sent >= after {
                        std::future::pending::<()>().await;
                    }
                    part = part.min((after - sent) as usize);
                }
                if let Some((after, pause)) = stall {
                    if sent >= after {
                        Fault::take(&mut self.shared.node().faults.stall_after);
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                    part = part.min((after - sent) as usize);
                }
            }
            let (now, later) = bytes.split_at(part.min(bytes.len()));
            self.write.write_all(now).await?;
            self.link_bytes = self.link_bytes.map(|sent| sent + now.len() as u64);
            bytes = later;
        }
        Ok(())
    }
}
