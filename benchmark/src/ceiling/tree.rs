//! What small files decide: finding, opening and reading them, and making them.

use std::path::Path;
use std::sync::Arc;

use async_channel::{Receiver, Sender};
use uuid::Uuid;
use volferry_agent::failure::of_tree;
use volferry_agent::progress::End;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::session::fence::Remembered;
use volferry_protocol::tree::frame::pack_digest;
use volferry_protocol::tree::session::TreeTerms;
use volferry_source_agent::tree::digest::{DigestOptions, digest};
use volferry_storage::BufferPool;
use volferry_storage::tree::{
    Outgoing, Restore, TreeError, TreeSource, TreeTarget, TreeTargetOptions, Walk, WalkEnd,
    WalkOptions,
};

use super::{Bench, Measured, on_threads};
use crate::cost::{Cost, Stopwatch};
use crate::shape::Shape;

/// Reads the tree, and hashes what is in it.
///
/// # Errors
/// When it can't be read.
pub fn read(bench: &Bench<'_>, tree: &Shape) -> Result<Measured, Failure> {
    let tuning = bench.settings.tuning;
    let options = DigestOptions {
        terms: TreeTerms::default(),
        direct: tuning.direct,
        readers: tuning.tree_readers,
        memory_bytes: tuning.memory_bytes,
        manifest: None,
    };
    let watch = Stopwatch::start();
    digest(&tree.path, &options)?;
    Ok(Measured {
        cost: watch.stop(),
        bytes: tree.facts.logical_bytes,
        names: tree.facts.names,
        ..Measured::default()
    })
}

/// Where a walk puts what it makes.
#[derive(Debug)]
struct Passing(Sender<Outgoing>);

impl WalkEnd for Passing {
    fn put(&self, outgoing: Outgoing) -> bool {
        self.0.send_blocking(outgoing).is_ok()
    }
}

/// What a pack holds at most, as at the source.
const PACK_LEN: usize = 1 << 20;

/// Makes the tree anew from memory, and flushes it.
///
/// # Errors
/// When it can't be read or made.
pub fn write(bench: &Bench<'_>, tree: &Shape, number: u32) -> Result<Measured, Failure> {
    let tuning = bench.settings.tuning;
    // All of it at once, for nobody takes it before the walk ends. A thread that waits for a buffer holds one at
    // most: a pack that it has begun, or what it has read of several files. One that finds no work sends what it has
    // begun: with the last directories, one for each thread, that may be their four batches of names and themselves.
    let content = usize::try_from(tree.facts.logical_bytes).unwrap_or(usize::MAX);
    let names = usize::try_from(tree.facts.names).unwrap_or(usize::MAX);
    let room = content
        .saturating_add(names.saturating_mul(512))
        .saturating_mul(2)
        .saturating_add(PACK_LEN.saturating_mul(tuning.tree_readers.saturating_mul(5) + 8));
    let (pass, passed) = passing(room);
    walk(bench, tree, room, &pass)?;
    let path = bench.place.target(&format!("ceiling-tree-{number}"));
    restore(bench, &path, &passed).map(|cost| measured(tree, cost))
}

/// Reads the tree and makes it anew at once, as in a clone, with as much memory as both agents have.
///
/// # Errors
/// As of reading and making.
pub fn read_and_write(bench: &Bench<'_>, tree: &Shape, number: u32) -> Result<Measured, Failure> {
    let room = bench.settings.tuning.memory_bytes.saturating_mul(2);
    let (pass, passed) = passing(room);
    let path = bench.place.target(&format!("ceiling-both-{number}"));
    let both = on_threads("bench-both", 2, |number| match number {
        0 => {
            let restored = restore(bench, &path, &passed).map(Some);
            passed.close(); // else the walk of a restore that failed would wait
            restored
        }
        _ => walk(bench, tree, room, &pass).map(|()| None),
    })?;
    let cost = both.into_iter().flatten().next().unwrap_or_default();
    Ok(measured(tree, cost))
}

