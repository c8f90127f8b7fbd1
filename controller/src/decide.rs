//! From what was observed to what happens next: a pure function.
//!
//! ```text
//! World ──► decide ──► Decision: the status as it should be, steps in order, Events, when to look again
//! ```
//!
//! It is asked again after every change and remembers nothing but what the status holds. So it may be
//! interrupted anywhere, also by the end of the controller: the status is written before the steps,
//! each step can be repeated, and a step that was not taken is decided again.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::api::{FailureStatus, Phase, Strategy, StrategyChoice, VolumeClone, VolumeCloneStatus};
use crate::claims;
use crate::names::{FINALIZER, RECEIPT_ANNOTATION};
use crate::objects::Object;
use crate::reason::Reason;
use crate::world::{Belonging, Kind, Surroundings, World};

mod agents;
mod attempts;
mod backend;
mod choose;
mod ends;
mod prime;
mod proof;
mod status;
mod template;
#[cfg(test)]
mod tests;

pub(crate) use self::agents::pinned_nodes;
use self::choose::choose;
pub(crate) use self::choose::storage_class;
pub(crate) use self::prime::is_filled;
use self::status::{Condition, is_told, rejection, set_condition};
pub(crate) use self::template::filled_claim;

/// What should happen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The status as it should be; absent where it is so. It is written before the steps.
    pub status: Option<Box<VolumeCloneStatus>>,
    /// What to do, in this order. A step that fails keeps those from being taken that come later and need it.
    pub steps: Vec<Step>,
    /// Events, once the status is written.
    pub notes: Vec<Note>,
    /// When to look again, if nothing that is watched changes before.
    pub again: Option<Duration>,
    /// The surroundings have to be observed, and then to be decided again; all else is empty.
    pub needs_surroundings: bool,
}

impl Decision {
    /// Whether nothing is to be done, told or looked at more closely.
    pub(crate) const fn is_idle(&self) -> bool {
        self.status.is_none()
            && self.steps.is_empty()
            && self.notes.is_empty()
            && !self.needs_surroundings
    }
}

/// One thing to do. Each may be done twice.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Keep the object until all that was made for it is gone.
    AddFinalizer,
    /// Let the object go.
    RemoveFinalizer,
    /// Make new credentials for both ends; authorities of the present ones stay trusted.
    Mint,
    /// Make the object, or make it so.
    Apply(Object),
    /// Remove the object with this uid.
    Delete(Doomed),
    /// Bind a volume to the target claim, in the place of the claim that it was filled as.
    Rebind(Rebinding),
    /// Have the scheduler choose another node for a claim that waits for its first pod.
    Unplace {
        /// The claim.
        claim: String,
        /// Its uid.
        uid: String,
    },
    /// Note on the target claim what it holds.
    Attest {
        /// The claim.
        claim: String,
        /// Its uid: another by the same name holds something else.
        uid: String,
        /// The receipt, in one line.
        receipt: String,
    },
    /// Delete the `VolumeClone` itself: its time is over.
    Expire,
}

impl Step {
    /// What it is about, for who hears that it was refused.
    pub(crate) fn what(&self) -> String {
        match self {
            Self::AddFinalizer | Self::RemoveFinalizer => {
                "the finalizers of the VolumeClone".to_owned()
            }
            Self::Mint => "the credentials of both agents".to_owned(),
            Self::Apply(object) => object.describe(),
            Self::Delete(doomed) => format!(
                "deleting {} {}/{}",
                doomed.kind.label(),
                doomed.namespace,
                doomed.name
            ),
            Self::Rebind(Rebinding { volume, claim, .. }) => {
                format!("volume {volume} for claim {claim}")
            }
            Self::Unplace { claim, .. } => format!("taking its node from claim {claim}"),
            Self::Attest { claim, .. } => format!("noting the receipt on claim {claim}"),
            Self::Expire => "deleting the VolumeClone, whose time is over".to_owned(),
        }
    }

