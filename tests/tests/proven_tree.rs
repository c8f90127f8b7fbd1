//! Trees whose target is killed when the clone is proven, and its source has not heard of it.
//!
//! What the target says arrives late, so that there is time for what happens in between.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use volferry_tests::agents::{Agent, Agents};
use volferry_tests::http::eventually;
use volferry_tests::proxy::{Ending, Way};
use volferry_tests::trial::{Trial, number};
use volferry_tests::{MIB, tree, volume};
use volferry_transport::Role;

/// How late the source hears what the target says: more than it takes to see that the moment has come, and
/// to kill the target.
const LATE: Duration = Duration::from_secs(6);

/// Far below what the content of the tree takes, and above what the two ends say to each other.
const TALK_MAX: u64 = 64 << 10;

/// A tree that is proven, and a source that does not know it: its target was killed.
struct Proven {
    trial: Trial,
    source: Agent,
}

fn proof(trial: &Trial) -> PathBuf {
    let id = trial.agents.identity.clone_id;
    PathBuf::from(&trial.state).join(format!("{id}.proof"))
}

fn staging(trial: &Trial) -> PathBuf {
    let id = trial.agents.identity.clone_id;
    trial.target_volume.join(format!(".volferry-{id}"))
}

fn kill(mut agent: Agent) {
    agent.signal(Signal::KILL);
    // It may be in the middle of a flush, which no signal ends, and holds the directory until then.
    while agent.is_running() {
        thread::sleep(Duration::from_millis(20));
    }
    let _killed = agent.end();
}

impl Proven {
    /// `is_time` says when the target is killed.
    fn new(has_state: bool, is_time: impl Fn(&Trial) -> bool) -> Self {
        let trial = Trial::of(0);
        let root = &trial.source_volume;
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/small"), "small").unwrap();
        fs::hard_link(root.join("a/b/small"), root.join("again")).unwrap();
        volume::create_dense(&root.join("large"), 3 * MIB, 3);
        fs::set_permissions(root, Permissions::from_mode(0o751)).unwrap();
        fs::create_dir(&trial.target_volume).unwrap();
        let target = match has_state {
            true => trial.start_target_with_journal(&[]),
            false => trial.start_target(&[]),
        };
        trial.proxy.hold_chunks_after(MIB);
        let source = trial.start_source(&[]);
        trial.proxy.wait_until_it_holds();
        trial.proxy.delay(Way::ToSource, LATE);
        trial.proxy.open();
        eventually("the moment to kill the target", || is_time(&trial));
        kill(target);
        // Whatever it has said is lost.
        trial.proxy.end_all(Ending::Reset);
        trial.proxy.delay(Way::ToSource, Duration::ZERO);
        Self { trial, source }
    }

    fn with_proof() -> Self {
        Self::new(true, |trial| proof(trial).exists())
    }

    /// The same, killed when the journal is gone, so that there is nothing else to go on from.
    fn without_journal() -> Self {
        let is_time = |trial: &Trial| proof(trial).exists() && !staging(trial).exists();
        Self::new(true, is_time)
    }

