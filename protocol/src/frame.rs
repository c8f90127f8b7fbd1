//! The frames of a session: how each looks on the wire, and what bounds it.
//!
//! Every connection (with QUIC: every stream) starts with a [`Preamble`]. On the control connection
//! [control frames](ControlFrame) follow, on a data connection [data frames](DataFrame).
//! docs/protocol.md is the normative text; `tests/golden.rs` pins the bytes.

use crate::codec::{Reader, Truncated};
use crate::compression::{Codec, Codecs, Compressed};
use crate::digest::Digest;
use crate::geometry::{ChunkIndex, ChunkRange, Geometry};
use crate::message::Message;
use crate::zero_map;

/// The application protocol of ALPN (RFC 7301): it names the version of everything below.
pub const ALPN: &[u8] = b"volferry/1";

/// What a session's data connections must show: a secret of the control connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionToken(pub [u8; 32]);

impl std::fmt::Debug for SessionToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionToken(…)")
    }
}

/// The first bytes of every connection: what it is for.
///
/// ```text
/// 0  4  "VFRY"
/// 4  1  version: 1
/// 5  1  1 = control, 2 = data
/// 6  2  number of the data connection, from 0; 0 for control
/// 8 32  session token; zeros for control
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preamble {
    /// The session's control connection.
    Control,
    /// One of its data connections.
    Data {
        /// The connection's number in the session, from 0.
        number: u16,
        /// The token of the `Welcome`.
        token: SessionToken,
    },
}

impl Preamble {
    /// Bytes of a preamble.
    pub const LEN: usize = 40;
    const MAGIC: [u8; 4] = *b"VFRY";
    const VERSION: u8 = 1;

    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, number, token) = match self {
            Self::Control => (1, 0, [0; 32]),
            Self::Data { number, token } => (2, *number, token.0),
        };
        let mut bytes = Vec::with_capacity(Self::LEN);
        bytes.extend(Self::MAGIC);
        bytes.extend([Self::VERSION, kind]);
        bytes.extend(number.to_be_bytes());
        bytes.extend(token);
        bytes
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// When the bytes are not such a preamble.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(bytes);
        let magic = reader.array()?;
        if magic != Self::MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let version = reader.u8()?;
        if version != Self::VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = reader.u8()?;
        let number = reader.u16()?;
        let token = SessionToken(reader.array()?);
        match kind {
            1 if number == 0 && token.0 == [0; 32] => Ok(Self::Control),
            1 => Err(FrameError::Reserved),
            2 => Ok(Self::Data { number, token }),
            other => Err(FrameError::Kind(other)),
        }
    }
}

/// A frame of the control connection: a length of 4 bytes, then a [`Message`] as JSON (RFC 8259).
#[derive(Debug)]
pub struct ControlFrame;

impl ControlFrame {
    /// Bytes of the length before each message.
    pub const HEADER_LEN: usize = 4;
    /// The longest message, in bytes: room for the durable set of a session that was cut while
    /// thousands of ranges were open.
    pub const MESSAGE_LEN_MAX: usize = 1 << 20;

    /// The wire form of `message`.
    ///
    /// # Errors
    /// When the message is longer than [`Self::MESSAGE_LEN_MAX`].
    pub fn encode(message: &Message) -> Result<Vec<u8>, FrameError> {
        let json = serde_json::to_vec(message).map_err(|_bad| FrameError::Message)?;
        let len = u32::try_from(json.len()).unwrap_or(u32::MAX);
        Self::message_len(len.to_be_bytes())?;
        let mut bytes = Vec::with_capacity(json.len().saturating_add(Self::HEADER_LEN));
        bytes.extend(len.to_be_bytes());
        bytes.extend(json);
        Ok(bytes)
    }

