//! A link between two network namespaces that delays, loses and reorders packets and lets only so much through.
//!
//! Each namespace has a TUN device, and two threads carry packets from one to the other: what each kernel sends
//! is lost or late like on a real path, whatever its protocol, and TCP's own algorithms answer to it. (A proxy that ends
//! TCP connections could do nothing of the kind.) What happens to a packet is decided by [`Path`] and its seed;
//! when it comes is up to the kernels.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::device::Namespaces;
use crate::skip::skip;

pub use shaper::Path;
use shaper::Shaper;

mod shaper;

/// How soon a carrier sees that the link is taken down.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// As of Ethernet.
const PACKET_LEN_MAX: usize = 1500;

/// Packets that are taken in before those that are due are looked at again.
const PACKETS_AT_ONCE: usize = 32;

/// The device's name in both namespaces.
const DEVICE: &str = "link";

/// The link. Dropped, it is taken down, and its namespaces go.
#[derive(Debug)]
pub struct Link {
    // Before the namespaces, so that the devices are let go first.
    carriers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    ends: Namespaces,
}

#[derive(Debug)]
struct Shared {
    path: Mutex<Path>,
    is_down: AtomicBool,
}

impl Shared {
    fn path(&self) -> Path {
        *self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Makes a link, or skips the test.
    #[must_use]
    pub fn new(path: Path) -> Option<Self> {
        Self::make(path).map_or_else(|why| skip(&why), Some)
    }

    /// Makes a link.
    ///
    /// # Errors
    /// With words, where namespaces or TUN devices can't be had.
    pub fn make(path: Path) -> Result<Self, String> {
        let ends = Namespaces::apart()?;
        let [left, right] = [&ends.left, &ends.right].map(|name| device_in(name));
        let (left, right) = (Arc::new(left?), Arc::new(right?));
        ends.set_up(DEVICE)?;
        let shared = Arc::new(Shared {
            path: Mutex::new(path),
            is_down: AtomicBool::new(false),
        });
        let carry = |from: &Arc<SyncDevice>, to: &Arc<SyncDevice>, seed| {
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            let shared = Arc::clone(&shared);
            thread::spawn(move || carry(&from, &to, &shared, Shaper::new(seed)))
        };
        let seed = path.seed.wrapping_mul(2);
        let carriers = vec![carry(&left, &right, seed), carry(&right, &left, seed + 1)];
        Ok(Self {
            carriers,
            shared,
            ends,
        })
    }

    /// The namespaces at its ends.
    #[must_use]
    pub const fn ends(&self) -> &Namespaces {
        &self.ends
    }

    /// Changes what happens to packets from now on.
    pub fn change(&self, path: Path) {
        *self
            .shared
            .path
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = path;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.is_down.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            let _ended = carrier.join();
        }
    }
}

/// Makes the device within the namespace, where it stays whoever reads it.
fn device_in(namespace: &str) -> Result<SyncDevice, String> {
    Namespaces::run_in(namespace, || {
        let device = DeviceBuilder::new().name(DEVICE).build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    })
    .map_err(|error: io::Error| format!("a TUN device in a network namespace: {error}"))
}

/// Carries packets until the link is taken down.
fn carry(from: &SyncDevice, to: &SyncDevice, shared: &Shared, mut shaper: Shaper) {
    let start = Instant::now();
    let mut under_way: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>> = BinaryHeap::new();
    let mut number: u64 = 0;
    while !shared.is_down.load(Ordering::Relaxed) {
        let now = start.elapsed();
        while under_way
            .peek()
            .is_some_and(|Reverse((due, _, _))| *due <= now)
        {
            let Some(Reverse((_, _, packet))) = under_way.pop() else {
                break;
            };
            // What the other end has no room for is lost, as anywhere.
            let _sent = to.send(&packet);
        }
        let next = under_way.peek().map(|Reverse((due, _, _))| *due - now);
        let wait = next.unwrap_or(LOOK_INTERVAL).min(LOOK_INTERVAL);
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: wait.subsec_nanos().into(),
        };
        let mut watched = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
        let _ready = poll(&mut watched, Some(&wait));
        let path = shared.path();
        for _ in 0..PACKETS_AT_ONCE {
            let mut packet = vec![0; PACKET_LEN_MAX];
            // Nothing is there, or the device is down.
            let Ok(len) = from.recv(&mut packet) else {
                break;
            };
            packet.truncate(len);
            if let Some(due) = shaper.carry(&path, start.elapsed(), len) {
                number += 1;
                under_way.push(Reverse((due, number, packet)));
            }
        }
    }
}
