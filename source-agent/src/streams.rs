//! The data connections of a session, whatever it clones: those that a round begins with, and those
//! that join while it runs because they help.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use volferry_agent::conversation::Conversation;
use volferry_agent::cpu::CpuMeter;
use volferry_agent::progress::Progress;
use volferry_agent::run::Context;
use volferry_protocol::frame::{Preamble, SessionToken};
use volferry_protocol::waits::Waits;
use volferry_transport::{Connector, TransportError};

use crate::data::{Carried, DataConnection};
use growth::{Growth, Look};

mod growth;

/// What the data connections of a session need, and how many they are.
pub(crate) struct Streams<T: Carried, C: Connector> {
    connector: Arc<C>,
    progress: Arc<Progress>,
    cpu: CpuMeter,
    token: SessionToken,
    sent: mpsc::Sender<T::Sent>,
    /// What the connections of the round take their frames from.
    queue: Option<async_channel::Receiver<T>>,
    growth: Growth,
    /// Connections that the round should have beside those that it has.
    wanted: u16,
    opening: Option<Opening<C::Stream>>,
}

type Opening<S> = Pin<Box<dyn Future<Output = Result<S, TransportError>> + Send>>;

impl<T: Carried, C: Connector + 'static> Streams<T, C> {
    /// For a session of `token` that begins with `first` connections and may have `most`.
    pub(crate) fn new(
        context: &Context,
        connector: &Arc<C>,
        token: SessionToken,
        sent: &mpsc::Sender<T::Sent>,
        first: u16,
        most: u16,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            connector: Arc::clone(connector),
            progress: Arc::clone(&context.progress),
            cpu: context.cpu.clone(),
            token,
            sent: sent.clone(),
            queue: None,
            growth: Growth::new(first, most, processors),
            wanted: 0,
            opening: None,
        }
    }

    /// Begins a round with `first` connections, which take what they send from `queue`.
    pub(crate) fn begin_round(
        &mut self,
        conversation: &mut Conversation,
        queue: async_channel::Receiver<T>,
        first: u16,
    ) {
        for number in 0..first {
            let connection = self.connection(number, &queue);
            conversation.add(connection.run(Arc::clone(&self.connector)));
        }
        self.queue = Some(queue);
        self.wanted = self.growth.begin_round(Instant::now(), first);
    }

    fn connection(&self, number: u16, queue: &async_channel::Receiver<T>) -> DataConnection<T> {
        DataConnection {
            preamble: Preamble::Data {
                number,
                token: self.token,
            },
            queue: queue.clone(),
            sent: self.sent.clone(),
            progress: Arc::clone(&self.progress),
        }
    }

    /// A stream for one more connection, as soon as one would help; the target's time went to `target`.
    /// Dropping the future loses nothing.
    pub(crate) async fn next(&mut self, target: Option<Waits>) -> C::Stream {
        loop {
            if self.wanted > 0 {
                let opening = self.opening.get_or_insert_with(|| {
                    let connector = Arc::clone(&self.connector);
                    Box::pin(async move { connector.open().await })
                });
                let opened = opening.await;
                self.opening = None;
                match opened {
                    Ok(stream) => return stream,
                    // The clone goes on with those that it has.
                    Err(error) => {
                        tracing::warn!("no further connection to the target: {error}");
                        self.wanted = 0;
                        self.growth.give_up();
                    }
                }
            } else if let Some(due_at) = self.growth.due_at() {
                tokio::time::sleep_until(due_at.into()).await;
                let look = Look {
                    wire_bytes: self.progress.wire_bytes.sum(),
                    source: self.progress.waits(),
                    target,
                    cpu: self.cpu.wanted(),
                };
                self.wanted = self.growth.look(Instant::now(), look);
            } else {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sends over `stream` too, as the connection of this number.
    pub(crate) fn join(&mut self, conversation: &mut Conversation, number: u16, stream: C::Stream) {
        let Some(queue) = &self.queue else { return };
        let connection = self.connection(number, queue);
        conversation.add(connection.run_over(stream));
        self.wanted = self.wanted.saturating_sub(1);
        self.growth.opened(Instant::now());
        tracing::info!(number, "the network limits: one more connection");
    }

    /// All that the round had to send was sent.
    pub(crate) fn end_round(&mut self) {
        self.queue = None;
        self.wanted = 0;
        self.opening = None;
        self.growth.pause();
    }
}

/// The next of `streams`, once there are any.
pub(crate) async fn next_of<T: Carried, C: Connector + 'static>(
    streams: &mut Option<Streams<T, C>>,
    target: Option<Waits>,
) -> C::Stream {
    match streams {
        Some(streams) => streams.next(target).await,
        None => std::future::pending().await,
    }
}
