//! What each way of compression costs and brings: `bench compression`.

use std::fs;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use uuid::Uuid;
use volferry_tests::device::Namespaces;
use volferry_tests::link::{Link, Path};
use volferry_transport::mint;

use crate::error::{At as _, Error};
use crate::process::Group;
use crate::size::gib;
use crate::tools::Tools;
use crate::{output, port, signals};

/// Clones a volume with each way of compression in turn, over a slow link or over loopback.
#[derive(Clone, Debug, Args)]
pub(crate) struct CompressionArgs {
    /// The volume: an image or a device.
    #[arg(long)]
    volume: PathBuf,
    /// Ways to compress.
    #[arg(long, value_delimiter = ',', default_values = ["none", "lz4", "zstd", "auto"])]
    methods: Vec<String>,
    /// What fits through the link, in Mb/s; 0 for loopback without a link.
    #[arg(long, default_value_t = 200)]
    rate: u64,
    /// The link's round trip, in milliseconds.
    #[arg(long, default_value_t = 2)]
    round_trip: u64,
    /// How often each way has its turn.
    #[arg(long, default_value_t = 1)]
    repeats: usize,
    /// Where the clone goes.
    #[arg(long, default_value = "bench/out/compressed.img")]
    target: PathBuf,
    /// The volferry binary, its agents beside it; where this binary is unless given.
    #[arg(long)]
    volferry: Option<PathBuf>,
}

/// Clones, and prints a line for each.
pub(crate) fn run(args: &CompressionArgs) -> Result<(), Error> {
    signals::watch().at("listen for", "signals")?;
    let tools = Tools::new(args.volferry.as_deref());
    output::line("| compression | s | MB/s | CPU-s/GiB | on the wire |");
    output::line("|---|---|---|---|---|");
    for repeat in 0..args.repeats {
        for order in 0..args.methods.len() {
            let method = &args.methods[(order + repeat) % args.methods.len()];
            let receipt = clone(args, method, &tools)?;
            output::line(&line(method, &receipt));
        }
    }
    Ok(())
}

fn clone(args: &CompressionArgs, method: &str, tools: &Tools) -> Result<Value, Error> {
    let scratch = tempfile::tempdir().at("create", std::env::temp_dir())?;
    let identity = scratch.path().join("identity");
    let minted = mint(Uuid::new_v4(), VALIDITY).map_err(std::io::Error::other);
    let written = minted.and_then(|minted| {
        let write = minted.write_to(&identity);
        write.map_err(std::io::Error::other)
    });
    written.at("mint credentials in", &identity)?;
    let link = (args.rate > 0).then(|| {
        Link::make(Path {
            round_trip: Duration::from_millis(args.round_trip),
            bits_per_second: args.rate * 1_000_000,
            ..Path::default()
        })
    });
    let link = link.transpose().map_err(std::io::Error::other);
    let link = link.at("make", "a link")?;
    let ends = link.as_ref().map(Link::ends);
    let host = ends.map_or("127.0.0.1", |_| Namespaces::RIGHT_ADDRESS);
    let address = format!("{host}:{}", port::free()?);

    if args.target.exists() {
        fs::remove_file(&args.target).at("remove", &args.target)?;
    }
    let receipt = scratch.path().join("receipt.json");
    let mut group = Group::new(scratch.path(), None, TIME_LIMIT);
    let mut target = agent(tools, "volferry-target", ends.map(|ends| &*ends.right));
    target
        .args(["--listen", &address, "--volume"])
        .arg(&args.target);
    target.arg("--identity").arg(identity.join("target"));
    let target = group.start({
        target.arg("--receipt").arg(&receipt);
        target
    })?;
    let mut source = agent(tools, "volferry-source", ends.map(|ends| &*ends.left));
    source
        .args(["--target", &address, "--volume"])
        .arg(&args.volume);
    source.args(["--compression", method]);
    let source = group.start({
        source.arg("--identity").arg(identity.join("source"));
        source
    })?;
    group.wait(source)?;
    group.wait(target)?;
    read(&receipt)
}

/// An agent, within a namespace if there is one.
fn agent(tools: &Tools, program: &str, namespace: Option<&str>) -> Command {
    let agent = tools.command(program);
    let Some(namespace) = namespace else {
        return agent;
    };
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace])
        .arg(agent.get_program());
    command
}

fn read(receipt: &FilePath) -> Result<Value, Error> {
    let text = fs::read_to_string(receipt).at("read", receipt)?;
    let receipt_or = serde_json::from_str(&text).map_err(std::io::Error::from);
    receipt_or.at("read", receipt)
}

/// What a receipt says, as a line of the table.
fn line(method: &str, receipt: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let data = receipt["data_bytes"].as_u64().unwrap_or_default();
    let seconds = number(&receipt["seconds"]);
    let cpu = number(&receipt["source"]["cpu_seconds"]) + number(&receipt["target"]["cpu_seconds"]);
    let wire = number(&receipt["wire_bytes"]) / data as f64;
    let rate = data as f64 / 1e6 / seconds;
    format!(
        "| {method} | {seconds:.2} | {rate:.1} | {:.2} | {:.1} % |",
        cpu / gib(data),
        wire * 100.0
    )
}

const VALIDITY: Duration = Duration::from_secs(24 * 3600);

/// For each clone.
const TIME_LIMIT: Duration = Duration::from_secs(600);
