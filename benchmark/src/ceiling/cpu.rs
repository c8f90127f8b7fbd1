//! What processors alone decide: looking for zeros, hashing, sealing, opening.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;
use volferry_agent::failure::of_transport;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::zero_map::ZeroMap;
use volferry_storage::{Buffer, BufferPool};
use volferry_transport::{Credentials, CredentialsDir, RecordPair, Role, TransportError, mint};

use super::{Measured, on_threads};
use crate::cost::Stopwatch;
use crate::profile::{BLOCK_LEN, Generator, Profile};
use crate::settings::Tuning;

/// How long the credentials are valid: longer than any benchmark takes.
const VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// What the ceilings work with: chunks in memory, more than fit into the caches, and credentials.
#[derive(Debug)]
pub struct Workbench {
    tuning: Tuning,
    data: Vec<Buffer>,
    zeros: Vec<Buffer>,
    identities: tempfile::TempDir,
}

impl Workbench {
    /// Fills chunks with data like `profile`, as much as the agents have in flight, and mints.
    ///
    /// # Errors
    /// When there is no room.
    pub fn new(tuning: Tuning, profile: Profile, seed: u64) -> Result<Self, Failure> {
        let chunk_len = tuning.chunk_size.bytes() as usize;
        let make_all = |fill: &dyn Fn(u64, &mut [u8])| {
            let pool = BufferPool::new(tuning.memory_bytes, chunk_len)
                .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
            let make = |number| {
                let mut buffer = pool.checkout_blocking()?;
                buffer.set_len(chunk_len);
                fill(number * (chunk_len / BLOCK_LEN) as u64, &mut buffer);
                Some(buffer)
            };
            Ok::<Vec<_>, Failure>((0..pool.buffer_count() as u64).map_while(make).collect())
        };
        let generator = Generator::new(profile, seed);
        let identities = tempfile::tempdir().map_err(|error| {
            Failure::internal(format!("no directory for the credentials: {error}"))
        })?;
        mint(Uuid::new_v4(), VALIDITY)
            .and_then(|minted| minted.write_to(identities.path()))
            .map_err(|error| {
                Failure::internal(format!("the credentials can't be made: {error}"))
            })?;
        Ok(Self {
            tuning,
            data: make_all(&|first, bytes| generator.fill(first, bytes))?,
            zeros: make_all(&|_first, bytes| bytes.fill(0))?,
            identities,
        })
    }

    /// How the agents are set.
    #[must_use]
    pub const fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Chunks of data.
    #[must_use]
    pub fn data(&self) -> &[Buffer] {
        &self.data
    }

    /// Where the credentials of `role` are.
    #[must_use]
    pub fn credentials(&self, role: Role) -> CredentialsDir {
        CredentialsDir::new(self.directory(role), role)
    }

    fn directory(&self, role: Role) -> std::path::PathBuf {
        self.identities.path().join(Path::new(role.as_str()))
    }

    /// Looks for zeros in data.
    ///
    /// # Errors
    /// When a thread fails.
    pub fn scan_data(&self, time: Duration) -> Result<Measured, Failure> {
        each(self.tuning.readers, &self.data, time, |chunk| {
            black_box(ZeroMap::scan(chunk));
        })
    }

    /// Looks for zeros where nothing else is.
    ///
    /// # Errors
    /// When a thread fails.
    pub fn scan_zeros(&self, time: Duration) -> Result<Measured, Failure> {
        each(self.tuning.readers, &self.zeros, time, |chunk| {
            black_box(ZeroMap::scan(chunk));
        })
    }

    /// Hashes.
    ///
    /// # Errors
    /// When a thread fails.
    pub fn hash(&self, time: Duration) -> Result<Measured, Failure> {
        each(self.tuning.readers, &self.data, time, |chunk| {
            black_box(Digest::of_chunk(chunk));
        })
    }

    /// Takes the memory of an agent from the system, touches all of it, and gives it back.
    ///
    /// # Errors
    /// When there is none.
    pub fn fresh_memory(&self) -> Result<Measured, Failure> {
        let watch = Stopwatch::start();
        let pool = BufferPool::new(
            self.tuning.memory_bytes,
            self.tuning.chunk_size.bytes() as usize,
        )
        .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
        let each = pool.buffer_count() / self.tuning.readers.max(1);
        let all = on_threads("bench-memory", self.tuning.readers, |_number| {
            let mut held = Vec::new();
            while held.len() < each
                && let Some(buffer) = pool.checkout_blocking()
            {
                held.push(touched(buffer));
            }
            // All are held until the last thread has its own: none is touched twice.
            Ok(held)
        })?;
        let bytes = all.iter().flatten().map(|buffer| buffer.len() as u64);
        let bytes = bytes.sum();
        drop((all, pool));
        Ok(Measured {
            cost: watch.stop(),
            bytes,
            ..Measured::default()
        })
    }

