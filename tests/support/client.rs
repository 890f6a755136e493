//! A blocking RESP2 connection: one command, or many in a pipeline. Panics when the connection fails, because then the
//! test has failed; error *replies* are values.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::Resp2Frame;

/// One reply. Errors are `Reply::Error`.
pub type Reply = redis_protocol::resp2::types::OwnedFrame;

pub struct Client {
    stream: TcpStream,
    /// Bytes received; those before `used` belong to replies that were taken already.
    received: Vec<u8>,
    used: usize,
    unsent: Vec<u8>,
}

impl Client {
    /// No reply within this time is a failed test; a server that saves or loads much can be slow.
    pub const TIMEOUT: Duration = Duration::from_secs(60);

    #[track_caller]
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    pub fn try_connect(address: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Client::TIMEOUT))?;
        stream.set_write_timeout(Some(Client::TIMEOUT))?;
        Ok(Client { stream, received: Vec::new(), used: 0, unsent: Vec::new() })
    }

    /// Sends one command and returns its reply, whatever it is.
    #[track_caller]
    pub fn cmd<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Reply {
        self.push(arguments);
        self.flush(1).remove(0)
    }

    /// The same for a command that must not answer with an error.
    #[track_caller]
    pub fn ok<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Reply {
        match self.cmd(arguments) {
            Reply::Error(error) => panic!("{}: {error}", show(arguments)),
            reply => reply,
        }
    }

    /// A number: an integer reply or digits.
    #[track_caller]
    pub fn integer<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> i64 {
        match self.ok(arguments) {
            Reply::Integer(number) => number,
            Reply::BulkString(digits) | Reply::SimpleString(digits) => {
                String::from_utf8_lossy(&digits).parse().unwrap()
            }
            reply => panic!("{}: expected a number, got {reply:?}", show(arguments)),
        }
    }

    /// A string, or `None` for a null reply.
    #[track_caller]
    pub fn bytes<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Option<Vec<u8>> {
        match self.ok(arguments) {
            Reply::BulkString(bytes) | Reply::SimpleString(bytes) => Some(bytes),
            Reply::Null => None,
            reply => panic!("{}: expected a string, got {reply:?}", show(arguments)),
        }
    }

    /// A string as text.
    #[track_caller]
    pub fn text<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> String {
        String::from_utf8_lossy(&self.bytes(arguments).unwrap_or_default()).into_owned()
    }

    /// The strings of an array reply.
    #[track_caller]
    pub fn list<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Vec<Vec<u8>> {
        let Reply::Array(items) = self.ok(arguments) else {
            panic!("{}: expected an array", show(arguments))
        };
        items.into_iter().map(|item| item.as_bytes().unwrap_or_default().to_vec()).collect()
    }

    /// One field of INFO (`info("replication", "connected_slaves")`).
    #[track_caller]
    pub fn info(&mut self, section: &str, field: &str) -> Option<String> {
        let text = self.text(&["INFO", section]);
        text.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
    }

    /// The error of a command that must be refused.
    #[track_caller]
    pub fn error<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> String {
        match self.cmd(arguments) {
            Reply::Error(error) => error.to_string(),
            reply => panic!("{}: expected an error, got {reply:?}", show(arguments)),
        }
    }

    /// Adds a command to the pipeline without sending it.
    pub fn push<A: AsRef<[u8]>>(&mut self, arguments: &[A]) {
        encode_into(&mut self.unsent, arguments);
    }

    /// Sends the pipeline and reads the replies of its `count` commands.
    #[track_caller]
    pub fn flush(&mut self, count: usize) -> Vec<Reply> {
        self.try_flush(count)
            .unwrap_or_else(|error| panic!("connection to {:?}: {error}", self.stream.peer_addr()))
    }

    pub fn try_flush(&mut self, count: usize) -> io::Result<Vec<Reply>> {
        let unsent = std::mem::take(&mut self.unsent);
        self.stream.write_all(&unsent)?;
        (0..count).map(|_| self.read_reply()).collect()
    }

    /// Like [`Client::cmd`], for connections that may be cut.
    pub fn try_cmd<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> io::Result<Reply> {
        self.push(arguments);
        Ok(self.try_flush(1)?.remove(0))
    }

    fn read_reply(&mut self) -> io::Result<Reply> {
        loop {
            let decoded = decode(&self.received[self.used..])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if let Some((reply, length)) = decoded {
                self.used += length;
                if self.used == self.received.len() {
                    self.received.clear();
                    self.used = 0;
                }
                return Ok(reply);
            }
            self.received.drain(..self.used);
            self.used = 0;
            let start = self.received.len();
            // Doubling reads: a long array is decoded from its start each time, so the tries must stay few.
            self.received.resize(start + start.max(65_536), 0);
            let count = self.stream.read(&mut self.received[start..]);
            self.received.truncate(start + *count.as_ref().unwrap_or(&0));
            if count? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Every key of the selected database that matches a pattern, in any order.
#[track_caller]
pub fn keys_like(client: &mut Client, pattern: &str) -> BTreeSet<Vec<u8>> {
    let mut keys = BTreeSet::new();
    let mut cursor = b"0".to_vec();
    loop {
        let scan = [b"SCAN", cursor.as_slice(), b"COUNT", b"10000", b"MATCH", pattern.as_bytes()];
        let Reply::Array(mut parts) = client.ok(&scan) else { panic!("SCAN answered no array") };
        let (Some(Reply::Array(some)), Some(Reply::BulkString(next))) = (parts.pop(), parts.pop()) else {
            panic!("SCAN answered something else")
        };
        keys.extend(some.into_iter().map(|key| key.as_bytes().unwrap_or_default().to_vec()));
        if next == b"0" {
            return keys;
        }
        cursor = next;
    }
}

/// Writes one command as a RESP array.
pub fn encode_into<A: AsRef<[u8]>>(out: &mut Vec<u8>, arguments: &[A]) {
    write!(out, "*{}\r\n", arguments.len()).unwrap();
    for argument in arguments {
        write!(out, "${}\r\n", argument.as_ref().len()).unwrap();
        out.extend_from_slice(argument.as_ref());
        out.extend_from_slice(b"\r\n");
    }
}

/// A command for people, cut to a readable length.
pub fn show<A: AsRef<[u8]>>(arguments: &[A]) -> String {
    let words: Vec<String> = arguments
        .iter()
        .take(6)
        .map(|word| word.as_ref().escape_ascii().take(60).map(char::from).collect())
        .collect();
    words.join(" ")
}
