//! Volumes on block devices, and files on the filesystems of these.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use volferry_protocol::geometry::ByteRange;
use volferry_storage::{
    BufferPool, InUseBy, SameReason, Sink, SourceOptions, StorageError, TargetOptions,
    TargetVolume, open_source, same_volume,
};

use crate::support::{Loop, Mount, run, try_run};

const MIB: u64 = 1 << 20;

#[test]
fn a_hole_in_a_dirty_device_reads_zero_and_gives_its_space_back() {
    let Some(device) = Loop::filled(16 * MIB, 0xee, &[]) else {
        return;
    };
    let before = device.allocated_bytes();
    let target = open(&device.device).unwrap();
    assert_eq!(target.capacity(), Some(16 * MIB));
    let sink = target.prepare(16 * MIB).unwrap();
    assert!(!sink.zeroes_for_free());
    assert_eq!(sink.allocated_bytes(), None);
    let hole = ByteRange::new(MIB + 1, 9 * MIB + 513);
    sink.zero(hole).unwrap();
    sink.flush().unwrap();
    let given_back = before - device.allocated_bytes();
    assert!(given_back >= 8 * MIB - 8192, "{given_back} bytes");
    drop(sink);
    let mut model = vec![0xee; 16 << 20];
    model[indices(hole)].fill(0);
    assert!(read_all(&device.device, true) == model);
}

#[test]
fn preallocating_keeps_the_space_of_zeros() {
    let Some(device) = Loop::filled(4 * MIB, 0xee, &[]) else {
        return;
    };
    let options = TargetOptions {
        preallocate: true,
        ..TargetOptions::default()
    };
    let before = device.allocated_bytes();
    let sink = sink(&device.device, options, 4 * MIB);
    sink.zero(ByteRange::new(0, 4 * MIB)).unwrap();
    sink.flush().unwrap();
    assert!(device.allocated_bytes() >= before);
    drop(sink);
    assert!(holds_only(0, &read_all(&device.device, true)));
}

#[test]
fn large_sectors_and_odd_volumes_go_together() {
    for sector in ["512", "4096"] {
        let Some(device) = Loop::filled(4 * MIB, 0xee, &["-b", sector]) else {
            return;
        };
        for direct in [true, false] {
            let options = TargetOptions {
                direct,
                ..TargetOptions::default()
            };
            let size = 2 * MIB + 4096 + 777;
            let sink = sink(&device.device, options, size);
            assert_eq!(sink.writes_direct(), direct);
            sink.zero(ByteRange::new(0, size)).unwrap();
            sink.write_at(2 * MIB, &[7; 4096 + 777]).unwrap();
            sink.flush().unwrap();
            let mut read = vec![1; 4096 + 777];
            sink.read_at(2 * MIB, &mut read).unwrap();
            assert_eq!(read, [7; 4096 + 777]);
            drop(sink);
            let content = read_all(&device.device, !direct);
            assert!(holds_only(0, &content[..2 << 20]));
            let tail = &content[indices(ByteRange::new(size, 4 * MIB))];
            assert!(holds_only(0xee, tail), "the tail is kept");
        }
        let options = TargetOptions {
            zero_tail: true,
            ..TargetOptions::default()
        };
        drop(sink(&device.device, options, MIB + 99));
        let content = read_all(&device.device, true);
        assert!(holds_only(0, &content[(1 << 20) + 99..]));
    }
}

#[test]
fn a_device_of_odd_sectors_is_read_and_zeroed_to_its_end() {
    let size = MIB + 3 * 512;
    let Some(device) = Loop::filled(size, 0xee, &[]) else {
        return;
    };
    for direct in [true, false] {
        let content = read_all(&device.device, direct);
        assert_eq!(content.len() as u64, size);
        assert!(holds_only(0xee, &content));
    }
    let sink = sink(&device.device, TargetOptions::default(), size);
    let end = ByteRange::new(MIB - 1, size);
    sink.zero(end).unwrap();
    sink.flush().unwrap();
    drop(sink);
    assert!(holds_only(0, &read_all(&device.device, true)[indices(end)]));
}

