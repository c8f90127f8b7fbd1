//! `kubectl volferry bench` against the cluster: what it makes, what it makes of what pods say, and that
//! nothing of it stays, however it ends.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use volferry_controller::api::TransportProtocol;
use volferry_controller::claims::VolumeMode;
use volferry_controller::plugin::bench::objects::BENCH_LABEL;
use volferry_controller::plugin::bench::{Asked, Bench, Outcome, Placement};
use volferry_controller::world::Settings;

use super::api::{FakeApi, Fault, LOG};
use super::nodes::{place, text};
use super::{SHORT, Scene, storage};

/// On a storage class: pods that measure its volumes fail with these words.
const FAILS: &str = "pods-fail";

/// Kubernetes makes a pod of a Job, until one has succeeded.
pub(crate) fn tick_job(api: &FakeApi, job: &Value) {
    let (namespace, name) = place(job);
    let pod = format!("{name}-abcde");
    let made = api.get("pods", &namespace, &pod);
    if made
        .as_ref()
        .is_some_and(|pod| pod["status"]["phase"] == "Succeeded")
    {
        let done = json!({"status": {"succeeded": 1}});
        api.change("jobs", &namespace, &name, &done);
    }
    if made.is_none() && job["status"]["succeeded"].is_null() {
        let template = &job["spec"]["template"];
        let mut metadata = template["metadata"].clone();
        metadata["name"] = json!(pod);
        metadata["namespace"] = json!(namespace);
        metadata["ownerReferences"] = json!([{"kind": "Job", "uid": job["metadata"]["uid"]}]);
        let made = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": template["spec"]});
        api.create("pods", made);
    }
}

/// A pod that measures: it starts when its claim has a volume, and says what such pods say.
pub(crate) fn tick_pod(api: &FakeApi, pod: &Value) {
    let (namespace, name) = place(pod);
    let Some(what) = pod["metadata"]["labels"]["volferry.io/bench-end"].as_str() else {
        return;
    };
    // A pod goes with its Job.
    let owner = &pod["metadata"]["ownerReferences"][0];
    let is_owner = |job: &Value| job["metadata"]["uid"] == owner["uid"];
    if owner["kind"] == "Job" && !api.all("jobs").iter().any(is_owner) {
        return api.delete("pods", &namespace, &name);
    }
    let end = |is_complete: bool| {
        json!({"schema": "volferry-bench-end", "end": what, "is_complete": is_complete,
            "facts": {"logical_bytes": 5_i64 << 30, "read_bytes": 5_i64 << 30}})
        .to_string()
    };
    let become_ = |phase: &str, log: &str| {
        let number = if what == "target" { 1 } else { 2 };
        let change = json!({
            "metadata": {"annotations": {LOG: log}},
            "spec": {"nodeName": format!("node-{what}")},
            "status": {"phase": phase, "podIP": format!("10.9.0.{number}"),
                "containerStatuses": [{"name": "bench", "ready": true, "restartCount": 0,
                    "image": "", "imageID": "", "state": {"running": {}}}]},
        });
        api.change("pods", &namespace, &name, &change);
    };
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let claim = volumes
        .iter()
        .find_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str());
    let claim = claim.map(|claim| api.get("persistentvolumeclaims", &namespace, claim));
    match pod["status"]["phase"].as_str() {
        None => {
            for volume in volumes {
                for (kind, plural, key) in [
                    ("secret", "secrets", "secretName"),
                    ("configMap", "configmaps", "name"),
                ] {
                    if let Some(name) = volume[kind][key].as_str() {
                        assert!(
                            api.get(plural, &namespace, name).is_some(),
                            "no {kind} {name}"
                        );
                    }
                }
            }
            let Some(claim) = claim else {
                return become_("Running", "");
            };
            let Some(claim) = claim.filter(|claim| claim["status"]["phase"] == "Bound") else {
                return;
            };
            let class = text(&claim["spec"]["storageClassName"]);
            let class = api.get("storageclasses", "", &class).unwrap();
            if let Some(words) = class["metadata"]["annotations"][FAILS].as_str() {
                return become_("Failed", words);
            }
            become_("Running", "making the volume");
        }
        Some("Running") if what == "target" => {
            let source = api.get("pods", &namespace, &name.replace("target-abcde", "source"));
            match source {
                Some(source) if source["status"]["phase"] == "Succeeded" => {
                    become_("Succeeded", &format!("{}\n{}", end(false), end(true)));
                }
                _ => become_("Running", &format!("a step\n{}\nwaiting", end(false))),
            }
        }
        Some("Running") if what == "source" => {
            let args = pod["spec"]["containers"][0]["args"].as_array().unwrap();
            let mut words = args.iter().filter_map(Value::as_str);
            let profile = words.find_map(|word| word.strip_prefix("--profile="));
            // Nobody listens for a further source.
            let dials = args.contains(&json!("--peer=10.9.0.1:7700"));
            assert_eq!(dials, profile == Some("random"), "{args:?}");
            let claim = claim.unwrap().unwrap();
            storage::write(api, &namespace, &place(&claim).1, "generated");
            let mut said: Value = serde_json::from_str(&end(true)).unwrap();
            said["profile"] = json!(profile);
            become_("Succeeded", &format!("filling\n{said}\n"));
        }
        Some("Running") => {
            let inputs = api.get("configmaps", &namespace, &name).unwrap();
            let inputs = text(&inputs["data"]["inputs.json"]);
            let said = json!({"schema": "volferry-bench-reports", "table": "a table\n",
                "page": "<html>", "report": serde_json::from_str::<Value>(&inputs).unwrap()});
            become_("Succeeded", &said.to_string());
        }
        _ => {}
    }
}

