//! The listening end of QUIC connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{Connection, Endpoint, Incoming, ServerConfig, TokioRuntime};

use super::socket::BundlingSocket;
use super::{Congestion, QuicStream, STREAMS_MAX, endpoint_config, transport_config};
use crate::address::PeerAddress;
use crate::error::TransportError;
use crate::identity::Credentials;
use crate::name::{PeerName, Role};
use crate::tls::{QuicHandshake, explain_lost};

/// First packets that wait for a decision, and their bytes. What comes beyond is turned away or
/// dropped; an honest peer sends it again.
const INCOMING_MAX: usize = 256;
const INCOMING_BYTES_MAX: u64 = 4 << 20;

/// An open UDP port.
#[derive(Debug)]
pub(crate) struct Port {
    endpoint: Endpoint,
}

impl Port {
    /// Opens the port. `credentials` are only for the library, which wants some before the first peer is
    /// there; each connection gets its own, see [`Guest::greet`].
    pub(crate) fn open(
        address: SocketAddr,
        credentials: &Credentials,
        congestion: Congestion,
    ) -> Result<Self, TransportError> {
        let failed = |source: io::Error| TransportError::Listen {
            address: address.into(),
            source,
        };
        let config = server_config(credentials, address.into(), &[], congestion)?.0;
        let socket = BundlingSocket::open(address).map_err(failed)?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint =
            Endpoint::new_with_abstract_socket(endpoint_config(), Some(config), socket, runtime)
                .map_err(failed)?;
        Ok(Self { endpoint })
    }

    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The next peer that knocks; none when the port is closed.
    pub(crate) async fn accept(&self) -> Option<Incoming> {
        self.endpoint.accept().await
    }
}

impl Drop for Port {
    /// Lets nobody in any more; the port itself is closed when the last connection has ended.
    fn drop(&mut self) {
        self.endpoint.set_server_config(None);
    }
}

fn server_config(
    credentials: &Credentials,
    address: PeerAddress,
    roles: &[Role],
    congestion: Congestion,
) -> Result<
    (
        ServerConfig,
        QuicHandshake<quinn::crypto::rustls::QuicServerConfig>,
    ),
    TransportError,
> {
    let handshake = QuicHandshake::accept(credentials, address, roles)?;
    let mut config = ServerConfig::with_crypto(handshake.crypto.clone());
    config
        .transport_config(transport_config(
            address.or_unspecified(),
            congestion,
            STREAMS_MAX,
        ))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX);
    Ok((config, handshake))
}

/// A peer that has proven who it is.
#[derive(Debug)]
pub(crate) struct Guest {
    connection: Connection,
    address: PeerAddress,
    peer_name: PeerName,
}

impl Guest {
    /// Shakes hands with a peer that knocked.
    pub(crate) async fn greet(
        incoming: Incoming,
        address: PeerAddress,
        credentials: &Credentials,
        roles: &[Role],
        congestion: Congestion,
    ) -> Result<Self, TransportError> {
        let (config, handshake) = server_config(credentials, address, roles, congestion)?;
        let connecting = incoming
            .accept_with(Arc::new(config))
            .map_err(|error| handshake.explain(error))?;
        let connection = connecting.await.map_err(|error| handshake.explain(error))?;
        let peer_name = handshake.conclude(&connection)?;
        Ok(Self {
            connection,
            address,
            peer_name,
        })
    }

    /// The next stream that the peer opens. Dropping the future loses none.
    ///
    /// # Errors
    /// When the connection has ended.
    pub(crate) async fn accept(&self) -> Result<QuicStream, TransportError> {
        let accepted = self.connection.accept_bi().await;
        let streams =
            accepted.map_err(|error| explain_lost(self.address, "waiting for a stream", error))?;
        Ok(QuicStream::new(streams, self.address, None))
    }

    pub(crate) const fn peer_name(&self) -> PeerName {
        self.peer_name
    }
}
