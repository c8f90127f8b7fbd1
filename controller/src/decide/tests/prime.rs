//! The claim that is filled in the place of the target claim, and its hand-over.

use super::*;

/// A volume that was filled, and is on its way from the prime claim to the target claim.
fn handed_over(is_bound: bool) -> World {
    let template = json!({"deadlineSeconds": 60,
        "target": {"claimTemplate": {"metadata": {"name": "to"}}}});
    let mut world = under_way(&template);
    let mut ours = belonging(&world, Kind::Claim, End::Target);
    (ours.name, ours.uid) = ("to".to_owned(), "uid-to".to_owned());
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
        complete_at: Some(Time(at(0))),
    });
    world
}

#[test]
fn a_hand_over_has_no_deadline() {
    let mut world = handed_over(false);
    world.now = at(3600);
    world.filled_volume = Some(filled("uid-to", "Bound"));
    let (_, decision) = decide_in(&mut world);
    assert_eq!(decision.again, Some(LOOK_SOON), "nothing comes to its end");
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
fn what_keeps_a_complete_volume_from_its_claim_is_told() {
    let waiting = |volume: &Value, claim_spec: &Value| {
        let mut world = handed_over(false);
        world.now = at(30);
        let mut given = serde_json::to_value(filled("uid-to", "Bound")).unwrap();
        merge(
            &mut given["spec"],
            &json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Block",
            "storageClassName": "own", "capacity": {"storage": "1Gi"}}),
        );
        merge(&mut given["spec"], volume);
        world.filled_volume = Some(of(given));
        let mut target = json!({"status": {"phase": "Pending"},
            "spec": {"volumeName": null, "storageClassName": "own"}});
        merge(&mut target["spec"], claim_spec);
        world.target_claim = Some(claim("home", "to", &target));
        world
    };
    let check = |volume: Value, claim_spec: Value, words: &str| {
        let world = waiting(&volume, &claim_spec);
        check_stop(world, Phase::Pending, Reason::NotBound, words);
    };
    check(
        json!({"storageClassName": "other"}),
        json!({}),
        "its spec.storageClassName is own, and the volume's other",
    );
    check(
        json!({"volumeMode": "Filesystem"}),
        json!({}),
        "its spec.volumeMode is Block, and the volume's Filesystem",
    );
    check(
        json!({}),
        json!({"accessModes": ["ReadWriteMany"]}),
        "its spec.accessModes is ReadWriteMany",
    );
    check(
        json!({}),
        json!({"resources": {"requests": {"storage": "2Gi"}}}),
        "its spec.resources.requests.storage is 2147483648",
    );
    check(
        json!({}),
        json!({"volumeName": "of-somebody"}),
        "its spec.volumeName is of-somebody",
    );

    // What fits is Kubernetes' to bind, and it is told when that takes long.
    let mut world = waiting(&json!({}), &json!({}));
    assert_eq!(decide_in(&mut world).0, Vec::<String>::new());
    let (_, reason, message) = condition(&world, "Progressing");
    assert_eq!(reason, "HandingOver");
    assert!(!message.contains("more than a minute"), "{message}");
    let check = |world: &mut World, second: i64, is_late: bool| {
        world.now = at(second);
        decide_in(world);
        let (_, reason, message) = condition(world, "Progressing");
        assert_eq!(reason, "HandingOver");
        let hint = "more than a minute, and `kubectl describe pvc --namespace home to` may";
        assert_eq!(message.contains(hint), is_late, "{second}: {message}");
    };
    check(&mut world, 59, false);
    check(&mut world, 60, true);
    // Kubernetes has nothing to do with what kept it from being handed over.
    let given = world.filled_volume.replace(filled("uid-prime", "Bound"));
    check(&mut world, 3600, false);
    world.clone.spec.suspend = true;
    decide_in(&mut world);
    world.clone.spec.suspend = false;
    world.filled_volume = given;
    check(&mut world, 3600, false);
    check(&mut world, 3660, true);
}

#[test]
fn a_claim_without_a_pod_is_told_to_wait_for_one() {
    let spec = json!({"target": {"claimTemplate": {"metadata": {"name": "to"},
        "spec": {"storageClassName": "own"}}}, "strategy": "CsiClone"});
    let mut world = world(&spec);
    with_backend(&mut world, &json!({}));
    around(&mut world).storage_classes[0].volume_binding_mode =
        Some("WaitForFirstConsumer".to_owned());
    decide_in(&mut world);
    let mut ours = belonging(&world, Kind::Claim, End::Target);
    ours.name = "to".to_owned();
    world.belongings = vec![ours];
    let pending = json!({"metadata": {"creationTimestamp": at(0).to_string()},
        "status": {"phase": "Pending"}, "spec": {"volumeName": null, "storageClassName": "own",
        "dataSource": {"kind": "PersistentVolumeClaim", "name": "from"}}});
    world.target_claim = Some(claim("home", "to", &pending));
    let mut placed = check_stop(
        world,
        Phase::Pending,
        Reason::WaitsForConsumer,
        "start one that mounts it",
    );
    let node = json!({"metadata": {"annotations": {names::SELECTED_NODE_ANNOTATION: "node-9"}}});
    let mut change = pending;
    merge(&mut change, &node);
    placed.target_claim = Some(claim("home", "to", &change));
    placed.now = at(7200);
    decide_in(&mut placed);
    assert_eq!(condition(&placed, "Progressing").1, "Provisioning");
    // Its backend is asked since then, and need not be there at all.
    for (seconds, is_late) in [(59, false), (60, true)] {
        placed.now = at(7200 + seconds);
        let (_, decision) = decide_in(&mut placed);
        let (is_progressing, _, message) = condition(&placed, "Progressing");
        assert_eq!(is_progressing, "True");
        let hint = "more than a minute; `kubectl describe pvc --namespace home to` may say why";
        assert_eq!(message.contains(hint), is_late, "{message}");
        assert_eq!(decision.again, Some(LOOK_AGAIN));
    }
}
