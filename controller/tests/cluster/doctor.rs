//! `kubectl volferry doctor` against the cluster: it says what the controller would do, and makes nothing.

use serde_json::{Value, json};
use volferry_controller::api::VolumeClone;
use volferry_controller::plugin::doctor::{Diagnosis, Verdict, examine};

use super::{SHORT, Scene, away, merged, now, settings};

/// A cluster without a controller's hand in it, so that all that appears is the doctor's.
fn cluster() -> Scene {
    let scene = Scene::new(SHORT);
    scene.claim("away", "from");
    scene.api.create(
        "storageclasses",
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": "own",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "d.io"}),
    );
    scene.api.create(
        "nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    scene.api.create(
        "leases",
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "volferry-controller", "namespace": "volferry-system"},
            "spec": {"holderIdentity": "one"}}),
    );
    scene
}

fn by_agents() -> Value {
    merged(away(), &json!({"strategy": "HostAssisted"}))
}

async fn ask(scene: &Scene, spec: &Value) -> Diagnosis {
    let spec = merged(
        json!({"source": {"persistentVolumeClaim": {"name": "from"}}}),
        spec,
    );
    let wanted: VolumeClone = serde_json::from_value(json!({
        "apiVersion": "volferry.io/v1alpha1", "kind": "VolumeClone",
        "metadata": {"name": "to", "namespace": "home"}, "spec": spec,
    }))
    .unwrap();
    let before = scene.api.inventory();
    let client = scene.api.client();
    let found = Box::pin(examine(&client, &wanted, Ok(settings()), now())).await;
    assert_eq!(scene.api.inventory(), before, "nothing is made");
    found.unwrap()
}

fn verdict(found: &Diagnosis, what: &str) -> Verdict {
    let finding = found.findings.iter().find(|finding| finding.what == what);
    finding
        .unwrap_or_else(|| panic!("{what} in {}", found.render()))
        .verdict
}

#[tokio::test(start_paused = true)]
async fn the_doctor_says_what_would_happen_and_makes_nothing() {
    let scene = cluster();
    let found = ask(&scene, &away()).await;
    assert!(!found.is_hopeful(), "{}", found.render());
    assert_eq!(verdict(&found, "way"), Verdict::Wrong);
    assert!(found.render().contains("NotGranted"), "{}", found.render());

    scene.consent();
    let found = ask(&scene, &away()).await;
    assert!(found.is_hopeful(), "{}", found.render());
    assert!(
        found.outlook.contains("CsiClone, chosen"),
        "{}",
        found.outlook
    );
    assert_eq!(verdict(&found, "claim in away"), Verdict::Fine);

    let found = ask(&scene, &by_agents()).await;
    assert!(found.is_hopeful(), "{}", found.render());
    for what in [
        "controller",
        "VolumeClone",
        "permissions",
        "nodes",
        "storage class",
        "way",
        "pod in home",
        "pod in away",
        "claim in home",
    ] {
        assert_eq!(verdict(&found, what), Verdict::Fine, "{what}");
    }
    assert_eq!(verdict(&found, "image"), Verdict::Unsure);
    assert!(
        found.outlook.contains("HostAssisted, chosen"),
        "{}",
        found.outlook
    );

    for what in ["nodes for the source", "nodes for the target"] {
        assert_eq!(verdict(&found, what), Verdict::Fine, "{what}");
    }
    let nowhere = merged(
        by_agents(),
        &json!({"agents": {"nodeSelector": {"disk": "fast"}}}),
    );
    let found = ask(&scene, &nowhere).await;
    assert_eq!(verdict(&found, "nodes for the source"), Verdict::Wrong);
    assert!(!found.is_hopeful());
    let words = "agents.nodeSelector asks for disk In fast";
    assert!(found.render().contains(words), "{}", found.render());

    // What the controller would do is what it does.
    scene.clone("clone", &by_agents());
    scene.until_phase("clone", "Ready").await;
    assert_eq!(scene.status("clone")["strategy"], "HostAssisted");
}

#[tokio::test(start_paused = true)]
async fn the_doctor_tells_refusals_quotas_and_missing_rights() {
    let scene = cluster();
    scene.consent();
    scene.api.create(
        "resourcequotas",
        json!({"apiVersion": "v1", "kind": "ResourceQuota",
            "metadata": {"name": "small", "namespace": "home"},
            "status": {"hard": {"requests.storage": "1Mi"}, "used": {}}}),
    );
    scene.api.refuse("pods", Some("violates PodSecurity"));
    let found = ask(&scene, &by_agents()).await;
    assert_eq!(verdict(&found, "pod in home"), Verdict::Wrong);
    assert_eq!(verdict(&found, "quota in home"), Verdict::Wrong);
    assert!(
        found.render().contains("violates PodSecurity"),
        "{}",
        found.render()
    );

    let missing = merged(
        away(),
        &json!({"target": {"claimTemplate": {"spec": {"storageClassName": "none"}}}}),
    );
    let found = ask(&scene, &missing).await;
    assert_eq!(verdict(&found, "storage class"), Verdict::Wrong);

    // Without the right to look nothing is made up.
    scene.api.forbid("persistentvolumes");
    let found = ask(&scene, &away()).await;
    assert_eq!(verdict(&found, "permissions"), Verdict::Unsure);
    assert_eq!(
        (verdict(&found, "way"), &*found.outlook),
        (Verdict::Unsure, "")
    );
}
