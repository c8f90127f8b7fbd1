//! Which blocks of a chunk hold only zeros.
//!
//! One bit for each block of [`BLOCK_SIZE`] bytes, so 256 bits for a chunk of 1 MiB. Only the runs
//! of blocks that hold data travel; the target makes the others zero. A short last block counts as
//! a block.

use crate::geometry::{BLOCK_SIZE, ChunkSize};

/// 64-bit words of the largest map.
const WORDS: usize = (ChunkSize::MAX.blocks() / 64) as usize;

/// Bytes of the largest encoded map.
pub const ENCODED_LEN_MAX: usize = WORDS * 8;

/// One bit for each block of a chunk: set when the block holds only zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroMap {
    words: [u64; WORDS],
    chunk_len: u32,
}

/// A run of neighbouring blocks of one kind, as byte offsets inside the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Offset of the run's first byte in the chunk.
    pub start: u32,
    /// Offset behind the run's last byte.
    pub end: u32,
    /// Whether all of its bytes are zero.
    pub is_zero: bool,
}

impl Run {
    /// Bytes of the run.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the run holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The run as indices into the chunk's bytes.
    #[must_use]
    pub const fn indices(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl ZeroMap {
    /// Looks at every block of `chunk`.
    ///
    /// # Panics
    /// When the chunk is longer than [`ChunkSize::MAX`].
    #[must_use]
    pub fn scan(chunk: &[u8]) -> Self {
        let mut map = Self::all_data(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
        for (block, bytes) in chunk.chunks(BLOCK_SIZE as usize).enumerate() {
            if is_zero(bytes) {
                map.set_zero(block);
            }
        }
        map
    }

    /// The map of a chunk of `chunk_len` bytes in which every block holds data.
    ///
    /// # Panics
    /// When the chunk is longer than [`ChunkSize::MAX`].
    #[must_use]
    pub fn all_data(chunk_len: u32) -> Self {
        assert!(
            chunk_len <= ChunkSize::MAX.bytes(),
            "a chunk is at most {:?}",
            ChunkSize::MAX
        );
        Self {
            words: [0; WORDS],
            chunk_len,
        }
    }

    /// Reads a map from the wire; `None` unless `bytes` has exactly the length that a chunk of
    /// `chunk_len` bytes needs and no bit is set behind its last block.
    #[must_use]
    pub fn decode(bytes: &[u8], chunk_len: u32) -> Option<Self> {
        if chunk_len > ChunkSize::MAX.bytes() || bytes.len() != encoded_len(chunk_len) {
            return None;
        }
        let mut map = Self::all_data(chunk_len);
        for (word, part) in map.words.iter_mut().zip(bytes.chunks(8)) {
            *word = part
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        let beyond = map.zero_blocks_from(map.block_count());
        (!beyond).then_some(map)
    }

    /// Appends the map's wire form: bit `n % 8` of byte `n / 8` stands for block `n`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let bytes = self.words.iter().flat_map(|word| word.to_le_bytes());
        out.extend(bytes.take(encoded_len(self.chunk_len)));
    }

    /// Whether no block holds data.
    #[must_use]
    pub fn is_all_zero(&self) -> bool {
        self.data_len() == 0
    }

    /// Bytes in blocks that hold data: the length of the payload that travels.
    #[must_use]
    pub fn data_len(&self) -> u32 {
        self.runs().filter(|run| !run.is_zero).map(Run::len).sum()
    }

    /// Bytes of the chunk.
    #[must_use]
    pub const fn chunk_len(&self) -> u32 {
        self.chunk_len
    }

    /// The chunk's runs in order; neighbours differ in kind, and together they cover the chunk.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let blocks = self.block_count();
        let mut block = 0;
        std::iter::from_fn(move || {
            if block >= blocks {
                return None;
            }
            let first = block;
            let is_zero = self.is_zero_block(first);
            block = self.run_end(first, is_zero).min(blocks);
            Some(Run {
                start: self.offset_of(first),
                end: self.offset_of(block),
                is_zero,
            })
        })
    }

    /// Moves the payload of `chunk` to its front; what is behind it then is undefined.
    ///
    /// # Panics
    /// When `chunk` is not as long as the map's.
    pub fn gather(&self, chunk: &mut [u8]) {
        self.check_len(chunk);
        let mut end: usize = 0;
        for run in self.runs().filter(|run| !run.is_zero) {
            if run.indices().start != end {
                chunk.copy_within(run.indices(), end);
            }
            end = end.saturating_add(run.indices().len());
        }
    }

    /// Makes `chunk` of its payload, which stands at its front.
    ///
    /// # Panics
    /// When `chunk` is not as long as the map's.
    pub fn spread(&self, chunk: &mut [u8]) {
        self.check_len(chunk);
        let runs: Vec<_> = self.runs().collect();
        let mut end = self.data_len() as usize;
        // From the last, which overwrites nothing that has yet to move.
        for run in runs.into_iter().rev() {
            let place = run.indices();
            if run.is_zero {
                chunk.get_mut(place).unwrap_or_default().fill(0);
            } else {
                let start = end.saturating_sub(place.len());
                if start != place.start {
                    chunk.copy_within(start..end, place.start);
                }
                end = start;
            }
        }
    }

    fn check_len(&self, chunk: &[u8]) {
        assert!(
            chunk.len() == self.chunk_len as usize,
            "a map belongs to a chunk of its length"
        );
    }

    fn block_count(&self) -> usize {
        self.chunk_len.div_ceil(BLOCK_SIZE) as usize
    }

    /// The offset of `block` in the chunk, cut to the chunk's end.
    fn offset_of(&self, block: usize) -> u32 {
        let offset = (block as u64).saturating_mul(u64::from(BLOCK_SIZE));
        u32::try_from(offset).map_or(self.chunk_len, |offset| offset.min(self.chunk_len))
    }

    fn set_zero(&mut self, block: usize) {
        if let Some(word) = self.words.get_mut(block / 64) {
            *word |= 1 << (block % 64);
        }
    }

    fn is_zero_block(&self, block: usize) -> bool {
        self.words
            .get(block / 64)
            .is_some_and(|word| (word >> (block % 64)) & 1 == 1)
    }

    /// The first block at or behind `first` that is of the other kind; may lie behind the chunk.
    fn run_end(&self, first: usize, is_zero: bool) -> usize {
        let mut block = first;
        while let Some(word) = self.words.get(block / 64) {
            let same = if is_zero { *word } else { !*word };
            let left_in_word = 64_usize.saturating_sub(block % 64);
            let run = ((same >> (block % 64)).trailing_ones() as usize).min(left_in_word);
            block = block.saturating_add(run);
            if run < left_in_word {
                break;
            }
        }
        block
    }

    fn zero_blocks_from(&self, block: usize) -> bool {
        self.run_end(block, false) < WORDS * 64
    }
}

/// Bytes of the wire form of a map for a chunk of `chunk_len` bytes.
#[must_use]
pub const fn encoded_len(chunk_len: u32) -> usize {
    chunk_len.div_ceil(BLOCK_SIZE).div_ceil(8) as usize
}

/// Whether all bytes are zero. Data shows itself in the first few bytes, so the scan of a dense
/// chunk costs next to nothing.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    /// Wide enough for the compiler to use vector registers, small enough to stop early.
    const STRIDE: usize = 128;
    let mut strides = bytes.chunks_exact(STRIDE);
    strides.all(|stride| stride.iter().fold(0, |seen, byte| seen | byte) == 0)
        && bytes
            .chunks_exact(STRIDE)
            .remainder()
            .iter()
            .all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: usize = BLOCK_SIZE as usize;

    /// A chunk with a byte set in each block named, at a place that the block's number decides.
    fn chunk(len: usize, data_blocks: &[usize]) -> Vec<u8> {
        let mut chunk = vec![0; len];
        for block in data_blocks {
            let start = block * BLOCK;
            let end = (start + BLOCK).min(len);
            if start < end {
                chunk[start + block * 997 % (end - start)] = 1;
            }
        }
        chunk
    }

    #[test]
    fn a_payload_is_gathered_and_spread_again() {
        let patterns = [
            0x0000, 0xffff, 0x0001, 0x8000, 0xa5a5, 0x5a5a, 0x0ff0, 0xf00f_u16,
        ];
        for (pattern, tail) in patterns.iter().flat_map(|p| [(*p, 4096), (*p, 7)]) {
            let block = |n: usize| {
                vec![
                    if pattern >> n & 1 == 1 {
                        n as u8 + 1
                    } else {
                        0
                    };
                    4096
                ]
            };
            let mut chunk: Vec<u8> = (0..16).flat_map(block).collect();
            chunk.truncate(15 * 4096 + tail);
            let map = ZeroMap::scan(&chunk);
            let data = map.runs().filter(|run| !run.is_zero);
            let payload = data
                .map(|run| &chunk[run.indices()])
                .collect::<Vec<_>>()
                .concat();
            let mut moved = chunk.clone();
            map.gather(&mut moved);
            assert_eq!(moved[..payload.len()], payload, "{pattern:016b}");
            moved[payload.len()..].fill(0xa5);
            map.spread(&mut moved);
            assert_eq!(moved, chunk, "{pattern:016b}");
        }
    }

    proptest! {
        /// The map says of each block what looking at its bytes says.
        #[test]
        fn agrees_with_the_bytes(
            len in 0usize..(1 << 20),
            data_blocks in prop::collection::vec(0usize..256, 0..40),
        ) {
            let chunk = chunk(len, &data_blocks);
            let map = ZeroMap::scan(&chunk);
            let mut rebuilt = vec![0; len];
            let mut at = 0;
            let mut before = None;
            for run in map.runs() {
                prop_assert_eq!(run.start, at, "runs leave no gap");
                prop_assert!(before != Some(run.is_zero), "neighbours differ");
                prop_assert!(!run.is_empty());
                at = run.end;
                before = Some(run.is_zero);
                if !run.is_zero {
                    rebuilt[run.indices()].copy_from_slice(&chunk[run.indices()]);
                }
            }
            prop_assert_eq!(at as usize, len, "runs cover the chunk");
            prop_assert_eq!(&rebuilt, &chunk, "only zeros were left out");
            for (block, bytes) in chunk.chunks(BLOCK).enumerate() {
                prop_assert_eq!(map.is_zero_block(block), bytes.iter().all(|byte| *byte == 0));
            }
        }

        #[test]
        fn survives_the_wire(len in 0u32..=(8 << 20), zeros in prop::collection::vec(0usize..2048, 0..99)) {
            let mut map = ZeroMap::all_data(len);
            let blocks = map.block_count();
            for block in zeros.into_iter().filter(|block| *block < blocks) {
                map.set_zero(block);
            }
            let mut bytes = Vec::new();
            map.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), encoded_len(len));
            prop_assert_eq!(ZeroMap::decode(&bytes, len), Some(map));
        }
    }

    #[test]
    fn a_map_of_another_length_is_refused() {
        assert!(ZeroMap::decode(&[0; 32], 1 << 20).is_some());
        assert!(ZeroMap::decode(&[0; 31], 1 << 20).is_none());
        assert!(ZeroMap::decode(&[0; 33], 1 << 20).is_none());
        assert!(
            ZeroMap::decode(&[0b10], 4096).is_none(),
            "a bit behind the last block"
        );
        assert!(ZeroMap::decode(&[0b01], 4096).is_some());
        assert!(ZeroMap::decode(&[0; 4096], u32::MAX).is_none());
    }
}
