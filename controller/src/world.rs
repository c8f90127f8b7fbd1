//! What was observed of the cluster, all that a decision may rest on.
//!
//! Plain data without any API behind it: tests make worlds by hand, the reconcile loop reads them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::api::VolumeClone;
use crate::claims::VolumeMode;
use crate::names::{CLONE_LABEL, END_LABEL, End, name};

/// One moment of what concerns one `VolumeClone`.
#[derive(Clone, Debug)]
pub struct World {
    /// The moment.
    pub now: Timestamp,
    /// How the controller was set up.
    pub settings: Settings,
    /// The object itself.
    pub clone: VolumeClone,
    /// The agents' pods of this clone, in both namespaces.
    pub pods: Vec<Pod>,
    /// Everything else that was made for this clone and is still there, in both namespaces.
    pub belongings: Vec<Belonging>,
    /// The claim that is written, if it is there.
    pub target_claim: Option<PersistentVolumeClaim>,
    /// The claim that is filled in its place, if there is one.
    pub prime_claim: Option<PersistentVolumeClaim>,
    /// The volume of the claim that is filled, where that is a prime one or a backend fills it.
    pub filled_volume: Option<PersistentVolume>,
    /// Claims that refer to this object, wait for their volume, and have no clone that fills them.
    pub referring_claims: Vec<PersistentVolumeClaim>,
    /// Who uses the claims. It is known while there are pods, and with the surroundings.
    pub users: Users,
    /// What surrounds the clone. It is only read when something may have to be made.
    pub surroundings: Option<Surroundings>,
    /// What the target agent just said of its progress.
    pub report: Option<TargetReport>,
    /// Since the target agent could not be asked any more: for how long, and why.
    pub silence: Option<Silence>,
    /// What the API refused to make the last time that it was asked for it.
    pub rejections: Vec<Rejection>,
    /// Whether the clone may run beside those that run already, else what it waits for.
    pub admission: Result<(), String>,
}

/// How the controller was set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The agents' image.
    pub image: String,
    /// When a node pulls it: `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// The controller's own namespace: its pods may ask target agents for their progress.
    pub namespace: String,
}

/// Pods that use the claims of a clone and are none of its agents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Those of the source claim.
    pub source: Vec<ClaimUser>,
    /// Agents of other clones that read the source claim: they are in nobody's way, but attach it to their
    /// node.
    pub source_readers: Vec<ClaimUser>,
    /// Those of the target claim.
    pub target: Vec<ClaimUser>,
}

/// What has to be looked at before something is made.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The source claim.
    pub source_claim: Option<PersistentVolumeClaim>,
    /// The volume behind it.
    pub source_volume: Option<PersistentVolume>,
    /// The source's snapshot.
    pub source_snapshot: Option<Snapshot>,
    /// The snapshot that was taken for this clone.
    pub taken_snapshot: Option<Snapshot>,
    /// The claim that the source's snapshot was restored to for the source agent.
    pub restored_claim: Option<PersistentVolumeClaim>,
    /// What the backend said against the claim that is filled, oldest first.
    pub target_warnings: Vec<Refusal>,
    /// All storage classes.
    pub storage_classes: Vec<StorageClass>,
    /// All snapshot classes; none where the cluster doesn't know the kind.
    pub snapshot_classes: Vec<SnapshotClass>,
    /// The grants in the source's namespace; none where the cluster doesn't know the kind.
    pub grants: Vec<Grant>,
    /// Whether an administrator lets agents have privileges for files, by namespace.
    pub privileged: BTreeMap<String, bool>,
}

/// What a backend said against making a claim's volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// In its words.
    pub message: String,
    /// When it said so first, if that is known.
    pub first_at: Option<Timestamp>,
    /// When it said so last, if that is known.
    pub last_at: Option<Timestamp>,
}

/// A pod that uses claims, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimUser {
    /// The pod's name.
    pub pod: String,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// The claims that it mounts.
    pub claims: Vec<String>,
    /// The clone whose agent it is, by uid.
    pub clone: Option<String>,
    /// Which end of that.
    pub end: Option<String>,
}

impl ClaimUser {
    /// What `pod` uses, if it mounts any claim and has not ended.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        let volumes = pod.spec.iter().flat_map(|spec| &spec.volumes).flatten();
        let claims = volumes.filter_map(|volume| {
            let claim = volume.persistent_volume_claim.as_ref();
            // Kubernetes names the claim of an ephemeral volume so.
            let ephemeral = volume.ephemeral.as_ref();
            let ephemeral = ephemeral.map(|_| format!("{}-{}", pod.name_any(), volume.name));
            claim.map(|claim| claim.claim_name.clone()).or(ephemeral)
        });
        let claims: Vec<_> = claims.collect();
        if claims.is_empty() || matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        Some(Self {
            pod: pod.name_any(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            claims,
            clone: pod.labels().get(CLONE_LABEL).cloned(),
            end: pod.labels().get(END_LABEL).cloned(),
        })
    }

