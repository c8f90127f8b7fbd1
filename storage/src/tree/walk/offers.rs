//! Asking the target what it holds before anything is read or sent.
//!
//! Files are offered in packs of their own; pieces of a file that the target holds in its place are
//! asked for by probes. What was asked waits here until the answer comes, and is then a task like
//! any other. Only so many questions are open at once, so that memory is bounded.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Stat};
use volferry_protocol::digest::Digest;
use volferry_protocol::tree::fidelity::FidelityClass;
use volferry_protocol::tree::file_digest::{self, FileDigest, PieceDigest};
use volferry_protocol::tree::frame::pack_digest;
use volferry_protocol::tree::offer::{
    Answer, Holding, LARGE_OFFERS_MAX, OFFERS_MAX, Offer, PROBE_PIECES_MAX, Part, Pieces,
    QUESTIONS_MAX, Stamp, Voucher,
};
use volferry_protocol::tree::path::{PATH_LEN_MAX, TreePath, join};
use volferry_protocol::tree::record::Record;
use volferry_protocol::tree::set_digest::Content;
use volferry_protocol::zero_map::ZeroMap;

use super::super::TreeError;
use super::super::metadata::{self, Handle as MetadataHandle};
use super::directory::Directory;
use super::file::{Group, Opened, entry_of};
use super::inode::{is_changed, is_large, open_for_reading, read_up_to, size_of};
use super::large::{Begun, LargeFile};
use super::{Outgoing, Stop, Walk, WalkEnd, Worker, lock, name_of};
use crate::error::Operation;

/// Bytes of offers in a pack, at most: another one, with the longest path, still fits.
const OFFERS_LEN_MAX: usize = 512 << 10;

/// Inodes with several names in a pack of offers, at most: each is held open until it was answered.
const GROUPS_MAX: usize = 32;

/// A file that was offered.
#[derive(Debug)]
pub(super) struct Offered {
    directory: Arc<Directory>,
    name: Vec<u8>,
    stat: Stat,
    group: Group,
    /// The file itself, where other names of it are told meanwhile and need its content, whatever
    /// becomes of this one.
    file: Option<File>,
}

/// Offers that a thread collects.
#[derive(Debug, Default)]
pub(super) struct Offers {
    files: Vec<Offered>,
    records: Vec<u8>,
    entered: Option<TreePath>,
    large: usize,
    groups: usize,
}

impl Offers {
    fn is_full(&self) -> bool {
        self.files.len() >= OFFERS_MAX
            || self.large >= LARGE_OFFERS_MAX
            || self.groups >= GROUPS_MAX
            || self.records.len() >= OFFERS_LEN_MAX
    }
}

/// What the target was asked.
#[derive(Debug)]
pub(super) enum Question {
    /// What it holds of these, which were offered in the pack of this number.
    Files(u64, Vec<Offered>),
    /// What pieces it holds, of so many from this one on.
    Pieces(Arc<LargeFile>, u64, u32),
}

/// What is to be done about a question.
#[derive(Debug)]
pub(super) enum Asked {
    /// Go on with what was answered.
    Answered(Answered),
    /// Ask for pieces of a file, so many from this one on.
    Probe(Arc<LargeFile>, u64, u32),
}

/// What the target was asked, and has answered.
#[derive(Debug)]
pub(super) enum Answered {
    Files(Vec<Offered>, Vec<Holding>),
    Pieces {
        file: Arc<LargeFile>,
        index: u64,
        count: u32,
        digests: Vec<Digest>,
    },
}

/// All questions of a walk.
#[derive(Debug, Default)]
pub(super) struct Questions {
    open: Vec<Question>,
    answered: VecDeque<Answered>,
    /// Files of whose pieces not all were asked for yet.
    probed: VecDeque<Arc<LargeFile>>,
}

impl Questions {
    /// Whether nothing waits for an answer, or to be asked.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.answered.is_empty() && self.probed.is_empty()
    }

    /// The next thing to do about them.
    pub(super) fn next_task(&mut self) -> Option<Asked> {
        if let Some(answered) = self.answered.pop_front() {
            return Some(Asked::Answered(answered));
        }
        if self.open.len() >= QUESTIONS_MAX {
            return None;
        }
        let file = self.probed.front().map(Arc::clone)?;
        let index = file
            .next
            .fetch_add(u64::from(PROBE_PIECES_MAX), Ordering::Relaxed);
        let left = file_digest::piece_count(file.size).saturating_sub(index);
        let count = u32::try_from(left).map_or(PROBE_PIECES_MAX, |left| left.min(PROBE_PIECES_MAX));
        if left <= u64::from(count) {
            self.probed.pop_front();
        }
        self.open
            .push(Question::Pieces(Arc::clone(&file), index, count));
        Some(Asked::Probe(file, index, count))
    }

    fn take(&mut self, is_it: impl Fn(&Question) -> bool) -> Option<Question> {
        let at = self.open.iter().position(is_it)?;
        Some(self.open.swap_remove(at))
    }
}

