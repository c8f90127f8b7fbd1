//! Targets of trees whose storage fails in the middle: full, over a quota, read-only, or with errors.
//! The clone stops and says at what, and another attempt with `--overwrite` takes up what is there.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use volferry_tests::agents::Agents;
use volferry_tests::device::{Loop, Mount, run};
use volferry_tests::gate::Gate;
use volferry_tests::nbd::{Filter, Storage};
use volferry_tests::programs::{self, Ended};
use volferry_tests::{MIB, temporary_directory, tree, volume};

/// Bytes of each small file.
const SMALL: usize = 64 << 10;

/// A tree of 8 MiB in small files, and one of 8 MiB.
fn plant() -> (TempDir, PathBuf) {
    let directory = temporary_directory();
    let source = directory.path().join("source");
    for number in 0..128_usize {
        let at = source.join(format!("directory {}", number / 16));
        fs::create_dir_all(&at).unwrap();
        let content = vec![u8::try_from(number).unwrap() | 1; SMALL];
        fs::write(at.join(format!("small {number}")), content).unwrap();
    }
    volume::create_dense(&source.join("large"), 8 * MIB, 5);
    (directory, source)
}

fn copy(source: &Path, target: &Path, arguments: &[&str]) -> Ended {
    let mut command = programs::command(programs::CLI);
    programs::run(command.arg("copy").args([source, target]).args(arguments))
}

/// The second attempt.
#[track_caller]
fn again(source: &Path, target: &Path) {
    let _again = copy(source, target, &["--overwrite"]).succeeded();
    tree::assert_same(source, target);
}

/// A full target names the file that didn't fit, with its size and with what is left.
#[test]
fn a_full_filesystem() {
    let (_directory, source) = plant();
    for only in ["", "large", "small"] {
        let Some(mount) = Mount::ext4(64 * MIB) else {
            return;
        };
        // What else the filesystem holds leaves room for a part of the tree.
        let ballast = mount.path().join("ballast");
        let stat = rustix::fs::statvfs(mount.path()).unwrap();
        let left = stat.f_bavail * stat.f_frsize;
        let kept = if only.is_empty() { 12 * MIB } else { 4 * MIB };
        volume::create_dense(&ballast, left - kept, 1);
        rustix::fs::sync();
        let (_part, source) = part(&source, only);
        let target = mount.path().join("tree");
        let ended = copy(&source, &target, &[]);
        let ended = ended.failed(4, &["target_no_space", "no room for", "bytes left"]);
        ended.failed(
            4,
            &[
                mount.path().to_str().unwrap(),
                "clone again with --overwrite",
            ],
        );
        fs::remove_file(&ballast).unwrap();
        again(&source, &target);
    }
}

/// The whole tree, or its large or its small files alone.
fn part(source: &Path, only: &str) -> (TempDir, PathBuf) {
    let directory = temporary_directory();
    let part = directory.path().join("source");
    let mut cp = Command::new("cp");
    let copied = cp.arg("-a").args([source, &part]).status();
    assert!(copied.unwrap().success());
    match only {
        "large" => {
            for number in 0..8 {
                fs::remove_dir_all(part.join(format!("directory {number}"))).unwrap();
            }
        }
        "small" => fs::remove_file(part.join("large")).unwrap(),
        _ => {}
    }
    (directory, part)
}

/// A quota that is used up is told as such.
#[test]
fn a_quota_that_is_used_up() {
    let Some(mount) = Mount::made_by("mkfs.btrfs", 512 * MIB) else {
        return;
    };
    let (_directory, source) = plant();
    let target = mount.path().join("tree");
    let btrfs = |words: &[&str], path: &Path| run(Command::new("btrfs").args(words).arg(path));
    let limited = btrfs(&["-q", "quota", "enable"], mount.path())
        .and_then(|_| btrfs(&["-q", "subvolume", "create"], &target))
        .and_then(|_| btrfs(&["-q", "qgroup", "limit", "6M"], &target));
    let Some(_) = limited else {
        return;
    };
    let words = ["target_no_space", "no room for", "a quota is used up"];
    copy(&source, &target, &[]).failed(4, &words);
    let Some(_) = btrfs(&["-q", "qgroup", "limit", "none"], &target) else {
        return;
    };
    again(&source, &target);
}

/// A filesystem that was found broken in the middle of the clone takes no more writes: the clone stops
/// with the kernel's words, and goes well when the filesystem was repaired.
#[test]
fn a_filesystem_that_becomes_read_only() {
    let Some(mount) = Mount::ext4(128 * MIB) else {
        return;
    };
    let (_directory, source) = plant();
    let target = mount.path().join("tree");
    fs::create_dir(&target).unwrap();
    let agents = Agents::default();
    let target_agent = agents.start_target(&target, &["--memory-mib", "16"]);
    let gate = Gate::closing_after(4 * MIB, target_agent.address());
    let arguments = ["--memory-mib", "16", "--streams", "1"];
    let source_agent = agents.start_source(gate.address(), &source, &arguments);
    gate.wait_until_it_holds();
    let mut abort = Command::new("mount");
    abort.args(["-o", "remount,errors=remount-ro,abort"]);
    let Some(_) = run(abort.arg(mount.path())) else {
        return;
    };
    gate.open();
    let (source_end, target_end) = (source_agent.end(), target_agent.end());
    target_end.failed(4, &["target_write", "Read-only file system"]);
    source_end.failed(4, &["target_write", "Read-only file system"]);
    let Some(()) = mount.repair() else {
        return;
    };
    again(&source, &target);
}

/// Storage that fails ends the clone, whether it does so at a write or only at the flush.
#[test]
fn storage_that_fails() {
    let (_directory, source) = plant();
    for only in ["large", "small"] {
        let (_part, source) = part(&source, only);
        let Some(storage) = Storage::dirty(64 * MIB, Filter::FailingWrites) else {
            return;
        };
        let device = Loop::over_file(&storage.file);
        let Some(mount) = device.and_then(|device| Mount::on("mkfs.ext4", device)) else {
            return;
        };
        let target = mount.path().join("tree");
        fs::create_dir(&target).unwrap();
        rustix::fs::sync();
        storage.set_failing(true);
        let ended = copy(&source, &target, &[]);
        storage.set_failing(false);
        // What the kernel says once a filesystem has failed is its own affair.
        ended.failed(4, &["target_write", "os error"]);
        let Some(()) = mount.repair() else {
            return;
        };
        again(&source, &target);
    }
}