    /// Whether it is a clone's agent that reads.
    #[must_use]
    pub fn is_source_agent(&self) -> bool {
        self.clone.is_some() && self.end.as_deref() == Some(End::Source.label())
    }
}

/// A snapshot of a volume, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// Its uid: the state that it holds never changes.
    pub uid: String,
    /// Whether something can be restored from it.
    pub is_ready: bool,
    /// What its driver said went wrong.
    pub error: Option<String>,
    /// Bytes that a volume needs to hold it.
    pub restore_bytes: Option<u64>,
    /// The mode of the volume that it was taken of, where that is known.
    pub volume_mode: Option<VolumeMode>,
    /// Its snapshot class.
    pub class: Option<String>,
}

/// A class of snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotClass {
    /// Its name.
    pub name: String,
    /// The driver that it is for.
    pub driver: String,
    /// Whether it is the one for claims that name none.
    pub is_default: bool,
}

/// The consent of a namespace (`ReferenceGrant` of the Gateway API).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Who may refer.
    #[serde(default)]
    pub from: Vec<GrantFrom>,
    /// To what.
    #[serde(default)]
    pub to: Vec<GrantTo>,
}

/// Who may refer to objects of the namespace that holds the grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantFrom {
    /// API group of the object that refers.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
}

/// What may be referred to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantTo {
    /// API group; empty for the core group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name; any unless given.
    #[serde(default)]
    pub name: Option<String>,
}

/// What kinds of objects are made for a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An agent.
    Pod,
    /// Credentials.
    Secret,
    /// Which way bytes may go.
    NetworkPolicy,
    /// What is durable, for the next target agent.
    ConfigMap,
    /// A volume.
    Claim,
    /// A snapshot of the source.
    Snapshot,
}

impl Kind {
    /// As Kubernetes names it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::Secret => "Secret",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ConfigMap => "ConfigMap",
            Self::Claim => "PersistentVolumeClaim",
            Self::Snapshot => "VolumeSnapshot",
        }
    }

    /// Every kind. What is made later comes later.
    pub const ALL: [Self; 6] = [
        Self::Snapshot,
        Self::Claim,
        Self::Secret,
        Self::NetworkPolicy,
        Self::ConfigMap,
        Self::Pod,
    ];
}

/// An object that was made for a clone, other than a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Belonging {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, so that no other object by the same name is deleted.
    pub uid: String,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Whether it is about to go.
    pub is_deleting: bool,
}

/// A target agent that can't be asked for its progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// For how long.
    pub lasts: Duration,
    /// What failed first, in words. What fails later may differ each time.
    pub why: String,
}

/// What the API refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What should have been made.
    pub what: String,
    /// The API's own words.
    pub message: String,
}

/// What a target agent says at `/progress`, as far as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct TargetReport {
    /// `handshake`, `transfer`, `verify` or `done`.
    pub stage: String,
    /// Bytes of the volume; 0 until the ends have met.
    pub logical_bytes: u64,
    /// Bytes that are durable.
    pub durable_bytes: u64,
    /// Names of a tree that were made.
    #[serde(default)]
    pub entries: u64,
    /// Durable bytes a second.
    pub bytes_per_second: f64,
    /// Seconds that are left.
    #[serde(default)]
    pub eta_seconds: Option<f64>,
    /// What holds the clone up most.
    pub limit: String,
    /// The bandwidth limit that it was asked to have its source keep, in bytes a second, 0 for none.
    #[serde(default)]
    pub asked_bandwidth_limit: Option<u64>,
    /// What is durable, for another target agent.
    #[serde(default)]
    pub checkpoint: Option<serde_json::Value>,
}

impl World {
    /// The pod of the agent at `end`: one by its name, where it should be. Whoever may make pods in
    /// the source's namespace can label them, but not be taken for the target.
    #[must_use]
    pub fn pod(&self, end: End) -> Option<&Pod> {
        let expected = name(&self.clone, end);
        let namespace = end.namespace(&self.clone);
        let is_it = |pod: &&Pod| {
            pod.metadata.name.as_deref() == Some(&*expected)
                && pod.metadata.namespace.as_deref() == Some(namespace)
        };
        self.pods.iter().find(is_it)
    }

    /// What of `kind` belongs to the clone.
    pub fn belongings_of(&self, kind: Kind) -> impl Iterator<Item = &Belonging> {
        self.belongings
            .iter()
            .filter(move |belonging| belonging.kind == kind)
    }

    /// Whether an object of `kind` by this name is there, and not about to go.
    #[must_use]
    pub fn has(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.belongings_of(kind).any(|belonging| {
            belonging.namespace == namespace && belonging.name == name && !belonging.is_deleting
        })
    }
}
