//! The journal as a file: appended to after each flush, and written anew before it grows large.
//!
//! A record counts when `fdatasync` has returned. Whoever crashes before leaves a torn record,
//! which replay passes over. The file is replaced by renaming, so that there is a whole journal at
//! any time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use uuid::Uuid;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::journal::{Checkpoint, JOURNAL_LEN_MAX, JOURNAL_MAGIC, replay};

/// The journal of one clone in a state directory.
#[derive(Debug)]
pub(crate) struct Journal {
    directory: PathBuf,
    path: PathBuf,
    /// Open for appending; `None` until the first record.
    file: Option<File>,
    len: usize,
    /// Held as long as the journal is.
    _lock: File,
}

impl Journal {
    /// Opens the journal of `clone_id` in `directory`, which is created where it is missing, and
    /// gives what it says. A journal that is damaged or of another version counts as absent.
    ///
    /// # Errors
    /// When the directory can't be used, or another target agent has the journal.
    pub(crate) fn open(
        directory: &Path,
        clone_id: Uuid,
    ) -> Result<(Self, Option<Checkpoint>), Failure> {
        let path = directory.join(format!("{clone_id}.journal"));
        let cannot = |what: &str, error: io::Error| cannot_write(&path, what, &error);
        std::fs::create_dir_all(directory).map_err(|error| cannot("make its directory", error))?;
        let lock_path = directory.join(format!("{clone_id}.lock"));
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock_path)
            .map_err(|error| cannot("open its lock", error))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let text = format!(
                "the journal {} is in use by another target agent of this clone; end that first",
                path.display()
            );
            return Err(Failure::new(FailureCode::TargetInUse, text));
        }
        let checkpoint = read(&path).map_err(|error| cannot("read it", error))?;
        let (checkpoint, foreign) = match checkpoint {
            Some(checkpoint) if checkpoint.clone_id != clone_id => {
                (None, Some(checkpoint.clone_id))
            }
            own => (own, None),
        };
        if let Some(clone_id) = foreign {
            tracing::warn!(path = %path.display(), %clone_id, "the journal is not used: it is of another clone");
        }
        let journal = Self {
            directory: directory.to_owned(),
            path,
            file: None,
            len: 0,
            _lock: lock,
        };
        Ok((journal, checkpoint))
    }

    /// Adds a record and makes it durable.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn append(&mut self, checkpoint: &Checkpoint) -> Result<(), Failure> {
        let record = checkpoint.encode();
        let is_full = self.len.saturating_add(record.len()) > JOURNAL_LEN_MAX;
        let written = match &mut self.file {
            Some(file) if !is_full => file
                .write_all(&record)
                .and_then(|()| file.sync_data())
                .map(|()| self.len += record.len()),
            // What an earlier run left may end in a torn record.
            _ => self.replace(&record),
        };
        written.map_err(|error| cannot_write(&self.path, "write it", &error))
    }

    /// Removes the journal: the clone is done, and nothing will go on from here.
    pub(crate) fn remove(&self) {
        let removed =
            std::fs::remove_file(&self.path).and_then(|()| File::open(&self.directory)?.sync_all());
        if let Err(error) = removed {
            tracing::warn!(path = %self.path.display(), %error, "could not remove the journal");
        }
    }

    fn replace(&mut self, record: &[u8]) -> io::Result<()> {
        let fresh_path = self.path.with_extension("journal.new");
        let mut file = File::create(&fresh_path)?;
        file.write_all(&JOURNAL_MAGIC)?;
        file.write_all(record)?;
        file.sync_all()?;
        std::fs::rename(&fresh_path, &self.path)?;
        File::open(&self.directory)?.sync_all()?;
        self.file = Some(file);
        self.len = JOURNAL_MAGIC.len() + record.len();
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// What the journal at `path` says; `None` when there is none that can be used.
fn read(path: &Path) -> io::Result<Option<Checkpoint>> {
    /// Above what we ever write; a larger file is not ours.
    const LEN_MAX: u64 = 4 * JOURNAL_LEN_MAX as u64;
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(LEN_MAX).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match replay(&bytes) {
        Ok(replay) => {
            if replay.torn_len > 0 {
                let torn_len = replay.torn_len;
                tracing::warn!(path = %path.display(), torn_len, "the journal ends in a torn record");
            }
            Ok(replay.checkpoint)
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the journal is not used");
            Ok(None)
        }
    }
}

fn cannot_write(path: &Path, what: &str, error: &io::Error) -> Failure {
    let text = format!(
        "the journal {}: can't {what}: {error}; make room there, or choose another --state-dir",
        path.display()
    );
    Failure::new(FailureCode::TargetJournal, text)
}

#[cfg(test)]
mod tests {
    use volferry_protocol::digest::{Digest, Subtree};
    use volferry_protocol::geometry::{ChunkIndex, ChunkSize};

    use super::*;

    const CLONE: Uuid = Uuid::from_u128(7);

    fn checkpoint(epoch: u64, subtrees: u64) -> Checkpoint {
        let subtree = |start| Subtree {
            start: ChunkIndex(start),
            level: 0,
            digest: Digest([7; 32]),
        };
        Checkpoint {
            clone_id: CLONE,
            volume_size: 1 << 40,
            chunk_size: ChunkSize::DEFAULT,
            generation: "size=1".into(),
            epoch,
            data_bytes: 0,
            taken_bytes: 0,
            matched_bytes: 0,
            target_mark: 0,
            witnesses: vec![],
            durable: (0..subtrees).map(subtree).collect(),
            shut_out: vec![],
            holder: None,
        }
    }

    #[test]
    fn what_was_appended_last_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made/by/itself");
        let (mut journal, nothing) = Journal::open(&directory, CLONE).unwrap();
        assert_eq!(nothing, None);
        for epoch in 1..4 {
            journal.append(&checkpoint(epoch, 3)).unwrap();
        }
        let path = journal.path().to_owned();
        drop(journal);
        // A torn write: the record before it counts, and the next one replaces both.
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let (mut journal, last) = Journal::open(&directory, CLONE).unwrap();
        assert_eq!(last, Some(checkpoint(2, 3)));
        journal.append(&checkpoint(9, 3)).unwrap();
        drop(journal);
        let (_journal, last) = Journal::open(&directory, CLONE).unwrap();
        assert_eq!(last, Some(checkpoint(9, 3)));
    }

    #[test]
    fn what_was_removed_is_not_gone_on_from() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path(), CLONE).unwrap();
        journal.append(&checkpoint(1, 3)).unwrap();
        journal.remove();
        drop(journal);
        let (_journal, last) = Journal::open(directory.path(), CLONE).unwrap();
        assert_eq!(last, None);
    }

    #[test]
    fn it_stays_small() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path(), CLONE).unwrap();
        for epoch in 1..200 {
            journal.append(&checkpoint(epoch, 400)).unwrap();
            let len = std::fs::metadata(journal.path()).unwrap().len();
            assert!(len <= JOURNAL_LEN_MAX as u64, "{len} bytes");
        }
        drop(journal);
        let (_journal, last) = Journal::open(directory.path(), CLONE).unwrap();
        assert_eq!(last, Some(checkpoint(199, 400)));
    }

    #[test]
    fn what_is_no_journal_counts_as_absent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(format!("{CLONE}.journal"));
        for bytes in [&b""[..], b"VFJRNL\0\x63 of the future", &[0xff; 4096]] {
            std::fs::write(&path, bytes).unwrap();
            let (_journal, last) = Journal::open(directory.path(), CLONE).unwrap();
            assert_eq!(last, None);
        }
    }

    #[test]
    fn the_journal_of_another_clone_counts_as_absent() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path(), CLONE).unwrap();
        journal.append(&checkpoint(1, 1)).unwrap();
        let other = Uuid::from_u128(8);
        let path = directory.path().join(format!("{other}.journal"));
        std::fs::copy(journal.path(), path).unwrap();
        let (_journal, last) = Journal::open(directory.path(), other).unwrap();
        assert_eq!(last, None);
    }

    #[test]
    fn two_agents_do_not_share_a_journal() {
        let directory = tempfile::tempdir().unwrap();
        let _held = Journal::open(directory.path(), CLONE).unwrap();
        let failure = Journal::open(directory.path(), CLONE).unwrap_err();
        assert_eq!(failure.code, FailureCode::TargetInUse);
        Journal::open(directory.path(), Uuid::from_u128(8)).unwrap();
    }

    #[test]
    fn a_directory_that_can_not_be_used_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let failure = Journal::open(file.path(), CLONE).unwrap_err();
        assert_eq!(failure.code, FailureCode::TargetJournal);
        assert!(failure.text.contains("--state-dir"), "{failure}");
    }
}
