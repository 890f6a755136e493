//! A TCP proxy in the test process, between the engine and one of its servers, that breaks the link as told while it runs.
//!
//! Each connection has two pumps, one per [`Way`]. What they do is looked up before every read, so a test steers links
//! that are open. Where a link breaks is drawn from a seed: a number of bytes, never a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use socket2::SockRef;

use super::random::Random;

/// How long a pump waits for bytes before it looks at its orders again.
const LOOK: Duration = Duration::from_millis(5);

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToEngine,
}

/// How a link breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Both sides see an orderly end.
    Fin,
    /// Both sides see "connection reset by peer".
    Reset,
    /// One direction ends in order; the other one stays open.
    HalfClose(Way),
}

/// What happens to bytes that pass.
#[derive(Debug, Clone, Copy, Default)]
struct Mode {
    /// Each piece is held for so long.
    delay: Duration,
    /// Bytes a second and direction.
    rate: Option<u64>,
    one_byte: bool,
    /// Bytes are accepted and thrown away, those of new connections too.
    black_hole: bool,
    /// Nothing is read any more: buffers fill, writers stand still.
    deaf: bool,
    /// Every link breaks like that after a number of bytes between these two, counted over both directions.
    breaks: Option<(Break, u64, u64)>,
    refuses: bool,
}

/// A running proxy; ends, and all its links with it, when dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Mutex<SocketAddr>,
    mode: Mutex<Mode>,
    random: Mutex<Random>,
    /// A link on which these bytes are on their way to the server begins to hold them.
    trap: Mutex<Option<Vec<u8>>>,
    links: Mutex<Vec<Arc<Link>>>,
    ended: AtomicBool,
    accepted: AtomicU64,
    broken: AtomicU64,
    to_server: AtomicU64,
    to_engine: AtomicU64,
}

/// One connection.
struct Link {
    engine: TcpStream,
    server: TcpStream,
    /// Bytes passed, both directions.
    passed: AtomicU64,
    /// Byte at which it breaks.
    breaks_at: AtomicU64,
    /// Both sides are to be closed now.
    cut: AtomicBool,
    /// Bytes to the server are kept back.
    holds: AtomicBool,
    engine_gone: AtomicBool,
    /// Bytes of both directions are thrown away.
    swallows: AtomicBool,
}

impl Proxy {
    /// Listens on a free port and connects to `upstream`.
    pub fn start(upstream: SocketAddr, seed: u64) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            mode: Mutex::default(),
            random: Mutex::new(Random::new(seed)),
            trap: Mutex::default(),
            links: Mutex::default(),
            ended: AtomicBool::new(false),
            accepted: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            to_server: AtomicU64::new(0),
            to_engine: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || accept(&accepting, address, listener));
        Proxy { address, shared }
    }

    /// Where the engine connects to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// New connections go there.
    pub fn switch(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock().unwrap() = upstream;
    }

    pub fn delay(&self, time: Duration) {
        self.shared.set(|mode| mode.delay = time);
    }

    /// Bytes a second and direction.
    pub fn throttle(&self, rate: u64) {
        self.shared.set(|mode| mode.rate = Some(rate));
    }

    /// Every byte travels alone.
    pub fn one_byte_writes(&self) {
        self.shared.set(|mode| mode.one_byte = true);
    }

    /// From now on everything is accepted and nothing arrives.
    pub fn black_hole(&self) {
        self.shared.set(|mode| mode.black_hole = true);
    }

    /// From now on the open links lead nowhere: what they bring is thrown away, and neither side hears that the other one
    /// has closed. New links are not concerned.
    pub fn swallow(&self) {
        self.shared.links.lock().unwrap().iter().for_each(|link| link.swallows.store(true, SeqCst));
    }

    /// From now on nothing is read.
    pub fn deafen(&self) {
        self.shared.set(|mode| mode.deaf = true);
    }

    /// From now on bytes of the open links to the server are kept back until [`Proxy::deliver`], even when the engine has
    /// gone meanwhile; new links are not concerned.
    pub fn hold(&self) {
        self.shared.links.lock().unwrap().iter().for_each(|link| link.holds.store(true, SeqCst));
    }

    /// The same for each link on which these bytes are to be sent, from the piece on that contains them.
    pub fn hold_from(&self, bytes: &[u8]) {
        *self.shared.trap.lock().unwrap() = Some(bytes.to_vec());
    }

    /// Whether a link holds bytes back.
    pub fn is_holding(&self) -> bool {
        self.shared.links.lock().unwrap().iter().any(|link| link.holds.load(SeqCst))
    }

    /// What was held arrives; links without an engine end then.
    pub fn deliver(&self) {
        self.shared.links.lock().unwrap().iter().for_each(|link| link.holds.store(false, SeqCst));
    }

    /// No listener: connections are refused.
    pub fn refuse(&self) {
        self.shared.set(|mode| mode.refuses = true);
    }

    /// Every link, the open ones too, breaks after at least `least` and less than `most` more bytes.
    pub fn break_links(&self, how: Break, least: u64, most: u64) {
        self.shared.set(|mode| mode.breaks = Some((how, least, most)));
        for link in self.shared.links.lock().unwrap().iter() {
            link.breaks_at.store(link.passed.load(SeqCst) + self.shared.draw(least, most), SeqCst);
        }
    }

    /// Bytes pass as on a good day again. Links that are half closed or that lost bytes are closed: they cannot recover.
    pub fn calm(&self) {
        let spoiled = {
            let mode = *self.shared.mode.lock().unwrap();
            mode.black_hole || matches!(mode.breaks, Some((Break::HalfClose(_), ..)))
        };
        self.shared.set(|mode| *mode = Mode::default());
        if spoiled {
            self.cut(Break::Fin);
        }
    }

    /// Breaks every open link now.
    pub fn cut(&self, how: Break) {
        for link in self.shared.links.lock().unwrap().drain(..) {
            link.break_now(how);
        }
    }

    /// The engine's side of every open link ends; what it has sent still reaches the server (see [`Proxy::hold`]).
    pub fn cut_engine_off(&self) {
        for link in self.shared.links.lock().unwrap().iter() {
            link.engine_gone.store(true, SeqCst);
            let _ = link.engine.shutdown(Shutdown::Both);
        }
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(SeqCst)
    }

    /// Links that have broken as ordered by [`Proxy::break_links`].
    pub fn broken(&self) -> u64 {
        self.shared.broken.load(SeqCst)
    }

    /// Bytes that have come from one side so far, swallowed ones too.
    pub fn passed(&self, way: Way) -> u64 {
        self.shared.counter(way).load(SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, SeqCst);
        self.cut(Break::Fin);
    }
}

