//! What breaks under a clone ends it at both ends, soon, with the place and the remedy; and never
//! with a receipt.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::OpenOptions;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use volferry_tests::agents::{Agents, HeldClone};
use volferry_tests::device::{Loop, Mount};
use volferry_tests::programs::{Ended, volferry};
use volferry_tests::volume;
use volferry_tests::{MIB, temporary_directory};
use volferry_transport::Role;

fn copy(source: &Path, target: &Path, arguments: &[&str]) -> Ended {
    let paths = [source, target].map(|path| path.to_str().unwrap());
    volferry([&["copy"], &paths[..], arguments].concat())
}

fn cut(path: &Path, size: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(size).unwrap();
    file.sync_all().unwrap();
}

/// The failure that an agent left in place of a receipt.
#[track_caller]
fn failure(agents: &Agents, role: Role) -> Value {
    let left = agents.receipt(role);
    assert!(left.get("digest").is_none(), "{left}");
    left["failure"].clone()
}

#[test]
fn a_source_that_shrinks() {
    let held = HeldClone::start();
    let size = HeldClone::SIZE - 4 * MIB + 8192;
    cut(&held.source_volume, size);
    held.gate.open();
    let words = [
        format!("ended at byte {size}"),
        "stop what resizes the source".to_owned(),
    ];
    let words = words.each_ref().map(String::as_str);
    held.source.end().failed(3, &words);
    held.target.end().failed(3, &words);
    for role in [Role::Source, Role::Target] {
        assert_eq!(failure(&held.agents, role)["code"], "source_changed");
    }
}

#[test]
fn a_source_that_is_written_meanwhile() {
    let held = HeldClone::start();
    volume::flip(&held.source_volume, 17);
    held.gate.open();
    let words = ["was written while it was read", "use a snapshot"];
    held.source.end().failed(3, &words);
    held.target.end().failed(3, &words);
    assert_eq!(
        failure(&held.agents, Role::Source)["code"],
        "source_changed"
    );
}

/// The kernel answers EIO for sectors that a loop device's file no longer has.
#[test]
fn a_source_that_can_not_be_read() {
    // The last chunk, or it would be chance which of the readers fails first.
    let (size, left) = (8 * MIB, 7 * MIB + 4096);
    let Some(source) = Loop::dirty(size, 512) else {
        return;
    };
    cut(&source.backing, left);
    let directory = temporary_directory();
    let target = directory.path().join("target");
    let words = [
        "source_read",
        source.device.to_str().unwrap(),
        "could not read bytes 734",
        "..8388608",
        "look at the kernel log",
    ];
    copy(&source.device, &target, &[]).failed(3, &words);

    let agents = Agents::default();
    let target = agents.start_target(&agents.path("target"), &[]);
    let source = agents.start_source(target.address(), &source.device, &[]);
    source.end().failed(3, &words[1..]);
    target.end().failed(3, &words[1..]);
    assert_eq!(failure(&agents, Role::Target)["code"], "source_read");
}

#[test]
fn a_target_filesystem_that_fills_up() {
    let directory = temporary_directory();
    let source = directory.path().join("source");
    volume::create_dense(&source, 40 * MIB, 1);
    for mount in [Mount::tmpfs(8 * MIB), Mount::ext4(32 * MIB)] {
        let Some(mount) = mount else { return };
        for way in [&[][..], &["--buffered"]] {
            let target = mount.path().join("disk.img");
            let words = [
                "target_no_space",
                target.to_str().unwrap(),
                "could not write bytes",
                "free space, raise the quota, or choose a larger target",
            ];
            copy(&source, &target, way).failed(4, &words);
            std::fs::remove_file(&target).unwrap();
        }
    }
}

#[test]
fn a_target_filesystem_that_fills_up_under_two_agents() {
    let Some(mount) = Mount::tmpfs(8 * MIB) else {
        return;
    };
    let agents = Agents::default();
    let source_volume = agents.path("source");
    volume::create_dense(&source_volume, 16 * MIB, 1);
    let target_volume = mount.path().join("disk.img");
    let target = agents.start_target(&target_volume, &[]);
    let source = agents.start_source(target.address(), &source_volume, &[]);
    let words = [target_volume.to_str().unwrap(), "free space"];
    source.end().failed(4, &words);
    target.end().failed(4, &words);
    for role in [Role::Source, Role::Target] {
        let failure = failure(&agents, role);
        assert_eq!(failure["code"], "target_no_space");
        assert_eq!(failure["retryable"], false);
    }
}

