//! The ways of the storage backend: its own clone, or a snapshot that it restores.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, TypedLocalObjectReference};
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt;

use super::choose::{snapshot_class, source_driver, storage_class};
use super::prime::{lost, shown};
use super::{Going, LOOK_AGAIN, LOOK_SOON, Planner, Stop};
use crate::api::{Phase, Strategy, StrategyChoice};
use crate::claims::{self, VolumeMode};
use crate::names::{End, PROVISIONED_BY_ANNOTATION, name};
use crate::objects::{self, Object, SNAPSHOT_GROUP};
use crate::reason::Reason;
use crate::world::{Snapshot, Surroundings};

/// How long a backend may go on refusing before another way is tried: what it says first may be
/// about something that mends itself.
const REFUSALS_TIME_MAX: Duration = Duration::from_secs(120);

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
            return Ok(going(
                "the claim has no volume yet; one of mode WaitForFirstConsumer gets it with \
                 its first pod",
            ));
        };
        let age = claim
            .creation_timestamp()
            .map(|at| self.world.now.duration_since(at.0));
        let age = age
            .and_then(|age| Duration::try_from(age).ok())
            .unwrap_or_default();
        let is_final = refusal.contains("not support") || age >= REFUSALS_TIME_MAX;
        if self.world.clone.spec.strategy == StrategyChoice::Auto && is_final {
            return Ok(self.give_up(strategy, refusal));
        }
        Err(Stop::hold(Reason::ProvisioningFailed, refusal.as_str()))
    }

    /// Whether the claim's volume was made for it, so by its class's driver and from what it refers to.
    /// Kubernetes also binds a claim to a volume that was free, which may hold anything.
    fn check_made_for(&self, claim: &PersistentVolumeClaim) -> Result<(), Stop> {
        let spec = claim.spec.as_ref();
        let class = spec.and_then(|spec| spec.storage_class_name.as_deref());
        let class = storage_class(self.around()?, class);
        let name = spec.and_then(|spec| spec.volume_name.as_deref());
        let name = name.unwrap_or_default();
        let Some(volume) = &self.world.filled_volume else {
            return Err(lost(&format!("volume {name}")));
        };
        let driver = volume.annotations().get(PROVISIONED_BY_ANNOTATION);
        let is_drivers =
            driver.is_some_and(|driver| class.is_none_or(|class| class.provisioner == *driver));
        let times = volume.creation_timestamp().zip(claim.creation_timestamp());
        let is_new = times
            .is_none_or(|(volume, claim)| claim.0.duration_since(volume.0) <= CLOCKS_DIFFER_MAX);
        if is_drivers && is_new {
            return Ok(());
        }
        let message = format!(
            "claim {} has got volume {name}, which was not made for it and may hold anything: keep \
             volumes of its storage class from being free, or choose another class",
            shown(claim)
        );
        Err(Stop::fail(Reason::ProvisioningFailed, message))
    }

    /// Takes the next way, since the backend refuses this one. The claim that it didn't fill goes with
    /// the next look: it is not that way's.
    fn give_up(&mut self, strategy: Strategy, refusal: &str) -> Going {
        for way in &mut self.status.considered {
            if way.strategy == strategy {
                way.possible = false;
                way.reason = Reason::ProvisioningFailed.label().to_owned();
                way.message = refusal.to_owned();
            }
        }
        let next = self.status.considered.iter().find(|way| way.possible);
        let next = next.map_or(Strategy::HostAssisted, |way| way.strategy);
        self.status.strategy = Some(next);
        // One beside the source is of no use for agents.
        let prime = self.prime(next);
        if prime != self.status.prime
            && let Some(claim) = &self.world.prime_claim
        {
            self.delete_claim(claim);
        }
        self.status.prime = prime;
        let message = format!("{strategy:?} was given up for {next:?}: {refusal}");
        self.note(true, Reason::StrategyChosen, message.clone());
        Going {
            again: Duration::from_secs(1),
            ..super::agents::preparing(&message)
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

/// A claim as large as what the snapshot holds, and of its mode.
fn of_snapshot(snapshot: &Snapshot) -> PersistentVolumeClaim {
    objects::claim_of(snapshot.volume_mode, snapshot.restore_bytes)
}
