//! `kubectl volferry`: clones and what they do, for people. It asks the API server as kubectl does, and
//! nobody else.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;
use volferry_controller::api::{Phase, TransportProtocol, VolumeClone};
use volferry_controller::claims::{self, VolumeMode};
use volferry_controller::names::End;
use volferry_controller::plugin::bench::{Asked, Bench, Placement};
use volferry_controller::plugin::cancel::cancel;
use volferry_controller::plugin::logs::logs;
use volferry_controller::plugin::{doctor, in_words, installation, report, table};
use volferry_controller::world::Settings;
use volferry_protocol::tree::fidelity::FidelityClass;

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
        /// The clone's name, or its namespace and name, as in home/copy
        name: Named,
        /// Again every two seconds, until it has ended
        #[arg(short, long)]
        watch: bool,
    },
    /// Prints a clone's receipt, the proof
    Receipt {
        /// The clone's name, or its namespace and name, as in home/copy
        name: Named,
    },
    /// Says what would become of a clone, and what stands in its way, before any byte moves
    Doctor {
        #[command(flatten)]
        ends: Ends,
        #[command(flatten)]
        installation: Installation,
    },
    /// Prints what the agents of a clone log
    Logs {
        /// The clone's name, or its namespace and name, as in home/copy
        name: Named,
        /// Of one end only
        #[arg(long, value_enum)]
        end: Option<WhichEnd>,
        /// On and on, until the agents end
        #[arg(short, long)]
        follow: bool,
    },
    /// Ends a clone and removes what was made for it; a target that is not proven goes too, if it was
    /// made for the clone
    Cancel {
        /// The clone's name, or its namespace and name, as in home/copy
        name: Named,
    },
    /// Measures how fast a clone between two storage classes is in this cluster, and what holds it
    Bench(Box<BenchArguments>),
    /// Clones a claim to a new one
    Clone {
        #[command(flatten)]
        ends: Ends,
        /// Shows the status until it has ended
        #[arg(short, long)]
        watch: bool,
    },
}

/// A name, in a namespace or in that of the command.
#[derive(Clone, Debug)]
struct Named {
    namespace: Option<String>,
    name: String,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name.to_owned()),
            None => (None, text.to_owned()),
        };
        if name.is_empty() || name.contains('/') || namespace.as_deref() == Some("") {
            return Err("write NAME or NAMESPACE/NAME".to_owned());
        }
        Ok(Self { namespace, name })
    }
}

/// What is cloned to what.
#[derive(Debug, Args)]
struct Ends {
    /// The source, as CLAIM or NAMESPACE/CLAIM
    source: Named,

    /// The claim to make, as CLAIM or NAMESPACE/CLAIM, and the name of the clone
    target: Named,

    /// The storage class of the new claim; the default one unless given
    #[arg(long, value_name = "NAME", conflicts_with = "into_existing")]
    storage_class: Option<String>,

    /// The target is a claim that exists: a block volume, which is overwritten, or an empty filesystem
    #[arg(long)]
    into_existing: bool,

    /// Write into a filesystem though it holds something: what is sent replaces what is there
    #[arg(long, requires = "into_existing")]
    overwrite: bool,

    /// What of a tree may be lost; agents without privileges can't keep ownership, modes and times of its root
    #[arg(long, value_name = "CLASS", value_delimiter = ',', value_parser = classes())]
    accept: Vec<String>,

    /// By which way; Auto takes the backend's own where there is one
    #[arg(long, value_name = "WAY", default_value = "Auto")]
    #[arg(value_parser = ["Auto", "CsiClone", "Snapshot", "HostAssisted"])]
    strategy: String,
}

