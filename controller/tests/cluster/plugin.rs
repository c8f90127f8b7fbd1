//! `kubectl volferry logs` and `cancel` against the cluster.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::Api;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use volferry_controller::api::VolumeClone;
use volferry_controller::names::End;
use volferry_controller::plugin::cancel::cancel;
use volferry_controller::plugin::logs::logs;

use super::api::LOG;
use super::{SHORT, Scene, away, cross_namespace, populator, uid};

fn clones(scene: &Scene) -> Api<VolumeClone> {
    Api::namespaced(scene.api.client(), "home")
}

/// The lines that are said, and what failed.
async fn logged(scene: &Scene, end: Option<End>) -> (Vec<String>, Vec<String>) {
    let clone = clones(scene).get("clone").await.unwrap();
    let lines = RefCell::new(Vec::new());
    let say = |line: &str| {
        lines.borrow_mut().push(line.to_owned());
        true
    };
    let ended = logs(&scene.api.client(), &clone, end, false, say).await;
    let mut lines = lines.into_inner();
    lines.sort();
    (lines, ended.err().unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn logs_are_those_of_the_ends_that_have_pods() {
    let scene = cross_namespace();
    scene.until_phase("clone", "Cloning").await;
    let pod = |end: &str| format!("volferry-{}-{end}", uid(&scene));
    for (namespace, end) in [("away", "source"), ("home", "target")] {
        let log = json!({"metadata": {"annotations": {LOG: format!("{end} 1\n{end} 2\n")}}});
        scene.api.change("pods", namespace, &pod(end), &log);
    }
    let both = [
        "source  source 1",
        "source  source 2",
        "target  target 1",
        "target  target 2",
    ];
    assert_eq!(
        logged(&scene, None).await,
        (both.map(str::to_owned).into(), Vec::new())
    );
    let of_target = ["target 1", "target 2"].map(str::to_owned).into();
    assert_eq!(
        logged(&scene, Some(End::Target)).await,
        (of_target, Vec::new())
    );

    // One that has no pod is named, and the other's log is told.
    scene.api.refuse("pods", Some("not now"));
    scene.api.remove("pods", "away", &pod("source"));
    let (lines, failures) = logged(&scene, None).await;
    assert_eq!(lines, both[2..]);
    assert_eq!(failures.len(), 1);
    assert!(
        failures[0].starts_with("no log of the source agent: "),
        "{failures:?}"
    );

    scene.api.refuse("pods", None);
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    let (lines, failures) = logged(&scene, None).await;
    assert_eq!((lines.len(), failures.len()), (0, 2));
}

/// What `cancel` says of the clone that these scenes make.
fn ended(fate: &str) -> Result<String, String> {
    Ok(format!("volumeclone home/clone ended; the claim to {fate}"))
}

async fn cancelled(scene: &Scene) -> Result<String, String> {
    let unheard = |words: &str| panic!("{words}");
    cancel(&scene.api.client(), "home", "clone", unheard).await
}

/// The same while the scene goes on, whatever is said meanwhile.
fn cancelling(scene: &Scene) -> JoinHandle<Result<String, String>> {
    let client = scene.api.client();
    tokio::spawn(async move { cancel(&client, "home", "clone", |_| ()).await })
}

/// A clone in one namespace, to a claim that is there.
fn to_existing(spec: &Value) -> Scene {
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.claim("home", "to");
    scene.clone("clone", spec);
    scene
}

#[tokio::test(start_paused = true)]
async fn what_is_cancelled_is_gone_with_all_that_was_made_for_it() {
    let has_target = |scene: &Scene| scene.has_claim("home", "to");
    let scene = cross_namespace();
    scene.until_phase("clone", "Cloning").await;
    assert!(has_target(&scene));
    let words = cancelled(&scene).await;
    assert_eq!(words, ended("was never complete and is not there"));
    assert!(!has_target(&scene));
    assert_eq!(scene.leftovers(), Vec::<String>::new());
    assert_eq!(scene.status("clone"), json!(null));
    let words = cancelled(&scene).await;
    assert!(words.unwrap_err().contains("not found"));

    let scene = cross_namespace();
    scene.until_phase("clone", "Ready").await;
    let words = cancelled(&scene).await;
    assert_eq!(words, ended("is complete and stays"));
    assert!(has_target(&scene));
    assert_eq!(scene.leftovers(), Vec::<String>::new());

    let scene = to_existing(&json!({}));
    scene.until_phase("clone", "Cloning").await;
    let words = cancelled(&scene).await;
    assert_eq!(words, ended("stays, and what it holds is not to be used"));
    assert!(has_target(&scene));
    assert_eq!(scene.leftovers(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_became_of_a_target_is_told_as_it_is() {
    // Somebody else's claim has the name.
    let template = json!({"target": {"claimTemplate": {"metadata": {"name": "to"}}}});
    let scene = to_existing(&template);
    scene.until_phase("clone", "Failed").await;
    let words = cancelled(&scene).await;
    assert_eq!(words, ended("was not made for it, and stays as it is"));

    // It never came to it.
    let scene = to_existing(&json!({"inUsePolicy": "Wait", "suspend": true}));
    scene.until_phase("clone", "Suspended").await;
    let words = cancelled(&scene).await;
    assert_eq!(words, ended("stays, and nothing was written to it"));

    // Proven, and not told yet.
    let scene = to_existing(&json!({}));
    scene.until_phase("clone", "Cloning").await;
    let suspended = json!({"spec": {"suspend": true}});
    let proven = json!({"status": {"receipt": {"cloneId": "", "digest": "", "verified": "", "logicalBytes": 0,
        "dataBytes": 0, "sentBytes": 0, "resentBytes": 0, "sessions": 1, "json": ""}}});
    for change in [suspended, proven] {
        scene.api.change("volumeclones", "home", "clone", &change);
    }
    let words = cancelled(&scene).await;
    assert_eq!(words, ended("is complete and stays"));

    // One to which claims refer has no target itself.
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    populator::template(&scene, &json!({}));
    scene.until_phase("clone", "Template").await;
    let words = cancelled(&scene).await.unwrap();
    assert!(
        words.starts_with("volumeclone home/clone ended; claims that refer to it"),
        "{words}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_cancelled_clone_waits_for_is_told() {
    let mut scene = cross_namespace();
    scene.until_phase("clone", "Cloning").await;
    scene.controller.abort();
    let said = Arc::new(Mutex::new(Vec::new()));
    let (client, heard) = (scene.api.client(), Arc::clone(&said));
    let cancelled = tokio::spawn(async move {
        let say = |words: &str| heard.lock().unwrap().push(words.to_owned());
        cancel(&client, "home", "clone", say).await
    });
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(said.lock().unwrap().len(), 0);
    tokio::time::sleep(Duration::from_secs(50)).await;
    let words = std::mem::take(&mut *said.lock().unwrap());
    assert_eq!(words.len(), 2, "{words:?}");
    assert!(
        words[0].contains("no controller has removed it"),
        "{words:?}"
    );

    // A user's pod keeps the claim, which is not complete.
    scene.user_pod("home", "to");
    scene.replace_controller();
    tokio::time::sleep(Duration::from_secs(40)).await;
    let words = std::mem::take(&mut *said.lock().unwrap());
    assert!(words[0].contains("to goes with the last pod"), "{words:?}");
    scene.api.delete("pods", "home", "database");
    let words = cancelled.await.unwrap();
    assert_eq!(words, ended("was never complete and is not there"));
}

#[tokio::test(start_paused = true)]
async fn what_is_half_written_is_not_told_as_complete() {
    let scene = cross_namespace();
    scene.until_phase("clone", "Cloning").await;
    scene.controller.abort();
    let cancelled = cancelling(&scene);
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Somebody doesn't want to wait.
    let freed = json!({"metadata": {"finalizers": null}});
    scene.api.change("volumeclones", "home", "clone", &freed);
    let words = cancelled.await.unwrap();
    assert_eq!(words, ended("stays, and what it holds is not to be used"));
}

#[tokio::test(start_paused = true)]
async fn another_clone_by_the_same_name_is_not_waited_for() {
    let scene = cross_namespace();
    scene.until_phase("clone", "Cloning").await;
    let first = uid(&scene);
    let cancelled = cancelling(&scene);
    scene
        .until("its end", |scene| scene.status("clone").is_null())
        .await;
    scene.clone("clone", &away());
    let words = tokio::time::timeout(Duration::from_secs(10), cancelled).await;
    let words = words.unwrap().unwrap().unwrap();
    // Its claim has the name.
    assert!(
        words.starts_with("volumeclone home/clone ended; "),
        "{words}"
    );
    assert_ne!(uid(&scene), first);
    scene.until_phase("clone", "Ready").await;
}
