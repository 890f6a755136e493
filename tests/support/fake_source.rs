//! A source that speaks the handshake correctly and then sends whatever a test wants as its snapshot.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Serves until the test process ends.
pub struct FakeSource {
    address: SocketAddr,
    full_syncs: Arc<AtomicUsize>,
}

/// What follows `+FULLRESYNC`.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// `$<length>` to announce; `None` = `$EOF:`.
    pub announced: Option<u64>,
    pub bytes: Vec<u8>,
    /// Close the connection after the bytes.
    pub closes: bool,
}

impl Snapshot {
    /// A snapshot as announced.
    pub fn whole(bytes: Vec<u8>) -> Snapshot {
        Snapshot { announced: Some(bytes.len() as u64), bytes, closes: false }
    }
}

const REPLID: &str = "1234567890123456789012345678901234567890";
const INFO: &str = "# Server\r\nredis_version:7.0.15\r\n# Replication\r\nrole:master\r\n";
const MARK: &[u8; 40] = b"0123456789abcdef0123456789abcdef01234567";

impl FakeSource {
    /// The first full sync gets the first snapshot, and so on; the last one is for all that follow.
    pub fn start(snapshots: Vec<Snapshot>) -> FakeSource {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let full_syncs = Arc::new(AtomicUsize::new(0));
        let count = full_syncs.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (count, snapshots) = (count.clone(), snapshots.clone());
                // The connection may end at any time: that ends its thread.
                std::thread::spawn(move || serve(stream, &count, &snapshots));
            }
        });
        FakeSource { address, full_syncs }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many full syncs were asked for.
    pub fn full_syncs(&self) -> usize {
        self.full_syncs.load(Ordering::Relaxed)
    }
}

fn serve(stream: TcpStream, count: &AtomicUsize, snapshots: &[Snapshot]) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(command) = read_command(&mut reader)? {
        match command[0].to_ascii_uppercase().as_str() {
            "PING" => stream.write_all(b"+PONG\r\n")?,
            "REPLCONF" if command.get(1).is_some_and(|option| option.eq_ignore_ascii_case("ack")) => {}
            "INFO" => write!(stream, "${}\r\n{INFO}\r\n", INFO.len())?,
            "PSYNC" => {
                let snapshot = &snapshots[count.fetch_add(1, Ordering::Relaxed).min(snapshots.len() - 1)];
                write!(stream, "+FULLRESYNC {REPLID} 0\r\n")?;
                match snapshot.announced {
                    Some(length) => write!(stream, "${length}\r\n")?,
                    None => stream.write_all(&[b"$EOF:", MARK.as_slice(), b"\r\n"].concat())?,
                }
                stream.write_all(&snapshot.bytes)?;
                if snapshot.announced.is_none() && !snapshot.closes {
                    stream.write_all(MARK)?;
                }
                if snapshot.closes {
                    return stream.shutdown(std::net::Shutdown::Both);
                }
            }
            _ => stream.write_all(b"+OK\r\n")?,
        }
    }
    Ok(())
}

fn read_command(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Vec<String>>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let count: usize = line.trim().trim_start_matches('*').parse().unwrap_or(0);
    let mut words = Vec::new();
    for _ in 0..count {
        line.clear();
        reader.read_line(&mut line)?;
        let mut word = vec![0; line.trim().trim_start_matches('$').parse::<usize>().unwrap_or(0) + 2];
        reader.read_exact(&mut word)?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8_lossy(&word).into_owned());
    }
    Ok(Some(if words.is_empty() { vec![String::new()] } else { words }))
}
