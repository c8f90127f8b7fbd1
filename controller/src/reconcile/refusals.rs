//! What the API server refuses: it is told, in the status or by an Event, and asked for again ever more rarely.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{Context, ERROR_PAUSE_MAX, Memory, pause};
use crate::api::VolumeClone;
use crate::cluster::{ClusterError, Expected};
use crate::decide::{Note, Step};
use crate::observer::Observe;
use crate::reason::Reason;
use crate::world::Rejection;

/// A step that the API server refused.
#[derive(Debug)]
pub(super) struct Refused {
    /// The API's own words, of the last time.
    message: String,
    /// Whether something was to be made, which the status tells.
    is_made: bool,
    /// How often it was asked for again.
    again: u32,
    /// When it is asked for again.
    ask_at: Instant,
    /// When an Event told it last, if no status does.
    told_at: Option<Instant>,
}

/// How long an Event counts as read: Kubernetes forgets it after an hour.
const TELL_EVERY: Duration = Duration::from_secs(1800);

impl Refused {
    /// How long it is not asked for again.
    fn left(&self) -> Option<Duration> {
        let left = self.ask_at.saturating_duration_since(Instant::now());
        Some(left).filter(|left| !left.is_zero())
    }

    /// Whether the next refusal is not the first: a clone that queues meanwhile does not ask in time.
    fn still_counts(&self) -> bool {
        Instant::now().saturating_duration_since(self.ask_at) < ERROR_PAUSE_MAX
    }
}

impl<O: Observe> Context<O> {
    /// Takes a step, unless it was refused just now. Of one that is refused, how long to wait.
    pub(super) async fn take(
        &self,
        clone: &VolumeClone,
        step: &Step,
    ) -> Result<Option<Duration>, ClusterError> {
        let what = step.what();
        // What wakes a clone, its own status among it, is no reason to ask again.
        if let Some(left) = self.memory(clone, |memory| memory.refused.get(&what)?.left()) {
            return Ok(Some(left));
        }
        let Err(error) = self.cluster.take(clone, step).await else {
            self.memory(clone, |memory| {
                memory.refused.remove(&what);
                memory.expected.extend(Expected::of(clone, step));
                memory.acted_at = Some(Instant::now());
            });
            return Ok(None);
        };
        let Some(message) = error.refusal() else {
            return Err(error);
        };
        tracing::warn!(clone = clone.uid(), %error, "refused, and will be tried again");
        Ok(Some(self.refused(clone, step, what, message).await))
    }

    /// Keeps what was refused. The first time it is told at once, and now and then while it stays refused.
    async fn refused(
        &self,
        clone: &VolumeClone,
        step: &Step,
        what: String,
        message: &str,
    ) -> Duration {
        let is_made = step.makes();
        let note = Note {
            is_warning: true,
            reason: Reason::Rejected,
            message: format!("{what}: {message}"),
        };
        let (again, tells) = self.memory(clone, |memory| {
            if is_made {
                self.set_admitted(memory, false);
            }
            // Words may differ each time, by a number of the request or the use of a quota.
            let before = memory.refused.get(&what);
            let again = before.map(|before| before.again.saturating_add(1));
            let told_at = before.and_then(|before| before.told_at);
            let tells = !is_made && told_at.is_none_or(|at| at.elapsed() >= TELL_EVERY);
            let refused = Refused {
                message: message.to_owned(),
                is_made,
                again: again.unwrap_or(0),
                ask_at: Instant::now() + pause(again.unwrap_or(0)),
                told_at: tells.then(Instant::now).or(told_at),
            };
            memory.refused.insert(what, refused);
            (again, tells)
        });
        if tells {
            self.cluster.publish_refusal(clone, step, &note).await;
        }
        match again {
            // The status tells it.
            None if is_made => Duration::ZERO,
            again => pause(again.unwrap_or(0)),
        }
    }
}

impl Memory {
    /// What was refused and should have been made.
    pub(super) fn rejections(&self) -> Vec<Rejection> {
        let refused = self.refused.iter();
        let refused = refused.filter(|(_, refused)| refused.is_made);
        let rejections = refused.map(|(what, refused)| Rejection {
            what: what.clone(),
            message: refused.message.clone(),
        });
        rejections.collect()
    }

    /// Whether any of these was refused before.
    pub(super) fn was_refused(&self, steps: &[Step]) -> bool {
        let mut steps = steps.iter();
        steps.any(|step| self.refused.contains_key(&step.what()))
    }

    /// Whether any of these makes something, and was refused just now.
    pub(super) fn waits_to_ask(&self, steps: &[Step]) -> bool {
        let mut made = steps.iter().filter(|step| step.makes());
        made.any(|step| {
            let refused = self.refused.get(&step.what());
            refused.is_some_and(|refused| refused.left().is_some())
        })
    }

    /// Forgets refusals of long ago, but of these steps.
    pub(super) fn forget_refusals(&mut self, steps: &[Step]) {
        let steps: BTreeSet<_> = steps.iter().map(Step::what).collect();
        self.refused
            .retain(|what, refused| steps.contains(what) || refused.still_counts());
    }
}
