//! Where a clone stands at the target: what outlives a session, and what a journal or a checkpoint
//! brings back.

use std::time::Instant;

use uuid::Uuid;

use super::Ledger;
use super::fence::Remembered;
use crate::geometry::Geometry;
use crate::journal::Checkpoint;
use crate::message::Hello;

/// What the target knows of a clone between two of its sessions.
#[derive(Clone, Debug)]
pub struct Standing {
    /// What is durable.
    pub ledger: Ledger,
    /// The source that it was made from.
    pub generation: String,
    /// When the first session of this run of the agent began.
    pub started_at: Instant,
    /// Bytes of data taken in, in all sessions; what came twice counts twice.
    pub taken_bytes: u64,
    /// Bytes of data in chunks that the target held already.
    pub matched_bytes: u64,
    /// Bytes of chunks that read back wrong and were written again.
    pub repaired_bytes: u64,
    /// What tells the target file from others; 0 for a device.
    pub target_mark: u64,
    /// Who may not come back, and who held the session last, as the fence has it.
    pub remembered: Remembered,
}

/// Why a clone can't go on from a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotResume {
    /// It is of another clone.
    #[error("it belongs to clone {0}")]
    OtherClone(Uuid),
    /// The source volume has another size or is cut differently.
    #[error(
        "it is for a volume of {size} bytes in chunks of {chunk_size}, the source has {now_size} bytes in \
         chunks of {now_chunk_size}"
    )]
    OtherGeometry {
        /// What the checkpoint says.
        size: u64,
        /// What the checkpoint says.
        chunk_size: u32,
        /// What the source says.
        now_size: u64,
        /// What the source says.
        now_chunk_size: u32,
    },
    /// The source volume was written or replaced.
    #[error("the source was {before:?}, and is {now:?}")]
    OtherGeneration {
        /// What the checkpoint says.
        before: String,
        /// What the source says.
        now: String,
    },
    /// It contradicts itself.
    #[error("it is damaged")]
    Damaged,
}

impl CannotResume {
    /// Whether the checkpoint is this clone's own, and only the source is another now: a user has to
    /// decide what that means.
    #[must_use]
    pub const fn is_source_changed(&self) -> bool {
        matches!(
            self,
            Self::OtherGeometry { .. } | Self::OtherGeneration { .. }
        )
    }
}

impl Standing {
    /// A clone of which nothing is durable, from the source that `hello` speaks of.
    #[must_use]
    pub fn new(now: Instant, geometry: Geometry, hello: &Hello) -> Self {
        Self {
            ledger: Ledger::new(geometry),
            generation: hello.generation.clone(),
            started_at: now,
            taken_bytes: 0,
            matched_bytes: 0,
            repaired_bytes: 0,
            target_mark: 0,
            remembered: Remembered::default(),
        }
    }

    /// A clone that stands where `checkpoint` says, if its source is the one that `hello` speaks
    /// of.
    ///
    /// # Errors
    /// When it is not, or the checkpoint is of another clone or contradicts itself.
    pub fn resume(
        now: Instant,
        geometry: Geometry,
        hello: &Hello,
        checkpoint: &Checkpoint,
    ) -> Result<Self, CannotResume> {
        if checkpoint.clone_id != hello.clone_id {
            return Err(CannotResume::OtherClone(checkpoint.clone_id));
        }
        if (checkpoint.volume_size, checkpoint.chunk_size)
            != (geometry.volume_size(), geometry.chunk_size())
        {
            return Err(CannotResume::OtherGeometry {
                size: checkpoint.volume_size,
                chunk_size: checkpoint.chunk_size.bytes(),
                now_size: geometry.volume_size(),
                now_chunk_size: geometry.chunk_size().bytes(),
            });
        }
        check_generation(&checkpoint.generation, hello)?;
        Ok(Self {
            ledger: Ledger::resume(geometry, checkpoint).map_err(|_bad| CannotResume::Damaged)?,
            taken_bytes: checkpoint.taken_bytes,
            matched_bytes: checkpoint.matched_bytes,
            ..Self::new(now, geometry, hello)
        })
    }

    /// Checks that the source of a new session is the one that this standing was made from.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_source(&self, geometry: Geometry, hello: &Hello) -> Result<(), CannotResume> {
        let own = self.ledger.geometry();
        if own != geometry {
            return Err(CannotResume::OtherGeometry {
                size: own.volume_size(),
                chunk_size: own.chunk_size().bytes(),
                now_size: geometry.volume_size(),
                now_chunk_size: geometry.chunk_size().bytes(),
            });
        }
        check_generation(&self.generation, hello)
    }

    /// What a later run of the agent goes on from.
    #[must_use]
    pub fn checkpoint(&self, clone_id: Uuid, epoch: u64) -> Checkpoint {
        let geometry = self.ledger.geometry();
        Checkpoint {
            clone_id,
            volume_size: geometry.volume_size(),
            chunk_size: geometry.chunk_size(),
            generation: self.generation.clone(),
            epoch,
            data_bytes: self.ledger.data_bytes(),
            taken_bytes: self.taken_bytes,
            matched_bytes: self.matched_bytes,
            target_mark: self.target_mark,
            shut_out: self.remembered.shut_out.clone(),
            holder: self.remembered.holder,
            witnesses: self.ledger.witnesses().collect(),
            durable: self
                .ledger
                .durable()
                .take(crate::journal::SUBTREES_MAX)
                .collect(),
        }
    }
}

fn check_generation(before: &str, hello: &Hello) -> Result<(), CannotResume> {
    if before == hello.generation {
        return Ok(());
    }
    Err(CannotResume::OtherGeneration {
        before: before.to_owned(),
        now: hello.generation.clone(),
    })
}
