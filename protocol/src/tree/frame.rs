//! The frames of a data connection of a tree session.

use super::file_digest::PIECE_LEN;
use super::offer::{PROBE_PIECES_MAX, Stamp};
use crate::codec::Reader;
use crate::compression::{Codecs, Compressed};
use crate::digest::Digest;
use crate::frame::{FrameError, decode_compressed};
use crate::geometry::VOLUME_SIZE_MAX;

/// Bytes of the largest pack.
pub const PACK_LEN_MAX: u32 = 1 << 20;

/// The most pieces in one zero frame. Zeros cost no byte on the wire, but both ends hash them, and
/// between two frames the target tells its progress and can be ended.
pub const ZERO_PIECES_MAX: u32 = 256;

/// The most bytes of a path that are sent for messages.
pub const SHOWN_PATH_LEN_MAX: u32 = 4095;

/// Pieces of the largest file: 2^63 - 4096 bytes.
const PIECE_INDEX_MAX: u64 = VOLUME_SIZE_MAX / PIECE_LEN as u64;

const PACK_CONTEXT: &str = "volferry 2026-11-21 pack v1";

/// The header of a frame on a data connection of a tree session.
///
/// ```text
/// 0   1  3 = end, 4 = pack, 5 = piece, 6 = zero pieces, 7 = begin, 8 = probe, 9 = same pieces
/// 1   1  codec of the payload (pack or piece that is compressed), else 0
/// 2   2  0
/// 4   4  payload length in bytes (pack, piece, begin), else 0
/// 8   8  pack number (pack), frames sent before (end), else file id
/// 16  8  first piece index (piece, zero pieces, probe, same pieces), size in bytes (begin), else 0
/// 24  4  pieces (zero pieces, probe, same pieces), bytes of the payload on the wire (pack or piece that is compressed),
///        else 0
/// 28  4  bytes of the piece (piece), of the last one (zero pieces), else 0
/// 32 32  digest of the pack (pack), chaining value of the piece (piece), stamp of the file in its
///        first half (begin), else 0
/// ```
///
/// A pack's payload is its records. That of a begin is the beginning of the file's path, for people.
/// A piece goes on with its zero map and its payload: the piece's
/// blocks that are not zero, in order. The payload of a pack or a piece may be compressed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeFrame {
    /// Records.
    Pack {
        /// Which of the session's packs, from 0.
        number: u64,
        /// Bytes of its records, at least 1.
        payload_len: u32,
        /// The digest of these bytes.
        digest: Digest,
        /// How these follow; `None` as they are.
        compressed: Option<Compressed>,
    },
    /// A piece of a large file that holds data.
    Piece {
        /// The file, by the number that its record bears.
        file: u64,
        /// Which of its pieces.
        index: u64,
        /// Bytes of the piece, at least 1; only the last of a file may be short.
        len: u32,
        /// Bytes of its blocks that are not zero; 1 to `len`.
        payload_len: u32,
        /// The chaining value of the piece.
        digest: Digest,
        /// How these follow the zero map; `None` as they are.
        compressed: Option<Compressed>,
    },
    /// Pieces of a large file that hold only zeros.
    ZeroPieces {
        /// The file.
        file: u64,
        /// The first of them.
        index: u64,
        /// How many.
        count: u32,
        /// Bytes of the last of them.
        last_len: u32,
    },
    /// A large file is about to come in pieces.
    Begin {
        /// The file.
        file: u64,
        /// Bytes of its content.
        size: u64,
        /// Which state of the file it is.
        stamp: Stamp,
        /// Bytes of its path that follow, for messages only; at most [`SHOWN_PATH_LEN_MAX`].
        path_len: u32,
    },
    /// The chaining values of pieces that the target holds are asked for.
    Probe {
        /// The file, by the number that the target gave it.
        file: u64,
        /// The first of them.
        index: u64,
        /// How many.
        count: u32,
    },
    /// Pieces that the target holds are as they should be.
    SamePieces {
        /// The file.
        file: u64,
        /// The first of them.
        index: u64,
        /// How many.
        count: u32,
    },
    /// Nothing follows on this connection.
    End {
        /// How many frames came before on this connection.
        frames: u64,
    },
}

