//! `volferry verify`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::Args;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, Geometry};
use volferry_protocol::manifest::Manifest;
use volferry_protocol::range_set::ChunkSet;
use volferry_protocol::receipt::{Receipt, TreeReceipt};
use volferry_protocol::tree::session::TreeTerms;
use volferry_protocol::tree::set_digest::TreeCounts;
use volferry_source_agent::SourceConfig;
use volferry_source_agent::digest::{Found, OpenVolume};
use volferry_source_agent::tree::digest::DigestOptions;
use volferry_storage::tree::disk_image_in;

use crate::output;

/// Arguments of `volferry verify`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The volume: a block device, a raw image file, or a directory, also one that a volume was cloned
    /// into. What lies behind the receipt's volume on a larger device or file is not looked at
    volume: PathBuf,

    /// The receipt of the clone, as JSON
    #[arg(long, value_name = "FILE")]
    receipt: PathBuf,

    /// The digests of its chunks, to tell which of them differ
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,

    /// Read through the page cache
    #[arg(long)]
    buffered: bool,
}

/// Ranges of differing chunks that are listed.
const LISTED_MAX: usize = 20;

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let receipt = read_receipt(&arguments.receipt)?;
    if let Some(tree) = &receipt.tree {
        return verify_tree(arguments, &receipt, tree);
    }
    let manifest = arguments.manifest.as_deref();
    let manifest = manifest
        .map(|path| read_manifest(path, &receipt))
        .transpose()?;
    // A volume that was cloned into a directory.
    let image = disk_image_in(&arguments.volume);
    let path = image.as_deref().unwrap_or(&arguments.volume);
    let volume = OpenVolume::open(
        path,
        !arguments.buffered,
        receipt.chunk_size,
        Some(receipt.logical_bytes),
    )?;
    let mut differing = ChunkSet::default();
    let defaults = SourceConfig::new(path.to_owned());
    let path = path.display();
    let digest = volume.digest(defaults.readers, defaults.memory_bytes, |found| {
        if let Some(manifest) = &manifest {
            compare(manifest, found, &mut differing);
        }
    })?;
    if digest == receipt.digest {
        return output::line(&format!("{path} is what the receipt says: digest {digest}"));
    }
    let mut text = format!(
        "{path} has digest {digest}, the receipt says {}",
        receipt.digest
    );
    text.push_str(&match manifest {
        None => "; with --manifest the chunks that differ can be told".to_owned(),
        Some(_) => describe(&volume.geometry(), &differing),
    });
    Err(Failure::new(FailureCode::Integrity, text))
}

/// Compares a tree with its receipt, leaving out what the receipt leaves out.
fn verify_tree(
    arguments: &Arguments,
    receipt: &Receipt,
    tree: &TreeReceipt,
) -> Result<(), Failure> {
    if arguments.manifest.is_some() {
        let text = "the manifest of a tree is for b3sum --check, in the directory itself";
        return Err(Failure::new(FailureCode::Usage, text));
    }
    let defaults = SourceConfig::new(arguments.volume.clone());
    let options = DigestOptions {
        terms: TreeTerms {
            accept: tree.accepted,
            selinux: tree.selinux,
        },
        direct: !arguments.buffered,
        readers: defaults.readers,
        memory_bytes: defaults.memory_bytes,
        manifest: None,
    };
    let found = volferry_source_agent::tree::digest::digest(&arguments.volume, &options)?;
    let (path, digest) = (arguments.volume.display(), found.digest);
    if digest == receipt.digest {
        return output::line(&format!("{path} is what the receipt says: digest {digest}"));
    }
    let describe = |counts: TreeCounts| {
        format!(
            "{} files, {} directories, {} symbolic links, {} other entries, {} hard links, {} bytes",
            counts.files,
            counts.directories,
            counts.symlinks,
            counts.specials,
            counts.links,
            counts.bytes
        )
    };
    let text = format!(
        "{path} has digest {digest} ({}), the receipt says {} ({}); the manifest of the clone, with \
         b3sum --check, tells which files differ",
        describe(found.counts),
        receipt.digest,
        describe(tree.counts),
    );
    Err(Failure::new(FailureCode::Integrity, text))
}

fn compare(manifest: &Manifest, found: Found, differing: &mut ChunkSet) {
    match found {
        Found::Chunk(index, digest) => {
            if manifest.chunk(index) != Some(digest) {
                differing.insert(ChunkRange::one(index));
            }
        }
        Found::Zero(chunks) => {
            for index in (chunks.start.0..chunks.end.0).map(ChunkIndex) {
                if manifest.chunk(index).is_some() {
                    differing.insert(ChunkRange::one(index));
                }
            }
        }
    }
}

fn describe(geometry: &Geometry, differing: &ChunkSet) -> String {
    let mut text = format!("; chunks that differ: {}", differing.count());
    for chunks in differing.ranges().take(LISTED_MAX) {
        text.push_str(&format!(
            "\n  chunks {chunks} (bytes {})",
            geometry.bytes_of(chunks)
        ));
    }
    let more = differing.ranges().count().saturating_sub(LISTED_MAX);
    if more > 0 {
        text.push_str(&format!("\n  and {more} more ranges"));
    }
    text
}

fn read_receipt(path: &Path) -> Result<Receipt, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| cannot_read(path, &error))?;
    let receipt: Receipt =
        serde_json::from_str(&text).map_err(|error| cannot_read(path, &error))?;
    if receipt.receipt_version != Receipt::VERSION {
        let text = format!(
            "{} is a receipt of version {}; this volferry reads version {}",
            path.display(),
            receipt.receipt_version,
            Receipt::VERSION
        );
        return Err(Failure::new(FailureCode::Usage, text));
    }
    Ok(receipt)
}

fn read_manifest(path: &Path, receipt: &Receipt) -> Result<Manifest, Failure> {
    let file = File::open(path).map_err(|error| cannot_read(path, &error))?;
    let mut failed = None;
    let lines = BufReader::new(file).lines();
    let lines = lines.map_while(|line| line.map_err(|error| failed = Some(error)).ok());
    let manifest = Manifest::parse(lines);
    if let Some(error) = failed {
        return Err(cannot_read(path, &error));
    }
    let manifest = manifest.map_err(|error| cannot_read(path, &error))?;
    let digest: Option<Digest> = manifest.volume_digest();
    if digest != Some(receipt.digest) {
        let text = format!(
            "the manifest {} is not of the receipt's clone, or it was cut short",
            path.display()
        );
        return Err(Failure::new(FailureCode::Usage, text));
    }
    Ok(manifest)
}

fn cannot_read(path: &Path, error: &dyn std::error::Error) -> Failure {
    let text = format!("{} can't be read: {error}", path.display());
    Failure::new(FailureCode::Usage, text)
}
