//! The bounded pool of buffers: an agent's memory bound, and its back-pressure.
//!
//! A buffer carries its permit. Whoever wants one while all are out waits, on an OS thread or in a
//! task of any runtime, until one is dropped. Buffers lie side by side in huge pages, which direct
//! I/O pins in a fraction of the time. Memory is taken from the system when a buffer is first
//! filled, and buffers are reused last in, first out, since the one just returned is still in the
//! processor's cache.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_channel::{Receiver, Sender};

use crate::sys::Part;

/// What the memory of a buffer is aligned to, in bytes: a page, which suits direct I/O.
const ALIGNMENT: usize = 4096;

/// A pool of buffers of one size. Clones are handles to the same pool.
#[derive(Clone, Debug)]
pub struct BufferPool(Arc<Shared>);

struct Shared {
    buffer_size: usize,
    buffer_count: usize,
    permits: Receiver<()>,
    returned_permits: Sender<()>,
    idle: Mutex<Vec<Part>>,
    in_use: AtomicUsize,
    peak_in_use: AtomicUsize,
}

impl BufferPool {
    /// A pool of as many buffers of `buffer_size` bytes as fit into `total_bytes`. A size that is no
    /// multiple of a page costs up to a page more for each.
    ///
    /// # Errors
    /// When not a single buffer fits, a buffer has no bytes, or the system has no such room.
    pub fn new(total_bytes: usize, buffer_size: usize) -> Result<Self, PoolError> {
        let buffer_count = total_bytes.checked_div(buffer_size).unwrap_or(0);
        if buffer_count == 0 {
            return Err(PoolError::BudgetTooSmall {
                total_bytes,
                buffer_size,
            });
        }
        let mut idle = Part::make(buffer_count, buffer_size, ALIGNMENT).map_err(|source| {
            PoolError::NoRoom {
                total_bytes,
                source,
            }
        })?;
        idle.reverse(); // the first is taken first, so that few buffers are in few huge pages
        let (returned_permits, permits) = async_channel::bounded(buffer_count);
        for _ in 0..buffer_count {
            let _ = returned_permits.try_send(()); // the channel has room for just so many
        }
        Ok(Self(Arc::new(Shared {
            buffer_size,
            buffer_count,
            permits,
            returned_permits,
            idle: Mutex::new(idle),
            in_use: AtomicUsize::new(0),
            peak_in_use: AtomicUsize::new(0),
        })))
    }

    /// Waits for a buffer without blocking the thread; `None` once the pool is closed. Dropping the
    /// future gives up the place in the queue and loses nothing.
    pub async fn checkout(&self) -> Option<Buffer> {
        self.0.permits.recv().await.ok()?;
        self.0.hand_out()
    }

    /// Waits for a buffer on an OS thread; `None` once the pool is closed.
    #[must_use]
    pub fn checkout_blocking(&self) -> Option<Buffer> {
        self.0.permits.recv_blocking().ok()?;
        self.0.hand_out()
    }

    /// Wakes all who wait, and hands out no more buffers. Those that are out stay valid.
    pub fn close(&self) {
        self.0.permits.close();
        self.0.idle().clear();
    }

    /// Bytes that a buffer can hold.
    #[must_use]
    pub fn buffer_size(&self) -> usize {
        self.0.buffer_size
    }

    /// How many buffers there can be at once.
    #[must_use]
    pub fn buffer_count(&self) -> usize {
        self.0.buffer_count
    }

