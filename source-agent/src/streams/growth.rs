//! Whether one more data connection would help: a decision without I/O, on a clock of its caller's.
//!
//! One TCP connection gets through a long or lossy path what its window and its losses let, and not
//! what the path has. So where the network is what a clone waits for, and processors are idle, some
//! connections are added, and what they bring is measured. They are followed by others as long as
//! that is a fair part of what they could bring. The first that bring less are the last.

use std::time::{Duration, Instant};

use volferry_protocol::waits::{Limit, Waits, limit_at_source, limit_of_both};

/// After connections were added, and when a round begins: sockets fill their buffers, and windows open.
const SETTLE: Duration = Duration::from_secs(2);

/// What is measured at once. A lossy path is unsteady for less.
const WINDOW: Duration = Duration::from_secs(3);

/// The part of the time that the network has to be what limits.
const SHARE_LEAST: f64 = 0.5;

/// The part of the processors that this agent may use or wait for at most. On a fast network it waits for its
/// peer too, but wants more of them: encryption counts as network, and no further connection makes it
/// cheaper. On a machine of two cores with the peer beside it an agent uses almost half.
const BUSY_MOST: f64 = 0.25;

/// The part of the gain that connections would bring if each brought as much as those before, which
/// they have to bring.
const GAIN_LEAST: f64 = 0.25;

/// What can be seen at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// Bytes sent so far.
    pub(super) wire_bytes: u64,
    /// Where the time of this end went so far.
    pub(super) source: Waits,
    /// The same of the target, as it told last.
    pub(super) target: Option<Waits>,
    /// Time so far for which this agent's threads had a processor, or waited for one.
    pub(super) cpu: Duration,
}

/// Decides how many data connections a session has.
#[derive(Debug)]
pub(super) struct Growth {
    streams: u16,
    most: u16,
    processors: f64,
    step: Step,
    /// What connections that were added have to make of the rate, in bytes a second.
    due: Option<f64>,
}

#[derive(Debug)]
enum Step {
    /// No round runs, or connections are being opened.
    Paused,
    /// Nothing is measured until then.
    Settling(Instant),
    /// Since when, what was seen then, and when to look again.
    Measuring(Instant, Look, Instant),
    /// No other connection helps.
    Done,
}

impl Growth {
    /// For a session that begins with so many and may have so many, on so many processors.
    pub(super) fn new(streams: u16, most: u16, processors: usize) -> Self {
        Self {
            streams,
            most,
            processors: processors.max(1) as f64,
            step: if streams < most {
                Step::Paused
            } else {
                Step::Done
            },
            due: None,
        }
    }

    /// A round begins with so many connections: gives how many it takes to have those of the last one.
    pub(super) fn begin_round(&mut self, now: Instant, streams: u16) -> u16 {
        let missing = self.streams.saturating_sub(streams);
        self.streams = streams;
        if missing == 0 {
            self.settle(now);
        } else {
            self.pause();
        }
        missing
    }

    /// The round has ended, or connections are being opened.
    pub(super) fn pause(&mut self) {
        if !matches!(self.step, Step::Done) {
            self.step = Step::Paused;
        }
    }

    /// One more was opened.
    pub(super) fn opened(&mut self, now: Instant) {
        self.streams = self.streams.saturating_add(1);
        self.settle(now);
    }

    /// One could not be opened: there will be no other.
    pub(super) fn give_up(&mut self) {
        self.step = Step::Done;
    }

    fn settle(&mut self, now: Instant) {
        if !matches!(self.step, Step::Done) {
            self.step = Step::Settling(now + SETTLE);
        }
    }

    /// When [`Self::look`] wants to be called.
    pub(super) fn due_at(&self) -> Option<Instant> {
        match &self.step {
            Step::Paused | Step::Done => None,
            Step::Settling(until) => Some(*until),
            Step::Measuring(_, _, until) => Some(*until),
        }
    }

    /// This is seen now: gives how many connections to open.
    pub(super) fn look(&mut self, now: Instant, look: Look) -> u16 {
        if self.due_at().is_none_or(|due_at| now < due_at) {
            return 0;
        }
        let Step::Measuring(since, before, _) = &self.step else {
            self.step = Step::Measuring(now, look, now + WINDOW);
            return 0;
        };
        let seconds = now.saturating_duration_since(*since).as_secs_f64();
        let Some(is_network) = self.is_of_network(before, &look, seconds) else {
            // The target has told nothing since.
            self.step = Step::Measuring(*since, *before, now + WINDOW);
            return 0;
        };
        let bytes = look.wire_bytes.saturating_sub(before.wire_bytes);
        let rate = bytes as f64 / seconds;
        self.step = Step::Measuring(now, look, now + WINDOW);
        // What else limits says nothing of what was added.
        if !is_network {
            return 0;
        }
        let is_in_vain = self.due.take().is_some_and(|due| rate < due);
        if is_in_vain || self.streams >= self.most {
            self.step = Step::Done;
            return 0;
        }
        let more = (self.streams / 2).max(1).min(self.most - self.streams);
        let gain = f64::from(more) / f64::from(self.streams);
        self.due = Some(rate * (1.0 + gain * GAIN_LEAST));
        self.step = Step::Paused;
        more
    }

