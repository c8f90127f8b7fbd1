//! The volumes that are cloned: made from a seed, or the user's own.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use serde::{Deserialize, Serialize};
use volferry_agent::failure::of_storage;
use volferry_agent::progress::End;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ByteRange, ChunkIndex, ChunkRange, ChunkSize, Geometry};
use volferry_protocol::zero_map::is_zero;
use volferry_storage::{
    BufferPool, Source, SourceOptions, StorageError, TargetOptions, TargetVolume, open_source,
};

use crate::profile::{BLOCK_LEN, Generator, ISLAND_LEN, Profile};
use crate::stop::Stop;

/// A volume to be cloned.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The profile's name, `files`, or `source` for the user's own.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What is known of it.
    pub facts: Facts,
}

impl Shape {
    /// Whether it is a block volume, and no tree.
    #[must_use]
    pub const fn is_volume(&self) -> bool {
        self.facts.names == 0
    }
}

/// What a clone of a volume has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Bytes of the volume, or of a tree's files.
    pub logical_bytes: u64,
    /// Bytes that the source has to read: what is no hole, of a volume of the user's in whole chunks.
    pub read_bytes: u64,
    /// Bytes in blocks that hold data.
    pub data_bytes: u64,
    /// Names of a tree; 0 for a block volume.
    pub names: u64,
}

/// Written at once.
const PIECE_LEN: usize = 1 << 20;

/// Files of a directory in the generated tree.
const FILES_PER_DIRECTORY: u64 = 100;

/// The name of the generated tree, and of its clone in reports.
const TREE: &str = "files";

/// Bytes of the smallest file; each of six kinds is twice as large as the one before.
const FILE_LEN_MIN: usize = 1 << 10;
const FILE_KINDS: u64 = 6;

/// Makes a file of `size` bytes like `profile`.
///
/// # Errors
/// When it can't be written, or the end was asked for.
pub fn make_volume(
    directory: &Path,
    profile: Profile,
    size: u64,
    seed: u64,
    stop: &Stop,
) -> Result<Shape, Failure> {
    let name = profile.to_string();
    let path = directory.join(format!("{name}.img"));
    let failed = |error: std::io::Error| cannot_make(&path, &error);
    let file = File::create_new(&path).map_err(failed)?;
    file.set_len(size).map_err(failed)?;
    let mut piece = vec![0; PIECE_LEN];
    let write = |offset, piece: Option<&[u8]>| match piece {
        Some(piece) => file.write_all_at(piece, offset).map_err(failed),
        None => Ok(()),
    };
    let facts = generate(profile, size, seed, &mut piece, stop, write)?;
    file.sync_all().map_err(failed)?;
    evict(&file);
    Ok(Shape { name, path, facts })
}

/// Writes all of the block device at `path` like `profile`. Where [`make_volume`] leaves holes it has
/// zeros, and since nobody can tell them from data all of it has to be read.
///
/// # Errors
/// When it can't be written, or the end was asked for.
pub fn fill_device(
    path: &Path,
    profile: Profile,
    seed: u64,
    direct: bool,
    stop: &Stop,
) -> Result<Shape, Failure> {
    let failed = |error: StorageError| of_storage(End::Target, &error);
    let size = open_source(path, &SourceOptions { direct }).map_err(failed)?;
    let size = size.size();
    let options = TargetOptions {
        direct,
        overwrite: true,
        ..TargetOptions::default()
    };
    let sink = TargetVolume::open(path, options)
        .and_then(|volume| volume.prepare(size))
        .map_err(failed)?;
    // What is written past the page cache has to be aligned.
    let pool = BufferPool::new(PIECE_LEN, PIECE_LEN)
        .map_err(|error| Failure::internal(error.to_string()))?;
    let mut piece = pool
        .checkout_blocking()
        .ok_or_else(|| Failure::internal("no memory to fill the device from".to_owned()))?;
    let write = |offset, piece: Option<&[u8]>| {
        let written = match piece {
            Some(piece) => sink.write_at(offset, piece),
            None => {
                let end = size.min(offset + PIECE_LEN as u64);
                sink.zero(ByteRange::new(offset, end))
            }
        };
        written.map_err(failed)
    };
    let mut facts = generate(profile, size, seed, &mut piece, stop, write)?;
    facts.read_bytes = size;
    sink.flush().map_err(failed)?;
    Ok(Shape {
        name: profile.to_string(),
        path: path.to_owned(),
        facts,
    })
}

