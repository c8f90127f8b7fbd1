//! Trees whose clone is cut, and what a later session, another run or an older copy saves.
//!
//! What is held in the middle was flushed and journaled before anything happens to it, so that each
//! test can say what must not travel again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::FallocateFlags;
use rustix::process::Signal;
use serde_json::Value;
use volferry_tests::agents::Agent;
use volferry_tests::device::{Loop, Mount};
use volferry_tests::http::progress;
use volferry_tests::nbd::{Filter, Storage};
use volferry_tests::programs::{self, Ended};
use volferry_tests::proxy::{Ending, Fault, Way};
use volferry_tests::trial::{Trial, number, wait_until_at_least};
use volferry_tests::{MIB, tree, volume};
use volferry_transport::Role;

/// Bytes of the large file.
const LARGE: u64 = 48 * MIB;

/// Bytes that pass before a clone is held: the small files, and some of the large one.
const PASSED: u64 = 20 * MIB;

/// A tree with small files, which come first, a large one, and something of every kind.
fn plant(root: &Path) {
    for number in 0..200_usize {
        let directory = root.join(format!("a/{}", number % 20));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(number.to_string()), vec![7; number * 20]).unwrap();
    }
    volume::create_dense(&root.join("large"), LARGE, 3);
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(9 * MIB).unwrap();
    sparse.write_all_at(&vec![5; 3 << 20], 0).unwrap();
    fs::hard_link(root.join("large"), root.join("again")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("link")).unwrap();
    fs::set_permissions(root.join("a/3"), Permissions::from_mode(0o2750)).unwrap();
}

/// A clone of that tree, held in the middle with something durable.
struct Held {
    trial: Trial,
    source: Agent,
    target: Agent,
    durable_bytes: u64,
}

impl Held {
    fn new(target_arguments: &[&str]) -> Self {
        let trial = Trial::of(0);
        fs::create_dir(&trial.source_volume).unwrap();
        fs::create_dir(&trial.target_volume).unwrap();
        plant(&trial.source_volume);
        trial.proxy.hold_chunks_after(PASSED);
        let mut target = trial.start_target(target_arguments);
        let source = trial.start_source(&[]);
        trial.proxy.wait_until_it_holds();
        // What passed was written, and the next flush covers it.
        wait_until_at_least(target.admin(), "durable_bytes", 8 * MIB);
        let durable_bytes = number(&progress(target.admin()), "durable_bytes");
        Self {
            trial,
            source,
            target,
            durable_bytes,
        }
    }

    /// Kills the agent of `role`, and starts it again.
    fn restart(&mut self, role: Role) {
        let agent = match role {
            Role::Source => &mut self.source,
            _ => &mut self.target,
        };
        agent.signal(Signal::KILL);
        // It may be in the middle of a flush, which no signal ends, and holds the directory until then.
        while agent.is_running() {
            thread::sleep(Duration::from_millis(20));
        }
        let again = match role {
            Role::Source => self.trial.start_source(&[]),
            _ => self.trial.start_target(&[]),
        };
        let _killed = std::mem::replace(agent, again).end();
    }

    /// Lets the clone go on, and expects that it ends well without sending again what was durable.
    fn goes_on(self) -> Value {
        self.trial.proxy.open();
        let receipt = ends_well(&self.trial, self.source, self.target);
        let resumed = number(&receipt, "resumed_bytes");
        assert!(resumed >= self.durable_bytes, "{receipt}");
        receipt
    }
}

fn ends_well(trial: &Trial, source: Agent, target: Agent) -> Value {
    let (source, target) = (source.end(), target.end());
    let _source = source.succeeded();
    let _target = target.succeeded();
    assert_cloned(&trial.source_volume, &trial.target_volume);
    let receipt = trial.agents.receipt(Role::Target);
    assert_eq!(receipt, trial.agents.receipt(Role::Source));
    receipt
}

#[track_caller]
fn assert_cloned(source: &Path, target: &Path) {
    tree::assert_same(source, target);
    tree::assert_rsync_agrees(source, target);
    assert_eq!(
        fs::metadata(target.join("large")).unwrap().nlink(),
        fs::metadata(source.join("large")).unwrap().nlink()
    );
}