impl TreeFrame {
    /// Bytes of a header.
    pub const HEADER_LEN: usize = 64;
    const NO_DIGEST: Digest = Digest([0; 32]);

    /// Appends the wire form of the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (codec, wire_len) = Compressed::encode(self.compressed());
        let (kind, payload_len, number, index, count, len, digest) = match *self {
            Self::End { frames } => (3, 0, frames, 0, 0, 0, Self::NO_DIGEST),
            Self::Pack {
                number,
                payload_len,
                digest,
                ..
            } => (4, payload_len, number, 0, wire_len, 0, digest),
            Self::Piece {
                file,
                index,
                len,
                payload_len,
                digest,
                ..
            } => (5, payload_len, file, index, wire_len, len, digest),
            Self::ZeroPieces {
                file,
                index,
                count,
                last_len,
            } => (6, 0, file, index, count, last_len, Self::NO_DIGEST),
            Self::Begin {
                file,
                size,
                stamp,
                path_len,
            } => {
                let mut digest = Self::NO_DIGEST;
                let (head, _) = digest.0.split_at_mut(Stamp::LEN);
                head.copy_from_slice(&stamp.0);
                (7, path_len, file, size, 0, 0, digest)
            }
            Self::Probe { file, index, count } => (8, 0, file, index, count, 0, Self::NO_DIGEST),
            Self::SamePieces { file, index, count } => {
                (9, 0, file, index, count, 0, Self::NO_DIGEST)
            }
        };
        out.extend([kind, codec, 0, 0]);
        out.extend(payload_len.to_be_bytes());
        out.extend(number.to_be_bytes());
        out.extend(index.to_be_bytes());
        out.extend(count.to_be_bytes());
        out.extend(len.to_be_bytes());
        out.extend(digest.0);
    }

    /// How the payload travels, where not as it is.
    #[must_use]
    pub const fn compressed(&self) -> Option<Compressed> {
        match *self {
            Self::Pack { compressed, .. } | Self::Piece { compressed, .. } => compressed,
            _ => None,
        }
    }

    /// Reads a header in a session that uses `codecs`: after that, every length is bounded.
    ///
    /// # Errors
    /// When the bytes are no header, or not for this session.
    pub fn decode(bytes: &[u8; Self::HEADER_LEN], codecs: Codecs) -> Result<Self, FrameError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8()?;
        let codec = reader.u8()?;
        let reserved: [u8; 2] = reader.array()?;
        let payload_len = reader.u32()?;
        let number = reader.u64()?;
        let index = reader.u64()?;
        let count = reader.u32()?;
        let len = reader.u32()?;
        let digest = Digest(reader.array()?);
        let no_digest = digest == Self::NO_DIGEST;
        let mut halves = Reader::new(&digest.0);
        let (stamp, rest): (_, [u8; 16]) = (Stamp(halves.array()?), halves.array()?);
        // One frame, one form: what a kind has no use for is zero.
        let is_unused_zero = match kind {
            3 => payload_len == 0 && index == 0 && count == 0 && len == 0 && no_digest,
            4 => index == 0 && len == 0,
            5 => true,
            6 => payload_len == 0 && no_digest,
            7 => count == 0 && len == 0 && rest == [0; 16],
            8 | 9 => payload_len == 0 && len == 0 && no_digest,
            other => return Err(FrameError::Kind(other)),
        };
        let may_be_compressed = matches!(kind, 4 | 5);
        if reserved != [0; 2] || !is_unused_zero || (codec != 0 && !may_be_compressed) {
            return Err(FrameError::Reserved);
        }
        let is_len = |len: u32, len_max: u32| len > 0 && len <= len_max;
        let pieces = if may_be_compressed { 0 } else { count };
        let last = index.saturating_add(u64::from(pieces));
        if kind != 7 && last > PIECE_INDEX_MAX {
            return Err(FrameError::Piece);
        }
        match kind {
            3 => Ok(Self::End { frames: number }),
            4 if is_len(payload_len, PACK_LEN_MAX) => Ok(Self::Pack {
                number,
                payload_len,
                digest,
                compressed: decode_compressed(codec, count.into(), payload_len, codecs)?,
            }),
            5 if is_len(len, PIECE_LEN) && is_len(payload_len, len) => Ok(Self::Piece {
                file: number,
                index,
                len,
                payload_len,
                digest,
                compressed: decode_compressed(codec, count.into(), payload_len, codecs)?,
            }),
            6 if is_len(len, PIECE_LEN) && is_len(count, ZERO_PIECES_MAX) => Ok(Self::ZeroPieces {
                file: number,
                index,
                count,
                last_len: len,
            }),
            7 if index <= VOLUME_SIZE_MAX && payload_len <= SHOWN_PATH_LEN_MAX => Ok(Self::Begin {
                file: number,
                size: index,
                stamp,
                path_len: payload_len,
            }),
            8 if is_len(count, PROBE_PIECES_MAX) => Ok(Self::Probe {
                file: number,
                index,
                count,
            }),
            9 if is_len(count, PROBE_PIECES_MAX) => Ok(Self::SamePieces {
                file: number,
                index,
                count,
            }),
            _ => Err(FrameError::Piece),
        }
    }
}

