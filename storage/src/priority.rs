//! Who goes first at a disk.

use std::io;

use crate::sys;

/// The priority of a thread's I/O, for the schedulers that heed it (bfq; mq-deadline in part).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoPriority {
    /// Among all others, from 0 (first) to 7 (last).
    BestEffort(u8),
    /// Only when nobody else wants the disk.
    Idle,
}

impl IoPriority {
    /// Gives it to the calling thread, and so to all threads that it starts from now on.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn apply(self) -> io::Result<()> {
        sys::set_io_priority(self.encode())
    }

    /// The class in the upper bits, the level within it in the lower 13 (ioprio_set(2)).
    const fn encode(self) -> u16 {
        match self {
            Self::BestEffort(level) => (2 << 13) | level as u16,
            Self::Idle => 3 << 13,
        }
    }
}

#[cfg(test)]
#[expect(clippy::print_stderr, reason = "a test says aloud what it skips")]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// A thread of its own, since the priority stays.
    #[test]
    fn a_thread_gets_the_priority_that_was_asked_for() {
        for (priority, shown) in [
            (IoPriority::BestEffort(6), "best-effort: prio 6"),
            (IoPriority::Idle, "idle"),
        ] {
            let asked = std::thread::spawn(move || {
                priority.apply().unwrap();
                let id = fs::read_link("/proc/thread-self").unwrap();
                let id = id.file_name().unwrap().to_owned();
                Command::new("ionice").arg("-p").arg(id).output()
            });
            let Ok(output) = asked.join().unwrap() else {
                eprintln!("skipped: ionice is not there");
                return;
            };
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said.trim(), shown);
        }
    }
}
