//! The two machines against each other.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::*;
use crate::digest::Digest;
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::geometry::ChunkSize;
use crate::message::{Hello, Message, Sent};
use crate::receipt::{AgentStats, Receipt, Verified};
use crate::session::Stage;
use crate::tree::fidelity::FidelityClass;

fn hello(terms: TreeTerms) -> Hello {
    Hello {
        clone_id: Uuid::nil(),
        instance: Uuid::nil(),
        attempt: 1,
        take_over: false,
        volume_size: 0,
        chunk_size: ChunkSize::DEFAULT,
        streams: 3,
        streams_max: None,
        generation: String::new(),
        features: Vec::new(),
        required_features: vec!["tree".to_owned()],
        agent: String::new(),
        tree: Some(terms),
    }
}

fn limits(streams_max: u16, terms: TreeTerms) -> TreeLimits {
    TreeLimits {
        streams_max,
        terms,
        verify: Verified::Digest,
    }
}

fn summary(byte: u8) -> TreeSummary {
    TreeSummary {
        digest: Digest([byte; 32]),
        counts: TreeCounts {
            files: 1,
            directories: 1,
            bytes: 10,
            ..TreeCounts::default()
        },
        fidelity: FidelityReport::default(),
        changed: 0,
        data_bytes: 8,
        resumed_bytes: 0,
        matched_bytes: 0,
        repaired_bytes: 0,
    }
}

struct Pair {
    now: Instant,
    source: TreeSourceSession,
    target: TreeTargetSession,
}

impl Pair {
    fn new(source: TreeTerms, target: TreeTerms) -> Self {
        let now = Instant::now();
        Self {
            now,
            source: TreeSourceSession::new(now, hello(source), None),
            target: TreeTargetSession::new(
                now,
                Uuid::nil(),
                1,
                "target".to_owned(),
                limits(2, target),
                Earlier::default(),
            ),
        }
    }

    fn talk(&mut self) {
        loop {
            let (said, heard) = (
                self.source.poll_message(self.now),
                self.target.poll_message(),
            );
            if said.is_none() && heard.is_none() {
                return;
            }
            said.into_iter()
                .for_each(|message| self.target.handle_message(self.now, message));
            heard
                .into_iter()
                .for_each(|message| self.source.handle_message(self.now, message));
        }
    }

    fn begin(&mut self) -> TreeTerms {
        self.talk();
        let Some(TreeTargetAction::Prepare(terms)) = self.target.poll_action() else {
            panic!("nothing to prepare");
        };
        assert_eq!(
            self.target
                .handle_prepared(SessionToken([1; 32]), 0, false, false),
            2
        );
        self.talk();
        let Some(TreeSourceAction::Transfer(transfer)) = self.source.poll_action() else {
            panic!("nothing to transfer");
        };
        assert_eq!((transfer.streams, transfer.terms), (2, terms));
        terms
    }

    fn finish(&mut self, read: TreeSummary, written: TreeSummary) {
        let sent = Sent {
            data_bytes: read.data_bytes,
            zero_bytes: 0,
            wire_bytes: 99,
        };
        self.source
            .handle_drained(read, sent, AgentStats::default());
        assert_eq!(self.target.poll_action(), None, "not all came");
        self.talk();
        self.target.handle_drained();
        if self.target.poll_action() == Some(TreeTargetAction::Complete) {
            self.target.handle_completed(written);
        }
        if self.target.poll_action() == Some(TreeTargetAction::Seal) {
            self.target.seal(self.now, 7, AgentStats::default());
            self.talk();
            assert_eq!(self.source.poll_action(), None, "nothing is concluded yet");
        }
        if let Some(TreeTargetAction::Conclude(_)) = self.target.poll_action() {
            self.target.handle_concluded();
        }
        self.talk();
    }

    fn receipt(&mut self) -> Receipt {
        let Some(TreeSourceAction::Done(receipt)) = self.source.poll_action() else {
            panic!("no receipt");
        };
        *receipt
    }

    fn failure(&mut self) -> Failure {
        loop {
            if let Some(TreeSourceAction::Fail(failure)) = self.source.poll_action() {
                return failure;
            }
        }
    }
}

#[test]
fn a_tree_is_cloned() {
    let mut pair = Pair::new(TreeTerms::default(), TreeTerms::default());
    pair.begin();
    pair.finish(summary(1), summary(1));
    let receipt = pair.receipt();
    assert_eq!(
        (
            receipt.logical_bytes,
            receipt.zero_bytes,
            receipt.wire_bytes
        ),
        (10, 2, 99)
    );
    assert_eq!(receipt.tree.unwrap().counts, summary(1).counts);
    assert_eq!(
        (pair.source.stage(), pair.target.stage()),
        (Stage::Done, Stage::Done)
    );
}

