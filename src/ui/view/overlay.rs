//! Dialogs and lists over the panes. They cover only the body: state, verdict and keys stay in sight.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::details;
use super::header::wrap;
use super::{PaneFrame, Screen, cutover, events, log, verification};
use crate::format;
use crate::status::{SourceStatus, State};
use crate::ui::dialog::{Confirm, Overlay, ThrottleForm, limit_in_words};
use crate::ui::keymap::{BINDINGS, Context, Danger};
use crate::ui::layout::Areas;
use crate::ui::theme::Role;

pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    let Some(overlay) = &screen.model.overlay else { return };
    match overlay {
        Overlay::Help { scroll, filter, typing, .. } => {
            draw_help(buffer, screen, areas.body, *scroll, filter, *typing)
        }
        Overlay::Errors { selected } => draw_errors(buffer, screen, areas.body, *selected),
        Overlay::Log => {
            clear(buffer, areas.body);
            log::draw(buffer, screen, areas.body);
        }
        Overlay::Details { scroll } => {
            let area = centred(areas.body, 100, 20);
            clear(buffer, area);
            details::draw_into(buffer, screen, area, *scroll, false);
        }
        Overlay::Verification { scroll } => {
            clear(buffer, areas.body);
            verification::draw(buffer, screen, areas.body, *scroll);
        }
        Overlay::Throttle(form) => dialog(buffer, screen, areas.body, "speed limit", throttle(screen, form)),
        Overlay::CutoverStart { typed, opened_unix_ms } => {
            let title = if screen.status.cutover.reverse.is_some() { "roll back" } else { "start cutover" };
            let room = dialog_room(areas.body);
            dialog(
                buffer,
                screen,
                areas.body,
                title,
                cutover::question(screen, typed, *opened_unix_ms, room),
            );
        }
        Overlay::Cutover => {
            clear(buffer, areas.body);
            cutover::draw(buffer, screen, areas);
        }
        Overlay::Quit => {
            let title = if screen.model.attached { "leave" } else { "quit" };
            dialog(buffer, screen, areas.body, title, quit(screen));
        }
        Overlay::Confirm(confirm) => {
            dialog(buffer, screen, areas.body, confirm.title, question(screen, confirm))
        }
    }
}

/// What the overlay says where there is no room for it.
pub(super) fn in_one_line(screen: &Screen, overlay: &Overlay) -> Line<'static> {
    let text = match overlay {
        Overlay::Quit => " d detach, goes on   s stop it   Esc go back",
        Overlay::Cutover => " the cutover's steps need a larger window; a aborts it",
        Overlay::Confirm(_) => " a question is open: enlarge the window, or Esc",
        _ => " a window is open: Esc closes it",
    };
    Line::from(screen.text(Role::Title, text))
}

/// Blanks an area, styles too.
fn clear(buffer: &mut Buffer, area: Rect) {
    for y in area.y..area.bottom() {
        for x in area.x..area.right() {
            buffer[(x, y)].reset();
        }
    }
}

/// The middle of an area, no larger than wanted.
fn centred(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height }
}

/// Columns and lines that a dialog has at most.
fn dialog_room(body: Rect) -> (usize, usize) {
    (usize::from(body.width.saturating_sub(6)), usize::from(body.height.saturating_sub(2)))
}

/// A box as large as its lines, in the middle.
fn dialog(buffer: &mut Buffer, screen: &Screen, body: Rect, title: &str, lines: Vec<Line<'static>>) {
    let widest = lines.iter().map(Line::width).max().unwrap_or(0).max(40);
    let area = centred(body, widest as u16 + 6, lines.len() as u16 + 4);
    clear(buffer, area);
    let frame = PaneFrame {
        left: Line::from(screen.text(Role::Title, title)),
        right: Line::default(),
        boxed: true,
        focused: true,
    };
    let inner = screen.pane(buffer, area, frame);
    // The blank line above goes first where rows are scarce: the choices at the end must be seen.
    let above = u16::from(inner.height > lines.len() as u16);
    let inside = Rect {
        x: inner.x + 2,
        y: inner.y + above,
        width: inner.width.saturating_sub(4),
        height: inner.height.saturating_sub(above),
    };
    let hidden = lines.len().saturating_sub(usize::from(inside.height));
    for (y, line) in (inside.y..inside.bottom()).zip(lines.into_iter().skip(hidden)) {
        screen.line(buffer, Rect { y, height: 1, ..inside }, line);
    }
}

