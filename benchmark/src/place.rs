//! Where the benchmark writes, and that nothing of it stays.
//!
//! All that is made lies in one new directory at the target, and perhaps one at the scratch place;
//! both have a name of their own and are removed when the benchmark ends, whatever ended it. What was
//! there before is not touched, but a block device that may be overwritten.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use volferry_agent::failure::of_storage;
use volferry_agent::progress::End;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_storage::{SourceOptions, open_source};

use crate::settings::Settings;

/// How the directories begin that are made.
const PREFIX: &str = ".volferry-bench-";

/// The places of one benchmark, which are gone when this is.
#[derive(Debug)]
pub struct Place {
    // In the order in which they go.
    scratch: Option<TempDir>,
    within: Option<TempDir>,
    made: Option<Made>,
    device: Option<PathBuf>,
}

/// A directory at a path of the user's choice that was not there.
#[derive(Debug)]
struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        // Only when it is empty: what is in it is somebody else's.
        let _someone_elses = fs::remove_dir(&self.0);
    }
}

impl Place {
    /// Claims the places that `settings` name.
    ///
    /// # Errors
    /// When the target is neither new nor empty nor may be overwritten, or nothing can be made there.
    pub fn claim(settings: &Settings) -> Result<Self, Failure> {
        let target = &settings.target;
        let mut place = Self {
            scratch: None,
            within: None,
            made: None,
            device: None,
        };
        match fs::metadata(target) {
            Ok(found) if found.is_dir() => {
                if !settings.overwrite && !is_empty(target)? {
                    return Err(refused(
                        target,
                        "holds something",
                        "name a new or empty directory, or pass --overwrite to have a directory made in it",
                    ));
                }
                place.within = Some(make_in(target)?);
            }
            Ok(found) if found.file_type().is_block_device() => {
                if !settings.overwrite {
                    return Err(refused(
                        target,
                        "is a block device",
                        "pass --overwrite if all that it holds may be lost",
                    ));
                }
                place.device = Some(target.clone());
            }
            Ok(_) => {
                return Err(refused(
                    target,
                    "exists",
                    "name a directory that is empty or not there yet, or a block device",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(target).map_err(|error| cannot_make(target, &error))?;
                place.made = Some(Made(target.clone()));
                place.within = Some(make_in(target)?);
            }
            Err(error) => {
                let text = format!("{} can't be looked at: {error}", target.display());
                return Err(Failure::new(FailureCode::TargetOpen, text));
            }
        }
        match &settings.scratch {
            Some(scratch) => place.scratch = Some(make_in(scratch)?),
            None if place.device.is_some() => {
                let text = "generated sources need a place when the target is a device; \
                            pass --scratch DIR, a directory on the source's storage";
                return Err(Failure::new(FailureCode::Usage, text));
            }
            None => {}
        }
        Ok(place)
    }

    /// The directory of the generated sources.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        let made = self.scratch.as_ref().or(self.within.as_ref());
        made.map_or_else(|| Path::new("."), TempDir::path)
    }

    /// A new target of this name: in the directory, or the device.
    #[must_use]
    pub fn target(&self, name: &str) -> PathBuf {
        match (&self.device, &self.within) {
            (Some(device), _) => device.clone(),
            (None, within) => {
                let within = within
                    .as_ref()
                    .map_or_else(|| Path::new("."), TempDir::path);
                within.join(name)
            }
        }
    }

    /// Whether generated sources are made in this directory, or below it.
    #[must_use]
    pub fn lies_in(&self, directory: &Path) -> bool {
        match (self.scratch().canonicalize(), directory.canonicalize()) {
            (Ok(scratch), Ok(directory)) => scratch.starts_with(directory),
            _ => false,
        }
    }

    /// Bytes that the block device holds to which clones go, if they go to one.
    ///
    /// # Errors
    /// When it can't be asked for.
    pub fn capacity(&self) -> Result<Option<u64>, Failure> {
        let size = |device: &PathBuf| {
            open_source(device, &SourceOptions::default())
                .map(|device| device.size())
                .map_err(|error| of_storage(End::Target, &error))
        };
        self.device.as_ref().map(size).transpose()
    }

    /// Bytes that may still be written where generated sources and clones are made: the lesser of both.
    ///
    /// # Errors
    /// When it can't be asked for.
    pub fn free_bytes(&self) -> Result<u64, Failure> {
        let scratch = free_bytes(self.scratch())?;
        match &self.within {
            Some(within) => Ok(scratch.min(free_bytes(within.path())?)),
            None => Ok(scratch),
        }
    }

    /// Bytes that a new target can hold now.
    ///
    /// # Errors
    /// When it can't be asked for.
    pub fn room(&self) -> Result<u64, Failure> {
        match &self.within {
            Some(within) => free_bytes(within.path()),
            None => Ok(self.capacity()?.unwrap_or(0)),
        }
    }

    /// Whether clones go to a block device.
    #[must_use]
    pub const fn is_device(&self) -> bool {
        self.device.is_some()
    }

    /// Removes a target that is no longer needed, a volume or a tree; a device stays.
    pub fn remove(&self, target: &Path) {
        if self.device.is_none() {
            // What stays goes with the directory.
            let _later = match target.is_dir() {
                true => remove_directory(target),
                false => fs::remove_file(target),
            };
        }
    }

    /// Removes everything now, to tell what could not be.
    ///
    /// # Errors
    /// What stayed, and why.
    pub fn close(mut self) -> Result<(), Failure> {
        for made in [self.scratch.take(), self.within.take()]
            .into_iter()
            .flatten()
        {
            let path = made.keep();
            remove_directory(&path).map_err(|error| {
                let text = format!("{} can't be removed: {error}; remove it", path.display());
                Failure::new(FailureCode::TargetWrite, text)
            })?;
        }
        Ok(())
    }
}

/// Removes a directory with all that it holds, also where that lets nobody in.
fn remove_directory(directory: &Path) -> io::Result<()> {
    fs::remove_dir_all(directory).or_else(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            open_up(directory)?;
            fs::remove_dir_all(directory)
        }
        _ => Err(error),
    })
}

