//! Two ends of a clone, a network, and a disk that loses what was not flushed, driven by any
//! sequence of events: in order, out of order, and from a peer that lies.
//!
//! After each event:
//! - what the target says or hands over as durable was flushed, and is what the disk holds;
//! - where there is a journal, nothing is told that no record holds;
//! - a receipt exists only for a volume that is durable as a whole, with the digest of what the
//!   disk holds and the source finished with;
//! - an end is over once, and then asks for nothing and says nothing;
//! - no timer is due when time was told, and every message fits its frame.
//!
//! As long as nobody lied, the ends never blame each other, and whatever the events left undone,
//! the clone can still be brought to its receipt.

mod disk;
mod lies;

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use uuid::Uuid;
use volferry_protocol::digest::{Digest, Subtree};
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::{ControlFrame, SessionToken};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, ChunkSize, Geometry};
use volferry_protocol::journal::Checkpoint;
use volferry_protocol::message::{Hello, Message, Sent, Welcome};
use volferry_protocol::range_set::ChunkSet;
use volferry_protocol::receipt::{AgentStats, Receipt, Verified};
use volferry_protocol::session::source::Transfer;
use volferry_protocol::session::{
    SourceAction, SourceSession, Standing, TargetAction, TargetLimits, TargetSession,
};

use super::input::Input;
use super::model;
use disk::Disk;

/// Chunks of the largest volume.
const CHUNKS_MAX: u8 = 12;
/// How often a volume is repaired.
const LOSSES_MAX: u32 = 3;
const CLONE: Uuid = Uuid::from_u128(1);
const TOKEN: SessionToken = SessionToken([7; 32]);

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(input.below(CHUNKS_MAX), Setting::new(input.u8()));
    world.settle();
    while !input.is_empty() {
        world.step(&mut input);
        world.settle();
    }
    if world.is_honest {
        world.finish();
    }
}

/// What a clone is set to do, one bit each.
#[derive(Clone, Copy)]
struct Setting {
    /// The last chunk is a single byte.
    has_tail: bool,
    has_journal: bool,
    has_read_back: bool,
    /// Chunks are offered first, and the disk has some.
    offer: bool,
}

impl Setting {
    fn new(bits: u8) -> Self {
        Self {
            has_tail: bits & 1 != 0,
            has_journal: bits & 2 != 0,
            has_read_back: bits & 4 != 0,
            offer: bits & 8 != 0,
        }
    }
}

/// What is on its way to the target on a data connection.
enum Arriving {
    Chunks(Range<u64>),
    Offer(u64),
}

struct World {
    now: Instant,
    setting: Setting,
    geometry: Geometry,
    source: SourceSession,
    target: TargetSession,
    to_source: VecDeque<Message>,
    to_target: VecDeque<Message>,
    /// What the source may send, once it was welcomed.
    transfer: Option<Transfer>,
    /// What the source has read in this round.
    read: ChunkSet,
    /// Rounds that the source has begun.
    source_rounds: usize,
    /// Rounds that the target has begun.
    target_rounds: usize,
    /// Chunks on their way to the disk.
    arriving: VecDeque<Arriving>,
    disk: Disk,
    /// The record that is being written.
    journaling: Option<Checkpoint>,
    /// The most that a record in the journal holds.
    journaled_bytes: u64,
    is_reading_back: bool,
    /// How often the volume read back wrong.
    losses: u32,
    /// What the target knew when its last session ended.
    standing: Option<Standing>,
    prepare: Option<Geometry>,
    /// The digest that the source finished with.
    finished: Option<Digest>,
    source_outcome: Option<Result<Receipt, Failure>>,
    target_outcome: Option<Result<Receipt, Failure>>,
    epoch: u64,
    /// Nobody has lied so far.
    is_honest: bool,
}

