//! The UDP socket of an endpoint: what packets a path takes, and how many the kernel takes at once.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use rustix::net::sockopt::{ip_mtu, ipv6_mtu};
use socket2::Type;

use crate::socket::bound;

/// The largest packet there can be: IPv4 counts in 16 bits, its own header and that of UDP included.
pub(super) const PACKET_LEN_MAX: u16 = u16::MAX - IPV4_UDP_LEN;

/// The headers before a packet.
const IPV4_UDP_LEN: u16 = 20 + 8;
const IPV6_UDP_LEN: u16 = 40 + 8;

/// What the kernel may keep of packets that come while the endpoint's task is busy; it grants less where
/// `net.core.rmem_max` says so.
const SOCKET_BUFFER_LEN: usize = 4 << 20;

/// A socket to which a library may hand bundles of packets that are larger than what the kernel takes.
///
/// The library makes ten packets at once, whatever their size. The kernel takes a bundle like one packet that it
/// cuts later, so no more than [`PACKET_LEN_MAX`], and of a larger one all would be lost.
#[derive(Debug)]
pub(super) struct BundlingSocket(Arc<dyn AsyncUdpSocket>);

impl BundlingSocket {
    /// Opens a UDP port.
    pub(super) fn open(address: SocketAddr) -> io::Result<Arc<Self>> {
        let socket = bound(address, Type::DGRAM, |socket| {
            // A smaller buffer is slower, and no reason to fail.
            let _granted = socket.set_recv_buffer_size(SOCKET_BUFFER_LEN);
            let _granted = socket.set_send_buffer_size(SOCKET_BUFFER_LEN);
            Ok(())
        })?;
        TokioRuntime
            .wrap_udp_socket(socket.into())
            .map(|socket| Arc::new(Self(socket)))
    }
}

impl AsyncUdpSocket for BundlingSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0).create_io_poller()
    }

    /// Where the kernel has no room in the midst of a bundle, all of it is sent again: a packet that comes twice is
    /// dropped by its receiver.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let packet_len = transmit.segment_size.unwrap_or(transmit.contents.len());
        for contents in transmit.contents.chunks(bundle_len(packet_len)) {
            self.0.try_send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: transmit.segment_size,
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    /// The library makes room for so many of the largest packets, and a bundle is no larger than one.
    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

/// Bytes of the largest bundle of such packets that the kernel takes.
fn bundle_len(packet_len: usize) -> usize {
    let packet_len = packet_len.max(1);
    (usize::from(PACKET_LEN_MAX) / packet_len).max(1) * packet_len
}

/// The largest packet that the way to `peer` may take, by what the kernel knows of it: its first link, and what lies
/// behind if that was told before. Where it knows nothing, the largest there can be.
pub(super) fn packet_len_max(peer: SocketAddr) -> u16 {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    // Connecting sends nothing, it looks up the way.
    let mtu = UdpSocket::bind(super::any_port_towards(peer)).and_then(|socket| {
        socket.connect(peer)?;
        Ok(match peer {
            SocketAddr::V4(_) => ip_mtu(&socket)?.saturating_sub(IPV4_UDP_LEN.into()),
            SocketAddr::V6(_) => ipv6_mtu(&socket)?.saturating_sub(IPV6_UDP_LEN.into()),
        })
    });
    let known = mtu.ok().and_then(|len| u16::try_from(len).ok());
    known.unwrap_or(u16::MAX).min(PACKET_LEN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_has_whole_packets_and_never_more_than_the_kernel_takes() {
        let check = |packet_len, packets| {
            assert_eq!(bundle_len(packet_len), packets * packet_len, "{packet_len}");
        };
        check(1200, 54);
        check(1452, 45);
        check(8952, 7);
        check(32_754, 1);
        check(65_507, 1);
        assert_eq!(bundle_len(0), 65_507, "nothing to send is no panic");
    }

    #[test]
    fn the_way_to_this_machine_takes_large_packets() {
        for peer in ["127.0.0.1:9", "[::ffff:127.0.0.1]:9"] {
            let len = packet_len_max(peer.parse().unwrap());
            assert!((1200..=PACKET_LEN_MAX).contains(&len), "{peer}: {len}");
            assert!(len > 16_000, "loopback has an MTU of 64 KiB: {len}");
        }
    }
}