/// The digest of a pack's payload.
#[must_use]
pub fn pack_digest(payload: &[u8]) -> Digest {
    Digest(blake3::derive_key(PACK_CONTEXT, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(frame: TreeFrame) -> [u8; TreeFrame::HEADER_LEN] {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        bytes.try_into().unwrap()
    }

    #[test]
    fn frames_survive_the_wire_and_nothing_else_does() {
        let digest = Digest([5; 32]);
        let pack = |payload_len| TreeFrame::Pack {
            number: 7,
            payload_len,
            digest,
            compressed: None,
        };
        let piece = |index, len, payload_len| TreeFrame::Piece {
            file: 1,
            index,
            len,
            payload_len,
            digest,
            compressed: None,
        };
        let zero = |index, count, last_len| TreeFrame::ZeroPieces {
            file: 1,
            index,
            count,
            last_len,
        };
        let begin = |size, path_len| TreeFrame::Begin {
            file: 1,
            size,
            stamp: Stamp([4; 16]),
            path_len,
        };
        let probe = |index, count| TreeFrame::Probe {
            file: 1,
            index,
            count,
        };
        for good in [
            pack(1),
            pack(PACK_LEN_MAX),
            piece(0, 1, 1),
            piece(PIECE_INDEX_MAX, PIECE_LEN, 4096),
            zero(3, 256, 1),
            begin(0, 0),
            begin(VOLUME_SIZE_MAX, SHOWN_PATH_LEN_MAX),
            probe(9, 64),
            TreeFrame::SamePieces {
                file: 1,
                index: PIECE_INDEX_MAX - 1,
                count: 1,
            },
            TreeFrame::End { frames: u64::MAX },
        ] {
            assert_eq!(TreeFrame::decode(&encoded(good), Codecs::NONE), Ok(good));
        }
        for bad in [
            pack(0),
            pack(PACK_LEN_MAX + 1),
            piece(0, 0, 0),
            piece(0, 5, 6),
            piece(0, 5, 0),
            piece(0, PIECE_LEN + 1, 1),
            piece(PIECE_INDEX_MAX + 1, 1, 1),
            zero(0, 0, 1),
            zero(0, 257, 1),
            zero(0, 1, 0),
            zero(u64::MAX, 1, 1),
            begin(VOLUME_SIZE_MAX + 1, 1),
            begin(1, SHOWN_PATH_LEN_MAX + 1),
            probe(0, 0),
            probe(0, 65),
            probe(PIECE_INDEX_MAX, 1),
        ] {
            assert_eq!(
                TreeFrame::decode(&encoded(bad), Codecs::NONE),
                Err(FrameError::Piece),
                "{bad:?}"
            );
        }
        let good = encoded(TreeFrame::End { frames: 1 });
        for at in [1, 2, 3, 7, 16, 24, 28, 63] {
            let mut bad = good;
            bad[at] = 1;
            assert_eq!(
                TreeFrame::decode(&bad, Codecs::NONE),
                Err(FrameError::Reserved),
                "byte {at}"
            );
        }
    }
}
