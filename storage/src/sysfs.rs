//! What the kernel tells about block devices in /sys.
//!
//! All of it is advice: where /sys is missing, or names a path of another mount namespace, nothing
//! is learnt and nothing fails.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dev, major, minor};

/// A loop device and the file (or device) whose bytes it shows.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    pub(crate) device: PathBuf,
    pub(crate) backing: PathBuf,
}

/// All loop devices that have a backing file.
pub(crate) fn loop_devices() -> impl Iterator<Item = LoopDevice> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        Some(LoopDevice {
            backing: backing_file(&entry.path())?,
            device: Path::new("/dev").join(entry.file_name()),
        })
    })
}

/// The backing file of the loop device numbered `device`, or of the one it is a partition of.
pub(crate) fn loop_backing(device: Dev) -> Option<PathBuf> {
    let entry = entry(device)?;
    backing_file(&entry).or_else(|| backing_file(entry.parent()?))
}

/// The number of the disk that the device numbered `device` is a partition of.
pub(crate) fn disk_of_partition(device: Dev) -> Option<Dev> {
    let entry = entry(device)?;
    fs::metadata(entry.join("partition")).ok()?;
    let numbers = fs::read_to_string(entry.parent()?.join("dev")).ok()?;
    let (major, minor) = numbers.trim_end().split_once(':')?;
    Some(rustix::fs::makedev(
        major.parse().ok()?,
        minor.parse().ok()?,
    ))
}

/// Whether the device numbered `device` is set read-only.
pub(crate) fn is_read_only(device: Dev) -> bool {
    entry(device)
        .and_then(|entry| fs::read_to_string(entry.join("ro")).ok())
        .is_some_and(|flag| flag.trim_end() == "1")
}

/// The directory of a device; that of a partition lies within its disk's.
fn entry(device: Dev) -> Option<PathBuf> {
    let link = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    fs::canonicalize(link).ok()
}

fn backing_file(entry: &Path) -> Option<PathBuf> {
    let mut line = fs::read(entry.join("loop/backing_file")).ok()?;
    line.pop_if(|last| *last == b'\n');
    Some(OsString::from_vec(line).into())
}
