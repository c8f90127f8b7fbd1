//! A clone with its authority, a target that listens, and peers that are not ours.

use std::fmt::Display;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;
use volferry_transport::mint::{CloneCa, Leaf, LeafRequest};
use volferry_transport::{
    Address, CredentialsDir, DialLimits, Dialer, ListenLimits, Listener, PeerName, Refusal,
    Rejection, Role, SecureStream, Transport, TransportChoice, TransportError,
};

/// Makes tests of stories: each is told over TLS, and over QUIC.
macro_rules! over_both {
    ($($story:ident,)+) => {
        mod over_tls {
            $(#[tokio::test]
            async fn $story() {
                super::$story(volferry_transport::Transport::Tls).await;
            })+
        }

        mod over_quic {
            $(#[tokio::test]
            async fn $story() {
                super::$story(volferry_transport::Transport::Quic).await;
            })+
        }
    };
}
pub(crate) use over_both;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// Long enough for a busy machine, short enough not to hang a test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A clone: its authority, still able to sign, and a place for credentials.
pub(crate) struct Clone {
    /// What its ends talk over.
    pub(crate) over: Transport,
    pub(crate) id: Uuid,
    pub(crate) ca: CloneCa,
    dir: TempDir,
}

impl Clone {
    pub(crate) fn new() -> Self {
        Self::over(Transport::Tls)
    }

    pub(crate) fn over(over: Transport) -> Self {
        let id = Uuid::new_v4();
        let ca = CloneCa::new(id, SystemTime::now(), HOUR).unwrap();
        Self {
            over,
            id,
            ca,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn request(&self, role: Role) -> LeafRequest {
        let name = PeerName {
            clone_id: self.id,
            role,
        };
        LeafRequest::new(name, SystemTime::now(), HOUR).unwrap()
    }

    pub(crate) fn dialer(&self, address: impl Display, credentials: CredentialsDir) -> Dialer {
        dialer(address, credentials).with_transport(choice(self.over))
    }

    /// What an end shows when all is well.
    pub(crate) fn good(&self, role: Role) -> CredentialsDir {
        self.store(&self.ca.issue(&self.request(role)).unwrap(), role)
    }

    /// What an end shows when its leaf was asked for in a wrong way.
    pub(crate) fn bent(&self, role: Role, bend: impl FnOnce(&mut LeafRequest)) -> CredentialsDir {
        let mut request = self.request(role);
        bend(&mut request);
        self.store(
            &self.ca.issue(&request).unwrap(),
            request_role(&request, role),
        )
    }

    /// A leaf from a stranger's authority, held by an end that believes both.
    pub(crate) fn strange(&self, role: Role, stranger: &CloneCa) -> CredentialsDir {
        let leaf = stranger.issue(&self.request(role)).unwrap();
        let both = self.ca.certificate_pem() + &stranger.certificate_pem();
        CredentialsDir::new(write(&self.fresh_dir(), &leaf, &both), role)
    }

    pub(crate) fn store(&self, leaf: &Leaf, role: Role) -> CredentialsDir {
        CredentialsDir::new(
            write(&self.fresh_dir(), leaf, &self.ca.certificate_pem()),
            role,
        )
    }

    pub(crate) fn fresh_dir(&self) -> PathBuf {
        self.dir.path().join(Uuid::new_v4().to_string())
    }
}

/// The role that a bent leaf names, as its holder would be refused by its own program otherwise.
fn request_role(request: &LeafRequest, role: Role) -> Role {
    let named = request
        .uris
        .first()
        .and_then(|uri| uri.parse::<PeerName>().ok());
    named.map_or(role, |name| name.role)
}

pub(crate) fn write(dir: &Path, leaf: &Leaf, ca_pem: &str) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("tls.crt"), &leaf.certificate_pem).unwrap();
    fs::write(dir.join("tls.key"), &leaf.key_pem).unwrap();
    fs::write(dir.join("ca.crt"), ca_pem).unwrap();
    dir.to_owned()
}

/// A listening target and what it tells about those it refused.
pub(crate) struct Target {
    pub(crate) listener: Listener,
    refused: mpsc::Receiver<TransportError>,
}

impl Target {
    pub(crate) async fn new(credentials: CredentialsDir) -> Self {
        Self::with_limits(credentials, ListenLimits::default()).await
    }

    pub(crate) async fn with_limits(credentials: CredentialsDir, limits: ListenLimits) -> Self {
        Self::at(
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            credentials,
            limits,
        )
        .await
    }

    pub(crate) async fn at(
        address: impl Into<Address>,
        credentials: CredentialsDir,
        limits: ListenLimits,
    ) -> Self {
        let (tell, refused) = mpsc::channel(64);
        let told = move |_, error| tell.try_send(error).unwrap();
        let listener = Listener::bind(address, credentials, limits, told)
            .await
            .unwrap();
        Self { listener, refused }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_address().network().unwrap()
    }

    /// The next peer's refusal, as the target knows it.
    pub(crate) async fn refused(&mut self) -> TransportError {
        patiently(self.refused.recv()).await.unwrap()
    }

