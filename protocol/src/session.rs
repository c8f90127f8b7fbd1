//! The two state machines of a session, one for each end.
//!
//! ```text
//! source                                   target
//!   Hello (what is to be cloned)  ───────►
//!                                 ◄───────  Welcome (token, what is durable already)
//!   chunks, on N data connections ═══════►  check, write, flush
//!   Ping                          ───────►
//!                                 ◄───────  Watermark (what is durable by now)
//!   Finish (digest, counters)     ───────►  the last flush, compare digests
//!                                 ◄───────  Receipt
//!   close                         ───────►
//! ```
//!
//! Chunks travel in *rounds*: the source opens data connections, sends, ends them in order, and
//! finishes. Usually there is one. Where the target holds something that may be right already, the
//! first round only offers digests, and the target answers `Finish` with `Want`: another round. The
//! same way it has chunks repaired that read back wrong.
//!
//! A session that is cut leaves a [`Standing`] at the target, and the next session of the clone
//! goes on from there. Which source may have it, [`Fence`] decides. Where there is a journal, a
//! record goes before each `Welcome` and each `Watermark`: what was told outlives the agent.
//!
//! An `Error` of either end takes the place of any message and ends the session.
//!
//! The machines do no I/O. An agent feeds what happened into `handle_*`, then empties
//! `poll_message` (what to send on the control connection), `poll_action` (what to do) and sets a
//! timer for `poll_timeout`. Time is an argument everywhere.

use std::time::Duration;

pub(crate) mod course;
pub mod fence;
pub mod ledger;
pub mod source;
pub mod standing;
pub(crate) mod streams;
pub mod target;

pub use fence::{Admission, Fence};
pub use ledger::Ledger;
pub use source::{SourceAction, SourceSession};
pub use standing::{CannotResume, Standing};
pub use target::{TargetAction, TargetLimits, TargetSession};

/// How often the source says that it is still here when it has nothing else to say. A scan of a
/// large hole sends nothing for minutes.
pub const PING_INTERVAL: Duration = Duration::from_secs(3);

/// How long a peer may say nothing before it counts as gone: five pings, so that a few lost round
/// trips don't end a session, and a silent partition is noticed soon enough to be back within
/// seconds when it heals. Disks don't come into it: no message waits for one.
pub const SILENCE_MAX: Duration = Duration::from_secs(15);

/// How often the target tells its watermark, at most.
pub const WATERMARK_INTERVAL: Duration = Duration::from_millis(500);

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `Hello` and `Welcome`.
    Handshake,
    /// Chunks travel.
    Transfer,
    /// All was sent; the target makes it durable and proves it.
    Verify,
    /// The receipt is there, or the failure.
    Done,
}

impl Stage {
    /// The stage in one word, as in progress and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Transfer => "transfer",
            Self::Verify => "verify",
            Self::Done => "done",
        }
    }
}

#[cfg(test)]
mod tests;
