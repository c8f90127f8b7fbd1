//! Nobody takes part in a clone but its source and its target, and its observers may ask how far it is.
//! Whoever else comes is told why, is counted, and disturbs nobody.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;

use serde_json::Value;
use volferry_protocol::frame::Preamble;
use volferry_tests::PATIENCE;
use volferry_tests::agents::{Agents, HeldClone};
use volferry_tests::http::{eventually, metric};
use volferry_tests::identity::Identity;
use volferry_tests::peer::Peer;
use volferry_tests::programs;
use volferry_tests::volume;
use volferry_transport::Role;

/// A stranger comes while a clone is under way: `come` says what the stranger was told, which must
/// hold `told`; the target logs and counts `reason`; the clone then ends well.
#[track_caller]
fn turned_away(reason: &str, told: &str, come: impl FnOnce(SocketAddr, &Identity) -> String) {
    let mut held = HeldClone::start();
    let answer = come(held.target.address(), &held.agents.identity);
    assert!(answer.contains(told), "{answer}");
    held.target.wait_for(&format!("reason=\"{reason}\""));
    let admin = held.target.admin();
    let counted = format!("volferry_rejections_total{{reason=\"{reason}\"}}");
    eventually(&counted, || metric(admin, &counted) == 1.0);
    held.goes_on_to_a_good_end();
}

/// A stranger shows credentials to a target.
#[track_caller]
fn turned_away_with(reason: &str, alert: &str, shown: impl FnOnce(&Identity) -> Option<PathBuf>) {
    turned_away(reason, alert, |address, identity| {
        Peer::default().refused(address, shown(identity).as_deref())
    });
}

/// A stranger says something that is not TLS 1.3, and hears a TLS alert in the clear.
fn say_in_the_clear(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    match answer[..] {
        [0x15, .., code] => format!("alert {code}"),
        _ => format!("{answer:02x?}"),
    }
}

#[test]
fn a_source_without_a_certificate() {
    turned_away_with("no_certificate", "CertificateRequired", |_| None);
}

#[test]
fn a_source_from_another_authority() {
    turned_away_with("unknown_authority", "UnknownCA", |identity| {
        Some(identity.strange(Role::Source))
    });
}

#[test]
fn a_source_of_another_clone() {
    turned_away_with("wrong_clone", "AccessDenied", |identity| {
        Some(identity.of_another_clone(Role::Source))
    });
}

/// An observer may ask how far the clone is while it goes on, and can't be the source.
#[test]
fn an_observer_is_told_the_progress_and_nothing_else() {
    let held = HeldClone::start();
    let shown = held.agents.identity.good(Role::Observer);
    let address = held.target.address();
    let observer = || Peer::default().observe(address, shown.clone());
    let (head, body) = observer().ask("GET /progress");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let progress: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(progress["end"], "target");
    assert_eq!(progress["stage"], "transfer");
    // What a source would say first is no HTTP.
    assert!(
        observer()
            .tell(&Preamble::Control.encode())
            .starts_with("HTTP/1.1 400")
    );
    held.goes_on_to_a_good_end();
}

/// Observers that stay are few, and keep nobody out.
#[test]
fn observers_that_stay_keep_nobody_out() {
    let mut held = HeldClone::start();
    let shown = held.agents.identity.good(Role::Observer);
    let address = held.target.address();
    let peer = Peer::default();
    let staying: Vec<_> = (0..12)
        .map(|_| peer.observe(address, shown.clone()))
        .collect();
    let admin = held.target.admin();
    let counted = "volferry_rejections_total{reason=\"too_many_connections\"}";
    eventually(counted, || metric(admin, counted) == 4.0);
    held.goes_on_to_a_good_end();
    drop(staying);
}

#[test]
fn a_target_that_plays_the_source() {
    turned_away_with("wrong_role", "AccessDenied", |identity| {
        Some(identity.good(Role::Target))
    });
}

#[test]
fn a_source_whose_certificate_has_expired() {
    turned_away_with("expired", "CertificateExpired", |identity| {
        Some(identity.expired(Role::Source))
    });
}

#[test]
fn a_source_whose_certificate_is_not_valid_yet() {
    turned_away_with("not_yet_valid", "CertificateExpired", |identity| {
        Some(identity.not_yet_valid(Role::Source))
    });
}

#[test]
fn a_source_that_only_speaks_tls_1_2() {
    // RFC 5246, section 7.4.1.2: version, random, no session, one cipher suite, no compression;
    // then the extensions for groups and signatures.
    let mut hello = vec![0x03, 0x03];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16]);
    hello.extend([0, 10, 0, 4, 0, 2, 0, 23]);
    hello.extend([0, 13, 0, 4, 0, 2, 4, 3]);
    let len = u8::try_from(hello.len()).unwrap();
    let record = [&[0x16, 3, 1, 0, len + 4, 1, 0, 0, len][..], &hello].concat();
    // 70 is protocol_version (RFC 8446, section 6).
    turned_away("old_tls_version", "alert 70", |address, _| {
        say_in_the_clear(address, &record)
    });
}

