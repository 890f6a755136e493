//! The control socket: `control.sock` in the data directory, for `shakedeck ctl` and `shakedeck attach`.
//!
//! One JSON object per line in both directions, at most 64 KiB per request. Every request gets one answer line, in
//! order: `{"ok":…}` or `{"error":{"message":"…"}}`.
//!
//! ```text
//! {"request":"status"}                  {"ok":{…}}        the status object
//! {"request":"subscribe"}               {"ok":null}       then {"status":{…}} now and after every change
//! {"request":"events"}                  {"ok":[{…},…]}    the events kept, oldest first
//! {"request":"events","follow":true}    {"ok":[{…},…]}    then {"event":{…}} as they happen
//! {"request":"command","command":{"command":"pause"}}     {"ok":null}  = handed to the engine; the effect is
//!                                                         seen in a later status
//! ```
//!
//! Commands: `pause`, `resume`, `throttle` (`"limit":{"bytes_per_second":50000000,"ops_per_second":null}`),
//! `acknowledge_errors`, `restart_source` (`"address"`), `verify`, `stop_verify`, `preflight`,
//! `start_cutover` (`"confirmation"`, `"writes_stopped":false`), `abort_cutover`, `hand_over`, `unfence`, `stop` (`"forget":false`). A connection may send several requests and stays open until either
//! side closes it; at the end of the run subscribers get the last snapshot and then the end of the stream. A client
//! that reads slowly skips snapshots (`{"missed_events":12}` tells followers of a gap); one that does not read at all
//! for a minute is dropped. Thirty-two clients at once.
//!
//! Who may connect is decided by the file alone: it is born inside a directory of mode 0700 and gets mode 0600 there, so at
//! no moment can another user open it, whatever the umask. The data directory mostly is such a directory; where it is
//! not, one is made for the moment, which takes room that a full disk may not have, and the file is renamed to its place.
//!
//! A Unix socket's path has room for 107 bytes. For a data directory deeper than that both ends go through
//! `/proc/self/fd/<descriptor of the directory>/control.sock`, which is short and names the same file.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::wire::{LineReader, REQUEST_LIMIT, Reply, Request, SOCKET_NAME, ShortPath};
use crate::control::Handle;
use crate::status::{Event, Status};

/// Connections at once; further ones get an error and are closed.
pub const CLIENT_LIMIT: usize = 32;

/// A client that takes no byte for this long is dropped.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
/// How long clients may take at the end of the run to read the last snapshot.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);
/// A line written by the server.
type Answer<'a> = Reply<&'a Status, &'a Event, Payload<'a>>;

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Nothing(()),
    Status(&'a Status),
    Events(&'a [Event]),
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers there.
    #[error("'{}' is in use: another shakedeck works on this data directory. Stop that one, or give this run another `dir`", .0.display())]
    InUse(PathBuf),
    /// The file system refused a step.
    #[error("the control socket '{}' could not be made: {step}: {source}", .path.display())]
    Io {
        /// Where the socket should be.
        path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening control socket; the file vanishes with it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Device and inode of our file: another run's socket at the same place is not ours to remove.
    identity: (u64, u64),
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens in `dir` (made if it is missing) and serves `handle` until [`Server::close`] or drop.
    ///
    /// Must be called inside a tokio runtime. A data directory has one run at a time; the engine's lock on it sees to
    /// that, and a living socket found here is refused too.
    pub fn start(dir: &Path, handle: Handle) -> Result<Server, SocketError> {
        let path = dir.join(SOCKET_NAME);
        let at = |step: &'static str| {
            let path = path.clone();
            move |source: io::Error| SocketError::Io { path, step, source }
        };
        fs::create_dir_all(dir).map_err(at("making the data directory"))?;
        if connect_blocking(dir).is_ok() {
            return Err(SocketError::InUse(path));
        }

        let private = fs::metadata(dir).map_err(at("looking at the data directory"))?.mode() & 0o077 == 0;
        let own = dir.join(format!(".control.{}", std::process::id()));
        let cradle = if private {
            // What a dead process left.
            let _ = fs::remove_file(&path);
            dir
        } else {
            // Only a crashed process with our process id can have left it.
            let _ = fs::remove_dir_all(&own);
            DirBuilder::new().mode(0o700).create(&own).map_err(at("making a private directory for it"))?;
            &own
        };
        let born = (|| {
            let socket = ShortPath::new(cradle).map_err(at("opening its directory"))?;
            let listener = UnixListener::bind(&socket.path).map_err(at("listening"))?;
            let file = cradle.join(SOCKET_NAME);
            fs::set_permissions(&file, Permissions::from_mode(0o600)).map_err(at("setting mode 0600"))?;
            let metadata = fs::symlink_metadata(&file).map_err(at("looking at it"))?;
            fs::rename(&file, &path).map_err(at("moving it into place"))?;
            Ok((listener, (metadata.dev(), metadata.ino())))
        })();
        let _ = fs::remove_dir_all(&own);
        let (listener, identity) = born?;

        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, handle, stopped));
        Ok(Server { path, identity, stop: Some(stop), task })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the socket, gives clients a moment to read the last snapshot, and closes their connections.
    pub async fn close(mut self) {
        self.remove_file();
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = (&mut self.task).await;
    }

    fn remove_file(&self) {
        let found = fs::symlink_metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()));
        if found.is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.remove_file();
        self.task.abort();
    }
}