/// An answer to what was not asked, or not in a form that it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the target answered what it was not asked")]
pub struct Unasked;

impl<End: WalkEnd> Walk<End> {
    /// Takes the answer to a pack of offers.
    ///
    /// # Errors
    /// When that was not asked.
    pub fn answer(&self, answer: Answer) -> Result<(), Unasked> {
        let mut work = lock(&self.work);
        let is_it = |question: &Question| {
            matches!(question, Question::Files(pack, files)
                if *pack == answer.pack && files.len() == answer.holdings.len())
        };
        let Some(Question::Files(_, files)) = work.questions.take(is_it) else {
            return Err(Unasked);
        };
        let answered = Answered::Files(files, answer.holdings);
        work.questions.answered.push_back(answered);
        self.news.notify_all();
        Ok(())
    }

    /// Takes the answer to a probe.
    ///
    /// # Errors
    /// When that was not asked.
    pub fn answer_pieces(&self, pieces: Pieces) -> Result<(), Unasked> {
        let mut work = lock(&self.work);
        let is_it = |question: &Question| {
            matches!(question, Question::Pieces(file, index, count)
                if file.number == pieces.file
                    && *index == pieces.index
                    && pieces.digests.len() <= *count as usize)
        };
        let Some(Question::Pieces(file, index, count)) = work.questions.take(is_it) else {
            return Err(Unasked);
        };
        work.questions.answered.push_back(Answered::Pieces {
            file,
            index,
            count,
            digests: pieces.digests,
        });
        self.news.notify_all();
        Ok(())
    }
}

