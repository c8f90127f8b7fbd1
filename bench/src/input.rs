//! What is cloned: volumes made from a fixed seed, the same on every machine.
//!
//! Random data is BLAKE3's output, so nothing compresses it and nothing deduplicates it. Files are
//! cached by a name that says what is in them, and appear under that name only when complete.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::error::{At as _, Error};
use crate::signals;
use crate::size::{GIB, MIB, PIECE, Size, pieces};
use crate::tools::{self, Tools};

/// Changes when generated volumes should differ from those of older reports.
pub(crate) const SEED: u64 = 1;

/// A file of `size` random bytes in `directory`.
pub(crate) fn dense(directory: &Path, size: Size) -> Result<PathBuf, Error> {
    cached(directory, &format!("dense-{size}-{SEED}.img"), |path| {
        let file = File::create(path).at("create", path)?;
        fill(&file, path, 0..size.0)?;
        file.sync_all().at("flush", path)
    })
}

/// A file of `size` bytes of which 1/16 is data, in islands of 4 MiB.
pub(crate) fn sparse(directory: &Path, size: Size) -> Result<PathBuf, Error> {
    /// Large enough to keep a disk streaming, small enough that holes are met often.
    const ISLAND: u64 = 4 * MIB;
    cached(directory, &format!("sparse-{size}-{SEED}.img"), |path| {
        let file = File::create(path).at("create", path)?;
        file.set_len(size.0).at("resize", path)?;
        for island in (0..size.0 / ISLAND).step_by(16) {
            let start = island * ISLAND;
            fill(&file, path, start..start + ISLAND)?;
        }
        file.sync_all().at("flush", path)
    })
}

/// An ext4 image that holds a copy of `tree`, with a third of it free.
pub(crate) fn image(directory: &Path, tree: &Path, tools: &Tools) -> Result<PathBuf, Error> {
    let name = tree.to_string_lossy().replace('/', "-");
    cached(directory, &format!("ext4{name}.img"), |path| {
        let (bytes, entries) = measure(tree)?;
        let size = (bytes + bytes / 2).next_multiple_of(GIB);
        let mut mkfs = tools.command("mkfs.ext4");
        mkfs.args(["-q", "-F", "-U", UUID, "-E"])
            .arg(format!("hash_seed={UUID}"));
        mkfs.args(["-N", &(entries * 2).to_string()])
            .arg("-d")
            .arg(tree);
        tools::run(mkfs.arg(path).arg(format!("{}M", size / MIB)))?;
        let file = File::open(path).at("open", path)?;
        file.sync_all().at("flush", path)
    })
}

/// Writes the random bytes of `range`; the same range always gets the same bytes.
pub(crate) fn fill(file: &File, path: &Path, range: Range<u64>) -> Result<(), Error> {
    let mut random = blake3::Hasher::new_derive_key("volferry bench 2026 random volume")
        .update(&SEED.to_le_bytes())
        .finalize_xof();
    random.set_position(range.start);
    let mut buffer = vec![0; PIECE];
    for (offset, len) in pieces(range) {
        signals::check()?;
        random.fill(&mut buffer[..len]);
        file.write_all_at(&buffer[..len], offset)
            .at("write", path)?;
    }
    Ok(())
}

/// The file `name`, made by `make` under another name unless it exists.
fn cached(
    directory: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let path = directory.join(name);
    if !path.exists() {
        let part = directory.join(format!("{name}.part"));
        make(&part)?;
        fs::rename(&part, &path).at("rename", &part)?;
    }
    Ok(path)
}

/// Allocated bytes and number of entries of a tree on one filesystem.
fn measure(tree: &Path) -> Result<(u64, u64), Error> {
    let device = fs::symlink_metadata(tree).at("look at", tree)?.dev();
    let (mut bytes, mut entries) = (0, 0);
    let mut directories = vec![tree.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).at("list", &directory)? {
            let entry = entry.at("list", &directory)?;
            let metadata = entry.metadata().at("look at", entry.path())?;
            bytes += metadata.blocks() * 512;
            entries += 1;
            if metadata.is_dir() && metadata.dev() == device {
                directories.push(entry.path());
            }
        }
    }
    Ok((bytes, entries))
}

/// For the filesystem, so that equal trees make equal images.
const UUID: &str = "0f7b0d4e-5d3c-4f0e-9c0b-766f6c666572";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_range_always_gets_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let whole = dense(directory.path(), Size(3 * MIB)).unwrap();
        let part = directory.path().join("part");
        let file = File::create(&part).unwrap();
        fill(&file, &part, MIB..2 * MIB).unwrap();
        let range = PIECE..2 * PIECE;
        assert_eq!(
            fs::read(part).unwrap()[range.clone()],
            fs::read(whole).unwrap()[range]
        );
    }

    #[test]
    fn a_sixteenth_of_a_sparse_volume_is_data() {
        let directory = tempfile::tempdir().unwrap();
        let path = sparse(directory.path(), Size(128 * MIB)).unwrap();
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(metadata.len(), 128 * MIB);
        assert_eq!(metadata.blocks() * 512, 8 * MIB);
    }
}
