//! `kubectl volferry bench`: how fast a clone between two storage classes is in this cluster.
//!
//! 1. The target's first pod measures what its storage and node can do, then waits for streams.
//! 2. The source's first pod fills its claim, measures the same, then fills streams to the target's.
//! 3. `VolumeClone`s of that claim, each to a claim of its own.
//! 4. With each further profile the same again, from filling that claim: the target and the network are
//!    known by then.
//! 5. A pod makes one report of what all of them said.
//!
//! All pods run the controller's image, and those that measure are agents' pods with another command. Nothing
//! is touched but what was made here, and all of that goes, whatever the end: [`Bench::clean`] removes it, and
//! where nobody is left to call that, Kubernetes does ([`objects`]).

pub mod objects;

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, LogParams,
    PostParams, Preconditions,
};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;
use volferry_transport::mint;

use self::objects::{BENCH_END_LABEL, BENCH_LABEL};
use crate::agent_pod::{Seen, State};
use crate::api::{Phase, TransportProtocol, VolumeClone};
use crate::claims::VolumeMode;
use crate::names::End;
use crate::plugin::in_words;
use crate::world::Settings;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What tells its objects from those of others.
    pub id: String,
    /// Where everything is made.
    pub namespace: String,
    /// The source's storage class.
    pub from_class: String,
    /// The target's storage class.
    pub to_class: String,
    /// Bytes of the claims.
    pub bytes: u64,
    /// Their mode.
    pub mode: VolumeMode,
    /// Where pods go.
    pub placement: Placement,
    /// What the data is like, in the words of `volferry bench`: one after the other, at least one.
    pub profiles: Vec<String>,
    /// What it follows from.
    pub seed: u64,
    /// Small files, where the claims are filesystems.
    pub files: u64,
    /// Clones at most.
    pub repeats: u32,
    /// How long all may take.
    pub budget: Duration,
    /// How bytes travel.
    pub protocol: TransportProtocol,
    /// Data connections.
    pub streams: Option<u16>,
    /// The image, and how it is pulled.
    pub settings: Settings,
}

/// Where the pods of both ends go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Wherever the scheduler and the volumes have them.
    Any,
    /// To one node.
    SameNode,
    /// To different nodes.
    CrossNode,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The report, as `volferry bench --report` writes it.
    pub report: Value,
    /// As tables.
    pub table: String,
    /// As a page.
    pub page: String,
}

/// How often pods and clones are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The part of the budget that is kept for the report and for removing everything.
const CLOSING_SHARE: u32 = 10;

/// How long removing may take until what stays is left to Kubernetes.
const CLEAN_TIMEOUT: Duration = Duration::from_secs(120);

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Something that was made.
#[derive(Clone, Debug)]
struct Made {
    resource: ApiResource,
    name: String,
    /// Unknown while it is being made, and when the answer was lost. Its name has the benchmark's id in
    /// it, which nobody else has.
    uid: Option<String>,
}

impl Made {
    fn of_pod(pod: &Pod) -> Self {
        Self {
            resource: ApiResource::erase::<Pod>(&()),
            name: pod.name_any(),
            uid: pod.uid(),
        }
    }
}

/// A benchmark under way.
pub struct Bench {
    client: Client,
    asked: Asked,
    made: Mutex<Vec<Made>>,
    begun: Instant,
    on_step: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bench")
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}

impl Bench {
    /// A benchmark that has made nothing yet, and tells `on_step` what it does.
    #[must_use]
    pub fn new(
        client: Client,
        asked: Asked,
        on_step: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        Self {
            client,
            asked,
            made: Mutex::default(),
            begun: Instant::now(),
            on_step: Box::new(on_step),
        }
    }

