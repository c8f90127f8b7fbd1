//! A network that fails on purpose: stands between two agents, carries what they say, and does to
//! it what networks do. It delays, throttles, cuts and resets connections, says nothing any more
//! without ending them, turns bytes over and brings pieces twice.
//!
//! What it does can be changed while it runs, and so can the target behind it: a target that was
//! started again listens elsewhere, but its source still dials the same address.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};

use crate::PATIENCE;

/// Bytes that each connection may pass where chunks are held: a handshake and the control
/// connection's talk.
const TALK: u64 = 256 << 10;

/// Bytes that are carried at once.
const PIECE_LEN: usize = 16 << 10;

/// How soon a thread that waits for a socket sees that its connection is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Bytes that the kernel may keep before the proxy, for each connection; it would let tens of MiB
/// pile up.
const BUFFER_LEN: usize = 256 << 10;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the source to the target.
    ToTarget,
    /// From the target to the source.
    ToSource,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Each end is told that the other has closed.
    Cut,
    /// Each end is sent a reset.
    Reset,
}

/// What happens once, at a place in what a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends behind the bytes before.
    End(Ending),
    /// All connections fall silent.
    Silence,
    /// The byte arrives with one bit turned over.
    Corrupt,
    /// The piece that the byte is in arrives twice.
    Duplicate,
}

/// A fault that is still to come.
#[derive(Clone, Copy, Debug)]
struct Planned {
    /// Which connection, counted from 0; the first that gets there when `None`.
    connection: Option<u64>,
    way: Way,
    at: u64,
    fault: Fault,
}

/// The network. Dropped, it cuts what it carries.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    target: Option<SocketAddr>,
    planned: Vec<Planned>,
    happened: u64,
    /// What each connection has brought, each way.
    carried: BTreeMap<(u64, bool), u64>,
    is_silent: bool,
    /// Bytes of chunks that may still pass; `None` for all.
    chunks_left: Option<u64>,
    is_holding: bool,
    to_target: Flow,
    to_source: Flow,
    /// Connections so far.
    connections: u64,
    /// Those with a lower number are to end.
    ended: Option<(u64, Ending)>,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Flow {
    delay: Duration,
    bytes_per_second: Option<u64>,
    /// When the next piece may go.
    free_at: Option<Instant>,
    passed: u64,
}

impl State {
    const fn flow(&mut self, way: Way) -> &mut Flow {
        match way {
            Way::ToTarget => &mut self.to_target,
            Way::ToSource => &mut self.to_source,
        }
    }
}

impl Default for Proxy {
    /// Leads nowhere until it is given a target: who dials is hung up on.
    fn default() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Connections inherit it.
        set_socket_recv_buffer_size(&listener, BUFFER_LEN).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok((source, _)) = listener.accept() {
                if accepting.state().is_closed {
                    break;
                }
                let joining = Arc::clone(&accepting);
                thread::spawn(move || joining.join(source));
            }
        });
        Self { address, shared }
    }
}

impl Proxy {
    /// A proxy before `target`.
    #[must_use]
    pub fn before(target: SocketAddr) -> Self {
        let proxy = Self::default();
        proxy.lead_to(target);
        proxy
    }

    /// Where the source dials.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads connections to `target` from now on; those that are open stay where they are.
    pub fn lead_to(&self, target: SocketAddr) {
        self.change(|state| state.target = Some(target));
    }

    /// Has `fault` happen once, to the byte `at` of what connection number `connection` carries
    /// that `way`; without a number, on the first connection that gets there.
    pub fn plan(&self, connection: Option<u64>, way: Way, at: u64, fault: Fault) {
        let planned = Planned {
            connection,
            way,
            at,
            fault,
        };
        self.change(|state| state.planned.push(planned));
    }

    /// Plans nothing any more.
    pub fn forget_plans(&self) {
        self.change(|state| state.planned.clear());
    }

    /// Bytes that connection number `connection` has brought that `way`.
    #[must_use]
    pub fn carried(&self, connection: u64, way: Way) -> u64 {
        let carried = &self.shared.state().carried;
        let found = carried.get(&(connection, way == Way::ToTarget));
        found.copied().unwrap_or(0)
    }

    /// How many planned faults have happened.
    #[must_use]
    pub fn happened(&self) -> u64 {
        self.shared.state().happened
    }

