//! The cutover: the question before it, and its steps while it runs and after it.
//!
//! ```text
//!  -- cutover ---------------------------------------------- step 3 of 6 --
//!   [ok] 1 preflight       1 of 1 sources ready                       12 ms
//!   [>>] 3 drain           the destination must confirm the offsets   0.8 s
//!          10.0.1.11:6379  fenced at 92,554,448,001  left 412,880
//!   [  ] 6 hand over
//!        ---- no way back from step 6; abort is free until then ----
//!  -- if you abort now -----------------------------------------------------
//! ```

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::header::wrap;
use super::{PaneFrame, Screen, events, overlay};
use crate::cutover::{FenceKind, State};
use crate::format;
use crate::status::{CutoverNode, CutoverStep, Gate, StepState};
use crate::ui::dialog::cutover_words;
use crate::ui::keymap::Context;
use crate::ui::layout::{Areas, Size};
use crate::ui::theme::Role;

/// Checks, what will happen, and the words to be typed. `room`: columns and lines that there are.
pub(super) fn question(
    screen: &Screen,
    typed: &str,
    opened_unix_ms: u64,
    room: (usize, usize),
) -> Vec<Line<'static>> {
    let status = screen.status;
    let cutover = &status.cutover;
    let (width, height) = room;
    let say = |role: Role, text: String| {
        let parts = wrap(&format::escape(text, 1_000), width);
        parts.into_iter().map(move |part| Line::from(screen.text(role, part)))
    };
    let word = cutover.fence == FenceKind::Word;
    let from = side(&status.source.address, status.source.nodes);
    let to = side(&status.destination.address, status.destination.nodes);
    let mut lines: Vec<Line<'static>> = say(Role::Value, format!("From {from} to {to}.")).collect();
    let longest = cutover.max_blocked_seconds.map(format::spoken_duration);
    lines.extend(match (word, longest) {
        (true, _) => {
            say(Role::Warn, "You must have stopped every writer: the source lets nobody pause them.".into())
        }
        (false, None) => say(Role::Warn, "Clients will BLOCK on writes as soon as you confirm.".into()),
        (false, Some(longest)) => say(
            Role::Warn,
            format!("Clients will BLOCK on writes as soon as you confirm, for at most {longest} before it goes back."),
        ),
    });
    let mut end = Vec::new();
    let asked = cutover.preflight_unix_ms.is_some_and(|asked| asked >= opened_unix_ms);
    let mut gates: Vec<&Gate> = status.gates.iter().collect();
    if asked {
        gates.extend(&cutover.preflight);
    } else {
        end.push(Line::from(
            screen.text(Role::Dim, format!("{} asking the sources", mark(screen, StepState::Active))),
        ));
    }
    if status.gates.iter().any(|gate| gate.name == "errors" && !gate.ok) {
        end.extend(say(Role::Value, "     Esc, then e: read the errors and mark them as read".into()));
    }
    end.push(Line::default());
    let expected = cutover_words(status);
    let role = match () {
        () if expected == typed => Role::Ok,
        () if expected.starts_with(typed) => Role::Value,
        () => Role::Bad,
    };
    end.push(Line::from(vec![screen.text(Role::Label, "Type  "), screen.text(Role::Title, &expected)]));
    end.push(Line::from(vec![screen.text(Role::Label, "    > "), screen.text(role, format!("{typed}_"))]));
    for choice in overlay::choice(screen, Context::CutoverStart, false) {
        match choice.width() <= width {
            true => end.push(choice),
            // A reason is read to its end.
            false => end.extend(say(Role::KeyDisabled, choice.to_string())),
        }
    }
    let all: Vec<Line<'static>> = gates.iter().flat_map(|gate| check(screen, gate, width)).collect();
    if lines.len() + 1 + all.len() + end.len() <= height {
        lines.push(Line::default());
        lines.extend(all);
    } else {
        // What is in the way is worth more than a line for each that is not.
        let met: Vec<&str> = gates.iter().filter(|gate| gate.ok).map(|gate| gate.text.as_str()).collect();
        if !met.is_empty() {
            let together = met.join(&format!(" {} ", screen.glyphs().dot));
            lines.extend(marked(screen, StepState::Done, (Role::Dim, together), width));
        }
        lines.extend(gates.iter().filter(|gate| !gate.ok).flat_map(|gate| check(screen, gate, width)));
    }
    lines.extend(end);
    lines
}

fn side(address: &str, nodes: usize) -> String {
    if nodes > 1 { format!("{address} ({nodes} masters)") } else { address.to_owned() }
}

