//! The real binary, run with a generated `shake.toml` in a directory of its own.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portable_pty::CommandBuilder;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::cluster::Cluster;
use super::server::Server;
use super::terminal::Terminal;
use super::wait_for;

/// What will be run. Sections and keys of the file can be set one by one; values are TOML (`"\"text\""`, `"5"`).
#[derive(Debug, Clone)]
pub struct Setup {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    arguments: Vec<String>,
}

impl Setup {
    /// From one server to another, over the plain ports, with the passwords that the servers were started with.
    pub fn new(source: &Server, destination: &Server) -> Setup {
        let mut setup = Setup::bare(&source.address().to_string(), &destination.address().to_string());
        for (section, server) in [("sync_reader", source), ("redis_writer", destination)] {
            if let Some(password) = server.password() {
                setup = setup.text(section, "password", password);
            }
        }
        setup
    }

    /// From a server to a cluster.
    pub fn to_cluster(source: &Server, destination: &Cluster) -> Setup {
        Setup::bare(&source.address().to_string(), &destination.address().to_string()).set(
            "redis_writer",
            "cluster",
            "true",
        )
    }

    /// From a cluster to a server.
    pub fn from_cluster(source: &Cluster, destination: &Server) -> Setup {
        Setup::bare(&source.address().to_string(), &destination.address().to_string()).set(
            "sync_reader",
            "cluster",
            "true",
        )
    }

    /// From one cluster to another.
    pub fn between_clusters(source: &Cluster, destination: &Cluster) -> Setup {
        Setup::bare(&source.address().to_string(), &destination.address().to_string())
            .set("sync_reader", "cluster", "true")
            .set("redis_writer", "cluster", "true")
    }

    /// From one address to another.
    pub fn bare(source: &str, destination: &str) -> Setup {
        Setup { sections: BTreeMap::new(), arguments: vec!["--headless".into()] }
            .text("sync_reader", "address", source)
            .text("redis_writer", "address", destination)
            .text("advanced", "dir", "data")
            .set("advanced", "log_interval", "1")
    }

    /// From an RDB file to an address.
    pub fn from_file(file: &Path, destination: &str) -> Setup {
        let mut setup = Setup::bare("", destination).text("rdb_reader", "filepath", file.to_str().unwrap());
        setup.sections.remove("sync_reader");
        setup
    }

    /// Sets a key to a TOML value.
    pub fn set(mut self, section: &str, key: &str, value: &str) -> Setup {
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets a key to a string.
    pub fn text(self, section: &str, key: &str, value: &str) -> Setup {
        self.set(section, key, &format!("{value:?}"))
    }

    /// Adds words to the command line.
    pub fn args(mut self, words: &[&str]) -> Setup {
        self.arguments.extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// `--exit-when <state>`.
    pub fn exit_when(self, state: &str) -> Setup {
        self.args(&["--exit-when", state])
    }

    /// The text of `shake.toml`.
    pub fn toml(&self) -> String {
        let mut text = String::new();
        for (section, keys) in &self.sections {
            text.push_str(&format!("[{section}]\n"));
            keys.iter().for_each(|(key, value)| text.push_str(&format!("{key} = {value}\n")));
        }
        text
    }

    /// Starts it in a new directory.
    #[track_caller]
    pub fn start(&self) -> Shakedeck {
        let folder = Arc::new(tempfile::Builder::new().prefix("shakedeck-run-").tempdir().unwrap());
        self.start_in(folder)
    }

    /// Starts it in the directory of an earlier run ([`Shakedeck::folder`]), to go on where that one ended.
    #[track_caller]
    pub fn start_in(&self, folder: Arc<TempDir>) -> Shakedeck {
        std::fs::write(folder.path().join("shake.toml"), self.toml()).unwrap();
        let mut process = Command::new(binary())
            .args(&self.arguments)
            .arg("shake.toml")
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(String::new()));
        let stdout = collect(process.stdout.take().unwrap(), output.clone());
        let stderr = collect(process.stderr.take().unwrap(), output.clone());
        Shakedeck { process, output, readers: vec![stdout, stderr], folder }
    }

    /// Starts it in a terminal, where it shows the console. The directory must outlive the run.
    pub fn start_in_terminal(&self, folder: &Path) -> Terminal {
        std::fs::write(folder.join("shake.toml"), self.toml()).unwrap();
        let mut command = CommandBuilder::new(binary());
        command.args(self.arguments.iter().filter(|word| *word != "--headless"));
        command.arg("shake.toml");
        command.cwd(folder);
        Terminal::start(command)
    }
}

/// Path of the binary under test.
pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_shakedeck"))
}

/// A running `shakedeck`; killed when dropped.
pub struct Shakedeck {
    process: Child,
    /// Standard output and standard error, in the order in which they came.
    output: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    folder: Arc<TempDir>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Everything it has printed.
    pub output: String,
}

