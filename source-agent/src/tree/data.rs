//! What a data connection of a tree session carries.

use std::io::IoSlice;

use volferry_protocol::compression::Compressed;
use volferry_protocol::tree::frame::TreeFrame;
use volferry_protocol::zero_map::ZeroMap;
use volferry_storage::tree::Outgoing;

use crate::data::{Carried, payload};

impl Carried for Outgoing {
    type Sent = ();

    fn encode_header(&self, header: &mut Vec<u8>) {
        match self {
            Self::Pack {
                number,
                digest,
                bytes,
                compressed,
            } => TreeFrame::Pack {
                number: *number,
                payload_len: len_of(bytes),
                digest: *digest,
                compressed: *compressed,
            }
            .encode(header),
            Self::Piece {
                file,
                index,
                digest,
                zero_map,
                bytes,
                compressed,
            } => {
                TreeFrame::Piece {
                    file: *file,
                    index: *index,
                    len: len_of(bytes),
                    payload_len: zero_map.data_len(),
                    digest: *digest,
                    compressed: *compressed,
                }
                .encode(header);
                zero_map.encode(header);
            }
            Self::ZeroPieces {
                file,
                index,
                count,
                last_len,
            } => TreeFrame::ZeroPieces {
                file: *file,
                index: *index,
                count: *count,
                last_len: *last_len,
            }
            .encode(header),
            Self::Begin {
                file,
                size,
                stamp,
                path,
            } => TreeFrame::Begin {
                file: *file,
                size: *size,
                stamp: *stamp,
                path_len: len_of(path),
            }
            .encode(header),
            Self::Probe { file, index, count } => TreeFrame::Probe {
                file: *file,
                index: *index,
                count: *count,
            }
            .encode(header),
            Self::SamePieces { file, index, count } => TreeFrame::SamePieces {
                file: *file,
                index: *index,
                count: *count,
            }
            .encode(header),
        }
    }

    fn payload(&self) -> Vec<IoSlice<'_>> {
        match self {
            Self::Pack {
                bytes, compressed, ..
            } => payload(&ZeroMap::all_data(len_of(bytes)), bytes, *compressed),
            Self::Begin { path, .. } => vec![IoSlice::new(path)],
            Self::Piece {
                zero_map,
                bytes,
                compressed,
                ..
            } => payload(zero_map, bytes, *compressed),
            Self::ZeroPieces { .. } | Self::Probe { .. } | Self::SamePieces { .. } => Vec::new(),
        }
    }

    fn payload_len(&self) -> u32 {
        match self {
            Self::Pack { bytes, .. } => len_of(bytes),
            Self::Piece { zero_map, .. } => zero_map.data_len(),
            _ => 0,
        }
    }

    fn compressed(&self) -> Option<Compressed> {
        match self {
            Self::Pack { compressed, .. } | Self::Piece { compressed, .. } => *compressed,
            _ => None,
        }
    }

    fn travels(&self) -> bool {
        true
    }

    fn encode_end(frames: u64, header: &mut Vec<u8>) {
        TreeFrame::End { frames }.encode(header);
    }
}

/// Bytes of a buffer, which holds at most a pack or a piece.
fn len_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}
