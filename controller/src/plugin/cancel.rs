//! `kubectl volferry cancel`: ends a clone, and waits until nothing of it is left.

use std::time::Duration;

use kube::Api;
use kube::api::{DeleteParams, Preconditions};

use super::in_words;
use crate::api::{Phase, VolumeClone};

/// How often it is looked whether the clone is gone.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Deletes the clone by this name and waits until it is gone. Says what became of its target.
///
/// # Errors
/// When there is none, or the API server refuses or can't be asked.
pub async fn cancel(clones: &Api<VolumeClone>, name: &str) -> Result<String, String> {
    let clone = clones.get(name).await.map_err(in_words)?;
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: clone.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::background()
    };
    clones.delete(name, &params).await.map_err(in_words)?;
    loop {
        let left = clones.get_metadata_opt(name).await.map_err(in_words)?;
        // Another by the same name is not the one that was cancelled.
        if left.is_none_or(|left| left.metadata.uid != clone.metadata.uid) {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let phase = clone.status.as_ref().map(|status| status.phase);
    let (namespace, target) = (clone.target_namespace(), clone.target_claim());
    let fate = match (phase, &clone.spec.target.claim_template) {
        (Some(Phase::Ready), _) => "is complete and stays",
        (_, Some(_)) => "was not complete and is gone",
        (_, None) => "stays, and what it holds is not to be used",
    };
    Ok(format!(
        "volumeclone {namespace}/{name} ended; the claim {target} {fate}"
    ))
}
