//! The claim that is filled: the target claim itself, or a prime one whose volume is handed over.
//!
//! A claim that refers to a `VolumeClone` must have no volume until that is complete, and a backend
//! clones within a namespace only. So another claim is filled, at home or beside the source, and then
//! its volume is bound to the target claim:
//!
//! ```text
//! prime claim ──► filled ──► its volume in the status ──► target claim made, where it is a template's
//!                            ──► the volume's claimRef names the target claim ──► Kubernetes binds it
//! ```
//!
//! The volume changes hands by one write, and keeps its reclaim policy: before, it goes with the prime
//! claim; after, with the target claim. The prime claim is lost then, and goes when the clone has ended.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;

use super::agents::{hold_soon, selected_node};
use super::choose::{binds_with_first_pod, storage_class};
use super::{Doomed, Going, LOOK_SOON, Planner, Rebinding, Step, Stop};
use crate::api::{Phase, PrimeStatus, Strategy};
use crate::claims;
use crate::names::prime_name;
use crate::objects::{self, Object};
use crate::reason::Reason;
use crate::world::Kind;

impl Planner<'_> {
    /// Whether another claim has to be filled in the place of the target claim, and where.
    pub(super) fn prime(&self, strategy: Strategy) -> Option<PrimeStatus> {
        let clone = &self.world.clone;
        let target = self.world.target_claim.as_ref();
        let waits = target.is_some_and(|claim| claims::waits_for_clone(claim).is_some());
        let is_beside_source = strategy != Strategy::HostAssisted && clone.is_cross_namespace();
        let namespace = if is_beside_source {
            clone.source_namespace()
        } else {
            clone.target_namespace()
        };
        (waits || is_beside_source).then(|| PrimeStatus {
            namespace: namespace.to_owned(),
            volume: None,
        })
    }

    /// The target claim, if it is there; that of a template must be ours.
    pub(super) fn present_target(&self) -> Result<Option<&PersistentVolumeClaim>, Stop> {
        let clone = &self.world.clone;
        let is_template = clone.spec.target.claim_template.is_some();
        let shown = format!("{}/{}", clone.target_namespace(), clone.target_claim());
        let Some(claim) = &self.world.target_claim else {
            return if is_template {
                Ok(None)
            } else {
                let message = format!("there is no claim {shown}");
                Err(Stop::hold(Reason::TargetNotFound, message))
            };
        };
        if is_template && !self.is_ours(claim) {
            let message = format!(
                "claim {shown} exists and was not made for this clone; choose another name, or \
                 name it as target.persistentVolumeClaim to have it overwritten"
            );
            return Err(Stop::fail(Reason::TargetExists, message));
        }
        check_presence(claim)?;
        Ok(Some(claim))
    }

    /// The claim that is filled, if it is there.
    pub(super) fn claim_to_fill(&mut self) -> Result<Option<PersistentVolumeClaim>, Stop> {
        let target = self.present_target()?.cloned();
        let claim = match &self.status.prime {
            None => target,
            Some(_) => self.world.prime_claim.clone(),
        };
        let Some(claim) = claim else {
            return Ok(None);
        };
        if self.status.prime.is_some() && !self.is_ours(&claim) {
            let message = format!(
                "claim {} exists and was not made for this clone; delete it and make another \
                 VolumeClone",
                shown(&claim)
            );
            return Err(Stop::fail(Reason::TargetExists, message));
        }
        check_presence(&claim)?;
        let filled_from = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.data_source.as_ref());
        let filled_from = filled_from.map(|reference| reference.kind.as_str());
        let expected = match self.status.strategy {
            Some(Strategy::CsiClone) => Some("PersistentVolumeClaim"),
            Some(Strategy::Snapshot) => Some("VolumeSnapshot"),
            _ => None,
        };
        if self.is_ours(&claim) && !claims::is_bound(&claim) && filled_from != expected {
            self.delete_claim(&claim);
            let message = format!(
                "claim {} was made for another way, and is made anew",
                shown(&claim)
            );
            return Err(hold_soon(Reason::TargetNotFound, &message));
        }
        Ok(Some(claim))
    }

    /// A driver that has no room on the node that was chosen takes the choice off the claim that it was asked
    /// for. Here that is the prime one, and the scheduler looks at the target claim: it goes there too, and
    /// what was made for that node goes with it.
    pub(super) fn check_place(&mut self) -> Result<(), Stop> {
        let world = self.world;
        let (Some(_), Some(prime), Some(target)) =
            (&self.status.prime, &world.prime_claim, &world.target_claim)
        else {
            return Ok(());
        };
        let is_placed = claims::is_bound(prime)
            || selected_node(prime).is_some()
            || selected_node(target).is_none();
        if is_placed || !self.is_ours(prime) {
            return Ok(());
        }
        self.delete_pods();
        self.steps.push(Step::Unplace {
            claim: target.name_any(),
            uid: target.uid().unwrap_or_default(),
        });
        self.delete_claim(prime);
        let message = format!(
            "no volume could be made on the node that was chosen for claim {}; the scheduler chooses again",
            target.name_any()
        );
        Err(hold_soon(Reason::WaitsForConsumer, &message))
    }

    pub(super) fn delete_claim(&mut self, claim: &PersistentVolumeClaim) {
        self.steps.push(Step::Delete(Doomed {
            kind: Kind::Claim,
            namespace: claim.namespace().unwrap_or_default(),
            name: claim.name_any(),
            uid: claim.uid().unwrap_or_default(),
        }));
    }

    fn is_ours(&self, claim: &PersistentVolumeClaim) -> bool {
        let namespace = claim.namespace().unwrap_or_default();
        self.world.has(Kind::Claim, &namespace, &claim.name_any())
    }

    /// The claim to fill, as it is to be made.
    pub(super) fn new_claim(
        &self,
        source: &PersistentVolumeClaim,
    ) -> Result<PersistentVolumeClaim, Stop> {
        let clone = &self.world.clone;
        let like = match &self.world.target_claim {
            Some(claim) => claim.clone(),
            None => objects::target_claim(clone, source).ok_or_else(|| {
                let message = "neither the source nor the template tells a size";
                Stop::fail(Reason::TargetTooSmall, message)
            })?,
        };
        let Some(prime) = &self.status.prime else {
            return Ok(like);
        };
        let class = like
            .spec
            .as_ref()
            .and_then(|spec| spec.storage_class_name.as_deref());
        let class = storage_class(self.around()?, class);
        let node = selected_node(&like);
        if class.is_some_and(binds_with_first_pod) && node.is_none() {
            let message = format!(
                "claim {} gets its volume with its first pod: start one that mounts it",
                clone.target_claim()
            );
            return Err(Stop::hold(Reason::WaitsForConsumer, message));
        }
        Ok(objects::prime_claim(clone, &prime.namespace, &like, node))
    }

    /// The claim is filled. Where it is a prime one, its volume is handed over to the target claim.
    pub(super) fn hand_over(&mut self, reason: Reason) -> Result<Going, Stop> {
        let world = self.world;
        let clone = &world.clone;
        let Some(prime) = &mut self.status.prime else {
            return Ok(self.done(reason));
        };
        let name = prime_name(clone);
        let of_claim = |claim: &PersistentVolumeClaim| claim.spec.as_ref()?.volume_name.clone();
        // Noted before anything else happens: once it is handed over the prime claim may go.
        if prime.volume.is_none() {
            let found = world.prime_claim.as_ref().and_then(of_claim);
            prime.volume = Some(found.ok_or_else(|| lost(&format!("claim {name}")))?);
        }
        let volume_name = prime.volume.clone().unwrap_or_default();
        let namespace = prime.namespace.clone();
        let target = self.present_target()?;
        if let Some(target) = target.filter(|target| claims::is_bound(target)) {
            if of_claim(target).as_ref() == Some(&volume_name) {
                return Ok(self.done(reason));
            }
            let message = format!(
                "claim {} is bound to another volume than the one that was filled for it",
                shown(target)
            );
            return Err(Stop::fail(Reason::TargetLost, message));
        }
        if namespace != clone.target_namespace() {
            self.check_consent(self.around()?)?;
        }
        let Some(volume) = &world.filled_volume else {
            return Err(lost(&format!("volume {volume_name}")));
        };
        let step = match target {
            None => {
                let prime = world.prime_claim.as_ref();
                let prime = prime.ok_or_else(|| lost(&format!("claim {name}")))?;
                let made = objects::claim_of_volume(clone, prime, &volume_name);
                let made = made.ok_or_else(|| lost(&format!("claim {name}")))?;
                Some(Step::Apply(Object::Claim(Box::new(made))))
            }
            Some(target) if is_for(volume, target) => None,
            // Somebody else's is nothing to give away, nor what its driver may be deleting.
            Some(_) if !is_held(volume, &namespace, &name) => {
                return Err(lost(&format!("volume {volume_name} of claim {name}")));
            }
            Some(target) => Some(Step::Rebind(Rebinding {
                volume: volume_name.clone(),
                version: volume.resource_version().unwrap_or_default(),
                namespace: clone.target_namespace().to_owned(),
                claim: target.name_any(),
                uid: target.uid().unwrap_or_default(),
            })),
        };
        // What follows a step that was taken can be seen at once; what Kubernetes does can not.
        let again = if step.is_some() {
            Duration::from_millis(500)
        } else {
            LOOK_SOON
        };
        self.steps.extend(step);
        Ok(Going {
            phase: Phase::Verifying,
            reason: Reason::HandingOver,
            message: format!(
                "volume {volume_name} is complete, and is bound to claim {}",
                clone.target_claim()
            ),
            again,
        })
    }

    fn done(&self, reason: Reason) -> Going {
        let message = match &self.status.receipt {
            Some(receipt) => format!(
                "{} bytes are durable and proven, digest {}",
                receipt.logical_bytes, receipt.digest
            ),
            None => {
                "the backend made the target from the source; no digest was computed".to_owned()
            }
        };
        Going {
            phase: Phase::Ready,
            reason,
            message,
            again: Duration::ZERO,
        }
    }
}

