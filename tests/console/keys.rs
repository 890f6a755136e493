//! What the keys of the console do, driven without a terminal.
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;
use shakedeck::control::{Command, SendError};
use shakedeck::status::{State, Status, Throttle};
use shakedeck::ui::Exit;
use shakedeck::ui::dialog::Overlay;
use shakedeck::ui::keymap::{BINDINGS, Context, Danger};
use shakedeck::ui::model::{Effect, Model, Pane};
use shakedeck::ui::theme::{Look, Palette, UNICODE};
use shakedeck::ui::view;

use crate::{statuses, wizard};

/// A console over one status; `shown` is what stands on the screen.
struct Console {
    model: Model,
    status: Status,
}

impl Console {
    fn over(status: Status) -> Console {
        let mut model = Model::new(Look { palette: Palette::Ansi16, glyphs: &UNICODE });
        model.size = (120, 35);
        model.now_unix_ms = statuses::NOW;
        Console { model, status }
    }

    fn key(&mut self, code: KeyCode) -> Option<Effect> {
        self.model.press(KeyEvent::new(code, KeyModifiers::NONE), &self.status)
    }

    fn keys(&mut self, keys: &str) -> Option<Effect> {
        let mut last = None;
        for key in keys.chars() {
            last = self.key(KeyCode::Char(key));
        }
        last
    }

    fn control(&mut self, key: char) -> Option<Effect> {
        self.model.press(KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL), &self.status)
    }

    fn after_ms(&mut self, ms: u64) -> Option<Effect> {
        let now = self.model.now_unix_ms + ms;
        self.status.snapshot_unix_ms = now;
        self.model.tick(now, &self.status)
    }

    fn shown(&self) -> String {
        let mut buffer = Buffer::empty(Rect::new(0, 0, self.model.size.0, self.model.size.1));
        view::draw(&mut buffer, &self.model, &self.status);
        buffer.content().chunks(usize::from(self.model.size.0)).fold(String::new(), |text, row| {
            text + &row.iter().map(|cell| cell.symbol()).collect::<String>() + "\n"
        })
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        assert!(self.shown().contains(text), "'{text}' is not on the screen:\n{}", self.shown());
    }
}

#[test]
fn pausing_needs_no_question_and_says_pausing_until_the_engine_confirms() {
    let mut console = Console::over(statuses::applying());
    assert_eq!(console.keys("p"), Some(Effect::Send(Command::Pause)));
    console.model.sent(Ok(()));
    console.shows(" PAUSING ");
    assert_eq!(console.keys("p"), None, "a second press does not turn it round");
    console.shows("still pausing: waiting for the engine to confirm");
    console.status = statuses::paused();
    console.after_ms(500);
    console.shows(" PAUSED ");
    console.shows("p resume");
    assert_eq!(console.keys("p"), Some(Effect::Send(Command::Resume)));
    console.shows(" RESUMING ");
}

#[test]
fn a_wish_that_is_never_confirmed_is_said_to_be() {
    let mut console = Console::over(statuses::applying());
    console.keys("p");
    console.after_ms(4_000);
    console.shows(" PAUSING ");
    console.after_ms(2_000);
    console.shows(" SYNCING ");
    console.shows("pausing: not confirmed by the engine after 5 s");
}

#[test]
fn a_full_command_queue_is_said_and_nothing_is_pending() {
    let mut console = Console::over(statuses::applying());
    console.keys("p");
    console.model.sent(Err(SendError::Busy));
    console.shows(" SYNCING ");
    console.shows("the engine is busy with earlier commands");
}

#[test]
fn quitting_asks_and_nothing_happens_on_enter() {
    let mut console = Console::over(statuses::applying());
    for open in ['q', '\u{3}'] {
        let effect = if open == 'q' { console.keys("q") } else { console.control('c') };
        assert_eq!(effect, None);
        console.shows("The migration runs in this process");
        console.shows("about 24 min at this rate");
        assert_eq!(console.key(KeyCode::Enter), None);
        assert_eq!(console.keys("q"), None);
        assert_eq!(console.control('c'), None);
        assert_eq!(console.model.overlay, Some(Overlay::Quit));
        console.key(KeyCode::Esc);
        assert_eq!(console.model.overlay, None);
    }
    console.keys("q");
    assert_eq!(console.keys("d"), Some(Effect::Leave(Exit::Detached)));
}

