//! The flags that say what a clone goes on from and how it is verified: of the target agent, and of
//! whoever runs both agents in one process.

use std::path::PathBuf;

use clap::Args;
use clap::ValueEnum;
use clap::builder::BoolishValueParser;
use volferry_protocol::receipt::Verified;

use crate::{Resume, TargetConfig};

/// What a clone goes on from, and how it is verified.
#[derive(Clone, Debug, Args)]
pub struct ResumeOptions {
    /// Keep a journal in this directory, so that a restarted target goes on from what is durable
    ///
    /// It must outlive the agent and belong to this target volume alone. The journal of a target
    /// directory is in that itself; here is the proof that its source has not heard of yet.
    #[arg(long, env = "VOLFERRY_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// What a clone goes on from
    #[arg(long, env = "VOLFERRY_RESUME", value_enum, default_value_t = ResumeFrom::Journal)]
    resume: ResumeFrom,

    /// Go on from a checkpoint: the `checkpoint` of a target agent's /progress, as a file
    #[arg(long, env = "VOLFERRY_RESUME_FROM", value_name = "FILE")]
    resume_from: Option<PathBuf>,

    /// Send only what differs from the older copy that the target holds
    ///
    /// For a volume, and with --checksum for a tree, the same as --overwrite --resume digest: both
    /// ends read what is there, and compare. Without --checksum files of a tree that have the same
    /// size and time of modification count as equal, and the source does not read them.
    #[arg(long, env = "VOLFERRY_DELTA", value_parser = BoolishValueParser::new())]
    delta: bool,

    /// With --delta of a tree, compare the content of files that look the same
    #[arg(long, env = "VOLFERRY_CHECKSUM", value_parser = BoolishValueParser::new())]
    #[arg(requires = "delta")]
    checksum: bool,

    /// How the target's content is verified
    #[arg(long, env = "VOLFERRY_VERIFY", value_enum, default_value_t = Verify::Digest)]
    verify: Verify,
}

/// What a clone goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ResumeFrom {
    /// What the journal or the checkpoint says to be durable
    Journal,
    /// As well whatever the target holds: chunks whose digests agree are not sent
    Digest,
    /// Nothing
    None,
}

/// How the target's content is verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Verify {
    /// Not at all at the target: saves its hashing
    None,
    /// Each chunk against the source's digest, before it is written
    Digest,
    /// Also, the whole volume is read back from the storage, and repaired where it is wrong
    Readback,
}

impl ResumeOptions {
    /// Puts what was asked for into `config`.
    #[must_use]
    pub fn apply(&self, mut config: TargetConfig) -> TargetConfig {
        config.state_dir.clone_from(&self.state_dir);
        config.resume_from.clone_from(&self.resume_from);
        config.resume = match self.resume {
            _ if self.delta => Resume::Digest,
            ResumeFrom::Journal => Resume::Journal,
            ResumeFrom::Digest => Resume::Digest,
            ResumeFrom::None => Resume::Nothing,
        };
        config.options.overwrite |= self.delta;
        config.trusts_times = self.delta && !self.checksum;
        config.verify = match self.verify {
            Verify::None => Verified::None,
            Verify::Digest => Verified::Digest,
            Verify::Readback => Verified::Readback,
        };
        config
    }

    /// Whether a journal is kept.
    #[must_use]
    pub const fn has_journal(&self) -> bool {
        self.state_dir.is_some()
    }
}
