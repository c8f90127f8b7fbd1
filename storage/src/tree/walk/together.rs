//! Small files of a batch, read together and past the page cache.
//!
//! What files of one directory hold lies side by side, mostly, in the order of their inodes. Asked for one by one,
//! each is a request of the disk; asked for at once, the kernel makes one of many. And the page cache, in which
//! they would push out what others need, is neither filled nor copied from. What it holds already is read from it one by
//! one: a file that was just written would else have to be on the disk first. So is what the kernel doesn't let us read
//! together.

use std::fs::File;
use std::sync::atomic::Ordering;

use rustix::fs::Advice;
use rustix::io::Errno;
use volferry_protocol::geometry::BLOCK_SIZE;

use super::super::names::BATCH_LEN;
use super::file::Opened;
use super::inode::size_of;
use super::{Stop, WalkEnd, Worker};
use crate::handle::set_direct;
use crate::sys::{ReadQueue, Reading, cached_pages};

/// Bytes of small files that a thread asks of the disk before it reads them one by one.
const AHEAD_MAX: u64 = 2 << 20;

impl<End: WalkEnd> Worker<'_, End> {
    /// Reads small files that are open.
    pub(super) fn read_small_files(&mut self, files: Vec<Opened<'_>>) -> Result<(), Stop> {
        if files.len() < 2 || !self.can_read_together() {
            return self.read_one_by_one(files);
        }
        // What has other names may not be read at all, and what is empty is read to see that it is.
        let (together, one_by_one): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| {
            let is_candidate = file.stat.st_nlink == 1 && file.stat.st_size > 0;
            is_candidate && self.is_uncached(&file.file)
        });
        self.read_one_by_one(one_by_one)?;
        let mut files = together.into_iter().peekable();
        while files.peek().is_some() {
            let Some(mut buffer) = self.walk.pool.checkout_blocking() else {
                return Err(Stop::Unwanted);
            };
            buffer.set_len(buffer.capacity());
            let (mut group, mut free) = (Vec::new(), &mut buffer[..]);
            while let Some(file) = files.next_if(|file| room_for(file) <= free.len()) {
                let (room, rest) = free.split_at_mut(room_for(&file));
                free = rest;
                group.push((file, room));
            }
            self.read_group(group)?;
        }
        Ok(())
    }

    /// Whether the page cache holds nothing of the file, as far as the kernel tells.
    fn is_uncached(&self, file: &File) -> bool {
        match cached_pages(file) {
            Ok(pages) => pages == 0,
            Err(error) => {
                if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) {
                    self.walk.reads_alone.store(true, Ordering::Relaxed);
                }
                false
            }
        }
    }

    fn can_read_together(&mut self) -> bool {
        let walk = self.walk;
        if !walk.options.direct || walk.reads_alone.load(Ordering::Relaxed) {
            return false;
        }
        if self.queue.is_none() {
            match ReadQueue::new(BATCH_LEN) {
                Ok(queue) => self.queue = Some(queue),
                Err(error) => {
                    tracing::debug!(%error, "small files are read one by one");
                    walk.reads_alone.store(true, Ordering::Relaxed);
                }
            }
        }
        self.queue.is_some()
    }

    /// Reads small files in turn.
    fn read_one_by_one(&mut self, files: Vec<Opened<'_>>) -> Result<(), Stop> {
        let mut ahead_bytes = 0;
        if files.len() > 1 {
            for file in &files {
                if ahead_bytes < AHEAD_MAX {
                    ahead_bytes += size_of(&file.stat);
                    // A filesystem that doesn't read ahead reads when it is asked to.
                    let _advice = rustix::fs::fadvise(&file.file, 0, None, Advice::WillNeed);
                }
            }
        }
        self.read_in_turn(files)
    }

    /// Reads files together, each into its room.
    fn read_group(&mut self, mut group: Vec<(Opened<'_>, &mut [u8])>) -> Result<(), Stop> {
        for (opened, _) in &group {
            if set_direct(&opened.file, true).is_err() {
                self.walk.reads_alone.store(true, Ordering::Relaxed);
            }
        }
        let readings = group.iter_mut();
        let mut readings: Vec<_> = readings
            .map(|(opened, room)| Reading::new(&opened.file, room))
            .collect();
        if let Some(queue) = &mut self.queue {
            queue.read_all(&mut readings);
        }
        let outcomes: Vec<_> = readings.into_iter().map(Reading::finish).collect();
        for ((opened, room), outcome) in group.into_iter().zip(outcomes) {
            let size = usize::try_from(size_of(&opened.stat)).unwrap_or(usize::MAX);
            match (outcome, room.get_mut(..size)) {
                (Ok(len), Some(content)) if len == size => self.take_small(opened, content)?,
                (outcome, _) => {
                    let errno = outcome.err().and_then(|error| Errno::from_io_error(&error));
                    let is_passing =
                        |errno| matches!(errno, Errno::IO | Errno::AGAIN | Errno::INTR);
                    if errno.is_some_and(|errno| !is_passing(errno)) {
                        self.walk.reads_alone.store(true, Ordering::Relaxed);
                    }
                    // It became shorter, or can't be read like this.
                    self.read_again(opened)?;
                }
            }
            if self.walk.is_stopped.load(Ordering::Relaxed) {
                return Err(Stop::Unwanted);
            }
        }
        Ok(())
    }
}

/// Bytes of memory that a file takes: whole blocks, as the kernel wants it that passes the page cache.
fn room_for(file: &Opened<'_>) -> usize {
    let size = usize::try_from(size_of(&file.stat)).unwrap_or(usize::MAX);
    size.checked_next_multiple_of(BLOCK_SIZE as usize)
        .unwrap_or(usize::MAX)
}
