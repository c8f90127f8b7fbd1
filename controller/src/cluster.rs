//! Every call to the API server, and nothing else: what is read for a [`World`](crate::world::World),
//! and how each [`Step`] is taken.
//!
//! Each call has a time limit. What was already done, or is gone already, is no error.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{
    ConfigMap, Event as CoreEvent, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams, Preconditions,
};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use uuid::Uuid;
use volferry_transport::mint::{self, MintError};

use crate::api::{VolumeClone, VolumeCloneStatus};
use crate::claims::{VolumeMode, waits_for_clone};
use crate::credentials::{ObserverCredentials, VALIDITY, trusted_authorities};
use crate::decide::{Doomed, Note, Rebinding, Step};
use crate::names::{
    CLONE_LABEL, END_LABEL, End, FINALIZER, MANAGER, PRIVILEGED_ANNOTATION, RECEIPT_ANNOTATION,
    TEMPLATE_LABEL, filler_name, name, prime_name, selector,
};
use crate::objects::{self, IDENTITY_KEYS, Object, SNAPSHOT_GROUP, snapshot_resource};
use crate::world::{Belonging, Grant, Kind, Snapshot, SnapshotClass, Surroundings};

/// How long a call may take: the API server's own limit for most is a minute, and a reconcile that
/// waits holds up others.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server said no, or could not be asked.
    #[error("{what}: {source}")]
    Api {
        /// What was asked for.
        what: String,
        /// Its answer.
        source: kube::Error,
    },
    /// The API server did not answer in time.
    #[error("{what}: no answer from the API server within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// What was asked for.
        what: String,
    },
    /// Credentials could not be made.
    #[error("credentials can't be made: {0}")]
    Mint(#[from] MintError),
    /// The object's uid is no UUID, which Kubernetes never makes.
    #[error("the uid {uid:?} is no UUID")]
    Uid {
        /// The uid.
        uid: String,
    },
}

impl ClusterError {
    /// The API server's words, where it refused what was asked: asking again at once would not help.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Api {
                source: kube::Error::Api(status),
                ..
            } if matches!(status.code, 400 | 403 | 404 | 422) => Some(&status.message),
            _ => None,
        }
    }

    fn is(&self, code: u16) -> bool {
        matches!(self, Self::Api { source: kube::Error::Api(status), .. } if status.code == code)
    }
}

/// A result of a call.
pub type Result<T> = std::result::Result<T, ClusterError>;

