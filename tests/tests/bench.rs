//! `volferry bench`: what it measures, what it leaves, and what it refuses. No timings.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use volferry_tests::agents::Agents;
use volferry_tests::device::{Loop, Mount};
use volferry_tests::programs::{self, Ended, Running, volferry};
use volferry_tests::volume;
use volferry_tests::{MIB, temporary_directory};
use volferry_transport::Role;

/// A benchmark of almost nothing, of `source` to `target`.
fn arguments(
    source: &Path,
    target: &Path,
    (profiles, size): (&str, &str),
    more: &[&str],
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["bench".into(), source.into(), target.into()];
    let small = [
        "--size",
        size,
        "--files",
        "30",
        "--repeats",
        "2",
        "--profile",
        profiles,
        "--budget",
        "10m",
        "--memory-mib",
        "16",
    ];
    arguments.extend(small.iter().chain(more).map(OsString::from));
    arguments
}

fn bench(source: &Path, target: &Path, more: &[&str]) -> Ended {
    volferry(arguments(source, target, ("random,vm", "8MiB"), more))
}

/// The names in a directory, in order.
fn names(directory: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| value > 0.0)
}

#[test]
fn all_is_measured_compared_and_removed() {
    let directory = temporary_directory();
    let path = |name: &str| directory.path().join(name);
    let (source, target) = (path("source"), path("target"));
    let _content = volume::create(&source, 3 * MIB, 1);
    let before = fs::read(&source).unwrap();
    let (json, page) = (path("report.json"), path("report.html"));
    let more = [
        "--report",
        json.to_str().unwrap(),
        "--html",
        page.to_str().unwrap(),
    ];
    let ended = bench(&source, &target, &more).succeeded();
    for words in ["BLAKE3", "bound by", "random", "files"] {
        assert!(ended.stdout.contains(words), "{words} in\n{}", ended.stdout);
    }
    assert!(
        ended.stderr.contains(".volferry-bench-"),
        "the scratch place is named"
    );
    assert_eq!(fs::read(&source).unwrap(), before);
    assert_eq!(
        names(directory.path()),
        ["report.html", "report.json", "source"]
    );

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(
        (&report["schema"], &report["schema_version"]),
        (&"volferry-bench".into(), &1.into())
    );
    let ceilings = report["ceilings"].as_array().unwrap();
    let kinds: Vec<_> = ceilings
        .iter()
        .map(|one| one["kind"].as_str().unwrap())
        .collect();
    let all = [
        "source_read",
        "scratch_read",
        "zero_scan",
        "data_scan",
        "hash",
        "fresh_memory",
        "tls_seal",
        "tls_open",
        "tls_1",
        "tls_n",
        "quic_1",
        "quic_n",
        "target_write",
        "read_write",
        "read_write",
        "read_write",
        "network_paced",
        "tree_read",
        "tree_write",
        "tree_read_write",
        "session",
    ];
    assert_eq!(kinds, all);
    let volumes: Vec<_> = ceilings
        .iter()
        .filter_map(|one| one["volume"].as_str())
        .collect();
    assert_eq!(
        volumes,
        ["random", "vm", "source"],
        "each is read and written by itself"
    );
    for ceiling in ceilings {
        let repeats = ceiling["repeats"].as_array().unwrap();
        assert_eq!(repeats.len(), 2, "{ceiling}");
        for repeat in repeats {
            assert!(positive(&repeat["seconds"]), "{ceiling}");
            // So small a volume of a machine holds nothing.
            let is_empty = ceiling["kind"] == "session" || ceiling["volume"] == "vm";
            assert!(positive(&repeat["bytes"]) != is_empty, "{ceiling}");
        }
    }
    let clones = report["clones"].as_array().unwrap();
    let cloned: Vec<_> = clones
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert_eq!(cloned, ["random", "vm", "files", "source"]);
    for clone in clones {
        assert!(positive(&clone["prediction"]["seconds"]), "{clone}");
        assert!(positive(&clone["repeats"][0]["cpu_seconds"]), "{clone}");
        assert_eq!(clone["repeats"][0]["digest"], clone["repeats"][1]["digest"]);
    }
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("</html>") && !html.contains("<script"));

    let both = path("both.html");
    let arguments: [&OsStr; 6] = [
        "bench".as_ref(),
        "compare".as_ref(),
        json.as_ref(),
        json.as_ref(),
        "--html".as_ref(),
        both.as_ref(),
    ];
    let compared = volferry(arguments).succeeded();
    assert!(
        compared.stdout.contains("clone of vm"),
        "{}",
        compared.stdout
    );
    assert!(fs::read_to_string(&both).unwrap().contains("comparison"));
    let refused: [&OsStr; 4] = [
        "bench".as_ref(),
        "compare".as_ref(),
        json.as_ref(),
        source.as_ref(),
    ];
    let _refused = volferry(refused).failed(2, &["can't be read"]);
}

