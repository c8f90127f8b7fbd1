//! One way to ask an agent to end: SIGTERM, SIGINT, or whoever runs it in-process.

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Asks for an end; every [`Shutdown`] made from it hears it.
#[derive(Debug)]
pub struct ShutdownTrigger {
    requested: watch::Sender<bool>,
}

/// Hears when an end is asked for.
#[derive(Clone, Debug)]
pub struct Shutdown {
    requested: watch::Receiver<bool>,
}

/// A trigger and what hears it.
#[must_use]
pub fn shutdown() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = watch::channel(false);
    (
        ShutdownTrigger { requested: sender },
        Shutdown {
            requested: receiver,
        },
    )
}

impl ShutdownTrigger {
    /// Asks for an end.
    pub fn request(&self) {
        self.requested.send_replace(true);
    }
}

/// Waits for SIGTERM or SIGINT. From the call on, awaited or not, their default action stays off:
/// a signal that comes while a volume is being opened is kept, and a second one is ignored, so that
/// an agent in its last flush is not torn from it.
///
/// # Panics
/// When it is called outside of a runtime.
pub fn signalled() -> impl Future<Output = ()> {
    // A write beyond RLIMIT_FSIZE shall fail and say so (EFBIG), not end the process without a word.
    let too_large = signal(SignalKind::from_raw(Signal::XFSZ.as_raw()));
    let caught = too_large
        .and_then(|_never_awaited| signal(SignalKind::terminate()))
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    async {
        let (mut terminate, mut interrupt) = match caught {
            Ok(caught) => caught,
            Err(error) => {
                tracing::warn!(%error, "signals can't be caught: they will end the agent at once");
                return std::future::pending().await;
            }
        };
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending"),
        }
    }
}

impl Shutdown {
    /// Waits until an end is asked for.
    pub async fn requested(&mut self) {
        if self
            .requested
            .wait_for(|requested| *requested)
            .await
            .is_err()
        {
            // Whoever could ask is gone: nobody will.
            std::future::pending::<()>().await;
        }
    }

    /// Whether an end was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow()
    }
}