    /// Whether the network is what limited, and processors were idle; nothing where that can't be told.
    fn is_of_network(&self, before: &Look, now: &Look, seconds: f64) -> Option<bool> {
        let busy = now.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds / self.processors;
        if busy > BUSY_MOST {
            return Some(false);
        }
        let source = now.source.since(&before.source);
        let limited = match (&before.target, &now.target) {
            (Some(before), Some(now)) => {
                let limited = limit_of_both(&source, &now.since(before));
                if limited.limit == Limit::Unknown {
                    return None;
                }
                limited
            }
            // It tells nothing, or has just begun to.
            _ => limit_at_source(&source),
        };
        let is_network = matches!(limited.limit, Limit::Network | Limit::Peer);
        Some(is_network && limited.share >= SHARE_LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path, and the ends of it.
    struct Model {
        now: Instant,
        seen: Look,
        growth: Growth,
        streams: u16,
        /// Bytes a second of one connection, and of the path.
        each: u64,
        path: u64,
        /// What limits where the network doesn't.
        volume: u64,
        target_writes: bool,
        tells: bool,
        busy: f64,
    }

    impl Model {
        fn new(streams: u16, most: u16) -> Self {
            let now = Instant::now();
            let mut growth = Growth::new(streams, most, 2);
            assert_eq!(growth.begin_round(now, streams), 0);
            Self {
                now,
                seen: Look {
                    target: Some(Waits::default()),
                    ..Look::default()
                },
                growth,
                streams,
                each: 10_000_000,
                path: u64::MAX,
                volume: 1_000_000_000,
                target_writes: false,
                tells: true,
                busy: 0.05,
            }
        }

        /// Time passes, and what is asked for is opened.
        fn pass(&mut self, seconds: u64) {
            for _ in 0..seconds * 10 {
                let step = Duration::from_millis(100);
                self.now += step;
                let seconds = step.as_secs_f64();
                let network = (self.each * u64::from(self.streams)).min(self.path);
                let rate = network.min(self.volume);
                self.seen.wire_bytes += rate / 10;
                self.seen.cpu += step.mul_f64(self.busy * 2.0);
                let part = rate as f64 / self.volume as f64 * seconds;
                let (volume, peer) = (part, seconds - part);
                self.seen.source.volume_wait_seconds += volume;
                self.seen.source.peer_wait_seconds += peer;
                if let (Some(target), true) = (&mut self.seen.target, self.tells) {
                    let (wait, other) = if self.target_writes {
                        (peer, volume)
                    } else {
                        (volume, peer)
                    };
                    target.volume_wait_seconds += wait;
                    target.peer_wait_seconds += other;
                }
                for _ in 0..self.growth.look(self.now, self.seen) {
                    self.streams += 1;
                    self.growth.opened(self.now);
                }
            }
        }
    }

    #[test]
    fn streams_are_added_as_long_as_each_brings_more() {
        let mut model = Model::new(2, 16);
        model.pass(120);
        assert_eq!(model.streams, 16, "and no more than are granted");
        let mut model = Model::new(1, 64);
        model.path = 75_000_000;
        model.pass(600);
        // 9 fill the path, and those after them find out.
        assert_eq!(model.streams, 13);
    }

    #[test]
    fn one_that_brings_nothing_is_the_last() {
        let mut model = Model::new(2, 16);
        model.path = 20_000_000;
        model.pass(600);
        assert_eq!(model.streams, 3);
        assert_eq!(model.growth.due_at(), None, "it costs nothing from then on");
    }

    #[test]
    fn nothing_is_added_where_something_else_limits() {
        let check = |change: &dyn Fn(&mut Model)| {
            let mut model = Model::new(2, 16);
            change(&mut model);
            model.pass(300);
            assert_eq!(model.streams, 2);
        };
        check(&|model| model.volume = 15_000_000);
        check(&|model| model.busy = 0.4);
        check(&|model| model.target_writes = true);
    }

    #[test]
    fn nothing_is_added_where_nothing_is_granted() {
        let growth = Growth::new(4, 4, 2);
        assert_eq!(growth.due_at(), None);
    }

    #[test]
    fn a_target_that_tells_late_is_waited_for() {
        let mut model = Model::new(2, 16);
        model.target_writes = true;
        model.tells = false;
        model.pass(60);
        assert_eq!(model.streams, 2, "it told nothing yet");
        model.tells = true;
        model.target_writes = false;
        model.pass(60);
        assert!(model.streams > 2);
    }

    #[test]
    fn a_target_that_never_tells_is_part_of_the_network() {
        let mut model = Model::new(2, 16);
        model.seen.target = None;
        model.pass(60);
        assert!(model.streams > 2);
    }

    #[test]
    fn what_was_added_is_judged_only_where_the_network_limits() {
        let mut model = Model::new(2, 16);
        model.pass(6);
        assert_eq!(model.streams, 3);
        // A hole: nothing is sent, and that is nobody's fault.
        let volume = std::mem::replace(&mut model.volume, 100_000);
        model.pass(60);
        assert_eq!(model.streams, 3);
        model.volume = volume;
        model.pass(60);
        assert!(model.streams > 3);
    }

    #[test]
    fn a_later_round_gets_what_the_last_one_had() {
        let mut model = Model::new(2, 16);
        model.path = 60_000_000;
        model.pass(300);
        let had = model.streams;
        assert!(had > 5);
        model.growth.pause();
        assert_eq!(model.growth.due_at(), None);
        assert_eq!(model.growth.begin_round(model.now, 2), had - 2);
    }

    #[test]
    fn after_one_that_could_not_be_opened_there_is_no_other() {
        let mut model = Model::new(2, 16);
        model.growth.give_up();
        model.growth.opened(model.now);
        model.pass(60);
        assert_eq!(model.streams, 2);
    }
}
