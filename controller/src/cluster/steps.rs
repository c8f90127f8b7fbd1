//! How each [`Step`] is taken, and status and Events are written.

use std::fmt::Debug;
use std::time::SystemTime;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, Secret,
};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::events::{Event, EventType};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use uuid::Uuid;
use volferry_transport::mint::mint;

use super::{Cluster, ClusterError, Result, call, resource_of};
use crate::api::{VolumeClone, VolumeCloneStatus};
use crate::credentials::{VALIDITY, trusted_authorities};
use crate::decide::{self, Doomed, Note, Rebinding, Step};
use crate::names::{End, FINALIZER, MANAGER, RECEIPT_ANNOTATION, SELECTED_NODE_ANNOTATION, name};
use crate::objects::{self, IDENTITY_KEYS, Object};

impl Cluster {
    /// Writes the status, unless somebody else has changed the object since it was read.
    ///
    /// # Errors
    /// When the call fails, or on a conflict.
    pub async fn write_status(
        &self,
        clone: &VolumeClone,
        status: &VolumeCloneStatus,
    ) -> Result<()> {
        let clones: Api<VolumeClone> = self.namespaced(clone.target_namespace());
        let mut written = clone.clone();
        written.status = Some(status.clone());
        let what = || format!("writing the status of {}", clone.name_any());
        let (name, params) = (clone.name_any(), PostParams::default());
        let written = clones.replace_status(&name, &params, &written);
        call(what, written).await.map(drop)
    }

    /// Tells an Event, of the clone and of the claim that it was made for.
    pub async fn publish(&self, clone: &VolumeClone, note: &Note) {
        let about = [Some(clone.object_ref(&())), filled_claim(clone)];
        for reference in about.into_iter().flatten() {
            self.tell(&reference, note).await;
        }
    }

    /// Tells the clone that a step was refused. What differs in its words alone is taken for the Event before: so each
    /// kind of step is an action of its own, and each object that goes is named beside the clone.
    pub(crate) async fn publish_refusal(&self, clone: &VolumeClone, step: &Step, note: &Note) {
        let doomed = match step {
            Step::Delete(doomed) => Some(reference(doomed)),
            _ => None,
        };
        let about = clone.object_ref(&());
        self.tell_of(&about, note, step.action(), doomed).await;
    }

    /// Tells an Event of an object.
    pub(crate) async fn tell(&self, about: &ObjectReference, note: &Note) {
        self.tell_of(about, note, "Clone", None).await;
    }

    /// Tells an Event of an object, and of another beside it. One that is lost is no reason to stop.
    async fn tell_of(
        &self,
        about: &ObjectReference,
        note: &Note,
        action: &str,
        secondary: Option<ObjectReference>,
    ) {
        /// What Kubernetes takes.
        const NOTE_LEN_MAX: usize = 1024;
        let mut message = note.message.clone();
        message.truncate(message.floor_char_boundary(NOTE_LEN_MAX));
        let event = Event {
            type_: if note.is_warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: note.reason.label().to_owned(),
            note: Some(message),
            action: action.to_owned(),
            secondary,
        };
        let what = || "telling an Event".to_owned();
        if let Err(error) = call(what, self.recorder.publish(&event, about)).await {
            tracing::warn!(%error, "an Event was lost");
        }
    }

