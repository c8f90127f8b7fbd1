//! Cloning a tree: the directory is walked by several threads, and what they make of it is sent.
//!
//! ```text
//! Walk (OS threads: list, read, hash, pack) → queue → N data connections (tasks)
//! ```

use std::sync::Arc;

use uuid::Uuid;
use volferry_agent::backoff::Backoff;
use volferry_agent::failure;
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::geometry::ChunkSize;
use volferry_protocol::message::{Hello, TREE_FEATURES};
use volferry_storage::tree::TreeSource;
use volferry_transport::Connector;

use crate::{SourceConfig, dial};

mod data;
pub mod digest;
mod driver;
mod manifest;

/// Clones the directory to the target behind `connector`.
pub(crate) async fn clone<C>(config: &SourceConfig, context: &Context, connector: Arc<C>) -> Outcome
where
    C: Connector + 'static,
{
    let source =
        TreeSource::open(&config.volume).map_err(|error| failure::of_tree(End::Source, &error))?;
    tracing::info!(volume = %config.volume.display(), "the source directory is open");
    let instance = Uuid::new_v4();
    let hello = Hello {
        clone_id: context.progress.clone_id(),
        instance,
        attempt: 1,
        take_over: false,
        // Nobody knows before it was walked.
        volume_size: 0,
        chunk_size: ChunkSize::DEFAULT,
        streams: config.streams,
        generation: String::new(),
        features: TREE_FEATURES.iter().map(ToString::to_string).collect(),
        required_features: TREE_FEATURES.iter().map(ToString::to_string).collect(),
        agent: volferry_agent::agent_name("volferry-source"),
        tree: Some(config.terms),
    };
    let (seed, _) = instance.as_u64_pair();
    let mut backoff = Backoff::new(seed);
    let stream = dial(&*connector, config, context, &mut backoff).await?;
    context.admin.set_ready(true);
    driver::run(config, context, connector, stream, hello, source).await
}
