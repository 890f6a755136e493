//! The screens of the console, drawn from named snapshots.
use proptest::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};
use shakedeck::status::{CutoverNode, CutoverStatus, EventLevel, Gate, Phase, State, Status, StepState};
use shakedeck::ui::dialog::Overlay;
use shakedeck::ui::model::{Effect, Model, Pane};
use shakedeck::ui::theme::{ASCII, Look, Palette, UNICODE};
use shakedeck::ui::view;

use crate::{statuses, svg, wizard};

fn unicode() -> Model {
    let mut model = Model::new(Look { palette: Palette::Ansi16, glyphs: &UNICODE });
    model.now_unix_ms = statuses::NOW;
    model
}

fn ascii() -> Model {
    let mut model = unicode();
    model.look = Look { palette: Palette::Mono, glyphs: &ASCII };
    model
}

fn screen(model: &mut Model, status: &Status, width: u16, height: u16) -> Buffer {
    model.size = (width, height);
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    view::draw(&mut buffer, model, status);
    buffer
}

fn press(model: &mut Model, code: KeyCode, status: &Status) -> Option<Effect> {
    model.press(KeyEvent::new(code, KeyModifiers::NONE), status)
}

/// The characters of a screen, one line per row.
fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for y in buffer.area.y..buffer.area.bottom() {
        let row: String = (buffer.area.x..buffer.area.right()).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

const SIZES: [(u16, u16); 4] = [(59, 14), (80, 24), (120, 35), (200, 50)];

/// A snapshot file per status and look, with every size in it.
fn check(name: &str, mut model: Model, status: &Status, sizes: &[(u16, u16)]) {
    let mut shown = String::new();
    for (width, height) in sizes {
        let drawn = text(&screen(&mut model, status, *width, *height));
        shown.push_str(&format!("{name} {width}x{height}\n{drawn}\n"));
    }
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!(name, shown);
    });
}

#[test]
fn every_status_reads_well_at_every_size() {
    for (name, status) in statuses::all() {
        check(name, unicode(), &status, &SIZES);
    }
}

#[test]
fn every_status_reads_well_in_plain_ascii() {
    for (name, status) in statuses::all() {
        let drawn = text(&screen(&mut ascii(), &status, 120, 35));
        // The one exception is text of the engine itself, which may say "…".
        let strange: String = drawn.chars().filter(|c| !c.is_ascii() && *c != '…').collect();
        assert_eq!(strange, "", "{name}");
        check(&format!("{name}_ascii"), ascii(), &status, &[(59, 14), (80, 24), (120, 35)]);
    }
}

#[test]
fn stale_data_says_so_and_is_dimmed() {
    let mut model = unicode();
    model.now_unix_ms += 6_800;
    let status = statuses::applying();
    let drawn = screen(&mut model, &status, 80, 24);
    assert!(text(&drawn).contains("STALE: no news from the engine for 7 s"), "{}", text(&drawn));
    assert!(text(&drawn).contains("NOT READY TO CUT OVER: the data on this screen is stale"));
    assert!(drawn[(40, 6)].modifier.contains(Modifier::DIM), "the numbers must not look alive");
    check("stale", model, &status, &SIZES);
}

#[test]
fn a_ready_verdict_is_never_shown_from_stale_data() {
    let mut model = unicode();
    let status = statuses::caught_up();
    assert!(text(&screen(&mut model, &status, 80, 24)).contains("✔ READY TO CUT OVER"));
    model.now_unix_ms += 6_000;
    assert!(!text(&screen(&mut model, &status, 80, 24)).contains("✔ READY"));
}

