//! QUIC (RFC 9000): all streams of a session on one connection.
//!
//! Identities, rejections and the application protocol are those of TLS over TCP; see `tls/quic.rs`.
//! No 0-RTT, no datagrams, no streams in one direction. Losing a packet holds up only the streams whose bytes it
//! carried, and a peer whose address changes keeps its connection (section 9).
//!
//! What a stream of TCP does by itself is done here where QUIC differs:
//! - A stream that is dropped without [`shutdown`](tokio::io::AsyncWriteExt::shutdown) is reset, so that a
//!   cut never looks like an end.
//! - A shutdown waits until the peer's transport has all that was written: with the last stream goes
//!   the connection, and whatever is still under way with it.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig};
use quinn::{EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt};

pub(crate) use dial::Link;
pub(crate) use listen::{Guest, Port};
pub(crate) use quinn::Incoming;
pub(crate) use stream::QuicStream;

mod dial;
mod listen;
mod socket;
mod stream;

/// How fast bytes are sent into a path of which only its answers are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Measures the path's bandwidth and delay; loss alone doesn't slow it down.
    #[default]
    Bbr,
    /// Slows down at each loss, as TCP does by default on Linux (RFC 9438).
    Cubic,
}

impl Congestion {
    /// Every one of them.
    pub const ALL: [Self; 2] = [Self::Bbr, Self::Cubic];

    /// The word for it in flags.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bbr => "bbr",
            Self::Cubic => "cubic",
        }
    }

    fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Bbr => Arc::new(BbrConfig::default()),
            Self::Cubic => Arc::new(CubicConfig::default()),
        }
    }
}

/// A connection from which nothing comes for so long is gone: as long as the protocol's own silence timer on the
/// control connection takes. No kernel tells of a peer that was killed, as it does over TCP.
const IDLE_TIMEOUT_MS: u32 = 15_000;

/// An idle connection says something that often: NATs may forget a mapping of UDP within 30 s (RFC 4787,
/// section 4.3), and three may get lost.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(4);

/// Bytes of one stream that may be on their way, or wait in the receiver's memory for their reader. The product
/// of bandwidth and delay is bounded by this times the streams: 2 streams make 160 MB/s at 100 ms.
const STREAM_WINDOW: u32 = 8 << 20;

/// Bytes that the sender keeps until they are acknowledged, over all streams: at most, and at least. A short path
/// gets little more than the least, see [`send_window`]: whatever is under way there lies in the receiver's socket,
/// and what that doesn't hold is lost.
const SEND_WINDOW_MAX: u64 = 32 << 20;
const SEND_WINDOW_MIN: u64 = 3 << 20;

/// Bytes a second for which the send window is made.
const SEND_RATE: u64 = 1 << 30;

/// Streams at once: the data connections of a session, at most 64, and its control connection.
const STREAMS_MAX: u32 = 65;

/// How long packets stay small after large ones seem to get lost on a path that took them before.
const BLACK_HOLE_COOLDOWN: Duration = Duration::from_secs(10);

/// The code of an orderly end of a connection.
const DONE: VarInt = VarInt::from_u32(0);
/// The code of a stream that is cut off.
const CUT: VarInt = VarInt::from_u32(1);

/// How an end sends to `peer` and takes in from it, which may open `streams_max` streams.
fn transport_config(
    peer: SocketAddr,
    congestion: Congestion,
    streams_max: u32,
) -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(socket::packet_len_max(peer))
        .black_hole_cooldown(BLACK_HOLE_COOLDOWN);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams_max))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        // The bound is that of the streams. One over all of them would let data that nobody
        // reads, while the target's disk is slow, hold up the control connection.
        .receive_window(VarInt::MAX)
        .send_window(SEND_WINDOW_MIN)
        .mtu_discovery_config(Some(mtu))
        .congestion_controller_factory(congestion.factory());
    Arc::new(config)
}

/// What a path with such a round trip can have under way.
fn send_window(round_trip: Duration) -> u64 {
    let micros = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
    let under_way = micros.saturating_mul(SEND_RATE / 1_000_000);
    SEND_WINDOW_MIN
        .saturating_add(under_way)
        .min(SEND_WINDOW_MAX)
}

fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // Within what the library allows, which is any number that is at least 1200.
    let _allowed = config.max_udp_payload_size(socket::PACKET_LEN_MAX);
    config
}

/// Any port of any address from which `peer` can be reached.
fn any_port_towards(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_send_window_grows_with_the_round_trip() {
        let check = |micros, least: u64, most: u64| {
            let window = send_window(Duration::from_micros(micros));
            assert!(
                (least << 20..=most << 20).contains(&window),
                "{micros}: {window}"
            );
        };
        check(0, 3, 3);
        check(50, 3, 4);
        check(10_000, 12, 14);
        check(1_000_000, 32, 32);
        assert_eq!(send_window(Duration::MAX), SEND_WINDOW_MAX);
    }
}