    /// Reads the length before a message: how many bytes to read next.
    ///
    /// # Errors
    /// When the message would be longer than [`Self::MESSAGE_LEN_MAX`].
    pub fn message_len(header: [u8; Self::HEADER_LEN]) -> Result<usize, FrameError> {
        let len = u32::from_be_bytes(header);
        match usize::try_from(len) {
            Ok(len) if len <= Self::MESSAGE_LEN_MAX => Ok(len),
            _ => Err(FrameError::MessageTooLong(len)),
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// When the bytes are no message that this version knows.
    pub fn decode(json: &[u8]) -> Result<Message, FrameError> {
        serde_json::from_slice(json).map_err(|_bad| FrameError::Message)
    }
}

/// The header of a frame on a data connection.
///
/// ```text
/// 0   1  1 = chunk, 2 = zero, 3 = end, 4 = offer
/// 1   1  codec of the payload (chunk that is compressed), else 0
/// 2   2  0
/// 4   4  payload length in bytes (chunk), else 0
/// 8   8  first chunk index (chunk, zero, offer), else 0
/// 16  8  chunks (zero), frames sent before on this connection (end), bytes of the payload on the wire (chunk that
///        is compressed), else 0
/// 24 32  chunk digest (chunk, offer), else 0
/// ```
///
/// A chunk frame goes on with its zero map (as long as the chunk needs) and its payload: the
/// chunk's blocks that are not zero, in order, as they are or compressed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFrame {
    /// One chunk that holds data.
    Chunk {
        /// Which chunk.
        index: ChunkIndex,
        /// The digest of the whole chunk, zeros included.
        digest: Digest,
        /// Bytes of its blocks that are not zero; 1 to the chunk's length.
        payload_len: u32,
        /// How these follow the zero map; `None` as they are.
        compressed: Option<Compressed>,
    },
    /// Chunks that hold only zeros.
    Zero {
        /// Which chunks; at least one.
        chunks: ChunkRange,
    },
    /// Nothing follows on this connection.
    End {
        /// How many frames came before on this connection.
        frames: u64,
    },
    /// One chunk that holds data, by its digest alone: it is sent where the target's differs.
    Offer {
        /// Which chunk.
        index: ChunkIndex,
        /// The digest of the whole chunk, zeros included.
        digest: Digest,
    },
}

impl DataFrame {
    /// Bytes of a header.
    pub const HEADER_LEN: usize = 56;
    const NO_DIGEST: Digest = Digest([0; 32]);

    /// Appends the wire form of the header.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut codec = 0;
        let (kind, payload_len, first, count, digest) = match *self {
            Self::Chunk {
                index,
                digest,
                payload_len,
                compressed,
            } => {
                let len;
                (codec, len) = Compressed::encode(compressed);
                (1, payload_len, index.0, u64::from(len), digest)
            }
            Self::Zero { chunks } => (2, 0, chunks.start.0, chunks.count(), Self::NO_DIGEST),
            Self::End { frames } => (3, 0, 0, frames, Self::NO_DIGEST),
            Self::Offer { index, digest } => (4, 0, index.0, 0, digest),
        };
        out.extend([kind, codec, 0, 0]);
        out.extend(payload_len.to_be_bytes());
        out.extend(first.to_be_bytes());
        out.extend(count.to_be_bytes());
        out.extend(digest.0);
    }

    /// Reads a header for a volume of `geometry` in a session that uses `codecs`: after that, every index lies in the
    /// volume and every length is bounded by the chunk's.
    ///
    /// # Errors
    /// When the bytes are no header, or not for this volume or session.
    pub fn decode(
        bytes: &[u8; Self::HEADER_LEN],
        geometry: &Geometry,
        codecs: Codecs,
    ) -> Result<Self, FrameError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8()?;
        let codec = reader.u8()?;
        let reserved: [u8; 2] = reader.array()?;
        let payload_len = reader.u32()?;
        let first = reader.u64()?;
        let count = reader.u64()?;
        let digest = Digest(reader.array()?);
        // One frame, one form: what a kind has no use for is zero.
        let is_unused_zero = match kind {
            1 => true,
            2 => codec == 0 && payload_len == 0 && digest == Self::NO_DIGEST,
            3 => codec == 0 && payload_len == 0 && first == 0 && digest == Self::NO_DIGEST,
            4 => codec == 0 && payload_len == 0 && count == 0,
            other => return Err(FrameError::Kind(other)),
        };
        if reserved != [0; 2] || !is_unused_zero {
            return Err(FrameError::Reserved);
        }
        match kind {
            1 => {
                let index = ChunkIndex(first);
                let chunk_len = geometry.chunk_len(index);
                if !geometry.holds(ChunkRange::one(index)) {
                    return Err(FrameError::Outside(ChunkRange::one(index)));
                }
                if payload_len == 0 || payload_len > chunk_len {
                    return Err(FrameError::PayloadLen {
                        index,
                        payload_len,
                        chunk_len,
                    });
                }
                Ok(Self::Chunk {
                    index,
                    digest,
                    payload_len,
                    compressed: decode_compressed(codec, count, payload_len, codecs)?,
                })
            }
            2 => {
                let end = ChunkIndex(first.saturating_add(count));
                let chunks = ChunkRange {
                    start: ChunkIndex(first),
                    end,
                };
                if !geometry.holds(chunks) {
                    return Err(FrameError::Outside(chunks));
                }
                Ok(Self::Zero { chunks })
            }
            4 => {
                let index = ChunkIndex(first);
                if !geometry.holds(ChunkRange::one(index)) {
                    return Err(FrameError::Outside(ChunkRange::one(index)));
                }
                Ok(Self::Offer { index, digest })
            }
            _ => Ok(Self::End { frames: count }),
        }
    }
}

