//! The source agent of a tree as its driver and its walk would be: offers files, reads them, sends
//! what the target lacks, and dials again when its session was cut.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use uuid::Uuid;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::ChunkSize;
use volferry_protocol::message::{Hello, Sent, TREE_FEATURES};
use volferry_protocol::receipt::AgentStats;
use volferry_protocol::tree::file_digest::{FileDigest, PIECE_LEN};
use volferry_protocol::tree::offer::{Answer, Holding, Pieces};
use volferry_protocol::tree::session::source::TreeTransfer;
use volferry_protocol::tree::session::{
    TreeSourceAction, TreeSourceSession, TreeSummary, TreeTerms,
};
use volferry_protocol::tree::set_digest::TreeDigest;

use super::files::{self, FileState, Name};
use super::restore::Frame;
use super::world::{Payload, World};
use crate::fencing::{Checked, check};
use crate::intake::lost;
use crate::network::{ConnectionId, Purpose, Side};
use crate::realm::{CLONE, Event};
use crate::tag::Tag;

/// Files in a pack of offers.
const OFFERS: usize = 4;

/// Packs and probes that are unanswered.
const QUESTIONS_MAX: usize = 3;

/// How often a file that changes is read.
const ATTEMPTS: u32 = 3;

/// What a run of a source agent knows.
#[derive(Debug, Default)]
pub(crate) struct SourceAgent {
    sent: Sent,
    digest: Option<Digest>,
    pub(crate) session: Option<SourceEnd>,
}

/// A session at the source.
#[derive(Debug)]
pub(crate) struct SourceEnd {
    pub(crate) machine: TreeSourceSession,
    control: ConnectionId,
    lanes: Vec<Lane>,
    walk: Option<Walk>,
}

/// A data connection.
#[derive(Debug)]
struct Lane {
    connection: ConnectionId,
    frames: u64,
    is_ended: bool,
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

/// What is left to do of a tree.
#[derive(Debug)]
struct Walk {
    transfer: TreeTransfer,
    todo: VecDeque<Task>,
    asked: BTreeMap<u64, Vec<(Name, FileState)>>,
    probes: usize,
    large: BTreeMap<u64, Large>,
    /// The names that were listed.
    names: Vec<Name>,
    next_pack: u64,
    next_file: u64,
    digest: TreeDigest,
    sent_bytes: u64,
    data_bytes: u64,
    changed: u64,
}

#[derive(Debug)]
enum Task {
    Offer(Vec<Name>),
    Send(Name, FileState, u32),
    Answered(Name, FileState, Holding),
    Piece(u64, u64),
    Probe(u64, u64, u32),
    Compare(Pieces, u32),
    End(u64),
}

#[derive(Debug)]
struct Large {
    name: Name,
    state: FileState,
    attempt: u32,
    digest: FileDigest,
    /// What was read, or was said to be held.
    pieces: Vec<Tag>,
    left: u64,
    /// Of each probe, how many pieces it is for.
    probed: BTreeMap<u64, u32>,
}

impl World {
    pub(crate) fn begin_session(&mut self, source: usize) -> Checked {
        if !self.realm.can_dial() {
            self.dial_again(source, FailureCode::Connect);
            return Ok(());
        }
        let control = self.realm.connect(source, Purpose::Control);
        let now = self.realm.now();
        let features = TREE_FEATURES.iter().map(ToString::to_string);
        let hello = self.realm.lives[source].greet(
            source,
            Hello {
                clone_id: CLONE,
                instance: Uuid::nil(),
                attempt: 0,
                take_over: false,
                volume_size: 0,
                chunk_size: ChunkSize::DEFAULT,
                streams: self.setting.streams,
                streams_max: (self.setting.further).map(|further| self.setting.streams + further),
                generation: String::new(),
                features: features.clone().collect(),
                required_features: features.collect(),
                tree: Some(TreeTerms::default()),
                agent: String::new(),
            },
        );
        let agent = &mut self.sources[source];
        agent.session = Some(SourceEnd {
            machine: TreeSourceSession::new(now, hello, agent.digest),
            control,
            lanes: vec![],
            walk: None,
        });
        self.settle_source(source)
    }

