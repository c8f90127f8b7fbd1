//! What is known of the cluster without asking: kept by watches, as little of each object as is looked at.
//!
//! ```text
//! watch ──► project ──► Shelf: namespace and name ──► what is kept
//!                         └─ what changed ──► the clones that it concerns are looked at
//! ```
//!
//! It may be behind the cluster, never ahead, and goes forward only. So it is good for seeing that
//! nothing has to be done, and for what is looked at again anyway. What a decision must not rest on
//! it for is asked for: see [`cluster`](crate::cluster).
//!
//! Kinds that a cluster may not know (snapshots, grants) count as none of them, until it does.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Debug;
use std::mem;
use std::ops::Bound;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Event as CoreEvent, PersistentVolumeClaim, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::api::{Phase, VolumeClone};
use crate::claims::{self, waits_for_clone};
use crate::names::{CLONE_ANNOTATION, CLONE_LABEL};
use crate::objects::{SNAPSHOT_GROUP, snapshot_resource};
use crate::reason::Reason;
use crate::world::{ClaimUser, Grant, Refusal, Snapshot, SnapshotClass};

/// The events that are kept: what backends say against making a claim's volume.
pub(crate) const WARNINGS: &str =
    "involvedObject.kind=PersistentVolumeClaim,reason=ProvisioningFailed";
/// What `kubectl apply` leaves: the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Where an object is; the namespace of one that has none is empty.
pub(crate) type Place = (String, String);

/// The objects of a kind.
#[derive(Debug)]
pub(crate) struct Shelf<T> {
    objects: RwLock<BTreeMap<Place, Arc<T>>>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            objects: RwLock::default(),
        }
    }
}

impl<T: PartialEq> Shelf<T> {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Place, Arc<T>>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// One object.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        let place = (namespace.to_owned(), name.to_owned());
        self.read().get(&place).cloned()
    }

    /// The names and objects in a namespace, by name.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<(String, Arc<T>)> {
        let first = (namespace.to_owned(), String::new());
        let objects = self.read();
        let from_there = objects.range((Bound::Included(first), Bound::Unbounded));
        from_there
            .take_while(|((at, _), _)| at == namespace)
            .map(|((_, name), object)| (name.clone(), Arc::clone(object)))
            .collect()
    }

    /// All objects.
    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.read().values().cloned().collect()
    }

    /// Puts an object there, or takes it away. What was and what is, if they differ.
    fn set(&self, place: Place, object: Option<T>) -> Option<Change<T>> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let was = objects.get(&place).cloned();
        if was.as_deref() == object.as_ref() {
            return None;
        }
        let is = object.map(Arc::new);
        match &is {
            Some(is) => objects.insert(place.clone(), Arc::clone(is)),
            None => objects.remove(&place),
        };
        Some(Change { place, was, is })
    }

    /// Puts an object there that was read once.
    pub(crate) fn put(&self, metadata: &ObjectMeta, object: Option<T>) {
        let _change = self.set(place(metadata), object);
    }

    /// Takes away what is not in `present`.
    fn retain(&self, present: &BTreeSet<Place>) -> Vec<Change<T>> {
        let gone: Vec<_> = {
            let objects = self.read();
            let gone = objects.keys().filter(|place| !present.contains(*place));
            gone.cloned().collect()
        };
        gone.into_iter()
            .filter_map(|place| self.set(place, None))
            .collect()
    }
}

/// What became of an object.
struct Change<T> {
    place: Place,
    was: Option<Arc<T>>,
    is: Option<Arc<T>>,
}

impl<T> Change<T> {
    /// What it was, and what it is, where it was or is.
    fn sides(&self) -> impl Iterator<Item = &T> {
        [&self.was, &self.is].into_iter().flatten().map(Arc::as_ref)
    }
}

/// What is kept of a pod that mounts claims, or is an agent's.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KnownPod {
    /// All of it, if it is an agent's.
    pub(crate) agent: Option<Box<Pod>>,
    /// What it uses, until it has ended.
    pub(crate) user: Option<ClaimUser>,
}

