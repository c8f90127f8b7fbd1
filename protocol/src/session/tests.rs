//! Both machines in one thread, over a pipe of messages, on a clock of the test's own.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::source::Transfer;
use super::*;
use crate::compression::{Codec, Codecs};
use crate::digest::{Digest, DigestTree};
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::geometry::{ChunkIndex, ChunkRange, ChunkSize, Geometry};
use crate::journal::Checkpoint;
use crate::message::{Finish, Hello, Message, Sent, TokenText, Want, Welcome};
use crate::range_set::ChunkSet;
use crate::receipt::{AgentStats, Receipt, Verified};

const TOKEN: SessionToken = SessionToken([7; 32]);

struct Pair {
    now: Instant,
    source: SourceSession,
    target: TargetSession,
    transfer: Option<Transfer>,
    prepare: Option<Geometry>,
    flushes_due: usize,
    journals_due: Vec<Checkpoint>,
    read_backs_due: usize,
    /// Rounds that the target began beyond the first.
    rounds: usize,
    source_outcome: Option<Result<Receipt, Failure>>,
    target_outcome: Option<Result<Receipt, Failure>>,
}

fn hello(chunks: u64) -> Hello {
    Hello {
        clone_id: Uuid::from_u128(1),
        instance: Uuid::from_u128(2),
        attempt: 1,
        take_over: false,
        volume_size: chunks * u64::from(ChunkSize::MIN.bytes()),
        chunk_size: ChunkSize::MIN,
        streams: 4,
        streams_max: None,
        generation: String::new(),
        features: vec!["something new".into()],
        required_features: vec![],
        agent: String::new(),
        tree: None,
    }
}

impl Pair {
    fn new(hello: Hello) -> Self {
        Self::with(hello, TargetLimits::default())
    }

    fn with(hello: Hello, limits: TargetLimits) -> Self {
        let now = Instant::now();
        let limits = TargetLimits {
            streams_max: 2,
            ..limits
        };
        Self {
            now,
            source: SourceSession::new(now, hello, Sent::default()),
            target: TargetSession::new(now, Uuid::from_u128(1), 1, "target".into(), limits),
            transfer: None,
            prepare: None,
            flushes_due: 0,
            journals_due: vec![],
            read_backs_due: 0,
            rounds: 0,
            source_outcome: None,
            target_outcome: None,
        }
    }