    /// Whether something is made or changed for the clone to go on, where the API server may well refuse it: a
    /// quota, a policy, a webhook.
    pub(crate) const fn makes(&self) -> bool {
        matches!(self, Self::Apply(_) | Self::Mint | Self::Rebind(_))
    }

    /// Whether any of those that come after it needs it. Of what only goes each goes by itself.
    pub(crate) fn is_needed_by(&self, later: &[Self]) -> bool {
        match self {
            Self::Attest { .. } | Self::Apply(Object::Clone(_)) => false,
            Self::Delete(_) => !later.iter().all(|step| matches!(step, Self::Delete(_))),
            _ => true,
        }
    }

    /// What it does, in a word.
    pub(crate) const fn action(&self) -> &'static str {
        match self {
            Self::AddFinalizer | Self::RemoveFinalizer => "SetFinalizers",
            Self::Mint => "Mint",
            Self::Apply(_) => "Make",
            Self::Delete(_) => "Delete",
            Self::Rebind(_) => "Rebind",
            Self::Unplace { .. } => "Unplace",
            Self::Attest { .. } => "Attest",
            Self::Expire => "Expire",
        }
    }
}

/// A volume and the claim that it is given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebinding {
    /// The volume.
    pub volume: String,
    /// Its version: it is given away as it was seen, or not.
    pub version: String,
    /// The claim's namespace.
    pub namespace: String,
    /// The claim's name.
    pub claim: String,
    /// The claim's uid.
    pub uid: String,
}

/// An object to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doomed {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: another object by the same name stays.
    pub uid: String,
    /// Its version, where it goes as it was seen or not at all.
    pub version: Option<String>,
}

impl From<&Belonging> for Doomed {
    fn from(belonging: &Belonging) -> Self {
        Self {
            kind: belonging.kind,
            namespace: belonging.namespace.clone(),
            name: belonging.name.clone(),
            uid: belonging.uid.clone(),
            version: None,
        }
    }
}

impl From<&Pod> for Doomed {
    fn from(pod: &Pod) -> Self {
        Self {
            kind: Kind::Pod,
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            version: None,
        }
    }
}

/// An Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether somebody should look.
    pub is_warning: bool,
    /// Why, in a word.
    pub reason: Reason,
    /// In words.
    pub message: String,
}

/// What goes on, when nothing holds the clone up.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Going {
    phase: Phase,
    reason: Reason,
    message: String,
    again: Duration,
}

/// Why the clone can't go on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stop {
    /// It waits: for somebody to do something, or for its turn.
    Hold {
        reason: Reason,
        message: String,
        again: Duration,
    },
    /// It has failed for good.
    Fail { reason: Reason, message: String },
    /// More has to be known.
    LookAround,
}

impl Stop {
    fn hold(reason: Reason, message: impl Into<String>) -> Self {
        Self::Hold {
            reason,
            message: message.into(),
            again: LOOK_AGAIN,
        }
    }

    fn fail(reason: Reason, message: impl Into<String>) -> Self {
        Self::Fail {
            reason,
            message: message.into(),
        }
    }
}

/// When to look again for what is not watched: other pods, grants, claims.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
/// When to look again while pods start and end: a watch that is slow must not hold a clone up.
const LOOK_SOON: Duration = Duration::from_secs(5);

