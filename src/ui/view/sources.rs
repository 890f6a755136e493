//! The nodes table: one row per source master, a total below, the RDB gauge and the spool forecast.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::table::{self, Cells, Column, Row, Rows};
use super::{PaneFrame, Screen};
use crate::format;
use crate::status::{Phase, SourceStatus, State, worst_lag_seconds};
use crate::ui::layout::{Areas, Size};
use crate::ui::model::Pane;
use crate::ui::rows::{Finish, Severity, rdb_percent, source_severity};
use crate::ui::theme::Role;

/// Columns of every layout; a cell's place in the row is its place here.
const ALL: [Column; 18] = [
    Column::left("NODE", 16, 0).grow(24),
    Column::left("ROLE", 7, 9),
    Column::left("PHASE", 11, 1).grow(1),
    Column::left("REPLID", 8, 10),
    Column::left("RDB", 18, 5).grow(2).gauge(),
    Column::right("", 5, 5),
    Column::right("RECV", 8, 4),
    Column::right("TOTAL", 7, 6),
    Column::right("APPLIED", 7, 3),
    Column::right("KEYS", 6, 8),
    Column::right("OFFSET RECV", 16, 9),
    Column::right("ON DISK", 16, 9),
    Column::right("APPLIED", 16, 9),
    Column::right("LAG", 8, 2),
    Column::right("LAG s", 7, 0),
    Column::right("OPS/s", 7, 2),
    Column::right("SPOOL", 6, 7),
    Column::right("ERR", 4, 1),
];
/// Cells that the small screen shows; there the applied part is a percentage instead of a gauge.
const COMPACT: [usize; 8] = [0, 2, 6, 8, 13, 14, 15, 17];
/// Cells of the boxed layout.
const NORMAL: [usize; 12] = [0, 2, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17];

fn columns(screen: &Screen, size: Size, width: u16) -> Vec<(usize, Column)> {
    let chosen: Vec<usize> = match size {
        Size::Wide => (0..ALL.len()).collect(),
        Size::Normal => NORMAL.to_vec(),
        _ => COMPACT.to_vec(),
    };
    let longest = screen.status.sources.iter().map(|row| format::width(&row.address)).max().unwrap_or(0);
    let columns: Vec<Column> = chosen
        .iter()
        .map(|index| {
            let mut column = ALL[*index];
            match (index, size) {
                // No wider than the longest address: spare width stays at the right end.
                (0, _) => {
                    column.grow = column.grow.min(longest.saturating_sub(usize::from(column.width)) as u16)
                }
                (6, Size::Compact) => (column.title, column.width) = ("RDB RECV", 9),
                (13, Size::Compact) => (column.title, column.width) = ("LAG BYTES", 9),
                (4, Size::Normal) => column.width = 15,
                _ => {}
            }
            column
        })
        .collect();
    table::fit(&columns, width).into_iter().map(|(place, column)| (chosen[place], column)).collect()
}

/// The rows that pass the filter, in the chosen order.
pub(super) fn rows<'a>(screen: &Screen<'a>) -> Rows<'a> {
    let Screen { model, status } = screen;
    let selected = model.selected_source(status).map(|row| row.address.as_str());
    let compact = Size::of(model.size.0, model.size.1) == Size::Compact;
    let rows = model.sources(status).into_iter().map(|source| {
        let severity = source_severity(source, status);
        let lost = source.phase == Phase::Reconnecting;
        let reason = match (&source.reason, &source.held_back_by, source.phase) {
            (Some(reason), _, _) => Some(reason.clone()),
            (None, Some(writer), _) => Some(format!("HELD BACK by {writer}")),
            (None, None, Phase::Failed | Phase::Reconnecting) => source.last_error.clone(),
            _ => None,
        };
        // In front, where no cut can hide it: after that time only another full sync helps.
        let backlog = source.backlog_seconds().filter(|_| lost);
        let backlog = backlog
            .map(|seconds| format!("source backlog lasts {} at this rate", format::spoken_duration(seconds)));
        let parts: Vec<String> = backlog.into_iter().chain(reason).collect();
        let reason = (!parts.is_empty()).then(|| parts.join("; "));
        Row {
            address: source.address.clone(),
            severity,
            selected: model.focus == Pane::Sources && selected == Some(source.address.as_str()),
            reason: reason.filter(|reason| !reason.is_empty()),
            cells: Box::new(move |screen| cells(screen, source, compact)),
        }
    });
    Rows(rows.collect())
}