/// `x  what it does`, as the choices of a dialog are written.
pub(super) fn choice(screen: &Screen, context: Context, skip_danger: bool) -> Vec<Line<'static>> {
    let (model, status) = (screen.model, screen.status);
    let shown = BINDINGS.iter().filter(|binding| binding.context == context && binding.footer > 0);
    shown
        .filter(|binding| !skip_danger || binding.danger == Danger::Safe)
        .map(|binding| {
            let name = format!("{:<7}", binding.name(screen.glyphs()));
            match (binding.disabled)(model, status) {
                Some(reason) => Line::from(screen.text(
                    Role::KeyDisabled,
                    format!("{name}{} ({})", binding.label(model, status), reason.long),
                )),
                None => Line::from(vec![
                    Span::styled(name, screen.style(Role::KeyHint)),
                    screen.text(Role::Value, binding.sentence(model, status)),
                ]),
            }
        })
        .collect()
}

fn quit(screen: &Screen) -> Vec<Line<'static>> {
    let (model, status) = (screen.model, screen.status);
    let say = |text: &str| Line::from(screen.text(Role::Value, text));
    let mut lines = Vec::new();
    if model.is_stopping(status) {
        lines.push(say("The migration is stopping: batches in flight are being finished."));
        lines.push(say("The screen closes by itself when that is done."));
    } else if model.attached {
        lines.push(say(&format!("The migration runs in another process (pid {}).", status.pid)));
        lines.push(say("Leaving this console changes nothing there."));
    } else if status.state == State::Switched && status.cutover.reverse.is_none() {
        lines.push(say("The switch is done, and nothing is applied any more: this process may end."));
        if let Some(refusing) = status.cutover.refusing.first() {
            lines.push(say(&format!("{refusing} goes on refusing writes until it is unfenced.")));
        }
        if let Some(held) = status.cutover.holding.first() {
            lines.push(say(&format!("{held} is held by this process: its writers go on when it ends.")));
            lines.push(say("Nobody copies what they write then."));
        }
    } else {
        lines.push(say("The migration runs in this process. Stopping it is in order:"));
        lines.extend(resume_words(screen).iter().map(|text| say(text)));
    }
    lines.push(Line::default());
    lines.extend(choice(screen, Context::Quit, model.read_only));
    lines
}

/// What a later start finds, and for how long.
fn resume_words(screen: &Screen) -> Vec<String> {
    let status = screen.status;
    if status.source.is_file() {
        return vec![
            "state is saved, and a later start goes on inside the file where this one".into(),
            "stopped, as long as the file is not changed.".into(),
        ];
    }
    let (arriving, whole): (Vec<_>, Vec<_>) =
        status.sources.iter().partition(|source: &&SourceStatus| source.needs_full_sync());
    let mut words = Vec::new();
    match arriving.as_slice() {
        [] => {
            words.push("state is saved, and a later start goes on without a new full sync".into());
        }
        [first, others @ ..] => {
            let more =
                if others.is_empty() { String::new() } else { format!(" (and {} more)", others.len()) };
            words.push(format!("but the RDB of {}{more} is not whole here yet:", first.address));
            words.push("what has arrived of it is lost, and a later start begins its full sync anew.".into());
            if whole.is_empty() {
                return words;
            }
            words.push("Of the other nodes it goes on without one".into());
        }
    }
    let shortest = whole.iter().filter_map(|source| source.backlog_seconds()).min_by(f64::total_cmp);
    words.push(match shortest {
        Some(seconds) => format!(
            "only while the source's backlog lasts: about {} at this rate.",
            format::forecast(seconds)
        ),
        None => "only while the source's backlog lasts (how long is not known yet).".into(),
    });
    words
}

