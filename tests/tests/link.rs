//! The emulated link does to packets what it says, and clones get through what it does.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use volferry_tests::agents::Agents;
use volferry_tests::device::Namespaces;
use volferry_tests::link::{Link, Path};
use volferry_tests::skip::skip;
use volferry_tests::{MIB, PATIENCE, tree, volume};
use volferry_transport::Role;

/// A socket at each end, and where the right one is.
fn datagrams(link: &Link) -> (UdpSocket, UdpSocket) {
    let bind = |namespace: &str, address: &str| {
        let socket = Namespaces::run_in(namespace, || UdpSocket::bind((address, 0))).unwrap();
        socket.set_read_timeout(Some(QUIET)).unwrap();
        socket
    };
    let left = bind(&link.ends().left, "0.0.0.0");
    let right = bind(&link.ends().right, Namespaces::RIGHT_ADDRESS);
    left.connect(right.local_addr().unwrap()).unwrap();
    (left, right)
}

/// Nothing more comes when nothing came for so long.
const QUIET: Duration = Duration::from_millis(500);

/// Datagrams that a socket's buffer has room for.
const WINDOW: u32 = 100;

/// Sends `count` numbered datagrams to the right, and gives the numbers that came.
fn numbers_that_come(path: Path, count: u32) -> Option<Vec<u32>> {
    let link = Link::new(path)?;
    let (left, right) = datagrams(&link);
    let mut came = Vec::new();
    for first in (0..count).step_by(WINDOW as usize) {
        for number in first..count.min(first + WINDOW) {
            left.send(&number.to_be_bytes()).unwrap();
        }
        // Never more at once than has room before the narrowest place. What is held back comes after
        // what was sent behind it, so the last of them says nothing.
        let window_end = came.len() + WINDOW as usize;
        let mut number = [0; 4];
        while came.len() < window_end && right.recv(&mut number).is_ok() {
            came.push(u32::from_be_bytes(number));
        }
    }
    Some(came)
}

#[test]
fn a_clear_link_brings_every_datagram_in_order() {
    let Some(came) = numbers_that_come(Path::default(), 2000) else {
        return;
    };
    assert_eq!(came, (0..2000).collect::<Vec<_>>());
}

#[test]
fn a_lossy_link_loses_and_reorders_datagrams() {
    let path = Path {
        lost_ppm: 100_000,
        late_ppm: 50_000,
        ..Path::default()
    };
    let Some(came) = numbers_that_come(path, 4000) else {
        return;
    };
    let lost = 4000 - came.len();
    assert!((300..500).contains(&lost), "{lost}");
    assert!(!came.is_sorted());
}

#[test]
fn an_answer_takes_no_less_than_the_round_trip() {
    let round_trip = Duration::from_millis(40);
    let path = Path {
        round_trip,
        ..Path::default()
    };
    let Some(link) = Link::new(path) else { return };
    let (left, right) = datagrams(&link);
    let start = Instant::now();
    left.send(b"?").unwrap();
    let mut byte = [0];
    let (_, from) = right.recv_from(&mut byte).unwrap();
    assert!(start.elapsed() >= round_trip / 2);
    right.send_to(b"!", from).unwrap();
    left.recv(&mut byte).unwrap();
    assert!(start.elapsed() >= round_trip);
    assert_eq!(&byte, b"!");
}

/// The kernel's TCP mends what is lost, and gets no more through than the link lets.
#[test]
fn tcp_gets_through_a_lossy_link_at_its_rate() {
    let path = Path {
        lost_ppm: 10_000,
        bits_per_second: 40_000_000,
        ..Path::default()
    };
    let Some(link) = Link::new(path) else { return };
    let listen = || TcpListener::bind((Namespaces::RIGHT_ADDRESS, 0));
    let port = Namespaces::run_in(&link.ends().right, listen).unwrap();
    let address = port.local_addr().unwrap();
    let mut sent = vec![0; 1 << 20];
    volferry_tests::random::Random::new(5).fill(&mut sent);
    let start = Instant::now();
    let receiver = thread::spawn(move || -> io::Result<Vec<u8>> {
        let (mut stream, _) = port.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        Ok(received)
    });
    let connect = || TcpStream::connect(address);
    let mut stream = Namespaces::run_in(&link.ends().left, connect).unwrap();
    stream.write_all(&sent).unwrap();
    drop(stream);
    assert!(receiver.join().unwrap().unwrap() == sent);
    // 8 Mib at 40 Mb/s, headers aside.
    assert!(start.elapsed() >= Duration::from_millis(209));
}

/// Long, lossy, unsteady: 5 ms with jitter, 1 % lost, 1 % out of order.
const BAD: Path = Path {
    round_trip: Duration::from_millis(5),
    jitter: Duration::from_millis(2),
    lost_ppm: 10_000,
    late_ppm: 10_000,
    bits_per_second: 200_000_000,
    queue: Duration::from_millis(25),
    seed: 7,
};