/// What is kept of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KnownSnapshot {
    /// Whose it is.
    pub(crate) metadata: ObjectMeta,
    /// What it holds. Its mode stands elsewhere.
    pub(crate) snapshot: Snapshot,
    /// Where its mode stands.
    pub(crate) content: Option<String>,
}

/// What a backend said against a claim.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Warning {
    /// The claim's name.
    pub(crate) claim: String,
    /// Its uid.
    pub(crate) uid: String,
    /// What it is.
    pub(crate) refusal: Refusal,
}

/// All that is known.
#[derive(Debug)]
pub(crate) struct Cache {
    /// All clones, without their checkpoints.
    pub(crate) clones: Store<VolumeClone>,
    pub(crate) pods: Shelf<KnownPod>,
    pub(crate) claims: Shelf<PersistentVolumeClaim>,
    /// The policies that were made for clones.
    pub(crate) policies: Shelf<ObjectMeta>,
    /// The checkpoints that were made for clones.
    pub(crate) maps: Shelf<ObjectMeta>,
    pub(crate) warnings: Shelf<Warning>,
    pub(crate) storage_classes: Shelf<StorageClass>,
    pub(crate) snapshots: Shelf<KnownSnapshot>,
    pub(crate) snapshot_classes: Shelf<SnapshotClass>,
    pub(crate) grants: Shelf<Grant>,
    /// The uids of clones that are gone, until somebody takes them.
    gone: Mutex<Vec<String>>,
    /// How many shelves have been filled once.
    filled: watch::Sender<usize>,
}

/// The shelves, and the clones.
const WATCHES: usize = 10;

/// By this a clone is looked at.
pub(crate) type Wake = mpsc::Sender<ObjectRef<VolumeClone>>;

impl Cache {
    /// A cache that knows nothing, and what fills its clones.
    pub(crate) fn new() -> (Self, Writer<VolumeClone>) {
        let (clones, writer) = reflector::store();
        let cache = Self {
            clones,
            pods: Shelf::default(),
            claims: Shelf::default(),
            policies: Shelf::default(),
            maps: Shelf::default(),
            warnings: Shelf::default(),
            storage_classes: Shelf::default(),
            snapshots: Shelf::default(),
            snapshot_classes: Shelf::default(),
            grants: Shelf::default(),
            gone: Mutex::default(),
            filled: watch::channel(0).0,
        };
        (cache, writer)
    }

    /// Waits until all that is watched was seen once.
    pub(crate) async fn until_filled(&self) {
        let mut filled = self.filled.subscribe();
        // The sender is ours.
        let _never = filled.wait_for(|filled| *filled >= WATCHES).await;
    }