    /// Has each piece take so much longer.
    pub fn delay(&self, way: Way, delay: Duration) {
        self.change(|state| state.flow(way).delay = delay);
    }

    /// Lets only so many bytes pass in a second, on all connections together; all when `None`.
    pub fn throttle(&self, way: Way, bytes_per_second: Option<u64>) {
        self.change(|state| {
            let flow = state.flow(way);
            flow.bytes_per_second = bytes_per_second;
            flow.free_at = None;
        });
    }

    /// Carries nothing any more, neither bytes nor ends, until it is healed. New connections are
    /// taken and lead nowhere.
    pub fn fall_silent(&self) {
        self.change(|state| state.is_silent = true);
    }

    /// Carries again, first what was held up.
    pub fn heal(&self) {
        self.change(|state| state.is_silent = false);
    }

    /// Ends all connections that are open.
    pub fn end_all(&self, ending: Ending) {
        self.change(|state| state.ended = Some((state.connections, ending)));
    }

    /// Lets `bytes` more of chunks pass to the target, then holds them back until it is opened.
    /// Control connections go on.
    pub fn hold_chunks_after(&self, bytes: u64) {
        self.change(|state| {
            state.chunks_left = Some(bytes);
            state.is_holding = false;
        });
    }

    /// Lets all chunks pass from now on.
    pub fn open(&self) {
        self.change(|state| state.chunks_left = None);
    }

    /// Waits until it holds chunks back.
    ///
    /// # Panics
    /// When none come.
    pub fn wait_until_it_holds(&self) {
        self.wait_for("chunks to hold back", |state| state.is_holding);
    }

    /// Waits until so many bytes have passed that `way`, on all connections together.
    ///
    /// # Panics
    /// When they don't come.
    pub fn wait_until_passed(&self, way: Way, bytes: u64) {
        self.wait_for("bytes to pass", |state| state.flow(way).passed >= bytes);
    }

    /// Bytes that have passed that `way`.
    #[must_use]
    pub fn passed(&self, way: Way) -> u64 {
        self.shared.state().flow(way).passed
    }

    /// Connections so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.state().connections
    }

    fn wait_for(&self, what: &str, mut is_so: impl FnMut(&mut State) -> bool) {
        let state = self.shared.state();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !is_so(state));
        assert!(!waited.unwrap().1.timed_out(), "{what} did not come");
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state());
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.change(|state| {
            state.is_closed = true;
            state.ended = Some((u64::MAX, Ending::Cut));
        });
        let _woken = TcpStream::connect(self.address);
    }
}

/// One connection from the source, and the one to the target that goes with it. Both are closed
/// when the last of the two threads has ended.
#[derive(Debug)]
struct Link {
    number: u64,
    source: TcpStream,
    target: TcpStream,
    ending: Mutex<Option<Ending>>,
}

impl Link {
    const fn ends(&self, way: Way) -> (&TcpStream, &TcpStream) {
        match way {
            Way::ToTarget => (&self.source, &self.target),
            Way::ToSource => (&self.target, &self.source),
        }
    }

    /// Ends both directions, unless they have ended otherwise.
    fn end(&self, ending: Ending) {
        let mut own = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if own.is_some() {
            return;
        }
        *own = Some(ending);
        for stream in [&self.source, &self.target] {
            let _gone = match ending {
                Ending::Cut => stream.shutdown(Shutdown::Write),
                // A socket that doesn't linger is reset when it is closed.
                Ending::Reset => {
                    set_socket_linger(stream, Some(Duration::ZERO)).map_err(Into::into)
                }
            };
        }
    }

    fn has_ended(&self) -> bool {
        let ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.is_some()
    }
}

