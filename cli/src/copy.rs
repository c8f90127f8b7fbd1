//! `volferry copy`.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use uuid::Uuid;
use volferry_agent::options::{TransportOptions, TreeOptions, parse_part, parse_size};
use volferry_agent::outcome;
use volferry_agent::output_files::{self, OutputFiles};
use volferry_agent::trace::{Recorder, Sample};
use volferry_protocol::compression::Wanted;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_source_agent::SourceConfig;
use volferry_storage::tree::{DISK_IMAGE, disk_image_in};
use volferry_storage::{TargetOptions, same_volume};
use volferry_target_agent::options::ResumeOptions;
use volferry_target_agent::{Reflink, TargetConfig};

use crate::output::{self, Meter};
use crate::pair::{self, ChunkOptions};

/// Arguments of `volferry copy`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("replacing").args(["overwrite", "delta"]).multiple(true)))]
pub(crate) struct Arguments {
    /// The source volume: a block device, a raw image file, or a directory
    source: PathBuf,

    /// The target volume: a block device, or a file or directory that may not exist yet
    target: PathBuf,

    /// Write into a target file that exists, or a directory that holds something: what is sent
    /// replaces what is there
    #[arg(long)]
    overwrite: bool,

    /// Remove what a target directory holds and the source does not, so that it is exactly the source
    #[arg(long, requires = "replacing")]
    delete_extra: bool,

    /// The part of a filesystem that is kept free when a block volume is cloned into a directory
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = parse_part)]
    filesystem_overhead: f64,

    /// Clone a tree though files of it change, appear or vanish while it is read
    #[arg(long)]
    allow_changed: bool,

    #[command(flatten)]
    tree: TreeOptions,

    /// Make what lies behind the volume on a larger target read as zeros
    #[arg(long)]
    zero_tail: bool,

    /// Allocate all of the target's space, also for zeros
    #[arg(long)]
    preallocate: bool,

    /// Have the target file share the source file's blocks, where one filesystem holds both and can,
    /// and compare instead of sending: never, auto (else copy), or always (else fail)
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = When::Never)]
    #[arg(conflicts_with = "preallocate")]
    reflink: When,

    #[command(flatten)]
    resume: ResumeOptions,

    /// What tells this state of the source from others, such as the uid of a snapshot: a clone goes
    /// on only from the same [default: size, and for a file inode and times]
    #[arg(long, value_name = "ID")]
    source_generation: Option<String>,

    /// Data connections [default: one for each processor, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,

    /// Bytes that are sent each second at most; 0 for no limit
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    bandwidth_limit: u64,

    /// How what is sent is compressed: none, lz4, zstd (or zstd:1 to zstd:9), or auto, as long as that
    /// makes the clone faster
    #[arg(long, value_name = "METHOD", default_value_t)]
    compression: Wanted,

    #[command(flatten)]
    transport: TransportOptions,

    #[command(flatten)]
    chunks: ChunkOptions,

    /// Print the receipt as one JSON object
    #[arg(long)]
    json: bool,

    /// Also write the receipt, or the failure, to this file as JSON
    #[arg(long, value_name = "PATH")]
    receipt: Option<PathBuf>,

    /// Write the digest of every chunk to this file, for volferry verify --manifest; of a tree the
    /// digest of every file, for b3sum --check
    #[arg(long, value_name = "PATH")]
    manifest: Option<PathBuf>,

    /// Record to this file how the clone goes, moment by moment, for volferry bench trace
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
}

/// Whether the target shares the source's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum When {
    /// It holds a copy of its own
    Never,
    /// Where that is possible
    Auto,
    /// Or there is no clone
    Always,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let volumes = vec![arguments.source.as_path(), arguments.target.as_path()];
    let mut outputs = OutputFiles::beside(volumes);
    outputs.add("receipt", arguments.receipt.as_deref())?;
    outputs.add("manifest", arguments.manifest.as_deref())?;
    outputs.add("trace", arguments.trace.as_deref())?;
    let outcome = copy(arguments);
    let written = arguments.receipt.as_deref().map_or(Ok(()), |path| {
        outcome::write(&outcome, path)
            .map_err(|error| output_files::unwritable("receipt", path, &error))
    });
    // Last: what reads it may have gone.
    let printed = outcome.as_ref().map_or(Ok(()), |receipt| {
        if arguments.json {
            output::line(outcome::to_json(&outcome).trim_end())
        } else {
            output::line(&output::describe_receipt(receipt))
        }
    });
    outcome.map(drop).and(written).and(printed)
}