    /// Watches, and wakes the clones that are concerned by what changes. With the tasks it ends.
    pub(crate) fn watch(
        self: &Arc<Self>,
        client: &Client,
        clones: Writer<VolumeClone>,
        wake: &Wake,
    ) -> JoinSet<()> {
        let all = watcher::Config::default;
        let ours = || all().labels(CLONE_LABEL);
        let mut tasks = JoinSet::new();
        {
            let (cache, wake) = (Arc::clone(self), wake.clone());
            let events = watcher(Api::all(client.clone()), all());
            tasks.spawn(async move { cache.keep_clones(events, clones, &wake).await });
        }
        self.keep(
            &mut tasks,
            wake,
            Watch {
                events: watcher(Api::<Pod>::all(client.clone()), all()),
                shelf: |cache| &cache.pods,
                project: known_pod,
                concerned: Self::concerned_by_pod,
            },
        );
        self.keep(
            &mut tasks,
            wake,
            Watch {
                events: watcher(Api::all(client.clone()), all()),
                shelf: |cache| &cache.claims,
                project: known_claim,
                concerned: Self::concerned_by_claim,
            },
        );
        self.keep(
            &mut tasks,
            wake,
            Watch {
                events: watcher(
                    Api::<PartialObjectMeta<NetworkPolicy>>::all(client.clone()),
                    ours(),
                ),
                shelf: |cache| &cache.policies,
                project: |policy: PartialObjectMeta<NetworkPolicy>| Some(stripped(policy.metadata)),
                concerned: |_, _, policy| clone_of(policy).into_iter().collect(),
            },
        );
        self.keep(
            &mut tasks,
            wake,
            Watch {
                events: watcher(
                    Api::<PartialObjectMeta<ConfigMap>>::all(client.clone()),
                    ours(),
                ),
                shelf: |cache| &cache.maps,
                project: |map: PartialObjectMeta<ConfigMap>| Some(stripped(map.metadata)),
                concerned: |_, _, map| clone_of(map).into_iter().collect(),
            },
        );
        self.keep(
            &mut tasks,
            wake,
            Watch {
                events: watcher(Api::all(client.clone()), all().fields(WARNINGS)),
                shelf: |cache| &cache.warnings,
                project: known_warning,
                concerned: |cache, (namespace, _), warning| {
                    let claim = cache.claims.get(namespace, &warning.claim);
                    claim.map_or_else(Vec::new, |claim| {
                        cache
                            .concerned_by_claim(&(namespace.clone(), warning.claim.clone()), &claim)
                    })
                },
            },
        );
        // What depends on classes looks at them often enough.
        self.keep(
            &mut tasks,
            wake,
            Watch {
                events: watcher(Api::all(client.clone()), all()),
                shelf: |cache| &cache.storage_classes,
                project: known_storage_class,
                concerned: |_, _, _| Vec::new(),
            },
        );
        self.keep(
            &mut tasks,
            wake,
            Watch {
                events: watch_kind(client, &snapshot_class_resource()),
                shelf: |cache| &cache.snapshot_classes,
                project: known_snapshot_class,
                concerned: |_, _, _| Vec::new(),
            },
        );
        self.keep(
            &mut tasks,
            wake,
            Watch {
                events: watch_kind(client, &snapshot_resource()),
                shelf: |cache| &cache.snapshots,
                project: known_snapshot,
                concerned: Self::concerned_by_snapshot,
            },
        );
        self.keep(
            &mut tasks,
            wake,
            Watch {
                events: watch_kind(client, &grant_resource()),
                shelf: |cache| &cache.grants,
                project: |grant: DynamicObject| known_grant(&grant),
                concerned: |cache, (namespace, _), _| {
                    cache.waiting(|clone| {
                        clone.is_cross_namespace() && clone.source_namespace() == namespace
                    })
                },
            },
        );
        tasks
    }

