//! What each transport gets through a path: `bench paths`.
//!
//! No volumes and no agents: the streams of the transport between two network namespaces, with the emulated link of
//! the tests between them. What is counted is what the receiving end has decrypted.

use std::io;
use std::net::SocketAddr;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use uuid::Uuid;
use volferry_tests::device::Namespaces;
use volferry_tests::link::{Link, Path};
use volferry_transport::{
    Congestion, CredentialsDir, Dialer, ListenLimits, Listener, Role, Transport, TransportChoice,
    TransportError, mint,
};

use crate::error::{At as _, Error};
use crate::{output, signals};
use volferry_benchmark::machine::Machine;

/// Measures what each transport gets through slow, long and lossy paths.
#[derive(Clone, Debug, Args)]
pub(crate) struct PathsArgs {
    /// What fits through the link, in Mb/s.
    #[arg(long, default_value_t = 200)]
    rate: u64,
    /// Round trips, in milliseconds.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 20, 100])]
    round_trips: Vec<u64>,
    /// Packets lost of a million, each way.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1_000, 10_000, 30_000])]
    lost: Vec<u64>,
    /// How long each measurement takes, in seconds; a part as long as its half goes before it.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Where `paths.json` goes.
    #[arg(long, default_value = "bench/out")]
    out: PathBuf,
}

/// A way to send.
#[derive(Clone, Copy, Debug)]
struct Way {
    transport: Transport,
    streams: usize,
    congestion: Congestion,
}

impl Way {
    fn name(self) -> String {
        let Self {
            transport,
            streams,
            congestion,
        } = self;
        format!("{} {streams} {}", transport.as_str(), congestion.as_str())
    }
}

/// TLS with so many connections; QUIC has one, whatever its streams.
const WAYS: [Way; 8] = {
    const fn tls(streams: usize, congestion: Congestion) -> Way {
        Way {
            transport: Transport::Tls,
            streams,
            congestion,
        }
    }
    const fn quic(congestion: Congestion) -> Way {
        Way {
            transport: Transport::Quic,
            streams: 4,
            congestion,
        }
    }
    [
        tls(1, Congestion::Cubic),
        tls(4, Congestion::Cubic),
        tls(8, Congestion::Cubic),
        tls(1, Congestion::Bbr),
        tls(4, Congestion::Bbr),
        tls(8, Congestion::Bbr),
        quic(Congestion::Cubic),
        quic(Congestion::Bbr),
    ]
};

/// What was measured: `paths.json`.
#[derive(Debug, Serialize)]
struct Results {
    machine: Machine,
    megabits_per_second: u64,
    seconds: u64,
    cells: Vec<Cell>,
}

#[derive(Debug, Serialize)]
struct Cell {
    round_trip_ms: u64,
    lost_ppm: u64,
    way: String,
    /// Of content, a second; `None` when the ends did not meet.
    megabits_per_second: Option<f64>,
}

/// Measures all of it, a line at a time.
pub(crate) fn run(args: &PathsArgs) -> Result<(), Error> {
    signals::watch().at("listen for", "signals")?;
    std::fs::create_dir_all(&args.out).at("create", &args.out)?;
    let scratch = tempfile::tempdir().at("create", std::env::temp_dir())?;
    let identity = mint(Uuid::new_v4(), VALIDITY).map_err(io::Error::other);
    let written = identity.and_then(|minted| {
        let write = minted.write_to(scratch.path());
        write.map_err(io::Error::other)
    });
    written.at("mint credentials in", scratch.path())?;
    let mut results = Results {
        machine: Machine::read(),
        megabits_per_second: args.rate,
        seconds: args.seconds,
        cells: Vec::new(),
    };
    let names: String = WAYS
        .iter()
        .map(|way| format!(" {} |", way.name()))
        .collect();
    output::line(&format!("| round trip | lost |{names}"));
    output::line(&format!("|---|---|{}", "---|".repeat(WAYS.len())));
    for &round_trip_ms in &args.round_trips {
        for &lost_ppm in &args.lost {
            let mut line = format!("| {round_trip_ms} ms | {} % |", percent(lost_ppm));
            for way in WAYS {
                signals::check()?;
                let path = Path {
                    round_trip: Duration::from_millis(round_trip_ms),
                    lost_ppm,
                    bits_per_second: args.rate * 1_000_000,
                    ..Path::default()
                };
                let measured = measure(path, way, scratch.path(), args.seconds);
                let rate = measured.inspect_err(|error| output::progress(&error.to_string()));
                let rate = rate.ok();
                line += &rate.map_or_else(|| " - |".into(), |rate| format!(" {rate:.1} |"));
                results.cells.push(Cell {
                    round_trip_ms,
                    lost_ppm,
                    way: way.name(),
                    megabits_per_second: rate,
                });
            }
            output::line(&line);
            output::save_json(&results, &args.out.join("paths.json"))?;
        }
    }
    Ok(())
}

