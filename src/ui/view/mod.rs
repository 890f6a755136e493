//! Draws the screen: a function of model and snapshot, nothing is changed here and no clock is read.
//!
//! Every text that a server, a file or a person wrote becomes a span through `Screen::text`, which escapes it: the
//! one gate between untrusted bytes and the terminal.

mod chart;
mod cutover;
mod details;
mod events;
mod footer;
mod header;
mod log;
mod overlay;
mod sources;
mod table;
mod verification;
mod writers;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget;

use super::layout::{self, Areas, Size, Wishes};
use super::model::{Model, Pane};
use super::rows::Severity;
use super::theme::{Glyphs, Role};
use crate::format;
use crate::status::Status;

/// Draws everything.
pub fn draw(buffer: &mut Buffer, model: &Model, status: &Status) {
    let screen = Screen { model, status };
    let areas = screen.areas(buffer.area.width, buffer.area.height);
    if areas.size == Size::TooSmall {
        header::draw_too_small(buffer, &screen);
        return;
    }
    header::draw(buffer, &screen, &areas);
    sources::draw(buffer, &screen, &areas);
    writers::draw(buffer, &screen, &areas);
    writers::draw_rejected(buffer, &screen, &areas);
    chart::draw_throughput(buffer, &screen, &areas);
    chart::draw_lag(buffer, &screen, &areas);
    events::draw(buffer, &screen, &areas);
    details::draw(buffer, &screen, &areas);
    if model.is_stale(status) {
        // Old numbers stay readable, but must not look alive.
        let numbers = Rect {
            y: areas.sources.y,
            height: areas.body.bottom().saturating_sub(areas.sources.y),
            ..areas.body
        };
        buffer.set_style(numbers, Style::new().add_modifier(Modifier::DIM));
    }
    overlay::draw(buffer, &screen, &areas);
    footer::draw(buffer, &screen, &areas);
}

/// The row at a place of the screen, for the mouse.
pub fn row_at(model: &Model, status: &Status, x: u16, y: u16) -> Option<(Pane, String)> {
    let screen = Screen { model, status };
    let areas = screen.areas(model.size.0, model.size.1);
    let inside = |area: Rect| area.contains((x, y).into());
    if inside(areas.sources) {
        return sources::address_at(&screen, &areas, y).map(|address| (Pane::Sources, address));
    }
    if inside(areas.writers) {
        return writers::address_at(&screen, &areas, y).map(|address| (Pane::Writers, address));
    }
    inside(areas.events).then_some((Pane::Events, String::new()))
}

/// What every view needs.
struct Screen<'a> {
    model: &'a Model,
    status: &'a Status,
}

