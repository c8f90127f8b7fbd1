//! Whether compression pays, found out while the clone runs.
//!
//! Compression costs processor time at both ends and saves time on the network. Which is dearer depends on the path,
//! the processors, the data and whoever shares them, and changes. So it is tried: as long as the connections wait for what is beyond
//! them, [`Auto`] takes a step up its ladder, lets what was read before the step leave, looks for a while how much gets
//! through, and goes back unless that is clearly more. A step that was no use is not taken again for a while, each time
//! longer. Where the connections wait for the volume instead, a step down is tried the same way.
//!
//! Data that does not shrink is found by [`Sampler`] at next to no cost, and then a step up changes nothing.

use std::time::{Duration, Instant};

use super::{Codecs, Compressor, Level, Method};

/// From cheap to strong. Below the first one nothing is compressed.
const LADDER: [Method; 3] = [
    Method::Lz4,
    Method::Zstd(Level::FASTEST),
    Method::Zstd(Level::DEFAULT),
];

/// How long a rate is measured at least: the connections send thousands of pieces in it.
const MEASURED_LEAST: Duration = Duration::from_millis(500);

/// A step up has to bring a rate that much higher. Less is noise.
const GAIN: f64 = 1.05;

/// A step down is kept unless the rate falls below this.
const KEPT: f64 = 0.97;

/// The part of their time for which connections wait for what is beyond them, from which on the network may be
/// the limit, and up to which it is not.
const BEYOND_LEAST: f64 = 0.5;
const BEYOND_MOST: f64 = 0.2;

/// A rate in bytes a second below which any processor makes the first step of Zstandard pay: it makes several
/// times as much of it.
const SLOW: f64 = 50e6;

/// How long a step that was no use is not tried again: at first, and at most.
const PAUSE_LEAST: Duration = Duration::from_secs(2);
const PAUSE_MOST: Duration = Duration::from_secs(64);

/// What was seen so far, counted from the start of the session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Payload bytes that were handed to the connections, as they were before compression.
    pub queued_bytes: u64,
    /// Those of them that the connections have sent.
    pub sent_bytes: u64,
    /// Seconds, over all connections, that they waited for the volume.
    pub volume_wait_seconds: f64,
    /// The same for the peer and for the bandwidth limit.
    pub beyond_wait_seconds: f64,
}

/// Decides on the method.
#[derive(Debug)]
pub struct Auto {
    ladder: Vec<Method>,
    /// How many steps up; 0 is without compression.
    rung: usize,
    /// Whether a rate was measured.
    has_measured: bool,
    /// Where the measurement began; `None` while what was read before the last step still leaves.
    since: Option<(Instant, Seen)>,
    /// What had been queued at the last step.
    queued_before: u64,
    /// A step that has to prove itself: where it came from, and the rate there.
    trial: Option<(usize, f64)>,
    /// When the next step may be tried, and the pause after it should it fail.
    next_at: Option<Instant>,
    pause: Duration,
}

impl Auto {
    /// Nothing is compressed at first. Only `codecs` are used.
    #[must_use]
    pub fn new(codecs: Codecs) -> Self {
        let ladder = LADDER.into_iter();
        Self {
            ladder: ladder
                .filter(|method| codecs.holds(method.codec()))
                .collect(),
            rung: 0,
            has_measured: false,
            since: None,
            queued_before: 0,
            trial: None,
            next_at: None,
            pause: PAUSE_LEAST,
        }
    }

    /// What to do to payloads from now on.
    #[must_use]
    pub fn method(&self) -> Option<Method> {
        let below = self.rung.checked_sub(1)?;
        self.ladder.get(below).copied()
    }

    /// Whether nothing is known yet: what is queued meanwhile leaves as it is, so it should be little.
    #[must_use]
    pub const fn is_undecided(&self) -> bool {
        !self.has_measured
    }