fn throttle(screen: &Screen, form: &ThrottleForm) -> Vec<Line<'static>> {
    let field = |name: &str, value: &str, active: bool| {
        let cursor = if active { "_" } else { " " };
        let shown = format!("{:<14}", format!("{value}{cursor}"));
        let style = if active { screen.style(Role::Selected) } else { Style::new() };
        let empty = if value.is_empty() { "   no limit" } else { "" };
        Line::from(vec![
            screen.text(Role::Label, format!("{name:<8}")),
            Span::styled(shown, style),
            screen.text(Role::Dim, empty),
        ])
    };
    let now: f64 = screen.status.destinations.iter().map(|row| row.bytes_per_second).sum();
    let mut lines = vec![
        Line::from(
            screen.text(Role::Value, "Limits the speed towards the destination; the source is not slowed:"),
        ),
        Line::from(screen.text(Role::Value, "what waits goes into the spool. Empty means no limit.")),
        Line::default(),
        field("MB/s", &form.megabytes, !form.in_ops),
        field("ops/s", &form.ops, form.in_ops),
        Line::default(),
        Line::from(screen.text(
            Role::Dim,
            format!(
                "now: {}; destination takes {}",
                limit_in_words(screen.status.throttle),
                format::rate(now)
            ),
        )),
    ];
    if let Some(problem) = &form.problem {
        let parts = wrap(&format!("!! {problem}"), 70);
        lines.extend(parts.into_iter().map(|part| Line::from(screen.text(Role::Bad, part))));
    }
    lines
}

fn question(screen: &Screen, confirm: &Confirm) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> =
        confirm.text.iter().map(|text| Line::from(screen.text(Role::Value, text))).collect();
    lines.push(Line::default());
    match &confirm.typed {
        None => lines.extend(choice(screen, Context::Confirm, false)),
        Some((expected, text)) => {
            let role = if expected == text {
                Role::Ok
            } else if expected.starts_with(text.as_str()) {
                Role::Value
            } else {
                Role::Bad
            };
            lines.push(Line::from(vec![
                screen.text(Role::Label, "Type the destination to go on: "),
                screen.text(Role::Title, expected),
            ]));
            lines.push(Line::from(vec![
                screen.text(Role::Label, "                             > "),
                screen.text(role, format!("{text}_")),
            ]));
            lines.push(Line::default());
            lines.extend(choice(screen, Context::TypedConfirm, false));
        }
    }
    lines
}

fn draw_errors(buffer: &mut Buffer, screen: &Screen, area: Rect, selected: usize) {
    clear(buffer, area);
    let errors = screen.model.errors(screen.status);
    let unread = screen.status.unread_errors;
    let right = if unread > 0 { format!("{} unread", format::number(unread)) } else { "all read".into() };
    let frame = PaneFrame {
        left: Line::from(screen.text(Role::Title, format!("errors ({})", errors.len()))),
        right: Line::from(screen.text(if unread > 0 { Role::Bad } else { Role::Ok }, right)),
        boxed: true,
        focused: true,
    };
    let mut inner = screen.pane(buffer, area, frame);
    let listed: u64 = errors.iter().map(|event| event.count).sum();
    let lost = unread.saturating_sub(listed);
    if lost > 0 && inner.height > 0 {
        let file = screen.status.log_file.as_deref().unwrap_or("-");
        let text = format!(" {} unread errors are only in the log {file}", format::number(lost));
        screen.line(buffer, inner, screen.text(Role::Bad, text));
        inner = Rect { y: inner.y + 1, height: inner.height - 1, ..inner };
    }
    if errors.is_empty() {
        if lost == 0 {
            screen.line(buffer, inner, screen.text(Role::Ok, " no errors"));
        }
        return;
    }
    // The selected error in full at the bottom, because the list cuts long lines.
    let selected = selected.min(errors.len() - 1);
    let full = format::escape(format!("{}: {}", errors[selected].node, errors[selected].text), 4_000);
    let full = wrap(full.trim_start_matches(": "), usize::from(inner.width.saturating_sub(2)));
    let below = (full.len() as u16 + 1).min(inner.height / 2);
    let list = Rect { height: inner.height - below, ..inner };
    let first = (selected + 1).saturating_sub(usize::from(list.height));
    for (y, (index, event)) in (list.y..list.bottom()).zip(errors.iter().enumerate().skip(first)) {
        let row = Rect { y, height: 1, ..list };
        let mut line = events::line(screen, event);
        line.spans.insert(0, Span::raw(if index == selected { "> " } else { "  " }));
        screen.line(buffer, row, line);
        if index == selected {
            buffer.set_style(row, screen.style(Role::Selected));
        }
    }
    let rule = screen.glyphs().frame.horizontal.repeat(usize::from(inner.width));
    screen.line(
        buffer,
        Rect { y: list.bottom(), height: 1, ..inner },
        Span::styled(rule, screen.style(Role::Border)),
    );
    for (y, part) in (list.bottom() + 1..inner.bottom()).zip(full) {
        screen.line(buffer, Rect { y, height: 1, ..inner }, screen.text(Role::Value, format!(" {part}")));
    }
}

