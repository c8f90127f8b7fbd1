//! The target agent as a program.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::BoolishValueParser;
use clap::{ArgGroup, Parser};
use volferry_agent::options::{AgentOptions, TransportOptions, TreeOptions, parse_part};
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::{Context, Files, run_program};
use volferry_storage::TargetOptions;
use volferry_target_agent::options::ResumeOptions;
use volferry_target_agent::{TargetConfig, listen};
use volferry_transport::{Address, CredentialsDir, Role};

/// Receives a volume from the source agent of the same clone, writes it and makes it durable.
///
/// Exit codes: 0 the clone is proven, 1 a fault of volferry, 2 usage, 3 source, 4 target,
/// 5 network, 6 identity, 7 integrity, 8 cancelled, 9 fidelity.
#[derive(Debug, Parser)]
#[command(name = "volferry-target", version)]
#[command(group(ArgGroup::new("replacing").args(["overwrite", "delta"]).multiple(true)))]
struct Arguments {
    /// The target volume: a block device, a raw image file that may not exist yet, or a directory
    #[arg(long, env = "VOLFERRY_VOLUME", value_name = "PATH")]
    volume: PathBuf,

    /// Where to listen for the source agent; port 0 takes a free one and logs it. Or unix:PATH, a Unix
    /// socket for a source agent on the same node that sees its file
    #[arg(long, env = "VOLFERRY_LISTEN", value_name = "ADDR:PORT")]
    listen: Address,

    /// Write into a file that exists, or a directory that holds something: what is sent replaces
    /// what is there
    #[arg(long, env = "VOLFERRY_OVERWRITE", value_parser = BoolishValueParser::new())]
    overwrite: bool,

    /// Remove what a target directory holds and the source does not, so that it is exactly the source
    #[arg(long, env = "VOLFERRY_DELETE_EXTRA", value_parser = BoolishValueParser::new())]
    #[arg(requires = "replacing")]
    delete_extra: bool,

    /// The part of a filesystem that is kept free when a block volume is cloned into a directory
    #[arg(
        long,
        env = "VOLFERRY_FILESYSTEM_OVERHEAD",
        value_name = "PART",
        default_value_t = 0.0
    )]
    #[arg(value_parser = parse_part)]
    filesystem_overhead: f64,

    /// Make what lies behind the volume on a larger target read as zeros
    #[arg(long, env = "VOLFERRY_ZERO_TAIL", value_parser = BoolishValueParser::new())]
    zero_tail: bool,

    /// Allocate all of the target's space, also for zeros
    #[arg(long, env = "VOLFERRY_PREALLOCATE", value_parser = BoolishValueParser::new())]
    preallocate: bool,

    /// Write through the page cache, in a bounded window
    #[arg(long, env = "VOLFERRY_BUFFERED", value_parser = BoolishValueParser::new())]
    buffered: bool,

    /// Data connections to grant
    #[arg(
        long,
        env = "VOLFERRY_STREAMS_MAX",
        value_name = "N",
        default_value_t = 64
    )]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    streams_max: u16,

    /// Threads that check and write [default: one for each processor, at most 4]
    #[arg(long, env = "VOLFERRY_WRITERS", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    writers: Option<u16>,

    #[command(flatten)]
    resume: ResumeOptions,

    #[command(flatten)]
    tree: TreeOptions,

    #[command(flatten)]
    transport: TransportOptions,

    #[command(flatten)]
    agent: AgentOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let defaults = TargetConfig::new(arguments.volume.clone());
    let config = TargetConfig {
        options: TargetOptions {
            overwrite: arguments.overwrite,
            zero_tail: arguments.zero_tail,
            preallocate: arguments.preallocate,
            direct: !arguments.buffered,
        },
        streams_max: arguments.streams_max,
        writers: arguments.writers.map_or(defaults.writers, usize::from),
        memory_bytes: arguments.agent.memory_bytes(),
        terms: arguments.tree.terms(),
        delete_extra: arguments.delete_extra,
        filesystem_overhead: arguments.filesystem_overhead,
        ..defaults
    };
    let config = arguments.resume.apply(config);
    let credentials = CredentialsDir::new(&arguments.agent.identity, Role::Target);
    let address = arguments.listen;
    let transport = arguments.transport;
    let is_unix = address.network().is_none();
    let fits = transport.check_fits(is_unix);
    let clone_id = fits.and_then(|()| arguments.agent.clone_id());
    let files = Files {
        volume: &arguments.volume,
        manifest: None,
    };
    run_program(End::Target, &arguments.agent, files, clone_id, |context| {
        serve(config, context, address, credentials, transport)
    })
}

async fn serve(
    config: TargetConfig,
    context: Context,
    address: Address,
    credentials: CredentialsDir,
    transport: TransportOptions,
) -> Outcome {
    // The volume first: nobody connects to a target that can't take a clone.
    let target = volferry_target_agent::open(&config, context.progress.clone_id())?;
    let listener = listen(address, credentials, &transport, &context.metrics).await?;
    tracing::info!(address = %listener.local_address(), "listening for the source agent");
    volferry_target_agent::serve(&config, context, target, listener).await
}
