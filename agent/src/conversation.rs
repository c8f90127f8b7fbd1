//! What the owner of a session has with its peer, at either end and whatever is cloned: the control
//! connection, the data connections, and the ways in which both can end.
//!
//! An owner waits for [`Conversation::next`] beside what is its own, and passes what it gives to its
//! state machine.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::Preamble;
use volferry_protocol::message::Message;
use volferry_transport::TransportError;

use crate::control::Control;
use crate::failure;
use crate::outcome::cancelled;
use crate::progress::{End, Progress};
use crate::run::Context;
use crate::shutdown::Shutdown;

/// How long a data connection's end may go unexplained. A peer that fails says why on the control
/// connection and drops the others; which of the two arrives first is chance, and only the former
/// is the cause. A lost segment is sent again within this time.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(2);

/// One end of a session's connections.
pub struct Conversation {
    control: Control,
    /// Each gives a number that its owner counts.
    connections: JoinSet<Result<u64, Failure>>,
    /// A data connection that broke, and when that counts as the cause.
    lost: Option<(Instant, Failure)>,
    /// Patience at its end, or a thread that died.
    trouble: Pin<Box<dyn Future<Output = Failure> + Send>>,
    shutdown: Shutdown,
    progress: Arc<Progress>,
}

/// What there is for a state machine.
#[derive(Debug)]
pub enum Heard {
    /// The peer said this.
    Message(Message),
    /// A data connection has ended in order, with its number.
    Drained(u64),
    /// The session fails for this, which the peer is to be told.
    Fail(Failure),
    /// The session ends for this, and the peer can't be told.
    End(Failure),
    /// The time that was asked for has come.
    Tick,
}

impl Conversation {
    /// With the target, over a connection that was just dialed.
    ///
    /// # Errors
    /// When the connection is lost already.
    pub async fn with_target<S>(mut stream: S, context: &Context) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let preamble = Preamble::Control.encode();
        stream.write_all(&preamble).await.map_err(|error| {
            failure::of_transport(&TransportError::from_io("greeting the target", error))
        })?;
        Ok(Self::new(Control::start(stream, End::Target), context))
    }

    /// With the source, over a connection whose preamble was read.
    pub fn with_source<S>(stream: S, context: &Context) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        Self::new(Control::start(stream, End::Source), context)
    }

    fn new(control: Control, context: &Context) -> Self {
        let (patience, cpu) = (context.patience.clone(), context.cpu.clone());
        Self {
            control,
            connections: JoinSet::new(),
            lost: None,
            trouble: Box::pin(async move {
                tokio::select! {
                    failure = patience.exhausted() => failure,
                    failure = cpu.thread_died() => failure,
                }
            }),
            shutdown: context.shutdown.clone(),
            progress: Arc::clone(&context.progress),
        }
    }

    /// What happens next, at the latest at `wake_at`. Dropping the future loses nothing.
    pub async fn next(&mut self, wake_at: Option<Instant>) -> Heard {
        loop {
            let lost_at = self.lost.as_ref().map(|(at, _)| *at);
            let sleep = async {
                match wake_at.into_iter().chain(lost_at).min() {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                biased;
                message = self.control.receive() => return match message {
                    Ok(message) => Heard::Message(message),
                    // A peer that can't be understood is still there to be told.
                    Err(failure) if failure.code == FailureCode::Protocol => Heard::Fail(failure),
                    Err(failure) => Heard::End(failure),
                },
                Some(ended) = self.connections.join_next() => ended,
                () = sleep => {
                    let now = Instant::now();
                    let lost = self.lost.take_if(|(at, _)| *at <= now);
                    return lost.map_or(Heard::Tick, |(_, failure)| Heard::Fail(failure));
                }
                failure = &mut self.trouble => return Heard::Fail(failure),
                () = self.shutdown.requested() => return Heard::Fail(cancelled()),
            };
            self.progress.set_connections(self.connections.len());
            match ended.unwrap_or_else(|error| Err(Failure::internal(error.to_string()))) {
                Ok(number) => return Heard::Drained(number),
                Err(failure) if failure.code == FailureCode::Disconnected => {
                    let at = Instant::now() + LAST_WORD_TIMEOUT;
                    self.lost.get_or_insert((at, failure));
                }
                Err(failure) => return Heard::Fail(failure),
            }
        }
    }

    /// Sends `message` as soon as the peer takes it.
    ///
    /// # Errors
    /// When the peer has stopped reading, or is gone.
    pub fn send(&self, message: Message) -> Result<(), Failure> {
        self.control.send(message)
    }

    /// Runs a data connection.
    pub fn add(&mut self, connection: impl Future<Output = Result<u64, Failure>> + Send + 'static) {
        self.connections.spawn(connection);
        self.progress.set_connections(self.connections.len());
    }

    /// Whether every data connection that was added has ended in order.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.connections.is_empty() && self.lost.is_none()
    }

    /// Drops the data connections, and waits until they are gone.
    pub async fn drop_connections(&mut self) {
        self.connections.shutdown().await;
        self.progress.set_connections(0);
    }

    /// Says what waits to be said, and goodbye. Says whether the peer has heard all.
    pub async fn close(mut self) -> bool {
        self.drop_connections().await;
        self.control.close().await
    }
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation")
            .field("control", &self.control)
            .field("connections", &self.connections.len())
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