fn percent(ppm: u64) -> f64 {
    Duration::from_micros(ppm).as_secs_f64() * 100.0
}

/// Megabits of content a second that one way gets through a path.
fn measure(path: Path, way: Way, credentials: &FilePath, seconds: u64) -> io::Result<f64> {
    let link = Link::make(path).map_err(io::Error::other)?;
    let received = Arc::new(AtomicU64::new(0));
    let (stop, stopped) = watch::channel(());
    let (tell, told) = oneshot::channel();
    let of = |role: Role| CredentialsDir::new(credentials.join(role.as_str()), role);
    thread::scope(|scope| {
        let (count, target_stopped) = (Arc::clone(&received), stopped.clone());
        let (left, right) = (&link.ends().left, &link.ends().right);
        let target = scope.spawn(|| {
            Namespaces::run_in(right, || {
                runtime()?.block_on(receive(of(Role::Target), way, count, tell, target_stopped))
            })
        });
        let source = scope.spawn(|| {
            Namespaces::run_in(left, || {
                let address = told.blocking_recv().map_err(io::Error::other)?;
                runtime()?.block_on(send(address, of(Role::Source), way, stopped))
            })
        });
        let measured = Duration::from_secs(seconds);
        thread::sleep(measured / 2 + path.round_trip * 10);
        let before = received.load(Ordering::Relaxed);
        thread::sleep(measured);
        let after = received.load(Ordering::Relaxed);
        drop(stop);
        source
            .join()
            .map_err(|_| io::Error::other("the source panicked"))??;
        target
            .join()
            .map_err(|_| io::Error::other("the target panicked"))??;
        Ok((after - before) as f64 * 8.0 / 1e6 / measured.as_secs_f64())
    })
}

fn runtime() -> io::Result<Runtime> {
    // Its threads are born in the namespace of this one.
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// Counts what comes until it is stopped.
async fn receive(
    credentials: CredentialsDir,
    way: Way,
    received: Arc<AtomicU64>,
    tell: oneshot::Sender<SocketAddr>,
    mut stopped: watch::Receiver<()>,
) -> io::Result<()> {
    let limits = ListenLimits {
        transport: choice(way.transport),
        ..ListenLimits::default()
    };
    let address = SocketAddr::from((RIGHT, 0));
    let refused = |_, error: TransportError| output::progress(&error.to_string());
    let mut listener = Listener::bind(address, credentials, limits, refused)
        .await
        .map_err(io::Error::other)?;
    let address = listener.local_address().network();
    let _gone = tell.send(address.ok_or_else(|| io::Error::other("no port"))?);
    let mut readers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let mut stream = accepted.map_err(io::Error::other)?.stream;
                let received = Arc::clone(&received);
                readers.spawn(async move {
                    let mut buffer = vec![0; PIECE];
                    while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                        received.fetch_add(len as u64, Ordering::Relaxed);
                    }
                });
            }
            _ = stopped.changed() => return Ok(()),
        }
    }
}

/// Sends until it is stopped.
async fn send(
    address: SocketAddr,
    credentials: CredentialsDir,
    way: Way,
    mut stopped: watch::Receiver<()>,
) -> io::Result<()> {
    let dialer = Dialer::new(address.to_string(), credentials)
        .with_transport(choice(way.transport))
        .with_congestion(Some(way.congestion));
    let first = dialer.dial().await.map_err(io::Error::other)?;
    let mut streams = vec![first];
    while streams.len() < way.streams {
        streams.push(dialer.dial_more().await.map_err(io::Error::other)?);
    }
    let mut senders = JoinSet::new();
    for mut stream in streams {
        senders.spawn(async move {
            let piece = vec![0x5a; PIECE];
            while stream.write_all(&piece).await.is_ok() {}
        });
    }
    let _stopped = stopped.changed().await;
    Ok(())
}

const fn choice(transport: Transport) -> TransportChoice {
    match transport {
        Transport::Tls | Transport::Unix => TransportChoice::Tls,
        Transport::Quic => TransportChoice::Quic,
    }
}

/// What the agents write and read at once.
const PIECE: usize = 256 << 10;

const RIGHT: std::net::Ipv4Addr = std::net::Ipv4Addr::new(192, 0, 2, 2);

const VALIDITY: Duration = Duration::from_secs(24 * 3600);
