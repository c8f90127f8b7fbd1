//! A thousand clones at once: what they cost the API server, and how soon each is looked at.
//!
//! Time is the simulation's. Each answer of the API server takes a while, so that calls that are made
//! one after the other show as time, as they do in a cluster.

use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;
use volferry_controller::reconcile::Limits;

use super::api::{Call, FakeApi};
use super::nodes::{Nodes, text};
use super::{LIMITS, Scene};

/// How many.
const COUNT: usize = 1000;
/// How long bytes travel for one.
const DURATION: Duration = Duration::from_secs(600);
/// What a call takes, as it does where etcd writes to a disk.
const LATENCY: Duration = Duration::from_millis(5);
/// Namespaces that the clones are in.
const NAMESPACES: usize = 10;

/// A cluster with volumes to clone and to be cloned to, in namespaces that are full of other pods.
fn crowd(duration: Duration, limits: Limits) -> Scene {
    let api = FakeApi::new();
    api.take_time(LATENCY);
    let nodes = Nodes::new(api.clone(), duration).without_storage();
    let scene = Scene::of(api, nodes, limits);
    for number in 0..NAMESPACES {
        scene.namespace(&home(number));
    }
    for number in 0..COUNT {
        for name in ["from", "to"] {
            bound_claim(&scene.api, &home(number), &format!("{name}-{number}"));
        }
    }
    for number in 0..100 {
        scene.user_pod_named(&format!("app-{number}"), &home(number), "app");
    }
    scene
}

fn home(number: usize) -> String {
    format!("home-{}", number % NAMESPACES)
}

/// A claim with its volume, as a driver leaves them.
fn bound_claim(api: &FakeApi, namespace: &str, name: &str) {
    let volume = format!("pv-{name}");
    api.create(
        "persistentvolumeclaims",
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "volumeName": volume,
                "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
        }),
    );
    let uid =
        api.get("persistentvolumeclaims", namespace, name).unwrap()["metadata"]["uid"].clone();
    api.create(
        "persistentvolumes",
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": volume, "annotations": {"content": name}},
            "spec": {"capacity": {"storage": "1Gi"},
                "claimRef": {"namespace": namespace, "name": name, "uid": uid}},
        }),
    );
}

fn make_clones(scene: &Scene) {
    for number in 0..COUNT {
        scene.api.create(
            "volumeclones",
            json!({
                "apiVersion": "volferry.io/v1alpha1", "kind": "VolumeClone",
                "metadata": {"name": format!("clone-{number}"), "namespace": home(number)},
                "spec": {
                    "source": {"persistentVolumeClaim": {"name": format!("from-{number}")}},
                    "target": {"persistentVolumeClaim": {"name": format!("to-{number}")}},
                },
            }),
        );
    }
}

/// How many clones are in each phase.
fn phases(scene: &Scene) -> BTreeMap<String, usize> {
    scene
        .api
        .tally("volumeclones", |clone| &clone["status"]["phase"])
}

