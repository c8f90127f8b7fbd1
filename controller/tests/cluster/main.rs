//! The controller against an API server within the process, on a clock that passes when everybody
//! waits: whole clones, each call failing in turn, controllers that are replaced, pods that die.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::expect_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "a test tells how much it tried")]

mod api;
mod bench;
mod crowd;
mod doctor;
mod holding;
mod nodes;
mod plugin;
mod populator;
mod published;
mod storage;
mod strategies;
mod watching;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use volferry_controller::cluster::Cluster;
use volferry_controller::reconcile::{Context, Limits};
use volferry_controller::world::Settings;

use self::api::{FakeApi, Fault, merge};
use self::nodes::Nodes;

/// The time on the simulated clock, which begins now: credentials have real dates.
fn now() -> Timestamp {
    // Each test has a runtime and a thread of its own.
    thread_local! {
        static START: OnceLock<(Timestamp, Instant)> = const { OnceLock::new() };
    }
    START.with(|start| {
        let (at, instant) = start.get_or_init(|| (Timestamp::now(), Instant::now()));
        *at + SignedDuration::try_from(instant.elapsed()).unwrap()
    })
}

/// A cluster with a controller.
struct Scene {
    api: FakeApi,
    nodes: Nodes,
    controller: JoinHandle<()>,
    running: JoinHandle<()>,
}

impl Scene {
    fn new(duration: Duration) -> Self {
        let api = FakeApi::new();
        let nodes = Nodes::new(api.clone(), duration);
        let scene = Self::of(api, nodes, LIMITS);
        for namespace in ["home", "away"] {
            scene.namespace(namespace);
        }
        scene
    }

    fn of(api: FakeApi, nodes: Nodes, limits: Limits) -> Self {
        let running = tokio::spawn(nodes.clone().run());
        let controller = Self::control(&api, &nodes, limits);
        Self {
            api,
            nodes,
            controller,
            running,
        }
    }

