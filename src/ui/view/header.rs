//! The lines that are never scrolled away: state, from where to where, clock; timeline; verdict; banner.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::Screen;
use crate::format;
use crate::status::{Gate, Outcome, Side, State, Status, StepState};
use crate::ui::dialog::limit_in_words;
use crate::ui::layout::{Areas, SMALLEST, Size};
use crate::ui::model::{Model, OLD_MS};
use crate::ui::theme::Role;

/// The state in one word, and how it is meant.
pub(super) fn state_word(model: &Model, status: &Status) -> (&'static str, Role) {
    if model.engine_gone && !status.state.is_final() {
        return (if model.attached { "DISCONNECTED" } else { "ENGINE GONE" }, Role::Bad);
    }
    if let Some(pending) = model.pending {
        return (pending.word, Role::Warn);
    }
    match status.state {
        State::Connecting => ("CONNECTING", Role::Label),
        State::Syncing => ("SYNCING", Role::Label),
        State::Streaming => ("STREAMING", Role::Label),
        State::CaughtUp => ("CAUGHT UP", Role::Ok),
        State::Pausing => ("PAUSING", Role::Warn),
        State::Paused => ("PAUSED", Role::Warn),
        State::CuttingOver => ("CUTTING OVER", Role::Warn),
        State::Switched => ("SWITCHED", Role::Ok),
        State::Stopping => ("STOPPING", Role::Warn),
        State::Failed => ("FAILED", Role::Bad),
        // Ended in order, either because the work is done or because somebody stopped it: the exit code tells.
        State::Stopped => match &status.outcome {
            Some(outcome) if outcome.is_done() => ("DONE", Role::Ok),
            _ => ("STOPPED", Role::Warn),
        },
    }
}

/// May I cut over? The first span says it in words, the rest why not.
fn verdict(screen: &Screen, wide: bool, width: u16) -> Vec<Span<'static>> {
    let Screen { model, status } = screen;
    let glyphs = screen.glyphs();
    if let Some(outcome) = &status.outcome {
        let (role, mark) = match (status.state, outcome.exit_code) {
            (State::Failed, _) => (Role::Bad, glyphs.no),
            (_, 0) => (Role::Ok, glyphs.yes),
            _ => (Role::Warn, "!"),
        };
        let first = outcome_lines(outcome, usize::from(width)).into_iter().next().unwrap_or_default();
        return vec![Span::styled(format!(" {mark} "), screen.style(role)), screen.text(role, first)];
    }
    if status.state == State::CuttingOver {
        let cutover = &status.cutover;
        let text = match cutover.fenced_unix_ms.filter(|_| cutover.blocked_seconds.is_none()) {
            Some(since) => format!(
                "CUTTING OVER: {}; writers BLOCKED for {}",
                cutover.state.word(),
                format::spoken_duration(model.now_unix_ms.saturating_sub(since) as f64 / 1_000.0)
            ),
            None => format!("CUTTING OVER: {}", cutover.state.word()),
        };
        return vec![Span::styled(format!(" ! {text}"), screen.style(Role::Warn).bold())];
    }
    if status.state == State::Switched {
        // With a reverse link the sides of the status are swapped: the clients are where it reads.
        let home = match &status.cutover.reverse {
            Some(reverse) => reverse.from.clone(),
            None => status.destination.address.clone(),
        };
        let text = format!("SWITCHED: clients belong on {} now", format::escape(home, 200));
        return vec![Span::styled(format!(" {} {text}", glyphs.yes), screen.style(Role::Ok).bold())];
    }
    if model.is_stale(status) {
        let text = "NOT READY TO CUT OVER: the data on this screen is stale";
        return vec![Span::styled(format!(" {} {text}", glyphs.no), screen.style(Role::Bad))];
    }
    if status.ready {
        let style = screen.style(Role::Ok).bold();
        let mut spans = vec![Span::styled(format!(" {} READY TO CUT OVER", glyphs.yes), style)];
        if wide {
            spans.extend(checklist(screen, usize::from(width)));
        }
        return spans;
    }
    let style = screen.style(Role::Bad);
    // The first reason is worth more than the long wording.
    let long = format!(" {} NOT READY TO CUT OVER: ", glyphs.no);
    let first = status.not_ready.first().map_or(0, |reason| format::width(reason));
    let fits = format::width(&long) + first <= usize::from(width);
    let words = if fits { long } else { format!(" {} NOT READY: ", glyphs.no) };
    let mut spans = vec![Span::styled(words, style)];
    if status.not_ready.is_empty() {
        spans.push(screen.text(Role::Dim, "the engine has not judged yet"));
    }
    // The wide screen has the others as a checklist.
    let reasons = if wide && !status.gates.is_empty() { 1 } else { usize::MAX };
    for (index, reason) in status.not_ready.iter().take(reasons).enumerate() {
        if index > 0 {
            spans.push(screen.text(Role::Dim, format!(" {} ", glyphs.dot)));
        }
        spans.push(screen.text(if index == 0 { Role::Value } else { Role::Dim }, reason));
    }
    if wide {
        let room = usize::from(width).saturating_sub(Line::from(spans.clone()).width());
        spans.extend(checklist(screen, room));
    }
    spans
}

