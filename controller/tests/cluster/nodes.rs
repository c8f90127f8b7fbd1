//! What the rest of a cluster does: runs pods, ends agents, and has storage at work. Time passes only when everybody
//! waits.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};
use tokio::time::Instant;
use volferry_controller::credentials::ObserverCredentials;
use volferry_controller::observer::{Observe, ObserveError};
use volferry_controller::world::TargetReport;
use volferry_transport::{Credentials, Role};

use super::api::FakeApi;
use super::{bench, storage};

/// How often nodes look, in a cluster of few clones.
const TICK: Duration = Duration::from_millis(250);
/// The same, in one of many.
const SLOW_TICK: Duration = Duration::from_secs(2);

/// A clone's volumes as the agents see them, by the clone's uid.
#[derive(Clone, Debug, Default)]
struct Transfer {
    /// How far the target is, of 1.
    done: f64,
    last: Option<Instant>,
    /// What the last target pod went on from, of 1.
    resumed: Vec<f64>,
}

/// Nodes, kubelets and storage drivers.
#[derive(Clone)]
pub(crate) struct Nodes {
    api: FakeApi,
    /// How long a clone takes.
    duration: Duration,
    /// Whether claims change too. If not, nobody has to look at each of very many.
    has_storage: bool,
    transfers: Arc<Mutex<HashMap<String, Transfer>>>,
    addresses: Arc<Mutex<HashMap<String, u32>>>,
    /// The clones of target pods, by address.
    targets: Arc<Mutex<HashMap<String, String>>>,
    /// What observers showed, once it was found right: it takes its time.
    trusted: Arc<Mutex<HashSet<Vec<u8>>>>,
    /// Pods by name that have become ready, and when they may.
    started: Arc<Mutex<HashMap<String, Instant>>>,
    /// Whether no target can be asked, as behind a policy that drops what the controller sends.
    is_unheard: Arc<AtomicBool>,
    /// How often one was asked.
    questions: Arc<AtomicUsize>,
    /// The bandwidth limits that targets were asked to have kept, by address.
    limits: Arc<Mutex<HashMap<IpAddr, u64>>>,
    /// Whether targets are of a version that knows no such question, and how often one was asked it.
    are_old: Arc<AtomicBool>,
    refusals: Arc<AtomicUsize>,
}

impl Nodes {
    pub(crate) fn new(api: FakeApi, duration: Duration) -> Self {
        Self {
            api,
            duration,
            has_storage: true,
            transfers: Arc::default(),
            addresses: Arc::default(),
            targets: Arc::default(),
            trusted: Arc::default(),
            started: Arc::default(),
            is_unheard: Arc::default(),
            questions: Arc::default(),
            limits: Arc::default(),
            are_old: Arc::default(),
            refusals: Arc::default(),
        }
    }

    /// The same, for very many clones between claims that have their volumes.
    pub(crate) fn without_storage(self) -> Self {
        Self {
            has_storage: false,
            ..self
        }
    }

    #[expect(clippy::infinite_loop, reason = "a cluster never ends")]
    pub(crate) async fn run(self) {
        let tick = if self.has_storage { TICK } else { SLOW_TICK };
        loop {
            self.tick();
            tokio::time::sleep(tick).await;
        }
    }

    /// Has no target be heard, or each again.
    pub(crate) fn silence(&self, is_unheard: bool) {
        self.is_unheard.store(is_unheard, Ordering::Relaxed);
    }

    /// Has targets refuse to be asked for a bandwidth limit.
    pub(crate) fn age(&self) {
        self.are_old.store(true, Ordering::Relaxed);
    }

    /// How often one was asked that does.
    pub(crate) fn refusals(&self) -> usize {
        self.refusals.load(Ordering::Relaxed)
    }

    /// The bandwidth limits that targets were asked to have kept.
    pub(crate) fn limits(&self) -> Vec<u64> {
        self.limits.lock().unwrap().values().copied().collect()
    }

    /// How often a target was asked how far it is.
    pub(crate) fn questions(&self) -> usize {
        self.questions.load(Ordering::Relaxed)
    }

    /// From what parts the target pods of a clone went on.
    pub(crate) fn resumed(&self, uid: &str) -> Vec<f64> {
        self.transfers
            .lock()
            .unwrap()
            .get(uid)
            .map_or_else(Vec::new, |it| it.resumed.clone())
    }

    fn tick(&self) {
        if self.has_storage {
            storage::tick(&self.api);
        }
        for job in self.api.all("jobs") {
            bench::tick_job(&self.api, &job);
        }
        let pods = self.api.all("pods");
        let is_target = |pod: &&Value| {
            pod["metadata"]["labels"]["volferry.io/end"] == "target"
                && pod["metadata"]["deletionTimestamp"].is_null()
                && pod["status"]["containerStatuses"][0]["ready"] == true
        };
        let clone = |pod: &Value| text(&pod["metadata"]["labels"]["volferry.io/clone-uid"]);
        let targets = pods.iter().filter(is_target);
        let targets: HashMap<_, _> = targets.map(|pod| (clone(pod), pod)).collect();
        for pod in &pods {
            self.tick_pod(pod, &targets);
        }
    }

