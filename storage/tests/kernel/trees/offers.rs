//! Trees of which the target holds something: what is offered, answered, kept and compared, and what
//! becomes of it when the source or the target changes meanwhile.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use volferry_protocol::codec::Reader;
use volferry_protocol::session::fence::Remembered;
use volferry_protocol::tree::file_digest::PieceDigest;
use volferry_protocol::tree::offer::{Answer, Pieces};
use volferry_protocol::tree::record::Record;
use volferry_protocol::tree::session::{TreeSummary, TreeTerms};
use volferry_protocol::zero_map::ZeroMap;
use volferry_storage::BufferPool;
use volferry_storage::tree::{
    Outgoing, Restore, RestoreWorker, Reuse, TreeError, TreeSource, TreeTarget, TreeTargetOptions,
    Walk, WalkEnd, WalkOptions, Walked,
};

use super::CLONE;
use crate::support::{Filesystem, skip};

/// The content goes with the name that was met first; the others are links to it, whatever becomes of
/// the first meanwhile.
#[test]
fn a_name_of_an_inode_that_goes_before_its_answer_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("a"), "content").unwrap();
    fs::hard_link(from.join("a"), from.join("b")).unwrap();
    let mut gone = None;
    let remove = |outgoing: &Outgoing| {
        if let (None, Some(name)) = (&gone, offered(outgoing).into_iter().next()) {
            fs::remove_file(from.join(&name)).unwrap();
            gone = Some(name);
        }
    };
    let session = Session::compare(&to, Reuse::Times);
    let walked = session.send(&from, remove).unwrap();
    let written = session.end().unwrap();
    assert_eq!(
        (walked.changed.count, walked.changed.paths),
        (1, vec![gone.unwrap()])
    );
    assert_eq!(walked.summary.digest, written.digest);
    for name in ["a", "b"] {
        let path = to.join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 2);
    }
}

#[test]
fn what_became_something_else_before_its_answer_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("a"), "content").unwrap();
    let replace = |outgoing: &Outgoing| {
        for name in offered(outgoing) {
            fs::remove_file(from.join(&name)).unwrap();
            fs::create_dir(from.join(&name)).unwrap();
        }
    };
    let session = Session::compare(&to, Reuse::Times);
    let walked = session.send(&from, replace).unwrap();
    assert_eq!(
        (walked.changed.count, walked.changed.paths),
        (1, vec!["a".to_owned()])
    );
    assert_eq!(walked.summary.digest, session.end().unwrap().digest);
}

/// What is in the way of a name goes, in a directory that is gone on with. So a filesystem that takes
/// two names for one shows at the end only: one of them is not there.
#[test]
fn names_that_are_missing_at_the_end_are_missed() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("dir")).unwrap();
    for number in 0..20 {
        fs::write(from.join(format!("dir/{number}")), "content").unwrap();
    }
    let session = Session::compare(&to, Reuse::Journal);
    session.send(&from, |_| {}).unwrap();
    session.restore.complete().unwrap();
    drop(session);
    let session = Session::go_on(&to, 2);
    session.send(&from, |_| {}).unwrap();
    fs::remove_file(to.join("dir/7")).unwrap();
    assert_missing(&session.end(), 1);
    drop(session);
    // And nothing is missed when nothing is missing, however it came there.
    let session = Session::go_on(&to, 3);
    session.send(&from, |_| {}).unwrap();
    session.end().unwrap();
}

#[test]
fn a_filesystem_that_takes_two_names_for_one_is_noticed() {
    let Some(mount) = Filesystem::that_folds_case() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), mount.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("name"), "content").unwrap();
    let session = Session::compare(&to, Reuse::Journal);
    session.send(&from, |_| {}).unwrap();
    session.restore.complete().unwrap();
    drop(session);
    // Gone on with, where one of the two is there since the first session.
    fs::write(from.join("NAME"), "CONTENT").unwrap();
    let session = Session::go_on(&to, 2);
    session.send(&from, |_| {}).unwrap();
    assert_missing(&session.end(), 1);
    // In a first session, where a name that is there is refused, but a directory is entered.
    let session = Session::compare(&mount.path().join("files"), Reuse::Journal);
    let refused = session.send(&from, |_| {}).unwrap_err();
    assert!(refused.to_string().contains("came twice"), "{refused}");
    for name in ["name", "NAME"] {
        fs::remove_file(from.join(name)).unwrap();
        fs::create_dir(from.join(name)).unwrap();
        fs::write(from.join(name).join(name), "content").unwrap();
    }
    let session = Session::compare(&mount.path().join("directories"), Reuse::Journal);
    let made = session.send(&from, |_| {}).and_then(|_| session.end());
    assert!(made.is_err_and(|error| is_told(&error)));
}

