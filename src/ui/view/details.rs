//! All about the selected node, writer or event, in words.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;

use super::header::wrap;
use super::{PaneFrame, Screen};
use crate::format;
use crate::status::{DestinationStatus, Event, SourceStatus, State};
use crate::ui::layout::Areas;
use crate::ui::model::Pane;
use crate::ui::rows::Finish;
use crate::ui::theme::Role;

/// Name and value; the value may be long.
type Entry = (&'static str, String);

/// What is selected, and everything known about it.
fn entries(screen: &Screen, brief: bool) -> (String, Vec<Entry>) {
    let Screen { model, status } = screen;
    match model.focus {
        Pane::Sources => match model.selected_source(status) {
            Some(source) => (source.address.clone(), of_source(screen, source, brief)),
            None => ("no node".into(), Vec::new()),
        },
        Pane::Writers => match model.selected_writer(status) {
            Some(writer) => (writer.address.clone(), of_writer(writer)),
            None => ("no writer".into(), Vec::new()),
        },
        Pane::Events => match model.events_from_anchor(status).first() {
            Some(event) => ("event".into(), of_event(event)),
            None => ("no event".into(), Vec::new()),
        },
    }
}

fn of_source(screen: &Screen, source: &SourceStatus, brief: bool) -> Vec<Entry> {
    let Screen { model, status } = screen;
    let since = model.now_unix_ms.saturating_sub(source.phase_since_unix_ms) as f64 / 1_000.0;
    let mut entries = vec![(
        "phase",
        format!(
            "{} since {} ({})",
            source.phase.word(),
            format::clock_utc(source.phase_since_unix_ms),
            format::spoken_duration(since)
        ),
    )];
    if let Some(server) = &source.connected_to {
        entries.push(("reads from", server.clone()));
    }
    if let Some(reason) = &source.reason {
        entries.push(("reason", reason.clone()));
    }
    if let Some(writer) = &source.held_back_by {
        entries.push(("held back", format!("by writer {writer}")));
    }
    if let Some(replid) = &source.replid {
        entries.push(("replid", replid.clone()));
    }
    if let Some(backlog) = source.backlog_bytes {
        let lasts =
            source.backlog_seconds().map(|seconds| format!(" = {} at this rate", format::forecast(seconds)));
        entries.push(("backlog", format!("{}{}", format::size(backlog), lasts.unwrap_or_default())));
    }
    if let Some(limit) = source.output_buffer_limit_bytes.filter(|limit| *limit > 0) {
        entries.push(("out buffer", format!("{} may wait for us on the source", format::size(limit))));
    }
    // The wide table shows these already.
    if !brief {
        let transfer = source.rdb_transfer.as_ref().map(|how| format!(", {how}")).unwrap_or_default();
        let total = source.rdb_bytes_total.map_or("unknown size".into(), format::size);
        entries.push((
            "RDB",
            format!(
                "{} received, {} applied of {total}{transfer}; {} keys",
                format::size(source.rdb_bytes_received),
                format::size(source.rdb_bytes_applied),
                format::number(source.keys_applied)
            ),
        ));
        entries.push(("received", format!("up to offset {}", format::number(source.offset_received))));
        entries.push(("on disk", format!("up to offset {}", format::number(source.offset_durable))));
        entries.push(("applied", format!("up to offset {}", format::number(source.offset_applied))));
    }
    let files = if source.spool_files == 1 { "file" } else { "files" };
    entries
        .push(("spool", format!("{} in {} {files}", format::size(source.spool_bytes), source.spool_files)));
    entries.push((
        "rate",
        format!(
            "in {}, applied {}, over 5 s",
            format::rate(source.receive_bytes_per_second),
            format::rate(source.bytes_per_second)
        ),
    ));
    let eta = match status.state {
        State::Paused | State::Pausing => "none while paused".into(),
        _ if model.is_stale(status) => "none from stale data".into(),
        _ => Finish::of(source).words(),
    };
    entries.push(("ETA", eta));
    entries.push((
        "last ack",
        match source.last_ack_unix_ms {
            Some(sent) => {
                format!(
                    "REPLCONF ACK {}, {}",
                    format::number(source.offset_durable),
                    ago(model.now_unix_ms, sent)
                )
            }
            None => "none sent yet".into(),
        },
    ));
    entries.push((
        "checkpoint",
        match source.checkpoint_unix_ms {
            Some(at) => format!("confirmed by the destination {}", ago(model.now_unix_ms, at)),
            None => "none confirmed yet".into(),
        },
    ));
    if let Some(skew) = source.clock_skew_ms {
        let time = format::spoken_duration(skew.unsigned_abs() as f64 / 1_000.0);
        entries
            .push(("clock", format!("{time} {} this host's", if skew < 0 { "behind" } else { "ahead of" })));
    }
    entries.push((
        "links",
        format!("opened again {} times, {} errors", source.reconnects, format::number(source.errors)),
    ));
    entries.push(("last error", source.last_error.clone().unwrap_or_else(|| "none".into())));
    entries
}

/// "0.8 s ago".
pub(super) fn ago(now_unix_ms: u64, then_unix_ms: u64) -> String {
    format!("{} ago", format::spoken_duration(now_unix_ms.saturating_sub(then_unix_ms) as f64 / 1_000.0))
}

fn of_writer(writer: &DestinationStatus) -> Vec<Entry> {
    let mut entries = vec![("state", writer.state.word().into())];
    if let Some(server) = &writer.connected_to {
        entries.push(("writes to", server.clone()));
    }
    if let Some(reason) = &writer.reason {
        entries.push(("reason", reason.clone()));
    }
    if let Some(slots) = &writer.slots {
        entries.push(("slots", slots.clone()));
    }
    entries.push((
        "in flight",
        format!(
            "{} of {} commands, oldest {:.0} ms",
            writer.in_flight, writer.in_flight_limit, writer.oldest_ms
        ),
    ));
    if let Some(p99) = writer.p99_ms {
        entries.push(("p99", format!("{p99:.0} ms from sending a batch to its confirmation, over 10 s")));
    }
    entries.push((
        "rate",
        format!(
            "{} commands/s, {}, over 5 s",
            format::count(writer.ops_per_second),
            format::rate(writer.bytes_per_second)
        ),
    ));
    entries.push((
        "retries",
        format!("{}, redirects {}", format::number(writer.retries), format::number(writer.redirects)),
    ));
    entries.push(("links", format!("opened again {} times", writer.reconnects)));
    entries.push(("errors", format::number(writer.errors)));
    entries.push(("last error", writer.last_error.clone().unwrap_or_else(|| "none".into())));
    entries
}

fn of_event(event: &Event) -> Vec<Entry> {
    vec![
        ("time", format!("{} UTC", format::date_time_utc(event.unix_ms))),
        ("level", event.level.word().into()),
        ("node", if event.node.is_empty() { "the whole migration".into() } else { event.node.clone() }),
        ("count", format!("{} in a row", format::number(event.count))),
        ("text", event.text.clone()),
    ]
}

/// Every line, values broken where they are long.
fn lines(screen: &Screen, width: usize, brief: bool) -> (String, Vec<Line<'static>>) {
    const NAME_WIDTH: usize = 12;
    let (title, entries) = entries(screen, brief);
    let mut lines = Vec::new();
    for (name, value) in entries {
        let value = format::escape(value, 4_000);
        for (index, part) in wrap(&value, width.saturating_sub(NAME_WIDTH + 2)).into_iter().enumerate() {
            let name = if index == 0 { name } else { "" };
            lines.push(Line::from(vec![
                screen.text(Role::Label, format!(" {name:<NAME_WIDTH$}")),
                screen.text(Role::Value, part),
            ]));
        }
    }
    (title, lines)
}

/// The pane of the wide screen.
pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    draw_into(buffer, screen, areas.details, 0, true);
}

/// The pane (`brief`, for the wide table has the rest), or an overlay that holds everything.
pub(super) fn draw_into(buffer: &mut Buffer, screen: &Screen, area: Rect, scroll: usize, brief: bool) {
    if area.is_empty() {
        return;
    }
    let (title, lines) = lines(screen, usize::from(area.width.saturating_sub(2)), brief);
    let inside = usize::from(area.height.saturating_sub(2));
    let scroll = scroll.min(lines.len().saturating_sub(inside));
    let below = lines.len().saturating_sub(inside + scroll);
    let right = if below > 0 { format!("{below} more") } else { String::new() };
    let frame = PaneFrame {
        left: Line::from(vec![screen.text(Role::Title, "details "), screen.text(Role::Value, title)]),
        right: Line::from(screen.text(Role::Dim, right)),
        boxed: true,
        focused: !brief,
    };
    let inner = screen.pane(buffer, area, frame);
    for (y, line) in (inner.y..inner.bottom()).zip(lines.into_iter().skip(scroll)) {
        screen.line(buffer, Rect { y, height: 1, ..inner }, line);
    }
}
