//! A clone is byte for byte its source: whatever the sectors, the size, the chunks, the number of
//! connections, and whatever the target held before.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use serde_json::Value;
use volferry_tests::device::Loop;
use volferry_tests::programs::volferry;
use volferry_tests::volume::{self, Content, DIRT};
use volferry_tests::{MIB, temporary_directory};

/// A size that ends off every boundary but a sector's.
const ODD_SECTORS: u64 = 9 * MIB + 7 * 4096;

/// Clones, and gives the receipt.
#[track_caller]
fn copy(source: &Path, target: &Path, arguments: &[&str]) -> Value {
    let paths = [source, target].map(|path| path.to_str().unwrap());
    let command = [&["copy", "--json"], &paths[..], arguments].concat();
    volferry(command).succeeded().json()
}

/// Checks that the receipt accounts for every byte as it was put in.
#[track_caller]
fn assert_accounts(receipt: &Value, content: Content) {
    assert_eq!(receipt["logical_bytes"], content.size);
    assert_eq!(receipt["data_bytes"], content.data_bytes);
    assert_eq!(receipt["zero_bytes"], content.size - content.data_bytes);
}

#[test]
fn a_file_becomes_a_dirty_device() {
    let directory = temporary_directory();
    let source = directory.path().join("source");
    let content = volume::create(&source, ODD_SECTORS, 1);
    for sector in [512, 4096] {
        let Some(target) = Loop::dirty(ODD_SECTORS, sector) else {
            return;
        };
        let receipt = copy(&source, &target.device, &[]);
        assert_accounts(&receipt, content);
        volume::assert_same(&source, &target.device, content.size);
    }
}

#[test]
fn a_device_becomes_a_file() {
    for sector in [512, 4096] {
        let Some(source) = Loop::dirty(ODD_SECTORS, sector) else {
            return;
        };
        let content = volume::fill_device(&source.device, ODD_SECTORS, 2);
        let directory = temporary_directory();
        let target = directory.path().join("target");
        let receipt = copy(&source.device, &target, &[]);
        assert_accounts(&receipt, content);
        volume::assert_same(&source.device, &target, content.size);
        assert_eq!(target.metadata().unwrap().len(), content.size);
    }
}

#[test]
fn a_device_becomes_a_device_of_other_sectors() {
    for (from, to) in [(4096, 512), (512, 4096)] {
        let (Some(source), Some(target)) =
            (Loop::dirty(ODD_SECTORS, from), Loop::dirty(ODD_SECTORS, to))
        else {
            return;
        };
        let content = volume::fill_device(&source.device, ODD_SECTORS, 3);
        let receipt = copy(&source.device, &target.device, &[]);
        assert_accounts(&receipt, content);
        volume::assert_same(&source.device, &target.device, content.size);
    }
}

#[test]
fn a_device_of_odd_sectors_is_cloned_to_its_end() {
    let size = 3 * MIB + 3 * 512;
    let Some(source) = Loop::dirty(size, 512) else {
        return;
    };
    let directory = temporary_directory();
    let target = directory.path().join("target");
    let receipt = copy(&source.device, &target, &[]);
    assert_eq!(receipt["logical_bytes"], size);
    volume::assert_holds_only(&target, 0, size, DIRT);
}

#[test]
fn volumes_of_any_size_are_cloned() {
    for size in [
        1,
        511,
        513,
        4095,
        4097,
        MIB - 1,
        MIB,
        MIB + 1,
        5 * MIB + 777,
    ] {
        let directory = temporary_directory();
        let [source, target] = ["source", "target"].map(|name| directory.path().join(name));
        let content = volume::create(&source, size, size);
        let receipt = copy(&source, &target, &[]);
        assert_accounts(&receipt, content);
        volume::assert_same(&source, &target, size);
        assert_eq!(target.metadata().unwrap().len(), size);
    }
}

#[test]
fn an_empty_volume_is_cloned() {
    let directory = temporary_directory();
    let [source, target] = ["source", "target"].map(|name| directory.path().join(name));
    let content = volume::create(&source, 0, 0);
    let receipt = copy(&source, &target, &[]);
    assert_accounts(&receipt, content);
    assert_eq!(target.metadata().unwrap().len(), 0);
    assert_eq!(receipt["digest"].as_str().unwrap().len(), 64);
}

#[test]
fn nothing_old_shines_through_a_dirty_file() {
    let directory = temporary_directory();
    let [source, target] = ["source", "target"].map(|name| directory.path().join(name));
    let size = 12 * MIB + 4097;
    let content = volume::create(&source, size, 4);
    volume::create_dirty(&target, size);
    let receipt = copy(&source, &target, &["--overwrite"]);
    assert_accounts(&receipt, content);
    volume::assert_same(&source, &target, size);
}

#[test]
fn a_volume_of_zeros_makes_a_dirty_device_all_zero() {
    let size = 8 * MIB + 512;
    let Some(target) = Loop::dirty(size, 512) else {
        return;
    };
    let directory = temporary_directory();
    let source = directory.path().join("source");
    std::fs::File::create(&source)
        .unwrap()
        .set_len(size)
        .unwrap();
    let receipt = copy(&source, &target.device, &[]);
    assert_eq!(receipt["data_bytes"], 0);
    assert_eq!(receipt["zero_bytes"], size);
    volume::assert_holds_only(&target.device, 0, size, 0);
}

