//! One connection to a server: TCP, TLS (`tls.rs`) or Unix socket, then AUTH.
//!
//! Every wait has a deadline and every error names the server, what was being done and the cure. The same type serves
//! the replication link, the writer and short questions (INFO, CONFIG GET).

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::{sentinel, tls};
use crate::config::{Address, Endpoint};
use crate::resp::{self, Reply};

/// Longest wait for a connection or for the answer to a short question.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest line that a server may answer during the handshake.
const MAX_LINE_LEN: usize = 64 * 1024;

/// What can go wrong between us and one server.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No connection.
    #[error("{address}: cannot connect: {cause}. Is the server running there, and may this host reach it?")]
    Connect {
        /// The server.
        address: Address,
        /// Why.
        cause: io::Error,
    },
    /// No answer in time.
    #[error("{address}: no answer to {what} within {} s", limit.as_secs())]
    Timeout {
        /// The server.
        address: Address,
        /// What was asked.
        what: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The connection ended.
    #[error("{address}: connection lost during {what}: {cause}")]
    Lost {
        /// The server.
        address: Address,
        /// What was being done.
        what: String,
        /// Why.
        cause: io::Error,
    },
    /// Nobody knows a server that is the master now.
    #[error("{address}: no master was found: {found}. A failover may be under way")]
    NoMaster {
        /// Its name.
        address: Address,
        /// What the sentinels, or the servers that they named, said.
        found: String,
    },
    /// TLS could not be agreed on.
    #[error("{address}: TLS failed: {cause}. {cure}")]
    Tls {
        /// The server.
        address: Address,
        /// Why.
        cause: String,
        /// What to change.
        cure: String,
    },
    /// The server answered something that is not RESP, or not what the protocol says.
    #[error("{address}: unexpected answer to {what}: {found}. {cure}")]
    Protocol {
        /// The server.
        address: Address,
        /// What was asked.
        what: String,
        /// The answer, escaped.
        found: String,
        /// What to check.
        cure: String,
    },
    /// The server refused.
    #[error("{address}: {what} was refused: '{reply}'. {cure}")]
    Refused {
        /// The server.
        address: Address,
        /// What was asked.
        what: String,
        /// The error answer.
        reply: String,
        /// What to change.
        cure: String,
    },
    /// The server refused because of a state that passes.
    #[error("{address}: {what} was refused for now: '{reply}': {cure}")]
    NotNow {
        /// The server.
        address: Address,
        /// What was asked.
        what: String,
        /// The error answer.
        reply: String,
        /// What ends that state.
        cure: String,
    },
}

impl NetError {
    /// The server.
    pub fn address(&self) -> &Address {
        match self {
            NetError::Connect { address, .. }
            | NetError::Timeout { address, .. }
            | NetError::Lost { address, .. }
            | NetError::NoMaster { address, .. }
            | NetError::Tls { address, .. }
            | NetError::Protocol { address, .. }
            | NetError::Refused { address, .. }
            | NetError::NotNow { address, .. } => address,
        }
    }

    /// True when the same attempt may succeed later without anybody changing the configuration.
    pub fn is_transient(&self) -> bool {
        match self {
            NetError::Connect { .. }
            | NetError::Timeout { .. }
            | NetError::Lost { .. }
            | NetError::NoMaster { .. }
            | NetError::NotNow { .. } => true,
            NetError::Tls { .. } | NetError::Protocol { .. } => false,
            NetError::Refused { reply, .. } => {
                ["LOADING", "BUSY", "MASTERDOWN", "NOMASTERLINK", "TRYAGAIN", "CLUSTERDOWN", "MOVED", "ASK "]
                    .iter()
                    .any(|code| reply.starts_with(code))
                    || reply.contains("max number of clients")
            }
        }
    }
}

/// Any byte stream to a server.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// An open, authenticated connection.
pub struct Connection {
    /// The server itself, also where a sentinel told its address.
    pub address: Address,
    /// Who we are there.
    pub user: String,
    /// The stream.
    pub io: Box<dyn Io>,
    /// Bytes read and not yet used.
    pub buffer: BytesMut,
    /// Over TLS.
    encrypted: bool,
    /// The certificate that the server may ask us for.
    certificate: Option<PathBuf>,
    /// Something has come from it.
    heard: bool,
}

