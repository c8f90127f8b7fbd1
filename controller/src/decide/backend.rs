//! The ways of the storage backend: its own clone, or a snapshot that it restores.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, TypedLocalObjectReference,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::choose::{POSSIBLE, snapshot_class, source_driver, storage_class};
use super::prime::{lost, may_say_why, shown};
use super::{Going, LOOK_AGAIN, LOOK_SOON, Planner, Stop};
use crate::api::{Phase, Strategy, StrategyChoice};
use crate::claims::{self, VolumeMode};
use crate::names::{End, PROVISIONED_BY_ANNOTATION, name};
use crate::objects::{self, Object, SNAPSHOT_GROUP};
use crate::reason::Reason;
use crate::world::{Refusal, Snapshot, Surroundings};

/// How long a backend may go on refusing before another way is tried: what it says first may be
/// about something that mends itself.
const REFUSALS_TIME_MAX: SignedDuration = SignedDuration::from_secs(120);

/// How long ago its last refusal may be for it to go on refusing: between two tries it pauses for five minutes at
/// most. A claim that gets its volume with its first pod may have been refused for an earlier one.
const REFUSALS_PAUSE_MAX: SignedDuration = SignedDuration::from_mins(6);

/// How long a backend may say nothing before that is told. A driver that makes a full copy may take longer, and one
/// whose controller is down does too.
const ANSWER_TIME_MAX: SignedDuration = SignedDuration::from_secs(60);

/// How much older than its claim a volume that was made for it may seem: each API server tells the time by
/// a clock of its own.
const CLOCKS_DIFFER_MAX: SignedDuration = SignedDuration::from_secs(60);