#[test]
fn two_digests_make_no_receipt() {
    let mut pair = Pair::new(TreeTerms::default(), TreeTerms::default());
    pair.begin();
    pair.finish(summary(1), summary(2));
    assert_eq!(pair.failure().code, FailureCode::Integrity);
}

#[test]
fn what_either_end_accepts_is_accepted() {
    let accept = |class| TreeTerms {
        accept: ClassSet::from_iter([class]),
        selinux: true,
    };
    let mut pair = Pair::new(
        accept(FidelityClass::Acls),
        accept(FidelityClass::Ownership),
    );
    let terms = pair.begin();
    assert!(terms.selinux && terms.accept.iter().count() == 2);
    let lossy = |class| {
        let mut summary = summary(1);
        summary.fidelity.note(class, b"path");
        summary
    };
    pair.finish(lossy(FidelityClass::Ownership), lossy(FidelityClass::Acls));
    let tree = pair.receipt().tree.unwrap();
    assert_eq!(tree.fidelity.losses().count(), 2);
    assert_eq!(tree.accepted, terms.accept);
}

#[test]
fn what_nobody_accepted_fails_the_clone() {
    for at_source in [true, false] {
        let mut pair = Pair::new(TreeTerms::default(), TreeTerms::default());
        pair.begin();
        let mut lossy = summary(1);
        lossy.fidelity.note(FidelityClass::Xattrs, b"the path");
        let (read, written) = match at_source {
            true => (lossy, summary(1)),
            false => (summary(1), lossy),
        };
        pair.finish(read, written);
        let failure = pair.failure();
        assert_eq!(failure.code, FailureCode::Fidelity);
        assert!(failure.text.contains("the path"), "{failure}");
    }
}

#[test]
fn who_does_not_know_trees_is_told() {
    let now = Instant::now();
    let terms = TreeTerms::default();
    let target = || {
        TreeTargetSession::new(
            now,
            Uuid::nil(),
            1,
            String::new(),
            limits(1, terms),
            Earlier::default(),
        )
    };
    let block = Hello {
        tree: None,
        required_features: Vec::new(),
        ..hello(terms)
    };
    let future = Hello {
        required_features: vec!["tree".to_owned(), "forest".to_owned()],
        ..hello(terms)
    };
    for (hello, word) in [(block, "block volume"), (future, "forest")] {
        let mut target = target();
        target.handle_message(now, Message::Hello(hello));
        let Some(TreeTargetAction::Fail(failure)) = target.poll_action() else {
            panic!("it was not refused");
        };
        assert_eq!(failure.code, FailureCode::Unsupported);
        assert!(failure.text.contains(word), "{failure}");
    }
}

#[test]
fn silence_ends_both() {
    let mut pair = Pair::new(TreeTerms::default(), TreeTerms::default());
    pair.begin();
    let mut later = pair.now + Duration::from_secs(6);
    pair.source.handle_timeout(later);
    assert_eq!(pair.source.poll_message(later), Some(Message::Ping));
    later += Duration::from_secs(60);
    pair.source.handle_timeout(later);
    pair.target.handle_timeout(later);
    assert!(matches!(
        pair.source.poll_action(),
        Some(TreeSourceAction::Fail(_))
    ));
    assert!(matches!(
        pair.target.poll_action(),
        Some(TreeTargetAction::Fail(_))
    ));
}

/// A session whose receipt was lost is followed by one that brings only that.
#[test]
fn a_receipt_that_was_not_heard_is_told_again() {
    let mut pair = Pair::new(TreeTerms::default(), TreeTerms::default());
    pair.begin();
    pair.finish(summary(1), summary(1));
    let receipt = pair.receipt();
    let now = pair.now;
    let earlier = || Earlier {
        receipt: Some(Box::new(receipt.clone())),
        ..Earlier::default()
    };
    // To who has read the same, to who has read nothing, and not to who has read something else.
    for (digest, is_proof) in [
        (pair.source.digest(), true),
        (None, true),
        (Some(Digest([9; 32])), false),
    ] {
        let target = TreeTargetSession::new(
            now,
            Uuid::nil(),
            2,
            String::new(),
            limits(1, TreeTerms::default()),
            earlier(),
        );
        let mut again = Pair {
            now,
            source: TreeSourceSession::new(now, hello(TreeTerms::default()), digest),
            target,
        };
        again.talk();
        let end = again.source.poll_action();
        let done = TreeSourceAction::Done(Box::new(receipt.clone()));
        assert_eq!(end == Some(done), is_proof, "{digest:?}");
        assert_eq!(again.source.stage(), Stage::Done);
    }
}

