//! Cloning a tree: the directory is walked by several threads, and what they make of it is sent.
//!
//! ```text
//! Walk (OS threads: list, read, hash, pack) → queue → N data connections (tasks)
//! ```
//!
//! A tree whose session was lost is walked anew: what the target holds by then is not read.

use std::sync::Arc;

use uuid::Uuid;
use volferry_agent::failure;
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::geometry::ChunkSize;
use volferry_protocol::message::{Hello, Sent, TREE_FEATURES};
use volferry_storage::tree::TreeSource;
use volferry_transport::Connector;

use self::driver::Standing;
use crate::{SourceConfig, run_sessions};

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
    let hello = Hello {
        clone_id: context.progress.clone_id(),
        instance: Uuid::new_v4(),
        attempt: 0,
        take_over: config.take_over,
        // Nobody knows before it was walked.
        volume_size: 0,
        chunk_size: ChunkSize::DEFAULT,
        streams: config.streams,
        streams_max: config.further_streams(),
        generation: String::new(),
        features: TREE_FEATURES
            .iter()
            .map(ToString::to_string)
            .chain(config.compression.codecs().features())
            .collect(),
        required_features: TREE_FEATURES.iter().map(ToString::to_string).collect(),
        agent: volferry_agent::agent_name("volferry-source"),
        tree: Some(config.terms),
    };
    let mut standing = Standing {
        source,
        sent: Sent::default(),
        digest: None,
    };
    run_sessions(config, context, &connector, hello, &mut standing).await
}
