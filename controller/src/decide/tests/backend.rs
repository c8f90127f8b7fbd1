//! The backend's ways, snapshots among them, and which way is chosen.

use super::*;

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

/// The backend of class `own` is asked to clone, and its claim is like that.
fn asked(change: &Value) -> World {
    let spec = json!({"target": {"claimTemplate": {"metadata": {"name": "to"},
        "spec": {"storageClassName": "own"}}}});
    let mut world = world(&spec);
    with_backend(&mut world, &json!({}));
    around(&mut world).snapshot_classes.clear();
    assert_eq!(decide_in(&mut world).0, ["apply claim home/to"]);
    let mut made = json!({"metadata": {"creationTimestamp": at(0).to_string(), "resourceVersion": "7"},
        "spec": {"storageClassName": "own",
            "dataSource": {"kind": "PersistentVolumeClaim", "name": "from"}}});
    merge(&mut made, change);
    world.target_claim = Some(claim("home", "to", &made));
    let mut ours = belonging(&world, Kind::Claim, End::Target);
    (ours.name, ours.uid) = ("to".to_owned(), "uid-to".to_owned());
    world.belongings = vec![ours];
    world
}

/// A refusal that was told at both these seconds.
fn refusal(words: &str, first: i64, last: i64) -> Refusal {
    Refusal {
        message: words.to_owned(),
        first_at: Some(at(first)),
        last_at: Some(at(last)),
    }
}

#[test]
fn a_backend_is_given_up_when_it_has_refused_for_two_minutes() {
    let check = |now: i64, refusals: &[Refusal], is_final: bool| {
        // The claim is as old as its clone: it has waited for its first pod.
        let mut world = asked(&json!({"status": {"phase": "Pending"}}));
        around(&mut world).target_warnings = refusals.to_vec();
        world.now = at(now);
        decide_in(&mut world);
        let (_, reason, message) = condition(&world, "Progressing");
        let expected = ["ProvisioningFailed", "Preparing"][usize::from(is_final)];
        assert_eq!(reason, expected, "{message}");
        let strategy = world.clone.status.unwrap().strategy;
        let next = [Strategy::CsiClone, Strategy::HostAssisted][usize::from(is_final)];
        assert_eq!(strategy, Some(next), "{now} {refusals:?}");
    };
    let timeout = |first, last| refusal("context deadline exceeded", first, last);
    check(7200, &[timeout(7200, 7200)], false);
    check(7319, &[timeout(7200, 7300)], false);
    check(7320, &[timeout(7200, 7300)], true);
    check(7320, &[timeout(7200, 7200), timeout(7310, 7310)], true);
    // Another pod came, and what an earlier one was refused for is long ago.
    check(7200, &[timeout(600, 800)], false);
    let timeless = Refusal {
        message: "busy".to_owned(),
        ..Refusal::default()
    };
    check(7200, &[timeless], false);
    check(0, &[refusal("clones are not supported", 0, 0)], true);
}

#[test]
fn a_backend_that_refuses_gives_way_to_the_next() {
    let mut world = asked(&json!({"status": {"phase": "Pending"}}));
    assert_eq!(decide_in(&mut world).0, Vec::<String>::new());
    assert_eq!(condition(&world, "Progressing").1, "Provisioning");

    around(&mut world).target_warnings = vec![refusal("no room today", 0, 0)];
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

    around(&mut world).target_warnings = vec![refusal("clone is not supported", 0, 0)];
    let (steps, decision) = decide_in(&mut world);
    assert_eq!(
        world.clone.status.as_ref().unwrap().strategy,
        Some(Strategy::HostAssisted)
    );
    // The backend tries on, and a pod would start on what it makes.
    assert_eq!(steps, ["delete Claim home/to"]);
    let Step::Delete(doomed) = &decision.steps[0] else {
        unreachable!();
    };
    assert_eq!(doomed.version.as_deref(), Some("7"), "as it was seen");
    assert_eq!(decide_in(&mut world).0, ["delete Claim home/to"]);
    world.target_claim = None;
    world.belongings.clear();
    let (steps, _) = decide_in(&mut world);
    assert_eq!(steps[0], "apply claim home/to");
    assert_eq!(steps.last().unwrap(), "apply pod home/volferry-UID-target");
}

