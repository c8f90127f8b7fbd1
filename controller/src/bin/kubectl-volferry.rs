//! `kubectl volferry`: clones and what they do, for people. It asks the API server as kubectl does, and
//! nobody else.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "it is what it is for")]
#![expect(clippy::print_stderr, reason = "and where it says why not")]

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;
use volferry_controller::api::{Phase, VolumeClone};
use volferry_controller::plugin::{report, table};

/// Clones volumes, and tells how far clones are and what they wait for.
#[derive(Debug, Parser)]
#[command(name = "kubectl volferry", bin_name = "kubectl volferry", version)]
struct Arguments {
    #[command(flatten)]
    place: Place,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
struct Place {
    /// The namespace of the clones, and of their targets
    #[arg(short, long, value_name = "NAME", global = true)]
    namespace: Option<String>,

    /// The context of the kubeconfig
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists clones, and what each waits for
    List {
        /// In all namespaces
        #[arg(short = 'A', long)]
        all_namespaces: bool,
    },
    /// Says how far a clone is, what holds it up, and where to look next
    Status {
        /// The clone's name
        name: String,
        /// Again every two seconds, until it has ended
        #[arg(short, long)]
        watch: bool,
    },
    /// Prints a clone's receipt, the proof
    Receipt {
        /// The clone's name
        name: String,
    },
    /// Clones a claim to a new one
    Clone {
        /// The source, as CLAIM or NAMESPACE/CLAIM
        source: String,
        /// The claim to make, and the name of the clone
        target: String,
        /// The storage class of the new claim; the default one unless given
        #[arg(long, value_name = "NAME")]
        storage_class: Option<String>,
        /// Shows the status until it has ended
        #[arg(short, long)]
        watch: bool,
    },
}

/// How often a status is shown again.
const WATCH_EVERY: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    volferry_transport::set_process_default();
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kubectl volferry: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, String> {
    let options = KubeConfigOptions {
        context: arguments.place.context,
        ..KubeConfigOptions::default()
    };
    let config = Config::from_kubeconfig(&options).await;
    let config = config.map_err(|error| format!("the kubeconfig can't be used: {error}"))?;
    let namespace = arguments
        .place
        .namespace
        .unwrap_or_else(|| config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| error.to_string())?;
    let clones: Api<VolumeClone> = Api::namespaced(client.clone(), &namespace);
    match arguments.verb {
        Verb::List { all_namespaces } => {
            let listed = if all_namespaces {
                Api::all(client)
            } else {
                clones
            };
            let found = listed
                .list(&ListParams::default())
                .await
                .map_err(in_words)?;
            print!("{}", table(&found.items, all_namespaces));
            Ok(ExitCode::SUCCESS)
        }
        Verb::Status { name, watch } => show(&clones, &name, watch).await,
        Verb::Receipt { name } => {
            let clone = clones.get(&name).await.map_err(in_words)?;
            let receipt = clone.status.and_then(|status| status.receipt);
            let receipt = receipt.ok_or_else(|| {
                format!("{name} has no receipt: it is not proven, or the backend made the target")
            })?;
            println!("{}", receipt.json);
            Ok(ExitCode::SUCCESS)
        }
        Verb::Clone {
            source,
            target,
            storage_class,
            watch,
        } => {
            let made = wanted(&source, &target, storage_class)?;
            let made = clones.create(&PostParams::default(), &made).await;
            let name = made.map_err(in_words)?.name_any();
            println!("volumeclone {namespace}/{name} made");
            if watch {
                show(&clones, &name, true).await
            } else {
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Prints the status, with `watch` until the clone has ended. A clone that failed is a failure.
async fn show(clones: &Api<VolumeClone>, name: &str, watch: bool) -> Result<ExitCode, String> {
    let mut shown = String::new();
    loop {
        let clone = clones.get(name).await.map_err(in_words)?;
        let text = report(&clone, Timestamp::now());
        if text != shown {
            if !shown.is_empty() {
                println!();
            }
            print!("{text}");
            shown = text;
        }
        let phase = clone.status.map_or(Phase::Pending, |status| status.phase);
        if phase == Phase::Failed {
            return Ok(ExitCode::FAILURE);
        }
        if !watch || phase.is_finished() || phase == Phase::Template {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// The clone that was asked for; the API server fills in the rest.
fn wanted(
    source: &str,
    target: &str,
    storage_class: Option<String>,
) -> Result<VolumeClone, String> {
    let (namespace, claim) = match source.split_once('/') {
        Some((namespace, claim)) => (Some(namespace), claim),
        None => (None, source),
    };
    if claim.is_empty() || namespace == Some("") {
        return Err(format!(
            "{source:?} names no claim: write CLAIM or NAMESPACE/CLAIM"
        ));
    }
    let spec = json!({
        "source": {"namespace": namespace, "persistentVolumeClaim": {"name": claim}},
        "target": {"claimTemplate": {
            "metadata": {"name": target},
            "spec": {"storageClassName": storage_class},
        }},
    });
    let spec = serde_json::from_value(spec).map_err(|error| error.to_string())?;
    Ok(VolumeClone::new(target, spec))
}

/// What the API server said, without its code.
fn in_words(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
