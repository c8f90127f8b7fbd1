//! The kinds that users write: `VolumeClone`, and what its status says.
//!
//! Nothing but types: the definition in deploy/crd is generated from them, and `kubectl explain`
//! shows their comments. A field that the agents can't honour yet isn't here.

#![allow(
    unreachable_pub,
    reason = "the macro for rules repeats each type within a block"
)]
#![allow(clippy::duplicated_attributes, reason = "columns of the same type")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, PersistentVolumeClaimSpec, ResourceRequirements, Toleration,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The API group of everything here.
pub const GROUP: &str = "volferry.io";

/// Clones one volume to another, in this namespace, and proves that they are the same.
#[derive(Clone, Debug, PartialEq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "volferry.io",
    version = "v1alpha1",
    kind = "VolumeClone",
    namespaced,
    status = "VolumeCloneStatus",
    derive = "PartialEq",
    shortname = "vclone",
    category = "volferry",
    doc = "Clones one volume to another, in this namespace, and proves that they are the same.",
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Where the clone is"
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress.percent",
        description = "What is durable at the target"
    ),
    printcolumn(
        name = "Rate",
        type_ = "string",
        json_path = ".status.progress.rate",
        description = "Durable bytes a second"
    ),
    printcolumn(
        name = "Strategy",
        type_ = "string",
        json_path = ".status.strategy",
        description = "The way that was chosen"
    ),
    printcolumn(
        name = "Limit",
        type_ = "string",
        json_path = ".status.progress.limit",
        description = "What holds the clone up most"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Target",
        type_ = "string",
        json_path = ".status.targetClaim",
        priority = 1,
        description = "The claim that is written"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Progressing")].message"#,
        priority = 1,
        description = "What it waits for"
    )
)]
#[x_kube(
    validation = Rule::new("self.strategy == oldSelf.strategy").message("the strategy can't be changed"),
    validation = Rule::new("self.verify == oldSelf.verify").message("how the clone is verified can't be changed"),
    validation = Rule::new("self.resume == oldSelf.resume").message("what the clone goes on from can't be changed"),
    validation = Rule::new("self.transport.protocol == oldSelf.transport.protocol").message("the protocol can't be changed; make another VolumeClone"),
    validation = Rule::new("!(has(self.source.persistentVolumeClaim) && has(self.target.persistentVolumeClaim) && !has(self.source.__namespace__) && self.source.persistentVolumeClaim.name == self.target.persistentVolumeClaim.name)").message("a claim can't be cloned to itself; name another target"),
    validation = Rule::new("!(self.strategy == 'CsiClone' && has(self.source.volumeSnapshot))").message("a snapshot is restored, not cloned: choose Auto, Snapshot or HostAssisted"),
)]
pub struct VolumeCloneSpec {
    /// What is cloned. It can't be changed.
    pub source: Source,
    /// What it is cloned to, in this namespace. It can't be changed.
    pub target: Target,
    /// By which way. `Auto` takes the backend's own clone or snapshot where there is one, and the
    /// agents where there isn't; the status says why.
    #[serde(default)]
    pub strategy: StrategyChoice,
    /// How bytes travel between the agents.
    #[serde(default)]
    pub transport: Transport,
    /// How the target's content is verified, where agents clone.
    #[serde(default)]
    pub verify: Verify,
    /// What a target agent goes on from that is started again.
    #[serde(default)]
    pub resume: Resume,
    /// What to do when other pods use the source claim.
    #[serde(default)]
    pub in_use_policy: InUsePolicy,
    /// What of a tree may be lost without failing the clone, for instance `ownership` where the
    /// agents have no privileges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9))]
    pub accept: Vec<FidelityClass>,
    /// The pods of the agents. Where the source is in another namespace, its pod there takes only
    /// `resources`, `nodeSelector`, `tolerations`, `affinity` and `securityContext` from here: the rest
    /// would let a stranger choose what the pod may do, or be taken for, there.
    #[serde(default)]
    pub agents: Agents,
    /// Seconds after which a clone that is not done fails, counted from the moment that it was
    /// accepted; without, it may take as long as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub deadline_seconds: Option<i64>,
    /// Seconds without anything durable after which the agents give up; 0 for never.
    #[serde(default = "stall_timeout_seconds")]
    #[schemars(range(min = 0, max = 604_800))]
    pub stall_timeout_seconds: i64,
    /// How often agents may fail, together, for reasons that another attempt may mend, before the
    /// clone fails.
    #[serde(default = "backoff_limit")]
    #[schemars(range(min = 0, max = 1000))]
    pub backoff_limit: i32,
    /// Ends the agents for as long as it is true. What is durable stays, and the clone goes on from
    /// there.
    #[serde(default)]
    pub suspend: bool,
    /// Seconds after its end at which this object is deleted; without, never. A target claim that is
    /// complete stays; one that was made for a clone that failed goes too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub ttl_seconds_after_finished: Option<i64>,
}

