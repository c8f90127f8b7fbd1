//! Both machines on a virtual clock, in a world that goes wrong on purpose: connections are cut,
//! held up and half open, agents are killed and paused, the power fails over unflushed writes and
//! half a journal record, two sources want the same target, and the source changes.
//!
//! A run is made of one seed, and goes the same way each time. `VOLFERRY_SIM_RUNS=n` sets how many
//! seeds are run and `VOLFERRY_SIM_FIRST=n` the first of them, `VOLFERRY_SIM_SEED=n` replays one and
//! shows what happens:
//!
//! ```sh
//! VOLFERRY_SIM_SEED=17 cargo test -p volferry-protocol --test simulation -- --nocapture seeds
//! ```
//!
//! What has to hold after each step is in `checker`; the drivers of both agents are played by
//! `source` and `target`.

#![expect(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    reason = "a test may panic"
)]

mod checker;
mod content;
mod network;
mod rng;
mod source;
mod storage;
mod target;
mod world;

use std::env;

use checker::Violation;
use world::{Broken, Story, World};

/// Seeds of each test run.
const RUNS: u64 = 2000;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn run(seed: u64, broken: Broken, is_shown: bool) -> Result<Story, Violation> {
    World::new(seed, broken, is_shown).run()
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

fn run_well(seed: u64, is_shown: bool) -> Story {
    let _named = Named(seed);
    match run(seed, Broken::Nothing, is_shown) {
        Ok(story) => story,
        Err(Violation(text)) => panic!("{text}"),
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "how much was tried")]
fn all_seeds_hold() {
    if let Some(seed) = number("VOLFERRY_SIM_SEED") {
        println!("{:?}", run_well(seed, true));
        return;
    }
    let runs = number("VOLFERRY_SIM_RUNS").unwrap_or(RUNS);
    let first = number("VOLFERRY_SIM_FIRST").unwrap_or(0);
    let mut all = Story::default();
    for seed in first..first + runs {
        let story = run_well(seed, false);
        all.receipts += story.receipts;
        all.sessions += story.sessions;
        all.steps += story.steps;
    }
    println!("{runs} seeds: {all:?}");
    assert!(all.receipts as u64 > runs / 2, "most clones are proven");
    assert!(all.sessions > runs, "some are cut");
}

#[test]
fn a_seed_goes_the_same_way_each_time() {
    for seed in 0..50 {
        assert_eq!(run_well(seed, false), run_well(seed, false));
    }
    assert_ne!(run_well(1, false).trace, run_well(2, false).trace);
}

/// Whether the checker says so of some seed.
fn is_found(broken: Broken, words: &str) -> bool {
    (0..RUNS).any(|seed| match run(seed, broken, false) {
        Err(Violation(text)) => text.contains(words),
        Ok(_) => false,
    })
}

#[test]
fn a_target_that_does_not_flush_is_found_out() {
    assert!(is_found(Broken::Flush, "told as durable and holds"));
    assert!(is_found(Broken::Flush, "journaled as durable and holds"));
}

#[test]
fn a_target_that_does_not_journal_is_found_out() {
    assert!(is_found(Broken::Journal, "what the journal lacks"));
}

#[test]
fn a_target_without_a_fence_is_found_out() {
    assert!(is_found(Broken::Fence, "writes while"));
}
