//! What the network and its encryption decide: streams between the two agents' transport over
//! loopback, or between two processes, filled for a while. The chunks come from memory and go to memory.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::sync::Barrier;
use volferry_agent::cpu::CpuMeter;
use volferry_agent::failure::of_transport;
use volferry_agent::progress::End;
use volferry_agent::run::runtime;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_storage::BufferPool;
use volferry_transport::{
    Connector, CredentialsDir, Dialer, ListenLimits, Listener, Role, SecureStream, TransportChoice,
    TransportError,
};

use super::cpu::{Workbench, touched};
use super::{Measured, NETWORK_TIME};
use crate::cost::{Cost, Stopwatch};
use crate::settings::Tuning;

/// How long both ends have to say goodbye.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// The last goodbyes and acknowledgements have to be out before the runtime ends.
const LINGER: Duration = Duration::from_secs(1);

/// How long to try for what should be there already.
const PEER_WAIT: Duration = Duration::from_secs(20);

/// Fills `streams` streams for `time`: with all that goes through, or with `pace` bytes a second. A stream
/// that waits for its next chunk has its threads woken for each, and costs more than one that is full.
///
/// # Errors
/// When they can't be had, or break.
pub fn fill(
    workbench: &Arc<Workbench>,
    choice: TransportChoice,
    streams: u16,
    time: Duration,
    pace: Option<f64>,
) -> Result<Measured, Failure> {
    let started = |end| {
        runtime(end, &CpuMeter::default())
            .map_err(|error| Failure::internal(format!("threads can't be started: {error}")))
    };
    // Two runtimes, as of two agents.
    let (source, target) = (started(End::Source)?, started(End::Target)?);
    let filled = Filled {
        streams,
        time,
        pace,
    };
    let measured = fill_within(&source, &target, workbench, choice, filled);
    source.shutdown_background();
    target.shutdown_background();
    measured
}

/// How streams are filled.
#[derive(Clone, Copy, Debug)]
struct Filled {
    streams: u16,
    time: Duration,
    /// Bytes a second of all streams together; without, as much as goes through.
    pace: Option<f64>,
}

impl Filled {
    /// How long a stream that has sent `bytes` should have taken for that.
    fn due(&self, bytes: u64) -> Duration {
        let each = self.pace.map(|pace| pace / f64::from(self.streams.max(1)));
        let seconds = each.map_or(0.0, |pace| bytes as f64 / pace);
        Duration::try_from_secs_f64(seconds).map_or(self.time, |due| due.min(self.time))
    }
}

fn fill_within(
    source: &Runtime,
    target: &Runtime,
    workbench: &Arc<Workbench>,
    choice: TransportChoice,
    filled: Filled,
) -> Result<Measured, Failure> {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let limits = ListenLimits {
        transport: choice,
        ..ListenLimits::default()
    };
    let failed = |error: TransportError| of_transport(&error);
    let credentials = workbench.credentials(Role::Target);
    let mut listener = target
        .block_on(Listener::bind(
            any_port,
            credentials,
            limits,
            |_address, _error| {},
        ))
        .map_err(failed)?;
    let dialer = Dialer::new(
        listener.local_address().to_string(),
        workbench.credentials(Role::Source),
    )
    .with_transport(choice);

    let pool = pool(workbench.tuning())?;
    let streams = filled.streams;
    let receiving = target.spawn(async move { receive_all(&mut listener, streams, &pool).await });
    let workbench = Arc::clone(workbench);
    let sending = source.spawn(async move {
        let mut control = dialer.connect().await?;
        greet(&mut control).await?;
        send_all(&dialer, control, &workbench, filled).await
    });
    let both = async {
        let (cost, _sent) = joined(sending.await)?;
        let (_cost, bytes) = joined(receiving.await)?;
        Ok((cost, bytes))
    };
    let (cost, bytes) = source.block_on(both).map_err(failed)?;
    Ok(Measured {
        cost,
        bytes,
        ..Measured::default()
    })
}

/// Streams to fill: over what, and how many.
pub type Filling = (TransportChoice, u16);