#[test]
fn stopping_waits_on_the_screen_for_the_end() {
    let mut console = Console::over(statuses::applying());
    assert_eq!(console.keys("qs"), Some(Effect::Send(Command::Stop { forget: false })));
    console.model.sent(Ok(()));
    console.shows(" STOPPING ");
    assert_eq!(console.after_ms(100), None);
    console.status.state = State::Stopping;
    assert_eq!(console.after_ms(100), None);
    console.keys("q");
    console.shows("The migration is stopping");
    assert_eq!(console.keys("n"), None);
    console.status.state = State::Stopped;
    assert_eq!(console.after_ms(100), Some(Effect::Leave(Exit::Quit)));
}

#[test]
fn who_cannot_wait_for_the_end_leaves_at_the_second_stop() {
    let mut console = Console::over(statuses::applying());
    console.keys("qs");
    assert_eq!(console.keys("qs"), Some(Effect::Leave(Exit::Quit)));
}

#[test]
fn a_migration_that_has_ended_is_left_without_a_question() {
    let mut console = Console::over(statuses::failed());
    console.shows("exit code 3");
    console.shows("next: the destination holds part of the data");
    assert_eq!(console.after_ms(60_000), None, "the outcome stays until it was seen");
    assert_eq!(console.keys("q"), Some(Effect::Leave(Exit::EngineEnded)));
}

#[test]
fn a_run_that_comes_after_another_is_shown_and_said() {
    let mut console = Console::over(statuses::failed());
    console.model.attached = true;
    console.model.engine_gone = true;
    console.shows("FAILED");
    let before = std::mem::replace(&mut console.status, statuses::applying());
    console.status.pid = before.pid + 1;
    console.model.found_run(&before, &console.status);
    console.shows("SYNCING");
    console.shows(&format!("a new run has begun in this data directory (pid {})", console.status.pid));
    // The same one, after its connection was lost, is no new one.
    console.model.engine_gone = true;
    console.shows("DISCONNECTED");
    let same = console.status.clone();
    console.model.found_run(&same, &same);
    console.shows("connected to the run again");
}

#[test]
fn a_file_that_is_loaded_is_left_without_a_key() {
    let mut console = Console::over(statuses::done());
    assert_eq!(console.after_ms(60_000), None, "not a file");
    console.status.source.kind = "file".into();
    assert_eq!(console.after_ms(100), Some(Effect::Leave(Exit::EngineEnded)));
    console.status.outcome.as_mut().unwrap().exit_code = 75;
    assert_eq!(console.after_ms(60_000), None, "stopped on the way");
    console.status.outcome.as_mut().unwrap().exit_code = 5;
    console.model.attached = true;
    assert_eq!(console.after_ms(60_000), None, "no summary follows here");
    console.model.attached = false;
    assert_eq!(console.after_ms(100), Some(Effect::Leave(Exit::EngineEnded)));
}

#[test]
fn giving_up_the_checkpoint_needs_the_destination_typed() {
    let mut console = Console::over(statuses::applying());
    assert_eq!(console.keys("qF"), None);
    assert_eq!(console.keys("10.0.2.2"), None);
    assert_eq!(console.key(KeyCode::Enter), None);
    console.shows("type the destination's address as shown");
    assert_eq!(console.keys("2"), None);
    assert_eq!(console.key(KeyCode::Enter), None, "a wrong name is not enough");
    console.key(KeyCode::Backspace);
    console.keys("1");
    assert_eq!(console.key(KeyCode::Enter), Some(Effect::Send(Command::Stop { forget: true })));
}

#[test]
fn a_link_is_restarted_only_after_yes_and_it_is_the_one_that_was_asked_about() {
    let mut console = Console::over(statuses::applying());
    console.key(KeyCode::Down);
    assert_eq!(console.keys("R"), None);
    console.shows("Drops the link to 10.0.1.11:6379");
    // The order of the rows changes while the question stands.
    console.status = statuses::failing_node();
    assert_eq!(console.key(KeyCode::Enter), None);
    let restart = Command::RestartSource { address: "10.0.1.11:6379".into() };
    assert_eq!(console.keys("y"), Some(Effect::Send(restart)));
}

