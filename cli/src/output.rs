//! What people and scripts read: lines on standard output, complaints on standard error, the
//! progress bar. That nobody reads them any more must not end a clone of hours.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use volferry_agent::progress::Report;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::receipt::{Receipt, TreeReceipt};
use volferry_protocol::waits::{Limit, limit_of_both};

/// Prints a line on standard output. A reader that wants no more, such as `head`, is no failure.
///
/// # Errors
/// When it can't be written, such as to a file on a full disk.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let text = format!("standard output can't be written: {error}");
            Err(Failure::new(FailureCode::Usage, text))
        }
        _ => Ok(()),
    }
}

/// Says something on standard error, if anybody hears it.
fn say(text: &str) {
    let _nobody_hears = writeln!(io::stderr(), "{text}");
}

/// Says on standard error why the command failed.
pub(crate) fn complain(failure: &Failure) {
    say(&format!(
        "volferry: {} failure ({}): {failure}",
        failure.code.class(),
        failure.code.label()
    ));
}

/// Shows progress: a bar on a terminal, a line every few seconds elsewhere.
#[derive(Debug)]
pub(crate) enum Meter {
    Bar(ProgressBar),
    Lines { next_at: Instant },
}

/// Between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

impl Meter {
    /// A meter on standard error.
    pub(crate) fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines {
                next_at: Instant::now() + LINE_INTERVAL,
            };
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}");
        bar.set_style(style.unwrap_or_else(|_bad| ProgressStyle::default_bar()));
        Self::Bar(bar)
    }

    /// Shows what both ends report.
    pub(crate) fn show(&mut self, source: &Report, target: &Report) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(target.logical_bytes);
                bar.set_position(target.durable_bytes);
                bar.set_message(describe(source, target));
            }
            Self::Lines { next_at } if *next_at <= Instant::now() => {
                *next_at += LINE_INTERVAL;
                say(&describe(source, target));
            }
            Self::Lines { .. } => {}
        }
    }

    /// Leaves the terminal clean.
    pub(crate) fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// Says on standard error what is being done: in one line on a terminal, in one for each elsewhere.
#[derive(Debug)]
pub(crate) struct Steps(Option<ProgressBar>);

impl Steps {
    /// Nothing is done yet.
    pub(crate) fn new() -> Self {
        Self(io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{elapsed}  {msg}");
            bar.set_style(style.unwrap_or_else(|_bad| ProgressStyle::default_bar()));
            bar
        }))
    }

    /// This is done now.
    pub(crate) fn show(&self, step: &str) {
        match &self.0 {
            Some(bar) => bar.set_message(step.to_owned()),
            None => say(step),
        }
    }

    /// Leaves the terminal clean.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn describe(source: &Report, target: &Report) -> String {
    let eta = match target.eta_seconds {
        Some(seconds) if seconds < 86_400.0 * 365.0 => human_seconds(seconds),
        _ => "unknown".to_owned(),
    };
    let limited = limit_of_both(&source.recent_waits, &target.recent_waits);
    let limit = match limited.limit {
        Limit::Unknown => String::new(),
        _ => format!("  limit: {limited}"),
    };
    if target.entries > 0 && target.logical_bytes == 0 {
        // How large a tree is shows when it was walked.
        return format!(
            "{} of {} names made  data {}{limit}",
            target.entries,
            source.entries,
            human_bytes(target.data_bytes),
        );
    }
    format!(
        "{} of {} durable  {}/s  ETA {eta}  data {}  zero {}{limit}",
        human_bytes(target.durable_bytes),
        human_bytes(target.logical_bytes),
        human_size(target.bytes_per_second),
        human_bytes(target.data_bytes),
        human_bytes(target.zero_bytes),
    )
}

/// A receipt for people.
pub(crate) fn describe_receipt(receipt: &Receipt) -> String {
    let cost = |bytes: u64, seconds: f64| {
        let gib = bytes as f64 / (1u64 << 30) as f64;
        if gib > 0.0 {
            format!(" ({:.2} s/GiB)", seconds / gib)
        } else {
            String::new()
        }
    };
    let end = |stats: &volferry_protocol::receipt::AgentStats| {
        format!(
            "{:.2} CPU seconds{}, peak memory {}",
            stats.cpu_seconds,
            cost(receipt.logical_bytes, stats.cpu_seconds),
            human_bytes(stats.peak_memory_bytes)
        )
    };
    let limit = receipt
        .limit
        .map_or_else(String::new, |limited| format!(", limited by {limited}"));
    let volume = match &receipt.tree {
        None => format!(
            "chunks of {}",
            human_bytes(u64::from(receipt.chunk_size.bytes()))
        ),
        Some(tree) => describe_tree(tree),
    };
    format!(
        "clone     {}\n\
         digest    {}\n\
         volume    {} ({} data, {} zero), {volume}\n\
         wire      {}\n\
         time      {} at {}/s{limit}\n\
         source    {}\n\
         target    {}",
        receipt.clone_id,
        receipt.digest,
        human_bytes(receipt.logical_bytes),
        human_bytes(receipt.data_bytes),
        human_bytes(receipt.zero_bytes),
        human_bytes(receipt.wire_bytes),
        human_seconds(receipt.seconds),
        human_size(receipt.bytes_per_second),
        end(&receipt.source),
        end(&receipt.target),
    )
}

/// What a tree holds, and what of it was lost.
fn describe_tree(tree: &TreeReceipt) -> String {
    let counts = &tree.counts;
    let mut text = format!(
        "{} files, {} directories, {} symbolic links, {} other entries, {} hard links",
        counts.files, counts.directories, counts.symlinks, counts.specials, counts.links
    );
    for (class, loss) in tree.fidelity.losses() {
        text.push_str(&format!("\nlost      {class} of {} entries", loss.count));
    }
    if tree.changed > 0 {
        text.push_str(&format!(
            "\nchanged   {} entries while they were read",
            tree.changed
        ));
    }
    text
}

/// Bytes with a binary unit and three digits or so.
pub(crate) fn human_bytes(bytes: u64) -> String {
    human_size(bytes as f64)
}

fn human_size(mut value: f64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if value < 1024.0 {
        return format!("{value:.0} B");
    }
    let mut unit = "B";
    for larger in UNITS {
        // What would be rounded to 1024 is one of the next unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// A time with the units that matter.
fn human_seconds(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = Duration::try_from_secs_f64(seconds).map_or(u64::MAX, |time| time.as_secs());
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 {
        format!("{hours} h {minutes:02} min")
    } else {
        format!("{minutes} min {seconds:02} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let check = |bytes: u64, text: &str| assert_eq!(human_bytes(bytes), text);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(1_048_575, "1.0 MiB");
        check(1 << 30, "1.0 GiB");
        check(u64::MAX, "16.0 EiB");
        assert_eq!(human_seconds(0.04), "0.0 s");
        assert_eq!(human_seconds(61.0), "1 min 01 s");
        assert_eq!(human_seconds(7260.0), "2 h 01 min");
    }
}
