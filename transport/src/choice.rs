//! Which transport a session runs over, and why.

use std::fmt;
use std::time::Duration;

use crate::quic::Congestion;

/// What a stream runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TLS 1.3 over TCP: a connection for each stream.
    Tls,
    /// QUIC over UDP: one connection for all streams of a session.
    Quic,
    /// TLS 1.3 over a Unix socket: a connection for each stream.
    Unix,
}

impl Transport {
    /// The word for it in flags, logs and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Quic => "quic",
            Self::Unix => "unix",
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
    /// The path is short, and TLS costs least there.
    Short(Duration),
    /// The path is long, and TCP is sent by a congestion control that loss alone doesn't slow down.
    Steady(Duration, String),
    /// The path is long, and TCP slows down at each loss, which QUIC doesn't.
    Slows(Duration, String),
    /// The path is long, and QUIC is told to slow down at each loss as well.
    Alike(Duration),
    /// QUIC would do better, and did not connect, for this.
    NoQuic(String),
    /// The other one could not connect, for this.
    OnlyWay(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |round_trip: &Duration| round_trip.as_secs_f64() * 1e3;
        match self {
            Self::Told => f.write_str("as told"),
            Self::Short(round_trip) => {
                write!(
                    f,
                    "the path is short ({:.1} ms), TLS costs least",
                    ms(round_trip)
                )
            }
            Self::Steady(round_trip, congestion) => write!(
                f,
                "the path is long ({:.1} ms), and TCP is sent by {congestion}, which bears loss",
                ms(round_trip)
            ),
            Self::Slows(round_trip, congestion) => write!(
                f,
                "the path is long ({:.1} ms), and TCP is sent by {congestion}, which slows down at each loss",
                ms(round_trip)
            ),
            Self::Alike(round_trip) => write!(
                f,
                "the path is long ({:.1} ms), and QUIC would slow down at each loss as TCP does",
                ms(round_trip)
            ),
            Self::NoQuic(error) => write!(f, "QUIC might do better, but: {error}"),
            Self::OnlyWay(error) => write!(f, "the other could not connect: {error}"),
        }
    }
}

/// A path whose packets and their answers take no longer is short: within a zone. There QUIC is bound by its processor
/// long before TCP is by loss.
const SHORT: Duration = Duration::from_millis(5);

/// Congestion controls of the kernel that take the path's measure instead of waiting for a loss.
const STEADY: [&str; 3] = ["bbr", "bbr2", "bbr3"];

/// Whether a path with such a round trip is short.
pub(crate) fn is_short(round_trip: Duration) -> bool {
    round_trip < SHORT
}

/// What does better on a path: on which it took `round_trip` to connect, and TCP is sent by `congestion` as far as
/// the kernel tells, and QUIC by `quic`. bench/README.md has the table that this is made from.
pub(crate) fn better(round_trip: Duration, congestion: Option<String>, quic: Congestion) -> Choice {
    let (transport, why) = match congestion {
        _ if is_short(round_trip) => (Transport::Tls, Why::Short(round_trip)),
        Some(name) if STEADY.contains(&name.as_str()) => {
            (Transport::Tls, Why::Steady(round_trip, name))
        }
        _ if quic != Congestion::Bbr => (Transport::Tls, Why::Alike(round_trip)),
        other => {
            let name = other.unwrap_or_else(|| "an unknown one".to_owned());
            (Transport::Quic, Why::Slows(round_trip, name))
        }
    };
    Choice { transport, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_takes_quic_unless_tcp_bears_loss() {
        let check = |millis, congestion: Option<&str>, transport| {
            let round_trip = Duration::from_millis(millis);
            let choice = better(round_trip, congestion.map(str::to_owned), Congestion::Bbr);
            assert_eq!(choice.transport, transport, "{millis} ms, {congestion:?}");
            assert_ne!(choice.why.to_string(), "");
        };
        check(0, Some("cubic"), Transport::Tls);
        check(4, None, Transport::Tls);
        check(5, Some("cubic"), Transport::Quic);
        check(100, Some("reno"), Transport::Quic);
        check(100, None, Transport::Quic);
        check(100, Some("bbr"), Transport::Tls);
        let cubic = better(SHORT, Some("cubic".to_owned()), Congestion::Cubic);
        assert_eq!(cubic.transport, Transport::Tls, "{}", cubic.why);
    }
}