impl Planner<'_> {
    /// The backend clones the source claim.
    pub(super) fn csi_clone(&mut self) -> Result<Going, Stop> {
        let source = self.world.clone.source_claim();
        let reference = TypedLocalObjectReference {
            api_group: None,
            kind: "PersistentVolumeClaim".to_owned(),
            name: source.unwrap_or_default().to_owned(),
        };
        self.provision(Strategy::CsiClone, &reference, None)
    }

    /// The backend restores a snapshot: the one that was named, or one that is taken for it.
    pub(super) fn restore_snapshot(&mut self) -> Result<Going, Stop> {
        let around = self.around()?;
        let snapshot = match &self.world.clone.spec.source.volume_snapshot {
            Some(_) => {
                self.check_source(around)?;
                around.source_snapshot.clone()
            }
            None => Some(self.taken_snapshot(around)?),
        };
        let snapshot = snapshot.unwrap_or_default();
        let reference = TypedLocalObjectReference {
            api_group: Some(SNAPSHOT_GROUP.to_owned()),
            kind: "VolumeSnapshot".to_owned(),
            name: snapshot.name.clone(),
        };
        self.provision(Strategy::Snapshot, &reference, Some(&snapshot))
    }

    /// The snapshot that was taken of the source claim for this clone.
    pub(super) fn taken_snapshot(&mut self, around: &Surroundings) -> Result<Snapshot, Stop> {
        // The target is made from it: once that is there, nothing new is taken.
        self.check_source(around)?;
        let shown = name(&self.world.clone, End::Source);
        match &around.taken_snapshot {
            Some(snapshot) if snapshot.is_ready => Ok(snapshot.clone()),
            Some(snapshot) => {
                let words = snapshot
                    .error
                    .as_deref()
                    .unwrap_or("its driver works on it");
                let message = format!("snapshot {shown}: {words}");
                Err(Stop::Hold {
                    reason: Reason::TakingSnapshot,
                    message,
                    again: LOOK_SOON,
                })
            }
            None => {
                self.check_consent(around)?;
                let driver = source_driver(around);
                let class = driver
                    .and_then(|driver| snapshot_class(around, driver))
                    .map_err(|(_, message)| Stop::fail(Reason::StrategyImpossible, message))?;
                let claim = around.source_claim.as_ref().map(ResourceExt::name_any);
                let snapshot =
                    objects::snapshot(&self.world.clone, &claim.unwrap_or_default(), &class.name);
                self.apply(Object::Snapshot(Box::new(snapshot)));
                Err(Stop::Hold {
                    reason: Reason::TakingSnapshot,
                    message: format!("snapshot {shown} is taken of the source"),
                    again: LOOK_SOON,
                })
            }
        }
    }

    /// Has the backend make the target from `reference`.
    fn provision(
        &mut self,
        strategy: Strategy,
        reference: &TypedLocalObjectReference,
        snapshot: Option<&Snapshot>,
    ) -> Result<Going, Stop> {
        let going = |message: &str| Going {
            phase: Phase::Cloning,
            reason: Reason::Provisioning,
            message: message.to_owned(),
            // The claim is watched; only a refusal has to be looked for.
            again: LOOK_AGAIN,
        };
        self.check_place()?;
        let Some(claim) = self.claim_to_fill()? else {
            let around = self.around()?;
            self.check_source(around)?;
            let source = match (&around.source_claim, snapshot) {
                (Some(claim), _) => claim.clone(),
                (None, Some(snapshot)) => of_snapshot(snapshot),
                (None, None) => PersistentVolumeClaim::default(),
            };
            if self.world.clone.is_cross_namespace() {
                self.check_consent(around)?;
            }
            let made = objects::filled_from(self.new_claim(&source)?, reference);
            self.apply(Object::Claim(Box::new(made)));
            return Ok(going("the backend is asked for the target"));
        };
        if claims::is_bound(&claim) {
            self.check_made_for(&claim)?;
            return self.hand_over(Reason::ClonedByBackend);
        }
        let around = self.around()?;
        let Some(refusal) = around.target_warnings.last() else {
            self.check_consumer(&claim)?;
            let mut message = "the claim has no volume yet".to_owned();
            // One that comes with its first pod was made long before that.
            let made_at = claim.creation_timestamp().map_or(self.world.now, |at| at.0);
            if self.goes_on_for(made_at) >= ANSWER_TIME_MAX {
                let namespace = claim.namespace().unwrap_or_default();
                let hint = may_say_why(&namespace, &claim.name_any());
                message += &format!(", for more than a minute; {hint}");
            }
            return Ok(going(&message));
        };
        let lasts = are_lasting(&around.target_warnings, self.world.now);
        let refusal = &refusal.message;
        let is_final = refusal.contains("not support") || lasts;
        if self.world.clone.spec.strategy == StrategyChoice::Auto && is_final {
            return Ok(self.give_up(strategy, &claim, refusal));
        }
        Err(Stop::hold(Reason::ProvisioningFailed, refusal.as_str()))
    }

    /// Whether the claim's volume was made for it, so by its class's driver and from what it refers to.
    /// Kubernetes also binds a claim to a volume that was free, which may hold anything.
    fn check_made_for(&self, claim: &PersistentVolumeClaim) -> Result<(), Stop> {
        let spec = claim.spec.as_ref();
        let name = spec.and_then(|spec| spec.volume_name.as_deref());
        let name = name.unwrap_or_default();
        if self.world.filled_volume.is_none() {
            return Err(lost(&format!("volume {name}")));
        }
        if self.is_made_for(claim)? {
            return Ok(());
        }
        let message = format!(
            "claim {} has got volume {name}, which was not made for it and may hold anything: keep \
             volumes of its storage class from being free, or choose another class",
            shown(claim)
        );
        Err(Stop::fail(Reason::ProvisioningFailed, message))
    }

    /// Whether the claim has a volume that its class's driver made after it.
    pub(super) fn is_made_for(&self, claim: &PersistentVolumeClaim) -> Result<bool, Stop> {
        let spec = claim.spec.as_ref();
        let class = spec.and_then(|spec| spec.storage_class_name.as_deref());
        let class = storage_class(self.around()?, class);
        let volume = self.world.filled_volume.as_ref();
        Ok(volume.is_some_and(|volume| is_volume_for(volume, claim, class)))
    }

    /// Takes the next way, since the backend refuses this one. The claim that it didn't fill goes at once: the
    /// backend tries on, and a pod would start on what it makes.
    fn give_up(
        &mut self,
        strategy: Strategy,
        claim: &PersistentVolumeClaim,
        refusal: &str,
    ) -> Going {
        self.judge_way(strategy, false, Reason::ProvisioningFailed.label(), refusal);
        let next = self.status.considered.iter().find(|way| way.possible);
        let next = next.map_or(Strategy::HostAssisted, |way| way.strategy);
        self.status.strategy = Some(next);
        if self.is_ours(claim) {
            self.delete_claim(claim);
        }
        // One beside the source is of no use for agents.
        self.status.prime = self.prime(next);
        let message = format!(
            "{} was given up for {}: {refusal}",
            strategy.label(),
            next.label()
        );
        self.note(true, Reason::StrategyChosen, message.clone());
        Going {
            again: Duration::from_secs(1),
            ..super::agents::preparing(&message)
        }
    }

    /// Takes the way again that was given up: the backend has made the volume of `claim` after all.
    pub(super) fn take_back(&mut self, strategy: Strategy, claim: &PersistentVolumeClaim) {
        let words = format!("the backend has made the volume of claim {}", shown(claim));
        self.judge_way(strategy, true, POSSIBLE, &words);
        self.status.strategy = Some(strategy);
        let message = format!("{} is taken again: {words}", strategy.label());
        self.note(false, Reason::StrategyChosen, message);
    }

    fn judge_way(&mut self, strategy: Strategy, possible: bool, reason: &str, message: &str) {
        for way in &mut self.status.considered {
            if way.strategy == strategy {
                way.possible = possible;
                way.reason = reason.to_owned();
                way.message = message.to_owned();
            }
        }
    }

    /// The claim that a snapshot is restored to, for the source agent to read. Its namespace is the
    /// snapshot's, and it goes with the clone's end.
    pub(super) fn restored_source(
        &mut self,
        around: &Surroundings,
        snapshot: &Snapshot,
    ) -> Result<PersistentVolumeClaim, Stop> {
        if let Some(claim) = &around.restored_claim {
            return Ok(claim.clone());
        }
        let mut classes = around.snapshot_classes.iter();
        let class = classes.find(|class| Some(&class.name) == snapshot.class.as_ref());
        let driver = class.map_or("", |class| class.driver.as_str());
        let default = storage_class(around, None).filter(|class| class.provisioner == driver);
        let mut of_driver = around.storage_classes.iter();
        let class = default.or_else(|| of_driver.find(|class| class.provisioner == driver));
        let Some(class) = class else {
            let message = format!(
                "to be read, snapshot {} has to be restored, and no storage class is of its driver \
                 ({driver})",
                snapshot.name
            );
            return Err(Stop::hold(Reason::SnapshotNotReady, message));
        };
        let source = around.source_claim.as_ref();
        // Drivers need not tell it; the claim that it was taken of does.
        let restore_bytes = snapshot
            .restore_bytes
            .or_else(|| source.and_then(claims::size_bytes));
        if restore_bytes.is_none() {
            let message = format!("snapshot {} does not tell its size yet", snapshot.name);
            return Err(Stop::hold(Reason::SnapshotNotReady, message));
        }
        let source = source.and_then(|claim| claim.spec.as_ref());
        let like = Snapshot {
            volume_mode: snapshot.volume_mode.or_else(|| source.map(VolumeMode::of)),
            restore_bytes,
            ..snapshot.clone()
        };
        let claim = objects::restored_claim(
            &self.world.clone,
            &of_snapshot(&like),
            &class.name_any(),
            &snapshot.name,
        );
        self.apply(Object::Claim(Box::new(claim.clone())));
        Ok(claim)
    }
}

