//! What a path does to its packets, as a pure function of their times and lengths.

use std::time::Duration;

use crate::random::Random;

/// A path between two places, alike in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// What a packet and its answer take where nothing else is on the way.
    pub round_trip: Duration,
    /// By how much a packet may take longer, evenly spread. It changes no order.
    pub jitter: Duration,
    /// Of a million packets, those that are lost, whatever they are.
    pub lost_ppm: u64,
    /// Of a million packets, those that come so late that later ones overtake them.
    pub late_ppm: u64,
    /// What fits through.
    pub bits_per_second: u64,
    /// What may wait before the narrowest place, as the time that it waits. What comes while more waits is lost.
    pub queue: Duration,
    /// Where chance begins.
    pub seed: u64,
}

impl Default for Path {
    /// 1 ms, 200 Mb/s, no faults, and the queue of a common router.
    fn default() -> Self {
        Self {
            round_trip: Duration::from_millis(1),
            jitter: Duration::ZERO,
            lost_ppm: 0,
            late_ppm: 0,
            bits_per_second: 200_000_000,
            queue: Duration::from_millis(25),
            seed: 1,
        }
    }
}

/// One direction of a [`Path`].
#[derive(Debug)]
pub(super) struct Shaper {
    random: Random,
    /// When the narrowest place has sent what came so far.
    free_at: Duration,
    /// When the last packet that was not late arrives.
    last_arrival: Duration,
}

impl Shaper {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            free_at: Duration::ZERO,
            last_arrival: Duration::ZERO,
        }
    }

    /// When a packet of `len` bytes arrives that comes at `now`; `None` when it is lost.
    pub(super) fn carry(&mut self, path: &Path, now: Duration, len: usize) -> Option<Duration> {
        let free_at = self.free_at.max(now);
        if free_at - now > path.queue {
            return None;
        }
        let bits = u64::try_from(len).unwrap_or(u64::MAX).saturating_mul(8);
        let nanos = bits.saturating_mul(1_000_000_000) / path.bits_per_second.max(1);
        self.free_at = free_at + Duration::from_nanos(nanos);
        // It is lost behind the narrowest place, as on a radio link: it has had its share of the rate.
        if self.happens(path.lost_ppm) {
            return None;
        }
        let jitter_nanos = u64::try_from(path.jitter.as_nanos()).unwrap_or(u64::MAX);
        let jitter = Duration::from_nanos(self.random.within(0..jitter_nanos.max(1)));
        let arrival = self.free_at + path.round_trip / 2 + jitter;
        if self.happens(path.late_ppm) {
            return Some(arrival + path.round_trip / 2 + LATE_LEAST);
        }
        self.last_arrival = self.last_arrival.max(arrival);
        Some(self.last_arrival)
    }

    const fn happens(&mut self, ppm: u64) -> bool {
        self.random.within(0..1_000_000) < ppm
    }
}

/// A late packet is that much late, and half a round trip: a few packets overtake it on any path.
const LATE_LEAST: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 1500;

    /// What becomes of packets that come as fast as `path` takes them.
    fn carry(path: &Path, count: u32) -> Vec<Option<Duration>> {
        let mut shaper = Shaper::new(path.seed);
        let pace = Duration::from_nanos(1500 * 8 * 1_000_000_000 / path.bits_per_second);
        (0..count)
            .map(|number| shaper.carry(path, pace * number, LEN))
            .collect()
    }

    #[test]
    fn a_packet_takes_half_the_round_trip_and_its_own_time() {
        let path = Path {
            bits_per_second: 12_000_000,
            ..Path::default()
        };
        let arrivals = carry(&path, 3);
        assert_eq!(arrivals[0], Some(Duration::from_micros(500 + 1000)));
        assert_eq!(arrivals[2], Some(Duration::from_micros(500 + 3000)));
    }

    #[test]
    fn what_comes_faster_than_the_rate_waits_and_then_is_lost() {
        let path = Path {
            bits_per_second: 12_000_000, // a packet in a millisecond
            queue: Duration::from_millis(10),
            ..Path::default()
        };
        let mut shaper = Shaper::new(1);
        let mut at_once = (0..100).map(|_| shaper.carry(&path, Duration::ZERO, LEN));
        let carried: Vec<_> = at_once.by_ref().flatten().collect();
        assert_eq!(carried.len(), 11);
        assert!(carried.is_sorted());
        assert_eq!(carried.last(), Some(&Duration::from_micros(11_500)));
        // A second later the queue is empty again.
        let later = shaper.carry(&path, Duration::from_secs(1), LEN);
        assert_eq!(later, Some(Duration::from_micros(1_001_500)));
    }

    #[test]
    fn as_many_are_lost_as_was_said_and_the_same_for_the_same_seed() {
        let path = Path {
            lost_ppm: 10_000,
            ..Path::default()
        };
        let first = carry(&path, 100_000);
        let lost = first.iter().filter(|arrival| arrival.is_none()).count();
        assert!((900..1100).contains(&lost), "{lost}");
        assert_eq!(first, carry(&path, 100_000));
        assert_ne!(first, carry(&Path { seed: 2, ..path }, 100_000));
    }

    #[test]
    fn jitter_changes_no_order_and_late_packets_do() {
        let jittery = Path {
            jitter: Duration::from_millis(5),
            ..Path::default()
        };
        let arrivals: Vec<_> = carry(&jittery, 1000).into_iter().flatten().collect();
        assert_eq!(arrivals.len(), 1000);
        assert!(arrivals.is_sorted());
        let steady: Vec<_> = carry(&Path::default(), 1000)
            .into_iter()
            .flatten()
            .collect();
        let most = arrivals
            .iter()
            .zip(&steady)
            .map(|(with, without)| *with - *without);
        assert!(most.max() > Some(Duration::from_millis(4)));

        let late = Path {
            late_ppm: 10_000,
            ..Path::default()
        };
        let arrivals: Vec<_> = carry(&late, 10_000).into_iter().flatten().collect();
        let overtaken = arrivals.windows(2).filter(|pair| pair[0] > pair[1]).count();
        assert!((70..130).contains(&overtaken), "{overtaken}");
    }
}
