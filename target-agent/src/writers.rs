//! The threads that write: each takes a chunk from the queue, compares its digest, and writes it.
//! One more thread flushes and keeps the journal.
//!
//! A chunk whose digest differs is not written, unless digests are not to be verified. Nothing here
//! acknowledges: written is not durable.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use volferry_agent::cpu::CpuMeter;
use volferry_agent::progress::Effort;
use volferry_protocol::compression::{Compressed, Decompressor, Malformed};
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::Failure;
use volferry_protocol::geometry::{ByteRange, ChunkIndex, ChunkRange, Geometry};
use volferry_protocol::journal::Checkpoint;
use volferry_protocol::zero_map::ZeroMap;
use volferry_storage::{Buffer, Sink, StorageError};

use crate::journal::Journal;

/// Zeros between two data runs of a dirty target that are written rather than zeroed: below this
/// size one longer write costs less than two writes and a hole between them.
const WRITTEN_ZERO_LEN_MAX: u32 = 64 << 10;

/// Bytes that are zeroed by one call: seconds of work where the kernel has to write them.
const ZEROED_AT_ONCE: u64 = 256 << 20;

/// What a data connection received.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a zero map is small beside the chunk it describes"
)]
pub(crate) enum Incoming {
    /// A chunk that holds data, and the digest it must have.
    Chunk {
        index: ChunkIndex,
        digest: Digest,
        zero_map: ZeroMap,
        bytes: Buffer,
        /// How its payload stands in `bytes`, where it is compressed.
        compressed: Option<Compressed>,
    },
    /// Chunks that must be zero.
    Zero(ChunkRange),
    /// The digest of a chunk that the volume may hold already, and room to read it.
    Offer {
        index: ChunkIndex,
        digest: Digest,
        bytes: Buffer,
    },
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Written {
    Chunk {
        index: ChunkIndex,
        digest: Digest,
        data_len: u32,
    },
    /// A piece of a range of zeros.
    Zero {
        chunks: ChunkRange,
        is_last: bool,
    },
    /// The volume holds the chunk that was offered.
    Matched {
        index: ChunkIndex,
        digest: Digest,
        data_len: u32,
    },
    /// It holds another.
    Differs,
    /// The chunk's bytes don't have the digest that came with them.
    Corrupt(ChunkIndex),
    Flushed,
    Journaled,
    Failed(StorageError),
    JournalFailed(Failure),
}

/// What the flusher is asked to do.
#[derive(Debug)]
pub(crate) enum Job {
    Flush,
    /// Append this to the journal.
    Journal(Box<Checkpoint>),
}

/// What the threads share.
#[derive(Debug)]
pub(crate) struct Writers {
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) geometry: Geometry,
    /// Whether what was never written reads as zeros, so that zeros inside a chunk need not be
    /// made.
    pub(crate) is_fresh: Arc<AtomicBool>,
    /// Whether a chunk's digest is checked before it is written.
    pub(crate) verify: bool,
    pub(crate) journal: Option<Arc<Mutex<Journal>>>,
    pub(crate) effort: Arc<Effort>,
    /// Bytes read to compare or verify the volume.
    pub(crate) checked_bytes: Arc<AtomicU64>,
    /// What arrived. The writers end when it is closed and empty.
    pub(crate) queue: async_channel::Receiver<Incoming>,
    /// What became of it. The threads end when nobody listens.
    pub(crate) written: mpsc::Sender<Written>,
}