    /// The receipt that the target has made, and told nobody.
    fn receipt(&self) -> Value {
        let bytes = fs::read(proof(&self.trial)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let at = text.find("{\"receipt_version\"").unwrap();
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter();
        values.next().unwrap().unwrap()
    }

    /// Expects that the next target ends the clone with the very receipt that the one before has made,
    /// and that nothing of the tree travels for it.
    fn ends_with_the_next_target(self) {
        let receipt = self.receipt();
        let Self { trial, source } = self;
        let before = trial.proxy.passed(Way::ToTarget);
        let target = trial.start_target_with_journal(&[]);
        let _source = source.end().succeeded();
        let _target = target.end().succeeded();
        let travelled = trial.proxy.passed(Way::ToTarget) - before;
        assert!(travelled < TALK_MAX, "{travelled} bytes");
        for role in [Role::Source, Role::Target] {
            assert_eq!(trial.agents.receipt(role), receipt, "{role}");
        }
        assert_eq!(number(&receipt, "sessions"), 1, "{receipt}");
        tree::assert_same(&trial.source_volume, &trial.target_volume);
        tree::assert_rsync_agrees(&trial.source_volume, &trial.target_volume);
        // A later clone by the same name ends with a receipt of its own.
        assert!(!proof(&trial).exists());
    }
}

/// Killed as soon as there is a proof, whatever of the end has been done by then.
#[test]
fn a_receipt_that_nobody_heard_is_told_by_the_next_target() {
    Proven::with_proof().ends_with_the_next_target();
}

#[test]
fn a_tree_without_its_journal_is_still_proven() {
    Proven::without_journal().ends_with_the_next_target();
}

/// Killed while what the clone kept for itself was removed.
#[test]
fn what_is_left_of_a_clone_is_removed_by_the_next_target() {
    let proven = Proven::with_proof();
    let staging = staging(&proven.trial);
    fs::create_dir_all(staging.join("links")).unwrap();
    fs::write(staging.join("links/1"), "").unwrap();
    proven.ends_with_the_next_target();
}

/// The source may have been killed, too.
#[test]
fn another_run_of_the_source_is_told_the_receipt() {
    let mut proven = Proven::with_proof();
    let again = proven.trial.start_source(&[]);
    kill(std::mem::replace(&mut proven.source, again));
    proven.ends_with_the_next_target();
}

/// Who says that the directory may be written again may have a source that has changed since.
#[test]
fn another_run_of_the_source_is_compared_where_that_is_asked_for() {
    let mut proven = Proven::with_proof();
    let source = proven.trial.source_volume.join("a/b/more");
    fs::write(source, "more").unwrap();
    let again = proven.trial.start_source(&[]);
    kill(std::mem::replace(&mut proven.source, again));
    let Proven { trial, source } = proven;
    let target = trial.start_target_with_journal(&["--delta"]);
    let _source = source.end().succeeded();
    let _target = target.end().succeeded();
    tree::assert_same(&trial.source_volume, &trial.target_volume);
    let receipt = trial.agents.receipt(Role::Source);
    assert!(number(&receipt, "sent_bytes") < MIB, "{receipt}");
    assert!(!proof(&trial).exists());
}

/// A source that never comes back is not waited for longer than by the target that was killed.
#[test]
fn a_proof_that_nobody_asks_for_ends_with_the_target() {
    let proven = Proven::with_proof();
    let receipt = proven.receipt();
    kill(proven.source);
    let target = proven.trial.start_target_with_journal(&[]);
    target.signal(Signal::TERM);
    let _target = target.end().succeeded();
    assert_eq!(proven.trial.agents.receipt(Role::Target), receipt);
    assert!(!proof(&proven.trial).exists());
}

// ---- Where it is none ----

/// Expects that a new target refuses the directory as it would any that holds something.
fn is_refused(trial: &Trial, arguments: &[&str], words: &[&str]) {
    let state = ["--state-dir", &trial.state];
    let arguments = [&state[..], arguments].concat();
    let ended = trial.agents.run_target(&trial.target_volume, &arguments);
    let ended = ended.failed(4, &["is not empty"]);
    for words in words {
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
    }
}

#[test]
fn a_proof_that_is_torn_or_of_another_directory_counts_as_absent() {
    let Proven { trial, source } = Proven::without_journal();
    kill(source);
    let whole = fs::read(proof(&trial)).unwrap();
    for torn in [&whole[..whole.len() - 1], b"", &[7; 5000]] {
        fs::write(proof(&trial), torn).unwrap();
        is_refused(&trial, &[], &["the proof is not used", "torn"]);
    }
    fs::write(proof(&trial), &whole).unwrap();
    is_refused(&trial, &["--resume", "none"], &[]);

    // It is kept for the directory that it speaks of, should that only not be there.
    let changed = trial.target_volume.join("a/b/changed");
    fs::write(&changed, "changed").unwrap();
    let words = ["does not hold what was proven"];
    is_refused(&trial, &[], &words);
    assert!(fs::read(proof(&trial)).unwrap() == whole);
}

#[test]
fn a_proof_is_of_one_clone() {
    let Proven { trial, source } = Proven::with_proof();
    kill(source);
    let whole = fs::read(proof(&trial)).unwrap();
    let other = Agents::default();
    let state = ["--state-dir", &trial.state];
    let refused = other.run_target(&trial.target_volume, &state);
    let _refused = refused.failed(4, &["is not empty"]);
    // By the other's name it is none either.
    let id = other.identity.clone_id;
    let by_other_name = PathBuf::from(&trial.state).join(format!("{id}.proof"));
    fs::copy(proof(&trial), by_other_name).unwrap();
    let refused = other.run_target(&trial.target_volume, &state);
    let _refused = refused.failed(4, &["is not empty", "it is of another clone"]);
    assert!(fs::read(proof(&trial)).unwrap() == whole);
}

/// Without a state directory there is no place for a proof.
#[test]
fn without_a_state_directory_a_proven_tree_is_refused_as_not_empty() {
    let is_time = |trial: &Trial| {
        let has_come = trial.target_volume.join("large").exists();
        has_come && !staging(trial).exists()
    };
    let Proven { trial, source } = Proven::new(false, is_time);
    kill(source);
    tree::assert_same(&trial.source_volume, &trial.target_volume);
    let refused = trial.agents.run_target(&trial.target_volume, &[]);
    let _refused = refused.failed(4, &["is not empty"]);
}
