//! The controller as a program.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use futures::FutureExt;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use volferry_controller::cluster::Cluster;
use volferry_controller::health;
use volferry_controller::lease::Candidate;
use volferry_controller::metrics::Metrics;
use volferry_controller::observer::NetworkObserver;
use volferry_controller::reconcile::{Context, Limits};
use volferry_controller::world::Settings;

/// Clones Kubernetes volumes as VolumeClones ask for it.
#[derive(Debug, Parser)]
#[command(name = "volferry-controller", version)]
struct Arguments {
    /// The image of the agents
    #[arg(long, value_name = "IMAGE")]
    image: String,

    /// When nodes pull it: Always, IfNotPresent or Never
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent")]
    #[arg(value_parser = ["Always", "IfNotPresent", "Never"])]
    image_pull_policy: String,

    /// The namespace that the controller runs in
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    namespace: String,

    /// The name of this controller among several: that of its pod
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    name: String,

    /// Clones at once in the whole cluster
    #[arg(long, value_name = "N", default_value_t = 32)]
    clones_max: usize,

    /// Clones at once with the target in one namespace
    #[arg(long, value_name = "N", default_value_t = 8)]
    clones_per_namespace_max: usize,

    /// Clones at once with an agent on one node, as far as the node is known before
    #[arg(long, value_name = "N", default_value_t = 8)]
    clones_per_node_max: usize,

    /// Serve /healthz, /readyz and /metrics here
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:8080")]
    health_listen: SocketAddr,

    /// What is logged: a level, or a list of module=level
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_new(&arguments.log).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // As the agents: that a line can't be written is no reason to panic.
        .log_internal_errors(false)
        .init();
    let listen = arguments.health_listen;
    let metrics = Arc::new(Metrics::new());
    let outcome = tokio::select! {
        outcome = run(arguments, Arc::clone(&metrics)) => outcome,
        Err(error) = health::serve(listen, metrics) => Err(format!("{listen} can't be listened on: {error}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Waits for its turn, leads, and ends when told to, or when another leads.
async fn run(arguments: Arguments, metrics: Arc<Metrics>) -> Result<(), String> {
    volferry_transport::set_process_default();
    let client = Client::try_default()
        .await
        .map_err(|error| format!("no API server is known: {error}"))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| format!("no signals: {error}"))?;
    let asked = async move {
        tokio::select! {
            _ = terminate.recv() => (),
            _ = tokio::signal::ctrl_c() => (),
        }
    };
    let asked = asked.shared();
    let candidate = Candidate::new(client.clone(), &arguments.namespace, arguments.name.clone());
    tokio::select! {
        () = candidate.lead() => (),
        () = asked.clone() => return Ok(()),
    }
    tracing::info!(name = arguments.name, "leads");
    let context = Context::new(
        Cluster::new(client, arguments.name),
        NetworkObserver,
        Settings {
            image: arguments.image,
            image_pull_policy: arguments.image_pull_policy,
            namespace: arguments.namespace,
        },
        Limits {
            overall: arguments.clones_max,
            per_namespace: arguments.clones_per_namespace_max,
            per_node: arguments.clones_per_node_max,
        },
    )
    .with_metrics(metrics);
    if Box::pin(candidate.keep_while(Arc::new(context).run(asked))).await {
        candidate.release().await;
        Ok(())
    } else {
        Err("another controller leads now".to_owned())
    }
}
