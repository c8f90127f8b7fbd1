//! The world of a run that clones a tree.

use std::time::{Duration, Instant};

use volferry_protocol::failure::FailureCode;
use volferry_protocol::receipt::Verified;

use super::checker::Checker;
use super::disk::Disk;
use super::files::{self, Files};
use super::restore::{Frame, Known, Reuse};
use super::source::SourceAgent;
use super::target::{REPAIRS_MAX, TargetAgent, Work};
use crate::fencing::Checked;
use crate::journal_file::JournalFile;
use crate::network::{self, ConnectionId};
use crate::realm::{Broken, Realm, Scene};

/// What a run is set to do.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) streams: u16,
    /// With how many more a round may go on.
    pub(crate) further: Option<u16>,
    pub(crate) verify: Verified,
    pub(crate) reuse: Reuse,
    pub(crate) delete_extra: bool,
    /// There is a place for a proof.
    pub(crate) has_state_dir: bool,
    /// A source that changes while it is read is told, and no failure.
    pub(crate) allow_changed: bool,
    pace_ms: u64,
    pub(crate) broken: Broken,
}

pub(crate) type Payload = network::Payload<Frame>;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) realm: Realm<Payload, Work>,
    pub(crate) setting: Setting,
    /// What the source holds.
    pub(crate) files: Files,
    pub(crate) sources: [SourceAgent; 2],
    pub(crate) target: TargetAgent,
    pub(crate) disk: Disk,
    pub(crate) journal: JournalFile,
    pub(crate) checker: Checker,
    /// Whether the staging directory is there, whatever became of the journal in it.
    pub(crate) is_staged: bool,
    /// The proof in the state directory.
    pub(crate) proof: JournalFile,
    pub(crate) is_storage_changed: bool,
    rot_count: u32,
    has_changed: bool,
}

impl World {
    pub(crate) fn new(seed: u64, broken: Broken, is_shown: bool) -> Self {
        let mut realm = Realm::new(seed, is_shown);
        let rng = &mut realm.rng;
        let reads_back = rng.chance(40);
        let setting = Setting {
            streams: 1 + rng.below(4) as u16,
            further: [Some(1), None, Some(3), None][(seed % 4) as usize],
            verify: match reads_back {
                true => Verified::Readback,
                false => Verified::Digest,
            },
            reuse: match rng.below(4) {
                0 => Reuse::Content,
                1 => Reuse::Times,
                _ => Reuse::Journal,
            },
            // What is merged can't be read back as a whole.
            delete_extra: reads_back || rng.chance(40),
            allow_changed: rng.chance(30),
            has_state_dir: rng.chance(70),
            pace_ms: 1 + rng.below(600),
            broken,
        };
        let files = files::random(rng);
        // What the target holds: nothing, something else, or an older copy.
        let before = match rng.below(3) {
            0 => Files::new(),
            1 => files::random(rng),
            _ => {
                let mut older = files.clone();
                files::change(rng, &mut older);
                older
            }
        };
        realm.plan(reads_back);
        let shown = setting.clone();
        realm.trace(|| format!("{shown:?} {files:x?} onto {before:x?}"));
        Self {
            realm,
            checker: Checker::new(&files),
            files,
            sources: Default::default(),
            target: Self::new_target(&Known::default(), setting.reuse, false),
            is_staged: false,
            disk: Disk::new(&before),
            journal: JournalFile::default(),
            proof: JournalFile::default(),
            is_storage_changed: false,
            rot_count: 0,
            has_changed: false,
            setting,
        }
    }

    /// How long a source takes for a piece.
    pub(crate) fn pace(&mut self) -> Duration {
        self.realm.rng.millis(0, self.setting.pace_ms)
    }

    pub(crate) fn storage_changed(&mut self) {
        self.is_storage_changed = true;
        self.checker.journal_changed(&self.journal);
    }
}

impl Scene for World {
    type Payload = Payload;
    type Work = Work;

    fn realm(&mut self) -> &mut Realm<Payload, Work> {
        &mut self.realm
    }

    fn source_due(&self, source: usize) -> Option<Instant> {
        self.sources[source]
            .session
            .as_ref()?
            .machine
            .poll_timeout()
    }

    fn target_due(&self) -> Option<Instant> {
        let sessions = self.target.sessions.values();
        sessions
            .filter_map(|session| session.machine.poll_timeout())
            .min()
    }

    fn source_timeout(&mut self, source: usize) -> Checked {
        self.wake_source(source)
    }

    fn target_timeout(&mut self) -> Checked {
        self.wake_target()
    }

    fn source_receives(&mut self, source: usize, id: ConnectionId, payload: Payload) -> Checked {
        self.tell_source(source, id, payload)
    }

    fn target_receives(&mut self, id: ConnectionId, payload: Payload) -> Checked {
        self.tell_target(id, payload)
    }

    fn dial(&mut self, source: usize) -> Checked {
        self.begin_session(source)
    }

    fn forget_source(&mut self, source: usize) {
        self.sources[source] = SourceAgent::default();
    }

    fn start_target(&mut self) -> Checked {
        self.run_target()
    }

    fn kill_target(&mut self, has_power: bool, is_journal_lost: bool) -> Checked {
        self.crash_target(has_power, is_journal_lost);
        Ok(())
    }

    fn read(&mut self, source: usize, connection: ConnectionId) -> Checked {
        self.read_more(source, connection)
    }

    fn work_done(&mut self, epoch: u64, work: Work) -> Checked {
        self.end_work(epoch, work)
    }

    fn change_source(&mut self) {
        files::change(&mut self.realm.rng, &mut self.files);
        self.checker.source_changed(&self.files);
        self.has_changed = true;
        self.is_storage_changed = true;
    }

    fn rot(&mut self) {
        let mut sessions = self.target.sessions.values();
        let is_read = sessions.any(|session| session.is_read_back);
        if !is_read && self.disk.rot(&mut self.realm.rng) {
            self.rot_count += 1;
            self.is_storage_changed = true;
        }
    }

    fn check_step(&mut self) -> Checked {
        if std::mem::take(&mut self.is_storage_changed) {
            self.checker.check_disk(&self.disk, &self.files)?;
        }
        Ok(())
    }

    fn may_end_with(&self, code: FailureCode) -> bool {
        match code {
            // Of two sources, one may have read what the other has not proven.
            FailureCode::Integrity => {
                let is_one_of_two = self.realm.lives.iter().all(|life| life.run > 0);
                let has_kept_bad = self.setting.reuse == Reuse::Times && self.rot_count > 0;
                let differ = self.has_changed || has_kept_bad;
                self.rot_count > REPAIRS_MAX || is_one_of_two && differ
            }
            _ => false,
        }
    }
}
