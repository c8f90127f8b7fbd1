//! The ways of the backend, to their end: its clones and snapshots, in one namespace and into another,
//! and snapshots that agents read.

use serde_json::{Value, json};

use super::storage::{self, REFUSES_CLONES};
use super::{Limits, SHORT, SHORTEST, Scene, away, each_fault, merged};

/// A cluster whose driver clones, of which there are volumes in `home` and `away`.
pub(crate) fn backend(change: &Value) -> Scene {
    let scene = Scene::new(SHORT);
    scene.backend(change);
    scene
}

fn template(more: &Value) -> Value {
    let spec = json!({"target": {"claimTemplate": {"metadata": {"name": "to"}}}});
    merged(spec, more)
}

fn snapshot_of_from(scene: &Scene, namespace: &str) {
    scene.api.create("volumesnapshots", json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": "shot", "namespace": namespace},
        "spec": {"volumeSnapshotClassName": "shots", "source": {"persistentVolumeClaimName": "from"}},
    }));
}

fn made_from(scene: &Scene) -> Value {
    let target = scene
        .api
        .get("persistentvolumeclaims", "home", "to")
        .unwrap();
    target["spec"]["dataSource"]["kind"].clone()
}

/// Waits for the end, and looks what the target holds.
async fn until_filled(scene: &Scene, strategy: &str, content: &str) {
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    let status = scene.status("clone");
    assert_eq!(status["strategy"], strategy, "{status}");
    assert_eq!(
        storage::content(&scene.api, "home", "to").as_deref(),
        Some(content)
    );
    let is_proven = strategy == "HostAssisted";
    assert_eq!(status["receipt"].is_object(), is_proven);
    // The volume stays the target's.
    tokio::time::sleep(SHORT).await;
    assert_eq!(scene.phase_of("home", "to"), "Bound");
}

#[tokio::test(start_paused = true)]
async fn the_backend_clones_within_a_namespace() {
    let scene = backend(&json!({}));
    scene.clone("clone", &template(&json!({})));
    until_filled(&scene, "CsiClone", "content of home/from").await;
    assert_eq!(made_from(&scene), "PersistentVolumeClaim");
    assert_eq!(scene.api.all("pods"), Vec::<Value>::new());
}

