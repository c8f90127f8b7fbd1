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

use k8s_openapi::api::core::v1::Pod;
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
mod backend;
mod choose;
mod prime;
mod status;
mod template;
#[cfg(test)]
mod tests;

pub(crate) use self::agents::pinned_nodes;
use self::choose::choose;
pub(crate) use self::choose::storage_class;
use self::status::{Condition, set_condition};

/// What should happen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The status as it should be; absent where it is so. It is written before the steps.
    pub status: Option<Box<VolumeCloneStatus>>,
    /// What to do, in this order. A step that fails keeps the later ones from being taken.
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
    /// What is made or changed, where the API server may well refuse it: a quota, a policy, a webhook.
    pub(crate) fn makes(&self) -> Option<String> {
        match self {
            Self::Apply(object) => Some(object.describe()),
            Self::Mint => Some("the credentials of both agents".to_owned()),
            Self::Rebind(Rebinding { volume, claim, .. }) => {
                Some(format!("volume {volume} for claim {claim}"))
            }
            _ => None,
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
}

impl From<&Belonging> for Doomed {
    fn from(belonging: &Belonging) -> Self {
        Self {
            kind: belonging.kind,
            namespace: belonging.namespace.clone(),
            name: belonging.name.clone(),
            uid: belonging.uid.clone(),
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
        return Decision {
            steps: vec![Step::AddFinalizer],
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
        let prime = self.status.prime.as_ref();
        let is_proven = self.status.receipt.is_some();
        let prime_waits = prime.is_some();
        let is_cloned = prime.is_some_and(|prime| prime.volume.is_some());
        // What is complete is not thrown away because its hand-over takes long, or nobody looked in time.
        if !is_proven && !is_cloned {
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
        if is_proven {
            return self.hand_over(Reason::Proven);
        }
        if is_cloned {
            return self.hand_over(Reason::ClonedByBackend);
        }
        let strategy = match self.status.strategy {
            Some(strategy) => strategy,
            None => self.accept()?,
        };
        match strategy {
            Strategy::HostAssisted => self.host_assisted(),
            Strategy::CsiClone => self.csi_clone(),
            Strategy::Snapshot => self.restore_snapshot(),
        }
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
            format!("{:?}{is_chosen}: {}", way.strategy, way.message)
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
        match self.rejection() {
            Some((reason, words)) => {
                self.status.phase = Phase::Pending;
                self.condition(Condition::Progressing, false, reason, &words);
            }
            None => self.condition(Condition::Progressing, true, going.reason, &going.message),
        }
        self.condition(Condition::Ready, false, going.reason, "");
        Some(going.again)
    }

    /// What was refused stays to be read until it is no more refused.
    fn rejection(&self) -> Option<(Reason, String)> {
        let rejection = self.world.rejection.as_ref()?;
        self.steps.iter().find_map(Step::makes)?;
        let reason = if rejection.message.contains("exceeded quota") {
            Reason::QuotaExceeded
        } else {
            Reason::Rejected
        };
        Some((reason, format!("{}: {}", rejection.what, rejection.message)))
    }

    fn settle_hold(&mut self, reason: Reason, message: &str, again: Duration) -> Option<Duration> {
        self.status.phase = match reason {
            Reason::Suspended => Phase::Suspended,
            _ => Phase::Pending,
        };
        match self.rejection() {
            Some((reason, words)) => {
                self.condition(Condition::Progressing, false, reason, &words);
            }
            None => self.condition(Condition::Progressing, false, reason, message),
        }
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
    let ended_at = status.finished_at.as_ref();
    let target = world.target_claim.as_ref().filter(|claim| {
        let made_at = claim.creation_timestamp();
        made_at.is_none_or(|made_at| ended_at.is_none_or(|ended_at| made_at <= *ended_at))
    });
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
    steps.extend(staying.map(|claim| Step::Delete((*claim).into())));
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
        None => status.receipt.is_some(),
    }
}

/// Whether `belonging` is the claim that the clone writes.
fn is_target_claim(world: &World, belonging: &Belonging) -> bool {
    belonging.kind == Kind::Claim
        && belonging.namespace == world.clone.target_namespace()
        && belonging.name == world.clone.target_claim()
}