    fn namespace(&self, name: &str) {
        self.api.create(
            "namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        );
    }

    fn control(api: &FakeApi, nodes: &Nodes, limits: Limits) -> JoinHandle<()> {
        let cluster = Cluster::new(api.client(), "test".to_owned());
        let context = Context::new(cluster, nodes.clone(), settings(), limits).with_clock(now);
        tokio::spawn(Arc::new(context).run(std::future::pending()))
    }

    /// Another controller, with other limits.
    fn limit(&mut self, limits: Limits) {
        self.controller.abort();
        self.controller = Self::control(&self.api, &self.nodes, limits);
    }

    /// The controller dies, and another comes.
    fn replace_controller(&mut self) {
        self.controller.abort();
        self.controller = Self::control(&self.api, &self.nodes, LIMITS);
    }

    fn claim(&self, namespace: &str, name: &str) {
        self.claim_with(namespace, name, &json!({}));
        storage::tick(&self.api);
        storage::tick(&self.api);
        storage::write(
            &self.api,
            namespace,
            name,
            &format!("content of {namespace}/{name}"),
        );
    }

    /// A claim as a user makes it.
    fn claim_with(&self, namespace: &str, name: &str, spec: &Value) {
        let mut claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
                "resources": {"requests": {"storage": "1Gi"}}},
        });
        merge(&mut claim["spec"], spec);
        self.api.create("persistentvolumeclaims", claim);
    }

    fn clone(&self, name: &str, spec: &Value) {
        let mut full = json!({"source": {"persistentVolumeClaim": {"name": "from"}}});
        merge(&mut full, spec);
        if full["source"]["volumeSnapshot"].is_object() {
            full["source"]["persistentVolumeClaim"] = Value::Null;
        }
        if full["target"].is_null() {
            full["target"]["persistentVolumeClaim"] = json!({"name": "to"});
        }
        self.api.create(
            "volumeclones",
            json!({
                "apiVersion": "volferry.io/v1alpha1", "kind": "VolumeClone",
                "metadata": {"name": name, "namespace": "home"}, "spec": full,
            }),
        );
    }

    /// Has a driver that clones and takes snapshots, and volumes of it in both namespaces. `change` is
    /// for its storage class.
    fn backend(&self, change: &Value) {
        self.api.know_snapshots();
        let mut class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": "own",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "d.io",
        });
        self.api.create("storageclasses", class.clone());
        self.api.create(
            "volumesnapshotclasses",
            json!({
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
                "metadata": {"name": "shots"}, "driver": "d.io",
            }),
        );
        for namespace in ["home", "away"] {
            self.claim(namespace, "from");
        }
        merge(&mut class, change);
        self.api.change("storageclasses", "", "own", &class);
    }

    /// A pod of a user that mounts a claim.
    fn user_pod(&self, namespace: &str, claim: &str) {
        self.user_pod_named("database", namespace, claim);
    }

    fn user_pod_named(&self, name: &str, namespace: &str, claim: &str) {
        self.api.create(
            "pods",
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {"nodeName": "node-7", "containers": [],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]},
                "status": {"phase": "Running"},
            }),
        );
    }

    fn has_claim(&self, namespace: &str, name: &str) -> bool {
        let claim = self.api.get("persistentvolumeclaims", namespace, name);
        claim.is_some()
    }

    fn phase_of(&self, namespace: &str, claim: &str) -> String {
        let claim = self.api.get("persistentvolumeclaims", namespace, claim);
        claim.map_or_else(String::new, |claim| nodes::text(&claim["status"]["phase"]))
    }

    /// Ends everything, in tests that make many.
    fn end(self) {
        self.controller.abort();
        self.running.abort();
    }

    fn consent(&self) {
        self.api.create("referencegrants", json!({
            "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
            "metadata": {"name": "grant", "namespace": "away"},
            "spec": {"from": [{"group": "volferry.io", "kind": "VolumeClone", "namespace": "home"}],
                "to": [{"group": "", "kind": "PersistentVolumeClaim", "name": "from"},
                    {"group": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "shot"}]},
        }));
    }

    fn status(&self, name: &str) -> Value {
        let clone = self.api.get("volumeclones", "home", name);
        clone.map_or(Value::Null, |clone| clone["status"].clone())
    }

    /// What a clone is at, or waits for.
    fn progressing(&self, name: &str) -> Value {
        let conditions = self.status(name)["conditions"].clone();
        let mut conditions = conditions.as_array().into_iter().flatten();
        let found = conditions.find(|condition| condition["type"] == "Progressing");
        found.cloned().unwrap_or_default()
    }

    /// What Events with this reason say.
    fn told(&self, reason: &str) -> Vec<String> {
        let mut told = self.api.all("events");
        told.retain(|event| event["reason"] == reason);
        told.iter()
            .map(|event| nodes::text(&event["note"]))
            .collect()
    }

    /// How often anybody has written until now.
    fn writes(&self) -> usize {
        let calls = self.api.calls();
        calls.iter().filter(|call| call.is_write()).count()
    }

    /// Lets time pass until `what` holds.
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let limit = Instant::now() + Duration::from_secs(7200);
        while !holds(self) {
            assert!(!self.controller.is_finished(), "the controller ended");
            assert!(!self.running.is_finished(), "the nodes ended");
            assert!(
                Instant::now() < limit,
                "{what} never came: {}\n{:#?}",
                self.status("clone"),
                self.api.inventory()
            );
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    async fn until_phase(&self, name: &str, phase: &str) {
        self.until(phase, |scene| scene.status(name)["phase"] == phase)
            .await;
    }

    /// What is there but what users made, and Events.
    fn leftovers(&self) -> Vec<String> {
        let mut found = self.api.inventory();
        found.retain(|shown| {
            let (kind, name) = shown.split_once(' ').unwrap();
            let is_users = [
                "namespaces",
                "referencegrants",
                "storageclasses",
                "volumeclones",
                "volumesnapshotclasses",
            ];
            match kind {
                // Kubernetes forgets them.
                "events" => false,
                // They go with their claims and snapshots.
                "persistentvolumes" | "volumesnapshotcontents" => false,
                "persistentvolumeclaims" | "pods" | "volumesnapshots" => {
                    name.contains("/volferry-")
                }
                kind => !is_users.contains(&kind),
            }
        });
        let volumes = self.api.all("persistentvolumes");
        let owners = volumes
            .iter()
            .map(|volume| &volume["spec"]["claimRef"]["name"]);
        let orphans = owners.filter(|owner| owner.as_str().unwrap().starts_with("volferry-"));
        found.extend(orphans.map(|owner| format!("the volume of {owner}")));
        found
    }

    async fn until_clean(&self) {
        self.until("a clean cluster", |scene| scene.leftovers().is_empty())
            .await;
    }
}