    fn tick_pod(&self, pod: &Value, targets: &HashMap<String, &Value>) {
        let (namespace, name) = place(pod);
        let uid = text(&pod["metadata"]["uid"]);
        if pod["metadata"]["deletionTimestamp"].is_string() {
            self.api.remove("pods", &namespace, &name);
            return;
        }
        let Some(clone) = pod["metadata"]["labels"]["volferry.io/clone-uid"].as_str() else {
            bench::tick_pod(&self.api, pod);
            return;
        };
        let end = text(&pod["metadata"]["labels"]["volferry.io/end"]);
        match pod["status"]["phase"].as_str() {
            None => {
                let (namespace, claim) = mounted(pod);
                let claim = self.api.get("persistentvolumeclaims", &namespace, &claim);
                if claim.is_some_and(|claim| claim["status"]["phase"] != "Bound") {
                    return;
                }
                self.check_pod(pod, &namespace, &end, clone);
                let number = {
                    let mut addresses = self.addresses.lock().unwrap();
                    let next = u32::try_from(addresses.len()).unwrap() + 1;
                    *addresses.entry(uid.clone()).or_insert(next)
                };
                self.started.lock().unwrap().insert(uid, Instant::now());
                let ip = format!("10.0.{}.{}", number / 256, number % 256);
                if end == "target" {
                    let mut targets = self.targets.lock().unwrap();
                    targets.insert(ip.clone(), clone.to_owned());
                }
                let status = json!({
                    "spec": {"nodeName": format!("node-{end}")},
                    "status": {"phase": "Running", "podIP": ip,
                        "containerStatuses": [container(&end, false, json!({"running": {}}))]}});
                self.api.change("pods", &namespace, &name, &status);
                if end == "target" {
                    self.begin(pod, clone);
                }
            }
            Some("Running") => {
                let started = self.started.lock().unwrap().get(&uid).copied();
                let is_up = started.is_some_and(|at| at.elapsed() >= Duration::from_secs(1));
                let is_ready = pod["status"]["containerStatuses"][0]["ready"] == true;
                if is_up && !is_ready {
                    let status = json!({"status": {
                        "containerStatuses": [container(&end, true, json!({"running": {}}))]}});
                    self.api.change("pods", &namespace, &name, &status);
                } else if is_ready && end == "source" {
                    self.transfer(pod, clone, targets.get(clone).copied());
                }
            }
            _ => {}
        }
    }

    /// What a kubelet and an agent need is there before the pod is.
    fn check_pod(&self, pod: &Value, namespace: &str, end: &str, clone: &str) {
        let name = format!("volferry-{clone}-{end}");
        let secret = self
            .api
            .get("secrets", namespace, &name)
            .expect("a pod without its Secret");
        let data = &secret["data"];
        let key = |key: &str| base64(data[key].as_str().unwrap());
        let [certificate, private, authority] = ["tls.crt", "tls.key", "ca.crt"].map(key);
        let credentials = Credentials::from_pem(Path::new("x"), &certificate, &private, &authority);
        let peer = credentials.unwrap().name();
        let role = if end == "source" {
            Role::Source
        } else {
            Role::Target
        };
        assert_eq!(
            (peer.clone_id.to_string(), peer.role),
            (clone.to_owned(), role)
        );
        let policy = self.api.get("networkpolicies", namespace, &name);
        assert!(policy.is_some(), "a pod without its policy");
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        for volume in volumes {
            if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                let claim = self.api.get("persistentvolumeclaims", namespace, claim);
                assert!(claim.is_some(), "a pod without its claim");
            }
            if let Some(map) = volume["configMap"]["name"].as_str() {
                assert!(
                    self.api.get("configmaps", namespace, map).is_some(),
                    "no checkpoint"
                );
            }
        }
    }

    /// A target begins: from what it was given.
    fn begin(&self, pod: &Value, clone: &str) {
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let map = volumes
            .iter()
            .find_map(|volume| volume["configMap"]["name"].as_str());
        let checkpoint = map.and_then(|map| {
            let (namespace, _) = place(pod);
            let map = self.api.get("configmaps", &namespace, map)?;
            let text = map["data"]["checkpoint.json"].as_str()?.to_owned();
            serde_json::from_str::<Value>(&text).unwrap()["done"].as_f64()
        });
        let mut transfers = self.transfers.lock().unwrap();
        let transfer = transfers.entry(clone.to_owned()).or_default();
        transfer.done = checkpoint.unwrap_or(0.0);
        transfer.last = None;
        transfer.resumed.push(transfer.done);
    }

    /// Moves bytes while the source dials a target that listens; at the end both have the receipt.
    fn transfer(&self, source: &Value, clone: &str, target: Option<&Value>) {
        let args = source["spec"]["containers"][0]["args"].as_array().unwrap();
        let target = target.filter(|target| {
            let dialed = format!(
                "--target={}:7700",
                target["status"]["podIP"].as_str().unwrap()
            );
            args.contains(&json!(dialed))
        });
        let mut transfers = self.transfers.lock().unwrap();
        let transfer = transfers.entry(clone.to_owned()).or_default();
        let Some(target) = target else {
            transfer.last = None;
            return;
        };
        let now = Instant::now();
        if let Some(last) = transfer.last {
            transfer.done += (now - last).as_secs_f64() / self.duration.as_secs_f64();
        }
        transfer.last = Some(now);
        if transfer.done < 1.0 {
            return;
        }
        drop(transfers);
        let (namespace, claim) = mounted(source);
        let held = storage::content(&self.api, &namespace, &claim);
        let (namespace, claim) = mounted(target);
        storage::write(
            &self.api,
            &namespace,
            &claim,
            &held.expect("a source that holds something"),
        );
        let receipt = receipt(clone);
        for pod in [target, source] {
            let (namespace, name) = place(pod);
            let end = text(&pod["metadata"]["labels"]["volferry.io/end"]);
            let ended = json!({"terminated": {"exitCode": 0, "message": receipt, "reason": "Completed",
                    "finishedAt": super::now().to_string()}});
            let status = json!({"status": {"phase": "Succeeded",
                "containerStatuses": [container(&end, false, ended)]}});
            self.api.change("pods", &namespace, &name, &status);
        }
    }
}

