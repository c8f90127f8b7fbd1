//! Choices made from the bytes of an input.

use std::ops::Range;

/// A cursor over an input; behind its end every choice is the first.
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let (head, tail) = self.rest.split_at(N.min(self.rest.len()));
        self.rest = tail;
        let mut bytes = [0; N];
        bytes[..head.len()].copy_from_slice(head);
        bytes
    }

    pub fn u8(&mut self) -> u8 {
        u8::from_be_bytes(self.array())
    }

    pub fn bool(&mut self) -> bool {
        self.u8() % 2 == 1
    }

    /// A number below `end`, from one byte.
    pub fn below(&mut self, end: u8) -> u64 {
        u64::from(self.u8() % end)
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    /// A range that starts below `start_end` and holds less than `len_end`.
    pub fn range(&mut self, start_end: u8, len_end: u8) -> Range<u64> {
        let start = self.below(start_end);
        start..start + self.below(len_end)
    }
}