#[test]
fn dangerous_keys_only_open_a_dialog_or_say_why_not() {
    for binding in BINDINGS.iter().filter(|binding| binding.context == Context::Screen) {
        if binding.danger < Danger::CostsTime {
            continue;
        }
        let mut console = Console::over(statuses::applying());
        assert_eq!(console.key(binding.keys[0]), None, "{}", binding.help);
        let asks = console.model.overlay.is_some();
        assert!(asks || console.model.notice().is_some(), "{}", binding.help);
    }
}

#[test]
fn a_verification_is_started_watched_and_ended_by_its_own_keys() {
    let mut console = Console::over(statuses::applying());
    assert_eq!(console.keys("v"), None);
    console.shows("Nothing has been compared yet");
    assert_eq!(console.keys("v"), None);
    assert_eq!(console.model.notice(), Some("v compare: nothing can be said before every source streams"));
    assert_eq!(console.keys("x"), None);
    console.status = statuses::caught_up();
    assert_eq!(console.keys("v"), Some(Effect::Send(Command::Verify)));
    console.status.verification = Some(statuses::verifying());
    console.shows("RUNNING");
    console.shows("412,000 of about 2,000,000 keys");
    assert_eq!(console.keys("v"), None, "one at a time");
    assert_eq!(console.keys("x"), Some(Effect::Send(Command::StopVerify)));
    console.status.verification = Some(statuses::verified());
    console.shows("DIFFERENT");
    console.shows("field_ttl");
    console.model.read_only = true;
    assert_eq!(console.keys("v"), None);
    console.key(KeyCode::Esc);
    assert_eq!(console.model.overlay, None);
}

#[test]
fn a_disabled_key_stays_in_the_footer_and_says_why() {
    let mut console = Console::over(statuses::applying());
    console.shows("c cutover (not ready: ");
    assert_eq!(console.keys("c"), None);
    assert_eq!(
        console.model.notice(),
        Some("c cutover: not ready: 10.0.1.13:6379 applying RDB, about 20m30s")
    );
    console.after_ms(6_100);
    assert_eq!(console.model.notice(), None, "a notice goes by itself");
}

#[test]
fn a_read_only_console_offers_nothing_that_changes_the_migration() {
    let mut console = Console::over(statuses::applying());
    console.model.read_only = true;
    assert!(!console.shown().contains("p pause"));
    for binding in BINDINGS.iter().filter(|binding| binding.danger > Danger::Safe) {
        if binding.context == Context::Screen {
            assert_eq!(console.key(binding.keys[0]), None, "{}", binding.help);
            assert_eq!(console.model.overlay, None, "{}", binding.help);
            assert!(console.model.notice().is_some_and(|notice| notice.contains("read-only")));
        }
    }
    assert_eq!(console.keys("qs"), None);
    assert_eq!(console.keys("F"), None);
    assert_eq!(console.keys("d"), Some(Effect::Leave(Exit::Detached)));
}

#[test]
fn the_help_lists_every_key_of_the_table() {
    let mut console = Console::over(statuses::applying());
    console.model.size = (250, 200);
    console.keys("?");
    for binding in BINDINGS {
        console.shows(binding.help);
        console.shows(&binding.all_names());
    }
    console.keys("/speed");
    console.shows("limit the speed towards the destination");
    assert!(!console.shown().contains("move the focus to the next pane"));
}

#[test]
fn the_selection_follows_the_node_not_the_row() {
    let mut console = Console::over(statuses::applying());
    console.key(KeyCode::Down);
    console.shows("> 10.0.1.11:6379");
    console.status = statuses::failing_node();
    console.shows(">!10.0.1.11:6379");
    console.key(KeyCode::End);
    console.shows("> 10.0.1.12:6379");
    console.status.sources.retain(|row| row.address != "10.0.1.12:6379");
    console.shows(">!10.0.1.11:6379");
}

#[test]
fn trouble_floats_up_and_healthy_rows_stand_still() {
    let mut console = Console::over(statuses::caught_up());
    let order = |console: &Console| -> Vec<String> {
        console.model.sources(&console.status).iter().map(|row| row.address.clone()).collect()
    };
    let healthy = order(&console);
    for lag in [0.1, 0.7, 0.4] {
        console.status.sources[1].lag_seconds = Some(lag);
        assert_eq!(order(&console), healthy);
    }
    console.status.sources[1].lag_seconds = Some(90.0);
    assert_eq!(order(&console)[0], "10.0.1.12:6379");
    console.keys("s");
    console.shows("sort: node ▲");
    console.keys("S");
    console.shows("sort: node ▼");
    assert_eq!(order(&console)[0], "10.0.1.13:6379");
}

