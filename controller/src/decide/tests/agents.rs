//! How agents start, fail and are replaced, and what proves a clone.

use super::*;

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
    let mut world = check_stop(world, Phase::Pending, Reason::PodPending, words);

    // One that runs and does not listen, also when it was started again.
    let mut unready = container(&json!({"state": {"running": {"startedAt": at(100).to_string()}}}));
    merge(&mut unready, &json!({"metadata": slow["metadata"]}));
    world.pods = vec![pod(&world, End::Target, &unready)];
    world.now = at(159);
    decide_in(&mut world);
    assert_eq!(condition(&world, "Progressing").1, "Preparing");
    // One that was ready for long has that time too, whatever its pod's conditions were before.
    let mut was_ready = world.clone();
    let conditions = [
        ("Ready", 130),
        ("ContainersReady", 130),
        ("PodScheduled", 159),
    ];
    let conditions = conditions.map(|(name, since)| {
        json!({"type": name, "status": "False", "lastTransitionTime": at(since).to_string()})
    });
    merge(&mut unready, &json!({"status": {"conditions": conditions}}));
    was_ready.pods = vec![pod(&was_ready, End::Target, &unready)];
    was_ready.now = at(189);
    decide_in(&mut was_ready);
    assert_eq!(condition(&was_ready, "Progressing").1, "Preparing");
    was_ready.now = at(190);
    world.now = at(160);
    let words = "it runs and is not ready, for more than a minute; `kubectl describe pod";
    for late in [world, was_ready] {
        check_stop(late, Phase::Pending, Reason::PodPending, words);
    }
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
    world.pods[0] = pod(&world, End::Target, &failed("identity"));
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

/// The clone of a filesystem was under way, and its pods are gone; with the claim that is written now.
fn interrupted(spec: &Value, target: &Value) -> World {
    let tree = json!({"spec": {"volumeMode": "Filesystem"}});
    let mut world = world(spec);
    around(&mut world).source_claim = Some(claim("home", "from", &tree));
    world.target_claim = Some(claim("home", "to", &tree));
    if world.clone.spec.target.claim_template.is_some() {
        let mut ours = belonging(&world, Kind::Claim, End::Target);
        ours.name = "to".to_owned();
        world.belongings = vec![ours];
    }
    decide_in(&mut world);
    world.belongings.extend(provided(&world));
    world.pods = End::ALL.map(|end| pod(&world, end, &json!({}))).into();
    world.report = Some(report("transfer", 1 << 29));
    decide_in(&mut world);
    assert!(world.clone.status.as_ref().unwrap().checkpoint.is_some());
    world.pods.clear();
    world.report = None;
    let mut present = tree;
    merge(&mut present, target);
    world.target_claim = Some(claim("home", "to", &present));
    world
}

#[test]
fn a_claim_that_was_made_anew_gets_nothing_of_the_one_before() {
    let template = json!({"target": {"claimTemplate": {"metadata": {"name": "to"}}}});
    for spec in [json!({}), template] {
        let check = |uid: &str, goes_on: bool| {
            let mut world = interrupted(&spec, &json!({"metadata": {"uid": uid}}));
            let (_, decision) = decide_in(&mut world);
            let steps = format!("{:?}", decision.steps);
            assert!(steps.contains("--volume=/target"), "{steps}");
            for flag in ["--resume-from", "--overwrite"] {
                assert_eq!(steps.contains(flag), goes_on, "{uid} {flag} {spec}");
            }
            let told = decision.notes.iter().map(|note| note.reason);
            let is_told = told.clone().any(|it| it == Reason::TargetReplaced);
            assert_eq!(is_told, !goes_on, "{uid}");
            let status = world.clone.status.as_ref().unwrap();
            assert_eq!(status.checkpoint.is_some(), goes_on, "{uid}");
            assert_eq!(status.progress.is_some(), goes_on, "{uid}");
        };
        check("uid-to", true);
        check("uid-of-another", false);
    }
}

#[test]
fn a_free_volume_that_our_claim_has_got_is_not_overwritten() {
    let check = |driver: Option<&str>, made_at: i64, expected: bool| {
        let spec = json!({"target": {"claimTemplate": {"metadata": {"name": "to"},
            "spec": {"storageClassName": "own", "volumeMode": "Filesystem"}}}, "strategy": "HostAssisted"});
        let mut world = world(&spec);
        with_backend(&mut world, &json!({}));
        let tree = json!({"spec": {"volumeMode": "Filesystem", "storageClassName": "own"},
            "metadata": {"creationTimestamp": at(1000).to_string()}});
        around(&mut world).source_claim = Some(claim("home", "from", &tree));
        world.target_claim = Some(claim("home", "to", &tree));
        let mut ours = belonging(&world, Kind::Claim, End::Target);
        ours.name = "to".to_owned();
        world.belongings = vec![ours];
        world.filled_volume = Some(of(json!({"metadata": {"name": "pv",
            "annotations": driver.map(|driver| json!({names::PROVISIONED_BY_ANNOTATION: driver})),
            "creationTimestamp": at(made_at).to_string()}})));
        let (_, decision) = decide_in(&mut world);
        let steps = format!("{:?}", decision.steps);
        assert!(steps.contains("--volume=/target"), "{steps}");
        assert_eq!(
            steps.contains("--overwrite"),
            expected,
            "{driver:?} {made_at}"
        );
    };
    check(Some("d.io"), 1001, true);
    check(Some("d.io"), 0, false);
    check(Some("e.io"), 1001, false);
    check(None, 1001, false);

    let mut world = under_way(&json!({}));
    target_runs(&mut world);
    let text =
        "target volume: /target holds \"old\"; choose an empty directory, or allow overwriting";
    let failure = json!({"failure": {"class": "target", "code": "target_in_use", "exit_code": 4,
        "retryable": false, "text": text}});
    let ended = container(
        &json!({"lastState": {"terminated": {"exitCode": 4, "message": failure.to_string()}}}),
    );
    world.pods = vec![pod(&world, End::Target, &ended)];
    check_stop(
        world,
        Phase::Failed,
        Reason::AgentFailed,
        "here that is spec.target.overwrite",
    );
}

#[test]
fn a_target_that_goes_unheard_is_told_and_the_clone_goes_on() {
    let unheard = |seconds: u64| {
        let mut world = under_way(&json!({}));
        world.pods = End::ALL.map(|end| pod(&world, end, &json!({}))).into();
        world.silence = Some(Silence {
            lasts: Duration::from_secs(seconds),
            why: "no answer within 5 s".to_owned(),
        });
        world
    };
    let mut world = unheard(59);
    decide_in(&mut world);
    assert_eq!(condition(&world, "Progressing").1, "Transferring");
    let mut world = unheard(60);
    let (steps, decision) = decide_in(&mut world);
    assert_eq!(steps, Vec::<String>::new());
    let (is_progressing, reason, message) = condition(&world, "Progressing");
    assert_eq!((is_progressing, reason), ("True", "ProgressUnknown"));
    for words in [
        "10.0.0.7:7700",
        "no answer within 5 s",
        "namespace volferry-system",
        "no checkpoint",
    ] {
        assert!(message.contains(words), "{message:?} lacks {words:?}");
    }
    assert_eq!(world.clone.status.as_ref().unwrap().phase, Phase::Cloning);
    assert!(decision.notes.iter().any(|note| note.is_warning));
    let (_, decision) = decide_in(&mut world);
    assert_eq!(
        (decision.notes, decision.status),
        (Vec::new(), None),
        "it is told once"
    );
}