/// Lets time pass until all clones are where they should be. How long that took.
async fn until_all(scene: &Scene, are: impl Fn(&BTreeMap<String, usize>) -> bool) -> Duration {
    let began = Instant::now();
    loop {
        let phases = phases(scene);
        if are(&phases) {
            return began.elapsed();
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{phases:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Calls by verb and kind, since there were so many.
fn counted_since(scene: &Scene, since: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for call in scene.api.calls().iter().skip(since) {
        let shown = format!("{} {}", call.verb, call.what);
        *counts.entry(shown).or_default() += 1;
    }
    counts
}

/// What was written for a clone: to it, to what was made for it, and to its target.
fn writes_for(scene: &Scene, clone: &Value) -> Vec<Call> {
    let (uid, name) = (
        text(&clone["metadata"]["uid"]),
        text(&clone["metadata"]["name"]),
    );
    let target = text(&clone["spec"]["target"]["persistentVolumeClaim"]["name"]);
    let mut calls = scene.api.calls();
    calls.retain(|call| {
        let is_for = call.name == name || call.name == target || call.name.contains(&uid);
        call.is_write() && is_for
    });
    calls
}

#[tokio::test(start_paused = true)]
async fn a_thousand_clones_are_looked_at_soon_and_cost_little() {
    let limits = Limits {
        overall: 16,
        per_namespace: 8,
        per_node: 100,
    };
    let scene = crowd(DURATION, limits);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = scene.api.calls().len();
    make_clones(&scene);
    let is_told = |phases: &BTreeMap<String, usize>| !phases.contains_key("");
    let taken = until_all(&scene, is_told).await;
    let calls = counted_since(&scene, before);
    println!("all were looked at after {taken:?}: {calls:#?}");
    // Whatever is asked for each is asked a few times at most.
    for (call, count) in &calls {
        assert!(*count < 3 * COUNT, "{count} times {call}");
    }
    assert!(calls.values().sum::<usize>() < 10 * COUNT, "{calls:#?}");

    // One that comes now, or changes, is looked at among all the others that wait.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for number in [COUNT - 1, COUNT - 2, COUNT - 3] {
        let name = format!("clone-{number}");
        let suspend = json!({"spec": {"suspend": true}});
        scene
            .api
            .change("volumeclones", &home(number), &name, &suspend);
        let began = Instant::now();
        until_all(&scene, |phases| {
            phases.get("Suspended") == Some(&(COUNT - number))
        })
        .await;
        println!("a change was seen after {:?}", began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    // Those that wait cost nothing, those that run little.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let before = scene.api.calls().len();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let calls = counted_since(&scene, before);
    println!("five minutes: {calls:#?}");
    let sum: usize = calls.values().sum();
    assert!(sum < limits.overall * 40, "{calls:#?}");

    // Those that are through, through all of it.
    tokio::time::sleep(DURATION.saturating_sub(Duration::from_secs(330))).await;
    let ready = |phases: &BTreeMap<String, usize>| phases.get("Ready") >= Some(&limits.overall);
    until_all(&scene, ready).await;
    let clones = scene.api.all("volumeclones");
    let ended = clones
        .iter()
        .filter(|clone| clone["status"]["phase"] == "Ready");
    let mut most = 0;
    for clone in ended {
        let writes = writes_for(&scene, clone);
        assert!(writes.len() < 30, "{writes:#?}");
        most = most.max(writes.len());
    }
    println!("at most {most} writes for a clone");
    // Their places are taken by those that waited longest.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let running = |clone: &Value| {
        matches!(
            clone["status"]["phase"].as_str(),
            Some("Preparing" | "Cloning")
        )
    };
    let clones = scene.api.all("volumeclones");
    assert_eq!(
        clones.iter().filter(|clone| running(clone)).count(),
        limits.overall
    );
}

/// The program itself, in a cluster that is large: what it takes of memory, and that it is told to take
/// no more.
#[tokio::test]
#[ignore = "it takes a minute and more, and looks at a process"]
async fn the_program_needs_little_memory_for_a_thousand_clones() {
    const OTHERS: usize = 10_000;
    const MEMORY_MAX_KIB: u64 = 150 << 10;
    let api = FakeApi::new();
    let nodes = Nodes::new(api.clone(), Duration::from_secs(5)).without_storage();
    let mut scene = Scene::of(api.clone(), nodes, LIMITS);
    scene.controller.abort();
    scene.controller = tokio::spawn(std::future::pending());
    for number in 0..NAMESPACES {
        scene.namespace(&home(number));
    }
    for number in 0..OTHERS {
        for name in ["from", "to"] {
            bound_claim(&api, &home(number), &format!("{name}-{number}"));
        }
        scene.user_pod_named(&format!("app-{number}"), &home(number), "app");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { api.serve(listener).await });
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let of = json!({"apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": format!("http://{address}")}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "users": [{"name": "it", "user": {}}]});
    std::fs::write(&config, of.to_string()).unwrap();
    let controller = Command::new(env!("CARGO_BIN_EXE_volferry-controller"))
        .args([
            "--image",
            "volferry:1",
            "--namespace",
            "volferry-system",
            "--name",
            "it",
        ])
        .args(["--health-listen", "127.0.0.1:0", "--log", "warn"])
        .env("KUBECONFIG", &config)
        .spawn()
        .unwrap();
    let controller = Killed(controller);
    let status = format!("/proc/{}/status", controller.0.id());
    let peak_kib = || -> u64 {
        let status = std::fs::read_to_string(&status).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let are_known = |scene: &Scene| scene.api.watches().len() >= 8;
    scene.until("watches", are_known).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    println!("{} KiB before there are clones", peak_kib());
    make_clones(&scene);
    let taken = until_all(&scene, |phases| !phases.contains_key("")).await;
    println!(
        "{} KiB when all were looked at, after {taken:?}",
        peak_kib()
    );
    tokio::time::sleep(Duration::from_secs(30)).await;
    let phases = phases(&scene);
    println!(
        "{} KiB at last, {phases:?}, {} calls",
        peak_kib(),
        scene.api.calls().len()
    );
    assert!(phases.get("Ready") > Some(&0), "{phases:?}");
    assert!(peak_kib() < MEMORY_MAX_KIB, "{} KiB", peak_kib());
    serving.abort();
}

/// A process that ends with the test, however that ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
