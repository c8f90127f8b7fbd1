//! A clone from its beginning to its end, and what it waits for.

use super::*;

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
fn what_the_api_refuses_is_told_until_it_does_not() {
    let check = |message: &str, reason: &str| {
        let mut world = world(&json!({}));
        let refused = |what: &str| Rejection {
            what: what.to_owned(),
            message: message.to_owned(),
        };
        world.rejections = vec![refused("pod home/x")];
        let (_, decision) = decide_in(&mut world);
        assert_eq!(condition(&world, "Progressing").1, "Preparing", "another");
        let asked = decision.steps.last().unwrap().what();
        world.rejections.push(refused(&asked));
        let (steps, _) = decide_in(&mut world);
        assert!(!steps.is_empty(), "it is tried again");
        let (status, found, told) = condition(&world, "Progressing");
        assert_eq!((status, found), ("False", reason));
        assert!(told.contains(message), "{told}");
        world.rejections.clear();
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
        ours.uid = "uid-to".to_owned();
        world.belongings.push(ours);
        world.target_claim = Some(claim("home", "to", &json!({})));
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
        // What was listed and not seen may be another by now, or complete.
        let mut unseen = world.clone();
        unseen.target_claim = Some(claim("home", "to", &json!({"metadata": {"uid": "other"}})));
        unseen.belongings.retain(|it| it.kind == Kind::Claim);
        let steps = decide_in(&mut unseen).0;
        assert_eq!(steps, ["RemoveFinalizer"; 1][..usize::from(kept)]);
        world
            .belongings
            .retain(|belonging| kept && belonging.kind == Kind::Claim);
        assert_eq!(decide_in(&mut world).0, ["RemoveFinalizer"], "{phase:?}");
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
    let check = |world: &mut World, change: Value, is_noted: bool| {
        world.target_claim = Some(claim("home", "to", &change));
        let expected = ["attest to"; 1];
        let expected = &expected[..usize::from(is_noted)];
        assert_eq!(decide_in(world).0, expected, "{change}");
    };
    // Whoever made it may tell the time by another clock than who saw its clone end.
    for seconds in [50, 101] {
        let made = json!({"metadata": {"creationTimestamp": at(seconds).to_string()}});
        check(&mut world, made, true);
    }
    check(&mut world, json!({"metadata": {"uid": "another"}}), false);
    // An older controller noted no uid: then the time is all there is.
    let mut older = world.clone();
    older.clone.status.as_mut().unwrap().filled_uid = None;
    for (seconds, is_noted) in [(50, true), (101, false)] {
        let made = json!({"metadata": {"creationTimestamp": at(seconds).to_string()}});
        check(&mut older, made, is_noted);
    }
    // Where a volume was handed over, it is that which was filled.
    let status = world.clone.status.as_mut().unwrap();
    status.prime = Some(PrimeStatus {
        namespace: "home".to_owned(),
        volume: Some("filled".to_owned()),
        complete_at: None,
    });
    let filled = json!({"spec": {"volumeName": "filled"}});
    check(&mut world, filled, true);
    check(&mut world, json!({}), false);
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
    // The proof is of the claim that was filled, and of none that has its name now.
    let remade = claim("home", "to", &json!({"metadata": {"uid": "another"}}));
    for claim in [Some(remade), None] {
        let mut gone = suspended.clone();
        gone.target_claim = claim;
        check_stop(gone, Phase::Failed, Reason::TargetLost, "is gone");
    }
    decide_in(&mut suspended);
    assert_eq!(condition(&suspended, "Ready").1, "Proven");
}

#[test]
fn a_claim_is_told_of_the_clone_that_fills_it() {
    let mut world = world(&json!({}));
    let owner = json!([{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "to", "uid": "uid-to"}]);
    world.clone.metadata.owner_references = of(owner);
    world.clone.metadata.finalizers = None;
    let notes = |decision: &Decision| {
        let notes = decision.notes.iter();
        notes.map(|note| note.reason).collect::<Vec<_>>()
    };
    assert_eq!(notes(&decide(&world)), [Reason::Filling]);
    world.clone.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
    let source = around(&mut world).source_claim.take();
    let (_, decision) = decide_in(&mut world);
    assert_eq!(notes(&decision), [Reason::SourceNotFound], "why it waits");
    let (_, decision) = decide_in(&mut world);
    assert_eq!(notes(&decision), [], "once");
    around(&mut world).source_claim = source;
    world.admission = Err("16 clones run already".to_owned());
    let (_, decision) = decide_in(&mut world);
    assert_eq!(notes(&decision), [Reason::StrategyChosen, Reason::Queued]);
    // Nobody looks at the Events of a clone that somebody made: its status is enough.
    world.clone.metadata.owner_references = None;
    world.clone.status = None;
    let (_, decision) = decide_in(&mut world);
    assert_eq!(notes(&decision), [Reason::StrategyChosen]);
}
