//! Regular files as targets: what is refused, what is prepared, and that writes and zeros land.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::mem::MemVolume;
use crate::source::{SourceOptions, open_source};
use crate::{BufferPool, Source};

const OVERWRITE: TargetOptions = TargetOptions {
    overwrite: true,
    zero_tail: false,
    preallocate: false,
    direct: true,
};

fn options() -> TargetOptions {
    TargetOptions::default()
}

fn prepare(path: &Path, options: TargetOptions, size: u64) -> Result<Arc<dyn Sink>, StorageError> {
    TargetVolume::open(path, options)?.prepare(size)
}

#[test]
fn a_new_file_has_the_volume_s_size_and_is_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let target = TargetVolume::open(&path, options()).unwrap();
    assert_eq!(target.capacity(), None);
    assert!(
        !path.exists(),
        "nothing is created before the size is known"
    );
    let sink = target.prepare(1_000_001).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), 1_000_001);
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(sink.zeroes_for_free());
    assert_eq!(sink.allocated_bytes(), Some(0));
    sink.flush().unwrap();
    sink.flush().unwrap();
}

#[test]
fn an_existing_file_is_refused_unless_overwriting_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, "").unwrap();
    let refused = TargetVolume::open(&path, options()).unwrap_err();
    assert!(matches!(refused, StorageError::TargetExists { .. }));
    assert!(TargetVolume::open(&path, OVERWRITE).is_ok());
}

#[test]
fn a_file_that_appears_between_the_steps_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let target = TargetVolume::open(&path, options()).unwrap();
    fs::write(&path, "somebody else's").unwrap();
    let refused = target.prepare(4096).unwrap_err();
    assert!(matches!(refused, StorageError::TargetExists { .. }));
    assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
}

#[test]
fn a_larger_file_keeps_its_tail_unless_that_is_to_be_zero() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, [7; 30_000]).unwrap();
    drop(prepare(&path, OVERWRITE, 10_001).unwrap());
    assert_eq!(fs::read(&path).unwrap(), [7; 30_000], "content is kept too");
    let zero_tail = TargetOptions {
        zero_tail: true,
        ..OVERWRITE
    };
    let sink = prepare(&path, zero_tail, 10_001).unwrap();
    assert_eq!(sink.size(), 10_001);
    assert!(!sink.zeroes_for_free());
    let content = fs::read(&path).unwrap();
    assert_eq!(content[..10_001], [7; 10_001]);
    assert_eq!(content[10_001..], [0; 19_999]);
}

#[test]
fn a_smaller_file_grows_by_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, [7; 5000]).unwrap();
    drop(prepare(&path, OVERWRITE, 9000).unwrap());
    let content = fs::read(&path).unwrap();
    assert_eq!(content[..5000], [7; 5000]);
    assert_eq!(content[5000..], [0; 4000]);
}

#[test]
fn what_is_no_volume_is_named_in_the_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
    let check = |path: &Path, text: &str| {
        let refused = TargetVolume::open(path, OVERWRITE).unwrap_err().to_string();
        assert!(refused.contains(text), "{refused}");
    };
    check(
        dir.path(),
        "is a directory where a block device or a file is expected",
    );
    check(&link, "is a symbolic link that leads nowhere");
    check(Path::new("/dev/null"), "neither a regular file nor a block");
    check(&dir.path().join("missing/disk.img"), "does not exist");
    let refused = open_source(dir.path(), &SourceOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("is a directory"));
}

#[test]
fn a_target_belongs_to_one_agent_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let sink = prepare(&path, options(), 4096).unwrap();
    // Another opening conflicts as another process does: that is what these locks are about.
    let refused = TargetVolume::open(&path, OVERWRITE).unwrap_err();
    let StorageError::InUse { by, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(by, InUseBy::Lock);
    open_source(&path, &SourceOptions::default()).expect("a reader is not disturbed");
    drop(sink);
    // A program that another test is just starting holds the lock too, until it runs.
    let is_free = || TargetVolume::open(&path, OVERWRITE).is_ok();
    let is_free_soon = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(10));
        is_free()
    });
    assert!(is_free_soon, "the lock goes with the sink");
}

#[test]
fn a_running_program_is_no_target() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("program");
    fs::copy("/bin/sleep", &path).unwrap();
    let mut child = Command::new(&path).arg("60").spawn().unwrap();
    let refused = TargetVolume::open(&path, OVERWRITE).unwrap_err();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(
        refused,
        StorageError::InUse {
            by: InUseBy::Running,
            ..
        }
    ));
}