/// Who puts a file in its place holds it, and asks for the list of files; who makes durable what was
/// finished goes through the list, and must not hold it while it asks for a file.
#[test]
fn what_is_finished_becomes_durable_while_files_are_put_in_their_place() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return skip("no filesystem in memory").unwrap_or_default();
    };
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    for number in 0..600 {
        let file = File::create(from.join(number.to_string())).unwrap();
        file.set_len(262_145 + number).unwrap();
    }
    let session = Session::compare(&to, Reuse::Journal);
    let is_sent = AtomicBool::new(false);
    let (done_sender, done) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_sent.load(Ordering::Relaxed) {
                session.restore.checkpoint().unwrap();
            }
        });
        scope.spawn(move || {
            // Two threads that wait for each other would wait for ever, and the test with them.
            let is_over = done.recv_timeout(Duration::from_secs(120)).is_ok();
            if !is_over {
                let _unseen =
                    std::io::stderr().write_all(b"a flush and a file wait for each other\n");
                std::process::abort();
            }
        });
        session.send(&from, |_| {}).unwrap();
        is_sent.store(true, Ordering::Relaxed);
        done_sender.send(()).unwrap();
    });
    assert_eq!(session.end().unwrap().counts.files, 600);
}

/// The target holds each file open that is compared: the source has few of them under way at once,
/// however many there are.
#[test]
fn many_files_that_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    for number in 0..2100 {
        for root in [&from, &to] {
            let file = File::create(root.join(number.to_string())).unwrap();
            file.set_len(262_145).unwrap();
        }
    }
    let session = Session::compare(&to, Reuse::Content);
    let (mut under_way, mut most) = (HashSet::new(), 0);
    let count = |outgoing: &Outgoing| {
        match outgoing {
            Outgoing::Begin { file, .. } => drop(under_way.insert(*file)),
            Outgoing::SamePieces { file, .. } => drop(under_way.remove(file)),
            _ => {}
        }
        most = most.max(under_way.len());
    };
    session.send(&from, count).unwrap();
    let made = session.end().unwrap();
    assert_eq!((made.counts.files, made.data_bytes), (2100, 0));
    assert!(
        (1..=64).contains(&most),
        "{most} files were compared at once"
    );
}

/// What came once is not written over, though its session fails: the journal may speak of it.
#[test]
fn a_piece_that_comes_twice_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let session = Session::compare(&dir.path().join("to"), Reuse::Journal);
    let mut worker = session.restore.worker();
    let mut write = |bytes: &[u8]| {
        let digest = PieceDigest::of(0, bytes).chaining_value;
        worker.write_piece(1, 0, digest, &ZeroMap::scan(bytes), bytes)
    };
    write(&[1; 8192]).unwrap();
    let refused = write(&[2; 8192]).unwrap_err();
    assert!(
        refused.to_string().contains("a piece came twice"),
        "{refused}"
    );
    let staged = dir.path().join(format!("to/.volferry-{CLONE}/1"));
    assert!(fs::read(staged).unwrap().iter().all(|byte| *byte == 1));
}

/// What comes again is durable once.
#[test]
fn what_was_durable_and_comes_again_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("a"), "content").unwrap();
    fs::hard_link(from.join("a"), from.join("b")).unwrap();
    fs::write(from.join("large"), vec![1; 3 << 20]).unwrap();
    for epoch in 1..4 {
        let session = match epoch {
            1 => Session::compare(&to, Reuse::Journal),
            _ => Session::go_on(&to, epoch),
        };
        session.send(&from, |_| {}).unwrap();
        session.restore.complete().unwrap();
        assert_eq!(
            session.restore.durable_bytes(),
            (3 << 20) + 7,
            "session {epoch}"
        );
    }
}

fn is_told(error: &TreeError) -> bool {
    let text = error.to_string();
    text.contains("not there") || text.contains("came twice")
}

#[track_caller]
fn assert_missing(made: &Result<TreeSummary, TreeError>, missing: u64) {
    assert!(
        matches!(made, Err(TreeError::NamesMissing { count, .. }) if *count == missing),
        "{made:?}"
    );
}

/// The names that a pack offers.
fn offered(outgoing: &Outgoing) -> Vec<String> {
    let Outgoing::Pack { bytes, .. } = outgoing else {
        return Vec::new();
    };
    let mut reader = Reader::new(bytes);
    let mut names = Vec::new();
    while !reader.is_empty() {
        if let Record::Offer(offer) = Record::decode(&mut reader).unwrap() {
            names.push(String::from_utf8(offer.name.as_bytes().to_vec()).unwrap());
        }
    }
    names
}

/// Both ends of a session in one process.
struct Session {
    restore: Arc<Restore>,
    epoch: u64,
    readers: usize,
}

