//! The target end of a clone: receives a volume, writes it and makes it durable.
//!
//! ```text
//! N data connections (tasks) → queue → writers (OS threads: hash, compare, write) → flusher → owner
//! ```
//!
//! [`open`] claims the volume before anybody may connect, [`serve`] receives one clone: the greeter sorts
//! what comes in, and the session's owner (`driver`) alone talks to the state machine of the
//! protocol. The order is write, flush, journal, acknowledge. What is durable outlives a session, in memory and in the
//! journal, and the next one goes on from there. No buffer, no receive: the pool of buffers is
//! the memory bound and the back-pressure.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use uuid::Uuid;
use volferry_agent::failure;
use volferry_agent::metrics::Metrics;
use volferry_agent::options::TransportOptions;
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::receipt::Verified;
use volferry_protocol::session::Fence;
use volferry_protocol::tree::session::TreeTerms;
use volferry_storage::{StorageError, TargetOptions, TargetVolume};
use volferry_transport::{
    Acceptor, Address, CredentialsDir, ListenLimits, Listener, PeerAddress, Role, TransportChoice,
    TransportError,
};

use crate::driver::{Held, Volume};
use crate::greeter::Greeter;
use crate::journal::Journal;
use crate::resume::{Known, is_blank, read_checkpoint};
use crate::session::{Ask, serve_sessions};
use crate::tree::HeldTree;

pub use crate::resume::Resume;
pub use crate::writers::write_runs;

mod data;
mod driver;
mod greeter;
mod intake;
mod journal;
pub mod options;
mod readback;
mod resume;
mod session;
mod state_file;
mod tree;
mod work;
mod writers;

/// How a target agent does its work.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// The volume: a block device, a regular file that may not exist yet, or a directory.
    pub volume: PathBuf,
    /// How the volume may be treated.
    pub options: TargetOptions,
    /// A new clone begins by sharing the blocks of the source file, which is at hand.
    pub reflink: Option<Reflink>,
    /// Data connections to grant, at least 1.
    pub streams_max: u16,
    /// Threads that check and write, at least 1.
    pub writers: usize,
    /// Bytes of chunks in flight.
    pub memory_bytes: usize,
    /// Where the journal is kept; without one, what is durable is forgotten when the agent ends.
    pub state_dir: Option<PathBuf>,
    /// A checkpoint of another target agent to go on from.
    pub resume_from: Option<PathBuf>,
    /// What a clone goes on from.
    pub resume: Resume,
    /// When a tree is compared: whether files of the same size and time of modification count as
    /// equal, so that the source does not read them.
    pub trusts_times: bool,
    /// How the content is verified.
    pub verify: Verified,
    /// What of a tree has to be kept.
    pub terms: TreeTerms,
    /// Remove what a target directory holds before a tree is cloned into it.
    pub delete_extra: bool,
    /// The part of a filesystem that is kept free for its own needs when a block volume is cloned
    /// into a directory, from 0 to 1.
    pub filesystem_overhead: f64,
}

/// How a clone between two files of one filesystem begins.
#[derive(Clone, Debug)]
pub struct Reflink {
    /// The source file.
    pub source: PathBuf,
    /// Fail where the filesystem can't.
    pub must: bool,
}

impl TargetConfig {
    /// Defaults for `volume`: up to 64 connections, a writer for each processor (at most four),
    /// 64 MiB in flight.
    #[must_use]
    pub fn new(volume: PathBuf) -> Self {
        Self {
            volume,
            options: TargetOptions::default(),
            reflink: None,
            streams_max: 64,
            writers: std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(4),
            memory_bytes: 64 << 20,
            state_dir: None,
            resume_from: None,
            resume: Resume::default(),
            trusts_times: false,
            verify: Verified::Digest,
            terms: TreeTerms::default(),
            delete_extra: false,
            filesystem_overhead: 0.0,
        }
    }
}

/// A target that may be connected to: the volume is claimed, the journal read.
#[derive(Debug)]
pub struct Target(Claimed);

/// What was claimed.
#[derive(Debug)]
enum Claimed {
    /// A block device or a regular file.
    Volume(Box<Held>),
    /// A directory.
    Directory(Box<HeldTree>),
}

/// Claims the volume and the journal of `clone_id`, before anybody may connect.
///
/// # Errors
/// When the volume can't be what a clone is written to, or the journal or checkpoint can't be used.
pub fn open(config: &TargetConfig, clone_id: Uuid) -> Result<Target, Failure> {
    if config.volume.is_dir() {
        return tree::open(config, clone_id)
            .map(|held| Claimed::Directory(Box::new(held)))
            .map(Target);
    }
    let held = open_volume(config, clone_id)?;
    Ok(Target(Claimed::Volume(Box::new(held))))
}

