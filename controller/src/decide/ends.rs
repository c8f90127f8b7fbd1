//! What each agent needs, and its pod: credentials and policies of both, the claims, who uses them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;

use super::agents::{STARTING, attached_to, preparing, selected_node};
use super::{Going, Planner, Step, Stop};
use crate::api::InUsePolicy;
use crate::claims::{self, VolumeMode};
use crate::credentials;
use crate::names::{End, name};
use crate::objects::{self, EndPlan, Object, PodPlan, View};
use crate::reason::Reason;
use crate::world::{Kind, Surroundings};

impl Planner<'_> {
    /// Makes all that the target agent needs, then its pod.
    pub(super) fn make_target(&mut self) -> Result<Going, Stop> {
        let world = self.world;
        let clone = &world.clone;
        let around = self.around()?;
        self.check_consent(around)?;
        self.check_source(around)?;
        if self.world.pod(End::Source).is_none() {
            self.check_source_use(around)?;
        }
        // Before a claim or a snapshot is made: one that queues takes no storage.
        if let Err(waits_for) = &world.admission {
            return Err(Stop::hold(Reason::Queued, waits_for));
        }
        // Before the claim is made: a pod that waits for it would start on a volume that is empty yet.
        if self.status.prime.is_none() {
            self.check_target_use()?;
        }
        let source = self.source_claim(around)?;
        let target = self.target_claim(&source)?;
        self.forget_other(&target);
        self.provide();
        let checkpoint = self.status.checkpoint.clone();
        if let Some(checkpoint) = &checkpoint {
            let map = objects::checkpoint(clone, checkpoint);
            self.apply(Object::ConfigMap(Box::new(map)));
        }
        let (_, view) = objects::views(mode(&source), mode(&target));
        let sizes = (claims::size_bytes(&source), claims::size_bytes(&target));
        let is_larger = matches!(sizes, (Some(source), Some(target)) if target > source);
        let plan = PodPlan {
            claim: target.name_any(),
            view,
            node: selected_node(&target),
            is_privileged: is_privileged(around, clone.target_namespace(), view),
            end: EndPlan::Target {
                has_checkpoint: checkpoint.is_some(),
                may_overwrite: view == View::Directory && self.may_overwrite(&target)?,
                zero_tail: view == View::Device && is_larger,
            },
        };
        let pod = objects::pod(clone, &world.settings, &plan);
        self.apply(Object::Pod(Box::new(pod)));
        Ok(preparing(STARTING))
    }

    /// Whether what is in the filesystem of the claim may go: where that was asked for, where an earlier
    /// attempt of this clone left it, or where the volume was made for the clone's own claim. A claim of ours
    /// may also have got a volume that was free, and holds whatever somebody left there.
    fn may_overwrite(&self, target: &PersistentVolumeClaim) -> Result<bool, Stop> {
        let asked = &self.world.clone.spec.target;
        let is_ours = asked.claim_template.is_some() || self.status.prime.is_some();
        Ok(asked.overwrite || self.has_written() || (is_ours && self.is_made_for(target)?))
    }

    /// Whether an earlier target agent of this clone was let into its volume. Before the ends have met it
    /// may still refuse what it finds there.
    fn has_written(&self) -> bool {
        let progress = self.status.progress.as_ref();
        progress.is_some_and(|progress| progress.stage != "handshake")
    }

    /// Notes which claim is filled. The target's pod keeps it from going, so it is the one that is there.
    pub(super) fn note_filled(&mut self) {
        let filled = match &self.status.prime {
            Some(_) => self.world.prime_claim.as_ref(),
            None => self.world.target_claim.as_ref(),
        };
        if let (None, Some(claim)) = (&self.status.filled_uid, filled) {
            self.status.filled_uid = claim.uid();
        }
    }

    /// Begins anew where `target` is not the claim that was filled before: what was durable went with that.
    fn forget_other(&mut self, target: &PersistentVolumeClaim) {
        let filled = self.status.filled_uid.take();
        if filled.is_some() && filled == target.uid() {
            self.status.filled_uid = filled;
            return;
        }
        (self.status.checkpoint, self.status.progress) = (None, None);
        if filled.is_some() {
            let message = format!(
                "claim {} is another than the one that was filled before: the clone begins anew",
                target.name_any()
            );
            self.note(true, Reason::TargetReplaced, message);
        }
    }

    /// Has credentials and policies of both ends be there, and good for a while.
    fn provide(&mut self) {
        let world = self.world;
        let clone = &world.clone;
        let missing = |kind| {
            End::ALL
                .into_iter()
                .filter(move |end| !world.has(kind, end.namespace(clone), &name(clone, *end)))
        };
        let lacks = missing(Kind::Secret).next().is_some() || credentials::should_renew(world);
        if lacks && !self.steps.contains(&Step::Mint) {
            self.steps.push(Step::Mint);
        }
        for end in missing(Kind::NetworkPolicy) {
            let policy = objects::policy(clone, &world.settings, end);
            self.apply(Object::NetworkPolicy(Box::new(policy)));
        }
    }

    /// Makes the source's pod, once the target listens at `address`.
    pub(super) fn make_source(&mut self, address: IpAddr) -> Result<Going, Stop> {
        let world = self.world;
        let clone = &world.clone;
        let around = self.around()?;
        self.check_consent(around)?;
        self.check_source(around)?;
        let source = self.source_claim(around)?;
        self.check_source_use(around)?;
        let target = self.target_claim(&source)?;
        self.provide();
        let target_pod = world.pod(End::Target);
        let are_new = target_pod.is_some_and(|pod| credentials::are_unseen_by(pod, world));
        if are_new || self.steps.contains(&Step::Mint) {
            return Ok(preparing("new credentials reach the target's pod"));
        }
        let (view, _) = objects::views(mode(&source), mode(&target));
        // The claim itself may change, whatever was taken of it.
        let is_restored = clone.source_claim() != Some(&source.name_any());
        let taken = around.taken_snapshot.as_ref();
        let snapshot = around.source_snapshot.as_ref().or(taken);
        let snapshot = snapshot.filter(|_| is_restored);
        let plan = PodPlan {
            claim: source.name_any(),
            view,
            node: self.source_node(around, &source),
            is_privileged: is_privileged(around, clone.source_namespace(), view),
            end: EndPlan::Source {
                target: address,
                generation: snapshot.map(|snapshot| snapshot.uid.clone()),
            },
        };
        let pod = objects::pod(clone, &world.settings, &plan);
        self.apply(Object::Pod(Box::new(pod)));
        Ok(preparing(STARTING))
    }

    /// The claim that the source agent reads.
    fn source_claim(&mut self, around: &Surroundings) -> Result<PersistentVolumeClaim, Stop> {
        let Some(claim) = &around.source_claim else {
            let snapshot = around.source_snapshot.clone().unwrap_or_default();
            return self.restored_source(around, &snapshot);
        };
        // Once a snapshot was taken it stays the source, whoever uses the claim then.
        let is_taken = around.taken_snapshot.is_some() || !self.world.users.source.is_empty();
        if self.world.clone.spec.in_use_policy == InUsePolicy::Snapshot && is_taken {
            let snapshot = self.taken_snapshot(around)?;
            return self.restored_source(around, &snapshot);
        }
        Ok(claim.clone())
    }

    /// The claim that is written, as it is or as it is about to be made.
    fn target_claim(
        &mut self,
        source: &PersistentVolumeClaim,
    ) -> Result<PersistentVolumeClaim, Stop> {
        let claim = match self.claim_to_fill()? {
            Some(claim) => claim,
            None => {
                let made = self.new_claim(source)?;
                self.apply(Object::Claim(Box::new(made.clone())));
                made
            }
        };
        let is_device = objects::views(mode(source), mode(&claim)).1 == View::Device;
        let of_block = mode(source) == VolumeMode::Block;
        if let (Some(target_bytes), Some(source_bytes)) =
            (claims::size_bytes(&claim), claims::size_bytes(source))
            && is_device
            && of_block
            && target_bytes < source_bytes
        {
            let message = format!(
                "the target claim {} has {target_bytes} bytes, the source {source_bytes}",
                claim.name_any()
            );
            return Err(Stop::fail(Reason::TargetTooSmall, message));
        }
        Ok(claim)
    }

    fn check_target_use(&self) -> Result<(), Stop> {
        if self.world.users.target.is_empty() {
            return Ok(());
        }
        let message = format!("{}; end them first", self.used_target());
        Err(Stop::hold(Reason::TargetInUse, message))
    }

    fn check_source_use(&self, around: &Surroundings) -> Result<(), Stop> {
        let is_unused = self.world.users.source.is_empty();
        let (Some(claim), false) = (&around.source_claim, is_unused) else {
            return Ok(());
        };
        let policy = self.world.clone.spec.in_use_policy;
        let message = self.used_source();
        let only_one_pod = claims::has_access(claim, "ReadWriteOncePod");
        match policy {
            InUsePolicy::Fail => Err(Stop::fail(Reason::SourceInUse, message)),
            InUsePolicy::Allow if only_one_pod => Err(Stop::hold(
                Reason::SourceInUse,
                format!("{message}, and ReadWriteOncePod lets no second pod use it"),
            )),
            InUsePolicy::Allow => Ok(()),
            InUsePolicy::Wait => Err(Stop::hold(
                Reason::SourceInUse,
                format!("{message}; end them, or choose another inUsePolicy"),
            )),
            // The agents read the snapshot.
            InUsePolicy::Snapshot => Ok(()),
        }
    }

    /// The node where the source is attached, if it can't be attached to another.
    fn source_node(&self, around: &Surroundings, claim: &PersistentVolumeClaim) -> Option<String> {
        let source = around.source_claim.as_ref();
        source
            .filter(|source| source.name_any() == claim.name_any())
            .and_then(|source| attached_to(source, self.world))
    }
}

fn mode(claim: &PersistentVolumeClaim) -> VolumeMode {
    claim
        .spec
        .as_ref()
        .map_or(VolumeMode::Filesystem, VolumeMode::of)
}

/// Whether an agent gets privileges: only for files, and only where an administrator lets it.
fn is_privileged(around: &Surroundings, namespace: &str, view: View) -> bool {
    view == View::Directory && around.privileged.get(namespace) == Some(&true)
}
