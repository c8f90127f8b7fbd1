//! The end that dials: from `HOST:PORT` to a stream with the target.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

use crate::address::{Address, PeerAddress};
use crate::error::TransportError;
use crate::identity::{Credentials, CredentialsDir};
use crate::name::Role;
use crate::quic::{Congestion, Link};
use crate::rejection::Class;
use crate::stream::SecureStream;
use crate::tls::{Established, Socket};
use crate::{Choice, Connector, Transport, TransportChoice, Why, choice, local, socket, tls};

/// How long a step of a dial may take.
#[derive(Clone, Copy, Debug)]
pub struct DialLimits {
    /// To resolve the name, and then to connect to each of its addresses.
    pub connect_timeout: Duration,
    /// To shake hands.
    pub handshake_timeout: Duration,
}

/// How often a long round trip is measured.
const CONNECTS_MAX: u32 = 3;

/// How long QUIC may take to connect where TCP has, beside four round trips: for the work of a busy target.
/// Where UDP is dropped on the way, a session begins that much later.
const QUIC_TIMEOUT_LEAST: Duration = Duration::from_millis(500);

impl Default for DialLimits {
    /// Ten seconds each: three lost SYNs are sent again within seven (RFC 6298), and a healthy
    /// handshake takes two round trips. Longer than that, and dialing again is the better bet.
    fn default() -> Self {
        let each = Duration::from_secs(10);
        Self {
            connect_timeout: each,
            handshake_timeout: each,
        }
    }
}

/// Dials the target of a clone: once for a session, then again for each further stream of it.
///
/// Clones share what the last session runs over.
#[derive(Clone, Debug)]
pub struct Dialer {
    target: String,
    credentials: Place,
    limits: DialLimits,
    told: TransportChoice,
    congestion: Option<Congestion>,
    session: Arc<Mutex<Session>>,
}

/// What the last session runs over.
#[derive(Clone, Debug, Default)]
struct Session {
    choice: Option<Choice>,
    /// Over QUIC its connection, which its streams keep.
    link: Weak<Link>,
}

/// A TCP connection before its handshake.
struct Connected {
    stream: TcpStream,
    address: SocketAddr,
    /// How long it took.
    round_trip: Duration,
}

/// Where a dialer has its credentials from.
#[derive(Clone, Debug)]
enum Place {
    /// Read anew for each connection.
    Directory(CredentialsDir),
    /// At hand.
    Memory(Credentials),
}

impl Dialer {
    /// A dialer to `target`, written `HOST:PORT`, over TLS, or `unix:PATH`, over a Unix socket. Nothing is
    /// looked up or read before the first dial.
    pub fn new(target: impl Into<String>, credentials: CredentialsDir) -> Self {
        Self::at(target.into(), Place::Directory(credentials))
    }

    /// A dialer to `target`, written as for [`Dialer::new`], with credentials that are at hand and stay
    /// as they are.
    pub fn with_credentials(target: impl Into<String>, credentials: Credentials) -> Self {
        Self::at(target.into(), Place::Memory(credentials))
    }

    fn at(target: String, credentials: Place) -> Self {
        Self {
            target,
            credentials,
            limits: DialLimits::default(),
            told: TransportChoice::Tls,
            congestion: None,
            session: Arc::default(),
        }
    }

    /// The same dialer with other limits.
    #[must_use]
    pub fn with_limits(self, limits: DialLimits) -> Self {
        Self { limits, ..self }
    }

    /// The same dialer over another transport.
    #[must_use]
    pub fn with_transport(self, told: TransportChoice) -> Self {
        Self { told, ..self }
    }

    /// The same dialer with a congestion control of its own. Without one QUIC takes its default, and TCP what the
    /// kernel is set to.
    #[must_use]
    pub fn with_congestion(self, congestion: Option<Congestion>) -> Self {
        Self { congestion, ..self }
    }

