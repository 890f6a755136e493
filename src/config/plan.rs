//! What the operator wants, after parsing: values that cannot be wrong. Nothing here is checked a second time later.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::cutover::{Hook, SourceAfter};
use crate::verify::Mode;

/// A whole migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where the data comes from.
    pub reader: Reader,
    /// Where it goes.
    pub writer: Writer,
    /// What is kept and what is dropped.
    pub filter: Filter,
    /// Limits and files.
    pub advanced: Advanced,
    /// The disk spool.
    pub spool: Spool,
    /// What to do when something must be decided while running.
    pub policy: Policy,
    /// When the migration counts as caught up.
    pub cutover: Cutover,
    /// Differences from RedisShake that the operator should know, one sentence each, said at load.
    pub notices: Vec<String>,
}

/// Where the data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reader {
    /// `[sync_reader]`: PSYNC as a replica.
    Sync(SyncReader),
    /// `[rdb_reader]`: one RDB file.
    Rdb {
        /// The file.
        filepath: PathBuf,
    },
}

/// `[sync_reader]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncReader {
    /// The server, or any node of the cluster.
    pub endpoint: Endpoint,
    /// It is a cluster: every master of it is a source.
    pub cluster: bool,
    /// Apply the RDB of a full sync.
    pub sync_rdb: bool,
    /// Apply the stream after it; `false` ends the run after the RDB.
    pub sync_aof: bool,
    /// Read from a replica of the endpoint; everything but the replication link still goes to the endpoint itself.
    pub prefer_replica: bool,
    /// What nodes call the PSYNC command where a provider has renamed it; empty = PSYNC everywhere.
    pub psync_names: BTreeMap<Address, Secret>,
    /// Most full syncs that are received at once from a cluster; 0 = one for each host.
    pub full_sync_parallel: usize,
}

/// `[redis_writer]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The server, or any node of the cluster.
    pub endpoint: Endpoint,
    /// It is a cluster: each key goes to the master of its slot.
    pub cluster: bool,
    /// It does not answer the commands of the stream: what it refuses is not seen.
    pub off_reply: bool,
}

/// How to reach one server, or one side that consists of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens; with `sentinel` the name of the master, which names no place.
    pub address: Address,
    /// Further nodes of the same cluster, to be asked where `address` does not answer.
    pub seeds: Vec<Address>,
    /// Who knows where the master is; asked at every connection.
    pub sentinel: Option<Box<Sentinel>>,
    /// Where addresses that servers tell are reached from here.
    pub address_map: AddressMap,
    /// ACL user; `None` = the default user.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// TLS settings; `None` = plain.
    pub tls: Option<Box<Tls>>,
}

impl Endpoint {
    /// Another node of the same side, which listens at an address that was asked for, not configured.
    pub fn at(&self, address: Address) -> Endpoint {
        Endpoint { address, seeds: Vec::new(), sentinel: None, ..self.clone() }
    }

    /// Who we are there.
    pub fn user(&self) -> &str {
        self.username.as_deref().unwrap_or("default")
    }
}

/// `[….sentinel]`: the sentinels of one master, and how they are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentinel {
    /// What the sentinels call the master.
    pub master: String,
    /// At least one.
    pub addresses: Vec<Address>,
    /// Their own ACL user; the credentials of the servers are not theirs.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// TLS settings; `None` = plain.
    pub tls: Option<Tls>,
}

/// `address_map`: addresses as servers tell them, and where those servers are reached from here (NAT, containers).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressMap(BTreeMap<Address, Address>);

impl AddressMap {
    /// Where the server is reached that says it listens at `told`.
    pub fn map(&self, told: &Address) -> Address {
        self.0.get(told).unwrap_or(told).clone()
    }
}

impl FromIterator<(Address, Address)> for AddressMap {
    fn from_iter<T: IntoIterator<Item = (Address, Address)>>(pairs: T) -> Self {
        AddressMap(pairs.into_iter().collect())
    }
}

/// `db_map`: databases of the source that get another number on the destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DbMap(BTreeMap<u32, u32>);

impl DbMap {
    /// The database of the destination for one of the source.
    pub fn map(&self, source: u32) -> u32 {
        self.0.get(&source).copied().unwrap_or(source)
    }

    /// Every database stays what it is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The databases of the source that `filter` keeps and that go to this one of the destination.
    pub fn sources_of(&self, destination: u32, filter: &Filter) -> Vec<u32> {
        let mapped = self.pairs().map(|(source, _)| source).filter(|source| *source != destination);
        let all = mapped.chain([destination]);
        all.filter(|source| filter.keeps_db(*source) && self.map(*source) == destination).collect()
    }

    /// The pairs (source, destination).
    pub fn pairs(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().map(|(source, destination)| (*source, *destination))
    }
}

