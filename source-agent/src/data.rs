//! A data connection of the source: takes what was read from the queue, and frames it.

use std::io::IoSlice;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use volferry_agent::failure;
use volferry_agent::progress::Progress;
use volferry_protocol::compression::Compressed;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::{DataFrame, Preamble};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange};
use volferry_protocol::tree::frame::TreeFrame;
use volferry_protocol::zero_map::{ENCODED_LEN_MAX, ZeroMap};
use volferry_transport::{Connector, TransportError};

use crate::readers::Outgoing;

/// What was handed to the transport.
#[derive(Debug)]
pub(crate) enum Sent {
    Chunk {
        index: ChunkIndex,
        digest: Digest,
        data_len: u32,
    },
    Zero(ChunkRange),
    Offer {
        index: ChunkIndex,
        digest: Digest,
    },
    /// Nothing was: the target has the chunk.
    Known {
        index: ChunkIndex,
        digest: Digest,
    },
}

/// What a data connection carries: it frames itself.
pub(crate) trait Carried: Send + Sync + 'static {
    /// What is told of it once it was handed to the transport.
    type Sent: Send + 'static;

    /// Appends the frame's header, and says what the frame brings.
    fn encode_header(&self, header: &mut Vec<u8>) -> Self::Sent;

    /// The bytes that follow the header, in parts.
    fn payload(&self) -> Vec<IoSlice<'_>>;

    /// Bytes of its content that travel, as they are without compression.
    fn payload_len(&self) -> u32;

    /// How they travel, where compressed.
    fn compressed(&self) -> Option<Compressed>;

    /// Whether it travels at all.
    fn travels(&self) -> bool;

    /// Appends the header that says that no frame follows.
    fn encode_end(frames: u64, header: &mut Vec<u8>);
}

/// One data connection of a session.
#[derive(Debug)]
pub(crate) struct DataConnection<T: Carried> {
    pub(crate) preamble: Preamble,
    pub(crate) queue: async_channel::Receiver<T>,
    pub(crate) sent: mpsc::Sender<T::Sent>,
    pub(crate) progress: Arc<Progress>,
}

impl<T: Carried> DataConnection<T> {
    /// Connects, and sends as [`Self::run_over`] does.
    pub(crate) async fn run<C: Connector>(self, connector: Arc<C>) -> Result<u64, Failure> {
        let opened = connector.open().await;
        let stream = opened.map_err(|error| lost(&error))?;
        self.run_over(stream).await
    }

    /// Sends until the queue ends, and closes in order, which the target answers. Gives the bytes that
    /// were sent.
    pub(crate) async fn run_over<S>(self, mut stream: S) -> Result<u64, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let sent = self.send_all(&mut stream).await;
        sent.map_err(|error| lost(&TransportError::from_io("sending to the target", error)))
    }

    async fn send_all<S>(&self, stream: &mut S) -> std::io::Result<u64>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut frames = 0;
        // The target does not wait long for it, and the first frame may take its time.
        stream.write_all(&self.preamble.encode()).await?;
        stream.flush().await?;
        let mut wire_bytes = Preamble::LEN as u64;
        self.progress.wire_bytes.add(wire_bytes);
        let header_len = TreeFrame::HEADER_LEN.max(DataFrame::HEADER_LEN) + ENCODED_LEN_MAX;
        let mut header = Vec::with_capacity(header_len);
        while let Some(outgoing) = self.progress.volume_wait.time(self.next(stream)).await? {
            self.progress.queued.set(self.queue.len());
            let sent = outgoing.encode_header(&mut header);
            if outgoing.travels() {
                let mut slices = vec![IoSlice::new(&header)];
                slices.extend(outgoing.payload());
                let frame_len = slices.iter().map(|slice| slice.len()).sum();
                self.write_frame(stream, &mut slices, frame_len).await?;
                header.clear();
                frames += 1;
                wire_bytes += frame_len as u64;
                self.progress.wire_bytes.add(frame_len as u64);
                self.progress
                    .count_payload(outgoing.payload_len(), outgoing.compressed());
            }
            drop(outgoing);
            if self.sent.send(sent).await.is_err() {
                break;
            }
        }
        T::encode_end(frames, &mut header);
        wire_bytes += header.len() as u64;
        self.progress.wire_bytes.add(header.len() as u64);
        stream.write_all(&header).await?;
        stream.shutdown().await?;
        // The target closes its end when it has read the last frame. Without that, the tail may be
        // lost on its way, and it would wait for it behind our finish.
        let mut rest = [0; 1];
        match stream.read(&mut rest).await? {
            0 => Ok(wire_bytes),
            _ => Err(sent_back()),
        }
    }
}

