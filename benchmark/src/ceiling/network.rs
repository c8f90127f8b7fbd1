//! What the network and its encryption decide: streams between the two agents' transport over
//! loopback, filled for a while. The chunks come from memory and go to memory.

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
    Connector, Dialer, ListenLimits, Listener, Role, SecureStream, TransportChoice, TransportError,
};

use super::Measured;
use super::cpu::Workbench;
use crate::cost::{Cost, Stopwatch};

/// How long both ends have to say goodbye.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Fills `streams` streams for `time`.
///
/// # Errors
/// When they can't be had, or break.
pub fn fill(
    workbench: &Arc<Workbench>,
    choice: TransportChoice,
    streams: u16,
    time: Duration,
) -> Result<Measured, Failure> {
    let started = |end| {
        runtime(end, &CpuMeter::default())
            .map_err(|error| Failure::internal(format!("threads can't be started: {error}")))
    };
    // Two runtimes, as of two agents.
    let (source, target) = (started(End::Source)?, started(End::Target)?);
    let measured = fill_within(&source, &target, workbench, choice, streams, time);
    source.shutdown_background();
    target.shutdown_background();
    measured
}

fn fill_within(
    source: &Runtime,
    target: &Runtime,
    workbench: &Arc<Workbench>,
    choice: TransportChoice,
    streams: u16,
    time: Duration,
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

    let tuning = workbench.tuning();
    let pool = BufferPool::new(tuning.memory_bytes, tuning.chunk_size.bytes() as usize)
        .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
    let receiving = target.spawn(async move {
        let mut tasks = Vec::new();
        // One more, as the agents have a control connection.
        for _ in 0..=streams {
            let accepted = listener.accept().await?;
            tasks.push(tokio::spawn(receive(accepted.stream, pool.clone())));
        }
        let mut bytes = 0;
        for task in tasks {
            bytes += joined(task.await)?;
        }
        Ok::<_, TransportError>(bytes)
    });
    let workbench = Arc::clone(workbench);
    let sending = source.spawn(async move {
        let mut control = dialer.connect().await?;
        greet(&mut control).await?;
        // All streams are there before the first is filled.
        let ready = Arc::new(Barrier::new(usize::from(streams) + 1));
        let mut tasks = Vec::new();
        for number in 0..usize::from(streams) {
            let (dialer, ready) = (dialer.clone(), Arc::clone(&ready));
            let workbench = Arc::clone(&workbench);
            tasks.push(tokio::spawn(async move {
                let mut stream = dialer.open().await?;
                greet(&mut stream).await?;
                ready.wait().await;
                send(&mut stream, &workbench, number, time).await
            }));
        }
        // A stream that fails to open would be waited for without end.
        let begun = tokio::time::timeout(END_TIMEOUT, ready.wait()).await;
        let watch = Stopwatch::start();
        for task in tasks {
            if begun.is_err() {
                task.abort();
            }
            joined(task.await)?;
        }
        let cost = watch.stop();
        end(&mut control).await?;
        Ok::<Cost, TransportError>(cost)
    });
    let both = async {
        let cost = joined(sending.await)?;
        let bytes = joined(receiving.await)?;
        Ok((cost, bytes))
    };
    let (cost, bytes) = source.block_on(both).map_err(failed)?;
    Ok(Measured {
        cost,
        bytes,
        ..Measured::default()
    })
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

/// Sends chunks for `time`, then ends in order.
async fn send(
    stream: &mut SecureStream,
    workbench: &Workbench,
    number: usize,
    time: Duration,
) -> Result<(), TransportError> {
    let until = Instant::now() + time;
    for chunk in super::cpu::rotating(workbench.data(), number) {
        let sent = stream.write_all(chunk).await;
        sent.map_err(|error| TransportError::from_io("sending", error))?;
        if Instant::now() >= until {
            break;
        }
    }
    end(stream).await
}

/// Ends this direction, and waits for the peer's end.
async fn end(stream: &mut SecureStream) -> Result<(), TransportError> {
    let failed = |error| TransportError::from_io("ending", error);
    stream.shutdown().await.map_err(failed)?;
    let mut rest = [0; 1];
    stream.read(&mut rest).await.map_err(failed)?;
    Ok(())
}

/// Receives chunks until the peer ends, and says how many bytes came.
async fn receive(mut stream: SecureStream, pool: BufferPool) -> Result<u64, TransportError> {
    let failed = |error| TransportError::from_io("receiving", error);
    let mut greeting = [0; 1];
    stream.read_exact(&mut greeting).await.map_err(failed)?;
    stream.write_all(&greeting).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut bytes = 0;
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
