//! What the console itself knows: selection, filter, sort, overlay, notice. Everything else is in the snapshot.
//!
//! The shape is Elm's: keys become an [`Action`], [`Model::update`] is the only place that changes anything, views
//! only read. The model has no clock and sends nothing itself; the loop tells it the time ([`Model::tick`]) and
//! carries out the [`Effect`] it asks for, so every behaviour here is tested without a terminal.

mod lists;

use ratatui::crossterm::event::{KeyCode, KeyEvent};
use tui_logger::TuiWidgetEvent;

use super::Exit;
use super::action::{Action, moved, step};
use super::dialog::{self, Confirm, Overlay, ThrottleForm, limit_in_words};
use super::keymap::{self, Context, Danger};
use super::rows::{self, SortColumn};
use super::theme::Look;
use crate::control::{Command, SendError};
use crate::cutover::FenceKind;
use crate::format;
use crate::status::{Event, EventLevel, Outcome, State, Status};

/// What the loop must do after an update.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Hand this to the engine.
    Send(Command),
    /// Put this text on the operator's clipboard (OSC 52).
    Copy(String),
    /// Draw every cell anew.
    Redraw,
    /// Leave the screen.
    Leave(Exit),
}

/// The pane that the arrow keys move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pane {
    /// Source nodes.
    Sources,
    /// Writers.
    Writers,
    /// Operator events.
    Events,
}

/// A wish that was sent and whose effect has not been seen yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// The word that stands in the header meanwhile ("PAUSING").
    pub word: &'static str,
    /// When it was sent (Unix ms).
    pub since_unix_ms: u64,
    /// The state when it was sent: any other state is the answer.
    from: State,
}

/// How long a notice stays (ms).
const NOTICE_MS: u64 = 6_000;
/// How long a wish waits for its effect before the console says so (ms).
const PENDING_MS: u64 = 5_000;
/// The data is old from here on (ms): the age is coloured.
pub const OLD_MS: u64 = 2_000;
/// The data is stale from here on (ms): a full-width line says so and the numbers are dimmed.
pub const STALE_MS: u64 = 5_000;
/// Chart windows that the zoom keys step through (seconds).
pub const WINDOWS: [u64; 5] = [60, 120, 300, 600, 1_800];
/// Ids of the console's own events start here, far from the engine's.
const LOCAL_EVENT_ID: u64 = 1 << 62;

/// The console's own state.
pub struct Model {
    /// Palette and glyphs.
    pub look: Look,
    /// True: nothing that changes the migration is offered.
    pub read_only: bool,
    /// True: the engine runs in another process, so leaving costs nothing.
    pub attached: bool,
    /// Columns and rows of the screen.
    pub size: (u16, u16),
    /// The time (Unix ms).
    pub now_unix_ms: u64,
    /// Where the arrow keys move.
    pub focus: Pane,
    /// What lies on top.
    pub overlay: Option<Overlay>,
    /// Shows only rows with this text in them.
    pub filter: String,
    /// The pane that the filter is for: the one that had the focus.
    pub filtered: Pane,
    /// True while the filter is being typed.
    pub typing_filter: bool,
    /// How the nodes are sorted.
    pub sort: SortColumn,
    /// True: the other way round.
    pub reversed: bool,
    /// Seconds of history in a chart; `None` = what suits the size.
    pub window: Option<u64>,
    /// A wish on its way.
    pub pending: Option<Pending>,
    /// True: leave as soon as the engine has ended.
    pub leave_at_end: bool,
    /// True: no newer snapshot will ever come.
    pub engine_gone: bool,
    /// Cutovers whose steps were shown by themselves.
    seen_cutovers: u32,
    selected_source: Option<String>,
    selected_writer: Option<String>,
    /// Id of the event at the top of the pane; `None` = follow the newest.
    event_anchor: Option<u64>,
    /// Id of the engine's newest event when the pane was scrolled away from it.
    newest_when_scrolled: Option<u64>,
    notice: Option<(String, u64)>,
    local_events: Vec<Event>,
    /// Scroll position of the log.
    pub log: tui_logger::TuiWidgetState,
}

impl Model {
    /// The console at its start.
    pub fn new(look: Look) -> Model {
        Model {
            look,
            read_only: false,
            attached: false,
            size: (80, 24),
            now_unix_ms: 0,
            focus: Pane::Sources,
            overlay: None,
            filter: String::new(),
            filtered: Pane::Sources,
            typing_filter: false,
            sort: SortColumn::Lag,
            reversed: false,
            window: None,
            pending: None,
            leave_at_end: false,
            engine_gone: false,
            seen_cutovers: 0,
            selected_source: None,
            selected_writer: None,
            event_anchor: None,
            newest_when_scrolled: None,
            notice: None,
            local_events: Vec::new(),
            log: tui_logger::TuiWidgetState::new(),
        }
    }

