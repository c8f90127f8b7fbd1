//! A data connection of a tree session: reads frames, and puts packs and pieces into buffers.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use volferry_agent::control::read_exact;
use volferry_agent::progress::Progress;
use volferry_protocol::compression::Codecs;
use volferry_protocol::failure::Failure;
use volferry_protocol::frame::FrameError;
use volferry_protocol::tree::frame::TreeFrame;
use volferry_protocol::zero_map::{ENCODED_LEN_MAX, ZeroMap, encoded_len};
use volferry_storage::BufferPool;

use super::writers::Incoming;
use crate::data::{bad_frame, count_payload, end_in_order, read_payload};

/// One data connection of a session.
#[derive(Debug)]
pub(super) struct DataConnection {
    /// How payloads may be compressed.
    pub(super) codecs: Codecs,
    pub(super) pool: BufferPool,
    pub(super) queue: async_channel::Sender<Incoming>,
    pub(super) progress: Arc<Progress>,
}

impl DataConnection {
    /// Receives until the source ends the connection in order. Gives the number of frames that
    /// went to the writers.
    ///
    /// # Errors
    /// When it ends otherwise, or carries what is no frame. Nothing of that frame is written.
    pub(super) async fn run<S>(self, mut stream: S) -> Result<u64, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut frames = 0;
        let mut header = [0; TreeFrame::HEADER_LEN];
        loop {
            self.progress
                .peer_wait
                .time(read_exact(&mut stream, &mut header))
                .await?;
            self.progress.wire_bytes.add(header.len() as u64);
            let frame = TreeFrame::decode(&header, self.codecs).map_err(bad_frame)?;
            let incoming = match frame {
                TreeFrame::End { frames: sent } if sent == frames => break,
                TreeFrame::End { frames: sent } => {
                    return Err(bad_frame(FrameError::Missing { seen: frames, sent }));
                }
                TreeFrame::ZeroPieces {
                    file,
                    index,
                    count,
                    last_len,
                } => Incoming::ZeroPieces {
                    file,
                    index,
                    count,
                    last_len,
                },
                TreeFrame::Begin {
                    file,
                    size,
                    stamp,
                    path_len,
                } => {
                    let mut path = vec![0; path_len as usize];
                    read_exact(&mut stream, &mut path).await?;
                    self.progress.wire_bytes.add(u64::from(path_len));
                    Incoming::Begin {
                        file,
                        size,
                        stamp,
                        path,
                    }
                }
                TreeFrame::Probe { file, index, count } => Incoming::Probe { file, index, count },
                TreeFrame::SamePieces { file, index, count } => {
                    Incoming::SamePieces { file, index, count }
                }
                TreeFrame::Pack { .. } | TreeFrame::Piece { .. } => {
                    match self.read_buffer(&mut stream, frame).await? {
                        Some(incoming) => incoming,
                        None => return Ok(frames), // the session ends
                    }
                }
            };
            let sending = self.queue.send(incoming);
            if self.progress.volume_wait.time(sending).await.is_err() {
                return Ok(frames); // the session ends
            }
            frames += 1;
        }
        end_in_order(&mut stream).await;
        Ok(frames)
    }

    /// Reads what follows the header of a pack or a piece; `None` when the session ends.
    async fn read_buffer<S>(
        &self,
        stream: &mut S,
        frame: TreeFrame,
    ) -> Result<Option<Incoming>, Failure>
    where
        S: AsyncRead + Unpin,
    {
        let (payload_len, zero_map, len) = match frame {
            TreeFrame::Pack { payload_len, .. } => {
                (payload_len, ZeroMap::all_data(payload_len), payload_len)
            }
            TreeFrame::Piece {
                payload_len, len, ..
            } => {
                let zero_map = self.read_zero_map(stream, len, payload_len).await?;
                (payload_len, zero_map, len)
            }
            _ => return Ok(None), // nothing follows
        };
        let Some(mut bytes) = self.progress.volume_wait.time(self.pool.checkout()).await else {
            return Ok(None);
        };
        bytes.set_len(len as usize);
        let compressed = frame.compressed();
        self.progress.wait_turn(payload_len as usize).await;
        let payload = read_payload(stream, &zero_map, compressed, &mut bytes);
        self.progress.peer_wait.time(payload).await?;
        count_payload(&self.progress, payload_len, compressed);
        Ok(match frame {
            TreeFrame::Pack { number, digest, .. } => Some(Incoming::Pack {
                number,
                digest,
                bytes,
                compressed,
            }),
            TreeFrame::Piece {
                file,
                index,
                digest,
                ..
            } => Some(Incoming::Piece {
                file,
                index,
                digest,
                zero_map,
                bytes,
                compressed,
            }),
            _ => None,
        })
    }

    async fn read_zero_map<S>(
        &self,
        stream: &mut S,
        len: u32,
        payload_len: u32,
    ) -> Result<ZeroMap, Failure>
    where
        S: AsyncRead + Unpin,
    {
        let mut encoded = [0; ENCODED_LEN_MAX];
        let encoded = encoded.get_mut(..encoded_len(len)).unwrap_or_default();
        read_exact(stream, encoded).await?;
        self.progress.wire_bytes.add(encoded.len() as u64);
        ZeroMap::decode(encoded, len)
            .filter(|map| map.data_len() == payload_len)
            .ok_or_else(|| bad_frame(FrameError::Piece))
    }
}
