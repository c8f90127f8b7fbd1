//! Names, labels and annotations of what is made for a clone: by these it is found again, in any
//! namespace.
//!
//! Names follow from the object's uid alone. So making something twice makes it once, and a
//! controller that starts anew knows what its predecessor has made.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;

use crate::api::VolumeClone;

/// Whose clone something belongs to, by uid.
pub const CLONE_LABEL: &str = "volferry.io/clone-uid";
/// Which end of the clone.
pub const END_LABEL: &str = "volferry.io/end";
/// Whose clone something belongs to, for people.
pub const CLONE_ANNOTATION: &str = "volferry.io/clone";
/// On a clone that fills a claim: the uid of the one that it was made after.
pub const TEMPLATE_LABEL: &str = "volferry.io/template-uid";
/// On a claim: the receipt of the clone that it holds.
pub const RECEIPT_ANNOTATION: &str = "volferry.io/receipt";
/// On a Secret: when its credentials end, in seconds since 1970.
pub const EXPIRY_ANNOTATION: &str = "volferry.io/expires-unix-seconds";
/// On a Secret: which credentials were made together, of one authority.
pub const MINTING_ANNOTATION: &str = "volferry.io/minting";
/// On a source pod: the target that it dials.
pub const TARGET_ANNOTATION: &str = "volferry.io/target";
/// On a namespace, by its administrator: agents may have the privileges that keep all of a tree.
pub const PRIVILEGED_ANNOTATION: &str = "volferry.io/privileged-files";
/// Keeps a `VolumeClone` until all that was made for it is gone.
pub const FINALIZER: &str = "volferry.io/cleanup";
/// Who applies fields.
pub const MANAGER: &str = "volferry-controller";
/// The annotation by which the scheduler says where a claim will be needed.
pub const SELECTED_NODE_ANNOTATION: &str = "volume.kubernetes.io/selected-node";
/// On a volume, by who made it for a claim: the provisioner that its storage class names.
pub const PROVISIONED_BY_ANNOTATION: &str = "pv.kubernetes.io/provisioned-by";

/// An end of a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Reads.
    Source,
    /// Writes.
    Target,
}

impl End {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Source, Self::Target];

    /// In a word, as in labels and names.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }

    /// The namespace of this end.
    #[must_use]
    pub fn namespace(self, clone: &VolumeClone) -> &str {
        match self {
            Self::Source => clone.source_namespace(),
            Self::Target => clone.target_namespace(),
        }
    }
}

/// The name of what is made for `end`: its pod, Secret, policy, and what else there is one of.
#[must_use]
pub fn name(clone: &VolumeClone, end: End) -> String {
    format!("volferry-{}-{}", clone.uid(), end.label())
}

/// The name of the claim that is filled in the place of the target claim.
#[must_use]
pub fn prime_name(clone: &VolumeClone) -> String {
    format!("volferry-{}-prime", clone.uid())
}

/// The name of the clone that fills the claim with this uid.
#[must_use]
pub fn filler_name(claim_uid: &str) -> String {
    format!("volferry-{claim_uid}")
}

/// What finds all that was made for `clone`.
#[must_use]
pub fn selector(clone: &VolumeClone) -> String {
    format!("{CLONE_LABEL}={}", clone.uid())
}

/// Metadata of an object of `clone` at `end`, by which it is found again. What is in the clone's own
/// namespace also belongs to it, so that Kubernetes removes it even without a controller.
#[must_use]
pub fn metadata(clone: &VolumeClone, end: End) -> ObjectMeta {
    let namespace = end.namespace(clone);
    let labels = [
        ("app.kubernetes.io/name", "volferry"),
        ("app.kubernetes.io/component", end.label()),
        ("app.kubernetes.io/managed-by", MANAGER),
        (END_LABEL, end.label()),
        (CLONE_LABEL, clone.uid()),
    ];
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let shown = format!(
        "{}/{}",
        clone.target_namespace(),
        clone.metadata.name.as_deref().unwrap_or_default()
    );
    let is_at_home = namespace == clone.target_namespace();
    ObjectMeta {
        name: Some(name(clone, end)),
        namespace: Some(namespace.to_owned()),
        labels: Some(labels.into_iter().map(owned).collect()),
        annotations: Some([(CLONE_ANNOTATION.to_owned(), shown)].into()),
        owner_references: is_at_home
            .then(|| owner(clone))
            .flatten()
            .map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// The reference by which Kubernetes removes what belongs to a clone that is gone.
fn owner(clone: &VolumeClone) -> Option<OwnerReference> {
    clone.controller_owner_ref(&()).map(|owner| OwnerReference {
        // Not to hold up a deletion in the foreground: the finalizer already does.
        block_owner_deletion: Some(false),
        ..owner
    })
}