/// What happens next.
#[must_use]
pub fn decide(world: &World) -> Decision {
    let clone = &world.clone;
    if clone.spec.target.referring_claims {
        return template::serve(world);
    }
    let has_finalizer = clone.finalizers().iter().any(|name| name == FINALIZER);
    if clone.metadata.deletion_timestamp.is_some() {
        return if has_finalizer {
            tear_down(world)
        } else {
            Decision::default()
        };
    }
    if !has_finalizer {
        let filled = filled_claim(clone);
        let note = filled.map(|claim| Note {
            is_warning: false,
            reason: Reason::Filling,
            message: format!(
                "VolumeClone {} fills claim {}, and tells how far it is",
                clone.name_any(),
                claim.name
            ),
        });
        return Decision {
            steps: vec![Step::AddFinalizer],
            notes: note.into_iter().collect(),
            ..Decision::default()
        };
    }
    let before = clone.status.clone().unwrap_or_default();
    if before.phase.is_finished() {
        return finished(world, &before);
    }
    let mut planner = Planner {
        world,
        status: before.clone(),
        steps: Vec::new(),
        notes: Vec::new(),
    };
    let course = planner.go_on();
    planner.settle(course, &before)
}

/// A decision in the making.
struct Planner<'a> {
    world: &'a World,
    status: VolumeCloneStatus,
    steps: Vec<Step>,
    notes: Vec<Note>,
}

impl<'a> Planner<'a> {
    fn go_on(&mut self) -> Result<Going, Stop> {
        let is_new = self.take_proof()?;
        let prime_waits = self.status.prime.is_some();
        if !self.is_complete() {
            self.check_deadline()?;
        }
        if self.world.clone.spec.suspend {
            return Err(self.suspend());
        }
        // What is complete is handed over, whatever becomes of the source.
        if is_new && prime_waits {
            // While bytes travel claims are not looked at.
            return Ok(Going {
                phase: Phase::Verifying,
                reason: Reason::HandingOver,
                message: "the volume is proven".to_owned(),
                again: Duration::ZERO,
            });
        }
        if self.status.receipt.is_some() {
            return self.hand_over(Reason::Proven);
        }
        if self.is_complete() {
            return self.hand_over(Reason::ClonedByBackend);
        }
        let strategy = match self.status.strategy {
            Some(_) => self.way()?,
            None => self.accept()?,
        };
        match strategy {
            Strategy::HostAssisted => self.host_assisted(),
            Strategy::CsiClone => self.csi_clone(),
            Strategy::Snapshot => self.restore_snapshot(),
        }
    }

    /// Whether all is there, and at most to be handed over. It is not thrown away because that takes long, or nobody
    /// looked in time.
    fn is_complete(&self) -> bool {
        let prime = self.status.prime.as_ref();
        self.status.receipt.is_some() || prime.is_some_and(|prime| prime.volume.is_some())
    }

    fn check_deadline(&self) -> Result<(), Stop> {
        let limit = self.world.clone.spec.deadline_seconds;
        let started_at = self.status.started_at.as_ref();
        let (Some(limit), Some(started_at)) = (limit, started_at) else {
            return Ok(());
        };
        let taken = self.world.now.duration_since(started_at.0);
        if taken.as_secs() < limit {
            return Ok(());
        }
        let message = format!(
            "the clone went on for {} s, of deadlineSeconds: {limit}",
            taken.as_secs()
        );
        Err(Stop::fail(Reason::DeadlineExceeded, message))
    }

    /// Ends the agents. What the target said last is kept for the next one.
    fn suspend(&mut self) -> Stop {
        self.keep_progress(true);
        self.delete_pods();
        Stop::hold(Reason::Suspended, "spec.suspend is true")
    }

