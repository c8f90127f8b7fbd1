//! The chores of the project: `cargo xtask ci` runs every check that a reviewer will run.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a chore talks to whoever runs it"
)]

mod ci;
mod fuzz;
mod helm;
mod sbom;
mod tidy;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

const USAGE: &str = "\
usage: cargo xtask CHORE

  ci [--without-tests]         every check; prints which ran, failed or were skipped and why
  test                         every test: scripts/test
  tidy                         what no compiler checks: arrows, documents, names
  fuzz TARGET [--seconds N]    one fuzz target, for a minute unless told otherwise
  fuzz all [--seconds N]       each fuzz target in turn, after a check that coverage is fed back
  crd                          writes the definitions in deploy/crd from controller/src/api.rs
  helm                         writes deploy/chart from deploy/base, crd and monitoring
  sbom [--target TRIPLE]       prints what is linked into the programs, as CycloneDX JSON
  soak --rounds N [--seed S]   clones through random faults; the seed of each round is printed
";

/// How a chore went when it didn't fail.
enum Outcome {
    Ran,
    /// It can't run here, and why.
    Skipped(String),
}

/// A chore's outcome, or what went wrong, in words.
type Chore = Result<Outcome, String>;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let chore = match words[..] {
        ["ci"] => ci::all(true),
        ["ci", "--without-tests"] => ci::all(false),
        ["test"] => run(Command::new("scripts/test")),
        ["tidy"] => tidy::run(),
        ["fuzz", target] => fuzz::run(target, Duration::from_secs(60)),
        ["fuzz", target, "--seconds", seconds] => match seconds.parse() {
            Ok(seconds) => fuzz::run(target, Duration::from_secs(seconds)),
            Err(_) => Err(format!("{seconds:?} is no number of seconds")),
        },
        ["crd"] => crd(),
        ["helm"] => helm::run(),
        ["sbom"] => sbom::run(None),
        ["sbom", "--target", target] => sbom::run(Some(target)),
        ["soak", "--rounds", rounds] => soak(rounds, None),
        ["soak", "--rounds", rounds, "--seed", seed] => soak(rounds, Some(seed)),
        _ => Err(USAGE.to_owned()),
    };
    match chore {
        Ok(Outcome::Ran) => ExitCode::SUCCESS,
        Ok(Outcome::Skipped(why)) => {
            println!("skipped: {why}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Has the test that compares deploy/crd with the types write it instead: the types are known there.
fn crd() -> Chore {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "test",
        "--locked",
        "-p",
        "volferry-controller",
        "--test",
        "crd",
    ]);
    cargo.env("VOLFERRY_UPDATE_CRD", "1");
    run(cargo)
}

/// Runs the soak test of tests/tests/soak.rs for so many rounds: random volumes, options and faults,
/// killed and paused agents, each clone started again until it is done and compared byte by byte. A
/// round takes some seconds, nearly all of which it waits, so that several soaks can run beside each
/// other.
fn soak(rounds: &str, seed: Option<&str>) -> Chore {
    for number in [Some(rounds), seed].into_iter().flatten() {
        if number.parse::<u64>().is_err() {
            return Err(format!("{number:?} is no number"));
        }
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--release", "--locked", "-p", "volferry-tests"]);
    cargo.args(["--test", "soak", "--", "--nocapture"]);
    cargo.env("VOLFERRY_SOAK_ROUNDS", rounds);
    match seed {
        Some(seed) => cargo.env("VOLFERRY_SOAK_SEED", seed),
        None => cargo.env_remove("VOLFERRY_SOAK_SEED"),
    };
    run(cargo)
}

/// The root of the repository.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Runs `command` in the root of the repository.
fn run(mut command: Command) -> Chore {
    match command.current_dir(root()).status() {
        Ok(status) if status.success() => Ok(Outcome::Ran),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!("{command:?} can't be started: {error}")),
    }
}

/// Whether `program` can be started.
fn is_there(program: &str) -> bool {
    let version = Command::new(program).arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}
