//! How long to wait before trying again: longer each time, within bounds, and never in step with
//! others.

use std::time::Duration;

/// The first pause.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// The longest pause: when the network is back, a clone goes on within this time.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Pauses between attempts.
#[derive(Debug)]
pub struct Backoff {
    pause: Duration,
    /// State of a generator of small random numbers (xorshift); they need not be secret.
    seed: u64,
}

impl Backoff {
    /// Begins with the shortest pause. Agents with different seeds don't keep step.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            pause: PAUSE_MIN,
            seed: seed | 1,
        }
    }

    /// An attempt went well: the next pause is short again.
    pub const fn reset(&mut self) {
        self.pause = PAUSE_MIN;
    }

    /// The next pause: between half and all of twice the one before.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        let share = (self.seed % 1024) as f64 / 1024.0;
        pause.mul_f64(0.5 + share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_bounds_and_differ() {
        let mut backoff = Backoff::new(7);
        let pauses: Vec<_> = (0..20).map(|_| backoff.next_pause()).collect();
        assert!(pauses[0] >= PAUSE_MIN / 2 && pauses[0] <= PAUSE_MIN);
        assert!(
            pauses[8..]
                .iter()
                .all(|pause| *pause >= PAUSE_MAX / 2 && *pause <= PAUSE_MAX)
        );
        assert_ne!(pauses[18], pauses[19]);
        let mut other = Backoff::new(9);
        assert_ne!(other.next_pause(), pauses[0]);
        backoff.reset();
        assert!(backoff.next_pause() <= PAUSE_MIN);
    }
}
