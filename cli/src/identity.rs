//! `volferry identity`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use uuid::Uuid;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_transport::{Role, mint};

use crate::output;

/// Verbs of `volferry identity`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an authority for one clone, and credentials for its source, target and observer
    ///
    /// The authority's key is not kept: nobody can add to the clone later.
    New(NewArguments),
}

/// Arguments of `volferry identity new`.
#[derive(Debug, Args)]
pub(crate) struct NewArguments {
    /// The clone; a new UUID when it has none yet
    #[arg(long, value_name = "UUID")]
    clone_id: Option<Uuid>,

    /// Where to write source/, target/ and observer/, each with tls.crt, tls.key and ca.crt
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Hours that the credentials are valid
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=87600))]
    valid_hours: u32,
}

/// Runs the command.
pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    let Command::New(arguments) = command;
    let clone_id = arguments.clone_id.unwrap_or_else(Uuid::new_v4);
    let validity = Duration::from_secs(u64::from(arguments.valid_hours) * 3600);
    mint(clone_id, validity)
        .and_then(|minted| minted.write_to(&arguments.out))
        .map_err(|error| Failure::new(FailureCode::Usage, chain(&error)))?;
    let roles = Role::ALL.map(|role| arguments.out.join(role.as_str()).display().to_string());
    output::line(&format!(
        "clone {clone_id}: credentials in {}",
        roles.join(", ")
    ))
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
