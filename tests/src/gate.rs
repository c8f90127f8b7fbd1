//! A gate between two agents: it lets so many bytes pass from the source to the target, then holds
//! the clone in the middle until it is opened. What would otherwise be a race becomes a story.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use rustix::net::sockopt::set_socket_recv_buffer_size;

use crate::PATIENCE;

/// Bytes that each connection may pass in any case: a handshake and the control connection's talk,
/// so that only chunks are held.
const TALK: u64 = 256 << 10;

/// The gate. Dropped, it opens.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug)]
struct State {
    /// Bytes of chunks that may still pass; `None` for all.
    left: Option<u64>,
    is_holding: bool,
}

impl Gate {
    /// A gate before `target` that closes after `bytes` of chunks.
    #[must_use]
    pub fn closing_after(bytes: u64, target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Connections inherit it; the kernel would let tens of MiB pile up before the gate.
        set_socket_recv_buffer_size(&listener, 256 << 10).unwrap();
        let state = State {
            left: Some(bytes),
            is_holding: false,
        };
        let gate = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new((Mutex::new(state), Condvar::new())),
        };
        let state = Arc::clone(&gate.state);
        // It ends with the process: a test's few threads are not worth more.
        thread::spawn(move || {
            while let Ok((source, _)) = listener.accept() {
                let Ok(target) = TcpStream::connect(target) else {
                    continue;
                };
                join(source, target, &state);
            }
        });
        gate
    }

    /// Where the source dials.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it holds chunks back.
    ///
    /// # Panics
    /// When none come.
    pub fn wait_until_it_holds(&self) {
        let (state, changed) = &*self.state;
        let state = state.lock().unwrap();
        let waited = changed.wait_timeout_while(state, PATIENCE, |state| !state.is_holding);
        assert!(waited.unwrap().0.is_holding, "no chunk came to the gate");
    }

    /// Lets all pass from now on.
    pub fn open(&self) {
        let (state, changed) = &*self.state;
        if let Ok(mut state) = state.lock() {
            state.left = None;
        }
        changed.notify_all();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

/// Carries bytes both ways until both ends have closed.
fn join(source: TcpStream, target: TcpStream, state: &Arc<(Mutex<State>, Condvar)>) {
    let (Ok(from_target), Ok(to_source)) = (target.try_clone(), source.try_clone()) else {
        return;
    };
    let state = Arc::clone(state);
    thread::spawn(move || carry(source, target, |len, passed| hold(&state, len, passed)));
    thread::spawn(move || carry(from_target, to_source, |_, _| {}));
}

/// Carries bytes one way; `hold` decides when the next ones may go.
fn carry(mut from: TcpStream, mut to: TcpStream, hold: impl Fn(u64, u64)) {
    let mut bytes = vec![0; 64 << 10];
    let mut passed = 0;
    let broken: io::Result<()> = loop {
        match from.read(&mut bytes) {
            Ok(0) => break Ok(()),
            Ok(len) => {
                hold(len as u64, passed);
                passed += len as u64;
                if let Err(error) = to.write_all(&bytes[..len]) {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
    };
    let how = match broken {
        Ok(()) => Shutdown::Write,
        Err(_) => Shutdown::Both,
    };
    let _gone = to.shutdown(how);
}

fn hold((state, changed): &(Mutex<State>, Condvar), len: u64, passed: u64) {
    if passed < TALK {
        return;
    }
    let mut state = state.lock().unwrap();
    loop {
        match &mut state.left {
            None => return,
            Some(left) if *left >= len => {
                *left -= len;
                return;
            }
            Some(_) => {}
        }
        state.is_holding = true;
        changed.notify_all();
        state = changed.wait(state).unwrap();
    }
}
