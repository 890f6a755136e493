//! `status_port`: the status over HTTP, on 127.0.0.1 only and read-only.
//!
//! | path | answer |
//! |---|---|
//! | `GET /status` | the object of `ctl status --json` |
//! | `GET /metrics` | the same numbers for Prometheus, names in [`metrics`] |
//! | `GET /healthz` | 200 while the engine works, 503 when it failed, ended, or gives no news for ten seconds |
//!
//! Anything else is 404. It changes nothing, ever: commands go through the control socket, whose file mode says who
//! may send them, while any local user can open a port.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::Full;
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::control::Handle;
use crate::status::{DestinationStatus, SourceStatus, State, Status};

/// Connections at once; further ones wait to be accepted.
const CONNECTION_LIMIT: usize = 32;
/// How long a client may take to send its request's head.
const HEADER_LIMIT: Duration = Duration::from_secs(5);
/// How long one connection may last; scrapers open a new one when they want more.
const CONNECTION_TIME_LIMIT: Duration = Duration::from_secs(120);
/// Age at which a snapshot no longer proves that the engine works; it publishes four a second.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// The port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "the HTTP status cannot listen on 127.0.0.1:{port}: {source}. Set another `status_port`, or 0 to do without"
)]
pub struct HttpError {
    /// The configured port.
    pub port: u16,
    /// What the system said.
    pub source: std::io::Error,
}