/// The words of `spec.accept`.
fn classes() -> PossibleValuesParser {
    PossibleValuesParser::new(FidelityClass::ALL.iter().map(|class| class.label()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WhichEnd {
    Source,
    Target,
}

impl WhichEnd {
    const fn end(self) -> End {
        match self {
            Self::Source => End::Source,
            Self::Target => End::Target,
        }
    }
}

/// What to measure.
#[derive(Debug, Args)]
struct BenchArguments {
    /// The source's storage class
    #[arg(long, value_name = "CLASS")]
    from_class: String,

    /// The target's storage class
    #[arg(long, value_name = "CLASS")]
    to_class: String,

    /// The size of each claim, such as 20Gi
    #[arg(long, value_name = "QUANTITY", default_value = "10Gi", value_parser = parse_quantity)]
    size: u64,

    /// Block volumes, or filesystems with many small files
    #[arg(long, value_enum, default_value_t = Mode::Block)]
    mode: Mode,

    /// Both agents on one node
    #[arg(long, conflicts_with = "cross_node")]
    same_node: bool,

    /// The agents on different nodes
    #[arg(long)]
    cross_node: bool,

    /// What the data is like, one after the other in the same claim: random, vm, database, text,
    /// sparse=PART; several with commas [default: random,vm,sparse=0.1, and random for files]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    profile: Vec<String>,

    /// What it follows from: the same seed, the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Small files in a filesystem [default: 5 for each MiB of the size, at most 100000]
    #[arg(long, value_name = "N")]
    files: Option<u64>,

    /// Clones at most
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,

    /// How long all may take, such as 15m; a clone is not begun that would end later
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = parse_duration)]
    budget: Duration,

    /// Data connections [default: one for each processor, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,

    /// Clone over QUIC instead of TLS
    #[arg(long)]
    quic: bool,

    #[command(flatten)]
    installation: Installation,

    /// Print the report as JSON instead of tables
    #[arg(long)]
    json: bool,

    /// Also write the report to this file, as JSON, for volferry bench compare
    #[arg(long, value_name = "PATH")]
    report: Option<PathBuf>,

    /// Also write a page with charts to this file
    #[arg(long, value_name = "PATH")]
    html: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Block,
    Filesystem,
}

/// Where the controller is.
#[derive(Debug, Args)]
struct Installation {
    /// The image of the agents [default: what the controller runs]
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,

    /// The namespace of the controller
    #[arg(long, value_name = "NAME", default_value = "volferry-system")]
    controller_namespace: String,
}

/// How often a status is shown again.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Prints on standard output.
fn print(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    let written = written.and_then(|()| stdout.flush());
    written.map_err(|error| format!("standard output can't be written: {error}"))
}

/// Says on standard error what went wrong or is being done, if anybody hears it.
fn complain(text: &str) {
    let _nobody_hears = writeln!(io::stderr(), "{text}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    volferry_transport::set_process_default();
    match Box::pin(run(Arguments::parse())).await {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("kubectl volferry: {error}"));
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
    let clones_of = |named: &Named| -> Api<VolumeClone> {
        let namespace = named.namespace.as_ref().unwrap_or(&namespace);
        Api::namespaced(client.clone(), namespace)
    };
    match arguments.verb {
        Verb::List { all_namespaces } => {
            let listed: Api<VolumeClone> = match all_namespaces {
                true => Api::all(client),
                false => Api::namespaced(client, &namespace),
            };
            let found = listed
                .list(&ListParams::default())
                .await
                .map_err(in_words)?;
            print(&table(&found.items, all_namespaces))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Status { name, watch } => show(&clones_of(&name), &name.name, watch).await,
        Verb::Receipt { name } => {
            let (clones, name) = (clones_of(&name), name.name);
            let clone = clones.get(&name).await.map_err(in_words)?;
            let receipt = clone.status.and_then(|status| status.receipt);
            let receipt = receipt.ok_or_else(|| {
                format!("{name} has no receipt: it is not proven, or the backend made the target")
            })?;
            print(&format!("{}\n", receipt.json))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Bench(arguments) => Box::pin(bench(client, namespace, *arguments)).await,
        Verb::Doctor { ends, installation } => {
            let wanted = wanted(&ends, &namespace)?;
            let settings = installation.settings(&client).await;
            let found = doctor::examine(&client, &wanted, settings, Timestamp::now());
            let found = Box::pin(found).await?;
            print(&found.render())?;
            Ok(match found.is_hopeful() {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            })
        }
        Verb::Logs { name, end, follow } => {
            let (clones, name) = (clones_of(&name), name.name);
            let clone = clones.get(&name).await.map_err(in_words)?;
            let say = |line: &str| print(&format!("{line}\n")).is_ok();
            let ended = logs(&client, &clone, end.map(WhichEnd::end), follow, say).await;
            let Err(failures) = ended else {
                return Ok(ExitCode::SUCCESS);
            };
            for failure in &failures {
                complain(failure);
            }
            Err(format!(
                "agents have pods while a clone runs; kubectl volferry status {name} says how it stands"
            ))
        }
        Verb::Cancel { name } => {
            let namespace = name.namespace.as_ref().unwrap_or(&namespace);
            let told = cancel(&client, namespace, &name.name, complain).await?;
            print(&format!("{told}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Clone { ends, watch } => {
            let made = wanted(&ends, &namespace)?;
            let namespace = made.target_namespace().to_owned();
            let clones: Api<VolumeClone> = Api::namespaced(client, &namespace);
            let made = clones.create(&PostParams::default(), &made).await;
            let name = made.map_err(in_words)?.name_any();
            print(&format!("volumeclone {namespace}/{name} made\n"))?;
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
            let gap = if shown.is_empty() { "" } else { "\n" };
            print(&format!("{gap}{text}"))?;
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
fn wanted(ends: &Ends, namespace: &str) -> Result<VolumeClone, String> {
    let Named {
        namespace: from,
        name: source,
    } = &ends.source;
    let Named {
        namespace: to,
        name: target,
    } = &ends.target;
    let home = to.clone().unwrap_or_else(|| namespace.to_owned());
    // What is said without a namespace is in the one that kubectl is in, also where the target is not.
    let away = (home != namespace).then_some(namespace);
    let from = from.as_deref().or(away);
    let written = if ends.into_existing {
        json!({"persistentVolumeClaim": {"name": target}, "overwrite": ends.overwrite})
    } else {
        let class = &ends.storage_class;
        json!({"claimTemplate": {"metadata": {"name": target}, "spec": {"storageClassName": class}}})
    };
    let spec = json!({
        "source": {"namespace": from, "persistentVolumeClaim": {"name": source}},
        "target": written,
        "accept": ends.accept,
        "strategy": ends.strategy,
    });
    let spec = serde_json::from_value(spec).map_err(|error| error.to_string())?;
    let mut clone = VolumeClone::new(target, spec);
    clone.metadata.namespace = Some(home);
    Ok(clone)
}

/// What volumes are filled like: what was told, or the shapes of `volferry bench`.
fn profiles(told: Vec<String>, mode: Mode) -> Vec<String> {
    let words: &[&str] = match mode {
        _ if !told.is_empty() => return told,
        Mode::Block => &["random", "vm", "sparse=0.1"],
        Mode::Filesystem => &["random"],
    };
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Measures, and removes what that made, also when it is told to end.
async fn bench(
    client: Client,
    namespace: String,
    arguments: BenchArguments,
) -> Result<ExitCode, String> {
    // That a file can't be written should be told before anything is measured.
    for path in [&arguments.report, &arguments.html].into_iter().flatten() {
        check_writable(path)?;
    }
    let settings = arguments.installation.settings(&client).await?;
    let files = (arguments.size >> 20).saturating_mul(5).clamp(1, FILES_MAX);
    let asked = Asked {
        id: Uuid::new_v4().simple().to_string().split_off(24),
        namespace,
        from_class: arguments.from_class,
        to_class: arguments.to_class,
        bytes: arguments.size,
        mode: match arguments.mode {
            Mode::Block => VolumeMode::Block,
            Mode::Filesystem => VolumeMode::Filesystem,
        },
        placement: match (arguments.same_node, arguments.cross_node) {
            (true, _) => Placement::SameNode,
            (_, true) => Placement::CrossNode,
            _ => Placement::Any,
        },
        profiles: profiles(arguments.profile, arguments.mode),
        seed: arguments.seed,
        files: arguments.files.unwrap_or(files),
        repeats: arguments.repeats,
        budget: arguments.budget,
        protocol: match arguments.quic {
            true => TransportProtocol::Quic,
            false => TransportProtocol::Tcp,
        },
        streams: arguments.streams,
        settings,
    };
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| format!("no signals: {error}"))?;
    let bench = Bench::new(client, asked, complain);
    let outcome = tokio::select! {
        outcome = Box::pin(bench.run()) => outcome,
        _ = tokio::signal::ctrl_c() => Err("it was told to end".to_owned()),
        _ = terminate.recv() => Err("it was told to end".to_owned()),
    };
    let left = bench.clean().await;
    for one in &left {
        complain(&format!(
            "could not be removed, Kubernetes will do it later: {one}"
        ));
    }
    let outcome = outcome?;
    let json = serde_json::to_string_pretty(&outcome.report).map_err(|error| error.to_string())?;
    if let Some(path) = &arguments.report {
        std::fs::write(path, &json).map_err(|error| unwritable(path, &error))?;
    }
    if let Some(path) = &arguments.html {
        std::fs::write(path, &outcome.page).map_err(|error| unwritable(path, &error))?;
    }
    // Last: what reads it may have gone.
    match arguments.json {
        true => print(&format!("{json}\n"))?,
        false => print(&outcome.table)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a file can be written, which stays as it is until there is something to write.
fn check_writable(path: &Path) -> Result<(), String> {
    let opened = OpenOptions::new().append(true).create(true).open(path);
    opened.map(drop).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> String {
    format!("{} can't be written: {error}", path.display())
}

/// Small files at most, where none were told: each is a call or two to a filesystem.
const FILES_MAX: u64 = 100_000;

impl Installation {
    async fn settings(&self, client: &Client) -> Result<Settings, String> {
        let namespace = &self.controller_namespace;
        match &self.image {
            Some(image) => Ok(Settings {
                image: image.clone(),
                image_pull_policy: "IfNotPresent".to_owned(),
                namespace: namespace.clone(),
            }),
            None => installation::settings(client, namespace).await,
        }
    }
}

fn parse_quantity(text: &str) -> Result<u64, String> {
    let bytes = claims::bytes(&Quantity(text.to_owned())).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| format!("{text:?} is no size; write one such as 20Gi"))
}

/// A number of seconds, minutes or hours.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("h", 3600), ("m", 60), ("s", 1)];
    let found = units.iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*seconds).filter(|seconds| *seconds > 0)
    });
    let found = found.filter(|seconds| *seconds <= 7 * 24 * 3600);
    found
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is no time up to a week; write one such as 15m"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use volferry_controller::api::{StrategyChoice, VolumeCloneSpec};

    use super::*;

    #[test]
    fn a_report_of_before_stays_until_there_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let report = directory.path().join("report.json");
        std::fs::write(&report, "of before").unwrap();
        check_writable(&report).unwrap();
        assert_eq!(std::fs::read_to_string(&report).unwrap(), "of before");
        let nowhere = directory.path().join("none/report.json");
        let error = check_writable(&nowhere).unwrap_err();
        assert!(error.starts_with(&nowhere.display().to_string()), "{error}");
    }

    #[test]
    fn claims_are_named_with_their_namespaces() {
        let wanted = |source: &str, target: &str| {
            let ends = Ends {
                source: source.parse().unwrap(),
                target: target.parse().unwrap(),
                storage_class: None,
                into_existing: false,
                overwrite: false,
                accept: Vec::new(),
                strategy: "Auto".to_owned(),
            };
            wanted(&ends, "here")
        };
        let shown = |source: &str, target: &str| {
            let clone = wanted(source, target).unwrap();
            let ends = [clone.source_namespace(), clone.target_namespace()];
            ends.map(str::to_owned)
        };
        assert_eq!(shown("a", "b"), ["here", "here"]);
        assert_eq!(shown("away/a", "b"), ["away", "here"]);
        assert_eq!(shown("away/a", "there/b"), ["away", "there"]);
        assert_eq!(shown("a", "there/b"), ["here", "there"]);
        for bad in ["", "/a", "b/", "a/b/c"] {
            assert!(bad.parse::<Named>().is_err(), "{bad}");
        }
    }

    /// What `clone a b` with these flags asks for; `None` where they are refused.
    fn asked(flags: &[&str]) -> Option<VolumeCloneSpec> {
        let words = ["kubectl-volferry", "clone", "a", "b"];
        let arguments = Arguments::try_parse_from(words.iter().chain(flags)).ok()?;
        match arguments.verb {
            Verb::Clone { ends, .. } => wanted(&ends, "here").ok().map(|clone| clone.spec),
            _ => None,
        }
    }

    #[test]
    fn a_target_is_made_unless_it_exists() {
        let target = |flags: &[&str]| {
            let target = asked(flags)?.target;
            let is_there = target.persistent_volume_claim.map(|claim| claim.name);
            let is_made = target.claim_template.map(|claim| claim.metadata.name);
            Some((is_there, is_made, target.overwrite))
        };
        let b = Some("b".to_owned());
        assert_eq!(target(&[]), Some((None, b.clone(), false)));
        let existing = ["--into-existing"];
        assert_eq!(target(&existing), Some((b.clone(), None, false)));
        let replaced = ["--into-existing", "--overwrite"];
        assert_eq!(target(&replaced), Some((b, None, true)));
        assert_eq!(target(&["--overwrite"]), None);
        assert_eq!(target(&["--into-existing", "--storage-class=own"]), None);
    }

    #[test]
    fn what_may_be_lost_and_the_way_are_what_was_told() {
        let spec = |flags: &[&str]| asked(flags).map(|spec| (spec.accept.len(), spec.strategy));
        assert_eq!(spec(&[]), Some((0, StrategyChoice::Auto)));
        let words: Vec<_> = FidelityClass::ALL.iter().map(|it| it.label()).collect();
        let all = format!("--accept={}", words.join(","));
        let agents = "--strategy=HostAssisted";
        let both = Some((words.len(), StrategyChoice::HostAssisted));
        assert_eq!(spec(&[&all, agents]), both);
        assert_eq!(spec(&["--accept=everything"]), None);
        assert_eq!(spec(&["--strategy=Any"]), None);
    }

    #[test]
    fn arguments_make_sense_to_their_parser() {
        Arguments::command().debug_assert();
        assert_eq!(parse_quantity("20Gi"), Ok(20 << 30));
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        for bad in ["", "0", "x", "-1", "15", "0s", "99999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "0", "x", "-1"] {
            assert!(parse_quantity(bad).is_err(), "{bad}");
        }
    }
}
