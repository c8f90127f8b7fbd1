//! Two agents as two processes: what they tell while they work, what they leave behind, and what
//! they cost.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use volferry_tests::MIB;
use volferry_tests::agents::{Agent, Agents, HeldClone};
use volferry_tests::device::{Loop, Namespaces};
use volferry_tests::gate::Gate;
use volferry_tests::http::{ask, eventually, get, metric, progress, wait_until_settled};
use volferry_tests::programs::{self, Running, volferry};
use volferry_tests::volume::{self, DIRT};
use volferry_transport::Role;

/// A port that was free a moment ago, at an address where no other test's agent listens: it could be
/// given that port.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.77:0").unwrap();
    listener.local_addr().unwrap()
}

#[test]
fn both_ends_hold_one_receipt_and_it_is_true() {
    let agents = Agents::default();
    let [source_volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    let size = 21 * MIB + 4097;
    let content = volume::create(&source_volume, size, 1);
    let target = agents.start_target(&target_volume, &[]);
    let source = agents.start_source(target.address(), &source_volume, &[]);
    let source = source.end().succeeded();
    let target = target.end().succeeded();
    assert!(source.stderr.contains("the clone is proven"));
    assert!(target.stderr.contains("the clone is proven"));
    volume::assert_same(&source_volume, &target_volume, size);

    let receipt = agents.receipt(Role::Source);
    assert_eq!(receipt, agents.receipt(Role::Target));
    assert_eq!(receipt["clone_id"], agents.identity.clone_id.to_string());
    assert_eq!(receipt["logical_bytes"], size);
    assert_eq!(receipt["data_bytes"], content.data_bytes);
    assert_eq!(receipt["zero_bytes"], size - content.data_bytes);
    assert_eq!(receipt["resumed_bytes"], 0);
    for volume in [&source_volume, &target_volume] {
        let printed = volferry([&"digest".into(), volume, &"--json".into()]).succeeded();
        assert_eq!(printed.json()["digest"], receipt["digest"]);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let finished = receipt["finished_unix_seconds"].as_u64().unwrap();
    assert!(finished <= now && now - finished < 3600, "{finished}");
    let seconds = receipt["seconds"].as_f64().unwrap();
    let rate = receipt["bytes_per_second"].as_f64().unwrap();
    assert!(
        (rate * seconds - size as f64).abs() < 1.0,
        "{rate} {seconds}"
    );
    for (role, ended) in [("source", &source), ("target", &target)] {
        let stats = &receipt[role];
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(stats["agent"], format!("volferry-{role}/{version}"));
        assert!(stats["cpu_seconds"].as_f64().unwrap() > 0.0);
        // The receipt is written before the end, so the kernel may have seen a little more.
        let peak = stats["peak_memory_bytes"].as_u64().unwrap();
        assert!(peak > 0 && peak <= ended.peak_memory_bytes.max(peak));
    }

    // What an agent leaves is what `volferry verify` reads.
    let mut verify = programs::command(programs::CLI);
    verify.arg("verify").arg(&target_volume).arg("--receipt");
    let _proven = programs::run(verify.arg(agents.receipt_path(Role::Target))).succeeded();
}

#[test]
fn devices_are_cloned_by_agents_as_by_the_command_line() {
    let (Some(from), Some(to)) = (Loop::dirty(9 * MIB, 4096), Loop::dirty(10 * MIB, 512)) else {
        return;
    };
    let content = volume::fill_device(&from.device, 9 * MIB, 2);
    let agents = Agents::default();
    let target = agents.start_target(&to.device, &["--zero-tail", "--writers", "3"]);
    let arguments = ["--streams", "4", "--readers", "3", "--buffered"];
    let source = agents.start_source(target.address(), &from.device, &arguments);
    let _proven = source.end().succeeded();
    let _proven = target.end().succeeded();
    volume::assert_same(&from.device, &to.device, content.size);
    volume::assert_holds_only(&to.device, content.size, 10 * MIB, 0);
    let receipt = agents.receipt(Role::Source);
    assert_eq!(receipt["data_bytes"], content.data_bytes);
}

/// The target may grant fewer connections than the source wants.
#[test]
fn a_target_grants_as_many_connections_as_it_wants() {
    let agents = Agents::default();
    let [source_volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    volume::create(&source_volume, 8 * MIB, 3);
    let target = agents.start_target(&target_volume, &["--streams-max", "1"]);
    let arguments = ["--streams", "64", "--chunk-size", "64KiB"];
    let source = agents.start_source(target.address(), &source_volume, &arguments);
    let _proven = source.end().succeeded();
    let _proven = target.end().succeeded();
    volume::assert_same(&source_volume, &target_volume, 8 * MIB);
}

#[test]
fn the_source_may_start_first() {
    let agents = Agents::default();
    let [source_volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    volume::create(&source_volume, MIB, 4);
    let address = free_port();
    let mut source = agents.start_source(address, &source_volume, &[]);
    source.wait_for("the source volume is open");
    let admin = source.admin();
    assert_eq!(get(admin, "/healthz").0, 200);
    assert_eq!(get(admin, "/readyz").0, 503, "there is no target yet");
    let identity = agents.identity.good(Role::Target);
    let command = programs::command(programs::TARGET);
    let target = agents.launch(Role::Target, &identity, command, |command| {
        command.arg("--listen").arg(address.to_string());
        command.arg("--volume").arg(&target_volume);
    });
    let _proven = source.end().succeeded();
    let _proven = target.end().succeeded();
    volume::assert_same(&source_volume, &target_volume, MIB);
}

#[test]
fn a_source_does_not_wait_for_ever() {
    let agents = Agents::default();
    let volume = agents.path("source");
    volume::create(&volume, MIB, 5);
    let source = agents.start_source(free_port(), &volume, &["--connect-timeout", "1"]);
    source.end().failed(5, &["cannot connect to", "refused"]);
    let failure = &agents.receipt(Role::Source)["failure"];
    assert_eq!(failure["code"], "connect");
    assert_eq!(failure["retryable"], true);
}

#[test]
fn the_admin_port_tells_of_a_clone_under_way() {
    let mut held = HeldClone::start();
    for (role, admin) in [
        ("source", held.source.admin()),
        ("target", held.target.admin()),
    ] {
        assert_eq!(get(admin, "/healthz"), (200, "ok\n".to_owned()));
        assert_eq!(get(admin, "/readyz"), (200, "ready\n".to_owned()));
        assert_eq!(get(admin, "/nothing").0, 404);
        assert!(ask(admin, "POST /healthz").0.starts_with("HTTP/1.1 405 "));

        let report = progress(admin);
        assert_eq!(report["end"], role);
        assert_eq!(report["stage"], "transfer");
        assert_eq!(
            report["clone_id"],
            held.agents.identity.clone_id.to_string()
        );
        assert_eq!(report["logical_bytes"], HeldClone::SIZE);
        let durable = report["durable_bytes"].as_u64().unwrap();
        // A little may have passed beside the gate, as any connection's first bytes do.
        assert!(durable <= HeldClone::PASSED + MIB, "{report}");

        assert_eq!(
            metric(admin, "volferry_logical_bytes"),
            HeldClone::SIZE as f64
        );
        assert!(metric(admin, "volferry_peak_memory_bytes") > 0.0);
        let (_, metrics) = get(admin, "/metrics");
        for name in [
            "volferry_durable_bytes",
            "volferry_resumed_bytes",
            "volferry_data_bytes_total",
            "volferry_zero_bytes_total",
            "volferry_wire_bytes_total",
            "volferry_bytes_per_second",
            "volferry_cpu_seconds_total",
            "volferry_volume_wait_seconds_total",
            "volferry_peer_wait_seconds_total",
        ] {
            let described = format!("# TYPE {name} ");
            assert!(
                metrics.contains(&described),
                "{name} is missing:\n{metrics}"
            );
        }
    }
    // What passed the gate is soon durable, and the source hears of it.
    let (source, target) = (held.source.admin(), held.target.admin());
    eventually("durable bytes at the target", || {
        progress(target)["durable_bytes"].as_u64().unwrap() >= MIB
    });
    eventually("durable bytes at the source", || {
        progress(source)["durable_bytes"].as_u64().unwrap() >= MIB
    });
    held.goes_on_to_a_good_end();
}

#[test]
fn an_admin_port_that_is_taken_is_a_matter_of_usage() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let agents = Agents::default();
    let mut command = programs::command(programs::TARGET);
    command
        .arg("--identity")
        .arg(agents.identity.good(Role::Target));
    command.arg("--volume").arg(agents.path("target"));
    command.args(["--listen", "127.0.0.1:0", "--admin-listen"]);
    let ended = programs::run(command.arg(taken.local_addr().unwrap().to_string()));
    ended.failed(2, &["the admin port", "can't be bound"]);
}

#[test]
fn the_environment_configures_agents_as_flags_do() {
    let agents = Agents::default();
    let [source_volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    let size = 3 * MIB + 777;
    volume::create(&source_volume, size, 6);
    volume::create_dirty(&target_volume, 4 * MIB);

    let mut target = programs::command(programs::TARGET);
    target
        .env("VOLFERRY_VOLUME", &target_volume)
        .env("VOLFERRY_LISTEN", "127.0.0.1:0")
        .env("VOLFERRY_IDENTITY", agents.identity.good(Role::Target))
        .env("VOLFERRY_RECEIPT", agents.receipt_path(Role::Target))
        .env("VOLFERRY_ADMIN_LISTEN", "127.0.0.1:0")
        .env("VOLFERRY_OVERWRITE", "1")
        .env("VOLFERRY_ZERO_TAIL", "yes")
        .env("VOLFERRY_PREALLOCATE", "false")
        .env("VOLFERRY_MEMORY_MIB", "16")
        .env("VOLFERRY_STREAMS_MAX", "2")
        .env("VOLFERRY_WRITERS", "1");
    let mut target = Agent::started(Running::start(&mut target));
    target.wait_until_it_listens();
    assert_eq!(get(target.admin(), "/readyz").0, 200);

    let mut source = programs::command(programs::SOURCE);
    source
        .env("VOLFERRY_VOLUME", &source_volume)
        .env("VOLFERRY_TARGET", target.address().to_string())
        .env("VOLFERRY_IDENTITY", agents.identity.good(Role::Source))
        .env("VOLFERRY_RECEIPT", agents.receipt_path(Role::Source))
        .env("VOLFERRY_MANIFEST", agents.path("manifest"))
        .env("VOLFERRY_CHUNK_SIZE", "8MiB")
        .env("VOLFERRY_BUFFERED", "true")
        .env("VOLFERRY_LOG_FORMAT", "json")
        .env("VOLFERRY_LOG", "debug")
        // A flag has the last word.
        .args(["--chunk-size", "256KiB"]);
    let source = programs::run(&mut source).succeeded();
    let _proven = target.end().succeeded();

    volume::assert_same(&source_volume, &target_volume, size);
    volume::assert_holds_only(&target_volume, size, 4 * MIB, 0);
    let receipt = agents.receipt(Role::Source);
    assert_eq!(receipt, agents.receipt(Role::Target));
    assert_eq!(receipt["chunk_size"], 256 << 10);
    assert!(agents.path("manifest").metadata().unwrap().size() > 0);
    for line in source.stderr.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string(), "{line}");
    }
    assert!(source.stderr.contains("\"DEBUG\""));
}

/// A key in the environment would show in `kubectl describe`: there is no such variable.
#[test]
fn keys_come_from_files_only() {
    for program in [programs::SOURCE, programs::TARGET] {
        let help = programs::run(programs::command(program).arg("--help")).succeeded();
        let variables = help.stdout.matches("[env: VOLFERRY_").count();
        assert!(variables > 8, "{}", help.stdout);
        for word in [
            "VOLFERRY_KEY",
            "VOLFERRY_CERT",
            "VOLFERRY_CA",
            "VOLFERRY_TLS",
        ] {
            assert!(!help.stdout.contains(word), "{program} reads {word}");
        }
    }
}

#[test]
fn memory_stays_bounded_however_large_the_volume() {
    let agents = Agents::default();
    let [source_volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    let size = 256 * MIB;
    volume::create_dense(&source_volume, size, 8);
    let target = agents.start_target(&target_volume, &[]);
    // Held in the middle, the source reads ahead as far as it may.
    let gate = Gate::closing_after(32 * MIB, target.address());
    let mut source = agents.start_source(gate.address(), &source_volume, &[]);
    gate.wait_until_it_holds();
    wait_until_settled(source.admin(), "volferry_peak_memory_bytes");
    gate.open();
    for (role, ended) in [("source", source.end()), ("target", target.end())] {
        let ended = ended.succeeded();
        let peak = ended.peak_memory_bytes.max(
            agents.receipt(Role::Target)[role]["peak_memory_bytes"]
                .as_u64()
                .unwrap(),
        );
        assert!(peak < 96 << 20, "the {role} agent took {peak} bytes");
    }
    volume::assert_same(&source_volume, &target_volume, size);
}

/// What the pod's node sees: two network namespaces with a cable between them.
#[test]
fn agents_in_two_network_namespaces() {
    let Some(ends) = Namespaces::new() else {
        return;
    };
    let agents = Agents::default();
    let [source_volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    let size = 12 * MIB + 512;
    volume::create(&source_volume, size, 9);
    volume::create_dirty(&target_volume, size);
    volume::assert_holds_only(&target_volume, 0, size, DIRT);
    let target = agents.start_target_within(&ends, &target_volume, &["--overwrite"]);
    let source = agents.start_source_within(&ends, target.address(), &source_volume, &[]);
    let _proven = source.end().succeeded();
    let _proven = target.end().succeeded();
    volume::assert_same(&source_volume, &target_volume, size);
}
