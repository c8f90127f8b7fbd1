//! What the target knows of the volume: which chunks are written, and which of them are durable.
//!
//! The order is write, flush, acknowledge: a chunk is *written* when the sink took it, *flushing*
//! while the flush that follows its write runs, and *durable* when that flush has returned. Only
//! then its digest enters the tree, so that a volume digest exists only when every byte is durable.
//! A crash between two of these steps loses chunks that nobody was told about.

use crate::digest::{ChunkRefused, Digest, DigestTree, Subtree};
use crate::geometry::{ChunkIndex, ChunkRange, Geometry};
use crate::message::Watermark;
use crate::range_set::ChunkSet;

/// Which chunks are written and which are durable.
#[derive(Clone, Debug)]
pub struct Ledger {
    geometry: Geometry,
    /// The digests of what is durable.
    tree: DigestTree,
    durable: ChunkSet,
    durable_bytes: u64,
    /// What was written, durable or not.
    written: ChunkSet,
    /// Written since the last flush began.
    unflushed: Vec<Written>,
    unflushed_bytes: u64,
    /// Covered by the flush that runs now, if one does.
    flushing: Option<Vec<Written>>,
}

/// A write that the sink took.
#[derive(Clone, Copy, Debug)]
enum Written {
    Chunk(ChunkIndex, Digest),
    Zero(ChunkRange),
}

impl Ledger {
    /// The ledger of a volume of which nothing is written.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            tree: DigestTree::new(geometry),
            durable: ChunkSet::default(),
            durable_bytes: 0,
            written: ChunkSet::default(),
            unflushed: Vec::new(),
            unflushed_bytes: 0,
            flushing: None,
        }
    }

    /// How the volume is cut.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A chunk was written whose bytes have this digest.
    ///
    /// # Errors
    /// When it was written before, or lies outside the volume.
    pub fn write(&mut self, index: ChunkIndex, digest: Digest) -> Result<(), ChunkRefused> {
        self.take(ChunkRange::one(index), Written::Chunk(index, digest))
    }

    /// Chunks were made zero.
    ///
    /// # Errors
    /// When any of them was written before, or lies outside the volume.
    pub fn zero(&mut self, chunks: ChunkRange) -> Result<(), ChunkRefused> {
        self.take(chunks, Written::Zero(chunks))
    }

    fn take(&mut self, chunks: ChunkRange, entry: Written) -> Result<(), ChunkRefused> {
        if !self.geometry.holds(chunks) {
            return Err(ChunkRefused::Outside(chunks));
        }
        if self.written.intersects(chunks) {
            return Err(ChunkRefused::Known(chunks));
        }
        self.written.insert(chunks);
        self.unflushed.push(entry);
        let bytes = self.geometry.bytes_of(chunks).len();
        self.unflushed_bytes = self.unflushed_bytes.saturating_add(bytes);
        Ok(())
    }

    /// A flush begins now: it will cover what is written by now.
    ///
    /// # Panics
    /// When a flush runs already: the caller flushes one at a time.
    pub fn begin_flush(&mut self) {
        assert!(self.flushing.is_none(), "one flush at a time");
        self.flushing = Some(std::mem::take(&mut self.unflushed));
        self.unflushed_bytes = 0;
    }

    /// The flush that began last has returned: what it covers is durable.
    ///
    /// # Errors
    /// When a chunk is durable already; the ledger took it in twice, which is a fault of its own.
    pub fn end_flush(&mut self) -> Result<(), ChunkRefused> {
        for written in self.flushing.take().unwrap_or_default() {
            let chunks = match written {
                Written::Chunk(index, digest) => {
                    self.tree.insert(index, digest)?;
                    ChunkRange::one(index)
                }
                Written::Zero(chunks) => {
                    self.tree.insert_zero(chunks)?;
                    chunks
                }
            };
            self.durable.insert(chunks);
            let bytes = self.geometry.bytes_of(chunks).len();
            self.durable_bytes = self.durable_bytes.saturating_add(bytes);
        }
        Ok(())
    }

    /// Whether a flush runs.
    #[must_use]
    pub const fn is_flushing(&self) -> bool {
        self.flushing.is_some()
    }

    /// Bytes written since the last flush began.
    #[must_use]
    pub const fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes
    }

    /// Whether every chunk is written.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.written.count() == self.geometry.chunk_count()
    }

    /// The first chunk that is not written; `None` when all are.
    #[must_use]
    pub fn first_missing(&self) -> Option<ChunkIndex> {
        (!self.is_written()).then(|| self.written.watermark())
    }

    /// Whether every chunk is durable.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable.count() == self.geometry.chunk_count()
    }

    /// How far the volume is durable.
    #[must_use]
    pub fn watermark(&self) -> Watermark {
        Watermark {
            watermark: self.durable.watermark(),
            durable_bytes: self.durable_bytes,
        }
    }

    /// What is durable, summed up for a session that goes on from here.
    pub fn durable(&self) -> impl Iterator<Item = Subtree> + '_ {
        self.tree.subtrees()
    }

    /// The volume's digest, once all is durable.
    #[must_use]
    pub fn volume_digest(&self) -> Option<Digest> {
        self.tree.volume_digest()
    }

    /// Forgets what is not durable: whoever wrote it is gone, and it may be lost.
    #[must_use]
    pub fn into_durable(self) -> Self {
        Self {
            written: self.durable.clone(),
            unflushed: Vec::new(),
            unflushed_bytes: 0,
            flushing: None,
            ..self
        }
    }
}