impl<T: Carried> DataConnection<T> {
    /// What is to be sent next; nothing at the end. A target may refuse a connection that this end
    /// took for granted, and what is awaited from it then never comes: so its end is noticed even where
    /// there is nothing to send.
    async fn next<S: AsyncRead + Unpin>(&self, stream: &mut S) -> std::io::Result<Option<T>> {
        let mut rest = [0; 1];
        tokio::select! {
            biased;
            outgoing = self.queue.recv() => Ok(outgoing.ok()),
            read = stream.read(&mut rest) => Err(match read {
                Ok(0) => std::io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => sent_back(),
                Err(error) => error,
            }),
        }
    }
}

/// Why a data connection ended. Who answers at the target's address is judged where the control connection
/// is dialed: here it costs the session and no more, since credentials are renewed at one end first.
fn lost(error: &TransportError) -> Failure {
    let Failure { code, text } = failure::of_transport(error);
    match code {
        FailureCode::Identity | FailureCode::Protocol => {
            Failure::new(FailureCode::Disconnected, text)
        }
        code => Failure::new(code, text),
    }
}

fn sent_back() -> std::io::Error {
    std::io::Error::other("the target sent bytes on a data connection")
}

impl<T: Carried> DataConnection<T> {
    /// Writes a frame: at once, or in pieces as the bandwidth limit lets them go.
    async fn write_frame<S>(
        &self,
        stream: &mut S,
        mut slices: &mut [IoSlice<'_>],
        mut left: usize,
    ) -> std::io::Result<()>
    where
        S: AsyncWrite + Unpin,
    {
        let progress = &self.progress;
        while left > 0 {
            let Some(len) = progress.throttle.try_take(left) else {
                progress.throttle_wait.time(progress.throttle.wait()).await;
                continue;
            };
            let write = write_piece(stream, &mut slices, len);
            progress.peer_wait.time(write).await?;
            left -= len;
        }
        Ok(())
    }
}

impl Carried for Outgoing {
    type Sent = Sent;

    fn encode_header(&self, header: &mut Vec<u8>) -> Sent {
        match self {
            Self::Chunk {
                index,
                digest,
                zero_map,
                compressed,
                ..
            } => {
                let data_len = zero_map.data_len();
                DataFrame::Chunk {
                    index: *index,
                    digest: *digest,
                    payload_len: data_len,
                    compressed: *compressed,
                }
                .encode(header);
                zero_map.encode(header);
                Sent::Chunk {
                    index: *index,
                    digest: *digest,
                    data_len,
                }
            }
            Self::Zero(chunks) => {
                DataFrame::Zero { chunks: *chunks }.encode(header);
                Sent::Zero(*chunks)
            }
            Self::Offer { index, digest } => {
                let (index, digest) = (*index, *digest);
                DataFrame::Offer { index, digest }.encode(header);
                Sent::Offer { index, digest }
            }
            Self::Known { index, digest } => Sent::Known {
                index: *index,
                digest: *digest,
            },
        }
    }

    fn payload(&self) -> Vec<IoSlice<'_>> {
        match self {
            Self::Chunk {
                zero_map,
                bytes,
                compressed,
                ..
            } => payload(zero_map, bytes, *compressed),
            Self::Zero(_) | Self::Offer { .. } | Self::Known { .. } => Vec::new(),
        }
    }

    fn payload_len(&self) -> u32 {
        match self {
            Self::Chunk { zero_map, .. } => zero_map.data_len(),
            Self::Zero(_) | Self::Offer { .. } | Self::Known { .. } => 0,
        }
    }

    fn compressed(&self) -> Option<Compressed> {
        match self {
            Self::Chunk { compressed, .. } => *compressed,
            Self::Zero(_) | Self::Offer { .. } | Self::Known { .. } => None,
        }
    }

    fn travels(&self) -> bool {
        !matches!(self, Self::Known { .. })
    }

    fn encode_end(frames: u64, header: &mut Vec<u8>) {
        DataFrame::End { frames }.encode(header);
    }
}

/// What of `bytes` travels: the runs that hold data, or their compressed form at the front.
pub(crate) fn payload<'a>(
    zero_map: &ZeroMap,
    bytes: &'a [u8],
    compressed: Option<Compressed>,
) -> Vec<IoSlice<'a>> {
    if let Some(Compressed { len, .. }) = compressed {
        let front = bytes.get(..len as usize).unwrap_or_default();
        return vec![IoSlice::new(front)];
    }
    let data_runs = zero_map.runs().filter(|run| !run.is_zero);
    let parts = data_runs.filter_map(|run| bytes.get(run.indices()));
    parts.map(IoSlice::new).collect()
}