/// `[ok] lag < 1 s   0.2 s`; on lines of its own what is longer.
fn check(screen: &Screen, gate: &Gate, width: usize) -> Vec<Line<'static>> {
    let state = if gate.ok { StepState::Done } else { StepState::Failed };
    let (text, detail) = (format::escape(&gate.text, 200), format::escape(&gate.detail, 1_000));
    let head = format!("{} {text:<26} ", mark(screen, state));
    if gate.ok && (detail == text || format::width(&head) + format::width(&detail) > width) {
        return marked(screen, state, (Role::Value, text), width);
    }
    if !gate.ok && format::width(&head) + format::width(&detail) > width {
        // What is the matter says what should be.
        return marked(screen, state, (Role::Bad, detail), width);
    }
    vec![Line::from(vec![
        Span::styled(mark(screen, state), screen.style(role(state))),
        screen.text(Role::Value, format!(" {text:<26} ")),
        screen.text(if gate.ok { Role::Dim } else { Role::Bad }, detail),
    ])]
}

/// A mark and as many lines of text as it takes.
fn marked(screen: &Screen, state: StepState, text: (Role, String), width: usize) -> Vec<Line<'static>> {
    let sign = mark(screen, state);
    let indent = format::width(&sign) + 1;
    let parts = wrap(&text.1, width.saturating_sub(indent)).into_iter().enumerate();
    let line = |(index, part): (usize, String)| {
        let head = if index == 0 { format!("{sign} ") } else { " ".repeat(indent) };
        Line::from(vec![Span::styled(head, screen.style(role(state))), screen.text(text.0, part)])
    };
    parts.map(line).collect()
}

/// The whole body: steps, what an abort would do or what came of it, events.
pub(super) fn draw(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    let boxed = areas.size != Size::Compact;
    let body = areas.body;
    let border = if boxed { 2 } else { 1 };
    // What happens to the writers is never pushed off the screen by a long list of nodes.
    let outlook = outlook(screen, usize::from(body.width.saturating_sub(6)));
    let room = body.height.saturating_sub(outlook.len() as u16 + 2 * border);
    let steps = steps(screen, usize::from(body.width.saturating_sub(4)), usize::from(room));
    let cutover = &screen.status.cutover;
    let total = cutover.steps.len();
    let active = cutover.steps.iter().position(|step| step.progress == StepState::Active);
    let right = match active {
        Some(at) => format!("step {} of {total}", at + 1),
        None => cutover.state.word().to_owned(),
    };
    let mut top = body.y;
    let mut pane = |buffer: &mut Buffer, title: &str, right: String, height: u16| {
        let area = Rect { y: top, height: height.min(body.bottom().saturating_sub(top)), ..body };
        top = area.bottom();
        let frame = PaneFrame {
            left: Line::from(screen.text(Role::Title, title)),
            right: Line::from(screen.text(Role::Value, right)),
            boxed,
            focused: false,
        };
        screen.pane(buffer, area, frame)
    };
    let put = |buffer: &mut Buffer, inner: Rect, lines: Vec<Line<'static>>| {
        for (y, line) in (inner.y..inner.bottom()).zip(lines) {
            screen.line(buffer, Rect { y, height: 1, ..inner }, line);
        }
    };
    let inner = pane(buffer, "cutover", right, (steps.len() as u16).min(room) + border);
    put(buffer, inner, steps);
    let title = match cutover.state {
        state if state.can_abort() => "if you abort now",
        _ if cutover.result.is_some() => "result",
        _ => "now",
    };
    let inner = pane(buffer, title, String::new(), outlook.len() as u16 + border);
    put(buffer, inner, outlook);
    let inner = pane(buffer, "events", String::new(), u16::MAX);
    let recent = screen.model.events(screen.status).into_iter().map(|event| {
        let mut line = events::line(screen, event);
        line.spans.insert(0, Span::raw("  "));
        line
    });
    put(buffer, inner, recent.take(usize::from(inner.height)).collect());
}

