//! What a session takes in: which data connections may join, and when all that they brought is done.

use std::collections::BTreeSet;

use rustix::rand::{GetRandomFlags, getrandom};
use volferry_protocol::failure::Failure;
use volferry_protocol::frame::SessionToken;

/// The books of a session's data connections and their frames.
#[derive(Debug)]
pub(crate) struct Intake {
    token: SessionToken,
    streams_max: u16,
    /// Numbers of the data connections that were let in, in this round.
    numbers: BTreeSet<u16>,
    /// Frames that data connections handed to the writers before they ended.
    frames_received: u64,
    /// Frames of any data connection that the writers are done with.
    frames_done: u64,
}

impl Intake {
    /// For as many data connections as were granted, all of which show `token`.
    pub(crate) const fn new(token: SessionToken, streams_max: u16) -> Self {
        Self {
            token,
            streams_max,
            numbers: BTreeSet::new(),
            frames_received: 0,
            frames_done: 0,
        }
    }

    /// Whether a data connection that shows this may join. It is then let in.
    pub(crate) fn admit(&mut self, number: u16, token: SessionToken) -> bool {
        token == self.token && number < self.streams_max && self.numbers.insert(number)
    }

    /// A data connection has ended, and handed so many frames to the writers.
    pub(crate) const fn receive(&mut self, frames: u64) {
        self.frames_received += frames;
    }

    /// The writers are done with a frame.
    pub(crate) const fn done(&mut self) {
        self.frames_done += 1;
    }

    /// Whether nothing more can come, when all connections that joined have ended: one that is still
    /// on its way can bring frames, so all that are `due` must have come. Before the source has told
    /// how many those are, there may be others.
    pub(crate) fn is_complete(&self, due: Option<u16>) -> bool {
        let have_come = due.is_some_and(|due| self.numbers.len() >= usize::from(due));
        have_come && self.frames_received == self.frames_done
    }

    /// Lets as many data connections in anew.
    pub(crate) fn next_round(&mut self) {
        self.numbers.clear();
    }
}

/// A token that nobody can guess.
///
/// # Errors
/// When the kernel has none.
pub(crate) fn new_token() -> Result<SessionToken, Failure> {
    let mut token = [0; 32];
    let filled = getrandom(&mut token, GetRandomFlags::empty());
    match filled {
        // getrandom(2) fills up to 256 bytes at once.
        Ok(32) => Ok(SessionToken(token)),
        other => {
            let text = format!("the kernel gives no random bytes: {other:?}");
            Err(Failure::internal(text))
        }
    }
}
