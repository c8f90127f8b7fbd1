//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::ceilings::CeilingsArgs;
use crate::compression::CompressionArgs;
use crate::history::HistoryArgs;
use crate::limit::Limit;
use crate::paths::PathsArgs;
use crate::row::Row;
use crate::size::Size;

/// Clones the same volumes with volferry and with its peers, and compares.
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    /// Something else than clones.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Volumes to clone.
    #[arg(long, value_delimiter = ',', value_enum,
        default_values = ["dense-memory", "dense-disk", "sparse", "image"])]
    pub rows: Vec<Row>,
    /// Peers to compare, by name; all of them unless given.
    #[arg(long, value_delimiter = ',')]
    pub peers: Vec<String>,
    /// How often every peer clones every volume.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Size of the dense volumes; the sparse one is four times as large.
    #[arg(long, default_value = "4GiB")]
    pub size: Size,
    /// Files of the tree of small files, and entries of the wide directory.
    #[arg(long, default_value_t = 1_000_000)]
    pub files: u64,
    /// The tree that the image is made from, and that is cloned as a real tree.
    #[arg(long, default_value = "/usr")]
    pub image_from: PathBuf,
    /// Where volumes are cached and reports are written; the disk below it is the one measured.
    #[arg(long, default_value = "bench/out")]
    pub out: PathBuf,
    /// How many seconds to wait before each clone for a moment in which the machine is quiet.
    #[arg(long, default_value_t = 0)]
    pub settle: u64,
    /// The volferry binary, its agents beside it; where this binary is unless given.
    #[arg(long)]
    pub volferry: Option<PathBuf>,
    /// Have the source in the page cache before each clone, instead of no caches at all.
    #[arg(long)]
    pub warm: bool,
    /// Runs each again with its processes in control groups as small as a clone pod's.
    #[arg(long)]
    pub limit_cgroup: bool,
    /// Memory of a limited process, page cache included.
    #[arg(long, default_value = "600MB")]
    pub limit_memory: Size,
    /// Processors of a limited process.
    #[arg(long, default_value_t = 0.75)]
    pub limit_cpu: f64,
}

/// What is no measurement of clones.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Paths(PathsArgs),
    Ceilings(CeilingsArgs),
    Compression(CompressionArgs),
    History(HistoryArgs),
}

impl Args {
    /// The limits under which each runs, `None` being no limit: each alone, then both, so that
    /// the report tells which one costs what.
    pub(crate) fn limits(&self) -> Vec<Option<Limit>> {
        if !self.limit_cgroup {
            return vec![None];
        }
        let (memory, cpus) = (Some(self.limit_memory), Some(self.limit_cpu));
        vec![
            None,
            Some(Limit { memory, cpus: None }),
            Some(Limit { memory: None, cpus }),
            Some(Limit { memory, cpus }),
        ]
    }

    /// Whether the peer of this name was asked for.
    pub(crate) fn wants(&self, peer: &str) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|wanted| wanted == peer)
    }
}
