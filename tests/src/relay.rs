//! A relay of datagrams before a target agent, as a NAT is one: its own address can change while a QUIC
//! connection runs over it.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How soon a thread that waits for a datagram sees that something changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Longer than any datagram.
const DATAGRAM_LEN_MAX: usize = 1 << 16;

/// The relay. Dropped, it carries nothing any more.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The source's side.
    port: UdpSocket,
    /// The target's side, as it is now.
    mapped: Mutex<Arc<UdpSocket>>,
    /// Who sent last.
    source: Mutex<Option<SocketAddr>>,
    is_closed: AtomicBool,
}

impl Relay {
    /// A relay before `target`, for one source.
    #[must_use]
    pub fn before(target: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            port: bind(),
            mapped: Mutex::new(Arc::new(bind())),
            source: Mutex::default(),
            is_closed: AtomicBool::new(false),
        });
        let address = shared.port.local_addr().unwrap();
        let (there, back) = (Arc::clone(&shared), Arc::clone(&shared));
        thread::spawn(move || there.carry_there(target));
        thread::spawn(move || back.carry_back());
        Self { address, shared }
    }

    /// Where the source dials.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the target sees the source at another address; what comes to the old one is lost.
    pub fn change_address(&self) {
        *self.shared.mapped() = Arc::new(bind());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn mapped(&self) -> std::sync::MutexGuard<'_, Arc<UdpSocket>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_there(&self, target: SocketAddr) {
        let mut datagram = vec![0; DATAGRAM_LEN_MAX];
        while !self.is_closed.load(Ordering::Relaxed) {
            let Ok((len, from)) = self.port.recv_from(&mut datagram) else {
                continue; // nothing came in time
            };
            *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
            let mapped = Arc::clone(&self.mapped());
            let _lost = mapped.send_to(&datagram[..len], target);
        }
    }

    fn carry_back(&self) {
        let mut datagram = vec![0; DATAGRAM_LEN_MAX];
        while !self.is_closed.load(Ordering::Relaxed) {
            let mapped = Arc::clone(&self.mapped());
            let Ok((len, _)) = mapped.recv_from(&mut datagram) else {
                continue; // nothing came in time
            };
            let source = *self.source.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(source) = source {
                let _lost = self.port.send_to(&datagram[..len], source);
            }
        }
    }
}

fn bind() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(LOOK_INTERVAL)).unwrap();
    socket
}