/// Gives `write` all of a volume in pieces as long as `piece` and in order; of what is a hole only the
/// place.
fn generate(
    profile: Profile,
    size: u64,
    seed: u64,
    piece: &mut [u8],
    stop: &Stop,
    mut write: impl FnMut(u64, Option<&[u8]>) -> Result<(), Failure>,
) -> Result<Facts, Failure> {
    let generator = Generator::new(profile, seed);
    let mut facts = Facts {
        logical_bytes: size,
        ..Facts::default()
    };
    for offset in (0..size).step_by(piece.len().max(1)) {
        stop.check()?;
        if !generator.is_data(offset / ISLAND_LEN) {
            write(offset, None)?;
            continue;
        }
        let len = usize::try_from(size - offset).map_or(piece.len(), |left| left.min(piece.len()));
        let piece = piece.get_mut(..len).unwrap_or_default();
        generator.fill(offset / BLOCK_LEN as u64, piece);
        write(offset, Some(piece))?;
        facts.read_bytes += len as u64;
        let data = piece.chunks(BLOCK_LEN).filter(|block| !is_zero(block));
        facts.data_bytes += data.map(|block| block.len() as u64).sum::<u64>();
    }
    Ok(facts)
}

/// Makes a tree of `files` small files, a hundred in a directory.
///
/// # Errors
/// When it can't be written, or the end was asked for.
pub fn make_tree(
    directory: &Path,
    profile: Profile,
    files: u64,
    seed: u64,
    stop: &Stop,
) -> Result<Shape, Failure> {
    let root = directory.join(TREE);
    let failed = |error| cannot_make(&root, &error);
    fs::create_dir(&root).map_err(failed)?;
    let generator = Generator::new(profile, seed);
    let mut facts = Facts {
        names: 1,
        ..Facts::default()
    };
    let mut content = vec![0; FILE_LEN_MIN << (FILE_KINDS - 1)];
    let mut place = root.clone();
    for number in 0..files {
        if number % FILES_PER_DIRECTORY == 0 {
            stop.check()?;
            place = root.join(format!("d{:06}", number / FILES_PER_DIRECTORY));
            fs::create_dir(&place).map_err(failed)?;
            facts.names += 1;
        }
        let len = FILE_LEN_MIN << (number % FILE_KINDS);
        let content = content.get_mut(..len).unwrap_or_default();
        generator.fill(number << 32, content);
        fs::write(place.join(format!("f{number:08}")), &*content).map_err(failed)?;
        facts.names += 1;
        facts.logical_bytes += len as u64;
    }
    facts.read_bytes = facts.logical_bytes;
    facts.data_bytes = facts.logical_bytes;
    let opened = File::open(&root).map_err(failed)?;
    rustix::fs::syncfs(opened).map_err(|errno| failed(errno.into()))?;
    evict_tree(&root);
    Ok(Shape {
        name: TREE.into(),
        path: root,
        facts,
    })
}

/// Removes the tree that an earlier pod made on this volume, of another profile.
///
/// # Errors
/// When it can't be removed.
pub fn remove_tree(directory: &Path) -> Result<(), Failure> {
    let root = directory.join(TREE);
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(cannot_make(&root, &error)),
        _ => Ok(()),
    }
}

/// Bytes that a tree of so many files takes, at most.
#[must_use]
pub const fn tree_bytes(files: u64) -> u64 {
    /// Of a directory, and of what a file is rounded up to.
    const BLOCK: u64 = 4096;
    let all_kinds = (FILE_LEN_MIN as u64) * ((1 << FILE_KINDS) - 1) + FILE_KINDS * BLOCK;
    files.div_ceil(FILE_KINDS).saturating_mul(all_kinds)
}

