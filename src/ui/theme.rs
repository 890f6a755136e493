//! How things look: roles instead of colours, and two complete sets of glyphs.
//!
//! A view never names a colour; it names what a thing *is* ([`Role`]) and the palette answers. Colour never carries
//! meaning alone: whatever is coloured also has a word or a mark.
//!
//! The odd one is [`Palette::Mono`]: under `NO_COLOR` crossterm 0.29 drops colours by writing an empty SGR, which also
//! resets REVERSED and so hides the selected row. Therefore `mono` sets no colour at all, only attributes.

use ratatui::style::{Color, Modifier, Style};

/// What a piece of text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Heading of a pane or a column.
    Title,
    /// Name of a value.
    Label,
    /// A value, an ordinary word.
    Value,
    /// Less important, unknown, or not yet begun.
    Dim,
    /// Fine.
    Ok,
    /// Worth a look; nothing is lost.
    Warn,
    /// A person must act.
    Bad,
    /// The row under the cursor.
    Selected,
    /// The filled part of a gauge or chart.
    GaugeFill,
    /// What has arrived but is not applied yet.
    GaugeArrived,
    /// The empty part of a gauge.
    GaugeRest,
    /// A key that works.
    KeyHint,
    /// A key that does nothing now.
    KeyDisabled,
    /// Frames and rules.
    Border,
    /// Frame of the pane that has the focus.
    BorderFocused,
}

/// A set of styles, one per role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Palette {
    /// The terminal's own 16 colours: right on dark and on light backgrounds.
    #[default]
    Ansi16,
    /// Attributes only, no colour.
    Mono,
    /// 24-bit colours, on request.
    Truecolor,
}

impl Palette {
    /// The palette after this one, for the theme key.
    pub fn next(self) -> Palette {
        match self {
            Palette::Ansi16 => Palette::Mono,
            Palette::Mono => Palette::Truecolor,
            Palette::Truecolor => Palette::Ansi16,
        }
    }

    /// Name for the screen and the command line.
    pub fn name(self) -> &'static str {
        match self {
            Palette::Ansi16 => "ansi16",
            Palette::Mono => "mono",
            Palette::Truecolor => "truecolor",
        }
    }

    /// The style of a role.
    pub fn style(self, role: Role) -> Style {
        let style = Style::new();
        let attributes = match role {
            Role::Title | Role::Bad | Role::KeyHint | Role::BorderFocused => style.bold(),
            Role::Dim | Role::GaugeRest | Role::KeyDisabled => style.add_modifier(Modifier::DIM),
            Role::Selected => style.reversed(),
            _ => style,
        };
        let colour = match self {
            Palette::Mono => {
                return match role {
                    Role::Bad => attributes.underlined(),
                    Role::Warn => attributes.bold(),
                    Role::Border => attributes.add_modifier(Modifier::DIM),
                    _ => attributes,
                };
            }
            Palette::Ansi16 => match role {
                Role::Label | Role::KeyHint | Role::GaugeFill | Role::GaugeArrived | Role::BorderFocused => {
                    Color::Cyan
                }
                Role::Ok => Color::Green,
                Role::Warn => Color::Yellow,
                Role::Bad => Color::Red,
                _ => Color::Reset,
            },
            Palette::Truecolor => match role {
                Role::Label => Color::Rgb(0x56, 0x9c, 0xb8),
                Role::KeyHint | Role::BorderFocused => Color::Rgb(0x2f, 0xa3, 0xc7),
                Role::GaugeFill | Role::GaugeArrived => Color::Rgb(0x3d, 0x9a, 0xd1),
                Role::Ok => Color::Rgb(0x3f, 0xa3, 0x4d),
                Role::Warn => Color::Rgb(0xc9, 0x8a, 0x0c),
                Role::Bad => Color::Rgb(0xd9, 0x3f, 0x3f),
                Role::Border | Role::GaugeRest => Color::Rgb(0x80, 0x80, 0x80),
                _ => Color::Reset,
            },
        };
        if colour == Color::Reset { attributes } else { attributes.fg(colour) }
    }
}

/// Every glyph that is not plain ASCII in one of the two sets.
#[derive(Debug, PartialEq, Eq)]
pub struct Glyphs {
    /// A condition that is met.
    pub yes: &'static str,
    /// A condition that is not met, or a failure.
    pub no: &'static str,
    /// A step that has ended well.
    pub done: &'static str,
    /// A step that goes on now.
    pub active: &'static str,
    /// A step that has not begun.
    pub pending: &'static str,
    /// Between the steps of the timeline.
    pub step: &'static str,
    /// Between two reasons.
    pub dot: &'static str,
    /// In front of the reason below a row.
    pub because: &'static str,
    /// Behind text that was cut.
    pub ellipsis: &'static str,
    /// Sorted with the biggest first.
    pub descending: &'static str,
    /// Sorted with the smallest first.
    pub ascending: &'static str,
    /// The up and down keys.
    pub up_down: &'static str,
    /// Plain frame.
    pub frame: Frame,
    /// Frame of the pane that has the focus.
    pub focused: Frame,
    /// Gauge cells from one part to full.
    pub gauge: &'static [&'static str],
    /// Gauge cell of what has arrived but is not applied yet.
    pub gauge_arrived: &'static str,
    /// Empty gauge cell.
    pub gauge_rest: &'static str,
    /// Chart cells from the lowest step to full.
    pub bars: &'static [&'static str],
    /// Axis of a chart: upright, tick on the upright, corner, floor.
    pub axis: [&'static str; 4],
    /// The one-cell mark that shows that snapshots arrive.
    pub activity: &'static [&'static str],
}