    /// Takes a step.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn take(&self, clone: &VolumeClone, step: &Step) -> Result<()> {
        let what = || step.what();
        match step {
            Step::AddFinalizer => {
                let mut finalizers = clone.finalizers().to_vec();
                finalizers.push(FINALIZER.to_owned());
                self.set_finalizers(clone, &finalizers).await
            }
            Step::RemoveFinalizer => {
                let mut finalizers = clone.finalizers().to_vec();
                finalizers.retain(|name| name != FINALIZER);
                let removed = self.set_finalizers(clone, &finalizers).await;
                unless(removed, 404)
            }
            Step::Mint => self.mint(clone).await,
            Step::Apply(object) => self.apply(object).await,
            Step::Delete(doomed) => self.delete(doomed, what).await,
            Step::Rebind(rebinding) => self.rebind(rebinding).await,
            Step::Unplace { claim, uid } => {
                let annotations = json!({SELECTED_NODE_ANNOTATION: null});
                self.annotate_target(clone, claim, uid, &annotations, what)
                    .await
            }
            Step::Attest {
                claim,
                uid,
                receipt,
            } => {
                let annotations = json!({RECEIPT_ANNOTATION: receipt});
                self.annotate_target(clone, claim, uid, &annotations, what)
                    .await
            }
            Step::Expire => {
                let clones: Api<VolumeClone> = self.namespaced(clone.target_namespace());
                let name = clone.name_any();
                let params = delete_params(clone.uid(), None);
                let deleted = call(what, clones.delete(&name, &params)).await;
                unless(unless(deleted.map(drop), 404), 409)
            }
        }
    }

    /// Changes annotations of the target claim with this uid, if it is still there.
    async fn annotate_target(
        &self,
        clone: &VolumeClone,
        claim: &str,
        uid: &str,
        annotations: &serde_json::Value,
        what: impl Fn() -> String,
    ) -> Result<()> {
        let claims: Api<PersistentVolumeClaim> = self.namespaced(clone.target_namespace());
        let patch = json!({"metadata": {"uid": uid, "annotations": annotations}});
        let params = PatchParams::default();
        let patched = call(what, claims.patch(claim, &params, &Patch::Merge(patch))).await;
        unless(patched.map(drop), 404)
    }

    /// Gives a volume to another claim, unless somebody else has changed it since it was read.
    async fn rebind(&self, rebinding: &Rebinding) -> Result<()> {
        let Rebinding {
            volume,
            version,
            namespace,
            claim,
            uid,
        } = rebinding;
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let patch = json!({
            "metadata": {"resourceVersion": version},
            "spec": {"claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": namespace, "name": claim, "uid": uid, "resourceVersion": null,
            }},
        });
        let what = || format!("binding volume {volume} to claim {namespace}/{claim}");
        let params = PatchParams::default();
        let patch = Patch::Merge(patch);
        let patched = volumes.patch(volume, &params, &patch);
        call(what, patched).await.map(drop)
    }

    /// Sets the finalizers, unless somebody else has changed the object since it was read.
    async fn set_finalizers(&self, clone: &VolumeClone, finalizers: &[String]) -> Result<()> {
        let clones: Api<VolumeClone> = self.namespaced(clone.target_namespace());
        let patch = json!({"metadata": {
            "resourceVersion": clone.resource_version(),
            "finalizers": finalizers,
        }});
        let what = || format!("setting the finalizers of {}", clone.name_any());
        let (name, params, patch) = (
            clone.name_any(),
            PatchParams::default(),
            Patch::Merge(patch),
        );
        let patched = clones.patch(&name, &params, &patch);
        call(what, patched).await.map(drop)
    }

    /// Makes new credentials for both ends. The target's Secret is written first: it also says whom to
    /// trust beside the new authority, should the other write fail. Each is written in the place of what was
    /// read before both: of two controllers that do so at once, one gets no further, or the next look finds two
    /// mintings and makes a third.
    async fn mint(&self, clone: &VolumeClone) -> Result<()> {
        let uid = clone.uid();
        let clone_id = Uuid::parse_str(uid).map_err(|_| ClusterError::Uid {
            uid: uid.to_owned(),
        })?;
        let present = async |end: End| -> Result<Option<Secret>> {
            self.find(end.namespace(clone), &name(clone, end)).await
        };
        let present = [present(End::Source).await?, present(End::Target).await?];
        let [_, _, authority] = IDENTITY_KEYS;
        let trusted = present[1].as_ref().and_then(|secret| {
            let data = secret.data.as_ref()?;
            String::from_utf8(data.get(authority)?.0.clone()).ok()
        });
        let trusted = trusted_authorities(trusted.as_deref().unwrap_or_default());
        let minted = mint(clone_id, VALIDITY)?;
        let ends_at = SystemTime::now() + VALIDITY;
        let ends_at = ends_at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let minting = Uuid::new_v4();
        let made = objects::secrets(clone, &minted, minting, &trusted, ends_at.as_secs());
        for (secret, present) in made.into_iter().zip(present).rev() {
            self.put_secret(secret, present.as_ref()).await?;
        }
        Ok(())
    }

    /// Writes a Secret, unless somebody else has written it since `present` was read.
    async fn put_secret(&self, mut secret: Secret, present: Option<&Secret>) -> Result<()> {
        if let Some(present) = present {
            secret.metadata.resource_version = present.resource_version();
            return self.apply_as(&secret).await;
        }
        let (namespace, name) = (secret.namespace().unwrap_or_default(), secret.name_any());
        let secrets: Api<Secret> = self.namespaced(&namespace);
        let what = || format!("making Secret {namespace}/{name}");
        call(what, secrets.create(&post_params(), &secret))
            .await
            .map(drop)
    }

    async fn apply(&self, object: &Object) -> Result<()> {
        match object {
            Object::Pod(pod) => self.apply_as(pod.as_ref()).await,
            Object::NetworkPolicy(policy) => self.apply_as(policy.as_ref()).await,
            Object::ConfigMap(map) => self.apply_as(map.as_ref()).await,
            // Never over what a user has made by that name in the meantime.
            Object::Claim(claim) => {
                let namespace = claim.namespace().unwrap_or_default();
                let claims: Api<PersistentVolumeClaim> = self.namespaced(&namespace);
                let what = || format!("making {}", object.describe());
                unless_there(call(what, claims.create(&post_params(), claim)).await)
            }
            Object::Clone(clone) => {
                let clones: Api<VolumeClone> = self.namespaced(clone.target_namespace());
                let what = || format!("making {}", object.describe());
                unless_there(call(what, clones.create(&post_params(), clone)).await)
            }
            Object::Snapshot(snapshot) => {
                let snapshots = self.snapshots(&snapshot.namespace().unwrap_or_default());
                let what = || format!("making {}", object.describe());
                unless_there(call(what, snapshots.create(&post_params(), snapshot)).await)
            }
        }
    }

    /// Server-side apply: makes the object, or makes it so.
    async fn apply_as<K>(&self, object: &K) -> Result<()>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + Serialize + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let namespace = object.namespace().unwrap_or_default();
        let name = object.name_any();
        let api: Api<K> = self.namespaced(&namespace);
        let params = PatchParams::apply(MANAGER).force();
        let what = || {
            format!(
                "applying {} {namespace}/{name}",
                K::kind(&Default::default())
            )
        };
        call(what, api.patch(&name, &params, &Patch::Apply(object)))
            .await
            .map(drop)
    }

    async fn delete(&self, doomed: &Doomed, what: impl Fn() -> String) -> Result<()> {
        let Doomed {
            kind,
            namespace,
            name,
            uid,
            version,
        } = doomed;
        let params = delete_params(uid, version.clone());
        let client = self.client.clone();
        let objects: Api<DynamicObject> =
            Api::namespaced_with(client, namespace, &resource_of(*kind));
        let deleted = call(what, objects.delete(name, &params)).await.map(drop);
        // Gone already, or another object by that name or one that has changed, which stay.
        unless(unless(deleted, 404), 409)
    }
}

