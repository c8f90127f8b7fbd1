//! TLS 1.3 (RFC 8446) between two ends that know each other by name. Nothing else imports rustls.
//!
//! Little is negotiated: one version, one application protocol (ALPN, RFC 7301), no resumption, no
//! tickets, no early data, no server name. A ticket nobody reads would cost data: when its receiver
//! closes with it unread, TCP resets the connection and drops what is in flight.
//!
//! A configuration is made for each connection, from the credentials as they are on disk then. That
//! also gives each connection its own [`Judge`], which remembers what it found about the peer.

use std::io;
use std::sync::{Arc, LazyLock};

use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::{CryptoProvider, aws_lc_rs, ring};
use rustls::server::UnbufferedServerConnection;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, PeerIncompatible, ServerConfig, SupportedCipherSuite};

pub(crate) use rustls::pki_types;

use crate::address::PeerAddress;
use crate::error::TransportError;
use crate::identity::Credentials;
use crate::name::{PeerName, Role};
use crate::rejection::{Refusal, Rejection};

pub(crate) use judge::verify_issuer;
pub(crate) use quic::{QuicHandshake, explain_lost};
pub(crate) use record::{Socket, TlsStream};

use handshake::Shaken;
use judge::{Judge, PeerSide};
use pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use record::RecordError;

mod alone;
mod handshake;
mod judge;
mod key;
mod quic;
mod record;

pub use alone::RecordPair;
pub use volferry_protocol::frame::ALPN;

/// Gives rustls a cryptographic library for the whole process. Nothing here needs it; Kubernetes' client,
/// which the controller has beside it, asks for one and would not know which of two to take.
pub fn set_process_default() {
    // Whoever was faster has set the same.
    let _already = aws_lc_rs::default_provider().install_default();
}

/// A TLS stream and who is at its other end.
pub(crate) type Established<S> = (TlsStream<S>, PeerName);

/// Shakes hands as the dialing end with whoever plays `expected` in our clone.
///
/// The peer has proven its name when this returns, but may not have judged ours yet: its refusal is
/// an error of a later read (see [`TransportError::from_io`]).
pub(crate) async fn dial<S: Socket>(
    mut stream: S,
    address: PeerAddress,
    credentials: &Credentials,
    expected: Role,
) -> Result<Established<S>, TransportError> {
    let judge = Arc::new(Judge::new(credentials, &[expected], PeerSide::Server));
    let config = client_config(credentials, Arc::clone(&judge))
        .map_err(|error| rejected(address, rejection(error)))?;
    // TLS wants a server name. Of an address none is sent, and ours are not compared with it.
    let server_name = ServerName::from(address.or_unspecified().ip());
    let shaken = match UnbufferedClientConnection::new(Arc::new(config), server_name) {
        Ok(end) => Box::pin(handshake::shake(end, &mut stream)).await, // it is big
        Err(error) => return Err(rejected(address, rejection(error))),
    };
    let shaken = shaken.map_err(|error| handshake_error(error, address, &judge))?;
    conclude(stream, shaken, address, &judge)
}

/// Shakes hands as the listening end with whoever plays one of the `expected` roles in our clone.
///
/// After a refusal the stream comes back, so that the alert can be seen off; see `listener.rs`.
pub(crate) async fn accept<S: Socket>(
    mut stream: S,
    address: PeerAddress,
    credentials: &Credentials,
    expected: &[Role],
) -> Result<Established<S>, (TransportError, Option<S>)> {
    let judge = Arc::new(Judge::new(credentials, expected, PeerSide::Client));
    let config = server_config(credentials, Arc::clone(&judge))
        .map_err(|error| (rejected(address, rejection(error)), None))?;
    let shaken = match UnbufferedServerConnection::new(Arc::new(config)) {
        Ok(end) => Box::pin(handshake::shake(end, &mut stream)).await, // it is big
        Err(error) => return Err((rejected(address, rejection(error)), None)),
    };
    match shaken {
        Ok(shaken) => conclude(stream, shaken, address, &judge).map_err(|error| (error, None)),
        Err(error) => Err((handshake_error(error, address, &judge), Some(stream))),
    }
}

/// Makes an error of an established stream one that [`TransportError::from_io`] understands.
pub(crate) fn explain(address: PeerAddress, error: io::Error) -> io::Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(&RecordError::Alert(alert)) => {
            let refusal = Refusal::from_alert(alert);
            io::Error::new(
                error.kind(),
                TransportError::RejectedByPeer { address, refusal },
            )
        }
        _ => error,
    }
}

/// A failure of the TLS library that has no line in our table.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(transparent)]
pub struct TlsFailure(rustls::Error);

/// Our certificate chain and the key it speaks for.
#[derive(Clone, Debug)]
pub(crate) struct OwnKey(Arc<CertifiedKey>);

/// Why a key is not one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum KeyError {
    Unusable,
    Mismatch,
}

impl OwnKey {
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, KeyError> {
        let key = PROVIDER
            .key_provider
            .load_private_key(key)
            .map_err(|_| KeyError::Unusable)?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| KeyError::Mismatch)?;
        Ok(Self(Arc::new(certified)))
    }

    fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(Arc::clone(&self.0).into())
    }
}

