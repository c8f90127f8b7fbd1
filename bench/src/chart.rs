//! The report as a picture: for each row, bars of speed and of processor time side by side, one
//! line for each contender. Plain SVG without scripts or fonts of its own, for a light background.

use std::fmt::Write as _;

use crate::peer;
use crate::results::{Contender, Results, RowResults};
use crate::size::gib;
use volferry_benchmark::stats::Summary;

/// The whole picture.
pub(crate) fn render(results: &Results) -> String {
    let rows: Vec<_> = results
        .rows
        .iter()
        .filter(|row| row.skipped.is_none())
        .collect();
    let lines: usize = rows.iter().map(|row| measured(row).count()).sum();
    let height = TOP + rows.len() * (ROW_HEAD + ROW_GAP) + lines * LINE + BOTTOM;
    let mut svg = begin(height, "One clone over TLS, loopback");
    let mut y = TOP;
    for row in rows {
        y = draw_row(&mut svg, row, y) + ROW_GAP;
    }
    let machine = &results.machine;
    let facts = format!(
        "{} × {}, Linux {}, {}, median of {}, {}",
        machine.cpus,
        machine.cpu_model,
        machine.kernel,
        if results.warm {
            "source in the page cache"
        } else {
            "cold caches"
        },
        results.repeats,
        results.date.split('T').next().unwrap_or_default()
    );
    text(&mut svg, MARGIN, height - 14, FAINT, &facts);
    svg + "</svg>\n"
}

/// An empty picture with a heading, as wide as all of them.
pub(crate) fn begin(height: usize, heading: &str) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\" \
         fill=\"{INK}\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let attributes = "font-size=\"17\" font-weight=\"bold\"";
    text(&mut svg, MARGIN, 28, attributes, heading);
    svg
}

/// Draws one row from `y` downwards; where it ends.
fn draw_row(svg: &mut String, row: &RowResults, y: usize) -> usize {
    let title = format!("{}: {:.1} GiB of data", row.name, gib(row.data_bytes));
    text(svg, MARGIN, y + 14, "font-weight=\"bold\"", &title);
    text(svg, SPEED.left, y + 14, FAINT, "GiB/s, longer is better");
    text(
        svg,
        CPU.left,
        y + 14,
        FAINT,
        "CPU-seconds per GiB, shorter is better",
    );
    let floor = row.floor.map(|floor| gib(floor.bytes) / floor.seconds);
    let rate = |contender: &Contender| row.rate(contender);
    let cost = |contender: &Contender| row.cpu_per_gib(contender);
    let fastest = highest(row, rate).max(floor.unwrap_or(0.0));
    let dearest = highest(row, cost);
    let top = y + ROW_HEAD;
    let mut line = top;
    for contender in measured(row) {
        let color = if peer::is_volferry(&contender.peer) {
            OWN
        } else {
            OTHER
        };
        text(svg, MARGIN, line + 15, "", &contender.label());
        draw_bar(svg, &SPEED, line, rate(contender), fastest, color);
        draw_bar(svg, &CPU, line, cost(contender), dearest, color);
        line += LINE;
    }
    if let Some(floor) = floor {
        draw_floor(
            svg,
            SPEED.left + SPEED.length(floor, fastest),
            top,
            line,
            floor,
        );
    }
    line
}

fn draw_bar(
    svg: &mut String,
    column: &Column,
    y: usize,
    value: Option<Summary>,
    highest: f64,
    color: &str,
) {
    let Some(value) = value else { return };
    let length = column.length(value.median, highest);
    // Writing to a String can't fail; so in the rest of this file.
    let _ = writeln!(
        svg,
        "<rect x=\"{}\" y=\"{}\" width=\"{length}\" height=\"{}\" rx=\"2\" fill=\"{color}\"/>",
        column.left,
        y + 3,
        LINE - 8
    );
    let label = format!("{:.2}", value.median);
    text(svg, column.left + length + 6, y + 15, "", &label);
}

/// A dashed line at what the disk gives.
fn draw_floor(svg: &mut String, x: usize, top: usize, bottom: usize, rate: f64) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x}\" y1=\"{top}\" x2=\"{x}\" y2=\"{bottom}\" stroke=\"{INK}\" \
         stroke-dasharray=\"4 3\"/>"
    );
    text(svg, x + 4, bottom + 11, FAINT, &format!("disk: {rate:.2}"));
}

pub(crate) fn text(svg: &mut String, x: usize, y: usize, attributes: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" {attributes}>{content}</text>"
    );
}

/// Contenders with at least one clone to show.
fn measured(row: &RowResults) -> impl Iterator<Item = &Contender> {
    let contenders = row.contenders.iter();
    contenders.filter(|contender| contender.runs.iter().any(|run| run.failure.is_none()))
}

fn highest(row: &RowResults, figure: impl Fn(&Contender) -> Option<Summary>) -> f64 {
    let medians = measured(row).filter_map(|contender| Some(figure(contender)?.median));
    medians.fold(0.0, f64::max)
}

/// Where bars start, and how long the longest may be.
pub(crate) struct Column {
    pub left: usize,
    pub width: usize,
}

impl Column {
    /// Pixels of a bar; a value that is there at all can be seen.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "pixels are few, and no value is negative"
    )]
    pub(crate) fn length(&self, value: f64, highest: f64) -> usize {
        let share = if highest > 0.0 { value / highest } else { 0.0 };
        ((share.clamp(0.0, 1.0) * self.width as f64).round() as usize).max(1)
    }
}

const WIDTH: usize = 960;
const MARGIN: usize = 20;
const TOP: usize = 48;
const BOTTOM: usize = 32;
const LINE: usize = 22;
const ROW_HEAD: usize = 24;
const ROW_GAP: usize = 28;
const SPEED: Column = Column {
    left: 290,
    width: 260,
};
const CPU: Column = Column {
    left: 630,
    width: 260,
};
pub(crate) const INK: &str = "#1f2933";
pub(crate) const OWN: &str = "#0b7285";
pub(crate) const OTHER: &str = "#b8c2cc";
pub(crate) const FAINT: &str = "font-size=\"11\" fill=\"#616e7c\"";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::example;

    #[test]
    fn the_longest_bar_fills_its_column_and_none_vanishes() {
        let column = Column {
            left: 0,
            width: 200,
        };
        assert_eq!(column.length(4.0, 4.0), 200);
        assert_eq!(column.length(1.0, 4.0), 50);
        assert_eq!(column.length(0.0, 4.0), 1);
        assert_eq!(column.length(0.0, 0.0), 1);
    }

    #[test]
    fn a_chart_names_everybody_and_closes_what_it_opens() {
        let svg = render(&example());
        for name in ["volferry", "nbdcopy", "dense-disk", "disk: 4.00"] {
            assert!(svg.contains(name), "{name}");
        }
        assert!(svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn names_cannot_break_the_markup() {
        let mut svg = String::new();
        text(&mut svg, 0, 0, "", "<a> & b");
        assert!(svg.contains("&lt;a> &amp; b"));
    }
}
