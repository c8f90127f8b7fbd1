//! The decision, row by row: a world made by hand, and what is decided of it.

mod access;
mod agents;
mod backend;
mod life;
mod lost_nodes;
mod pods;
mod prime;
mod renewal;
mod target_users;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::api::PrimeStatus;
use crate::claims::VolumeMode;
use crate::credentials;
use crate::names::{self, End};
use crate::objects::{self, EndPlan, PodPlan, View};
use crate::world::{
    ClaimUser, Grant, Refusal, Rejection, Settings, Silence, Snapshot, SnapshotClass, TargetReport,
    Users,
};

const UID: &str = "7a1f0c2e-0000-4000-8000-000000000001";

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// RFC 7386 without removal.
fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

fn claim(namespace: &str, name: &str, change: &Value) -> PersistentVolumeClaim {
    let mut claim = json!({
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}")},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Block", "volumeName": "pv",
            "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    });
    merge(&mut claim, change);
    of(claim)
}

/// A clone in namespace `home` of the claim `from` to the claim `to`, accepted by nobody yet.
fn world(spec: &Value) -> World {
    let mut full = json!({
        "source": {},
        "target": {},
        "strategy": "Auto",
    });
    merge(&mut full, spec);
    if full["source"].get("volumeSnapshot").is_none() {
        full["source"]["persistentVolumeClaim"] = json!({"name": "from"});
    }
    if full["target"].get("claimTemplate").is_none() {
        full["target"]["persistentVolumeClaim"] = json!({"name": "to"});
    }
    let clone: VolumeClone = of(json!({
        "apiVersion": "volferry.io/v1alpha1",
        "kind": "VolumeClone",
        "metadata": {"name": "clone", "namespace": "home", "uid": UID, "generation": 1,
            "finalizers": [FINALIZER]},
        "spec": full,
    }));
    let is_template = clone.spec.target.claim_template.is_some();
    let namespace = clone.source_namespace().to_owned();
    World {
        now: at(0),
        settings: Settings {
            image: "volferry:1".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            namespace: "volferry-system".to_owned(),
        },
        target_claim: (!is_template).then(|| claim("home", "to", &json!({}))),
        surroundings: Some(Surroundings {
            source_claim: Some(claim(&namespace, "from", &json!({}))),
            ..Surroundings::default()
        }),
        pods: Vec::new(),
        belongings: Vec::new(),
        prime_claim: None,
        filled_volume: None,
        referring_claims: Vec::new(),
        users: Users::default(),
        report: None,
        silence: None,
        rejections: Vec::new(),
        admission: Ok(()),
        clone,
    }
}

/// A user's pod that mounts a claim.
fn database() -> ClaimUser {
    ClaimUser::of(&of(json!({
        "metadata": {"name": "database"},
        "spec": {"nodeName": "node-7", "containers": [],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "from"}}]},
        "status": {"phase": "Running"},
    })))
    .unwrap()
}

/// The consent that any claim is cloned into namespace `home`.
fn grant_to_home() -> Grant {
    of(json!({
        "from": [{"group": "volferry.io", "kind": "VolumeClone", "namespace": "home"}],
        "to": [{"group": "", "kind": "PersistentVolumeClaim"}],
    }))
}

fn around(world: &mut World) -> &mut Surroundings {
    world.surroundings.as_mut().unwrap()
}

/// Lets the world be as the decision wants its status.
fn follow(world: &mut World, decision: &Decision) {
    if let Some(status) = &decision.status {
        world.clone.status = Some((**status).clone());
    }
}

fn condition<'a>(world: &'a World, name: &str) -> (&'a str, &'a str, &'a str) {
    let status = world.clone.status.as_ref().unwrap();
    let found = status.conditions.iter().find(|found| found.type_ == name);
    let found = found.unwrap_or_else(|| panic!("no condition {name}: {status:?}"));
    (&found.status, &found.reason, &found.message)
}

/// Decides, follows the status, and returns the steps in short.
fn decide_in(world: &mut World) -> (Vec<String>, Decision) {
    let decision = decide(world);
    follow(world, &decision);
    let short = |step: &Step| match step {
        Step::Apply(object) => format!("apply {}", object.describe().replace(UID, "UID")),
        Step::Delete(doomed) => {
            let name = doomed.name.replace(UID, "UID");
            format!("delete {:?} {}/{name}", doomed.kind, doomed.namespace)
        }
        Step::Attest { claim, .. } => format!("attest {claim}"),
        other => format!("{other:?}"),
    };
    (decision.steps.iter().map(short).collect(), decision)
}

