//! The source end of a clone: reads a volume and sends it.
//!
//! ```text
//! cursor → readers (OS threads: read, look for zeros, hash) → queue → N data connections (tasks)
//! ```
//!
//! [`run`] opens the volume, dials the target and hands both to the session's owner (`driver`),
//! which alone talks to the state machine of the protocol. No buffer, no read: the pool of buffers
//! is the memory bound and the back-pressure, from the target's disk to ours.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volferry_agent::failure;
use volferry_agent::outcome::{Outcome, cancelled};
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkSize, Geometry};
use volferry_protocol::message::Hello;
use volferry_protocol::tree::session::TreeTerms;
use volferry_storage::{Generation, SourceOptions, open_source};
use volferry_transport::{Class, Connector, TransportError};

mod cursor;
mod data;
pub mod digest;
mod driver;
pub mod manifest;
mod readers;
pub mod tree;

/// How a source agent does its work.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The volume: a block device, a regular file, or a directory.
    pub volume: PathBuf,
    /// Chunk size to offer.
    pub chunk_size: ChunkSize,
    /// Data connections to ask for, at least 1.
    pub streams: u16,
    /// Threads that read and hash, at least 1.
    pub readers: usize,
    /// Bytes of chunks in flight.
    pub memory_bytes: usize,
    /// Read past the page cache where the volume lets us.
    pub direct: bool,
    /// How long the target may take to appear.
    pub connect_timeout: Duration,
    /// Where to write the digest of every chunk, or of every file of a tree.
    pub manifest: Option<PathBuf>,
    /// What of a tree has to be kept.
    pub terms: TreeTerms,
    /// Clone a tree though files of it change while they are read.
    pub allow_changed: bool,
}

impl SourceConfig {
    /// Defaults for `volume`: chunks of 1 MiB, one connection and one reader for each processor
    /// (at most four), 64 MiB in flight, a minute for the target to appear.
    #[must_use]
    pub fn new(volume: PathBuf) -> Self {
        let processors = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(4);
        Self {
            volume,
            chunk_size: ChunkSize::DEFAULT,
            streams: u16::try_from(processors).unwrap_or(1),
            readers: processors,
            memory_bytes: 64 << 20,
            direct: true,
            connect_timeout: Duration::from_secs(60),
            manifest: None,
            terms: TreeTerms::default(),
            allow_changed: false,
        }
    }
}

/// Clones the volume to the target behind `connector`.
///
/// # Errors
/// Whatever ends the clone, at either end.
pub async fn run<C>(config: SourceConfig, context: Context, connector: C) -> Outcome
where
    C: Connector + 'static,
{
    let outcome = clone(&config, &context, Arc::new(connector)).await;
    if let Err(failure) = &outcome {
        context.metrics.count_failure(failure);
    }
    context.admin.set_ready(false);
    outcome
}

async fn clone<C>(config: &SourceConfig, context: &Context, connector: Arc<C>) -> Outcome
where
    C: Connector + 'static,
{
    if config.volume.is_dir() {
        return tree::clone(config, context, connector).await;
    }
    let of_storage = |error| failure::of_storage(End::Source, &error);
    let options = SourceOptions {
        direct: config.direct,
    };
    let source = open_source(&config.volume, &options).map_err(of_storage)?;
    let generation = source.generation().map_err(of_storage)?;
    let geometry = Geometry::new(source.size(), config.chunk_size)
        .map_err(|error| Failure::new(FailureCode::SourceOpen, error.to_string()))?;
    tracing::info!(
        volume = %config.volume.display(),
        bytes = source.size(),
        direct = source.reads_direct(),
        "the source volume is open"
    );
    let hello = Hello {
        clone_id: context.progress.clone_id(),
        attempt: 1,
        volume_size: geometry.volume_size(),
        chunk_size: geometry.chunk_size(),
        streams: config.streams,
        generation: generation_text(&generation),
        features: Vec::new(),
        required_features: Vec::new(),
        agent: volferry_agent::agent_name("volferry-source"),
        tree: None,
    };
    let stream = dial(config, context, &*connector).await?;
    driver::run(
        config, context, connector, stream, hello, source, generation,
    )
    .await
}

/// Dials the target, which may take its time to appear.
pub(crate) async fn dial<C: Connector>(
    config: &SourceConfig,
    context: &Context,
    connector: &C,
) -> Result<C::Stream, Failure> {
    let mut shutdown = context.shutdown.clone();
    let stream = tokio::select! {
        stream = dial_until(connector, context, config.connect_timeout) => stream?,
        () = shutdown.requested() => return Err(cancelled()),
    };
    context.admin.set_ready(true);
    Ok(stream)
}

/// Dials the target until it answers: the two agents start in no order.
async fn dial_until<C: Connector>(
    connector: &C,
    context: &Context,
    timeout: Duration,
) -> Result<C::Stream, Failure> {
    const PAUSE_MIN: Duration = Duration::from_millis(50);
    const PAUSE_MAX: Duration = Duration::from_secs(2);
    let begun = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        let error = match connector.open().await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let is_absent = error.class() == Class::Network;
        if matches!(error, TransportError::Rejected { .. }) {
            context.metrics.count_rejection(error.label());
        }
        if !is_absent || begun.elapsed() + pause > timeout {
            return Err(failure::of_transport(&error));
        }
        tracing::debug!(%error, "the target is not there yet");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// What tells this state of the source from others, as text for the peer.
fn generation_text(generation: &Generation) -> String {
    match generation.file {
        Some(file) => format!(
            "size={} inode={} mtime={} ctime={}",
            generation.size, file.inode, file.mtime_ns, file.ctime_ns
        ),
        None => format!("size={}", generation.size),
    }
}
