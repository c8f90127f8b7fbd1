//! Both machines on a virtual clock, in a world that goes wrong on purpose: connections are cut,
//! held up and half open, agents are killed and paused, the power fails over unflushed writes and
//! half a journal record, two sources want the same target, and the source changes.
//!
//! A run is made of one seed, and goes the same way each time. `VOLFERRY_SIM_RUNS=n` sets how many
//! seeds are run and `VOLFERRY_SIM_FIRST=n` the first of them, `VOLFERRY_SIM_SEED=n` replays one and
//! shows what happens:
//!
//! ```sh
//! VOLFERRY_SIM_SEED=17 cargo test -p volferry-protocol --test simulation -- --nocapture seeds_of_trees
//! ```
//!
//! What has to hold after each step is in `checker`; the drivers of both agents are played by
//! `source` and `target`.

#![expect(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    reason = "a test may panic"
)]

mod block;
mod fencing;
mod intake;
mod journal_file;
mod network;
mod realm;
mod rng;
mod tag;
mod tree;

use std::env;

use fencing::Violation;
use realm::{Broken, Scene, Story};

/// Seeds of each test run.
const RUNS: u64 = 2000;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// What is cloned.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Volume,
    Tree,
}

fn run(kind: Kind, seed: u64, broken: Broken, is_shown: bool) -> Result<Story, Violation> {
    match kind {
        Kind::Volume => block::World::new(seed, broken, is_shown).run(),
        Kind::Tree => tree::World::new(seed, broken, is_shown).run(),
    }
}

/// Names the seed, should the machines panic.
struct Named(u64);

impl Drop for Named {
    #[expect(
        clippy::print_stdout,
        reason = "a panic doesn't say which seed it is of"
    )]
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("VOLFERRY_SIM_SEED={}", self.0);
        }
    }
}

fn run_well(kind: Kind, seed: u64, is_shown: bool) -> Story {
    let _named = Named(seed);
    match run(kind, seed, Broken::Nothing, is_shown) {
        Ok(story) => story,
        Err(Violation(text)) => panic!("{text}"),
    }
}

#[expect(clippy::print_stdout, reason = "how much was tried")]
fn all_seeds_hold(kind: Kind) {
    if let Some(seed) = number("VOLFERRY_SIM_SEED") {
        println!("{:?}", run_well(kind, seed, true));
        return;
    }
    let runs = number("VOLFERRY_SIM_RUNS").unwrap_or(RUNS);
    let first = number("VOLFERRY_SIM_FIRST").unwrap_or(0);
    let mut all = Story::default();
    for seed in first..first + runs {
        let story = run_well(kind, seed, false);
        all.receipts += story.receipts;
        all.sessions += story.sessions;
        all.steps += story.steps;
    }
    println!("{kind:?}, {runs} seeds: {all:?}");
    assert!(all.receipts as u64 > runs / 2, "most clones are proven");
    assert!(all.sessions > runs, "some are cut");
}

#[test]
fn all_seeds_of_volumes_hold() {
    all_seeds_hold(Kind::Volume);
}

#[test]
fn all_seeds_of_trees_hold() {
    all_seeds_hold(Kind::Tree);
}

#[test]
fn a_seed_goes_the_same_way_each_time() {
    for kind in [Kind::Volume, Kind::Tree] {
        for seed in 0..50 {
            let story = run_well(kind, seed, false);
            assert_eq!(story, run_well(kind, seed, false));
        }
        let [one, two] = [1, 2].map(|seed| run_well(kind, seed, false).trace);
        assert_ne!(one, two);
    }
}

/// Whether the checker says so of some seed.
fn is_found(kind: Kind, broken: Broken, words: &str) -> bool {
    (0..RUNS).any(|seed| match run(kind, seed, broken, false) {
        Err(Violation(text)) => text.contains(words),
        Ok(_) => false,
    })
}

#[test]
fn a_target_that_does_not_flush_is_found_out() {
    let volume = |words| is_found(Kind::Volume, Broken::Flush, words);
    assert!(volume("told as durable and holds"));
    assert!(volume("journaled as durable and holds"));
    assert!(is_found(
        Kind::Tree,
        Broken::Flush,
        "journaled as durable, and holds"
    ));
}

#[test]
fn a_target_that_does_not_journal_is_found_out() {
    let is_found = |kind, words| is_found(kind, Broken::Journal, words);
    assert!(is_found(Kind::Volume, "what the journal lacks"));
    assert!(is_found(Kind::Tree, "are told, and durable are"));
}

#[test]
fn a_target_without_a_fence_is_found_out() {
    for kind in [Kind::Volume, Kind::Tree] {
        assert!(is_found(kind, Broken::Fence, "writes while"));
    }
}

#[test]
fn a_target_that_forgets_who_was_shut_out_is_found_out() {
    for kind in [Kind::Volume, Kind::Tree] {
        assert!(is_found(kind, Broken::Forget, "was shut out and is let in"));
    }
}

/// A source takes over after the restart, and who held the session before it comes back.
#[test]
fn a_target_that_forgets_who_held_the_session_is_found_out() {
    for kind in [Kind::Volume, Kind::Tree] {
        let words = "was shut out and is let in";
        assert!(is_found(kind, Broken::ForgetHolder, words), "{kind:?}");
    }
}

/// Pieces of two states of a file make neither.
#[test]
fn a_target_that_mixes_states_of_a_file_is_found_out() {
    let words = "journaled as durable, and holds";
    assert!(is_found(Kind::Tree, Broken::Stamp, words));
}

#[test]
fn a_target_that_trusts_what_read_back_wrong_is_found_out() {
    assert!(is_found(
        Kind::Tree,
        Broken::Distrust,
        "ends with bytes arrived"
    ));
}

#[test]
fn a_target_that_notes_what_no_flush_covers_is_found_out() {
    let words = "journaled as durable, and holds";
    assert!(is_found(Kind::Tree, Broken::Early, words));
}

#[test]
fn a_target_that_forgets_what_it_has_proven_is_found_out() {
    let words = "what was proven is written again";
    assert!(is_found(Kind::Tree, Broken::Proof, words));
}
