//! Where everything stands: a pure function from the size of the screen and what wants to be shown to areas.
//!
//! ```text
//!  compact >= 60x15     normal >= 110x30        wide >= 180x45
//!  header               header                  header
//!  timeline             timeline                timeline
//!  verdict              verdict                 verdict
//!  banner (0..)         banner (0..)            banner (0..)
//!  -- sources ---       +- sources ---------+   +- sources ----------------+
//!  -- writers ---       +- writers -++chart-+   +- writers ----++ rejected-+
//!  -- chart -----       |           ||      |   +- chart ------++ lag -----+
//!  -- events ----       +- events ----------+   +- events ------++ details-+
//!  rule                 footer, 2 lines         info, rule, footer
//!  footer
//! ```
//!
//! When rows are scarce panes go in the order details, rejected, lag chart, throughput chart, writers; the nodes and
//! three events stay. Below the smallest size there are no areas at all and the screen says so.

use ratatui::layout::Rect;

/// Smallest screen with panes (columns, rows).
pub const SMALLEST: (u16, u16) = (60, 15);

/// One of the four layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// Under 60x15: a message, the state and the verdict.
    TooSmall,
    /// Panes without side borders.
    Compact,
    /// Boxes in two columns.
    Normal,
    /// All columns and both charts.
    Wide,
}

impl Size {
    /// The layout for a screen of `width` columns and `height` rows.
    pub fn of(width: u16, height: u16) -> Size {
        match (width, height) {
            (180.., 45..) => Size::Wide,
            (110.., 30..) => Size::Normal,
            (60.., 15..) => Size::Compact,
            _ => Size::TooSmall,
        }
    }
}

/// What wants to be shown, in rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// Lines of the banner (warnings, outcome, STALE).
    pub banner: u16,
    /// Rows of the nodes table, reasons below rows included.
    pub sources: u16,
    /// Rows of the writers table, reasons below rows included.
    pub writers: u16,
    /// Lines of the rejected table.
    pub rejected: u16,
}

/// Where each part goes. An empty area means: not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Areas {
    /// The layout.
    pub size: Size,
    /// State, from where to where, clock.
    pub header: Rect,
    /// Phase timeline.
    pub timeline: Rect,
    /// May I cut over, and if not, why?
    pub verdict: Rect,
    /// What must not be forgotten.
    pub banner: Rect,
    /// Source nodes.
    pub sources: Rect,
    /// Destination nodes.
    pub writers: Rect,
    /// Refused and dropped entries.
    pub rejected: Rect,
    /// Throughput chart.
    pub throughput: Rect,
    /// Lag chart.
    pub lag: Rect,
    /// Operator events.
    pub events: Rect,
    /// Details of the selected row.
    pub details: Rect,
    /// Spool, memory, log file (wide only).
    pub info: Rect,
    /// Line above the footer; a notice takes its place (compact and wide).
    pub rule: Rect,
    /// Keys.
    pub footer: Rect,
    /// Everything between verdict and footer: where overlays are drawn.
    pub body: Rect,
}

/// Rows that the nodes pane needs besides its rows: title, heading, total, RDB gauge, spool (and no frame).
const COMPACT_SOURCES_EXTRA: u16 = 5;
/// Frame (2), heading, rule, total, spool.
const BOXED_SOURCES_EXTRA: u16 = 6;

/// Divides the screen.
pub fn areas(width: u16, height: u16, wishes: Wishes) -> Areas {
    let size = Size::of(width, height);
    let mut rows = Cutter { width, y: 0, bottom: height };
    let none = Rect::default();
    let mut areas = Areas {
        size,
        header: none,
        timeline: none,
        verdict: none,
        banner: none,
        sources: none,
        writers: none,
        rejected: none,
        throughput: none,
        lag: none,
        events: none,
        details: none,
        info: none,
        rule: none,
        footer: none,
        body: Rect::new(0, 0, width, height),
    };
    if size == Size::TooSmall {
        return areas;
    }
    areas.header = rows.top(1);
    areas.timeline = rows.top(1);
    areas.verdict = rows.top(1);
    areas.footer = rows.bottom(if size == Size::Normal { 2 } else { 1 });
    if size != Size::Normal {
        areas.rule = rows.bottom(1);
    }
    areas.body = rows.rest();
    // A banner never pushes the nodes off the screen.
    areas.banner = rows.top(wishes.banner.min((height - 9) / 2).min(height - 13));
    match size {
        Size::TooSmall => {}
        Size::Compact => compact(&mut areas, rows, wishes),
        Size::Normal => normal(&mut areas, rows, wishes),
        Size::Wide => wide(&mut areas, rows, wishes),
    }
    areas
}

