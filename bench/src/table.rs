//! The report as text: a table for each row, and a sentence that compares.

use std::fmt::Write as _;

use crate::peer;
use crate::results::{Contender, Results, RowResults, Run};
use crate::size::{gib, mib};

/// The whole report.
pub(crate) fn render(results: &Results) -> String {
    let rows: String = results.rows.iter().map(render_row).collect();
    let skipped = results.peers.iter().filter_map(|peer| {
        let reason = peer.skipped.as_ref()?;
        Some(format!("skipped {}: {reason}\n", peer.name))
    });
    rows + &skipped.collect::<String>()
}

fn render_row(row: &RowResults) -> String {
    if let Some(reason) = &row.skipped {
        return format!("\n{}: skipped, {reason}\n", row.name);
    }
    let (size, data) = (gib(row.size_bytes), gib(row.data_bytes));
    let mut text = format!("\n{}: {size:.1} GiB, {data:.1} GiB of it data\n", row.name);
    let header = HEADER.map(str::to_owned);
    let lines = row.contenders.iter().map(|contender| cells(row, contender));
    text += &align(&std::iter::once(header).chain(lines).collect::<Vec<_>>());
    if row.entries > 0 {
        text += &render_names(row);
    } else if let Some(floor) = row.floor {
        let rate = gib(floor.bytes) / floor.seconds;
        // Writing to a String can't fail; so in the rest of this file.
        let _ = writeln!(text, "fio, reading and writing at once: {rate:.2} GiB/s");
    }
    text + &row
        .contenders
        .iter()
        .filter_map(|c| compare(row, c))
        .collect::<String>()
}

/// Names a second, which is what a tree of small files is about.
fn render_names(row: &RowResults) -> String {
    let mut text = format!("{} names:", row.entries);
    let names = row.entries as f64;
    for contender in &row.contenders {
        if let Some(wall) = contender.summary(|run| run.wall_seconds) {
            let _ = write!(text, " {} {:.0}/s,", contender.label(), names / wall.median);
        }
    }
    if let Some(floor) = row.floor {
        let _ = write!(text, " bare loop {:.0}/s", names / floor.seconds);
    }
    text + "\n"
}

fn cells(row: &RowResults, contender: &Contender) -> [String; COLUMNS] {
    let mut cells = [const { String::new() }; COLUMNS];
    cells[0] = contender.label();
    if let Some(reason) = &contender.skipped {
        cells[COLUMNS - 1] = format!("skipped: {reason}");
        return cells;
    }
    let figure = |summary: Option<volferry_benchmark::stats::Summary>| {
        summary.map_or_else(String::new, |summary| format!("{:.2}", summary.median))
    };
    let wall = contender.summary(|run| run.wall_seconds);
    cells[1] = figure(wall);
    cells[2] = wall.map_or_else(String::new, |wall| format!("{:.0}%", wall.spread_percent()));
    cells[3] = figure(row.rate(contender));
    cells[4] = figure(row.cpu_per_gib(contender));
    cells[5] = figure(row.machine_per_gib(contender));
    let peak = contender
        .runs
        .iter()
        .map(Run::peak_bytes)
        .max()
        .unwrap_or(0);
    cells[6] = format!("{:.0}", mib(peak));
    let allocated = contender
        .runs
        .iter()
        .map(|run| run.allocated_bytes)
        .max()
        .unwrap_or(0);
    cells[7] = format!("{:.2}", gib(allocated));
    cells[8] = verdict(&contender.runs);
    cells
}

fn verdict(runs: &[Run]) -> String {
    let killed: u64 = runs.iter().map(|run| run.killed).sum();
    if killed > 0 {
        return format!("killed {killed} times");
    }
    if let Some(failure) = runs.iter().find_map(|run| run.failure.as_ref()) {
        return format!("failed: {failure}");
    }
    if runs.is_empty() {
        return "not run".into();
    }
    let is_identical = runs.iter().all(|run| run.is_identical);
    if is_identical { "yes" } else { "NO" }.to_owned()
}

