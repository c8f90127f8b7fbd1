//! Giving way to others on the node: where tasks stall for storage or memory, the agent slows down.
//!
//! The kernel tells for how long some task on the node stalled (Linux, accounting/psi.rst). The
//! agent's own stalls are among them, and can't be told from those of others: the limit bounds both
//! together. So a clone that the storage itself holds back is slowed down too, until it leaves room.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::progress::Progress;

/// Between two looks. The kernel averages over ten seconds at least, which is long for who waits.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What is left to the agent under any pressure, in bytes a second: a clone that stands still is given
/// up.
const RATE_MIN: u64 = 1 << 20;

/// The node's stalls.
#[derive(Clone, Debug)]
pub struct Pressure {
    directory: PathBuf,
}

impl Pressure {
    /// The pressure of this node.
    ///
    /// # Errors
    /// When the kernel doesn't tell it.
    pub fn open() -> io::Result<Self> {
        Self::at(Path::new("/proc/pressure"))
    }

    fn at(directory: &Path) -> io::Result<Self> {
        let pressure = Self {
            directory: directory.to_owned(),
        };
        pressure.stalled().map(|_both| pressure)
    }

    /// For how long some task has stalled since the node started: for storage, and for memory.
    fn stalled(&self) -> io::Result<[Duration; 2]> {
        let read = |name: &str| {
            let text = fs::read_to_string(self.directory.join(name))?;
            stalled(&text).ok_or_else(|| io::Error::other(format!("{name} is in an unknown form")))
        };
        Ok([read("io")?, read("memory")?])
    }

    /// Slows the agent down while some task stalls for more than `share_max` of the time.
    pub async fn give_way(self, progress: &Progress, share_max: f64) -> ! {
        let mut way = Way {
            share_max,
            rate: None,
        };
        let look = || (Instant::now(), self.stalled(), progress.wire_bytes.sum());
        let mut before = look();
        loop {
            sleep(LOOK_INTERVAL).await;
            let now = look();
            let elapsed = now.0.duration_since(before.0);
            // What can't be read for once says nothing of the pressure.
            if let (Ok(stalled), Ok(stalled_before)) = (&now.1, &before.1) {
                let since = stalled.iter().zip(stalled_before);
                let longest = since
                    .map(|(now, before)| now.saturating_sub(*before))
                    .max()
                    .unwrap_or_default();
                let share = longest.div_duration_f64(elapsed);
                let moved = u128::from(now.2.saturating_sub(before.2));
                let rate = moved * 1_000_000 / elapsed.as_micros().max(1);
                way.look(share, u64::try_from(rate).unwrap_or(u64::MAX));
                progress.throttle.yield_to_others(way.rate);
            }
            before = now;
        }
    }
}

/// How much is left to the agent. It is cut by a quarter in each second of pressure, and comes back
/// by a tenth.
#[derive(Debug)]
struct Way {
    share_max: f64,
    /// Bytes a second; `None` for no limit.
    rate: Option<u64>,
}

impl Way {
    /// In the last second, tasks stalled for `share` of the time, and `moved` bytes moved.
    fn look(&mut self, share: f64, moved: u64) {
        if share > self.share_max {
            let rate = self.rate.unwrap_or(u64::MAX).min(moved);
            self.rate = Some((rate / 4 * 3).max(RATE_MIN));
        } else if let Some(rate) = self.rate {
            let is_used = moved > rate / 2;
            self.rate = is_used.then(|| rate.saturating_add(rate / 10));
        }
    }
}

/// The time in the line of `some` task.
fn stalled(text: &str) -> Option<Duration> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let micros = line
        .split(' ')
        .find_map(|field| field.strip_prefix("total="))?;
    micros.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::progress::End;

    fn write(directory: &Path, io_micros: u128, memory_micros: u128) {
        let text = |micros| {
            format!(
                "some avg10=12.53 avg60=9.24 avg300=3.67 total={micros}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
            )
        };
        fs::write(directory.join("io"), text(io_micros)).unwrap();
        fs::write(directory.join("memory"), text(memory_micros)).unwrap();
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        Pressure::at(directory.path()).unwrap_err();
        write(directory.path(), 1, 2);
        let pressure = Pressure::at(directory.path()).unwrap();
        let micros = [1, 2].map(Duration::from_micros);
        assert_eq!(pressure.stalled().unwrap(), micros);
        for unknown in ["", "full total=3\n", "some avg10=0.00\n", "some total=x\n"] {
            fs::write(directory.path().join("io"), unknown).unwrap();
            Pressure::at(directory.path()).unwrap_err();
        }
    }

    #[test]
    fn pressure_slows_down_to_a_minimum_and_its_end_lets_go() {
        let mut way = Way {
            share_max: 0.5,
            rate: None,
        };
        way.look(0.5, 1 << 30);
        assert_eq!(way.rate, None, "up to the limit");
        way.look(0.51, 1 << 30);
        assert_eq!(way.rate, Some(3 << 28));
        way.look(1.0, 1 << 28);
        assert_eq!(way.rate, Some(3 << 26), "of what moved");
        for _ in 0..100 {
            way.look(1.0, way.rate.unwrap());
        }
        assert_eq!(way.rate, Some(RATE_MIN));
        way.look(0.0, RATE_MIN);
        assert!(way.rate > Some(RATE_MIN));
        way.look(0.0, 0);
        assert_eq!(way.rate, None, "something else is slower");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_heeds_either_pressure_while_it_lasts() {
        let directory = tempfile::tempdir().unwrap();
        let progress = Progress::new(End::Source, Uuid::nil());
        write(directory.path(), 0, 0);
        let pressure = Pressure::at(directory.path()).unwrap();
        // Each second some task stalls so long for storage and for memory, while so much moves.
        let pass = async |seconds: u32, io_micros: u128, memory_micros: u128, moved: u64| {
            for _ in 0..seconds {
                let [io, memory] = pressure.stalled().unwrap().map(|time| time.as_micros());
                write(directory.path(), io + io_micros, memory + memory_micros);
                progress.wire_bytes.add(moved);
                sleep(LOOK_INTERVAL).await;
            }
            progress.throttle.yielded()
        };
        let run = async {
            // Between two looks.
            sleep(LOOK_INTERVAL / 2).await;
            assert_eq!(pass(3, 299_000, 299_000, 1 << 30).await, 0);
            let first = pass(2, 400_000, 0, 1 << 30).await;
            assert!((1..1 << 30).contains(&first), "{first}");
            let second = pass(2, 0, 400_000, 1 << 30).await;
            assert!((1..first).contains(&second), "{second}");
            assert!(pass(2, 0, 0, second).await > second);
            assert_eq!(pass(2, 0, 0, 0).await, 0);
        };
        tokio::select! {
            () = run => {}
            never = pressure.clone().give_way(&progress, 0.3) => never,
        }
    }
}