/// Lets this user remove what is in a clone of a tree, whose directories may let nobody in.
fn open_up(directory: &Path) -> io::Result<()> {
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(())
}

fn free_bytes(path: &Path) -> Result<u64, Failure> {
    let found = rustix::fs::statvfs(path).map_err(|errno| {
        let text = format!(
            "the free space of {} can't be asked for: {errno}",
            path.display()
        );
        Failure::new(FailureCode::TargetOpen, text)
    })?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn make_in(directory: &Path) -> Result<TempDir, Failure> {
    tempfile::Builder::new()
        .prefix(PREFIX)
        .tempdir_in(directory)
        .map_err(|error| cannot_make(directory, &error))
}

fn cannot_make(directory: &Path, error: &io::Error) -> Failure {
    let text = format!(
        "no directory can be made at {}: {error}",
        directory.display()
    );
    Failure::new(FailureCode::TargetOpen, text)
}

fn refused(target: &Path, why: &str, remedy: &str) -> Failure {
    let text = format!("the target {} {why}; {remedy}", target.display());
    Failure::new(FailureCode::TargetInUse, text)
}

/// Whether there is nothing but what filesystem checkers keep.
pub(crate) fn is_empty(directory: &Path) -> Result<bool, Failure> {
    let entries = fs::read_dir(directory).map_err(|error| {
        let text = format!("{} can't be listed: {error}", directory.display());
        Failure::new(FailureCode::TargetOpen, text)
    })?;
    let mut names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    Ok(names.all(|name| matches!(name, Ok(name) if name == "lost+found")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::settings;

    #[test]
    fn all_that_was_made_is_gone_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("new");
        let place = Place::claim(&settings(dir.path(), &new)).unwrap();
        fs::write(place.scratch().join("source"), "x").unwrap();
        fs::create_dir(place.target("tree")).unwrap();
        assert!(place.target("tree").starts_with(&new));
        place.close().unwrap();
        assert!(!new.exists());

        // By an end that was not foreseen, too; what others put there stays.
        let place = Place::claim(&settings(dir.path(), &new)).unwrap();
        fs::write(place.target("clone"), "x").unwrap();
        fs::write(new.join("theirs"), "x").unwrap();
        drop(place);
        let left: Vec<_> = fs::read_dir(&new)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["theirs"]);

        // That directory holds something now.
        let refused = Place::claim(&settings(dir.path(), &new)).unwrap_err();
        assert_eq!(refused.code, FailureCode::TargetInUse);
        let mut allowed = settings(dir.path(), &new);
        allowed.overwrite = true;
        Place::claim(&allowed).unwrap().close().unwrap();
        assert!(new.join("theirs").exists());
        let scratch = dir.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        allowed.scratch = Some(scratch.clone());
        let place = Place::claim(&allowed).unwrap();
        assert!(place.scratch().starts_with(&scratch));
        drop(place);
        assert!(is_empty(&scratch).unwrap());
    }

    #[test]
    fn directories_that_let_nobody_in_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        for shut in [&inner, &dir.path().join("a")] {
            fs::set_permissions(shut, fs::Permissions::from_mode(0o500)).unwrap();
        }
        open_up(dir.path()).unwrap();
        assert_eq!(
            fs::metadata(&inner).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn a_file_is_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "theirs").unwrap();
        let mut settings = settings(dir.path(), &file);
        for overwrite in [false, true] {
            settings.overwrite = overwrite;
            assert!(Place::claim(&settings).is_err());
        }
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
    }
}
