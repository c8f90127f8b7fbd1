//! What storage does: makes volumes for claims, also from claims and snapshots, binds the two, takes
//! snapshots, and removes volumes that belong to nobody.
//!
//! A volume's annotation says what it holds, so that a test can see what came to be where.

use serde_json::{Value, json};

use super::api::FakeApi;
use super::nodes::{place, text};

/// On a volume and on a snapshot's content: what it holds.
const CONTENT: &str = "content";
/// On a storage class: words with which its driver refuses to clone.
pub(crate) const REFUSES_CLONES: &str = "refuses-clones";
/// On a storage class: the node on which its driver has no room.
pub(crate) const FULL_NODE: &str = "full-node";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// A step of whoever cares for claims, volumes and snapshots.
pub(crate) fn tick(api: &FakeApi) {
    for claim in api.all("persistentvolumeclaims") {
        tick_claim(api, &claim);
    }
    for volume in api.all("persistentvolumes") {
        let owner = &volume["spec"]["claimRef"];
        let (namespace, name) = (text(&owner["namespace"]), text(&owner["name"]));
        let claim = api.get("persistentvolumeclaims", &namespace, &name);
        if claim.is_none_or(|claim| claim["metadata"]["uid"] != owner["uid"]) {
            let name = place(&volume).1;
            // The driver deletes what it holds before the object goes.
            if volume["status"]["phase"] == "Released" {
                api.delete("persistentvolumes", "", &name);
            } else {
                let released = json!({"status": {"phase": "Released"}});
                api.change("persistentvolumes", "", &name, &released);
            }
        }
    }
    for snapshot in api.all("volumesnapshots") {
        if snapshot["status"].is_null() {
            take(api, &snapshot);
        }
    }
    for content in api.all("volumesnapshotcontents") {
        let of = &content["spec"]["volumeSnapshotRef"];
        let (namespace, name) = (text(&of["namespace"]), text(&of["name"]));
        if api.get("volumesnapshots", &namespace, &name).is_none() {
            api.delete("volumesnapshotcontents", "", &place(&content).1);
        }
    }
}

/// What the volume of a claim holds.
pub(crate) fn content(api: &FakeApi, namespace: &str, claim: &str) -> Option<String> {
    let claim = api.get("persistentvolumeclaims", namespace, claim)?;
    let volume = claim["spec"]["volumeName"].as_str()?;
    let volume = api.get("persistentvolumes", "", volume)?;
    Some(text(&volume["metadata"]["annotations"][CONTENT]))
}

/// Writes the volume of a claim.
pub(crate) fn write(api: &FakeApi, namespace: &str, claim: &str, content: &str) {
    let claim = api.get("persistentvolumeclaims", namespace, claim).unwrap();
    let volume = claim["spec"]["volumeName"].as_str().unwrap();
    let written = json!({"metadata": {"annotations": {CONTENT: content}}});
    api.change("persistentvolumes", "", volume, &written);
}

fn tick_claim(api: &FakeApi, claim: &Value) {
    let (namespace, name) = place(claim);
    let uid = &claim["metadata"]["uid"];
    let volumes = api.all("persistentvolumes");
    let own = volumes
        .iter()
        .find(|volume| volume["spec"]["claimRef"]["uid"] == *uid);
    let set = |status: Value| {
        api.change("persistentvolumeclaims", &namespace, &name, &status);
    };
    match (claim["status"]["phase"].as_str(), own) {
        (Some("Bound"), None) => set(json!({"status": {"phase": "Lost"}})),
        (None | Some("Pending"), Some(volume)) => set(json!({
            "spec": {"volumeName": volume["metadata"]["name"]},
            "status": {"phase": "Bound", "capacity": volume["spec"]["capacity"]},
        })),
        (None | Some("Pending"), None) => {
            set(json!({"status": {"phase": "Pending"}}));
            provision(api, claim);
        }
        _ => {}
    }
}