fn copy(trial: &Trial, arguments: &[&str]) -> Ended {
    let mut command = programs::command(programs::CLI);
    command.arg("copy").arg("--json").args(arguments);
    programs::run(command.args([&trial.source_volume, &trial.target_volume]))
}

// ---- Connections that are lost ----

#[test]
fn a_tree_goes_on_when_its_connections_are_lost() {
    for ending in [Ending::Reset, Ending::Cut] {
        let held = Held::new(&[]);
        held.trial.proxy.end_all(ending);
        let receipt = held.goes_on();
        assert!(number(&receipt, "sessions") >= 2, "{receipt}");
    }
}

#[test]
fn a_byte_that_the_network_changes_is_in_no_file() {
    let held = Held::new(&[]);
    let at = PASSED + MIB;
    let proxy = &held.trial.proxy;
    proxy.plan(Some(1), Way::ToTarget, at, Fault::Corrupt);
    let receipt = held.goes_on();
    assert!(number(&receipt, "sessions") >= 2, "{receipt}");
}

#[test]
fn a_tree_goes_on_however_often_it_is_broken() {
    let trial = Trial::of(0);
    fs::create_dir(&trial.source_volume).unwrap();
    fs::create_dir(&trial.target_volume).unwrap();
    plant(&trial.source_volume);
    let target = trial.start_target(&[]);
    let mut source = trial.start_source(&[]);
    let admin = source.admin();
    for step in 1..=3 {
        trial.proxy.hold_chunks_after(10 * MIB);
        wait_until_at_least(admin, "durable_bytes", step * 7 * MIB);
        trial.proxy.end_all(Ending::Reset);
    }
    trial.proxy.open();
    let receipt = ends_well(&trial, source, target);
    assert!(number(&receipt, "sessions") >= 3, "{receipt}");
    // Each loss costs what was on its way, and no more.
    let sent = number(&receipt, "sent_bytes");
    assert!(sent < 3 * LARGE, "{receipt}");
}

// ---- Agents that die ----

#[test]
fn a_tree_goes_on_when_an_agent_was_killed() {
    for role in [Role::Source, Role::Target] {
        let mut held = Held::new(&[]);
        held.restart(role);
        let durable_bytes = held.durable_bytes;
        let receipt = held.goes_on();
        let sent = number(&receipt, "sent_bytes");
        // What was on its way, in buffers and sockets, is lost; what was durable is not.
        let data = number(&receipt, "data_bytes");
        assert!(
            sent <= data + 32 * MIB - durable_bytes.min(8 * MIB),
            "{receipt}"
        );
    }
}

#[test]
fn a_tree_goes_on_when_both_agents_were_killed() {
    let mut held = Held::new(&[]);
    held.source.signal(Signal::KILL);
    held.restart(Role::Target);
    held.restart(Role::Source);
    let durable_bytes = held.durable_bytes;

    let receipt = held.goes_on();
    let sent = number(&receipt, "sent_bytes");
    let total = number(&receipt, "logical_bytes");
    assert!(sent <= total - durable_bytes, "{receipt}");
    assert_eq!(number(&receipt, "resent_bytes"), 0, "{receipt}");
}

/// What the source has changed, removed and added since is as it is now: of what it no longer has,
/// nothing is left, whether it was durable or not.
#[test]
fn a_tree_that_changed_between_two_runs_is_as_it_is_now() {
    let mut held = Held::new(&[]);
    held.source.signal(Signal::KILL);
    held.target.signal(Signal::KILL);
    let source = held.trial.source_volume.clone();
    fs::write(source.join("a/5/5"), "another").unwrap();
    fs::remove_file(source.join("a/6/6")).unwrap();
    fs::remove_dir_all(source.join("a/7")).unwrap();
    fs::write(source.join("a/8/more"), "more").unwrap();
    fs::remove_file(source.join("a/9/9")).unwrap();
    fs::create_dir(source.join("a/9/9")).unwrap();
    let large = File::options().write(true).open(source.join("large"));
    large.unwrap().write_all_at(b"changed", 3 * MIB).unwrap();
    held.restart(Role::Target);
    held.restart(Role::Source);
    held.trial.proxy.open();
    let _receipt = ends_well(&held.trial, held.source, held.target);
}

