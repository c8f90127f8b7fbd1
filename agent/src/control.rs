//! The control connection of a session: messages in and out, on any stream.
//!
//! Two tasks own the two directions, so that the session's owner never waits for the peer: it sends
//! into a bounded queue and takes messages as they come.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::ControlFrame;
use volferry_protocol::message::Message;
use volferry_transport::TransportError;

use crate::failure;
use crate::progress::End;

/// Messages that may wait in either direction. The conversation is slow; a peer that doesn't read
/// sixteen of them has stopped reading.
const QUEUE_LEN: usize = 16;

/// How long an end waits for the peer to close after the last message was said. TCP throws data
/// away when a connection is closed over unread bytes, so that the one who speaks last waits.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an end waits for its own last bytes to leave, once nothing is expected from the peer any more: a
/// round trip around the world.
const WRITTEN_TIMEOUT: Duration = Duration::from_millis(300);

/// One end of a control connection.
#[derive(Debug)]
pub struct Control {
    outbox: mpsc::Sender<Message>,
    inbox: mpsc::Receiver<Result<Message, Failure>>,
    writer: JoinHandle<()>,
    /// Gives whether the peer ended in order.
    reader: JoinHandle<bool>,
}

impl Control {
    /// Starts to talk to `peer` over `stream`, behind its preamble.
    pub fn start<S>(stream: S, peer: End) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read_half, write_half) = tokio::io::split(stream);
        let (outbox, to_write) = mpsc::channel(QUEUE_LEN);
        let (received, inbox) = mpsc::channel(QUEUE_LEN);
        Self {
            outbox,
            inbox,
            writer: tokio::spawn(write_messages(write_half, to_write)),
            reader: tokio::spawn(read_messages(read_half, peer, received)),
        }
    }

    /// Sends `message` as soon as the peer takes it.
    ///
    /// # Errors
    /// When the peer has stopped reading, or is gone.
    pub fn send(&self, message: Message) -> Result<(), Failure> {
        self.outbox.try_send(message).map_err(|_full| {
            Failure::new(
                FailureCode::Disconnected,
                "the peer no longer reads its messages",
            )
        })
    }

    /// The peer's next message. Dropping the future loses none.
    ///
    /// # Errors
    /// When the connection ended, or carried what is no message.
    pub async fn receive(&mut self) -> Result<Message, Failure> {
        self.inbox.recv().await.unwrap_or_else(|| Err(ended()))
    }

    /// Sends what waits, closes this end, and waits for a moment until the peer has closed its own.
    /// Says whether it has: then it has heard all that was said.
    pub async fn close(self) -> bool {
        let Self {
            outbox,
            mut inbox,
            mut writer,
            mut reader,
        } = self;
        drop(outbox);
        let goodbye = async {
            while inbox.recv().await.is_some() {}
            (&mut reader).await.unwrap_or(false)
        };
        let is_closed = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
        // Over QUIC the end of this direction is acknowledged by the peer, not by its kernel, and a peer
        // that has heard all may be gone by then.
        let _written = tokio::time::timeout(WRITTEN_TIMEOUT, &mut writer).await;
        writer.abort();
        reader.abort();
        is_closed.unwrap_or(false)
    }
}

async fn write_messages<S: AsyncWrite>(
    mut stream: WriteHalf<S>,
    mut queue: mpsc::Receiver<Message>,
) {
    while let Some(message) = queue.recv().await {
        let frame = match ControlFrame::encode(&message) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(message = message.name(), %error, "a message can't be sent");
                break;
            }
        };
        // A failed write shows at the reading end too, with its reason (a TLS alert).
        if stream.write_all(&frame).await.is_err() || stream.flush().await.is_err() {
            break;
        }
    }
    let _closed = stream.shutdown().await;
}