#[test]
fn a_device_below_the_volume_is_refused_untouched() {
    let Some(device) = Loop::filled(MIB, 0xee, &[]) else {
        return;
    };
    let refused = open(&device.device).unwrap().prepare(MIB + 1).unwrap_err();
    assert!(matches!(
        refused,
        StorageError::TargetTooSmall { capacity: MIB, needed, .. } if needed == MIB + 1
    ));
    assert!(holds_only(0xee, &read_all(&device.device, true)));
}

#[test]
fn a_mounted_or_claimed_device_is_refused() {
    let Some(device) = Loop::filled(32 * MIB, 0, &[]) else {
        return;
    };
    let claimed = open(&device.device).unwrap();
    let refused = open(&device.device).unwrap_err();
    assert_eq!(in_use_by(refused), InUseBy::Holder);
    drop(claimed);
    let Some(_mount) = Mount::of(&device, "mkfs.ext4") else {
        return;
    };
    let refused = open(&device.device).unwrap_err();
    assert_eq!(in_use_by(refused), InUseBy::Holder);
}

#[test]
fn a_read_only_device_is_refused() {
    let Some(device) = Loop::filled(MIB, 0, &["-r"]) else {
        return;
    };
    let refused = open(&device.device).unwrap_err();
    assert!(
        matches!(refused, StorageError::ReadOnly { .. }),
        "{refused}"
    );
    assert!(refused.is_read_only());
}

#[test]
fn a_file_in_use_is_refused() {
    let overwrite = TargetOptions {
        overwrite: true,
        ..TargetOptions::default()
    };
    let Some(device) = Loop::filled(MIB, 0, &[]) else {
        return;
    };
    let refused = TargetVolume::open(&device.backing, overwrite).unwrap_err();
    let expected = InUseBy::LoopDevice(device.device.clone());
    assert_eq!(in_use_by(refused), expected);

    let dir = tempfile::tempdir().unwrap();
    let swap = dir.path().join("swap");
    fs::write(&swap, vec![0; 8 << 20]).unwrap();
    if try_run("mkswap", &[], &swap).is_none() || try_run("swapon", &[], &swap).is_none() {
        return;
    }
    let refused = TargetVolume::open(&swap, overwrite).map(|_| ());
    run("swapoff", &[], &swap).unwrap();
    assert_eq!(in_use_by(refused.unwrap_err()), InUseBy::Swap);
}

#[test]
fn a_loop_device_and_its_backing_file_are_the_same_volume() {
    let Some(device) = Loop::filled(MIB, 0, &[]) else {
        return;
    };
    let Some(other) = Loop::filled(MIB, 0, &[]) else {
        return;
    };
    let check = |a: &Path, b: &Path, expected| {
        assert_eq!(same_volume(a, b).unwrap(), expected, "{a:?} {b:?}");
    };
    check(&device.device, &device.backing, Some(SameReason::Within));
    check(&device.backing, &device.device, Some(SameReason::Within));
    check(&device.device, &device.device, Some(SameReason::Device));
    check(&device.device, &other.device, None);
    check(&device.device, &other.backing, None);
}

#[test]
fn files_work_on_each_filesystem() {
    for mkfs in ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"] {
        let Some(device) = Loop::filled(320 * MIB, 0, &[]) else {
            return;
        };
        let Some(mount) = Mount::of(&device, mkfs) else {
            continue;
        };
        for direct in [true, false] {
            check_file(&mount.path().join("disk.img"), direct);
        }
    }
}

/// Writes, zeroes and reads a sparse file of odd size.
fn check_file(path: &Path, direct: bool) {
    let options = TargetOptions {
        overwrite: true,
        direct,
        ..TargetOptions::default()
    };
    let size = 40 * MIB + 1234;
    let sink = sink(path, options, size);
    let mut model = vec![0; indices(ByteRange::new(0, size)).len()];
    let end = ByteRange::new(size / 4096 * 4096 - 4096, size);
    let first = ByteRange::new(0, 8 * MIB);
    let middle = ByteRange::new(20 * MIB, 20 * MIB + 65536);
    for (range, fill) in [(first, 1), (middle, 2), (end, 3)] {
        model[indices(range)].fill(fill);
        sink.write_at(range.start(), &model[indices(range)])
            .unwrap();
    }
    let hole = ByteRange::new(4096, 5 * MIB);
    for range in [hole, ByteRange::new(size - 4000, size - 3)] {
        model[indices(range)].fill(0);
        sink.zero(range).unwrap();
    }
    sink.flush().unwrap();
    let allocated = sink.allocated_bytes().unwrap();
    assert!(allocated < 6 * MIB, "{path:?} takes {allocated} bytes");
    drop(sink);
    assert!(read_all(path, direct) == model, "{path:?}");
    assert!(read_all(path, !direct) == model, "{path:?}");
    let source = open_source(path, &SourceOptions { direct }).unwrap();
    let data = source.next_data(6 * MIB).unwrap().unwrap();
    assert_eq!(data, ByteRange::new(6 * MIB, 8 * MIB));
    let data = source.next_data(8 * MIB).unwrap().unwrap();
    assert_eq!(data.start(), 20 * MIB);
}