/// Claims a block device or a regular file.
fn open_volume(config: &TargetConfig, clone_id: Uuid) -> Result<Held, Failure> {
    let opened = config
        .state_dir
        .as_deref()
        .map(|directory| Journal::open(directory, clone_id))
        .transpose()?;
    let (journal, journaled) = opened.unzip();
    let handed_over = config
        .resume_from
        .as_deref()
        .map(|path| read_checkpoint(path, clone_id))
        .transpose()?;
    // Of two, the journal is nearer to the volume.
    let checkpoint = journaled.flatten().or(handed_over);
    // Who was shut out stays so, whatever is gone on from.
    let fence = checkpoint
        .as_ref()
        .map_or_else(Fence::default, |checkpoint| {
            Fence::after(checkpoint.epoch, &checkpoint.remembered())
        });
    let checkpoint = checkpoint.filter(|_| config.resume != Resume::Nothing);
    let goes_on = checkpoint.is_some()
        || config.resume == Resume::Digest
        // An earlier run may have made the file and died before the journal's first record.
        || journal.is_some() && is_blank(&config.volume);
    let options = TargetOptions {
        overwrite: config.options.overwrite || goes_on,
        ..config.options
    };
    let volume = TargetVolume::open(&config.volume, options)
        .map_err(|error| failure::of_storage(End::Target, &error))?;
    let (volume, holds_copy) = match &config.reflink {
        None => (volume, false),
        // The content is what the checkpoint speaks of, and what an earlier run has shared.
        Some(_) if checkpoint.is_some() => (volume, true),
        Some(reflink) => share_blocks(volume, reflink)?,
    };
    if let Some(journal) = &journal {
        tracing::info!(journal = %journal.path().display(), goes_on, "the journal is open");
    }
    let known = Known {
        resume: config.resume,
        checkpoint,
        may_overwrite: config.options.overwrite || volume.capacity().is_some(),
        holds_copy,
        path: config.volume.clone(),
    };
    let held = Held {
        volume: Volume::Claimed(volume),
        journal: journal.map(|journal| Arc::new(Mutex::new(journal))),
        fence,
        known,
        standing: None,
        moved: (0, 0),
        holds_more: holds_copy,
        pool: None,
        receipt: None,
    };
    Ok(held)
}

/// Has the target share the source's blocks. Says whether it does.
fn share_blocks(volume: TargetVolume, reflink: &Reflink) -> Result<(TargetVolume, bool), Failure> {
    let shared = volume.share_blocks_of(&reflink.source);
    let (volume, refusal) = shared.map_err(|error| {
        let is_of_source =
            matches!(&error, StorageError::Io { path, .. } if *path == reflink.source);
        let end = if is_of_source {
            End::Source
        } else {
            End::Target
        };
        failure::of_storage(end, &error)
    })?;
    let Some(error) = refusal else {
        tracing::info!("the target shares the source's blocks; comparing");
        return Ok((volume, true));
    };
    if reflink.must {
        let text = format!(
            "the target can't share the blocks of {}: {error}; both have to be files of one filesystem that \
             can, such as XFS or Btrfs; or copy without --reflink always",
            reflink.source.display()
        );
        return Err(Failure::new(FailureCode::Usage, text));
    }
    tracing::info!(%error, "no blocks can be shared, everything is copied");
    Ok((volume, false))
}

/// Opens the port, or the Unix socket, for the source agent of the clone that the credentials are for, and for its
/// observers, for TLS and QUIC unless `transport` says otherwise. Who is turned away is logged and
/// counted.
///
/// # Errors
/// When the credentials can't be used, or the port can't be had.
pub async fn listen(
    address: impl Into<Address>,
    credentials: CredentialsDir,
    transport: &TransportOptions,
    metrics: &Metrics,
) -> Result<Listener, Failure> {
    let metrics = metrics.clone();
    let on_refused = move |peer_address: PeerAddress, error: TransportError| {
        let failure = failure::of_transport(&error);
        tracing::warn!(%peer_address, reason = error.label(), "a peer was turned away: {failure}");
        metrics.count_rejection(error.label());
    };
    let limits = ListenLimits {
        roles: vec![Role::Source, Role::Observer],
        transport: transport.transport.unwrap_or(TransportChoice::Auto),
        congestion: transport.congestion.unwrap_or_default(),
        ..ListenLimits::default()
    };
    Listener::bind(address, credentials, limits, on_refused)
        .await
        .map_err(|error| failure::of_transport(&error))
}

/// Receives one clone into `target`, which [`open`] claimed, in as many sessions as it takes.
///
/// # Errors
/// Whatever ends the clone, at either end.
pub async fn serve<A>(
    config: &TargetConfig,
    context: Context,
    target: Target,
    acceptor: A,
) -> Outcome
where
    A: Acceptor + 'static,
{
    let mut greeter = Greeter::start(acceptor, context.metrics.clone(), context.admin.clone());
    context.admin.set_ready(true);
    let outcome = match target.0 {
        Claimed::Volume(held) => serve_volume(config, &context, *held, None, &mut greeter).await,
        Claimed::Directory(target) => tree::serve(config, &context, *target, &mut greeter).await,
    };
    context.admin.set_ready(false);
    greeter.close().await;
    outcome
}

/// Receives one clone into a volume, in as many sessions as it takes; `asked` has the first, where a
/// source is there already.
async fn serve_volume<S>(
    config: &TargetConfig,
    context: &Context,
    mut held: Held,
    asked: Option<Ask<S>>,
    greeter: &mut Greeter<S>,
) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let outcome = serve_sessions(config, context, &mut held, asked, greeter).await;
    if let (Ok(_), Some(journal)) = (&outcome, &held.journal) {
        // A later clone by the same name must not go on from this one's end.
        let journal = journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.remove();
    }
    outcome
}
