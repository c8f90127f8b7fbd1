//! `volferry bench`.

mod pod;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use uuid::Uuid;
use volferry_agent::options::{TransportOptions, TreeOptions, parse_duration, parse_size};
use volferry_agent::output_files::{self, OutputFiles};
use volferry_agent::trace::{self, Sample};
use volferry_benchmark::compare::Comparison;
use volferry_benchmark::profile::Profile;
use volferry_benchmark::report::Report;
use volferry_benchmark::run;
use volferry_benchmark::settings::{Settings, Tuning};
use volferry_benchmark::stop::Stop;
use volferry_benchmark::{Cloner, page, table};
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::receipt::Receipt;
use volferry_source_agent::SourceConfig;
use volferry_storage::TargetOptions;
use volferry_target_agent::TargetConfig;
use volferry_transport::TransportChoice;

use crate::copy::{image_for, make_directory, refuse_nested, refuse_same};
use crate::output::{self, Steps};
use crate::pair::{self, ChunkOptions};

/// Arguments of `volferry bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    run: RunArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show several reports beside each other; changes are of the last against the first
    Compare(CompareArguments),
    /// Draw a trace that an agent or volferry copy recorded with --trace
    Trace(TraceArguments),
    /// What the pods of kubectl volferry bench run
    #[command(subcommand)]
    Pod(pod::Command),
}

#[derive(Debug, Args)]
struct TraceArguments {
    /// The trace
    trace: PathBuf,

    /// Where the page goes
    #[arg(long, value_name = "PATH")]
    html: PathBuf,
}

#[derive(Debug, Args)]
struct CompareArguments {
    /// Reports that volferry bench wrote with --report
    #[arg(required = true, num_args = 2.., value_name = "REPORT")]
    reports: Vec<PathBuf>,

    /// Also write a page with charts to this file
    #[arg(long, value_name = "PATH")]
    html: Option<PathBuf>,
}

/// What to measure.
#[derive(Debug, Args)]
struct RunArguments {
    /// What to read: a block device, a raw image file, or a directory; it is never written
    #[arg(required = true)]
    source: Option<PathBuf>,

    /// Where clones go: a directory that is empty or not there yet, or a block device
    #[arg(required = true)]
    target: Option<PathBuf>,

    /// Write to a block device, all of which may be lost, or into a new directory of a directory
    /// that holds something
    #[arg(long)]
    overwrite: bool,

    /// Where generated sources are made, and removed again [default: beside the clones]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,

    /// The block volumes to make and clone: random, vm, database, text, sparse=PART; several with
    /// commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[arg(default_values = ["random", "sparse=0.1", "vm"])]
    profile: Vec<Profile>,

    /// Bytes of each [default: as many as the storage and the budget allow, at most 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,

    /// Small files to make and clone as a tree; 0 for none [default: 5 for each MiB of the size]
    #[arg(long, value_name = "N")]
    files: Option<u64>,

    /// What the generated data follows from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// How often everything is measured at most
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,

    /// How long all may take; a clone that has begun is not cut short
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = parse_duration)]
    budget: Duration,

    /// Bytes that may be written
    #[arg(long, value_name = "SIZE", default_value = "32GiB", value_parser = parse_size)]
    budget_bytes: u64,

    /// Have the kernel drop all caches before each clone, those of others too; takes root
    #[arg(long)]
    drop_caches: bool,

    /// Data connections [default: one for each processor, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,

    #[command(flatten)]
    transport: TransportOptions,

    #[command(flatten)]
    tree: TreeOptions,

    #[command(flatten)]
    chunks: ChunkOptions,

    /// Print the report as JSON instead of tables
    #[arg(long)]
    json: bool,

    /// Also write the report to this file, as JSON
    #[arg(long, value_name = "PATH")]
    report: Option<PathBuf>,

    /// Also write a page with charts to this file; it needs nothing but a browser
    #[arg(long, value_name = "PATH")]
    html: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Some(Command::Compare(arguments)) => compare(arguments),
        Some(Command::Trace(arguments)) => draw(arguments),
        Some(Command::Pod(command)) => pod::run(command),
        None => measure(&arguments.run),
    }
}

