//! A data connection of the target: reads frames, and puts chunks into aligned buffers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use volferry_agent::control::read_exact;
use volferry_agent::failure;
use volferry_agent::progress::{End, Progress};
use volferry_protocol::compression::{Codecs, Compressed};
use volferry_protocol::digest::ChunkRefused;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::{DataFrame, FrameError, decode_zero_map};
use volferry_protocol::geometry::{ChunkRange, Geometry};
use volferry_protocol::range_set::ChunkSet;
use volferry_protocol::zero_map::{ENCODED_LEN_MAX, ZeroMap, encoded_len};
use volferry_storage::{Buffer, BufferPool};

use crate::writers::Incoming;

/// How long a source may leave a data connection open behind its last frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The chunks that a round has taken in, on any of its data connections, and those that it may not
/// bring: what is written already.
///
/// The ledger refuses a chunk that comes twice, but it learns of a chunk when it is written. Here
/// the second one is refused before it is, so that a chunk that was acknowledged stays as it is.
#[derive(Debug)]
pub(crate) struct Claims {
    chunks: Mutex<ChunkSet>,
}

impl Claims {
    /// What is written already may not come again.
    pub(crate) fn of(written: ChunkSet) -> Self {
        Self {
            chunks: Mutex::new(written),
        }
    }

    /// Takes in `chunks`.
    ///
    /// # Errors
    /// When any of them was taken in before.
    fn claim(&self, chunks: ChunkRange) -> Result<(), Failure> {
        let mut claimed = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if claimed.intersects(chunks) {
            let text = format!("the source sent {}", ChunkRefused::Known(chunks));
            return Err(Failure::new(FailureCode::Protocol, text));
        }
        claimed.insert(chunks);
        Ok(())
    }
}

/// What the frames of a data connection are, and how they become work for the writers.
pub(crate) trait Carried: Send + Sync + 'static {
    /// The bytes of a frame's header.
    type Header: AsMut<[u8]> + Send;

    /// A frame's header, decoded.
    type Frame: Send;

    /// What the writers take.
    type Incoming: Send + 'static;

    /// A header before it is read.
    const NO_HEADER: Self::Header;

    /// Checks and decodes a header.
    ///
    /// # Errors
    /// When it is none.
    fn decode(&self, header: &Self::Header) -> Result<Self::Frame, FrameError>;

    /// How many frames came before, if this one says that none follows.
    fn end(frame: &Self::Frame) -> Option<u64>;

    /// Takes in a frame with what follows its header; `None` when the session ends meanwhile.
    ///
    /// # Errors
    /// When the connection is lost, or what follows is not what belongs there.
    async fn take_in<S>(
        &self,
        frame: Self::Frame,
        stream: &mut S,
        buffers: &Buffers,
    ) -> Result<Option<Self::Incoming>, Failure>
    where
        S: AsyncRead + Unpin;
}

/// Where payloads come to, and the books of what comes.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    pub(crate) pool: BufferPool,
    pub(crate) progress: Arc<Progress>,
}

impl Buffers {
    /// A buffer, as soon as there is one; `None` when the session ends.
    async fn checkout(&self) -> Option<Buffer> {
        self.progress.volume_wait.time(self.pool.checkout()).await
    }

    /// A buffer of `len` bytes with the payload that follows, which is data where `zero_map` says so; `None`
    /// when the session ends.
    pub(crate) async fn receive<S>(
        &self,
        stream: &mut S,
        len: u32,
        zero_map: &ZeroMap,
        compressed: Option<Compressed>,
    ) -> Result<Option<Buffer>, Failure>
    where
        S: AsyncRead + Unpin,
    {
        let Some(mut bytes) = self.checkout().await else {
            return Ok(None);
        };
        bytes.set_len(len as usize);
        let payload_len = zero_map.data_len();
        self.progress.wait_turn(payload_len as usize).await;
        let payload = read_payload(stream, zero_map, compressed, &mut bytes);
        self.progress.peer_wait.time(payload).await?;
        let wire_len = compressed.map_or(payload_len, |compressed| compressed.len);
        self.progress.wire_bytes.add(wire_len.into());
        self.progress.count_payload(payload_len, compressed);
        Ok(Some(bytes))
    }

    /// Bytes that follow a header and are no payload.
    pub(crate) async fn read<S>(&self, stream: &mut S, bytes: &mut [u8]) -> Result<(), Failure>
    where
        S: AsyncRead + Unpin,
    {
        read_exact(stream, bytes).await?;
        self.progress.wire_bytes.add(bytes.len() as u64);
        Ok(())
    }
}

/// One data connection of a session.
#[derive(Debug)]
pub(crate) struct DataConnection<T: Carried> {
    pub(crate) carried: T,
    pub(crate) queue: async_channel::Sender<T::Incoming>,
    pub(crate) buffers: Buffers,
}