#[test]
fn space_that_is_not_there_is_refused_at_once_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let preallocate = TargetOptions {
        preallocate: true,
        ..options()
    };
    let refused = prepare(&path, preallocate, 8 << 40).unwrap_err(); // 8 TiB
    assert!(refused.is_no_space(), "{refused}");
    let before_taking_any = matches!(refused, StorageError::NotEnoughSpace { .. });
    assert!(before_taking_any, "{refused}");
    assert!(!path.exists());
    assert!(prepare(&path, options(), u64::MAX).is_err());
    assert!(!path.exists());
}

#[test]
fn preallocated_space_survives_zeroing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let preallocate = TargetOptions {
        preallocate: true,
        ..options()
    };
    let sink = prepare(&path, preallocate, 1 << 20).unwrap();
    sink.zero(ByteRange::new(0, 1 << 20)).unwrap();
    assert!(sink.allocated_bytes() >= Some(1 << 20));
    assert!(sink.zeroes_for_free());
    drop(sink);
    let sink = prepare(&path, OVERWRITE, 1 << 20).unwrap();
    sink.zero(ByteRange::new(0, 1 << 20)).unwrap();
    assert_eq!(sink.allocated_bytes(), Some(0), "a hole gives space back");
}

#[test]
fn an_empty_volume_is_a_volume() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    for preallocate in [false, true] {
        let options = TargetOptions {
            preallocate,
            ..OVERWRITE
        };
        let sink = prepare(&path, options, 0).unwrap();
        sink.write_at(0, &[]).unwrap();
        sink.zero(ByteRange::new(0, 0)).unwrap();
        sink.flush().unwrap();
        assert!(sink.write_at(0, &[1]).is_err());
    }
    let source = open_source(&path, &SourceOptions::default()).unwrap();
    assert_eq!(source.next_data(0).unwrap(), None);
    source.read_at(0, &mut []).unwrap();
}

#[test]
fn extents_cover_what_was_written_and_little_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let size = 64 << 20;
    let sink = prepare(&path, options(), size).unwrap();
    let places = [0, 5 << 20, (32 << 20) + 65536, size - 4096];
    for place in places {
        sink.write_at(place, &[1; 4096]).unwrap();
    }
    sink.flush().unwrap();
    let source = open_source(&path, &SourceOptions::default()).unwrap();
    let mut extents = Vec::new();
    let mut from = 0;
    while let Some(data) = source.next_data(from).unwrap() {
        assert!(data.start() >= from && data.end() > data.start());
        from = data.end();
        extents.push(data);
    }
    for place in places {
        let holds = |data: &ByteRange| data.start() <= place && place + 4096 <= data.end();
        assert!(extents.iter().any(holds), "{place} in {extents:?}");
    }
    let found: u64 = extents.iter().map(|data| data.len()).sum();
    assert!(found < size / 2, "holes are not read: {extents:?}");
}

#[test]
fn a_source_that_shrinks_or_changes_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, [1; 200_000]).unwrap();
    for direct in [false, true] {
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(200_000)
            .unwrap();
        let source = open_source(&path, &SourceOptions { direct }).unwrap();
        let before = source.generation().unwrap();
        source.check_size().unwrap();
        assert_eq!(before, source.generation().unwrap());
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(100_000).unwrap();
        let mut buffer = vec![0; 200_000];
        let error = source.read_at(0, &mut buffer).unwrap_err();
        assert!(
            matches!(
                error,
                StorageError::EndedEarly {
                    offset: 100_000,
                    expected: 200_000,
                    ..
                }
            ),
            "{error}"
        );
        assert!(matches!(
            source.check_size(),
            Err(StorageError::Resized {
                expected: 200_000,
                actual: 100_000,
                ..
            })
        ));
        assert_ne!(before, source.generation().unwrap());
    }
}

