//! Clones whose payloads travel compressed: what arrives is the same, less of it travels, and what does not shrink
//! travels as it is.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use volferry_tests::agents::Agents;
use volferry_tests::link::{self, Link};
use volferry_tests::random::Random;
use volferry_tests::trial::number;
use volferry_tests::{MIB, tree, volume};
use volferry_transport::Role;

/// Text of numbered lines, which shrinks to a fraction.
fn text(len: u64) -> Vec<u8> {
    let mut text = String::new();
    let mut line = 0_u64;
    while (text.len() as u64) < len {
        line += 1;
        writeln!(text, "line {line} of the volume, {}", line * line % 977).unwrap();
    }
    let mut text = text.into_bytes();
    text.truncate(usize::try_from(len).unwrap());
    text
}

/// Bytes that don't shrink.
fn noise(len: u64) -> Vec<u8> {
    let mut noise = vec![0; usize::try_from(len).unwrap()];
    Random::new(3).fill(&mut noise);
    noise
}

/// A volume with text, noise and holes in turn, and a short last chunk.
fn create_mixed(path: &Path) -> u64 {
    let noise = path.with_extension("noise");
    volume::create_dense(&noise, MIB, 3);
    let noise = fs::read(noise).unwrap();
    let hole = vec![0; 100_000];
    let parts = [
        text(3 * MIB),
        hole.clone(),
        noise,
        hole,
        text(MIB / 2 + 512),
    ];
    let volume = parts.concat();
    fs::write(path, &volume).unwrap();
    volume.len() as u64
}

/// Clones the volume or the directory `source` to `target`, and gives the receipt.
#[track_caller]
fn clone(agents: &Agents, transport: &str, compression: &str) -> Value {
    let over = ["--transport", transport];
    let target = agents.start_target(&agents.path("target"), &over);
    let how = ["--transport", transport, "--compression", compression];
    let source = agents.start_source(target.address(), &agents.path("source"), &how);
    let _proven = source.end().succeeded();
    let _proven = target.end().succeeded();
    let receipt = agents.receipt(Role::Source);
    assert_eq!(receipt, agents.receipt(Role::Target));
    receipt
}

/// What of the payload travelled compressed, and what it had become, as both ends tell it.
#[track_caller]
fn compressed(receipt: &Value) -> (u64, u64) {
    let told = |end: &str, name: &str| receipt[end][name].as_u64().unwrap_or_default();
    let by = |end| {
        (
            told(end, "compressed_bytes"),
            told(end, "compressed_to_bytes"),
        )
    };
    assert_eq!(by("source"), by("target"), "{receipt}");
    by("source")
}

#[test]
fn a_volume_is_the_same_and_less_of_it_travels() {
    for transport in ["tls", "quic"] {
        for method in ["lz4", "zstd", "zstd:9"] {
            let agents = Agents::default();
            let size = create_mixed(&agents.path("source"));
            let receipt = clone(&agents, transport, method);
            volume::assert_same(&agents.path("source"), &agents.path("target"), size);
            let (from, to) = compressed(&receipt);
            // The noise stays as it is, but for chunks that hold both.
            assert!(from >= 3 * MIB && from < size, "{receipt}");
            assert!(to < from / 2, "{receipt}");
            let data = number(&receipt, "data_bytes");
            assert!(
                number(&receipt, "wire_bytes") < data - (from - to) + 4096,
                "{receipt}"
            );
        }
    }
}

#[test]
fn a_tree_is_the_same_and_less_of_it_travels() {
    for transport in ["tls", "quic"] {
        for method in ["lz4", "zstd"] {
            let agents = Agents::default();
            let (source, target) = (agents.path("source"), agents.path("target"));
            fs::create_dir_all(source.join("a/b")).unwrap();
            fs::create_dir(&target).unwrap();
            create_mixed(&source.join("large"));
            for number in 0..200 {
                fs::write(source.join(format!("a/{number}")), text(number * 10)).unwrap();
            }
            let receipt = clone(&agents, transport, method);
            tree::assert_same(&source, &target);
            let (from, to) = compressed(&receipt);
            assert!(from >= 3 * MIB && to < from / 2, "{receipt}");
        }
    }
}

#[test]
fn noise_travels_as_it_is() {
    for method in ["lz4", "zstd", "auto", "none"] {
        let agents = Agents::default();
        let size = 4 * MIB;
        fs::write(agents.path("source"), noise(size)).unwrap();
        let receipt = clone(&agents, "tls", method);
        volume::assert_same(&agents.path("source"), &agents.path("target"), size);
        assert_eq!(compressed(&receipt), (0, 0), "{receipt}");
        assert!(number(&receipt, "wire_bytes") > size, "{receipt}");
    }
}

/// On a slow link `auto` begins without, and finds out while the clone runs.
#[test]
fn auto_compresses_where_the_network_is_slow() {
    for transport in ["tls", "quic"] {
        let path = link::Path {
            round_trip: Duration::from_millis(2),
            bits_per_second: 20_000_000,
            ..link::Path::default()
        };
        let Some(link) = Link::new(path) else { return };
        let agents = Agents::default();
        let size = 32 * MIB;
        fs::write(agents.path("source"), text(size)).unwrap();
        let over = ["--transport", transport];
        let target = agents.start_target_within(link.ends(), &agents.path("target"), &over);
        let how = [
            "--transport",
            transport,
            "--compression",
            "auto",
            "--memory-mib",
            "16",
        ];
        let address = target.address();
        let volume = agents.path("source");
        let source = agents.start_source_within(link.ends(), address, &volume, &how);
        let _proven = source.end().succeeded();
        let _proven = target.end().succeeded();
        volume::assert_same(&volume, &agents.path("target"), size);
        let (from, to) = compressed(&agents.receipt(Role::Source));
        assert!(from > 0 && from < size && to < from / 2, "{from} {to}");
    }
}
