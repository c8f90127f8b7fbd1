//! Reports as text for a terminal.

use std::fmt::Write as _;

use crate::ceiling::Kind;
use crate::compare::Comparison;
use crate::report::{Ceiling, CloneResult, PodEnd, Report};
use crate::stats::Summary;

/// A whole report.
#[must_use]
pub fn render(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{} × {}, {:.1} GiB of memory, Linux {}, load {:.2}\n",
        machine.cpus,
        machine.cpu_model,
        gib(machine.memory_bytes),
        machine.kernel,
        machine.load_before
    );
    // Writing to a String can't fail; so in the rest of this file.
    if report.limits.cpus.is_some() || report.limits.memory_bytes.is_some() {
        let cpus = report.limits.cpus.map(|cpus| format!("{cpus} CPU"));
        let memory = report.limits.memory_bytes;
        let memory = memory.map(|bytes| format!("{:.2} GiB of memory", gib(bytes)));
        let all: Vec<_> = cpus.into_iter().chain(memory).collect();
        let _ = writeln!(text, "limited to {}", all.join(", "));
    }
    if let Some(pods) = &report.pods {
        let end = |end: &PodEnd, class| format!("class {class} on node {}", end.node);
        let source = end(&pods.source, &pods.from_class);
        let target = end(&pods.target, &pods.to_class);
        let _ = writeln!(text, "pods: {source}, to {target}");
    }
    let _ = writeln!(
        text,
        "{} to {}, seed {}, volumes of {:.2} GiB, {} files\n",
        report.source.path,
        report.target.path,
        report.seed,
        gib(report.size_bytes),
        report.files
    );
    let header = ["ceiling", "GiB/s", "spread", "CPU-s/GiB", "names/s", ""].map(str::to_owned);
    let lines = report.ceilings.iter().map(ceiling_line);
    text += &align(&std::iter::once(header).chain(lines).collect::<Vec<_>>());
    text.push('\n');
    let header = [
        "clone",
        "s",
        "spread",
        "GiB/s",
        "predicted s",
        "off",
        "CPU-s",
        "predicted",
        "off",
        "bound by",
    ];
    let lines = report.clones.iter().map(clone_line);
    let header = std::iter::once(header.map(str::to_owned));
    text += &align(&header.chain(lines).collect::<Vec<_>>());
    let _ = writeln!(
        text,
        "\ntook {:.0} s, wrote {:.2} GiB",
        report.budget.spent_seconds,
        gib(report.budget.spent_bytes)
    );
    for clone in &report.clones {
        let seconds = clone.repeats.iter().filter_map(|run| run.object_seconds);
        if let Some(seconds) = Summary::of(seconds) {
            let _ = writeln!(
                text,
                "from the VolumeClone to its end: {:.1} s, {} apart",
                seconds.median,
                spread(seconds)
            );
        }
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn ceiling_line(ceiling: &Ceiling) -> [String; 6] {
    let what = ceiling.title();
    let (Some(rate), Some(seconds)) = (ceiling.rate(), ceiling.seconds()) else {
        let reason = ceiling.skipped.as_deref().unwrap_or("not measured");
        let none = String::new;
        return [
            what,
            none(),
            none(),
            none(),
            none(),
            format!("skipped: {reason}"),
        ];
    };
    let names = ceiling.repeats.first().map_or(0, |repeat| repeat.names);
    let names = match names {
        0 => String::new(),
        names => format!("{:.0}", names as f64 / seconds.median),
    };
    if ceiling.kind == Kind::Session {
        let text = format!("{:.3} s each", seconds.median);
        let none = String::new;
        return [what, none(), spread(seconds), none(), none(), text];
    }
    let cost = ceiling.cpu_per_byte().unwrap_or(0.0) * GIB;
    let direct = ceiling
        .repeats
        .iter()
        .filter_map(|repeat| repeat.direct)
        .next();
    let note = match direct {
        Some(false) => "through the page cache",
        _ => "",
    };
    [
        what,
        format!("{:.2}", rate.median / GIB),
        spread(rate),
        format!("{cost:.2}"),
        names,
        note.to_owned(),
    ]
}

fn clone_line(clone: &CloneResult) -> [String; 10] {
    let mut line = [const { String::new() }; 10];
    line[0] = clone.name.clone();
    if let Some(prediction) = &clone.prediction {
        line[4] = format!("{:.2}", prediction.seconds);
        line[7] = format!("{:.2}", prediction.cpu_seconds);
        line[9].clone_from(&prediction.binding);
    }
    let (Some(seconds), Some(cpu)) = (clone.seconds(), clone.cpu_seconds()) else {
        let reason = clone.skipped.as_deref().unwrap_or("not measured");
        line[9] = format!("skipped: {reason}");
        return line;
    };
    line[1] = format!("{:.2}", seconds.median);
    line[2] = spread(seconds);
    line[3] = format!(
        "{:.2}",
        clone.facts.data_bytes as f64 / GIB / seconds.median
    );
    line[6] = format!("{:.2}", cpu.median);
    let off =
        |part: Option<f64>| part.map_or_else(String::new, |part| format!("{:+.0}%", part * 100.0));
    line[5] = off(clone.error());
    line[8] = off(clone.cpu_error());
    line
}

/// A comparison of several reports, of which the first is what the others are held against.
#[must_use]
pub fn render_comparison(comparison: &Comparison) -> String {
    let mut text = String::new();
    for (index, report) in comparison.reports.iter().enumerate() {
        let _ = writeln!(text, "[{}] {report}", index + 1);
    }
    let mut header = vec!["".to_owned(), "unit".to_owned()];
    header.extend((1..=comparison.reports.len()).map(|number| format!("[{number}]")));
    header.push("change".to_owned());
    let mut lines = vec![header];
    for row in &comparison.rows {
        let mut line = vec![row.name.clone(), row.unit.to_owned()];
        let shown = row.values.iter().map(|value| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{:.2}", value.median))
        });
        line.extend(shown);
        line.push(match row.change() {
            Some(change) if row.is_beyond_noise() => format!("{:+.0}%", change * 100.0),
            Some(change) => format!("({:+.0}%)", change * 100.0),
            None => String::new(),
        });
        lines.push(line);
    }
    text.push('\n');
    text += &align(&lines);
    text += "\nA change in parentheses is within what the repeats differ by.\n";
    for note in &comparison.notes {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// How far the measurements lie apart.
fn spread(summary: Summary) -> String {
    format!("{:.0}%", summary.spread_percent())
}

/// Columns, the first to the left and all but the last to the right.
fn align<Line: AsRef<[String]>>(lines: &[Line]) -> String {
    let columns = lines
        .iter()
        .map(|line| line.as_ref().len())
        .max()
        .unwrap_or(0);
    let cell = |line: &Line, column: usize| line.as_ref().get(column).cloned().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let lens = lines.iter().map(|line| cell(line, column).chars().count());
            lens.max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let mut shown = String::new();
        for (column, width) in widths.iter().enumerate() {
            let cell = cell(line, column);
            let pad = " ".repeat(width - cell.chars().count());
            shown += &match column {
                0 => format!("{cell}{pad}"),
                _ if column + 1 == columns => format!("  {cell}"),
                _ => format!("  {pad}{cell}"),
            };
        }
        text += shown.trim_end();
        text.push('\n');
    }
    text
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB
}

const GIB: f64 = (1_u64 << 30) as f64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;
    use crate::roofline::Prediction;

    #[test]
    fn a_table_has_everything() {
        let mut report = example();
        let prediction = Prediction {
            seconds: 77.0,
            cpu_seconds: 33.0,
            binding: "network".into(),
            bounds: Vec::new(),
            cpu_parts: Vec::new(),
        };
        report.clones.push(CloneResult {
            name: "vm".into(),
            skipped: Some("the budget is spent".into()),
            repeats: Vec::new(),
            prediction: Some(prediction),
            ..report.clones[0].clone()
        });
        let text = render(&report);
        for part in [
            "BLAKE3",
            "4.00",
            "0.100 s each",
            "random",
            "2.50",
            "skipped: the budget",
            "77.00",
            "warning: something",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_comparison_tells_change_from_noise() {
        let mut faster = example();
        for run in &mut faster.clones[0].repeats {
            run.cost.cpu_seconds /= 2.0;
        }
        let comparison = Comparison::of(&[("a", &example()), ("b", &faster)]);
        let text = render_comparison(&comparison);
        assert!(text.contains("-50%"), "{text}");
        assert!(text.contains("(+0%)"), "{text}");
    }
}
