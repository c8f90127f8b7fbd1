//! Every call to the API server, and nothing else: what is read for a [`World`](crate::world::World),
//! and how each [`Step`] is taken.
//!
//! Each call has a time limit. What was already done, or is gone already, is no error.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams, Preconditions,
};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::task::JoinSet;
use uuid::Uuid;
use volferry_transport::mint::{self, MintError};

use crate::api::{VolumeClone, VolumeCloneStatus};
use crate::cache::{self, Cache, KnownPod, Shelf, Wake, grant_resource, known_grant};
use crate::claims::{VolumeMode, waits_for_clone};
use crate::credentials::{ObserverCredentials, VALIDITY, trusted_authorities};
use crate::decide::{Doomed, Note, Rebinding, Step};
use crate::names::{
    CLONE_LABEL, End, FINALIZER, MANAGER, PRIVILEGED_ANNOTATION, RECEIPT_ANNOTATION, filler_name,
    name, prime_name, selector,
};
use crate::objects::{self, IDENTITY_KEYS, Object, SNAPSHOT_GROUP, snapshot_resource};
use crate::world::{Belonging, ClaimUser, Grant, Kind, Snapshot, Surroundings};

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
pub struct Cluster {
    client: Client,
    recorder: Recorder,
    cache: Arc<Cache>,
    /// What fills the cache's clones, until they are watched.
    clones: Mutex<Option<Writer<VolumeClone>>>,
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// How closely something is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Without any call: what takes one is left out. Good for seeing that nothing has to be done,
    /// since whoever sees something to do looks again.
    Glance,
    /// What a decision rests on is asked for, all else is known.
    Full,
}

/// What a step leads to, as it will be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// An object is there.
    There(Kind, String, String),
    /// An object by this name with this uid is gone, or about to go.
    Leaving(Kind, String, String, String),
    /// A clone that fills a claim is there.
    Filler(String, String),
    /// A claim has this receipt.
    Attested(String, String, String),
}

impl Expected {
    /// What is to be expected of a step, if it shows in what is watched.
    pub(crate) fn of(clone: &VolumeClone, step: &Step) -> Option<Self> {
        let there = |kind, metadata: &ObjectMeta| {
            let namespace = metadata.namespace.clone()?;
            Some(Self::There(kind, namespace, metadata.name.clone()?))
        };
        match step {
            Step::Apply(Object::Pod(pod)) => there(Kind::Pod, &pod.metadata),
            Step::Apply(Object::NetworkPolicy(it)) => there(Kind::NetworkPolicy, &it.metadata),
            Step::Apply(Object::Claim(claim)) => there(Kind::Claim, &claim.metadata),
            Step::Apply(Object::ConfigMap(map)) => there(Kind::ConfigMap, &map.metadata),
            Step::Apply(Object::Snapshot(it)) => there(Kind::Snapshot, &it.metadata),
            Step::Apply(Object::Clone(filler)) => Some(Self::Filler(
                filler.target_namespace().to_owned(),
                filler.name_any(),
            )),
            Step::Delete(doomed) if doomed.kind != Kind::Secret => Some(Self::Leaving(
                doomed.kind,
                doomed.namespace.clone(),
                doomed.name.clone(),
                doomed.uid.clone(),
            )),
            Step::Attest { claim, receipt, .. } => Some(Self::Attested(
                clone.target_namespace().to_owned(),
                claim.clone(),
                receipt.clone(),
            )),
            Step::Delete(_)
            | Step::AddFinalizer
            | Step::RemoveFinalizer
            | Step::Mint
            | Step::Rebind(_)
            | Step::Expire => None,
        }
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
        let (cache, clones) = Cache::new();
        Self {
            client,
            recorder,
            cache: Arc::new(cache),
            clones: Mutex::new(Some(clones)),
        }
    }