    /// Checks what has to be there, and chooses the way.
    fn accept(&mut self) -> Result<Strategy, Stop> {
        let around = self.around()?;
        self.check_consent(around)?;
        self.check_source(around)?;
        let clone = &self.world.clone;
        let is_same = clone.source_claim() == Some(clone.target_claim());
        if is_same && !clone.is_cross_namespace() {
            let message = "a claim can't be cloned to itself; name another target";
            return Err(Stop::fail(Reason::SourceIsTarget, message));
        }
        self.present_target()?;
        let considered = choose(self.world, around);
        let wanted = match self.world.clone.spec.strategy {
            StrategyChoice::Auto => None,
            StrategyChoice::CsiClone => Some(Strategy::CsiClone),
            StrategyChoice::Snapshot => Some(Strategy::Snapshot),
            StrategyChoice::HostAssisted => Some(Strategy::HostAssisted),
        };
        self.status.considered = considered;
        let ways = self.status.considered.iter();
        let mut ways = ways.filter(|way| wanted.is_none_or(|wanted| wanted == way.strategy));
        let Some(chosen) = ways.clone().find(|way| way.possible) else {
            let why = ways.next().map_or("", |way| way.message.as_str());
            return Err(Stop::fail(Reason::StrategyImpossible, why));
        };
        let strategy = chosen.strategy;
        let told = self.status.considered.iter().map(|way| {
            let is_chosen = if way.strategy == strategy {
                ", chosen"
            } else {
                ""
            };
            format!("{}{is_chosen}: {}", way.strategy.label(), way.message)
        });
        let told = told.collect::<Vec<_>>().join("; ");
        self.note(false, Reason::StrategyChosen, told);
        self.status.strategy = Some(strategy);
        self.status.prime = self.prime(strategy);
        self.status.target_claim = Some(self.world.clone.target_claim().to_owned());
        self.status.started_at.get_or_insert(Time(self.world.now));
        self.condition(Condition::Accepted, true, Reason::Accepted, "");
        Ok(strategy)
    }

    /// The surroundings, which are only observed when they are asked for.
    fn around(&self) -> Result<&'a Surroundings, Stop> {
        self.world.surroundings.as_ref().ok_or(Stop::LookAround)
    }

    fn delete_pods(&mut self) {
        let pods = self.world.pods.iter();
        let staying = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
        self.steps
            .extend(staying.map(|pod| Step::Delete(pod.into())));
    }

    fn note(&mut self, is_warning: bool, reason: Reason, message: impl Into<String>) {
        self.notes.push(Note {
            is_warning,
            reason,
            message: message.into(),
        });
    }

    fn condition(&mut self, condition: Condition, is_true: bool, reason: Reason, message: &str) {
        set_condition(
            &mut self.status.conditions,
            condition,
            is_true,
            (reason, message),
            self.world,
        );
    }

    /// Puts the course into phase and conditions.
    fn settle(mut self, course: Result<Going, Stop>, before: &VolumeCloneStatus) -> Decision {
        let mut again = match course {
            Ok(going) => self.settle_going(&going),
            Err(Stop::Hold {
                reason,
                message,
                again,
            }) => self.settle_hold(reason, &message, again),
            Err(Stop::Fail { reason, message }) => {
                self.settle_failure(reason, &message);
                None
            }
            Err(Stop::LookAround) => {
                return Decision {
                    needs_surroundings: true,
                    ..Decision::default()
                };
            }
        };
        let limit = self.world.clone.spec.deadline_seconds;
        let limit = limit.filter(|_| !self.is_complete());
        if let (Some(again), Some(limit), Some(started_at)) =
            (&mut again, limit, &self.status.started_at)
        {
            let passed = self.world.now.duration_since(started_at.0).as_secs();
            let left = u64::try_from(limit.saturating_sub(passed)).unwrap_or(0);
            *again = (*again).min(Duration::from_secs(left.max(1)));
        }
        self.status.observed_generation = self.world.clone.metadata.generation;
        let is_changed = self.status != *before || self.world.clone.status.is_none();
        Decision {
            status: is_changed.then(|| Box::new(self.status)),
            steps: self.steps,
            notes: self.notes,
            again,
            needs_surroundings: false,
        }
    }

    fn settle_going(&mut self, going: &Going) -> Option<Duration> {
        self.status.phase = going.phase;
        if going.phase == Phase::Ready {
            self.status.finished_at.get_or_insert(Time(self.world.now));
            self.condition(
                Condition::Progressing,
                false,
                going.reason,
                "the clone is done",
            );
            self.condition(Condition::Ready, true, going.reason, &going.message);
            self.note(false, going.reason, going.message.clone());
            return Some(going.again);
        }
        match rejection(self.world, &self.steps) {
            Some((reason, words)) => {
                self.status.phase = Phase::Pending;
                self.condition(Condition::Progressing, false, reason, &words);
            }
            None => self.condition(Condition::Progressing, true, going.reason, &going.message),
        }
        self.condition(Condition::Ready, false, going.reason, "");
        Some(going.again)
    }

    fn settle_hold(&mut self, reason: Reason, message: &str, again: Duration) -> Option<Duration> {
        self.status.phase = match reason {
            Reason::Suspended => Phase::Suspended,
            _ => Phase::Pending,
        };
        let rejection = rejection(self.world, &self.steps);
        let (shown, words) = rejection
            .as_ref()
            .map_or((reason, message), |(reason, words)| (*reason, words));
        // Who waits for a claim to be filled looks there.
        let is_filler = filled_claim(&self.world.clone).is_some();
        let is_noted = self.notes.iter().any(|note| note.reason == shown);
        if is_filler && !is_noted && !is_told(&self.status, shown) {
            self.note(rejection.is_some(), shown, words);
        }
        self.condition(Condition::Progressing, false, shown, words);
        self.condition(Condition::Ready, false, reason, "");
        if self.status.strategy.is_none() {
            self.condition(Condition::Accepted, false, reason, message);
        }
        Some(again)
    }

    fn settle_failure(&mut self, reason: Reason, message: &str) {
        self.steps.clear();
        self.status.phase = Phase::Failed;
        self.status.finished_at.get_or_insert(Time(self.world.now));
        // Nobody goes on from it, and it may be long.
        self.status.checkpoint = None;
        self.status.failure = Some(FailureStatus {
            reason: reason.label().to_owned(),
            message: message.to_owned(),
        });
        self.condition(Condition::Progressing, false, reason, message);
        self.condition(Condition::Ready, false, reason, message);
        self.note(true, reason, message);
        self.steps = clean_up(self.world);
    }
}

