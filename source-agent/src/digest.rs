//! The digest of a volume without a clone: the same reading, hashing and folding, with nobody to
//! send to.

use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use volferry_agent::cpu::CpuMeter;
use volferry_agent::failure;
use volferry_agent::progress::End;
use volferry_protocol::digest::{ChunkRefused, Digest, DigestTree};
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, ChunkSize, Geometry};
use volferry_protocol::range_set::ChunkSet;
use volferry_storage::{BufferPool, Generation, Source, SourceOptions, open_source};

use crate::cursor::Cursor;
use crate::readers::{Outgoing, Readers};

/// A volume to be digested.
#[derive(Clone, Debug)]
pub struct OpenVolume {
    source: Arc<dyn Source>,
    geometry: Geometry,
}

/// What a piece of a volume was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A chunk that holds data.
    Chunk(ChunkIndex, Digest),
    /// Chunks that hold only zeros.
    Zero(ChunkRange),
}

impl OpenVolume {
    /// Opens the volume at `path`, of which the first `size` bytes count, or all.
    ///
    /// # Errors
    /// When it can't be opened, or is smaller than `size`.
    pub fn open(
        path: &Path,
        direct: bool,
        chunk_size: ChunkSize,
        size: Option<u64>,
    ) -> Result<Self, Failure> {
        let source = open_source(path, &SourceOptions { direct })
            .map_err(|error| failure::of_storage(End::Source, &error))?;
        let size = size.unwrap_or_else(|| source.size());
        if source.size() < size {
            let text = format!(
                "{} holds {} bytes where {size} are expected",
                path.display(),
                source.size()
            );
            return Err(Failure::new(FailureCode::Integrity, text));
        }
        let geometry = Geometry::new(size, chunk_size)
            .map_err(|error| Failure::new(FailureCode::SourceOpen, error.to_string()))?;
        Ok(Self { source, geometry })
    }

    /// How the volume is cut.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Reads the volume with as many threads and as much memory as told, tells `on_found` of every
    /// piece, and gives the volume's digest. Blocks.
    ///
    /// # Errors
    /// When the volume can't be read, or is a file that was written meanwhile.
    pub fn digest(
        &self,
        readers: usize,
        memory_bytes: usize,
        mut on_found: impl FnMut(Found),
    ) -> Result<Digest, Failure> {
        let chunk_size = self.geometry.chunk_size().bytes() as usize;
        let pool = BufferPool::new(memory_bytes, chunk_size)
            .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
        let (queue_sender, queue) = async_channel::bounded(pool.buffer_count());
        let (failed_sender, mut failed) = mpsc::channel(1);
        let before = self.generation()?;
        let source = Arc::clone(&self.source);
        let (skip, known) = <(ChunkSet, ChunkSet)>::default();
        let cursor = Cursor::new(Arc::clone(&source), self.geometry, skip, known);
        let threads = Readers {
            source,
            geometry: self.geometry,
            cursor: Mutex::new(cursor),
            offer: false,
            pool,
            queue: queue_sender,
            effort: Arc::default(),
            compression: None,
            failed: failed_sender,
        };
        threads.start(readers, &CpuMeter::default())?;
        let mut tree = DigestTree::new(self.geometry);
        while let Ok(outgoing) = queue.recv_blocking() {
            // The other readers would go on to the end of the volume.
            if let Ok(error) = failed.try_recv() {
                queue.close();
                return Err(failure::of_storage(End::Source, &error));
            }
            let found = match outgoing {
                Outgoing::Chunk { index, digest, .. }
                | Outgoing::Offer { index, digest }
                | Outgoing::Known { index, digest } => Found::Chunk(index, digest),
                Outgoing::Zero(chunks) => Found::Zero(chunks),
            };
            fold(&mut tree, found)
                .map_err(|error| Failure::internal(format!("while reading: {error}")))?;
            on_found(found);
        }
        if let Ok(error) = failed.try_recv() {
            return Err(failure::of_storage(End::Source, &error));
        }
        check_unchanged(&*self.source, &before)?;
        tree.volume_digest()
            .ok_or_else(|| Failure::internal("not every chunk of the volume was read"))
    }

    fn generation(&self) -> Result<Generation, Failure> {
        let generation = self.source.generation();
        generation.map_err(|error| failure::of_storage(End::Source, &error))
    }
}

/// A source that was written while it was read has no state that a digest or a clone could be of.
pub(crate) fn check_unchanged(source: &dyn Source, before: &Generation) -> Result<(), Failure> {
    let after = source
        .generation()
        .map_err(|error| failure::of_storage(End::Source, &error))?;
    let mtime = |generation: &Generation| generation.file.map(|file| file.mtime_ns);
    if after.size == before.size && mtime(&after) == mtime(before) {
        return Ok(());
    }
    let text = format!(
        "source volume: {} was written while it was read; stop what writes to it, or use a snapshot of it",
        source.path().display()
    );
    Err(Failure::new(FailureCode::SourceChanged, text))
}

fn fold(tree: &mut DigestTree, found: Found) -> Result<(), ChunkRefused> {
    match found {
        Found::Chunk(index, digest) => tree.insert(index, digest),
        Found::Zero(chunks) => tree.insert_zero(chunks),
    }
}