/// Reads what a header says of a payload's compression.
pub(crate) fn decode_compressed(
    codec: u8,
    len: u64,
    payload_len: u32,
    codecs: Codecs,
) -> Result<Option<Compressed>, FrameError> {
    let compressed = Compressed::decode(codec, len, payload_len);
    let compressed = compressed.ok_or(FrameError::Compressed { codec, len })?;
    match compressed {
        Some(Compressed { codec, .. }) if !codecs.holds(codec) => {
            Err(FrameError::NotAgreed { codec })
        }
        usable => Ok(usable),
    }
}

/// Reads the zero map of a chunk frame.
///
/// # Errors
/// When it is not a map for a chunk of `chunk_len` bytes with `payload_len` bytes of data.
pub fn decode_zero_map(
    bytes: &[u8],
    index: ChunkIndex,
    chunk_len: u32,
    payload_len: u32,
) -> Result<zero_map::ZeroMap, FrameError> {
    let map = zero_map::ZeroMap::decode(bytes, chunk_len).ok_or(FrameError::ZeroMap { index })?;
    if map.data_len() != payload_len {
        return Err(FrameError::ZeroMap { index });
    }
    Ok(map)
}

/// Bytes of a peer that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the frame takes.
    #[error("a frame is cut short")]
    Truncated(#[from] Truncated),
    /// A connection that starts with something else.
    #[error("the connection starts with {0:02x?}, not as a volferry connection")]
    Magic([u8; 4]),
    /// A preamble of another version.
    #[error("preamble version {0} is not known")]
    Version(u8),
    /// A kind of connection or frame that this version doesn't know.
    #[error("kind {0} is not known")]
    Kind(u8),
    /// Bytes that must be zero are not.
    #[error("reserved bytes are not zero")]
    Reserved,
    /// A message that is longer than allowed.
    #[error("a message of {0} bytes is too long")]
    MessageTooLong(u32),
    /// A message that can't be read.
    #[error("a message is not valid")]
    Message,
    /// Chunks that the volume doesn't have.
    #[error("chunks {0} lie outside the volume")]
    Outside(ChunkRange),
    /// A payload that can't belong to its chunk.
    #[error("{payload_len} bytes of payload for chunk {index} of {chunk_len} bytes")]
    PayloadLen {
        /// The chunk.
        index: ChunkIndex,
        /// What the header says.
        payload_len: u32,
        /// Bytes of the chunk.
        chunk_len: u32,
    },
    /// A zero map that doesn't fit its chunk or its payload.
    #[error("the zero map of chunk {index} does not fit its payload")]
    ZeroMap {
        /// The chunk.
        index: ChunkIndex,
    },
    /// A payload that is compressed in a way, or to a length, that there isn't.
    #[error("a payload is said to have {len} bytes by codec {codec}")]
    Compressed {
        /// What the header says.
        codec: u8,
        /// What it says of the length.
        len: u64,
    },
    /// A payload that is compressed in a way that the session doesn't use.
    #[error("a payload is compressed by {}, on which the ends have not agreed", codec.as_str())]
    NotAgreed {
        /// The way.
        codec: Codec,
    },
    /// A pack or a piece of a length or place that none has.
    #[error("a pack or a piece has a length or a place that none has")]
    Piece,
    /// Frames are missing before the end of a connection.
    #[error("the connection ended after {seen} frames where {sent} were sent")]
    Missing {
        /// Frames that arrived.
        seen: u64,
        /// Frames that the peer says it sent.
        sent: u64,
    },
}