impl Session {
    /// The first session into a directory.
    fn compare(to: &Path, reuse: Reuse) -> Self {
        let options = TreeTargetOptions {
            reuse,
            ..TreeTargetOptions::default()
        };
        Self::begin(&mut TreeTarget::open(to, CLONE, options).unwrap(), 1)
    }

    /// A later one of another run, which goes on from the journal.
    fn go_on(to: &Path, epoch: u64) -> Self {
        let options = TreeTargetOptions::default();
        Self::begin(&mut TreeTarget::open(to, CLONE, options).unwrap(), epoch)
    }

    fn begin(target: &mut TreeTarget, epoch: u64) -> Self {
        Self {
            restore: Arc::new(
                target
                    .prepare(TreeTerms::default(), epoch, &Remembered::default())
                    .unwrap(),
            ),
            epoch,
            readers: 1,
        }
    }

    /// Does what comes last.
    fn end(&self) -> Result<TreeSummary, TreeError> {
        let made = self.restore.complete()?;
        self.restore.conclude()?;
        Ok(made)
    }

    /// Sends the tree at `from`; `before` sees what is sent before the target does. Gives what was
    /// read, or why the target does not take it.
    fn send(&self, from: &Path, before: impl FnMut(&Outgoing) + Send) -> Result<Walked, TreeError> {
        let (replies_sender, replies) = mpsc::channel();
        let end = Answering {
            state: Mutex::new((before, self.restore.worker(), None)),
            replies: replies_sender.clone(),
        };
        let options = WalkOptions {
            terms: TreeTerms::default(),
            direct: false,
            offer: self.restore.offers(),
            compare: self.restore.compares(),
            epoch: self.epoch,
            read_back: false,
        };
        let pool = BufferPool::new(16 << 20, 1 << 20).unwrap();
        let walk = Walk::new(TreeSource::open(from).unwrap(), options, pool, end);
        thread::scope(|scope| {
            let walk = &walk;
            let readers: Vec<_> = (0..self.readers)
                .map(|_| scope.spawn(|| walk.run()))
                .collect();
            scope.spawn(move || {
                while let Ok(Some(reply)) = replies.recv() {
                    match reply {
                        Reply::Answer(answer) => walk.answer(answer).unwrap(),
                        Reply::Pieces(pieces) => walk.answer_pieces(pieces).unwrap(),
                    }
                }
            });
            for reader in readers {
                reader.join().unwrap().unwrap();
            }
            replies_sender.send(None).unwrap();
        });
        let walked = walk.finish();
        let failed = walk.end().state.lock().unwrap().2.take();
        drop(walk);
        failed.map_or(Ok(walked), Err)
    }
}

enum Reply {
    Answer(Answer),
    Pieces(Pieces),
}

/// Applies what comes, and answers what is asked.
struct Answering<F> {
    state: Mutex<(F, RestoreWorker, Option<TreeError>)>,
    replies: mpsc::Sender<Option<Reply>>,
}

impl<F: FnMut(&Outgoing) + Send> WalkEnd for Answering<F> {
    fn put(&self, outgoing: Outgoing) -> bool {
        let mut state = self.state.lock().unwrap();
        let (before, worker, failed) = &mut *state;
        before(&outgoing);
        match apply(worker, outgoing) {
            Ok(reply) => {
                if reply.is_some() {
                    self.replies.send(reply).unwrap();
                }
                true
            }
            Err(error) => {
                failed.get_or_insert(error);
                false
            }
        }
    }
}

fn apply(worker: &mut RestoreWorker, outgoing: Outgoing) -> Result<Option<Reply>, TreeError> {
    Ok(match outgoing {
        Outgoing::Pack { number, bytes, .. } => {
            let holdings = worker.apply_pack(&bytes)?;
            let answer = Answer {
                pack: number,
                holdings,
            };
            (!answer.holdings.is_empty()).then_some(Reply::Answer(answer))
        }
        Outgoing::Piece {
            file,
            index,
            digest,
            zero_map,
            bytes,
            ..
        } => {
            worker.write_piece(file, index, digest, &zero_map, &bytes)?;
            None
        }
        Outgoing::ZeroPieces {
            file,
            index,
            count,
            last_len,
        } => {
            worker.zero_pieces(file, index, count, last_len)?;
            None
        }
        Outgoing::Begin {
            file,
            size,
            stamp,
            path,
        } => {
            worker.begin_file(file, size, stamp, &path)?;
            None
        }
        Outgoing::Probe { file, index, count } => {
            Some(Reply::Pieces(worker.probe(file, index, count)?))
        }
        Outgoing::SamePieces { file, index, count } => {
            worker.same_pieces(file, index, count)?;
            None
        }
    })
}