#[test]
fn a_claim_that_the_backend_filled_after_it_was_given_up_is_not_filled_again() {
    let filled = |filled_uid: Option<&str>, next: Strategy| {
        let mut world = asked(&json!({}));
        let status = world.clone.status.as_mut().unwrap();
        status.strategy = Some(next);
        status.filled_uid = filled_uid.map(str::to_owned);
        world.filled_volume = Some(of(json!({"metadata": {"name": "pv",
            "annotations": {names::PROVISIONED_BY_ANNOTATION: "d.io"}}})));
        world
    };
    for next in [Strategy::HostAssisted, Strategy::Snapshot] {
        let mut world = filled(None, next);
        // The pod that waited for it writes already, and agents of others have all places.
        world.users.target = vec![database()];
        world.admission = Err("16 clones run already".to_owned());
        let (steps, decision) = decide_in(&mut world);
        assert_eq!(steps, Vec::<String>::new());
        assert_eq!(condition(&world, "Ready").1, "ClonedByBackend");
        let status = world.clone.status.unwrap();
        assert_eq!(status.strategy, Some(Strategy::CsiClone));
        assert!(status.considered[0].possible, "{status:?}");
        assert!(decision.notes[0].message.contains("taken again"));
    }
    // A volume that was not made for it is nobody's clone.
    let mut free = filled(None, Strategy::HostAssisted);
    free.filled_volume = Some(of(json!({"metadata": {"name": "pv"}})));
    let reason = Reason::ProvisioningFailed;
    check_stop(free, Phase::Failed, reason, "not made for it");
    // What agents have begun to fill holds neither the backend's clone nor a pod's.
    let mut begun = filled(Some("uid-to"), Strategy::HostAssisted);
    let (steps, _) = decide_in(&mut begun);
    assert_eq!(steps.last().unwrap(), "apply pod home/volferry-UID-target");
    // An older controller noted no uid.
    let mut older = filled(None, Strategy::HostAssisted);
    older.clone.status.as_mut().unwrap().checkpoint = Some("{}".to_owned());
    let (steps, _) = decide_in(&mut older);
    assert_eq!(steps.last().unwrap(), "apply pod home/volferry-UID-target");
    let mut older = filled(None, Strategy::HostAssisted);
    older.pods = vec![pod(&older, End::Target, &json!({}))];
    let all = provided(&older);
    older.belongings.extend(all);
    let (steps, _) = decide_in(&mut older);
    assert_eq!(steps.last().unwrap(), "apply pod home/volferry-UID-source");
}

#[test]
fn a_deleted_clone_leaves_what_the_backend_has_filled() {
    let check = |change: Value, volume: Value, expected: &[&str]| {
        let mut world = asked(&change);
        world.filled_volume = Some(of(volume));
        // It came to its end before anybody saw that.
        world.clone.status.as_mut().unwrap().phase = Phase::Failed;
        world.clone.metadata.deletion_timestamp = Some(Time(at(0)));
        let (steps, decision) = decide_in(&mut world);
        assert_eq!(steps, expected, "{change}");
        decision
    };
    let volume = json!({"metadata": {"name": "pv",
        "annotations": {names::PROVISIONED_BY_ANNOTATION: "d.io"}}});
    check(json!({}), volume.clone(), &["RemoveFinalizer"]);
    // A volume that was free holds anything.
    let free = json!({"metadata": {"name": "pv"}});
    check(json!({}), free, &["delete Claim home/to"]);
    let pending = json!({"status": {"phase": "Pending"}});
    let decision = check(pending, volume, &["delete Claim home/to"]);
    let Step::Delete(doomed) = &decision.steps[0] else {
        unreachable!();
    };
    assert_eq!(doomed.version.as_deref(), Some("7"), "as it was seen");
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
    let bound = |volume: Option<Value>| {
        let made = json!({"metadata": {"creationTimestamp": at(100).to_string()}});
        let mut world = asked(&made);
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