    fn dial_again(&mut self, source: usize, code: FailureCode) {
        // Whoever wants the clone starts the agent anew.
        let again = code == FailureCode::SourceChanged;
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
        let mut lanes = session.lanes.iter_mut();
        let lane = lanes.find(|lane| lane.connection == connection && !lane.is_closed);
        match (payload, lane) {
            (Payload::Control(message), _) if is_control => {
                let before = session.machine.watermark();
                session.machine.handle_message(now, message);
                let after = session.machine.watermark();
                check(after.durable_bytes >= before.durable_bytes, || {
                    format!("the source knew {before:?}, now {after:?}")
                })?;
            }
            (Payload::Lost, _) if is_control => session.machine.end(lost()),
            (Payload::Closed, Some(lane)) => {
                lane.is_closed = true;
                if session.lanes.iter().all(|lane| lane.is_closed) {
                    self.drained(source);
                }
            }
            (Payload::Lost, Some(_)) => session.machine.fail(lost()),
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
                Some(TreeSourceAction::Transfer(transfer)) => self.start_walk(source, transfer),
                Some(TreeSourceAction::Answer(answer)) => {
                    let is_asked = session
                        .walk
                        .as_mut()
                        .is_some_and(|walk| walk.answer(answer));
                    check(is_asked, || "an answer to no question".to_owned())?;
                }
                Some(TreeSourceAction::Pieces(pieces)) => {
                    let is_asked = session
                        .walk
                        .as_mut()
                        .is_some_and(|walk| walk.compare(pieces));
                    check(is_asked, || "pieces that were not asked for".to_owned())?;
                }
                Some(TreeSourceAction::Done(receipt)) => {
                    self.hang_up_source(source);
                    self.realm.lives[source].outcome = Some(Ok(*receipt));
                }
                Some(TreeSourceAction::Fail(failure)) => {
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
        agent.digest = session.machine.digest();
        agent.sent.data_bytes += session.walk.map_or(0, |walk| walk.sent_bytes);
        let lanes = session.lanes.iter().map(|lane| lane.connection);
        self.realm
            .hang_up(lanes.chain([session.control]), Side::Target);
    }

    fn start_walk(&mut self, source: usize, transfer: TreeTransfer) {
        let (offer, epoch) = (transfer.offer, transfer.epoch);
        self.realm
            .trace(|| format!("source {source} walks in {epoch}, offers: {offer}"));
        self.checker.walks(epoch);
        let mut lanes = vec![];
        for number in 0..transfer.streams {
            let connection = self.realm.open_data(source, number, transfer.token);
            let pause = self.pace();
            self.realm.after(pause, Event::Read(source, connection));
            lanes.push(Lane::new(connection));
        }
        let names: Vec<_> = self.files.keys().copied().collect();
        let todo = match offer {
            true => names
                .chunks(OFFERS)
                .map(|names| Task::Offer(names.to_vec()))
                .collect(),
            false => self
                .files
                .iter()
                .map(|(name, file)| Task::Send(*name, file.clone(), 1))
                .collect(),
        };
        if let Some(session) = &mut self.sources[source].session {
            session.lanes = lanes;
            session.walk = Some(Walk {
                next_file: epoch << 32 | 1,
                transfer,
                todo,
                asked: BTreeMap::new(),
                probes: 0,
                large: BTreeMap::new(),
                names,
                next_pack: 0,
                digest: TreeDigest::default(),
                sent_bytes: 0,
                data_bytes: 0,
                changed: 0,
            });
        }
    }

    /// A data connection is ready for more.
    pub(crate) fn read_more(&mut self, source: usize, connection: ConnectionId) -> Checked {
        let Some(session) = &mut self.sources[source].session else {
            return Ok(());
        };
        let mut lanes = session.lanes.iter_mut();
        let lane = lanes.find(|lane| lane.connection == connection);
        let (Some(walk), Some(lane)) = (&mut session.walk, lane) else {
            return Ok(());
        };
        let mut frames = vec![];
        let mut pause = Duration::ZERO;
        if let Some(task) = walk.next_task() {
            if let Some((name, pieces)) = walk.work(task, &self.files, &mut frames) {
                self.checker.reads(walk.transfer.epoch, name, pieces);
            }
        } else if walk.is_done() {
            let frames = lane.frames;
            if !std::mem::replace(&mut lane.is_ended, true) {
                self.realm
                    .send(connection, Side::Target, Payload::End { frames });
            }
            return Ok(());
        } else {
            // An answer is on its way.
            pause = Duration::from_millis(50);
        }
        lane.frames += frames.len() as u64;
        let joins = lane.frames % 4 == 3;
        for frame in frames {
            self.realm
                .send(connection, Side::Target, Payload::Frame(frame));
        }
        pause += self.pace();
        self.realm.after(pause, Event::Read(source, connection));
        if joins {
            self.join(source);
        }
        self.settle_source(source)
    }

    /// One more data connection, where the round may have it.
    fn join(&mut self, source: usize) {
        let Some(session) = &mut self.sources[source].session else {
            return;
        };
        let Some(token) = session.walk.as_ref().map(|walk| walk.transfer.token) else {
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

    /// The target has closed all data connections.
    fn drained(&mut self, source: usize) {
        let agent = &mut self.sources[source];
        let Some(session) = &mut agent.session else {
            return;
        };
        let Some(walk) = &mut session.walk else {
            return;
        };
        // A directory to which something came, or from which something went.
        walk.changed += u64::from(!self.files.keys().eq(&walk.names));
        if walk.changed > 0 && !self.setting.allow_changed {
            let failure = Failure::new(FailureCode::SourceChanged, "");
            session.machine.fail(failure);
            return;
        }
        let summary = TreeSummary {
            digest: walk.digest.finish(Default::default()),
            counts: walk.digest.counts,
            fidelity: Default::default(),
            changed: walk.changed,
            data_bytes: walk.data_bytes,
            resumed_bytes: 0,
            matched_bytes: 0,
            repaired_bytes: 0,
        };
        let sent = Sent {
            data_bytes: agent.sent.data_bytes + walk.sent_bytes,
            ..Sent::default()
        };
        session
            .machine
            .handle_drained(summary, sent, AgentStats::default());
    }
}

impl Walk {
    fn answer(&mut self, answer: Answer) -> bool {
        let Some(files) = self.asked.remove(&answer.pack) else {
            return false;
        };
        let is_whole = files.len() == answer.holdings.len();
        let answered = files.into_iter().zip(answer.holdings);
        self.todo
            .extend(answered.map(|((name, file), holding)| Task::Answered(name, file, holding)));
        is_whole
    }

    fn compare(&mut self, pieces: Pieces) -> bool {
        let large = self.large.get_mut(&pieces.file);
        let Some(count) = large.and_then(|large| large.probed.remove(&pieces.index)) else {
            return false;
        };
        self.probes -= 1;
        self.todo.push_back(Task::Compare(pieces, count));
        true
    }

    fn is_done(&self) -> bool {
        self.todo.is_empty() && self.asked.is_empty() && self.large.is_empty()
    }

    fn next_task(&mut self) -> Option<Task> {
        let is_full = self.asked.len() + self.probes >= QUESTIONS_MAX;
        let is_question = |task: &Task| matches!(task, Task::Offer(_) | Task::Probe(..));
        let mut tasks = self.todo.iter();
        let at = tasks.position(|task| !is_full || !is_question(task))?;
        self.todo.remove(at)
    }

    /// Does a task, with the files as they are now. Gives those that are read, and what they held.
    fn work(
        &mut self,
        task: Task,
        files: &files::Files,
        frames: &mut Vec<Frame>,
    ) -> Option<(Name, Vec<Tag>)> {
        match task {
            Task::Offer(names) => {
                let mut offers = vec![];
                for name in names {
                    match files.get(&name) {
                        Some(file) => offers.push((name, file.clone())),
                        None => self.changed += 1,
                    }
                }
                if !offers.is_empty() {
                    let pack = self.next_pack;
                    self.next_pack += 1;
                    self.asked.insert(pack, offers.clone());
                    frames.push(Frame::Offers(pack, offers));
                }
                None
            }
            Task::Send(name, listed, attempt) => {
                let Some(file) = files.get(&name) else {
                    self.changed += 1;
                    return None;
                };
                if attempt == 1 && listed.is_large() != file.is_large() {
                    self.changed += 1;
                }
                self.send(name, file.clone(), attempt, frames)
            }
            Task::Answered(name, offered, holding) => {
                self.answered(name, offered, holding, files, frames)
            }
            Task::Piece(number, index) => {
                self.read_piece(number, index, files, None, frames);
                None
            }
            Task::Probe(file, index, count) => {
                if let Some(large) = self.large.get_mut(&file) {
                    large.probed.insert(index, count);
                    self.probes += 1;
                    frames.push(Frame::Probe { file, index, count });
                }
                None
            }
            Task::Compare(pieces, count) => {
                for at in 0..u64::from(count) {
                    let held = pieces.digests.get(at as usize).copied();
                    self.read_piece(pieces.file, pieces.index + at, files, Some(held), frames);
                }
                None
            }
            Task::End(number) => self.end(number, files, frames),
        }
    }

    /// Sends a file as it is now.
    fn send(
        &mut self,
        name: Name,
        file: FileState,
        attempt: u32,
        frames: &mut Vec<Frame>,
    ) -> Option<(Name, Vec<Tag>)> {
        if file.is_large() {
            let number = self.next_file;
            self.next_file += 1;
            self.begin(
                number,
                name,
                file,
                attempt,
                FileDigest::default(),
                false,
                frames,
            );
            return None;
        }
        files::add(
            &mut self.digest,
            name,
            file.size(),
            file.digest(),
            file.version,
        );
        self.sent_bytes += file.data_bytes();
        self.data_bytes += file.data_bytes();
        frames.push(Frame::Small(name, file.clone()));
        Some((name, file.pieces))
    }

    fn begin(
        &mut self,
        number: u64,
        name: Name,
        state: FileState,
        attempt: u32,
        digest: FileDigest,
        is_compared: bool,
        frames: &mut Vec<Frame>,
    ) {
        frames.push(Frame::Begin {
            file: number,
            name,
            state: state.clone(),
        });
        let count = state.pieces.len() as u64;
        let left = count - digest.pieces();
        match is_compared {
            true => {
                let probes = (0..count).step_by(2);
                let probe = |index| Task::Probe(number, index, (count - index).min(2) as u32);
                self.todo.extend(probes.map(probe));
            }
            false => {
                let missing = (0..count).filter(|index| !digest.contains(*index));
                self.todo
                    .extend(missing.map(|index| Task::Piece(number, index)));
            }
        }
        if left == 0 {
            self.todo.push_back(Task::End(number));
        }
        let large = Large {
            name,
            attempt,
            digest,
            pieces: state.pieces.clone(),
            state,
            left,
            probed: BTreeMap::new(),
        };
        self.large.insert(number, large);
    }

    fn answered(
        &mut self,
        name: Name,
        offered: FileState,
        holding: Holding,
        files: &files::Files,
        frames: &mut Vec<Frame>,
    ) -> Option<(Name, Vec<Tag>)> {
        let now = files.get(&name);
        let Some(file) = now.filter(|now| now.version == offered.version).cloned() else {
            if let Holding::Part { file, .. } | Holding::Other { file } = holding {
                frames.push(Frame::Forget(file));
            }
            let Some(now) = now else {
                self.changed += 1;
                return None;
            };
            return self.send(name, now.clone(), 1, frames);
        };
        match holding {
            Holding::All {
                digest,
                data_bytes,
                voucher,
            } if !self.transfer.compare || !file.is_large() && digest == file.digest() => {
                files::add(&mut self.digest, name, file.size(), digest, file.version);
                self.data_bytes += data_bytes;
                frames.push(Frame::Keep {
                    name,
                    version: file.version,
                    size: file.size(),
                    digest,
                    data_bytes,
                    voucher,
                });
                return Some((name, file.pieces));
            }
            Holding::Part {
                file: number,
                parts,
                data_bytes,
            } => {
                let digest = FileDigest::of_parts(&parts).expect("parts of a file");
                self.data_bytes += data_bytes;
                self.begin(number, name, file, 1, digest, false, frames);
            }
            Holding::Other { file: number } if file.is_large() => {
                self.begin(number, name, file, 1, FileDigest::default(), true, frames);
            }
            _ => return self.send(name, file, 1, frames),
        }
        None
    }

    /// Reads a piece of a file, and sends it unless the target holds it: `held` is what it said.
    fn read_piece(
        &mut self,
        number: u64,
        index: u64,
        files: &files::Files,
        held: Option<Option<Digest>>,
        frames: &mut Vec<Frame>,
    ) {
        let Some(large) = self.large.get_mut(&number) else {
            return;
        };
        // One that went is read as it was; one that became shorter ends in zeros.
        let tag = match files.get(&large.name) {
            Some(file) => file.pieces.get(index as usize).copied().unwrap_or(0),
            None => large.state.pieces[index as usize],
        };
        large.pieces[index as usize] = tag;
        let piece = files::piece(index, tag);
        large.digest.insert(index, piece).expect("each piece once");
        large.left -= 1;
        let data_len = if tag == 0 { 0 } else { u64::from(PIECE_LEN) };
        self.data_bytes += data_len;
        if held == Some(Some(piece.chaining_value)) {
            frames.push(Frame::Same {
                file: number,
                index,
                count: 1,
            });
        } else {
            self.sent_bytes += data_len;
            frames.push(Frame::Piece {
                file: number,
                index,
                tag,
            });
        }
        if large.left == 0 {
            self.todo.push_back(Task::End(number));
        }
    }

    /// All pieces of a file were read.
    fn end(
        &mut self,
        number: u64,
        files: &files::Files,
        frames: &mut Vec<Frame>,
    ) -> Option<(Name, Vec<Tag>)> {
        let large = self.large.remove(&number)?;
        let now = files.get(&large.name);
        if now.is_none_or(|now| now.version != large.state.version) {
            if let Some(now) = now.filter(|_| large.attempt < ATTEMPTS) {
                frames.push(Frame::Forget(number));
                let again = Task::Send(large.name, now.clone(), large.attempt + 1);
                self.todo.push_back(again);
                return None;
            }
            self.changed += 1;
        }
        let size = large.state.size();
        let digest = large.digest.finish(size).expect("every piece was read");
        files::add(
            &mut self.digest,
            large.name,
            size,
            digest,
            large.state.version,
        );
        frames.push(Frame::End {
            file: number,
            name: large.name,
            version: large.state.version,
            size,
            digest,
        });
        Some((large.name, large.pieces))
    }
}
