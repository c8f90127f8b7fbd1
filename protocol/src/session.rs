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
//! An `Error` of either end takes the place of any message and ends the session.
//!
//! The machines do no I/O. An agent feeds what happened into `handle_*`, then empties
//! `poll_message` (what to send on the control connection), `poll_action` (what to do) and sets a
//! timer for `poll_timeout`. Time is an argument everywhere.

use std::time::Duration;

pub mod ledger;
pub mod source;
pub mod target;

pub use ledger::Ledger;
pub use source::{SourceAction, SourceSession};
pub use target::{TargetAction, TargetLimits, TargetSession};

/// How often the source says that it is still here when it has nothing else to say. A scan of a
/// large hole sends nothing for minutes.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long a peer may say nothing before it counts as gone: six pings, so that one lost round
/// trip or a stalled disk doesn't end a clone.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

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