    /// How many buffers are out now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.0.in_use.load(Ordering::Relaxed)
    }

    /// How many buffers were out at the busiest moment.
    #[must_use]
    pub fn peak_in_use(&self) -> usize {
        self.0.peak_in_use.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Hands out a buffer for a permit that the caller has taken from the channel.
    fn hand_out(self: &Arc<Self>) -> Option<Buffer> {
        // A closed channel still gives the permits that were in it.
        if self.permits.is_closed() {
            return None;
        }
        // A permit stands for a buffer that is here, unless the pool has just been closed.
        let part = Some(self.idle().pop()?);
        let in_use = self.in_use.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak_in_use.fetch_max(in_use, Ordering::Relaxed);
        Some(Buffer {
            part,
            len: self.buffer_size,
            pool: Arc::clone(self),
        })
    }

    fn take_back(&self, part: Option<Part>) {
        if !self.permits.is_closed() {
            self.idle().extend(part);
        }
        self.in_use.fetch_sub(1, Ordering::Relaxed);
        // Last, so that a waiter finds the buffer. It fails only when the pool is closed.
        let _ = self.returned_permits.try_send(());
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Part>> {
        // A panic elsewhere can't leave a stack of buffers half-changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("buffer_size", &self.buffer_size)
            .field("buffer_count", &self.buffer_count)
            .field("in_use", &self.in_use)
            .finish_non_exhaustive()
    }
}

/// Page-aligned memory from a [`BufferPool`], which gets it back on drop.
///
/// It derefs to its first [`Buffer::set_len`] bytes, all of them when it is handed out. What they
/// hold then is left from before: the taker overwrites it.
pub struct Buffer {
    /// Always there, until it goes back.
    part: Option<Part>,
    len: usize,
    pool: Arc<Shared>,
}

impl Buffer {
    /// Shows the first `len` bytes from now on.
    ///
    /// # Panics
    /// When the buffer is smaller than that.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "a buffer shows no more than it holds"
        );
        self.len = len;
    }

    /// Bytes that the buffer can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pool.buffer_size
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.part.as_deref().unwrap_or_default()[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.part.as_deref_mut().unwrap_or_default()[..self.len]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.take_back(self.part.take());
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &self.len)
            .finish_non_exhaustive() // its content is somebody's data
    }
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A memory budget that holds not even one buffer.
    #[error("a memory budget of {total_bytes} bytes holds no buffer of {buffer_size} bytes")]
    BudgetTooSmall {
        /// Bytes of the budget.
        total_bytes: usize,
        /// Bytes of one buffer.
        buffer_size: usize,
    },
    /// A memory budget for which the process is given no addresses.
    #[error("the system has no room for a memory budget of {total_bytes} bytes")]
    NoRoom {
        /// Bytes of the budget.
        total_bytes: usize,
        /// What the system said.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use std::thread;

    use super::*;

    const SIZE: usize = 64 << 10;

    fn pool(count: usize) -> BufferPool {
        BufferPool::new(count * SIZE, SIZE).unwrap()
    }

    #[test]
    fn buffers_are_aligned_and_show_what_they_are_told_to() {
        let pool = pool(3);
        let mut buffers: Vec<_> = (0..3).map(|_| pool.checkout_blocking().unwrap()).collect();
        for buffer in &mut buffers {
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0);
            assert_eq!(buffer.len(), SIZE);
            buffer.set_len(7);
            assert_eq!(buffer.len(), 7);
        }
    }

    #[test]
    fn the_bound_holds_and_the_last_in_is_the_first_out() {
        let pool = pool(2);
        let first = pool.checkout_blocking().unwrap();
        let second = pool.checkout_blocking().unwrap();
        let address = second.as_ptr();
        let mut context = Context::from_waker(Waker::noop());
        let mut third = pin!(pool.checkout());
        assert!(third.as_mut().poll(&mut context).is_pending());
        assert_eq!((pool.in_use(), pool.peak_in_use()), (2, 2));
        drop(first);
        drop(second);
        let Poll::Ready(Some(third)) = third.as_mut().poll(&mut context) else {
            panic!("a buffer came back");
        };
        assert_eq!(third.as_ptr(), address);
        drop(third);
        assert_eq!((pool.in_use(), pool.peak_in_use()), (0, 2));
    }

    #[test]
    fn threads_share_a_few_buffers_and_return_them_all() {
        let pool = pool(3);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut buffer = pool.checkout_blocking().unwrap();
                        buffer[0] = buffer[0].wrapping_add(1);
                        thread::yield_now();
                    }
                });
            }
        });
        assert_eq!(pool.in_use(), 0);
        assert!(pool.peak_in_use() <= 3, "never more than the budget");
        assert_eq!(pool.0.idle().len(), 3);
    }

    #[test]
    fn closing_wakes_who_waits() {
        let pool = pool(1);
        let out = pool.checkout_blocking().unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| pool.checkout_blocking().is_none());
            pool.close();
            assert!(waiter.join().unwrap());
        });
        drop(out);
        assert!(pool.checkout_blocking().is_none(), "closed for good");
        assert_eq!(pool.in_use(), 0);
    }

    #[test]
    fn a_budget_below_one_buffer_is_refused() {
        for (total, size) in [(SIZE - 1, SIZE), (SIZE, 0)] {
            let refused = BufferPool::new(total, size).unwrap_err();
            assert!(matches!(refused, PoolError::BudgetTooSmall { .. }));
        }
        let refused = BufferPool::new(usize::MAX / 2, usize::MAX / 4).unwrap_err();
        assert!(matches!(refused, PoolError::NoRoom { .. }));
    }
}