#[test]
fn a_filter_narrows_the_focused_pane_and_totals_say_that_they_ignore_it() {
    let mut console = Console::over(statuses::applying());
    console.keys("/stream");
    console.shows("filter: stream_ (2 of 3)");
    console.key(KeyCode::Enter);
    console.shows("total (all)");
    assert_eq!(console.model.sources(&console.status).len(), 2);
    assert_eq!(console.model.writers(&console.status).len(), 3);
    console.key(KeyCode::Tab);
    console.keys("/slow");
    console.key(KeyCode::Enter);
    assert_eq!(console.model.sources(&console.status).len(), 3);
    assert_eq!(console.model.writers(&console.status).len(), 1);
    console.key(KeyCode::Esc);
    assert_eq!(console.model.writers(&console.status).len(), 3);
}

#[test]
fn keys_are_text_while_a_filter_is_typed() {
    let mut console = Console::over(statuses::applying());
    console.keys("/pqse?");
    assert_eq!((console.model.filter.as_str(), &console.model.overlay), ("pqse?", &None));
    console.shows("no node passes the filter");
}

#[test]
fn the_speed_limit_is_typed_or_stepped() {
    let mut console = Console::over(statuses::applying());
    let limit = |effect: Option<Effect>| match effect {
        Some(Effect::Send(Command::Throttle { limit })) => (limit.bytes_per_second, limit.ops_per_second),
        other => panic!("not a limit: {other:?}"),
    };
    console.keys("b2.5");
    assert_eq!(limit(console.key(KeyCode::Enter)), (Some(2_500_000), None));
    console.shows("asked for limit 2.5 MB/s");
    console.keys("b");
    console.key(KeyCode::Tab);
    console.keys("500x");
    console.key(KeyCode::Up);
    assert_eq!(limit(console.key(KeyCode::Enter)), (None, Some(1_000)));
    console.keys("b1.2.3");
    assert_eq!(console.key(KeyCode::Enter), None);
    console.shows("'1.2.3' is not a number of MB/s");
    console.key(KeyCode::Esc);
    console.status.throttle = Throttle { bytes_per_second: Some(50_000_000), ops_per_second: None };
    console.shows("THROTTLED: limit 50 MB/s");
    console.keys("b");
    console.key(KeyCode::Backspace);
    console.key(KeyCode::Backspace);
    assert_eq!(limit(console.key(KeyCode::Enter)), (None, None));
}

#[test]
fn errors_are_read_and_marked() {
    let mut console = Console::over(statuses::applying());
    console.shows("2 errors unread (e)");
    assert_eq!(console.keys("ea"), Some(Effect::Send(Command::AcknowledgeErrors)));
    console.status.unread_errors = 0;
    assert_eq!(console.keys("a"), None);
    console.shows("all read");
}

#[test]
fn scrolled_events_stand_still_and_count_what_is_new() {
    let mut console = Console::over(statuses::applying());
    console.model.focus = Pane::Events;
    console.key(KeyCode::Down);
    console.key(KeyCode::Down);
    let mut newest = console.status.events.last().unwrap().clone();
    let top = console.model.events_from_anchor(&console.status)[0].id;
    for id in 100..110 {
        newest.id = id;
        console.status.events.push(newest.clone());
    }
    assert_eq!(console.model.events_from_anchor(&console.status)[0].id, top);
    console.shows("paused, 10 new above");
    console.key(KeyCode::Esc);
    assert_eq!(console.model.events_from_anchor(&console.status)[0].id, 109);
}

#[test]
fn a_copied_row_is_also_on_the_screen() {
    let mut console = Console::over(statuses::failing_node());
    let Some(Effect::Copy(text)) = console.keys("y") else { panic!("nothing was copied") };
    assert!(text.starts_with("source 10.0.1.11:6379 reconnecting"), "{text}");
    assert!(text.contains("received=91884230015"), "{text}");
    console.shows("console: copied: source 10.0.1.11:6379");
}

#[test]
fn the_engine_that_goes_without_a_word_is_called_gone() {
    let mut console = Console::over(statuses::caught_up());
    console.model.engine_gone = true;
    console.shows(" ENGINE GONE ");
    console.shows("STALE: the engine has gone without a last word");
    assert!(!console.shown().contains("✔ READY"));
    assert_eq!(console.keys("p"), None);
    assert_eq!(console.keys("q"), Some(Effect::Leave(Exit::EngineEnded)));
}

