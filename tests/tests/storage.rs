//! Storage that loses what was not flushed, fails, fills up or stalls: a clone ends with a failure
//! that says so, never with a receipt, and goes on when the storage is well again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use volferry_tests::MIB;
use volferry_tests::agents::Agent;
use volferry_tests::nbd::{Filter, Storage};
use volferry_tests::proxy::Way;
use volferry_tests::random::Random;
use volferry_tests::trial::{Held, Trial, assert_resumed, number, wait_until_at_least};
use volferry_tests::volume::{self, DIRT};
use volferry_transport::Role;

/// A clone of a file without zeros to storage with `filter`.
fn trial(filter: Filter) -> Option<(Trial, Storage)> {
    let mut trial = Trial::default();
    let storage = Storage::dirty(trial.size, filter)?;
    trial.target_volume.clone_from(&storage.file);
    Some((trial, storage))
}

fn start_target(trial: &Trial, more: &[&str]) -> Agent {
    trial.start_target_with_journal(&[&["--overwrite"], more].concat())
}

/// Starts both, and holds them in the middle.
fn hold(trial: &Trial, more: &[&str]) -> Held {
    let target = start_target(trial, more);
    trial.proxy.hold_chunks_after(Trial::PASSED);
    let source = trial.start_source(&[]);
    trial.hold(target, source)
}

#[track_caller]
fn failure_code(trial: &Trial, role: Role) -> Value {
    let left = trial.agents.receipt(role);
    assert!(left.get("digest").is_none(), "{left}");
    left["failure"]["code"].clone()
}

fn kill(agent: Agent) {
    agent.signal(Signal::KILL);
    let _gone = agent.end();
}

/// The node dies: the agent can't tell anybody that its storage is gone, and nothing is flushed at
/// its end.
fn lose_power(target: Agent, storage: &mut Storage) {
    target.signal(Signal::STOP);
    storage.kill();
    kill(target);
    storage.serve().unwrap();
}

/// What the tests below rest on.
#[test]
fn a_volatile_cache_loses_what_was_not_flushed_and_nothing_else() {
    let Some(mut storage) = Storage::dirty(MIB, Filter::VolatileCache) else {
        return;
    };
    let file = OpenOptions::new().write(true).open(&storage.file).unwrap();
    file.write_all_at(&[1; 65536], 0).unwrap();
    file.sync_data().unwrap();
    file.write_all_at(&[2; 65536], 65536).unwrap();
    volume::assert_holds_only(&storage.file, 65536, 131_072, 2);
    storage.kill();
    drop(file);
    volume::assert_holds_only(&storage.backing, 0, 65536, 1);
    volume::assert_holds_only(&storage.backing, 65536, MIB, DIRT);
    storage.serve().unwrap();
    volume::assert_holds_only(&storage.file, 0, 65536, 1);
    volume::assert_holds_only(&storage.file, 65536, MIB, DIRT);
}

/// Zeros are zeros, also over what the cache holds and the backing file doesn't.
#[test]
fn a_volatile_cache_makes_zeros() {
    let Some((trial, mut storage)) = trial_of_holes() else {
        return;
    };
    let target = trial.start_target(&["--overwrite"]);
    let _receipt = trial.ends_well(trial.start_source(&[]), target);
    storage.kill();
    volume::assert_same(&trial.source_volume, &storage.backing, trial.size);
}

/// A clone of a file with holes to storage that loses what was not flushed.
fn trial_of_holes() -> Option<(Trial, Storage)> {
    let mut trial = Trial::of(8 * MIB);
    volume::create(&trial.source_volume, trial.size, 3);
    let storage = Storage::dirty(trial.size, Filter::VolatileCache)?;
    trial.target_volume.clone_from(&storage.file);
    Some((trial, storage))
}