/// A clone that has come to its end: what it needed goes, what it gave stays.
fn finished(world: &World, status: &VolumeCloneStatus) -> Decision {
    let mut steps = Vec::new();
    let receipt = status
        .receipt
        .as_ref()
        .filter(|_| status.phase == Phase::Ready);
    // One that was made later by the same name holds something else.
    let target = world.target_claim.as_ref();
    let target = target.filter(|claim| is_filled(claim, status) && !is_of_later(claim, status));
    if let (Some(receipt), Some(claim)) = (receipt, target) {
        let attested = claim.annotations().get(RECEIPT_ANNOTATION);
        if attested != Some(&receipt.json) {
            steps.push(Step::Attest {
                claim: claim.name_any(),
                uid: claim.uid().unwrap_or_default(),
                receipt: receipt.json.clone(),
            });
        }
    }
    let cleaning = clean_up(world);
    let is_clean = cleaning.is_empty() && world.pods.is_empty();
    steps.extend(cleaning);
    let left = time_to_live(&world.clone, status, world.now);
    if is_clean && left.is_some_and(|left| left.is_zero()) {
        steps.push(Step::Expire);
    }
    Decision {
        steps,
        again: if is_clean { left } else { Some(LOOK_SOON) },
        ..Decision::default()
    }
}

/// Whether the claim was made after the clone had ended, where nothing better tells it from the one that was filled: an
/// older controller did not note which that was. Clocks may differ, so it counts nowhere else.
fn is_of_later(claim: &PersistentVolumeClaim, status: &VolumeCloneStatus) -> bool {
    let is_known = status.prime.is_some() || status.filled_uid.is_some();
    let times = claim.creation_timestamp().zip(status.finished_at.as_ref());
    !is_known && times.is_some_and(|(made_at, ended_at)| made_at > *ended_at)
}