impl Writers {
    /// Starts `count` writers and a flusher, which does the jobs of the channel that is returned.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub(crate) fn start(
        self,
        count: usize,
        cpu: &CpuMeter,
    ) -> Result<async_channel::Sender<Job>, Failure> {
        // The owner asks for one flush at a time, then for its record. A repair asks for one more.
        let (jobs, asked) = async_channel::bounded(2);
        let shared = Arc::new(self);
        let start_thread = |name: String, work: Box<dyn FnOnce(&Self) + Send>| {
            let shared = Arc::clone(&shared);
            cpu.spawn(name, move || work(&shared))
        };
        for number in 0..count {
            start_thread(format!("target-write-{number}"), Box::new(Self::write_all))?;
        }
        let do_all = move |shared: &Self| {
            while let Ok(job) = asked.recv_blocking() {
                if !shared.tell(shared.do_job(&job)) {
                    break;
                }
            }
        };
        start_thread("target-flush".to_owned(), Box::new(do_all))?;
        Ok(jobs)
    }

    fn write_all(&self) {
        let mut decompressor = Decompressor::default();
        while let Ok(incoming) = self.queue.recv_blocking() {
            let written = match incoming {
                Incoming::Chunk {
                    index,
                    digest,
                    zero_map,
                    mut bytes,
                    compressed,
                } => {
                    let decompressed = compressed.map_or(Ok(()), |compressed| {
                        self.effort.cpu.time_blocking(|| {
                            decompressor.decompress_in_place(compressed, &zero_map, &mut bytes)
                        })
                    });
                    match decompressed {
                        Ok(()) => self.write_chunk(index, digest, &zero_map, &bytes),
                        Err(Malformed) => Written::Corrupt(index),
                    }
                }
                Incoming::Zero(chunks) => {
                    if !self.zero(chunks) {
                        break;
                    }
                    continue;
                }
                Incoming::Offer {
                    index,
                    digest,
                    bytes,
                } => self
                    .compare(index, digest, bytes)
                    .unwrap_or_else(Written::Failed),
            };
            if !self.tell(written) {
                break;
            }
        }
    }

    /// Zeroes a range, and tells each piece of it: where the storage has no quick way the kernel writes zeros, and
    /// a clone that tells nothing for long counts as stalled. Whether anybody still listens.
    fn zero(&self, chunks: ChunkRange) -> bool {
        let piece_len = ZEROED_AT_ONCE / u64::from(self.geometry.chunk_size().bytes());
        for piece in pieces(chunks, piece_len) {
            let zero = || self.sink.zero(self.geometry.bytes_of(piece));
            if let Err(error) = self.effort.io.time_blocking(zero) {
                return self.tell(Written::Failed(error));
            }
            let is_last = piece.end == chunks.end;
            let chunks = piece;
            if !self.tell(Written::Zero { chunks, is_last }) {
                return false;
            }
        }
        true
    }

    fn write_chunk(
        &self,
        index: ChunkIndex,
        digest: Digest,
        zero_map: &ZeroMap,
        bytes: &[u8],
    ) -> Written {
        let differs = || Digest::of_chunk(bytes) != digest;
        if self.verify && self.effort.cpu.time_blocking(differs) {
            return Written::Corrupt(index);
        }
        let start = self.geometry.bytes_of(ChunkRange::one(index)).start();
        let is_fresh = self.is_fresh.load(Ordering::Relaxed);
        let write = || write_runs(&*self.sink, is_fresh, start, zero_map, bytes);
        match self.effort.io.time_blocking(write) {
            Ok(()) => Written::Chunk {
                index,
                digest,
                data_len: zero_map.data_len(),
            },
            Err(error) => Written::Failed(error),
        }
    }

    /// Reads the chunk and compares it with what the source has.
    fn compare(
        &self,
        index: ChunkIndex,
        digest: Digest,
        mut bytes: Buffer,
    ) -> Result<Written, StorageError> {
        let range = self.geometry.bytes_of(ChunkRange::one(index));
        bytes.set_len(self.geometry.chunk_len(index) as usize);
        let read = || self.sink.read_at(range.start(), &mut bytes);
        self.effort.io.time_blocking(read)?;
        self.checked_bytes.fetch_add(range.len(), Ordering::Relaxed);
        let differs = || Digest::of_chunk(&bytes) != digest;
        if self.effort.cpu.time_blocking(differs) {
            return Ok(Written::Differs);
        }
        Ok(Written::Matched {
            index,
            digest,
            data_len: ZeroMap::scan(&bytes).data_len(),
        })
    }

    fn do_job(&self, job: &Job) -> Written {
        match (job, &self.journal) {
            (Job::Flush, _) => self
                .sink
                .flush()
                .map_or_else(Written::Failed, |()| Written::Flushed),
            (Job::Journal(checkpoint), Some(journal)) => journal
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .append(checkpoint)
                .map_or_else(Written::JournalFailed, |()| Written::Journaled),
            (Job::Journal(_), None) => Written::Journaled,
        }
    }

    /// Whether anybody listened.
    fn tell(&self, written: Written) -> bool {
        self.written.blocking_send(written).is_ok()
    }
}

/// The range in pieces of `len` chunks, at least one.
fn pieces(chunks: ChunkRange, len: u64) -> impl Iterator<Item = ChunkRange> {
    let mut start = chunks.start;
    std::iter::from_fn(move || {
        let end = start.0.saturating_add(len.max(1)).min(chunks.end.0);
        let piece = ChunkRange {
            start,
            end: ChunkIndex(end),
        };
        start = piece.end;
        (piece.start < piece.end).then_some(piece)
    })
}

