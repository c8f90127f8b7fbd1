//! The decision, row by row: a world made by hand, and what is decided of it.

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
    ClaimUser, Grant, Rejection, Settings, Snapshot, SnapshotClass, TargetReport, Users,
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
        rejection: None,
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

/// Has the credentials end at this second.
fn expire(world: &mut World, seconds: i64) {
    let expiry = at(seconds).as_second().to_string();
    for belonging in &mut world.belongings {
        let annotation = (names::EXPIRY_ANNOTATION.to_owned(), expiry.clone());
        belonging.annotations.extend([annotation]);
    }
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

#[test]
fn nothing_is_made_before_the_object_is_kept() {
    let mut world = world(&json!({}));
    world.clone.metadata.finalizers = None;
    let decision = decide(&world);
    assert_eq!(decision.steps, [Step::AddFinalizer]);
    assert_eq!(decision.status, None);
}

#[test]
fn a_clone_goes_from_pods_to_proof() {
    let mut world = world(&json!({}));
    let (steps, decision) = decide_in(&mut world);
    let expected = [
        "Mint",
        "apply network policy home/volferry-UID-source",
        "apply network policy home/volferry-UID-target",
        "apply pod home/volferry-UID-target",
    ];
    assert_eq!(steps, expected);
    assert_eq!(decision.notes[0].reason, Reason::StrategyChosen);
    assert!(
        decision.notes[0].message.contains("HostAssisted, chosen"),
        "{decision:?}"
    );
    assert_eq!(condition(&world, "Accepted").0, "True");

    world.belongings = provided(&world);
    world.pods = vec![pod(&world, End::Target, &json!({}))];
    world.pods[0]
        .status
        .as_mut()
        .unwrap()
        .container_statuses
        .as_mut()
        .unwrap()[0]
        .ready = false;
    assert_eq!(
        decide_in(&mut world).0,
        Vec::<String>::new(),
        "it does not listen yet"
    );
    world.pods = vec![pod(&world, End::Target, &json!({}))];
    assert_eq!(
        decide_in(&mut world).0,
        ["apply pod home/volferry-UID-source"]
    );

    world.pods.push(pod(&world, End::Source, &json!({})));
    world.surroundings = None;
    world.report = Some(report("transfer", 1 << 29));
    assert_eq!(decide_in(&mut world).0, Vec::<String>::new());
    let status = world.clone.status.clone().unwrap();
    assert_eq!(status.phase, Phase::Cloning);
    let progress = status.progress.unwrap();
    assert_eq!((&*progress.percent, &*progress.rate), ("50%", "80 MiB/s"));
    assert!(status.checkpoint.is_some());

    let ended = container(&json!({"state": {"terminated": {"exitCode": 0, "message": receipt()}}}));
    let mut succeeded = json!({"status": {"phase": "Succeeded"}});
    merge(&mut succeeded, &ended);
    world.pods[0] = pod(&world, End::Target, &succeeded);
    let (_, decision) = decide_in(&mut world);
    assert_eq!(
        condition(&world, "Ready"),
        ("True", "Proven", &*decision.notes[0].message)
    );
    let status = world.clone.status.clone().unwrap();
    assert_eq!(status.phase, Phase::Ready);
    assert_eq!(status.receipt.unwrap().logical_bytes, 1 << 30);
    assert_eq!(status.checkpoint, None);

    let (steps, _) = decide_in(&mut world);
    assert_eq!(steps[0], "attest to");
    assert_eq!(steps.len(), 1 + 2 + 4, "{steps:?}");
    world.pods.clear();
    world.belongings.clear();
    let attested = json!({"metadata": {"annotations": {RECEIPT_ANNOTATION: receipt()}}});
    world.target_claim = Some(claim("home", "to", &attested));
    assert_eq!(decide(&world), Decision::default(), "it rests");
}

#[test]
fn what_is_not_there_is_waited_for() {
    let mut no_source = world(&json!({}));
    around(&mut no_source).source_claim = None;
    check_stop(
        no_source,
        Phase::Pending,
        Reason::SourceNotFound,
        "home/from",
    );
    let mut unbound = world(&json!({}));
    let pending = json!({"status": {"phase": "Pending"}});
    around(&mut unbound).source_claim = Some(claim("home", "from", &pending));
    check_stop(unbound, Phase::Pending, Reason::SourceNotBound, "Pending");
    let mut no_target = world(&json!({}));
    no_target.target_claim = None;
    check_stop(no_target, Phase::Pending, Reason::TargetNotFound, "home/to");
    let mut no_snapshot = world(&json!({"source": {"volumeSnapshot": {"name": "shot"}}}));
    around(&mut no_snapshot).source_claim = None;
    check_stop(
        no_snapshot.clone(),
        Phase::Pending,
        Reason::SourceNotFound,
        "shot",
    );
    let unready = Snapshot {
        error: Some("the driver is busy".to_owned()),
        ..Snapshot::default()
    };
    around(&mut no_snapshot).source_snapshot = Some(unready);
    check_stop(
        no_snapshot,
        Phase::Pending,
        Reason::SnapshotNotReady,
        "is busy",
    );
    let mut many = world(&json!({}));
    many.admission = Err("16 clones run already".to_owned());
    check_stop(many, Phase::Pending, Reason::Queued, "16 clones");
}

#[test]
fn without_the_surroundings_nothing_is_decided() {
    let mut world = world(&json!({}));
    world.surroundings = None;
    let decision = decide(&world);
    let expected = Decision {
        needs_surroundings: true,
        ..Decision::default()
    };
    assert_eq!(decision, expected);
}

#[test]
fn a_target_that_is_too_small_or_not_ours_is_left_alone() {
    let mut small = world(&json!({}));
    let half = json!({"status": {"capacity": {"storage": "512Mi"}}});
    small.target_claim = Some(claim("home", "to", &half));
    check_stop(small, Phase::Failed, Reason::TargetTooSmall, "536870912");
    let template = json!({"target": {"claimTemplate": {"metadata": {"name": "to"}}}});
    let mut foreign = world(&template);
    foreign.target_claim = Some(claim("home", "to", &json!({})));
    check_stop(
        foreign,
        Phase::Failed,
        Reason::TargetExists,
        "not made for this clone",
    );
    let mut lost = world(&json!({}));
    lost.target_claim = Some(claim("home", "to", &json!({"status": {"phase": "Lost"}})));
    check_stop(lost, Phase::Failed, Reason::TargetLost, "home/to");
    let mut used = world(&json!({}));
    used.users.target = vec![database()];
    check_stop(used, Phase::Pending, Reason::TargetInUse, "database");
}

#[test]
fn a_source_in_use_is_treated_as_asked() {
    let in_use = |policy: &str, access: &str| {
        let mut world = world(&json!({"inUsePolicy": policy}));
        let modes = json!({"spec": {"accessModes": [access]}});
        world.users.source = vec![database()];
        let around = around(&mut world);
        around.source_claim = Some(claim("home", "from", &modes));
        world
    };
    let once = "ReadWriteOnce";
    check_stop(
        in_use("Wait", once),
        Phase::Pending,
        Reason::SourceInUse,
        "database",
    );
    check_stop(
        in_use("Fail", once),
        Phase::Failed,
        Reason::SourceInUse,
        "database",
    );
    let alone = in_use("Allow", "ReadWriteOncePod");
    check_stop(
        alone,
        Phase::Pending,
        Reason::SourceInUse,
        "ReadWriteOncePod",
    );
    for (access, node) in [(once, Some("node-7")), ("ReadWriteMany", None)] {
        let mut world = in_use("Allow", access);
        decide_in(&mut world);
        target_runs(&mut world);
        let (_, decision) = decide_in(&mut world);
        let pinned = decision.steps.iter().find_map(|step| match step {
            Step::Apply(Object::Pod(pod)) => Some(pod.spec.clone().unwrap().affinity),
            _ => None,
        });
        let pinned = serde_json::to_string(&pinned.unwrap()).unwrap();
        assert_eq!(
            pinned.contains("metadata.name"),
            node.is_some(),
            "{access}: {pinned}"
        );
        assert_eq!(
            pinned.contains("node-7"),
            node.is_some(),
            "{access}: {pinned}"
        );
    }
}

#[test]
fn another_namespace_has_to_consent() {
    let spec = json!({"source": {"namespace": "away"}});
    let grant = |group: &str, namespace: &str, kind: &str, name: Option<&str>| -> Grant {
        of(json!({
            "from": [{"group": group, "kind": "VolumeClone", "namespace": namespace}],
            "to": [{"group": "", "kind": kind, "name": name}],
        }))
    };
    let with = |grants: Vec<Grant>| {
        let mut world = world(&spec);
        around(&mut world).grants = grants;
        world
    };
    let claims = "PersistentVolumeClaim";
    for grants in [
        vec![],
        vec![grant("volferry.io", "elsewhere", claims, None)],
        vec![grant("other.io", "home", claims, None)],
        vec![grant("volferry.io", "home", "Secret", None)],
        vec![grant("volferry.io", "home", claims, Some("other"))],
    ] {
        let world = check_stop(
            with(grants),
            Phase::Pending,
            Reason::NotGranted,
            "namespace away",
        );
        assert_eq!(condition(&world, "Accepted").0, "False");
        assert_eq!(condition(&world, "Accepted").1, "NotGranted");
    }
    for name in [None, Some("from")] {
        let mut world = with(vec![grant("volferry.io", "home", claims, name)]);
        let (steps, _) = decide_in(&mut world);
        assert!(
            steps.contains(&"apply pod home/volferry-UID-target".to_owned()),
            "{steps:?}"
        );
        assert!(steps.contains(&"apply network policy away/volferry-UID-source".to_owned()));

        // What was consented to can be taken back before a pod is made there.
        world.pods = vec![pod(&world, End::Target, &json!({}))];
        around(&mut world).grants.clear();
        check_stop(world, Phase::Pending, Reason::NotGranted, "namespace away");
    }
}

#[test]
fn a_pod_in_another_namespace_lends_nobody_its_rights() {
    let spec = json!({
        "source": {"namespace": "away"},
        "agents": {"serviceAccountName": "boss", "labels": {"app": "bank", "volferry.io/end": "target"},
            "annotations": {"a": "b"}, "imagePullSecrets": [{"name": "s"}], "priorityClassName": "top",
            "nodeSelector": {"disk": "fast"}},
    });
    let mut world = world(&spec);
    around(&mut world).grants = vec![grant_to_home()];
    let made = |decision: &Decision| {
        let mut pods = decision.steps.iter().filter_map(|step| match step {
            Step::Apply(Object::Pod(pod)) => Some(serde_json::to_value(pod).unwrap()),
            _ => None,
        });
        pods.next().unwrap()
    };
    let target = made(&decide_in(&mut world).1);
    assert_eq!(target["spec"]["serviceAccountName"], "boss");
    assert_eq!(target["metadata"]["labels"]["app"], "bank");
    assert_eq!(target["metadata"]["labels"]["volferry.io/end"], "target");
    target_runs(&mut world);
    let source = made(&decide_in(&mut world).1);
    assert_eq!(source["metadata"]["namespace"], "away");
    assert_eq!(source["metadata"]["labels"]["volferry.io/end"], "source");
    assert_eq!(source["spec"]["nodeSelector"]["disk"], "fast");
    assert_eq!(
        source["metadata"]["ownerReferences"],
        Value::Null,
        "owners can't be elsewhere"
    );
    for foreign in [
        "serviceAccountName",
        "imagePullSecrets",
        "priorityClassName",
    ] {
        assert_eq!(source["spec"][foreign], Value::Null, "{foreign}");
    }
    assert_eq!(source["metadata"]["labels"]["app"], Value::Null);
    assert_eq!(source["metadata"]["annotations"]["a"], Value::Null);
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

#[test]
fn auto_takes_the_backend_where_it_can_and_says_why_not() {
    let template = |class: &str, more: &Value| {
        let mut spec = json!({"target": {"claimTemplate": {"metadata": {"name": "to"},
            "spec": {"storageClassName": class}}}});
        merge(&mut spec, more);
        spec
    };
    let check = |spec: Value, backend: Option<Value>, strategy: Strategy, refusal: &str| {
        let mut world = world(&spec);
        if let Some(annotations) = backend {
            with_backend(&mut world, &annotations);
        }
        around(&mut world).grants = vec![grant_to_home()];
        decide_in(&mut world);
        let status = world.clone.status.unwrap();
        assert_eq!(
            status.strategy,
            Some(strategy),
            "{spec}: {:?}",
            status.considered
        );
        let against: Vec<_> = status
            .considered
            .iter()
            .filter(|way| !way.possible)
            .collect();
        let is_told = against.iter().any(|way| way.reason == refusal);
        assert!(
            refusal.is_empty() && against.is_empty() || is_told,
            "{spec}: {against:?}"
        );
    };
    let plain = Some(json!({}));
    let size = |size: &str| json!({"target": {"claimTemplate": {"spec": {"resources": {"requests": {"storage": size}}}}}});
    check(
        template("own", &json!({})),
        plain.clone(),
        Strategy::CsiClone,
        "",
    );
    check(
        template("own", &size("2Gi")),
        plain.clone(),
        Strategy::CsiClone,
        "",
    );
    check(
        template("own", &size("1Mi")),
        plain.clone(),
        Strategy::HostAssisted,
        "TooSmall",
    );
    check(
        template("other", &json!({})),
        plain.clone(),
        Strategy::HostAssisted,
        "OtherDriver",
    );
    check(
        template("none", &json!({})),
        plain.clone(),
        Strategy::HostAssisted,
        "NoStorageClass",
    );
    check(
        json!({}),
        plain.clone(),
        Strategy::HostAssisted,
        "TargetExists",
    );
    let away = json!({"source": {"namespace": "away"}});
    check(
        template("own", &away),
        plain.clone(),
        Strategy::CsiClone,
        "",
    );
    let files = json!({"target": {"claimTemplate": {"spec": {"volumeMode": "Filesystem"}}}});
    check(
        template("own", &files),
        plain.clone(),
        Strategy::HostAssisted,
        "OtherVolumeMode",
    );
    check(
        template("own", &json!({})),
        None,
        Strategy::HostAssisted,
        "NoCsiDriver",
    );
    let off = Some(json!({"volferry.io/csi-clone": "false"}));
    check(
        template("own", &json!({})),
        off,
        Strategy::Snapshot,
        "SwitchedOff",
    );
    let wanted = json!({"strategy": "HostAssisted"});
    check(template("own", &wanted), plain, Strategy::HostAssisted, "");
}

#[test]
fn a_way_that_was_asked_for_is_not_exchanged() {
    let spec = json!({"strategy": "CsiClone", "target": {"claimTemplate": {"metadata": {"name": "to"},
        "spec": {"storageClassName": "other"}}}});
    let mut world = world(&spec);
    with_backend(&mut world, &json!({}));
    check_stop(
        world,
        Phase::Failed,
        Reason::StrategyImpossible,
        "storage class other on e.io",
    );
}

#[test]
fn a_backend_that_refuses_gives_way_to_the_next() {
    let spec = json!({"target": {"claimTemplate": {"metadata": {"name": "to"},
        "spec": {"storageClassName": "own"}}}});
    let mut world = world(&spec);
    with_backend(&mut world, &json!({}));
    around(&mut world).snapshot_classes.clear();
    assert_eq!(decide_in(&mut world).0, ["apply claim home/to"]);
    let made = json!({"metadata": {"creationTimestamp": at(0).to_string()}, "status": {"phase": "Pending"},
        "spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "from"}}});
    world.target_claim = Some(claim("home", "to", &made));
    let mut ours = belonging(&world, Kind::Claim, End::Target);
    ours.name = "to".to_owned();
    world.belongings = vec![ours];
    assert_eq!(decide_in(&mut world).0, Vec::<String>::new());
    assert_eq!(condition(&world, "Progressing").1, "Provisioning");

    around(&mut world).target_warnings = vec!["no room today".to_owned()];
    let held = check_stop(
        world.clone(),
        Phase::Pending,
        Reason::ProvisioningFailed,
        "no room",
    );
    assert_eq!(
        held.clone.status.unwrap().strategy,
        Some(Strategy::CsiClone)
    );

    around(&mut world).target_warnings = vec!["clone is not supported".to_owned()];
    decide_in(&mut world);
    assert_eq!(
        world.clone.status.as_ref().unwrap().strategy,
        Some(Strategy::HostAssisted)
    );
    assert_eq!(decide_in(&mut world).0, ["delete Claim home/to"]);
    world.target_claim = None;
    world.belongings.clear();
    let (steps, _) = decide_in(&mut world);
    assert_eq!(steps[0], "apply claim home/to");
    assert_eq!(steps.last().unwrap(), "apply pod home/volferry-UID-target");
}

#[test]
fn a_snapshot_is_taken_and_restored() {
    let spec = json!({"strategy": "Snapshot", "target": {"claimTemplate": {"metadata": {"name": "to"},
        "spec": {"storageClassName": "own"}}}});
    let mut world = world(&spec);
    with_backend(&mut world, &json!({}));
    assert_eq!(
        decide_in(&mut world).0,
        ["apply snapshot home/volferry-UID-source"]
    );
    around(&mut world).taken_snapshot = Some(Snapshot {
        name: "taken".to_owned(),
        is_ready: true,
        ..Snapshot::default()
    });
    let (steps, decision) = decide_in(&mut world);
    assert_eq!(steps, ["apply claim home/to"]);
    let Step::Apply(Object::Claim(made)) = &decision.steps[0] else {
        unreachable!();
    };
    let source = made.spec.as_ref().unwrap().data_source.clone().unwrap();
    assert_eq!((&*source.kind, &*source.name), ("VolumeSnapshot", "taken"));
    let bound = json!({"spec": {"dataSource": {"kind": "VolumeSnapshot", "name": "taken",
        "apiGroup": "snapshot.storage.k8s.io"}}});
    world.target_claim = Some(claim("home", "to", &bound));
    let annotations = json!({names::PROVISIONED_BY_ANNOTATION: "d.io"});
    world.filled_volume = Some(of(
        json!({"metadata": {"name": "pv", "annotations": annotations}}),
    ));
    let mut ours = belonging(&world, Kind::Claim, End::Target);
    ours.name = "to".to_owned();
    world.belongings = vec![ours, belonging(&world, Kind::Snapshot, End::Source)];
    decide_in(&mut world);
    assert_eq!(condition(&world, "Ready").1, "ClonedByBackend");
    let expected = ["delete Snapshot home/volferry-UID-source"];
    assert_eq!(
        decide_in(&mut world).0,
        expected,
        "the target stays, the snapshot goes"
    );
}

#[test]
fn a_source_in_use_is_cloned_by_a_snapshot_where_that_is_wanted() {
    let mut world = world(&json!({"inUsePolicy": "Snapshot"}));
    world.users.source = vec![database()];
    check_stop(
        world.clone(),
        Phase::Failed,
        Reason::StrategyImpossible,
        "no CSI driver",
    );
    with_backend(&mut world, &json!({}));
    assert_eq!(
        decide_in(&mut world).0,
        ["apply snapshot home/volferry-UID-source"]
    );
    assert_eq!(condition(&world, "Progressing").1, "TakingSnapshot");
    around(&mut world).taken_snapshot = Some(Snapshot {
        name: "taken".to_owned(),
        uid: "taken-uid".to_owned(),
        is_ready: true,
        restore_bytes: Some(1 << 30),
        class: Some("shots".to_owned()),
        ..Snapshot::default()
    });
    world.users.source.clear();
    let (steps, _) = decide_in(&mut world);
    assert_eq!(
        steps[0], "apply claim home/volferry-UID-source",
        "it stays with the snapshot"
    );
    assert_eq!(steps.last().unwrap(), "apply pod home/volferry-UID-target");
    target_runs(&mut world);
    let restored = claim("home", &names::name(&world.clone, End::Source), &json!({}));
    around(&mut world).restored_claim = Some(restored);
    let (_, decision) = decide_in(&mut world);
    let source = format!("{:?}", decision.steps);
    assert!(source.contains("--source-generation=taken-uid"), "{source}");
    assert!(
        source.contains(&format!("claim_name: \"volferry-{UID}-source\"")),
        "{source}"
    );
    assert!(!source.contains("node-7"), "{source}");
}

#[test]
fn agents_read_a_snapshot_from_a_claim_of_its_own() {
    let mut world = world(&json!({"source": {"volumeSnapshot": {"name": "shot"}}}));
    with_backend(&mut world, &json!({}));
    let around = around(&mut world);
    around.source_claim = None;
    around.source_snapshot = Some(Snapshot {
        name: "shot".to_owned(),
        uid: "shot-uid".to_owned(),
        is_ready: true,
        restore_bytes: Some(1 << 30),
        volume_mode: Some(VolumeMode::Block),
        class: Some("shots".to_owned()),
        error: None,
    });
    let (steps, _) = decide_in(&mut world);
    assert_eq!(steps[0], "apply claim home/volferry-UID-source");
    assert_eq!(steps.last().unwrap(), "apply pod home/volferry-UID-target");
    target_runs(&mut world);
    let (_, decision) = decide_in(&mut world);
    let source = serde_json::to_string(&format!("{:?}", decision.steps)).unwrap();
    assert!(source.contains("--source-generation=shot-uid"), "{source}");
}

#[test]
fn a_snapshot_that_was_taken_in_vain_vouches_for_nothing() {
    let mut world = world(&json!({}));
    around(&mut world).taken_snapshot = Some(Snapshot {
        name: "taken".to_owned(),
        uid: "taken-uid".to_owned(),
        is_ready: true,
        ..Snapshot::default()
    });
    target_runs(&mut world);
    let (steps, decision) = decide_in(&mut world);
    assert_eq!(steps, ["apply pod home/volferry-UID-source"]);
    let source = format!("{:?}", decision.steps);
    assert!(!source.contains("--source-generation"), "{source}");
}

#[test]
fn volume_modes_convert_and_tails_are_zeroed() {
    let check =
        |source: Value, target: Value, expected: [&str; 2], has: &[&str], lacks: &[&str]| {
            let mut world = world(&json!({}));
            around(&mut world).source_claim = Some(claim("home", "from", &source));
            world.target_claim = Some(claim("home", "to", &target));
            let mut args = Vec::new();
            for at in 0..2 {
                let (_, decision) = decide_in(&mut world);
                let made = decision.steps.iter().find_map(|step| match step {
                    Step::Apply(Object::Pod(pod)) => {
                        pod.spec.clone().unwrap().containers[0].args.clone()
                    }
                    _ => None,
                });
                args.extend(made.unwrap());
                let end = [End::Target, End::Source][at];
                world.pods.push(pod(&world, end, &json!({})));
                world.belongings = provided(&world);
            }
            for flag in expected.iter().map(|path| format!("--volume={path}")) {
                assert!(args.contains(&flag), "{flag}: {args:?}");
            }
            for flag in has {
                assert!(args.iter().any(|arg| arg == flag), "{flag}: {args:?}");
            }
            for flag in lacks {
                assert!(!args.iter().any(|arg| arg == flag), "{flag}: {args:?}");
            }
        };
    let block = json!({});
    let files = json!({"spec": {"volumeMode": "Filesystem"}});
    let larger = json!({"status": {"capacity": {"storage": "2Gi"}}});
    let (source_device, target_device) = ("/dev/volferry-source", "/dev/volferry-target");
    check(
        block.clone(),
        block.clone(),
        [source_device, target_device],
        &[],
        &["--zero-tail", "--overwrite"],
    );
    check(
        block.clone(),
        larger,
        [source_device, target_device],
        &["--zero-tail"],
        &[],
    );
    check(
        block.clone(),
        files.clone(),
        [source_device, "/target"],
        &[],
        &["--zero-tail"],
    );
    check(
        files.clone(),
        block,
        ["/source/disk.img", target_device],
        &[],
        &[],
    );
    check(
        files.clone(),
        files,
        ["/source", "/target"],
        &[],
        &["--overwrite"],
    );
}

/// Whether the sources of an agent declare this flag.
fn is_flag(flag: &str, sources: &[&str]) -> bool {
    let field = flag.trim_start_matches("--").replace('-', "_");
    let declared = [format!("    {field}: "), format!("    pub {field}: ")];
    let mut lines = sources.iter().flat_map(|source| source.lines());
    lines.any(|line| declared.iter().any(|field| line.starts_with(&**field)))
}

#[test]
fn agents_are_given_flags_that_they_have() {
    let agent = include_str!("../../../agent/src/options.rs");
    let source = [agent, include_str!("../../../source-agent/src/main.rs")];
    let options = include_str!("../../../target-agent/src/options.rs");
    let target = [
        agent,
        options,
        include_str!("../../../target-agent/src/main.rs"),
    ];
    let spec = json!({"accept": ["ownership", "times"], "transport": {"streams": 3,
        "protocol": "Auto", "compression": "zstd:3", "bandwidthLimit": "1.5Mi"}, "verify": "Readback",
        "resume": "Digest", "inUsePolicy": "Allow"});
    let world = world(&spec);
    let ends = [
        (
            EndPlan::Source {
                target: "fd00::1".parse().unwrap(),
                generation: Some("uid".to_owned()),
            },
            &source[..],
        ),
        (
            EndPlan::Target {
                has_checkpoint: true,
                may_overwrite: true,
                zero_tail: true,
            },
            &target[..],
        ),
    ];
    for (end, sources) in ends {
        for view in [View::Device, View::Directory, View::Image] {
            let plan = PodPlan {
                claim: "claim".to_owned(),
                view,
                node: None,
                is_privileged: false,
                end: end.clone(),
            };
            let pod = objects::pod(&world.clone, &world.settings, &plan);
            let args = pod.spec.unwrap().containers.remove(0).args.unwrap();
            assert!(args.len() >= 11, "{args:?}");
            for arg in &args {
                let flag = arg.split('=').next().unwrap();
                assert!(is_flag(flag, sources), "{flag} of {end:?}");
            }
            let has = |arg: &str| args.iter().any(|found| found == arg);
            assert!(has("--accept=ownership,times"), "{args:?}");
            match end {
                EndPlan::Source { .. } => {
                    let own = [
                        "--target=[fd00::1]:7700",
                        "--transport=auto",
                        "--compression=zstd:3",
                    ];
                    assert!(own.iter().all(|arg| has(arg)), "{args:?}");
                    assert!(has("--bandwidth-limit=1572864"), "{args:?}");
                }
                EndPlan::Target { .. } => assert!(has("--verify=readback"), "{args:?}"),
            }
        }
    }
    assert!(!is_flag("--no-such", &target));
}

#[test]
fn policies_open_what_the_agents_talk_over() {
    let check = |protocol: &str, expected: &[&str]| {
        let world = world(&json!({"transport": {"protocol": protocol}}));
        for end in End::ALL {
            let policy = objects::policy(&world.clone, &world.settings, end);
            let spec = serde_json::to_value(policy).unwrap()["spec"].clone();
            let rules = ["ingress", "egress"].map(|way| spec[way][0]["ports"].clone());
            let open = rules.iter().find(|ports| ports.is_array()).unwrap();
            let protocols = open
                .as_array()
                .unwrap()
                .iter()
                .map(|port| &port["protocol"]);
            assert_eq!(protocols.collect::<Vec<_>>(), expected, "{end:?}");
        }
    };
    check("Tcp", &["TCP"]);
    check("Quic", &["TCP", "UDP"]);
    check("Auto", &["TCP", "UDP"]);
}

/// What the restricted Pod Security Standard asks of a pod.
#[test]
fn pods_fit_the_restricted_standard() {
    let mut world = world(&json!({}));
    let check = |decision: &Decision| {
        let made = decision.steps.iter().find_map(|step| match step {
            Step::Apply(Object::Pod(pod)) => Some(serde_json::to_value(pod).unwrap()),
            _ => None,
        });
        let spec = made.unwrap()["spec"].take();
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert!(spec["securityContext"]["runAsUser"].as_i64() > Some(0));
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        assert_eq!(spec["automountServiceAccountToken"], false);
        let security = &spec["containers"][0]["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
        for foreign in ["hostNetwork", "hostPID", "hostIPC"] {
            assert_eq!(spec[foreign], Value::Null);
        }
        for volume in spec["volumes"].as_array().unwrap() {
            let mut kinds = volume.as_object().unwrap().keys();
            assert!(!kinds.any(|kind| kind == "hostPath"), "{volume}");
        }
    };
    check(&decide_in(&mut world).1);
    target_runs(&mut world);
    check(&decide_in(&mut world).1);
}

#[test]
fn only_an_administrator_lends_privileges_and_only_for_trees() {
    let files = json!({"spec": {"volumeMode": "Filesystem"}});
    let check = |mode: &Value, allowed: bool, expected: i64| {
        let mut world = world(&json!({}));
        around(&mut world).source_claim = Some(claim("home", "from", mode));
        world.target_claim = Some(claim("home", "to", mode));
        around(&mut world)
            .privileged
            .insert("home".to_owned(), allowed);
        let (_, decision) = decide_in(&mut world);
        let user = decision.steps.iter().find_map(|step| match step {
            Step::Apply(Object::Pod(pod)) => {
                pod.spec
                    .clone()
                    .unwrap()
                    .security_context
                    .unwrap()
                    .run_as_user
            }
            _ => None,
        });
        assert_eq!(user, Some(expected));
    };
    check(&files, true, 0);
    check(&files, false, 65532);
    check(&json!({}), true, 65532);
}

#[test]
fn a_claim_goes_where_the_scheduler_wants_it() {
    let mut world = world(&json!({}));
    let pending = json!({"status": {"phase": "Pending"},
        "metadata": {"annotations": {"volume.kubernetes.io/selected-node": "node-3"}}});
    world.target_claim = Some(claim("home", "to", &pending));
    let (_, decision) = decide_in(&mut world);
    assert!(format!("{:?}", decision.steps).contains("node-3"));
}

#[test]
fn what_keeps_a_pod_from_starting_is_told_in_the_apis_words() {
    let check = |change: Value, reason: Reason, words: &str| {
        for end in End::ALL {
            let mut world = under_way(&json!({}));
            if end == End::Source {
                world.pods.push(pod(&world, End::Target, &json!({})));
            }
            world.pods.push(pod(&world, end, &change));
            check_stop(world, Phase::Pending, reason, words);
        }
    };
    let mut pending = json!({"status": {"phase": "Pending", "containerStatuses": null, "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient cpu."}]}});
    check(pending.clone(), Reason::Unschedulable, "3 Insufficient cpu");
    pending["status"]["conditions"] = Value::Null;
    let waits = |word: &str| {
        let mut change = container(
            &json!({"state": {"running": null, "waiting": {"reason": word, "message": "the words"}}}),
        );
        change["status"]["phase"] = json!("Pending");
        change
    };
    check(
        waits("ImagePullBackOff"),
        Reason::ImagePull,
        "ImagePullBackOff: the words",
    );
    check(waits("ErrImagePull"), Reason::ImagePull, "the words");
    check(
        waits("CreateContainerConfigError"),
        Reason::ContainerFailed,
        "the words",
    );
    let mut world = under_way(&json!({}));
    world
        .pods
        .push(pod(&world, End::Target, &waits("ContainerCreating")));
    decide_in(&mut world);
    assert_eq!(world.clone.status.as_ref().unwrap().phase, Phase::Preparing);
    let mut slow = waits("ContainerCreating");
    slow["metadata"]["creationTimestamp"] = json!(at(0).to_string());
    world.pods = vec![pod(&world, End::Target, &slow)];
    world.now = at(59);
    assert!(decide(&world).is_idle());
    world.now = at(60);
    let words = "describe pod --namespace home volferry-";
    check_stop(world, Phase::Pending, Reason::PodPending, words);
}

#[test]
fn what_the_api_refuses_is_told_until_it_does_not() {
    let check = |message: &str, reason: &str| {
        let mut world = world(&json!({}));
        world.rejection = Some(Rejection {
            what: "pod home/x".to_owned(),
            message: message.to_owned(),
        });
        let (steps, _) = decide_in(&mut world);
        assert!(!steps.is_empty(), "it is tried again");
        let (status, found, told) = condition(&world, "Progressing");
        assert_eq!((status, found), ("False", reason));
        assert!(told.contains(message), "{told}");
        world.rejection = None;
        decide_in(&mut world);
        assert_eq!(condition(&world, "Progressing").1, "Preparing");
    };
    check(
        "pods \"x\" is forbidden: exceeded quota: pods, used: 9",
        "QuotaExceeded",
    );
    check("violates PodSecurity \"restricted:latest\"", "Rejected");
}

#[test]
fn a_failure_that_nothing_mends_ends_the_clone() {
    let failure = json!({"failure": {"class": "target", "code": "target_in_use", "exit_code": 4,
        "retryable": false, "text": "the device is mounted"}});
    let mut world = under_way(&json!({}));
    let ended = container(&json!({"restartCount": 1, "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 4, "message": failure.to_string()}}}));
    world.pods = vec![pod(&world, End::Target, &ended)];
    let mut world = check_stop(
        world,
        Phase::Failed,
        Reason::AgentFailed,
        "the device is mounted",
    );
    let status = world.clone.status.clone().unwrap();
    assert!(status.failure.unwrap().message.contains("target_in_use"));
    let (steps, _) = decide_in(&mut world);
    assert!(
        steps.contains(&"delete Pod home/volferry-UID-target".to_owned()),
        "{steps:?}"
    );
    assert!(
        !steps.iter().any(|step| step.contains("Claim")),
        "{steps:?}"
    );
}

#[test]
fn without_a_receipt_nothing_is_proven() {
    let mut succeeded =
        container(&json!({"state": {"terminated": {"exitCode": 0, "message": "{\"cut"}}}));
    succeeded["status"]["phase"] = json!("Succeeded");
    let mut world = under_way(&json!({}));
    world.pods = vec![
        pod(&world, End::Target, &succeeded),
        pod(&world, End::Source, &succeeded),
    ];
    check_stop(
        world,
        Phase::Failed,
        Reason::AgentFailed,
        "without a receipt",
    );
}

/// An agent's pod that ended well at this second, and left `message`.
fn ended_well(world: &World, end: End, seconds: i64, message: &str) -> Pod {
    let mut ended = container(&json!({"state": {"terminated": {
        "exitCode": 0, "message": message, "finishedAt": at(seconds).to_string()}}}));
    ended["status"]["phase"] = json!("Succeeded");
    pod(world, end, &ended)
}

#[test]
fn a_receipt_of_the_source_proves_nothing() {
    for spec in [json!({}), json!({"source": {"namespace": "away"}})] {
        let mut world = under_way(&spec);
        around(&mut world).grants = vec![grant_to_home()];
        decide_in(&mut world);
        let target = pod(&world, End::Target, &json!({}));
        let source = ended_well(&world, End::Source, 0, &receipt());
        world.pods = vec![target, source];

        // The target may not have ended yet.
        world.now = at(60);
        let (steps, _) = decide_in(&mut world);
        assert_eq!(steps, Vec::<String>::new());
        let status = world.clone.status.clone().unwrap();
        assert_eq!((status.phase, &status.receipt), (Phase::Cloning, &None));

        // It was lost before it showed a receipt, or there was none.
        world.now = at(91);
        let (steps, _) = decide_in(&mut world);
        let namespace = world.clone.source_namespace();
        assert_eq!(
            steps,
            [format!("delete Pod {namespace}/volferry-UID-source")]
        );
        let status = world.clone.status.clone().unwrap();
        assert_eq!(status.receipt, None);
        assert_eq!(status.attempts.source.failures, 1);
        assert_eq!(condition(&world, "Progressing").1, "AgentReplaced");

        // Without a target there is nobody to believe.
        world.pods.remove(0);
        let (steps, _) = decide_in(&mut world);
        assert_eq!(steps, ["apply pod home/volferry-UID-target"]);
        assert_eq!(world.clone.status.clone().unwrap().receipt, None);

        // Nor beside one that ended and has none.
        world
            .pods
            .push(ended_well(&world, End::Target, 95, "nothing"));
        check_stop(
            world,
            Phase::Failed,
            Reason::AgentFailed,
            "the target agent ended without a receipt",
        );
    }
}

#[test]
fn pods_that_die_are_replaced_and_go_on_from_the_checkpoint() {
    let mut world = under_way(&json!({}));
    let died = json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"}});
    world.pods = vec![
        pod(&world, End::Target, &json!({})),
        pod(&world, End::Source, &json!({})),
    ];
    world.report = Some(report("transfer", 1 << 28));
    decide_in(&mut world);
    world.report = None;
    world.pods[0] = pod(&world, End::Target, &died);
    let (steps, _) = decide_in(&mut world);
    assert_eq!(steps, ["delete Pod home/volferry-UID-target"]);
    assert_eq!(condition(&world, "Progressing").1, "AgentReplaced");
    let attempts = world.clone.status.clone().unwrap().attempts.target;
    assert_eq!(
        (attempts.failures, attempts.replaced_uid.as_deref()),
        (1, Some("uid-target"))
    );
    assert!(attempts.last_failure.unwrap().contains("low on memory"));
    decide_in(&mut world);
    assert_eq!(
        world.clone.status.clone().unwrap().attempts.target.failures,
        1,
        "counted once"
    );

    world.pods.remove(0);
    let (steps, decision) = decide_in(&mut world);
    assert_eq!(steps, Vec::<String>::new(), "a pause first");
    assert!(decision.again.unwrap() <= Duration::from_secs(5));
    world.now = at(6);
    let (steps, decision) = decide_in(&mut world);
    let expected = [
        "apply config map home/volferry-UID-target",
        "apply pod home/volferry-UID-target",
    ];
    assert_eq!(steps, expected);
    assert!(format!("{:?}", decision.steps).contains("--resume-from=/checkpoint/checkpoint.json"));

    let moved = json!({"metadata": {"uid": "uid-2"}, "status": {"podIP": "10.0.0.8"}});
    world.pods.push(pod(&world, End::Target, &moved));
    let (steps, _) = decide_in(&mut world);
    assert_eq!(
        steps,
        ["delete Pod home/volferry-UID-source"],
        "it dials the old address"
    );
}

#[test]
fn agents_that_fail_too_often_end_the_clone() {
    let mut world = under_way(&json!({"backoffLimit": 2}));
    let restarted = |count: i32| {
        container(
            &json!({"restartCount": count, "ready": true, "state": {"running": {}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}),
        )
    };
    world.pods = vec![
        pod(&world, End::Target, &restarted(2)),
        pod(&world, End::Source, &json!({})),
    ];
    decide_in(&mut world);
    assert_eq!(world.clone.status.as_ref().unwrap().phase, Phase::Cloning);
    world.pods[1] = pod(&world, End::Source, &restarted(1));
    check_stop(
        world,
        Phase::Failed,
        Reason::BackoffLimitExceeded,
        "OOMKilled",
    );
}

#[test]
fn a_pod_that_is_leaving_is_waited_for() {
    let leaving = json!({"metadata": {"deletionTimestamp": at(0).to_string()}});
    let mut world = under_way(&json!({}));
    world.pods = vec![pod(&world, End::Target, &leaving)];
    check_stop(world, Phase::Pending, Reason::PodLeaving, "target");
}

#[test]
fn progress_is_told_ever_more_rarely() {
    let mut world = under_way(&json!({}));
    world.pods = vec![
        pod(&world, End::Target, &json!({})),
        pod(&world, End::Source, &json!({})),
    ];
    world.surroundings = None;
    let mut writes = 0;
    for second in (0..600).step_by(5) {
        world.now = at(second);
        world.report = Some(report("transfer", u64::try_from(second).unwrap() << 20));
        writes += usize::from(decide_in(&mut world).1.status.is_some());
    }
    assert!((8..=14).contains(&writes), "{writes}");
}

#[test]
fn deadline_suspend_and_time_to_live() {
    let mut world = under_way(&json!({"deadlineSeconds": 60}));
    world.pods = vec![
        pod(&world, End::Target, &json!({})),
        pod(&world, End::Source, &json!({})),
    ];
    world.now = at(59);
    assert_eq!(decide_in(&mut world).1.again, Some(Duration::from_secs(1)));
    world.now = at(60);
    check_stop(
        world,
        Phase::Failed,
        Reason::DeadlineExceeded,
        "deadlineSeconds: 60",
    );

    let mut world = under_way(&json!({}));
    world.pods = vec![
        pod(&world, End::Target, &json!({})),
        pod(&world, End::Source, &json!({})),
    ];
    world.report = Some(report("transfer", 7 << 20));
    world.clone.spec.suspend = true;
    let (steps, _) = decide_in(&mut world);
    assert_eq!(steps.len(), 2, "{steps:?}");
    let status = world.clone.status.clone().unwrap();
    assert_eq!(status.phase, Phase::Suspended);
    assert!(status.checkpoint.unwrap().contains(&(7 << 20).to_string()));
    world.pods.clear();
    world.clone.spec.suspend = false;
    let (steps, _) = decide_in(&mut world);
    assert_eq!(steps.last().unwrap(), "apply pod home/volferry-UID-target");

    let mut world = under_way(&json!({"ttlSecondsAfterFinished": 30}));
    world.belongings.clear();
    let status = world.clone.status.as_mut().unwrap();
    status.phase = Phase::Failed;
    status.finished_at = Some(Time(at(0)));
    world.now = at(10);
    assert_eq!(decide(&world).again, Some(Duration::from_secs(20)));
    world.now = at(31);
    assert_eq!(decide(&world).steps, [Step::Expire]);
}

#[test]
fn a_deleted_clone_leaves_nothing_but_what_is_proven() {
    let template = json!({"target": {"claimTemplate": {"metadata": {"name": "to"}}}});
    for phase in [Phase::Cloning, Phase::Failed, Phase::Ready] {
        let mut world = under_way(&template);
        let mut ours = belonging(&world, Kind::Claim, End::Target);
        ours.name = "to".to_owned();
        world.belongings.push(ours);
        world.pods = vec![
            pod(&world, End::Target, &json!({})),
            pod(&world, End::Source, &json!({})),
        ];
        world.clone.status.as_mut().unwrap().phase = phase;
        world.clone.metadata.deletion_timestamp = Some(Time(at(0)));
        let (steps, _) = decide_in(&mut world);
        let kept = phase == Phase::Ready;
        let claims = steps
            .iter()
            .filter(|step| *step == "delete Claim home/to")
            .count();
        assert_eq!(claims, usize::from(!kept), "{phase:?}: {steps:?}");
        assert!(
            !steps.contains(&"RemoveFinalizer".to_owned()),
            "the pods are still there"
        );
        world.pods.clear();
        world
            .belongings
            .retain(|belonging| kept && belonging.kind == Kind::Claim);
        assert_eq!(decide_in(&mut world).0, ["RemoveFinalizer"], "{phase:?}");
    }
}

/// A volume that was filled, and is on its way from the prime claim to the target claim.
fn handed_over(is_bound: bool) -> World {
    let template = json!({"deadlineSeconds": 60,
        "target": {"claimTemplate": {"metadata": {"name": "to"}}}});
    let mut world = under_way(&template);
    let mut ours = belonging(&world, Kind::Claim, End::Target);
    ours.name = "to".to_owned();
    world.belongings = vec![ours];
    let change = match is_bound {
        true => json!({"spec": {"volumeName": "filled"}}),
        false => json!({"spec": {"volumeName": null}, "status": {"phase": "Pending"}}),
    };
    world.target_claim = Some(claim("home", "to", &change));
    let status = world.clone.status.as_mut().unwrap();
    status.prime = Some(PrimeStatus {
        namespace: "home".to_owned(),
        volume: Some("filled".to_owned()),
    });
    world
}

#[test]
fn a_hand_over_has_no_deadline() {
    let mut world = handed_over(false);
    world.now = at(3600);
    let (_, _) = decide_in(&mut world);
    let status = world.clone.status.as_ref().unwrap();
    let failed = status
        .conditions
        .iter()
        .any(|condition| condition.reason == "DeadlineExceeded");
    assert!(!failed, "{status:?}");
}

/// The volume that was filled, of the claim with this uid.
fn filled(uid: &str, phase: &str) -> PersistentVolume {
    let prime = json!({"namespace": "home", "name": format!("volferry-{UID}-prime"), "uid": uid});
    of(json!({
        "metadata": {"name": "filled", "resourceVersion": "7"},
        "spec": {"claimRef": prime},
        "status": {"phase": phase},
    }))
}

#[test]
fn a_claim_that_was_given_its_volume_outlives_the_clone() {
    let check = |phase: &str, owner: &str, is_kept: bool| {
        let mut world = handed_over(false);
        let target = json!({"spec": {"volumeName": "filled"}, "status": {"phase": phase}});
        world.target_claim = Some(claim("home", "to", &target));
        world.filled_volume = Some(filled(owner, "Bound"));
        world.clone.metadata.deletion_timestamp = Some(Time(at(0)));
        let (steps, _) = decide_in(&mut world);
        let is_removed = steps.contains(&"delete Claim home/to".to_owned());
        assert_eq!(is_removed, !is_kept, "{phase} {owner}: {steps:?}");
    };
    // The name is written before the volume is the claim's, and goes with the prime claim until then.
    check("Pending", "uid-prime", false);
    // Kubernetes has not bound it yet.
    check("Pending", "uid-to", true);
    check("Bound", "uid-to", true);
}

#[test]
fn credentials_are_renewed_before_they_end() {
    let check = |hours: i64, expected: &[Step]| {
        let mut world = under_way(&json!({}));
        world.pods = vec![
            pod(&world, End::Target, &json!({})),
            pod(&world, End::Source, &json!({})),
        ];
        expire(&mut world, hours * 3600);
        assert_eq!(decide(&world).steps, expected, "{hours} h");
    };
    check(12, &[]);
    check(5, &[]);
    check(3, &[Step::Mint]);
    check(-1, &[Step::Mint]);
}

#[test]
fn no_agent_starts_with_credentials_that_end_soon() {
    let short = |steps: &[String]| {
        steps
            .iter()
            .map(|step| step.replace("home/volferry-UID-", ""))
            .collect::<Vec<_>>()
    };
    // A clone that was suspended over a weekend.
    let mut world = under_way(&json!({}));
    expire(&mut world, -1);
    assert_eq!(
        short(&decide_in(&mut world).0),
        ["Mint", "apply pod target"]
    );

    // A target that could not start for long.
    let waiting = json!({"status": {"phase": "Pending", "containerStatuses": [{"ready": false,
        "restartCount": 0, "image": "", "imageID": "", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}});
    world.pods = vec![pod(&world, End::Target, &waiting)];
    assert_eq!(short(&decide_in(&mut world).0), ["Mint"]);

    // A source shows nothing that its target may not have seen yet.
    let created = json!({"metadata": {"creationTimestamp": at(0).to_string()}});
    world.pods = vec![pod(&world, End::Target, &created)];
    assert_eq!(short(&decide_in(&mut world).0), ["Mint"]);
    let validity = i64::try_from(credentials::VALIDITY.as_secs()).unwrap();
    expire(&mut world, validity + 60);
    for (now, expected) in [(61, None), (179, None), (181, Some("apply pod source"))] {
        world.now = at(now);
        assert_eq!(
            short(&decide_in(&mut world).0),
            Vec::from_iter(expected),
            "{now}"
        );
    }
    // One that was made together with its credentials has them.
    expire(&mut world, validity + 1);
    world.now = at(2);
    assert_eq!(short(&decide_in(&mut world).0), ["apply pod source"]);
}

#[test]
fn what_a_source_needs_is_made_again_before_its_pod() {
    let mut world = under_way(&json!({}));
    world.pods = vec![pod(&world, End::Target, &json!({}))];
    world
        .belongings
        .retain(|belonging| belonging.name.ends_with("target"));
    let expected = ["Mint", "apply network policy home/volferry-UID-source"];
    assert_eq!(decide_in(&mut world).0, expected);
    world.belongings = provided(&world);
    assert_eq!(
        decide_in(&mut world).0,
        ["apply pod home/volferry-UID-source"]
    );
}

#[test]
fn a_volume_that_lost_its_claim_is_not_handed_over() {
    let check = |phase: &str, uid: &str, expected: &[&str]| {
        let mut world = handed_over(false);
        world.filled_volume = Some(filled(uid, phase));
        let (steps, decision) = decide_in(&mut world);
        let taken: Vec<_> = steps
            .iter()
            .map(|step| step.split('(').next().unwrap())
            .collect();
        assert_eq!(taken, expected, "{phase}");
        decision
    };
    check("Bound", "prime", &["Rebind"]);
    // It is the target's already, and Kubernetes has not bound it yet.
    check("Available", "uid-to", &[]);
    for phase in ["Released", "Failed", "Available"] {
        let decision = check(phase, "prime", &[]);
        let failure = decision.status.unwrap().failure.unwrap();
        assert_eq!(failure.reason, "TargetLost", "{phase}");
    }
}

#[test]
fn a_claim_of_later_gets_no_receipt() {
    let mut world = under_way(&json!({}));
    world.pods = vec![ended_well(&world, End::Target, 0, &receipt())];
    world.now = at(100);
    decide_in(&mut world);
    world.pods.clear();
    world.belongings.clear();
    for (created, expected) in [(50, vec!["attest to"]), (101, Vec::new())] {
        let made = json!({"metadata": {"creationTimestamp": at(created).to_string()}});
        world.target_claim = Some(claim("home", "to", &made));
        assert_eq!(decide_in(&mut world).0, expected, "{created}");
    }
}

#[test]
fn a_receipt_of_another_clone_or_of_less_proves_nothing() {
    let check = |verify: &str, shown: &str, is_proven: bool| {
        let mut world = under_way(&json!({"verify": verify}));
        world.pods = vec![ended_well(&world, End::Target, 0, shown)];
        let (_, decision) = decide_in(&mut world);
        let status = decision.status.unwrap();
        assert_eq!(status.receipt.is_some(), is_proven, "{verify} {shown}");
        let failure = status.failure.map(|failure| failure.reason);
        assert_eq!(failure.is_none(), is_proven, "{failure:?}");
    };
    check("Digest", &receipt(), true);
    check("None", &receipt(), true);
    check("Readback", &receipt(), false);
    check(
        "Readback",
        &receipt().replace("\"digest\",", "\"readback\","),
        true,
    );
    check(
        "Digest",
        &receipt().replace(UID, "7a1f0c2e-0000-4000-8000-000000000002"),
        false,
    );
}

#[test]
fn what_a_tree_would_lose_says_which_field_allows_it() {
    let note = json!({"failure": {"code": "fidelity", "retryable": false,
        "text": "the target could not keep everything; allow it with --accept CLASS"}});
    let ended = container(&json!({"restartCount": 1, "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 6, "message": note.to_string()}}}));
    let mut world = under_way(&json!({}));
    world.pods = vec![pod(&world, End::Target, &ended)];
    check_stop(
        world,
        Phase::Failed,
        Reason::AgentFailed,
        "--accept CLASS (fidelity); here that is spec.accept",
    );
}

#[test]
fn an_agent_that_waited_in_vain_is_tried_again() {
    let failed = |code: &str| {
        let note = json!({"failure": {"code": code, "retryable": false, "text": "no progress"}});
        container(
            &json!({"restartCount": 1, "ready": true, "state": {"running": {}},
            "lastState": {"terminated": {"exitCode": 9, "message": note.to_string()}}}),
        )
    };
    let mut world = under_way(&json!({"backoffLimit": 1}));
    world.pods = vec![
        pod(&world, End::Target, &failed("stalled")),
        pod(&world, End::Source, &json!({})),
    ];
    decide_in(&mut world);
    assert_eq!(world.clone.status.as_ref().unwrap().phase, Phase::Cloning);
    let mut often = world.clone();
    often.pods[1] = pod(&often, End::Source, &failed("stalled"));
    check_stop(
        often,
        Phase::Failed,
        Reason::BackoffLimitExceeded,
        "no progress",
    );
    world.pods[0] = pod(&world, End::Target, &failed("target_full"));
    check_stop(world, Phase::Failed, Reason::AgentFailed, "no progress");
}

#[test]
fn what_runs_beside_an_agent_does_not_speak_for_it() {
    let mut world = under_way(&json!({}));
    let mut target = serde_json::to_value(pod(&world, End::Target, &json!({}))).unwrap();
    let proxy = json!({"name": "a-proxy", "ready": true, "restartCount": 9, "image": "", "imageID": "",
        "state": {"running": {}}});
    let proven = json!({"name": "target", "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": {"terminated": {"exitCode": 0, "message": receipt()}}});
    target["status"]["containerStatuses"] = json!([proxy, proven]);
    world.pods = vec![of(target)];
    decide_in(&mut world);
    assert_eq!(condition(&world, "Ready").1, "Proven");
}

#[test]
fn a_claim_of_a_pods_own_is_in_use_too() {
    let user = ClaimUser::of(&of(json!({
        "metadata": {"name": "scratch"},
        "spec": {"containers": [], "volumes": [
            {"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]},
        "status": {"phase": "Running"},
    })));
    assert_eq!(user.unwrap().claims, ["scratch-data"]);
}

#[test]
fn no_snapshot_is_taken_without_consent_or_before_its_turn() {
    let snapshot = json!({"source": {"namespace": "away"}, "strategy": "Snapshot",
        "target": {"claimTemplate": {"metadata": {"name": "to"}, "spec": {"storageClassName": "own"}}}});
    let mut world = world(&snapshot);
    with_backend(&mut world, &json!({}));
    around(&mut world).grants = vec![grant_to_home()];
    let (steps, _) = decide_in(&mut world);
    assert_eq!(steps, ["apply snapshot away/volferry-UID-source"]);
    let mut refused = world.clone();
    around(&mut refused).grants.clear();
    assert_eq!(decide_in(&mut refused).0, Vec::<String>::new());
    assert_eq!(condition(&refused, "Progressing").1, "NotGranted");
    // What the API server says against it is told.
    world.rejection = Some(Rejection {
        what: "snapshot away/s".to_owned(),
        message: "exceeded quota: snapshots".to_owned(),
    });
    decide_in(&mut world);
    let (_, reason, message) = condition(&world, "Progressing");
    assert_eq!(reason, "QuotaExceeded");
    assert!(message.contains("exceeded quota: snapshots"), "{message}");

    let in_use = json!({"inUsePolicy": "Snapshot", "strategy": "HostAssisted"});
    let mut world = self::world(&in_use);
    with_backend(&mut world, &json!({}));
    world.users.source = vec![database()];
    world.admission = Err("many run".to_owned());
    assert_eq!(decide_in(&mut world).0, Vec::<String>::new());
    assert_eq!(condition(&world, "Progressing").1, "Queued");
    world.admission = Ok(());
    assert_eq!(
        decide_in(&mut world).0,
        ["apply snapshot home/volferry-UID-source"]
    );
}

#[test]
fn a_claim_is_not_cloned_to_itself() {
    let same = |spec: Value| {
        let mut world = world(&spec);
        let target = &mut world.clone.spec.target;
        target.persistent_volume_claim = Some(of(json!({"name": "from"})));
        world.target_claim = Some(claim("home", "from", &json!({})));
        world
    };
    for spec in [json!({}), json!({"source": {"namespace": "home"}})] {
        let world = same(spec);
        check_stop(world, Phase::Failed, Reason::SourceIsTarget, "to itself");
    }
    let mut world = same(json!({"source": {"namespace": "away"}}));
    around(&mut world).grants = vec![grant_to_home()];
    decide_in(&mut world);
    assert_eq!(condition(&world, "Accepted").0, "True");
}

#[test]
fn a_volume_that_comes_with_its_first_pod_needs_one() {
    let begin = |spec: &Value, strategy: &str| {
        let mut spec = spec.clone();
        spec["strategy"] = json!(strategy);
        let mut world = world(&spec);
        with_backend(&mut world, &json!({}));
        let around = around(&mut world);
        around.storage_classes[0].volume_binding_mode = Some("WaitForFirstConsumer".to_owned());
        around.grants = vec![grant_to_home()];
        world
    };
    let template = json!({"target": {"claimTemplate": {"metadata": {"name": "to"},
        "spec": {"storageClassName": "own"}}}});
    let mut from_away = template.clone();
    from_away["source"] = json!({"namespace": "away"});

    // At home its user's pod comes to the claim itself.
    let mut world = begin(&template, "Auto");
    assert_eq!(decide_in(&mut world).0, ["apply claim home/to"]);
    assert_eq!(
        world.clone.status.unwrap().strategy,
        Some(Strategy::CsiClone)
    );
    // To a claim beside the source none ever comes.
    let mut world = begin(&from_away, "Auto");
    decide_in(&mut world);
    let status = world.clone.status.unwrap();
    assert_eq!(status.strategy, Some(Strategy::HostAssisted));
    let reasons: Vec<_> = status.considered.iter().map(|way| &*way.reason).collect();
    assert_eq!(
        reasons,
        ["WaitsForConsumer", "WaitsForConsumer", "Possible"]
    );
    for strategy in ["CsiClone", "Snapshot"] {
        let world = begin(&from_away, strategy);
        check_stop(
            world,
            Phase::Failed,
            Reason::StrategyImpossible,
            "with their first pod",
        );
    }

    // A claim that refers to a clone is filled where the scheduler wants its pod.
    let named = json!({"source": {"namespace": "away"}});
    let waiting = |annotations: Value| {
        let change = json!({"metadata": {"annotations": annotations}, "status": {"phase": "Pending"},
            "spec": {"storageClassName": "own", "dataSourceRef": {
                "apiGroup": "volferry.io", "kind": "VolumeClone", "name": "template"}}});
        let mut world = begin(&named, "CsiClone");
        world.target_claim = Some(claim("home", "to", &change));
        world
    };
    let unplaced = waiting(json!({}));
    check_stop(
        unplaced,
        Phase::Pending,
        Reason::WaitsForConsumer,
        "start one that mounts it",
    );
    let mut world = waiting(json!({names::SELECTED_NODE_ANNOTATION: "node-9"}));
    let (_, decision) = decide_in(&mut world);
    let [Step::Apply(Object::Claim(prime))] = &decision.steps[..] else {
        panic!("{:?}", decision.steps);
    };
    assert_eq!(prime.metadata.namespace.as_deref(), Some("away"));
    assert_eq!(
        prime.annotations()[names::SELECTED_NODE_ANNOTATION],
        "node-9"
    );

    // A driver that has no room there takes the choice off the claim that it was asked for.
    let mut prime = (**prime).clone();
    prime.metadata.uid = Some("uid-prime".to_owned());
    let mut ours = belonging(&world, Kind::Claim, End::Source);
    ours.name = names::prime_name(&world.clone);
    world.belongings.push(ours);
    world.prime_claim = Some(prime.clone());
    assert_eq!(decide_in(&mut world).0, Vec::<String>::new());
    prime.metadata.annotations = None;
    world.prime_claim = Some(prime);
    let expected = [
        "Unplace { claim: \"to\", uid: \"uid-to\" }",
        "delete Claim away/volferry-UID-prime",
    ];
    assert_eq!(decide_in(&mut world).0, expected);
    let (_, reason, message) = condition(&world, "Progressing");
    assert_eq!(reason, "WaitsForConsumer");
    assert!(message.contains("chooses again"), "{message}");
}

#[test]
fn a_source_that_another_clone_reads_is_read_where_it_is_attached() {
    let reader = ClaimUser {
        node: Some("node-3".to_owned()),
        ..ClaimUser::default()
    };
    let mut world = under_way(&json!({}));
    world.pods = vec![pod(&world, End::Target, &json!({}))];
    world.users.source_readers = vec![reader];
    let pinned = |world: &mut World| {
        let (_, decision) = decide_in(world);
        let steps = serde_json::to_string(&format!("{:?}", decision.steps)).unwrap();
        assert!(steps.contains("volferry-source"), "{steps}");
        steps.contains("node-3")
    };
    assert!(pinned(&mut world));
    let shared = json!({"spec": {"accessModes": ["ReadWriteMany"]}});
    around(&mut world).source_claim = Some(claim("home", "from", &shared));
    assert!(!pinned(&mut world));
}

#[test]
fn what_is_in_a_filesystem_is_only_overwritten_by_who_was_let_in() {
    let check = |stage: Option<&str>, expected: bool| {
        let tree = json!({"spec": {"volumeMode": "Filesystem"}});
        let mut world = under_way(&json!({}));
        world.target_claim = Some(claim("home", "to", &tree));
        around(&mut world).source_claim = Some(claim("home", "from", &tree));
        world.pods = vec![
            pod(&world, End::Target, &json!({})),
            pod(&world, End::Source, &json!({})),
        ];
        world.report = stage.map(|stage| report(stage, 0));
        decide_in(&mut world);
        world.pods.clear();
        let (_, decision) = decide_in(&mut world);
        let steps = format!("{:?}", decision.steps);
        assert!(steps.contains("--volume=/target"), "{steps}");
        assert_eq!(steps.contains("--overwrite"), expected, "{stage:?}");
    };
    check(None, false);
    check(Some("handshake"), false);
    check(Some("transfer"), true);
}

#[test]
fn a_snapshot_that_tells_no_size_is_as_large_as_its_source() {
    let mut world = world(&json!({"inUsePolicy": "Snapshot", "strategy": "HostAssisted"}));
    with_backend(&mut world, &json!({}));
    world.users.source = vec![database()];
    let around = around(&mut world);
    around.taken_snapshot = Some(Snapshot {
        name: "taken".to_owned(),
        is_ready: true,
        class: Some("shots".to_owned()),
        ..Snapshot::default()
    });
    let (_, decision) = decide_in(&mut world);
    let Some(Step::Apply(Object::Claim(restored))) = decision.steps.first() else {
        panic!("{:?}", decision.steps);
    };
    assert_eq!(claims::size_bytes(restored), Some(1 << 30));
}

#[test]
fn a_snapshot_of_another_mode_is_not_for_the_backend() {
    let check = |mode: &str, strategy: Strategy| {
        let spec = json!({"source": {"volumeSnapshot": {"name": "shot"}},
            "target": {"claimTemplate": {"metadata": {"name": "to"},
                "spec": {"storageClassName": "own", "volumeMode": mode}}}});
        let mut world = world(&spec);
        with_backend(&mut world, &json!({}));
        let around = around(&mut world);
        around.source_claim = None;
        around.source_snapshot = Some(Snapshot {
            name: "shot".to_owned(),
            is_ready: true,
            restore_bytes: Some(1 << 30),
            volume_mode: Some(VolumeMode::Block),
            class: Some("shots".to_owned()),
            ..Snapshot::default()
        });
        decide_in(&mut world);
        assert_eq!(world.clone.status.unwrap().strategy, Some(strategy));
    };
    check("Block", Strategy::Snapshot);
    check("Filesystem", Strategy::HostAssisted);
}

#[test]
fn a_volume_that_was_free_is_not_taken_for_a_backends_clone() {
    let spec = json!({"target": {"claimTemplate": {"metadata": {"name": "to"},
        "spec": {"storageClassName": "own"}}}});
    let bound = |volume: Option<Value>| {
        let mut world = world(&spec);
        with_backend(&mut world, &json!({}));
        decide_in(&mut world);
        let made = json!({"metadata": {"creationTimestamp": at(100).to_string()},
            "spec": {"storageClassName": "own",
                "dataSource": {"kind": "PersistentVolumeClaim", "name": "from"}}});
        world.target_claim = Some(claim("home", "to", &made));
        let mut ours = belonging(&world, Kind::Claim, End::Target);
        ours.name = "to".to_owned();
        world.belongings = vec![ours];
        world.filled_volume = volume.map(of);
        world
    };
    let volume = |seconds: i64, driver: Option<&str>| {
        json!({"metadata": {"name": "pv", "creationTimestamp": at(seconds).to_string(),
            "annotations": driver.map(|driver| json!({names::PROVISIONED_BY_ANNOTATION: driver}))}})
    };
    // An API server's clock may be a little behind another's.
    for seconds in [101, 99] {
        let mut made = bound(Some(volume(seconds, Some("d.io"))));
        decide_in(&mut made);
        assert_eq!(condition(&made, "Ready").1, "ClonedByBackend");
    }
    for (seconds, driver) in [(101, None), (101, Some("e.io")), (39, Some("d.io"))] {
        let world = bound(Some(volume(seconds, driver)));
        let reason = Reason::ProvisioningFailed;
        check_stop(world, Phase::Failed, reason, "not made for it");
    }
    check_stop(bound(None), Phase::Failed, Reason::TargetLost, "volume pv");
}

#[test]
fn who_comes_while_bytes_travel_is_seen() {
    let disturbed = |policy: &str| {
        let mut world = under_way(&json!({"inUsePolicy": policy}));
        world.pods = End::ALL.map(|end| pod(&world, end, &json!({}))).to_vec();
        world.surroundings = None;
        decide_in(&mut world);
        assert_eq!(condition(&world, "Progressing").1, "Transferring");
        world
    };
    let check = |mut world: World, reason: Reason, words: &str| {
        let (steps, decision) = decide_in(&mut world);
        assert_eq!(steps, Vec::<String>::new());
        let (is_progressing, found, message) = condition(&world, "Progressing");
        assert_eq!((is_progressing, found), ("True", reason.label()));
        assert!(message.contains(words), "{message}");
        assert_eq!(decision.notes.len(), 1, "it is told");
        assert!(decision.notes[0].is_warning);
        assert_eq!(decide(&world).notes, [], "once");
        world.users = Users::default();
        decide_in(&mut world);
        assert_eq!(condition(&world, "Progressing").1, "Transferring");
    };
    let read = |policy: &str| {
        let mut world = disturbed(policy);
        world.users.source = vec![database()];
        world
    };
    check(
        read("Wait"),
        Reason::SourceInUse,
        "from is used by pods database while it is read",
    );
    check_stop(read("Fail"), Phase::Failed, Reason::SourceInUse, "database");
    for policy in ["Allow", "Snapshot"] {
        assert_eq!(decide(&read(policy)).notes, [], "{policy}");
    }
    // Nobody used the source when its pod was made, so no snapshot was taken.
    let mut unshot = read("Snapshot");
    let mounts = json!({"spec": {"volumes": [
        {"name": "volume", "persistentVolumeClaim": {"claimName": "from"}}]}});
    unshot.pods[0] = pod(&unshot, End::Source, &mounts);
    check(unshot, Reason::SourceInUse, "database");
    // What was read to its end may change.
    let mut over = read("Fail");
    over.pods[0] = pod(
        &over,
        End::Source,
        &json!({"status": {"phase": "Succeeded"}}),
    );
    assert_eq!(decide(&over).notes, []);

    let mut written = disturbed("Allow");
    written.users.target = vec![database()];
    check(
        written.clone(),
        Reason::TargetInUse,
        "to is used by pods database",
    );
    // A pod that waits for a claim without a volume writes nothing.
    written.clone.status.as_mut().unwrap().prime = Some(PrimeStatus::default());
    assert_eq!(decide(&written).notes, []);
}

#[test]
fn what_is_proven_is_seen_before_a_deadline_or_a_suspension() {
    let proven = |spec: &Value| {
        let mut world = under_way(spec);
        world.pods = vec![ended_well(&world, End::Target, 0, &receipt())];
        world
    };
    let mut late = proven(&json!({"deadlineSeconds": 60}));
    late.now = at(3600);
    decide_in(&mut late);
    assert_eq!(condition(&late, "Ready").1, "Proven");

    let mut suspended = proven(&json!({}));
    suspended.clone.spec.suspend = true;
    decide_in(&mut suspended);
    let status = suspended.clone.status.clone().unwrap();
    assert_eq!(status.phase, Phase::Suspended);
    assert!(status.receipt.is_some(), "it goes with the pod");
    suspended.pods.clear();
    suspended.clone.spec.suspend = false;
    decide_in(&mut suspended);
    assert_eq!(condition(&suspended, "Ready").1, "Proven");
}

#[test]
fn an_agent_has_ended_though_its_proxy_runs_on() {
    let mut world = under_way(&json!({}));
    let beside = |end: End, agent: &Value| {
        let mut own = json!({"name": end.label(), "restartCount": 0, "image": "", "imageID": ""});
        merge(&mut own, agent);
        let proxy = json!({"name": "a-proxy", "ready": true, "restartCount": 99, "image": "",
            "imageID": "", "state": {"running": {}}});
        json!({"status": {"containerStatuses": [own, proxy]}})
    };
    let ended = json!({"ready": false,
        "state": {"terminated": {"exitCode": 0, "message": receipt()}}});
    let pods = End::ALL.map(|end| pod(&world, end, &beside(end, &ended)));
    world.pods = pods.to_vec();
    decide_in(&mut world);
    assert_eq!(condition(&world, "Ready").1, "Proven");
}
