//! Throughput and lag over time, as bars. A second without a measurement is a gap, never a zero.
//!
//! Samples are gathered into buckets that are aligned to absolute time, so that bars move along without changing
//! their height as each new second arrives.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;

use super::{PaneFrame, Screen};
use crate::format;
use crate::status::Sample;
use crate::ui::layout::{Areas, Size};
use crate::ui::theme::Role;

/// Columns of the scale at the left, axis included.
const SCALE_WIDTH: u16 = 10;

pub(super) fn draw_throughput(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    let area = areas.throughput;
    if area.is_empty() {
        return;
    }
    let status = screen.status;
    let compact = areas.size == Size::Compact;
    let now: f64 = status.sources.iter().map(|row| row.ops_per_second).sum();
    let values = values(screen, |sample| sample.ops);
    let title = if compact {
        format!("applied ops/s, last {}", window_in_words(screen))
    } else {
        "applied ops/s, all nodes".into()
    };
    let max = values.iter().flatten().copied().max_by(f64::total_cmp);
    let max = max.map(|max| format!("  max {}", format::count(max))).unwrap_or_default();
    // Before the first second has been measured nobody knows.
    let measured = status.history.iter().any(|sample| sample.ops.is_some());
    let right = format!("now {}{max}", if measured { format::count(now) } else { "-".into() });
    let inner = frame(buffer, screen, area, &title, right, !compact);
    if compact && inner.height < 3 {
        let inside = Rect { x: inner.x + 2, width: inner.width.saturating_sub(4), ..inner };
        bars(buffer, screen, inside, &values, None, mean);
    } else {
        with_axes(buffer, screen, inner, &values, mean, format::count);
    }
}

pub(super) fn draw_lag(buffer: &mut Buffer, screen: &Screen, areas: &Areas) {
    let area = areas.lag;
    if area.is_empty() {
        return;
    }
    let status = screen.status;
    // One whose lag is not known may be the worst.
    let unknown = status.sources.iter().find(|row| row.lag_bytes.is_none());
    let worst = unknown.or(status.sources.iter().max_by_key(|row| row.lag_bytes));
    let name = worst
        .filter(|_| status.sources.len() > 1)
        .map(|row| format!(" ({})", row.address))
        .unwrap_or_default();
    let values = values(screen, |sample| sample.lag_bytes);
    let now = worst.and_then(|row| row.lag_bytes).map_or("-".into(), format::bytes);
    let trend = if unknown.is_some() { String::new() } else { direction(&values) };
    let right = format!("now {now}   {trend}");
    let inner = frame(buffer, screen, area, &format!("lag bytes, worst node{name}"), right, true);
    with_axes(buffer, screen, inner, &values, greatest, |value| format::bytes(value as u64));
}

fn frame(buffer: &mut Buffer, screen: &Screen, area: Rect, title: &str, right: String, boxed: bool) -> Rect {
    let frame = PaneFrame {
        left: Line::from(screen.text(Role::Title, title)),
        right: Line::from(screen.text(Role::Value, right)),
        boxed,
        focused: false,
    };
    screen.pane(buffer, area, frame)
}

fn window_in_words(screen: &Screen) -> String {
    format!("{} min", screen.model.chart_window() / 60)
}

/// One value per second of the window, oldest first; the last is the second of the snapshot.
fn values(screen: &Screen, of: impl Fn(&Sample) -> Option<f64>) -> Vec<Option<f64>> {
    let window = screen.model.chart_window() as usize;
    let history = &screen.status.history;
    let missing = window.saturating_sub(history.len());
    let known = history.iter().skip(history.len().saturating_sub(window));
    let measured = |sample: &Sample| of(sample).filter(|value| value.is_finite() && *value >= 0.0);
    std::iter::repeat_n(None, missing).chain(known.map(measured)).collect()
}

