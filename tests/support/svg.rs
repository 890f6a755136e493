//! Turns a drawn screen into an SVG picture: text cells with the 16 colours of a common dark terminal.
//!
//! Small, crisp, and a text file: a changed screen shows as a readable difference.

use std::fmt::Write;

use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

const CELL_WIDTH: f32 = 8.4;
const CELL_HEIGHT: f32 = 17.0;
const BACKGROUND: &str = "#16181d";
const FOREGROUND: &str = "#d4d4d4";

/// The picture of a screen.
pub fn of(buffer: &Buffer) -> String {
    let area = buffer.area;
    let (width, height) =
        (f32::from(area.width) * CELL_WIDTH + 16.0, f32::from(area.height) * CELL_HEIGHT + 16.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.1} {height:.1}\" \
         font-family=\"ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace\" font-size=\"14\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n"
    );
    for y in 0..area.height {
        let mut x = 0;
        while x < area.width {
            // One element per run of cells that look the same.
            let first = &buffer[(x, y)];
            let look = Look::of(first);
            let mut text = String::new();
            let start = x;
            let blocks = block(first.symbol()).is_some();
            while x < area.width
                && Look::of(&buffer[(x, y)]) == look
                && block(buffer[(x, y)].symbol()).is_some() == blocks
            {
                text.push_str(buffer[(x, y)].symbol());
                x += 1;
            }
            if blocks {
                push_blocks(&mut svg, start, y, &text, &look);
            } else {
                push_run(&mut svg, start, y, x - start, &text, &look);
            }
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Width and height of a block element as parts of its cell. Drawn as shapes, for in most fonts they leave seams.
fn block(symbol: &str) -> Option<(f32, f32)> {
    let code = u32::from(symbol.chars().next()?);
    match code {
        0x2581..=0x2588 => Some((1.0, (code - 0x2580) as f32 / 8.0)),
        0x2589..=0x258f => Some(((0x2590 - code) as f32 / 8.0, 1.0)),
        _ => None,
    }
}

fn push_blocks(svg: &mut String, x: u16, y: u16, text: &str, look: &Look) {
    let bottom = f32::from(y + 1) * CELL_HEIGHT + 8.0;
    let symbols: Vec<char> = text.chars().collect();
    let mut left = f32::from(x) * CELL_WIDTH + 8.0;
    for same in symbols.chunk_by(|a, b| a == b && ('▁'..='█').contains(a)) {
        let (width, height) = block(&same[0].to_string()).unwrap();
        let (width, height) = (width * same.len() as f32 * CELL_WIDTH, height * CELL_HEIGHT);
        let top = bottom - height;
        let fill = look.foreground;
        writeln!(svg, "<rect shape-rendering=\"crispEdges\" x=\"{left:.1}\" y=\"{top:.2}\" width=\"{width:.1}\" height=\"{height:.2}\" fill=\"{fill}\"/>").unwrap();
        left += same.len() as f32 * CELL_WIDTH;
    }
}

fn push_run(svg: &mut String, x: u16, y: u16, cells: u16, text: &str, look: &Look) {
    let (left, top) = (f32::from(x) * CELL_WIDTH + 8.0, f32::from(y) * CELL_HEIGHT + 8.0);
    let width = f32::from(cells) * CELL_WIDTH;
    if look.background != BACKGROUND {
        let fill = look.background;
        writeln!(svg, "<rect shape-rendering=\"crispEdges\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{CELL_HEIGHT}\" fill=\"{fill}\"/>").unwrap();
    }
    let shown = text.trim_end();
    let indent = shown.len() - shown.trim_start().len();
    let shown = shown.trim_start();
    if shown.is_empty() {
        return;
    }
    let left = left + indent as f32 * CELL_WIDTH;
    let width = shown.chars().count() as f32 * CELL_WIDTH;
    let mut attributes = format!("fill=\"{}\"", look.foreground);
    if look.modifier.contains(Modifier::BOLD) {
        attributes.push_str(" font-weight=\"bold\"");
    }
    if look.modifier.contains(Modifier::DIM) {
        attributes.push_str(" opacity=\"0.6\"");
    }
    if look.modifier.contains(Modifier::UNDERLINED) {
        attributes.push_str(" text-decoration=\"underline\"");
    }
    let escaped = shown.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // The length keeps the columns straight where a font lacks a glyph.
    let baseline = top + 13.0;
    writeln!(
        svg,
        "<text x=\"{left:.1}\" y=\"{baseline:.1}\" textLength=\"{width:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
         xml:space=\"preserve\" {attributes}>{escaped}</text>"
    )
    .unwrap();
}

#[derive(PartialEq)]
struct Look {
    foreground: &'static str,
    background: &'static str,
    modifier: Modifier,
}

impl Look {
    fn of(cell: &Cell) -> Look {
        let (mut foreground, mut background) = (colour(cell.fg, FOREGROUND), colour(cell.bg, BACKGROUND));
        if cell.modifier.contains(Modifier::REVERSED) {
            std::mem::swap(&mut foreground, &mut background);
        }
        Look { foreground, background, modifier: cell.modifier }
    }
}

fn colour(colour: Color, default: &'static str) -> &'static str {
    match colour {
        Color::Red => "#f2777a",
        Color::Green => "#8fc983",
        Color::Yellow => "#e5c07b",
        Color::Cyan => "#66c2cd",
        Color::Reset => default,
        other => panic!("the console uses no {other:?} in its 16-colour palette"),
    }
}
