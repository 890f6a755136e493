//! One running server in a directory of its own on a free port of 127.0.0.1, ended when dropped.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::client::{Client, Reply};
use super::note;
use super::servers::{Flavor, ServerBinary};
use super::tls::Certificates;

/// How a server is started. By default: no persistence, no password, diskless replication without delay, 16
/// databases, DEBUG allowed.
#[derive(Debug, Clone, Default)]
pub struct Options {
    password: Option<String>,
    users: Vec<String>,
    tls: bool,
    mutual_tls: bool,
    other_name: Option<String>,
    expired: bool,
    certificates: Option<Certificates>,
    disk_based: bool,
    rdb: Option<PathBuf>,
    stays_loading: bool,
    cluster: bool,
    lines: Vec<String>,
}

impl Options {
    pub fn new() -> Self {
        Options::default()
    }

    /// `requirepass`; [`Server::client`] knows it.
    pub fn requirepass(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// A line of the ACL file without the word `user`: `"app on >secret ~* &* +@all -psync"`.
    pub fn user(mut self, rules: &str) -> Self {
        self.users.push(format!("user {rules}"));
        self
    }

    /// Listens with TLS as well ([`Server::tls_address`], [`Server::certificates`]); the plain port stays open.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// TLS which asks the client for a certificate.
    pub fn mutual_tls(mut self) -> Self {
        (self.tls, self.mutual_tls) = (true, true);
        self
    }

    /// Its certificate is for another name than the one that it is reached by.
    pub fn certificate_for(mut self, name: &str) -> Self {
        self.other_name = Some(name.to_owned());
        self
    }

    /// Its certificate is over since long.
    pub fn expired_certificate(mut self) -> Self {
        self.expired = true;
        self
    }

    /// TLS with the certificates of another server, as the nodes of a cluster have them.
    pub fn certificates(mut self, certificates: &Certificates) -> Self {
        self.certificates = Some(certificates.clone());
        self
    }

    /// Whether it listens with TLS.
    pub fn has_tls(&self) -> bool {
        self.tls
    }

    /// `repl-diskless-sync`: how a full sync is sent.
    pub fn diskless(mut self, diskless: bool) -> Self {
        self.disk_based = !diskless;
        self
    }

    /// Starts with a copy of this RDB file.
    pub fn rdb(mut self, file: &Path) -> Self {
        self.rdb = Some(file.to_owned());
        self
    }

    /// The server is taken for started while it still answers `-LOADING`.
    pub fn stays_loading(mut self) -> Self {
        self.stays_loading = true;
        self
    }

    /// A node of a cluster that does not know any other node yet; [`super::cluster::Cluster`] brings them together.
    pub fn cluster_node(mut self) -> Self {
        self.cluster = true;
        self
    }

    /// Any other line of the configuration file.
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.lines.push(format!("{key} {value}"));
        self
    }
}

/// A running server.
pub struct Server {
    binary: ServerBinary,
    options: Options,
    port: u16,
    tls_port: u16,
    certificates: Option<Certificates>,
    process: Child,
    // The last field: dropped after the process has ended.
    folder: TempDir,
}

impl Server {
    /// Starts a server and waits until it answers. Panics with its log when it does not.
    #[track_caller]
    pub fn start(binary: &ServerBinary, options: Options) -> Server {
        note(&format!("server {binary}"));
        // Another process may take a free port between the question and the start: then again with another one.
        let mut log = String::new();
        for _ in 0..5 {
            match Server::try_start(binary, options.clone()) {
                Ok(server) => return server,
                Err(text) => log = text,
            }
            if !log.contains("Address already in use") && !log.contains("bind") {
                break;
            }
        }
        panic!("{binary} did not start:\n{log}");
    }

    fn try_start(binary: &ServerBinary, options: Options) -> Result<Server, String> {
        let folder = tempfile::Builder::new().prefix("shakedeck-server-").tempdir().unwrap();
        let (port, tls_port) = free_ports(options.cluster);
        let certificates = options.tls.then(|| {
            let names =
                options.other_name.as_deref().map_or(vec!["localhost", "127.0.0.1"], |name| vec![name]);
            let own = || Certificates::with(folder.path(), &names, options.expired);
            options.certificates.clone().unwrap_or_else(own)
        });
        let text = configuration(binary, &options, folder.path(), port, tls_port, certificates.as_ref());
        std::fs::write(folder.path().join("server.conf"), text).unwrap();
        if let Some(rdb) = &options.rdb {
            std::fs::copy(rdb, folder.path().join("dump.rdb")).unwrap();
        }
        let process = spawn(binary, folder.path());
        let mut server =
            Server { binary: binary.clone(), options, port, tls_port, certificates, process, folder };
        server.wait_ready()?;
        Ok(server)
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if self.process.try_wait().unwrap().is_some() {
                return Err(self.log());
            }
            match self.try_client().and_then(|mut client| client.try_cmd(&["PING"])) {
                Ok(Reply::Error(error)) if error.starts_with("LOADING") && self.options.stays_loading => {
                    return Ok(());
                }
                Ok(Reply::SimpleString(_)) => return Ok(()),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Err(format!("no PONG within 20 s\n{}", self.log()))
    }

    /// What runs here.
    pub fn binary(&self) -> &ServerBinary {
        &self.binary
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Where it listens with TLS (only with [`Options::tls`]).
    pub fn tls_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.tls_port).into()
    }

