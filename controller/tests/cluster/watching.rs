//! What rests on watches: that they may fail, be behind, and that they have clones looked at.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use volferry_controller::cluster::Cluster;
use volferry_controller::metrics::Metrics;
use volferry_controller::reconcile::{Context, Limits};

use super::api::{FakeApi, Fault};
use super::nodes::Nodes;
use super::strategies::backend;
use super::{
    LIMITS, SHORT, SHORTEST, Scene, at_home, away, cross_namespace_for, merged, nodes, populator,
    settings, uid,
};

#[tokio::test(start_paused = true)]
async fn each_watch_fails_in_turn_and_nothing_changes() {
    let make = || {
        let scene = cross_namespace_for(SHORTEST);
        scene.api.know_snapshots();
        scene
    };
    let clean = make();
    clean.until_phase("clone", "Ready").await;
    let watches = clean.api.watches();
    clean.end();
    let faults = [
        Fault::Refused(410),
        Fault::Refused(429),
        Fault::Refused(500),
        Fault::AnswerLost,
        Fault::Hangs,
    ];
    let mut kinds = std::collections::BTreeSet::new();
    for (number, watch) in watches.iter().enumerate() {
        // The first of each kind in each way, others in one of them, in turn.
        let is_first = kinds.insert(watch.what.clone());
        let (skipped, taken) = if is_first {
            (0, faults.len())
        } else {
            (number % faults.len(), 1)
        };
        for &fault in faults.iter().skip(skipped).take(taken) {
            println!("{fault:?} of watch {number}, {watch:?}");
            let scene = make();
            scene.api.fail_watch(number, fault);
            scene.until_phase("clone", "Ready").await;
            scene.until_clean().await;
            assert_eq!(scene.status("clone")["attempts"]["target"]["failures"], 0);
            scene.end();
        }
    }
    assert!(kinds.len() >= 9, "{kinds:?}");
}

/// Watches that bring each event late, and many events later still.
const LAG: Duration = Duration::from_millis(300);