/// A channel for all that `room` bytes hold: what small files become holds a buffer each time.
fn passing(room: usize) -> (Sender<Outgoing>, Receiver<Outgoing>) {
    async_channel::bounded(room / PACK_LEN + 1)
}

fn measured(tree: &Shape, cost: Cost) -> Measured {
    Measured {
        cost,
        bytes: tree.facts.logical_bytes,
        names: tree.facts.names,
        ..Measured::default()
    }
}

/// Reads the tree and passes it on, in `room` bytes; closes the channel at the end.
fn walk(
    bench: &Bench<'_>,
    tree: &Shape,
    room: usize,
    pass: &Sender<Outgoing>,
) -> Result<(), Failure> {
    let tuning = bench.settings.tuning;
    let walked = || {
        let source = TreeSource::open(&tree.path).map_err(|error| of_tree(End::Source, &error))?;
        let options = WalkOptions {
            terms: TreeTerms::default(),
            direct: tuning.direct,
            offer: false,
            compare: false,
            epoch: 0,
            read_back: false,
        };
        let pool = BufferPool::new(room, PACK_LEN)
            .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
        let walk = Walk::new(source, options, pool, Passing(pass.clone()));
        let threads = tuning.tree_readers.min(walk.threads_max());
        on_threads("bench-walk", threads, |_number| {
            walk.run().map_err(|error| of_tree(End::Source, &error))
        })?;
        if !walk.finish().is_complete {
            let text = format!("{} could not be read whole", tree.path.display());
            return Err(Failure::internal(text));
        }
        Ok(())
    };
    let done = walked();
    pass.close(); // what is in it is still received
    done
}

/// Makes a tree at `path` of what is passed, flushes it, and says what that cost.
fn restore(bench: &Bench<'_>, path: &Path, passed: &Receiver<Outgoing>) -> Result<Cost, Failure> {
    let tuning = bench.settings.tuning;
    let of_target = |error: TreeError| of_tree(End::Target, &error);
    let options = TreeTargetOptions {
        direct: tuning.direct,
        ..TreeTargetOptions::default()
    };
    let watch = Stopwatch::start();
    let mut target = TreeTarget::open(path, Uuid::new_v4(), options).map_err(of_target)?;
    let restore = Arc::new(
        target
            .prepare(TreeTerms::default(), 1, &Remembered::default())
            .map_err(of_target)?,
    );
    on_threads("bench-restore", tuning.writers, |_number| {
        let mut worker = restore.worker();
        while let Ok(outgoing) = passed.recv_blocking() {
            bench.stop.check()?;
            let applied = match &outgoing {
                Outgoing::Pack { digest, bytes, .. } => {
                    debug_assert_eq!(
                        pack_digest(bytes),
                        *digest,
                        "a pack in memory stays as it is"
                    );
                    std::hint::black_box(pack_digest(bytes));
                    worker.apply_pack(bytes).map(|_none_was_offered| ())
                }
                Outgoing::Piece {
                    file,
                    index,
                    digest,
                    zero_map,
                    bytes,
                    compressed: _none, // nobody asked for it
                } => worker.write_piece(*file, *index, *digest, zero_map, bytes),
                Outgoing::ZeroPieces {
                    file,
                    index,
                    count,
                    last_len,
                } => worker.zero_pieces(*file, *index, *count, *last_len),
                // Nothing was offered, so that nothing is asked or said to be held.
                Outgoing::Begin { .. } | Outgoing::Probe { .. } | Outgoing::SamePieces { .. } => {
                    Ok(())
                }
            };
            applied.map_err(of_target)?;
        }
        Ok(())
    })?;
    conclude(&restore).map_err(of_target)?;
    Ok(watch.stop())
}

/// What the target does when all has come: links and directories, the last flush.
fn conclude(restore: &Arc<Restore>) -> Result<(), TreeError> {
    restore.complete()?;
    restore.conclude()
}