/// Whether the value rises, over the last minute.
fn direction(values: &[Option<f64>]) -> String {
    let recent: Vec<(f64, f64)> = values
        .iter()
        .rev()
        .take(60)
        .enumerate()
        .filter_map(|(ago, value)| value.map(|value| (-(ago as f64), value)))
        .collect();
    if recent.len() < 5 {
        return String::new();
    }
    // Least squares: one late sample must not turn the word round.
    let count = recent.len() as f64;
    let mean_x = recent.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = recent.iter().map(|(_, y)| y).sum::<f64>() / count;
    let spread: f64 = recent.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let slope = recent.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
    // Less than one percent of the level in a minute is not a trend.
    match slope {
        s if s.abs() < 1_000.0 || s.abs() * 60.0 < mean_y * 0.01 => "steady".into(),
        s if s > 0.0 => format!("rising {}", format::rate(s)),
        s => format!("falling {}", format::rate(-s)),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn greatest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// Bars with a scale at the left and the time below.
fn with_axes(
    buffer: &mut Buffer,
    screen: &Screen,
    area: Rect,
    values: &[Option<f64>],
    gather: fn(&[f64]) -> f64,
    label: impl Fn(f64) -> String,
) {
    if area.height < 3 || area.width < SCALE_WIDTH + 10 {
        return;
    }
    let [upright, tick, corner, floor] = screen.glyphs().axis;
    let plot = Rect {
        x: area.x + SCALE_WIDTH,
        y: area.y,
        width: area.width - SCALE_WIDTH - 2,
        height: area.height - 2,
    };
    if values.iter().flatten().next().is_none() {
        let y = area.y + area.height / 2;
        screen.line(buffer, Rect { y, height: 1, ..area }, screen.text(Role::Dim, "   nothing measured yet"));
        return;
    }
    let top = scale_top(
        buckets(screen, values, usize::from(plot.width), gather)
            .iter()
            .flatten()
            .copied()
            .fold(0.0, f64::max),
    );
    let dim = screen.style(Role::Dim);
    // A label on every second or third row, where the value is a round part of the top.
    let parts = [4, 3, 2, 1].into_iter().find(|parts| plot.height / parts >= 2).unwrap_or(1);
    for row in 0..plot.height {
        let y = plot.y + row;
        let labelled = (0..parts).find(|part| row == (plot.height * part).div_ceil(parts));
        let text = match labelled {
            Some(part) => {
                let value = top * f64::from(parts - part) / f64::from(parts);
                format!("{:>8} {tick}", label(value))
            }
            None => format!("{:>8} {upright}", ""),
        };
        buffer.set_stringn(area.x, y, text, usize::from(SCALE_WIDTH), dim);
    }
    let floor_line = format!("{:>8} {corner}{}", "0", floor.repeat(usize::from(plot.width)));
    buffer.set_stringn(area.x, plot.bottom(), floor_line, usize::from(area.width), dim);
    let window = screen.model.chart_window();
    let ago = |seconds: u64| {
        if seconds.is_multiple_of(60) { format!("{} min", seconds / 60) } else { format!("{seconds} s") }
    };
    let below = Rect { y: plot.bottom() + 1, height: 1, ..plot };
    let left = Line::from(screen.text(Role::Dim, format!("{} ago", ago(window))));
    screen.spread(buffer, below, left, Line::from(screen.text(Role::Dim, "now")));
    if plot.width > 40 {
        let half = ago(window / 2);
        let x = plot.x + plot.width / 2 - (half.len() / 2) as u16;
        screen.line(buffer, Rect { x, width: half.len() as u16, ..below }, screen.text(Role::Dim, half));
    }
    bars(buffer, screen, plot, values, Some(top), gather);
}

/// The bars alone.
fn bars(
    buffer: &mut Buffer,
    screen: &Screen,
    area: Rect,
    values: &[Option<f64>],
    top: Option<f64>,
    gather: fn(&[f64]) -> f64,
) {
    if area.is_empty() {
        return;
    }
    let glyphs = screen.glyphs();
    let steps = glyphs.bars.len();
    let buckets = buckets(screen, values, usize::from(area.width), gather);
    if buckets.iter().flatten().next().is_none() {
        screen.line(buffer, area, screen.text(Role::Dim, "nothing measured yet"));
        return;
    }
    let top = top.unwrap_or_else(|| buckets.iter().flatten().copied().fold(0.0, f64::max));
    let style = screen.style(Role::GaugeFill);
    for (x, value) in (area.x..area.right()).zip(buckets) {
        let Some(value) = value else { continue };
        let all_steps = usize::from(area.height) * steps;
        let filled = if top > 0.0 { (value / top * all_steps as f64).round() as usize } else { 0 };
        // A measured zero is a line on the floor, and anything above it at least one step: neither is a gap.
        if value <= 0.0 {
            buffer.set_string(x, area.bottom() - 1, "_", screen.style(Role::Dim));
            continue;
        }
        let filled = filled.clamp(1, all_steps);
        for row in 0..area.height {
            let below = usize::from(area.height - 1 - row) * steps;
            let here = filled.saturating_sub(below).min(steps);
            if here > 0 {
                buffer.set_string(x, area.y + row, glyphs.bars[here - 1], style);
            }
        }
    }
}

/// Gathers seconds into `width` buckets of whole seconds, or spreads them where there are fewer seconds than columns.
fn buckets(
    screen: &Screen,
    values: &[Option<f64>],
    width: usize,
    gather: fn(&[f64]) -> f64,
) -> Vec<Option<f64>> {
    if width == 0 || values.is_empty() {
        return Vec::new();
    }
    if values.len() <= width {
        return (0..width).map(|x| values[x * values.len() / width]).collect();
    }
    // Buckets begin at multiples of their length in absolute time.
    let per_bucket = values.len().div_ceil(width);
    let last_second = screen.status.snapshot_unix_ms / 1_000;
    let into_last = (last_second % per_bucket as u64) as usize + 1;
    let used = values.len().div_ceil(per_bucket);
    let mut buckets = vec![None; width];
    let mut end = values.len();
    for (index, bucket) in buckets.iter_mut().rev().take(used).enumerate() {
        let length = if index == 0 { into_last } else { per_bucket };
        let start = end.saturating_sub(length);
        let measured: Vec<f64> = values[start..end].iter().flatten().copied().collect();
        *bucket = (!measured.is_empty()).then(|| gather(&measured));
        end = start;
    }
    // Fewer buckets than columns: stretch them, so that the axis below tells the truth.
    let first = width - used;
    (0..width).map(|x| buckets[first + x * used / width]).collect()
}

/// The next round number: 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten.
fn scale_top(max: f64) -> f64 {
    if max <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(max.log10().floor());
    let steps = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= max * 0.999_999).unwrap_or(10.0);
    step * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_on_round_numbers() {
        assert_eq!([0.0, 0.9, 53_000.0, 812.6e6].map(scale_top), [1.0, 1.0, 60_000.0, 1e9]);
    }

    #[test]
    fn a_trend_has_a_direction_word() {
        let rising: Vec<Option<f64>> = (0..60).map(|i| Some(1e6 + 350_000.0 * f64::from(i))).collect();
        let falling: Vec<Option<f64>> = rising.iter().rev().copied().collect();
        assert_eq!(direction(&rising), "rising 0.35 MB/s");
        assert_eq!(direction(&falling), "falling 0.35 MB/s");
        assert_eq!(direction(&[Some(5.0); 60]), "steady");
        assert_eq!(direction(&[None; 60]), "");
    }
}