fn compact(areas: &mut Areas, mut rows: Cutter, wishes: Wishes) {
    // Least and most rows, in the order of importance; a pane whose least does not fit is not shown.
    let [events, sources, writers, chart] = share(
        rows.height(),
        [
            Wish { least: 4, most: 9, must: true },
            Wish {
                least: 3 + wishes.sources.clamp(1, 3),
                most: COMPACT_SOURCES_EXTRA + wishes.sources.max(1),
                must: true,
            },
            Wish { least: 1 + wishes.writers.clamp(1, 3), most: 1 + wishes.writers.max(1), must: false },
            Wish { least: 2, most: 2, must: false },
        ],
    );
    areas.sources = rows.top(sources);
    areas.writers = rows.top(writers);
    let spare = rows.height() - events - chart;
    // A tall narrow screen: a real chart before more old events.
    let chart = if chart > 0 { chart + spare.min(4) } else { 0 };
    areas.throughput = rows.top(chart);
    areas.events = rows.rest();
}

fn normal(areas: &mut Areas, mut rows: Cutter, wishes: Wishes) {
    let [events, sources, middle] = share(
        rows.height(),
        [
            Wish { least: 5, most: 10, must: true },
            Wish {
                least: BOXED_SOURCES_EXTRA + wishes.sources.clamp(1, 4),
                most: BOXED_SOURCES_EXTRA + wishes.sources.max(1),
                must: true,
            },
            Wish { least: 6 + wishes.writers.clamp(1, 3), most: (6 + wishes.writers).max(11), must: false },
        ],
    );
    areas.sources = rows.top(sources);
    let mut middle = rows.top(middle + (rows.height() - events - middle) / 2);
    (areas.writers, areas.throughput) = middle_split(&mut middle, 11, 20);
    areas.events = rows.rest();
}

fn wide(areas: &mut Areas, mut rows: Cutter, wishes: Wishes) {
    areas.info = rows.bottom(1);
    let side = wishes.writers.max(wishes.rejected).max(3);
    let [events, sources, writers, charts] = share(
        rows.height(),
        [
            Wish { least: 5, most: 14, must: true },
            Wish {
                least: BOXED_SOURCES_EXTRA + wishes.sources.clamp(1, 6),
                most: BOXED_SOURCES_EXTRA + wishes.sources.max(1),
                must: true,
            },
            Wish { least: 3 + side.min(4), most: 4 + side, must: false },
            Wish { least: 8, most: 14, must: false },
        ],
    );
    areas.sources = rows.top(sources);
    let mut side_by_side = rows.top(writers);
    (areas.writers, areas.rejected) = middle_split(&mut side_by_side, 7, 12);
    let spare = rows.height() - events - charts;
    let mut both_charts = rows.top(if charts > 0 { charts + spare / 2 } else { 0 });
    (areas.throughput, areas.lag) = middle_split(&mut both_charts, 1, 2);
    let mut last = rows.rest();
    let details = 62.min(last.width / 3);
    areas.events = Rect { width: last.width - details, ..last };
    last.x += areas.events.width;
    areas.details = Rect { width: details, ..last };
}

/// Left and right part of an area, the left one `part / whole` wide.
fn middle_split(area: &mut Rect, part: u16, whole: u16) -> (Rect, Rect) {
    if area.height == 0 {
        return (Rect::default(), Rect::default());
    }
    let left = area.width * part / whole;
    (Rect { width: left, ..*area }, Rect { x: area.x + left, width: area.width - left, ..*area })
}

/// How many rows a pane needs at least and can use at most.
#[derive(Debug, Clone, Copy)]
struct Wish {
    least: u16,
    most: u16,
    must: bool,
}

/// Divides rows: everybody's least first, in order; a pane that cannot have it gets nothing, unless it must be there,
/// then it takes what is left. What remains fills up to everybody's most, from the second pane on and the first last.
fn share<const N: usize>(total: u16, wishes: [Wish; N]) -> [u16; N] {
    let mut rest = total;
    let mut given = [0; N];
    for (given, wish) in given.iter_mut().zip(wishes) {
        if wish.least <= rest || wish.must {
            *given = wish.least.min(rest);
            rest -= *given;
        }
    }
    for index in (1..N).chain([0]) {
        if given[index] > 0 {
            let more = (wishes[index].most.saturating_sub(given[index])).min(rest);
            given[index] += more;
            rest -= more;
        }
    }
    given
}

/// Cuts rows off a column of the screen.
#[derive(Debug, Clone, Copy)]
struct Cutter {
    width: u16,
    y: u16,
    bottom: u16,
}

impl Cutter {
    fn height(&self) -> u16 {
        self.bottom - self.y
    }

    fn top(&mut self, height: u16) -> Rect {
        let height = height.min(self.height());
        let area = Rect::new(0, self.y, self.width, height);
        self.y += height;
        area
    }

    fn bottom(&mut self, height: u16) -> Rect {
        let height = height.min(self.height());
        self.bottom -= height;
        Rect::new(0, self.bottom, self.width, height)
    }

