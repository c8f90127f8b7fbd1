//! The byte stream between two ends that have proven who they are.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::name::PeerName;
use crate::tls::{self, Established, TlsStream};

/// An authenticated and encrypted stream of bytes over TCP.
///
/// Written bytes may wait in a buffer until a flush. Shutting down sends what is left, then
/// `close_notify` (RFC 8446, section 6.1), then ends the TCP direction; the other direction stays
/// open. A peer that goes away without `close_notify` shows as an error of kind
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof), never as an orderly end.
///
/// Errors are read with [`TransportError::from_io`](crate::TransportError::from_io).
#[derive(Debug)]
pub struct SecureStream {
    // On the heap, as the state of a TLS connection is big and this is moved about.
    inner: Box<TlsStream<TcpStream>>,
    peer_name: PeerName,
    peer_address: SocketAddr,
}

impl SecureStream {
    pub(crate) fn new(
        (stream, peer_name): Established<TcpStream>,
        peer_address: SocketAddr,
    ) -> Self {
        Self {
            inner: Box::new(stream),
            peer_name,
            peer_address,
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub const fn peer_name(&self) -> PeerName {
        self.peer_name
    }

    /// Where the other end is.
    #[must_use]
    pub const fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    fn explain<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        polled.map_err(|error| tls::explain(self.peer_address, error))
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.inner).poll_read(cx, buf);
        self.explain(polled)
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.inner).poll_write(cx, buf);
        self.explain(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.inner).poll_write_vectored(cx, bufs);
        self.explain(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.inner).poll_flush(cx);
        self.explain(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.inner).poll_shutdown(cx);
        self.explain(polled)
    }
}
