//! How many bytes the data connections of an agent may move, all together: the bandwidth limit, and what
//! the pressure on the node leaves.
//!
//! It hands out pieces that take `PIECE_TIME` each at the rate, so what is sent is smooth over any
//! tenth of a second, and a rate that is changed holds for the next piece.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long a piece takes at the rate: a fraction of the tenth of a second over which the rate holds, and long
/// enough that a timer of a millisecond is exact.
const PIECE_TIME: Duration = Duration::from_millis(20);

/// What was not sent in time may be sent later within so much time, and is lost else: a timer that comes late doesn't cost
/// bandwidth, and a source that paused makes no burst.
const CREDIT_TIME: Duration = Duration::from_millis(20);

/// The limit of one agent.
#[derive(Debug, Default)]
pub struct Throttle {
    /// Bytes for each second; 0 for no limit.
    bytes_per_second: AtomicU64,
    /// What is left to this agent where others are to go first, likewise.
    yielded: AtomicU64,
    /// What an observer of the clone asked for: the target tells it to the source, which heeds it.
    asked: Mutex<Option<u64>>,
    /// When the next piece may go; `None` before the first.
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    /// Bytes that may be sent each second; 0 for no limit.
    #[must_use]
    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    /// From now on so many bytes may be sent each second; 0 for no limit.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second
            .store(bytes_per_second, Ordering::Relaxed);
    }

    /// What an observer of the clone asked for, in bytes a second, 0 for no limit: at the target, what it
    /// asked last, at the source, what the target told last.
    #[must_use]
    pub fn asked(&self) -> Option<u64> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At the target: an observer asks the source to send no more than so many bytes each second; 0 for no
    /// limit.
    pub fn ask(&self, bytes_per_second: u64) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes_per_second);
    }

    /// At the source: does as the target told. What was set here afterwards stays until something else
    /// is told.
    pub fn heed(&self, told: Option<u64>) {
        let Some(limit) = told.filter(|_| told != self.asked()) else {
            return;
        };
        self.ask(limit);
        if limit != self.bytes_per_second() {
            tracing::info!(
                bytes_per_second = limit,
                "an observer changed the bandwidth limit"
            );
            self.set(limit);
        }
    }

    /// From now on only so many bytes may move each second, whatever else the limit is.
    pub fn yield_to_others(&self, bytes_per_second: Option<u64>) {
        self.yielded
            .store(bytes_per_second.unwrap_or(0), Ordering::Relaxed);
    }

    /// What is left where others are to go first, in bytes a second; 0 for no limit.
    #[must_use]
    pub fn yielded(&self) -> u64 {
        self.yielded.load(Ordering::Relaxed)
    }

    /// Takes leave to send a piece of `wanted` bytes at once: all of it without a limit, else as much as is
    /// due, and at least 1 byte. Nothing if it has to be waited for first: then [`Throttle::wait`].
    #[must_use]
    pub fn try_take(&self, wanted: usize) -> Option<usize> {
        let limits = [self.bytes_per_second(), self.yielded()];
        let Some(rate) = limits.into_iter().filter(|&rate| rate > 0).min() else {
            return Some(wanted);
        };
        let now = Instant::now();
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CREDIT_TIME).unwrap_or(now);
        let start = free_at.map_or(earliest, |at| at.max(earliest));
        if start > now {
            return None;
        }
        let due = (u128::from(rate) * PIECE_TIME.as_nanos() / NANOS_PER_SECOND).max(1);
        let piece = usize::try_from(due).unwrap_or(usize::MAX).min(wanted);
        let nanos = piece as u128 * NANOS_PER_SECOND / u128::from(rate);
        *free_at = Some(start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        Some(piece)
    }

    /// Waits until it is worth to ask again. Others that wait may have taken what was due by then.
    pub async fn wait(&self) {
        let free_at = *self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let time = free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        // A rate that is raised meanwhile is not waited out at the old one.
        sleep(time.min(LOOK_INTERVAL)).await;
    }
}

/// How soon a changed rate is seen by who waits.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

const NANOS_PER_SECOND: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_observer_asked_for_is_heeded_once() {
        let throttle = Throttle::default();
        throttle.set(5);
        throttle.heed(None);
        assert_eq!((throttle.bytes_per_second(), throttle.asked()), (5, None));
        throttle.heed(Some(7));
        assert_eq!(throttle.bytes_per_second(), 7);
        throttle.set(9);
        // The target says it with each watermark.
        throttle.heed(Some(7));
        assert_eq!(throttle.bytes_per_second(), 9);
        throttle.heed(Some(0));
        assert_eq!(throttle.bytes_per_second(), 0);
        // It was restarted and asked nothing.
        throttle.heed(None);
        assert_eq!(throttle.bytes_per_second(), 0);
    }

    /// What is sent by two at once, all the time: bytes in each tenth of a second.
    async fn tenths(throttle: &Throttle, count: usize) -> Vec<usize> {
        let begun = Instant::now();
        let mut tenths = vec![0; count];
        loop {
            let Some(piece) = throttle.try_take(1 << 20) else {
                throttle.wait().await;
                continue;
            };
            let at = usize::try_from(begun.elapsed().as_millis() / 100).unwrap();
            match tenths.get_mut(at) {
                Some(tenth) => *tenth += piece,
                None => return tenths,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_in_each_tenth_of_a_second() {
        let throttle = Throttle::default();
        throttle.set(10_000_000);
        let sent = tenths(&throttle, 10).await;
        let total: usize = sent.iter().sum();
        assert!((9_900_000..=10_400_000).contains(&total), "{sent:?}");
        // None is exceeded by more than a piece and the credit.
        assert!(sent.iter().all(|&tenth| tenth <= 1_400_000), "{sent:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_all_may_go_and_a_new_limit_holds_at_once() {
        let throttle = Throttle::default();
        assert_eq!(throttle.try_take(usize::MAX), Some(usize::MAX));
        throttle.set(1);
        assert_eq!(throttle.try_take(100), Some(1), "a byte a second");
        assert_eq!(throttle.try_take(100), None);
        throttle.set(0);
        assert_eq!(throttle.try_take(100), Some(100));
    }

    /// Waiting for the next byte at a byte a second ends soon when the rate is raised.
    #[tokio::test(start_paused = true)]
    async fn who_waits_hears_of_another_rate() {
        let throttle = Throttle::default();
        throttle.set(1);
        while throttle.try_take(1).is_some() {}
        let begun = Instant::now();
        let raise = async {
            sleep(Duration::from_millis(10)).await;
            throttle.set(0);
        };
        let ask = async {
            while throttle.try_take(1).is_none() {
                throttle.wait().await;
            }
        };
        tokio::join!(raise, ask);
        assert!(begun.elapsed() < Duration::from_millis(900));
    }
}