    /// Which keys count now.
    pub fn context(&self) -> Context {
        match &self.overlay {
            None if self.typing_filter => Context::Filter,
            None => Context::Screen,
            Some(Overlay::Help { typing: true, .. }) => Context::Filter,
            Some(Overlay::Help { .. }) => Context::Help,
            Some(Overlay::Errors { .. }) => Context::Errors,
            Some(Overlay::Log) => Context::Log,
            Some(Overlay::Details { .. }) => Context::Details,
            Some(Overlay::Verification { .. }) => Context::Verification,
            Some(Overlay::Throttle(_)) => Context::Throttle,
            Some(Overlay::CutoverStart { .. }) => Context::CutoverStart,
            Some(Overlay::Cutover) => Context::Cutover,
            Some(Overlay::Quit) => Context::Quit,
            Some(Overlay::Confirm(Confirm { typed: None, .. })) => Context::Confirm,
            Some(Overlay::Confirm(_)) => Context::TypedConfirm,
        }
    }

    /// A key was pressed: finds its action and takes it, or says why not.
    pub fn press(&mut self, key: KeyEvent, status: &Status) -> Option<Effect> {
        let context = self.context();
        if let Some(binding) = keymap::find(context, key) {
            let name = binding.name(self.look.glyphs);
            if self.read_only && binding.danger_now(status) > Danger::Safe {
                self.say(format!("{name} is off: this console is read-only"));
                return None;
            }
            if let Some(reason) = (binding.disabled)(self, status) {
                self.say(format!("{name} {}: {}", binding.label(self, status), reason.long));
                return None;
            }
            return self.update(binding.action, status);
        }
        match key.code {
            KeyCode::Char(character) if context.takes_text() && keymap::is_plain(key) => {
                self.update(Action::Type(character), status)
            }
            _ => None,
        }
    }

    /// Time has passed or a snapshot has come.
    pub fn tick(&mut self, now_unix_ms: u64, status: &Status) -> Option<Effect> {
        self.now_unix_ms = now_unix_ms;
        if self.notice.as_ref().is_some_and(|(_, until)| *until <= now_unix_ms) {
            self.notice = None;
        }
        if let Some(pending) = self.pending {
            if pending.from != status.state {
                self.pending = None;
            } else if pending.since_unix_ms + PENDING_MS <= now_unix_ms {
                self.pending = None;
                let word = pending.word.to_lowercase();
                self.say(format!("{word}: not confirmed by the engine after 5 s; press the key again"));
            }
        }
        // Whoever began it, on whichever screen: a cutover is seen.
        if status.state == State::CuttingOver && self.seen_cutovers != status.cutover.attempts {
            self.seen_cutovers = status.cutover.attempts;
            self.overlay = Some(Overlay::Cutover);
        }
        let over = status.state.is_final() || self.engine_gone;
        if self.leave_at_end && over {
            return Some(Effect::Leave(Exit::Quit));
        }
        // A file that is loaded: nothing follows, and the summary says the rest. Where the engine is another process none is printed.
        let loaded = status.source.is_file() && status.outcome.as_ref().is_some_and(Outcome::is_done);
        (loaded && !self.attached).then_some(Effect::Leave(Exit::EngineEnded))
    }

    /// The run that was shown is gone, and another one is there in its place.
    pub fn found_run(&mut self, before: &Status, now: &Status) {
        self.engine_gone = false;
        self.pending = None;
        let again = (before.pid, before.started_unix_ms) == (now.pid, now.started_unix_ms);
        if again {
            self.say("connected to the run again".into());
            return;
        }
        // Its events and cutovers are counted from the beginning.
        self.event_anchor = None;
        self.seen_cutovers = 0;
        let text = format!("a new run has begun in this data directory (pid {}): it is shown now", now.pid);
        self.note(EventLevel::Info, text.clone());
        self.say(text);
    }

