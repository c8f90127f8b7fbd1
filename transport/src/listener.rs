//! The end that listens: accepts, shakes hands with many at once, yields those who may come in.
//!
//! ```text
//! port ─▶ accept ─▶ permit? ─▶ handshake (each its own task, with a deadline) ─▶ queue ─▶ accept()
//!                     └ none: close at once
//! ```
//!
//! A permit is held from the moment a connection is accepted until its stream has a place in the
//! queue, or until its refusal is over. So a peer that dawdles costs one permit for a bounded time
//! and holds up nobody else, and an owner that doesn't call [`Listener::accept`] stops new
//! handshakes.

use std::future::pending;
use std::io;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::warn;

use crate::address::{Address, PeerAddress};
use crate::error::TransportError;
use crate::identity::{Credentials, CredentialsDir};
use crate::local::LocalPort;
use crate::name::Role;
use crate::quic::{self, Congestion, Incoming};
use crate::rejection::Rejection;
use crate::stream::SecureStream;
use crate::tls::{Established, Socket};
use crate::{Accepted, Acceptor, Transport, TransportChoice, socket, tls};

/// Whom a listener lets in, and how much it bears.
#[derive(Clone, Debug)]
pub struct ListenLimits {
    /// The roles of our clone that are let in.
    pub roles: Vec<Role>,
    /// Handshakes under way at once, refusals included.
    pub handshakes_max: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// What is offered.
    pub transport: TransportChoice,
    /// The congestion control of what this end sends over QUIC.
    pub congestion: Congestion,
}

impl Default for ListenLimits {
    /// The source and the observer; 128 handshakes, which is more than the connections of a session
    /// (they are dialed at once), and bounds what strangers can make us spend; ten seconds, as the dialing end waits as long. TLS and
    /// QUIC.
    fn default() -> Self {
        Self {
            roles: vec![Role::Source, Role::Observer],
            handshakes_max: 128,
            handshake_timeout: Duration::from_secs(10),
            transport: TransportChoice::Auto,
            congestion: Congestion::default(),
        }
    }
}

/// QUIC connections at once: one for each session, those that are just lost, and a few observers. Each may
/// fill the windows of its streams, which nobody may read.
const QUIC_CONNECTIONS_MAX: usize = 16;

/// Accepted streams that wait for their owner; more stay in their handshake's hands.
const QUEUE_LEN: usize = 8;

/// How long a refused peer may take to read its alert. Closing while it still sends would make TCP
/// reset the connection, and the reset can overtake the alert (RFC 1122, section 4.2.2.13).
const LINGER: Duration = Duration::from_secs(1);

/// How often any port is asked for until the same is free for TCP and for UDP.
const PORT_TRIES: u32 = 16;

/// The pause after an accept that failed because of us, such as too many open files. The connection
/// stays ready, so without a pause this would be a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An open port: of TCP, of UDP, or both with the same number; or a Unix socket.
///
/// Dropping it closes the port and ends handshakes under way; [`Listener::close`] also waits for
/// that.
#[derive(Debug)]
pub struct Listener {
    local_address: Address,
    accepted: mpsc::Receiver<Accepted<SecureStream>>,
    // Never sent on: the task ends when this is dropped.
    open: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Opens a port, or a Unix socket: whose file only processes of the same user may open, which is
    /// replaced where nobody listens at it any more, and goes with the listener. Whenever a peer doesn't make it in, `on_refused` is told; it must not block.
    ///
    /// The credentials are read at once, so that a wrong mount shows at the start, and again for
    /// each connection.
    ///
    /// # Errors
    /// When the credentials can't be used or the port can't be had.
    pub async fn bind(
        address: impl Into<Address>,
        credentials: CredentialsDir,
        limits: ListenLimits,
        on_refused: impl Fn(PeerAddress, TransportError) + Send + Sync + 'static,
    ) -> Result<Self, TransportError> {
        let loaded = credentials.load().await?;
        let address = address.into();
        let ports = match &address {
            Address::Network(address) => Ports::open(*address, &loaded, &limits)?,
            Address::Unix(path) => Ports::open_local(path)?,
        };
        let local_address = ports
            .local_address()
            .map_err(|source| TransportError::Listen { address, source })?;
        let (queue, accepted) = mpsc::channel(QUEUE_LEN);
        let (open, closed) = oneshot::channel();
        let desk = Desk {
            permits: Arc::new(Semaphore::new(limits.handshakes_max)),
            door: Arc::new(Door {
                connections: Semaphore::new(QUIC_CONNECTIONS_MAX),
                credentials,
                limits,
                on_refused: Box::new(on_refused),
            }),
            queue,
        };
        let task = tokio::spawn(desk.run(ports, closed));
        Ok(Self {
            local_address,
            accepted,
            open,
            task,
        })
    }