#[test]
fn overlays_cover_the_panes_but_not_state_verdict_and_keys() {
    let status = statuses::failing_node();
    let keys: [(&str, &[KeyCode]); 8] = [
        ("help", &[KeyCode::Char('?')]),
        ("quit", &[KeyCode::Char('q')]),
        ("forget", &[KeyCode::Char('q'), KeyCode::Char('F'), KeyCode::Char('1'), KeyCode::Char('0')]),
        ("throttle", &[KeyCode::Char('b'), KeyCode::Char('5'), KeyCode::Char('0')]),
        ("errors", &[KeyCode::Char('e'), KeyCode::Down]),
        ("restart", &[KeyCode::Char('R')]),
        ("details", &[KeyCode::Enter]),
        ("filter", &[KeyCode::Char('/'), KeyCode::Char('1'), KeyCode::Char('3')]),
    ];
    for (name, keys) in keys {
        for (mut model, look) in [(unicode(), ""), (ascii(), "_ascii")] {
            for key in keys {
                assert_eq!(press(&mut model, *key, &status), None, "{name}");
            }
            let drawn = text(&screen(&mut model, &status, 80, 24));
            assert!(drawn.contains("SYNCING") && drawn.contains("NOT READY"), "{drawn}");
            assert!(drawn.contains("Esc"), "the way back is in the footer: {drawn}");
            check(&format!("overlay_{name}{look}"), model, &status, &[(59, 14), (80, 24), (120, 35)]);
        }
    }
}

/// After a switch without a link back there is nothing to resume.
#[test]
fn leaving_after_the_switch_promises_nothing() {
    let mut status = statuses::failing_node();
    status.state = State::Switched;
    status.cutover.state = shakedeck::cutover::State::Done;
    status.cutover.refusing = vec!["10.0.1.11:6379".into()];
    let mut model = unicode();
    press(&mut model, KeyCode::Char('q'), &status);
    let drawn = text(&screen(&mut model, &status, 80, 24));
    assert!(
        drawn.contains("The switch is done") && drawn.contains("10.0.1.11:6379 goes on refusing"),
        "{drawn}"
    );
    assert!(!drawn.contains("later start"), "{drawn}");
}

/// What is only held goes on when the process ends: that is said, and it can be let go.
#[test]
fn what_is_held_is_said_and_can_be_let_go() {
    let mut status = wizard::switched();
    status.cutover.holding = std::mem::take(&mut status.cutover.refusing);
    let mut model = unicode();
    press(&mut model, KeyCode::Char('c'), &status);
    let drawn = text(&screen(&mut model, &status, 120, 35));
    assert!(drawn.contains("is held: its writers wait until you unfence it"), "{drawn}");
    press(&mut model, KeyCode::Char('u'), &status);
    let drawn = text(&screen(&mut model, &status, 120, 35));
    assert!(drawn.contains("Lets 10.0.1.11:6379, 10.0.1.12:6379, 10.0.1.13:6379 take writes"), "{drawn}");
    let mut model = unicode();
    press(&mut model, KeyCode::Char('q'), &status);
    let drawn = text(&screen(&mut model, &status, 80, 24));
    assert!(drawn.contains("10.0.1.11:6379 is held by this process"), "{drawn}");
}

#[test]
fn the_verification_shows_progress_and_differences() {
    for (name, verification) in
        [("none", None), ("running", Some(statuses::verifying())), ("different", Some(statuses::verified()))]
    {
        let mut status = statuses::caught_up();
        status.verification = verification;
        for (mut model, look) in [(unicode(), ""), (ascii(), "_ascii")] {
            assert_eq!(press(&mut model, KeyCode::Char('v'), &status), None);
            check(&format!("verification_{name}{look}"), model, &status, &[(59, 14), (80, 24), (120, 35)]);
        }
    }
}

