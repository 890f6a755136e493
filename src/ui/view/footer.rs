//! The keys that count now, with the reason behind each one that does not work; above them a notice while it lasts.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::Screen;
use super::details::ago;
use super::sources::spool;
use crate::format;
use crate::ui::keymap::{self, Binding, Danger};
use crate::ui::layout::{Areas, Size};
use crate::ui::theme::Role;

pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    draw_info(buffer, screen, areas.info);
    let notice = screen.model.notice();
    if !areas.rule.is_empty() {
        let rule = screen.glyphs().frame.horizontal.repeat(usize::from(areas.rule.width));
        buffer.set_stringn(
            areas.rule.x,
            areas.rule.y,
            rule,
            usize::from(areas.rule.width),
            screen.style(Role::Border),
        );
        if let Some(notice) = notice {
            let area = Rect { x: areas.rule.x + 1, width: areas.rule.width.saturating_sub(2), ..areas.rule };
            screen.line(buffer, area, screen.text(Role::Warn, format!(" {notice} ")));
        }
    }
    let mut lines = areas.footer;
    if areas.size == Size::Normal {
        let second = Rect { y: lines.bottom().saturating_sub(1), height: 1, ..lines };
        match notice {
            Some(notice) => {
                lines.height = 1;
                screen.line(buffer, second, screen.text(Role::Warn, format!(" {notice}")));
            }
            None => {
                let right =
                    screen.status.log_file.as_ref().map(|file| format!("log {file} ")).unwrap_or_default();
                // The log file's path gets what the keys of the second line leave over.
                let keys = keys(screen, lines.width, 2);
                let left = keys.into_iter().nth(1).unwrap_or_default();
                let room = lines.width.saturating_sub(left.width() as u16 + 3);
                screen.spread(
                    buffer,
                    second,
                    left,
                    screen.cut(Line::from(screen.text(Role::Dim, right)), room),
                );
                lines.height = 1;
                let first = self::keys(screen, lines.width, 2).into_iter().next().unwrap_or_default();
                screen.line(buffer, lines, first);
                return;
            }
        }
    }
    let count = lines.height;
    for (y, line) in (lines.y..lines.bottom()).zip(keys(screen, lines.width, count)) {
        screen.line(buffer, Rect { y, height: 1, ..lines }, line);
    }
}

/// The footer's keys on `count` lines: all that fit, the important ones first to stay, in the order of the table.
fn keys(screen: &Screen, width: u16, count: u16) -> Vec<Line<'static>> {
    let context = screen.model.context();
    let mut shown: Vec<&Binding> = keymap::BINDINGS
        .iter()
        .filter(|binding| binding.context == context && binding.footer > 0)
        .filter(|binding| !screen.model.read_only || binding.danger_now(screen.status) == Danger::Safe)
        .collect();
    loop {
        for in_full in [true, false] {
            let lines = fill(screen, &shown, width, in_full);
            if lines.len() <= usize::from(count) {
                return lines;
            }
        }
        let Some(least) = (0..shown.len()).max_by_key(|index| shown[*index].footer) else {
            return Vec::new();
        };
        if shown.len() == 1 {
            return fill(screen, &shown, u16::MAX, false);
        }
        shown.remove(least);
    }
}

fn fill(screen: &Screen, shown: &[&Binding], width: u16, in_full: bool) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> = Vec::new();
    for binding in shown {
        let entry = entry(screen, binding, in_full);
        let entry_width = Line::from(entry.clone()).width() + 2;
        match lines.last_mut() {
            Some(line) if line.width() + entry_width <= usize::from(width) => {
                line.push_span(Span::raw("  "));
                line.spans.extend(entry);
            }
            _ => {
                let mut spans = vec![Span::raw(" ")];
                spans.extend(entry);
                lines.push(Line::from(spans));
            }
        }
    }
    lines
}

fn entry(screen: &Screen, binding: &Binding, in_full: bool) -> Vec<Span<'static>> {
    let Screen { model, status } = screen;
    let name = binding.name(screen.glyphs());
    let label = binding.label(model, status);
    match (binding.disabled)(model, status) {
        None => vec![
            Span::styled(name, screen.style(Role::KeyHint)),
            screen.text(Role::Value, format!(" {label}")),
        ],
        Some(reason) => {
            let reason = if in_full { reason.long } else { reason.short };
            vec![screen.text(Role::KeyDisabled, format!("{name} {label} ({reason})"))]
        }
    }
}

/// The wide screen's line of what is worth knowing about the process.
fn draw_info(buffer: &mut Buffer, screen: &Screen, area: Rect) {
    if area.is_empty() {
        return;
    }
    let status = screen.status;
    let mut parts = Vec::new();
    // The oldest one: what would be done again after a crash.
    if let Some(at) = status.sources.iter().filter_map(|source| source.checkpoint_unix_ms).min() {
        parts.push(format!("checkpoint {}", ago(screen.model.now_unix_ms, at)));
    }
    if let Some(memory) = status.memory_bytes {
        parts.push(format!("memory {}", format::size(memory)));
    }
    parts.push(format!("disk free {}", status.spool.disk_free_bytes.map_or("-".into(), format::size)));
    if let Some(url) = &status.status_url {
        parts.push(format!("status {url}"));
    }
    if let Some(file) = &status.log_file {
        parts.push(format!("log {file}"));
    }
    parts.push(format!("data {}", status.data_dir));
    parts.push(format!("shakedeck {} ", status.version));
    let mut left = spool(screen);
    // The margin of this line is a narrower one.
    left.spans[0] = Span::raw(" ");
    // The spool's forecast stays whole; what matters least stands last.
    let room = usize::from(area.width).saturating_sub(left.width() + 3);
    while parts.len() > 1 && format::width(&parts.join("    ")) > room {
        parts.pop();
    }
    screen.spread(buffer, area, left, Line::from(screen.text(Role::Dim, parts.join("    "))));
}
