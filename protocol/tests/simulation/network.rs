//! Connections: bytes in order on each, none between them; cut at any time, and the ends learn of
//! it at different times, or never.

use std::time::Duration;

use volferry_protocol::frame::SessionToken;
use volferry_protocol::message::Message;

use super::realm::{Event, Realm};

pub(crate) type ConnectionId = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Control,
    Data,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Target,
}

/// What travels.
pub(crate) trait Carried: Clone + std::fmt::Debug {
    /// The connection is over for who reads this.
    const LOST: Self;

    /// What a control connection carries.
    fn of_message(message: Message) -> Self;

    fn is_lost(&self) -> bool;
}

/// What travels between two agents, of which data connections carry `Frame`.
#[derive(Clone, Debug)]
pub(crate) enum Payload<Frame> {
    Control(Message),
    Preamble {
        number: u16,
        token: SessionToken,
    },
    Frame(Frame),
    End {
        frames: u64,
    },
    /// The target has read all until the end.
    Closed,
    /// The connection is over for who reads this.
    Lost,
}

impl<Frame: Clone + std::fmt::Debug> Carried for Payload<Frame> {
    const LOST: Self = Self::Lost;

    fn of_message(message: Message) -> Self {
        Self::Control(message)
    }

    fn is_lost(&self) -> bool {
        matches!(self, Self::Lost)
    }
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) source: usize,
    pub(crate) source_run: u64,
    pub(crate) target_run: u64,
    purpose: Purpose,
    pub(crate) is_cut: bool,
    /// By the side that receives.
    ways: [Way; 2],
}

#[derive(Debug, Default)]
struct Way {
    /// When the last that was sent arrives; nothing overtakes it.
    last_at: Duration,
    /// What is on its way doesn't arrive.
    is_lost: bool,
    /// What is on its way arrives then.
    held_until: Duration,
}

impl Connection {
    const fn way(&mut self, to: Side) -> &mut Way {
        match to {
            Side::Source => &mut self.ways[0],
            Side::Target => &mut self.ways[1],
        }
    }
}

impl<Frame: Clone + std::fmt::Debug, Work> Realm<Payload<Frame>, Work> {
    /// A data connection of a source that says which one it is.
    pub(crate) fn open_data(
        &mut self,
        source: usize,
        number: u16,
        token: SessionToken,
    ) -> ConnectionId {
        let connection = self.connect(source, Purpose::Data);
        let preamble = Payload::Preamble { number, token };
        self.send(connection, Side::Target, preamble);
        connection
    }
}

impl<P: Carried, Work> Realm<P, Work> {
    pub(crate) fn connect(&mut self, source: usize, purpose: Purpose) -> ConnectionId {
        self.connections.push(Connection {
            source,
            source_run: self.lives[source].run,
            target_run: self.target_run,
            purpose,
            is_cut: self.is_partitioned(),
            ways: Default::default(),
        });
        let id = self.connections.len() - 1;
        if self.connections[id].is_cut {
            let notice = self.rng.millis(1000, 30_000);
            self.after(notice, Event::Deliver(id, Side::Source, P::LOST));
        }
        id
    }

    pub(crate) fn send(&mut self, id: ConnectionId, to: Side, payload: P) {
        let latency = if self.rng.chance(self.slow_percent) {
            self.rng.millis(20, 3000)
        } else {
            self.rng.micros(100, 5000)
        };
        let at = self.time + latency;
        let connection = &mut self.connections[id];
        if connection.is_cut {
            return;
        }
        let way = connection.way(to);
        way.last_at = way.last_at.max(at);
        let at = way.last_at;
        self.at(at, Event::Deliver(id, to, payload));
    }

    /// Whether what arrives now does: it may be lost, or held up.
    pub(crate) fn arrives(&mut self, id: ConnectionId, to: Side, payload: &P) -> bool {
        let time = self.time;
        let way = self.connections[id].way(to);
        if way.is_lost && !payload.is_lost() {
            return false;
        }
        let held_until = way.held_until;
        if time < held_until {
            self.at(held_until, Event::Deliver(id, to, payload.clone()));
            return false;
        }
        true
    }

    /// Nothing that is sent from now on arrives.
    pub(crate) fn cut(&mut self, id: ConnectionId) {
        for side in [Side::Source, Side::Target] {
            self.cut_side(id, side, true);
        }
    }

    fn cut_side(&mut self, id: ConnectionId, side: Side, says_so: bool) {
        let fate = self.rng.below(3);
        let held = self.rng.millis(0, 60_000);
        let notice = match self.rng.below(3) {
            0 => self.rng.millis(0, 200),
            1 => self.rng.millis(200, 30_000),
            // TCP gives up at last, or it is told when the peer's host is back.
            _ => self.rng.millis(30_000, 120_000),
        };
        let time = self.time;
        let connection = &mut self.connections[id];
        connection.is_cut = true;
        let is_data = connection.purpose == Purpose::Data;
        let way = connection.way(side);
        match fate {
            0 => way.is_lost = true,
            1 => way.held_until = time + held,
            _ => {}
        }
        let noticed_at = way.held_until.max(way.last_at).max(time + notice);
        if says_so || is_data {
            self.at(noticed_at, Event::Deliver(id, side, P::LOST));
        }
    }

    /// A run of a source is gone, and so are its ends of its connections.
    pub(crate) fn cut_of_source(&mut self, source: usize, says_so: bool) {
        let run = self.lives[source].run;
        for id in 0..self.connections.len() {
            let connection = &self.connections[id];
            let is_its = connection.source == source && connection.source_run == run;
            if is_its && !connection.is_cut {
                self.cut_side(id, Side::Target, says_so);
            }
        }
    }

    /// The target's run is gone, and so are its ends of all connections.
    pub(crate) fn cut_of_target(&mut self, says_so: bool) {
        for id in 0..self.connections.len() {
            if !self.connections[id].is_cut {
                self.cut_side(id, Side::Source, says_so);
            }
        }
    }

    /// Connections that carry, of one kind or all.
    pub(crate) fn open_connections(&self, purpose: Option<Purpose>) -> Vec<ConnectionId> {
        (0..self.connections.len())
            .filter(|id| {
                let connection = &self.connections[*id];
                !connection.is_cut && purpose.is_none_or(|purpose| purpose == connection.purpose)
            })
            .collect()
    }
}