/// Writes the first `len` bytes of `slices`, in as few calls as the stream allows.
async fn write_piece<S>(
    stream: &mut S,
    slices: &mut &mut [IoSlice<'_>],
    mut len: usize,
) -> std::io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    while len > 0 {
        // The slices that are within the piece, or else a part of the first one.
        let mut end = 0;
        let whole = slices.iter().take_while(|slice| {
            end += slice.len();
            end <= len
        });
        let written = match (whole.count(), slices.first()) {
            (0, Some(first)) => {
                let part = first.get(..len).unwrap_or_default();
                stream.write(part).await?
            }
            (count, _) => {
                let whole = slices.get(..count).unwrap_or_default();
                stream.write_vectored(whole).await?
            }
        };
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(slices, written);
        len -= written;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use uuid::Uuid;
    use volferry_agent::progress::End;
    use volferry_protocol::frame::SessionToken;
    use volferry_transport::{PeerAddress, Refusal};

    use super::*;

    /// Lets every task come as far as it can.
    async fn settle() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    fn connection(
        queue: async_channel::Receiver<Outgoing>,
        sent: mpsc::Sender<<Outgoing as Carried>::Sent>,
    ) -> DataConnection<Outgoing> {
        DataConnection {
            preamble: Preamble::Data {
                number: 0,
                token: SessionToken([7; 32]),
            },
            queue,
            sent,
            progress: Arc::new(Progress::new(End::Source, Uuid::nil())),
        }
    }

    /// The target closes a connection that doesn't say soon what it is for, and a slow volume takes its
    /// time for the first frame.
    #[tokio::test]
    async fn a_connection_says_what_it_is_for_before_there_is_anything_to_send() {
        let (mut source, mut target) = duplex(4096);
        let (_outgoing, queue) = async_channel::bounded(1);
        let connection = connection(queue, mpsc::channel(1).0);
        let preamble = connection.preamble.encode();
        let _running = tokio::spawn(async move { connection.send_all(&mut source).await });
        let mut said = vec![0; preamble.len()];
        target.read_exact(&mut said).await.unwrap();
        assert_eq!(said, preamble);
    }

    #[test]
    fn who_answers_a_data_connection_ends_no_more_than_the_session() {
        let refused = TransportError::RejectedByPeer {
            address: PeerAddress::Unix,
            refusal: Refusal::UnknownCa,
        };
        assert_eq!(failure::of_transport(&refused).code, FailureCode::Identity);
        let failure = lost(&refused);
        assert_eq!(failure.code, FailureCode::Disconnected);
        assert!(failure.text.contains("authority"), "{failure}");
    }

    /// A target that refuses a connection may do so when the source takes it for granted, and waits for
    /// an answer to what it has sent or never sent on it.
    #[tokio::test]
    async fn a_connection_that_the_target_refuses_is_noticed_where_there_is_nothing_to_send() {
        for (sends_back, kind) in [
            (false, std::io::ErrorKind::UnexpectedEof),
            (true, std::io::ErrorKind::Other),
        ] {
            let (mut source, mut target) = duplex(4096);
            let (outgoing, queue) = async_channel::bounded::<Outgoing>(1);
            let (sent, mut told) = mpsc::channel(1);
            let connection = connection(queue, sent);
            let running = tokio::spawn(async move { connection.send_all(&mut source).await });
            let (index, digest) = (ChunkIndex(0), Digest([1; 32]));
            outgoing
                .try_send(Outgoing::Offer { index, digest })
                .unwrap();
            settle().await;
            assert!(told.try_recv().is_ok(), "what there is to send is sent");
            assert!(!running.is_finished(), "more may come");
            if sends_back {
                target.write_all(b"x").await.unwrap();
            } else {
                drop(target);
            }
            settle().await;
            assert!(running.is_finished(), "it waits for something to send");
            assert_eq!(running.await.unwrap().unwrap_err().kind(), kind);
        }
    }

    /// Takes a few bytes at each call.
    struct Narrow(Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            buf: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            let len = buf.len().min(7);
            self.0.extend(&buf[..len]);
            std::task::Poll::Ready(Ok(len))
        }

        fn poll_flush(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn poll_shutdown(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::task::Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn pieces_of_any_length_make_the_whole() {
        let bytes: Vec<u8> = (0..100).collect();
        for piece in 1..=100 {
            let mut slices = [
                IoSlice::new(&bytes[..10]),
                IoSlice::new(&[]),
                IoSlice::new(&bytes[10..11]),
                IoSlice::new(&bytes[11..]),
            ];
            let mut slices = &mut slices[..];
            let mut stream = Narrow(Vec::new());
            let mut left = bytes.len();
            while left > 0 {
                let len = piece.min(left);
                write_piece(&mut stream, &mut slices, len).await.unwrap();
                left -= len;
                assert_eq!(stream.0.len(), bytes.len() - left);
            }
            assert_eq!(stream.0, bytes, "in pieces of {piece}");
        }
    }
}