impl FromIterator<(u32, u32)> for DbMap {
    fn from_iter<T: IntoIterator<Item = (u32, u32)>>(pairs: T) -> Self {
        DbMap(pairs.into_iter().collect())
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// Host name or IP address (IPv6 without brackets) and port.
    Tcp {
        /// Host name or IP address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// Path of a Unix socket, written `unix:/path` or `/path`.
    Unix(PathBuf),
    /// A master that its sentinels know, wherever it is: `name@host:port`, with the first sentinel of the list.
    Named(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
            Address::Named(name) => f.write_str(name),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    /// Reads what [`fmt::Display`] writes, and the notations of the configuration.
    fn from_str(text: &str) -> Result<Address, String> {
        match super::value::address(text) {
            Ok(Some(address)) => Ok(address),
            Ok(None) => Err("the address is empty".to_owned()),
            Err(wrong) => Err(wrong.message),
        }
    }
}

/// A password. It shows itself nowhere: `Debug` prints stars and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The password itself, for the AUTH command and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// TLS of one side. The certificate is verified unless `insecure`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// Accept any certificate (shown as a warning for as long as the run lasts).
    pub insecure: bool,
    /// PEM file of the authorities to trust; `None` = the system's.
    pub ca_cert: Option<PathBuf>,
    /// PEM file of our certificate chain, for mutual TLS.
    pub cert: Option<PathBuf>,
    /// PEM file of its key.
    pub key: Option<PathBuf>,
    /// Name to ask for and to verify; `None` = the host of the address.
    pub server_name: Option<String>,
}

/// `[filter]`, as far as it is supported.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Databases to keep; empty = all.
    pub allow_db: BTreeSet<u32>,
    /// Databases to drop.
    pub block_db: BTreeSet<u32>,
}

impl Filter {
    /// Whether this database of the source is copied.
    pub fn keeps_db(&self, db: u32) -> bool {
        !self.block_db.contains(&db) && (self.allow_db.is_empty() || self.allow_db.contains(&db))
    }
}

/// `[advanced]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advanced {
    /// Data directory: spool, manifests, control socket and log. Relative to the working directory.
    pub dir: PathBuf,
    /// Worker threads; 0 = one per processor.
    pub ncpu: usize,
    /// Port of the HTTP status on 127.0.0.1; 0 = off.
    pub status_port: u16,
    /// Log file; relative to `dir`.
    pub log_file: PathBuf,
    /// Least level that is logged.
    pub log_level: LogLevel,
    /// Time between two progress lines of a headless run.
    pub log_interval: Duration,
    /// What to do when a key of the RDB exists on the destination already.
    pub on_existing_key: OnExistingKey,
    /// Most commands sent and not yet answered, per destination node.
    pub pipeline_count_limit: usize,
    /// `client-query-buffer-limit` of the destination (bytes): most that is sent and not yet answered.
    pub max_querybuf_len: u64,
    /// `proto-max-bulk-len` of the destination (bytes): a larger RESTORE is sent as commands; 0 = always commands.
    pub max_bulk_len: u64,
    /// Empty the destination before the full sync.
    pub empty_db_before_sync: bool,
    /// Databases that get another number on the destination.
    pub db_map: DbMap,
}

/// Log level of the file and the log pane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
}

/// `rdb_restore_command_behavior`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExistingKey {
    /// Stop the migration.
    Panic,
    /// Replace it.
    Rewrite,
    /// Keep it and count it.
    Skip,
}

impl OnExistingKey {
    /// The word of the configuration file.
    pub fn word(self) -> &'static str {
        match self {
            OnExistingKey::Panic => "panic",
            OnExistingKey::Rewrite => "rewrite",
            OnExistingKey::Skip => "skip",
        }
    }
}

/// `[spool]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spool {
    /// Most bytes on disk.
    pub max_bytes: u64,
    /// Free bytes that must stay on the file system.
    pub min_free_bytes: u64,
}

/// `[policy]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What to do when the source cannot continue and offers a full sync only.
    pub on_full_resync: OnFullResync,
    /// What to do when another full sync brings no key at all, and the destination has some of former ones.
    pub on_empty_source: OnEmptySource,
    /// What to do with a value that cannot be decoded or that the destination refuses.
    pub on_bad_value: OnBadValue,
    /// A source that could not be reached for so long is gone: what it sent is applied, and the run ends. Zero = never.
    pub source_gone_after: Duration,
    /// FLUSHALL and FLUSHDB. Of one shard of a cluster they only ever concern the keys of that shard.
    pub on_flush: OnKeyless,
    /// SWAPDB. A cluster does not exchange databases: there it is set aside at least.
    pub on_swapdb: OnKeyless,
    /// SCRIPT and FUNCTION: to every master of a cluster.
    pub on_function: OnKeyless,
    /// PUBLISH and SPUBLISH.
    pub on_publish: OnKeyless,
}

/// What becomes of a command of the stream that concerns no single key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnKeyless {
    /// Done at the destination too.
    Apply,
    /// Set aside.
    Quarantine,
    /// Left out and counted.
    Drop,
}

/// `[policy] on_full_resync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFullResync {
    /// Take the new full sync.
    Resync,
    /// Stop and say so.
    Stop,
}

/// `[policy] on_empty_source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEmptySource {
    /// Keep what the destination has, and wait for another full sync or another start.
    Wait,
    /// Remove it there too.
    Follow,
}

/// `[policy] on_bad_value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBadValue {
    /// Set it aside, count it, go on.
    Quarantine,
    /// Stop and say so.
    Stop,
}

/// `[cutover]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cutover {
    /// Lag gate (bytes).
    pub max_lag_bytes: u64,
    /// Lag gate (time).
    pub max_lag: Duration,
    /// How long the lag must have been under both gates.
    pub hold_for: Duration,
    /// Length of one pause; renewed at a third of it, so this is how long a crash of ours blocks writers at most.
    pub fence_timeout: Duration,
    /// How long the destination may take to confirm the fenced offsets.
    pub drain_timeout: Duration,
    /// How long writers may be blocked in all; past it the cutover goes back by itself.
    pub max_blocked: Duration,
    /// What is compared while fenced; `None` = nothing.
    pub verify: Option<Mode>,
    /// How many keys are compared then, chosen at random; 0 = all.
    pub sample: u64,
    /// True: everything is proved and the operator says go; false: hand over at once.
    pub ask_to_go: bool,
    /// What becomes of the old source.
    pub source_after: SourceAfter,
    /// After the switch the destination's writes flow back to the old source.
    pub reverse: bool,
    /// Executables, by the moment at which they run.
    pub hooks: BTreeMap<Hook, PathBuf>,
    /// How long a hook may run.
    pub hook_timeout: Duration,
}