impl World {
    fn new(chunks: u64, setting: Setting) -> Self {
        let now = Instant::now();
        let size = chunks * u64::from(ChunkSize::MIN.bytes()) + u64::from(setting.has_tail);
        let geometry = Geometry::new(size, ChunkSize::MIN).expect("less than a MiB");
        let mut disk = Disk::new(geometry);
        if setting.offer {
            for index in (0..chunks).step_by(3) {
                disk.write(index, model::leaf(index));
            }
        }
        Self {
            now,
            setting,
            geometry,
            source: new_source(now, &geometry, Sent::default()),
            target: new_target(now, 1, setting),
            to_source: VecDeque::new(),
            to_target: VecDeque::new(),
            transfer: None,
            read: ChunkSet::default(),
            source_rounds: 0,
            target_rounds: 1,
            arriving: VecDeque::new(),
            disk,
            journaling: None,
            journaled_bytes: 0,
            is_reading_back: false,
            losses: 0,
            standing: None,
            prepare: None,
            finished: None,
            source_outcome: None,
            target_outcome: None,
            epoch: 1,
            is_honest: true,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0 => self.deliver_to_source(),
            1 => self.deliver_to_target(),
            2 => self.prepare(),
            3 => self.read(input.below(CHUNKS_MAX + 1)),
            4 => self.write(usize::from(input.u8())),
            5 => self.flush(),
            6 => self.drain(),
            7 => self.target.seal(self.now, 0, AgentStats::default()),
            8 => self.pass(Duration::from_millis(100) * u32::from(input.u8())),
            9 => self.reconnect(),
            10 => self.cut(input),
            12 => self.journaled(),
            13 => self.read_back(self.disk.read_digest()),
            14 => self.read_back_wrong(),
            _ => {
                self.is_honest = false;
                self.lie(input);
            }
        }
    }

    fn lie(&mut self, input: &mut Input<'_>) {
        let truth = self.finished.unwrap_or_else(|| model::leaf(0));
        match input.below(6) {
            0 => self
                .source
                .handle_message(self.now, lies::message(input, truth)),
            1 => self
                .target
                .handle_message(self.now, lies::message(input, truth)),
            2 => self.write_chunk(input.below(CHUNKS_MAX + 2), model::leaf(input.below(4))),
            3 => self.write_zeros(input.range(CHUNKS_MAX + 2, 4)),
            4 => {
                let index = ChunkIndex(input.below(CHUNKS_MAX + 2));
                self.source
                    .handle_chunk(index, model::leaf(input.below(4)), u32::MAX);
            }
            _ => self.source.handle_drained(0, AgentStats::default()),
        }
    }
}

/// What an agent, its peer and its volume do.
impl World {
    fn deliver_to_source(&mut self) {
        if let Some(message) = self.to_source.pop_front() {
            self.source.handle_message(self.now, message);
        }
    }

    fn deliver_to_target(&mut self) {
        if let Some(message) = self.to_target.pop_front() {
            self.target.handle_message(self.now, message);
        }
    }

    fn prepare(&mut self) {
        let Some(geometry) = self.prepare.take() else {
            return;
        };
        if geometry == self.geometry {
            let hello = new_hello(&geometry);
            let standing = self.standing.take();
            let standing = standing.unwrap_or_else(|| Standing::new(self.now, geometry, &hello));
            self.target
                .handle_prepared(self.now, TOKEN, standing, self.setting.offer);
        } else {
            self.target
                .fail(Failure::new(FailureCode::TargetTooSmall, ""));
        }
    }

    /// The source reads a chunk, or the zeros that start there, and sends or offers them.
    fn read(&mut self, index: u64) {
        let Some(transfer) = &self.transfer else {
            return;
        };
        let is_due = |index: &u64| {
            let index = ChunkIndex(*index);
            let is_there = self.geometry.holds(ChunkRange::one(index));
            is_there && !transfer.skip.contains(index) && !self.read.contains(index)
        };
        let zeros = (index..)
            .take_while(|index| is_zero(*index) && is_due(index))
            .count();
        let (chunks, arriving) = if zeros > 0 {
            let chunks = index..index + zeros as u64;
            self.source.handle_zero(model::chunks(chunks.clone()));
            (chunks.clone(), Arriving::Chunks(chunks))
        } else if !is_due(&index) {
            return;
        } else if transfer.offer {
            self.source
                .handle_offer(ChunkIndex(index), model::leaf(index));
            (index..index + 1, Arriving::Offer(index))
        } else {
            self.source
                .handle_chunk(ChunkIndex(index), model::leaf(index), 4096);
            (index..index + 1, Arriving::Chunks(index..index + 1))
        };
        self.read.insert(model::chunks(chunks));
        self.arriving.push_back(arriving);
    }

