//! What can go wrong between two ends.
//!
//! Two questions decide what a caller does, and [`TransportError::class`] answers both: is it about
//! identity, which takes another peer or other credentials, or about the network, which a retry may
//! mend?

use std::io;
use std::time::Duration;

use crate::address::{Address, PeerAddress};
use crate::identity::IdentityError;
use crate::rejection::{Class, Refusal, Rejection};

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Our own credentials can't be used.
    #[error("cannot use our own credentials")]
    Credentials(#[from] IdentityError),
    /// The peer's name could not be turned into an address.
    #[error("cannot resolve {target}; it must be HOST:PORT, or unix:PATH")]
    Resolve {
        /// What was to be dialed.
        target: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No connection came about.
    #[error("cannot connect to {address}")]
    Connect {
        /// The peer's address.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// No port could be opened to listen on, or no Unix socket.
    #[error("cannot listen on {address}")]
    Listen {
        /// Our address.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// We refused the peer.
    #[error("refused {address}: {rejection}; {}", rejection.remedy())]
    Rejected {
        /// The peer's address.
        address: PeerAddress,
        /// Why.
        rejection: Rejection,
    },
    /// The peer refused us.
    #[error("the peer at {address} {refusal}; {}", refusal.remedy())]
    RejectedByPeer {
        /// The peer's address.
        address: PeerAddress,
        /// Why, as far as it told us.
        refusal: Refusal,
    },
    /// The connection broke.
    #[error("{operation} failed")]
    Io {
        /// What we were doing.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The peer took too long.
    #[error("{operation} took longer than {} ms", after.as_millis())]
    Timeout {
        /// What we were waiting for.
        operation: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// The peer went away, or this side was closed, in the middle of something.
    #[error("the connection was closed during {operation}")]
    Closed {
        /// What was under way.
        operation: &'static str,
    },
}

impl TransportError {
    /// The error behind a failed read or write of a stream from this crate.
    ///
    /// In TLS 1.3 a client ends its handshake before the server has judged its certificate (RFC
    /// 8446, section 2), so a refusal reaches it as an error of its first read. It comes out of
    /// this as the [`TransportError::RejectedByPeer`] it is.
    #[must_use]
    pub fn from_io(operation: &'static str, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(known) => known,
            Err(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Closed { operation }
            }
            Err(source) => Self::Io { operation, source },
        }
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Credentials(_) => Class::Identity,
            Self::Rejected { rejection, .. } => rejection.class(),
            Self::RejectedByPeer { refusal, .. } => refusal.class(),
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Listen { .. }
            | Self::Io { .. }
            | Self::Timeout { .. }
            | Self::Closed { .. } => Class::Network,
        }
    }

    /// Whether it is about who somebody is, so that only other credentials help.
    #[must_use]
    pub const fn is_identity(&self) -> bool {
        matches!(self.class(), Class::Identity)
    }

    /// A short fixed word for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "own_credentials",
            Self::Resolve { .. } => "resolve",
            Self::Connect { .. } => "connect",
            Self::Listen { .. } => "listen",
            Self::Rejected { rejection, .. } => rejection.label(),
            Self::RejectedByPeer { .. } => "rejected_by_peer",
            Self::Io { .. } => "io",
            Self::Timeout { .. } => "timeout",
            Self::Closed { .. } => "closed",
        }
    }
}
