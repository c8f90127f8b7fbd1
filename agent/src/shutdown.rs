//! One way to ask an agent to end: SIGTERM, SIGINT, or whoever runs it in-process.

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

    /// Asks for an end when the process gets SIGTERM or SIGINT. The future ends at the first one;
    /// the default action of a signal stays off, so a second one is ignored: an agent in its last
    /// flush is not torn from it.
    pub async fn request_on_signal(self) {
        let mut terminate = match signal(SignalKind::terminate()) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "SIGTERM can't be caught: it will end the agent at once");
                return std::future::pending().await;
            }
        };
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending"),
            _ = tokio::signal::ctrl_c() => tracing::info!("SIGINT: ending"),
        }
        self.request();
        // The trigger must outlive the request: a dropped one would wake the others as well.
        std::future::pending().await
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
