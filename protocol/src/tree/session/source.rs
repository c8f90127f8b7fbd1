//! The source's end of a session that clones a tree.

use std::time::Instant;

use super::{TreeFinish, TreeSummary, TreeTerms};
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::message::{Finish, Hello, Message, Sent, Welcome};
use crate::receipt::{AgentStats, Receipt};
use crate::session::Stage;
use crate::session::course::{Course, Pulse};

/// What the source agent has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum TreeSourceAction {
    /// Open the data connections, walk the tree and send it.
    Transfer(TreeTransfer),
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
    /// What has to be kept.
    pub terms: TreeTerms,
}

/// The source's state machine.
#[derive(Debug)]
pub struct TreeSourceSession {
    hello: Hello,
    course: Course<TreeSourceAction>,
    terms: TreeTerms,
    summary: Option<TreeSummary>,
    durable_bytes: u64,
    pulse: Pulse,
}

impl TreeSourceSession {
    /// A session that says `hello` first, which holds the terms of this end.
    #[must_use]
    pub fn new(now: Instant, hello: Hello) -> Self {
        let mut course = Course::new(now, "target");
        course.say(Message::Hello(hello.clone()));
        Self {
            course,
            terms: hello.tree.unwrap_or_default(),
            summary: None,
            durable_bytes: 0,
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
            (_, Message::Watermark(watermark)) => self.durable_bytes = watermark.durable_bytes,
            (Stage::Verify, Message::Receipt(receipt)) => self.handle_receipt(receipt),
            (_, other) => self.course.fail_unexpected(&other),
        }
    }

    fn handle_welcome(&mut self, welcome: &Welcome) {
        let Some(terms) = welcome.tree else {
            self.course
                .fail_protocol("the target welcomes a block volume, and a tree comes".to_owned());
            return;
        };
        if welcome.streams == 0 || welcome.streams > self.hello.streams {
            let text = format!("the target grants {} streams", welcome.streams);
            self.course.fail_protocol(text);
            return;
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
            streams: welcome.streams,
            terms,
        }));
    }

    /// The tree was walked, and every data connection has ended in order, with `wire_bytes` sent on
    /// all of them together.
    pub fn handle_drained(&mut self, summary: TreeSummary, wire_bytes: u64, source: AgentStats) {
        if self.course.stage != Stage::Transfer {
            return;
        }
        if let Some(complaint) = summary.fidelity.complaint(self.terms.accept) {
            self.fail(fidelity_failure("source", &complaint));
            return;
        }
        let data_bytes = summary.data_bytes;
        self.course.say(Message::Finish(Finish {
            digest: summary.digest,
            sent: Sent {
                data_bytes,
                zero_bytes: summary.counts.bytes.saturating_sub(data_bytes),
                wire_bytes,
            },
            source,
            tree: Some(TreeFinish {
                counts: summary.counts,
                fidelity: summary.fidelity.clone(),
                changed: summary.changed,
            }),
        }));
        self.summary = Some(summary);
        self.course.stage = Stage::Verify;
    }

    fn handle_receipt(&mut self, receipt: Box<Receipt>) {
        let digest = self.summary.as_ref().map(|summary| summary.digest);
        let is_tree = receipt.tree.is_some();
        if Some(receipt.digest) != digest || receipt.clone_id != self.hello.clone_id || !is_tree {
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

    /// Bytes that the target said to be durable.
    #[must_use]
    pub const fn durable_bytes(&self) -> u64 {
        self.durable_bytes
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
