//! What the data connections of a tree session carry: packs and pieces, and what is said about them.

use tokio::io::AsyncRead;
use volferry_protocol::compression::Codecs;
use volferry_protocol::failure::Failure;
use volferry_protocol::frame::FrameError;
use volferry_protocol::tree::frame::TreeFrame;
use volferry_protocol::zero_map::{ENCODED_LEN_MAX, ZeroMap, encoded_len};

use super::writers::Incoming;
use crate::data::{Buffers, Carried, bad_frame};

/// Files of a tree.
#[derive(Debug)]
pub(super) struct Files {
    /// How payloads may be compressed.
    pub(super) codecs: Codecs,
}

impl Carried for Files {
    type Header = [u8; TreeFrame::HEADER_LEN];
    type Frame = TreeFrame;
    type Incoming = Incoming;

    const NO_HEADER: Self::Header = [0; TreeFrame::HEADER_LEN];

    fn decode(&self, header: &Self::Header) -> Result<TreeFrame, FrameError> {
        TreeFrame::decode(header, self.codecs)
    }

    fn end(frame: &TreeFrame) -> Option<u64> {
        match frame {
            TreeFrame::End { frames } => Some(*frames),
            _ => None,
        }
    }

    async fn take_in<S>(
        &self,
        frame: TreeFrame,
        stream: &mut S,
        buffers: &Buffers,
    ) -> Result<Option<Incoming>, Failure>
    where
        S: AsyncRead + Unpin,
    {
        let compressed = frame.compressed();
        Ok(match frame {
            TreeFrame::End { .. } => None, // nothing follows
            TreeFrame::ZeroPieces {
                file,
                index,
                count,
                last_len,
            } => Some(Incoming::ZeroPieces {
                file,
                index,
                count,
                last_len,
            }),
            TreeFrame::Begin {
                file,
                size,
                stamp,
                path_len,
            } => {
                let mut path = vec![0; path_len as usize];
                buffers.read(stream, &mut path).await?;
                Some(Incoming::Begin {
                    file,
                    size,
                    stamp,
                    path,
                })
            }
            TreeFrame::Probe { file, index, count } => Some(Incoming::Probe { file, index, count }),
            TreeFrame::SamePieces { file, index, count } => {
                Some(Incoming::SamePieces { file, index, count })
            }
            TreeFrame::Pack {
                number,
                payload_len,
                digest,
                ..
            } => {
                let zero_map = ZeroMap::all_data(payload_len);
                let received = buffers.receive(stream, payload_len, &zero_map, compressed);
                received.await?.map(|bytes| Incoming::Pack {
                    number,
                    digest,
                    bytes,
                    compressed,
                })
            }
            TreeFrame::Piece {
                file,
                index,
                payload_len,
                len,
                digest,
                ..
            } => {
                let mut encoded = [0; ENCODED_LEN_MAX];
                let encoded = encoded.get_mut(..encoded_len(len)).unwrap_or_default();
                buffers.read(stream, encoded).await?;
                let zero_map = ZeroMap::decode(encoded, len)
                    .filter(|map| map.data_len() == payload_len)
                    .ok_or_else(|| bad_frame(FrameError::Piece))?;
                let received = buffers.receive(stream, len, &zero_map, compressed);
                received.await?.map(|bytes| Incoming::Piece {
                    file,
                    index,
                    digest,
                    zero_map,
                    bytes,
                    compressed,
                })
            }
        })
    }
}