#[test]
fn a_volume_gets_through_a_bad_link_over_both_transports() {
    for transport in ["tls", "quic"] {
        let Some(link) = Link::new(BAD) else { return };
        let agents = Agents::default();
        let [source_volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
        let size = 12 * MIB + 512;
        volume::create(&source_volume, size, 9);
        volume::create_dirty(&target_volume, size);
        let over = ["--transport", transport];
        let overwrite = ["--transport", transport, "--overwrite"];
        let target = agents.start_target_within(link.ends(), &target_volume, &overwrite);
        let address = target.address();
        let source = agents.start_source_within(link.ends(), address, &source_volume, &over);
        let _proven = source.end().succeeded();
        let _proven = target.end().succeeded();
        volume::assert_same(&source_volume, &target_volume, size);
        let receipt = agents.receipt(Role::Source);
        assert_eq!(receipt["source"]["transport"], transport, "{receipt}");
        assert_eq!(receipt["sessions"], 1, "{receipt}");
    }
}

#[test]
fn a_tree_gets_through_a_bad_link_over_both_transports() {
    for transport in ["tls", "quic"] {
        let Some(link) = Link::new(BAD) else { return };
        let agents = Agents::default();
        let (source, target) = (agents.path("source"), agents.path("target"));
        fs::create_dir_all(source.join("a/b")).unwrap();
        fs::create_dir(&target).unwrap();
        volume::create_dense(&source.join("large"), 5 * MIB, 3);
        for number in 0..200 {
            fs::write(source.join(format!("a/{number}")), vec![1; number]).unwrap();
        }
        let over = ["--transport", transport];
        let target_agent = agents.start_target_within(link.ends(), &target, &over);
        let address = target_agent.address();
        let source_agent = agents.start_source_within(link.ends(), address, &source, &over);
        let _proven = source_agent.end().succeeded();
        let _proven = target_agent.end().succeeded();
        tree::assert_same(&source, &target);
    }
}

/// Where one connection gets through what loss and distance let, and the path has room for many.
const NARROW: Path = Path {
    round_trip: Duration::from_millis(40),
    jitter: Duration::ZERO,
    lost_ppm: 5_000,
    late_ppm: 0,
    bits_per_second: 400_000_000,
    queue: Duration::from_millis(25),
    seed: 11,
};

/// The most data connections that the source had, of a volume or a tree of so many bytes.
fn connections_on_a_narrow_path(of_tree: bool, size: u64, arguments: &[&str]) -> Option<u64> {
    let link = Link::new(NARROW)?;
    // Of TCP's own ways, the one that loss slows down most.
    let set = || fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno");
    if let Err(error) = Namespaces::run_in(&link.ends().left, set) {
        return skip(&format!("the kernel has no reno: {error}"));
    }
    let agents = Agents::default();
    let [source, target] = ["source", "target"].map(|name| agents.path(name));
    if of_tree {
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        volume::create_dense(&source.join("large"), size, 3);
    } else {
        volume::create_dense(&source, size, 3);
    }
    let target_agent = agents.start_target_within(link.ends(), &target, &[]);
    let address = target_agent.address();
    let source_agent = agents.start_source_within(link.ends(), address, &source, arguments);
    let _proven = source_agent.end().succeeded();
    let _proven = target_agent.end().succeeded();
    let receipt = agents.receipt(Role::Source);
    assert_eq!(receipt["sessions"], 1, "{receipt}");
    let [at_source, at_target] =
        ["source", "target"].map(|end| receipt[end]["connections_max"].as_u64().unwrap());
    assert_eq!(at_source, at_target, "each end saw all of them");
    Some(at_source)
}

#[test]
fn connections_join_where_the_network_limits() {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let first = processors.min(4) as u64;
    for of_tree in [false, true] {
        let Some(most) = connections_on_a_narrow_path(of_tree, 32 * MIB, &[]) else {
            return;
        };
        assert!(most > first, "{most} connections, of a tree: {of_tree}");
        assert!(most <= 16);
    }
}

#[test]
fn no_connection_joins_those_that_were_told() {
    let told = ["--streams", "2"];
    let Some(most) = connections_on_a_narrow_path(false, 8 * MIB, &told) else {
        return;
    };
    assert_eq!(most, 2);
}

/// What `auto` takes on a path of `millis`, where the source's kernel has `congestion` for TCP; and why.
fn taken_by_auto(millis: u64, congestion: &str) -> Option<(String, String)> {
    let path = Path {
        round_trip: Duration::from_millis(millis),
        ..Path::default()
    };
    let link = Link::new(path)?;
    let set = || fs::write("/proc/sys/net/ipv4/tcp_congestion_control", congestion);
    if let Err(error) = Namespaces::run_in(&link.ends().left, set) {
        return skip(&format!("the kernel has no {congestion}: {error}"));
    }
    let agents = Agents::default();
    let source_volume = agents.path("source");
    volume::create_dense(&source_volume, MIB, 7);
    let target = agents.start_target_within(link.ends(), &agents.path("target"), &[]);
    let auto = ["--transport", "auto"];
    let address = target.address();
    let source = agents.start_source_within(link.ends(), address, &source_volume, &auto);
    let _proven = source.end().succeeded();
    let said = target.end().succeeded().stderr;
    // The connections that were only measured are no peers that were turned away.
    assert!(!said.contains("refused"), "{said}");
    let source = &agents.receipt(Role::Target)["source"];
    let text = |name: &str| source[name].as_str().unwrap().to_owned();
    Some((text("transport"), text("transport_why")))
}

#[test]
fn auto_takes_quic_on_a_long_path_where_tcp_slows_down_at_each_loss() {
    for (congestion, transport, why) in [
        ("reno", "quic", "slows down at each loss"),
        ("bbr", "tls", "bears loss"),
    ] {
        let Some(taken) = taken_by_auto(30, congestion) else {
            continue;
        };
        assert_eq!(taken.0, transport, "{}", taken.1);
        assert!(
            taken.1.contains(why) && taken.1.contains(congestion),
            "{}",
            taken.1
        );
    }
}