#[test]
fn what_others_made_is_not_written_over() {
    let directory = temporary_directory();
    let path = |name: &str| directory.path().join(name);
    let (source, target) = (path("source"), path("target"));
    let _content = volume::create(&source, MIB, 1);
    fs::create_dir(&target).unwrap();
    fs::write(target.join("theirs"), "x").unwrap();
    fs::write(path("file"), "x").unwrap();
    let _full = bench(&source, &target, &[]).failed(4, &["holds something", "--overwrite"]);
    let _file = bench(&source, &path("file"), &["--overwrite"]).failed(4, &["exists"]);
    let _same = bench(&source, &source, &["--overwrite"]).failed(2, &["same"]);
    let _within = bench(&target, &target.join("new"), &[]).failed(2, &["within"]);
    let _none = bench(&path("nothing"), &path("new"), &[]).failed(3, &["nothing"]);
    assert_eq!(names(&target), ["theirs"]);
    assert_eq!(names(directory.path()), ["file", "source", "target"]);
    // With leave it makes a directory of its own in it, and removes that.
    let _done = bench(&source, &target, &["--overwrite"]).succeeded();
    assert_eq!(names(&target), ["theirs"]);
}

/// The report of one volume of 4 MiB.
fn report_of(source: &Path, target: &Path, more: &[&str]) -> Value {
    let more = [&["--json"], more].concat();
    let ended = volferry(arguments(source, target, ("random", "4MiB"), &more)).succeeded();
    serde_json::from_str(&ended.stdout).unwrap()
}

/// What the report holds under `list` that has this value for the key.
fn found<'a>(report: &'a Value, list: &str, key: &str, value: &str) -> &'a Value {
    let mut all = report[list].as_array().unwrap().iter();
    all.find(|one| one[key] == value).unwrap()
}

fn repeats(of: &Value) -> usize {
    of["repeats"].as_array().unwrap().len()
}

#[test]
fn a_tree_that_fills_the_disk_costs_nothing_else() {
    let Some(disk) = Mount::tmpfs(16 * MIB) else {
        return;
    };
    let directory = temporary_directory();
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    // Little to read, and a page of memory for each.
    for number in 0..4000 {
        fs::write(source.join(number.to_string()), "x").unwrap();
    }
    let report = report_of(&source, &disk.path().join("new"), &[]);
    let own = found(&report, "clones", "name", "source");
    let reason = own["skipped"].as_str().unwrap();
    assert!(reason.contains("can't be cloned"), "{reason}");
    // In the second round, too.
    for name in ["random", "files"] {
        assert_eq!(repeats(found(&report, "clones", "name", name)), 2, "{name}");
    }
    assert_eq!(names(disk.path()).len(), 0);
}

