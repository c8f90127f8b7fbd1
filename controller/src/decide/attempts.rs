//! How agents fail: for good, too often, or so that another takes their place.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::agents::hold_soon;
use super::{Planner, Step, Stop};
use crate::agent_pod::{Ended, Seen, State};
use crate::api::AgentAttempts;
use crate::names::End;
use crate::reason::Reason;

/// The pause before a pod is replaced after its first failure; it doubles with each.
const BACKOFF_MIN: Duration = Duration::from_secs(5);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// An agent ends so that has waited in vain, or met a stranger at its peer's address. Whether its peer
/// comes back it can't know: that takes longer where a node was lost, and another attempt goes on from
/// what is durable. Its credentials are minted here: that they don't fit is nobody's fault for good.
const TRIED_AGAIN: [&str; 2] = ["stalled", "identity"];
/// An agent ends so that could not keep all of a tree.
const UNFAITHFUL: &str = "fidelity";
/// An agent ends so whose volume is not free, also since it holds something.
const HOLDS_SOMETHING: &str = "target_in_use";
/// How long a target agent may run on when its source has ended well. It waits for a minute where it
/// can't know that the source has heard of the receipt.
const UNHEARD_MAX: Duration = Duration::from_secs(90);

impl Planner<'_> {
    pub(super) fn attempts(&mut self, end: End) -> &mut AgentAttempts {
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
    pub(super) fn judge(&mut self, end: End, seen: &Seen) -> Result<(), Stop> {
        if let Some(Ended::Failed {
            code,
            is_retryable: false,
            text,
        }) = &seen.last_end
            && !TRIED_AGAIN.contains(&code.as_str())
        {
            // The agent speaks of its flags.
            let hint = match code.as_str() {
                UNFAITHFUL => "; here that is spec.accept",
                HOLDS_SOMETHING if text.contains("overwrit") => {
                    "; here that is spec.target.overwrite"
                }
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
    pub(super) fn check_backoff(&mut self, end: End) -> Result<(), Stop> {
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
}

/// Whether the source ended well and left a target that waits for it: the target was lost before it
/// showed its receipt and has begun anew, or the source's word was not to be trusted.
pub(super) fn is_forsaken(source: &Seen, target: &Seen, now: Timestamp) -> bool {
    let is_waiting = matches!(target.state, State::Running { is_ready: true, .. });
    let since = source.ended_at.map(|at| now.duration_since(at));
    let since = since.and_then(|since| Duration::try_from(since).ok());
    // It may have ended as well, which its node will tell when it is heard of again.
    source.state == State::Succeeded
        && is_waiting
        && !target.is_cut_off
        && since.is_some_and(|it| it > UNHEARD_MAX)
}
