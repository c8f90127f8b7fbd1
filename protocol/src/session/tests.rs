//! Both machines in one thread, over a pipe of messages, on a clock of the test's own.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::source::Transfer;
use super::*;
use crate::digest::{Digest, DigestTree};
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::geometry::{ChunkIndex, ChunkRange, ChunkSize, Geometry};
use crate::message::{Hello, Message};
use crate::receipt::{AgentStats, Receipt};

const TOKEN: SessionToken = SessionToken([7; 32]);

struct Pair {
    now: Instant,
    source: SourceSession,
    target: TargetSession,
    transfer: Option<Transfer>,
    prepare: Option<Geometry>,
    flushes_due: usize,
    source_outcome: Option<Result<Receipt, Failure>>,
    target_outcome: Option<Result<Receipt, Failure>>,
}

fn hello(chunks: u64) -> Hello {
    Hello {
        clone_id: Uuid::from_u128(1),
        attempt: 1,
        volume_size: chunks * u64::from(ChunkSize::MIN.bytes()),
        chunk_size: ChunkSize::MIN,
        streams: 4,
        generation: String::new(),
        features: vec!["something new".into()],
        required_features: vec![],
        agent: String::new(),
        tree: None,
    }
}

impl Pair {
    fn new(hello: Hello) -> Self {
        let now = Instant::now();
        let limits = TargetLimits {
            streams_max: 2,
            ..TargetLimits::default()
        };
        Self {
            now,
            source: SourceSession::new(now, hello),
            target: TargetSession::new(now, Uuid::from_u128(1), 1, "target".into(), limits),
            transfer: None,
            prepare: None,
            flushes_due: 0,
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
        pair.settle();
        let geometry = pair.prepare.take().expect("the target prepares");
        pair.target
            .handle_prepared(pair.now, TOKEN, Ledger::new(geometry));
        pair.settle();
        assert!(pair.transfer.is_some(), "{:?}", pair.source_outcome);
        pair
    }

    fn send(&mut self, index: u64) {
        let digest = Digest::of_chunk(&index.to_be_bytes());
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
    let ledger = first.target.into_ledger().unwrap();

    let mut second = Pair::new(hello(4));
    second.settle();
    second.target.handle_prepared(second.now, TOKEN, ledger);
    second.settle();
    let durable = &second.transfer.as_ref().unwrap().durable;
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
        pair.target.into_ledger().is_none(),
        "what was there is overwritten"
    );
}

#[test]
fn a_target_that_misbehaves_is_refused() {
    let check = |change: &dyn Fn(&mut crate::message::Welcome)| {
        let mut pair = Pair::new(hello(4));
        pair.settle();
        let ledger = Ledger::new(pair.prepare.take().unwrap());
        pair.target.handle_prepared(pair.now, TOKEN, ledger);
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
