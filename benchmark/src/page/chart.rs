//! Charts as SVG: as wide as there is room, with letters that stay as large as the text.
//!
//! Bars and dots have places in percent and names above them. Lines are drawn in a box that is
//! stretched, with their axes around it.

use std::fmt::Write as _;

/// A value with its name.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    /// Whether it stands out.
    pub(super) is_own: bool,
}

/// A value within a range.
#[derive(Clone, Debug)]
pub(super) struct Dot {
    pub(super) name: String,
    pub(super) low: f64,
    pub(super) middle: f64,
    pub(super) high: f64,
    /// What else is to be said.
    pub(super) more: String,
}

/// A number over time.
#[derive(Clone, Debug)]
pub(super) struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub(super) const fn new(name: &'static str, points: Vec<(f64, f64)>) -> Self {
        Self { name, points }
    }
}

/// Pixels of a row: a line of text, and the bar.
const ROW: usize = 36;
const TEXT: usize = 13;
const BAR_TOP: usize = 18;
const BAR_HEIGHT: usize = 11;

/// Bars from zero, with a mark across them.
pub(super) fn bars(title: &str, unit: &str, all: &[Bar], mark: Option<(&str, f64)>) -> String {
    let values = all.iter().map(|bar| bar.value);
    let highest = values
        .chain(mark.map(|(_, value)| value))
        .fold(0.0, f64::max);
    let height = all.len() * ROW + 4;
    let mut svg = String::new();
    let mut names = String::new();
    for (index, bar) in all.iter().enumerate() {
        let top = index * ROW;
        // Writing to a String can't fail; so in the rest of this file.
        let _ = write!(
            names,
            "<text x=\"0\" y=\"{}\">{}</text><text class=\"number\" x=\"100%\" y=\"{}\">{} {}</text>",
            top + TEXT,
            escape(&bar.name),
            top + TEXT,
            number(bar.value),
            escape(unit),
        );
        let _ = write!(
            svg,
            "<rect class=\"back\" x=\"0\" y=\"{}\" width=\"100%\" height=\"{BAR_HEIGHT}\" rx=\"2\"/>\
             <rect class=\"{}\" x=\"0\" y=\"{}\" width=\"{}%\" height=\"{BAR_HEIGHT}\" rx=\"2\"/>",
            top + BAR_TOP,
            if bar.is_own { "own" } else { "other" },
            top + BAR_TOP,
            percent(bar.value, highest),
        );
    }
    let mut legend = String::new();
    if let Some((name, value)) = mark {
        let at = percent(value, highest);
        let _ = write!(
            svg,
            "<line class=\"mark\" x1=\"{at}%\" x2=\"{at}%\" y1=\"{TEXT}\" y2=\"{height}\"/>"
        );
        legend = format!(
            "<p class=\"legend\"><span class=\"mark\">{}</span> {} {}</p>",
            escape(name),
            number(value),
            escape(unit)
        );
    }
    figure(
        title,
        &format!("<svg class=\"rows\" height=\"{height}\">{svg}{names}</svg>{legend}"),
    )
}

/// Ranges on a scale of powers of ten.
pub(super) fn dots(unit: &str, all: &[Dot]) -> String {
    let lows = all.iter().map(|dot| dot.low).filter(|low| *low > 0.0);
    let lowest = lows.fold(f64::INFINITY, f64::min);
    let highest = all.iter().map(|dot| dot.high).fold(0.0, f64::max);
    if !lowest.is_finite() || highest <= 0.0 {
        return "<p>nothing was measured</p>".to_owned();
    }
    let (first, last) = (lowest.log10().floor(), highest.log10().ceil());
    let decades = (last - first).max(1.0);
    let place = |value: f64| {
        let at = (value.max(f64::MIN_POSITIVE).log10() - first) / decades;
        format!("{:.2}", at.clamp(0.0, 1.0) * 100.0)
    };
    let height = all.len() * ROW + 4;
    let mut svg = String::new();
    let mut axis = String::new();
    let mut decade = first;
    while decade <= first + decades {
        let at = place(10_f64.powf(decade));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{at}%\" x2=\"{at}%\" y1=\"0\" y2=\"{height}\"/>"
        );
        let _ = write!(axis, "<span>{}</span>", number(10_f64.powf(decade)));
        decade += 1.0;
    }
    for (index, dot) in all.iter().enumerate() {
        let top = index * ROW;
        let middle = top + BAR_TOP + BAR_HEIGHT / 2;
        let _ = write!(
            svg,
            "<text x=\"0\" y=\"{}\">{}</text><text class=\"number\" x=\"100%\" y=\"{}\">{}</text>\
             <line class=\"range\" x1=\"{}%\" x2=\"{}%\" y1=\"{middle}\" y2=\"{middle}\"/>\
             <circle class=\"own\" cx=\"{}%\" cy=\"{middle}\" r=\"5\">\
             <title>{}: {}</title></circle>",
            top + TEXT,
            escape(&dot.name),
            top + TEXT,
            number(dot.middle),
            place(dot.low),
            place(dot.high),
            place(dot.middle),
            escape(&dot.name),
            escape(&dot.more),
        );
    }
    let table = all.iter().map(|dot| {
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&dot.name),
            number(dot.middle),
            escape(&dot.more)
        )
    });
    let table: String = table.collect();
    format!(
        "<figure><svg class=\"rows\" height=\"{height}\">{svg}</svg>\
         <div class=\"axis\">{axis}</div><figcaption>{}</figcaption>\
         <details><summary>numbers</summary><table>{table}</table></details></figure>",
        escape(unit)
    )
}

