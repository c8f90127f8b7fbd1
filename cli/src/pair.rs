//! Both agents in one process, over loopback: the same code, the same TLS and the same identities
//! as two pods. Each agent has a runtime of its own, so that its processor time can be told apart.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use tokio::sync::oneshot;
use uuid::Uuid;
use volferry_agent::cpu::CpuMeter;
use volferry_agent::options::{TransportOptions, parse_chunk_size};
use volferry_agent::outcome::Outcome;
use volferry_agent::patience::PatienceLimits;
use volferry_agent::progress::{End, Report};
use volferry_agent::run::{Context, runtime};
use volferry_agent::shutdown::shutdown;
use volferry_agent::trace;
use volferry_protocol::failure::{Failure, FailureClass, FailureCode};
use volferry_protocol::geometry::ChunkSize;
use volferry_source_agent::SourceConfig;
use volferry_target_agent::TargetConfig;
use volferry_transport::{CredentialsDir, Dialer, Role, TransportChoice, mint};

/// How both agents cut, hold and reach a volume.
#[derive(Debug, Args)]
pub(crate) struct ChunkOptions {
    /// Chunk size, a power of two from 64KiB to 8MiB; the digest depends on it
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_chunk_size)]
    pub(crate) chunk_size: ChunkSize,

    /// Memory for chunks in flight at each end, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=65536))]
    memory_mib: u32,

    /// Read and write through the page cache
    #[arg(long)]
    pub(crate) buffered: bool,
}

impl ChunkOptions {
    /// Bytes for chunks in flight at each end.
    pub(crate) const fn memory_bytes(&self) -> usize {
        (self.memory_mib as usize) << 20
    }
}

/// How long the credentials of a clone in one process are valid: longer than any clone takes.
const VALIDITY: Duration = Duration::from_secs(30 * 24 * 3600);

/// Between two looks at the progress.
const REPORT_INTERVAL: Duration = Duration::from_millis(trace::INTERVAL_MS);

/// Clones from one to the other, and tells both ends' progress a few times a second and at the end.
///
/// # Errors
/// Whatever ends the clone.
pub(crate) fn clone(
    clone_id: Uuid,
    source: SourceConfig,
    target: TargetConfig,
    transport: TransportOptions,
    mut on_progress: impl FnMut(&Report, &Report),
) -> Outcome {
    let identities = tempfile::tempdir().map_err(|error| {
        let text = format!(
            "no directory for the credentials can be made in {}: {error}; set TMPDIR to one that can be written",
            std::env::temp_dir().display()
        );
        Failure::new(FailureCode::Usage, text)
    })?;
    mint(clone_id, VALIDITY)
        .and_then(|minted| minted.write_to(&identities.path().join("clone")))
        .map_err(|error| Failure::internal(format!("the credentials can't be made: {error}")))?;
    let credentials =
        |role: Role| CredentialsDir::new(identities.path().join("clone").join(role.as_str()), role);

    let no_threads = |error| Failure::internal(format!("threads can't be started: {error}"));
    let (source_cpu, target_cpu) = (CpuMeter::default(), CpuMeter::default());
    let source_runtime = runtime(End::Source, &source_cpu).map_err(no_threads)?;
    let target_runtime = runtime(End::Target, &target_cpu).map_err(no_threads)?;
    let signalled = {
        let _inside = target_runtime.enter();
        volferry_agent::shutdown::signalled()
    };
    let (source_trigger, source_shutdown) = shutdown();
    let (target_trigger, target_shutdown) = shutdown();
    let patience = PatienceLimits::default();
    let source_context = Context::new(End::Source, clone_id, source_cpu, source_shutdown, patience);
    let target_context = Context::new(End::Target, clone_id, target_cpu, target_shutdown, patience);
    let reports = (
        source_context.progress.clone(),
        target_context.progress.clone(),
    );

    // The volume is claimed before the source is told where to dial.
    let opened = volferry_target_agent::open(&target, clone_id)?;
    let (listening, address) = oneshot::channel();
    let target_credentials = credentials(Role::Target);
    // One choice for both ends: nothing is offered that isn't used.
    let told = transport.transport.unwrap_or(TransportChoice::Tls);
    let congestion = transport.congestion;
    let offered = TransportOptions {
        transport: Some(told),
        ..transport
    };
    let target_task = target_runtime.spawn(async move {
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let metrics = target_context.metrics.clone();
        let listener =
            volferry_target_agent::listen(any_port, target_credentials, &offered, &metrics).await?;
        // A source that is gone already shows as a shutdown.
        let _gone = listening.send(listener.local_address().to_string());
        volferry_target_agent::serve(&target, target_context, opened, listener).await
    });
    let source_credentials = credentials(Role::Source);
    let source_task = source_runtime.spawn(async move {
        let Ok(address) = address.await else {
            return Err(Failure::new(
                FailureCode::Connect,
                "the target does not listen",
            ));
        };
        let dialer = Dialer::new(address, source_credentials)
            .with_transport(told)
            .with_congestion(congestion);
        volferry_source_agent::run(source, source_context, dialer).await
    });

    let watch = async {
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        loop {
            ticks.tick().await;
            on_progress(&reports.0.report(), &reports.1.report());
        }
    };
    let (source_trigger, target_trigger) = (&source_trigger, &target_trigger);
    // When one end fails on its own, the other may still wait for it.
    let source_done = async {
        let outcome = source_task.await;
        if !matches!(outcome, Ok(Ok(_))) {
            target_trigger.request();
        }
        joined(outcome)
    };
    let target_done = async {
        let outcome = target_task.await;
        if !matches!(outcome, Ok(Ok(_))) {
            source_trigger.request();
        }
        joined(outcome)
    };
    let cancel = async {
        signalled.await;
        source_trigger.request();
        target_trigger.request();
        std::future::pending::<()>().await
    };
    let (source, target) = target_runtime.block_on(async {
        tokio::select! {
            outcomes = async { tokio::join!(source_done, target_done) } => outcomes,
            () = watch => unreachable!("it watches until the end"),
            () = cancel => unreachable!("it cancels and waits"),
        }
    });
    on_progress(&reports.0.report(), &reports.1.report());
    source_runtime.shutdown_background();
    target_runtime.shutdown_background();
    combine(source, target)
}

