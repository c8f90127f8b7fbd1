//! The clone by two agents: credentials, policies and the target's pod, then the source's, progress,
//! and the receipt.
//!
//! The source pod dials the target pod's address, so it comes second, and goes when the target moves.
//! Only the target's pod holds what is durable: its journal outlives its container, the checkpoint in
//! the status outlives the pod.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use volferry_protocol::receipt::{Receipt, Verified};
use volferry_protocol::waits::Limited;

use super::status::{rate, whole};
use super::{Going, LOOK_AGAIN, LOOK_SOON, Planner, Step, Stop};
use crate::agent_pod::{Ended, Seen, State};
use crate::api::{AgentAttempts, InUsePolicy, Phase, ReceiptStatus, Strategy, Verify};
use crate::claims::{self, VolumeMode};
use crate::credentials;
use crate::names::{End, SELECTED_NODE_ANNOTATION, TARGET_ANNOTATION, name};
use crate::objects::{self, EndPlan, Object, PodPlan, View};
use crate::reason::Reason;
use crate::world::{ClaimUser, Kind, Surroundings, World};

/// What goes on until both agents run. Always the same words: each change is a write.
const STARTING: &str = "the agents' pods start";
/// How long a pod may take to start before that is told: volumes are attached and images pulled meanwhile.
const START_MAX: SignedDuration = SignedDuration::from_secs(60);
/// How often a target agent is asked for its progress.
pub(super) const POLL_EVERY: Duration = Duration::from_secs(5);
/// The pause before a pod is replaced after its first failure; it doubles with each.
const BACKOFF_MIN: Duration = Duration::from_secs(5);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// An agent ends so that has waited in vain. Whether its peer comes back it can't know: that takes longer
/// where a node was lost, and another attempt goes on from what is durable.
const STALLED: &str = "stalled";
/// An agent ends so that could not keep all of a tree.
const UNFAITHFUL: &str = "fidelity";

/// How long a target agent may run on when its source has ended well. It waits for a minute where it
/// can't know that the source has heard of the receipt.
const UNHEARD_MAX: Duration = Duration::from_secs(90);