/// One that a target brought back from an earlier run may be for one run of the source alone: any other is
/// cloned anew, and nobody is told afterwards.
#[test]
fn a_receipt_for_one_run_of_the_source_is_told_to_no_other() {
    let mut pair = Pair::new(TreeTerms::default(), TreeTerms::default());
    pair.begin();
    pair.finish(summary(1), summary(1));
    let receipt = Box::new(pair.receipt());
    for (receipt_for, is_told) in [
        (None, true),
        (Some(Uuid::nil()), true),
        (Some(Uuid::from_u128(1)), false),
    ] {
        let earlier = Earlier {
            receipt: Some(receipt.clone()),
            receipt_for,
            ..Earlier::default()
        };
        let terms = TreeTerms::default();
        let (now, limits) = (pair.now, limits(1, terms));
        let mut target =
            TreeTargetSession::new(now, Uuid::nil(), 2, String::new(), limits, earlier);
        target.handle_message(now, Message::Hello(hello(terms)));
        let told = matches!(target.poll_action(), Some(TreeTargetAction::Done(_)));
        assert_eq!(told, is_told, "{receipt_for:?}");
        let later = target.into_earlier();
        assert_eq!(
            (later.receipt.is_some(), later.receipt_for),
            (is_told, None)
        );
    }
}

/// The source is lost while the target concludes: the next session brings the receipt.
#[test]
fn a_clone_that_is_concluded_without_its_source_is_proven() {
    let mut pair = Pair::new(TreeTerms::default(), TreeTerms::default());
    pair.begin();
    let read = summary(1);
    pair.source
        .handle_drained(read.clone(), Sent::default(), AgentStats::default());
    pair.talk();
    pair.target.handle_drained();
    assert_eq!(pair.target.poll_action(), Some(TreeTargetAction::Complete));
    pair.target.handle_completed(read);
    assert_eq!(pair.target.poll_action(), Some(TreeTargetAction::Seal));
    pair.target.seal(pair.now, 7, AgentStats::default());
    let Some(TreeTargetAction::Conclude(receipt)) = pair.target.poll_action() else {
        panic!("nothing to conclude");
    };
    pair.target.end(Failure::new(FailureCode::Disconnected, ""));
    pair.target.handle_concluded();
    assert_eq!(pair.target.poll_message(), None);
    assert_eq!(pair.target.durable_bytes(), receipt.logical_bytes);
    assert_eq!(pair.target.into_earlier().receipt, Some(receipt));
}

#[test]
fn what_was_sent_in_all_sessions_is_counted() {
    let now = Instant::now();
    let earlier = Earlier {
        started_at: now.checked_sub(Duration::from_secs(5)),
        taken_bytes: 7,
        ..Earlier::default()
    };
    let terms = TreeTerms::default();
    let mut pair = Pair::new(terms, terms);
    pair.target = TreeTargetSession::new(
        now,
        Uuid::nil(),
        3,
        String::new(),
        limits(2, terms),
        earlier,
    );
    pair.begin();
    pair.target.set_taken(4);
    let written = TreeSummary {
        resumed_bytes: 5,
        matched_bytes: 1,
        ..summary(1)
    };
    pair.finish(summary(1), written);
    let receipt = pair.receipt();
    assert_eq!((receipt.sent_bytes, receipt.resent_bytes), (11, 4));
    assert_eq!((receipt.resumed_bytes, receipt.matched_bytes), (5, 1));
    assert_eq!(receipt.sessions, 3);
    assert!(receipt.seconds >= 5.0);
}

#[test]
fn a_tree_may_get_further_connections() {
    let mut pair = Pair::new(TreeTerms::default(), TreeTerms::default());
    let wants = Hello {
        streams: 1,
        streams_max: Some(9),
        ..hello(TreeTerms::default())
    };
    pair.source = TreeSourceSession::new(pair.now, wants, None);
    pair.talk();
    let prepare = pair.target.poll_action();
    assert!(matches!(prepare, Some(TreeTargetAction::Prepare(_))));
    let granted = (pair.target).handle_prepared(SessionToken([1; 32]), 0, false, false);
    assert_eq!(granted, 2);
    pair.talk();
    let Some(TreeSourceAction::Transfer(transfer)) = pair.source.poll_action() else {
        panic!("nothing to transfer");
    };
    assert_eq!((transfer.streams, transfer.streams_max), (1, 2));
    assert_eq!(pair.source.handle_joined(), Some(1));
    assert_eq!(pair.source.handle_joined(), None);
    assert_eq!(pair.target.connections_due(), None);
    let sent = Sent::default();
    (pair.source).handle_drained(summary(1), sent, AgentStats::default());
    pair.talk();
    assert_eq!(pair.target.connections_due(), Some(2));
    pair.target.handle_drained();
    let complete = pair.target.poll_action();
    assert_eq!(complete, Some(TreeTargetAction::Complete));
}
