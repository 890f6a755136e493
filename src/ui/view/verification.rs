//! The verification: how far it is, what it has found, and the first differences.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::header::wrap;
use super::{PaneFrame, Screen};
use crate::format;
use crate::status::{Difference, Verification, VerificationState};
use crate::ui::theme::Role;

pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, area: Rect, scroll: usize) {
    let shown = screen.status.verification.as_ref();
    let title = shown.map_or("verification".to_owned(), |shown| format!("verification ({})", shown.mode));
    let right = shown.map(|shown| screen.text(role(shown.state), shown.state.word().to_uppercase()));
    let frame = PaneFrame {
        left: Line::from(screen.text(Role::Title, title)),
        right: right.map(Line::from).unwrap_or_default(),
        boxed: true,
        focused: true,
    };
    let inner = screen.pane(buffer, area, frame);
    let width = usize::from(inner.width.saturating_sub(2));
    let lines = match shown {
        Some(shown) => lines(screen, shown, width),
        None => wrap(
            "Nothing has been compared yet. v compares all keys of source and destination: existence, type, time of expiry and \
             length. It only reads; keys that are not equal are looked at again, so that writes under way are no difference.",
            width,
        )
        .into_iter()
        .map(|part| Line::from(screen.text(Role::Value, part)))
        .collect(),
    };
    let height = usize::from(inner.height);
    let scroll = scroll.min(lines.len().saturating_sub(height));
    for (y, line) in (inner.y..inner.bottom()).zip(lines.into_iter().skip(scroll)) {
        let mut spans = vec![Span::raw(" ")];
        spans.extend(line.spans);
        screen.line(buffer, Rect { y, height: 1, ..inner }, Line::from(spans));
    }
}

fn role(state: VerificationState) -> Role {
    match state {
        VerificationState::Running => Role::Value,
        VerificationState::Equal => Role::Ok,
        VerificationState::Different | VerificationState::Failed => Role::Bad,
        VerificationState::Cancelled => Role::Warn,
    }
}

fn lines(screen: &Screen, shown: &Verification, width: usize) -> Vec<Line<'static>> {
    let running = shown.state == VerificationState::Running;
    let mut lines: Vec<Line<'static>> = Vec::new();
    let mut say = |role: Role, text: &str| {
        lines.extend(wrap(text, width).into_iter().map(|part| Line::from(screen.text(role, part))));
    };
    let mark = match shown.state {
        VerificationState::Equal => screen.glyphs().yes,
        VerificationState::Different | VerificationState::Failed => screen.glyphs().no,
        _ => "",
    };
    say(role(shown.state), format!("{mark} {}", shown.message).trim_start());
    let total =
        shown.keys_total.map_or(String::new(), |total| format!(" of about {}", format::number(total)));
    let eta = shown.eta_seconds.map_or(String::new(), |eta| format!(", {} left", format::forecast(eta)));
    say(
        Role::Value,
        &format!(
            "round {} of {}   {}{} keys   {} keys/s{eta}",
            shown.round,
            shown.rounds,
            format::number(shown.keys_compared),
            if running { total } else { String::new() },
            format::count(shown.keys_per_second),
        ),
    );
    if running {
        say(
            if shown.conflicts > 0 { Role::Warn } else { Role::Value },
            &format!("{} keys not equal yet; they are looked at again", format::number(shown.conflicts)),
        );
    }
    for (count, what) in [
        (shown.unsettled, "keys changed at every look and are not judged"),
        (shown.unreadable, "values of modules were not compared"),
    ] {
        if count > 0 {
            say(Role::Warn, &format!("{} {what}", format::number(count)));
        }
    }
    for notice in &shown.notices {
        say(Role::Warn, &format!("note: {notice}"));
    }
    if shown.differences > 0 {
        let kinds: Vec<String> =
            shown.by_kind.iter().map(|of| format!("{} {}", of.kind, format::number(of.count))).collect();
        say(Role::Bad, &format!("{} keys differ: {}", format::number(shown.differences), kinds.join(", ")));
        if let Some(file) = &shown.file {
            say(Role::Dim, &format!("all of them: {file}"));
        }
        lines.push(Line::default());
        lines.extend(shown.examples.iter().flat_map(|difference| of_key(screen, difference)));
    }
    lines
}

/// A difference in two lines: what and where, then both sides.
fn of_key(screen: &Screen, difference: &Difference) -> [Line<'static>; 2] {
    let part = difference.part.as_ref().map_or(String::new(), |part| format!("  {part}"));
    [
        Line::from(vec![
            screen.text(Role::Bad, format!("{:<13}", difference.kind)),
            screen.text(Role::Value, format!("db {} {}{part}", difference.db, difference.key)),
        ]),
        Line::from(vec![
            screen.text(Role::Label, "  source "),
            screen.text(Role::Value, format!("{}   ", difference.source)),
            screen.text(Role::Label, "destination "),
            screen.text(Role::Value, &difference.destination),
        ]),
    ]
}