    /// Keeps the clones themselves.
    async fn keep_clones(
        &self,
        events: impl Stream<Item = watcher::Result<Event<VolumeClone>>> + Send,
        mut writer: Writer<VolumeClone>,
        wake: &Wake,
    ) {
        let events = events.modify(|clone| {
            strip(&mut clone.metadata);
            // It may be large, and whoever needs it reads the object.
            if let Some(status) = &mut clone.status {
                status.checkpoint = None;
            }
        });
        let mut events = pin!(events.default_backoff());
        let mut is_filled = false;
        while let Some(event) = events.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(%error, "VolumeClones can't be watched now");
                    continue;
                }
            };
            let before = match &event {
                Event::InitDone => self.clones.state(),
                _ => Vec::new(),
            };
            writer.apply_watcher_event(&event);
            match &event {
                Event::Apply(clone) => send(wake, ObjectRef::from_obj(clone)).await,
                Event::InitDone => {
                    self.note_filled(&mut is_filled);
                    let clones = self.clones.state();
                    let uids: HashSet<_> = clones.iter().map(|clone| clone.uid()).collect();
                    for clone in before.iter().filter(|clone| !uids.contains(clone.uid())) {
                        self.note_gone(clone);
                    }
                    for clone in &clones {
                        send(wake, ObjectRef::from_obj(&**clone)).await;
                    }
                }
                Event::Delete(clone) => self.note_gone(clone),
                Event::Init | Event::InitApply(_) => {}
            }
        }
    }

    /// Has a task keep a shelf.
    fn keep<K, T, S>(self: &Arc<Self>, tasks: &mut JoinSet<()>, wake: &Wake, watch: Watch<K, T, S>)
    where
        K: Resource + Clone + Send + 'static,
        T: PartialEq + Send + Sync + 'static,
        S: Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
    {
        let (cache, wake) = (Arc::clone(self), wake.clone());
        tasks.spawn(async move {
            let shelf = (watch.shelf)(&cache);
            let mut present = BTreeSet::new();
            let mut is_filled = false;
            let mut events = pin!(watch.events.default_backoff());
            while let Some(event) = events.next().await {
                let changes: Vec<_> = match event {
                    Ok(Event::Apply(object)) => {
                        let place = place(object.meta());
                        shelf
                            .set(place, (watch.project)(object))
                            .into_iter()
                            .collect()
                    }
                    Ok(Event::InitApply(object)) => {
                        let place = place(object.meta());
                        present.insert(place.clone());
                        shelf
                            .set(place, (watch.project)(object))
                            .into_iter()
                            .collect()
                    }
                    Ok(Event::Delete(object)) => {
                        shelf.set(place(object.meta()), None).into_iter().collect()
                    }
                    Ok(Event::Init) => {
                        present.clear();
                        continue;
                    }
                    Ok(Event::InitDone) => {
                        cache.note_filled(&mut is_filled);
                        shelf.retain(&mem::take(&mut present))
                    }
                    Err(error) if is_unknown(&error) => {
                        cache.note_filled(&mut is_filled);
                        shelf.retain(&BTreeSet::new())
                    }
                    Err(error) => {
                        let kind = std::any::type_name::<T>();
                        tracing::warn!(%error, kind, "a watch is broken, and begins anew");
                        continue;
                    }
                };
                for change in changes {
                    let concerned = change
                        .sides()
                        .flat_map(|object| (watch.concerned)(&cache, &change.place, object));
                    for clone in concerned.collect::<HashSet<_>>() {
                        send(&wake, clone).await;
                    }
                }
            }
        });
    }

    /// The uids of the clones that are gone since this was asked last.
    pub(crate) fn take_gone(&self) -> Vec<String> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut *gone)
    }

    fn note_gone(&self, clone: &VolumeClone) {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        gone.push(clone.uid().to_owned());
    }

    fn note_filled(&self, is_filled: &mut bool) {
        if !mem::replace(is_filled, true) {
            self.filled.send_modify(|filled| *filled += 1);
        }
    }

    fn concerned_by_pod(&self, place: &Place, pod: &KnownPod) -> Vec<ObjectRef<VolumeClone>> {
        let agent = pod.agent.as_ref().and_then(|pod| clone_of(&pod.metadata));
        // A source that is read is in nobody's way.
        let users = pod.user.iter().filter(|user| !user.is_source_agent());
        let claims = users.flat_map(|user| &user.claims);
        let waiting = claims.flat_map(|claim| self.waiting_for_claim(&place.0, claim));
        waiting.chain(agent).collect()
    }

    fn concerned_by_claim(
        &self,
        (namespace, name): &Place,
        claim: &PersistentVolumeClaim,
    ) -> Vec<ObjectRef<VolumeClone>> {
        let of = clone_of(&claim.metadata);
        let template = waits_for_clone(claim).map(|name| ObjectRef::new(name).within(namespace));
        let waiting = self.waiting_for_claim(namespace, name).into_iter();
        waiting.chain(of).chain(template).collect()
    }

    fn concerned_by_snapshot(
        &self,
        (namespace, name): &Place,
        snapshot: &KnownSnapshot,
    ) -> Vec<ObjectRef<VolumeClone>> {
        let waiting = self.waiting(|clone| {
            let named = clone.spec.source.volume_snapshot.as_ref();
            clone.source_namespace() == namespace && named.is_some_and(|it| it.name == *name)
        });
        waiting
            .into_iter()
            .chain(clone_of(&snapshot.metadata))
            .collect()
    }

    fn waiting_for_claim(&self, namespace: &str, name: &str) -> Vec<ObjectRef<VolumeClone>> {
        self.waiting(|clone| {
            let is_source = clone.source_claim() == Some(name);
            (is_source && clone.source_namespace() == namespace)
                || (clone.target_claim() == name && clone.target_namespace() == namespace)
        })
    }

    /// The clones that wait for something other than their turn, and for which `concerns` holds.
    fn waiting(&self, concerns: impl Fn(&VolumeClone) -> bool) -> Vec<ObjectRef<VolumeClone>> {
        let waits = |clone: &VolumeClone| {
            let status = clone.status.as_ref();
            status.is_none_or(|status| status.phase == Phase::Pending) && !is_queued(clone)
        };
        let found = self
            .clones
            .state_filter(|clone| waits(clone) && concerns(clone));
        found
            .iter()
            .map(|clone| ObjectRef::from_obj(&**clone))
            .collect()
    }
}