const fn stall_timeout_seconds() -> i64 {
    600
}

const fn backoff_limit() -> i32 {
    6
}

/// What is cloned.
#[derive(Clone, Debug, Default, PartialEq, Eq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self == oldSelf").message("the source can't be changed; make another VolumeClone"),
    validation = Rule::new("has(self.persistentVolumeClaim) != has(self.volumeSnapshot)").message("name a persistentVolumeClaim or a volumeSnapshot, not both"),
)]
pub struct Source {
    /// The namespace of the source; this object's own unless given. In another one a `ReferenceGrant`
    /// has to consent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// A claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<NameOf>,
    /// A snapshot of a volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_snapshot: Option<NameOf>,
}

/// An object of a kind that is known from where this stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct NameOf {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What is written.
#[derive(Clone, Debug, Default, PartialEq, KubeSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.persistentVolumeClaim), has(self.claimTemplate), self.referringClaims].filter(given, given).size() == 1").message("name a persistentVolumeClaim, give a claimTemplate, or let it be referringClaims: one of the three"),
    validation = Rule::new("has(self.persistentVolumeClaim) == has(oldSelf.persistentVolumeClaim) && self.referringClaims == oldSelf.referringClaims").message("the target can't be changed; make another VolumeClone"),
)]
pub struct Target {
    /// A claim that exists. What it holds is overwritten, if it is a block volume or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the target can't be changed; make another VolumeClone"))]
    pub persistent_volume_claim: Option<NameOf>,
    /// A claim to make. It is kept when this object is deleted, unless the clone was not proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the target can't be changed; make another VolumeClone"))]
    pub claim_template: Option<ClaimTemplate>,
    /// Every claim of this namespace whose `spec.dataSourceRef` names this object. Each is filled by
    /// a clone of its own, made after this object, and has no volume until that is proven.
    #[serde(default)]
    pub referring_claims: bool,
    /// Write into the filesystem of a claim that exists though it holds something: what is sent
    /// replaces what is there.
    #[serde(default)]
    pub overwrite: bool,
}

/// A claim to make.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct ClaimTemplate {
    /// Its name, labels and annotations.
    pub metadata: ClaimMetadata,
    /// Its specification. What is left out comes from the source: size, access modes and volume
    /// mode.
    #[serde(default)]
    pub spec: PersistentVolumeClaimSpec,
}

/// Name, labels and annotations of a claim to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ClaimMetadata {
    /// The claim's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Labels for the claim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations for the claim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The way that a clone should take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum StrategyChoice {
    /// The backend's own clone, else its snapshot, else the agents.
    #[default]
    Auto,
    /// The backend's own clone, or none.
    CsiClone,
    /// A snapshot that the backend restores, or none.
    Snapshot,
    /// The agents.
    HostAssisted,
}

/// The way that a clone takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum Strategy {
    /// The backend clones the claim.
    CsiClone,
    /// The backend restores a snapshot.
    Snapshot,
    /// Two agents clone the volume.
    HostAssisted,
}

impl Strategy {
    /// Every way, the cheapest first.
    pub const ALL: [Self; 3] = [Self::CsiClone, Self::Snapshot, Self::HostAssisted];

    /// The word, as in the status.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::CsiClone => "CsiClone",
            Self::Snapshot => "Snapshot",
            Self::HostAssisted => "HostAssisted",
        }
    }
}

/// How bytes travel.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transport {
    /// The protocol; TLS 1.3 over TCP unless given.
    #[serde(default)]
    pub protocol: TransportProtocol,
    /// Data connections, so many and no more; unless given, one for each processor, at most 4, and up to
    /// 16 while the network limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub streams: Option<i32>,
    /// How what travels is compressed: `none`, `lz4`, `zstd`, `zstd:1` to `zstd:9`, or `auto`, which does
    /// so where it makes the clone faster; `none` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(none|lz4|zstd(:[1-9])?|auto)$"))]
    pub compression: Option<String>,
    /// Bytes that the source may send each second, for instance `100Mi`; without, as many as go. It can
    /// be changed while bytes travel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(\.[0-9]+)?([kMGTP]|[KMGTP]i)?$"))]
    pub bandwidth_limit: Option<String>,
}