fn cells(screen: &Screen, source: &SourceStatus, compact: bool) -> Cells {
    let severity = Screen::severity_role(source_severity(source, screen.status));
    let percent = rdb_percent(source);
    // Before the handshake has ended nothing is known: a dash, not a zero.
    let known = !matches!(source.phase, Phase::Connecting | Phase::Handshake) || source.replid.is_some();
    let text = |value: Option<String>| table::value(screen, value);
    let offset = |value: u64| text((known && value > 0).then(|| format::number(value)));
    let gauge_width = if Size::of(screen.model.size.0, screen.model.size.1) == Size::Wide { 20 } else { 16 };
    vec![
        text(Some(source.address.clone())),
        text(source.role.clone()),
        vec![screen.text(severity, source.phase.word())],
        text(source.replid.as_ref().map(|replid| replid.chars().take(8).collect())),
        screen.gauge(
            source.rdb_bytes_applied,
            source.rdb_bytes_received,
            source.rdb_bytes_total,
            gauge_width,
        ),
        text(table::percent(percent)),
        text(table::known_bytes(source.rdb_bytes_received, known)),
        text(source.rdb_bytes_total.map(format::bytes)),
        if compact {
            text(table::percent(percent))
        } else {
            text(table::known_bytes(source.rdb_bytes_applied, known))
        },
        text(known.then(|| format::count(source.keys_applied as f64))),
        offset(source.offset_received),
        offset(source.offset_durable),
        offset(source.offset_applied),
        text(source.lag_bytes.map(format::bytes)),
        text(source.lag_seconds.map(format::duration)),
        text(known.then(|| format::count(source.ops_per_second))),
        text(Some(format::bytes(source.spool_bytes))),
        vec![screen.text(
            if source.errors > 0 { Role::Warn } else { Role::Value },
            format::count(source.errors as f64),
        )],
    ]
}

/// All nodes together, whatever the filter hides.
struct Totals {
    /// False while no node has answered PSYNC.
    known: bool,
    received: u64,
    /// `None` while one node has not said its size.
    total: Option<u64>,
    applied: u64,
    keys: u64,
    /// `None` while that of one node is not known.
    lag_bytes: Option<u64>,
    worst_seconds: Option<f64>,
    ops: f64,
    spool: u64,
    errors: u64,
}

impl Totals {
    fn of(sources: &[SourceStatus]) -> Totals {
        Totals {
            known: sources.iter().any(|row| row.replid.is_some()),
            received: sources.iter().map(|row| row.rdb_bytes_received).sum(),
            total: sources.iter().map(|row| row.rdb_bytes_total).sum(),
            applied: sources.iter().map(|row| row.rdb_bytes_applied).sum(),
            keys: sources.iter().map(|row| row.keys_applied).sum(),
            lag_bytes: sources.iter().map(|row| row.lag_bytes).sum(),
            worst_seconds: worst_lag_seconds(sources),
            ops: sources.iter().map(|row| row.ops_per_second).sum(),
            spool: sources.iter().map(|row| row.spool_bytes).sum(),
            errors: sources.iter().map(|row| row.errors).sum(),
        }
    }