    /// Begins to watch, once, and waits until all was seen. With the tasks it ends.
    pub(crate) fn watch(&self, wake: &Wake) -> JoinSet<()> {
        let mut clones = self.clones.lock().unwrap_or_else(PoisonError::into_inner);
        clones.take().map_or_else(JoinSet::new, |clones| {
            self.cache.watch(&self.client, clones, wake)
        })
    }

    /// Waits until all that is watched was seen once.
    pub(crate) async fn until_known(&self) {
        self.cache.until_filled().await;
    }

    /// All clones.
    pub(crate) fn clones(&self) -> Store<VolumeClone> {
        self.cache.clones.clone()
    }

    /// The uids of the clones that are gone since this was asked last.
    pub(crate) fn take_gone(&self) -> Vec<String> {
        self.cache.take_gone()
    }

    /// The agents' pods of all clones.
    pub(crate) fn all_agent_pods(&self) -> Vec<Arc<KnownPod>> {
        let mut pods = self.cache.pods.all();
        pods.retain(|pod| pod.agent.is_some());
        pods
    }

    /// Whether what is known has caught up with a step that was taken.
    pub(crate) fn has_come_about(&self, expected: &Expected) -> bool {
        match expected {
            Expected::There(kind, namespace, name) => {
                self.known_metadata(*kind, namespace, name).is_some()
            }
            Expected::Leaving(kind, namespace, name, uid) => {
                let found = self.known_metadata(*kind, namespace, name);
                found.is_none_or(|found| {
                    found.deletion_timestamp.is_some() || found.uid.as_ref() != Some(uid)
                })
            }
            Expected::Filler(namespace, name) => self.known_clone(namespace, name).is_some(),
            Expected::Attested(namespace, name, receipt) => {
                let claim = self.cache.claims.get(namespace, name);
                claim.is_none_or(|claim| {
                    claim.annotations().get(RECEIPT_ANNOTATION) == Some(receipt)
                })
            }
        }
    }

    /// The cluster as `clone` meets it now: for who looks once, and may read little but its namespaces.
    ///
    /// # Errors
    /// When a call fails.
    pub(crate) async fn around(
        client: Client,
        instance: String,
        clone: &VolumeClone,
    ) -> Result<Self> {
        let cluster = Self::new(client, instance);
        let cache = &cluster.cache;
        let all = ListParams::default;
        for here in namespaces(clone) {
            let pods = cluster.namespaced(here);
            read(&cache.pods, pods, all(), cache::known_pod).await?;
            let claims = cluster.namespaced(here);
            read(&cache.claims, claims, all(), cache::known_claim).await?;
            let warnings = (cluster.namespaced(here), all().fields(cache::WARNINGS));
            read(
                &cache.warnings,
                warnings.0,
                warnings.1,
                cache::known_warning,
            )
            .await?;
            let snapshots = cluster.snapshots(here);
            read(&cache.snapshots, snapshots, all(), cache::known_snapshot).await?;
        }
        let classes = Api::all(cluster.client.clone());
        read(
            &cache.storage_classes,
            classes,
            all(),
            cache::known_storage_class,
        )
        .await?;
        let kind = cache::snapshot_class_resource();
        let classes = Api::all_with(cluster.client.clone(), &kind);
        read(
            &cache.snapshot_classes,
            classes,
            all(),
            cache::known_snapshot_class,
        )
        .await?;
        Ok(cluster)
    }

    fn known_clone(&self, namespace: &str, name: &str) -> Option<Arc<VolumeClone>> {
        self.cache
            .clones
            .get(&ObjectRef::new(name).within(namespace))
    }