impl<End: WalkEnd> Worker<'_, End> {
    /// Offers a file.
    pub(super) fn offer(&mut self, directory: &Arc<Directory>, name: &[u8]) -> Result<(), Stop> {
        let path = join(directory.path.as_bytes(), name);
        if path.len() > PATH_LEN_MAX {
            self.found.fidelity.note(FidelityClass::Unreadable, &path);
            return Ok(());
        }
        let Some(mut stat) = self.stat_name(directory, name, &path)? else {
            return Ok(());
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.found.changed.note(&path);
            return Ok(());
        }
        let mut file = None;
        if stat.st_nlink > 1 {
            let Some(opened) = self.open_file(directory, name)? else {
                return Ok(());
            };
            stat = opened.stat;
            file = Some(opened.file);
        }
        let Some(group) = self.meet(directory, name, &path, &stat)? else {
            return Ok(());
        };
        let file = file.filter(|_| group.is_some());
        let offers = &mut self.offers;
        if offers.entered.as_ref() != Some(&directory.path) {
            Record::Enter(directory.path.clone()).encode(&mut offers.records);
            offers.entered = Some(directory.path.clone());
        }
        let offer = Offer {
            name: name_of(name),
            size: size_of(&stat),
            mtime: metadata::mtime(&stat),
            stamp: stamp_of(&path, &stat),
        };
        Record::Offer(offer).encode(&mut offers.records);
        offers.large += usize::from(is_large(&stat));
        offers.groups += usize::from(file.is_some());
        offers.files.push(Offered {
            directory: Arc::clone(directory),
            name: name.to_vec(),
            stat,
            group,
            file,
        });
        if offers.is_full() {
            self.ask()?;
            self.catch_up()?;
        }
        Ok(())
    }

    /// Sends what was collected.
    pub(super) fn ask(&mut self) -> Result<(), Stop> {
        let Offers { files, records, .. } = std::mem::take(&mut self.offers);
        if files.is_empty() {
            return Ok(());
        }
        let Some(mut bytes) = self.walk.pool.checkout_blocking() else {
            return Err(Stop::Unwanted);
        };
        bytes.set_len(records.len());
        bytes.copy_from_slice(&records);
        let number = self.walk.next_pack.fetch_add(1, Ordering::Relaxed);
        self.put_question(Question::Files(number, files))?;
        self.put(Outgoing::Pack {
            number,
            digest: pack_digest(&bytes),
            bytes,
            compressed: None,
        })
    }

    /// Notes a question once there is room for it, which there is as soon as another was answered.
    fn put_question(&self, question: Question) -> Result<(), Stop> {
        let mut work = lock(&self.walk.work);
        while work.questions.open.len() >= QUESTIONS_MAX {
            if self.walk.is_stopped.load(Ordering::Relaxed) {
                return Err(Stop::Unwanted);
            }
            let news = &self.walk.news;
            work = news.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
        work.questions.open.push(question);
        Ok(())
    }

    /// Does what was answered, and asks for pieces, until there is room for another question.
    fn catch_up(&mut self) -> Result<(), Stop> {
        let walk = self.walk;
        loop {
            let mut work = lock(&walk.work);
            let task = loop {
                if walk.is_stopped.load(Ordering::Relaxed) {
                    return Err(Stop::Unwanted);
                }
                if let Some(task) = work.questions.next_task() {
                    break task;
                }
                if work.questions.open.len() < QUESTIONS_MAX {
                    return Ok(());
                }
                work = walk.news.wait(work).unwrap_or_else(PoisonError::into_inner);
            };
            drop(work);
            self.go_on(task)?;
        }
    }

    /// Does what is to be done about a question.
    pub(super) fn go_on(&mut self, asked: Asked) -> Result<(), Stop> {
        match asked {
            Asked::Answered(answered) => self.take_answer(answered),
            Asked::Probe(file, index, count) => self.probe(&file, index, count),
        }
    }

    /// Asks for pieces of a file.
    fn probe(&self, file: &LargeFile, index: u64, count: u32) -> Result<(), Stop> {
        self.put(Outgoing::Probe {
            file: file.number,
            index,
            count,
        })
    }

    /// Goes on with what was answered.
    fn take_answer(&mut self, answered: Answered) -> Result<(), Stop> {
        match answered {
            Answered::Files(files, holdings) => {
                for (offered, holding) in files.into_iter().zip(holdings) {
                    self.take_holding(offered, holding)?;
                }
                Ok(())
            }
            Answered::Pieces {
                file,
                index,
                count,
                digests,
            } => self.compare_pieces(&file, index, count, &digests),
        }
    }

    fn take_holding(&mut self, offered: Offered, holding: Holding) -> Result<(), Stop> {
        // Its directory was looked at again when all in it was offered.
        let own = self.listing.take();
        let taken = self.take_offered(offered, holding);
        self.listing = own;
        taken
    }

    fn take_offered(&mut self, offered: Offered, holding: Holding) -> Result<(), Stop> {
        let Offered {
            directory,
            name,
            stat,
            group,
            file,
        } = offered;
        let path = join(directory.path.as_bytes(), &name);
        let opened = match file {
            Some(file) => Ok(file),
            None => open_for_reading(&directory.fd, &name).map(File::from),
        };
        let file = match opened {
            Ok(file) => file,
            Err(error) => {
                self.give_up(&directory, &holding)?;
                return self.cannot_open(&path, error);
            }
        };
        let now = self.stat(&file, &path)?;
        let is_regular = FileType::from_raw_mode(now.st_mode) == FileType::RegularFile;
        let is_same = is_regular && now.st_ino == stat.st_ino && !is_changed(&stat, &now);
        if !is_same {
            self.give_up(&directory, &holding)?;
            // Its other names stand for what it was.
            if !is_regular || group.is_some() || now.st_ino != stat.st_ino {
                self.found.changed.note(&path);
            }
        }
        if !is_regular {
            return Ok(());
        }
        let size = size_of(&now);
        let is_large = is_large(&now);
        let opened = Opened {
            directory: &directory,
            name: &name,
            path,
            file,
            stat: now,
            group,
            attempt: 1,
        };
        match holding {
            Holding::All {
                digest,
                data_bytes,
                voucher,
            } if is_same => {
                let held = Held {
                    digest,
                    data_bytes,
                    voucher,
                };
                let is_kept = match self.walk.options.compare {
                    true => !is_large && self.digest_of(&opened)? == Some(digest),
                    false => true,
                };
                if is_kept {
                    return self.keep(&opened, held);
                }
            }
            Holding::Part {
                file: number,
                parts,
                data_bytes,
            } if is_same => {
                let digest = FileDigest::of_parts(&parts);
                let count = file_digest::piece_count(size);
                let fits = |part: &Part| part.start.saturating_add(part.count) <= count;
                let Some(digest) = digest.filter(|_| parts.iter().all(fits)) else {
                    return Err(Stop::Failed(TreeError::Unasked(Unasked)));
                };
                let begun = Begun {
                    number,
                    digest,
                    data_bytes,
                    is_compared: false,
                };
                return self.begin(opened, begun);
            }
            Holding::Other { file: number } if is_same && is_large => {
                let begun = Begun {
                    number,
                    is_compared: true,
                    ..Begun::default()
                };
                return self.begin(opened, begun);
            }
            _ => {}
        }
        self.read_opened(opened)
    }

    /// Tells the target that nothing comes of what it began for a file.
    fn give_up(&mut self, directory: &Directory, holding: &Holding) -> Result<(), Stop> {
        match holding {
            Holding::Part { file, .. } | Holding::Other { file } => {
                self.emit(&directory.path, &Record::Forget { file: *file })
            }
            Holding::Nothing | Holding::All { .. } => Ok(()),
        }
    }

    /// The plain digest of a small file, if it still has its size.
    fn digest_of(&mut self, opened: &Opened<'_>) -> Result<Option<Digest>, Stop> {
        let size = usize::try_from(size_of(&opened.stat)).unwrap_or(usize::MAX);
        self.content.resize(size.saturating_add(1), 0);
        let len = read_up_to(&opened.file, &mut self.content)
            .map_err(|error| self.error(Operation::Read, &opened.path, error))?;
        let content = self.content.get(..size).filter(|_| len == size);
        Ok(content.map(file_digest::of_bytes))
    }

    /// The target holds the file: only its metadata travels.
    fn keep(&mut self, opened: &Opened<'_>, held: Held) -> Result<(), Stop> {
        let Opened {
            path, stat, group, ..
        } = opened;
        let size = size_of(stat);
        let Held {
            digest,
            data_bytes,
            voucher,
        } = held;
        let handle = MetadataHandle::Open(opened.file.as_fd());
        let metadata = self.metadata(stat, handle, path)?;
        self.walk.bytes_seen.fetch_add(size, Ordering::Relaxed);
        let data = &self.walk.data_bytes;
        data.fetch_add(data_bytes, Ordering::Relaxed);
        self.add(path, &Content::File { size, digest }, &metadata, *group);
        self.walk.end.file(path, digest);
        let record = Record::Keep {
            entry: entry_of(opened.name, *group, metadata),
            size,
            digest,
            data_bytes,
            voucher,
        };
        self.emit(&opened.directory.path, &record)
    }

    /// Reads pieces of a file, and sends those that the target holds otherwise.
    fn compare_pieces(
        &mut self,
        file: &Arc<LargeFile>,
        index: u64,
        count: u32,
        digests: &[Digest],
    ) -> Result<(), Stop> {
        let mut same = 0;
        for (at, number) in (index..).zip(0..count) {
            if self.walk.is_stopped.load(Ordering::Relaxed) {
                return Err(Stop::Unwanted);
            }
            let Some(bytes) = self.load_piece(file, at)? else {
                return Err(Stop::Unwanted);
            };
            let digest = PieceDigest::of(at, &bytes);
            if digests.get(number as usize) != Some(&digest.chaining_value) {
                self.send_same(file, at - same, same)?;
                same = 0;
                self.send_piece(file, at, bytes)?;
                continue;
            }
            let data_len = u64::from(ZeroMap::scan(&bytes).data_len());
            self.note_piece(file, at, digest, bytes.len() as u64, data_len);
            same += 1;
        }
        let end = index + u64::from(count);
        self.send_same(file, end - same, same)?;
        self.end_pieces(file, u64::from(count))
    }

    fn send_same(&self, file: &LargeFile, index: u64, count: u64) -> Result<(), Stop> {
        if count == 0 {
            return Ok(());
        }
        self.put(Outgoing::SamePieces {
            file: file.number,
            index,
            count: u32::try_from(count).unwrap_or(PROBE_PIECES_MAX),
        })
    }

    /// Offers the pieces of a file to be compared.
    pub(super) fn begin_comparing(&self, file: &Arc<LargeFile>) {
        let mut work = lock(&self.walk.work);
        work.questions.probed.push_back(Arc::clone(file));
        self.walk.news.notify_all();
    }
}

/// What the target said to hold.
#[derive(Clone, Copy)]
struct Held {
    digest: Digest,
    data_bytes: u64,
    voucher: Voucher,
}

/// What tells this state of a file from others.
pub(super) fn stamp_of(path: &[u8], stat: &Stat) -> Stamp {
    let (mtime, ctime) = (metadata::mtime(stat), metadata::ctime(stat));
    let seconds = |seconds: i64| seconds.cast_unsigned();
    let marks = [
        stat.st_ino,
        size_of(stat),
        seconds(mtime.seconds),
        u64::from(mtime.nanoseconds),
        seconds(ctime.seconds),
        u64::from(ctime.nanoseconds),
    ];
    Stamp::new(path, &marks)
}