fn copy(arguments: &Arguments) -> outcome::Outcome {
    refuse_same(&arguments.source, &arguments.target)?;
    let image = image_for(&arguments.source, &arguments.target);
    let source_path = image.as_deref().unwrap_or(&arguments.source);
    // What is read and what is written, where a directory only holds it.
    let written = arguments.target.join(DISK_IMAGE);
    refuse_same(source_path, &arguments.target)?;
    refuse_same(source_path, &written)?;
    if source_path.is_dir() {
        refuse_nested(&arguments.source, &arguments.target)?;
        make_directory(&arguments.target)?;
    }
    let reflink = reflink(arguments, source_path)?;
    let memory_bytes = arguments.chunks.memory_bytes();
    let source = SourceConfig::new(source_path.to_owned());
    // Between two ends in one process there is no network that could limit.
    let streams = arguments.streams.unwrap_or(source.streams);
    let source = SourceConfig {
        chunk_size: arguments.chunks.chunk_size,
        memory_bytes,
        direct: !arguments.chunks.buffered,
        manifest: arguments.manifest.clone(),
        terms: arguments.tree.terms(),
        allow_changed: arguments.allow_changed,
        bandwidth_limit: arguments.bandwidth_limit,
        compression: arguments.compression,
        generation: arguments.source_generation.clone(),
        ..source
    }
    .with_streams(Some(streams));
    let target = TargetConfig {
        options: TargetOptions {
            overwrite: arguments.overwrite,
            zero_tail: arguments.zero_tail,
            preallocate: arguments.preallocate,
            direct: !arguments.chunks.buffered,
        },
        reflink,
        memory_bytes,
        terms: arguments.tree.terms(),
        delete_extra: arguments.delete_extra,
        filesystem_overhead: arguments.filesystem_overhead,
        ..TargetConfig::new(arguments.target.clone())
    };
    let target = arguments.resume.apply(target);
    let keeps_journal = arguments.resume.has_journal() || source_path.is_dir();
    let clone_id = if keeps_journal {
        clone_id_of(&arguments.source, &arguments.target)
    } else {
        Uuid::new_v4()
    };
    let mut recorder = Recorder::open(arguments.trace.as_deref(), clone_id, "volferry")?;
    let mut meter = Meter::new();
    let outcome = pair::clone(
        clone_id,
        source,
        target,
        arguments.transport.clone(),
        |source, target| {
            meter.show(source, target);
            recorder.record(&Sample::of_both(source, target));
        },
    );
    meter.clear();
    outcome
}

/// How the clone begins. Only a file can share the blocks of a file; of a tree nothing is shared.
fn reflink(arguments: &Arguments, source: &Path) -> Result<Option<Reflink>, Failure> {
    let must = match arguments.reflink {
        When::Never => return Ok(None),
        When::Auto => false,
        When::Always => true,
    };
    let has_directory = source.is_dir() || arguments.target.is_dir();
    if must && has_directory {
        let text =
            "--reflink always is for one file: name the source's and the target's, no directory";
        return Err(Failure::new(FailureCode::Usage, text));
    }
    Ok((!has_directory).then(|| Reflink {
        source: source.to_owned(),
        must,
    }))
}

/// The same clone has the same id whenever it is run: its journal is found by it.
fn clone_id_of(source: &Path, target: &Path) -> Uuid {
    let mut hasher = blake3::Hasher::new_derive_key("volferry 2026-11-21 copy v1");
    for path in [source, target] {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let bytes = path.as_os_str().as_encoded_bytes();
        hasher.update(&(bytes.len() as u64).to_be_bytes());
        hasher.update(bytes);
    }
    let [first @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] =
        *hasher.finalize().as_bytes();
    uuid::Builder::from_custom_bytes(first).into_uuid()
}

/// A volume must not be cloned onto itself: the target is written while the source is read.
pub(crate) fn refuse_same(source: &Path, target: &Path) -> Result<(), Failure> {
    // Where one of the two can't be inspected, opening it says why, and better.
    let Ok(Some(reason)) = same_volume(source, target) else {
        return Ok(());
    };
    let text = format!(
        "{} and {} are the same volume: {reason}; choose another target",
        source.display(),
        target.display()
    );
    Err(Failure::new(FailureCode::Usage, text))
}

/// The disk image that is all that a source directory holds, where the target is a block device: the
/// volume goes back to what it was cloned from.
pub(crate) fn image_for(source: &Path, target: &Path) -> Option<PathBuf> {
    let is_device =
        std::fs::metadata(target).is_ok_and(|target| target.file_type().is_block_device());
    is_device.then(|| disk_image_in(source)).flatten()
}

/// Makes the target directory where it isn't there yet.
pub(crate) fn make_directory(target: &Path) -> Result<(), Failure> {
    match std::fs::create_dir(target) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            let text = format!("the directory {} can't be made: {error}", target.display());
            Err(Failure::new(FailureCode::TargetOpen, text))
        }
        _ => Ok(()),
    }
}

/// A tree must not be cloned into itself: it would grow while it is read.
pub(crate) fn refuse_nested(source: &Path, target: &Path) -> Result<(), Failure> {
    // A target that isn't there is made in a directory that is.
    let real_target = target.canonicalize().or_else(|error| {
        let name = target.file_name().ok_or(error)?;
        let above = target.parent().filter(|above| *above != Path::new(""));
        Ok::<_, std::io::Error>(
            above
                .unwrap_or_else(|| Path::new("."))
                .canonicalize()?
                .join(name),
        )
    });
    let (Ok(real_source), Ok(real_target)) = (source.canonicalize(), real_target) else {
        return Ok(());
    };
    if !real_target.starts_with(&real_source) && !real_source.starts_with(&real_target) {
        return Ok(());
    }
    let text = format!(
        "one of {} and {} lies within the other; choose another target",
        source.display(),
        target.display()
    );
    Err(Failure::new(FailureCode::Usage, text))
}
