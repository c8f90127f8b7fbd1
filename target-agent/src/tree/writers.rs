//! The threads that make a tree: each takes a pack or a piece from the queue, compares its digest,
//! and applies it.

use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use volferry_agent::cpu::CpuMeter;
use volferry_protocol::compression::{Compressed, Decompressor, Malformed};
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::Failure;
use volferry_protocol::tree::frame::pack_digest;
use volferry_protocol::tree::offer::{Answer, Pieces, Stamp};
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
        /// How they stand in `bytes`, where they are compressed.
        compressed: Option<Compressed>,
    },
    /// A piece of a large file, and the chaining value it must have.
    Piece {
        file: u64,
        index: u64,
        digest: Digest,
        zero_map: ZeroMap,
        bytes: Buffer,
        /// How its payload stands in `bytes`, where it is compressed.
        compressed: Option<Compressed>,
    },
    /// Pieces of a large file that must be zero.
    ZeroPieces {
        file: u64,
        index: u64,
        count: u32,
        last_len: u32,
    },
    /// A large file is about to come.
    Begin {
        file: u64,
        size: u64,
        stamp: Stamp,
        /// For messages.
        path: Vec<u8>,
    },
    /// The source asks for pieces that are held.
    Probe { file: u64, index: u64, count: u32 },
    /// Pieces that are held are as they should be.
    SamePieces { file: u64, index: u64, count: u32 },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Applied {
    /// It is part of the tree.
    Done,
    /// The source is to be told what is held of files.
    Answer(Answer),
    /// The source is to be told what is held of pieces.
    Pieces(Pieces),
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
        applied: &mpsc::Sender<Result<Applied, TreeError>>,
        count: usize,
        cpu: &CpuMeter,
    ) -> Result<Self, Failure> {
        let start = |number| {
            let (queue, applied) = (queue.clone(), applied.clone());
            let mut worker = restore.worker();
            cpu.spawn(format!("target-write-{number}"), move || {
                let mut decompressor = Decompressor::default();
                while let Ok(mut incoming) = queue.recv_blocking() {
                    let result = decompress(&mut decompressor, &mut incoming)
                        .and_then(|()| apply(&mut worker, &incoming));
                    let has_failed = result.is_err();
                    drop(incoming);
                    // A session that has ended no longer asks, but what it received is written.
                    let _not_asked = applied.blocking_send(result);
                    if has_failed {
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

/// Has the payload stand as it is.
fn decompress(decompressor: &mut Decompressor, incoming: &mut Incoming) -> Result<(), TreeError> {
    match incoming {
        Incoming::Pack {
            number,
            bytes,
            compressed: Some(compressed),
            ..
        } => {
            let zero_map = ZeroMap::all_data(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            let done = decompressor.decompress_in_place(*compressed, &zero_map, bytes);
            done.map_err(|Malformed| corrupt_pack(*number))
        }
        Incoming::Piece {
            index,
            zero_map,
            bytes,
            compressed: Some(compressed),
            ..
        } => {
            let done = decompressor.decompress_in_place(*compressed, zero_map, bytes);
            done.map_err(|Malformed| TreeError::Corrupt {
                path: format!("piece {index} of a file"),
            })
        }
        _ => Ok(()),
    }
}

fn corrupt_pack(number: u64) -> TreeError {
    TreeError::Corrupt {
        path: format!("pack {number}"),
    }
}

fn apply(worker: &mut RestoreWorker, incoming: &Incoming) -> Result<Applied, TreeError> {
    let done = |()| Applied::Done;
    match incoming {
        Incoming::Pack {
            number,
            digest,
            bytes,
            ..
        } => {
            if pack_digest(bytes) != *digest {
                return Err(corrupt_pack(*number));
            }
            let holdings = worker.apply_pack(bytes)?;
            Ok(match holdings.is_empty() {
                true => Applied::Done,
                false => Applied::Answer(Answer {
                    pack: *number,
                    holdings,
                }),
            })
        }
        Incoming::Piece {
            file,
            index,
            digest,
            zero_map,
            bytes,
            ..
        } => worker
            .write_piece(*file, *index, *digest, zero_map, bytes)
            .map(done),
        Incoming::ZeroPieces {
            file,
            index,
            count,
            last_len,
        } => worker
            .zero_pieces(*file, *index, *count, *last_len)
            .map(done),
        Incoming::Begin {
            file,
            size,
            stamp,
            path,
        } => worker.begin_file(*file, *size, *stamp, path).map(done),
        Incoming::Probe { file, index, count } => {
            worker.probe(*file, *index, *count).map(Applied::Pieces)
        }
        Incoming::SamePieces { file, index, count } => {
            worker.same_pieces(*file, *index, *count).map(done)
        }
    }
}
