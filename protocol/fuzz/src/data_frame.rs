//! A header has one form and stays inside its volume; a zero map has one form, covers its chunk,
//! and agrees with the payload. A compressed payload is shorter than it says it becomes.
//!
//! An input is a volume size (8 bytes), the power of its chunk size (1), a header (56), and the
//! zero map.

use volferry_protocol::compression::Codecs;
use volferry_protocol::frame::{DataFrame, decode_zero_map};
use volferry_protocol::geometry::{BLOCK_SIZE, ChunkSize, Geometry};
use volferry_protocol::zero_map::{ENCODED_LEN_MAX, ZeroMap, encoded_len};

use super::input::Input;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let volume_size = u64::from_be_bytes(input.array());
    let chunk_size = ChunkSize::MIN.bytes() << input.below(8);
    let chunk_size = ChunkSize::new(chunk_size).expect("64 KiB to 8 MiB");
    let Ok(geometry) = Geometry::new(volume_size, chunk_size) else {
        return;
    };
    let header: [u8; DataFrame::HEADER_LEN] = input.array();
    let frame = DataFrame::decode(&header, &geometry, Codecs::all());
    let plain = DataFrame::decode(&header, &geometry, Codecs::NONE);
    let Ok(frame) = frame else {
        assert!(plain.is_err());
        return;
    };
    let mut again = Vec::new();
    frame.encode(&mut again);
    assert_eq!(again, header, "{frame:?}");
    match frame {
        DataFrame::Chunk {
            index,
            payload_len,
            compressed,
            ..
        } => {
            assert_eq!(plain.is_ok(), compressed.is_none());
            assert!(compressed.is_none_or(|to| (1..payload_len).contains(&to.len)));
            let chunk_len = geometry.chunk_len(index);
            assert!((1..=chunk_len).contains(&payload_len));
            assert!(chunk_len <= chunk_size.bytes());
            assert!(encoded_len(chunk_len) <= ENCODED_LEN_MAX);
            if let Ok(map) = decode_zero_map(input.rest(), index, chunk_len, payload_len) {
                check_map(&map, input.rest(), chunk_len, payload_len);
            }
        }
        DataFrame::Zero { chunks } => {
            assert!(chunks.start < chunks.end);
            assert!(chunks.end.0 <= geometry.chunk_count());
        }
        DataFrame::End { .. } => {}
        DataFrame::Offer { index, .. } => assert!(index.0 < geometry.chunk_count()),
    }
}

fn check_map(map: &ZeroMap, bytes: &[u8], chunk_len: u32, payload_len: u32) {
    let mut again = Vec::new();
    map.encode(&mut again);
    assert_eq!(again, bytes);
    assert_eq!(map.data_len(), payload_len);
    let mut end = 0;
    let mut before = None;
    for run in map.runs() {
        assert_eq!(run.start, end, "runs leave nothing out");
        assert_ne!(before, Some(run.is_zero), "neighbours differ");
        for block in (run.start / BLOCK_SIZE)..run.end.div_ceil(BLOCK_SIZE) {
            let bit = bytes[block as usize / 8] >> (block % 8) & 1;
            assert_eq!(bit == 1, run.is_zero, "block {block}");
        }
        end = run.end;
        before = Some(run.is_zero);
    }
    assert_eq!(end, chunk_len, "runs cover the chunk");
}
