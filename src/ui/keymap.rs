//! One table of keys. Dispatch, footer, help and the README's table all come from it, so they cannot disagree.
//!
//! Single lower-case letters are safe; what costs time or cannot be undone only *opens* a dialog, and nothing
//! dangerous is on Enter, Esc, `q` or Ctrl-C. A key that cannot work now stays in sight and says why. Ctrl-Z is left
//! out on purpose: a suspended process stops acknowledging and the source drops the link.

mod reasons;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::action::Action;
use super::model::Model;
use super::theme::Glyphs;
use crate::status::{State, Status};
use reasons::*;
pub use reasons::{Reason, shows_steps};

/// Where a key counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// Everywhere, whatever lies on top.
    Anywhere,
    /// The panes.
    Screen,
    /// What is read over the panes: errors, log, details, verification, cutover.
    Reading,
    /// While a filter is typed.
    Filter,
    /// The list of keys.
    Help,
    /// The list of errors.
    Errors,
    /// The log.
    Log,
    /// Details of a row.
    Details,
    /// The verification.
    Verification,
    /// The speed limit dialog.
    Throttle,
    /// The question before a cutover.
    CutoverStart,
    /// The steps of a cutover.
    Cutover,
    /// The quit dialog.
    Quit,
    /// A yes-or-no question.
    Confirm,
    /// A question that wants a name typed.
    TypedConfirm,
}

impl Context {
    /// In the order of the help.
    pub const ALL: [Context; 15] = [
        Context::Screen,
        Context::Reading,
        Context::Errors,
        Context::Log,
        Context::Details,
        Context::Verification,
        Context::Filter,
        Context::Throttle,
        Context::CutoverStart,
        Context::Cutover,
        Context::Quit,
        Context::Confirm,
        Context::TypedConfirm,
        Context::Help,
        Context::Anywhere,
    ];

    /// Heading in the help.
    pub fn name(self) -> &'static str {
        match self {
            Context::Anywhere => "anywhere",
            Context::Screen => "main screen",
            Context::Reading => "lists, details, cutover",
            Context::Filter => "while typing a filter",
            Context::Help => "this list",
            Context::Errors => "error list",
            Context::Log => "log",
            Context::Details => "details",
            Context::Verification => "verification",
            Context::Throttle => "speed limit dialog",
            Context::CutoverStart => "question before the cutover",
            Context::Cutover => "cutover",
            Context::Quit => "quit dialog",
            Context::Confirm => "question",
            Context::TypedConfirm => "question that wants a name",
        }
    }

    /// True for what is read and not answered: there the help and the way out are as on the main screen.
    fn is_reading(self) -> bool {
        use Context::{Cutover, Details, Errors, Log, Verification};
        matches!(self, Errors | Log | Details | Verification | Cutover)
    }

    /// True where characters are text.
    pub fn takes_text(self) -> bool {
        matches!(self, Context::Filter | Context::Throttle | Context::TypedConfirm | Context::CutoverStart)
    }
}

/// What a key can do to the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Danger {
    /// Changes only this screen.
    Safe,
    /// Changes the migration and can be taken back: no question.
    Reversible,
    /// Costs time: a dialog with one letter.
    CostsTime,
    /// Cannot be undone, or blocks clients: a dialog that wants the destination's address typed.
    Irreversible,
}

/// One row of the table.
pub struct Binding {
    /// Keys that do it; the first one is shown.
    pub keys: &'static [KeyCode],
    /// True: together with Ctrl.
    pub control: bool,
    /// Where.
    pub context: Context,
    /// What.
    pub action: Action,
    /// One or two words for the footer.
    label: &'static str,
    /// A line for the help and the README.
    pub help: &'static str,
    /// What it can do to the migration.
    pub danger: Danger,
    /// Footer: smaller numbers stay longer as the screen narrows; 0 = only in the help.
    pub footer: u8,
    /// Why it cannot be used now.
    pub disabled: fn(&Model, &Status) -> Option<Reason>,
}

impl Binding {
    /// The key as it is written on the screen.
    pub fn name(&self, glyphs: &Glyphs) -> String {
        match (self.action, self.keys.first()) {
            // One entry for a pair of keys reads better than two.
            (Action::Up, _) => glyphs.up_down.into(),
            (Action::PageUp, _) => "PgUp/PgDn".into(),
            (Action::ZoomIn, _) => "+ -".into(),
            (_, Some(key)) => key_name(*key, self.control),
            (_, None) => String::new(),
        }
    }

