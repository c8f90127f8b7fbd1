//! The dialing end of a QUIC connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint, TokioRuntime};
use tokio::sync::oneshot;
use tokio::time::{interval, sleep};
use tracing::debug;

use super::socket::BundlingSocket;
use super::{
    Congestion, DONE, QuicStream, any_port_towards, endpoint_config, send_window, transport_config,
};
use crate::address::PeerAddress;
use crate::error::TransportError;
use crate::identity::Credentials;
use crate::name::{PeerName, Role};
use crate::tls::{QuicHandshake, explain_lost};

/// A connection to a target that has proven who it is. It ends with the last stream that holds it.
#[derive(Debug)]
pub(crate) struct Link {
    connection: Connection,
    address: PeerAddress,
    peer_name: PeerName,
    // Never sent on: the connection is closed when this is dropped.
    _open: oneshot::Sender<()>,
}

impl Link {
    /// Connects and shakes hands, through a port of its own.
    ///
    /// Whether the target takes us shows with the first read.
    pub(crate) async fn dial(
        address: SocketAddr,
        credentials: &Credentials,
        congestion: Congestion,
    ) -> Result<Self, TransportError> {
        let connect = |source| TransportError::Connect {
            address: address.into(),
            source,
        };
        let socket = BundlingSocket::open(any_port_towards(address)).map_err(connect)?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new_with_abstract_socket(endpoint_config(), None, socket, runtime)
            .map_err(connect)?;
        let handshake = QuicHandshake::dial(credentials, address.into(), Role::Target)?;
        let mut config = ClientConfig::new(handshake.crypto.clone());
        // Nobody here would read what a target sent on streams of its own.
        config.transport_config(transport_config(address, congestion, 0));
        // TLS wants a server name. Of an address none is sent, and ours are not compared with it.
        let server_name = address.ip().to_string();
        let connecting = endpoint
            .connect_with(config, address, &server_name)
            .map_err(|error| connect(std::io::Error::other(error)))?;
        let connection = connecting.await.map_err(|error| handshake.explain(error))?;
        let peer_name = handshake.conclude(&connection)?;
        let (open, dropped) = oneshot::channel();
        // It ends soon after the link, or with the connection.
        tokio::spawn(keep(connection.clone(), dropped));
        Ok(Self {
            connection,
            address: address.into(),
            peer_name,
            _open: open,
        })
    }

    /// Opens one more stream. The target hears of it with the first byte.
    pub(crate) async fn open(self: &Arc<Self>) -> Result<QuicStream, TransportError> {
        let opened = self.connection.open_bi().await;
        let streams =
            opened.map_err(|error| explain_lost(self.address, "opening a stream", error))?;
        Ok(QuicStream::new(
            streams,
            self.address,
            Some(Arc::clone(self)),
        ))
    }

    pub(crate) const fn peer_name(&self) -> PeerName {
        self.peer_name
    }

    pub(crate) const fn peer_address(&self) -> PeerAddress {
        self.address
    }
}

/// Keeps a connection's send window right, and closes it a moment after its link is gone.
///
/// The library holds the close back as long as its congestion window is full, and takes no acknowledgements
/// once it is closing: a connection that is dropped while it sends would never tell. What its streams had to
/// send is given up with them; after a round trip or two the window is free.
async fn keep(connection: Connection, mut dropped: oneshot::Receiver<()>) {
    let mut looks = interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = looks.tick() => connection.set_send_window(send_window(connection.min_rtt())),
            _ = &mut dropped => break,
            _ = connection.closed() => return,
        }
    }
    sleep(ACK_DELAY_MAX + 3 * connection.rtt().min(RTT_MAX)).await;
    let path = connection.stats().path;
    debug!(?path, "closing a QUIC connection");
    connection.close(DONE, b"");
}

/// How often the send window is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long a peer may wait with an acknowledgement (RFC 9000, section 18.2).
const ACK_DELAY_MAX: Duration = Duration::from_millis(25);

/// A path that takes longer is not waited for.
const RTT_MAX: Duration = Duration::from_secs(1);
