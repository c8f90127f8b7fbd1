//! Sorts connections by their preamble, before they reach the session's owner.
//!
//! A peer here has proven who it is, and still costs only bounded memory and time until it says
//! what it wants.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use volferry_agent::control::read_exact;
use volferry_agent::failure;
use volferry_agent::metrics::Metrics;
use volferry_agent::progress::End;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::{Preamble, SessionToken};
use volferry_transport::{Accepted, Acceptor, TransportError};

/// How long a peer may take to say what its connection is for.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at once that have not said it; more wait in the listener.
const UNDECIDED_MAX: usize = 64;

/// Sorted connections that wait for the owner.
const QUEUE_LEN: usize = 16;

/// A connection whose purpose is known.
#[derive(Debug)]
pub(crate) struct Greeted<S> {
    pub(crate) purpose: Purpose,
    pub(crate) stream: S,
    pub(crate) peer_address: SocketAddr,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Control,
    Data { number: u16, token: SessionToken },
}

/// Takes connections from an acceptor and sorts them.
#[derive(Debug)]
pub(crate) struct Greeter<S> {
    sorted: mpsc::Receiver<Result<Greeted<S>, Failure>>,
    task: JoinHandle<()>,
}

impl<S> Greeter<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    pub(crate) fn start<A>(acceptor: A, metrics: Metrics) -> Self
    where
        A: Acceptor<Stream = S> + 'static,
    {
        let (sender, sorted) = mpsc::channel(QUEUE_LEN);
        Self {
            sorted,
            task: tokio::spawn(sort(acceptor, metrics, sender)),
        }
    }

    /// The next connection. Dropping the future loses none.
    ///
    /// # Errors
    /// When no connection can come any more.
    pub(crate) async fn next(&mut self) -> Result<Greeted<S>, Failure> {
        self.sorted.recv().await.unwrap_or_else(|| {
            Err(Failure::new(
                FailureCode::Internal,
                "nothing accepts connections any more",
            ))
        })
    }

    /// Ends it and closes the port.
    pub(crate) async fn close(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }
}

async fn sort<A: Acceptor>(
    mut acceptor: A,
    metrics: Metrics,
    sorted: mpsc::Sender<Result<Greeted<A::Stream>, Failure>>,
) {
    let mut undecided = JoinSet::new();
    loop {
        let next = tokio::select! {
            accepted = acceptor.accept(), if undecided.len() < UNDECIDED_MAX => accepted,
            Some(_ended) = undecided.join_next() => continue,
        };
        match next {
            Ok(accepted) => {
                let (sorted, metrics) = (sorted.clone(), metrics.clone());
                undecided.spawn(async move {
                    let peer_address = accepted.peer_address;
                    match greet(accepted).await {
                        // A closed channel: the agent ends.
                        Ok(greeted) => drop(sorted.send(Ok(greeted)).await),
                        Err(failure) => {
                            tracing::warn!(%peer_address, "a connection was dropped: {failure}");
                            metrics.count_rejection("no_preamble");
                        }
                    }
                });
            }
            Err(error) => {
                let _closed = sorted.send(Err(failure::of_transport(&error))).await;
                return;
            }
        }
    }
}

async fn greet<S>(accepted: Accepted<S>) -> Result<Greeted<S>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Accepted {
        mut stream,
        peer_address,
        ..
    } = accepted;
    let mut bytes = [0; Preamble::LEN];
    let read = read_exact(&mut stream, &mut bytes);
    tokio::time::timeout(PREAMBLE_TIMEOUT, read)
        .await
        .unwrap_or_else(|_late| {
            let late = TransportError::Timeout {
                operation: "the preamble",
                after: PREAMBLE_TIMEOUT,
            };
            Err(failure::of_transport(&late))
        })?;
    let preamble =
        Preamble::decode(&bytes).map_err(|error| failure::of_frame(End::Source, &error))?;
    let purpose = match preamble {
        Preamble::Control => Purpose::Control,
        Preamble::Data { number, token } => Purpose::Data { number, token },
    };
    Ok(Greeted {
        purpose,
        stream,
        peer_address,
    })
}
