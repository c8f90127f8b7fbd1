//! The claims that are made, and the snapshots.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, TypedLocalObjectReference,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};

use super::SNAPSHOT_GROUP;
use crate::api::VolumeClone;
use crate::claims::{self, VolumeMode};
use crate::names::{
    CLONE_LABEL, END_LABEL, End, SELECTED_NODE_ANNOTATION, metadata, name, prime_name,
};

/// The target claim of a template; absent without one, or where neither it nor the source tells a
/// size. What the template leaves out comes from `source`.
#[must_use]
pub fn target_claim(
    clone: &VolumeClone,
    source: &PersistentVolumeClaim,
) -> Option<PersistentVolumeClaim> {
    let template = clone.spec.target.claim_template.as_ref()?;
    let given = source.spec.clone().unwrap_or_default();
    let mut spec = template.spec.clone();
    // What it is filled from is for the clone to say.
    (spec.data_source, spec.data_source_ref) = (None, None);
    let source_mode = VolumeMode::of(&given);
    spec.volume_mode = spec
        .volume_mode
        .or_else(|| Some(source_mode.label().to_owned()));
    if spec.access_modes.as_ref().is_none_or(Vec::is_empty) {
        spec.access_modes = given.access_modes;
    }
    if claims::requested_bytes(&spec).is_none() {
        let source_bytes = claims::size_bytes(source)?;
        let bytes = match (source_mode, VolumeMode::of(&spec)) {
            (VolumeMode::Block, VolumeMode::Filesystem) => with_overhead(source_bytes),
            _ => source_bytes,
        };
        spec.resources = Some(claims::request(bytes));
    }
    // It belongs to its user, not to the clone: no owner, so that it stays.
    let found_by = metadata(clone, End::Target);
    let mut labels = template.metadata.labels.clone();
    // Only what it is found by: what application it is of, its user knows.
    let found_by_labels = found_by.labels.unwrap_or_default().into_iter();
    labels.extend(found_by_labels.filter(|(key, _)| key == CLONE_LABEL || key == END_LABEL));
    let mut annotations = template.metadata.annotations.clone();
    annotations.extend(found_by.annotations.unwrap_or_default());
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(template.metadata.name.clone()),
            namespace: Some(clone.target_namespace().to_owned()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

/// The claim in `namespace` that is filled in the place of the target claim: as large as that, and of
/// its kind. Of a claim that waits for its first pod, `node` is where that will be.
#[must_use]
pub fn prime_claim(
    clone: &VolumeClone,
    namespace: &str,
    like: &PersistentVolumeClaim,
    node: Option<String>,
) -> PersistentVolumeClaim {
    let end = if namespace == clone.target_namespace() {
        End::Target
    } else {
        End::Source
    };
    let mut metadata = metadata(clone, end);
    metadata.name = Some(prime_name(clone));
    if let Some(node) = node {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(SELECTED_NODE_ANNOTATION.to_owned(), node);
    }
    let like = like.spec.clone().unwrap_or_default();
    PersistentVolumeClaim {
        metadata,
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: like.access_modes,
            resources: like.resources,
            storage_class_name: like.storage_class_name,
            volume_attributes_class_name: like.volume_attributes_class_name,
            volume_mode: like.volume_mode,
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

/// The target claim of a template that takes over the volume of `prime`.
#[must_use]
pub fn claim_of_volume(
    clone: &VolumeClone,
    prime: &PersistentVolumeClaim,
    volume: &str,
) -> Option<PersistentVolumeClaim> {
    let mut claim = target_claim(clone, prime)?;
    let spec = claim.spec.get_or_insert_default();
    // With its name in it nobody makes another volume for the claim.
    spec.volume_name = Some(volume.to_owned());
    let filled = prime.spec.as_ref();
    spec.storage_class_name = filled.and_then(|spec| spec.storage_class_name.clone());
    Some(claim)
}

/// `claim`, filled by the backend from what `reference` names.
#[must_use]
pub fn filled_from(
    mut claim: PersistentVolumeClaim,
    reference: &TypedLocalObjectReference,
) -> PersistentVolumeClaim {
    claim.spec.get_or_insert_default().data_source = Some(reference.clone());
    claim
}

/// A claim of this mode and size and nothing else.
#[must_use]
pub fn claim_of(mode: Option<VolumeMode>, bytes: Option<u64>) -> PersistentVolumeClaim {
    PersistentVolumeClaim {
        spec: Some(PersistentVolumeClaimSpec {
            volume_mode: mode.map(|mode| mode.label().to_owned()),
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: bytes.map(claims::request),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}

/// The claim in the source's namespace to which its snapshot is restored, for the source agent.
#[must_use]
pub fn restored_claim(
    clone: &VolumeClone,
    like: &PersistentVolumeClaim,
    class: &str,
    snapshot: &str,
) -> PersistentVolumeClaim {
    let claim = PersistentVolumeClaim {
        metadata: metadata(clone, End::Source),
        spec: like.spec.clone().map(|spec| PersistentVolumeClaimSpec {
            storage_class_name: Some(class.to_owned()),
            ..spec
        }),
        status: None,
    };
    let reference = TypedLocalObjectReference {
        api_group: Some(SNAPSHOT_GROUP.to_owned()),
        kind: "VolumeSnapshot".to_owned(),
        name: snapshot.to_owned(),
    };
    filled_from(claim, &reference)
}

/// The kind of snapshots, which is no part of Kubernetes' own API.
#[must_use]
pub fn snapshot_resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(
        SNAPSHOT_GROUP,
        "v1",
        "VolumeSnapshot",
    ))
}

/// A snapshot of the source claim, taken for this clone.
#[must_use]
pub fn snapshot(clone: &VolumeClone, claim: &str, class: &str) -> DynamicObject {
    let mut snapshot = DynamicObject::new(&name(clone, End::Source), &snapshot_resource());
    snapshot.metadata = metadata(clone, End::Source);
    snapshot.data = serde_json::json!({
        "spec": {
            "volumeSnapshotClassName": class,
            "source": {"persistentVolumeClaimName": claim},
        },
    });
    snapshot
}

/// Bytes of a filesystem that has room for a file of so many: a sixteenth more, in whole MiB.
const fn with_overhead(bytes: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    bytes
        .saturating_add(bytes / 16)
        .div_ceil(MIB)
        .saturating_mul(MIB)
}