    /// Takes an action. The only place where the model changes by the operator's will.
    pub fn update(&mut self, action: Action, status: &Status) -> Option<Effect> {
        if self.overlay.is_some() {
            return self.update_overlay(action, status);
        }
        if self.typing_filter {
            match action {
                Action::Type(character) => self.filter.push(character),
                Action::Erase => drop(self.filter.pop()),
                Action::Accept => self.typing_filter = false,
                Action::Back => {
                    self.filter.clear();
                    self.typing_filter = false;
                }
                _ => return self.update_anywhere(action, status),
            }
            return None;
        }
        match action {
            Action::TogglePause => {
                let paused = matches!(status.state, State::Paused | State::Pausing);
                let word = if paused { "RESUMING" } else { "PAUSING" };
                self.expect(word, status);
                return Some(Effect::Send(if paused { Command::Resume } else { Command::Pause }));
            }
            Action::OpenThrottle => self.overlay = Some(Overlay::Throttle(ThrottleForm::of(status.throttle))),
            Action::RestartSource => {
                let source = self.selected_source(status)?;
                let then = match source.needs_full_sync() {
                    true => [
                        "Its RDB is not whole here yet: what has arrived is thrown away,",
                        "and a new full sync of this node begins.",
                    ],
                    false => [
                        "Goes on from the last offset if the source's backlog still holds it;",
                        "else a new full sync of this node begins.",
                    ],
                };
                self.overlay = Some(Overlay::Confirm(Confirm {
                    title: "restart a source link",
                    text: vec![
                        format!("Drops the link to {} and opens it again.", source.address),
                        then[0].into(),
                        then[1].into(),
                    ],
                    command: Command::RestartSource { address: source.address.clone() },
                    typed: None,
                }));
            }
            Action::OpenVerify => self.overlay = Some(Overlay::Verification { scroll: 0 }),
            Action::Cutover => {
                if keymap::shows_steps(status) {
                    self.overlay = Some(Overlay::Cutover);
                    return None;
                }
                self.overlay =
                    Some(Overlay::CutoverStart { typed: String::new(), opened_unix_ms: self.now_unix_ms });
                return Some(Effect::Send(Command::Preflight));
            }
            Action::NextPane => {
                self.focus = match self.focus {
                    Pane::Sources => Pane::Writers,
                    Pane::Writers => Pane::Events,
                    Pane::Events => Pane::Sources,
                };
            }
            Action::PreviousPane => {
                self.focus = match self.focus {
                    Pane::Sources => Pane::Events,
                    Pane::Writers => Pane::Sources,
                    Pane::Events => Pane::Writers,
                };
            }
            Action::Up => self.go(-1, status),
            Action::Down => self.go(1, status),
            Action::PageUp => self.go(-10, status),
            Action::PageDown => self.go(10, status),
            Action::First => self.go(isize::MIN / 2, status),
            Action::Last => self.go(isize::MAX / 2, status),
            Action::OpenDetails => self.overlay = Some(Overlay::Details { scroll: 0 }),
            Action::Filter => {
                if self.filtered != self.focus {
                    self.filter.clear();
                }
                self.filtered = self.focus;
                self.typing_filter = true;
            }
            Action::SortNext => {
                let at = SortColumn::ALL.iter().position(|column| *column == self.sort).unwrap_or(0);
                self.sort = SortColumn::ALL[(at + 1) % SortColumn::ALL.len()];
                self.reversed = false;
            }
            Action::SortReverse => self.reversed = !self.reversed,
            Action::OpenErrors => self.overlay = Some(Overlay::Errors { selected: 0 }),
            Action::Copy => {
                let row = match self.focus {
                    Pane::Sources => self.selected_source(status).map(rows::describe_source),
                    Pane::Writers => self.selected_writer(status).map(rows::describe_writer),
                    Pane::Events => {
                        self.events_from_anchor(status).first().map(|event| rows::describe_event(event))
                    }
                };
                return self.copy(row?);
            }
            Action::OpenLog => self.overlay = Some(Overlay::Log),
            Action::NextTheme => {
                self.look.palette = self.look.palette.next();
                self.say(format!("theme: {}", self.look.palette.name()));
            }
            Action::ZoomIn => self.zoom(-1),
            Action::ZoomOut => self.zoom(1),
            Action::Back if !self.filter.is_empty() => self.filter.clear(),
            Action::Back => self.event_anchor = None,
            _ => return self.update_anywhere(action, status),
        }
        None
    }

    /// What means the same on the screen and in every overlay.
    fn update_anywhere(&mut self, action: Action, status: &Status) -> Option<Effect> {
        match action {
            Action::Redraw => return Some(Effect::Redraw),
            Action::OpenHelp => {
                let below = self.overlay.take().map(Box::new);
                self.overlay = Some(Overlay::Help { scroll: 0, filter: String::new(), typing: false, below })
            }
            // Nothing is lost by leaving a migration that has ended: no question.
            Action::Quit if status.state.is_final() || self.engine_gone => {
                return Some(Effect::Leave(Exit::EngineEnded));
            }
            Action::Quit => {
                self.typing_filter = false;
                self.overlay = Some(Overlay::Quit);
            }
            Action::Back => self.overlay = None,
            _ => {}
        }
        None
    }

