//! What the target knows of the volume: which chunks are written, and which of them are durable.
//!
//! The order is write, flush, journal, acknowledge: a chunk is *written* when the sink took it,
//! *flushing* while the flush that follows its write runs, and *durable* when that flush has
//! returned (and the journal, if there is one, has its record). Only then its digest enters the
//! tree, so that a volume digest exists only when every byte is durable. A crash between two of
//! these steps loses chunks that nobody was told about.

use std::collections::VecDeque;

use crate::digest::{ChunkRefused, Digest, DigestTree, Subtree};
use crate::geometry::{ChunkIndex, ChunkRange, Geometry};
use crate::journal::{Checkpoint, SUBTREES_MAX, Witness};
use crate::message::Watermark;
use crate::range_set::ChunkSet;

/// Flushes whose last chunk stands witness in a checkpoint: a volume that was set back to an
/// earlier state lacks the latest ones.
const WITNESSES_KEPT: usize = 8;

/// Which chunks are written and which are durable.
#[derive(Clone, Debug)]
pub struct Ledger {
    geometry: Geometry,
    /// The digests of what is durable.
    tree: DigestTree,
    durable: ChunkSet,
    durable_bytes: u64,
    /// Of the durable bytes, those in blocks that hold data.
    data_bytes: u64,
    witnesses: VecDeque<Witness>,
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
    Chunk {
        index: ChunkIndex,
        digest: Digest,
        data_len: u32,
        /// The volume held it already.
        is_match: bool,
    },
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
            data_bytes: 0,
            witnesses: VecDeque::new(),
            written: ChunkSet::default(),
            unflushed: Vec::new(),
            unflushed_bytes: 0,
            flushing: None,
        }
    }

    /// The ledger of a volume of which as much is durable as `checkpoint` says.
    ///
    /// # Errors
    /// When its subtrees are none of this volume, or overlap.
    pub fn resume(geometry: Geometry, checkpoint: &Checkpoint) -> Result<Self, ChunkRefused> {
        let mut ledger = Self::new(geometry);
        // What a record does not hold is not resumed from a file either, for it fits no welcome.
        for subtree in checkpoint.durable.iter().take(SUBTREES_MAX) {
            ledger.tree.insert_subtree(*subtree)?;
            ledger.add_durable(subtree.chunks(&geometry));
        }
        ledger.written = ledger.durable.clone();
        ledger.data_bytes = checkpoint.data_bytes.min(ledger.durable_bytes);
        ledger.witnesses = checkpoint
            .witnesses
            .iter()
            .filter(|witness| ledger.durable.contains(witness.index))
            .take(WITNESSES_KEPT)
            .copied()
            .collect();
        Ok(ledger)
    }

    /// How the volume is cut.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// A chunk was written whose bytes have this digest; `data_len` of them lie in blocks that hold
    /// data.
    ///
    /// # Errors
    /// When it was written before, or lies outside the volume.
    pub fn write(
        &mut self,
        index: ChunkIndex,
        digest: Digest,
        data_len: u32,
    ) -> Result<(), ChunkRefused> {
        let entry = Written::Chunk {
            index,
            digest,
            data_len,
            is_match: false,
        };
        self.take(ChunkRange::one(index), entry)
    }

    /// A chunk need not be written: the volume holds it already, though it may not be durable.
    ///
    /// # Errors
    /// When it was written before, or lies outside the volume.
    pub fn keep(
        &mut self,
        index: ChunkIndex,
        digest: Digest,
        data_len: u32,
    ) -> Result<(), ChunkRefused> {
        let entry = Written::Chunk {
            index,
            digest,
            data_len,
            is_match: true,
        };
        self.take(ChunkRange::one(index), entry)
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

    /// The flush that began last has returned: what it covers is durable. Gives the bytes of data in
    /// chunks among it that the volume had held before. What matched and was lost would match, and
    /// count, once more.
    ///
    /// # Errors
    /// When a chunk is durable already; the ledger took it in twice, which is a fault of its own.
    pub fn end_flush(&mut self) -> Result<u64, ChunkRefused> {
        let mut witness = None;
        let mut matched_bytes = 0_u64;
        for written in self.flushing.take().unwrap_or_default() {
            match written {
                Written::Chunk {
                    index,
                    digest,
                    data_len,
                    is_match,
                } => {
                    self.tree.insert(index, digest)?;
                    let data_bytes = u64::from(data_len);
                    self.data_bytes = self.data_bytes.saturating_add(data_bytes);
                    if is_match {
                        matched_bytes = matched_bytes.saturating_add(data_bytes);
                    }
                    self.add_durable(ChunkRange::one(index));
                    witness = Some(Witness { index, digest });
                }
                Written::Zero(chunks) => {
                    self.tree.insert_zero(chunks)?;
                    self.add_durable(chunks);
                }
            }
        }
        self.witnesses.extend(witness);
        if self.witnesses.len() > WITNESSES_KEPT {
            // The first stays: it is the one that a fresh volume lacks for sure.
            self.witnesses.remove(1);
        }
        Ok(matched_bytes)
    }

    fn add_durable(&mut self, chunks: ChunkRange) {
        self.durable.insert(chunks);
        let bytes = self.geometry.bytes_of(chunks).len();
        self.durable_bytes = self.durable_bytes.saturating_add(bytes);
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

    /// What was written, durable or not.
    #[must_use]
    pub const fn written(&self) -> &ChunkSet {
        &self.written
    }

    /// Whether every chunk is written.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.written.count() == self.geometry.chunk_count()
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
            ..Watermark::default()
        }
    }

    /// How far the volume is durable by the word of `checkpoint`, which was made of this ledger and
    /// may hold less.
    #[must_use]
    pub fn watermark_of(&self, checkpoint: &Checkpoint) -> Watermark {
        if self.tree.node_count() <= checkpoint.durable.len() {
            return self.watermark();
        }
        let mut durable = ChunkSet::default();
        for subtree in &checkpoint.durable {
            durable.insert(subtree.chunks(&self.geometry));
        }
        Watermark {
            watermark: durable.watermark(),
            durable_bytes: durable
                .ranges()
                .map(|chunks| self.geometry.bytes_of(chunks).len())
                .sum(),
            ..Watermark::default()
        }
    }

    /// Of the durable bytes, those in blocks that hold data.
    #[must_use]
    pub const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// What is durable, summed up for a session that goes on from here.
    pub fn durable(&self) -> impl Iterator<Item = Subtree> + '_ {
        self.tree.subtrees()
    }

    /// Some chunks that are durable, by their own digests.
    pub fn witnesses(&self) -> impl Iterator<Item = Witness> + '_ {
        self.witnesses.iter().copied()
    }

    /// The volume's digest, once all is durable.
    #[must_use]
    pub fn volume_digest(&self) -> Option<Digest> {
        self.tree.volume_digest()
    }

    /// Forgets what is not durable: whoever wrote it is gone, and it may be lost. Of what is, as
    /// much is kept as a checkpoint holds, from the volume's start.
    #[must_use]
    pub fn into_durable(self) -> Self {
        let ledger = Self {
            written: self.durable.clone(),
            unflushed: Vec::new(),
            unflushed_bytes: 0,
            flushing: None,
            ..self
        };
        if ledger.tree.subtrees().nth(SUBTREES_MAX).is_none() {
            return ledger;
        }
        let mut kept = Self::new(ledger.geometry);
        for subtree in ledger.tree.subtrees().take(SUBTREES_MAX) {
            // A part of a tree is a tree.
            if kept.tree.insert_subtree(subtree).is_ok() {
                kept.add_durable(subtree.chunks(&ledger.geometry));
            }
        }
        kept.written = kept.durable.clone();
        kept.data_bytes = ledger.data_bytes.min(kept.durable_bytes);
        kept.witnesses = ledger.witnesses;
        kept.witnesses
            .retain(|witness| kept.durable.contains(witness.index));
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ChunkSize;

    #[test]
    fn a_ledger_in_pieces_keeps_what_a_checkpoint_holds() {
        let chunks = 3 * SUBTREES_MAX as u64;
        let geometry = Geometry::new(chunks * 65536, ChunkSize::MIN).unwrap();
        let mut ledger = Ledger::new(geometry);
        let digest = Digest::of_chunk(b"");
        for index in (0..chunks).step_by(2) {
            ledger.write(ChunkIndex(index), digest, 65536).unwrap();
        }
        ledger.begin_flush();
        ledger.end_flush().unwrap();
        let kept = ledger.into_durable();
        assert_eq!(kept.durable().count(), SUBTREES_MAX);
        assert_eq!(kept.watermark().durable_bytes, SUBTREES_MAX as u64 * 65536);
        assert_eq!(kept.written(), &kept.durable);
        assert_eq!(
            kept.witnesses().count(),
            0,
            "the last chunk is not among them"
        );
    }

    #[test]
    fn witnesses_are_the_first_and_the_latest() {
        let geometry = Geometry::new(100 * 65536, ChunkSize::MIN).unwrap();
        let mut ledger = Ledger::new(geometry);
        for index in 0..20 {
            ledger
                .write(ChunkIndex(index), Digest::of_chunk(b""), 1)
                .unwrap();
            ledger.begin_flush();
            ledger.end_flush().unwrap();
        }
        let witnesses: Vec<_> = ledger.witnesses().map(|witness| witness.index.0).collect();
        assert_eq!(witnesses, [0, 13, 14, 15, 16, 17, 18, 19]);
        let checkpoint = Checkpoint {
            clone_id: uuid::Uuid::nil(),
            volume_size: geometry.volume_size(),
            chunk_size: geometry.chunk_size(),
            generation: String::new(),
            epoch: 1,
            data_bytes: ledger.data_bytes(),
            taken_bytes: 0,
            matched_bytes: 0,
            target_mark: 0,
            witnesses: ledger.witnesses().collect(),
            durable: ledger.durable().collect(),
            shut_out: vec![],
            holder: None,
        };
        let resumed = Ledger::resume(geometry, &checkpoint).unwrap();
        assert_eq!(resumed.watermark(), ledger.watermark());
        assert_eq!(resumed.data_bytes(), 20);
        let twice = Checkpoint {
            durable: vec![checkpoint.durable[0]; 2],
            ..checkpoint
        };
        assert!(Ledger::resume(geometry, &twice).is_err());
    }
}
