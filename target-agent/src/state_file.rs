//! A clone's files in a state directory: one that is there as a whole or not at all, and a lock beside it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use uuid::Uuid;
use volferry_protocol::failure::{Failure, FailureCode};

/// A file of one clone in a state directory, for one target agent at a time.
#[derive(Debug)]
pub(crate) struct StateFile {
    directory: PathBuf,
    path: PathBuf,
    /// What it is, in one word, which its name ends in too.
    what: &'static str,
    /// Held as long as this is.
    _lock: File,
}

impl StateFile {
    /// Claims what `clone_id` keeps in `directory`, which is made where it is missing.
    ///
    /// # Errors
    /// When the directory can't be used, or another target agent has the clone's files.
    pub(crate) fn claim(
        directory: &Path,
        clone_id: Uuid,
        what: &'static str,
    ) -> Result<Self, Failure> {
        let path = directory.join(format!("{clone_id}.{what}"));
        let cannot = |doing: &str, error: io::Error| cannot(what, &path, doing, &error);
        std::fs::create_dir_all(directory).map_err(|error| cannot("make its directory", error))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(format!("{clone_id}.lock")))
            .map_err(|error| cannot("open its lock", error))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let text = format!(
                    "the {what} {} is in use by another target agent of this clone; end that first",
                    path.display()
                );
                return Err(Failure::new(FailureCode::TargetInUse, text));
            }
            Err(errno) => return Err(cannot("take its lock", errno.into())),
        }
        Ok(Self {
            directory: directory.to_owned(),
            path,
            what,
            _lock: lock,
        })
    }

    /// What it holds, of which at most `len_max` bytes are read; `None` where there is none.
    ///
    /// # Errors
    /// When it can't be read.
    pub(crate) fn read(&self, len_max: u64) -> Result<Option<Vec<u8>>, Failure> {
        let mut bytes = Vec::new();
        let read = File::open(&self.path)
            .and_then(|file| file.take(len_max).read_to_end(&mut bytes))
            .map(|_len| Some(bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map_err(|error| self.cannot("read it", &error)),
        }
    }

    /// Puts these bytes in place of what it holds, and makes that durable. Gives the new file.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn replace(&self, parts: &[&[u8]]) -> io::Result<File> {
        let fresh_path = self.path.with_extension(format!("{}.new", self.what));
        let mut file = File::create(&fresh_path)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()?;
        std::fs::rename(&fresh_path, &self.path)?;
        File::open(&self.directory)?.sync_all()?;
        Ok(file)
    }

    /// Removes it, for good.
    ///
    /// # Errors
    /// When there is none, or the kernel refuses.
    pub(crate) fn remove(&self) -> io::Result<()> {
        std::fs::remove_file(&self.path)?;
        File::open(&self.directory)?.sync_all()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Why the clone ends when this can't be done with it.
    pub(crate) fn cannot(&self, doing: &str, error: &io::Error) -> Failure {
        cannot(self.what, &self.path, doing, error)
    }
}

fn cannot(what: &str, path: &Path, doing: &str, error: &io::Error) -> Failure {
    let text = format!(
        "the {what} {}: can't {doing}: {error}; make room there, or choose another --state-dir",
        path.display()
    );
    Failure::new(FailureCode::TargetJournal, text)
}
