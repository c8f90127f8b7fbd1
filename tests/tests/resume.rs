//! Nothing is sent twice, nothing is wrong: whatever happens to a clone in the middle, it goes on
//! from what is durable, and the target holds what the source does.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use volferry_tests::MIB;
use volferry_tests::agents::Agent;
use volferry_tests::device::{Loop, Mount};
use volferry_tests::http::{eventually, get, progress};
use volferry_tests::identity::{HOUR, Identity};
use volferry_tests::programs::{self, Ended};
use volferry_tests::proxy::{Ending, Fault, Way};
use volferry_tests::trial::{
    CHUNK, Held, Trial, assert_resumed, number, settled, wait_until_at_least,
};
use volferry_tests::volume;
use volferry_transport::Role;

/// No goodbye, no flush.
#[track_caller]
fn kill(agent: Agent) {
    agent.signal(Signal::KILL);
    assert_eq!(agent.end().status.code(), None);
}

/// The code of the failure that an agent left in place of a receipt.
#[track_caller]
fn failure_code(trial: &Trial, role: Role) -> Value {
    let left = trial.agents.receipt(role);
    assert!(left.get("digest").is_none(), "{left}");
    left["failure"]["code"].clone()
}

/// The journal of a trial.
fn journal(trial: &Trial) -> PathBuf {
    Path::new(&trial.state).join(format!("{}.journal", trial.agents.identity.clone_id))
}

// ---- The network ----