/// Receives at `address` what [`send_to`] sends from another process, one filling after the other;
/// waits so long for the first to begin.
///
/// # Errors
/// When the port can't be opened. What becomes of each filling is told in its place.
pub fn receive_at(
    address: SocketAddr,
    credentials: CredentialsDir,
    tuning: Tuning,
    fillings: &[Filling],
    wait: Duration,
) -> Result<Vec<Result<Measured, Failure>>, Failure> {
    let limits = ListenLimits {
        transport: TransportChoice::Auto,
        ..ListenLimits::default()
    };
    let pool = pool(tuning)?;
    within(End::Target, async {
        let listening = Listener::bind(address, credentials, limits, |_address, _error| {});
        let mut listener = listening.await.map_err(|error| of_transport(&error))?;
        let mut all = Vec::new();
        for (number, (_choice, streams)) in fillings.iter().enumerate() {
            let wait = if number == 0 { wait } else { PEER_WAIT };
            let limit = wait + NETWORK_TIME + END_TIMEOUT;
            let received = receive_all(&mut listener, *streams, &pool);
            all.push(in_time(limit, "waiting for streams", received).await);
        }
        Ok(measured(all))
    })
}

/// Sends to `address` what [`receive_at`] receives there, and tries for a while to be let in.
///
/// # Errors
/// When no threads can be started. What becomes of each filling is told in its place.
pub fn send_to(
    address: &str,
    credentials: &CredentialsDir,
    workbench: &Arc<Workbench>,
    fillings: &[Filling],
) -> Result<Vec<Result<Measured, Failure>>, Failure> {
    /// Between two attempts: the other end may be about to listen.
    const PAUSE: Duration = Duration::from_millis(200);
    within(End::Source, async {
        let mut all = Vec::new();
        for (choice, streams) in fillings {
            let dialer =
                Dialer::new(address.to_owned(), credentials.clone()).with_transport(*choice);
            let until = Instant::now() + PEER_WAIT;
            let control = loop {
                let attempt = async {
                    let mut control = dialer.connect().await?;
                    greet(&mut control).await.map(|()| control)
                };
                match in_time(PEER_WAIT, "connecting", attempt).await {
                    Err(_refused) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
                    other => break other,
                }
            };
            let filled = Filled {
                streams: *streams,
                time: NETWORK_TIME,
                pace: None,
            };
            let sent = async { send_all(&dialer, control?, workbench, filled).await };
            all.push(in_time(NETWORK_TIME + 2 * END_TIMEOUT, "filling streams", sent).await);
        }
        Ok(measured(all))
    })
}

fn measured(all: Vec<Result<(Cost, u64), TransportError>>) -> Vec<Result<Measured, Failure>> {
    let measured = |(cost, bytes)| Measured {
        cost,
        bytes,
        ..Measured::default()
    };
    let each = all.into_iter();
    each.map(|one| one.map(measured).map_err(|error| of_transport(&error)))
        .collect()
}

/// Runs one end on a runtime of its own, as an agent does.
fn within<T>(end: End, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime(end, &CpuMeter::default())
        .map_err(|error| Failure::internal(format!("threads can't be started: {error}")))?;
    let ended = runtime.block_on(async {
        let ended = work.await;
        tokio::time::sleep(LINGER).await;
        ended
    });
    runtime.shutdown_background();
    ended
}

async fn in_time<T>(
    limit: Duration,
    operation: &'static str,
    work: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    let ended = tokio::time::timeout(limit, work).await;
    ended.unwrap_or(Err(TransportError::Closed { operation }))
}

/// Memory of an agent, all of which was touched before: what that costs is measured apart.
fn pool(tuning: Tuning) -> Result<BufferPool, Failure> {
    let pool = BufferPool::new(tuning.memory_bytes, tuning.chunk_size.bytes() as usize)
        .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
    let all = (0..pool.buffer_count()).map_while(|_number| pool.checkout_blocking());
    drop(all.map(touched).collect::<Vec<_>>());
    Ok(pool)
}

/// Takes `streams` streams and a control connection, and everything that comes; what it cost from the
/// first one on, and how many bytes came.
async fn receive_all(
    listener: &mut Listener,
    streams: u16,
    pool: &BufferPool,
) -> Result<(Cost, u64), TransportError> {
    let mut tasks = Vec::new();
    let mut watch = None;
    // Each stream has a buffer to fill, and the control connection needs none.
    let held_max = pool.buffer_count() / usize::from(streams.max(1));
    let held_max = held_max.saturating_sub(2);
    // One more, as the agents have a control connection.
    for _ in 0..=streams {
        let accepted = listener.accept().await?;
        watch.get_or_insert_with(Stopwatch::start);
        tasks.push(tokio::spawn(receive(
            accepted.stream,
            pool.clone(),
            held_max,
        )));
    }
    let mut bytes = 0;
    for task in tasks {
        bytes += joined(task.await)?;
    }
    Ok((watch.map(|watch| watch.stop()).unwrap_or_default(), bytes))
}