#[test]
fn every_screen_says_when_it_will_be_done_or_why_nobody_knows() {
    let mut console = Console::over(statuses::applying());
    console.shows("RDB applied in about 20m30s");
    console.model.size = (80, 24);
    console.shows("about 20m30s left");
    console.status = statuses::caught_up();
    console.shows("caught up");
    console.status.sources[1].lag_seconds = Some(30.0);
    console.status.sources[1].lag_bytes = Some(6_000_000);
    console.status.sources[1].bytes_per_second = 460_000.0;
    console.shows("caught up in about 60 s");
    console.status.sources[1].bytes_per_second = 200_000.0;
    console.shows("NOT CATCHING UP at these rates");
    console.status = statuses::paused();
    console.key(KeyCode::Enter);
    console.shows("none while paused");
    console.key(KeyCode::Esc);
    console.status = statuses::receiving();
    assert!(!console.shown().contains("about"), "no forecast before 1 % is applied");
}

#[test]
fn a_mouse_click_finds_the_row_below_it() {
    let mut console = Console::over(statuses::failing_node());
    let shown = console.shown();
    for address in ["10.0.1.12:6379", "10.0.1.13:6379", "10.0.2.22:6379"] {
        let line = shown.lines().position(|line| line.contains(&format!("{address}  "))).unwrap();
        let pane = if address.starts_with("10.0.1") { Pane::Sources } else { Pane::Writers };
        let found = view::row_at(&console.model, &console.status, 5, line as u16);
        assert_eq!(found, Some((pane, address.to_string())));
        console.model.select(pane, address);
        assert!(console.shown().lines().nth(line).unwrap().contains('>'));
    }
}

#[test]
fn a_cutover_begins_only_with_every_check_met_and_the_destination_typed() {
    let mut console = Console::over(statuses::caught_up());
    assert_eq!(console.keys("c"), Some(Effect::Send(Command::Preflight)));
    let typed = console.status.destination.address.clone();
    console.keys(&typed);
    assert_eq!(console.key(KeyCode::Enter), None);
    console.shows("the sources are still being asked");
    console.status.cutover.preflight_unix_ms = Some(statuses::NOW + 10);
    console.key(KeyCode::Backspace);
    assert_eq!(console.key(KeyCode::Enter), None);
    console.shows("type the words as shown");
    console.keys(&typed[typed.len() - 1..]);
    console.status.gates[0].ok = false;
    assert_eq!(
        console.key(KeyCode::Enter),
        None,
        "a gate that fails while the dialog is open keeps Enter off"
    );
    console.status.gates[0].ok = true;
    let begin = Command::StartCutover { confirmation: typed, writes_stopped: false };
    assert_eq!(console.key(KeyCode::Enter), Some(Effect::Send(begin)));
}

#[test]
fn a_running_cutover_shows_itself_is_aborted_by_one_key_and_cannot_be_quit() {
    let mut console = Console::over(wizard::draining());
    console.after_ms(100);
    console.shows("drain");
    console.shows("BLOCKED");
    console.shows("left 412,880");
    assert_eq!(console.keys("h"), None);
    console.shows("the cutover does not wait for it");
    assert_eq!(console.control('c'), None);
    console.shows("a cutover is in progress: abort it first");
    assert_eq!(console.keys("a"), Some(Effect::Send(Command::AbortCutover)));
    console.key(KeyCode::Esc);
    console.after_ms(100);
    assert_eq!(console.model.overlay, None, "closed, it stays closed");
    console.keys("c");
    console.status = wizard::waiting_for_go();
    console.shows("press h");
    assert_eq!(console.keys("h"), Some(Effect::Send(Command::HandOver)));
    console.status = wizard::switched();
    assert_eq!(console.keys("a"), None);
    console.shows("there is no way back from the switch");
    assert_eq!(console.keys("u"), None);
    console.shows("Nobody copies them");
    assert_eq!(console.keys("y"), Some(Effect::Send(Command::Unfence)));
}

