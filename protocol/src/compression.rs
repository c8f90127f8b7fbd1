//! How payloads travel in fewer bytes than they have.
//!
//! The source chooses for each chunk, pack and piece by itself; the frame's header says which [`Codec`] it took, and the
//! target undoes it. Digests are of what was read, so they prove the result whatever happened on the way.
//! [`auto`] decides whether it pays.
//!
//! A payload is sent compressed only where that makes it shorter. What it becomes is known before it is
//! decompressed: its header says, within the bounds of a chunk, and no byte beyond is ever made.

use std::fmt;
use std::str::FromStr;

use lz4_flex::block as lz4;

use crate::zero_map::ZeroMap;

pub mod auto;

/// Names each codec with its number on the wire and its feature's name.
macro_rules! codecs {
    ($($(#[$doc:meta])* $codec:ident = $number:literal, $name:literal;)+) => {
        /// A way to compress.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Codec {
            $($(#[$doc])* $codec,)+
        }

        impl Codec {
            /// Every one of them.
            pub const ALL: &[Self] = &[$(Self::$codec,)+];

            /// Its number on the wire.
            #[must_use]
            pub const fn number(self) -> u8 {
                match self {
                    $(Self::$codec => $number,)+
                }
            }

            /// The feature that the ends agree on, and the word for it in flags.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$codec => $name,)+
                }
            }
        }
    };
}

codecs! {
    /// The block format of LZ4: fast, and saves little.
    Lz4 = 1, "lz4";
    /// A Zstandard frame (RFC 8878): saves more, for more processor time.
    Zstd = 2, "zstd";
}

impl Codec {
    /// The codec of this number.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|codec| codec.number() == number)
    }
}

/// A set of codecs: what the ends agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codecs(u8);

impl Codecs {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// All that this version knows.
    #[must_use]
    pub fn all() -> Self {
        Codec::ALL.iter().copied().collect()
    }

    /// Those among a peer's features.
    #[must_use]
    pub fn among(features: &[String]) -> Self {
        let is_among = |codec: &Codec| features.iter().any(|name| name == codec.as_str());
        Codec::ALL.iter().copied().filter(is_among).collect()
    }

    /// Their features' names.
    pub fn features(self) -> impl Iterator<Item = String> {
        let held = Codec::ALL.iter().filter(move |codec| self.holds(**codec));
        held.map(|codec| codec.as_str().to_owned())
    }

    /// Whether `codec` is among them.
    #[must_use]
    pub const fn holds(self, codec: Codec) -> bool {
        self.0 & codec.number() != 0
    }

    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

const _: () = assert!(
    Codec::Lz4.number() & Codec::Zstd.number() == 0,
    "a codec's number is its bit in a set"
);

impl FromIterator<Codec> for Codecs {
    fn from_iter<I: IntoIterator<Item = Codec>>(codecs: I) -> Self {
        Self(
            codecs
                .into_iter()
                .fold(0, |set, codec| set | codec.number()),
        )
    }
}

/// How a payload travels, where not as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// What was done to it.
    pub codec: Codec,
    /// Bytes of it on the wire: at least one, and fewer than it has.
    pub len: u32,
}

impl Compressed {
    /// Reads the two fields of a header: a payload of `payload_len` bytes that travels as it is when both
    /// are 0; `None` for what is neither.
    #[must_use]
    pub(crate) fn decode(number: u8, len: u64, payload_len: u32) -> Option<Option<Self>> {
        if number == 0 && len == 0 {
            return Some(None);
        }
        let codec = Codec::of_number(number)?;
        let len = u32::try_from(len).ok()?;
        (len > 0 && len < payload_len).then_some(Some(Self { codec, len }))
    }

    /// The two fields of a header.
    #[must_use]
    pub(crate) const fn encode(this: Option<Self>) -> (u8, u32) {
        match this {
            Some(Self { codec, len }) => (codec.number(), len),
            None => (0, 0),
        }
    }
}

/// What the source does to a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// LZ4.
    Lz4,
    /// Zstandard at a level of [`Level`].
    Zstd(Level),
}

impl Method {
    /// What the target has to know of it.
    #[must_use]
    pub const fn codec(self) -> Codec {
        match self {
            Self::Lz4 => Codec::Lz4,
            Self::Zstd(_) => Codec::Zstd,
        }
    }
}