/// A running HTTP status; ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on 127.0.0.1:`port`. Must be called inside a tokio runtime.
    pub async fn start(port: u16, handle: Handle) -> Result<Server, HttpError> {
        let fail = |source| HttpError { port, source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let task = tokio::spawn(accept(listener, handle));
        Ok(Server { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, handle: Handle) {
    let places = Arc::new(Semaphore::new(CONNECTION_LIMIT));
    // Dropped with this task, and all connections with it.
    let mut connections = JoinSet::new();
    // The semaphore is never closed, so this loop only ends with the task.
    while let Ok(place) = places.clone().acquire_owned().await {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, most likely: let some be closed first.
            Err(error) => {
                tracing::warn!("HTTP status: accept: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let handle = handle.clone();
        connections.spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answer = answer(&request, &handle);
                async { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_LIMIT)
                .serve_connection(TokioIo::new(stream), service);
            // Errors here are the client's: it went away or sent no HTTP.
            let _ = tokio::time::timeout(CONNECTION_TIME_LIMIT, connection).await;
        });
    }
}

fn answer<B: Body>(request: &Request<B>, handle: &Handle) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let status = handle.status();
    let (code, kind, body) = match request.uri().path() {
        _ if !matches!(*request.method(), Method::GET | Method::HEAD) => (
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET: commands go through 'shakedeck ctl'\n".to_owned(),
        ),
        "/status" => match serde_json::to_string(&*status) {
            Ok(body) => (StatusCode::OK, "application/json", body),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        },
        "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics(&status)),
        "/healthz" => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            match health(&status, handle.is_closed(), now) {
                Ok(text) => (StatusCode::OK, TEXT, text),
                Err(text) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, text),
            }
        }
        _ => (StatusCode::NOT_FOUND, TEXT, "not found: try /status, /metrics or /healthz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if code == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// One line of text: `Ok` while the engine works. `now` is the time since the Unix epoch.
fn health(status: &Status, is_closed: bool, now: Duration) -> Result<String, String> {
    let age = now.saturating_sub(Duration::from_millis(status.snapshot_unix_ms));
    let state = status.state.word();
    if let Some(outcome) = &status.outcome {
        return Err(format!("{state}: {}\n", outcome.message));
    }
    if status.state.is_final() || is_closed {
        return Err(format!("{state}: the engine has ended\n"));
    }
    if age > STALE_AFTER {
        return Err(format!("{state}: no news from the engine for {} s\n", age.as_secs()));
    }
    Ok(format!("ok: {state}\n"))
}

/// The snapshot in Prometheus' text format 0.0.4. A value that is not known yet is left out.
///
/// Counters end in `_total`, everything else is a gauge; units are in the names. `source` and `destination` are the
/// addresses of the nodes.
///
/// | name | meaning |
/// |---|---|
/// | `shakedeck_info{run_id,version}` | 1 |
/// | `shakedeck_state{state}` | 1 for the present state, 0 for every other |
/// | `shakedeck_ready` | 1 when ready to cut over |
/// | `shakedeck_elapsed_seconds` | since the engine started |
/// | `shakedeck_snapshot_timestamp_seconds` | Unix time of the numbers |
/// | `shakedeck_unread_errors` | errors nobody has acknowledged |
/// | `shakedeck_memory_bytes` | resident memory |
/// | `shakedeck_spool_bytes`, `_spool_max_bytes`, `_disk_free_bytes` | the spool |
/// | `shakedeck_entries_{read,applied,filtered,quarantined}_total` | keys of RDBs and commands of streams |
/// | `shakedeck_rejected_total{kind}` | refused, filtered or quarantined entries |
/// | `shakedeck_source_phase{source,phase}` | 1 for the present phase |
/// | `shakedeck_source_rdb_{received,size,applied}_bytes{source}` | full sync |
/// | `shakedeck_source_keys_applied{source}` | keys of the RDB |
/// | `shakedeck_source_offset_{received,durable,applied}_bytes{source}` | replication offsets |
/// | `shakedeck_source_lag_bytes`, `_source_lag_seconds{source}` | received and not yet applied |
/// | `shakedeck_source_ops_per_second`, `_source_applied_bytes_per_second{source}` | over the last 5 s |
/// | `shakedeck_source_errors_total`, `_source_reconnects_total{source}` | since the start |
/// | `shakedeck_destination_up{destination}` | 1 while its writer is connected |
/// | `shakedeck_destination_in_flight{destination}` | commands sent and not yet answered |
/// | `shakedeck_destination_oldest_seconds{destination}` | age of the oldest of them |
/// | `shakedeck_destination_ops_per_second{destination}` | over the last 5 s |
/// | `shakedeck_destination_{errors,retries,redirects,reconnects}_total{destination}` | since the start |
pub fn metrics(status: &Status) -> String {
    let mut text = Metrics::default();
    let none: &[(&str, &str)] = &[];
    text.family("info", "gauge", "Run and version.");
    text.sample("info", &[("run_id", &status.run_id), ("version", &status.version)], 1.0);
    text.family("state", "gauge", "State of the migration: 1 for the present one.");
    for state in State::ALL {
        text.sample("state", &[("state", state.word())], f64::from(u8::from(state == status.state)));
    }
    let c = &status.counters;
    let totals: [(&str, &str, &str, Option<f64>); 13] = [
        ("ready", "gauge", "1 when ready to cut over.", Some(f64::from(u8::from(status.ready)))),
        ("elapsed_seconds", "gauge", "Time since the engine started.", Some(status.elapsed_seconds)),
        (
            "snapshot_timestamp_seconds",
            "gauge",
            "Unix time of these numbers.",
            Some(status.snapshot_unix_ms as f64 / 1e3),
        ),
        ("unread_errors", "gauge", "Errors that nobody has acknowledged.", Some(status.unread_errors as f64)),
        ("memory_bytes", "gauge", "Resident memory.", status.memory_bytes.map(|bytes| bytes as f64)),
        ("spool_bytes", "gauge", "Bytes in the spool.", Some(status.spool.bytes as f64)),
        ("spool_max_bytes", "gauge", "Limit of the spool.", Some(status.spool.max_bytes as f64)),
        (
            "disk_free_bytes",
            "gauge",
            "Free bytes on the spool's disk.",
            status.spool.disk_free_bytes.map(|bytes| bytes as f64),
        ),
        ("entries_read_total", "counter", "Entries read from the spool.", Some(c.entries_read as f64)),
        (
            "entries_applied_total",
            "counter",
            "Entries the destination confirmed.",
            Some(c.entries_applied as f64),
        ),
        ("entries_filtered_total", "counter", "Entries dropped by a rule.", Some(c.filtered as f64)),
        ("entries_quarantined_total", "counter", "Entries set aside.", Some(c.quarantined as f64)),
        (
            "events_dropped_total",
            "counter",
            "Events that fell out of the ring.",
            Some(status.events_dropped as f64),
        ),
    ];
    for (name, kind, help, value) in totals {
        if let Some(value) = value {
            text.family(name, kind, help);
            text.sample(name, none, value);
        }
    }
    text.family("rejected_total", "counter", "Entries refused, filtered or quarantined.");
    for rejected in &status.rejected {
        text.sample("rejected_total", &[("kind", &rejected.kind)], rejected.count as f64);
    }

    text.family("source_phase", "gauge", "Phase of the source: 1 for the present one.");
    for source in &status.sources {
        let phase = serde_json::to_value(source.phase).unwrap_or_default();
        let phase = phase.as_str().unwrap_or_default();
        text.sample("source_phase", &[("source", &source.address), ("phase", phase)], 1.0);
    }
    for (name, kind, help, value) in SOURCE_METRICS {
        text.family(name, kind, help);
        for source in &status.sources {
            if let Some(value) = value(source) {
                text.sample(name, &[("source", &source.address)], value);
            }
        }
    }
    for (name, kind, help, value) in DESTINATION_METRICS {
        text.family(name, kind, help);
        for destination in &status.destinations {
            text.sample(name, &[("destination", &destination.address)], value(destination));
        }
    }
    text.0
}

/// Name, kind, help, value.
type Metric<T, V> = (&'static str, &'static str, &'static str, fn(&T) -> V);

const SOURCE_METRICS: [Metric<SourceStatus, Option<f64>>; 13] = [
    ("source_rdb_received_bytes", "gauge", "RDB received.", |s| Some(s.rdb_bytes_received as f64)),
    ("source_rdb_size_bytes", "gauge", "RDB size, where the source said it.", |s| {
        s.rdb_bytes_total.map(|b| b as f64)
    }),
    ("source_rdb_applied_bytes", "gauge", "RDB confirmed by the destination.", |s| {
        Some(s.rdb_bytes_applied as f64)
    }),
    ("source_keys_applied", "gauge", "Keys of the RDB confirmed.", |s| Some(s.keys_applied as f64)),
    ("source_offset_received_bytes", "gauge", "Replication offset received.", |s| {
        Some(s.offset_received as f64)
    }),
    ("source_offset_durable_bytes", "gauge", "Replication offset safe on disk.", |s| {
        Some(s.offset_durable as f64)
    }),
    ("source_offset_applied_bytes", "gauge", "Replication offset confirmed.", |s| {
        Some(s.offset_applied as f64)
    }),
    ("source_lag_bytes", "gauge", "Received and not yet confirmed.", |s| s.lag_bytes.map(|lag| lag as f64)),
    ("source_lag_seconds", "gauge", "Age of the oldest byte not yet confirmed.", |s| s.lag_seconds),
    ("source_ops_per_second", "gauge", "Commands confirmed, last 5 s.", |s| Some(s.ops_per_second)),
    ("source_applied_bytes_per_second", "gauge", "Bytes confirmed, last 5 s.", |s| Some(s.bytes_per_second)),
    ("source_errors_total", "counter", "Link errors and refused entries.", |s| Some(s.errors as f64)),
    ("source_reconnects_total", "counter", "How often the link was opened again.", |s| {
        Some(s.reconnects as f64)
    }),
];

const DESTINATION_METRICS: [Metric<DestinationStatus, f64>; 8] = [
    ("destination_up", "gauge", "1 while the writer is connected.", |d| {
        use crate::status::WriterState::{Ok, Slow, Waiting};
        f64::from(u8::from(matches!(d.state, Ok | Slow | Waiting)))
    }),
    ("destination_in_flight", "gauge", "Commands sent and not yet answered.", |d| d.in_flight as f64),
    ("destination_oldest_seconds", "gauge", "Age of the oldest command in flight.", |d| d.oldest_ms / 1e3),
    ("destination_ops_per_second", "gauge", "Commands confirmed, last 5 s.", |d| d.ops_per_second),
    ("destination_errors_total", "counter", "Error answers.", |d| d.errors as f64),
    ("destination_retries_total", "counter", "Commands sent again.", |d| d.retries as f64),
    ("destination_redirects_total", "counter", "MOVED and ASK answers.", |d| d.redirects as f64),
    ("destination_reconnects_total", "counter", "How often the connection was opened again.", |d| {
        d.reconnects as f64
    }),
];

/// Text in the making; every name gets the program's prefix here.
#[derive(Default)]
struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "# HELP shakedeck_{name} {help}\n# TYPE shakedeck_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(label, text)| format!("{label}=\"{}\"", escape_label(text))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "shakedeck_{name}{labels} {value}");
    }
}

