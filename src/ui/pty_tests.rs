//! The console on a real terminal: each test starts this test binary again under a pseudo-terminal, runs the console
//! in it over a status that moves, and reads the screen with a terminal emulator.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

use std::io::{Read, Write};
use std::num::NonZero;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

use super::dialog::Overlay;
use super::*;
use crate::control::channel;
use crate::status::{Event as StatusEvent, EventLevel};

#[path = "../../tests/support/statuses.rs"]
#[allow(dead_code, reason = "the screen tests use the rest")]
mod statuses;

/// Names the part that a child plays; unset in the parent.
const PART: &str = "SHAKEDECK_CONSOLE_CHILD";
/// A file for the child's last word, for when its terminal is gone.
const LAST_WORD: &str = "SHAKEDECK_CONSOLE_LAST_WORD";

/// Not a test by itself: what the child runs.
#[test]
fn child() {
    let Ok(part) = std::env::var(PART) else { return };
    if part == "panic" {
        let _guard = TerminalGuard::enter(false).unwrap();
        panic!("the console itself went wrong");
    }
    if part == "console-panic" {
        let log = std::fs::File::create(std::env::var(LAST_WORD).unwrap()).unwrap();
        tracing_subscriber::fmt().with_ansi(false).with_writer(Mutex::new(log)).init();
        let exit = over(TerminalGuard::enter(false).unwrap(), |_| panic!("the console itself went wrong"));
        println!("left: {exit:?}");
        return;
    }
    let mut status = statuses::applying();
    let (handle, engine) = channel(status.clone());
    let outside = Outside::default();
    if part == "stopped" {
        outside.leave_at_end();
    }
    std::thread::spawn(move || {
        for round in 0u64.. {
            if part == "stopped" && round == 10 {
                let own = std::process::id().to_string();
                std::process::Command::new("kill").args(["-STOP", &own]).status().unwrap();
            }
            // Where it goes on, the shell has the terminal.
            if part == "stopped" && round == 20 {
                return;
            }
            status.snapshot_unix_ms = unix_ms();
            if round == 4 && part == "engine-panic" {
                let failed = std::thread::spawn(|| panic!("a task of the engine went wrong")).join();
                assert!(failed.is_err());
                status.events.push(StatusEvent {
                    id: 1_000,
                    unix_ms: unix_ms(),
                    level: EventLevel::Error,
                    node: String::new(),
                    text: "AFTER THE PANIC".into(),
                    count: 1,
                });
            }
            if engine.status.send(Arc::new(status.clone())).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let exit = run(handle, UiOptions { ascii: Some(false), outside, ..UiOptions::default() }).unwrap();
    if let Ok(file) = std::env::var(LAST_WORD) {
        std::fs::write(file, format!("{exit:?}")).unwrap();
    }
    println!("left: {exit:?}");
}

/// A terminal with the child in it.
struct Pty {
    /// `None` after the hang-up.
    master: Option<Box<dyn MasterPty + Send>>,
    keyboard: Box<dyn Write + Send>,
    screen: Arc<Mutex<vt100::Parser>>,
    written: Arc<Mutex<Vec<u8>>>,
    stop_reading: Arc<AtomicBool>,
    child: Box<dyn Child + Send + Sync>,
}

impl Pty {
    fn start(part: &str, environment: &[(&str, &str)]) -> Pty {
        // A shell that ignores SIGHUP in front, as the program itself does.
        let script = "trap '' HUP; exec \"$0\" --exact ui::pty_tests::child --nocapture";
        Pty::start_script(script, part, environment)
    }

    /// The same by a script of the shell; `$0` is this test binary.
    fn start_script(script: &str, part: &str, environment: &[(&str, &str)]) -> Pty {
        let size = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new("sh");
        command.args(["-c", script]);
        command.arg(std::env::current_exe().unwrap());
        command.env(PART, part);
        command.env("TERM", "xterm-256color");
        command.env_remove("NO_COLOR");
        for (name, value) in environment {
            command.env(name, value);
        }
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let screen = Arc::new(Mutex::new(vt100::Parser::new(nonzero(24), nonzero(80), 0)));
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut output = pair.master.try_clone_reader().unwrap();
        let stop_reading = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stop_reading);
        let (reading_screen, reading_written) = (Arc::clone(&screen), Arc::clone(&written));
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                reading_screen.lock().unwrap().process(&buffer[..length]);
                reading_written.lock().unwrap().extend_from_slice(&buffer[..length]);
                if stop.load(Relaxed) {
                    return;
                }
            }
        });
        let keyboard = pair.master.take_writer().unwrap();
        Pty { master: Some(pair.master), keyboard, screen, written, stop_reading, child }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    fn resize(&self, cols: u16, rows: u16) {
        self.screen.lock().unwrap().screen_mut().set_size(nonzero(rows), nonzero(cols));
        self.master
            .as_ref()
            .unwrap()
            .resize(PtySize { rows, cols, pixel_width: 0, pixel_height: 0 })
            .unwrap();
    }

    /// Closes every handle of the master's side: the reading thread gives up its own at the next output.
    fn hang_up(&mut self) {
        self.stop_reading.store(true, Relaxed);
        self.keyboard = Box::new(std::io::sink());
        self.master = None;
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        self.wait_until(text, || self.screen.lock().unwrap().screen().contents().contains(text));
    }

    #[track_caller]
    fn wait_until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            let shown = || self.screen.lock().unwrap().screen().contents();
            assert!(Instant::now() < deadline, "'{what}' did not come in 20 s; the screen:\n{}", shown());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn written(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn wait_for_end(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the console did not end in 20 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nonzero(value: u16) -> NonZero<u16> {
    NonZero::new(value).unwrap()
}

const LEAVE_SCREEN: &str = "\x1b[?1049l";

#[test]
fn the_console_starts_resizes_and_gives_the_terminal_back() {
    let mut pty = Pty::start("plain", &[]);
    pty.wait_for("NOT READY TO CUT OVER");
    pty.type_keys("?");
    pty.wait_for("main screen");
    // Ctrl-Z must not suspend, Ctrl-L must not ask the terminal anything.
    pty.type_keys("\x1a\x0c\x1b");
    pty.wait_for("source nodes (3)");
    pty.resize(20, 5);
    pty.wait_for("too small");
    pty.resize(300, 100);
    pty.wait_for("details 10.0.1.13:6379");
    pty.resize(80, 24);
    pty.wait_for("writers (3)");
    pty.type_keys("q");
    pty.wait_for("The migration runs in this process");
    pty.type_keys("d");
    pty.wait_for("left: Detached");
    pty.wait_for_end();
    let written = pty.written();
    assert!(!written.contains("\x1b[6n"), "the cursor was asked for");
    let (before, after) = written.split_once(LEAVE_SCREEN).unwrap();
    assert!(before.contains("\x1b[?1049h") && after.contains("left: Detached"), "{after:?}");
}

#[test]
fn without_colour_the_selected_row_is_still_seen() {
    let pty = Pty::start("plain", &[("NO_COLOR", "1")]);
    pty.wait_for("NOT READY TO CUT OVER");
    let screen = pty.screen.lock().unwrap();
    let row =
        (0..24).find(|row| screen.screen().cell(*row, 0).is_some_and(|cell| cell.contents() == ">")).unwrap();
    for column in 0..80 {
        let cell = screen.screen().cell(row, column).unwrap();
        assert!(cell.inverse(), "column {column}");
        assert_eq!(cell.fgcolor(), vt100::Color::Default, "column {column}");
    }
}

#[test]
fn a_terminal_that_hangs_up_ends_only_the_console() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("last-word");
    let mut pty = Pty::start("plain", &[(LAST_WORD, file.to_str().unwrap())]);
    pty.wait_for("NOT READY TO CUT OVER");
    pty.hang_up();
    pty.wait_for_end();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "TerminalLost");
}

/// Stopped by SIGSTOP the terminal is the shell's; a job in the background that reads it or sets its modes would be stopped again.
#[test]
fn a_console_that_lost_the_terminal_to_the_shell_ends_all_the_same() {
    let script = "set -m; \"$0\" --exact ui::pty_tests::child --nocapture; echo SHELL HAS IT; \
                  bg %1; wait %1; echo \"over: $?\"; read line";
    let mut pty = Pty::start_script(script, "stopped", &[]);
    pty.wait_until("the shell", || pty.written().contains("SHELL HAS IT"));
    // A key for the shell is none for the console.
    pty.type_keys("q");
    pty.wait_until("the end", || pty.written().contains("over: 0"));
    assert!(pty.written().contains("left: Quit"), "{}", pty.written());
    pty.type_keys("\n");
    pty.wait_for_end();
}

#[test]
fn a_panic_of_another_thread_does_not_touch_the_screen() {
    let mut pty = Pty::start("engine-panic", &[]);
    pty.wait_for("AFTER THE PANIC");
    assert!(!pty.written().contains(LEAVE_SCREEN));
    assert!(!pty.written().contains("went wrong"), "{}", pty.written());
    pty.type_keys("qd");
    pty.wait_for("left: Detached");
    pty.wait_for_end();
}

#[test]
fn a_panic_of_the_console_gives_the_terminal_back_before_it_speaks() {
    let mut pty = Pty::start("panic", &[]);
    pty.wait_for("the console itself went wrong");
    pty.wait_for_end();
    let written = pty.written();
    let (_, after) = written.split_once(LEAVE_SCREEN).unwrap();
    assert!(after.contains("the console itself went wrong"), "{after:?}");
}

#[test]
fn a_panic_of_the_console_is_logged_and_ends_only_the_console() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut pty = Pty::start("console-panic", &[(LAST_WORD, log.to_str().unwrap())]);
    pty.wait_for("left: Broken");
    pty.wait_for_end();
    let written = pty.written();
    // Left once: a terminal that leaves twice puts the cursor back over the words.
    assert_eq!(written.matches(LEAVE_SCREEN).count(), 1, "{written:?}");
    let (_, after) = written.split_once(LEAVE_SCREEN).unwrap();
    assert!(after.contains("the console itself went wrong"), "{after:?}");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("ERROR shakedeck::panic") && log.contains("the console itself went wrong"), "{log}");
}