/// Connects and hangs up: tells whether somebody lives there. A local connect does not wait for `accept`.
fn connect_blocking(dir: &Path) -> io::Result<()> {
    std::os::unix::net::UnixStream::connect(ShortPath::new(dir)?.path).map(drop)
}

async fn accept(listener: UnixListener, handle: Handle, mut stopped: oneshot::Receiver<()>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = clients.join_next(), if !clients.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if clients.len() < CLIENT_LIMIT => {
                    clients.spawn(serve_client(stream, handle.clone()));
                }
                Ok((stream, _)) => refuse(&stream),
                // Out of descriptors, most likely: let some be closed first.
                Err(error) => {
                    tracing::warn!("control socket: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }
    drop(listener);
    let _ = timeout(FAREWELL_LIMIT, async { while clients.join_next().await.is_some() {} }).await;
}

/// Tells one client too many why, if its socket takes the line at once.
fn refuse(stream: &UnixStream) {
    let message = format!("{CLIENT_LIMIT} clients are connected already: close one of them");
    let _ = stream.try_write(&encode(&Answer::Error { message }));
}

/// Serves one connection until its client or the engine is gone.
async fn serve_client(stream: UnixStream, mut handle: Handle) {
    let (read, mut write) = stream.into_split();
    let mut lines = LineReader::new(BufReader::new(read), REQUEST_LIMIT);
    let mut is_subscribed = false;
    // Id after the last event sent, once the client follows them.
    let mut next_event: Option<u64> = None;

    loop {
        tokio::select! {
            line = lines.next() => {
                let line = match line {
                    Ok(Some(line)) => line,
                    Ok(None) => return,
                    Err(error) => {
                        let _ = send(&mut write, &Answer::Error { message: error.to_string() }).await;
                        return;
                    }
                };
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let request = serde_json::from_slice::<Request>(&line);
                // What is answered now need not be sent again as news.
                handle.take_changed();
                let status = handle.status();
                let answer = match &request {
                    Err(error) => Answer::Error { message: bad_request(error) },
                    Ok(Request::Status) => Answer::Ok(Payload::Status(&status)),
                    Ok(Request::Subscribe) => Answer::Ok(Payload::Nothing(())),
                    Ok(Request::Events { .. }) => Answer::Ok(Payload::Events(&status.events)),
                    Ok(Request::Command { command }) => match handle.send(command.clone()) {
                        Ok(()) => Answer::Ok(Payload::Nothing(())),
                        Err(error) => Answer::Error { message: error.to_string() },
                    },
                };
                if send(&mut write, &answer).await.is_err() {
                    return;
                }
                match request {
                    Ok(Request::Subscribe) => {
                        is_subscribed = true;
                        if send(&mut write, &Answer::Status(&status)).await.is_err() {
                            return;
                        }
                    }
                    Ok(Request::Events { follow: true }) => {
                        next_event = Some(status.events.last().map_or(0, |event| event.id.saturating_add(1)));
                    }
                    _ => {}
                }
            }
            status = handle.next_status(), if is_subscribed || next_event.is_some() => {
                let Some(status) = status else { return };
                if is_subscribed && send(&mut write, &Answer::Status(&status)).await.is_err() {
                    return;
                }
                if let Some(next_id) = &mut next_event
                    && send_events(&mut write, &status, next_id).await.is_err()
                {
                    return;
                }
            }
        }
    }
}

/// Sends what is new since `next_id`, the id after the last event sent; 0 when none was.
async fn send_events(write: &mut OwnedWriteHalf, status: &Status, next_id: &mut u64) -> io::Result<()> {
    for event in &status.events {
        if event.id < *next_id {
            continue;
        }
        // Ids grow by one: a gap means that events fell out of the ring between two snapshots.
        if *next_id > 0 && event.id > *next_id {
            send(write, &Answer::MissedEvents(event.id - *next_id)).await?;
        }
        send(write, &Answer::Event(event)).await?;
        *next_id = event.id.saturating_add(1);
    }
    Ok(())
}

fn bad_request(error: &serde_json::Error) -> String {
    format!(
        "not a request: {error}. A request is one JSON object on one line: {{\"request\":\"status\"}}, \
         {{\"request\":\"subscribe\"}}, {{\"request\":\"events\",\"follow\":true}} or \
         {{\"request\":\"command\",\"command\":{{\"command\":\"pause\"}}}}"
    )
}

async fn send(write: &mut OwnedWriteHalf, answer: &Answer<'_>) -> io::Result<()> {
    let line = encode(answer);
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        // The limit is for each piece: a slow client is served, a stuck one is not.
        let written =
            timeout(WRITE_LIMIT, write.write(rest)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Serialising our own structs into memory cannot fail; an empty line would be the visible sign if it ever did.
fn encode(answer: &Answer<'_>) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::sync::Arc;

    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt, AsyncReadExt};

    use super::*;
    use crate::control::{self, Command, EngineEnd};
    use crate::headless::samples;
    use crate::status::{EventLevel, State};

    /// Longer than any answer takes, shorter than anybody's patience.
    const SOON: Duration = Duration::from_secs(20);

    struct Client(BufReader<UnixStream>);

    impl Client {
        async fn connect(path: &Path) -> Client {
            Client(BufReader::new(UnixStream::connect(path).await.unwrap()))
        }

        async fn write(&mut self, text: &str) {
            self.0.write_all(text.as_bytes()).await.unwrap();
        }

        /// The next line; `Null` at the end of the stream.
        async fn read(&mut self) -> Value {
            let mut line = String::new();
            timeout(SOON, self.0.read_line(&mut line)).await.expect("an answer").unwrap();
            if line.is_empty() { Value::Null } else { serde_json::from_str(&line).unwrap() }
        }

        async fn ask(&mut self, request: Value) -> Value {
            self.write(&format!("{request}\n")).await;
            self.read().await
        }
    }

    fn start() -> (tempfile::TempDir, Server, EngineEnd) {
        start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(dir: tempfile::TempDir) -> (tempfile::TempDir, Server, EngineEnd) {
        let (handle, engine) = control::channel(samples::syncing());
        let server = Server::start(dir.path(), handle).unwrap();
        (dir, server, engine)
    }

    #[tokio::test]
    async fn only_the_owner_may_connect_and_nothing_else_is_left_in_the_directory() {
        for mode in [0o700, 0o755] {
            let dir = tempfile::tempdir().unwrap();
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            // What a dead process left.
            drop(std::os::unix::net::UnixListener::bind(dir.path().join("control.sock")).unwrap());
            let (dir, server, _engine) = start_in(dir);
            let metadata = fs::metadata(dir.path().join("control.sock")).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
            let names: Vec<_> =
                fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["control.sock"]);
            server.close().await;
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the socket goes with its server");
        }
    }

    #[tokio::test]
    async fn requests_are_answered_and_commands_reach_the_engine() {
        let (_dir, server, mut engine) = start();
        let mut client = Client::connect(server.path()).await;
        let status = client.ask(json!({"request": "status"})).await;
        assert_eq!(status["ok"], serde_json::to_value(samples::syncing()).unwrap());
        let events = client.ask(json!({"request": "events"})).await;
        assert_eq!(events["ok"][0]["text"], "RDB received, 4.38 GB in 6m41s; applying");

        let limit = json!({"bytes_per_second": 50_000_000, "ops_per_second": null});
        let request = json!({"request": "command", "command": {"command": "throttle", "limit": limit}});
        assert_eq!(client.ask(request).await, json!({"ok": null}));
        let expected = crate::status::Throttle { bytes_per_second: Some(50_000_000), ops_per_second: None };
        assert_eq!(engine.commands.recv().await, Some(Command::Throttle { limit: expected }));

        let pause = json!({"request": "command", "command": {"command": "pause"}});
        for _ in 0..16 {
            assert_eq!(client.ask(pause.clone()).await, json!({"ok": null}));
        }
        let refused = client.ask(pause.clone()).await;
        assert_eq!(
            refused["error"]["message"],
            "the engine is busy with earlier commands: try again in a moment"
        );
        drop(engine);
        assert_eq!(client.ask(pause).await["error"]["message"], "the engine has ended");
    }

    #[tokio::test]
    async fn two_subscribers_get_every_state_and_the_last_one_before_the_end() {
        let (_dir, server, engine) = start();
        let mut clients = [Client::connect(server.path()).await, Client::connect(server.path()).await];
        for client in &mut clients {
            assert_eq!(client.ask(json!({"request": "subscribe"})).await, json!({"ok": null}));
            assert_eq!(client.read().await["status"]["state"], "syncing", "the present one comes at once");
        }
        engine.status.send_replace(Arc::new(samples::caught_up()));
        for client in &mut clients {
            assert_eq!(client.read().await["status"]["state"], "caught_up");
        }
        engine.status.send_replace(Arc::new(samples::stopped()));
        drop(engine);
        for client in &mut clients {
            assert_eq!(client.read().await["status"]["outcome"]["exit_code"], 75);
            assert_eq!(client.read().await, Value::Null, "then the stream ends");
        }
    }

    #[tokio::test]
    async fn a_slow_subscriber_skips_snapshots_and_holds_nobody_up() {
        let (_dir, server, engine) = start();
        let mut slow = Client::connect(server.path()).await;
        slow.ask(json!({"request": "subscribe"})).await;
        let mut quick = Client::connect(server.path()).await;
        let rounds = 2_000_u32;
        for round in 1..=rounds {
            let mut status = samples::syncing();
            status.paused_times = round;
            engine.status.send_replace(Arc::new(status));
            if round % 100 == 0 {
                let answer = quick.ask(json!({"request": "status"})).await;
                assert_eq!(answer["ok"]["paused_times"], round, "the others are served meanwhile");
            }
        }
        let mut seen = 0;
        while slow.read().await["status"]["paused_times"] != rounds {
            seen += 1;
        }
        assert!(seen < rounds, "some were skipped: {seen}");
    }

    #[tokio::test]
    async fn events_are_followed_and_gaps_are_told() {
        let (_dir, server, engine) = start();
        let mut client = Client::connect(server.path()).await;
        let first = client.ask(json!({"request": "events", "follow": true})).await;
        assert_eq!(first["ok"].as_array().unwrap().len(), 1);
        let mut status = samples::syncing();
        status.events.push(samples::event(2, EventLevel::Warn, "second"));
        engine.status.send_replace(Arc::new(status.clone()));
        assert_eq!(client.read().await["event"]["text"], "second");
        status.events = vec![samples::event(9, EventLevel::Error, "ninth")];
        engine.status.send_replace(Arc::new(status));
        assert_eq!(client.read().await, json!({"missed_events": 6}));
        assert_eq!(client.read().await["event"]["level"], "error");
    }

    #[tokio::test]
    async fn garbage_gets_an_error_object_and_the_connection_goes_on() {
        let (_dir, server, _engine) = start();
        let mut client = Client::connect(server.path()).await;
        let deep = "[".repeat(10_000);
        let garbage = ["hello", "{}", "{\"request\":\"reboot\"}", "\u{0}\u{1b}[2J", "[]", "null", &deep];
        for line in garbage {
            client.write(&format!("{line}\n")).await;
            let answer = client.read().await;
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.starts_with("not a request: "), "{line:?}: {message}");
        }
        client.0.write_all(b"\xff\xfe\n\n  \r\n").await.unwrap();
        assert!(client.read().await["error"].is_object());
        assert_eq!(
            client.ask(json!({"request": "subscribe"})).await,
            json!({"ok": null}),
            "blank lines get nothing"
        );
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_off() {
        let (_dir, server, _engine) = start();
        let mut client = Client::connect(server.path()).await;
        // The server hangs up in the middle of it: the rest cannot be written.
        let _ = client.0.write_all(&vec![b'x'; 4 * REQUEST_LIMIT]).await;
        assert_eq!(client.read().await["error"]["message"], "the line is longer than 65536 bytes");
        let mut rest = Vec::new();
        let end = timeout(SOON, client.0.read_to_end(&mut rest)).await.unwrap();
        assert!(end.is_err() || rest.is_empty());
    }

    #[tokio::test]
    async fn one_client_too_many_is_told_so() {
        let (_dir, server, _engine) = start();
        let mut clients = Vec::new();
        for _ in 0..CLIENT_LIMIT {
            let mut client = Client::connect(server.path()).await;
            assert!(client.ask(json!({"request": "events"})).await["ok"].is_array());
            clients.push(client);
        }
        let mut late = Client::connect(server.path()).await;
        assert_eq!(
            late.read().await["error"]["message"],
            "32 clients are connected already: close one of them"
        );

        // Dead clients make room.
        clients.truncate(1);
        let deadline = tokio::time::Instant::now() + SOON;
        loop {
            let mut client = Client::connect(server.path()).await;
            // One too many may be hung up on before it has asked.
            let _ = client.0.write_all(b"{\"request\":\"events\"}\n").await;
            if client.read().await["ok"].is_array() {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "no room was made");
        }
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_process_is_replaced_and_that_of_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        // A listener that goes away without removing its file, as after kill -9.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (handle, _engine) = control::channel(samples::syncing());
        let server = Server::start(dir.path(), handle.clone()).unwrap();
        let mut client = Client::connect(&path).await;
        assert_eq!(client.ask(json!({"request": "status"})).await["ok"]["state"], "syncing");

        let second = Server::start(dir.path(), handle.clone()).unwrap_err();
        assert!(matches!(second, SocketError::InUse(_)), "{second}");
        assert!(second.to_string().contains("another shakedeck works on this data directory"));
        assert_eq!(client.ask(json!({"request": "status"})).await["ok"]["state"], "syncing");

        // What another run has put there since is not ours to remove.
        fs::remove_file(&path).unwrap();
        let third = Server::start(dir.path(), handle).unwrap();
        server.close().await;
        assert!(path.exists());
        drop(third);
        assert!(!path.exists(), "dropping is enough");
    }

    #[tokio::test]
    async fn a_directory_too_deep_for_a_socket_address_works_too() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(90)).join("e".repeat(90));
        let (handle, _engine) = control::channel(samples::syncing());
        let server = Server::start(&deep, handle).unwrap();
        assert!(server.path().as_os_str().len() > 180 && server.path().exists());
        let mut client = Client::connect(&ShortPath::new(&deep).unwrap().path).await;
        assert_eq!(client.ask(json!({"request": "status"})).await["ok"]["state"], "syncing");
        let remote = crate::headless::remote(&deep).await.unwrap();
        assert_eq!(remote.status().state, State::Syncing);
    }
}