#[test]
fn where_nobody_can_be_paused_the_word_must_be_typed_too() {
    let mut console = Console::over(statuses::caught_up());
    console.keys("c");
    console.status.cutover.preflight_unix_ms = Some(statuses::NOW + 10);
    console.status.cutover.fence = shakedeck::cutover::FenceKind::Word;
    let address = console.status.destination.address.clone();
    console.keys(&address);
    assert_eq!(console.key(KeyCode::Enter), None);
    console.keys(" writes have stopped");
    let begin = Command::StartCutover { confirmation: address, writes_stopped: true };
    assert_eq!(console.key(KeyCode::Enter), Some(Effect::Send(begin)));
}

#[test]
fn a_console_over_another_process_or_over_none_can_always_be_left() {
    let over = || {
        let mut console = Console::over(wizard::draining());
        console.after_ms(100);
        console
    };
    let mut console = over();
    console.model.attached = true;
    assert_eq!(console.keys("q"), None);
    assert_eq!(console.keys("d"), Some(Effect::Leave(Exit::Detached)));
    let mut console = over();
    console.model.engine_gone = true;
    assert_eq!(console.control('c'), Some(Effect::Leave(Exit::EngineEnded)));
}

#[test]
fn where_a_cutover_cannot_be_aborted_leaving_it_is_not_said_to_need_that() {
    use shakedeck::cutover::State::{Aborting, HandingOver};
    let words = [(HandingOver, "it is handing over: wait"), (Aborting, "it is going back: wait")];
    for (state, words) in words {
        let mut console = Console::over(wizard::draining());
        console.after_ms(100);
        console.status.cutover.state = state;
        for leave in ['q', '\u{3}'] {
            let effect = if leave == 'q' { console.keys("q") } else { console.control('c') };
            assert_eq!((effect, &console.model.overlay), (None, &Some(Overlay::Cutover)));
            console.shows(words);
            assert!(!console.shown().contains("abort it first"));
        }
    }
}

#[test]
fn a_limit_that_lets_nothing_through_is_refused() {
    for keys in ["b0", "b0.0000001", "b\t0", "b\t0.5"] {
        let mut console = Console::over(statuses::applying());
        console.model.size = (80, 24);
        for key in keys.chars() {
            console.key(if key == '\t' { KeyCode::Tab } else { KeyCode::Char(key) });
        }
        assert_eq!(console.key(KeyCode::Enter), None, "{keys:?}");
        console.shows("a limit of 0 lets nothing through: leave it empty for no limit, or");
        console.shows("p pauses");
    }
}

#[test]
fn a_copied_row_holds_nothing_that_a_terminal_obeys() {
    let mut console = Console::over(statuses::failing_node());
    console.status.sources[0].reason = Some("\u{1b}]0;pwned\u{7}\r\nrm -rf /\r".into());
    let Some(Effect::Copy(text)) = console.keys("y") else { panic!("nothing was copied") };
    assert!(!text.chars().any(char::is_control) && text.contains("\\x1b]0;pwned"), "{text}");
}

#[test]
fn a_read_only_console_watches_a_cutover() {
    let mut console = Console::over(wizard::draining());
    console.model.read_only = true;
    console.after_ms(100);
    console.key(KeyCode::Esc);
    assert_eq!(console.model.overlay, None);
    console.shows("c cutover steps");
    assert_eq!(console.keys("c"), None);
    assert_eq!(console.model.overlay, Some(Overlay::Cutover));
    assert_eq!(console.keys("a"), None);
    console.shows("a is off: this console is read-only");
}

#[test]
fn help_and_the_way_out_are_where_one_reads() {
    for open in ["e", "l", "v", "\n"] {
        let over = || {
            let mut console = Console::over(statuses::caught_up());
            console.key(if open == "\n" {
                KeyCode::Enter
            } else {
                KeyCode::Char(open.chars().next().unwrap())
            });
            console
        };
        let mut console = over();
        let before = console.model.overlay.clone();
        assert!(before.is_some(), "{open:?}");
        console.keys("?");
        console.shows("main screen");
        console.key(KeyCode::Esc);
        assert_eq!(console.model.overlay, before, "back to where the help was asked for");
        let mut console = over();
        console.keys("q");
        assert_eq!(console.model.overlay, Some(Overlay::Quit), "{open:?}");
    }
    let mut console = Console::over(wizard::draining());
    console.after_ms(100);
    console.keys("?");
    console.shows("main screen");
    console.key(KeyCode::Esc);
    assert_eq!(console.keys("q"), None);
    console.shows("a cutover is in progress: abort it first");
}