    /// Carries messages both ways until neither end has any.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(message) = self.source.poll_message(self.now) {
                self.target.handle_message(self.now, message);
                quiet = false;
            }
            while let Some(message) = self.target.poll_message() {
                self.source.handle_message(self.now, message);
                quiet = false;
            }
            while let Some(action) = self.source.poll_action() {
                match action {
                    SourceAction::Transfer(transfer) => self.transfer = Some(transfer),
                    SourceAction::Done(receipt) => self.source_outcome = Some(Ok(*receipt)),
                    SourceAction::Fail(failure) => self.source_outcome = Some(Err(failure)),
                }
            }
            while let Some(action) = self.target.poll_action() {
                match action {
                    TargetAction::Prepare(geometry) => self.prepare = Some(geometry),
                    TargetAction::Flush => self.flushes_due += 1,
                    TargetAction::Journal(checkpoint) => self.journals_due.push(*checkpoint),
                    TargetAction::ReadBack => self.read_backs_due += 1,
                    TargetAction::NextRound => self.rounds += 1,
                    TargetAction::Seal => {
                        self.target.seal(self.now, 0, AgentStats::default());
                        quiet = false;
                    }
                    TargetAction::Done(receipt) => self.target_outcome = Some(Ok(*receipt)),
                    TargetAction::Fail(failure) => self.target_outcome = Some(Err(failure)),
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Past the handshake.
    fn greeted(chunks: u64) -> Self {
        let mut pair = Self::new(hello(chunks));
        pair.prepared(false);
        pair
    }

    /// Past a handshake in which the target knows nothing yet and journals at once.
    fn prepared(&mut self, offer: bool) {
        self.settle();
        let geometry = self.prepare.take().expect("the target prepares");
        let hello = self.target.hello().expect("it was greeted");
        let standing = Standing::new(self.now, geometry, hello);
        self.go_on(standing, offer);
    }

    fn go_on(&mut self, standing: Standing, offer: bool) {
        self.settle();
        self.target
            .handle_prepared(self.now, TOKEN, standing, offer);
        self.settle();
        if !self.journals_due.is_empty() {
            self.journaled();
        }
        assert!(self.transfer.is_some(), "{:?}", self.source_outcome);
    }

    fn journaled(&mut self) -> Checkpoint {
        assert_eq!(self.journals_due.len(), 1, "one record at a time");
        self.target.handle_journaled(self.now);
        self.settle();
        self.journals_due.remove(0)
    }

    /// The source offers a chunk, and the target finds it to be the same or another.
    fn offer(&mut self, index: u64, is_there: bool) {
        let digest = leaf(index);
        self.source.handle_offer(ChunkIndex(index), digest);
        if is_there {
            self.target
                .handle_match(self.now, ChunkIndex(index), digest, 4096);
        }
        self.settle();
    }

    /// So many data connections are due at the target, which all end.
    fn drain_of(&mut self, connections: u16) {
        assert_eq!(self.target.connections_due(), None, "nobody has told");
        self.finish();
        assert_eq!(self.target.connections_due(), Some(connections));
        self.target.handle_drained(self.now);
        self.settle();
    }

    /// The data connections of the round end in order.
    fn drain(&mut self) {
        self.target.handle_drained(self.now);
        self.finish();
    }

    /// A clone of two chunks that is durable and has to be read back.
    fn to_read_back() -> Self {
        let limits = TargetLimits {
            verify: Verified::Readback,
            ..TargetLimits::default()
        };
        let mut pair = Self::with(hello(2), limits);
        pair.prepared(false);
        pair.send(0);
        pair.send(1);
        pair.drain();
        pair.flushed();
        assert_eq!(pair.read_backs_due, 1);
        pair
    }

    fn read_back(&mut self, digest: Digest) {
        assert!(self.read_backs_due > 0, "nobody asked");
        self.read_backs_due -= 1;
        self.transfer = None;
        self.target.handle_read_back(self.now, digest);
        self.settle();
    }

    fn receipt(&self) -> &Receipt {
        match (&self.source_outcome, &self.target_outcome) {
            (Some(Ok(receipt)), Some(Ok(own))) => {
                assert_eq!(receipt, own);
                receipt
            }
            other => panic!("not proven: {other:?}"),
        }
    }

    fn send(&mut self, index: u64) {
        let digest = leaf(index);
        self.source.handle_chunk(ChunkIndex(index), digest, 4096);
        self.target
            .handle_chunk(self.now, ChunkIndex(index), digest, 4096);
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let next = [self.source.poll_timeout(), self.target.poll_timeout()];
            self.now = next
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(end)
                .clamp(self.now, end);
            self.source.handle_timeout(self.now);
            self.target.handle_timeout(self.now);
            self.settle();
        }
    }

    fn flushed(&mut self) {
        assert!(self.flushes_due > 0, "no flush is due");
        self.flushes_due -= 1;
        self.target.handle_flushed(self.now);
        self.settle();
    }

    fn finish(&mut self) {
        self.source.handle_drained(99, AgentStats::default());
        self.settle();
    }

    fn failed_with(&self) -> (FailureCode, FailureCode) {
        let code = |outcome: &Option<Result<Receipt, Failure>>| match outcome {
            Some(Err(failure)) => failure.code,
            other => panic!("not failed: {other:?}"),
        };
        (code(&self.source_outcome), code(&self.target_outcome))
    }
}

fn leaf(index: u64) -> Digest {
    Digest::of_chunk(&index.to_be_bytes())
}

fn volume_digest(chunks: u64) -> Digest {
    let mut tree = DigestTree::new(geometry(chunks));
    for index in 0..chunks {
        tree.insert(ChunkIndex(index), leaf(index)).unwrap();
    }
    tree.volume_digest().unwrap()
}

fn geometry(chunks: u64) -> Geometry {
    Geometry::new(hello(chunks).volume_size, ChunkSize::MIN).unwrap()
}

fn chunks(start: u64, end: u64) -> ChunkRange {
    ChunkRange {
        start: ChunkIndex(start),
        end: ChunkIndex(end),
    }
}

#[test]
fn a_clone_ends_in_the_same_receipt_at_both_ends() {
    let mut pair = Pair::greeted(3);
    assert_eq!(
        pair.transfer.as_ref().unwrap().streams,
        2,
        "the smaller of what both allow"
    );
    pair.send(2);
    pair.send(0);
    pair.source.handle_zero(ChunkRange::one(ChunkIndex(1)));
    pair.target
        .handle_zero(pair.now, ChunkRange::one(ChunkIndex(1)));
    pair.finish();
    assert_eq!(
        pair.target_outcome, None,
        "nothing is proven before it is durable"
    );
    pair.flushed();
    let receipt = pair.source_outcome.take().unwrap().unwrap();
    assert_eq!(pair.target_outcome.take().unwrap().unwrap(), receipt);
    assert_eq!(
        (receipt.data_bytes, receipt.zero_bytes),
        (8192, 3 * 65536 - 8192)
    );
    assert_eq!(receipt.wire_bytes, 99);
    let mut tree = DigestTree::new(Geometry::new(3 * 65536, ChunkSize::MIN).unwrap());
    for index in [0u64, 2] {
        tree.insert(ChunkIndex(index), Digest::of_chunk(&index.to_be_bytes()))
            .unwrap();
    }
    tree.insert_zero(ChunkRange::one(ChunkIndex(1))).unwrap();
    assert_eq!(Some(receipt.digest), tree.volume_digest());
}