/// The wizard in every step that lasts, the question before it, and what stands there afterwards.
#[test]
fn the_cutover_reads_well() {
    let question = |mut status: Status| {
        status.cutover.preflight_unix_ms = Some(statuses::NOW);
        let gate = |name: &str, text: &str, ok: bool, detail: &str| Gate {
            name: name.into(),
            text: text.into(),
            ok,
            detail: detail.into(),
        };
        status.cutover.preflight = vec![
            gate("control", "every source master answers", true, "3 answered"),
            gate("role", "the sources are masters", true, "no write can come from elsewhere"),
            gate("fence", "writes can be blocked", true, "CLIENT PAUSE WRITE"),
            gate("after", "afterwards: refuses writes", false, "10.0.1.11:6379: CONFIG SET is denied"),
        ];
        status
    };
    let cases: [(&str, Status, &str); 5] = [
        ("cutover_question", question(statuses::caught_up()), "c10.0.2"),
        ("cutover_draining", wizard::draining(), ""),
        ("cutover_waiting", wizard::waiting_for_go(), ""),
        ("cutover_went_back", wizard::went_back(), ""),
        ("cutover_switched", wizard::switched(), "c"),
    ];
    for (name, status, keys) in cases {
        for (mut model, look) in [(unicode(), ""), (ascii(), "_ascii")] {
            // Opens by itself while it runs; what came of it stays until it is closed.
            let running = Status { state: State::CuttingOver, ..status.clone() };
            if keys.is_empty() {
                model.tick(statuses::NOW, &running);
            }
            for key in keys.chars() {
                press(&mut model, KeyCode::Char(key), &status);
            }
            let drawn = text(&screen(&mut model, &status, 80, 24));
            assert!(drawn.contains("Esc"), "the way back is in the footer: {drawn}");
            check(&format!("{name}{look}"), model, &status, &[(59, 14), (80, 24), (120, 35)]);
        }
    }
}

#[test]
fn a_server_cannot_write_to_the_terminal() {
    let status = statuses::failing_node();
    for keys in ["", "e", "\n", "?"] {
        let mut model = unicode();
        for key in keys.chars() {
            let code = if key == '\n' { KeyCode::Enter } else { KeyCode::Char(key) };
            press(&mut model, code, &status);
        }
        for (width, height) in SIZES {
            let drawn = screen(&mut model, &status, width, height);
            for cell in drawn.content() {
                assert!(
                    !cell.symbol().chars().any(char::is_control),
                    "{:?} at {width}x{height}",
                    cell.symbol()
                );
            }
        }
    }
    let mut model = unicode();
    assert!(text(&screen(&mut model, &status, 120, 35)).contains("\\x1b[31mconnection refused\\x9b0m"));
}

#[test]
fn the_selected_row_is_reversed_even_without_colour() {
    let mut model = ascii();
    let drawn = screen(&mut model, &statuses::caught_up(), 80, 24);
    let row = (0..24).find(|y| drawn[(0, *y)].symbol() == ">").unwrap();
    for x in 0..80 {
        let cell = &drawn[(x, row)];
        assert!(cell.modifier.contains(Modifier::REVERSED), "column {x}");
        assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset), "column {x}");
    }
}

#[test]
fn unknown_is_a_dash_and_a_gap_is_a_gap() {
    let drawn = text(&screen(&mut unicode(), &statuses::fresh(), 80, 24));
    let row = drawn.lines().find(|line| line.starts_with("> 10.0.1.11")).unwrap();
    assert_eq!(row.matches(" -").count(), 5, "{row}");
    let drawn = text(&screen(&mut unicode(), &statuses::applying(), 200, 50));
    let bars = drawn.lines().find(|line| line.contains("30.0k ┤")).unwrap();
    assert!(bars.contains("█ █"), "thirty seconds without a measurement leave a gap: {bars}");
}

#[test]
fn the_pictures_in_assets_are_the_screens() {
    for (width, height, status) in
        [(80, 24, statuses::applying()), (120, 35, statuses::applying()), (200, 50, statuses::failing_node())]
    {
        let picture = svg::of(&screen(&mut unicode(), &status, width, height));
        let file = format!("{}/assets/screen-{width}x{height}.svg", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &picture).unwrap();
        }
        let kept = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(kept == picture, "{file} is not what the console draws: run this test with UPDATE=1");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_size_and_no_key_panics(
        width in 1u16..=300,
        height in 1u16..=100,
        which in 0usize..11,
        plain: bool,
        keys in proptest::collection::vec(
            proptest::sample::select("?qbeRlsSyt/+-pjkGg\n\tdFna0123\u{8}\u{1b}".chars().collect::<Vec<_>>()), 0..12),
    ) {
        let mut model = if plain { ascii() } else { unicode() };
        let (_, status) = statuses::all().swap_remove(which);
        screen(&mut model, &status, width, height);
        for key in keys {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '\u{8}' => KeyCode::Backspace,
                '\u{1b}' => KeyCode::Esc,
                other => KeyCode::Char(other),
            };
            press(&mut model, code, &status);
            screen(&mut model, &status, width, height);
        }
    }
}

