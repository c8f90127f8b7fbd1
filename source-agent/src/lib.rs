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

use uuid::Uuid;
use volferry_agent::backoff::Backoff;
use volferry_agent::failure;
use volferry_agent::outcome::{Outcome, cancelled};
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::compression::Wanted;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkSize, Geometry};
use volferry_protocol::message::{self, Hello};
use volferry_protocol::session::Stage;
use volferry_protocol::tree::session::TreeTerms;
use volferry_storage::tree::disk_image_in;
use volferry_storage::{Generation, SourceOptions, open_source};
use volferry_transport::{Choice, Class, Connector, TransportError};

mod compression;
mod cursor;
mod data;
pub mod digest;
mod driver;
pub mod manifest;
mod readers;
mod streams;
pub mod tree;

use driver::Standing;

/// How a source agent does its work.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// The volume: a block device, a regular file, or a directory.
    pub volume: PathBuf,
    /// Chunk size to offer.
    pub chunk_size: ChunkSize,
    /// Data connections to begin with, at least 1.
    pub streams: u16,
    /// Data connections to have at most, where the network limits and each further one helps.
    pub streams_max: u16,
    /// Threads that read and hash, at least 1.
    pub readers: usize,
    /// Bytes of chunks in flight.
    pub memory_bytes: usize,
    /// Read past the page cache where the volume lets us.
    pub direct: bool,
    /// How long the target may take to appear.
    pub connect_timeout: Duration,
    /// Shut out another run of the source agent that holds the session.
    pub take_over: bool,
    /// What tells this state of the source from others, such as the uid of a snapshot; else its
    /// size, and a file's inode and times.
    pub generation: Option<String>,
    /// Where to write the digest of every chunk, or of every file of a tree.
    pub manifest: Option<PathBuf>,
    /// What of a tree has to be kept.
    pub terms: TreeTerms,
    /// Clone a tree though files of it change while they are read.
    pub allow_changed: bool,
    /// Bytes that the data connections may send each second at first; 0 for no limit.
    pub bandwidth_limit: u64,
    /// How payloads are compressed.
    pub compression: Wanted,
}

/// Readers of a directory. Opening a file that is not in memory waits for the storage, once or twice
/// for each file: more threads than processors keep it at work.
const TREE_READERS: usize = 8;

/// Data connections that are added at most where nobody said how many. On the worst paths of the bench's
/// table eight do well; each takes a buffer at both ends.
const STREAMS_MAX: u16 = 16;

impl SourceConfig {
    /// Defaults for `volume`: chunks of 1 MiB, one connection (up to 16 on a slow network) and one reader
    /// for each processor (at most four) but eight readers for a directory, 64 MiB in flight, a minute for the target
    /// to appear.
    #[must_use]
    pub fn new(volume: PathBuf) -> Self {
        let processors = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(4);
        let readers = match volume.is_dir() {
            true => TREE_READERS,
            false => processors,
        };
        Self {
            volume,
            chunk_size: ChunkSize::DEFAULT,
            streams: u16::try_from(processors).unwrap_or(1),
            streams_max: STREAMS_MAX,
            readers,
            memory_bytes: 64 << 20,
            direct: true,
            connect_timeout: Duration::from_secs(60),
            take_over: false,
            generation: None,
            manifest: None,
            terms: TreeTerms::default(),
            allow_changed: false,
            bandwidth_limit: 0,
            compression: Wanted::default(),
        }
    }

    /// The same with exactly so many data connections, or, where nobody said how many, as it is.
    #[must_use]
    pub fn with_streams(self, told: Option<u16>) -> Self {
        Self {
            streams: told.unwrap_or(self.streams),
            streams_max: told.unwrap_or(self.streams_max),
            ..self
        }
    }

