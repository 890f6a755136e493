//! The program's own log, from tui-logger's ring. The full log is in the file named in the title.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Widget;
use tui_logger::{ExtLogRecord, LogFormatter, TuiLoggerWidget};

use super::header::wrap;
use super::{PaneFrame, Screen};
use crate::format;
use crate::ui::theme::Role;

pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, area: Rect) {
    let status = screen.status;
    let file = status.log_file.as_ref().map(|file| format!("all of it in {file}"));
    let frame = PaneFrame {
        left: Line::from(screen.text(Role::Title, "log")),
        right: Line::from(screen.text(Role::Dim, file.unwrap_or_else(|| "no log file".into()))),
        boxed: true,
        focused: true,
    };
    let inner = screen.pane(buffer, area, frame);
    if inner.is_empty() {
        return;
    }
    if screen.model.attached {
        let text = " This console is attached to another process: its log is in the file named above.";
        screen.line(buffer, inner, screen.text(Role::Dim, text));
        return;
    }
    let formatter = Format {
        dim: screen.style(Role::Dim),
        value: screen.style(Role::Value),
        warn: screen.style(Role::Warn),
        bad: screen.style(Role::Bad),
    };
    TuiLoggerWidget::default().formatter(Box::new(formatter)).state(&screen.model.log).render(inner, buffer);
}

/// Time in UTC like every clock on this screen, level, target, message; escaped, broken at spaces.
struct Format {
    dim: Style,
    value: Style,
    warn: Style,
    bad: Style,
}

impl LogFormatter for Format {
    fn min_width(&self) -> u16 {
        10
    }

    fn format(&self, width: usize, record: &ExtLogRecord) -> Vec<Line<'_>> {
        let level = record.level.to_string();
        let style = match level.as_str() {
            "ERROR" => self.bad,
            "WARN" => self.warn,
            _ => self.dim,
        };
        let unix_ms = u64::try_from(record.timestamp.timestamp().as_millisecond()).unwrap_or(0);
        let head = format!(" {} {level:<5} ", format::clock_utc(unix_ms));
        let indent = format::width(&head);
        let text = format::escape(format!("{}: {}", record.target(), record.msg().trim()), 8_000);
        let mut lines = Vec::new();
        for (index, part) in wrap(&text, width.saturating_sub(indent + 1)).into_iter().enumerate() {
            let head = if index == 0 { head.clone() } else { " ".repeat(indent) };
            lines.push(Line::from(vec![Span::styled(head, style), Span::styled(part, self.value)]));
        }
        lines
    }
}
