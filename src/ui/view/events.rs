//! Operator events, newest first. They stand still while scrolled; the title then counts what is new.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;

use super::{PaneFrame, Screen};
use crate::format;
use crate::status::{Event, EventLevel};
use crate::ui::layout::{Areas, Size};
use crate::ui::model::Pane;
use crate::ui::theme::Role;

/// The role that goes with a level.
pub(super) fn level_role(level: EventLevel) -> Role {
    match level {
        EventLevel::Info => Role::Dim,
        EventLevel::Warn => Role::Warn,
        EventLevel::Error => Role::Bad,
    }
}

/// An event on one line.
pub(super) fn line(screen: &Screen, event: &Event) -> Line<'static> {
    let mut spans = vec![
        screen.text(Role::Dim, format!("{} ", format::clock_utc(event.unix_ms))),
        screen.text(level_role(event.level), format!("{:<6} ", event.level.word())),
    ];
    if !event.node.is_empty() {
        spans.push(screen.text(Role::Label, format!("{}: ", event.node)));
    }
    if event.count > 1 {
        // In front of the text, where no cut can hide it.
        spans.push(screen.text(Role::Title, format!("x {} ", format::number(event.count))));
    }
    spans.push(screen.text(Role::Value, &event.text));
    Line::from(spans)
}

pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    let area = areas.events;
    if area.is_empty() {
        return;
    }
    let Screen { model, status } = screen;
    let compact = areas.size == Size::Compact;
    // First what no cut may hide; a number that is cut would be another one.
    let mut right = vec![match status.unread_errors {
        0 => screen.text(Role::Dim, "no unread errors"),
        1 => screen.text(Role::Bad, "1 error unread (e)"),
        count => screen.text(Role::Bad, format!("{} errors unread (e)", format::number(count))),
    }];
    if !model.follows_events() {
        let text = format!("   paused, {} new above (Esc follows)", model.events_new(status));
        right.push(screen.text(Role::Warn, text));
    }
    let events = model.events_from_anchor(status);
    if let Some(filter) = screen.filter(Pane::Events, model.events(status).len(), status.events.len()) {
        right.push(screen.text(Role::Warn, format!("   {filter}")));
    }
    if status.events_dropped > 0 {
        right.push(
            screen.text(
                Role::Dim,
                format!("   {} older only in the log", format::number(status.events_dropped)),
            ),
        );
    }
    let frame = PaneFrame {
        left: Line::from(screen.text(Role::Title, "events")),
        right: Line::from(right),
        boxed: !compact,
        focused: model.focus == Pane::Events,
    };
    let inner = screen.pane(buffer, area, frame);
    if events.is_empty() {
        let filtered = model.filter_of(Pane::Events).is_some();
        let text = if filtered { "  no event passes the filter" } else { "  nothing has happened yet" };
        screen.line(buffer, inner, screen.text(Role::Dim, text));
    }
    let margin = if compact { 2 } else { 1 };
    let inside = Rect { x: inner.x + margin, width: inner.width.saturating_sub(margin + 1), ..inner };
    for (y, event) in (inside.y..inside.bottom()).zip(events) {
        let row = Rect { y, height: 1, ..inside };
        screen.line(buffer, row, line(screen, event));
        if y == inside.y && model.focus == Pane::Events {
            buffer.set_style(row, screen.style(Role::Selected));
        }
    }
}
