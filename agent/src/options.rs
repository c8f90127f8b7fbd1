//! The flags that both agents have, each also an environment variable. Keys come from files only.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use uuid::Uuid;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::ChunkSize;
use volferry_protocol::tree::fidelity::FidelityClass;
use volferry_protocol::tree::session::TreeTerms;
use volferry_storage::IoPriority;
use volferry_transport::{Congestion, Credentials, TransportChoice, TransportError};

use crate::failure;
use crate::patience::PatienceLimits;
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

    /// Record to this file how the clone goes at this end, moment by moment, for volferry bench trace
    #[arg(long, env = "VOLFERRY_TRACE", value_name = "PATH")]
    pub trace: Option<PathBuf>,

    /// Let whoever reaches the admin port change the bandwidth limit
    #[arg(long, env = "VOLFERRY_ADMIN_CONTROL", value_parser = BoolishValueParser::new())]
    pub admin_control: bool,

    /// How nice the agent's threads are to others that want a processor: 0 to 19, as of nice(1)
    #[arg(long, env = "VOLFERRY_NICE", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=19))]
    pub nice: Option<u8>,

    /// Who goes first at a disk: idle, best-effort, or best-effort:0 (first) to best-effort:7 (last);
    /// heeded by I/O schedulers that know priorities, such as bfq
    #[arg(long, env = "VOLFERRY_IO_PRIORITY", value_name = "CLASS", value_parser = parse_io_priority)]
    pub io_priority: Option<IoPriority>,

    /// Slow down while tasks on the node stall for storage or memory for more than this percentage of the
    /// time, this agent's own stalls included
    #[arg(long, env = "VOLFERRY_PRESSURE_LIMIT", value_name = "PERCENT")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=99))]
    pub pressure_limit: Option<u8>,

    /// Memory for chunks in flight, in MiB
    #[arg(
        long,
        env = "VOLFERRY_MEMORY_MIB",
        value_name = "MIB",
        default_value_t = 64
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=65536))]
    pub memory_mib: u32,

    /// Give up when the clone is not done after this time; 0 for never
    #[arg(
        long,
        env = "VOLFERRY_DEADLINE",
        value_name = "DURATION",
        default_value = "0"
    )]
    #[arg(value_parser = parse_duration)]
    pub deadline: Duration,

    /// Give up when nothing becomes durable for this time, counted from the first session on; 0
    /// for never
    #[arg(
        long,
        env = "VOLFERRY_STALL_TIMEOUT",
        value_name = "DURATION",
        default_value = "10m"
    )]
    #[arg(value_parser = parse_duration)]
    pub stall_timeout: Duration,

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

impl AgentOptions {
    /// The clone that the credentials are for: an agent works on that one and no other.
    ///
    /// # Errors
    /// When the credentials can't be used.
    pub fn clone_id(&self) -> Result<Uuid, Failure> {
        Credentials::load(&self.identity)
            .map(|credentials| credentials.name().clone_id)
            .map_err(|error| failure::of_transport(&TransportError::Credentials(error)))
    }

    /// Memory for chunks in flight, in bytes.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        (self.memory_mib as usize) << 20
    }
}

/// Flags of every end of a connection: of the agents, and of `volferry copy`.
#[derive(Clone, Debug, Default, Args)]
pub struct TransportOptions {
    /// What the agents talk over: tls, quic or auto. The target offers what it is told, both by
    /// default; the source takes what it is told, tls by default
    #[arg(long, env = "VOLFERRY_TRANSPORT", value_name = "NAME", value_parser = parse_transport)]
    pub transport: Option<TransportChoice>,

    /// The congestion control of what this end sends: bbr or cubic; by default bbr over QUIC, and the
    /// kernel's own over TLS
    #[arg(long, env = "VOLFERRY_CONGESTION", value_name = "NAME", value_parser = parse_congestion)]
    pub congestion: Option<Congestion>,
}

impl TransportOptions {
    /// Whether it goes together with a Unix socket, where one was told.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_fits(&self, is_unix: bool) -> Result<(), Failure> {
        if is_unix && self.transport == Some(TransportChoice::Quic) {
            let text =
                "QUIC does not run over a Unix socket; leave out --transport, or name a port";
            return Err(Failure::new(FailureCode::Usage, text));
        }
        Ok(())
    }
}

/// Reads what the agents are to talk over.
///
/// # Errors
/// When there is none of this name.
pub fn parse_transport(text: &str) -> Result<TransportChoice, String> {
    parse_word(text, &TransportChoice::ALL, |choice| choice.as_str())
}

/// Reads a congestion control.
///
/// # Errors
/// When there is none of this name.
pub fn parse_congestion(text: &str) -> Result<Congestion, String> {
    parse_word(text, &Congestion::ALL, |congestion| congestion.as_str())
}

/// The one of `all` whose word `text` is.
fn parse_word<T: Copy>(text: &str, all: &[T], word: fn(T) -> &'static str) -> Result<T, String> {
    let found = all.iter().copied().find(|&one| word(one) == text);
    found.ok_or_else(|| {
        let known: Vec<_> = all.iter().map(|&one| word(one)).collect();
        format!("{text:?} is none of {}", known.join(", "))
    })
}