/// What is watched, and how it is kept.
struct Watch<K, T, S> {
    events: S,
    shelf: fn(&Cache) -> &Shelf<T>,
    /// What is kept of an object, if anything.
    project: fn(K) -> Option<T>,
    /// The clones to look at when what is kept has changed.
    concerned: fn(&Cache, &Place, &T) -> Vec<ObjectRef<VolumeClone>>,
}

/// Whether the status says that the clone waits for its turn.
pub(crate) fn is_queued(clone: &VolumeClone) -> bool {
    let conditions = clone.status.iter().flat_map(|status| &status.conditions);
    let mut reasons = conditions.map(|condition| &condition.reason);
    reasons.any(|reason| reason == Reason::Queued.label())
}

async fn send(wake: &Wake, clone: ObjectRef<VolumeClone>) {
    // Nobody listens any more when the controller ends.
    let _ended = wake.send(clone).await;
}

/// Whether the cluster doesn't know the kind.
fn is_unknown(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

fn place(metadata: &ObjectMeta) -> Place {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    (part(&metadata.namespace), part(&metadata.name))
}

/// The clone that an object was made for, wherever it is.
fn clone_of(metadata: &ObjectMeta) -> Option<ObjectRef<VolumeClone>> {
    let shown = metadata.annotations.as_ref()?.get(CLONE_ANNOTATION)?;
    let (namespace, name) = shown.split_once('/')?;
    Some(ObjectRef::new(name).within(namespace))
}

/// Takes away what is large and never looked at.
fn strip(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

fn stripped(mut metadata: ObjectMeta) -> ObjectMeta {
    strip(&mut metadata);
    metadata
}

pub(crate) fn known_claim(mut claim: PersistentVolumeClaim) -> Option<PersistentVolumeClaim> {
    strip(&mut claim.metadata);
    Some(claim)
}

pub(crate) fn known_storage_class(mut class: StorageClass) -> Option<StorageClass> {
    strip(&mut class.metadata);
    Some(class)
}

pub(crate) fn known_pod(mut pod: Pod) -> Option<KnownPod> {
    let user = ClaimUser::of(&pod);
    let is_agent = pod.labels().contains_key(CLONE_LABEL);
    let agent = is_agent.then(|| {
        strip(&mut pod.metadata);
        Box::new(pod)
    });
    (agent.is_some() || user.is_some()).then_some(KnownPod { agent, user })
}

pub(crate) fn known_warning(event: CoreEvent) -> Option<Warning> {
    // Each way of telling Events has times of its own.
    let made_at = event.metadata.creation_timestamp.map(|at| at.0);
    let told_at = event.event_time.map(|at| at.0).or(made_at);
    let repeated_at = event.series.and_then(|series| series.last_observed_time);
    let last_at = repeated_at.map(|at| at.0);
    let counted_at = event.last_timestamp.map(|at| at.0);
    Some(Warning {
        claim: event.involved_object.name?,
        uid: event.involved_object.uid?,
        refusal: Refusal {
            message: event.message?,
            first_at: event.first_timestamp.map(|at| at.0).or(told_at),
            last_at: last_at.or(counted_at).or(told_at),
        },
    })
}

pub(crate) fn known_snapshot(mut found: DynamicObject) -> Option<KnownSnapshot> {
    strip(&mut found.metadata);
    let status = &found.data["status"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let restore = text(&status["restoreSize"]).map(Quantity);
    let snapshot = Snapshot {
        name: found.name_any(),
        uid: found.uid().unwrap_or_default(),
        is_ready: status["readyToUse"] == Value::Bool(true),
        error: text(&status["error"]["message"]),
        // 0 is what drivers say that don't know it.
        restore_bytes: restore
            .as_ref()
            .and_then(claims::bytes)
            .filter(|bytes| *bytes > 0),
        volume_mode: None,
        class: text(&found.data["spec"]["volumeSnapshotClassName"]),
    };
    Some(KnownSnapshot {
        content: text(&status["boundVolumeSnapshotContentName"]),
        metadata: found.metadata,
        snapshot,
    })
}

pub(crate) fn known_snapshot_class(class: DynamicObject) -> Option<SnapshotClass> {
    const DEFAULT: &str = "snapshot.storage.kubernetes.io/is-default-class";
    let annotation = class.annotations().get(DEFAULT);
    Some(SnapshotClass {
        is_default: annotation.is_some_and(|it| it == "true"),
        driver: class.data["driver"].as_str()?.to_owned(),
        name: class.name_any(),
    })
}

/// What a grant consents to. One that can't be read consents to nothing.
pub(crate) fn known_grant(grant: &DynamicObject) -> Option<Grant> {
    Grant::deserialize(&grant.data["spec"]).ok()
}

/// The kind by which a namespace consents.
pub(crate) fn grant_resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1beta1", "ReferenceGrant");
    ApiResource::from_gvk(&kind)
}

/// The kind of snapshot classes.
pub(crate) fn snapshot_class_resource() -> ApiResource {
    let kind = GroupVersionKind::gvk(SNAPSHOT_GROUP, "v1", "VolumeSnapshotClass");
    ApiResource::from_gvk_with_plural(&kind, "volumesnapshotclasses")
}

fn watch_kind(
    client: &Client,
    kind: &ApiResource,
) -> impl Stream<Item = watcher::Result<Event<DynamicObject>>> + Send + use<> {
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), kind);
    watcher(objects, watcher::Config::default())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_has_the_times_that_its_event_has() {
        const MADE: &str = "2026-01-01T00:00:00Z";
        const FIRST: &str = "2026-01-01T00:00:01Z";
        const LAST: &str = "2026-01-01T00:07:00Z";
        let check = |times: Value, first: Option<&str>, last: Option<&str>| {
            let mut event = json!({
                "metadata": {"name": "event"}, "message": "no room", "reason": "ProvisioningFailed",
                "involvedObject": {"name": "to", "uid": "uid-to"},
            });
            for (key, value) in times.as_object().unwrap() {
                event[key] = value.clone();
            }
            let refusal = known_warning(serde_json::from_value(event).unwrap());
            let refusal = refusal.unwrap().refusal;
            let told = [refusal.first_at, refusal.last_at];
            let expected = [first, last].map(|at| at.map(|at| at.parse::<Timestamp>().unwrap()));
            assert_eq!(told, expected, "{times}");
        };
        let counted = json!({"firstTimestamp": FIRST, "lastTimestamp": LAST, "count": 9});
        check(counted, Some(FIRST), Some(LAST));
        let once = json!({"eventTime": "2026-01-01T00:00:01.000000Z"});
        check(once, Some(FIRST), Some(FIRST));
        let series = json!({"eventTime": "2026-01-01T00:00:01.000000Z", "series": {
            "count": 9, "lastObservedTime": "2026-01-01T00:07:00.000000Z"}});
        check(series, Some(FIRST), Some(LAST));
        let made = json!({"metadata": {"name": "event", "creationTimestamp": MADE}});
        check(made, Some(MADE), Some(MADE));
        check(json!({}), None, None);
    }
}