/// The six pieces of a box.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// Level line.
    pub horizontal: &'static str,
    /// Upright line.
    pub vertical: &'static str,
    /// Top left, top right, bottom left, bottom right.
    pub corners: [&'static str; 4],
}

/// For terminals that speak UTF-8.
pub static UNICODE: Glyphs = Glyphs {
    yes: "✔",
    no: "✘",
    done: "✔ ",
    active: "▶ ",
    pending: "○ ",
    step: "─",
    dot: "·",
    because: "└ ",
    ellipsis: "…",
    descending: "▼",
    ascending: "▲",
    up_down: "↑↓",
    frame: Frame { horizontal: "─", vertical: "│", corners: ["┌", "┐", "└", "┘"] },
    focused: Frame { horizontal: "━", vertical: "┃", corners: ["┏", "┓", "┗", "┛"] },
    gauge: &["▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"],
    gauge_arrived: "▒",
    gauge_rest: "░",
    bars: &["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"],
    axis: ["│", "┤", "└", "─"],
    activity: &["⠋", "⠙", "⠸", "⠴", "⠦", "⠇"],
};

/// For everything else: complete, so that no box drawing of ambiguous width is ever needed.
pub static ASCII: Glyphs = Glyphs {
    yes: "ok",
    no: "!!",
    done: "ok ",
    active: "",
    pending: "",
    step: ">",
    dot: ";",
    because: "- ",
    ellipsis: "..",
    descending: "v",
    ascending: "^",
    up_down: "Up/Dn",
    frame: Frame { horizontal: "-", vertical: "|", corners: ["+", "+", "+", "+"] },
    focused: Frame { horizontal: "=", vertical: "|", corners: ["+", "+", "+", "+"] },
    gauge: &["#"],
    gauge_arrived: "=",
    gauge_rest: "-",
    bars: &[".", ":", "|"],
    axis: ["|", "+", "+", "-"],
    activity: &["|", "/", "-", "\\"],
};

/// Palette and glyphs together.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Styles.
    pub palette: Palette,
    /// Glyphs.
    pub glyphs: &'static Glyphs,
}

impl Look {
    /// Chooses a look from what was asked for and from the environment, where `None` leaves the choice to it.
    ///
    /// `NO_COLOR` counts when it is set and not empty (no-color.org); Unicode needs a UTF-8 locale and a `TERM` that
    /// is not `linux` or `dumb`.
    pub fn choose(
        palette: Option<Palette>,
        ascii: Option<bool>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Look {
        let set = |name: &str| environment(name).filter(|value| !value.is_empty());
        let palette =
            palette.unwrap_or(if set("NO_COLOR").is_some() { Palette::Mono } else { Palette::Ansi16 });
        let ascii = ascii.unwrap_or_else(|| {
            let locale =
                set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
            let locale = locale.to_ascii_lowercase();
            let speaks_utf8 = locale.contains("utf-8") || locale.contains("utf8");
            let term = set("TERM").unwrap_or_default();
            !speaks_utf8 || matches!(term.as_str(), "" | "linux" | "dumb")
        });
        Look { palette, glyphs: if ascii { &ASCII } else { &UNICODE } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(variables: &[(&str, &str)]) -> (Palette, bool) {
        let look = Look::choose(None, None, |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        });
        (look.palette, *look.glyphs == ASCII)
    }

    #[test]
    fn the_environment_chooses_palette_and_glyphs() {
        assert_eq!(chosen(&[("LANG", "C.UTF-8"), ("TERM", "xterm")]), (Palette::Ansi16, false));
        assert_eq!(
            chosen(&[("LANG", "en_US.utf8"), ("TERM", "xterm"), ("NO_COLOR", "1")]),
            (Palette::Mono, false)
        );
        assert_eq!(
            chosen(&[("LANG", "C.UTF-8"), ("TERM", "xterm"), ("NO_COLOR", "")]),
            (Palette::Ansi16, false)
        );
        assert_eq!(chosen(&[("LANG", "C.UTF-8"), ("TERM", "linux")]), (Palette::Ansi16, true));
        assert_eq!(
            chosen(&[("LANG", "C.UTF-8"), ("LC_ALL", "C"), ("TERM", "xterm")]),
            (Palette::Ansi16, true)
        );
        assert_eq!(chosen(&[]), (Palette::Ansi16, true));
    }

    #[test]
    fn mono_never_sets_a_colour() {
        for role in
            [Role::Title, Role::Ok, Role::Warn, Role::Bad, Role::Selected, Role::KeyHint, Role::GaugeFill]
        {
            let style = Palette::Mono.style(role);
            assert_eq!((style.fg, style.bg), (None, None), "{role:?}");
        }
        assert!(Palette::Mono.style(Role::Selected).add_modifier.contains(Modifier::REVERSED));
    }

    #[test]
    fn the_ascii_set_is_ascii() {
        let all = format!("{ASCII:?}");
        assert!(all.is_ascii(), "{all}");
    }
}
