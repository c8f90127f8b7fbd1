//! How long an agent keeps trying: until a deadline, and as long as something becomes durable.
//!
//! Lost connections, restarted peers and full queues are waited out; what bounds the waiting is
//! lack of progress, not a total timeout that a large volume would break.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use volferry_protocol::failure::{Failure, FailureCode};

use crate::progress::Progress;

/// Between two looks at the progress.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// When an agent gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatienceLimits {
    /// Time since the agent started, whatever it has achieved; `None` for no limit.
    pub deadline: Option<Duration>,
    /// Time without durable progress, counted from the first session on; `None` for no limit.
    pub stall_timeout: Option<Duration>,
}

impl Default for PatienceLimits {
    /// Ten minutes without progress: longer than a node takes to come back or a pod to move, and
    /// short enough to be noticed the same night.
    fn default() -> Self {
        Self {
            deadline: None,
            stall_timeout: Some(Duration::from_secs(600)),
        }
    }
}

/// Watches the limits of one agent.
#[derive(Clone, Debug)]
pub struct Patience {
    limits: PatienceLimits,
    started_at: Instant,
    progress: Arc<Progress>,
    trouble: Arc<Mutex<Trouble>>,
}

/// What kept the clone from going on last.
#[derive(Debug, Default)]
struct Trouble {
    /// Why the last session was lost.
    session: Option<String>,
    /// Why there is no other since.
    dial: Option<String>,
}

impl Patience {
    /// Patience with an agent that starts now.
    #[must_use]
    pub fn new(limits: PatienceLimits, progress: Arc<Progress>) -> Self {
        Self {
            limits,
            started_at: Instant::now(),
            progress,
            trouble: Arc::default(),
        }
    }

    /// How long the agent has run.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started_at.elapsed()
    }

    /// A session was lost for this reason; there may be another.
    pub fn note(&self, failure: &Failure) {
        *self.trouble() = Trouble {
            session: Some(failure.text.clone()),
            dial: None,
        };
    }

    /// No session came about, for this reason; there may be one yet. Says whether that is news.
    pub fn note_dial(&self, failure: &Failure) -> bool {
        let before = self.trouble().dial.replace(failure.text.clone());
        before.as_ref() != Some(&failure.text)
    }

    /// `failure`, with the reason why the session before it was lost, and why none came about since.
    #[must_use]
    pub fn explain(&self, failure: &Failure) -> Failure {
        let Trouble { session, dial } = &*self.trouble();
        let mut text = failure.text.clone();
        if let Some(trouble) = session {
            text = format!("{text}. The last session ended so: {trouble}");
        }
        if let Some(trouble) = dial.as_ref().filter(|trouble| **trouble != failure.text) {
            text = format!("{text}. No other came about: {trouble}");
        }
        Failure::new(failure.code, text)
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is at its end, and says why.
    pub async fn exhausted(&self) -> Failure {
        loop {
            if let Some(failure) = self.check() {
                return self.explain(&failure);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    fn check(&self) -> Option<Failure> {
        let text = |what: &str, limit: Duration, remedy: &str| {
            format!(
                "{what} for {} s; {remedy}. What is durable stays, and a later attempt goes on from \
                 there if the target keeps a journal (--state-dir)",
                limit.as_secs_f64()
            )
        };
        if let Some(deadline) = self.limits.deadline
            && self.started_at.elapsed() >= deadline
        {
            let remedy = "give it a later --deadline";
            let text = text("the clone went on", deadline, remedy);
            return Some(Failure::new(FailureCode::Deadline, text));
        }
        let stall_timeout = self.limits.stall_timeout?;
        if self.progress.stalled_for()? < stall_timeout {
            return None;
        }
        let remedy = "see the peer's log and the network for the cause, or give it a longer \
                      --stall-timeout";
        let text = text("nothing became durable", stall_timeout, remedy);
        Some(Failure::new(FailureCode::Stalled, text))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::progress::End;

    #[tokio::test]
    async fn patience_ends_with_progress_and_not_before_the_ends_have_met() {
        let progress = Arc::new(Progress::new(End::Source, Uuid::nil()));
        let limits = PatienceLimits {
            deadline: None,
            stall_timeout: Some(Duration::from_millis(300)),
        };
        let patience = Patience::new(limits, Arc::clone(&progress));
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(patience.check(), None, "nothing has begun");
        progress.set_volume(100, 0);
        std::thread::sleep(Duration::from_millis(400));
        let grown_at = Instant::now();
        progress.set_durable(1);
        let checked = patience.check();
        // On a machine that was busy meanwhile, the time may be over again.
        if grown_at.elapsed() < Duration::from_millis(300) {
            assert_eq!(checked, None, "it went on meanwhile");
        }
        progress.set_volume(100, 1);
        progress.set_durable(1);
        let failure = patience.exhausted().await;
        assert_eq!(
            failure.code,
            FailureCode::Stalled,
            "a new session is no progress"
        );
    }

    #[test]
    fn both_are_told_why_a_session_was_lost_and_why_there_is_no_other() {
        let progress = Arc::new(Progress::new(End::Source, Uuid::nil()));
        let patience = Patience::new(PatienceLimits::default(), progress);
        let failure = |text: &str| Failure::new(FailureCode::Connect, text);
        let explained = || patience.explain(&failure("refused")).text;
        assert!(patience.note_dial(&failure("refused")));
        assert!(!patience.note_dial(&failure("refused")));
        assert_eq!(explained(), "refused");
        patience.note(&failure("reset"));
        assert_eq!(explained(), "refused. The last session ended so: reset");
        assert!(patience.note_dial(&failure("silent")));
        assert_eq!(
            explained(),
            "refused. The last session ended so: reset. No other came about: silent"
        );
    }

    #[tokio::test]
    async fn a_deadline_does_not_ask_for_progress() {
        let progress = Arc::new(Progress::new(End::Source, Uuid::nil()));
        let limits = PatienceLimits {
            deadline: Some(Duration::from_millis(1)),
            ..PatienceLimits::default()
        };
        let failure = Patience::new(limits, progress).exhausted().await;
        assert_eq!(failure.code, FailureCode::Deadline);
    }
}
