//! The real programs as child processes.
//!
//! `cargo test` builds a package's programs only for that package's own tests, so the first test of
//! a process asks cargo for the programs: nothing to do when they are fresh, and never an old one.
//! `VOLFERRY_TESTS_PROGRAMS=DIR` takes them from a directory instead, for tests of what is shipped.
//! `VOLFERRY_TESTS_TRANSPORT=quic` has them talk over QUIC, where a test doesn't say otherwise.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::PATIENCE;

/// The command line.
pub const CLI: &str = "volferry";
/// The source agent.
pub const SOURCE: &str = "volferry-source";
/// The target agent.
pub const TARGET: &str = "volferry-target";

/// Where cargo builds: the test runs from `<target directory>/<profile>/deps`.
#[must_use]
pub fn target_directory() -> PathBuf {
    profile_directory().parent().unwrap().to_owned()
}

fn profile_directory() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().to_owned()
}

/// The path of a program.
#[must_use]
pub fn path(program: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        std::env::var_os("VOLFERRY_TESTS_PROGRAMS").map_or_else(build, PathBuf::from)
    });
    let path = directory.join(program);
    assert!(path.is_file(), "{} is not there", path.display());
    path
}

/// Builds the programs beside the tests, in the same profile.
fn build() -> PathBuf {
    let directory = profile_directory();
    let profile = match directory.file_name().and_then(OsStr::to_str).unwrap() {
        "debug" => "dev",
        named => named,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let mut command = Command::new(cargo);
    command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["build", "--quiet", "--bins", "--profile", profile])
        .args(["-p", "volferry-cli"])
        .args(["-p", "volferry-source-agent"])
        .args(["-p", "volferry-target-agent"])
        .arg("--target-dir")
        .arg(target_directory());
    // What cargo told this test is not for the programs: it would only make them look stale.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "the programs can't be built:\n{said}"
    );
    directory
}

/// A command that runs `program` with nothing of this process's own configuration.
#[must_use]
pub fn command(program: &str) -> Command {
    plain(Command::new(path(program)))
}

/// The same, inside a network namespace.
#[must_use]
pub fn command_in_namespace(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace])
        .arg(path(program));
    plain(command)
}

fn plain(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VOLFERRY_") {
            command.env_remove(name);
        }
    }
    if let Some(transport) = std::env::var_os("VOLFERRY_TESTS_TRANSPORT") {
        command.env("VOLFERRY_TRANSPORT", transport);
    }
    command
}

/// Runs a command to its end.
#[must_use]
pub fn run(command: &mut Command) -> Ended {
    Running::start(command).end()
}

/// Runs the command line with `arguments` to its end.
#[must_use]
pub fn volferry<I, A>(arguments: I) -> Ended
where
    I: IntoIterator<Item = A>,
    A: AsRef<OsStr>,
{
    run(command(CLI).args(arguments))
}

/// A program that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    said: Arc<Said>,
    stderr: Option<JoinHandle<()>>,
    stdout: Option<JoinHandle<String>>,
}

/// What a program said so far on standard error.
#[derive(Debug, Default)]
struct Said {
    text: Mutex<String>,
    more: Condvar,
}

impl Said {
    fn text(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }
}

impl Running {
    /// Starts a command and listens to it.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Said::default());
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let heard = Arc::clone(&said);
        Self {
            name,
            child,
            said,
            stderr: Some(thread::spawn(move || listen(stderr, &heard))),
            stdout: Some(thread::spawn(move || read_all(stdout))),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until it says `words`, and gives the line they are in.
    ///
    /// # Panics
    /// When it ends without them, or takes for ever.
    pub fn wait_for(&mut self, words: &str) -> String {
        let give_up_at = Instant::now() + PATIENCE;
        let find = |text: &str| {
            let found = text.lines().find(|line| line.contains(words));
            found.map(ToOwned::to_owned)
        };
        loop {
            let text = self.said.text();
            if let Some(line) = find(&text) {
                return line;
            }
            let is_over = matches!(self.child.try_wait(), Ok(Some(_)));
            if is_over && find(&self.all_said()).is_none() {
                panic!("{} ended without saying {words:?}:\n{text}", self.name);
            }
            assert!(
                Instant::now() < give_up_at,
                "{} did not say {words:?}:\n{text}",
                self.name
            );
            let text = self.said.text.lock().unwrap();
            let _woken = self.said.more.wait_timeout(text, POLL_INTERVAL).unwrap();
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it takes for ever.
    #[must_use]
    pub fn end(mut self) -> Ended {
        let give_up_at = Instant::now() + PATIENCE;
        let mut peak_memory_bytes = 0;
        let status = loop {
            peak_memory_bytes = self.peak_memory_bytes().unwrap_or(peak_memory_bytes);
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > give_up_at {
                self.child.kill().unwrap();
                let said = self.all_said();
                panic!("{} does not end:\n{said}", self.name);
            }
            thread::sleep(POLL_INTERVAL);
        };
        Ended {
            status,
            stderr: self.all_said(),
            stdout: self.stdout.take().unwrap().join().unwrap(),
            peak_memory_bytes,
        }
    }

    /// The largest resident size that the kernel saw, while the process lives.
    fn peak_memory_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib * 1024)
    }

    /// All it said, once it has ended.
    fn all_said(&mut self) -> String {
        if let Some(stderr) = self.stderr.take() {
            stderr.join().unwrap();
        }
        self.said.text()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Between two looks at a process.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

fn listen(mut stderr: ChildStderr, said: &Said) {
    let mut bytes = [0; 4096];
    while let Ok(len @ 1..) = stderr.read(&mut bytes) {
        let mut text = said.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.push_str(&String::from_utf8_lossy(&bytes[..len]));
        said.more.notify_all();
    }
}

fn read_all(mut stdout: ChildStdout) -> String {
    let mut bytes = Vec::new();
    stdout.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// All it wrote to standard error.
    pub stderr: String,
    /// All it wrote to standard output.
    pub stdout: String,
    /// Its largest resident size, as seen a moment before its end.
    pub peak_memory_bytes: u64,
}

impl Ended {
    /// Its exit code; -1 when a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Expects success.
    #[track_caller]
    #[must_use]
    pub fn succeeded(self) -> Self {
        self.with_code(0)
    }

    /// Expects the exit code `code`, and that standard error holds each of `words`.
    #[track_caller]
    pub fn failed(self, code: i32, words: &[&str]) -> Self {
        let ended = self.with_code(code);
        for word in words {
            let said = &ended.stderr;
            assert!(said.contains(word), "{word:?} was not said in:\n{said}");
        }
        ended
    }

    #[track_caller]
    fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{}\n{}", self.stderr, self.stdout);
        self
    }

    /// Standard output, which must be one JSON object and nothing else.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout).unwrap();
        assert!(value.is_object(), "{}", self.stdout);
        value
    }
}
