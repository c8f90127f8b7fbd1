//! How far a clone is: durable bytes, the rate, the ETA, and what limits it now.
//!
//! The agent's tasks and threads add to atomics; anybody may take a [`Report`] at any time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use volferry_protocol::compression::Compressed;
use volferry_protocol::geometry::ChunkIndex;
use volferry_protocol::journal::Checkpoint;
use volferry_protocol::receipt::{CompressionStats, TransportStats};
use volferry_protocol::session::Stage;
use volferry_protocol::waits::{Limit, Waits, limit_at_source, limit_at_target};

use crate::throttle::Throttle;

/// The rate is taken over this window: long enough to bridge the flushes, in whose rhythm durable
/// bytes grow, short enough to show a change soon.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Which end of a clone an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It reads.
    Source,
    /// It writes.
    Target,
}

impl End {
    /// The end in one word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// The counters of one agent.
#[derive(Debug)]
pub struct Progress {
    end: End,
    clone_id: Uuid,
    started_at: Instant,
    stage: Mutex<Stage>,
    logical_bytes: AtomicU64,
    durable_bytes: AtomicU64,
    resumed_bytes: AtomicU64,
    data_bytes: AtomicU64,
    zero_bytes: AtomicU64,
    entries: AtomicU64,
    checked_bytes: AtomicU64,
    travelled: Mutex<Travelled>,
    session_count: AtomicU64,
    /// When something last became durable or was checked; `None` before the first session.
    grown_at: Mutex<Option<Instant>>,
    checkpoint: Mutex<Option<Checkpoint>>,
    transport: Mutex<TransportStats>,
    connections: Gauge,
    connections_max: AtomicU64,
    /// Bytes handed to the transport, or taken from it, before encryption.
    pub wire_bytes: Counter,
    /// Payload bytes that were sent or received, as they are without compression.
    pub payload_bytes: Counter,
    /// Of these, those that travelled compressed, and what they had become.
    compressed_bytes: Counter,
    compressed_to_bytes: Counter,
    /// Time that the tasks of the data connections waited for the volume: for a chunk that was
    /// read, or for a buffer that was written.
    pub volume_wait: Clock,
    /// Time that they waited for the peer.
    pub peer_wait: Clock,
    /// Time that they waited for the bandwidth limit, or gave way to others.
    pub throttle_wait: Clock,
    /// What the threads behind the volume did.
    pub effort: Arc<Effort>,
    /// What waits between the volume's threads and the connections.
    pub queued: Gauge,
    /// The limit of what this agent moves.
    pub throttle: Throttle,
    samples: Mutex<VecDeque<Sample>>,
}

/// The time of the threads behind a volume, added over all of them.
#[derive(Debug, Default)]
pub struct Effort {
    /// They read or wrote the volume.
    pub io: Clock,
    /// They looked for zeros, and hashed.
    pub cpu: Clock,
}

/// The chunks that went from end to end, in all sessions of this agent.
#[derive(Debug, Default)]
struct Travelled {
    /// A bit for each chunk, in pages by number: what is sparse or compared has many gaps, and a volume
    /// may say to be of any size.
    pages: BTreeMap<u64, Page>,
    sent_bytes: u64,
    resent_bytes: u64,
}

impl Travelled {
    /// Says whether the chunk had travelled before.
    fn note(&mut self, index: ChunkIndex) -> bool {
        let page = self.pages.entry(index.0 / PAGE_LEN).or_default();
        let (at, bit) = (index.0 % PAGE_LEN, 1 << (index.0 % 64));
        let word = page.get_mut((at / 64) as usize);
        word.is_some_and(|word| std::mem::replace(word, *word | bit) & bit != 0)
    }
}

/// Some chunks beside each other.
type Page = [u64; 8];

/// Chunks of a page.
const PAGE_LEN: u64 = 8 * 64;

/// Progress at a moment when durable bytes grew.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    durable_bytes: u64,
    waits: Waits,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The sum so far.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number as it is now.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// It is `now`.
    pub fn set(&self, now: usize) {
        self.0.store(now as u64, Ordering::Relaxed);
    }

    /// What it was set to last.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Time that adds up.
#[derive(Debug, Default)]
pub struct Clock(Counter);

impl Clock {
    /// Runs while `work` does.
    pub async fn time<T>(&self, work: impl Future<Output = T>) -> T {
        let since = Instant::now();
        let result = work.await;
        self.add(since.elapsed());
        result
    }

