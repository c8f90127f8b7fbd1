//! Identity, mutual TLS 1.3 and the connections between the two ends of a clone.
//!
//! The participants: a target that listens, a source that dials it to clone, observers that dial it
//! to read progress. Each has credentials that [`mint()`] made for this clone alone, and a
//! connection exists only after both ends have proven their [`PeerName`]s. Host names and addresses
//! prove nothing.
//!
//! What holds here:
//! - Nobody is let in by default, by address, or by an authority other than the clone's.
//! - Credentials are read again for each connection, so they can be rotated under a running agent.
//! - A refusal has one line in one table ([`rejection`]), and both ends can say why it happened.
//! - Everything has a limit: handshakes at once, their time, queues, what a file may hold.
//!
//! What doesn't happen here: frames, sessions, retries. They are built on [`Connector`] and
//! [`Acceptor`], and don't know whether the streams run over TLS or within the process
//! ([`memory`]).

#![forbid(unsafe_code)]

use std::future::Future;

use tokio::io::{AsyncRead, AsyncWrite};

pub mod address;
pub mod choice;
pub mod dialer;
pub mod error;
pub mod identity;
pub mod listener;
mod local;
pub mod memory;
pub mod mint;
pub mod name;
mod quic;
pub mod rejection;
mod socket;
pub mod stream;
mod tls;

pub use address::{Address, PeerAddress};
pub use choice::{Choice, Transport, TransportChoice, Why};
pub use dialer::{DialLimits, Dialer};
pub use error::TransportError;
pub use identity::{Credentials, CredentialsDir, IdentityError};
pub use listener::{ListenLimits, Listener};
pub use mint::mint;
pub use name::{PeerName, Role};
pub use quic::Congestion;
pub use rejection::{Class, Refusal, Rejection};
pub use socket::listen;
pub use stream::SecureStream;
pub use tls::{ALPN, RecordPair, TlsFailure, set_process_default};

/// The dialing end: opens streams to one target.
pub trait Connector: Send + Sync {
    /// A stream of bytes in both directions.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Begins a session: opens its first stream.
    ///
    /// # Errors
    /// When the target can't be reached, or one end refuses the other.
    fn connect(&self) -> impl Future<Output = Result<Self::Stream, TransportError>> + Send;

    /// What the session that was begun last runs over, where there is a choice.
    fn choice(&self) -> Option<Choice> {
        None
    }

    /// Opens one more stream of the session that was begun last.
    ///
    /// # Errors
    /// As [`Connector::connect`], or when the session's connection is gone.
    fn open(&self) -> impl Future<Output = Result<Self::Stream, TransportError>> + Send;
}

/// The listening end: yields the streams that peers open.
pub trait Acceptor: Send {
    /// A stream of bytes in both directions.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Waits for the next stream. Dropping the future loses none.
    ///
    /// # Errors
    /// When no stream can come any more.
    fn accept(
        &mut self,
    ) -> impl Future<Output = Result<Accepted<Self::Stream>, TransportError>> + Send;
}

/// A stream that a peer opened, and who the peer is.
#[derive(Debug)]
pub struct Accepted<S> {
    /// The stream.
    pub stream: S,
    /// The peer's name, which it has proven.
    pub peer_name: PeerName,
    /// The peer's address, which proves nothing and helps in a log. In [`memory`] that of a Unix socket.
    pub peer_address: PeerAddress,
    /// What the stream runs over; [`memory`] plays TLS.
    pub transport: Transport,
}