fn measure(arguments: &RunArguments) -> Result<(), Failure> {
    // clap asks for both unless there is a subcommand.
    let (Some(source), Some(target)) = (&arguments.source, &arguments.target) else {
        let text = "there is nothing to measure; name a source and a target";
        return Err(Failure::new(FailureCode::Usage, text));
    };
    refuse_same(source, target)?;
    if source.is_dir() {
        refuse_nested(source, target)?;
    }
    let mut outputs = OutputFiles::beside(vec![source, target]);
    outputs.add("report", arguments.report.as_deref())?;
    outputs.add("page", arguments.html.as_deref())?;
    let settings = settings(arguments, source, target);
    let pair = Pair {
        tuning: settings.tuning,
        overwrite: settings.overwrite,
        tree: &arguments.tree,
        transport: &arguments.transport,
    };
    let stop = Stop::on_signal()?;
    let steps = Steps::new();
    let report = run::run(&settings, &pair, &stop, |step| steps.show(step));
    steps.clear();
    let report = report?;
    let json = report.to_json().map_err(|error| {
        let text = format!("the report can't be made JSON: {error}");
        Failure::internal(text)
    })?;
    // What is to be kept first: nobody may read the other.
    if let Some(path) = &arguments.report {
        output_files::write("report", path, &json)?;
    }
    if let Some(path) = &arguments.html {
        output_files::write("page", path, &page::render(&[(&name_of(path), &report)]))?;
    }
    match arguments.json {
        true => output::line(json.trim_end()),
        false => output::line(table::render(&report).trim_end()),
    }
}

fn settings(arguments: &RunArguments, source: &Path, target: &Path) -> Settings {
    let defaults = Tuning::of_agents();
    Settings {
        source: source.to_owned(),
        target: target.to_owned(),
        scratch: arguments.scratch.clone(),
        overwrite: arguments.overwrite,
        profiles: once_each(&arguments.profile),
        size: arguments.size,
        files: arguments.files,
        seed: arguments.seed,
        repeats: arguments.repeats,
        budget: arguments.budget,
        budget_bytes: arguments.budget_bytes,
        drop_caches: arguments.drop_caches,
        tuning: Tuning {
            chunk_size: arguments.chunks.chunk_size,
            streams: arguments.streams.unwrap_or(defaults.streams),
            memory_bytes: arguments.chunks.memory_bytes(),
            direct: !arguments.chunks.buffered,
            quic: arguments.transport.transport == Some(TransportChoice::Quic),
            ..defaults
        },
    }
}

/// Without those that come twice: each is made and cloned by its name.
fn once_each(profiles: &[Profile]) -> Vec<Profile> {
    let mut once = Vec::new();
    for profile in profiles {
        if !once.contains(profile) {
            once.push(*profile);
        }
    }
    once
}

/// Both agents in this process.
struct Pair<'a> {
    tuning: Tuning,
    overwrite: bool,
    tree: &'a TreeOptions,
    transport: &'a TransportOptions,
}

impl Cloner for Pair<'_> {
    fn clone(
        &self,
        source: &Path,
        target: &Path,
        on_sample: &mut dyn FnMut(Sample),
    ) -> Result<Receipt, Failure> {
        let image = image_for(source, target);
        let source = image.as_deref().unwrap_or(source);
        if source.is_dir() {
            make_directory(target)?;
        }
        let tuning = self.tuning;
        let source = SourceConfig {
            chunk_size: tuning.chunk_size,
            streams: tuning.streams,
            memory_bytes: tuning.memory_bytes,
            direct: tuning.direct,
            terms: self.tree.terms(),
            ..SourceConfig::new(source.to_owned())
        };
        let target = TargetConfig {
            options: TargetOptions {
                overwrite: self.overwrite,
                direct: tuning.direct,
                ..TargetOptions::default()
            },
            memory_bytes: tuning.memory_bytes,
            terms: self.tree.terms(),
            ..TargetConfig::new(target.to_owned())
        };
        let on_sample = RefCell::new(on_sample);
        pair::clone(
            Uuid::new_v4(),
            source,
            target,
            self.transport.clone(),
            |source, target| on_sample.borrow_mut()(Sample::of_both(source, target)),
        )
    }
}

fn compare(arguments: &CompareArguments) -> Result<(), Failure> {
    let reports = arguments
        .reports
        .iter()
        .map(|path| Ok((name_of(path), read(path)?)));
    let reports = reports.collect::<Result<Vec<_>, Failure>>()?;
    let named: Vec<_> = reports
        .iter()
        .map(|(name, report)| (name.as_str(), report))
        .collect();
    let comparison = Comparison::of(&named);
    if let Some(path) = &arguments.html {
        output_files::write("page", path, &page::render(&named))?;
    }
    output::line(table::render_comparison(&comparison).trim_end())
}

fn draw(arguments: &TraceArguments) -> Result<(), Failure> {
    let (header, samples) = trace::read(&read_text(&arguments.trace)?).map_err(|error| {
        let path = arguments.trace.display();
        Failure::new(
            FailureCode::Usage,
            format!("{path} can't be read as a trace: {error}"),
        )
    })?;
    output_files::write(
        "page",
        &arguments.html,
        &page::render_trace(&header, &samples),
    )
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}

fn read(path: &Path) -> Result<Report, Failure> {
    let text = read_text(path)?;
    Report::read(&text).map_err(|error| {
        let text = format!("{} can't be read as a report: {error}", path.display());
        Failure::new(FailureCode::Usage, text)
    })
}

fn read_text(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        let text = format!("{} can't be read: {error}", path.display());
        Failure::new(FailureCode::Usage, text)
    })
}
