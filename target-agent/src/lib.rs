//! The target end of a clone: receives a volume, writes it and makes it durable.
//!
//! ```text
//! N data connections (tasks) → queue → writers (OS threads: hash, compare, write) → flusher → owner
//! ```
//!
//! [`open`] claims the volume before anybody may connect, [`serve`] receives one clone: the greeter sorts
//! what comes in, and the session's owner (`driver`) alone talks to the state machine of the
//! protocol. The order is write, flush, acknowledge. No buffer, no receive: the pool of buffers is
//! the memory bound and the back-pressure.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;

use volferry_agent::failure;
use volferry_agent::metrics::Metrics;
use volferry_agent::outcome::{Outcome, cancelled};
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::failure::Failure;
use volferry_protocol::tree::session::TreeTerms;
use volferry_storage::tree::{TreeTarget, TreeTargetOptions};
use volferry_storage::{TargetOptions, TargetVolume};
use volferry_transport::{Acceptor, CredentialsDir, ListenLimits, Listener, Role, TransportError};

use crate::driver::SessionEnd;
use crate::greeter::{Greeted, Greeter, Purpose};

mod data;
mod driver;
mod greeter;
mod tree;
mod writers;

/// How a target agent does its work.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// The volume: a block device, a regular file that may not exist yet, or a directory.
    pub volume: PathBuf,
    /// How the volume may be treated.
    pub options: TargetOptions,
    /// Data connections to grant, at least 1.
    pub streams_max: u16,
    /// Threads that check and write, at least 1.
    pub writers: usize,
    /// Bytes of chunks in flight.
    pub memory_bytes: usize,
    /// What of a tree has to be kept.
    pub terms: TreeTerms,
    /// Remove what a target directory holds before a tree is cloned into it.
    pub delete_extra: bool,
}

impl TargetConfig {
    /// Defaults for `volume`: up to 64 connections, a writer for each processor (at most four),
    /// 64 MiB in flight.
    #[must_use]
    pub fn new(volume: PathBuf) -> Self {
        Self {
            volume,
            options: TargetOptions::default(),
            streams_max: 64,
            writers: std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(4),
            memory_bytes: 64 << 20,
            terms: TreeTerms::default(),
            delete_extra: false,
        }
    }
}

/// A volume that was claimed for a clone.
#[derive(Debug)]
pub enum ClaimedVolume {
    /// A block device or a regular file.
    Block(TargetVolume),
    /// A directory.
    Tree(TreeTarget),
}

/// Claims the volume, before anybody may connect.
///
/// # Errors
/// When the volume can't be what a clone is written to.
pub fn open(config: &TargetConfig) -> Result<ClaimedVolume, Failure> {
    if config.volume.is_dir() {
        let options = TreeTargetOptions {
            overwrite: config.options.overwrite,
            delete_extra: config.delete_extra,
            direct: config.options.direct,
        };
        return TreeTarget::open(&config.volume, options)
            .map(ClaimedVolume::Tree)
            .map_err(|error| failure::of_tree(End::Target, &error));
    }
    TargetVolume::open(&config.volume, config.options)
        .map(ClaimedVolume::Block)
        .map_err(|error| failure::of_storage(End::Target, &error))
}

/// Opens the port for the source agent of the clone that the credentials are for. Who is turned
/// away is logged and counted.
///
/// # Errors
/// When the credentials can't be used, or the port can't be had.
pub async fn listen(
    address: SocketAddr,
    credentials: CredentialsDir,
    metrics: &Metrics,
) -> Result<Listener, Failure> {
    let metrics = metrics.clone();
    let on_refused = move |peer_address: SocketAddr, error: TransportError| {
        let failure = failure::of_transport(&error);
        tracing::warn!(%peer_address, reason = error.label(), "a peer was turned away: {failure}");
        metrics.count_rejection(error.label());
    };
    let limits = ListenLimits {
        roles: vec![Role::Source],
        ..ListenLimits::default()
    };
    Listener::bind(address, credentials, limits, on_refused)
        .await
        .map_err(|error| failure::of_transport(&error))
}

/// Receives one clone into `volume`, which [`open`] claimed.
///
/// # Errors
/// Whatever ends the clone, at either end.
pub async fn serve<A>(
    config: &TargetConfig,
    context: Context,
    volume: ClaimedVolume,
    acceptor: A,
) -> Outcome
where
    A: Acceptor + 'static,
{
    let mut greeter = Greeter::start(acceptor, context.metrics.clone());
    context.admin.set_ready(true);
    let outcome = serve_sessions(config, &context, volume, &mut greeter).await;
    context.admin.set_ready(false);
    greeter.close().await;
    outcome
}

async fn serve_sessions<S>(
    config: &TargetConfig,
    context: &Context,
    mut volume: ClaimedVolume,
    greeter: &mut Greeter<S>,
) -> Outcome
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut epoch = 0;
    loop {
        let mut shutdown = context.shutdown.clone();
        let greeted = tokio::select! {
            greeted = greeter.next() => greeted?,
            () = shutdown.requested() => return Err(cancelled()),
        };
        let control = match greeted {
            Greeted {
                purpose: Purpose::Control,
                stream,
                ..
            } => stream,
            Greeted {
                purpose: Purpose::Data { .. },
                peer_address,
                ..
            } => {
                tracing::warn!(%peer_address, "a data connection came without a session");
                context.metrics.count_rejection("no_session");
                continue;
            }
        };
        epoch += 1;
        let ended = match volume {
            ClaimedVolume::Block(volume) => {
                match driver::run(config, context, volume, control, greeter, epoch).await {
                    SessionEnd::Over(outcome) => SessionEnd::Over(outcome),
                    SessionEnd::Untouched(volume, failure) => {
                        SessionEnd::Untouched(ClaimedVolume::Block(volume), failure)
                    }
                }
            }
            ClaimedVolume::Tree(target) => {
                match tree::driver::run(config, context, target, control, greeter, epoch).await {
                    SessionEnd::Over(outcome) => SessionEnd::Over(outcome),
                    SessionEnd::Untouched(target, failure) => {
                        SessionEnd::Untouched(ClaimedVolume::Tree(target), failure)
                    }
                }
            }
        };
        match ended {
            SessionEnd::Over(outcome) => {
                if let Err(failure) = &outcome {
                    context.metrics.count_failure(failure);
                }
                return outcome;
            }
            SessionEnd::Untouched(untouched, failure) => {
                // Whoever that was did not get as far as the volume: the right one may still come.
                tracing::warn!(
                    code = failure.code.label(),
                    "a session ended early: {failure}"
                );
                context.metrics.count_failure(&failure);
                volume = untouched;
            }
        }
    }
}