/// Lines over time; nothing where there are no points.
pub(super) fn lines(title: &str, unit: &str, all: &[Line]) -> String {
    const WIDTH: f64 = 1000.0;
    const HEIGHT: f64 = 200.0;
    let points = || all.iter().flat_map(|line| &line.points);
    let x_max = points().map(|point| point.0).fold(0.0, f64::max);
    let y_max = points().map(|point| point.1).fold(0.0, f64::max);
    if x_max <= 0.0 || y_max <= 0.0 {
        return String::new();
    }
    let top = round_up(y_max);
    let mut svg = String::new();
    for quarter in 0..=4 {
        let y = HEIGHT * f64::from(quarter) / 4.0;
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{y}\" y2=\"{y}\"/>"
        );
    }
    let mut legend = String::new();
    for (index, line) in all.iter().enumerate() {
        if line.points.iter().all(|point| point.1 <= 0.0) {
            continue;
        }
        let path = line
            .points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1} ", x / x_max * WIDTH, HEIGHT - y / top * HEIGHT));
        let path: String = path.collect();
        let _ = write!(
            svg,
            "<polyline class=\"s{index}\" points=\"{}\"/>",
            path.trim_end()
        );
        let _ = write!(
            legend,
            "<span class=\"s{index}\">{}</span> ",
            escape(line.name)
        );
    }
    let labels = (0..=4)
        .rev()
        .map(|quarter| format!("<span>{}</span>", number(top * f64::from(quarter) / 4.0)));
    let labels: String = labels.collect();
    let title = format!("{title}, {unit}");
    figure(
        &title,
        &format!(
            "<div class=\"plot\"><div class=\"y\">{labels}</div>\
             <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\">{svg}</svg>\
             <div class=\"x\"><span>0 s</span><span>{} s</span><span>{} s</span></div></div>\
             <p class=\"legend\">{legend}</p>",
            number(x_max / 2.0),
            number(x_max)
        ),
    )
}

fn figure(title: &str, content: &str) -> String {
    format!(
        "<figure><figcaption>{}</figcaption>{content}</figure>",
        escape(title)
    )
}

/// A part of the width; what is there at all can be seen.
fn percent(value: f64, highest: f64) -> String {
    let share = if highest > 0.0 { value / highest } else { 0.0 };
    format!("{:.2}", (share.clamp(0.0, 1.0) * 100.0).max(0.3))
}

/// The next of 1, 2, 4 and 8 with some zeros: a quarter of it is a number to read.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 8.0, 10.0];
    let step = steps.iter().find(|step| **step * power >= value);
    step.unwrap_or(&10.0) * power
}

/// Three digits or so.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// Text that can't be taken for markup.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_at_round_numbers() {
        let check =
            |value, top: f64| assert!((round_up(value) - top).abs() < top * 1e-9, "{value}");
        check(1.0, 1.0);
        check(1.1, 2.0);
        check(3.0, 4.0);
        check(79.0, 80.0);
        check(81.0, 100.0);
        check(0.03, 0.04);
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let bar = |value| Bar {
            name: "<b>".into(),
            value,
            is_own: false,
        };
        let html = bars(
            "a & b",
            "s",
            &[bar(2.0), bar(1.0), bar(0.0)],
            Some(("mark", 4.0)),
        );
        for part in [
            "width=\"50.00%\"",
            "width=\"25.00%\"",
            "width=\"0.30%\"",
            "x1=\"100.00%\"",
            "&lt;b&gt;",
            "a &amp; b",
        ] {
            assert!(html.contains(part), "{part} in {html}");
        }
    }

    #[test]
    fn what_is_empty_is_no_chart() {
        assert_eq!(lines("t", "u", &[Line::new("none", Vec::new())]), "");
        assert!(dots("u", &[]).contains("nothing"));
        assert!(bars("t", "u", &[], None).contains("figure"));
    }
}