    fn update_overlay(&mut self, action: Action, status: &Status) -> Option<Effect> {
        let error_count = self.errors(status).len();
        let stopping = self.is_stopping(status);
        let overlay = self.overlay.as_mut()?;
        match (overlay, action) {
            (Overlay::Help { filter, typing: true, .. }, Action::Type(character)) => filter.push(character),
            (Overlay::Help { filter, typing: true, .. }, Action::Erase) => drop(filter.pop()),
            (Overlay::Help { typing: typing @ true, .. }, Action::Accept) => *typing = false,
            (Overlay::Help { filter, typing: typing @ true, .. }, Action::Back) => {
                *typing = false;
                filter.clear();
            }
            (Overlay::Help { below, .. }, Action::Back) => self.overlay = below.take().map(|below| *below),
            (Overlay::Help { scroll, typing, .. }, Action::Filter) => (*scroll, *typing) = (0, true),
            (
                Overlay::Help { scroll, .. } | Overlay::Details { scroll } | Overlay::Verification { scroll },
                action,
            ) if step(action).is_some() => {
                *scroll = moved(*scroll, action, usize::MAX);
            }
            (Overlay::Errors { selected }, action) if step(action).is_some() => {
                *selected = moved(*selected, action, error_count.saturating_sub(1));
            }
            (Overlay::Errors { .. }, Action::Acknowledge) => {
                self.say("asked the engine to mark the errors as read".into());
                return Some(Effect::Send(Command::AcknowledgeErrors));
            }
            (Overlay::Errors { selected }, Action::Copy) => {
                let selected = *selected;
                let text = self.errors(status).get(selected).map(|event| rows::describe_event(event));
                return self.copy(text?);
            }
            (Overlay::Verification { scroll }, Action::Verify) => {
                *scroll = 0;
                self.say("asked the engine to compare".into());
                return Some(Effect::Send(Command::Verify));
            }
            (Overlay::Verification { .. }, Action::StopVerify) => {
                self.say("asked the engine to end the comparison".into());
                return Some(Effect::Send(Command::StopVerify));
            }
            (Overlay::Log, Action::PageUp) => self.log.transition(TuiWidgetEvent::PrevPageKey),
            (Overlay::Log, Action::PageDown) => self.log.transition(TuiWidgetEvent::NextPageKey),
            (Overlay::Log, Action::Last) => self.log.transition(TuiWidgetEvent::EscapeKey),
            (Overlay::Throttle(form), Action::Accept) => match form.limit() {
                Ok(limit) => {
                    self.overlay = None;
                    self.say(format!("asked for {}", limit_in_words(limit)));
                    return Some(Effect::Send(Command::Throttle { limit }));
                }
                Err(problem) => form.problem = Some(problem),
            },
            (Overlay::Throttle(form), action) if ThrottleForm::takes(action) => form.edit(action),
            (Overlay::CutoverStart { typed, .. }, Action::Type(character)) if typed.len() < 300 => {
                typed.push(character)
            }
            (Overlay::CutoverStart { typed, .. }, Action::Erase) => drop(typed.pop()),
            (Overlay::CutoverStart { typed, .. }, Action::Accept) => {
                if *typed != dialog::cutover_words(status) {
                    return None;
                }
                let command = Command::StartCutover {
                    confirmation: status.destination.address.clone(),
                    writes_stopped: status.cutover.fence == FenceKind::Word,
                };
                self.overlay = Some(Overlay::Cutover);
                return Some(Effect::Send(command));
            }
            (Overlay::Cutover, Action::Abort) => return Some(Effect::Send(Command::AbortCutover)),
            (Overlay::Cutover, Action::HandOver) => return Some(Effect::Send(Command::HandOver)),
            (Overlay::Cutover, Action::Unfence) => {
                self.overlay = Some(Overlay::Confirm(Confirm {
                    title: "unfence",
                    text: vec![
                        format!(
                            "Lets {} take writes again.",
                            status.cutover.closed().collect::<Vec<_>>().join(", ")
                        ),
                        "Nobody copies them: a client that still writes there loses what it writes.".into(),
                    ],
                    command: Command::Unfence,
                    typed: None,
                }));
            }
            (Overlay::Quit, Action::Detach) => return Some(Effect::Leave(Exit::Detached)),
            (Overlay::Quit, Action::Stop) if stopping => return Some(Effect::Leave(Exit::Quit)),
            (Overlay::Quit, Action::Stop) => return self.stop(Command::Stop { forget: false }, status),
            (Overlay::Quit, Action::Forget) => {
                self.overlay = Some(Overlay::Confirm(Confirm {
                    title: "stop and forget",
                    text: vec![
                        "Stops the migration and removes its checkpoint from the destination.".into(),
                        "It can NOT be resumed afterwards: a later start copies everything again.".into(),
                    ],
                    command: Command::Stop { forget: true },
                    typed: Some((status.destination.address.clone(), String::new())),
                }));
            }
            (Overlay::Confirm(Confirm { typed: Some((_, text)), .. }), Action::Type(character)) => {
                text.push(character)
            }
            (Overlay::Confirm(Confirm { typed: Some((_, text)), .. }), Action::Erase) => drop(text.pop()),
            (Overlay::Confirm(confirm), Action::Accept) => {
                if confirm.typed.as_ref().is_some_and(|(expected, text)| expected != text) {
                    return None;
                }
                let command = confirm.command.clone();
                self.overlay = None;
                if matches!(command, Command::Stop { .. }) {
                    return self.stop(command, status);
                }
                self.say("asked the engine; the effect shows in the table".into());
                return Some(Effect::Send(command));
            }
            _ => return self.update_anywhere(action, status),
        }
        None
    }

