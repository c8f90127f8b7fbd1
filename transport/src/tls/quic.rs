//! The handshake of QUIC (RFC 9001): the same configurations and the same judge as over TCP, handed to
//! the QUIC library instead of being driven here.

use std::sync::Arc;

use quinn::crypto::rustls::{
    HandshakeData, NoInitialCipherSuite, QuicClientConfig, QuicServerConfig,
};
use quinn::{Connection, ConnectionError, TransportErrorCode};

use super::judge::{Judge, PeerSide};
use super::{TlsFailure, client_config, rejected, rejection, server_config};
use crate::address::PeerAddress;
use crate::error::TransportError;
use crate::identity::Credentials;
use crate::name::{PeerName, Role};
use crate::rejection::{Refusal, Rejection};

/// The handshake of one connection: what it shows and asks for, and what it finds out.
pub(crate) struct QuicHandshake<C> {
    /// For the QUIC library.
    pub(crate) crypto: Arc<C>,
    judge: Arc<Judge>,
    address: PeerAddress,
}

impl QuicHandshake<QuicClientConfig> {
    /// For the dialing end, with whoever plays `expected` in our clone.
    pub(crate) fn dial(
        credentials: &Credentials,
        address: PeerAddress,
        expected: Role,
    ) -> Result<Self, TransportError> {
        let judge = Arc::new(Judge::new(credentials, &[expected], PeerSide::Server));
        let crypto = client_config(credentials, Arc::clone(&judge))
            .and_then(|config| QuicClientConfig::try_from(config).map_err(no_initial_suite));
        Self::new(crypto, judge, address)
    }
}

impl QuicHandshake<QuicServerConfig> {
    /// For the listening end, with whoever plays one of the `expected` roles in our clone.
    pub(crate) fn accept(
        credentials: &Credentials,
        address: PeerAddress,
        expected: &[Role],
    ) -> Result<Self, TransportError> {
        let judge = Arc::new(Judge::new(credentials, expected, PeerSide::Client));
        let crypto = server_config(credentials, Arc::clone(&judge))
            .and_then(|config| QuicServerConfig::try_from(config).map_err(no_initial_suite));
        Self::new(crypto, judge, address)
    }
}

impl<C> QuicHandshake<C> {
    fn new(
        crypto: Result<C, rustls::Error>,
        judge: Arc<Judge>,
        address: PeerAddress,
    ) -> Result<Self, TransportError> {
        Ok(Self {
            crypto: Arc::new(crypto.map_err(|error| rejected(address, rejection(error)))?),
            judge,
            address,
        })
    }

    /// The last word on a handshake that the library is done with.
    pub(crate) fn conclude(&self, connection: &Connection) -> Result<PeerName, TransportError> {
        let agreed = connection
            .handshake_data()
            .and_then(|data| data.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol);
        if agreed.as_deref() != Some(super::ALPN) {
            return Err(rejected(self.address, Rejection::NoCommonProtocol));
        }
        match self.judge.verdict() {
            Some(Ok(peer_name)) => Ok(*peer_name),
            Some(Err(rejection)) => Err(rejected(self.address, rejection.clone())),
            None => Err(rejected(self.address, Rejection::NoCertificate)),
        }
    }

    /// What a handshake failed with.
    pub(crate) fn explain(&self, error: ConnectionError) -> TransportError {
        if let Some(Err(rejection)) = self.judge.verdict() {
            return rejected(self.address, rejection.clone());
        }
        match error {
            ConnectionError::VersionMismatch => rejected(self.address, Rejection::NoCommonProtocol),
            ConnectionError::TransportError(error) => match alert_in(error.code) {
                Some(116) => rejected(self.address, Rejection::NoCertificate),
                Some(120) => rejected(self.address, Rejection::NoCommonProtocol),
                _ => {
                    let failure = TlsFailure(rustls::Error::General(error.to_string()));
                    rejected(self.address, Rejection::Other(failure))
                }
            },
            other => explain_lost(self.address, "the QUIC handshake", other),
        }
    }
}

/// Why a connection is no more, where this end didn't end it.
pub(crate) fn explain_lost(
    address: PeerAddress,
    operation: &'static str,
    error: ConnectionError,
) -> TransportError {
    match &error {
        ConnectionError::ConnectionClosed(close) => {
            alert_in(close.error_code).map_or(TransportError::Closed { operation }, |alert| {
                let refusal = Refusal::from_alert(alert);
                TransportError::RejectedByPeer { address, refusal }
            })
        }
        ConnectionError::ApplicationClosed(_)
        | ConnectionError::LocallyClosed
        | ConnectionError::Reset => TransportError::Closed { operation },
        _ => TransportError::Io {
            operation,
            source: error.into(),
        },
    }
}

/// The TLS alert in an error code of QUIC (RFC 9001, section 4.8).
fn alert_in(code: TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (code & !0xff == 0x100).then_some(code.to_le_bytes()[0])
}

fn no_initial_suite(_: NoInitialCipherSuite) -> rustls::Error {
    rustls::Error::General("no cipher suite for the first packets of QUIC".to_owned())
}
