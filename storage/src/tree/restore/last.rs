//! What comes last, when everything else is there: links, and the metadata of directories.

use std::io::{self, BufReader, Read, Seek, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use volferry_protocol::codec::Reader;
use volferry_protocol::tree::fidelity::FidelityClass;
use volferry_protocol::tree::path::{Name, TreePath, join};
use volferry_protocol::tree::record::{Metadata, Record};

use super::super::{Refusal, TreeError};
use super::below::rename;
use super::worker::{Entered, RestoreWorker};
use super::{Restore, lock};
use crate::error::Operation;

impl RestoreWorker {
    /// Reads the spool from its beginning, and calls `apply` for every record in it.
    fn replay(
        &mut self,
        mut apply: impl FnMut(&mut Self, TreePath, Record<'_>) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let shared = Arc::clone(&self.shared);
        let failed = |error| shared.io(Operation::Read, &shared.staging_name, error);
        let mut spool = lock(&shared.spool);
        spool.file.flush().map_err(failed)?;
        let mut file = spool.file.get_ref().try_clone().map_err(failed)?;
        file.rewind().map_err(failed)?;
        let mut file = BufReader::with_capacity(64 << 10, file);
        let mut bytes = Vec::new();
        loop {
            let mut len = [0; 4];
            match file.read_exact(&mut len) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(failed(error)),
            }
            bytes.resize(u32::from_le_bytes(len) as usize, 0);
            file.read_exact(&mut bytes).map_err(failed)?;
            let mut reader = Reader::new(&bytes);
            shared.steps.fetch_add(1, Ordering::Relaxed);
            if let Record::Enter(path) = Record::decode(&mut reader)? {
                apply(self, path, Record::decode(&mut reader)?)?;
            }
        }
    }

    pub(super) fn make_links(&mut self) -> Result<(), TreeError> {
        self.replay(|worker, path, record| match record {
            Record::Link { name, group } => worker.make_link(path, name, group),
            _ => Ok(()),
        })
    }

    fn make_link(&mut self, path: TreePath, name: Name<'_>, group: u64) -> Result<(), TreeError> {
        let shared = Arc::clone(&self.shared);
        let fd = self.enter(&path)?;
        let directory = Entered { path, fd };
        let name = name.as_bytes();
        let path = join(directory.path.as_bytes(), name);
        let is_lost = lock(&shared.groups).is_lost(group);
        if is_lost.map_err(|error| shared.io(Operation::Read, &path, error))? {
            self.found.fidelity.note(FidelityClass::Devices, &path);
            self.shared.names_given_up.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let kept = group.to_string();
        let made = self.make_anew(&directory, name, 0, || {
            let (links, fd) = (&shared.links, &directory.fd);
            match rustix::fs::linkat(links, &*kept, fd, name, AtFlags::empty()) {
                // The name that is kept is one too many for the filesystem: it becomes the last.
                Err(Errno::MLINK) => rename(links, kept.as_bytes(), fd, name),
                answer => Ok(answer?),
            }
        });
        made.map_err(|error| match error {
            TreeError::Storage(error) if error.errno() == Some(Errno::NOENT) => {
                Restore::refuse(&path, Refusal::UnknownGroup)
            }
            other => other,
        })
    }

    /// Gives directories their metadata; that of the root is given back, for it has to come last.
    pub(super) fn finish_directories(&mut self) -> Result<Option<Metadata>, TreeError> {
        let mut root = None;
        let mut closed = Vec::new();
        self.replay(|worker, path, record| {
            let Record::Directory(mut metadata) = record else {
                return Ok(());
            };
            if path.is_root() {
                root = Some(metadata);
                return Ok(());
            }
            let fd = worker.enter(&path)?;
            if metadata.mode & 0o100 == 0 {
                // Nothing below it could be opened any more, even by root without its capabilities: it is closed
                // when all are done.
                closed.push((path.as_bytes().len(), path.clone(), metadata.mode));
                metadata.mode |= 0o100;
            }
            worker.adorn_directory(&fd, path.as_bytes(), &metadata)
        })?;
        // Those below before those above.
        closed.sort_unstable_by_key(|(len, ..)| std::cmp::Reverse(*len));
        for (_, path, mode) in closed {
            let fd = self.enter(&path)?;
            rustix::fs::fchmod(&*fd, Mode::from_raw_mode(mode)).map_err(|errno| {
                self.shared
                    .io(Operation::Adorn, path.as_bytes(), errno.into())
            })?;
        }
        Ok(root)
    }
}