    /// What a source says that it may come to want.
    fn further_streams(&self) -> Option<u16> {
        (self.streams_max > self.streams).then_some(self.streams_max)
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
    context.progress.throttle.set(config.bandwidth_limit);
    let outcome = clone(&config, &context, Arc::new(connector)).await;
    if let Err(failure) = &outcome {
        context.metrics.count_failure(failure);
    }
    context.admin.set_ready(false);
    outcome
}

/// A session that lasted as long was no failed attempt; the next pause is short again.
const SETTLED: Duration = Duration::from_secs(5);

/// Clones whatever the volume is.
async fn clone<C>(config: &SourceConfig, context: &Context, connector: Arc<C>) -> Outcome
where
    C: Connector + 'static,
{
    if !config.volume.is_dir() {
        return clone_volume(config, context, connector).await;
    }
    let outcome = tree::clone(config, context, Arc::clone(&connector)).await;
    let is_refused = matches!(&outcome, Err(failure) if failure.code == FailureCode::Unsupported);
    let image = is_refused.then(|| disk_image_in(&config.volume)).flatten();
    let Some(image) = image else {
        return outcome;
    };
    tracing::info!(
        image = %image.display(),
        "the target takes no tree: the disk image is cloned as the volume that it is"
    );
    let config = SourceConfig {
        volume: image,
        ..config.clone()
    };
    clone_volume(&config, context, connector).await
}

/// Clones a block device or a regular file.
async fn clone_volume<C>(config: &SourceConfig, context: &Context, connector: Arc<C>) -> Outcome
where
    C: Connector + 'static,
{
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
    let instance = Uuid::new_v4();
    let hello = Hello {
        clone_id: context.progress.clone_id(),
        instance,
        attempt: 0,
        take_over: config.take_over,
        volume_size: geometry.volume_size(),
        chunk_size: geometry.chunk_size(),
        streams: config.streams,
        streams_max: config.further_streams(),
        generation: generation_text(&generation, config.generation.as_deref()),
        features: config.compression.codecs().features().collect(),
        required_features: Vec::new(),
        agent: volferry_agent::agent_name("volferry-source"),
        tree: None,
    };
    let mut standing = Standing {
        source,
        generation,
        manifest: None,
        sent: message::Sent::default(),
        pool: None,
    };
    run_sessions(config, context, &connector, hello, &mut standing).await
}

/// What is cloned, session by session.
trait Clones<C: Connector> {
    /// Runs one session on `control`, a fresh connection to the target.
    fn session(
        &mut self,
        config: &SourceConfig,
        context: &Context,
        connector: Arc<C>,
        control: C::Stream,
        hello: Hello,
    ) -> impl Future<Output = Outcome> + Send;
}

/// Runs sessions of one clone until one ends in a receipt, in a failure that another would not
/// mend, or patience is at its end.
async fn run_sessions<C>(
    config: &SourceConfig,
    context: &Context,
    connector: &Arc<C>,
    mut hello: Hello,
    standing: &mut impl Clones<C>,
) -> Outcome
where
    C: Connector + 'static,
{
    let (seed, _) = hello.instance.as_u64_pair();
    let mut backoff = Backoff::new(seed);
    loop {
        let stream = dial(&**connector, config, context, &mut backoff).await?;
        context.admin.set_ready(true);
        hello.attempt += 1;
        let begun = Instant::now();
        let session = standing.session(
            config,
            context,
            Arc::clone(connector),
            stream,
            hello.clone(),
        );
        let outcome = session.await;
        let failure = match outcome {
            Err(failure) if may_pass(&failure, context) && !context.shutdown.is_requested() => {
                failure
            }
            outcome => return outcome,
        };
        // Before the ends have met, the target may as well belong to another source.
        if is_late(config, context) {
            return Err(failure);
        }
        context.patience.note(&failure);
        context.progress.set_stage(Stage::Handshake);
        context.metrics.count_failure(&failure);
        tracing::warn!(
            code = failure.code.label(),
            attempt = hello.attempt,
            "the session was lost, trying again: {failure}"
        );
        if begun.elapsed() > SETTLED {
            backoff.reset();
        }
        pause(context, backoff.next_pause()).await?;
    }
}

/// Whether the ends have met: in another session of this run.
fn have_met(context: &Context) -> bool {
    context.progress.stalled_for().is_some()
}

/// Whether the ends should have met by now. Once they have, patience alone counts.
fn is_late(config: &SourceConfig, context: &Context) -> bool {
    !have_met(context) && context.patience.age() > config.connect_timeout
}

/// Whether another session may end better than with `failure`. The address of a target that went
/// away may be a stranger's until it is back, and credentials are renewed: who has met its own target
/// is not turned away for good.
pub(crate) fn may_pass(failure: &Failure, context: &Context) -> bool {
    failure.code.is_retryable() || failure.code == FailureCode::Identity && have_met(context)
}

/// Waits, unless the agent has to end meanwhile.
async fn pause(context: &Context, time: Duration) -> Result<(), Failure> {
    let mut shutdown = context.shutdown.clone();
    tokio::select! {
        () = tokio::time::sleep(time) => Ok(()),
        failure = context.patience.exhausted() => Err(failure),
        () = shutdown.requested() => Err(cancelled()),
    }
}

/// Dials the target until it answers: the two agents start in no order, and either may be away for
/// a while. Before the ends have met, a target that doesn't appear in time is a failure of its own.
async fn dial<C: Connector>(
    connector: &C,
    config: &SourceConfig,
    context: &Context,
    backoff: &mut Backoff,
) -> Result<C::Stream, Failure> {
    let mut shutdown = context.shutdown.clone();
    loop {
        let opened = tokio::select! {
            opened = connector.connect() => opened,
            failure = context.patience.exhausted() => return Err(failure),
            () = shutdown.requested() => return Err(cancelled()),
        };
        let error = match opened {
            Ok(stream) => {
                if let Some(Choice { transport, why }) = connector.choice() {
                    let transport = transport.as_str();
                    tracing::info!(transport, %why, "connected to the target");
                    context
                        .progress
                        .set_transport(transport, Some(why.to_string()));
                }
                return Ok(stream);
            }
            Err(error) => error,
        };
        if matches!(error, TransportError::Rejected { .. }) {
            context.metrics.count_rejection(error.label());
        }
        let next_pause = backoff.next_pause();
        let failure = failure::of_transport(&error);
        let is_away = error.class() == Class::Network;
        let is_ours = matches!(error, TransportError::Credentials(_));
        // Any class, not only identity: who listens at a target's address need not speak TLS.
        let is_a_stranger = !is_away && !is_ours && have_met(context);
        if !is_away && !is_a_stranger || is_late(config, context) {
            return Err(context.patience.explain(&failure));
        }
        let is_news = context.patience.note_dial(&failure);
        if is_away {
            tracing::debug!(%error, "the target does not answer");
        } else if is_news {
            tracing::warn!("whoever answers is not the target, trying again: {failure}");
        }
        pause(context, next_pause).await?;
    }
}

/// What tells this state of the source from others, as text for the peer. `given` says it where the
/// system can't: a device has no times.
fn generation_text(generation: &Generation, given: Option<&str>) -> String {
    let size = generation.size;
    match (given, generation.file) {
        (Some(id), _) => format!("size={size} id={id}"),
        (None, Some(file)) => format!(
            "size={size} inode={} mtime={} ctime={}",
            file.inode, file.mtime_ns, file.ctime_ns
        ),
        (None, None) => format!("size={size}"),
    }
}