    fn rest(&self) -> Rect {
        Rect::new(0, self.y, self.width, self.height())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THREE_NODES: Wishes = Wishes { banner: 0, sources: 3, writers: 3, rejected: 2 };

    fn named(areas: &Areas) -> [(char, Rect); 13] {
        [
            ('h', areas.header),
            ('t', areas.timeline),
            ('v', areas.verdict),
            ('!', areas.banner),
            ('S', areas.sources),
            ('W', areas.writers),
            ('R', areas.rejected),
            ('C', areas.throughput),
            ('L', areas.lag),
            ('E', areas.events),
            ('D', areas.details),
            ('i', areas.info),
            ('_', areas.rule),
        ]
    }

    /// The screen in letters: a row of the drawing per row of the screen, a letter per ten columns.
    fn drawn(width: u16, height: u16, wishes: Wishes) -> Vec<String> {
        let areas = areas(width, height, wishes);
        let mut rows = vec![vec!['.'; usize::from(width / 10)]; usize::from(height)];
        for (letter, area) in named(&areas).into_iter().chain([('k', areas.footer)]) {
            for y in area.y..area.bottom() {
                for x in (area.x..area.right()).filter(|x| x % 10 == 5) {
                    assert_eq!(
                        rows[usize::from(y)][usize::from(x / 10)],
                        '.',
                        "{letter} overlaps at {x},{y}"
                    );
                    rows[usize::from(y)][usize::from(x / 10)] = letter;
                }
            }
        }
        rows.into_iter().map(String::from_iter).collect()
    }

    /// Equal rows in a row are written once, with their number.
    fn folded(rows: &[String]) -> Vec<String> {
        rows.chunk_by(|a, b| a == b).map(|same| format!("{} {}", same.len(), same[0])).collect()
    }

    #[test]
    fn eighty_by_twenty_four_is_the_mock_up() {
        assert_eq!(
            folded(&drawn(80, 24, THREE_NODES)),
            [
                "1 hhhhhhhh",
                "1 tttttttt",
                "1 vvvvvvvv",
                "8 SSSSSSSS",
                "4 WWWWWWWW",
                "2 CCCCCCCC",
                "5 EEEEEEEE",
                "1 ________",
                "1 kkkkkkkk",
            ]
        );
    }

    #[test]
    fn larger_screens_have_columns() {
        assert_eq!(
            folded(&drawn(120, 35, Wishes { banner: 1, ..THREE_NODES })),
            [
                "1 hhhhhhhhhhhh",
                "1 tttttttttttt",
                "1 vvvvvvvvvvvv",
                "1 !!!!!!!!!!!!",
                "9 SSSSSSSSSSSS",
                "11 WWWWWWWCCCCC",
                "9 EEEEEEEEEEEE",
                "2 kkkkkkkkkkkk",
            ]
        );
        assert_eq!(
            folded(&drawn(200, 50, THREE_NODES)),
            [
                "1 hhhhhhhhhhhhhhhhhhhh",
                "1 tttttttttttttttttttt",
                "1 vvvvvvvvvvvvvvvvvvvv",
                "9 SSSSSSSSSSSSSSSSSSSS",
                "7 WWWWWWWWWWWWRRRRRRRR",
                "14 CCCCCCCCCCLLLLLLLLLL",
                "14 EEEEEEEEEEEEEEDDDDDD",
                "1 iiiiiiiiiiiiiiiiiiii",
                "1 ____________________",
                "1 kkkkkkkkkkkkkkkkkkkk",
            ]
        );
    }

    #[test]
    fn the_smallest_screen_keeps_nodes_and_three_events() {
        assert_eq!(
            folded(&drawn(60, 15, THREE_NODES)),
            ["1 hhhhhh", "1 tttttt", "1 vvvvvv", "6 SSSSSS", "4 EEEEEE", "1 ______", "1 kkkkkk"]
        );
    }

    #[test]
    fn too_small_has_no_areas() {
        for (width, height) in [(59, 15), (60, 14), (1, 1), (0, 0)] {
            let areas = areas(width, height, THREE_NODES);
            assert_eq!(areas.size, Size::TooSmall);
            assert!(named(&areas).iter().all(|(_, area)| area.is_empty()));
        }
    }

    proptest! {
        #[test]
        fn areas_never_overlap_nor_leave_the_screen(
            width in 60u16..=400, height in 15u16..=200,
            banner in 0u16..8, sources in 0u16..300, writers in 0u16..300, rejected in 0u16..30,
        ) {
            let areas = areas(width, height, Wishes { banner, sources, writers, rejected });
            let all: Vec<(char, Rect)> =
                named(&areas).into_iter().chain([('k', areas.footer)]).filter(|(_, area)| !area.is_empty()).collect();
            let screen = Rect::new(0, 0, width, height);
            for (index, (letter, area)) in all.iter().enumerate() {
                prop_assert_eq!(area.intersection(screen), *area, "{}", letter);
                for (other, theirs) in &all[index + 1..] {
                    prop_assert!(!area.intersects(*theirs), "{} and {}", letter, other);
                }
            }
            // Nodes and three events (with their frame) are there whatever happens.
            prop_assert!(areas.sources.height >= 4);
            prop_assert!(areas.events.height >= 4);
        }
    }
}