/// The same with a large file that was there in part, which now is another: its pieces are not mixed.
#[test]
fn pieces_of_two_states_of_a_file_are_not_mixed() {
    let mut held = Held::new(&[]);
    held.source.signal(Signal::KILL);
    let large = held.trial.source_volume.join("large");
    fs::remove_file(&large).unwrap();
    volume::create_dense(&large, LARGE, 4);
    held.restart(Role::Source);
    held.trial.proxy.open();
    let _receipt = ends_well(&held.trial, held.source, held.target);
}

// ---- Storage that lies ----

/// The power of the target's node goes: what was not flushed is lost, the filesystem's own too.
#[test]
fn a_tree_goes_on_when_the_power_was_lost() {
    let Some(mut storage) = Storage::dirty(256 * MIB, Filter::VolatileCache) else {
        return;
    };
    let device = Loop::over_file(&storage.file);
    let Some(mount) = device.and_then(|device| Mount::on("mkfs.ext4", device)) else {
        return;
    };
    let mut trial = Trial::of(0);
    trial.target_volume = mount.path().join("tree");
    fs::create_dir(&trial.target_volume).unwrap();
    rustix::fs::syncfs(File::open(&trial.target_volume).unwrap()).unwrap();
    fs::create_dir(&trial.source_volume).unwrap();
    plant(&trial.source_volume);
    trial.proxy.hold_chunks_after(PASSED);
    let mut target = trial.start_target(&[]);
    let source = trial.start_source(&[]);
    trial.proxy.wait_until_it_holds();
    wait_until_at_least(target.admin(), "durable_bytes", 8 * MIB);
    // More comes, and is not durable.
    trial.proxy.hold_chunks_after(8 * MIB);
    trial.proxy.wait_until_it_holds();
    let durable_bytes = number(&progress(target.admin()), "durable_bytes");
    target.signal(Signal::STOP);
    storage.kill();
    target.signal(Signal::KILL);
    let _killed = target.end();
    drop(mount);
    let device = Loop::over_file(&storage.backing);
    let mount = device.and_then(Mount::of).unwrap();
    trial.target_volume = mount.path().join("tree");
    let target = trial.start_target(&[]);
    trial.proxy.open();
    let receipt = ends_well(&trial, source, target);
    assert!(
        number(&receipt, "resumed_bytes") >= durable_bytes,
        "{receipt}"
    );
    drop(trial);
}

/// Bytes that were acknowledged are lost: of a small file, and of pieces of the large one.
#[test]
fn a_tree_that_reads_back_wrong_is_repaired() {
    let held = Held::new(&["--verify", "readback"]);
    let target = &held.trial.target_volume;
    let smalls = (60..200).map(|number| target.join(format!("a/{}/{number}", number % 20)));
    for small in smalls.filter(|small| small.exists()) {
        volume::flip(&small, 1000);
    }
    let staging = fs::read_dir(target).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        let is_staging = path.file_name()?.to_str()?.starts_with(".volferry-");
        is_staging.then_some(path)
    });
    let parts = fs::read_dir(staging.unwrap()).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        (fs::metadata(&path).unwrap().len() > 4 * MIB).then_some(path)
    });
    let flipped = parts
        .inspect(|part| volume::flip(part, 2 * MIB + 5))
        .count();
    assert!(flipped > 0);
    held.trial.proxy.open();
    let receipt = ends_well(&held.trial, held.source, held.target);
    assert_eq!(receipt["verified"], "readback");
    let repaired = number(&receipt, "repaired_bytes");
    assert!((MIB..8 * MIB).contains(&repaired), "{receipt}");
    assert_eq!(number(&receipt, "sessions"), 2, "{receipt}");
}

/// Read back, what is right stays as it is.
#[test]
fn a_tree_that_reads_back_right_is_not_repaired() {
    let trial = Trial::of(0);
    fs::create_dir(&trial.source_volume).unwrap();
    plant(&trial.source_volume);
    let ended = copy(&trial, &["--verify", "readback"]).succeeded();
    let receipt = ended.json();
    assert_eq!(receipt["verified"], "readback");
    assert_eq!(number(&receipt, "repaired_bytes"), 0, "{receipt}");
    assert_eq!(number(&receipt, "sessions"), 1, "{receipt}");
    assert_cloned(&trial.source_volume, &trial.target_volume);
}