#[test]
fn a_volume_that_the_device_does_not_hold_is_measured_as_far_as_it_has_data() {
    let Some(device) = Loop::dirty(32 * MIB, 512) else {
        return;
    };
    let directory = temporary_directory();
    let source = directory.path().join("source");
    volume::create_dense(&source, 2 * MIB, 1);
    let file = fs::File::options().write(true).open(&source).unwrap();
    file.set_len(64 * MIB).unwrap();
    let scratch = directory.path().to_str().unwrap();
    let more = ["--overwrite", "--scratch", scratch];
    let report = report_of(&source, &device.device, &more);
    let own = found(&report, "clones", "name", "source");
    let reason = own["skipped"].as_str().unwrap();
    assert!(reason.contains("can't be cloned"), "{reason}");
    assert!(positive(&own["prediction"]["seconds"]), "{own}");
    let both = found(&report, "ceilings", "volume", "source");
    assert_eq!(repeats(both), 2, "{both}");
    assert_eq!(both["repeats"][0]["data_bytes"], 2 * MIB, "{both}");
    assert_eq!(names(directory.path()), ["source"]);
}

#[test]
fn an_end_from_outside_leaves_nothing() {
    let directory = temporary_directory();
    let path = |name: &str| directory.path().join(name);
    let (source, target) = (path("source"), path("target"));
    fs::create_dir(&source).unwrap();
    for (signal, moment) in [(Signal::INT, "BLAKE3"), (Signal::TERM, "cloning random")] {
        let arguments = arguments(&source, &target, ("random,vm", "256MiB"), &[]);
        let mut running = Running::start(programs::command(programs::CLI).args(arguments));
        running.wait_for(moment);
        running.signal(signal);
        let _ended = running.end().failed(8, &["cancelled"]);
        assert_eq!(names(directory.path()), ["source"]);
    }
}

/// The samples of a trace, behind its header.
fn samples(trace: &Path) -> Vec<Value> {
    let text = fs::read_to_string(trace).unwrap();
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert_eq!(lines.next().unwrap()["trace_version"], 1);
    lines.collect()
}

#[test]
fn a_trace_tells_how_a_clone_went_and_is_drawn() {
    let directory = temporary_directory();
    let path = |name: &str| directory.path().join(name);
    let _content = volume::create(&path("source"), 5 * MIB, 1);
    let arguments: Vec<OsString> = vec![
        "copy".into(),
        path("source").into(),
        path("target").into(),
        "--json".into(),
        "--trace".into(),
        path("trace").into(),
    ];
    let receipt: Value = serde_json::from_str(&volferry(arguments).succeeded().stdout).unwrap();
    let samples = samples(&path("trace"));
    let last = samples.last().unwrap();
    for end in ["source", "target"] {
        assert_eq!(last[end]["data_bytes"], receipt["data_bytes"], "{last}");
        assert_eq!(last[end]["queued"], 0, "{last}");
    }
    assert_eq!(last["target"]["durable_bytes"], receipt["logical_bytes"]);
    let draw = |trace: &str| -> Vec<OsString> {
        vec![
            "bench".into(),
            "trace".into(),
            path(trace).into(),
            "--html".into(),
            path("page").into(),
        ]
    };
    let _drawn = volferry(draw("trace")).succeeded();
    assert!(
        fs::read_to_string(path("page"))
            .unwrap()
            .contains("written")
    );
    let _refused = volferry(draw("source")).failed(2, &["can't be read"]);
}

#[test]
fn each_agent_traces_its_own_end() {
    let agents = Agents::default();
    let _content = volume::create(&agents.path("source"), 5 * MIB, 1);
    let (of_source, of_target) = (agents.path("source.trace"), agents.path("target.trace"));
    let target = agents.start_target(
        &agents.path("target"),
        &["--trace", of_target.to_str().unwrap()],
    );
    let source = agents.start_source(
        target.address(),
        &agents.path("source"),
        &["--trace", of_source.to_str().unwrap()],
    );
    let _ends = (source.end().succeeded(), target.end().succeeded());
    let receipt = agents.receipt(Role::Source);
    for (trace, own, other) in [
        (of_source, "source", "target"),
        (of_target, "target", "source"),
    ] {
        let samples = samples(&trace);
        let last = samples.last().unwrap();
        assert_eq!(last[own]["data_bytes"], receipt["data_bytes"], "{last}");
        assert!(last[other].is_null(), "{last}");
    }
}
