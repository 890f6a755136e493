//! What a headless run prints: snapshots in, whole lines out.
//!
//! Pure functions and one small memory ([`Reporter`]: what was said already), so that tests compare exact text. Plain
//! lines never move the cursor and hold no colour; text that came from servers is escaped once more, since a line may
//! end on a terminal. JSON lines are one object each, told apart by `type`:
//!
//! ```text
//! {"type":"start","run_id":…,"source":…,"destination":…,"data_dir":…}   once
//! {"type":"status",…}      every interval: the object of `ctl status --json` without `events` and `history`
//! {"type":"event",…}       each operator event, at once; "count" grows when it repeats itself
//! {"type":"missed","events":12}   events that came faster than snapshots; they are in the log file
//! {"type":"state","unix_ms":…,"from":"syncing","to":"streaming","reason":null}   at once
//! {"type":"note","text":…}   what the headless run itself has to say
//! {"type":"summary","exit_code":0,"message":…,"hint":…,"resume":…,"status":{…}}   last line
//! ```

use serde::Serialize;

use super::summary::summary;
use crate::format;
use crate::status::{Event, Outcome, Side, SourceStatus, State, Status, worst_lag_seconds};

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people and `grep`.
    #[default]
    Plain,
    /// One JSON object per line.
    Json,
}

/// Turns snapshots into lines and remembers what was said already.
#[derive(Debug)]
pub struct Reporter {
    format: LogFormat,
    state: Option<State>,
    /// Id and count of the newest event that was printed.
    last_event: Option<(u64, u64)>,
}

impl Reporter {
    /// A reporter that has said nothing yet.
    pub fn new(format: LogFormat) -> Self {
        Reporter { format, state: None, last_event: None }
    }

    /// What must be said at once: the start, a change of state, new events. Empty when nothing is new.
    pub fn news(&mut self, status: &Status) -> Vec<String> {
        let mut lines = Vec::new();
        match self.state {
            None => lines.push(start_line(self.format, status)),
            Some(from) if from != status.state => lines.push(state_line(self.format, from, status)),
            Some(_) => {}
        }
        self.state = Some(status.state);

        for event in &status.events {
            // Ids grow by one: a gap means that events fell out of the ring between two snapshots.
            let missed = match self.last_event {
                Some((last, _)) if event.id <= last => continue,
                Some((last, _)) => event.id - last - 1,
                None => 0,
            };
            if missed > 0 {
                lines.push(missed_line(self.format, missed));
            }
            lines.push(event_line(self.format, event));
            self.last_event = Some((event.id, event.count));
        }
        lines
    }

    /// What is said every interval: where it stands, and the last event again if it has repeated itself since.
    pub fn progress(&mut self, status: &Status) -> Vec<String> {
        let mut lines = self.news(status);
        let repeated = status
            .events
            .last()
            .filter(|event| self.last_event.is_some_and(|(id, count)| event.id == id && event.count > count));
        if let Some(event) = repeated {
            lines.push(event_line(self.format, event));
            self.last_event = Some((event.id, event.count));
        }
        match self.format {
            LogFormat::Plain => lines.extend(progress_lines(status)),
            LogFormat::Json => lines.push(json(&Line::Status(&without_bulk(status)))),
        }
        lines
    }

    /// One sentence of the headless run itself.
    pub fn note(&self, unix_ms: u64, text: &str) -> String {
        match self.format {
            LogFormat::Plain => format!("{} {}", format::date_time_utc(unix_ms), safe(text)),
            LogFormat::Json => json(&Line::Note { unix_ms, text }),
        }
    }

    /// The last words.
    pub fn summary(&self, status: &Status, outcome: &Outcome, resume: Option<&str>) -> String {
        match self.format {
            LogFormat::Plain => summary(status, outcome, resume),
            LogFormat::Json => json(&Line::Summary {
                exit_code: outcome.exit_code,
                message: &outcome.message,
                hint: outcome.hint.as_deref(),
                resume,
                status: &without_bulk(status),
            }),
        }
    }
}

/// "READY", or "NOT READY: " and the most important reason.
pub fn verdict(status: &Status) -> String {
    match (status.ready, status.not_ready.first()) {
        (true, _) => "READY".into(),
        (false, Some(reason)) => format!("NOT READY: {}", safe(reason)),
        (false, None) => "NOT READY: no reason known yet".into(),
    }
}

/// Text from elsewhere made harmless for a terminal and cut to a sane length.
pub(super) fn safe(text: &str) -> String {
    format::escape(text, 1_000)
}

