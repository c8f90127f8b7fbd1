//! The threads that read: each takes a buffer, then the next piece of work, and puts what it read
//! into the queue with its digest.
//!
//! A chunk is hashed on the thread that read it, while it is warm in that processor's cache. The
//! buffer comes before the work, so that a chunk that was handed out is soon on its way and chunks
//! leave nearly in order.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use volferry_agent::cpu::CpuMeter;
use volferry_agent::progress::Effort;
use volferry_protocol::compression::Compressed;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::Failure;
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, Geometry};
use volferry_protocol::zero_map::ZeroMap;
use volferry_storage::{Buffer, BufferPool, Source, StorageError};

use crate::compression::Compression;
use crate::cursor::{Cursor, Work};

/// What a data connection sends.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a zero map is small beside the chunk it describes"
)]
pub(crate) enum Outgoing {
    /// A chunk that holds data.
    Chunk {
        index: ChunkIndex,
        digest: Digest,
        zero_map: ZeroMap,
        bytes: Buffer,
        /// How its payload stands in `bytes`, where it was compressed.
        compressed: Option<Compressed>,
    },
    /// Chunks that hold none.
    Zero(ChunkRange),
    /// A chunk that holds data, by its digest alone.
    Offer { index: ChunkIndex, digest: Digest },
    /// Nothing to send: a chunk that the target has, for the manifest.
    Known { index: ChunkIndex, digest: Digest },
}

/// What every reader thread shares.
#[derive(Debug)]
pub(crate) struct Readers {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) geometry: Geometry,
    pub(crate) cursor: Mutex<Cursor>,
    /// Whether chunks are offered by their digest, instead of sent.
    pub(crate) offer: bool,
    pub(crate) pool: BufferPool,
    /// What was read. The readers end when it is closed, and it ends when they have all ended.
    pub(crate) queue: async_channel::Sender<Outgoing>,
    pub(crate) effort: Arc<Effort>,
    /// `None` where nothing travels.
    pub(crate) compression: Option<Arc<Compression>>,
    /// The first error.
    pub(crate) failed: mpsc::Sender<StorageError>,
}

impl Readers {
    /// Starts `count` threads. They end at the end of the volume, at an error, or when the queue or
    /// the pool is closed.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub(crate) fn start(self, count: usize, cpu: &CpuMeter) -> Result<(), Failure> {
        let shared = Arc::new(self);
        for number in 0..count {
            let shared = Arc::clone(&shared);
            let _ends_by_itself = cpu.spawn(format!("source-read-{number}"), move || {
                if let Err(error) = shared.read_all() {
                    // Only the first error counts; a full channel holds it already.
                    let _first = shared.failed.try_send(error);
                }
            })?;
        }
        Ok(())
    }

    fn read_all(&self) -> Result<(), StorageError> {
        while let Some(buffer) = self.pool.checkout_blocking() {
            let work = self
                .cursor
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .next()?;
            let outgoing = match work {
                Some(Work::Read(index)) => self.compress(self.read(index, buffer)?),
                Some(Work::Zero(chunks)) => Outgoing::Zero(chunks),
                Some(Work::Digest(index)) => match self.read(index, buffer)? {
                    Outgoing::Chunk { index, digest, .. } | Outgoing::Offer { index, digest } => {
                        Outgoing::Known { index, digest }
                    }
                    // Zeros don't stand in a manifest.
                    Outgoing::Zero(_) | Outgoing::Known { .. } => continue,
                },
                None => break,
            };
            if self.queue.send_blocking(outgoing).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, index: ChunkIndex, mut buffer: Buffer) -> Result<Outgoing, StorageError> {
        let range = self.geometry.bytes_of(ChunkRange::one(index));
        buffer.set_len(self.geometry.chunk_len(index) as usize);
        let read = || self.source.read_at(range.start(), &mut buffer);
        self.effort.io.time_blocking(read)?;
        let examined = self.effort.cpu.time_blocking(|| {
            let zero_map = ZeroMap::scan(&buffer);
            let holds_data = !zero_map.is_all_zero();
            holds_data.then(|| (zero_map, Digest::of_chunk(&buffer)))
        });
        let Some((zero_map, digest)) = examined else {
            return Ok(Outgoing::Zero(ChunkRange::one(index)));
        };
        if self.offer {
            return Ok(Outgoing::Offer { index, digest });
        }
        Ok(Outgoing::Chunk {
            index,
            digest,
            zero_map,
            bytes: buffer,
            compressed: None,
        })
    }

    fn compress(&self, mut outgoing: Outgoing) -> Outgoing {
        if let Outgoing::Chunk {
            zero_map,
            bytes,
            compressed,
            ..
        } = &mut outgoing
            && let Some(compression) = &self.compression
        {
            *compressed = compression.compress(zero_map, bytes);
        }
        outgoing
    }
}