/// How long a finished clone still stays, if not for ever.
fn time_to_live(
    clone: &VolumeClone,
    status: &VolumeCloneStatus,
    now: Timestamp,
) -> Option<Duration> {
    let live = SignedDuration::from_secs(clone.spec.ttl_seconds_after_finished?);
    let finished_at = status.finished_at.as_ref()?.0;
    let left = live.checked_sub(now.duration_since(finished_at))?;
    Some(Duration::try_from(left).unwrap_or_default())
}

/// Removes what was made for the clone, but no target claim.
fn clean_up(world: &World) -> Vec<Step> {
    let pods = world.pods.iter();
    let staying = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let mut steps: Vec<_> = staying.map(|pod| Step::Delete(pod.into())).collect();
    let others = world.belongings.iter();
    let doomed = others.filter(|other| !other.is_deleting && !is_target_claim(world, other));
    steps.extend(doomed.map(|belonging| Step::Delete(belonging.into())));
    steps
}

/// The object is to be deleted: all that was made for it goes first, also the target claim of a
/// template if it holds no complete clone. It must never be taken for one.
fn tear_down(world: &World) -> Decision {
    let mut steps = clean_up(world);
    let status = world.clone.status.as_ref();
    let is_complete = status.is_some_and(|status| is_complete(world, status));
    let unproven = world
        .belongings
        .iter()
        .filter(|other| is_target_claim(world, other));
    let unproven: Vec<_> = unproven.filter(|_| !is_complete).collect();
    let staying = unproven.iter().filter(|claim| !claim.is_deleting);
    let target = world.target_claim.as_ref();
    // One that was listed and could not be looked at may hold a complete clone: the next look tells.
    steps.extend(staying.filter_map(|claim| {
        let seen = target.filter(|seen| seen.uid().as_ref() == Some(&claim.uid))?;
        // One that has no volume goes without one: a backend may make it just now.
        let version = seen.resource_version();
        Some(Step::Delete(Doomed {
            version: version.filter(|_| !claims::is_bound(seen)),
            ..Doomed::from(*claim)
        }))
    }));
    let others = world.belongings.iter();
    let is_empty = world.pods.is_empty()
        && unproven.is_empty()
        && others
            .into_iter()
            .all(|other| is_target_claim(world, other));
    if is_empty {
        steps.push(Step::RemoveFinalizer);
    }
    Decision {
        steps,
        again: Some(LOOK_SOON),
        ..Decision::default()
    }
}

/// Whether the target claim holds a complete clone.
fn is_complete(world: &World, status: &VolumeCloneStatus) -> bool {
    match &status.prime {
        _ if status.phase == Phase::Ready => true,
        // Filled in its place; it may be the target's already.
        Some(prime) => world.target_claim.as_ref().is_some_and(|target| {
            let spec = target.spec.as_ref();
            let named = spec.and_then(|spec| spec.volume_name.as_ref());
            let volume = world.filled_volume.as_ref();
            // The name is written into the claim before the volume is the claim's.
            let is_bound = claims::is_bound(target) && named == prime.volume.as_ref();
            let is_given = volume.is_some_and(|volume| prime::is_for(volume, target));
            prime.volume.is_some() && (is_bound || is_given)
        }),
        None => status.receipt.is_some() || is_cloned(world, status),
    }
}

/// Whether the backend has filled the target claim, seen or not: a pod may use it since.
fn is_cloned(world: &World, status: &VolumeCloneStatus) -> bool {
    let (Some(target), Some(volume)) = (&world.target_claim, &world.filled_volume) else {
        return false;
    };
    prime::made_for(target) != Strategy::HostAssisted
        && status.filled_uid.is_none()
        && backend::is_volume_for(volume, target, None)
}

/// Whether `belonging` is the claim that the clone writes.
fn is_target_claim(world: &World, belonging: &Belonging) -> bool {
    belonging.kind == Kind::Claim
        && belonging.namespace == world.clone.target_namespace()
        && belonging.name == world.clone.target_claim()
}