impl Connection {
    /// Connects and authenticates; where sentinels know the master, to the one that is it now.
    pub async fn open(endpoint: &Endpoint) -> Result<Connection, NetError> {
        match &endpoint.sentinel {
            Some(sentinel) => sentinel::open_master(endpoint, sentinel).await,
            None => Connection::open_at(endpoint.address.clone(), endpoint).await,
        }
    }

    /// The same to this very address, with the credentials and the TLS of `endpoint`.
    pub(super) async fn open_at(address: Address, endpoint: &Endpoint) -> Result<Connection, NetError> {
        let connecting = async {
            let io: Box<dyn Io> = match &address {
                Address::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port))
                        .await
                        .map_err(|cause| NetError::Connect { address: address.clone(), cause })?;
                    // Batches are written whole: waiting for more (Nagle) would only add latency.
                    let _ = stream.set_nodelay(true);
                    match &endpoint.tls {
                        None => Box::new(stream),
                        Some(tls) => Box::new(tls::connect(&address, host, stream, tls).await?),
                    }
                }
                Address::Unix(path) => Box::new(
                    UnixStream::connect(path)
                        .await
                        .map_err(|cause| NetError::Connect { address: address.clone(), cause })?,
                ),
                Address::Named(_) => {
                    let cause = io::Error::new(io::ErrorKind::AddrNotAvailable, "a name without a place");
                    return Err(NetError::Connect { address: address.clone(), cause });
                }
            };
            Ok(Connection {
                address: address.clone(),
                user: endpoint.user().to_owned(),
                io,
                buffer: BytesMut::with_capacity(16 * 1024),
                encrypted: endpoint.tls.is_some(),
                certificate: endpoint.tls.as_ref().and_then(|tls| tls.cert.clone()),
                heard: false,
            })
        };
        let opened = timeout(REQUEST_TIMEOUT, connecting).await.unwrap_or_else(|_| {
            Err(NetError::Timeout {
                address: address.clone(),
                what: "the connection attempt".into(),
                limit: REQUEST_TIMEOUT,
            })
        });
        let mut connection = match opened {
            Ok(connection) => connection,
            Err(error) if endpoint.tls.is_some() => return Err(tls::unless_plain(error, &address).await),
            Err(error) => return Err(error),
        };
        connection.authenticate(endpoint).await?;
        Ok(connection)
    }

    async fn authenticate(&mut self, endpoint: &Endpoint) -> Result<(), NetError> {
        let Some(password) = &endpoint.password else { return Ok(()) };
        let mut args: Vec<&[u8]> = vec![b"AUTH"];
        if let Some(username) = &endpoint.username {
            args.push(username.as_bytes());
        }
        args.push(password.reveal().as_bytes());
        match self.request(&args).await? {
            // A server without a password answers an error to AUTH: the operator's file says something untrue.
            Reply::Error(reply) => Err(NetError::Refused {
                address: self.address.clone(),
                what: "AUTH".into(),
                cure: if reply.contains("without any password configured") || reply.contains("no password") {
                    "The server has no password: remove 'password' of this side from the configuration."
                        .into()
                } else {
                    let user = &self.user;
                    format!(
                        "Check 'username' and 'password' of this side in the configuration (user '{user}')."
                    )
                },
                reply,
            }),
            _ => Ok(()),
        }
    }

    /// "master" or "slave", by ROLE or INFO; `None` where the user may ask neither.
    pub async fn role(&mut self) -> Result<Option<String>, NetError> {
        if let Reply::Array(role) = self.request(&[b"ROLE"]).await? {
            return Ok(role.first().and_then(Reply::text).map(str::to_owned));
        }
        match self.request(&[b"INFO", b"replication"]).await? {
            Reply::Bulk(info) => Ok(info_field(&String::from_utf8_lossy(&info), "role").map(str::to_owned)),
            _ => Ok(None),
        }
    }

    /// Sends one command and waits for its reply.
    pub async fn request(&mut self, args: &[&[u8]]) -> Result<Reply, NetError> {
        // Only the verb: arguments may hold a password.
        let what = String::from_utf8_lossy(args.first().copied().unwrap_or_default()).into_owned();
        let mut command = Vec::new();
        resp::append_command(&mut command, args);
        let answered = match self.send(&command, &what).await {
            Err(error) if self.heard || matches!(error, NetError::Timeout { .. }) => return Err(error),
            // A server that has closed the link before may have said why.
            _ => match timeout(REQUEST_TIMEOUT, self.read_reply(&what)).await {
                Ok(answered) => answered,
                Err(_) => Err(NetError::Timeout {
                    address: self.address.clone(),
                    what: what.clone(),
                    limit: REQUEST_TIMEOUT,
                }),
            },
        };
        match answered {
            Err(error) if !self.heard && !self.encrypted => {
                Err(tls::unless_encrypted(error, &self.address).await)
            }
            answered => answered,
        }
    }

    /// Writes bytes, with a deadline.
    pub async fn send(&mut self, bytes: &[u8], what: &str) -> Result<(), NetError> {
        match timeout(REQUEST_TIMEOUT, self.io.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(cause)) => Err(self.lost(what, cause)),
            Err(_) => Err(NetError::Timeout {
                address: self.address.clone(),
                what: what.into(),
                limit: REQUEST_TIMEOUT,
            }),
        }
    }

    /// Reads one reply, without a deadline of its own.
    pub async fn read_reply(&mut self, what: &str) -> Result<Reply, NetError> {
        loop {
            match Reply::decode(&self.buffer) {
                Ok(Some((reply, len))) => {
                    self.buffer.advance(len);
                    return Ok(reply);
                }
                Ok(None) => self.fill(what).await?,
                Err(error) => return Err(self.not_redis(what, error.found)),
            }
        }
    }

    /// Takes one line, without its line end, from what has been read; empty lines (a source's keep-alive) are skipped.
    pub fn take_line(&mut self, what: &str) -> Result<Option<Vec<u8>>, NetError> {
        while self.buffer.first().is_some_and(|&byte| byte == b'\n' || byte == b'\r') {
            self.buffer.advance(1);
        }
        if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
            let mut line = self.buffer.split_to(end + 1).to_vec();
            while line.last().is_some_and(|&byte| byte == b'\n' || byte == b'\r') {
                line.pop();
            }
            return Ok(Some(line));
        }
        if self.buffer.len() > MAX_LINE_LEN {
            return Err(self.not_redis(what, self.buffer[..64].escape_ascii().to_string()));
        }
        Ok(None)
    }

    /// Waits for one line, without a deadline of its own.
    pub async fn read_line(&mut self, what: &str) -> Result<Vec<u8>, NetError> {
        loop {
            if let Some(line) = self.take_line(what)? {
                return Ok(line);
            }
            self.fill(what).await?;
        }
    }

    /// Reads once, at least one byte.
    pub async fn fill(&mut self, what: &str) -> Result<(), NetError> {
        match self.io.read_buf(&mut self.buffer).await {
            Ok(0) => {
                Err(self.lost(what, io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the server")))
            }
            Ok(_) => {
                self.heard = true;
                Ok(())
            }
            Err(cause) => Err(self.lost(what, cause)),
        }
    }

    /// The connection ended while doing `what`.
    pub fn lost(&self, what: &str, cause: io::Error) -> NetError {
        let refusal = tls::refusal(&cause, self.certificate.as_deref());
        match refusal.filter(|_| !self.heard) {
            // With TLS 1.3 a server judges our certificate after the handshake is over for us.
            Some((cause, cure)) => NetError::Tls { address: self.address.clone(), cause, cure },
            None => NetError::Lost { address: self.address.clone(), what: what.into(), cause },
        }
    }

    fn not_redis(&self, what: &str, found: String) -> NetError {
        if !self.encrypted && tls::is_alert(&self.buffer) {
            return tls::wants_tls(&self.address);
        }
        NetError::Protocol {
            address: self.address.clone(),
            what: what.into(),
            found: format!("'{found}'"),
            cure: "Is this the port of a Redis or Valkey server?".into(),
        }
    }
}

/// The field `name` of an INFO reply.
pub fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
