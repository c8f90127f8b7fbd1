//! What pods and policies look like.

use super::*;

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
    let agent = include_str!("../../../../agent/src/options.rs");
    let source = [agent, include_str!("../../../../source-agent/src/main.rs")];
    let options = include_str!("../../../../target-agent/src/options.rs");
    let target = [
        agent,
        options,
        include_str!("../../../../target-agent/src/main.rs"),
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
fn a_claim_goes_where_the_scheduler_wants_it() {
    let mut world = world(&json!({}));
    let pending = json!({"status": {"phase": "Pending"},
        "metadata": {"annotations": {"volume.kubernetes.io/selected-node": "node-3"}}});
    world.target_claim = Some(claim("home", "to", &pending));
    let (_, decision) = decide_in(&mut world);
    assert!(format!("{:?}", decision.steps).contains("node-3"));
}
