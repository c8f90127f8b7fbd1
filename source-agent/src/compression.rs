//! Compresses what the reading threads put into the queue, each on the thread that read it.
//!
//! With `auto` the threads also look, a few times in a second, whether it pays: see
//! [`auto`](volferry_protocol::compression::auto).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use volferry_agent::progress::{Counter, Progress};
use volferry_protocol::compression::auto::{Auto, Sampler, Seen};
use volferry_protocol::compression::{Codecs, Compressed, Compressor, Method, Wanted};
use volferry_protocol::zero_map::ZeroMap;

/// How often `auto` looks at what was seen.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How much is queued at most while `auto` knows nothing yet: what is queued leaves as it is, and on a slow
/// network that takes longer than to find out. Enough to keep the connections busy meanwhile.
const UNDECIDED_BYTES_MAX: u64 = 8 << 20;

/// What a thread waits before it looks again whether it may go on.
const UNDECIDED_PAUSE: Duration = Duration::from_millis(5);

/// What the threads of a session share.
#[derive(Debug)]
pub(crate) struct Compression {
    choice: Choice,
    progress: Arc<Progress>,
    /// Payload bytes that were put into the queue.
    queued_bytes: Counter,
    /// What had been sent before this session.
    sent_before: u64,
    /// As many as threads compressed at once so far.
    presses: Mutex<Vec<Press>>,
}

#[derive(Debug)]
enum Choice {
    Fixed(Option<Method>),
    Auto(Mutex<Looking>),
}

#[derive(Debug)]
struct Looking {
    auto: Auto,
    looked_at: Instant,
}

impl Compression {
    /// What was wanted, as far as the ends agreed on it.
    pub(crate) fn new(wanted: Wanted, codecs: Codecs, progress: &Arc<Progress>) -> Self {
        let choice = match wanted {
            Wanted::Always(method) if codecs.holds(method.codec()) => Choice::Fixed(Some(method)),
            Wanted::Auto if codecs != Codecs::NONE => Choice::Auto(Mutex::new(Looking {
                auto: Auto::new(codecs),
                looked_at: Instant::now(),
            })),
            Wanted::Always(_) | Wanted::Auto => {
                tracing::info!("the target knows no such compression: nothing is compressed");
                Choice::Fixed(None)
            }
            Wanted::None => Choice::Fixed(None),
        };
        Self {
            choice,
            queued_bytes: Counter::default(),
            sent_before: progress.payload_bytes.sum(),
            progress: Arc::clone(progress),
            presses: Mutex::default(),
        }
    }

    /// Compresses the payload of `chunk` to its front, or leaves it as it is.
    pub(crate) fn compress(&self, zero_map: &ZeroMap, chunk: &mut [u8]) -> Option<Compressed> {
        let mut method = self.method();
        // It ends soon, whatever the connections do: a rate of nothing is one, too.
        while method.is_none() && self.holds_back() {
            std::thread::sleep(UNDECIDED_PAUSE);
            method = self.method();
        }
        self.queued_bytes.add(zero_map.data_len().into());
        let method = method?;
        let mut press = self.presses().pop().unwrap_or_default();
        let compress = || {
            let data_runs = zero_map.runs().filter(|run| !run.is_zero);
            let longest = chunk.get(data_runs.max_by_key(|run| run.len())?.indices())?;
            let is_auto = matches!(self.choice, Choice::Auto(_));
            if is_auto && !press.sampler.is_worth_it(&mut press.compressor, longest) {
                return None;
            }
            press.compressor.compress_in_place(method, zero_map, chunk)
        };
        let compressed = self.progress.effort.cpu.time_blocking(compress);
        self.presses().push(press);
        compressed
    }

    fn presses(&self) -> MutexGuard<'_, Vec<Press>> {
        self.presses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do to the next payload.
    fn method(&self) -> Option<Method> {
        let looking = match &self.choice {
            Choice::Fixed(method) => return *method,
            Choice::Auto(looking) => looking,
        };
        let mut looking = looking.lock().unwrap_or_else(PoisonError::into_inner);
        let before = looking.auto.method();
        let now = Instant::now();
        if now.saturating_duration_since(looking.looked_at) >= LOOK_INTERVAL {
            looking.looked_at = now;
            looking.auto.look(now, self.seen());
        }
        let method = looking.auto.method();
        if method != before {
            let compression = Wanted::from(method);
            tracing::debug!(%compression, "compression changes");
        }
        method
    }

    /// Whether enough is queued for as long as nothing is known.
    fn holds_back(&self) -> bool {
        let Choice::Auto(looking) = &self.choice else {
            return false;
        };
        let looking = looking.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.seen();
        let queued = seen.queued_bytes.saturating_sub(seen.sent_bytes);
        looking.auto.is_undecided() && queued >= UNDECIDED_BYTES_MAX
    }

    fn seen(&self) -> Seen {
        let waits = self.progress.waits();
        Seen {
            queued_bytes: self.queued_bytes.sum(),
            sent_bytes: self.progress.payload_bytes.sum() - self.sent_before,
            volume_wait_seconds: waits.volume_wait_seconds,
            beyond_wait_seconds: waits.peer_wait_seconds + waits.throttle_wait_seconds,
        }
    }
}

/// What a thread compresses with while it does.
#[derive(Debug, Default)]
struct Press {
    compressor: Compressor,
    sampler: Sampler,
}
