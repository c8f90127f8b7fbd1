//! Claims that are filled since they refer to a `VolumeClone`.

use std::time::Duration;

use serde_json::{Value, json};
use volferry_controller::names::filler_name;

use super::storage;
use super::strategies::backend;
use super::{SHORT, SHORTEST, Scene, each_fault, merged};

/// A `VolumeClone` that claims may refer to.
pub(crate) fn template(scene: &Scene, more: &Value) {
    let spec = json!({"target": {"referringClaims": true}});
    scene.clone("clone", &merged(spec, more));
}

pub(crate) fn referring(scene: &Scene, name: &str) {
    let reference = json!({"apiGroup": "volferry.io", "kind": "VolumeClone", "name": "clone"});
    scene.claim_with("home", name, &json!({"dataSourceRef": reference}));
}

fn content(scene: &Scene, name: &str) -> Option<String> {
    storage::content(&scene.api, "home", name)
}

async fn until_filled(scene: &Scene, name: &str) {
    scene
        .until("a volume", |scene| scene.phase_of("home", name) == "Bound")
        .await;
}

/// The clones that were made for claims.
fn fillers(scene: &Scene) -> Vec<Value> {
    let mut clones = scene.api.all("volumeclones");
    clones.retain(|clone| clone["metadata"]["name"] != "clone");
    clones
}

