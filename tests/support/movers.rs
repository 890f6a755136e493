//! Writers that note every acknowledged write and move to the other side when they are refused, as clients do at a cutover. Either side
//! is a standalone server or a cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::client::{Client, Reply};
use super::cluster::Cluster;
use super::cluster_client::ClusterClient;
use super::server::Server;
use super::wait_until;

const DEADLINE: Duration = Duration::from_secs(180);

/// Where clients can write.
pub trait Home {
    /// A connection; the first argument of each command is its key.
    fn door(&self) -> Door;
}

impl Home for Server {
    fn door(&self) -> Door {
        Door::Server(self.client())
    }
}

impl Home for Cluster {
    fn door(&self) -> Door {
        Door::Cluster(Box::new(self.client()))
    }
}

/// A connection to either.
pub enum Door {
    Server(Client),
    Cluster(Box<ClusterClient>),
}

impl Door {
    #[track_caller]
    pub fn call(&mut self, words: &[&str]) -> Reply {
        match self {
            Door::Server(client) => client.cmd(words),
            Door::Cluster(client) => client.call(words),
        }
    }

    /// The value of a string.
    #[track_caller]
    pub fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        match self.call(&["GET", key]) {
            Reply::BulkString(value) => Some(value),
            Reply::Null => None,
            other => panic!("GET {key}: {other:?}"),
        }
    }
}

/// What one writer was told.
#[derive(Default)]
pub struct Written {
    /// Its keys are `<name>:<number>:1` up to this serial number: each had the one before acknowledged.
    pub last: u64,
    /// The last acknowledged value of its counter `<name>:<number>:counter`.
    pub counter: i64,
    /// Error answers that made it move.
    pub refusals: Vec<String>,
    /// Commands acknowledged after the move.
    pub after: u64,
    /// The longest time that one command took, with the move to the other side.
    pub longest: Duration,
}

/// Running writers.
pub struct Movers {
    name: String,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Written>>,
}

impl Movers {
    /// So many writers at `first`, which go on at `second` once they are refused.
    pub fn start(count: usize, name: &str, first: &impl Home, second: &impl Home) -> Movers {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..count).map(|number| {
            let (stop, written) = (stop.clone(), written.clone());
            let (first, second) = (first.door(), second.door());
            let name = format!("{name}:{number}");
            std::thread::spawn(move || write(&name, first, second, &stop, &written))
        });
        let threads = threads.collect();
        Movers { name: name.to_owned(), stop, written, threads }
    }

    /// So many more pairs of writes are acknowledged.
    #[track_caller]
    pub fn wait_more(&self, count: u64) {
        let goal = self.written.load(Ordering::Relaxed) + count;
        wait_until(DEADLINE, "writers get on", || self.written.load(Ordering::Relaxed) >= goal);
    }

    pub fn stop(self) -> Log {
        self.stop.store(true, Ordering::Relaxed);
        let writers = self.threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        Log { name: self.name, writers }
    }
}

/// What all writers of a name were told.
pub struct Log {
    name: String,
    pub writers: Vec<Written>,
}

impl Log {
    /// Every acknowledged write is there, and every counter stands where its writer was told last.
    #[track_caller]
    pub fn assert_all_on(&self, home: &impl Home) {
        let mut door = home.door();
        for (number, log) in self.writers.iter().enumerate() {
            assert!(log.last > 0, "writer {number} wrote nothing");
            let name = format!("{}:{number}", self.name);
            for serial in 1..=log.last {
                let found = door.get(&format!("{name}:{serial}"));
                let wanted = format!("value {serial}").into_bytes();
                assert_eq!(found, Some(wanted), "acknowledged write {name}:{serial}");
            }
            let counter = door.get(&format!("{name}:counter")).unwrap_or_default();
            assert_eq!(String::from_utf8_lossy(&counter), log.counter.to_string(), "{name}:counter");
        }
    }

    /// Each was refused in these words and went on at the other side.
    #[track_caller]
    pub fn assert_moved(&self, word: &str) {
        for (number, log) in self.writers.iter().enumerate() {
            assert!(log.after > 0, "writer {number} never moved: {:?}", log.refusals);
            assert!(log.refusals.iter().all(|error| error.contains(word)), "{:?}", log.refusals);
        }
    }

    /// Nobody was refused.
    #[track_caller]
    pub fn assert_stayed(&self) {
        let refused: Vec<&String> = self.writers.iter().flat_map(|log| &log.refusals).collect();
        assert!(refused.is_empty(), "{refused:?}");
    }

    /// The longest time that one command of any writer took.
    pub fn longest(&self) -> Duration {
        self.writers.iter().map(|log| log.longest).max().unwrap_or_default()
    }
}

fn write(name: &str, mut door: Door, second: Door, stop: &AtomicBool, written: &AtomicU64) -> Written {
    let mut log = Written::default();
    let mut second = Some(second);
    // A refused command was not done, and is tried on the other side.
    let mut acknowledged = |log: &mut Written, words: &[&str]| {
        let began = Instant::now();
        let reply = loop {
            match door.call(words) {
                Reply::Error(error) => {
                    log.refusals.push(error.to_string());
                    door = second.take().unwrap_or_else(|| panic!("refused on both sides: {error}"));
                }
                reply => break reply,
            }
        };
        log.after += u64::from(second.is_none());
        log.longest = log.longest.max(began.elapsed());
        reply
    };
    let counter = format!("{name}:counter");
    while !stop.load(Ordering::Relaxed) {
        let serial = log.last + 1;
        acknowledged(&mut log, &["SET", &format!("{name}:{serial}"), &format!("value {serial}")]);
        log.last = serial;
        match acknowledged(&mut log, &["INCR", &counter]) {
            Reply::Integer(now) => {
                assert_eq!(now, log.counter + 1, "{counter} jumped: a write was lost or doubled");
                log.counter = now;
            }
            other => panic!("{other:?}"),
        }
        written.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(500));
    }
    log
}