    fn cells(&self, screen: &Screen, compact: bool, gauge_width: usize) -> Cells {
        let text = |value: Option<String>| table::value(screen, value);
        let percent = table::percent(self.total.and_then(|total| format::percent(self.applied, total)));
        let filtered = screen.model.filter_of(Pane::Sources).is_some();
        let name = if filtered { "total (all)" } else { "total / worst" };
        vec![
            vec![screen.text(Role::Title, if compact { name.to_uppercase() } else { name.into() })],
            Vec::new(),
            Vec::new(),
            Vec::new(),
            screen.gauge(self.applied, self.received, self.total, gauge_width),
            text(percent.clone()),
            text(table::known_bytes(self.received, self.known)),
            text(self.total.map(format::bytes)),
            text(if compact { percent } else { table::known_bytes(self.applied, self.known) }),
            text(self.known.then(|| format::count(self.keys as f64))),
            Vec::new(),
            Vec::new(),
            Vec::new(),
            text(self.lag_bytes.filter(|_| self.known).map(format::bytes)),
            text(self.worst_seconds.map(format::duration)),
            text(self.known.then(|| format::count(self.ops))),
            text(Some(format::bytes(self.spool))),
            text(Some(format::count(self.errors as f64))),
        ]
    }
}

pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    let area = areas.sources;
    let Screen { model, status } = screen;
    let compact = areas.size == Size::Compact;
    let rows = rows(screen);
    let place = places(area, areas.size, rows.0.len());
    let columns = columns(screen, areas.size, place.rows.width);

    let (_, above, below) = {
        let frame = PaneFrame {
            left: Line::from(screen.text(Role::Title, format!("source nodes ({})", status.sources.len()))),
            right: Line::default(),
            boxed: !compact,
            focused: model.focus == Pane::Sources,
        };
        screen.pane(buffer, area, frame);
        screen.line(buffer, place.heading, table::heading(screen, &columns));
        rows.draw(buffer, screen, place.rows, &columns)
    };
    draw_title(buffer, screen, area, rows.0.len(), above, below);
    if rows.0.is_empty() {
        let text = if status.sources.is_empty() {
            "   no source node is known yet"
        } else {
            "   no node passes the filter (Esc clears it)"
        };
        screen.line(buffer, place.rows, screen.text(Role::Dim, text));
    }
    if !place.rule.is_empty() {
        let width = usize::from(place.rule.width.saturating_sub(2));
        let rule = screen.glyphs().frame.horizontal.repeat(width);
        screen.line(buffer, place.rule, Span::styled(format!("  {rule}"), screen.style(Role::Border)));
    }
    let totals = Totals::of(&status.sources);
    let gauge_width = if areas.size == Size::Wide { 20 } else { 16 };
    let total = Row {
        address: String::new(),
        severity: Severity::Fine,
        selected: false,
        reason: None,
        cells: Box::new(|screen| totals.cells(screen, compact, gauge_width)),
    };
    Rows(vec![total]).draw(buffer, screen, place.total, &columns);
    screen.line(buffer, place.gauge, progress(screen, &totals, usize::from(area.width)));
    let mut last = spool(screen);
    if let Some(forecast) = forecast(screen).filter(|_| !compact) {
        last.spans.insert(0, screen.text(Role::Title, format!("  {forecast}  ")));
    }
    screen.line(buffer, place.spool, last);
}

/// The right end of the title: what is shown of how much, filter and order.
fn draw_title(buffer: &mut Buffer, screen: &Screen, area: Rect, count: usize, above: usize, below: usize) {
    let model = screen.model;
    let glyphs = screen.glyphs();
    let ascending = model.sort.is_ascending() != model.reversed;
    let mark = if ascending { glyphs.ascending } else { glyphs.descending };
    let mut parts = Vec::new();
    match (above, below) {
        (0, 0) => {}
        (0, below) => parts.push(format!("{below} more below")),
        (above, 0) => parts.push(format!("{above} more above")),
        (above, below) => parts.push(format!("{above} above, {below} below")),
    }
    parts.push(format!("sort: {} {mark}", model.sort.name()));
    match screen.filter(Pane::Sources, count, screen.status.sources.len()) {
        Some(filter) => parts.push(filter),
        None if area.width >= 110 => parts.push("filter: none".into()),
        None => {}
    }
    let text = format!(" {} ", parts.join("   "));
    let line = Line::from(screen.text(if model.typing_filter { Role::Warn } else { Role::Value }, text));
    let width = (line.width() as u16).min(area.width.saturating_sub(26));
    let x = area.right().saturating_sub(width + 2);
    screen.line(buffer, Rect { x, width, height: area.height.min(1), ..area }, line);
}