#[test]
fn the_timeline_shows_the_cutover_at_every_size() {
    // Some sources connect while others apply.
    let mut mixed = statuses::applying();
    for step in &mut mixed.timeline[..4] {
        (step.state, step.note) = (StepState::Active, Some("1 of 3".into()));
    }
    for status in [statuses::applying(), statuses::caught_up(), mixed] {
        for (width, height) in [(80, 24), (110, 30), (120, 35), (150, 40), (180, 45), (200, 50)] {
            let drawn = text(&screen(&mut unicode(), &status, width, height));
            let line = drawn.lines().nth(1).unwrap();
            assert!(line.contains("cutover"), "{width}x{height}: {line}");
        }
    }
}

#[test]
fn the_small_screen_says_what_is_moved_and_how_many_nodes_it_has() {
    for source in ["10.0.1.11:6379", "127.0.0.1:30001"] {
        let mut status = statuses::applying();
        status.source.address = source.into();
        let drawn = text(&screen(&mut unicode(), &status, 80, 24));
        let line = drawn.lines().next().unwrap();
        assert_eq!(line.matches("cluster ").count(), 2, "{line}");
        assert_eq!(line.matches("(3)").count(), 2, "{line}");
    }
}

#[test]
fn a_lag_that_is_not_known_of_one_node_is_not_known_of_all() {
    let mut status = statuses::caught_up();
    let lag_of = |status: &Status, name: &str| {
        let drawn = text(&screen(&mut unicode(), status, 120, 35));
        let row = drawn.lines().find(|line| line.contains(name)).unwrap().to_owned();
        row.split_whitespace().rev().nth(5).unwrap().to_owned()
    };
    assert_ne!(lag_of(&status, "total / worst"), "-");
    (status.sources[0].lag_bytes, status.sources[0].lag_seconds) = (None, None);
    let address = status.sources[0].address.clone();
    assert_eq!([lag_of(&status, &address), lag_of(&status, "total / worst")], ["-", "-"]);
}

#[test]
fn the_question_before_the_cutover_says_everything_on_the_small_screen() {
    let mut status = statuses::applying();
    status.cutover.max_blocked_seconds = Some(60.0);
    status.cutover.preflight_unix_ms = Some(statuses::NOW);
    let gate = |name: &str, text: &str, ok: bool, detail: &str| Gate {
        name: name.into(),
        text: text.into(),
        ok,
        detail: detail.into(),
    };
    status.cutover.preflight = vec![
        gate("pause", "CLIENT PAUSE is allowed", true, "on 3 of 3 masters"),
        gate("offset", "the offset can be read", true, "INFO replication on 3 of 3 masters"),
        gate(
            "fence",
            "min-replicas-to-write can be set",
            false,
            "10.0.1.12:6379 refuses CONFIG SET (NOPERM): give its user +config|set, or set source_after = \"release\"",
        ),
    ];
    let mut ready = statuses::caught_up();
    ready.cutover.max_blocked_seconds = Some(60.0);
    for status in [status, ready] {
        let mut model = unicode();
        model.overlay = Some(Overlay::CutoverStart { typed: String::new(), opened_unix_ms: 0 });
        let drawn = text(&screen(&mut model, &status, 80, 24));
        let parts = drawn.lines().filter_map(|line| Some(line.split_once('┃')?.1.rsplit_once('┃')?.0));
        assert!(parts.clone().count() > 10 && parts.clone().all(|part| !part.contains('…')), "{drawn}");
        for words in
            ["From 10.0.1.11 (3 masters) to 10.0.2.21 (3 masters)", "at most 1m00s", "Type  10.0.2.21"]
        {
            assert!(drawn.contains(words), "{words}: {drawn}");
        }
    }
}

