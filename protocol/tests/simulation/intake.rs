//! A session's connections at the target, whatever is cloned: who holds it, which data connections have
//! come, and whether more can come on them.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::SessionToken;
use volferry_protocol::message::{Hello, Message};

use super::network::{Carried, ConnectionId, Side};
use super::realm::Realm;
use super::rng::Rng;

/// A source that was let in, and waits until the session before is over.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) control: ConnectionId,
    pub(crate) hello: Hello,
    pub(crate) epoch: u64,
}

#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) control: ConnectionId,
    pub(crate) instance: Uuid,
    pub(crate) token: SessionToken,
    /// Data connections that were granted.
    pub(crate) streams: u16,
    numbers: BTreeSet<u16>,
    lanes: BTreeMap<ConnectionId, Lane>,
    frames_received: u64,
    frames_done: u64,
    /// Work that threads do, and that can't be called back.
    pub(crate) in_flight: u64,
    pub(crate) is_over: bool,
}

/// A data connection.
#[derive(Debug, Default)]
struct Lane {
    frames: u64,
    is_ended: bool,
}

impl Intake {
    /// A session that begins now.
    pub(crate) fn new(rng: &mut Rng, control: ConnectionId, instance: Uuid) -> Self {
        let mut token = [0; 32];
        token[..8].copy_from_slice(&rng.u64().to_be_bytes());
        Self {
            control,
            instance,
            token: SessionToken(token),
            streams: 0,
            numbers: BTreeSet::new(),
            lanes: BTreeMap::new(),
            frames_received: 0,
            frames_done: 0,
            in_flight: 0,
            is_over: false,
        }
    }

    /// Whether `connection` is its control connection.
    pub(crate) fn is_led_by(&self, connection: ConnectionId) -> bool {
        !self.is_over && self.control == connection
    }

    /// A data connection says that it belongs here. Gives whether it does.
    pub(crate) fn join(
        &mut self,
        connection: ConnectionId,
        number: u16,
        token: SessionToken,
    ) -> bool {
        let is_new = number < self.streams && !self.numbers.contains(&number);
        let joins = !self.is_over && self.token == token && is_new;
        if joins {
            self.numbers.insert(number);
            self.lanes.insert(connection, Lane::default());
        }
        joins
    }

    /// Whether frames may come on a connection.
    pub(crate) fn is_open(&self, connection: ConnectionId) -> bool {
        let lane = self.lanes.get(&connection);
        !self.is_over && lane.is_some_and(|lane| !lane.is_ended)
    }

    /// Whether a data connection is one of its own, ended or not.
    pub(crate) fn has(&self, connection: ConnectionId) -> bool {
        self.lanes.contains_key(&connection)
    }

    /// A frame comes.
    pub(crate) fn receive(&mut self, connection: ConnectionId) {
        if let Some(lane) = self.lanes.get_mut(&connection) {
            lane.frames += 1;
        }
        self.frames_received += 1;
    }

    /// A thread is done with a frame.
    pub(crate) const fn done(&mut self) {
        self.frames_done += 1;
    }

    /// A connection ends behind so many frames. Gives how many came, where that is another number.
    pub(crate) fn end(&mut self, connection: ConnectionId, frames: u64) -> Option<u64> {
        let lane = self.lanes.get_mut(&connection)?;
        lane.is_ended = lane.frames == frames;
        (!lane.is_ended).then_some(lane.frames)
    }

    /// Whether nothing more can come: all data connections that are due have come and gone.
    pub(crate) fn is_drained(&self, due: Option<u16>) -> bool {
        let all_came = due.is_some_and(|due| self.numbers.len() >= usize::from(due));
        let all_ended = self.lanes.values().all(|lane| lane.is_ended);
        all_came && all_ended && self.frames_received == self.frames_done && !self.is_over
    }

    /// Lets data connections in anew.
    pub(crate) fn next_round(&mut self) {
        self.numbers.clear();
        self.lanes.clear();
        self.frames_received = 0;
        self.frames_done = 0;
    }

    /// The session is over. Gives its connections, which end with it.
    pub(crate) fn close(&mut self) -> Vec<ConnectionId> {
        self.is_over = true;
        let lanes = self.lanes.keys().copied();
        lanes.chain([self.control]).collect()
    }
}

/// A session that is cut, not at fault.
pub(crate) fn lost() -> Failure {
    Failure::new(FailureCode::Disconnected, "")
}

impl<P: Carried, Work> Realm<P, Work> {
    /// Turns a source away.
    pub(crate) fn refuse(&mut self, control: ConnectionId, code: FailureCode) {
        let refusal = Message::Error(Failure::new(code, ""));
        self.send(control, Side::Source, P::of_message(refusal));
        self.hang_up([control], Side::Source);
    }

    /// Ends connections, as the other `side` will see.
    pub(crate) fn hang_up(
        &mut self,
        connections: impl IntoIterator<Item = ConnectionId>,
        side: Side,
    ) {
        for connection in connections {
            self.send(connection, side, P::LOST);
        }
    }
}
