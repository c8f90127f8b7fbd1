//! Sorts connections by who the peer is and by their preamble, and reads what a source says first,
//! before they reach the session's owner. An observer never gets there: it is told the progress.
//!
//! A peer here has proven who it is, and still costs only bounded memory and time until it says
//! what it wants.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use volferry_agent::admin::Admin;
use volferry_agent::control::{Control, read_exact, read_message};
use volferry_agent::failure;
use volferry_agent::metrics::Metrics;
use volferry_agent::progress::End;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::{Preamble, SessionToken};
use volferry_protocol::message::{Hello, Message};
use volferry_transport::{Accepted, Acceptor, PeerAddress, Role, TransportError};

/// How long a peer may take to say what its connection is for, and on a control connection what
/// it wants cloned.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at once that have not said it; more wait in the listener.
const UNDECIDED_MAX: usize = 64;

/// Observers at once: a controller that asks now and then, and a person. One more is turned away, so
/// that they can't keep the source out.
const OBSERVERS_MAX: usize = 8;

/// Sorted connections that wait for the owner.
const QUEUE_LEN: usize = 16;

/// A connection whose purpose is known.
#[derive(Debug)]
pub(crate) struct Greeted<S> {
    pub(crate) purpose: Purpose,
    pub(crate) stream: S,
    pub(crate) peer_address: PeerAddress,
}

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A session, with what the source says first.
    Control(Box<Hello>),
    Data {
        number: u16,
        token: SessionToken,
    },
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
    pub(crate) fn start<A>(acceptor: A, metrics: Metrics, admin: Admin) -> Self
    where
        A: Acceptor<Stream = S> + 'static,
    {
        let (sender, sorted) = mpsc::channel(QUEUE_LEN);
        Self {
            sorted,
            task: tokio::spawn(sort(acceptor, metrics, admin, sender)),
        }
    }

    /// The next connection. Dropping the future loses none.
    ///
    /// # Errors
    /// When no connection can come any more.
    pub(crate) async fn next(&mut self) -> Result<Greeted<S>, Failure> {
        self.sorted
            .recv()
            .await
            .unwrap_or_else(|| Err(Failure::internal("nothing accepts connections any more")))
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
    admin: Admin,
    sorted: mpsc::Sender<Result<Greeted<A::Stream>, Failure>>,
) {
    let mut undecided = JoinSet::new();
    let mut observers = JoinSet::new();
    loop {
        let next = tokio::select! {
            accepted = acceptor.accept(), if undecided.len() < UNDECIDED_MAX => accepted,
            Some(_ended) = undecided.join_next() => continue,
            Some(_ended) = observers.join_next() => continue,
        };
        match next {
            Ok(accepted) if accepted.peer_name.role == Role::Observer => {
                if observers.len() < OBSERVERS_MAX {
                    observers.spawn(admin.for_observers().serve_stream(accepted.stream));
                } else {
                    let peer_address = accepted.peer_address;
                    tracing::warn!(%peer_address, "an observer was turned away: there are enough");
                    metrics.count_rejection("too_many_connections");
                }
            }
            Ok(accepted) => {
                let (sorted, metrics) = (sorted.clone(), metrics.clone());
                undecided.spawn(async move {
                    let peer_address = accepted.peer_address;
                    match greet(accepted).await {
                        // A closed channel: the agent ends.
                        Ok(greeted) => drop(sorted.send(Ok(greeted)).await),
                        Err(NotGreeted::NoPreamble(failure)) => {
                            tracing::warn!(%peer_address, "a connection was dropped: {failure}");
                            metrics.count_rejection("no_preamble");
                        }
                        Err(NotGreeted::NoHello(failure)) => {
                            tracing::warn!(%peer_address, "a session did not begin: {failure}");
                            metrics.count_failure(&failure);
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

/// Why a connection has no purpose.
#[derive(Debug)]
enum NotGreeted {
    NoPreamble(Failure),
    NoHello(Failure),
}

async fn greet<S>(accepted: Accepted<S>) -> Result<Greeted<S>, NotGreeted>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Accepted {
        mut stream,
        peer_address,
        transport,
        ..
    } = accepted;
    let preamble = in_time(read_preamble(&mut stream))
        .await
        .map_err(NotGreeted::NoPreamble)?;
    let purpose = match preamble {
        Preamble::Data { number, token } => Purpose::Data { number, token },
        Preamble::Control => match in_time(read_hello(&mut stream)).await {
            Ok(hello) => {
                let transport = transport.as_str();
                tracing::info!(%peer_address, transport, "a source asks for a session");
                Purpose::Control(Box::new(hello))
            }
            // A source that can't be understood is still there to be told.
            Err(failure) => {
                if failure.code == FailureCode::Protocol {
                    refuse(stream, failure.clone()).await;
                }
                return Err(NotGreeted::NoHello(failure));
            }
        },
    };
    Ok(Greeted {
        purpose,
        stream,
        peer_address,
    })
}

async fn in_time<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| {
        Err(failure::of_transport(&TransportError::Timeout {
            operation: "the preamble",
            after: PREAMBLE_TIMEOUT,
        }))
    };
    tokio::time::timeout(PREAMBLE_TIMEOUT, work)
        .await
        .unwrap_or_else(late)
}

async fn read_preamble(stream: &mut (impl AsyncRead + Unpin)) -> Result<Preamble, Failure> {
    let mut bytes = [0; Preamble::LEN];
    read_exact(stream, &mut bytes).await?;
    Preamble::decode(&bytes).map_err(|error| failure::of_frame(End::Source, &error))
}

async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> Result<Hello, Failure> {
    match read_message(stream, End::Source).await? {
        Message::Hello(hello) => Ok(hello),
        Message::Error(told) => Err(Failure::told_by("source", &told)),
        other => Err(Failure::new(
            FailureCode::Protocol,
            format!("the source sent {} before hello", other.name()),
        )),
    }
}

/// Tells a source why it is turned away, and waits for a moment until it has heard.
pub(crate) async fn refuse<S>(stream: S, failure: Failure)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let control = Control::start(stream, End::Source);
    if control.send(Message::Error(failure)).is_ok() {
        control.close().await;
    }
}
