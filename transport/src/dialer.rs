//! The end that dials: from `HOST:PORT` to a stream with the target.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::error::TransportError;
use crate::identity::CredentialsDir;
use crate::name::Role;
use crate::quic::{Congestion, Link};
use crate::rejection::Class;
use crate::stream::SecureStream;
use crate::{Connector, TransportChoice, socket, tls};

/// How long a step of a dial may take.
#[derive(Clone, Copy, Debug)]
pub struct DialLimits {
    /// To resolve the name, and then to connect to each of its addresses.
    pub connect_timeout: Duration,
    /// To shake hands.
    pub handshake_timeout: Duration,
}

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
    credentials: CredentialsDir,
    limits: DialLimits,
    choice: TransportChoice,
    congestion: Congestion,
    /// What the last session runs over.
    route: Arc<Mutex<Route>>,
}

#[derive(Clone, Debug, Default)]
enum Route {
    #[default]
    Tls,
    /// Its streams keep the connection.
    Quic(Weak<Link>),
}

impl Dialer {
    /// A dialer to `target`, written `HOST:PORT`, over TLS. Nothing is looked up or read before the
    /// first dial.
    pub fn new(target: impl Into<String>, credentials: CredentialsDir) -> Self {
        Self {
            target: target.into(),
            credentials,
            limits: DialLimits::default(),
            choice: TransportChoice::default(),
            congestion: Congestion::default(),
            route: Arc::default(),
        }
    }

    /// The same dialer with other limits.
    #[must_use]
    pub fn with_limits(self, limits: DialLimits) -> Self {
        Self { limits, ..self }
    }

    /// The same dialer over another transport.
    #[must_use]
    pub fn with_transport(self, choice: TransportChoice) -> Self {
        Self { choice, ..self }
    }

    /// The same dialer with another congestion control, which is QUIC's; that of TCP is the kernel's.
    #[must_use]
    pub fn with_congestion(self, congestion: Congestion) -> Self {
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
        match self.choice {
            TransportChoice::Tls => {
                self.set_route(Route::Tls);
                self.dial_tls().await
            }
            TransportChoice::Quic | TransportChoice::Auto => {
                let link = Arc::new(self.dial_quic().await?);
                self.set_route(Route::Quic(Arc::downgrade(&link)));
                self.open_on(&link).await
            }
        }
    }

    /// Opens one more stream of the session that was dialed last.
    ///
    /// # Errors
    /// As [`Dialer::dial`]; over QUIC also when the session's connection is gone.
    pub async fn dial_more(&self) -> Result<SecureStream, TransportError> {
        let route = self
            .route
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match route {
            Route::Tls => self.dial_tls().await,
            Route::Quic(link) => {
                let link = link.upgrade().ok_or(TransportError::Closed {
                    operation: "opening a stream",
                })?;
                self.open_on(&link).await
            }
        }
    }

    fn set_route(&self, route: Route) {
        *self.route.lock().unwrap_or_else(PoisonError::into_inner) = route;
    }

    async fn dial_tls(&self) -> Result<SecureStream, TransportError> {
        let credentials = self.credentials.load().await?;
        let (stream, address) = self.connect().await?;
        let handshake = tls::dial(stream, address, &credentials, Role::Target);
        let established = within(
            self.limits.handshake_timeout,
            "the TLS handshake",
            handshake,
        )
        .await??;
        Ok(SecureStream::over_tcp(established, address))
    }

    async fn dial_quic(&self) -> Result<Link, TransportError> {
        let credentials = self.credentials.load().await?;
        let mut last_error = self.unresolved(io::ErrorKind::NotFound.into());
        for address in self.resolve().await? {
            let dial = Link::dial(address, &credentials, self.congestion);
            match within(self.limits.handshake_timeout, "the QUIC handshake", dial).await {
                Ok(Ok(link)) => return Ok(link),
                Err(error) | Ok(Err(error)) if error.class() == Class::Network => {
                    last_error = error;
                }
                Err(error) | Ok(Err(error)) => return Err(error),
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

    async fn connect(&self) -> Result<(TcpStream, SocketAddr), TransportError> {
        let limit = self.limits.connect_timeout;
        let mut last_error = self.unresolved(io::ErrorKind::NotFound.into());
        for address in self.resolve().await? {
            let connected = within(limit, "connecting", TcpStream::connect(address)).await;
            let prepared = connected.map(|connected| {
                connected.and_then(|stream| socket::prepare(&stream).map(|()| stream))
            });
            match prepared {
                Ok(Ok(stream)) => return Ok((stream, address)),
                Ok(Err(source)) => last_error = TransportError::Connect { address, source },
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

    async fn open(&self) -> Result<SecureStream, TransportError> {
        self.dial_more().await
    }
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
