//! Loop devices and filesystems that go away by themselves, and programs that tests run.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

/// A loop device over a file of its own, detached when dropped.
pub(crate) struct Loop {
    pub(crate) device: PathBuf,
    pub(crate) backing: PathBuf,
    _dir: TempDir,
}

impl Loop {
    /// A device of `size` bytes, each of them `fill`; `arguments` are for losetup.
    pub(crate) fn filled(size: u64, fill: u8, arguments: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("backing");
        let mut file = File::create(&backing).unwrap();
        if fill == 0 {
            file.set_len(size).unwrap();
        } else {
            let content = vec![fill; usize::try_from(size).unwrap()];
            file.write_all(&content).unwrap();
            file.sync_all().unwrap();
        }
        let command = [&["-f", "--show"], arguments].concat();
        let device = try_run("losetup", &command, &backing)?;
        Some(Self {
            device: device.trim().into(),
            backing,
            _dir: dir,
        })
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        let file = File::open(&self.backing).unwrap();
        file.sync_all().unwrap();
        file.metadata().unwrap().blocks() * 512
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _left_over = run("losetup", &["-d"], &self.device);
    }
}

/// A mounted filesystem, unmounted when dropped.
pub(crate) struct Mount(TempDir);

impl Mount {
    /// A new filesystem on a device.
    pub(crate) fn of(device: &Loop, mkfs: &str) -> Option<Self> {
        Self::with(device, mkfs, &["-q"], &[])
    }

    fn with(device: &Loop, mkfs: &str, arguments: &[&str], options: &[&str]) -> Option<Self> {
        try_run(mkfs, arguments, &device.device)?;
        let dir = tempfile::tempdir().unwrap();
        let device = device.device.to_str().unwrap();
        try_run("mount", &[options, &[device]].concat(), dir.path())?;
        Some(Self(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    /// A program that another test is just starting holds all open files until it runs, and the
    /// mount is busy for that moment. It must go before its directory is removed with what is in it.
    fn drop(&mut self) {
        for _ in 0..100 {
            if run("umount", &[], self.0.path()).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        let _left_over = run("umount", &["--lazy"], self.0.path());
    }
}

/// A new filesystem on a device of its own.
pub(crate) struct Filesystem {
    mount: Mount,
    #[expect(dead_code, reason = "detached after the unmount")]
    device: Loop,
}

impl Filesystem {
    pub(crate) fn new(mkfs: &str) -> Option<Self> {
        Self::with(mkfs, &["-q"], &[])
    }

    /// One to which upper and lower case are the same.
    pub(crate) fn that_folds_case() -> Option<Self> {
        let options = ["-t", "lowntfs-3g", "-o", "ignore_case,permissions"];
        Self::with("mkfs.ntfs", &["-q", "-f"], &options)
    }

    fn with(mkfs: &str, arguments: &[&str], options: &[&str]) -> Option<Self> {
        let device = Loop::filled(512 << 20, 0, &[])?;
        let mount = Mount::with(&device, mkfs, arguments, options)?;
        Some(Self { mount, device })
    }

    pub(crate) fn path(&self) -> &Path {
        self.mount.path()
    }
}

/// Runs a program with `path` as its last argument. When it fails, the test is skipped for what it
/// said.
pub(crate) fn try_run(program: &str, arguments: &[&str], path: &Path) -> Option<String> {
    run(program, arguments, path).map_or_else(|reason| skip(&reason), Some)
}

/// Runs a program with `path` as its last argument; what it printed, or why it failed.
pub(crate) fn run(program: &str, arguments: &[&str], path: &Path) -> Result<String, String> {
    let output = Command::new(program).args(arguments).arg(path).output();
    match output {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// Says that a test is skipped, as `skip` of tests/src/skip.rs does, which this crate can't use:
/// its own tests would depend on what depends on it.
pub(crate) fn skip<T>(reason: &str) -> Option<T> {
    let reason = reason.trim();
    let test = thread::current().name().unwrap_or("a test").to_owned();
    let may_skip = std::env::var("VOLFERRY_TESTS_SKIP").as_deref() != Ok("never");
    assert!(
        may_skip,
        "{test} can't run here, and nothing may be skipped: {reason}"
    );
    let line = format!("SKIPPED: {test}: {reason}\n");
    // Not `eprintln!`, which the test harness swallows when the test passes.
    let _unseen = std::io::stderr().write_all(line.as_bytes());
    // The test runs from `<target directory>/<profile>/deps`.
    let program = std::env::current_exe().unwrap();
    let list = program.ancestors().nth(3).unwrap();
    let list = list.join("skipped-tests.txt");
    let list = OpenOptions::new().create(true).append(true).open(list);
    let _unkept = list.and_then(|mut list| list.write_all(line.as_bytes()));
    None
}
