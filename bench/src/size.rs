//! Sizes as people write them, and rates as people compare them.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Bytes of a MiB, as the divisor of a report.
pub(crate) const MIB: u64 = 1 << 20;
/// Bytes of a GiB, as the divisor of a report.
pub(crate) const GIB: u64 = 1 << 30;

/// A count of bytes given as `4GiB`, `600MB` or `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size(pub u64);

/// The text is not a number followed by a known unit.
#[derive(Debug, thiserror::Error)]
#[error("expected a size such as 4GiB or 600MB")]
pub(crate) struct NotASize;

impl FromStr for Size {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let digits = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
        let number: u64 = number.parse().map_err(|_| NotASize)?;
        let (_, factor) = UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or(NotASize)?;
        number.checked_mul(*factor).map(Self).ok_or(NotASize)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            |(_, factor): &&(&str, u64)| self.0 >= *factor && self.0.is_multiple_of(*factor);
        let (name, factor) = UNITS.iter().rfind(exact).unwrap_or(&UNITS[0]);
        write!(f, "{}{name}", self.0 / factor)
    }
}

/// `bytes` in GiB, for rates.
#[expect(
    clippy::cast_precision_loss,
    reason = "a volume is far below 2^53 bytes"
)]
pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}

/// `bytes` in MiB, for peaks.
pub(crate) fn mib(bytes: u64) -> f64 {
    gib(bytes) * 1024.0
}

/// The offsets and lengths of `range` cut into pieces of [`PIECE`] bytes.
pub(crate) fn pieces(range: Range<u64>) -> impl Iterator<Item = (u64, usize)> {
    let end = range.end;
    range.step_by(PIECE).map(move |offset| {
        let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
        (offset, left.min(PIECE))
    })
}

/// What the harness reads or writes at once. Small, so that its own memory stays small.
pub(crate) const PIECE: usize = 1 << 20;

const UNITS: [(&str, u64); 7] = [
    ("", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", MIB),
    ("GB", 1_000_000_000),
    ("GiB", GIB),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_survives_its_own_text() {
        for text in ["4GiB", "600MB", "4097", "1536MiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("600mb".parse::<Size>().unwrap().0, 600_000_000);
    }

    #[test]
    fn pieces_cover_the_range_and_the_last_is_cut() {
        let piece = PIECE as u64;
        let cut: Vec<_> = pieces(5..piece + 8).collect();
        assert_eq!(cut, [(5, PIECE), (5 + piece, 3)]);
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "GiB", "4 parsecs", "99999999999GiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