/// Long enough for the window of buffered writing to move on twice.
#[test]
fn buffered_and_direct_files_hold_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let size: u64 = (20 << 20) + 777;
    let byte = |offset: u64| u8::try_from((offset / 4096 * 31) % 251).unwrap();
    let pool = BufferPool::new(1 << 20, 1 << 20).unwrap();
    let paths = [true, false].map(|direct| {
        let path = dir.path().join(format!("direct-{direct}"));
        let options = TargetOptions {
            direct,
            ..options()
        };
        let sink = prepare(&path, options, size).unwrap();
        assert!(direct || !sink.writes_direct());
        let mut at = 0;
        while at < size {
            let mut buffer = pool.checkout_blocking().unwrap();
            buffer.set_len(usize::try_from((size - at).min(1 << 20)).unwrap());
            for (place, out) in (at..).zip(buffer.iter_mut()) {
                *out = byte(place);
            }
            sink.write_at(at, &buffer).unwrap();
            at += buffer.len() as u64;
        }
        sink.flush().unwrap();
        path
    });
    let [direct, buffered] = paths.map(|path| fs::read(path).unwrap());
    assert!(direct == buffered);
    assert!(
        (0..)
            .zip(&direct)
            .all(|(place, found)| byte(place) == *found)
    );
}

/// One step of a random life of a sink: a byte to write, or zeros, over a range.
#[derive(Clone, Debug)]
struct Step {
    fill: Option<u8>,
    start: usize,
    len: usize,
    /// Where in its page the written memory begins.
    memory_offset: usize,
}

/// Long enough for whole units of direct I/O between odd edges.
const MODEL_SIZE: usize = 5 * 65536 + 1234;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = prop_oneof![(0..82usize).prop_map(|page| page * 4096), 0..MODEL_SIZE];
    let len = prop_oneof![(0..20usize).prop_map(|page| page * 4096), 0..100_000usize];
    let memory_offset = prop_oneof![3 => Just(0usize), 1 => 1..4096usize];
    let step = (any::<Option<u8>>(), place, len, memory_offset).prop_map(
        |(fill, start, len, memory_offset)| Step {
            fill,
            start: start.min(MODEL_SIZE),
            len: len.min(MODEL_SIZE - start.min(MODEL_SIZE)),
            memory_offset,
        },
    );
    prop::collection::vec(step, 1..25)
}

/// Does the steps to a sink and to a vector, and compares what both hold.
fn check_against_model(sink: &dyn Sink, mut model: Vec<u8>, steps: &[Step]) {
    let pool = BufferPool::new(1 << 20, 128 << 10).unwrap();
    let writes_direct = sink.writes_direct();
    for step in steps {
        let place = step.start..step.start + step.len;
        match step.fill {
            Some(byte) => {
                let mut buffer = pool.checkout_blocking().unwrap();
                let memory = &mut buffer[step.memory_offset..][..step.len];
                memory.fill(byte);
                sink.write_at(place.start as u64, memory).unwrap();
            }
            None => {
                let range = ByteRange::new(place.start as u64, place.end as u64);
                sink.zero(range).unwrap();
            }
        }
        model[place].fill(step.fill.unwrap_or(0));
    }
    let mut read = vec![1; model.len()];
    sink.read_at(0, &mut read).unwrap();
    assert!(read == model, "before the flush");
    sink.flush().unwrap();
    sink.read_at(0, &mut read).unwrap();
    assert!(read == model, "after the flush");
    assert_eq!(
        sink.writes_direct(),
        writes_direct,
        "no direct transfer was refused, so all were aligned"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn files_hold_what_was_written_last(
        steps in steps(),
        dirty in any::<bool>(),
        direct in any::<bool>(),
        preallocate in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let old = if dirty { 0xee } else { 0 };
        if dirty {
            fs::write(&path, vec![old; MODEL_SIZE]).unwrap();
        }
        let options = TargetOptions { direct, preallocate, ..OVERWRITE };
        let sink = prepare(&path, options, MODEL_SIZE as u64).unwrap();
        check_against_model(&*sink, vec![old; MODEL_SIZE], &steps);
        prop_assert_eq!(fs::metadata(&path).unwrap().size(), MODEL_SIZE as u64);
    }

    #[test]
    fn memory_holds_what_was_written_last(steps in steps()) {
        let volume = MemVolume::holding(vec![0xee; MODEL_SIZE]);
        check_against_model(&volume, vec![0xee; MODEL_SIZE], &steps);
        prop_assert_eq!(Source::size(&volume), MODEL_SIZE as u64);
    }

    /// Every way to make zeros makes zeros.
    #[test]
    fn each_way_zeroes(steps in steps(), way in prop_oneof![Just(Way::Punch), Just(Way::ZeroRange), Just(Way::Write)]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        fs::write(&path, vec![0xee; MODEL_SIZE]).unwrap();
        let main = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let size = MODEL_SIZE as u64;
        let sink = finish(path, main, options(), way, size, ByteRange::new(size, size), Room::DirtyFile).unwrap();
        check_against_model(&*sink, vec![0xee; MODEL_SIZE], &steps);
    }
}
