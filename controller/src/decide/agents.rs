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
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt;

use super::attempts::is_forsaken;
use super::status::is_told;
use super::{Going, LOOK_AGAIN, LOOK_SOON, Planner, Step, Stop};
use crate::agent_pod::{Ended, Seen, State};
use crate::api::{InUsePolicy, Phase};
use crate::claims;
use crate::credentials;
use crate::names::{End, SELECTED_NODE_ANNOTATION, TARGET_ANNOTATION};
use crate::objects::{self, CLONE_PORT, Object};
use crate::reason::Reason;
use crate::world::{ClaimUser, World};

/// What goes on until both agents run. Always the same words: each change is a write.
pub(super) const STARTING: &str = "the agents' pods start";
/// How long a pod may take to start before that is told: volumes are attached and images pulled meanwhile.
const START_MAX: SignedDuration = SignedDuration::from_secs(60);
/// How long a target agent may go unheard before that is told: policies take their time to open the way.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often a target agent is asked for its progress.
pub(super) const POLL_EVERY: Duration = Duration::from_secs(5);

impl Planner<'_> {
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
            Some(State::Running { .. }) => {
                return self.waiting(End::Target, Reason::PodPending, "it runs and is not ready");
            }
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
                self.note_filled();
                self.keep_progress(false);
                let is_read = matches!(state, State::Running { .. });
                if let Some(disturbed) = self.disturbance(is_read)? {
                    return Ok(disturbed);
                }
                // A lost node is the reason of the other silence.
                let troubled = self.lost_node().or_else(|| self.silence(address));
                Ok(troubled.unwrap_or_else(|| self.travelling()))
            }
        }
    }

    /// A pod that is not started yet, or not ready, is no reason to worry, unless something says why, or it takes long.
    fn waiting(&self, end: End, reason: Reason, message: &str) -> Result<Going, Stop> {
        let Some(pod) = self.world.pod(end) else {
            return Ok(preparing(STARTING));
        };
        // One whose agent was started again, or was ready before, has that time once more.
        let made_at = pod.creation_timestamp().map(|at| at.0);
        let seen = Seen::of(pod);
        let not_ready_since = seen.runs_since.max(seen.turned_at);
        let since = seen.runs_since.and(not_ready_since).or(made_at);
        let age = since.map(|since| self.world.now.duration_since(since));
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
        Ok(Some(self.travelling_though(reason, message)))
    }

    /// What is told while the node of an agent does not answer. The agent may go on there, and be done before it does.
    fn lost_node(&mut self) -> Option<Going> {
        let (end, node) = End::ALL.into_iter().find_map(|end| {
            let seen = Seen::of(self.world.pod(end)?);
            seen.is_cut_off
                .then(|| (end, seen.node.unwrap_or_default()))
        })?;
        let message = format!(
            "node {node}, where the {} agent runs, does not answer, so what became of it is not known; the clone goes on \
             when the node is back; if it is lost, remove the node or the pod",
            end.label()
        );
        Some(self.travelling_though(Reason::NodeSilent, message))
    }

    /// What is told when the target agent can't be asked how far it is. The clone goes on; its end shows in
    /// the pods.
    fn silence(&mut self, address: IpAddr) -> Option<Going> {
        let world = self.world;
        let silence = world.silence.as_ref();
        let silence = silence.filter(|silence| silence.lasts >= SILENCE_MAX)?;
        let message = format!(
            "how far the clone is can't be told, and no checkpoint kept for another target pod: asking {}: \
             {}; let the pods of namespace {} reach it, by policies for their egress and past any proxy",
            objects::at_port(address, CLONE_PORT),
            silence.why,
            world.settings.namespace,
        );
        Some(self.travelling_though(Reason::ProgressUnknown, message))
    }

    /// The clone goes on, and somebody should look. The first time that is an Event too.
    fn travelling_though(&mut self, reason: Reason, message: String) -> Going {
        if !is_told(&self.status, reason) {
            self.note(true, reason, message.clone());
        }
        Going {
            reason,
            message,
            ..self.travelling()
        }
    }

    /// Whether the source agent reads the source claim, and nothing that was taken of it.
    fn reads_claim(&self) -> bool {
        let claim = self.world.clone.source_claim();
        let agent = self.world.pod(End::Source).and_then(ClaimUser::of);
        agent.is_some_and(|agent| {
            claim.is_some_and(|claim| agent.claims.iter().any(|it| it == claim))
        })
    }

    pub(super) fn apply(&mut self, object: Object) {
        self.steps.push(Step::Apply(object));
    }

    pub(super) fn used_target(&self) -> String {
        let users = names_of(&self.world.users.target);
        format!(
            "claim {} is used by {users}",
            self.world.clone.target_claim()
        )
    }

    pub(super) fn used_source(&self) -> String {
        let claim = self.world.clone.source_claim().unwrap_or_default();
        let users = names_of(&self.world.users.source);
        format!("claim {claim} is used by {users}")
    }
}

/// The nodes where the agents of a clone have to be, as far as that is known before they have pods.
pub(crate) fn pinned_nodes(world: &World) -> BTreeSet<String> {
    let around = world.surroundings.as_ref();
    let source = around.and_then(|around| attached_to(around.source_claim.as_ref()?, world));
    let target = world.target_claim.as_ref().and_then(selected_node);
    source.into_iter().chain(target).collect()
}

/// The node where the source claim is attached, if pods of one node only can use it.
pub(super) fn attached_to(source: &PersistentVolumeClaim, world: &World) -> Option<String> {
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
