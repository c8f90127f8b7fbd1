//! How our sockets are set up.
//!
//! Buffer sizes are left to the kernel, which tunes them to the path as long as nobody sets them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::quic::Congestion;

/// How long a connection may be silent before the kernel asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// How long it waits between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How many it asks; a dead peer is thus noticed after 30 s of silence.
const KEEPALIVE_PROBES: u32 = 3;
/// How long sent bytes may stay unacknowledged (RFC 5482), instead of the kernel's quarter of an
/// hour or so.
///
/// Not shorter: since Linux 5.11 it also ends a connection whose peer is well but keeps its window
/// shut, and a target reads nothing while its disk hangs in a flush. A peer that is gone is noticed
/// long before, by its silence on the control connection.
const USER_TIMEOUT: Duration = Duration::from_secs(600);

/// Connections that the kernel completes before we accept them; more are dropped and dialed again.
pub(crate) const BACKLOG: i32 = 128;

/// Prepares a connection, dialed or accepted.
pub(crate) fn prepare(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    // Frames are written whole, so there is nothing for Nagle's algorithm to gather.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Sets the congestion control of what this end sends. The kernel may not have it, or not give it to
/// everybody; then its own stays, which is slower at worst.
pub(crate) fn set_congestion(stream: &TcpStream, congestion: Congestion) {
    let name = congestion.as_str();
    if let Err(error) = SockRef::from(stream).set_tcp_congestion(name.as_bytes()) {
        warn!(congestion = name, %error, "the kernel keeps its own congestion control");
    }
}

/// The congestion control of what this end sends, where the kernel tells.
pub(crate) fn congestion_of(stream: &TcpStream) -> Option<String> {
    let name = SockRef::from(stream).tcp_congestion().ok()?;
    let name = name.split(|byte| *byte == 0).next()?;
    String::from_utf8(name.to_vec()).ok()
}

/// Opens a TCP port. `[::]` takes IPv4 as well, and is `0.0.0.0` where the kernel has no IPv6.
///
/// # Errors
/// When the address is taken or isn't this machine's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    // So that a restarted agent gets its port back while old connections linger in TIME-WAIT.
    let socket = bound(address, Type::STREAM, |socket| {
        socket.set_reuse_address(true)
    })?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A socket at this address that doesn't block, prepared before it gets there. `[::]` takes IPv4 as well,
/// whatever the system's default is, and is `0.0.0.0` where the kernel has no IPv6.
pub(crate) fn bound(
    address: SocketAddr,
    kind: Type,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> io::Result<Socket> {
    or_without_ipv6(address, |address| {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        prepare(&socket)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    })
}

/// Opens `address`, or where that is `[::]` and the kernel was started with `ipv6.disable=1`, `0.0.0.0`.
fn or_without_ipv6<T>(
    address: SocketAddr,
    open: impl Fn(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let is_any = address.is_ipv6() && address.ip().is_unspecified();
    match open(address) {
        Err(error) if is_any && lacks_ipv6(&error) => {
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        opened => opened,
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_knows_what_we_asked_for() {
        let port = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let stream = TcpStream::connect(port.local_addr().unwrap())
            .await
            .unwrap();
        prepare(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        let known = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
        for congestion in Congestion::ALL {
            let before = socket.tcp_congestion().unwrap();
            set_congestion(&stream, congestion);
            let name = congestion.as_str();
            let is_allowed = known.as_ref().is_ok_and(|known| known.contains(name));
            let now = congestion_of(&stream).unwrap();
            // One that is not allowed may be given to root all the same.
            assert!(now == name || (!is_allowed && before.starts_with(now.as_bytes())));
        }
    }

    #[test]
    fn any_address_is_one_of_ipv4_where_there_is_no_ipv6() {
        let check = |address: &str, errno: Errno, expected: Result<&str, Errno>| {
            let opened = or_without_ipv6(address.parse().unwrap(), |address| {
                if address.is_ipv6() {
                    Err(errno.into())
                } else {
                    Ok(address.to_string())
                }
            });
            let opened = opened.map_err(|error| Errno::from_io_error(&error).unwrap());
            assert_eq!(opened, expected.map(str::to_owned), "{address} {errno}");
        };
        check("[::]:7700", Errno::AFNOSUPPORT, Ok("0.0.0.0:7700"));
        check("[::]:7700", Errno::ADDRNOTAVAIL, Ok("0.0.0.0:7700"));
        check("[::]:7700", Errno::ADDRINUSE, Err(Errno::ADDRINUSE));
        // Who names an address means it.
        check("[::1]:7700", Errno::ADDRNOTAVAIL, Err(Errno::ADDRNOTAVAIL));
        check("10.0.0.1:1", Errno::AFNOSUPPORT, Ok("10.0.0.1:1"));
    }

    #[test]
    fn any_address_takes_ipv4_too() {
        let socket = bound("[::]:0".parse().unwrap(), Type::STREAM, |_| Ok(())).unwrap();
        socket.listen(1).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, address.port()));
        assert!(stream.is_ok(), "{stream:?}");
    }
}
