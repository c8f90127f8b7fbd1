//! Whose claims may be read and written, who uses them, and what a pod may do elsewhere.

use super::*;

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
    world.rejections = vec![Rejection {
        what: decide(&world).steps[0].what(),
        message: "exceeded quota: snapshots".to_owned(),
    }];
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
