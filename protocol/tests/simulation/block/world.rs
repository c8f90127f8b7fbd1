//! The world of a run that clones a block volume.

use std::time::Instant;

use volferry_protocol::digest::Digest;
use volferry_protocol::failure::FailureCode;
use volferry_protocol::geometry::{ChunkRange, ChunkSize, Geometry};
use volferry_protocol::receipt::Verified;

use super::checker::Checker;
use super::content;
use super::disk::Disk;
use super::source::SourceAgent;
use super::target::{TargetAgent, Work};
use crate::fencing::Checked;
use crate::journal_file::JournalFile;
use crate::network::{self, ConnectionId};
use crate::realm::{Broken, Realm, Scene};
use crate::tag::Tag;

/// What a run is set to do.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) streams: u16,
    /// With how many more a round may go on.
    pub(crate) further: Option<u16>,
    pub(crate) flush_bytes: u64,
    pub(crate) has_journal: bool,
    pub(crate) verify: Verified,
    /// Chunks are offered first.
    pub(crate) offer: bool,
    /// When the source changed, its chunks are offered; else it is refused.
    pub(crate) offers_changed: bool,
    /// Of a hundred offers, those that are damaged.
    pub(crate) corrupt_offers: u64,
    pace_ms: u64,
    pub(crate) broken: Broken,
}

pub(crate) type Payload = network::Payload<Frame>;

/// What a data connection carries.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Chunk { index: u64, tag: Tag },
    Zero(ChunkRange),
    Offer { index: u64, digest: Digest },
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) realm: Realm<Payload, Work>,
    pub(crate) setting: Setting,
    pub(crate) geometry: Geometry,
    pub(crate) sources: [SourceAgent; 2],
    pub(crate) target: TargetAgent,
    pub(crate) disk: Disk,
    pub(crate) journal: JournalFile,
    pub(crate) checker: Checker,
    pub(crate) is_disk_changed: bool,
    rot_count: usize,
}

impl World {
    pub(crate) fn new(seed: u64, broken: Broken, is_shown: bool) -> Self {
        let mut realm = Realm::new(seed, is_shown);
        let rng = &mut realm.rng;
        let count = if rng.chance(10) {
            rng.below(3)
        } else {
            rng.below(41)
        };
        // A last chunk of one byte.
        let size = count * u64::from(ChunkSize::MIN.bytes());
        let size = size.saturating_sub(rng.below(2) * u64::from(ChunkSize::MIN.bytes() - 1));
        let geometry = Geometry::new(size, ChunkSize::MIN).expect("a small volume");
        let count = geometry.chunk_count() as usize;
        let setting = Setting {
            streams: 1 + rng.below(4) as u16,
            further: [Some(1), None, Some(3), None][(seed % 4) as usize],
            flush_bytes: (1 + rng.below(8)) * u64::from(ChunkSize::MIN.bytes()),
            has_journal: rng.chance(70),
            verify: if rng.chance(40) {
                Verified::Readback
            } else {
                Verified::Digest
            },
            offer: rng.chance(30),
            offers_changed: rng.chance(60),
            corrupt_offers: if rng.chance(20) { 20 } else { 0 },
            pace_ms: 1 + rng.below(400),
            broken,
        };
        let source = content::random(rng, count);
        // What the target holds: nothing, something else, or an older copy.
        let before = match rng.below(3) {
            0 => vec![0; count],
            1 => content::random(rng, count),
            _ => {
                let mut older = source.clone();
                for tag in &mut older {
                    if rng.chance(20) {
                        *tag = rng.u64() >> 1;
                    }
                }
                older
            }
        };
        realm.plan(setting.verify == Verified::Readback);
        let shown = setting.clone();
        realm.trace(|| format!("{shown:?} {geometry:?}"));
        Self {
            realm,
            geometry,
            sources: Default::default(),
            target: TargetAgent::default(),
            disk: Disk::new(before),
            journal: JournalFile::default(),
            checker: Checker::new(geometry, setting.has_journal, source),
            is_disk_changed: false,
            rot_count: 0,
            setting,
        }
    }

    /// How long a source takes for a chunk.
    pub(crate) fn pace(&mut self) -> std::time::Duration {
        self.realm.rng.millis(0, self.setting.pace_ms)
    }

    pub(crate) fn storage_changed(&mut self) -> Checked {
        self.is_disk_changed = true;
        self.checker.journal_changed(&self.journal)
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
        self.run_target();
        Ok(())
    }

    fn kill_target(&mut self, has_power: bool, is_journal_lost: bool) -> Checked {
        self.crash_target(has_power, is_journal_lost)
    }

    fn read(&mut self, source: usize, connection: ConnectionId) -> Checked {
        self.read_more(source, connection)
    }

    fn work_done(&mut self, epoch: u64, work: Work) -> Checked {
        self.end_work(epoch, work)
    }

    fn change_source(&mut self) {
        let mut content = self.checker.content().to_vec();
        let rng = &mut self.realm.rng;
        for tag in &mut content {
            if rng.chance(30) {
                *tag = if rng.chance(30) { 0 } else { rng.u64() >> 1 };
            }
        }
        self.checker.source_changed(content);
    }

    fn rot(&mut self) {
        let count = self.disk.durable().len();
        let mut sessions = self.target.sessions.values();
        let is_read = sessions.any(|session| session.is_read_back);
        if count > 0 && !is_read {
            let index = self.realm.rng.index(count);
            self.disk.rot(index);
            self.rot_count += 1;
            self.is_disk_changed = true;
        }
    }

    fn check_step(&mut self) -> Checked {
        if std::mem::take(&mut self.is_disk_changed) {
            self.checker.check_disk(&self.disk)?;
        }
        Ok(())
    }

    fn may_end_with(&self, code: FailureCode) -> bool {
        match code {
            FailureCode::SourceChanged => {
                self.checker.generation() > 0 && !self.setting.offers_changed
            }
            FailureCode::Integrity => self.rot_count > 3,
            _ => false,
        }
    }
}
