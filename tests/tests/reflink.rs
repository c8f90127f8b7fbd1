//! `volferry copy --reflink`: the target shares the source's blocks, and is proven all the same.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use serde_json::Value;
use volferry_tests::device::Mount;
use volferry_tests::{MIB, programs, volume};

const SIZE: u64 = 40 * MIB + 512;

fn copy(source: &Path, target: &Path, arguments: &[&str]) -> programs::Ended {
    let mut command = programs::command(programs::CLI);
    command.arg("copy").arg(source).arg(target).arg("--json");
    programs::run(command.args(arguments))
}

fn receipt(source: &Path, target: &Path, arguments: &[&str]) -> Value {
    copy(source, target, arguments).succeeded().json()
}

/// Bytes that are free on the filesystem of `path`, when all that was written is there.
fn free_bytes(path: &Path) -> u64 {
    rustix::fs::syncfs(fs::File::open(path).unwrap()).unwrap();
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bfree * stat.f_frsize
}

#[test]
fn a_target_that_shares_blocks_is_proven_like_any_other() {
    for mkfs in ["mkfs.xfs", "mkfs.btrfs"] {
        let Some(mount) = Mount::made_by(mkfs, 512 * MIB) else {
            continue;
        };
        let path = |name: &str| mount.path().join(name);
        let source = path("source");
        let content = volume::create(&source, SIZE, 9);
        let plain = receipt(&source, &path("plain"), &[]);
        let before = free_bytes(mount.path());
        for verify in ["digest", "readback"] {
            let target = path(verify);
            let shared = ["--reflink", "always", "--verify", verify];
            let told = receipt(&source, &target, &shared);
            volume::assert_same(&source, &target, SIZE);
            for field in [
                "digest",
                "logical_bytes",
                "data_bytes",
                "zero_bytes",
                "chunk_size",
            ] {
                assert_eq!(told[field], plain[field], "{field} on {mkfs}");
            }
            assert_eq!(told["verified"], verify);
            assert_eq!(told["sent_bytes"], 0, "{mkfs}: {told}");
            assert_eq!(told["matched_bytes"], content.data_bytes);
            let mut verified = programs::command(programs::CLI);
            fs::write(path("receipt"), told.to_string()).unwrap();
            verified
                .arg("verify")
                .arg(&target)
                .arg("--receipt")
                .arg(path("receipt"));
            let _proven = programs::run(&mut verified).succeeded();
        }
        let taken = before.saturating_sub(free_bytes(mount.path()));
        assert!(taken < content.data_bytes / 2, "{mkfs}: {taken} bytes");
        // What is written later is nobody else's.
        volume::flip(&source, 5);
        let first = volume::read(&path("digest"), 0, 8);
        assert_ne!(first, volume::read(&source, 0, 8));
        assert_eq!(first, volume::read(&path("plain"), 0, 8));
    }
}

#[test]
fn a_target_that_is_there_is_treated_as_without() {
    let Some(mount) = Mount::made_by("mkfs.xfs", 512 * MIB) else {
        return;
    };
    let path = |name: &str| mount.path().join(name);
    let (source, target) = (path("source"), path("target"));
    let content = volume::create(&source, 8 * MIB, 4);
    // Larger: what lies behind the volume stays, or is made zero.
    volume::create_dirty(&target, 12 * MIB);
    let shared = ["--reflink", "always"];
    let _refused = copy(&source, &target, &shared).failed(4, &["exists"]);
    let overwrite = ["--reflink", "always", "--overwrite", "--zero-tail"];
    let told = receipt(&source, &target, &overwrite);
    assert_eq!(told["matched_bytes"], content.data_bytes);
    volume::assert_same(&source, &target, 8 * MIB);
    volume::assert_holds_only(&target, 8 * MIB, 12 * MIB, 0);
    // With a journal, as often as one likes; and never onto itself.
    let state = path("state");
    fs::create_dir(&state).unwrap();
    let state = state.to_str().unwrap().to_owned();
    let journaled = ["--reflink", "always", "--state-dir", &state];
    let told = receipt(&source, &path("journaled"), &journaled);
    assert_eq!(told["matched_bytes"], content.data_bytes);
    let _same = copy(&source, &source, &overwrite).failed(2, &["same volume"]);
    let _gone = copy(&path("nothing"), &path("new"), &shared).failed(3, &["nothing"]);
    assert!(!path("new").exists());
}

#[test]
fn where_no_blocks_can_be_shared_all_is_copied_or_nothing() {
    let Some(mount) = Mount::ext4(128 * MIB) else {
        return;
    };
    let path = |name: &str| mount.path().join(name);
    let source = path("source");
    let content = volume::create(&source, 8 * MIB, 4);
    let always = ["--reflink", "always"];
    let _refused = copy(&source, &path("shared"), &always).failed(2, &["one filesystem", "XFS"]);
    assert!(!path("shared").exists());
    let told = receipt(&source, &path("copied"), &["--reflink", "auto"]);
    assert_eq!(told["sent_bytes"], content.data_bytes);
    volume::assert_same(&source, &path("copied"), 8 * MIB);
    fs::create_dir(path("tree")).unwrap();
    fs::write(path("tree/file"), "file").unwrap();
    let _tree = copy(&path("tree"), &path("other"), &always).failed(2, &["no directory"]);
    let _copied = copy(&path("tree"), &path("other"), &["--reflink", "auto"]).succeeded();
    assert_eq!(fs::read_to_string(path("other/file")).unwrap(), "file");
}
