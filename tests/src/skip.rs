//! Skipping aloud: a test that can't run here says why, on standard error past the test harness's
//! capture, and in a file that outlives the run.
//!
//! `VOLFERRY_TESTS_SKIP=never` makes a skipped test a failed one: a runner that has root, loop
//! devices and namespaces proves with it that nothing was left out.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use crate::programs;

/// Says that a test is skipped, and why. Gives `None`, so that helpers can return it.
///
/// # Panics
/// When nothing may be skipped.
pub fn skip<T>(reason: &str) -> Option<T> {
    let reason = reason.trim();
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let may_skip = std::env::var("VOLFERRY_TESTS_SKIP").as_deref() != Ok("never");
    assert!(
        may_skip,
        "{test} can't run here, and nothing may be skipped: {reason}"
    );
    let line = format!("SKIPPED: {test}: {reason}\n");
    // Not `eprintln!`, which the test harness swallows when the test passes.
    let _unseen = std::io::stderr().write_all(line.as_bytes());
    let list = OpenOptions::new().create(true).append(true).open(list());
    let _unkept = list.and_then(|mut list| list.write_all(line.as_bytes()));
    None
}

/// Where the skipped tests are listed, oldest first: `skipped-tests.txt` in the target directory.
#[must_use]
pub fn list() -> PathBuf {
    programs::target_directory().join("skipped-tests.txt")
}
