//! Where a target listens, and where a peer is. Neither proves anything.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// What stands before the path of a Unix socket.
const UNIX: &str = "unix:";

/// Where a target listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On a port.
    Network(SocketAddr),
    /// At a Unix socket, for peers on the same node that see its file.
    Unix(PathBuf),
}

impl Address {
    /// The port that is listened on, where it is one.
    #[must_use]
    pub const fn network(&self) -> Option<SocketAddr> {
        match self {
            Self::Network(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// The path of the Unix socket in `text`, if that names one.
    #[must_use]
    pub fn unix_path(text: &str) -> Option<PathBuf> {
        let path = text.strip_prefix(UNIX)?;
        (!path.is_empty()).then(|| PathBuf::from(path))
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Network(address)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = Self::unix_path(text) {
            return Ok(Self::Unix(path));
        }
        let address = text.parse().map(Self::Network);
        address.map_err(|_| format!("{text:?} is neither ADDR:PORT nor unix:PATH"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// Where a peer is, for logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// At this address.
    Network(SocketAddr),
    /// On this node, behind a Unix socket, which has no addresses.
    Unix,
}

impl PeerAddress {
    /// An address to give to a library that wants one.
    pub(crate) fn or_unspecified(self) -> SocketAddr {
        match self {
            Self::Network(address) => address,
            Self::Unix => (Ipv4Addr::UNSPECIFIED, 0).into(),
        }
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Network(address)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Unix => f.write_str("the Unix socket"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in [
            "127.0.0.1:7000",
            "[::1]:0",
            "unix:/run/volferry/target.sock",
            "unix:near",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.network().is_none(), text.starts_with("unix:"));
        }
        for bad in ["", "unix:", "localhost", "localhost:1", "/run/target.sock"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
