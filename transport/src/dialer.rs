//! The end that dials: from `HOST:PORT` to a stream with the target.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::error::TransportError;
use crate::identity::{Credentials, CredentialsDir};
use crate::name::Role;
use crate::stream::SecureStream;
use crate::{Connector, socket, tls};

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

/// Dials the target of a clone, as often as connections are wanted.
#[derive(Clone, Debug)]
pub struct Dialer {
    target: String,
    credentials: Place,
    limits: DialLimits,
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
    /// A dialer to `target`, written `HOST:PORT`. Nothing is looked up or read before the first
    /// dial.
    pub fn new(target: impl Into<String>, credentials: CredentialsDir) -> Self {
        Self {
            target: target.into(),
            credentials: Place::Directory(credentials),
            limits: DialLimits::default(),
        }
    }

    /// A dialer to `target`, written `HOST:PORT`, with credentials that are at hand and stay as they
    /// are.
    pub fn with_credentials(target: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            target: target.into(),
            credentials: Place::Memory(credentials),
            limits: DialLimits::default(),
        }
    }

    /// The same dialer with other limits.
    #[must_use]
    pub fn with_limits(self, limits: DialLimits) -> Self {
        Self { limits, ..self }
    }

    /// Reads the credentials, connects to the first address that answers, and shakes hands.
    ///
    /// The target has then proven who it is. Whether it takes us shows with the first read.
    ///
    /// # Errors
    /// When any step fails or takes too long. If no address answers, the last one's error is told.
    pub async fn dial(&self) -> Result<SecureStream, TransportError> {
        let credentials = match &self.credentials {
            Place::Directory(directory) => directory.load().await?,
            Place::Memory(credentials) => credentials.clone(),
        };
        let (stream, address) = self.connect().await?;
        let handshake = tls::dial(stream, address, &credentials, Role::Target);
        let established = within(
            self.limits.handshake_timeout,
            "the TLS handshake",
            handshake,
        )
        .await??;
        Ok(SecureStream::new(established, address))
    }

    async fn connect(&self) -> Result<(TcpStream, SocketAddr), TransportError> {
        let limit = self.limits.connect_timeout;
        let unresolved = |source| TransportError::Resolve {
            target: self.target.clone(),
            source,
        };
        let mut last_error = unresolved(io::ErrorKind::NotFound.into());
        let addresses = within(
            limit,
            "resolving the target's name",
            lookup_host(&self.target),
        );
        for address in addresses.await?.map_err(unresolved)? {
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

    async fn open(&self) -> Result<SecureStream, TransportError> {
        self.dial().await
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
