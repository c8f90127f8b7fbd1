//! The byte stream between two ends that have proven who they are.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::Transport;
use crate::address::PeerAddress;
use crate::name::PeerName;
use crate::quic::QuicStream;
use crate::tls::{self, Established, TlsStream};

/// An authenticated and encrypted stream of bytes: a TLS connection over TCP or a Unix
/// socket, or a stream of a QUIC connection.
///
/// Written bytes may wait in a buffer until a flush. Shutting down sends what is left, then ends this
/// direction: over TCP by `close_notify` (RFC 8446, section 6.1) and the end of TCP's own, over QUIC by the end
/// of the stream, whose arrival is waited for. The other direction stays open. A peer that goes away
/// without that shows as an error of kind [`UnexpectedEof`](io::ErrorKind::UnexpectedEof), never as an orderly
/// end. What it wrote just before may be lost.
///
/// Errors are read with [`TransportError::from_io`](crate::TransportError::from_io).
#[derive(Debug)]
pub struct SecureStream {
    inner: Inner,
    peer_name: PeerName,
    peer_address: PeerAddress,
}

#[derive(Debug)]
enum Inner {
    // On the heap, as the state of a TLS connection is big and this is moved about.
    Tls(Box<TlsStream<TcpStream>>),
    Unix(Box<TlsStream<UnixStream>>),
    Quic(QuicStream),
}

/// Calls a method of whatever stream it is, pinned.
macro_rules! of_inner {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.inner {
            Inner::Tls($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
            Inner::Unix($stream) => {
                let $stream = Pin::new(&mut **$stream);
                $call
            }
            Inner::Quic($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
        }
    };
}

impl SecureStream {
    pub(crate) fn over_tcp(
        (stream, peer_name): Established<TcpStream>,
        peer_address: PeerAddress,
    ) -> Self {
        Self {
            inner: Inner::Tls(Box::new(stream)),
            peer_name,
            peer_address,
        }
    }

    pub(crate) fn over_unix((stream, peer_name): Established<UnixStream>) -> Self {
        Self {
            inner: Inner::Unix(Box::new(stream)),
            peer_name,
            peer_address: PeerAddress::Unix,
        }
    }

    pub(crate) const fn over_quic(
        stream: QuicStream,
        peer_name: PeerName,
        peer_address: PeerAddress,
    ) -> Self {
        Self {
            inner: Inner::Quic(stream),
            peer_name,
            peer_address,
        }
    }

    /// What it runs over.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        match self.inner {
            Inner::Tls(_) => Transport::Tls,
            Inner::Unix(_) => Transport::Unix,
            Inner::Quic(_) => Transport::Quic,
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub const fn peer_name(&self) -> PeerName {
        self.peer_name
    }

    /// Where the other end is.
    #[must_use]
    pub const fn peer_address(&self) -> PeerAddress {
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
        let polled = of_inner!(self, stream => stream.poll_read(cx, buf));
        self.explain(polled)
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = of_inner!(self, stream => stream.poll_write(cx, buf));
        self.explain(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = of_inner!(self, stream => stream.poll_write_vectored(cx, bufs));
        self.explain(polled)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Tls(stream) => stream.is_write_vectored(),
            Inner::Unix(stream) => stream.is_write_vectored(),
            Inner::Quic(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = of_inner!(self, stream => stream.poll_flush(cx));
        self.explain(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = of_inner!(self, stream => stream.poll_shutdown(cx));
        self.explain(polled)
    }
}
