//! The source's end of a session that clones a tree.

use std::time::Instant;

use super::{TreeFinish, TreeSummary, TreeTerms};
use crate::compression::Codecs;
use crate::digest::Digest;
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::message::{Finish, Hello, Message, Sent, Watermark, Welcome};
use crate::receipt::{AgentStats, Receipt};
use crate::session::Stage;
use crate::session::course::{Course, Pulse};
use crate::session::streams::Streams;
use crate::tree::offer::{Answer, Pieces};

/// What the source agent has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum TreeSourceAction {
    /// Open the data connections, walk the tree and send it.
    Transfer(TreeTransfer),
    /// The target has answered a pack of offers.
    Answer(Answer),
    /// The target has answered a probe.
    Pieces(Pieces),
    /// The clone is proven.
    Done(Box<Receipt>),
    /// The session is over.
    Fail(Failure),
}

impl From<Failure> for TreeSourceAction {
    fn from(failure: Failure) -> Self {
        Self::Fail(failure)
    }
}

/// What a session agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeTransfer {
    /// What data connections show.
    pub token: SessionToken,
    /// How many data connections to open.
    pub streams: u16,
    /// How many there may be, each of which [`TreeSourceSession::handle_joined`] numbers.
    pub streams_max: u16,
    /// What has to be kept.
    pub terms: TreeTerms,
    /// Which of the clone's sessions this is.
    pub epoch: u64,
    /// Whether files are offered before they are sent.
    pub offer: bool,
    /// Whether what the target says to hold is read here too, to compare it.
    pub compare: bool,
    /// How payloads may be compressed.
    pub codecs: Codecs,
}

/// The source's state machine.
#[derive(Debug)]
pub struct TreeSourceSession {
    hello: Hello,
    course: Course<TreeSourceAction>,
    terms: TreeTerms,
    /// From the welcome on.
    streams: Streams,
    /// The digest of what was read, in this session or in an earlier one.
    digest: Option<Digest>,
    watermark: Watermark,
    pulse: Pulse,
}

impl TreeSourceSession {
    /// A session that says `hello` first, which holds the terms of this end. `digest` is what an
    /// earlier session has read, where one came to its end and its receipt was not heard.
    #[must_use]
    pub fn new(now: Instant, hello: Hello, digest: Option<Digest>) -> Self {
        let mut course = Course::new(now, "target");
        course.say(Message::Hello(hello.clone()));
        Self {
            course,
            terms: hello.tree.unwrap_or_default(),
            streams: Streams::default(),
            digest,
            watermark: Watermark::default(),
            pulse: Pulse::new(now),
            hello,
        }
    }

    /// The next message for the control connection.
    pub fn poll_message(&mut self, now: Instant) -> Option<Message> {
        let message = self.course.poll_message()?;
        self.pulse.said(now);
        Some(message)
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<TreeSourceAction> {
        self.course.poll_action()
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` when the session is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let ping_at = self.pulse.due_at()?;
        Some(self.course.silent_at()?.min(ping_at))
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.course.goes_on(now) && self.pulse.is_due(now) {
            self.pulse.said(now);
            self.course.say(Message::Ping);
        }
    }

    /// The target said something.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.course.heard(now);
        match (self.course.stage, message) {
            (Stage::Done, _) => {}
            (_, Message::Error(told)) => self.course.end_as_told(&told),
            (Stage::Handshake, Message::Welcome(welcome)) => self.handle_welcome(&welcome),
            (_, Message::Watermark(watermark)) => self.watermark = watermark,
            (Stage::Transfer, Message::Answer(answer)) => {
                self.course.act(TreeSourceAction::Answer(answer));
            }
            (Stage::Transfer, Message::Pieces(pieces)) => {
                self.course.act(TreeSourceAction::Pieces(pieces));
            }
            (Stage::Handshake | Stage::Verify, Message::Receipt(receipt)) => {
                self.handle_receipt(receipt);
            }
            (_, other) => self.course.fail_unexpected(&other),
        }
    }

    fn handle_welcome(&mut self, welcome: &Welcome) {
        let Some(terms) = welcome.tree else {
            self.course
                .fail_protocol("the target welcomes a block volume, and a tree comes".to_owned());
            return;
        };
        match Streams::granted(&self.hello, welcome) {
            Ok(streams) => self.streams = streams,
            Err(failure) => {
                self.fail(failure);
                return;
            }
        }
        let own = self.hello.tree.unwrap_or_default();
        let is_agreed = TreeTerms::of_both(own, terms) == terms;
        if !is_agreed {
            self.course
                .fail_protocol("the target's terms are not those of both ends".to_owned());
            return;
        }
        self.terms = terms;
        self.course.stage = Stage::Transfer;
        self.course.act(TreeSourceAction::Transfer(TreeTransfer {
            token: welcome.token.token(),
            streams: self.streams.first,
            streams_max: self.streams.most,
            terms,
            epoch: welcome.epoch,
            offer: welcome.offer,
            compare: welcome.compare,
            codecs: self.hello.codecs().and(Codecs::among(&welcome.features)),
        }));
    }

    /// One more data connection was opened: gives its number, where there may still be one.
    pub fn handle_joined(&mut self) -> Option<u16> {
        (self.course.stage == Stage::Transfer).then(|| self.streams.open())?
    }

    /// The tree was walked, and every data connection has ended in order. `sent` is what this run of
    /// the source agent has sent in all its sessions.
    pub fn handle_drained(&mut self, summary: TreeSummary, sent: Sent, source: AgentStats) {
        if self.course.stage != Stage::Transfer {
            return;
        }
        if let Some(complaint) = summary.fidelity.complaint(self.terms.accept) {
            self.fail(fidelity_failure("source", &complaint));
            return;
        }
        self.digest = Some(summary.digest);
        self.course.say(Message::Finish(Finish {
            digest: summary.digest,
            connections: self.streams.told(),
            sent,
            source: Box::new(source),
            tree: Some(TreeFinish {
                counts: summary.counts,
                fidelity: summary.fidelity,
                changed: summary.changed,
            }),
        }));
        self.course.stage = Stage::Verify;
    }

    /// The clone is proven: now, or since a session whose receipt was not heard. A source agent that
    /// started anew since then has read nothing that it could compare.
    fn handle_receipt(&mut self, receipt: Box<Receipt>) {
        let is_same = match self.digest {
            Some(digest) => receipt.digest == digest,
            None => self.course.stage == Stage::Handshake,
        };
        if !is_same || receipt.clone_id != self.hello.clone_id || receipt.tree.is_none() {
            let text = format!("the target's receipt is for digest {}", receipt.digest);
            self.fail(Failure::new(FailureCode::Integrity, text));
            return;
        }
        self.course.finish(TreeSourceAction::Done(receipt));
    }

    /// This end failed: tells the target, and ends.
    pub fn fail(&mut self, failure: Failure) {
        self.course.fail(failure);
    }

    /// The session is over, and the target knows or can't be told.
    pub fn end(&mut self, failure: Failure) {
        self.course.end(failure);
    }

    /// Where the session is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.course.stage
    }

    /// The digest of what was read, where a session came that far.
    #[must_use]
    pub const fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// How far the target said to be.
    #[must_use]
    pub const fn watermark(&self) -> Watermark {
        self.watermark
    }
}

/// The failure of an end that could not keep everything.
pub(super) fn fidelity_failure(end: &str, complaint: &str) -> Failure {
    let text = format!(
        "the {end} could not keep everything: {complaint}; allow it with --accept CLASS, or give the \
         agent what it lacks"
    );
    Failure::new(FailureCode::Fidelity, text)
}
