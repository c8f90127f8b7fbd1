//! What a step leads to, and whether watches have told of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::Cluster;
use crate::api::VolumeClone;
use crate::decide::Step;
use crate::names::RECEIPT_ANNOTATION;
use crate::objects::Object;
use crate::world::Kind;

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
            | Step::Unplace { .. }
            | Step::Expire => None,
        }
    }
}

impl Cluster {
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
}
