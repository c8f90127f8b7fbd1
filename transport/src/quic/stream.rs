//! A stream of a QUIC connection, which ends as a TLS stream does.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::{ConnectionError, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{CUT, DONE, Link};
use crate::address::PeerAddress;
use crate::tls::explain_lost;

/// When the peer's transport has all of a stream, or wants no more of it.
type Delivered = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>;

/// A stream in both directions.
pub(crate) struct QuicStream {
    sending: SendStream,
    receiving: RecvStream,
    address: PeerAddress,
    end: End,
    /// At the dialing end: the connection lives as long as its streams.
    _link: Option<Arc<Link>>,
}

/// How far the sending direction has come.
enum End {
    Open,
    Ending(Delivered),
    Ended,
}

impl QuicStream {
    pub(super) fn new(
        (sending, receiving): (SendStream, RecvStream),
        address: PeerAddress,
        link: Option<Arc<Link>>,
    ) -> Self {
        Self {
            sending,
            receiving,
            address,
            end: End::Open,
            _link: link,
        }
    }

    fn lost(&self, error: ConnectionError) -> io::Error {
        let kind = match error {
            ConnectionError::TimedOut => io::ErrorKind::TimedOut,
            ConnectionError::TransportError(_) => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::UnexpectedEof,
        };
        io::Error::new(
            kind,
            explain_lost(self.address, "the QUIC connection", error),
        )
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match ready!(this.receiving.poll_read_buf(cx, buf)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(ReadError::ConnectionLost(error)) => Poll::Ready(Err(this.lost(error))),
            // The peer dropped its end.
            Err(ReadError::Reset(_)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        match ready!(Pin::new(&mut this.sending).poll_write(cx, buf)) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(WriteError::ConnectionLost(error)) => Poll::Ready(Err(this.lost(error))),
            // The peer dropped its end.
            Err(WriteError::Stopped(_)) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // the connection's task sends whatever there is
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.end {
                End::Open => {
                    // Fails where the peer wants no more, which is told by what is awaited.
                    let _ended = this.sending.finish();
                    this.end = End::Ending(Box::pin(this.sending.stopped()));
                }
                End::Ending(delivered) => {
                    let delivered = ready!(delivered.as_mut().poll(cx));
                    this.end = End::Ended;
                    match delivered {
                        Ok(_) => {}
                        // A peer that has what it wants may close before it acknowledges the end.
                        Err(StoppedError::ConnectionLost(ConnectionError::ApplicationClosed(
                            close,
                        ))) if close.error_code == DONE => {}
                        Err(StoppedError::ConnectionLost(error)) => {
                            return Poll::Ready(Err(this.lost(error)));
                        }
                        Err(error) => return Poll::Ready(Err(error.into())),
                    }
                }
                End::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        if matches!(self.end, End::Open) {
            // Fails where the stream is over already.
            let _cut = self.sending.reset(CUT);
        }
    }
}

impl fmt::Debug for QuicStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicStream")
            .field("id", &self.sending.id())
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
