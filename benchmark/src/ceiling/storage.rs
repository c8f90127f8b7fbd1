//! What the storage decides: reading, writing, flushing, and both at once.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use volferry_agent::failure::of_storage;
use volferry_agent::progress::End;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ByteRange, ChunkIndex, ChunkRange, Geometry};
use volferry_storage::{
    BufferPool, Sink, Source, SourceOptions, TargetOptions, TargetVolume, open_source,
};

use super::cpu::rotating;
use super::{Bench, Measured, on_threads, timed};
use crate::cost::Stopwatch;
use crate::stats::Latency;

/// Bytes between two flushes, and the time, as the target agent has them.
const FLUSH_BYTES: u64 = 1 << 30;
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Reads what of the volume at `path` is no hole, up to `bytes_max`.
///
/// # Errors
/// When it can't be read, or the end was asked for.
pub fn read(bench: &Bench<'_>, path: &Path, bytes_max: u64) -> Result<Measured, Failure> {
    let reading = Reading::open(bench, path, bytes_max)?;
    let watch = Stopwatch::start();
    let times = reading.run(bench)?;
    let mut measured = Measured {
        cost: watch.stop(),
        bytes: reading.bytes(),
        direct: Some(reading.source.reads_direct()),
        ..Measured::default()
    };
    note(&mut measured, "read", times);
    Ok(measured)
}

/// Writes a new target of `bytes` with data, and flushes it.
///
/// # Errors
/// When it can't be written, or the end was asked for.
pub fn write(bench: &Bench<'_>, bytes: u64) -> Result<Measured, Failure> {
    let writing = Writing::open(bench, bytes)?;
    let watch = Stopwatch::start();
    let (times, flushes) = writing.run(bench)?;
    let mut measured = Measured {
        cost: watch.stop(),
        bytes,
        direct: Some(writing.sink.writes_direct()),
        ..Measured::default()
    };
    note(&mut measured, "write", times);
    note(&mut measured, "flush", flushes);
    Ok(measured)
}

/// Reads one volume and writes another at once, as a clone does: where both are on one disk, neither
/// is as fast as alone.
///
/// # Errors
/// As of both.
pub fn read_and_write(bench: &Bench<'_>, path: &Path, bytes: u64) -> Result<Measured, Failure> {
    let reading = Reading::open(bench, path, bytes)?;
    let writing = Writing::open(bench, reading.bytes())?;
    let watch = Stopwatch::start();
    let mut both = on_threads("bench-both", 2, |number| match number {
        0 => reading.run(bench).map(|times| (times, Vec::new())),
        _ => writing.run(bench),
    })?;
    let mut measured = Measured {
        cost: watch.stop(),
        bytes: reading.bytes(),
        direct: Some(reading.source.reads_direct() && writing.sink.writes_direct()),
        ..Measured::default()
    };
    let (writes, flushes) = both.pop().unwrap_or_default();
    let (reads, _none) = both.pop().unwrap_or_default();
    note(&mut measured, "read", reads);
    note(&mut measured, "write", writes);
    note(&mut measured, "flush", flushes);
    Ok(measured)
}

fn note(measured: &mut Measured, what: &str, times: Vec<f64>) {
    if let Some(latency) = Latency::of(times) {
        measured.latencies.insert(what.to_owned(), latency);
    }
}

struct Reading {
    source: Arc<dyn Source>,
    geometry: Geometry,
    chunks: Vec<ChunkIndex>,
    pool: BufferPool,
}

impl Reading {
    fn open(bench: &Bench<'_>, path: &Path, bytes_max: u64) -> Result<Self, Failure> {
        let tuning = bench.settings.tuning;
        let of_storage = |error| of_storage(End::Source, &error);
        let options = SourceOptions {
            direct: tuning.direct,
        };
        let source = open_source(path, &options).map_err(of_storage)?;
        let geometry = Geometry::new(source.size(), tuning.chunk_size)
            .map_err(|error| Failure::new(FailureCode::SourceOpen, error.to_string()))?;
        let chunk_len = u64::from(tuning.chunk_size.bytes());
        let chunks_max = usize::try_from(bytes_max.div_ceil(chunk_len)).unwrap_or(usize::MAX);
        let mut chunks = Vec::new();
        let mut at = 0;
        while chunks.len() < chunks_max
            && let Some(data) = source.next_data(at).map_err(of_storage)?
        {
            let (first, end) = (
                geometry.chunk_at(data.start()).0,
                data.end().div_ceil(chunk_len),
            );
            let first = chunks
                .last()
                .map_or(first, |last: &ChunkIndex| first.max(last.0 + 1));
            let left = chunks_max.saturating_sub(chunks.len());
            chunks.extend((first..end).take(left).map(ChunkIndex));
            at = data.end();
        }
        let pool = BufferPool::new(tuning.memory_bytes, tuning.chunk_size.bytes() as usize)
            .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
        Ok(Self {
            source,
            geometry,
            chunks,
            pool,
        })
    }