#[test]
fn an_empty_volume_is_proven_by_a_flush() {
    let mut pair = Pair::greeted(0);
    pair.finish();
    assert_eq!(
        pair.source_outcome, None,
        "the new file itself may be lost yet"
    );
    pair.flushed();
    assert_eq!(pair.source_outcome.unwrap().unwrap().logical_bytes, 0);
}

#[test]
fn only_what_a_flush_covers_is_durable() {
    let mut pair = Pair::greeted(4);
    pair.send(0);
    pair.pass(Duration::from_secs(3));
    assert_eq!(
        pair.flushes_due, 1,
        "written bytes are flushed after a while"
    );
    pair.send(1);
    pair.flushed();
    pair.pass(Duration::from_secs(1));
    assert_eq!(
        pair.source.watermark().watermark,
        ChunkIndex(1),
        "chunk 1 came after the flush began"
    );
    assert_eq!(pair.source.watermark().durable_bytes, 65536);
}

#[test]
fn a_session_goes_on_from_what_is_durable() {
    let mut first = Pair::greeted(4);
    first.send(0);
    first.send(3);
    first.pass(Duration::from_secs(3));
    first.send(1);
    first.flushed();
    let standing = first.target.into_standing().unwrap();

    let mut second = Pair::new(hello(4));
    second.go_on(standing, false);
    let durable = &second.transfer.as_ref().unwrap().skip;
    assert_eq!(
        second.source.watermark().durable_bytes,
        2 * 65536,
        "what is told doesn't fall"
    );
    let skipped: Vec<_> = (0..4)
        .filter(|index| durable.contains(ChunkIndex(*index)))
        .collect();
    assert_eq!(skipped, [0, 3], "chunk 1 was written but not flushed");
    second.send(1);
    second.send(2);
    second.finish();
    second.flushed();
    let receipt = second.source_outcome.unwrap().unwrap();
    assert_eq!(receipt.resumed_bytes, 2 * 65536);
    assert_eq!(receipt.sent_bytes, 5 * 4096);
    assert_eq!(receipt.resent_bytes, 4096, "chunk 1");
    assert_eq!(receipt.data_bytes, 4 * 4096);
    let mut whole = Pair::greeted(4);
    (0..4).for_each(|index| whole.send(index));
    whole.finish();
    whole.flushed();
    assert_eq!(
        whole.source_outcome.unwrap().unwrap().digest,
        receipt.digest
    );
}

#[test]
fn a_finish_with_chunks_missing_is_refused_once_none_can_come() {
    for finish_first in [true, false] {
        let mut pair = Pair::greeted(3);
        pair.send(0);
        pair.send(1);
        let digest = Digest::of_chunk(b"never sent");
        pair.source.handle_chunk(ChunkIndex(2), digest, 4096);
        if finish_first {
            pair.finish();
            assert_eq!(pair.target_outcome, None, "the chunk may be on its way");
            pair.target.handle_drained(pair.now);
        } else {
            pair.target.handle_drained(pair.now);
            assert_eq!(pair.target.stage(), Stage::Transfer, "finish may come");
            pair.finish();
        }
        pair.settle();
        assert_eq!(
            pair.failed_with(),
            (FailureCode::Protocol, FailureCode::Protocol)
        );
        let failure = pair.target_outcome.unwrap().unwrap_err();
        assert!(failure.text.contains("chunk 2"), "{}", failure.text);
    }
}

#[test]
fn a_clone_of_which_all_came_is_proven_after_the_connections_ended() {
    let mut pair = Pair::greeted(2);
    pair.send(0);
    pair.send(1);
    pair.target.handle_drained(pair.now);
    pair.finish();
    pair.flushed();
    assert!(matches!(pair.target_outcome, Some(Ok(_))));
}

#[test]
fn another_digest_is_no_success() {
    let mut pair = Pair::greeted(2);
    pair.send(0);
    pair.source
        .handle_chunk(ChunkIndex(1), Digest::of_chunk(b"read"), 4096);
    pair.target
        .handle_chunk(pair.now, ChunkIndex(1), Digest::of_chunk(b"written"), 4096);
    pair.finish();
    pair.flushed();
    assert_eq!(
        pair.failed_with(),
        (FailureCode::Integrity, FailureCode::Integrity)
    );
}