/// Breaks the network under a clone that is held in the middle. The same two agents go on.
#[track_caller]
fn goes_on_after(break_it: impl FnOnce(&Trial, &mut Held)) {
    let trial = Trial::default();
    let mut held = trial.start_and_hold(&[], &[]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    break_it(&trial, &mut held);
    trial.proxy.open();
    let receipt = trial.ends_well(held.source, held.target);
    assert_resumed(&receipt, durable, unsafe_bytes);
    assert_eq!(receipt["verified"], "digest");
}

#[test]
fn a_clone_goes_on_when_its_connections_are_reset() {
    goes_on_after(|trial, _| trial.proxy.end_all(Ending::Reset));
}

#[test]
fn a_clone_goes_on_when_its_connections_are_cut() {
    goes_on_after(|trial, _| trial.proxy.end_all(Ending::Cut));
}

#[test]
fn a_data_connection_that_breaks_off_within_a_chunk_costs_that_chunk() {
    goes_on_after(|trial, _| {
        let at = Trial::PASSED + MIB + 12_345;
        trial
            .proxy
            .plan(Some(1), Way::ToTarget, at, Fault::End(Ending::Reset));
    });
}

/// Nobody is told that the network is gone, and both notice. What was on its way comes late, to
/// nobody.
#[test]
fn a_clone_goes_on_when_the_network_was_silent() {
    goes_on_after(|trial, held| {
        let since = Instant::now();
        trial.proxy.fall_silent();
        held.target.wait_for("a session ended early");
        held.source.wait_for("the session was lost");
        let noticed = since.elapsed();
        assert!(noticed < Duration::from_secs(60), "after {noticed:?}");
        trial.proxy.heal();
    });
}

#[test]
fn a_byte_that_the_network_changes_is_not_written() {
    goes_on_after(|trial, _| {
        let at = Trial::PASSED + MIB + 777;
        trial.proxy.plan(Some(1), Way::ToTarget, at, Fault::Corrupt);
    });
}

#[test]
fn a_piece_that_comes_twice_is_not_written_twice() {
    goes_on_after(|trial, _| {
        let at = Trial::PASSED + MIB;
        trial
            .proxy
            .plan(Some(1), Way::ToTarget, at, Fault::Duplicate);
    });
}

#[test]
fn a_byte_of_the_conversation_that_the_network_changes_costs_the_session() {
    goes_on_after(|trial, _| {
        // Behind the handshake, where the next ping and the next watermark will be.
        for way in [Way::ToTarget, Way::ToSource] {
            let at = 6000;
            trial.proxy.plan(Some(0), way, at, Fault::Corrupt);
        }
        trial.proxy.throttle(Way::ToTarget, Some(2 * MIB));
        trial.proxy.end_all(Ending::Reset);
    });
}

#[test]
fn a_clone_goes_on_however_often_it_is_broken() {
    let trial = Trial::default();
    let target = trial.start_target(&[]);
    trial.proxy.throttle(Way::ToTarget, Some(6 * MIB));
    let mut source = trial.start_source(&[]);
    let admin = source.admin();
    for step in 1..=5 {
        wait_until_at_least(admin, "data_bytes", step * 5 * MIB);
        let ending = if step % 2 == 0 {
            Ending::Cut
        } else {
            Ending::Reset
        };
        trial.proxy.end_all(ending);
    }
    trial.proxy.throttle(Way::ToTarget, None);
    let receipt = trial.ends_well(source, target);
    assert!(number(&receipt, "sessions") >= 5, "{receipt}");
    assert!(number(&receipt, "resumed_bytes") > 0, "{receipt}");
}

// ---- Agents that die ----

#[test]
fn a_killed_source_is_started_again() {
    let trial = Trial::default();
    let held = trial.start_and_hold(&[], &[]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    kill(held.source);
    trial.proxy.open();
    let source = trial.start_source(&[]);
    let receipt = trial.ends_well(source, held.target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

#[test]
fn a_killed_target_goes_on_from_its_journal() {
    let trial = Trial::default();
    let target = trial.start_target_with_journal(&[]);
    trial.proxy.hold_chunks_after(Trial::PASSED);
    let source = trial.start_source(&[]);
    let held = trial.hold(target, source);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    let journal_len = journal(&trial).metadata().unwrap().len();
    assert!(journal_len < 64 << 10, "{journal_len} bytes");
    kill(held.target);
    trial.proxy.open();
    let target = trial.start_target_with_journal(&[]);
    let receipt = trial.ends_well(held.source, target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

/// The one that finds it tells the other.
#[test]
fn a_source_that_changed_between_two_sessions_ends_both() {
    let trial = Trial::default();
    let held = trial.start_and_hold(&[], &[]);
    volume::flip(&trial.source_volume, 17);
    trial.proxy.end_all(Ending::Reset);
    trial.proxy.open();
    let words = ["was written while it was read"];
    held.source.end().failed(3, &words);
    held.target.end().failed(3, &words);
    for role in [Role::Source, Role::Target] {
        assert_eq!(failure_code(&trial, role), "source_changed");
    }
}

/// An address that is free is given to the next pod: another clone's target, with other credentials,
/// or a program that does not even speak TLS.
#[test]
fn a_source_waits_while_another_has_its_targets_address() {
    let trial = Trial::default();
    let mut held = hold_with_journal(&trial, &[]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    kill(held.target);
    trial.proxy.open();
    let other_clone = Trial::default();
    let stranger = other_clone.start_target(&[]);
    trial.proxy.lead_to(stranger.address());
    let told = held.source.wait_for("is not the target, trying again");
    assert!(
        told.contains("not signed by this clone's authority"),
        "{told}"
    );
    let program = TcpListener::bind("127.0.0.1:0").unwrap();
    trial.proxy.lead_to(program.local_addr().unwrap());
    let (mut dialed, _) = program.accept().unwrap();
    dialed
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .unwrap();
    held.source.wait_for("does not speak TLS");
    drop((dialed, program));
    let target = trial.start_target_with_journal(&[]);
    let receipt = trial.ends_well(held.source, target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

/// What becomes a file of a directory has its journal in the state directory, like any volume.
#[test]
fn a_killed_target_goes_on_with_a_volume_in_a_directory() {
    let trial = Trial::default();
    fs::create_dir(&trial.target_volume).unwrap();
    let held = hold_with_journal(&trial, &[]);
    kill(held.target);
    trial.proxy.open();
    let target = trial.start_target_with_journal(&[]);
    let _proven = held.source.end().succeeded();
    let _proven = target.end().succeeded();
    let disk_image = trial.target_volume.join("disk.img");
    volume::assert_same(&trial.source_volume, &disk_image, trial.size);
    let receipt = trial.agents.receipt(Role::Target);
    assert_eq!(number(&receipt, "resumed_bytes"), held.durable_bytes);
}

/// A file of that name that nobody began is in the way of a tree, and of a volume.
#[test]
fn what_is_no_volume_of_the_clone_stays_in_a_directory() {
    let trial = Trial::of(MIB);
    volume::create_dense(&trial.source_volume, trial.size, 7);
    fs::create_dir(&trial.target_volume).unwrap();
    let disk_image = trial.target_volume.join("disk.img");
    fs::write(&disk_image, "theirs").unwrap();
    let tree = trial.agents.path("tree");
    fs::create_dir(&tree).unwrap();
    for source_volume in [&trial.source_volume, &tree] {
        let target = trial.start_target_with_journal(&[]);
        let address = trial.proxy.address();
        let source = trial.agents.start_source(address, source_volume, &[]);
        target.end().failed(4, &["target_in_use"]);
        source.end().failed(4, &["target_in_use"]);
        assert_eq!(fs::read_to_string(&disk_image).unwrap(), "theirs");
    }
}

/// A receipt says what is there. Nobody gets that of what was written over since.
#[test]
fn what_was_proven_is_proven_no_more_when_another_source_has_written() {
    let trial = Trial::default();
    let mut target = trial.start_target_with_journal(&["--resume", "digest"]);
    trial.proxy.hold_chunks_after(Trial::PASSED);
    let source = trial.start_source(&[]);
    trial.proxy.wait_until_it_holds();
    // What the target says comes so late that the source does not live to hear that the clone is proven.
    trial.proxy.delay(Way::ToSource, Duration::from_secs(6));
    trial.proxy.open();
    let admin = target.admin();
    eventually("that the clone is proven", || {
        progress(admin)["stage"] == "done"
    });
    kill(source);
    trial.proxy.end_all(Ending::Reset);
    trial.proxy.delay(Way::ToSource, Duration::ZERO);

    volume::flip(&trial.source_volume, 17);
    volume::flip(&trial.source_volume, 20 * MIB);
    trial.proxy.hold_chunks_after(CHUNK);
    let another = trial.start_source(&[]);
    trial.proxy.wait_until_it_holds();
    kill(another);
    trial.proxy.open();
    target.signal(Signal::TERM);
    assert_ne!(target.end().code(), 0);
    // Whichever it notices first.
    let code = failure_code(&trial, Role::Target);
    assert!(code == "cancelled" || code == "disconnected", "{code}");
}

/// A clone with a journal that is held in the middle.
fn held_with_journal() -> (Trial, Held) {
    let trial = Trial::default();
    let held = hold_with_journal(&trial, &[]);
    (trial, held)
}

fn hold_with_journal(trial: &Trial, source_arguments: &[&str]) -> Held {
    let target = trial.start_target_with_journal(&[]);
    trial.proxy.hold_chunks_after(Trial::PASSED);
    let source = trial.start_source(source_arguments);
    trial.hold(target, source)
}

#[test]
fn both_agents_are_killed_and_started_again() {
    let (trial, held) = held_with_journal();
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    kill(held.source);
    kill(held.target);
    trial.proxy.open();
    let target = trial.start_target_with_journal(&[]);
    let source = trial.start_source(&[]);
    let receipt = trial.ends_well(source, target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

#[test]
fn a_killed_target_without_a_journal_compares_what_it_holds() {
    let trial = Trial::default();
    let held = trial.start_and_hold(&[], &[]);
    let (durable, sent) = (held.durable_bytes, held.sent_bytes);
    kill(held.target);
    trial.proxy.open();
    let target = trial.start_target(&["--resume", "digest"]);
    let receipt = trial.ends_well(held.source, target);
    let matched = number(&receipt, "matched_bytes");
    assert!(matched >= durable, "{receipt}");
    let sent_again = number(&receipt, "sent_bytes") - (trial.size - matched);
    assert!(sent_again <= sent + 4 * CHUNK, "{sent}: {receipt}");
}

/// What was received is made durable before the end, and nothing of it is sent again.
#[track_caller]
fn drained(end: Role) {
    let (trial, held) = held_with_journal();
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    let Held {
        mut source,
        mut target,
        ..
    } = held;
    if end == Role::Source {
        source.signal(Signal::TERM);
        source.end().failed(8, &["ended by a signal"]);
        source = trial.start_source(&[]);
    } else {
        target.signal(Signal::TERM);
        target.end().failed(8, &["ended by a signal"]);
        target = trial.start_target_with_journal(&[]);
    }
    trial.proxy.open();
    let receipt = trial.ends_well(source, target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

#[test]
fn a_source_that_is_told_to_end_is_started_again() {
    drained(Role::Source);
}

#[test]
fn a_target_that_is_told_to_end_is_started_again() {
    drained(Role::Target);
}

/// The network brings more than was durable; a target that is told to end makes it durable first.
#[test]
fn a_target_that_is_told_to_end_loses_nothing_that_it_took() {
    let (trial, held) = held_with_journal();
    trial.proxy.hold_chunks_after(4 * MIB);
    let Held {
        source, mut target, ..
    } = held;
    trial.proxy.wait_until_it_holds();
    let taken = settled(target.admin(), "data_bytes");
    target.signal(Signal::TERM);
    target.end().failed(8, &["ended by a signal"]);
    trial.proxy.open();
    let target = trial.start_target_with_journal(&[]);
    let receipt = trial.ends_well(source, target);
    assert!(
        number(&receipt, "resumed_bytes") >= taken,
        "{taken}: {receipt}"
    );
}

// ---- Two sources ----

#[test]
fn a_second_source_waits_for_its_turn() {
    let trial = Trial::default();
    let held = trial.start_and_hold(&[], &[]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    let mut second = trial.start_source(&[]);
    second.wait_for("serves another session");
    let mut first = held.source;
    assert!(first.is_running());
    kill(first);
    trial.proxy.open();
    let receipt = trial.ends_well(second, held.target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

/// A first source that ends when a second one takes over.
#[track_caller]
fn was_shut_out(trial: &Trial, ended: Ended) {
    ended.failed(5, &["took this clone over"]);
    assert_eq!(failure_code(trial, Role::Source), "fenced");
}

#[test]
fn a_second_source_takes_over_when_told_to() {
    let trial = Trial::default();
    let mut held = trial.start_and_hold(&[], &[]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    let second = trial.start_source(&["--take-over"]);
    held.target.wait_for("takes over");
    was_shut_out(&trial, held.source.end());
    trial.proxy.open();
    let receipt = trial.ends_well(second, held.target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

/// An agent that slept through its successor's start holds chunks that it wants to send.
#[test]
fn a_source_that_was_paused_can_not_write_any_more() {
    let trial = Trial::default();
    let mut held = trial.start_and_hold(&[], &[]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    held.source.signal(Signal::STOP);
    let mut second = trial.start_source(&["--take-over"]);
    held.target.wait_for("takes over");
    second.wait_for("goes on from what is durable");
    held.source.signal(Signal::CONT);
    was_shut_out(&trial, held.source.end());
    trial.proxy.open();
    let receipt = trial.ends_well(second, held.target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

/// It never heard that another took over, and comes back by itself.
#[test]
fn a_source_that_was_shut_out_can_not_come_back() {
    let trial = Trial::default();
    let mut held = trial.start_and_hold(&[], &[]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    held.source.signal(Signal::STOP);
    trial.proxy.end_all(Ending::Reset);
    held.target.wait_for("a session ended early");
    let mut second = trial.start_source(&["--take-over"]);
    second.wait_for("goes on from what is durable");
    held.source.signal(Signal::CONT);
    held.source.wait_for("the session was lost");
    was_shut_out(&trial, held.source.end());
    trial.proxy.open();
    let receipt = trial.ends_well(second, held.target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

/// The same, when the target has been started again meanwhile.
#[test]
fn a_source_that_was_paused_can_not_write_to_the_next_target() {
    let (trial, mut held) = held_with_journal();
    let durable = held.durable_bytes;
    held.source.signal(Signal::STOP);
    let mut second = trial.start_source(&["--take-over"]);
    held.target.wait_for("takes over");
    second.wait_for("goes on from what is durable");
    kill(held.target);
    let target = trial.start_target_with_journal(&[]);
    second.wait_for("the session was lost");
    held.source.signal(Signal::CONT);
    // Whichever of the two comes first, the second has it in the end.
    trial.proxy.open();
    let receipt = trial.ends_well(second, target);
    assert!(number(&receipt, "resumed_bytes") >= durable, "{receipt}");
    drop(held.source);
}

/// The target was started again before the other took over: the journal knows whom that shuts out.
#[test]
fn a_source_that_held_the_clone_before_the_target_was_restarted_is_shut_out() {
    let (trial, held) = held_with_journal();
    let durable = held.durable_bytes;
    held.source.signal(Signal::STOP);
    kill(held.target);
    let target = trial.start_target_with_journal(&[]);
    let mut second = trial.start_source(&["--take-over"]);
    second.wait_for("goes on from what is durable");
    held.source.signal(Signal::CONT);
    was_shut_out(&trial, held.source.end());
    trial.proxy.open();
    let receipt = trial.ends_well(second, target);
    assert!(number(&receipt, "resumed_bytes") >= durable, "{receipt}");
}

// ---- Another source ----

#[test]
fn another_source_is_refused_or_compared() {
    let (trial, held) = held_with_journal();
    let durable = held.durable_bytes;
    kill(held.source);
    volume::flip(&trial.source_volume, 17);
    let words = ["can't go on from what is durable", "--resume digest"];
    trial.start_source(&[]).end().failed(3, &words);
    held.target.end().failed(3, &words);
    assert_eq!(failure_code(&trial, Role::Source), "source_changed");
    assert_eq!(failure_code(&trial, Role::Target), "source_changed");

    trial.proxy.open();
    let target = trial.start_target_with_journal(&["--resume", "digest"]);
    let source = trial.start_source(&[]);
    let receipt = trial.ends_well(source, target);
    assert!(
        number(&receipt, "matched_bytes") >= durable - CHUNK,
        "{receipt}"
    );
    let sent = number(&receipt, "sent_bytes");
    assert!(sent <= trial.size - durable + CHUNK, "{receipt}");
    assert_eq!(receipt["resumed_bytes"], 0);
}

#[test]
fn the_generation_of_a_device_is_what_it_is_told_to_be() {
    let Some(device) = Loop::made_by(512, |path| volume::create_dense(path, Trial::SIZE, 7)) else {
        return;
    };
    let mut trial = Trial::of(Trial::SIZE);
    trial.source_volume.clone_from(&device.device);
    let held = hold_with_journal(&trial, &["--source-generation", "one"]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    kill(held.source);
    let second = trial.start_source(&["--source-generation", "two"]);
    second.end().failed(3, &["--resume digest"]);
    held.target.end().failed(3, &["--resume digest"]);

    trial.proxy.open();
    let target = trial.start_target_with_journal(&[]);
    let source = trial.start_source(&["--source-generation", "one"]);
    let receipt = trial.ends_well(source, target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

// ---- Another journal, another target ----

/// A clone whose two agents were killed in the middle, with what was durable by then.
fn dead() -> (Trial, u64) {
    let (trial, held) = held_with_journal();
    kill(held.source);
    kill(held.target);
    trial.proxy.open();
    (trial, held.durable_bytes)
}

#[test]
fn a_torn_journal_counts_up_to_its_last_whole_record() {
    let (trial, _) = dead();
    let file = OpenOptions::new()
        .write(true)
        .open(journal(&trial))
        .unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - 5).unwrap();
    let mut target = trial.start_target_with_journal(&[]);
    target.wait_for("the journal ends in a torn record");
    let _receipt = trial.ends_well(trial.start_source(&[]), target);
}

#[test]
fn a_journal_that_is_none_counts_as_absent() {
    for garbage in [&b""[..], b"something else", &[0xff; 4096]] {
        let (trial, _) = dead();
        fs::write(journal(&trial), garbage).unwrap();
        // Nothing tells that the file is the clone's own any more.
        let refused = trial
            .agents
            .run_target(&trial.target_volume, &["--state-dir", &trial.state]);
        refused.failed(4, &["exists already", "overwriting"]);
        let mut target = trial.start_target_with_journal(&["--overwrite"]);
        target.wait_for("the journal is not used");
        let receipt = trial.ends_well(trial.start_source(&[]), target);
        assert_eq!(receipt["resumed_bytes"], 0);
    }
}

#[test]
fn a_journal_of_another_clone_counts_as_absent() {
    let (other, _) = dead();
    let trial = Trial::default();
    fs::create_dir(&trial.state).unwrap();
    fs::copy(journal(&other), journal(&trial)).unwrap();
    let foreign = vec![0x5a; 100_000];
    fs::write(&trial.target_volume, &foreign).unwrap();
    let refused = trial
        .agents
        .run_target(&trial.target_volume, &["--state-dir", &trial.state]);
    refused.failed(4, &["exists already", "overwriting"]);
    assert_eq!(fs::read(&trial.target_volume).unwrap(), foreign);
    let mut target = trial.start_target_with_journal(&["--overwrite"]);
    target.wait_for("the journal is not used");
    let receipt = trial.ends_well(trial.start_source(&[]), target);
    assert_eq!(receipt["resumed_bytes"], 0);
}

#[test]
fn a_fresh_target_file_is_not_what_the_journal_speaks_of() {
    for is_empty in [true, false] {
        let (trial, _) = dead();
        fs::remove_file(&trial.target_volume).unwrap();
        if is_empty {
            File::create(&trial.target_volume).unwrap();
        }
        let mut target = trial.start_target_with_journal(&[]);
        let source = trial.start_source(&[]);
        target.wait_for("starts anew");
        let receipt = trial.ends_well(source, target);
        assert_eq!(receipt["resumed_bytes"], 0);
    }
}

#[test]
fn a_target_file_that_is_not_the_journals_is_left_alone() {
    // Smaller and larger than the volume: neither its size nor its end may change.
    for (size, options) in [
        (3 * MIB, &[][..]),
        (Trial::SIZE + 3 * MIB, &["--zero-tail"]),
        (3 * MIB, &["--preallocate"]),
    ] {
        let (trial, _) = dead();
        fs::remove_file(&trial.target_volume).unwrap();
        volume::create_dirty(&trial.target_volume, size);
        let target = trial.start_target_with_journal(options);
        let source = trial.start_source(&[]);
        let words = [
            "is not the volume that the journal speaks of",
            "--overwrite",
        ];
        source.end().failed(4, &words);
        target.end().failed(4, &words);
        assert_eq!(failure_code(&trial, Role::Target), "target_in_use");
        assert_eq!(trial.target_volume.metadata().unwrap().len(), size);
        volume::assert_holds_only(&trial.target_volume, 0, size, volume::DIRT);
    }
}

#[test]
fn a_journal_that_has_no_room_is_told() {
    let Some(mount) = Mount::tmpfs(MIB) else {
        return;
    };
    let ballast = mount.path().join("ballast");
    let _full = fs::write(&ballast, vec![1; 2 << 20]);
    let mut trial = Trial::default();
    mount
        .path()
        .join("state")
        .to_str()
        .unwrap()
        .clone_into(&mut trial.state);
    let target = trial.start_target_with_journal(&[]);
    let source = trial.start_source(&[]);
    let words = [
        "the journal",
        "make room there, or choose another --state-dir",
    ];
    source.end().failed(4, &words);
    target.end().failed(4, &words);
    assert_eq!(failure_code(&trial, Role::Target), "target_journal");

    fs::remove_file(ballast).unwrap();
    let target = trial.start_target_with_journal(&[]);
    let _receipt = trial.ends_well(trial.start_source(&[]), target);
}

// ---- An older copy ----

#[test]
fn of_an_older_copy_only_what_changed_is_sent() {
    let trial = Trial::default();
    fs::copy(&trial.source_volume, &trial.target_volume).unwrap();
    for chunk in [0, 9, 10, 77] {
        volume::flip(&trial.source_volume, chunk * CHUNK + 4097);
    }
    let target = trial.start_target(&["--delta"]);
    let receipt = trial.ends_well(trial.start_source(&[]), target);
    assert_eq!(number(&receipt, "matched_bytes"), trial.size - 4 * CHUNK);
    assert_eq!(number(&receipt, "sent_bytes"), 4 * CHUNK);
    assert_eq!(receipt["resent_bytes"], 0);
    let wire = number(&receipt, "wire_bytes");
    assert!(wire < 5 * CHUNK, "{wire}");
}

#[test]
fn a_delta_that_is_broken_goes_on() {
    let trial = Trial::default();
    volume::create_dirty(&trial.target_volume, trial.size);
    let target = trial.start_target_with_journal(&["--delta"]);
    trial.proxy.hold_chunks_after(Trial::PASSED);
    let held = trial.hold(target, trial.start_source(&[]));
    let durable = held.durable_bytes;
    kill(held.target);
    trial.proxy.open();
    let target = trial.start_target_with_journal(&["--delta"]);
    let receipt = trial.ends_well(held.source, target);
    assert!(number(&receipt, "resumed_bytes") >= durable, "{receipt}");
}

// ---- Verification ----

#[test]
fn a_target_is_read_back_when_told_to() {
    let trial = Trial::default();
    let target = trial.start_target(&["--verify", "readback"]);
    let receipt = trial.ends_well(trial.start_source(&[]), target);
    assert_eq!(receipt["verified"], "readback");
    assert_eq!(receipt["repaired_bytes"], 0);

    let trial = Trial::default();
    let target = trial.start_target(&["--verify", "none"]);
    let receipt = trial.ends_well(trial.start_source(&[]), target);
    assert_eq!(receipt["verified"], "none");
}

/// Storage loses bytes that it has acknowledged.
#[test]
fn what_reads_back_wrong_is_sent_again() {
    let trial = Trial::default();
    let held = trial.start_and_hold(&["--verify", "readback"], &[]);
    for chunk in [0, 3, 4] {
        volume::flip(&trial.target_volume, chunk * CHUNK + 4097);
    }
    trial.proxy.open();
    let receipt = trial.ends_well(held.source, held.target);
    assert_eq!(receipt["verified"], "readback");
    assert_eq!(number(&receipt, "repaired_bytes"), 3 * CHUNK);
    assert_eq!(number(&receipt, "resent_bytes"), 3 * CHUNK);
    assert_eq!(number(&receipt, "data_bytes"), trial.size);
}

/// The same on a device, where zeros may be lost as well as data.
#[test]
fn a_device_that_reads_back_wrong_is_repaired() {
    let size = Trial::SIZE;
    let mut trial = Trial::of(size);
    let content = volume::create(&trial.source_volume, size, 11);
    let Some(device) = Loop::dirty(size, 512) else {
        return;
    };
    trial.target_volume.clone_from(&device.device);
    let target = trial.start_target_with_journal(&["--verify", "readback"]);
    trial.proxy.hold_chunks_after(Trial::PASSED);
    let source = trial.start_source(&[]);
    trial.proxy.wait_until_it_holds();
    let mut target = target;
    let admin = target.admin();
    wait_until_at_least(admin, "durable_bytes", 4 * MIB);
    for at in (0..4 * MIB).step_by(100_000) {
        volume::flip(&device.backing, at);
    }
    trial.proxy.open();
    let receipt = trial.ends_well(source, target);
    assert!(number(&receipt, "repaired_bytes") >= 4 * MIB, "{receipt}");
    assert_eq!(number(&receipt, "data_bytes"), content.data_bytes);
}

// ---- A checkpoint that is carried elsewhere ----

#[test]
fn a_new_target_goes_on_from_a_checkpoint() {
    let mut trial = Trial::default();
    let mut held = trial.start_and_hold(&[], &[]);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    let (_, report) = get(held.target.admin(), "/progress");
    assert!(report.len() < 8192, "{} bytes", report.len());
    let checkpoint = trial.agents.path("checkpoint");
    fs::write(&checkpoint, report).unwrap();
    kill(held.target);
    let elsewhere = trial.agents.path("elsewhere");
    fs::copy(&trial.target_volume, &elsewhere).unwrap();
    fs::remove_file(&trial.target_volume).unwrap();
    trial.target_volume = elsewhere;
    trial.proxy.open();
    let target = trial.start_target(&["--resume-from", checkpoint.to_str().unwrap()]);
    let receipt = trial.ends_well(held.source, target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

#[test]
fn a_checkpoint_does_not_vouch_for_another_volume() {
    let trial = Trial::default();
    let mut held = trial.start_and_hold(&[], &[]);
    let (_, report) = get(held.target.admin(), "/progress");
    let checkpoint = trial.agents.path("checkpoint");
    fs::write(&checkpoint, report).unwrap();
    kill(held.target);
    kill(held.source);
    fs::remove_file(&trial.target_volume).unwrap();
    volume::create_dirty(&trial.target_volume, trial.size);
    trial.proxy.open();
    let resume = ["--resume-from", checkpoint.to_str().unwrap()];
    let target = trial.start_target(&resume);
    trial.start_source(&[]).end().failed(4, &["--overwrite"]);
    target.end().failed(4, &["--overwrite"]);
    volume::assert_holds_only(&trial.target_volume, 0, trial.size, volume::DIRT);
}

#[test]
fn a_checkpoint_of_another_clone_is_refused() {
    let other = Trial::default();
    let mut held = other.start_and_hold(&[], &[]);
    let (_, report) = get(held.target.admin(), "/progress");
    let trial = Trial::default();
    let checkpoint = trial.agents.path("checkpoint");
    fs::write(&checkpoint, report).unwrap();
    volume::create_dirty(&trial.target_volume, trial.size);
    let resume = ["--resume-from", checkpoint.to_str().unwrap()];
    let ended = trial.agents.run_target(&trial.target_volume, &resume);
    assert_ne!(ended.code(), 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("clone"), "{}", ended.stderr);
    volume::assert_holds_only(&trial.target_volume, 0, trial.size, volume::DIRT);
}

// ---- Patience ----

#[test]
fn a_clone_that_makes_no_progress_ends() {
    let trial = Trial::default();
    let held = trial.start_and_hold(&[], &["--stall-timeout", "8s"]);
    let words = ["nothing became durable for 8 s"];
    held.source.end().failed(5, &words);
    assert_eq!(failure_code(&trial, Role::Source), "stalled");
    held.target.end().failed(5, &words);
}

#[test]
fn a_target_whose_source_is_gone_ends_when_nothing_more_comes() {
    let trial = Trial::default();
    let held = trial.start_and_hold(&["--stall-timeout", "8s"], &[]);
    kill(held.source);
    held.target
        .end()
        .failed(5, &["nothing became durable for 8 s"]);
    assert_eq!(failure_code(&trial, Role::Target), "stalled");
}

#[test]
fn a_clone_ends_at_its_deadline() {
    let trial = Trial::default();
    let held = trial.start_and_hold(&[], &["--deadline", "12s"]);
    held.source.end().failed(5, &["--deadline"]);
    assert_eq!(failure_code(&trial, Role::Source), "deadline");
    held.target.end().failed(5, &["--deadline"]);

    // A peer that never comes counts too.
    let trial = Trial::default();
    let target = trial.start_target(&["--deadline", "1s"]);
    target.end().failed(5, &["--deadline"]);
    assert_eq!(failure_code(&trial, Role::Target), "deadline");
}

// ---- Credentials ----

/// Starts both agents with credentials that can be renewed.
fn start_with_renewable(trial: &Trial, validity: Duration) -> (Agent, Agent, [PathBuf; 2]) {
    let agents = &trial.agents;
    // Whoever builds the programs takes longer than the first credentials are valid.
    let _built = programs::path("volferry-target");
    let renewable = |role| agents.identity.renewable(role, validity);
    let directories = [Role::Source, Role::Target].map(renewable);
    let target = agents.start_target_as(&directories[1], &trial.target_volume, &[]);
    trial.proxy.lead_to(target.address());
    let arguments = volferry_tests::trial::IN_ORDER;
    let source = agents.start_source_as(
        &directories[0],
        trial.proxy.address(),
        &trial.source_volume,
        &arguments,
    );
    (source, target, directories)
}

/// Nobody who held on to the old credentials would be believed by the other end.
#[test]
fn credentials_that_were_replaced_are_used_at_the_next_connection() {
    let trial = Trial::default();
    trial.proxy.hold_chunks_after(Trial::PASSED);
    let (source, target, directories) = start_with_renewable(&trial, HOUR);
    let held = trial.hold(target, source);
    let (durable, unsafe_bytes) = (held.durable_bytes, held.unsafe_bytes());
    let other_authority = Identity::new(trial.agents.identity.clone_id);
    for (directory, role) in directories.iter().zip([Role::Source, Role::Target]) {
        other_authority.renew(directory, role, HOUR);
    }
    trial.proxy.end_all(Ending::Reset);
    trial.proxy.open();
    let receipt = trial.ends_well(held.source, held.target);
    assert_resumed(&receipt, durable, unsafe_bytes);
}

#[test]
fn a_clone_outlives_its_credentials() {
    const VALIDITY: Duration = Duration::from_secs(5);
    let trial = Trial::default();
    trial.proxy.throttle(Way::ToTarget, Some(3 * MIB));
    let (source, target, directories) = start_with_renewable(&trial, VALIDITY);
    let is_over = AtomicBool::new(false);
    let renew = || {
        for _ in 0..60 {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            thread::sleep(VALIDITY / 5);
            for (directory, role) in directories.iter().zip([Role::Source, Role::Target]) {
                trial.agents.identity.renew(directory, role, VALIDITY);
            }
        }
    };
    let receipt = thread::scope(|scope| {
        scope.spawn(renew);
        let mut source = source;
        // The first ones are over by then.
        wait_until_at_least(source.admin(), "data_bytes", 24 * MIB);
        trial.proxy.end_all(Ending::Reset);
        let receipt = trial.ends_well(source, target);
        is_over.store(true, Ordering::Relaxed);
        receipt
    });
    let seconds = receipt["seconds"].as_f64().unwrap();
    assert!(seconds > VALIDITY.as_secs_f64(), "{seconds}");
    assert!(number(&receipt, "resumed_bytes") >= 8 * MIB, "{receipt}");
}
