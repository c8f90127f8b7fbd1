//! The threads that make a tree: each takes a pack or a piece from the queue, compares its digest,
//! and applies it.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;
use volferry_agent::cpu::CpuMeter;
use volferry_protocol::digest::Digest;
use volferry_protocol::tree::frame::pack_digest;
use volferry_protocol::zero_map::ZeroMap;
use volferry_storage::Buffer;
use volferry_storage::tree::{Restore, RestoreWorker, TreeError};

/// What a data connection received.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a zero map is small beside the piece it describes"
)]
pub(super) enum Incoming {
    /// Records, and the digest they must have.
    Pack {
        number: u64,
        digest: Digest,
        bytes: Buffer,
    },
    /// A piece of a large file, and the chaining value it must have.
    Piece {
        file: u64,
        index: u64,
        digest: Digest,
        zero_map: ZeroMap,
        bytes: Buffer,
    },
    /// Pieces of a large file that must be zero.
    ZeroPieces {
        file: u64,
        index: u64,
        count: u32,
        last_len: u32,
    },
}

/// The threads.
#[derive(Debug)]
pub(super) struct Writers {
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts `count` threads, which apply what comes out of `queue` until it is closed and empty,
    /// and tell what became of each.
    ///
    /// # Errors
    /// When a thread can't be started.
    pub(super) fn start(
        restore: &Arc<Restore>,
        queue: &async_channel::Receiver<Incoming>,
        applied: &mpsc::Sender<Result<(), TreeError>>,
        count: usize,
        cpu: &CpuMeter,
    ) -> std::io::Result<Self> {
        let start = |number| {
            let (queue, applied) = (queue.clone(), applied.clone());
            let (mut worker, cpu) = (restore.worker(), cpu.clone());
            thread::Builder::new()
                .name(format!("target-write-{number}"))
                .spawn(move || {
                    let _counted = cpu.count_this_thread();
                    while let Ok(incoming) = queue.recv_blocking() {
                        let result = apply(&mut worker, &incoming);
                        let has_failed = result.is_err();
                        drop(incoming);
                        if applied.blocking_send(result).is_err() || has_failed {
                            break;
                        }
                    }
                })
        };
        let threads = (0..count).map(start).collect::<Result<_, _>>()?;
        Ok(Self { threads })
    }

    /// Waits until the threads have ended: what they found is in the books then.
    pub(super) fn join(self) {
        for thread in self.threads {
            // A thread that panicked left something out, and the digests will differ.
            let _panicked = thread.join();
        }
    }
}

fn apply(worker: &mut RestoreWorker, incoming: &Incoming) -> Result<(), TreeError> {
    match incoming {
        Incoming::Pack {
            number,
            digest,
            bytes,
        } => {
            if pack_digest(bytes) != *digest {
                return Err(TreeError::Corrupt {
                    path: format!("pack {number}"),
                });
            }
            worker.apply_pack(bytes)
        }
        Incoming::Piece {
            file,
            index,
            digest,
            zero_map,
            bytes,
        } => worker.write_piece(*file, *index, *digest, zero_map, bytes),
        Incoming::ZeroPieces {
            file,
            index,
            count,
            last_len,
        } => worker.zero_pieces(*file, *index, *count, *last_len),
    }
}