#[tokio::test(start_paused = true)]
async fn what_is_not_seen_yet_is_not_done_again() {
    for scene in [cross_namespace_for(SHORT), backend(&json!({}))] {
        scene.api.lag(LAG);
        if scene.status("clone").is_null() && scene.api.all("volumeclones").is_empty() {
            scene.consent();
            scene.clone("clone", &away());
        }
        scene.until_phase("clone", "Ready").await;
        scene.until_clean().await;
        tokio::time::sleep(SHORT).await;
        let calls = scene.api.calls();
        let writes: Vec<_> = calls.iter().filter(|call| call.is_write()).collect();
        assert!(writes.len() < 30, "{writes:#?}");
        let again: Vec<_> = writes
            .iter()
            .filter(|call| ["create", "delete"].contains(&call.verb) && call.what != "events")
            .filter(|call| writes.iter().filter(|other| other == call).count() > 1)
            .collect();
        assert!(again.is_empty(), "{again:#?}");
        scene.end();
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_is_deleted_while_watches_are_behind_leaves_nothing() {
    let mut moment = Duration::ZERO;
    while moment < SHORTEST * 2 {
        let scene = cross_namespace_for(SHORTEST);
        scene.api.lag(LAG);
        tokio::time::sleep(moment).await;
        scene.api.delete("volumeclones", "home", "clone");
        let is_gone = |scene: &Scene| scene.api.all("volumeclones").is_empty();
        scene.until("its end", is_gone).await;
        tokio::time::sleep(SHORT).await;
        assert_eq!(scene.leftovers(), Vec::<String>::new(), "after {moment:?}");
        scene.end();
        moment += Duration::from_millis(203);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_mended_just_now_fails_nothing() {
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.claim("home", "to");
    tokio::time::sleep(SHORT).await;
    scene.api.lag(LAG);
    // Of the claim's end its watch tells after all this, of the clone another one at once.
    for number in 0..3 {
        let noted = json!({"metadata": {"annotations": {"note": number.to_string()}}});
        scene
            .api
            .change("persistentvolumeclaims", "home", "to", &noted);
    }
    scene.api.delete("persistentvolumeclaims", "home", "to");
    let template = json!({"target": {"claimTemplate": {"metadata": {"name": "to"}}}});
    scene.clone("clone", &template);
    let is_over = |scene: &Scene| {
        let phase = scene.status("clone")["phase"].clone();
        phase == "Ready" || phase == "Failed"
    };
    scene.until("its end", is_over).await;
    assert_eq!(
        scene.status("clone")["phase"],
        "Ready",
        "{}",
        scene.status("clone")
    );
}

/// How long it takes until the clone goes on.
async fn until_it_goes_on(scene: &Scene) -> Duration {
    let began = Instant::now();
    let goes_on = |scene: &Scene| {
        let phase = scene.status("clone")["phase"].clone();
        phase == "Preparing" || phase == "Cloning"
    };
    scene.until("its turn", goes_on).await;
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn what_a_clone_waits_for_has_it_looked_at() {
    const SOON: Duration = Duration::from_secs(1);
    // A pod that ends.
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.claim("home", "to");
    scene.user_pod("home", "from");
    scene.clone("clone", &json!({}));
    let waits = |reason: &'static str| {
        move |scene: &Scene| {
            let conditions = scene.status("clone")["conditions"].clone();
            conditions.to_string().contains(reason)
        }
    };
    scene.until("words", waits("SourceInUse")).await;
    tokio::time::sleep(SHORT).await;
    let before = scene.api.calls().len();
    tokio::time::sleep(SHORT * 10).await;
    // Kinds that the cluster doesn't know are looked for now and then.
    let idle = scene.api.calls().split_off(before);
    assert!(idle.iter().all(|call| call.verb == "list"), "{idle:#?}");
    scene.api.delete("pods", "home", "database");
    assert!(until_it_goes_on(&scene).await < SOON);
    scene.end();
    // A claim that is made.
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.clone("clone", &json!({}));
    scene.until("words", waits("TargetNotFound")).await;
    tokio::time::sleep(SHORT).await;
    scene.claim("home", "to");
    assert!(until_it_goes_on(&scene).await < SOON);
    scene.end();
    // A grant.
    let scene = Scene::new(SHORT);
    scene.claim("away", "from");
    scene.clone("clone", &away());
    scene.until("words", waits("NotGranted")).await;
    tokio::time::sleep(SHORT).await;
    scene.consent();
    assert!(until_it_goes_on(&scene).await < SOON);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_may_not_know_grants_or_snapshots_until_later() {
    let scene = Scene::new(SHORT);
    scene.api.forget_grants();
    scene.claim("home", "from");
    scene.claim("away", "from");
    populator::template(&scene, &json!({}));
    populator::referring(&scene, "to");
    populator::until_ready(&scene, 1).await;
    scene.end();
    let scene = Scene::new(SHORT);
    tokio::time::sleep(SHORT).await;
    scene.backend(&json!({}));
    tokio::time::sleep(Duration::from_secs(120)).await;
    let spec = json!({"target": {"claimTemplate": {"metadata": {"name": "to"}}}});
    scene.clone("clone", &merged(spec, &json!({"strategy": "Snapshot"})));
    scene.until_phase("clone", "Ready").await;
    assert_eq!(scene.status("clone")["strategy"], "Snapshot");
    scene.until_clean().await;
}

#[tokio::test(start_paused = true)]
async fn consent_that_was_taken_back_counts_though_no_watch_told() {
    let scene = cross_namespace_for(SHORT);
    scene.api.mute("referencegrants");
    scene
        .until("a target", |scene| !scene.api.all("pods").is_empty())
        .await;
    scene.api.delete("referencegrants", "away", "grant");
    let is_refused = |scene: &Scene| {
        scene.status("clone")["conditions"]
            .to_string()
            .contains("NotGranted")
    };
    scene.until("a refusal", is_refused).await;
    tokio::time::sleep(SHORT * 10).await;
    let pods = scene.api.all("pods");
    assert!(
        pods.iter()
            .all(|pod| pod["metadata"]["namespace"] == "home"),
        "{pods:#?}"
    );
}

fn at_most(overall: usize, per_node: usize) -> Limits {
    Limits {
        overall,
        per_namespace: overall,
        per_node,
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_for_something_else_takes_nobodys_place() {
    let mut scene = Scene::new(SHORT);
    scene.limit(at_most(1, 1));
    scene.claim("away", "from");
    scene.claim("home", "from");
    scene.claim("home", "to");
    scene.clone("refused", &away());
    let refused =
        |scene: &Scene| scene.status("refused")["conditions"][0]["reason"] == "NotGranted";
    scene.until("a refusal", refused).await;
    scene.clone("clone", &json!({}));
    scene.until_phase("clone", "Ready").await;
}

#[tokio::test(start_paused = true)]
async fn few_clones_run_on_one_node() {
    let mut scene = Scene::new(SHORT);
    scene.limit(at_most(100, 2));
    // They are attached to a node, so their agents have to be there.
    let names: Vec<_> = (0..5).map(|number| number.to_string()).collect();
    for name in &names {
        scene.claim("home", name);
        scene.user_pod_named(&format!("database-{name}"), "home", name);
        let spec = json!({"source": {"persistentVolumeClaim": {"name": name}},
            "target": {"claimTemplate": {"metadata": {"name": format!("to-{name}")}}},
            "inUsePolicy": "Allow"});
        scene.clone(name, &spec);
    }
    let (mut most, mut words) = (0, String::new());
    let is_ready = |scene: &Scene| {
        let mut names = names.iter();
        names.all(|name| scene.status(name)["phase"] == "Ready")
    };
    while !is_ready(&scene) {
        let pods = scene.api.all("pods");
        let agents = pods.iter().filter(|pod| {
            pod["metadata"]["labels"]["volferry.io/end"] == "target"
                && pod["status"]["phase"] != "Succeeded"
        });
        most = most.max(agents.count());
        for name in &names {
            let status = scene.status(name);
            if status["conditions"].to_string().contains("Queued") {
                words = status["conditions"].to_string();
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(most, 2);
    assert!(words.contains("2 clones run on node node-7"), "{words}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_source_namespace_is_never_taken_for_the_target() {
    let scene = cross_namespace_for(SHORT);
    scene.until_phase("clone", "Cloning").await;
    let uid = uid(&scene);
    let is_whole = |scene: &Scene| scene.status("clone")["phase"] == "Ready";
    let receipt = json!({"receipt_version": 1, "clone_id": uid, "digest": "22".repeat(32)});
    for name in ["forged".to_owned(), format!("volferry-{uid}-target")] {
        scene.api.create(
            "pods",
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "away",
                    "labels": {"volferry.io/clone-uid": uid, "volferry.io/end": "target"},
                    "annotations": {"volferry.io/clone": "home/clone"}},
                "spec": {"containers": [], "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "none"}}]},
                "status": {"phase": "Failed", "podIP": "10.9.9.9", "containerStatuses": [{
                    "name": "target", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                    "state": {"terminated": {"exitCode": 0, "message": receipt.to_string()}}}]},
            }),
        );
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!is_whole(&scene));
    scene.until("its end", is_whole).await;
    let status = scene.status("clone");
    assert_eq!(status["receipt"]["digest"], "11".repeat(32));
    assert_eq!(status["attempts"]["target"]["failures"], 0, "{status}");
    let is_gone = |scene: &Scene| {
        let pods = scene.api.all("pods");
        pods.iter()
            .all(|pod| pod["metadata"]["namespace"] == "away")
    };
    scene.until("an empty namespace", is_gone).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_shows_a_receipt_of_its_own_is_not_believed() {
    let scene = cross_namespace_for(SHORT);
    scene.until_phase("clone", "Cloning").await;
    let uid = uid(&scene);
    let source = format!("volferry-{uid}-source");
    let of_source = |scene: &Scene| {
        let pod = scene.api.get("pods", "away", &source);
        pod.map(|pod| nodes::text(&pod["metadata"]["uid"]))
    };
    let first = of_source(&scene);
    assert!(first.is_some());
    let forged = nodes::receipt(&uid).replace(&"11".repeat(32), &"22".repeat(32));
    let ended = json!({"exitCode": 0, "message": forged, "finishedAt": super::now().to_string()});
    let status = json!({"status": {"phase": "Succeeded", "containerStatuses": [{
        "name": "source", "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": {"terminated": ended}}]}});
    scene.api.change("pods", "away", &source, &status);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.status("clone")["phase"], "Cloning");
    scene.until_phase("clone", "Ready").await;
    let status = scene.status("clone");
    assert_eq!(status["receipt"]["digest"], "11".repeat(32));
    assert_eq!(status["attempts"]["source"]["failures"], 1, "{status}");
}

/// What a clone needs and has left that ended long ago: itself, and a claim that names it.
fn ended_clones(scene: &Scene, count: usize) {
    for number in 0..count {
        let name = format!("old-{number}");
        scene.api.create(
            "volumeclones",
            json!({
                "apiVersion": "volferry.io/v1alpha1", "kind": "VolumeClone",
                "metadata": {"name": name, "namespace": "home", "finalizers": ["volferry.io/cleanup"]},
                "spec": {"source": {"persistentVolumeClaim": {"name": "from"}},
                    "target": {"persistentVolumeClaim": {"name": name}}},
                "status": {"phase": "Ready", "strategy": "CsiClone"},
            }),
        );
        scene.api.create(
            "persistentvolumeclaims",
            json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": "home",
                    "annotations": {"volferry.io/clone": format!("home/{name}")}},
                "spec": {"accessModes": ["ReadWriteOnce"]},
                "status": {"phase": "Bound"},
            }),
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_begins_where_very_many_have_ended() {
    let mut scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.claim("home", "to");
    ended_clones(&scene, 800);
    scene.replace_controller();
    scene.clone("clone", &json!({}));
    scene.until_phase("clone", "Ready").await;
}

#[tokio::test(start_paused = true)]
async fn what_only_bears_the_labels_of_a_clone_is_left_alone() {
    let scene = Scene::new(SHORT);
    scene.backend(&json!({}));
    scene.clone(
        "clone",
        &merged(away(), &json!({"source": {"namespace": "home"}})),
    );
    scene.until_phase("clone", "Ready").await;
    let labels = json!({"volferry.io/clone-uid": uid(&scene), "volferry.io/end": "target"});
    for (plural, kind) in [
        ("persistentvolumeclaims", "PersistentVolumeClaim"),
        ("configmaps", "ConfigMap"),
        ("pods", "Pod"),
    ] {
        scene.api.create(
            plural,
            json!({"apiVersion": "v1", "kind": kind, "spec": {"containers": []},
                "metadata": {"name": "copy", "namespace": "home", "labels": labels}}),
        );
    }
    scene.api.delete("volumeclones", "home", "clone");
    scene
        .until("its end", |scene| scene.api.all("volumeclones").is_empty())
        .await;
    for plural in ["persistentvolumeclaims", "configmaps", "pods"] {
        let copy = scene.api.get(plural, "home", "copy");
        let copy = copy.unwrap_or_else(|| panic!("{plural}: it was nobody's"));
        assert_eq!(
            copy["metadata"]["deletionTimestamp"],
            json!(null),
            "{plural}"
        );
    }
    assert!(scene.has_claim("home", "to"));
}

#[tokio::test(start_paused = true)]
async fn pods_that_only_bear_labels_take_nobodys_place() {
    let mut scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.claim("home", "to");
    for number in 0..40 {
        scene.api.create(
            "pods",
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("idle-{number}"), "namespace": "away",
                    "labels": {"volferry.io/clone-uid": format!("invented-{number}"), "volferry.io/end": "other"},
                    "annotations": {"volferry.io/clone": format!("home/invented-{number}")}},
                "spec": {"nodeName": "node-7", "containers": [], "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "none"}}]},
                "status": {"phase": "Running"},
            }),
        );
    }
    // The source is attached to the node where they are, and that has room for one.
    scene.user_pod("home", "from");
    scene.limit(Limits {
        overall: 2,
        per_namespace: 2,
        per_node: 1,
    });
    scene.clone("clone", &json!({"inUsePolicy": "Allow"}));
    scene.until_phase("clone", "Ready").await;
}

#[tokio::test(start_paused = true)]
async fn a_quota_for_secrets_is_told() {
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.claim("home", "to");
    scene.api.refuse("secrets", Some("exceeded quota: secrets"));
    scene.clone("clone", &json!({}));
    scene
        .until("its words", |scene| {
            let conditions = scene.status("clone")["conditions"].to_string();
            conditions.contains("QuotaExceeded")
                && conditions.contains("credentials of both agents")
        })
        .await;
    scene.api.refuse("secrets", None);
    scene.until_phase("clone", "Ready").await;
}

#[tokio::test(start_paused = true)]
async fn who_comes_for_a_moment_fails_nothing_however_often() {
    let scene = Scene::new(SHORT * 10);
    scene.claim("home", "from");
    scene.claim("home", "to");
    scene.clone("clone", &json!({"inUsePolicy": "Fail"}));
    scene.until_phase("clone", "Cloning").await;
    for _ in 0..12 {
        scene.user_pod("home", "from");
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.api.remove("pods", "home", "database");
        tokio::time::sleep(Duration::from_secs(3)).await;
    }
    scene.until_phase("clone", "Ready").await;
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_bytes_travel_is_seen() {
    for (policy, phase) in [("Wait", "Ready"), ("Fail", "Failed")] {
        let scene = Scene::new(SHORT * 10);
        scene.claim("home", "from");
        scene.claim("home", "to");
        scene.clone("clone", &json!({"inUsePolicy": policy}));
        let says = |reason: &'static str| {
            move |scene: &Scene| {
                let conditions = scene.status("clone")["conditions"].to_string();
                conditions.contains(reason)
            }
        };
        scene.until("travel", says("Transferring")).await;
        scene.user_pod("home", "from");
        let began = Instant::now();
        scene.until("words", says("SourceInUse")).await;
        assert!(began.elapsed() < SHORT, "{:?}", began.elapsed());
        let events = scene.api.all("events").into_iter();
        let mut told = events.filter(|event| event["reason"] == "SourceInUse");
        assert!(told.any(|event| event["type"] == "Warning"));
        scene.until_phase("clone", phase).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_can_not_be_asked_is_told_and_asked_more_rarely() {
    let scene = at_home(Duration::from_secs(1800));
    scene.nodes.silence(true);
    let reason = |scene: &Scene| {
        let conditions = scene.status("clone")["conditions"].clone();
        let mut conditions = conditions
            .as_array()
            .cloned()
            .unwrap_or_default()
            .into_iter();
        let found = conditions.find(|it| it["type"] == "Progressing");
        found
            .map(|found| found["reason"].clone())
            .unwrap_or_default()
    };
    scene
        .until("words", |scene| reason(scene) == "ProgressUnknown")
        .await;
    let told = scene.api.all("events");
    assert!(
        told.iter()
            .any(|event| event["reason"] == "ProgressUnknown")
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (asked, writes) = (scene.nodes.questions(), writes(&scene));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let asked = scene.nodes.questions() - asked;
    assert!(
        (5..=11).contains(&asked),
        "asked {asked} times in ten minutes"
    );
    assert_eq!(self::writes(&scene), writes, "it is told once");
    scene.nodes.silence(false);
    scene
        .until("progress", |scene| reason(scene) == "Transferring")
        .await;
    assert!(scene.status("clone")["progress"]["durableBytes"].as_i64() > Some(1 << 28));
    scene.nodes.silence(true);
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
}

/// Also of one that was started with none, and of one that is lifted.
#[tokio::test(start_paused = true)]
async fn a_limit_that_is_changed_reaches_the_agents_while_bytes_travel() {
    let scene = at_home(Duration::from_secs(600));
    scene
        .until("the first word", |scene| scene.nodes.limits() == [0])
        .await;
    for (limit, bytes) in [
        (json!("100Mi"), 100 << 20),
        (json!("1M"), 1_000_000),
        (Value::Null, 0),
    ] {
        let changed = json!({"spec": {"transport": {"bandwidthLimit": limit}}});
        scene.api.change("volumeclones", "home", "clone", &changed);
        let changed_at = Instant::now();
        scene
            .until("it is told", |scene| scene.nodes.limits() == [bytes])
            .await;
        assert!(changed_at.elapsed() < Duration::from_secs(10));
    }
    scene.until_phase("clone", "Ready").await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_knows_no_limit_is_asked_once_for_each() {
    let scene = at_home(Duration::from_secs(120));
    scene.nodes.age();
    let seconds = Duration::from_secs;
    scene
        .until("the first", |scene| scene.nodes.refusals() == 1)
        .await;
    tokio::time::sleep(seconds(60)).await;
    assert_eq!(scene.nodes.refusals(), 1);
    let changed = json!({"spec": {"transport": {"bandwidthLimit": "100Mi"}}});
    scene.api.change("volumeclones", "home", "clone", &changed);
    scene.until_phase("clone", "Ready").await;
    assert_eq!(scene.nodes.refusals(), 2);
}

fn writes(scene: &Scene) -> usize {
    let calls = scene.api.calls();
    calls.iter().filter(|call| call.is_write()).count()
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_never_learns_what_there_is_says_so() {
    let api = FakeApi::new();
    // Each call is refused, so no watch can begin.
    for number in 0..100_000 {
        api.fail(number, Fault::Refused(500));
    }
    let nodes = Nodes::new(api.clone(), SHORT);
    let metrics = Arc::new(Metrics::new());
    let cluster = Cluster::new(api.client(), "test".to_owned());
    let context =
        Context::new(cluster, nodes, settings(), LIMITS).with_metrics(Arc::clone(&metrics));
    let running = tokio::spawn(Arc::new(context).run(std::future::pending()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(metrics.is_lost(), None);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(metrics.is_lost().is_some());
    running.abort();
}

/// Each pod takes a second to become ready, and nodes look four times a second: the rest is ours. By the paused clock,
/// so however busy the machine is.
#[tokio::test(start_paused = true)]
async fn a_clone_without_bytes_takes_little_more_than_its_pods() {
    let scene = Scene::new(Duration::ZERO);
    scene.claim("home", "from");
    scene.claim("home", "to");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let applied = Instant::now();
    scene.clone("clone", &json!({}));
    scene.until_phase("clone", "Ready").await;
    let pods = Duration::from_secs(2);
    assert!(applied.elapsed() < pods + Duration::from_secs(2));
}