// ---- Who may go on ----

#[test]
fn of_two_sources_one_clones_the_tree() {
    let held = Held::new(&[]);
    let second = held.trial.start_source(&["--connect-timeout", "1"]);
    second.end().failed(5, &["serves another session"]);
    let third = held.trial.start_source(&["--take-over"]);
    let _shut_out = held.source.end().failed(5, &["another run"]);
    held.trial.proxy.open();
    let receipt = ends_well(&held.trial, third, held.target);
    assert!(number(&receipt, "resumed_bytes") >= held.durable_bytes);
}

/// The first source goes on where it was stopped, and finds that `second` holds the clone, which ends well.
#[track_caller]
fn is_shut_out(held: Held, second: Agent) {
    held.source.signal(Signal::CONT);
    let _shut_out = held.source.end().failed(5, &["another run"]);
    held.trial.proxy.open();
    let receipt = ends_well(&held.trial, second, held.target);
    assert!(number(&receipt, "resumed_bytes") >= held.durable_bytes);
}

/// The journal remembers it: a source that was paused meanwhile comes back to another run of the target,
/// and is turned away for good.
#[test]
fn who_was_shut_out_stays_out_when_the_target_was_restarted() {
    let mut held = Held::new(&[]);
    held.source.signal(Signal::STOP);
    let second = held.trial.start_source(&["--take-over"]);
    wait_until_at_least(held.target.admin(), "sessions", 2);
    held.restart(Role::Target);
    wait_until_at_least(held.target.admin(), "sessions", 1);
    is_shut_out(held, second);
}

/// The same where the target was started again before the other took over.
#[test]
fn who_held_the_clone_before_the_target_was_restarted_is_shut_out() {
    let mut held = Held::new(&[]);
    held.source.signal(Signal::STOP);
    held.restart(Role::Target);
    let second = held.trial.start_source(&["--take-over"]);
    wait_until_at_least(held.target.admin(), "sessions", 1);
    is_shut_out(held, second);
}

#[test]
fn what_another_clone_left_is_not_gone_on_from() {
    let held = Held::new(&[]);
    held.source.signal(Signal::KILL);
    held.target.signal(Signal::KILL);
    let (_, _) = (held.source.end(), held.target.end());
    copy(&held.trial, &[]).failed(4, &["is not empty"]);
    let receipt = copy(&held.trial, &["--overwrite"]).succeeded().json();
    assert_eq!(number(&receipt, "resumed_bytes"), 0, "{receipt}");
    assert_cloned(&held.trial.source_volume, &held.trial.target_volume);
}

#[test]
fn nothing_is_gone_on_from_when_that_is_asked_for() {
    let mut held = Held::new(&[]);
    held.source.signal(Signal::KILL);
    held.target.signal(Signal::KILL);
    let other = held.trial.target_volume.join("other");
    fs::write(&other, "of somebody else").unwrap();
    let arguments = ["--resume", "none"];
    let refused = held
        .trial
        .agents
        .run_target(&held.trial.target_volume, &arguments);
    refused.failed(4, &["is not empty"]);
    fs::remove_file(other).unwrap();
    let target = held
        .trial
        .start_target(&[&arguments[..], &["--overwrite"]].concat());
    let _killed = std::mem::replace(&mut held.target, target).end();
    held.restart(Role::Source);
    held.trial.proxy.open();
    let receipt = ends_well(&held.trial, held.source, held.target);
    assert_eq!(number(&receipt, "resumed_bytes"), 0, "{receipt}");
}

/// The same command goes on where it was cut, and a journal that was torn costs what it lost.
#[test]
fn a_copy_goes_on_by_itself() {
    let trial = Trial::of(0);
    fs::create_dir(&trial.source_volume).unwrap();
    plant(&trial.source_volume);
    let mut command = programs::command(programs::CLI);
    command.arg("copy").args(["--memory-mib", "16"]);
    command.args([&trial.source_volume, &trial.target_volume]);
    let running = programs::Running::start(&mut command);
    // Cut before or after its journal has anything: either way the same command ends it.
    volferry_tests::http::eventually("it has begun", || trial.target_volume.join("a").exists());
    running.signal(Signal::KILL);
    let _killed = running.end();
    let _receipt = copy(&trial, &[]).succeeded();
    assert_cloned(&trial.source_volume, &trial.target_volume);
}