/// How volferry, free or limited, compares with the best of the others under the same limit, and with
/// itself without one.
fn compare(row: &RowResults, contender: &Contender) -> Option<String> {
    if !peer::is_volferry(&contender.peer) {
        return None;
    }
    let limit = contender.limit.as_deref();
    let own_rate = row.rate(contender)?.median;
    let own_cost = row.cpu_per_gib(contender)?.median;
    let faster = row.fastest_rival(limit).map(|(rival, rate)| {
        let ratio = own_rate / rate;
        format!("speed x{ratio:.2} of {}", rival.label())
    });
    let thriftier = row.thriftiest_rival(limit).map(|(rival, cost)| {
        let ratio = own_cost / cost;
        format!("processor time x{ratio:.2} of {}", rival.label())
    });
    let unlimited = row
        .contenders
        .iter()
        .find(|c| c.peer == contender.peer && c.limit.is_none());
    let relative = unlimited.filter(|_| limit.is_some()).and_then(|unlimited| {
        let ratio = own_rate / row.rate(unlimited)?.median;
        Some(format!("speed x{ratio:.2} of unlimited"))
    });
    let parts: Vec<_> = [faster, thriftier, relative]
        .into_iter()
        .flatten()
        .collect();
    let is_compared = !parts.is_empty();
    is_compared.then(|| format!("{}: {}\n", contender.label(), parts.join(", ")))
}

/// Columns as wide as their widest cell; the first and the last lean left, numbers lean right.
fn align(lines: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let mut text = String::new();
    for line in lines {
        let _ = write!(text, "  {:<1$}", line[0], width(0));
        for (column, cell) in line.iter().enumerate().take(COLUMNS - 1).skip(1) {
            let _ = write!(text, "  {cell:>0$}", width(column));
        }
        let _ = writeln!(text, "  {}", line[COLUMNS - 1]);
    }
    text
}

const COLUMNS: usize = 9;

const HEADER: [&str; COLUMNS] = [
    "peer",
    "wall s",
    "spread",
    "GiB/s",
    "CPU-s/GiB",
    "machine",
    "peak MiB",
    "alloc GiB",
    "identical",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::example;

    #[test]
    fn a_row_shows_its_medians_and_the_comparison() {
        let text = render(&example());
        let expected = "
dense-disk: 2.0 GiB, 2.0 GiB of it data
  peer      wall s  spread  GiB/s  CPU-s/GiB  machine  peak MiB  alloc GiB  identical
  volferry    1.00      0%   2.00       1.00     2.00        32       2.00  yes
  nbdcopy     2.00      0%   1.00       1.50     2.00        32       2.00  yes
fio, reading and writing at once: 4.00 GiB/s
volferry: speed x2.00 of nbdcopy, processor time x0.67 of nbdcopy
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_limited_run_is_compared_with_the_free_one() {
        let mut results = example();
        let mut limited = results.rows[0].contenders[0].clone();
        limited.limit = Some("600MB".into());
        limited.runs[0].killed = 1;
        results.rows[0].contenders.push(limited);
        let text = render(&results);
        let line = "volferry (600MB): speed x1.00 of unlimited\n";
        assert!(text.ends_with(line), "{text}");
        assert!(text.contains("killed 1 times"), "{text}");
    }

    #[test]
    fn a_limited_run_is_compared_with_peers_under_the_same_limit() {
        let mut results = example();
        for (index, wall_seconds) in [(0, 4.0), (1, 12.0)] {
            let mut limited = results.rows[0].contenders[index].clone();
            limited.limit = Some("0.75 CPU".into());
            for run in &mut limited.runs {
                run.wall_seconds = wall_seconds;
            }
            results.rows[0].contenders.push(limited);
        }
        let text = render(&results);
        for line in [
            "volferry: speed x2.00 of nbdcopy, processor time x0.67 of nbdcopy\n",
            "volferry (0.75 CPU): speed x3.00 of nbdcopy (0.75 CPU), \
             processor time x0.67 of nbdcopy (0.75 CPU), speed x0.25 of unlimited\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn what_was_skipped_is_named_with_its_reason() {
        let mut results = example();
        results.rows[0].contenders[1].skipped = Some("too old".into());
        results.rows[0].contenders[1].runs.clear();
        assert!(render(&results).contains("skipped: too old"));
        results.rows[0].skipped = Some("needs root".into());
        assert!(render(&results).contains("dense-disk: skipped, needs root"));
    }
}
