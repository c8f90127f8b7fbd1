//! Two loop devices whose backing files lie in memory: a clone between them is bound by processor
//! time alone.
//!
//! Nothing is left behind, however the run ends. As soon as the devices are open, they are told to
//! go away at their last close, and the memory filesystem is unmounted lazily. From then on this
//! process's open files are all that keeps them, and the kernel closes those even after SIGKILL.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{At as _, Error};
use crate::input;
use crate::size::Size;
use crate::tools::{self, Tools};

/// What has to be installed.
pub(crate) const PROGRAMS: [&str; 3] = ["mount", "umount", "losetup"];

/// A source device full of random data and a target device full of something else.
#[derive(Debug)]
pub(crate) struct Devices {
    /// Where the source device is.
    pub source: PathBuf,
    /// Where the target device is.
    pub target: PathBuf,
    target_backing: File,
    /// Keep the devices alive.
    _open: [File; 2],
}

/// A mounted memory filesystem; unmounted lazily when dropped.
struct Memory<'a>(&'a Path, &'a Tools);

/// A configured loop device; detached when dropped, or at its last close.
pub(crate) struct Loop<'a>(PathBuf, &'a Tools);

impl Devices {
    /// Makes both devices of `size`; `directory` is an empty one to mount on for a moment.
    pub(crate) fn make(directory: &Path, size: Size, tools: &Tools) -> Result<Self, Error> {
        let memory = Memory::mount(directory, size.0 * 2 + SLACK, tools)?;
        let source_backing = directory.join("source");
        let file = File::create(&source_backing).at("create", &source_backing)?;
        input::fill(&file, &source_backing, 0..size.0)?;
        let target_backing = directory.join("target");
        let target_file = File::create(&target_backing).at("create", &target_backing)?;
        target_file.set_len(size.0).at("resize", &target_backing)?;
        let source = Loop::attach(&source_backing, &[], tools)?;
        let target = Loop::attach(&target_backing, &[], tools)?;
        let open = |path: &Path| {
            File::options()
                .read(true)
                .write(true)
                .open(path)
                .at("open", path)
        };
        let devices = Self {
            _open: [open(&source.0)?, open(&target.0)?],
            source: source.0.clone(),
            target: target.0.clone(),
            target_backing: target_file,
        };
        drop((source, target, memory));
        Ok(devices)
    }

    /// Bytes that the target device's backing file occupies.
    pub(crate) fn allocated_bytes(&self) -> Result<u64, Error> {
        let metadata = self.target_backing.metadata().at("look at", &self.target)?;
        Ok(metadata.blocks() * 512)
    }
}

impl<'a> Memory<'a> {
    fn mount(directory: &'a Path, bytes: u64, tools: &'a Tools) -> Result<Self, Error> {
        let mut mount = tools.command("mount");
        mount
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={bytes}"));
        tools::run(mount.arg("volferry-bench").arg(directory))?;
        Ok(Self(directory, tools))
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // The mount is gone with its last user in any case; its place stays empty.
        let _ = tools::run(self.1.command("umount").arg("--lazy").arg(self.0));
    }
}

impl<'a> Loop<'a> {
    /// A device over the file `backing`, with such options of losetup.
    pub(crate) fn attach(
        backing: &Path,
        options: &[&str],
        tools: &'a Tools,
    ) -> Result<Self, Error> {
        let mut losetup: Command = tools.command("losetup");
        losetup.args(["--find", "--show"]).args(options);
        let device = tools::run(losetup.arg(backing))?;
        let device = PathBuf::from(device.trim());
        fs::metadata(&device).at("look at", &device)?;
        Ok(Self(device, tools))
    }

    /// The device.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Loop<'_> {
    fn drop(&mut self) {
        // The device was just attached, so this can't fail in a way that we could mend.
        let _ = tools::run(self.1.command("losetup").arg("--detach").arg(&self.0));
    }
}

/// For the memory filesystem's own needs.
const SLACK: u64 = 64 << 20;