pub(crate) async fn until_ready(scene: &Scene, count: usize) {
    scene
        .until("clones that are ready", |scene| {
            let fillers = fillers(scene);
            fillers.len() == count && fillers.iter().all(|it| it["status"]["phase"] == "Ready")
        })
        .await;
    scene.until_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_refers_to_a_clone_gets_a_proven_volume() {
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    referring(&scene, "to");
    tokio::time::sleep(SHORT).await;
    assert_eq!(scene.phase_of("home", "to"), "Pending");
    template(&scene, &json!({}));
    scene
        .until("bytes", |scene| !scene.api.all("pods").is_empty())
        .await;
    assert_eq!(scene.phase_of("home", "to"), "Pending", "nothing is proven");
    until_filled(&scene, "to").await;
    assert_eq!(content(&scene, "to").unwrap(), "content of home/from");
    until_ready(&scene, 1).await;
    assert_eq!(scene.status("clone")["phase"], "Template");
    let of_claim = |event: &Value| event["regarding"]["name"] == "to";
    let mut told = scene.api.all("events").into_iter().filter(of_claim);
    assert!(
        told.any(|event| event["reason"] == "Proven"),
        "on the claim"
    );
    let filler = &fillers(&scene)[0];
    let claim = scene
        .api
        .get("persistentvolumeclaims", "home", "to")
        .unwrap();
    assert_eq!(
        claim["metadata"]["annotations"]["volferry.io/receipt"],
        filler["status"]["receipt"]["json"]
    );
    assert_eq!(
        filler["metadata"]["ownerReferences"][0]["uid"],
        claim["metadata"]["uid"]
    );
    tokio::time::sleep(SHORT * 100).await;
    assert_eq!(scene.phase_of("home", "to"), "Bound");
    assert_eq!(fillers(&scene).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_claim_gets_a_clone_of_its_own() {
    let scene = Scene::new(SHORT);
    scene.claim("away", "from");
    scene.consent();
    let spec = json!({"source": {"namespace": "away"}, "ttlSecondsAfterFinished": 60});
    template(&scene, &spec);
    for name in ["a", "b", "c"] {
        referring(&scene, name);
    }
    for name in ["a", "b", "c"] {
        until_filled(&scene, name).await;
        assert_eq!(content(&scene, name).unwrap(), "content of away/from");
    }
    scene
        .until("the end of the clones", |scene| fillers(scene).is_empty())
        .await;
    scene.until_clean().await;
    tokio::time::sleep(SHORT * 100).await;
    assert_eq!(
        fillers(&scene),
        Vec::<Value>::new(),
        "what is filled stays so"
    );
    let mut volumes: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|name| {
            let claim = scene.api.get("persistentvolumeclaims", "home", name);
            claim.unwrap()["spec"]["volumeName"].to_string()
        })
        .collect();
    volumes.dedup();
    assert_eq!(volumes.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_backend_fills_claims_too() {
    for namespace in ["home", "away"] {
        let scene = backend(&json!({}));
        scene.consent();
        template(&scene, &json!({"source": {"namespace": namespace}}));
        referring(&scene, "to");
        until_filled(&scene, "to").await;
        assert_eq!(
            content(&scene, "to").unwrap(),
            format!("content of {namespace}/from")
        );
        until_ready(&scene, 1).await;
        assert_eq!(fillers(&scene)[0]["status"]["strategy"], "CsiClone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_waits_for_its_first_pod_is_filled_where_that_will_be() {
    for strategy in ["CsiClone", "HostAssisted"] {
        let scene = backend(&json!({"volumeBindingMode": "WaitForFirstConsumer"}));
        template(&scene, &json!({"strategy": strategy}));
        referring(&scene, "to");
        scene
            .until("words", |scene| {
                let conditions = fillers(scene)
                    .first()
                    .map(|it| it["status"]["conditions"].clone());
                conditions.is_some_and(|it| it.to_string().contains("WaitsForConsumer"))
            })
            .await;
        assert_eq!(scene.leftovers(), Vec::<String>::new());
        let placed = json!({"metadata": {"annotations": {
            "volume.kubernetes.io/selected-node": "node-9"}}});
        scene.user_pod("home", "to");
        scene
            .api
            .change("persistentvolumeclaims", "home", "to", &placed);
        let prime = |scene: &Scene| {
            let claims = scene.api.all("persistentvolumeclaims");
            let name = |claim: &Value| claim["metadata"]["name"].as_str().unwrap().to_owned();
            claims
                .into_iter()
                .find(|claim| name(claim).ends_with("-prime"))
        };
        scene
            .until("a prime claim", |scene| prime(scene).is_some())
            .await;
        assert_eq!(
            prime(&scene).unwrap()["metadata"]["annotations"]["volume.kubernetes.io/selected-node"],
            "node-9"
        );
        until_filled(&scene, "to").await;
        assert_eq!(content(&scene, "to").unwrap(), "content of home/from");
        until_ready(&scene, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_node_is_full_is_filled_on_another() {
    for strategy in ["CsiClone", "HostAssisted"] {
        let scene = backend(&json!({"volumeBindingMode": "WaitForFirstConsumer",
            "metadata": {"annotations": {storage::FULL_NODE: "node-9"}}}));
        template(&scene, &json!({"strategy": strategy}));
        referring(&scene, "to");
        let selected = "volume.kubernetes.io/selected-node";
        let place = |node: &str| {
            let placed = json!({"metadata": {"annotations": {selected: node}}});
            scene
                .api
                .change("persistentvolumeclaims", "home", "to", &placed);
        };
        place("node-9");
        scene
            .until("another choice", |scene| {
                let claim = scene.api.get("persistentvolumeclaims", "home", "to");
                claim.unwrap()["metadata"]["annotations"][selected].is_null()
            })
            .await;
        tokio::time::sleep(SHORT).await;
        let left = scene.leftovers();
        let is_of_node = |it: &&String| it.starts_with("pods") || it.ends_with("-prime");
        assert_eq!(left.iter().find(is_of_node), None, "{left:?}");
        place("node-8");
        until_filled(&scene, "to").await;
        assert_eq!(content(&scene, "to").unwrap(), "content of home/from");
        until_ready(&scene, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_another_volume_was_bound_to_is_left_alone() {
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.claim("home", "other");
    template(&scene, &json!({}));
    referring(&scene, "to");
    scene
        .until("bytes", |scene| !scene.api.all("pods").is_empty())
        .await;
    let taken = scene
        .api
        .get("persistentvolumeclaims", "home", "to")
        .unwrap();
    let other = scene
        .api
        .get("persistentvolumeclaims", "home", "other")
        .unwrap();
    scene.api.change(
        "persistentvolumes",
        "",
        other["spec"]["volumeName"].as_str().unwrap(),
        &json!({"spec": {"claimRef": {"name": "to", "uid": taken["metadata"]["uid"]}}}),
    );
    scene
        .until("a failure", |scene| {
            fillers(scene)[0]["status"]["failure"]["reason"] == "TargetLost"
        })
        .await;
    scene.until_clean().await;
    assert_eq!(content(&scene, "to").unwrap(), "content of home/other");
}

#[tokio::test(start_paused = true)]
async fn each_call_of_a_claim_that_is_filled_fails_in_turn() {
    let scene = || {
        let scene = Scene::new(SHORTEST);
        scene.claim("home", "from");
        template(&scene, &json!({}));
        referring(&scene, "to");
        scene
    };
    each_fault(scene, async |scene: &Scene| {
        until_ready(scene, 1).await;
        assert_eq!(content(scene, "to").unwrap(), "content of home/from");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_refers_to_nothing_that_fills_it_is_told_so() {
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    referring(&scene, "to");
    let is_stray = |event: &Value| {
        let reason = event["reason"].as_str();
        matches!(reason, Some("NoSuchClone" | "NotFilled"))
    };
    let told = |scene: &Scene| {
        let mut events = scene.api.all("events");
        events.retain(|event| event["regarding"]["name"] == "to" && is_stray(event));
        events
    };
    scene
        .until("an Event", |scene| !told(scene).is_empty())
        .await;
    let first = told(&scene);
    assert!(
        first[0]["note"].as_str().unwrap().contains("doesn't have"),
        "{first:?}"
    );
    tokio::time::sleep(SHORT * 10).await;
    assert_eq!(told(&scene), first, "once");
    // One by that name that clones something else is no better.
    let other = json!({"target": {"claimTemplate": {"metadata": {"name": "other"}}}});
    scene.clone("clone", &other);
    scene.until("another", |scene| told(scene).len() == 2).await;
    let words = told(&scene);
    assert!(
        words
            .iter()
            .any(|event| event["note"].as_str().unwrap().contains("fills no claims"))
    );
    scene.api.delete("volumeclones", "home", "clone");
    scene
        .until("its end", |scene| {
            scene.api.get("volumeclones", "home", "clone").is_none()
        })
        .await;
    template(&scene, &json!({}));
    until_filled(&scene, "to").await;
    let reasons: Vec<_> = scene
        .api
        .all("events")
        .into_iter()
        .filter(|event| event["regarding"]["name"] == "to")
        .map(|event| event["reason"].clone())
        .collect();
    for reason in ["Filling", "Proven"] {
        assert!(reasons.contains(&json!(reason)), "{reason}: {reasons:?}");
    }
    // A claim that comes before what it refers to is none of these.
    let reference = json!({"apiGroup": "volferry.io", "kind": "VolumeClone", "name": "soon"});
    scene.claim_with("home", "early", &json!({"dataSourceRef": reference}));
    tokio::time::sleep(Duration::from_secs(20)).await;
    scene.clone("soon", &json!({"target": {"referringClaims": true}}));
    until_filled(&scene, "early").await;
    let events = scene.api.all("events");
    let is_early = |event: &&Value| event["regarding"]["name"] == "early" && is_stray(event);
    assert_eq!(events.iter().filter(is_early).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_may_not_be_filled_is_told_and_holds_up_no_other() {
    let scene = Scene::new(SHORT);
    scene.claim("home", "from");
    for name in ["first", "second"] {
        referring(&scene, name);
    }
    let first = scene
        .api
        .get("persistentvolumeclaims", "home", "first")
        .unwrap();
    let filler = filler_name(first["metadata"]["uid"].as_str().unwrap());
    let making = format!("create volumeclones/{filler}");
    scene
        .api
        .refuse(&making, Some("exceeded quota: clones, used: NUMBER"));
    template(&scene, &json!({}));
    until_filled(&scene, "second").await;
    let told = scene.progressing("clone");
    assert_eq!(told["reason"], "QuotaExceeded", "{told}");
    let words = format!("VolumeClone home/{filler}: exceeded quota: clones");
    let message = told["message"].as_str().unwrap();
    assert!(message.starts_with(&words), "{message}");
    assert_eq!(scene.told("QuotaExceeded").len(), 1);
    until_ready(&scene, 1).await;
    let before = scene.writes();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let writes = scene.writes() - before;
    assert!(writes < 40, "{writes} writes in vain");

    scene.api.refuse(&making, None);
    until_filled(&scene, "first").await;
    until_ready(&scene, 2).await;
    assert_eq!(scene.progressing("clone"), Value::Null);
}
