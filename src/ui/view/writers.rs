//! The writers table: one row per destination master, and what was refused or dropped.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::table::{self, Cells, Column, Row, Rows};
use super::{PaneFrame, Screen};
use crate::format;
use crate::status::{DestinationStatus, WriterState};
use crate::ui::layout::{Areas, Size};
use crate::ui::model::Pane;
use crate::ui::rows::{Severity, writer_severity};
use crate::ui::theme::Role;

/// Cells of the boxed layouts; a cell's place in the row is its place here.
const BOXED: [Column; 11] = [
    Column::left("NODE", 16, 0).grow(24),
    Column::left("SLOTS", 12, 7),
    Column::left("STATE", 9, 0).grow(3),
    Column::right("IN FLIGHT", 9, 2),
    Column::right("OLDEST", 8, 3),
    Column::right("p99", 8, 7),
    Column::right("OPS/s", 6, 1),
    Column::right("MB/s", 6, 6),
    Column::right("RETRY", 7, 8),
    Column::right("MOVED", 7, 8),
    Column::right("ERR", 4, 1),
];
/// Cells of the small screen, where the words stand in the row.
const COMPACT: [Column; 6] = [
    Column::left("", 16, 0),
    Column::left("", 12, 0),
    Column::left("", 15, 2),
    Column::left("", 14, 3),
    Column::right("", 7, 1),
    Column::right("", 8, 1),
];

fn columns(screen: &Screen, size: Size, width: u16) -> Vec<(usize, Column)> {
    let longest = screen.status.destinations.iter().map(|row| format::width(&row.address)).max().unwrap_or(0);
    let mut columns = if size == Size::Compact { COMPACT.to_vec() } else { BOXED.to_vec() };
    if let Some(node) = columns.first_mut() {
        node.grow = node.grow.min(longest.saturating_sub(usize::from(node.width)) as u16);
    }
    table::fit(&columns, width)
}

/// The rows that pass the filter, trouble first.
pub(super) fn rows<'a>(screen: &Screen<'a>) -> Rows<'a> {
    let Screen { model, status } = screen;
    let selected = model.selected_writer(status).map(|row| row.address.as_str());
    let compact = Size::of(model.size.0, model.size.1) == Size::Compact;
    let rows = model.writers(status).into_iter().map(|writer| {
        let troubled = matches!(writer.state, WriterState::Failed | WriterState::Reconnecting);
        let reason = writer.reason.clone().or(writer.last_error.clone().filter(|_| troubled));
        Row {
            address: writer.address.clone(),
            severity: writer_severity(writer),
            selected: model.focus == Pane::Writers && selected == Some(writer.address.as_str()),
            reason: reason.filter(|reason| !reason.is_empty()),
            cells: Box::new(move |screen| cells(screen, writer, compact)),
        }
    });
    Rows(rows.collect())
}

fn cells(screen: &Screen, writer: &DestinationStatus, compact: bool) -> Cells {
    let text = |value: Option<String>| table::value(screen, value);
    let state = screen.text(Screen::severity_role(writer_severity(writer)), writer.state.word());
    let error_role = if writer.errors > 0 { Role::Warn } else { Role::Value };
    let oldest = if writer.in_flight > 0 { milliseconds(writer.oldest_ms) } else { "-".into() };
    let ops = format::count(writer.ops_per_second);
    if compact {
        return vec![
            text(Some(writer.address.clone())),
            vec![state],
            text(Some(format!("in flight {:>5}", writer.in_flight))),
            text(Some(format!("oldest {oldest:>7}"))),
            text(Some(format!("{ops}/s"))),
            vec![screen.text(error_role, format!("err {:>3}", format::count(writer.errors as f64)))],
        ];
    }
    vec![
        text(Some(writer.address.clone())),
        text(writer.slots.clone()),
        vec![state],
        text(Some(format!("{}/{}", writer.in_flight, writer.in_flight_limit))),
        text(Some(oldest)),
        text(writer.p99_ms.map(milliseconds)),
        text(Some(ops)),
        text(Some(format::megabytes_per_second(writer.bytes_per_second))),
        text(Some(format::count(writer.retries as f64))),
        text(Some(format::count(writer.redirects as f64))),
        vec![screen.text(error_role, format::count(writer.errors as f64))],
    ]
}

/// `3 ms`, `101 ms`, `12.3 s`.
fn milliseconds(value: f64) -> String {
    match value {
        v if v < 0.95 => format!("{v:.1} ms"),
        v if v < 9_999.5 => format!("{v:.0} ms"),
        v => format!("{} s", format::duration(v / 1_000.0)),
    }
}

/// Where rows stand: below the title, and below a heading in a box.
fn row_area(area: Rect, size: Size) -> Rect {
    let (frame, heading) = if size == Size::Compact { (0, 0) } else { (1, 1) };
    Rect {
        x: area.x + frame,
        y: area.y + 1 + heading,
        width: area.width.saturating_sub(3 * frame),
        height: area.height.saturating_sub(1 + heading + frame),
    }
}

/// The writer on a line of the screen.
pub(super) fn address_at(screen: &Screen, areas: &Areas, y: u16) -> Option<String> {
    let place = row_area(areas.writers, areas.size);
    rows(screen).address_at(place.height, y.checked_sub(place.y)?)
}

pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    let area = areas.writers;
    if area.is_empty() {
        return;
    }
    let status = screen.status;
    let compact = areas.size == Size::Compact;
    let limit = status.destinations.iter().map(|row| row.in_flight_limit).max();
    let limit = limit.map(|limit| format!("pipeline limit {limit}")).unwrap_or_default();
    let rows = rows(screen);
    let hidden = rows.hidden(row_area(area, areas.size).height);
    let filter = screen.filter(Pane::Writers, rows.0.len(), status.destinations.len());
    let right = match (filter, hidden) {
        (Some(filter), _) => filter,
        (None, 0) if areas.size == Size::Normal => String::new(),
        (None, 0) => limit,
        (None, hidden) => format!("{hidden} more"),
    };
    let frame = PaneFrame {
        left: Line::from(screen.text(Role::Title, format!("writers ({})", status.destinations.len()))),
        right: Line::from(screen.text(Role::Dim, right)),
        boxed: !compact,
        focused: screen.model.focus == Pane::Writers,
    };
    let inner = screen.pane(buffer, area, frame);
    let columns = columns(screen, areas.size, row_area(area, areas.size).width);
    if !compact {
        screen.line(buffer, Rect { height: inner.height.min(1), ..inner }, table::heading(screen, &columns));
    }
    let place = row_area(area, areas.size);
    let (used, ..) = rows.draw(buffer, screen, place, &columns);
    if rows.0.is_empty() {
        let text = match status.destinations.len() {
            0 => "   no destination is connected yet",
            _ => "   no writer passes the filter (Esc clears it)",
        };
        screen.line(buffer, place, screen.text(Role::Dim, text));
    }
    if areas.size == Size::Normal {
        // No room for a pane of its own: the totals of what was refused stand below the writers.
        let below = Rect { y: place.y + used + 1, height: place.height.saturating_sub(used + 1), ..place };
        draw_summary(buffer, screen, below);
    }
}

/// Refusals, retries and redirects in two lines.
fn draw_summary(buffer: &mut Buffer, screen: &Screen, area: Rect) {
    let status = screen.status;
    let refused: Vec<String> = status
        .rejected
        .iter()
        .filter(|row| row.count > 0)
        .map(|row| format!("{} {}", row.kind, format::number(row.count)))
        .collect();
    let refused = if refused.is_empty() { "none".into() } else { refused.join(", ") };
    let role = if status.counters.quarantined > 0 { Role::Warn } else { Role::Value };
    let mut lines = vec![
        Line::from(vec![screen.text(Role::Label, "  refused or dropped: "), screen.text(role, refused)]),
        Line::from(screen.text(
            Role::Dim,
            format!(
                "  retries: {}   MOVED: {}   reconnects: {}",
                status.destinations.iter().map(|row| row.retries).sum::<u64>(),
                status.destinations.iter().map(|row| row.redirects).sum::<u64>(),
                status.destinations.iter().map(|row| row.reconnects).sum::<u64>(),
            ),
        )),
    ];
    lines.push(Line::from(screen.text(
        Role::Dim,
        format!(
            "  entries applied: {} of {} read",
            format::number(status.counters.entries_applied),
            format::number(status.counters.entries_read)
        ),
    )));
    for (y, line) in (area.y..area.bottom()).zip(lines) {
        screen.line(buffer, Rect { y, height: 1, ..area }, line);
    }
}

/// The pane of refused, dropped and rewritten entries (wide screens).
pub(super) fn draw_rejected(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    let area = areas.rejected;
    if area.is_empty() {
        return;
    }
    let status = screen.status;
    let counters = status.counters;
    let right = format!(
        "filtered {}   quarantined {}",
        format::number(counters.filtered),
        format::number(counters.quarantined)
    );
    let frame = PaneFrame {
        left: Line::from(screen.text(Role::Title, "rejected and dropped")),
        right: Line::from(screen.text(if counters.quarantined > 0 { Role::Warn } else { Role::Dim }, right)),
        boxed: true,
        focused: false,
    };
    let inner = screen.pane(buffer, area, frame);
    let columns = table::fit(
        &[
            Column::left("KIND", 13, 0),
            Column::right("COUNT", 10, 0),
            Column::left(" LAST", 9, 2),
            Column::left("EXAMPLE KEY", 22, 3).grow(60),
            Column::left("POLICY", 14, 1),
        ],
        inner.width.saturating_sub(1),
    );
    screen.line(buffer, Rect { height: inner.height.min(1), ..inner }, table::heading(screen, &columns));
    let rows = status.rejected.iter().map(|row| Row {
        address: String::new(),
        severity: Severity::Fine,
        selected: false,
        reason: None,
        cells: Box::new(move |screen| {
            let text = |value: Option<String>| table::value(screen, value);
            vec![
                text(Some(row.kind.clone())),
                text(Some(format::number(row.count))),
                vec![Span::raw(" "), text(row.last_unix_ms.map(format::clock_utc)).remove(0)],
                text(row.example.clone()),
                text(Some(row.policy.clone())),
            ]
        }),
    });
    let rows = Rows(rows.collect());
    let place = Rect { y: inner.y + 1, height: inner.height.saturating_sub(1), ..inner };
    if rows.0.is_empty() {
        screen.line(buffer, place, screen.text(Role::Dim, "  nothing so far"));
    }
    rows.draw(buffer, screen, place, &columns);
}
