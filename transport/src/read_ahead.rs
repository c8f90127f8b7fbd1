//! Reads a socket in large pieces, whatever the reader above asks for.
//!
//! The TLS library reads its connection 4 KiB at a time, which would be four system calls and more
//! for each record of 16 KiB. Here one call takes what the socket has, and the library's small reads
//! are copies.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes taken from the socket at once: large enough that the system call doesn't count, small
/// enough to stay in a processor's second-level cache.
const BUFFER_LEN: usize = 256 << 10;

/// A stream whose reads are buffered; writes pass.
#[derive(Debug)]
pub(crate) struct ReadAhead<S> {
    inner: S,
    buffer: Box<[u8]>,
    /// What was read and not yet taken: `buffer[start..end]`.
    start: usize,
    end: usize,
}

impl<S> ReadAhead<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            buffer: vec![0; BUFFER_LEN].into(),
            start: 0,
            end: 0,
        }
    }

    /// The stream; what was read ahead is lost.
    pub(crate) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.start == this.end {
            let mut ahead = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut ahead))?;
            (this.start, this.end) = (0, ahead.filled().len());
        }
        let ahead = this.buffer.get(this.start..this.end).unwrap_or_default();
        let taken = ahead.len().min(buf.remaining());
        buf.put_slice(ahead.get(..taken).unwrap_or_default());
        this.start += taken;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn small_reads_give_what_was_written() {
        let (mut writer, reader) = tokio::io::duplex(BUFFER_LEN * 2);
        let written: Vec<u8> = (0..=250).cycle().take(BUFFER_LEN + 4097).collect();
        writer.write_all(&written).await.unwrap();
        drop(writer);
        let mut reader = ReadAhead::new(reader);
        let mut read = Vec::new();
        let mut piece = [0; 1000];
        loop {
            let len = reader.read(&mut piece).await.unwrap();
            if len == 0 {
                break;
            }
            read.extend_from_slice(&piece[..len]);
        }
        assert_eq!(read, written);
    }
}
