//! Every check in turn. A step that can't run here is skipped aloud, never silently; a step that
//! fails doesn't keep the others from running.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Chore, Outcome, fuzz, is_there, run, tidy};

/// How long each fuzz target runs: enough to replay its corpus and try some millions of inputs.
const FUZZ_TIME: Duration = Duration::from_secs(10);

type Step = (&'static str, fn() -> Chore);

const STEPS: [Step; 7] = [
    ("test", || run(Command::new("scripts/test"))),
    ("format", || run(cargo("fmt --all --check"))),
    ("clippy", || {
        run(cargo(
            "clippy --workspace --all-targets --locked -- -D warnings",
        ))
    }),
    ("docs", || {
        let mut docs = cargo("doc --workspace --no-deps --locked");
        docs.env("RUSTDOCFLAGS", "-D warnings");
        run(docs)
    }),
    ("tidy", tidy::run),
    ("fuzz", || fuzz::run(fuzz::ALL, FUZZ_TIME)),
    ("deny", deny),
];

/// Runs every step, the tests only when asked to.
pub(crate) fn all(with_tests: bool) -> Chore {
    let mut summary = String::new();
    let mut failed = 0;
    for (name, step) in STEPS {
        if name == "test" && !with_tests {
            continue;
        }
        println!("\n== {name}");
        let started = Instant::now();
        let outcome = match step() {
            Ok(Outcome::Ran) => "ran".to_owned(),
            Ok(Outcome::Skipped(why)) => format!("skipped: {why}"),
            Err(error) => {
                failed += 1;
                format!("failed: {error}")
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        let line = format!("{name:<8} {seconds:>6.1} s  {outcome}\n");
        print!("{line}");
        summary += &line;
    }
    println!("\n== summary\n{summary}");
    match failed {
        0 => Ok(Outcome::Ran),
        failed => Err(format!("{failed} of the steps failed")),
    }
}

fn cargo(words: &str) -> Command {
    let mut command = Command::new("cargo");
    command.args(words.split(' '));
    command
}

/// Licences, sources and versions of what we depend on. Advisories need the network, and have a
/// time of their own.
fn deny() -> Chore {
    if is_there("cargo-deny") {
        run(cargo(
            "deny --all-features --locked check bans licenses sources",
        ))
    } else {
        let why = "cargo-deny is not installed (cargo install cargo-deny --locked)";
        Ok(Outcome::Skipped(why.to_owned()))
    }
}