/// A program that runs beside the test.
pub struct Background(Child);

impl Background {
    /// Waits for its end.
    pub fn end(self) -> Exit {
        let output = self.0.wait_with_output().unwrap();
        let text =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Exit { code: output.status.code(), output: text }
    }
}

impl Exit {
    /// Asserts on the exit code and that every one of the words was printed; and that nothing panicked.
    #[track_caller]
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "exit code; it printed:\n{}", ends(&self.output));
        for word in words {
            assert!(self.output.contains(word), "'{word}' is not in the output:\n{}", ends(&self.output));
        }
        for word in ["panicked at", "RUST_BACKTRACE", "stack backtrace"] {
            assert!(!self.output.contains(word), "it panicked:\n{}", ends(&self.output));
        }
    }
}

impl Shakedeck {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Working directory of the run: `shake.toml` and `data` are in it.
    pub fn folder(&self) -> Arc<TempDir> {
        self.folder.clone()
    }

    /// The data directory of the run.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_exit(mut self, time: Duration) -> Exit {
        let started = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > time {
                panic!("still running after {time:?}\nstatus: {}", self.brief());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Exit { code: status.code(), output: self.output() }
    }

    /// Runs `shakedeck ctl --dir <data> …` and waits for it.
    pub fn ctl(&self, words: &[&str]) -> Exit {
        self.ctl_in_background(words).end()
    }

    /// The same for a command that waits for something, as `ctl cutover` does.
    pub fn ctl_in_background(&self, words: &[&str]) -> Background {
        let child = Command::new(binary())
            .args(["ctl", "--dir"])
            .arg(self.data())
            .args(words)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Background(child)
    }

    /// `ctl status --json`; panics if it cannot be had within ten seconds.
    #[track_caller]
    pub fn status_json(&self) -> serde_json::Value {
        wait_for(Duration::from_secs(10), "ctl status --json", || self.try_status())
    }

    fn try_status(&self) -> Option<serde_json::Value> {
        let exit = self.ctl(&["status", "--json"]);
        (exit.code == Some(0)).then(|| serde_json::from_str(&exit.output).ok()).flatten()
    }

    /// The parts of the status that explain a failed test.
    fn brief(&self) -> String {
        let Some(status) = self.try_status() else { return "none".into() };
        ["state", "not_ready", "sources", "destinations"].map(|field| status[field].to_string()).join("\n")
    }

    /// Waits until the status satisfies a condition, and returns it.
    #[track_caller]
    pub fn wait_status(
        &self,
        time: Duration,
        what: &str,
        mut condition: impl FnMut(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let started = Instant::now();
        loop {
            let status = self.try_status();
            if let Some(status) = status.as_ref().filter(|status| condition(status)) {
                return status.clone();
            }
            if started.elapsed() > time {
                panic!("waited {time:?} in vain for: {what}\nstatus: {}", self.brief());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for one of the states of the contract ("caught_up").
    #[track_caller]
    pub fn wait_state(&self, state: &str, time: Duration) -> serde_json::Value {
        self.wait_status(time, &format!("state {state}"), |status| status["state"] == state)
    }

    /// Waits until all lines are in the stream phase.
    #[track_caller]
    pub fn wait_streaming(&self, time: Duration) -> serde_json::Value {
        self.wait_status(time, "the stream phase", |status| {
            let lines = status["sources"].as_array();
            lines.is_some_and(|all| !all.is_empty() && all.iter().all(|line| line["phase"] == "stream"))
        })
    }

    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it like a crash.
    pub fn kill(mut self) {
        self.kill_and_keep();
    }

    /// The same; what it has printed can still be read.
    pub fn kill_and_keep(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Memory that it holds now (bytes).
    pub fn resident_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that it has had at any moment.
    pub fn peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a running process");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id() as i32).expect("a running process");
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Shakedeck {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- shakedeck printed:\n{}", ends(&self.output()));
            let log = std::fs::read_to_string(self.data().join("shake.log")).unwrap_or_default();
            eprintln!("--- and logged:\n{}", ends(&log));
        }
    }
}

/// The first and the last lines of a long text; of progress lines in a row (they hold " | ") only the last one.
fn ends(text: &str) -> String {
    let all: Vec<&str> = text.lines().collect();
    let progress = |line: &&str| line.matches(" | ").count() > 4;
    let kept = |n: &usize| !progress(&all[*n]) || !all.get(n + 1).is_some_and(progress);
    let lines: Vec<&str> = (0..all.len()).filter(kept).map(|n| all[n]).collect();
    if lines.len() <= 40 {
        return lines.join("\n");
    }
    [&lines[..15], &["…"], &lines[lines.len() - 25..]].concat().join("\n")
}

fn collect(mut stream: impl Read + Send + 'static, output: Arc<Mutex<String>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 8_192];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            output.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    })
}
