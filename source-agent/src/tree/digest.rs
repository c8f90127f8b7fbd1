//! The digest of a tree without a clone: the same walk, with nobody to send to.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use volferry_agent::cpu::CpuMeter;
use volferry_agent::failure;
use volferry_agent::progress::End;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::tree::fidelity::Loss;
use volferry_protocol::tree::session::{TreeSummary, TreeTerms};
use volferry_storage::tree::{Outgoing, TreeSource, Walk, WalkEnd, WalkOptions};

use super::driver::{changed_failure, new_pool, start_threads};
use super::manifest::TreeManifest;

/// How a tree is digested.
#[derive(Clone, Copy, Debug)]
pub struct DigestOptions<'a> {
    /// What counts.
    pub terms: TreeTerms,
    /// Read past the page cache where the filesystem lets us.
    pub direct: bool,
    /// Threads that read.
    pub readers: usize,
    /// Bytes in flight.
    pub memory_bytes: usize,
    /// Where to write the digest of every file.
    pub manifest: Option<&'a Path>,
}

/// Reads the tree at `path`, and gives its digest with what it holds. Blocks.
///
/// # Errors
/// When something of it can't be read, or changes meanwhile.
pub fn digest(path: &Path, options: &DigestOptions<'_>) -> Result<TreeSummary, Failure> {
    let of_tree = |error| failure::of_tree(End::Source, &error);
    let source = TreeSource::open(path).map_err(of_tree)?;
    let manifest = options.manifest.map(TreeManifest::create).transpose()?;
    let walk_options = WalkOptions {
        terms: options.terms,
        direct: options.direct,
        offer: false,
        compare: false,
        epoch: 0,
        read_back: false,
    };
    let end = Nowhere(Mutex::new(manifest));
    let pool = new_pool(options.memory_bytes)?;
    let walk = Arc::new(Walk::new(source, walk_options, pool, end));
    let (ended_sender, mut ended) = mpsc::channel(options.readers.max(1));
    let threads = start_threads(&walk, options.readers, &CpuMeter::default(), ended_sender)?;
    for _ in 0..threads {
        match ended.blocking_recv() {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(of_tree(error)),
            None => return Err(Failure::internal("a reader is gone")),
        }
    }
    let walked = walk.finish();
    let manifest = walk
        .end()
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    manifest.map_or(Ok(()), TreeManifest::finish)?;
    if walked.changed != Loss::default() {
        return Err(changed_failure(&walked.changed));
    }
    if let Some(complaint) = walked.summary.fidelity.complaint(options.terms.accept) {
        let text = format!("not everything could be read: {complaint}");
        return Err(Failure::new(FailureCode::Fidelity, text));
    }
    Ok(walked.summary)
}

/// Nobody to send to.
#[derive(Debug)]
struct Nowhere(Mutex<Option<TreeManifest>>);

impl WalkEnd for Nowhere {
    fn put(&self, _outgoing: Outgoing) -> bool {
        true
    }

    fn file(&self, path: &[u8], digest: Digest) {
        let mut manifest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(manifest) = manifest.as_mut() {
            manifest.record(path, digest);
        }
    }
}