impl<T: Carried> DataConnection<T> {
    /// Receives until the source ends the connection in order. Gives the number of frames that
    /// went to the writers.
    ///
    /// # Errors
    /// When it ends otherwise, or carries what is no frame. Nothing of that frame is written.
    pub(crate) async fn run<S>(self, mut stream: S) -> Result<u64, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let progress = Arc::clone(&self.buffers.progress);
        let mut frames = 0;
        let mut header = T::NO_HEADER;
        loop {
            let reading = self.buffers.read(&mut stream, header.as_mut());
            progress.peer_wait.time(reading).await?;
            let frame = self.carried.decode(&header).map_err(bad_frame)?;
            match T::end(&frame) {
                None => {}
                Some(sent) if sent == frames => break,
                Some(sent) => return Err(bad_frame(FrameError::Missing { seen: frames, sent })),
            }
            let taken = self.carried.take_in(frame, &mut stream, &self.buffers);
            let Some(incoming) = taken.await? else {
                return Ok(frames); // the session ends
            };
            let sending = self.queue.send(incoming);
            if progress.volume_wait.time(sending).await.is_err() {
                return Ok(frames); // the session ends
            }
            frames += 1;
        }
        end_in_order(&mut stream).await;
        Ok(frames)
    }
}

/// Chunks of a volume.
#[derive(Debug)]
pub(crate) struct Chunks {
    pub(crate) geometry: Geometry,
    /// How payloads may be compressed.
    pub(crate) codecs: Codecs,
    pub(crate) claims: Arc<Claims>,
}

impl Carried for Chunks {
    type Header = [u8; DataFrame::HEADER_LEN];
    type Frame = DataFrame;
    type Incoming = Incoming;

    const NO_HEADER: Self::Header = [0; DataFrame::HEADER_LEN];

    fn decode(&self, header: &Self::Header) -> Result<DataFrame, FrameError> {
        DataFrame::decode(header, &self.geometry, self.codecs)
    }

    fn end(frame: &DataFrame) -> Option<u64> {
        match frame {
            DataFrame::End { frames } => Some(*frames),
            _ => None,
        }
    }

    async fn take_in<S>(
        &self,
        frame: DataFrame,
        stream: &mut S,
        buffers: &Buffers,
    ) -> Result<Option<Incoming>, Failure>
    where
        S: AsyncRead + Unpin,
    {
        Ok(match frame {
            DataFrame::Chunk {
                index,
                digest,
                payload_len,
                compressed,
            } => {
                self.claims.claim(ChunkRange::one(index))?;
                let chunk_len = self.geometry.chunk_len(index);
                let mut encoded = [0; ENCODED_LEN_MAX];
                let encoded = encoded
                    .get_mut(..encoded_len(chunk_len))
                    .unwrap_or_default();
                buffers.read(stream, encoded).await?;
                let zero_map =
                    decode_zero_map(encoded, index, chunk_len, payload_len).map_err(bad_frame)?;
                let received = buffers.receive(stream, chunk_len, &zero_map, compressed);
                received.await?.map(|bytes| Incoming::Chunk {
                    index,
                    digest,
                    zero_map,
                    bytes,
                    compressed,
                })
            }
            DataFrame::Zero { chunks } => {
                self.claims.claim(chunks)?;
                Some(Incoming::Zero(chunks))
            }
            DataFrame::Offer { index, digest } => {
                self.claims.claim(ChunkRange::one(index))?;
                let bytes = buffers.checkout().await;
                bytes.map(|bytes| Incoming::Offer {
                    index,
                    digest,
                    bytes,
                })
            }
            DataFrame::End { .. } => None, // nothing follows
        })
    }
}

/// Ends a data connection behind its last frame.
///
/// Closing this end tells the source that all has come; one that doesn't hear it takes the
/// connection for lost. It has closed its own end; what else it says is read into nothing, so that
/// the connection isn't reset.
async fn end_in_order<S>(stream: &mut S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _told = stream.shutdown().await;
    let mut rest = [0; 1];
    let _closed = tokio::time::timeout(CLOSE_TIMEOUT, stream.read(&mut rest)).await;
}

/// Fills a chunk: data from the connection, zeros where the map says so. What is compressed comes to its front,
/// for a writer to decompress.
async fn read_payload<S>(
    stream: &mut S,
    zero_map: &ZeroMap,
    compressed: Option<Compressed>,
    bytes: &mut Buffer,
) -> Result<(), Failure>
where
    S: AsyncRead + Unpin,
{
    if let Some(Compressed { len, .. }) = compressed {
        let front = bytes.get_mut(..len as usize).unwrap_or_default();
        return read_exact(stream, front).await;
    }
    for run in zero_map.runs() {
        let part = bytes.get_mut(run.indices()).unwrap_or_default();
        if run.is_zero {
            part.fill(0);
        } else {
            read_exact(stream, part).await?;
        }
    }
    Ok(())
}

pub(crate) fn bad_frame(error: FrameError) -> Failure {
    failure::of_frame(End::Source, &error)
}
