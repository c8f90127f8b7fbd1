//! Agents on one node that talk over a Unix socket.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;

use rustix::process::Signal;
use volferry_tests::agents::Agents;
use volferry_tests::{MIB, programs, tree, volume};
use volferry_transport::Role;

#[test]
fn a_volume_and_a_tree_are_cloned_over_a_unix_socket() {
    for of_tree in [false, true] {
        let agents = Agents::default();
        let [source, target, socket] = ["source", "target", "socket"].map(|name| agents.path(name));
        if of_tree {
            fs::create_dir_all(source.join("a/b")).unwrap();
            fs::create_dir(&target).unwrap();
            volume::create_dense(&source.join("a/large"), 5 * MIB, 3);
            fs::write(source.join("a/b/small"), "small").unwrap();
        } else {
            volume::create(&source, 9 * MIB + 512, 3);
        }
        let target_agent = agents.start_target_at(&socket, &target, &[]);
        // What auto would have to choose from, a Unix socket is not.
        let auto = ["--transport", "auto"];
        let source_agent = agents.start_source_at(&socket, &source, &auto);
        let _proven = source_agent.end().succeeded();
        let _proven = target_agent.end().succeeded();
        if of_tree {
            tree::assert_same(&source, &target);
        } else {
            volume::assert_same(&source, &target, 9 * MIB + 512);
        }
        let receipt = agents.receipt(Role::Target);
        assert_eq!(receipt["source"]["transport"], "unix", "{receipt}");
        assert!(!socket.exists(), "it goes with the target");
    }
}

#[test]
fn a_clone_goes_on_at_the_socket_of_a_target_that_was_killed() {
    let agents = Agents::default();
    let [source, target, socket, state] =
        ["source", "target", "socket", "state"].map(|name| agents.path(name));
    volume::create_dense(&source, 12 * MIB, 5);
    let state_dir = ["--state-dir", state.to_str().unwrap()];
    let first = agents.start_target_at(&socket, &target, &state_dir);
    let slow = ["--bandwidth-limit", "2MiB"];
    let mut source_agent = agents.start_source_at(&socket, &source, &slow);
    source_agent.wait_for("connected to the target");
    first.signal(Signal::KILL);
    let _killed = first.end();
    assert!(socket.exists(), "nobody removed it");
    let second = agents.start_target_at(&socket, &target, &state_dir);
    let _proven = source_agent.end().succeeded();
    let _proven = second.end().succeeded();
    volume::assert_same(&source, &target, 12 * MIB);
}

#[test]
fn a_socket_that_can_not_be_had_is_told_so() {
    let agents = Agents::default();
    let identity = agents.identity.good(Role::Target);
    let check = |arguments: &[&str], code: i32, words: &str| {
        let command = programs::command(programs::TARGET);
        let target = agents.launch(Role::Target, &identity, command, |command| {
            command
                .args(arguments)
                .arg("--volume")
                .arg(agents.path("target"));
        });
        let ended = target.end();
        let _failed = ended.failed(code, &[words]);
    };
    let taken = agents.path("taken");
    fs::write(&taken, "mine").unwrap();
    let taken = format!("unix:{}", taken.display());
    check(&["--listen", &taken], 2, "no socket");
    let long = format!("unix:/{}", "x".repeat(200));
    check(&["--listen", &long], 2, "too long");
    check(
        &["--listen", &taken, "--transport", "quic"],
        2,
        "does not run over a Unix socket",
    );
    check(&["--listen", "unix:"], 2, "neither ADDR:PORT nor unix:PATH");
}
