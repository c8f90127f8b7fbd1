//! A disk of which only the digests of its chunks are kept, and which loses whatever was not
//! flushed.

use volferry_protocol::digest::Digest;
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, Geometry};

use super::model;

type Chunks = Vec<Option<Digest>>;

pub struct Disk {
    geometry: Geometry,
    /// As written, durable or not.
    written: Chunks,
    durable: Chunks,
    /// What the flush that runs now will make durable.
    flushing: Option<Chunks>,
}

impl Disk {
    pub fn new(geometry: Geometry) -> Self {
        let nothing = vec![None; geometry.chunk_count() as usize];
        Self {
            geometry,
            written: nothing.clone(),
            durable: nothing,
            flushing: None,
        }
    }

    /// A write lands, even on what is durable already.
    pub fn write(&mut self, index: u64, digest: Digest) {
        let index = index as usize;
        if index < self.written.len() {
            self.written[index] = Some(digest);
            if self.durable[index].is_some() {
                self.durable[index] = Some(digest);
            }
        }
    }

    /// Whether reading the chunk gives these bytes.
    pub fn holds(&self, index: u64, digest: Digest) -> bool {
        self.written.get(index as usize) == Some(&Some(digest))
    }

    /// The volume's digest as it reads now; `None` where nothing was ever written.
    pub fn read_digest(&self) -> Option<Digest> {
        let chunks: Vec<_> = self.written.iter().copied().collect::<Option<_>>()?;
        Some(model::volume_digest(&self.geometry, &chunks))
    }

    pub fn begin_flush(&mut self) {
        assert!(self.flushing.is_none(), "one flush at a time");
        self.flushing = Some(self.written.clone());
    }

    pub fn end_flush(&mut self) {
        for (index, chunk) in self
            .flushing
            .take()
            .unwrap_or_default()
            .into_iter()
            .enumerate()
        {
            if chunk.is_some() {
                self.durable[index] = self.written[index];
            }
        }
    }

    /// The power fails.
    pub fn crash(&mut self) {
        self.written = self.durable.clone();
        self.flushing = None;
    }

    /// The chunks of a range; `None` unless all of them are durable.
    pub fn durable(&self, chunks: ChunkRange) -> Option<Vec<Digest>> {
        let range = chunks.start.0 as usize..chunks.end.0 as usize;
        self.durable.get(range)?.iter().copied().collect()
    }

    pub fn durable_bytes(&self) -> u64 {
        let indices = (0..).zip(&self.durable);
        let durable = indices.filter(|(_, chunk)| chunk.is_some());
        durable
            .map(|(index, _)| u64::from(self.geometry.chunk_len(ChunkIndex(index))))
            .sum()
    }

    /// The volume's digest, once all of it is durable.
    pub fn volume_digest(&self) -> Option<Digest> {
        let chunks = self.durable(self.geometry.chunks())?;
        Some(model::volume_digest(&self.geometry, &chunks))
    }
}