    /// Looks at what was seen until `now`. To be called a few times in a second.
    pub fn look(&mut self, now: Instant, seen: Seen) {
        let Some((then, before)) = self.since else {
            if seen.sent_bytes >= self.queued_before {
                self.since = Some((now, seen));
            }
            return;
        };
        let elapsed = now.saturating_duration_since(then);
        if elapsed < MEASURED_LEAST {
            return;
        }
        self.since = Some((now, seen));
        self.has_measured = true;
        let rate = bytes(seen.sent_bytes.saturating_sub(before.sent_bytes)) / elapsed.as_secs_f64();
        if let Some((from, rate_there)) = self.trial.take() {
            let least = if self.rung > from { GAIN } else { KEPT };
            if rate >= rate_there * least {
                self.pause = PAUSE_LEAST;
                return;
            }
            self.step(from, seen);
            self.next_at = now.checked_add(self.pause);
            self.pause = self.pause.saturating_mul(2).min(PAUSE_MOST);
            return;
        }
        if self.next_at.is_some_and(|at| now < at) {
            return;
        }
        let to = match beyond(&before, &seen) {
            Some(part) if part >= BEYOND_LEAST => self.next_up(rate),
            Some(part) if part <= BEYOND_MOST => self.rung.saturating_sub(1),
            _ => self.rung,
        };
        let to = to.min(self.ladder.len());
        if to != self.rung {
            self.trial = Some((self.rung, rate));
            self.step(to, seen);
        }
    }

    /// The next rung up: on a slow network at once the one that pays there.
    fn next_up(&self, rate: f64) -> usize {
        let is_fast = |method: &Method| *method == Method::Zstd(Level::FASTEST);
        let next = self.rung.saturating_add(1);
        let strong = self.ladder.iter().position(is_fast);
        let strong = strong
            .filter(|_| rate < SLOW)
            .map(|at| at.saturating_add(1));
        strong.map_or(next, |strong| strong.max(next))
    }

    const fn step(&mut self, rung: usize, seen: Seen) {
        self.rung = rung;
        self.queued_before = seen.queued_bytes;
        self.since = None;
    }
}

/// The part of their waiting since `before` that connections spent on what is beyond them.
fn beyond(before: &Seen, seen: &Seen) -> Option<f64> {
    let volume = seen.volume_wait_seconds - before.volume_wait_seconds;
    let beyond = seen.beyond_wait_seconds - before.beyond_wait_seconds;
    let sum = volume + beyond;
    (sum > 0.0).then(|| beyond / sum)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a session sends far fewer than 2^53 bytes"
)]
const fn bytes(count: u64) -> f64 {
    count as f64
}

/// Finds payloads that don't shrink without compressing them: of each a small part is tried first, and where
/// several in a row didn't shrink, only some payloads are looked at.
#[derive(Debug, Default)]
pub struct Sampler {
    misses: u32,
    left_out: u32,
}

/// The part that is tried.
const SAMPLE_LEN: usize = 16 << 10;

/// After so many misses in a row, one payload in so many is looked at.
const MISSES: u32 = 4;
const ONE_IN: u32 = 16;

impl Sampler {
    /// Whether compressing `payload` is worth the try.
    pub fn is_worth_it(&mut self, compressor: &mut Compressor, payload: &[u8]) -> bool {
        if self.misses >= MISSES {
            self.left_out = self.left_out.wrapping_add(1);
            if !self.left_out.is_multiple_of(ONE_IN) {
                return false;
            }
        }
        let start = payload.len().saturating_sub(SAMPLE_LEN) / 2;
        let end = start.saturating_add(SAMPLE_LEN).min(payload.len());
        let sample = payload.get(start..end).unwrap_or_default();
        let shrinks = compressor.compress(Method::Lz4, sample).is_some();
        self.misses = if shrinks {
            0
        } else {
            self.misses.saturating_add(1)
        };
        shrinks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENTH: Duration = Duration::from_millis(100);
    const MB: u64 = 1_000_000;

    /// A clone whose connections send as fast as `rate` says for a method, and wait for what is beyond them
    /// `beyond` of their time.
    struct Clone<'a> {
        auto: Auto,
        now: Instant,
        seen: Seen,
        rate: &'a dyn Fn(Option<Method>) -> u64,
        beyond: f64,
    }

    impl<'a> Clone<'a> {
        fn new(rate: &'a dyn Fn(Option<Method>) -> u64, beyond: f64) -> Self {
            Self {
                auto: Auto::new(Codecs::all()),
                now: Instant::now(),
                seen: Seen::default(),
                rate,
                beyond,
            }
        }

