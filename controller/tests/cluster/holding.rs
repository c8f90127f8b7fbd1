//! Which claim and volume hold a clone, when others take their names or they are deleted.

use std::time::Duration;

use serde_json::{Value, json};

use super::storage::REFUSES_CLONES;
use super::strategies::backend;
use super::{SHORT, Scene, away, merged};

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
