//! The screens of the console, drawn from named snapshots.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it is")]

#[path = "support/statuses.rs"]
mod statuses;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use shakedeck::status::Status;
use shakedeck::ui::model::Model;
use shakedeck::ui::theme::{ASCII, Look, Palette, UNICODE};
use shakedeck::ui::view;

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

#[test]
fn look_at_it() {
    let want = std::env::var("LOOK").unwrap_or_default();
    for (name, status) in statuses::all() {
        for (w, h) in [(80, 24), (120, 35), (200, 50), (59, 14)] {
            if want.contains(&format!("{name}{w}")) {
                let mut m = if want.contains("ascii") { ascii() } else { unicode() };
                println!("{name} {w}x{h}\n{}", text(&screen(&mut m, &status, w, h)));
            }
        }
    }
}
