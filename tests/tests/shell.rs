//! What a shell may do around the command line: pipes that nobody reads, full disks, limits, and names of files
//! that must not be written over.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;
use volferry_tests::programs::{self, volferry};
use volferry_tests::{MIB, temporary_directory, volume};

/// Runs a line of shell in the directory, in which `$volferry` is the command line, and the agents are
/// `$source_agent` and `$target_agent`.
fn shell(directory: &TempDir, line: &str) -> Output {
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", line]);
    command.env("volferry", programs::path(programs::CLI));
    command.env("source_agent", programs::path(programs::SOURCE));
    command.env("target_agent", programs::path(programs::TARGET));
    command.current_dir(directory.path()).output().unwrap()
}

/// Its exit code, which has to be `code`, and what it said on standard error.
fn ends(directory: &TempDir, line: &str, code: i32) -> String {
    let output = shell(directory, line);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}\n{said}");
    assert!(!said.contains("panicked"), "{line}\n{said}");
    said
}

fn with_volume() -> TempDir {
    let directory = temporary_directory();
    volume::create(&directory.path().join("a"), MIB, 1);
    directory
}

#[test]
fn what_nobody_reads_ends_no_clone_and_costs_no_receipt() {
    let directory = with_volume();
    let is_receipt = |name: &str| {
        let text = fs::read_to_string(directory.path().join(name)).unwrap();
        assert!(text.contains("\"digest\""), "{name}: {text}");
    };
    ends(&directory, "$volferry copy a b --receipt r1 | true", 0);
    is_receipt("r1");
    let full = "$volferry copy a c --receipt r2 > /dev/full";
    let said = ends(&directory, full, 2);
    assert!(said.contains("standard output can't be written"), "{said}");
    is_receipt("r2");
    // Progress is told every five seconds.
    let slow = "$volferry copy a d --receipt r3 --bandwidth-limit 150KiB 2> >(true)";
    ends(&directory, slow, 0);
    is_receipt("r3");
    let logged = "$volferry copy a e --receipt r4 --log debug 2> /dev/full";
    ends(&directory, logged, 0);
    is_receipt("r4");
    ends(&directory, "$volferry digest a | true", 0);
    ends(&directory, "$volferry digest a > /dev/full", 2);
    ends(&directory, "$volferry digest none 2> /dev/full", 3);
}

#[test]
fn nothing_is_written_over_the_volumes() {
    let directory = with_volume();
    let path = |name: &str| directory.path().join(name);
    let before = fs::read(path("a")).unwrap();
    fs::create_dir(path("tree")).unwrap();
    fs::write(path("tree/file"), "x").unwrap();
    fs::create_dir(path("empty")).unwrap();
    for line in [
        "$volferry digest a --manifest a",
        "$volferry copy a b --receipt a",
        "$volferry copy a b --manifest ./a",
        "ln -s a link; $volferry copy a b --trace link",
        "$volferry digest tree --manifest tree/files.b3",
        "$volferry copy tree empty --manifest empty/files.b3",
        "cd tree; $volferry copy . ../empty --receipt receipt.json",
        "$volferry bench a new --report a",
        "$volferry copy a b --manifest none/manifest",
        "$volferry copy a b --overwrite --receipt b",
        "$volferry copy a b --overwrite --manifest ./b",
        "ln -s b c; $volferry copy a b --overwrite --trace c",
        "$volferry copy a b --receipt same --manifest same",
    ] {
        ends(&directory, line, 2);
    }
    for line in [
        "$source_agent --identity . --target localhost:9 --volume a --manifest a",
        "$source_agent --identity . --target localhost:9 --volume a --receipt a",
        "$target_agent --identity . --listen 127.0.0.1:0 --volume b --receipt b",
    ] {
        let said = ends(&directory, line, 2);
        assert!(said.contains("would be changed by"), "{said}");
    }
    assert_eq!(fs::read(path("a")).unwrap(), before);
    let names = |name| fs::read_dir(path(name)).unwrap().count();
    assert_eq!((names("tree"), names("empty")), (1, 0));
    for name in ["b", "same", "new"] {
        assert!(!path(name).exists(), "{name} is made for what is refused");
    }
}

#[test]
fn an_image_in_a_directory_is_never_its_own_target() {
    let directory = temporary_directory();
    let path = |name: &str| directory.path().join(name);
    fs::create_dir(path("d")).unwrap();
    volume::create(&path("d/disk.img"), MIB, 1);
    let before = fs::read(path("d/disk.img")).unwrap();
    for flag in ["--overwrite", "--delta"] {
        let said = ends(
            &directory,
            &format!("$volferry copy d/disk.img d {flag}"),
            2,
        );
        assert!(said.contains("the same volume"), "{said}");
    }
    assert_eq!(fs::read(path("d/disk.img")).unwrap(), before);
}

#[test]
fn a_volume_that_was_cloned_into_a_directory_is_verified_there() {
    let directory = with_volume();
    fs::create_dir(directory.path().join("d")).unwrap();
    ends(&directory, "$volferry copy a d --receipt r", 0);
    ends(&directory, "$volferry verify d --receipt r", 0);
    volume::flip(&directory.path().join("d/disk.img"), 0);
    ends(&directory, "$volferry verify d --receipt r", 7);
}

#[test]
fn limits_and_places_that_fail_are_told() {
    let directory = with_volume();
    let said = ends(&directory, "ulimit -f 40; $volferry copy a b", 4);
    assert!(said.contains("File too large"), "{said}");
    let said = ends(&directory, "TMPDIR=/nonexistent $volferry copy a c", 2);
    assert!(said.contains("TMPDIR"), "{said}");
}

#[test]
fn a_source_that_can_not_be_cloned_spoils_no_bench() {
    let directory = temporary_directory();
    let path = |name: &str| directory.path().join(name);
    // What is written all the time can't be cloned.
    volume::create(&path("live"), 16 * MIB, 1);
    let line = "(while sleep 0.001; do printf x 1<> live; done) & writer=$!; \
                $volferry bench live new --size 4MiB --files 10 --repeats 1 --profile random --report r.json; \
                code=$?; kill $writer; exit $code";
    ends(&directory, line, 0);
    let report: serde_json::Value = read(&path("r.json"));
    let clones = report["clones"].as_array().unwrap();
    let own = clones.iter().find(|one| one["name"] == "source").unwrap();
    let reason = own["skipped"].as_str().unwrap();
    assert!(reason.contains("can't be cloned"), "{reason}");
    let random = clones.iter().find(|one| one["name"] == "random").unwrap();
    assert_eq!(random["repeats"].as_array().unwrap().len(), 1);

    let asked = [
        "bench",
        "live",
        "new",
        "--size",
        "64MiB",
        "--budget-bytes",
        "64MiB",
    ];
    let refused = volferry(asked.map(|word| match word {
        "live" | "new" => path(word).into_os_string(),
        word => word.into(),
    }));
    refused.failed(2, &["--budget-bytes", "--size"]);
}

fn read(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}
