//! The console: a screen and keys over one [`Handle`], synchronous on the thread that calls [`run`].
//!
//! ```text
//!  keys --> keymap --> Action --> model.update --> Effect --> Handle::send, clipboard, leave
//!  watch --> Arc<Status> ------------\
//!                      model ---------> view::draw --> terminal
//! ```
//!
//! The engine runs on other threads and never waits for this one. Losing the terminal ends only the console: [`run`]
//! returns [`Exit::TerminalLost`] and the migration goes on.
//!
//! The odd one here is the waiting: crossterm 0.29 spins for ever once its terminal has hung up (a read of 0 bytes or
//! EIO is retried at once), so the loop asks the kernel itself and enters crossterm only while the terminal is alive.
//! `Terminal::clear` is never called: it asks the terminal for the cursor and fails where nobody answers.
//!
//! A panic in here ends only the console as well: it is written to the log, the terminal is given back, and [`run`] returns
//! [`Exit::Broken`].
//!
//! A console that is stopped from outside (SIGSTOP) loses the terminal to the shell, and is in the background when it goes on.
//! Whoever reads there, or sets the terminal's modes, is stopped by the kernel: the console does neither, and waits.

pub mod action;
pub mod dialog;
pub mod keymap;
pub mod layout;
pub mod model;
#[cfg(test)]
mod pty_tests;
pub mod rows;
pub mod theme;
pub mod view;

use std::io::{self, Stdout};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::clipboard::CopyToClipboard;
use ratatui::crossterm::event::{
    self, DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture, Event,
    KeyCode, KeyEventKind, MouseButton, MouseEventKind,
};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};
use ratatui::layout::Rect;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::LocalModes;

use crate::control::{FurtherRuns, Handle};
use crate::status::Status;
use action::Action;
use model::{Effect, Model};
use theme::{Look, Palette};

/// How the console is to look and what it may do.
#[derive(Debug, Clone, Default)]
pub struct UiOptions {
    /// Plain ASCII instead of box drawing; `None` = by locale and `TERM`.
    pub ascii: Option<bool>,
    /// Palette; `None` = monochrome under `NO_COLOR`, else 16 colours.
    pub palette: Option<Palette>,
    /// Offers nothing that changes the migration.
    pub read_only: bool,
    /// Takes the mouse: scroll and row click. Off by default, for it steals the terminal's own selection.
    pub mouse: bool,
    /// The engine runs in another process ([`attach`]): leaving costs nothing, and the log pane has no lines.
    pub attached: bool,
    /// Wishes from outside the terminal.
    pub outside: Outside,
}

/// What may reach the console from elsewhere, signals above all. Cheap to clone; the app keeps one.
#[derive(Debug, Clone, Default)]
pub struct Outside(Arc<Wish>);

#[derive(Debug, Default)]
struct Wish {
    /// 0 none, 1 leave at the end, 2 leave at once.
    leave: AtomicU8,
    /// True while the terminal is the console's.
    open: AtomicBool,
}

impl Outside {
    /// Leave at once, because the terminal is gone (SIGHUP) or the program ends: [`Exit::TerminalLost`].
    pub fn leave_at_once(&self) {
        self.0.leave.store(2, Relaxed);
    }

    /// The engine was told to stop (SIGTERM): leave as soon as it has ended, without a key, [`Exit::Quit`].
    pub fn leave_at_end(&self) {
        // Never takes back a hang-up.
        let _ = self.0.leave.compare_exchange(0, 1, Relaxed, Relaxed);
    }

    /// True until the terminal is given back.
    pub fn is_open(&self) -> bool {
        self.0.open.load(Relaxed)
    }
}

/// How the console was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The operator asked the engine to stop; it may still be finishing its batches.
    Quit,
    /// The operator closed the screen; the migration goes on.
    Detached,
    /// The terminal is gone (hang-up, write error); the migration goes on. From here on `println!` and `eprintln!`
    /// panic, for nobody reads them: the log file is the only place left.
    TerminalLost,
    /// The console itself went wrong, which is on stderr and in the log; the migration goes on.
    Broken,
    /// The engine ended by itself, and the operator has seen it; or there is nothing left to see.
    EngineEnded,
}

/// At most ten frames a second: enough for the eye, and kind to a slow link.
const FRAME: Duration = Duration::from_millis(100);
/// The clock moves once a second even when nothing else does.
const CLOCK: Duration = Duration::from_secs(1);
/// How often a new snapshot is looked for while no key is pressed.
const LOOK_FOR_NEWS: Duration = Duration::from_millis(50);

/// Shows the console until the operator leaves, the terminal is lost, or the engine has ended and a key was pressed. When
/// an RDB file was the source and is loaded, no key is needed.
///
/// Standard input and output must be terminals. The error is one of setting them up; later trouble with them is
/// [`Exit::TerminalLost`].
pub fn run(handle: Handle, options: UiOptions) -> io::Result<Exit> {
    run_over(handle, None, options)
}