impl Observe for Nodes {
    async fn progress(
        &self,
        address: IpAddr,
        credentials: &ObserverCredentials,
    ) -> Result<TargetReport, ObserveError> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        if self.is_unheard.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_secs(5)).await;
            return Err(ObserveError::Timeout);
        }
        let clone = self
            .targets
            .lock()
            .unwrap()
            .get(&address.to_string())
            .cloned();
        let clone = clone.expect("a target is asked");
        let shown = [credentials.certificate.clone(), credentials.key.clone()].concat();
        if !self.trusted.lock().unwrap().contains(&shown) {
            let observer = Credentials::from_pem(
                Path::new("x"),
                &credentials.certificate,
                &credentials.key,
                &credentials.authorities,
            )?;
            let name = observer.name();
            assert_eq!(name.role, Role::Observer);
            assert_eq!(
                clone,
                name.clone_id.to_string(),
                "the right target is asked"
            );
            self.trusted.lock().unwrap().insert(shown);
        }
        let transfers = self.transfers.lock().unwrap();
        let done = transfers
            .get(&clone)
            .map_or(0.0, |transfer| transfer.done.min(1.0));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is from 0 to 1 GiB"
        )]
        let durable_bytes = (done * f64::from(1 << 30)) as u64;
        Ok(TargetReport {
            stage: "transfer".to_owned(),
            logical_bytes: 1 << 30,
            durable_bytes,
            bytes_per_second: 1e8,
            limit: "peer".to_owned(),
            checkpoint: Some(json!({"done": done})),
            asked_bandwidth_limit: self.limits.lock().unwrap().get(&address).copied(),
            ..TargetReport::default()
        })
    }

    async fn limit(
        &self,
        address: IpAddr,
        _credentials: &ObserverCredentials,
        bytes_per_second: u64,
    ) -> Result<(), ObserveError> {
        if self.are_old.load(Ordering::Relaxed) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            let status = StatusCode::FORBIDDEN;
            return Err(ObserveError::Status { status });
        }
        let mut limits = self.limits.lock().unwrap();
        let before = limits.insert(address, bytes_per_second);
        assert_ne!(before, Some(bytes_per_second), "it knows that already");
        Ok(())
    }
}

fn container(name: &str, ready: bool, state: Value) -> Value {
    json!({"name": name, "ready": ready, "restartCount": 0, "image": "", "imageID": "", "state": state})
}

/// The claim that an agent's pod mounts.
fn mounted(pod: &Value) -> (String, String) {
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let mut claims = volumes
        .iter()
        .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
    (place(pod).0, claims.next().unwrap().to_owned())
}

pub(crate) fn place(object: &Value) -> (String, String) {
    (
        text(&object["metadata"]["namespace"]),
        text(&object["metadata"]["name"]),
    )
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn base64(text: &str) -> Vec<u8> {
    let bytes: k8s_openapi::ByteString = serde_json::from_value(json!(text)).unwrap();
    bytes.0
}

/// What both agents leave when a clone is proven.
pub(crate) fn receipt(clone: &str) -> String {
    let agent = json!({"agent": "a", "cpu_seconds": 1.0, "peak_memory_bytes": 1});
    json!({
        "receipt_version": 1, "clone_id": clone, "digest": "11".repeat(32), "chunk_size": 1_048_576,
        "verified": "digest", "logical_bytes": 1 << 30, "data_bytes": 5, "zero_bytes": 6,
        "wire_bytes": 7, "resumed_bytes": 0, "sent_bytes": 5, "resent_bytes": 0, "sessions": 1,
        "seconds": 1.0, "bytes_per_second": 1.0, "finished_unix_seconds": 1,
        "source": agent, "target": agent,
    })
    .to_string()
}
