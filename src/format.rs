//! One style of numbers, times and untrusted text, for every screen and every line.
//!
//! Units are decimal (1 K = 1,000 bytes), as in network rates and disk sizes, so that sizes and rates on one screen
//! divide without surprises. Two lengths exist: the *short* form for right-aligned columns (`812.6M`, `41m08`) and the
//! *spoken* form for sentences (`5.2 GB`, `24 min`). Rounding never invents a finished state: [`percent`] says 100
//! only when all of it is there.
//!
//! The odd one here is [`escape`]: keys and error texts come from servers and may hold terminal escape codes, so
//! everything a server said passes through it before it reaches a terminal.

use unicode_width::UnicodeWidthChar;

/// Bytes for a column: `0`, `812B`, `114K`, `812.6M`, `4.38G`.
pub fn bytes(value: u64) -> String {
    if value < 1_000 {
        return if value == 0 { "0".into() } else { format!("{value}B") };
    }
    scaled(value as f64, &[("K", 0), ("M", 1), ("G", 2), ("T", 2), ("P", 2)])
}

/// Bytes for a sentence: `812 bytes`, `512 MB`, `5.2 GB`.
pub fn size(value: u64) -> String {
    if value < 1_000 {
        return if value == 1 { "1 byte".into() } else { format!("{value} bytes") };
    }
    let text = scaled(value as f64, &[(" KB", 1), (" MB", 1), (" GB", 1), (" TB", 1), (" PB", 1)]);
    text.replace(".0 ", " ")
}

/// Bytes per second for a sentence: `0 B/s`, `1.4 MB/s`, `0.35 MB/s`.
///
/// From 10 KB/s on it speaks in MB/s, the unit of links and disks, so that two rates compare at a glance.
pub fn rate(bytes_per_second: f64) -> String {
    // The sum of nothing is -0.0.
    let value = bytes_per_second.max(0.0).abs();
    match value {
        v if v < 999.5 => format!("{v:.0} B/s"),
        v if v < 9_950.0 => format!("{:.1} KB/s", v / 1e3),
        v if v < 995_000.0 => format!("{:.2} MB/s", v / 1e6),
        v if v < 9.95e6 => format!("{:.1} MB/s", v / 1e6),
        v if v < 999.5e6 => format!("{:.0} MB/s", v / 1e6),
        v => format!("{:.2} GB/s", v / 1e9),
    }
}

