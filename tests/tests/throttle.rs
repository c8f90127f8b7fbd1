//! The bandwidth limit, changed while a clone runs, and who goes first.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use volferry_tests::agents::{Agent, Agents};
use volferry_tests::http::{
    bandwidth_limit_request, eventually, get, metric, progress, put_bandwidth_limit,
};
use volferry_tests::peer::Peer;
use volferry_tests::programs::volferry;
use volferry_tests::{MIB, temporary_directory, volume};
use volferry_transport::Role;

const SIZE: u64 = 8 * MIB;

/// What the source may send each second at first: at this rate a clone takes two minutes.
const SLOW: u64 = 64 << 10;

/// A clone of a volume without zeros, whose source may send [`SLOW`] bytes a second.
fn start(agents: &Agents, source_arguments: &[&str]) -> (Agent, Agent) {
    let (source_volume, target_volume) = (agents.path("source"), agents.path("target"));
    volume::create_dense(&source_volume, SIZE, 7);
    let target = agents.start_target(&target_volume, &[]);
    let limited = [&["--bandwidth-limit", "64KiB"], source_arguments].concat();
    let source = agents.start_source(target.address(), &source_volume, &limited);
    (source, target)
}

#[test]
fn a_clone_is_no_faster_than_its_limit_and_says_so() {
    let directory = temporary_directory();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (source, target) = (path("source"), path("target"));
    volume::create_dense(source.as_ref(), SIZE, 7);
    let begun = Instant::now();
    let limit = ["--bandwidth-limit", "2MiB", "--json"];
    let copied = volferry([&["copy", &source, &target][..], &limit[..]].concat()).succeeded();
    assert!(begun.elapsed() > Duration::from_millis(3900));
    let receipt = copied.json();
    assert_eq!(receipt["limit"]["limit"], "throttle", "{receipt}");
    let share = receipt["limit"]["share"].as_f64().unwrap();
    assert!(share > 0.5 && share <= 1.0, "{receipt}");
    let waits = &receipt["source"]["waits"];
    assert!(
        waits["throttle_wait_seconds"].as_f64().unwrap() > 1.0,
        "{receipt}"
    );
    assert!(
        waits["volume_cpu_seconds"].as_f64().unwrap() > 0.0,
        "{receipt}"
    );
    volume::assert_same(source.as_ref(), target.as_ref(), SIZE);
}

#[test]
fn the_limit_is_changed_while_the_clone_runs() {
    let agents = Agents::default();
    let begun = Instant::now();
    let (mut source, target) = start(&agents, &["--admin-control"]);
    let admin = source.admin();
    assert_eq!(get(admin, "/bandwidth-limit"), (200, "65536\n".to_owned()));
    assert_eq!(progress(admin)["bandwidth_limit"], SLOW);
    let limit = metric(admin, "volferry_bandwidth_limit_bytes_per_second");
    assert!((limit - SLOW as f64).abs() < 1.0);
    let (status, _) = put_bandwidth_limit(admin, "as fast as you can");
    assert_eq!(status, 400);
    assert_eq!(
        put_bandwidth_limit(admin, "1GiB\n"),
        (200, "1073741824\n".to_owned())
    );
    let _proven = source.end().succeeded();
    let _proven = target.end().succeeded();
    // By far not all of it went at the rate of the beginning.
    assert!(begun.elapsed() < Duration::from_secs(SIZE / SLOW));
    volume::assert_same(&agents.path("source"), &agents.path("target"), SIZE);
}

/// The controller does so when a VolumeClone is changed. Neither agent was told to allow control: the observer
/// has shown who it is.
#[test]
fn an_observer_has_the_source_keep_another_limit() {
    for is_tree in [false, true] {
        let agents = Agents::default();
        let begun = Instant::now();
        let [source, target] = ["source", "target"].map(|name| agents.path(name));
        let file = |root: &Path| {
            if is_tree {
                root.join("file")
            } else {
                root.to_owned()
            }
        };
        if is_tree {
            [&source, &target]
                .into_iter()
                .for_each(|path| fs::create_dir(path).unwrap());
        }
        volume::create_dense(&file(&source), SIZE, 7);
        let mut target_agent = agents.start_target(&target, &[]);
        let address = target_agent.address();
        let limited = ["--bandwidth-limit", "64KiB"];
        let mut source_agent = agents.start_source(address, &source, &limited);
        let (at_target, at_source) = (target_agent.admin(), source_agent.admin());
        assert_eq!(progress(at_target)["asked_bandwidth_limit"], Value::Null);
        let shown = agents.identity.good(Role::Observer);
        let put = |limit: &str| {
            Peer::default()
                .observe(address, shown.clone())
                .tell(bandwidth_limit_request(limit).as_bytes())
        };
        assert!(put("a lot").starts_with("HTTP/1.1 400"));
        assert!(put("128KiB").ends_with("\r\n131072\n"));
        assert_eq!(progress(at_target)["asked_bandwidth_limit"], 128 << 10);
        eventually("the source heeds it", || {
            progress(at_source)["bandwidth_limit"] == 128 << 10
        });
        let _accepted = put("0");
        source_agent.wait_for("an observer changed the bandwidth limit bytes_per_second=0");
        let _proven = source_agent.end().succeeded();
        let _proven = target_agent.end().succeeded();
        assert!(begun.elapsed() < Duration::from_secs(SIZE / SLOW));
        volume::assert_same(&file(&source), &file(&target), SIZE);
    }
}

#[test]
fn nobody_changes_the_limit_of_an_agent_that_was_not_told_to_allow_it() {
    let agents = Agents::default();
    let (mut source, target) = start(&agents, &[]);
    let admin = source.admin();
    let (status, text) = put_bandwidth_limit(admin, "0");
    assert_eq!(status, 403, "{text}");
    assert!(text.contains("--admin-control"), "{text}");
    assert_eq!(progress(admin)["bandwidth_limit"], SLOW);
    drop((source, target));
}

#[test]
fn an_agent_is_as_modest_as_it_is_told_to_be() {
    let agents = Agents::default();
    let modest = ["--nice", "7", "--io-priority", "idle"];
    let (mut source, target) = start(&agents, &modest);
    source.wait_for("connected to the target");
    for thread in fs::read_dir(format!("/proc/{}/task", source.pid())).unwrap() {
        // One that has ended meanwhile has no niceness.
        let Ok(stat) = fs::read_to_string(thread.unwrap().path().join("stat")) else {
            continue;
        };
        // Behind the name in parentheses; the niceness is field 19 (proc_pid_stat(5)).
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        assert_eq!(fields.split(' ').nth(16), Some("7"), "{stat}");
    }
    drop((source, target));
}