/// Writes the runs of a chunk that hold data and zeroes the others, unless the volume `is_fresh`: then
/// what was never written reads as zeros. The chunk begins at the byte `base` of the volume.
///
/// # Errors
/// When the sink can't.
pub fn write_runs(
    sink: &dyn Sink,
    is_fresh: bool,
    base: u64,
    zero_map: &ZeroMap,
    bytes: &[u8],
) -> Result<(), StorageError> {
    let write_part = |part: Option<(u32, u32)>| {
        let Some((start, end)) = part else {
            return Ok(());
        };
        let part = bytes.get(start as usize..end as usize).unwrap_or_default();
        sink.write_at(base.saturating_add(u64::from(start)), part)
    };
    let mut written_to = 0;
    let mut pending: Option<(u32, u32)> = None;
    for run in zero_map.runs() {
        if run.is_zero && (is_fresh || run.len() > WRITTEN_ZERO_LEN_MAX) {
            write_part(pending.take())?;
            if !is_fresh {
                let start = base.saturating_add(u64::from(run.start));
                let end = base.saturating_add(u64::from(run.end));
                sink.zero(ByteRange::new(start, end))?;
            }
        } else {
            pending = Some((pending.map_or(written_to, |(start, _)| start), run.end));
        }
        written_to = run.end;
    }
    write_part(pending)
}

#[cfg(test)]
mod tests {
    use volferry_protocol::geometry::ChunkSize;
    use volferry_storage::BufferPool;
    use volferry_storage::mem::MemVolume;

    use super::*;

    const CHUNK: usize = 65536;

    /// A chunk with data in every block whose bit is set.
    fn chunk(pattern: u16) -> Vec<u8> {
        let block = |number: usize| vec![if pattern >> number & 1 == 1 { 7 } else { 0 }; 4096];
        (0..16).flat_map(block).collect()
    }

    fn write(volume: &Arc<MemVolume>, bytes: &[u8], digest: Digest) -> Written {
        let geometry = Geometry::new(2 * CHUNK as u64, ChunkSize::MIN).unwrap();
        let (queue_sender, queue) = async_channel::bounded(1);
        let (written, mut results) = mpsc::channel(1);
        let sink = Arc::clone(volume) as Arc<dyn Sink>;
        let writers = Writers {
            is_fresh: Arc::new(AtomicBool::new(sink.zeroes_for_free())),
            sink,
            geometry,
            verify: true,
            journal: None,
            effort: Arc::default(),
            checked_bytes: Arc::default(),
            queue,
            written,
        };
        let _flush = writers.start(1, &CpuMeter::default()).unwrap();
        let mut buffer = BufferPool::new(CHUNK, CHUNK)
            .unwrap()
            .checkout_blocking()
            .unwrap();
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(bytes);
        let zero_map = ZeroMap::scan(bytes);
        let chunk = Incoming::Chunk {
            index: ChunkIndex(1),
            digest,
            zero_map,
            bytes: buffer,
            compressed: None,
        };
        queue_sender.send_blocking(chunk).unwrap();
        results.blocking_recv().unwrap()
    }

    #[test]
    fn whatever_the_target_held_it_holds_the_chunk() {
        for pattern in [0xffff, 0x0001, 0x8000, 0xa5a5, 0x0ff0, 0xf00f, 0x0000] {
            for volume in [
                MemVolume::fresh(2 * CHUNK),
                MemVolume::holding(vec![0xa5; 2 * CHUNK]),
            ] {
                let before = volume.content();
                let volume = Arc::new(volume);
                let bytes = chunk(pattern);
                let written = write(&volume, &bytes, Digest::of_chunk(&bytes));
                assert!(matches!(written, Written::Chunk { .. }), "{written:?}");
                assert_eq!(volume.content()[CHUNK..], bytes, "pattern {pattern:016b}");
                assert_eq!(
                    volume.content()[..CHUNK],
                    before[..CHUNK],
                    "the chunk before is left alone"
                );
            }
        }
    }

    #[test]
    fn a_range_is_cut_into_pieces_that_make_it_up() {
        let range = |start, end| ChunkRange {
            start: ChunkIndex(start),
            end: ChunkIndex(end),
        };
        let cut = |chunks, len| pieces(chunks, len).collect::<Vec<_>>();
        assert_eq!(cut(range(3, 10), 4), [range(3, 7), range(7, 10)]);
        assert_eq!(cut(range(3, 7), 4), [range(3, 7)]);
        assert_eq!(cut(range(3, 5), 0), [range(3, 4), range(4, 5)]);
        assert_eq!(cut(range(3, 3), 4), []);
        let end = u64::MAX;
        assert_eq!(cut(range(end - 1, end), 4096), [range(end - 1, end)]);
    }

    #[test]
    fn a_corrupt_chunk_is_not_written() {
        let volume = Arc::new(MemVolume::holding(vec![0xa5; 2 * CHUNK]));
        let written = write(&volume, &chunk(0xffff), Digest::of_chunk(b"something else"));
        assert!(
            matches!(written, Written::Corrupt(ChunkIndex(1))),
            "{written:?}"
        );
        assert_eq!(volume.content(), vec![0xa5; 2 * CHUNK]);
    }
}