/// The steps, and below the drain as many of its nodes as there are rows left.
fn steps(screen: &Screen, width: usize, room: usize) -> Vec<Line<'static>> {
    let cutover = &screen.status.cutover;
    let (mut lines, mut nodes_at) = (Vec::new(), None);
    if cutover.steps.is_empty() {
        let text = cutover.result.clone().unwrap_or_else(|| "asked the engine to begin".into());
        return vec![Line::from(screen.text(Role::Value, format!("  {text}")))];
    }
    for (index, step) in cutover.steps.iter().enumerate() {
        if step.state == State::HandingOver {
            let rule = screen.glyphs().frame.horizontal.repeat(6);
            let text =
                format!("       {rule} no way back from step {}; abort is free until then {rule}", index + 1);
            lines.push(Line::from(screen.text(Role::Dim, text)));
        }
        lines.extend(step_lines(screen, index, step, width));
        if matches!(step.state, State::Draining) && step.progress != StepState::Pending {
            nodes_at = Some(lines.len());
        }
    }
    if let Some(at) = nodes_at {
        let nodes = nodes(screen, room.saturating_sub(lines.len()));
        lines.splice(at..at, nodes);
    }
    lines
}

/// The nodes of the drain; where not all of them fit, how many are done, and those that are furthest behind.
fn nodes(screen: &Screen, room: usize) -> Vec<Line<'static>> {
    let all = &screen.status.cutover.nodes;
    let say = |text: String| Line::from(screen.text(Role::Value, format!("         {text}")));
    let left = |node: &CutoverNode| Some(node.fenced_offset?.saturating_sub(node.applied_offset));
    let line = |node: &CutoverNode| {
        let fenced = node.fenced_offset.map_or("-".into(), format::number);
        let left = match left(node) {
            Some(0) => "drained".to_owned(),
            Some(left) => format!("left {}", format::number(left)),
            None => String::new(),
        };
        say(format!("{:<21} fenced at {fenced:>16}   {left}", node.address))
    };
    if all.len() <= room {
        return all.iter().map(line).collect();
    }
    let mut behind: Vec<&CutoverNode> = all.iter().filter(|node| left(node) != Some(0)).collect();
    // One that has no offset yet is further behind than any other.
    behind.sort_by_key(|node| std::cmp::Reverse(left(node).unwrap_or(u64::MAX)));
    let drained = say(format!("{} of {} drained", all.len() - behind.len(), all.len()));
    let few = behind.into_iter().take(room.saturating_sub(1).min(4)).map(line);
    std::iter::once(drained).chain(few).collect()
}

fn step_lines(screen: &Screen, index: usize, step: &CutoverStep, width: usize) -> Vec<Line<'static>> {
    let name = match step.state {
        State::Armed => "preflight",
        State::Fencing => "fence writes",
        State::Draining => "drain",
        State::Verifying => "verify",
        State::Waiting => "your go",
        State::HandingOver => "hand over",
        other => other.word(),
    };
    let waiting = match step.state {
        State::Armed => "gates, rights on the source, hook",
        State::Fencing => "CLIENT PAUSE on every master",
        State::Draining => "applied offset must reach the fenced offset",
        State::Verifying => "compare source and destination",
        State::Waiting => "press h, then move the clients",
        _ => "the old source refuses writes, applying ends",
    };
    let detail = if step.detail.is_empty() { waiting } else { &step.detail };
    let seconds = step.seconds.or_else(|| {
        let began = step.began_unix_ms.filter(|_| step.progress == StepState::Active)?;
        Some(screen.model.now_unix_ms.saturating_sub(began) as f64 / 1_000.0)
    });
    let time = seconds.map(short_time).unwrap_or_default();
    let head = format!(" {} {name:<13} ", index + 1);
    let room = width.saturating_sub(6 + format::width(&head) + 9);
    let text_role = match step.progress {
        StepState::Pending => Role::Dim,
        StepState::Failed => Role::Bad,
        _ => Role::Value,
    };
    // A reason is read to its end.
    let parts = wrap(&format::escape(detail, 500), room).into_iter().enumerate();
    let line = |(line, part): (usize, String)| {
        if line > 0 {
            let indent = " ".repeat(2 + format::width(&mark(screen, step.progress)) + format::width(&head));
            return Line::from(screen.text(text_role, format!("{indent}{part}")));
        }
        let padding = " ".repeat(room.saturating_sub(format::width(&part)));
        Line::from(vec![
            Span::styled(format!("  {}", mark(screen, step.progress)), screen.style(role(step.progress))),
            screen.text(Role::Title, &head),
            screen.text(text_role, format!("{part}{padding}")),
            screen.text(Role::Value, format!(" {time:>8}")),
        ])
    };
    parts.map(line).collect()
}

fn short_time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1_000.0),
        seconds if seconds < 60.0 => format!("{seconds:.1} s"),
        seconds => format::spoken_duration(seconds),
    }
}