/// How it ended, broken into lines: the first one stands in the place of the verdict, the rest in the banner.
fn outcome_lines(outcome: &Outcome, width: usize) -> Vec<String> {
    let text = format!("{} (exit code {})", format::escape(&outcome.message, 2_000), outcome.exit_code);
    wrap(&text, width.saturating_sub(5))
}

/// What else is in the way, in words that fit; behind it, where a cut costs least, what is not.
fn checklist(screen: &Screen, room: usize) -> Vec<Span<'static>> {
    let status = screen.status;
    let entry = |gate: &Gate, text: &str| {
        let (mark, role) =
            if gate.ok { (screen.glyphs().yes, Role::Ok) } else { (screen.glyphs().no, Role::Bad) };
        [Span::styled(format!("   [{mark}] "), screen.style(role)), screen.text(Role::Value, text)]
    };
    // The first reason is the verdict itself.
    let is_told = |gate: &Gate| Some(&gate.detail) == status.not_ready.first();
    let others = || status.gates.iter().filter(|gate| !gate.ok && !is_told(gate));
    let in_the_way = |words: fn(&Gate) -> String| -> Line<'static> {
        others().flat_map(|gate| entry(gate, &words(gate))).collect()
    };
    let wordings = [
        in_the_way(|gate| format!("{} ({})", gate.text, gate.detail)),
        in_the_way(|gate| gate.text.clone()),
        in_the_way(|gate| gate.name.clone()),
    ];
    let fits = wordings.iter().position(|line| line.width() <= room).unwrap_or(wordings.len() - 1);
    let met = status.gates.iter().filter(|gate| gate.ok).flat_map(|gate| entry(gate, &gate.text));
    wordings[fits].spans.iter().cloned().chain(met).collect()
}