impl Planner<'_> {
    /// Keeps the receipt that the target's pod shows, and says whether it is a new one. The target has it only
    /// when all is durable and both digests agree. The source shows the same one, but whoever may make pods
    /// in its namespace can have it show any.
    pub(super) fn take_proof(&mut self) -> Result<bool, Stop> {
        let is_by_agents = self.status.strategy == Some(Strategy::HostAssisted);
        if self.status.receipt.is_some() || !is_by_agents {
            return Ok(false);
        }
        let target = self.world.pod(End::Target).map(Seen::of);
        let Some(Ended::Proven(receipt, json)) = target.and_then(|seen| seen.last_end) else {
            return Ok(false);
        };
        self.check_receipt(&receipt)?;
        self.prove(&receipt, &json);
        Ok(true)
    }

    pub(super) fn host_assisted(&mut self) -> Result<Going, Stop> {
        let target = self.world.pod(End::Target).map(Seen::of);
        let mut source = self.world.pod(End::Source).map(Seen::of);
        // Without a receipt nothing is proven, whatever an exit code says.
        let is_over = |seen: &Option<Seen>| match seen {
            Some(seen) => seen.state == State::Succeeded,
            None => true,
        };
        if let (true, true, Some(seen)) = (is_over(&target), is_over(&source), target.as_ref()) {
            let words = seen.last_end.as_ref().map_or("nothing", Ended::words);
            let message = format!("the target agent ended without a receipt; it left: {words}");
            return Err(Stop::fail(Reason::AgentFailed, message));
        }
        if let (Some(source), Some(target)) = (&mut source, &target)
            && is_forsaken(source, target, self.world.now)
        {
            source.state = State::Failed {
                message: "it ended well, and the target agent runs on".to_owned(),
            };
        }
        for (end, seen) in [(End::Target, &target), (End::Source, &source)] {
            self.attempts(end).node = seen.as_ref().and_then(|seen| seen.node.clone());
            if let Some(seen) = seen {
                self.judge(end, seen)?;
            }
        }
        self.check_place()?;
        // Also while the target waits: it must not start with what has ended meanwhile.
        if target.is_some() && credentials::should_renew(self.world) {
            self.steps.push(Step::Mint);
        }
        let address = match target.map(|seen| seen.state) {
            None => {
                self.check_backoff(End::Target)?;
                return self.make_target();
            }
            Some(State::Leaving) => return Err(leaving(End::Target)),
            Some(State::Waiting { reason, message }) => {
                return self.waiting(End::Target, reason, &message);
            }
            Some(State::Running {
                address: Some(address),
                is_ready: true,
            }) => address,
            Some(_) => return Ok(preparing(STARTING)),
        };
        let dialed = self.world.pod(End::Source).map(|pod| dials(pod, address));
        match (source.map(|seen| seen.state), dialed) {
            (None, _) => {
                self.check_backoff(End::Source)?;
                self.make_source(address)
            }
            (Some(State::Leaving), _) => Err(leaving(End::Source)),
            (Some(_), Some(false)) => {
                let pod = self.world.pod(End::Source);
                self.steps.extend(pod.map(|pod| Step::Delete(pod.into())));
                let message = "the target's pod was replaced, and the source's follows";
                Err(hold_soon(Reason::AgentReplaced, message))
            }
            (Some(State::Waiting { reason, message }), _) => {
                self.waiting(End::Source, reason, &message)
            }
            (Some(state), _) => {
                self.keep_progress(false);
                let is_read = matches!(state, State::Running { .. });
                match self.disturbance(is_read)? {
                    Some(disturbed) => Ok(disturbed),
                    None => Ok(self.travelling()),
                }
            }
        }
    }

    /// A pod that is not started yet is no reason to worry, unless something says why, or it takes long.
    fn waiting(&self, end: End, reason: Reason, message: &str) -> Result<Going, Stop> {
        let Some(pod) = self.world.pod(end) else {
            return Ok(preparing(STARTING));
        };
        let made_at = pod.creation_timestamp();
        let age = made_at.map(|at| self.world.now.duration_since(at.0));
        let is_late = age.is_some_and(|age| age >= START_MAX);
        let mut message = format!("the {} agent's pod: {message}", end.label());
        if reason == Reason::PodPending {
            if !is_late {
                return Ok(preparing(STARTING));
            }
            // Volumes, Secrets and networks that are missing are told in its Events alone.
            message += &format!(
                ", for more than a minute; `kubectl describe pod --namespace {} {}` may say why",
                pod.namespace().unwrap_or_default(),
                pod.name_any()
            );
        }
        Err(Stop::Hold {
            reason,
            message,
            again: LOOK_AGAIN,
        })
    }

    /// What both agents do while they run.
    fn travelling(&self) -> Going {
        let stage = self
            .world
            .report
            .as_ref()
            .map(|report| report.stage.as_str());
        let told = self.status.progress.as_ref();
        let stage = stage.or_else(|| told.map(|told| told.stage.as_str()));
        let (phase, reason, message) = match stage {
            Some("verify" | "done") => (
                Phase::Verifying,
                Reason::Verifying,
                "all was sent; the target is flushed, or read back",
            ),
            Some("transfer") => (Phase::Cloning, Reason::Transferring, "bytes travel"),
            _ => (Phase::Cloning, Reason::Transferring, "the agents meet"),
        };
        Going {
            phase,
            reason,
            message: message.to_owned(),
            again: POLL_EVERY,
        }
    }

    /// What is told while pods use what is cloned, which they were not to do. The agents go on: what a file
    /// was they notice, what a block was nobody does.
    fn disturbance(&mut self, is_read: bool) -> Result<Option<Going>, Stop> {
        let world = self.world;
        let users = &world.users;
        let (reason, message) = if self.status.prime.is_none() && !users.target.is_empty() {
            let message = format!(
                "{} while it is written, which spoils both what they write and the clone",
                self.used_target()
            );
            (Reason::TargetInUse, message)
        } else if is_read && !users.source.is_empty() {
            let message = self.used_source();
            match world.clone.spec.in_use_policy {
                InUsePolicy::Fail => return Err(Stop::fail(Reason::SourceInUse, message)),
                InUsePolicy::Allow => return Ok(None),
                InUsePolicy::Snapshot if !self.reads_claim() => return Ok(None),
                InUsePolicy::Wait | InUsePolicy::Snapshot => (),
            }
            let message =
                format!("{message} while it is read: of what they write the target may get a part");
            (Reason::SourceInUse, message)
        } else {
            return Ok(None);
        };
        let mut told = self.status.conditions.iter();
        let label = reason.label();
        if !told.any(|told| told.type_ == "Progressing" && told.reason == label) {
            self.note(true, reason, message.clone());
        }
        Ok(Some(Going {
            reason,
            message,
            ..self.travelling()
        }))
    }

    /// Whether the source agent reads the source claim, and nothing that was taken of it.
    fn reads_claim(&self) -> bool {
        let claim = self.world.clone.source_claim();
        let agent = self.world.pod(End::Source).and_then(ClaimUser::of);
        agent.is_some_and(|agent| {
            claim.is_some_and(|claim| agent.claims.iter().any(|it| it == claim))
        })
    }

    fn attempts(&mut self, end: End) -> &mut AgentAttempts {
        match end {
            End::Source => &mut self.status.attempts.source,
            End::Target => &mut self.status.attempts.target,
        }
    }

    /// Failures of both agents, those of their present pods too.
    fn failures(&self) -> i32 {
        End::ALL.into_iter().fold(0, |sum, end| {
            let attempts = match end {
                End::Source => &self.status.attempts.source,
                End::Target => &self.status.attempts.target,
            };
            let present = self.world.pod(end).map(Seen::of);
            let present = present.filter(|seen| attempts.replaced_uid.as_ref() != Some(&seen.uid));
            let restarts = present.map_or(0, |seen| {
                seen.restarts
                    .saturating_add(i32::from(matches!(seen.state, State::Failed { .. })))
            });
            sum.saturating_add(attempts.failures)
                .saturating_add(restarts)
        })
    }

    /// Looks whether the agent at `end` has failed: for good, too often, or so that its pod has to be
    /// replaced.
    fn judge(&mut self, end: End, seen: &Seen) -> Result<(), Stop> {
        if let Some(Ended::Failed {
            code,
            is_retryable: false,
            text,
        }) = &seen.last_end
            && code != STALLED
        {
            // The agent speaks of its flags.
            let hint = match code.as_str() {
                UNFAITHFUL => "; here that is spec.accept",
                _ => "",
            };
            let message = format!("the {} agent: {text} ({code}){hint}", end.label());
            return Err(Stop::fail(Reason::AgentFailed, message));
        }
        let limit = self.world.clone.spec.backoff_limit;
        let words = match (&seen.state, &seen.last_end) {
            (State::Failed { message }, _) => message.clone(),
            (_, Some(end)) => end.words().to_owned(),
            _ => String::new(),
        };
        if self.failures() > limit {
            let message = format!(
                "the agents failed {} times, backoffLimit is {limit}; the last time, the {} agent: \
                 {words}",
                self.failures(),
                end.label()
            );
            return Err(Stop::fail(Reason::BackoffLimitExceeded, message));
        }
        let State::Failed { .. } = &seen.state else {
            return Ok(());
        };
        let now = self.world.now;
        let attempts = self.attempts(end);
        if attempts.replaced_uid.as_ref() != Some(&seen.uid) {
            attempts.failures = attempts
                .failures
                .saturating_add(seen.restarts)
                .saturating_add(1);
            attempts.replaced_uid = Some(seen.uid.clone());
            attempts.failed_at = Some(Time(seen.ended_at.unwrap_or(now)));
            attempts.last_failure = Some(words.clone());
        }
        let message = format!("the {} agent's pod failed: {words}", end.label());
        self.note(true, Reason::AgentReplaced, message.clone());
        self.steps
            .extend(self.world.pod(end).map(|pod| Step::Delete(pod.into())));
        Err(hold_soon(Reason::AgentReplaced, &message))
    }

    /// Waits before a pod that failed gets a successor.
    fn check_backoff(&mut self, end: End) -> Result<(), Stop> {
        let now = self.world.now;
        let attempts = self.attempts(end);
        let Some(failed_at) = &attempts.failed_at else {
            return Ok(());
        };
        let doublings = u32::try_from(attempts.failures.saturating_sub(1)).unwrap_or(0);
        let factor = 2u32.saturating_pow(doublings.min(16));
        let pause = BACKOFF_MIN.saturating_mul(factor).min(BACKOFF_MAX);
        let passed = Duration::try_from(now.duration_since(failed_at.0)).unwrap_or_default();
        if passed >= pause {
            return Ok(());
        }
        let words = attempts.last_failure.as_deref().unwrap_or("it failed");
        Err(Stop::Hold {
            reason: Reason::AgentReplaced,
            message: format!(
                "the {} agent is started again; it ended so: {words}",
                end.label()
            ),
            again: pause.saturating_sub(passed).max(Duration::from_secs(1)),
        })
    }

    /// Makes all that the target agent needs, then its pod.
    fn make_target(&mut self) -> Result<Going, Stop> {
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
        let source = self.source_claim(around)?;
        let target = self.target_claim(&source)?;
        if self.status.prime.is_none() {
            self.check_target_use()?;
        }
        self.provide();
        let checkpoint = self.status.checkpoint.clone();
        if let Some(checkpoint) = &checkpoint {
            let map = objects::checkpoint(clone, checkpoint);
            self.apply(Object::ConfigMap(Box::new(map)));
        }
        let (_, view) = objects::views(mode(&source), mode(&target));
        let sizes = (claims::size_bytes(&source), claims::size_bytes(&target));
        let is_larger = matches!(sizes, (Some(source), Some(target)) if target > source);
        let is_new = clone.spec.target.claim_template.is_some() || self.status.prime.is_some();
        let plan = PodPlan {
            claim: target.name_any(),
            view,
            node: selected_node(&target),
            is_privileged: is_privileged(around, clone.target_namespace(), view),
            end: EndPlan::Target {
                has_checkpoint: checkpoint.is_some(),
                // What an earlier attempt of this clone left there is its own.
                may_overwrite: view == View::Directory
                    && (is_new || clone.spec.target.overwrite || self.has_written()),
                zero_tail: view == View::Device && is_larger,
            },
        };
        let pod = objects::pod(clone, &world.settings, &plan);
        self.apply(Object::Pod(Box::new(pod)));
        Ok(preparing(STARTING))
    }

    /// Whether an earlier target agent of this clone was let into its volume. Before the ends have met it
    /// may still refuse what it finds there.
    fn has_written(&self) -> bool {
        let progress = self.status.progress.as_ref();
        progress.is_some_and(|progress| progress.stage != "handshake")
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
    fn make_source(&mut self, address: IpAddr) -> Result<Going, Stop> {
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

    pub(super) fn apply(&mut self, object: Object) {
        self.steps.push(Step::Apply(object));
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

    fn used_target(&self) -> String {
        let users = names_of(&self.world.users.target);
        format!(
            "claim {} is used by {users}",
            self.world.clone.target_claim()
        )
    }

    fn used_source(&self) -> String {
        let claim = self.world.clone.source_claim().unwrap_or_default();
        let users = names_of(&self.world.users.source);
        format!("claim {claim} is used by {users}")
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

    /// Whether what the target shows proves this clone, and as much as was asked for.
    fn check_receipt(&self, receipt: &Receipt) -> Result<(), Stop> {
        let clone = &self.world.clone;
        let is_enough = match clone.spec.verify {
            Verify::None => true,
            Verify::Digest => receipt.verified != Verified::None,
            Verify::Readback => receipt.verified == Verified::Readback,
        };
        if is_enough && receipt.clone_id.to_string() == clone.uid() {
            return Ok(());
        }
        let message = format!(
            "the target agent's receipt is of clone {}, verified by {:?}; it should be of clone {}, by {:?}",
            receipt.clone_id,
            receipt.verified,
            clone.uid(),
            clone.spec.verify,
        );
        Err(Stop::fail(Reason::AgentFailed, message))
    }

    /// The clone is proven: the receipt is kept, the pods may go.
    fn prove(&mut self, receipt: &Receipt, json: &str) {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let verified = match receipt.verified {
            Verified::None => "none",
            Verified::Digest => "digest",
            Verified::Readback => "readback",
        };
        self.status.receipt = Some(ReceiptStatus {
            clone_id: receipt.clone_id.to_string(),
            digest: receipt.digest.to_string(),
            verified: verified.to_owned(),
            logical_bytes: number(receipt.logical_bytes),
            data_bytes: number(receipt.data_bytes),
            sent_bytes: number(receipt.sent_bytes),
            resent_bytes: number(receipt.resent_bytes),
            sessions: number(receipt.sessions),
            json: json.to_owned(),
        });
        self.status.checkpoint = None;
        let progress = self.status.progress.get_or_insert_default();
        progress.stage = "done".to_owned();
        progress.logical_bytes = number(receipt.logical_bytes);
        progress.durable_bytes = number(receipt.logical_bytes);
        progress.percent = "100%".to_owned();
        // Of the whole clone, since what the last look saw says little of a short one.
        progress.rate = rate(receipt.bytes_per_second);
        progress.bytes_per_second = whole(receipt.bytes_per_second);
        let limited = receipt.limit.unwrap_or(Limited::UNKNOWN);
        progress.limit = limited.limit.label().to_owned();
        progress.eta_seconds = None;
        progress.updated_at = Some(Time(self.world.now));
    }
}

fn mode(claim: &PersistentVolumeClaim) -> VolumeMode {
    claim
        .spec
        .as_ref()
        .map_or(VolumeMode::Filesystem, VolumeMode::of)
}

/// The nodes where the agents of a clone have to be, as far as that is known before they have pods.
pub(crate) fn pinned_nodes(world: &World) -> BTreeSet<String> {
    let around = world.surroundings.as_ref();
    let source = around.and_then(|around| attached_to(around.source_claim.as_ref()?, world));
    let target = world.target_claim.as_ref().and_then(selected_node);
    source.into_iter().chain(target).collect()
}

/// The node where the source claim is attached, if pods of one node only can use it.
fn attached_to(source: &PersistentVolumeClaim, world: &World) -> Option<String> {
    let users = &world.users;
    let mut users = users.source.iter().chain(&users.source_readers);
    let is_for_one = claims::is_for_one_node(source);
    users
        .find_map(|user| user.node.clone())
        .filter(|_| is_for_one)
}

/// Where the scheduler already wants a claim that has no volume yet.
pub(super) fn selected_node(claim: &PersistentVolumeClaim) -> Option<String> {
    let node = claim.annotations().get(SELECTED_NODE_ANNOTATION);
    node.filter(|_| !claims::is_bound(claim)).cloned()
}

/// Whether the source ended well and left a target that waits for it: the target was lost before it
/// showed its receipt and has begun anew, or the source's word was not to be trusted.
fn is_forsaken(source: &Seen, target: &Seen, now: Timestamp) -> bool {
    let is_waiting = matches!(target.state, State::Running { is_ready: true, .. });
    let since = source.ended_at.map(|at| now.duration_since(at));
    let since = since.and_then(|since| Duration::try_from(since).ok());
    source.state == State::Succeeded && is_waiting && since.is_some_and(|it| it > UNHEARD_MAX)
}

/// Whether an agent gets privileges: only for files, and only where an administrator lets it.
fn is_privileged(around: &Surroundings, namespace: &str, view: View) -> bool {
    view == View::Directory && around.privileged.get(namespace) == Some(&true)
}

/// Whether the source pod dials the target at `address`.
fn dials(pod: &Pod, address: IpAddr) -> bool {
    let dialed = pod.annotations().get(TARGET_ANNOTATION);
    dialed.is_some_and(|dialed| *dialed == address.to_string())
}

fn names_of(users: &[ClaimUser]) -> String {
    const SHOWN_MAX: usize = 5;
    let shown = users.iter().take(SHOWN_MAX);
    let names: Vec<_> = shown.map(|user| user.pod.as_str()).collect();
    let more = users.len().saturating_sub(SHOWN_MAX);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("pods {}{more}", names.join(", "))
}

pub(super) fn preparing(message: &str) -> Going {
    Going {
        phase: Phase::Preparing,
        reason: Reason::Preparing,
        message: message.to_owned(),
        again: LOOK_SOON,
    }
}

fn leaving(end: End) -> Stop {
    let message = format!(
        "the {} agent's last pod is not gone yet; if its node is lost, remove the node or the pod",
        end.label()
    );
    hold_soon(Reason::PodLeaving, &message)
}

pub(super) fn hold_soon(reason: Reason, message: &str) -> Stop {
    Stop::Hold {
        reason,
        message: message.to_owned(),
        again: LOOK_SOON,
    }
}
