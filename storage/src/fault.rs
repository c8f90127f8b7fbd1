//! Volumes that fail on purpose, for tests.
//!
//! [`Faulty`] wraps a [`Source`] or a [`Sink`] and does what its [`Faults`] say: fail when an
//! operation touches an offset, fail once so many bytes went through, fail to flush, or take its
//! time. Everything else passes through, and the injected errors look like the kernel's.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use volferry_protocol::geometry::ByteRange;

use crate::error::{Operation, StorageError};
use crate::source::Generation;
use crate::{Sink, Source};

/// What goes wrong, and when. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    at_offset: Option<(u64, Fault)>,
    after_bytes: Option<(u64, Fault)>,
    on_flush: Option<Fault>,
    /// Faults before the volume recovers; for ever when `None`.
    fault_count_max: Option<u64>,
    delay: Duration,
}

/// An error as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `EIO`: the device fails.
    DeviceError,
    /// `ENOSPC`: the filesystem or thin pool is full.
    NoSpace,
}

impl Faults {
    /// Fails each operation whose range holds the byte at `offset`.
    #[must_use]
    pub const fn at_offset(mut self, offset: u64, fault: Fault) -> Self {
        self.at_offset = Some((offset, fault));
        self
    }

    /// Fails each operation that would bring the bytes read, written and zeroed above `bytes`.
    #[must_use]
    pub const fn after_bytes(mut self, bytes: u64, fault: Fault) -> Self {
        self.after_bytes = Some((bytes, fault));
        self
    }

    /// Fails each flush; from that no volume recovers.
    #[must_use]
    pub const fn on_flush(mut self, fault: Fault) -> Self {
        self.on_flush = Some(fault);
        self
    }

    /// Lets the volume recover after `count` faults.
    #[must_use]
    pub const fn at_most(mut self, count: u64) -> Self {
        self.fault_count_max = Some(count);
        self
    }

    /// Makes each operation last `delay` longer.
    #[must_use]
    pub const fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

/// A volume with [`Faults`]; `V` is the inner volume, or `dyn Source` or `dyn Sink`.
#[derive(Debug)]
pub struct Faulty<V: ?Sized> {
    inner: Arc<V>,
    faults: Faults,
    moved_bytes: AtomicU64,
    fault_count: AtomicU64,
}

impl<V: ?Sized> Faulty<V> {
    /// Wraps `inner`.
    #[must_use]
    pub const fn new(inner: Arc<V>, faults: Faults) -> Self {
        Self {
            inner,
            faults,
            moved_bytes: AtomicU64::new(0),
            fault_count: AtomicU64::new(0),
        }
    }

    /// How many operations failed on purpose.
    #[must_use]
    pub fn fault_count(&self) -> u64 {
        self.fault_count.load(Ordering::Relaxed)
    }

    /// Waits, then decides whether an operation on `range` fails.
    fn pass(
        &self,
        operation: Operation,
        path: &Path,
        range: ByteRange,
    ) -> Result<(), StorageError> {
        thread::sleep(self.faults.delay);
        let moved_bytes = self.moved_bytes.load(Ordering::Relaxed);
        let touches = |offset| range.start() <= offset && offset < range.end();
        let at_offset = self.faults.at_offset.filter(|(offset, _)| touches(*offset));
        let exceeds = |bytes| moved_bytes.saturating_add(range.len()) > bytes;
        let after_bytes = self.faults.after_bytes.filter(|(bytes, _)| exceeds(*bytes));
        let fault = at_offset.or(after_bytes).map(|(_, fault)| fault);
        if let Some(fault) = fault.filter(|_| self.may_fail()) {
            return Err(StorageError::at(operation, path, range)(fault.into()));
        }
        self.moved_bytes.fetch_add(range.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Counts a fault, unless the volume has recovered.
    fn may_fail(&self) -> bool {
        let next = |count: u64| {
            let is_below = self.faults.fault_count_max.is_none_or(|most| count < most);
            is_below.then(|| count.saturating_add(1))
        };
        self.fault_count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .is_ok()
    }
}

impl<V: Source + ?Sized> Source for Faulty<V> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn next_data(&self, from: u64) -> Result<Option<ByteRange>, StorageError> {
        self.inner.next_data(from)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.pass(Operation::Read, self.inner.path(), range(offset, buffer))?;
        self.inner.read_at(offset, buffer)
    }

    fn check_size(&self) -> Result<(), StorageError> {
        self.inner.check_size()
    }

    fn generation(&self) -> Result<Generation, StorageError> {
        self.inner.generation()
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn reads_direct(&self) -> bool {
        self.inner.reads_direct()
    }
}

impl<V: Sink + ?Sized> Sink for Faulty<V> {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.pass(Operation::Write, self.inner.path(), range(offset, bytes))?;
        self.inner.write_at(offset, bytes)
    }

    fn zero(&self, range: ByteRange) -> Result<(), StorageError> {
        self.pass(Operation::Zero, self.inner.path(), range)?;
        self.inner.zero(range)
    }

    fn zeroes_for_free(&self) -> bool {
        self.inner.zeroes_for_free()
    }

    fn flush(&self) -> Result<(), StorageError> {
        thread::sleep(self.faults.delay);
        let Some(fault) = self.faults.on_flush else {
            return self.inner.flush();
        };
        self.fault_count.fetch_add(1, Ordering::Relaxed);
        Err(StorageError::io(Operation::Flush, self.inner.path())(
            fault.into(),
        ))
    }

    fn allocated_bytes(&self) -> Option<u64> {
        self.inner.allocated_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.pass(Operation::Read, self.inner.path(), range(offset, buffer))?;
        self.inner.read_at(offset, buffer)
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn mark(&self) -> u64 {
        self.inner.mark()
    }

    fn writes_direct(&self) -> bool {
        self.inner.writes_direct()
    }
}

impl From<Fault> for std::io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::DeviceError => Errno::IO.into(),
            Fault::NoSpace => Errno::NOSPC.into(),
        }
    }
}

fn range(offset: u64, bytes: &[u8]) -> ByteRange {
    ByteRange::new(offset, offset.saturating_add(bytes.len() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::MemVolume;

    fn faulty(faults: Faults) -> Faulty<dyn Sink> {
        Faulty::new(Arc::new(MemVolume::fresh(64)), faults)
    }

    #[test]
    fn fails_where_it_is_told_to() {
        let sink = faulty(Faults::default().at_offset(10, Fault::DeviceError));
        sink.write_at(0, &[1; 10]).unwrap();
        assert!(sink.write_at(8, &[1; 3]).unwrap_err().is_device_error());
        assert!(sink.zero(ByteRange::new(10, 11)).is_err());
        sink.write_at(11, &[1; 10]).unwrap();
        assert_eq!(sink.fault_count(), 2);
    }

    #[test]
    fn fills_up_and_recovers() {
        let sink = faulty(Faults::default().after_bytes(8, Fault::NoSpace).at_most(1));
        sink.write_at(0, &[1; 8]).unwrap();
        assert!(sink.write_at(8, &[1]).unwrap_err().is_no_space());
        sink.write_at(8, &[1]).unwrap();
    }

    #[test]
    fn a_failed_flush_makes_nothing_durable() {
        let inner = Arc::new(MemVolume::fresh(1));
        let faults = Faults::default().on_flush(Fault::DeviceError);
        let sink = Faulty::new(Arc::clone(&inner), faults);
        Sink::write_at(&sink, 0, &[1]).unwrap();
        Sink::flush(&sink).unwrap_err();
        assert_eq!(inner.durable_content(), [0]);
    }
}