/// The same over a run in another process (`attach`), and over those in `further`, which come after it.
pub fn attach(handle: Handle, further: FurtherRuns, options: UiOptions) -> io::Result<Exit> {
    run_over(handle, Some(further), UiOptions { attached: true, ..options })
}

fn run_over(handle: Handle, further: Option<FurtherRuns>, options: UiOptions) -> io::Result<Exit> {
    let look = Look::choose(options.palette, options.ascii, |name| std::env::var(name).ok());
    let mut model = Model::new(look);
    model.read_only = options.read_only;
    model.attached = options.attached;
    let guard = TerminalGuard::enter(options.mouse)?;
    let open = &options.outside.0.open;
    open.store(true, Relaxed);
    let exit = over(guard, |guard| watch(guard, handle, further, model, &options.outside));
    open.store(false, Relaxed);
    Ok(exit)
}

/// Runs the console over the terminal and gives it back, however it ends.
fn over(mut guard: TerminalGuard, console: impl FnOnce(&mut TerminalGuard) -> io::Result<Exit>) -> Exit {
    // Nothing of the console is used afterwards, and what it shares with the engine is a channel.
    match catch_unwind(AssertUnwindSafe(|| console(&mut guard))) {
        Ok(exit) => exit.unwrap_or(Exit::TerminalLost),
        Err(_) => Exit::Broken,
    }
}

type Screen = Terminal<CrosstermBackend<Stdout>>;

/// The loop. Every error in it comes from the terminal.
fn watch(
    guard: &mut TerminalGuard,
    mut handle: Handle,
    mut further: Option<FurtherRuns>,
    mut model: Model,
    outside: &Outside,
) -> io::Result<Exit> {
    let mut status = handle.status();
    let mut is_away = false;
    let mut drawn: Option<Instant> = None;
    let mut changed = true;
    loop {
        match outside.0.leave.load(Relaxed) {
            0 => {}
            1 => model.leave_at_end = true,
            _ => return Ok(Exit::TerminalLost),
        }
        if handle.take_changed() {
            status = handle.status();
            changed = true;
        }
        if !model.engine_gone && handle.is_closed() {
            // The last snapshot may have come after the look above.
            status = handle.status();
            model.engine_gone = true;
            changed = true;
        }
        if model.engine_gone
            && let Some(next) = further.as_mut().and_then(|further| further.try_recv().ok())
        {
            handle = next;
            let before = std::mem::replace(&mut status, handle.status());
            model.found_run(&before, &status);
            changed = true;
        }
        if let Some(Effect::Leave(exit)) = model.tick(unix_ms(), &status) {
            return Ok(exit);
        }
        if !in_foreground() {
            is_away = true;
            if !wait_for(PollFlags::empty(), LOOK_FOR_NEWS)? {
                return Ok(Exit::TerminalLost);
            }
            continue;
        }
        if std::mem::take(&mut is_away) {
            guard.take_again()?;
            drawn = None;
        }
        let terminal = &mut guard.terminal;
        let since = drawn.map_or(CLOCK, |drawn| drawn.elapsed());
        if since >= CLOCK || (changed && since >= FRAME) {
            draw(terminal, &mut model, &status)?;
            drawn = Some(Instant::now());
            changed = false;
        }
        let wait = if changed { FRAME.saturating_sub(since) } else { LOOK_FOR_NEWS };
        if !wait_for(PollFlags::IN, wait)? {
            return Ok(Exit::TerminalLost);
        }
        // The wait may have been ended by what took the terminal away.
        while in_foreground() && event::poll(Duration::ZERO)? {
            changed = true;
            match take_event(event::read()?, &mut model, &status) {
                Some(Effect::Send(command)) => model.sent(handle.send(command)),
                Some(Effect::Copy(text)) => execute!(io::stdout(), CopyToClipboard::to_clipboard_from(text))?,
                Some(Effect::Redraw) => {
                    let size = terminal.size()?;
                    terminal.resize(Rect::new(0, 0, size.width, size.height))?;
                }
                Some(Effect::Leave(exit)) => return Ok(exit),
                None => {}
            }
        }
    }
}

fn draw(terminal: &mut Screen, model: &mut Model, status: &Status) -> io::Result<()> {
    // Lines wait in tui-logger's small hot buffer until they are moved to the ring that its widget shows.
    tui_logger::move_events();
    let size = terminal.size()?;
    model.size = (size.width, size.height);
    terminal.draw(|frame| view::draw(frame.buffer_mut(), model, status))?;
    Ok(())
}

/// Waits for what is wanted of the terminal, for at most `wait`; false when it has hung up.
fn wait_for(wanted: PollFlags, wait: Duration) -> io::Result<bool> {
    let stdin = io::stdin();
    let mut inputs = [PollFd::new(&stdin, wanted)];
    let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
    match rustix::event::poll(&mut inputs, Some(&wait)) {
        // A signal, most likely SIGWINCH: crossterm reports it as an event.
        Err(rustix::io::Errno::INTR) => Ok(true),
        Err(error) => Err(error.into()),
        Ok(_) => {
            let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
            Ok(!inputs[0].revents().intersects(gone))
        }
    }
}