/// Success also where the API server answered with `code`.
fn unless(result: Result<()>, code: u16) -> Result<()> {
    match result {
        Err(error) if error.is(code) => Ok(()),
        other => other,
    }
}

/// Success also where the object is there already: whose it is shows with the next look.
fn unless_there<T>(created: Result<T>) -> Result<()> {
    match created {
        Err(ClusterError::Api {
            source: kube::Error::Api(status),
            ..
        }) if status.reason == "AlreadyExists" => Ok(()),
        other => other.map(drop),
    }
}

fn post_params() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// The claim that a clone was made for, since it refers to a `VolumeClone`: who made it looks there.
fn filled_claim(clone: &VolumeClone) -> Option<ObjectReference> {
    let owner = decide::filled_claim(clone)?;
    Some(ObjectReference {
        api_version: Some(owner.api_version.clone()),
        kind: Some(owner.kind.clone()),
        namespace: clone.namespace(),
        name: Some(owner.name.clone()),
        uid: Some(owner.uid.clone()),
        ..ObjectReference::default()
    })
}

/// An object that goes.
fn reference(doomed: &Doomed) -> ObjectReference {
    let kind = resource_of(doomed.kind);
    ObjectReference {
        api_version: Some(kind.api_version),
        kind: Some(kind.kind),
        namespace: Some(doomed.namespace.clone()),
        name: Some(doomed.name.clone()),
        uid: Some(doomed.uid.clone()),
        ..ObjectReference::default()
    }
}

/// Deletes only what has this uid, and this version where there is one.
fn delete_params(uid: &str, version: Option<String>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: version,
        }),
        ..DeleteParams::background()
    }
}