    /// Measures. Whatever comes of it, [`Bench::clean`] has to be called.
    ///
    /// # Errors
    /// What failed, in words.
    pub async fn run(&self) -> Result<Outcome, String> {
        let asked = &self.asked;
        let mut warnings = self.check_classes().await?;
        let job = self.make(objects::job(asked), None).await?;
        let owner = Some(job.as_str());
        let minted = mint(Uuid::new_v4(), asked.budget.saturating_mul(2))
            .map_err(|error| format!("credentials can't be made: {error}"))?;
        for end in End::ALL {
            self.make(objects::secret(asked, &minted, end), owner)
                .await?;
        }
        self.make(objects::policy(asked), owner).await?;
        for (end, what) in [(End::Source, "source"), (End::Target, "probe")] {
            let claim = objects::claim(asked, end, what, asked.bytes);
            self.make(claim, owner).await?;
        }

        let (first, further) = asked
            .profiles
            .split_first()
            .ok_or("there is no profile to fill a volume like")?;
        let target = self.until_ready(End::Target).await?;
        let until = self.share(1 + further.len());
        let source = objects::source_pod(asked, first, Some(target.1), &[]);
        self.make(source, owner).await?;
        let (source_pod, source) = self.until_said(End::Source).await?;
        let (target_pod, target) = self.until_said(End::Target).await?;
        let (source_node, target_node) = (node(&source_pod), node(&target_pod));
        // Pods that ended would be met by those of the clones, and their claims not be free: one that was deleted
        // stays until its pods are deleted. The Job has done its work, and makes no other.
        self.remove("Pod", &objects::name(asked, "source")).await?;
        self.remove_made(&Made::of_pod(&target_pod)).await?;
        self.remove("PersistentVolumeClaim", &objects::name(asked, "probe"))
            .await?;

        let mut nodes = vec![source_node.clone(), target_node.clone()];
        nodes.dedup();
        let clones = self
            .clones(&source, &nodes, owner, until, &mut warnings)
            .await?;
        let mut shapes = vec![json!({"source": source, "clones": clones})];
        for (number, profile) in further.iter().enumerate() {
            let until = self.share(further.len() - number);
            match self
                .shape(profile, &nodes, owner, until, &mut warnings)
                .await
            {
                Ok(shape) => shapes.push(shape),
                // What was measured before is worth a report.
                Err(error) => {
                    warnings.push(format!("{profile} has no part in this: {error}"));
                    break;
                }
            }
        }
        let written: u64 = shapes.iter().map(written_bytes).sum();
        let measured = json!([source_node, target_node]);
        let agents = nodes_of_clones(&shapes);
        if agents.iter().any(|nodes| *nodes != measured) {
            warnings.push(format!(
                "the agents ran on other nodes than what was measured: {}",
                Value::Array(agents)
            ));
        }
        let inputs = json!({
            "shapes": shapes, "target": target,
            "from_class": asked.from_class, "to_class": asked.to_class,
            "source_node": source_node, "target_node": target_node,
            "warnings": warnings,
            "budget": {
                "seconds": asked.budget.as_secs_f64(), "bytes": written,
                "spent_seconds": self.begun.elapsed().as_secs_f64(), "spent_bytes": written,
            },
        });
        self.make(objects::inputs(asked, &inputs), owner).await?;
        self.make(objects::report_pod(asked), owner).await?;
        let (_pod, mut said) = self
            .until_pod("report", |is_over, line| is_over && is_reports(line))
            .await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Outcome {
            table: text(&said["table"]),
            page: text(&said["page"]),
            report: said["report"].take(),
        })
    }

    /// Removes all that was made, and returns what could not be removed.
    pub async fn clean(&self) -> Vec<String> {
        let made: Vec<_> = self.made().drain(..).collect();
        if !made.is_empty() {
            self.step("removing what was made");
        }
        // In the opposite order, so that the Job is last; but clones first, while what they use is there.
        let (clones, rest): (Vec<_>, Vec<_>) = made
            .iter()
            .rev()
            .partition(|made| made.resource.kind == "VolumeClone");
        let until = Instant::now() + CLEAN_TIMEOUT;
        let mut left = Vec::new();
        for one in clones.into_iter().chain(rest) {
            let removed = async {
                self.delete(one).await?;
                match &*one.resource.kind {
                    "VolumeClone" => self.until_gone(one).await,
                    _ => Ok(()),
                }
            };
            let within = until.saturating_duration_since(Instant::now());
            let removed = timeout(within.max(LOOK_EVERY), removed).await;
            let failure = match removed {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(_late) => "it is still there".to_owned(),
            };
            left.push(format!("{} {}: {failure}", one.resource.kind, one.name));
        }
        left
    }

    /// That a class is there, and what is to be known of it.
    async fn check_classes(&self) -> Result<Vec<String>, String> {
        let classes: Api<StorageClass> = Api::all(self.client.clone());
        let mut warnings = Vec::new();
        let names = [&self.asked.from_class, &self.asked.to_class];
        for name in names
            .into_iter()
            .take(if names[0] == names[1] { 1 } else { 2 })
        {
            let class = within(classes.get_opt(name)).await?;
            let class = class.ok_or_else(|| format!("there is no storage class {name}"))?;
            if class.reclaim_policy.as_deref() == Some("Retain") {
                let text = format!(
                    "storage class {name} retains its volumes: those of this benchmark stay, remove them by hand"
                );
                self.step(&format!("warning: {text}"));
                warnings.push(text);
            }
        }
        Ok(warnings)
    }

    /// Fills the source's claim like a further profile, on the first of the nodes, and clones it; what
    /// its pod and the clones said.
    async fn shape(
        &self,
        profile: &str,
        nodes: &[String],
        owner: Option<&str>,
        until: Instant,
        warnings: &mut Vec<String>,
    ) -> Result<Value, String> {
        self.step(&format!("the next profile: {profile}"));
        let there = nodes.get(..1).unwrap_or_default();
        let pod = objects::source_pod(&self.asked, profile, None, there);
        self.make(pod, owner).await?;
        let (_pod, source) = self.until_said(End::Source).await?;
        self.remove("Pod", &objects::name(&self.asked, "source"))
            .await?;
        let clones = self.clones(&source, nodes, owner, until, warnings).await?;
        Ok(json!({"source": source, "clones": clones}))
    }

    /// Clones what the pod of the source said that it made, once and then as often as it ends before `until`.
    async fn clones(
        &self,
        source: &Value,
        nodes: &[String],
        owner: Option<&str>,
        until: Instant,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Value>, String> {
        let asked = &self.asked;
        let bytes = source["facts"]["logical_bytes"].as_u64();
        // A volume may be larger than what was asked for, and the target must not be smaller.
        let bytes = match asked.mode {
            VolumeMode::Block => bytes.unwrap_or(0).max(asked.bytes),
            VolumeMode::Filesystem => asked.bytes,
        };
        let mut clones = Vec::new();
        let mut took = Duration::ZERO;
        for number in 1..=asked.repeats {
            let left = self.left();
            if number > 1 && until.saturating_duration_since(Instant::now()) < took {
                break;
            }
            self.step(&format!("clone {number} of {}", asked.repeats));
            let began = Instant::now();
            let name = objects::name(asked, &format!("to-{number}"));
            let claim = objects::claim(asked, End::Target, &format!("to-{number}"), bytes);
            self.make(claim, owner).await?;
            let cloning = Instant::now();
            self.make(objects::clone(asked, &name, nodes, left.as_secs()), owner)
                .await?;
            let ended = self.until_cloned(&name).await;
            let object_seconds = cloning.elapsed().as_secs_f64();
            match ended {
                Ok((receipt, ran_on)) => clones.push(json!({
                    "receipt": receipt, "object_seconds": object_seconds, "nodes": ran_on,
                })),
                // What was measured before is worth a report.
                Err(error) if number > 1 => {
                    warnings.push(format!("clone {number} has no part in this: {error}"));
                    break;
                }
                Err(error) => return Err(error),
            }
            self.remove("VolumeClone", &name).await?;
            self.remove("PersistentVolumeClaim", &name).await?;
            took = began.elapsed();
        }
        Ok(clones)
    }

    /// When the next of so many profiles should be done, of which each has the same part of what is left.
    fn share(&self, profiles: usize) -> Instant {
        let profiles = u32::try_from(profiles.max(1)).unwrap_or(u32::MAX);
        Instant::now() + self.left() / profiles
    }

    /// What of the budget is left for measuring.
    fn left(&self) -> Duration {
        let budget = self.asked.budget;
        let measuring = budget.saturating_sub(budget / CLOSING_SHARE);
        measuring.saturating_sub(self.begun.elapsed())
    }

    /// Waits until a clone is proven; its receipt and the nodes of its agents.
    async fn until_cloned(&self, name: &str) -> Result<(Value, Value), String> {
        let clones: Api<VolumeClone> = Api::namespaced(self.client.clone(), &self.asked.namespace);
        loop {
            let clone = within(clones.get(name)).await?;
            let status = clone.status.unwrap_or_default();
            let waits = status
                .conditions
                .iter()
                .find(|it| it.type_ == "Progressing");
            let waits =
                waits.map_or_else(String::new, |it| format!("{}: {}", it.reason, it.message));
            match (status.phase, &status.receipt) {
                (Phase::Ready, Some(receipt)) => {
                    let receipt = serde_json::from_str(&receipt.json)
                        .map_err(|error| format!("the receipt of {name} can't be read: {error}"))?;
                    let [source, target] = [&status.attempts.source, &status.attempts.target];
                    return Ok((receipt, json!([source.node, target.node])));
                }
                (Phase::Ready, None) => return Err(format!("VolumeClone {name} has no receipt")),
                (Phase::Failed, _) => {
                    let failure = status.failure.unwrap_or_default();
                    return Err(format!(
                        "VolumeClone {name} failed, {}: {}",
                        failure.reason, failure.message
                    ));
                }
                _ if self.left().is_zero() => {
                    return Err(format!("the budget is spent; VolumeClone {name}: {waits}"));
                }
                _ => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Waits until the pod of `end` has measured its storage; where it is.
    async fn until_ready(&self, end: End) -> Result<(String, IpAddr), String> {
        let (pod, _said) = self
            .until_pod(end.label(), |_is_over, line| is_end(line))
            .await?;
        let ip = pod
            .status
            .as_ref()
            .and_then(|status| status.pod_ip.as_deref());
        let ip = ip.and_then(|ip| ip.parse().ok());
        let ip = ip.ok_or_else(|| format!("pod {} has no address", pod.name_any()))?;
        Ok((node(&pod), ip))
    }

    /// Waits until the pod of `end` has said all and ended; that pod, and what it said.
    async fn until_said(&self, end: End) -> Result<(Pod, Value), String> {
        self.until_pod(end.label(), |is_over, line| {
            is_over && is_end(line) && line["is_complete"] == true
        })
        .await
    }

    /// Waits until a pod says a line that is wanted, and says meanwhile what holds it up.
    async fn until_pod(
        &self,
        what: &str,
        wanted: impl Fn(bool, &Value) -> bool,
    ) -> Result<(Pod, Value), String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.asked.namespace);
        let selector = format!("{BENCH_LABEL}={},{BENCH_END_LABEL}={what}", self.asked.id);
        let params = ListParams::default().labels(&selector);
        let mut shown = String::new();
        loop {
            let found = within(pods.list(&params)).await?.items.into_iter().next();
            let mut holds = format!("there is no {what} pod yet");
            if let Some(pod) = found {
                let name = pod.name_any();
                let state = Seen::of(&pod).state;
                let log = match state {
                    State::Waiting { .. } => String::new(),
                    _ => within(pods.logs(&name, &LogParams::default())).await?,
                };
                let is_over = state == State::Succeeded;
                let lines = log
                    .lines()
                    .rev()
                    .filter_map(|line| serde_json::from_str(line).ok());
                if let Some(said) = lines.into_iter().find(|line| wanted(is_over, line)) {
                    return Ok((pod, said));
                }
                let last = log.lines().rfind(|line| !line.starts_with('{'));
                let last = last.unwrap_or_default();
                holds = match state {
                    State::Waiting { message, .. } => message,
                    State::Failed { message, .. } => {
                        return Err(format!("pod {name} failed: {last} ({message})"));
                    }
                    State::Succeeded => {
                        return Err(format!(
                            "pod {name} did not say what it measured: {last}; is its image of this version?"
                        ));
                    }
                    State::Leaving => return Err(format!("pod {name} is being removed")),
                    State::Running { .. } => last.to_owned(),
                };
            }
            let left = match what {
                // What was kept for it.
                "report" => self.asked.budget.saturating_sub(self.begun.elapsed()),
                _ => self.left(),
            };
            if left.is_zero() {
                return Err(format!("the budget is spent; {what} pod: {holds}"));
            }
            if holds != shown {
                self.step(&format!("{what} pod: {holds}"));
                shown = holds;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn step(&self, text: &str) {
        (self.on_step)(text);
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Vec<Made>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.asked.namespace, resource)
    }

    /// Makes an object; its uid.
    async fn make(&self, object: Value, owner: Option<&str>) -> Result<String, String> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let object = objects::belonging(&self.asked, object, owner)
            .ok_or_else(|| format!("no {kind} can be made of what was asked for"))?;
        let name = object.name_any();
        // Noted before: the answer may be lost, or not be waited for.
        self.made().push(Made {
            resource: resource.clone(),
            name: name.clone(),
            uid: None,
        });
        let params = PostParams::default();
        let made = timeout(CALL_TIMEOUT, self.api(&resource).create(&params, &object)).await;
        let mut all = self.made();
        let failure = match made {
            Ok(Ok(made)) => {
                let uid = made.uid();
                if let Some(last) = all.last_mut() {
                    last.uid.clone_from(&uid);
                }
                return Ok(uid.unwrap_or_default());
            }
            Ok(Err(kube::Error::Api(status))) if status.code < 500 => {
                all.pop();
                status.message.clone()
            }
            Ok(Err(error)) => in_words(error),
            Err(_late) => NO_ANSWER.to_owned(),
        };
        Err(format!("{kind} {name} can't be made: {failure}"))
    }

    /// Removes something that was made, and waits until it is gone.
    async fn remove(&self, kind: &str, name: &str) -> Result<(), String> {
        let found = {
            let made = self.made();
            let mut found = made.iter();
            found
                .find(|made| made.resource.kind == kind && made.name == name)
                .cloned()
        };
        let Some(found) = found else { return Ok(()) };
        self.remove_made(&found).await?;
        self.made()
            .retain(|made| (&made.resource, &made.name) != (&found.resource, &found.name));
        Ok(())
    }

    async fn remove_made(&self, made: &Made) -> Result<(), String> {
        self.delete(made).await?;
        self.until_gone(made).await
    }

    /// Deletes just what was made, and nothing else by its name.
    async fn delete(&self, made: &Made) -> Result<(), String> {
        let params = DeleteParams {
            preconditions: made.uid.clone().map(|uid| Preconditions {
                uid: Some(uid),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        let api = self.api(&made.resource);
        let deleted = timeout(CALL_TIMEOUT, api.delete(&made.name, &params)).await;
        match deleted {
            Ok(Ok(_)) => Ok(()),
            // Gone already, or another one.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Ok(()),
            Ok(Err(error)) => Err(in_words(error)),
            Err(_late) => Err(NO_ANSWER.to_owned()),
        }
    }

    async fn until_gone(&self, made: &Made) -> Result<(), String> {
        let api = self.api(&made.resource);
        let until = Instant::now() + CLEAN_TIMEOUT;
        loop {
            let found = within(api.get_metadata_opt(&made.name)).await?;
            let is_gone = |found: &Option<String>| made.uid.is_some() && *found != made.uid;
            if found.is_none_or(|found| is_gone(&found.metadata.uid)) {
                return Ok(());
            }
            if Instant::now() > until {
                let Made { resource, name, .. } = made;
                return Err(format!(
                    "{} {name} was deleted and does not go",
                    resource.kind
                ));
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

const NO_ANSWER: &str = "no answer from the API server";

/// A call within the time limit, and its failure in words.
async fn within<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match timeout(CALL_TIMEOUT, asked).await {
        Ok(answer) => answer.map_err(in_words),
        Err(_late) => Err(NO_ANSWER.to_owned()),
    }
}

fn node(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.node_name.clone())
        .unwrap_or_default()
}

/// Of each clone the nodes of its agents.
fn nodes_of_clones(shapes: &[Value]) -> Vec<Value> {
    let clones = shapes.iter().filter_map(|shape| shape["clones"].as_array());
    clones
        .flatten()
        .map(|clone| clone["nodes"].clone())
        .collect()
}

/// Bytes that were written to fill a source and to clone it.
fn written_bytes(shape: &Value) -> u64 {
    let data = shape["source"]["facts"]["read_bytes"].as_u64();
    let clones = shape["clones"].as_array().map_or(0, Vec::len) as u64;
    data.unwrap_or(0).saturating_mul(1 + clones)
}

/// Whether a line of a log is what an end measured.
fn is_end(line: &Value) -> bool {
    line["schema"] == "volferry-bench-end"
}

/// Whether it is the report.
fn is_reports(line: &Value) -> bool {
    line["schema"] == "volferry-bench-reports"
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn asked() -> Asked {
        Asked {
            id: "x".to_owned(),
            namespace: "home".to_owned(),
            from_class: "a".to_owned(),
            to_class: "b".to_owned(),
            bytes: 1 << 30,
            mode: VolumeMode::Block,
            placement: Placement::Any,
            profiles: vec!["random".to_owned()],
            seed: 1,
            files: 100,
            repeats: 2,
            budget: Duration::from_secs(900),
            protocol: TransportProtocol::Tcp,
            streams: None,
            settings: Settings {
                image: "volferry:1".to_owned(),
                image_pull_policy: "IfNotPresent".to_owned(),
                namespace: "volferry-system".to_owned(),
            },
        }
    }
}