/// The lines below the verdict: what must not be forgotten for as long as it lasts.
pub(super) fn banner(screen: &Screen, width: u16) -> Vec<Line<'static>> {
    let Screen { model, status } = screen;
    let mut lines = Vec::new();
    if let Some(outcome) = &status.outcome {
        let role = if status.state == State::Failed { Role::Bad } else { Role::Value };
        for part in outcome_lines(outcome, usize::from(width)).into_iter().skip(1) {
            lines.push(Line::from(screen.text(role, format!("   {part}"))));
        }
    }
    if let Some(hint) = status.outcome.as_ref().and_then(|outcome| outcome.hint.as_deref()) {
        for (index, part) in
            wrap(&format::escape(hint, 2_000), usize::from(width).saturating_sub(10)).into_iter().enumerate()
        {
            let label = if index == 0 { "   next: " } else { "         " };
            lines.push(Line::from(vec![screen.text(Role::Title, label), screen.text(Role::Value, part)]));
        }
    }
    if model.is_stale(status) {
        let seconds = model.age_ms(status) / 1_000;
        let text = if model.engine_gone && model.attached {
            format!(
                " STALE: the connection to the engine was lost {seconds} s ago; the migration may still go on"
            )
        } else if model.engine_gone {
            format!(" STALE: the engine has gone without a last word, {seconds} s ago; see the log (l)")
        } else {
            format!(" STALE: no news from the engine for {seconds} s")
        };
        let filled = format!("{text:<width$}", width = usize::from(width));
        lines.push(Line::from(Span::styled(filled, screen.style(Role::Bad).reversed())));
    }
    let mut notes: Vec<String> = Vec::new();
    if let Some(reason) = &status.state_reason {
        notes.push(reason.clone());
    }
    let limited = status.throttle != crate::status::Throttle::default();
    if limited && !notes.iter().any(|note| note.contains("THROTTLED")) {
        notes.push(format!("THROTTLED: {}", limit_in_words(status.throttle)));
    }
    notes.extend(status.warnings.iter().cloned());
    for note in notes.iter().filter(|_| status.outcome.is_none()) {
        let parts = wrap(&format::escape(note, 2_000), usize::from(width).saturating_sub(4));
        for (index, part) in parts.into_iter().enumerate() {
            let mark = if index == 0 { " ! " } else { "   " };
            lines.push(Line::from(vec![
                Span::styled(mark, screen.style(Role::Warn)),
                screen.text(Role::Warn, part),
            ]));
        }
    }
    lines
}

pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    let Screen { model, status } = screen;
    let compact = areas.size == Size::Compact;
    let wide = areas.size == Size::Wide;
    let width = areas.header.width;

    let (word, role) = state_word(model, status);
    let elapsed = status.elapsed_seconds
        + if status.state.is_final() { 0.0 } else { model.age_ms(status) as f64 / 1_000.0 };
    let word = if compact { format!(" {word} ") } else { format!(" {word}  ") };
    let state = vec![
        Span::styled(word, screen.style(role).bold()),
        screen.text(
            Role::Value,
            if wide { format!("elapsed {}", format::elapsed(elapsed)) } else { format::elapsed(elapsed) },
        ),
    ];
    let clock = format::clock_utc(model.now_unix_ms);
    let clock = if compact { format!("{clock}Z ") } else { format!("{clock} UTC ") };
    let mut right = vec![screen.text(Role::Value, clock)];
    if wide {
        right.push(Span::raw("  "));
        right.push(age(screen, "data {} s old "));
        right.insert(0, screen.text(Role::Dim, format!("run {}    ", status.run_id)));
    }
    let mut left = state;
    let margin = if wide { 8 } else { 5 };
    let taken = Line::from(left.clone()).width() + margin;
    let room = usize::from(width).saturating_sub(taken + Line::from(right.clone()).width());
    left.push(Span::raw(if wide { "     " } else { "   " }));
    left.push(screen.text(Role::Value, route(status, room)));
    screen.spread(buffer, areas.header, Line::from(left), Line::from(right));

    let right = match areas.size {
        Size::Wide => Line::from(screen.text(Role::Dim, format!("pid {} ", status.pid))),
        Size::Normal => Line::from(age(screen, "data {} s old ")),
        _ => Line::default(),
    };
    let gap = if right.width() > 0 { right.width() as u16 + 1 } else { 0 };
    let room = areas.timeline.width.saturating_sub(gap);
    screen.spread(buffer, areas.timeline, timeline(screen, areas.size, room), right);

    let right = if compact { Line::from(age(screen, "data {}s ")) } else { Line::default() };
    let gap = if right.width() > 0 { right.width() as u16 + 1 } else { 0 };
    let room = areas.verdict.width.saturating_sub(gap);
    screen.spread(buffer, areas.verdict, Line::from(verdict(screen, wide, room)), right);

    for (y, line) in (areas.banner.y..areas.banner.bottom()).zip(banner(screen, width)) {
        screen.line(buffer, Rect { y, height: 1, ..areas.banner }, line);
    }
}

