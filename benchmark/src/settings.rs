//! What is to be measured, and how.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use volferry_protocol::geometry::ChunkSize;
use volferry_source_agent::SourceConfig;
use volferry_target_agent::TargetConfig;

use crate::profile::Profile;

/// Everything that a benchmark is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A block device, a file or a directory, which is only read.
    pub source: PathBuf,
    /// Where clones go.
    pub target: PathBuf,
    /// Where generated sources go; beside the clones unless told.
    pub scratch: Option<PathBuf>,
    /// Whether the target may be a block device, or a directory that holds something.
    pub overwrite: bool,
    /// The block volumes to clone.
    pub profiles: Vec<Profile>,
    /// Bytes of each of them; else as much as the budget and the storage allow.
    pub size: Option<u64>,
    /// Files of the tree to clone, 0 for none; else as many as go with the size.
    pub files: Option<u64>,
    /// What the generated data follows from.
    pub seed: u64,
    /// How often everything is measured at most.
    pub repeats: u32,
    /// How long all may take.
    pub budget: Duration,
    /// Bytes that may be written.
    pub budget_bytes: u64,
    /// Have the kernel drop all caches before each clone, for everybody.
    pub drop_caches: bool,
    /// How the agents are set.
    pub tuning: Tuning,
}

/// How the agents are set: for the ceilings and for the clones alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Bytes of a chunk.
    pub chunk_size: ChunkSize,
    /// Data connections.
    pub streams: u16,
    /// Threads that read a volume.
    pub readers: usize,
    /// Threads that read a tree.
    pub tree_readers: usize,
    /// Threads that write.
    pub writers: usize,
    /// Bytes of chunks in flight at each end.
    pub memory_bytes: usize,
    /// Past the page cache where the volume lets us.
    pub direct: bool,
    /// Whether the clones run over QUIC instead of TLS.
    pub quic: bool,
}

impl Tuning {
    /// As agents are set that are told nothing.
    #[must_use]
    pub fn of_agents() -> Self {
        let of_volume = SourceConfig::new(PathBuf::new());
        let of_tree = SourceConfig::new(PathBuf::from("/"));
        let of_target = TargetConfig::new(PathBuf::new());
        Self {
            chunk_size: of_volume.chunk_size,
            streams: of_volume.streams,
            readers: of_volume.readers,
            tree_readers: of_tree.readers,
            writers: of_target.writers,
            memory_bytes: of_volume.memory_bytes,
            direct: of_volume.direct,
            quic: false,
        }
    }
}
