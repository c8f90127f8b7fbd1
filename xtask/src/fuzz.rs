//! Builds the fuzz targets with the pinned stable compiler and lets them run.
//!
//! libFuzzer learns from coverage, which the compiler's SanitizerCoverage pass counts. The pass is
//! part of stable Rust, only its convenient switch is not; the flags below turn it on. They go to
//! the target's code alone: with an explicit `--target`, build scripts and macros are built without.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{Chore, Outcome, is_there, root, run as run_command};

/// The word for every target.
pub(crate) const ALL: &str = "all";

const RUSTFLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cdebug-assertions --cfg fuzzing";

/// A target that takes more than this is no decoder of bounded inputs.
const MEMORY_MIB_MAX: u32 = 1024;

/// Runs one target, or all of them in turn.
pub(crate) fn run(name: &str, time: Duration) -> Chore {
    let targets = targets()?;
    let is_all = name == ALL;
    if !is_all && !targets.contains(name) {
        return Err(format!("no target {name:?}; there are {targets:?}"));
    }
    let compilers = [env::var("CXX").unwrap_or_default(), "c++".to_owned()];
    if !compilers.iter().any(|compiler| is_there(compiler)) {
        let why = "libFuzzer needs a C++ compiler (scripts/install-deps, or set CXX)";
        return Ok(Outcome::Skipped(why.to_owned()));
    }
    let binaries = build()?;
    let fuzzer = |target: &str| Fuzzer::new(binaries.join(target), target);
    if !is_all {
        fuzzer(name)?.with_corpus(time).watch(true)?;
        return Ok(Outcome::Ran);
    }
    check_feedback(fuzzer("preamble")?)?;
    for target in &targets {
        let seen = fuzzer(target)?.with_corpus(time).watch(false)?;
        println!(
            "{target:<12} {} inputs, {} features",
            seen.inputs, seen.features_last
        );
    }
    Ok(Outcome::Ran)
}

/// From nothing, a fuzzer that sees coverage finds the magic number within moments, and one that
/// sees none never does.
fn check_feedback(mut fuzzer: Fuzzer) -> Result<(), String> {
    fuzzer.command.arg("-runs=400000");
    let seen = fuzzer.watch(false)?;
    if seen.features_last <= seen.features_first {
        return Err(format!("coverage is not fed back: {seen:?}"));
    }
    println!(
        "coverage is fed back: {} features at first, {} after {} inputs",
        seen.features_first, seen.features_last, seen.inputs
    );
    Ok(())
}

/// A run of one target.
struct Fuzzer {
    target: String,
    command: Command,
}

/// What a run says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    inputs: u64,
    features_first: u64,
    features_last: u64,
}

impl Fuzzer {
    fn new(binary: PathBuf, target: &str) -> Result<Self, String> {
        let artifacts = folder("artifacts", target)?;
        let mut command = Command::new(binary);
        command
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
            .arg(format!("-max_len={}", len_max(target)))
            .arg("-timeout=10");
        Ok(Self {
            target: target.to_owned(),
            command,
        })
    }

    /// From the committed corpus on; what is new goes to a folder that git ignores.
    fn with_corpus(mut self, time: Duration) -> Self {
        let time = time.as_secs();
        let folders = ["found", "corpus"].map(|kind| folder(kind, &self.target));
        self.command.arg(format!("-max_total_time={time}"));
        self.command.args(folders.into_iter().flatten());
        self
    }

    /// Waits for the end; shows everything, or what led to a failure.
    fn watch(mut self, aloud: bool) -> Result<Seen, String> {
        let target = &self.target;
        let broken = |error| format!("{target} can't be run: {error}");
        let mut child = self
            .command
            .stderr(Stdio::piped())
            .spawn()
            .map_err(broken)?;
        let mut lines = Vec::new();
        let mut seen = Seen::default();
        for line in child
            .stderr
            .take()
            .map(BufReader::new)
            .into_iter()
            .flat_map(BufRead::lines)
        {
            let line = line.map_err(broken)?;
            seen.take(&line);
            if aloud {
                eprintln!("{line}");
            }
            lines.push(line);
        }
        let status = child.wait().map_err(broken)?;
        if status.success() {
            return Ok(seen);
        }
        if !aloud {
            let story = lines
                .iter()
                .skip_while(|line| line.starts_with(['#', 'I', '\t']));
            story.for_each(|line| eprintln!("{line}"));
        }
        Err(format!(
            "{target} found something: fix it, and keep the input that it wrote to \
             protocol/fuzz/artifacts/{target} in protocol/fuzz/corpus/{target}, named for what it is"
        ))
    }
}

impl Seen {
    /// Reads a line such as `#1234 NEW cov: 12 ft: 34 corp: 5/67b`.
    fn take(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let Some(inputs) = words.next().and_then(|word| word.strip_prefix('#')) else {
            return;
        };
        self.inputs = inputs.parse().unwrap_or(self.inputs);
        let features = words.skip_while(|word| *word != "ft:").nth(1);
        if let Some(features) = features.and_then(|word| word.parse().ok()) {
            if self.features_first == 0 {
                self.features_first = features;
            }
            self.features_last = features;
        }
    }
}

/// Machines are driven by bytes for each event, decoders by whole messages.
fn len_max(target: &str) -> usize {
    match target {
        "digest_tree" | "session_ops" => 512,
        _ => 4096,
    }
}

fn targets() -> Result<BTreeSet<String>, String> {
    let sources = root().join("protocol/fuzz/fuzz_targets");
    let entries =
        fs::read_dir(&sources).map_err(|error| format!("{}: {error}", sources.display()))?;
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_suffix(".rs").map(str::to_owned)
    });
    Ok(names.collect())
}

fn folder(kind: &str, target: &str) -> Result<PathBuf, String> {
    let folder = root().join("protocol/fuzz").join(kind).join(target);
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

/// Gives the folder of the built targets.
fn build() -> Result<PathBuf, String> {
    let host = host()?;
    let mut cargo = Command::new("cargo");
    cargo
        .args(["build", "--bins", "--locked", "--target", &host])
        .args(["--manifest-path", "protocol/fuzz/Cargo.toml"])
        .args(["--target-dir", "protocol/fuzz/target"])
        .env("RUSTFLAGS", RUSTFLAGS);
    run_command(cargo)?;
    Ok(root().join("protocol/fuzz/target").join(host).join("debug"))
}

/// The compiler's own platform.
fn host() -> Result<String, String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.map_err(|error| format!("rustc: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| "rustc -vV names no host".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_what_libfuzzer_says() {
        let mut seen = Seen::default();
        for line in [
            "INFO: Seed: 12",
            "#2\tINITED cov: 20 ft: 21 corp: 1/1b exec/s: 0 rss: 27Mb",
            "#427\tNEW    cov: 25 ft: 26 corp: 2/5b lim: 6 exec/s: 0",
            "#900\tDONE   corp: 1/1b lim: 4096 exec/s: 1307560 rss: 27Mb",
        ] {
            seen.take(line);
        }
        let expected = Seen {
            inputs: 900,
            features_first: 21,
            features_last: 26,
        };
        assert_eq!(seen, expected);
    }
}