/// "redis 7.2.4 cluster 10.0.1.11:6379 (3 nodes)".
pub(super) fn side(side: &Side) -> String {
    let server = side.server.as_deref().map(|server| format!("{} ", safe(server))).unwrap_or_default();
    let nodes = if side.nodes > 1 { format!(" ({} nodes)", side.nodes) } else { String::new() };
    format!("{server}{} {}{nodes}", safe(&side.kind), safe(&side.address))
}

fn start_line(format: LogFormat, status: &Status) -> String {
    match format {
        LogFormat::Plain => format!(
            "{} shakedeck {} started: {} -> {} | run {} | pid {} | data in '{}' | log {} | times are UTC",
            format::date_time_utc(status.started_unix_ms),
            safe(&status.version),
            side(&status.source),
            side(&status.destination),
            safe(&status.run_id),
            status.pid,
            safe(&status.data_dir),
            status.log_file.as_deref().map_or("-".into(), safe),
        ),
        LogFormat::Json => json(&Line::Start {
            unix_ms: status.started_unix_ms,
            run_id: &status.run_id,
            version: &status.version,
            pid: status.pid,
            source: &status.source,
            destination: &status.destination,
            data_dir: &status.data_dir,
            log_file: status.log_file.as_deref(),
        }),
    }
}

fn state_line(format: LogFormat, from: State, status: &Status) -> String {
    match format {
        LogFormat::Plain => {
            let time = format::date_time_utc(status.snapshot_unix_ms);
            let reason =
                status.state_reason.as_deref().map(|text| format!(": {}", safe(text))).unwrap_or_default();
            format!("{time} STATE {} -> {}{reason}", from.word(), status.state.word())
        }
        LogFormat::Json => json(&Line::State {
            unix_ms: status.snapshot_unix_ms,
            from,
            to: status.state,
            reason: status.state_reason.as_deref(),
        }),
    }
}

pub(super) fn event_line(format: LogFormat, event: &Event) -> String {
    match format {
        LogFormat::Plain => {
            let node = if event.node.is_empty() { String::new() } else { format!("{}: ", safe(&event.node)) };
            let count = if event.count > 1 { format!(" (x {})", event.count) } else { String::new() };
            let time = format::date_time_utc(event.unix_ms);
            format!("{time} {:<5} {node}{}{count}", event.level.word(), safe(&event.text))
        }
        LogFormat::Json => json(&Line::Event(event)),
    }
}

pub(super) fn missed_line(format: LogFormat, events: u64) -> String {
    match format {
        LogFormat::Plain => format!("({events} events came too fast to be shown: see the log)"),
        LogFormat::Json => json(&Line::Missed { events }),
    }
}

/// One line for one source; for several a line of totals and then one for each.
fn progress_lines(status: &Status) -> Vec<String> {
    let time = format::date_time_utc(status.snapshot_unix_ms);
    let reason = status.state_reason.as_deref().map(|text| format!(" ({})", safe(text))).unwrap_or_default();
    let head = format!("{time} {}{reason}", status.state.word());
    let verdict = verdict(status);
    match status.sources.as_slice() {
        [] => vec![format!("{head} | no source yet | {verdict}")],
        [one] => vec![format!("{head} | {} | {verdict}", source_text(one))],
        many => {
            let total = format!(
                "{head} | {} sources | {} | {} | {verdict}",
                many.len(),
                lag_text(many.iter().map(|source| source.lag_bytes).sum(), worst_lag_seconds(many)),
                rate_text(
                    many.iter().map(|source| source.ops_per_second).sum(),
                    many.iter().map(|source| source.errors).sum()
                ),
            );
            let each = many.iter().map(|source| format!("{time}   {}", source_text(source)));
            std::iter::once(total).chain(each).collect()
        }
    }
}

fn source_text(source: &SourceStatus) -> String {
    let reason = source.reason.as_deref().map(|text| format!(" ({})", safe(text))).unwrap_or_default();
    let rdb = if source.rdb_bytes_received == 0 && source.rdb_bytes_total.is_none() {
        "RDB -".to_owned()
    } else {
        format!(
            "RDB {} of {} received, {} applied, {} keys",
            format::bytes(source.rdb_bytes_received),
            source.rdb_bytes_total.map_or("?".into(), format::bytes),
            format::bytes(source.rdb_bytes_applied),
            format::number(source.keys_applied)
        )
    };
    format!(
        "{} {}{reason} | {rdb} | {} | {} | {}",
        safe(&source.address),
        source.phase.word(),
        offsets(source),
        lag_text(source.lag_bytes, source.lag_seconds),
        rate_text(source.ops_per_second, source.errors)
    )
}