    /// The target writes what it received, in any order.
    fn write(&mut self, choice: usize) {
        let choice = choice.checked_rem(self.arriving.len()).unwrap_or(0);
        match self.arriving.remove(choice) {
            Some(Arriving::Chunks(chunks)) if is_zero(chunks.start) => self.write_zeros(chunks),
            Some(Arriving::Chunks(chunks)) => {
                self.write_chunk(chunks.start, model::leaf(chunks.start));
            }
            Some(Arriving::Offer(index)) => self.compare(index),
            None => {}
        }
    }

    fn compare(&mut self, index: u64) {
        let digest = model::leaf(index);
        if self.disk.holds(index, digest) {
            self.target
                .handle_match(self.now, ChunkIndex(index), digest, 4096);
        }
    }

    /// A record is durable; if none was asked for, the session is told so nevertheless.
    fn journaled(&mut self) {
        if let Some(checkpoint) = self.journaling.take() {
            let bytes = |range: ChunkRange| self.geometry.bytes_of(range).len();
            let durable = checkpoint.durable.iter();
            let sum = durable.map(|subtree| bytes(subtree.chunks(&self.geometry)));
            self.journaled_bytes = self.journaled_bytes.max(sum.sum());
        }
        self.target.handle_journaled(self.now);
    }

    /// The volume was read back, and this is what was found.
    fn read_back(&mut self, digest: Option<Digest>) {
        if let Some(digest) = digest.filter(|_| self.is_reading_back) {
            self.is_reading_back = false;
            self.target.handle_read_back(self.now, digest);
        }
    }

    /// Writes first and tells the session then, as the target agent does.
    fn write_chunk(&mut self, index: u64, digest: Digest) {
        if self.target.geometry().is_some() {
            self.disk.write(index, digest);
        }
        self.target
            .handle_chunk(self.now, ChunkIndex(index), digest, 4096);
    }

    fn write_zeros(&mut self, chunks: Range<u64>) {
        if self.target.geometry().is_some() {
            for index in chunks.clone() {
                self.disk
                    .write(index, model::zero_leaf(&self.geometry, index));
            }
        }
        self.target.handle_zero(self.now, model::chunks(chunks));
    }

    /// A flush returns; if none was asked for, the session is told so nevertheless.
    fn flush(&mut self) {
        self.disk.end_flush();
        self.target.handle_flushed(self.now);
    }

    /// The data connections end, once all was sent.
    fn drain(&mut self) {
        let Some(transfer) = &self.transfer else {
            return;
        };
        if transfer.skip.count() + self.read.count() == self.geometry.chunk_count() {
            self.source.handle_drained(0, AgentStats::default());
            if self.arriving.is_empty() && self.source_rounds == self.target_rounds {
                self.target.handle_drained(self.now);
            }
        }
    }