/// Reads until the connection ends. Says whether it ended in order, between two messages.
async fn read_messages<S: AsyncRead>(
    mut stream: ReadHalf<S>,
    peer: End,
    received: mpsc::Sender<Result<Message, Failure>>,
) -> bool {
    loop {
        let mut header = [0; ControlFrame::HEADER_LEN];
        let [first, ..] = &mut header;
        let begun = stream.read(std::slice::from_mut(first)).await;
        let is_ended = matches!(begun, Ok(0));
        let message = match begun {
            Ok(0) => Err(ended()),
            Ok(_) => read_rest(&mut stream, peer, header, 1).await,
            Err(error) => Err(read_failed(error)),
        };
        let failed = message.as_ref().err().map(|failure| failure.code);
        if received.send(message).await.is_err() {
            return is_ended;
        }
        match failed {
            None => {}
            // What else it says is read into nothing until it closes: closing over unread bytes
            // would throw away what it is told.
            Some(FailureCode::Protocol) => {
                let _closed = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                return false;
            }
            Some(_) => return is_ended,
        }
    }
}

/// Reads one message.
///
/// # Errors
/// When the connection ends, or carries what is no message.
pub async fn read_message(
    stream: &mut (impl AsyncRead + Unpin),
    peer: End,
) -> Result<Message, Failure> {
    read_rest(stream, peer, [0; ControlFrame::HEADER_LEN], 0).await
}

/// Reads one message, of whose header `have` bytes were read.
async fn read_rest(
    stream: &mut (impl AsyncRead + Unpin),
    peer: End,
    mut header: [u8; ControlFrame::HEADER_LEN],
    have: usize,
) -> Result<Message, Failure> {
    read_exact(stream, header.get_mut(have..).unwrap_or_default()).await?;
    let bad = |error| failure::of_frame(peer, &error);
    let len = ControlFrame::message_len(header).map_err(bad)?;
    let mut json = vec![0; len];
    read_exact(stream, &mut json).await?;
    ControlFrame::decode(&json).map_err(bad)
}

/// Fills `bytes` from a connection.
///
/// # Errors
/// When the connection ends before, with its reason.
pub async fn read_exact(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut [u8],
) -> Result<(), Failure> {
    match stream.read_exact(bytes).await {
        Ok(_) => Ok(()),
        Err(error) => Err(read_failed(error)),
    }
}

fn read_failed(error: std::io::Error) -> Failure {
    failure::of_transport(&TransportError::from_io("reading from the peer", error))
}

/// The connection ended where a message should have come.
fn ended() -> Failure {
    failure::of_transport(&TransportError::Closed {
        operation: "waiting for a message",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_said_arrives_before_the_end() {
        let (left, right) = tokio::io::duplex(64);
        let (left, mut right) = (
            Control::start(left, End::Target),
            Control::start(right, End::Source),
        );
        for _ in 0..QUEUE_LEN {
            left.send(Message::Ping).unwrap();
        }
        let closing = tokio::spawn(left.close());
        for _ in 0..QUEUE_LEN {
            assert_eq!(right.receive().await, Ok(Message::Ping));
        }
        let end = right.receive().await.unwrap_err();
        assert_eq!(end.code, FailureCode::Disconnected);
        right.close().await;
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn garbage_is_the_peers_fault() {
        for garbage in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{}", b"\0\0\0\x04null"] {
            let (mut left, right) = tokio::io::duplex(64);
            let mut control = Control::start(right, End::Source);
            left.write_all(garbage).await.unwrap();
            assert_eq!(
                control.receive().await.unwrap_err().code,
                FailureCode::Protocol
            );
        }
    }

    #[tokio::test]
    async fn a_peer_that_stops_reading_is_noticed() {
        let (_left, right) = tokio::io::duplex(1);
        let control = Control::start(right, End::Source);
        let mut sent = 0;
        while control.send(Message::Ping).is_ok() {
            sent += 1;
            tokio::task::yield_now().await;
            assert!(sent < 100, "the queue has no bound");
        }
    }
}