/// What becomes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    Once,
    Twice,
    /// So many of its bytes pass, and the connection ends.
    Until(usize, Ending),
    /// The connection has ended.
    Over,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries what comes from `source` until both ends have closed.
    fn join(self: Arc<Self>, source: TcpStream) {
        let state = self.state();
        let silenced = self
            .changed
            .wait_while(state, |state| state.is_silent && !state.is_closed);
        let mut state = silenced.unwrap_or_else(PoisonError::into_inner);
        let Some(target) = state.target.filter(|_| !state.is_closed) else {
            return;
        };
        let number = state.connections;
        state.connections += 1;
        drop(state);
        self.changed.notify_all();
        let Ok(target) = TcpStream::connect(target) else {
            return;
        };
        for stream in [&source, &target] {
            let _slower = stream.set_nodelay(true);
            stream.set_read_timeout(Some(LOOK_INTERVAL)).unwrap();
            stream.set_write_timeout(Some(LOOK_INTERVAL)).unwrap();
        }
        let link = Arc::new(Link {
            number,
            source,
            target,
            ending: Mutex::default(),
        });
        let (other, back) = (Arc::clone(&self), Arc::clone(&link));
        thread::spawn(move || other.carry(&back, Way::ToSource));
        self.carry(&link, Way::ToTarget);
    }

    /// Carries bytes one way.
    fn carry(&self, link: &Link, way: Way) {
        let (mut from, to) = link.ends(way);
        let mut bytes = vec![0; PIECE_LEN];
        let mut carried = 0;
        while !self.is_over(link) {
            let len = match from.read(&mut bytes) {
                Ok(len) => len,
                Err(error) if is_only_late(&error) => continue,
                Err(_) => return link.end(Ending::Reset),
            };
            let piece = &mut bytes[..len];
            let passage = self.let_pass(link, way, carried, piece);
            carried += len as u64;
            let times = match passage {
                Passage::Once => 1,
                Passage::Twice => 2,
                Passage::Until(len, ending) => {
                    self.write(link, to, &piece[..len]);
                    return link.end(ending);
                }
                Passage::Over => return,
            };
            if len == 0 {
                let _gone = to.shutdown(Shutdown::Write);
                return;
            }
            for _ in 0..times {
                self.write(link, to, piece);
            }
        }
    }

    /// Writes all, as long as the connection lasts.
    fn write(&self, link: &Link, mut to: &TcpStream, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_over(link) {
            match to.write(bytes) {
                Ok(len) => bytes = &bytes[len..],
                Err(error) if is_only_late(&error) => {}
                Err(_) => link.end(Ending::Reset),
            }
        }
    }

    fn is_over(&self, link: &Link) -> bool {
        let ended = self.state().ended;
        if let Some((_, ending)) = ended.filter(|(below, _)| link.number < *below) {
            link.end(ending);
        }
        link.has_ended()
    }

    /// Waits until a piece may pass, `carried` bytes behind the start of its connection, and does
    /// to it what is planned.
    fn let_pass(&self, link: &Link, way: Way, carried: u64, piece: &mut [u8]) -> Passage {
        let len = piece.len() as u64;
        let mut state = self.state();
        let due = state.planned.iter().position(|planned| {
            let is_here = planned
                .connection
                .is_none_or(|number| number == link.number);
            let is_now = (carried..carried + len).contains(&planned.at);
            is_here && planned.way == way && is_now
        });
        let mut passage = Passage::Once;
        if let Some(index) = due {
            let Planned { at, fault, .. } = state.planned.swap_remove(index);
            let within = usize::try_from(at - carried).unwrap();
            state.happened += 1;
            match fault {
                Fault::End(ending) => passage = Passage::Until(within, ending),
                Fault::Silence => state.is_silent = true,
                Fault::Corrupt => piece[within] ^= 0x10,
                Fault::Duplicate => passage = Passage::Twice,
            }
            self.changed.notify_all();
        }
        let flow = state.flow(way);
        let now = Instant::now();
        let mut free_at = now + flow.delay;
        if let Some(bytes_per_second) = flow.bytes_per_second {
            let time = Duration::from_secs_f64(len as f64 / bytes_per_second as f64);
            let begin = flow.free_at.map_or(now, |at| at.max(now));
            flow.free_at = Some(begin + time);
            free_at = free_at.max(begin);
        }
        let is_chunk = way == Way::ToTarget && carried >= TALK;
        loop {
            let is_ended = state.ended.is_some_and(|(below, _)| link.number < below);
            if is_ended || link.has_ended() {
                return Passage::Over;
            }
            let is_early = Instant::now() < free_at && state.flow(way).bytes_per_second.is_some();
            let is_delayed = Instant::now() < free_at && !state.flow(way).delay.is_zero();
            let is_held = is_chunk && state.chunks_left.is_some_and(|left| left < len);
            if is_held && !state.is_holding {
                state.is_holding = true;
                self.changed.notify_all();
            }
            if !state.is_silent && !is_early && !is_delayed && !is_held {
                break;
            }
            let woken = self.changed.wait_timeout(
                state,
                LOOK_INTERVAL.min(
                    free_at
                        .saturating_duration_since(Instant::now())
                        .max(Duration::from_millis(1)),
                ),
            );
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        if is_chunk && let Some(left) = &mut state.chunks_left {
            *left -= len;
        }
        state.flow(way).passed += len;
        let key = (link.number, way == Way::ToTarget);
        state.carried.insert(key, carried + len);
        drop(state);
        self.changed.notify_all();
        passage
    }
}

