//! Measures volferry and its peers on the same volumes, in one run.
//!
//! A *row* is a kind of volume, a *peer* a way to clone one over TLS, a *run* one clone. For every
//! row the volume is made once; then each peer clones it in turn, several times, each time onto a
//! target prepared alike and with cold caches. The order rotates, so that no peer always follows
//! the same other, and noise is shared.
//!
//! A run is timed from the start of its first process until its target is flushed. Then the target
//! is read back and compared, outside of the timed part. What a run cost is the processor time of
//! all of its processes, servers included, and beside it the busy time of the whole machine, which
//! alone shows kernel threads.
//!
//! Where to start reading: [`run`] is the loop, [`peer`] the table of peers, [`row`] the volumes.
//! Apart from it are [`paths`], transports without volumes, and [`ceilings`], the parts of a clone.

mod args;
mod ceilings;
mod chart;
mod compression;
mod devices;
mod error;
mod floor;
mod history;
mod input;
mod limit;
mod output;
mod paths;
mod peer;
mod pki;
mod port;
mod process;
mod results;
mod row;
mod run;
mod settle;
mod signals;
mod size;
mod table;
mod tools;
mod tree;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let done = match &args.command {
        Some(args::Command::Paths(args)) => paths::run(args),
        Some(args::Command::Ceilings(args)) => ceilings::run(args),
        Some(args::Command::Compression(args)) => compression::run(args),
        Some(args::Command::History(args)) => history::run(args),
        None => run::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::progress(&format!("bench: {}", error::chain(&error)));
            ExitCode::FAILURE
        }
    }
}