    /// The address that is listened on; its port is the one given out if port 0 was asked for.
    #[must_use]
    pub const fn local_address(&self) -> &Address {
        &self.local_address
    }

    /// The next peer that was let in. Dropping the future loses nobody.
    ///
    /// # Errors
    /// [`TransportError::Closed`] when the listener's task is gone, which takes a panic in
    /// `on_refused`.
    pub async fn accept(&mut self) -> Result<Accepted<SecureStream>, TransportError> {
        self.accepted.recv().await.ok_or(TransportError::Closed {
            operation: "accepting",
        })
    }

    /// Closes the port, ends handshakes under way, and returns when all tasks are gone.
    pub async fn close(self) {
        drop(self.open);
        drop(self.accepted);
        if let Err(error) = self.task.await {
            warn!(%error, "the listener's task failed");
        }
    }
}

impl Acceptor for Listener {
    type Stream = SecureStream;

    async fn accept(&mut self) -> Result<Accepted<SecureStream>, TransportError> {
        Self::accept(self).await
    }
}

/// Hands each connection its permit, and a task.
struct Desk {
    permits: Arc<Semaphore>,
    door: Arc<Door>,
    queue: mpsc::Sender<Accepted<SecureStream>>,
}

impl Desk {
    async fn run(self, ports: Ports, mut closed: oneshot::Receiver<()>) {
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                _ = &mut closed => break,
                Some(ended) = handshakes.join_next() => {
                    if let Err(error) = ended {
                        warn!(%error, "a handshake's task failed");
                    }
                }
                accepted = accept_tcp(ports.tcp.as_ref()) => match accepted {
                    Ok((stream, address)) => {
                        self.receive(Caller::Tcp(stream, canonical(address)), &mut handshakes);
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        warn!(%error, "cannot accept connections, will try again");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                accepted = accept_unix(ports.unix.as_ref()) => match accepted {
                    Ok(stream) => self.receive(Caller::Unix(stream), &mut handshakes),
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) => {
                        warn!(%error, "cannot accept connections, will try again");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                incoming = accept_udp(ports.udp.as_ref()) => {
                    self.receive_quic(incoming, &mut handshakes);
                }
            }
        }
        drop(ports);
        handshakes.shutdown().await;
    }

    fn receive(&self, caller: Caller, handshakes: &mut JoinSet<()>) {
        let Some(permit) = self.permit(caller.address()) else {
            return;
        };
        let door = Arc::clone(&self.door);
        let queue = self.queue.clone();
        handshakes.spawn(async move {
            if let Some(stream) = door.let_in(caller).await {
                // Fails only when the listener is being closed.
                queue.send(accepted(stream)).await.ok();
            }
            drop(permit);
        });
    }

    fn receive_quic(&self, incoming: Incoming, handshakes: &mut JoinSet<()>) {
        let address = canonical(incoming.remote_address()).into();
        // Under load a peer first shows that it is where it says it is, which costs it a round trip and us nothing.
        let is_busy = self.permits.available_permits() <= self.door.limits.handshakes_max / 2;
        if is_busy && !incoming.remote_address_validated() {
            // What can't be asked again is let go, as an honest peer comes again.
            let _asked = incoming.retry();
            return;
        }
        let Some(permit) = self.permit(address) else {
            incoming.refuse();
            return;
        };
        let door = Arc::clone(&self.door);
        let queue = self.queue.clone();
        handshakes.spawn(async move { door.let_in_quic(incoming, address, permit, queue).await });
    }

    /// The right to shake hands; a peer for whom there is none has been refused.
    fn permit(&self, address: PeerAddress) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        if permit.is_none() {
            let rejection = Rejection::TooManyConnections;
            (self.door.on_refused)(address, TransportError::Rejected { address, rejection });
        }
        permit
    }
}