/// False while the terminal belongs to another job, mostly the shell. What is no terminal of ours belongs to nobody else.
pub fn in_foreground() -> bool {
    rustix::termios::tcgetpgrp(io::stdin()).map_or(true, |group| group == rustix::process::getpgrp())
}

/// True where a job in the background is stopped when it writes (`stty tostop`).
fn stops_who_writes() -> bool {
    rustix::termios::tcgetattr(io::stdout()).is_ok_and(|modes| modes.local_modes.contains(LocalModes::TOSTOP))
}

fn take_event(event: Event, model: &mut Model, status: &Status) -> Option<Effect> {
    match event {
        // Windows and kitty's protocol also send repeats and releases.
        Event::Key(key) if key.kind == KeyEventKind::Press => match keymap::behind_escape(key) {
            // Esc changes only the model.
            Some(next) => model.press(KeyCode::Esc.into(), status).or_else(|| model.press(next, status)),
            None => model.press(key, status),
        },
        // Pasted text is text: outside of a field it must not press keys.
        Event::Paste(text) if model.context().takes_text() => {
            for character in text.chars().filter(|character| !character.is_control()) {
                model.update(Action::Type(character), status);
            }
            None
        }
        Event::Mouse(mouse) => match mouse.kind {
            MouseEventKind::ScrollUp => model.update(Action::Up, status),
            MouseEventKind::ScrollDown => model.update(Action::Down, status),
            MouseEventKind::Down(MouseButton::Left) if model.overlay.is_none() => {
                if let Some((pane, address)) = view::row_at(model, status, mouse.column, mouse.row) {
                    model.select(pane, &address);
                }
                None
            }
            _ => None,
        },
        _ => None,
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

type PanicHook = Box<dyn Fn(&std::panic::PanicHookInfo<'_>) + Send + Sync>;

/// Owns the terminal's state: whatever way the console ends, dropping this gives the terminal back.
struct TerminalGuard {
    /// Never dropped: ratatui's drop shows the cursor and, if that fails, panics in `eprintln!`, because after a
    /// hang-up stderr is gone as well. [`restore`] shows the cursor instead.
    terminal: ManuallyDrop<Screen>,
    /// The hook that was there before.
    previous_hook: Arc<PanicHook>,
    /// True once a panic has given the terminal back: what it has written there must stay.
    is_back: Arc<AtomicBool>,
    mouse: bool,
}

impl TerminalGuard {
    fn enter(mouse: bool) -> io::Result<TerminalGuard> {
        let terminal = ManuallyDrop::new(Terminal::new(CrosstermBackend::new(io::stdout()))?);
        let previous_hook: Arc<PanicHook> = Arc::new(std::panic::take_hook());
        let ui_thread = std::thread::current().id();
        let hook = Arc::clone(&previous_hook);
        let is_back = Arc::new(AtomicBool::new(false));
        let given_back = Arc::clone(&is_back);
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            // A panic of another thread is not the end of the console: writing it to stderr would only smear the screen. It
            // belongs into the log; the engine turns it into a failed node.
            if thread.id() == ui_thread {
                restore();
                given_back.store(true, Relaxed);
                hook(panic);
            }
            let name = thread.name().unwrap_or("unnamed");
            tracing::error!(target: "shakedeck::panic", "thread '{name}' panicked: {panic}");
        }));
        let guard = TerminalGuard { terminal, previous_hook, is_back, mouse };
        guard.set_modes()?;
        Ok(guard)
    }

    fn set_modes(&self) -> io::Result<()> {
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste)?;
        if self.mouse {
            execute!(io::stdout(), EnableMouseCapture)?;
        }
        Ok(())
    }

    /// The shell has given the terminal back.
    fn take_again(&mut self) -> io::Result<()> {
        // crossterm takes its modes for set, which the shell has changed.
        disable_raw_mode()?;
        self.set_modes()?;
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::new(0, 0, size.width, size.height))
    }
}

impl Drop for TerminalGuard {
    fn drop(&mut self) {
        if !self.is_back.load(Relaxed) {
            restore();
        }
        // set_hook panics on a panicking thread, which would abort the process.
        if !std::thread::panicking() {
            let previous = Arc::clone(&self.previous_hook);
            std::panic::set_hook(Box::new(move |panic| previous(panic)));
        }
    }
}

/// Gives the terminal back. Errors are of no use here: the terminal may be gone. In the background the modes are the shell's.
fn restore() {
    let in_foreground = in_foreground();
    if in_foreground || !stops_who_writes() {
        let _ = execute!(
            io::stdout(),
            DisableMouseCapture,
            DisableBracketedPaste,
            LeaveAlternateScreen,
            cursor::Show
        );
    }
    if in_foreground {
        let _ = disable_raw_mode();
    }
}