/// Takes what is in the page cache of a file out of it, as far as it is on the disk.
pub fn evict(file: &File) {
    // Where the filesystem can't, the clone is warm, and the report says which way it was read.
    let _warm = fadvise(file, 0, None, Advice::DontNeed);
}

/// The same for all files of a tree.
pub fn evict_tree(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => evict_tree(&entry.path()),
            Ok(kind) if kind.is_file() => {
                if let Ok(file) = File::open(entry.path()) {
                    evict(&file);
                }
            }
            _ => {}
        }
    }
}

/// Bytes of the volume at `path`, of the chunks in which something is no hole, and of just that. What of it is
/// data shows when it is read; until then all of it counts.
///
/// # Errors
/// When it can't be opened, or its holes can't be asked for.
pub fn look_at_volume(path: &Path, chunk_size: ChunkSize) -> Result<Facts, Failure> {
    let failed = |error: StorageError| of_storage(End::Source, &error);
    let source = open_source(path, &SourceOptions::default()).map_err(failed)?;
    let geometry = Geometry::new(source.size(), chunk_size)
        .map_err(|error| Failure::new(FailureCode::SourceOpen, error.to_string()))?;
    let mut facts = Facts {
        logical_bytes: source.size(),
        ..Facts::default()
    };
    for data in data_of(&*source, chunk_size) {
        let (extent, chunks) = data.map_err(failed)?;
        facts.data_bytes += extent.len();
        facts.read_bytes += geometry.bytes_of(chunks).len();
    }
    Ok(facts)
}

/// What of a volume is no hole, in order: extents, and the chunks that none before touches.
pub(crate) fn data_of(
    source: &dyn Source,
    chunk_size: ChunkSize,
) -> impl Iterator<Item = Result<(ByteRange, ChunkRange), StorageError>> {
    let chunk_len = u64::from(chunk_size.bytes());
    let (mut at, mut next) = (0, 0);
    std::iter::from_fn(move || {
        let extent = source.next_data(at).transpose()?;
        Some(extent.map(|extent| {
            at = extent.end();
            let end = extent.end().div_ceil(chunk_len);
            let chunks = ChunkRange {
                start: ChunkIndex(end.min(next.max(extent.start() / chunk_len))),
                end: ChunkIndex(end),
            };
            next = end;
            (extent, chunks)
        }))
    })
}

/// Names and bytes of a tree on one filesystem.
///
/// # Errors
/// When it has more than `names_max` names, some of it may not be looked at, or the end was asked for.
pub fn look_at_tree(root: &Path, names_max: u64, stop: &Stop) -> Result<Facts, Failure> {
    let failed = |path: &Path, error: std::io::Error| {
        let text = format!("{} can't be looked at: {error}", path.display());
        Failure::new(FailureCode::SourceOpen, text)
    };
    let device = fs::symlink_metadata(root).map_err(|error| failed(root, error))?;
    let device = device.dev();
    let mut facts = Facts {
        names: 1,
        ..Facts::default()
    };
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        stop.check()?;
        let entries = match fs::read_dir(&directory) {
            // Removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.map_err(|error| failed(&directory, error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| failed(&directory, error))?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata.map_err(|error| failed(&entry.path(), error))?,
            };
            // A clone leaves it out, too.
            if directory == root && entry.file_name() == "lost+found" {
                continue;
            }
            facts.names += 1;
            if facts.names > names_max {
                let text = format!("{} holds more than {names_max} names", root.display());
                return Err(Failure::new(FailureCode::Usage, text));
            }
            if metadata.is_dir() && metadata.dev() == device {
                waiting.push(entry.path());
            } else if metadata.is_file() {
                facts.logical_bytes += metadata.len();
                facts.read_bytes += metadata.len().min(metadata.blocks() * 512);
            }
        }
    }
    facts.data_bytes = facts.read_bytes;
    Ok(facts)
}