    /// The volume was read back, and something was lost; but there is only one empty volume.
    fn read_back_wrong(&mut self) {
        if self.is_reading_back && self.geometry.chunk_count() > 0 {
            self.losses += 1;
            // Storage that goes on like this is found to lie.
            self.is_honest &= self.losses <= LOSSES_MAX;
            self.read_back(Some(model::leaf(0)));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.source.handle_timeout(self.now);
        self.target.handle_timeout(self.now);
        self.settle();
        for due in [self.source.poll_timeout(), self.target.poll_timeout()] {
            assert!(
                due.is_none_or(|due| due > self.now),
                "a timer that is due stays due"
            );
        }
    }

    /// Both ends lose everything but the disk and what is known to be on it, and start anew.
    fn reconnect(&mut self) {
        self.epoch += 1;
        let source = new_source(self.now, &self.geometry, self.source.sent());
        let target = new_target(self.now, self.epoch, self.setting);
        let over = std::mem::replace(&mut self.target, target);
        if let Some(standing) = over.into_standing() {
            self.standing = Some(standing);
        }
        self.source = source;
        self.to_source.clear();
        self.to_target.clear();
        self.transfer = None;
        self.read = ChunkSet::default();
        self.source_rounds = 0;
        self.target_rounds = 1;
        self.journaling = None;
        self.is_reading_back = false;
        self.arriving.clear();
        self.disk.crash();
        self.prepare = None;
        self.finished = None;
        self.source_outcome = None;
        self.target_outcome = None;
        self.settle();
    }

    /// One end is ended from outside.
    fn cut(&mut self, input: &mut Input<'_>) {
        let cancelled = Failure::new(FailureCode::Cancelled, "");
        match input.below(4) {
            0 => self.source.fail(cancelled),
            1 => self.source.end(cancelled),
            2 => self.target.fail(cancelled),
            _ => self.target.end(cancelled),
        }
    }

    /// Brings an honest clone to its end.
    fn finish(&mut self) {
        let is_failed = |outcome: &Option<Result<_, _>>| matches!(outcome, Some(Err(_)));
        if is_failed(&self.source_outcome) || is_failed(&self.target_outcome) {
            self.reconnect();
        }
        let mut patience = 16;
        while self.source_outcome.is_none() && patience > 0 {
            patience -= 1;
            for index in 0..=CHUNKS_MAX {
                self.deliver_to_target();
                self.settle();
                self.deliver_to_source();
                self.settle();
                self.prepare();
                self.settle();
                self.journaled();
                self.settle();
                self.read(u64::from(index));
                self.write(0);
                self.settle();
            }
            self.drain();
            self.settle();
            self.flush();
            self.settle();
            self.journaled();
            self.settle();
            self.read_back(self.disk.read_digest());
            self.settle();
            self.target.seal(self.now, 0, AgentStats::default());
            self.settle();
        }
        let is_proven = |outcome: &Option<Result<_, _>>| matches!(outcome, Some(Ok(_)));
        assert!(
            is_proven(&self.target_outcome),
            "target: {:?}",
            self.target_outcome
        );
        assert!(
            is_proven(&self.source_outcome),
            "source: {:?}",
            self.source_outcome
        );
    }
}

/// What must hold.
impl World {
    /// Takes what both ends want said and done.
    fn settle(&mut self) {
        while let Some(message) = self.source.poll_message(self.now) {
            assert!(
                self.source_outcome.is_none(),
                "the source is over and says {message:?}"
            );
            check_fits(&message);
            if let Message::Finish(finish) = &message {
                self.finished = Some(finish.digest);
            }
            self.to_target.push_back(message);
        }
        while let Some(message) = self.target.poll_message() {
            assert!(
                self.target_outcome.is_none(),
                "the target is over and says {message:?}"
            );
            check_fits(&message);
            self.check_durable(&message);
            self.to_source.push_back(message);
        }
        while let Some(action) = self.source.poll_action() {
            assert!(
                self.source_outcome.is_none(),
                "the source is over and wants {action:?}"
            );
            match action {
                SourceAction::Transfer(transfer) => {
                    self.transfer = Some(transfer);
                    self.read = ChunkSet::default();
                    self.source_rounds += 1;
                }
                SourceAction::Done(receipt) => {
                    assert_eq!(Some(receipt.digest), self.finished);
                    assert_eq!(receipt.clone_id, CLONE);
                    if self.is_honest {
                        assert_eq!(receipt.digest, source_digest(&self.geometry));
                        assert_eq!(self.disk.volume_digest(), Some(receipt.digest));
                    }
                    self.source_outcome = Some(Ok(*receipt));
                }
                SourceAction::Fail(failure) => {
                    self.check_blame(&failure);
                    self.source_outcome = Some(Err(failure));
                }
            }
        }
        while let Some(action) = self.target.poll_action() {
            assert!(
                self.target_outcome.is_none(),
                "the target is over and wants {action:?}"
            );
            match action {
                TargetAction::Prepare(geometry) => self.prepare = Some(geometry),
                TargetAction::Flush => self.disk.begin_flush(),
                TargetAction::Journal(checkpoint) => {
                    assert!(self.setting.has_journal);
                    assert_eq!(self.journaling, None, "one record at a time");
                    self.check_subtrees(&checkpoint.durable);
                    self.journaling = Some(*checkpoint);
                }
                TargetAction::ReadBack => {
                    assert!(self.setting.has_read_back);
                    self.is_reading_back = true;
                }
                TargetAction::NextRound => self.target_rounds += 1,
                TargetAction::Seal => {}
                TargetAction::Done(receipt) => {
                    assert_eq!(self.disk.volume_digest(), Some(receipt.digest));
                    self.target_outcome = Some(Ok(*receipt));
                }
                TargetAction::Fail(failure) => {
                    self.check_blame(&failure);
                    self.target_outcome = Some(Err(failure));
                }
            }
        }
        assert_eq!(
            self.source_outcome.is_some(),
            self.source.poll_timeout().is_none()
        );
        assert_eq!(
            self.target_outcome.is_some(),
            self.target.poll_timeout().is_none()
        );
    }

