//! `volferry digest`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use volferry_agent::options::{TreeOptions, parse_chunk_size};
use volferry_agent::output_files::OutputFiles;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::Failure;
use volferry_protocol::geometry::ChunkSize;
use volferry_protocol::tree::fidelity::ClassSet;
use volferry_protocol::tree::set_digest::TreeCounts;
use volferry_source_agent::digest::{Found, OpenVolume};
use volferry_source_agent::manifest::ManifestFile;
use volferry_source_agent::tree::digest::DigestOptions;
use volferry_source_agent::{SourceConfig, tree};

use crate::output;

/// Arguments of `volferry digest`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The volume: a block device, a raw image file, or a directory
    volume: PathBuf,

    /// Chunk size; the digest depends on it
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_chunk_size)]
    chunk_size: ChunkSize,

    /// Read through the page cache
    #[arg(long)]
    buffered: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Write the digest of every chunk to this file, for volferry verify --manifest; of a tree the
    /// digest of every file, for b3sum --check
    #[arg(long, value_name = "PATH")]
    manifest: Option<PathBuf>,

    #[command(flatten)]
    tree: TreeOptions,
}

/// The digest of a volume, as printed with `--json`.
#[derive(Debug, Serialize)]
struct Printed {
    digest: Digest,
    logical_bytes: u64,
    chunk_size: ChunkSize,
}

/// The digest of a tree, as printed with `--json`.
#[derive(Debug, Serialize)]
struct PrintedTree {
    digest: Digest,
    #[serde(flatten)]
    counts: TreeCounts,
    accepted: ClassSet,
    selinux: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut outputs = OutputFiles::beside(vec![&arguments.volume]);
    outputs.add("manifest", arguments.manifest.as_deref())?;
    if arguments.volume.is_dir() {
        return run_on_tree(arguments);
    }
    let volume = OpenVolume::open(
        &arguments.volume,
        !arguments.buffered,
        arguments.chunk_size,
        None,
    )?;
    let geometry = volume.geometry();
    let manifest = arguments.manifest.as_deref();
    let mut manifest = manifest
        .map(|path| ManifestFile::create(path, &geometry))
        .transpose()?;
    let mut recorded = Ok(());
    let defaults = SourceConfig::new(arguments.volume.clone());
    let digest = volume.digest(defaults.readers, defaults.memory_bytes, |found| {
        if let (Ok(()), Some(manifest), Found::Chunk(index, digest)) =
            (&recorded, &mut manifest, found)
        {
            recorded = manifest.record(index, digest);
        }
    })?;
    recorded?;
    manifest.as_mut().map_or(Ok(()), ManifestFile::finish)?;
    if arguments.json {
        let printed = Printed {
            digest,
            logical_bytes: geometry.volume_size(),
            chunk_size: geometry.chunk_size(),
        };
        let json = serde_json::to_string(&printed);
        output::line(&json.map_err(|error| Failure::internal(error.to_string()))?)
    } else {
        output::line(&format!("{digest}  {}", arguments.volume.display()))
    }
}

fn run_on_tree(arguments: &Arguments) -> Result<(), Failure> {
    let defaults = SourceConfig::new(arguments.volume.clone());
    let terms = arguments.tree.terms();
    let options = DigestOptions {
        terms,
        direct: !arguments.buffered,
        readers: defaults.readers,
        memory_bytes: defaults.memory_bytes,
        manifest: arguments.manifest.as_deref(),
    };
    let summary = tree::digest::digest(&arguments.volume, &options)?;
    let digest = summary.digest;
    if arguments.json {
        let printed = PrintedTree {
            digest,
            counts: summary.counts,
            accepted: terms.accept,
            selinux: terms.selinux,
        };
        let json = serde_json::to_string(&printed);
        output::line(&json.map_err(|error| Failure::internal(error.to_string()))?)
    } else {
        output::line(&format!("{digest}  {}", arguments.volume.display()))
    }
}