#[test]
fn the_longest_time_that_writers_are_blocked_is_said() {
    let mut status = wizard::draining();
    status.cutover.max_blocked_seconds = Some(60.0);
    status.cutover.steps[2].detail =
        "the destination must confirm the offsets of three masters, and the slowest of them is far behind"
            .into();
    let mut model = unicode();
    press(&mut model, KeyCode::Char('c'), &status);
    let drawn = text(&screen(&mut model, &status, 80, 24));
    assert!(drawn.contains("After 1m00s it goes"), "{drawn}");
    assert!(drawn.contains("far behind"), "{drawn}");
}

/// A cluster of sixteen masters in its drain, three of them behind.
fn sixteen_draining() -> Status {
    let mut status = wizard::draining();
    let drained = status.cutover.nodes[0].clone();
    status.cutover.nodes[1].applied_offset -= 7_000_000;
    for index in 0..13 {
        let address = format!("10.0.1.{}:6379", 20 + index);
        status.cutover.nodes.push(CutoverNode { address, ..drained.clone() });
    }
    let unread = &mut status.cutover.nodes[15];
    unread.fenced_offset = None;
    status
}

#[test]
fn a_cutover_of_sixteen_masters_hides_neither_steps_nor_outlook() {
    let status = sixteen_draining();
    let (mut went_back, old) = (status.clone(), wizard::went_back());
    went_back.state = old.state;
    went_back.cutover = CutoverStatus { nodes: status.cutover.nodes.clone(), ..old.cutover };
    for (width, height) in [(80, 24), (120, 35)] {
        let mut model = unicode();
        model.overlay = Some(Overlay::Cutover);
        let drawn = text(&screen(&mut model, &status, width, height));
        for words in
            ["4 verify", "5 your go", "6 hand over", "no way back", "if you abort now", "BLOCKED", "41 s."]
        {
            assert!(drawn.contains(words), "{words}: {drawn}");
        }
        let order = ["13 of 16 drained", "10.0.1.32:6379"].map(|words| drawn.find(words));
        assert!(order[0].is_some() && order[0] < order[1], "the one without an offset comes first: {drawn}");
        let drawn = text(&screen(&mut model, &went_back, width, height));
        for words in ["result", "The cutover went back", "cutover-1.txt", "6 hand over"] {
            assert!(drawn.contains(words), "{words}: {drawn}");
        }
        check(&format!("cutover_sixteen_{width}x{height}"), model, &status, &[(width, height)]);
    }
}

#[test]
fn among_many_nodes_trouble_keeps_its_reason() {
    let drawn = text(&screen(&mut unicode(), &statuses::sixteen_nodes(), 80, 24));
    for words in
        ["source backlog lasts 23m42s at this rate; reconnecting in 4 s", "└ OOM command not allowed"]
    {
        assert!(drawn.contains(words), "{words}: {drawn}");
    }
    // Where everything is in trouble, rows are worth more than reasons.
    let mut status = statuses::sixteen_nodes();
    for row in &mut status.sources {
        row.phase = Phase::Reconnecting;
        row.reason = Some("connection refused".into());
    }
    let drawn = text(&screen(&mut unicode(), &status, 80, 24));
    assert_eq!(drawn.lines().filter(|line| line.contains("reconnecting     ")).count(), 4, "{drawn}");
    assert!(drawn.contains("12 more below"), "{drawn}");
}

#[test]
fn the_selected_row_stays_in_sight_among_reasons() {
    let status = statuses::sixteen_nodes();
    let mut model = unicode();
    screen(&mut model, &status, 80, 24);
    for _ in 0..16 {
        let drawn = text(&screen(&mut model, &status, 80, 24));
        let selected = model.selected_source(&status).unwrap().address.clone();
        let row = drawn.lines().find(|line| line.starts_with('>')).unwrap_or_default();
        assert!(row.contains(&selected), "{selected}: {drawn}");
        press(&mut model, KeyCode::Down, &status);
    }
}