/// A level of Zstandard: from 1, the fastest, to 9.
///
/// Beyond that a level costs many times the processor time and tens of MiB for each thread, for a few percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(i32);

impl Level {
    /// The lowest.
    pub const FASTEST: Self = Self(1);
    /// What `zstd` is by default.
    pub const DEFAULT: Self = Self(3);
    /// The highest.
    pub const STRONGEST: Self = Self(9);
}

/// What the user wants of compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing is compressed.
    #[default]
    None,
    /// What shrinks, always.
    Always(Method),
    /// What shrinks, as long as that makes the clone faster.
    Auto,
}

impl Wanted {
    /// What the target has to know for it.
    #[must_use]
    pub fn codecs(self) -> Codecs {
        match self {
            Self::None => Codecs::NONE,
            Self::Always(method) => std::iter::once(method.codec()).collect(),
            Self::Auto => Codecs::all(),
        }
    }
}

impl From<Option<Method>> for Wanted {
    fn from(method: Option<Method>) -> Self {
        method.map_or(Self::None, Self::Always)
    }
}

impl FromStr for Wanted {
    type Err = NotAWay;

    fn from_str(text: &str) -> Result<Self, NotAWay> {
        let level = |text: &str| {
            let level = text.parse().map(Level).map_err(|_| NotAWay)?;
            let is_known = (Level::FASTEST..=Level::STRONGEST).contains(&level);
            is_known.then_some(level).ok_or(NotAWay)
        };
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "auto" => Ok(Self::Auto),
            None if text == "lz4" => Ok(Self::Always(Method::Lz4)),
            None if text == "zstd" => Ok(Self::Always(Method::Zstd(Level::DEFAULT))),
            Some(("zstd", text)) => Ok(Self::Always(Method::Zstd(level(text)?))),
            _ => Err(NotAWay),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Auto => f.write_str("auto"),
            Self::Always(Method::Lz4) => f.write_str("lz4"),
            Self::Always(Method::Zstd(Level(level))) => write!(f, "zstd:{level}"),
        }
    }
}

/// The text names no way to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected none, lz4, zstd, zstd:1 to zstd:9, or auto")]
pub struct NotAWay;

