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
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, Geometry};
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

/// One data connection of a session.
#[derive(Debug)]
pub(crate) struct DataConnection {
    pub(crate) geometry: Geometry,
    /// How payloads may be compressed.
    pub(crate) codecs: Codecs,
    pub(crate) claims: Arc<Claims>,
    pub(crate) pool: BufferPool,
    pub(crate) queue: async_channel::Sender<Incoming>,
    pub(crate) progress: Arc<Progress>,
}

impl DataConnection {
    /// Receives until the source ends the connection in order. Gives the number of frames that
    /// went to the writers.
    ///
    /// # Errors
    /// When it ends otherwise, or carries what is no frame. Nothing of that frame is written.
    pub(crate) async fn run<S>(self, mut stream: S) -> Result<u64, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut frames = 0;
        let mut header = [0; DataFrame::HEADER_LEN];
        loop {
            self.progress
                .peer_wait
                .time(read_exact(&mut stream, &mut header))
                .await?;
            self.progress.wire_bytes.add(header.len() as u64);
            let frame = DataFrame::decode(&header, &self.geometry, self.codecs);
            let incoming = match frame.map_err(bad_frame)? {
                DataFrame::Chunk {
                    index,
                    digest,
                    payload_len,
                    compressed,
                } => {
                    self.claims.claim(ChunkRange::one(index))?;
                    let zero_map = self.read_zero_map(&mut stream, index, payload_len).await?;
                    let Some(mut bytes) =
                        self.progress.volume_wait.time(self.pool.checkout()).await
                    else {
                        return Ok(frames); // the session ends
                    };
                    bytes.set_len(self.geometry.chunk_len(index) as usize);
                    self.progress.wait_turn(payload_len as usize).await;
                    let payload = read_payload(&mut stream, &zero_map, compressed, &mut bytes);
                    self.progress.peer_wait.time(payload).await?;
                    count_payload(&self.progress, payload_len, compressed);
                    Incoming::Chunk {
                        index,
                        digest,
                        zero_map,
                        bytes,
                        compressed,
                    }
                }
                DataFrame::Zero { chunks } => {
                    self.claims.claim(chunks)?;
                    Incoming::Zero(chunks)
                }
                DataFrame::Offer { index, digest } => {
                    self.claims.claim(ChunkRange::one(index))?;
                    let Some(bytes) = self.progress.volume_wait.time(self.pool.checkout()).await
                    else {
                        return Ok(frames); // the session ends
                    };
                    Incoming::Offer {
                        index,
                        digest,
                        bytes,
                    }
                }
                DataFrame::End { frames: sent } if sent == frames => break,
                DataFrame::End { frames: sent } => {
                    return Err(bad_frame(FrameError::Missing { seen: frames, sent }));
                }
            };
            if self
                .progress
                .volume_wait
                .time(self.queue.send(incoming))
                .await
                .is_err()
            {
                return Ok(frames); // the session ends
            }
            frames += 1;
        }
        end_in_order(&mut stream).await;
        Ok(frames)
    }

    async fn read_zero_map<S>(
        &self,
        stream: &mut S,
        index: ChunkIndex,
        payload_len: u32,
    ) -> Result<ZeroMap, Failure>
    where
        S: AsyncRead + Unpin,
    {
        let chunk_len = self.geometry.chunk_len(index);
        let mut encoded = [0; ENCODED_LEN_MAX];
        let encoded = encoded
            .get_mut(..encoded_len(chunk_len))
            .unwrap_or_default();
        read_exact(stream, encoded).await?;
        self.progress.wire_bytes.add(encoded.len() as u64);
        decode_zero_map(encoded, index, chunk_len, payload_len).map_err(bad_frame)
    }
}

/// Ends a data connection behind its last frame.
///
/// Closing this end tells the source that all has come; one that doesn't hear it takes the
/// connection for lost. It has closed its own end; what else it says is read into nothing, so that
/// the connection isn't reset.
pub(crate) async fn end_in_order<S>(stream: &mut S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _told = stream.shutdown().await;
    let mut rest = [0; 1];
    let _closed = tokio::time::timeout(CLOSE_TIMEOUT, stream.read(&mut rest)).await;
}

/// A payload was received.
pub(crate) fn count_payload(progress: &Progress, len: u32, compressed: Option<Compressed>) {
    let wire_len = compressed.map_or(len, |compressed| compressed.len);
    progress.wire_bytes.add(wire_len.into());
    progress.count_payload(len, compressed);
}

/// Fills a chunk: data from the connection, zeros where the map says so. What is compressed comes to its front,
/// for a writer to decompress.
pub(crate) async fn read_payload<S>(
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
