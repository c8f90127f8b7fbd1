//! Volumes whose content is known: made from a seed, with holes, zeros that are written, data that
//! ends off every boundary.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::random::Random;

/// Bytes of a block, the grain of zeros.
const BLOCK: usize = 4096;

/// What a volume is made of: pieces that each are a hole, zeros, data, or data beside zeros.
const PIECE: u64 = 64 << 10;

/// What a dirty target holds.
pub const DIRT: u8 = 0xa5;

/// What was put into a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes in blocks that hold anything but zeros.
    pub data_bytes: u64,
}

/// Makes a sparse file of `size` bytes at `path`. The same seed gives the same content.
pub fn create(path: &Path, size: u64, seed: u64) -> Content {
    let file = File::create_new(path).unwrap();
    file.set_len(size).unwrap();
    fill(&file, size, seed)
}

/// Fills a device, which may hold anything before.
pub fn fill_device(path: &Path, size: u64, seed: u64) -> Content {
    let device = OpenOptions::new().write(true).open(path).unwrap();
    write_same(&device, size, 0);
    fill(&device, size, seed)
}

fn fill(file: &File, size: u64, seed: u64) -> Content {
    let mut random = Random::new(seed);
    let mut content = Content {
        size,
        data_bytes: 0,
    };
    let mut start = 0;
    while start < size {
        let piece = make_piece(&mut random, index(PIECE.min(size - start)));
        if let Some(piece) = &piece {
            file.write_all_at(piece, start).unwrap();
            let data_blocks = piece
                .chunks(BLOCK)
                .filter(|block| block.iter().any(|byte| *byte != 0));
            content.data_bytes += data_blocks.map(|block| block.len() as u64).sum::<u64>();
        }
        start += PIECE;
    }
    file.sync_all().unwrap();
    content
}

/// The next piece; `None` for a hole.
fn make_piece(random: &mut Random, len: usize) -> Option<Vec<u8>> {
    let mut piece = vec![0; len];
    match random.next() % 8 {
        0..=2 => return None,
        3 => {}
        4..=6 => random.fill(&mut piece),
        _ => {
            // A few bytes anywhere: most blocks stay zero, and one holds almost nothing.
            let at = index(random.next() % len as u64);
            let end = len.min(at + 1 + index(random.next() % 10_000));
            random.fill(&mut piece[at..end]);
            piece[at] |= 1;
        }
    }
    Some(piece)
}

/// Makes a file of `size` bytes of data at `path`, without any zero block. Its blocks are alike but
/// for their first bytes, which say where each belongs: that is made quickly.
pub fn create_dense(path: &Path, size: u64, seed: u64) {
    let file = File::create_new(path).unwrap();
    let mut piece = vec![0; index(PIECE)];
    Random::new(seed).fill(&mut piece);
    for start in (0..size).step_by(piece.len()) {
        for (at, block) in (start..).step_by(BLOCK).zip(piece.chunks_mut(BLOCK)) {
            block[..8].copy_from_slice(&at.to_le_bytes());
        }
        let piece = &piece[..index(PIECE.min(size - start))];
        file.write_all_at(piece, start).unwrap();
    }
    file.sync_all().unwrap();
}

/// Makes a file of `size` bytes of [`DIRT`] at `path`.
pub fn create_dirty(path: &Path, size: u64) {
    let file = File::create_new(path).unwrap();
    write_same(&file, size, DIRT);
    file.sync_all().unwrap();
}

fn write_same(file: &File, size: u64, byte: u8) {
    let piece = vec![byte; 1 << 20];
    for start in (0..size).step_by(piece.len()) {
        let len = index((size - start).min(piece.len() as u64));
        file.write_all_at(&piece[..len], start).unwrap();
    }
}

/// Expects that the first `size` bytes of two volumes are the same.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path, size: u64) {
    let (mut in_left, mut in_right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let (left_file, right_file) = (File::open(left).unwrap(), File::open(right).unwrap());
    for start in (0..size).step_by(in_left.len()) {
        let len = index((size - start).min(in_left.len() as u64));
        left_file.read_exact_at(&mut in_left[..len], start).unwrap();
        right_file
            .read_exact_at(&mut in_right[..len], start)
            .unwrap();
        if in_left[..len] == in_right[..len] {
            continue;
        }
        let differs_at = (0..len).find(|at| in_left[*at] != in_right[*at]);
        if let Some(at) = differs_at {
            let offset = start + at as u64;
            panic!(
                "{} holds {:#04x} and {} holds {:#04x} at byte {offset}",
                left.display(),
                in_left[at],
                right.display(),
                in_right[at]
            );
        }
    }
}

/// Expects that every byte of a volume from `start` to `end` is `byte`.
#[track_caller]
pub fn assert_holds_only(path: &Path, start: u64, end: u64, byte: u8) {
    let content = read(path, start, end);
    if content == vec![byte; content.len()] {
        return;
    }
    let differs_at = content.iter().position(|found| *found != byte);
    assert_eq!(
        differs_at.map(|at| (start + at as u64, content[at])),
        None,
        "{}",
        path.display()
    );
}

/// The bytes of a volume from `start` to `end`.
#[must_use]
pub fn read(path: &Path, start: u64, end: u64) -> Vec<u8> {
    let mut content = vec![0; index(end - start)];
    let file = File::open(path).unwrap();
    file.read_exact_at(&mut content, start).unwrap();
    content
}

/// Changes one byte of a volume.
pub fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
    file.sync_all().unwrap();
}

/// Bytes that a file takes on its filesystem, once what is on its way has arrived.
#[must_use]
pub fn allocated_bytes(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}
