//! Files that are written beside what a program does: receipts, manifests, traces, reports.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use volferry_protocol::failure::{Failure, FailureCode};
use volferry_storage::same_volume;

/// Files that can be written and are no part of a volume. Those that had to be made for it and hold nothing
/// when this is dropped are removed again.
#[derive(Debug)]
pub struct OutputFiles<'a> {
    volumes: Vec<&'a Path>,
    named: Vec<(&'static str, &'a Path)>,
    made: Vec<PathBuf>,
}

impl<'a> OutputFiles<'a> {
    /// None yet, beside these volumes. A volume may be none that is there.
    #[must_use]
    pub const fn beside(volumes: Vec<&'a Path>) -> Self {
        Self {
            volumes,
            named: Vec::new(),
            made: Vec::new(),
        }
    }

    /// Adds the file that is called `what`, where one is wanted: at the end of a long clone is no time to find out
    /// that it can't be written. Makes it if it isn't there, and leaves alone what it holds.
    ///
    /// # Errors
    /// When it can't be written, one of the volumes would not be the same afterwards, or it was added as something
    /// else.
    pub fn add(&mut self, what: &'static str, path: Option<&'a Path>) -> Result<(), Failure> {
        let Some(path) = path else { return Ok(()) };
        let refused = |would: &str| {
            let text = format!(
                "{would} by the {what} {}; name a file elsewhere",
                path.display()
            );
            Err(Failure::new(FailureCode::Usage, text))
        };
        let found = fs::metadata(path).ok();
        if found.is_some_and(|found| found.file_type().is_block_device()) {
            return refused("a block device would be written over");
        }
        // Made first: a volume that isn't there yet may be wanted at the same place, by whatever way.
        self.make(what, path)?;
        for volume in &self.volumes {
            if are_same(path, volume) || lies_within(path, volume) {
                return refused(&format!("the volume {} would be changed", volume.display()));
            }
        }
        let is_file = fs::metadata(path).is_ok_and(|made| made.is_file());
        let mut named = self.named.iter();
        if let Some((other, _)) = named.find(|(_, other)| is_file && are_same(path, other)) {
            return refused(&format!("the {other} would be written over"));
        }
        self.named.push((what, path));
        Ok(())
    }

    fn make(&mut self, what: &str, path: &Path) -> Result<(), Failure> {
        let is_new = fs::metadata(path).is_err();
        let opened = OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|error| unwritable(what, path, &error))?;
        if is_new {
            // Where a link leads, not the link.
            self.made.extend(path.canonicalize());
        }
        Ok(())
    }
}

impl Drop for OutputFiles<'_> {
    fn drop(&mut self) {
        for path in &self.made {
            if fs::metadata(path).is_ok_and(|made| made.is_file() && made.len() == 0) {
                // Nothing is lost where it stays.
                let _removed = fs::remove_file(path);
            }
        }
    }
}

/// Writes a whole file, which is called `what`.
///
/// # Errors
/// When it can't be written.
pub fn write(what: &str, path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| unwritable(what, path, &error))
}

/// The failure of a file that can't be written.
#[must_use]
pub fn unwritable(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    let text = format!("the {what} {} can't be written: {error}", path.display());
    Failure::new(FailureCode::Usage, text)
}

fn are_same(path: &Path, other: &Path) -> bool {
    // Where one of the two can't be inspected, opening it says why, and better.
    matches!(same_volume(path, other), Ok(Some(_)))
}

/// Whether a tree's clone would meet the file: other filesystems below a directory are none of its own.
fn lies_within(path: &Path, directory: &Path) -> bool {
    let (Ok(path), Ok(directory)) = (path.canonicalize(), directory.canonicalize()) else {
        return false;
    };
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    directory.is_dir() && path.starts_with(&directory) && device(&path) == device(&directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open<'a>(path: &'a Path, volumes: &[&'a Path]) -> Result<OutputFiles<'a>, Failure> {
        let mut outputs = OutputFiles::beside(volumes.to_vec());
        outputs.add("receipt", Some(path)).map(|()| outputs)
    }

    fn count(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn what_is_written_beside_a_volume_is_no_part_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (volume, tree, absent) = (at("a.img"), at("tree"), at("absent"));
        fs::write(&volume, "data").unwrap();
        fs::create_dir_all(tree.join("below")).unwrap();
        symlink(&tree, at("link")).unwrap();
        symlink(&absent, at("dangling")).unwrap();
        let volumes = [volume.as_path(), tree.as_path(), absent.as_path()];
        let before = count(dir.path());
        for path in [
            &volume,
            &at("tree/../a.img"),
            &tree.join("receipt"),
            &at("link/below/receipt"),
            &absent,
            &at("tree/../absent"),
            &at("dangling"),
        ] {
            let refused = open(path, &volumes).unwrap_err();
            assert_eq!(refused.code, FailureCode::Usage);
            assert!(refused.text.contains("would be changed"), "{refused}");
        }
        assert_eq!(fs::read(&volume).unwrap(), b"data");
        assert_eq!((count(&tree), count(dir.path())), (1, before));
        assert!(open(&at("none/receipt"), &volumes).is_err());
    }

    #[test]
    fn another_filesystem_below_a_tree_is_no_part_of_it() {
        assert!(!lies_within(Path::new("/proc/self/stat"), Path::new("/")));
    }

    #[test]
    fn what_nothing_was_written_to_does_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("older"), "older").unwrap();
        fs::write(at("empty"), "").unwrap();
        for name in ["older", "empty", "untouched", "written"] {
            let path = at(name);
            let opened = open(&path, &[]).unwrap();
            assert!(path.exists());
            if name == "written" {
                write("receipt", &path, "{}").unwrap();
            }
            drop(opened);
        }
        assert_eq!(fs::read(at("older")).unwrap(), b"older");
        assert_eq!(fs::read(at("written")).unwrap(), b"{}");
        assert!(at("empty").exists() && !at("untouched").exists());
    }

    #[test]
    fn two_outputs_are_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let both = |path: &Path| {
            let mut outputs = OutputFiles::beside(Vec::new());
            outputs.add("receipt", Some(path)).unwrap();
            outputs.add("manifest", None).unwrap();
            outputs.add("trace", Some(path))
        };
        let refused = both(&dir.path().join("out")).unwrap_err();
        assert!(
            refused.text.contains("the receipt would be written over"),
            "{refused}"
        );
        assert_eq!(count(dir.path()), 0);
        both(Path::new("/dev/null")).unwrap();
    }
}
