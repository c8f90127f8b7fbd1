//! Which transport a session runs over, and why.

use std::fmt;

/// What a stream runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TLS 1.3 over TCP: a connection for each stream.
    Tls,
    /// QUIC over UDP: one connection for all streams of a session.
    Quic,
}

impl Transport {
    /// The word for it in flags, logs and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Quic => "quic",
        }
    }
}

/// What an end is told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportChoice {
    /// TLS alone.
    Tls,
    /// QUIC alone.
    Quic,
    /// A listening end offers both, on the same port number; a dialing end takes what does better.
    Auto,
}

impl TransportChoice {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::Tls, Self::Quic, Self::Auto];

    /// The word for it in flags.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Quic => "quic",
            Self::Auto => "auto",
        }
    }

    /// Whether it leaves room for `transport`.
    #[must_use]
    pub const fn allows(self, transport: Transport) -> bool {
        matches!(
            (self, transport),
            (Self::Auto, _) | (Self::Tls, Transport::Tls) | (Self::Quic, Transport::Quic)
        )
    }
}

/// What was chosen for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What it runs over.
    pub transport: Transport,
    /// What decided.
    pub why: Why,
}

/// What decides on a transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// There was nothing to decide.
    Told,
    /// It could connect, and is what costs least where nothing is known against it.
    Connects,
    /// The other one could not connect, for this.
    OnlyWay(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Told => f.write_str("as told"),
            Self::Connects => f.write_str("it connects and costs least"),
            Self::OnlyWay(error) => write!(f, "the other could not connect: {error}"),
        }
    }
}
