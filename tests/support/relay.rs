//! A TCP relay in front of a server, which can make the server lie about its version and can stop at a word that it says.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// What happens when the server says the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Nothing more of that connection gets through; it stays open.
    Hold,
    /// That connection is cut.
    Cut,
}

/// Relays until the test process ends.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Text of the server's answers to replace, with one of the same length.
    lie: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    /// Once.
    trap: Mutex<Option<(Vec<u8>, At)>>,
    /// Bytes of the clients that still get through before the relay holds; `None` = all.
    budget: Mutex<Option<usize>>,
    sprung: AtomicBool,
}

impl Relay {
    pub fn start(server: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let all = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(server) else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let shared = all.clone();
                std::thread::spawn(move || {
                    let _ = questions(&mut from, &mut to, &shared);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let shared = all.clone();
                std::thread::spawn(move || answers(server, client, &shared));
            }
        });
        Relay { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the server says `lie` where it would say `truth`, in whole answers that arrive at once.
    pub fn lies(&self, truth: &str, lie: &str) {
        assert_eq!(truth.len(), lie.len());
        *self.shared.lie.lock().unwrap() = Some((truth.into(), lie.into()));
    }

    pub fn tells_the_truth(&self) {
        *self.shared.lie.lock().unwrap() = None;
    }

    /// The next time that the server says this word, its answer is not delivered.
    pub fn trap(&self, word: &str, at: At) {
        self.shared.sprung.store(false, Ordering::Release);
        *self.shared.trap.lock().unwrap() = Some((word.into(), at));
    }

    /// After so many bytes of its clients nothing more gets through to the server, until told otherwise.
    pub fn hold_after(&self, bytes: Option<usize>) {
        self.shared.sprung.store(false, Ordering::Release);
        *self.shared.budget.lock().unwrap() = bytes;
    }

    /// Whether the word was said, or the bytes were sent.
    pub fn sprung(&self) -> bool {
        self.shared.sprung.load(Ordering::Acquire)
    }
}

fn questions(client: &mut TcpStream, server: &mut TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 14];
    while let count @ 1.. = client.read(&mut buffer)? {
        let mut budget = shared.budget.lock().unwrap();
        match &mut *budget {
            Some(left) if *left < count => {
                drop(budget);
                shared.sprung.store(true, Ordering::Release);
                // Until the client goes away.
                std::io::copy(client, &mut std::io::sink())?;
                return Ok(());
            }
            Some(left) => *left -= count,
            None => {}
        }
        drop(budget);
        server.write_all(&buffer[..count])?;
    }
    Ok(())
}

fn answers(mut server: TcpStream, mut client: TcpStream, shared: &Shared) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        let bytes = &mut buffer[..count];
        if let Some((truth, lie)) = &*shared.lie.lock().unwrap() {
            while let Some(at) = find(bytes, truth) {
                bytes[at..at + lie.len()].copy_from_slice(lie);
            }
        }
        let mut trap = shared.trap.lock().unwrap();
        if let Some((_, at)) = trap.as_ref().filter(|(word, _)| find(bytes, word).is_some()) {
            let at = *at;
            *trap = None;
            drop(trap);
            shared.sprung.store(true, Ordering::Release);
            if at == At::Hold {
                // Until the client goes away.
                let _ = std::io::copy(&mut server, &mut std::io::sink());
            }
            break;
        }
        drop(trap);
        if client.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    bytes.windows(word.len()).position(|window| window == word)
}
