//! Reads the whole target back from its storage after the last flush, past the page cache, and
//! gives the digest of what is there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use volferry_agent::cpu::CpuMeter;
use volferry_protocol::digest::{Digest, DigestTree};
use volferry_protocol::failure::Failure;
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, Geometry};
use volferry_storage::{BufferPool, Sink, StorageError};

/// What was read.
pub(crate) type ReadBack = Result<Digest, StorageError>;

/// What the threads share.
struct Shared {
    sink: Arc<dyn Sink>,
    geometry: Geometry,
    pool: BufferPool,
    next: AtomicU64,
    /// Bytes read, also by other rounds of the session.
    checked_bytes: Arc<AtomicU64>,
    tree: Mutex<DigestTree>,
    /// Taken by whoever has the result first.
    done: Mutex<Option<oneshot::Sender<ReadBack>>>,
}

/// Starts `count` threads that read. They end early when nobody waits any more or the pool is
/// closed.
///
/// # Errors
/// When a thread can't be started.
pub(crate) fn start(
    count: usize,
    cpu: &CpuMeter,
    sink: Arc<dyn Sink>,
    geometry: Geometry,
    pool: BufferPool,
    checked_bytes: Arc<AtomicU64>,
) -> Result<oneshot::Receiver<ReadBack>, Failure> {
    let (done, result) = oneshot::channel();
    let shared = Arc::new(Shared {
        sink,
        geometry,
        pool,
        next: AtomicU64::new(0),
        checked_bytes,
        tree: Mutex::new(DigestTree::new(geometry)),
        done: Mutex::new(Some(done)),
    });
    for number in 0..count {
        let shared = Arc::clone(&shared);
        let _told_by_channel = cpu.spawn(format!("target-verify-{number}"), move || {
            if let Err(error) = shared.read_all() {
                shared.finish(Err(error));
            }
        })?;
    }
    Ok(result)
}

impl Shared {
    fn read_all(&self) -> Result<(), StorageError> {
        loop {
            let index = ChunkIndex(self.next.fetch_add(1, Ordering::Relaxed));
            if self.geometry.holds(ChunkRange::one(index)) {
                let Some(mut bytes) = self.pool.checkout_blocking() else {
                    return Ok(()); // the session ends
                };
                let range = self.geometry.bytes_of(ChunkRange::one(index));
                bytes.set_len(self.geometry.chunk_len(index) as usize);
                self.sink.read_at(range.start(), &mut bytes)?;
                let digest = Digest::of_chunk(&bytes);
                self.checked_bytes.fetch_add(range.len(), Ordering::Relaxed);
                // Each index comes once, so the tree takes it.
                let _new = self.tree().insert(index, digest);
            }
            let digest = self.tree().volume_digest();
            if let Some(digest) = digest {
                self.finish(Ok(digest));
            }
            if digest.is_some() || self.is_done() || index >= self.geometry.chunks().end {
                return Ok(());
            }
        }
    }

    fn finish(&self, result: ReadBack) {
        let done = self
            .done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(done) = done {
            let _nobody_waits = done.send(result);
        }
    }

    fn is_done(&self) -> bool {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn tree(&self) -> std::sync::MutexGuard<'_, DigestTree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use volferry_protocol::geometry::ChunkSize;
    use volferry_storage::fault::{Fault, Faults, Faulty};
    use volferry_storage::mem::MemVolume;

    use super::*;

    const CHUNK: usize = 65536;

    fn read_back(sink: Arc<dyn Sink>, geometry: Geometry) -> (ReadBack, u64) {
        let pool = BufferPool::new(4 * CHUNK, CHUNK).unwrap();
        let checked = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&checked);
        let result = start(3, &CpuMeter::default(), sink, geometry, pool, counted).unwrap();
        (
            result.blocking_recv().unwrap(),
            checked.load(Ordering::Relaxed),
        )
    }

    #[test]
    fn the_digest_is_that_of_what_is_there() {
        for size in [0, 1, CHUNK, 5 * CHUNK + 17] {
            let content: Vec<u8> = (0..size).map(|at| (at / 1000).to_le_bytes()[0]).collect();
            let geometry = Geometry::new(size as u64, ChunkSize::MIN).unwrap();
            let mut tree = DigestTree::new(geometry);
            for (index, chunk) in content.chunks(CHUNK).enumerate() {
                tree.insert(ChunkIndex(index as u64), Digest::of_chunk(chunk))
                    .unwrap();
            }
            let (digest, checked) = read_back(Arc::new(MemVolume::holding(content)), geometry);
            assert_eq!(digest.ok(), tree.volume_digest(), "{size} bytes");
            assert_eq!(checked, size as u64);
        }
    }

    #[test]
    fn a_failing_read_is_told() {
        let geometry = Geometry::new(4 * CHUNK as u64, ChunkSize::MIN).unwrap();
        let volume: Arc<dyn Sink> = Arc::new(MemVolume::fresh(4 * CHUNK));
        let faults = Faults::default().at_offset(3 * CHUNK as u64, Fault::DeviceError);
        let (result, _) = read_back(Arc::new(Faulty::new(volume, faults)), geometry);
        assert!(result.is_err());
    }
}