impl Shared {
    fn set(&self, change: impl FnOnce(&mut Mode)) {
        change(&mut self.mode.lock().unwrap());
    }

    fn mode(&self) -> Mode {
        *self.mode.lock().unwrap()
    }

    fn counter(&self, way: Way) -> &AtomicU64 {
        match way {
            Way::ToServer => &self.to_server,
            Way::ToEngine => &self.to_engine,
        }
    }

    fn is_trap(&self, bytes: &[u8]) -> bool {
        let trap = self.trap.lock().unwrap();
        trap.as_ref().is_some_and(|trap| bytes.windows(trap.len()).any(|window| window == &trap[..]))
    }

    fn draw(&self, least: u64, most: u64) -> u64 {
        self.random.lock().unwrap().between(least, most.max(least + 1))
    }
}

fn accept(shared: &Arc<Shared>, address: SocketAddr, listener: TcpListener) {
    let mut listener = Some(listener);
    while !shared.ended.load(SeqCst) {
        if shared.mode().refuses {
            listener = None;
            sleep(LOOK);
            continue;
        }
        let open = match &listener {
            Some(open) => open,
            None => match TcpListener::bind(address) {
                Ok(bound) => listener.insert(bound),
                Err(_) => {
                    sleep(LOOK);
                    continue;
                }
            },
        };
        open.set_nonblocking(true).unwrap();
        match open.accept() {
            Ok((engine, _)) => {
                shared.accepted.fetch_add(1, SeqCst);
                connect(shared, engine);
            }
            Err(_) => sleep(Duration::from_millis(2)),
        }
    }
}

fn connect(shared: &Arc<Shared>, engine: TcpStream) {
    let upstream = *shared.upstream.lock().unwrap();
    // A server that is down: the engine sees its connection end.
    let Ok(server) = TcpStream::connect(upstream) else { return };
    for stream in [&engine, &server] {
        stream.set_nonblocking(false).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LOOK)).unwrap();
        // A write that stands still must notice that its link is cut.
        stream.set_write_timeout(Some(LOOK)).unwrap();
    }
    let breaks_at = match shared.mode().breaks {
        Some((_, least, most)) => shared.draw(least, most),
        None => u64::MAX,
    };
    let link = Arc::new(Link {
        engine,
        server,
        passed: AtomicU64::new(0),
        breaks_at: AtomicU64::new(breaks_at),
        cut: AtomicBool::new(false),
        holds: AtomicBool::new(false),
        engine_gone: AtomicBool::new(false),
        swallows: AtomicBool::new(false),
    });
    shared.links.lock().unwrap().push(link.clone());
    for way in [Way::ToServer, Way::ToEngine] {
        let (shared, link) = (shared.clone(), link.clone());
        std::thread::spawn(move || {
            let _ = pump(&shared, &link, way);
            let mut links = shared.links.lock().unwrap();
            // The list and this thread: the other pump has ended.
            if Arc::strong_count(&link) <= 2 {
                links.retain(|other| !Arc::ptr_eq(other, &link));
            }
        });
    }
}