fn asked() -> Asked {
    Asked {
        id: "1234abcd".to_owned(),
        namespace: "home".to_owned(),
        from_class: "own".to_owned(),
        to_class: "other".to_owned(),
        bytes: 4 << 30,
        mode: VolumeMode::Block,
        placement: Placement::CrossNode,
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

/// A cluster with two storage classes, and things of users in it.
fn cluster(duration: Duration) -> Scene {
    let scene = Scene::new(duration);
    for (name, driver) in [("own", "d.io"), ("other", "e.io")] {
        scene.api.create(
            "storageclasses",
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
                "metadata": {"name": name}, "provisioner": driver}),
        );
    }
    scene.claim("home", "theirs");
    scene
}

fn bench(scene: &Scene, asked: Asked) -> (Arc<Bench>, Arc<Mutex<Vec<String>>>) {
    let steps = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&steps);
    let bench = Bench::new(scene.api.client(), asked, move |step| {
        told.lock().unwrap().push(step.to_owned());
    });
    (Arc::new(bench), steps)
}

/// All that is of the benchmark, or that it should not have left.
fn of_bench(scene: &Scene) -> Vec<String> {
    let mut found = scene.api.inventory();
    found.retain(|shown| shown.contains("volferry-") && !shown.starts_with("events"));
    // They go with their claims.
    found.retain(|shown| !shown.starts_with("persistentvolumes "));
    found
}

async fn run(scene: &Scene, bench: &Bench) -> Result<Outcome, String> {
    let outcome = bench.run().await;
    assert_eq!(bench.clean().await, Vec::<String>::new());
    // Pods of the Job go with it, by Kubernetes.
    for pod in scene.api.all("pods") {
        if pod["metadata"]["ownerReferences"][0]["kind"] == "Job" {
            let (namespace, name) = place(&pod);
            scene.api.remove("pods", &namespace, &name);
        }
    }
    scene
        .until("nothing of it", |scene| {
            let left = of_bench(scene);
            left.iter().all(|one| one.starts_with("leases"))
        })
        .await;
    assert_eq!(scene.phase_of("home", "theirs"), "Bound");
    outcome
}