/// Megabytes per second for a column whose heading holds the unit: `0`, `1.4`, `0.35`, `212`.
pub fn megabytes_per_second(bytes_per_second: f64) -> String {
    let value = bytes_per_second.max(0.0) / 1e6;
    match value {
        v if v < 0.005 => if v > 0.0 { "0.01" } else { "0" }.into(),
        v if v < 0.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// A count or a count per second for a column: `0`, `0.4`, `204`, `10.1k`, `31.2M`.
pub fn count(value: f64) -> String {
    let value = if value.is_finite() { value.max(0.0).abs() } else { 0.0 };
    if value < 9.95 && value.fract() != 0.0 {
        let text = format!("{value:.1}");
        return if text == "0.0" { "<0.1".into() } else { text };
    }
    if value < 999.5 {
        return format!("{value:.0}");
    }
    scaled(value, &[("k", 1), ("M", 1), ("G", 1), ("T", 1)])
}

/// A whole number with thousands separators: `31,204,117`.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Whole percent, rounded down, so that 100 means all of it; `None` while the whole is unknown or zero.
pub fn percent(part: u64, whole: u64) -> Option<u64> {
    (whole > 0).then(|| (u128::from(part.min(whole)) * 100 / u128::from(whole)) as u64)
}

/// Seconds for a column whose heading says `s`: `0.3`, `41m08`, `3h07`, `2d04h`.
pub fn duration(seconds: f64) -> String {
    let (seconds, whole) = sanitize(seconds);
    match whole {
        _ if seconds < 59.95 => format!("{seconds:.1}"),
        0..3_600 => format!("{}m{:02}", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{:02}", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// A duration for a sentence, to the second: `0.3 s`, `3 s`, `6m41s`, `1h05m`, `2d04h`.
pub fn spoken_duration(seconds: f64) -> String {
    let (seconds, whole) = sanitize(seconds);
    match whole {
        _ if seconds < 0.95 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3_600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{:02}m", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// A forecast, no more exact than a forecast can be: `50 s`, `24 min`, `35 h`, `12 days`.
pub fn forecast(seconds: f64) -> String {
    let (_, whole) = sanitize(seconds);
    match whole {
        0..90 => format!("{whole} s"),
        90..7_200 => format!("{} min", (whole + 30) / 60),
        7_200..259_200 => format!("{} h", (whole + 1_800) / 3_600),
        _ => format!("{} days", (whole + 43_200) / 86_400),
    }
}

/// Time since the start, as a stop-watch shows it: `00:41:12`, `2d 03:00:09`.
pub fn elapsed(seconds: f64) -> String {
    let whole = if seconds.is_finite() { seconds.max(0.0) as u64 } else { 0 };
    let (days, clock) = (whole / 86_400, clock_utc(whole % 86_400 * 1_000));
    if days == 0 { clock } else { format!("{days}d {clock}") }
}

/// Time of day in UTC: `03:12:07`.
pub fn clock_utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds % 3_600 / 60, seconds % 60)
}

/// Date and time in UTC: `2026-03-02 03:12:07`.
pub fn date_time_utc(unix_ms: u64) -> String {
    // humantime refuses years past 9999: such a stamp is damaged, and the time of day is still worth showing.
    let whole = unix_ms / 1_000;
    if whole >= 253_402_300_800 {
        return clock_utc(unix_ms);
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(whole);
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").replace('Z', "")
}

/// Untrusted text made harmless and cut to `max_width` terminal columns; what was cut ends in `..`.
///
/// Control bytes, bytes that are not UTF-8 and C1 controls become `\x1b`; line breaks and tabs `\n`, `\r`, `\t`;
/// invisible characters that turn or hide text (bidi marks, zero-width ones) `\u{202e}`. A backslash stays as it is,
/// so escaping escaped text changes nothing. Work is bounded by `max_width`, not by the length of `text`.
pub fn escape(text: impl AsRef<[u8]>, max_width: usize) -> String {
    let mut shown = Cut::new(max_width, "..");
    let mut rest = text.as_ref();
    while !rest.is_empty() && !shown.is_full {
        // The longest character has four bytes; looking at a short window keeps the cost away from the text's length.
        let window = rest.get(..4).unwrap_or(rest);
        let valid = match std::str::from_utf8(window) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&window[..error.valid_up_to()]).unwrap_or_default(),
        };
        match valid.chars().next() {
            Some(character) => {
                shown.push_escaped(character);
                rest = &rest[character.len_utf8()..];
            }
            None => {
                shown.push_piece(&format!("\\x{:02x}", rest[0]));
                rest = &rest[1..];
            }
        }
    }
    shown.text
}

/// Text that is harmless already, cut to `max_width` columns; what was cut ends in `mark`.
pub fn cut(text: &str, max_width: usize, mark: &str) -> String {
    let mut shown = Cut::new(max_width, mark);
    for character in text.chars() {
        if shown.is_full {
            break;
        }
        shown.push_escaped(character);
    }
    shown.text
}

/// Columns that `text` takes on a terminal.
pub fn width(text: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(text)
}

/// Text that grows until it is full and then ends in a mark, never wider than its limit.
struct Cut<'a> {
    text: String,
    width: usize,
    max_width: usize,
    mark: &'a str,
    /// Length of `text` and its width at the last place where the mark still fits behind it.
    mark_at: (usize, usize),
    is_full: bool,
}

impl<'a> Cut<'a> {
    fn new(max_width: usize, mark: &'a str) -> Self {
        let mark = if width(mark) <= max_width { mark } else { "" };
        Cut { text: String::new(), width: 0, max_width, mark, mark_at: (0, 0), is_full: false }
    }

    fn push_escaped(&mut self, character: char) {
        match character {
            '\n' => self.push_piece("\\n"),
            '\r' => self.push_piece("\\r"),
            '\t' => self.push_piece("\\t"),
            c if c.is_control() => self.push_piece(&format!("\\x{:02x}", u32::from(c))),
            c if is_invisible(c) => self.push_piece(&format!("\\u{{{:x}}}", u32::from(c))),
            c => self.push_piece(c.encode_utf8(&mut [0; 4])),
        }
    }

    /// Adds a piece that must not be split.
    fn push_piece(&mut self, piece: &str) {
        let piece_width = width(piece);
        if self.width + piece_width > self.max_width {
            self.text.truncate(self.mark_at.0);
            self.text.push_str(self.mark);
            self.width = self.mark_at.1 + width(self.mark);
            self.is_full = true;
            return;
        }
        self.text.push_str(piece);
        self.width += piece_width;
        if self.width + width(self.mark) <= self.max_width {
            self.mark_at = (self.text.len(), self.width);
        }
    }
}

/// Characters that take no column of their own or turn the direction of what follows. Combining marks are among
/// them: alone they would join the neighbouring column's text.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{ad}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
        || character.width().unwrap_or(0) == 0
}

/// The value in the first unit that keeps it under 1,000, with that unit's number of decimals.
fn scaled(value: f64, units: &[(&str, usize)]) -> String {
    let mut text = String::new();
    let mut scaled = value;
    for &(unit, decimals) in units {
        scaled /= 1_000.0;
        // A single leading digit without decimals would hide a factor of nearly two (1,499 and 1,000).
        let decimals = if decimals == 0 && scaled < 9.95 { 1 } else { decimals };
        text = format!("{scaled:.decimals$}{unit}");
        // Compare as rounded: 999,960,000 is `1.00G`, not `1000.0M`.
        let shown = 10f64.powi(decimals as i32);
        if (scaled * shown).round() / shown < 1_000.0 {
            break;
        }
    }
    text
}

/// Seconds without NaN or a negative, and the same rounded to whole seconds.
fn sanitize(seconds: f64) -> (f64, u64) {
    let seconds = if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
    (seconds, seconds.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_have_one_style() {
        let shown: Vec<String> = [
            0,
            1,
            812,
            1_000,
            1_499,
            70_000,
            114_200,
            999_400,
            999_600,
            812_600_000,
            999_960_000,
            4_380_000_000,
        ]
        .into_iter()
        .map(bytes)
        .collect();
        assert_eq!(
            shown,
            ["0", "1B", "812B", "1.0K", "1.5K", "70K", "114K", "999K", "1.0M", "812.6M", "1.00G", "4.38G"]
        );
        assert_eq!(bytes(u64::MAX), "18446.74P");
    }

    #[test]
    fn sizes_and_rates_read_as_sentences() {
        assert_eq!(
            [size(1), size(999), size(5_200_000_000), size(50_000_000_000)],
            ["1 byte", "999 bytes", "5.2 GB", "50 GB"]
        );
        assert_eq!(
            [rate(0.0), rate(4_200.0), rate(350_000.0), rate(1.4e6), rate(50e6), rate(1.25e9)],
            ["0 B/s", "4.2 KB/s", "0.35 MB/s", "1.4 MB/s", "50 MB/s", "1.25 GB/s"]
        );
        assert_eq!(
            [megabytes_per_second(0.0), megabytes_per_second(12.0), megabytes_per_second(1.4e6)],
            ["0", "0.01", "1.4"]
        );
    }

    #[test]
    fn counts_are_short_and_never_round_to_zero() {
        let shown: Vec<String> =
            [0.0, 0.01, 0.4, 7.0, 204.0, 999.7, 10_100.0, 53_000.0, 31.2e6].into_iter().map(count).collect();
        assert_eq!(shown, ["0", "<0.1", "0.4", "7", "204", "1.0k", "10.1k", "53.0k", "31.2M"]);
        assert_eq!([count(f64::NAN), count(-0.0), rate(-0.0)], ["0", "0", "0 B/s"]);
    }

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!(
            [number(0), number(999), number(1_204), number(31_204_117)],
            ["0", "999", "1,204", "31,204,117"]
        );
    }

    #[test]
    fn percent_is_full_only_when_all_is_there() {
        assert_eq!(percent(0, 0), None);
        assert_eq!(percent(999_999, 1_000_000), Some(99));
        assert_eq!(percent(2, 1), Some(100));
        assert_eq!(percent(u64::MAX, u64::MAX), Some(100));
    }

    #[test]
    fn durations_fit_their_place() {
        let column: Vec<String> = [0.3, 59.94, 59.96, 2_468.0, 11_220.0, 187_200.0].map(duration).into();
        assert_eq!(column, ["0.3", "59.9", "1m00", "41m08", "3h07", "2d04h"]);
        let sentence: Vec<String> = [0.3, 3.0, 401.0, 1_230.0, 3_900.0].map(spoken_duration).into();
        assert_eq!(sentence, ["0.3 s", "3 s", "6m41s", "20m30s", "1h05m"]);
        let forecasts: Vec<String> = [50.0, 1_440.0, 126_000.0, 1e6].map(forecast).into();
        assert_eq!(forecasts, ["50 s", "24 min", "35 h", "12 days"]);
        assert_eq!([elapsed(2_472.9), elapsed(183_609.0)], ["00:41:12", "2d 03:00:09"]);
        assert_eq!(duration(f64::INFINITY), "0.0");
    }

    #[test]
    fn clocks_are_utc() {
        assert_eq!(clock_utc(1_772_421_127_000), "03:12:07");
        assert_eq!(date_time_utc(1_772_421_127_000), "2026-03-02 03:12:07");
        assert_eq!(date_time_utc(u64::MAX), clock_utc(u64::MAX));
    }

    #[test]
    fn control_bytes_become_visible() {
        assert_eq!(escape(b"a\x1b[2J\x00\n\xff\xc3", 80), "a\\x1b[2J\\x00\\n\\xff\\xc3");
        assert_eq!(escape("\u{202e}abc\u{9b}31m\u{200b}", 80), "\\u{202e}abc\\x9b31m\\u{200b}");
        assert_eq!(escape("naïve 日本 key", 80), "naïve 日本 key");
    }

    #[test]
    fn a_cut_is_marked_and_splits_no_character() {
        assert_eq!(escape("abcdef", 6), "abcdef");
        assert_eq!(escape("abcdefg", 6), "abcd..");
        assert_eq!(escape("日本語", 5), "日..");
        assert_eq!(escape("ab\x1b", 4), "ab..");
        assert_eq!(escape("abc", 1), "a");
        assert_eq!(cut("8f3a41c2d09e", 9, "…"), "8f3a41c2…");
    }

    proptest! {
        #[test]
        fn escaped_text_is_printable_fits_and_escapes_to_itself(text: Vec<u8>, limit in 0usize..40) {
            let shown = escape(&text, limit);
            prop_assert!(width(&shown) <= limit);
            prop_assert!(!shown.chars().any(|c| c.is_control() || is_invisible(c)));
            prop_assert_eq!(escape(&shown, limit), shown);
        }
    }
}