#[test]
fn a_key_that_comes_together_with_escape_is_not_lost() {
    let mut pty = Pty::start("plain", &[]);
    pty.wait_for("NOT READY TO CUT OVER");
    pty.type_keys("?");
    pty.wait_for("main screen");
    pty.type_keys("\x1bq");
    pty.wait_for("The migration runs in this process");
    pty.type_keys("d");
    pty.wait_for("left: Detached");
    pty.wait_for_end();
}

#[test]
fn a_key_behind_escape_means_what_it_means_once_the_dialog_is_left() {
    use ratatui::crossterm::event::{KeyEvent, KeyModifiers};
    let status = statuses::applying();
    let alt = |code| Event::Key(KeyEvent::new(code, KeyModifiers::ALT));
    let model = || Model::new(Look { palette: Palette::Ansi16, glyphs: &theme::ASCII });
    // The keys that would answer the questions answer none.
    for (open, keys) in [(Action::Quit, "dsF"), (Action::RestartSource, "y"), (Action::Cutover, "a")] {
        for code in keys.chars().map(KeyCode::Char).chain([KeyCode::Enter]) {
            let mut model = model();
            model.update(open, &status);
            assert!(model.overlay.is_some(), "{open:?}");
            let effect = take_event(alt(code), &mut model, &status);
            assert!(matches!(effect, None | Some(Effect::Copy(_))), "{open:?}, {code:?}: {effect:?}");
            assert!(matches!(model.overlay, None | Some(Overlay::Details { .. })), "{:?}", model.overlay);
        }
    }
    // A field is left, and the key is no text of it.
    let mut model = model();
    model.update(Action::Filter, &status);
    take_event(Event::Key(KeyCode::Char('x').into()), &mut model, &status);
    take_event(alt(KeyCode::Char('q')), &mut model, &status);
    assert_eq!((model.filter.as_str(), model.typing_filter), ("", false));
    assert_eq!(model.overlay, Some(Overlay::Quit));
    // Whoever erases a word by Alt and Backspace, or moves by Alt and an arrow, stays where he is.
    for code in [KeyCode::Backspace, KeyCode::Up] {
        assert_eq!(take_event(alt(code), &mut model, &status), None);
        assert_eq!(model.overlay, Some(Overlay::Quit));
    }
}

#[test]
fn only_presses_count_and_pasted_text_presses_no_keys() {
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    let status = statuses::applying();
    let mut model = Model::new(Look { palette: Palette::Ansi16, glyphs: &theme::ASCII });
    for kind in [KeyEventKind::Release, KeyEventKind::Repeat] {
        let key = KeyEvent::new_with_kind(KeyCode::Char('p'), KeyModifiers::NONE, kind);
        assert_eq!(take_event(Event::Key(key), &mut model, &status), None);
        assert_eq!(model.pending, None);
    }
    assert_eq!(take_event(Event::Paste("pqs".into()), &mut model, &status), None);
    assert_eq!((model.pending, &model.overlay), (None, &None));
    model.update(Action::Filter, &status);
    take_event(Event::Paste("10.0.1\n".into()), &mut model, &status);
    assert_eq!(model.filter, "10.0.1");
}