#[test]
fn the_spool_counts_the_disk_as_well_as_its_own_limit() {
    let mut status = statuses::applying();
    status.spool.growth_bytes_per_second = Some(1_000_000.0);
    let shown = |status: &Status| text(&screen(&mut unicode(), status, 80, 24));
    assert!(shown(&status).contains("(10 %, full in 12 h at this rate)"), "{}", shown(&status));
    // One GB must stay free.
    status.spool.disk_free_bytes = Some(1_600_000_000);
    assert!(shown(&status).contains("(10 %, disk full in 10 min at this rate)"), "{}", shown(&status));
    status.spool.disk_free_bytes = Some(999_000_000);
    assert!(shown(&status).contains("(10 %, disk full)"), "{}", shown(&status));
    let mut paused = statuses::paused();
    assert!(shown(&paused).contains("  pause is safe until 16:21Z   spool 266 MB"), "{}", shown(&paused));
    paused.spool.disk_free_bytes = Some(1_630_000_000);
    assert!(shown(&paused).contains("  pause is safe until 03:22Z"), "{}", shown(&paused));
    paused.spool.disk_free_bytes = Some(0);
    assert!(shown(&paused).contains("pause is NOT safe"), "{}", shown(&paused));
}

#[test]
fn the_wide_verdict_says_first_what_is_in_the_way() {
    for status in [statuses::failing_node(), statuses::applying(), statuses::paused()] {
        for (width, height) in [(180, 45), (200, 50)] {
            let drawn = text(&screen(&mut unicode(), &status, width, height));
            let verdict = drawn.lines().nth(2).unwrap();
            let failing = status.gates.iter().filter(|gate| !gate.ok);
            let mut at = verdict.find(status.not_ready[0].as_str()).expect(verdict);
            for gate in failing.filter(|gate| gate.detail != status.not_ready[0]) {
                let short = verdict.find(&format!("[✘] {}", gate.name));
                let found = verdict.find(&format!("[✘] {}", gate.text)).or(short);
                assert!(found > Some(at), "{}: {verdict}", gate.name);
                at = found.unwrap();
            }
            assert!(verdict.find("[✔]").is_none_or(|met| met > at), "{verdict}");
        }
    }
}

#[test]
fn every_warning_is_read_to_its_end() {
    let mut status = statuses::throttled();
    status.warnings = vec![
        "TLS NOT VERIFIED: source".into(),
        "TLS NOT VERIFIED: destination".into(),
        "OFF_REPLY: what the destination refuses is not seen".into(),
        "CLOCKS DIFFER: the destination's is 12 s ahead of the source's; keys with a time to live end that much earlier there"
            .into(),
    ];
    let drawn = text(&screen(&mut unicode(), &status, 80, 24));
    for words in ["limit 50 MB/s", "source", "destination", "is not seen", "CLOCKS DIFFER", "earlier there"] {
        assert!(drawn.lines().skip(3).take(6).any(|line| line.contains(words)), "{words}: {drawn}");
    }
    assert!(drawn.contains("source nodes (3)") && drawn.contains("── events"), "{drawn}");
}

#[test]
fn a_forecast_is_made_only_from_rates_that_hold() {
    let line = |status: &Status, age: u64| {
        let mut model = unicode();
        model.now_unix_ms += age;
        let drawn = text(&screen(&mut model, status, 80, 24));
        drawn.lines().find(|line| line.contains(" RDB [")).expect(&drawn).to_owned()
    };
    let mut status = statuses::applying();
    // What the streaming nodes take says nothing about the third one's RDB.
    status.sources[0].bytes_per_second = 90e6;
    assert!(line(&status, 0).contains("at 1.4 MB/s, about 20m30s left"), "{}", line(&status, 0));
    assert!(!line(&status, 6_000).contains("left"), "stale");
    status.state = State::Paused;
    assert!(!line(&status, 0).contains("left"), "paused");
    // All RDBs applied, and one link lost.
    let mut status = statuses::caught_up();
    status.sources[0].phase = Phase::Reconnecting;
    assert!(line(&status, 0).trim_end().ends_with("12.4/12.4 GB"), "{}", line(&status, 0));
}