/// Decides once and checks what the clone waits for, or fails of.
fn check_stop(mut world: World, phase: Phase, reason: Reason, words: &str) -> World {
    let (steps, decision) = decide_in(&mut world);
    let status = world.clone.status.clone().unwrap_or_default();
    let (is_progressing, found, message) = condition(&world, "Progressing");
    assert_eq!(found, reason.label(), "{message}");
    assert_eq!(is_progressing, "False");
    assert_eq!(status.phase, phase, "{message}");
    assert!(message.contains(words), "{message:?} lacks {words:?}");
    let makes = steps.iter().filter(|step| step.contains("pod "));
    assert_eq!(makes.count(), 0, "{steps:?}");
    assert_eq!(decision.again.is_none(), phase == Phase::Failed);
    world
}

/// An agent's pod with this status.
fn pod(world: &World, end: End, change: &Value) -> Pod {
    let metadata = names::metadata(&world.clone, end);
    let mut pod = json!({
        "metadata": metadata,
        "spec": {"containers": [], "nodeName": format!("node-of-{}", end.label())},
        "status": {"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [
            {"name": end.label(), "ready": true, "restartCount": 0, "image": "", "imageID": "",
                "state": {"running": {}}}]},
    });
    pod["metadata"]["uid"] = json!(format!("uid-{}", end.label()));
    if end == End::Source {
        pod["metadata"]["annotations"][names::TARGET_ANNOTATION] = json!("10.0.0.7");
    }
    merge(&mut pod, change);
    if let Some(name) = pod.pointer_mut("/status/containerStatuses/0/name") {
        *name = json!(end.label());
    }
    of(pod)
}

/// A container status for [`pod`].
fn container(status: &Value) -> Value {
    let mut full =
        json!({"name": "agent", "ready": false, "restartCount": 0, "image": "", "imageID": ""});
    merge(&mut full, status);
    json!({"status": {"containerStatuses": [full]}})
}

/// The clone is under way: accepted by the agents' way, and all but the pods is there.
fn under_way(spec: &Value) -> World {
    let mut world = world(spec);
    let (_, decision) = decide_in(&mut world);
    assert!(decision.status.is_some());
    world.belongings = provided(&world);
    world
}

/// Credentials and policies of both ends.
fn provided(world: &World) -> Vec<Belonging> {
    let of_end = |end| [Kind::Secret, Kind::NetworkPolicy].map(|kind| belonging(world, kind, end));
    End::ALL.into_iter().flat_map(of_end).collect()
}

/// The target agent is there with all that it needs.
fn target_runs(world: &mut World) {
    world.pods = vec![pod(world, End::Target, &json!({}))];
    world.belongings = provided(world);
}

fn belonging(world: &World, kind: Kind, end: End) -> Belonging {
    Belonging {
        kind,
        namespace: end.namespace(&world.clone).to_owned(),
        name: names::name(&world.clone, end),
        uid: format!("uid-{kind:?}-{}", end.label()),
        annotations: Default::default(),
        is_deleting: false,
    }
}

fn receipt() -> String {
    let agent = json!({"agent": "a", "cpu_seconds": 1.0, "peak_memory_bytes": 1});
    json!({
        "receipt_version": 1, "clone_id": UID, "digest": "11".repeat(32), "chunk_size": 1_048_576,
        "verified": "digest", "logical_bytes": 1 << 30, "data_bytes": 5, "zero_bytes": 6,
        "wire_bytes": 7, "resumed_bytes": 0, "sent_bytes": 5, "resent_bytes": 0, "sessions": 1,
        "seconds": 1.0, "bytes_per_second": 1.0, "finished_unix_seconds": 1,
        "source": agent, "target": agent,
    })
    .to_string()
}

fn report(stage: &str, durable_bytes: u64) -> TargetReport {
    TargetReport {
        stage: stage.to_owned(),
        logical_bytes: 1 << 30,
        durable_bytes,
        bytes_per_second: 80.0 * 1024.0 * 1024.0,
        limit: "peer".to_owned(),
        checkpoint: Some(json!({"durable": durable_bytes})),
        ..TargetReport::default()
    }
}

/// Driver, storage class and snapshot class of one backend.
fn with_backend(world: &mut World, annotations: &Value) {
    let around = around(world);
    let csi = json!({"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "d.io", "volumeHandle": "h"}}});
    around.source_volume = Some(of(csi));
    around.storage_classes = vec![
        of(json!({"metadata": {"name": "own", "annotations": annotations}, "provisioner": "d.io"})),
        of(json!({"metadata": {"name": "other"}, "provisioner": "e.io"})),
    ];
    around.snapshot_classes = vec![SnapshotClass {
        name: "shots".to_owned(),
        driver: "d.io".to_owned(),
        is_default: true,
    }];
}

/// An agent's pod that ended well at this second, and left `message`.
fn ended_well(world: &World, end: End, seconds: i64, message: &str) -> Pod {
    let mut ended = container(&json!({"state": {"terminated": {
        "exitCode": 0, "message": message, "finishedAt": at(seconds).to_string()}}}));
    ended["status"]["phase"] = json!("Succeeded");
    pod(world, end, &ended)
}