fn draw_help(buffer: &mut Buffer, screen: &Screen, area: Rect, scroll: usize, filter: &str, typing: bool) {
    clear(buffer, area);
    let lines = help_lines(screen, filter, usize::from(area.width.saturating_sub(2)));
    let right = if typing {
        format!("filter: {filter}_")
    } else if filter.is_empty() {
        "/ filters".into()
    } else {
        format!("filter: {filter}")
    };
    let frame = PaneFrame {
        left: Line::from(screen.text(Role::Title, "keys")),
        right: Line::from(screen.text(if typing { Role::Warn } else { Role::Dim }, right)),
        boxed: true,
        focused: true,
    };
    let inner = screen.pane(buffer, area, frame);
    let height = usize::from(inner.height);
    let scroll = scroll.min(lines.len().saturating_sub(height));
    for (y, line) in (inner.y..inner.bottom()).zip(lines.iter().skip(scroll)) {
        screen.line(buffer, Rect { y, height: 1, ..inner }, line.clone());
    }
    let below = lines.len().saturating_sub(scroll + height);
    if below > 0 && area.height > 1 {
        let text = format!(" {below} more ");
        let width = (text.len() as u16).min(area.width);
        let corner =
            Rect { x: area.right().saturating_sub(width + 2), y: area.bottom() - 1, width, height: 1 };
        screen.line(buffer, corner, screen.text(Role::Dim, text));
    }
}

/// Every binding, by context; what this console cannot do is left out.
fn help_lines(screen: &Screen, filter: &str, width: usize) -> Vec<Line<'static>> {
    let (model, status) = (screen.model, screen.status);
    let wanted = filter.to_lowercase();
    let mut lines = Vec::new();
    for context in Context::ALL {
        let mut group = Vec::new();
        for binding in BINDINGS.iter().filter(|binding| binding.context == context) {
            if model.read_only && binding.danger_now(status) > Danger::Safe {
                continue;
            }
            let keys = binding.all_names();
            if !format!("{keys} {}", binding.help).to_lowercase().contains(&wanted) {
                continue;
            }
            let reason = (binding.disabled)(model, status).filter(|_| context == Context::Screen);
            let reason = reason.map(|reason| format!(" ({})", reason.long)).unwrap_or_default();
            let role = if reason.is_empty() { Role::Value } else { Role::KeyDisabled };
            let text = format!("{}{reason}", binding.help);
            for (index, part) in wrap(&text, width.saturating_sub(17)).into_iter().enumerate() {
                let keys = if index == 0 { keys.as_str() } else { "" };
                group.push(Line::from(vec![
                    Span::styled(format!("  {keys:<14}"), screen.style(Role::KeyHint)),
                    screen.text(role, part),
                ]));
            }
        }
        if !group.is_empty() {
            if !lines.is_empty() {
                lines.push(Line::default());
            }
            lines.push(Line::from(screen.text(Role::Title, format!(" {}", context.name()))));
            lines.append(&mut group);
        }
    }
    if lines.is_empty() {
        lines.push(Line::from(screen.text(Role::Dim, "  no key matches the filter")));
    }
    lines
}