    fn bytes(&self) -> u64 {
        let lens = self
            .chunks
            .iter()
            .map(|chunk| self.geometry.chunk_len(*chunk));
        lens.map(u64::from).sum()
    }

    /// Reads all chunks; how long each took.
    fn run(&self, bench: &Bench<'_>) -> Result<Vec<f64>, Failure> {
        let next = AtomicUsize::new(0);
        let times = on_threads("bench-read", bench.settings.tuning.readers, |_number| {
            let mut times = Vec::new();
            while let Some(chunk) = self.chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                bench.stop.check()?;
                let Some(mut buffer) = self.pool.checkout_blocking() else {
                    break;
                };
                buffer.set_len(self.geometry.chunk_len(*chunk) as usize);
                let start = self.geometry.bytes_of(ChunkRange::one(*chunk)).start();
                timed(&mut times, || self.source.read_at(start, &mut buffer))
                    .map_err(|error| of_storage(End::Source, &error))?;
            }
            Ok(times)
        })?;
        Ok(times.concat())
    }
}

struct Writing<'a> {
    sink: Arc<dyn Sink>,
    geometry: Geometry,
    bench: &'a Bench<'a>,
    path: PathBuf,
}

impl<'a> Writing<'a> {
    fn open(bench: &'a Bench<'a>, bytes: u64) -> Result<Self, Failure> {
        let tuning = bench.settings.tuning;
        let path = bench.place.target("ceiling.img");
        let options = TargetOptions {
            direct: tuning.direct,
            ..TargetOptions::default()
        };
        let sink = TargetVolume::open(&path, options)
            .and_then(|volume| volume.prepare(bytes))
            .map_err(|error| of_storage(End::Target, &error))?;
        let geometry = Geometry::new(bytes, tuning.chunk_size)
            .map_err(|error| Failure::new(FailureCode::TargetOpen, error.to_string()))?;
        Ok(Self {
            sink,
            geometry,
            bench,
            path,
        })
    }

    /// Writes all chunks, flushing as often as the target agent does; how long each write and each
    /// flush took.
    fn run(&self, bench: &Bench<'_>) -> Result<(Vec<f64>, Vec<f64>), Failure> {
        let tuning = bench.settings.tuning;
        let next = AtomicU64::new(0);
        let written = AtomicU64::new(0);
        let flushed = Mutex::new((0, std::time::Instant::now(), Vec::new()));
        let of_storage = |error| of_storage(End::Target, &error);
        let count = self.geometry.chunk_count();
        let times = on_threads("bench-write", tuning.writers, |number| {
            let mut times = Vec::new();
            for chunk in rotating(bench.cpu.data(), number) {
                let index = ChunkIndex(next.fetch_add(1, Ordering::Relaxed));
                if index.0 >= count {
                    break;
                }
                bench.stop.check()?;
                let range: ByteRange = self.geometry.bytes_of(ChunkRange::one(index));
                let len = usize::try_from(range.len()).unwrap_or(0);
                let bytes = chunk.get(..len).unwrap_or_default();
                timed(&mut times, || self.sink.write_at(range.start(), bytes))
                    .map_err(of_storage)?;
                let written = written.fetch_add(range.len(), Ordering::Relaxed) + range.len();
                // One thread flushes while the others write on.
                if let Ok(mut flushed) = flushed.try_lock() {
                    let (bytes, at, flushes) = &mut *flushed;
                    if written - *bytes >= FLUSH_BYTES || at.elapsed() >= FLUSH_TIME {
                        timed(flushes, || self.sink.flush()).map_err(of_storage)?;
                        (*bytes, *at) = (written, std::time::Instant::now());
                    }
                }
            }
            Ok(times)
        })?;
        let (.., mut flushes) = flushed.into_inner().unwrap_or_else(PoisonError::into_inner);
        timed(&mut flushes, || self.sink.flush()).map_err(of_storage)?;
        Ok((times.concat(), flushes))
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.bench.place.remove(&self.path);
    }
}
