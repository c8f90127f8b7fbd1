//! The source agent as its driver would be: reads chunks, sends or offers them on its data
//! connections, and dials again when its session was cut.

use uuid::Uuid;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, ChunkSize};
use volferry_protocol::message::{Hello, Sent};
use volferry_protocol::receipt::AgentStats;
use volferry_protocol::session::source::Transfer;
use volferry_protocol::session::{SourceAction, SourceSession, Stage};

use super::checker::generation_text;
use super::content;
use super::world::{Frame, Payload, World};
use crate::fencing::{Checked, check};
use crate::intake::lost;
use crate::network::{ConnectionId, Purpose, Side};
use crate::realm::{CLONE, Event};

/// What a run of a source agent knows.
#[derive(Debug, Default)]
pub(crate) struct SourceAgent {
    sent: Sent,
    pub(crate) session: Option<SourceEnd>,
}

/// A session at the source.
#[derive(Debug)]
pub(crate) struct SourceEnd {
    pub(crate) machine: SourceSession,
    control: ConnectionId,
    lanes: Vec<Lane>,
    transfer: Option<Transfer>,
    /// The next chunk to read.
    next: u64,
    generation: usize,
    wire_bytes: u64,
}

/// A data connection.
#[derive(Debug)]
struct Lane {
    connection: ConnectionId,
    frames: u64,
    is_ended: bool,
    /// The target has read all of it.
    is_closed: bool,
}

impl Lane {
    const fn new(connection: ConnectionId) -> Self {
        Self {
            connection,
            frames: 0,
            is_ended: false,
            is_closed: false,
        }
    }
}

impl World {
    pub(crate) fn begin_session(&mut self, source: usize) -> Checked {
        let generation = self.checker.generation();
        if !self.realm.can_dial() {
            self.dial_again(source, FailureCode::Connect);
            return Ok(());
        }
        let control = self.realm.connect(source, Purpose::Control);
        let now = self.realm.now();
        let hello = self.realm.lives[source].greet(
            source,
            Hello {
                clone_id: CLONE,
                instance: Uuid::nil(),
                attempt: 0,
                take_over: false,
                volume_size: self.geometry.volume_size(),
                chunk_size: ChunkSize::MIN,
                streams: self.setting.streams,
                streams_max: (self.setting.further).map(|further| self.setting.streams + further),
                generation: generation_text(generation),
                features: vec![],
                required_features: vec![],
                tree: None,
                agent: String::new(),
            },
        );
        let agent = &mut self.sources[source];
        agent.session = Some(SourceEnd {
            machine: SourceSession::new(now, hello, agent.sent),
            control,
            lanes: vec![],
            transfer: None,
            next: 0,
            generation,
            wire_bytes: 0,
        });
        self.settle_source(source)
    }

    fn dial_again(&mut self, source: usize, code: FailureCode) {
        let again = code == FailureCode::SourceChanged && self.setting.offers_changed;
        self.realm.dial_again(source, code, again);
    }

    pub(crate) fn tell_source(
        &mut self,
        source: usize,
        connection: ConnectionId,
        payload: Payload,
    ) -> Checked {
        let now = self.realm.now();
        let Some(session) = &mut self.sources[source].session else {
            return Ok(());
        };
        let is_control = session.control == connection;
        let lane = session
            .lanes
            .iter()
            .find(|lane| lane.connection == connection);
        // What was handed to a connection may be lost with it, its end included.
        let is_open_lane = lane.is_some_and(|lane| !lane.is_closed);
        match payload {
            Payload::Control(message) if is_control => {
                let before = session.machine.watermark();
                session.machine.handle_message(now, message);
                let is_same_session = session.machine.stage() != Stage::Handshake;
                let after = session.machine.watermark();
                check(
                    !is_same_session || after.durable_bytes >= before.durable_bytes,
                    || format!("the source knew {before:?}, now {after:?}"),
                )?;
            }
            Payload::Closed if is_open_lane => {
                let mut lanes = session.lanes.iter_mut();
                if let Some(lane) = lanes.find(|lane| lane.connection == connection) {
                    lane.is_closed = true;
                }
                if session.lanes.iter().all(|lane| lane.is_closed) {
                    self.drained(source);
                }
            }
            Payload::Lost if is_control => session.machine.end(lost()),
            Payload::Lost if is_open_lane => session.machine.fail(lost()),
            _ => {}
        }
        self.settle_source(source)
    }

    pub(crate) fn wake_source(&mut self, source: usize) -> Checked {
        let now = self.realm.now();
        if let Some(session) = &mut self.sources[source].session {
            session.machine.handle_timeout(now);
        }
        self.settle_source(source)
    }

    fn settle_source(&mut self, source: usize) -> Checked {
        loop {
            let now = self.realm.now();
            let Some(session) = &mut self.sources[source].session else {
                return Ok(());
            };
            // The last word is said before the connection ends.
            if let Some(message) = session.machine.poll_message(now) {
                let control = session.control;
                self.realm
                    .trace(|| format!("source {source} says {}", message.name()));
                self.realm
                    .send(control, Side::Target, Payload::Control(message));
                continue;
            }
            match session.machine.poll_action() {
                Some(SourceAction::Transfer(transfer)) => self.start_round(source, transfer),
                Some(SourceAction::Done(receipt)) => {
                    self.hang_up_source(source);
                    self.realm.lives[source].outcome = Some(Ok(*receipt));
                }
                Some(SourceAction::Fail(failure)) => {
                    self.realm
                        .trace(|| format!("source {source} fails: {failure}"));
                    self.hang_up_source(source);
                    self.dial_again(source, failure.code);
                }
                None => return Ok(()),
            }
        }
    }