/// What an abort would do, what goes on, or what came of it.
fn outlook(screen: &Screen, width: usize) -> Vec<Line<'static>> {
    let cutover = &screen.status.cutover;
    let now = screen.model.now_unix_ms;
    let destination = &screen.status.destination.address;
    let mut lines: Vec<(Role, String)> = Vec::new();
    let blocked = cutover.fenced_unix_ms.filter(|_| cutover.blocked_seconds.is_none());
    if cutover.state.is_active() {
        match blocked {
            Some(since) => {
                let seconds = now.saturating_sub(since) as f64 / 1_000.0;
                let ends = cutover.fence_ends_unix_ms.map_or(String::new(), |ends| {
                    let left = ends.saturating_sub(now).div_ceil(1_000);
                    format!(" If this process dies, the fence ends by itself in {left} s.")
                });
                let most = cutover.max_blocked_seconds.filter(|_| cutover.state.can_abort());
                let most = most.map_or(String::new(), |most| {
                    format!(" After {} it goes back.", format::spoken_duration(most))
                });
                lines.push((
                    Role::Warn,
                    format!("Writers on the source are BLOCKED for {} now.{most}{ends}", short_time(seconds)),
                ));
            }
            None => lines.push((Role::Value, "Nobody is blocked.".into())),
        }
    }
    match cutover.state {
        state if state.can_abort() => {
            let undo = if blocked.is_some() { "CLIENT UNPAUSE on every master; s" } else { "S" };
            lines.push((Role::Value, format!("{undo}treaming goes on, nothing is lost.")));
            lines.push((Role::Value, "Clients go on writing to the SOURCE.".into()));
            if state == State::Waiting {
                lines.push((
                    Role::Warn,
                    format!("Waiting for you: press h, then move the clients to {destination}, not before."),
                ));
            }
        }
        State::HandingOver => lines.push((Role::Value, "Handing over: a matter of moments.".into())),
        State::Aborting => lines.push((Role::Warn, "Going back: writers are let through again.".into())),
        _ => {}
    }
    if let Some(result) = &cutover.result {
        let role = if cutover.aborted { Role::Warn } else { Role::Ok };
        lines.push((
            role,
            if cutover.aborted { format!("The cutover {result}.") } else { "Switched.".into() },
        ));
        if let Some(seconds) = cutover.blocked_seconds {
            lines.push((Role::Value, format!("Writers were blocked for {}.", short_time(seconds))));
        }
        if cutover.aborted {
            lines.push((Role::Value, "Streaming goes on; clients write to the source as before.".into()));
        }
        if let Some(file) = &cutover.report_file {
            lines.push((Role::Value, format!("Report: {file}")));
        }
    }
    if !cutover.refusing.is_empty() {
        lines.push((
            Role::Value,
            format!("{} refuses writes until you unfence it (u).", cutover.refusing.join(", ")),
        ));
    }
    if !cutover.holding.is_empty() {
        let held = cutover.holding.join(", ");
        lines.push((
            Role::Value,
            format!("{held} is held: its writers wait until you unfence it (u), or this run ends."),
        ));
    }
    if let Some(reverse) = &cutover.reverse {
        let left = reverse.lag_bytes.map_or("not known".into(), format::size);
        lines.push((
            Role::Value,
            format!(
                "Reverse link {} -> {}: {} commands copied back, lag {left}.",
                reverse.from,
                reverse.to,
                format::number(reverse.applied)
            ),
        ));
    }
    let wrapped = lines.into_iter().flat_map(|(role, text)| {
        wrap(&format::escape(text, 1_000), width).into_iter().map(move |part| (role, part))
    });
    wrapped.map(|(role, text)| Line::from(screen.text(role, format!("  {text}")))).collect()
}

/// The mark of a step or check, a word in plain ASCII.
fn mark(screen: &Screen, state: StepState) -> String {
    let glyphs = screen.glyphs();
    let sign = match state {
        StepState::Done => glyphs.yes,
        StepState::Failed => glyphs.no,
        StepState::Active if glyphs.yes.is_ascii() => ">>",
        StepState::Active => glyphs.active.trim_end(),
        StepState::Pending => "",
    };
    let width = format::width(glyphs.yes);
    format!("[{sign:<width$}]")
}

fn role(state: StepState) -> Role {
    match state {
        StepState::Done => Role::Ok,
        StepState::Failed => Role::Bad,
        StepState::Active => Role::Warn,
        StepState::Pending => Role::Dim,
    }
}