    /// The same for work that blocks.
    pub fn time_blocking<T>(&self, work: impl FnOnce() -> T) -> T {
        let since = Instant::now();
        let result = work();
        self.add(since.elapsed());
        result
    }

    fn add(&self, time: Duration) {
        self.0
            .add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// The sum so far.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.0.sum())
    }
}

/// Progress at one moment, as `/progress` gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The clone.
    pub clone_id: Uuid,
    /// Which end reports.
    pub end: End,
    /// `handshake`, `transfer`, `verify` or `done`.
    pub stage: String,
    /// Bytes of the volume; 0 until the ends have met.
    pub logical_bytes: u64,
    /// Bytes that are durable at the target.
    pub durable_bytes: u64,
    /// Of these, bytes that were durable before this session.
    pub resumed_bytes: u64,
    /// Bytes in blocks that hold data, read or written so far.
    pub data_bytes: u64,
    /// Bytes that are zero and didn't travel.
    pub zero_bytes: u64,
    /// Names of a tree that were read or made so far; 0 for a block volume.
    #[serde(default)]
    pub entries: u64,
    /// Bytes of data that went from end to end in all sessions of this agent.
    pub sent_bytes: u64,
    /// Of these, bytes that went more than once.
    pub resent_bytes: u64,
    /// Bytes of the target that were read to compare or verify them.
    pub checked_bytes: u64,
    /// Bytes handed to the transport, or taken from it, before encryption.
    pub wire_bytes: u64,
    /// What compression saved.
    #[serde(flatten)]
    pub compression: CompressionStats,
    /// Chunks or packs that wait: at the source to be sent, at the target to be written.
    #[serde(default)]
    pub queued: u64,
    /// Data connections that there are now.
    #[serde(default)]
    pub connections: u64,
    /// Sessions so far, as this agent has seen them; a reconnect begins a new one.
    pub sessions: u64,
    /// Seconds since the agent started.
    pub seconds: f64,
    /// Durable bytes a second, over the last ten seconds.
    pub bytes_per_second: f64,
    /// Seconds until all is durable, at this rate; absent while that can't be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// What held the clone up most in the window of the rate, as this end sees it.
    pub limit: Limit,
    /// Its share of that time, from 0 to 1.
    #[serde(default)]
    pub limit_share: f64,
    /// Where the time went, since the agent started.
    #[serde(flatten)]
    pub waits: Waits,
    /// The same in the window of the rate.
    #[serde(default)]
    pub recent_waits: Waits,
    /// Bytes that may be sent each second; 0 for no limit.
    #[serde(default)]
    pub bandwidth_limit: u64,
    /// The limit that an observer of the clone asked for: what the target tells the source, and what the
    /// source was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_bandwidth_limit: Option<u64>,
    /// Bytes that may move each second because of the pressure on the node; 0 for no limit.
    #[serde(default)]
    pub pressure_limit: u64,
    /// What the session runs over, and why.
    #[serde(flatten)]
    pub transport: TransportStats,
    /// What is durable, for `--resume-from` of a new target agent; only at the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpoint>,
}

impl Progress {
    /// Progress of the agent at `end`, from nothing.
    #[must_use]
    pub fn new(end: End, clone_id: Uuid) -> Self {
        Self {
            end,
            clone_id,
            started_at: Instant::now(),
            stage: Mutex::new(Stage::Handshake),
            logical_bytes: AtomicU64::new(0),
            durable_bytes: AtomicU64::new(0),
            resumed_bytes: AtomicU64::new(0),
            data_bytes: AtomicU64::new(0),
            zero_bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            checked_bytes: AtomicU64::new(0),
            travelled: Mutex::default(),
            session_count: AtomicU64::new(0),
            grown_at: Mutex::new(None),
            checkpoint: Mutex::new(None),
            transport: Mutex::default(),
            connections: Gauge::default(),
            connections_max: AtomicU64::new(0),
            wire_bytes: Counter::default(),
            payload_bytes: Counter::default(),
            compressed_bytes: Counter::default(),
            compressed_to_bytes: Counter::default(),
            volume_wait: Clock::default(),
            peer_wait: Clock::default(),
            throttle_wait: Clock::default(),
            effort: Arc::default(),
            queued: Gauge::default(),
            throttle: Throttle::default(),
            samples: Mutex::new(VecDeque::new()),
        }
    }