    pub fn certificates(&self) -> &Certificates {
        self.certificates.as_ref().expect("the server was started with Options::tls")
    }

    /// Path of its Unix socket.
    pub fn unix_socket(&self) -> PathBuf {
        self.folder.path().join("server.sock")
    }

    /// Its working directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn password(&self) -> Option<&str> {
        self.options.password.as_deref()
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// A connection that may do everything.
    #[track_caller]
    pub fn client(&self) -> Client {
        self.try_client().unwrap_or_else(|error| panic!("{} on port {}: {error}", self.binary, self.port))
    }

    fn try_client(&self) -> std::io::Result<Client> {
        let mut client = Client::try_connect(self.address())?;
        if let Some(password) = &self.options.password {
            client.try_cmd(&["AUTH", password])?;
        }
        Ok(client)
    }

    /// What it has logged so far; before that what it has printed, which is where it complains about its options.
    pub fn log(&self) -> String {
        let read = |name| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("server.out") + &read("server.log")
    }

    /// Stands still without losing its connections, until [`Server::resume`].
    pub fn suspend(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it like a crash; the port stays ours for [`Server::restart`] as far as nobody takes it.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Starts it again on the same port and directory, after [`Server::kill`] or in place of it.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        self.process = spawn(&self.binary, self.folder.path());
        if let Err(log) = self.wait_ready() {
            panic!("{} did not start again:\n{log}", self.binary);
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id() as i32).expect("a running process");
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("--- last lines of {} on port {}:", self.binary, self.port);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

fn spawn(binary: &ServerBinary, folder: &Path) -> Child {
    let output = File::create(folder.join("server.out")).unwrap();
    Command::new(&binary.path)
        .arg(folder.join("server.conf"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", binary.path.display()))
}

fn configuration(
    binary: &ServerBinary,
    options: &Options,
    folder: &Path,
    port: u16,
    tls_port: u16,
    certificates: Option<&Certificates>,
) -> String {
    let folder = folder.display();
    let mut lines = vec![
        format!("port {port}"),
        "bind 127.0.0.1".into(),
        format!("dir {folder}"),
        format!("logfile {folder}/server.log"),
        format!("unixsocket {folder}/server.sock"),
        "save \"\"".into(),
        "appendonly no".into(),
        "databases 16".into(),
        format!("repl-diskless-sync {}", if options.disk_based { "no" } else { "yes" }),
        "repl-diskless-sync-delay 0".into(),
    ];
    if binary.flavor == Flavor::Valkey || binary.version >= (7, 0, 0) {
        lines.push("enable-debug-command yes".into());
    }
    if let Some(password) = &options.password {
        lines.push(format!("requirepass \"{password}\""));
    }
    if !options.users.is_empty() {
        // An ACL file replaces what requirepass says about the default user.
        let password = options.password.as_ref().map_or("nopass".into(), |password| format!(">{password}"));
        let text = format!("user default on {password} ~* &* +@all\n{}\n", options.users.join("\n"));
        std::fs::write(format!("{folder}/users.acl"), text).unwrap();
        lines.push(format!("aclfile {folder}/users.acl"));
    }
    if let Some(files) = certificates {
        lines.push(format!("tls-port {tls_port}"));
        lines.push(format!("tls-ca-cert-file {}", files.ca.display()));
        lines.push(format!("tls-cert-file {}", files.server.display()));
        lines.push(format!("tls-key-file {}", files.server_key.display()));
        lines.push(format!("tls-auth-clients {}", if options.mutual_tls { "yes" } else { "no" }));
    }
    if options.cluster {
        lines.push("cluster-enabled yes".into());
        lines.push("cluster-config-file nodes.conf".into());
    }
    lines.extend(options.lines.iter().cloned());
    lines.join("\n") + "\n"
}

/// Two ports that were free a moment ago. A node of a cluster listens on the port 10,000 above its own as well (only
/// since 7.0 that one can be chosen).
fn free_ports(cluster: bool) -> (u16, u16) {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    loop {
        let (first, second) = (listen(0).unwrap(), listen(0).unwrap());
        let [port, tls_port] = [&first, &second].map(|listener| listener.local_addr().unwrap().port());
        // The bus belongs to the TLS port where the nodes talk by TLS to each other.
        let has_bus = |port: u16| port.checked_add(10_000).is_some_and(|bus| listen(bus).is_ok());
        if !cluster || has_bus(port) && has_bus(tls_port) {
            return (port, tls_port);
        }
    }
}