#[test]
fn a_source_that_misbehaves_is_refused() {
    let check = |hello: Hello, code| {
        let mut pair = Pair::new(hello);
        pair.settle();
        assert_eq!(pair.failed_with(), (code, code));
        assert_eq!(pair.prepare, None, "nothing was touched");
    };
    check(
        Hello {
            clone_id: Uuid::from_u128(2),
            ..hello(1)
        },
        FailureCode::WrongClone,
    );
    check(
        Hello {
            streams: 0,
            ..hello(1)
        },
        FailureCode::Protocol,
    );
    check(
        Hello {
            volume_size: u64::MAX,
            ..hello(1)
        },
        FailureCode::Protocol,
    );
    check(
        Hello {
            generation: "x".repeat(4097),
            ..hello(1)
        },
        FailureCode::Protocol,
    );
    let future = Hello {
        required_features: vec!["teleport".into()],
        ..hello(1)
    };
    check(future, FailureCode::Unsupported);

    let mut pair = Pair::greeted(2);
    pair.target
        .handle_message(pair.now, Message::Hello(hello(2)));
    pair.settle();
    assert_eq!(
        pair.failed_with(),
        (FailureCode::Protocol, FailureCode::Protocol)
    );

    let mut pair = Pair::greeted(2);
    pair.send(0);
    pair.target
        .handle_chunk(pair.now, ChunkIndex(0), Digest::of_chunk(b"again"), 4096);
    pair.settle();
    assert_eq!(
        pair.failed_with(),
        (FailureCode::Protocol, FailureCode::Protocol)
    );
    assert!(
        pair.target.into_standing().is_none(),
        "what was there is overwritten"
    );
}

#[test]
fn a_target_that_misbehaves_is_refused() {
    let check = |change: &dyn Fn(&mut Welcome)| {
        let mut pair = Pair::new(hello(4));
        pair.settle();
        let geometry = pair.prepare.take().unwrap();
        let standing = Standing::new(pair.now, geometry, &hello(4));
        pair.target
            .handle_prepared(pair.now, TOKEN, standing, false);
        let Some(Message::Welcome(mut welcome)) = pair.target.poll_message() else {
            panic!()
        };
        change(&mut welcome);
        pair.source
            .handle_message(pair.now, Message::Welcome(welcome));
        pair.settle();
        assert_eq!(
            pair.failed_with(),
            (FailureCode::Protocol, FailureCode::Protocol)
        );
    };
    check(&|welcome| welcome.streams = 0);
    check(&|welcome| welcome.streams = 9);
    check(&|welcome| welcome.chunk_size = ChunkSize::MAX);
    let subtree = |start, level| crate::digest::Subtree {
        start: ChunkIndex(start),
        level,
        digest: Digest::of_chunk(b""),
    };
    check(&|welcome| welcome.durable = vec![subtree(4, 0)]);
    check(&|welcome| welcome.durable = vec![subtree(0, 1), subtree(1, 0)]);
    check(&|welcome| welcome.durable = vec![subtree(0, 99)]);
}

#[test]
fn a_receipt_for_something_else_is_not_believed() {
    let mut pair = Pair::greeted(1);
    pair.send(0);
    pair.finish();
    pair.target.handle_flushed(pair.now);
    assert_eq!(pair.target.poll_action(), Some(TargetAction::Seal));
    pair.target.seal(pair.now, 0, AgentStats::default());
    let mut forged = None;
    while let Some(message) = pair.target.poll_message() {
        if let Message::Receipt(receipt) = message {
            forged = Some(Receipt {
                digest: Digest::of_chunk(b"other"),
                ..*receipt
            });
        }
    }
    pair.source
        .handle_message(pair.now, Message::Receipt(Box::new(forged.unwrap())));
    pair.settle();
    assert!(
        matches!(pair.source_outcome, Some(Err(failure)) if failure.code == FailureCode::Integrity)
    );
}

#[test]
fn silence_ends_a_session_and_pings_prevent_it() {
    let mut pair = Pair::greeted(2);
    pair.pass(Duration::from_secs(600));
    assert_eq!(
        pair.source_outcome, None,
        "two idle ends keep each other company"
    );

    let end = pair.now + SILENCE_MAX * 2;
    while let Some(at) = pair.source.poll_timeout().filter(|at| *at < end) {
        pair.now = at;
        pair.source.handle_timeout(at);
        while pair.source.poll_message(at).is_some() {}
    }
    pair.target.handle_timeout(pair.now);
    pair.settle();
    assert_eq!(
        pair.failed_with(),
        (FailureCode::Silent, FailureCode::Silent)
    );
}

#[test]
fn the_ends_compress_by_what_both_know() {
    for (features, codecs) in [
        (&["zstd", "lz4"][..], Codecs::all()),
        (
            &["zstd", "something new"],
            [Codec::Zstd].into_iter().collect(),
        ),
        (&[], Codecs::NONE),
    ] {
        let features = features.iter().map(ToString::to_string).collect();
        let mut pair = Pair::new(Hello {
            features,
            ..hello(1)
        });
        pair.prepared(false);
        assert_eq!(pair.transfer.unwrap().codecs, codecs);
    }
    // A target that is told of features and names none: it is older.
    let able = Hello {
        features: Codecs::all().features().collect(),
        ..hello(1)
    };
    let mut source = SourceSession::new(Instant::now(), able, Sent::default());
    let welcome = r#"{"type":"welcome","epoch":1,"token":"T","chunk_size":65536,"streams":4}"#;
    let welcome = welcome.replace('T', &"07".repeat(32));
    source.handle_message(Instant::now(), serde_json::from_str(&welcome).unwrap());
    let Some(SourceAction::Transfer(transfer)) = source.poll_action() else {
        panic!("a target of an earlier version is as good");
    };
    assert_eq!(transfer.codecs, Codecs::NONE);
}