/// Places of the parts inside the pane. What does not fit is empty.
struct Places {
    heading: Rect,
    rows: Rect,
    rule: Rect,
    total: Rect,
    gauge: Rect,
    spool: Rect,
}

fn places(area: Rect, size: Size, rows: usize) -> Places {
    let compact = size == Size::Compact;
    let frame = u16::from(!compact);
    let inner = Rect {
        x: area.x + frame,
        y: area.y + 1.min(area.height),
        width: area.width.saturating_sub(3 * frame),
        height: area.height.saturating_sub(1 + frame),
    };
    // Heading and three rows first, then the total, the spool, and what is only good to have.
    let mut spare = inner.height.saturating_sub(1 + rows.clamp(1, 3) as u16);
    let mut afford = |wanted: bool| {
        let shown = u16::from(wanted && spare > 0);
        spare -= shown;
        shown
    };
    let [total, spool, gauge, rule] = [true, true, compact, !compact].map(&mut afford);
    // They stand at the bottom, the spool last.
    let mut bottom = inner.bottom();
    let mut take = |height: u16| {
        bottom -= height;
        Rect { y: bottom, height, ..inner }
    };
    let [spool, gauge, total, rule] = [spool, gauge, total, rule].map(&mut take);
    Places {
        heading: Rect { height: inner.height.min(1), ..inner },
        rows: Rect { y: inner.y + 1.min(inner.height), height: bottom.saturating_sub(inner.y + 1), ..inner },
        rule,
        total,
        gauge,
        spool,
    }
}

/// The node on a line of the screen.
pub(super) fn address_at(screen: &Screen, areas: &Areas, y: u16) -> Option<String> {
    let rows = rows(screen);
    let place = places(areas.sources, areas.size, rows.0.len()).rows;
    rows.address_at(place.height, y.checked_sub(place.y)?)
}

/// When all will be applied: the answer to "when will it be done?".
fn forecast(screen: &Screen) -> Option<String> {
    match finish(screen)? {
        Finish::Unknown => None,
        finish => Some(finish.words()),
    }
}

/// The forecast for all nodes, where the rates that it comes from still hold.
fn finish(screen: &Screen) -> Option<Finish> {
    match screen.status.state {
        State::Paused | State::Pausing => None,
        state if state.is_final() || screen.model.is_stale(screen.status) => None,
        _ => Finish::of_all(&screen.status.sources),
    }
}