    /// Seals records, or seals and opens them: what is opened has to be sealed before, so that opening
    /// alone is the time within [`RecordPair::open`].
    ///
    /// # Errors
    /// When a thread or the handshake fails.
    pub fn records(&self, time: Duration, opens: bool) -> Result<Measured, Failure> {
        let load = |role| {
            Credentials::load(&self.directory(role))
                .map_err(|error| of_transport(&TransportError::Credentials(error)))
        };
        let (source, target) = (load(Role::Source)?, load(Role::Target)?);
        // All shake hands before the first begins.
        let shaken = on_threads("bench-shake", self.tuning.readers, |_number| {
            let runtime = runtime()?;
            let pair = runtime
                .block_on(RecordPair::shake(&source, &target))
                .map_err(|error| of_transport(&error))?;
            if !opens {
                pair.discard();
            }
            Ok(std::sync::Mutex::new(Some((runtime, pair))))
        })?;
        let failed =
            |error: std::io::Error| Failure::internal(format!("a record was lost: {error}"));
        let watch = Stopwatch::start();
        let until = Instant::now() + time;
        let parts = on_threads("bench-records", self.tuning.readers, |number| {
            let taken = shaken.get(number).and_then(|slot| slot.lock().ok()?.take());
            let Some((runtime, mut pair)) = taken else {
                return Ok((0, Duration::ZERO, Duration::ZERO));
            };
            let mut opened = vec![0; self.tuning.chunk_size.bytes() as usize];
            let (mut bytes, mut wall, mut cpu) = (0, Duration::ZERO, Duration::ZERO);
            for chunk in rotating(&self.data, number) {
                for piece in chunk.chunks(RecordPair::AHEAD_MAX) {
                    runtime.block_on(pair.seal(piece)).map_err(failed)?;
                    if opens {
                        let (since, used) = (Instant::now(), thread_time());
                        let room = opened.get_mut(..piece.len()).unwrap_or_default();
                        runtime.block_on(pair.open(room)).map_err(failed)?;
                        wall += since.elapsed();
                        cpu += thread_time().saturating_sub(used);
                    }
                }
                bytes += chunk.len() as u64;
                if Instant::now() >= until {
                    break;
                }
            }
            Ok((bytes, wall, cpu))
        })?;
        let mut cost = watch.stop();
        let bytes = parts.iter().map(|(bytes, ..)| bytes).sum();
        if opens {
            // Of the time of the threads, the part in which they opened.
            let sum = |of: fn(&(u64, Duration, Duration)) -> Duration| -> f64 {
                parts.iter().map(|part| of(part).as_secs_f64()).sum()
            };
            cost.seconds = sum(|part| part.1) / parts.len().max(1) as f64;
            cost.cpu_seconds = sum(|part| part.2);
        }
        Ok(Measured {
            cost,
            bytes,
            ..Measured::default()
        })
    }
}

/// Takes the pages of a buffer from the system, where it has them not yet.
pub(crate) fn touched(mut buffer: Buffer) -> Buffer {
    /// The smallest page that there is.
    const PAGE_LEN: usize = 4096;
    for page in buffer.chunks_mut(PAGE_LEN) {
        if let Some(byte) = page.first_mut() {
            *byte = 1;
        }
    }
    buffer
}

/// Has `count` threads go through `chunks`, over and over, for that long.
fn each(
    count: usize,
    chunks: &[Buffer],
    time: Duration,
    work: impl Fn(&[u8]) + Sync,
) -> Result<Measured, Failure> {
    let watch = Stopwatch::start();
    let until = Instant::now() + time;
    let parts = on_threads("bench-cpu", count, |number| {
        let mut bytes = 0;
        for chunk in rotating(chunks, number) {
            work(chunk);
            bytes += chunk.len() as u64;
            if Instant::now() >= until {
                break;
            }
        }
        Ok(bytes)
    })?;
    Ok(Measured {
        cost: watch.stop(),
        bytes: parts.iter().sum(),
        ..Measured::default()
    })
}

/// The chunks over and over, from another one for each thread.
pub(crate) fn rotating(chunks: &[Buffer], number: usize) -> impl Iterator<Item = &Buffer> {
    /// Threads are few; between two of them lie some chunks.
    const APART: usize = 17;
    chunks.iter().cycle().skip(number * APART)
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .build()
        .map_err(|error| Failure::internal(format!("no runtime can be made: {error}")))
}

/// Processor time of this thread so far.
fn thread_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(used.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(used.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}
