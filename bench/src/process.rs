//! The processes of one peer, and what they cost.
//!
//! Every process of a peer, servers included, is started here and reaped here by `wait4`, whose
//! figures cover the process and all descendants that it reaped itself: together, the CPU time of
//! the peer. (A cpuacct group around a whole run differed by less than two percent.)
//!
//! Peak memory is read from `VmHWM` while a process lives and not from `ru_maxrss`, which begins at
//! the size of the process that forked, here the harness. The mark only rises, so the last sample
//! lacks no more than the growth of the last few milliseconds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use wait4::Wait4 as _;

use crate::error::{At as _, Error};
use crate::limit::{Limit, Limits};
use crate::{port, signals};

/// What one process cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// The program's file name.
    pub program: String,
    /// Seconds in user mode, reaped descendants included.
    pub user_seconds: f64,
    /// Seconds in the kernel, reaped descendants included.
    pub system_seconds: f64,
    /// Highest resident set of the process, plus that of each descendant.
    pub peak_bytes: u64,
}

/// The processes of one peer during one clone.
#[derive(Debug)]
pub(crate) struct Group {
    members: Vec<Member>,
    logs: PathBuf,
    limits: Option<Limits>,
    started: Instant,
    time_limit: Duration,
}

/// One process of a [`Group`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Id(usize);

#[derive(Debug)]
struct Member {
    program: String,
    child: Child,
    log: PathBuf,
    /// Set once the process is reaped.
    ended: Option<(ExitStatus, Duration, Duration)>,
    /// Highest resident set seen, of the process and each descendant.
    peaks: BTreeMap<u32, u64>,
}

impl Group {
    /// An empty group; its clock starts now. Logs go below `logs`.
    pub(crate) fn new(logs: &Path, limit: Option<Limit>, time_limit: Duration) -> Self {
        Self {
            members: Vec::new(),
            logs: logs.to_owned(),
            limits: limit.map(Limits::new),
            started: Instant::now(),
            time_limit,
        }
    }

    /// Starts `command` with its output in a log; under the limits, if there are any.
    pub(crate) fn start(&mut self, mut command: Command) -> Result<Id, Error> {
        let index = self.members.len();
        let program = PathBuf::from(command.get_program());
        if let Some(limits) = &mut self.limits {
            command = limits.enter(index, &command)?;
        }
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        let log = self.logs.join(format!("{index}-{name}.log"));
        let output = File::create(&log).at("create", &log)?;
        let errors = output.try_clone().at("duplicate", &log)?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .at("start", &program)?;
        self.members.push(Member {
            program: name.into_owned(),
            child,
            log,
            ended: None,
            peaks: BTreeMap::new(),
        });
        Ok(Id(index))
    }

    /// Starts a server and waits until it listens on `port`.
    pub(crate) fn serve(&mut self, command: Command, port: u16) -> Result<Id, Error> {
        let id = self.start(command)?;
        while !port::is_listening(port)? {
            if let Some(status) = self.poll(id)? {
                return Err(self.members[id.0].failed(status));
            }
        }
        Ok(id)
    }

    /// Waits until the process ends well.
    pub(crate) fn wait(&mut self, id: Id) -> Result<(), Error> {
        loop {
            match self.poll(id)? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.members[id.0].failed(status)),
                None => {}
            }
        }
    }

    /// Processes that the kernel killed because they were out of memory.
    pub(crate) fn killed(&self) -> u64 {
        self.limits.as_ref().map_or(0, Limits::killed)
    }

    /// Stops what still runs and tells the cost of all.
    pub(crate) fn finish(mut self) -> Result<Vec<Cost>, Error> {
        self.stop()?;
        Ok(self.members.iter().map(Member::cost).collect())
    }

    /// Looks at all processes once, then sleeps a moment unless `id` has ended.
    fn poll(&mut self, id: Id) -> Result<Option<ExitStatus>, Error> {
        signals::check()?;
        for member in &mut self.members {
            member.poll()?;
        }
        let member = &self.members[id.0];
        if let Some((status, ..)) = member.ended {
            return Ok(Some(status));
        }
        if self.started.elapsed() > self.time_limit {
            return Err(Error::Late {
                program: member.program.clone(),
                after: self.time_limit,
            });
        }
        std::thread::sleep(POLL_INTERVAL);
        Ok(None)
    }

    /// Asks every process to end, and kills those that don't.
    fn stop(&mut self) -> Result<(), Error> {
        for (signal, patience) in [(Signal::TERM, PATIENCE), (Signal::KILL, PATIENCE)] {
            let since = Instant::now();
            for member in self
                .members
                .iter_mut()
                .filter(|member| member.ended.is_none())
            {
                member.sample();
                // The process may have ended by itself; the next poll will tell.
                let _ = kill_process(Pid::from_child(&member.child), signal);
            }
            while since.elapsed() < patience {
                let mut alive = false;
                for member in &mut self.members {
                    alive |= !member.poll()?;
                }
                if !alive {
                    return Ok(());
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The failure that brought us here is the one to report.
        let _ = self.stop();
    }
}

impl Member {
    /// Reaps the process if it has ended; tells whether it is.
    fn poll(&mut self) -> Result<bool, Error> {
        if self.ended.is_none() {
            self.sample();
            if let Some(end) = self.child.try_wait4().at("wait for", &self.program)? {
                self.ended = Some((end.status, end.rusage.utime, end.rusage.stime));
            }
        }
        Ok(self.ended.is_some())
    }

    /// Reads the resident peaks of the process and its descendants.
    fn sample(&mut self) {
        let mut pids = vec![self.child.id()];
        while let Some(pid) = pids.pop() {
            let Some(peak) = peak_of(pid) else { continue };
            self.peaks.insert(pid, peak);
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            let children = children.unwrap_or_default();
            pids.extend(children.split_whitespace().flat_map(str::parse::<u32>));
        }
    }

    fn failed(&self, status: ExitStatus) -> Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let tail = log.lines().rev().take(3).collect::<Vec<_>>();
        Error::Failed {
            program: self.program.clone(),
            status,
            log: tail.into_iter().rev().collect::<Vec<_>>().join(" | "),
        }
    }

    fn cost(&self) -> Cost {
        let (user, system) = self.ended.map_or_else(Default::default, |(_, u, s)| (u, s));
        Cost {
            program: self.program.clone(),
            user_seconds: user.as_secs_f64(),
            system_seconds: system.as_secs_f64(),
            peak_bytes: self.peaks.values().sum(),
        }
    }
}

fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Short against a clone, long enough that looking costs next to nothing.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// For a server that has nothing left to do.
const PATIENCE: Duration = Duration::from_secs(5);