/// How old the data is, with a mark that moves while snapshots arrive.
fn age(screen: &Screen, pattern: &str) -> Span<'static> {
    let Screen { model, status } = screen;
    if status.state.is_final() {
        return Span::default();
    }
    let age = model.age_ms(status);
    let role = match age {
        _ if model.is_stale(status) => Role::Bad,
        OLD_MS.. => Role::Warn,
        _ => Role::Dim,
    };
    let marks = screen.glyphs().activity;
    let mark = marks[(status.snapshot_unix_ms / 250 % marks.len() as u64) as usize];
    let seconds = format!("{:.1}", age as f64 / 1_000.0);
    Span::styled(format!("{mark} {}", pattern.replace("{}", &seconds)), screen.style(role))
}

/// From where to where: the longest wording that fits, or the shortest one. Words go first, then the number of nodes.
fn route(status: &Status, width: usize) -> String {
    let side = |side: &Side, with_server: bool, with_port: bool, with_kind: bool| {
        let mut text = String::new();
        if let Some(server) = side.server.as_ref().filter(|_| with_server) {
            text.push_str(server);
            text.push(' ');
        }
        // A server by itself is what is meant where nothing is said.
        let plain = side.kind == "standalone" && (!with_server || side.server.is_some());
        if !side.kind.is_empty() && !plain && with_kind {
            text.push_str(&side.kind);
            text.push(' ');
        }
        // Every node of a cluster has one of its own.
        let host = side.address.rsplit_once(':').map(|(host, _)| host);
        text.push_str(host.filter(|_| !with_port && side.nodes > 1).unwrap_or(&side.address));
        if side.nodes > 1 {
            text.push_str(&if with_server {
                format!(" ({} nodes)", side.nodes)
            } else {
                format!(" ({})", side.nodes)
            });
        }
        text
    };
    let (from, to) = (&status.source, &status.destination);
    let wordings = [(true, true, true), (false, true, true), (false, false, true), (false, false, false)]
        .map(|(server, port, kind)| {
            format!("{} -> {}", side(from, server, port, kind), side(to, server, port, kind))
        });
    let fits = wordings.into_iter().find(|text| format::width(text) <= width);
    fits.unwrap_or_else(|| format!("{} -> {}", from.address, to.address))
}

/// How much a timeline says, from the most to the least.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Detail {
    /// Every step, and how long it took.
    Times,
    /// Every step, and how long the present one has taken.
    Steps,
    /// Of what is done only the last step, and no times.
    Present,
    /// What goes on, and the end.
    Least,
}

/// The longest wording that fits: the step to come, the cutover, is worth more than how long the first one took.
fn timeline(screen: &Screen, size: Size, width: u16) -> Line<'static> {
    let details = [Detail::Times, Detail::Steps, Detail::Present, Detail::Least];
    let wordings = details.map(|detail| timeline_saying(screen, size, detail));
    let fits = wordings.iter().position(|line| line.width() <= usize::from(width));
    wordings[fits.unwrap_or(details.len() - 1)].clone()
}

