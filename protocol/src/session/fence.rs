//! Who may write: one source at a time, and never again one that was shut out.
//!
//! A run of the source agent is known by its instance. While one holds the session, another is
//! turned away until the first is gone, unless it asks to take over; then the first is shut out for
//! good, so that an agent that was paused and goes on can't come back and write. A run that lost
//! its connection takes its own session over: the target may notice the loss later.

use std::collections::VecDeque;

use uuid::Uuid;

use crate::failure::{Failure, FailureCode};
use crate::message::Hello;

/// Runs that are remembered. Each was let in with this clone's own credentials; a clone that goes
/// through more has other troubles, and the oldest are not the ones that come back.
const KNOWN_MAX: usize = 4096;

/// Of these, runs that were shut out and are remembered across a restart of the target.
pub const SHUT_OUT_MAX: usize = 64;

/// What of a fence outlives a run of the target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The run that held the session last. One that takes over shuts it out, though it has not come
    /// back since.
    pub holder: Option<Uuid>,
    /// The runs that were shut out: those that were known last, at most [`SHUT_OUT_MAX`].
    pub shut_out: Vec<Uuid>,
}

/// Who holds the session, and who may not come back.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    epoch: u64,
    holder: Option<Holder>,
    /// Who was let in, the first one first.
    known: VecDeque<Known>,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    epoch: u64,
    instance: Uuid,
    /// Whether its session runs.
    is_there: bool,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    instance: Uuid,
    /// The last attempt that was let in.
    attempt: u32,
    is_shut_out: bool,
}

/// What becomes of a source that asks for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It has the session of this epoch. A session that runs has to end first.
    Granted(u64),
    /// Another run holds the session.
    Busy,
    /// It was shut out.
    Fenced,
}

impl Fence {
    /// A fence whose next session has an epoch above `epoch`, that of the last session that is
    /// known, and which goes on from what an earlier one has `remembered`.
    #[must_use]
    pub fn after(epoch: u64, remembered: &Remembered) -> Self {
        let Remembered { holder, shut_out } = remembered;
        let known = |instance: &Uuid, is_shut_out| Known {
            instance: *instance,
            attempt: 0,
            is_shut_out,
        };
        let shut_out = shut_out.iter().map(|instance| known(instance, true));
        let holder = holder.as_ref();
        Self {
            epoch,
            known: shut_out
                .chain(holder.map(|holder| known(holder, false)))
                .collect(),
            holder: holder.map(|instance| Holder {
                epoch,
                instance: *instance,
                is_there: false,
            }),
        }
    }

    /// What the journal keeps of it.
    #[must_use]
    pub fn remembered(&self) -> Remembered {
        let shut_out = self.known.iter().filter(|known| known.is_shut_out);
        let mut shut_out: Vec<_> = shut_out.map(|known| known.instance).collect();
        shut_out.drain(..shut_out.len().saturating_sub(SHUT_OUT_MAX));
        Remembered {
            holder: self.holder.map(|holder| holder.instance),
            shut_out,
        }
    }

    /// A source asks for a session.
    pub fn admit(&mut self, hello: &Hello) -> Admission {
        // A greeting that was held up on its way is no newer session, whoever came in between.
        let is_past = |known: &&mut Known| known.is_shut_out || hello.attempt <= known.attempt;
        if self.find(hello.instance).filter(is_past).is_some() {
            return Admission::Fenced;
        }
        if let Some(holder) = self
            .holder
            .filter(|holder| holder.instance != hello.instance)
        {
            if holder.is_there && !hello.take_over {
                return Admission::Busy;
            }
            if hello.take_over
                && let Some(before) = self.find(holder.instance)
            {
                before.is_shut_out = true;
            }
        }
        if let Some(known) = self.find(hello.instance) {
            known.attempt = hello.attempt;
        } else {
            if self.known.len() >= KNOWN_MAX {
                self.known.pop_front();
            }
            self.known.push_back(Known {
                instance: hello.instance,
                attempt: hello.attempt,
                is_shut_out: false,
            });
        }
        self.epoch = self.epoch.saturating_add(1);
        self.holder = Some(Holder {
            epoch: self.epoch,
            instance: hello.instance,
            is_there: true,
        });
        Admission::Granted(self.epoch)
    }

