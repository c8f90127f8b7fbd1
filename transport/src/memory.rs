//! Both ends in one process, joined by pipes: for tests of everything above the transport.

use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

use crate::error::TransportError;
use crate::name::PeerName;
use crate::{Accepted, Acceptor, Connector, PeerAddress, Transport};

/// Streams that were opened and not yet accepted.
const QUEUE_LEN: usize = 8;

/// A connector and the acceptor it leads to. Each pipe holds `buffer_size_bytes` in each direction;
/// whoever writes more waits for the other end. The acceptor sees every stream as coming from
/// `peer_name`.
#[must_use]
pub fn pair(buffer_size_bytes: usize, peer_name: PeerName) -> (MemoryConnector, MemoryAcceptor) {
    let (queue, opened) = mpsc::channel(QUEUE_LEN);
    (
        MemoryConnector {
            buffer_size_bytes,
            peer_name,
            queue,
        },
        MemoryAcceptor { opened },
    )
}

/// The dialing end of a [`pair`]. Clones lead to the same acceptor.
#[derive(Clone, Debug)]
pub struct MemoryConnector {
    buffer_size_bytes: usize,
    peer_name: PeerName,
    queue: mpsc::Sender<Accepted<DuplexStream>>,
}

impl Connector for MemoryConnector {
    type Stream = DuplexStream;

    async fn connect(&self) -> Result<DuplexStream, TransportError> {
        self.open().await
    }

    async fn open(&self) -> Result<DuplexStream, TransportError> {
        let (ours, stream) = duplex(self.buffer_size_bytes);
        let peer_address = PeerAddress::Unix;
        let accepted = Accepted {
            stream,
            peer_name: self.peer_name,
            peer_address,
            transport: Transport::Tls,
        };
        let sent = self.queue.send(accepted).await;
        sent.map_err(|_| TransportError::Closed {
            operation: "opening a stream",
        })?;
        Ok(ours)
    }
}

/// The listening end of a [`pair`].
#[derive(Debug)]
pub struct MemoryAcceptor {
    opened: mpsc::Receiver<Accepted<DuplexStream>>,
}

impl Acceptor for MemoryAcceptor {
    type Stream = DuplexStream;

    async fn accept(&mut self) -> Result<Accepted<DuplexStream>, TransportError> {
        self.opened.recv().await.ok_or(TransportError::Closed {
            operation: "accepting",
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use uuid::Uuid;

    use super::*;
    use crate::name::Role;

    #[tokio::test]
    async fn what_is_opened_is_accepted_and_joined() {
        let peer_name = PeerName {
            clone_id: Uuid::nil(),
            role: Role::Source,
        };
        let (connector, mut acceptor) = pair(64, peer_name);
        let mut ours = connector.open().await.unwrap();
        let mut theirs = acceptor.accept().await.unwrap();
        assert_eq!(theirs.peer_name, peer_name);
        ours.write_all(b"over").await.unwrap();
        drop((ours, connector));
        let mut text = String::new();
        theirs.stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "over");
        assert!(matches!(
            acceptor.accept().await,
            Err(TransportError::Closed { .. })
        ));
    }
}
