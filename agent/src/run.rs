//! Runs an agent as a program: a runtime, signals, the admin port, the outcome.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::setpriority_process;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::receipt::AgentStats;
use volferry_storage::keep_freed_memory;

use crate::admin::{self, Admin};
use crate::cpu::{CountedThread, CpuMeter, peak_memory_bytes};
use crate::metrics::Metrics;
use crate::options::AgentOptions;
use crate::outcome::{self, Outcome};
use crate::output_files::OutputFiles;
use crate::patience::{Patience, PatienceLimits};
use crate::pressure::Pressure;
use crate::progress::{End, Progress};
use crate::shutdown::{Shutdown, shutdown, signalled};
use crate::telemetry;
use crate::trace::{Recorder, Sample};

/// What an agent's work is given by whoever runs it.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where the work tells how far it is.
    pub progress: Arc<Progress>,
    /// Where it counts what went wrong.
    pub metrics: Metrics,
    /// Where its threads are counted.
    pub cpu: CpuMeter,
    /// When it has to end.
    pub shutdown: Shutdown,
    /// What the admin port says of readiness.
    pub admin: Admin,
    /// How long it keeps trying.
    pub patience: Patience,
}

impl Context {
    /// A context for the agent at `end` of the clone, with counters at zero.
    #[must_use]
    pub fn new(
        end: End,
        clone_id: Uuid,
        cpu: CpuMeter,
        shutdown: Shutdown,
        limits: PatienceLimits,
    ) -> Self {
        let progress = Arc::new(Progress::new(end, clone_id));
        let metrics = Metrics::new(Arc::clone(&progress), cpu.clone());
        let admin = Admin::new(metrics.clone(), Arc::clone(&progress));
        let patience = Patience::new(limits, Arc::clone(&progress));
        Self {
            progress,
            metrics,
            cpu,
            shutdown,
            admin,
            patience,
        }
    }
}

impl Context {
    /// What the work has cost by now, for the receipt. `agent` is the agent's name and version.
    #[must_use]
    pub fn stats(&self, agent: &str) -> AgentStats {
        AgentStats {
            agent: agent.to_owned(),
            cpu_seconds: self.cpu.total().as_secs_f64(),
            peak_memory_bytes: peak_memory_bytes(),
            transport: self.progress.transport(),
            compression: self.progress.compression(),
            waits: Some(self.progress.waits()),
        }
    }
}

/// A runtime whose threads are named after the agent and counted by `cpu`. The process keeps what memory it frees
/// from now on.
///
/// # Errors
/// When the threads can't be started.
pub fn runtime(end: End, cpu: &CpuMeter) -> std::io::Result<Runtime> {
    thread_local! {
        static COUNTED: std::cell::RefCell<Option<CountedThread>> =
            const { std::cell::RefCell::new(None) };
    }
    keep_freed_memory();
    let cpu = cpu.clone();
    Builder::new_multi_thread()
        .thread_name(format!("{}-net", end.label()))
        .on_thread_start(move || {
            let counted = cpu.count_this_thread();
            COUNTED.with(|slot| slot.replace(Some(counted)));
        })
        .on_thread_stop(|| {
            COUNTED.with(|slot| slot.replace(None));
        })
        .enable_all()
        .build()
}

/// What an agent reads or writes besides what its [`AgentOptions`] name.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The volume.
    pub volume: &'a Path,
    /// The manifest that it writes.
    pub manifest: Option<&'a Path>,
}

/// Runs `work` until it ends or a signal comes, and leaves its outcome in the file, the log and
/// the exit code.
pub fn run_program<Work>(
    end: End,
    options: &AgentOptions,
    files: Files<'_>,
    clone_id: Result<Uuid, Failure>,
    work: impl FnOnce(Context) -> Work,
) -> ExitCode
where
    Work: Future<Output = Outcome>,
{
    telemetry::start(options.log_format, &options.log);
    let mut outputs = OutputFiles::beside(vec![files.volume]);
    let receipt = options.receipt.as_deref();
    let kept = outputs.add("receipt", receipt);
    // One that would be written over the volume isn't.
    let receipt = receipt.filter(|_| kept.is_ok());
    let outcome = kept
        .and_then(|()| outputs.add("manifest", files.manifest))
        .and_then(|()| outputs.add("trace", options.trace.as_deref()))
        .and_then(|()| yield_to_others(options))
        .and(clone_id)
        .and_then(|clone_id| run_work(end, options, clone_id, work));
    match &outcome {
        Ok(receipt) => tracing::info!(
            clone_id = %receipt.clone_id,
            digest = %receipt.digest,
            logical_bytes = receipt.logical_bytes,
            data_bytes = receipt.data_bytes,
            seconds = receipt.seconds,
            "the clone is proven"
        ),
        Err(failure) => tracing::error!(
            class = failure.code.class().label(),
            code = failure.code.label(),
            "{failure}"
        ),
    }
    if let Some(path) = receipt
        && let Err(error) = outcome::write(&outcome, path)
    {
        tracing::error!(path = %path.display(), %error, "the receipt can't be written");
    }
    outcome::exit_code(&outcome)
}

