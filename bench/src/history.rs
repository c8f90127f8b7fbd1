//! What became of the figures: `bench history` keeps a line for each row of each report, and draws
//! them.
//!
//! Reports of different machines don't compare, nor do two days on one virtual machine. What does is
//! the ratio to the best peer of the same run, so that is what is drawn.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::chart::{self, FAINT, INK, OTHER, OWN, text};
use crate::error::{At as _, Error};
use crate::output;
use crate::results::{Contender, Results, RowResults};

/// Adds reports to the history, and draws it.
#[derive(Clone, Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Reports to add: `results.json` of other runs. What is there already is not added again.
    #[arg(value_name = "REPORT")]
    reports: Vec<PathBuf>,
    /// The history: a JSON object on each line.
    #[arg(long, default_value = "bench/history.jsonl")]
    file: PathBuf,
    /// Where the picture goes.
    #[arg(long, default_value = "bench/history.svg")]
    svg: PathBuf,
}

/// A row of a report, in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    /// When the report's run began, RFC 3339.
    date: String,
    /// Processors and kernel.
    machine: String,
    row: String,
    /// Whether the source was in the page cache.
    warm: bool,
    repeats: u32,
    data_bytes: u64,
    /// Names in the tree; 0 for a volume.
    names: u64,
    /// Which of its ways, of those that were measured.
    contender: String,
    volferry: Figures,
    /// The fastest peer that cloned right each time.
    peer: String,
    fastest: Figures,
    /// Seconds of processor time for a GiB of data, of the peer that needs the least.
    least_cpu_per_gib: f64,
}

/// Medians.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Figures {
    seconds: f64,
    cpu_per_gib: f64,
    /// (slowest - fastest) / median of the seconds.
    spread_percent: f64,
}

impl Figures {
    fn of(row: &RowResults, contender: &Contender) -> Option<Self> {
        let seconds = contender.summary(|run| run.wall_seconds)?;
        Some(Self {
            seconds: seconds.median,
            cpu_per_gib: row.cpu_per_gib(contender)?.median,
            spread_percent: seconds.spread_percent(),
        })
    }
}

impl Entry {
    /// `None` where there is nothing to compare with.
    fn of(results: &Results, row: &RowResults) -> Option<Self> {
        let (fastest, _) = row.fastest_rival(None)?;
        let (_, least_cpu_per_gib) = row.thriftiest_rival(None)?;
        let machine = &results.machine;
        Some(Self {
            date: results.date.clone(),
            machine: format!(
                "{} × {}, Linux {}",
                machine.cpus, machine.cpu_model, machine.kernel
            ),
            row: row.name.clone(),
            warm: results.warm,
            repeats: results.repeats,
            data_bytes: row.data_bytes,
            names: row.entries,
            contender: row.own()?.peer.clone(),
            volferry: Figures::of(row, row.own()?)?,
            peer: fastest.peer.clone(),
            fastest: Figures::of(row, fastest)?,
            least_cpu_per_gib,
        })
    }

    /// What is measured, for the heading.
    fn title(&self) -> String {
        let warm = if self.warm { ", warm" } else { "" };
        format!("{}{warm}", self.row)
    }

    /// How many times as fast as the fastest peer.
    fn speed(&self) -> f64 {
        self.fastest.seconds / self.volferry.seconds
    }

    /// The part of the thriftiest peer's processor time that is needed.
    fn cost(&self) -> f64 {
        self.volferry.cpu_per_gib / self.least_cpu_per_gib
    }
}

/// Runs the command.
pub(crate) fn run(args: &HistoryArgs) -> Result<(), Error> {
    let mut entries = read(&args.file)?;
    for path in &args.reports {
        let report = fs::read_to_string(path).at("read", path)?;
        let report: Results = serde_json::from_str(&report)
            .map_err(std::io::Error::from)
            .at("understand", path)?;
        for entry in report.rows.iter().filter_map(|row| Entry::of(&report, row)) {
            if !entries.contains(&entry) {
                output::line(&format!(
                    "{} {}: speed x{:.2} of {}, processor time x{:.2}",
                    entry.date,
                    entry.title(),
                    entry.speed(),
                    entry.peer,
                    entry.cost()
                ));
                entries.push(entry);
            }
        }
    }
    entries.sort_by(|one, other| (&one.date, &one.row).cmp(&(&other.date, &other.row)));
    write(&args.file, &entries)?;
    fs::write(&args.svg, render(&entries)).at("write", &args.svg)
}

/// No history yet is an empty one.
fn read(path: &Path) -> Result<Vec<Entry>, Error> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        answer => answer.at("read", path)?,
    };
    let entries = text.lines().map(serde_json::from_str);
    let entries: Result<_, _> = entries.collect();
    entries.map_err(std::io::Error::from).at("understand", path)
}

fn write(path: &Path, entries: &[Entry]) -> Result<(), Error> {
    let mut text = String::new();
    for entry in entries {
        let line = serde_json::to_string(entry).map_err(std::io::Error::from);
        text += &line.at("write", path)?;
        text.push('\n');
    }
    fs::write(path, text).at("write", path)
}

