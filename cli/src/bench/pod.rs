//! `volferry bench pod`: one end of a clone measures itself, in a pod like that of an agent. `kubectl
//! volferry bench` starts them.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use volferry_agent::options::parse_size;
use volferry_benchmark::apart::{self, EndReport, EndSettings, Inputs, Peer};
use volferry_benchmark::profile::Profile;
use volferry_benchmark::settings::Tuning;
use volferry_benchmark::stop::Stop;
use volferry_benchmark::{page, table};
use volferry_protocol::failure::{Failure, FailureCode};

use crate::output::{self, Steps};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Fill a volume, and measure what its node and storage can do as a source
    Source(EndArguments),
    /// Measure what a volume's node and storage can do as a target; all that it holds is lost
    Target(EndArguments),
    /// Make one report of what two pods measured, and of the clones between them
    Report {
        /// What they said, as JSON
        inputs: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct EndArguments {
    /// A block device, or a directory; all that it holds is lost
    #[arg(long, value_name = "PATH")]
    volume: PathBuf,

    /// What the data is like: random, vm, database, text, sparse=PART
    #[arg(long, value_name = "NAME", default_value = "random")]
    profile: Profile,

    /// What it follows from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Small files that fill a directory
    #[arg(long, value_name = "N", default_value_t = 1000)]
    files: u64,

    /// How often everything is measured
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,

    /// Bytes that are read or written at once to measure that
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    bytes: u64,

    /// Data connections [default: one for each processor, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,

    /// The clones run over QUIC
    #[arg(long)]
    quic: bool,

    /// Where the other end is met: the source dials it there, the target listens
    #[arg(long, value_name = "ADDRESS", requires = "identity")]
    peer: Option<String>,

    /// The directory of the credentials
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    let steps = Steps::new();
    let mut on_step = |step: &str| steps.show(step);
    match command {
        Command::Source(arguments) => {
            let stop = Stop::on_signal()?;
            let measured = apart::measure_source(&arguments.settings(), &stop, &mut on_step);
            steps.clear();
            measured.and_then(|report| tell(&report))
        }
        Command::Target(arguments) => {
            let stop = Stop::on_signal()?;
            let mut first = Ok(());
            let measured =
                apart::measure_target(&arguments.settings(), &stop, &mut on_step, &mut |report| {
                    first = tell(report)
                });
            steps.clear();
            first?;
            measured.and_then(|report| tell(&report))
        }
        Command::Report { inputs } => join(inputs),
    }
}

impl EndArguments {
    fn settings(&self) -> EndSettings {
        let peer = self.peer.clone().zip(self.identity.clone());
        let tuning = Tuning {
            quic: self.quic,
            ..Tuning::of_agents()
        };
        EndSettings {
            volume: self.volume.clone(),
            profile: self.profile,
            seed: self.seed,
            files: self.files,
            repeats: self.repeats,
            bytes: self.bytes,
            tuning: Tuning {
                streams: self.streams.unwrap_or(tuning.streams),
                ..tuning
            },
            peer: peer.map(|(address, identity)| Peer { identity, address }),
        }
    }
}

/// In one line: that is how the log of a pod is read.
fn tell(report: &EndReport) -> Result<(), Failure> {
    let text = serde_json::to_string(report)
        .map_err(|error| Failure::internal(format!("the report can't be made JSON: {error}")))?;
    output::line(&text)
}

/// Prints the report in one line: as data, as tables, and as a page.
fn join(path: &Path) -> Result<(), Failure> {
    let failed = |error: String| {
        let text = format!("{} can't be read: {error}", path.display());
        Failure::new(FailureCode::Usage, text)
    };
    let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let inputs: Inputs = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    let report = apart::join(inputs).ok_or_else(|| failed("no source was measured".to_owned()))?;
    let all = json!({
        "schema": REPORTS,
        "table": table::render(&report),
        "page": page::render(&[("kubectl volferry bench", &report)]),
        "report": report,
    });
    output::line(&all.to_string())
}

/// What the line with the report is called.
const REPORTS: &str = "volferry-bench-reports";

#[cfg(test)]
mod tests {
    use clap::Parser;

    #[test]
    fn the_arguments_of_the_pods_are_taken() {
        // As controller/src/plugin/bench/objects.rs writes them.
        let words = [
            "volferry",
            "bench",
            "pod",
            "source",
            "--volume=/dev/volferry-target",
            "--profile=sparse=0.1",
            "--seed=1",
            "--files=51200",
            "--bytes=2147483648",
            "--peer=10.0.0.7:7700",
            "--identity=/identity",
            "--streams=4",
            "--quic",
        ];
        crate::Arguments::try_parse_from(words).unwrap();
        let words = ["volferry", "bench", "pod", "report", "/inputs/inputs.json"];
        crate::Arguments::try_parse_from(words).unwrap();
    }
}