#[test]
fn a_watermark_before_the_welcome_is_no_progress() {
    let mut pair = Pair::new(hello(2));
    pair.pass(Duration::from_secs(20));
    assert_eq!(pair.source_outcome, None, "but a sign of life");
    let told = crate::message::Watermark {
        durable_bytes: 65536,
        ..Default::default()
    };
    pair.source
        .handle_message(pair.now, Message::Watermark(told));
    assert_eq!(pair.source.watermark().durable_bytes, 0);
    pair.prepared(false);
    pair.source
        .handle_message(pair.now, Message::Watermark(told));
    assert_eq!(pair.source.watermark(), told);
}

#[test]
fn of_an_offer_nothing_is_sent_that_is_there() {
    let mut pair = Pair::new(hello(3));
    pair.prepared(true);
    assert!(pair.transfer.as_ref().unwrap().offer);
    (0..3).for_each(|index| pair.offer(index, true));
    pair.drain();
    pair.flushed();
    let receipt = pair.receipt();
    assert_eq!(receipt.digest, volume_digest(3));
    assert_eq!(receipt.matched_bytes, 3 * 4096);
    assert_eq!((receipt.sent_bytes, receipt.resent_bytes), (0, 0));
    assert_eq!(pair.rounds, 0, "there is nothing to send");
}

#[test]
fn what_matched_and_was_not_durable_counts_once() {
    let mut first = Pair::new(hello(2));
    first.prepared(true);
    first.offer(0, true);
    first.pass(Duration::from_secs(3));
    first.flushed();
    first.offer(1, true);
    let standing = first.target.into_standing().unwrap();
    assert_eq!(standing.matched_bytes, 4096);

    let mut second = Pair::new(hello(2));
    second.go_on(standing, true);
    second.offer(1, true);
    second.drain();
    second.flushed();
    let receipt = second.receipt();
    assert_eq!(receipt.matched_bytes, 2 * 4096);
    assert_eq!((receipt.sent_bytes, receipt.resent_bytes), (0, 0));
}

#[test]
fn of_an_offer_what_differs_is_sent() {
    let mut pair = Pair::new(hello(5));
    pair.prepared(true);
    for index in 0..5 {
        pair.offer(index, index == 2);
    }
    pair.transfer = None;
    pair.drain();
    assert_eq!(pair.rounds, 1);
    let round = pair.transfer.take().expect("another round");
    assert!(!round.offer);
    let skipped: Vec<_> = round.skip.ranges().collect();
    assert_eq!(skipped, [chunks(2, 3)]);
    assert_eq!(round.token, TOKEN);
    for index in [0, 1, 3, 4] {
        pair.send(index);
    }
    pair.drain();
    pair.flushed();
    let receipt = pair.receipt();
    assert_eq!(receipt.digest, volume_digest(5));
    assert_eq!(receipt.matched_bytes, 4096);
    assert_eq!((receipt.sent_bytes, receipt.resent_bytes), (4 * 4096, 0));
    assert_eq!(receipt.wire_bytes, 2 * 99, "of both rounds");
}

#[test]
fn what_was_wanted_has_to_come() {
    let mut pair = Pair::new(hello(3));
    pair.prepared(true);
    (0..3).for_each(|index| pair.offer(index, false));
    pair.drain();
    pair.send(0);
    pair.send(2);
    pair.drain();
    assert_eq!(
        pair.failed_with(),
        (FailureCode::Protocol, FailureCode::Protocol)
    );
    let failure = pair.target_outcome.unwrap().unwrap_err();
    assert!(failure.text.contains("chunk 1"), "{}", failure.text);
}

#[test]
fn more_ranges_than_a_want_holds_take_more_rounds() {
    let count = 9000;
    let mut pair = Pair::new(hello(count));
    pair.prepared(true);
    (0..count).for_each(|index| pair.offer(index, index % 2 == 0));
    let mut sent = 0;
    for expected in [4096, 404] {
        pair.transfer = None;
        pair.drain();
        let skip = pair.transfer.as_ref().expect("another round").skip.clone();
        let wanted = skip.complement(geometry(count).chunks());
        assert_eq!(wanted.ranges().count(), expected);
        for range in wanted.ranges() {
            pair.send(range.start.0);
            sent += 1;
        }
    }
    assert_eq!(sent, count / 2);
    pair.drain();
    pair.flushed();
    assert_eq!(pair.receipt().digest, volume_digest(count));
    assert_eq!(pair.rounds, 2);
}

#[test]
fn a_volume_that_reads_back_well_is_proven() {
    let mut pair = Pair::to_read_back();
    pair.read_back(volume_digest(2));
    let receipt = pair.receipt();
    assert_eq!(receipt.verified, Verified::Readback);
    assert_eq!(receipt.repaired_bytes, 0);
}

