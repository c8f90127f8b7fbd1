//! Every call to the API server, and nothing else: what is read for a [`World`](crate::world::World),
//! and how each [`Step`](crate::decide::Step) is taken.
//!
//! Each call has a time limit. What was already done, or is gone already, is no error.

mod belongings;
mod expected;
mod steps;

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, Secret,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use volferry_transport::mint::MintError;

pub(crate) use self::expected::Expected;
use crate::api::VolumeClone;
use crate::cache::{self, Cache, KnownPod, Shelf, Wake, grant_resource, known_grant};
use crate::claims::{VolumeMode, waits_for_clone};
use crate::credentials::ObserverCredentials;
use crate::names::{End, MANAGER, PRIVILEGED_ANNOTATION, filler_name, name, prime_name};
use crate::objects::{SNAPSHOT_GROUP, snapshot_resource};
use crate::reason::Reason;
use crate::world::{ClaimUser, Grant, Kind, Refusal, Snapshot, Surroundings, Users};

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

/// Why nobody fills a claim.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stray {
    /// What it refers to is not there.
    #[error(
        "spec.dataSourceRef names VolumeClone {name}, which this namespace doesn't have: make it, with \
         target.referringClaims: true, or delete this claim"
    )]
    Unknown { name: String },
    /// What it refers to clones something else.
    #[error(
        "spec.dataSourceRef names VolumeClone {name}, which fills no claims: only one with \
         target.referringClaims: true does; make such a one, and this claim anew"
    )]
    FillsNone { name: String },
}

impl Stray {
    /// In a word. Each has its own: an Event that differs in its words alone is taken for the one before.
    pub(crate) const fn reason(&self) -> Reason {
        match self {
            Self::Unknown { .. } => Reason::NoSuchClone,
            Self::FillsNone { .. } => Reason::NotFilled,
        }
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
        for here in clone.namespaces() {
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

    /// The claims that wait for a `VolumeClone` which will not fill them.
    pub(crate) fn strays(&self) -> Vec<(Arc<PersistentVolumeClaim>, Stray)> {
        let claims = self.cache.claims.all().into_iter();
        let strays = claims.filter_map(|claim| {
            let namespace = claim.namespace().unwrap_or_default();
            let name = waits_for_clone(&claim)?.to_owned();
            let filler = filler_name(&claim.uid().unwrap_or_default());
            let is_filled = self.known_clone(&namespace, &filler).is_some();
            let stray = match self.known_clone(&namespace, &name) {
                _ if is_filled => return None,
                None => Stray::Unknown { name },
                Some(clone) if clone.spec.target.referring_claims => return None,
                Some(_) => Stray::FillsNone { name },
            };
            Some((claim, stray))
        });
        strays.collect()
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
            restored_claim: self.claim(source_namespace, &restored),
            storage_classes: cloned(&self.cache.storage_classes.all()),
            snapshot_classes: cloned(&self.cache.snapshot_classes.all()),
            ..Surroundings::default()
        };
        if let Some(claim) = clone.source_claim() {
            around.source_claim = self.claim(source_namespace, claim);
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
        for namespace in clone.namespaces() {
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

    /// Pods that mount the claims of a clone, have not ended, and are none of its agents.
    pub(crate) fn users(&self, clone: &VolumeClone) -> Users {
        let of_source = clone.source_claim().map_or_else(Vec::new, |claim| {
            self.users_of(clone, clone.source_namespace(), claim)
        });
        // Other clones may read it as this one does.
        let (source_readers, source) = of_source.into_iter().partition(ClaimUser::is_source_agent);
        Users {
            source,
            source_readers,
            target: self.users_of(clone, clone.target_namespace(), clone.target_claim()),
        }
    }

    fn users_of(&self, clone: &VolumeClone, namespace: &str, claim: &str) -> Vec<ClaimUser> {
        let pods = self.cache.pods.in_namespace(namespace);
        let users = pods.iter().filter_map(|(_, pod)| pod.user.as_ref());
        users
            .filter(|user| user.claims.iter().any(|used| used == claim))
            .filter(|user| user.clone.as_deref() != Some(clone.uid()))
            .cloned()
            .collect()
    }

    /// What went wrong with making a claim's volume, oldest first.
    fn warnings(&self, namespace: &str, claim: &str) -> Vec<Refusal> {
        let known = self.cache.claims.get(namespace, claim);
        let Some(uid) = known.and_then(|claim| claim.metadata.uid.clone()) else {
            return Vec::new();
        };
        // An Event outlives its claim, and another may have the name.
        let mut found = self.cache.warnings.in_namespace(namespace);
        found.retain(|(_, warning)| warning.claim == claim && warning.uid == uid);
        found.sort_by_key(|(_, warning)| warning.refusal.last_at);
        let refusals = found.into_iter();
        refusals
            .map(|(_, warning)| warning.refusal.clone())
            .collect()
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

/// What objects of a kind are, for those who need no more than their names.
fn resource_of(kind: Kind) -> ApiResource {
    match kind {
        Kind::Pod => ApiResource::erase::<Pod>(&()),
        Kind::Secret => ApiResource::erase::<Secret>(&()),
        Kind::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
        Kind::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
        Kind::Claim => ApiResource::erase::<PersistentVolumeClaim>(&()),
        Kind::Snapshot => snapshot_resource(),
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

fn cloned<T: Clone>(shared: &[Arc<T>]) -> Vec<T> {
    shared.iter().map(|it| (**it).clone()).collect()
}