pub(super) fn offsets(source: &SourceStatus) -> String {
    format!(
        "offset received {} on disk {} applied {}",
        format::number(source.offset_received),
        format::number(source.offset_durable),
        format::number(source.offset_applied)
    )
}

fn lag_text(bytes: Option<u64>, seconds: Option<f64>) -> String {
    let Some(bytes) = bytes else { return "lag not known".into() };
    format!("lag {} {}", format::size(bytes), seconds.map_or("-".into(), format::spoken_duration))
}

fn rate_text(ops_per_second: f64, errors: u64) -> String {
    format!("{} ops/s | errors {errors}", format::count(ops_per_second))
}

/// The snapshot without what would make every line long: events have their own lines, history is for charts.
fn without_bulk(status: &Status) -> Status {
    Status { events: Vec::new(), history: Vec::new(), ..status.clone() }
}

/// One JSON line; see the module's head.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Start {
        unix_ms: u64,
        run_id: &'a str,
        version: &'a str,
        pid: u32,
        source: &'a Side,
        destination: &'a Side,
        data_dir: &'a str,
        log_file: Option<&'a str>,
    },
    Status(&'a Status),
    Event(&'a Event),
    Missed {
        events: u64,
    },
    State {
        unix_ms: u64,
        from: State,
        to: State,
        reason: Option<&'a str>,
    },
    Note {
        unix_ms: u64,
        text: &'a str,
    },
    Summary {
        exit_code: i32,
        message: &'a str,
        hint: Option<&'a str>,
        resume: Option<&'a str>,
        status: &'a Status,
    },
}

/// Serialising our own structs into memory cannot fail; if it ever did, the line says so instead of vanishing.
fn json(line: &Line<'_>) -> String {
    serde_json::to_string(line)
        .unwrap_or_else(|error| format!(r#"{{"type":"note","unix_ms":0,"text":"line lost: {error}"}}"#))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::headless::samples;
    use crate::status::{EventLevel, Phase};

    fn plain() -> Reporter {
        Reporter::new(LogFormat::Plain)
    }

    #[test]
    fn one_source_is_one_line() {
        let mut reporter = plain();
        reporter.news(&samples::syncing());
        assert_eq!(
            reporter.progress(&samples::syncing()),
            [
                "2026-03-02 03:12:07 syncing | 10.0.1.13:6379 RDB apply | RDB 4.38G of 4.40G received, 2.72G applied, \
              20,100,117 keys | offset received 88,120,334,118 on disk 88,120,330,000 applied 87,268,211,006 | \
              lag 852.1 MB 41m08s | 10.1k ops/s | errors 2 | NOT READY: 10.0.1.13:6379 applying RDB, about 20m30s"
            ]
        );
    }

    #[test]
    fn several_sources_have_totals_and_a_line_each() {
        let mut status = samples::caught_up();
        status.state_reason = Some("THROTTLED: limit 50 MB/s".into());
        let mut second = samples::source("10.0.1.14:6379");
        second.phase = Phase::Reconnecting;
        second.reason = Some("in 4 s (3rd try): connection refused".into());
        second.rdb_bytes_total = None;
        second.rdb_bytes_received = 0;
        (second.lag_bytes, second.lag_seconds) = (None, None);
        status.sources.push(second);
        let mut reporter = plain();
        reporter.news(&status);
        assert_eq!(
            reporter.progress(&status),
            [
                "2026-03-02 03:12:07 caught_up (THROTTLED: limit 50 MB/s) | 2 sources | lag not known | \
                 20.2k ops/s | errors 2 | READY",
                "2026-03-02 03:12:07   10.0.1.13:6379 stream | RDB 4.38G of 4.40G received, 4.38G applied, 20,100,117 \
                 keys | offset received 88,120,334,118 on disk 88,120,334,118 applied 88,120,334,118 | \
                 lag 0 bytes 0.0 s | 10.1k ops/s | errors 0",
                "2026-03-02 03:12:07   10.0.1.14:6379 reconnecting (in 4 s (3rd try): connection refused) | RDB - | \
                 offset received 88,120,334,118 on disk 88,120,330,000 applied 87,268,211,006 | \
                 lag not known | 10.1k ops/s | errors 2",
            ]
        );
    }

    #[test]
    fn no_source_yet_says_so() {
        let mut status = samples::syncing();
        status.sources.clear();
        status.not_ready.clear();
        status.state = State::Connecting;
        let mut reporter = plain();
        reporter.news(&status);
        assert_eq!(
            reporter.progress(&status),
            ["2026-03-02 03:12:07 connecting | no source yet | NOT READY: no reason known yet"]
        );
    }

    #[test]
    fn the_start_events_and_state_changes_are_said_once_and_at_once() {
        let mut reporter = plain();
        let mut status = samples::syncing();
        assert_eq!(
            reporter.news(&status),
            [
                "2026-03-02 02:30:55 shakedeck 0.1.0 started: redis 7.2.4 standalone 10.0.1.13:6379 -> standalone \
                 10.0.2.23:6379 | run run-a41c | pid 4711 | data in 'data' | log data/shakedeck.log | times are UTC",
                "2026-03-02 03:12:06 INFO  source 10.0.1.13:6379: RDB received, 4.38 GB in 6m41s; applying",
            ]
        );
        assert!(reporter.news(&status).is_empty(), "nothing is said twice");

        status.state = State::Paused;
        status.state_reason = Some("asked by the operator".into());
        status.events.push(Event { node: String::new(), ..samples::event(2, EventLevel::Warn, "paused") });
        assert_eq!(
            reporter.news(&status),
            [
                "2026-03-02 03:12:07 STATE syncing -> paused: asked by the operator",
                "2026-03-02 03:12:06 WARN  paused",
            ]
        );
    }

    #[test]
    fn an_event_that_repeats_itself_is_said_again_with_the_next_progress() {
        let mut reporter = plain();
        let mut status = samples::syncing();
        reporter.news(&status);
        status.events[0].count = 204;
        assert!(reporter.news(&status).is_empty(), "repeats must not flood the output");
        let lines = reporter.progress(&status);
        assert_eq!(
            lines[0],
            "2026-03-02 03:12:06 INFO  source 10.0.1.13:6379: RDB received, 4.38 GB in 6m41s; applying (x 204)"
        );
        assert_eq!(lines.len(), 2);
        assert_eq!(reporter.progress(&status).len(), 1, "and not once more");
    }

    #[test]
    fn events_that_fell_out_of_the_ring_are_counted() {
        let mut reporter = plain();
        let mut status = samples::syncing();
        reporter.news(&status);
        status.events = vec![samples::event(7, EventLevel::Info, "late")];
        assert_eq!(
            reporter.news(&status),
            [
                "(5 events came too fast to be shown: see the log)",
                "2026-03-02 03:12:06 INFO  source 10.0.1.13:6379: late",
            ]
        );
    }

    #[test]
    fn what_servers_said_cannot_move_the_cursor() {
        let mut status = samples::syncing();
        status.events[0].text = "error \u{1b}[2Jfrom\nserver".into();
        status.not_ready[0] = "a\rb".into();
        status.state_reason = Some("\u{7}".into());
        status.sources[0].reason = Some("\u{9b}1m".into());
        let mut reporter = plain();
        let mut lines = reporter.news(&status);
        lines.extend(reporter.progress(&status));
        lines.push(summary(&status, &samples::stopped().outcome.unwrap(), None).replace('\n', ""));
        for line in lines {
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
    }

    #[test]
    fn json_lines_are_objects_told_apart_by_type() {
        let mut reporter = Reporter::new(LogFormat::Json);
        let mut status = samples::syncing();
        let mut lines = reporter.news(&status);
        status.state = State::Streaming;
        lines.extend(reporter.progress(&status));
        lines.push(reporter.note(samples::NOW, "a note"));
        lines.push(reporter.summary(
            &status,
            &samples::stopped().outcome.unwrap(),
            Some("shakedeck shake.toml"),
        ));
        let values: Vec<serde_json::Value> =
            lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let types: Vec<&str> = values.iter().map(|value| value["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["start", "event", "state", "status", "note", "summary"]);
        assert_eq!(values[0]["run_id"], "run-a41c");
        assert_eq!(values[1]["level"], "info");
        assert_eq!(values[1]["text"], "RDB received, 4.38 GB in 6m41s; applying");
        assert_eq!((&values[2]["from"], &values[2]["to"]), (&"syncing".into(), &"streaming".into()));
        assert_eq!(values[3]["sources"][0]["offset_applied"], 87_268_211_006_u64);
        assert_eq!(
            (values[3]["events"].clone(), values[3]["history"].clone()),
            ("[]".parse().unwrap(), "[]".parse().unwrap())
        );
        assert_eq!(values[5]["exit_code"], 75);
        assert_eq!(values[5]["resume"], "shakedeck shake.toml");
        assert_eq!(values[5]["status"]["state"], "streaming");
    }
}