#[test]
fn nothing_is_read_back_while_chunks_may_come() {
    let limits = TargetLimits {
        verify: Verified::Readback,
        ..TargetLimits::default()
    };
    let mut pair = Pair::with(hello(1), limits);
    pair.prepared(false);
    pair.send(0);
    pair.finish();
    pair.flushed();
    assert_eq!(pair.read_backs_due, 0);
    pair.target.handle_drained(pair.now);
    pair.settle();
    assert_eq!(pair.read_backs_due, 1);
}

#[test]
fn what_reads_back_wrong_is_sent_again() {
    for has_journal in [false, true] {
        let limits = TargetLimits {
            verify: Verified::Readback,
            has_journal,
            ..TargetLimits::default()
        };
        let mut pair = Pair::with(hello(2), limits);
        pair.prepared(false);
        pair.send(0);
        pair.send(1);
        pair.drain();
        pair.flushed();
        if has_journal {
            pair.journaled();
        }
        pair.read_back(Digest::of_chunk(b"rot"));
        if has_journal {
            assert_eq!(pair.journaled().durable, [], "nothing is vouched for");
        }
        assert_eq!(
            pair.target.watermark().durable_bytes,
            2 * 65536,
            "what was told is not taken back"
        );
        let round = pair.transfer.take().expect("another round");
        assert!(round.offer && round.skip.is_empty());
        pair.offer(0, true);
        pair.offer(1, false);
        pair.drain();
        let round = pair.transfer.take().expect("another round");
        assert!(!round.offer);
        pair.send(1);
        pair.drain();
        pair.flushed();
        if has_journal {
            pair.journaled();
        }
        pair.read_back(volume_digest(2));
        let receipt = pair.receipt();
        assert_eq!(receipt.digest, volume_digest(2));
        assert_eq!(receipt.repaired_bytes, 65536);
        assert_eq!((receipt.sent_bytes, receipt.resent_bytes), (3 * 4096, 4096));
        assert_eq!(receipt.matched_bytes, 0, "it was sent in this clone");
    }
}

#[test]
fn a_repair_that_was_cut_is_finished_by_offers() {
    let mut first = Pair::to_read_back();
    first.read_back(Digest::of_chunk(b"rot"));
    first.offer(0, true);
    let mut standing = first.target.into_standing().unwrap();
    assert_eq!(standing.ledger.watermark().durable_bytes, 0);
    standing.matched_bytes = 4096;

    let mut second = Pair::new(hello(2));
    second.go_on(standing, true);
    second.offer(0, true);
    second.offer(1, true);
    second.drain();
    second.flushed();
    let receipt = second.receipt();
    assert_eq!((receipt.data_bytes, receipt.matched_bytes), (8192, 8192));
}

#[test]
fn storage_that_loses_all_repairs_fails_the_clone() {
    let mut pair = Pair::to_read_back();
    for _ in 0..3 {
        pair.read_back(Digest::of_chunk(b"rot"));
        pair.offer(0, true);
        pair.offer(1, true);
        pair.drain();
        pair.flushed();
        assert_eq!(pair.source_outcome, None);
    }
    pair.read_back(Digest::of_chunk(b"rot"));
    assert_eq!(
        pair.failed_with(),
        (FailureCode::Integrity, FailureCode::Integrity)
    );
}

fn journaling() -> TargetLimits {
    TargetLimits {
        has_journal: true,
        ..TargetLimits::default()
    }
}

#[test]
fn with_a_journal_only_its_record_makes_durable() {
    let mut pair = Pair::with(hello(2), journaling());
    pair.prepared(false);
    pair.send(0);
    pair.pass(Duration::from_secs(3));
    pair.flushed();
    pair.pass(Duration::from_secs(5));
    assert_eq!(pair.source.watermark().durable_bytes, 0, "no record yet");
    pair.send(1);
    pair.finish();
    pair.pass(Duration::from_secs(5));
    assert_eq!(pair.flushes_due, 0, "one after the other");
    let record = pair.journaled();
    assert_eq!(record.durable.len(), 1);
    assert_eq!((record.epoch, record.taken_bytes), (1, 4096));
    pair.pass(Duration::from_secs(5));
    assert_eq!(pair.source.watermark().durable_bytes, 65536);
    pair.flushed();
    pair.pass(Duration::from_secs(5));
    assert_eq!(pair.source_outcome, None, "no receipt without a record");
    pair.journaled();
    assert_eq!(pair.receipt().digest, volume_digest(2));
}

#[test]
fn the_journal_knows_what_a_welcome_tells() {
    let mut first = Pair::with(hello(2), journaling());
    first.prepared(false);
    first.send(0);
    first.pass(Duration::from_secs(3));
    first.flushed();
    assert_eq!(first.journals_due.len(), 1, "and the session is cut");
    let standing = first.target.into_standing().unwrap();

    let mut second = Pair::with(hello(2), journaling());
    second.settle();
    second
        .target
        .handle_prepared(second.now, TOKEN, standing, false);
    second.pass(Duration::from_secs(5));
    assert_eq!(second.transfer, None, "no record yet");
    assert_eq!(second.source.watermark().durable_bytes, 0);
    assert_eq!(second.journaled().durable.len(), 1);
    assert!(second.transfer.is_some());
    assert_eq!(second.source.watermark().durable_bytes, 65536);
}