    /// Whose an object is, if it is known. Secrets are not.
    fn known_metadata(&self, kind: Kind, namespace: &str, name: &str) -> Option<ObjectMeta> {
        let cache = &self.cache;
        match kind {
            Kind::Pod => {
                let pod = cache.pods.get(namespace, name)?;
                pod.agent.as_ref().map(|pod| pod.metadata.clone())
            }
            Kind::Secret => None,
            Kind::NetworkPolicy => cache.policies.get(namespace, name).map(|it| (*it).clone()),
            Kind::ConfigMap => cache.maps.get(namespace, name).map(|it| (*it).clone()),
            Kind::Claim => cache
                .claims
                .get(namespace, name)
                .map(|it| it.metadata.clone()),
            Kind::Snapshot => {
                let snapshot = cache.snapshots.get(namespace, name)?;
                Some(snapshot.metadata.clone())
            }
        }
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

    /// A claim, if it is known.
    pub(crate) fn claim(&self, namespace: &str, name: &str) -> Option<PersistentVolumeClaim> {
        let claim = self.cache.claims.get(namespace, name);
        claim.map(|claim| (*claim).clone())
    }

    /// A claim as it is now, if it is there.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn claim_now(
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
    pub(crate) fn referring(&self, template: &VolumeClone) -> Vec<PersistentVolumeClaim> {
        let namespace = template.target_namespace();
        let claims = self.cache.claims.in_namespace(namespace).into_iter();
        let referring = claims.filter(|(_, claim)| {
            let filler = filler_name(&claim.uid().unwrap_or_default());
            waits_for_clone(claim) == template.metadata.name.as_deref()
                && self.known_clone(namespace, &filler).is_none()
        });
        referring.map(|(_, claim)| (*claim).clone()).collect()
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

    /// The agents' pods of a clone, in both namespaces, as far as they are known.
    pub(crate) fn agent_pods(&self, clone: &VolumeClone) -> Vec<Pod> {
        let pods = End::ALL.into_iter().filter_map(|end| {
            let pods = &self.cache.pods;
            let pod = pods.get(end.namespace(clone), &name(clone, end))?;
            pod.agent.as_deref().cloned()
        });
        pods.filter(|pod| is_of(&pod.metadata, clone)).collect()
    }

    /// The agents' pods of a clone, in both namespaces, as they are now.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn agent_pods_now(&self, clone: &VolumeClone) -> Result<Vec<Pod>> {
        let mut found = Vec::new();
        for namespace in namespaces(clone) {
            let pods: Api<Pod> = self.namespaced(namespace);
            let params = ListParams::default().labels(&selector(clone));
            let what = || format!("listing the agents' pods in {namespace}");
            let mut listed = call(what, pods.list(&params)).await?.items;
            listed.retain(|pod| {
                let is_at = |end: &End| {
                    end.namespace(clone) == namespace && pod.name_any() == name(clone, *end)
                };
                End::ALL.iter().any(is_at)
            });
            found.extend(listed);
        }
        Ok(found)
    }

    /// What else was made for a clone, as far as it is known; no Secrets.
    pub(crate) fn belongings(&self, clone: &VolumeClone) -> Vec<Belonging> {
        let known = places(clone)
            .into_iter()
            .filter_map(|(kind, namespace, name)| {
                let metadata = self.known_metadata(kind, namespace, &name)?;
                is_of(&metadata, clone).then(|| belonging(kind, namespace, metadata))
            });
        known.collect()
    }

    /// The Secrets of a clone. They are not watched: that would take the right to read them all.
    ///
    /// # Errors
    /// When a call fails.
    pub(crate) async fn secret_belongings(&self, clone: &VolumeClone) -> Result<Vec<Belonging>> {
        let mut found = Vec::new();
        for namespace in namespaces(clone) {
            let secrets = self.secrets(namespace, clone).await?.into_iter();
            found.extend(secrets.map(|secret| belonging(Kind::Secret, namespace, secret)));
        }
        Ok(found)
    }

    /// What else was made for a clone, in both namespaces, as it is now.
    ///
    /// # Errors
    /// When a call fails.
    pub async fn belongings_now(&self, clone: &VolumeClone) -> Result<Vec<Belonging>> {
        let places = places(clone);
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
                // Labels are copied together with what bears them: only names tell what is ours.
                let of_kind = of_kind.into_iter().filter(|metadata| {
                    let is_it = |(of, at, name): &(Kind, &str, String)| {
                        *of == kind && *at == namespace && metadata.name.as_ref() == Some(name)
                    };
                    places.iter().any(is_it)
                });
                found.extend(of_kind.map(|metadata| belonging(kind, namespace, metadata)));
            }
        }
        Ok(found)
    }

    async fn list_metadata<K>(
        &self,
        namespace: &str,
        clone: &VolumeClone,
    ) -> Result<Vec<ObjectMeta>>
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
    async fn secrets(&self, namespace: &str, clone: &VolumeClone) -> Result<Vec<ObjectMeta>> {
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
    ) -> Result<Vec<ObjectMeta>> {
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
    pub(crate) async fn surroundings(
        &self,
        clone: &VolumeClone,
        look: Look,
    ) -> Result<Surroundings> {
        let source_namespace = clone.source_namespace();
        let home = clone.target_namespace();
        let restored = name(clone, End::Source);
        let mut around = Surroundings {
            target_users: self.users(clone, home, clone.target_claim()),
            restored_claim: self.claim(source_namespace, &restored),
            storage_classes: cloned(&self.cache.storage_classes.all()),
            snapshot_classes: cloned(&self.cache.snapshot_classes.all()),
            ..Surroundings::default()
        };
        if let Some(source) = &clone.spec.source.persistent_volume_claim {
            around.source_claim = self.claim(source_namespace, &source.name);
            // Other clones may read it as this one does.
            let mut users = self.users(clone, source_namespace, &source.name);
            users.retain(|user| !user.is_source_agent());
            around.source_users = users;
            around.taken_snapshot = self.snapshot(source_namespace, &restored, look).await?;
        }
        if let Some(source) = &clone.spec.source.volume_snapshot {
            around.source_snapshot = self.snapshot(source_namespace, &source.name, look).await?;
        }
        let prime = clone
            .status
            .as_ref()
            .and_then(|status| status.prime.as_ref());
        around.target_warnings = match prime {
            Some(prime) => self.warnings(&prime.namespace, &prime_name(clone)),
            None => self.warnings(home, clone.target_claim()),
        };
        if look == Look::Glance {
            let grants = self.cache.grants.in_namespace(source_namespace).into_iter();
            around.grants = grants.map(|(_, grant)| (*grant).clone()).collect();
            return Ok(around);
        }
        let spec = around
            .source_claim
            .as_ref()
            .and_then(|claim| claim.spec.as_ref());
        if let Some(volume) = spec.and_then(|spec| spec.volume_name.as_deref()) {
            around.source_volume = self.find_cluster_wide::<PersistentVolume>(volume).await?;
        }
        // Nothing is made on a consent, or with a privilege, that may have been taken back.
        if clone.is_cross_namespace() {
            around.grants = self.grants_now(source_namespace).await?;
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
    fn users(&self, clone: &VolumeClone, namespace: &str, claim: &str) -> Vec<ClaimUser> {
        let pods = self.cache.pods.in_namespace(namespace).into_iter();
        let users = pods.filter_map(|(_, pod)| pod.user.clone());
        users
            .filter(|user| user.claims.iter().any(|used| used == claim))
            .filter(|user| user.clone.as_deref() != Some(clone.uid()))
            .collect()
    }

    /// What went wrong with making a claim's volume, oldest first.
    fn warnings(&self, namespace: &str, claim: &str) -> Vec<String> {
        let known = self.cache.claims.get(namespace, claim);
        let Some(uid) = known.and_then(|claim| claim.metadata.uid.clone()) else {
            return Vec::new();
        };
        // An Event outlives its claim, and another may have the name.
        let mut found = self.cache.warnings.in_namespace(namespace);
        found.retain(|(_, warning)| warning.claim == claim && warning.uid == uid);
        found.sort_by(|(_, a), (_, b)| a.at.cmp(&b.at));
        let messages = found
            .into_iter()
            .map(|(_, warning)| warning.message.clone());
        messages.collect()
    }

    async fn snapshot(&self, namespace: &str, name: &str, look: Look) -> Result<Option<Snapshot>> {
        let Some(known) = self.cache.snapshots.get(namespace, name) else {
            return Ok(None);
        };
        let volume_mode = match &known.content {
            Some(content) if look == Look::Full && known.snapshot.is_ready => {
                self.snapshot_mode(content).await?
            }
            _ => None,
        };
        Ok(Some(Snapshot {
            volume_mode,
            ..known.snapshot.clone()
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

    /// The grants in a namespace, as they are now.
    async fn grants_now(&self, namespace: &str) -> Result<Vec<Grant>> {
        let resource = grant_resource();
        let grants: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, &resource);
        let what = || format!("listing grants in {namespace}");
        let found = known(call(what, grants.list(&ListParams::default())).await)?;
        let found = found.into_iter().flat_map(|list| list.items);
        Ok(found.filter_map(|grant| known_grant(&grant)).collect())
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
            Step::Attest {
                claim,
                uid,
                receipt,
            } => {
                let claims: Api<PersistentVolumeClaim> = self.namespaced(clone.target_namespace());
                let patch = json!({
                    "metadata": {"uid": uid, "annotations": {RECEIPT_ANNOTATION: receipt}},
                });
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

/// Reads the objects of a kind once. Those of a kind that the cluster doesn't know are none.
async fn read<K, T>(
    shelf: &Shelf<T>,
    objects: Api<K>,
    params: ListParams,
    project: fn(K) -> Option<T>,
) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
    T: PartialEq,
{
    let what = || format!("reading {}", objects.resource_url());
    let list = known(call(what, objects.list(&params)).await)?;
    for object in list.into_iter().flat_map(|list| list.items) {
        let metadata = object.meta().clone();
        shelf.put(&metadata, project(object));
    }
    Ok(())
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

/// Where what is made for `clone` can be, Secrets and pods too.
fn places(clone: &VolumeClone) -> Vec<(Kind, &str, String)> {
    let (home, away) = (clone.target_namespace(), clone.source_namespace());
    let (of_source, of_target) = (name(clone, End::Source), name(clone, End::Target));
    let prime = prime_name(clone);
    let mut places = vec![
        (Kind::Snapshot, away, of_source.clone()),
        (Kind::Claim, away, of_source.clone()),
        (Kind::Claim, home, prime.clone()),
        (Kind::Claim, home, clone.target_claim().to_owned()),
        (Kind::Secret, away, of_source.clone()),
        (Kind::Secret, home, of_target.clone()),
        (Kind::NetworkPolicy, away, of_source),
        (Kind::NetworkPolicy, home, of_target.clone()),
        (Kind::ConfigMap, home, of_target),
    ];
    if home != away {
        places.push((Kind::Claim, away, prime));
    }
    places
}

/// Whether an object bears the label of `clone`.
fn is_of(metadata: &ObjectMeta, clone: &VolumeClone) -> bool {
    let labels = metadata.labels.as_ref();
    let label = labels.and_then(|labels| labels.get(CLONE_LABEL));
    label.is_some_and(|uid| uid == clone.uid())
}

fn belonging(kind: Kind, namespace: &str, metadata: ObjectMeta) -> Belonging {
    Belonging {
        kind,
        namespace: namespace.to_owned(),
        name: metadata.name.unwrap_or_default(),
        uid: metadata.uid.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        is_deleting: metadata.deletion_timestamp.is_some(),
    }
}

fn cloned<T: Clone>(shared: &[Arc<T>]) -> Vec<T> {
    shared.iter().map(|it| (**it).clone()).collect()
}

/// The namespaces in which something of a clone may be.
fn namespaces(clone: &VolumeClone) -> impl Iterator<Item = &str> {
    let away = clone.is_cross_namespace().then(|| clone.source_namespace());
    [clone.target_namespace()].into_iter().chain(away)
}
