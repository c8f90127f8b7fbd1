//! The journal as a file: appended to after each flush, and written anew before it grows large.
//!
//! A record counts when `fdatasync` has returned. Whoever crashes before leaves a torn record,
//! which replay passes over. The file is replaced by renaming, so that there is a whole journal at
//! any time.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use uuid::Uuid;
use volferry_protocol::failure::Failure;
use volferry_protocol::journal::{Checkpoint, JOURNAL_LEN_MAX, JOURNAL_MAGIC, replay};

use crate::state_file::StateFile;

/// The journal of one clone in a state directory.
#[derive(Debug)]
pub(crate) struct Journal {
    state: StateFile,
    /// Open for appending; `None` until the first record.
    file: Option<File>,
    len: usize,
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
        let state = StateFile::claim(directory, clone_id, "journal")?;
        let checkpoint = read(&state)?;
        let (checkpoint, foreign) = match checkpoint {
            Some(checkpoint) if checkpoint.clone_id != clone_id => {
                (None, Some(checkpoint.clone_id))
            }
            own => (own, None),
        };
        if let Some(clone_id) = foreign {
            let path = state.path().display();
            tracing::warn!(%path, %clone_id, "the journal is not used: it is of another clone");
        }
        let journal = Self {
            state,
            file: None,
            len: 0,
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
        written.map_err(|error| self.state.cannot("write it", &error))
    }

    /// Removes the journal: the clone is done, and nothing will go on from here.
    pub(crate) fn remove(&self) {
        if let Err(error) = self.state.remove() {
            tracing::warn!(path = %self.path().display(), %error, "could not remove the journal");
        }
    }

    fn replace(&mut self, record: &[u8]) -> io::Result<()> {
        self.file = Some(self.state.replace(&[&JOURNAL_MAGIC, record])?);
        self.len = JOURNAL_MAGIC.len() + record.len();
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        self.state.path()
    }
}

/// What the journal says; `None` when there is none that can be used.
fn read(state: &StateFile) -> Result<Option<Checkpoint>, Failure> {
    /// Above what we ever write; a larger file is not ours.
    const LEN_MAX: u64 = 4 * JOURNAL_LEN_MAX as u64;
    let Some(bytes) = state.read(LEN_MAX)? else {
        return Ok(None);
    };
    let path = state.path();
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

#[cfg(test)]
mod tests {
    use volferry_protocol::digest::{Digest, Subtree};
    use volferry_protocol::failure::FailureCode;
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
