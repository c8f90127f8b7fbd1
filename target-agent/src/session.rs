//! What sessions have in common, whatever is cloned: who is granted one, who is turned away, how one
//! ends, and the loop that goes from one to the next.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use volferry_agent::conversation::Heard;
use volferry_agent::outcome::{Outcome, cancelled};
use volferry_agent::run::Context;
use volferry_protocol::failure::{Failure, FailureClass, FailureCode};
use volferry_protocol::message::Hello;
use volferry_protocol::receipt::Receipt;
use volferry_protocol::session::fence::fenced;
use volferry_protocol::session::{Fence, Stage};
use volferry_transport::PeerAddress;

use crate::TargetConfig;
use crate::greeter::{Greeted, Greeter, Purpose, refuse};

/// How long a target whose clone is proven waits for a source that may not have heard of it.
const LINGER_TIME: Duration = Duration::from_secs(60);

/// How long the target may take for what was received when the agent has to end: within the thirty
/// seconds that a pod is given.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// A source that was granted a session.
#[derive(Debug)]
pub(crate) struct Ask<S> {
    pub(crate) hello: Hello,
    pub(crate) epoch: u64,
    pub(crate) stream: S,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum SessionEnd<S> {
    /// The clone is proven. Whether the source has heard of it is told too.
    Proven {
        receipt: Box<Receipt>,
        is_heard: bool,
    },
    /// It failed for good.
    Failed(Failure),
    /// Another session may go on; perhaps it is there already.
    Interrupted(Failure, Option<Ask<S>>),
}

/// What a session that failed leaves of the target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remains {
    /// Whether another session could go on with it.
    pub(crate) is_usable: bool,
    /// Whether the session never came to it.
    pub(crate) is_untouched: bool,
}

impl<S> SessionEnd<S> {
    /// The end of a session that `failure` ended in order.
    pub(crate) fn failed(
        failure: Failure,
        context: &Context,
        remains: Remains,
        next: Option<Ask<S>>,
    ) -> Self {
        let is_of_peer = matches!(
            failure.code.class(),
            FailureClass::Network | FailureClass::Identity
        );
        let may_go_on = remains.is_usable
            && !context.shutdown.is_requested()
            && (failure.code.is_retryable()
                || next.is_some()
                || remains.is_untouched && is_of_peer);
        if !may_go_on {
            return Self::Failed(failure);
        }
        context.progress.set_stage(Stage::Handshake);
        Self::Interrupted(failure, next)
    }
}

/// What takes in a clone, session by session.
pub(crate) trait Receiver<S> {
    /// Who may have the next session.
    fn fence(&mut self) -> &mut Fence;

    /// The receipt, while the clone is proven and its source may not have heard of it.
    fn unheard(&self) -> Option<&Receipt>;

    /// Runs one session with the source that asked; its data connections come through `greeter`.
    async fn receive(
        &mut self,
        config: &TargetConfig,
        context: &Context,
        ask: Ask<S>,
        greeter: &mut Greeter<S>,
    ) -> SessionEnd<S>;
}

/// Receives one clone in as many sessions as it takes; `asked` has the first, where a source is there
/// already.
pub(crate) async fn serve_sessions<S>(
    config: &TargetConfig,
    context: &Context,
    held: &mut impl Receiver<S>,
    mut asked: Option<Ask<S>>,
    greeter: &mut Greeter<S>,
) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // How long a source is waited for that may not have heard of the receipt.
    let mut until: Option<Instant> = None;
    loop {
        let ask = match asked.take() {
            Some(ask) => ask,
            None => {
                let unheard = held.unheard().cloned().map(Box::new);
                let next = next_source(context, held.fence(), greeter);
                match unheard {
                    None => next.await?,
                    Some(receipt) => {
                        let until = *until.get_or_insert_with(|| Instant::now() + LINGER_TIME);
                        match tokio::time::timeout_at(until.into(), next).await {
                            Ok(Ok(ask)) => ask,
                            Ok(Err(_)) | Err(_) => return Ok(*receipt),
                        }
                    }
                }
            }
        };
        // A session is large, and there are few.
        match Box::pin(held.receive(config, context, ask, greeter)).await {
            SessionEnd::Proven {
                receipt,
                is_heard: true,
            } => return Ok(*receipt),
            SessionEnd::Proven { .. } => {
                tracing::warn!(
                    "the clone is proven, but the source may not have heard of it: waiting for it \
                     to come back"
                );
            }
            SessionEnd::Failed(failure) => {
                context.metrics.count_failure(&failure);
                // What was proven stays so, and its source may still come.
                if held.unheard().is_none() {
                    return Err(failure);
                }
            }
            SessionEnd::Interrupted(failure, next) => {
                tracing::warn!(
                    code = failure.code.label(),
                    "a session ended early, waiting for the source: {failure}"
                );
                context.patience.note(&failure);
                context.metrics.count_failure(&failure);
                asked = next;
            }
        }
    }
}

