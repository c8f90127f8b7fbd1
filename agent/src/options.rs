//! The flags that both agents have, each also an environment variable. Keys come from files only.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use crate::telemetry::LogFormat;

/// Flags of every agent.
#[derive(Clone, Debug, Args)]
pub struct AgentOptions {
    /// Directory with this agent's credentials: tls.crt, tls.key and ca.crt
    ///
    /// They are read again for every connection, so they can be replaced while the agent runs.
    #[arg(long, env = "VOLFERRY_IDENTITY", value_name = "DIR")]
    pub identity: PathBuf,

    /// Serve /healthz, /readyz, /metrics and /progress here, as plain HTTP
    #[arg(long, env = "VOLFERRY_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    pub admin_listen: Option<SocketAddr>,

    /// Write the receipt, or the failure, to this file as JSON
    #[arg(long, env = "VOLFERRY_RECEIPT", value_name = "PATH")]
    pub receipt: Option<PathBuf>,

    /// Memory for chunks in flight, in MiB
    #[arg(
        long,
        env = "VOLFERRY_MEMORY_MIB",
        value_name = "MIB",
        default_value_t = 64
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=65536))]
    pub memory_mib: u32,

    /// How log lines look
    #[arg(long, env = "VOLFERRY_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// What is logged: a level, or a list of module=level
    #[arg(
        long,
        env = "VOLFERRY_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,
}
