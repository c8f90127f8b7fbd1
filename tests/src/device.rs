//! Loop devices, filesystems and network namespaces. They need root; where one can't be had, the
//! test is skipped aloud.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::skip::skip;
use crate::{temporary_directory, volume};

/// A loop device over a file of its own, detached when dropped.
#[derive(Debug)]
pub struct Loop {
    /// The device.
    pub device: PathBuf,
    /// The file behind it.
    pub backing: PathBuf,
    _directory: TempDir,
}

impl Loop {
    /// A device of `size` bytes of [`volume::DIRT`], with sectors of `sector` bytes.
    #[must_use]
    pub fn dirty(size: u64, sector: u32) -> Option<Self> {
        let directory = temporary_directory();
        let backing = directory.path().join("backing");
        volume::create_dirty(&backing, size);
        Self::over(directory, backing, &["-b", &sector.to_string()])
    }

    /// A device of `size` bytes of [`volume::DIRT`] that can't be written.
    #[must_use]
    pub fn read_only(size: u64) -> Option<Self> {
        let directory = temporary_directory();
        let backing = directory.path().join("backing");
        volume::create_dirty(&backing, size);
        Self::over(directory, backing, &["-r"])
    }

    /// A device over a file that `make` makes.
    #[must_use]
    pub fn made_by(sector: u32, make: impl FnOnce(&Path)) -> Option<Self> {
        let directory = temporary_directory();
        let backing = directory.path().join("backing");
        make(&backing);
        Self::over(directory, backing, &["-b", &sector.to_string()])
    }

    /// A device over a sparse file of `size` bytes that lies in `parent`.
    #[must_use]
    pub fn thin(parent: &Path, size: u64) -> Option<Self> {
        let backing = parent.join("backing");
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&backing)
            .unwrap();
        file.set_len(size).unwrap();
        Self::over(temporary_directory(), backing, &[])
    }

    /// A device over a file that somebody else keeps.
    #[must_use]
    pub fn over_file(backing: &Path) -> Option<Self> {
        Self::over(temporary_directory(), backing.to_owned(), &[])
    }

    fn over(directory: TempDir, backing: PathBuf, arguments: &[&str]) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["-f", "--show"]).args(arguments).arg(&backing);
        let device = run(&mut losetup)?;
        Some(Self {
            device: device.trim().into(),
            backing,
            _directory: directory,
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _left = Command::new("losetup").arg("-d").arg(&self.device).output();
    }
}

/// A mounted filesystem, unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    directory: TempDir,
    /// Detached after the unmount.
    backing: Option<Loop>,
}

impl Mount {
    /// An ext4 filesystem on a loop device of `size` bytes.
    #[must_use]
    pub fn ext4(size: u64) -> Option<Self> {
        Self::made_by("mkfs.ext4", size)
    }

    /// A filesystem that `mkfs` makes on a loop device of `size` bytes.
    #[must_use]
    pub fn made_by(mkfs: &str, size: u64) -> Option<Self> {
        let device = Loop::made_by(512, |backing| {
            let file = File::create_new(backing).unwrap();
            file.set_len(size).unwrap();
        })?;
        Self::on(mkfs, device)
    }

    /// A filesystem that `mkfs` makes on `device`.
    #[must_use]
    pub fn on(mkfs: &str, device: Loop) -> Option<Self> {
        run(Command::new(mkfs).arg("-q").arg(&device.device))?;
        Self::of(device)
    }

    /// The filesystem that is on `device`.
    #[must_use]
    pub fn of(device: Loop) -> Option<Self> {
        let path = device.device.clone();
        Self::new(&[path.as_os_str()], Some(device))
    }

    /// Takes the filesystem, an ext4, away, has it repaired, and mounts it again.
    #[must_use]
    pub fn repair(&self) -> Option<()> {
        let device = self.device()?;
        run(Command::new("umount").arg(self.path()))?;
        // 1 says that something was repaired.
        let repaired = Command::new("e2fsck").arg("-fy").arg(device).output();
        let code = repaired.ok().and_then(|output| output.status.code());
        assert!(matches!(code, Some(0 | 1)), "e2fsck ended with {code:?}");
        run(Command::new("mount").arg(device).arg(self.path())).map(drop)
    }