#[test]
fn a_full_filesystem_says_so() {
    let Some(device) = Loop::filled(32 * MIB, 0, &[]) else {
        return;
    };
    let Some(mount) = Mount::of(&device, "mkfs.ext4") else {
        return;
    };
    let path = mount.path().join("disk.img");
    for direct in [true, false] {
        let options = TargetOptions {
            direct,
            ..TargetOptions::default()
        };
        let sink = sink(&path, options, 64 * MIB);
        let bytes = vec![1; 1 << 20];
        let refused = (0..64).find_map(|index| sink.write_at(index * MIB, &bytes).err());
        assert!(refused.unwrap().is_no_space());
        drop(sink);
        fs::remove_file(&path).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(6) })]

    /// A dirty device holds what was written or zeroed last, whatever its sectors.
    #[test]
    fn devices_hold_what_was_written_last(
        sector in prop_oneof![Just("512"), Just("4096")],
        direct in any::<bool>(),
        steps in prop::collection::vec((any::<Option<u8>>(), 0..512u64, 0..300_000u64), 1..20),
    ) {
        let volume = ByteRange::new(0, 2 * MIB + 999);
        let Some(device) = Loop::filled(3 * MIB, 0xee, &["-b", sector]) else {
            return Ok(());
        };
        let options = TargetOptions { direct, ..TargetOptions::default() };
        let sink = sink(&device.device, options, volume.end());
        let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
        let mut model = vec![0xee; 3 << 20];
        for (fill, page, len) in steps {
            let range = ByteRange::new(page * 4096, page * 4096 + len).intersect(volume);
            model[indices(range)].fill(fill.unwrap_or(0));
            if fill.is_none() {
                sink.zero(range).unwrap();
                continue;
            }
            let mut buffer = pool.checkout_blocking().unwrap();
            buffer.set_len(indices(range).len());
            buffer.copy_from_slice(&model[indices(range)]);
            sink.write_at(range.start(), &buffer).unwrap();
        }
        sink.flush().unwrap();
        drop(sink);
        prop_assert!(read_all(&device.device, true) == model);
        prop_assert!(read_all(&device.device, false) == model);
    }
}

fn open(path: &Path) -> Result<TargetVolume, StorageError> {
    TargetVolume::open(path, TargetOptions::default())
}

fn sink(path: &Path, options: TargetOptions, size: u64) -> Arc<dyn Sink> {
    let target = TargetVolume::open(path, options).unwrap();
    target.prepare(size).unwrap()
}

fn in_use_by(refused: StorageError) -> InUseBy {
    match refused {
        StorageError::InUse { by, .. } => by,
        other => panic!("{other}"),
    }
}

fn read_all(path: &Path, direct: bool) -> Vec<u8> {
    let source = open_source(path, &SourceOptions { direct }).unwrap();
    let size = usize::try_from(source.size()).unwrap();
    let pool = BufferPool::new(size, size).unwrap();
    let mut buffer = pool.checkout_blocking().unwrap();
    source.read_at(0, &mut buffer).unwrap();
    source.check_size().unwrap();
    buffer.to_vec()
}

fn holds_only(byte: u8, content: &[u8]) -> bool {
    content.iter().all(|found| *found == byte)
}

fn indices(range: ByteRange) -> std::ops::Range<usize> {
    let index = |offset| usize::try_from(offset).unwrap();
    index(range.start())..index(range.end())
}