/// Makes this thread, and so all that it starts, as modest as was asked for.
fn yield_to_others(options: &AgentOptions) -> Result<(), Failure> {
    let refused = |what: &str, error: &dyn std::fmt::Display| {
        let text = format!("the {what} can't be set: {error}");
        Failure::new(FailureCode::Usage, text)
    };
    if let Some(nice) = options.nice {
        setpriority_process(None, nice.into()).map_err(|error| refused("niceness", &error))?;
    }
    if let Some(priority) = options.io_priority {
        let applied = priority.apply();
        applied.map_err(|error| refused("I/O priority", &error))?;
    }
    Ok(())
}

fn run_work<Work>(
    end: End,
    options: &AgentOptions,
    clone_id: Uuid,
    work: impl FnOnce(Context) -> Work,
) -> Outcome
where
    Work: Future<Output = Outcome>,
{
    let cpu = CpuMeter::default();
    let _main = cpu.count_this_thread();
    let runtime = runtime(end, &cpu)
        .map_err(|error| Failure::internal(format!("threads can't be started: {error}")))?;
    let outcome = runtime.block_on(async {
        // Before any work: opening a volume may take long.
        let signalled = signalled();
        let (trigger, shutdown) = shutdown();
        let context = Context::new(end, clone_id, cpu, shutdown, options.patience());
        let program = format!("volferry-{}", end.label());
        let mut recorder = Recorder::open(options.trace.as_deref(), clone_id, &program)?;
        let admin = context.admin.clone();
        admin.allow_control(options.admin_control);
        let listener = match options.admin_listen {
            Some(address) => Some(bind_admin(address).map_err(|error| {
                let text = format!("the admin port {address} can't be bound: {error}");
                Failure::new(FailureCode::Usage, text)
            })?),
            None => None,
        };
        let serve_admin = async {
            match listener {
                Some(listener) => match admin.serve(listener).await {},
                None => std::future::pending().await,
            }
        };
        let pressure = options.pressure_limit.map(open_pressure).transpose()?;
        let progress = Arc::clone(&context.progress);
        let give_way = async {
            match pressure {
                Some((pressure, share_max)) => pressure.give_way(&progress, share_max).await,
                None => std::future::pending().await,
            }
        };
        let ask_to_end = async {
            signalled.await;
            trigger.request();
            std::future::pending().await
        };
        let record = async { match recorder.watch(&progress).await {} };
        let outcome = tokio::select! {
            // The work first: what the admin port tells of it is as it was configured.
            biased;
            outcome = work(context) => outcome,
            outcome = ask_to_end => outcome,
            outcome = serve_admin => outcome,
            outcome = give_way => outcome,
            outcome = record => outcome,
        };
        recorder.record(&Sample::of_one(&progress.report()));
        outcome
    });
    // A reader that hangs in a dead disk must not keep the agent from ending.
    runtime.shutdown_background();
    outcome
}

/// The pressure of the node, and the share of time up to which it is left alone.
fn open_pressure(percent: u8) -> Result<(Pressure, f64), Failure> {
    let pressure = Pressure::open().map_err(|error| {
        let text = format!(
            "--pressure-limit needs the kernel's pressure-stall information in /proc/pressure, which can't be \
             read: {error}; boot the node with psi=1, or leave the flag out"
        );
        Failure::new(FailureCode::Usage, text)
    })?;
    Ok((pressure, f64::from(percent) / 100.0))
}

/// Binds the admin port, and logs which one it is: port 0 takes a free one.
fn bind_admin(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = admin::bind(address)?;
    let address = listener.local_addr()?;
    tracing::info!(%address, "serving the admin port");
    Ok(listener)
}
