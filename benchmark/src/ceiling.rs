//! The parts of a clone, each alone: what it could do at most if nothing else were to be done.
//!
//! Each runs the code that the agents run, with as many threads and connections, past the page cache
//! or through it as they do. One measurement is a [`Measured`]: how much in which time, at the price
//! of how much processor time.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use volferry_protocol::failure::{Failure, FailureCode};

use crate::cost::Cost;
use crate::place::Place;
use crate::settings::Settings;
use crate::shape::Shape;
use crate::stats::Latency;
use crate::stop::Stop;

pub mod cpu;
pub mod network;
pub mod storage;
pub mod tree;

/// Makes the enum, its words and its sentences from one line each.
macro_rules! ceilings {
    ($($variant:ident = $word:literal, $sentence:literal;)*) => {
        /// A part of a clone.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Kind {
            $(#[doc = $sentence] #[serde(rename = $word)] $variant,)*
        }

        impl Kind {
            /// Every one, in the order of a clone.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word for it in reports.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// What is measured, in words.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* }
            }
        }
    };
}

ceilings! {
    SourceRead = "source_read", "reading the source";
    ScratchRead = "scratch_read", "reading a generated source";
    ZeroScan = "zero_scan", "looking for zeros, in zeros";
    DataScan = "data_scan", "looking for zeros, in data";
    Hash = "hash", "BLAKE3 of chunks";
    FreshMemory = "fresh_memory", "memory for chunks, touched for the first time";
    TlsSeal = "tls_seal", "sealing TLS records";
    TlsOpen = "tls_open", "opening TLS records";
    Tls1 = "tls_1", "the network: TLS, one stream";
    TlsN = "tls_n", "the network: TLS, all streams";
    Quic1 = "quic_1", "the network: QUIC, one stream";
    QuicN = "quic_n", "the network: QUIC, all streams";
    TargetWrite = "target_write", "writing the target, and flushing it";
    ReadWrite = "read_write", "reading a generated source and writing the target at once";
    NetworkPaced = "network_paced", "the network, no faster than reading and writing at once";
    TreeRead = "tree_read", "reading a tree of small files";
    TreeWrite = "tree_write", "making a tree of small files, and flushing it";
    TreeReadWrite = "tree_read_write", "reading a tree of small files and making it at once";
    Session = "session", "a clone of almost nothing";
}

/// How often, and for how long.
pub const CPU_TIME: Duration = Duration::from_millis(300);

/// How long streams are filled.
pub const NETWORK_TIME: Duration = Duration::from_millis(500);

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What it cost.
    #[serde(flatten)]
    pub cost: Cost,
    /// Bytes that went through.
    pub bytes: u64,
    /// Bytes of those in blocks that hold data, where it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_bytes: Option<u64>,
    /// Names of a tree that were read or made; 0 where there are none.
    #[serde(default)]
    pub names: u64,
    /// How long single operations took: `read`, `write`, `flush`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub latencies: BTreeMap<String, Latency>,
    /// Whether the volume was read and written past the page cache, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<bool>,
}

impl Measured {
    /// Bytes a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.cost.seconds.max(f64::MIN_POSITIVE)
    }
}

/// What a ceiling is measured with.
#[derive(Debug)]
pub struct Bench<'a> {
    /// What was told.
    pub settings: &'a Settings,
    /// Where to write.
    pub place: &'a Place,
    /// The generated block volumes, the densest first.
    pub volumes: &'a [Shape],
    /// The user's own.
    pub own_volume: Option<&'a Shape>,
    /// The generated tree.
    pub tree: Option<&'a Shape>,
    /// Credentials and chunks.
    pub cpu: &'a cpu::Workbench,
    /// Who asks for an end.
    pub stop: &'a Stop,
}

impl Bench<'_> {
    /// The densest of the generated volumes.
    ///
    /// # Errors
    /// When there is none.
    pub fn volume(&self) -> Result<&Shape, Failure> {
        self.volumes.first().ok_or_else(|| {
            Failure::new(
                FailureCode::Usage,
                "no block volume is to be cloned; name a --profile",
            )
        })
    }
}

/// Runs `work` on as many named threads as told, and gathers what they give.
///
/// # Errors
/// The first that a thread fails with.
pub(crate) fn on_threads<T: Send>(
    name: &str,
    count: usize,
    work: impl Fn(usize) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    std::thread::scope(|scope| {
        let work = &work;
        let start = |number| {
            std::thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn_scoped(scope, move || work(number))
        };
        let threads = (0..count.max(1)).map(start).collect::<Result<Vec<_>, _>>();
        let threads = threads
            .map_err(|error| Failure::internal(format!("threads can't be started: {error}")))?;
        let joined = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(Failure::internal(format!("{name} has panicked"))))
        });
        joined.collect()
    })
}

/// Measures how long `work` takes each time it is called.
pub(crate) fn timed<T>(times: &mut Vec<f64>, work: impl FnOnce() -> T) -> T {
    let since = std::time::Instant::now();
    let done = work();
    times.push(since.elapsed().as_secs_f64());
    done
}