// ---- Older copies ----

/// A tree and an older copy of it, which differ in every way that two trees can.
fn older_copy() -> Trial {
    let trial = Trial::of(0);
    fs::create_dir(&trial.source_volume).unwrap();
    plant(&trial.source_volume);
    let _first = copy(&trial, &[]).succeeded();
    let source = &trial.source_volume;
    let file = File::options().write(true).open(source.join("large"));
    file.unwrap().write_all_at(&[9; 5000], 17 * MIB).unwrap();
    let sparse = File::options().write(true).open(source.join("sparse"));
    let sparse = sparse.unwrap();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&sparse, hole, MIB, MIB).unwrap();
    sparse.write_all_at(b"more", 8 * MIB + 5).unwrap();
    fs::write(source.join("a/4/4"), "longer than before").unwrap();
    fs::set_permissions(source.join("a/5/5"), Permissions::from_mode(0o600)).unwrap();
    fs::rename(source.join("a/6"), source.join("a/six")).unwrap();
    fs::remove_file(source.join("link")).unwrap();
    fs::create_dir(source.join("link")).unwrap();
    trial
}

#[test]
fn only_what_differs_from_an_older_copy_is_sent() {
    for checksum in [false, true] {
        let trial = older_copy();
        let mut arguments = vec!["--delta", "--delete-extra"];
        arguments.extend(checksum.then_some("--checksum"));
        let receipt = copy(&trial, &arguments).succeeded().json();
        assert_cloned(&trial.source_volume, &trial.target_volume);
        let sent = number(&receipt, "sent_bytes");
        assert!(sent > 0 && sent < 5 * MIB, "{receipt}");
        assert!(number(&receipt, "matched_bytes") > LARGE, "{receipt}");
        let again = copy(&trial, &arguments).succeeded().json();
        assert_eq!(number(&again, "sent_bytes"), 0, "{again}");
    }
}

/// Without being told to remove it, what the source doesn't have stays.
#[test]
fn an_older_copy_is_merged_into() {
    let trial = older_copy();
    let _receipt = copy(&trial, &["--delta"]).succeeded();
    assert!(trial.target_volume.join("a/6/6").exists());
    assert!(trial.target_volume.join("a/six/6").exists());
}

/// A file that looks the same and is not: only reading it tells.
#[test]
fn a_checksum_finds_what_looks_the_same() {
    let trial = older_copy();
    let _first = copy(&trial, &["--delta", "--delete-extra"]).succeeded();
    let (small, large) = ("a/19/199", "sparse");
    for name in [small, large] {
        let target = trial.target_volume.join(name);
        let before = fs::metadata(&target).unwrap();
        let file = File::options().write(true).open(&target).unwrap();
        file.write_all_at(b"rot", 1000).unwrap();
        file.set_modified(before.modified().unwrap()).unwrap();
    }
    let told = copy(&trial, &["--delta", "--delete-extra"]).succeeded();
    assert_eq!(number(&told.json(), "sent_bytes"), 0, "it looks the same");
    let checked = ["--delta", "--delete-extra", "--checksum"];
    let receipt = copy(&trial, &checked).succeeded().json();
    let sent = number(&receipt, "sent_bytes");
    assert!(sent > 0 && sent <= 3 * MIB, "{receipt}");
    assert_cloned(&trial.source_volume, &trial.target_volume);
}

/// Another name of a file outside of the target is no file of the target: it keeps its content.
#[test]
fn a_file_with_a_name_elsewhere_is_not_patched() {
    let trial = older_copy();
    let outside = trial.agents.path("outside");
    let large = trial.target_volume.join("sparse");
    fs::hard_link(&large, &outside).unwrap();
    let before = fs::read(&outside).unwrap();
    let arguments = ["--delta", "--delete-extra", "--checksum"];
    let receipt = copy(&trial, &arguments).succeeded().json();
    assert!(number(&receipt, "sent_bytes") < 5 * MIB, "{receipt}");
    assert_cloned(&trial.source_volume, &trial.target_volume);
    assert!(fs::read(&outside).unwrap() == before, "it was written");
}