/// Whether `volume` is the claim's, and a driver made it after the claim: that of `class`, where that is known.
pub(super) fn is_volume_for(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
    class: Option<&StorageClass>,
) -> bool {
    let driver = volume.annotations().get(PROVISIONED_BY_ANNOTATION);
    let is_drivers =
        driver.is_some_and(|driver| class.is_none_or(|class| class.provisioner == *driver));
    let times = volume.creation_timestamp().zip(claim.creation_timestamp());
    let is_new =
        times.is_none_or(|(volume, claim)| claim.0.duration_since(volume.0) <= CLOCKS_DIFFER_MAX);
    claims::is_bound(claim) && is_drivers && is_new
}

/// Whether a backend has refused for so long that it is not about to do what it was asked for.
fn are_lasting(refusals: &[Refusal], now: Timestamp) -> bool {
    let first_at = refusals.iter().filter_map(|refusal| refusal.first_at).min();
    let last_at = refusals.iter().filter_map(|refusal| refusal.last_at).max();
    first_at.is_some_and(|at| now.duration_since(at) >= REFUSALS_TIME_MAX)
        && last_at.is_some_and(|at| now.duration_since(at) <= REFUSALS_PAUSE_MAX)
}

/// A claim as large as what the snapshot holds, and of its mode.
fn of_snapshot(snapshot: &Snapshot) -> PersistentVolumeClaim {
    objects::claim_of(snapshot.volume_mode, snapshot.restore_bytes)
}