#[test]
fn a_target_that_can_not_be_allocated_is_refused_before_a_byte_is_written() {
    let Some(mount) = Mount::tmpfs(8 * MIB) else {
        return;
    };
    let directory = temporary_directory();
    let source = directory.path().join("source");
    volume::create(&source, 16 * MIB, 1);
    let target = mount.path().join("disk.img");
    let ended = copy(&source, &target, &["--preallocate"]);
    ended.failed(4, &["target_no_space", "needs 16777216 more"]);
    assert!(!target.exists());
}

/// A thin device promises more than it has, and breaks its promise with an error of its own.
#[test]
fn a_thin_target_that_runs_dry() {
    let Some(mount) = Mount::tmpfs(8 * MIB) else {
        return;
    };
    let Some(target) = Loop::thin(mount.path(), 32 * MIB) else {
        return;
    };
    let directory = temporary_directory();
    let source = directory.path().join("source");
    volume::create_dense(&source, 32 * MIB, 1);
    for way in [&[][..], &["--buffered"]] {
        let ended = copy(&source, &target.device, way);
        ended.failed(4, &["target_", target.device.to_str().unwrap()]);
    }
}

/// How long the agent that is left waits for the other to come back.
const PATIENCE: [&str; 2] = ["--stall-timeout", "8s"];

/// Whoever is signalled ends and says so; the other waits for it to come back, as a pod does that
/// is moved, and when nobody comes, tells what the last was that it heard.
#[track_caller]
fn ended_by(signal: Signal, to: Role) {
    let held = HeldClone::start_with(&PATIENCE);
    let (ended, left, left_role) = match to {
        Role::Source => (held.source, held.target, Role::Target),
        _ => (held.target, held.source, Role::Source),
    };
    ended.signal(signal);
    ended.end().failed(8, &["ended by a signal"]);
    let note = failure(&held.agents, to);
    assert_eq!(note["class"], "cancelled");
    assert_eq!(note["exit_code"], 8);
    assert_eq!(note["retryable"], true);
    left.end()
        .failed(5, &["nothing became durable", "ended by a signal"]);
    assert_eq!(failure(&held.agents, left_role)["code"], "stalled");
}

#[test]
fn sigterm_ends_the_source_and_the_target_waits() {
    ended_by(Signal::TERM, Role::Source);
}

#[test]
fn sigterm_ends_the_target_and_the_source_waits() {
    ended_by(Signal::TERM, Role::Target);
}

#[test]
fn sigint_ends_as_sigterm_does() {
    ended_by(Signal::INT, Role::Source);
}

#[test]
fn sigterm_ends_agents_that_still_wait_for_each_other() {
    let agents = Agents::default();
    let volume = agents.path("source");
    volume::create(&volume, MIB, 1);
    let target = agents.start_target(&agents.path("target"), &[]);
    target.signal(Signal::TERM);
    let address = target.address();
    target.end().failed(8, &["ended by a signal"]);
    assert_eq!(failure(&agents, Role::Target)["class"], "cancelled");

    let mut source = agents.start_source(address, &volume, &["--connect-timeout", "600"]);
    source.wait_for("the source volume is open");
    source.signal(Signal::TERM);
    source.end().failed(8, &["ended by a signal"]);
    assert_eq!(failure(&agents, Role::Source)["class"], "cancelled");
}

/// No goodbye, no flush: the other end notices by itself that nobody is there any more, and waits.
#[track_caller]
fn killed(victim: Role) {
    let held = HeldClone::start_with(&PATIENCE);
    let (victim, survivor, role) = match victim {
        Role::Source => (held.source, held.target, Role::Target),
        _ => (held.target, held.source, Role::Source),
    };
    victim.signal(Signal::KILL);
    assert_eq!(victim.end().status.code(), None);
    let words = ["class=\"network\"", "The last session ended so"];
    survivor.end().failed(5, &words);
    let failure = failure(&held.agents, role);
    assert_eq!(failure["class"], "network");
    assert_eq!(failure["code"], "stalled");
}

#[test]
fn a_target_survives_the_death_of_its_source() {
    killed(Role::Source);
}

#[test]
fn a_source_survives_the_death_of_its_target() {
    killed(Role::Target);
}