#[tokio::test(start_paused = true)]
async fn a_benchmark_clones_what_it_made_and_leaves_nothing() {
    let scene = cluster(SHORT);
    let (bench, steps) = bench(&scene, asked());
    let outcome = run(&scene, &bench).await.unwrap();
    assert_eq!((&*outcome.table, &*outcome.page), ("a table\n", "<html>"));
    let inputs = &outcome.report;
    let shapes = inputs["shapes"].as_array().unwrap();
    assert_eq!(shapes.len(), 1);
    assert_eq!(shapes[0]["source"]["end"], "source");
    assert_eq!(inputs["target"]["is_complete"], true);
    assert_eq!(inputs["source_node"], "node-source");
    let clones = shapes[0]["clones"].as_array().unwrap();
    assert_eq!(clones.len(), 2);
    for clone in clones {
        assert_eq!(clone["receipt"]["digest"], "11".repeat(32));
        assert!(clone["object_seconds"].as_f64() >= Some(SHORT.as_secs_f64()));
        assert_eq!(clone["nodes"], json!(["node-source", "node-target"]));
    }
    assert_eq!(inputs["warnings"], json!([]));
    let steps = steps.lock().unwrap().join("\n");
    assert!(steps.contains("clone 2 of 2"), "{steps}");
}

#[tokio::test(start_paused = true)]
async fn profiles_are_cloned_one_after_the_other_from_one_claim() {
    let several = |repeats| Asked {
        profiles: ["random", "vm", "sparse=0.1"].map(str::to_owned).into(),
        repeats,
        ..asked()
    };
    let measure = async |lasts, repeats| {
        let scene = cluster(lasts);
        let (bench, _steps) = bench(&scene, several(repeats));
        run(&scene, &bench).await.unwrap().report
    };
    // Of each shape: its profile and how many clones it has.
    let shapes = |report: &Value| -> Vec<(String, usize)> {
        let shapes = report["shapes"].as_array().unwrap().iter();
        let each = shapes.map(|shape| {
            let clones = shape["clones"].as_array().unwrap().len();
            (text(&shape["source"]["profile"]), clones)
        });
        each.collect()
    };
    let all = |clones| {
        let names = ["random", "vm", "sparse=0.1"];
        names.map(|name| (name.to_owned(), clones)).to_vec()
    };
    let report = measure(SHORT, 2).await;
    assert_eq!(shapes(&report), all(2));
    // Three times filled, and six clones.
    assert_eq!(report["budget"]["spent_bytes"], 9 * (5_i64 << 30));
    assert_eq!(report["warnings"], json!([]));

    // Each has its part of the budget, of which a tenth is kept: two clones of 100 s in 270, and the
    // last has what the others left.
    let report = measure(Duration::from_secs(100), 50).await;
    let mut wanted = all(2);
    wanted[2].1 = 3;
    assert_eq!(shapes(&report), wanted, "{}", report["warnings"]);

    // What comes too late leaves the rest as it was.
    let report = measure(Duration::from_secs(500), 50).await;
    assert_eq!(shapes(&report), all(1)[..1]);
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("vm has no part in this"), "{warnings}");
}