/// The picture: a panel for each row, in it a point for each report.
fn render(entries: &[Entry]) -> String {
    let mut panels: BTreeMap<String, Vec<&Entry>> = BTreeMap::new();
    for entry in entries {
        panels.entry(entry.title()).or_default().push(entry);
    }
    let height = TOP + panels.len().div_ceil(COLUMNS) * (PANEL + GAP) + BOTTOM;
    let mut svg = chart::begin(height, "volferry beside the best peer of the same run");
    for (color, x, name) in [
        (OWN, MARGIN, "speed, as a multiple of the fastest peer's"),
        (
            OTHER,
            MARGIN + 340,
            "processor time, as a part of the thriftiest peer's",
        ),
    ] {
        // Writing to a String can't fail; so in the rest of this file.
        let _ = writeln!(
            svg,
            "<circle cx=\"{}\" cy=\"48\" r=\"4\" fill=\"{color}\"/>",
            x + 4
        );
        text(&mut svg, x + 14, 52, FAINT, name);
    }
    for (index, (title, entries)) in panels.iter().enumerate() {
        let left = MARGIN + (index % COLUMNS) * (PANEL_WIDTH + GAP);
        let top = TOP + (index / COLUMNS) * (PANEL + GAP);
        draw_panel(&mut svg, title, entries, left, top);
    }
    svg + "</svg>\n"
}

fn draw_panel(svg: &mut String, title: &str, entries: &[&Entry], left: usize, top: usize) {
    text(svg, left, top + 14, "font-weight=\"bold\"", title);
    let ratios = entries
        .iter()
        .flat_map(|entry| [entry.speed(), entry.cost()]);
    let highest = ratios.fold(1.0, f64::max) * 1.2;
    let (above, below) = (top + HEAD, top + PANEL - FOOT);
    let scale = chart::Column {
        left: 0,
        width: below - above,
    };
    let y = |ratio: f64| below - scale.length(ratio, highest);
    let x = |index: usize| left + 20 + (2 * index + 1) * (PANEL_WIDTH - 60) / (2 * entries.len());
    let one = y(1.0);
    let _ = writeln!(
        svg,
        "<line x1=\"{left}\" y1=\"{one}\" x2=\"{}\" y2=\"{one}\" stroke=\"{INK}\" stroke-dasharray=\"4 3\"/>",
        left + PANEL_WIDTH
    );
    for (color, figure) in [
        (OTHER, Entry::cost as fn(&Entry) -> f64),
        (OWN, Entry::speed),
    ] {
        let points = entries.iter().enumerate();
        let points = points.map(|(index, entry)| (x(index), y(figure(entry))));
        let path: Vec<_> = points.clone().map(|(x, y)| format!("{x},{y}")).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for (entry, (x, y)) in entries.iter().zip(points) {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x}\" cy=\"{y}\" r=\"4\" fill=\"{color}\"/>"
            );
            text(
                svg,
                x - 11,
                y - 9,
                "font-size=\"11\"",
                &format!("{:.2}", figure(entry)),
            );
        }
    }
    for (index, entry) in entries.iter().enumerate() {
        let day = entry.date.get(5..10).unwrap_or_default();
        let label = format!("{day} {}", entry.peer);
        text(svg, x(index) - 20, below + 16, FAINT, &label);
    }
}

const COLUMNS: usize = 2;
const MARGIN: usize = 20;
const TOP: usize = 72;
const BOTTOM: usize = 8;
const PANEL: usize = 190;
const PANEL_WIDTH: usize = 450;
const GAP: usize = 20;
/// Above and below the curves of a panel.
const HEAD: usize = 24;
const FOOT: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::example;

    fn entries() -> Vec<Entry> {
        let results = example();
        let entries = results.rows.iter();
        entries.filter_map(|row| Entry::of(&results, row)).collect()
    }

    #[test]
    fn an_entry_has_the_ratios_to_the_best_peers() {
        let [entry] = &entries()[..] else {
            panic!("one row has two peers");
        };
        assert_eq!(entry.peer, "nbdcopy");
        assert_eq!(entry.speed(), 2.0);
        assert!((entry.cost() - 2.0 / 3.0).abs() < 1e-9, "{}", entry.cost());
    }

    #[test]
    fn a_row_without_rivals_is_left_out() {
        let mut results = example();
        results.rows[0].contenders[1].runs[0].is_identical = false;
        assert_eq!(Entry::of(&results, &results.rows[0]), None);
    }

    #[test]
    fn a_report_is_added_once() {
        let dir = tempfile::tempdir().unwrap();
        let report = dir.path().join("results.json");
        fs::write(&report, serde_json::to_string(&example()).unwrap()).unwrap();
        let args = HistoryArgs {
            reports: vec![report.clone(), report],
            file: dir.path().join("history.jsonl"),
            svg: dir.path().join("history.svg"),
        };
        run(&args).unwrap();
        run(&args).unwrap();
        assert_eq!(read(&args.file).unwrap(), entries());
        let svg = fs::read_to_string(&args.svg).unwrap();
        assert!(svg.contains("dense-disk") && svg.contains("2.00") && svg.contains("nbdcopy"));
        fs::write(&args.file, "no JSON\n").unwrap();
        let error = run(&args).unwrap_err().to_string();
        assert!(error.contains("cannot understand"), "{error}");
    }
}
