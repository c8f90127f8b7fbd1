//! Why a clone failed: one table for the wire, exit codes, metrics and the words a user reads.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose fault it is: what a user has to look at. Each has its own exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// A fault of volferry itself.
    Internal,
    /// Arguments or configuration.
    Usage,
    /// The source volume.
    Source,
    /// The target volume.
    Target,
    /// The way between the agents.
    Network,
    /// Credentials of either end.
    Identity,
    /// Bytes that are not what they were.
    Integrity,
    /// A user or the cluster ended it.
    Cancelled,
    /// What one of the two filesystems, or an agent's privileges, could not keep.
    Fidelity,
}

impl FailureClass {
    /// Every class, in the order of the exit codes.
    pub const ALL: [Self; 9] = [
        Self::Internal,
        Self::Usage,
        Self::Source,
        Self::Target,
        Self::Network,
        Self::Identity,
        Self::Integrity,
        Self::Cancelled,
        Self::Fidelity,
    ];

    /// The exit code of every program of volferry that ends so.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Source => 3,
            Self::Target => 4,
            Self::Network => 5,
            Self::Identity => 6,
            Self::Integrity => 7,
            Self::Cancelled => 8,
            Self::Fidelity => 9,
        }
    }

    /// The class in one word, as in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Usage => "usage",
            Self::Source => "source",
            Self::Target => "target",
            Self::Network => "network",
            Self::Identity => "identity",
            Self::Integrity => "integrity",
            Self::Cancelled => "cancelled",
            Self::Fidelity => "fidelity",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Makes the enum, its wire names, classes, dispositions and sentences from one line each.
macro_rules! failure_codes {
    ($($variant:ident = $wire:literal, $class:ident, retry: $retry:literal, $sentence:literal;)*) => {
        /// What went wrong, as told to the peer and counted in metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum FailureCode {
            $(#[doc = $sentence] #[serde(rename = $wire)] $variant,)*
            /// A code that a newer peer knows and this version doesn't.
            #[serde(other, rename = "other")]
            Other,
        }

        impl FailureCode {
            /// Every code of this version.
            pub const ALL: &[Self] = &[$(Self::$variant,)* Self::Other];

            /// The code on the wire, in metrics and in docs.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $wire,)* Self::Other => "other" }
            }

            /// Whose fault it is.
            #[must_use]
            pub const fn class(self) -> FailureClass {
                match self { $(Self::$variant => FailureClass::$class,)* Self::Other => FailureClass::Internal }
            }

            /// Whether another attempt may go better without anybody's help.
            #[must_use]
            pub const fn is_retryable(self) -> bool {
                match self { $(Self::$variant => $retry,)* Self::Other => false }
            }

            /// The code in words.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* Self::Other => "a failure that this version does not know" }
            }
        }
    };
}

failure_codes! {
    Internal = "internal", Internal, retry: false, "a fault of volferry itself";
    Usage = "usage", Usage, retry: false, "arguments or configuration that can't be";
    SourceOpen = "source_open", Source, retry: false, "the source volume can't be opened";
    SourceRead = "source_read", Source, retry: false, "the source volume can't be read";
    SourceChanged = "source_changed", Source, retry: false, "the source volume changed while it was read";
    TargetOpen = "target_open", Target, retry: false, "the target volume can't be opened";
    TargetInUse = "target_in_use", Target, retry: false, "the target volume is in use or holds something";
    TargetTooSmall = "target_too_small", Target, retry: false, "the target volume is smaller than the source";
    TargetNoSpace = "target_no_space", Target, retry: false, "no space is left for the target volume";
    TargetWrite = "target_write", Target, retry: false, "the target volume can't be written";
    TargetJournal = "target_journal", Target, retry: false, "the target's journal can't be written";
    Connect = "connect", Network, retry: true, "the peer can't be reached";
    Disconnected = "disconnected", Network, retry: true, "the connection to the peer was lost";
    Silent = "silent", Network, retry: true, "the peer said nothing for too long";
    Busy = "busy", Network, retry: true, "the target serves another session";
    Fenced = "fenced", Network, retry: false, "another run of the source agent took over";
    Stalled = "stalled", Network, retry: false, "nothing became durable for too long";
    Deadline = "deadline", Network, retry: false, "the clone took longer than it may";
    Protocol = "protocol", Network, retry: false, "the peer breaks the protocol";
    Unsupported = "unsupported", Network, retry: false, "the peer wants what this version does not know";
    Identity = "identity", Identity, retry: false, "the credentials of one end are not accepted";
    WrongClone = "wrong_clone", Identity, retry: false, "the peer belongs to another clone";
    Integrity = "integrity", Integrity, retry: false, "bytes arrived that are not what was read";
    Repair = "repair", Integrity, retry: true, "what was written reads back wrong, and is compared again";
    Cancelled = "cancelled", Cancelled, retry: true, "ended from outside";
    Fidelity = "fidelity", Fidelity, retry: false, "not everything of a tree could be kept";
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// A failed clone: what, and the particulars in words (the object, the cause, the remedy).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// What went wrong.
    pub code: FailureCode,
    /// The particulars: a clause that names the object and the cause, and the remedy.
    pub text: String,
}

impl Failure {
    /// Bytes of the particulars that are kept: they may quote a peer, whose words are shown, but not
    /// endlessly, and fit a message whatever they are.
    pub const TEXT_LEN_MAX: usize = 4096;

    /// A failure of `code` with its particulars.
    #[must_use]
    pub fn new(code: FailureCode, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(Self::TEXT_LEN_MAX));
        Self { code, text }
    }

    /// A failure of this program itself.
    #[must_use]
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(FailureCode::Internal, text)
    }

    /// A failure that the peer told: its words are cut, freed of control characters (they land on
    /// terminals and in logs) and marked as the peer's.
    #[must_use]
    pub fn told_by(peer: &str, told: &Self) -> Self {
        let words = told.text.chars().filter(|char| !char.is_control());
        let mut text = format!("the {peer} agent says: ");
        text.extend(words.take(Self::TEXT_LEN_MAX));
        Self::new(told.code, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_not_success() {
        let mut codes: Vec<_> = FailureClass::ALL
            .iter()
            .map(|class| class.exit_code())
            .collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_code_is_the_same_on_the_wire_and_in_metrics() {
        for code in FailureCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.label());
        }
    }

    #[test]
    fn a_code_of_the_future_is_read_as_other() {
        let code: FailureCode = serde_json::from_str("\"solar_flare\"").unwrap();
        assert_eq!(code, FailureCode::Other);
    }

    #[test]
    fn words_of_a_peer_are_tamed() {
        let told = Failure::new(
            FailureCode::Internal,
            format!("\x1b[2J{}", "x".repeat(9999)),
        );
        let shown = Failure::told_by("target", &told);
        assert!(!shown.text.contains('\x1b'));
        assert!(shown.text.len() <= Failure::TEXT_LEN_MAX);
    }

    #[test]
    fn particulars_end_between_two_characters() {
        let failure = Failure::new(FailureCode::Internal, "\u{20ac}".repeat(2000));
        assert_eq!(failure.text.len(), 4095);
    }
}