/// Written zeros are as good as holes: they don't travel, and take no space at the target.
#[test]
fn a_clone_is_as_sparse_as_can_be() {
    let directory = temporary_directory();
    let [source, target] = ["source", "target"].map(|name| directory.path().join(name));
    let size = 64 * MIB;
    let content = volume::create(&source, size, 5);
    let receipt = copy(&source, &target, &[]);
    assert_accounts(&receipt, content);
    volume::assert_same(&source, &target, size);

    // A header and a zero map for each chunk at most, a preamble and an end for each connection.
    let headers = 64 * (56 + 32) + 4 * (40 + 56);
    let wire_bytes = receipt["wire_bytes"].as_u64().unwrap();
    assert!(wire_bytes >= content.data_bytes);
    assert!(wire_bytes <= content.data_bytes + headers, "{wire_bytes}");

    // Of a file that was not there before, only what holds data is written.
    let allocated = volume::allocated_bytes(&target);
    assert!(
        allocated <= content.data_bytes + MIB,
        "{allocated} bytes for {} of data",
        content.data_bytes
    );
    assert!(allocated < volume::allocated_bytes(&source));
}

#[test]
fn preallocating_takes_all_the_space() {
    let directory = temporary_directory();
    let [source, target] = ["source", "target"].map(|name| directory.path().join(name));
    let content = volume::create(&source, 16 * MIB, 6);
    copy(&source, &target, &["--preallocate"]);
    assert!(volume::allocated_bytes(&target) >= content.size);
    volume::assert_same(&source, &target, content.size);
}

#[test]
fn a_dirty_device_gives_back_the_space_of_zeros() {
    let size = 32 * MIB;
    let Some(target) = Loop::dirty(size, 4096) else {
        return;
    };
    let directory = temporary_directory();
    let source = directory.path().join("source");
    std::fs::File::create(&source)
        .unwrap()
        .set_len(size)
        .unwrap();
    copy(&source, &target.device, &[]);
    let allocated = volume::allocated_bytes(&target.backing);
    assert!(allocated < MIB, "{allocated} bytes are still allocated");
}

#[test]
fn chunks_of_every_size_make_the_same_clone() {
    let directory = temporary_directory();
    let source = directory.path().join("source");
    let size = 17 * MIB + 4097;
    let content = volume::create(&source, size, 7);
    let mut digests = Vec::new();
    for chunk_size in ["64KiB", "256KiB", "1MiB", "8MiB"] {
        let target = directory.path().join(chunk_size);
        volume::create_dirty(&target, size);
        let receipt = copy(
            &source,
            &target,
            &["--overwrite", "--chunk-size", chunk_size],
        );
        assert_accounts(&receipt, content);
        volume::assert_same(&source, &target, size);
        digests.push(receipt["digest"].to_string());
    }
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 4, "a digest is one of its chunk size");
}

#[test]
fn connections_and_the_page_cache_change_nothing() {
    let directory = temporary_directory();
    let source = directory.path().join("source");
    let size = 11 * MIB + 333;
    let content = volume::create(&source, size, 8);
    let mut digests = Vec::new();
    let ways: [&[&str]; 4] = [
        &["--streams", "1"],
        &["--streams", "4"],
        &["--buffered"],
        &["--buffered", "--streams", "3", "--memory-mib", "16"],
    ];
    for (number, way) in ways.iter().enumerate() {
        let target = directory.path().join(format!("target-{number}"));
        let receipt = copy(&source, &target, way);
        assert_accounts(&receipt, content);
        volume::assert_same(&source, &target, size);
        digests.push(receipt["digest"].to_string());
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "the digest is of the content alone");
}

#[test]
fn the_tail_of_a_larger_target_is_left_alone() {
    let (size, larger) = (5 * MIB + 4096, 8 * MIB);
    let directory = temporary_directory();
    let [source, file] = ["source", "file"].map(|name| directory.path().join(name));
    volume::create(&source, size, 9);
    volume::create_dirty(&file, larger);
    copy(&source, &file, &["--overwrite"]);
    volume::assert_same(&source, &file, size);
    volume::assert_holds_only(&file, size, larger, DIRT);

    let Some(device) = Loop::dirty(larger, 512) else {
        return;
    };
    copy(&source, &device.device, &[]);
    volume::assert_same(&source, &device.device, size);
    volume::assert_holds_only(&device.device, size, larger, DIRT);
}

#[test]
fn the_tail_of_a_larger_target_is_zeroed_on_request() {
    let (size, larger) = (5 * MIB + 777, 8 * MIB);
    let directory = temporary_directory();
    let [source, file] = ["source", "file"].map(|name| directory.path().join(name));
    volume::create(&source, size, 10);
    volume::create_dirty(&file, larger);
    copy(&source, &file, &["--overwrite", "--zero-tail"]);
    volume::assert_same(&source, &file, size);
    volume::assert_holds_only(&file, size, larger, 0);

    for sector in [512, 4096] {
        let Some(device) = Loop::dirty(larger, sector) else {
            return;
        };
        copy(&source, &device.device, &["--zero-tail"]);
        volume::assert_same(&source, &device.device, size);
        volume::assert_holds_only(&device.device, size, larger, 0);
    }
}