/// The node dies at random moments, and with it what its disk has not flushed. In the end it dies
/// once more, after the receipt: all of the volume is there.
#[test]
fn a_clone_survives_storage_that_loses_what_was_not_flushed() {
    let seed = std::env::var("VOLFERRY_SOAK_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut random = Random::new(seed);
    let Some((trial, mut storage)) = trial(Filter::VolatileCache) else {
        return;
    };
    trial.proxy.throttle(Way::ToTarget, Some(4 * MIB));
    let mut source = trial.start_source(&[]);
    let mut durable = 0;
    for crash in 0..4 {
        let mut target = start_target(&trial, &[]);
        if crash == 1 {
            // Once for sure while something is durable and something is not.
            wait_until_at_least(target.admin(), "durable_bytes", 2 * MIB);
            thread::sleep(Duration::from_millis(700));
        }
        thread::sleep(Duration::from_millis(random.within(0..2500)));
        assert!(source.is_running() && target.is_running());
        let report = volferry_tests::http::progress(target.admin());
        durable = durable.max(number(&report, "durable_bytes"));
        lose_power(target, &mut storage);
        if crash == 2 {
            kill(source);
            source = trial.start_source(&[]);
        }
    }
    trial.proxy.throttle(Way::ToTarget, None);
    let target = start_target(&trial, &[]);
    let receipt = trial.ends_well(source, target);
    assert!(number(&receipt, "resumed_bytes") >= durable, "{receipt}");
    assert!(durable >= 2 * MIB);
    storage.kill();
    volume::assert_same(&trial.source_volume, &storage.backing, trial.size);
}

/// Without a journal, what the storage kept is compared; what it lost is sent.
#[test]
fn what_storage_lost_is_found_by_comparing() {
    let Some((trial, mut storage)) = trial(Filter::VolatileCache) else {
        return;
    };
    let target = trial.start_target(&["--delta"]);
    trial.proxy.hold_chunks_after(Trial::PASSED);
    let source = trial.start_source(&[]);
    let held = trial.hold(target, source);
    let durable = held.durable_bytes;
    trial.proxy.hold_chunks_after(3 * MIB);
    trial.proxy.wait_until_it_holds();
    lose_power(held.target, &mut storage);
    trial.proxy.open();
    let target = trial.start_target(&["--delta"]);
    let receipt = trial.ends_well(held.source, target);
    assert!(number(&receipt, "matched_bytes") >= durable, "{receipt}");
    storage.kill();
    volume::assert_same(&trial.source_volume, &storage.backing, trial.size);
}

/// The storage fails in the middle; both agents end with `code`. Then it is well again, and the
/// clone goes on.
#[track_caller]
fn fails_and_goes_on(filter: Filter, code: &str, words: &[&str]) {
    let Some((trial, storage)) = trial(filter) else {
        return;
    };
    let held = hold(&trial, &[]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    storage.set_failing(true);
    trial.proxy.open();
    let words = [&[storage.file.to_str().unwrap()], words].concat();
    held.source.end().failed(4, &words);
    held.target.end().failed(4, &words);
    for role in [Role::Source, Role::Target] {
        assert_eq!(failure_code(&trial, role), code);
    }
    storage.set_failing(false);
    let target = start_target(&trial, &[]);
    let receipt = trial.ends_well(trial.start_source(&[]), target);
    assert_resumed(&receipt, durable, unsafe_bytes + trial.size);
}

#[test]
fn a_clone_goes_on_when_storage_no_longer_fails() {
    fails_and_goes_on(Filter::FailingWrites, "target_write", &["could not write"]);
}

#[test]
fn a_clone_goes_on_when_there_is_space_again() {
    fails_and_goes_on(Filter::NoSpace, "target_no_space", &["free space"]);
}

#[test]
fn storage_that_can_not_be_read_back_is_told() {
    let Some((trial, storage)) = trial(Filter::FailingReads) else {
        return;
    };
    let held = hold(&trial, &["--verify", "readback"]);
    storage.set_failing(true);
    trial.proxy.open();
    held.source.end().failed(4, &["could not read"]);
    held.target.end().failed(4, &["could not read"]);
    storage.set_failing(false);
    let target = start_target(&trial, &["--verify", "readback"]);
    let receipt = trial.ends_well(trial.start_source(&[]), target);
    assert_eq!(receipt["verified"], "readback");
    // All of it was durable.
    assert_eq!(number(&receipt, "resumed_bytes"), trial.size);
}

#[test]
fn storage_that_stalls_ends_the_clone_in_time() {
    let Some((trial, storage)) = trial(Filter::Pausing) else {
        return;
    };
    let mut held = hold(&trial, &["--stall-timeout", "5s"]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    let paused = storage.pause();
    trial.proxy.open();
    held.source
        .end()
        .failed(5, &["nothing became durable for 5 s"]);
    // What was received may still be written, for a while. Then the target says what is wrong, but
    // the kernel ends nobody whose write it is doing.
    held.target.wait_for("may hang");
    drop(paused);
    // By then it may be over: another attempt may go on.
    let words = ["nothing became durable for 5 s", "look at the kernel log"];
    held.target.end().failed(5, &words);
    assert_eq!(failure_code(&trial, Role::Target), "stalled");
    let target = start_target(&trial, &[]);
    let receipt = trial.ends_well(trial.start_source(&[]), target);
    assert_resumed(&receipt, durable, unsafe_bytes + trial.size);
}

#[test]
fn storage_that_stalls_for_a_while_only_takes_longer() {
    let Some((trial, storage)) = trial(Filter::Pausing) else {
        return;
    };
    let held = hold(&trial, &[]);
    let paused = storage.pause();
    trial.proxy.open();
    thread::sleep(Duration::from_secs(4));
    drop(paused);
    let receipt = trial.ends_well(held.source, held.target);
    assert_eq!(receipt["sessions"], 1);
}