/// Flags of every end of a clone of a tree: of the agents, and of `volferry copy`.
#[derive(Clone, Debug, Default, Args)]
pub struct TreeOptions {
    /// What of a tree may be lost: ownership, modes, times, xattrs, acls, labels, devices,
    /// unreadable or mounts; several with commas. What either end accepts is accepted
    #[arg(
        long,
        env = "VOLFERRY_ACCEPT",
        value_name = "CLASS",
        value_delimiter = ','
    )]
    #[arg(value_parser = parse_class)]
    pub accept: Vec<FidelityClass>,

    /// Clone the SELinux labels of a tree; both ends must say so
    #[arg(long, env = "VOLFERRY_SELINUX", value_parser = BoolishValueParser::new())]
    pub selinux: bool,
}

impl TreeOptions {
    /// What has to be kept.
    #[must_use]
    pub fn terms(&self) -> TreeTerms {
        TreeTerms {
            accept: self.accept.iter().copied().collect(),
            selinux: self.selinux,
        }
    }
}

/// Reads a class of what can be lost.
///
/// # Errors
/// When there is none of this name.
pub fn parse_class(text: &str) -> Result<FidelityClass, String> {
    parse_word(text, FidelityClass::ALL, |class| class.label())
}

impl AgentOptions {
    /// How long the agent keeps trying.
    #[must_use]
    pub fn patience(&self) -> PatienceLimits {
        let limit = |duration: Duration| (!duration.is_zero()).then_some(duration);
        PatienceLimits {
            deadline: limit(self.deadline),
            stall_timeout: limit(self.stall_timeout),
        }
    }
}

/// Reads a part of a whole, from 0 to below 1.
///
/// # Errors
/// When the text is no such number.
pub fn parse_part(text: &str) -> Result<f64, String> {
    let part: f64 = text
        .parse()
        .map_err(|error| format!("{text:?} is not a number: {error}"))?;
    match part {
        0.0..1.0 => Ok(part),
        _ => Err(format!("{text:?} is not from 0 to below 1")),
    }
}

/// Reads a duration: a number of seconds, or one with ms, s, m, h or d behind it.
///
/// # Errors
/// When the text is no such duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits_len = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_len);
    let unit_ms: u64 = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(format!(
                "{text:?} is not a duration such as 90, 90s, 10m or 2h"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|error| format!("{text:?} is not a duration: {error}"))?;
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is too long"))
}

/// Reads a size: a number of bytes, or one with KiB, MiB, GiB or TiB behind it (or K, M, G, T).
///
/// # Errors
/// When the text is no such size.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits_end = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => {
            return Err(format!(
                "{text:?} is not a size such as 65536, 512KiB or 1MiB"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|error| format!("{text:?} is not a size: {error}"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text:?} is too large"))
}

/// Reads a priority at a disk.
///
/// # Errors
/// When there is none of this name.
pub fn parse_io_priority(text: &str) -> Result<IoPriority, String> {
    let level = |text: &str| text.parse().ok().filter(|level| *level <= 7);
    let read = match text.split_once(':') {
        None if text == "idle" => Some(IoPriority::Idle),
        None if text == "best-effort" => Some(IoPriority::BestEffort(4)),
        Some(("best-effort", text)) => level(text).map(IoPriority::BestEffort),
        _ => None,
    };
    read.ok_or_else(|| {
        format!("{text:?} is none of idle, best-effort, best-effort:0 to best-effort:7")
    })
}

/// Reads a chunk size.
///
/// # Errors
/// When the text is no size, or not one that a chunk can have.
pub fn parse_chunk_size(text: &str) -> Result<ChunkSize, String> {
    let bytes = parse_size(text)?;
    let bytes =
        u32::try_from(bytes).map_err(|_large| format!("{text:?} is too large for a chunk"))?;
    ChunkSize::new(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let check = |text: &str, seconds: Option<f64>| {
            let read = parse_duration(text).ok().map(|read| read.as_secs_f64());
            assert_eq!(read, seconds, "{text}");
        };
        check("0", Some(0.0));
        check("90", Some(90.0));
        check("250ms", Some(0.25));
        check("10m", Some(600.0));
        check("2 h", Some(7200.0));
        check("1d", Some(86400.0));
        for bad in [
            "",
            "m",
            "-1",
            "1.5h",
            "1 week",
            "99999999999999999999",
            "999999999999999d",
        ] {
            check(bad, None);
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let check =
            |text: &str, bytes: Option<u64>| assert_eq!(parse_size(text).ok(), bytes, "{text}");
        check("4096", Some(4096));
        check("64K", Some(65536));
        check("1MiB", Some(1 << 20));
        check("16 GiB", Some(16 << 30));
        for bad in [
            "",
            "MiB",
            "-1",
            "1.5M",
            "1 MB",
            "99999999999999999999",
            "99999999T",
        ] {
            check(bad, None);
        }
        assert_eq!(
            parse_io_priority("best-effort:7"),
            Ok(IoPriority::BestEffort(7))
        );
        for bad in ["best-effort:8", "best-effort:", "idle:1", "realtime", ""] {
            assert!(parse_io_priority(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_chunk_size("1M"), Ok(ChunkSize::DEFAULT));
        assert!(parse_chunk_size("3M").is_err());
        assert!(parse_chunk_size("8T").is_err());
    }
}