#[tokio::test(start_paused = true)]
async fn the_backend_clones_into_another_namespace() {
    let scene = backend(&json!({}));
    scene.clone("clone", &away());
    let waits = |scene: &Scene| scene.status("clone")["conditions"][0]["reason"] == "NotGranted";
    scene.until("a refusal", waits).await;
    assert_eq!(scene.leftovers(), Vec::<String>::new());
    scene.consent();
    until_filled(&scene, "CsiClone", "content of away/from").await;
    assert_eq!(made_from(&scene), Value::Null, "it took over a volume");
    let volumes = scene.api.all("persistentvolumes");
    let kept = |volume: &Value| volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
    assert!(volumes.iter().all(kept));
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_taken_where_the_driver_cannot_clone() {
    let scene = backend(&json!({"metadata": {"annotations": {"volferry.io/csi-clone": "false"}}}));
    scene.clone("clone", &template(&json!({})));
    until_filled(&scene, "Snapshot", "content of home/from").await;
    assert_eq!(made_from(&scene), "VolumeSnapshot");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_restored_into_another_namespace() {
    let scene = backend(&json!({}));
    snapshot_of_from(&scene, "away");
    scene.consent();
    let spec = json!({"source": {"namespace": "away", "volumeSnapshot": {"name": "shot"}}});
    scene.clone("clone", &template(&spec));
    until_filled(&scene, "Snapshot", "content of away/from").await;
    assert_eq!(made_from(&scene), Value::Null);
    let shots = scene.api.all("volumesnapshots");
    assert_eq!(shots.len(), 1, "the user's own stays");
}

#[tokio::test(start_paused = true)]
async fn agents_read_a_snapshot_by_a_claim_that_goes() {
    let scene = backend(&json!({}));
    snapshot_of_from(&scene, "home");
    scene
        .until("a snapshot", |scene| {
            scene.api.all("volumesnapshots")[0]["status"]["readyToUse"] == true
        })
        .await;
    storage::write(&scene.api, "home", "from", "written later");
    let spec = json!({"source": {"volumeSnapshot": {"name": "shot"}}, "strategy": "HostAssisted"});
    scene.clone("clone", &template(&spec));
    until_filled(&scene, "HostAssisted", "content of home/from").await;
}

#[tokio::test(start_paused = true)]
async fn a_source_in_use_is_read_as_a_snapshot() {
    let scene = backend(&json!({}));
    scene.consent();
    scene.user_pod("away", "from");
    let spec = json!({"source": {"namespace": "away"}, "strategy": "HostAssisted",
        "inUsePolicy": "Snapshot"});
    scene.clone("clone", &template(&spec));
    until_filled(&scene, "HostAssisted", "content of away/from").await;
}

#[tokio::test(start_paused = true)]
async fn what_the_backend_refuses_agents_do() {
    let refusal =
        json!({"metadata": {"annotations": {REFUSES_CLONES: "cloning is not supported"}}});
    for namespace in ["home", "away"] {
        let scene = backend(&refusal);
        scene.consent();
        scene.api.delete("volumesnapshotclasses", "", "shots");
        scene.clone(
            "clone",
            &template(&json!({"source": {"namespace": namespace}})),
        );
        let content = format!("content of {namespace}/from");
        until_filled(&scene, "HostAssisted", &content).await;
        let verdict = scene.status("clone")["considered"][0].clone();
        assert_eq!(verdict["message"], "cloning is not supported");
    }
}

/// A clone whose target waits for its first pod, and which the driver will refuse then, in these words.
async fn refused_with_its_first_pod(words: &str) -> Scene {
    let scene = backend(&json!({"volumeBindingMode": "WaitForFirstConsumer",
        "metadata": {"annotations": {REFUSES_CLONES: words}}}));
    scene.api.delete("volumesnapshotclasses", "", "shots");
    scene.clone("clone", &template(&json!({})));
    let waits = |scene: &Scene| scene.progressing("clone")["reason"] == "WaitsForConsumer";
    scene.until("a wait for a pod", waits).await;
    scene
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_its_claim_gets_nothing_that_is_empty() {
    let scene = refused_with_its_first_pod("cloning is not supported").await;

    // The driver refuses when the pod is there, and the pod would start on whatever is bound to the claim.
    scene.user_pod("home", "to");
    let is_held = |scene: &Scene| scene.progressing("clone")["reason"] == "TargetInUse";
    scene.until("a word of the pod", is_held).await;
    assert_ne!(scene.phase_of("home", "to"), "Bound");

    scene.api.delete("pods", "home", "database");
    until_filled(&scene, "HostAssisted", "content of home/from").await;
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_succeeds_when_it_was_given_up_is_not_overwritten() {
    let scene = refused_with_its_first_pod("cloning is not supported now").await;

    // The controller learns of the refusal, and not yet that it was the last one.
    scene.api.mute("persistentvolumeclaims");
    scene.user_pod("home", "to");
    storage::tick(&scene.api);
    let willing = json!({"metadata": {"annotations": {REFUSES_CLONES: null}}});
    scene.api.change("storageclasses", "", "own", &willing);
    storage::tick(&scene.api);
    storage::tick(&scene.api);
    assert_eq!(scene.phase_of("home", "to"), "Bound");
    let gives_up = |scene: &Scene| scene.status("clone")["strategy"] == "HostAssisted";
    scene.until("another way", gives_up).await;
    storage::write(&scene.api, "home", "to", "written by the pod");
    scene.api.unmute();

    scene.until_phase("clone", "Ready").await;
    scene.api.delete("pods", "home", "database");
    tokio::time::sleep(SHORT * 3).await;
    let written = Some("written by the pod".to_owned());
    assert_eq!(storage::content(&scene.api, "home", "to"), written);
    assert_eq!(scene.status("clone")["strategy"], "CsiClone");
    scene.api.delete("volumeclones", "home", "clone");
    scene
        .until("its end", |scene| scene.api.all("volumeclones").is_empty())
        .await;
    assert_eq!(storage::content(&scene.api, "home", "to"), written);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_filled_while_nobody_looks_outlives_its_clone() {
    let mut scene = backend(&json!({"volumeBindingMode": "WaitForFirstConsumer"}));
    scene.clone("clone", &template(&json!({"deadlineSeconds": 60})));
    scene.until_phase("clone", "Failed").await;
    scene.controller.abort();
    scene.user_pod("home", "to");
    tokio::time::sleep(SHORT).await;
    assert_eq!(scene.phase_of("home", "to"), "Bound");
    storage::write(&scene.api, "home", "to", "written by the pod");
    scene.api.delete("pods", "home", "database");
    scene.api.delete("volumeclones", "home", "clone");
    scene.replace_controller();
    scene
        .until("its end", |scene| scene.api.all("volumeclones").is_empty())
        .await;
    tokio::time::sleep(SHORT).await;
    let written = Some("written by the pod".to_owned());
    assert_eq!(storage::content(&scene.api, "home", "to"), written);
}

#[tokio::test(start_paused = true)]
async fn a_refused_clone_is_not_held_against_the_snapshot() {
    let refusal =
        json!({"metadata": {"annotations": {REFUSES_CLONES: "cloning is not supported"}}});
    let scene = backend(&refusal);
    scene.consent();
    scene.clone("clone", &away());
    until_filled(&scene, "Snapshot", "content of away/from").await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_no_pod_would_ever_bring_about_is_not_asked_for() {
    let scene = backend(&json!({"volumeBindingMode": "WaitForFirstConsumer"}));
    scene.consent();
    scene.clone("clone", &away());
    until_filled(&scene, "HostAssisted", "content of away/from").await;
    let verdict = scene.status("clone")["considered"][0].clone();
    assert_eq!(verdict["reason"], "WaitsForConsumer");
}

#[tokio::test(start_paused = true)]
async fn a_clone_by_the_backend_that_is_deleted_leaves_nothing() {
    let mut moment = std::time::Duration::ZERO;
    let mut ends = (0, 0);
    while moment < SHORTEST {
        let scene = backend(&json!({}));
        scene.consent();
        scene.clone("clone", &away());
        tokio::time::sleep(moment).await;
        scene.api.delete("volumeclones", "home", "clone");
        scene
            .until("its end", |scene| scene.api.all("volumeclones").is_empty())
            .await;
        tokio::time::sleep(SHORTEST).await;
        assert_eq!(scene.leftovers(), Vec::<String>::new(), "after {moment:?}");
        // There is a whole target, or none.
        match storage::content(&scene.api, "home", "to") {
            Some(content) => {
                assert_eq!(content, "content of away/from", "after {moment:?}");
                ends.0 += 1;
            }
            None => {
                assert_eq!(scene.api.get("persistentvolumeclaims", "home", "to"), None);
                ends.1 += 1;
            }
        }
        scene.end();
        moment += std::time::Duration::from_millis(97);
    }
    assert!(ends.0 > 5 && ends.1 > 5, "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn each_call_of_a_handed_over_clone_fails_in_turn() {
    let scene = || {
        let scene = Scene::new(SHORTEST);
        scene.backend(&json!({}));
        scene.consent();
        scene.clone("clone", &away());
        scene
    };
    each_fault(scene, async |scene: &Scene| {
        until_filled(scene, "CsiClone", "content of away/from").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_clone_by_the_backend_takes_no_agents_place() {
    let mut scene = backend(&json!({"volumeBindingMode": "WaitForFirstConsumer"}));
    scene.limit(Limits {
        overall: 1,
        per_namespace: 1,
        per_node: 1,
    });
    let made = json!({"target": {"claimTemplate": {"metadata": {"name": "made"}}}});
    scene.clone("waits", &made);
    scene
        .until("a claim", |scene| {
            let claim = scene.api.get("persistentvolumeclaims", "home", "made");
            claim.is_some()
        })
        .await;
    assert_eq!(scene.status("waits")["strategy"], "CsiClone");
    scene.claim_with("home", "to", &json!({"storageClassName": "free"}));
    scene.clone("clone", &json!({"strategy": "HostAssisted"}));
    scene.until_phase("clone", "Ready").await;
    let waits = scene.status("waits");
    assert_eq!(waits["phase"], "Pending");
    assert!(waits["conditions"].to_string().contains("WaitsForConsumer"));
}
