//! The source agent as a program.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::BoolishValueParser;
use volferry_agent::options::{
    AgentOptions, TransportOptions, TreeOptions, parse_chunk_size, parse_size,
};
use volferry_agent::progress::End;
use volferry_agent::run::{Files, run_program};
use volferry_protocol::compression::Wanted;
use volferry_protocol::geometry::ChunkSize;
use volferry_source_agent::SourceConfig;
use volferry_transport::{Address, CredentialsDir, Dialer, Role, TransportChoice};

/// Reads a volume and sends it to the target agent of the same clone.
///
/// Exit codes: 0 the clone is proven, 1 a fault of volferry, 2 usage, 3 source, 4 target,
/// 5 network, 6 identity, 7 integrity, 8 cancelled, 9 fidelity.
#[derive(Debug, Parser)]
#[command(name = "volferry-source", version)]
struct Arguments {
    /// The source volume: a block device, a raw image file, or a directory
    #[arg(long, env = "VOLFERRY_VOLUME", value_name = "PATH")]
    volume: PathBuf,

    /// Where the target agent listens; or unix:PATH, its Unix socket on the same node
    #[arg(long, env = "VOLFERRY_TARGET", value_name = "HOST:PORT")]
    target: String,

    /// Data connections, so many and no more [default: one for each processor, at most 4; up to 16
    /// while the network limits and a further one helps]
    #[arg(long, env = "VOLFERRY_STREAMS", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,

    /// Threads that read and hash [default: one for each processor, at most 4; 8 for a
    /// directory]
    #[arg(long, env = "VOLFERRY_READERS", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    readers: Option<u16>,

    /// Chunk size, a power of two from 64KiB to 8MiB; the digest depends on it
    #[arg(
        long,
        env = "VOLFERRY_CHUNK_SIZE",
        value_name = "SIZE",
        default_value = "1MiB"
    )]
    #[arg(value_parser = parse_chunk_size)]
    chunk_size: ChunkSize,

    /// Read through the page cache
    #[arg(long, env = "VOLFERRY_BUFFERED", value_parser = BoolishValueParser::new())]
    buffered: bool,

    /// Seconds that the target agent may take to appear
    #[arg(
        long,
        env = "VOLFERRY_CONNECT_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 60
    )]
    connect_timeout: u64,

    /// Shut out another run of the source agent that holds the session, for good
    #[arg(long, env = "VOLFERRY_TAKE_OVER", value_parser = BoolishValueParser::new())]
    take_over: bool,

    /// What tells this state of the source from others, such as the uid of a snapshot: a clone goes
    /// on only from the same [default: size, and for a file inode and times]
    #[arg(long, env = "VOLFERRY_SOURCE_GENERATION", value_name = "ID")]
    source_generation: Option<String>,

    /// Write the digest of every chunk to this file, for volferry verify --manifest; of a tree the
    /// digest of every file, for b3sum --check
    #[arg(long, env = "VOLFERRY_MANIFEST", value_name = "PATH")]
    manifest: Option<PathBuf>,

    /// Clone a tree though files of it change, appear or vanish while it is read
    #[arg(long, env = "VOLFERRY_ALLOW_CHANGED", value_parser = BoolishValueParser::new())]
    allow_changed: bool,

    #[command(flatten)]
    tree: TreeOptions,

    /// Bytes that the data connections may send each second, before encryption; 0 for no limit. It
    /// can be changed while the agent runs: see --admin-control
    #[arg(
        long,
        env = "VOLFERRY_BANDWIDTH_LIMIT",
        value_name = "SIZE",
        default_value = "0"
    )]
    #[arg(value_parser = parse_size)]
    bandwidth_limit: u64,

    /// How what is sent is compressed: none, lz4, zstd (or zstd:1 to zstd:9), or auto, as long as that
    /// makes the clone faster
    #[arg(
        long,
        env = "VOLFERRY_COMPRESSION",
        value_name = "METHOD",
        default_value_t
    )]
    compression: Wanted,

    #[command(flatten)]
    transport: TransportOptions,

    #[command(flatten)]
    agent: AgentOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let defaults = SourceConfig::new(arguments.volume.clone());
    let config = SourceConfig {
        chunk_size: arguments.chunk_size,
        readers: arguments.readers.map_or(defaults.readers, usize::from),
        memory_bytes: arguments.agent.memory_bytes(),
        direct: !arguments.buffered,
        connect_timeout: Duration::from_secs(arguments.connect_timeout),
        take_over: arguments.take_over,
        generation: arguments.source_generation.clone(),
        manifest: arguments.manifest.clone(),
        terms: arguments.tree.terms(),
        allow_changed: arguments.allow_changed,
        bandwidth_limit: arguments.bandwidth_limit,
        compression: arguments.compression,
        ..defaults
    }
    .with_streams(arguments.streams);
    let credentials = CredentialsDir::new(&arguments.agent.identity, Role::Source);
    let transport = arguments.transport;
    let is_unix = Address::unix_path(&arguments.target).is_some();
    let fits = transport.check_fits(is_unix);
    let dialer = Dialer::new(arguments.target.as_str(), credentials)
        .with_transport(transport.transport.unwrap_or(TransportChoice::Tls))
        .with_congestion(transport.congestion);
    let clone_id = fits.and_then(|()| arguments.agent.clone_id());
    let files = Files {
        volume: &arguments.volume,
        manifest: arguments.manifest.as_deref(),
    };
    run_program(End::Source, &arguments.agent, files, clone_id, |context| {
        volferry_source_agent::run(config, context, dialer)
    })
}
