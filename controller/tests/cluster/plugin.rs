//! `kubectl volferry logs` and `cancel` against the cluster.

use std::cell::RefCell;
use std::time::Duration;

use kube::Api;
use serde_json::json;
use volferry_controller::api::VolumeClone;
use volferry_controller::names::End;
use volferry_controller::plugin::cancel::cancel;
use volferry_controller::plugin::logs::logs;

use super::api::LOG;
use super::{SHORT, Scene, away, cross_namespace, uid};

fn clones(scene: &Scene) -> Api<VolumeClone> {
    Api::namespaced(scene.api.client(), "home")
}

/// The lines that are said, and what failed.
async fn logged(scene: &Scene, end: Option<End>) -> (Vec<String>, Vec<String>) {
    let clone = clones(scene).get("clone").await.unwrap();
    let lines = RefCell::new(Vec::new());
    let say = |line: &str| lines.borrow_mut().push(line.to_owned());
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

#[tokio::test(start_paused = true)]
async fn what_is_cancelled_is_gone_with_all_that_was_made_for_it() {
    let has_target = |scene: &Scene| {
        let claim = scene.api.get("persistentvolumeclaims", "home", "to");
        claim.is_some()
    };
    let ended = |fate: &str| Ok(format!("volumeclone home/clone ended; the claim to {fate}"));

    let scene = cross_namespace();
    scene.until_phase("clone", "Cloning").await;
    assert!(has_target(&scene));
    let words = cancel(&clones(&scene), "clone").await;
    assert_eq!(words, ended("was not complete and is gone"));
    assert!(!has_target(&scene));
    assert_eq!(scene.leftovers(), Vec::<String>::new());
    assert_eq!(scene.status("clone"), json!(null));
    assert!(
        cancel(&clones(&scene), "clone")
            .await
            .unwrap_err()
            .contains("not found")
    );

    let scene = cross_namespace();
    scene.until_phase("clone", "Ready").await;
    let words = cancel(&clones(&scene), "clone").await;
    assert_eq!(words, ended("is complete and stays"));
    assert!(has_target(&scene));
    assert_eq!(scene.leftovers(), Vec::<String>::new());

    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.claim("home", "to");
    scene.clone("clone", &json!({}));
    scene.until_phase("clone", "Cloning").await;
    let words = cancel(&clones(&scene), "clone").await;
    assert_eq!(words, ended("stays, and what it holds is not to be used"));
    assert!(has_target(&scene));
    assert_eq!(scene.leftovers(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn another_clone_by_the_same_name_is_not_waited_for() {
    let scene = cross_namespace();
    scene.until_phase("clone", "Cloning").await;
    let first = uid(&scene);
    let api = clones(&scene);
    let cancelled = tokio::spawn(async move { cancel(&api, "clone").await });
    scene
        .until("its end", |scene| scene.status("clone").is_null())
        .await;
    scene.clone("clone", &away());
    let words = tokio::time::timeout(Duration::from_secs(10), cancelled).await;
    assert!(words.unwrap().unwrap().unwrap().contains("is gone"));
    assert_ne!(uid(&scene), first);
    scene.until_phase("clone", "Ready").await;
}