/// What carries the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum TransportProtocol {
    /// TLS 1.3 over TCP.
    #[default]
    Tcp,
    /// QUIC.
    Quic,
    /// TLS 1.3 over TCP on a short path. On a long one QUIC, unless the kernel's TCP measures the path as
    /// `bbr` does. QUIC also where TCP can't connect.
    Auto,
}

/// How the target's content is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum Verify {
    /// Not at all at the target.
    None,
    /// Each chunk against the source's digest, before it is written.
    #[default]
    Digest,
    /// Also, the whole volume is read back from the storage, and repaired where it is wrong.
    Readback,
}

/// What a target agent goes on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum Resume {
    /// What the journal or the checkpoint says to be durable.
    #[default]
    Journal,
    /// As well whatever the target holds: chunks whose digests agree are not sent.
    Digest,
    /// Nothing.
    None,
}

/// What to do when other pods use the source claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum InUsePolicy {
    /// Wait until they are gone.
    #[default]
    Wait,
    /// Fail.
    Fail,
    /// Clone a snapshot of it, which the backend takes at that moment.
    Snapshot,
    /// Clone it all the same: the copy may mix states unless nothing writes.
    Allow,
}

/// What of a tree can be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FidelityClass {
    /// Owner, group, and the setuid and setgid bits that depend on them.
    Ownership,
    /// Permission bits.
    Modes,
    /// Times of access and modification.
    Times,
    /// Extended attributes, file capabilities among them.
    Xattrs,
    /// POSIX access control lists.
    Acls,
    /// SELinux labels.
    Labels,
    /// Character and block devices.
    Devices,
    /// Files and directories that the source agent may not read.
    Unreadable,
    /// Directories of the source on which another filesystem is mounted.
    Mounts,
}

/// The pods of the agents.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agents {
    /// Requests and limits of each agent's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Nodes and pods that they prefer or shun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Their priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// The service account that they run as; its token is never mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Secrets for the registry of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Labels for the pods; those of volferry itself win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations for the pods; those of volferry itself win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Who the agents run as. Everything else of the restricted Pod Security Standard stays as it is.
    #[serde(default)]
    pub security_context: AgentUser,
}

/// Who the agents run as.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentUser {
    /// The user's number; 65532 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub run_as_user: Option<i64>,
    /// The group's number; 65532 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub run_as_group: Option<i64>,
    /// The group that volumes and credentials belong to; 65532 unless given. A source that is read as files
    /// never gets it: they would all be given to the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub fs_group: Option<i64>,
    /// More groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub supplemental_groups: Vec<i64>,
}

