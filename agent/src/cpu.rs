//! Processor seconds of one agent, also where two agents share a process (`volferry copy`).
//!
//! The process's own count would mix them, so that each agent counts its threads: a thread
//! registers when it starts, and its guard adds what it used when it ends.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::gettid;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use volferry_protocol::failure::Failure;

/// Adds up the processor time of the threads that registered.
#[derive(Clone, Debug, Default)]
pub struct CpuMeter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Nanoseconds of threads that have ended.
    ended: AtomicU64,
    /// Thread ids that live.
    live: Mutex<BTreeSet<i32>>,
    /// The name of a thread that panicked.
    died: watch::Sender<Option<String>>,
}

/// Counts the thread that made it, until it is dropped there.
#[derive(Debug)]
pub struct CountedThread {
    shared: Arc<Shared>,
    tid: i32,
}

impl CpuMeter {
    /// Counts the calling thread from now on.
    #[must_use]
    pub fn count_this_thread(&self) -> CountedThread {
        let tid = gettid().as_raw_nonzero().get();
        lock(&self.shared.live).insert(tid);
        CountedThread {
            shared: Arc::clone(&self.shared),
            tid,
        }
    }

    /// Runs `work` on a counted thread of its own.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: impl Into<String>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, Failure> {
        let (name, cpu) = (name.into(), self.clone());
        let text = format!("the thread {name} can't be started");
        let mortal = Mortal {
            name: name.clone(),
            shared: Arc::clone(&self.shared),
        };
        let counted = move || {
            let _mortal = mortal;
            let _counted = cpu.count_this_thread();
            work()
        };
        let started = thread::Builder::new().name(name).spawn(counted);
        started.map_err(|error| Failure::internal(format!("{text}: {error}")))
    }

    /// Waits until a thread that was started here has panicked, and says so: whoever waits for its work
    /// waits in vain.
    pub async fn thread_died(&self) -> Failure {
        let mut died = self.shared.died.subscribe();
        let name = died
            .wait_for(Option::is_some)
            .await
            .map(|name| name.clone());
        let Ok(Some(name)) = name else {
            return std::future::pending().await; // nobody is left who could die
        };
        Failure::internal(format!(
            "the thread {name} died; its last words are in the log"
        ))
    }

    /// Processor time of all counted threads so far, user and system.
    #[must_use]
    pub fn total(&self) -> Duration {
        let live = lock(&self.shared.live);
        let nanos = live.iter().filter_map(|tid| nanos_of(*tid));
        let running: u64 = nanos.map(|nanos| nanos.running).sum();
        Duration::from_nanos(running + self.shared.ended.load(Ordering::Relaxed))
    }

    /// Time for which the live threads had a processor, or waited for one that others had.
    #[must_use]
    pub fn wanted(&self) -> Duration {
        let live = lock(&self.shared.live);
        let nanos = live.iter().filter_map(|tid| nanos_of(*tid));
        Duration::from_nanos(nanos.map(|nanos| nanos.running + nanos.waiting).sum())
    }
}

/// Tells if its thread panics.
struct Mortal {
    name: String,
    shared: Arc<Shared>,
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if thread::panicking() {
            let name = std::mem::take(&mut self.name);
            self.shared.died.send_replace(Some(name));
        }
    }
}

impl Drop for CountedThread {
    fn drop(&mut self) {
        let mut live = lock(&self.shared.live);
        if live.remove(&self.tid) {
            let used = clock_gettime(ClockId::ThreadCPUTime);
            let seconds = u64::try_from(used.tv_sec).unwrap_or(0);
            let nanos = u64::try_from(used.tv_nsec).unwrap_or(0);
            self.shared
                .ended
                .fetch_add(seconds * 1_000_000_000 + nanos, Ordering::Relaxed);
        }
    }
}

/// What a live thread has had of the processors.
struct Nanos {
    running: u64,
    /// It could have run, and others did.
    waiting: u64,
}

/// The first two fields of a thread's schedstat (Linux, sched-stats.rst).
fn nanos_of(tid: i32) -> Option<Nanos> {
    let stat = fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).ok()?;
    let mut fields = stat.split_whitespace().map(str::parse);
    Some(Nanos {
        running: fields.next()?.ok()?,
        waiting: fields.next()?.ok()?,
    })
}

fn lock(live: &Mutex<BTreeSet<i32>>) -> MutexGuard<'_, BTreeSet<i32>> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The largest resident size of this process so far, in bytes; 0 where the kernel doesn't tell.
#[must_use]
pub fn peak_memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn burn(time: Duration) {
        let start = clock_gettime(ClockId::ThreadCPUTime);
        let begun = Instant::now();
        let used = || {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            let nanos = (now.tv_sec - start.tv_sec) * 1_000_000_000 + now.tv_nsec - start.tv_nsec;
            Duration::from_nanos(nanos.unsigned_abs())
        };
        while used() < time && begun.elapsed() < time * 100 {}
    }

    #[tokio::test]
    async fn a_thread_that_panics_is_told() {
        let meter = CpuMeter::default();
        let well = meter.spawn("well", || 7).unwrap();
        assert_eq!(well.join().unwrap(), 7);
        assert_eq!(*meter.shared.died.borrow(), None);
        let ill = meter.spawn("ill", || panic!("as it should")).unwrap();
        let failure = meter.thread_died().await;
        assert!(failure.text.contains("the thread ill died"), "{failure}");
        let _panicked = ill.join();
    }

    #[test]
    fn threads_count_while_they_live_and_after() {
        let meter = CpuMeter::default();
        let used = Duration::from_millis(30);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _counted = meter.count_this_thread();
                burn(used);
                assert!(
                    meter.total() >= used / 2,
                    "a live thread: {:?}",
                    meter.total()
                );
                assert!(meter.wanted() >= used / 2);
            });
            scope.spawn(|| burn(used * 10));
        });
        assert_eq!(meter.wanted(), Duration::ZERO, "nobody lives");
        assert!(
            meter.total() >= used,
            "an ended thread: {:?}",
            meter.total()
        );
        assert!(
            meter.total() < used * 8,
            "a thread that nobody counts: {:?}",
            meter.total()
        );
    }

    #[test]
    fn memory_has_a_peak() {
        assert!(peak_memory_bytes() > 1 << 20);
    }
}
