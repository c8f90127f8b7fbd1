//! Which claim and volume hold a clone, when others take their names or they are deleted.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use volferry_controller::lease::Candidate;

use super::storage::{self, REFUSES_CLONES};
use super::strategies::backend;
use super::{SHORT, Scene, at_home, away, merged};

fn refuses(words: &Value) -> Value {
    json!({"metadata": {"annotations": {REFUSES_CLONES: words}}})
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_claim_was_deleted_is_not_handed_over() {
    let scene = backend(&refuses(&json!("not today")));
    scene.consent();
    scene.clone("clone", &merged(away(), &json!({"strategy": "CsiClone"})));
    let prime = |scene: &Scene| {
        let mut claims = scene.api.all("persistentvolumeclaims").into_iter();
        let names = claims
            .by_ref()
            .map(|claim| claim["metadata"]["name"].clone());
        names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .find(|name| name.ends_with("-prime"))
    };
    scene
        .until("a prime claim", |scene| prime(scene).is_some())
        .await;
    // Consent goes, and the volume comes.
    scene.api.delete("referencegrants", "away", "grant");
    scene
        .api
        .change("storageclasses", "", "own", &refuses(&Value::Null));
    scene
        .until("a hold", |scene| {
            let status = scene.status("clone");
            status["prime"]["volume"].is_string()
                && status["conditions"].to_string().contains("NotGranted")
        })
        .await;
    let name = prime(&scene).unwrap();
    scene.api.delete("persistentvolumeclaims", "away", &name);
    let volume = scene.status("clone")["prime"]["volume"].clone();
    scene
        .until("its release", |scene| {
            let found = scene
                .api
                .get("persistentvolumes", "", volume.as_str().unwrap());
            found.is_none_or(|found| found["status"]["phase"] == "Released")
        })
        .await;
    scene.consent();
    scene.until_phase("clone", "Failed").await;
    assert_eq!(scene.status("clone")["failure"]["reason"], "TargetLost");
    scene.until_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_later_claim_by_the_targets_name_gets_no_receipt() {
    let mut scene = Scene::new(SHORT);
    scene.claim("home", "from");
    scene.claim("home", "to");
    scene.clone("clone", &json!({}));
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    let receipt = |scene: &Scene| {
        let claim = scene.api.get("persistentvolumeclaims", "home", "to");
        claim.unwrap()["metadata"]["annotations"]["volferry.io/receipt"].clone()
    };
    assert!(receipt(&scene).is_string());
    scene.api.delete("persistentvolumeclaims", "home", "to");
    scene.claim("home", "to");
    scene.replace_controller();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(receipt(&scene), Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_target_claim_that_was_made_anew_begins_anew() {
    let scene = at_home(SHORT);
    scene
        .until("half", |scene| {
            scene.status("clone")["progress"]["durableBytes"].as_i64() > Some(1 << 28)
        })
        .await;
    let uid = |scene: &Scene| {
        let claim = scene.api.get("persistentvolumeclaims", "home", "to");
        claim.unwrap()["metadata"]["uid"].clone()
    };
    let first = uid(&scene);
    assert_eq!(scene.status("clone")["filledUid"], first);
    let name = format!("volferry-{}-target", super::uid(&scene));
    let evicted = json!({"status": {"phase": "Failed", "reason": "Evicted"}});
    scene.api.change("pods", "home", &name, &evicted);
    scene.api.delete("persistentvolumeclaims", "home", "to");
    scene
        .until("its end", |scene| !scene.has_claim("home", "to"))
        .await;
    scene.claim("home", "to");
    scene.until_phase("clone", "Ready").await;
    scene.until_clean().await;
    let resumed = scene.nodes.resumed(&super::uid(&scene));
    assert_eq!(resumed, [0.0, 0.0], "what was durable went with the claim");
    assert_ne!(first, uid(&scene));
    assert_eq!(scene.status("clone")["filledUid"], uid(&scene));
    let told = scene.api.all("events");
    assert!(told.iter().any(|event| event["reason"] == "TargetReplaced"));
    let content = storage::content(&scene.api, "home", "to");
    assert_eq!(content.as_deref(), Some("content of home/from"));
}

#[tokio::test(start_paused = true)]
async fn who_no_longer_leads_leaves_what_is_under_way() {
    let scene = Scene::new(SHORT);
    let leader = Candidate::new(scene.api.client(), "home", "one".to_owned());
    leader.lead().await;
    let other = Candidate::new(scene.api.client(), "home", "two".to_owned());
    let is_under_way = Arc::new(());
    let work = {
        let is_under_way = Arc::clone(&is_under_way);
        async move {
            let _held = is_under_way;
            std::future::pending::<()>().await;
        }
    };
    // The API server answers nobody in time for so long that another may take over.
    let began = Instant::now();
    let api = scene.api.clone();
    let stall = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        api.take_time(Duration::from_secs(10));
    };
    let (has_ended, ()) = tokio::join!(leader.keep_while(work), stall);
    assert!(!has_ended);
    assert_eq!(Arc::strong_count(&is_under_way), 1, "it was dropped");
    scene.api.take_time(Duration::ZERO);
    let ended = began.elapsed();
    other.lead().await;
    assert!(ended < Duration::from_secs(15) && began.elapsed() >= Duration::from_secs(15));
    // Work that comes to its end is no loss.
    assert!(other.keep_while(std::future::ready(())).await);
}