/// A label's value as the text format wants it.
fn escape_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::io::{Read, Write as _};
    use std::net::TcpStream;
    use std::sync::Arc;

    use super::*;
    use crate::control;
    use crate::headless::samples;

    /// Sends raw bytes and returns head and body of the answer.
    async fn exchange(address: SocketAddr, request: &'static [u8]) -> (String, String) {
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(request).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            (head.to_owned(), body.to_owned())
        })
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn the_three_pages_and_nothing_else() {
        let (handle, engine) = control::channel(samples::syncing());
        let server = Server::start(0, handle).await.unwrap();
        let address = server.address();
        assert!(address.ip().is_loopback());

        let (head, body) = exchange(address, b"GET /status HTTP/1.0\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.0 200 OK") && head.contains("application/json"), "{head}");
        assert_eq!(serde_json::from_str::<Status>(&body).unwrap(), samples::syncing());

        let (head, body) = exchange(address, b"GET /metrics HTTP/1.0\r\n\r\n").await;
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        assert_eq!(body, metrics(&samples::syncing()));

        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let fresh = Status { snapshot_unix_ms: now, ..samples::syncing() };
        engine.status.send_replace(Arc::new(fresh));
        let (head, body) = exchange(address, b"GET /healthz HTTP/1.0\r\n\r\n").await;
        assert_eq!((head.contains("200 OK"), body.as_str()), (true, "ok: syncing\n"));
        drop(engine);
        let (head, body) = exchange(address, b"GET /healthz HTTP/1.0\r\n\r\n").await;
        assert_eq!((head.contains("503"), body.as_str()), (true, "syncing: the engine has ended\n"));

        let (head, _) = exchange(address, b"GET /stop HTTP/1.0\r\n\r\n").await;
        assert!(head.contains("404"), "{head}");
        let (head, _) = exchange(address, b"POST /status HTTP/1.0\r\nContent-Length: 0\r\n\r\n").await;
        assert!(head.contains("405") && head.to_lowercase().contains("allow: get, head"), "{head}");
        let (head, body) = exchange(address, b"HEAD /status HTTP/1.0\r\n\r\n").await;
        assert!(head.contains("200 OK") && body.is_empty(), "{head}");
        let (head, _) = exchange(address, b"garbage\r\n\r\n").await;
        assert!(head.contains("400"), "{head}");
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let (handle, _engine) = control::channel(samples::syncing());
        let first = Server::start(0, handle.clone()).await.unwrap();
        let port = first.address().port();
        let error = Server::start(port, handle).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("the HTTP status cannot listen on 127.0.0.1:{port}: ")),
            "{error}"
        );
    }

    #[test]
    fn health_is_news_of_a_living_engine() {
        let at = |seconds: u64| Duration::from_millis(samples::NOW) + Duration::from_secs(seconds);
        let status = samples::syncing();
        assert_eq!(health(&status, false, at(9)), Ok("ok: syncing\n".into()));
        // A clock that was set back proves nothing.
        assert_eq!(health(&status, false, Duration::ZERO), Ok("ok: syncing\n".into()));
        assert_eq!(health(&status, false, at(11)), Err("syncing: no news from the engine for 11 s\n".into()));
        assert_eq!(health(&status, true, at(0)), Err("syncing: the engine has ended\n".into()));
        assert_eq!(
            health(&samples::stopped(), false, at(0)),
            Err("stopped: stopped by the operator\n".into())
        );
    }

    #[test]
    fn metrics_are_prometheus_text() {
        let mut status = samples::syncing();
        status.sources[0].address = "a\"b\\c\nd".into();
        status.sources[0].lag_seconds = None;
        let text = metrics(&status);
        for line in [
            "shakedeck_info{run_id=\"run-a41c\",version=\"0.1.0\"} 1",
            "shakedeck_state{state=\"syncing\"} 1",
            "shakedeck_state{state=\"caught_up\"} 0",
            "shakedeck_ready 0",
            "shakedeck_elapsed_seconds 2472",
            "shakedeck_spool_bytes 5200000000",
            "shakedeck_entries_applied_total 20100117",
            "shakedeck_rejected_total{kind=\"BUSYKEY\"} 2",
            "shakedeck_source_phase{source=\"a\\\"b\\\\c\\nd\",phase=\"rdb_apply\"} 1",
            "shakedeck_source_offset_applied_bytes{source=\"a\\\"b\\\\c\\nd\"} 87268211006",
            "shakedeck_destination_up{destination=\"10.0.2.23:6379\"} 1",
            "shakedeck_destination_oldest_seconds{destination=\"10.0.2.23:6379\"} 1.101",
            "shakedeck_destination_retries_total{destination=\"10.0.2.23:6379\"} 3",
            "shakedeck_destination_redirects_total{destination=\"10.0.2.23:6379\"} 4",
            "shakedeck_destination_reconnects_total{destination=\"10.0.2.23:6379\"} 5",
            "shakedeck_destination_errors_total{destination=\"10.0.2.23:6379\"} 6",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("shakedeck_source_lag_seconds{"), "unknown is left out, not zero");

        // Every sample stands under a TYPE of its own name, each name is declared once, and counters say so.
        let mut declared = std::collections::HashSet::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                assert!(declared.insert(name.to_owned()), "{name} twice");
                current = name.to_owned();
            } else if !line.starts_with('#') {
                assert_eq!(line.split(['{', ' ']).next().unwrap(), current);
            }
        }
    }
}
