//! What has to hold of sessions, whatever is cloned: never two writers, and who was shut out stays out.

use std::collections::{BTreeMap, HashSet};

use uuid::Uuid;
use volferry_protocol::message::Hello;

/// Why a run is no good.
#[derive(Debug)]
pub(crate) struct Violation(pub(crate) String);

pub(crate) type Checked = Result<(), Violation>;

/// Gives a violation unless `holds`.
pub(crate) fn check(holds: bool, text: impl FnOnce() -> String) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(Violation(text()))
    }
}

#[derive(Clone, Debug, Default)]
struct Recorded {
    holder: Option<Uuid>,
    shut_out: HashSet<Uuid>,
}

#[derive(Debug, Default)]
pub(crate) struct Fencing {
    /// The last session that began in this run of the target.
    epoch: u64,
    /// Who was let in last, as this run of the target knows it.
    holder: Option<Uuid>,
    /// The last attempt that was let in, by who made it.
    attempts: BTreeMap<Uuid, u32>,
    /// Who was shut out, as this run of the target knows it.
    shut_out: HashSet<Uuid>,
    /// What the journal knows of that and of the holder, since a session was welcomed.
    recorded: Recorded,
    /// The last session that could write, in any run.
    epoch_max: u64,
}

impl Fencing {
    /// The target agent runs anew; it may have lost its journal. `journal_epoch` is the last session
    /// that the journal knows of.
    pub(crate) fn target_restarted(&mut self, is_journal_lost: bool, journal_epoch: u64) {
        if is_journal_lost {
            *self = Self::default();
            return;
        }
        let recorded = std::mem::take(&mut self.recorded);
        // A session may have been recorded and never welcomed: then another one was the last holder.
        let is_last = journal_epoch <= self.epoch_max;
        *self = Self {
            epoch_max: self.epoch_max,
            holder: recorded.holder.filter(|_| is_last),
            shut_out: recorded.shut_out.clone(),
            recorded,
            ..Self::default()
        };
    }

    /// The journal is gone, and with it the last epoch, should the target's run end now.
    pub(crate) fn journal_removed(&mut self) {
        self.epoch_max = 0;
        self.recorded = Recorded::default();
    }

    /// A source was let in.
    pub(crate) fn granted(&mut self, hello: &Hello) -> Checked {
        let instance = hello.instance;
        check(!self.shut_out.contains(&instance), || {
            format!("{instance} was shut out and is let in")
        })?;
        let before = self.attempts.insert(instance, hello.attempt);
        check(before.is_none_or(|before| before < hello.attempt), || {
            format!("attempt {} comes after {before:?}", hello.attempt)
        })?;
        if let Some(before) = self.holder.replace(instance)
            && before != instance
            && hello.take_over
        {
            self.shut_out.insert(before);
        }
        Ok(())
    }

    pub(crate) fn session_begins(&mut self, epoch: u64) -> Checked {
        check(epoch > self.epoch, || {
            format!("session {epoch} begins after {}", self.epoch)
        })?;
        self.epoch = epoch;
        Ok(())
    }

    /// A session's write reaches the disk.
    pub(crate) fn session_writes(&self, epoch: u64) -> Checked {
        check(epoch == self.epoch, || {
            format!("session {epoch} writes while {} runs", self.epoch)
        })
    }

    /// A session may write from now on.
    pub(crate) fn welcomed(&mut self, epoch: u64, has_journal: bool) -> Checked {
        check(!has_journal || epoch > self.epoch_max, || {
            format!("session {epoch} may write after {}", self.epoch_max)
        })?;
        self.epoch_max = epoch;
        if has_journal {
            self.recorded = Recorded {
                holder: self.holder,
                shut_out: self.shut_out.clone(),
            };
        }
        Ok(())
    }
}