    /// Every key of this row, for the help.
    pub fn all_names(&self) -> String {
        let names: Vec<String> = self.keys.iter().map(|key| key_name(*key, self.control)).collect();
        names.join(" ")
    }

    fn counts_in(&self, context: Context) -> bool {
        match self.context {
            Context::Anywhere => true,
            Context::Reading => context == Context::Reading || context.is_reading(),
            own => own == context,
        }
    }

    /// What it can do to the migration now.
    pub fn danger_now(&self, status: &Status) -> Danger {
        // Steps are looked at, nothing is begun.
        if self.action == Action::Cutover && shows_steps(status) { Danger::Safe } else { self.danger }
    }

    /// The footer's word, which may depend on the state.
    pub fn label(&self, model: &Model, status: &Status) -> &'static str {
        match self.action {
            Action::TogglePause if matches!(status.state, State::Paused | State::Pausing) => "resume",
            Action::Quit if status.state.is_final() || model.engine_gone => "leave",
            Action::Stop if model.is_stopping(status) => "leave the screen now",
            Action::Cutover => match (status.state, &status.cutover.reverse) {
                (State::Switched, Some(_)) => "roll back",
                (State::CuttingOver | State::Switched, _) => "cutover steps",
                _ => self.label,
            },
            _ => self.label,
        }
    }

    /// The line of a dialog, which may depend on the state.
    pub fn sentence(&self, model: &Model, status: &Status) -> &'static str {
        match self.action {
            Action::Stop if model.is_stopping(status) => "leave the screen now; stopping goes on",
            _ => self.help,
        }
    }
}

/// The row for a key in a context, if there is one.
pub fn find(context: Context, key: KeyEvent) -> Option<&'static Binding> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    let plain = !key.modifiers.intersects(KeyModifiers::ALT | KeyModifiers::SUPER | KeyModifiers::META);
    BINDINGS.iter().find(|binding| {
        plain && binding.counts_in(context) && binding.control == control && binding.keys.contains(&key.code)
    })
}

/// The key behind Esc, where a terminal gives both as one.
///
/// Esc is the byte that also begins Alt with a key: when the next key is there before Esc was read (a slow link, a quick hand), the two
/// are told as that key with ALT. No row wants ALT, so it always counts as Esc and then the key: what happens must not depend on how fast
/// the bytes come. Arrows and the like have sequences of their own, in which ALT is meant; Alt with Backspace is the habit of those who
/// erase a word, and means nothing here.
pub fn behind_escape(key: KeyEvent) -> Option<KeyEvent> {
    let joined = key.modifiers.contains(KeyModifiers::ALT) && matches!(key.code, Char(_) | Enter | Tab);
    joined.then(|| KeyEvent { modifiers: key.modifiers - KeyModifiers::ALT, ..key })
}

/// True for a key that is a character and nothing else.
pub fn is_plain(key: KeyEvent) -> bool {
    !key.modifiers
        .intersects(KeyModifiers::CONTROL | KeyModifiers::ALT | KeyModifiers::SUPER | KeyModifiers::META)
}

/// The README's table.
pub fn markdown() -> String {
    let mut text = String::from("| key | where | what it does |\n|---|---|---|\n");
    for binding in BINDINGS {
        let keys = binding.all_names().replace(' ', "` `");
        text.push_str(&format!("| `{keys}` | {} | {} |\n", binding.context.name(), binding.help));
    }
    text
}

fn key_name(key: KeyCode, control: bool) -> String {
    let name = match key {
        KeyCode::Char(' ') => "Space".into(),
        KeyCode::Char(character) if control => character.to_uppercase().to_string(),
        KeyCode::Char(character) => character.to_string(),
        KeyCode::PageUp => "PgUp".into(),
        KeyCode::PageDown => "PgDn".into(),
        KeyCode::BackTab => "Shift-Tab".into(),
        other => format!("{other:?}"),
    };
    if control { format!("Ctrl-{name}") } else { name }
}

const fn key(
    keys: &'static [KeyCode],
    context: Context,
    action: Action,
    label: &'static str,
    help: &'static str,
) -> Binding {
    Binding {
        keys,
        control: false,
        context,
        action,
        label,
        help,
        danger: Danger::Safe,
        footer: 0,
        disabled: always,
    }
}