fn settings() -> Settings {
    Settings {
        image: "volferry:1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        namespace: "volferry-system".to_owned(),
    }
}

const LIMITS: Limits = Limits {
    overall: 32,
    per_namespace: 8,
    per_node: 100,
};

const SHORT: Duration = Duration::from_secs(20);

/// Long enough for all that happens to a clone, in tests that make very many.
const SHORTEST: Duration = Duration::from_secs(4);

fn away() -> Value {
    json!({"source": {"namespace": "away"},
        "target": {"claimTemplate": {"metadata": {"name": "to"}}}})
}

fn merged(mut spec: Value, more: &Value) -> Value {
    merge(&mut spec, more);
    spec
}

/// A cluster in which `clone` clones within a namespace, and bytes travel for so long.
fn at_home(duration: Duration) -> Scene {
    let scene = Scene::new(duration);
    scene.claim("home", "from");
    scene.claim("home", "to");
    scene.clone("clone", &json!({}));
    scene
}

/// A cluster in which `clone` clones from another namespace.
fn cross_namespace() -> Scene {
    cross_namespace_for(SHORT)
}

/// The same, when bytes travel for so long.
fn cross_namespace_for(duration: Duration) -> Scene {
    let scene = Scene::new(duration);
    scene.claim("away", "from");
    scene.consent();
    scene.clone("clone", &away());
    scene
}

#[tokio::test(start_paused = true)]
async fn a_clone_in_one_namespace_is_proven_and_leaves_nothing() {
    let scene = at_home(SHORT);
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    let status = scene.status("clone");
    assert_eq!(status["strategy"], "HostAssisted");
    let progress = &status["progress"];
    // Of the whole clone, as the receipt has it, and not what a last look saw.
    assert_eq!(
        (&progress["percent"], &progress["rate"]),
        (&json!("100%"), &json!("1 B/s"))
    );
    assert_eq!(status["receipt"]["digest"], "11".repeat(32));
    let target = scene
        .api
        .get("persistentvolumeclaims", "home", "to")
        .unwrap();
    assert_eq!(
        target["metadata"]["annotations"]["volferry.io/receipt"],
        status["receipt"]["json"]
    );
    scene.api.delete("volumeclones", "home", "clone");
    scene
        .until("its end", |scene| scene.api.all("volumeclones").is_empty())
        .await;
    assert!(scene.has_claim("home", "to"), "it is proven");
}