#[test]
fn a_source_that_speaks_in_the_clear() {
    turned_away("not_tls", "alert", |address, _| {
        say_in_the_clear(address, b"GET / HTTP/1.1\r\n\r\n")
    });
}

/// The agents themselves, with credentials that don't fit: each ends with the identity's exit code
/// and says what to do.
#[test]
fn a_source_agent_says_why_it_was_turned_away() {
    let agents = Agents::default();
    let [volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    volume::create(&volume, 1 << 20, 1);
    let mut target = agents.start_target(&target_volume, &[]);
    let identity = &agents.identity;
    for (shown, here, there) in [
        (
            identity.strange(Role::Source),
            "it was not signed by the peer's authority (unknown_ca); mint",
            "unknown_authority",
        ),
        (
            identity.expired(Role::Source),
            "it has expired, or is not valid yet (certificate_expired); mint",
            "expired",
        ),
        (
            identity.not_yet_valid(Role::Source),
            "it has expired, or is not valid yet (certificate_expired); mint",
            "not_yet_valid",
        ),
        // Such a source finds that the target is none of its clone before it says anything.
        (
            identity.of_another_clone(Role::Source),
            "the peer belongs to another clone",
            "rejected_by_peer",
        ),
    ] {
        let source = agents.start_source_as(&shown, target.address(), &volume, &[]);
        source.end().failed(6, &["identity", here]);
        assert_eq!(agents.receipt(Role::Source)["failure"]["class"], "identity");
        target.wait_for(&format!("reason=\"{there}\""));
    }
    // The right one may still come.
    let source = agents.start_source(target.address(), &volume, &[]);
    let _proven = source.end().succeeded();
    let _proven = target.end().succeeded();
}

#[test]
fn a_source_agent_refuses_a_target_that_is_not_its_own() {
    let agents = Agents::default();
    let [volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    volume::create(&volume, 1 << 20, 1);
    let identity = &agents.identity;
    for (shown, here) in [
        (
            identity.strange(Role::Target),
            "was not signed by this clone's authority",
        ),
        (identity.expired(Role::Target), "has expired: by"),
        (identity.not_yet_valid(Role::Target), "is not valid yet: by"),
        (
            identity.of_another_clone(Role::Target),
            "belongs to another clone",
        ),
    ] {
        let mut target = agents.start_target_as(&shown, &target_volume, &[]);
        let source = agents.start_source(target.address(), &volume, &[]);
        source.end().failed(6, &["identity", here]);
        target.wait_for("reason=\"rejected_by_peer\"");
        let admin = target.admin();
        let counted = "volferry_rejections_total{reason=\"rejected_by_peer\"}";
        eventually(counted, || metric(admin, counted) == 1.0);
        assert!(target.is_running());
        assert!(!target_volume.exists());
    }
}

/// What answers is no agent at all: neither an identity nor a clone, and no reason to wait.
#[test]
fn a_source_agent_refuses_a_target_that_speaks_in_the_clear() {
    let agents = Agents::default();
    let volume = agents.path("source");
    volume::create(&volume, 1 << 20, 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let source = agents.start_source(address, &volume, &[]);
    let answering = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
        let _alert = stream.read(&mut [0; 1024]);
    });
    source.end().failed(5, &["the peer does not speak TLS"]);
    answering.join().unwrap();
}

#[test]
fn an_agent_does_not_take_the_credentials_of_another_role() {
    let agents = Agents::default();
    let volume = agents.path("volume");
    volume::create(&volume, 1 << 20, 1);
    let mut command = programs::command(programs::TARGET);
    command.args(["--listen", "127.0.0.1:0", "--identity"]);
    command.arg(agents.identity.good(Role::Source));
    let ended = programs::run(command.arg("--volume").arg(agents.path("target")));
    ended.failed(6, &["target", "source"]);
    let target = agents.start_target(&agents.path("target"), &[]);
    let shown = agents.identity.good(Role::Observer);
    let source = agents.start_source_as(&shown, target.address(), &volume, &[]);
    source.end().failed(6, &["source", "observer"]);
}

/// Credentials are files that may be replaced under a running agent, authority and all.
#[test]
fn credentials_are_read_again_for_each_connection() {
    let agents = Agents::default();
    let [volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    volume::create(&volume, 1 << 20, 1);
    let shown = agents.identity.good(Role::Target);
    let target = agents.start_target_as(&shown, &target_volume, &[]);
    let renewed = Identity::new(agents.identity.clone_id);
    let fresh = renewed.good(Role::Target);
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        std::fs::copy(fresh.join(name), shown.join(name)).unwrap();
    }
    let shown = renewed.good(Role::Source);
    let source = agents.start_source_as(&shown, target.address(), &volume, &[]);
    let _proven = source.end().succeeded();
    let _proven = target.end().succeeded();
    volume::assert_same(&volume, &target_volume, 1 << 20);
}
