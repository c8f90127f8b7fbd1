//! Whatever comes as a compressed payload, it becomes so many bytes as its header says or an error, and no byte beyond is
//! touched; and what is compressed comes back.
//!
//! An input is a codec (1 byte), the length that the header says (3), and the compressed bytes.

use volferry_protocol::compression::{Codec, Compressor, Decompressor, Method, Wanted};

use super::input::Input;

/// The largest chunk.
const LEN_MAX: usize = 8 << 20;
const BEYOND: usize = 64;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let [codec, high, middle, low] = input.array();
    let codec = Codec::ALL[usize::from(codec) % Codec::ALL.len()];
    let len = u32::from_be_bytes([0, high, middle, low]) as usize;
    if len > LEN_MAX {
        return;
    }
    let compressed = input.rest();
    let mut room = vec![0xa5; len + BEYOND];
    let (plain, beyond) = room.split_at_mut(len);
    let mut decompressor = Decompressor::default();
    let first = decompressor.decompress(codec, compressed, plain);
    assert!(beyond.iter().all(|byte| *byte == 0xa5));
    if first.is_ok() {
        let mut again = vec![0; len];
        let second = decompressor.decompress(codec, compressed, &mut again);
        assert!(
            second.is_ok() && again == plain,
            "the same bytes become the same"
        );
    }
    let mut compressor = Compressor::default();
    for wanted in ["lz4", "zstd:1"] {
        let Ok(Wanted::Always(method)) = wanted.parse() else {
            panic!("{wanted} is a method");
        };
        comes_back(&mut compressor, &mut decompressor, method, compressed);
    }
}

fn comes_back(
    compressor: &mut Compressor,
    decompressor: &mut Decompressor,
    method: Method,
    plain: &[u8],
) {
    if let Some(compressed) = compressor.compress(method, plain) {
        assert!(compressed.len() < plain.len());
        let mut back = vec![0; plain.len()];
        let done = decompressor.decompress(method.codec(), compressed, &mut back);
        assert!(done.is_ok() && back == plain);
    }
}