    /// A filesystem in memory of `size` bytes.
    #[must_use]
    pub fn tmpfs(size: u64) -> Option<Self> {
        let size = format!("size={size}");
        let arguments = ["-t", "tmpfs", "-o", &size, "tmpfs"].map(OsStr::new);
        Self::new(&arguments, None)
    }

    fn new(arguments: &[&OsStr], device: Option<Loop>) -> Option<Self> {
        let directory = temporary_directory();
        let mut mount = Command::new("mount");
        run(mount.args(arguments).arg(directory.path()))?;
        Some(Self {
            directory,
            backing: device,
        })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The device that is mounted.
    #[must_use]
    pub fn device(&self) -> Option<&Path> {
        self.backing.as_ref().map(|device| device.device.as_path())
    }
}

impl Drop for Mount {
    /// A program that another test is just starting holds all open files until it runs, and the
    /// mount is busy for that moment. It must go before its directory is removed with what is in it.
    fn drop(&mut self) {
        let umount = |lazily: &[&str]| {
            let mut umount = Command::new("umount");
            let done = umount.args(lazily).arg(self.directory.path()).output();
            done.is_ok_and(|output| output.status.success())
        };
        for _ in 0..100 {
            if umount(&[]) {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        umount(&["--lazy"]);
    }
}

/// Two network namespaces with one cable between them, removed when dropped.
#[derive(Debug)]
pub struct Namespaces {
    /// The first one's name.
    pub left: String,
    /// The second one's name.
    pub right: String,
}

impl Namespaces {
    /// The address at the right end: one that RFC 5737 keeps free for documentation, in a network
    /// that exists nowhere else.
    pub const RIGHT_ADDRESS: &str = "192.0.2.2";

    /// Makes them, or skips the test.
    #[must_use]
    pub fn new() -> Option<Self> {
        Self::with_cable().map_or_else(|why| skip(&why), Some)
    }

    fn with_cable() -> Result<Self, String> {
        let ends = Self::apart()?;
        let Self { left, right } = &ends;
        ip(&format!(
            "-n {left} link add cable type veth peer name cable netns {right}"
        ))?;
        ends.set_up("cable")?;
        Ok(ends)
    }

    /// Makes them with nothing between them.
    pub(crate) fn apart() -> Result<Self, String> {
        let unique = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let ends = Self {
            left: format!("vf-{unique}-l"),
            right: format!("vf-{unique}-r"),
        };
        for name in [&ends.left, &ends.right] {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(ends)
    }

    /// Sets up what lies between them: a device of one name in both.
    pub(crate) fn set_up(&self, device: &str) -> Result<(), String> {
        for (name, address) in [
            (&self.left, "192.0.2.1"),
            (&self.right, Self::RIGHT_ADDRESS),
        ] {
            ip(&format!("-n {name} address add {address}/24 dev {device}"))?;
            // Nothing is to be lost but what is meant to be.
            ip(&format!(
                "-n {name} link set dev {device} up txqueuelen 10000"
            ))?;
        }
        Ok(())
    }

    /// Runs `work` on a thread within the namespace `name`: the sockets and devices that it makes stay there.
    ///
    /// # Errors
    /// When there is no such namespace or it can't be entered, and those of `work`.
    pub fn run_in<T: Send>(
        name: &str,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        thread::scope(|scope| {
            let within = scope.spawn(|| {
                let namespace = File::open(format!("/run/netns/{name}"))?;
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind)?;
                work()
            });
            within.join().unwrap()
        })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.left, &self.right] {
            let _left = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Runs a tool. When it fails, the test is skipped for what it said.
pub fn run(command: &mut Command) -> Option<String> {
    try_run(command).map_or_else(|why| skip(&why), Some)
}

fn ip(words: &str) -> Result<String, String> {
    try_run(Command::new("ip").args(words.split(' ')))
}

fn try_run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("{program}: {error}")),
    }
}