impl Binding {
    const fn control(mut self) -> Binding {
        self.control = true;
        self
    }

    const fn footer(mut self, priority: u8) -> Binding {
        self.footer = priority;
        self
    }

    const fn danger(mut self, danger: Danger) -> Binding {
        self.danger = danger;
        self
    }

    const fn unless(mut self, disabled: fn(&Model, &Status) -> Option<Reason>) -> Binding {
        self.disabled = disabled;
        self
    }
}

use Context::{
    Anywhere, Confirm, Cutover, CutoverStart, Details, Errors, Filter, Help, Log, Quit, Reading, Screen,
    Throttle, TypedConfirm, Verification,
};
use KeyCode::{BackTab, Backspace, Char, Down, End, Enter, Esc, Home, PageDown, PageUp, Tab, Up};

/// Every key.
#[rustfmt::skip]
pub static BINDINGS: &[Binding] = &[
    key(&[Char('p')], Screen, Action::TogglePause, "pause", "pause: stop applying, go on receiving into the spool; again: resume")
        .footer(2).danger(Danger::Reversible).unless(pausable),
    key(&[Char('c')], Screen, Action::Cutover, "cutover", "cutover: move the clients to the destination, step by step")
        .footer(3).danger(Danger::Irreversible).unless(cuttable),
    key(&[Char('v')], Screen, Action::OpenVerify, "verify", "compare source and destination, and show what differs").footer(5),
    key(&[Char('b')], Screen, Action::OpenThrottle, "speed limit", "limit the speed towards the destination, or lift the limit")
        .footer(9).danger(Danger::Reversible).unless(running),
    key(&[Char('R')], Screen, Action::RestartSource, "restart link", "drop the selected source's link and open it again (asks)")
        .footer(15).danger(Danger::CostsTime).unless(restartable),
    key(&[Tab], Screen, Action::NextPane, "pane", "move the focus to the next pane").footer(6),
    key(&[BackTab], Screen, Action::PreviousPane, "back", "move the focus to the pane before"),
    key(&[Up, Char('k')], Screen, Action::Up, "select", "select the row above; in the events: newer").footer(7),
    key(&[Down, Char('j')], Screen, Action::Down, "select", "select the row below; in the events: older"),
    key(&[PageUp], Screen, Action::PageUp, "", "ten rows up"),
    key(&[PageDown], Screen, Action::PageDown, "", "ten rows down"),
    key(&[Home, Char('g')], Screen, Action::First, "", "first row; in the events: follow the newest"),
    key(&[End, Char('G')], Screen, Action::Last, "", "last row"),
    key(&[Enter], Screen, Action::OpenDetails, "details", "all about the selected row").footer(10).unless(has_row),
    key(&[Char('/')], Screen, Action::Filter, "filter", "show only rows of this pane that hold a text (address, phase, state, event)").footer(8),
    key(&[Char('s')], Screen, Action::SortNext, "sort", "sort the nodes by the next column").footer(11),
    key(&[Char('S')], Screen, Action::SortReverse, "reverse", "sort the other way round"),
    key(&[Char('e')], Screen, Action::OpenErrors, "errors", "list the errors and mark them as read").footer(4),
    key(&[Char('y')], Screen, Action::Copy, "copy row", "copy the selected row to the clipboard (OSC 52) and into the events").footer(13).unless(has_row),
    key(&[Char('l')], Screen, Action::OpenLog, "log", "show the program's log and where its file is").footer(12),
    key(&[Char('t')], Screen, Action::NextTheme, "theme", "next theme: 16 colours, monochrome, true colour").footer(14),
    key(&[Char('+')], Screen, Action::ZoomIn, "window", "charts: a shorter window").footer(16),
    key(&[Char('-')], Screen, Action::ZoomOut, "", "charts: a longer window"),
    key(&[Esc], Screen, Action::Back, "", "clear the filter; in the events: follow the newest"),
    key(&[Char('?')], Screen, Action::OpenHelp, "help", "list every key").footer(1),
    key(&[Char('q')], Screen, Action::Quit, "quit", "leave: asks whether to detach or to stop").footer(1).unless(leavable),

    key(&[Char('?')], Reading, Action::OpenHelp, "help", "list every key; Esc comes back here"),
    key(&[Char('q')], Reading, Action::Quit, "quit", "leave: asks whether to detach or to stop").unless(leavable),

    key(&[Char('a')], Errors, Action::Acknowledge, "mark all as read", "mark all errors as read: unread errors block the cutover")
        .footer(1).danger(Danger::Reversible).unless(has_unread),
    key(&[Up, Char('k')], Errors, Action::Up, "select", "the newer error").footer(2),
    key(&[Down, Char('j')], Errors, Action::Down, "", "the older error"),
    key(&[PageUp], Errors, Action::PageUp, "", "ten errors up"),
    key(&[PageDown], Errors, Action::PageDown, "", "ten errors down"),
    key(&[Char('y')], Errors, Action::Copy, "copy", "copy the selected error").footer(3).unless(has_error),
    key(&[Esc, Char('e')], Errors, Action::Back, "back", "back to the screen").footer(1),

    key(&[PageUp, Up, Char('k')], Log, Action::PageUp, "page", "a page of older lines").footer(3),
    key(&[PageDown, Down, Char('j')], Log, Action::PageDown, "", "a page of newer lines"),
    key(&[End, Char('G')], Log, Action::Last, "follow", "follow the newest line").footer(4),
    key(&[Esc, Char('l')], Log, Action::Back, "back", "back to the screen").footer(1),

    key(&[Up, Char('k')], Details, Action::Up, "scroll", "line up").footer(2),
    key(&[Down, Char('j')], Details, Action::Down, "", "line down"),
    key(&[Esc, Enter], Details, Action::Back, "back", "back to the screen").footer(1),

    key(&[Char('v')], Verification, Action::Verify, "compare", "compare source and destination; only reads")
        .footer(1).danger(Danger::Reversible).unless(verifiable),
    key(&[Char('x')], Verification, Action::StopVerify, "end it", "end the comparison early")
        .footer(2).danger(Danger::Reversible).unless(not_verifying),
    key(&[Up, Char('k')], Verification, Action::Up, "scroll", "line up").footer(3),
    key(&[Down, Char('j')], Verification, Action::Down, "", "line down"),
    key(&[PageUp], Verification, Action::PageUp, "", "ten lines up"),
    key(&[PageDown], Verification, Action::PageDown, "", "ten lines down"),
    key(&[Esc], Verification, Action::Back, "back", "back to the screen; a comparison goes on").footer(1),

    key(&[Enter], Filter, Action::Accept, "keep the filter", "keep the filter").footer(1),
    key(&[Backspace], Filter, Action::Erase, "", "remove the last character"),
    key(&[Esc], Filter, Action::Back, "clear", "clear the filter").footer(1),

    key(&[Enter], Throttle, Action::Accept, "set the limit", "set this limit; empty fields mean no limit")
        .footer(1).danger(Danger::Reversible).unless(running),
    key(&[Tab, BackTab], Throttle, Action::NextField, "other field", "between MB/s and ops/s").footer(2),
    key(&[Up], Throttle, Action::Up, "faster, slower", "the next higher round number; above the highest: no limit").footer(3),
    key(&[Down], Throttle, Action::Down, "", "the next lower round number"),
    key(&[Backspace], Throttle, Action::Erase, "", "remove the last digit"),
    key(&[Esc], Throttle, Action::Back, "leave it as it is", "change nothing").footer(1),

    key(&[Enter], CutoverStart, Action::Accept, "begin the cutover", "begin: writers on the source are blocked from here on")
        .footer(1).danger(Danger::Irreversible).unless(startable),
    key(&[Backspace], CutoverStart, Action::Erase, "", "remove the last character"),
    key(&[Esc], CutoverStart, Action::Back, "go back", "go back; nothing has been done").footer(1),

    key(&[Char('a')], Cutover, Action::Abort, "ABORT (unfences)", "abort: let writers through again and go on streaming; free until the hand-over")
        .footer(1).danger(Danger::Reversible).unless(abortable),
    key(&[Char('h')], Cutover, Action::HandOver, "hand over", "hand over, with hand_over = \"ask\"; then move the clients")
        .footer(2).danger(Danger::Reversible).unless(waits_for_go),
    key(&[Char('u')], Cutover, Action::Unfence, "unfence", "let the old source take writes again (asks)")
        .footer(3).danger(Danger::CostsTime).unless(refusing),
    key(&[Esc], Cutover, Action::Back, "screen", "back to the screen; the cutover goes on").footer(1),

    key(&[Char('d')], Quit, Action::Detach, "detach", "detach: close the screen, the migration goes on").footer(1),
    key(&[Char('s')], Quit, Action::Stop, "stop", "stop in order and quit")
        .footer(1).danger(Danger::CostsTime).unless(stoppable),
    key(&[Char('F')], Quit, Action::Forget, "stop and forget", "stop for good, remove the checkpoint: no way to resume (asks)")
        .footer(3).danger(Danger::Irreversible).unless(running),
    key(&[Esc, Char('n')], Quit, Action::Back, "go back", "go back to the screen").footer(1),

    key(&[Char('y')], Confirm, Action::Accept, "yes", "yes, do it").footer(1).danger(Danger::CostsTime).unless(running),
    key(&[Esc, Char('n')], Confirm, Action::Back, "no, go back", "no, go back").footer(1),

    key(&[Enter], TypedConfirm, Action::Accept, "do it", "do it, once the address is typed as shown")
        .footer(1).danger(Danger::Irreversible).unless(typed_right),
    key(&[Backspace], TypedConfirm, Action::Erase, "", "remove the last character"),
    key(&[Esc], TypedConfirm, Action::Back, "no, go back", "no, go back").footer(1),

    key(&[Up, Char('k')], Help, Action::Up, "scroll", "line up").footer(2),
    key(&[Down, Char('j')], Help, Action::Down, "", "line down"),
    key(&[PageUp], Help, Action::PageUp, "page", "page up").footer(3),
    key(&[PageDown], Help, Action::PageDown, "", "page down"),
    key(&[Char('/')], Help, Action::Filter, "filter", "show only keys whose line holds a text").footer(2),
    key(&[Esc, Char('?')], Help, Action::Back, "back", "back to the screen").footer(1),

    key(&[Char('c')], Anywhere, Action::Quit, "quit", "the same as q: never stops anything without asking").control().unless(leavable),
    key(&[Char('l')], Anywhere, Action::Redraw, "redraw", "draw the whole screen anew").control(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_means_two_things_in_one_context() {
        for context in Context::ALL {
            let mut seen = Vec::new();
            for binding in BINDINGS.iter().filter(|binding| binding.counts_in(context)) {
                for key in binding.keys {
                    assert!(!seen.contains(&(*key, binding.control)), "{key:?} twice in {context:?}");
                    seen.push((*key, binding.control));
                }
            }
        }
    }

    #[test]
    fn nothing_dangerous_is_on_a_key_that_is_pressed_by_habit() {
        let habit = [KeyCode::Enter, KeyCode::Esc, KeyCode::Char('q'), KeyCode::Char(' ')];
        for binding in BINDINGS.iter().filter(|binding| binding.danger > Danger::Reversible) {
            // In the dialogs that want the name typed, Enter ends the typing.
            let typed = matches!(binding.context, Context::TypedConfirm | Context::CutoverStart);
            assert!(typed || !binding.keys.iter().any(|key| habit.contains(key)), "{}", binding.help);
            assert!(!binding.control, "{}", binding.help);
        }
    }

    #[test]
    fn every_dialog_can_be_left_by_escape_and_every_context_has_keys_in_the_footer() {
        let shared = [Context::Anywhere, Context::Reading];
        for context in Context::ALL.into_iter().filter(|context| !shared.contains(context)) {
            let back = find(context, KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE));
            assert_eq!(back.map(|binding| binding.action), Some(Action::Back), "{context:?}");
            let in_footer =
                BINDINGS.iter().filter(|binding| binding.context == context && binding.footer > 0);
            assert!(in_footer.count() > 0, "{context:?}");
        }
    }

    #[test]
    fn the_suspend_key_is_left_out() {
        let suspend = KeyEvent::new(KeyCode::Char('z'), KeyModifiers::CONTROL);
        assert!(Context::ALL.into_iter().all(|context| find(context, suspend).is_none()));
    }

    #[test]
    fn the_readme_table_holds_every_row() {
        let table = markdown();
        assert_eq!(table.lines().count(), BINDINGS.len() + 2);
        assert!(table.contains("| `Ctrl-C` | anywhere |"), "{table}");
    }
}