fn timeline_saying(screen: &Screen, size: Size, detail: Detail) -> Line<'static> {
    let glyphs = screen.glyphs();
    let steps = &screen.status.timeline;
    let last_done = steps.iter().rposition(|step| step.state == StepState::Done);
    let times = detail == Detail::Times && size != Size::Compact;
    let mut spans = vec![Span::raw(" ")];
    for (index, step) in steps.iter().enumerate() {
        let settled = !matches!(step.state, StepState::Failed | StepState::Active);
        // The narrow timelines leave out the handshake, which is over in a second.
        if size != Size::Wide && step.name == "handshake" && settled {
            continue;
        }
        let is_told = match detail {
            Detail::Times | Detail::Steps => true,
            Detail::Present => step.state != StepState::Done || Some(index) == last_done,
            Detail::Least => !settled || index + 1 == steps.len(),
        };
        if !is_told {
            continue;
        }
        if spans.len() > 1 {
            let between = if size == Size::Wide { glyphs.step.repeat(2) } else { glyphs.step.into() };
            spans.push(screen.text(Role::Dim, format!(" {between} ")));
        }
        let name = if size == Size::Wide { step.name.clone() } else { step.name.replace("receive", "recv") };
        let note = step.note.as_deref().unwrap_or_default();
        let seconds = step.seconds.map(format::spoken_duration).unwrap_or_default();
        let (mark, role, text) = match step.state {
            StepState::Done if times => (glyphs.done, Role::Ok, [name, seconds].join(" ")),
            StepState::Done => (glyphs.done, Role::Ok, name),
            StepState::Active if size == Size::Compact || detail >= Detail::Present => {
                (glyphs.active, Role::Title, format!("{} {}", name.to_uppercase(), note.replace(" of ", "/")))
            }
            StepState::Active => {
                let both: Vec<&str> = [note, &seconds].into_iter().filter(|text| !text.is_empty()).collect();
                (glyphs.active, Role::Title, format!("{} {}", name.to_uppercase(), both.join(", ")))
            }
            StepState::Pending => (glyphs.pending, Role::Dim, name),
            StepState::Failed => ("! ", Role::Bad, format!("{} FAILED", name.to_uppercase())),
        };
        spans.push(Span::styled(mark, screen.style(role)));
        spans.push(screen.text(role, text.trim_end()));
    }
    Line::from(spans)
}

/// The message of a screen that is too small for panes: it still says the state and the verdict.
pub(super) fn draw_too_small(buffer: &mut Buffer, screen: &Screen) {
    let area = buffer.area;
    let (word, role) = state_word(screen.model, screen.status);
    let (width, height) = SMALLEST;
    let room = usize::from(area.width).saturating_sub(word.len() + 3);
    let what = route(screen.status, room);
    let mut lines = vec![Line::from(vec![
        Span::styled(format!(" {word} "), screen.style(role).bold()),
        screen.text(Role::Value, what),
    ])];
    lines.push(Line::from(verdict(screen, false, area.width)));
    if let Some(notice) = screen.model.notice() {
        lines.push(Line::from(screen.text(Role::Warn, format!(" {notice}"))));
    }
    lines.extend(banner(screen, area.width));
    if let Some(overlay) = &screen.model.overlay {
        lines.push(super::overlay::in_one_line(screen, overlay));
    }
    lines.push(Line::from(screen.text(
        Role::Warn,
        format!(" screen too small: {}x{}, needed {width}x{height}", area.width, area.height),
    )));
    lines.push(Line::from(
        screen.text(Role::Dim, " the migration goes on; enlarge the window, or q to leave"),
    ));
    for (y, line) in (area.y..area.bottom()).zip(lines) {
        screen.line(buffer, Rect { y, height: 1, ..area }, line);
    }
}

/// Breaks text at spaces; a word longer than the line is broken anywhere.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word.to_string();
        loop {
            let line = lines.last_mut().expect("starts with one line and only grows");
            let gap = usize::from(!line.is_empty());
            if format::width(line) + gap + format::width(&word) <= width {
                if gap > 0 {
                    line.push(' ');
                }
                line.push_str(&word);
                break;
            }
            if line.is_empty() {
                let mut head = format::cut(&word, width, "");
                if head.is_empty() {
                    // One wide character in a single column: give up on the width, not on the character.
                    head = word.chars().take(1).collect();
                }
                word = word.split_off(head.len());
                line.push_str(&head);
                if word.is_empty() {
                    break;
                }
            }
            lines.push(String::new());
        }
    }
    lines
}
