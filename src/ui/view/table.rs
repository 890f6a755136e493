//! Tables with fixed widths: numbers to the right, the least important columns dropped where the screen is narrow,
//! rows scrolled so that the selected one is in sight, and a row's reason in words below it where there is room.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::Screen;
use crate::format;
use crate::ui::rows::Severity;
use crate::ui::theme::Role;

/// A column; its cells come in the same place of every row.
#[derive(Clone, Copy)]
pub(super) struct Column {
    /// Heading.
    pub title: &'static str,
    /// Columns of the screen, without the gap before it.
    pub width: u16,
    /// True: numbers, set to the right.
    pub right: bool,
    /// Smaller numbers stay longer as the screen narrows.
    pub priority: u8,
    /// May take this much more width where there is some to spare.
    pub grow: u16,
    /// True: holds a gauge, which would tell the opposite if it were reversed with its row.
    pub gauge: bool,
}

impl Column {
    pub(super) const fn left(title: &'static str, width: u16, priority: u8) -> Column {
        Column { title, width, right: false, priority, grow: 0, gauge: false }
    }

    pub(super) const fn right(title: &'static str, width: u16, priority: u8) -> Column {
        Column { title, width, right: true, priority, grow: 0, gauge: false }
    }

    pub(super) const fn gauge(mut self) -> Column {
        self.gauge = true;
        self
    }

    pub(super) const fn grow(mut self, grow: u16) -> Column {
        self.grow = grow;
        self
    }
}

/// The contents of a row, a list of spans per column.
pub(super) type Cells = Vec<Vec<Span<'static>>>;

/// One row: its node, how it is, and why.
pub(super) struct Row<'a> {
    pub address: String,
    pub severity: Severity,
    pub selected: bool,
    pub reason: Option<String>,
    /// Made only for the rows that are in sight.
    pub cells: Box<dyn Fn(&Screen) -> Cells + 'a>,
}

/// All rows of a table.
pub(super) struct Rows<'a>(pub Vec<Row<'a>>);

/// What stands on one line of the table.
enum Shown<'r> {
    Row(&'r Row<'r>),
    Reason(&'r Row<'r>, &'r str),
}

impl Rows<'_> {
    /// Lines that the rows would like to have, reasons included.
    pub(super) fn lines(&self) -> usize {
        self.0.len() + self.0.iter().filter(|row| row.reason.is_some()).count()
    }

    /// The address at a line of an area that shows these rows.
    pub(super) fn address_at(&self, height: u16, line: u16) -> Option<String> {
        match self.visible(height).0.get(usize::from(line))? {
            Shown::Row(row) | Shown::Reason(row, _) => Some(row.address.clone()),
        }
    }

    /// How many rows do not fit into `height` lines.
    pub(super) fn hidden(&self, height: u16) -> usize {
        let (_, above, below) = self.visible(height);
        above + below
    }

    /// What fits into `height` lines, and how many rows are hidden above and below.
    fn visible(&self, height: u16) -> (Vec<Shown<'_>>, usize, usize) {
        let height = usize::from(height);
        // The selected row is kept in sight.
        let selected = self.0.iter().position(|row| row.selected).unwrap_or(0);
        let mut first = 0;
        loop {
            let (shown, count) = self.visible_from(first, height);
            if selected < first + count || first >= selected {
                return (shown, first, self.0.len().saturating_sub(first + count));
            }
            first += 1;
        }
    }

    /// What fits from a row on, and how many rows that are. Trouble comes first, then why, then rows where all is well, then
    /// what there is to say about those.
    fn visible_from(&self, first: usize, height: usize) -> (Vec<Shown<'_>>, usize) {
        let is_bad = |row: &&Row| row.severity > Severity::Fine;
        let mut for_bad = height.saturating_sub(self.0.iter().filter(is_bad).count());
        let explained = self.0.iter().filter(is_bad).filter(|row| row.reason.is_some()).count();
        let mut for_fine = height.saturating_sub(self.0.len() + explained);
        let (mut shown, mut count) = (Vec::new(), 0);
        for row in self.0.iter().skip(first) {
            if shown.len() >= height {
                break;
            }
            shown.push(Shown::Row(row));
            count += 1;
            let spare = if is_bad(&row) { &mut for_bad } else { &mut for_fine };
            if let Some(reason) = row.reason.as_deref().filter(|_| *spare > 0 && shown.len() < height) {
                shown.push(Shown::Reason(row, reason));
                *spare -= 1;
            }
        }
        (shown, count)
    }

    /// Draws the rows below one another and returns the lines used and the rows hidden above and below.
    pub(super) fn draw(
        &self,
        buffer: &mut Buffer,
        screen: &Screen,
        area: Rect,
        columns: &[(usize, Column)],
    ) -> (u16, usize, usize) {
        let (shown, above, below) = self.visible(area.height);
        for (y, line) in (area.y..).zip(&shown) {
            let area = Rect { y, height: 1, ..area };
            match line {
                Shown::Row(row) => {
                    screen.line(buffer, area, row_line(screen, row, columns));
                    if row.selected {
                        buffer.set_style(area, screen.style(Role::Selected));
                        for gauge in gauges(columns, area) {
                            buffer.set_style(gauge, Style::new().not_reversed());
                        }
                    }
                }
                Shown::Reason(row, reason) => {
                    let role = Screen::severity_role(row.severity);
                    let mark = Span::styled(format!("    {}", screen.glyphs().because), screen.style(role));
                    screen.line(buffer, area, vec![mark, screen.text(role, reason)]);
                }
            }
        }
        (shown.len() as u16, above, below)
    }
}