    /// A source asks for a session with a greeting that was checked. Gives the epoch.
    ///
    /// # Errors
    /// Why it is turned away.
    pub fn ask<T>(&mut self, hello: &Hello, checked: Result<T, Failure>) -> Result<u64, Failure> {
        // What can't be a session must not end one.
        checked?;
        match self.admit(hello) {
            Admission::Granted(epoch) => Ok(epoch),
            Admission::Busy => Err(Failure::new(
                FailureCode::Busy,
                "this target serves another session; --take-over ends that",
            )),
            Admission::Fenced => Err(fenced()),
        }
    }

    fn find(&mut self, instance: Uuid) -> Option<&mut Known> {
        let mut known = self.known.iter_mut();
        known.find(|known| known.instance == instance)
    }

    /// The session of `epoch` ended; whoever held it may come back. Nothing changes when a newer
    /// session was granted meanwhile, for which the older one had to end.
    pub fn release(&mut self, epoch: u64) {
        if let Some(holder) = self.holder.as_mut().filter(|holder| holder.epoch == epoch) {
            holder.is_there = false;
        }
    }

    /// The last epoch that was granted.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// What a source is told that was shut out.
#[must_use]
pub fn fenced() -> Failure {
    let text = "another run of the source agent took this clone over; end this one";
    Failure::new(FailureCode::Fenced, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::ChunkSize;

    fn hello(instance: u128, attempt: u32, take_over: bool) -> Hello {
        Hello {
            clone_id: Uuid::nil(),
            instance: Uuid::from_u128(instance),
            attempt,
            take_over,
            volume_size: 0,
            chunk_size: ChunkSize::MIN,
            streams: 1,
            streams_max: None,
            generation: String::new(),
            features: vec![],
            required_features: vec![],
            agent: String::new(),
            tree: None,
        }
    }

    #[test]
    fn of_two_sources_one_holds_the_session() {
        let mut fence = Fence::after(7, &Remembered::default());
        assert_eq!(fence.admit(&hello(1, 1, false)), Admission::Granted(8));
        assert_eq!(fence.admit(&hello(2, 1, false)), Admission::Busy);
        assert_eq!(
            fence.admit(&hello(1, 2, false)),
            Admission::Granted(9),
            "its own"
        );
        fence.release(8);
        assert_eq!(
            fence.admit(&hello(2, 1, false)),
            Admission::Busy,
            "an older session ended, the newer one runs"
        );
        fence.release(9);
        assert_eq!(fence.admit(&hello(2, 2, false)), Admission::Granted(10));
        assert_eq!(
            fence.admit(&hello(1, 3, false)),
            Admission::Busy,
            "it was not shut out"
        );
    }

    #[test]
    fn who_was_shut_out_stays_out() {
        let mut fence = Fence::default();
        assert_eq!(fence.admit(&hello(1, 1, true)), Admission::Granted(1));
        assert_eq!(fence.admit(&hello(2, 1, true)), Admission::Granted(2));
        assert_eq!(fence.admit(&hello(1, 2, true)), Admission::Fenced);
        fence.release(2);
        assert_eq!(fence.admit(&hello(1, 3, true)), Admission::Fenced);
        assert_eq!(fence.admit(&hello(2, 2, false)), Admission::Granted(3));
    }

    /// What a journal remembers of a fence keeps out whom that did, and nobody else.
    #[test]
    fn who_was_shut_out_stays_out_after_a_restart() {
        let mut fence = Fence::default();
        let last = SHUT_OUT_MAX as u128 + 3;
        for instance in 1..=last {
            let granted = fence.admit(&hello(instance, 1, true));
            assert!(matches!(granted, Admission::Granted(_)), "{instance}");
        }
        let remembered = fence.remembered();
        assert_eq!(remembered.shut_out.len(), SHUT_OUT_MAX);
        let mut again = Fence::after(fence.epoch(), &remembered);
        assert_eq!(again.remembered(), remembered);
        for instance in 3..last {
            let answer = again.admit(&hello(instance, 2, true));
            assert_eq!(answer, Admission::Fenced, "{instance}");
        }
        let epoch = fence.epoch() + 1;
        assert_eq!(
            again.admit(&hello(last, 2, false)),
            Admission::Granted(epoch)
        );
    }

    /// Whoever held the session before a restart, and has not come back since.
    #[test]
    fn who_takes_over_after_a_restart_shuts_out_who_held_the_session_before() {
        let mut fence = Fence::default();
        assert_eq!(fence.admit(&hello(1, 5, false)), Admission::Granted(1));
        let mut again = Fence::after(fence.epoch(), &fence.remembered());
        // Nobody is there, so nobody has to take over; then nobody is shut out.
        let mut waited = again.clone();
        assert_eq!(waited.admit(&hello(2, 1, false)), Admission::Granted(2));
        assert_eq!(waited.admit(&hello(1, 6, false)), Admission::Busy);
        waited.release(2);
        assert_eq!(waited.admit(&hello(1, 7, false)), Admission::Granted(3));

        assert_eq!(again.admit(&hello(2, 1, true)), Admission::Granted(2));
        assert_eq!(again.admit(&hello(1, 6, true)), Admission::Fenced);
        // And once more, whoever was restarted in between.
        let mut third = Fence::after(again.epoch(), &again.remembered());
        assert_eq!(third.admit(&hello(1, 7, true)), Admission::Fenced);
        assert_eq!(third.admit(&hello(2, 2, false)), Admission::Granted(3));
    }

    #[test]
    fn who_held_the_session_before_a_restart_goes_on() {
        let mut fence = Fence::default();
        assert_eq!(fence.admit(&hello(1, 5, true)), Admission::Granted(1));
        let mut again = Fence::after(fence.epoch(), &fence.remembered());
        assert_eq!(again.admit(&hello(1, 6, true)), Admission::Granted(2));
        assert!(again.remembered().shut_out.is_empty());
    }

    #[test]
    fn of_too_many_that_were_shut_out_the_oldest_is_forgotten() {
        let mut fence = Fence::default();
        let last = KNOWN_MAX as u128 + 1;
        for instance in (1..=last).rev() {
            let granted = fence.admit(&hello(instance, 1, true));
            assert!(matches!(granted, Admission::Granted(_)), "{instance}");
        }
        assert_eq!(fence.admit(&hello(2, 2, true)), Admission::Fenced);
        assert_eq!(fence.admit(&hello(last - 1, 2, true)), Admission::Fenced);
        assert!(matches!(
            fence.admit(&hello(last, 2, true)),
            Admission::Granted(_)
        ));
    }

    #[test]
    fn an_old_greeting_is_none_after_another_source_either() {
        let mut fence = Fence::default();
        assert_eq!(fence.admit(&hello(1, 2, true)), Admission::Granted(1));
        fence.release(1);
        assert_eq!(fence.admit(&hello(2, 1, false)), Admission::Granted(2));
        assert_eq!(fence.admit(&hello(1, 1, true)), Admission::Fenced);
        fence.release(2);
        assert_eq!(fence.admit(&hello(1, 1, false)), Admission::Fenced);
        assert_eq!(fence.admit(&hello(1, 3, false)), Admission::Granted(3));
    }

    #[test]
    fn an_old_greeting_is_no_new_session() {
        let mut fence = Fence::default();
        assert_eq!(fence.admit(&hello(1, 2, false)), Admission::Granted(1));
        assert_eq!(fence.admit(&hello(1, 1, false)), Admission::Fenced);
        assert_eq!(fence.admit(&hello(1, 2, false)), Admission::Fenced);
    }
}