/// How far a clone is, and what it has come to.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeCloneStatus {
    /// Where the clone is, in a word.
    #[serde(default)]
    pub phase: Phase,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`: source and target exist and the source's namespace consents. `Progressing`: what
    /// is going on or waited for. `Ready`: the target is complete and proven.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The way that was chosen. It stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Each way that was looked at, and why it was chosen or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub considered: Vec<Verdict>,
    /// The claim that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_claim: Option<String>,
    /// The uid of the claim that a target agent has begun to fill. What was durable there says nothing of
    /// another claim by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filled_uid: Option<String>,
    /// Another claim that is filled in its place: its volume is handed over when it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prime: Option<PrimeStatus>,
    /// When the clone was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended, well or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    /// How the agents fared.
    #[serde(default)]
    pub attempts: Attempts,
    /// What is durable, as the target agent tells it, for the next target agent. For the
    /// controller's own use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// The proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ReceiptStatus>,
    /// Why the clone failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureStatus>,
}

/// Where a clone is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub enum Phase {
    /// It waits for something; the condition `Progressing` says for what.
    #[default]
    Pending,
    /// Claims, credentials and pods are made.
    Preparing,
    /// Bytes travel, or the backend clones.
    Cloning,
    /// All is there; the target is read back or flushed.
    Verifying,
    /// It was told to stop for now.
    Suspended,
    /// The target is complete.
    Ready,
    /// It won't come to an end by itself.
    Failed,
    /// It is no clone itself: each claim that refers to it gets one after it.
    Template,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Preparing,
        Self::Cloning,
        Self::Verifying,
        Self::Suspended,
        Self::Ready,
        Self::Failed,
        Self::Template,
    ];

    /// Whether the clone has come to its end.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Ready | Self::Failed)
    }

    /// The word, as in the status.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Preparing => "Preparing",
            Self::Cloning => "Cloning",
            Self::Verifying => "Verifying",
            Self::Suspended => "Suspended",
            Self::Ready => "Ready",
            Self::Failed => "Failed",
            Self::Template => "Template",
        }
    }
}

/// What was found of one way.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Verdict {
    /// The way.
    pub strategy: Strategy,
    /// Whether it can be gone.
    pub possible: bool,
    /// Why, in one word.
    pub reason: String,
    /// Why, in words.
    pub message: String,
}

/// A claim that is filled in the place of the target claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrimeStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its volume, once that is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// When its volume was seen to be complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_at: Option<Time>,
}

/// How far a clone is.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgressStatus {
    /// The target agent's stage: `handshake`, `transfer`, `verify` or `done`.
    pub stage: String,
    /// Bytes of the volume; 0 until the ends have met, and of a tree.
    pub logical_bytes: i64,
    /// Bytes that are durable at the target: this is the progress.
    pub durable_bytes: i64,
    /// Names of a tree that were made.
    #[serde(default)]
    pub entries: i64,
    /// The part that is durable, as text.
    pub percent: String,
    /// Durable bytes a second, as text.
    pub rate: String,
    /// Durable bytes a second.
    pub bytes_per_second: i64,
    /// Seconds that are left at this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<i64>,
    /// What holds the clone up most, as the target sees it.
    pub limit: String,
    /// When the target agent said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Time>,
}

/// How the agents fared.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
pub struct Attempts {
    /// The source agent.
    #[serde(default)]
    pub source: AgentAttempts,
    /// The target agent.
    #[serde(default)]
    pub target: AgentAttempts,
}

/// How one agent fared.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentAttempts {
    /// Failures of pods that were replaced.
    #[serde(default)]
    pub failures: i32,
    /// The last pod that was replaced: its failures are counted above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_uid: Option<String>,
    /// When it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_at: Option<Time>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
    /// The node of the present pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// The proof of a clone, in short. The annotation `volferry.io/receipt` of the target claim has all
/// of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptStatus {
    /// The clone's id.
    pub clone_id: String,
    /// The volume's digest, computed at the source and confirmed at the target.
    pub digest: String,
    /// How the target's content was verified: `none`, `digest` or `readback`.
    pub verified: String,
    /// Bytes of the volume.
    pub logical_bytes: i64,
    /// Of these, bytes in blocks that hold data.
    pub data_bytes: i64,
    /// Bytes that travelled.
    pub sent_bytes: i64,
    /// Of these, bytes that travelled more than once.
    pub resent_bytes: i64,
    /// Sessions that it took.
    pub sessions: i64,
    /// The receipt itself, as the target agent wrote it.
    pub json: String,
}

/// Why a clone failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct FailureStatus {
    /// One word, as in the condition.
    pub reason: String,
    /// What failed, why, and what to do.
    pub message: String,
}

impl VolumeClone {
    /// The namespace that this object is in, and with it the target.
    #[must_use]
    pub fn target_namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The namespace of the source.
    #[must_use]
    pub fn source_namespace(&self) -> &str {
        let given = self.spec.source.namespace.as_deref();
        given.unwrap_or_else(|| self.target_namespace())
    }

    /// Whether source and target are in different namespaces.
    #[must_use]
    pub fn is_cross_namespace(&self) -> bool {
        self.source_namespace() != self.target_namespace()
    }

    /// The namespaces in which something of a clone may be: of the target, and of the source where that is
    /// another.
    pub fn namespaces(&self) -> impl Iterator<Item = &str> {
        let away = self.is_cross_namespace().then(|| self.source_namespace());
        [self.target_namespace()].into_iter().chain(away)
    }

    /// The id of the clone across all attempts: this object's own.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The name of the claim that is read, unless the source is a snapshot.
    #[must_use]
    pub fn source_claim(&self) -> Option<&str> {
        let source = self.spec.source.persistent_volume_claim.as_ref();
        source.map(|claim| claim.name.as_str())
    }

    /// The name of the claim that is written.
    #[must_use]
    pub fn target_claim(&self) -> &str {
        let target = &self.spec.target;
        let existing = target.persistent_volume_claim.as_ref();
        let made = target.claim_template.as_ref();
        existing
            .map(|claim| claim.name.as_str())
            .or_else(|| made.map(|template| template.metadata.name.as_str()))
            .unwrap_or_default()
    }
}
