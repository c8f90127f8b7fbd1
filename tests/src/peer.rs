//! Peers that speak the protocol by hand, with good credentials and bad intentions.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use uuid::Uuid;
use volferry_agent::control::read_message;
use volferry_agent::progress::End;
use volferry_protocol::compression::{Codec, Codecs, Compressed, Compressor, Wanted};
use volferry_protocol::digest::{Digest, DigestTree};
use volferry_protocol::failure::Failure;
use volferry_protocol::frame::{ControlFrame, DataFrame, Preamble, SessionToken};
use volferry_protocol::geometry::{ChunkIndex, ChunkSize, Geometry};
use volferry_protocol::message::{Finish, Hello, Message, Sent, TokenText, Welcome};
use volferry_protocol::tree::frame::{TreeFrame, pack_digest};
use volferry_protocol::tree::session::TreeTerms;
use volferry_protocol::zero_map::ZeroMap;
use volferry_transport::{CredentialsDir, Dialer, ListenLimits, Listener, Role, SecureStream};

use crate::PATIENCE;

/// An observer's connection.
#[derive(Debug)]
pub struct Observer {
    peer: Peer,
    stream: SecureStream,
}

impl Observer {
    /// Sends a request line's method and page; the head and the body of the answer.
    #[must_use]
    pub fn ask(self, what: &str) -> (String, String) {
        let request = format!("{what} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        let answer = self.tell(request.as_bytes());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    /// Sends bytes; all that is answered.
    #[must_use]
    pub fn tell(mut self, bytes: &[u8]) -> String {
        let told = async {
            self.stream.write_all(bytes).await?;
            let mut answer = String::new();
            self.stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        self.peer.wait(told).unwrap()
    }
}

/// A source or a target that a test plays itself.
#[derive(Debug)]
pub struct Peer {
    runtime: Arc<Runtime>,
}

impl Default for Peer {
    fn default() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        Self {
            runtime: Arc::new(runtime),
        }
    }
}

impl Peer {
    /// Dials a target with the credentials of its source.
    #[must_use]
    pub fn dial(&self, address: SocketAddr, credentials: PathBuf) -> Wire {
        let credentials = CredentialsDir::new(credentials, Role::Source);
        let dialer = Dialer::new(address.to_string(), credentials);
        let stream = self.wait(async { dialer.dial().await.unwrap() });
        self.wire(stream, End::Target)
    }

    /// Dials a target as an observer of its clone.
    #[must_use]
    pub fn observe(&self, address: SocketAddr, credentials: PathBuf) -> Observer {
        let credentials = CredentialsDir::new(credentials, Role::Observer);
        let dialer = Dialer::new(address.to_string(), credentials);
        let stream = self.wait(async { dialer.dial().await.unwrap() });
        let runtime = Arc::clone(&self.runtime);
        Observer {
            peer: Self { runtime },
            stream,
        }
    }

    /// Listens with the credentials of a target.
    #[must_use]
    pub fn listen(&self, credentials: PathBuf) -> FakeTarget {
        let credentials = CredentialsDir::new(credentials, Role::Target);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let limits = ListenLimits::default();
        let listener = Listener::bind(address, credentials, limits, |_, _| {});
        let listener = self.wait(async { listener.await.unwrap() });
        let runtime = Arc::clone(&self.runtime);
        FakeTarget {
            peer: Self { runtime },
            listener,
        }
    }

    /// Shakes hands as a client that believes any server and shows `credentials`, or no
    /// certificate; gives what it is told.
    #[must_use]
    pub fn refused(&self, address: SocketAddr, credentials: Option<&Path>) -> String {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible));
        let mut config = match credentials {
            None => config.with_no_client_auth(),
            Some(directory) => {
                let certificate = CertificateDer::from_pem_file(directory.join("tls.crt"));
                let key = PrivateKeyDer::from_pem_file(directory.join("tls.key"));
                let chain = vec![certificate.unwrap()];
                config.with_client_auth_cert(chain, key.unwrap()).unwrap()
            }
        };
        config.alpn_protocols = vec![volferry_transport::ALPN.to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let refused = async {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::from(address.ip());
            let mut stream = connector.connect(name, stream).await?;
            stream.read_u8().await
        };
        self.wait(refused).unwrap_err().to_string()
    }

    fn wire(&self, stream: SecureStream, other: End) -> Wire {
        Wire {
            peer: Self {
                runtime: Arc::clone(&self.runtime),
            },
            stream,
            other,
        }
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        let patiently = async { timeout(PATIENCE, work).await };
        self.runtime.block_on(patiently).expect("it takes forever")
    }
}

/// A target that a test plays.
#[derive(Debug)]
pub struct FakeTarget {
    peer: Peer,
    listener: Listener,
}

impl FakeTarget {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.local_address().network().unwrap()
    }

