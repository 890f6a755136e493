//! `ctl status`: one snapshot as a small table for people.

use super::lines::{safe, side, verdict};
use crate::format;
use crate::status::{Phase, State, Status, StepState, WriterState};

/// The whole snapshot on one screen, without a final line break.
pub(super) fn overview(status: &Status) -> String {
    let reason = status.state_reason.as_deref().map(|text| format!(": {}", safe(text))).unwrap_or_default();
    let mut lines = vec![
        format!("{}{reason}   elapsed {}", status.state.word(), format::elapsed(status.elapsed_seconds)),
        verdict(status),
    ];
    lines.extend(status.not_ready.iter().skip(1).map(|reason| format!("           {}", safe(reason))));
    lines.extend(status.warnings.iter().map(|warning| format!("WARNING: {}", safe(warning))));
    if let Some(shown) = &status.verification {
        let text = if shown.state == crate::status::VerificationState::Running {
            super::verification_progress(super::LogFormat::Plain, shown)
        } else {
            format!("{}: {}", shown.state.word(), safe(&shown.message))
        };
        lines.push(format!("verification ({}): {text}", shown.mode));
    }
    if status.state == State::CuttingOver {
        let cutover = &status.cutover;
        let step = cutover.steps.iter().find(|step| step.progress == StepState::Active);
        let detail = step.filter(|step| !step.detail.is_empty());
        let detail = detail.map_or(String::new(), |step| format!(": {}", safe(&step.detail)));
        lines.push(format!("cutover    {}{detail}", cutover.state.word()));
    }
    lines.extend(status.cutover.refusing.iter().map(|address| format!("{} refuses writes", safe(address))));
    lines.extend(status.cutover.holding.iter().map(|address| format!("{} is held", safe(address))));
    lines.push(format!("{} -> {}", side(&status.source), side(&status.destination)));
    lines.push(String::new());

    let mut sources = vec![row([
        "SOURCE", "PHASE", "RDB RECV", "TOTAL", "APPLIED", "RECEIVED", "ON DISK", "APPLIED", "LAG", "LAG s",
        "OPS/s", "ERR",
    ])];
    for source in &status.sources {
        sources.push(row([
            safe(&source.address),
            source.phase.word().into(),
            format::bytes(source.rdb_bytes_received),
            source.rdb_bytes_total.map_or("-".into(), format::bytes),
            format::bytes(source.rdb_bytes_applied),
            source.offset_received.to_string(),
            source.offset_durable.to_string(),
            source.offset_applied.to_string(),
            source.lag_bytes.map_or("-".into(), format::bytes),
            source.lag_seconds.map_or("-".into(), format::duration),
            format::count(source.ops_per_second),
            source.errors.to_string(),
        ]));
    }
    lines.extend(table(&sources));
    for source in &status.sources {
        // What went wrong once is in the events; here stands what is wrong.
        let troubled = matches!(source.phase, Phase::Failed | Phase::Reconnecting);
        let notes = source.reason.iter().chain(source.last_error.iter().filter(|_| troubled));
        lines.extend(notes.map(|note| format!("  {}: {}", safe(&source.address), safe(note))));
    }
    lines.push(String::new());

    let mut destinations =
        vec![row(["DESTINATION", "STATE", "IN FLIGHT", "OLDEST ms", "OPS/s", "RETRY", "ERR"])];
    for destination in &status.destinations {
        destinations.push(row([
            safe(&destination.address),
            destination.state.word().into(),
            format!("{}/{}", destination.in_flight, destination.in_flight_limit),
            format!("{:.0}", destination.oldest_ms),
            format::count(destination.ops_per_second),
            destination.retries.to_string(),
            destination.errors.to_string(),
        ]));
    }
    lines.extend(table(&destinations));
    for destination in &status.destinations {
        let troubled = matches!(destination.state, WriterState::Failed | WriterState::Reconnecting);
        // The reason of the trouble is mostly the last error.
        let last = destination
            .last_error
            .iter()
            .filter(|last| troubled && destination.reason.as_ref() != Some(last));
        let notes = destination.reason.iter().chain(last);
        lines.extend(notes.map(|note| format!("  {}: {}", safe(&destination.address), safe(note))));
    }
    lines.push(String::new());

    let limits = [
        status.throttle.bytes_per_second.map(|limit| format::rate(limit as f64)),
        status.throttle.ops_per_second.map(|limit| format!("{} ops/s", format::number(limit))),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    lines.push(format!(
        "spool      {} of {}, {} free on the disk",
        format::size(status.spool.bytes),
        format::size(status.spool.max_bytes),
        status.spool.disk_free_bytes.map_or("-".into(), format::size)
    ));
    lines.push(format!(
        "entries    {} read, {} applied, {} filtered, {} quarantined",
        format::number(status.counters.entries_read),
        format::number(status.counters.entries_applied),
        format::number(status.counters.filtered),
        format::number(status.counters.quarantined)
    ));
    lines.push(format!("throttle   {}", if limits.is_empty() { "off".into() } else { limits.join(", ") }));
    lines.push(format!("errors     {} unread", format::number(status.unread_errors)));
    lines.push(format!(
        "run        {}, shakedeck {}, pid {}, data in '{}', log {}",
        safe(&status.run_id),
        safe(&status.version),
        status.pid,
        safe(&status.data_dir),
        status.log_file.as_deref().map_or("-".into(), safe)
    ));
    lines.join("\n")
}

fn row<const COLUMNS: usize>(cells: [impl Into<String>; COLUMNS]) -> Vec<String> {
    cells.into_iter().map(Into::into).collect()
}

/// Columns as wide as their widest cell: the first two are words and stand left, numbers stand right.
fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| format::width(cell)).max().unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let mut text = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width.saturating_sub(format::width(cell)));
            let gap = if column == 0 { "" } else { "  " };
            text.push_str(&if column < 2 {
                format!("{gap}{cell}{padding}")
            } else {
                format!("{gap}{padding}{cell}")
            });
        }
        text.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headless::samples;

    #[test]
    fn the_table_shows_everything_aligned() {
        let mut status = samples::syncing();
        let mut second = samples::source("10.0.1.9:6379");
        second.rdb_bytes_total = None;
        second.phase = Phase::Reconnecting;
        (second.lag_bytes, second.lag_seconds) = (None, None);
        second.last_error = Some("connection \u{1b}[2J reset".into());
        status.sources.push(second);
        status.source.nodes = 2;
        status.throttle.bytes_per_second = Some(50_000_000);
        assert_eq!(
            overview(&status),
            "\
syncing   elapsed 00:41:12
NOT READY: 10.0.1.13:6379 applying RDB, about 20m30s
           2 errors that nobody has read
WARNING: TLS NOT VERIFIED: source
redis 7.2.4 standalone 10.0.1.13:6379 (2 nodes) -> standalone 10.0.2.23:6379

SOURCE          PHASE         RDB RECV  TOTAL  APPLIED     RECEIVED      ON DISK      APPLIED     LAG  LAG s  OPS/s  ERR
10.0.1.13:6379  RDB apply        4.38G  4.40G    2.72G  88120334118  88120330000  87268211006  852.1M  41m08  10.1k    2
10.0.1.9:6379   reconnecting     4.38G      -    2.72G  88120334118  88120330000  87268211006       -      -  10.1k    2
  10.0.1.9:6379: connection \\x1b[2J reset

DESTINATION     STATE  IN FLIGHT  OLDEST ms  OPS/s  RETRY  ERR
10.0.2.23:6379  SLOW   1024/1024       1101  10.1k      3    6

spool      5.2 GB of 50 GB, 90 GB free on the disk
entries    20,200,117 read, 20,100,117 applied, 1,204 filtered, 2 quarantined
throttle   50 MB/s
errors     2 unread
run        run-a41c, shakedeck 0.1.0, pid 4711, data in 'data', log data/shakedeck.log"
        );
    }
}
