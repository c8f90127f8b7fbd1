//! The target's end of a session that clones a tree: no receipt before all is applied and flushed,
//! and the digest of what was written is the one of what was read.

use std::time::Instant;

use uuid::Uuid;

use super::source::fidelity_failure;
use super::{TreeSummary, TreeTerms};
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::geometry::{ChunkIndex, ChunkSize};
use crate::message::{Finish, Hello, Message, TREE_FEATURES, TokenText, Watermark, Welcome};
use crate::receipt::{AgentStats, Receipt, TreeReceipt, Verified, limit_of_stats};
use crate::session::Stage;
use crate::session::course::{Course, check_hello};
use crate::session::streams::Streams;
use crate::tree::offer::{Answer, Pieces};
use crate::waits::Waits;

/// What the target agent has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum TreeTargetAction {
    /// Make the root directory ready, then call [`TreeTargetSession::handle_prepared`].
    Prepare(TreeTerms),
    /// All came: make the links, finish the directories, flush, then call
    /// [`TreeTargetSession::handle_completed`].
    Complete,
    /// All is durable and the digests agree: call [`TreeTargetSession::seal`].
    Seal,
    /// This is going to be the receipt: keep it where another run finds it, if there is such a place,
    /// remove what the clone kept for itself, then call [`TreeTargetSession::handle_concluded`].
    Conclude(Box<Receipt>),
    /// The clone is proven.
    Done(Box<Receipt>),
    /// The session is over.
    Fail(Failure),
}

impl From<Failure> for TreeTargetAction {
    fn from(failure: Failure) -> Self {
        Self::Fail(failure)
    }
}

/// What a target is told.
#[derive(Clone, Copy, Debug)]
pub struct TreeLimits {
    /// Data connections to grant, at least 1.
    pub streams_max: u16,
    /// What has to be kept.
    pub terms: TreeTerms,
    /// How the content is verified.
    pub verify: Verified,
}

/// What the sessions of a target before this one left.
#[derive(Clone, Debug, Default)]
pub struct Earlier {
    /// When the first of them began.
    pub started_at: Option<Instant>,
    /// Bytes in blocks that hold data, as they took them in.
    pub taken_bytes: u64,
    /// The receipt, when the clone is proven and the source may not have heard of it.
    pub receipt: Option<Box<Receipt>>,
    /// The run of the source agent that it is for, if it is for one alone.
    pub receipt_for: Option<Uuid>,
}

/// The target's state machine.
#[derive(Debug)]
pub struct TreeTargetSession {
    clone_id: Uuid,
    agent: String,
    limits: TreeLimits,
    course: Course<TreeTargetAction>,
    epoch: u64,
    hello: Option<Hello>,
    terms: TreeTerms,
    /// What was granted.
    streams: Streams,
    finish: Option<Finish>,
    /// Whether nothing can come any more.
    is_drained: bool,
    is_completing: bool,
    summary: Option<TreeSummary>,
    /// The receipt, until the clone is concluded.
    sealed: Option<Box<Receipt>>,
    earlier: Earlier,
    started_at: Instant,
    durable_bytes: u64,
    /// Bytes in blocks that hold data, as this session took them in.
    taken_bytes: u64,
    checked_bytes: u64,
    /// Where this end's time went, as it is told.
    waits: Option<Waits>,
    /// Where an observer asked for one.
    bandwidth_limit: Option<u64>,
}

impl TreeTargetSession {
    /// A session that waits for a `Hello` of `clone_id`. `agent` is this end's name and version.
    #[must_use]
    pub fn new(
        now: Instant,
        clone_id: Uuid,
        epoch: u64,
        agent: String,
        limits: TreeLimits,
        earlier: Earlier,
    ) -> Self {
        Self {
            course: Course::new(now, "source"),
            clone_id,
            agent,
            limits,
            epoch,
            hello: None,
            terms: limits.terms,
            streams: Streams::default(),
            finish: None,
            is_drained: false,
            is_completing: false,
            summary: None,
            sealed: None,
            started_at: earlier.started_at.unwrap_or(now),
            // What the sessions before have left is known when the directory is ready.
            durable_bytes: 0,
            taken_bytes: 0,
            checked_bytes: 0,
            waits: None,
            bandwidth_limit: None,
            earlier,
        }
    }