        /// Runs for `seconds`, and gives the mean rate.
        fn run(&mut self, seconds: u64) -> u64 {
            let before = self.seen.sent_bytes;
            for _ in 0..seconds * 10 {
                self.now += TENTH;
                self.seen.sent_bytes += (self.rate)(self.auto.method()) / 10;
                self.seen.queued_bytes = self.seen.sent_bytes + (32 << 20);
                self.seen.beyond_wait_seconds += 0.1 * self.beyond;
                self.seen.volume_wait_seconds += 0.1 * (1.0 - self.beyond);
                self.auto.look(self.now, self.seen);
            }
            (self.seen.sent_bytes - before) / seconds
        }
    }

    /// 25 MB/s of network, and processors that make so much of each method in a second.
    fn slow_network(method: Option<Method>) -> u64 {
        let (network, processor) = match method {
            None => (25, 1000),
            Some(Method::Lz4) => (45, 500),
            Some(Method::Zstd(Level::FASTEST)) => (60, 300),
            Some(_) => (70, 150),
        };
        u64::min(network, processor) * MB
    }

    #[test]
    fn on_a_slow_network_it_climbs_to_the_top() {
        let mut clone = Clone::new(&slow_network, 0.9);
        clone.run(20);
        assert_eq!(clone.auto.method(), Some(Method::Zstd(Level::DEFAULT)));
        assert!(clone.run(60) > 68 * MB);
    }

    #[test]
    fn on_a_slow_network_the_first_step_is_the_one_that_pays() {
        let mut clone = Clone::new(&slow_network, 0.9);
        assert!(clone.auto.is_undecided());
        clone.run(1);
        assert!(!clone.auto.is_undecided());
        assert_eq!(clone.auto.method(), Some(Method::Zstd(Level::FASTEST)));
        let fast = |method| 10 * slow_network(method);
        let mut clone = Clone::new(&fast, 0.9);
        clone.run(1);
        assert_eq!(clone.auto.method(), Some(Method::Lz4));
        let mut auto = Auto::new([super::super::Codec::Lz4].into_iter().collect());
        assert_eq!(auto.next_up(1e6), 1);
        auto.rung = 1;
        assert_eq!(auto.next_up(1e6), 2, "which the ladder cuts");
    }

    #[test]
    fn where_nothing_gains_next_to_nothing_is_tried() {
        // The target's disk, say: compression brings nothing, and here it even costs a half.
        let rate = |method: Option<Method>| if method.is_none() { 300 } else { 150 } * MB;
        let mut clone = Clone::new(&rate, 0.9);
        let mean = clone.run(600);
        assert!(mean > 291 * MB, "{mean}");
    }

    #[test]
    fn where_the_volume_is_the_limit_nothing_is_tried() {
        let mut clone = Clone::new(&slow_network, 0.4);
        clone.run(100);
        assert_eq!(clone.auto.method(), None);
    }

    #[test]
    fn it_goes_down_again_when_the_network_is_no_limit_any_more() {
        let mut clone = Clone::new(&slow_network, 0.9);
        clone.run(20);
        let fast = |method: Option<Method>| if method.is_none() { 500 } else { 150 } * MB;
        clone.rate = &fast;
        clone.beyond = 0.1;
        clone.run(20);
        assert_eq!(clone.auto.method(), None);
    }

    #[test]
    fn only_what_the_ends_agreed_on_is_used() {
        let mut auto = Auto::new([super::super::Codec::Zstd].into_iter().collect());
        assert_eq!(auto.method(), None);
        auto.rung = 1;
        assert_eq!(auto.method(), Some(Method::Zstd(Level::FASTEST)));
        assert_eq!(Auto::new(Codecs::NONE).ladder, []);
    }

    #[test]
    fn noise_is_looked_at_now_and_then() {
        let (mut sampler, mut compressor) = <(Sampler, Compressor)>::default();
        let mut noise = vec![0; 1 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for _ in 0..1000 {
            assert!(!sampler.is_worth_it(&mut compressor, &noise));
        }
        let text = b"volume, chunk, journal, ".repeat(1000);
        let looked = (0..ONE_IN).filter(|_| sampler.is_worth_it(&mut compressor, &text));
        assert!(looked.count() >= 1);
        assert!(sampler.is_worth_it(&mut compressor, &text));
        assert!(!sampler.is_worth_it(&mut compressor, &[]));
    }
}