    /// The clone.
    #[must_use]
    pub const fn clone_id(&self) -> Uuid {
        self.clone_id
    }

    /// The session is at `stage`.
    pub fn set_stage(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    /// Where the session is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session was agreed on, for a volume of `logical_bytes` of which `resumed_bytes` are
    /// durable already.
    pub fn set_volume(&self, logical_bytes: u64, resumed_bytes: u64) {
        self.logical_bytes.store(logical_bytes, Ordering::Relaxed);
        self.resumed_bytes.store(resumed_bytes, Ordering::Relaxed);
        self.durable_bytes.store(resumed_bytes, Ordering::Relaxed);
        self.session_count.fetch_add(1, Ordering::Relaxed);
        // A new session is no progress yet.
        self.grown_at().get_or_insert_with(Instant::now);
        self.sample(resumed_bytes);
    }

    /// So many bytes of data and of zeros were read or written.
    pub fn set_moved(&self, data_bytes: u64, zero_bytes: u64) {
        self.data_bytes.store(data_bytes, Ordering::Relaxed);
        self.zero_bytes.store(zero_bytes, Ordering::Relaxed);
    }

    /// A tree turned out to hold so many bytes.
    pub fn set_size(&self, logical_bytes: u64) {
        self.logical_bytes.store(logical_bytes, Ordering::Relaxed);
    }

    /// So many names of a tree were read or made.
    pub fn set_entries(&self, entries: u64) {
        // Many have no bytes that could grow durable. A session that begins anew is no progress.
        if self.entries.swap(entries, Ordering::Relaxed) < entries {
            *self.grown_at() = Some(Instant::now());
        }
    }

    /// So much is durable at the target. Says whether that is news.
    pub fn set_durable(&self, durable_bytes: u64) -> bool {
        let before = self.durable_bytes.swap(durable_bytes, Ordering::Relaxed);
        if before != durable_bytes {
            self.sample(durable_bytes);
        }
        if before < durable_bytes {
            *self.grown_at() = Some(Instant::now());
        }
        before != durable_bytes
    }

    /// How much is durable at the target, as far as this end knows.
    #[must_use]
    pub fn durable_bytes(&self) -> u64 {
        self.durable_bytes.load(Ordering::Relaxed)
    }

    /// A payload of so many bytes was sent, or received.
    pub fn count_payload(&self, len: u32, compressed: Option<Compressed>) {
        self.payload_bytes.add(len.into());
        if let Some(compressed) = compressed {
            self.compressed_bytes.add(len.into());
            self.compressed_to_bytes.add(compressed.len.into());
        }
    }

    /// What compression saved so far.
    #[must_use]
    pub fn compression(&self) -> CompressionStats {
        CompressionStats {
            compressed_bytes: self.compressed_bytes.sum(),
            compressed_to_bytes: self.compressed_to_bytes.sum(),
        }
    }

    /// A chunk with so many bytes of data was sent, or taken in.
    pub fn count_chunk(&self, index: ChunkIndex, data_len: u32) {
        let mut travelled = self.travelled();
        let data_len = u64::from(data_len);
        travelled.sent_bytes += data_len;
        if travelled.note(index) {
            travelled.resent_bytes += data_len;
        }
    }

    fn travelled(&self) -> MutexGuard<'_, Travelled> {
        self.travelled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// So much of the target was read to compare or verify it.
    pub fn set_checked(&self, checked_bytes: u64) {
        if self.checked_bytes.swap(checked_bytes, Ordering::Relaxed) < checked_bytes {
            *self.grown_at() = Some(Instant::now());
        }
    }

    /// A session runs over `transport`, for the reason that is known at this end.
    pub fn set_transport(&self, transport: &str, why: Option<String>) {
        let mut stats = self
            .transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *stats = TransportStats {
            transport: Some(transport.to_owned()),
            transport_why: why,
            connections_max: None,
        };
    }

    /// There are so many data connections now.
    pub fn set_connections(&self, now: usize) {
        self.connections.set(now);
        let max = &self.connections_max;
        max.fetch_max(self.connections.get(), Ordering::Relaxed);
    }

    /// What the last session ran over, and why.
    #[must_use]
    pub fn transport(&self) -> TransportStats {
        let stats = self
            .transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let most = self.connections_max.load(Ordering::Relaxed);
        TransportStats {
            connections_max: u16::try_from(most).ok().filter(|most| *most > 0),
            ..stats.clone()
        }
    }

    /// What a new target agent could go on from.
    pub fn set_checkpoint(&self, checkpoint: Checkpoint) {
        *self
            .checkpoint
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(checkpoint);
    }

    /// How long nothing has become durable, and nothing was checked; `None` before the first
    /// session.
    #[must_use]
    pub fn stalled_for(&self) -> Option<Duration> {
        self.grown_at().map(|at| at.elapsed())
    }

    fn grown_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.grown_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample(&self, durable_bytes: u64) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.push_back(Sample {
            at: Instant::now(),
            durable_bytes,
            waits: self.waits(),
        });
        // The oldest sample that is kept lies just outside the window.
        while samples
            .get(1)
            .is_some_and(|second| second.at.elapsed() > RATE_WINDOW)
        {
            samples.pop_front();
        }
    }