/// Compresses, with memory of its own: as much as the longest payload and what the codecs need, at most some
/// 8 MiB at the highest level.
#[derive(Default)]
pub struct Compressor {
    output: Vec<u8>,
    zstd: Option<(Level, zstd::bulk::Compressor<'static>)>,
}

impl Compressor {
    /// The compressed form of `plain`; `None` where it is not shorter by enough to be worth it.
    pub fn compress(&mut self, method: Method, plain: &[u8]) -> Option<&[u8]> {
        let len_max = plain.len().checked_sub(plain.len() / SAVED_LEAST)?;
        let len_max = len_max.min(plain.len().checked_sub(1)?);
        let len = match method {
            Method::Lz4 => {
                self.output
                    .resize(lz4::get_maximum_output_size(plain.len()), 0);
                lz4::compress_into(plain, &mut self.output).ok()?
            }
            Method::Zstd(level) => {
                if self.zstd.as_ref().is_none_or(|(had, _)| *had != level) {
                    self.zstd = Some((level, zstd::bulk::Compressor::new(level.0).ok()?));
                }
                let (_, zstd) = self.zstd.as_mut()?;
                // What does not fit ends early.
                self.output.resize(len_max, 0);
                zstd.compress_to_buffer(plain, self.output.as_mut_slice())
                    .ok()?
            }
        };
        self.output.get(..len).filter(|_| len > 0 && len <= len_max)
    }
}

impl Compressor {
    /// Compresses the payload of `chunk`, which is left at the chunk's front in its compressed form. Where that
    /// would not be shorter, the chunk stays as it is.
    ///
    /// # Panics
    /// When `chunk` is not as long as the map's.
    pub fn compress_in_place(
        &mut self,
        method: Method,
        zero_map: &ZeroMap,
        chunk: &mut [u8],
    ) -> Option<Compressed> {
        zero_map.gather(chunk);
        let payload = chunk.get(..zero_map.data_len() as usize)?;
        let Some(compressed) = self.compress(method, payload) else {
            zero_map.spread(chunk);
            return None;
        };
        let len = u32::try_from(compressed.len()).ok()?;
        chunk
            .get_mut(..compressed.len())?
            .copy_from_slice(compressed);
        Some(Compressed {
            codec: method.codec(),
            len,
        })
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

/// A payload that shrinks by less than one part of so many travels as it is: it would not be worth the target's work.
const SAVED_LEAST: usize = 16;

/// Decompresses, with memory of its own: the longest compressed payload, and some 200 KiB where Zstandard is used.
#[derive(Default)]
pub struct Decompressor {
    input: Vec<u8>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decompressor {
    /// Fills `plain` with what `compressed` holds. Nothing beyond it is written, and nothing is allocated for it.
    ///
    /// # Errors
    /// When it is malformed, or holds more or less. What `plain` holds then is not to be used.
    pub fn decompress(
        &mut self,
        codec: Codec,
        compressed: &[u8],
        plain: &mut [u8],
    ) -> Result<(), Malformed> {
        let len = match codec {
            Codec::Lz4 => lz4::decompress_into(compressed, plain).map_err(|_| Malformed)?,
            Codec::Zstd => {
                if self.zstd.is_none() {
                    let new = zstd::bulk::Decompressor::new();
                    self.zstd = Some(new.map_err(|_| Malformed)?);
                }
                let zstd = self.zstd.as_mut().ok_or(Malformed)?;
                zstd.decompress_to_buffer(compressed, plain)
                    .map_err(|_| Malformed)?
            }
        };
        if len == plain.len() {
            Ok(())
        } else {
            Err(Malformed)
        }
    }

    /// Makes `chunk` of its payload, of which the compressed form stands at its front.
    ///
    /// # Errors
    /// As [`Self::decompress`].
    ///
    /// # Panics
    /// When `chunk` is not as long as the map's.
    pub fn decompress_in_place(
        &mut self,
        compressed: Compressed,
        zero_map: &ZeroMap,
        chunk: &mut [u8],
    ) -> Result<(), Malformed> {
        let mut input = std::mem::take(&mut self.input);
        input.clear();
        input.extend_from_slice(chunk.get(..compressed.len as usize).ok_or(Malformed)?);
        let payload = chunk.get_mut(..zero_map.data_len() as usize);
        let done = self.decompress(compressed.codec, &input, payload.unwrap_or_default());
        self.input = input;
        done?;
        zero_map.spread(chunk);
        Ok(())
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

/// Bytes that are no compressed form of a payload of that length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a compressed payload is malformed")]
pub struct Malformed;

#[cfg(test)]
mod tests {
    use super::*;

    const METHODS: [Method; 4] = [
        Method::Lz4,
        Method::Zstd(Level::FASTEST),
        Method::Zstd(Level::DEFAULT),
        Method::Zstd(Level::STRONGEST),
    ];

    fn text(len: usize) -> Vec<u8> {
        let words = ["volume ", "chunk ", "journal ", "digest ", "0123 "];
        let mut random: u32 = 7;
        let mut text = Vec::new();
        while text.len() < len {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            text.extend(words[(random >> 20) as usize % words.len()].as_bytes());
        }
        text.truncate(len);
        text
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut noise = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        noise
    }

    #[test]
    fn what_shrinks_comes_back_and_noise_is_left_alone() {
        let (mut compressor, mut decompressor) = <(Compressor, Decompressor)>::default();
        for method in METHODS {
            for len in [100, 4096, 65_537, 1 << 20] {
                let plain = text(len);
                let compressed = compressor.compress(method, &plain).unwrap();
                assert!(compressed.len() < len / 2 || len == 100, "{method:?} {len}");
                let mut back = vec![0xa5; len];
                decompressor
                    .decompress(method.codec(), compressed, &mut back)
                    .unwrap();
                assert!(back == plain, "{method:?} {len}");
                assert_eq!(compressor.compress(method, &noise(len)), None, "{method:?}");
            }
            assert_eq!(compressor.compress(method, &[]), None);
            assert_eq!(compressor.compress(method, &[0]), None);
        }
    }

    #[test]
    fn a_chunk_with_holes_comes_back_in_its_place() {
        let (mut compressor, mut decompressor) = <(Compressor, Decompressor)>::default();
        for bytes in [text(60_000), noise(60_000)] {
            let mut chunk = bytes.clone();
            chunk[8192..20_480].fill(0);
            chunk[49_152..].fill(0);
            let zero_map = ZeroMap::scan(&chunk);
            for method in METHODS {
                let mut moved = chunk.clone();
                let Some(compressed) = compressor.compress_in_place(method, &zero_map, &mut moved)
                else {
                    assert!(moved == chunk && bytes == noise(60_000), "{method:?}");
                    continue;
                };
                assert!(compressed.len < zero_map.data_len() / 2);
                moved[compressed.len as usize..].fill(0xa5);
                let whole = moved.clone();
                let done = decompressor.decompress_in_place(compressed, &zero_map, &mut moved);
                assert!(done.is_ok() && moved == chunk, "{method:?}");
                let cut = Compressed {
                    len: compressed.len - 1,
                    ..compressed
                };
                let done = decompressor.decompress_in_place(cut, &zero_map, &mut whole.clone());
                assert_eq!(done, Err(Malformed), "{method:?}");
            }
        }
    }

    #[test]
    fn another_length_is_refused_and_nothing_beyond_is_written() {
        let (mut compressor, mut decompressor) = <(Compressor, Decompressor)>::default();
        for method in METHODS {
            let compressed = compressor.compress(method, &text(100_000)).unwrap();
            for len in [0, 1, 4096, 99_999, 100_001, 1 << 20] {
                let mut back = vec![0; len];
                assert_eq!(
                    decompressor.decompress(method.codec(), compressed, &mut back),
                    Err(Malformed),
                    "{method:?} {len}"
                );
            }
        }
    }

    #[test]
    fn whatever_is_cut_or_turned_over_is_an_error_or_other_bytes() {
        let (mut compressor, mut decompressor) = <(Compressor, Decompressor)>::default();
        for method in METHODS {
            let plain = text(4096);
            let compressed = compressor.compress(method, &plain).unwrap().to_vec();
            let mut back = vec![0; plain.len()];
            for at in 0..compressed.len() {
                let mut decompress = |bytes: &[u8]| {
                    let done = decompressor.decompress(method.codec(), bytes, &mut back);
                    done.is_ok().then(|| back.clone())
                };
                assert_ne!(decompress(&compressed[..at]), Some(plain.clone()));
                let mut bent = compressed.clone();
                bent[at] ^= 0x41;
                let _other = decompress(&bent);
            }
        }
    }

    #[test]
    fn words_say_what_is_wanted() {
        for text in ["none", "auto", "lz4", "zstd:1", "zstd:9"] {
            assert_eq!(text.parse::<Wanted>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse(), "zstd:3".parse::<Wanted>());
        for text in [
            "", "gzip", "zstd:", "zstd:0", "zstd:10", "lz4:1", "Auto", "zstd:-1",
        ] {
            assert_eq!(text.parse::<Wanted>(), Err(NotAWay), "{text}");
        }
    }

    #[test]
    fn the_ends_use_what_both_know() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            Codecs::among(&names(&["tree", "zstd", "brotli"])),
            Codecs(2)
        );
        assert_eq!(Codecs::among(&names(&["lz4", "zstd"])), Codecs::all());
        assert_eq!(
            Codecs::all().features().collect::<Vec<_>>(),
            ["lz4", "zstd"]
        );
        let lz4 = Wanted::Always(Method::Lz4).codecs();
        assert_eq!(Codecs::all().and(lz4), lz4);
        assert!(lz4.holds(Codec::Lz4) && !lz4.holds(Codec::Zstd));
        assert_eq!(Wanted::None.codecs(), Codecs::NONE);
    }

    #[test]
    fn a_header_says_no_more_than_a_payload_can_be() {
        let some = |codec, len| Some(Some(Compressed { codec, len }));
        assert_eq!(Compressed::decode(0, 0, 100), Some(None));
        assert_eq!(Compressed::decode(1, 99, 100), some(Codec::Lz4, 99));
        assert_eq!(Compressed::decode(2, 1, 100), some(Codec::Zstd, 1));
        for (number, len) in [(0, 1), (1, 0), (1, 100), (2, 101), (3, 5), (255, 5)] {
            assert_eq!(Compressed::decode(number, len, 100), None, "{number} {len}");
        }
        assert_eq!(Compressed::decode(1, 1 << 32 | 5, 100), None);
    }
}