/// Makes a volume for a claim that has none, if it should have one.
fn provision(api: &FakeApi, claim: &Value) {
    let (namespace, name) = place(claim);
    let is_taken = claim["spec"]["volumeName"].is_string();
    if is_taken || claim["spec"]["dataSourceRef"]["kind"] == "VolumeClone" {
        return;
    }
    let class = claim["spec"]["storageClassName"].as_str().unwrap_or("own");
    let class = api.get("storageclasses", "", class).unwrap_or_default();
    let is_mounted = api.all("pods").iter().any(|pod| {
        pod["metadata"]["namespace"] == *namespace
            && pod["spec"]["volumes"].as_array().is_some_and(|volumes| {
                let mounts = |volume: &Value| volume["persistentVolumeClaim"]["claimName"] == *name;
                volumes.iter().any(mounts)
            })
    });
    let is_placed = is_mounted || claim["metadata"]["annotations"][SELECTED_NODE].is_string();
    if class["volumeBindingMode"] == "WaitForFirstConsumer" && !is_placed {
        return;
    }
    let full = &class["metadata"]["annotations"][FULL_NODE];
    if full.is_string() && *full == claim["metadata"]["annotations"][SELECTED_NODE] {
        let unplaced = json!({"metadata": {"annotations": {SELECTED_NODE: null}}});
        api.change("persistentvolumeclaims", &namespace, &name, &unplaced);
        return;
    }
    let from = text(&claim["spec"]["dataSource"]["name"]);
    let held = match claim["spec"]["dataSource"]["kind"].as_str() {
        None => Some("nothing".to_owned()),
        Some("PersistentVolumeClaim") => {
            if let Some(words) = class["metadata"]["annotations"][REFUSES_CLONES].as_str() {
                warn(api, claim, words);
                return;
            }
            content(api, &namespace, &from)
        }
        Some("VolumeSnapshot") => snapshot_content(api, &namespace, &from),
        Some(kind) => panic!("nothing is made from a {kind}"),
    };
    // A source that isn't in this namespace isn't there.
    let Some(held) = held else { return };
    api.create(
        "persistentvolumes",
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": format!("pv-{}", text(&claim["metadata"]["uid"])),
                "annotations": {CONTENT: held, "pv.kubernetes.io/provisioned-by": "d.io"}},
            "spec": {
                "capacity": claim["spec"]["resources"]["requests"],
                "accessModes": claim["spec"]["accessModes"],
                "volumeMode": claim["spec"]["volumeMode"],
                "storageClassName": claim["spec"]["storageClassName"],
                "claimRef": {"namespace": namespace, "name": name, "uid": claim["metadata"]["uid"]},
                "csi": {"driver": "d.io", "volumeHandle": "handle"},
                "persistentVolumeReclaimPolicy": "Delete",
            },
            "status": {"phase": "Bound"},
        }),
    );
}

fn warn(api: &FakeApi, claim: &Value, words: &str) {
    let (namespace, name) = place(claim);
    let event = format!("{name}.{}", text(&claim["metadata"]["uid"]));
    if api.get("events", &namespace, &event).is_some() {
        return;
    }
    api.create(
        "events",
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": event, "namespace": namespace},
            "involvedObject": {"kind": "PersistentVolumeClaim", "name": name,
                "uid": claim["metadata"]["uid"]},
            "reason": "ProvisioningFailed", "message": words,
        }),
    );
}

fn take(api: &FakeApi, snapshot: &Value) {
    let (namespace, name) = place(snapshot);
    let claim = text(&snapshot["spec"]["source"]["persistentVolumeClaimName"]);
    let Some(held) = content(api, &namespace, &claim) else {
        return;
    };
    let source = api
        .get("persistentvolumeclaims", &namespace, &claim)
        .unwrap();
    let kept = format!("content-{}", text(&snapshot["metadata"]["uid"]));
    api.create(
        "volumesnapshotcontents",
        json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": kept, "annotations": {CONTENT: held}},
            "spec": {"sourceVolumeMode": source["spec"]["volumeMode"],
                "volumeSnapshotRef": {"namespace": namespace, "name": name}},
        }),
    );
    let status = json!({"status": {"readyToUse": true, "boundVolumeSnapshotContentName": kept,
        "restoreSize": source["status"]["capacity"]["storage"]}});
    api.change("volumesnapshots", &namespace, &name, &status);
}

fn snapshot_content(api: &FakeApi, namespace: &str, name: &str) -> Option<String> {
    let snapshot = api.get("volumesnapshots", namespace, name)?;
    let kept = snapshot["status"]["boundVolumeSnapshotContentName"].as_str()?;
    let kept = api.get("volumesnapshotcontents", "", kept)?;
    Some(text(&kept["metadata"]["annotations"][CONTENT]))
}