/// Fills streams, and ends them and `control`; what it cost, and how many bytes were sent.
async fn send_all(
    dialer: &Dialer,
    mut control: SecureStream,
    workbench: &Arc<Workbench>,
    filled: Filled,
) -> Result<(Cost, u64), TransportError> {
    let streams = filled.streams;
    // All streams are there before the first is filled.
    let ready = Arc::new(Barrier::new(usize::from(streams) + 1));
    let mut tasks = Vec::new();
    for number in 0..usize::from(streams) {
        let (dialer, ready) = (dialer.clone(), Arc::clone(&ready));
        let workbench = Arc::clone(workbench);
        tasks.push(tokio::spawn(async move {
            let mut stream = dialer.open().await?;
            greet(&mut stream).await?;
            ready.wait().await;
            send(&mut stream, &workbench, number, filled).await
        }));
    }
    // A stream that fails to open would be waited for without end.
    let begun = tokio::time::timeout(END_TIMEOUT, ready.wait()).await;
    let watch = Stopwatch::start();
    let mut bytes = 0;
    for task in tasks {
        if begun.is_err() {
            task.abort();
        }
        bytes += joined(task.await)?;
    }
    let cost = watch.stop();
    end(&mut control).await?;
    Ok((cost, bytes))
}

/// Lets the peer know of the stream, and waits until it does.
async fn greet(stream: &mut SecureStream) -> Result<(), TransportError> {
    let failed = |error| TransportError::from_io("greeting", error);
    stream.write_all(&[1]).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut answer = [0; 1];
    stream.read_exact(&mut answer).await.map_err(failed)?;
    Ok(())
}

/// Sends chunks for a while, then ends in order, and says how many bytes went.
async fn send(
    stream: &mut SecureStream,
    workbench: &Workbench,
    number: usize,
    filled: Filled,
) -> Result<u64, TransportError> {
    let since = Instant::now();
    let mut bytes = 0;
    for chunk in super::cpu::rotating(workbench.data(), number) {
        let sent = stream.write_all(chunk).await;
        sent.map_err(|error| TransportError::from_io("sending", error))?;
        bytes += chunk.len() as u64;
        tokio::time::sleep_until((since + filled.due(bytes)).into()).await;
        if since.elapsed() >= filled.time {
            break;
        }
    }
    end(stream).await?;
    Ok(bytes)
}

/// Ends this direction, and waits for the peer's end.
async fn end(stream: &mut SecureStream) -> Result<(), TransportError> {
    let failed = |error| TransportError::from_io("ending", error);
    stream.shutdown().await.map_err(failed)?;
    let mut rest = [0; 1];
    stream.read(&mut rest).await.map_err(failed)?;
    Ok(())
}

/// Receives chunks until the peer ends, and says how many bytes came. The last `held_max` of them are
/// kept, as by a target that has yet to write them: so each comes to memory that no cache holds.
async fn receive(
    mut stream: SecureStream,
    pool: BufferPool,
    held_max: usize,
) -> Result<u64, TransportError> {
    let failed = |error| TransportError::from_io("receiving", error);
    let mut greeting = [0; 1];
    stream.read_exact(&mut greeting).await.map_err(failed)?;
    stream.write_all(&greeting).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut bytes = 0;
    let mut held = VecDeque::with_capacity(held_max + 1);
    'chunks: loop {
        let Some(mut buffer) = pool.checkout().await else {
            break;
        };
        let mut room: &mut [u8] = &mut buffer;
        while !room.is_empty() {
            let len = stream.read(room).await.map_err(failed)?;
            if len == 0 {
                break 'chunks;
            }
            bytes += len as u64;
            room = room.get_mut(len..).unwrap_or_default();
        }
        held.push_back(buffer);
        if held.len() > held_max {
            held.pop_front();
        }
    }
    stream.shutdown().await.map_err(failed)?;
    Ok(bytes)
}

fn joined<T>(
    ended: Result<Result<T, TransportError>, tokio::task::JoinError>,
) -> Result<T, TransportError> {
    ended.unwrap_or_else(|_aborted| {
        Err(TransportError::Closed {
            operation: "filling a stream",
        })
    })
}