impl Link {
    fn break_now(&self, how: Break) {
        match how {
            Break::HalfClose(way) => {
                let _ = self.target(way).shutdown(Shutdown::Write);
            }
            Break::Fin | Break::Reset => {
                if how == Break::Reset {
                    for stream in [&self.engine, &self.server] {
                        // The close that follows sends RST.
                        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
                    }
                } else {
                    let _ = self.engine.shutdown(Shutdown::Both);
                    let _ = self.server.shutdown(Shutdown::Both);
                }
                self.cut.store(true, SeqCst);
            }
        }
    }

    fn target(&self, way: Way) -> &TcpStream {
        match way {
            Way::ToServer => &self.server,
            Way::ToEngine => &self.engine,
        }
    }

    fn origin(&self, way: Way) -> &TcpStream {
        match way {
            Way::ToServer => &self.engine,
            Way::ToEngine => &self.server,
        }
    }

    /// Writes all of it unless the link is cut meanwhile.
    fn deliver(&self, way: Way, mut bytes: &[u8]) -> std::io::Result<()> {
        let mut target = self.target(way);
        while !bytes.is_empty() {
            if self.cut.load(SeqCst) {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            match target.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_time(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_time(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn pump(shared: &Shared, link: &Arc<Link>, way: Way) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut held = Vec::new();
    let mut ended = false;
    loop {
        let mode = shared.mode();
        if link.cut.load(SeqCst) {
            return Ok(());
        }
        if !held.is_empty() && !link.holds.load(SeqCst) {
            link.deliver(way, &std::mem::take(&mut held))?;
        }
        if ended || link.engine_gone.load(SeqCst) {
            // A link that leads nowhere brings no end either.
            if held.is_empty() && !link.swallows.load(SeqCst) {
                let _ = link.target(way).shutdown(Shutdown::Write);
                return Ok(());
            }
            sleep(LOOK);
            continue;
        }
        if mode.deaf {
            sleep(LOOK);
            continue;
        }
        let at_once = match mode {
            Mode { one_byte: true, .. } => 256,
            // A tenth of a second's worth.
            Mode { rate: Some(rate), .. } => (rate / 10).clamp(1, buffer.len() as u64) as usize,
            _ => buffer.len(),
        };
        let count = match link.origin(way).read(&mut buffer[..at_once]) {
            Ok(count @ 1..) => count,
            Err(error) if is_time(&error) => continue,
            // An orderly end, or a reset: the other side sees an end.
            Ok(0) | Err(_) => {
                ended = true;
                continue;
            }
        };
        shared.counter(way).fetch_add(count as u64, SeqCst);
        if mode.black_hole || link.swallows.load(SeqCst) {
            continue;
        }
        let bytes = &buffer[..count];
        if way == Way::ToServer && shared.is_trap(bytes) {
            link.holds.store(true, SeqCst);
        }
        if way == Way::ToServer && link.holds.load(SeqCst) {
            held.extend_from_slice(bytes);
            continue;
        }
        sleep(mode.delay);
        let before = link.passed.fetch_add(count as u64, SeqCst);
        let left = link.breaks_at.load(SeqCst).saturating_sub(before);
        let bytes = &bytes[..count.min(usize::try_from(left).unwrap_or(usize::MAX))];
        if mode.one_byte {
            bytes.chunks(1).try_for_each(|byte| link.deliver(way, byte))?;
        } else {
            link.deliver(way, bytes)?;
        }
        if let Some(rate) = mode.rate {
            sleep(Duration::from_secs_f64(count as f64 / rate as f64));
        }
        if bytes.len() < count
            && let Some((how, ..)) = mode.breaks
        {
            link.breaks_at.store(u64::MAX, SeqCst);
            if matches!(how, Break::HalfClose(closed) if closed != way) {
                // This direction stays open and must not lose anything.
                link.deliver(way, &buffer[bytes.len()..count])?;
            }
            link.break_now(how);
            shared.broken.fetch_add(1, SeqCst);
            match how {
                Break::HalfClose(closed) if closed == way => return Ok(()),
                Break::HalfClose(_) => {}
                // The last reference closes the sockets, which is what sends a reset.
                Break::Fin | Break::Reset => {
                    shared.links.lock().unwrap().retain(|other| !Arc::ptr_eq(other, link))
                }
            }
        }
    }
}
