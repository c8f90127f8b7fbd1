//! Sealing and opening records with no network between: what encryption costs by itself.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};

use super::record::Socket;
use super::{TlsStream, accept, dial};
use crate::address::PeerAddress;
use crate::error::TransportError;
use crate::identity::Credentials;
use crate::name::Role;

/// Both ends of an established connection within one thread: what one seals, the other opens.
#[derive(Debug)]
pub struct RecordPair {
    sealing: TlsStream<Wire>,
    opening: TlsStream<Wire>,
    discards: Arc<AtomicBool>,
}

/// Bytes that may be sealed before they are opened; a little more is for the records around them.
const PIPE_LEN: usize = RecordPair::AHEAD_MAX + (1 << 20);

impl RecordPair {
    /// Bytes that [`seal`](Self::seal) may be ahead of [`open`](Self::open) by: beyond, it would wait
    /// for itself.
    pub const AHEAD_MAX: usize = 4 << 20;

    /// Shakes hands between the two ends of a clone.
    ///
    /// # Errors
    /// When the two credentials are not of one clone's source and target.
    pub async fn shake(source: &Credentials, target: &Credentials) -> Result<Self, TransportError> {
        let (one, other) = duplex(PIPE_LEN);
        let discards = Arc::new(AtomicBool::new(false));
        let wire = |inner| Wire {
            inner,
            discards: Arc::clone(&discards),
        };
        let address = PeerAddress::Unix;
        let accepting = async {
            let roles = [Role::Source];
            let accepted = accept(wire(other), address, target, &roles).await;
            accepted.map_err(|(error, _stream)| error)
        };
        let (dialed, accepted) =
            tokio::try_join!(dial(wire(one), address, source, Role::Target), accepting)?;
        Ok(Self {
            sealing: dialed.0,
            opening: accepted.0,
            discards,
        })
    }

    /// From now on what is sealed is thrown away, and nothing can be opened any more.
    pub fn discard(&self) {
        self.discards.store(true, Ordering::Relaxed);
    }

    /// Seals `bytes`.
    ///
    /// # Errors
    /// When there are no keys any more.
    pub async fn seal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sealing.write_all(bytes).await?;
        self.sealing.flush().await
    }

    /// Opens as many bytes as `bytes` has room for, which were sealed before.
    ///
    /// # Errors
    /// When a record can't be opened.
    pub async fn open(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.opening.read_exact(bytes).await.map(|_len| ())
    }
}

/// A socket in memory.
#[derive(Debug)]
struct Wire {
    inner: DuplexStream,
    discards: Arc<AtomicBool>,
}

impl Socket for Wire {}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.discards.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
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
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn what_is_sealed_is_opened_until_it_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        crate::mint(Uuid::new_v4(), Duration::from_secs(60))
            .unwrap()
            .write_to(dir.path())
            .unwrap();
        let load = |role: Role| Credentials::load(&dir.path().join(role.as_str())).unwrap();
        let (source, target) = (load(Role::Source), load(Role::Target));
        let mut pair = RecordPair::shake(&source, &target).await.unwrap();
        let sent: Vec<u8> = (0..=u8::MAX).cycle().take(RecordPair::AHEAD_MAX).collect();
        let mut got = vec![0; sent.len()];
        pair.seal(&sent).await.unwrap();
        pair.open(&mut got).await.unwrap();
        assert_eq!(got, sent);
        pair.discard();
        for _ in 0..4 {
            pair.seal(&sent).await.unwrap(); // more than there is room for
        }
        assert!(RecordPair::shake(&target, &source).await.is_err());
    }
}