#[test]
fn no_more_is_told_than_a_record_holds() {
    let count = 9000;
    let limits = TargetLimits {
        flush_bytes: u64::MAX,
        ..journaling()
    };
    let mut pair = Pair::with(hello(count), limits);
    pair.prepared(false);
    (0..count).step_by(2).for_each(|index| pair.send(index));
    pair.pass(Duration::from_secs(3));
    pair.flushed();
    let record = pair.journaled();
    pair.pass(Duration::from_secs(1));
    assert_eq!(record.durable.len(), 4096);
    assert_eq!(pair.source.watermark().durable_bytes, 4096 * 65536);
    (0..count)
        .skip(1)
        .step_by(2)
        .for_each(|index| pair.send(index));
    pair.finish();
    pair.flushed();
    pair.journaled();
    assert_eq!(pair.receipt().digest, volume_digest(count));
}

#[test]
fn a_session_that_is_over_journals_nothing() {
    let mut pair = Pair::with(hello(2), journaling());
    pair.prepared(false);
    pair.send(0);
    pair.pass(Duration::from_secs(3));
    pair.target.end(Failure::new(FailureCode::Disconnected, ""));
    pair.settle();
    pair.flushed();
    assert_eq!(pair.journals_due, []);
    let standing = pair.target.into_standing().unwrap();
    assert_eq!(standing.ledger.watermark().durable_bytes, 65536);
}

#[test]
fn a_want_of_what_is_not_there_is_refused() {
    for (start, end) in [(0, 0), (2, 3), (0, 3)] {
        let mut pair = Pair::greeted(2);
        pair.send(0);
        pair.send(1);
        pair.finish();
        let mut wanted = ChunkSet::default();
        wanted.insert(chunks(start, end));
        let want = Want {
            chunks: wanted,
            offer: false,
        };
        pair.source.handle_message(pair.now, Message::Want(want));
        pair.settle();
        assert_eq!(
            pair.failed_with(),
            (FailureCode::Protocol, FailureCode::Protocol)
        );
    }
}

#[test]
fn a_want_out_of_turn_is_refused() {
    let mut pair = Pair::greeted(2);
    let mut wanted = ChunkSet::default();
    wanted.insert(chunks(0, 1));
    let want = Want {
        chunks: wanted,
        offer: false,
    };
    pair.source.handle_message(pair.now, Message::Want(want));
    pair.settle();
    assert_eq!(
        pair.failed_with(),
        (FailureCode::Protocol, FailureCode::Protocol)
    );
}

#[test]
fn what_a_run_sent_in_earlier_sessions_counts() {
    let now = Instant::now();
    let before = Sent {
        data_bytes: 1,
        zero_bytes: 2,
        wire_bytes: 3,
    };
    let source = SourceSession::new(now, hello(1), before);
    assert_eq!(source.sent(), before);
    let mut pair = Pair::new(hello(1));
    pair.source = source;
    pair.prepared(false);
    pair.send(0);
    pair.finish();
    pair.flushed();
    let receipt = pair.receipt();
    assert_eq!((receipt.sent_bytes, receipt.resent_bytes), (4097, 1));
    assert_eq!(receipt.wire_bytes, 102);
}

#[test]
fn another_clone_or_source_resumes_nothing() {
    let mut pair = Pair::with(hello(4), journaling());
    pair.prepared(false);
    pair.send(0);
    pair.send(1);
    pair.pass(Duration::from_secs(3));
    pair.flushed();
    let checkpoint = pair.journaled();
    let now = pair.now;
    let resume = |hello: &Hello, checkpoint: &Checkpoint| {
        let geometry = Geometry::new(hello.volume_size, hello.chunk_size).unwrap();
        Standing::resume(now, geometry, hello, checkpoint)
    };
    let standing = resume(&hello(4), &checkpoint).unwrap();
    assert_eq!(standing.ledger.watermark().watermark, ChunkIndex(2));
    assert_eq!(standing.taken_bytes, 2 * 4096);
    assert_eq!(standing.checkpoint(checkpoint.clone_id, 1), checkpoint);

    let refused = |hello: Hello| resume(&hello, &checkpoint).unwrap_err();
    let other = Hello {
        clone_id: Uuid::from_u128(9),
        ..hello(4)
    };
    let error = refused(other);
    assert_eq!(error, CannotResume::OtherClone(checkpoint.clone_id));
    assert!(!error.is_source_changed());
    let larger = Hello {
        chunk_size: ChunkSize::MAX,
        ..hello(4)
    };
    let newer = Hello {
        generation: "newer".into(),
        ..hello(4)
    };
    for changed in [hello(5), larger, newer] {
        assert!(refused(changed.clone()).is_source_changed());
        let geometry = Geometry::new(changed.volume_size, changed.chunk_size).unwrap();
        let error = standing.check_source(geometry, &changed).unwrap_err();
        assert!(error.is_source_changed());
        assert_eq!(error, refused(changed));
    }
    assert_eq!(standing.check_source(geometry(4), &hello(4)), Ok(()));

    let damaged = Checkpoint {
        durable: vec![checkpoint.durable[0]; 2],
        ..checkpoint.clone()
    };
    assert_eq!(
        resume(&hello(4), &damaged).unwrap_err(),
        CannotResume::Damaged
    );
}