fn cannot_make(path: &Path, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::StorageFull => FailureCode::TargetNoSpace,
        _ => FailureCode::TargetWrite,
    };
    let text = format!(
        "the source {} can't be made: {error}; choose another place by --scratch",
        path.display()
    );
    Failure::new(code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_as_its_facts_say_and_comes_again_from_its_seed() {
        let dir = tempfile::tempdir().unwrap();
        let size = 10 * ISLAND_LEN + 5000;
        let make = |name: &str, seed| {
            let place = dir.path().join(name);
            fs::create_dir(&place).unwrap();
            make_volume(&place, Profile::Vm, size, seed, &Stop::default()).unwrap()
        };
        let one = make("one", 1);
        let bytes = fs::read(&one.path).unwrap();
        assert_eq!(bytes.len() as u64, size);
        let data = bytes.chunks(BLOCK_LEN).filter(|block| !is_zero(block));
        let data_bytes: u64 = data.map(|block| block.len() as u64).sum();
        assert_eq!(one.facts.data_bytes, data_bytes);
        assert_eq!(one.facts.read_bytes, 4 * ISLAND_LEN);
        assert_eq!(
            fs::metadata(&one.path).unwrap().blocks() * 512,
            one.facts.read_bytes
        );
        assert_eq!(fs::read(make("same", 1).path).unwrap(), bytes);
        assert_ne!(fs::read(make("other", 2).path).unwrap(), bytes);
    }

    #[test]
    fn a_chunk_is_read_whole_and_once_for_all_that_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thin");
        let file = File::create_new(&path).unwrap();
        let chunk_size = ChunkSize::new(1 << 20).unwrap();
        let chunk_len = u64::from(chunk_size.bytes());
        file.set_len(20 * chunk_len + 4096).unwrap();
        let block = [7; BLOCK_LEN];
        // Twice in one, across two, in the last, which is shorter.
        for offset in [
            chunk_len,
            chunk_len + chunk_len / 2,
            5 * chunk_len,
            8 * chunk_len - 4096,
            8 * chunk_len,
            20 * chunk_len,
        ] {
            file.write_all_at(&block, offset).unwrap();
        }
        let facts = look_at_volume(&path, chunk_size).unwrap();
        assert_eq!(facts.data_bytes, 6 * BLOCK_LEN as u64);
        assert_eq!(facts.read_bytes, 4 * chunk_len + 4096);
        let source = open_source(&path, &SourceOptions::default()).unwrap();
        let chunks = data_of(&*source, chunk_size).map(|data| data.unwrap().1);
        let chunks: Vec<_> = chunks
            .flat_map(|range| range.start.0..range.end.0)
            .collect();
        assert_eq!(chunks, [1, 5, 7, 8, 20]);
    }

    #[test]
    fn a_tree_of_another_profile_takes_the_place_of_one() {
        let dir = tempfile::tempdir().unwrap();
        for profile in [Profile::Random, Profile::Text] {
            remove_tree(dir.path()).unwrap();
            let made = make_tree(dir.path(), profile, 3, 1, &Stop::default()).unwrap();
            assert_eq!(made.facts.names, 5);
        }
    }

    #[test]
    fn a_tree_is_as_its_facts_say() {
        let dir = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        let made = make_tree(dir.path(), Profile::Text, 250, 1, &stop).unwrap();
        let seen = look_at_tree(&made.path, u64::MAX, &stop).unwrap();
        assert_eq!(made.facts.names, 1 + 3 + 250);
        assert_eq!(made.facts.names, seen.names);
        assert_eq!(made.facts.logical_bytes, seen.logical_bytes);
        assert!(seen.logical_bytes <= tree_bytes(250));
        let large = look_at_tree(&made.path, 100, &stop).unwrap_err();
        assert!(large.text.contains("more than 100 names"), "{large}");
        stop.request();
        assert!(make_tree(&dir.path().join("files"), Profile::Text, 1, 1, &stop).is_err());
    }
}