#[tokio::test(start_paused = true)]
async fn everything_belongs_to_the_job_that_kubernetes_removes() {
    let scene = cluster(SHORT);
    let (bench, _steps) = bench(&scene, asked());
    let running = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move { bench.run().await }
    });
    scene
        .until("a clone", |scene| !scene.api.all("volumeclones").is_empty())
        .await;
    // As by a kill: nobody cleans up.
    running.abort();
    let job = scene.api.all("jobs").remove(0);
    assert!(job["spec"]["ttlSecondsAfterFinished"].is_u64());
    let plurals = [
        "configmaps",
        "networkpolicies",
        "persistentvolumeclaims",
        "pods",
        "secrets",
        "volumeclones",
    ];
    let mut seen = 0;
    for object in plurals.iter().flat_map(|plural| scene.api.all(plural)) {
        let labels = &object["metadata"]["labels"];
        let is_ours =
            labels[BENCH_LABEL] == "1234abcd" && labels["volferry.io/clone-uid"].is_null();
        if is_ours {
            seen += 1;
            let owner = &object["metadata"]["ownerReferences"][0];
            assert_eq!(
                owner["uid"], job["metadata"]["uid"],
                "{}",
                object["metadata"]["name"]
            );
        }
    }
    // The clone, its target, the source's claim, two Secrets, a policy.
    assert!(seen >= 6, "{seen}");
    // Ctrl-C cleans up, from any point.
    assert_eq!(bench.clean().await, Vec::<String>::new());
    scene
        .until("no clone", |scene| scene.api.all("volumeclones").is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_is_told_and_nothing_stays() {
    // A class that isn't there.
    let scene = cluster(SHORT);
    let mut wrong = asked();
    wrong.to_class = "none".to_owned();
    let (bench_, _steps) = bench(&scene, wrong);
    let error = run(&scene, &bench_).await.unwrap_err();
    assert!(error.contains("no storage class none"), "{error}");

    // A pod that fails.
    let class = json!({"metadata": {"annotations": {FAILS: "the volume is broken"}}});
    scene.api.change("storageclasses", "", "own", &class);
    let (bench_, _steps) = bench(&scene, asked());
    let error = run(&scene, &bench_).await.unwrap_err();
    assert!(error.contains("the volume is broken"), "{error}");
    let class = json!({"metadata": {"annotations": {FAILS: null}}});
    scene.api.change("storageclasses", "", "own", &class);

    // Something that may not be made.
    scene
        .api
        .refuse("persistentvolumeclaims", Some("exceeded quota: small"));
    let (bench_, _steps) = bench(&scene, asked());
    let error = run(&scene, &bench_).await.unwrap_err();
    assert!(error.contains("exceeded quota: small"), "{error}");
    scene.api.refuse("persistentvolumeclaims", None);

    // A pod that nobody starts, until the budget is spent.
    scene.running.abort();
    let (bench_, _steps) = bench(&scene, asked());
    let error = bench_.run().await.unwrap_err();
    assert!(error.contains("the budget is spent; target pod"), "{error}");
    assert_eq!(bench_.clean().await, Vec::<String>::new());
    scene.end();
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_spent_ends_it_with_what_was_measured() {
    let scene = cluster(Duration::from_secs(300));
    let mut many = asked();
    many.repeats = 50;
    let (bench_, _steps) = bench(&scene, many);
    let outcome = run(&scene, &bench_).await.unwrap();
    let clones = &outcome.report["shapes"][0]["clones"];
    let clones = clones.as_array().unwrap().len();
    assert_eq!(clones, 2, "of 900 s a tenth is kept, and each takes 300");

    // Not even one.
    let scene_ = cluster(Duration::from_secs(3000));
    let (bench_, _steps) = bench(&scene_, asked());
    let error = run(&scene_, &bench_).await.unwrap_err();
    assert!(
        error.contains("budget is spent") || error.contains("DeadlineExceeded"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_made_without_an_answer_is_removed_too() {
    for number in 0..12 {
        let scene = cluster(SHORT);
        scene.controller.abort();
        let calls = scene.api.calls().len();
        scene.api.fail(calls + number, Fault::AnswerLost);
        let (bench_, _steps) = bench(&scene, asked());
        // The controller is gone: it can't come further than to the first clone.
        let limit = tokio::time::timeout(Duration::from_secs(60), bench_.run()).await;
        assert!(limit.map_or(true, |outcome| outcome.is_err()));
        assert_eq!(bench_.clean().await, Vec::<String>::new());
        // Pods have their grace period.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(of_bench(&scene), Vec::<String>::new(), "call {number}");
        scene.running.abort();
    }
}