#[tokio::test(start_paused = true)]
async fn a_clone_from_another_namespace_needs_consent() {
    let scene = Scene::new(SHORT);
    scene.claim("away", "from");
    scene.clone("clone", &away());
    let is_refused =
        |scene: &Scene| scene.status("clone")["conditions"][0]["reason"] == "NotGranted";
    scene.until("a refusal", is_refused).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(scene.leftovers(), Vec::<String>::new());
    scene.consent();
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_clone_leaves_nothing_in_either_namespace() {
    let scene = cross_namespace();
    scene.until_phase("clone", "Cloning").await;
    assert!(
        scene
            .leftovers()
            .iter()
            .any(|shown| shown.contains("pods away/"))
    );
    scene.api.delete("volumeclones", "home", "clone");
    scene
        .until("its end", |scene| scene.api.all("volumeclones").is_empty())
        .await;
    assert_eq!(scene.leftovers(), Vec::<String>::new());
    assert!(!scene.has_claim("home", "to"), "it is unproven");
    assert!(scene.has_claim("away", "from"));
}

#[tokio::test(start_paused = true)]
async fn each_call_fails_in_turn_and_nothing_changes() {
    let clean = cross_namespace_for(SHORTEST);
    clean.until_phase("clone", "Ready").await;
    let should = clean.status("clone");
    clean.end();
    let calls = each_fault(
        || cross_namespace_for(SHORTEST),
        async |scene: &Scene| {
            scene.until_phase("clone", "Ready").await;
            scene.until_clean().await;
            let is = scene.status("clone");
            for same in ["strategy", "targetClaim", "failure"] {
                assert_eq!(is[same], should[same]);
            }
            assert_eq!(is["receipt"]["digest"], should["receipt"]["digest"]);
            assert_eq!(is["attempts"]["target"]["failures"], 0);
            scene.api.delete("volumeclones", "home", "clone");
            scene
                .until("its end", |scene| scene.api.all("volumeclones").is_empty())
                .await;
        },
    )
    .await;
    assert!(calls > 50);
}

/// Has every call of a scene fail in turn, and lets `check` see that it comes to the same end. The
/// number of calls.
async fn each_fault(make: impl Fn() -> Scene, check: impl AsyncFn(&Scene)) -> usize {
    let clean = make();
    check(&clean).await;
    let calls = clean.api.calls();
    clean.end();
    let faults = [
        Fault::Refused(409),
        Fault::Refused(429),
        Fault::Refused(500),
        Fault::AnswerLost,
        Fault::Hangs,
    ];
    let mut scenes = 0;
    for (number, call) in calls.iter().enumerate() {
        // A write in each way, and a read in one of them, in turn.
        let is_full = call.is_write() || std::env::var_os("VOLFERRY_SWEEP").is_some();
        let (skipped, taken) = if is_full {
            (0, faults.len())
        } else {
            (number % faults.len(), 1)
        };
        for &fault in faults.iter().skip(skipped).take(taken) {
            scenes += 1;
            println!("{fault:?} of call {number}, {call:?}");
            let scene = make();
            scene.api.fail(number, fault);
            check(&scene).await;
            scene.end();
        }
    }
    println!("{} calls, failed in {scenes} ways", calls.len());
    calls.len()
}

#[tokio::test(start_paused = true)]
async fn a_controller_may_be_replaced_at_any_moment() {
    let mut moment = Duration::ZERO;
    let mut replaced = 0;
    loop {
        let mut scene = cross_namespace_for(SHORTEST);
        tokio::time::sleep(moment).await;
        let is_over = scene.status("clone")["phase"] == "Ready" && scene.leftovers().is_empty();
        scene.replace_controller();
        scene.until_phase("clone", "Ready").await;
        scene.until_clean().await;
        assert_eq!(
            scene.nodes.resumed(&uid(&scene)),
            [0.0],
            "one target pod, after {moment:?}"
        );
        scene.end();
        if is_over {
            break;
        }
        replaced += 1;
        moment += Duration::from_millis(103);
    }
    println!("replaced at {replaced} moments");
    assert!(replaced > 50);
}

fn uid(scene: &Scene) -> String {
    let clone = scene.api.get("volumeclones", "home", "clone").unwrap();
    clone["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_target_pod_that_dies_is_replaced_and_goes_on() {
    let scene = cross_namespace();
    scene
        .until("half", |scene| {
            scene.status("clone")["progress"]["durableBytes"].as_i64() > Some(1 << 28)
        })
        .await;
    let name = format!("volferry-{}-target", uid(&scene));
    let evicted =
        json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "low on memory"}});
    scene.api.change("pods", "home", &name, &evicted);
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    let status = scene.status("clone");
    assert_eq!(status["attempts"]["target"]["failures"], 1);
    assert!(
        status["attempts"]["target"]["lastFailure"]
            .as_str()
            .unwrap()
            .contains("low on memory")
    );
    let resumed = scene.nodes.resumed(&uid(&scene));
    assert_eq!(resumed.len(), 2);
    assert!(resumed[1] > 0.2, "{resumed:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drained_source_comes_back() {
    let scene = cross_namespace();
    scene.until_phase("clone", "Cloning").await;
    let name = format!("volferry-{}-source", uid(&scene));
    scene.api.delete("pods", "away", &name);
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    assert_eq!(
        scene.nodes.resumed(&uid(&scene)),
        [0.0],
        "the target stayed"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_quota_refuses_is_told_and_tried_again() {
    let words = "pods is forbidden: exceeded quota: compute, requested: pods=1, used: pods=";
    // Others may use it up and down meanwhile: then it is told in other words each time.
    for used in ["9", "NUMBER"] {
        let scene = cross_namespace();
        scene.api.refuse("pods", Some(&format!("{words}{used}")));
        let is_told = |scene: &Scene| scene.progressing("clone")["reason"] == "QuotaExceeded";
        scene.until("words", is_told).await;
        let message = nodes::text(&scene.progressing("clone")["message"]);
        assert!(message.contains(words), "{message}");
        let before = scene.writes();
        tokio::time::sleep(Duration::from_secs(600)).await;
        let writes = scene.writes() - before;
        assert!(writes < 40, "{writes} writes in vain");
        scene.api.refuse("pods", None);
        scene.until_phase("clone", "Ready").await;
        scene.until_clean().await;
        scene.end();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_blocks_no_place_and_is_asked_for_ever_more_rarely() {
    const REFUSED: u32 = 5;
    let mut scene = Scene::new(SHORT);
    scene.limit(Limits {
        per_namespace: 1,
        ..LIMITS
    });
    scene.claim("home", "from");
    for number in 0..=REFUSED {
        scene.claim("home", &format!("to-{number}"));
    }
    let onto = |number: u32| {
        let target = format!("to-{number}");
        json!({"target": {"persistentVolumeClaim": {"name": target}}})
    };
    // More of them than there are places, so that each queues now and then.
    scene.api.refuse("pods", Some("exceeded quota: pods"));
    for number in 0..REFUSED {
        scene.clone(&format!("refused-{number}"), &onto(number));
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = scene.api.calls().len();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let calls = scene.api.calls();
    let asked = calls.iter().skip(before);
    let asked = asked.filter(|call| call.what == "pods" && call.is_write());
    let asked = asked.count();
    let limits = 8 * REFUSED as usize..=11 * REFUSED as usize;
    assert!(limits.contains(&asked), "{asked} times in ten minutes");
    let writes = calls.iter().skip(before).filter(|call| call.is_write());
    let writes = writes.count();
    assert!(writes < 4 * asked, "{writes} writes in vain");

    // What is not refused goes on beside them.
    scene.api.refuse("pods", None);
    for number in 0..REFUSED {
        let clone = scene
            .api
            .get("volumeclones", "home", &format!("refused-{number}"));
        let uid = nodes::text(&clone.unwrap()["metadata"]["uid"]);
        for end in ["source", "target"] {
            let pod = format!("patch pods/volferry-{uid}-{end}");
            scene.api.refuse(&pod, Some("not this one"));
        }
    }
    scene.clone("clone", &onto(REFUSED));
    // Whatever else has them looked at meanwhile.
    for look in 0..24 {
        for number in 0..REFUSED {
            let name = format!("refused-{number}");
            let touched = json!({"metadata": {"annotations": {"look": look.to_string()}}});
            scene.api.change("volumeclones", "home", &name, &touched);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(scene.status("clone")["phase"], "Ready");
}

#[tokio::test(start_paused = true)]
async fn a_receipt_that_may_not_be_noted_keeps_nothing_from_going() {
    let scene = cross_namespace();
    let noting = "patch persistentvolumeclaims";
    scene.api.refuse(noting, Some("a policy names another"));
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let told = "noting the receipt on claim to: a policy names another";
    assert_eq!(scene.told("Rejected"), [told]);
    scene.api.refuse(noting, None);
    let is_noted = |scene: &Scene| {
        let claim = scene.api.get("persistentvolumeclaims", "home", "to");
        claim.unwrap()["metadata"]["annotations"]["volferry.io/receipt"].is_string()
    };
    scene.until("its receipt", is_noted).await;
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_deleted_is_told() {
    let scene = cross_namespace();
    scene.api.refuse("delete pods", Some("not by you, NUMBER"));
    scene.until_phase("clone", "Ready").await;
    let before = scene.writes();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let writes = scene.writes() - before;
    assert!(writes < 40, "{writes} writes in vain");
    let told = scene.told("Rejected");
    for pod in ["away/volferry-UID-source", "home/volferry-UID-target"] {
        let pod = pod.replace("UID", &uid(&scene));
        let words = format!("deleting Pod {pod}: not by you");
        let is_told = told.iter().any(|told| told.starts_with(&words));
        assert!(is_told, "{words}: {told:?}");
    }
    assert_eq!(told.len(), 2, "{told:?}");
    // Nothing else stays for that.
    let left = scene.leftovers();
    assert!(
        left.iter().all(|left| left.contains("pods")) && left.len() == 2,
        "{left:?}"
    );
    // An Event is forgotten after an hour, and it is told anew before.
    let last_told = |scene: &Scene| {
        let events = scene.api.calls().into_iter();
        events
            .filter(|call| call.is_write() && call.what == "events")
            .count()
    };
    let before = last_told(&scene);
    tokio::time::sleep(Duration::from_secs(2400)).await;
    assert_eq!(last_told(&scene), before + 2);
    scene.api.refuse("delete pods", None);
    scene.until_clean().await;
}

/// The rules of deploy/base/rbac.yaml for the controller, as group, kind and verb.
fn rights() -> BTreeSet<(String, String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/base/rbac.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let list = |rule: &Value, key: &str| {
        let items = rule[key].as_array().unwrap().clone();
        items
            .into_iter()
            .map(|item| item.as_str().unwrap().to_owned())
    };
    let ours = objects.iter().filter(|object| {
        object["metadata"]["name"] == "volferry-controller" && object["rules"].is_array()
    });
    let mut rights = BTreeSet::new();
    for rule in ours.flat_map(|object| object["rules"].as_array().unwrap()) {
        for group in list(rule, "apiGroups") {
            for kind in list(rule, "resources") {
                for verb in list(rule, "verbs") {
                    rights.insert((group.clone(), kind.clone(), verb));
                }
            }
        }
    }
    rights
}

#[tokio::test(start_paused = true)]
async fn the_controller_has_the_rights_that_it_uses_and_few_others() {
    // A clone with much of what can happen to one, to its end.
    let scene = Scene::new(SHORT);
    scene.claim("away", "from");
    scene.consent();
    scene.clone(
        "clone",
        &merged(away(), &json!({"ttlSecondsAfterFinished": 1})),
    );
    let durable = |scene: &Scene| scene.status("clone")["progress"]["durableBytes"].as_i64();
    scene
        .until("half", |scene| durable(scene) > Some(1 << 28))
        .await;
    let name = format!("volferry-{}-target", uid(&scene));
    let failed = json!({"status": {"phase": "Failed"}});
    scene.api.change("pods", "home", &name, &failed);
    let is_gone = |scene: &Scene| scene.api.all("volumeclones").is_empty();
    scene.until("its end", is_gone).await;
    // Another that is deleted unproven: its target claim goes.
    scene.api.delete("persistentvolumeclaims", "home", "to");
    scene.clone("clone", &away());
    scene.until_phase("clone", "Cloning").await;
    scene.api.delete("volumeclones", "home", "clone");
    scene.until("its end", is_gone).await;

    let mut calls = [scene.api.calls(), scene.api.watches()].concat();
    scene.end();
    // Ways of the backend, and claims that are filled.
    let scene = strategies::backend(&json!({}));
    scene.consent();
    scene.clone("clone", &merged(away(), &json!({"strategy": "Snapshot"})));
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    calls.extend(scene.api.calls());
    calls.extend(scene.api.watches());
    scene.end();
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    populator::template(&scene, &json!({}));
    populator::referring(&scene, "to");
    populator::until_ready(&scene, 1).await;
    calls.extend(scene.api.calls());

    let mut used = BTreeSet::new();
    for call in calls {
        used.insert((call.group.clone(), call.what.clone(), call.verb.to_owned()));
        // To apply what isn't there takes the right to create it.
        let applied = ["pods", "secrets", "networkpolicies", "configmaps"];
        if call.verb == "patch" && applied.contains(&&*call.what) {
            used.insert((call.group, call.what, "create".to_owned()));
        }
    }
    let rights = rights();
    let missing: Vec<_> = used.difference(&rights).collect();
    assert!(missing.is_empty(), "rights that are missing: {missing:?}");
    // What nothing here leads to.
    let elsewhere = |(_, kind, verb): &&(String, String, String)| {
        kind == "leases" || (["events", "secrets"].contains(&&**kind) && verb == "patch")
    };
    let idle = rights.difference(&used).filter(|right| !elsewhere(right));
    let idle: Vec<_> = idle.collect();
    assert!(idle.is_empty(), "rights that nothing uses: {idle:?}");
}

#[tokio::test(start_paused = true)]
async fn watches_that_are_cut_or_outdated_begin_anew() {
    let scene = cross_namespace();
    for _ in 0..60 {
        scene.api.compact();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_suspended_clone_has_no_pods_and_goes_on_later() {
    let scene = cross_namespace();
    scene
        .until("half", |scene| {
            scene.status("clone")["progress"]["durableBytes"].as_i64() > Some(1 << 28)
        })
        .await;
    scene.api.change(
        "volumeclones",
        "home",
        "clone",
        &json!({"spec": {"suspend": true}}),
    );
    scene.until_phase("clone", "Suspended").await;
    scene
        .until("no pods", |scene| scene.api.all("pods").is_empty())
        .await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    scene.api.change(
        "volumeclones",
        "home",
        "clone",
        &json!({"spec": {"suspend": false}}),
    );
    scene.until_phase("clone", "Ready").await;
    let resumed = scene.nodes.resumed(&uid(&scene));
    assert!(resumed.len() == 2 && resumed[1] > 0.2, "{resumed:?}");
}

#[tokio::test(start_paused = true)]
async fn clones_queue_up() {
    let mut scene = Scene::new(SHORT);
    scene.limit(Limits {
        overall: 2,
        per_namespace: 2,
        per_node: 100,
    });
    scene.claim("home", "from");
    let names: Vec<_> = (0..5).map(|number| format!("clone-{number}")).collect();
    for name in &names {
        scene.clone(
            name,
            &json!({"target": {"claimTemplate": {"metadata": {"name": format!("{name}-to")}}}}),
        );
    }
    let mut most = 0;
    let limit = Instant::now() + Duration::from_secs(600);
    while names
        .iter()
        .any(|name| scene.status(name)["phase"] != "Ready")
    {
        let targets = scene.api.all("pods");
        let targets = targets
            .iter()
            .filter(|pod| pod["metadata"]["labels"]["volferry.io/end"] == "target")
            .filter(|pod| pod["status"]["phase"] != "Succeeded");
        most = most.max(targets.count());
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(
            Instant::now() < limit,
            "{:?}",
            scene.api.all("volumeclones")
        );
    }
    assert_eq!(most, 2);
}

#[tokio::test(start_paused = true)]
async fn clones_that_queue_ask_nothing_of_the_api_server() {
    const COUNT: usize = 12;
    let mut scene = Scene::new(Duration::from_secs(3600));
    scene.limit(Limits {
        overall: 1,
        per_namespace: 1,
        per_node: 100,
    });
    scene.claim("home", "from");
    let template = |number: usize| json!({"target": {"claimTemplate": {"metadata": {"name": format!("to-{number}")}}}});
    for number in 0..COUNT {
        let late = if number == 7 {
            json!({"deadlineSeconds": 900})
        } else {
            json!({})
        };
        scene.clone(&number.to_string(), &merged(template(number), &late));
    }
    let queued = |scene: &Scene| {
        let clones = scene.api.all("volumeclones");
        let queues = |clone: &&Value| clone["status"]["conditions"].to_string().contains("Queued");
        clones.iter().filter(queues).count()
    };
    scene
        .until("a queue", |scene| queued(scene) == COUNT - 1)
        .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let claims = scene.api.all("persistentvolumeclaims");
    assert_eq!(claims.len(), 2, "one that queues takes no storage");
    let before = scene.api.calls().len();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let calls = scene.api.calls().len() - before;
    println!("{calls} calls in ten minutes");
    assert!(calls < 500, "{calls} calls, for one that runs");
    scene.until_phase("7", "Failed").await;
    assert_eq!(scene.status("7")["failure"]["reason"], "DeadlineExceeded");
    // One that is changed is looked at, and one that goes makes room for another.
    scene.api.change(
        "volumeclones",
        "home",
        "9",
        &json!({"spec": {"suspend": true}}),
    );
    scene.until_phase("9", "Suspended").await;
    let runs = |scene: &Scene| {
        let pods = scene.api.all("pods");
        pods.first()
            .map(|pod| pod["metadata"]["annotations"]["volferry.io/clone"].clone())
    };
    let first = runs(&scene).unwrap();
    let name = first.as_str().unwrap().split_once('/').unwrap().1;
    scene.api.delete("volumeclones", "home", name);
    scene
        .until("another", |scene| runs(scene).is_some_and(|it| it != first))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_clone_of_ten_minutes_takes_few_writes() {
    let scene = Scene::new(Duration::from_secs(600));
    scene.claim("away", "from");
    scene.consent();
    scene.clone("clone", &away());
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    let calls = scene.api.calls();
    let writes: Vec<_> = calls.iter().filter(|call| call.is_write()).collect();
    println!("{} writes, {} calls", writes.len(), calls.len());
    assert!(writes.len() < 30, "{writes:#?}");
}
