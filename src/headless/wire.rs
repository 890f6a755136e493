//! What both ends of the control socket share: its place, its requests and replies, and lines of bounded length.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

use crate::control::Command;

/// Name of the socket in the data directory.
pub const SOCKET_NAME: &str = "control.sock";
/// Longest request line (bytes).
pub const REQUEST_LIMIT: usize = 65_536;
/// Longest path handed to the kernel as it is; `sun_path` holds 108 bytes on Linux and 104 elsewhere.
const PATH_LIMIT: usize = 100;

/// One request line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// The newest snapshot.
    Status,
    /// Every new snapshot from now on.
    Subscribe,
    /// The operator events.
    Events {
        /// Go on with new ones as they happen.
        #[serde(default)]
        follow: bool,
    },
    /// A wish of the operator.
    Command {
        /// The wish.
        command: Command,
    },
}

/// One line of the server; what `ok` holds depends on the request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply<S, E, O> {
    Ok(O),
    Error { message: String },
    Status(S),
    Event(E),
    MissedEvents(u64),
}

/// A path to `control.sock` in a directory that fits into a socket address, valid for as long as this lives.
#[derive(Debug)]
pub(super) struct ShortPath {
    pub(super) path: PathBuf,
    /// Keeps `/proc/self/fd/…` alive.
    _dir: Option<File>,
}

impl ShortPath {
    pub(super) fn new(dir: &Path) -> io::Result<ShortPath> {
        let path = dir.join(SOCKET_NAME);
        if path.as_os_str().len() <= PATH_LIMIT {
            return Ok(ShortPath { path, _dir: None });
        }
        let dir_file = File::open(dir)?;
        let through_proc = PathBuf::from(format!("/proc/self/fd/{}", dir_file.as_raw_fd()));
        if !through_proc.is_dir() {
            return Err(io::Error::other(format!(
                "the path has {} bytes, a socket's path has room for {PATH_LIMIT}, and there is no /proc here to \
                 shorten it: use a shorter `dir`",
                path.as_os_str().len()
            )));
        }
        Ok(ShortPath { path: through_proc.join(SOCKET_NAME), _dir: Some(dir_file) })
    }
}

/// Lines of bounded length from a stream. Safe to cancel: a half-read line stays inside.
#[derive(Debug)]
pub(super) struct LineReader<R> {
    reader: R,
    partial: Vec<u8>,
    limit: usize,
}

impl<R: AsyncBufRead + Unpin> LineReader<R> {
    pub(super) fn new(reader: R, limit: usize) -> Self {
        LineReader { reader, partial: Vec::new(), limit }
    }

    /// The next line without its line break; `None` at the end (an unfinished last line is dropped).
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let end = memchr::memchr(b'\n', chunk);
            let piece = chunk.get(..end.unwrap_or(chunk.len())).unwrap_or_default();
            if self.partial.len() + piece.len() > self.limit {
                let message = format!("the line is longer than {} bytes", self.limit);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            self.partial.extend_from_slice(piece);
            let consumed = piece.len() + usize::from(end.is_some());
            self.reader.consume(consumed);
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use tokio::io::{AsyncWriteExt, BufReader};

    use super::*;

    #[test]
    fn a_request_is_written_as_documented() {
        for text in [
            r#"{"request":"status"}"#,
            r#"{"request":"subscribe"}"#,
            r#"{"request":"events","follow":true}"#,
            r#"{"request":"command","command":{"command":"pause"}}"#,
            r#"{"request":"command","command":{"command":"stop","forget":false}}"#,
            r#"{"request":"command","command":{"command":"restart_source","address":"10.0.1.13:6379"}}"#,
        ] {
            let request: Request = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&request).unwrap(), text);
        }
    }

    #[tokio::test]
    async fn lines_are_put_together_from_pieces() {
        let (read, mut write) = tokio::io::duplex(3);
        let writing = tokio::spawn(async move {
            write.write_all(b"one\n\ntwo three\nunfinished").await.unwrap();
        });
        let mut lines = LineReader::new(BufReader::new(read), 9);
        assert_eq!(lines.next().await.unwrap(), Some(b"one".to_vec()));
        assert_eq!(lines.next().await.unwrap(), Some(b"".to_vec()));
        assert_eq!(lines.next().await.unwrap(), Some(b"two three".to_vec()));
        let error = lines.next().await.unwrap_err();
        assert_eq!(error.to_string(), "the line is longer than 9 bytes");
        // Nobody reads on: the writer is let go.
        drop(lines);
        let _ = writing.await;
    }
}
