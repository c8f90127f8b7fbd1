//! How many data connections a session may have, and how many a round had.
//!
//! The source says with how many it begins and, where it may come to want more, how many those are.
//! It then opens further ones whenever they help, and tells with `Finish` how many the round had: the
//! target can't know otherwise which are still on their way.

use crate::failure::{Failure, FailureCode};
use crate::message::{Finish, Hello, Welcome};

/// The data connections of a session, as both ends agreed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    /// How many a round begins with.
    pub(crate) first: u16,
    /// How many it may have.
    pub(crate) most: u16,
    /// How many the running round has, or had.
    pub(crate) opened: u16,
}

impl Streams {
    /// What a target grants that takes `limit` at most, which is not 0.
    pub(crate) fn grant(hello: &Hello, limit: u16) -> Self {
        let first = hello.streams.min(limit);
        let wanted = hello.streams_max.unwrap_or(first);
        Self {
            first,
            most: wanted.min(limit).max(first),
            opened: first,
        }
    }

    /// How the grant is told. A source that named no more hears of no more.
    pub(crate) fn most_told(self, hello: &Hello) -> Option<u16> {
        hello.streams_max.map(|_| self.most)
    }

    /// What a source was granted.
    ///
    /// # Errors
    /// When it is nothing, or more than was asked for.
    pub(crate) fn granted(hello: &Hello, welcome: &Welcome) -> Result<Self, Failure> {
        let first = welcome.streams;
        let most = welcome.streams_max.unwrap_or(first);
        let wanted = hello.streams_max.unwrap_or(hello.streams);
        let refused = if first == 0 || first > hello.streams {
            first
        } else if most < first || most > wanted.max(hello.streams) {
            most
        } else {
            return Ok(Self {
                first,
                most,
                opened: first,
            });
        };
        let text = format!("the target grants {refused} streams");
        Err(Failure::new(FailureCode::Protocol, text))
    }

    /// The number of one more data connection, where the round may have it.
    pub(crate) fn open(&mut self) -> Option<u16> {
        let number = self.opened;
        let more = number.checked_add(1).filter(|more| *more <= self.most)?;
        self.opened = more;
        Some(number)
    }

    /// Another round begins.
    pub(crate) const fn next_round(&mut self) {
        self.opened = self.first;
    }

    /// What `Finish` says of the round that ends: nothing where it had what it began with.
    pub(crate) fn told(self) -> Option<u16> {
        (self.opened != self.first).then_some(self.opened)
    }

    /// Takes what `finish` says of the round.
    ///
    /// # Errors
    /// When the round can't have had so many.
    pub(crate) fn finish(&mut self, finish: &Finish) -> Result<(), Failure> {
        let opened = finish.connections.unwrap_or(self.first);
        if opened == 0 || opened > self.most {
            let most = self.most;
            let text = format!(
                "the source finished a round of {opened} data connections, and may have {most}"
            );
            return Err(Failure::new(FailureCode::Protocol, text));
        }
        self.opened = opened;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_as_many_as_were_granted_and_no_more() {
        let mut streams = Streams {
            first: 1,
            most: 3,
            opened: 1,
        };
        assert_eq!(streams.told(), None);
        let numbers: Vec<_> = std::iter::from_fn(|| streams.open()).collect();
        assert_eq!(numbers, [1, 2]);
        assert_eq!(streams.told(), Some(3));
        streams.next_round();
        assert_eq!(streams.told(), None);
        assert_eq!(streams.open(), Some(1));
        let mut all = Streams {
            first: u16::MAX,
            most: u16::MAX,
            opened: u16::MAX,
        };
        assert_eq!(all.open(), None);
    }
}