    /// Why the target refused the next peer.
    pub(crate) async fn rejection(&mut self) -> Rejection {
        rejection(self.refused().await)
    }

    /// A peer with good credentials gets in and is known by its name; nobody else was refused.
    pub(crate) async fn lets_in(&mut self, clone: &Clone, role: Role) {
        let dialer = clone.dialer(self.listener.local_address(), clone.good(role));
        let dialing = async {
            let mut stream = dialer.dial().await?;
            stream.write_all(b"?").await.unwrap();
            stream.flush().await.unwrap();
            let read = stream.read_u8().await;
            read.map_err(|error| TransportError::from_io("reading", error))
        };
        let accepting = async {
            let mut accepted = patiently(self.listener.accept()).await.unwrap();
            assert_eq!(accepted.stream.read_u8().await.unwrap(), b'?');
            accepted.stream.write_all(b"!").await.unwrap();
            accepted.stream.shutdown().await.unwrap();
            accepted
        };
        let (dialed, accepted) = tokio::join!(dialing, accepting);
        assert_eq!(dialed.unwrap(), b'!');
        assert_eq!(
            accepted.peer_name,
            PeerName {
                clone_id: clone.id,
                role
            }
        );
        assert_eq!(accepted.stream.peer_name(), accepted.peer_name);
        assert_eq!(accepted.transport, clone.over);
        assert!(
            self.refused.try_recv().is_err(),
            "somebody was refused meanwhile"
        );
    }
}

pub(crate) fn dialer(address: impl Display, credentials: CredentialsDir) -> Dialer {
    Dialer::new(address.to_string(), credentials).with_limits(DialLimits {
        handshake_timeout: PATIENCE,
        ..DialLimits::default()
    })
}

pub(crate) const fn choice(over: Transport) -> TransportChoice {
    match over {
        Transport::Tls | Transport::Unix => TransportChoice::Tls,
        Transport::Quic => TransportChoice::Quic,
    }
}

/// Dials, says something, and waits for an answer; expects that the target refuses.
pub(crate) async fn refused_by(dialer: Dialer) -> Refusal {
    let error = async {
        let mut stream = dialer.dial().await?;
        say_something(&mut stream).await;
        let read = patiently(stream.read_u8()).await;
        read.map_err(|error| TransportError::from_io("reading", error))
    };
    refusal(error.await.unwrap_err())
}

/// A session speaks first, so bytes are under way when the refusal comes.
async fn say_something(stream: &mut SecureStream) {
    stream.write_all(&[7; 100_000]).await.ok();
    stream.flush().await.ok();
}

pub(crate) fn rejection(error: TransportError) -> Rejection {
    match error {
        TransportError::Rejected { rejection, .. } => rejection,
        other => panic!("not our rejection: {other:?}"),
    }
}

pub(crate) fn refusal(error: TransportError) -> Refusal {
    match error {
        TransportError::RejectedByPeer { refusal, .. } => refusal,
        other => panic!("not the peer's refusal: {other:?}"),
    }
}

pub(crate) async fn patiently<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("it takes forever")
}

/// A TLS client that is not ours: it believes any server, and shows `leaf` if it has one.
pub(crate) fn foreign_client(
    versions: &[&'static rustls::SupportedProtocolVersion],
    leaf: Option<&Leaf>,
    alpn: &[&[u8]],
) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match leaf {
        Some(leaf) => {
            let (chain, key) = der(leaf);
            config.with_client_auth_cert(chain, key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

/// Connects as a client that is not ours; what its handshake or its first read fails with.
pub(crate) async fn foreign_dial(
    over: Transport,
    address: SocketAddr,
    config: ClientConfig,
) -> rustls::Error {
    if over == Transport::Quic {
        return foreign_dial_quic(address, config).await;
    }
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let error = async {
        let mut stream = connector
            .connect(ServerName::from(address.ip()), tcp)
            .await?;
        stream.read_u8().await
    };
    let error = patiently(error).await.unwrap_err();
    error
        .downcast::<rustls::Error>()
        .unwrap_or_else(|error| panic!("not of TLS: {error:?}"))
}

async fn foreign_dial_quic(address: SocketAddr, config: ClientConfig) -> rustls::Error {
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(config, address, "127.0.0.1").unwrap();
    let ended = async {
        match connecting.await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    };
    let quinn::ConnectionError::ConnectionClosed(close) = patiently(ended).await else {
        panic!("not of TLS");
    };
    let code = u64::from(close.error_code);
    assert_eq!(code & !0xff, 0x100, "not of TLS: {close:?}");
    rustls::Error::AlertReceived(code.to_le_bytes()[0].into())
}

/// A TLS server that is not ours: it asks for no certificate.
pub(crate) fn foreign_server(
    versions: &[&'static rustls::SupportedProtocolVersion],
    leaf: &Leaf,
    alpn: &[&[u8]],
) -> ServerConfig {
    let (chain, key) = der(leaf);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn der(leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(leaf.certificate_pem.as_bytes());
    (
        chain.collect::<Result<_, _>>().unwrap(),
        PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).unwrap(),
    )
}

/// Believes any server.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