    fn hang_up_source(&mut self, source: usize) {
        let agent = &mut self.sources[source];
        let Some(session) = agent.session.take() else {
            return;
        };
        agent.sent = session.machine.sent();
        let lanes = session.lanes.iter().map(|lane| lane.connection);
        self.realm
            .hang_up(lanes.chain([session.control]), Side::Target);
    }

    fn start_round(&mut self, source: usize, transfer: Transfer) {
        let offered = transfer.offer;
        self.realm
            .trace(|| format!("source {source} begins a round, offers: {offered}"));
        let lanes: Vec<_> = (0..transfer.streams)
            .map(|number| {
                let connection = self.realm.open_data(source, number, transfer.token);
                Lane::new(connection)
            })
            .collect();
        for lane in &lanes {
            let pause = self.pace();
            self.realm
                .after(pause, Event::Read(source, lane.connection));
        }
        if let Some(session) = &mut self.sources[source].session {
            session.lanes = lanes;
            session.transfer = Some(transfer);
            session.next = 0;
        }
    }

    /// A data connection is ready for the next chunk.
    pub(crate) fn read_more(&mut self, source: usize, connection: ConnectionId) -> Checked {
        let geometry = self.geometry;
        let Some(session) = &mut self.sources[source].session else {
            return Ok(());
        };
        let Some(transfer) = &session.transfer else {
            return Ok(());
        };
        let Some(lane) = session
            .lanes
            .iter_mut()
            .find(|lane| lane.connection == connection)
        else {
            return Ok(());
        };
        while let Some(end) = transfer.skip.range_end(ChunkIndex(session.next)) {
            session.next = end.0;
        }
        let index = session.next;
        let count = geometry.chunk_count();
        if index >= count {
            let frames = lane.frames;
            if !std::mem::replace(&mut lane.is_ended, true) {
                self.realm
                    .send(connection, Side::Target, Payload::End { frames });
            }
            return Ok(());
        }
        lane.frames += 1;
        session.wire_bytes += 56;
        let content = self.checker.content();
        let tag = content[index as usize];
        let is_due = |at: u64| at < count && !transfer.skip.contains(ChunkIndex(at));
        let frame = if tag == 0 {
            let zeros = (index..index + 4)
                .take_while(|at| is_due(*at) && content[*at as usize] == 0)
                .count() as u64;
            let chunks = ChunkRange {
                start: ChunkIndex(index),
                end: ChunkIndex(index + zeros),
            };
            session.machine.handle_zero(chunks);
            Frame::Zero(chunks)
        } else {
            let digest = content::digest(&geometry, index as usize, tag);
            let at = ChunkIndex(index);
            if transfer.offer {
                session.machine.handle_offer(at, digest);
                // An offer that is damaged costs a chunk's way, no more.
                let is_corrupt = self.realm.rng.chance(self.setting.corrupt_offers);
                let digest = if is_corrupt {
                    volferry_protocol::digest::Digest::of_chunk(b"damaged")
                } else {
                    digest
                };
                Frame::Offer { index, digest }
            } else {
                let data_len = content::data_len(&geometry, index as usize, tag);
                session.machine.handle_chunk(at, digest, data_len);
                Frame::Chunk { index, tag }
            }
        };
        let chunks = match &frame {
            Frame::Zero(chunks) => chunks.start.0..chunks.end.0,
            _ => index..index + 1,
        };
        session.next = chunks.end;
        let generation = session.generation;
        for at in chunks {
            self.checker.source_sends(generation, at as usize, tag);
        }
        self.realm
            .send(connection, Side::Target, Payload::Frame(frame));
        let pause = self.pace();
        self.realm.after(pause, Event::Read(source, connection));
        if index % 4 == 3 {
            self.join(source);
        }
        self.settle_source(source)
    }

    /// One more data connection, where the round may have it.
    fn join(&mut self, source: usize) {
        let Some(session) = &mut self.sources[source].session else {
            return;
        };
        let Some(token) = session.transfer.as_ref().map(|transfer| transfer.token) else {
            return;
        };
        let Some(number) = session.machine.handle_joined() else {
            return;
        };
        let connection = self.realm.open_data(source, number, token);
        session.lanes.push(Lane::new(connection));
        let pause = self.pace();
        self.realm.after(pause, Event::Read(source, connection));
    }

    /// The target has closed all data connections of a round.
    fn drained(&mut self, source: usize) {
        let generation = self.checker.generation();
        let Some(session) = &mut self.sources[source].session else {
            return;
        };
        if session.generation == generation {
            let wire_bytes = std::mem::take(&mut session.wire_bytes);
            session
                .machine
                .handle_drained(wire_bytes, AgentStats::default());
        } else {
            let failure = Failure::new(FailureCode::SourceChanged, "");
            session.machine.fail(failure);
        }
    }
}
