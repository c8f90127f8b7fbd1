//! What the storage decides: reading, writing, flushing, and both at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use volferry_agent::failure::of_storage;
use volferry_agent::progress::End;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, Geometry};
use volferry_protocol::zero_map::ZeroMap;
use volferry_storage::{
    Buffer, BufferPool, Sink, Source, SourceOptions, StorageError, TargetOptions, TargetVolume,
    open_source,
};
use volferry_target_agent::write_runs;

use super::{Bench, Measured, on_threads, timed};
use crate::cost::Stopwatch;
use crate::shape::data_of;
use crate::stats::Latency;

/// Bytes between two flushes, and the time, as the target agent has them.
const FLUSH_BYTES: u64 = 1 << 30;
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Chunks that writers may have written and the flusher not yet heard of.
const WRITTEN_MAX: usize = 1024;

/// Reads what of the volume at `path` is no hole, up to `bytes_max`.
///
/// # Errors
/// When it can't be read, or the end was asked for.
pub fn read(bench: &Bench<'_>, path: &Path, bytes_max: u64) -> Result<Measured, Failure> {
    let memory_bytes = bench.settings.tuning.memory_bytes;
    let reading = Reading::open(bench, path, Some(bytes_max), memory_bytes)?;
    let watch = Stopwatch::start();
    let times = reading.run(bench, |_place, _buffer| true)?;
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
    let next = AtomicU64::new(0);
    let count = writing.geometry.chunk_count();
    let watch = Stopwatch::start();
    let (times, flushes) = writing.run(bench, |number, times| {
        let chunk = ChunkIndex(next.fetch_add(1, Ordering::Relaxed));
        // Each thread writes what none wrote a moment ago.
        let place = number + usize::try_from(chunk.0).unwrap_or(0);
        let data = bench.cpu.data();
        let (true, Some(bytes)) = (chunk.0 < count, data.get(place % data.len().max(1))) else {
            return Ok(None);
        };
        let len = writing.geometry.chunk_len(chunk);
        writing
            .write(chunk, &ZeroMap::all_data(len), bytes, times)
            .map(Some)
    })?;
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

/// Clones the volume at `path` as far as storage and threads go: what is read is looked through,
/// hashed and passed on as at the source, and hashed, written and flushed as at the target, with as
/// many buffers as both have. So reading goes no faster than writing, a thread that hashes asks
/// nothing of the storage, and a chunk with zeros in it is written in pieces. Where it is to read a
/// `beginning` only, of so many bytes that are no hole, it doesn't go on behind the last of them: a hole
/// there may be larger than all that the target holds.
///
/// # Errors
/// As of reading and writing.
pub fn read_and_write(
    bench: &Bench<'_>,
    path: &Path,
    beginning: Option<u64>,
) -> Result<Measured, Failure> {
    let both_bytes = bench.settings.tuning.memory_bytes.saturating_mul(2);
    let reading = Reading::open(bench, path, beginning, both_bytes)?;
    let writing = Writing::open(bench, reading.geometry.volume_size())?;
    both_at_once(bench, &reading, &writing)
}

fn both_at_once(
    bench: &Bench<'_>,
    reading: &Reading,
    writing: &Writing<'_>,
) -> Result<Measured, Failure> {
    let (pass, passed) = async_channel::bounded(reading.pool.buffer_count());
    let data_bytes = AtomicU64::new(0);
    let watch = Stopwatch::start();
    let mut both = on_threads("bench-both", 2, |number| match number {
        0 => {
            let reads = reading.run(bench, |place, buffer| {
                let hole = reading.hole_before(place);
                let examined = examine(reading.chunks.get(place).copied(), buffer);
                if let Some(Passed::Chunk(_, zero_map, ..)) = &examined {
                    data_bytes.fetch_add(zero_map.data_len().into(), Ordering::Relaxed);
                }
                let mut work = hole.into_iter().map(Passed::Zero).chain(examined);
                work.all(|work| pass.send_blocking(work).is_ok())
            });
            if let Some(hole) = reading.hole_before(reading.chunks.len()) {
                let _the_writers_have_failed = pass.send_blocking(Passed::Zero(hole));
            }
            pass.close(); // the writers still get what is in it
            reads.map(|times| (times, Vec::new()))
        }
        _ => {
            let written = writing.run(bench, |_number, times| match passed.recv_blocking() {
                Ok(work) => writing.take(work, times).map(Some),
                Err(_the_readers_have_ended) => Ok(None),
            });
            passed.close(); // else the readers of writers that failed would wait
            written
        }
    })?;
    let mut measured = Measured {
        cost: watch.stop(),
        bytes: reading.bytes(),
        data_bytes: Some(data_bytes.into_inner()),
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

/// What readers pass on to writers.
#[expect(
    clippy::large_enum_variant,
    reason = "a zero map is small beside the chunk it describes"
)]
enum Passed {
    Chunk(ChunkIndex, ZeroMap, Digest, Buffer),
    Zero(ChunkRange),
}

/// What a source makes of a chunk that it has read.
fn examine(chunk: Option<ChunkIndex>, buffer: Buffer) -> Option<Passed> {
    let (chunk, zero_map) = (chunk?, ZeroMap::scan(&buffer));
    if zero_map.is_all_zero() {
        return Some(Passed::Zero(ChunkRange::one(chunk)));
    }
    let digest = Digest::of_chunk(&buffer);
    Some(Passed::Chunk(chunk, zero_map, digest, buffer))
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
    fn open(
        bench: &Bench<'_>,
        path: &Path,
        beginning: Option<u64>,
        memory_bytes: usize,
    ) -> Result<Self, Failure> {
        let tuning = bench.settings.tuning;
        let of_storage = |error| of_storage(End::Source, &error);
        let options = SourceOptions {
            direct: tuning.direct,
        };
        let source = open_source(path, &options).map_err(of_storage)?;
        let geometry = Geometry::new(source.size(), tuning.chunk_size)
            .map_err(|error| Failure::new(FailureCode::SourceOpen, error.to_string()))?;
        let chunk_len = u64::from(tuning.chunk_size.bytes());
        let chunks_max = beginning.map_or(u64::MAX, |bytes| bytes.div_ceil(chunk_len));
        let chunks_max = usize::try_from(chunks_max).unwrap_or(usize::MAX);
        let mut chunks = Vec::new();
        for data in data_of(&*source, tuning.chunk_size) {
            let (_, all) = data.map_err(of_storage)?;
            let left = chunks_max.saturating_sub(chunks.len());
            chunks.extend((all.start.0..all.end.0).take(left).map(ChunkIndex));
            if chunks.len() >= chunks_max {
                break;
            }
        }
        let geometry = match (beginning, chunks.last()) {
            (None, _) => geometry,
            // What lies behind the last chunk that is read is not there for the bench.
            (Some(_), last) => {
                let end = last.map_or(0, |last| geometry.bytes_of(ChunkRange::one(*last)).end());
                Geometry::new(end, tuning.chunk_size)
                    .map_err(|error| Failure::internal(error.to_string()))?
            }
        };
        let pool = BufferPool::new(memory_bytes, tuning.chunk_size.bytes() as usize)
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

    /// The hole between the chunk at this place and the one before.
    fn hole_before(&self, place: usize) -> Option<ChunkRange> {
        let before = place.checked_sub(1).and_then(|at| self.chunks.get(at));
        let start = before.map_or(ChunkIndex(0), |before| ChunkRange::one(*before).end);
        let end = self.chunks.get(place).copied();
        let end = end.unwrap_or_else(|| self.geometry.chunks().end);
        (start < end).then_some(ChunkRange { start, end })
    }

    /// Reads all chunks, and gives each with its place among them to `pass`, for as long as that says
    /// so; how long each read took.
    fn run(
        &self,
        bench: &Bench<'_>,
        pass: impl Fn(usize, Buffer) -> bool + Sync,
    ) -> Result<Vec<f64>, Failure> {
        let next = AtomicUsize::new(0);
        let times = on_threads("bench-read", bench.settings.tuning.readers, |_number| {
            let mut times = Vec::new();
            // The buffer comes before the chunk, as in the agent, so that they are passed on in order.
            while let Some(mut buffer) = self.pool.checkout_blocking() {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(chunk) = self.chunks.get(place) else {
                    break;
                };
                bench.stop.check()?;
                buffer.set_len(self.geometry.chunk_len(*chunk) as usize);
                let start = self.geometry.bytes_of(ChunkRange::one(*chunk)).start();
                timed(&mut times, || self.source.read_at(start, &mut buffer))
                    .map_err(|error| of_storage(End::Source, &error))?;
                if !pass(place, buffer) {
                    break;
                }
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
            .map_err(|error| {
                bench.place.remove(&path); // it would be in the way of the next
                of_target(error)
            })?;
        let geometry = Geometry::new(bytes, tuning.chunk_size)
            .map_err(|error| Failure::new(FailureCode::TargetOpen, error.to_string()))?;
        Ok(Self {
            sink,
            geometry,
            bench,
            path,
        })
    }

    /// Has each of the writers call `write` until that has nothing more, which else says how many
    /// bytes it wrote, and one more thread flush as often as the target agent does; how long each
    /// write and each flush took.
    fn run(
        &self,
        bench: &Bench<'_>,
        write: impl Fn(usize, &mut Vec<f64>) -> Result<Option<u64>, Failure> + Sync,
    ) -> Result<(Vec<f64>, Vec<f64>), Failure> {
        let writers = bench.settings.tuning.writers;
        // Writers that are ahead of a flush by so many chunks wait, as for the agent's owner.
        let (tell, written) = async_channel::bounded(WRITTEN_MAX);
        let ended = AtomicUsize::new(0);
        let mut times = on_threads("bench-write", writers + 1, |number| {
            if number == writers {
                return self.flush_all(&written);
            }
            let mut times = Vec::new();
            let mut write_all = || -> Result<(), Failure> {
                while let Some(bytes) = write(number, &mut times)? {
                    bench.stop.check()?;
                    if tell.send_blocking(bytes).is_err() {
                        break; // the flusher has failed, and says why
                    }
                }
                Ok(())
            };
            let done = write_all();
            if ended.fetch_add(1, Ordering::Relaxed) + 1 == writers {
                tell.close();
            }
            done.map(|()| times)
        })?;
        let flushes = times.pop().unwrap_or_default();
        Ok((times.concat(), flushes))
    }

    fn flush_all(&self, written: &async_channel::Receiver<u64>) -> Result<Vec<f64>, Failure> {
        let mut flushes = Vec::new();
        let mut flush = || timed(&mut flushes, || self.sink.flush()).map_err(of_target);
        let (mut bytes, mut since) = (0, Instant::now());
        while let Ok(len) = written.recv_blocking() {
            bytes += len;
            if bytes >= FLUSH_BYTES || since.elapsed() >= FLUSH_TIME {
                if let Err(failure) = flush() {
                    written.close();
                    return Err(failure);
                }
                (bytes, since) = (0, Instant::now());
            }
        }
        flush()?;
        Ok(flushes)
    }

    /// Does what readers passed on; how many bytes that wrote.
    fn take(&self, work: Passed, times: &mut Vec<f64>) -> Result<u64, Failure> {
        match work {
            Passed::Chunk(chunk, zero_map, digest, bytes) => {
                if Digest::of_chunk(&bytes) != digest {
                    let text = format!("chunk {chunk} changed in memory");
                    return Err(Failure::internal(text));
                }
                self.write(chunk, &zero_map, &bytes, times)
            }
            Passed::Zero(chunks) => {
                let range = self.geometry.bytes_of(chunks);
                self.sink.zero(range).map_err(of_target)?;
                Ok(0)
            }
        }
    }

    /// Writes of a chunk what holds data.
    fn write(
        &self,
        chunk: ChunkIndex,
        zero_map: &ZeroMap,
        bytes: &[u8],
        times: &mut Vec<f64>,
    ) -> Result<u64, Failure> {
        let start = self.geometry.bytes_of(ChunkRange::one(chunk)).start();
        let is_fresh = self.sink.zeroes_for_free();
        let write = || write_runs(&*self.sink, is_fresh, start, zero_map, bytes);
        timed(times, write).map_err(of_target)?;
        Ok(zero_map.data_len().into())
    }
}

fn of_target(error: StorageError) -> Failure {
    of_storage(End::Target, &error)
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.bench.place.remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ceiling::cpu::Workbench;
    use crate::place::Place;
    use crate::profile::Profile;
    use crate::run::tests::{settings, tuning};
    use crate::shape::make_volume;
    use crate::stop::Stop;

    #[test]
    fn both_at_once_make_the_same_volume_with_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), &dir.path().join("target"));
        let place = Place::claim(&settings).unwrap();
        let stop = Stop::default();
        let profile = Profile::Vm;
        // Holes, zeros within chunks, and a last chunk that is shorter.
        let size = (40 << 20) + 4096;
        let volume = make_volume(place.scratch(), profile, size, 1, &stop).unwrap();
        let bench = Bench {
            settings: &settings,
            place: &place,
            volumes: &[],
            own_volume: None,
            tree: None,
            cpu: &Workbench::new(tuning(), profile, 1).unwrap(),
            stop: &stop,
        };
        let reading = Reading::open(&bench, &volume.path, None, 16 << 20).unwrap();
        let writing = Writing::open(&bench, size).unwrap();
        let measured = both_at_once(&bench, &reading, &writing).unwrap();
        assert!(volume.facts.data_bytes < volume.facts.read_bytes);
        assert_eq!(measured.bytes, volume.facts.read_bytes);
        assert_eq!(measured.data_bytes, Some(volume.facts.data_bytes));
        let chunks = measured.latencies["read"].count;
        assert!(measured.latencies["write"].count <= chunks);
        assert!(measured.latencies["flush"].count >= 1);
        let [from, to] = [&volume.path, &writing.path].map(|path| fs::read(path).unwrap());
        assert!(from == to, "the copy differs");
        let allocated = writing.sink.allocated_bytes().unwrap();
        assert!(allocated < volume.facts.read_bytes, "{allocated}");

        // Of more than it may read it takes the beginning, and no hole behind.
        let beginning = Reading::open(&bench, &volume.path, Some(6 << 20), 16 << 20).unwrap();
        assert_eq!(beginning.bytes(), 6 << 20);
        assert_eq!(beginning.hole_before(beginning.chunks.len()), None);
        assert!(beginning.geometry.volume_size() < size);
        // Nor one behind all that it holds.
        fs::File::options()
            .write(true)
            .open(&volume.path)
            .and_then(|file| file.set_len(size << 10))
            .unwrap();
        let beginning = Reading::open(&bench, &volume.path, Some(size), 16 << 20).unwrap();
        assert_eq!(beginning.bytes(), volume.facts.read_bytes);
        assert!(beginning.geometry.volume_size() <= size);
    }
}