    /// The answer of the control channel to a command.
    pub fn sent(&mut self, result: Result<(), SendError>) {
        if let Err(error) = result {
            self.pending = None;
            self.leave_at_end = false;
            self.say(error.to_string());
        }
    }

    /// The line above the footer, while it lasts.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_ref().map(|(text, _)| text.as_str())
    }

    /// Age of the snapshot (ms).
    pub fn age_ms(&self, status: &Status) -> u64 {
        self.now_unix_ms.saturating_sub(status.snapshot_unix_ms)
    }

    /// True when no news has come for so long that the numbers must not be trusted.
    pub fn is_stale(&self, status: &Status) -> bool {
        !status.state.is_final() && (self.engine_gone || self.age_ms(status) >= STALE_MS)
    }

    /// True from the wish to stop until the end.
    pub fn is_stopping(&self, status: &Status) -> bool {
        self.leave_at_end || status.state == State::Stopping
    }

    fn zoom(&mut self, by: isize) {
        let window = self.chart_window();
        let at = WINDOWS.iter().position(|seconds| *seconds == window).unwrap_or(0);
        let at = at.saturating_add_signed(by).min(WINDOWS.len() - 1);
        self.window = Some(WINDOWS[at]);
    }

    /// Seconds of history that a chart shows.
    pub fn chart_window(&self) -> u64 {
        use super::layout::Size;
        let suits = if Size::of(self.size.0, self.size.1) == Size::Wide { 1_800 } else { 600 };
        self.window.unwrap_or(suits)
    }

    fn copy(&mut self, text: String) -> Option<Effect> {
        // OSC 52 is often switched off in the terminal: the text is also shown, to be selected by hand.
        // Pasted into a shell it must not press keys.
        let text = format::escape(text, 8_000);
        self.note(EventLevel::Info, format!("copied: {text}"));
        self.say("copied by OSC 52; if your terminal ignores that, the text is in the events".into());
        Some(Effect::Copy(text))
    }

    fn stop(&mut self, command: Command, status: &Status) -> Option<Effect> {
        self.overlay = None;
        self.leave_at_end = true;
        self.expect("STOPPING", status);
        Some(Effect::Send(command))
    }

    fn expect(&mut self, word: &'static str, status: &Status) {
        self.pending = Some(Pending { word, since_unix_ms: self.now_unix_ms, from: status.state });
    }

    /// Shows a line above the footer for some seconds.
    pub fn say(&mut self, text: String) {
        self.notice = Some((text, self.now_unix_ms + NOTICE_MS));
    }

    /// Adds an event of the console's own; the last twenty are kept.
    fn note(&mut self, level: EventLevel, text: String) {
        let id = self.local_events.last().map_or(LOCAL_EVENT_ID, |event| event.id + 1);
        let node = "console".into();
        self.local_events.push(Event { id, unix_ms: self.now_unix_ms, level, node, text, count: 1 });
        if self.local_events.len() > 20 {
            self.local_events.remove(0);
        }
    }
}