/// A source that begins with one stream and may come to want three; the target grants two.
fn growing(chunks: u64) -> Hello {
    Hello {
        streams: 1,
        streams_max: Some(3),
        ..hello(chunks)
    }
}

#[test]
fn a_round_may_get_further_connections_and_the_target_waits_for_those_that_came() {
    let mut pair = Pair::new(growing(2));
    pair.prepared(true);
    let transfer = pair.transfer.take().unwrap();
    assert_eq!((transfer.streams, transfer.streams_max), (1, 2));
    assert_eq!(pair.source.handle_joined(), Some(1));
    pair.offer(0, true);
    pair.offer(1, false);
    pair.drain_of(2);
    // The next round begins as the first did.
    let transfer = pair.transfer.take().expect("another round");
    assert_eq!((transfer.streams, transfer.streams_max), (1, 2));
    pair.send(1);
    pair.drain_of(1);
    assert_eq!(pair.source.handle_joined(), None, "the round is over");
    pair.flushed();
    assert_eq!(pair.receipt().digest, volume_digest(2));
}

#[test]
fn no_more_connections_are_opened_than_were_granted() {
    let mut pair = Pair::new(growing(1));
    pair.prepared(false);
    assert_eq!(pair.source.handle_joined(), Some(1));
    assert_eq!(pair.source.handle_joined(), None);
    // Who names no number of its own gets what it asked for, as ever.
    let mut plain = Pair::new(hello(1));
    plain.prepared(false);
    assert_eq!(plain.source.handle_joined(), None);
    plain.send(0);
    plain.drain_of(2);
}

#[test]
fn a_round_of_connections_that_were_not_granted_is_refused() {
    for connections in [0, 3] {
        let mut pair = Pair::new(growing(1));
        pair.prepared(false);
        pair.send(0);
        let finish = Finish {
            digest: volume_digest(1),
            connections: Some(connections),
            sent: Sent::default(),
            source: Box::default(),
            tree: None,
        };
        pair.target
            .handle_message(pair.now, Message::Finish(finish));
        pair.settle();
        let (source, target) = pair.failed_with();
        assert_eq!(
            (source, target),
            (FailureCode::Protocol, FailureCode::Protocol)
        );
    }
}

#[test]
fn a_grant_of_more_than_was_asked_for_is_refused() {
    let check = |hello: Hello, streams: u16, most: Option<u16>, is_taken: bool| {
        let now = Instant::now();
        let mut source = SourceSession::new(now, hello, Sent::default());
        let welcome = Welcome {
            epoch: 1,
            token: TokenText::new(TOKEN),
            chunk_size: ChunkSize::MIN,
            streams,
            streams_max: most,
            durable: vec![],
            offer: false,
            compare: false,
            features: vec![],
            agent: String::new(),
            tree: None,
        };
        source.handle_message(now, Message::Welcome(welcome));
        let is_transfer = matches!(source.poll_action(), Some(SourceAction::Transfer(_)));
        assert_eq!(is_transfer, is_taken, "{streams} {most:?}");
    };
    check(growing(1), 1, Some(3), true);
    check(growing(1), 1, None, true);
    check(growing(1), 1, Some(1), true);
    check(growing(1), 1, Some(4), false);
    check(growing(1), 2, Some(3), false);
    check(growing(1), 1, Some(0), false);
    check(growing(1), 0, Some(3), false);
    check(hello(1), 4, Some(5), false);
}

#[test]
fn the_target_tells_where_its_time_goes() {
    let mut pair = Pair::greeted(2);
    let waits = crate::waits::Waits {
        peer_wait_seconds: 2.0,
        ..Default::default()
    };
    pair.target.set_waits(waits);
    pair.target.handle_message(pair.now, Message::Ping);
    pair.settle();
    assert_eq!(pair.source.watermark().waits, Some(waits));
}

#[test]
fn the_target_tells_which_limit_was_asked_for() {
    let mut pair = Pair::greeted(2);
    pair.target.handle_message(pair.now, Message::Ping);
    pair.settle();
    assert_eq!(pair.source.watermark().bandwidth_limit, None);
    pair.target.set_bandwidth_limit(Some(0));
    pair.target.handle_message(pair.now, Message::Ping);
    pair.settle();
    assert_eq!(pair.source.watermark().bandwidth_limit, Some(0));
}