/// The API server, as the controller uses it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    recorder: Recorder,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl Cluster {
    /// The cluster behind `client`; Events are told in the name of `instance`.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        let reporter = Reporter {
            controller: MANAGER.to_owned(),
            instance: Some(instance),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, recorder }
    }

    /// The client, for watches.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn snapshots(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &snapshot_resource())
    }

    /// The object as it is now, if it is there.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn clone_now(&self, namespace: &str, name: &str) -> Result<Option<VolumeClone>> {
        let clones: Api<VolumeClone> = self.namespaced(namespace);
        let what = || format!("reading VolumeClone {namespace}/{name}");
        call(what, clones.get_opt(name)).await
    }

    /// A claim, if it is there.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn claim(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<PersistentVolumeClaim>> {
        self.find(namespace, name).await
    }

    /// A volume, if it is there and not about to go.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>> {
        let found: Option<PersistentVolume> = self.find_cluster_wide(name).await?;
        Ok(found.filter(|volume| volume.metadata.deletion_timestamp.is_none()))
    }

    /// The claims that refer to `template`, wait for their volume, and have no clone to fill them.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn referring(&self, template: &VolumeClone) -> Result<Vec<PersistentVolumeClaim>> {
        let namespace = template.target_namespace();
        let clones: Api<VolumeClone> = self.namespaced(namespace);
        let selector = format!("{TEMPLATE_LABEL}={}", template.uid());
        let what = || {
            format!(
                "listing the clones after {namespace}/{}",
                template.name_any()
            )
        };
        let params = ListParams::default().labels(&selector);
        let fillers = call(what, clones.list_metadata(&params)).await?;
        let fillers: BTreeSet<_> = fillers.iter().map(ResourceExt::name_any).collect();
        let claims: Api<PersistentVolumeClaim> = self.namespaced(namespace);
        let what = || format!("listing claims in {namespace}");
        let found = call(what, claims.list(&ListParams::default())).await?;
        let refers = |claim: &PersistentVolumeClaim| {
            waits_for_clone(claim) == template.metadata.name.as_deref()
                && !fillers.contains(&filler_name(&claim.uid().unwrap_or_default()))
        };
        Ok(found.into_iter().filter(refers).collect())
    }

    async fn find<K>(&self, namespace: &str, name: &str) -> Result<Option<K>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.namespaced(namespace);
        let what = || {
            format!(
                "reading {} {namespace}/{name}",
                K::kind(&K::DynamicType::default())
            )
        };
        call(what, api.get_opt(name)).await
    }

    async fn find_cluster_wide<K>(&self, name: &str) -> Result<Option<K>>
    where
        K: Resource<Scope = ClusterResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let what = || format!("reading {} {name}", K::kind(&K::DynamicType::default()));
        call(what, api.get_opt(name)).await
    }

    /// The agents' pods of a clone, in both namespaces.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn agent_pods(&self, clone: &VolumeClone) -> Result<Vec<Pod>> {
        let mut found = Vec::new();
        for namespace in namespaces(clone) {
            let pods: Api<Pod> = self.namespaced(namespace);
            let params = ListParams::default().labels(&selector(clone));
            let what = || format!("listing the agents' pods in {namespace}");
            found.extend(call(what, pods.list(&params)).await?);
        }
        Ok(found)
    }

    /// What else was made for a clone, in both namespaces.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn belongings(&self, clone: &VolumeClone) -> Result<Vec<Belonging>> {
        let mut found = Vec::new();
        for namespace in namespaces(clone) {
            for kind in Kind::ALL {
                let of_kind = match kind {
                    Kind::Pod => continue,
                    Kind::Secret => self.secrets(namespace, clone).await?,
                    Kind::NetworkPolicy => {
                        self.list_metadata::<NetworkPolicy>(namespace, clone)
                            .await?
                    }
                    Kind::ConfigMap => self.list_metadata::<ConfigMap>(namespace, clone).await?,
                    Kind::Claim => {
                        self.list_metadata::<PersistentVolumeClaim>(namespace, clone)
                            .await?
                    }
                    Kind::Snapshot => self.list_snapshots(namespace, clone).await?,
                };
                found.extend(of_kind.into_iter().map(|metadata| Belonging {
                    kind,
                    namespace: namespace.to_owned(),
                    name: metadata.name.unwrap_or_default(),
                    uid: metadata.uid.unwrap_or_default(),
                    annotations: metadata.annotations.unwrap_or_default(),
                    is_deleting: metadata.deletion_timestamp.is_some(),
                }));
            }
        }
        Ok(found)
    }

    async fn list_metadata<K>(
        &self,
        namespace: &str,
        clone: &VolumeClone,
    ) -> Result<Vec<kube::core::ObjectMeta>>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = self.namespaced(namespace);
        let params = ListParams::default().labels(&selector(clone));
        let what = || {
            format!(
                "listing {} in {namespace}",
                K::plural(&K::DynamicType::default())
            )
        };
        let list = call(what, api.list_metadata(&params)).await?;
        let metadata = |object: PartialObjectMeta<K>| object.metadata;
        Ok(list.items.into_iter().map(metadata).collect())
    }

    /// The Secrets of a clone, by their names: to list Secrets would take the right to read them all.
    async fn secrets(
        &self,
        namespace: &str,
        clone: &VolumeClone,
    ) -> Result<Vec<kube::core::ObjectMeta>> {
        let api: Api<Secret> = self.namespaced(namespace);
        let mut found = Vec::new();
        for end in End::ALL {
            let name = name(clone, end);
            if end.namespace(clone) == namespace {
                let what = || format!("looking for Secret {namespace}/{name}");
                found.extend(call(what, api.get_metadata_opt(&name)).await?);
            }
        }
        Ok(found.into_iter().map(|secret| secret.metadata).collect())
    }

    async fn list_snapshots(
        &self,
        namespace: &str,
        clone: &VolumeClone,
    ) -> Result<Vec<kube::core::ObjectMeta>> {
        let params = ListParams::default().labels(&selector(clone));
        let snapshots = self.snapshots(namespace);
        let what = || format!("listing snapshots in {namespace}");
        // A cluster without snapshots doesn't know the kind.
        let list = known(call(what, snapshots.list(&params)).await)?;
        let list = list.into_iter().flat_map(|list| list.items);
        Ok(list.map(|snapshot| snapshot.metadata).collect())
    }

    /// Everything that has to be looked at before something is made for `clone`.
    ///
    /// # Errors
    /// When a call fails. What a cluster doesn't know (snapshots, grants) counts as not there.
    pub async fn surroundings(&self, clone: &VolumeClone) -> Result<Surroundings> {
        let source_namespace = clone.source_namespace();
        let home = clone.target_namespace();
        let mut around = Surroundings::default();
        if let Some(source) = &clone.spec.source.persistent_volume_claim {
            around.source_claim = self.claim(source_namespace, &source.name).await?;
            // Other clones may read it as this one does.
            let mut users = self.users(clone, source_namespace, &source.name).await?;
            users.retain(|pod| {
                pod.labels()
                    .get(END_LABEL)
                    .is_none_or(|end| end != End::Source.label())
            });
            around.source_users = users;
            around.taken_snapshot = self
                .snapshot(source_namespace, &name(clone, End::Source))
                .await?;
        }
        if let Some(source) = &clone.spec.source.volume_snapshot {
            around.source_snapshot = self.snapshot(source_namespace, &source.name).await?;
        }
        let restored = name(clone, End::Source);
        around.restored_claim = self.claim(source_namespace, &restored).await?;
        let spec = around
            .source_claim
            .as_ref()
            .and_then(|claim| claim.spec.as_ref());
        if let Some(volume) = spec.and_then(|spec| spec.volume_name.as_deref()) {
            around.source_volume = self.find_cluster_wide::<PersistentVolume>(volume).await?;
        }
        around.target_users = self.users(clone, home, clone.target_claim()).await?;
        let prime = clone
            .status
            .as_ref()
            .and_then(|status| status.prime.as_ref());
        around.target_warnings = match prime {
            Some(prime) => self.warnings(&prime.namespace, &prime_name(clone)).await?,
            None => self.warnings(home, clone.target_claim()).await?,
        };
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let what = || "listing storage classes".to_owned();
        let params = ListParams::default();
        around.storage_classes = call(what, classes.list(&params)).await?.items;
        around.snapshot_classes = self.snapshot_classes().await?;
        if clone.is_cross_namespace() {
            around.grants = self.grants(source_namespace).await?;
        }
        for namespace in namespaces(clone) {
            let found = self.find_cluster_wide::<Namespace>(namespace).await?;
            let annotation = found.as_ref().and_then(|found| {
                let annotations = found.annotations();
                annotations.get(PRIVILEGED_ANNOTATION).cloned()
            });
            let is_privileged = annotation.is_some_and(|value| value == "true");
            around
                .privileged
                .insert(namespace.to_owned(), is_privileged);
        }
        Ok(around)
    }

    /// Pods that mount a claim, have not ended, and are no agents of this clone.
    async fn users(&self, clone: &VolumeClone, namespace: &str, claim: &str) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = self.namespaced(namespace);
        let params = ListParams::default()
            .labels(&format!("{CLONE_LABEL}!={}", clone.uid()))
            .fields("status.phase!=Succeeded,status.phase!=Failed");
        let what = || format!("listing pods in {namespace}");
        let uses = |pod: &Pod| {
            let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes).flatten();
            let mut claims = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref());
            claims.any(|mounted| mounted.claim_name == claim)
        };
        let pods = call(what, pods.list(&params)).await?;
        Ok(pods.into_iter().filter(uses).collect())
    }

    /// What went wrong with making a claim's volume.
    async fn warnings(&self, namespace: &str, claim: &str) -> Result<Vec<String>> {
        let events: Api<CoreEvent> = self.namespaced(namespace);
        let params = ListParams::default().fields(&format!(
            "involvedObject.kind=PersistentVolumeClaim,involvedObject.name={claim},\
             reason=ProvisioningFailed"
        ));
        let what = || format!("listing events of claim {namespace}/{claim}");
        let mut found = call(what, events.list(&params)).await?.items;
        found.sort_by_key(|event| event.last_timestamp.clone());
        Ok(found
            .into_iter()
            .filter_map(|event| event.message)
            .collect())
    }

    async fn snapshot(&self, namespace: &str, name: &str) -> Result<Option<Snapshot>> {
        let snapshots = self.snapshots(namespace);
        let what = || format!("reading snapshot {namespace}/{name}");
        // A cluster without snapshots doesn't know the kind.
        let found = known(call(what, snapshots.get_opt(name)).await)?;
        let Some(found) = found.flatten() else {
            return Ok(None);
        };
        let status = &found.data["status"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let restore = text(&status["restoreSize"])
            .map(k8s_openapi::apimachinery::pkg::api::resource::Quantity);
        let volume_mode = match status["boundVolumeSnapshotContentName"].as_str() {
            Some(content) => self.snapshot_mode(content).await?,
            None => None,
        };
        Ok(Some(Snapshot {
            name: name.to_owned(),
            uid: found.uid().unwrap_or_default(),
            is_ready: status["readyToUse"] == Value::Bool(true),
            error: text(&status["error"]["message"]),
            restore_bytes: restore.as_ref().and_then(crate::claims::bytes),
            volume_mode,
            class: text(&found.data["spec"]["volumeSnapshotClassName"]),
        }))
    }

    /// The mode of the volume that a snapshot was taken of.
    async fn snapshot_mode(&self, content: &str) -> Result<Option<VolumeMode>> {
        let kind = GroupVersionKind::gvk(SNAPSHOT_GROUP, "v1", "VolumeSnapshotContent");
        let contents: Api<DynamicObject> =
            Api::all_with(self.client.clone(), &ApiResource::from_gvk(&kind));
        let what = || format!("reading snapshot content {content}");
        let found = call(what, contents.get_opt(content)).await?;
        let mode = found.map(|found| found.data["spec"]["sourceVolumeMode"].clone());
        Ok(mode.and_then(|mode| match mode.as_str()? {
            "Block" => Some(VolumeMode::Block),
            "Filesystem" => Some(VolumeMode::Filesystem),
            _ => None,
        }))
    }

    async fn snapshot_classes(&self) -> Result<Vec<SnapshotClass>> {
        let kind = GroupVersionKind::gvk(SNAPSHOT_GROUP, "v1", "VolumeSnapshotClass");
        let resource = ApiResource::from_gvk_with_plural(&kind, "volumesnapshotclasses");
        let classes: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let what = || "listing snapshot classes".to_owned();
        let found = known(call(what, classes.list(&ListParams::default())).await)?;
        let class = |class: DynamicObject| {
            let default = "snapshot.storage.kubernetes.io/is-default-class";
            Some(SnapshotClass {
                is_default: class
                    .annotations()
                    .get(default)
                    .is_some_and(|it| it == "true"),
                driver: class.data["driver"].as_str()?.to_owned(),
                name: class.name_any(),
            })
        };
        let found = found.into_iter().flat_map(|list| list.items);
        Ok(found.filter_map(class).collect())
    }

    async fn grants(&self, namespace: &str) -> Result<Vec<Grant>> {
        let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1beta1", "ReferenceGrant");
        let grants: Api<DynamicObject> = Api::namespaced_with(
            self.client.clone(),
            namespace,
            &ApiResource::from_gvk(&kind),
        );
        let what = || format!("listing grants in {namespace}");
        let found = known(call(what, grants.list(&ListParams::default())).await)?;
        let found = found.into_iter().flat_map(|list| list.items);
        // One that can't be read consents to nothing.
        let grant = |grant: DynamicObject| serde_json::from_value(grant.data["spec"].clone()).ok();
        Ok(found.filter_map(grant).collect())
    }

    /// The credentials by which a clone's target is asked for its progress.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn observer(&self, clone: &VolumeClone) -> Result<Option<ObserverCredentials>> {
        let name = name(clone, End::Target);
        let secret: Option<Secret> = self.find(clone.target_namespace(), &name).await?;
        Ok(secret.and_then(|secret| ObserverCredentials::of(&secret)))
    }

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

    /// Tells an Event. One that is lost is no reason to stop.
    pub async fn publish(&self, clone: &VolumeClone, note: &Note) {
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
            action: "Clone".to_owned(),
            secondary: None,
        };
        let reference = clone.object_ref(&());
        let what = || "telling an Event".to_owned();
        if let Err(error) = call(what, self.recorder.publish(&event, &reference)).await {
            tracing::warn!(%error, "an Event was lost");
        }
    }

    /// Takes a step.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn take(&self, clone: &VolumeClone, step: &Step) -> Result<()> {
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
            Step::Delete(doomed) => self.delete(doomed).await,
            Step::Rebind(rebinding) => self.rebind(rebinding).await,
            Step::Attest { claim, receipt } => {
                let claims: Api<PersistentVolumeClaim> = self.namespaced(clone.target_namespace());
                let patch = json!({"metadata": {"annotations": {RECEIPT_ANNOTATION: receipt}}});
                let what = || format!("noting the receipt on claim {claim}");
                let params = PatchParams::default();
                let patched = call(what, claims.patch(claim, &params, &Patch::Merge(patch))).await;
                unless(patched.map(drop), 404)
            }
            Step::Expire => {
                let clones: Api<VolumeClone> = self.namespaced(clone.target_namespace());
                let name = clone.name_any();
                let what = || format!("deleting VolumeClone {name}, whose time is over");
                let params = delete_params(clone.uid());
                let deleted = call(what, clones.delete(&name, &params)).await;
                unless(unless(deleted.map(drop), 404), 409)
            }
        }
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
    /// trust beside the new authority, should the other write fail.
    async fn mint(&self, clone: &VolumeClone) -> Result<()> {
        let uid = clone.uid();
        let clone_id = Uuid::parse_str(uid).map_err(|_| ClusterError::Uid {
            uid: uid.to_owned(),
        })?;
        let target = name(clone, End::Target);
        let present: Option<Secret> = self.find(clone.target_namespace(), &target).await?;
        let [_, _, authority] = IDENTITY_KEYS;
        let trusted = present.and_then(|secret| {
            let data = secret.data?;
            String::from_utf8(data.get(authority)?.0.clone()).ok()
        });
        let trusted = trusted_authorities(trusted.as_deref().unwrap_or_default());
        let minted = mint::mint(clone_id, VALIDITY)?;
        let ends_at = SystemTime::now() + VALIDITY;
        let ends_at = ends_at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let [source, target] = objects::secrets(clone, &minted, &trusted, ends_at.as_secs());
        for secret in [target, source] {
            self.apply_as(&secret).await?;
        }
        Ok(())
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

    async fn delete(&self, doomed: &Doomed) -> Result<()> {
        let Doomed {
            kind,
            namespace,
            name,
            uid,
        } = doomed;
        let params = delete_params(uid);
        let what = || format!("deleting {kind:?} {namespace}/{name}");
        let deleted = match kind {
            Kind::Pod => {
                let api: Api<Pod> = self.namespaced(namespace);
                call(what, api.delete(name, &params)).await.map(drop)
            }
            Kind::Secret => {
                let api: Api<Secret> = self.namespaced(namespace);
                call(what, api.delete(name, &params)).await.map(drop)
            }
            Kind::NetworkPolicy => {
                let api: Api<NetworkPolicy> = self.namespaced(namespace);
                call(what, api.delete(name, &params)).await.map(drop)
            }
            Kind::ConfigMap => {
                let api: Api<ConfigMap> = self.namespaced(namespace);
                call(what, api.delete(name, &params)).await.map(drop)
            }
            Kind::Claim => {
                let api: Api<PersistentVolumeClaim> = self.namespaced(namespace);
                call(what, api.delete(name, &params)).await.map(drop)
            }
            Kind::Snapshot => {
                let api = self.snapshots(namespace);
                call(what, api.delete(name, &params)).await.map(drop)
            }
        };
        // Gone already, or another object by that name, which stays.
        unless(unless(deleted, 404), 409)
    }
}

/// Calls the API server within the time limit.
async fn call<T>(
    what: impl Fn() -> String,
    asked: impl Future<Output = std::result::Result<T, kube::Error>>,
) -> Result<T> {
    match tokio::time::timeout(CALL_TIMEOUT, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(ClusterError::Api {
            what: what(),
            source,
        }),
        Err(_) => Err(ClusterError::Timeout { what: what() }),
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

/// Nothing where the cluster doesn't know the kind.
fn known<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is(404) => Ok(None),
        Err(error) => Err(error),
    }
}

fn post_params() -> PostParams {
    PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// Deletes only what has this uid.
fn delete_params(uid: &str) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        }),
        ..DeleteParams::background()
    }
}

/// The namespaces in which something of a clone may be.
fn namespaces(clone: &VolumeClone) -> impl Iterator<Item = &str> {
    let away = clone.is_cross_namespace().then(|| clone.source_namespace());
    [clone.target_namespace()].into_iter().chain(away)
}