/// The gauge of all RDBs; once they are applied, the rates of the stream.
fn progress(screen: &Screen, totals: &Totals, width: usize) -> Line<'static> {
    let status = screen.status;
    let streams = status.sources.iter().all(|row| matches!(row.phase, Phase::Stream | Phase::Drained));
    // What streams already says nothing about the RDBs of the others.
    let counted = |row: &&SourceStatus| streams || matches!(row.phase, Phase::RdbReceive | Phase::RdbApply);
    let counted = || status.sources.iter().filter(counted);
    let applied: f64 = counted().map(|row| row.bytes_per_second).sum();
    let received: f64 = counted().map(|row| row.receive_bytes_per_second).sum();
    if streams && !status.sources.is_empty() {
        return Line::from(screen.text(
            Role::Value,
            format!(
                "  stream in {}, applied {}{}",
                format::rate(received),
                format::rate(applied),
                forecast(screen).map(|forecast| format!("   {forecast}")).unwrap_or_default()
            ),
        ));
    }
    // A node that is away has none.
    let moves = counted().next().is_some();
    let speed = |rate: f64| if moves { format!(" at {}", format::rate(rate)) } else { String::new() };
    if !totals.known {
        return Line::from(screen.text(Role::Dim, "  RDB not begun"));
    }
    let Some(total) = totals.total.filter(|total| *total > 0) else {
        let text =
            format!("  RDB received {} of an unknown size{}", format::size(totals.received), speed(received));
        return Line::from(screen.text(Role::Value, text));
    };
    let percent = format::percent(totals.applied, total).unwrap_or(0);
    let done = if total < 1_000_000_000 {
        format!("{} of {}", format::size(totals.applied), format::size(total))
    } else {
        format!("{:.1}/{:.1} GB", totals.applied as f64 / 1e9, total as f64 / 1e9)
    };
    let left = match finish(screen) {
        Some(Finish::Rdb(seconds)) => format!(", about {} left", format::spoken_duration(seconds)),
        _ => String::new(),
    };
    let numbers = format!(" {percent} %  {done}{}{left}", speed(applied));
    let mut spans = vec![screen.text(Role::Label, "  RDB ")];
    let gauge = width.saturating_sub(10 + format::width(&numbers)).min(40);
    spans.push(Span::raw("["));
    spans.extend(screen.gauge(totals.applied, totals.received, Some(total), gauge));
    spans.push(Span::raw("]"));
    spans.push(screen.text(Role::Value, numbers));
    Line::from(spans)
}

/// Spool use, when it will be full, and while paused first of all until when that is safe.
pub(super) fn spool(screen: &Screen) -> Line<'static> {
    let Screen { model, status } = screen;
    let spool = status.spool;
    let percent = format::percent(spool.bytes, spool.max_bytes);
    let (room, by_disk) = spool.room();
    let role = match percent {
        Some(90..) => Role::Bad,
        _ if room == 0 => Role::Bad,
        Some(80..) => Role::Warn,
        _ => Role::Value,
    };
    let growth = spool.growth_bytes_per_second.filter(|growth| *growth >= 1.0);
    let growth = growth.filter(|_| !status.state.is_final() && !model.is_stale(status));
    let seconds = growth.map(|growth| room as f64 / growth);
    let paused = matches!(status.state, State::Paused | State::Pausing);
    let mut spans = vec![Span::raw("  ")];
    if let Some(seconds) = seconds.filter(|_| paused) {
        const DAY: f64 = 86_400.0;
        let until = format::clock_utc(model.now_unix_ms + (seconds.min(DAY) * 1_000.0) as u64);
        let words = match seconds {
            0.0 => "pause is NOT safe: no room is left".into(),
            DAY.. => "pause is safe for more than a day".into(),
            _ => format!("pause is safe until {}Z", &until[..5]),
        };
        spans.push(screen.text(Role::Title, format!("{words}   ")));
    }
    let mut text = format!("spool {}", format::size(spool.bytes));
    if let Some(percent) = percent {
        text.push_str(&format!(" of {} ({percent} %", format::size(spool.max_bytes)));
        let full = if by_disk { "disk full" } else { "full" };
        match seconds {
            _ if room == 0 => text.push_str(&format!(", {full}")),
            // A forecast of months helps nobody, nor one that has been said.
            Some(seconds) if seconds < 30.0 * 86_400.0 && !paused => {
                text.push_str(&format!(", {full} in {} at this rate", format::forecast(seconds)));
            }
            _ => {}
        }
        text.push(')');
    }
    spans.push(screen.text(role, text));
    let paused = match status.paused_times {
        0 => String::new(),
        1 => "   paused once".into(),
        times => format!("   paused {times} times"),
    };
    spans.push(screen.text(Role::Dim, paused));
    Line::from(spans)
}