/// What is listened on.
struct Ports {
    tcp: Option<TcpListener>,
    udp: Option<quic::Port>,
    unix: Option<LocalPort>,
}

impl Ports {
    /// Opens what is offered. Both have the same number, also where any will do.
    fn open(
        address: SocketAddr,
        credentials: &Credentials,
        limits: &ListenLimits,
    ) -> Result<Self, TransportError> {
        let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            match Self::open_once(address, credentials, limits) {
                Err(TransportError::Listen { source, .. })
                    if tries > 0 && source.kind() == io::ErrorKind::AddrInUse => {}
                opened => return opened,
            }
        }
    }

    fn open_once(
        address: SocketAddr,
        credentials: &Credentials,
        limits: &ListenLimits,
    ) -> Result<Self, TransportError> {
        let failed = |source| TransportError::Listen {
            address: address.into(),
            source,
        };
        let offers = |transport| limits.transport.allows(transport);
        let tcp = offers(Transport::Tls)
            .then(|| socket::listen(address).map_err(failed))
            .transpose()?;
        let given = tcp.as_ref().map(TcpListener::local_addr).transpose();
        let port = given
            .map_err(failed)?
            .map_or_else(|| address.port(), |given| given.port());
        let udp = offers(Transport::Quic)
            .then(|| {
                let address = SocketAddr::new(address.ip(), port);
                quic::Port::open(address, credentials, limits.congestion)
            })
            .transpose()?;
        Ok(Self {
            tcp,
            udp,
            unix: None,
        })
    }

    /// Opens a Unix socket, which is all that is offered then.
    fn open_local(path: &Path) -> Result<Self, TransportError> {
        let unix = LocalPort::open(path).map_err(|source| TransportError::Listen {
            address: Address::Unix(path.to_owned()),
            source,
        })?;
        Ok(Self {
            tcp: None,
            udp: None,
            unix: Some(unix),
        })
    }

    fn local_address(&self) -> io::Result<Address> {
        match (&self.tcp, &self.udp, &self.unix) {
            (Some(tcp), _, _) => tcp.local_addr().map(Address::Network),
            (_, Some(udp), _) => udp.local_address().map(Address::Network),
            (_, _, Some(unix)) => Ok(Address::Unix(unix.path().to_owned())),
            (None, None, None) => unreachable!("each choice offers something"),
        }
    }
}

async fn accept_tcp(port: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match port {
        Some(port) => port.accept().await,
        None => pending().await,
    }
}

async fn accept_unix(port: Option<&LocalPort>) -> io::Result<UnixStream> {
    match port {
        Some(port) => port.accept().await,
        None => pending().await,
    }
}

async fn accept_udp(port: Option<&quic::Port>) -> Incoming {
    let accepted = match port {
        Some(port) => port.accept().await,
        None => None,
    };
    match accepted {
        Some(incoming) => incoming,
        None => pending().await,
    }
}

fn accepted(stream: SecureStream) -> Accepted<SecureStream> {
    Accepted {
        peer_name: stream.peer_name(),
        peer_address: stream.peer_address(),
        transport: stream.transport(),
        stream,
    }
}

/// Errors that `accept` reports of a connection which died in the backlog; the next may be fine.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

/// An IPv4 peer of a port on `[::]` under the address by which everybody knows it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Who is told of a peer that didn't make it in.
type OnRefused = dyn Fn(PeerAddress, TransportError) + Send + Sync;

/// A connection before its handshake.
enum Caller {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Caller {
    const fn address(&self) -> PeerAddress {
        match self {
            Self::Tcp(_, address) => PeerAddress::Network(*address),
            Self::Unix(_) => PeerAddress::Unix,
        }
    }

