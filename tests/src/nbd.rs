//! Storage that misbehaves: nbdkit serves a backing file through filters that lose, fail or stall,
//! and nbdfuse shows it as a file.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::skip::skip;
use crate::{PATIENCE, temporary_directory, volume};

/// What nbdkit does to a backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Keeps what is written to itself until it is flushed; killed, it loses it.
    VolatileCache,
    /// Fails each write with `EIO` while the [trigger](Storage::set_failing) is there.
    FailingWrites,
    /// Fails each write with `ENOSPC` while the trigger is there.
    NoSpace,
    /// Fails each read with `EIO` while the trigger is there.
    FailingReads,
    /// Stops when it is [paused](Storage::pause).
    Pausing,
}

/// A file whose storage misbehaves. Dropped, it is taken away.
#[derive(Debug)]
pub struct Storage {
    /// The file that a target writes.
    pub file: PathBuf,
    /// Where its bytes end up.
    pub backing: PathBuf,
    size: u64,
    filter: Filter,
    directory: TempDir,
    server: Option<Child>,
    mount: Option<Child>,
}

impl Storage {
    /// A file of `size` bytes of [`volume::DIRT`]. The test is skipped where it can't be had.
    #[must_use]
    pub fn dirty(size: u64, filter: Filter) -> Option<Self> {
        let directory = temporary_directory();
        let backing = directory.path().join("backing");
        volume::create_dirty(&backing, size);
        let file = directory.path().join("file");
        File::create_new(&file).unwrap();
        let mut storage = Self {
            file,
            backing,
            size,
            filter,
            directory,
            server: None,
            mount: None,
        };
        storage.serve()?;
        Some(storage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts what was killed.
    pub fn serve(&mut self) -> Option<()> {
        let socket = self.path("socket");
        let trigger = self.path("trigger");
        let pause = self.path("pause");
        for left in [&socket, &pause] {
            let _gone = fs::remove_file(left);
        }
        let with = |name: &str, path: &Path| {
            let mut argument = OsString::from(name);
            argument.push(path);
            argument
        };
        let mut server = Command::new("nbdkit");
        server
            .args(["-f", "--exit-with-parent", "--unix"])
            .arg(&socket);
        let (name, parameters) = match self.filter {
            // The cache doesn't know of trimmed ranges and would bring their bytes back, and nbdfuse
            // makes a hole by trimming; refused that, who wants zeros finds another way.
            Filter::VolatileCache => (
                "cache",
                vec![
                    "cache=writeback".into(),
                    "error-trim=EINVAL".into(),
                    "error-trim-rate=100%".into(),
                ],
            ),
            Filter::FailingWrites => (
                "error",
                vec![
                    "error-pwrite=EIO".into(),
                    "error-pwrite-rate=100%".into(),
                    with("error-pwrite-file=", &trigger),
                ],
            ),
            Filter::NoSpace => (
                "error",
                vec![
                    "error-pwrite=ENOSPC".into(),
                    "error-pwrite-rate=100%".into(),
                    with("error-pwrite-file=", &trigger),
                ],
            ),
            Filter::FailingReads => (
                "error",
                vec![
                    "error-pread=EIO".into(),
                    "error-pread-rate=100%".into(),
                    with("error-pread-file=", &trigger),
                ],
            ),
            Filter::Pausing => ("pause", vec![with("pause-control=", &pause)]),
        };
        if self.filter == Filter::VolatileCache {
            server.arg("--filter=error");
        }
        server.arg(format!("--filter={name}"));
        server.arg("file").arg(&self.backing).args(parameters);
        // The cache lies there.
        server.env("TMPDIR", self.directory.path());
        self.server = Some(start(&mut server)?);
        wait_for("nbdkit", || socket.exists());

        let mut mount = Command::new("nbdfuse");
        mount
            .arg(&self.file)
            .arg(with("nbd+unix:///?socket=", &socket));
        self.mount = Some(start(&mut mount)?);
        let is_there = || {
            self.file
                .metadata()
                .is_ok_and(|found| found.len() == self.size)
        };
        let give_up_at = Instant::now() + PATIENCE / 6;
        while !is_there() {
            if Instant::now() > give_up_at {
                return skip("nbdfuse shows no file");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Some(())
    }

    /// The power goes: what was not flushed is lost.
    pub fn kill(&mut self) {
        let children = [self.server.take(), self.mount.take()];
        for mut child in children.into_iter().flatten() {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        let _gone = Command::new("umount")
            .arg("--lazy")
            .arg(&self.file)
            .output();
    }

    /// Has the filter fail from now on, or no more.
    pub fn set_failing(&self, is_failing: bool) {
        let trigger = self.path("trigger");
        if is_failing {
            File::create(trigger).unwrap();
        } else {
            fs::remove_file(trigger).unwrap();
        }
    }

    /// Stops all reads and writes, as long as what is returned is kept. Nobody who waits for one can
    /// be ended meanwhile, not even killed.
    #[must_use]
    pub fn pause(&self) -> Paused {
        let control = self.path("pause");
        tell(&control, b"p");
        Paused { control }
    }
}

/// Storage that stands still.
#[derive(Debug)]
pub struct Paused {
    control: PathBuf,
}

impl Drop for Paused {
    fn drop(&mut self) {
        tell(&self.control, b"r");
    }
}

/// Asks the pause filter, which answers when it has done so.
fn tell(control: &Path, word: &[u8]) {
    let mut control = UnixStream::connect(control).unwrap();
    control.set_read_timeout(Some(PATIENCE)).unwrap();
    control.write_all(word).unwrap();
    control.read_exact(&mut [0]).unwrap();
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a tool. When it isn't there, the test is skipped.
fn start(command: &mut Command) -> Option<Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    let started = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match started {
        Ok(child) => Some(child),
        Err(error) => skip(&format!("{program}: {error}")),
    }
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let give_up_at = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < give_up_at, "{what} does not start");
        thread::sleep(Duration::from_millis(10));
    }
}