fn joined(outcome: Result<Outcome, tokio::task::JoinError>) -> Outcome {
    outcome.unwrap_or_else(|error| {
        let error = Failure::internal(error.to_string());
        Err(error)
    })
}

/// One outcome of two: the receipt when both have it, else the failure that was the cause. The
/// other end's failure is only its echo.
fn combine(source: Outcome, target: Outcome) -> Outcome {
    let is_echo = |failure: &Failure| {
        matches!(
            failure.code.class(),
            FailureClass::Network | FailureClass::Cancelled
        )
    };
    match (source, target) {
        (Ok(receipt), Ok(same)) if receipt == same => Ok(receipt),
        (Ok(_), Ok(_)) => Err(Failure::internal("the two ends hold two receipts")),
        (Err(failure), Ok(_)) | (Ok(_), Err(failure)) => Err(failure),
        (Err(of_source), Err(of_target)) => {
            // The end whose own volume failed has the particulars first hand.
            let target_knows = of_target.code.class() == FailureClass::Target;
            match (is_echo(&of_source), is_echo(&of_target)) {
                (true, false) => Err(of_target),
                (false, false) if target_knows => Err(of_target),
                _ => Err(of_source),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_told_and_not_its_echo() {
        let fail = |code, text: &str| Err(Failure::new(code, text));
        let check = |source: Outcome, target: Outcome, text: &str| {
            assert_eq!(combine(source, target).unwrap_err().text, text);
        };
        use FailureCode::{Cancelled, Disconnected, SourceRead, TargetWrite};
        check(fail(SourceRead, "EIO"), fail(Cancelled, "echo"), "EIO");
        check(fail(SourceRead, "EIO"), fail(SourceRead, "told"), "EIO");
        check(fail(TargetWrite, "told"), fail(TargetWrite, "EIO"), "EIO");
        check(fail(Disconnected, "echo"), fail(TargetWrite, "EIO"), "EIO");
        check(
            fail(Cancelled, "SIGINT"),
            fail(Cancelled, "SIGINT"),
            "SIGINT",
        );
    }
}
