//! What small files decide: finding, opening and reading them, and making them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::cost::Stopwatch;
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

/// What a walk makes, kept in memory.
#[derive(Debug, Default)]
struct Kept(Mutex<VecDeque<Outgoing>>);

impl WalkEnd for Kept {
    fn put(&self, outgoing: Outgoing) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(outgoing);
        true
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
    let source = TreeSource::open(&tree.path).map_err(|error| of_tree(End::Source, &error))?;
    let options = WalkOptions {
        terms: TreeTerms::default(),
        direct: tuning.direct,
        offer: false,
        compare: false,
        epoch: 0,
        read_back: false,
    };
    // All of it at once, and room for what each thread has begun.
    let content = usize::try_from(tree.facts.logical_bytes).unwrap_or(usize::MAX);
    let names = usize::try_from(tree.facts.names).unwrap_or(usize::MAX);
    let room = content
        .saturating_add(names.saturating_mul(512))
        .saturating_mul(2)
        .saturating_add(PACK_LEN * (tuning.tree_readers + 8));
    let pool = BufferPool::new(room, PACK_LEN)
        .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
    let walk = Walk::new(source, options, pool, Kept::default());
    on_threads(
        "bench-walk",
        tuning.tree_readers.min(walk.threads_max()),
        |_number| walk.run().map_err(|error| of_tree(End::Source, &error)),
    )?;
    if !walk.finish().is_complete {
        let text = format!("{} could not be read whole", tree.path.display());
        return Err(Failure::internal(text));
    }
    let kept = &walk.end().0;

    let path = bench.place.target(&format!("ceiling-tree-{number}"));
    let of_target = |error: TreeError| of_tree(End::Target, &error);
    let options = TreeTargetOptions {
        direct: tuning.direct,
        ..TreeTargetOptions::default()
    };
    let watch = Stopwatch::start();
    let mut target = TreeTarget::open(&path, Uuid::new_v4(), options).map_err(of_target)?;
    let restore = Arc::new(
        target
            .prepare(TreeTerms::default(), 1, &Remembered::default())
            .map_err(of_target)?,
    );
    on_threads("bench-restore", tuning.writers, |_number| {
        let mut worker = restore.worker();
        loop {
            bench.stop.check()?;
            let next = kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(outgoing) = next else { break };
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
    Ok(Measured {
        cost: watch.stop(),
        bytes: tree.facts.logical_bytes,
        names: tree.facts.names,
        ..Measured::default()
    })
}

/// What the target does when all has come: links and directories, the last flush.
fn conclude(restore: &Arc<Restore>) -> Result<(), TreeError> {
    restore.complete()?;
    restore.conclude()
}