/// Whether the claim can be used: it is not about to go and has not lost its volume.
fn check_presence(claim: &PersistentVolumeClaim) -> Result<(), Stop> {
    if claim.metadata.deletion_timestamp.is_some() {
        let message = format!("claim {} is about to be deleted", shown(claim));
        return Err(Stop::hold(Reason::TargetNotFound, message));
    }
    if claims::phase(claim) == "Lost" {
        let message = format!("claim {} has lost its volume", shown(claim));
        return Err(Stop::fail(Reason::TargetLost, message));
    }
    Ok(())
}

/// Whether the volume was given to this claim.
pub(super) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let owner = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref());
    owner.is_some_and(|owner| owner.uid.is_some() && owner.uid == claim.metadata.uid)
}

/// Whether the volume is that of the claim by this name, and the claim is still there: a volume whose claim
/// went is `Released`, and with the reclaim policy `Delete` it is deleted before its object is.
fn is_held(volume: &PersistentVolume, namespace: &str, name: &str) -> bool {
    let status = volume.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    let owner = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref());
    let is_its = owner.is_some_and(|owner| {
        owner.namespace.as_deref() == Some(namespace) && owner.name.as_deref() == Some(name)
    });
    is_its && phase == Some("Bound")
}

pub(super) fn lost(what: &str) -> Stop {
    let message = format!("{what}, which was filled for the target claim, is gone");
    Stop::fail(Reason::TargetLost, message)
}

pub(super) fn shown(claim: &PersistentVolumeClaim) -> String {
    format!(
        "{}/{}",
        claim.namespace().unwrap_or_default(),
        claim.name_any()
    )
}
