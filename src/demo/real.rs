//! Real servers for `demo --real`: two `redis-server` or `valkey-server` processes in temporary directories, filled and
//! read through a plain client. They persist nothing, listen on 127.0.0.1 only, and end when their handle is dropped.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::restore;
use super::server::unix_ms;
use super::store::{DATABASES, Entry, Store};
use super::wire::{Argv, Reply, parse_reply, write_command};

/// The first `redis-server` or `valkey-server` on PATH.
pub fn find_server() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let candidates = ["redis-server", "valkey-server"]
        .into_iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    candidates.into_iter().find(|program| program.is_file())
}

/// One server process.
#[derive(Debug)]
pub struct RealServer {
    child: Child,
    address: SocketAddr,
    directory: PathBuf,
}

impl RealServer {
    /// Starts `program` on a free port and waits until it answers; `arguments` are more options for it.
    pub async fn start(program: &Path, arguments: &[&str]) -> io::Result<RealServer> {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let mut last_error = io::Error::other("not tried");
        // The port is free when it is chosen; somebody else may be faster.
        for _ in 0..5 {
            let number = STARTED.fetch_add(1, Ordering::Relaxed);
            let directory =
                std::env::temp_dir().join(format!("shakedeck-demo-{}-{number}", std::process::id()));
            // A directory that is there already is somebody else's.
            std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
            let address = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
            let child = Command::new(program)
                .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--daemonize", "no"])
                .args(["--save", "", "--appendonly", "no", "--logfile", "server.log", "--dir"])
                .arg(&directory)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .current_dir(&directory)
                // In a group of its own: Ctrl-C is meant for this program, which still needs its servers to stop in order.
                .process_group(0)
                .spawn()?;
            let mut server = RealServer { child, address, directory };
            match server.wait_until_ready().await {
                Ok(()) => return Ok(server),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    async fn wait_until_ready(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = std::fs::read_to_string(self.directory.join("server.log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or("nothing in its log").to_owned();
                return Err(io::Error::other(format!("the server ended at once ({status}): {last}")));
            }
            if let Ok(mut client) = RespClient::connect(self.address).await
                && let Ok(reply) = client.command(&["PING"]).await
                && reply == Reply::simple("PONG")
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "the server on {} did not answer for 15 s",
                    self.address
                )));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        // Nothing is worth keeping, and there is nobody to tell if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A plain RESP2 client.
pub struct RespClient {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// How long a server may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(60);

impl RespClient {
    /// Opens a connection.
    pub async fn connect(address: SocketAddr) -> io::Result<RespClient> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(RespClient { stream, buffer: Vec::new() })
    }

    /// Sends one command and waits for its reply; an error reply is a reply.
    pub async fn command<A: AsRef<[u8]>>(&mut self, argv: &[A]) -> io::Result<Reply> {
        let argv: Argv = argv.iter().map(|argument| argument.as_ref().to_vec()).collect();
        let replies = self.pipeline(std::slice::from_ref(&argv)).await?;
        replies.into_iter().next().ok_or_else(|| io::Error::other("no reply"))
    }

    /// Sends commands in one go and waits for all replies. Keep it to some thousands: the replies are read at the end.
    pub async fn pipeline(&mut self, commands: &[Argv]) -> io::Result<Vec<Reply>> {
        let mut bytes = Vec::new();
        commands.iter().for_each(|argv| write_command(&mut bytes, argv));
        let (mut read, mut write) = self.stream.split();
        let buffer = &mut self.buffer;
        let reading = async {
            let mut replies = Vec::with_capacity(commands.len());
            let mut used = 0;
            while replies.len() < commands.len() {
                match parse_reply(buffer.get(used..).unwrap_or_default()).map_err(io::Error::other)? {
                    Some((reply, length)) => {
                        replies.push(reply);
                        used += length;
                    }
                    None => {
                        buffer.drain(..used);
                        used = 0;
                        buffer.reserve(65_536);
                        if read.read_buf(buffer).await? == 0 {
                            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                        }
                    }
                }
            }
            buffer.drain(..used);
            Ok(replies)
        };
        let both = async { tokio::try_join!(write.write_all(&bytes), reading) };
        let (_, replies) =
            timeout(ANSWER_TIME, both).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok(replies)
    }
}

/// Commands of one pipeline.
const PIPELINE: usize = 1_000;

/// Puts every key of a store into a server, with RESTORE, in an RDB version that the server takes (5.0 and newer).
pub async fn write_store(address: SocketAddr, store: &Store) -> io::Result<()> {
    let mut client = RespClient::connect(address).await?;
    let info = info(&mut client, "server").await?;
    let version = info_field(&info, "redis_version").unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let rdb_version = match (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) {
        (..7, _) => 9,
        (7, ..2) => 10,
        _ => 11,
    };
    for db in 0..DATABASES {
        let mut commands = vec![vec![b"SELECT".to_vec(), db.to_string().into_bytes()]];
        for (key, entry) in store.iter(db) {
            commands.push(vec![
                b"RESTORE".to_vec(),
                key.clone(),
                entry.expires_ms().unwrap_or(0).to_string().into_bytes(),
                super::rdb_writer::dump(&entry.value, rdb_version),
                b"REPLACE".to_vec(),
                b"ABSTTL".to_vec(),
            ]);
            if commands.len() >= PIPELINE {
                expect_no_error(&client.pipeline(&commands).await?)?;
                commands.clear();
            }
        }
        expect_no_error(&client.pipeline(&commands).await?)?;
    }
    Ok(())
}

/// `master_repl_offset` of a server.
pub async fn replication_offset(address: SocketAddr) -> io::Result<u64> {
    let info = info(&mut RespClient::connect(address).await?, "replication").await?;
    let offset = info_field(&info, "master_repl_offset").and_then(|offset| offset.parse().ok());
    offset.ok_or_else(|| io::Error::other("INFO replication shows no master_repl_offset"))
}

async fn info(client: &mut RespClient, section: &str) -> io::Result<String> {
    match client.command(&["INFO", section]).await? {
        Reply::Bulk(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        other => Err(unexpected(&other)),
    }
}

fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

/// Reads every key of a server: SCAN, then DUMP and the expiry of each. The second value is how far (ms) an expiry may
/// be off: servers before 7.0 only tell the time that is left.
pub async fn read_store(address: SocketAddr) -> io::Result<(Store, u64)> {
    let mut client = RespClient::connect(address).await?;
    let mut store = Store::default();
    let probe = client.command(&["PEXPIRETIME", "shakedeck:no-such-key"]).await?;
    let exact = matches!(probe, Reply::Integer(_));
    for db in 0..DATABASES {
        expect_no_error(&[client.command(&["SELECT", &db.to_string()]).await?])?;
        let mut cursor = b"0".to_vec();
        loop {
            let reply = client.command(&[b"SCAN".as_slice(), &cursor, b"COUNT", b"1000"]).await?;
            let Reply::Array(parts) = &reply else { return Err(unexpected(&reply)) };
            let [Reply::Bulk(next), Reply::Array(keys)] = parts.as_slice() else {
                return Err(unexpected(&reply));
            };
            let keys: Vec<&Vec<u8>> = keys
                .iter()
                .filter_map(|key| if let Reply::Bulk(key) = key { Some(key) } else { None })
                .collect();
            read_keys(&mut client, db, &keys, exact, &mut store).await?;
            cursor.clone_from(next);
            if cursor == b"0" {
                break;
            }
        }
    }
    Ok((store, if exact { 0 } else { 2_000 }))
}

async fn read_keys(
    client: &mut RespClient,
    db: usize,
    keys: &[&Vec<u8>],
    exact: bool,
    store: &mut Store,
) -> io::Result<()> {
    let expiry: &[u8] = if exact { b"PEXPIRETIME" } else { b"PTTL" };
    let commands: Vec<Argv> = keys
        .iter()
        .flat_map(|key| [vec![b"DUMP".to_vec(), key.to_vec()], vec![expiry.to_vec(), key.to_vec()]])
        .collect();
    let replies = client.pipeline(&commands).await?;
    let now_ms = unix_ms();
    for (key, answers) in keys.iter().zip(replies.chunks(2)) {
        let (payload, time) = match answers {
            [Reply::Bulk(payload), Reply::Integer(time)] => (payload, *time),
            // Expired between SCAN and DUMP.
            [Reply::Null, _] => continue,
            [Reply::Error(text), _] | [_, Reply::Error(text)] => return Err(io::Error::other(text.clone())),
            _ => return Err(io::Error::other("an unexpected answer to DUMP")),
        };
        let value = restore::decode(payload, u16::MAX).map_err(|error| {
            io::Error::other(format!(
                "key '{}' of database {db} cannot be read: {error:?}",
                key.escape_ascii()
            ))
        })?;
        let expires_ms = u64::try_from(time).ok().map(|time| if exact { time } else { now_ms + time });
        store.insert(db, key.to_vec(), Entry::with_expiry(value, expires_ms));
    }
    Ok(())
}

/// The first error among replies, as an error of the client.
fn expect_no_error(replies: &[Reply]) -> io::Result<()> {
    match replies.iter().find(|reply| matches!(reply, Reply::Error(_))) {
        Some(error) => Err(unexpected(error)),
        None => Ok(()),
    }
}

fn unexpected(reply: &Reply) -> io::Error {
    io::Error::other(format!("the server answered {reply:?}"))
}