/// Waits for a source that is granted a session.
pub(crate) async fn next_source<S>(
    context: &Context,
    fence: &mut Fence,
    greeter: &mut Greeter<S>,
) -> Result<Ask<S>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut shutdown = context.shutdown.clone();
    let mut refusals = Refusals::default();
    loop {
        let Greeted {
            purpose,
            stream,
            peer_address,
        } = tokio::select! {
            greeted = greeter.next() => greeted?,
            failure = context.patience.exhausted() => return Err(failure),
            () = shutdown.requested() => return Err(cancelled()),
        };
        let Purpose::Control(hello) = purpose else {
            turn_away_data(context, peer_address);
            continue;
        };
        match fence.ask(&hello, Ok::<(), Failure>(())) {
            Ok(epoch) => {
                return Ok(Ask {
                    hello: *hello,
                    epoch,
                    stream,
                });
            }
            Err(failure) => refusals.refuse(context, stream, peer_address, failure),
        }
    }
}

/// Counts a data connection that belongs to no session.
pub(crate) fn turn_away_data(context: &Context, peer_address: PeerAddress) {
    tracing::warn!(%peer_address, "a data connection of no session was turned away");
    context.metrics.count_rejection("no_session");
}

/// Goodbyes to sources that are turned away.
#[derive(Debug, Default)]
struct Refusals(JoinSet<()>);

impl Refusals {
    fn refuse<S>(
        &mut self,
        context: &Context,
        stream: S,
        peer_address: PeerAddress,
        failure: Failure,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        tracing::warn!(%peer_address, "a session was turned away: {failure}");
        context.metrics.count_rejection(failure.code.label());
        self.0.spawn(refuse(stream, failure));
        while self.0.try_join_next().is_some() {}
    }
}

/// Sources that come while another has the session.
#[derive(Debug)]
pub(crate) struct Rivals<S> {
    /// The one whose session ends this one.
    next: Option<Ask<S>>,
    refusals: Refusals,
}

impl<S> Default for Rivals<S> {
    /// None yet.
    fn default() -> Self {
        Self {
            next: None,
            refusals: Refusals::default(),
        }
    }
}

impl<S> Rivals<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Decides about a source whose greeting `held`, the one that has the session, makes `checked`.
    /// Gives what ends the session, if this one is granted the next.
    pub(crate) fn admit<T>(
        &mut self,
        context: &Context,
        fence: &mut Fence,
        held: Option<&Hello>,
        checked: Result<T, Failure>,
        rival: (Hello, S, PeerAddress),
    ) -> Option<Heard> {
        let (hello, stream, peer_address) = rival;
        let epoch = match fence.ask(&hello, checked) {
            Ok(epoch) => epoch,
            Err(failure) => {
                self.refusals.refuse(context, stream, peer_address, failure);
                return None;
            }
        };
        tracing::info!(%peer_address, epoch, "a newer session takes over");
        let is_same = held.is_some_and(|held| held.instance == hello.instance);
        self.next = Some(Ask {
            hello,
            epoch,
            stream,
        });
        Some(match is_same {
            true => {
                let text = "the source connected anew";
                Heard::End(Failure::new(FailureCode::Disconnected, text))
            }
            false => Heard::Fail(fenced()),
        })
    }

    /// Whether another session is there already.
    pub(crate) const fn has_next(&self) -> bool {
        self.next.is_some()
    }

    /// Drops the goodbyes that are still being said, and gives whose session is next.
    pub(crate) async fn close(mut self) -> Option<Ask<S>> {
        self.refusals.0.shutdown().await;
        self.next
    }
}

/// Lets a session that `failure` ended take in what it has received, by `drain`. That may take as
/// long as it takes if another session may follow or is there (`has_next`), but not when the agent has
/// to end.
///
/// # Errors
/// Those of `drain`; or why the agent has to end, where the target took too long: that it does may be over
/// when the agent is started again.
pub(crate) async fn drain_in_time(
    context: &Context,
    failure: &Failure,
    has_next: bool,
    drain: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    // A target that failed is left alone; else nothing that was received is thrown away.
    if failure.code.class() == FailureClass::Target {
        return Ok(());
    }
    let mut shutdown = context.shutdown.clone();
    let overdue = async {
        let cause = if failure.code.is_retryable() || has_next {
            tokio::select! {
                () = shutdown.requested() => cancelled(),
                at_its_end = context.patience.exhausted() => at_its_end,
            }
        } else {
            failure.clone()
        };
        tokio::time::sleep(DRAIN_TIMEOUT).await;
        cause
    };
    tokio::select! {
        drained = drain => drained,
        Failure { code, text } = overdue => {
            let text = format!(
                "{text}; and the target did not take in time what was received; it may hang: look at \
                 the kernel log"
            );
            Err(Failure::new(code, text))
        }
    }
}