    /// Whatever the target tells as durable is on the disk.
    fn check_durable(&self, message: &Message) {
        match message {
            Message::Watermark(told) => {
                let below = model::chunks(0..told.watermark.0);
                assert!(self.disk.durable(below).is_some(), "{told:?}");
                assert!(told.durable_bytes <= self.disk.durable_bytes(), "{told:?}");
                let is_journaled = told.durable_bytes <= self.journaled_bytes;
                assert!(is_journaled || !self.setting.has_journal, "{told:?}");
            }
            Message::Welcome(Welcome { durable, .. }) => self.check_subtrees(durable),
            _ => {}
        }
    }

    fn check_subtrees(&self, durable: &[Subtree]) {
        for subtree in durable {
            let chunks = self.disk.durable(subtree.chunks(&self.geometry));
            let root = chunks.map(|chunks| model::root(&chunks));
            assert_eq!(root, Some(subtree.digest), "{subtree:?}");
        }
    }

    /// Honest ends end each other by silence, or by a cut from outside.
    fn check_blame(&self, failure: &Failure) {
        let is_nobodys = matches!(failure.code, FailureCode::Silent | FailureCode::Cancelled);
        assert!(is_nobodys || !self.is_honest, "{failure:?}");
    }
}

fn check_fits(message: &Message) {
    let frame = ControlFrame::encode(message);
    assert!(frame.is_ok(), "{} is too long", message.name());
}

fn new_hello(geometry: &Geometry) -> Hello {
    Hello {
        clone_id: CLONE,
        instance: Uuid::from_u128(2),
        attempt: 1,
        take_over: false,
        volume_size: geometry.volume_size(),
        chunk_size: geometry.chunk_size(),
        streams: 4,
        streams_max: None,
        generation: String::new(),
        features: vec![],
        required_features: vec![],
        agent: String::new(),
        tree: None,
    }
}

fn new_source(now: Instant, geometry: &Geometry, sent: Sent) -> SourceSession {
    SourceSession::new(now, new_hello(geometry), sent)
}

fn new_target(now: Instant, epoch: u64, setting: Setting) -> TargetSession {
    let limits = TargetLimits {
        streams_max: 2,
        flush_bytes: 3 * u64::from(ChunkSize::MIN.bytes()),
        has_journal: setting.has_journal,
        verify: if setting.has_read_back {
            Verified::Readback
        } else {
            Verified::Digest
        },
        ..TargetLimits::default()
    };
    TargetSession::new(now, CLONE, epoch, String::new(), limits)
}

/// Every other pair of chunks of the source volume is zero.
fn is_zero(index: u64) -> bool {
    index % 4 >= 2
}

fn source_digest(geometry: &Geometry) -> Digest {
    let chunk = |index| {
        if is_zero(index) {
            model::zero_leaf(geometry, index)
        } else {
            model::leaf(index)
        }
    };
    let chunks: Vec<_> = (0..geometry.chunk_count()).map(chunk).collect();
    model::volume_digest(geometry, &chunks)
}
