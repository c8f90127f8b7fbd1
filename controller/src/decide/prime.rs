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
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt;

use super::agents::{hold_soon, selected_node};
use super::choose::{binds_with_first_pod, storage_class};
use super::{Doomed, Going, LOOK_SOON, Planner, Rebinding, Step, Stop};
use crate::api::{Phase, PrimeStatus, Strategy, VolumeCloneStatus};
use crate::claims;
use crate::names::{End, prime_name};
use crate::objects::{self, Object};
use crate::reason::Reason;
use crate::world::Kind;

/// How long Kubernetes may take to bind a volume that was handed over before that is told.
const HAND_OVER_MAX: SignedDuration = SignedDuration::from_secs(60);

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
            ..PrimeStatus::default()
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
    pub(super) fn claim_to_fill(&self) -> Result<Option<PersistentVolumeClaim>, Stop> {
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
        Ok(Some(claim))
    }

    /// The way that is gone. A claim that was made for another goes, unless it has its volume by now: a backend
    /// that is given up may be about to make it. From then on a pod may write what it holds, so nobody fills
    /// it again, and that other way is the clone's.
    pub(super) fn way(&mut self) -> Result<Strategy, Stop> {
        let world = self.world;
        let taken = self.status.strategy.unwrap_or(Strategy::HostAssisted);
        let claim = match &self.status.prime {
            None => &world.target_claim,
            Some(_) => &world.prime_claim,
        };
        let ours = claim.as_ref().filter(|claim| self.is_ours(claim));
        let Some((claim, made_for)) = ours.map(|claim| (claim, made_for(claim))) else {
            return Ok(taken);
        };
        // What agents have begun to fill is theirs. Of which claim that is an older controller noted nothing but what
        // its agents said.
        let is_begun = match &self.status.filled_uid {
            Some(filled) => Some(filled) == claim.uid().as_ref(),
            None => self.status.progress.is_some() || self.status.checkpoint.is_some(),
        } || world.pod(End::Target).is_some();
        if made_for == taken || is_begun {
            return Ok(taken);
        }
        if claims::is_bound(claim) {
            self.take_back(made_for, claim);
            return Ok(made_for);
        }
        self.delete_claim(claim);
        let message = format!(
            "claim {} was made for another way, and is made anew",
            shown(claim)
        );
        Err(hold_soon(Reason::TargetNotFound, &message))
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

    /// Deletes a claim that nobody fills, unless it has changed since it was seen: it may be bound by now, and used.
    pub(super) fn delete_claim(&mut self, claim: &PersistentVolumeClaim) {
        self.steps.push(Step::Delete(Doomed {
            kind: Kind::Claim,
            namespace: claim.namespace().unwrap_or_default(),
            name: claim.name_any(),
            uid: claim.uid().unwrap_or_default(),
            version: claim.resource_version(),
        }));
    }

    pub(super) fn is_ours(&self, claim: &PersistentVolumeClaim) -> bool {
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
        self.check_consumer(&like)?;
        let node = selected_node(&like);
        Ok(objects::prime_claim(clone, &prime.namespace, &like, node))
    }

    /// Whether the target claim, which is like `claim`, waits for its first pod. That is nothing wrong, but
    /// up to its user.
    pub(super) fn check_consumer(&self, claim: &PersistentVolumeClaim) -> Result<(), Stop> {
        let spec = claim.spec.as_ref();
        let class = spec.and_then(|spec| spec.storage_class_name.as_deref());
        let class = storage_class(self.around()?, class);
        if !class.is_some_and(binds_with_first_pod) || selected_node(claim).is_some() {
            return Ok(());
        }
        let message = format!(
            "claim {} gets its volume with its first pod: start one that mounts it",
            self.world.clone.target_claim()
        );
        Err(Stop::hold(Reason::WaitsForConsumer, message))
    }

    /// The claim is filled. Where it is a prime one, its volume is handed over to the target claim.
    pub(super) fn hand_over(&mut self, reason: Reason) -> Result<Going, Stop> {
        let world = self.world;
        let clone = &world.clone;
        let Some(prime) = &mut self.status.prime else {
            let is_there = match &world.target_claim {
                Some(target) => is_filled(target, &self.status),
                // While bytes travel it is not looked at: the agent's pod keeps it.
                None => world.pod(End::Target).is_some(),
            };
            if is_there {
                return Ok(self.done(reason));
            }
            let message = format!(
                "claim {}/{} was filled and is gone; one that has its name now holds no clone: make another \
                 VolumeClone",
                clone.target_namespace(),
                clone.target_claim()
            );
            return Err(Stop::fail(Reason::TargetLost, message));
        };
        let name = prime_name(clone);
        let of_claim = |claim: &PersistentVolumeClaim| claim.spec.as_ref()?.volume_name.clone();
        // Noted before anything else happens: once it is handed over the prime claim may go.
        if prime.volume.is_none() {
            let found = world.prime_claim.as_ref().and_then(of_claim);
            prime.volume = Some(found.ok_or_else(|| lost(&format!("claim {name}")))?);
        }
        let complete_at = prime.complete_at.get_or_insert(Time(world.now)).0;
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
        let misfit = target.and_then(|target| claims::misfit(volume, target));
        if let (Some(misfit), Some(target)) = (misfit, target) {
            let message = format!(
                "volume {volume_name} is complete, and Kubernetes does not bind it to claim {}: {misfit}; \
                 make another claim and VolumeClone",
                shown(target)
            );
            return Err(hold_soon(Reason::NotBound, &message));
        }
        let mut is_given = false;
        let step = match target {
            None => {
                let prime = world.prime_claim.as_ref();
                let prime = prime.ok_or_else(|| lost(&format!("claim {name}")))?;
                let made = objects::claim_of_volume(clone, prime, &volume_name);
                let made = made.ok_or_else(|| lost(&format!("claim {name}")))?;
                Some(Step::Apply(Object::Claim(Box::new(made))))
            }
            Some(target) if is_for(volume, target) => {
                is_given = true;
                None
            }
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
        let mut message = format!(
            "volume {volume_name} is complete, and is bound to claim {}",
            clone.target_claim()
        );
        if is_given && self.goes_on_for(complete_at) >= HAND_OVER_MAX {
            let hint = may_say_why(clone.target_namespace(), clone.target_claim());
            message += &format!("; Kubernetes has not done so for more than a minute, and {hint}");
        }
        Ok(Going {
            phase: Phase::Verifying,
            reason: Reason::HandingOver,
            message,
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

/// The way that a claim of ours was made for.
pub(super) fn made_for(claim: &PersistentVolumeClaim) -> Strategy {
    let spec = claim.spec.as_ref();
    let reference = spec.and_then(|spec| spec.data_source.as_ref());
    match reference.map(|reference| reference.kind.as_str()) {
        Some("PersistentVolumeClaim") => Strategy::CsiClone,
        Some("VolumeSnapshot") => Strategy::Snapshot,
        _ => Strategy::HostAssisted,
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

/// Whether it is the claim that was filled, as far as that is known, or has the volume that was filled for it.
pub(crate) fn is_filled(claim: &PersistentVolumeClaim, status: &VolumeCloneStatus) -> bool {
    match &status.prime {
        None => status.filled_uid.is_none() || status.filled_uid == claim.uid(),
        Some(prime) => {
            let spec = claim.spec.as_ref();
            prime.volume.is_some()
                && spec.and_then(|spec| spec.volume_name.as_ref()) == prime.volume.as_ref()
        }
    }
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

/// Where to look for why nothing comes of a claim.
pub(super) fn may_say_why(namespace: &str, claim: &str) -> String {
    format!("`kubectl describe pvc --namespace {namespace} {claim}` may say why")
}

pub(super) fn shown(claim: &PersistentVolumeClaim) -> String {
    format!(
        "{}/{}",
        claim.namespace().unwrap_or_default(),
        claim.name_any()
    )
}
