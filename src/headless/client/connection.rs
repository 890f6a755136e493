//! One connection to the control socket: a question and its answer, or a subscription.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{ANSWER_LIMIT, ClientError};
use crate::format;
use crate::headless::lines::verdict;
use crate::headless::wire::{LineReader, Reply, Request, SOCKET_NAME, ShortPath};
use crate::status::{Event, Status};

/// Longest line taken from a run (bytes); a snapshot of 64 nodes with full rings has well under one million.
const REPLY_LIMIT: usize = 16 * 1_024 * 1_024;
/// Longer than the time between two snapshots.
const SNAPSHOT_LIMIT: Duration = Duration::from_millis(400);

/// A line of the server as the client sees it.
pub type Incoming = Reply<Box<Status>, Event, Value>;

/// To one run.
#[derive(Debug)]
pub struct Connection {
    dir: PathBuf,
    lines: LineReader<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

impl Connection {
    /// Connects to the run whose data directory is `dir`.
    pub async fn open(dir: &Path) -> Result<Connection, ClientError> {
        let no_run = |source| ClientError::NoRun { dir: dir.to_owned(), source };
        let socket = ShortPath::new(dir).map_err(no_run)?;
        let connect = timeout(ANSWER_LIMIT, UnixStream::connect(&socket.path));
        let stream = connect.await.map_err(|_| ClientError::Silent(dir.to_owned()))?.map_err(|error| {
            no_run(match error.kind() {
                io::ErrorKind::NotFound => io::Error::other(format!("there is no {SOCKET_NAME}")),
                io::ErrorKind::ConnectionRefused => io::Error::other("the run that listened there has died"),
                _ => error,
            })
        })?;
        let (read, write) = stream.into_split();
        Ok(Connection {
            dir: dir.to_owned(),
            lines: LineReader::new(BufReader::new(read), REPLY_LIMIT),
            write,
        })
    }

    /// Sends, without waiting for the answer.
    pub async fn write(&mut self, request: &Request) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.write.write_all(&line).await
    }

    /// Asks and takes the answer; lines of a subscription that come in between are passed over.
    pub async fn ask(&mut self, request: &Request) -> Result<Value, ClientError> {
        if let Err(error) = self.write(request).await {
            // The run may have said why before it hung up ("32 clients are connected already").
            return match self.limited_next().await {
                Ok(Some(Reply::Error { message })) => Err(ClientError::Refused(message)),
                _ => Err(self.lost(&error.to_string())),
            };
        }
        loop {
            match self.limited_next().await? {
                Some(Reply::Ok(value)) => return Ok(value),
                Some(Reply::Error { message }) => return Err(ClientError::Refused(message)),
                Some(_) => {}
                None => return Err(self.lost("it ended before it answered")),
            }
        }
    }

    /// The status as it is now.
    pub async fn status(&mut self) -> Result<Status, ClientError> {
        let value = self.ask(&Request::Status).await?;
        self.parse(value)
    }

    /// The status, once more where something that has just begun may not be in it yet.
    pub async fn status_when(&mut self, fits: impl Fn(&Status) -> bool) -> Result<Status, ClientError> {
        let status = self.status().await?;
        if fits(&status) {
            return Ok(status);
        }
        sleep(SNAPSHOT_LIMIT).await;
        self.status().await
    }

    /// Subscribes and waits until a snapshot fits.
    pub async fn wait(
        &mut self,
        goal: &str,
        limit: Duration,
        mut is_reached: impl FnMut(&Status) -> bool,
    ) -> Result<Box<Status>, ClientError> {
        // A limit too far away for the clock is no limit that anybody will see pass.
        let deadline = Instant::now() + limit.min(Duration::from_secs(365 * 86_400));
        self.ask(&Request::Subscribe).await?;
        let mut newest: Option<Box<Status>> = None;
        loop {
            let reply = match timeout_at(deadline, self.next()).await {
                Ok(reply) => reply?,
                Err(_) => {
                    return Err(ClientError::TimedOut {
                        goal: goal.to_owned(),
                        time: format::spoken_duration(limit.as_secs_f64()),
                        state: newest.as_ref().map_or("silent", |status| status.state.word()),
                        verdict: newest.as_ref().map_or("no status yet".into(), |status| verdict(status)),
                    });
                }
            };
            match reply {
                Some(Reply::Status(status)) if is_reached(&status) => return Ok(status),
                Some(Reply::Status(status)) => newest = Some(status),
                Some(_) => {}
                None => {
                    return Err(match newest.and_then(|status| status.outcome) {
                        Some(outcome) => ClientError::Ended { goal: goal.to_owned(), outcome },
                        None => self.lost(&format!("it went away before {goal} was reached")),
                    });
                }
            }
        }
    }

    /// The next line, whenever it comes (cancel-safe); `None` when the run has ended.
    pub async fn next(&mut self) -> Result<Option<Incoming>, ClientError> {
        let line = match self.lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.lost(&error.to_string())),
        };
        match serde_json::from_slice(&line) {
            Ok(reply) => Ok(Some(reply)),
            Err(error) => Err(self.lost(&format!("it speaks another version's language: {error}"))),
        }
    }

    /// The next line, of a run that has to answer.
    pub async fn limited_next(&mut self) -> Result<Option<Incoming>, ClientError> {
        match timeout(ANSWER_LIMIT, self.next()).await {
            Ok(reply) => reply,
            Err(_) => Err(ClientError::Silent(self.dir.clone())),
        }
    }

    /// What an answer stands for.
    pub fn parse<T: serde::de::DeserializeOwned>(&self, value: Value) -> Result<T, ClientError> {
        serde_json::from_value(value)
            .map_err(|error| self.lost(&format!("it speaks another version's language: {error}")))
    }

    /// The error of a connection that broke.
    pub fn lost(&self, reason: &str) -> ClientError {
        ClientError::Lost { dir: self.dir.clone(), reason: reason.to_owned() }
    }
}
