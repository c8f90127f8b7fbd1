//! What can't become a clone is refused before a byte is written, with the reason and the remedy.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use volferry_tests::agents::Agents;
use volferry_tests::device::{Loop, Mount};
use volferry_tests::programs::{Ended, volferry};
use volferry_tests::volume::{self, DIRT};
use volferry_tests::{MIB, temporary_directory};
use volferry_transport::Role;

fn copy(source: &Path, target: &Path, arguments: &[&str]) -> Ended {
    let paths = [source, target].map(|path| path.to_str().unwrap());
    volferry([&["copy"], &paths[..], arguments].concat())
}

#[test]
fn a_target_that_is_too_small() {
    let size = 4 * MIB;
    let Some(target) = Loop::dirty(size, 512) else {
        return;
    };
    let directory = temporary_directory();
    let source = directory.path().join("source");
    volume::create_dense(&source, size + 512, 1);
    let ended = copy(&source, &target.device, &["--zero-tail"]);
    let sizes = format!("holds {size} bytes, but the volume has {}", size + 512);
    ended.failed(
        4,
        &[
            "target_too_small",
            &sizes,
            "at least as large as the source",
        ],
    );
    volume::assert_holds_only(&target.device, 0, size, DIRT);
}

/// The agents learn of each other's sizes only when they meet: both say the same.
#[test]
fn a_target_that_is_too_small_for_two_agents() {
    let size = 2 * MIB;
    let Some(volume) = Loop::dirty(size, 4096) else {
        return;
    };
    let agents = Agents::default();
    let source_volume = agents.path("source");
    volume::create_dense(&source_volume, 3 * MIB, 1);
    let target = agents.start_target(&volume.device, &[]);
    let source = agents.start_source(target.address(), &source_volume, &[]);
    let words = [
        "but the volume has 3145728",
        "at least as large as the source",
    ];
    source.end().failed(4, &words);
    target.end().failed(4, &words);
    for role in [Role::Source, Role::Target] {
        let failure = &agents.receipt(role)["failure"];
        assert_eq!(failure["code"], "target_too_small", "{role}");
        assert_eq!(failure["retryable"], false);
    }
    volume::assert_holds_only(&volume.device, 0, size, DIRT);
}

#[test]
fn a_file_that_exists() {
    let agents = Agents::default();
    let [source, target] = ["source", "target"].map(|name| agents.path(name));
    volume::create(&source, MIB, 1);
    volume::create_dirty(&target, MIB);
    let words = ["target_in_use", "choose another path, or allow overwriting"];
    copy(&source, &target, &[]).failed(4, &words);
    agents.run_target(&target, &[]).failed(4, &words);
    volume::assert_holds_only(&target, 0, MIB, DIRT);

    fs::write(&target, "").unwrap();
    copy(&source, &target, &[]).failed(4, &words);
    assert_eq!(target.metadata().unwrap().len(), 0);
}

#[test]
fn a_mounted_device() {
    let Some(mount) = Mount::ext4(16 * MIB) else {
        return;
    };
    let agents = Agents::default();
    let source = agents.path("source");
    volume::create(&source, MIB, 1);
    let file = mount.path().join("precious");
    fs::write(&file, "precious").unwrap();
    let device = mount.device().unwrap();
    let words = ["target_in_use", "it is mounted", "stop what uses it"];
    copy(&source, device, &[]).failed(4, &words);
    agents.run_target(device, &[]).failed(4, &words);
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_target_that_another_agent_claimed() {
    let agents = Agents::default();
    let file = agents.path("target");
    volume::create_dirty(&file, MIB);
    let first = agents.start_target(&file, &["--overwrite"]);
    let words = ["target_in_use", "another process holds a lock on it"];
    agents.run_target(&file, &["--overwrite"]).failed(4, &words);
    drop(first);

    let Some(device) = Loop::dirty(MIB, 512) else {
        return;
    };
    let _first = agents.start_target(&device.device, &[]);
    let words = ["target_in_use", "another program claimed it"];
    agents.run_target(&device.device, &[]).failed(4, &words);
}

#[test]
fn a_file_behind_a_loop_device() {
    let Some(device) = Loop::dirty(MIB, 512) else {
        return;
    };
    let directory = temporary_directory();
    let source = directory.path().join("source");
    volume::create(&source, MIB, 1);
    let ended = copy(&source, &device.backing, &["--overwrite"]);
    let words = format!("backing file of {}", device.device.display());
    ended.failed(4, &["target_in_use", &words]);
    volume::assert_holds_only(&device.backing, 0, MIB, DIRT);
}

#[test]
fn a_device_that_can_not_be_written() {
    let Some(device) = Loop::read_only(MIB) else {
        return;
    };
    let directory = temporary_directory();
    let source = directory.path().join("source");
    volume::create(&source, MIB, 1);
    let words = ["target_open", "is read-only", "make it writable"];
    copy(&source, &device.device, &[]).failed(4, &words);
}

#[test]
fn the_source_itself() {
    let directory = temporary_directory();
    let path = |name: &str| directory.path().join(name);
    let source = path("source");
    volume::create_dirty(&source, MIB);
    fs::hard_link(&source, path("hard-link")).unwrap();
    symlink(&source, path("symbolic-link")).unwrap();
    for name in ["source", "hard-link", "symbolic-link", "./source"] {
        let ended = copy(&source, &path(name), &["--overwrite"]);
        ended.failed(2, &["are the same volume", "choose another target"]);
    }
    volume::assert_holds_only(&source, 0, MIB, DIRT);

    let Some(device) = Loop::dirty(MIB, 512) else {
        return;
    };
    for (source, target) in [
        (&device.device, &device.device),
        (&device.device, &device.backing),
        (&device.backing, &device.device),
    ] {
        let ended = copy(source, target, &["--overwrite"]);
        ended.failed(2, &["are the same volume"]);
    }
    volume::assert_holds_only(&device.device, 0, MIB, DIRT);
}

#[test]
fn what_is_no_volume() {
    let directory = temporary_directory();
    let path = |name: &str| directory.path().join(name);
    volume::create(&path("source"), MIB, 1);
    symlink(path("nowhere"), path("dangling")).unwrap();
    let target = |name: &str, words: &str| {
        copy(&path("source"), &path(name), &[]).failed(4, &["target_open", words]);
    };
    target("dangling", "leads nowhere");
    target("no/such/directory", "create the directory");
    let source = |name: &Path, words: &str| {
        copy(name, &path("target"), &[]).failed(3, &["source_open", words]);
    };
    source(&path("missing"), "No such file");
    source(
        Path::new("/dev/null"),
        "neither a regular file nor a block device",
    );
    let full = copy(&path("source"), directory.path(), &[]);
    full.failed(4, &["target_in_use", "is not empty"]);
    assert!(!path("target").exists(), "a refused clone leaves nothing");
    assert!(!path("nowhere").exists());
}

#[test]
fn arguments_that_can_not_be() {
    for (arguments, words) in [
        (&["copy", "a"][..], "<TARGET>"),
        (&["copy", "a", "b", "--chunk-size", "3MiB"], "--chunk-size"),
        (&["copy", "a", "b", "--chunk-size", "32KiB"], "--chunk-size"),
        (&["copy", "a", "b", "--streams", "0"], "--streams"),
        (&["copy", "a", "b", "--streams", "65"], "--streams"),
        (&["copy", "a", "b", "--memory-mib", "1"], "--memory-mib"),
        (&["ferry"], "ferry"),
        (&["verify", "a"], "--receipt"),
    ] {
        volferry(arguments).failed(2, &[words]);
    }
}