#[test]
fn unread_errors_that_the_list_has_lost_are_not_called_none() {
    let mut status = statuses::applying();
    status.events.retain(|event| event.level != EventLevel::Error);
    status.unread_errors = 7;
    let mut model = unicode();
    press(&mut model, KeyCode::Char('e'), &status);
    let drawn = text(&screen(&mut model, &status, 80, 24));
    assert!(drawn.contains("7 unread errors are only in the log /var/log/migrate"), "{drawn}");
    assert!(!drawn.contains("no errors"), "{drawn}");
}

#[test]
fn the_number_of_unread_errors_is_never_cut_off() {
    let mut status = statuses::applying();
    (status.unread_errors, status.events_dropped) = (12_345, 123_456_789);
    let mut model = unicode();
    model.focus = Pane::Events;
    press(&mut model, KeyCode::Down, &status);
    let drawn = text(&screen(&mut model, &status, 80, 24));
    assert!(drawn.contains("12,345 errors unread (e)"), "{drawn}");
}

#[test]
fn what_nobody_knows_is_a_dash() {
    let mut status = statuses::fresh();
    status.spool.disk_free_bytes = None;
    let drawn = text(&screen(&mut unicode(), &status, 200, 50));
    assert!(drawn.contains("disk free -") && drawn.contains("now -"), "{drawn}");
    assert!(!drawn.contains("now 0"), "{drawn}");
}

#[test]
fn the_clock_stays_however_long_the_route_is() {
    for mut status in [statuses::applying(), wizard::draining(), statuses::single()] {
        for address in ["10.0.1.11:6379", "redis-orders-eu-west-1.internal.example.com:6379"] {
            status.source.address = address.into();
            let drawn = text(&screen(&mut unicode(), &status, 80, 24));
            let line = drawn.lines().next().unwrap();
            assert!(line.ends_with("03:12:07Z"), "{line}");
        }
    }
}

/// What a stop costs, by what is here of the RDBs.
#[test]
fn leaving_and_restarting_promise_only_what_is_so() {
    let dialog = |status: &Status, key: char| {
        let mut model = unicode();
        press(&mut model, KeyCode::Char(key), status);
        text(&screen(&mut model, status, 80, 24))
    };
    let mut status = statuses::receiving();
    let drawn = dialog(&status, 'q');
    assert!(drawn.contains("the RDB of 10.0.1.11:6379 (and 2 more) is not whole here yet"), "{drawn}");
    assert!(!drawn.contains("without"), "{drawn}");
    let drawn = dialog(&status, 'R');
    assert!(drawn.contains("what has arrived is thrown away"), "{drawn}");
    status.sources[0] = statuses::applying().sources[0].clone();
    let drawn = dialog(&status, 'q');
    assert!(drawn.contains("10.0.1.12:6379 (and 1 more)") && drawn.contains("about 24 min"), "{drawn}");
    assert!(dialog(&statuses::fresh(), 'q').contains("10.0.1.11:6379 is not whole here yet"), "not begun");
    // Whole, though not applied: the spool has it.
    let status = statuses::applying();
    assert!(dialog(&status, 'q').contains("goes on without a new full sync"));
    assert!(dialog(&status, 'R').contains("Goes on from the last offset"));
    let mut file = statuses::applying();
    file.source.kind = "file".into();
    let drawn = dialog(&file, 'q');
    assert!(
        drawn.contains("as long as the file is not changed") && !drawn.contains("backlog lasts:"),
        "{drawn}"
    );
    assert!(dialog(&file, 'R').contains("a file has no link"));
}

#[test]
fn a_screen_that_is_too_small_still_says_why_a_key_did_nothing() {
    let status = statuses::applying();
    let mut model = unicode();
    press(&mut model, KeyCode::Char('c'), &status);
    let drawn = text(&screen(&mut model, &status, 59, 14));
    assert!(drawn.contains("c cutover: not ready: 10.0.1.13:6379"), "{drawn}");
}