impl Screen<'_> {
    fn areas(&self, width: u16, height: u16) -> Areas {
        let rows = |table: &table::Rows| u16::try_from(table.lines()).unwrap_or(u16::MAX / 2).min(1_000);
        let wishes = Wishes {
            banner: header::banner(self, width).len() as u16,
            sources: rows(&sources::rows(self)),
            writers: rows(&writers::rows(self)),
            rejected: self.status.rejected.len().min(20) as u16,
        };
        layout::areas(width, height, wishes)
    }

    fn glyphs(&self) -> &'static Glyphs {
        self.model.look.glyphs
    }

    fn style(&self, role: Role) -> Style {
        self.model.look.palette.style(role)
    }

    /// A piece of text, made harmless.
    fn text(&self, role: Role, text: impl AsRef<[u8]>) -> Span<'static> {
        Span::styled(format::escape(text, 2_000), self.style(role))
    }

    /// The filter of a pane as its title shows it, with the number of rows that pass.
    fn filter(&self, pane: Pane, count: usize, total: usize) -> Option<String> {
        let model = self.model;
        let typing = model.typing_filter && model.filtered == pane;
        if !typing && model.filter_of(pane).is_none() {
            return None;
        }
        let cursor = if typing { "_" } else { "" };
        Some(format!("filter: {}{cursor} ({count} of {total})", model.filter))
    }

    /// The role that goes with a severity.
    fn severity_role(severity: Severity) -> Role {
        match severity {
            Severity::Fine => Role::Value,
            Severity::Warn => Role::Warn,
            Severity::Bad => Role::Bad,
        }
    }

    /// Draws a line, cut with a mark where it is too long.
    fn line(&self, buffer: &mut Buffer, area: Rect, line: impl Into<Line<'static>>) {
        if area.is_empty() {
            return;
        }
        self.cut(line.into(), area.width).render(Rect { height: 1, ..area }, buffer);
    }

    /// Draws one part at the left and one at the right end; the left one is cut where both do not fit.
    fn spread(&self, buffer: &mut Buffer, area: Rect, left: Line<'static>, right: Line<'static>) {
        if area.is_empty() {
            return;
        }
        let right = self.cut(right, area.width);
        let right_width = right.width() as u16;
        let gap = if right_width > 0 { right_width + 1 } else { 0 };
        self.line(buffer, Rect { width: area.width.saturating_sub(gap), ..area }, left);
        let x = area.right() - right_width;
        right.render(Rect { x, width: right_width, height: 1, ..area }, buffer);
    }

    /// The line, cut to a width, with a mark where something is missing.
    fn cut(&self, line: Line<'static>, width: u16) -> Line<'static> {
        let width = usize::from(width);
        if line.width() <= width {
            return line;
        }
        let mark = self.glyphs().ellipsis;
        let mut left = width;
        let mut spans = Vec::new();
        let count = line.spans.len();
        for (index, span) in line.spans.into_iter().enumerate() {
            let span_width = span.width();
            // The mark belongs into the last span that still has room for it.
            let mark_width = if index + 1 < count { format::width(mark) } else { 0 };
            if span_width + mark_width <= left {
                left -= span_width;
                spans.push(span);
                continue;
            }
            let cut =
                if span_width <= left { format!("{} ", span.content) } else { span.content.to_string() };
            let padded = format!("{cut}{}", " ".repeat(left + 1));
            spans.push(Span::styled(format::cut(&padded, left, mark), span.style));
            break;
        }
        Line::from(spans)
    }

    /// Draws the frame of a pane (a box, or a rule on the small screen) with a title at each end of its first line;
    /// returns what is inside.
    fn pane(&self, buffer: &mut Buffer, area: Rect, pane: PaneFrame) -> Rect {
        if area.width < 4 || area.height == 0 {
            return Rect::default();
        }
        let glyphs = self.glyphs();
        let (frame, role) =
            if pane.focused { (&glyphs.focused, Role::BorderFocused) } else { (&glyphs.frame, Role::Border) };
        let style = self.style(role);
        let level = frame.horizontal.repeat(usize::from(area.width));
        buffer.set_stringn(area.x, area.y, &level, usize::from(area.width), style);
        let last_row = area.bottom() - 1;
        if pane.boxed && area.height > 1 {
            buffer.set_stringn(area.x, last_row, &level, usize::from(area.width), style);
            for y in area.y + 1..last_row {
                buffer.set_string(area.x, y, frame.vertical, style);
                buffer.set_string(area.right() - 1, y, frame.vertical, style);
            }
            let [top_left, top_right, bottom_left, bottom_right] = frame.corners;
            buffer.set_string(area.x, area.y, top_left, style);
            buffer.set_string(area.right() - 1, area.y, top_right, style);
            buffer.set_string(area.x, last_row, bottom_left, style);
            buffer.set_string(area.right() - 1, last_row, bottom_right, style);
        }
        let between = Rect { x: area.x + 2, width: area.width - 4, height: 1, ..area };
        let padded = |line: Line<'static>| {
            if line.width() == 0 {
                return line;
            }
            let mut spans = vec![Span::raw(" ")];
            spans.extend(line.spans);
            spans.push(Span::raw(" "));
            Line::from(spans)
        };
        self.spread(buffer, between, padded(pane.left), padded(pane.right));
        if pane.boxed {
            let inner = Rect { x: area.x + 1, y: area.y + 1, width: area.width - 2, height: area.height - 1 };
            Rect { height: inner.height.saturating_sub(1), ..inner }
        } else {
            Rect { y: area.y + 1, height: area.height - 1, ..area }
        }
    }

    /// A gauge of `width` cells in two tones: what is applied, what has only arrived. Empty while the whole is not
    /// known.
    fn gauge(&self, applied: u64, received: u64, whole: Option<u64>, width: usize) -> Vec<Span<'static>> {
        let glyphs = self.glyphs();
        let steps = glyphs.gauge.len();
        let cells = |part: u64, steps: usize| match whole {
            Some(whole) if whole > 0 => {
                (part.min(whole) as f64 / whole as f64 * (width * steps) as f64) as usize
            }
            _ => 0,
        };
        let filled = cells(applied, steps);
        let mut fill = glyphs.gauge[steps - 1].repeat(filled / steps);
        if !filled.is_multiple_of(steps) {
            fill.push_str(glyphs.gauge[filled % steps - 1]);
        }
        let filled = filled.div_ceil(steps);
        let arrived = cells(received, 1).max(filled);
        vec![
            Span::styled(fill, self.style(Role::GaugeFill)),
            Span::styled(glyphs.gauge_arrived.repeat(arrived - filled), self.style(Role::GaugeArrived)),
            Span::styled(
                glyphs.gauge_rest.repeat(width.saturating_sub(arrived)),
                self.style(Role::GaugeRest),
            ),
        ]
    }
}

/// How a pane is framed.
struct PaneFrame {
    left: Line<'static>,
    right: Line<'static>,
    boxed: bool,
    focused: bool,
}