/// Columns of the marks in front of a row.
const MARK_WIDTH: u16 = 2;

fn row_line(screen: &Screen, row: &Row, columns: &[(usize, Column)]) -> Line<'static> {
    let role = Screen::severity_role(row.severity);
    let mark = match (row.selected, row.severity > Severity::Fine) {
        (true, true) => ">!",
        (true, false) => "> ",
        (false, true) => "! ",
        (false, false) => "  ",
    };
    let mut spans = vec![Span::styled(mark, screen.style(role))];
    let mut cells = (row.cells)(screen);
    for (place, (index, column)) in columns.iter().enumerate() {
        if place > 0 {
            spans.push(Span::raw(" "));
        }
        let cell = cells.get_mut(*index).map(std::mem::take).unwrap_or_default();
        spans.extend(cell_spans(screen, cell, column));
    }
    Line::from(spans)
}

/// Where the gauges of a row are.
fn gauges(columns: &[(usize, Column)], row: Rect) -> impl Iterator<Item = Rect> {
    let mut x = row.x + MARK_WIDTH;
    columns.iter().filter_map(move |(_, column)| {
        let area = Rect { x, width: column.width, ..row }.intersection(row);
        x += column.width + 1;
        column.gauge.then_some(area)
    })
}

/// A cell brought to its column's width.
fn cell_spans(screen: &Screen, cell: Vec<Span<'static>>, column: &Column) -> Vec<Span<'static>> {
    let cell = screen.cut(Line::from(cell), column.width);
    let padding = Span::raw(" ".repeat(usize::from(column.width).saturating_sub(cell.width())));
    let mut spans = cell.spans;
    if column.right {
        spans.insert(0, padding);
    } else {
        spans.push(padding);
    }
    spans
}

/// The line of headings.
pub(super) fn heading(screen: &Screen, columns: &[(usize, Column)]) -> Line<'static> {
    let mut spans = vec![Span::raw(" ".repeat(usize::from(MARK_WIDTH)))];
    for (place, (_, column)) in columns.iter().enumerate() {
        if place > 0 {
            spans.push(Span::raw(" "));
        }
        let title = vec![Span::styled(column.title, screen.style(Role::Title))];
        spans.extend(cell_spans(screen, title, column));
    }
    Line::from(spans)
}

/// Chooses the columns that fit, with their index in the row; spare width goes to those that may grow.
pub(super) fn fit(columns: &[Column], width: u16) -> Vec<(usize, Column)> {
    let mut chosen: Vec<(usize, Column)> = columns.iter().copied().enumerate().collect();
    let needed = |chosen: &[(usize, Column)]| -> u16 {
        MARK_WIDTH + chosen.iter().map(|(_, column)| column.width + 1).sum::<u16>().saturating_sub(1)
    };
    while needed(&chosen) > width && chosen.len() > 1 {
        let Some(least) = chosen.iter().enumerate().max_by_key(|(_, (_, column))| column.priority) else {
            break;
        };
        chosen.remove(least.0);
    }
    let mut spare = width.saturating_sub(needed(&chosen));
    for (_, column) in &mut chosen {
        let more = column.grow.min(spare);
        column.width += more;
        spare -= more;
    }
    chosen
}

/// A value, or the dash that says "not known".
pub(super) fn value(screen: &Screen, value: Option<String>) -> Vec<Span<'static>> {
    match value {
        Some(value) => vec![screen.text(Role::Value, value)],
        None => vec![Span::styled("-", screen.style(Role::Dim))],
    }
}

/// Whole percent as `62 %`.
pub(super) fn percent(value: Option<u64>) -> Option<String> {
    value.map(|value| format!("{value} %"))
}

/// Bytes, where 0 may mean that nothing has begun.
pub(super) fn known_bytes(value: u64, known: bool) -> Option<String> {
    known.then(|| format::bytes(value))
}
