//! Fills streams over loopback for a while, and nothing else, for a profiler to look at: `fill tls|quic|auto STREAMS SECONDS`.

#![expect(clippy::print_stdout, reason = "what was measured is told there")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use volferry_benchmark::ceiling::{cpu::Workbench, network};
use volferry_benchmark::profile::Profile;
use volferry_benchmark::settings::Tuning;
use volferry_protocol::geometry::ChunkSize;
use volferry_transport::TransportChoice;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [transport, streams, seconds] = &args[..] else {
        return Err("usage: fill tls|quic|auto STREAMS SECONDS".into());
    };
    let known = |choice: &&TransportChoice| choice.as_str() == transport;
    let choice = TransportChoice::ALL.iter().find(known);
    let choice = *choice.ok_or_else(|| format!("there is no transport {transport}"))?;
    let streams: u16 = streams.parse()?;
    let time = Duration::try_from_secs_f64(seconds.parse()?)?;

    let tuning = Tuning {
        chunk_size: ChunkSize::DEFAULT,
        streams,
        readers: 1,
        tree_readers: 1,
        writers: 1,
        memory_bytes: 64 << 20,
        direct: false,
        quic: choice == TransportChoice::Quic,
    };
    let workbench = Arc::new(Workbench::new(tuning, Profile::Random, 1)?);
    let measured = network::fill(&workbench, choice, streams, time, None)?;
    println!(
        "{:.2} GB/s, {:.2} CPU-s/GiB, {:.2} s stolen",
        measured.rate() / 1e9,
        measured.cost.cpu_seconds / (measured.bytes as f64 / f64::from(1 << 30)),
        measured.cost.machine_stolen_seconds,
    );
    Ok(())
}