/// Whether a socket had nothing, or no room, for a moment.
fn is_only_late(error: &std::io::Error) -> bool {
    use ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection through `proxy`, from both ends.
    fn connect(proxy: &Proxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
        let source = TcpStream::connect(proxy.address()).unwrap();
        let (target, _) = listener.accept().unwrap();
        for stream in [&source, &target] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        (source, target)
    }

    fn proxy() -> (Proxy, TcpListener) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        (Proxy::before(listener.local_addr().unwrap()), listener)
    }

    #[test]
    fn it_carries_both_ways_to_the_end() {
        let (proxy, listener) = proxy();
        let (mut source, mut target) = connect(&proxy, &listener);
        let sent = vec![7; 300_000];
        let copy = sent.clone();
        thread::spawn(move || {
            source.write_all(&copy).unwrap();
            source.shutdown(Shutdown::Write).unwrap();
            let mut back = Vec::new();
            source.read_to_end(&mut back).unwrap();
            assert_eq!(back, b"thanks");
        });
        let mut came = Vec::new();
        target.read_to_end(&mut came).unwrap();
        assert!(came == sent);
        target.write_all(b"thanks").unwrap();
        assert_eq!(proxy.passed(Way::ToTarget), 300_000);
    }

    #[test]
    fn a_byte_is_turned_over_and_a_piece_comes_twice() {
        let (proxy, listener) = proxy();
        proxy.plan(Some(1), Way::ToTarget, 2, Fault::Corrupt);
        proxy.plan(None, Way::ToSource, 0, Fault::Duplicate);
        let (mut first, mut first_end) = connect(&proxy, &listener);
        first.write_all(&[0; 4]).unwrap();
        let mut came = [0; 4];
        first_end.read_exact(&mut came).unwrap();
        assert_eq!(came, [0; 4]);
        let (mut second, mut second_end) = connect(&proxy, &listener);
        second.write_all(&[0; 4]).unwrap();
        second_end.read_exact(&mut came).unwrap();
        assert_eq!(came, [0, 0, 0x10, 0]);
        second_end.write_all(b"ab").unwrap();
        second.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"abab");
        assert_eq!(proxy.happened(), 2);
    }

    #[test]
    fn connections_end_as_they_are_told_to() {
        let (proxy, listener) = proxy();
        proxy.plan(Some(0), Way::ToTarget, 3, Fault::End(Ending::Cut));
        let (mut source, mut target) = connect(&proxy, &listener);
        source.write_all(b"abcdef").unwrap();
        let mut came = Vec::new();
        target.read_to_end(&mut came).unwrap();
        assert_eq!(came, b"abc");
        let (mut source, mut target) = connect(&proxy, &listener);
        proxy.end_all(Ending::Reset);
        for stream in [&mut source, &mut target] {
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn silence_holds_everything_up_until_it_is_healed() {
        let (proxy, listener) = proxy();
        let (mut source, mut target) = connect(&proxy, &listener);
        proxy.fall_silent();
        source.write_all(b"late").unwrap();
        source.shutdown(Shutdown::Write).unwrap();
        let dialed = TcpStream::connect(proxy.address()).unwrap();
        target
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        assert!(is_only_late(&target.read(&mut [0]).unwrap_err()));
        assert_eq!(proxy.connections(), 1, "the second leads nowhere yet");
        proxy.heal();
        target.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut came = Vec::new();
        target.read_to_end(&mut came).unwrap();
        assert_eq!(came, b"late");
        listener.accept().unwrap();
        drop(dialed);
    }
}
