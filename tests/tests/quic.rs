//! Clones over QUIC. What is the same over both transports is told elsewhere, by tests that can be run over
//! either; see `VOLFERRY_TESTS_TRANSPORT`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::net::SocketAddr;

use rustix::process::Signal;
use serde_json::Value;
use volferry_tests::agents::{Agent, Agents};
use volferry_tests::http::{progress, put_bandwidth_limit};
use volferry_tests::identity::Identity;
use volferry_tests::programs;
use volferry_tests::relay::Relay;
use volferry_tests::trial::{number, wait_until_at_least};
use volferry_tests::{MIB, tree, volume};
use volferry_transport::Role;

/// Bytes of a volume: with [`SLOW`] more than passes before it is let go.
const SIZE: u64 = 24 * MIB;

/// A source that is slow enough to be met in the middle, and can be told to be fast.
const SLOW: [&str; 7] = [
    "--transport",
    "quic",
    "--bandwidth-limit",
    "3MiB",
    "--admin-control",
    "--memory-mib",
    "16",
];

fn start_source(agents: &Agents, address: SocketAddr) -> Agent {
    agents.start_source(address, &agents.path("source"), &SLOW)
}

/// Starts a target with a journal at `address`, or anywhere.
fn start_target(agents: &Agents, address: Option<SocketAddr>) -> Agent {
    let identity = agents.identity.good(Role::Target);
    let command = programs::command(programs::TARGET);
    let address = address.map_or_else(|| "127.0.0.1:0".to_owned(), |at| at.to_string());
    let mut target = agents.launch(Role::Target, &identity, command, |command| {
        command.args(["--listen", &address, "--transport", "quic"]);
        command.arg("--volume").arg(agents.path("target"));
        command.arg("--state-dir").arg(agents.path("state"));
    });
    target.wait_until_it_listens();
    target
}

/// A clone in the middle: some of it is durable, and most of it is not.
fn begun() -> (Agents, Agent, Agent) {
    let agents = Agents::default();
    volume::create_dense(&agents.path("source"), SIZE, 7);
    let mut target = start_target(&agents, None);
    let source = start_source(&agents, target.address());
    wait_until_at_least(target.admin(), "durable_bytes", 4 * MIB);
    (agents, source, target)
}

/// Lets the source be fast, and expects that both end well. Gives the receipt.
#[track_caller]
fn ends_well(agents: &Agents, mut source: Agent, target: Agent) -> Value {
    let (status, text) = put_bandwidth_limit(source.admin(), "0");
    assert_eq!(status, 200, "{text}");
    let _proven = source.end().succeeded();
    let _proven = target.end().succeeded();
    volume::assert_same(&agents.path("source"), &agents.path("target"), SIZE);
    let receipt = agents.receipt(Role::Source);
    assert_eq!(receipt, agents.receipt(Role::Target));
    assert_eq!(receipt["source"]["transport"], "quic", "{receipt}");
    receipt
}

fn kill(agent: Agent) {
    agent.signal(Signal::KILL);
    assert_eq!(agent.end().status.code(), None);
}

#[test]
fn a_killed_source_is_started_again() {
    let (agents, source, target) = begun();
    kill(source);
    // No kernel tells the target; it notices the silence, and then lets the next one in.
    let source = start_source(&agents, target.address());
    let receipt = ends_well(&agents, source, target);
    assert!(number(&receipt, "resumed_bytes") >= 4 * MIB, "{receipt}");
    assert_eq!(number(&receipt, "sessions"), 2, "{receipt}");
}

#[test]
fn a_killed_target_goes_on_from_its_journal() {
    let (agents, source, target) = begun();
    let address = target.address();
    kill(target);
    let target = start_target(&agents, Some(address));
    let receipt = ends_well(&agents, source, target);
    assert!(number(&receipt, "resumed_bytes") >= 4 * MIB, "{receipt}");
}

/// The session itself goes on: nothing is sent twice.
#[test]
fn a_clone_outlives_a_change_of_its_address() {
    let agents = Agents::default();
    volume::create_dense(&agents.path("source"), SIZE, 7);
    let mut target = start_target(&agents, None);
    let relay = Relay::before(target.address());
    let source = start_source(&agents, relay.address());
    let admin = target.admin();
    for mib in 1..=4 {
        relay.change_address();
        wait_until_at_least(admin, "durable_bytes", mib * MIB);
    }
    assert_eq!(progress(admin)["sessions"], 1);
    let receipt = ends_well(&agents, source, target);
    assert_eq!(number(&receipt, "sessions"), 1, "{receipt}");
    assert_eq!(number(&receipt, "resent_bytes"), 0, "{receipt}");
}

#[test]
fn a_tree_is_cloned() {
    let agents = Agents::default();
    let (source, target) = (agents.path("source"), agents.path("target"));
    fs::create_dir_all(source.join("a/b")).unwrap();
    fs::create_dir(&target).unwrap();
    volume::create_dense(&source.join("large"), 9 * MIB, 3);
    for number in 0..100 {
        fs::write(source.join(format!("a/{number}")), vec![1; number]).unwrap();
    }
    let target_agent = agents.start_target(&target, &[]);
    let quic = ["--transport", "quic"];
    let source_agent = agents.start_source(target_agent.address(), &source, &quic);
    let _proven = source_agent.end().succeeded();
    let _proven = target_agent.end().succeeded();
    tree::assert_same(&source, &target);
}

#[test]
fn auto_takes_quic_where_tcp_can_not_connect_and_tls_where_it_can() {
    for (offered, taken, why) in [
        ("quic", "quic", "the other could not connect"),
        ("auto", "tls", "the path is short"),
    ] {
        let agents = Agents::default();
        let source_volume = agents.path("source");
        volume::create_dense(&source_volume, MIB, 7);
        let target = agents.start_target(&agents.path("target"), &["--transport", offered]);
        let auto = ["--transport", "auto"];
        let source = agents.start_source(target.address(), &source_volume, &auto);
        let _proven = source.end().succeeded();
        let _proven = target.end().succeeded();
        let receipt = agents.receipt(Role::Target);
        assert_eq!(receipt["source"]["transport"], taken, "{receipt}");
        let said = receipt["source"]["transport_why"].as_str().unwrap();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_source_of_a_stranger_is_turned_away() {
    let agents = Agents::default();
    let source_volume = agents.path("source");
    volume::create_dense(&source_volume, MIB, 7);
    let mut target = start_target(&agents, None);
    let stranger = Identity::default();
    let credentials = stranger.good(Role::Source);
    let quic = ["--transport", "quic"];
    let source = agents.start_source_as(&credentials, target.address(), &source_volume, &quic);
    source
        .end()
        .failed(6, &["not signed by this clone's authority"]);
    target.wait_for("unknown_ca");
    assert!(!agents.path("target").exists());
}
