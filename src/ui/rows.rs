//! Rows as the tables and the clipboard know them: how bad one is, by what it is sorted, and itself in one line.

use std::cmp::Ordering;

use crate::format;
use crate::status::{DestinationStatus, Event, Phase, SourceStatus, Status, WriterState};

/// A column to sort the nodes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortColumn {
    /// Trouble first, then the oldest lag.
    Lag,
    /// Address.
    Node,
    /// Phase.
    Phase,
    /// Part of the RDB that is applied.
    Applied,
    /// Commands per second.
    Ops,
    /// Bytes in the spool.
    Spool,
    /// Errors.
    Errors,
}

impl SortColumn {
    /// In the order of the sort key.
    pub const ALL: [SortColumn; 7] = [
        SortColumn::Lag,
        SortColumn::Node,
        SortColumn::Phase,
        SortColumn::Applied,
        SortColumn::Ops,
        SortColumn::Spool,
        SortColumn::Errors,
    ];

    /// True for a column whose smallest value stands first: names, and what is furthest behind.
    pub fn is_ascending(self) -> bool {
        matches!(self, SortColumn::Node | SortColumn::Phase | SortColumn::Applied)
    }

    /// Name in the pane's title.
    pub fn name(self) -> &'static str {
        match self {
            SortColumn::Lag => "lag",
            SortColumn::Node => "node",
            SortColumn::Phase => "phase",
            SortColumn::Applied => "applied",
            SortColumn::Ops => "ops",
            SortColumn::Spool => "spool",
            SortColumn::Errors => "errors",
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing to do.
    Fine,
    /// Worth a look.
    Warn,
    /// A person must act.
    Bad,
}

/// How bad a source is.
pub fn source_severity(source: &SourceStatus, status: &Status) -> Severity {
    match source.phase {
        Phase::Failed | Phase::Reconnecting => Severity::Bad,
        // Errors that were read count no more, or every row would be marked for ever.
        _ if source.held_back_by.is_some() || (source.errors > 0 && status.unread_errors > 0) => {
            Severity::Warn
        }
        _ => Severity::Fine,
    }
}

/// How bad a writer is.
pub fn writer_severity(writer: &DestinationStatus) -> Severity {
    match writer.state {
        WriterState::Failed | WriterState::Reconnecting => Severity::Bad,
        WriterState::Slow => Severity::Warn,
        // Standing still on request has no reason; a full destination has.
        WriterState::Waiting if writer.reason.is_some() => Severity::Warn,
        _ => Severity::Fine,
    }
}

/// Whole percent of the RDB that the destination confirmed; `None` while its size is unknown.
pub fn rdb_percent(source: &SourceStatus) -> Option<u64> {
    format::percent(source.rdb_bytes_applied, source.rdb_bytes_total?)
}

/// When a node will have applied everything.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub enum Finish {
    /// It has, or is less than a second behind.
    Now,
    /// In so many seconds it will have caught up with the stream.
    CatchUp(f64),
    /// In so many seconds its RDB will be applied; the stream comes after.
    Rdb(f64),
    /// Nobody can say yet.
    Unknown,
    /// Never, at these rates: more arrives than is applied.
    FallingBehind,
}

impl Finish {
    /// The forecast for one node, from its own rates over the last seconds.
    pub fn of(source: &SourceStatus) -> Finish {
        match source.phase {
            Phase::RdbReceive | Phase::RdbApply => source.eta_seconds.map_or(Finish::Unknown, Finish::Rdb),
            Phase::Drained => Finish::Now,
            Phase::Stream if source.lag_seconds.is_some_and(|lag| lag < 1.0) => Finish::Now,
            Phase::Stream => {
                let gained = source.bytes_per_second - source.receive_bytes_per_second;
                // A hair's breadth of gain is noise of the measurement, not a forecast.
                match source.lag_bytes {
                    None => Finish::Unknown,
                    Some(lag) if gained > source.receive_bytes_per_second * 0.01 && gained >= 1.0 => {
                        Finish::CatchUp(lag as f64 / gained)
                    }
                    Some(_) => Finish::FallingBehind,
                }
            }
            _ => Finish::Unknown,
        }
    }

    /// The latest of all nodes.
    pub fn of_all(sources: &[SourceStatus]) -> Option<Finish> {
        let later = |a: Finish, b: Finish| if b.partial_cmp(&a) == Some(Ordering::Greater) { b } else { a };
        sources.iter().map(Finish::of).reduce(later)
    }

    /// In words, without a full stop.
    pub fn words(self) -> String {
        match self {
            Finish::Now => "caught up".into(),
            Finish::CatchUp(seconds) => format!("caught up in about {}", format::forecast(seconds)),
            Finish::Rdb(seconds) => format!("RDB applied in about {}", format::spoken_duration(seconds)),
            Finish::Unknown => "no forecast yet".into(),
            Finish::FallingBehind => "NOT CATCHING UP at these rates".into(),
        }
    }
}

/// Lag in coarse steps, so that two healthy nodes do not swap rows at every snapshot. Unknown ranks highest.
pub fn lag_rank(source: &SourceStatus) -> u32 {
    source.lag_seconds.map_or(u32::MAX, |seconds| seconds.max(1.0).log2() as u32)
}

/// A source as the clipboard gets it.
pub fn describe_source(row: &SourceStatus) -> String {
    format!(
        "source {} {} replid={} received={} durable={} applied={} lag_bytes={} errors={}{}",
        row.address,
        row.phase.word(),
        row.replid.as_deref().unwrap_or("-"),
        row.offset_received,
        row.offset_durable,
        row.offset_applied,
        row.lag_bytes.map_or("-".into(), |lag| lag.to_string()),
        row.errors,
        row.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default(),
    )
}

/// A writer as the clipboard gets it.
pub fn describe_writer(row: &DestinationStatus) -> String {
    format!(
        "writer {} {} in_flight={}/{} oldest_ms={:.0} errors={}{}",
        row.address,
        row.state.word(),
        row.in_flight,
        row.in_flight_limit,
        row.oldest_ms,
        row.errors,
        row.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default(),
    )
}

/// An event as the clipboard gets it.
pub fn describe_event(event: &Event) -> String {
    let time = format::date_time_utc(event.unix_ms);
    format!("{time} {} {} {} (x{})", event.level.word(), event.node, event.text, event.count)
}
