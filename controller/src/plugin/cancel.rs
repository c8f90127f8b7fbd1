//! `kubectl volferry cancel`: ends a clone, and waits until nothing of it is left.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

use super::in_words;
use crate::api::{AgentAttempts, Phase, Strategy, VolumeClone};
use crate::decide::is_filled;
use crate::names::{CLONE_LABEL, FINALIZER, MANAGER, selector};

/// How often it is looked whether the clone is gone.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long nothing is said of what is waited for, each time: pods have 30 s to end.
const SAY_EVERY: Duration = Duration::from_secs(35);

/// Deletes the clone by this name and waits until it is gone. Says what became of its target, and meanwhile
/// by `say` what is waited for.
///
/// # Errors
/// When there is none, or the API server refuses or can't be asked.
pub async fn cancel(
    client: &Client,
    namespace: &str,
    name: &str,
    say: impl Fn(&str),
) -> Result<String, String> {
    let clones: Api<VolumeClone> = Api::namespaced(client.clone(), namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let mut clone = clones.get(name).await.map_err(in_words)?;
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: clone.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::background()
    };
    clones.delete(name, &params).await.map_err(in_words)?;
    let mut said_at = Instant::now();
    loop {
        let left = clones.get_opt(name).await.map_err(in_words)?;
        // Another by the same name is not the one that was cancelled.
        let Some(left) = left.filter(|left| left.uid() == clone.uid()) else {
            break;
        };
        clone = left;
        if said_at.elapsed() >= SAY_EVERY {
            said_at = Instant::now();
            // Who may not read these is told of the controller.
            let claim = claims.get_opt(clone.target_claim()).await.ok().flatten();
            let pods = pods(client, &clone).await;
            say(&waits_for(&clone, &pods, claim.as_ref()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let target = clone.target_claim();
    let fate = if clone.spec.target.referring_claims {
        "claims that refer to it are filled no more, and those that are being filled go on"
            .to_owned()
    } else {
        match claims.get_opt(target).await {
            Ok(claim) => format!("the claim {target} {}", fate(&clone, claim.as_ref())),
            Err(error) => format!(
                "what became of the claim {target} can't be told: {}",
                in_words(error)
            ),
        }
    };
    Ok(format!("volumeclone {namespace}/{name} ended; {fate}"))
}

/// The agents' pods that are there, as far as they may be read.
async fn pods(client: &Client, clone: &VolumeClone) -> Vec<Pod> {
    let mut found = Vec::new();
    for namespace in clone.namespaces() {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let params = ListParams::default().labels(&selector(clone));
        found.extend(pods.list(&params).await.into_iter().flatten());
    }
    found
}

/// What keeps a clone that was deleted, and what helps.
fn waits_for(clone: &VolumeClone, pods: &[Pod], claim: Option<&PersistentVolumeClaim>) -> String {
    let mut others = clone.finalizers().iter().filter(|name| *name != FINALIZER);
    if !clone.finalizers().iter().any(|name| name == FINALIZER) {
        let other = others.next().map_or("somebody", String::as_str);
        return format!("still there: all of it is removed, and the finalizer {other} keeps it");
    }
    let going: Vec<_> = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_some())
        .map(|pod| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
        .collect();
    if !going.is_empty() {
        return format!(
            "still there: pods have to end first: {}; if their node is lost, remove the node or the pods",
            going.join(", ")
        );
    }
    let is_going = |claim: &&PersistentVolumeClaim| {
        claim.metadata.deletion_timestamp.is_some() && is_made_for(claim, clone)
    };
    if let Some(claim) = claim.filter(is_going) {
        return format!(
            "still there: its target claim {} goes with the last pod that uses it",
            claim.name_any()
        );
    }
    format!(
        "still there: no controller has removed it yet; `kubectl get leases --all-namespaces --field-selector \
         metadata.name={MANAGER}` says whether one leads, and its Events what it may not do"
    )
}

/// What became of the target claim of a clone that has ended, which had this status last.
fn fate(clone: &VolumeClone, claim: Option<&PersistentVolumeClaim>) -> &'static str {
    let status = clone.status.clone().unwrap_or_default();
    let volume = status
        .prime
        .as_ref()
        .and_then(|prime| prime.volume.as_ref());
    let is_complete = status.phase == Phase::Ready || status.receipt.is_some() || volume.is_some();
    let is_template = clone.spec.target.claim_template.is_some();
    let Some(claim) = claim else {
        return match is_template && !is_complete {
            true => "was never complete and is not there",
            false => "is not there",
        };
    };
    // The source agent may have sent something as soon as it has a pod.
    let has_begun = status.filled_uid.is_some()
        || status.progress.is_some()
        || status.attempts.source != AgentAttempts::default();
    let is_by_agents = has_begun || status.strategy == Some(Strategy::HostAssisted);
    // The controller lets no claim of its own stay that a backend has not filled. One by agents stays where somebody
    // took the finalizer off the clone.
    let is_complete = is_complete || (is_template && !is_by_agents);
    let has_volume = claim.spec.iter().any(|spec| spec.volume_name.is_some());
    let is_filled = is_filled(claim, &status);
    match () {
        () if is_template && !is_made_for(claim, clone) => {
            "was not made for it, and stays as it is"
        }
        () if is_complete && (is_template || is_filled) => "is complete and stays",
        () if volume.is_some() && !has_volume => {
            "stays, and gets the complete volume if that was given to it before"
        }
        () if status.prime.is_some() => "stays, and has got no volume from it",
        () if is_template || is_filled && has_begun => "stays, and what it holds is not to be used",
        () => "stays, and nothing was written to it",
    }
}

/// Whether the claim bears the label of the clone.
fn is_made_for(claim: &PersistentVolumeClaim, clone: &VolumeClone) -> bool {
    let label = claim.labels().get(CLONE_LABEL);
    label.is_some_and(|uid| uid == clone.uid())
}