/// The cryptography, always handed over and never a process-wide default that others could change.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: cipher_suites(cipher_support()),
        // The hybrid first: volumes are worth recording today for a quantum computer of tomorrow,
        // and the extra KiB is paid once for a connection.
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// What a processor can do for the ciphers of TLS 1.3.
#[derive(Clone, Copy, Debug)]
struct CipherSupport {
    /// AES at all, in hardware.
    has_aes: bool,
    /// AES on 512-bit vectors.
    has_wide_aes: bool,
}

/// The suites, the fastest here first; the dialing end's order counts. Of AES-128-GCM there are two implementations: that of aws-lc
/// has a path for 512-bit vectors and none for 256-bit ones, that of ring the other way round. With
/// records of 16 KiB and 256-bit vectors, ring's took half the processor time.
fn cipher_suites(support: CipherSupport) -> Vec<SupportedCipherSuite> {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let aes_128 = if support.has_wide_aes {
        TLS13_AES_128_GCM_SHA256
    } else {
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256
    };
    if support.has_aes {
        vec![
            aes_128,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ]
    } else {
        vec![
            TLS13_CHACHA20_POLY1305_SHA256,
            aes_128,
            TLS13_AES_256_GCM_SHA384,
        ]
    }
}

fn cipher_support() -> CipherSupport {
    #[cfg(target_arch = "x86_64")]
    return CipherSupport {
        has_aes: std::arch::is_x86_feature_detected!("aes"),
        has_wide_aes: std::arch::is_x86_feature_detected!("vaes")
            && std::arch::is_x86_feature_detected!("avx512f"),
    };
    // On aarch64 aws-lc has the more deeply unrolled code.
    #[cfg(target_arch = "aarch64")]
    return {
        let has_aes = std::arch::is_aarch64_feature_detected!("aes");
        CipherSupport {
            has_aes,
            has_wide_aes: has_aes,
        }
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return CipherSupport {
        has_aes: false,
        has_wide_aes: false,
    };
}

// The version is spelled out because cargo unites features: another crate in the same build can
// turn rustls' TLS 1.2 on, and its "safe defaults" would then include it.

fn client_config(
    credentials: &Credentials,
    judge: Arc<Judge>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // rustls calls every verifier but its own so; ours asks for more, see `Judge`
        .with_custom_certificate_verifier(judge)
        .with_client_cert_resolver(credentials.key.resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true; // for our own records
    Ok(config)
}

fn server_config(
    credentials: &Credentials,
    judge: Arc<Judge>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(judge)
        .with_cert_resolver(credentials.key.resolver());
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.enable_secret_extraction = true; // for our own records
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// The last word on a handshake that the library is done with.
fn conclude<S: Socket>(
    stream: S,
    shaken: Shaken,
    address: PeerAddress,
    judge: &Judge,
) -> Result<Established<S>, TransportError> {
    // rustls lets a peer through that says nothing at all about protocols.
    if shaken.protocol.as_deref() != Some(ALPN) {
        return Err(rejected(address, Rejection::NoCommonProtocol));
    }
    match judge.verdict() {
        Some(Ok(peer_name)) => Ok((TlsStream::new(stream, shaken), *peer_name)),
        Some(Err(rejection)) => Err(rejected(address, rejection.clone())),
        None => Err(rejected(address, Rejection::NoCertificate)),
    }
}

fn handshake_error(error: io::Error, address: PeerAddress, judge: &Judge) -> TransportError {
    if let Some(Err(rejection)) = judge.verdict() {
        return rejected(address, rejection.clone());
    }
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        Some(&rustls::Error::AlertReceived(alert)) => TransportError::RejectedByPeer {
            address,
            refusal: Refusal::from_alert(alert.into()),
        },
        Some(inner) => rejected(address, rejection(inner.clone())),
        None => TransportError::from_io("the TLS handshake", error),
    }
}

const fn rejected(address: PeerAddress, rejection: Rejection) -> TransportError {
    TransportError::Rejected { address, rejection }
}

/// What the library refuses by itself. What it knows of certificates it has from our [`Judge`].
fn rejection(error: rustls::Error) -> Rejection {
    use rustls::{Error, InvalidMessage};
    match error {
        Error::NoCertificatesPresented => Rejection::NoCertificate,
        Error::NoApplicationProtocol => Rejection::NoCommonProtocol,
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ) => Rejection::OldTlsVersion,
        // All about the five bytes before a record, which in a handshake are those of the first.
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        ) => Rejection::NotTls,
        other => Rejection::Other(TlsFailure(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second lock on the door that `with_protocol_versions` shuts: no version without a suite.
    #[test]
    fn every_suite_is_of_tls_1_3() {
        assert!(
            PROVIDER
                .cipher_suites
                .iter()
                .all(|suite| suite.tls13().is_some())
        );
        assert_eq!(PROVIDER.cipher_suites, cipher_suites(cipher_support()));
    }

    #[test]
    fn the_cpu_decides_on_the_first_suite() {
        let first = |has_aes| {
            cipher_suites(CipherSupport {
                has_aes,
                has_wide_aes: false,
            })[0]
                .suite()
        };
        assert_eq!(first(true), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(
            first(false),
            rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        );
    }
}
