//! `volferry`: clones volumes, and proves clones, from the command line.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use volferry_agent::telemetry::{self, LogFormat};
use volferry_protocol::failure::Failure;

mod bench;
mod copy;
mod demo;
mod digest;
mod identity;
mod output;
mod pair;
mod verify;

/// Clones volumes between two agents, and proves every clone with a digest.
///
/// Exit codes: 0 success, 1 a fault of volferry, 2 usage, 3 source, 4 target, 5 network,
/// 6 identity, 7 integrity, 8 cancelled, 9 fidelity.
#[derive(Debug, Parser)]
#[command(name = "volferry", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,

    /// What is logged: a level, or a list of module=level
    #[arg(
        long,
        global = true,
        env = "VOLFERRY_LOG",
        value_name = "FILTER",
        default_value = "warn"
    )]
    log: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Clone a raw image, a block device or a directory, with both agents in this process
    Copy(copy::Arguments),
    /// Measure how fast a clone can be here, how fast it is, and what holds it
    Bench(Box<bench::Arguments>),
    /// Show what a clone is: make a small sparse volume, clone it, verify it, explain the receipt
    Demo,
    /// Compute the digest of a volume
    Digest(digest::Arguments),
    /// Check that a volume is what a receipt says
    Verify(verify::Arguments),
    /// Make credentials for the agents of a clone
    #[command(subcommand)]
    Identity(identity::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start(LogFormat::Text, &arguments.log);
    let done = match arguments.command {
        Command::Copy(arguments) => copy::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Demo => demo::run(),
        Command::Digest(arguments) => digest::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Identity(command) => identity::run(&command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => exit(&failure),
    }
}

fn exit(failure: &Failure) -> ExitCode {
    output::complain(failure);
    ExitCode::from(failure.code.class().exit_code())
}