    /// The next message for the control connection.
    pub fn poll_message(&mut self) -> Option<Message> {
        self.course.poll_message()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<TreeTargetAction> {
        self.course.poll_action()
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` when the session is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.course.silent_at()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _goes_on = self.course.goes_on(now);
    }

    /// The source said something.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.course.heard(now);
        match (self.course.stage, message) {
            (Stage::Done, _) => {}
            (_, Message::Error(told)) => self.course.end_as_told(&told),
            (Stage::Handshake, Message::Hello(hello)) if self.hello.is_none() => {
                self.handle_hello(now, hello);
            }
            (_, Message::Ping) => self.tell(),
            (Stage::Transfer, Message::Finish(finish)) if finish.tree.is_some() => {
                match self.streams.finish(&finish) {
                    Ok(()) => {
                        self.course.stage = Stage::Verify;
                        self.finish = Some(finish);
                        self.settle();
                    }
                    Err(failure) => self.fail(failure),
                }
            }
            (_, other) => self.course.fail_unexpected(&other),
        }
    }

    fn handle_hello(&mut self, now: Instant, hello: Hello) {
        self.started_at = self.earlier.started_at.unwrap_or(now);
        match self.check_hello(&hello) {
            Ok(terms) => {
                let is_other = |instance| instance != hello.instance;
                if self.earlier.receipt_for.take().is_some_and(is_other) {
                    self.earlier.receipt = None;
                }
                self.hello = Some(hello);
                self.terms = terms;
                match self.earlier.receipt.clone() {
                    Some(receipt) => self.tell_receipt(receipt),
                    None => self.course.act(TreeTargetAction::Prepare(terms)),
                }
            }
            Err(failure) => self.fail(failure),
        }
    }

    /// Whether `hello` can be a session of this target: gives its terms.
    ///
    /// # Errors
    /// Why not.
    pub fn check_hello(&self, hello: &Hello) -> Result<TreeTerms, Failure> {
        let mode = hello
            .tree
            .ok_or("the source brings a block volume, and the target is a directory");
        let source_terms = check_hello(hello, self.clone_id, mode, TREE_FEATURES)?;
        Ok(TreeTerms::of_both(source_terms, self.limits.terms))
    }

    /// The root directory is ready, and `durable_bytes` of the files in it are durable: greets the
    /// source. Gives the number of data connections that it may open. `offer` and `compare` say what
    /// it does with what the target may hold.
    pub fn handle_prepared(
        &mut self,
        token: SessionToken,
        durable_bytes: u64,
        offer: bool,
        compare: bool,
    ) -> u16 {
        let hello = self.hello.as_ref();
        let Some(hello) = hello.filter(|_| self.course.stage == Stage::Handshake) else {
            return 0;
        };
        let streams = Streams::grant(hello, self.limits.streams_max);
        let welcome = Welcome {
            epoch: self.epoch,
            token: TokenText::new(token),
            chunk_size: ChunkSize::DEFAULT,
            streams: streams.first,
            streams_max: streams.most_told(hello),
            durable: Vec::new(),
            offer,
            compare,
            features: TREE_FEATURES
                .iter()
                .map(ToString::to_string)
                .chain(hello.codecs().features())
                .collect(),
            agent: self.agent.clone(),
            tree: Some(self.terms),
        };
        self.course.stage = Stage::Transfer;
        self.durable_bytes = durable_bytes;
        self.course.say(Message::Welcome(welcome));
        self.streams = streams;
        streams.most
    }

    /// What the source asked for is known.
    pub fn handle_answer(&mut self, answer: Answer) {
        if self.course.stage == Stage::Transfer {
            self.course.say(Message::Answer(answer));
        }
    }

    /// The pieces for which the source asked are known.
    pub fn handle_pieces(&mut self, pieces: Pieces) {
        if self.course.stage == Stage::Transfer {
            self.course.say(Message::Pieces(pieces));
        }
    }

    /// So many bytes of files are durable by now.
    pub const fn handle_durable(&mut self, durable_bytes: u64) {
        self.durable_bytes = durable_bytes;
    }

    /// So much was compared, or done to finish: a sign of life.
    pub const fn set_checked(&mut self, checked_bytes: u64) {
        self.checked_bytes = checked_bytes;
    }

    /// So many bytes in blocks that hold data were taken in by now.
    pub const fn set_taken(&mut self, taken_bytes: u64) {
        self.taken_bytes = taken_bytes;
    }

    /// Something that came was written: as good a sign of life as a message.
    pub const fn handle_written(&mut self, now: Instant) {
        self.course.heard(now);
    }

    /// This end's time went there so far.
    pub const fn set_waits(&mut self, waits: Waits) {
        self.waits = Some(waits);
    }

    /// What the source may send each second, in bytes, 0 for no limit: told with what is told next, where
    /// it is known.
    pub const fn set_bandwidth_limit(&mut self, limit: Option<u64>) {
        self.bandwidth_limit = limit;
    }

    /// How many data connections there were, once the source has told.
    #[must_use]
    pub fn connections_due(&self) -> Option<u16> {
        self.finish.as_ref().map(|_| self.streams.opened)
    }

    /// Every data connection ([`Self::connections_due`]) has ended in order, and all that came on them
    /// was applied.
    pub fn handle_drained(&mut self) {
        self.is_drained = true;
        self.settle();
    }

    fn settle(&mut self) {
        let is_due = self.course.stage == Stage::Verify && self.is_drained && !self.is_completing;
        if is_due {
            self.is_completing = true;
            self.course.act(TreeTargetAction::Complete);
        }
    }

    /// What [`TreeTargetAction::Complete`] asked for is done: all is on stable storage, and this is
    /// what was written.
    pub fn handle_completed(&mut self, summary: TreeSummary) {
        let Some(finish) = &self.finish else {
            return;
        };
        if self.course.stage != Stage::Verify || !self.is_completing {
            return;
        }
        if let Some(complaint) = summary.fidelity.complaint(self.terms.accept) {
            self.fail(fidelity_failure("target", &complaint));
            return;
        }
        if finish.digest != summary.digest {
            let text = format!(
                "the source read a tree of digest {} ({}), what was written makes {} ({})",
                finish.digest,
                describe(
                    finish
                        .tree
                        .as_ref()
                        .map(|tree| tree.counts)
                        .unwrap_or_default()
                ),
                summary.digest,
                describe(summary.counts),
            );
            self.fail(Failure::new(FailureCode::Integrity, text));
            return;
        }
        self.summary = Some(summary);
        self.course.act(TreeTargetAction::Seal);
    }

    /// Writes the receipt, for which [`TreeTargetAction::Seal`] asked. `unix_seconds` is the time of
    /// day. Does nothing before the clone is proven.
    pub fn seal(&mut self, now: Instant, unix_seconds: u64, target: AgentStats) {
        if self.course.stage != Stage::Verify {
            return;
        }
        let Some(summary) = &self.summary else {
            return;
        };
        let Some(finish) = self.finish.take() else {
            return;
        };
        let found = finish.tree.unwrap_or_default();
        let mut fidelity = found.fidelity;
        fidelity.add(&summary.fidelity);
        let seconds = now.saturating_duration_since(self.started_at).as_secs_f64();
        let logical_bytes = summary.counts.bytes;
        // Either end may have started anew and forgotten what it counted.
        let taken_bytes = self.earlier.taken_bytes.saturating_add(self.taken_bytes);
        let sent_bytes = finish.sent.data_bytes.max(taken_bytes);
        let matched_bytes = summary.matched_bytes.min(summary.data_bytes);
        let needed_bytes = summary.data_bytes.saturating_sub(matched_bytes);
        let receipt = Receipt {
            receipt_version: Receipt::VERSION,
            clone_id: self.clone_id,
            digest: summary.digest,
            chunk_size: ChunkSize::DEFAULT,
            verified: self.limits.verify,
            logical_bytes,
            data_bytes: summary.data_bytes,
            zero_bytes: logical_bytes.saturating_sub(summary.data_bytes),
            wire_bytes: finish.sent.wire_bytes,
            resumed_bytes: summary.resumed_bytes,
            sent_bytes,
            resent_bytes: sent_bytes.saturating_sub(needed_bytes),
            matched_bytes,
            repaired_bytes: summary.repaired_bytes,
            sessions: self.epoch,
            seconds,
            bytes_per_second: if seconds > 0.0 {
                logical_bytes as f64 / seconds
            } else {
                0.0
            },
            finished_unix_seconds: unix_seconds,
            limit: limit_of_stats(&finish.source, &target),
            source: *finish.source,
            target,
            tree: Some(TreeReceipt {
                counts: summary.counts,
                accepted: self.terms.accept,
                selinux: self.terms.selinux,
                fidelity,
                changed: found.changed,
            }),
        };
        let receipt = Box::new(receipt);
        self.sealed = Some(receipt.clone());
        self.course.act(TreeTargetAction::Conclude(receipt));
    }

    /// What [`TreeTargetAction::Conclude`] asked for is done, and durable. Sends the receipt; where the
    /// session is over by now, it is for a later one.
    pub fn handle_concluded(&mut self) {
        let Some(receipt) = self.sealed.take() else {
            return;
        };
        // Not before: of what was only compared no journal speaks, should this end be killed.
        self.durable_bytes = receipt.logical_bytes;
        self.earlier.receipt = Some(receipt.clone());
        if !self.course.is_over() {
            self.tell_receipt(receipt);
        }
    }

    fn tell_receipt(&mut self, receipt: Box<Receipt>) {
        self.course.say(Message::Receipt(receipt.clone()));
        self.course.finish(TreeTargetAction::Done(receipt));
    }

    fn tell(&mut self) {
        self.course.say(Message::Watermark(Watermark {
            watermark: ChunkIndex(0),
            checked_bytes: self.checked_bytes,
            durable_bytes: self.durable_bytes,
            waits: self.waits,
            bandwidth_limit: self.bandwidth_limit,
        }));
    }

    /// This end failed: tells the source, and ends.
    pub fn fail(&mut self, failure: Failure) {
        self.course.fail(failure);
    }

    /// The session is over, and the source knows or can't be told.
    pub fn end(&mut self, failure: Failure) {
        self.course.end(failure);
    }

    /// Where the session is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.course.stage
    }

    /// Bytes of files that are durable.
    #[must_use]
    pub const fn durable_bytes(&self) -> u64 {
        self.durable_bytes
    }

    /// The greeting of the source, once it has come.
    #[must_use]
    pub const fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// What the next session has to know of this one and those before it.
    #[must_use]
    pub fn into_earlier(self) -> Earlier {
        let has_begun = self.hello.is_some();
        Earlier {
            started_at: has_begun.then_some(self.started_at),
            taken_bytes: self.earlier.taken_bytes.saturating_add(self.taken_bytes),
            receipt: self.earlier.receipt,
            receipt_for: self.earlier.receipt_for,
        }
    }
}

fn describe(counts: crate::tree::set_digest::TreeCounts) -> String {
    let (names, bytes) = (counts.entries(), counts.bytes);
    format!("{names} names, {bytes} bytes")
}