    /// Whether it ends without a byte: a peer that only wanted to know whether it can connect, and how long
    /// that takes.
    async fn is_silent(&self) -> bool {
        match self {
            Self::Tcp(stream, _) => matches!(stream.peek(&mut [0]).await, Ok(0)),
            // Another target looks whether anybody listens.
            Self::Unix(stream) => {
                let peek = || SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
                matches!(stream.async_io(Interest::READABLE, peek).await, Ok(0))
            }
        }
    }
}

/// Decides on one connection.
struct Door {
    /// The right to have a QUIC connection.
    connections: Semaphore,
    credentials: CredentialsDir,
    limits: ListenLimits,
    on_refused: Box<OnRefused>,
}

impl Door {
    async fn let_in(&self, caller: Caller) -> Option<SecureStream> {
        let give_up_at = Instant::now() + self.limits.handshake_timeout;
        if let Ok(true) = timeout_at(give_up_at, caller.is_silent()).await {
            return None;
        }
        match caller {
            Caller::Tcp(stream, address) => {
                if let Err(source) = socket::prepare(&stream) {
                    let operation = "setting up a socket";
                    let error = TransportError::Io { operation, source };
                    (self.on_refused)(address.into(), error);
                    return None;
                }
                let established = self.shake(stream, address.into(), give_up_at).await?;
                Some(SecureStream::over_tcp(established, address.into()))
            }
            Caller::Unix(stream) => {
                let established = self.shake(stream, PeerAddress::Unix, give_up_at).await?;
                Some(SecureStream::over_unix(established))
            }
        }
    }

    /// Shakes hands; a peer that doesn't make it in is told why.
    async fn shake<S: Socket>(
        &self,
        stream: S,
        address: PeerAddress,
        give_up_at: Instant,
    ) -> Option<Established<S>> {
        let greeted = timeout_at(give_up_at, self.greet(stream, address)).await;
        let (error, stream) = match greeted {
            Ok(Ok(established)) => return Some(established),
            Ok(Err(refused)) => refused,
            Err(_) => {
                let rejection = Rejection::HandshakeTimeout;
                (TransportError::Rejected { address, rejection }, None)
            }
        };
        (self.on_refused)(address, error);
        if let Some(stream) = stream {
            timeout(LINGER, see_off(stream)).await.ok();
        }
        None
    }

    async fn greet<S: Socket>(
        &self,
        stream: S,
        address: PeerAddress,
    ) -> Result<Established<S>, (TransportError, Option<S>)> {
        let credentials = self
            .credentials
            .load()
            .await
            .map_err(|error| (error.into(), None))?;
        tls::accept(stream, address, &credentials, &self.limits.roles).await
    }

    /// Lets a QUIC connection in, and then each of its streams. A peer that opens none in the time of a
    /// handshake has no business here.
    async fn let_in_quic(
        &self,
        incoming: Incoming,
        address: PeerAddress,
        permit: OwnedSemaphorePermit,
        queue: mpsc::Sender<Accepted<SecureStream>>,
    ) {
        let limit = self.limits.handshake_timeout;
        let greeted = timeout(limit, self.greet_quic(incoming, address)).await;
        let late = |_| {
            let rejection = Rejection::HandshakeTimeout;
            Err(TransportError::Rejected { address, rejection })
        };
        let guest = match greeted.unwrap_or_else(late) {
            Ok(guest) => guest,
            Err(error) => return (self.on_refused)(address, error),
        };
        let Ok(_connection) = self.connections.try_acquire() else {
            let rejection = Rejection::TooManyConnections;
            return (self.on_refused)(address, TransportError::Rejected { address, rejection });
        };
        let mut permit = Some(permit);
        let mut next = timeout(limit, guest.accept()).await.ok();
        // The connection's end is an end of its streams, which is told there.
        while let Some(Ok(stream)) = next {
            let stream = SecureStream::over_quic(stream, guest.peer_name(), address);
            if queue.send(accepted(stream)).await.is_err() {
                return; // the listener is being closed
            }
            permit = None;
            next = Some(guest.accept().await);
        }
        drop(permit);
    }

    async fn greet_quic(
        &self,
        incoming: Incoming,
        address: PeerAddress,
    ) -> Result<quic::Guest, TransportError> {
        let credentials = self.credentials.load().await?;
        let ListenLimits {
            roles, congestion, ..
        } = &self.limits;
        quic::Guest::greet(incoming, address, &credentials, roles, *congestion).await
    }
}

/// Ends our direction, then reads the peer's until it ends too.
async fn see_off(mut stream: impl Socket) {
    if stream.shutdown().await.is_ok() {
        let mut discarded = [0; 4096];
        while matches!(stream.read(&mut discarded).await, Ok(1..)) {}
    }
}
