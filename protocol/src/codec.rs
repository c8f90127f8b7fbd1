//! Reading bytes of a peer: the only place that cuts them.
//!
//! Every take compares what is wanted with what is there, in the function that cuts. Numbers are
//! big-endian.

/// A cursor over received bytes.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes the next `N` bytes.
    ///
    /// # Errors
    /// When fewer are left; nothing is taken then.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let Some((head, tail)) = self.rest.split_first_chunk() else {
            return Err(Truncated {
                want: N,
                have: self.rest.len(),
            });
        };
        self.rest = tail;
        Ok(*head)
    }

    /// Takes the next `len` bytes.
    ///
    /// # Errors
    /// When fewer are left; nothing is taken then.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Truncated> {
        let Some((head, tail)) = self.rest.split_at_checked(len) else {
            return Err(Truncated {
                want: len,
                have: self.rest.len(),
            });
        };
        self.rest = tail;
        Ok(head)
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes that are left.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// When none is left.
    pub fn u8(&mut self) -> Result<u8, Truncated> {
        self.array().map(u8::from_be_bytes)
    }

    /// Takes a 16-bit number.
    ///
    /// # Errors
    /// When fewer than 2 bytes are left.
    pub fn u16(&mut self) -> Result<u16, Truncated> {
        self.array().map(u16::from_be_bytes)
    }

    /// Takes a 32-bit number.
    ///
    /// # Errors
    /// When fewer than 4 bytes are left.
    pub fn u32(&mut self) -> Result<u32, Truncated> {
        self.array().map(u32::from_be_bytes)
    }

    /// Takes a 64-bit number.
    ///
    /// # Errors
    /// When fewer than 8 bytes are left.
    pub fn u64(&mut self) -> Result<u64, Truncated> {
        self.array().map(u64::from_be_bytes)
    }
}

/// The bytes ended before the value did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{want} bytes wanted where {have} are left")]
pub struct Truncated {
    /// Bytes that the value takes.
    pub want: usize,
    /// Bytes that were left.
    pub have: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_taken() {
        let mut reader = Reader::new(&[1, 2, 3, 4, 5, 6]);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(0x0203));
        assert_eq!(reader.u32(), Err(Truncated { want: 4, have: 3 }));
        assert_eq!(reader.bytes(4), Err(Truncated { want: 4, have: 3 }));
        assert_eq!(
            reader.bytes(usize::MAX),
            Err(Truncated {
                want: usize::MAX,
                have: 3
            })
        );
        assert!(!reader.is_empty());
        assert_eq!(reader.bytes(0), Ok(&[][..]));
        assert_eq!(reader.bytes(2), Ok(&[4, 5][..]));
        assert_eq!(reader.array(), Ok([6]));
        assert!(reader.is_empty());
        assert_eq!(reader.u64(), Err(Truncated { want: 8, have: 0 }));
    }
}
