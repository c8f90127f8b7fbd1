//! What every state machine of a session has, at either end and for volumes and trees alike: where
//! it is, what it wants said and done, when the peer was heard, and how it ends.

use std::collections::VecDeque;
use std::time::Instant;

use uuid::Uuid;

use super::{PING_INTERVAL, SILENCE_MAX, Stage};
use crate::failure::{Failure, FailureCode};
use crate::message::{Hello, Message};

/// The course of a session, with actions of one machine.
#[derive(Debug)]
pub(crate) struct Course<Action> {
    /// The other end in one word.
    peer: &'static str,
    pub(crate) stage: Stage,
    messages: VecDeque<Message>,
    actions: VecDeque<Action>,
    heard_at: Instant,
}

impl<Action: From<Failure>> Course<Action> {
    /// A session with `peer` that begins now.
    pub(crate) const fn new(now: Instant, peer: &'static str) -> Self {
        Self {
            peer,
            stage: Stage::Handshake,
            messages: VecDeque::new(),
            actions: VecDeque::new(),
            heard_at: now,
        }
    }

    pub(crate) fn say(&mut self, message: Message) {
        self.messages.push_back(message);
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(crate) fn poll_message(&mut self) -> Option<Message> {
        self.messages.pop_front()
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) const fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// The peer gave a sign of life.
    pub(crate) const fn heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// When a silent peer counts as gone; `None` when the session is over.
    pub(crate) fn silent_at(&self) -> Option<Instant> {
        (!self.is_over()).then(|| self.heard_at.checked_add(SILENCE_MAX))?
    }

    /// Ends the session when the peer has been silent for too long. Whether it goes on.
    pub(crate) fn goes_on(&mut self, now: Instant) -> bool {
        if !self.is_over() && now.saturating_duration_since(self.heard_at) >= SILENCE_MAX {
            let (peer, seconds) = (self.peer, SILENCE_MAX.as_secs());
            let text = format!("the {peer} agent said nothing for {seconds} s");
            self.end(Failure::new(FailureCode::Silent, text));
        }
        !self.is_over()
    }

    /// The peer sent what doesn't belong here.
    pub(crate) fn fail_unexpected(&mut self, message: &Message) {
        let (peer, what, stage) = (self.peer, message.name(), self.stage.label());
        self.fail_protocol(format!("the {peer} sent {what} in the stage {stage}"));
    }

    pub(crate) fn fail_protocol(&mut self, text: String) {
        self.fail(Failure::new(FailureCode::Protocol, text));
    }

    /// The peer told that it failed.
    pub(crate) fn end_as_told(&mut self, told: &Failure) {
        self.end(Failure::told_by(self.peer, told));
    }

    /// This end failed: tells the peer, and ends.
    pub(crate) fn fail(&mut self, failure: Failure) {
        if !self.is_over() {
            self.say(Message::Error(failure.clone()));
            self.end(failure);
        }
    }

    /// The session is over, and the peer knows or can't be told.
    pub(crate) fn end(&mut self, failure: Failure) {
        if !self.is_over() {
            self.finish(failure.into());
        }
    }

    /// The session is over, with `action` as its last.
    pub(crate) fn finish(&mut self, action: Action) {
        self.stage = Stage::Done;
        self.act(action);
    }
}

/// When a source has to say that it is still here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pulse {
    said_at: Instant,
}

impl Pulse {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { said_at: now }
    }

    /// Something was said.
    pub(crate) const fn said(&mut self, now: Instant) {
        self.said_at = now;
    }

    pub(crate) fn due_at(self) -> Option<Instant> {
        self.said_at.checked_add(PING_INTERVAL)
    }

    pub(crate) fn is_due(self, now: Instant) -> bool {
        now.saturating_duration_since(self.said_at) >= PING_INTERVAL
    }
}

/// Checks what a target asks of every source's greeting. `mode` is what it needs to know of what is
/// cloned, or why this target can't take that.
pub(crate) fn check_hello<T>(
    hello: &Hello,
    clone_id: Uuid,
    mode: Result<T, &str>,
    features: &[&str],
) -> Result<T, Failure> {
    if hello.clone_id != clone_id {
        let text = format!(
            "the source works on clone {}, this target belongs to clone {clone_id}",
            hello.clone_id
        );
        return Err(Failure::new(FailureCode::WrongClone, text));
    }
    let mode = mode.map_err(|text| Failure::new(FailureCode::Unsupported, text))?;
    let mut required = hello.required_features.iter();
    if let Some(feature) = required.find(|name| !features.contains(&name.as_str())) {
        let text = format!("the source requires the feature {feature:?}: update the target agent");
        return Err(Failure::new(FailureCode::Unsupported, text));
    }
    if hello.streams == 0 {
        let text = "the source wants no data connection";
        return Err(Failure::new(FailureCode::Protocol, text));
    }
    Ok(mode)
}
