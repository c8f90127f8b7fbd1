//! A gate between two agents: it lets so many bytes pass from the source to the target, then holds
//! the clone in the middle until it is opened. What would otherwise be a race becomes a story.

use std::net::SocketAddr;

use crate::proxy::Proxy;

/// The gate: a [`Proxy`] that does nothing but hold chunks.
#[derive(Debug)]
pub struct Gate(Proxy);

impl Gate {
    /// A gate before `target` that closes after `bytes` of chunks.
    #[must_use]
    pub fn closing_after(bytes: u64, target: SocketAddr) -> Self {
        let proxy = Proxy::before(target);
        proxy.hold_chunks_after(bytes);
        Self(proxy)
    }

    /// Where the source dials.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Waits until it holds chunks back.
    ///
    /// # Panics
    /// When none come.
    pub fn wait_until_it_holds(&self) {
        self.0.wait_until_it_holds();
    }

    /// Lets all pass from now on.
    pub fn open(&self) {
        self.0.open();
    }
}
