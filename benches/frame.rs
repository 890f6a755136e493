//! What one frame of the console costs: 64 nodes on each side, a full ring of events, every size. The bar is 5 ms.
#![allow(missing_docs, reason = "criterion's macros write undocumented functions")]

use criterion::{Criterion, criterion_group, criterion_main};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use shakedeck::status;
use shakedeck::ui::model::Model;
use shakedeck::ui::theme::{Look, Palette, UNICODE};
use shakedeck::ui::view;

#[path = "../tests/support/statuses.rs"]
#[allow(dead_code, reason = "the screen tests use the rest")]
mod statuses;

fn frame(criterion: &mut Criterion) {
    let mut status = statuses::many_nodes(64);
    let event = status.events[0].clone();
    status.events =
        (0..status::EVENT_CAPACITY as u64).map(|id| status::Event { id, ..event.clone() }).collect();
    for (width, height) in [(80, 24), (120, 35), (200, 50), (300, 100)] {
        let mut model = Model::new(Look { palette: Palette::Ansi16, glyphs: &UNICODE });
        model.now_unix_ms = statuses::NOW;
        model.size = (width, height);
        let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
        criterion.bench_function(&format!("frame {width}x{height}, 64 nodes, 500 events"), |bencher| {
            bencher.iter(|| view::draw(&mut buffer, &model, &status));
        });
    }
}

criterion_group!(benches, frame);
criterion_main!(benches);