    /// The next connection of a source, behind its preamble.
    #[must_use]
    pub fn accept(&mut self) -> (Wire, Preamble) {
        let accepted = self.peer.wait(self.listener.accept()).unwrap();
        let mut wire = self.peer.wire(accepted.stream, End::Source);
        let preamble = wire.read::<{ Preamble::LEN }>();
        (wire, Preamble::decode(&preamble).unwrap())
    }

    /// The control connection of a source, and its hello.
    #[must_use]
    pub fn greet(&mut self) -> (Wire, Hello) {
        let (mut wire, preamble) = self.accept();
        assert_eq!(preamble, Preamble::Control);
        match wire.hear() {
            Ok(Message::Hello(hello)) => (wire, hello),
            other => panic!("no hello: {other:?}"),
        }
    }
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Wire {
    peer: Peer,
    stream: SecureStream,
    other: End,
}

impl Wire {
    /// Sends bytes. An agent that has had enough may close before it has read them.
    pub fn send(&mut self, bytes: &[u8]) {
        let stream = &mut self.stream;
        let _closed = self.peer.wait(async {
            stream.write_all(bytes).await?;
            stream.flush().await
        });
    }

    /// Sends a message.
    pub fn say(&mut self, message: &Message) {
        self.send(&ControlFrame::encode(message).unwrap());
    }

    /// Sends a message that may be none, with the length that belongs to it.
    pub fn say_json(&mut self, json: &str) {
        let len = u32::try_from(json.len()).unwrap();
        self.send(&[&len.to_be_bytes(), json.as_bytes()].concat());
    }

    /// The agent's next message.
    ///
    /// # Errors
    /// When it closed the connection.
    pub fn hear(&mut self) -> Result<Message, Failure> {
        let message = read_message(&mut self.stream, self.other);
        self.peer.wait(message)
    }

    /// The agent's welcome.
    #[must_use]
    pub fn hear_welcome(&mut self) -> Welcome {
        match self.hear() {
            Ok(Message::Welcome(welcome)) => welcome,
            other => panic!("no welcome: {other:?}"),
        }
    }

    /// The failure that the agent tells, whatever progress it tells before.
    #[must_use]
    pub fn hear_failure(&mut self) -> Failure {
        loop {
            match self.hear() {
                Ok(Message::Watermark(_) | Message::Ping) => {}
                Ok(Message::Error(failure)) => return failure,
                other => panic!("no failure: {other:?}"),
            }
        }
    }

    /// Reads until the agent closes, in order or not.
    pub fn wait_until_closed(&mut self) {
        let mut rest = vec![0; 1 << 16];
        let stream = &mut self.stream;
        self.peer
            .wait(async { while let Ok(1..) = stream.read(&mut rest).await {} });
    }

    /// Closes in order.
    pub fn close(mut self) {
        let stream = &mut self.stream;
        let _closed = self.peer.wait(async { stream.shutdown().await });
    }

    fn read<const LEN: usize>(&mut self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let stream = &mut self.stream;
        let read = self
            .peer
            .wait(async { stream.read_exact(&mut bytes).await });
        read.unwrap();
        bytes
    }
}

/// A source that a test plays, once the target has welcomed it.
#[derive(Debug)]
pub struct FakeSource {
    /// Its peer.
    pub peer: Peer,
    /// Its control connection.
    pub control: Wire,
    /// What the target said.
    pub welcome: Welcome,
    address: SocketAddr,
    credentials: PathBuf,
}

impl FakeSource {
    /// Dials a target and says that it has a volume of `volume_size` bytes.
    #[must_use]
    pub fn welcomed(
        address: SocketAddr,
        credentials: PathBuf,
        clone_id: Uuid,
        volume_size: u64,
    ) -> Self {
        Self::welcomed_with(address, credentials, hello(clone_id, volume_size))
    }

    /// Dials a target and says this hello.
    #[must_use]
    pub fn welcomed_with(address: SocketAddr, credentials: PathBuf, hello: Hello) -> Self {
        let peer = Peer::default();
        let mut control = peer.dial(address, credentials.clone());
        control.send(&Preamble::Control.encode());
        control.say(&Message::Hello(hello));
        let welcome = control.hear_welcome();
        Self {
            peer,
            control,
            welcome,
            address,
            credentials,
        }
    }

    /// Opens a data connection with the token that it was given.
    #[must_use]
    pub fn open_data(&self, number: u16) -> Wire {
        self.open_data_with(number, self.welcome.token.token())
    }