    /// Begins a session: reads the credentials, connects to the first address that answers, and shakes
    /// hands.
    ///
    /// The target has then proven who it is. Whether it takes us shows with the first read. Over QUIC it hears of
    /// the stream with the first byte that is written.
    ///
    /// # Errors
    /// When any step fails or takes too long. If no address answers, the last one's error is told.
    pub async fn dial(&self) -> Result<SecureStream, TransportError> {
        if let Some(path) = Address::unix_path(&self.target) {
            let stream = self.dial_unix(path).await?;
            self.begin(Transport::Unix, Why::Told, Weak::new());
            return Ok(stream);
        }
        match self.told {
            TransportChoice::Tls => {
                let stream = self.dial_tls().await?;
                self.begin(Transport::Tls, Why::Told, Weak::new());
                Ok(stream)
            }
            TransportChoice::Quic => self.begin_quic(Why::Told).await,
            TransportChoice::Auto => self.dial_better().await,
        }
    }

    /// Begins a session over what does better.
    ///
    /// Connecting over TCP takes one round trip, and is all that is spent on a short path. On a long one it is done
    /// [`CONNECTS_MAX`] times. The answer may be QUIC, which then has to connect too; a TCP connection of which no use is
    /// made is dropped without a byte.
    async fn dial_better(&self) -> Result<SecureStream, TransportError> {
        let connected = match self.connect_measured().await {
            Ok(connected) => connected,
            Err(error) if is_of_the_way(&error) => {
                let why = Why::OnlyWay(error.to_string());
                // Where neither connects, TCP says more: a host that isn't there at all answers it.
                return match self.begin_quic(why).await {
                    Err(over_quic) if is_of_the_way(&over_quic) => Err(error),
                    answer => answer,
                };
            }
            Err(error) => return Err(error),
        };
        let congestion = socket::congestion_of(&connected.stream);
        let quic = self.congestion.unwrap_or_default();
        let why = match choice::better(connected.round_trip, congestion, quic) {
            Choice {
                transport: Transport::Quic,
                why,
            } => {
                let limit = QUIC_TIMEOUT_LEAST + 4 * connected.round_trip;
                match within(limit, "connecting over QUIC", self.begin_quic(why)).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) | Err(error) => Why::NoQuic(error.to_string()),
                }
            }
            choice => choice.why,
        };
        let stream = self.secure(connected).await?;
        self.begin(Transport::Tls, why, Weak::new());
        Ok(stream)
    }

    /// Opens one more stream of the session that was dialed last.
    ///
    /// # Errors
    /// As [`Dialer::dial`]; over QUIC also when the session's connection is gone.
    pub async fn dial_more(&self) -> Result<SecureStream, TransportError> {
        let session = self.session().clone();
        match session.choice.map(|choice| choice.transport) {
            Some(Transport::Quic) => {
                let link = session.link.upgrade().ok_or(TransportError::Closed {
                    operation: "opening a stream",
                })?;
                self.open_on(&link).await
            }
            Some(Transport::Tls | Transport::Unix) | None => {
                match Address::unix_path(&self.target) {
                    Some(path) => self.dial_unix(path).await,
                    None => self.dial_tls().await,
                }
            }
        }
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, transport: Transport, why: Why, link: Weak<Link>) {
        let choice = Some(Choice { transport, why });
        *self.session() = Session { choice, link };
    }

    async fn begin_quic(&self, why: Why) -> Result<SecureStream, TransportError> {
        let link = Arc::new(self.dial_quic().await?);
        let stream = self.open_on(&link).await?;
        self.begin(Transport::Quic, why, Arc::downgrade(&link));
        Ok(stream)
    }

    async fn load_credentials(&self) -> Result<Credentials, TransportError> {
        match &self.credentials {
            Place::Directory(directory) => Ok(directory.load().await?),
            Place::Memory(credentials) => Ok(credentials.clone()),
        }
    }

    async fn dial_tls(&self) -> Result<SecureStream, TransportError> {
        let connected = self.connect().await?;
        self.secure(connected).await
    }

    async fn dial_unix(&self, path: PathBuf) -> Result<SecureStream, TransportError> {
        let limit = self.limits.connect_timeout;
        let connected = within(limit, "connecting", local::connect(&path)).await?;
        let stream = connected.map_err(|source| TransportError::Connect {
            address: Address::Unix(path),
            source,
        })?;
        let established = self.shake(stream, PeerAddress::Unix).await?;
        Ok(SecureStream::over_unix(established))
    }

    async fn secure(&self, connected: Connected) -> Result<SecureStream, TransportError> {
        let Connected {
            stream, address, ..
        } = connected;
        let established = self.shake(stream, address.into()).await?;
        Ok(SecureStream::over_tcp(established, address.into()))
    }

    async fn shake<S: Socket>(
        &self,
        stream: S,
        address: PeerAddress,
    ) -> Result<Established<S>, TransportError> {
        let credentials = self.load_credentials().await?;
        let handshake = tls::dial(stream, address, &credentials, Role::Target);
        let limit = self.limits.handshake_timeout;
        within(limit, "the TLS handshake", handshake).await?
    }

    async fn dial_quic(&self) -> Result<Link, TransportError> {
        let credentials = self.load_credentials().await?;
        let mut last_error = self.unresolved(io::ErrorKind::NotFound.into());
        for address in self.resolve().await? {
            let dial = Link::dial(address, &credentials, self.congestion.unwrap_or_default());
            let limit = self.limits.handshake_timeout;
            match timeout(limit, dial).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(error)) if error.class() != Class::Network => return Err(error),
                Ok(Err(error)) => last_error = error,
                // There is no telling between a target that isn't there and a way that is shut.
                Err(_) => {
                    let text = format!(
                        "no answer over QUIC within {} ms; see whether UDP gets through",
                        limit.as_millis()
                    );
                    let source = io::Error::new(io::ErrorKind::TimedOut, text);
                    last_error = TransportError::Connect {
                        address: address.into(),
                        source,
                    };
                }
            }
        }
        Err(last_error)
    }

    async fn open_on(&self, link: &Arc<Link>) -> Result<SecureStream, TransportError> {
        let limit = self.limits.connect_timeout;
        let stream = within(limit, "opening a stream", link.open()).await??;
        Ok(SecureStream::over_quic(
            stream,
            link.peer_name(),
            link.peer_address(),
        ))
    }

    async fn resolve(&self) -> Result<impl Iterator<Item = SocketAddr>, TransportError> {
        let limit = self.limits.connect_timeout;
        let looked_up = lookup_host(&self.target);
        within(limit, "resolving the target's name", looked_up)
            .await?
            .map_err(|error| self.unresolved(error))
    }

    fn unresolved(&self, source: io::Error) -> TransportError {
        TransportError::Resolve {
            target: self.target.clone(),
            source,
        }
    }

    /// Connects; where that took long, some more times, and keeps what took least: a busy machine or a lost packet
    /// makes a path no longer.
    async fn connect_measured(&self) -> Result<Connected, TransportError> {
        let mut best = self.connect().await?;
        for _ in 1..CONNECTS_MAX {
            if choice::is_short(best.round_trip) {
                break;
            }
            if let Ok(again) = self.connect().await
                && again.round_trip < best.round_trip
            {
                best = again;
            }
        }
        Ok(best)
    }

    async fn connect(&self) -> Result<Connected, TransportError> {
        let limit = self.limits.connect_timeout;
        let mut last_error = self.unresolved(io::ErrorKind::NotFound.into());
        for address in self.resolve().await? {
            let start = Instant::now();
            let connected = within(limit, "connecting", TcpStream::connect(address)).await;
            let round_trip = start.elapsed();
            let prepared = connected.map(|connected| {
                connected.and_then(|stream| {
                    socket::prepare(&stream)?;
                    if let Some(congestion) = self.congestion {
                        socket::set_congestion(&stream, congestion);
                    }
                    Ok(stream)
                })
            });
            match prepared {
                Ok(Ok(stream)) => {
                    return Ok(Connected {
                        stream,
                        address,
                        round_trip,
                    });
                }
                Ok(Err(source)) => {
                    let address = address.into();
                    last_error = TransportError::Connect { address, source };
                }
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }
}

impl Connector for Dialer {
    type Stream = SecureStream;

    async fn connect(&self) -> Result<SecureStream, TransportError> {
        self.dial().await
    }

    fn choice(&self) -> Option<Choice> {
        self.session().choice.clone()
    }

    async fn open(&self) -> Result<SecureStream, TransportError> {
        self.dial_more().await
    }
}

/// Whether another transport may find a way where one has not: nobody answered it.
const fn is_of_the_way(error: &TransportError) -> bool {
    matches!(
        error,
        TransportError::Connect { .. } | TransportError::Timeout { .. }
    )
}

async fn within<T>(
    after: Duration,
    operation: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, TransportError> {
    timeout(after, work)
        .await
        .map_err(|_| TransportError::Timeout { operation, after })
}
