//! Data that compresses, deduplicates and punches like what people keep in volumes.
//!
//! A volume is cut into islands of 4 MiB, each data or a hole, and data into blocks of 4 KiB. A block
//! is a function of the seed and its number alone, so that any part of a volume can be made at any
//! time, by any thread, and is the same everywhere.

use std::fmt;
use std::str::FromStr;

/// Bytes of a block: what storage deduplicates at best, and the grain of zeros.
pub const BLOCK_LEN: usize = 4096;

/// Bytes that are data or a hole as one: large enough to keep a disk streaming, small enough that
/// holes are met often.
pub const ISLAND_LEN: u64 = 4 << 20;

/// What a volume's data is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Profile {
    /// Nothing compresses, nothing comes twice, no holes.
    Random,
    /// A virtual machine's disk: 60 % holes; of the data a tenth are zeros that were written, 64 KiB at
    /// once, a tenth of the rest blocks that came before, and half of what is left is text.
    Vm,
    /// Pages of a database: a header, rows, and free space within; one page of twenty is still empty.
    Database,
    /// Words.
    Text,
    /// Random data in this part of the volume, holes in the rest.
    Sparse(f64),
}

/// The part of a virtual machine's disk that was ever written.
const VM_USED: f64 = 0.4;

/// Of a hundred groups of its data those that are zeros, and of a hundred blocks of the rest those
/// that came before.
const VM_ZERO_PERCENT: u64 = 10;
const VM_SHARED_PERCENT: u64 = 10;

/// Blocks that are zeros together.
const VM_ZERO_BLOCKS: u64 = 16;

/// How many different blocks come again and again.
const SHARED_BLOCKS: u64 = 256;

/// Of a hundred pages of a database those that hold nothing yet.
const EMPTY_PAGE_PERCENT: u64 = 5;

/// A profile with the seed that makes it reproducible.
#[derive(Clone, Copy, Debug)]
pub struct Generator {
    profile: Profile,
    seed: u64,
}

impl Generator {
    /// Makes data like `profile`, always the same for a seed.
    #[must_use]
    pub const fn new(profile: Profile, seed: u64) -> Self {
        Self { profile, seed }
    }

    /// Whether the island of this number is data. Of any volume the right part is, to an island.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "islands are few, and a part is from 0 to 1"
    )]
    pub fn is_data(&self, island: u64) -> bool {
        let used = match self.profile {
            Profile::Sparse(part) => part,
            Profile::Vm => VM_USED,
            Profile::Random | Profile::Database | Profile::Text => return true,
        };
        let before = |island: u64| (island as f64 * used) as u64;
        before(island + 1) > before(island)
    }

    /// Fills `bytes`, which begin with the block of number `first`.
    pub fn fill(&self, first: u64, bytes: &mut [u8]) {
        for (number, block) in (first..).zip(bytes.chunks_mut(BLOCK_LEN)) {
            self.fill_block(number, block);
        }
    }

    fn is_zero_group(&self, number: u64) -> bool {
        let group = number / VM_ZERO_BLOCKS;
        Random::of(self.seed.rotate_left(32), group).below(100) < VM_ZERO_PERCENT
    }

    fn fill_block(&self, number: u64, block: &mut [u8]) {
        let mut random = Random::of(self.seed, number);
        match self.profile {
            Profile::Random | Profile::Sparse(_) => random.fill(block),
            Profile::Text => fill_text(&mut random, block),
            Profile::Database => fill_page(&mut random, number, block),
            Profile::Vm if self.is_zero_group(number) => block.fill(0),
            Profile::Vm => match random.below(100) {
                draw if draw < VM_SHARED_PERCENT => {
                    let shared = random.below(SHARED_BLOCKS);
                    Random::of(!self.seed, shared).fill(block);
                }
                draw if draw % 2 == 0 => fill_text(&mut random, block),
                _ => random.fill(block),
            },
        }
    }
}

/// Words of a language with an alphabet and a few hundred words, the first of which are most common.
fn fill_text(random: &mut Random, block: &mut [u8]) {
    const WORDS: u64 = 512;
    let mut at = 0;
    while at < block.len() {
        // The smaller of two draws: some words come often, most seldom.
        let word = random.below(WORDS).min(random.below(WORDS));
        let mut letters = Random::of(0x7465_7874, word);
        let len = 2 + letters.below_byte(9);
        for _ in 0..len {
            if let Some(byte) = block.get_mut(at) {
                *byte = b'a' + u8::try_from(letters.below(26)).unwrap_or(0);
            }
            at += 1;
        }
        if let Some(byte) = block.get_mut(at) {
            *byte = if random.below(12) == 0 { b'\n' } else { b' ' };
        }
        at += 1;
    }
}

/// A page: a header with its number, rows of a key, counters and some text, and room at its end.
fn fill_page(random: &mut Random, number: u64, block: &mut [u8]) {
    const ROW_LEN: usize = 96;
    const KEY_LEN: usize = 24;
    const HEADER_LEN: usize = 32;
    block.fill(0);
    if random.below(100) < EMPTY_PAGE_PERCENT {
        return;
    }
    if let Some(header) = block.get_mut(..8) {
        header.copy_from_slice(&(number + 1).to_le_bytes());
    }
    let filled = block.len() * (60 + random.below_byte(31)) / 100;
    let rows = block.get_mut(HEADER_LEN.min(filled)..filled);
    for (index, row) in rows.unwrap_or_default().chunks_mut(ROW_LEN).enumerate() {
        let (key, rest) = row.split_at_mut(KEY_LEN.min(row.len()));
        random.fill(key);
        let (counter, text) = rest.split_at_mut(8.min(rest.len()));
        if let Some(low) = counter.first_mut() {
            *low = u8::try_from(index % 256).unwrap_or(0);
        }
        fill_text(random, text);
    }
}

/// `SplitMix64` (Steele, Lea, Flood, 2014): random enough for data that nothing compresses.
#[derive(Clone, Copy, Debug)]
struct Random(u64);

impl Random {
    /// A stream of its own for each number.
    fn of(seed: u64, number: u64) -> Self {
        let mut streams = Self(seed);
        let mut stream = Self(streams.next() ^ number);
        Self(stream.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// The same for what is small, as a length.
    fn below_byte(&mut self, bound: u8) -> usize {
        u8::try_from(self.below(bound.into())).map_or(0, usize::from)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            part.copy_from_slice(word.get(..part.len()).unwrap_or_default());
        }
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "random" => Ok(Self::Random),
            "vm" => Ok(Self::Vm),
            "database" => Ok(Self::Database),
            "text" => Ok(Self::Text),
            _ => {
                let part = text
                    .strip_prefix("sparse=")
                    .and_then(|part| part.parse().ok());
                let part = part.filter(|part| (0.0..=1.0).contains(part));
                part.map(Self::Sparse).ok_or_else(|| {
                    format!("{text:?} is none of random, vm, database, text, sparse=PART with a part from 0 to 1")
                })
            }
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Vm => f.write_str("vm"),
            Self::Database => f.write_str("database"),
            Self::Text => f.write_str("text"),
            Self::Sparse(part) => write!(f, "sparse={part}"),
        }
    }
}

#[cfg(test)]
mod tests;