    /// Opens a data connection with any token.
    #[must_use]
    pub fn open_data_with(&self, number: u16, token: SessionToken) -> Wire {
        let mut wire = self.peer.dial(self.address, self.credentials.clone());
        wire.send(&Preamble::Data { number, token }.encode());
        wire
    }
}

/// The same hello of a source that knows how to compress.
#[must_use]
pub fn able_to_compress(mut hello: Hello) -> Hello {
    hello.features.extend(Codecs::all().features());
    hello
}

/// What a source says first: chunks of 1 MiB, two data connections.
#[must_use]
pub fn hello(clone_id: Uuid, volume_size: u64) -> Hello {
    Hello {
        clone_id,
        instance: Uuid::new_v4(),
        attempt: 1,
        take_over: false,
        volume_size,
        chunk_size: ChunkSize::DEFAULT,
        streams: 2,
        streams_max: None,
        generation: String::new(),
        features: Vec::new(),
        required_features: Vec::new(),
        agent: "a test".to_owned(),
        tree: None,
    }
}

/// What a source with a tree says first: one data connection.
#[must_use]
pub fn hello_tree(clone_id: Uuid) -> Hello {
    Hello {
        streams: 1,
        streams_max: None,
        required_features: vec!["tree".to_owned()],
        tree: Some(TreeTerms::default()),
        ..hello(clone_id, 0)
    }
}

/// The frame of a pack with these records, as an honest source sends it.
#[must_use]
pub fn pack(number: u64, records: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    TreeFrame::Pack {
        number,
        payload_len: u32::try_from(records.len()).unwrap(),
        digest: pack_digest(records),
        compressed: None,
    }
    .encode(&mut frame);
    frame.extend(records);
    frame
}

/// The frame of a pack whose payload is said to be `bytes`, compressed by `codec`.
#[must_use]
pub fn pack_compressed(number: u64, records: &[u8], codec: Codec, bytes: &[u8]) -> Vec<u8> {
    let mut frame = tree_header(TreeFrame::Pack {
        number,
        payload_len: u32::try_from(records.len()).unwrap(),
        digest: pack_digest(records),
        compressed: Some(compressed_to(codec, bytes)),
    });
    frame.extend(bytes);
    frame
}

/// What a header says of a payload that is `bytes` by now.
#[must_use]
pub fn compressed_to(codec: Codec, bytes: &[u8]) -> Compressed {
    let len = u32::try_from(bytes.len()).unwrap();
    Compressed { codec, len }
}

/// The compressed form of bytes that shrink.
#[must_use]
pub fn compress(codec: Codec, bytes: &[u8]) -> Vec<u8> {
    let Ok(Wanted::Always(method)) = codec.as_str().parse() else {
        panic!("{} is a method", codec.as_str());
    };
    let mut compressor = Compressor::default();
    compressor.compress(method, bytes).unwrap().to_vec()
}

/// A header of a tree session, any way.
#[must_use]
pub fn tree_header(frame: TreeFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// What a target answers: all that the source wants, and nothing durable.
#[must_use]
pub fn welcome(hello: &Hello) -> Welcome {
    Welcome {
        epoch: 1,
        token: TokenText::new(SessionToken([7; 32])),
        chunk_size: hello.chunk_size,
        streams: hello.streams,
        streams_max: None,
        durable: Vec::new(),
        offer: false,
        compare: false,
        features: Vec::new(),
        agent: "a test".to_owned(),
        tree: None,
    }
}

/// A chunk's frame as an honest source sends it.
#[must_use]
pub fn chunk(index: u64, bytes: &[u8]) -> Vec<u8> {
    chunk_with_digest(index, bytes, Digest::of_chunk(bytes))
}

/// A chunk's frame with any digest.
#[must_use]
pub fn chunk_with_digest(index: u64, bytes: &[u8], digest: Digest) -> Vec<u8> {
    let zero_map = ZeroMap::scan(bytes);
    let mut frame = Vec::new();
    DataFrame::Chunk {
        index: ChunkIndex(index),
        digest,
        payload_len: zero_map.data_len(),
        compressed: None,
    }
    .encode(&mut frame);
    zero_map.encode(&mut frame);
    for run in zero_map.runs().filter(|run| !run.is_zero) {
        frame.extend(&bytes[run.indices()]);
    }
    frame
}

/// The frame of a chunk without zeros whose payload is said to be `bytes`, compressed by `codec`.
#[must_use]
pub fn chunk_compressed(index: u64, chunk: &[u8], codec: Codec, bytes: &[u8]) -> Vec<u8> {
    let payload_len = u32::try_from(chunk.len()).unwrap();
    let mut frame = header(DataFrame::Chunk {
        index: ChunkIndex(index),
        digest: Digest::of_chunk(chunk),
        payload_len,
        compressed: Some(compressed_to(codec, bytes)),
    });
    ZeroMap::all_data(payload_len).encode(&mut frame);
    frame.extend(bytes);
    frame
}

/// A frame's header, any way.
#[must_use]
pub fn header(frame: DataFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// What a source says last of a volume with these chunks.
#[must_use]
pub fn finish(chunks: &[&[u8]]) -> Finish {
    let size: usize = chunks.iter().map(|chunk| chunk.len()).sum();
    let geometry = Geometry::new(size as u64, ChunkSize::DEFAULT).unwrap();
    let mut tree = DigestTree::new(geometry);
    for (index, chunk) in (0..).zip(chunks) {
        let inserted = tree.insert(ChunkIndex(index), Digest::of_chunk(chunk));
        inserted.unwrap();
    }
    Finish {
        digest: tree.volume_digest().unwrap(),
        connections: None,
        sent: Sent::default(),
        source: Box::default(),
        tree: None,
    }
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
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