    /// Progress now.
    #[must_use]
    pub fn report(&self) -> Report {
        let logical_bytes = self.logical_bytes.load(Ordering::Relaxed);
        let durable_bytes = self.durable_bytes.load(Ordering::Relaxed);
        let bytes_per_second = self.rate();
        let left = logical_bytes.saturating_sub(durable_bytes);
        // How large a tree is, nobody knows before its end.
        let is_known = logical_bytes > 0 && bytes_per_second > 0.0;
        let eta_seconds = is_known.then(|| left as f64 / bytes_per_second);
        let (sent_bytes, resent_bytes) = {
            let travelled = self.travelled();
            (travelled.sent_bytes, travelled.resent_bytes)
        };
        let recent_waits = self.recent_waits();
        let limited = match self.end {
            End::Source => limit_at_source(&recent_waits),
            End::Target => limit_at_target(&recent_waits),
        };
        Report {
            clone_id: self.clone_id,
            end: self.end,
            stage: self.stage().label().to_owned(),
            logical_bytes,
            durable_bytes,
            resumed_bytes: self.resumed_bytes.load(Ordering::Relaxed),
            data_bytes: self.data_bytes.load(Ordering::Relaxed),
            zero_bytes: self.zero_bytes.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
            sent_bytes,
            resent_bytes,
            checked_bytes: self.checked_bytes.load(Ordering::Relaxed),
            wire_bytes: self.wire_bytes.sum(),
            compression: self.compression(),
            queued: self.queued.get(),
            connections: self.connections.get(),
            sessions: self.session_count.load(Ordering::Relaxed),
            seconds: self.started_at.elapsed().as_secs_f64(),
            bytes_per_second,
            eta_seconds,
            limit: limited.limit,
            limit_share: limited.share,
            waits: self.waits(),
            recent_waits,
            bandwidth_limit: self.throttle.bytes_per_second(),
            asked_bandwidth_limit: self.throttle.asked(),
            pressure_limit: self.throttle.yielded(),
            transport: self.transport(),
            checkpoint: self
                .checkpoint
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// Durable bytes a second since the window began.
    fn rate(&self) -> f64 {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some(first), Some(last)) = (begin_of_window(&samples), samples.back()) else {
            return 0.0;
        };
        let bytes = last.durable_bytes.saturating_sub(first.durable_bytes);
        let seconds = first.at.elapsed().as_secs_f64();
        if seconds > 0.0 {
            bytes as f64 / seconds
        } else {
            0.0
        }
    }

    /// Waits until `len` bytes more may move.
    pub async fn wait_turn(&self, mut len: usize) {
        while len > 0 {
            match self.throttle.try_take(len) {
                Some(piece) => len -= piece,
                None => self.throttle_wait.time(self.throttle.wait()).await,
            }
        }
    }

    /// Where the time went so far.
    #[must_use]
    pub fn waits(&self) -> Waits {
        Waits {
            volume_wait_seconds: self.volume_wait.sum().as_secs_f64(),
            peer_wait_seconds: self.peer_wait.sum().as_secs_f64(),
            throttle_wait_seconds: self.throttle_wait.sum().as_secs_f64(),
            volume_io_seconds: self.effort.io.sum().as_secs_f64(),
            volume_cpu_seconds: self.effort.cpu.sum().as_secs_f64(),
        }
    }

    /// Where it went in the window of the rate; nowhere before the ends have met.
    fn recent_waits(&self) -> Waits {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let first = begin_of_window(&samples).map(|first| first.waits);
        first.map_or_else(Waits::default, |first| self.waits().since(&first))
    }
}

/// The last sample before the window, else the first in it. Samples come only while something moves.
fn begin_of_window(samples: &VecDeque<Sample>) -> Option<&Sample> {
    let is_before = |sample: &&Sample| sample.at.elapsed() > RATE_WINDOW;
    samples
        .iter()
        .rev()
        .find(is_before)
        .or_else(|| samples.front())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eta_follows_from_the_rate() {
        let progress = Progress::new(End::Target, Uuid::nil());
        assert_eq!(progress.report().eta_seconds, None, "nothing has moved");
        progress.set_volume(1000, 200);
        std::thread::sleep(Duration::from_millis(20));
        progress.set_durable(600);
        let report = progress.report();
        assert!(report.bytes_per_second > 0.0 && report.bytes_per_second <= 400.0 / 0.02);
        let eta = report.eta_seconds.unwrap();
        assert!(
            (eta * report.bytes_per_second - 400.0).abs() < 1e-6,
            "what is left, at that rate"
        );
        assert_eq!(
            report.resumed_bytes, 200,
            "what was there before is no rate"
        );
    }

    #[test]
    fn what_travels_twice_is_told() {
        let progress = Progress::new(End::Source, Uuid::nil());
        for (index, data_len) in [(3, 10), (0, 20), (3, 10), (1, 5)] {
            progress.count_chunk(ChunkIndex(index), data_len);
        }
        let report = progress.report();
        assert_eq!((report.sent_bytes, report.resent_bytes), (45, 10));
    }

    #[test]
    fn chunks_anywhere_take_little_memory() {
        let progress = Progress::new(End::Target, Uuid::nil());
        for index in [u64::MAX, 1 << 46, 511, 512, 1 << 46, u64::MAX] {
            progress.count_chunk(ChunkIndex(index), 1);
        }
        assert_eq!(progress.report().resent_bytes, 2);
        assert_eq!(progress.travelled().pages.len(), 4);
    }

    #[test]
    fn what_moved_before_the_window_is_no_rate() {
        let progress = Progress::new(End::Target, Uuid::nil());
        progress.set_volume(10_000, 0);
        progress.set_durable(4000);
        assert!(progress.report().bytes_per_second > 0.0);
        for sample in progress.samples.lock().unwrap().iter_mut() {
            sample.at = sample.at.checked_sub(2 * RATE_WINDOW).unwrap();
        }
        let report = progress.report();
        assert_eq!((report.bytes_per_second, report.eta_seconds), (0.0, None));
    }

    /// A session that begins anew counts from nothing.
    #[test]
    fn what_falls_is_no_progress() {
        let progress = Progress::new(End::Target, Uuid::nil());
        progress.set_volume(100, 0);
        let grow = |value| {
            progress.set_entries(value);
            progress.set_checked(value);
            progress.set_durable(value)
        };
        assert!(grow(9));
        let grown_at = *progress.grown_at();
        assert!(grow(3), "which is news");
        assert_eq!(*progress.grown_at(), grown_at);
        assert!(grow(4));
        assert_ne!(*progress.grown_at(), grown_at);
    }

    #[test]
    fn what_was_waited_for_before_the_ends_have_met_does_not_count() {
        let source = Progress::new(End::Source, Uuid::nil());
        let seconds = Duration::from_secs;
        source.volume_wait.add(seconds(100));
        assert_eq!(source.report().limit, Limit::Unknown);
        source.set_volume(1, 0);
        source.peer_wait.add(seconds(6));
        source.throttle_wait.add(seconds(3));
        source.volume_wait.add(seconds(1));
        let report = source.report();
        assert_eq!(report.limit, Limit::Peer);
        assert!((report.limit_share - 0.6).abs() < 1e-9, "{report:?}");
        assert!((report.waits.volume_wait_seconds - 101.0).abs() < 1e-9);
    }
}
